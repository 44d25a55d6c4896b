/**
 * The calls of clients (drivers, isolates, other raylets), frame by frame: parsed, decided, recorded, then carried out. A frame
 * that does not parse throws, and its channel is closed; a call that is wrong or denied fails by itself.
 */
import type { Action, Resource } from '../../base/decision.ts';
import { resource } from '../../base/decision.ts';
import { overCalls } from '../../base/budget.ts';
import { BulkheadError } from '../../base/errors.ts';
import { FORWARDED } from '../../base/usage-record.ts';
import { ACTOR_STATE, CALL_KIND, NO_TIMEOUT, OP, type CallKind, type FrameReader } from '../../base/frame.ts';
import { OBJECT_ID_BYTES, SESSION_PREFIX_BYTES, hex, quote } from '../../base/ids.ts';
import { MAX_CALLS_IN_FLIGHT, MAX_CODE_BYTES, MAX_CODE_BYTES_PER_TENANT, MAX_DEPENDENCIES, MAX_HELD_BYTES_PER_TENANT, MAX_INLINE_BYTES, MAX_OBJECT_BYTES, MAX_OBJECTS_PER_TENANT, MAX_REFS_PER_CALL, MAX_SCHEDULING_CLASSES_PER_TENANT, MAX_TASK_DEPTH, MAX_TEMPLATES_PER_CHANNEL, MAX_UPLOADS_PER_CHANNEL, MAX_WAITING_PER_CHANNEL } from '../../base/limits.ts';
import { actorDied, actorLost, actorResource, callActor, classInfoOf, findActor, keepSeed, methodResource, tellCreator } from './actors.ts';
import { DENIED_TEXT, idIndex, idWord, type Core } from './core.ts';
import { cancelTask } from './endings.ts';
import { giveSame, remember, submittedBefore } from './idempotency.ts';
import { giveMemory, noMemoryFor, takeMemory } from './memory-books.ts';
import { parseFunctionOptions } from './function-options.ts';
import { answerWait, awaitEntry, block, borrow, carriesCode, checkStagedSize, createEntry, DENIED, findEntry, isLocal, isReady, lendOne, LOST, OWNER_GONE, refuseValue, releaseIndex, settleFailed, settleFile, settleInline, takeBack, unpin, writeValue } from './objects.ts';
import { holderGaveBack } from './broadcast.ts';
import { decideOn, done, failRequest } from './deciding.ts';
import { decideUse } from './group-rights.ts';
import { awaitsShare } from './quota-shares.ts';
import { countCall, elsewhere, overRate } from './quota-tree.ts';
import { classFor, enqueue, JOB_ENDED } from './scheduler.ts';
import { Actor, CHANNEL_KIND, failureOf, FunctionStats, OBJECT_STATUS, PENDING_KIND, PendingCall, Stream, Task, TASK_STATE, Template, type Channel, type Failure, type ObjectEntry, type Session, type TenantState } from './state.ts';

const MAX_OPTIONS_BYTES = 16_384;
/** Of the packages that a record names. */
const MAX_DETAIL_CHARS = 1_000;
/** Of an export or a method. Both are in the record of every call, whatever they are for, so neither may be longer or of other characters. */
export const EXPORT_NAME = /^[\p{ID_Start}$_][\p{ID_Continue}$]{0,127}$/u;

function refused(code: Failure['code'], message: string): Failure {
  return { code, message, stack: '' };
}

export function rejectCall(core: Core, channel: Channel, number: number, failure: Failure): void {
  channel.out.begin(OP.REJECTED).u32(number).str(failure.code).text(failure.message).end();
  core.markChannel(channel, -1);
}

// --- code and definitions -------------------------------------------------------------------------------------------

export function onCode(core: Core, channel: Channel, r: FrameReader): void {
  const digest = r.raw(32);
  const total = r.u32();
  const offset = r.u32();
  const part = r.rest();
  if (offset === 0) {
    const digestHex = hex(digest);
    if (total === 0 || total > MAX_CODE_BYTES) return rejectCall(core, channel, 0, refused('INVALID_ARGUMENT', `a code bundle of ${total} bytes is not accepted: 1 to ${MAX_CODE_BYTES} bytes`));
    channel.codeUpload = { digest: digest.slice(), digestHex, bytes: new Uint8Array(total), filled: 0 };
  }
  const upload = channel.codeUpload;
  if (upload === undefined) return;
  if (upload.digestHex !== hex(digest) || upload.bytes.length !== total || upload.filled !== offset || offset + part.length > total) throw new BulkheadError('INVALID_ARGUMENT', 'the parts of a code bundle do not follow each other');
  upload.bytes.set(part, offset);
  upload.filled += part.length;
  if (upload.filled < total) return;
  channel.codeUpload = undefined;
  const { tenant } = channel.job;
  const name = `sha256:${upload.digestHex}`;
  const seq = core.decide(channel, 'code.register', resource('code', { tenant: tenant.name, name, owner: channel.principal.spiffeId, code: name, size: total }), name, -1, 1, '');
  if (seq < 0) return rejectCall(core, channel, 0, DENIED);
  if (hex(core.config.sha256(upload.bytes)) !== upload.digestHex) return rejectCall(core, channel, 0, refused('INVALID_ARGUMENT', 'the code bundle does not have the digest it was sent under'));
  if (!storeCode(core, tenant, upload.digestHex, upload.bytes)) rejectCall(core, channel, 0, refused('RESOURCE_EXHAUSTED', `the tenant's code in use on this node takes more than ${MAX_CODE_BYTES_PER_TENANT} bytes: let jobs and actors end`));
}

/** Keeps code whose digest was checked. False: there is no room. */
export function storeCode(core: Core, tenant: TenantState, digestHex: string, source: Uint8Array): boolean {
  const known = tenant.code.get(digestHex);
  if (known !== undefined) {
    // Last in the order of use.
    tenant.code.delete(digestHex);
    tenant.code.set(digestHex, known);
    return true;
  }
  if (!makeRoomForCode(core, tenant, source.length)) return false;
  tenant.code.set(digestHex, { digestHex, size: source.length });
  tenant.codeBytes += codeCost(source.length);
  core.out.push({ type: 'store-code', tenant, digestHex, source });
  return true;
}

/** A file of one octet takes a page. */
function codeCost(size: number): number {
  return Math.ceil(size / 4_096) * 4_096;
}

