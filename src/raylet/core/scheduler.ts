/**
 * Which task runs where and when. Tasks of one class (same job, same resources) share worker leases; a lease holds the class's
 * resources while any of its execs runs. How many tasks a lease is given ahead follows from their measured time, so that tiny
 * tasks are pipelined and long ones are spread. Whoever has the least is served first; a lease yields after its slice when others wait.
 */
import { OP } from '../../base/frame.ts';
import { MAX_SCHEDULING_CLASSES_PER_TENANT } from '../../base/limits.ts';
import { fits, type ResourceVector } from '../../base/resources.ts';
import { giveTo, takeFrom, type BundleHold } from './bundle.ts';
import type { Core } from './core.ts';
import { groupKnown, misfit, viewOf } from './group-views.ts';
import { allowedPlaces, openNode, type Place, type Placement } from './placement.ts';
import { concludeTask, openSlot, sendExec } from './dispatch.ts';
import { grantFairly } from './fair-order.ts';
import { argumentFailure } from './objects.ts';
import { mayHold, overdrawn } from './quota-tree.ts';
import { forward } from './upstreams.ts';
import { upstreamTo } from './upstream-channels.ts';
import { CHANNEL_KIND, Lease, RemoteLease, SchedulingClass, Worker, type Failure, type Job, type ObjectEntry, type RemoteNode, type Slot, type Task, type TenantState } from './state.ts';

/** Work given to a lease ahead of its results, as time: long enough to hide a round trip, short enough to stay fair. */
const LOOKAHEAD_MS = 6;
const MAX_LOOKAHEAD = 512;
/** Up to this measured time a function may still be a short one that waited for a processor. */
const PROBE_MS = 200;
const PROBE_QUEUE = 64;
/** After this long an isolate sends the results it has (src/sandbox/isolate/guest/executor.ts), with some room. */
const ISOLATE_FLUSH_MS = 3;
/** A lease that has run this long yields when another class waits for its resources. */
const SLICE_MS = 100;
const IDLE_WORKER_KEPT_MS = 10_000;
const NO_ARGUMENTS: readonly ObjectEntry[] = [];
/** On top of a task's own cpus: the worker host's thread, which feeds the isolate and carries its results. */
const HOST_CPUS = 0.5;
/** Blocked execs that may pile up in one isolate. */
const MAX_BLOCKED_PER_LEASE = 4_096;

/** The class of a job's tasks that need these resources, in these places; undefined when its tenant has too many classes already. */
export function classFor(core: Core, job: Job, resources: ResourceVector, runtime: string, placement: Placement | undefined, forwarded = false, asJob = false, priority = 0): SchedulingClass | undefined {
  const custom = resources.custom === undefined ? '' : Object.keys(resources.custom).sort().map((k) => `${k}=${resources.custom?.[k] ?? 0}`).join(',');
  const key = `${runtime}|${resources.cpuUnits}|${resources.memoryBytes}|${custom}${placement === undefined ? '' : `|${placement.key}${placement.group === '' ? '' : `|${forwarded ? 1 : 0}${asJob ? 1 : 0}`}`}${priority === 0 ? '' : `|priority ${priority}`}`;
  let found = job.classes.get(key);
  if (found === undefined) {
    // An isolate may speak on for a moment after its job has ended.
    if (core.jobs.get(job.id) !== job || job.tenant.classes >= MAX_SCHEDULING_CLASSES_PER_TENANT) return undefined;
    job.tenant.classes++;
    found = new SchedulingClass(job, resources, runtime, placement, forwarded, asJob, priority, key);
    if (priority !== 0) job.tenant.ranked = true;
    job.classes.set(key, found);
    core.classes.add(found);
  }
  return found;
}

/** Once in a while: classes of groups that are gone count no more, so that a program may make one group after the other. */
export function parkClasses(core: Core): void {
  for (const c of core.classes) {
    const { placement, job, queue, leases, remoteLeases } = c;
    if (placement === undefined || placement.group === '' || queue.length > 0 || leases.size > 0 || c.starting > 0) continue;
    if (c.forwarded ? core.holds.has(core.groupNow(placement.group)) : groupKnown(core, placement.group, job, c.asJob)) continue;
    if ([...remoteLeases.values()].some((lease) => lease.inFlight > 0)) continue;
    c.parked = true;
    core.classes.delete(c);
    job.classes.delete(c.key);
    job.tenant.classes--;
  }
}

