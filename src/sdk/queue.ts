/**
 * `bulkhead/queue`: a first-in-first-out queue that drivers, tasks and actors share, as Ray's `ray.util.queue.Queue`. It is an actor with a
 * client around it; pass `queue.actor` as an argument and make a `Queue` of it on the other side. ECMAScript only.
 */
import { BulkheadError } from '../base/errors.ts';
import type { Results } from './actor-pool.ts';
import type { ActorOptions } from './options.ts';
import type { QueueActor } from './queue-actor.ts';
import type { ActorHandle, RemoteModule } from './remote-types.ts';

export { QueueActor } from './queue-actor.ts';

export interface WaitForRoom {
  /** How long to wait; 0: not at all; default: as long as it takes. */
  readonly timeoutMs?: number | undefined;
}

export interface QueueOptions {
  /** Items that it holds at most; default 0: no limit. */
  readonly maxSize?: number;
  /** Of the actor behind it: a name, a namespace, detached, resources. */
  readonly actor?: ActorOptions;
}

/** What `Queue.create` needs: the cluster of `connect()`. */
export interface QueueHost extends Results {
  module<M>(file: URL): Promise<RemoteModule<M>>;
}

/** More waiting calls than this are queued in turn behind the first. */
const MAX_WAITING = 10_000;

export class Queue<T> {
  /** Passed as an argument, it is the same queue elsewhere: `new Queue(handle, { get, wait })`. */
  readonly actor: ActorHandle<QueueActor>;
  readonly #results: Results;

  /** Of the handle of a queue's actor. */
  constructor(actor: ActorHandle<QueueActor>, results: Results) {
    this.actor = actor;
    this.#results = results;
  }

  /** A new queue, or the one of this name with `actor: { name, getIfExists: true }`. In code on the cluster: export `QueueActor` and make a `Queue` of it. */
  static async create<T>(host: QueueHost, options: QueueOptions = {}): Promise<Queue<T>> {
    const module = await host.module<typeof import('./queue-actor.ts')>(new URL('./queue-actor.ts', import.meta.url));
    const actor = await module.QueueActor.options({ maxConcurrency: MAX_WAITING, ...options.actor }).create(options.maxSize ?? 0);
    return new Queue<T>(actor, host);
  }

  /** Waits for room; RESOURCE_EXHAUSTED when there is none in time. */
  async put(item: T, options: WaitForRoom = {}): Promise<void> {
    await this.#put([item], options.timeoutMs);
  }

  /** At once or not at all: RESOURCE_EXHAUSTED when it is full. */
  async putNow(item: T): Promise<void> {
    await this.#put([item], 0);
  }

  /** All of them at once, or none: RESOURCE_EXHAUSTED. */
  async putNowBatch(items: readonly T[]): Promise<void> {
    await this.#put(items, 0);
  }

  /** The oldest item; UNAVAILABLE when there is none in time. */
  async get(options: WaitForRoom = {}): Promise<T> {
    const [item] = await this.#take(1, options.timeoutMs);
    return item as T;
  }

  /** At once or not at all: UNAVAILABLE when it is empty. */
  async getNow(): Promise<T> {
    const [item] = await this.#take(1, 0);
    return item as T;
  }

  /** So many at once, or none: UNAVAILABLE. */
  async getNowBatch(count: number): Promise<T[]> {
    if (!Number.isSafeInteger(count) || count < 0) throw new BulkheadError('INVALID_ARGUMENT', `count ${count} must be a whole number`);
    return count === 0 ? [] : await this.#take(count, 0);
  }

  async size(): Promise<number> {
    return await this.#results.get(this.actor.size());
  }

  async empty(): Promise<boolean> {
    return (await this.size()) === 0;
  }

  async full(): Promise<boolean> {
    const [size, max] = await Promise.all([this.size(), this.#results.get(this.actor.maxSize())]);
    return max > 0 && size >= max;
  }

  async #put(items: readonly T[], timeoutMs: number | undefined): Promise<void> {
    const done = await this.#results.get(this.actor.put(items.map((item) => [item] as const), timeoutMs));
    if (!done) throw new BulkheadError('RESOURCE_EXHAUSTED', timeoutMs === 0 || timeoutMs === undefined ? 'the queue is full' : `the queue was full for ${timeoutMs} ms`);
  }

  async #take(count: number, timeoutMs: number | undefined): Promise<T[]> {
    const taken = await this.#results.get(this.actor.take(count, timeoutMs));
    if (taken === undefined) throw new BulkheadError('UNAVAILABLE', timeoutMs === 0 || timeoutMs === undefined ? `the queue has fewer than ${count} items` : `the queue had no item for ${timeoutMs} ms`);
    return taken.map(([item]) => item as T);
  }
}