/** Lets go of code that no function or actor uses, the longest unused first, and of more than is needed: looking is dear. */
function makeRoomForCode(core: Core, tenant: TenantState, size: number): boolean {
  const fits = (limit: number): boolean => tenant.codeBytes + codeCost(size) <= limit;
  if (fits(MAX_CODE_BYTES_PER_TENANT)) return true;
  const used = new Set<string>();
  for (const channel of core.channels.values()) if (channel.job.tenant === tenant) for (const template of channel.templates.values()) used.add(template.digestHex);
  for (const job of core.jobs.values()) if (job.tenant === tenant) for (const actor of job.actors) used.add(actor.template.digestHex);
  for (const [digestHex, bundle] of tenant.code) {
    if (fits(MAX_CODE_BYTES_PER_TENANT / 2)) break;
    if (used.has(digestHex)) continue;
    tenant.code.delete(digestHex);
    tenant.codeBytes -= codeCost(bundle.size);
    core.out.push({ type: 'delete-code', tenant, digestHex });
  }
  return fits(MAX_CODE_BYTES_PER_TENANT);
}

export function onDefine(core: Core, channel: Channel, r: FrameReader): void {
  const number = r.u32();
  const kind = r.u8();
  const digestHex = hex(r.raw(32));
  const exportName = r.str();
  const methodName = r.str();
  const optionsJson = r.text(MAX_OPTIONS_BYTES);
  r.finish();
  if (channel.templates.has(number) || channel.refusedTemplates.has(number)) throw new BulkheadError('INVALID_ARGUMENT', `template ${number} is defined twice`);
  if (channel.templates.size + channel.refusedTemplates.size >= MAX_TEMPLATES_PER_CHANNEL) throw new BulkheadError('RESOURCE_EXHAUSTED', `a channel may define at most ${MAX_TEMPLATES_PER_CHANNEL} functions`);
  const refuse = (failure: Failure): void => {
    channel.refusedTemplates.set(number, failure);
    rejectCall(core, channel, number, failure);
  };
  if (decideSession(core, channel, 'define') < 0) return refuse(DENIED);
  if (kind > CALL_KIND.ACTOR_METHOD) return refuse(refused('INVALID_ARGUMENT', `kind ${kind} is none of task, actor class, actor method`));
  if (!EXPORT_NAME.test(exportName) && (kind !== CALL_KIND.ACTOR_METHOD || exportName !== '')) return refuse(refused('INVALID_ARGUMENT', `${quote(exportName)} is not the name of an export`));
  if (kind === CALL_KIND.ACTOR_METHOD ? !EXPORT_NAME.test(methodName) : methodName !== '') return refuse(refused('INVALID_ARGUMENT', `${quote(methodName)} is not the name of a method`));
  if (kind !== CALL_KIND.ACTOR_METHOD && !channel.job.tenant.code.has(digestHex)) return refuse(refused('INVALID_ARGUMENT', `the code sha256:${digestHex} has not been registered`));
  let options;
  try {
    options = parseFunctionOptions(optionsJson, kind !== CALL_KIND.TASK, core.config.python);
  } catch (error) {
    if (!(error instanceof BulkheadError)) throw error;
    return refuse(failureOf(error));
  }
  if (options.isolation === 'gvisor' && options.runtime === 'javascript') return refuse(refused('LAYER_MISSING', "isolation 'gvisor' is not available for JavaScript functions on this node: use 'isolate'"));
  if (options.origin !== '' && channel.kind !== CHANNEL_KIND.PEER) return refuse(refused('INVALID_ARGUMENT', 'options are not valid: origin is not an option'));
  if (options.stream !== undefined && kind === CALL_KIND.ACTOR_CLASS) return refuse(refused('INVALID_ARGUMENT', "an actor is one object: returns: 'streaming' is for functions and methods"));
  if (options.packages.length > 0 && kind !== CALL_KIND.ACTOR_METHOD && core.decide(channel, 'environment.build', resource('environment', { tenant: channel.job.tenant.name, name: 'packages', owner: channel.principal.spiffeId }), 'packages', -1, 1, options.packages.join(', ').slice(0, MAX_DETAIL_CHARS)) < 0) return refuse(DENIED);
  const grouped = options.placement !== undefined && options.placement.group !== '' && kind !== CALL_KIND.ACTOR_METHOD;
  const use = grouped ? decideUse(core, channel, options.placement?.group ?? '') : undefined;
  if (use !== undefined && use.seq < 0) return refuse(DENIED);
  const { tenant, project } = channel.job;
  const forwarded = channel.kind === CHANNEL_KIND.PEER;
  // Of what another node passed on it was asked there.
  if (options.priority > project.quota.priority && !forwarded) return refuse(refused('QUOTA_EXCEEDED', `priority ${options.priority} is more than project ${project.name} may have (${project.quota.priority}): ask for less, or the tenant's administrator for a larger quota (priority)`));
  const schedulingClass = kind === CALL_KIND.TASK ? classFor(core, channel.job, options.resources, options.runtime, forwarded && !grouped ? undefined : options.placement, forwarded, channel.principal.kind === 'job', options.priority) : undefined;
  if (kind === CALL_KIND.TASK && schedulingClass === undefined) return refuse(refused('RESOURCE_EXHAUSTED', `the tenant's functions ask for more than ${MAX_SCHEDULING_CLASSES_PER_TENANT} different amounts of resources and places on this node: round them`));
  const code = `sha256:${digestHex}`;
  const statsKey = `${digestHex} ${exportName} ${methodName}`;
  let stats = channel.job.functions.get(statsKey);
  if (stats === undefined) {
    stats = new FunctionStats();
    if (channel.job.functions.size < MAX_TEMPLATES_PER_CHANNEL) channel.job.functions.set(statsKey, stats);
  }
  channel.templates.set(number, new Template({
    originHex: options.origin === '' ? channel.session.prefixHex : options.origin, kind: kind as CallKind, digestHex: kind === CALL_KIND.ACTOR_METHOD ? '' : digestHex, exportName, methodName, optionsJson, options, stats,
    resource: resource(kind === CALL_KIND.TASK ? 'task' : 'actor', { tenant: tenant.name, name: options.name, owner: channel.principal.spiffeId, label: options.label, code, function: exportName, cpus: options.resources.cpuUnits / 10_000, memory: options.resources.memoryBytes, isolation: options.isolation, detached: options.detached }),
    // Another node has decided and counted its calls already.
    detail: `${kind === CALL_KIND.ACTOR_METHOD ? `${exportName}.${methodName}` : `${code} ${exportName}`}${channel.kind === CHANNEL_KIND.PEER ? FORWARDED : ''}`,
    schedulingClass, groupResource: use?.target,
  }));
}

/** Calls about the session itself. */
function decideSession(core: Core, channel: Channel, detail: string): number {
  return core.decide(channel, 'session.read', resource('session', { tenant: channel.job.tenant.name, name: channel.job.id, owner: channel.job.submitter.spiffeId }), channel.job.id, -1, 1, detail);
}

