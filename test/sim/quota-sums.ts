/**
 * Quotas over all nodes of a simulated cluster: after each step the sum of what nodes use, or may use where that is more, is within each quota; and a node
 * that has more than its share (it was called back, or its lease is over) never gets more still. What is allowed beyond a quota is what runs on a node that
 * heard nothing of the head for a lease.
 */
import { CHANNEL_KIND, TASK_STATE, type TenantState } from '../../src/raylet/core/state.ts';
import { liveTasks } from './invariants.ts';
import type { SimRaylet } from './raylet-machine.ts';

/** So long a share holds without the head, in these runs. */
export const SIM_LEASE_MS = 120;

const MEASURES: readonly { readonly line: string; readonly quota: 'cpuUnits' | 'tasks' | 'actors' | 'inFlight'; readonly use: (tenant: TenantState, rebuilt: number, restarted: number) => number }[] = [
  { line: 'cpus', quota: 'cpuUnits', use: (t) => t.cpuUnitsInUse },
  // A lost result is computed again whatever the quota says: the call was let in once.
  { line: 'tasks', quota: 'tasks', use: (t, rebuilt) => t.tasks - rebuilt },
  { line: 'actors', quota: 'actors', use: (t) => t.actors },
  // So is the constructor of an actor that lives again.
  { line: 'inflight', quota: 'inFlight', use: (t, rebuilt, restarted) => t.inFlight - rebuilt - restarted },
];

interface Seen {
  use: number;
  share: number;
  /** What it used when its lease ended, as long as it has more than its share. */
  overrun: number;
}

export class QuotaSums {
  readonly #seen = new WeakMap<SimRaylet, Map<string, Seen>>();

  check(raylets: readonly SimRaylet[]): void {
    const sums = new Map<string, { sum: number; most: number; text: string[] }>();
    for (const raylet of raylets) {
      if (!raylet.alive) continue;
      const core = raylet.core.state;
      let seen = this.#seen.get(raylet);
      if (seen === undefined) this.#seen.set(raylet, (seen = new Map()));
      for (const tenant of core.tenants.values()) {
        const lapsed = tenant.shares.granted.size === 0 && raylet.nowMs() >= core.shares.leaseUntilMs;
        const again = new Set([...tenant.lineages].map((lineage) => lineage.args));
        const rebuilt = again.size === 0 ? 0 : [...liveTasks(raylet)].filter((task) => task.channel.job.tenant === tenant && again.has(task.batch)).length;
        const restarted = tenant.nominal.inFlight === Number.POSITIVE_INFINITY ? 0 : [...tenant.jobs].flatMap((job) => [...job.actors]).filter((actor) => actor.restarts > 0 && actor.creation.state !== TASK_STATE.DONE && actor.creation.channel.kind !== CHANNEL_KIND.PEER).length;
        for (const { line, quota, use: useOf } of MEASURES) {
          const most = tenant.nominal[quota];
          // Tasks that waited in an isolate take their cpus back at once, as in Ray.
          if (most === Number.POSITIVE_INFINITY || (line === 'cpus' && raylets.some((r) => r.waited))) continue;
          const key = `${tenant.name} ${line}`;
          const use = useOf(tenant, rebuilt, restarted);
          const share = lapsed ? 0 : tenant.quota[quota];
          const before = seen.get(key) ?? { use: 0, share: 0, overrun: 0 };
          if (use > before.use && use > Math.max(share, before.share)) throw new Error(`quotas: node ${raylet.number} lets ${tenant.name} have ${use} of ${line}, after ${before.use}, and its share is ${share}`);
          const overrun = use <= share ? 0 : lapsed ? use : Math.min(use, before.overrun);
          seen.set(key, { use, share, overrun });
          const sum = sums.get(key) ?? { sum: 0, most, text: [] };
          sum.sum += Math.max(use, share) - overrun;
          sum.text.push(`${use} (${share}) on node ${raylet.number}`);
          sums.set(key, sum);
        }
      }
    }
    for (const [key, { sum, most, text }] of sums) if (sum > most) throw new Error(`quotas: all nodes together use, or may use, ${sum} of the ${most} of ${key}: ${text.join(', ')}`);
  }
}
