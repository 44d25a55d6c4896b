/**
 * This raylet as the client of another one: it forwards tasks and actor calls there and fetches objects from there, with the
 * frames any client uses and the session credential of the job. The other raylet decides and records for itself.
 */
import { CALL_KIND, OP, type FrameReader, type FrameWriter } from '../../base/frame.ts';
import { isErrorCode } from '../../base/errors.ts';
import { SESSION_PREFIX_BYTES } from '../../base/ids.ts';
import { MAX_ERROR_MESSAGE_CHARS, MAX_GROUP_JSON_BYTES, MAX_OBJECT_BYTES, MAX_STACK_CHARS } from '../../base/limits.ts';
import { idWord, makeId, type Core } from './core.ts';
import { COPY_OUTCOME, onShare } from './broadcast.ts';
import { endBorrowing, onBorrowed, onReturned, onValueRefs } from './borrowing.ts';
import { copyChannelClosed, copyFailed, dropElsewhere, dropUpload, endCopy, onElsewhere, tellOwner } from './copies.ts';
import { tellRoots } from './job-roots.ts';
import { loseEntry } from './lineage.ts';
import { upstreamTo, whenOpen } from './upstream-channels.ts';
import { giveMemory, noMemoryFor, takeMemory } from './memory-books.ts';
import { ALTERED, collect, refuseReaders, settleFailed, settleFile, settleInline, settleRemote, unpin } from './objects.ts';
import { onRemoteItem, openRemoteStream } from './streams.ts';
import { OBJECT_STATUS, TASK_STATE, type Actor, type Channel, type Failure, type Job, type ObjectEntry, type Task, type Template, type Upstream, type UpstreamRequest } from './state.ts';

/** Asks another raylet for something that DONE or FAILED answers; `answered` is called once, also when the channel closes. */
export function askRemote(core: Core, upstream: Upstream, needed: number, write: (out: FrameWriter, request: number) => FrameWriter, answered: (failure: Failure | undefined, info: string) => void): void {
  const request = upstream.nextRequest++;
  upstream.asks.set(request, answered);
  whenOpen(upstream, () => {
    write(upstream.out, request).end();
    core.markUpstream(upstream, needed);
  });
}

function defineOn(core: Core, upstream: Upstream, template: Template): number {
  const known = upstream.templates.get(template);
  if (known !== undefined) return known;
  if (template.digestHex !== '' && !upstream.codes.has(template.digestHex)) {
    upstream.codes.add(template.digestHex);
    core.out.push({ type: 'stream-code', upstream, digestHex: template.digestHex });
  }
  const number = upstream.templates.size + 1;
  upstream.templates.set(template, number);
  const digest = new Uint8Array(32);
  for (let i = 0; i < 32 && template.digestHex !== ''; i++) digest[i] = Number.parseInt(template.digestHex.slice(2 * i, 2 * i + 2), 16);
  upstream.out.begin(OP.DEFINE).u32(number).u8(template.kind).raw(digest).str(template.exportName).str(template.methodName).text(JSON.stringify({ ...(JSON.parse(template.optionsJson === '' ? '{}' : template.optionsJson) as object), origin: template.originHex })).end();
  return number;
}

/**
 * Sends a task, actor creation or actor call to another raylet: its arguments go as they came (ids and CBOR), so that
 * nothing of the tenant's is decoded here. `actorId` is the id the actor has *there*.
 */