// --- calls ------------------------------------------------------------------------------------------------------------

interface ParsedCall {
  readonly parent: Task | undefined;
  readonly seq: number;
  readonly templateNumber: number;
  readonly template: Template | undefined;
  /** Which try it is, where it is in the tree of calls, how deep that may get, and which call it is at its caller: another raylet says it of what it passes on. */
  readonly attempt: number;
  readonly depth: number;
  readonly depthLimit: number;
  readonly origin: number;
}

const TOO_MANY_WAITING: Failure = refused('RESOURCE_EXHAUSTED', `gets and waits of this session wait for more than ${MAX_WAITING_PER_CHANNEL} refs already`);
const TOO_MANY_OBJECTS = `the tenant has more than ${MAX_OBJECTS_PER_TENANT} objects on this node: release refs`;

function parentOf(channel: Channel, exec: number): Task | undefined {
  return exec === 0 ? undefined : channel.slot?.execs.get(exec);
}

/**
 * How deep a call is nested, from this raylet's own books. What an isolate says of its calls is a claim: one that names no call that runs there
 * counts as made by the deepest that it ever had. Another raylet says the depth in the high octet of `parent`; it can only add to what its channel began with.
 */
function depthOf(channel: Channel, parent: Task | undefined, named: number): number {
  if (parent !== undefined) return parent.depth + 1;
  if (channel.slot !== undefined) return channel.slot.deepest + 1;
  return channel.kind === CHANNEL_KIND.PEER && named >>> 24 > channel.depth ? named >>> 24 : channel.depth;
}

function makeReturns(channel: Channel, seq: number, count: number): void {
  for (let i = 0; i < count; i++) {
    if (channel.session.objects.has(seq + i)) throw new BulkheadError('INVALID_ARGUMENT', `object index ${seq + i} is used twice`);
    createEntry(channel.session, seq + i);
  }
}

function failReturns(core: Core, channel: Channel, seq: number, count: number, failure: Failure): void {
  for (let i = 0; i < Math.max(count, 1); i++) {
    const entry = channel.session.objects.get(seq + i);
    if (entry !== undefined) settleFailed(core, entry, failure);
  }
}

/** Reads the arguments' refs, finds or denies them, and makes the task. The payload stays where it is in the batch. */
function makeTask(core: Core, channel: Channel, r: FrameReader, call: ParsedCall, template: Template, auditSeq: number): Task | Failure {
  const argsStart = r.position;
  const d = r.u16();
  if (d > MAX_DEPENDENCIES) throw new BulkheadError('INVALID_ARGUMENT', `a call has ${d} refs among its arguments, at most ${MAX_DEPENDENCIES} are allowed`);
  let deps: ObjectEntry[] | undefined;
  let positions: number[] | undefined;
  let missing: Failure | undefined;
  if (d > 0) {
    deps = [];
    positions = [];
    for (let i = 0; i < d; i++) {
      positions.push(r.u16());
      const id = r.id();
      // An argument is read on the caller's behalf, so it is decided as the caller's own reading would be.
      const entry = decideArgument(core, channel, id);
      if ('code' in entry) missing ??= entry;
      else deps.push(entry);
    }
  }
  const containedCount = r.refCount(MAX_REFS_PER_CALL);
  let contained: ObjectEntry[] | undefined;
  for (let i = 0; i < containedCount; i++) {
    const entry = findEntry(core, channel, r.id());
    if (entry !== undefined) (contained ??= []).push(entry);
  }
  const restStart = r.position;
  r.skipRest();
  if (missing !== undefined) return missing;
  const { parent, depth, depthLimit: limit } = call;
  if (depth > limit) return refused('RESOURCE_EXHAUSTED', `tasks are nested more than ${limit} deep, and an option of theirs or the cluster allows no more`);
  if (parent !== undefined && parent.children >= parent.template.options.maxFanOut) return refused('RESOURCE_EXHAUSTED', `the call that makes this one has made ${parent.children} that have not ended, and may make no more (maxFanOut): wait for some of them`);
  const task = new Task(channel, call.seq, template, r.batch, argsStart, restStart, r.frameEnd, auditSeq, depth, core.nowMs);
  task.attempt = call.attempt;
  if (template.options.traceparent !== '') task.caller = call.parent;
  if (channel.kind !== CHANNEL_KIND.PEER) channel.job.tenant.monthCalls++;
  task.origin = call.origin;
  task.depthLimit = Math.min(limit, depth + template.options.maxDepth);
  if (parent !== undefined) {
    task.parent = parent;
    parent.children++;
  }
  channel.inFlight++;
  countCall(channel, template.kind, 1);
  core.callsInFlight++;
  if (core.held === undefined) core.held = { bytes: r.batch.byteLength, calls: 0 };
  task.hold(core.held);
  if (template.options.stream !== undefined) task.stream = new Stream(template.options.stream, call.parent);
  if (deps !== undefined && positions !== undefined) {
    task.deps = deps;
    task.depPositions = positions;
    for (const entry of deps) {
      entry.pins++;
      entry.uses++;
      if (isLocal(entry)) continue;
      task.missing++;
      awaitEntry(core, entry, { call: undefined, position: 0, task });
    }
  }
  if (contained !== undefined) {
    task.contained = contained;
    for (const entry of contained) entry.pins++;
  }
  return task;
}

/** An id of another tenant, or unknown here: the wall denies the first unless its owner granted it; the second is decided as any object of the tenant. */
function decideForeign(core: Core, channel: Channel, action: Action, id: Uint8Array, detail: string): { readonly entry: ObjectEntry | undefined; readonly seq: number; readonly failure: Failure | undefined } {
  const prefixHex = hex(id.subarray(0, SESSION_PREFIX_BYTES));
  // Only what this node owns: of another node's objects neither label nor owner is known here, and a grant depends on them.
  const entry = core.sessions.get(prefixHex)?.objects.get(idIndex(id));
  const target = entry === undefined ? foreignResource(core, 'object', id, undefined) : resource('object', { tenant: entry.session.tenant.name, owner: entry.session.ownerId, label: entry.label, size: entry.size });
  const decided = decideOn(core, channel, action, target, prefixHex, idIndex(id), 1, detail, id);
  const seq = decided < 0 ? ~decided : decided;
  if (decided >= 0 && entry !== undefined) return { entry, seq, failure: undefined };
  return { entry: undefined, seq, failure: decided >= 0 && idWord(id, 0) === channel.job.tenant.number ? (ownerGone(core, id) ? (core.goneNodes.get(idWord(id, 4)) === channel.peer ? SENDER_AWAY : OWNER_GONE) : LOST) : DENIED };
}

