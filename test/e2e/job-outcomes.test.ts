/** A job's outcome is what became of its program, whichever way that ended, with `bulkhead run` and without; on a real cluster. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { Jobs, Sessions } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { failure, NODE, TestCluster, until } from '../support/cluster.ts';

type Work = typeof import('../support/work.ts');

const CLI = fileURLToPath(new URL('../../bin/bulkhead.js', import.meta.url));
const DRIVER = fileURLToPath(new URL('../support/outcome-driver.ts', import.meta.url));
/** Far less than the life of a session's credential, however loaded the machine is. */
const SOON_MS = 30_000;

let cluster: TestCluster;
const programs: Program[] = [];

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 1, cpus: 2 });
});
afterEach(() => {
  for (const program of programs.splice(0)) program.kill();
});
afterAll(() => cluster?.stop());

class Program {
  readonly child: ChildProcess;
  readonly ended: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
  /** Its first line. */
  readonly jobId: Promise<string>;
  said = '';

  constructor(args: readonly string[], detached = false) {
    const { BULKHEAD_JOB_ID: _job, BULKHEAD_JOB_NAME: _name, ...env } = process.env;
    this.child = spawn(NODE, args, { env: { ...env, BULKHEAD_PROFILE: cluster.profile('acme-dev') }, stdio: ['ignore', 'pipe', 'pipe'], detached });
    this.child.stderr?.on('data', (chunk: Buffer) => (this.said += chunk.toString()));
    this.ended = once(this.child, 'exit').then(([code, signal]) => ({ code: code as number | null, signal: signal as NodeJS.Signals | null }));
    const lines = createInterface({ input: this.child.stdout as NodeJS.ReadableStream });
    this.jobId = Promise.race([
      once(lines, 'line').then(([line]) => line as string),
      this.ended.then(async () => {
        await new Promise((resolve) => setTimeout(resolve, 200));
        throw new Error(`the program ended without a word: ${this.said}`);
      }),
    ]);
    this.jobId.catch(() => undefined);
    programs.push(this);
  }

  /** To the whole process group, as a terminal does. */
  interrupt(): void {
    process.kill(-(this.child.pid as number), 'SIGINT');
  }

  kill(): void {
    if (this.child.exitCode === null && this.child.signalCode === null) this.child.kill('SIGKILL');
  }
}

const direct = (how: string): Program => new Program([DRIVER, how]);
const run = (...how: string[]): Program => new Program([CLI, 'run', '--name', 'named', DRIVER, ...how], true);

async function job(jobId: string) {
  return (await cluster.as('acme-dev')).to(Jobs).get({ jobId });
}

async function outcome(jobId: string): Promise<[string, string]> {
  await until(`job ${jobId} has ended`, async () => (await job(jobId)).status !== 'RUNNING', SOON_MS);
  const { status, message } = await job(jobId);
  return [status, message];
}

/** The driver's process under `bulkhead run`. */
function childOf(program: Program): number {
  const pid = program.child.pid as number;
  return Number(readFileSync(`/proc/${pid}/task/${pid}/children`, 'latin1').trim().split(' ')[0]);
}

describe('a driver of its own', () => {
  it.each([
    ['well', 0, 'SUCCEEDED', ''],
    ['well-then-exit', 0, 'SUCCEEDED', ''],
    ['throw', 1, 'FAILED', 'RangeError: thrown inside'],
    ['reject', 1, 'FAILED', 'TypeError: nobody caught this'],
    ['caught', 5, 'FAILED', 'exit code 5'],
    ['exit-3', 3, 'FAILED', 'exit code 3'],
    ['code-4', 4, 'FAILED', 'exit code 4'],
    ['handled', 0, 'SUCCEEDED', ''],
  ])('that ends by %s', async (how, code, status, message) => {
    const program = direct(how);
    const jobId = await program.jobId;
    expect(await program.ended).toEqual({ code, signal: null });
    // Told before the process was gone: nothing here waits for it.
    const { status: now, message: said, endedMs } = await job(jobId);
    expect([now, said]).toEqual([status, message]);
    expect(endedMs).toBeGreaterThan(0n);
  });

  it('that is killed is lost, and the others know soon', async () => {
    const program = direct('wait');
    const jobId = await program.jobId;
    expect((await job(jobId)).status).toBe('RUNNING');
    program.kill();
    expect(await outcome(jobId)).toEqual(['FAILED', 'its driver was lost']);
  });

  it('that was lost leaves its detached actors', async () => {
    const program = direct('wait-detached');
    const jobId = await program.jobId;
    program.kill();
    expect(await outcome(jobId)).toEqual(['FAILED', 'its driver was lost']);
    const later = await cluster.connect('acme-dev');
    const lasting = await later.actor<InstanceType<Work['Counter']>>('outlives');
    expect(await later.get(lasting.add(1))).toBe(9);
    await later.kill(lasting);
    await later.close();
  });
});