function revive(core: Core, c: SchedulingClass): void {
  if (core.jobs.get(c.job.id) !== c.job) return;
  c.parked = false;
  // Another class may have come to its place.
  if (c.job.classes.has(c.key)) c.key += `|${core.nextNumber()}`;
  c.job.classes.set(c.key, c);
  c.job.tenant.classes++;
  core.classes.add(c);
}

/** Of what was running when its job ended: its class, and with it its queue, is gone. */
export const JOB_ENDED: Failure = { code: 'CANCELLED', message: 'its job ended', stack: '' };

/** A task whose arguments are ready (or have failed: then it fails with the same error, as in Ray). */
export function enqueue(core: Core, task: Task): void {
  const failure = task.channel.job.ended ? JOB_ENDED : failedArgument(core, task);
  if (failure !== undefined) return concludeTask(core, task, failure);
  const c = task.template.schedulingClass as SchedulingClass;
  if (c.parked) revive(core, c);
  c.queue.push(task);
  if (task.template.options.queueTimeoutMs > 0) core.timed.add(task);
}

export function failedArgument(core: Core, task: Task): Failure | undefined {
  for (const entry of task.deps ?? NO_ARGUMENTS) {
    const failure = argumentFailure(core, entry, task.channel.job.tenant);
    if (failure !== undefined) return failure;
  }
  return undefined;
}

function depthOf(meanMs: number, waiting: number): number {
  if (meanMs <= 0) return 1;
  const depth = Math.floor(LOOKAHEAD_MS / meanMs);
  // One at a time cannot be told from waiting; two show which it was. Tried only where many wait: a few are better spread than queued.
  if (depth < 2) return meanMs <= PROBE_MS && waiting >= PROBE_QUEUE ? 2 : 1;
  return depth > MAX_LOOKAHEAD ? MAX_LOOKAHEAD : depth;
}

/** Gives queued tasks to leases, starts and parks leases, forwards what finds no room here. */
export function pump(core: Core): void {
  let others = 0;
  for (const c of core.classes) if (c.queue.length > 0) others++;
  if (others === 0) {
    for (const c of core.classes) parkIdle(core, c);
    return;
  }
  const waiting = [...core.classes].filter((c) => c.queue.length > 0);
  for (const c of core.classes) parkIdle(core, c);
  if (others === 1) return serve(core, waiting[0] as SchedulingClass, false);
  grantFairly(core, waiting, (c) => {
    core.grants = 1;
    serve(core, c, true);
    const granted = core.grants === 0;
    core.grants = Number.POSITIVE_INFINITY;
    return granted;
  });
}

function parkIdle(core: Core, c: SchedulingClass): void {
  for (const lease of c.leases) {
    if (lease.slot === undefined) continue;
    if (!lease.holding) reclaim(core, lease);
    else if (lease.active === 0 && (lease.slot.execs.size > 0 || c.queue.length === 0 || lease.draining)) release(core, lease);
  }
}

function release(core: Core, lease: Lease): void {
  lease.holding = false;
  lease.draining = false;
  const { resources, job } = lease.schedulingClass;
  giveTo(core, job, lease.bundle, resources);
  lease.worker.idleSinceMs = core.nowMs;
}

/** Whether it may have another lease now. */
function mayTake(core: Core, c: SchedulingClass): boolean {
  if (core.grants <= 0 || !fits(c.resources, core.available)) return false;
  if (mayHold(c.job, c.resources)) return true;
  if (core.config.sharedQuotas) core.shares.short.add(c.job.tenant);
  return false;
}

function hold(core: Core, c: SchedulingClass, bundle?: BundleHold): void {
  core.grants--;
  c.shortSinceMs = 0;
  takeFrom(core, c.job, bundle, c.resources);
}

/** An exec went on after waiting: its lease takes its resources back at once, even beyond what is free, as in Ray. */
function reclaim(core: Core, lease: Lease): void {
  if (lease.holding || lease.active === 0) return;
  lease.holding = true;
  lease.heldSinceMs = core.nowMs;
  takeFrom(core, lease.schedulingClass.job, lease.bundle, lease.schedulingClass.resources);
}

