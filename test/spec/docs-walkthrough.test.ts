/**
 * Someone who pastes the README's walkthrough gets what it says: its commands run as they stand there, in an empty home, against a real
 * cluster, and print the lines that it shows. Must never: run anything that is not in the README.
 */
import { spawn } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { read, ROOT } from '../source-tree.ts';

const NODE = join(ROOT, 'node_modules', 'node', 'bin', 'node');
const GUARDIAN = join(ROOT, 'test', 'support', 'cluster-guardian.ts');
const LIMIT_MS = 240_000;

interface Step {
  readonly title: string;
  readonly script: string;
  /** Pieces that the output must hold in this order; `…` in the README stands for anything. */
  readonly expected: readonly string[][];
}

function steps(): Step[] {
  const section = /## From clone to your own task[^\n]*\n([\s\S]*?)\n## /.exec(read('README.md'))?.[1] ?? '';
  return section.split(/^(?=\*\*\d+\. )/m).filter((part) => part.startsWith('**')).map((part) => ({
    title: /^\*\*(.*?)\*\*/.exec(part)?.[1] ?? '',
    script: /```sh\n([\s\S]*?)```/.exec(part)?.[1] ?? '',
    expected: (/```text\n([\s\S]*?)```/.exec(part)?.[1] ?? '').trim().split('\n').map((line) => line.split('…').map((piece) => piece.trim()).filter((piece) => piece !== '')),
  }));
}

function shell(script: string, cwd: string, env: NodeJS.ProcessEnv): Promise<{ code: number | null; output: string }> {
  const child = spawn('bash', ['-euo', 'pipefail', '-c', script], { cwd, env, stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text: string) => (output += text));
  // Not `close`: a cluster that runs on in the background may not hold up the reader of a pipe.
  return new Promise((resolve, reject) => child.on('error', reject).on('close', (code) => resolve({ code, output })));
}

test('the walkthrough of the README works as it stands there', { timeout: LIMIT_MS }, async () => {
  const all = steps();
  expect(all.length).toBe(6);
  const home = mkdtempSync(join(tmpdir(), 'bulkhead-readme-'));
  const clone = join(home, 'clone');
  const bin = join(home, 'bin');
  mkdirSync(clone);
  mkdirSync(bin);
  symlinkSync(join(ROOT, 'examples'), join(clone, 'examples'));
  // `npx bulkhead` of a clone runs bin/bulkhead.js of it; npm itself is not what is under test, and is slow.
  writeFileSync(join(bin, 'npx'), `#!/bin/sh\n[ "$1" = bulkhead ] || exit 127\nshift\nexec '${NODE}' '${join(ROOT, 'bin', 'bulkhead.js')}' "$@"\n`);
  chmodSync(join(bin, 'npx'), 0o755);
  const env: NodeJS.ProcessEnv = { PATH: `${bin}:${process.env['PATH'] ?? ''}`, HOME: home, TMPDIR: tmpdir() };
  // Stops the cluster even when this process is killed.
  const guardian = spawn('/bin/sh', ['-c', 'read -r line || exec "$0" "$1" "$2"', NODE, GUARDIAN, join(home, '.bulkhead')], { stdio: ['pipe', 'ignore', 'ignore'], detached: true });
  guardian.unref();
  try {
    for (const { title, script, expected } of all) {
      expect(script, title).not.toBe('');
      const { code, output } = await shell(script, clone, env);
      expect(code, `${title}\n${output}`).toBe(0);
      let from = 0;
      for (const pieces of expected) {
        for (const piece of pieces) {
          const at = output.indexOf(piece, from);
          expect(at, `${title}: '${piece}' is not in\n${output.slice(from)}`).toBeGreaterThanOrEqual(0);
          from = at + piece.length;
        }
      }
    }
    // The example that the README shows in full, as its own comment says to run it; on the same data, which step 6 kept.
    const { code, output } = await shell(
      'npx bulkhead up --detach >/dev/null; npx bulkhead identity issue user bob --tenant globex --role developer --out bob; npx bulkhead run --profile bob examples/hello/hello.ts; npx bulkhead down --purge', clone, env,
    );
    expect(code, output).toBe(0);
    expect(output).toContain('sum of the squares: 30');
    expect(existsSync(join(home, '.bulkhead', 'cluster'))).toBe(false);
  } finally {
    await shell('npx bulkhead down --purge || true', clone, env);
    guardian.stdin?.end('done\n');
    rmSync(home, { recursive: true, force: true });
  }
});
