/**
 * The objects this raylet owns or has borrowed: who holds them, who waits for them, where the bytes are. A value is set once
 * and never changes. Counting is the raylet's own; what a worker says about references is a claim about its own session only.
 */
import { BulkheadError } from '../../base/errors.ts';
import { CALL_KIND, OP } from '../../base/frame.ts';
import { CHUNK_BYTES, MAX_ANSWER_BYTES, MAX_COPY_BYTES, MAX_LINEAGE_BYTES_PER_TENANT, MAX_LINEAGE_PER_TENANT, MAX_OBJECT_BYTES, MAX_OBJECTS_PER_TENANT } from '../../base/limits.ts';
import { DENIED_TEXT, idIndex, makeId, type Core } from './core.ts';
import { dropSpill, enterMemory, giveMemory, leaveMemory, noteAttached, takeMemory, touch } from './memory-books.ts';
import { CHANNEL_KIND, OBJECT_STATUS, ObjectEntry, PENDING_KIND, PendingCall, TASK_STATE, type Channel, type Failure, type Lineage, type Session, type Task, type TenantState, type Upstream, type Waiter } from './state.ts';

export const LOST: Failure = { code: 'OBJECT_LOST', message: 'the object does not exist: it was released, or never created', stack: '' };
/** Of a call that streams. */
export const ABANDONED: Failure = { code: 'CANCELLED', message: 'its reader went away', stack: '' };
/** Of an id of the caller's own tenant, when the caller may know: another tenant's is DENIED, dead owner or not. */
export const OWNER_GONE: Failure = { code: 'OBJECT_LOST', message: 'the node that owned the object is not in the cluster any more, and the object went with it: make it again', stack: '' };
/** How a value begins that its reader would run: a pickle (python/bulkhead/values.py). Everything else is read as data by whoever is not its tenant, whatever it holds. */
const CODE_HEAD: readonly number[] = [0xda, 0x42, 0x4b, 0x50, 0x59];
/** Behind the stack of a failed Python call: the exception as a pickle, for its own tenant's programs (python/bulkhead/client.py). */
const CAUSE_MARK = '\n#bulkhead:cause:';
export const CODE_BEARING: Failure = { code: 'DENIED', message: 'the object carries code (a pickle), which never leaves its tenant: its owner can share it as data, a numpy array, an Arrow table, or Neutral(value)', stack: '' };
export const ALTERED: Failure = { code: 'OBJECT_LOST', message: 'the object was changed after it was sealed: put it again', stack: '' };
export const DENIED: Failure = { code: 'DENIED', message: DENIED_TEXT, stack: '' };

/** The entry behind an id, for a principal of the tenant the id names. Ids of other raylets get an entry that is fetched when wanted. */
export function findEntry(core: Core, channel: Channel, id: Uint8Array): ObjectEntry | undefined {
  return entryOf(core, core.sessionOf(channel, id), id);
}

export function entryOf(core: Core, session: Session | undefined, id: Uint8Array): ObjectEntry | undefined {
  if (session === undefined) return undefined;
  const index = idIndex(id);
  const entry = session.objects.get(index);
  if (entry !== undefined || session.nodeNumber === core.config.nodeNumber) return entry;
  if (session.tenant.entries >= MAX_OBJECTS_PER_TENANT) return undefined;
  const borrowed = new ObjectEntry(session, index);
  session.tenant.entries++;
  core.fresh.push(borrowed);
  borrowed.handles = 0;
  borrowed.remoteId = makeId(session.prefix, index);
  session.objects.set(index, borrowed);
  return borrowed;
}

export function createEntry(session: Session, index: number): ObjectEntry {
  if (session.tenant.entries >= 2 * MAX_OBJECTS_PER_TENANT) throw new BulkheadError('RESOURCE_EXHAUSTED', `the tenant has ${session.tenant.entries} objects on this node: release refs`);
  session.tenant.entries++;
  const entry = new ObjectEntry(session, index);
  session.objects.set(index, entry);
  return entry;
}