function serve(core: Core, c: SchedulingClass, contended: boolean): void {
  if (c.placement === undefined) {
    serveHere(core, c, contended);
    if (core.grants > 0 && c.queue.length > c.starting) spill(core, c);
  } else if (c.placement.group !== '') serveGrouped(core, c, c.placement);
  else servePlaced(core, c, c.placement, contended);
  if (c.queue.length > 0 && c.leases.size === 0) {
    const failure = workersFailure(core, c.job.tenant, 'tasks');
    // What another node has room for, now or when it is asked again, waits for that.
    if (failure !== undefined && core.nodes.size === 0) for (let task = c.queue.shift(); task !== undefined; task = c.queue.shift()) concludeTask(core, task, failure);
  }
}

/** In bundles of its group, here and on the nodes that have the others; until the group is there it waits. */
function serveGrouped(core: Core, c: SchedulingClass, { group, bundle: index }: Placement): void {
  const holds = core.holds.get(core.groupNow(group));
  const view = c.forwarded ? undefined : viewOf(core, group, c.job, c.asJob);
  if (view !== undefined) {
    const failure = view.failure ?? (view.bundles.length === 0 ? undefined : misfit(view.bundles, index, c.resources));
    if (failure !== undefined) return failQueued(core, c, failure);
  } else if (holds === undefined) return failQueued(core, c, NO_BUNDLE);
  for (const lease of c.leases) {
    if (c.queue.length === 0) return;
    if (lease.slot === undefined || lease.draining || lease.bundle?.released !== false) continue;
    if (!lease.holding) {
      if (core.grants <= 0 || !fits(c.resources, lease.bundle.available)) continue;
      lease.holding = true;
      lease.heldSinceMs = core.nowMs;
      hold(core, c, lease.bundle);
    }
    feed(core, c, lease);
  }
  for (const held of holds?.values() ?? []) {
    if (!held.firm || held.of.tenant !== c.job.tenant || (index >= 0 && held.of.index !== index)) continue;
    while (core.grants > 0 && c.queue.length > c.starting && fits(c.resources, held.available) && c.starting < 64) if (!startLease(core, c, held)) break;
  }
  if (core.grants <= 0 || view === undefined || c.queue.length <= c.starting) return;
  const rooms = new Map<number, number>();
  view.bundles.forEach(({ node, resources }, i) => {
    if (node !== 0 && node !== core.config.nodeNumber && (index < 0 || i === index) && fits(c.resources, resources)) rooms.set(node, (rooms.get(node) ?? 0) + roomIn(c.resources, resources));
  });
  for (const [node, room] of rooms) {
    const remote = core.nodes.get(node);
    if (remote !== undefined && core.reachable(node) && !spillTo(core, c, remote, room)) return;
  }
}

export const NO_BUNDLE: Failure = { code: 'CANCELLED', message: 'its placement group was removed, or has no bundle on this node any more', stack: '' };

export function failQueued(core: Core, c: SchedulingClass, failure: Failure): void {
  for (let task = c.queue.shift(); task !== undefined; task = c.queue.shift()) concludeTask(core, task, failure);
}

/** Classes of calls that were submitted here for a group. */
export function groupClasses(core: Core, tenant: TenantState, group: string): SchedulingClass[] {
  return [...core.classes].filter((c) => c.job.tenant === tenant && c.placement !== undefined && core.groupNow(c.placement.group) === group && !c.forwarded);
}

/** Only where its labels or its node allow; what may run nowhere waits, and `pendingReason` says why. */
function servePlaced(core: Core, c: SchedulingClass, placement: Placement, contended: boolean): void {
  const places = placesFor(core, c, placement);
  if (placement.spread && places.length > 1) return spread(core, c, places);
  if (places[0]?.number === core.config.nodeNumber) serveHere(core, c, contended);
  if (core.grants > 0 && c.queue.length > c.starting) spill(core, c);
}

/** This node first, if it is one. The same as long as nothing about the nodes changes but what is free on them. */
function placesFor(core: Core, c: SchedulingClass, placement: Placement): readonly Place[] {
  if (c.placesAt === core.nodesChanged) return c.places;
  c.places = allowedPlaces(core, placement, c.resources);
  // Looking may have shown that one can be reached again.
  c.placesAt = core.nodesChanged;
  c.open[0] = c.open[1] = undefined;
  c.positions.clear();
  c.places.forEach(({ number }, at) => c.positions.set(number, at));
  return c.places;
}

