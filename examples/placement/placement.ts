/** Placement groups, labels and affinity. Run on a cluster of three raylets: npx bulkhead run examples/placement/placement.ts */
import { connect } from 'bulkhead';

await using cluster = await connect();
const work = await cluster.module<typeof import('./workers.ts')>(new URL('./workers.ts', import.meta.url));

// Three bundles, each on a node of its own: all of them are reserved, or none.
await using group = cluster.placementGroup([{ cpus: 1 }, { cpus: 1 }, { cpus: 1 }], { strategy: 'STRICT_SPREAD' });
await cluster.get(group.ready());

const shards = await Promise.all([0, 1, 2].map((bundleIndex) => work.Shard.options({ placementGroup: group, bundleIndex, cpus: 0.5 }).create()));
await cluster.get(shards.map((shard, i) => shard.add(i)));
const nodes = await cluster.get(shards.map((shard) => shard.where()));
console.log(`three shards on ${new Set(nodes).size} nodes`);

// The other half of each bundle runs tasks, whichever has room.
const square = work.square.options({ placementGroup: group, cpus: 0.5 });
console.log(`squares: ${(await cluster.get([1, 2, 3].map((x) => square(x)))).join(', ')}`);

// More than the cluster has waits, and holds nothing meanwhile.
const large = cluster.placementGroup([{ cpus: 1_000 }]);
console.log(`a group of 1000 cpus is ready: ${await large.wait(200)}`);
await large.remove();

// By node, and by label where one has it.
const here = work.square.options({ nodeAffinity: { node: cluster.nodeId, soft: true } });
const ssd = work.square.options({ labels: { disk: 'ssd' }, fallback: [{}] });
console.log(`and ${(await cluster.get([here(4), ssd(5)])).join(', ')}`);