/** Whoever owns it sent the call, and is not back in what the head says: its object is not lost. */
const SENDER_AWAY: Failure = { code: 'UNAVAILABLE', message: 'the node that sent the call was away, and is not back in the cluster for the node that got it: try again', stack: '' };

/** Its node is none of the cluster's: it died, or never was. To be said of the caller's own tenant's ids only. */
function ownerGone(core: Core, id: Uint8Array): boolean {
  const node = idWord(id, 4);
  return node !== core.config.nodeNumber && !core.nodes.has(node);
}

function decideArgument(core: Core, channel: Channel, id: Uint8Array): ObjectEntry | Failure {
  const session = core.sessionOf(channel, id);
  const index = idIndex(id);
  if (session === undefined) {
    const foreign = decideForeign(core, channel, 'object.get', id, 'argument');
    return foreign.entry ?? foreign.failure ?? LOST;
  }
  const entry = findEntry(core, channel, id);
  const label = entry?.label ?? '';
  const target = label === '' ? session.objectResource : resource('object', { tenant: session.tenant.name, owner: session.ownerId, label });
  return core.decide(channel, 'object.get', target, session.prefixHex, index, 1, 'argument') < 0 ? DENIED : (entry ?? LOST);
}

/** A call in a placement group uses that too, each time: `seq` as of `decide`. */
function decideCall(core: Core, channel: Channel, action: Action, template: Template, seq: number, detail: string): number {
  const decided = core.decide(channel, action, template.resource, channel.session.prefixHex, seq, 1, detail);
  return decided < 0 || template.groupResource === undefined ? decided : core.decide(channel, 'placement-group.use', template.groupResource, channel.session.prefixHex, seq, 1, '');
}

function noteCreated(call: ParsedCall, channel: Channel, count: number): void {
  if (call.parent === undefined || channel.slot?.lease === undefined) return;
  const created = (call.parent.created ??= []);
  for (let i = 0; i < count; i++) created.push(call.seq + i);
}

/** What says that the tenant has as many of these as it may. What another node forwards was counted there. */
function overQuota(channel: Channel, kind: CallKind): string | undefined {
  const { tenant } = channel.job;
  if (channel.kind === CHANNEL_KIND.PEER) return undefined;
  if (kind === CALL_KIND.TASK && tenant.tasks >= tenant.quota.tasks) return `the tenant has ${tenant.tasks} tasks on this node that have not ended, its quota is ${tenant.nominal.tasks}${elsewhere(tenant.quota.tasks, tenant.nominal.tasks)}: wait for results before submitting more, or ask for a larger quota (tasks)`;
  if (kind === CALL_KIND.ACTOR_CLASS && tenant.actors > tenant.quota.actors) return `the tenant has ${tenant.actors - 1} actors on this node, its quota is ${tenant.nominal.actors}${elsewhere(tenant.quota.actors, tenant.nominal.actors)}: kill some of them, or ask for a larger quota (actors)`;
  return undefined;
}

function begin(core: Core, channel: Channel, r: FrameReader, kind: CallKind): ParsedCall | undefined {
  const named = r.u32();
  const parent = parentOf(channel, named);
  const seq = r.u32();
  const templateNumber = r.u32();
  const template = channel.templates.get(templateNumber);
  const passedOn = channel.kind === CHANNEL_KIND.PEER;
  const call: ParsedCall = {
    parent, depth: depthOf(channel, parent, named), seq, templateNumber, template, attempt: passedOn ? named & 0xff_ffff : 0,
    depthLimit: passedOn ? Math.min(r.u8(), MAX_TASK_DEPTH) : (parent?.depthLimit ?? MAX_TASK_DEPTH), origin: passedOn ? r.u32() : seq,
  };
  const { tenant } = channel.job;
  const broke = passedOn ? '' : tenant.overBudget !== '' ? tenant.overBudget : tenant.monthCalls >= tenant.callBudget ? overCalls(tenant.callBudget, 'this month') : '';
  if (broke !== '' && template !== undefined) core.refuse(channel, kind === CALL_KIND.TASK ? 'task.submit' : kind === CALL_KIND.ACTOR_CLASS ? 'actor.create' : 'actor.call', template.resource, channel.session.prefixHex, seq, 'budget', template.detail);
  const quota = broke !== '' ? broke : (kind === CALL_KIND.TASK ? overQuota(channel, kind) : undefined) ?? (channel.job.limited && !passedOn ? overRate(core, channel.job, kind === CALL_KIND.TASK) : undefined);
  // Only this node's share is used up: the frame is read again when there may be more.
  if (broke === '' && !passedOn && (quota !== undefined || (kind === CALL_KIND.ACTOR_CLASS && tenant.actors >= tenant.quota.actors)) && awaitsShare(core, channel.job, kind)) {
    r.skipRest();
    core.stalled = true;
    return undefined;
  }
  const over = quota !== undefined ? quota : channel.inFlight >= 2 * MAX_CALLS_IN_FLIGHT ? `more than ${2 * MAX_CALLS_IN_FLIGHT} calls are in flight: wait for results before submitting more`
    : tenant.heldBytes >= MAX_HELD_BYTES_PER_TENANT ? `the calls in flight of the tenant take more than ${MAX_HELD_BYTES_PER_TENANT} bytes on this node: put large arguments, or wait for results`
      : tenant.entries >= MAX_OBJECTS_PER_TENANT ? TOO_MANY_OBJECTS : undefined;
  if (template !== undefined && template.kind === kind && over === undefined) return call;
  makeReturns(channel, seq, 1);
  const failure = template !== undefined && template.kind === kind ? refused(quota === undefined ? 'RESOURCE_EXHAUSTED' : 'QUOTA_EXCEEDED', over ?? '') : (channel.refusedTemplates.get(templateNumber) ?? refused('INVALID_ARGUMENT', `the function with number ${templateNumber} is not defined`));
  failReturns(core, channel, seq, 1, failure);
  if (kind === CALL_KIND.ACTOR_CLASS) tellCreator(core, channel, seq, ACTOR_STATE.ENDED, failure, -1);
  noteCreated(call, channel, 1);
  r.skipRest();
  return undefined;
}

export function onSubmit(core: Core, channel: Channel, r: FrameReader): void {
  const call = begin(core, channel, r, CALL_KIND.TASK);
  if (call === undefined) return;
  const template = call.template as Template;
  const { returns } = template.options;
  makeReturns(channel, call.seq, Math.max(returns, 1));
  noteCreated(call, channel, Math.max(returns, 1));
  const seq = decideCall(core, channel, 'task.submit', template, call.seq, template.detail);
  if (seq < 0) {
    r.skipRest();
    return failReturns(core, channel, call.seq, returns, DENIED);
  }
  const task = makeTask(core, channel, r, call, template, seq);
  if (!(task instanceof Task)) return failReturns(core, channel, call.seq, returns, task);
  setProducer(channel, task, Math.max(returns, 1));
  if (task.missing === 0) enqueue(core, task);
}

