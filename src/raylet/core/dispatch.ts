/**
 * How work gets onto a slot and off it again: templates, code and arguments go there before the EXEC that needs them; what
 * comes back settles the refs of the call. Tasks and actor calls share this.
 */
import { CALL_KIND, OP, STREAMS } from '../../base/frame.ts';
import { idTextOf } from '../../base/ids.ts';
import { MAX_FRAME_BYTES } from '../../base/limits.ts';
import type { Core } from './core.ts';
import { noteAttached } from './memory-books.ts';
import { fileFor, lend, LOST, putToFile, releaseIndex, settleFailed, unpin } from './objects.ts';
import { countCall } from './quota-tree.ts';
import { beginAttempt, endStream } from './streams.ts';
import { CHANNEL_KIND, Channel, OBJECT_STATUS, Slot, TASK_STATE, type Failure, type Job, type ObjectEntry, type Task, type Template, type Worker } from './state.ts';

const EXEC_HEADER_BYTES = 64;
/** How an argument comes with an EXEC, and that another tenant made it: what runs the call then reads it as data only. */
const ATTACHED = 1;
const FOREIGN = 2;

export function markSlot(core: Core, slot: Slot): void {
  if (slot.channel.dirty) return;
  core.markChannel(slot.channel, -1);
}

/** A new isolate on a worker, with a session of its own for the calls its code makes. */
export function openSlot(core: Core, worker: Worker, job: Job, memoryBytes: number, depth: number): Slot {
  const slot = new Slot(worker, worker.nextSlot++, job);
  const session = core.newSession(job.tenant, job.principal.spiffeId);
  session.project = job.project;
  const channel = new Channel(core.nextNumber(), CHANNEL_KIND.SLOT, session, job, job.principal, depth, slot);
  slot.channel = channel;
  core.channels.set(channel.number, channel);
  job.channels.add(channel);
  worker.slots.set(slot.number, slot);
  core.out.push({ type: 'open-slot', slot, memoryMiB: Math.max(16, Math.ceil(memoryBytes / 2 ** 20)) });
  return slot;
}

function templateOn(core: Core, slot: Slot, template: Template): number {
  const known = slot.templates.get(template);
  if (known !== undefined) return known;
  // A method is of the class that its slot's actor was made from.
  const digestHex = slot.actor === undefined ? template.digestHex : slot.actor.template.digestHex;
  let code = slot.codes.get(digestHex);
  if (code === undefined) {
    code = slot.codes.size + 1;
    slot.codes.set(digestHex, code);
    core.out.push({ type: 'load-code', slot, codeNumber: code, digestHex });
  }
  const number = slot.nextTemplate++;
  slot.templates.set(template, number);
  const { cpuUnits, memoryBytes, custom } = template.options.resources;
  const resources: Record<string, number> = { cpus: cpuUnits / 10_000, memory: memoryBytes };
  if (custom !== undefined) for (const resource of Object.keys(custom)) resources[resource] = (custom[resource] ?? 0) / 10_000;
  // What the code sees as `context()`: RuntimeContext of src/sdk/runtime.ts. The prelude keeps `concurrency`, `origin` and `retryOn` to itself.
  const concurrency = template.kind === CALL_KIND.ACTOR_CLASS ? template.options.maxConcurrency : undefined;
  const { actor, job } = slot;
  const context = JSON.stringify({
    code: `sha256:${digestHex}`, jobId: job.id, tenant: job.tenant.name, principal: job.principal.spiffeId, nodeId: core.config.nodeId, namespace: actor?.template.options.namespace ?? '',
    actorId: actor === undefined ? null : idTextOf(actor.template.originHex, actor.creation.origin), name: nameOf(template), resources, concurrency, origin: template.originHex,
    ...(template.options.traceparent === '' ? {} : { traceparent: template.options.traceparent }),
    ...(actor === undefined || actor.template.options.name === '' ? {} : { actorName: actor.template.options.name }),
    ...(template.options.concurrencyGroup === '' ? {} : { concurrencyGroup: template.options.concurrencyGroup }),
    ...(template.options.placement === undefined || template.options.placement.group === '' ? {} : { placementGroup: template.options.placement.group, ...(template.options.captureChildTasks ? { captureChildTasks: true } : {}) }),
    ...(template.options.jobNamespace === '' ? {} : { jobNamespace: template.options.jobNamespace }),
    retryOn: template.kind === CALL_KIND.TASK && template.options.retryOn.length > 0 ? template.options.retryOn : undefined,
  });
  slot.channel.out.begin(OP.TEMPLATE).u32(number).u8(template.kind).u32(code).str(template.exportName).str(template.methodName).u8(template.options.stream === undefined ? template.options.returns : STREAMS).text(context).end();
  return number;
}

