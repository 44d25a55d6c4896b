/**
 * Bundles that are reserved on this node, for groups of this raylet's and of others'. What a bundle holds is taken from the node and counts in
 * its tenant's quota once; tasks and actors in it take from the bundle. States of a reservation:
 *   1. (none) → PREPARED   there is room, and it is asked for
 *   2. PREPARED → FIRM     the coordinator has all bundles of its round
 *   3. PREPARED → (none)   it is given back, its coordinator is gone, or nothing was heard for twice BUNDLE_PREPARE_MS
 *   4. FIRM → (none)       it is given back; its coordinator's channel closed (a detached group's stays until its node is gone)
 * Must never: give back more or less than was taken, whatever still runs when a bundle goes.
 */
import { BUNDLE_PREPARE_MS } from '../../base/limits.ts';
import { describeResources, fits } from '../../base/resources.ts';
import { actorDied } from './actors.ts';
import { BundleHold, giveTo, takeFrom, type BundleFields } from './bundle.ts';
import type { Core } from './core.ts';
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
    return { code: 'QUOTA_EXCEEDED', message: `bundle ${index} needs ${describeResources(resources)}, more than the quotas of its tenant and project on this node have left`, stack: '' };
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

/** A coordinator's channel closed: what it reserved goes, but for firm bundles of detached groups. */
export function coordinatorClosed(core: Core, channel: Channel): void {
  for (const holds of [...core.holds.values()]) for (const hold of [...holds.values()]) if (hold.of.channel === channel && !(hold.of.detached && hold.firm)) release(core, hold, GONE);
}

export function coordinatorNodeGone(core: Core, node: number): void {
  for (const holds of [...core.holds.values()]) for (const hold of [...holds.values()]) if (hold.of.channel !== undefined && hold.of.ownerNode === node) release(core, hold, GONE);
}

export function tenantHoldsGone(core: Core, tenant: TenantState, failure: Failure): void {
  for (const holds of [...core.holds.values()]) for (const hold of [...holds.values()]) if (hold.of.tenant === tenant) release(core, hold, failure);
}

/** Once in a while: what was prepared, and not made firm in time. */
export function expireHolds(core: Core): void {
  for (const holds of [...core.holds.values()]) {
    for (const hold of [...holds.values()]) if (!hold.firm && hold.of.channel !== undefined && hold.deadlineMs <= core.nowMs) release(core, hold, { code: 'CANCELLED', message: 'its bundle was not made firm in time', stack: '' });
  }
}
