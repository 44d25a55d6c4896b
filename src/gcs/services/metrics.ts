/**
 * The numbers of the head for Prometheus, read from its tables when they are asked for. A caller of a tenant is given that tenant's series
 * only. Must never: show a tenant what another has.
 */
import { auditMetrics } from '../../base/audit-metrics.ts';
import { MetricsText } from '../../base/metrics-text.ts';
import { UNITS_PER_CPU } from '../../base/resources.ts';
import type { Metrics } from '../../rpc/generated/bulkhead/v1/raylet_pb.js';
import { processMetrics, type Implementation } from '../../rpc/rpc.ts';
import type { HeadContext } from '../ports.ts';
import { isSystem } from './access.ts';

function jobMetrics(m: MetricsText, { head }: HeadContext, tenant: string): void {
  m.gauge('bulkhead_jobs_running', 'Jobs that have not ended.', head.jobs.running(tenant).length, { tenant });
}

function clusterMetrics(m: MetricsText, { head, pki, policies }: HeadContext): void {
  const nodes = head.nodes.all();
  const tenants = head.tenants.all();
  for (const state of ['alive', 'dead']) m.gauge('bulkhead_nodes', 'Nodes by state.', nodes.filter((n) => n.state === state).length, { state });
  for (const node of nodes.filter((n) => n.state === 'alive')) {
    m.gauge('bulkhead_cluster_node_cpus', 'CPUs of a node that is alive.', node.total.cpuUnits / UNITS_PER_CPU, { node: node.id });
    m.gauge('bulkhead_cluster_node_cpus_free', 'CPUs that nothing holds, as the node last reported.', node.available.cpuUnits / UNITS_PER_CPU, { node: node.id });
    m.gauge('bulkhead_cluster_node_queued_tasks', 'Tasks that wait for room on a node, as it last reported.', node.queuedTasks, { node: node.id });
  }
  for (const state of ['active', 'deleted']) m.gauge('bulkhead_tenants', 'Tenants by state.', tenants.filter((t) => t.state === state).length, { state });
  m.gauge('bulkhead_policy_version', 'Version of the policy in force.', policies.current?.version ?? 0);
  m.counter('bulkhead_svids_issued_total', 'X.509-SVIDs that the authority has issued.', head.issuance.svids);
  m.gauge('bulkhead_revocations', 'Identities and certificates that are revoked.', head.revocations.all().length);
  for (const a of pki.authorities()) m.gauge('bulkhead_authority_expiry_seconds', 'When a certificate of the authority ends, seconds since 1970.', a.notAfterMs / 1_000, { kind: a.kind, serial: a.serial });
}

export function metricsService(context: HeadContext, connections: () => number): Implementation<typeof Metrics> {
  return {
    async read({ principal }, request) {
      const m = new MetricsText();
      const whole = request.tenant === '';
      if (whole) {
        processMetrics(m, 'head', { version: context.version, connections: connections() });
        clusterMetrics(m, context);
      }
      // Whoever else platform policy lets see the head: not its tenants.
      const shown = (tenant: string): boolean => (whole ? tenant === '' || isSystem(principal) : tenant === request.tenant);
      for (const tenant of context.head.tenants.all()) if (tenant.state === 'active' && shown(tenant.name)) jobMetrics(m, context, tenant.name);
      for (const counts of context.audit.counts()) if (shown(counts.tenant)) auditMetrics(m, counts);
      return { text: m.text() };
    },
  };
}
