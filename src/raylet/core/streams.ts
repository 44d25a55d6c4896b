/**
 * Calls that stream: items become objects of the reader's session as they are yielded, and no further ahead of the reader than its window.
 * The reader grants items (MORE), the producer is told how many it may send (PULL), in numbers that go through all attempts of the call.
 * Must never: buffer what the reader did not grant, believe a worker about how much it may send, or make a promise or a closure per item.
 */
import { resource } from '../../base/decision.ts';
import { BulkheadError } from '../../base/errors.ts';
import { NO_ITEM, OP, type FrameReader } from '../../base/frame.ts';
import { MAX_ANSWER_BYTES, MAX_INLINE_BYTES, MAX_OBJECTS_PER_TENANT, MAX_PUSHED_BYTES, MAX_REFS_PER_CALL } from '../../base/limits.ts';
import { makeId, type Core } from './core.ts';
import { borrow, block, checkStagedSize, createEntry, DENIED, findEntry, releaseHandle, settleFile, settleInline, settleRemote, unblock } from './objects.ts';
import { CHANNEL_KIND, OBJECT_STATUS, TASK_STATE, type Channel, type Failure, type ObjectEntry, type Slot, type Stream, type Task, type Upstream } from './state.ts';

/** What an item costs of MAX_ANSWER_BYTES besides its value. */
const ITEM_COST = 64;
const MAX_INDEX = 0xffff_ffff;

// --- the reader's side ----------------------------------------------------------------------------------------------------

/** MORE: the reader has taken some items, grants more, into these indexes of its session, or waits for one. */
export function onMore(core: Core, channel: Channel, r: FrameReader): void {
  const exec = r.u32();
  const seq = r.u32();
  const skip = r.u32();
  const waitsFor = r.u32();
  const read = r.u32();
  const first = r.u32();
  const count = r.u32();
  r.finish();
  const entry = channel.session.objects.get(seq);
  const task = entry?.producer;
  const stream = task !== undefined && task.channel === channel && task.seq === seq ? task.stream : undefined;
  if (task === undefined || stream === undefined) {
    // It ended a moment ago, and its reader will know; or it never began, and this is how its reader learns why.
    if (entry?.status === OBJECT_STATUS.FAILED) writeEnd(core, channel, seq, 0, entry.failure, -1);
    return;
  }
  if (!stream.opened) {
    stream.opened = true;
    stream.delivered = stream.granted = stream.skip = skip;
  } else if (skip !== 0) throw new BulkheadError('INVALID_ARGUMENT', 'a stream that has begun does not pass over items');
  if (read > 0) taken(stream, read);
  if (count > 0) grant(core, channel, task, stream, first, count);
  if (stream.remote && task.upstream !== undefined && task.state === TASK_STATE.RUNNING && read + count > 0) pullRemote(core, task.upstream, task, stream, 0, read, count);
  else if (read > 0 && count === 0 && task.slot !== undefined && task.state === TASK_STATE.RUNNING) pull(core, task, stream);
  const reader = exec === 0 ? undefined : channel.slot?.execs.get(exec);
  if (waitsFor === NO_ITEM || reader === undefined || stream.waiting !== undefined || stream.delivered > waitsFor) return;
  stream.waiting = reader;
  stream.waitingExec = exec;
  block(reader);
}

function grant(core: Core, channel: Channel, task: Task, stream: Stream, first: number, count: number): void {
  if (first === 0 || first + count > MAX_INDEX) throw new BulkheadError('INVALID_ARGUMENT', 'the indexes of a stream’s items are out of range');
  if (stream.granted - stream.delivered + count > stream.window.items) throw new BulkheadError('INVALID_ARGUMENT', `a reader grants more than the ${stream.window.items} items of its stream’s window`);
  const { session } = channel;
  const { label } = task.template.options;
  const target = label === '' ? session.objectResource : resource('object', { tenant: session.tenant.name, owner: session.ownerId, label });
  const decided = core.decide(channel, 'object.get', target, session.prefixHex, first, count, 'stream');
  stream.needed = Math.max(stream.needed, decided < 0 ? ~decided : decided);
  if (decided < 0) return void core.toEnd.push({ task, failure: DENIED });
  stream.granted += count;
  if (stream.nextIndex === stream.endIndex) {
    stream.nextIndex = first;
    stream.endIndex = first + count;
  } else stream.indexes.push(first, count);
  if (task.state !== TASK_STATE.RUNNING) return;
  if (task.slot !== undefined) pull(core, task, stream);
}