function account(core: Core, entry: ObjectEntry): void {
  const { tenant, project } = entry.session;
  tenant.objectBytes += entry.size;
  if (project !== undefined) project.objectBytes += entry.size;
  const beyond = tenant.objectBytes > tenant.quota.objectBytes;
  if (!beyond && (project === undefined || project.objectBytes <= project.quota.objectBytes)) return;
  const message = beyond || project === undefined ? `the tenant's objects on this node would take ${tenant.objectBytes} bytes, more than its quota of ${tenant.quota.objectBytes}: release refs, or ask for a larger quota`
    : `the objects of project ${project.name} on this node would take ${project.objectBytes} bytes, more than its quota of ${project.quota.objectBytes}: release refs, or ask the tenant's administrator for a larger quota`;
  const failure: Failure = { code: 'QUOTA_EXCEEDED', message, stack: '' };
  dropBytes(core, entry);
  entry.status = OBJECT_STATUS.FAILED;
  entry.failure = failure;
}

/** Files that other tenants' workers read it by: made again when wanted. */
export function dropCopies(core: Core, entry: ObjectEntry): void {
  if (entry.copies === undefined) return;
  for (const [tenant, fileName] of entry.copies) {
    tenant.objectBytes -= entry.size;
    giveMemory(core, tenant, entry.size);
    core.out.push({ type: 'delete-file', tenant, fileName });
  }
  entry.copies = undefined;
}

export function dropBytes(core: Core, entry: ObjectEntry): void {
  leaveMemory(core, entry);
  dropSpill(core, entry);
  const { tenant, project } = entry.session;
  tenant.objectBytes -= entry.size;
  if (project !== undefined) project.objectBytes -= entry.size;
  if (entry.fileName !== '') core.out.push({ type: 'delete-file', tenant: entry.session.tenant, fileName: entry.fileName });
  dropCopies(core, entry);
  entry.fileName = '';
  entry.value = undefined;
  entry.size = 0;
}

/**
 * The file of a value for a worker of `tenant`. What its owner granted to another tenant crosses the wall as a copy, made once: the owner's
 * worker may have kept its file open and go on writing. A failure says why there is none.
 */
export function fileFor(core: Core, entry: ObjectEntry, tenant: TenantState): string | Failure {
  const owner = entry.session.tenant;
  if (owner === tenant) return entry.fileName;
  if (entry.pickle) return codeRefused(core, entry);
  if (entry.altered) return ALTERED;
  const known = entry.copies?.get(tenant);
  if (known !== undefined) return known;
  if (entry.size > MAX_COPY_BYTES) return { code: 'RESOURCE_EXHAUSTED', message: `an object of another tenant of ${entry.size} bytes is not copied for a task: at most ${MAX_COPY_BYTES} bytes; get it in a driver, or have its owner put it in parts`, stack: '' };
  if (tenant.objectBytes + entry.size > tenant.quota.objectBytes) {
    return { code: 'QUOTA_EXCEEDED', message: `the copy of an object of another tenant of ${entry.size} bytes does not fit the tenant's quota of ${tenant.quota.objectBytes} bytes (${tenant.objectBytes} in use on this node): release refs, or ask for a larger quota`, stack: '' };
  }
  const copyName = `copy-${entry.session.prefixHex}-${core.nextNumber()}`;
  tenant.objectBytes += entry.size;
  takeMemory(core, tenant, entry.size);
  (entry.copies ??= new Map()).set(tenant, copyName);
  core.out.push({ type: 'copy-file', from: owner, fileName: entry.fileName, to: tenant, copyName, size: entry.size, entry });
  return copyName;
}

export function carriesCode(start: Uint8Array): boolean {
  for (let i = 0; i < CODE_HEAD.length; i++) if (start[i] !== CODE_HEAD[i]) return false;
  return true;
}

/** A grant was used on a value that carries code. Its owner's log says so, once. */
export function codeRefused(core: Core, entry: ObjectEntry): Failure {
  if (!entry.pickleTold) core.lifecycle(entry.session.tenant, 'object.code-refused', entry.session.ownerId, 'object', entry.session.prefixHex, entry.index, '');
  entry.pickle = entry.pickleTold = true;
  return CODE_BEARING;
}

/** What a call of `tenant` fails with because of this argument; undefined: nothing. */
export function argumentFailure(core: Core, entry: ObjectEntry, tenant: TenantState): Failure | undefined {
  if (entry.session.tenant !== tenant && entry.status === OBJECT_STATUS.INLINE && carriesCode(entry.value as Uint8Array)) return codeRefused(core, entry);
  return entry.status === OBJECT_STATUS.FAILED ? failureFor(entry, tenant) : undefined;
}

/** Why it failed, as a program of `tenant` is told: the exception itself is a pickle, and stays with its own tenant. */
function failureFor(entry: ObjectEntry, tenant: TenantState): Failure {
  const failure = entry.failure ?? LOST;
  return entry.session.tenant === tenant ? failure : withoutCause(failure);
}

