/** Where work runs, on a real cluster of three raylets with labels: what the operator set is what tenants ask for. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Cluster as ClusterService, Identities } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { Inspection } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import type { Cluster, RemoteModule } from '../../src/sdk/sdk.ts';
import { TestCluster, until } from '../support/cluster.ts';

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
