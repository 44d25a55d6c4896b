/**
 * Actors: one isolate with state, named or not, called in order per caller. Transitions (Ray's names, without restarts):
 *  1. PENDING_CREATION → ALIVE   its constructor returned
 *  2. PENDING_CREATION → DEAD    its constructor threw, its worker could not start, it was killed
 *  3. ALIVE → DEAD               killed, its worker died, its job ended, its owner released it
 * A dead actor stays known until its session ends, so that late calls get ACTOR_DIED with the reason.
 */
import { resource, type Resource } from '../../base/decision.ts';
import { OP } from '../../base/frame.ts';
import { MAX_ACTORS_PER_WORKER } from '../../base/limits.ts';
import { add, fits, subtract, UNITS_PER_CPU } from '../../base/resources.ts';
import { idIndex, makeId, type Core } from './core.ts';
import { concludeTask, openSlot, sendExec } from './dispatch.ts';
import { failedArgument, isolateBytes, roomForWorker } from './scheduler.ts';
import { cancelRemote, forward, killRemote, upstreamTo } from './upstreams.ts';
import { Actor, CHANNEL_KIND, TASK_STATE, Worker, type Channel, type Failure, type RemoteNode, type Task, type Template } from './state.ts';

/** Calls of one actor that its isolate has been given; more wait here. */
const MAX_CALLS_ON_SLOT = 4_096;

export function findActor(core: Core, channel: Channel, id: Uint8Array): Actor | undefined {
  return core.sessionOf(channel, id)?.actors.get(idIndex(id));
}

/** What a policy sees of one method of one actor; made once per actor and method. */
export function methodResource(actor: Actor, template: Template): Resource {
  let made = actor.methodResources.get(template);
  if (made === undefined) {
    made = resource('actor', { tenant: actor.job.tenant.name, name: actor.name, owner: actor.session.ownerId, code: `sha256:${actor.template.digestHex}`, function: `${actor.template.exportName}.${template.methodName}`, label: actor.template.options.label, detached: actor.template.options.detached, isolation: actor.template.options.isolation });
    actor.methodResources.set(template, made);
  }
  return made;
}

export function actorResource(actor: Actor): Resource {
  return methodResource(actor, actor.template);
}

/** Finds a place for a new actor: here when its resources are free, else on a node that reported room, else it waits. */
export function placeActor(core: Core, actor: Actor): boolean {
  const { resources } = actor.template.options;
  const { tenant } = actor.job;
  if (fits(resources, core.available) && tenant.cpuUnitsInUse + resources.cpuUnits <= tenant.quota.cpuUnits && tenant.memoryBytesInUse + resources.memoryBytes <= tenant.quota.memoryBytes) {
    const worker = actorWorker(core, actor);
    if (worker === undefined) return false;
    core.available = subtract(core.available, resources);
    tenant.cpuUnitsInUse += resources.cpuUnits;
    tenant.memoryBytesInUse += resources.memoryBytes;
    actor.holding = true;
    worker.seats++;
    worker.booting++;
    actor.worker = worker;
    if (worker.state === 'ALIVE') seatActor(core, actor);
    return true;
  }
  if (actor.creation.channel.kind !== CHANNEL_KIND.PEER) {
    for (const node of core.nodes.values()) {
      if (!fits(resources, node.available) || !core.reachable(node.number)) continue;
      moveActor(core, actor, node);
      return true;
    }
  }
  return false;
}

function moveActor(core: Core, actor: Actor, node: RemoteNode): void {
  const task = actor.creation;
  const upstream = upstreamTo(core, node.number, actor.job, task.channel.principal.kind === 'job', task.depth);
  actor.upstream = upstream;
  node.available = subtract(node.available, actor.template.options.resources);
  forward(core, upstream, task, OP.CREATE_ACTOR, undefined);
}

/** A process makes one isolate at a time; with this many waiting in each, another process is worth its start. */
const BOOTING_PER_WORKER = 4;
/** Their calls all pass the process's one host thread: beyond this many actors a second core is worth a process of its own. */
const SEATS_PER_WORKER = 8;