/** Sends a call whose arguments are all here. */
export function sendExec(core: Core, slot: Slot, task: Task): void {
  const number = templateOn(core, slot, task.template);
  const exec = slot.nextExec++;
  task.exec = exec;
  task.slot = slot;
  task.ranOn = slot;
  task.state = TASK_STATE.RUNNING;
  if (task.depth > slot.deepest) slot.deepest = task.depth;
  // Behind as many as its actor runs at once it waits in the isolate.
  task.startedMs = slot.actor !== undefined && slot.execs.size >= slot.actor.template.options.maxConcurrency ? 0 : core.nowMs;
  slot.execs.set(exec, task);
  if (slot.execs.size === 1) slot.lastResultMs = core.nowMs;
  const kind = task.template.kind === CALL_KIND.TASK ? 0 : task.template.kind === CALL_KIND.ACTOR_CLASS ? 1 : 2;
  const deps = task.deps;
  if (deps !== undefined) {
    // A thousand inline values do not fit one frame, and a frame that is too large would end this step, which may be another tenant's.
    let room = MAX_FRAME_BYTES - EXEC_HEADER_BYTES - 7 * deps.length - (task.argsEnd - task.restStart);
    for (const entry of deps) {
      if (entry.status !== OBJECT_STATUS.INLINE) continue;
      if (entry.size > room) putToFile(core, entry);
      else room -= entry.size;
    }
    for (const entry of deps) {
      if (entry.status === OBJECT_STATUS.INLINE) continue;
      // Its file was lost while the call waited for its turn.
      const file = entry.status === OBJECT_STATUS.FILE ? fileFor(core, entry, slot.job.tenant) : (entry.failure ?? LOST);
      // It has its place on the slot, as if the worker had refused it: it ends when this step does, and the next call is sent then.
      if (typeof file !== 'string') return void core.refusedExecs.push({ slot, task, failure: file });
    }
  }
  const out = slot.channel.out.begin(OP.EXEC).u32(exec).u8(kind).u32(number).u32(task.attempt).u32(task.origin).u16(deps === undefined ? 0 : deps.length);
  if (deps !== undefined) {
    for (let i = 0; i < deps.length; i++) {
      const entry = deps[i]!;
      out.u16((task.depPositions as number[])[i] as number);
      if (entry.contained !== undefined) lend(core, slot.channel, entry.contained);
      const foreign = entry.session.tenant === slot.job.tenant ? 0 : FOREIGN;
      if (entry.status === OBJECT_STATUS.INLINE) out.u8(foreign).bytes(entry.value as Uint8Array);
      else {
        const attachment = slot.nextAttachment++;
        noteAttached(core, entry, slot);
        core.out.push({ type: 'attach', slot, attachment, fileName: fileFor(core, entry, slot.job.tenant) as string, size: entry.size });
        out.u8(ATTACHED | foreign).u32(attachment);
      }
    }
  }
  if (task.contained !== undefined) lend(core, slot.channel, task.contained);
  out.range(task.batch, task.restStart, task.argsEnd).end();
  markSlot(core, slot);
  if (task.stream !== undefined) beginAttempt(core, task);
  const template = task.template.options;
  if (template.timeoutMs > 0 || template.cpuTimeMs > 0) core.timed.add(task);
}