/** Other nodes that may have room for its next task. */
function openNodes(core: Core, c: SchedulingClass): Set<number> {
  const task = c.queue.shift();
  if (task === undefined) return NONE;
  c.queue.unshift(task);
  const which = task.channel.principal.kind === 'job' ? 1 : 0;
  return (c.open[which] ??= new Set(c.placement === undefined ? core.nodes.keys() : c.positions.keys()));
}

const NONE = new Set<number>();

/** One task to each place in turn, as long as any has room. */
function spread(core: Core, c: SchedulingClass, places: readonly Place[]): void {
  const open = openNodes(core, c);
  const n = places.length;
  const turn = c.turn % n;
  if (c.positions.has(core.config.nodeNumber)) open.add(core.config.nodeNumber);
  const ring = [...open].map((number) => c.positions.get(number) as number).sort((a, b) => ((a - turn + n) % n) - ((b - turn + n) % n));
  for (let without = 0, i = 0; core.grants > 0 && without < ring.length && c.queue.length > c.starting; i++) {
    const at = ring[i % ring.length] as number;
    const { number } = places[at] as Place;
    c.turn = (at + 1) % n;
    const taken = number === core.config.nodeNumber ? giveOne(core, c) : spillOne(core, c, core.nodes.get(number) as RemoteNode) === 'taken';
    without = taken ? 0 : without + 1;
  }
}

/** A task to a lease here that has nothing to do, or to one that is started for it. */
function giveOne(core: Core, c: SchedulingClass): boolean {
  for (const lease of c.leases) {
    if (lease.slot === undefined || lease.active > 0 || lease.draining) continue;
    if (!lease.holding) {
      if (!mayTake(core, c)) continue;
      lease.holding = true;
      lease.heldSinceMs = core.nowMs;
      hold(core, c);
    }
    const task = c.queue.shift();
    if (task === undefined) return false;
    core.timed.delete(task);
    lease.active++;
    sendExec(core, lease.slot, task);
    return true;
  }
  return mayTake(core, c) && c.starting < 64 && startLease(core, c);
}

function serveHere(core: Core, c: SchedulingClass, contended: boolean): void {
  for (const lease of c.leases) {
    if (c.queue.length === 0) return;
    if (lease.slot === undefined) continue;
    if (lease.holding) {
      if (lease.draining) continue;
      // What is called back goes to another node as soon as what runs here has ended.
      if (core.config.sharedQuotas && overdrawn(c.job)) {
        lease.draining = true;
        continue;
      }
      if (contended && core.nowMs - lease.heldSinceMs > SLICE_MS) {
        lease.draining = true;
        continue;
      }
      feed(core, c, lease);
    } else if (mayTake(core, c)) {
      lease.holding = true;
      lease.heldSinceMs = core.nowMs;
      hold(core, c);
      feed(core, c, lease);
    }
  }
  // Leases that are starting will take one task each; more are wanted for what is left beyond that.
  while (c.queue.length > c.starting && mayTake(core, c) && c.starting < 64) {
    if (!startLease(core, c)) break;
  }
}

function feed(core: Core, c: SchedulingClass, lease: Lease): void {
  const slot = lease.slot as Slot;
  const waiting = slot.execs.size - lease.active;
  if (waiting > MAX_BLOCKED_PER_LEASE) return;
  for (;;) {
    const task = c.queue.shift();
    if (task === undefined) return;
    if (lease.active >= depthOf(task.template.stats.meanMs, c.queue.length)) {
      c.queue.unshift(task);
      return;
    }
    core.timed.delete(task);
    lease.active++;
    sendExec(core, slot, task);
  }
}

function startLease(core: Core, c: SchedulingClass, bundle?: BundleHold): boolean {
  let worker = reusableWorker(core, c);
  if (worker === undefined) {
    if (!roomForWorker(core, c.job.tenant)) return false;
    worker = new Worker(core.nextNumber(), c.job.tenant, isolateBytes(core, c.resources), 'tasks', c.runtime);
    core.workers.set(worker.key, worker);
    core.out.push({ type: 'start-worker', worker, cpus: Math.max(1, c.resources.cpuUnits / 10_000) + HOST_CPUS });
  }
  const lease = new Lease(c, worker, bundle);
  c.leases.add(lease);
  lease.holding = true;
  lease.heldSinceMs = core.nowMs;
  hold(core, c, bundle);
  if (worker.state === 'ALIVE') attachLease(core, lease);
  else c.starting++;
  return true;
}

