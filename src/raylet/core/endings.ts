/**
 * How calls end: with a result, an error of the tenant's code, a cancellation, a limit, or the death of the worker under
 * them. Every path concludes the call exactly once and gives its lease back.
 */
import { CALL_KIND, OP } from '../../base/frame.ts';
import { actorCreated, actorDied, actorLost, callEnded, ownerEnded } from './actors.ts';
import { isStarting } from './actor-seats.ts';
import type { Core } from './core.ts';
import { concludeTask, markSlot, releaseCreated, takeOff } from './dispatch.ts';
import { ABANDONED, dropDeferred, releaseSession, takeAllBack } from './objects.ts';
import { hasRetries, retry, wantsRetry } from './retries.ts';
import { dropLease, measure, remoteTaskEnded, requeue } from './scheduler.ts';
import { cancelRemote } from './upstreams.ts';
import { TASK_STATE, type Failure, type Slot, type Task, type Worker } from './state.ts';

/** A polite cancel has this long to take effect; then the isolate, or its process, is killed from outside. */
const GRACE_MS = 250;

/** The next exec of a lease starts where this one ended: its limits count from here. */
function startNext(core: Core, slot: Slot): void {
  if (slot.lease === undefined) return;
  for (const next of slot.execs.values()) {
    if (next.blocked > 0) continue;
    next.startedMs = core.nowMs;
    next.cpuAtStartMicros = 0;
    return;
  }
}

/** A call's results have been set, or it failed by `failure`. `results`: how many came in the same batch, for measuring. */
export function execEnded(core: Core, slot: Slot, task: Task, failure: Failure | undefined, results: number): void {
  if (!takeOff(core, task)) return;
  if (slot.lease !== undefined) {
    measure(core, slot, task, results);
    slot.lastResultMs = core.nowMs;
    releaseCreated(core, slot, task);
    startNext(core, slot);
  }
  if (wasPreempted(task)) {
    unstop(task);
    // What it returned before it was stopped counts.
    if (failure !== undefined) return requeue(core, task);
  }
  const end = task.cancelled ?? failure;
  const actor = slot.actor;
  // It waited in the isolate for its turn; when that came was not seen.
  if (task.startedMs === 0) task.startedMs = core.nowMs;
  if (task.template.kind === CALL_KIND.ACTOR_CLASS && actor !== undefined) {
    if (end !== undefined) return actorDied(core, actor, end);
    concludeTask(core, task, undefined);
    return actorCreated(core, actor);
  }
  if (end !== undefined && wantsRetry(task, end)) return retry(core, task, false);
  concludeTask(core, task, end);
  if (actor !== undefined) callEnded(core, actor);
}

/** A forwarded call has been answered by the other raylet. */
export function remoteEnded(core: Core, task: Task): void {
  if (task.state === TASK_STATE.DONE) return;
  const actor = task.actor;
  if (actor === undefined) remoteTaskEnded(core, task);
  concludeTask(core, task, task.stream === undefined ? undefined : task.cancelled);
  if (actor !== undefined) callEnded(core, actor);
}

/**
 * Another raylet is gone: what was only forwarded runs again elsewhere, as far as its retries allow; always when the channel was never open (`unopened`). Actors that
 * ran there have left it before.
 */
export function remoteLost(core: Core, tasks: readonly Task[], failure: Failure, unopened: boolean): void {
  for (const task of tasks) {
    // Its actor is owned over there, and may live on: one node cannot tell a lost connection from a lost node.
    if (task.template.kind !== CALL_KIND.TASK) concludeTask(core, task, task.cancelled ?? { code: 'ACTOR_UNAVAILABLE', message: `the node that owns the actor cannot be reached; whether this call has run is not known: ${failure.message}`, stack: '' });
    else {
      remoteTaskEnded(core, task);
      task.remoteSeq = 0;
      // Nothing has begun: no try was used.
      if (unopened && task.cancelled === undefined) requeue(core, task);
      else retryOrFail(core, task, failure);
    }
  }
}

function retryOrFail(core: Core, task: Task, failure: Failure): void {
  if (task.cancelled !== undefined) concludeTask(core, task, task.cancelled);
  else if (hasRetries(task)) retry(core, task, true);
  else concludeTask(core, task, failure);
}

const CANCELLED: Failure = { code: 'CANCELLED', message: 'the task was cancelled', stack: '' };

