/** What the tests of task options and of context() run on the cluster. Runs in isolates only. */
import { BulkheadError, context, get, task, type RuntimeContext } from 'bulkhead/runtime';

export class TransientError extends Error {
  override name = 'TransientError';
}
export class Timeout extends TransientError {}

/** Fails on its first `failures` tries. */
export function flaky(failures: number, kind: 'transient' | 'sub' | 'other' | 'object'): number {
  const { attempt } = context();
  if (attempt >= failures) return attempt;
  if (kind === 'transient') throw new TransientError('not yet');
  if (kind === 'sub') throw new Timeout('not yet');
  if (kind === 'object') throw { name: 'TransientError' };
  throw new TypeError('never');
}

export function facts(): RuntimeContext {
  return { ...context() };
}

export function tamper(): string[] {
  const found = context() as unknown as { tenant: string; resources: Record<string, number> };
  const said = [Reflect.set(found, 'tenant', 'globex'), Reflect.set(found.resources, 'cpus', 64), Reflect.set(found, 'more', 1)].map(String);
  return [...said, context().tenant, String(context().resources['cpus'])];
}

export function nap(ms: number): Promise<string> {
  return new Promise((resolve) => {
    setTimeout(() => resolve(context().taskId), ms);
  });
}

/** A task that submits under a key: however often it runs, that one runs once. */
export async function onceBelow(): Promise<string> {
  return get(task(nap, { cpus: 0, idempotencyKey: 'below' })(5));
}

async function codeOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
    return 'ok';
  } catch (error) {
    return error instanceof BulkheadError ? error.code : String(error);
  }
}

/** How calls ended that were made all at once. */
export async function spread(n: number): Promise<string[]> {
  const napping = task(nap, { cpus: 0 });
  return Promise.all(Array.from({ length: n }, () => napping(50)).map((ref) => codeOf(get(ref))));
}

/** How deep it came. */
export async function descend(limit: number): Promise<number> {
  if (limit === 0) return 0;
  try {
    return 1 + (await get(task(descend, { cpus: 0 })(limit - 1)));
  } catch (error) {
    if (error instanceof BulkheadError && error.code === 'RESOURCE_EXHAUSTED') return 0;
    throw error;
  }
}

export class Teller {
  facts(): RuntimeContext {
    return { ...context() };
  }
}