/** Workers of a tenant are shared by its actors, up to a bound; one that asks for memory of its own size gets one that has it. */
function actorWorker(core: Core, actor: Actor): Worker | undefined {
  // At least what any actor gets: a process for each size of small ones would be a process for each actor.
  const bytes = Math.max(core.config.defaultIsolateBytes, isolateBytes(core, actor.template.options.resources));
  const cpus = Math.max(1, Math.floor(core.config.total.cpuUnits / UNITS_PER_CPU));
  let least: Worker | undefined;
  let workers = 0;
  for (const worker of core.workers.values()) {
    if (worker.tenant !== actor.job.tenant || worker.purpose !== 'actors' || worker.state === 'DEAD' || worker.worn) continue;
    workers++;
    if (worker.memoryBytes >= bytes && worker.seats < MAX_ACTORS_PER_WORKER && (least === undefined || worker.booting < least.booting || (worker.booting === least.booting && worker.seats < least.seats))) least = worker;
  }
  if (least !== undefined && ((least.booting < BOOTING_PER_WORKER && least.seats < SEATS_PER_WORKER) || workers >= cpus)) return least;
  if (!roomForWorker(core, actor.job.tenant)) return least;
  const worker = new Worker(core.nextNumber(), actor.job.tenant, bytes, 'actors');
  core.workers.set(worker.key, worker);
  // Its actors may be busy side by side; what they hold is counted by the scheduler.
  core.out.push({ type: 'start-worker', worker, cpus });
  return worker;
}

function seatActor(core: Core, actor: Actor): void {
  const slot = openSlot(core, actor.worker as Worker, actor.job, isolateBytes(core, actor.template.options.resources), actor.creation.depth);
  slot.actor = actor;
  actor.slot = slot;
  sendExec(core, slot, actor.creation);
}

export function actorWorkerStarted(core: Core, worker: Worker): void {
  for (const job of core.jobs.values()) for (const actor of job.actors) if (actor.worker === worker && actor.slot === undefined && actor.state === 'PENDING_CREATION') seatActor(core, actor);
}

/** Waiting actors of one tenant that a step tries to place. */
const WAITING_PER_STEP = 16;

/** Actors that found no place yet: tried again whenever resources may have come free. */
export function placeWaitingActors(core: Core): void {
  for (const actor of core.waitingActors.some(WAITING_PER_STEP)) {
    if (actor.state !== 'PENDING_CREATION' || actor.creation.state === TASK_STATE.DONE) core.waitingActors.delete(actor);
    else if (actor.creation.missing === 0) {
      const failure = failedArgument(actor.creation);
      if (failure !== undefined) actorDied(core, actor, failure);
      else if (!placeActor(core, actor)) continue;
      core.waitingActors.delete(actor);
    }
  }
}

/** The constructor has returned, here or on the other node. */
export function actorCreated(core: Core, actor: Actor): void {
  actor.state = 'ALIVE';
  if (actor.worker !== undefined) actor.worker.booting--;
  if (actor.upstream !== undefined && actor.upstream.prefix !== undefined) actor.remoteId = makeId(actor.upstream.prefix, actor.creation.remoteSeq);
  core.lifecycle(actor.job.tenant, 'actor.created', actor.session.ownerId, 'actor', actor.session.prefixHex, actor.index, actor.template.detail);
  for (const caller of [...actor.queues.keys()]) drainCalls(core, actor, caller);
}

/** A call has been allowed: it runs now if it may, else it takes its place in its caller's queue. */
export function callActor(core: Core, actor: Actor, task: Task): void {
  task.actor = actor;
  const limit = actor.template.options.maxPendingCalls;
  if (actor.state === 'DEAD') return concludeTask(core, task, { code: 'ACTOR_DIED', message: `the actor is dead: ${actor.reason}`, stack: '' });
  if (limit > 0 && actor.inFlight >= limit) return concludeTask(core, task, { code: 'RESOURCE_EXHAUSTED', message: `the actor has ${actor.inFlight} calls pending, its limit is ${limit}: wait for some of them`, stack: '' });
  actor.inFlight++;
  const queue = actor.queues.get(task.channel);
  if (queue !== undefined) queue.push(task);
  else if (mayRun(actor, task)) run(core, actor, task);
  else actor.queues.set(task.channel, [task]);
}

