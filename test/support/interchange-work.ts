/** What Python programs of the tests call, and what calls Python: runs in isolates only. */
import { ArrowTable, get, NdArray, python } from 'bulkhead/runtime';

export function echo(value: unknown): unknown {
  return value;
}

/** What a value is here, in words. */
export function kind(value: unknown): string {
  if (value instanceof NdArray) return `NdArray ${value.shape.join('x')} ${value.order} ${value.data.constructor.name}`;
  if (value instanceof ArrowTable) return 'ArrowTable';
  if (value === null || typeof value !== 'object') return typeof value === 'object' ? 'null' : typeof value;
  return (Object.getPrototypeOf(value) as { constructor: { name: string } }).constructor.name;
}

export function total(values: Float64Array): number {
  return values.reduce((sum, n) => sum + n, 0);
}

export function ramp(n: number): Float64Array {
  return Float64Array.from({ length: n }, (_, i) => i);
}

export function* count(n: number): Generator<number> {
  for (let i = 0; i < n; i++) yield i;
}

export async function throughPython(name: string, ...args: unknown[]): Promise<unknown> {
  return await get(python(name)(...args));
}

export function fail(message: string): never {
  throw new RangeError(message);
}

/** Fails with a stack that is all text of the caller's. */
export function failAs(stack: string): never {
  throw Object.assign(new Error('as told'), { stack });
}

export class Tally {
  #sum = 0;

  add(n: number): number {
    return (this.#sum += n);
  }
}