export function forward(core: Core, upstream: Upstream, task: Task, op: typeof OP.SUBMIT | typeof OP.CREATE_ACTOR | typeof OP.CALL_ACTOR, actorId: Uint8Array | undefined): void {
  task.state = TASK_STATE.RUNNING;
  task.upstream = upstream;
  task.startedMs = core.nowMs;
  task.remoteSeq = 0;
  if (task.stream !== undefined) task.stream.remote = false;
  upstream.tasks.add(task);
  if (task.contained !== undefined) noteEscapes(task.contained);
  whenOpen(upstream, () => {
    // Taken back meanwhile, or forwarded a second time before the first.
    if (task.state !== TASK_STATE.RUNNING || task.upstream !== upstream || task.remoteSeq !== 0) return;
    const number = defineOn(core, upstream, task.template);
    // A call without results has an index too, by which its end is told.
    const returns = op === OP.CREATE_ACTOR ? 1 : Math.max(task.template.options.returns, 1);
    task.remoteSeq = upstream.nextSeq;
    upstream.nextSeq += returns;
    // Depth and attempt in one word, as proto/frames.md has it.
    upstream.out.begin(op).u32(((task.depth << 24) | Math.min(task.attempt, 0xff_ffff)) >>> 0).u32(task.remoteSeq).u32(number).u8(task.depthLimit).u32(task.origin);
    if (actorId !== undefined) upstream.out.raw(actorId);
    upstream.out.range(task.batch, task.argsStart, task.argsEnd).end();
    core.markUpstream(upstream, task.auditSeq);
    if (op === OP.CREATE_ACTOR) {
      // What becomes of an actor is told without being asked for.
      const actor = task.channel.session.actors.get(task.seq);
      if (actor !== undefined) upstream.actors.set(task.remoteSeq, actor);
      return;
    }
    const prefix = upstream.prefix as Uint8Array;
    const ids: Uint8Array[] = [];
    const entries: ObjectEntry[] = [];
    for (let i = 0; i < returns; i++) {
      const entry = task.channel.session.objects.get(task.seq + i);
      if (entry === undefined) continue;
      ids.push(makeId(prefix, task.remoteSeq + i));
      entries.push(entry);
    }
    if (task.stream !== undefined) openRemoteStream(core, upstream, task);
    ask(core, upstream, OP.RESOLVE, entries, ids, task, false);
    // It was cancelled before the channel was open.
    if (task.cancelled !== undefined) cancelRemote(core, upstream, task, false);
  });
}

/** Handles of actors that leave for another node: nobody counts them there, so their actors stay. */
function noteEscapes(contained: readonly ObjectEntry[]): void {
  for (const entry of contained) {
    const actor = entry.session.actors.get(entry.index);
    if (actor !== undefined) actor.escaped = true;
  }
}

/** Refs in one RELEASE of taken back calls. */
const RELEASED_AT_ONCE = 10_000;

/** Takes forwarded calls back, in the order they were sent: answers to them are passed over from now on, and what they made there is let go. */
export function takeBackTasks(core: Core, upstream: Upstream, wanted: (task: Task) => boolean): Task[] {
  const taken = new Set<Task>();
  for (const task of upstream.tasks) if (wanted(task)) taken.add(task);
  for (const task of taken) {
    upstream.tasks.delete(task);
    if (task.stream !== undefined) upstream.streams.delete(task.remoteSeq);
  }
  const spent: Uint8Array[] = [];
  for (const request of taken.size === 0 ? [] : upstream.requests.values()) {
    if (request.task === undefined || !taken.has(request.task)) continue;
    dropUpload(core, request);
    dropLent(core, request);
    upstream.requests.delete(request.number);
    spent.push(...request.ids);
  }
  for (let i = 0; i < spent.length && !upstream.closed; i += RELEASED_AT_ONCE) {
    upstream.out.begin(OP.RELEASE).refs(spent.slice(i, i + RELEASED_AT_ONCE)).end();
    core.markUpstream(upstream, -1);
  }
  return [...taken];
}

function ask(core: Core, upstream: Upstream, op: typeof OP.RESOLVE | typeof OP.GET, entries: ObjectEntry[], ids: Uint8Array[], task: Task | undefined, fetch: boolean): void {
  const request = upstream.nextRequest++;
  upstream.requests.set(request, { number: request, entries, ids, remaining: ids.length, task, fetch, upload: undefined, digest: undefined, lent: undefined, answered: undefined, elsewhere: undefined, detours: 0, copyOf: undefined });
  upstream.out.begin(op).u32(0).u32(request).refs(ids).end();
  core.markUpstream(upstream, -1);
}

