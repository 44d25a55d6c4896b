/** What every process of the cluster tells about itself, under the names that Prometheus' own clients use. Must never: name a tenant. */
import { readdirSync } from 'node:fs';
import { performance } from 'node:perf_hooks';
import type { MetricsText } from '../base/metrics-text.ts';

const STARTED_SECONDS = performance.timeOrigin / 1_000;

export function processMetrics(m: MetricsText, component: 'head' | 'raylet', facts: { readonly version: string; readonly connections: number }): void {
  const cpu = process.cpuUsage();
  const memory = process.memoryUsage();
  m.gauge('bulkhead_build_info', 'Version of the component; always 1.', 1, { component, version: facts.version, runtime: process.version });
  m.gauge('process_start_time_seconds', 'When the process started, seconds since 1970.', STARTED_SECONDS);
  m.counter('process_cpu_seconds_total', 'User and system CPU time of the process.', (cpu.user + cpu.system) / 1e6);
  m.gauge('process_resident_memory_bytes', 'Resident memory of the process.', memory.rss);
  m.gauge('bulkhead_heap_used_bytes', 'Memory in use in the JavaScript heap of the process.', memory.heapUsed);
  m.gauge('process_open_fds', 'Open file descriptors.', readdirSync('/proc/self/fd').length);
  m.counter('bulkhead_event_loop_busy_seconds_total', 'Time that the event loop had something to do.', performance.eventLoopUtilization().active / 1_000);
  m.gauge('bulkhead_connections', 'Open mTLS connections to the component.', facts.connections);
}
