/**
 * What each tenant uses on this node, for its audit log: CPU time and memory of its processes, values it keeps, octets to and from its drivers.
 * Sampled once a second, recorded every ten and at the end. Must never: count a call (its decision is the record), or cost a call anything.
 */
import type { MonthUsage } from '../base/budget.ts';
import { NO_USAGE, usageText, type Usage } from '../base/usage-record.ts';
import type { TenantState, Worker } from './core/state.ts';

const SAMPLE_MS = 1_000;
const RECORD_MS = 10_000;
/** A process that stood still must not make an hour of memory. */
const LONGEST_SAMPLE_MS = 5_000;

interface MeteredProcess {
  cpuMicros(): number;
  memoryBytes(): number;
}

export interface MeteringOptions {
  readonly tenants: () => Iterable<TenantState>;
  readonly processes: ReadonlyMap<Worker, MeteredProcess>;
  readonly record: (tenant: TenantState, detail: string) => void;
}

export class Metering {
  readonly #options: MeteringOptions;
  readonly #used = new Map<TenantState, Usage>();
  readonly #seenMicros = new WeakMap<Worker, number>();
  /** Of the month, but for its calls, which the core counts. */
  readonly #months = new Map<TenantState, { cpuMicros: number; memoryMibMs: number }>();
  #month = '';
  #sampledMs = 0;
  #recordedMs = 0;

  constructor(options: MeteringOptions) {
    this.#options = options;
  }

  #of(tenant: TenantState): Usage {
    let used = this.#used.get(tenant);
    if (used === undefined) this.#used.set(tenant, (used = { ...NO_USAGE }));
    return used;
  }

  /** `nowMs` of the steady clock, for intervals; `wallMs` for months. */
  tick(nowMs: number, wallMs: number): void {
    if (this.#sampledMs === 0) this.#sampledMs = this.#recordedMs = nowMs;
    if (nowMs - this.#sampledMs >= SAMPLE_MS) {
      this.#sample(nowMs);
      this.#turn(wallMs);
    }
    if (nowMs - this.#recordedMs >= RECORD_MS) this.#record(nowMs, wallMs);
  }

  #sample(nowMs: number): void {
    const elapsedMs = Math.min(Math.max(0, nowMs - this.#sampledMs), LONGEST_SAMPLE_MS);
    this.#sampledMs = nowMs;
    for (const [worker, process] of this.#options.processes) {
      this.#cpu(worker, process);
      const memoryMibMs = (process.memoryBytes() / 2 ** 20) * elapsedMs;
      this.#of(worker.tenant).memoryMibMs += memoryMibMs;
      this.#ofMonth(worker.tenant).memoryMibMs += memoryMibMs;
    }
    for (const tenant of this.#options.tenants()) if (tenant.objectBytes > 0) this.#of(tenant).objectKibMs += (tenant.objectBytes / 1_024) * elapsedMs;
  }

  #cpu(worker: Worker, process: MeteredProcess): void {
    const micros = process.cpuMicros();
    const seen = this.#seenMicros.get(worker) ?? 0;
    if (micros <= seen) return;
    this.#of(worker.tenant).cpuMicros += micros - seen;
    this.#ofMonth(worker.tenant).cpuMicros += micros - seen;
    this.#seenMicros.set(worker, micros);
  }

  #ofMonth(tenant: TenantState): { cpuMicros: number; memoryMibMs: number } {
    let month = this.#months.get(tenant);
    if (month === undefined) this.#months.set(tenant, (month = { cpuMicros: 0, memoryMibMs: 0 }));
    return month;
  }

  /** A new month begins with nothing used. */
  #turn(nowMs: number): void {
    const month = new Date(nowMs).toISOString().slice(0, 7);
    if (month === this.#month) return;
    if (this.#month !== '') {
      this.#months.clear();
      for (const tenant of this.#options.tenants()) tenant.monthCalls = 0;
    }
    this.#month = month;
  }

  monthOf(tenant: TenantState, nowMs: number): MonthUsage {
    this.#turn(nowMs);
    return { month: this.#month, calls: tenant.monthCalls, ...this.#ofMonth(tenant) };
  }

  /** What was recorded before this process began: added, since calls may have come meanwhile. */
  restore(tenant: TenantState, before: MonthUsage, nowMs: number): void {
    this.#turn(nowMs);
    if (before.month !== this.#month) return;
    tenant.monthCalls += before.calls;
    const month = this.#ofMonth(tenant);
    month.cpuMicros += before.cpuMicros;
    month.memoryMibMs += before.memoryMibMs;
  }

  /** It has ended; its control group's last count is known. */
  workerEnded(worker: Worker, process: MeteredProcess): void {
    this.#cpu(worker, process);
  }

  /** All that has gathered. */
  finish(nowMs: number, wallMs: number): void {
    if (this.#sampledMs !== 0) this.#sample(nowMs);
    this.#record(nowMs, wallMs);
  }

  #record(nowMs: number, wallMs: number): void {
    this.#recordedMs = nowMs;
    for (const tenant of this.#options.tenants()) {
      const used = this.#used.get(tenant);
      const { bytesIn, bytesOut } = tenant;
      if (used === undefined && bytesIn === 0 && bytesOut === 0) continue;
      tenant.bytesIn = tenant.bytesOut = 0;
      this.#used.delete(tenant);
      this.#options.record(tenant, usageText({ ...(used ?? NO_USAGE), bytesIn, bytesOut }, this.monthOf(tenant, wallMs)));
    }
  }
}