export function withoutCause(failure: Failure): Failure {
  const at = failure.stack.indexOf(CAUSE_MARK);
  return at < 0 ? failure : { ...failure, stack: failure.stack.slice(0, at) };
}

/**
 * A value's file is about to leave for another tenant or node, and has this SHA-256. The first time fixes it. False: it is not what left before,
 * since a worker of its owner kept the file open and wrote on: then nobody else gets it, and its owner's log says so.
 */
export function mayCross(core: Core, entry: ObjectEntry, digest: Uint8Array): boolean {
  const fixed = (entry.digest ??= digest);
  let same = fixed.length === digest.length;
  for (let i = 0; i < fixed.length && same; i++) same = fixed[i] === digest[i];
  if (same || entry.altered) return same;
  entry.altered = true;
  core.lifecycle(entry.session.tenant, 'object.altered', entry.session.ownerId, 'object', entry.session.prefixHex, entry.index, '');
  return false;
}

/** The file of a value is gone, or never was. */
export function loseFile(core: Core, entry: ObjectEntry, failure: Failure): void {
  dropBytes(core, entry);
  entry.status = OBJECT_STATUS.FAILED;
  entry.failure = failure;
}

/** No value has no octets: a file of none would be a value of which no part can ever be sent to whoever waits for it. */
export function checkStagedSize(size: number): void {
  if (size === 0 || size > MAX_OBJECT_BYTES) throw new BulkheadError('INVALID_ARGUMENT', `a staged object of ${size} bytes: 1 to ${MAX_OBJECT_BYTES} are accepted`);
}

/** Sets an inline value. `value` must be the entry's own memory. */
export function settleInline(core: Core, entry: ObjectEntry, value: Uint8Array): void {
  if (entry.status !== OBJECT_STATUS.PENDING && entry.status !== OBJECT_STATUS.REMOTE) return;
  entry.status = OBJECT_STATUS.INLINE;
  entry.value = value;
  entry.size = value.length;
  account(core, entry);
  wake(core, entry);
}

/** Moves an inline value to a file: for a receiver whose frame it would not fit in. */
export function putToFile(core: Core, entry: ObjectEntry): void {
  // Not its index: what two principals fetched of one object are two files.
  entry.fileName = `arg-${entry.session.prefixHex}-${core.nextNumber()}`;
  core.out.push({ type: 'write-part', tenant: entry.session.tenant, fileName: entry.fileName, offset: 0, bytes: entry.value as Uint8Array, last: true });
  entry.status = OBJECT_STATUS.FILE;
  entry.value = undefined;
  enterMemory(core, entry);
}

export function settleFile(core: Core, entry: ObjectEntry, fileName: string, size: number): void {
  if (entry.status !== OBJECT_STATUS.PENDING && entry.status !== OBJECT_STATUS.REMOTE) {
    core.out.push({ type: 'delete-file', tenant: entry.session.tenant, fileName });
    return;
  }
  entry.status = OBJECT_STATUS.FILE;
  entry.fileName = fileName;
  entry.size = size;
  account(core, entry);
  if (entry.fileName !== '') {
    enterMemory(core, entry);
    if (entry.producer !== undefined) keepLineage(core, entry, entry.producer);
  }
  wake(core, entry);
}

export function settleFailed(core: Core, entry: ObjectEntry, failure: Failure): void {
  if (entry.status !== OBJECT_STATUS.PENDING && entry.status !== OBJECT_STATUS.REMOTE) return;
  entry.status = OBJECT_STATUS.FAILED;
  entry.failure = failure;
  wake(core, entry);
}

/** The value is ready on another raylet: whoever only waits for readiness is told; who wants the bytes has them fetched. */
export function settleRemote(core: Core, entry: ObjectEntry): void {
  if (entry.status !== OBJECT_STATUS.PENDING) return;
  entry.status = OBJECT_STATUS.REMOTE;
  if (entry.producer !== undefined) keepLineage(core, entry, entry.producer);
  entry.producer = undefined;
  const waiters = entry.waiters;
  if (waiters !== undefined) {
    const keep: Waiter[] = [];
    for (const waiter of waiters) {
      if (waiter.call !== undefined && waiter.call.kind === PENDING_KIND.WAIT) waitReady(core, waiter.call, waiter.position);
      else keep.push(waiter);
    }
    entry.waiters = keep.length > 0 ? keep : undefined;
    if (keep.length > 0) core.fetches.push(entry);
  }
  collect(core, entry);
}