/** As SUBMIT, once: under a key that was used before it gives the refs of the first submission. */
export function onSubmitOnce(core: Core, channel: Channel, r: FrameReader): void {
  if (channel.kind === CHANNEL_KIND.PEER) throw new BulkheadError('INVALID_ARGUMENT', 'SUBMIT_ONCE is for those who submit: what is passed on has its key behind it');
  const call = begin(core, channel, r, CALL_KIND.TASK);
  if (call === undefined) return;
  const template = call.template as Template;
  const count = Math.max(template.options.returns, 1);
  const key = r.str();
  const before = submittedBefore(core, channel, key, template);
  const same = before !== undefined && 'entries' in before ? before : undefined;
  const seq = decideCall(core, channel, 'task.submit', template, call.seq, same === undefined ? template.detail : `${template.detail} (again)`);
  if (seq < 0 || before !== undefined) {
    r.skipRest();
    if (seq >= 0 && same !== undefined) {
      for (let i = 0; i < count; i++) if (channel.session.objects.has(call.seq + i)) throw new BulkheadError('INVALID_ARGUMENT', `object index ${call.seq + i} is used twice`);
      noteCreated(call, channel, count);
      return giveSame(channel, call.seq, same);
    }
    makeReturns(channel, call.seq, count);
    noteCreated(call, channel, count);
    return failReturns(core, channel, call.seq, count, seq < 0 ? DENIED : (before as Failure));
  }
  makeReturns(channel, call.seq, count);
  noteCreated(call, channel, count);
  const task = makeTask(core, channel, r, call, template, seq);
  if (!(task instanceof Task)) return failReturns(core, channel, call.seq, count, task);
  setProducer(channel, task, count);
  remember(core, channel, key, template, call.seq, count);
  if (task.missing === 0) enqueue(core, task);
}

/** The driver is to be ended when it has asked for nothing for so long. */
export function onIdleLimit(core: Core, channel: Channel, r: FrameReader): void {
  const ms = r.u32();
  r.finish();
  if (channel.kind !== CHANNEL_KIND.DRIVER) throw new BulkheadError('INVALID_ARGUMENT', 'IDLE_LIMIT is for drivers');
  if (decideSession(core, channel, 'idle-limit') < 0) return rejectCall(core, channel, 0, DENIED);
  channel.idleMs = ms === 0 ? Number.POSITIVE_INFINITY : ms;
}

function setProducer(channel: Channel, task: Task, count: number): void {
  for (let i = 0; i < count; i++) {
    const entry = channel.session.objects.get(task.seq + i);
    if (entry === undefined) continue;
    entry.producer = task;
    entry.label = task.template.options.label;
  }
}

export function onCreateActor(core: Core, channel: Channel, r: FrameReader): void {
  const call = begin(core, channel, r, CALL_KIND.ACTOR_CLASS);
  if (call === undefined) return;
  const template = call.template as Template;
  const { session } = channel;
  makeReturns(channel, call.seq, 1);
  noteCreated(call, channel, 1);
  const seq = decideCall(core, channel, 'actor.create', template, call.seq, template.detail);
  if (seq >= 0 && channel.job.ended) {
    r.skipRest();
    return failReturns(core, channel, call.seq, 1, JOB_ENDED);
  }
  const task = seq < 0 ? DENIED : makeTask(core, channel, r, call, template, seq);
  if (seq < 0) r.skipRest();
  if (!(task instanceof Task)) {
    tellCreator(core, channel, call.seq, ACTOR_STATE.ENDED, task, seq < 0 ? ~seq : seq);
    return failReturns(core, channel, call.seq, 1, task);
  }
  setProducer(channel, task, 1);
  const actor = new Actor(session, call.seq, channel.job, template, task, template.options.name);
  session.actors.set(call.seq, actor);
  channel.job.actors.add(actor);
  if (channel.kind !== CHANNEL_KIND.PEER) channel.job.tenant.actors++;
  // Dead at once, and known: the calls that its client makes without waiting are told why.
  const quota = overQuota(channel, CALL_KIND.ACTOR_CLASS);
  if (quota !== undefined) return actorDied(core, actor, refused('QUOTA_EXCEEDED', quota));
  // What another raylet had made here, it restarts itself.
  if (template.options.maxRestarts !== 0 && channel.kind !== CHANNEL_KIND.PEER) keepSeed(actor);
  if (actor.name === '') core.waitingActors.add(actor);
  else core.out.push({ type: 'register-name', actor, id: core.idOf(session, call.seq), classInfo: classInfoOf(actor) });
}

/** The head has answered whether the name was free. */
export function onNameRegistered(core: Core, actor: Actor, failure: Failure | undefined): void {
  if (actor.state !== 'DEPENDENCIES_UNREADY') return;
  if (failure !== undefined) return actorDied(core, actor, failure);
  actor.nameRegistered = true;
  core.waitingActors.add(actor);
}

export function onCallActor(core: Core, channel: Channel, r: FrameReader): void {
  const call = begin(core, channel, r, CALL_KIND.ACTOR_METHOD);
  if (call === undefined) return;
  const template = call.template as Template;
  const { returns } = template.options;
  const actorId = r.id();
  makeReturns(channel, call.seq, Math.max(returns, 1));
  noteCreated(call, channel, Math.max(returns, 1));
  const actor = findActor(core, channel, actorId);
  const elsewhere = actor === undefined && idWord(actorId, 0) === channel.job.tenant.number && core.nodes.has(idWord(actorId, 4)) && channel.kind !== CHANNEL_KIND.PEER;
  const target = actor === undefined ? foreignResource(core, 'actor', actorId, elsewhere ? channel.job.tenant.name : undefined) : methodResource(actor, template);
  const name = actor === undefined ? hex(actorId.subarray(0, SESSION_PREFIX_BYTES)) : actor.session.prefixHex;
  const seq = decideOn(core, channel, 'actor.call', target, name, idIndex(actorId), 1, template.detail, actorId);
  if (seq < 0 || (actor === undefined && !elsewhere)) {
    r.skipRest();
    return failReturns(core, channel, call.seq, returns, seq >= 0 && actorGone(core, channel, actorId) ? ACTOR_GONE : DENIED);
  }
  const copied = elsewhere ? actorId.slice() : undefined;
  const task = makeTask(core, channel, r, call, template, seq);
  if (!(task instanceof Task)) return failReturns(core, channel, call.seq, returns, task);
  setProducer(channel, task, Math.max(returns, 1));
  if (actor !== undefined) callActor(core, actor, task);
  else core.remoteCalls.push({ task, actorId: copied as Uint8Array });
}

