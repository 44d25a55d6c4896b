/**
 * What tenants with a budget have used this month, as nodes report it, and which of them are over it. Memory only, like all that nodes report:
 * a node tells its sums again with each new stream. A node that is away keeps its last sum.
 */
import { overBudget, type MonthUsage } from '../../base/budget.ts';

export class Budgets {
  /** By tenant and node. */
  readonly #reported = new Map<string, Map<string, MonthUsage>>();
  readonly #over = new Map<string, string>();

  /** '' while the tenant may call. */
  overOf(tenant: string): string {
    return this.#over.get(tenant) ?? '';
  }

  /** True when what raylets must be told has changed. */
  report(nodeId: string, tenant: string, quota: Readonly<Record<string, string>>, usage: MonthUsage): boolean {
    let nodes = this.#reported.get(tenant);
    if (nodes === undefined) this.#reported.set(tenant, (nodes = new Map()));
    const before = nodes.get(nodeId);
    // A sum of one month only grows; an older month is over.
    if (before !== undefined && before.month > usage.month) return false;
    nodes.set(nodeId, before !== undefined && before.month === usage.month ? { month: usage.month, calls: Math.max(before.calls, usage.calls), cpuMicros: Math.max(before.cpuMicros, usage.cpuMicros), memoryMibMs: Math.max(before.memoryMibMs, usage.memoryMibMs) } : usage);
    return this.decide(tenant, quota, usage.month);
  }

  /** Anew, by what is known: the quota may have changed. True as `report`. */
  decide(tenant: string, quota: Readonly<Record<string, string>>, month: string): boolean {
    const sum: MonthUsage = { month, calls: 0, cpuMicros: 0, memoryMibMs: 0 };
    for (const of of this.#reported.get(tenant)?.values() ?? []) {
      if (of.month !== month) continue;
      sum.calls += of.calls;
      sum.cpuMicros += of.cpuMicros;
      sum.memoryMibMs += of.memoryMibMs;
    }
    const over = overBudget(quota, sum);
    if (over === this.overOf(tenant)) return false;
    if (over === '') this.#over.delete(tenant);
    else this.#over.set(tenant, over);
    return true;
  }
}
