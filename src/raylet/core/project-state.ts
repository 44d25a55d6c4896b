/**
 * The books of a tenant's projects on one node: what each holds, what of it is lent, how much it has used of late, how fast it calls. Numbers
 * only; who may take what is in quota-tree.ts. Must never: read a clock.
 */
import { NO_PROJECT_QUOTA, type ProjectQuota } from '../../base/project-quota.ts';

/** After so long, what was used counts half. */
const HALF_LIFE_MS = 10_000;

/**
 * Dominant share (Ghodsi et al., NSDI 2011: the largest of the parts that one has of any resource of the node), smoothed over time, so that who takes
 * turns is as fair as who sits still. What is held now counts in full besides, so that several grants of one instant are spread.
 */
export class FairUsage {
  #share = 0;
  #decayed = 0;
  #sinceMs = 0;

  note(share: number, nowMs: number): void {
    this.#decayed = this.#at(nowMs);
    this.#sinceMs = nowMs;
    this.#share = share;
  }

  /** Who has the least is next. */
  weight(nowMs: number): number {
    return this.#at(nowMs) + this.#share;
  }

  #at(nowMs: number): number {
    const elapsed = nowMs - this.#sinceMs;
    if (elapsed <= 0) return this.#decayed;
    const kept = 2 ** (-elapsed / HALF_LIFE_MS);
    return this.#decayed * kept + this.#share * (1 - kept);
  }
}

/** So many calls a second, a second's worth of them at once. */
export class TokenBucket {
  #tokens = Number.POSITIVE_INFINITY;
  #atMs = 0;

  /** Ms until the next one may come; 0: now. */
  waitMs(perSecond: number, nowMs: number): number {
    if (perSecond === Number.POSITIVE_INFINITY) {
      this.#tokens = perSecond;
      return 0;
    }
    if (perSecond === 0) return Number.POSITIVE_INFINITY;
    this.#tokens = Math.min(perSecond, this.#tokens + (Math.max(0, nowMs - this.#atMs) * perSecond) / 1_000);
    this.#atMs = nowMs;
    return this.#tokens >= 1 ? 0 : Math.ceil(((1 - this.#tokens) * 1_000) / perSecond);
  }

  /** After `waitMs` said that it may. */
  take(): void {
    if (this.#tokens !== Number.POSITIVE_INFINITY) this.#tokens--;
  }
}

/** What projects of one tenant lend each other: no more is used beyond what each keeps for itself than all of them lend. */
export class LendingPool {
  cpuUnits = 0;
  cpuUnitsUsed = 0;
  memoryBytes = 0;
  memoryBytesUsed = 0;
}

export class ProjectState {
  readonly name: string;
  quota: ProjectQuota = NO_PROJECT_QUOTA;
  cpuUnitsInUse = 0;
  memoryBytesInUse = 0;
  objectBytes = 0;
  tasks = 0;
  inFlight = 0;
  readonly usage = new FairUsage();
  readonly calls = new TokenBucket();

  constructor(name: string) {
    this.name = name;
  }

  /** It has more than is its own. */
  get borrows(): boolean {
    return this.cpuUnitsInUse > this.quota.cpuUnits || this.memoryBytesInUse > this.quota.memoryBytes;
  }
}
