/**
 * One bundle that is reserved on this node, and what is taken from it: from the bundle, or from the node and the tenant's quota where there is
 * none. Must never: count in the node or the quota what was taken from a bundle.
 */
import { add, subtract, type ResourceVector } from '../../base/resources.ts';
import type { Core } from './core.ts';
import type { Channel, TenantState } from './state.ts';

export interface BundleFields {
  readonly tenant: TenantState;
  /** The group's id as 48 hex digits. */
  readonly group: string;
  readonly index: number;
  readonly resources: ResourceVector;
  /** The other raylet that coordinates; undefined: this one. */
  readonly channel: Channel | undefined;
  readonly ownerNode: number;
  readonly detached: boolean;
  /** As policies see the group. */
  readonly name: string;
  readonly owner: string;
}

export class BundleHold {
  readonly of: BundleFields;
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

/** From a bundle, or from the node and the tenant's quota where there is none (any more). */
export function takeFrom(core: Core, tenant: TenantState, hold: BundleHold | undefined, r: ResourceVector): void {
  if (hold !== undefined && !hold.released) {
    hold.available = subtract(hold.available, r);
    return;
  }
  core.available = subtract(core.available, r);
  tenant.cpuUnitsInUse += r.cpuUnits;
  tenant.memoryBytesInUse += r.memoryBytes;
}

export function giveTo(core: Core, tenant: TenantState, hold: BundleHold | undefined, r: ResourceVector): void {
  if (hold !== undefined && !hold.released) {
    hold.available = add(hold.available, r);
    return;
  }
  core.available = add(core.available, r);
  tenant.cpuUnitsInUse -= r.cpuUnits;
  tenant.memoryBytesInUse -= r.memoryBytes;
}