export function cancelTask(core: Core, task: Task, force: boolean, failure: Failure = CANCELLED): void {
  if (task.state === TASK_STATE.DONE || (task.cancelled !== undefined && !wasPreempted(task))) return;
  if (task.template.kind === CALL_KIND.ACTOR_CLASS) {
    const creating = task.channel.session.actors.get(task.seq);
    if (creating !== undefined) return actorDied(core, creating, { code: 'CANCELLED', message: 'its creation was cancelled', stack: '' });
  }
  if (task.state !== TASK_STATE.RUNNING) {
    const actor = task.actor;
    concludeTask(core, task, failure);
    if (actor !== undefined) callEnded(core, actor);
    return;
  }
  stopRunning(core, task, failure, force ? 0 : GRACE_MS * 8);
}

/**
 * A stream has lost its reader. What it runs in is killed when it does not stop, unless that is an actor: others call it, and have done
 * nothing. A generator in an actor that does not stop stays there until its own limits or the actor's end.
 */
export function leaveStream(core: Core, task: Task, failure: Failure): void {
  if (task.template.kind !== CALL_KIND.ACTOR_METHOD || task.state !== TASK_STATE.RUNNING) return cancelTask(core, task, false, failure);
  if (task.cancelled !== undefined) return;
  task.cancelled = failure;
  if (task.slot !== undefined) {
    task.slot.channel.out.begin(OP.CANCEL_EXEC).u32(task.exec).end();
    markSlot(core, task.slot);
  } else if (task.upstream !== undefined) cancelRemote(core, task.upstream, task, false);
}

/** It is to run again, for no fault of its own: `preemption.ts`. */
export function wasPreempted(task: Task): boolean {
  return task.cancelled?.code === 'PREEMPTED';
}

function unstop(task: Task): void {
  task.cancelled = undefined;
  task.killAtMs = 0;
  task.retryable = false;
}

/** Asks a running call to stop, and kills what it runs in when it has not within the grace. */
export function stopRunning(core: Core, task: Task, failure: Failure, graceMs: number): void {
  task.cancelled = failure;
  if (task.slot !== undefined) {
    task.slot.channel.out.begin(OP.CANCEL_EXEC).u32(task.exec).end();
    markSlot(core, task.slot);
    task.killAtMs = core.nowMs + graceMs;
    core.timed.add(task);
  } else if (task.upstream !== undefined) cancelRemote(core, task.upstream, task, graceMs === 0);
}

/** Limits, checked every tick from outside the isolate. */
export function enforceLimits(core: Core, cpuMicrosOf: (worker: Worker) => number): void {
  for (const task of core.timed) {
    const { options } = task.template;
    if (task.state === TASK_STATE.QUEUED || task.state === TASK_STATE.WAITING) {
      if (options.queueTimeoutMs > 0 && core.nowMs - task.queuedMs > options.queueTimeoutMs) concludeTask(core, task, { code: 'TIMEOUT', message: `the task did not start within ${options.queueTimeoutMs} ms`, stack: '' });
      continue;
    }
    const slot = task.slot;
    if (task.state !== TASK_STATE.RUNNING || slot === undefined) continue;
    if (task.killAtMs > 0) {
      if (core.nowMs >= task.killAtMs) killUnder(core, slot, task);
      continue;
    }
    if (slot.lease !== undefined && first(slot) !== task && task.blocked === 0) continue;
    if (task.startedMs === 0 && !noteBegun(core, slot, task)) continue;
    if (options.timeoutMs > 0 && core.nowMs - task.startedMs > options.timeoutMs) stopRunning(core, task, { code: 'TIMEOUT', message: `the call ran longer than its limit of ${options.timeoutMs} ms`, stack: '' }, GRACE_MS);
    else if (options.cpuTimeMs > 0) {
      const micros = cpuMicrosOf(slot.worker);
      if (task.cpuAtStartMicros === 0) task.cpuAtStartMicros = micros;
      else if (micros - task.cpuAtStartMicros > options.cpuTimeMs * 1_000) stopRunning(core, task, { code: 'TIMEOUT', message: `the call used more cpu time than its limit of ${options.cpuTimeMs} ms`, stack: '' }, 0);
    }
  }
}