/** What it took is no more than what came: after a call was forwarded anew, it may say more than came from there. */
function taken(stream: Stream, count: number): void {
  const n = Math.min(count, stream.unread.length);
  for (let i = 0; i < n; i++) stream.unreadBytes -= stream.unread[i] as number;
  stream.unread.splice(0, n);
}

function writeEnd(core: Core, channel: Channel, seq: number, items: number, failure: Failure | undefined, needed: number): void {
  if (channel.closed) return;
  channel.out.begin(OP.STREAM_END).u32(seq).u32(items).str(failure?.code ?? '').text(failure?.message ?? '').text(failure?.stack ?? '').end();
  core.markChannel(channel, needed);
}

/** The call is over, well or not: the reader is told after the items that came before. */
export function endStream(core: Core, task: Task, failure: Failure | undefined): void {
  const stream = task.stream as Stream;
  const { channel } = task;
  const why = failure ?? channel.session.objects.get(task.seq)?.failure;
  if (task.upstream !== undefined) task.upstream.streams.delete(task.remoteSeq);
  wakeReader(stream);
  writeEnd(core, channel, task.seq, stream.count, why, stream.needed);
  core.lifecycle(channel.job.tenant, 'stream.ended', channel.principal.spiffeId, 'task', channel.session.prefixHex, task.seq, `${stream.count} items of ${task.template.detail}`);
}

function wakeReader(stream: Stream): void {
  const reader = stream.waiting;
  if (reader === undefined) return;
  stream.waiting = undefined;
  // Not if it ended meanwhile, or runs again.
  if (reader.slot !== undefined && reader.exec === stream.waitingExec && reader.blocked > 0) unblock(reader);
}

// --- the producer's side --------------------------------------------------------------------------------------------------

/** The call was given to a slot, for the first time or again. */
export function beginAttempt(core: Core, task: Task): void {
  const stream = task.stream as Stream;
  stream.skip = stream.delivered;
  stream.sentBytes = 0;
  stream.stalled = false;
  stream.remote = false;
  pull(core, task, stream);
}

/** Tells the isolate how far it may go. */
function pull(core: Core, task: Task, stream: Stream): void {
  const slot = task.slot as Slot;
  stream.upTo = stream.granted;
  stream.room = stream.sentBytes + Math.max(0, stream.window.bytes - stream.unreadBytes);
  slot.channel.out.begin(OP.PULL).u32(task.exec).u32(stream.skip).u32(stream.upTo).u64(stream.room).end();
  core.markChannel(slot.channel, -1);
  noteStall(task, stream);
}

/** A producer that must wait for its reader holds no cpu: what the reader does next may need it. */
function noteStall(task: Task, stream: Stream): void {
  const stalled = stream.delivered >= stream.upTo || stream.sentBytes >= stream.room;
  if (stalled === stream.stalled) return;
  stream.stalled = stalled;
  if (stalled) block(task);
  else unblock(task);
}

