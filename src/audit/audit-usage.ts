/**
 * What a tenant used on this node, from its audit log alone: calls are the decisions that allowed them, the rest is the sum of usage records.
 * By hours, in integers. Must never: count what is not on disk, or a call that another node counts.
 */
import { CALL_ACTIONS, FORWARDED, NO_USAGE, parseUsage, RECONSTRUCTED, USAGE_EVENT, type Usage } from '../base/usage-record.ts';
import type { AuditStore } from './audit-store.ts';
import { tail } from './audit-query.ts';

const HOUR_MS = 3_600_000;

export interface UsageHour extends Usage {
  readonly startMs: number;
  /** By action. */
  readonly calls: ReadonlyMap<string, number>;
}

/** Hours with usage in [fromMs, toMs), oldest first. `toMs` 0: until now. Reads the whole log; ends with `signal`. */
export async function usageByHour(store: AuditStore, tenant: string, fromMs: number, toMs: number, signal: AbortSignal): Promise<UsageHour[]> {
  const hours = new Map<number, UsageHour & { calls: Map<string, number> }>();
  const at = (timeMs: number): UsageHour & { calls: Map<string, number> } => {
    const startMs = timeMs - (timeMs % HOUR_MS);
    let hour = hours.get(startMs);
    if (hour === undefined) hours.set(startMs, (hour = { ...NO_USAGE, startMs, calls: new Map() }));
    return hour;
  };
  if (!store.has(tenant)) return [];
  for await (const { record } of tail(store, tenant, { from: 0, fromMs, ...(toMs === 0 ? {} : { toMs }), signal })) {
    if (record.type === 'decision') {
      if (!record.allow || !CALL_ACTIONS.includes(record.action) || record.detail.endsWith(FORWARDED) || record.detail.endsWith(RECONSTRUCTED)) continue;
      const { calls } = at(record.timeMs);
      calls.set(record.action, (calls.get(record.action) ?? 0) + record.count);
    } else if (record.event === USAGE_EVENT) {
      const usage = parseUsage(record.detail);
      if (usage === undefined) continue;
      const hour = at(record.timeMs);
      for (const key of Object.keys(NO_USAGE) as (keyof Usage)[]) hour[key] += usage[key];
    }
  }
  return [...hours.values()].sort((a, b) => a.startMs - b.startMs);
}
