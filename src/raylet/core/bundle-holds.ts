/**
 * Bundles that are reserved on this node, for groups of this raylet's and of others'. What a bundle holds is taken from the node and counts in
 * its tenant's quota once; tasks and actors in it take from the bundle. States of a reservation:
 *   1. (none) → PREPARED   there is room, and it is asked for
 *   2. PREPARED → FIRM     the coordinator has all bundles of its round
 *   3. PREPARED → (none)   it is given back, its coordinator is gone, or nothing was heard for twice BUNDLE_PREPARE_MS
 *   4. FIRM → (none)       it is given back; its coordinator's channel closed (a detached group's stays until its node is gone, and then for an heir)
 *      and, with nothing in it, ORPHANED_BUNDLE_MS
 *   5. FIRM → FIRM         another raylet takes the place of the coordinator (group-heirs.ts)
 * Must never: give back more or less than was taken, whatever still runs when a bundle goes.
 */
import type { JobId } from '../../base/ids.ts';
import { BUNDLE_PREPARE_MS, ORPHANED_BUNDLE_MS } from '../../base/limits.ts';
import { describeResources, fits } from '../../base/resources.ts';
import { actorDied } from './actors.ts';
import { BundleHold, giveTo, takeFrom, type BundleFields } from './bundle.ts';
import type { Core } from './core.ts';
import { wantBundle } from './quota-shares.ts';
import { mayHold } from './quota-tree.ts';
import { dropLease } from './scheduler.ts';
import type { Channel, Failure, TenantState } from './state.ts';

/** Reserves one bundle, or says why not. */
export function prepare(core: Core, of: BundleFields): Failure | undefined {
  const { tenant, group, index, resources } = of;
  const holds = core.holds.get(group);
  const before = holds?.get(index);
  if (before !== undefined) {
    // What a coordinator lost sight of it asks for anew.
    if (before.of.tenant !== tenant || (before.of.channel !== of.channel && before.of.channel?.closed !== true)) return { code: 'INVALID_ARGUMENT', message: `bundle ${index} of the group is reserved here already`, stack: '' };
    release(core, before, { code: 'CANCELLED', message: 'its bundle was placed anew', stack: '' });
  }
  if (!mayHold(of.job, resources)) {
    wantBundle(core, of.job, resources);
    return { code: 'QUOTA_EXCEEDED', message: `bundle ${index} needs ${describeResources(resources)}, more than the quotas of its tenant and project have left`, stack: '' };
  }
  if (!fits(resources, core.available)) return { code: 'RESOURCE_EXHAUSTED', message: `bundle ${index} needs ${describeResources(resources)}, which this node has not free`, stack: '' };
  takeFrom(core, of.job, undefined, resources);
  const hold = new BundleHold(of, core.nowMs + 2 * BUNDLE_PREPARE_MS);
  const known = core.holds.get(group);
  if (known === undefined) core.holds.set(group, new Map([[index, hold]]));
  else known.set(index, hold);
  return undefined;
}

/** Gives a bundle back; what runs in it ends with `failure`, and gives what it holds back itself. */
export function release(core: Core, hold: BundleHold, failure: Failure): void {
  if (hold.released) return;
  const { tenant, group, index } = hold.of;
  const holds = core.holds.get(group);
  if (holds?.get(index) === hold) {
    holds.delete(index);
    if (holds.size === 0) core.holds.delete(group);
  }
  const { available } = hold;
  hold.released = true;
  giveTo(core, hold.of.job, hold, available);
  core.roomFreed = true;
  for (const c of core.classes) {
    if (c.placement === undefined || c.job.tenant !== tenant) continue;
    for (const lease of [...c.leases]) {
      if (lease.bundle !== hold) continue;
      const { slot, worker } = lease;
      if (slot === undefined) {
        c.starting--;
        dropLease(core, lease);
        continue;
      }
      for (const task of slot.execs.values()) task.cancelled ??= failure;
      lease.draining = true;
      worker.ending = true;
      core.out.push({ type: 'kill-worker', worker, reason: 'CANCELLED' });
    }
  }
  for (const job of tenant.jobs) for (const actor of [...job.actors]) if (actor.bundle === hold) actorDied(core, actor, failure);
}

/** Those of one group here, or some of its indexes. */
export function holdsOf(core: Core, group: string, indexes?: readonly number[]): BundleHold[] {
  const holds = [...(core.holds.get(group)?.values() ?? [])];
  return indexes === undefined ? holds : holds.filter(({ of }) => indexes.includes(of.index));
}

const GONE: Failure = { code: 'CANCELLED', message: 'the raylet that coordinates its placement group is gone', stack: '' };

/** A coordinator's channel closed: what it reserved goes, but for firm bundles of detached groups that have no heir. */
export function coordinatorClosed(core: Core, channel: Channel): void {
  for (const holds of [...core.holds.values()]) for (const hold of [...holds.values()]) {
    const stays = hold.of.detached && hold.firm && !core.groupHeirs.has(hold.of.group) && (hold.of.kept || core.nodes.has(hold.of.ownerNode));
    if (hold.of.channel === channel && !stays) release(core, hold, GONE);
  }
}

/**
 * Firm bundles of a group that another raylet can take over stay for that one, with what runs in them; and others for as long as the channel is open:
 * the head knows of their coordinator no more, and it is there all the same, and counts on them.
 */
export function coordinatorNodeGone(core: Core, node: number): void {
  for (const holds of [...core.holds.values()]) for (const hold of [...holds.values()]) {
    if (hold.of.channel === undefined || hold.of.ownerNode !== node) continue;
    if (hold.of.kept && hold.firm) hold.deadlineMs = core.nowMs + ORPHANED_BUNDLE_MS;
    else if (hold.of.channel.closed) release(core, hold, GONE);
  }
}

/** A job was stopped: nobody takes over what its lost coordinators left. */
export function jobHoldsEnd(core: Core, job: JobId): void {
  for (const holds of [...core.holds.values()]) for (const hold of [...holds.values()]) if (hold.of.job.id === job && hold.of.channel?.closed === true && !core.nodes.has(hold.of.ownerNode)) release(core, hold, { code: 'CANCELLED', message: 'the job of its placement group was stopped', stack: '' });
}

export function tenantHoldsGone(core: Core, tenant: TenantState, failure: Failure): void {
  for (const holds of [...core.holds.values()]) for (const hold of [...holds.values()]) if (hold.of.tenant === tenant) release(core, hold, failure);
}

/** Once in a while: what was prepared, and not made firm in time; what nobody took over and nothing runs in. */
export function expireHolds(core: Core): void {
  for (const holds of [...core.holds.values()]) {
    for (const hold of [...holds.values()]) {
      if (hold.of.channel === undefined || hold.deadlineMs > core.nowMs) continue;
      if (!hold.firm) release(core, hold, { code: 'CANCELLED', message: 'its bundle was not made firm in time', stack: '' });
      else if (hold.of.kept && hold.of.channel.closed && !core.nodes.has(hold.of.ownerNode) && fits(hold.of.resources, hold.available)) release(core, hold, GONE);
    }
  }
}