const ACTOR_GONE: Failure = { code: 'ACTOR_DIED', message: 'the node that owned the actor is not in the cluster any more: make it again, or look it up by its name if it is detached', stack: '' };

function actorGone(core: Core, channel: Channel, id: Uint8Array): boolean {
  return channel.kind !== CHANNEL_KIND.PEER && idWord(id, 0) === channel.job.tenant.number && ownerGone(core, id);
}

/** A resource of which nothing is known here but the tenant number in its id. */
function foreignResource(core: Core, kind: 'object' | 'actor' | 'task', id: Uint8Array, tenantName: string | undefined): Resource {
  return resource(kind, { tenant: tenantName ?? core.tenants.get(idWord(id, 0))?.name ?? '' });
}

// --- objects ------------------------------------------------------------------------------------------------------------

function putEntry(core: Core, channel: Channel, parent: Task | undefined, seq: number, size: number): ObjectEntry | undefined {
  makeReturns(channel, seq, 1);
  const entry = channel.session.objects.get(seq) as ObjectEntry;
  const full = channel.job.tenant.entries > MAX_OBJECTS_PER_TENANT;
  if (parent !== undefined && channel.slot?.lease !== undefined) (parent.created ??= []).push(seq);
  const { tenant } = channel.job;
  const decision = core.decide(channel, 'object.put', resource('object', { tenant: tenant.name, owner: channel.principal.spiffeId, size }), channel.session.prefixHex, seq, 1, '');
  if (decision >= 0 && !full) return entry;
  settleFailed(core, entry, decision < 0 ? DENIED : refused('RESOURCE_EXHAUSTED', TOO_MANY_OBJECTS));
  return undefined;
}

function readContained(core: Core, channel: Channel, r: FrameReader, entry: ObjectEntry | undefined): void {
  const n = r.refCount(MAX_REFS_PER_CALL);
  for (let i = 0; i < n; i++) {
    const inner = findEntry(core, channel, r.id());
    if (inner === undefined || entry === undefined || inner === entry) continue;
    inner.pins++;
    borrow(core, inner, channel);
    (entry.contained ??= []).push(inner);
  }
}

export function onPut(core: Core, channel: Channel, r: FrameReader): void {
  const parent = parentOf(channel, r.u32());
  const seq = r.u32();
  const entry = putEntry(core, channel, parent, seq, r.remaining);
  readContained(core, channel, r, entry);
  const value = r.rest();
  if (entry !== undefined) settleInline(core, entry, value.slice());
}

export function onPutChunk(core: Core, channel: Channel, r: FrameReader): void {
  const parent = parentOf(channel, r.u32());
  const seq = r.u32();
  const total = r.u64();
  const offset = r.u64();
  const part = r.rest();
  if (offset === 0) {
    if (total === 0 || total > MAX_OBJECT_BYTES) throw new BulkheadError('INVALID_ARGUMENT', `an object of ${total} bytes is not accepted: at most ${MAX_OBJECT_BYTES}`);
    const { tenant } = channel.job;
    const entry = putEntry(core, channel, parent, seq, total);
    if (entry === undefined) return;
    // A file of one octet takes a page and a name on the tmpfs that all tenants share, and is counted as one octet.
    if (total <= MAX_INLINE_BYTES) return settleFailed(core, entry, refused('INVALID_ARGUMENT', `an object of ${total} bytes is sent whole: only those of more than ${MAX_INLINE_BYTES} bytes come in parts`));
    if (tenant.objectBytes + total > tenant.quota.objectBytes) return settleFailed(core, entry, refused('QUOTA_EXCEEDED', `an object of ${total} bytes does not fit the tenant's quota of ${tenant.quota.objectBytes} bytes (${tenant.objectBytes} in use on this node)`));
    const noMemory = noMemoryFor(core, tenant, total);
    if (noMemory !== undefined) return settleFailed(core, entry, noMemory);
    if (channel.puts.size >= MAX_UPLOADS_PER_CHANNEL) return settleFailed(core, entry, refused('RESOURCE_EXHAUSTED', `more than ${MAX_UPLOADS_PER_CHANNEL} objects are being sent at once: finish some of them first`));
    // Counted from its first part on: what is only begun takes memory too.
    tenant.objectBytes += total;
    takeMemory(core, tenant, total);
    channel.puts.set(seq, { total, offset: 0, fileName: `put-${channel.session.prefixHex}-${seq}` });
    entry.pickle = carriesCode(part);
  }
  const upload = channel.puts.get(seq);
  if (upload === undefined) return;
  if (upload.total !== total || upload.offset !== offset || offset + part.length > total) throw new BulkheadError('INVALID_ARGUMENT', 'the parts of an object do not follow each other');
  upload.offset += part.length;
  const last = upload.offset === total;
  core.out.push({ type: 'write-part', tenant: channel.job.tenant, fileName: upload.fileName, offset, bytes: part, last });
  if (!last) return;
  channel.puts.delete(seq);
  channel.job.tenant.objectBytes -= total;
  giveMemory(core, channel.job.tenant, total);
  const entry = channel.session.objects.get(seq);
  if (entry !== undefined) settleFile(core, entry, upload.fileName, total);
  else core.out.push({ type: 'delete-file', tenant: channel.job.tenant, fileName: upload.fileName });
}

/** Gives up an object of which only some parts have come. */
export function dropUpload(core: Core, channel: Channel, seq: number): void {
  const upload = channel.puts.get(seq);
  if (upload === undefined) return;
  channel.puts.delete(seq);
  channel.job.tenant.objectBytes -= upload.total;
  giveMemory(core, channel.job.tenant, upload.total);
  core.out.push({ type: 'delete-file', tenant: channel.job.tenant, fileName: upload.fileName });
}

export function onPutStaged(core: Core, channel: Channel, r: FrameReader): void {
  const parent = parentOf(channel, r.u32());
  const seq = r.u32();
  const staged = r.u32();
  const size = r.u64();
  const worker = channel.slot?.worker;
  if (worker === undefined) throw new BulkheadError('INVALID_ARGUMENT', 'PUT_STAGED is for workers');
  checkStagedSize(size);
  const entry = putEntry(core, channel, parent, seq, size);
  readContained(core, channel, r, entry);
  r.finish();
  if (entry === undefined) return;
  const fileName = `put-${channel.session.prefixHex}-${seq}`;
  core.out.push({ type: 'seal-staged', worker, slotNumber: channel.slot?.number ?? 0, staged, fileName, size, entry });
  settleFile(core, entry, fileName, size);
}

