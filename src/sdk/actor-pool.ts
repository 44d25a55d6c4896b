/**
 * `bulkhead/actor-pool`: several actors that share a list of work, as Ray's `ray.util.ActorPool`. For drivers (give it the cluster) and for
 * code on the cluster (give it `get` and `wait` of `bulkhead/runtime`). ECMAScript only: it is bundled with the tasks that use it. Must
 * never: give an actor a second call before its first is done, or hold results beyond their refs.
 */
import { BulkheadError } from '../base/errors.ts';
import type { ObjectRef } from './object-ref.ts';
import type { GetOptions, WaitOptions, WaitResult } from './remote-types.ts';

/** What a pool or queue needs of the cluster: the cluster itself, or the functions of `bulkhead/runtime`. */
export interface Results {
  get<T>(ref: ObjectRef<T>, options?: GetOptions): Promise<T>;
  wait<R extends ObjectRef>(refs: readonly R[], options?: WaitOptions): Promise<WaitResult<R>>;
}

export interface NextOptions {
  /** Then TIMEOUT; the call goes on, and its result is the next one still. */
  readonly timeoutMs?: number | undefined;
}

interface Submitted<A> {
  readonly index: number;
  readonly start: (actor: A) => ObjectRef;
  /** Undefined while it waits for an actor. */
  ref: ObjectRef | undefined;
  failure: BulkheadError | undefined;
  done: boolean;
}

/** Calls that `map` has submitted ahead of what was taken, for each actor. */
const AHEAD_PER_ACTOR = 2;

export class ActorPool<A extends object> {
  readonly #results: Results;
  readonly #idle: A[] = [];
  readonly #busy = new Map<Submitted<A>, A>();
  readonly #waiting: Submitted<A>[] = [];
  /** Everything whose result was not taken, in the order it was submitted. */
  readonly #open = new Map<number, Submitted<A>>();
  #nextIndex = 0;
  #wake: (() => void)[] = [];

  constructor(results: Results, actors: Iterable<A>) {
    this.#results = results;
    for (const actor of actors) this.push(actor);
  }

