/** The pool: one tenant per process for ever, warm ones without a tenant, crash loops stopped, nothing left behind even after kill -9, layers demanded. */
import { execFileSync, spawn } from 'node:child_process';
import { chmodSync, chownSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, expect, test, vi } from 'vitest';
import { killStrays, startJail } from '../../src/sandbox/jail/bubblewrap.ts';
import { findNode, findProgram, unsearchableParent } from '../../src/sandbox/jail/image.ts';
import { LAYERS } from '../../src/sandbox/jail/layers.ts';
import { compileSeccomp, seccompArch, START_UP } from '../../src/sandbox/jail/seccomp.ts';
import { probeLayers, WorkerPool } from '../../src/sandbox/worker-pool.ts';
import type { WorkerExit } from '../../src/sandbox/worker-process.ts';
import { openProbes, startTestPool, TEST_PRELUDE, type SlotProbe } from './sandbox-fixture.ts';

// Real processes on a machine that may be busy.
vi.setConfig({ testTimeout: 60_000 });

const clock = { nowMs: Date.now, monotonicMs: () => performance.now() };
const cleanups: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

async function until(what: () => boolean, timeoutMs = 10_000): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!what()) {
    if (performance.now() > deadline) throw new Error('it did not come to pass');
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

test('tenants never share a process, and a warm one is replaced', async () => {
  const pool = await startTestPool({ warm: 2 });
  cleanups.push(() => pool.close());
  await until(() => pool.warm === 2);
  const [a, b] = [await pool.acquire({ tenant: 'a', memoryBytes: 2 ** 25, cpus: 1 }), await pool.acquire({ tenant: 'b', memoryBytes: 2 ** 25, cpus: 0.5 })];
  expect(a.pid).not.toBe(b.pid);
  expect(a.tenant).toBe('a');
  expect(() => a.assign('b', a.limits)).toThrow(/second tenant/);
  await until(() => pool.warm === 2);
  expect(pool.size).toBe(4);

  const uids = [a, b].map((worker) => /^Uid:\s+(\d+)/m.exec(readFileSync(`/proc/${worker.pid}/status`, 'latin1'))?.[1]);
  if (process.getuid?.() === 0) expect(new Set([...uids, '0']).size).toBe(3);
  const namespaces = [a, b].map((worker) => execFileSync('readlink', [`/proc/${worker.pid}/ns/mnt`], { encoding: 'utf8' }));
  expect(namespaces[0]).not.toBe(namespaces[1]);
  expect(b.layers.map((layer) => layer.layer)).toEqual([...LAYERS]);
  expect(b.layers.filter((layer) => !layer.on)).toEqual([]);

  // One's end is not the other's.
  const [probe] = openProbes(b, 1) as [SlotProbe];
  const exit = new Promise<WorkerExit>((resolve) => (a.onExit = resolve));
  a.kill('TIMEOUT', 'too long');
  expect(await exit).toEqual({ reason: 'TIMEOUT', detail: 'too long' });
  expect(await probe.run('1 + 1')).toBe('ok:2');
  expect(b.memoryBytes()).toBeGreaterThan(2 ** 20);
  expect(b.cpuMicros()).toBeGreaterThan(1_000);
});

test('whatever a tenant’s workers claim, the kernel holds all of them to its cpus', async () => {
  const pool = await startTestPool();
  cleanups.push(() => pool.close());
  const hog = `hog-${process.pid}`;
  const burners = await Promise.all([1, 2].map(() => pool.acquire({ tenant: hog, memoryBytes: 2 ** 25, cpus: 2, tenantCpus: 0.5 })));
  const calm = await pool.acquire({ tenant: 'calm', memoryBytes: 2 ** 25, cpus: 2 });
  for (const worker of burners) expect(worker.layers.find((layer) => layer.layer === 'cgroup')).toMatchObject({ on: true, detail: expect.stringContaining('all of its tenant cpus 0.5') });
  expect(calm.layers.find((layer) => layer.layer === 'cgroup')).toMatchObject({ on: true, detail: expect.stringContaining('all of its tenant without a limit of cpus') });
  const used = (): number => burners.reduce((sum, worker) => sum + worker.cpuMicros(), 0);
  const before = used();
  const begun = performance.now();
  // What the raylet's own books know nothing of: no call, no lease, a loop in each of two processes.
  for (const worker of burners) openProbes(worker, 1)[0]?.send('for (;;);');
  const throttled = (): number => Math.max(...execFileSync('find', ['/sys/fs/cgroup', '-path', `*tenant-${hog}/cpu.stat`], { encoding: 'utf8' }).trim().split('\n').map((path) => Number(/nr_throttled (\d+)/.exec(readFileSync(path, 'latin1'))?.[1] ?? 0)));
  // On a busy machine it takes a while before they would have more than their due.
  await until(() => used() - before > 400_000 && throttled() > 2, 40_000);
  const micros = used() - before;
  const seconds = (performance.now() - begun) / 1_000;
  // The kernel gives time by the tenth of a second, and a slice of it in advance to each processor.
  expect(micros / 1e6).toBeLessThanOrEqual(0.5 * seconds + 0.15);
  // More for the tenant holds for the processes that run.
  pool.setTenantCpus(hog, 1);
  const [probe] = openProbes(calm, 1) as [SlotProbe];
  expect(await probe.run('1 + 1')).toBe('ok:2');
});

test('a tenant whose workers crash in a loop waits; others do not', async () => {
  let nowMs = 0;
  const pool = await startTestPool({ clock: { nowMs: () => nowMs, monotonicMs: () => nowMs }, limits: { crashLoop: { deaths: 2, windowMs: 10_000, firstWaitMs: 3_000, longestWaitMs: 60_000 } } });
  cleanups.push(() => pool.close());
  for (let i = 0; i < 2; i++) {
    const worker = await pool.acquire({ tenant: 'crasher', memoryBytes: 2 ** 24, cpus: 1 });
    worker.kill('CRASHED');
    await worker.gone;
  }
  await expect(pool.acquire({ tenant: 'crasher', memoryBytes: 2 ** 24, cpus: 1 })).rejects.toMatchObject({ code: 'RESOURCE_EXHAUSTED', safeMessage: expect.stringContaining('3 s') });
  await pool.acquire({ tenant: 'other', memoryBytes: 2 ** 24, cpus: 1 });
  nowMs = 3_001;
  const again = await pool.acquire({ tenant: 'crasher', memoryBytes: 2 ** 24, cpus: 1 });
  // The raylet's own kill is no crash.
  again.kill('KILLED');
  await again.gone;
  await pool.acquire({ tenant: 'crasher', memoryBytes: 2 ** 24, cpus: 1 });
});

test('closing leaves no process, group, directory or mount', async () => {
  const pool = await startTestPool({ warm: 1 });
  const worker = await pool.acquire({ tenant: 'a', memoryBytes: 2 ** 24, cpus: 1 });
  openProbes(worker, 1)[0]?.send('for (;;);');
  const { testRunDir } = pool;
  await pool.close();
  expect(existsSync(`/proc/${worker.pid}`)).toBe(false);
  expect(existsSync(testRunDir)).toBe(false);
  expect(execFileSync('find', ['/sys/fs/cgroup', '-name', worker.id], { encoding: 'utf8' })).toBe('');
  expect(readFileSync('/proc/self/mountinfo', 'latin1')).not.toContain(testRunDir);
  await expect(pool.acquire({ tenant: 'a', memoryBytes: 1, cpus: 1 })).rejects.toMatchObject({ code: 'UNAVAILABLE' });
});

interface Line {
  readonly pid: number;
  readonly id: string;
  readonly answer: string;
  readonly off: string[];
  readonly code?: string;
  readonly message?: string;
}

function startProcess(...args: string[]): { line: Promise<Line>; kill: () => void; ended: Promise<void> } {
  const child = spawn(findNode(), [new URL('./jail-pool-process.ts', import.meta.url).pathname, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  const line = new Promise<Line>((resolve, reject) => {
    createInterface({ input: child.stdout }).once('line', (text) => resolve(JSON.parse(text) as Line));
    child.once('error', reject);
  });
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  cleanups.push(() => void child.kill('SIGKILL'));
  return { line, kill: () => void child.kill('SIGKILL'), ended };
}

function temporaryRunDir(): string {
  const runDir = mkdtempSync('/dev/shm/bulkhead-test-');
  chmodSync(runDir, 0o711);
  cleanups.push(() => rmSync(runDir, { recursive: true, force: true }));
  return runDir;
}

test('kill -9 of the raylet takes its workers along, and the next start sweeps the rest', async () => {
  const runDir = temporaryRunDir();
  const nodeName = `k${process.pid}`;
  const { line, kill, ended } = startProcess(runDir, nodeName, 'stay');
  const { pid, id, answer } = await line;
  expect(answer).toBe('ok:42');
  expect(existsSync(`/proc/${pid}`)).toBe(true);
  kill();
  await ended;
  await until(() => !existsSync(`/proc/${pid}`));
  const find = (): string => execFileSync('find', ['/sys/fs/cgroup', '-name', id], { encoding: 'utf8' });
  expect(find()).not.toBe('');
  expect(readdirSync(join(runDir, 'workers'))).toContain(id);
  const pool = await WorkerPool.start({ runDir, warm: 0, clusterName: 'test', nodeName, clock, prelude: TEST_PRELUDE });
  expect(find()).toBe('');
  expect(readdirSync(join(runDir, 'workers'))).toEqual([]);
  await pool.close();
});

test('a worker that is killed while it starts is started again, so that what wants it does not fail; three in a row do', async () => {
  const runDir = temporaryRunDir();
  const pool = await WorkerPool.start({ runDir, warm: 0, clusterName: 'test', nodeName: `s${process.pid}`, clock, prelude: TEST_PRELUDE });
  cleanups.push(() => pool.close());
  const killed = new Set<string>();
  const killStarting = (most: number): NodeJS.Timeout => setInterval(() => {
    for (const id of readdirSync(join(runDir, 'workers'))) {
      if (killed.size >= most || killed.has(id)) continue;
      try {
        const groups = execFileSync('find', ['/sys/fs/cgroup', '-name', id], { encoding: 'utf8' }).trim().split('\n').filter((path) => path !== '');
        for (const pid of new Set(groups.flatMap((path) => readFileSync(join(path, 'cgroup.procs'), 'latin1').split('\n').filter((pid) => pid !== '')))) {
          process.kill(Number(pid), 'SIGKILL');
          killed.add(id);
        }
      } catch {
        // It, or its group, ended between two looks.
      }
    }
  }, 5);
  const wanted = { tenant: 'acme', runtime: 'javascript', memoryBytes: 2 ** 26, cpus: 1, tenantCpus: 1 } as Parameters<WorkerPool['acquire']>[0];
  let killing = killStarting(2);
  const worker = await pool.acquire(wanted);
  clearInterval(killing);
  expect([killed.size, killed.has(worker.id), worker.exitReason]).toEqual([2, false, undefined]);
  killed.clear();
  killed.add(worker.id);
  killing = killStarting(4);
  await expect(pool.acquire(wanted)).rejects.toMatchObject({ code: 'UNAVAILABLE' });
  clearInterval(killing);
  expect(killed.size).toBe(4);
});

test('a jail whose first process died before it ran leaves nothing', async () => {
  const runDir = temporaryRunDir();
  const workers = join(runDir, 'workers', 'w');
  mkdirSync(workers, { recursive: true });
  writeFileSync(join(runDir, 'empty.bpf'), compileSeccomp(START_UP, seccompArch(process.arch)));
  const jail = startJail({
    bwrap: findProgram('bwrap', ''), prlimit: findProgram('prlimit', ''), limits: { openFiles: 64, fileBytes: 1 }, seccompFile: join(runDir, 'empty.bpf'), hostUid: process.getuid?.() === 0 ? 0x7000_0001 : undefined,
    spec: { program: '/none', args: [], readOnly: [{ source: join(workers, 'objects'), target: '/w' }], readWrite: [], devices: [], env: {}, uid: 65_534, gid: 65_534 },
  });
  const pid = await jail.pid;
  process.kill(jail.monitor.pid as number, 'SIGKILL');
  await new Promise((resolve) => jail.monitor.once('exit', resolve));
  killStrays(workers);
  await until(() => !existsSync(`/proc/${pid}`));
});

test('a jail that cannot be set up is a missing layer, and what it said names no path of the host', async () => {
  // The program is not there: bubblewrap fails at the bind, before anything runs.
  await using pool = await startTestPool({ program: { source: '/nowhere/program', target: '/app/program' } });
  await expect(pool.acquire({ tenant: 'a', memoryBytes: 2 ** 24, cpus: 1 }).then(async (worker) => {
    // Set-up goes on after the process stands: then its end tells.
    const exit = await new Promise<WorkerExit>((resolve) => (worker.onExit = resolve));
    throw Object.assign(new Error(exit.detail), { code: exit.reason });
  })).rejects.toMatchObject({ code: expect.stringMatching(/^(LAYER_MISSING|CRASHED)$/), message: expect.not.stringContaining('/nowhere') });
});

// A checkout that another user cannot enter cannot be run by one.
const asNobody = process.getuid?.() === 0 && unsearchableParent(new URL(import.meta.url).pathname) === undefined ? ['as-nobody'] : [];
test.each(asNobody)('without root and without a delegated group it fails closed, and runs only if told by name', async (mode) => {
  const runDir = temporaryRunDir();
  chownSync(runDir, 65_534, 65_534);
  const refused = await startProcess(runDir, 'n', mode).line;
  expect(refused.code).toBe('LAYER_MISSING');
  expect(refused.message).toMatch(/layer cgroup is missing.*delegated group/);
  const given = await startProcess(runDir, 'n', mode, 'cgroup').line;
  expect(given.message).toBeUndefined();
  expect(given.answer).toBe('ok:42');
  expect(given.off).toEqual(['cgroup']);
});

test.each(process.getuid?.() === 0 ? ['as root'] : [])('a run directory that workers could not pass is refused with what to do (%s)', async () => {
  const runDir = mkdtempSync('/dev/shm/bulkhead-test-');
  cleanups.push(() => rmSync(runDir, { recursive: true, force: true }));
  await expect(WorkerPool.start({ runDir, warm: 0, clusterName: 'test', nodeName: 'x', clock, prelude: TEST_PRELUDE })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', safeMessage: expect.stringMatching(/chmod o\+x/) });
});

test('the probe that doctor prints sees every layer on', async () => {
  const layers = await probeLayers({ clock, prelude: TEST_PRELUDE });
  expect(layers.map((layer) => layer.layer)).toEqual([...LAYERS]);
  expect(layers.filter((layer) => !layer.on)).toEqual([]);
});
