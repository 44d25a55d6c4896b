/**
 * Silent cuts between the processes of a cluster that each have a network stack of their own, under the load of two tenants: calls are answered or
 * told why not, nothing acknowledged is lost, and when the cut heals all is as before without a hand.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import { Cluster as ClusterService } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { TestCluster, until } from '../support/cluster.ts';
import { TestNetwork } from '../support/network.ts';
import { errorsOf, underLoad } from '../support/tenant-load.ts';

const TEST_TIMEOUT_MS = 300_000;
vi.setConfig({ testTimeout: TEST_TIMEOUT_MS, hookTimeout: TEST_TIMEOUT_MS });
const SEED = Number(process.env['FAULTS_SEED'] ?? 77);
const CALLS = ['task', 'put', 'get', 'actor'];

let network: TestNetwork;
let cluster: TestCluster;
beforeAll(async () => {
  network = await TestNetwork.create(['head', 'raylet-1', 'raylet-2']);
  cluster = await TestCluster.start({
    raylets: 2, cpus: 2, launch: (name) => ({ through: network.through(name) }),
    configure: (name, config) => ({ ...config, listen: `${network.address(name)}:0`, ...(name === 'head' ? { attestationListen: `${network.address(name)}:0` } : {}) }),
  });
});
afterAll(async () => {
  network?.heal();
  await cluster?.stop();
  await network?.[Symbol.asyncDispose]();
});

async function states(): Promise<Record<string, string>> {
  const { nodes } = await (await cluster.as('admin')).to(ClusterService).listNodes({});
  return Object.fromEntries(nodes.map((n) => [cluster.nodeById(n.nodeId).name, n.state]));
}

it.each([
  ['both ways', ['head raylet-2', 'raylet-2 head']],
  ['from the head to the raylet', ['head raylet-2']],
] as const)('between the head and a raylet, %s: open sessions go on, and the node comes back', async (_what, ways) => {
  const { both } = await underLoad(cluster, SEED + ways.length, async ({ both }) => {
    for (const way of ways) network.cutOneWay(...(way.split(' ') as [string, string]));
    if (ways.some((way) => way.startsWith('raylet-2'))) await until('the head counts it dead', async () => (await states())['raylet-2'] === 'dead', 60_000);
    else await sleep(7_000);
    await Promise.all(both.map((load) => load.served(2)));
    network.heal();
    await until('both are alive', async () => Object.values(await states()).every((state) => state === 'alive'), 90_000);
  });
  for (const load of both) expect([load.codesOf('put'), load.codesOf('get')], errorsOf(load)).toEqual([[], []]);
});

it('from one raylet to another, one way: tasks run where they can, and nobody waits for ever', async () => {
  const { both } = await underLoad(cluster, SEED + 10, async ({ both }) => {
    network.cutOneWay('raylet-1', 'raylet-2');
    await Promise.all(both.map((load) => load.served(4)));
    await sleep(6_000);
    await Promise.all(both.map((load) => load.served(2)));
    expect(Object.values(await states())).toEqual(['alive', 'alive']);
    network.heal();
  });
  for (const load of both) expect(CALLS.flatMap((what) => load.codesOf(what)).filter((code) => !['ACTOR_UNAVAILABLE', 'ACTOR_DIED', 'UNAVAILABLE'].includes(code)), errorsOf(load)).toEqual([]);
});

it('between clients and a raylet: a client is told, and works elsewhere', async () => {
  await underLoad(cluster, SEED + 20, async ({ both }) => {
    network.cut('clients', 'raylet-1');
    await sleep(8_000);
    network.heal();
    await Promise.all(both.map((load) => load.served(2)));
  });
});
