/**
 * Takes back, within one tenant, what somebody else of it has more right to: for a task of higher priority, or for a project that wants what it lent.
 * Only tasks that may be tried again are stopped, after their claimant has waited; they run again without that having used up a try. Must never: touch
 * another tenant's tasks, an actor, or what would not make the room that is wanted.
 */
import { fits } from '../../base/resources.ts';
import type { Core } from './core.ts';
import { stopRunning } from './endings.ts';
import { priorityOf } from './fair-order.ts';
import { give, mayHold, take } from './quota-tree.ts';
import { hasRetries } from './retries.ts';
import type { Lease, SchedulingClass, TenantState } from './state.ts';

/** So long a claimant waits for what ends by itself. */
export const PREEMPT_AFTER_MS = 1_000;
/** So long a task has to stop by itself; then what it runs in is killed. */
const STOP_WITHIN_MS = 1_000;
/** What was taken back for somebody stays reserved so long. */
const PROMISE_MS = 5_000;
/** Leases that one step ends in a tenant. */
const MOST_AT_ONCE = 16;

/** Once in a while, for each tenant that has projects or priorities. */
export function preempt(core: Core, tenant: TenantState): void {
  let due: SchedulingClass[] | undefined;
  for (const job of tenant.jobs) {
    for (const c of job.classes.values()) {
      // What was stopped for it is on its way: until then the books say nothing of what is left to take.
      if (c.promised > 0 && c.promisedUntilMs > core.nowMs) return;
      // What has room waits for something else.
      if (c.queue.length <= c.starting || (c.placement !== undefined && c.placement.group !== '') || (fits(c.resources, core.available) && mayHold(job, c.resources))) c.blockedSinceMs = 0;
      else if (c.blockedSinceMs === 0) c.blockedSinceMs = core.nowMs;
      else if (core.nowMs - c.blockedSinceMs >= PREEMPT_AFTER_MS) (due ??= []).push(c);
    }
  }
  if (due === undefined) return;
  due.sort((a, b) => priorityOf(b) - priorityOf(a) || a.servedAt - b.servedAt);
  // As if everything were given back and taken already, and back at the end: what is held is asked of the same books as ever.
  const given: Lease[] = [];
  const taken: SchedulingClass[] = [];
  for (const c of due) {
    const victims = victimsOf(core, tenant, c);
    for (let left = c.queue.length - c.starting; left > 0 && given.length < MOST_AT_ONCE; left--) {
      const chosen = choose(core, c, victims);
      if (chosen === undefined) break;
      take(core, c.job, c.resources);
      taken.push(c);
      given.push(...chosen);
      for (const lease of chosen) end(core, lease, c);
    }
  }
  for (const c of taken) {
    give(core, c.job, c.resources);
    c.promised++;
    c.promisedUntilMs = core.nowMs + PROMISE_MS;
  }
  for (const lease of given) take(core, lease.schedulingClass.job, lease.schedulingClass.resources);
}

/** Leases that the class has more right to, those first that matter least: of the lowest priority, then the last that began. */
function victimsOf(core: Core, tenant: TenantState, c: SchedulingClass): Lease[] {
  const found: Lease[] = [];
  for (const job of tenant.jobs) {
    for (const other of job.classes.values()) {
      if (other === c || !goesBefore(c, other)) continue;
      for (const lease of other.leases) if (mayEnd(core, lease)) found.push(lease);
    }
  }
  return found.sort((a, b) => priorityOf(a.schedulingClass) - priorityOf(b.schedulingClass) || b.heldSinceMs - a.heldSinceMs || b.worker.key - a.worker.key);
}

/**
 * What is a project's own goes before what is borrowed, and priority decides between equals. Were it the other way too, one would take back from the
 * other for ever.
 */
function goesBefore(c: SchedulingClass, other: SchedulingClass): boolean {
  const { project } = c.job;
  const more = priorityOf(c) > priorityOf(other);
  if (other.job.project === project) return more;
  const own = project.cpuUnitsInUse + c.resources.cpuUnits <= project.quota.cpuUnits && project.memoryBytesInUse + c.resources.memoryBytes <= project.quota.memoryBytes;
  const { borrows } = other.job.project;
  return (own && borrows) || (more && (own || borrows));
}

function mayEnd(core: Core, lease: Lease): boolean {
  // What runs in a bundle gives its room to nobody but those in the bundle.
  if (lease.bundle !== undefined || !lease.holding || lease.slot === undefined || lease.active === 0) return false;
  for (const task of lease.slot.execs.values()) if (task.blocked === 0 && (task.cancelled !== undefined || task.stream !== undefined || !hasRetries(task))) return false;
  return core.jobs.has(lease.slot.job.id);
}

/** The first of them, in their order, whose end makes room for one more lease of the class, given back in the books; they leave the list. Undefined: all together would not. */
function choose(core: Core, c: SchedulingClass, victims: Lease[]): Lease[] | undefined {
  const chosen: Lease[] = [];
  let enough = fits(c.resources, core.available) && mayHold(c.job, c.resources);
  for (const lease of victims) {
    if (enough) break;
    const of = lease.schedulingClass;
    // By now its project may have no more than its own again.
    if (!goesBefore(c, of)) continue;
    give(core, of.job, of.resources);
    chosen.push(lease);
    enough = fits(c.resources, core.available) && mayHold(c.job, c.resources);
  }
  if (!enough || chosen.length === 0) {
    for (const lease of chosen) take(core, lease.schedulingClass.job, lease.schedulingClass.resources);
    return undefined;
  }
  for (const lease of chosen) victims.splice(victims.indexOf(lease), 1);
  return chosen;
}

function end(core: Core, lease: Lease, claimant: SchedulingClass): void {
  const { tenant, project } = claimant.job;
  const of = lease.schedulingClass;
  const why = priorityOf(of) < priorityOf(claimant) ? `for tasks of priority ${priorityOf(claimant)} of project ${project.name}` : `project ${project.name} takes back what it lent`;
  lease.draining = true;
  for (const task of [...(lease.slot?.execs.values() ?? [])]) {
    if (task.blocked > 0) continue;
    core.lifecycle(tenant, 'task.preempted', task.channel.principal.spiffeId, 'task', task.channel.session.prefixHex, task.seq, `${why}: ${task.template.detail}`);
    stopRunning(core, task, { code: 'PREEMPTED', message: `the task was stopped ${why}, and runs again`, stack: '' }, STOP_WITHIN_MS);
  }
}
