/**
 * The numbers of a raylet for Prometheus: read from its state when they are asked for, so that calls count nothing. A caller of a tenant is
 * given that tenant's series only; the cluster's administrator and monitor are given the node's and every tenant's. Must never: show a
 * tenant what another has, or how busy it keeps the node.
 */
import { auditMetrics, type AuditCounts } from '../base/audit-metrics.ts';
import { MetricsText } from '../base/metrics-text.ts';
import { UNITS_PER_CPU } from '../base/resources.ts';
import type { Metrics } from '../rpc/generated/bulkhead/v1/raylet_pb.js';
import { processMetrics, type Implementation } from '../rpc/rpc.ts';
import { DURATION_BUCKETS } from './core/call-history.ts';
import { CHANNEL_KIND, type TenantState, type Worker } from './core/state.ts';
import type { Raylet } from './raylet.ts';

export interface MetricsContext {
  readonly raylet: Raylet;
  readonly nodeId: string;
  readonly version: string;
  readonly connections: () => number;
  readonly audit: () => Iterable<AuditCounts>;
}

/** Seconds. Durations are whole milliseconds, so bucket i holds those of less than 2^i ms. */
const BOUNDS = Array.from({ length: DURATION_BUCKETS - 1 }, (_, i) => 2 ** i / 1_000);

interface Load {
  workers: number;
  actors: number;
  running: number;
  queued: number;
  memoryBytes: number;
  cpuMicros: number;
}

/** One walk over the processes and queues of the node, for all tenants. */
function loads(raylet: Raylet, only: TenantState | undefined): Map<TenantState, Load> {
  const core = raylet.core.state;
  const found = new Map<TenantState, Load>();
  const of = (tenant: TenantState): Load => {
    let load = found.get(tenant);
    if (load === undefined) found.set(tenant, (load = { workers: 0, actors: 0, running: 0, queued: 0, memoryBytes: 0, cpuMicros: 0 }));
    return load;
  };
  const add = (worker: Worker): void => {
    const load = of(worker.tenant);
    load.workers++;
    for (const slot of worker.slots.values()) {
      load.running += slot.execs.size;
      if (slot.actor !== undefined) load.actors++;
    }
    const process = raylet.processes.get(worker);
    load.memoryBytes += process?.memoryBytes() ?? 0;
    load.cpuMicros += process?.cpuMicros() ?? 0;
  };
  for (const worker of core.workers.values()) if (only === undefined || worker.tenant === only) add(worker);
  for (const c of core.classes) if (only === undefined || c.job.tenant === only) of(c.job.tenant).queued += c.queue.length;
  return found;
}

function tenantMetrics(m: MetricsText, tenant: TenantState, load: Load | undefined): void {
  const of = { tenant: tenant.name };
  const limit = (n: number): number => (Number.isFinite(n) ? n : Number.POSITIVE_INFINITY);
  let drivers = 0;
  for (const job of tenant.jobs) for (const channel of job.channels) if (channel.kind === CHANNEL_KIND.DRIVER) drivers++;
  const { history, quota } = tenant;
  m.counter('bulkhead_calls_ended_total', 'Tasks, actor creations and actor calls that ended on this node, or that it had others run.', history.total - history.failed, { ...of, outcome: 'finished' });
  m.counter('bulkhead_calls_ended_total', '', history.failed, { ...of, outcome: 'failed' });
  m.histogram('bulkhead_call_wait_seconds', 'From the submission of a call until it began to run.', BOUNDS, history.waited, history.waitedMs / 1_000, of);
  m.histogram('bulkhead_call_run_seconds', 'From the beginning of a call until its end.', BOUNDS, history.ran, history.ranMs / 1_000, of);
  m.gauge('bulkhead_calls_running', 'Calls that isolates have been given.', load?.running ?? 0, of);
  m.gauge('bulkhead_tasks_queued', 'Tasks that wait for resources or a worker.', load?.queued ?? 0, of);
  m.gauge('bulkhead_actors', 'Actors that live on this node.', load?.actors ?? 0, of);
  m.gauge('bulkhead_workers', 'Worker processes.', load?.workers ?? 0, of);
  m.gauge('bulkhead_worker_memory_bytes', 'Memory of the worker processes, by their control groups.', load?.memoryBytes ?? 0, of);
  m.gauge('bulkhead_worker_cpu_seconds', 'CPU time of the worker processes that run now.', (load?.cpuMicros ?? 0) / 1e6, of);
  m.gauge('bulkhead_drivers', 'Drivers that are attached to this node.', drivers, of);
  m.gauge('bulkhead_objects', 'Objects that this node keeps account of.', tenant.entries, of);
  m.gauge('bulkhead_object_bytes', 'Values held on this node.', tenant.objectBytes, of);
  m.gauge('bulkhead_cpus_used', 'CPUs that tasks and actors hold.', tenant.cpuUnitsInUse / UNITS_PER_CPU, of);
  m.gauge('bulkhead_memory_reserved_bytes', 'Memory that tasks and actors hold.', tenant.memoryBytesInUse, of);
  m.gauge('bulkhead_quota_cpus', 'CPUs that the tenant may hold on this node, its share of the quota; +Inf: no quota.', limit(quota.cpuUnits / UNITS_PER_CPU), of);
  m.gauge('bulkhead_quota_memory_bytes', 'Memory that the tenant may hold on this node, its share of the quota; +Inf: no quota.', limit(quota.memoryBytes), of);
  m.gauge('bulkhead_quota_object_bytes', 'Values that the tenant may hold on this node, its share of the quota; +Inf: no quota.', limit(quota.objectBytes), of);
}

