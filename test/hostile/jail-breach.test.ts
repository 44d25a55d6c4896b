/** Assume breach: native code that is wholly the attacker's runs in the place of node, in the same jail. It reaches nothing but its own channel. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { FrameReader } from '../../src/base/frame.ts';
import type { WorkerPool } from '../../src/sandbox/worker-pool.ts';
import type { WorkerExit, WorkerProcess } from '../../src/sandbox/worker-process.ts';
import { startTestPool } from './sandbox-fixture.ts';

// Real processes on a machine that may be busy.
vi.setConfig({ testTimeout: 60_000 });

let directory: string;
let pool: WorkerPool;

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), 'bulkhead-breach-'));
  const binary = join(directory, 'breach');
  // gcc is among the test prerequisites (scripts/test.sh): without it this suite fails rather than passes unseen.
  execFileSync('gcc', ['-O1', '-w', '-pthread', '-o', binary, new URL('./native/breach.c', import.meta.url).pathname]);
  execFileSync('chmod', ['0755', directory]);
  pool = await startTestPool({ program: { source: binary, target: '/app/breach' } });
}, 60_000);

afterAll(async () => {
  await pool?.close();
  rmSync(directory, { recursive: true, force: true });
});

interface Breach {
  readonly worker: WorkerProcess;
  readonly outcome: Promise<string>;
  readonly exit: Promise<WorkerExit>;
}

async function attack(mode: string, memoryMiB = 64): Promise<Breach> {
  const worker = await pool.acquire({ tenant: `breach-${mode.replace(/[^a-z0-9]/g, '-')}`, memoryBytes: memoryMiB * 2 ** 20, cpus: 1 });
  writeFileSync(join(worker.objectsDir, 'sealed'), 'object');
  const outcome = new Promise<string>((resolve) => (worker.onBatch = (_slot, batch) => resolve(Buffer.from(batch).toString('latin1'))));
  const exit = new Promise<WorkerExit>((resolve) => (worker.onExit = resolve));
  worker.send(1, Buffer.from(mode, 'latin1'));
  return { worker, outcome, exit };
}

function parse(report: string): Map<string, string> {
  return new Map(report.trim().split('\n').map((line) => line.split('=') as [string, string]));
}

describe('native code in place of node', () => {
  test('no system call reaches out of the jail', async () => {
    const { worker, outcome } = await attack('system-calls');
    const results = parse(await outcome);
    worker.kill('KILLED');
    expect(results.size).toBeGreaterThan(45);
    const allowed = [...results].filter(([, result]) => result === 'OK').map(([name]) => name);
    expect(allowed).toEqual([]);
    for (const name of ['socket-inet', 'socket-unix', 'ptrace', 'io_uring_setup', 'bpf', 'mount', 'unshare-user', 'keyctl', 'fork', 'kill-all', 'sendmsg', 'raise-limit']) expect(results.get(name), name).toBe('EPERM');
    expect(results.get('clone3')).toBe('ENOSYS');
  });

  test('no file of the host is there, and nothing but the staging directory can be written', async () => {
    const { worker, outcome } = await attack('files');
    const results = parse(await outcome);
    worker.kill('KILLED');
    expect(results.size).toBeGreaterThan(30);
    const allowed = [...results].filter(([, result]) => result === 'OK').map(([name]) => name);
    expect(allowed).toEqual(['staging', 'null']);
    for (const name of ['read-passwd', 'read-environ', 'read-shell', 'device-mem', 'up-and-out', 'exec-shell']) expect(results.get(name), name).toBe('ENOENT');
    for (const name of ['write-root', 'write-app', 'write-node', 'write-objects', 'write-object', 'write-code']) expect(['EROFS', 'EACCES'], name).toContain(results.get(name));
  });

  test('it has four descriptors, no environment to speak of, no name on the host', async () => {
    const { worker, outcome } = await attack('descriptors');
    const lines = (await outcome).trim().split('\n');
    const descriptors = lines.filter((line) => line.startsWith('fd=')).map((line) => Number(line.slice(3)));
    expect(descriptors.slice(0, 4)).toEqual([0, 1, 2, 3]);
    // Whatever else this test process would have passed on was replaced.
    for (const fd of descriptors.slice(4)) expect(readlinkSync(`/proc/${worker.pid}/fd/${fd}`)).toBe('/dev/null');
    expect(lines).toContain('uid=65534');
    expect(lines).toContain('pid=1');
    expect(lines.filter((line) => line.startsWith('env=')).map((line) => line.slice(4).split('=')[0]).sort()).toEqual(['PWD', 'UV_THREADPOOL_SIZE', 'UV_USE_IO_URING']);
    expect(readFileSync(`/proc/${worker.pid}/cmdline`, 'latin1')).not.toContain(worker.tenant);
    worker.kill('KILLED');
  });

  test('a thread bomb stops at the pids limit', async () => {
    const { worker, outcome } = await attack('threads');
    const threads = Number(parse(await outcome).get('threads'));
    worker.kill('KILLED');
    expect(threads).toBeGreaterThan(10);
    expect(threads).toBeLessThan(192);
  });

  test.each(['memory', 'staging'])('a %s bomb ends as OUT_OF_MEMORY', async (mode) => {
    const { exit } = await attack(mode, 32);
    expect((await exit).reason).toBe('OUT_OF_MEMORY');
  });

  test.each(process.arch === 'x64' ? ['x32', 'int80'] : [])('a call of another ABI (%s) kills', async (mode) => {
    const { exit } = await attack(mode);
    expect(await exit).toMatchObject({ reason: 'CRASHED', detail: expect.stringContaining('system call') });
  });

  test.each(['socket', 'execve', 'fork', 'ptrace', 'unshare', 'seccomp'])('after start-up, %s kills', async (call) => {
    const { exit } = await attack(`run-time:${call}`);
    expect(await exit).toMatchObject({ reason: 'CRASHED', detail: expect.stringContaining('system call') });
  });

  test('after start-up, listed calls work and unlisted ones are refused', async () => {
    const { worker, outcome } = await attack('run-time:getpid');
    const results = parse(await outcome);
    worker.kill('KILLED');
    expect(results.get('pid')).toBe('1');
    expect(results.get('unlisted')).toBe('EPERM');
  });

  test.each(['bad-length', 'huge-length', 'bad-op', 'bad-frame', 'bad-text', 'close-channel'])('malformed bytes (%s) end the worker and nothing else', async (mode) => {
    const { exit } = await attack(mode);
    expect((await exit).reason).toBe('CRASHED');
  });

  test('a batch that the raylet cannot decode ends the worker, not the raylet', async () => {
    const worker = await pool.acquire({ tenant: 'breach-decode', memoryBytes: 2 ** 25, cpus: 1 });
    const exit = new Promise<WorkerExit>((resolve) => (worker.onExit = resolve));
    worker.onBatch = (_slot, batch) => {
      const reader = new FrameReader().reset(batch);
      while (reader.next()) reader.finish();
    };
    worker.send(1, Buffer.from('descriptors', 'latin1'));
    expect(await exit).toMatchObject({ reason: 'CRASHED', detail: expect.stringContaining('broke the protocol') });
  });

  test('a worker that never reads is killed, and send reports back-pressure before', async () => {
    const { worker, exit } = await attack('deaf');
    const batch = new Uint8Array(8 * 2 ** 20);
    let accepted = true;
    for (let i = 0; i < 40; i++) accepted = worker.send(1, batch) && accepted;
    expect(accepted).toBe(false);
    expect(await exit).toMatchObject({ reason: 'TIMEOUT' });
  });

  test('what it prints is bounded', async () => {
    const { worker, outcome } = await attack('chatter');
    await outcome;
    expect(worker.output.length).toBeLessThanOrEqual(4_096);
    worker.kill('KILLED');
  });

  test('a staged file is taken only if it is what was announced', async () => {
    const { worker, outcome } = await attack('files');
    await outcome;
    const destination = join(directory, 'never');
    expect(() => worker.takeStaged(1, 0, 5, destination)).toThrow(/not what was announced/);
    expect(() => worker.takeStaged(1, 99, 0, destination)).toThrow(/not there/);
    expect(existsSync(destination)).toBe(false);
    worker.kill('KILLED');
  });

  test('nothing of a dead worker is left', async () => {
    const { worker, outcome, exit } = await attack('descriptors');
    await outcome;
    worker.kill('KILLED', 'test');
    expect(await exit).toEqual({ reason: 'KILLED', detail: 'test' });
    await worker.gone;
    expect(existsSync(`/proc/${worker.pid}`)).toBe(false);
    expect(existsSync(worker.objectsDir)).toBe(false);
    const groups = execFileSync('find', ['/sys/fs/cgroup', '-name', worker.id], { encoding: 'utf8' });
    expect(groups).toBe('');
    expect(readFileSync('/proc/self/mountinfo', 'latin1')).not.toContain(worker.id);
    expect(readdirSync(join((pool as WorkerPool & { testRunDir: string }).testRunDir, 'workers'))).not.toContain(worker.id);
  });
});
