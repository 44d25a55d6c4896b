/**
 * What `list`, `get`, `summary`, `logs` and `doctor` show of this raylet. The tenant asked about was decided by the policy before a
 * handler runs; here only that tenant's state is walked. Must never: name anything of another tenant.
 */
import { setImmediate } from 'node:timers/promises';
import type { MessageInitShape } from '@bufbuild/protobuf';
import { BulkheadError } from '../base/errors.ts';
import { CALL_KIND, type CallKind } from '../base/frame.ts';
import { objectIdText, parseJobId, parseObjectIdText, quote } from '../base/ids.ts';
import { MAX_OBJECTS_PER_TENANT } from '../base/limits.ts';
import { describeResources } from '../base/resources.ts';
import type { EntitySchema, Inspection, TimelineCallSchema } from '../rpc/generated/bulkhead/v1/raylet_pb.js';
import type { CallContext, Implementation } from '../rpc/rpc.ts';
import { LAYER_REMEDIES, type Layer } from '../sandbox/jail/layers.ts';
import type { PastCall } from './core/call-history.ts';
import { makeId } from './core/core.ts';
import { nameOf, taskName } from './core/dispatch.ts';
import { actorReason, findHolders, Holders, holdersText, nodeName, taskReason } from './core/reasons.ts';
import { CHANNEL_KIND, ObjectEntry, TASK_STATE, type Actor, type Task, type TenantState, type Worker } from './core/state.ts';
import { groupReason, type PlacementGroup } from './core/placement-groups.ts';
import type { Raylet } from './raylet.ts';

type Entity = MessageInitShape<typeof EntitySchema>;

const DEFAULT_LIMIT = 1_000;
const MAX_LIMIT = 10_000;
const OTHERS = '(others)';
const SLICE = 1_000;
/** Objects of a tenant, and as many tasks, actors and sessions that they are in; what has ended comes on top. */
const MAX_LOOKED_AT = 2 * MAX_OBJECTS_PER_TENANT;
const OBJECT_STATES = ['PENDING', 'INLINE', 'STORED', 'REMOTE', 'FAILED', 'SPILLED'];

export interface InspectionContext {
  readonly raylet: Raylet;
  readonly nodeId: string;
  readonly insecureDev: boolean;
  /** Layers of the worker that was started last, read from /proc when asked. */
  readonly layers: () => Promise<readonly Layer[]>;
}

function tenantOf(raylet: Raylet, name: string): TenantState | undefined {
  for (const tenant of raylet.core.state.tenants.values()) if (tenant.name === name && tenant.active) return tenant;
  return undefined;
}

/** What a walk comes by: an object is shown later, when it is known who holds those that are asked for. */
type Met = Entity | ObjectEntry | undefined;

type CallOnTimeline = MessageInitShape<typeof TimelineCallSchema>;

