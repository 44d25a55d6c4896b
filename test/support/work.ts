/** What the clusters of the tests run: every export is a task or an actor class of a tenant. Runs in isolates only. */
import { actor, context, exitActor, get, put, task, wait, type ActorHandle, type ObjectRef } from 'bulkhead/runtime';
import { Queue, type QueueActor } from 'bulkhead/queue';

export function add(a: number, b: number): number {
  return a + b;
}

export async function fibonacci(n: number): Promise<number> {
  if (n < 2) return n;
  const fib = task(fibonacci);
  const [a, b] = await get([fib(n - 1), fib(n - 2)]);
  return (a ?? 0) + (b ?? 0);
}

export function pair(x: number): [number, number] {
  return [x, x * 2];
}

export function total(...numbers: number[]): number {
  return numbers.reduce((sum, n) => sum + n, 0);
}

export function fail(message: string): never {
  throw new TypeError(message);
}

export async function failNested(): Promise<number> {
  return await get(task(fail)('from below'));
}

export function sleep(ms: number): Promise<number> {
  return new Promise((resolve) => {
    setTimeout(() => resolve(ms), ms);
  });
}

/** When it began and ended, and where. */
export async function span(ms: number): Promise<{ from: number; to: number; node: string }> {
  const from = Date.now();
  await sleep(ms);
  return { from, to: Date.now(), node: context().nodeId };
}

export function spin(): number {
  for (let i = 0; ; i = (i + 1) | 0) if (i === -1) continue;
}

export function hog(): number {
  const kept: unknown[] = [];
  for (;;) kept.push(new Array(100_000).fill(kept.length));
}

export function bytes(n: number, fill: number): Uint8Array {
  return new Uint8Array(n).fill(fill);
}

export function lengthOf(data: Uint8Array): number {
  return data.length;
}

export async function attempt(): Promise<number> {
  return context().attempt;
}

export function facts(): Pick<ReturnType<typeof context>, 'jobId' | 'tenant' | 'name' | 'attempt' | 'resources'> {
  const { jobId, tenant, name, attempt: tried, resources } = context();
  return { jobId, tenant, name, attempt: tried, resources };
}

/** The ref inside an array is not resolved before the call: it arrives as a ref. */
export async function sumOfRefs(refs: ObjectRef<number>[]): Promise<number> {
  return (await get(refs)).reduce((sum, n) => sum + n, 0);
}

export async function putBelow(n: number): Promise<{ inner: ObjectRef<Uint8Array> }> {
  return { inner: await put(new Uint8Array(n).fill(9)) };
}

export async function firstReady(): Promise<number> {
  const nap = task(sleep);
  const { ready } = await wait([nap(5_000), nap(5)], { count: 1, timeoutMs: 4_000 });
  return ready.length;
}

/** Starts long tasks below and returns without waiting for them. */
export async function spawnAndSleep(n: number, ms: number): Promise<number> {
  const nap = task(sleep);
  const refs = Array.from({ length: n }, () => nap(ms));
  await get(refs);
  return refs.length;
}

export function say(text: string): void {
  console.log(text);
  console.error(`${text} (to stderr)`);
}

export function where(ms: number): Promise<string> {
  return new Promise((resolve) => {
    setTimeout(() => resolve('done'), ms);
  });
}

export class Counter {
  #n: number;
  readonly #seen: number[] = [];

  constructor(n = 0) {
    if (n < 0) throw new RangeError('a counter does not count below zero');
    this.#n = n;
  }

  add(k: number): number {
    this.#n += k;
    return this.#n;
  }

  note(k: number): number {
    return this.#seen.push(k);
  }

  seen(): number[] {
    return [...this.#seen];
  }

  async later(ms: number, k: number): Promise<number> {
    await new Promise<void>((resolve) => {
      setTimeout(resolve, ms);
    });
    this.#seen.push(k);
    return k;
  }

  throws(): never {
    throw new RangeError('on purpose');
  }

  spin(): number {
    return spin();
  }

  hog(): number {
    return hog();
  }
}

export async function countWith(counter: ActorHandle<Counter>, k: number): Promise<number> {
  return await get(counter.add(k));
}

export async function countByName(name: string, k: number): Promise<number> {
  const counter = await actor<Counter>(name);
  return await get(counter.add(k));
}

/** Keeps refs that came inside arguments. */
export class Keeper {
  #refs: ObjectRef[] = [];