/** Reads the refs of a call, decides over each run of neighbours at once, and gives the entries (undefined: denied or unknown). */
function decideRefs(core: Core, channel: Channel, r: FrameReader, action: Action, entries: (ObjectEntry | undefined)[], failures: (Failure | undefined)[]): number {
  const n = r.refCount(MAX_REFS_PER_CALL);
  let needed = -1;
  let runSession: Session | undefined;
  let runLabel = '';
  let runStart = 0;
  let runFirst = 0;
  const flush = (end: number): void => {
    if (runSession === undefined || end === runStart) return;
    const target = runLabel === '' ? runSession.objectResource : resource('object', { tenant: runSession.tenant.name, owner: runSession.ownerId, label: runLabel });
    const seq = core.decide(channel, action, target, runSession.prefixHex, runFirst, end - runStart, '');
    needed = Math.max(needed, seq < 0 ? ~seq : seq);
    if (seq < 0) for (let i = runStart; i < end; i++) failures[i] = DENIED;
  };
  for (let i = 0; i < n; i++) {
    const id = r.id();
    const index = idIndex(id);
    const session = core.sessionOf(channel, id);
    if (session === undefined) {
      flush(i);
      runSession = undefined;
      const foreign = decideForeign(core, channel, action, id, '');
      needed = Math.max(needed, foreign.seq);
      entries[i] = foreign.entry;
      failures[i] = foreign.failure;
      continue;
    }
    const entry = findEntry(core, channel, id);
    const label = entry?.label ?? '';
    if (session !== runSession || label !== runLabel || index !== runFirst + (i - runStart)) {
      flush(i);
      runSession = session;
      runLabel = label;
      runStart = i;
      runFirst = index;
    }
    entries.push(entry);
    if (entry === undefined) failures[i] = LOST;
  }
  flush(n);
  return needed;
}

export function onGet(core: Core, channel: Channel, r: FrameReader, kind: number): void {
  const parent = parentOf(channel, r.u32());
  const request = r.u32();
  const entries: (ObjectEntry | undefined)[] = [];
  const failures: (Failure | undefined)[] = [];
  const needed = decideRefs(core, channel, r, 'object.get', entries, failures);
  r.finish();
  let pending: PendingCall | undefined;
  for (let i = 0; i < entries.length; i++) {
    const entry = entries[i];
    const failure = failures[i];
    if (failure !== undefined || entry === undefined) refuseValue(core, channel, request, i, failure ?? LOST, needed);
    else if (isLocal(entry) || (kind === PENDING_KIND.RESOLVE && entry.status === OBJECT_STATUS.SPILLED)) writeValue(core, channel, request, i, entry, needed, kind);
    else if (channel.waiting >= MAX_WAITING_PER_CHANNEL) refuseValue(core, channel, request, i, TOO_MANY_WAITING, needed);
    else {
      pending ??= new PendingCall(channel, request, kind, needed, parent, 0);
      pending.remaining++;
      pending.positions++;
      channel.waiting++;
      entry.pins++;
      awaitEntry(core, entry, { call: pending, position: i, task: undefined });
    }
  }
  if (pending !== undefined && parent !== undefined) block(parent);
}

/** Another raylet holds objects of ours for its clients: they stay until it gives them back, or its channel ends. */
export function onBorrow(core: Core, channel: Channel, r: FrameReader): void {
  r.u32();
  const request = r.u32();
  const entries: (ObjectEntry | undefined)[] = [];
  const failures: (Failure | undefined)[] = [];
  const needed = decideRefs(core, channel, r, 'object.get', entries, failures);
  r.finish();
  for (let i = 0; i < entries.length; i++) {
    const entry = entries[i];
    // What is another one's is not ours to hold for anybody who says so.
    if (entry !== undefined && failures[i] === undefined && entry.session.nodeNumber === core.config.nodeNumber && entry.session.tenant === channel.job.tenant) lendOne(core, channel, entry);
  }
  channel.out.begin(OP.BORROWED).u32(request).end();
  core.markChannel(channel, needed);
}

export function onGiveBack(core: Core, channel: Channel, r: FrameReader): void {
  for (let n = r.u32(); n > 0; n--) {
    const id = r.id();
    const copies = r.u32();
    const entry = core.knownSessionOf(channel, id)?.objects.get(idIndex(id));
    const lent = entry === undefined ? undefined : channel.borrowed.get(entry);
    if (entry === undefined || lent === undefined) continue;
    if (lent > copies) channel.borrowed.set(entry, lent - copies);
    else {
      channel.borrowed.delete(entry);
      holderGaveBack(core, channel, entry);
      unpin(core, entry);
    }
  }
  r.finish();
}

export function onWait(core: Core, channel: Channel, r: FrameReader): void {
  const parent = parentOf(channel, r.u32());
  const request = r.u32();
  const count = r.u32();
  const timeoutMs = r.u32();
  const entries: (ObjectEntry | undefined)[] = [];
  const failures: (Failure | undefined)[] = [];
  const needed = decideRefs(core, channel, r, 'object.wait', entries, failures);
  r.finish();
  const denied = failures.find((f) => f?.code === 'DENIED');
  if (denied !== undefined) return failRequest(core, channel, request, denied, needed);
  const call = new PendingCall(channel, request, PENDING_KIND.WAIT, needed, parent, 0);
  call.need = Math.min(count, entries.length);
  const ready: number[] = (call.ready = []);
  for (let i = 0; i < entries.length; i++) {
    const entry = entries[i];
    if (entry === undefined || isReady(entry)) ready.push(i);
  }
  if (ready.length >= call.need || timeoutMs === 0) return answerWait(core, call);
  if (channel.waiting >= MAX_WAITING_PER_CHANNEL) return failRequest(core, channel, request, TOO_MANY_WAITING, needed);
  for (let i = 0; i < entries.length; i++) {
    const entry = entries[i];
    if (entry === undefined || isReady(entry)) continue;
    call.positions++;
    channel.waiting++;
    awaitEntry(core, entry, { call, position: i, task: undefined });
  }
  if (timeoutMs !== NO_TIMEOUT) call.deadlineMs = core.nowMs + timeoutMs;
  channel.pendingWaits.add(call);
  if (parent !== undefined) block(parent);
}

