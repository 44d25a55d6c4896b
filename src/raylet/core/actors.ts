/**
 * Actors: one isolate with state, named or not, called in order per caller. The states are Ray's, the transitions are numbered here and
 * tested by these numbers in test/sim/actor-states.test.ts:
 *   1. (none) → DEPENDENCIES_UNREADY            it may be made; its name and its constructor's arguments are not here yet
 *   2. DEPENDENCIES_UNREADY → PENDING_CREATION  they are: it waits for a place, or is being constructed there
 *   3. PENDING_CREATION → ALIVE                 its constructor returned
 *   4. PENDING_CREATION → RESTARTING            what it ran in was lost, and it may start again
 *   5. ALIVE → RESTARTING                       the same, or it was killed to be started again
 *   6. RESTARTING → ALIVE                       its constructor returned once more, for the same arguments
 *   7. RESTARTING → RESTARTING                  lost once more
 *   8. DEPENDENCIES_UNREADY → DEAD              an argument failed, the name is taken, it was killed, its owner ended, nobody has a handle
 *   9. PENDING_CREATION → DEAD                  its constructor threw, it was lost and may not start again, or as in 8
 *  10. ALIVE → DEAD                             lost and may not start again, killed, it ended itself, its owner ended, nobody has a handle
 *  11. RESTARTING → DEAD                        as in 9 and 10
 * "Lost" is the end of its isolate, its process or its node. What it does itself (a throwing constructor, exitActor) is not: that is final.
 * The raylet that the creation was submitted to owns the actor: it alone restarts it, here or elsewhere, and keeps callers' calls in order
 * meanwhile. Where it runs on another node, that raylet has an actor of its own for it, which never restarts and tells what becomes of it.
 * Each transition to ALIVE, RESTARTING and DEAD is a lifecycle record. Ended actors stay known for a while, so that late calls learn why.
 */
import { resource, type Resource } from '../../base/decision.ts';
import { ACTOR_STATE, CALL_KIND, OP } from '../../base/frame.ts';
import { MAX_DEAD_ACTORS_PER_TENANT, MAX_RESTART_BACKOFF_MS } from '../../base/limits.ts';
import { isStarting, placeActor, seated, takeBack, unseat } from './actor-seats.ts';
import { idIndex, makeId, type Core } from './core.ts';
import { concludeTask, sendExec } from './dispatch.ts';
import { keepsJob } from './job-roots.ts';
import { awaitEntry, forgetSession, isLocal, settleInline, unpin } from './objects.ts';
import { countCall } from './quota-tree.ts';
import { failedArgument, workersFailure } from './scheduler.ts';
import { forward } from './upstreams.ts';
import { CHANNEL_KIND, OBJECT_STATUS, Task, TASK_STATE, type Actor, type Channel, type Failure, type Session, type Template } from './state.ts';

/** Calls of one actor that its isolate has been given; more wait here. */
const MAX_CALLS_ON_SLOT = 4_096;
/** A life shorter than this counts as one that the next should not follow at once. */
const SHORT_LIFE_MS = 10_000;
const FIRST_BACKOFF_MS = 100;
/** CBOR of null: the value of an actor's creation. */
const CREATED = Uint8Array.of(0xf6);

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

/** What a handle knows of the class, JSON. */
export function classInfoOf({ template: { digestHex, exportName, options: { streams, runtime } } }: Actor): string {
  return JSON.stringify({ digest: digestHex, export: exportName, ...(streams.length === 0 ? {} : { streams }), ...(runtime === 'javascript' ? {} : { runtime: 'python' }) });
}

// --- coming to life -------------------------------------------------------------------------------------------------------

/** Keeps the constructor's arguments of an actor that may start again: copied, so that the batch they came in can go. */
export function keepSeed(actor: Actor): void {
  const { creation: { batch, argsStart, argsEnd, restStart, deps = [], depPositions = [], contained = [] }, job } = actor;
  for (const entry of [...deps, ...contained]) entry.pins++;
  actor.seed = { args: batch.slice(argsStart, argsEnd), restStart: restStart - argsStart, deps, depPositions, contained };
  job.tenant.heldBytes += actor.seed.args.byteLength;
}

function dropSeed(core: Core, actor: Actor): void {
  const { seed } = actor;
  if (seed === undefined) return;
  actor.seed = undefined;
  actor.job.tenant.heldBytes -= seed.args.byteLength;
  for (const entry of [...seed.deps, ...seed.contained]) unpin(core, entry);
}

