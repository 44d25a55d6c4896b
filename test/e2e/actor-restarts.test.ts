/** Actors of real clusters that are lost and start again, end themselves, are bounded, or are forgotten: processes are killed for it. */
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Jobs } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { Audit, Inspection } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import type { ActorHandle, Cluster, RemoteModule } from '../../src/sdk/sdk.ts';
import { failure, TestCluster, until } from '../support/cluster.ts';

type Work = typeof import('../support/work.ts');
type Restartable = ActorHandle<import('../support/work.ts').Restartable>;
const WORK = new URL('../support/work.ts', import.meta.url);

let cluster: TestCluster;
let driver: Cluster;
/** The raylet that the driver is attached to, and the other one. */
let home: string;
let other: string;
let work: RemoteModule<Work>;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 2, cpus: 2 });
  driver = await cluster.connect('acme-dev');
  [home, other] = cluster.nodes.map((n) => n.name).sort((a) => (cluster.node(a).nodeId === driver.nodeId ? -1 : 1)) as [string, string];
  work = await driver.module<Work>(WORK);
});
afterAll(() => cluster?.stop());

interface Shown {
  readonly id: string;
  readonly name: string;
  readonly state: string;
  readonly reason: string;
  readonly facts: Readonly<Record<string, string>>;
}

async function actorsOn(raylet: string): Promise<Shown[]> {
  return (await (await cluster.as('acme-dev')).on(raylet, Inspection).list({ kind: 'actors', tenant: 'acme' })).entities as Shown[];
}

async function shown(id: string, raylet = home): Promise<Shown> {
  const found = (await actorsOn(raylet)).find((a) => a.id === id);
  if (found === undefined) throw new Error(`${id} is not listed`);
  return found;
}

/** kill -9 of the process that it runs in. */
async function killWorkerOf(actor: { readonly id: string }, raylet = home): Promise<void> {
  const worker = (await shown(actor.id, raylet)).facts['worker'] ?? '';
  expect(worker).not.toBe('');
  const victims = cluster.workerPids(raylet).filter((pid) => cluster.jailOf(pid).includes(worker));
  expect(victims.length).toBeGreaterThan(0);
  for (const pid of victims) process.kill(pid, 'SIGKILL');
}

/** Of a look-up; '' when it found one. */
async function codeOf(lookup: Promise<unknown>): Promise<string> {
  return await lookup.then(() => '', (error: unknown) => (error as { code?: string }).code ?? 'no code');
}

async function inLife(actor: Restartable, life: number): Promise<void> {
  await until(`life ${life}`, async () => {
    try {
      return (await driver.get(actor.life())).life === life;
    } catch (thrown) {
      if ((thrown as { code?: string }).code !== 'ACTOR_UNAVAILABLE') throw thrown;
      return false;
    }
  });
}

describe('an actor whose worker is killed', () => {
  it('is made again with the arguments it was made with, a large object among them, though its driver has let go of that', async () => {
    const large = await driver.put(new Uint8Array(300_000).fill(7));
    const actor = await work.Restartable.options({ maxRestarts: 2 }).create(large as never);
    expect(await driver.get(actor.life())).toEqual({ life: 0, seed: '300000:7' });
    driver.release(large);
    await killWorkerOf(actor);
    await inLife(actor, 1);
    expect(await driver.get(actor.life())).toEqual({ life: 1, seed: '300000:7' });
    expect((await shown(actor.id)).facts['restarts']).toBe('1');
    await driver.kill(actor);
  });

  it('fails calls under way with ACTOR_UNAVAILABLE, and at its last restart with ACTOR_DIED', async () => {
    const actor = await work.Restartable.options({ maxRestarts: 1 }).create('x');
    await driver.get(actor.life());
    const first = failure(driver.get(actor.never()));
    await until('it is called', async () => (await shown(actor.id)).facts['pending'] === '1');
    await killWorkerOf(actor);
    expect([(await first).code, (await first).message]).toEqual(['ACTOR_UNAVAILABLE', expect.stringContaining('WORKER_DIED')]);
    await inLife(actor, 1);
    const second = failure(driver.get(actor.never()));
    await until('it is called', async () => (await shown(actor.id)).facts['pending'] === '1');
    await killWorkerOf(actor);
    expect([(await second).code, (await second).message]).toEqual(['ACTOR_DIED', expect.stringContaining('WORKER_DIED')]);
    expect((await failure(driver.get(actor.life()))).code).toBe('ACTOR_DIED');
    expect((await shown(actor.id)).state).toBe('DEAD');
  });

  it('with maxTaskRetries: makes the calls again, in the order of their caller, and answers each', async () => {
    const actor = await work.Restartable.options({ maxRestarts: -1, maxTaskRetries: -1 }).create('x');
    await driver.get(actor.life());
    const hung = actor.untilNextLife(0);
    const behind = Array.from({ length: 200 }, (_, i) => actor.note(i + 1));
    await driver.get(behind.slice(0, 50));
    await killWorkerOf(actor);
    const during = Array.from({ length: 50 }, (_, i) => actor.note(i + 201));
    expect(await driver.get(hung)).toBe(1);
    await driver.get([...behind, ...during]);
    const calls = await driver.get(actor.calls());
    // What had been answered before is not made again; the rest follows in its order.
    expect(calls[0]).toBe(0);
    expect(calls).toEqual([...calls].sort((a, b) => Number(a) - Number(b)));
    expect(calls.at(-1)).toBe(250);
    await driver.kill(actor);
  });

  it('leaves records: created, restarting, restarted, died', async () => {
    const actor = await work.Restartable.options({ maxRestarts: 1, name: 'recorded' }).create('x');
    await driver.get(actor.life());
    await driver.kill(actor, { noRestart: false });
    await inLife(actor, 1);
    await driver.kill(actor);
    const events: string[] = [];
    const index = Number.parseInt(actor.id.slice(-8).replace(/^(..)(..)(..)(..)$/, '$4$3$2$1'), 16);
    for await (const { record: line } of (await cluster.as('acme-siem')).on(home, Audit).tail({ tenant: 'acme', last: 10_000 })) {
      const record = JSON.parse(line) as { event?: string; index?: number };
      if (record.event?.startsWith('actor.') === true && record.index === index) events.push(record.event);
    }
    expect(events).toEqual(['actor.created', 'actor.restarting', 'actor.restarted', 'actor.died']);
  });
});

