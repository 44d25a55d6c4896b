/**
 * Where actors run: on a worker of this node that actors of the tenant share, or on another node. Gives an actor its place and takes it from
 * there again, with the calls that its isolate had been given. Must never: decide whether an actor lives; that is actors.ts.
 */
import { OP } from '../../base/frame.ts';
import { MAX_ACTORS_PER_WORKER } from '../../base/limits.ts';
import { fits, UNITS_PER_CPU } from '../../base/resources.ts';
import { makeId, type Core } from './core.ts';
import { openSlot, sendExec } from './dispatch.ts';
import { giveTo, takeFrom, type BundleHold } from './bundle.ts';
import { misfit, viewOf } from './group-views.ts';
import { allowedPlaces, giveBackOn, takeOn, type Place, type Placement } from './placement.ts';
import { mayHold } from './quota-tree.ts';
import { isolateBytes, NO_BUNDLE, roomForWorker } from './scheduler.ts';
import { CHANNEL_KIND, TASK_STATE, Worker, type Actor, type Failure, type RemoteNode, type Task } from './state.ts';
import { forward, killRemote, takeBackTasks } from './upstreams.ts';
import { upstreamTo } from './upstream-channels.ts';

/** Its constructor is to run, for the first time or again. */
export function isStarting(actor: Actor): boolean {
  return actor.state === 'PENDING_CREATION' || actor.state === 'RESTARTING';
}

/** Finds a place for an actor: here when its resources are free, else on a node that reported room, else it waits. A failure: there can never be one. */
export function placeActor(core: Core, actor: Actor): boolean | Failure {
  const { resources, placement } = actor.template.options;
  const forwarded = actor.creation.channel.kind === CHANNEL_KIND.PEER;
  // Who sent it here has chosen its place.
  if (placement === undefined || (forwarded && placement.group === '')) {
    const seated = seatHere(core, actor);
    if (seated !== undefined) return seated;
    if (forwarded || !mayLeave(core, actor)) return false;
    for (const node of core.nodes.values()) if (moveActor(core, actor, node)) return true;
    return false;
  }
  if (placement.group !== '') return placeInGroup(core, actor, placement);
  const places = allowedPlaces(core, placement, resources);
  // Actors of one class in turn; where one is, the next begins behind.
  const first = placement.spread ? core.spreadTurn++ % Math.max(places.length, 1) : 0;
  for (let i = 0; i < places.length; i++) {
    const { number } = places[(first + i) % places.length] as Place;
    const node = core.nodes.get(number);
    if (node === undefined) {
      const seated = seatHere(core, actor);
      if (seated !== undefined) return seated;
    } else if (mayLeave(core, actor) && moveActor(core, actor, node)) return true;
  }
  return false;
}

/** In a bundle of its group: of those here the first that has room, else on the node where fewest of its actors are that has one that could hold it. */
function placeInGroup(core: Core, actor: Actor, { group, bundle: index }: Placement): boolean | Failure {
  const { resources } = actor.template.options;
  const forwarded = actor.creation.channel.kind === CHANNEL_KIND.PEER;
  const here = core.holds.get(core.groupNow(group));
  for (const hold of here?.values() ?? []) {
    if (!hold.firm || hold.of.tenant !== actor.job.tenant || (index >= 0 && hold.of.index !== index)) continue;
    const seated = seatHere(core, actor, hold);
    if (seated !== undefined) return seated;
  }
  if (forwarded) return here === undefined ? NO_BUNDLE : false;
  const view = viewOf(core, group, actor.job, actor.creation.channel.principal.kind === 'job');
  const failure = view.failure ?? (view.bundles.length === 0 ? undefined : misfit(view.bundles, index, resources));
  if (failure !== undefined) return failure;
  if (!mayLeave(core, actor)) return false;
  const crowd = new Map<number, number>();
  view.bundles.forEach(({ node, resources: whole }, i) => {
    if (node !== 0 && node !== core.config.nodeNumber && (index < 0 || i === index) && fits(resources, whole)) crowd.set(node, 0);
  });
  for (const { upstream, template } of actor.job.actors) if (upstream !== undefined && crowd.has(upstream.nodeNumber) && template.options.placement?.group === group) crowd.set(upstream.nodeNumber, (crowd.get(upstream.nodeNumber) ?? 0) + 1);
  for (const [number] of [...crowd].sort(([, a], [, b]) => a - b)) {
    const node = core.nodes.get(number);
    if (node !== undefined && moveActor(core, actor, node, true)) return true;
  }
  return false;
}