function attachLease(core: Core, lease: Lease): void {
  const c = lease.schedulingClass;
  lease.slot = openSlot(core, lease.worker, c.job, isolateBytes(core, c.resources), 1);
  lease.slot.lease = lease;
  if (c.queue.length > 0) feed(core, c, lease);
}

export function isolateBytes(core: Core, resources: ResourceVector): number {
  return resources.memoryBytes > 0 ? resources.memoryBytes : core.config.defaultIsolateBytes;
}

/** A worker of the same tenant that has no lease: processes are never passed to another tenant. */
function reusableWorker(core: Core, c: SchedulingClass): Worker | undefined {
  for (const worker of core.workers.values()) {
    if (worker.tenant === c.job.tenant && worker.purpose === 'tasks' && worker.runtime === c.runtime && worker.state === 'ALIVE' && !worker.worn && worker.slots.size === 0 && worker.memoryBytes >= isolateBytes(core, c.resources)) return worker;
  }
  return undefined;
}

/**
 * Whether a tenant may have another process. A part of the places is never one tenant's: what blocks in them, or sits there as an actor
 * that asks for nothing, would keep everybody else out for good. While its crash-loop breaker is open it starts none, and pushes nobody out.
 */
export function roomForWorker(core: Core, tenant: TenantState): boolean {
  if (tenant.nextStartMs > core.nowMs) return false;
  const most = core.config.maxWorkers;
  let own = 0;
  for (const worker of core.workers.values()) if (worker.tenant === tenant) own++;
  if (own >= tenant.quota.workers) {
    // The place is free when the process has ended.
    evictIdleWorker(core, tenant);
    if (core.config.sharedQuotas) core.shares.short.add(tenant);
    return false;
  }
  if (own >= most - Math.floor(most / 4)) return evictIdleWorker(core, tenant);
  return core.workers.size < most || evictIdleWorker(core, undefined);
}

/**
 * Why a tenant's quota of processes lets nothing of a kind run on this node, now or later: it gives none, or all that it gives are seats of
 * actors, who leave only when they die. Undefined: there is a worker for it, or will be.
 */
export function workersFailure(core: Core, tenant: TenantState, purpose: Worker['purpose']): Failure | undefined {
  const { workers } = tenant.nominal;
  if (workers === Number.POSITIVE_INFINITY) return undefined;
  let forActors = 0;
  for (const worker of core.workers.values()) if (worker.tenant === tenant && worker.purpose === 'actors' && worker.seats > 0) forActors++;
  if (workers > 0 && (purpose === 'actors' || forActors < workers)) return undefined;
  const what = workers === 0 ? `the tenant's quota gives it no worker processes` : `the tenant's ${workers} worker processes on this node, its whole quota, are its actors'`;
  return { code: 'QUOTA_EXCEEDED', message: `${what}, so ${purpose === 'tasks' ? 'no task' : 'no actor'} can run here: ${workers === 0 ? '' : 'kill actors, or '}ask for a larger quota (workers)`, stack: '' };
}

/** Of this tenant, or of any. */
function evictIdleWorker(core: Core, of: TenantState | undefined): boolean {
  let oldest: Lease | undefined;
  for (const c of core.classes) {
    for (const lease of c.leases) {
      // What its code started and did not wait for ends with it.
      if ((of !== undefined && lease.worker.tenant !== of) || lease.holding || lease.slot === undefined || lease.slot.execs.size > 0 || lease.slot.channel.inFlight > 0) continue;
      if (oldest === undefined || lease.worker.idleSinceMs < oldest.worker.idleSinceMs) oldest = lease;
    }
  }
  if (oldest === undefined) return false;
  // Whatever came into it before it has exited would die with it.
  oldest.worker.ending = true;
  core.out.push({ type: 'kill-worker', worker: oldest.worker, reason: 'IDLE' });
  return true;
}

/** The pool brought the worker up. */
export function workerStarted(core: Core, worker: Worker): void {
  worker.state = 'ALIVE';
  for (const c of core.classes) {
    for (const lease of c.leases) {
      if (lease.worker !== worker || lease.slot !== undefined) continue;
      c.starting--;
      attachLease(core, lease);
    }
  }
}

