/**
 * Quotas from the tenant through its project down to the job: whether somebody may hold or submit more, and the books of who does. Every step is
 * O(1): what is lent and borrowed is kept as sums. Must never: look at another tenant.
 */
import { CALL_KIND, type CallKind } from '../../base/frame.ts';
import { NO_PROJECT_QUOTA, type ProjectQuota } from '../../base/project-quota.ts';
import { add, subtract, type ResourceVector } from '../../base/resources.ts';
import type { Core } from './core.ts';
import { ProjectState } from './project-state.ts';
import { CHANNEL_KIND, type Channel, type Job, type TenantState } from './state.ts';

export function projectOf(tenant: TenantState, name: string): ProjectState {
  let project = tenant.projects.get(name);
  if (project === undefined) {
    project = new ProjectState(name);
    project.quota = tenant.quota.projects.get(name) ?? NO_PROJECT_QUOTA;
    tenant.projects.set(name, project);
  }
  return project;
}

/** A job has gone: a project without quota or anything in it is forgotten. */
export function leaveProject(tenant: TenantState, project: ProjectState): void {
  if (project.quota !== NO_PROJECT_QUOTA || project.cpuUnitsInUse > 0 || project.memoryBytesInUse > 0 || project.objectBytes > 0 || project.inFlight > 0) return;
  for (const job of tenant.jobs) if (job.project === project) return;
  tenant.projects.delete(project.name);
}

/** The tenant's quotas have changed, or what this node may use of them. What is held beyond them stays until it ends. */
export function divide(tenant: TenantState, poolCpuUnits: number, poolMemoryBytes: number): void {
  const { pool, quota } = tenant;
  for (const name of quota.projects.keys()) projectOf(tenant, name);
  pool.cpuUnits = poolCpuUnits;
  pool.memoryBytes = poolMemoryBytes;
  pool.cpuUnitsUsed = pool.memoryBytesUsed = 0;
  for (const project of tenant.projects.values()) {
    project.quota = quota.projects.get(project.name) ?? NO_PROJECT_QUOTA;
    const { cpuUnits, cpuLendUnits, memoryBytes, memoryLendBytes } = project.quota;
    pool.cpuUnitsUsed += beyond(project.cpuUnitsInUse, cpuUnits - cpuLendUnits);
    pool.memoryBytesUsed += beyond(project.memoryBytesInUse, memoryBytes - memoryLendBytes);
  }
}

/** A project's quotas as they hold for the whole cluster. */
export function wholeOf(tenant: TenantState, project: ProjectState): ProjectQuota {
  return tenant.nominal.projects.get(project.name) ?? NO_PROJECT_QUOTA;
}

/** What is used of the pool: all that is not kept back for the project itself. */
function beyond(inUse: number, kept: number): number {
  return inUse > kept ? inUse - kept : 0;
}

/** Whether a project may hold so much more of one resource. */
function within(inUse: number, more: number, own: number, lend: number, borrow: number, pool: number, poolUsed: number): boolean {
  if (inUse + more > own + borrow) return false;
  const kept = own - lend;
  return inUse + more <= kept || poolUsed + inUse + more - Math.max(inUse, kept) <= pool;
}

/** Whether quotas let the job hold these resources too, whether or not they are free. */
export function mayHold(job: Job, { cpuUnits, memoryBytes }: ResourceVector): boolean {
  const { tenant, project } = job;
  if (tenant.cpuUnitsInUse + cpuUnits > tenant.quota.cpuUnits || tenant.memoryBytesInUse + memoryBytes > tenant.quota.memoryBytes) return false;
  const { quota } = project;
  if (quota === NO_PROJECT_QUOTA) return true;
  if (job.cpuUnitsInUse + cpuUnits > job.quota.cpuUnits || job.memoryBytesInUse + memoryBytes > job.quota.memoryBytes) return false;
  const { pool } = tenant;
  return (cpuUnits === 0 || within(project.cpuUnitsInUse, cpuUnits, quota.cpuUnits, quota.cpuLendUnits, quota.cpuBorrowUnits, pool.cpuUnits, pool.cpuUnitsUsed)) &&
    (memoryBytes === 0 || within(project.memoryBytesInUse, memoryBytes, quota.memoryBytes, quota.memoryLendBytes, quota.memoryBorrowBytes, pool.memoryBytes, pool.memoryBytesUsed));
}

/** Whether it holds more than it may: its share was called back, or it took back what it had given up while it waited. */
export function overdrawn({ tenant, project, quota, cpuUnitsInUse, memoryBytesInUse }: Job): boolean {
  const { quota: own } = project;
  return tenant.cpuUnitsInUse > tenant.quota.cpuUnits || tenant.memoryBytesInUse > tenant.quota.memoryBytes || project.cpuUnitsInUse > own.cpuUnits + own.cpuBorrowUnits || project.memoryBytesInUse > own.memoryBytes + own.memoryBorrowBytes
    || cpuUnitsInUse > quota.cpuUnits || memoryBytesInUse > quota.memoryBytes;
}

export function take(core: Core, job: Job, resources: ResourceVector): void {
  core.available = subtract(core.available, resources);
  book(core, job, resources.cpuUnits, resources.memoryBytes);
}