/** A job whose drivers have gone renews its credential no more: other nodes would refuse it. */
function mayLeave(core: Core, actor: Actor): boolean {
  return actor.job.credentialEndsMs > core.wallMs;
}

/** False: what it needs is free here, and it waits for a worker; undefined: there is no room here. */
function seatHere(core: Core, actor: Actor, bundle?: BundleHold): boolean | undefined {
  const { resources } = actor.template.options;
  if (bundle !== undefined ? !fits(resources, bundle.available) : !fits(resources, core.available) || !mayHold(actor.job, resources)) return undefined;
  const worker = actorWorker(core, actor);
  if (worker === undefined) return false;
  takeFrom(core, actor.job, bundle, resources);
  actor.bundle = bundle;
  actor.holding = true;
  worker.seats++;
  worker.booting++;
  actor.booting = true;
  actor.worker = worker;
  if (worker.state === 'ALIVE') seatActor(core, actor);
  return true;
}

function moveActor(core: Core, actor: Actor, node: RemoteNode, reserved = false): boolean {
  if ((!reserved && !fits(actor.template.options.resources, node.available)) || !core.reachable(node.number)) return false;
  const task = actor.creation;
  const upstream = upstreamTo(core, node.number, actor.job, task.channel.principal.kind === 'job', task.depth);
  actor.upstream = upstream;
  if (!reserved) takeOn(core, node, actor.template.options.resources);
  forward(core, upstream, task, OP.CREATE_ACTOR, undefined);
  return true;
}

/** A process makes one isolate at a time; with this many waiting in each, another process is worth its start. */
const BOOTING_PER_WORKER = 4;
/** Their calls all pass the process's one host thread: beyond this many actors a second core is worth a process of its own. */
const SEATS_PER_WORKER = 8;

/** Workers of a tenant are shared by its actors, up to a bound; one that asks for memory of its own size gets one that has it. */
function actorWorker(core: Core, actor: Actor): Worker | undefined {
  // At least what any actor gets: a process for each size of small ones would be a process for each actor.
  const bytes = Math.max(core.config.defaultIsolateBytes, isolateBytes(core, actor.template.options.resources));
  const { runtime } = actor.template.options;
  const cpus = Math.max(1, Math.floor(core.config.total.cpuUnits / UNITS_PER_CPU));
  let least: Worker | undefined;
  let leastHolds = false;
  let workers = 0;
  for (const worker of core.workers.values()) {
    if (worker.tenant !== actor.job.tenant || worker.purpose !== 'actors' || worker.runtime !== runtime || worker.state === 'DEAD' || worker.worn) continue;
    workers++;
    if (worker.memoryBytes < bytes || worker.seats >= MAX_ACTORS_PER_WORKER) continue;
    const holds = holdsThread(worker);
    const better = least === undefined || (holds === leastHolds ? worker.booting < least.booting || (worker.booting === least.booting && worker.seats < least.seats) : leastHolds);
    if (!better) continue;
    least = worker;
    leastHolds = holds;
  }
  if (least !== undefined && ((!leastHolds && least.booting < BOOTING_PER_WORKER && least.seats < SEATS_PER_WORKER) || workers >= cpus)) return least;
  if (!roomForWorker(core, actor.job.tenant)) return least;
  const worker = new Worker(core.nextNumber(), actor.job.tenant, bytes, 'actors', runtime);
  core.workers.set(worker.key, worker);
  // Its actors may be busy side by side; what they hold is counted by the scheduler.
  core.out.push({ type: 'start-worker', worker, cpus });
  return worker;
}