/** The pool could not start it (a layer is missing): the class's waiting tasks are told why. Without a failure it may not yet (crash loop): they wait on. */
export function workerNotStarted(core: Core, worker: Worker, failure: Failure | undefined): void {
  worker.state = 'DEAD';
  core.workers.delete(worker.key);
  for (const c of core.classes) {
    for (const lease of c.leases) {
      if (lease.worker !== worker) continue;
      c.leases.delete(lease);
      if (lease.slot === undefined) c.starting--;
      if (lease.holding) release(core, lease);
      if (failure === undefined) continue;
      for (let task = c.queue.shift(); task !== undefined; task = c.queue.shift()) concludeTask(core, task, failure);
    }
  }
}

/** Takes a lease out, with its slot. Its execs must have been taken off before. */
export function dropLease(core: Core, lease: Lease): void {
  const c = lease.schedulingClass;
  if (!c.leases.delete(lease)) return;
  if (lease.holding) release(core, lease);
}

/**
 * A batch of results came from a lease: measure the function, so that the next tasks are given ahead in the right number. The time
 * between two batches is the functions' and the machine's: on a busy machine most of it is waiting for a processor. What came
 * together ran together, within the time after which an isolate flushes; that bounds it however long the wait was. `results` 0: not the first
 * part of its batch.
 */
export function measure(core: Core, slot: Slot, task: Task, results: number): void {
  const elapsed = core.nowMs - slot.lastResultMs;
  // The others of one batch: measured with its first.
  if (results === 0 || (elapsed <= 0 && results > 1)) return;
  const each = Math.max(elapsed, 0) / results;
  // The clock has whole milliseconds at worst; a floor keeps "0 ms" from meaning "never measured".
  const sample = Math.max(results > 1 ? Math.min(each, ISOLATE_FLUSH_MS / results) : each, 0.002);
  const stats = task.template.stats;
  stats.meanMs = stats.meanMs === 0 ? sample : 0.5 * stats.meanMs + 0.5 * sample;
}

/** Gives a task back to its queue: its worker died through no fault of its own, or its node did. */
export function requeue(core: Core, task: Task): void {
  if (task.channel.job.ended) return concludeTask(core, task, JOB_ENDED);
  task.queuedMs = core.nowMs;
  if (task.template.options.queueTimeoutMs > 0) core.timed.add(task);
  task.slot = undefined;
  task.upstream = undefined;
  task.blocked = 0;
  const c = task.template.schedulingClass as SchedulingClass;
  if (c.parked) revive(core, c);
  c.queue.unshift(task);
}

/** How many tasks wait for room on this node: not those that may not run here, or that a quota holds back. While there are any, others send nothing. */
export function queuedForRoom(core: Core): number {
  let n = 0;
  for (const c of core.classes) {
    if (c.queue.length === 0 || !fits(c.resources, core.config.total) || !mayHold(c.job, c.resources)) continue;
    const { placement } = c;
    if (placement !== undefined && (placement.group !== '' || placesFor(core, c, placement)[0]?.number !== core.config.nodeNumber)) continue;
    n += c.queue.length;
  }
  return n;
}

/** Forwards what finds no room here to nodes that reported some. A task that was forwarded once is not forwarded again. */
function spill(core: Core, c: SchedulingClass): void {
  if (core.nodes.size === 0) return;
  if (core.config.sharedQuotas) {
    // The quota is the same everywhere. What there is room for here waits here for a larger share, and says so; what is more than all of it waits for that.
    const { nominal } = c.job.tenant;
    if (c.resources.cpuUnits > nominal.cpuUnits || c.resources.memoryBytes > nominal.memoryBytes || (fits(c.resources, core.available) && !mayHold(c.job, c.resources))) return;
  }
  const open = openNodes(core, c);
  for (const number of open) {
    if (c.queue.length <= c.starting) return;
    const node = core.nodes.get(number);
    // This node too.
    if (node === undefined) open.delete(number);
    else if (!spillTo(core, c, node)) return;
  }
}

/** As much as the node has room for. False: nothing that is next may go anywhere. */
function spillTo(core: Core, c: SchedulingClass, node: RemoteNode, reserved?: number): boolean {
  while (c.queue.length > c.starting) {
    const how = spillOne(core, c, node, reserved);
    if (how !== 'taken') return how === 'full';
  }
  return true;
}