  node(): string {
    return context().nodeId;
  }

  keep(refs: ObjectRef[]): number {
    return this.#refs.push(...refs);
  }

  async first(): Promise<unknown> {
    const value = await get(this.#refs[0] as ObjectRef);
    return value instanceof Uint8Array ? value[0] : value;
  }

  giveAll(): ObjectRef[] {
    return this.#refs;
  }
}

/** Tells what restarts and limits did to it. */
export class Restartable {
  #calls: (string | number)[] = [];
  #running = 0;
  #most = 0;
  readonly #seed: string;
  readonly #life = context().attempt;

  constructor(seed: Uint8Array | string) {
    this.#seed = typeof seed === 'string' ? seed : `${seed.length}:${seed[0] ?? ''}`;
  }

  life(): { life: number; seed: string } {
    return { life: this.#life, seed: this.#seed };
  }

  note(k: number): number {
    return this.#calls.push(k);
  }

  calls(): (string | number)[] {
    return this.#calls;
  }

  /** In its first life it never ends; in a later one it is over at once. */
  async untilNextLife(k: number): Promise<number> {
    this.#calls.push(k);
    if (this.#life === 0) await new Promise(() => undefined);
    return this.#life;
  }

  async overlapping(ms: number): Promise<number> {
    this.#most = Math.max(this.#most, ++this.#running);
    await new Promise<void>((resolve) => {
      setTimeout(resolve, ms);
    });
    this.#running--;
    return this.#most;
  }

  never(): Promise<void> {
    return new Promise(() => undefined);
  }

  leave(): void {
    exitActor();
  }

  async leaveLater(): Promise<void> {
    await new Promise<void>((resolve) => {
      setTimeout(resolve, 5);
    });
    exitActor();
  }
}

/** A task that makes an actor and gives its handle away, and one that only leaves it behind. */
export async function makeCounter(n: number): Promise<{ counter: ActorHandle<Counter> }> {
  return { counter: await actor(Counter).create(n) };
}

export async function dropCounter(name: string): Promise<number> {
  return await get((await actor(Counter).options({ name }).create(1)).add(1));
}

export async function takeMany(actor: ActorHandle<QueueActor>, n: number): Promise<number[]> {
  const queue = new Queue<number>(actor, { get, wait });
  const taken: number[] = [];
  for (let i = 0; i < n; i++) taken.push(await queue.get());
  return taken;
}

export function exitTask(): void {
  exitActor();
}

export async function ownActor(): Promise<number> {
  const counter = await actor(Counter).create(40);
  return await get(counter.add(2));
}

/** What a call is told of the trace that it is in. */
export function traceOf(): string {
  return context().traceparent ?? 'none';
}

export class Talker {
  say(text: string): void {
    console.log(text);
  }
}

/** Quick at first, and then whatever it is told to be. */
export class Sudden {
  #n = 0;

  ping(): number {
    return ++this.#n;
  }

  bytes(n: number): Uint8Array {
    return new Uint8Array(n).fill(7);
  }

  turn(kind: string): string {
    const again = (): void => void Promise.resolve().then(again);
    const deeper = (n: number): number => deeper(n + 1) + 1;
    if (kind === 'recursion') deeper(0);
    if (kind === 'rejection') void Promise.reject(new Error('nobody handles this'));
    if (kind === 'prints') for (let i = 0; i < 2_000; i++) console.log('x'.repeat(500));
    if (kind === 'loop') spin();
    if (kind === 'fill') Array.prototype.fill.call({ length: 2 ** 52 } as unknown as unknown[], 0);
    if (kind === 'microtasks') again();
    if (kind === 'later') void Promise.resolve().then(spin);
    if (kind === 'arrays') hog();
    const map = new Map<number, number>();
    if (kind === 'map') for (let i = 0; ; i++) map.set(i, i);
    return 'done';
  }
}
