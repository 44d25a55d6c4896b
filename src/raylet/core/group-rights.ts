/** What policies see of placement groups, and who may use one. Must never: tell a group of another tenant's from one that nobody has. */
import { hex } from '../../base/ids.ts';
import { resource, type Resource } from '../../base/decision.ts';
import { NO_RESOURCES, add, type ResourceVector } from '../../base/resources.ts';
import { idWord, type Core } from './core.ts';
import { decideOn } from './deciding.ts';
import { idFromHex } from './group-views.ts';
import { CHANNEL_KIND, type Channel } from './state.ts';

export function groupResource(tenant: string, owner: string, name: string, bundles: readonly { readonly resources: ResourceVector }[], detached: boolean): Resource {
  const sum = bundles.reduce((total, { resources }) => add(total, resources), NO_RESOURCES);
  return resource('placement-group', { tenant, owner, name, cpus: sum.cpuUnits / 10_000, memory: sum.memoryBytes, detached });
}

/** What a policy sees of a group that is named by its id; of one that is known nowhere here, no more than whose it would be. */
export function resourceOf(core: Core, channel: Channel, id: Uint8Array): Resource {
  const text = hex(id);
  const group = core.groups.get(text);
  if (group !== undefined) return group.resource;
  const [hold] = core.holds.get(text)?.values() ?? [];
  if (hold !== undefined) return groupResource(hold.of.tenant.name, hold.of.owner, hold.of.name, [], hold.of.detached);
  return resource('placement-group', { tenant: idWord(id, 0) === channel.job.tenant.number ? channel.job.tenant.name : (core.tenants.get(idWord(id, 0))?.name ?? '') });
}

/** Of the caller's own tenant, and not known to be none: `seq` as of `decide`. */
export function decideUse(core: Core, channel: Channel, group: string): { readonly seq: number; readonly target: Resource } {
  const id = idFromHex(core.groupNow(group));
  const target = resourceOf(core, channel, id);
  const seq = decideOn(core, channel, 'placement-group.use', target, group.slice(0, 40), idWord(id, 20), 1, '', id);
  const foreign = idWord(id, 0) !== channel.job.tenant.number;
  const unknown = idWord(id, 4) === core.config.nodeNumber && channel.kind !== CHANNEL_KIND.PEER && core.groups.get(core.groupNow(group))?.job.tenant !== channel.job.tenant;
  return { seq: seq >= 0 && (foreign || unknown) ? ~seq : seq, target };
}