describe('kill', () => {
  it('with noRestart: false takes only what it runs in, as often as it may restart', async () => {
    const actor = await work.Restartable.options({ maxRestarts: 1 }).create('x');
    await driver.get(actor.note(1));
    await driver.kill(actor, { noRestart: false });
    await inLife(actor, 1);
    expect(await driver.get(actor.calls())).toEqual([]);
    await driver.kill(actor, { noRestart: false });
    expect((await failure(driver.get(actor.life()))).code).toBe('ACTOR_DIED');
  });

  it('is final without it', async () => {
    const actor = await work.Restartable.options({ maxRestarts: -1 }).create('x');
    await driver.get(actor.life());
    await driver.kill(actor);
    expect((await failure(driver.get(actor.life()))).code).toBe('ACTOR_DIED');
  });
});

describe('exitActor', () => {
  it.each(['leave', 'leaveLater'] as const)('%s: ends the actor for good, its calls say so', async (method) => {
    const actor = await work.Restartable.options({ maxRestarts: -1, maxTaskRetries: -1 }).create('x');
    await driver.get(actor.life());
    const refs = [actor.never(), actor[method](), actor.never()];
    for (const ref of refs) expect([(await failure(driver.get(ref))).code, method]).toEqual(['ACTOR_DIED', method]);
    expect([(await shown(actor.id)).state, (await shown(actor.id)).reason]).toEqual(['DEAD', 'it ended itself (exitActor)']);
  });

  it('is refused in a task', async () => {
    expect((await failure(driver.get(work.exitTask()))).code).toBe('INVALID_ARGUMENT');
  });
});

describe('maxConcurrency', () => {
  it.each([1, 3])('%i: so many async calls are under way at once, and all end', async (n) => {
    const actor = await work.Restartable.options({ maxConcurrency: n }).create('x');
    const seen = await driver.get(Array.from({ length: 12 }, () => actor.overlapping(5)));
    expect(Math.max(...seen)).toBe(n);
    await driver.kill(actor);
  });

  it('a call that waits for its turn has its limits from then on; a cancelled one gives its place away', async () => {
    const actor = await work.Restartable.options({ maxConcurrency: 1 }).create('x');
    expect(await driver.get(Array.from({ length: 8 }, () => actor.overlapping.options({ timeoutMs: 2_000 })(400)))).toEqual(Array.from({ length: 8 }, () => 1));
    const hung = actor.never();
    const next = actor.note(5);
    await driver.cancel(hung);
    expect((await failure(driver.get(hung))).code).toBe('CANCELLED');
    expect(await driver.get(next)).toBe(1);
    await driver.kill(actor);
  });
});

