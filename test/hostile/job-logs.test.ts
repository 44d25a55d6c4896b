/** What a tenant's jobs print is bounded on a node's disk, which its neighbours and all audit logs share. */
import { mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { parseJobId } from '../../src/base/ids.ts';
import { JobLogs } from '../../src/raylet/job-logs.ts';

const dir = mkdtempSync(join(tmpdir(), 'bulkhead-logs-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const TENANT_BYTES = 20_000;
const jobOf = (n: number) => parseJobId(`job-${String(n).padStart(24, '0')}`);
const print = (logs: JobLogs, tenant: string, n: number): void => logs.append(tenant, jobOf(n), { timeMs: 1, task: `t${n}`, actor: '', name: 'f', stream: 'stdout' }, Buffer.alloc(1_000, 0x61));
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