export function onRelease(core: Core, channel: Channel, r: FrameReader): void {
  const n = r.refCount(MAX_REFS_PER_CALL);
  const { session } = channel;
  let runFirst = 0;
  let runCount = 0;
  const flush = (): void => {
    if (runCount === 0) return;
    // A denied release lets nothing go: what it names stays until its session ends. What another raylet had made here it may always give up, as by closing
    // its channel: who may ask for that was decided there, and what an end brings about nobody asks for.
    if (channel.kind === CHANNEL_KIND.PEER || core.decide(channel, 'object.release', session.objectResource, session.prefixHex, runFirst, runCount, '') >= 0) for (let i = 0; i < runCount; i++) letGo(core, channel, runFirst + i);
    runCount = 0;
  };
  for (let i = 0; i < n; i++) {
    const id = r.id();
    const index = idIndex(id);
    let own = true;
    for (let k = 0; k < SESSION_PREFIX_BYTES && own; k++) own = id[k] === session.prefix[k];
    const of = own ? session : core.knownSessionOf(channel, id);
    if (of !== session) {
      // Of others' refs it can give back only what was lent to it; anything else is a claim and is passed over.
      const lent = of?.objects.get(index);
      if (lent !== undefined) takeBack(core, channel, lent);
      continue;
    }
    if (runCount > 0 && index === runFirst + runCount) runCount++;
    else {
      flush();
      runFirst = index;
      runCount = 1;
    }
  }
  flush();
  r.finish();
}

/** A ref of the channel's own session that its client gave back. */
function letGo(core: Core, channel: Channel, index: number): void {
  const { session } = channel;
  releaseIndex(core, session, index);
  if (channel.puts.size > 0 && !session.objects.has(index)) dropUpload(core, channel, index);
}

// --- requests -----------------------------------------------------------------------------------------------------------

export function onCancel(core: Core, channel: Channel, r: FrameReader): void {
  r.u32();
  const request = r.u32();
  const id = r.id();
  const force = r.u8() !== 0;
  r.finish();
  const session = core.sessionOf(channel, id);
  const entry = session?.objects.get(idIndex(id));
  const task = entry?.producer;
  if (channel.kind === CHANNEL_KIND.PEER && session === channel.session) {
    if (task !== undefined && task.state !== TASK_STATE.DONE) cancelTask(core, task, force);
    return;
  }
  const target = session === undefined ? foreignResource(core, 'task', id, undefined) : resource('task', { tenant: session.tenant.name, owner: session.ownerId, function: entry?.producer?.template.exportName ?? '' });
  const seq = decideOn(core, channel, 'task.cancel', target, hex(id.subarray(0, SESSION_PREFIX_BYTES)), idIndex(id), 1, force ? 'force' : '', id);
  const needed = seq < 0 ? ~seq : seq;
  if (seq < 0 || session === undefined) return failRequest(core, channel, request, seq >= 0 && idWord(id, 0) === channel.job.tenant.number && ownerGone(core, id) ? OWNER_GONE : DENIED, needed);
  // An actor in the making is killed, which is another permission.
  const found = task !== undefined && task.state !== TASK_STATE.DONE && task.template.kind !== CALL_KIND.ACTOR_CLASS;
  if (found) cancelTask(core, task, force);
  done(core, channel, request, JSON.stringify({ cancelled: found }), needed);
}

export function onKill(core: Core, channel: Channel, r: FrameReader): void {
  r.u32();
  const request = r.u32();
  const id = r.id();
  const restart = r.u8() !== 0;
  r.finish();
  const actor = findActor(core, channel, id);
  if (channel.kind === CHANNEL_KIND.PEER && core.sessionOf(channel, id) === channel.session) {
    if (actor !== undefined) actorDied(core, actor, refused('ACTOR_DIED', 'it was killed'));
    return;
  }
  const elsewhere = actor === undefined && idWord(id, 0) === channel.job.tenant.number && core.nodes.has(idWord(id, 4)) && channel.kind !== CHANNEL_KIND.PEER;
  const target = actor === undefined ? foreignResource(core, 'actor', id, elsewhere ? channel.job.tenant.name : undefined) : actorResource(actor);
  const seq = decideOn(core, channel, 'actor.kill', target, hex(id.subarray(0, SESSION_PREFIX_BYTES)), idIndex(id), 1, restart ? 'restart' : '', id);
  const needed = seq < 0 ? ~seq : seq;
  if (seq < 0 || (actor === undefined && !elsewhere)) return failRequest(core, channel, request, seq >= 0 && actorGone(core, channel, id) ? ACTOR_GONE : DENIED, needed);
  if (actor === undefined) core.remoteKills.push({ channel, id: id.slice(), restart });
  else if (restart) actorLost(core, actor, refused('ACTOR_DIED', 'it was killed, to be started again'));
  else actorDied(core, actor, refused('ACTOR_DIED', 'it was killed'));
  done(core, channel, request, '{"killed":true}', needed);
}

export function onLookupActor(core: Core, channel: Channel, r: FrameReader): void {
  r.u32();
  const request = r.u32();
  const name = r.str();
  r.finish();
  const slash = name.indexOf('/');
  const seq = core.decide(channel, 'actor.find', resource('actor', { tenant: channel.job.tenant.name, name }), name.slice(0, 256), -1, 1, '');
  if (seq < 0) return failRequest(core, channel, request, DENIED, ~seq);
  core.out.push({ type: 'lookup-name', channel, request, name: slash < 0 ? name : name.slice(slash + 1), namespace: slash < 0 ? '' : name.slice(0, slash), auditSeq: seq });
}

export function onNameFound(core: Core, channel: Channel, request: number, found: { id: Uint8Array; classInfo: string } | Failure | undefined, auditSeq: number): void {
  if (channel.closed) return;
  if (found !== undefined && 'code' in found) return failRequest(core, channel, request, found, auditSeq);
  if (found === undefined || found.id.length !== OBJECT_ID_BYTES) return failRequest(core, channel, request, refused('DENIED', DENIED_TEXT), auditSeq);
  channel.out.begin(OP.ACTOR).u32(request).raw(found.id).text(found.classInfo).end();
  core.markChannel(channel, auditSeq);
}

export function onContext(core: Core, channel: Channel, r: FrameReader): void {
  const parent = parentOf(channel, r.u32());
  const request = r.u32();
  r.finish();
  const seq = decideSession(core, channel, 'context');
  if (seq < 0) return failRequest(core, channel, request, DENIED, ~seq);
  done(core, channel, request, JSON.stringify({
    job: channel.job.id, tenant: channel.job.tenant.name, node: core.config.nodeId, principal: channel.principal.spiffeId,
    task: parent === undefined ? null : core.idText(parent.channel.session, parent.seq), attempt: parent?.attempt ?? 0, depth: parent?.depth ?? channel.depth,
  }), seq);
}
