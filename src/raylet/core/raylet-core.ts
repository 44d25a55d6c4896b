/**
 * The face of the core: what the raylet's driver tells it, one method per event. Each event ends with `settle`, which takes up
 * what the event made possible (woken tasks, waiting actors, fetches) until nothing is left. Effects are in `core.out`, frames
 * in the writers of `dirtyChannels` and `dirtyUpstreams`.
 */
import { BulkheadError } from '../../base/errors.ts';
import { CALL_KIND, FrameReader, OP } from '../../base/frame.ts';
import type { JobId, TenantName } from '../../base/ids.ts';
import { NO_LABELS, type Labels } from '../../base/labels.ts';
import { MAX_SESSIONS_PER_JOB } from '../../base/limits.ts';
import type { AuditLog } from '../../base/audit-record.ts';
import type { Principal } from '../../base/principal.ts';
import { DEFAULT_PROJECT } from '../../base/project-quota.ts';
import { sameResources, type ResourceVector } from '../../base/resources.ts';
import type { TenantQuota, TenantShare } from '../../base/tenant-quota.ts';
import { actorDied, actorLost, drainCalls, endUnreachable, ownerEnded, placeWaitingActors, remoteActorChanged } from './actors.ts';
import { actorWorkerStarted, unseatActors } from './actor-seats.ts';
import { adoptActor, type ActorSeed } from './adoption.ts';
import { takeUpBorrows, takeUpReturned } from './borrowing.ts';
import { expirePulls, onCopied, onCopy, onShared, pullFailed, pullsChannelClosed, takeUpPulls } from './broadcast.ts';
import { coordinatorClosed, coordinatorNodeGone, expireHolds, jobHoldsEnd, tenantHoldsGone } from './bundle-holds.ts';
import * as calls from './client-calls.ts';
import { expireCopies } from './copies.ts';
import { onGroupState, viewsUpstreamClosed } from './group-views.ts';
import { onDescribeGroup, onListNodes } from './cluster-view.ts';
import { adoptGroup, onTakeBundles, takeOver } from './group-heirs.ts';
import * as groups from './placement-groups.ts';
import { onRecall, recallUnbegun } from './recalls.ts';
import { believeReports, openNode } from './placement.ts';
import { expireRounds, groupsNodeGone, groupsUpstreamClosed, jobGroupsEnd, placePending, takeUpEnded, tenantGroupsEnd } from './placement-groups.ts';
import { Core, idWord, type CoreConfig } from './core.ts';
import { cancelTask, closeSlotChannel, enforceLimits, execEnded, leaveStream, remoteEnded, remoteLost, slotDied, workerDied } from './endings.ts';
import { concludeTask } from './dispatch.ts';
import { expireKeys, forgetKeys } from './idempotency.ts';
import { keepsJob, lookForRoots, onRoots } from './job-roots.ts';
import { onExit, onFailure, onLog, onResult, onRetry } from './guest-results.ts';
import { ABANDONED, ALTERED, answerDeferred, carriesCode, CODE_BEARING, codeRefused, dropDeferred, expireWaits, forgetFresh, loseFile, LOST, mayCross, refuseValue, releaseSession, takeAllBack } from './objects.ts';
import { giveMemory } from './memory-books.ts';
import { relieve, restored, spilled, takeUpRestores, tickMemory } from './object-memory.ts';
import { takeUpDelayed } from './retries.ts';
import { preempt } from './preemption.ts';
import { applyShares, expireShares, limit, takeShares } from './quota-shares.ts';
import { leaveProject, projectOf } from './quota-tree.ts';
import { dropLease, enqueue, JOB_ENDED, parkClasses, pump, retireIdleWorkers, workerNotStarted, workerStarted } from './scheduler.ts';
import { onItem, onMore } from './streams.ts';
import { closeUpstream, fileChecked, forward, killRemote, onUpstreamFrame, takeUpFetches, transferFailed } from './upstreams.ts';
import { upstreamTo } from './upstream-channels.ts';
import { CHANNEL_KIND, Channel, Job, PENDING_KIND, TASK_STATE, TenantState, type Actor, type ChannelKind, type Failure, type HeldBatch, type ObjectEntry, type Slot, type Task, type Upstream, type Worker } from './state.ts';

const MAX_CREDENTIAL_BYTES = 8_192;
/** Octets of a frame, as a power of two, that count as another frame. */
const COST_SHIFT = 12;

export class RayletCore {
  readonly state: Core;
  readonly #reader = new FrameReader();
  readonly #counter = new FrameReader();
  readonly #remoteEnded = (task: Task): void => remoteEnded(this.state, task);
  readonly #remoteActorChanged = (actor: Actor, state: number, failure: Failure): void => remoteActorChanged(this.state, actor, state, failure);