function spillOne(core: Core, c: SchedulingClass, node: RemoteNode, reserved?: number): 'taken' | 'full' | 'stays' {
  const task = c.queue.shift();
  if (task === undefined) return 'stays';
  const lease = task.channel.kind === CHANNEL_KIND.PEER ? undefined : remoteLease(core, c, node, task, reserved);
  if (lease === undefined) {
    c.queue.unshift(task);
    if (task.channel.kind === CHANNEL_KIND.PEER) return 'stays';
    c.open[task.channel.principal.kind === 'job' ? 1 : 0]?.delete(node.number);
    return 'full';
  }
  core.timed.delete(task);
  lease.inFlight++;
  forward(core, lease.upstream, task, OP.SUBMIT, undefined);
  return 'taken';
}

/** What the submitter calls runs there as the submitter, and what its tasks call as the job: they never share a channel. */
function remoteLeaseKey(nodeNumber: number, asJob: boolean): number {
  return 2 * nodeNumber + (asJob ? 1 : 0);
}

/** `reserved`: so many of its tasks fit the bundles that its group has there. */
function remoteLease(core: Core, c: SchedulingClass, node: RemoteNode, task: Task, reserved?: number): RemoteLease | undefined {
  const asJob = task.channel.principal.kind === 'job';
  const key = remoteLeaseKey(node.number, asJob);
  let lease = c.remoteLeases.get(key);
  if (lease !== undefined && !lease.upstream.closed && lease.inFlight > 0) {
    // Over there every core can be busy with this class: what fits the node's totals, times what a lease is given ahead.
    const room = reserved !== undefined ? reserved : c.resources.cpuUnits > 0 ? Math.floor(node.total.cpuUnits / c.resources.cpuUnits) : 4;
    if (lease.inFlight < Math.max(1, Math.min(room, reserved ?? roomFor(c, node))) * depthOf(task.template.stats.meanMs, c.queue.length)) return lease;
    return undefined;
  }
  if ((reserved === undefined && !fits(c.resources, node.available)) || !core.reachable(node.number)) return undefined;
  if (lease === undefined || lease.upstream.closed) {
    lease = new RemoteLease(upstreamTo(core, node.number, c.job, asJob, task.depth));
    c.remoteLeases.set(key, lease);
  }
  return lease;
}

function roomFor(c: SchedulingClass, node: RemoteNode): number {
  return roomIn(c.resources, node.total);
}

/** How many of these go into an amount, custom resources aside. */
export function roomIn(wanted: ResourceVector, whole: ResourceVector): number {
  let room = Number.POSITIVE_INFINITY;
  if (wanted.cpuUnits > 0) room = Math.min(room, Math.floor(whole.cpuUnits / wanted.cpuUnits));
  if (wanted.memoryBytes > 0) room = Math.min(room, Math.floor(whole.memoryBytes / wanted.memoryBytes));
  return room;
}

export function remoteTaskEnded(core: Core, task: Task): void {
  const c = task.template.schedulingClass;
  const upstream = task.upstream;
  if (c === undefined || upstream === undefined) return;
  const lease = c.remoteLeases.get(remoteLeaseKey(upstream.nodeNumber, upstream.asJob));
  if (lease === undefined || lease.upstream !== upstream) return;
  lease.inFlight--;
  openNode(c, upstream.nodeNumber);
  if (lease.lastResultMs > 0 && lease.inFlight > 0 && task.template.stats.meanMs === 0) task.template.stats.meanMs = Math.max(core.nowMs - task.startedMs, 0.002);
  lease.lastResultMs = core.nowMs;
}

/** Once in a while: workers that have had nothing to do are ended, so that an idle tenant costs nothing. */
export function retireIdleWorkers(core: Core): void {
  for (const worker of core.workers.values()) {
    if (worker.state !== 'ALIVE') continue;
    let busy = false;
    for (const slot of worker.slots.values()) if (slot.execs.size > 0 || slot.channel.inFlight > 0 || slot.actor !== undefined || slot.lease?.holding === true) busy = true;
    if (busy) worker.idleSinceMs = core.nowMs;
    else if (core.nowMs - worker.idleSinceMs > IDLE_WORKER_KEPT_MS && !worker.ending) {
      worker.ending = true;
      core.out.push({ type: 'kill-worker', worker, reason: 'IDLE' });
    }
  }
}