/** The call of the constructor for the next life. What the first call was permitted is what this one does: it stands under that record. */
function creationAgain(core: Core, actor: Actor): Task {
  const before = actor.creation;
  if (before.state !== TASK_STATE.DONE) {
    takeBack(core, before);
    before.attempt = actor.restarts;
    return before;
  }
  const seed = actor.seed!;
  const { channel, seq, template, auditSeq, depth } = before;
  const task = new Task(channel, seq, template, seed.args, 0, seed.restStart, seed.args.byteLength, auditSeq, depth, core.nowMs);
  task.attempt = actor.restarts;
  task.origin = before.origin;
  task.depthLimit = before.depthLimit;
  channel.inFlight++;
  countCall(channel, CALL_KIND.ACTOR_CLASS, 1);
  core.callsInFlight++;
  task.deps = [...seed.deps];
  task.depPositions = [...seed.depPositions];
  task.contained = [...seed.contained];
  for (const entry of [...seed.deps, ...seed.contained]) entry.pins++;
  for (const entry of seed.deps) {
    entry.uses++;
    if (isLocal(entry)) continue;
    task.missing++;
    awaitEntry(core, entry, { call: undefined, position: 0, task });
  }
  return task;
}

/** Waiting actors of one tenant that a step tries to place. */
const WAITING_PER_STEP = 16;

/** Actors that found no place yet: tried again whenever resources may have come free. */
export function placeWaitingActors(core: Core): void {
  for (const actor of core.waitingActors.some(WAITING_PER_STEP)) {
    if (actor.state === 'DEAD' || actor.state === 'ALIVE') core.waitingActors.delete(actor);
    else if (actor.creation.missing === 0 && actor.notBeforeMs <= core.nowMs) {
      const failure = failedArgument(core, actor.creation) ?? workersFailure(core, actor.job.tenant, 'actors');
      if (actor.state === 'DEPENDENCIES_UNREADY' && failure === undefined) actor.state = 'PENDING_CREATION';
      const placed = failure ?? placeActor(core, actor);
      if (placed === false) continue;
      if (placed !== true) actorDied(core, actor, placed);
      core.waitingActors.delete(actor);
    }
  }
}

/** The constructor has returned, here or on the other node. */
export function actorCreated(core: Core, actor: Actor): void {
  const again = actor.state === 'RESTARTING';
  actor.state = 'ALIVE';
  actor.reason = '';
  actor.aliveSinceMs = core.nowMs;
  seated(actor);
  if (actor.upstream !== undefined && actor.upstream.prefix !== undefined) actor.remoteId = makeId(actor.upstream.prefix, actor.creation.remoteSeq);
  const { template } = actor;
  core.lifecycle(actor.job.tenant, again ? 'actor.restarted' : 'actor.created', actor.session.ownerId, 'actor', actor.session.prefixHex, actor.index, again ? `${restartsOf(actor)} ${template.detail}` : template.detail);
  tellCreator(core, actor.creation.channel, actor.index, ACTOR_STATE.ALIVE, undefined, actor.creation.auditSeq);
  for (const caller of [...actor.queues.keys()]) drainCalls(core, actor, caller);
}

/** To the raylet that an actor was made here for. */
export function tellCreator(core: Core, channel: Channel, index: number, state: number, failure: Failure | undefined, needed: number): void {
  if (channel.kind !== CHANNEL_KIND.PEER || channel.closed) return;
  channel.out.begin(OP.ACTOR_STATE).u32(index).u8(state).str(failure?.code ?? '').text(failure?.message ?? '').text(failure?.stack ?? '').end();
  core.markChannel(channel, needed);
}

/** Another raylet tells of the actor that it made for us. Of one that has left it since it is not asked any more. */
export function remoteActorChanged(core: Core, actor: Actor, state: number, failure: Failure): void {
  const { creation, upstream } = actor;
  if (state === ACTOR_STATE.ENDED) return actorDied(core, actor, failure);
  if (state === ACTOR_STATE.LOST) return actorLost(core, actor, failure);
  if (state !== ACTOR_STATE.ALIVE) throw new Error(`actor state ${state} from another raylet`);
  if (!isStarting(actor) || upstream === undefined || creation.state !== TASK_STATE.RUNNING) return;
  upstream.tasks.delete(creation);
  const entry = creation.channel.session.objects.get(creation.seq);
  if (entry !== undefined && entry.producer === creation) settleInline(core, entry, CREATED.slice());
  concludeTask(core, creation, undefined);
  actorCreated(core, actor);
}