  readonly #groupChanged = (upstream: Upstream, reader: FrameReader): void => onGroupState(this.state, upstream, reader);

  constructor(config: CoreConfig) {
    this.state = new Core(config);
  }

  // --- tenants, nodes, jobs -------------------------------------------------------------------------------------------

  /** Adds a tenant or changes its quota. A deleted tenant's jobs are ended and its calls refused. */
  setTenant(name: TenantName, number: number, log: () => AuditLog, quota: TenantQuota, active: boolean): void {
    const core = this.state;
    let tenant = core.tenants.get(number);
    if (tenant === undefined) {
      tenant = new TenantState(name, number, log(), quota);
      core.tenants.set(number, tenant);
    }
    tenant.nominal = quota;
    applyShares(core, tenant);
    tenant.active = active;
    if (active) return;
    for (const job of [...core.jobs.values()]) if (job.tenant === tenant) this.stopJob(job.id, 'its tenant was deleted');
    tenantGroupsEnd(core, tenant);
    tenantHoldsGone(core, tenant, { code: 'CANCELLED', message: 'its tenant was deleted', stack: '' });
    tenant.code.clear();
    tenant.codeBytes = 0;
    tenant.history.clear();
  }

  /** What the head lets this node use of its tenants' quotas, in answer to a report. Those whose shares have changed. */
  takeShares(epoch: number, answered: number, leaseMs: number, shares: readonly TenantShare[]): TenantState[] {
    const changed = takeShares(this.state, epoch, answered, leaseMs, shares);
    if (changed.length > 0) this.settle();
    return changed;
  }

  setNode(nodeId: string, number: number, address: string, spiffeId: string, total: ResourceVector, available: ResourceVector, labels: Labels = NO_LABELS): void {
    const core = this.state;
    const known = core.nodes.get(number);
    core.goneNodes.delete(number);
    core.nodes.set(number, { nodeId, number, address, spiffeId, total, available, labels, reported: available, takenMs: Number.POSITIVE_INFINITY });
    if (known === undefined || known.nodeId !== nodeId || !sameResources(known.total, total) || (known.labels !== labels && JSON.stringify(known.labels) !== JSON.stringify(labels))) core.nodesChanged++;
    if (known === undefined || available.cpuUnits > 0 || available.memoryBytes > 0) for (const c of core.classes) openNode(c, number);
  }

  removeNode(number: number): void {
    const core = this.state;
    const gone = core.nodes.get(number);
    if (gone === undefined) return;
    core.nodes.delete(number);
    core.goneNodes.set(number, gone.nodeId);
    core.nodesChanged++;
    for (const upstream of [...core.upstreams.values()]) if (upstream.nodeNumber === number) this.upstreamClosed(upstream, { code: 'UNAVAILABLE', message: 'the node it ran on is gone', stack: '' });
    groupsNodeGone(core, number);
    coordinatorNodeGone(core, number);
    this.settle();
  }

  ensureJob(id: JobId, tenant: TenantState, submitter: Principal, principal: Principal, credential: string, credentialEndsMs: number, issuedMs: number, project: string = DEFAULT_PROJECT): Job {
    const core = this.state;
    let job = core.jobs.get(id);
    if (job === undefined) {
      if (core.wasStopped(id)) throw new BulkheadError('UNAUTHENTICATED', 'the job was stopped: open a new session');
      job = new Job(id, tenant, projectOf(tenant, project), submitter, principal, credential, credentialEndsMs, issuedMs);
      limit(core, job);
      core.jobs.set(id, job);
      tenant.jobs.add(job);
    } else if (job.tenant !== tenant || job.submitter.spiffeId !== submitter.spiffeId || job.principal.spiffeId !== principal.spiffeId || job.project.name !== project) {
      // The head gives a job's credentials to its submitter alone; were it wrong, two principals would share refs, actors and credential.
      throw new BulkheadError('UNAUTHENTICATED', 'the session credential names a job that is not its own');
    } else if (credentialEndsMs > job.credentialEndsMs) {
      job.credential = credential;
      job.credentialEndsMs = credentialEndsMs;
      job.issuedMs = issuedMs;
    }
    return job;
  }

  /** Ends a job: its tasks are cancelled, its actors killed, its channels closed. */
  stopJob(id: JobId, reason: string): void {
    const core = this.state;
    core.noteStopped(id);
    jobHoldsEnd(core, id);
    const job = core.jobs.get(id);
    if (job === undefined || job.stopped) return;
    job.stopped = true;
    for (const channel of [...job.channels]) {
      if (channel.kind === CHANNEL_KIND.SLOT) continue;
      core.out.push({ type: 'close-channel', channel, reason });
      this.closeChannel(channel);
    }
    this.#endJobIfIdle(job);
    this.settle();
  }