describe('bulkhead run', () => {
  it.each([
    ['well', 0, 'SUCCEEDED', ''],
    ['throw', 1, 'FAILED', 'exit code 1'],
    ['exit-3', 3, 'FAILED', 'exit code 3'],
  ])('of a program that ends by %s', async (how, code, status, message) => {
    const program = run(how);
    const jobId = await program.jobId;
    expect(await program.ended).toEqual({ code, signal: null });
    const row = await job(jobId);
    expect([row.status, row.message, row.name]).toEqual([status, message, 'named']);
  });

  it('of a program that is killed', async () => {
    const program = run('wait');
    const jobId = await program.jobId;
    process.kill(childOf(program), 'SIGKILL');
    expect(await program.ended).toEqual({ code: 128 + 9, signal: null });
    const row = await job(jobId);
    expect([row.status, row.message]).toEqual(['FAILED', 'signal SIGKILL']);
  });

  it.each([
    ['that dies of it', 'wait', 128 + 2],
    ['that ends well by it', 'wait-for-interrupt', 0],
  ])('with ^C, of a program %s', async (_what, how, code) => {
    const program = run(how);
    const jobId = await program.jobId;
    program.interrupt();
    expect(await program.ended).toEqual({ code, signal: null });
    const row = await job(jobId);
    expect([row.status, row.message]).toEqual(['STOPPED', 'interrupted (^C)']);
  });

  it('that is told to stop, tells its program', async () => {
    const program = run('wait');
    const jobId = await program.jobId;
    program.child.kill('SIGTERM');
    expect(await program.ended).toEqual({ code: 128 + 15, signal: null });
    const row = await job(jobId);
    expect([row.status, row.message]).toEqual(['STOPPED', 'stopped by SIGTERM']);
  });

  it('is one job with its program, and nobody else joins by the id', async () => {
    const program = run('wait');
    const jobId = await program.jobId;
    const mine = (await (await cluster.as('acme-dev')).to(Jobs).list({ tenant: 'acme' })).jobs.filter((j) => j.status === 'RUNNING');
    expect(mine.map((j) => j.jobId)).toEqual([jobId]);
    for (const profile of ['acme-ana', 'globex-dev']) expect((await failure((await cluster.as(profile)).to(Sessions).open({ jobName: 'x', jobId }))).code).toBe('DENIED');
    await (await cluster.as('acme-ana')).to(Jobs).stop({ jobId });
    program.kill();
    expect((await job(jobId)).status).toBe('STOPPED');
  });

  it('says so where it cannot open a job, and does not start the program', async () => {
    const program = new Program([CLI, 'run', '--profile', cluster.profile('nobody'), DRIVER, 'well']);
    await expect(program.jobId).rejects.toThrow(/error: /);
    expect((await program.ended).code).not.toBe(0);
  });
});

describe('two drivers of one job', () => {
  it('the job ends with the one that opened it; the other only leaves', async () => {
    const first = await cluster.connect('acme-dev');
    const second = await cluster.connect('acme-dev', { job: first.jobId });
    const third = await cluster.connect('acme-dev', { job: first.jobId });
    expect(second.jobId).toBe(first.jobId);
    await second.close();
    expect((await job(first.jobId)).status).toBe('RUNNING');
    const add = first.task((a: number, b: number) => a + b);
    expect(await first.get(add(1, 2))).toBe(3);
    const endless = third.task(() => new Promise(() => undefined));
    const waiting = failure(third.get(endless()));
    await first.close();
    expect((await job(first.jobId)).status).toBe('SUCCEEDED');
    // What is left of the job's drivers is let go.
    expect(['CANCELLED', 'UNAVAILABLE']).toContain((await waiting).code);
    await third.close();
    expect((await job(first.jobId)).status).toBe('SUCCEEDED');
  });

  it('a killed one leaves the job to the other', async () => {
    const program = direct('wait');
    const jobId = await program.jobId;
    const other = await cluster.connect('acme-dev', { job: jobId });
    program.kill();
    await program.ended;
    const add = other.task((a: number, b: number) => a + b);
    // Long enough for the loss to have reached the head: heartbeats are a quarter of a second apart.
    for (let i = 0; i < 10; i++) {
      expect(await other.get(add(i, 1))).toBe(i + 1);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    expect((await job(jobId)).status).toBe('RUNNING');
    await other.close();
    // Nobody else is there: its word is the last.
    expect(await outcome(jobId)).toEqual(['SUCCEEDED', '']);
  });
});
