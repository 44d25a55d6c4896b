/**
 * Watchers and lease clocks that the embedded stores share: both live in one process, so both are lists and a timer.
 * Must never: tell a watcher of an event before the store has it for good.
 */
import type { StoreEvent, Watch } from './store.ts';

interface Watcher {
  readonly prefix: string;
  readonly fromRevision: number;
  readonly listener: (events: readonly StoreEvent[]) => void;
}

export class Watchers {
  readonly #watchers = new Set<Watcher>();

  add(prefix: string, fromRevision: number, past: readonly StoreEvent[], listener: Watcher['listener']): Watch {
    const watcher: Watcher = { prefix, fromRevision, listener };
    if (past.length > 0) listener(past);
    this.#watchers.add(watcher);
    return { close: () => void this.#watchers.delete(watcher) };
  }

  /** The events of one transaction. */
  notify(events: readonly StoreEvent[]): void {
    for (const watcher of this.#watchers) {
      const seen = events.filter((e) => e.key.startsWith(watcher.prefix) && e.revision >= watcher.fromRevision);
      if (seen.length > 0) watcher.listener(seen);
    }
  }

  clear(): void {
    this.#watchers.clear();
  }
}

/** When each lease ends, by the monotonic clock; one timer for the nearest. */
export class LeaseClock {
  readonly #ends = new Map<number, { readonly ttlMs: number; endMs: number }>();
  readonly #onEnd: (lease: number) => void;
  #timer: NodeJS.Timeout | undefined;

  constructor(onEnd: (lease: number) => void) {
    this.#onEnd = onEnd;
  }

  start(lease: number, ttlMs: number): void {
    this.#ends.set(lease, { ttlMs, endMs: performance.now() + ttlMs });
    this.#schedule();
  }

  has(lease: number): boolean {
    const entry = this.#ends.get(lease);
    return entry !== undefined && entry.endMs > performance.now();
  }

  keepAlive(lease: number): boolean {
    const entry = this.#ends.get(lease);
    if (entry === undefined || !this.has(lease)) return false;
    entry.endMs = performance.now() + entry.ttlMs;
    this.#schedule();
    return true;
  }

  forget(lease: number): void {
    this.#ends.delete(lease);
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.#ends.clear();
  }

  #schedule(): void {
    clearTimeout(this.#timer);
    let nearest = Number.POSITIVE_INFINITY;
    for (const { endMs } of this.#ends.values()) nearest = Math.min(nearest, endMs);
    if (nearest === Number.POSITIVE_INFINITY) return;
    this.#timer = setTimeout(() => {
      const now = performance.now();
      for (const [lease, { endMs }] of [...this.#ends]) {
        if (endMs > now) continue;
        this.#ends.delete(lease);
        this.#onEnd(lease);
      }
      this.#schedule();
    }, Math.max(1, nearest - performance.now()));
    this.#timer.unref();
  }
}