  /** A job ended while drivers were attached: they go, and with them the job here, unless detached actors keep it. */
  releaseDrivers(id: JobId, reason: string): void {
    const core = this.state;
    const job = core.jobs.get(id);
    if (job === undefined || job.stopped) return;
    for (const channel of [...job.channels]) {
      if (channel.kind !== CHANNEL_KIND.DRIVER) continue;
      core.out.push({ type: 'close-channel', channel, reason });
      this.closeChannel(channel);
    }
  }

  // --- channels -------------------------------------------------------------------------------------------------------

  openChannel(kind: ChannelKind, job: Job, principal: Principal, depth: number, info: Readonly<Record<string, unknown>>): Channel {
    const core = this.state;
    if (job.stopped || !job.tenant.active) throw new BulkheadError('UNAVAILABLE', 'the job has ended');
    if (kind === CHANNEL_KIND.DRIVER) {
      // One credential attaches as often as it is sent: what a channel may hold must not be multiplied by that.
      let drivers = 0;
      for (const channel of job.channels) if (channel.kind === CHANNEL_KIND.DRIVER) drivers++;
      if (drivers >= MAX_SESSIONS_PER_JOB) throw new BulkheadError('RESOURCE_EXHAUSTED', `${drivers} drivers of this job are attached to this node already: open another job`);
    }
    const session = core.newSession(job.tenant, principal.spiffeId);
    if (kind === CHANNEL_KIND.DRIVER) session.project = job.project;
    const channel = new Channel(core.nextNumber(), kind, session, job, principal, depth, undefined);
    channel.activeMs = core.nowMs;
    core.channels.set(channel.number, channel);
    job.channels.add(channel);
    channel.out.begin(OP.WELCOME).raw(session.prefix).text(JSON.stringify({ job: job.id, tenant: job.tenant.name, node: core.config.nodeId, ...info })).end();
    core.markChannel(channel, -1);
    if (kind === CHANNEL_KIND.DRIVER) this.#look(job);
    return channel;
  }

  /** The client is gone: its calls are cancelled, its actors (not detached ones) killed, its objects let go. */
  closeChannel(channel: Channel): void {
    const core = this.state;
    if (channel.closed) return;
    channel.closed = true;
    core.channels.delete(channel.number);
    channel.job.channels.delete(channel);
    for (const call of channel.pendingWaits) call.done = true;
    for (const seq of [...channel.puts.keys()]) calls.dropUpload(core, channel, seq);
    ownerEnded(core, channel.session);
    for (const entry of [...channel.session.objects.values()]) {
      const task = entry.producer;
      if (task !== undefined && task.channel === channel && task.template.kind === CALL_KIND.TASK) cancelTask(core, task, true);
      else if (task?.stream !== undefined && task.channel === channel) leaveStream(core, task, ABANDONED);
    }
    if (channel.kind === CHANNEL_KIND.PEER) coordinatorClosed(core, channel);
    if (channel.pulls !== undefined || channel.holds !== undefined) pullsChannelClosed(core, channel);
    takeAllBack(core, channel);
    dropDeferred(core, channel);
    releaseSession(core, channel.session);
    if (channel.kind === CHANNEL_KIND.DRIVER) this.#endGroups(channel.job);
    this.#look(channel.job);
    this.settle();
  }