export function wake(core: Core, entry: ObjectEntry): void {
  entry.producer = undefined;
  entry.fetching = false;
  const waiters = entry.waiters;
  entry.waiters = undefined;
  if (waiters !== undefined) {
    for (const waiter of waiters) {
      if (waiter.task !== undefined) {
        const task = waiter.task;
        if (--task.missing === 0 && task.state === TASK_STATE.WAITING) core.woken.push(task);
        continue;
      }
      const call = waiter.call as PendingCall;
      if (call.kind === PENDING_KIND.WAIT) waitReady(core, call, waiter.position);
      else {
        writeValue(core, call.channel, call.request, waiter.position, entry, call.auditSeq, call.kind);
        entry.pins--;
        if (--call.remaining === 0) finishCall(core, call);
      }
    }
  }
  collect(core, entry);
}

/** A value that is elsewhere finds no room here now: whoever waits for its bytes is told so, and the next one has it fetched again. */
export function refuseReaders(core: Core, entry: ObjectEntry, failure: Failure): void {
  entry.fetching = false;
  const { waiters } = entry;
  entry.waiters = undefined;
  for (const { call, position, task } of waiters ?? []) {
    if (task !== undefined) core.toEnd.push({ task, failure });
    else if (call?.kind === PENDING_KIND.WAIT) waitReady(core, call, position);
    else if (call !== undefined) {
      if (!call.channel.closed) refuseValue(core, call.channel, call.request, position, failure, call.auditSeq);
      entry.pins--;
      if (--call.remaining === 0) finishCall(core, call);
    }
  }
  collect(core, entry);
}

/** Frees an entry that nobody holds, needs or waits for. */
export function collect(core: Core, entry: ObjectEntry): void {
  if (entry.handles > 0 || entry.pins > 0 || entry.waiters !== undefined || entry.producer !== undefined || entry.fetching) return;
  if (entry.session.objects.get(entry.index) !== entry) return;
  if (entry.lineagePins > 0) return shed(core, entry);
  if (entry.lineage !== undefined) dropLineage(core, entry);
  entry.session.objects.delete(entry.index);
  entry.session.tenant.entries--;
  if (entry.aliases !== undefined) dropAliases(core, entry);
  const spread = core.spreads.size > 0 ? core.spreads.get(entry) : undefined;
  if (spread !== undefined) core.spreading.add(spread);
  // The ref of an actor's creation is what its handles hold.
  if (entry.session.actors.size > 0) {
    const actor = entry.session.actors.get(entry.index);
    if (actor !== undefined) core.unreachable.push(actor);
  }
  dropValue(core, entry);
  if (entry.lenders !== undefined) giveBack(core, entry);
  forgetSession(core, entry.session);
}

/** Nobody here holds another raylet's object any more. */
function giveBack(core: Core, entry: ObjectEntry): void {
  const id = entry.remoteId as Uint8Array;
  for (const [upstream, copies] of entry.lenders ?? []) returnTo(core, upstream, id, copies);
  entry.lenders = undefined;
  confirm(entry);
}

export function returnTo(core: Core, upstream: Upstream, id: Uint8Array, copies: number): void {
  if (upstream.closed) return;
  if (upstream.prefix === undefined) return void upstream.deferred.push(() => returnTo(core, upstream, id, copies));
  upstream.out.begin(OP.GIVE_BACK).u32(1).raw(id).u32(copies).end();
  core.markUpstream(upstream, -1);
}

/** Its owner knows of us, or nobody here holds it: what waited for that goes on. */
export function confirm(entry: ObjectEntry): void {
  const { confirmed } = entry;
  entry.confirmed = undefined;
  for (const act of confirmed ?? []) act();
}

/** Somebody here begins to hold what may be another raylet's: its owner is told at the end of the step. */
export function borrow(core: Core, entry: ObjectEntry, channel: Channel): void {
  if (entry.session.nodeNumber !== core.config.nodeNumber) core.borrows.push({ entry, job: channel.job, asJob: channel.principal.kind === 'job' });
}

/** Its bytes, here and on another raylet, and what they hold. */
export function dropValue(core: Core, entry: ObjectEntry): void {
  dropBytes(core, entry);
  if (entry.remote !== undefined && entry.remoteId !== undefined && !entry.remote.closed) {
    entry.remote.out.begin(OP.RELEASE).refs([entry.remoteId]).end();
    core.markUpstream(entry.remote, -1);
  }
  const contained = entry.contained;
  entry.contained = undefined;
  if (contained !== undefined) for (const inner of contained) unpin(core, inner);
}

