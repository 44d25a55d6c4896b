/**
 * One bundle that is reserved on this node, and what is taken from it: from the bundle, or from the node and the tenant's quota where there is
 * none. Must never: count in the node or the quota what was taken from a bundle.
 */
import { add, subtract, type ResourceVector } from '../../base/resources.ts';
import type { Core } from './core.ts';
import { give, take } from './quota-tree.ts';
import type { Channel, Job, TenantState } from './state.ts';

export interface BundleFields {
  readonly tenant: TenantState;
  /** In whose quotas it counts. */
  readonly job: Job;
  /** The group's id as 48 hex digits. */
  readonly group: string;
  readonly index: number;
  readonly resources: ResourceVector;
  /** The other raylet that coordinates; undefined: this one. */
  readonly channel: Channel | undefined;
  readonly ownerNode: number;
  readonly detached: boolean;
  /** Its coordinator can be replaced: a firm bundle outlives it. */
  readonly kept: boolean;
  /** As policies see the group. */
  readonly name: string;
  readonly owner: string;
}

export class BundleHold {
  of: BundleFields;
  available: ResourceVector;
  firm = false;
  released = false;
  deadlineMs: number;

  constructor(of: BundleFields, deadlineMs: number) {
    this.of = of;
    this.available = of.resources;
    this.deadlineMs = deadlineMs;
  }
}

/** From a bundle, or from the node and the quotas of the job where there is none; where it is gone, of the job that had it reserved. */
export function takeFrom(core: Core, job: Job, hold: BundleHold | undefined, r: ResourceVector): void {
  if (hold === undefined || hold.released) take(core, hold === undefined ? job : hold.of.job, r);
  else hold.available = subtract(hold.available, r);
}

export function giveTo(core: Core, job: Job, hold: BundleHold | undefined, r: ResourceVector): void {
  if (hold === undefined || hold.released) give(core, hold === undefined ? job : hold.of.job, r);
  else hold.available = add(hold.available, r);
}