  /** With a job's last driver here go the groups that its drivers made. */
  #endGroups(job: Job): void {
    for (const channel of job.channels) if (channel.kind === CHANNEL_KIND.DRIVER) return;
    jobGroupsEnd(this.state, job);
  }

  /** Somebody more or less wants the job here. When nobody does any more it lets go of the other raylets, and ends when they have let go of it. */
  #look(job: Job): void {
    if (lookForRoots(this.state, job)) this.#leaveOthers(job);
    this.#endJobIfIdle(job);
  }

  #leaveOthers(job: Job): void {
    for (const upstream of [...this.state.upstreams.values()]) if (upstream.job === job) this.upstreamClosed(upstream, { code: 'CANCELLED', message: 'its job ended', stack: '' });
  }

  /** With its last driver a job ends here: leases and isolates of the job go; detached actors keep it, and raylets where somebody wants it. */
  #endJobIfIdle(job: Job): void {
    const core = this.state;
    if (job.ended) return;
    if (!job.stopped) {
      for (const { kind, roots } of job.channels) if (kind === CHANNEL_KIND.DRIVER || (kind === CHANNEL_KIND.PEER && roots?.length !== 0)) return;
      for (const actor of job.actors) if (keepsJob(actor)) return;
      for (const channel of [...job.channels]) {
        if (channel.kind !== CHANNEL_KIND.PEER) continue;
        core.out.push({ type: 'close-channel', channel, reason: 'its job ended' });
        this.closeChannel(channel);
      }
      if (core.jobs.get(job.id) !== job) return;
    }
    for (const actor of [...job.actors]) actorDied(core, actor, { code: 'ACTOR_DIED', message: 'its job ended', stack: '' });
    jobGroupsEnd(core, job);
    job.ended = true;
    for (const c of job.classes.values()) {
      for (let task = c.queue.shift(); task !== undefined; task = c.queue.shift()) cancelTask(core, task, true);
      for (const lease of [...c.leases]) {
        // Its worker is still starting: it will be idle when it is up.
        if (lease.slot === undefined) dropLease(core, lease);
        else core.out.push({ type: 'kill-worker', worker: lease.worker, reason: 'JOB_ENDED' });
      }
      c.starting = 0;
      core.classes.delete(c);
    }
    if (core.jobs.has(job.id)) job.tenant.classes -= job.classes.size;
    this.#leaveOthers(job);
    forgetKeys(core, job);
    core.jobs.delete(job.id);
    job.tenant.jobs.delete(job);
    leaveProject(job.tenant, job.project);
  }

  /** What the client was sent has left: more of what it waits for. */
  answerDeferred(channel: Channel): void {
    if (!channel.closed) answerDeferred(this.state, channel);
    if (this.state.pulls.length > 0) takeUpPulls(this.state);
  }

  /**
   * A batch of a driver or another raylet, from the frame at `from` on, until frames worth `budget` have been read: one each, and one for every
   * 4 KiB. Returns where the next frame begins, the batch's length when it is done; `state.held` then goes with the rest. Throws
   * INVALID_ARGUMENT when malformed: the channel must then be closed.
   */
  clientBatch(channel: Channel, batch: Uint8Array, nowMs: number, budget = Number.POSITIVE_INFINITY, from = 0, held?: HeldBatch): number {
    const core = this.state;
    core.nowMs = nowMs;
    const r = this.#reader.reset(batch, from);
    core.held = held;
    let left = budget;
    for (let at = from; left > 0 && r.next(); at = r.nextFrame) {
      // Credentials are renewed and refs collected by themselves, whether the program does anything or not.
      if (r.op !== OP.CREDENTIAL && r.op !== OP.RELEASE) channel.activeMs = nowMs;
      this.#clientFrame(channel, r);
      if (core.stalled) {
        core.stalled = false;
        this.settle();
        return at;
      }
      left -= 1 + ((r.nextFrame - at) >>> COST_SHIFT);
    }
    this.settle();
    return r.nextFrame;
  }

  #clientFrame(channel: Channel, r: FrameReader): void {
    const core = this.state;
    switch (r.op) {
      case OP.SUBMIT: return calls.onSubmit(core, channel, r);
      case OP.CALL_ACTOR: return calls.onCallActor(core, channel, r);
      case OP.GET: return calls.onGet(core, channel, r, PENDING_KIND.GET);
      case OP.PUT: return calls.onPut(core, channel, r);
      case OP.RELEASE: return calls.onRelease(core, channel, r);
      case OP.WAIT: return calls.onWait(core, channel, r);
      case OP.PUT_CHUNK: return calls.onPutChunk(core, channel, r);
      case OP.PUT_STAGED: return calls.onPutStaged(core, channel, r);
      case OP.DEFINE: return calls.onDefine(core, channel, r);
      case OP.CODE: return calls.onCode(core, channel, r);
      case OP.CREATE_ACTOR: return calls.onCreateActor(core, channel, r);
      case OP.CANCEL: return calls.onCancel(core, channel, r);
      case OP.KILL: return calls.onKill(core, channel, r);
      case OP.LOOKUP_ACTOR: return calls.onLookupActor(core, channel, r);
      case OP.MORE: return onMore(core, channel, r);
      case OP.SUBMIT_ONCE: return calls.onSubmitOnce(core, channel, r);
      case OP.IDLE_LIMIT: return calls.onIdleLimit(core, channel, r);
      case OP.CREATE_GROUP: return groups.onCreateGroup(core, channel, r);
      case OP.REMOVE_GROUP: return groups.onRemoveGroup(core, channel, r);
      case OP.LOOKUP_GROUP: return groups.onLookupGroup(core, channel, r);
      case OP.LIST_NODES: return onListNodes(core, channel, r);
      case OP.DESCRIBE_GROUP: return onDescribeGroup(core, channel, r);
      case OP.PREPARE_BUNDLES: return groups.onPrepareBundles(core, channel, r);
      case OP.COMMIT_BUNDLES: return groups.onCommitBundles(core, channel, r);
      case OP.RECALL: return onRecall(core, channel, r);
      case OP.RELEASE_BUNDLES: return groups.onReleaseBundles(core, channel, r);
      case OP.TAKE_BUNDLES: return onTakeBundles(core, channel, r);
      case OP.WATCH_GROUP: return groups.onWatchGroup(core, channel, r);
      case OP.CONTEXT: return calls.onContext(core, channel, r);
      case OP.CREDENTIAL:
        if (channel.kind === CHANNEL_KIND.SLOT) break;
        core.out.push({ type: 'credential', channel, credential: r.text(MAX_CREDENTIAL_BYTES) });
        return r.finish();
      case OP.BORROW:
        if (channel.kind === CHANNEL_KIND.PEER) return calls.onBorrow(core, channel, r);
        break;
      case OP.GIVE_BACK:
        if (channel.kind === CHANNEL_KIND.PEER) return calls.onGiveBack(core, channel, r);
        break;
      case OP.COPY:
        if (channel.kind === CHANNEL_KIND.PEER) return onCopy(core, channel, r);
        break;
      case OP.COPIED:
        if (channel.kind === CHANNEL_KIND.PEER) return onCopied(core, channel, r);
        break;
      case OP.SHARED:
        if (channel.kind === CHANNEL_KIND.PEER) return onShared(core, channel, r);
        break;
      case OP.ROOTS:
        if (channel.kind === CHANNEL_KIND.PEER) return onRoots(core, channel, r);
        break;
      case OP.RESOLVE:
        if (channel.kind === CHANNEL_KIND.PEER) return calls.onGet(core, channel, r, PENDING_KIND.RESOLVE);
    }
    throw new BulkheadError('INVALID_ARGUMENT', `op 0x${r.op.toString(16)} is not a call of this channel`);
  }

  /** A batch out of an isolate, or a part of it, as in `clientBatch`. Throws when malformed: the worker must then be killed. */
  guestBatch(slot: Slot, batch: Uint8Array, nowMs: number, budget = Number.POSITIVE_INFINITY, from = 0, held?: HeldBatch): number {
    const core = this.state;
    core.nowMs = nowMs;
    let results = 0;
    // What is read later came with what was measured when the batch was begun.
    if (from === 0) {
      const counter = this.#counter.reset(batch);
      for (let i = 0; i < budget && counter.next(); i++) if (counter.op === OP.RESULT || counter.op === OP.FAILURE) results++;
    }
    const r = this.#reader.reset(batch, from);
    core.held = held;
    let left = budget;
    for (let at = from; left > 0 && r.next(); at = r.nextFrame) {
      switch (r.op) {
        case OP.RESULT:
          onResult(core, slot, r, results);
          break;
        case OP.FAILURE:
          onFailure(core, slot, r, results);
          break;
        case OP.ITEM:
          onItem(core, slot, r);
          break;
        case OP.RETRY:
          onRetry(core, slot, r);
          break;
        case OP.LOG:
          onLog(core, slot, r);
          break;
        case OP.EXIT:
          onExit(core, slot, r);
          break;
        default:
          this.#clientFrame(slot.channel, r);
      }
      if (core.stalled) {
        core.stalled = false;
        this.settle();
        return at;
      }
      left -= 1 + ((r.nextFrame - at) >>> COST_SHIFT);
    }
    this.settle();
    return r.nextFrame;
  }

  /** A fact about a worker, in its tenant's log. */
  lifecycleOf(tenant: TenantState, event: string, workerId: string, detail: string): void {
    this.state.lifecycle(tenant, event, '', 'worker', workerId, -1, detail);
  }

  // --- workers --------------------------------------------------------------------------------------------------------

  workerStarted(worker: Worker, nowMs: number): void {
    this.state.nowMs = nowMs;
    worker.idleSinceMs = nowMs;
    workerStarted(this.state, worker);
    actorWorkerStarted(this.state, worker);
    this.settle();
  }

  workerNotStarted(worker: Worker, failure: Failure, nowMs: number): void {
    this.state.nowMs = nowMs;
    workerNotStarted(this.state, worker, failure);
    workerDied(this.state, worker, failure, false);
    for (const job of this.state.jobs.values()) for (const actor of [...job.actors]) if (actor.worker === worker) (failure.code === 'LAYER_MISSING' || failure.code === 'ENVIRONMENT_FAILED' ? actorDied : actorLost)(this.state, actor, failure);
    this.settle();
  }

  /** The tenant's workers died too often: what wanted this one waits, for as long as its own limits let it, and others go on. */
  workerDelayed(worker: Worker, waitMs: number, nowMs: number): void {
    this.state.nowMs = nowMs;
    worker.tenant.nextStartMs = Math.max(worker.tenant.nextStartMs, nowMs + waitMs);
    workerNotStarted(this.state, worker, undefined);
    unseatActors(this.state, worker);
    this.settle();
  }

  /** `ours`: the raylet killed it, on purpose. */
  workerExited(worker: Worker, failure: Failure, ours: boolean, nowMs: number): void {
    this.state.nowMs = nowMs;
    workerDied(this.state, worker, failure, ours);
    this.settle();
  }

  slotFailed(slot: Slot, failure: Failure, nowMs: number): void {
    this.state.nowMs = nowMs;
    // In a sandbox each slot has a process of its own.
    if (failure.code === 'OUT_OF_MEMORY' && slot.worker.runtime === 'javascript') slot.worker.failing = true;
    if (slot.worker.slots.get(slot.number) === slot) slotDied(this.state, slot, failure, false);
    this.settle();
  }

  /** A module threw while it was loaded: every call of its functions on this slot fails with its error. */
  codeFailed(slot: Slot, codeNumber: number, failure: Failure, nowMs: number): void {
    this.state.nowMs = nowMs;
    for (const [digest, number] of slot.codes) {
      if (number !== codeNumber) continue;
      for (const task of [...slot.execs.values()]) if (task.template.digestHex === digest) execEnded(this.state, slot, task, failure, 1);
    }
    this.settle();
  }

  /** The isolate of an actor that ended was closed. */
  slotClosed(slot: Slot): void {
    slot.worker.slots.delete(slot.number);
    closeSlotChannel(this.state, slot);
    this.settle();
  }

  /** A worker announced a staged file that is not there, or is none. */
  sealFailed(entry: ObjectEntry, fileName: string): void {
    if (entry.fileName === fileName) loseFile(this.state, entry, { code: 'WORKER_DIED', message: 'the worker broke its protocol and was killed: its result was not what it had announced', stack: '' });
    this.settle();
  }

  /** The encrypted copy of an object's file is on disk, or why it is not. */
  spilled(entry: ObjectEntry, fileName: string, spillName: string, size: number, failure: Failure | undefined, nowMs: number): void {
    this.state.nowMs = nowMs;
    spilled(this.state, entry, fileName, spillName, size, failure);
    this.settle();
  }

  /** A spilled object's file is back, whole and verified; or why it is not: OBJECT_LOST when it never will be. */
  restored(entry: ObjectEntry, spillName: string, fileName: string, size: number, failure: Failure | undefined, nowMs: number): void {
    this.state.nowMs = nowMs;
    restored(this.state, entry, spillName, fileName, size, failure);
    this.settle();
  }

  /** A part of a value from another node could not be written. */
  transferFailed(fileName: string, failure: Failure): void {
    transferFailed(this.state, fileName, failure);
    this.settle();
  }

  /** A value from another node is complete: does it have the digest that came with it? */
  fileChecked(upstream: Upstream, request: number, fileName: string, same: boolean): void {
    fileChecked(this.state, upstream, request, fileName, same);
    this.settle();
  }

  /** A value's file has this SHA-256 and is about to leave for another tenant or node: false when it must not. */
  mayCross(entry: ObjectEntry, digest: Uint8Array): boolean {
    return mayCross(this.state, entry, digest);
  }

  /** A value that another tenant or node was getting turned out to be altered, or cut, when its last part was read. */
  valueAltered(channel: Channel, request: number, position: number): void {
    if (channel.closed) return;
    refuseValue(this.state, channel, request, position, ALTERED, -1);
    this.#pullFailed(channel, request);
  }

  sealed(entry: ObjectEntry, start: Uint8Array): void {
    entry.pickle = carriesCode(start);
  }

  /** What begins a value that is about to leave its tenant. True: it may not, since it carries code. */
  keepsCode(entry: ObjectEntry, start: Uint8Array): boolean {
    if (!carriesCode(start)) return false;
    codeRefused(this.state, entry);
    return true;
  }

  /** In place of the parts of a value that carries code. */
  valueRefused(channel: Channel, request: number, position: number): void {
    if (!channel.closed) refuseValue(this.state, channel, request, position, CODE_BEARING, -1);
  }

  /** A value could not be copied for another tenant: the next reader has it tried again. */
  copyFailed(tenant: TenantState, copyName: string): void {
    for (const entry of this.state.sessions.get(copyName.split('-')[1] ?? '')?.objects.values() ?? []) {
      if (entry.copies?.get(tenant) !== copyName) continue;
      entry.copies.delete(tenant);
      tenant.objectBytes -= entry.size;
      giveMemory(this.state, tenant, entry.size);
    }
  }

  /** A file that was to be sent cannot be read. */
  valueLost(channel: Channel, request: number, position: number, needed: number): void {
    if (channel.closed) return;
    refuseValue(this.state, channel, request, position, LOST, needed);
    this.#pullFailed(channel, request);
  }

  #pullFailed(channel: Channel, request: number): void {
    if (channel.pulls === undefined) return;
    pullFailed(this.state, channel, request);
    takeUpPulls(this.state);
  }

  // --- other raylets and the head ---------------------------------------------------------------------------------------

  /** A batch of another raylet on a channel of ours, or a part of it, as in `clientBatch`. Throws when malformed: the channel must then be closed. */
  upstreamBatch(upstream: Upstream, batch: Uint8Array, nowMs: number, budget = Number.POSITIVE_INFINITY, from = 0): number {
    this.state.nowMs = nowMs;
    const r = this.#reader.reset(batch, from);
    let left = budget;
    for (let at = from; left > 0 && r.next(); at = r.nextFrame) {
      onUpstreamFrame(this.state, upstream, r, this.#remoteEnded, this.#remoteActorChanged, this.#groupChanged);
      left -= 1 + ((r.nextFrame - at) >>> COST_SHIFT);
    }
    this.settle();
    return r.nextFrame;
  }

  upstreamClosed(upstream: Upstream, failure: Failure): void {
    this.state.out.push({ type: 'close-upstream', upstream });
    // Refused before it was open, by a node whose clock is wrong for instance: nothing has begun there, and others may do it.
    const unopened = upstream.prefix === undefined && failure.code !== 'CANCELLED';
    if (unopened) this.state.avoidNode(upstream.nodeNumber);
    // Actors that lived there are lost, also those that nobody was calling; they take their calls with them.
    for (const actor of [...upstream.job.actors]) if (actor.upstream === upstream) actorLost(this.state, actor, failure);
    remoteLost(this.state, closeUpstream(this.state, upstream, failure), failure, unopened);
    groupsUpstreamClosed(this.state, upstream, failure.message);
    viewsUpstreamClosed(this.state, upstream);
    this.settle();
  }

  nameRegistered(actor: Actor, failure: Failure | undefined): void {
    calls.onNameRegistered(this.state, actor, failure);
    this.settle();
  }

  /** Another has the name by now: this node was silent for so long that it was taken for dead. */
  nameLost(actor: Actor): void {
    actor.nameRegistered = false;
    actorDied(this.state, actor, { code: 'ACTOR_DIED', message: 'its node was silent for too long, and its name went to another actor', stack: '' });
    this.settle();
  }

  /** The node of a named actor is lost: makes it again for whoever asked, if that one may. Undefined: it is under way. */
  adoptActor(channel: Channel, name: string, namespace: string, classInfo: string, seed: ActorSeed): Failure | undefined {
    const failure = adoptActor(this.state, channel, name, namespace, classInfo, seed);
    this.settle();
    return failure;
  }

  nameFound(channel: Channel, request: number, found: { id: Uint8Array; classInfo: string } | Failure | undefined, auditSeq: number): void {
    calls.onNameFound(this.state, channel, request, found, auditSeq);
    this.settle();
  }

  groupNamed(group: groups.PlacementGroup, failure: Failure | undefined): void {
    groups.groupNamed(this.state, group, failure);
    if (group.former !== '' && group.nameRegistered && group.state !== 'REMOVED') takeOver(this.state, group);
    this.settle();
  }

  /** The node that coordinated a named group is lost: takes its place for whoever asked, if that one may. Undefined: it is under way. */
  adoptGroup(channel: Channel, name: string, former: Uint8Array, seed: ActorSeed): Failure | undefined {
    const failure = adoptGroup(this.state, channel, name, former, seed);
    this.settle();
    return failure;
  }

  /** Another has the name by now: this node was silent for so long that it was taken for dead. */
  groupNameLost(group: groups.PlacementGroup): void {
    group.nameRegistered = false;
    groups.removeGroup(this.state, group, { code: 'CANCELLED', message: 'the node of its placement group was silent for too long, and another one took over', stack: '' });
    this.settle();
  }

  groupFound(channel: Channel, request: number, found: { readonly id: Uint8Array; readonly info: string } | Failure | undefined, auditSeq: number): void {
    groups.groupFound(this.state, channel, request, found, auditSeq);
    this.settle();
  }

  tick(nowMs: number, cpuMicrosOf: (worker: Worker) => number): void {
    const core = this.state;
    core.nowMs = nowMs;
    for (const channel of core.channels.values()) if (channel.pendingWaits.size > 0) expireWaits(core, channel);
    core.payLogs();
    tickMemory(core);
    if (core.delayed.size > 0) takeUpDelayed(core);
    for (const job of core.jobs.values()) if (job.once.size > 0) expireKeys(core, job);
    if (core.preparing.size > 0) expireRounds(core);
    if (core.pullsUnderWay.size > 0) expirePulls(core);
    if (core.copyChannels.size > 0) expireCopies(core);
    if (core.holds.size > 0) expireHolds(core);
    believeReports(core);
    recallUnbegun(core);
    if (core.pendingGroups.size > 0) placePending(core);
    core.reopenNodes();
    expireShares(core);
    parkClasses(core);
    this.#endIdle();
    enforceLimits(core, cpuMicrosOf);
    for (const tenant of core.tenants.values()) if (tenant.ranked || tenant.quota.projects.size > 0) preempt(core, tenant);
    retireIdleWorkers(core);
    this.settle();
  }

  /** Drivers that have asked for nothing for as long as they, or their tenant's quota, allow, and have nothing under way. */
  #endIdle(): void {
    const core = this.state;
    for (const channel of [...core.channels.values()]) {
      if (channel.kind !== CHANNEL_KIND.DRIVER) continue;
      const limitMs = Math.min(channel.idleMs, channel.job.tenant.quota.idleMs);
      if (limitMs === Number.POSITIVE_INFINITY) continue;
      if (channel.inFlight > 0 || channel.waiting > 0 || channel.deferred.length > 0) channel.activeMs = core.nowMs;
      if (core.nowMs - channel.activeMs <= limitMs) continue;
      core.lifecycle(channel.job.tenant, 'session.idle', channel.principal.spiffeId, 'job', channel.job.id, -1, `${limitMs} ms`);
      core.out.push({ type: 'close-channel', channel, reason: `the driver has asked for nothing for ${limitMs} ms, which is its limit: connect again`, code: 'TIMEOUT' });
      this.closeChannel(channel);
    }
  }

  // --- the end of every step --------------------------------------------------------------------------------------------

  settle(): void {
    const core = this.state;
    // Calls that ended without having begun: what waits behind them has room now.
    let ended = false;
    do {
      while (core.woken.length > 0) {
        const woken = core.woken;
        core.woken = [];
        for (const task of woken) {
          if (task.state !== TASK_STATE.WAITING) continue;
          if (task.actor !== undefined) drainCalls(core, task.actor, task.channel);
          else if (task.template.kind === CALL_KIND.TASK) enqueue(core, task);
        }
      }
      if (core.toEnd.length > 0) for (const { task, failure } of core.toEnd.splice(0)) leaveStream(core, task, failure);
      if (core.remoteCalls.length > 0 || core.remoteKills.length > 0) this.#takeUpRemoteCalls();
      if (core.unreachable.length > 0) endUnreachable(core);
      if (core.endedGroups.length > 0) takeUpEnded(core);
      if (core.roomFreed) {
        core.roomFreed = false;
        placePending(core);
      }
      if (core.waitingActors.size > 0) placeWaitingActors(core);
      if (core.restores.length > 0) takeUpRestores(core);
      if (core.pressed) relieve(core);
      if (core.rebuilds.length > 0) for (const task of core.rebuilds.splice(0)) if (task.state === TASK_STATE.WAITING) enqueue(core, task);
      pump(core);
      if (core.pulls.length > 0 || core.spreading.size > 0) takeUpPulls(core);
      takeUpFetches(core);
      ended = core.refusedExecs.length > 0;
      if (ended) for (const { slot, task, failure } of core.refusedExecs.splice(0)) if (task.slot === slot) execEnded(core, slot, task, failure, 1);
    } while (ended || core.woken.length > 0 || core.remoteCalls.length > 0 || core.refusedExecs.length > 0 || core.unreachable.length > 0 || core.toEnd.length > 0 || core.rebuilds.length > 0 || core.roomFreed || core.endedGroups.length > 0);
    if (core.rootsChanged.length > 0) {
      for (const job of core.rootsChanged.splice(0)) this.#look(job);
      return this.settle();
    }
    if (core.borrows.length > 0) takeUpBorrows(core);
    if (core.returned.length > 0) takeUpReturned(core);
    if (core.fresh.length > 0 || core.freshSessions.length > 0) forgetFresh(core);
  }

  #takeUpRemoteCalls(): void {
    const core = this.state;
    const remote = core.remoteCalls;
    core.remoteCalls = [];
    for (const { task, actorId } of remote) {
      if (task.state === TASK_STATE.DONE) continue;
      // An isolate may speak on for a moment after its job has ended.
      if (task.channel.job.ended) {
        concludeTask(core, task, JOB_ENDED);
        continue;
      }
      const upstream = upstreamTo(core, idWord(actorId, 4), task.channel.job, task.channel.principal.kind === 'job', task.depth);
      forward(core, upstream, task, OP.CALL_ACTOR, actorId);
    }
    const kills = core.remoteKills;
    core.remoteKills = [];
    for (const { channel, id, restart } of kills) if (!channel.job.ended) killRemote(core, upstreamTo(core, idWord(id, 4), channel.job, channel.principal.kind === 'job', 0), id, restart);
  }
}