// --- what lost results are computed again from (lineage.ts) ----------------------------------------------------------------

/** What an object whose bytes went though it may be an argument again fails with; with a lineage of its own it is computed again. */
export const SHED: Failure = { code: 'OBJECT_LOST', message: 'an argument was released', stack: '' };

/** A result of a task that may be tried again lies where it can be lost. Values inside frames cannot: they are here as long as their owner is. */
function keepLineage(core: Core, entry: ObjectEntry, task: Task): void {
  const { channel, template } = task;
  // Whoever forwarded the call owns its results, and keeps what they are made from.
  if (entry.lineage !== undefined || template.kind !== CALL_KIND.TASK || task.stream !== undefined || channel.kind === CHANNEL_KIND.PEER || template.options.maxRetries === 0 || entry.session !== channel.session) return;
  for (let i = 0; i < template.options.returns; i++) {
    const shared = channel.session.objects.get(task.seq + i)?.lineage;
    if (shared === undefined || shared.seq !== task.seq) continue;
    entry.lineage = shared;
    shared.results++;
    return;
  }
  const { tenant } = entry.session;
  const args = task.batch.slice(task.argsStart, task.argsEnd);
  const lineage: Lineage = {
    channel, seq: task.seq, template, args, restStart: task.restStart - task.argsStart, deps: task.deps ?? [], depPositions: task.depPositions ?? [], contained: task.contained ?? [],
    depth: task.depth, depthLimit: task.depthLimit, origin: task.origin, attempt: task.attempt, rebuilt: 0, results: 1,
  };
  entry.lineage = lineage;
  tenant.lineages.add(lineage);
  tenant.lineageBytes += args.length;
  for (const dep of lineage.deps) dep.lineagePins++;
  for (const inner of lineage.contained) inner.pins++;
  while (tenant.lineageBytes > MAX_LINEAGE_BYTES_PER_TENANT || tenant.lineages.size > MAX_LINEAGE_PER_TENANT) forgetLineage(core, tenant.lineages.values().next().value as Lineage);
}

function dropLineage(core: Core, entry: ObjectEntry): void {
  const lineage = entry.lineage as Lineage;
  entry.lineage = undefined;
  if (--lineage.results === 0) forgetLineage(core, lineage);
}

/** Its results can be computed again no more. */
export function forgetLineage(core: Core, lineage: Lineage): void {
  const { tenant } = lineage.channel.job;
  if (!tenant.lineages.delete(lineage)) return;
  tenant.lineageBytes -= lineage.args.length;
  for (let i = 0; i < lineage.template.options.returns; i++) {
    const entry = lineage.channel.session.objects.get(lineage.seq + i);
    if (entry?.lineage === lineage) entry.lineage = undefined;
  }
  for (const dep of lineage.deps) {
    dep.lineagePins--;
    collect(core, dep);
  }
  for (const inner of lineage.contained) unpin(core, inner);
}

/** Nobody has it any more but lineages: its bytes go where they take room, its name stays. Small values stay whole. */
function shed(core: Core, entry: ObjectEntry): void {
  if (entry.status !== OBJECT_STATUS.FILE && entry.status !== OBJECT_STATUS.SPILLED && entry.status !== OBJECT_STATUS.REMOTE) return;
  dropValue(core, entry);
  entry.remote = undefined;
  if (entry.session.nodeNumber === core.config.nodeNumber) entry.remoteId = undefined;
  entry.status = OBJECT_STATUS.FAILED;
  entry.failure = SHED;
}

/** Makes an object known under an index of another session too, for a client that then holds it. */
export function addAlias(session: Session, index: number, entry: ObjectEntry): void {
  entry.pins++;
  session.tenant.entries++;
  session.objects.set(index, entry);
  (session.aliases ??= new Map()).set(index, { entry, held: true });
  (entry.aliases ??= []).push({ session, index });
}

/** The object is gone: so are its other names. They stay until then, since others may have got one and ask by it. */
function dropAliases(core: Core, entry: ObjectEntry): void {
  for (const { session, index } of entry.aliases ?? []) {
    if (session.aliases?.delete(index) !== true) continue;
    session.objects.delete(index);
    session.tenant.entries--;
    forgetSession(core, session);
  }
  entry.aliases = undefined;
}

