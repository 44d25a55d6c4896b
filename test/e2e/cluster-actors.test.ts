/** Actors on a real cluster: state, order, names, handles, and every way to die. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Inspection } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import type { Cluster, RemoteModule } from '../../src/sdk/sdk.ts';
import { failure, TestCluster, until } from '../support/cluster.ts';

type Work = typeof import('../support/work.ts');

let cluster: TestCluster;
let driver: Cluster;
let work: RemoteModule<Work>;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 1, cpus: 2 });
  driver = await cluster.connect('acme-dev');
  work = await driver.module<Work>(new URL('../support/work.ts', import.meta.url));
});
afterAll(() => cluster?.stop());

async function shown(id: string): Promise<{ state: string; reason: string; worker: string } | undefined> {
  const { entities } = await (await cluster.as('acme-dev')).on('raylet-1', Inspection).list({ kind: 'actors', tenant: 'acme' });
  const found = entities.find((e) => e.id === id);
  return found === undefined ? undefined : { state: found.state, reason: found.reason, worker: found.facts['worker'] ?? '' };
}

describe('an actor', () => {
  it('keeps its state between calls', async () => {
    const counter = await work.Counter.create(5);
    expect(await driver.get([counter.add(1), counter.add(2), counter.add(-8)])).toEqual([6, 8, 0]);
  });

  it('keeps its state from others of its class', async () => {
    const [a, b] = await Promise.all([work.Counter.create(1), work.Counter.create(100)]);
    expect(await driver.get([a.add(1), b.add(1), a.add(1)])).toEqual([2, 101, 3]);
  });

  it('runs 1,000 calls of a caller in the order they were made', async () => {
    const counter = await work.Counter.create();
    const refs = Array.from({ length: 1_000 }, (_, i) => counter.note(i));
    expect((await driver.get(refs)).at(-1)).toBe(1_000);
    expect(await driver.get(counter.seen())).toEqual(Array.from({ length: 1_000 }, (_, i) => i));
  });

  it('keeps the order when some calls wait for their arguments', async () => {
    const counter = await work.Counter.create();
    const refs = Array.from({ length: 40 }, (_, i) => counter.note(i % 7 === 0 ? (work.add(i, 0) as never) : i));
    await driver.get(refs);
    expect(await driver.get(counter.seen())).toEqual(Array.from({ length: 40 }, (_, i) => i));
  });

  it('lets async methods interleave', async () => {
    const counter = await work.Counter.create();
    await driver.get([counter.later(300, 1), counter.later(10, 2)]);
    expect(await driver.get(counter.seen())).toEqual([2, 1]);
  });

  it('survives what a method throws', async () => {
    const counter = await work.Counter.create(1);
    const error = await failure(driver.get(counter.throws()));
    expect([error.code, error.message]).toEqual(['TASK_FAILED', expect.stringContaining('on purpose')]);
    expect(await driver.get(counter.add(1))).toBe(2);
  });

  it('has no method that its class does not have', async () => {
    const counter = (await work.Counter.create(1)) as unknown as Record<string, () => never>;
    for (const name of ['missing', '__proto__', 'hasOwnProperty']) {
      const error = await failure(Promise.resolve().then(() => driver.get((counter[name] as () => never)())));
      expect(error.code, name).not.toBe(undefined);
    }
  });
});

describe('a name', () => {
  it('finds the actor, from the driver, another driver and a task', async () => {
    const counter = await work.Counter.options({ name: 'shared' }).create(0);
    await driver.get(counter.add(1));
    const found = await driver.actor<import('../support/work.ts').Counter>('shared');
    expect(found.id).toBe(counter.id);
    expect(await driver.get(found.add(1))).toBe(2);
    const other = await cluster.connect('acme-ana');
    expect(await other.get((await other.actor<import('../support/work.ts').Counter>('shared')).add(1))).toBe(3);
    await other.close();
    expect(await driver.get(work.countByName('shared', 1))).toBe(4);
    await driver.kill(counter);
  });

  it('belongs to one actor at a time, and is free again after its end', async () => {
    const first = await work.Counter.options({ name: 'taken' }).create(1);
    expect((await failure(work.Counter.options({ name: 'taken' }).create(2))).code).toBe('INVALID_ARGUMENT');
    const same = await work.Counter.options({ name: 'taken', getIfExists: true }).create(3);
    expect(same.id).toBe(first.id);
    await driver.kill(first);
    await until('the name is free', async () => {
      try {
        await driver.actor('taken');
        return false;
      } catch {
        return true;
      }
    });
    const next = await work.Counter.options({ name: 'taken' }).create(4);
    expect(await driver.get(next.add(0))).toBe(4);
    await driver.kill(next);
  });

  it('is unknown outside the tenant, in the same words as one that nobody has', async () => {
    const counter = await work.Counter.options({ name: 'private' }).create(1);
    const spy = await cluster.connect('globex-ana');
    const real = await failure(spy.actor('private'));
    const never = await failure(spy.actor('nobody-has-it'));
    expect([real.code, real.message]).toEqual([never.code, never.message]);
    expect(real.code).toBe('DENIED');
    const theirs = await spy.module<Work>(new URL('../support/work.ts', import.meta.url));
    const own = await theirs.Counter.options({ name: 'private' }).create(7);
    expect(await spy.get(own.add(0))).toBe(7);
    await spy.close();
    expect(await driver.get(counter.add(0))).toBe(1);
    await driver.kill(counter);
  });
});

it('a handle works in the tasks it is passed to', async () => {
  const counter = await work.Counter.create(0);
  await driver.get(Array.from({ length: 20 }, () => work.countWith(counter as never, 1)));
  expect(await driver.get(counter.add(0))).toBe(20);
});

describe('the end of an actor', () => {
  it('by kill: pending and later calls say so', async () => {
    const counter = await work.Counter.create(0);
    await driver.get(counter.add(1));
    const pending = counter.later(60_000, 1);
    await driver.kill(counter);
    expect((await failure(driver.get(pending))).code).toBe('ACTOR_DIED');
    expect((await failure(driver.get(counter.add(1)))).code).toBe('ACTOR_DIED');
    expect((await shown(counter.id))?.state).toBe('DEAD');
  });

  it('by a constructor that throws: calls fail with what it threw', async () => {
    const counter = await work.Counter.create(-1);
    const error = await failure(driver.get(counter.add(1)));
    expect(error.code).toBe('ACTOR_DIED');
    expect(error.message).toContain('below zero');
  });

  it('by a call that does not end', async () => {
    const counter = await work.Counter.create(0);
    expect((await failure(driver.get(counter.spin.options({ timeoutMs: 200 })()))).code).toBe('TIMEOUT');
    expect((await failure(driver.get(counter.add(1)))).code).toBe('ACTOR_DIED');
  });

  it('by its memory, and others in the same process do not notice', async () => {
    const [greedy, modest] = await Promise.all([work.Counter.options({ memory: '48MiB' }).create(0), work.Counter.create(0)]);
    await driver.get([greedy.add(1), modest.add(1)]);
    const error = await failure(driver.get(greedy.hog()));
    expect(['OUT_OF_MEMORY', 'ACTOR_DIED']).toContain(error.code);
    expect(await driver.get(modest.add(1))).toBe(2);
  });

  it('with its worker', async () => {
    const counter = await work.Counter.create(0);
    await driver.get(counter.add(1));
    const worker = (await shown(counter.id))?.worker ?? '';
    const victims = cluster.workerPids('raylet-1').filter((pid) => cluster.jailOf(pid).includes(worker));
    expect(victims.length).toBeGreaterThan(0);
    for (const pid of victims) process.kill(pid, 'SIGKILL');
    const error = await failure(driver.get(counter.later(60_000, 1)));
    expect(['ACTOR_DIED', 'WORKER_DIED']).toContain(error.code);
    await until('it is listed as dead', async () => (await shown(counter.id))?.state === 'DEAD');
    expect(await driver.get((await work.Counter.create(1)).add(1))).toBe(2);
  });

  it('with its driver, unless it is detached', async () => {
    const other = await cluster.connect('acme-ana');
    const theirs = await other.module<Work>(new URL('../support/work.ts', import.meta.url));
    const mortal = await theirs.Counter.options({ name: 'mortal' }).create(1);
    const lasting = await theirs.Counter.options({ name: 'lasting', detached: true }).create(10);
    expect(await other.get([mortal.add(1), lasting.add(1)])).toEqual([2, 11]);
    await other.close();
    await until('the mortal one is gone', async () => {
      try {
        await driver.actor('mortal');
        return false;
      } catch {
        return true;
      }
    });
    const found = await driver.actor<import('../support/work.ts').Counter>('lasting');
    expect(await driver.get(found.add(1))).toBe(12);
    await driver.kill(found);
    expect((await failure(driver.get(found.add(1)))).code).toBe('ACTOR_DIED');
  });
});

it('fifty actors at once', async () => {
  const actors = await Promise.all(Array.from({ length: 50 }, (_, i) => work.Counter.options({ cpus: 0 }).create(i)));
  expect(await driver.get(actors.map((a) => a.add(1)))).toEqual(actors.map((_, i) => i + 1));
  await Promise.all(actors.map((a) => driver.kill(a)));
});

it('nothing broke inside', () => {
  expect(cluster.faults()).toEqual([]);
});