/** Calls of a tenant as the timeline has them; undefined where nothing is to be shown. */
function* timelineCalls(raylet: Raylet, tenant: TenantState, jobId: string, fromMs: number): Generator<CallOnTimeline | undefined, void, undefined> {
  const core = raylet.core.state;
  const wanted = (job: string): boolean => jobId === '' || job === jobId;
  for (const session of tenant.sessions) {
    for (const entry of session.objects.values()) {
      const task = entry.producer;
      if (task === undefined || task.channel.session !== session || task.seq !== entry.index || !wanted(task.channel.job.id)) {
        yield undefined;
        continue;
      }
      const started = task.state === TASK_STATE.RUNNING;
      yield {
        id: core.idText(session, task.seq), jobId: task.channel.job.id, name: taskName(task), type: TYPE_OF_KIND[task.template.kind], state: stateOf(task), reason: taskReason(core, task),
        submittedMs: BigInt(task.submittedMs), startedMs: BigInt(started ? task.startedMs : 0), worker: task.slot?.worker.id ?? '', slot: task.slot?.number ?? 0, attempt: task.attempt,
        ...(task.upstream === undefined ? {} : { remoteNode: nodeName(core, task.upstream.nodeNumber), remoteId: remoteId(task.upstream.prefix, task.remoteSeq) }), forwardedHere: task.channel.kind === CHANNEL_KIND.PEER, traceparent: task.template.options.traceparent, parentId: task.caller === undefined ? '' : core.idText(task.caller.channel.session, task.caller.seq),
      };
    }
  }
  for (const calls of [tenant.history.recent(), tenant.history.older()]) {
    for (const call of calls) {
      if (call.endedMs < fromMs) break;
      if (!wanted(call.job)) yield undefined;
      else {
        yield {
          id: core.idText(call.session, call.seq), jobId: call.job, name: nameOf(call.template), type: TYPE_OF_KIND[call.template.kind], state: call.failed ? 'FAILED' : 'FINISHED', reason: call.reason,
          submittedMs: BigInt(call.submittedMs), startedMs: BigInt(call.startedMs), endedMs: BigInt(call.endedMs), worker: call.worker, slot: call.slot, attempt: call.attempt,
          ...(call.remoteNode === 0 ? {} : { remoteNode: nodeName(core, call.remoteNode), remoteId: remoteId(call.remotePrefix, call.remoteSeq) }), forwardedHere: call.forwardedHere, traceparent: call.template.options.traceparent, parentId: call.callerSession === undefined ? '' : core.idText(call.callerSession, call.callerSeq),
        };
      }
    }
  }
}

/** Undefined: something that is not to be shown was looked at, which costs time all the same. */
function* entities({ raylet, nodeId }: InspectionContext, tenant: TenantState, kind: string, jobId: string): Generator<Met, void, undefined> {
  const core = raylet.core.state;
  const wanted = (job: string): boolean => jobId === '' || job === jobId;
  switch (kind) {
    case 'tasks': {
      const seen = new Set<Task>();
      for (const session of tenant.sessions) {
        for (const entry of session.objects.values()) {
          const task = entry.producer;
          // A forwarded task is listed where it was submitted, under the id that its owner knows.
          if (task === undefined || seen.has(task) || task.template.kind === CALL_KIND.ACTOR_CLASS || task.channel.kind === CHANNEL_KIND.PEER || !wanted(task.channel.job.id)) {
            yield undefined;
            continue;
          }
          seen.add(task);
          yield shownTask(raylet, nodeId, task);
        }
      }
      for (const call of tenant.history.recent()) yield call.forwardedHere || call.template.kind === CALL_KIND.ACTOR_CLASS || !wanted(call.job) ? undefined : shownPast(raylet, nodeId, call);
      return;
    }
    case 'actors':
      for (const session of tenant.sessions) {
        for (const actor of session.actors.values()) yield wanted(actor.job.id) ? shownActor(raylet, nodeId, actor) : undefined;
      }
      return;
    case 'objects':
      for (const session of tenant.sessions) {
        if (session.nodeNumber !== core.config.nodeNumber) continue;
        for (const entry of session.objects.values()) yield entry;
      }
      return;
    case 'placement-groups':
      for (const group of core.groups.values()) if (group.job.tenant === tenant) yield wanted(group.job.id) ? shownGroup(raylet, nodeId, group) : undefined;
      return;
    case 'workers':
      for (const worker of core.workers.values()) if (worker.tenant === tenant) yield shownWorker(raylet, nodeId, worker);
      return;
    default:
      throw new BulkheadError('INVALID_ARGUMENT', `${quote(kind)} is none of workers, tasks, actors, objects, placement-groups`);
  }
}

/**
 * The same, some at a time: a tenant may have millions of objects here, and the calls of the others go on between them. It ends with its
 * caller, and with what a tenant can have at most: things that come as fast as they are looked at do not keep it going.
 */
