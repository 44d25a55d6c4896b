/** What the bench runs on the cluster: the tasks and actors of `ray microbenchmark`, of the same size and answer. */
import { get, put, task, type ActorHandle, type ObjectRef } from 'bulkhead/runtime';

const OK = new Uint8Array([111, 107]);

export function smallValue(): Uint8Array {
  return OK;
}

export async function* smallValues(n: number): AsyncGenerator<Uint8Array> {
  for (let i = 0; i < n; i++) yield OK;
}

/** Keeps its cpu for so long. */
export async function block(ms: number): Promise<number> {
  await new Promise<void>((resolve) => {
    setTimeout(() => resolve(), ms);
  });
  return ms;
}

export function size(bytes: Uint8Array): number {
  return bytes.length;
}

export async function smallValueBatch(n: number): Promise<number> {
  const remote = task(smallValue);
  await get(Array.from({ length: n }, () => remote()));
  return 0;
}

export async function putSmall(n: number): Promise<number> {
  for (let i = 0; i < n; i++) await put(0);
  return 0;
}

export async function putLarge(times: number, bytes: number): Promise<number> {
  for (let i = 0; i < times; i++) await put(new Uint8Array(bytes));
  return 0;
}

/** The refs as an object of its own: what holds it, holds them. */
export async function manyRefs(n: number): Promise<ObjectRef<number>[]> {
  return Promise.all(Array.from({ length: n }, () => put(1)));
}

export class Actor {
  smallValue(): Uint8Array {
    return OK;
  }

  smallValueArg(_x: unknown): Uint8Array {
    return OK;
  }

  async smallValueBatch(n: number): Promise<number> {
    return smallValueBatch(n);
  }
}

export class AsyncActor {
  async smallValue(): Promise<Uint8Array> {
    return OK;
  }

  async smallValueArg(_x: unknown): Promise<Uint8Array> {
    return OK;
  }
}

export class Idle {
  #n = 0;

  ping(): Uint8Array {
    this.#n++;
    return OK;
  }
}

export async function actorCalls(actors: readonly ActorHandle<Actor>[], n: number): Promise<number> {
  await get(Array.from({ length: n }, (_, i) => (actors[i % actors.length] as ActorHandle<Actor>).smallValue()));
  return 0;
}
