/**
 * Which workers were given which object files, so that a freed object costs work where it was attached and nowhere else: many tenants'
 * workers are on a node, and a client frees thousands of objects with one frame. Must never: touch files itself.
 */
export interface Detaching {
  detach(fileName: string): void;
}

export class Attachments<W extends Detaching> {
  readonly #workers = new Map<string, Set<W>>();
  readonly #files = new Map<W, Set<string>>();

  /** `fileName` was given to `worker`. Names are unique on a node: they begin with the session's prefix, which has the tenant in it. */
  add(fileName: string, worker: W): void {
    const workers = this.#workers.get(fileName);
    if (workers === undefined) this.#workers.set(fileName, new Set([worker]));
    else workers.add(worker);
    const files = this.#files.get(worker);
    if (files === undefined) this.#files.set(worker, new Set([fileName]));
    else files.add(fileName);
  }

  /** The object is freed. */
  detach(fileName: string): void {
    const workers = this.#workers.get(fileName);
    if (workers === undefined) return;
    this.#workers.delete(fileName);
    for (const worker of workers) {
      const files = this.#files.get(worker);
      files?.delete(fileName);
      if (files?.size === 0) this.#files.delete(worker);
      worker.detach(fileName);
    }
  }

  /** The worker is gone, and its directory with it. */
  forget(worker: W): void {
    for (const fileName of this.#files.get(worker) ?? []) {
      const workers = this.#workers.get(fileName);
      workers?.delete(worker);
      if (workers?.size === 0) this.#workers.delete(fileName);
    }
    this.#files.delete(worker);
  }

  /** Pairs that are kept, and names: what must be 0 again when all is freed. */
  get size(): number {
    let pairs = this.#workers.size;
    for (const files of this.#files.values()) pairs += files.size;
    return pairs;
  }
}