function mayRun(actor: Actor, task: Task): boolean {
  return actor.state === 'ALIVE' && task.missing === 0 && (actor.slot === undefined || actor.slot.execs.size < MAX_CALLS_ON_SLOT);
}

function run(core: Core, actor: Actor, task: Task): void {
  const failure = failedArgument(task);
  if (failure !== undefined) {
    actor.inFlight--;
    concludeTask(core, task, failure);
  } else if (actor.slot !== undefined) sendExec(core, actor.slot, task);
  else if (actor.upstream !== undefined && actor.remoteId !== undefined) forward(core, actor.upstream, task, OP.CALL_ACTOR, actor.remoteId);
}

export function drainCalls(core: Core, actor: Actor, caller: Channel): void {
  const queue = actor.queues.get(caller);
  if (queue === undefined) return;
  let taken = 0;
  for (const task of queue) {
    if (task.state === TASK_STATE.WAITING && !mayRun(actor, task)) break;
    taken++;
    if (task.state === TASK_STATE.WAITING) run(core, actor, task);
  }
  if (taken === queue.length) actor.queues.delete(caller);
  else queue.splice(0, taken);
}

export function callEnded(core: Core, actor: Actor): void {
  actor.inFlight--;
  if (actor.queues.size > 0) for (const caller of [...actor.queues.keys()]) drainCalls(core, actor, caller);
}

/** Ends an actor: its calls fail, its isolate goes, its name is free again. */
export function actorDied(core: Core, actor: Actor, failure: Failure): void {
  if (actor.state === 'DEAD') return;
  const wasCreated = actor.state === 'ALIVE';
  actor.state = 'DEAD';
  actor.reason = failure.message;
  actor.job.actors.delete(actor);
  core.waitingActors.delete(actor);
  if (actor.worker !== undefined) {
    actor.worker.seats--;
    if (!wasCreated) actor.worker.booting--;
  }
  const { tenant } = actor.job;
  if (actor.holding) {
    core.available = add(core.available, actor.template.options.resources);
    tenant.cpuUnitsInUse -= actor.template.options.resources.cpuUnits;
    tenant.memoryBytesInUse -= actor.template.options.resources.memoryBytes;
    actor.holding = false;
  }
  core.lifecycle(tenant, 'actor.died', actor.session.ownerId, 'actor', actor.session.prefixHex, actor.index, `${failure.code} ${actor.template.detail}`);
  if (actor.nameRegistered) core.out.push({ type: 'release-name', actor, id: makeId(actor.session.prefix, actor.index) });
  const died: Failure = { code: failure.code === 'CANCELLED' || failure.code === 'TASK_FAILED' ? 'ACTOR_DIED' : failure.code, message: `the actor died: ${failure.message}`, stack: failure.stack };
  if (!wasCreated) concludeTask(core, actor.creation, failure.code === 'CANCELLED' ? died : failure);
  const slot = actor.slot;
  actor.slot = undefined;
  if (slot !== undefined) {
    for (const task of slot.execs.values()) {
      core.timed.delete(task);
      task.slot = undefined;
      concludeTask(core, task, died);
    }
    slot.execs.clear();
    slot.actor = undefined;
    core.out.push({ type: 'close-slot', slot });
  }
  for (const queue of actor.queues.values()) for (const task of queue) if (task.state === TASK_STATE.WAITING) concludeTask(core, task, died);
  actor.queues.clear();
  if (actor.upstream !== undefined) {
    for (const task of [...actor.upstream.tasks]) {
      if (task.actor !== actor && task !== actor.creation) continue;
      cancelRemote(core, actor.upstream, task, true);
      actor.upstream.tasks.delete(task);
      concludeTask(core, task, died);
    }
    if (actor.remoteId !== undefined && !actor.upstream.closed) killRemote(core, actor.upstream, actor.remoteId);
  }
}
