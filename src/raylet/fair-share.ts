/**
 * Whose frames the raylet's event loop reads next. What comes is read where it comes in, as long as its tenant takes less than half of the
 * loop's time; beyond that it waits, and tenants whose frames wait are served by deficit round robin over measured time, the sources of
 * each (channels, workers, other raylets) in turn. A turn is short while several tenants are about, so that whoever comes next is soon read.
 * Must never: let what comes from one source overtake itself; read a clock of its own; cost an object or a turn of the loop while nothing waits.
 */

/** What a source sent and nobody has read yet. */
export interface Unread {
  /** Reads on, frames worth `budget`: true when nothing is left of it, 'stalled' when it can go no further for now. Never throws. */
  read(budget: number): boolean | 'stalled';
}

/** Read in a row before the clock is looked at again, in the unit of `RayletCore.clientBatch`: while one tenant is alone, and while others are about. */
export const ALONE_BUDGET = 2_048;
export const CONTENDED_BUDGET = 64;
/** Time of one turn, ms, after which sockets are looked at again. */
const ALONE_TURN_MS = 4;
const CONTENDED_TURN_MS = 0.5;
/** What one visit of a tenant in the round adds to its account. */
const QUANTUM_MS = 0.5;
/** A tenant's account, while nothing of it waits, fills by this share of the time that passes, up to the most that it may take at once. */
const FREE_SHARE = 0.5;
const ALONE_SAVED_MS = 2;
const CONTENDED_SAVED_MS = 0.5;
/** A frame can take long and not be divided; a pause of the process is charged too. It is paid back, up to this. */
const MOST_OWED_MS = 1_000;
/** Another tenant is about for so long after its last frames. */
const ABOUT_MS = 200;

class Share {
  /** What it may take now, or owes. */
  creditMs = ALONE_SAVED_MS;
  /** When it was last filled. */
  sinceMs = 0;
  /** Its visit in the round has begun and goes on in the next turn. */
  visited = false;
  /** Reads in a row that came no further. */
  stalls = 0;
  /** In the order in which they are read next; each in the order in which it came. */
  readonly sources = new Map<object, Unread[]>();
}

export class FairShare<T extends object> {
  readonly #shares = new Map<T, Share>();
  /** Tenants whose frames wait, in the order of the round. */
  readonly #waiting = new Set<Share>();
  /** Those of whom no source can go on for now: not looked at until `wake`. */
  readonly #asleep = new Set<Share>();
  #last: T | undefined = undefined;
  #lastMs = 0;
  #contendedUntilMs = 0;
  #reading = false;

  /** Whether frames of any tenant wait: then somebody must call `turn` soon. */
  get idle(): boolean {
    return this.#waiting.size === 0;
  }

  /** Whether what `source` sent before waits. */
  waits(tenant: T, source: object): boolean {
    return (this.#waiting.size > 0 || this.#asleep.size > 0) && this.#shares.get(tenant)?.sources.has(source) === true;
  }

  /**
   * How much of a batch that has just come may be read at once: 0 when it has to wait (`add`). Whoever reads tells how long it took
   * (`charge`).
   */
  admit(tenant: T, nowMs: number): number {
    let share = this.#shares.get(tenant);
    if (share === undefined) {
      this.#shares.set(tenant, (share = new Share()));
      share.sinceMs = nowMs;
    }
    if (tenant !== this.#last) {
      if (nowMs - this.#lastMs < ABOUT_MS) this.#contendedUntilMs = nowMs + ABOUT_MS;
      this.#last = tenant;
    }
    this.#lastMs = nowMs;
    // What comes while frames are read (an effect that answers at once) must not be read inside of them.
    if (share.sources.size > 0 || this.#reading) return 0;
    const contended = nowMs < this.#contendedUntilMs;
    share.creditMs = Math.min(contended ? CONTENDED_SAVED_MS : ALONE_SAVED_MS, share.creditMs + FREE_SHARE * (nowMs - share.sinceMs));
    share.sinceMs = nowMs;
    return share.creditMs <= 0 ? 0 : contended ? CONTENDED_BUDGET : ALONE_BUDGET;
  }

  charge(tenant: T, ms: number): void {
    const share = this.#shares.get(tenant);
    if (share !== undefined) share.creditMs = Math.max(-MOST_OWED_MS, share.creditMs - ms);
  }

  /** Puts something behind what the source sent before. */
  add(tenant: T, source: object, unread: Unread): void {
    const share = this.#shares.get(tenant) ?? new Share();
    this.#shares.set(tenant, share);
    const items = share.sources.get(source);
    if (items === undefined) share.sources.set(source, [unread]);
    else items.push(unread);
    share.stalls = 0;
    this.#asleep.delete(share);
    this.#waiting.add(share);
  }

  get sleeps(): boolean {
    return this.#asleep.size > 0;
  }

  /** What could go no further may be able to now. */
  wake(): void {
    for (const share of this.#asleep) {
      share.stalls = 0;
      this.#waiting.add(share);
    }
    this.#asleep.clear();
  }

  /** The tenant is gone. What waits of it still has its turn: ends of channels and workers are among it. */
  forget(tenant: T): void {
    if (this.#shares.get(tenant)?.sources.size === 0) this.#shares.delete(tenant);
    if (this.#last === tenant) this.#last = undefined;
  }

  /** One turn: reads what waits, until the turn's time is over. `monotonicMs` is asked after each piece. */
  turn(monotonicMs: () => number): void {
    let nowMs = monotonicMs();
    const contended = nowMs < this.#contendedUntilMs || this.#waiting.size > 1;
    const untilMs = nowMs + (contended ? CONTENDED_TURN_MS : ALONE_TURN_MS);
    const budget = contended ? CONTENDED_BUDGET : ALONE_BUDGET;
    this.#reading = true;
    try {
      while (nowMs < untilMs) {
        const share: Share | undefined = this.#waiting.values().next().value;
        if (share === undefined) return;
        // What it had saved while nothing waited is not for this; what it owes is.
        if (!share.visited) share.creditMs = Math.min(share.creditMs, 0) + QUANTUM_MS;
        share.visited = true;
        while (share.creditMs > 0 && share.sources.size > share.stalls && nowMs < untilMs) {
          const startedMs = nowMs;
          this.#readOne(share, budget);
          nowMs = monotonicMs();
          share.creditMs = Math.max(-MOST_OWED_MS, share.creditMs - (nowMs - startedMs));
        }
        share.sinceMs = nowMs;
        if (share.sources.size > 0 && share.stalls >= share.sources.size) {
          share.visited = false;
          this.#waiting.delete(share);
          this.#asleep.add(share);
          continue;
        }
        if (share.creditMs > 0 && share.sources.size > 0) return;
        share.visited = false;
        if (this.#waiting.delete(share) && share.sources.size > 0) this.#waiting.add(share);
      }
    } finally {
      this.#reading = false;
    }
  }

  #readOne(share: Share, budget: number): void {
    const [source, items] = share.sources.entries().next().value as [object, Unread[]];
    const how = (items[0] as Unread).read(budget);
    if (how === true) items.shift();
    share.stalls = how === 'stalled' ? share.stalls + 1 : 0;
    share.sources.delete(source);
    if (items.length > 0) share.sources.set(source, items);
  }
}
