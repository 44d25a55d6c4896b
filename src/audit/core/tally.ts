/** Counts of a log's records, kept while appending so that `stats` need not read the log. */
import type { AuditRecord } from '../../base/audit-record.ts';

/** Distinct actions and events that are counted by name; the vocabulary is far smaller, and the rest counts as OTHER. */
const MAX_NAMES = 512;
const OTHER = '(other)';

export interface ActionCount {
  allow: number;
  deny: number;
}

export interface TallyState {
  readonly firstMs: number;
  readonly lastMs: number;
  readonly actions: readonly (readonly [string, number, number])[];
  readonly events: readonly (readonly [string, number])[];
}

export class Tally {
  readonly actions = new Map<string, ActionCount>();
  readonly events = new Map<string, number>();
  /** -1 while nothing was counted. */
  firstMs = -1;
  lastMs = -1;

  add(r: AuditRecord): void {
    if (this.firstMs < 0 || r.timeMs < this.firstMs) this.firstMs = r.timeMs;
    if (r.timeMs > this.lastMs) this.lastMs = r.timeMs;
    if (r.type === 'decision') {
      const count = this.#action(r.action);
      if (r.allow) count.allow++;
      else count.deny++;
    } else this.#event(r.event, 1);
  }

  #action(name: string): ActionCount {
    let count = this.actions.get(name);
    if (count === undefined) {
      if (this.actions.size >= MAX_NAMES && name !== OTHER) return this.#action(OTHER);
      this.actions.set(name, (count = { allow: 0, deny: 0 }));
    }
    return count;
  }

  #event(name: string, n: number): void {
    const known = this.events.get(name);
    if (known === undefined && this.events.size >= MAX_NAMES && name !== OTHER) return this.#event(OTHER, n);
    this.events.set(name, (known ?? 0) + n);
  }

  /** Moves the counts of `from` here and empties it. */
  take(from: Tally): void {
    if (from.firstMs < 0) return;
    if (this.firstMs < 0 || from.firstMs < this.firstMs) this.firstMs = from.firstMs;
    if (from.lastMs > this.lastMs) this.lastMs = from.lastMs;
    for (const [name, c] of from.actions) {
      const count = this.#action(name);
      count.allow += c.allow;
      count.deny += c.deny;
    }
    for (const [name, n] of from.events) this.#event(name, n);
    from.actions.clear();
    from.events.clear();
    from.firstMs = -1;
    from.lastMs = -1;
  }

  state(): TallyState {
    return { firstMs: this.firstMs, lastMs: this.lastMs, actions: [...this.actions].map(([name, c]) => [name, c.allow, c.deny] as const), events: [...this.events] };
  }

  static restore(s: TallyState): Tally {
    const tally = new Tally();
    tally.firstMs = s.firstMs;
    tally.lastMs = s.lastMs;
    for (const [name, allow, deny] of s.actions) tally.actions.set(name, { allow, deny });
    for (const [name, n] of s.events) tally.events.set(name, n);
    return tally;
  }
}