it('maxPendingCalls: one more is refused at once', async () => {
  const actor = await work.Restartable.options({ maxPendingCalls: 3 }).create('x');
  await driver.get(actor.life());
  const held = [actor.never(), actor.never(), actor.never()];
  const over = await failure(driver.get(actor.life()));
  expect([over.code, over.message]).toEqual(['RESOURCE_EXHAUSTED', expect.stringContaining('its limit is 3')]);
  await driver.cancel(held[0] as never);
  await failure(driver.get(held[0] as never));
  expect((await driver.get(actor.life())).life).toBe(0);
  await driver.kill(actor);
});

describe('namespaces', () => {
  it('keep equal names apart; getIfExists finds within one', async () => {
    const [a, b] = await Promise.all(['one', 'two'].map((namespace, i) => work.Counter.options({ name: 'same', namespace }).create(i * 100)));
    expect(await driver.get([a!.add(1), b!.add(1)])).toEqual([1, 101]);
    const again = await work.Counter.options({ name: 'same', namespace: 'two', getIfExists: true }).create(5);
    expect(again.id).toBe(b!.id);
    const found = await driver.actor<import('../support/work.ts').Counter>('one/same');
    expect(await driver.get(found.add(1))).toBe(2);
    expect(await codeOf(driver.actor('same'))).toBe('DENIED');
    await Promise.all([driver.kill(a!), driver.kill(b!)]);
  });

  it('twenty that ask for the same name at once with getIfExists share one actor', async () => {
    const handles = await Promise.all(Array.from({ length: 20 }, () => work.Counter.options({ name: 'shared', getIfExists: true }).create(0)));
    expect(new Set(handles.map((h) => h.id)).size).toBe(1);
    await driver.get(handles.map((h) => h.add(1)));
    expect(await driver.get(handles[0]!.add(0))).toBe(20);
    await driver.kill(handles[0]!);
  });
});

describe('out of scope', () => {
  // Not as an option of the process: isolates of other tests would have the global too, and cannot remove it.
  setFlagsFromString('--expose-gc');
  const collectGarbage = runInNewContext('gc') as () => void;

  it('an actor ends when the last handle is collected, and keeps its calls until then', async () => {
    const before = (await actorsOn(home)).filter((a) => a.state !== 'DEAD').map((a) => a.id);
    const ref = await (async () => (await work.Counter.create(41)).add(1))();
    expect(await driver.get(ref)).toBe(42);
    await until('it is gone', async () => {
      collectGarbage();
      // Something to hear of it by: a release leaves with the next batch.
      await driver.get(work.add(1, 1));
      return (await actorsOn(home)).every((a) => a.state === 'DEAD' || before.includes(a.id));
    });
  });

  it('one made in a task lives as long as the handle it gave away', async () => {
    let { counter } = await driver.get(work.makeCounter(10));
    expect(await driver.get(counter.add(1))).toBe(11);
    const { id } = counter;
    expect((await shown(id)).state).toBe('ALIVE');
    counter = undefined as never;
    await until('it is gone', async () => {
      collectGarbage();
      await driver.get(work.add(1, 1));
      return (await shown(id)).state === 'DEAD';
    });
  });

  it('one that a task left behind ends with the task, and its name is free', async () => {
    expect(await driver.get(work.dropCounter('left-behind'))).toBe(2);
    await until('its name is free', async () => (await codeOf(driver.actor('left-behind'))) === 'DENIED');
  });

  it('detached ones stay', async () => {
    const { id } = await work.Counter.options({ name: 'stays', detached: true }).create(1);
    for (let i = 0; i < 5; i++) {
      collectGarbage();
      await driver.get(work.add(1, 1));
    }
    const found = await driver.actor<import('../support/work.ts').Counter>('stays');
    expect([found.id, await driver.get(found.add(1))]).toEqual([id, 2]);
    await driver.kill(found);
  });
});

describe('an actor on another node', () => {
  it('restarts when its worker dies there and when its node is lost, and its callers go on', async () => {
    const homes: (Restartable & { readonly id: string })[] = [];
    // As many as fill this node: the next is made on the other.
    let away: Restartable | undefined;
    for (let i = 0; i < 6 && away === undefined; i++) {
      const actor = await work.Restartable.options({ cpus: 1, maxRestarts: -1, maxTaskRetries: -1 }).create('away');
      await driver.get(actor.life());
      if ((await shown(actor.id)).facts['node'] === driver.nodeId) homes.push(actor);
      else away = actor;
    }
    if (away === undefined) throw new Error('none was made on the other node');
    const actor = away;
    const there = (await actorsOn(other)).filter((a) => a.state === 'ALIVE');
    expect(there.length).toBe(1);
    await killWorkerOf(there[0]!, other);
    await inLife(actor, 1);
    // Room at home, then its node goes.
    await driver.kill(homes[0]!);
    const hung = actor.note(7);
    await cluster.kill(other);
    await driver.get(hung);
    await inLife(actor, 2);
    expect((await shown(actor.id)).facts['node']).toBe(driver.nodeId);
    await Promise.all([actor, ...homes].map((a) => driver.kill(a)));
  });
});