/** Fetches what somebody here waits for and another raylet has. Called at the end of each step. */
export function takeUpFetches(core: Core): void {
  if (core.fetches.length === 0) return;
  const fetches = core.fetches;
  core.fetches = [];
  for (const entry of fetches) {
    if (entry.fetching || entry.waiters === undefined || (entry.status !== OBJECT_STATUS.PENDING && entry.status !== OBJECT_STATUS.REMOTE)) continue;
    const id = entry.remoteId as Uint8Array;
    const job = firstJob(entry);
    if (job === undefined) continue;
    // An isolate may speak on for a moment after its job has ended.
    if (job.job.ended) {
      settleFailed(core, entry, { code: 'CANCELLED', message: 'its job ended', stack: '' });
      continue;
    }
    entry.fetching = true;
    const upstream = entry.remote ?? upstreamTo(core, idWord(id, 4), job.job, job.asJob, 0);
    // A borrowed id that was only spelled out by a client is not ours to release over there: remote stays undefined.
    if (upstream.prefix === undefined) upstream.deferredFetches.push(entry);
    whenOpen(upstream, () => ask(core, upstream, OP.GET, [entry], [id], undefined, true));
  }
}

/** Whose rights a fetch uses: those of the one principal that the entry is for, under the job of the first that waits and is still there. */
function firstJob(entry: ObjectEntry): { job: Job; asJob: boolean } | undefined {
  let gone: Channel | undefined;
  for (const waiter of entry.waiters ?? []) {
    const channel = waiter.call?.channel ?? waiter.task?.channel;
    if (channel === undefined) continue;
    if (entry.session.reader !== '' && entry.session.reader !== channel.principal.spiffeId) throw new Error('two principals wait for what was fetched for one');
    if (!channel.closed) return { job: channel.job, asJob: channel.principal.kind === 'job' };
    gone ??= channel;
  }
  return gone === undefined ? undefined : { job: gone.job, asJob: gone.principal.kind === 'job' };
}

