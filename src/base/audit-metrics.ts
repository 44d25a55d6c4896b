/** Counts of decisions and events, kept by the audit logs anyway, as metrics. */
import type { MetricsText } from './metrics-text.ts';

/** One log since it began, over restarts; '' is the cluster's own. */
export interface AuditCounts {
  readonly tenant: string;
  readonly records: number;
  readonly actions: readonly (readonly [action: string, allowed: number, denied: number])[];
  readonly events: readonly (readonly [event: string, count: number])[];
}

export function auditMetrics(m: MetricsText, { tenant, records, actions, events }: AuditCounts): void {
  const of = tenant === '' ? {} : { tenant };
  m.counter('bulkhead_audit_records_total', 'Records in the audit log that are on disk; without a tenant: the cluster’s own log.', records, of);
  for (const [action, allowed, denied] of actions) {
    m.counter('bulkhead_decisions_total', 'Decisions by action and outcome, each an audit record or part of one.', allowed, { ...of, action, outcome: 'allow' });
    m.counter('bulkhead_decisions_total', '', denied, { ...of, action, outcome: 'deny' });
  }
  for (const [event, count] of events) m.counter('bulkhead_events_total', 'Facts of lifetimes: workers, actors, failed tasks, identities.', count, { ...of, event });
}
