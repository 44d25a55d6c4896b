/**
 * This node's shares of its tenants' quotas, which hold for the sum over all nodes: what the head has given is what `quota-tree.ts` goes by, and the head is
 * told what is used and what waits for more. Must never: let a tenant start more than the share, also when the head is away; ask anybody during a call.
 */
import { CALL_KIND, type CallKind } from '../../base/frame.ts';
import { MAX_QUOTA_LINES_PER_TENANT } from '../../base/limits.ts';
import { NO_PROJECT_QUOTA, type ProjectQuota } from '../../base/project-quota.ts';
import { fits, type ResourceVector } from '../../base/resources.ts';
import { hasShared, lent, type LineDemand, type TenantDemand, type TenantShare } from '../../base/tenant-quota.ts';
import type { Core } from './core.ts';
import { divide, mayHold, wholeOf } from './quota-tree.ts';
import { NO_JOB_QUOTA, type Job, type TenantState } from './state.ts';

/** A call waits so long for its node's share to grow before it is refused. */
const WAIT_MS = 3_000;
/** The head's word that there is no more holds so long. */
const REFUSED_MS = 250;
/** What did not fit once is asked for so long: whoever wants it asks again. */
const ASKED_MS = 5_000;
const SPARE_CALLS = 16;

export interface ShareReport {
  readonly serial: number;
  readonly epoch: number;
  readonly tenants: readonly TenantReport[];
}

export interface TenantReport extends TenantDemand {
  /** Some call waits for the answer. */
  readonly asks: boolean;
}

/** What the node may use of a line; without shares (a core by itself) all of it. */
export function shareOf(core: Core, tenant: TenantState, line: string, whole: number): number {
  if (!core.config.sharedQuotas || whole === Number.POSITIVE_INFINITY) return whole;
  return Math.min(whole, tenant.shares.granted.get(line) ?? 0);
}

/** The tenant's quotas or its shares of them have changed: what holds on this node. What is held beyond it stays until it ends. */
export function applyShares(core: Core, tenant: TenantState): void {
  const { nominal, quota } = tenant;
  const of = (line: string, whole: number): number => shareOf(core, tenant, line, whole);
  tenant.shares.shared = core.config.sharedQuotas && hasShared(nominal);
  quota.cpuUnits = of('cpus', nominal.cpuUnits);
  quota.memoryBytes = of('memory', nominal.memoryBytes);
  quota.objectBytes = nominal.objectBytes;
  quota.tasks = of('tasks', nominal.tasks);
  quota.actors = of('actors', nominal.actors);
  quota.workers = of('workers', nominal.workers);
  quota.callsPerSecond = of('calls', nominal.callsPerSecond);
  quota.inFlight = of('inflight', nominal.inFlight);
  const projects = new Map<string, ProjectQuota>();
  for (const [name, q] of nominal.projects) {
    const cpuUnits = of(`${name}/cpus`, q.cpuUnits);
    const memoryBytes = of(`${name}/memory`, q.memoryBytes);
    projects.set(name, Object.freeze({
      ...q, cpuUnits, memoryBytes, cpuLendUnits: lentOf(cpuUnits, q.cpuUnits, q.cpuLendUnits), memoryLendBytes: lentOf(memoryBytes, q.memoryBytes, q.memoryLendBytes),
      cpuBorrowUnits: of(`${name}/cpus-borrow`, q.cpuBorrowUnits), memoryBorrowBytes: of(`${name}/memory-borrow`, q.memoryBorrowBytes),
      tasks: of(`${name}/tasks`, q.tasks), callsPerSecond: of(`${name}/calls`, q.callsPerSecond), inFlight: of(`${name}/inflight`, q.inFlight),
    }));
  }
  quota.projects = projects;
  quota.idleMs = nominal.idleMs;
  quota.objectMemoryBytes = nominal.objectMemoryBytes;
  divide(tenant, of('cpus-pool', lent(nominal, 'cpuLendUnits')), of('memory-pool', lent(nominal, 'memoryLendBytes')));
  for (const job of tenant.jobs) limit(core, job);
}

/** What a job may use here, and whether its calls are counted: those of most are not. */
export function limit(core: Core, job: Job): void {
  const { tenant, project } = job;
  const whole = project.quota;
  job.limited = tenant.quota.callsPerSecond !== Number.POSITIVE_INFINITY || tenant.quota.inFlight !== Number.POSITIVE_INFINITY || whole !== NO_PROJECT_QUOTA;
  const of = (line: string, most: number): number => shareOf(core, tenant, `@${job.id}/${line}`, most);
  job.quota = whole === NO_PROJECT_QUOTA ? NO_JOB_QUOTA : { cpuUnits: of('cpus', whole.jobCpuUnits), memoryBytes: of('memory', whole.jobMemoryBytes), tasks: of('tasks', whole.jobTasks), callsPerSecond: of('calls', whole.jobCallsPerSecond), inFlight: of('inflight', whole.jobInFlight) };
}