/** A client gives back the ref with this index of its session. */
export function releaseIndex(core: Core, session: Session, index: number): void {
  const entry = session.objects.get(index);
  if (entry === undefined) return;
  const alias = session.aliases?.get(index);
  if (alias === undefined) return releaseHandle(core, entry);
  if (!alias.held) return;
  alias.held = false;
  unpin(core, entry);
}

/** A session that has ended, or is only known by refs of another node's, goes with its last object. */
export function forgetSession(core: Core, session: Session): void {
  if (session.objects.size > 0 || session.actors.size > 0 || core.sessions.get(session.key) !== session) return;
  const elsewhere = session.nodeNumber !== core.config.nodeNumber;
  if (!session.closed && !elsewhere) return;
  core.sessions.delete(session.key);
  session.tenant.sessions.delete(session);
  if (elsewhere) session.tenant.entries--;
}

/** Refs of other nodes' objects that a step named and then had no use for. */
export function forgetFresh(core: Core): void {
  for (const entry of core.fresh.splice(0)) collect(core, entry);
  for (const session of core.freshSessions.splice(0)) forgetSession(core, session);
}

export function unpin(core: Core, entry: ObjectEntry): void {
  entry.pins--;
  collect(core, entry);
}

export function releaseHandle(core: Core, entry: ObjectEntry): void {
  if (entry.handles > 0) entry.handles--;
  // Nobody reads the stream any more, and it would wait for its reader for ever.
  if (entry.handles === 0 && entry.producer?.stream !== undefined) core.toEnd.push({ task: entry.producer, failure: ABANDONED });
  collect(core, entry);
}

function finishCall(core: Core, call: PendingCall): void {
  call.done = true;
  call.channel.waiting -= call.positions;
  call.channel.pendingWaits.delete(call);
  // An isolate that died leaves its gets behind: what it was running may run again by now, elsewhere, and does not wait for them.
  if (call.exec !== undefined && call.exec.slot === call.channel.slot && call.exec.exec === call.execNumber) unblock(call.exec);
}

/** An exec that waits for an object gives up its place on the cpu; here it takes it back. */
export function unblock(task: Task): void {
  if (--task.blocked > 0) return;
  const lease = task.slot?.lease;
  if (lease !== undefined && task.state === TASK_STATE.RUNNING) lease.active++;
}

export function block(task: Task): void {
  if (++task.blocked > 1) return;
  const lease = task.slot?.lease;
  if (lease !== undefined && task.state === TASK_STATE.RUNNING) lease.active--;
}

function writeFailure(channel: Channel, request: number, position: number, failure: Failure): void {
  channel.out.begin(OP.VALUE_FAILED).u32(request).u32(position).str(failure.code).text(failure.message).text(failure.stack).end();
}

/** Answers one position of a GET or RESOLVE from a settled entry. */
export function writeValue(core: Core, channel: Channel, request: number, position: number, entry: ObjectEntry, needed: number, kind: number): void {
  if (channel.closed) return;
  // One frame can ask for the same large value a hundred thousand times.
  if (channel.answeredBytes < MAX_ANSWER_BYTES && channel.deferred.length === 0) return answer(core, channel, request, position, entry, needed, kind);
  entry.pins++;
  entry.uses++;
  channel.deferred.push({ request, position, entry, needed, kind });
  core.markChannel(channel, -1);
}

/** The client has taken what it got: some of what waits for that. */
export function answerDeferred(core: Core, channel: Channel): void {
  channel.answeredBytes = 0;
  let taken = 0;
  for (const { request, position, entry, needed, kind } of channel.deferred) {
    if (channel.answeredBytes >= MAX_ANSWER_BYTES) break;
    taken++;
    answer(core, channel, request, position, entry, needed, kind);
    entry.uses--;
    unpin(core, entry);
  }
  channel.deferred.splice(0, taken);
}

/** The client is gone. */
export function dropDeferred(core: Core, channel: Channel): void {
  for (const { entry } of channel.deferred.splice(0)) {
    entry.uses--;
    unpin(core, entry);
  }
}

/** What an answer costs of MAX_ANSWER_BYTES: a file is open while it is streamed, and descriptors are few. */
function costOf(channel: Channel, entry: ObjectEntry, kind: number): number {
  if (entry.status === OBJECT_STATUS.FILE && kind !== PENDING_KIND.RESOLVE) return channel.kind === CHANNEL_KIND.SLOT ? ATTACHMENT_COST : Math.max(entry.size, CHUNK_BYTES);
  return ANSWER_COST + (entry.failure === undefined ? entry.size : entry.failure.message.length + entry.failure.stack.length);
}

