/** Other people's tools on our exports: Go's golang.org/x/mod/sumdb checks signature, inclusion and consistency from the tiles. */
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { exportTenant } from '../../src/audit/audit-export.ts';
import { verifyExport } from '../../src/audit/audit-verify.ts';
import { fill, newDirectory, openStore } from './audit-fixture.ts';

const SIZES = [1, 255, 256, 257, 1000];

/** The built checker, or why there is none: no Go here, or its one module cannot be had. */
function build(into: string): { checker: string } | { why: string } {
  const checker = join(into, 'tlog-check');
  try {
    execFileSync('go', ['version'], { stdio: 'pipe' });
  } catch {
    return { why: 'there is no `go` on PATH' };
  }
  const env = { ...process.env, GOFLAGS: '-mod=readonly', GOTOOLCHAIN: 'local' };
  const cwd = join(import.meta.dirname, '..', 'conformance', 'tlog');
  try {
    execFileSync('go', ['mod', 'download'], { cwd, env, stdio: 'pipe', timeout: 60_000 });
  } catch (error) {
    return { why: `golang.org/x/mod cannot be downloaded: ${String((error as { stderr?: Buffer }).stderr).slice(0, 200)}` };
  }
  execFileSync('go', ['build', '-o', checker, '.'], { cwd, env, stdio: 'pipe', timeout: 120_000 });
  return { checker };
}

it("Go's sumdb verifies an export of every shape of tree, and refuses a changed one", async (context) => {
  const built = build(newDirectory());
  for (const size of SIZES) {
    const store = await openStore();
    await fill(store, 'acme', size);
    const out = join(newDirectory(), 'export');
    const { logs } = await exportTenant({ store, tenant: 'acme', format: 'jsonl', out });
    const log = join(out, logs[0]?.directory ?? '');
    expect((await verifyExport(out)).ok).toBe(true);
    if ('why' in built) continue;
    expect(execFileSync(built.checker, [log]).toString()).toBe(`ok ${size}\n`);
    const bundle = join(log, 'tile/entries', size < 256 ? `000.p/${size}` : '000');
    const bytes = fs.readFileSync(bundle);
    bytes[bytes.length - 1] = (bytes[bytes.length - 1] as number) ^ 1;
    fs.writeFileSync(bundle, bytes);
    expect(() => execFileSync(built.checker, [log], { stdio: 'pipe' })).toThrow(/Command failed/);
    expect((await verifyExport(out)).logs[0]?.problems[0]?.index).toBe(Math.min(size, 256) - 1);
  }
  if ('why' in built) {
    console.warn(`The check by Go was left out, only our own verifier ran: ${built.why}.`);
    await context.annotate(`left out: ${built.why}`);
  }
}, 240_000);