/** Of a share of what is a project's own: the part that is lent. What is kept back is rounded down, so that the nodes together keep no more than the project does. */
function lentOf(share: number, whole: number, lend: number): number {
  return lend === 0 || whole === 0 ? 0 : share - Math.floor((share / whole) * (whole - lend));
}

/** From the head, in answer to the report with this serial. */
export function takeShares(core: Core, epoch: number, answered: number, leaseMs: number, shares: readonly TenantShare[]): TenantState[] {
  const node = core.shares;
  if (epoch < node.epoch) return [];
  if (epoch > node.epoch) {
    node.epoch = epoch;
    for (const tenant of core.tenants.values()) tenant.shares.applied = 0;
  }
  const sentMs = node.sentMs.get(answered);
  if (sentMs !== undefined) node.leaseUntilMs = Math.max(node.leaseUntilMs, sentMs + leaseMs);
  node.answered = Math.max(node.answered, answered);
  for (const serial of node.sentMs.keys()) if (serial < answered) node.sentMs.delete(serial);
  const changed: TenantState[] = [];
  for (const { tenant: name, serial, lines } of shares) {
    const tenant = [...core.tenants.values()].find((t) => t.name === name);
    if (tenant === undefined || serial <= tenant.shares.applied) continue;
    const of = tenant.shares;
    of.applied = serial;
    // What waited has what it asked for, or a part: for more it asks anew.
    for (const { line, amount, coming } of lines) if (amount > (of.granted.get(line) ?? 0) || coming !== of.coming.has(line)) of.waits.delete(line);
    of.granted = new Map(lines.map(({ line, amount }) => [line, amount]));
    of.coming = new Set(lines.filter(({ coming }) => coming).map(({ line }) => line));
    // Nobody is here any more who could use it.
    if (core.nowMs >= node.leaseUntilMs) of.granted = new Map();
    applyShares(core, tenant);
    changed.push(tenant);
  }
  return changed;
}

/** Once in a while: a lease that is over leaves nothing to start with. */
export function expireShares(core: Core): void {
  if (!core.config.sharedQuotas || core.nowMs < core.shares.leaseUntilMs) return;
  for (const tenant of core.tenants.values()) {
    if (tenant.shares.granted.size === 0) continue;
    tenant.shares.granted = new Map();
    applyShares(core, tenant);
  }
}

/** Whether anything of the tenant is here that its quotas count. */
function present(core: Core, tenant: TenantState): boolean {
  if (tenant.jobs.size > 0 || tenant.cpuUnitsInUse > 0 || tenant.memoryBytesInUse > 0 || tenant.objectBytes > 0 || tenant.inFlight > 0 || tenant.actors > 0) return true;
  for (const worker of core.workers.values()) if (worker.tenant === tenant) return true;
  return false;
}

// --- what the head is told ---------------------------------------------------------------------------------------------

class Demands {
  readonly #core: Core;
  readonly #tenant: TenantState;
  readonly #of = new Map<string, { use: number; firm: number; want: number; next: number; blockedMs: number; most: number }>();

  constructor(core: Core, tenant: TenantState) {
    this.#core = core;
    this.#tenant = tenant;
  }

  /** `whole` Infinity: no such quota. */
  use(line: string, whole: number, use: number, firm = use): void {
    if (whole !== Number.POSITIVE_INFINITY) this.#of.set(line, { use: Math.ceil(use), firm: Math.ceil(firm), want: 0, next: 0, blockedMs: 0, most: whole });
  }

  want(line: string, more: number, next: number, blockedMs: number, firm = 0): void {
    const of = this.#of.get(line);
    if (of === undefined) return;
    const want = Math.max(0, Math.min(more, of.most - of.use - of.want));
    if (want <= 0) return;
    of.want += want;
    of.firm += Math.min(want, firm);
    if (of.next === 0 || blockedMs > of.blockedMs) of.next = next;
    of.blockedMs = Math.max(of.blockedMs, blockedMs);
  }