/** A frame that another raylet sent on one of our channels to it. `finished` is told of calls that it ends. */
export function onUpstreamFrame(core: Core, upstream: Upstream, reader: FrameReader, finished: (task: Task) => void, actorChanged: (actor: Actor, state: number, failure: Failure) => void, groupChanged: (upstream: Upstream, reader: FrameReader) => void): void {
  if (upstream.copies && reader.op !== OP.WELCOME && reader.op !== OP.VALUE_CHUNK && reader.op !== OP.VALUE_DIGEST && reader.op !== OP.VALUE_FAILED && reader.op !== OP.CREDENTIAL_REFUSED) throw new Error(`op 0x${reader.op.toString(16)} where parts of a copy were asked for`);
  switch (reader.op) {
    case OP.WELCOME: {
      upstream.prefix = reader.raw(SESSION_PREFIX_BYTES).slice();
      reader.text(65_536);
      tellRoots(core, upstream);
      const deferred = upstream.deferred;
      upstream.deferred = [];
      upstream.deferredFetches = [];
      for (const act of deferred) act();
      break;
    }
    case OP.VALUE: {
      const at = answered(core, upstream, reader);
      const value = reader.rest().slice();
      if (at !== undefined) {
        takeLent(core, at.request, at.position, at.entry);
        settleInline(core, at.entry, value);
      }
      conclude(core, upstream, at, finished);
      break;
    }
    case OP.VALUE_STORED: {
      const at = answered(core, upstream, reader);
      // Its size: known when the value is fetched.
      reader.u64();
      if (at !== undefined) {
        at.entry.remote = upstream;
        at.entry.remoteId = at.id;
        settleRemote(core, at.entry);
      }
      conclude(core, upstream, at, finished);
      break;
    }
    case OP.VALUE_CHUNK: {
      const request = upstream.requests.get(reader.u32());
      const position = reader.u32();
      const total = reader.u64();
      const offset = reader.u64();
      const part = reader.rest();
      // What was given up, or answered: the rest of its parts may still be on their way.
      if (request === undefined) break;
      if (!request.fetch || position >= request.entries.length || request.elsewhere !== undefined) throw new Error('parts of a value that was not asked for');
      onPart(core, upstream, request, position, total, offset, part, finished);
      break;
    }
    case OP.VALUE_DIGEST: {
      const request = upstream.requests.get(reader.u32());
      const position = reader.u32();
      const digest = reader.raw(32);
      if (request === undefined) break;
      if (!request.fetch || position >= request.entries.length) throw new Error('the digest of a value that was not asked for');
      // Of a copy its owner has said it.
      if (request.copyOf !== undefined) break;
      // The second word on it is as good as none: the value will not be taken.
      request.digest = request.digest === undefined ? digest.slice() : NO_DIGEST;
      break;
    }
    case OP.VALUE_FAILED: {
      if (upstream.copies) {
        const request = upstream.requests.get(reader.u32());
        reader.skipRest();
        if (request !== undefined) copyFailed(core, upstream, request);
        break;
      }
      const at = answered(core, upstream, reader);
      const failure = readFailure(reader);
      if (at !== undefined) {
        dropLent(core, at.request);
        notFetched(core, upstream, at.entry, failure);
      }
      conclude(core, upstream, at, finished);
      break;
    }
    case OP.ACTOR_STATE: {
      const actor = upstream.actors.get(reader.u32());
      const state = reader.u8();
      const failure = readFailure(reader);
      if (actor !== undefined) actorChanged(actor, state, failure);
      break;
    }
    case OP.VALUE_REFS: {
      const request = upstream.requests.get(reader.u32());
      const position = reader.u32();
      if (request !== undefined && (position >= request.entries.length || request.lent?.has(position) === true)) throw new Error('refs of a value that was not asked for');
      onValueRefs(core, upstream, request, position, reader);
      break;
    }
    case OP.VALUE_ELSEWHERE:
      onElsewhere(core, upstream, reader);
      break;
    case OP.SHARE:
      onShare(core, upstream, reader);
      break;
    case OP.BORROWED:
      onBorrowed(upstream, reader.u32());
      break;
    case OP.RETURNED:
      onReturned(core, upstream, reader.u32());
      break;
    case OP.STREAM_ITEM:
      onRemoteItem(core, upstream, reader);
      break;
    case OP.DONE: {
      const request = reader.u32();
      const info = upstream.asks.has(request) ? reader.text(MAX_GROUP_JSON_BYTES) : '';
      reader.skipRest();
      settleAsk(upstream, request, undefined, info);
      break;
    }
    case OP.FAILED: {
      const request = reader.u32();
      const code = reader.str();
      const message = reader.text(4 * MAX_ERROR_MESSAGE_CHARS).slice(0, MAX_ERROR_MESSAGE_CHARS);
      settleAsk(upstream, request, { code: isErrorCode(code) ? code : 'INTERNAL', message, stack: '' });
      break;
    }
    case OP.GROUP_STATE:
      groupChanged(upstream, reader);
      break;
    case OP.STREAM_END:
    // It keeps what it was sent, and a later one is passed on as this one was.
    case OP.CREDENTIAL_REFUSED:
    case OP.REJECTED:
    case OP.READY:
      reader.skipRest();
      break;
    default:
      throw new Error(`op 0x${reader.op.toString(16)} from another raylet`);
  }
  reader.finish();
}

function settleAsk(upstream: Upstream, request: number, failure: Failure | undefined, info = ''): void {
  const answered = upstream.asks.get(request);
  if (answered === undefined) return;
  upstream.asks.delete(request);
  answered(failure, info);
}

