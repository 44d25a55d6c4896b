/**
 * What a tenant used on a node since the record before, as the detail of a lifecycle record: integers, so that sums are exact. Calls are not
 * in it: each is a decision in the same log, and counted there.
 */
import type { MonthUsage } from './budget.ts';

/** Name of the event. */
export const USAGE_EVENT = 'usage.metered';
/** Ends the detail of decisions about calls that another node had decided first and forwarded: counted there. */
export const FORWARDED = ' forwarded';
/** Ends the detail of decisions about tasks that run again because their results were lost: the raylet's doing, as tries after a failure are. */
export const RECONSTRUCTED = ' reconstructed';
/** Decisions that are calls, where they were allowed. */
export const CALL_ACTIONS: readonly string[] = ['task.submit', 'actor.create', 'actor.call'];

export interface Usage {
  /** CPU time of the tenant's processes, as their control groups counted it. */
  cpuMicros: number;
  /** Memory of those, times time. */
  memoryMibMs: number;
  /** Values held, times time. */
  objectKibMs: number;
  /** Between drivers and this node. */
  bytesIn: number;
  bytesOut: number;
}

export const NO_USAGE: Usage = { cpuMicros: 0, memoryMibMs: 0, objectKibMs: 0, bytesIn: 0, bytesOut: 0 };

/** Sums of the month with it: where a raylet goes on after a restart. */
export function usageText(u: Usage, month?: MonthUsage): string {
  const sums = month === undefined ? '' : ` month=${month.month} calls=${month.calls} cpuMicros=${Math.round(month.cpuMicros)} memoryMibMs=${Math.round(month.memoryMibMs)}`;
  return `cpuMicros=${Math.round(u.cpuMicros)} memoryMibMs=${Math.round(u.memoryMibMs)} objectKibMs=${Math.round(u.objectKibMs)} bytesIn=${u.bytesIn} bytesOut=${u.bytesOut}${sums}`;
}

const TEXT = /^(?:insecure-dev )?cpuMicros=(\d{1,15}) memoryMibMs=(\d{1,15}) objectKibMs=(\d{1,15}) bytesIn=(\d{1,15}) bytesOut=(\d{1,15})(?: month=(\d{4}-\d\d) calls=(\d{1,15}) cpuMicros=(\d{1,15}) memoryMibMs=(\d{1,15}))?$/;

/** Undefined when it is no such text. */
export function parseUsage(detail: string): Usage | undefined {
  const match = TEXT.exec(detail);
  if (match === null) return undefined;
  const [cpuMicros = 0, memoryMibMs = 0, objectKibMs = 0, bytesIn = 0, bytesOut = 0] = match.slice(1, 6).map(Number);
  return { cpuMicros, memoryMibMs, objectKibMs, bytesIn, bytesOut };
}

/** The sums of the month in it; undefined: there are none. */
export function parseMonth(detail: string): MonthUsage | undefined {
  const [, , , , , , month, calls, cpuMicros, memoryMibMs] = TEXT.exec(detail) ?? [];
  return month === undefined ? undefined : { month, calls: Number(calls), cpuMicros: Number(cpuMicros), memoryMibMs: Number(memoryMibMs) };
}