  lines(held: (line: string) => number): LineDemand[] {
    const { granted } = this.#tenant.shares;
    const lapsed = this.#core.nowMs >= this.#core.shares.leaseUntilMs;
    return [...this.#of].map(([line, { use, firm, want, next, blockedMs, most }]) => ({ line, held: Math.max(use, held(line), lapsed ? 0 : Math.min(granted.get(line) ?? 0, most)), use, firm, want, next, blockedMs }));
  }
}

/** What a tenant uses and waits for on this node; undefined: none of its quotas is shared. */
function demandsOf(core: Core, tenant: TenantState): LineDemand[] {
  const { nominal, quota, pool, shares } = tenant;
  const d = new Demands(core, tenant);
  let busy = 0;
  let workers = 0;
  for (const worker of core.workers.values()) {
    if (worker.tenant !== tenant) continue;
    workers++;
    if (worker.state !== 'ALIVE' || worker.seats > 0) busy++;
    else for (const slot of worker.slots.values()) if (slot.execs.size > 0 || slot.lease?.holding === true) {
      busy++;
      break;
    }
  }
  d.use('cpus', nominal.cpuUnits, tenant.cpuUnitsInUse);
  d.use('memory', nominal.memoryBytes, tenant.memoryBytesInUse);
  d.use('tasks', nominal.tasks, tenant.tasks);
  d.use('actors', nominal.actors, tenant.actors);
  d.use('workers', nominal.workers, busy);
  d.use('calls', nominal.callsPerSecond, 0);
  d.use('inflight', nominal.inFlight, tenant.inFlight);
  let poolCpus = 0;
  let poolMemory = 0;
  for (const [name, q] of nominal.projects) {
    const project = tenant.projects.get(name);
    const own = quota.projects.get(name) ?? NO_PROJECT_QUOTA;
    const cpus = project?.cpuUnitsInUse ?? 0;
    const memory = project?.memoryBytesInUse ?? 0;
    d.use(`${name}/cpus`, q.cpuUnits, Math.min(cpus, q.cpuUnits));
    d.use(`${name}/memory`, q.memoryBytes, Math.min(memory, q.memoryBytes));
    if (q.cpuBorrowUnits > 0) d.use(`${name}/cpus-borrow`, q.cpuBorrowUnits, Math.max(0, cpus - own.cpuUnits));
    if (q.memoryBorrowBytes > 0) d.use(`${name}/memory-borrow`, q.memoryBorrowBytes, Math.max(0, memory - own.memoryBytes));
    if (q.cpuUnits !== Number.POSITIVE_INFINITY) poolCpus += Math.max(0, Math.min(cpus, own.cpuUnits) - (own.cpuUnits - own.cpuLendUnits));
    if (q.memoryBytes !== Number.POSITIVE_INFINITY) poolMemory += Math.max(0, Math.min(memory, own.memoryBytes) - (own.memoryBytes - own.memoryLendBytes));
    d.use(`${name}/tasks`, q.tasks, project?.tasks ?? 0);
    d.use(`${name}/calls`, q.callsPerSecond, 0);
    d.use(`${name}/inflight`, q.inFlight, project?.inFlight ?? 0);
  }
  if (lent(nominal, 'cpuLendUnits') > 0) d.use('cpus-pool', lent(nominal, 'cpuLendUnits'), pool.cpuUnitsUsed, poolCpus);
  if (lent(nominal, 'memoryLendBytes') > 0) d.use('memory-pool', lent(nominal, 'memoryLendBytes'), pool.memoryBytesUsed, poolMemory);
  for (const job of tenant.jobs) {
    const q = nominal.projects.get(job.project.name);
    if (q === undefined) continue;
    d.use(`@${job.id}/cpus`, q.jobCpuUnits, job.cpuUnitsInUse);
    d.use(`@${job.id}/memory`, q.jobMemoryBytes, job.memoryBytesInUse);
    d.use(`@${job.id}/tasks`, q.jobTasks, job.tasks);
    d.use(`@${job.id}/calls`, q.jobCallsPerSecond, 0);
    d.use(`@${job.id}/inflight`, q.jobInFlight, job.inFlight);
  }
  wantRoom(core, tenant, d);
  for (const [line, wait] of shares.waits) {
    if (core.nowMs - wait.sinceMs > ASKED_MS) {
      shares.waits.delete(line);
      continue;
    }
    const use = line.endsWith('calls') ? (shares.granted.get(line) ?? 0) : 0;
    d.want(line, Math.max(SPARE_CALLS, use, line.endsWith('inflight') ? tenant.inFlight : tenant.tasks), 1, core.nowMs - wait.sinceMs);
    if (wait.asked === 0) wait.asked = core.shares.serial;
  }
  return d.lines((line) => (line === 'workers' ? workers : 0)).slice(0, MAX_QUOTA_LINES_PER_TENANT);
}

/** What waits for cpus and memory that this node has and the quotas here do not let it take: asked for from the bottom of the tree up. */
function wantRoom(core: Core, tenant: TenantState, d: Demands): void {
  const room = { cpuUnits: core.available.cpuUnits, memoryBytes: core.available.memoryBytes };
  const ask = (job: Job, wanted: ResourceVector, count: number, sinceMs: number): void => {
    if (!fits(wanted, core.available) || mayHold(job, wanted)) return;
    const blockedMs = sinceMs === 0 ? 0 : core.nowMs - sinceMs;
    const times = (each: number, free: number): number => (each === 0 ? 0 : Math.min(count * each, Math.floor(free / each) * each));
    const cpus = times(wanted.cpuUnits, room.cpuUnits);
    const memory = times(wanted.memoryBytes, room.memoryBytes);
    room.cpuUnits -= cpus;
    room.memoryBytes -= memory;
    const { project, quota: most } = job;
    const nominal = wholeOf(tenant, project);
    // What can never start asks for nothing, and takes nothing from those who can.
    if (wanted.cpuUnits > Math.min(tenant.nominal.cpuUnits, nominal.cpuUnits + nominal.cpuBorrowUnits, nominal.jobCpuUnits) || wanted.memoryBytes > Math.min(tenant.nominal.memoryBytes, nominal.memoryBytes + nominal.memoryBorrowBytes, nominal.jobMemoryBytes)) return;
    const one = (kind: 'cpus' | 'memory', amount: number, next: number, ofJob: number, jobMost: number, inUse: number, own: number, borrow: number, whole: number): void => {
      if (ofJob + next > jobMost) return d.want(`@${job.id}/${kind}`, amount, next, blockedMs);
      const here = project.quota;
      const ownHere = kind === 'cpus' ? here.cpuUnits : here.memoryBytes;
      const borrowHere = kind === 'cpus' ? here.cpuBorrowUnits : here.memoryBorrowBytes;
      const firm = Math.max(0, Math.min(amount, own - inUse));
      if (inUse + next > ownHere + borrowHere) {
        d.want(`${project.name}/${kind}`, firm, Math.min(next, own), blockedMs);
        d.want(`${project.name}/${kind}-borrow`, Math.min(amount - firm, borrow), Math.min(next, borrow), blockedMs);
        return;
      }
      const keptHere = ownHere - (kind === 'cpus' ? here.cpuLendUnits : here.memoryLendBytes);
      const { pool } = tenant;
      const poolFree = kind === 'cpus' ? pool.cpuUnits - pool.cpuUnitsUsed : pool.memoryBytes - pool.memoryBytesUsed;
      const beyond = inUse + next - Math.max(inUse, keptHere);
      if (own !== Number.POSITIVE_INFINITY && beyond > 0 && inUse + next > keptHere && beyond > poolFree) return d.want(`${kind}-pool`, amount, beyond, blockedMs, firm);
      d.want(kind, Math.min(amount, whole), next, blockedMs);
    };
    if (wanted.cpuUnits > 0) one('cpus', cpus, wanted.cpuUnits, job.cpuUnitsInUse, most.cpuUnits, project.cpuUnitsInUse, nominal.cpuUnits, nominal.cpuBorrowUnits, tenant.nominal.cpuUnits);
    if (wanted.memoryBytes > 0) one('memory', memory, wanted.memoryBytes, job.memoryBytesInUse, most.memoryBytes, project.memoryBytesInUse, nominal.memoryBytes, nominal.memoryBorrowBytes, tenant.nominal.memoryBytes);
  };
  let forWorkers = 0;
  for (const job of tenant.jobs) {
    for (const c of job.classes.values()) {
      const waiting = c.queue.length - c.starting;
      if (waiting <= 0 || (c.placement !== undefined && c.placement.group !== '')) continue;
      if (fits(c.resources, core.available) && !mayHold(job, c.resources)) {
        if (c.shortSinceMs === 0) c.shortSinceMs = core.nowMs;
        ask(job, c.resources, waiting, c.shortSinceMs);
      } else if (c.starting === 0) forWorkers += waiting;
    }
    for (const actor of job.actors) if (core.waitingActors.has(actor)) {
      ask(job, actor.template.options.resources, 1, actor.creation.queuedMs);
      forWorkers++;
    }
  }
  const { bundle } = tenant.shares;
  if (bundle !== undefined && bundle.untilMs > core.nowMs) ask(bundle.job, bundle.resources, 1, bundle.untilMs - ASKED_MS);
  if (forWorkers > 0) d.want('workers', Math.min(forWorkers, core.config.maxWorkers), 1, 0);
}

/** What the head is told: each tenant whose quotas are shared and of whom anything is here. Of others that were told once: that nothing is. */
export function reportShares(core: Core, told: ReadonlySet<string>): ShareReport {
  const node = core.shares;
  const serial = ++node.serial;
  node.sentMs.set(serial, core.nowMs);
  const tenants: TenantReport[] = [];
  for (const tenant of core.tenants.values()) {
    if (!tenant.shares.shared && !told.has(tenant.name)) continue;
    const here = tenant.active && tenant.shares.shared && present(core, tenant);
    const lines = here ? demandsOf(core, tenant) : [];
    if (lines.length === 0 && tenant.shares.granted.size > 0) {
      tenant.shares.granted = new Map();
      applyShares(core, tenant);
    }
    if (lines.length > 0 || told.has(tenant.name)) tenants.push({ tenant: tenant.name, applied: tenant.shares.applied, lines, asks: [...tenant.shares.waits.values()].some((wait) => wait.asked === serial) });
  }
  node.short.clear();
  return { serial, epoch: node.epoch, tenants };
}

// --- calls that find the share too small ----------------------------------------------------------------------------------

/**
 * Whether a call should be read again later, since what lacks is this node's share of a quota and not the quota: the head may have more. It says no when the
 * head has said so, and when it does not answer.
 */
export function awaitsShare(core: Core, job: Job, kind: CallKind): boolean {
  if (!core.config.sharedQuotas) return false;
  const { tenant, project } = job;
  const { quota, nominal } = tenant;
  const isTask = kind === CALL_KIND.TASK;
  if (isTask && tenant.tasks >= quota.tasks) return waits(core, tenant, 'tasks', quota.tasks, nominal.tasks);
  if (kind === CALL_KIND.ACTOR_CLASS && tenant.actors >= quota.actors) return waits(core, tenant, 'actors', quota.actors, nominal.actors);
  const whole = wholeOf(tenant, project);
  if (isTask && project.tasks >= project.quota.tasks) return waits(core, tenant, `${project.name}/tasks`, project.quota.tasks, whole.tasks);
  if (isTask && job.tasks >= job.quota.tasks) return waits(core, tenant, `@${job.id}/tasks`, job.quota.tasks, whole.jobTasks);
  if (tenant.inFlight >= quota.inFlight) return waits(core, tenant, 'inflight', quota.inFlight, nominal.inFlight);
  if (project.inFlight >= project.quota.inFlight) return waits(core, tenant, `${project.name}/inflight`, project.quota.inFlight, whole.inFlight);
  if (job.inFlight >= job.quota.inFlight) return waits(core, tenant, `@${job.id}/inflight`, job.quota.inFlight, whole.jobInFlight);
  if (tenant.calls.waitMs(quota.callsPerSecond, core.nowMs) > 0) return waits(core, tenant, 'calls', quota.callsPerSecond, nominal.callsPerSecond);
  if (project.calls.waitMs(project.quota.callsPerSecond, core.nowMs) > 0) return waits(core, tenant, `${project.name}/calls`, project.quota.callsPerSecond, whole.callsPerSecond);
  if (job.calls.waitMs(job.quota.callsPerSecond, core.nowMs) > 0) return waits(core, tenant, `@${job.id}/calls`, job.quota.callsPerSecond, whole.jobCallsPerSecond);
  return false;
}

function waits(core: Core, tenant: TenantState, line: string, share: number, whole: number): boolean {
  if (share >= whole) return false;
  const { nowMs, shares: node } = core;
  const { waits: all, coming } = tenant.shares;
  let wait = all.get(line);
  if (wait === undefined || nowMs - wait.sinceMs > ASKED_MS || (wait.refusedMs > 0 && nowMs - wait.refusedMs > REFUSED_MS)) all.set(line, (wait = { sinceMs: nowMs, asked: 0, refusedMs: 0 }));
  // A head that let one call wait in vain is not waited for again before it has said something.
  if (wait.refusedMs > 0 || node.answered === tenant.shares.unansweredAt) return false;
  const refused = wait.asked > 0 && node.answered >= wait.asked && !coming.has(line);
  if (!refused && nowMs - wait.sinceMs <= WAIT_MS) {
    node.short.add(tenant);
    return true;
  }
  wait.refusedMs = nowMs;
  if (!refused) tenant.shares.unansweredAt = node.answered;
  return false;
}

/** A bundle found no room in the share: it is asked for, and the group that wants it tries again. */
export function wantBundle(core: Core, job: Job, resources: ResourceVector): void {
  if (!core.config.sharedQuotas) return;
  job.tenant.shares.bundle = { job, resources, untilMs: core.nowMs + ASKED_MS };
  core.shares.short.add(job.tenant);
}
