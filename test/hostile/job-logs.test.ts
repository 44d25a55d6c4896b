/** What a tenant's jobs print is bounded on a node's disk, which its neighbours and all audit logs share. */
import { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { parseJobId } from '../../src/base/ids.ts';
import { MAX_LOG_BYTES } from '../../src/base/limits.ts';
import { JobLogs, type LogLine } from '../../src/raylet/job-logs.ts';

const dir = mkdtempSync(join(tmpdir(), 'bulkhead-logs-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const TENANT_BYTES = 20_000;
const jobOf = (n: number) => parseJobId(`job-${String(n).padStart(24, '0')}`);
const lineOf = (task: string, stream: 'stdout' | 'stderr' = 'stdout') => ({ timeMs: 1, task, actor: '', name: 'f', stream }) as const;
const print = (logs: JobLogs, tenant: string, n: number): void => {
  logs.append(tenant, jobOf(n), lineOf(`t${n}`), Buffer.alloc(1_000, 0x61));
  logs.flush();
};
async function linesOf(logs: JobLogs, tenant: string, n: number): Promise<LogLine[]> {
  const lines: LogLine[] = [];
  for await (const line of logs.read(tenant, jobOf(n), () => true, false, new AbortController().signal)) lines.push(line);
  return lines;
}
const bytesOf = (tenant: string): number => readdirSync(join(dir, tenant)).reduce((sum, name) => sum + statSync(join(dir, tenant, name)).size, 0);

it('job after job, and all at once: the oldest of the tenant’s own go, nobody else’s; after a restart too', () => {
  const logs = new JobLogs(dir, TENANT_BYTES);
  print(logs, 'acme', 1);
  const acme = bytesOf('acme');
  for (let job = 0; job < 30; job++) for (let i = 0; i < 4; i++) print(logs, 'globex', job);
  expect(bytesOf('globex')).toBeLessThanOrEqual(TENANT_BYTES);
  expect(readdirSync(join(dir, 'globex'))).toContain(`${jobOf(29)}.jsonl`);
  // Those that were pushed out and print on do not push the others out in turn.
  const kept = readdirSync(join(dir, 'globex')).sort();
  for (let job = 0; job < 20; job++) print(logs, 'globex', job);
  expect(readdirSync(join(dir, 'globex')).sort()).toEqual(kept);
  const again = new JobLogs(dir, TENANT_BYTES);
  for (let job = 40; job < 80; job++) print(again, 'globex', job);
  expect(bytesOf('globex')).toBeLessThanOrEqual(TENANT_BYTES);
  expect(bytesOf('acme')).toBe(acme);
});

it('empty pieces count: a source that prints nothing for ever comes to its end', async () => {
  const logs = new JobLogs(join(dir, 'empty'));
  for (let i = 0; i < MAX_LOG_BYTES / 16 + 10; i++) logs.append('acme', jobOf(1), lineOf('t'), new Uint8Array(0));
  logs.append('acme', jobOf(1), lineOf('t'), Buffer.from('more'));
  const lines = await linesOf(logs, 'acme', 1);
  expect(lines.map((l) => l.text)).toEqual([expect.stringMatching(/^\n… the log of this task is full/)]);
  // Another task of the job has its own count.
  logs.append('acme', jobOf(1), lineOf('u'), Buffer.from('more'));
  expect((await linesOf(logs, 'acme', 1)).at(-1)?.text).toBe('more');
});

it('what comes in one turn is one write per job, in order, and characters that were cut are whole', async () => {
  const at = join(dir, 'gathered');
  const logs = new JobLogs(at);
  const euro = Buffer.from('€');
  for (let i = 0; i < 1_000; i++) logs.append('acme', jobOf(1), lineOf('t'), Buffer.from('x'));
  logs.append('acme', jobOf(1), lineOf('t'), euro.subarray(0, 1));
  logs.append('acme', jobOf(1), lineOf('t'), euro.subarray(1));
  logs.append('acme', jobOf(1), lineOf('t', 'stderr'), Buffer.from('e'));
  logs.append('acme', jobOf(1), lineOf('t'), Buffer.from('y'));
  logs.append('globex', jobOf(2), lineOf('t'), Buffer.from('z'));
  expect(readdirSync(at)).toEqual([]);
  await new Promise((resolve) => setImmediate(resolve));
  expect(readdirSync(at).sort()).toEqual(['acme', 'globex']);
  expect((await linesOf(logs, 'acme', 1)).map((l) => [l.stream, l.text])).toEqual([['stdout', `${'x'.repeat(1_000)}€`], ['stderr', 'e'], ['stdout', 'y']]);
  expect((await linesOf(logs, 'globex', 2)).map((l) => l.text)).toEqual(['z']);
});

it('what waits is bounded, and goes with its tenant', () => {
  const at = join(dir, 'waiting');
  const logs = new JobLogs(at);
  for (let i = 0; i < 9; i++) logs.append('acme', jobOf(1), lineOf(`t${i}`), Buffer.alloc(500_000, 0x61));
  // More than that does not wait for the end of the turn.
  expect(statSync(join(at, 'acme', `${jobOf(1)}.jsonl`)).size).toBeGreaterThan(4_000_000);
  logs.append('acme', jobOf(1), lineOf('late'), Buffer.from('late'));
  logs.forget('acme');
  logs.flush();
  expect(readdirSync(at)).toEqual([]);
});

it('a disk that takes nothing is told of, and ends nothing', () => {
  const at = join(dir, 'broken');
  const errors: unknown[] = [];
  const logs = new JobLogs(at, undefined, (error) => errors.push(error));
  // Where the job's file should be is a directory.
  mkdirSync(join(at, 'acme', `${jobOf(1)}.jsonl`), { recursive: true });
  logs.append('acme', jobOf(1), lineOf('t'), Buffer.from('x'));
  logs.append('globex', jobOf(2), lineOf('t'), Buffer.from('y'));
  logs.flush();
  expect(errors).toHaveLength(1);
  expect(readdirSync(join(at, 'globex'))).toHaveLength(1);
});