/** Its only actor is in the middle of calls, perhaps on the host's own thread: another would have to wait for their end before it begins. */
function holdsThread(worker: Worker): boolean {
  if (worker.slots.size !== 1) return false;
  for (const { actor, execs } of worker.slots.values()) if (actor?.state === 'ALIVE' && execs.size > 0) return true;
  return false;
}

function seatActor(core: Core, actor: Actor): void {
  const slot = openSlot(core, actor.worker as Worker, actor.job, isolateBytes(core, actor.template.options.resources), actor.creation.depth);
  slot.actor = actor;
  actor.slot = slot;
  sendExec(core, slot, actor.creation);
}

export function actorWorkerStarted(core: Core, worker: Worker): void {
  for (const job of core.jobs.values()) for (const actor of job.actors) if (actor.worker === worker && actor.slot === undefined && isStarting(actor)) seatActor(core, actor);
}

/** The worker they were to live in may not start yet: they give back what they held, and wait for a place again. Nothing of theirs was lost. */
export function unseatActors(core: Core, worker: Worker): void {
  for (const job of core.jobs.values()) {
    for (const actor of job.actors) {
      if (actor.worker !== worker || actor.slot !== undefined || !isStarting(actor)) continue;
      unseat(core, actor);
      core.waitingActors.add(actor);
    }
  }
}

/** Its isolate is made: the worker may begin with the next one's. */
export function seated(actor: Actor): void {
  if (actor.booting && actor.worker !== undefined) actor.worker.booting--;
  actor.booting = false;
}

/** A call goes back to what it was before it was given to an isolate or another node. */
export function takeBack(core: Core, task: Task): void {
  core.timed.delete(task);
  task.state = TASK_STATE.WAITING;
  task.slot = undefined;
  task.upstream = undefined;
  task.remoteSeq = 0;
  task.blocked = 0;
  task.killAtMs = 0;
  task.startedMs = 0;
  task.cpuAtStartMicros = 0;
}

/** Takes an actor from its place. The calls that its isolate had been given and did not answer are returned, in the order they were given. */
export function unseat(core: Core, actor: Actor): Task[] {
  const { worker, slot, upstream, job, template: { options: { resources } } } = actor;
  const given: Task[] = [];
  if (worker !== undefined) {
    worker.seats--;
    if (actor.booting) worker.booting--;
  }
  actor.booting = false;
  actor.worker = undefined;
  if (actor.holding) {
    giveTo(core, job, actor.bundle, resources);
    actor.bundle = undefined;
    actor.holding = false;
  }
  actor.slot = undefined;
  if (slot !== undefined) {
    for (const task of slot.execs.values()) if (task !== actor.creation) given.push(task);
    slot.execs.clear();
    slot.actor = undefined;
    // A slot that died with its process is closed already.
    if (slot.worker.slots.get(slot.number) === slot) {
      core.out.push({ type: 'close-slot', slot });
      // Alone in its process it may run on the host's own thread, where nothing but the end of the process stops it.
      if ((slot.stuck || given.length > 0) && slot.worker.slots.size === 1 && slot.worker.seats === 0) {
        slot.worker.ending = true;
        core.out.push({ type: 'kill-worker', worker: slot.worker, reason: 'CANCELLED' });
      }
    }
  }
  actor.upstream = undefined;
  if (upstream !== undefined) {
    const node = core.nodes.get(upstream.nodeNumber);
    if (node !== undefined && (actor.template.options.placement?.group ?? '') === '') giveBackOn(core, node, resources);
    const { creation, remoteId } = actor;
    if (creation.remoteSeq !== 0) upstream.actors.delete(creation.remoteSeq);
    // It may be alive there by now, and the word of that on its way.
    if (remoteId !== undefined) killRemote(core, upstream, remoteId, false);
    else if (creation.upstream === upstream && creation.remoteSeq !== 0 && upstream.prefix !== undefined) killRemote(core, upstream, makeId(upstream.prefix, creation.remoteSeq), false);
    for (const task of takeBackTasks(core, upstream, (t) => t.actor === actor || t === creation)) if (task !== creation) given.push(task);
  }
  actor.remoteId = undefined;
  return given;
}
