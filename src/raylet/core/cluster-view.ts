/**
 * What a program may ask about the cluster and its placement groups. Of nodes it is told what they have and what its own tenant uses here.
 * Must never: tell how busy others keep a node.
 */
import { hex } from '../../base/ids.ts';
import { resource } from '../../base/decision.ts';
import type { FrameReader } from '../../base/frame.ts';
import type { Core } from './core.ts';
import { done, failRequest } from './deciding.ts';
import { decideUse } from './group-rights.ts';
import { DENIED } from './objects.ts';
import { amounts } from './placement-groups.ts';
import { placesOf } from './placement.ts';
import type { Channel } from './state.ts';

/** LIST_NODES: this node first. */
export function onListNodes(core: Core, channel: Channel, r: FrameReader): void {
  r.u32();
  const request = r.u32();
  r.finish();
  const seq = core.decide(channel, 'node.list', resource('node', { tenant: '' }), '', -1, 1, '');
  if (seq < 0) return failRequest(core, channel, request, DENIED, ~seq);
  const { quota, cpuUnitsInUse, memoryBytesInUse } = channel.job.tenant;
  const limit = (value: number, unit: number): number | null => (Number.isFinite(value) && value < Number.MAX_SAFE_INTEGER ? value / unit : null);
  done(core, channel, request, JSON.stringify({
    nodes: placesOf(core).map(({ nodeId, labels, total }) => ({ nodeId, labels, ...amounts(total) })),
    // Null: no limit. What is in use is this tenant's, on this node.
    quota: { cpus: limit(quota.cpuUnits, 10_000), memoryBytes: limit(quota.memoryBytes, 1) }, inUse: { cpus: cpuUnitsInUse / 10_000, memoryBytes: memoryBytesInUse },
  }), seq);
}

/** DESCRIBE_GROUP: of one that this raylet coordinates. */
export function onDescribeGroup(core: Core, channel: Channel, r: FrameReader): void {
  r.u32();
  const request = r.u32();
  const id = r.id();
  r.finish();
  const { seq } = decideUse(core, channel, hex(id));
  const group = core.groups.get(core.groupNow(hex(id)));
  if (seq < 0 || group === undefined) return failRequest(core, channel, request, DENIED, seq < 0 ? ~seq : seq);
  const nodes = new Map(placesOf(core).map(({ number, nodeId }) => [number, nodeId]));
  done(core, channel, request, JSON.stringify({
    name: group.name, strategy: group.strategy, state: group.state, bundles: group.bundles.map(({ resources, node }) => ({ ...amounts(resources), nodeId: nodes.get(node) ?? '' })),
  }), seq);
}