/** Calls of an actor begin in the order they were sent, so many at once: whether this one has. Its limits count from when that is seen. */
function noteBegun(core: Core, slot: Slot, wanted: Task): boolean {
  let most = slot.actor?.template.options.maxConcurrency ?? 0;
  for (const task of slot.execs.values()) {
    if (most-- <= 0) break;
    if (task.startedMs === 0) task.startedMs = core.nowMs;
  }
  return wanted.startedMs !== 0;
}

function first(slot: Slot): Task | undefined {
  for (const task of slot.execs.values()) if (task.blocked === 0) return task;
  return undefined;
}

function killUnder(core: Core, slot: Slot, task: Task): void {
  task.killAtMs = Number.POSITIVE_INFINITY;
  const { actor } = slot;
  if (actor !== undefined) {
    // A call that cannot be stopped takes its actor's isolate with it: it runs nothing else.
    slot.stuck = true;
    const failure = task.cancelled as Failure;
    if (task.template.kind === CALL_KIND.ACTOR_CLASS) return actorDied(core, actor, failure);
    takeOff(core, task);
    concludeTask(core, task, failure);
    actor.inFlight--;
    actorLost(core, actor, { code: 'ACTOR_DIED', message: `a call had to be killed: ${failure.message}`, stack: '' });
  } else core.out.push({ type: 'kill-worker', worker: slot.worker, reason: 'TIMEOUT' });
}

/** One isolate is gone, or its whole process. `ours`: we killed it, so only the call that was meant is to blame. */
export function slotDied(core: Core, slot: Slot, failure: Failure, ours: boolean): void {
  const { worker } = slot;
  worker.slots.delete(slot.number);
  if (slot.actor !== undefined) {
    actorLost(core, slot.actor, failure);
    return closeSlotChannel(core, slot);
  }
  const tasks = [...slot.execs.values()];
  slot.execs.clear();
  let blame = !ours;
  const lease = slot.lease;
  if (lease !== undefined) {
    lease.active = 0;
    dropLease(core, lease);
  }
  const requeued: Task[] = [];
  for (const task of tasks) {
    core.timed.delete(task);
    task.slot = undefined;
    task.blocked = 0;
    task.created = undefined;
    if (wasPreempted(task)) {
      unstop(task);
      requeued.push(task);
    } else if (task.cancelled !== undefined) {
      if (wantsRetry(task, task.cancelled)) retry(core, task, false);
      else concludeTask(core, task, task.cancelled);
    } else if (!blame) requeued.push(task);
    else if (failure.code === 'OUT_OF_MEMORY' ? wantsRetry(task, failure) : hasRetries(task)) retry(core, task, failure.code !== 'OUT_OF_MEMORY');
    else concludeTask(core, task, failure);
    // A lease runs its calls in order: the first without a result is the one that did it; those behind it had not begun.
    blame = false;
  }
  for (const task of requeued.reverse()) requeue(core, task);
  closeSlotChannel(core, slot);
}

/** The isolate is gone, with its process or alone: what its code owned goes, tasks that only it could have asked about too. */
export function closeSlotChannel(core: Core, slot: Slot): void {
  const channel = slot.channel;
  if (channel.closed) return;
  channel.closed = true;
  for (const call of channel.pendingWaits) call.done = true;
  core.channels.delete(channel.number);
  slot.job.channels.delete(channel);
  const jobEnded = !core.jobs.has(slot.job.id);
  // Newest first: a task holds the results it waits for, so whoever waits lets go before what it waited for is looked at.
  for (const entry of [...channel.session.objects.values()].reverse()) {
    const task = entry.producer;
    if (task !== undefined && task.channel === channel && task.template.kind === CALL_KIND.TASK && (jobEnded || entry.pins === 0)) cancelTask(core, task, true);
    else if (task?.stream !== undefined && task.channel === channel) leaveStream(core, task, ABANDONED);
  }
  ownerEnded(core, channel.session);
  takeAllBack(core, channel);
  dropDeferred(core, channel);
  releaseSession(core, channel.session);
}

export function workerDied(core: Core, worker: Worker, failure: Failure, ours: boolean): void {
  if (worker.state === 'DEAD') return;
  worker.state = 'DEAD';
  core.workers.delete(worker.key);
  for (const slot of [...worker.slots.values()]) slotDied(core, slot, failure, ours);
  for (const job of core.jobs.values()) for (const actor of [...job.actors]) if (actor.worker === worker && actor.slot === undefined && isStarting(actor)) actorLost(core, actor, failure);
}