describe('a detached actor whose owner’s node is lost', () => {
  async function attachedTo(profile: string, node: string): Promise<Cluster> {
    for (let i = 0; i < 20; i++) {
      const attached = await cluster.connect(profile);
      if (attached.nodeId === cluster.node(node).nodeId) return attached;
      await attached.close();
    }
    throw new Error(`no connection to ${node} came about`);
  }

  async function lookedUp(by: Cluster, name: string): Promise<Restartable> {
    return await by.actor<import('../support/work.ts').Restartable>(name);
  }

  it('is made again for the principal that made it, when that asks for its name, and for no other', async () => {
    await cluster.restart(other);
    await cluster.settled();
    const [owner, mine, theirs] = await Promise.all([attachedTo('acme-dev', other), attachedTo('acme-dev', home), attachedTo('acme-ana', home)]);
    const module = await owner.module<Work>(WORK);
    const made = await module.Restartable.options({ name: 'phoenix', detached: true, maxRestarts: 1 }).create('ash');
    await owner.get(made.note(1));
    expect((await shown(made.id, other)).facts['kept']).toBe('true');
    const ref = await module.Restartable.options({ name: 'of-a-ref', detached: true, maxRestarts: 1 }).create((await owner.put('x')) as never);
    await owner.get(ref.note(1));
    expect((await shown(ref.id, other)).facts['kept']).toBe(undefined);
    await owner.close();
    await cluster.kill(other);
    await until('the head has noticed', async () => (await codeOf(theirs.actor('phoenix'))) === 'ACTOR_UNAVAILABLE');
    const twice = await Promise.all([lookedUp(mine, 'phoenix'), lookedUp(mine, 'phoenix')]);
    expect(twice[0].id).toBe(twice[1].id);
    expect(twice[0].id).not.toBe(made.id);
    expect(await mine.get(twice[0].life())).toEqual({ life: 1, seed: 'ash' });
    expect(await mine.get(twice[0].calls())).toEqual([]);
    // Now it is there, for everyone of the tenant that may.
    expect((await theirs.get((await lookedUp(theirs, 'phoenix')).life())).life).toBe(1);
    expect(await codeOf(mine.actor('of-a-ref'))).toBe('DENIED');
    await mine.kill(twice[0]);
    await until('its name is free', async () => (await codeOf(mine.actor('phoenix'))) === 'DENIED');
    await Promise.all([mine.close(), theirs.close()]);
  });

  it('that was only silent: one of the two lives on, the one that has the name', async () => {
    await cluster.restart(other);
    await cluster.settled();
    const [owner, mine] = await Promise.all([attachedTo('acme-dev', other), attachedTo('acme-dev', home)]);
    const module = await owner.module<Work>(WORK);
    const made = await module.Restartable.options({ name: 'asleep', detached: true, maxRestarts: -1 }).create('x');
    await owner.get(made.note(1));
    const { pid } = cluster.node(other);
    process.kill(pid, 'SIGSTOP');
    try {
      await until('it is made again', async () => {
        const found = await lookedUp(mine, 'asleep').catch(() => undefined);
        return found !== undefined && found.id !== made.id && (await mine.get(found.life())).life === 1;
      });
    } finally {
      process.kill(pid, 'SIGCONT');
    }
    await until('the older one has ended', async () => (await shown(made.id, other)).state === 'DEAD');
    expect((await shown(made.id, other)).reason).toContain('its name went to another actor');
    const found = await lookedUp(mine, 'asleep');
    expect((await mine.get(found.life())).life).toBe(1);
    await mine.kill(found);
    await Promise.all([owner.close().catch(() => undefined), mine.close()]);
  });

  it('is not made again after its job was stopped', async () => {
    const [owner, mine, theirs] = await Promise.all([attachedTo('acme-dev', other), attachedTo('acme-dev', home), attachedTo('acme-ana', home)]);
    const module = await owner.module<Work>(WORK);
    await owner.get((await module.Restartable.options({ name: 'stopped', detached: true, maxRestarts: 1 }).create('x')).note(1));
    const { jobId } = owner;
    await cluster.kill(other);
    await until('the head has noticed', async () => (await codeOf(theirs.actor('stopped'))) === 'ACTOR_UNAVAILABLE');
    await (await cluster.as('acme-dev')).to(Jobs).stop({ jobId });
    expect(await codeOf(mine.actor('stopped'))).toBe('DENIED');
    await mine.close();
  });
});

it('nothing broke inside', () => {
  expect(cluster.faults()).toEqual([]);
});