  /** Adds an actor, which takes the next of what waits. */
  push(actor: A): void {
    if (this.#idle.includes(actor) || [...this.#busy.values()].includes(actor)) throw new BulkheadError('INVALID_ARGUMENT', 'the actor is in the pool already');
    this.#idle.push(actor);
    this.#startWaiting();
  }

  /** Takes out an actor that has nothing to do; undefined when all are busy. */
  popIdle(): A | undefined {
    return this.#idle.pop();
  }

  /** Whether an actor is idle, so that a submission starts at once. */
  get hasFree(): boolean {
    return this.#idle.length > 0;
  }

  /** Whether there are results to take, ready or not. */
  get hasNext(): boolean {
    return this.#open.size > 0;
  }

  /** `call` is made with the next actor that is free, and must return the one ref of its call. */
  submit<V>(call: (actor: A, value: V) => ObjectRef, value: V): void {
    const submitted: Submitted<A> = { index: this.#nextIndex++, start: (actor) => call(actor, value), ref: undefined, failure: undefined, done: false };
    this.#open.set(submitted.index, submitted);
    this.#waiting.push(submitted);
    this.#startWaiting();
  }

  /** The result of the oldest submission whose result was not taken. Throws what the call failed with, which takes it too. */
  async next<R = unknown>(options: NextOptions = {}): Promise<R> {
    for (const oldest of this.#open.values()) {
      await this.#until(() => oldest.done, options.timeoutMs);
      return (await this.#take(oldest)) as R;
    }
    return noMore();
  }

  /** The result of whichever submission is done first. */
  async nextUnordered<R = unknown>(options: NextOptions = {}): Promise<R> {
    const first = (): Submitted<A> | undefined => {
      for (const submitted of this.#open.values()) if (submitted.done) return submitted;
      return undefined;
    };
    if (this.#open.size === 0) return noMore();
    await this.#until(() => this.#open.size === 0 || first() !== undefined, options.timeoutMs);
    const done = first();
    return done === undefined ? noMore() : ((await this.#take(done)) as R);
  }

  /** A call for each value, results in the order of the values. Ends with the first failure. What was submitted before is passed over. */
  map<V, R>(call: (actor: A, value: V) => ObjectRef<R>, values: Iterable<V> | AsyncIterable<V>): AsyncGenerator<R, void, undefined> {
    return this.#mapped(call, values, () => this.next<R>());
  }

  /** The same, results as they come. */
  mapUnordered<V, R>(call: (actor: A, value: V) => ObjectRef<R>, values: Iterable<V> | AsyncIterable<V>): AsyncGenerator<R, void, undefined> {
    return this.#mapped(call, values, () => this.nextUnordered<R>());
  }

  async *#mapped<V, R>(call: (actor: A, value: V) => ObjectRef<R>, values: Iterable<V> | AsyncIterable<V>, next: () => Promise<R>): AsyncGenerator<R, void, undefined> {
    while (this.hasNext) await this.nextUnordered().catch(() => undefined);
    for await (const value of values) {
      while (this.#open.size >= AHEAD_PER_ACTOR * Math.max(1, this.#idle.length + this.#busy.size)) yield await next();
      this.submit(call, value);
    }
    while (this.hasNext) yield await next();
  }

  #startWaiting(): void {
    while (this.#idle.length > 0) {
      const submitted = this.#waiting.shift();
      if (submitted === undefined) return;
      const actor = this.#idle.shift() as A;
      try {
        submitted.ref = submitted.start(actor);
        this.#busy.set(submitted, actor);
        void this.#watch(submitted, submitted.ref);
      } catch (thrown) {
        // Arguments that cannot be sent are the submission's failure, not the pool's.
        submitted.failure = thrown instanceof BulkheadError ? thrown : new BulkheadError('TASK_FAILED', 'the call could not be made', { cause: thrown });
        this.#idle.push(actor);
        this.#ended(submitted);
      }
    }
  }

  async #watch(submitted: Submitted<A>, ref: ObjectRef): Promise<void> {
    try {
      await this.#results.wait([ref], { count: 1 });
    } catch (thrown) {
      submitted.failure = thrown instanceof BulkheadError ? thrown : new BulkheadError('UNAVAILABLE', 'the cluster cannot be asked for the result', { cause: thrown });
    }
    const actor = this.#busy.get(submitted);
    this.#busy.delete(submitted);
    if (actor !== undefined) this.#idle.push(actor);
    this.#ended(submitted);
    this.#startWaiting();
  }

  #ended(submitted: Submitted<A>): void {
    submitted.done = true;
    const wake = this.#wake;
    this.#wake = [];
    for (const each of wake) each();
  }

  async #take(submitted: Submitted<A>): Promise<unknown> {
    this.#open.delete(submitted.index);
    if (submitted.failure !== undefined) throw submitted.failure;
    return await this.#results.get(submitted.ref as ObjectRef);
  }

  async #until(reached: () => boolean, timeoutMs: number | undefined): Promise<void> {
    let late = false;
    let timer: unknown;
    if (timeoutMs !== undefined) {
      timer = timers.setTimeout(() => {
        late = true;
        for (const each of this.#wake.splice(0)) each();
      }, timeoutMs);
    }
    try {
      while (!reached()) {
        if (late) throw new BulkheadError('TIMEOUT', `no result within ${timeoutMs ?? 0} ms; the call goes on`);
        await new Promise<void>((resolve) => {
          this.#wake.push(resolve);
        });
      }
    } finally {
      if (timer !== undefined) timers.clearTimeout(timer);
    }
  }
}

/** Both sides have these; their types differ. */
const timers = globalThis as unknown as { setTimeout(run: () => void, ms: number): unknown; clearTimeout(timer: unknown): void };

function noMore(): never {
  throw new BulkheadError('INVALID_ARGUMENT', 'the pool has no results to wait for: submit something first');
}
