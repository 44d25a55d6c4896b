/**
 * Who may start a process next: so many starts at a time, tenants in turn. A process takes a fraction of a second of a processor to start, and a tenant may ask
 * for dozens at once: whoever asks for one then waits for the starts under way, not for all of them. Pure.
 */
export class StartTurns<T> {
  readonly #most: number;
  #running = 0;
  /** In the order of the round; each in its own order. */
  readonly #waiting = new Map<string, T[]>();

  constructor(most: number) {
    this.#most = most;
  }

  /** True: start now, and call `ended` when it is done. False: `item` comes out of an `ended` later. */
  begin(tenant: string, item: T): boolean {
    if (this.#running < this.#most && this.#waiting.size === 0) {
      this.#running++;
      return true;
    }
    const items = this.#waiting.get(tenant);
    if (items === undefined) this.#waiting.set(tenant, [item]);
    else items.push(item);
    return false;
  }

  /** A start is over, well or not. Gives what is to start in its place. */
  ended(): T | undefined {
    const next: [string, T[]] | undefined = this.#waiting.entries().next().value;
    if (next === undefined) {
      this.#running--;
      return undefined;
    }
    const [tenant, items] = next;
    const item = items.shift() as T;
    this.#waiting.delete(tenant);
    if (items.length > 0) this.#waiting.set(tenant, items);
    return item;
  }
}
