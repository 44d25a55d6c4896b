/**
 * What `list`, `get`, `summary`, `logs` and `doctor` show of this raylet. The tenant asked about was decided by the policy before a
 * handler runs; here only that tenant's state is walked. Must never: name anything of another tenant.
 */
import { setImmediate } from 'node:timers/promises';
import type { MessageInitShape } from '@bufbuild/protobuf';
import { BulkheadError } from '../base/errors.ts';
import { CALL_KIND } from '../base/frame.ts';
import { parseJobId, parseObjectIdText, quote } from '../base/ids.ts';
import { MAX_OBJECTS_PER_TENANT } from '../base/limits.ts';
import type { EntitySchema, Inspection } from '../rpc/generated/bulkhead/v1/raylet_pb.js';
import type { CallContext, Implementation } from '../rpc/rpc.ts';
import { LAYER_REMEDIES, type Layer } from '../sandbox/jail/layers.ts';
import { taskName } from './core/dispatch.ts';
import { pendingReason } from './core/scheduler.ts';
import { CHANNEL_KIND, TASK_STATE, type Actor, type ObjectEntry, type Task, type TenantState, type Worker } from './core/state.ts';
import type { Raylet } from './raylet.ts';

type Entity = MessageInitShape<typeof EntitySchema>;

const DEFAULT_LIMIT = 1_000;
const MAX_LIMIT = 10_000;
const OTHERS = '(others)';
const SLICE = 1_000;
/** Objects of a tenant, and as many tasks, actors and sessions that they are in. */
const MAX_LOOKED_AT = 2 * MAX_OBJECTS_PER_TENANT;
const OBJECT_STATES = ['PENDING', 'INLINE', 'STORED', 'REMOTE', 'FAILED'];

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

/** Undefined: something that is not to be shown was looked at, which costs time all the same. */
function* entities({ raylet, nodeId }: InspectionContext, tenant: TenantState, kind: string, jobId: string): Generator<Entity | undefined, void, undefined> {
  const core = raylet.core.state;
  const wanted = (job: string): boolean => jobId === '' || job === jobId;
  switch (kind) {
    case 'tasks': {
      const seen = new Set<Task>();
      for (const session of tenant.sessions) {
        for (const entry of session.objects.values()) {
          const task = entry.producer;
          // A forwarded task is listed where it was submitted, under the id that its owner knows.
          if (task === undefined || seen.has(task) || task.template.kind !== CALL_KIND.TASK || task.channel.kind === CHANNEL_KIND.PEER || !wanted(task.channel.job.id)) {
            yield undefined;
            continue;
          }
          seen.add(task);
          yield shownTask(raylet, nodeId, task);
        }
      }
      for (let i = tenant.finished.length - 1; i >= 0; i--) {
        const task = tenant.finished[i]!;
        if (!wanted(task.job)) yield undefined;
        else yield { kind, id: core.idText(task.session, task.seq), nodeId, jobId: task.job, name: task.name, state: task.state, reason: task.reason, facts: { started: String(task.startedMs), ended: String(task.endedMs) } };
      }
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
        for (const entry of session.objects.values()) yield shownObject(raylet, nodeId, entry);
      }
      return;
    case 'workers':
      for (const worker of core.workers.values()) if (worker.tenant === tenant) yield shownWorker(raylet, nodeId, worker);
      return;
    default:
      throw new BulkheadError('INVALID_ARGUMENT', `${quote(kind)} is none of workers, tasks, actors, objects`);
  }
}

/**
 * The same, some at a time: a tenant may have millions of objects here, and the calls of the others go on between them. It ends with its
 * caller, and with what a tenant can have at most: things that come as fast as they are looked at do not keep it going.
 */
async function* bySlices(context: InspectionContext, tenant: TenantState, kind: string, jobId: string, signal: AbortSignal): AsyncGenerator<Entity, void, undefined> {
  let looked = 0;
  for (const entity of entities(context, tenant, kind, jobId)) {
    if (entity !== undefined) yield entity;
    if (++looked % SLICE !== 0) continue;
    if (looked >= MAX_LOOKED_AT || signal.aborted) return;
    await setImmediate();
  }
}

/** Ray's names of task states. */
function stateOf(raylet: Raylet, task: Task): { state: string; reason: string } {
  switch (task.state) {
    case TASK_STATE.WAITING: return { state: 'PENDING_ARGS_AVAIL', reason: 'waits for its arguments' };
    case TASK_STATE.QUEUED: return { state: 'PENDING_NODE_ASSIGNMENT', reason: pendingReason(raylet.core.state, task) };
    case TASK_STATE.RUNNING:
      if (task.upstream !== undefined) return { state: 'RUNNING', reason: `on node ${raylet.core.state.nodes.get(task.upstream.nodeNumber)?.nodeId ?? task.upstream.nodeNumber}` };
      return { state: task.blocked > 0 ? 'RUNNING_IN_RAY_GET' : 'RUNNING', reason: task.blocked > 0 ? 'waits for an object' : '' };
    case TASK_STATE.DONE: return { state: 'FINISHED', reason: '' };
  }
}

