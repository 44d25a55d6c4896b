/**
 * What a node knows of its shares of quotas, by tenant and as a whole. State only; what happens to it is in quota-shares.ts. Must never: hold anything of
 * a tenant that is not about its own quotas.
 */
import type { ResourceVector } from '../../base/resources.ts';
import type { Job, TenantState } from './state.ts';

export interface ShareWait {
  sinceMs: number;
  /** Serial of the report that asked for more; 0: none has yet. And when the head said that there is no more. */
  asked: number;
  refusedMs: number;
}

/** The shares of one tenant. */
export class TenantShares {
  /** It has a quota that is shared among nodes. */
  shared = false;
  granted: ReadonlyMap<string, number> = new Map();
  coming: ReadonlySet<string> = new Set();
  /** Serial of what is in force. */
  applied = 0;
  /** Lines whose share some call found too small. */
  readonly waits = new Map<string, ShareWait>();
  /** The last thing that the head had answered when a call waited for it in vain. */
  unansweredAt = -1;
  /** Bundles of placement groups that found no room in a share, and until when that counts. */
  bundle: { readonly job: Job; readonly resources: ResourceVector; readonly untilMs: number } | undefined = undefined;
}

/** What one node knows of its shares as a whole. */
export class NodeShares {
  epoch = 0;
  serial = 0;
  answered = 0;
  leaseUntilMs = 0;
  /** Tenants that wait for more: the head is told soon. */
  readonly short = new Set<TenantState>();
  /** When the latest reports were sent, by their serial. */
  readonly sentMs = new Map<number, number>();
}