/**
 * A part of a value that was asked for. The other raylet may be stolen: parts come in order, add up to what the first announced, and are
 * counted against the tenant's quota before the first octet is written. A transfer that breaks this ends, and what it wrote goes. With the last
 * part the driver compares the digest (`fileChecked`): before that nobody reads it.
 */
function onPart(core: Core, upstream: Upstream, request: UpstreamRequest, position: number, total: number, offset: number, part: Uint8Array, finished: (task: Task) => void): void {
  const entry = request.entries[position] as ObjectEntry;
  const at = { request, position, entry, id: request.ids[position] as Uint8Array };
  const { tenant } = entry.session;
  const end = (failure: Failure): void => {
    if (request.copyOf === undefined) {
      dropUpload(core, request);
      if (total >= core.config.spreadMinBytes) tellOwner(core, upstream, request, COPY_OUTCOME.GIVEN_UP);
      dropLent(core, request);
    } else if (failure === MALFORMED) return copyFailed(core, upstream, request);
    else endHere(core, upstream, request);
    entry.fetching = false;
    if (failure === MALFORMED) settleFailed(core, entry, failure);
    else refuseReaders(core, entry, failure);
    collect(core, entry);
    conclude(core, upstream, at, finished);
  };
  if (request.upload === undefined) {
    if (offset !== 0 || total === 0 || total > MAX_OBJECT_BYTES || (request.copyOf !== undefined && total !== request.copyOf.size)) return end(MALFORMED);
    if (tenant.objectBytes + total > tenant.quota.objectBytes) return end({ code: 'QUOTA_EXCEEDED', message: `an object of ${total} bytes does not fit the tenant's quota of ${tenant.quota.objectBytes} bytes (${tenant.objectBytes} in use on this node): release refs, or ask for a larger quota`, stack: '' });
    const noMemory = noMemoryFor(core, tenant, total);
    if (noMemory !== undefined) return end(noMemory);
    tenant.objectBytes += total;
    takeMemory(core, tenant, total);
    // A name of its own: an entry that is fetched, lost and fetched again never meets the file of its former transfer.
    request.upload = { tenant, total, offset: 0, fileName: `in-${entry.session.prefixHex}-${core.nextNumber()}` };
  }
  const { upload } = request;
  if (upload.total !== total || upload.offset !== offset || part.length > total - offset) return end(MALFORMED);
  if (part.length === 0) return;
  const last = upload.offset + part.length === total;
  const { digest } = request;
  if (last && digest?.length !== 32) return end(MALFORMED);
  upload.offset += part.length;
  core.out.push({ type: 'write-part', tenant, fileName: upload.fileName, offset, bytes: part, last });
  if (last) core.out.push({ type: 'check-file', upstream, request: request.number, tenant, fileName: upload.fileName, digest: digest as Uint8Array });
}

/** All parts of a fetched value are written, and add up to what their owner announced or not. */
export function fileChecked(core: Core, upstream: Upstream, number: number, fileName: string, same: boolean): void {
  const request = upstream.requests.get(number);
  const entry = request?.entries[0];
  const upload = request?.upload;
  // It was given up, or answered otherwise, meanwhile.
  if (request === undefined || entry === undefined || upload?.fileName !== fileName) return;
  const { copyOf } = request;
  if (copyOf !== undefined && !same) return copyFailed(core, upstream, request);
  upstream.requests.delete(number);
  entry.fetching = false;
  if (same) {
    request.upload = undefined;
    upload.tenant.objectBytes -= upload.total;
    giveMemory(core, upload.tenant, upload.total);
    entry.digest = request.digest;
    takeLent(core, copyOf?.request ?? request, 0, entry);
    copyOf?.upstream.requests.delete(copyOf.request.number);
    settleFile(core, entry, fileName, upload.total);
    const outcome = entry.status === OBJECT_STATUS.FILE && entry.fileName === fileName ? COPY_OUTCOME.HAS_IT : COPY_OUTCOME.GIVEN_UP;
    if (copyOf !== undefined) endCopy(core, upstream, request, outcome);
    else if (upload.total >= core.config.spreadMinBytes) tellOwner(core, upstream, request, outcome);
  } else {
    dropUpload(core, request);
    dropLent(core, request);
    if (upload.total >= core.config.spreadMinBytes) tellOwner(core, upstream, request, COPY_OUTCOME.GIVEN_UP);
    notFetched(core, upstream, entry, ALTERED);
  }
  collect(core, entry);
}