const ANSWER_COST = 64;
const ATTACHMENT_COST = 16_384;

function answer(core: Core, channel: Channel, request: number, position: number, entry: ObjectEntry, needed: number, kind: number): void {
  channel.answeredBytes += costOf(channel, entry, kind);
  // To another raylet with the value: it keeps the books of what it then holds, and must know what that is.
  const toRaylet = channel.kind === CHANNEL_KIND.PEER;
  const held = entry.contained;
  if (held !== undefined && !toRaylet) lend(core, channel, held);
  const sent = entry.status === OBJECT_STATUS.INLINE || (entry.status === OBJECT_STATUS.FILE && kind !== PENDING_KIND.RESOLVE);
  // A copy's reader has them from its owner.
  const refs = held !== undefined && toRaylet && sent && kind !== PENDING_KIND.COPY ? lendToRaylet(core, channel, held) : undefined;
  if (refs !== undefined && entry.status === OBJECT_STATUS.INLINE) channel.out.begin(OP.VALUE_REFS).u32(request).u32(position).refs(refs).end();
  if (entry.status === OBJECT_STATUS.INLINE && entry.session.tenant !== channel.job.tenant && carriesCode(entry.value as Uint8Array)) writeFailure(channel, request, position, codeRefused(core, entry));
  else if (entry.status === OBJECT_STATUS.INLINE) channel.out.begin(OP.VALUE).u32(request).u32(position).raw(entry.value as Uint8Array).end();
  else if (entry.status === OBJECT_STATUS.FILE || entry.status === OBJECT_STATUS.SPILLED) {
    if (kind === PENDING_KIND.RESOLVE) channel.out.begin(OP.VALUE_STORED).u32(request).u32(position).u64(entry.size).end();
    else if (channel.kind === CHANNEL_KIND.SLOT && channel.slot !== undefined) {
      const fileName = fileFor(core, entry, channel.job.tenant);
      if (typeof fileName !== 'string') writeFailure(channel, request, position, fileName);
      else {
        const attachment = channel.slot.nextAttachment++;
        noteAttached(core, entry, channel.slot);
        core.out.push({ type: 'attach', slot: channel.slot, attachment, fileName, size: entry.size });
        channel.out.begin(OP.VALUE_ATTACHED).u32(request).u32(position).u32(attachment).end();
      }
    } else {
      touch(entry);
      if (toRaylet && kind === PENDING_KIND.GET && entry.size >= core.config.spreadMinBytes && entry.session.tenant === channel.job.tenant && entry.session.nodeNumber === core.config.nodeNumber && !entry.altered) {
        // Others may have it by now, and serve it instead (broadcast.ts).
        entry.pins++;
        entry.uses++;
        core.pulls.push({ channel, request, position, entry, needed, refs, state: 'WAITING', source: undefined, ticket: undefined, untilMs: 0, failed: undefined });
        return;
      }
      core.out.push({ type: 'stream-file', channel, owner: entry.session.tenant, request, position, fileName: entry.fileName, size: entry.size, needed, entry, refs, copy: kind === PENDING_KIND.COPY });
      return;
    }
  } else writeFailure(channel, request, position, failureFor(entry, channel.job.tenant));
  core.markChannel(channel, needed);
}

export function refuseValue(core: Core, channel: Channel, request: number, position: number, failure: Failure, needed: number): void {
  writeFailure(channel, request, position, failure);
  core.markChannel(channel, needed);
}

/** A value with refs inside was handed to a client: it may keep those refs, so they are held for it (Ray's borrower). */
export function lend(core: Core, channel: Channel, inner: readonly ObjectEntry[]): void {
  for (const entry of inner) {
    if (entry.session === channel.session) {
      // Its own ref comes back to it: it holds it again if it had let it go.
      if (entry.handles === 0) entry.handles = 1;
      continue;
    }
    lendOne(core, channel, entry);
  }
}

/**
 * A client is to hold an object, of ours or that we hold. Counted, since other raylets give back as many as they were given. What was fetched for
 * another principal this one holds and fetches for itself, and its owner decides whether it may. Undefined: it may hold nothing of that.
 */