async function* bySlices(context: InspectionContext, tenant: TenantState, kind: string, jobId: string, signal: AbortSignal): AsyncGenerator<Entity | ObjectEntry, void, undefined> {
  let looked = 0;
  for (const entity of entities(context, tenant, kind, jobId)) {
    if (entity !== undefined) yield entity;
    if (++looked % SLICE !== 0) continue;
    if (looked >= MAX_LOOKED_AT || signal.aborted) return;
    await setImmediate();
  }
}

/** Objects of one answer with who holds them: one walk for all of them, a slice at a time. */
async function shownObjects({ raylet, nodeId }: InspectionContext, tenant: TenantState, found: readonly (Entity | ObjectEntry)[], signal: AbortSignal): Promise<Entity[]> {
  const holders = new Map<ObjectEntry, Holders>();
  for (const met of found) if (met instanceof ObjectEntry) holders.set(met, new Holders());
  let looked = 0;
  if (holders.size > 0) {
    for (const step of findHolders(raylet.core.state, tenant, holders)) {
      if (++looked % SLICE !== 0) continue;
      if (looked >= MAX_LOOKED_AT || signal.aborted) break;
      await setImmediate(step);
    }
  }
  return found.map((met) => (met instanceof ObjectEntry ? shownObject(raylet, nodeId, met, holders.get(met) ?? new Holders()) : met));
}

/** Ray's names of task states. */
function stateOf(task: Task): string {
  switch (task.state) {
    case TASK_STATE.WAITING: return task.missing > 0 || task.actor === undefined ? 'PENDING_ARGS_AVAIL' : 'PENDING_ACTOR_TASK_ORDERING_OR_CONCURRENCY';
    case TASK_STATE.QUEUED: return 'PENDING_NODE_ASSIGNMENT';
    case TASK_STATE.RUNNING: return task.blocked > 0 ? 'RUNNING_IN_RAY_GET' : 'RUNNING';
    case TASK_STATE.DONE: return 'FINISHED';
  }
}

const TYPE_OF_KIND: Readonly<Record<CallKind, string>> = { [CALL_KIND.TASK]: 'NORMAL_TASK', [CALL_KIND.ACTOR_CLASS]: 'ACTOR_CREATION_TASK', [CALL_KIND.ACTOR_METHOD]: 'ACTOR_TASK' };

/** The id that a call has on the node that runs it: what it prints is kept there under that. */
function remoteId(prefix: Uint8Array | undefined, seq: number): string {
  return prefix === undefined || seq === 0 ? '' : objectIdText(makeId(prefix, seq));
}

function shownPast(raylet: Raylet, nodeId: string, call: PastCall): Entity {
  const core = raylet.core.state;
  return {
    kind: 'tasks', id: core.idText(call.session, call.seq), nodeId, jobId: call.job, name: nameOf(call.template), state: call.failed ? 'FAILED' : 'FINISHED', reason: call.reason,
    facts: {
      type: TYPE_OF_KIND[call.template.kind], attempt: String(call.attempt), submitted: String(call.submittedMs), started: String(call.startedMs), ended: String(call.endedMs), worker: call.worker,
      node: call.remoteNode === 0 ? nodeId : nodeName(core, call.remoteNode), remote: remoteId(call.remotePrefix, call.remoteSeq),
    },
  };
}

function shownTask(raylet: Raylet, nodeId: string, task: Task): Entity {
  const core = raylet.core.state;
  const { resources } = task.template.options;
  return {
    kind: 'tasks', id: core.idText(task.channel.session, task.seq), nodeId, jobId: task.channel.job.id, name: taskName(task), state: stateOf(task), reason: taskReason(core, task),
    facts: {
      type: TYPE_OF_KIND[task.template.kind], attempt: String(task.attempt), cpus: String(resources.cpuUnits / 10_000), submitted: String(task.submittedMs), worker: task.slot?.worker.id ?? '',
      ...(task.state === TASK_STATE.RUNNING ? { started: String(task.startedMs) } : {}),
      node: task.upstream === undefined ? nodeId : nodeName(core, task.upstream.nodeNumber), remote: task.upstream === undefined ? '' : remoteId(task.upstream.prefix, task.remoteSeq),
    },
  };
}