function shownTask(raylet: Raylet, nodeId: string, task: Task): Entity {
  const { state, reason } = stateOf(raylet, task);
  const { resources } = task.template.options;
  return {
    kind: 'tasks', id: raylet.core.state.idText(task.channel.session, task.seq), nodeId, jobId: task.channel.job.id, name: taskName(task), state, reason,
    facts: { attempt: String(task.attempt), cpus: String(resources.cpuUnits / 10_000), submitted: String(task.submittedMs), worker: task.slot?.worker.id ?? '' },
  };
}

function shownActor(raylet: Raylet, nodeId: string, actor: Actor): Entity {
  return {
    kind: 'actors', id: raylet.core.state.idText(actor.session, actor.index), nodeId, jobId: actor.job.id, name: actor.name, state: actor.state, reason: actor.reason,
    facts: { class: actor.template.exportName, pending: String(actor.inFlight), worker: actor.worker?.id ?? '', node: actor.upstream === undefined ? nodeId : (raylet.core.state.nodes.get(actor.upstream.nodeNumber)?.nodeId ?? '') },
  };
}

function shownObject(raylet: Raylet, nodeId: string, entry: ObjectEntry): Entity {
  return {
    kind: 'objects', id: raylet.core.state.idText(entry.session, entry.index), nodeId, jobId: '', name: entry.label, state: OBJECT_STATES[entry.status] ?? '', reason: entry.failure === undefined ? '' : `${entry.failure.code}: ${entry.failure.message}`,
    facts: { size: String(entry.size), refs: String(entry.handles), pins: String(entry.pins), owner: entry.session.ownerId },
  };
}

function shownWorker(raylet: Raylet, nodeId: string, worker: Worker): Entity {
  const process = raylet.processes.get(worker);
  return {
    kind: 'workers', id: worker.id ?? `starting-${worker.key}`, nodeId, jobId: '', name: worker.purpose, state: worker.state, reason: '',
    facts: { isolates: String(worker.slots.size), memory: String(process?.memoryBytes() ?? 0), cpuMs: String(Math.round((process?.cpuMicros() ?? 0) / 1_000)) },
  };
}

export function inspectionService(context: InspectionContext): Implementation<typeof Inspection> {
  const { raylet, nodeId } = context;
  return {
    async list(call, request) {
      const limit = Math.min(request.limit === 0 ? DEFAULT_LIMIT : request.limit, MAX_LIMIT);
      const tenant = tenantOf(raylet, request.tenant);
      const found: Entity[] = [];
      if (tenant !== undefined) {
        for await (const entity of bySlices(context, tenant, request.kind, request.jobId, call.signal)) {
          if (found.length === limit) return { entities: found, truncated: true };
          found.push(entity);
        }
      }
      return { entities: found, truncated: false };
    },
    async get(call, request) {
      const tenant = tenantOf(raylet, request.tenant);
      if (tenant !== undefined) for await (const entity of bySlices(context, tenant, request.kind, '', call.signal)) if (entity.id === request.id || (entity.name === request.id && request.id !== '')) return entity;
      throw new BulkheadError('DENIED', 'not found, or not permitted');
    },
    async summarize(call, request) {
      const tenant = tenantOf(raylet, request.tenant);
      const counts = new Map<string, { name: string; state: string; count: bigint }>();
      if (tenant !== undefined) {
        for await (const entity of bySlices(context, tenant, request.kind, '', call.signal)) {
          const called = request.kind === 'actors' ? (entity.facts?.['class'] ?? '') : (entity.name ?? '');
          const state = entity.state ?? '';
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
    async *readLog(call: CallContext, request) {
      const tenant = tenantOf(raylet, request.tenant);
      if (tenant === undefined) return;
      if (!['job', 'task', 'actor'].includes(request.kind)) throw new BulkheadError('INVALID_ARGUMENT', `${quote(request.kind)} is none of job, task, actor`);
      if (request.kind === 'job') parseJobId(request.id);
      else parseObjectIdText(request.id);
      const jobs = request.kind === 'job' ? [request.id] : raylet.logs.jobs(tenant.name);
      const keep = request.kind === 'job' ? () => true : request.kind === 'task' ? (l: { task: string }) => l.task === request.id : (l: { actor: string }) => l.actor === request.id;
      for (const job of jobs) {
        for await (const line of raylet.logs.read(tenant.name, job, keep, request.follow && jobs.length === 1, call.signal)) yield { source: JSON.stringify({ ...line, text: undefined }), text: new TextEncoder().encode(line.text) };
      }
    },
  };
}
