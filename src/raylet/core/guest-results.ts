/**
 * What comes out of an isolate besides runtime calls: results, failures, log lines. All of it is a tenant's claim about its own
 * calls: an exec number that is not on this slot, or a result of the wrong shape, hurts only that tenant.
 */
import { BulkheadError, isErrorCode } from '../../base/errors.ts';
import { CALL_KIND, type FrameReader } from '../../base/frame.ts';
import { objectIdText } from '../../base/ids.ts';
import { MAX_ERROR_MESSAGE_CHARS, MAX_FRAME_BYTES, MAX_REFS_PER_CALL, MAX_STACK_CHARS } from '../../base/limits.ts';
import { makeId, type Core } from './core.ts';
import { taskName } from './dispatch.ts';
import { actorDied } from './actors.ts';
import { execEnded, wasPreempted } from './endings.ts';
import { borrow, checkStagedSize, findEntry, settleFile, settleInline, withoutCause } from './objects.ts';
import { OBJECT_STATUS, type Failure, type ObjectEntry, type Slot } from './state.ts';

export function onResult(core: Core, slot: Slot, r: FrameReader, results: number): void {
  const exec = r.u32();
  const n = r.u8();
  const task = slot.execs.get(exec);
  const wanted = task === undefined ? -1 : task.template.kind === CALL_KIND.ACTOR_CLASS ? 0 : task.template.options.returns;
  // A call that was cancelled, or returned the wrong number of values, is answered by a failure below: its values are dropped.
  const keep = task !== undefined && (task.cancelled === undefined || wasPreempted(task)) && (n === wanted || task.template.kind === CALL_KIND.ACTOR_CLASS);
  for (let i = 0; i < n; i++) {
    const form = r.u8();
    const refs = r.refCount(MAX_REFS_PER_CALL);
    const entry = keep && task !== undefined && wanted > 0 ? task.channel.session.objects.get(task.seq + i) : undefined;
    let contained: ObjectEntry[] | undefined;
    for (let k = 0; k < refs; k++) {
      const inner = findEntry(core, slot.channel, r.id());
      if (inner === undefined || entry === undefined || inner === entry) continue;
      inner.pins++;
      borrow(core, inner, slot.channel);
      (contained ??= []).push(inner);
    }
    if (entry !== undefined && contained !== undefined) entry.contained = contained;
    if (form === 0) {
      const value = r.bytes(MAX_FRAME_BYTES);
      if (entry !== undefined) settleInline(core, entry, value.slice());
    } else if (form === 1) {
      const staged = r.u32();
      const size = r.u64();
      checkStagedSize(size);
      if (entry === undefined || task === undefined) continue;
      // Not its index: what is computed again must not take the place of what is there.
      const fileName = `res-${task.channel.session.prefixHex}-${core.nextNumber()}`;
      core.out.push({ type: 'seal-staged', worker: slot.worker, slotNumber: slot.number, staged, fileName, size, entry });
      settleFile(core, entry, fileName, size);
    } else throw new BulkheadError('INVALID_ARGUMENT', `result form ${form}`);
  }
  r.finish();
  if (task === undefined) return;
  let failure: Failure | undefined;
  if (!keep && task.cancelled === undefined) failure = { code: 'TASK_FAILED', message: `${taskName(task)} must return ${wanted} values, it returned ${n}`, stack: '' };
  else if (keep && task.template.kind === CALL_KIND.ACTOR_CLASS) {
    const entry = task.channel.session.objects.get(task.seq);
    // The creation's own ref is ready when the actor is: its value is CBOR null.
    if (entry !== undefined && entry.status === OBJECT_STATUS.PENDING) settleInline(core, entry, Uint8Array.of(0xf6));
  } else if (keep && wanted === 0) {
    const entry = task.channel.session.objects.get(task.seq);
    if (entry !== undefined) settleInline(core, entry, Uint8Array.of(0xf7));
  }
  execEnded(core, slot, task, failure, results);
}

export function onFailure(core: Core, slot: Slot, r: FrameReader, results: number): void {
  const exec = r.u32();
  const code = r.str();
  // Our prelude has cut both to so many characters; a text of megabytes would cost its size many times over.
  const message = r.text(4 * MAX_ERROR_MESSAGE_CHARS).slice(0, MAX_ERROR_MESSAGE_CHARS);
  const stack = r.text(4 * MAX_STACK_CHARS).slice(0, MAX_STACK_CHARS);
  r.finish();
  const task = slot.execs.get(exec);
  const failure: Failure = { code: isErrorCode(code) ? code : 'TASK_FAILED', message, stack };
  // An exception behind the stack is Python's to send: the text of others may quote what another tenant wrote.
  if (task !== undefined) execEnded(core, slot, task, slot.worker.runtime === 'javascript' ? withoutCause(failure) : failure, results);
}

/** What the call fails with next is of a class that its options name. A claim about the tenant's own call: it costs tries that the call has. */
export function onRetry(_core: Core, slot: Slot, r: FrameReader): void {
  const task = slot.execs.get(r.u32());
  r.finish();
  if (task !== undefined) task.retryable = true;
}

/** The actor's code ends it. What tasks run in is not theirs to end. */
export function onExit(core: Core, slot: Slot, r: FrameReader): void {
  r.u32();
  r.finish();
  if (slot.lease !== undefined) throw new BulkheadError('INVALID_ARGUMENT', 'EXIT is for actors');
  if (slot.actor !== undefined) actorDied(core, slot.actor, { code: 'ACTOR_DIED', message: 'it ended itself (exitActor)', stack: '' });
}

export function onLog(core: Core, slot: Slot, r: FrameReader): void {
  const exec = r.u32();
  const stream = r.u8();
  const text = r.rest();
  const task = slot.execs.get(exec);
  const id = task !== undefined ? objectIdText(makeId(task.channel.session.prefix, task.seq)) : slot.actor !== undefined ? objectIdText(makeId(slot.actor.session.prefix, slot.actor.index)) : '';
  const name = task !== undefined ? taskName(task) : (slot.actor?.template.exportName ?? '');
  core.out.push({ type: 'log', job: slot.job, taskId: id, actorId: slot.actor === undefined ? '' : objectIdText(makeId(slot.actor.session.prefix, slot.actor.index)), name, stream, text: text.slice() });
}