// --- calls ----------------------------------------------------------------------------------------------------------------

/** How often a call may be made again after the actor was lost under it; -1: always. */
function retriesOf(actor: Actor, task: Task): number {
  return task.template.options.maxTaskRetries ?? actor.template.options.maxTaskRetries ?? 0;
}

/** A call has been allowed: it runs now if it may, else it takes its place in its caller's queue. */
export function callActor(core: Core, actor: Actor, task: Task): void {
  task.actor = actor;
  const limit = actor.template.options.maxPendingCalls;
  if (actor.state === 'DEAD') return concludeTask(core, task, actor.refused ?? { code: 'ACTOR_DIED', message: `the actor is dead: ${actor.reason}`, stack: '' });
  if (actor.state === 'RESTARTING' && retriesOf(actor, task) === 0) return concludeTask(core, task, { code: 'ACTOR_UNAVAILABLE', message: `the actor is restarting, and its calls do not wait for that without maxTaskRetries; it was lost: ${actor.reason}`, stack: '' });
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
  const failure = failedArgument(core, task);
  if (failure !== undefined) {
    actor.inFlight--;
    concludeTask(core, task, failure);
    if (actor.unreachable) core.unreachable.push(actor);
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

/** Calls that ended while they waited are not kept behind one that waits for long. */
function forgetEnded(actor: Actor): void {
  let waiting = 0;
  for (const queue of actor.queues.values()) waiting += queue.length;
  if (actor.endedWaiting * 2 < waiting) return;
  actor.endedWaiting = 0;
  for (const [caller, queue] of actor.queues) {
    const left = queue.filter((task) => task.state === TASK_STATE.WAITING);
    if (left.length === 0) actor.queues.delete(caller);
    else actor.queues.set(caller, left);
  }
}

export function callEnded(core: Core, actor: Actor): void {
  if (actor.state === 'DEAD') return;
  actor.inFlight--;
  if (actor.endedWaiting >= 64) forgetEnded(actor);
  if (actor.queues.size > 0) for (const caller of [...actor.queues.keys()]) drainCalls(core, actor, caller);
  if (actor.unreachable) core.unreachable.push(actor);
}

// --- being lost, and the end ----------------------------------------------------------------------------------------------

function mayRestart(actor: Actor): boolean {
  const { maxRestarts } = actor.template.options;
  return actor.seed !== undefined && !actor.job.stopped && actor.job.tenant.active && (maxRestarts === -1 || actor.restarts < maxRestarts);
}

function restartsOf(actor: Actor): string {
  const { maxRestarts } = actor.template.options;
  return maxRestarts === -1 ? `${actor.restarts}` : `${actor.restarts}/${maxRestarts}`;
}

/** What the actor runs in is gone, or is to go: it starts again if it may, else it is dead. */
export function actorLost(core: Core, actor: Actor, failure: Failure): void {
  if (actor.state === 'DEAD') return;
  // It runs nowhere yet: nothing was lost.
  if (actor.state === 'DEPENDENCIES_UNREADY') return;
  if (!mayRestart(actor)) return actorDied(core, actor, failure, true);
  const given = unseat(core, actor);
  actor.restarts++;
  actor.shortLives = actor.state === 'ALIVE' && core.nowMs - actor.aliveSinceMs >= SHORT_LIFE_MS ? 0 : actor.shortLives + 1;
  actor.notBeforeMs = actor.shortLives < 2 ? core.nowMs : core.nowMs + Math.min(FIRST_BACKOFF_MS * 2 ** Math.min(actor.shortLives - 2, 20), MAX_RESTART_BACKOFF_MS);
  actor.state = 'RESTARTING';
  actor.reason = told(failure);
  actor.creation = creationAgain(core, actor);
  core.lifecycle(actor.job.tenant, 'actor.restarting', actor.session.ownerId, 'actor', actor.session.prefixHex, actor.index, `${restartsOf(actor)} ${failure.code} ${actor.template.detail}`);
  giveBack(core, actor, given);
  core.waitingActors.add(actor);
  if (actor.unreachable) core.unreachable.push(actor);
}

/** Calls that the lost isolate had been given: those with retries left come before what their callers have waiting, in the order they had. */
function giveBack(core: Core, actor: Actor, given: readonly Task[]): void {
  const again = new Map<Channel, Task[]>();
  for (const task of given) {
    if (task.state === TASK_STATE.DONE) continue;
    const retries = retriesOf(actor, task);
    if (task.cancelled === undefined && !task.channel.closed && (retries === -1 || task.attempt < retries)) {
      takeBack(core, task);
      task.attempt++;
      const of = again.get(task.channel);
      if (of === undefined) again.set(task.channel, [task]);
      else of.push(task);
      continue;
    }
    actor.inFlight--;
    task.slot = undefined;
    concludeTask(core, task, task.cancelled ?? { code: 'ACTOR_UNAVAILABLE', message: `the actor was lost and starts again; whether this call has run is not known: ${actor.reason}`, stack: '' });
  }
  for (const [caller, tasks] of again) actor.queues.set(caller, [...tasks, ...(actor.queues.get(caller) ?? [])]);
}

/** The text of a failure, with its code where that says more. */
function told({ code, message }: Failure): string {
  return code === 'ACTOR_DIED' || code === 'CANCELLED' || code === 'TASK_FAILED' ? message : `${message} (${code})`;
}

/** Ends an actor: its calls fail, its isolate goes, its name is free again. `lost`: by what happened to it, not by what it or anyone did. */
export function actorDied(core: Core, actor: Actor, failure: Failure, lost = false): void {
  if (actor.state === 'DEAD') return;
  const { creation, job: { tenant }, session, index } = actor;
  const reason = told(failure);
  actor.state = 'DEAD';
  actor.reason = reason;
  if (failure.code === 'QUOTA_EXCEEDED') actor.refused = failure;
  actor.inFlight = 0;
  actor.job.actors.delete(actor);
  if (actor.template.options.detached) core.rootsChanged.push(actor.job);
  if (creation.channel.kind !== CHANNEL_KIND.PEER) tenant.actors--;
  core.waitingActors.delete(actor);
  core.lifecycle(tenant, 'actor.died', session.ownerId, 'actor', session.prefixHex, index, `${failure.code} ${actor.template.detail}`);
  if (actor.nameRegistered) core.out.push({ type: 'release-name', actor, id: makeId(session.prefix, index) });
  // Before its calls fail: its owner decides what becomes of them.
  tellCreator(core, creation.channel, index, lost ? ACTOR_STATE.LOST : ACTOR_STATE.ENDED, failure, creation.auditSeq);
  const given = unseat(core, actor);
  const died: Failure = { code: 'ACTOR_DIED', message: `the actor died: ${reason}`, stack: failure.stack };
  if (creation.state !== TASK_STATE.DONE) {
    creation.slot = undefined;
    concludeTask(core, creation, failure.code === 'CANCELLED' ? died : failure);
  }
  for (const task of given) {
    core.timed.delete(task);
    task.slot = undefined;
    concludeTask(core, task, task.cancelled ?? died);
  }
  for (const queue of actor.queues.values()) for (const task of queue) if (task.state === TASK_STATE.WAITING) concludeTask(core, task, died);
  actor.queues.clear();
  dropSeed(core, actor);
  remember(core, actor);
}

/** So many are remembered, unless their session has ended. */
function remember(core: Core, actor: Actor): void {
  const { deadActors } = actor.job.tenant;
  if (core.sessions.get(actor.session.prefixHex) !== actor.session) return;
  deadActors.add(actor);
  for (const oldest of deadActors) {
    if (deadActors.size <= MAX_DEAD_ACTORS_PER_TENANT) break;
    deadActors.delete(oldest);
    oldest.session.actors.delete(oldest.index);
    forgetSession(core, oldest.session);
  }
}

/** Actors that nobody can call any more: each ends when its last call has, or with its owner. */
export function endUnreachable(core: Core): void {
  for (const actor of core.unreachable.splice(0)) {
    if (actor.state === 'DEAD' || actor.template.options.detached || actor.escaped) continue;
    actor.unreachable = true;
    if (actor.inFlight === 0 || actor.session.closed) actorDied(core, actor, { code: 'ACTOR_DIED', message: actor.session.closed ? 'its owner ended' : 'nobody has a handle to it any more', stack: '' });
  }
}

/** The client that made these actors is gone: they end, but for detached ones and those that others have handles to. */
export function ownerEnded(core: Core, session: Session): void {
  for (const actor of [...session.actors.values()]) {
    if (actor.state === 'DEAD' || keepsJob(actor)) continue;
    const entry = session.objects.get(actor.index);
    if (actor.creation.channel.kind === CHANNEL_KIND.PEER || entry === undefined || entry.pins === 0 || entry.status === OBJECT_STATUS.FAILED) actorDied(core, actor, { code: 'ACTOR_DIED', message: 'its owner ended', stack: '' });
  }
}
