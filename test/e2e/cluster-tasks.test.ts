/** Tasks on a real cluster, through the SDK: every way to call one and every way in which one ends. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Inspection } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import type { Cluster, RemoteModule } from '../../src/sdk/sdk.ts';
import { failure, TestCluster, until } from '../support/cluster.ts';

type Work = typeof import('../support/work.ts');

let cluster: TestCluster;
let driver: Cluster;
let work: RemoteModule<Work>;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 1, cpus: 2, resources: { license: 1 } });
  driver = await cluster.connect('acme-dev');
  work = await driver.module<Work>(new URL('../support/work.ts', import.meta.url));
});
afterAll(() => cluster?.stop());

/** States of the driver's own tasks, as `list tasks` shows them. */
async function states(name: string): Promise<string[]> {
  const { entities } = await (await cluster.as('acme-dev')).on('raylet-1', Inspection).list({ kind: 'tasks', tenant: 'acme', jobId: driver.jobId });
  return entities.filter((e) => e.name === name).map((e) => e.state);
}

describe('calls', () => {
  it('runs functions of modules and inline functions', async () => {
    const inline = driver.task((a: number, b: number) => a * b);
    expect(await driver.get([work.add(1, 2), inline(6, 7)])).toEqual([3, 42]);
  });

  it('resolves refs among the arguments, also of calls that still run', async () => {
    const slow = work.sleep(30);
    expect(await driver.get(work.total(slow, work.add(slow, 1), 5))).toBe(30 + 31 + 5);
  });

  it('leaves refs inside values as refs', async () => {
    expect(await driver.get(work.sumOfRefs([work.add(1, 1), work.add(2, 2)] as never))).toBe(6);
  });

  it('gives each of several returns its own ref', async () => {
    const [one, two] = work.pair.options({ returns: 2 })(21);
    expect(await driver.get(two as typeof one)).toBe(42);
    expect(await driver.get(one)).toBe(21);
  });

  it('refuses a wrong number of returns in words', async () => {
    const refs = work.pair.options({ returns: 3 })(1) as unknown as Parameters<Cluster['get']>[0][];
    const error = await failure(driver.get(refs[2] as never));
    expect(error.code).toBe('INVALID_ARGUMENT');
    expect(error.message).toContain('3 values');
  });

  it('runs tasks of tasks', async () => {
    expect(await driver.get(work.fibonacci(7))).toBe(13);
    expect(await driver.get(work.firstReady())).toBe(1);
    expect(await driver.get(work.ownActor())).toBe(42);
  });

  it('carries 2,000 calls at once', async () => {
    const refs = Array.from({ length: 2_000 }, (_, i) => work.add(i, 1));
    const values = await driver.get(refs);
    expect(values).toEqual(refs.map((_, i) => i + 1));
  });

  it('knows itself', async () => {
    expect(await driver.get(work.facts.options({ cpus: 0.5, resources: { license: 0.25 } })())).toEqual({ jobId: driver.jobId, tenant: 'acme', name: 'facts', attempt: 0, resources: { cpus: 0.5, memory: 0, license: 0.25 } });
  });
});

describe('errors', () => {
  it('brings the message and the stack of the tenant’s code', async () => {
    const error = await failure(driver.get(work.fail('no such flight')));
    expect(error.code).toBe('TASK_FAILED');
    expect(error.message).toContain('no such flight');
    expect(error.remoteStack).toMatch(/TypeError: no such flight[\s\S]*fail/);
  });

  it('shows no path of the host in a stack', async () => {
    const error = await failure(driver.get(work.fail('x')));
    expect(error.remoteStack).not.toContain(process.cwd());
    expect(error.remoteStack).not.toMatch(/\/src\/|node_modules|\/dev\/shm/);
  });

  it('passes the failure of an argument on, and of a task below', async () => {
    expect((await failure(driver.get(work.add(work.fail('argument') as never, 1)))).message).toContain('argument');
    expect((await failure(driver.get(work.failNested()))).message).toContain('from below');
  });

  it('does not try again what the code itself threw', async () => {
    const error = await failure(driver.get(work.fail.options({ maxRetries: 3 })('once')));
    expect(error.code).toBe('TASK_FAILED');
  });
});

describe('limits', () => {
  it('ends a call that runs too long, and the next one runs', async () => {
    const error = await failure(driver.get(work.spin.options({ timeoutMs: 200 })()));
    expect(error.code).toBe('TIMEOUT');
    expect(await driver.get(work.add(1, 1))).toBe(2);
  });

  it('ends a call that uses too much cpu time', async () => {
    expect((await failure(driver.get(work.spin.options({ cpuTimeMs: 200 })()))).code).toBe('TIMEOUT');
  });

  it('does not count waiting as cpu time', async () => {
    expect(await driver.get(work.sleep.options({ cpuTimeMs: 200 })(500))).toBe(500);
  });

  it('ends a call that waits in the queue too long', async () => {
    const error = await failure(driver.get(work.sleep.options({ cpus: 512, queueTimeoutMs: 200 })(1)));
    expect(error.code).toBe('TIMEOUT');
    expect(error.message).toContain('did not start');
  });

  it('ends a call that needs more memory than it asked for', async () => {
    const error = await failure(driver.get(work.hog.options({ memory: '64MiB', maxRetries: 0 })()));
    expect(error.code).toBe('OUT_OF_MEMORY');
    expect(await driver.get(work.add(20, 3))).toBe(23);
  });

  it('runs fractions of a cpu beside each other, whole ones in turn', async () => {
    const naps = Array.from({ length: 8 }, () => work.sleep.options({ cpus: 0.25 })(10));
    expect(await driver.get(naps)).toEqual(naps.map(() => 10));
  });

  it('runs one task at a time on one unit of a custom resource', async () => {
    const holding = work.sleep.options({ resources: { license: 1 }, cpus: 0, name: 'holding' })(60_000);
    await until('it runs', async () => (await states('holding')).includes('RUNNING'));
    const waiting = work.sleep.options({ resources: { license: 1 }, cpus: 0, name: 'waiting' })(1);
    await until('it waits', async () => (await states('waiting')).includes('PENDING_NODE_ASSIGNMENT'));
    await driver.cancel(holding, { force: true });
    expect(await driver.get(waiting)).toBe(1);
    expect((await failure(driver.get(holding))).code).toBe('CANCELLED');
  });

  it('says why a task cannot be placed', async () => {
    const ref = work.sleep.options({ resources: { gpu: 1 }, name: 'impossible' })(1);
    const { entities } = await (await cluster.as('acme-dev')).on('raylet-1', Inspection).list({ kind: 'tasks', tenant: 'acme' });
    await driver.cancel(ref);
    expect(entities.find((e) => e.name === 'impossible')?.reason).toContain('infeasible');
  });
});