function shownActor(raylet: Raylet, nodeId: string, actor: Actor): Entity {
  return {
    kind: 'actors', id: raylet.core.state.idText(actor.session, actor.index), nodeId, jobId: actor.job.id, name: actor.name, state: actor.state, reason: actorReason(raylet.core.state, actor),
    facts: {
      class: actor.template.exportName, pending: String(actor.inFlight), restarts: String(actor.restarts), detached: String(actor.template.options.detached), ...(actor.kept ? { kept: 'true' } : {}), worker: actor.worker?.id ?? '', node: actor.upstream === undefined ? nodeId : nodeName(raylet.core.state, actor.upstream.nodeNumber),
      remote: actor.remoteId === undefined ? '' : objectIdText(actor.remoteId), ...(actor.creation.channel.kind === CHANNEL_KIND.PEER ? { forwarded: 'true' } : {}),
    },
  };
}

function shownObject(raylet: Raylet, nodeId: string, entry: ObjectEntry, holders: Holders): Entity {
  return {
    kind: 'objects', id: raylet.core.state.idText(entry.session, entry.index), nodeId, jobId: '', name: entry.label, state: OBJECT_STATES[entry.status] ?? '', reason: entry.failure === undefined ? '' : `${entry.failure.code}: ${entry.failure.message}`,
    facts: { size: String(entry.size), refs: String(entry.handles), pins: String(entry.pins), owner: entry.session.ownerId, held: holdersText(raylet.core.state, entry, holders), ...(entry.spillName === '' ? {} : { onDisk: 'true' }), ...(entry.lineage === undefined ? {} : { recomputable: 'true' }) },
  };
}

function shownWorker(raylet: Raylet, nodeId: string, worker: Worker): Entity {
  const process = raylet.processes.get(worker);
  return {
    kind: 'workers', id: worker.id ?? `starting-${worker.key}`, nodeId, jobId: '', name: worker.purpose, state: worker.state, reason: workerReason(worker),
    facts: { isolates: String(worker.slots.size), memory: String(process?.memoryBytes() ?? 0), cpuMs: String(Math.round((process?.cpuMicros() ?? 0) / 1_000)) },
  };
}

function shownGroup(raylet: Raylet, nodeId: string, group: PlacementGroup): Entity {
  const core = raylet.core.state;
  return {
    kind: 'placement-groups', id: core.idText(group.session, group.index), nodeId, jobId: group.job.id, name: group.name, state: group.state, reason: groupReason(core, group),
    facts: {
      strategy: group.strategy, bundles: String(group.bundles.length), detached: String(group.detached),
      nodes: group.bundles.map(({ node }) => (node === 0 ? '-' : nodeName(core, node))).join(' '), reserved: group.bundles.map(({ resources }) => describeResources(resources)).join('; '),
    },
  };
}

function workerReason(worker: Worker): string {
  let running = 0;
  let actors = 0;
  for (const slot of worker.slots.values()) {
    running += slot.execs.size;
    if (slot.actor !== undefined) actors++;
  }
  if (worker.state === 'STARTING') return `starts for ${worker.purpose}`;
  return `${running} calls, ${actors} actors${worker.worn ? '; has had its share of isolates and is replaced' : ''}`;
}

