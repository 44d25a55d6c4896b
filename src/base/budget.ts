/**
 * Budgets: what a tenant may use in a calendar month (UTC), cluster-wide, as quotas of its tenant. Past one, new calls are refused until the month
 * ends. Pure: raylets count and refuse, the head sums what they report.
 */
import { BulkheadError } from './errors.ts';
import { quote } from './ids.ts';

export interface MonthUsage {
  /** `2026-11`. */
  month: string;
  calls: number;
  cpuMicros: number;
  memoryMibMs: number;
}

/** Names of quotas, and how much of `MonthUsage` one unit is. */
const BUDGETS: readonly { readonly name: string; readonly what: string; readonly of: (usage: MonthUsage) => number }[] = [
  { name: 'budget-calls', what: 'calls', of: (u) => u.calls },
  { name: 'budget-cpu-seconds', what: 'CPU-seconds', of: (u) => u.cpuMicros / 1e6 },
  { name: 'budget-memory-gib-hours', what: 'GiB-hours of memory', of: (u) => u.memoryMibMs / (1_024 * 3_600_000) },
];

export const BUDGET_NAMES: readonly string[] = BUDGETS.map(({ name }) => name);
const AMOUNT = /^\d{1,12}(?:\.\d{1,6})?$/;

export function checkBudget(name: string, value: string): void {
  if (!AMOUNT.test(value)) throw new BulkheadError('INVALID_ARGUMENT', `quota ${name} ${quote(value)} is not an amount for a month, such as 1000`);
}

export function hasBudget(quota: Readonly<Record<string, string>>): boolean {
  return BUDGET_NAMES.some((name) => Object.hasOwn(quota, name));
}

/** Calls that a month may have; Infinity: no budget says. */
export function callBudget(quota: Readonly<Record<string, string>>): number {
  const given = quota['budget-calls'];
  return given === undefined ? Number.POSITIVE_INFINITY : Number(given);
}

/** '' while every budget holds; else a sentence for whoever calls. */
export function overBudget(quota: Readonly<Record<string, string>>, usage: MonthUsage): string {
  for (const { name, what, of } of BUDGETS) {
    const given = Object.hasOwn(quota, name) ? quota[name] : undefined;
    if (given !== undefined && of(usage) >= Number(given)) return budgetText(name, given, what, usage.month);
  }
  return '';
}

function budgetText(name: string, given: string, what: string, month: string): string {
  return `the tenant has used up its budget of ${given} ${what} for ${month} (quota ${name}): no new calls until the month ends, unless the administrator gives more`;
}

export function overCalls(quota: number, month: string): string {
  return budgetText('budget-calls', String(quota), 'calls', month);
}
