/**
 * Forwarded work that another node has not begun, while there is room elsewhere: a report is old when it comes, and what took the room there may
 * stay for good, as an actor does. Who forwarded asks for it back (RECALL); who has it gives it back only if nothing of it has run.
 * Must never: let a call run twice, or take back what another channel sent.
 */
import { BulkheadError } from '../../base/errors.ts';
import { CALL_KIND, OP, type FrameReader } from '../../base/frame.ts';
import { fits, type ResourceVector } from '../../base/resources.ts';
import { actorDied } from './actors.ts';
import { isStarting, unseat } from './actor-seats.ts';
import type { Core } from './core.ts';
import { done, failRequest } from './deciding.ts';
import { concludeTask } from './dispatch.ts';
import { allowedPlaces, placesOf, type Placement } from './placement.ts';
import { mayHold } from './quota-tree.ts';
import { remoteTaskEnded, requeue, roomIn } from './scheduler.ts';
import { CHANNEL_KIND, TASK_STATE, type Actor, type Channel, type Failure, type RemoteLease, type SchedulingClass, type Task } from './state.ts';
import { askRemote, takeBackTasks } from './upstreams.ts';

/** How long it may take until work that was forwarded begins, and at most between two questions after refusals. */
const UNBEGUN_MS = 1_000;
/** Classes and actors are many, and ticks too. */
const LOOK_MS = UNBEGUN_MS / 4;
const MAX_PAUSE_MS = 60_000;
const AT_ONCE = 64;
const RECALLED: Failure = { code: 'CANCELLED', message: 'the raylet that had sent it took it back before it began', stack: '' };
const BEGUN: Failure = { code: 'UNAVAILABLE', message: 'it has begun, or is not here', stack: '' };

/** How many more of these there is room for, on this node or on another one than `node`. */
function roomElsewhere(core: Core, node: number, placement: Placement | undefined, wanted: ResourceVector, mayRunHere: boolean): number {
  for (const place of placement === undefined ? placesOf(core) : allowedPlaces(core, placement, wanted)) {
    if (place.number === node || !fits(wanted, place.available) || (place.number === core.config.nodeNumber && !mayRunHere)) continue;
    return Math.min(AT_ONCE, roomIn(wanted, place.available));
  }
  return 0;
}

/** Once in a while. */
export function recallUnbegun(core: Core): void {
  if (core.nodes.size === 0 || core.nowMs - core.recalledMs < LOOK_MS) return;
  core.recalledMs = core.nowMs;
  for (const c of core.classes) {
    if (c.remoteLeases.size === 0 || c.queue.length > 0 || (c.placement?.group ?? '') !== '') continue;
    for (const lease of c.remoteLeases.values()) {
      if (lease.inFlight === 0 || lease.upstream.closed || core.nowMs - Math.max(lease.lastResultMs, lease.recalledMs) < Math.min(UNBEGUN_MS * 2 ** lease.refusals, MAX_PAUSE_MS)) continue;
      const room = roomElsewhere(core, lease.upstream.nodeNumber, c.placement, c.resources, mayHold(c.job, c.resources));
      if (room === 0) continue;
      lease.recalledMs = core.nowMs;
      // The last that were sent are the least likely to have begun.
      const waiting = [...lease.upstream.tasks].filter((task) => task.template.schedulingClass === c && isRecallable(core, task));
      for (const task of waiting.slice(-room)) recallTask(core, c, lease, task);
    }
  }
  for (const job of core.jobs.values()) for (const actor of job.actors) if (actor.upstream !== undefined && isStarting(actor)) recallActor(core, actor);
}

function isRecallable(core: Core, task: Task): boolean {
  return task.state === TASK_STATE.RUNNING && task.remoteSeq !== 0 && task.cancelled === undefined && task.stream === undefined && core.nowMs - task.startedMs >= UNBEGUN_MS;
}

function ask(core: Core, task: Task, answered: (refused: boolean) => void): void {
  const { upstream, remoteSeq } = task;
  if (upstream === undefined) return;
  askRemote(core, upstream, -1, (out, request) => out.begin(OP.RECALL).u32(request).u32(remoteSeq), (failure) => {
    // It has ended, or was taken back otherwise, meanwhile.
    if (task.state === TASK_STATE.RUNNING && task.upstream === upstream && task.remoteSeq === remoteSeq) answered(failure !== undefined);
  });
}

function recallTask(core: Core, c: SchedulingClass, lease: RemoteLease, task: Task): void {
  ask(core, task, (refused) => {
    if (refused) return void (lease.refusals = Math.min(lease.refusals + 1, 10));
    lease.refusals = 0;
    takeBackTasks(core, lease.upstream, (other) => other === task);
    remoteTaskEnded(core, task);
    task.remoteSeq = 0;
    if (task.cancelled !== undefined) concludeTask(core, task, task.cancelled);
    else requeue(core, task);
  });
}

function recallActor(core: Core, actor: Actor): void {
  const { creation, upstream, template: { options: { resources, placement } } } = actor;
  if (upstream === undefined || (placement?.group ?? '') !== '' || !isRecallable(core, creation) || core.nowMs < actor.notRecalledBeforeMs) return;
  if (roomElsewhere(core, upstream.nodeNumber, placement, resources, mayHold(actor.job, resources)) === 0) return;
  actor.notRecalledBeforeMs = core.nowMs + MAX_PAUSE_MS / 4;
  ask(core, creation, (refused) => {
    if (refused || !isStarting(actor) || actor.upstream !== upstream) return;
    unseat(core, actor);
    core.waitingActors.add(actor);
  });
}

/** RECALL: what this channel sent and nothing has begun of is forgotten; DONE says so before its refs fail. */
export function onRecall(core: Core, channel: Channel, r: FrameReader): void {
  if (channel.kind !== CHANNEL_KIND.PEER) throw new BulkheadError('INVALID_ARGUMENT', 'RECALL is for raylets');
  const request = r.u32();
  const seq = r.u32();
  r.finish();
  const actor = channel.session.actors.get(seq);
  if (actor !== undefined) {
    if (!isStarting(actor) || actor.creation.ranOn !== undefined || actor.worker !== undefined || actor.upstream !== undefined) return failRequest(core, channel, request, BEGUN, -1);
    done(core, channel, request, '', -1);
    return actorDied(core, actor, RECALLED);
  }
  const task = channel.session.objects.get(seq)?.producer;
  if (task === undefined || task.channel !== channel || task.template.kind !== CALL_KIND.TASK || (task.state !== TASK_STATE.QUEUED && task.state !== TASK_STATE.WAITING) || task.ranOn !== undefined) return failRequest(core, channel, request, BEGUN, -1);
  done(core, channel, request, '', -1);
  concludeTask(core, task, RECALLED);
}
