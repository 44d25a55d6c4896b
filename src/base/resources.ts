/**
 * Resource vectors in fixed point: 1 unit = 1/10,000 of a cpu or custom resource, memory in bytes. Integers, so that
 * taking and giving back is exact (floating point would leak 1e-17 of a cpu per task).
 */
import { BulkheadError } from './errors.ts';
import { quote } from './ids.ts';

export const UNITS_PER_CPU = 10_000;

export interface ResourceVector {
  readonly cpuUnits: number;
  readonly memoryBytes: number;
  /** Custom resources by name, in units; most requests have none. */
  readonly custom: Readonly<Record<string, number>> | undefined;
}

export const NO_RESOURCES: ResourceVector = Object.freeze({ cpuUnits: 0, memoryBytes: 0, custom: undefined });

const MEMORY = /^(\d{1,15}(?:\.\d{1,3})?)\s*(B|KiB|MiB|GiB|TiB|KB|MB|GB)?$/;
const MEMORY_FACTOR: Readonly<Record<string, number>> = { B: 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40, KB: 1e3, MB: 1e6, GB: 1e9 };

/** Bytes from `'64MiB'`, `'1.5GiB'`, `'1000'` or a number of bytes. Throws INVALID_ARGUMENT. */
export function parseMemory(value: unknown): number {
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0) return value;
  const match = typeof value === 'string' ? MEMORY.exec(value) : null;
  if (match === null) throw new BulkheadError('INVALID_ARGUMENT', `memory ${quote(String(value))} is not valid: give bytes, or a number with B, KiB, MiB, GiB, KB, MB or GB`);
  return Math.round(Number(match[1]) * (MEMORY_FACTOR[match[2] ?? 'B'] ?? 1));
}

/** Units from a fractional amount; at most four decimals, as the fixed point has. Throws INVALID_ARGUMENT. */
export function parseUnits(what: string, value: unknown): number {
  if (typeof value !== 'number' || !Number.isFinite(value) || value < 0 || value > 1e6) throw new BulkheadError('INVALID_ARGUMENT', `${what} ${quote(String(value))} is not valid: give a number from 0 to 1000000`);
  const units = Math.round(value * UNITS_PER_CPU);
  if (Math.abs(units - value * UNITS_PER_CPU) > 1e-6) throw new BulkheadError('INVALID_ARGUMENT', `${what} ${value} has more than four decimals`);
  return units;
}

/** For people and records: `4 cpus, 1024 bytes of memory, 2 gpu`; amounts of 0 are left out. */
export function describeResources(r: ResourceVector): string {
  const parts = [];
  if (r.cpuUnits > 0) parts.push(`${r.cpuUnits / UNITS_PER_CPU} cpus`);
  if (r.memoryBytes > 0) parts.push(`${r.memoryBytes} bytes of memory`);
  for (const name of Object.keys(r.custom ?? {}).sort()) parts.push(`${(r.custom?.[name] ?? 0) / UNITS_PER_CPU} ${name}`);
  return parts.length === 0 ? 'nothing' : parts.join(', ');
}

export function fits(request: ResourceVector, available: ResourceVector): boolean {
  if (request.cpuUnits > available.cpuUnits || request.memoryBytes > available.memoryBytes) return false;
  for (const name in request.custom) if ((request.custom[name] ?? 0) > (available.custom?.[name] ?? 0)) return false;
  return true;
}

function combine(a: ResourceVector, b: ResourceVector, sign: 1 | -1): ResourceVector {
  let custom = a.custom;
  if (b.custom !== undefined) {
    const sum: Record<string, number> = { ...a.custom };
    for (const name of Object.keys(b.custom)) sum[name] = (sum[name] ?? 0) + sign * (b.custom[name] ?? 0);
    custom = sum;
  }
  return { cpuUnits: a.cpuUnits + sign * b.cpuUnits, memoryBytes: a.memoryBytes + sign * b.memoryBytes, custom };
}

export function sameResources(a: ResourceVector, b: ResourceVector): boolean {
  return a === b || (a.cpuUnits === b.cpuUnits && a.memoryBytes === b.memoryBytes && (a.custom === b.custom || JSON.stringify(a.custom) === JSON.stringify(b.custom)));
}

export function add(a: ResourceVector, b: ResourceVector): ResourceVector {
  return combine(a, b, 1);
}

export function subtract(a: ResourceVector, b: ResourceVector): ResourceVector {
  return combine(a, b, -1);
}