/** ITEM out of an isolate. Throws when it is not one that the isolate may send. */
export function onItem(core: Core, slot: Slot, r: FrameReader): void {
  const exec = r.u32();
  const form = r.u8();
  const task = slot.execs.get(exec);
  const refs = r.refCount(MAX_REFS_PER_CALL);
  if (form > 1) throw new BulkheadError('INVALID_ARGUMENT', `item form ${form}`);
  // Of a call that was cancelled a moment ago.
  if (task === undefined || task.cancelled !== undefined) return r.skipRest();
  const { stream } = task;
  if (stream === undefined) throw new BulkheadError('INVALID_ARGUMENT', 'an item of a call that does not stream');
  if (stream.delivered >= stream.upTo || stream.sentBytes >= stream.room) throw new BulkheadError('INVALID_ARGUMENT', 'an item beyond what its reader has room for');
  let contained: ObjectEntry[] | undefined;
  for (let i = 0; i < refs; i++) {
    const inner = findEntry(core, slot.channel, r.id());
    if (inner !== undefined) (contained ??= []).push(inner);
  }
  let size: number;
  if (form === 0) {
    size = r.remaining;
    if (size > MAX_INLINE_BYTES) throw new BulkheadError('INVALID_ARGUMENT', `an item of ${size} bytes is staged, not sent`);
    deliverInline(core, task, stream, r.rest(), contained);
  } else {
    const staged = r.u32();
    size = r.u64();
    r.finish();
    checkStagedSize(size);
    const entry = newItem(core, task, stream, contained);
    if (entry !== undefined) {
      const fileName = `obj-${entry.session.prefixHex}-${entry.index}`;
      core.out.push({ type: 'seal-staged', worker: slot.worker, slotNumber: slot.number, staged, fileName, size, entry });
      settleFile(core, entry, fileName, size);
      writeItem(core, task, stream, entry, size);
    }
  }
  stream.sentBytes += size;
  noteStall(task, stream);
}

/** The next index that the reader gave for items. */
function takeIndex(stream: Stream): number {
  const index = stream.nextIndex++;
  if (stream.nextIndex === stream.endIndex && stream.indexes.length > 0) {
    stream.nextIndex = stream.indexes[0] as number;
    stream.endIndex = stream.nextIndex + (stream.indexes[1] as number);
    stream.indexes.splice(0, 2);
  }
  return index;
}

/** The object of an item; undefined where none can be made, and then its stream ends. */
function newItem(core: Core, task: Task, stream: Stream, contained: readonly ObjectEntry[] | undefined): ObjectEntry | undefined {
  const { channel } = task;
  const { session } = channel;
  const index = takeIndex(stream);
  if (channel.closed) return undefined;
  if (session.tenant.entries >= MAX_OBJECTS_PER_TENANT || session.objects.has(index)) {
    const failure: Failure = session.objects.has(index)
      ? { code: 'INVALID_ARGUMENT', message: `object index ${index} is used twice`, stack: '' }
      : { code: 'RESOURCE_EXHAUSTED', message: `the tenant has more than ${MAX_OBJECTS_PER_TENANT} objects on this node: release refs`, stack: '' };
    core.toEnd.push({ task, failure });
    return undefined;
  }
  const entry = createEntry(session, index);
  entry.label = task.template.options.label;
  if (contained !== undefined) {
    for (const inner of contained) {
      inner.pins++;
      borrow(core, inner, channel);
    }
    entry.contained = contained as ObjectEntry[];
  }
  if (channel.slot?.lease === undefined) return entry;
  // As every ref that a task makes: it goes with the task.
  const { reader } = stream;
  if (reader !== undefined && reader.slot === channel.slot) (reader.created ??= []).push(index);
  return entry;
}

/** `value` may be a view of a batch. */
function deliverInline(core: Core, task: Task, stream: Stream, value: Uint8Array, contained: ObjectEntry[] | undefined): void {
  const { channel } = task;
  if (channel.kind === CHANNEL_KIND.PEER && contained === undefined && channel.answeredBytes < MAX_ANSWER_BYTES && !channel.closed) {
    // The other raylet owns it: nothing of it stays here.
    takeIndex(stream);
    channel.answeredBytes += ITEM_COST + value.length;
    channel.out.begin(OP.STREAM_ITEM).u32(task.seq).u8(0).raw(value).end();
    return noteItem(core, channel, stream, value.length);
  }
  const entry = newItem(core, task, stream, contained);
  if (entry === undefined) return;
  settleInline(core, entry, value.slice());
  writeItem(core, task, stream, entry, value.length);
}

