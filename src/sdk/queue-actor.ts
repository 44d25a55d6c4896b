/**
 * The actor behind a queue of `bulkhead/queue`: what was put and not yet taken, and who waits. Runs on the cluster, bundled with tenants' code;
 * ECMAScript only. Must never: lose an item that it said it took, or give one to two takers.
 */

/** In an array, so that a ref that is put stays a ref. */
type Box = readonly [unknown];

const timers = globalThis as unknown as { setTimeout(run: () => void, ms: number): unknown; clearTimeout(timer: unknown): void };

export class QueueActor {
  readonly #maxSize: number;
  readonly #items: Box[] = [];
  readonly #takers: (() => void)[] = [];
  readonly #putters: (() => void)[] = [];

  /** 0: without limit. */
  constructor(maxSize = 0) {
    if (!Number.isSafeInteger(maxSize) || maxSize < 0) throw new RangeError(`maxSize ${maxSize} must be a whole number, 0 for no limit`);
    this.#maxSize = maxSize;
  }

  size(): number {
    return this.#items.length;
  }

  maxSize(): number {
    return this.#maxSize;
  }

  /** All or none; false when there was no room in time. `timeoutMs`: how long it may wait for room; undefined: as long as it takes. */
  async put(items: readonly Box[], timeoutMs: number | undefined): Promise<boolean> {
    const done = await this.#inTurn(this.#putters, timeoutMs, () => {
      if (this.#maxSize > 0 && this.#items.length + items.length > this.#maxSize) return undefined;
      for (const item of items) this.#items.push(item);
      wake(this.#takers);
      return true;
    });
    return done ?? false;
  }

  /** So many, or none: undefined. */
  async take(count: number, timeoutMs: number | undefined): Promise<Box[] | undefined> {
    return await this.#inTurn(this.#takers, timeoutMs, () => {
      if (this.#items.length < count) return undefined;
      const taken = this.#items.splice(0, count);
      wake(this.#putters);
      return taken;
    });
  }

  /** Tries `act`, which looks and does in one go, until it did something: whenever the other side has changed, in the order of those who wait. */
  async #inTurn<R>(line: (() => void)[], timeoutMs: number | undefined, act: () => R | undefined): Promise<R | undefined> {
    let done = act();
    if (done !== undefined || timeoutMs === 0) return done;
    let late = false;
    const timer = timeoutMs === undefined ? undefined : timers.setTimeout(() => {
      late = true;
      wake(line);
    }, timeoutMs);
    while (done === undefined && !late) {
      await new Promise<void>((resolve) => {
        line.push(resolve);
      });
      done = act();
    }
    if (timer !== undefined) timers.clearTimeout(timer);
    return done;
  }
}

function wake(line: (() => void)[]): void {
  for (const each of line.splice(0)) each();
}