/** A copy that cannot be kept here, wherever it comes from: its owner's request ends with it. */
function endHere(core: Core, upstream: Upstream, request: UpstreamRequest): void {
  const { copyOf } = request;
  if (copyOf !== undefined) {
    copyOf.upstream.requests.delete(copyOf.request.number);
    dropLent(core, copyOf.request);
  }
  endCopy(core, upstream, request, COPY_OUTCOME.GIVEN_UP);
}

const NO_DIGEST = new Uint8Array(0);
const MALFORMED: Failure = { code: 'OBJECT_LOST', message: 'the transfer from another node was malformed', stack: '' };

/** The value has come, and holds what is inside it from here on. */
function takeLent(core: Core, request: UpstreamRequest, position: number, entry: ObjectEntry): void {
  const inner = request.lent?.get(position);
  if (inner === undefined) return;
  request.lent?.delete(position);
  // Not a second time, when it was fetched again; nor for what nobody waits for any more.
  if (entry.contained === undefined && !inner.includes(entry) && entry.session.objects.get(entry.index) === entry) entry.contained = inner;
  else for (const one of inner) unpin(core, one);
}

/** It does not come. */
function dropLent(core: Core, request: UpstreamRequest): void {
  const { lent } = request;
  request.lent = undefined;
  for (const inner of lent?.values() ?? []) for (const one of inner) unpin(core, one);
}

/** A value does not come from where it was. A result of ours that is no more over there is lost: it may be computed again. */
function notFetched(core: Core, upstream: Upstream, entry: ObjectEntry, failure: Failure): void {
  entry.fetching = false;
  const ours = entry.session.nodeNumber === core.config.nodeNumber && entry.status === OBJECT_STATUS.REMOTE && entry.remote === upstream;
  if (ours && (upstream.closed || failure.code === 'OBJECT_LOST')) loseEntry(core, entry, failure);
  else settleFailed(core, entry, failure);
}

/** A part could not be written: the value does not come here now, whether more of it was to come or not. Nobody has it yet: that comes after the check. */
export function transferFailed(core: Core, fileName: string, failure: Failure): void {
  for (const upstream of core.upstreams.values()) {
    for (const request of upstream.requests.values()) {
      const { upload } = request;
      if (upload?.fileName !== fileName) continue;
      dropUpload(core, request);
      dropLent(core, request);
      upstream.requests.delete(request.number);
      if (request.copyOf !== undefined) endHere(core, upstream, request);
      else if (upload.total >= core.config.spreadMinBytes) tellOwner(core, upstream, request, COPY_OUTCOME.GIVEN_UP);
      for (const entry of request.entries) {
        refuseReaders(core, entry, failure);
      }
      return;
    }
  }
}

interface Answered {
  readonly request: UpstreamRequest;
  readonly position: number;
  readonly entry: ObjectEntry;
  readonly id: Uint8Array;
}

function answered(core: Core, upstream: Upstream, reader: FrameReader): Answered | undefined {
  const request = upstream.requests.get(reader.u32());
  const position = reader.u32();
  const entry = request?.entries[position];
  const id = request?.ids[position];
  if (request === undefined || entry === undefined || id === undefined) return undefined;
  // Each position counts once: a second answer to one must not end the wait for another.
  if (request.entries.length > 1) {
    request.answered ??= new Set();
    if (request.answered.has(position)) return undefined;
    request.answered.add(position);
  }
  dropUpload(core, request);
  dropElsewhere(core, request);
  return { request, position, entry, id };
}