export function inspectionService(context: InspectionContext): Implementation<typeof Inspection> {
  const { raylet, nodeId } = context;
  return {
    async list(call, request) {
      const limit = Math.min(request.limit === 0 ? DEFAULT_LIMIT : request.limit, MAX_LIMIT);
      const tenant = tenantOf(raylet, request.tenant);
      const found: (Entity | ObjectEntry)[] = [];
      if (tenant !== undefined) {
        let truncated = false;
        for await (const entity of bySlices(context, tenant, request.kind, request.jobId, call.signal)) {
          if ((truncated = found.length === limit)) break;
          found.push(entity);
        }
        return { entities: await shownObjects(context, tenant, found, call.signal), truncated };
      }
      return { entities: [], truncated: false };
    },
    async get(call, request) {
      const tenant = tenantOf(raylet, request.tenant);
      if (tenant !== undefined) {
        for await (const met of bySlices(context, tenant, request.kind, '', call.signal)) {
          const [id, name] = met instanceof ObjectEntry ? [raylet.core.state.idText(met.session, met.index), met.label] : [met.id, met.name];
          if (id !== request.id && (name !== request.id || request.id === '')) continue;
          const [shown] = await shownObjects(context, tenant, [met], call.signal);
          if (shown !== undefined) return shown;
        }
      }
      throw new BulkheadError('DENIED', 'not found, or not permitted');
    },
    async summarize(call, request) {
      const tenant = tenantOf(raylet, request.tenant);
      const counts = new Map<string, { name: string; state: string; count: bigint }>();
      if (tenant !== undefined) {
        for await (const met of bySlices(context, tenant, request.kind, '', call.signal)) {
          const isObject = met instanceof ObjectEntry;
          // Another node has it live here, and counts it.
          if (!isObject && met.facts?.['forwarded'] !== undefined) continue;
          const called = isObject ? met.label : request.kind === 'actors' ? (met.facts?.['class'] ?? '') : (met.name ?? '');
          const state = (isObject ? OBJECT_STATES[met.status] : met.state) ?? '';
          // Names are the tenant's to choose: those beyond the limit are counted together.
          const name = counts.has(`${called}\0${state}`) || counts.size < MAX_LIMIT ? called : OTHERS;
          const key = `${name}\0${state}`;
          const row = counts.get(key) ?? { name, state, count: 0n };
          row.count++;
          counts.set(key, row);
        }
      }
      return { rows: [...counts.values()] };
    },
    async doctor() {
      const layers = await context.layers();
      return { nodeId, insecureDev: context.insecureDev, layers: layers.map((l) => ({ name: l.layer, on: l.on, detail: l.detail, remedy: l.on ? '' : LAYER_REMEDIES[l.layer] })) };
    },
    async *timeline(call: CallContext, request) {
      const tenant = tenantOf(raylet, request.tenant);
      if (tenant === undefined) return;
      let page: CallOnTimeline[] = [];
      let ended: bigint | undefined = BigInt(tenant.history.total);
      let looked = 0;
      for (const shown of timelineCalls(raylet, tenant, request.jobId, Number(request.fromMs))) {
        if (shown !== undefined) page.push(shown);
        if (++looked % SLICE !== 0) continue;
        if (looked >= MAX_LOOKED_AT || call.signal.aborted) return;
        // A page is written before the next is made, so a reader that is slow makes no heap of them.
        if (page.length > 0) yield { calls: page, ended: ended ?? 0n };
        else await setImmediate();
        if (page.length > 0) [page, ended] = [[], undefined];
      }
      yield { calls: page, ended: ended ?? 0n };
    },
    async *readLog(call: CallContext, request) {
      const tenant = tenantOf(raylet, request.tenant);
      if (tenant === undefined) return;
      if (!['job', 'task', 'actor'].includes(request.kind)) throw new BulkheadError('INVALID_ARGUMENT', `${quote(request.kind)} is none of job, task, actor`);
      if (request.kind === 'job') parseJobId(request.id);
      else parseObjectIdText(request.id);
      // A task or actor says in its id whose it is, but not of which job: all the tenant's are looked at, those that come later too.
      const job = request.kind === 'job' ? request.id : undefined;
      const keep = request.kind === 'job' ? () => true : request.kind === 'task' ? (l: { task: string }) => l.task === request.id : (l: { actor: string }) => l.actor === request.id;
      for await (const line of raylet.logs.read(tenant.name, job, keep, request.follow, call.signal)) yield { source: JSON.stringify({ ...line, text: undefined }), text: new TextEncoder().encode(line.text) };
    },
  };
}