/** Takes a call off its slot. True when it was there. */
export function takeOff(core: Core, task: Task): boolean {
  const slot = task.slot;
  if (slot === undefined || !slot.execs.delete(task.exec)) return false;
  core.timed.delete(task);
  if (slot.lease !== undefined && task.blocked === 0) slot.lease.active--;
  task.blocked = 0;
  task.slot = undefined;
  return true;
}

/** The end of a call, whatever it was: arguments are let go, refs made by it too, its place among the finished is noted. */
export function concludeTask(core: Core, task: Task, failure: Failure | undefined): void {
  const before = task.state;
  if (before === TASK_STATE.DONE) return;
  task.state = TASK_STATE.DONE;
  if (before === TASK_STATE.QUEUED) task.template.schedulingClass?.queue.ended();
  else if (before === TASK_STATE.WAITING && task.actor !== undefined) task.actor.endedWaiting++;
  task.letGo();
  core.timed.delete(task);
  const channel = task.channel;
  channel.inFlight--;
  if (task.parent !== undefined) {
    task.parent.children--;
    task.parent = undefined;
  }
  countCall(channel, task.template.kind, -1);
  core.callsInFlight--;
  if (failure !== undefined) {
    const entries = Math.max(task.template.kind === CALL_KIND.ACTOR_CLASS ? 1 : task.template.options.returns, 1);
    for (let i = 0; i < entries; i++) {
      const entry = channel.session.objects.get(task.seq + i);
      if (entry !== undefined && entry.producer === task) settleFailed(core, entry, failure);
    }
  }
  if (task.stream !== undefined) endStream(core, task, failure);
  if (task.deps !== undefined) {
    for (const entry of task.deps) {
      entry.uses--;
      unpin(core, entry);
    }
  }
  if (task.contained !== undefined) endCarried(core, task, task.contained);
  task.deps = undefined;
  task.contained = undefined;
  // Of what ran on another node, its result tells.
  const end = failure ?? (task.upstream === undefined ? undefined : channel.session.objects.get(task.seq)?.failure);
  channel.job.tenant.history.note(task, end !== undefined, end === undefined ? '' : shortened(`${end.code}: ${end.message}`), channel.kind === CHANNEL_KIND.PEER, core.nowMs);
  task.caller = undefined;
  if (failure !== undefined) core.lifecycle(channel.job.tenant, 'task.failed', channel.principal.spiffeId, 'task', channel.session.prefixHex, task.seq, `${failure.code} ${task.template.detail}`);
}

/** Refs inside the arguments of a call that has ended: held until the raylet that ran it has told their owners what it keeps. */
function endCarried(core: Core, task: Task, carried: readonly ObjectEntry[]): void {
  const { upstream, channel } = task;
  if (upstream !== undefined && !upstream.closed && task.remoteSeq !== 0 && !upstream.returnedEarly.delete(task.remoteSeq)) upstream.returning.set(task.remoteSeq, carried);
  else for (const entry of carried) unpin(core, entry);
  if (channel.kind === CHANNEL_KIND.PEER && !channel.closed) core.returned.push({ channel, seq: task.seq, entries: carried });
}

const REASON_CHARS = 200;

/** What is kept of thousands of failures. Copied: a slice would keep all of the text it is of. */
function shortened(text: string): string {
  return text.length <= REASON_CHARS ? text : `${Array.from(text.slice(0, REASON_CHARS)).join('')}…`;
}

/** Refs that a task's code made and did not return are released with it: a task cannot hold what outlives it. */
export function releaseCreated(core: Core, slot: Slot, task: Task): void {
  const created = task.created;
  task.created = undefined;
  if (created === undefined) return;
  for (const index of created) releaseIndex(core, slot.channel.session, index);
}

export function taskName(task: Task): string {
  return nameOf(task.template);
}

export function nameOf({ options, kind, exportName, methodName }: Template): string {
  if (options.name !== '' && kind === CALL_KIND.TASK) return options.name;
  return methodName === '' ? exportName : `${exportName}.${methodName}`;
}
