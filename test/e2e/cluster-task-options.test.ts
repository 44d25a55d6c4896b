/** Options of tasks and the facts of a running call, on a real cluster of two nodes. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { connect, type Cluster, type RemoteModule } from '../../src/sdk/sdk.ts';
import { read } from '../source-tree.ts';
import { failure, NODE, TestCluster } from '../support/cluster.ts';

type Work = typeof import('../support/option-work.ts');

let cluster: TestCluster;
let driver: Cluster;
let work: RemoteModule<Work>;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 2, cpus: 2 });
  driver = await cluster.connect('acme-dev');
  work = await driver.module<Work>(new URL('../support/option-work.ts', import.meta.url));
});
afterAll(() => cluster?.stop());

describe('retryOn', () => {
  const soon = { retryDelayMs: 1, maxRetries: 3 } as const;

  it('names classes of what is thrown, subclasses included, or what it calls itself', async () => {
    expect(await driver.get(work.flaky.options({ ...soon, retryOn: ['TransientError'] })(2, 'transient'))).toBe(2);
    expect(await driver.get(work.flaky.options({ ...soon, retryOn: ['TransientError'] })(3, 'sub'))).toBe(3);
    expect(await driver.get(work.flaky.options({ ...soon, retryOn: [TypeError] })(1, 'other'))).toBe(1);
    expect(await driver.get(work.flaky.options({ ...soon, retryOn: ['TransientError'] })(1, 'object'))).toBe(1);
    expect(await driver.get(work.flaky.options({ ...soon, retryOn: ['TASK_FAILED'] })(2, 'other'))).toBe(2);
  });

  it('is nothing unless it is given, and ends with the tries', async () => {
    expect((await failure(driver.get(work.flaky(1, 'transient')))).message).toBe('TransientError: not yet');
    expect((await failure(driver.get(work.flaky.options({ ...soon, retryOn: ['RangeError'] })(1, 'other')))).message).toBe('TypeError: never');
    expect((await failure(driver.get(work.flaky.options({ ...soon, maxRetries: 1, retryOn: [TypeError] })(2, 'other')))).code).toBe('TASK_FAILED');
  });
});

describe('context()', () => {
  it('tells a task who and where it is', async () => {
    const ref = work.facts.options({ cpus: 0.5, memory: '64MiB' })();
    const facts = await driver.get(ref);
    expect(facts).toMatchObject({ taskId: ref.id, actorId: null, jobId: driver.jobId, tenant: 'acme', namespace: '', name: 'facts', attempt: 0, resources: { cpus: 0.5, memory: 64 * 2 ** 20 } });
    expect(cluster.nodes.map((n) => n.nodeId)).toContain(facts.nodeId);
    expect(facts.principal).toBe(`spiffe://${cluster.trustDomain}/tenant/acme/job/${driver.jobId}`);
    expect(facts.code).toMatch(/^sha256:[0-9a-f]{64}$/);
    expect(Object.keys(facts).sort()).toEqual(['actorId', 'attempt', 'code', 'jobId', 'name', 'namespace', 'nodeId', 'principal', 'resources', 'taskId', 'tenant']);
  });

  it('tells an actor its id and its namespace', async () => {
    const teller = await work.Teller.options({ name: 'teller', namespace: 'desk' }).create();
    const ref = teller.facts();
    expect(await driver.get(ref)).toMatchObject({ actorId: teller.id, taskId: ref.id, namespace: 'desk', name: 'Teller.facts' });
    const far = await Promise.all([0, 1].map(() => work.Teller.options({ cpus: 2 }).create()));
    const told = await driver.get(far.map((f) => f.facts()));
    expect(told.map((f) => f.actorId)).toEqual(far.map((f) => f.id));
    expect(new Set(told.map((f) => f.nodeId)).size).toBe(2);
    await Promise.all(far.map((f) => driver.kill(f)));
  });

  it('tells the id that its caller has, on whatever node it runs', async () => {
    const refs = Array.from({ length: 8 }, () => work.nap(200));
    expect(await driver.get(refs)).toEqual(refs.map((r) => r.id));
  });

  it('cannot be changed', async () => {
    expect(await driver.get(work.tamper())).toEqual(['false', 'false', 'false', 'acme', '1']);
  });
});

describe('idempotencyKey', () => {
  it('makes a task run once, for the drivers of one job', async () => {
    const once = work.nap.options({ idempotencyKey: 'nap' });
    const refs = [once(20), once(20)];
    const [first, second] = await driver.get(refs);
    expect([first, second]).toEqual([refs[0]?.id, refs[0]?.id]);
    expect(await driver.get(once(20))).toBe(first);
    const nested = await driver.get([work.onceBelow(), work.onceBelow()]);
    expect(nested[0]).toBe(nested[1]);
    expect((await failure(driver.get(work.flaky.options({ idempotencyKey: 'nap' })(0, 'other')))).code).toBe('INVALID_ARGUMENT');
  });
});

describe('a driver without activity', () => {
  it('ends after its time, with a reason; work under way is activity', async () => {
    await using quiet = await connect({ profile: cluster.profile('acme-dev'), address: cluster.headAddress, idleTimeoutMs: 400 });
    const theirs = await quiet.module<Work>(new URL('../support/option-work.ts', import.meta.url));
    expect(await quiet.get(theirs.nap(1_000))).toMatch(/^obj-/);
    await new Promise((resolve) => {
      setTimeout(resolve, 800);
    });
    const error = await failure((async () => quiet.get(theirs.nap(1)))());
    expect([error.code, error.message]).toEqual(['TIMEOUT', expect.stringContaining('asked for nothing for 400 ms')]);
    await expect(connect({ profile: cluster.profile('acme-dev'), address: cluster.headAddress, idleTimeoutMs: 0 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});

describe('docs/tasks.md', () => {
  const page = read('docs/tasks.md');

  it('quotes the example files as they are', () => {
    const quoted = [...page.matchAll(/<!-- (examples\/\S+) -->\n```ts\n([\s\S]*?)```/g)];
    expect(quoted.map(([, file]) => file)).toEqual(['examples/tasks/orders.ts', 'examples/tasks/tasks.ts']);
    for (const [, file, text] of quoted) expect(text, file).toBe(read(file ?? ''));
  });

  it('shows what the example prints', async () => {
    const expected = /```text\n(order 1: [\s\S]*?)```/.exec(page)?.[1];
    const example = fileURLToPath(new URL('../../examples/tasks/tasks.ts', import.meta.url));
    const { stdout } = await promisify(execFile)(NODE, [example], { env: { PATH: process.env['PATH'] ?? '', BULKHEAD_PROFILE: cluster.profile('acme-dev') }, timeout: 60_000 });
    expect(stdout).toBe(expected);
  });
});

describe('limits of what a call makes', () => {
  it('fan-out: what is beyond it is refused, what is within it runs', async () => {
    const said = await driver.get(work.spread.options({ maxFanOut: 5 })(8));
    expect(said.toSorted()).toEqual([...Array.from({ length: 3 }, () => 'RESOURCE_EXHAUSTED'), ...Array.from({ length: 5 }, () => 'ok')]);
  });

  it('depth: of the option, and of those above it', async () => {
    expect(await driver.get(work.descend.options({ maxDepth: 3, cpus: 0 })(10))).toBe(3);
    expect(await driver.get(work.descend.options({ cpus: 0 })(10))).toBe(10);
    expect(await driver.get(work.descend.options({ maxDepth: 0, cpus: 0 })(1))).toBe(0);
  });

  it.each([{ maxFanOut: -1 }, { maxDepth: 65 }, { maxRetries: -2 }, { retryOn: ['no name'] }, { retryOn: 'TypeError' }, { retryDelayMs: 1e9 }])('refuses %o', (options) => {
    expect(() => work.facts.options(options as never)()).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });
});