function conclude(core: Core, upstream: Upstream, at: Answered | undefined, finished: (task: Task) => void): void {
  if (at === undefined || --at.request.remaining > 0) return;
  upstream.requests.delete(at.request.number);
  const task = at.request.task;
  if (task === undefined) return;
  upstream.tasks.delete(task);
  // What came back inline is not needed there any more; what stayed there is released when the last ref here goes.
  const spent = at.request.ids.filter((_, i) => at.request.entries[i]?.status !== OBJECT_STATUS.REMOTE);
  if (spent.length > 0) {
    upstream.out.begin(OP.RELEASE).refs(spent).end();
    // It leaves with whatever goes there next; what it holds should not wait for that.
    if (at.request.entries.some((entry) => entry.contained !== undefined)) core.markUpstream(upstream, -1);
  }
  finished(task);
}

export function readFailure(reader: FrameReader): Failure {
  const code = reader.str();
  const message = reader.text(4 * MAX_ERROR_MESSAGE_CHARS).slice(0, MAX_ERROR_MESSAGE_CHARS);
  const stack = reader.text(4 * MAX_STACK_CHARS).slice(0, MAX_STACK_CHARS);
  return { code: isErrorCode(code) ? code : 'INTERNAL', message, stack };
}

/** The other raylet is gone, or refused us: its tasks are given back, what only it had is lost. */
export function closeUpstream(core: Core, upstream: Upstream, failure: Failure): Task[] {
  if (upstream.closed) return [];
  if (upstream.copies) {
    copyChannelClosed(core, upstream);
    return [];
  }
  upstream.closed = true;
  for (const [key, value] of core.upstreams) if (value === upstream) core.upstreams.delete(key);
  core.upstreamsByNumber.delete(upstream.number);
  upstream.deferred = [];
  for (const entry of upstream.deferredFetches) notFetched(core, upstream, entry, failure);
  upstream.deferredFetches = [];
  for (const request of upstream.requests.values()) {
    dropUpload(core, request);
    dropElsewhere(core, request);
    dropLent(core, request);
    if (request.task === undefined) for (const entry of request.entries) notFetched(core, upstream, entry, failure);
  }
  upstream.requests.clear();
  const tasks = [...upstream.tasks];
  endBorrowing(core, upstream);
  upstream.tasks.clear();
  upstream.actors.clear();
  upstream.streams.clear();
  const asks = [...upstream.asks.values()];
  upstream.asks.clear();
  for (const answered of asks) answered(failure, '');
  for (const session of upstream.job.tenant.sessions) {
    for (const entry of [...session.objects.values()]) if (entry.remote === upstream && entry.status === OBJECT_STATUS.REMOTE) loseEntry(core, entry, { code: 'OBJECT_LOST', message: `the object was on another node: ${failure.message}`, stack: '' });
  }
  return tasks;
}

export function cancelRemote(core: Core, upstream: Upstream, task: Task, force: boolean): void {
  if (upstream.prefix === undefined || task.remoteSeq === 0) return;
  if (task.stream !== undefined && task.template.kind === CALL_KIND.ACTOR_METHOD) {
    // As its reader does: a cancel may end the actor.
    upstream.out.begin(OP.RELEASE).refs([makeId(upstream.prefix, task.remoteSeq)]).end();
    return core.markUpstream(upstream, -1);
  }
  upstream.out.begin(OP.CANCEL).u32(0).u32(upstream.nextRequest++).raw(makeId(upstream.prefix, task.remoteSeq)).u8(force ? 1 : 0).end();
  core.markUpstream(upstream, -1);
}

export function killRemote(core: Core, upstream: Upstream, actorId: Uint8Array, restart: boolean): void {
  upstream.out.begin(OP.KILL).u32(0).u32(upstream.nextRequest++).raw(actorId).u8(restart ? 1 : 0).end();
  core.markUpstream(upstream, -1);
}

