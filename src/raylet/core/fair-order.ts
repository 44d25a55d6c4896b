/**
 * Who gets what is free when several wait: dominant resource fairness (Ghodsi et al., NSDI 2011) with usage that decays, between tenants and then
 * between the projects of one; within a tenant priority comes before that. One grant at a time goes to whoever has the least. A step costs
 * O(n log n) in the scheduling classes that wait, never in their tasks. Must never: weigh one tenant's priorities against another's.
 */
import { fits } from '../../base/resources.ts';
import type { Core } from './core.ts';
import { mayHold } from './quota-tree.ts';
import type { SchedulingClass, TenantState } from './state.ts';

/** What of a tenant waits, best first. */
interface Lane {
  readonly tenant: TenantState;
  readonly classes: SchedulingClass[];
  at: number;
  weight: number;
  promised: boolean;
}

/** What a class is ranked by: no more than its project may now, however it was defined. */
export function priorityOf(c: SchedulingClass): number {
  return Math.min(c.priority, c.job.project.quota.priority);
}

/** A binary heap: the lane that is next on top. */
class Lanes {
  readonly #items: Lane[] = [];

  push(lane: Lane): void {
    const items = this.#items;
    let at = items.length;
    items.push(lane);
    while (at > 0) {
      const up = (at - 1) >> 1;
      if (!before(lane, items[up] as Lane)) break;
      items[at] = items[up] as Lane;
      at = up;
    }
    items[at] = lane;
  }

  pop(): Lane | undefined {
    const items = this.#items;
    const top = items[0];
    const last = items.pop();
    if (last === undefined || items.length === 0) return top;
    let at = 0;
    for (;;) {
      let down = 2 * at + 1;
      if (down >= items.length) break;
      if (down + 1 < items.length && before(items[down + 1] as Lane, items[down] as Lane)) down++;
      if (!before(items[down] as Lane, last)) break;
      items[at] = items[down] as Lane;
      at = down;
    }
    items[at] = last;
    return top;
  }
}

function before(a: Lane, b: Lane): boolean {
  // What was taken from others of a tenant for one of its own does not go to a neighbour: its share stays what it was.
  if (a.promised !== b.promised) return a.promised;
  if (a.weight !== b.weight) return a.weight < b.weight;
  return a.tenant.number < b.tenant.number;
}

/** `grant` gives the class one lease, or whatever else it can have at once, and says whether there was one. What it says no to is asked no more in this step. */
export function grantFairly(core: Core, waiting: readonly SchedulingClass[], grant: (c: SchedulingClass) => boolean): void {
  const byTenant = new Map<TenantState, Lane>();
  for (const c of waiting) {
    if (c.promised > 0 && c.promisedUntilMs <= core.nowMs) c.promised = 0;
    const lane = byTenant.get(c.job.tenant);
    if (lane === undefined) byTenant.set(c.job.tenant, { tenant: c.job.tenant, classes: [c], at: 0, weight: 0, promised: false });
    else lane.classes.push(c);
  }
  const lanes = new Lanes();
  for (const lane of byTenant.values()) lanes.push(rank(core, lane));
  for (let lane = lanes.pop(); lane !== undefined; lane = lanes.pop()) {
    for (; lane.at < lane.classes.length; lane.at++) {
      const c = lane.classes[lane.at] as SchedulingClass;
      if (c.queue.length === 0) continue;
      if (!grant(c)) {
        if (c.queue.length <= c.starting) c.promised = 0;
        // What ends for it bit by bit is not for those of its tenant that would do with a bit.
        if (c.promised > 0 && !(fits(c.resources, core.available) && mayHold(c.job, c.resources))) break;
        continue;
      }
      c.servedAt = ++core.servedCounter;
      c.blockedSinceMs = 0;
      if (c.promised > 0) c.promised--;
      lanes.push(rank(core, lane));
      break;
    }
  }
}

function rank(core: Core, lane: Lane): Lane {
  lane.weight = lane.tenant.usage.weight(core.nowMs);
  if (lane.at > 0) {
    lane.classes.splice(0, lane.at);
    lane.at = 0;
  }
  if (lane.classes.length > 1) lane.classes.sort((a, b) => Number(b.promised > 0) - Number(a.promised > 0) || priorityOf(b) - priorityOf(a) || Number(a.job.project.borrows) - Number(b.job.project.borrows)
    || (a.job.project === b.job.project ? 0 : a.job.project.usage.weight(core.nowMs) - b.job.project.usage.weight(core.nowMs)) || a.servedAt - b.servedAt);
  lane.promised = (lane.classes[0]?.promised ?? 0) > 0;
  return lane;
}
