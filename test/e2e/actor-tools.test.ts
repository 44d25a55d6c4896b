/** The pool and the queue of the SDK on a real cluster, and the example of docs/actors.md as it stands there. */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ActorPool } from '../../src/sdk/actor-pool.ts';
import { Queue } from '../../src/sdk/queue.ts';
import type { ActorHandle, Cluster, RemoteModule } from '../../src/sdk/sdk.ts';
import { read } from '../source-tree.ts';
import { failure, NODE, TestCluster } from '../support/cluster.ts';

type Work = typeof import('../support/work.ts');
type Counter = ActorHandle<import('../support/work.ts').Counter>;

let cluster: TestCluster;
let driver: Cluster;
let work: RemoteModule<Work>;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 1, cpus: 2 });
  driver = await cluster.connect('acme-dev');
  work = await driver.module<Work>(new URL('../support/work.ts', import.meta.url));
});
afterAll(() => cluster?.stop());

async function all<T>(of: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const each of of) found.push(each);
  return found;
}

describe('ActorPool', () => {
  const counters = (n: number): Promise<Counter[]> => Promise.all(Array.from({ length: n }, () => work.Counter.create(0)));

  it('map: results in the order of the values, and as they come', async () => {
    const pool = new ActorPool(driver, await counters(3));
    const delays = [120, 5, 60, 5, 5, 90];
    expect(await all(pool.map((c, ms: number) => c.later(ms, ms), delays))).toEqual(delays);
    const unordered = await all(pool.mapUnordered((c, ms: number) => c.later(ms, ms), delays));
    expect([...unordered].sort((a, b) => a - b)).toEqual([...delays].sort((a, b) => a - b));
    expect(unordered[0]).toBe(5);
  });

  it('gives an actor one call at a time, and waiting calls to whoever is free', async () => {
    const workers = await Promise.all([0, 1].map(() => work.Restartable.create('x')));
    const pool = new ActorPool(driver, workers);
    expect(Math.max(...(await all(pool.map((w, ms: number) => w.overlapping(ms), Array.from({ length: 10 }, () => 5)))))).toBe(1);
  });

  it('submit and next, hasFree, popIdle, push, TIMEOUT, failures', async () => {
    const [a, b] = (await counters(2)) as [Counter, Counter];
    const pool = new ActorPool(driver, [a]);
    expect([pool.hasFree, pool.hasNext]).toEqual([true, false]);
    pool.submit((c, k: number) => c.later(200, k), 1);
    pool.submit((c, k: number) => c.add(k), 2);
    expect([pool.hasFree, pool.hasNext, pool.popIdle()]).toEqual([false, true, undefined]);
    expect((await failure(pool.next({ timeoutMs: 10 }))).code).toBe('TIMEOUT');
    pool.push(b);
    expect(await pool.nextUnordered()).toBe(2);
    expect(await pool.next()).toBe(1);
    expect((await failure(pool.next())).code).toBe('INVALID_ARGUMENT');
    pool.submit((c) => c.throws(), 0);
    pool.submit((c, k: number) => c.add(k), 5);
    expect((await failure(pool.next())).code).toBe('TASK_FAILED');
    expect(typeof (await pool.next())).toBe('number');
    expect(() => pool.push(a)).toThrow(/in the pool already/);
  });

  it('an actor that died fails its calls only', async () => {
    const [a, b] = (await counters(2)) as [Counter, Counter];
    await driver.get([a.add(0), b.add(0)]);
    const pool = new ActorPool(driver, [a, b]);
    await driver.kill(a);
    const outcomes: string[] = [];
    for (let i = 0; i < 6; i++) pool.submit((c, k: number) => c.add(k), 1);
    while (pool.hasNext) outcomes.push(await pool.next().then(() => 'value', (error: unknown) => (error as { code: string }).code));
    expect(new Set(outcomes)).toEqual(new Set(['value', 'ACTOR_DIED']));
    expect(outcomes.filter((o) => o === 'ACTOR_DIED').length).toBeLessThan(6);
  });
});

describe('Queue', () => {
  it('first in, first out, between driver and tasks; refs stay refs', async () => {
    const queue = await Queue.create<unknown>(driver);
    await queue.put('first');
    await queue.putNowBatch([2, undefined]);
    const ref = await driver.put('behind a ref');
    await queue.put(ref);
    expect([await queue.size(), await queue.empty(), await queue.full()]).toEqual([4, false, false]);
    expect(await queue.get()).toBe('first');
    expect(await queue.getNowBatch(2)).toEqual([2, undefined]);
    expect(await driver.get((await queue.get()) as typeof ref)).toBe('behind a ref');
    expect(await queue.empty()).toBe(true);
  });

  it('full and empty: at once, and in time', async () => {
    const queue = await Queue.create<number>(driver, { maxSize: 2 });
    await queue.putNowBatch([1, 2]);
    expect(await queue.full()).toBe(true);
    expect([(await failure(queue.putNow(3))).code, (await failure(queue.put(3, { timeoutMs: 20 }))).code, (await failure(queue.putNowBatch([3]))).code]).toEqual(['RESOURCE_EXHAUSTED', 'RESOURCE_EXHAUSTED', 'RESOURCE_EXHAUSTED']);
    expect((await failure(queue.getNowBatch(3))).code).toBe('UNAVAILABLE');
    expect(await queue.getNowBatch(2)).toEqual([1, 2]);
    expect([(await failure(queue.getNow())).code, (await failure(queue.get({ timeoutMs: 20 }))).code]).toEqual(['UNAVAILABLE', 'UNAVAILABLE']);
    expect((await failure(Queue.create(driver, { maxSize: -1 }).then((q) => q.size()))).code).toBe('ACTOR_DIED');
  });

  it('each item to one of many takers, none lost, putters wait for room', async () => {
    const queue = await Queue.create<number>(driver, { maxSize: 3 });
    const takers = Promise.all(Array.from({ length: 4 }, () => driver.get(work.takeMany(queue.actor, 15))));
    await Promise.all(Array.from({ length: 60 }, (_, i) => queue.put(i)));
    expect((await takers).flat().sort((a, b) => a - b)).toEqual(Array.from({ length: 60 }, (_, i) => i));
  });

  it('by name: the same queue from another driver', async () => {
    const options = { actor: { name: 'jobs', getIfExists: true } };
    const queue = await Queue.create<string>(driver, options);
    const other = await cluster.connect('acme-ana');
    await (await Queue.create<string>(other, options)).put('from elsewhere');
    expect(await queue.get()).toBe('from elsewhere');
    await other.close();
  });
});

describe('docs/actors.md', () => {
  const page = read('docs/actors.md');

  it('quotes the example files as they are', () => {
    const quoted = [...page.matchAll(/<!-- (examples\/\S+) -->\n```ts\n([\s\S]*?)```/g)];
    expect(quoted.map(([, file]) => file)).toEqual(['examples/actors/shop.ts', 'examples/actors/actors.ts']);
    for (const [, file, text] of quoted) expect(text, file).toBe(read(file ?? ''));
  });

  it('shows what the example prints', async () => {
    const expected = /```text\n(paid: [\s\S]*?)```/.exec(page)?.[1];
    const example = fileURLToPath(new URL('../../examples/actors/actors.ts', import.meta.url));
    const { stdout } = await promisify(execFile)(NODE, [example], { env: { PATH: process.env['PATH'] ?? '', BULKHEAD_PROFILE: cluster.profile('acme-dev') }, timeout: 60_000 });
    expect(stdout).toBe(expected);
  });
});

it('nothing broke inside', () => {
  expect(cluster.faults()).toEqual([]);
});