function nodeMetrics(m: MetricsText, { raylet, version, connections }: MetricsContext): void {
  const core = raylet.core.state;
  const { total } = core.config;
  processMetrics(m, 'raylet', { version, connections: connections() });
  m.gauge('bulkhead_node_cpus', 'CPUs of the node.', total.cpuUnits / UNITS_PER_CPU);
  m.gauge('bulkhead_node_cpus_free', 'CPUs that nothing holds; below 0 when more run than fit, after they waited.', core.available.cpuUnits / UNITS_PER_CPU);
  m.gauge('bulkhead_node_memory_bytes', 'Memory of the node that tasks and actors may hold.', total.memoryBytes);
  m.gauge('bulkhead_node_memory_free_bytes', 'Memory that nothing holds.', core.available.memoryBytes);
  for (const name of Object.keys(total.custom ?? {})) {
    m.gauge('bulkhead_node_resources', 'Custom resources of the node.', (total.custom?.[name] ?? 0) / UNITS_PER_CPU, { resource: name });
    m.gauge('bulkhead_node_resources_free', 'Custom resources that nothing holds.', (core.available.custom?.[name] ?? 0) / UNITS_PER_CPU, { resource: name });
  }
  m.gauge('bulkhead_node_object_memory_bytes', 'Memory that objects take.', core.fileBytes);
  m.gauge('bulkhead_node_object_memory_limit_bytes', 'Memory that objects may take before some go to disk.', core.config.objectMemoryBytes);
  m.gauge('bulkhead_node_spilled_bytes', 'Disk that objects take.', core.spilledBytes);
  m.gauge('bulkhead_node_spill_limit_bytes', 'Disk that objects may take.', core.config.spillBytes);
  m.gauge('bulkhead_node_workers', 'Worker processes of all tenants.', core.workers.size);
  m.gauge('bulkhead_node_workers_limit', 'Worker processes that the node may have.', core.config.maxWorkers);
  m.gauge('bulkhead_node_peers', 'Other nodes that this one knows.', core.nodes.size);
  m.gauge('bulkhead_policy_version', 'Version of the policy in force here.', core.config.decisions.version);
}

export function metricsService(context: MetricsContext): Implementation<typeof Metrics> {
  const { raylet } = context;
  return {
    async read({ principal }, request) {
      const m = new MetricsText();
      const tenants = [...raylet.core.state.tenants.values()].filter((t) => t.active);
      if (request.tenant !== '') {
        const tenant = tenants.find((t) => t.name === request.tenant);
        if (tenant !== undefined) tenantMetrics(m, tenant, loads(raylet, tenant).get(tenant));
        for (const counts of context.audit()) if (tenant !== undefined && counts.tenant === tenant.name) auditMetrics(m, counts);
        return { text: m.text() };
      }
      nodeMetrics(m, context);
      // Whoever else platform policy lets see the node: not its tenants.
      const operator = principal.kind === 'system';
      if (operator) {
        const all = loads(raylet, undefined);
        for (const tenant of tenants) tenantMetrics(m, tenant, all.get(tenant));
      }
      for (const counts of context.audit()) if (operator || counts.tenant === '') auditMetrics(m, counts);
      return { text: m.text() };
    },
  };
}