describe('cancelling', () => {
  it('takes a queued task out', async () => {
    const ref = work.sleep.options({ cpus: 512 })(1);
    await driver.cancel(ref);
    expect((await failure(driver.get(ref))).code).toBe('CANCELLED');
  });

  it('takes out a task that waits for its argument', async () => {
    const slow = work.sleep(60_000);
    const ref = work.add(slow, 1);
    await driver.cancel(ref);
    expect((await failure(driver.get(ref))).code).toBe('CANCELLED');
    await driver.cancel(slow);
    expect((await failure(driver.get(slow))).code).toBe('CANCELLED');
  });

  it('stops a running one that waits, politely', async () => {
    const ref = work.sleep.options({ name: 'napping' })(60_000);
    await until('it runs', async () => (await states('napping')).includes('RUNNING'));
    await driver.cancel(ref);
    expect((await failure(driver.get(ref))).code).toBe('CANCELLED');
  });

  it('stops one that never yields, by force, and not its neighbours', async () => {
    const spinning = work.spin.options({ name: 'spinning' })();
    await until('it runs', async () => (await states('spinning')).includes('RUNNING'));
    const neighbour = work.sleep(50);
    await driver.cancel(spinning, { force: true });
    expect((await failure(driver.get(spinning))).code).toBe('CANCELLED');
    expect(await driver.get(neighbour)).toBe(50);
  });

  it('does nothing to a task that has ended', async () => {
    const ref = work.add(1, 1);
    expect(await driver.get(ref)).toBe(2);
    await driver.cancel(ref, { force: true });
    expect(await driver.get(ref)).toBe(2);
  });
});

describe('a worker that dies', () => {
  /** Kills the jailed process that runs the task of this name. */
  async function killWorkerOf(name: string): Promise<void> {
    const { entities } = await (await cluster.as('acme-dev')).on('raylet-1', Inspection).list({ kind: 'tasks', tenant: 'acme', jobId: driver.jobId });
    const worker = entities.find((e) => e.name === name && e.state === 'RUNNING')?.facts['worker'];
    const victims = cluster.workerPids('raylet-1').filter((pid) => worker !== undefined && cluster.jailOf(pid).includes(worker));
    expect(victims.length).toBeGreaterThan(0);
    for (const pid of victims) process.kill(pid, 'SIGKILL');
  }

  it('costs a task with retries nothing but time', async () => {
    const ref = work.sleep.options({ name: 'survivor', maxRetries: 3 })(700);
    await until('it runs', async () => (await states('survivor')).includes('RUNNING'));
    await killWorkerOf('survivor');
    expect(await driver.get(ref)).toBe(700);
  });

  it('ends a task without retries with WORKER_DIED', async () => {
    const ref = work.sleep.options({ name: 'mortal', maxRetries: 0 })(60_000);
    await until('it runs', async () => (await states('mortal')).includes('RUNNING'));
    await killWorkerOf('mortal');
    expect((await failure(driver.get(ref))).code).toBe('WORKER_DIED');
    expect(await driver.get(work.add(1, 1))).toBe(2);
  });
});

describe('what is wrong is refused in words', () => {
  it.each([
    [() => work.add.options({ cpus: -1 })(1, 2), 'cpus'],
    [() => work.add.options({ timeoutms: 5 } as never)(1, 2), 'timeoutMs'],
    [() => work.add.options({ returns: 1_000 })(1, 2), 'returns'],
    [() => work.add((() => 1) as never, 2), 'function'],
  ])('%#', async (call, word) => {
    const error = await failure(Promise.resolve().then((): unknown => call()).then((ref) => driver.get(ref as never)));
    expect(error.code).toBe('INVALID_ARGUMENT');
    expect(error.message).toContain(word);
  });

  it('a function with free variables', async () => {
    const outside = 5;
    const error = await failure(Promise.resolve().then(() => driver.get(driver.task((a: number) => a + outside)(1))));
    expect(error.code).toBe('INVALID_ARGUMENT');
    expect(error.message).toContain('outside');
  });
});

it('logs what tasks print, and nothing broke inside', async () => {
  await driver.get(work.say('hello from a task'));
  const lines: string[] = [];
  for await (const chunk of (await cluster.as('acme-dev')).on('raylet-1', Inspection).readLog({ tenant: 'acme', kind: 'job', id: driver.jobId })) lines.push(new TextDecoder().decode(chunk.text));
  expect(lines.join('')).toContain('hello from a task\n');
  expect(lines.join('')).toContain('(to stderr)');
  expect(cluster.faults()).toEqual([]);
});