export function lendOne(core: Core, channel: Channel, entry: ObjectEntry): ObjectEntry | undefined {
  const own = entry.session.reader === '' || entry.session.reader === channel.principal.spiffeId ? entry : standFor(core, channel, entry);
  if (own === undefined) return undefined;
  const lent = channel.borrowed.get(own) ?? 0;
  channel.borrowed.set(own, lent + 1);
  if (lent > 0) return own;
  own.pins++;
  borrow(core, own, channel);
  if (own === entry) return own;
  (entry.stands ??= []).push(own);
  // What the owner knows of goes on holding until it knows of the other one.
  entry.pins++;
  (own.confirmed ??= []).push(() => unpin(core, entry));
  return own;
}

function standFor(core: Core, channel: Channel, entry: ObjectEntry): ObjectEntry | undefined {
  if (entry.session.tenant !== channel.job.tenant) return undefined;
  const id = core.idOf(entry.session, entry.index);
  return entryOf(core, core.sessionFor(entry.session.tenant, channel.principal.spiffeId, id), id);
}

function lendToRaylet(core: Core, channel: Channel, inner: readonly ObjectEntry[]): Uint8Array[] | undefined {
  const refs: Uint8Array[] = [];
  for (const entry of inner) {
    if (entry.session.objects.get(entry.index) !== entry || lendOne(core, channel, entry) === undefined) continue;
    refs.push(core.idOf(entry.session, entry.index));
  }
  return refs.length === 0 ? undefined : refs;
}

/** The client gives one borrowed ref back: all copies of it, since it tells only when the last one is gone. */
export function takeBack(core: Core, channel: Channel, entry: ObjectEntry): void {
  if (channel.borrowed.delete(entry)) unpin(core, entry);
}

export function takeAllBack(core: Core, channel: Channel): void {
  for (const entry of channel.borrowed.keys()) {
    channel.borrowed.delete(entry);
    unpin(core, entry);
  }
}

/** Is a value known to be somewhere, or to have failed? */
export function isReady(entry: ObjectEntry): boolean {
  return entry.status !== OBJECT_STATUS.PENDING;
}

/** Is a value here, or known to have failed? REMOTE and SPILLED are ready too, but the bytes must be fetched before they can be read. */
export function isLocal(entry: ObjectEntry): boolean {
  return entry.status === OBJECT_STATUS.INLINE || entry.status === OBJECT_STATUS.FILE || entry.status === OBJECT_STATUS.FAILED;
}

export function awaitEntry(core: Core, entry: ObjectEntry, waiter: Waiter): void {
  if (entry.waiters === undefined) entry.waiters = [waiter];
  else {
    // Polling waits leave answered waiters behind; sweep them so that the list stays as long as the calls that are open.
    if (entry.waiters.length >= 64 && (entry.waiters.length & 63) === 0) entry.waiters = entry.waiters.filter((w) => w.call === undefined || !w.call.done);
    entry.waiters.push(waiter);
  }
  if (entry.fetching) return;
  if (entry.status === OBJECT_STATUS.SPILLED) core.restores.push(entry);
  else if (entry.remoteId !== undefined) core.fetches.push(entry);
}

function waitReady(core: Core, call: PendingCall, position: number): void {
  if (call.done) return;
  (call.ready as number[]).push(position);
  if ((call.ready as number[]).length >= call.need) answerWait(core, call);
}

/** Tells a WAIT which positions are ready: all that are, also beyond the count it asked for. */
export function answerWait(core: Core, call: PendingCall): void {
  const ready = (call.ready as number[]).sort((a, b) => a - b);
  const out = call.channel.out.begin(OP.READY).u32(call.request).u32(ready.length);
  for (const position of ready) out.u32(position);
  out.end();
  core.markChannel(call.channel, call.auditSeq);
  finishCall(core, call);
}

export function expireWaits(core: Core, channel: Channel): void {
  for (const call of channel.pendingWaits) if (call.deadlineMs <= core.nowMs) answerWait(core, call);
}

/** All objects that a closed channel still holds go, unless somebody else needs them. */
export function releaseSession(core: Core, session: Session): void {
  session.closed = true;
  for (const [index, { entry, held }] of [...(session.aliases ?? [])]) {
    session.aliases?.delete(index);
    session.objects.delete(index);
    session.tenant.entries--;
    if (held) unpin(core, entry);
  }
  for (const entry of [...session.objects.values()]) {
    entry.handles = 0;
    collect(core, entry);
  }
  // Dead actors were kept for late callers; an ended session has none.
  for (const [index, actor] of session.actors) {
    if (actor.state !== 'DEAD') continue;
    session.actors.delete(index);
    session.tenant.deadActors.delete(actor);
  }
  forgetSession(core, session);
}
