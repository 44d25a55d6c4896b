/** The head's part in sharing quotas, in the simulation: the table of src/gcs/core between messages that are lost, doubled and late, and lives of the head. */
import { QuotaShares, type ShareUpdate } from '../../src/gcs/core/quota-shares.ts';
import { amountOfLine, type TenantQuota } from '../../src/base/tenant-quota.ts';
import { reportShares, type ShareReport } from '../../src/raylet/core/quota-shares.ts';
import type { Bugs } from './canaries.ts';
import { TENANTS } from './head-machine.ts';
import { SIM_LEASE_MS } from './quota-sums.ts';
import type { SimRaylet } from './raylet-machine.ts';

/** A node that was not heard of for so long is given nothing more. */
const SILENT_MS = 40;
/** A node that is cut off from the head's shares is so for up to this long: some leases end meanwhile. */
const CUT_MS = 600;

export class ShareMachine {
  readonly #quota: TenantQuota;
  readonly #bugs: Bugs;
  readonly #instances = new Map<string, string>();
  readonly #heardMs = new Map<string, number>();
  readonly #cutUntilMs = new Map<string, number>();
  readonly #random: () => number;
  readonly #projectOfJob: (jobId: string) => string | undefined;
  #epoch = 0;
  #shares: QuotaShares;

  constructor(quota: TenantQuota, bugs: Bugs, random: () => number, projectOfJob: (jobId: string) => string | undefined, nowMs: number) {
    this.#random = random;
    this.#projectOfJob = projectOfJob;
    this.#quota = quota;
    this.#bugs = bugs;
    this.#shares = this.#begin(nowMs);
  }

  #begin(nowMs: number): QuotaShares {
    return new QuotaShares({ epoch: ++this.#epoch, leaseMs: SIM_LEASE_MS, nowMs, before: [...this.#instances.keys()], amountOf: (_tenant, line) => amountOfLine(this.#quota, line, this.#projectOfJob) });
  }

  /** The head has lost what it knew. */
  restart(nowMs: number): void {
    this.#heardMs.clear();
    this.#shares = this.#begin(nowMs);
  }

  /** What a node says of itself now, to the head that there is. */
  report(raylet: SimRaylet): ShareReport & { readonly life: number } {
    raylet.core.state.nowMs = raylet.nowMs();
    const report = reportShares(raylet.core.state, new Set(TENANTS));
    raylet.flush();
    return { ...report, life: this.#epoch };
  }

  heard(nodeId: string, instance: string, { serial, epoch, tenants, life }: ShareReport & { readonly life: number }, nowMs: number): void {
    // The stream it was said on has ended with that life of the head.
    if (life !== this.#epoch || this.#cut(nodeId, nowMs)) return;
    if (this.#instances.get(nodeId) !== instance) this.#shares.started(nodeId);
    this.#instances.set(nodeId, instance);
    this.#heardMs.set(nodeId, nowMs);
    this.#shares.report(nodeId, serial, epoch, this.#bugs.forgetsShares === true ? tenants.map((t) => ({ ...t, applied: Number.MAX_SAFE_INTEGER, lines: t.lines.map((l) => ({ ...l, held: 0 })) })) : tenants);
  }

  tell(nodeId: string, nowMs: number): ShareUpdate {
    if (this.#cut(nodeId, nowMs)) return { epoch: 0, answered: 0, leaseMs: 0, shares: [] };
    return this.#shares.take(nodeId, nowMs, true);
  }

  install(raylet: SimRaylet, { epoch, answered, leaseMs, shares }: ShareUpdate): void {
    if (epoch !== this.#epoch || this.#cut(raylet.core.state.config.nodeId, raylet.nowMs())) return;
    raylet.core.state.nowMs = raylet.nowMs();
    raylet.core.takeShares(epoch, answered, leaseMs, shares);
  }

  #cut(nodeId: string, nowMs: number): boolean {
    return (this.#cutUntilMs.get(nodeId) ?? 0) > nowMs;
  }

  /** `faulty`: nodes may be cut off. */
  tick(nowMs: number, faulty: boolean): void {
    for (const nodeId of faulty ? this.#heardMs.keys() : []) if (!this.#cut(nodeId, nowMs) && this.#random() < 0.02) this.#cutUntilMs.set(nodeId, nowMs + Math.floor(this.#random() * CUT_MS));
    if (!faulty) this.#cutUntilMs.clear();
    for (const [nodeId, heardMs] of this.#heardMs) if (nowMs - heardMs > SILENT_MS) this.#shares.silent(nodeId);
    this.#shares.tick(nowMs);
  }
}
