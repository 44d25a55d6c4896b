/** What the tests of streams run on the cluster: generators of every kind. Runs in isolates only. */
import { context, get, task } from 'bulkhead/runtime';

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms);
  });
}

export function add(a: number, b: number): number {
  return a + b;
}

export async function* countTo(n: number, pauseMs = 0): AsyncGenerator<number> {
  for (let i = 0; i < n; i++) {
    if (pauseMs > 0) await sleep(pauseMs);
    yield i;
  }
}

export function* squares(n: number): Generator<number> {
  for (let i = 0; i < n; i++) yield i * i;
  if (n === 13) throw new RangeError('thirteen is too many');
}

export function* blocks(n: number, size: number): Generator<Uint8Array> {
  for (let i = 0; i < n; i++) yield new Uint8Array(size).fill(i);
}

/** Kills nothing itself: the test does, while it goes on. Its attempt is in every item. */
export async function* slowly(n: number): AsyncGenerator<[number, number]> {
  for (let i = 0; i < n; i++) {
    await sleep(20);
    yield [i, context().attempt];
  }
}

export async function sumOfStream(n: number): Promise<number> {
  let sum = 0;
  for await (const ref of task(squares)(n)) sum += await get(task(add)(ref, 0));
  return sum;
}

export class Feed {
  #next = 0;

  async *take(n: number): AsyncGenerator<number> {
    for (let i = 0; i < n; i++) {
      await null;
      yield this.#next++;
    }
  }
}