export function give(core: Core, job: Job, resources: ResourceVector): void {
  core.available = add(core.available, resources);
  book(core, job, -resources.cpuUnits, -resources.memoryBytes);
}

function book(core: Core, job: Job, cpuUnits: number, memoryBytes: number): void {
  const { tenant, project } = job;
  const { quota } = project;
  if (quota !== NO_PROJECT_QUOTA) {
    const { pool } = tenant;
    const cpuKept = quota.cpuUnits - quota.cpuLendUnits;
    const memoryKept = quota.memoryBytes - quota.memoryLendBytes;
    pool.cpuUnitsUsed += beyond(project.cpuUnitsInUse + cpuUnits, cpuKept) - beyond(project.cpuUnitsInUse, cpuKept);
    pool.memoryBytesUsed += beyond(project.memoryBytesInUse + memoryBytes, memoryKept) - beyond(project.memoryBytesInUse, memoryKept);
  }
  tenant.cpuUnitsInUse += cpuUnits;
  tenant.memoryBytesInUse += memoryBytes;
  project.cpuUnitsInUse += cpuUnits;
  project.memoryBytesInUse += memoryBytes;
  job.cpuUnitsInUse += cpuUnits;
  job.memoryBytesInUse += memoryBytes;
  const { total } = core.config;
  tenant.usage.note(Math.max(part(tenant.cpuUnitsInUse, total.cpuUnits), part(tenant.memoryBytesInUse, total.memoryBytes)), core.nowMs);
  project.usage.note(Math.max(part(project.cpuUnitsInUse, total.cpuUnits), part(project.memoryBytesInUse, total.memoryBytes)), core.nowMs);
}

function part(of: number, total: number): number {
  return total > 0 ? of / total : 0;
}

/** A call began or ended; those that another node forwards count over there. */
export function countCall({ kind, job }: Channel, of: CallKind, by: 1 | -1): void {
  if (kind === CHANNEL_KIND.PEER) return;
  const { tenant, project } = job;
  tenant.inFlight += by;
  project.inFlight += by;
  job.inFlight += by;
  if (of !== CALL_KIND.TASK) return;
  tenant.tasks += by;
  project.tasks += by;
  job.tasks += by;
}

/** What says that the job may not make this call now; undefined: it may, and the call is counted. Asked of a limited job only. */
export function overRate(core: Core, job: Job, isTask: boolean): string | undefined {
  const { tenant, project } = job;
  const { quota } = project;
  const whole = wholeOf(tenant, project);
  if (isTask && project.tasks >= quota.tasks) return `project ${project.name} has ${project.tasks} tasks on this node that have not ended, its quota is ${whole.tasks}${elsewhere(quota.tasks, whole.tasks)}: wait for results before submitting more, or ask the tenant's administrator for a larger quota (tasks)`;
  if (isTask && job.tasks >= job.quota.tasks) return `the job has ${job.tasks} tasks on this node that have not ended, a job of project ${project.name} may have ${whole.jobTasks}${elsewhere(job.quota.tasks, whole.jobTasks)}: wait for results before submitting more (job-tasks)`;
  if (tenant.inFlight >= tenant.quota.inFlight) return tooMany('the tenant', tenant.inFlight, tenant.nominal.inFlight, tenant.quota.inFlight, 'inflight');
  if (project.inFlight >= quota.inFlight) return tooMany(`project ${project.name}`, project.inFlight, whole.inFlight, quota.inFlight, 'inflight');
  if (job.inFlight >= job.quota.inFlight) return tooMany(`a job of project ${project.name}`, job.inFlight, whole.jobInFlight, job.quota.inFlight, 'job-inflight');
  const forTenant = tenant.calls.waitMs(tenant.quota.callsPerSecond, core.nowMs);
  if (forTenant > 0) return tooFast('the tenant', tenant.nominal.callsPerSecond, tenant.quota.callsPerSecond, forTenant, 'calls');
  const forProject = project.calls.waitMs(quota.callsPerSecond, core.nowMs);
  if (forProject > 0) return tooFast(`project ${project.name}`, whole.callsPerSecond, quota.callsPerSecond, forProject, 'calls');
  const forJob = job.calls.waitMs(job.quota.callsPerSecond, core.nowMs);
  if (forJob > 0) return tooFast(`a job of project ${project.name}`, whole.jobCallsPerSecond, job.quota.callsPerSecond, forJob, 'job-calls');
  tenant.calls.take();
  project.calls.take();
  job.calls.take();
  return undefined;
}

function tooMany(who: string, inFlight: number, most: number, here: number, name: string): string {
  return `${who} has ${inFlight} calls in flight from this node, its quota is ${most}${elsewhere(here, most)}: wait for results before making more, or ask for a larger quota (${name})`;
}

function tooFast(who: string, perSecond: number, here: number, waitMs: number, name: string): string {
  return `${who} may make ${perSecond} calls a second (quota ${name}${elsewhere(here, perSecond)}): ${waitMs !== Number.POSITIVE_INFINITY ? `try again in ${waitMs} ms` : perSecond === 0 ? 'ask for a larger one' : 'try again later, or ask for a larger one'}`;
}

/** Where others have a share of a quota, in words. */
export function elsewhere(here: number, whole: number): string {
  return here < whole ? `, of which ${here} for this node, since the rest is in use on others` : '';
}
