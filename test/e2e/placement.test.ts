/** Where work runs, on a real cluster of three raylets with labels: what the operator set is what tenants ask for. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { Cluster as ClusterService, Identities } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { Inspection } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import type { Cluster, RemoteModule } from '../../src/sdk/sdk.ts';
import { read } from '../source-tree.ts';
import { failure, NODE, TestCluster, until } from '../support/cluster.ts';

type Work = typeof import('../support/place-work.ts');

let cluster: TestCluster;
let driver: Cluster;
let work: RemoteModule<Work>;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 3, cpus: 2, labels: { rack: 'r1' }, labelsOf: { 'raylet-1': { zone: 'us' }, 'raylet-2': { zone: 'eu' }, 'raylet-3': { zone: 'eu', disk: 'ssd' } } });
  driver = await cluster.connect('acme-dev');
  work = await driver.module<Work>(new URL('../support/place-work.ts', import.meta.url));
});
afterAll(() => cluster?.stop());

const id = (raylet: string): string => cluster.node(raylet).nodeId;

async function reasons(name: string): Promise<string[]> {
  const { entities } = await (await cluster.as('acme-dev')).on(cluster.nodeById(driver.nodeId).name, Inspection).list({ kind: 'tasks', tenant: 'acme', jobId: driver.jobId });
  return entities.filter((e) => e.name === name && e.state === 'PENDING_NODE_ASSIGNMENT').map((e) => e.reason);
}

describe('labels', () => {
  it('are what the operator set, and everybody sees them', async () => {
    const { nodes } = await (await cluster.as('acme-dev')).to(ClusterService).listNodes({});
    expect(Object.fromEntries(nodes.map((n) => [n.nodeId, n.labels]))).toEqual({ [id('raylet-1')]: { rack: 'r1', zone: 'us' }, [id('raylet-2')]: { rack: 'r1', zone: 'eu' }, [id('raylet-3')]: { rack: 'r1', zone: 'eu', disk: 'ssd' } });
  });

  it('say where tasks and actors run', async () => {
    const eu = work.where.options({ labels: { zone: 'eu' }, cpus: 0.5 });
    for (const node of await driver.get(Array.from({ length: 8 }, () => eu()))) expect([id('raylet-2'), id('raylet-3')]).toContain(node);
    expect(await driver.get(work.where.options({ labels: { disk: { exists: true } } })())).toBe(id('raylet-3'));
    expect(await driver.get(work.where.options({ labels: { zone: { notIn: ['eu'] } } })())).toBe(id('raylet-1'));
    const actor = await work.Place.options({ labels: { zone: 'eu', disk: { notIn: ['ssd'] } } }).create();
    expect(await driver.get(actor.where())).toBe(id('raylet-2'));
    expect(await driver.get(work.where.options({ labels: { zone: 'ap' }, fallback: [{ labels: { zone: 'sa' } }, { labels: { zone: 'us' } }] })())).toBe(id('raylet-1'));
  });

  it('that no node has are told as the reason', async () => {
    const ref = work.where.options({ name: 'nowhere', labels: { zone: 'mars' } })();
    await until('it waits, and says for what', async () => (await reasons('nowhere'))[0] === 'no node has label zone=mars');
    await driver.cancel(ref);
  });
});

it('a task runs on the node that it names, or on another when it only prefers that one', async () => {
  for (const raylet of ['raylet-1', 'raylet-2', 'raylet-3']) expect(await driver.get(work.where.options({ nodeAffinity: id(raylet) })())).toBe(id(raylet));
  const ref = work.where.options({ name: 'gone', nodeAffinity: 'node-gone' })();
  await until('it waits for its node', async () => (await reasons('gone'))[0] === "node 'node-gone' is not alive");
  await driver.cancel(ref);
  expect(await driver.get(work.where.options({ nodeAffinity: { node: 'node-gone', soft: true } })())).toMatch(/^node-/);
});

it('spread tasks run on every node', async () => {
  const spread = work.nap.options({ scheduling: 'spread' });
  expect(new Set(await driver.get(Array.from({ length: 6 }, () => spread(100)))).size).toBe(3);
});

it('labels of a join token are checked where it is made', async () => {
  const identities = (await cluster.as('admin')).to(Identities);
  await expect(identities.createJoinToken({ nodeId: '', labels: { 'a b': 'c' } })).rejects.toThrow(/label .* is not valid/);
  expect((await identities.createJoinToken({ nodeId: '', labels: { zone: 'eu' } })).token.length).toBeGreaterThan(20);
});

async function groups(raylet: string, tenant = 'acme', profile = 'acme-dev'): Promise<{ id: string; name: string; state: string; reason: string; facts: Record<string, string> }[]> {
  const { entities } = await (await cluster.as(profile)).on(raylet, Inspection).list({ kind: 'placement-groups', tenant });
  return entities;
}

const home = (): string => cluster.nodeById(driver.nodeId).name;

describe('placement groups', () => {
  it('reserve on the nodes that the strategy says, run what asks for them, and give everything back', async () => {
    await using group = driver.placementGroup([{ cpus: 1 }, { cpus: 1 }, { cpus: 1, memory: '64MiB' }], { strategy: 'STRICT_SPREAD' });
    await driver.get(group.ready());
    const [shown] = (await groups(home())).filter((g) => g.id === group.id);
    expect([shown?.state, shown?.facts['strategy'], shown?.facts['nodes']?.split(' ').sort()]).toEqual(['CREATED', 'STRICT_SPREAD', ['raylet-1', 'raylet-2', 'raylet-3'].map(id).sort()]);
    const where = shown?.facts['nodes']?.split(' ') ?? [];
    for (const bundleIndex of [0, 1, 2]) expect(await driver.get(work.where.options({ placementGroup: group, bundleIndex })())).toBe(where[bundleIndex]);
    const actor = await work.Place.options({ placementGroup: group, bundleIndex: 1, cpus: 1 }).create();
    expect(await driver.get(actor.where())).toBe(where[1]);
    // The actor has all of its bundle: a task that wants it waits.
    const waits = work.where.options({ placementGroup: group, bundleIndex: 1 })();
    expect((await driver.wait([waits], { timeoutMs: 300 })).ready).toEqual([]);
    await driver.kill(actor);
    expect(await driver.get(waits)).toBe(where[1]);
  });

  it('of which one bundle finds no room reserve none, and say why', async () => {
    const group = driver.placementGroup([{ cpus: 2 }, { cpus: 2 }, { cpus: 2 }, { cpus: 2 }], { strategy: 'STRICT_SPREAD' });
    expect(await group.wait(300)).toBe(false);
    expect((await groups(home())).find((g) => g.id === group.id)).toMatchObject({ state: 'PENDING', reason: 'infeasible: STRICT_SPREAD of 4 bundles finds no room on 3 nodes, also when they are empty' });
    await group.remove();
    expect((await failure(driver.get(group.ready()))).code).toBe('CANCELLED');
    expect(await driver.get(Array.from({ length: 3 }, () => work.where.options({ cpus: 2 })()))).toHaveLength(3);
  });

  it('refuse what can never be in them, and end what runs in them when they are removed', async () => {
    const group = driver.placementGroup([{ cpus: 1 }], { strategy: 'STRICT_PACK' });
    expect((await failure(driver.get(work.where.options({ placementGroup: group, bundleIndex: 1 })()))).message).toBe('bundleIndex 1 is out of range: the placement group has 1 bundles');
    expect((await failure(driver.get(work.where.options({ placementGroup: group, cpus: 1.5 })()))).code).toBe('INVALID_ARGUMENT');
    const running = work.nap.options({ placementGroup: group })(60_000);
    const second = work.nap.options({ placementGroup: group.id })(60_000);
    expect((await driver.wait([running, second], { timeoutMs: 500 })).ready).toEqual([]);
    await group.remove();
    for (const ref of [running, second]) expect((await failure(driver.get(ref))).code).toBe('CANCELLED');
    expect((await failure(driver.get(work.where.options({ placementGroup: group })()))).code).toMatch(/CANCELLED|DENIED/);
  });

  it('that are detached outlive their job, are found by name from another node, and removed there', async () => {
    const first = await cluster.connect('acme-dev');
    const made = first.placementGroup([{ cpus: 0.5 }, { cpus: 0.5 }], { strategy: 'STRICT_SPREAD', name: 'kept', lifetime: 'detached' });
    await first.get(made.ready());
    const bound = first.placementGroup([{ cpus: 0.5 }]);
    await first.get(bound.ready());
    const owner = cluster.nodeById(first.nodeId).name;
    await first.close();
    await until('the one that is not detached goes with its job', async () => (await groups(owner)).every((g) => g.id !== bound.id));
    const found = await driver.getPlacementGroup('kept');
    expect([found.id, found.strategy, found.bundles]).toEqual([made.id, 'STRICT_SPREAD', [{ cpus: 0.5, memory: 0 }, { cpus: 0.5, memory: 0 }]]);
    await driver.get(found.ready());
    const nodes = await driver.get([0, 1].map((bundleIndex) => work.where.options({ placementGroup: found, bundleIndex, cpus: 0.5 })()));
    expect(new Set(nodes).size).toBe(2);
    // The name is taken while it lives, and is another tenant's own.
    expect((await failure(driver.get(driver.placementGroup([{ cpus: 0.1 }], { name: 'kept' }).ready()))).message).toContain("a placement group named 'kept' exists already");
    const stranger = await cluster.connect('globex-dev');
    expect((await failure(stranger.getPlacementGroup('kept'))).code).toBe('DENIED');
    expect((await failure(stranger.get(stranger.task(() => 1, { placementGroup: made.id })()))).code).toBe('DENIED');
    expect(await groups(owner, 'globex', 'globex-dev')).toEqual([]);
    await stranger.close();
    await found.remove();
    await until('it is gone', async () => (await groups(owner)).every((g) => g.id !== made.id));
    expect((await failure(driver.getPlacementGroup('kept'))).code).toBe('DENIED');
  });

  it('are made from within tasks, and are each tenant’s own to make', async () => {
    expect(await driver.get(work.inGroup())).toBe('in a group');
    const viewer = await cluster.connect('acme-vic').catch(() => undefined);
    expect(viewer).toBeUndefined();
  });
});

describe('a detached placement group whose coordinator is lost', () => {
  const THREE = [{ cpus: 0.5 }, { cpus: 0.5 }, { cpus: 0.5 }];

  /** A driver of the same principal on another node than ours. */
  async function away(): Promise<{ owner: Cluster; victim: string }> {
    for (let i = 0; i < 30; i++) {
      const owner = await cluster.connect('acme-dev');
      if (owner.nodeId !== driver.nodeId) return { owner, victim: cluster.nodeById(owner.nodeId).name };
      await owner.close();
    }
    throw new Error('no connection to another node came about');
  }

  it('is taken over by name for the principal that made it and no other; what runs in its bundles elsewhere goes on', async () => {
    const { owner, victim } = await away();
    const made = owner.placementGroup(THREE, { strategy: 'STRICT_SPREAD', name: 'lasting', lifetime: 'detached' });
    await owner.get(made.ready());
    const [shown] = (await groups(victim)).filter((g) => g.id === made.id);
    const places = shown?.facts['nodes']?.split(' ') ?? [];
    const elsewhere = places.findIndex((node) => node !== owner.nodeId);
    const inIt = await work.Place.options({ placementGroup: made.id, bundleIndex: elsewhere, cpus: 0.2 }).create();
    expect(await driver.get(inIt.where())).toBe(places[elsewhere]);
    await owner.close();
    const colleague = await cluster.connect('acme-ana').then(async (c) => (c.nodeId === id(victim) ? (await c.close(), undefined) : c));
    await cluster.kill(victim);
    if (colleague !== undefined) {
      await until('the head has noticed', () => colleague.getPlacementGroup('lasting').then(() => false, (thrown: { code?: string }) => thrown.code === 'UNAVAILABLE'));
      await colleague.close();
    }
    let found = await driver.getPlacementGroup('lasting');
    await until('it is taken over', async () => (found = await driver.getPlacementGroup('lasting')).id !== made.id);
    expect(await driver.get(inIt.where()), 'the actor in it has not noticed').toBe(places[elsewhere]);
    // Its bundle on the lost node has no other place.
    await until('the rest is looked for', async () => (await groups(home())).some((g) => g.id === found.id && /^infeasible: STRICT_SPREAD of 3 bundles/.test(g.reason)));
    await cluster.restart(victim);
    await cluster.settled();
    await driver.get(found.ready());
    const now = (await groups(home())).find((g) => g.id === found.id)?.facts['nodes']?.split(' ') ?? [];
    expect([now[elsewhere], [...now].sort()]).toEqual([places[elsewhere], [...places].sort()]);
    // Under its new id, and under the one before.
    for (const placementGroup of [found.id, made.id]) expect(await driver.get(work.where.options({ placementGroup, bundleIndex: elsewhere, cpus: 0.2 })())).toBe(places[elsewhere]);
    await found.remove();
    expect((await failure(driver.get(inIt.where()))).code).toBe('ACTOR_DIED');
    expect(await driver.get(Array.from({ length: 3 }, () => work.where.options({ cpus: 2 })()))).toHaveLength(3);
  }, 120_000);

  it('that was only silent: the one that has the name stays, and no bundle is held twice', async () => {
    const { owner, victim } = await away();
    const made = owner.placementGroup(THREE.slice(1), { strategy: 'STRICT_SPREAD', name: 'asleep', lifetime: 'detached' });
    await owner.get(made.ready());
    const { pid } = cluster.node(victim);
    process.kill(pid, 'SIGSTOP');
    let found = made;
    try {
      await until('it is taken over', async () => (found = await driver.getPlacementGroup('asleep').catch(() => made)).id !== made.id);
      await driver.get(found.ready());
    } finally {
      process.kill(pid, 'SIGCONT');
    }
    await cluster.settled();
    await until('the older one has ended', async () => (await groups(victim)).every((g) => g.id !== made.id));
    expect((await driver.getPlacementGroup('asleep')).id).toBe(found.id);
    await owner.close().catch(() => undefined);
    await found.remove();
    expect(await driver.get(Array.from({ length: 3 }, () => work.where.options({ cpus: 2 })()))).toHaveLength(3);
  });
});

describe('docs/placement.md', () => {
  const page = read('docs/placement.md');

  it('quotes the example files as they are', () => {
    const quoted = [...page.matchAll(/<!-- (examples\/\S+) -->\n```ts\n([\s\S]*?)```/g)];
    expect(quoted.map(([, file]) => file)).toEqual(['examples/placement/workers.ts', 'examples/placement/placement.ts']);
    for (const [, file, text] of quoted) expect(text, file).toBe(read(file ?? ''));
  });

  it('shows what the example prints', async () => {
    const expected = /```text\n(three shards [\s\S]*?)```/.exec(page)?.[1];
    const example = fileURLToPath(new URL('../../examples/placement/placement.ts', import.meta.url));
    const { stdout } = await promisify(execFile)(NODE, [example], { env: { PATH: process.env['PATH'] ?? '', BULKHEAD_PROFILE: cluster.profile('acme-dev') }, timeout: 60_000 });
    expect(stdout).toBe(expected);
  });
});