function noteItem(core: Core, channel: Channel, stream: Stream, size: number): void {
  stream.delivered++;
  stream.count++;
  stream.unread.push(size);
  stream.unreadBytes += size;
  core.markChannel(channel, stream.needed);
  if (stream.waiting !== undefined) wakeReader(stream);
}

/** Tells the reader of an item: with its value where that is small and the reader keeps up, else it has the ref and asks. */
function writeItem(core: Core, task: Task, stream: Stream, entry: ObjectEntry, size: number): void {
  const { channel } = task;
  const pushed = entry.status === OBJECT_STATUS.INLINE && entry.size <= MAX_PUSHED_BYTES && entry.contained === undefined && channel.answeredBytes < MAX_ANSWER_BYTES;
  channel.answeredBytes += ITEM_COST + (pushed ? entry.size : 0);
  channel.out.begin(OP.STREAM_ITEM).u32(task.seq).u8(pushed ? 0 : 1);
  if (pushed) channel.out.raw(entry.value as Uint8Array);
  else channel.out.u64(size);
  channel.out.end();
  noteItem(core, channel, stream, size);
  // Its reader's call is over: nobody can hold it.
  if (channel.slot?.lease !== undefined && stream.reader?.slot !== channel.slot) releaseHandle(core, entry);
}

// --- streams that run on another raylet -----------------------------------------------------------------------------------

/** The call was forwarded: the other raylet passes over what was delivered already, from another node or from here. */
export function openRemoteStream(core: Core, upstream: Upstream, task: Task): void {
  const stream = task.stream as Stream;
  upstream.streams.set(task.remoteSeq, task);
  stream.skip = stream.delivered;
  stream.remote = true;
  stream.remoteIndexes = [];
  pullRemote(core, upstream, task, stream, stream.delivered, 0, stream.granted - stream.delivered);
}

function pullRemote(core: Core, upstream: Upstream, task: Task, stream: Stream, skip: number, read: number, count: number): void {
  const first = upstream.nextSeq;
  upstream.nextSeq += count;
  if (count > 0) stream.remoteIndexes.push(first, first + count);
  upstream.out.begin(OP.MORE).u32(0).u32(task.remoteSeq).u32(skip).u32(NO_ITEM).u32(read).u32(first).u32(count).end();
  core.markUpstream(upstream, stream.needed);
}

/** STREAM_ITEM from another raylet. Throws when it was not asked for. */
export function onRemoteItem(core: Core, upstream: Upstream, r: FrameReader): void {
  const task = upstream.streams.get(r.u32());
  const form = r.u8();
  const { stream } = task ?? {};
  // Of a call that ended here a moment ago.
  if (task === undefined || stream === undefined || task.state !== TASK_STATE.RUNNING || task.cancelled !== undefined) return r.skipRest();
  const [next = 0, end = 0] = stream.remoteIndexes;
  if (next === end || form > 1) throw new BulkheadError('INVALID_ARGUMENT', 'an item that was not asked for');
  if (next + 1 === end) stream.remoteIndexes.splice(0, 2);
  else stream.remoteIndexes[0] = next + 1;
  if (form === 0) {
    if (r.remaining > MAX_INLINE_BYTES) throw new BulkheadError('INVALID_ARGUMENT', 'an item that is too large to be sent whole');
    return deliverInline(core, task, stream, r.rest(), undefined);
  }
  const size = r.u64();
  r.finish();
  const id = makeId(upstream.prefix as Uint8Array, next);
  const entry = newItem(core, task, stream, undefined);
  if (entry === undefined) {
    upstream.out.begin(OP.RELEASE).refs([id]).end();
    return core.markUpstream(upstream, -1);
  }
  entry.remote = upstream;
  entry.remoteId = id;
  settleRemote(core, entry);
  writeItem(core, task, stream, entry, size);
}
