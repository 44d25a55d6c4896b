/**
 * Drives the core: hands it what sockets, workers and timers bring, executes its effects in order, and lets its frames out when
 * the audit records behind them are on disk. Must never: decode a payload; send before the audit; hold a promise per call.
 */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { AuditLog, AuditLogs } from '../base/audit-record.ts';
import type { PolicyDecisionPoint } from '../base/decision.ts';
import { callBudget, hasBudget, type MonthUsage } from '../base/budget.ts';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import { CHUNK_HEADER_BYTES, FrameWriter, OP } from '../base/frame.ts';
import { parseTenantName, type JobId, type TenantName } from '../base/ids.ts';
import { NO_LABELS, type Labels } from '../base/labels.ts';
import { CHUNK_BYTES, MAX_ACTOR_SEED_BYTES, MAX_CALLS_IN_FLIGHT, MAX_HELD_BYTES_PER_CHANNEL, MAX_NAME_CALLS_PER_TENANT, MAX_UNREAD_BYTES, SPREAD_MIN_BYTES, UNREAD_PAUSE_BYTES } from '../base/limits.ts';
import type { Principal } from '../base/principal.ts';
import { requirementsOf } from '../base/requirements.ts';
import { UNITS_PER_CPU, type ResourceVector } from '../base/resources.ts';
import { parseQuota, type TenantShare } from '../base/tenant-quota.ts';
import { steadyClock, type Clock, type RandomSource } from '../base/time.ts';
import { parseMonth, USAGE_EVENT } from '../base/usage-record.ts';
import { ObjectFiles, type ObjectReader } from '../objects/object-files.ts';
import { SpillFiles, type DataKey } from '../objects/spill-files.ts';
import type { WorkerPool } from '../sandbox/worker-pool.ts';
import type { WorkerExit, WorkerProcess } from '../sandbox/worker-process.ts';
import { Attachments } from './attachments.ts';
import { classInfoOf } from './core/actors.ts';
import type { ActorSeed } from './core/adoption.ts';
import type { Effect } from './core/effects.ts';
import { overMemory } from './core/object-memory.ts';
import { idFromHex } from './core/group-views.ts';
import { groupInfo, type PlacementGroup } from './core/placement-groups.ts';
import { reportShares, type ShareReport } from './core/quota-shares.ts';
import { RayletCore } from './core/raylet-core.ts';
import { queuedForRoom } from './core/scheduler.ts';
import { Channel, CHANNEL_KIND, failureOf, Worker, type Actor, type ChannelKind, type Failure, type Job, type Slot, type TenantState, type Upstream } from './core/state.ts';
import { Intake, type Source } from './intake.ts';
import { JobLogs } from './job-logs.ts';
import { Metering } from './metering.ts';
import { Outbox } from './outbox.ts';
import { PartBuffers } from './part-buffers.ts';
import { Renewals, type RenewedCredential } from './renewals.ts';

/** Client bytes that may wait for a slow reader or the disk before its calls are no longer read. */
const HIGH_WATER_BYTES = 32 * 2 ** 20;
const TICK_MS = 25;
/** Of what a record says of a build. */
const MAX_FACT_CHARS = 2_000;
/** Ticks between two looks at whether busy workers work or answer. */
const PROBE_TICKS = 40;

/** One client connection, as the raylet writes to it. */
export interface ChannelPort {
  /** `tail` continues the batch; `written` is called when it may be used again, if ever. False: `onDrain` of the raylet (`drained`) will be called. */
  write(batch: Uint8Array, tail?: Uint8Array, written?: () => void): boolean;
  pause(): void;
  resume(): void;
  close(error: BulkheadError | undefined): void;
}

export interface FoundActor {
  readonly id: Uint8Array;
  readonly classInfo: string;
  /** Its node is lost. */
  readonly orphaned: boolean;
  /** For a session of the principal that made it. */
  readonly seed: ActorSeed | undefined;
}

/** Names of actors, unique in the cluster: kept by the head, which wants the session credential of the job that asks. */
export interface ActorNames {
  /** True: the head keeps the seed. */
  register(credential: string, tenant: string, namespace: string, name: string, id: Uint8Array, classInfo: string, seed: ActorSeed | undefined): Promise<boolean>;
  lookup(credential: string, tenant: string, namespace: string, name: string): Promise<FoundActor | undefined>;
  release(tenant: string, namespace: string, name: string, id: Uint8Array): Promise<void>;
}

/** The way to other raylets. */
export interface PeerLinks {
  open(upstream: Upstream, depth: number): void;
  write(upstream: Upstream, batch: Uint8Array): void;
  close(upstream: Upstream): void;
  /** Another raylet is behind with what this job sends; `jobDrained` when it no longer is. */
  behind(job: Job): boolean;
}

export interface RayletLog {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

export interface RayletOptions {
  readonly nodeId: string;
  readonly nodeNumber: number;
  readonly total: ResourceVector;
  readonly labels?: Labels;
  readonly maxWorkers: number;
  /** On tmpfs: objects, code and workers' directories. */
  readonly runDir: string;
  readonly dataDir: string;
  readonly decisions: PolicyDecisionPoint;
  readonly audit: AuditLogs;
  readonly pool: WorkerPool;
  readonly names: ActorNames;
  readonly clock: Clock;
  readonly random: RandomSource;
  readonly log: RayletLog;
  /** Verifies a session credential that a client renewed, all but its time. */
  readonly verifyCredential: (credential: string) => Promise<RenewedCredential>;
  readonly defaultIsolateBytes: number;
  /** Memory and disk that objects' files may take; everything stays in memory where they are left out. */
  readonly objectMemoryBytes?: number;
  readonly spillBytes?: number;
  readonly spillDir?: string;
  /** The head's key for what is written to disk for a tenant. */
  readonly dataKey?: (tenant: string) => Promise<DataKey>;
  /** Detail of the last usage record in a tenant's log; undefined: there is none. */
  readonly lastUsage?: (tenant: string) => Promise<string | undefined>;
}

/** Names of placement groups are in the head's table of actors' names, in a namespace that no actor can have: one behind a `/` is not looked up. */
const GROUP_NAMES = 'placement-group/';

interface ChannelShell {
  readonly port: ChannelPort | undefined;
  readonly outbox: Outbox;
  paused: boolean;
  blocked: boolean;
  readonly streams: (() => boolean)[];
  /** Files that are being sent. */
  readonly readers: Set<ObjectReader>;
}

export class Raylet implements AsyncDisposable {
  readonly core: RayletCore;
  readonly objects: ObjectFiles;
  readonly spills: SpillFiles;
  readonly logs: JobLogs;
  readonly processes = new Map<Worker, WorkerProcess>();
  readonly #options: RayletOptions;
  /** The core's: limits and waits do not follow a wall clock that is set. */
  readonly #clock: Clock;
  readonly #codeDir: string;
  readonly #channels = new Map<Channel, ChannelShell>();
  readonly #outboxes = new Map<TenantState, Set<Outbox>>();
  readonly #upstreamBoxes = new Map<Upstream, Outbox>();
  /** Channels with answers that wait for the client or the audit log. */
  readonly #answering = new Set<Channel>();
  /** Builds of packages that wait for their tenant's log. */
  readonly #unrecorded = new Map<TenantState, { readonly seq: number; readonly recorded: PromiseWithResolvers<void> }[]>();
  readonly #killing = new Map<Worker, string>();
  readonly #attachments = new Attachments<WorkerProcess>();
  readonly #intake: Intake;
  /** Workers that are not read from until what they have said is. */
  readonly #unread = new Set<Worker>();
  /** Questions to the head about names, by tenant. */
  readonly #nameCalls = new Map<string, number>();
  readonly #renewals: Renewals;
  readonly #naming = new Map<string, Promise<void>>();
  readonly parts = new PartBuffers();
  readonly #metering: Metering;
  readonly #budgeted = new Set<TenantState>();
  readonly #timer: NodeJS.Timeout;
  #ticks = 0;
  peers: PeerLinks | undefined = undefined;
  /** Some tenant waits for a larger share of a quota: the head should hear of it before the next heartbeat. */
  onShort: (() => void) | undefined = undefined;
  #closed = false;

  constructor(options: RayletOptions) {
    this.#options = options;
    this.#clock = steadyClock(options.clock);
    this.core = new RayletCore({
      python: options.pool.python instanceof BulkheadError ? '' : `python${options.pool.python.version}`,
      nodeId: options.nodeId, nodeNumber: options.nodeNumber, total: options.total, labels: options.labels ?? NO_LABELS, maxWorkers: options.maxWorkers, random: options.random, decisions: options.decisions,
      sha256: (bytes) => createHash('sha256').update(bytes).digest(), defaultIsolateBytes: options.defaultIsolateBytes,
      objectMemoryBytes: options.objectMemoryBytes ?? Number.POSITIVE_INFINITY, spillBytes: options.spillBytes ?? 0, spreadMinBytes: SPREAD_MIN_BYTES, sharedQuotas: true,
    });
    this.#intake = new Intake({ core: this.core, clock: this.#clock, flush: () => this.flush(), malformed: (source, error) => this.#malformed(source, error), keepPace: (source) => this.#keepPace(source) });
    this.objects = new ObjectFiles(join(options.runDir, 'objects'));
    this.spills = new SpillFiles({ dir: options.spillDir ?? join(options.dataDir, 'spill'), dataKey: options.dataKey ?? (() => Promise.reject(new BulkheadError('UNAVAILABLE', 'this node has no keys for its disk'))) });
    this.#codeDir = join(options.runDir, 'code');
    mkdirSync(this.#codeDir, { recursive: true, mode: 0o711 });
    this.logs = new JobLogs(join(options.dataDir, 'logs'), undefined, (error) => options.log.error({ err: error }, 'what a job printed could not be written'));
    this.#metering = new Metering({
      tenants: () => this.core.state.tenants.values(), processes: this.processes,
      record: (tenant, detail) => {
        this.core.state.nowMs = this.#clock.nowMs();
        this.core.state.lifecycle(tenant, USAGE_EVENT, '', 'tenant', tenant.name, -1, detail);
      },
    });
    this.#renewals = new Renewals({
      verify: options.verifyCredential, nowMs: () => options.clock.nowMs(), accept: (channel, credential, verified) => this.#credentialRenewed(channel, credential, verified),
      tell: (channel, error) => this.#tellRefused(channel, error), close: (channel, error) => this.closeChannel(channel, error),
    });
    options.pool.onPackageFact = (name, event, of, detail) => {
      for (const tenant of this.core.state.tenants.values()) {
        if (tenant.name !== name || !tenant.active) continue;
        this.core.state.nowMs = this.#clock.nowMs();
        this.core.state.lifecycle(tenant, event, '', 'environment', of, -1, detail.slice(0, MAX_FACT_CHARS));
      }
    };
    this.#timer = setInterval(() => this.#tick(), TICK_MS);
  }

  // --- facts from the head ----------------------------------------------------------------------------------------------

  setTenant(name: string, number: number, quota: Readonly<Record<string, string>>, active: boolean, over = ''): void {
    const tenant = parseTenantName(name);
    const known = this.core.state.tenants.get(number);
    // Names are never given out again, so what lies under the name of a deleted tenant is its own, also from before a restart.
    if (known === undefined && !active) return this.#forgetTenant(tenant);
    this.core.setTenant(tenant, number, () => this.#openLog(tenant, number), parseQuota(quota), active);
    const state = this.core.state.tenants.get(number) as TenantState;
    state.overBudget = over;
    state.callBudget = callBudget(quota);
    this.#budgeted[hasBudget(quota) ? 'add' : 'delete'](state);
    if (known === undefined) void this.#restoreUsage(state);
    if (known === undefined) this.objects.prepare(tenant);
    else this.#options.pool.setTenantCpus(tenant, kernelCpus(known));
    this.core.state.shares.short.add(state);
    this.flush();
    if (!active) {
      if (known !== undefined) this.#intake.forget(known);
      this.#forgetTenant(tenant);
    }
  }

  /** What the head lets this node use of quotas. */
  takeShares(epoch: number, answered: number, leaseMs: number, shares: readonly TenantShare[]): void {
    this.core.state.nowMs = this.#clock.nowMs();
    for (const tenant of this.core.takeShares(epoch, answered, leaseMs, shares)) this.#options.pool.setTenantCpus(tenant.name, kernelCpus(tenant));
    this.flush();
    this.#intake.resume();
  }

  /** What the head is told of quotas: see `reportShares`. */
  shareReport(told: ReadonlySet<string>): ShareReport {
    this.core.state.nowMs = this.#clock.nowMs();
    return reportShares(this.core.state, told);
  }

  /** Where the month stood when this node stopped. */
  async #restoreUsage(tenant: TenantState): Promise<void> {
    try {
      const detail = await this.#options.lastUsage?.(tenant.name);
      const before = detail === undefined ? undefined : parseMonth(detail);
      if (before !== undefined) this.#metering.restore(tenant, before, this.#options.clock.nowMs());
    } catch (error) {
      this.#options.log.error({ err: error, tenant: tenant.name }, 'what a tenant has used this month could not be read; its budget begins anew here');
    }
  }

  /** What tenants with a budget have used this month here. */
  monthUsage(): { readonly tenant: string; readonly usage: MonthUsage }[] {
    return [...this.#budgeted].filter((tenant) => tenant.active).map((tenant) => ({ tenant: tenant.name, usage: this.#metering.monthOf(tenant, this.#options.clock.nowMs()) }));
  }

  /** Its jobs have ended; its bytes go: objects, code, what it printed. Its audit log stays, for its auditors. */
  #forgetTenant(tenant: TenantName): void {
    this.objects.forget(tenant);
    this.spills.forget(tenant);
    rmSync(join(this.#codeDir, tenant), { recursive: true, force: true });
    this.logs.forget(tenant);
    this.#options.pool.forgetTenant(tenant);
  }

  #openLog(tenant: TenantName, number: number): AuditLog {
    const log = this.#options.audit.forTenant(tenant);
    log.onDurable = (_durable, failure) => {
      const state = this.core.state.tenants.get(number);
      if (state === undefined) return;
      if (this.#unrecorded.size > 0) this.#nowRecorded(state, log, failure);
      if (failure !== undefined) return this.#auditFailed(state, failure);
      for (const box of this.#outboxes.get(state) ?? []) {
        box.flush();
        if (box.empty) this.#outboxes.get(state)?.delete(box);
      }
      if (this.#answering.size === 0) return;
      for (const channel of this.#answering) if (channel.job.tenant === state) this.#answerWaiting(channel);
      this.flush();
    };
    return log;
  }

  /** Resolves when everything in the tenant's log is on disk. */
  #recorded(tenant: TenantState): Promise<void> {
    const seq = tenant.log.append({ type: 'lifecycle', timeMs: this.#options.clock.nowMs(), event: 'environment.wanted', principal: '', resourceKind: 'environment', resource: 'packages', index: -1, detail: '' });
    if (seq < tenant.log.durable) return Promise.resolve();
    const recorded = Promise.withResolvers<void>();
    const waiting = this.#unrecorded.get(tenant) ?? [];
    this.#unrecorded.set(tenant, [...waiting, { seq, recorded }]);
    return recorded.promise;
  }

  #nowRecorded(tenant: TenantState, log: AuditLog, failure: Error | undefined): void {
    const waiting = this.#unrecorded.get(tenant) ?? [];
    const left = waiting.filter(({ seq, recorded }) => {
      if (failure !== undefined) recorded.reject(new BulkheadError('UNAVAILABLE', 'the audit log cannot be written, so no packages are fetched; the operator must free disk space', { cause: failure }));
      else if (seq >= log.durable) return true;
      else recorded.resolve();
      return false;
    });
    if (left.length > 0) this.#unrecorded.set(tenant, left);
    else this.#unrecorded.delete(tenant);
  }

  /** Without its audit log a tenant's calls stop: fail closed. */
  #auditFailed(tenant: TenantState, failure: Error): void {
    this.#options.log.error({ tenant: tenant.name, err: failure }, 'the audit log of a tenant failed; its calls are refused');
    for (const channel of [...this.core.state.channels.values()]) if (channel.job.tenant === tenant && channel.kind !== CHANNEL_KIND.SLOT) this.closeChannel(channel, new BulkheadError('UNAVAILABLE', 'the audit log cannot be written, so no call is carried out; the operator must free disk space'));
  }

  // --- channels ---------------------------------------------------------------------------------------------------------

  ensureJob(id: JobId, tenant: TenantState, submitter: Principal, principal: Principal, credential: string, expiresMs: number, issuedMs: number, project?: string): Job {
    return this.core.ensureJob(id, tenant, submitter, principal, credential, expiresMs, issuedMs, project);
  }

  openChannel(kind: ChannelKind, job: Job, principal: Principal, depth: number, port: ChannelPort, info: Readonly<Record<string, unknown>> = {}): Channel {
    const channel = this.core.openChannel(kind, job, principal, depth, info);
    this.#channels.set(channel, { port, outbox: this.#newOutbox(job.tenant, (batch) => this.#writePort(channel, batch)), paused: false, blocked: false, streams: [], readers: new Set() });
    this.flush();
    return channel;
  }

  #newOutbox(tenant: TenantState, write: (batch: Uint8Array) => void): Outbox {
    return new Outbox(tenant.log, write);
  }

  #push(tenant: TenantState, box: Outbox, batch: Uint8Array | (() => void), needed: number): void {
    box.push(batch, needed);
    if (box.empty) return;
    let set = this.#outboxes.get(tenant);
    if (set === undefined) this.#outboxes.set(tenant, (set = new Set()));
    set.add(box);
  }

  /** Never throws: it is called in the middle of other clients' steps. A client that cannot be written to is ended. */
  #writePort(channel: Channel, batch: Uint8Array, tail?: Uint8Array, written?: () => void): void {
    const shell = this.#channels.get(channel);
    if (shell?.port === undefined) return;
    if (channel.kind === CHANNEL_KIND.DRIVER) channel.job.tenant.bytesOut += batch.length + (tail === undefined ? 0 : tail.length);
    try {
      if (!shell.port.write(batch, tail, written)) shell.blocked = true;
    } catch (error) {
      return this.#failLater(channel, error);
    }
    this.#throttle(channel, shell);
  }

  #answerWaiting(channel: Channel): void {
    const shell = this.#channels.get(channel);
    if (shell === undefined) this.#answering.delete(channel);
    else this.#answerMore(channel, shell);
  }

  #failLater(channel: Channel, error: unknown): void {
    if (channel.slot !== undefined) return this.#kill(channel.slot.worker, 'MISBEHAVED');
    queueMicrotask(() => this.closeChannel(channel, toSafeError(error)));
  }

  /** A client that has taken all it was sent gets more of what it asked for; else when it has. */
  #answerMore(channel: Channel, shell: ChannelShell): void {
    if (shell.blocked || !shell.outbox.empty || shell.streams.length > 0) {
      if (channel.deferred.length > 0) this.#answering.add(channel);
      return;
    }
    this.#answering.delete(channel);
    channel.answeredBytes = 0;
    if (channel.deferred.length > 0) this.core.answerDeferred(channel);
    if (channel.deferred.length > 0) this.#answering.add(channel);
  }

  /** A batch from a client. What is malformed ends its channel, with the reason. `release`: see `Intake.client`. */
  clientBatch(channel: Channel, batch: Uint8Array, release?: () => void): void {
    if (channel.kind === CHANNEL_KIND.DRIVER) channel.job.tenant.bytesIn += batch.length;
    this.#intake.client(channel, batch, release);
  }

  /** After what the client has sent, some of which may wait to be read: at once, if nothing does. */
  whenRead(channel: Channel, act: () => void): void {
    this.#intake.after(channel.job.tenant, channel, act);
  }

  #malformed(source: Source, error: unknown): void {
    if (source instanceof Channel) return this.closeChannel(source, toSafeError(error));
    if (source instanceof Worker) {
      this.#options.log.warn({ worker: source.id, tenant: source.tenant.name, err: error }, 'malformed frames from a worker');
      return this.#kill(source, 'MISBEHAVED');
    }
    this.core.upstreamClosed(source, { code: 'UNAVAILABLE', message: 'another node answered in a way that cannot be read', stack: '' });
    this.#options.log.error({ err: error, node: source.nodeNumber }, 'malformed batch from another raylet');
  }

  /** Some of a source's batches was read, or came and waits. */
  #keepPace(source: Source): void {
    const over = source.unreadBytes > MAX_UNREAD_BYTES;
    if (source instanceof Channel) {
      const shell = this.#channels.get(source);
      if (over) this.#failLater(source, new BulkheadError('RESOURCE_EXHAUSTED', `more than ${MAX_UNREAD_BYTES} bytes of this channel wait to be read: send less at once`));
      else if (shell !== undefined) this.#throttle(source, shell);
    } else if (source instanceof Worker) {
      const behind = source.unreadBytes > UNREAD_PAUSE_BYTES;
      if (behind === this.#unread.has(source)) return;
      if (behind) this.#unread.add(source);
      else this.#unread.delete(source);
      const process = this.processes.get(source);
      if (behind) process?.pauseReading();
      else process?.resumeReading();
    } else if (over) queueMicrotask(() => this.#closeUpstream(source, { code: 'UNAVAILABLE', message: 'another node sent more than can be read', stack: '' }));
  }

  /** Back-pressure: a client that is far ahead of its results, or does not read them, is not read from. */
  #throttle(channel: Channel, shell: ChannelShell): void {
    const over = shell.blocked || channel.inFlight > MAX_CALLS_IN_FLIGHT || channel.heldBytes > MAX_HELD_BYTES_PER_CHANNEL || channel.unreadBytes > UNREAD_PAUSE_BYTES || (this.core.state.spilling.size > 0 && overMemory(this.core.state, channel.job.tenant)) || shell.outbox.waitingBytes > HIGH_WATER_BYTES || this.peers?.behind(channel.job) === true;
    if (over === shell.paused || shell.port === undefined) return;
    shell.paused = over;
    if (over) shell.port.pause();
    else shell.port.resume();
  }

  /** The client reads again. */
  drained(channel: Channel): void {
    const shell = this.#channels.get(channel);
    if (shell === undefined) return;
    shell.blocked = false;
    if (shell.streams.length > 0) this.#intake.charged(channel.job.tenant, () => this.#sendMore(shell));
    if (this.#answering.has(channel)) {
      this.#answerMore(channel, shell);
      this.flush();
    }
    this.#throttle(channel, shell);
  }

  /** Files on their way, as far as the client takes them. */
  #sendMore(shell: ChannelShell): void {
    while (!shell.blocked && shell.streams.length > 0) {
      const next = shell.streams[0] as () => boolean;
      if (next()) shell.streams.shift();
    }
  }

  /** Other raylets have caught up with a job. */
  jobDrained(job: Job): void {
    for (const channel of job.channels) {
      const shell = this.#channels.get(channel);
      if (shell !== undefined) this.#throttle(channel, shell);
    }
  }

  closeChannel(channel: Channel, error: BulkheadError | undefined): void {
    if (!channel.closed) {
      this.core.state.nowMs = this.#clock.nowMs();
      this.core.closeChannel(channel);
    }
    this.#dropChannel(channel, error);
    this.flush();
  }

  #dropChannel(channel: Channel, error: BulkheadError | undefined): void {
    const shell = this.#channels.get(channel);
    if (shell === undefined) return;
    this.#channels.delete(channel);
    this.#outboxes.get(channel.job.tenant)?.delete(shell.outbox);
    shell.streams.length = 0;
    this.#answering.delete(channel);
    for (const reader of shell.readers) reader.close();
    shell.readers.clear();
    shell.port?.close(error);
  }

  // --- other raylets ------------------------------------------------------------------------------------------------------

  upstreamBatch(upstream: Upstream, batch: Uint8Array, release?: () => void): void {
    this.#intake.upstream(upstream, batch, release);
  }

  nodeLost(nodeNumber: number): void {
    this.core.state.nowMs = this.#clock.nowMs();
    this.core.state.avoidNode(nodeNumber);
  }

  /** It ended over there, or with the connection: what had come of it before counts. */
  upstreamClosed(upstream: Upstream, failure: Failure): void {
    this.#intake.after(upstream.job.tenant, upstream, () => this.#closeUpstream(upstream, failure));
  }

  #closeUpstream(upstream: Upstream, failure: Failure): void {
    this.core.state.nowMs = this.#clock.nowMs();
    this.core.upstreamClosed(upstream, failure);
    this.flush();
  }

  // --- effects ------------------------------------------------------------------------------------------------------------

  /** Executes what the last step wants, until a step wants nothing more, then sends. */
  flush(): void {
    const core = this.core.state;
    while (core.out.length > 0) {
      const effects = core.out;
      core.out = [];
      for (const effect of effects) {
        try {
          this.#execute(effect);
        } catch (error) {
          this.#effectFailed(effect, error);
        }
      }
    }
    while (core.dirtyChannels.length > 0) {
      const channel = core.dirtyChannels.pop() as Channel;
      channel.dirty = false;
      const needed = channel.needed;
      channel.needed = -1;
      const shell = this.#channels.get(channel);
      const cut = channel.cut.splice(0);
      const rest = channel.out.length === 0 ? undefined : channel.out.takeView();
      if (shell === undefined) continue;
      for (const part of cut) this.#push(channel.job.tenant, shell.outbox, part.batch, part.needed);
      if (rest !== undefined) this.#push(channel.job.tenant, shell.outbox, rest, needed);
      this.#answerMore(channel, shell);
    }
    while (core.dirtyUpstreams.length > 0) {
      const upstream = core.dirtyUpstreams.pop() as Upstream;
      upstream.dirty = false;
      const needed = upstream.needed;
      upstream.needed = -1;
      const box = this.#upstreamBoxes.get(upstream);
      const cut = upstream.cut.splice(0);
      if (box === undefined) continue;
      for (const part of cut) this.#push(upstream.job.tenant, box, part.batch, part.needed);
      if (upstream.out.length > 0) this.#push(upstream.job.tenant, box, upstream.out.takeView(), needed);
    }
    // Answering more is another step.
    if (core.out.length > 0) this.flush();
  }

  #effectFailed(effect: Effect, error: unknown): void {
    const safe = toSafeError(error);
    this.#options.log.error({ err: error, effect: effect.type }, 'an effect failed');
    if (effect.type === 'seal-staged') {
      // What was announced is not there: whoever asks for it is told, instead of waiting for a file that never comes.
      this.core.sealFailed(effect.entry, effect.fileName);
      this.#kill(effect.worker, 'MISBEHAVED');
    } else if (effect.type === 'spill-file') this.core.spilled(effect.entry, effect.fileName, effect.spillName, effect.size, failureOf(safe), this.#clock.nowMs());
    else if (effect.type === 'stream-file') this.core.valueLost(effect.channel, effect.request, effect.position, effect.needed);
    else if (effect.type === 'attach' || effect.type === 'load-code' || effect.type === 'open-slot') this.#kill(effect.slot.worker, 'MISBEHAVED');
    else if (effect.type === 'copy-file') this.core.copyFailed(effect.to, effect.copyName);
    else if (effect.type === 'write-part' && effect.fileName.startsWith('in-')) this.core.transferFailed(effect.fileName, failureOf(safe));
    else if (effect.type === 'write-part') {
      for (const channel of [...this.core.state.channels.values()]) if (channel.job.tenant === effect.tenant && channel.puts.size > 0) this.closeChannel(channel, safe);
    }
  }

  #execute(effect: Effect): void {
    switch (effect.type) {
      case 'start-worker':
        void this.#startWorker(effect.worker, effect.cpus);
        return;
      case 'kill-worker':
        return this.#kill(effect.worker, effect.reason);
      case 'open-slot': {
        const process = this.#processOf(effect.slot);
        const { channel } = effect.slot;
        this.#channels.set(channel, { port: slotPort(process, effect.slot), outbox: this.#newOutbox(channel.job.tenant, (batch) => this.#writePort(channel, batch)), paused: false, blocked: false, streams: [], readers: new Set() });
        process.openSlot(effect.slot.number, { memoryMiB: effect.memoryMiB, sessionPrefix: channel.session.prefix });
        effect.slot.opened = true;
        return;
      }
      case 'close-slot': {
        this.processes.get(effect.slot.worker)?.closeSlot(effect.slot.number);
        this.core.slotClosed(effect.slot);
        this.#dropChannel(effect.slot.channel, undefined);
        return;
      }
      case 'load-code': {
        const process = this.#processOf(effect.slot);
        const name = `${effect.digestHex}.js`;
        process.linkCode(join(this.#codeDir, effect.slot.job.tenant.name, name), name);
        process.loadCode(effect.slot.number, effect.codeNumber, Buffer.from(effect.digestHex, 'hex'), name);
        return;
      }
      case 'attach': {
        const process = this.#processOf(effect.slot);
        this.#attachments.add(effect.fileName, process);
        return process.attach(effect.slot.number, effect.attachment, this.objects.path(effect.slot.job.tenant.name, effect.fileName), effect.size);
      }
      case 'store-code': {
        const dir = join(this.#codeDir, effect.tenant.name);
        mkdirSync(dir, { recursive: true, mode: 0o711 });
        const path = join(dir, `${effect.digestHex}.js`);
        if (!existsSync(path)) writeFileSync(path, effect.source, { mode: 0o644 });
        return;
      }
      case 'delete-code':
        return rmSync(join(this.#codeDir, effect.tenant.name, `${effect.digestHex}.js`), { force: true });
      case 'seal-staged':
        this.#sealStaged(effect);
        return;
      case 'write-part':
        return this.objects.writePart(effect.tenant.name, effect.fileName, effect.offset, effect.bytes, effect.last);
      case 'copy-file':
        return this.objects.copy(effect.from.name, effect.fileName, effect.to.name, effect.copyName, effect.size, (digest, start) => !this.core.keepsCode(effect.entry, start) && this.core.mayCross(effect.entry, digest));
      case 'check-file':
        return this.core.fileChecked(effect.upstream, effect.request, effect.fileName, this.objects.check(effect.tenant.name, effect.fileName, effect.digest));
      case 'delete-file':
        this.#attachments.detach(effect.fileName);
        return this.objects.delete(effect.tenant.name, effect.fileName);
      case 'spill-file':
        return this.#spill(effect);
      case 'restore-file':
        void this.#restore(effect);
        return;
      case 'delete-spill':
        return this.spills.delete(effect.tenant.name, effect.spillName);
      case 'stream-file':
        return this.#streamFile(effect);
      case 'register-name':
        void this.#registerName(effect.actor, effect.id, effect.classInfo);
        return;
      case 'release-name': {
        const { actor, id } = effect;
        this.#options.names.release(actor.job.tenant.name, actor.template.options.namespace, actor.name, id).catch((error: unknown) => this.#options.log.warn({ err: error }, 'an actor name could not be released; the head drops it when this node is gone'));
        return;
      }
      case 'lookup-name':
        void this.#lookupName(effect);
        return;
      case 'register-group':
        void this.#registerGroup(effect.group, effect.id, effect.info);
        return;
      case 'release-group': {
        const { group, id } = effect;
        this.#options.names.release(group.job.tenant.name, GROUP_NAMES, group.name, id).catch((error: unknown) => this.#options.log.warn({ err: error }, 'the name of a placement group could not be released; the head drops it when this node is gone'));
        return;
      }
      case 'lookup-group':
        void this.#lookupGroup(effect);
        return;
      case 'open-upstream': {
        const { upstream } = effect;
        this.#upstreamBoxes.set(upstream, this.#newOutbox(upstream.job.tenant, (batch) => this.peers?.write(upstream, batch)));
        if (this.peers === undefined) this.core.upstreamClosed(upstream, { code: 'UNAVAILABLE', message: 'this node has no way to other nodes', stack: '' });
        else this.peers.open(upstream, effect.depth);
        return;
      }
      case 'close-upstream': {
        const box = this.#upstreamBoxes.get(effect.upstream);
        if (box !== undefined) this.#outboxes.get(effect.upstream.job.tenant)?.delete(box);
        this.#upstreamBoxes.delete(effect.upstream);
        this.peers?.close(effect.upstream);
        return;
      }
      case 'close-channel':
        this.#dropChannel(effect.channel, new BulkheadError(effect.code ?? 'CANCELLED', effect.reason));
        return;
      case 'stream-code':
        return this.#streamCode(effect.upstream, effect.digestHex);
      case 'log':
        return this.logs.append(effect.job.tenant.name, effect.job.id, { timeMs: this.#options.clock.nowMs(), task: effect.taskId, actor: effect.actorId, name: effect.name, stream: effect.stream === 2 ? 'stderr' : 'stdout' }, effect.text);
      case 'credential':
        void this.#renewals.renew(effect.channel, effect.credential);
        return;
    }
  }

  /** Whether the call that is in flight here is the only one of the node; it is then on its way to its worker. */
  alone(): boolean {
    if (this.core.state.callsInFlight !== 1) return false;
    for (const process of this.processes.values()) process.flush();
    return true;
  }

  #processOf(slot: Slot): WorkerProcess {
    const process = this.processes.get(slot.worker);
    if (process === undefined) throw new BulkheadError('WORKER_DIED', 'the worker is gone');
    return process;
  }

  // --- workers --------------------------------------------------------------------------------------------------------------

  async #startWorker(worker: Worker, cpus: number): Promise<void> {
    const waitMs = this.#options.pool.waitMs(worker.tenant.name);
    // Not in the middle of the step that asked for it: `flush` takes up what this makes possible.
    if (waitMs > 0) return this.core.workerDelayed(worker, waitMs, this.#clock.nowMs());
    let process: WorkerProcess;
    // Actors share their process, so its limit is what the tenant may use at most; each isolate has its own inside.
    const memoryBytes = worker.purpose === 'actors' ? Math.max(worker.memoryBytes, ACTOR_WORKER_BYTES) : worker.memoryBytes;
    try {
      const { runtime, requirements } = requirementsOf(worker.runtime);
      // What is fetched for it is seen outside of this node.
      if (requirements.length > 0) await this.#recorded(worker.tenant);
      process = await this.#options.pool.acquire({ tenant: worker.tenant.name, runtime, requirements, memoryBytes, cpus, tenantCpus: kernelCpus(worker.tenant) });
    } catch (error) {
      this.core.workerNotStarted(worker, failureOf(toSafeError(error)), this.#clock.nowMs());
      return this.flush();
    }
    if (this.#closed || worker.state === 'DEAD') return process.kill('KILLED', 'not needed any more');
    this.processes.set(worker, process);
    worker.id = process.id;
    worker.pid = process.pid;
    process.onBatch = (number, batch) => {
      const slot = worker.slots.get(number);
      // A slot that was closed a moment ago may still speak; nobody listens.
      if (slot !== undefined) this.#intake.guest(slot, batch);
    };
    // What came before counts: the results of calls that had ended when their isolate or worker did.
    process.onSlotFailed = (number, code, message) => this.#intake.after(worker.tenant, worker, () => this.#slotFailed(worker, number, { code, message, stack: '' }));
    process.onCodeFailed = (number, codeNumber, message, stack) => {
      const slot = worker.slots.get(number);
      if (slot !== undefined) this.core.codeFailed(slot, codeNumber, { code: 'TASK_FAILED', message, stack }, this.#clock.nowMs());
      this.flush();
    };
    process.onDrain = () => {
      for (const slot of worker.slots.values()) this.drained(slot.channel);
    };
    process.onExit = (exit) => this.#intake.after(worker.tenant, worker, () => this.#workerExited(worker, exit));
    this.core.state.nowMs = this.#clock.nowMs();
    this.core.lifecycleOf(worker.tenant, 'worker.started', process.id, worker.purpose);
    this.core.workerStarted(worker, this.#clock.nowMs());
    this.flush();
  }

  #slotFailed(worker: Worker, number: number, failure: Failure): void {
    const slot = worker.slots.get(number);
    if (slot === undefined) return;
    this.core.state.nowMs = this.#clock.nowMs();
    this.core.lifecycleOf(worker.tenant, 'isolate.failed', worker.id ?? '', failure.code);
    this.core.slotFailed(slot, failure, this.#clock.nowMs());
    this.#dropChannel(slot.channel, undefined);
    this.flush();
  }

  #kill(worker: Worker, reason: string): void {
    const process = this.processes.get(worker);
    if (process === undefined || this.#killing.has(worker)) return;
    this.#killing.set(worker, reason);
    process.kill(reason === 'TIMEOUT' ? 'TIMEOUT' : 'KILLED', reason);
  }

  #workerExited(worker: Worker, exit: WorkerExit): void {
    const process = this.processes.get(worker);
    if (process !== undefined) {
      this.#attachments.forget(process);
      this.#metering.workerEnded(worker, process);
    }
    this.processes.delete(worker);
    this.#unread.delete(worker);
    const killed = this.#killing.get(worker);
    this.#killing.delete(worker);
    const ours = killed !== undefined && killed !== 'MISBEHAVED';
    const failure: Failure = {
      code: exit.reason === 'OUT_OF_MEMORY' ? 'OUT_OF_MEMORY' : 'WORKER_DIED',
      message: killed === 'MISBEHAVED' ? 'the worker broke its protocol and was killed' : ours ? 'the worker was stopped: another call in it had to be killed' : `the worker process died: ${exit.detail}`, stack: '',
    };
    const slots = [...worker.slots.values()];
    this.core.state.nowMs = this.#clock.nowMs();
    // What it was running wants another worker at once, and is not to push somebody else's out for one that may not start.
    const waitMs = this.#options.pool.waitMs(worker.tenant.name);
    if (waitMs > 0) worker.tenant.nextStartMs = Math.max(worker.tenant.nextStartMs, this.core.state.nowMs + waitMs);
    this.core.lifecycleOf(worker.tenant, ours ? 'worker.ended' : 'worker.died', worker.id ?? '', killed ?? exit.reason);
    this.core.workerExited(worker, failure, ours, this.#clock.nowMs());
    for (const slot of slots) this.#dropChannel(slot.channel, undefined);
    this.flush();
  }

  #sealStaged(effect: Effect & { readonly type: 'seal-staged' }): void {
    const process = this.processes.get(effect.worker);
    if (process === undefined) throw new BulkheadError('WORKER_DIED', 'the worker is gone');
    process.takeStaged(effect.slotNumber, effect.staged, effect.size, this.objects.destination(effect.worker.tenant.name, effect.fileName));
    // Only Python's values can carry code; asked now, so that a grant on it is refused before it is used.
    if (effect.worker.runtime !== 'javascript') this.core.sealed(effect.entry, this.objects.start(effect.worker.tenant.name, effect.fileName));
  }

  // --- memory and disk --------------------------------------------------------------------------------------------------------

  #spill(effect: Effect & { readonly type: 'spill-file' }): void {
    const { entry, tenant, fileName, spillName, size, id, version } = effect;
    const reader = this.objects.reader(tenant.name, fileName);
    const done = (failure: Failure | undefined): void => {
      reader.close();
      if (this.#closed) return;
      this.core.spilled(entry, fileName, spillName, size, failure, this.#clock.nowMs());
      this.flush();
    };
    this.spills.write({ tenant: tenant.name, fileName: spillName, id, version, size }, reader).then(() => done(undefined), (error: unknown) => {
      this.#options.log.warn({ err: error, tenant: tenant.name }, 'an object could not be moved to disk; it stays in memory, and moving is tried again');
      done(failureOf(toSafeError(error)));
    });
  }

  async #restore(effect: Effect & { readonly type: 'restore-file' }): Promise<void> {
    const { entry, tenant, fileName, spillName, size, id, version } = effect;
    let failure: Failure | undefined;
    try {
      await this.spills.read({ tenant: tenant.name, fileName: spillName, id, version, size }, (offset, bytes, last) => this.objects.writePart(tenant.name, fileName, offset, bytes, last));
    } catch (error) {
      if (this.#closed) return;
      this.#options.log.warn({ err: error, tenant: tenant.name }, 'an object could not be read back from disk');
      this.objects.delete(tenant.name, fileName);
      failure = failureOf(toSafeError(error));
    }
    if (this.#closed) return;
    this.core.restored(entry, spillName, fileName, size, failure, this.#clock.nowMs());
    this.flush();
  }

  // --- transfers --------------------------------------------------------------------------------------------------------------

  #streamFile(effect: Effect & { readonly type: 'stream-file' }): void {
    const { channel, request, position, size } = effect;
    const shell = this.#channels.get(channel);
    if (shell === undefined) return;
    const reader = this.objects.reader(effect.owner.name, effect.fileName);
    shell.readers.add(reader);
    // Where it crosses a wall its digest is fixed, or compared with what left before, and the last part leaves only then.
    const toRaylet = channel.kind === CHANNEL_KIND.PEER;
    // A copy's reader has the digest from its owner; nobody but this raylet has ever written the file.
    const hash = !effect.copy && (toRaylet || effect.owner !== channel.job.tenant) ? createHash('sha256') : undefined;
    let offset = 0;
    let { refs } = effect;
    const step = (): boolean => {
      if (refs !== undefined && !shell.blocked && !channel.closed) {
        this.#writePort(channel, refsFrame(request, position, refs));
        refs = undefined;
      }
      while (offset < size) {
        if (shell.blocked || channel.closed) return channel.closed;
        const n = Math.min(CHUNK_BYTES, size - offset);
        const header = Buffer.allocUnsafe(CHUNK_HEADER_BYTES);
        header.writeUInt32LE(CHUNK_HEADER_BYTES - 4 + n, 0);
        header[4] = OP.VALUE_CHUNK;
        header.writeUInt32LE(request, 5);
        header.writeUInt32LE(position, 9);
        header.writeBigUInt64LE(BigInt(size), 13);
        header.writeBigUInt64LE(BigInt(offset), 21);
        const chunk = this.parts.take();
        const got = reader.read(chunk, 0, n, offset);
        hash?.update(chunk.subarray(0, got));
        if (offset === 0 && effect.owner !== channel.job.tenant && this.core.keepsCode(effect.entry, chunk.subarray(0, got))) {
          this.core.valueRefused(channel, request, position);
          break;
        }
        if (hash !== undefined && (got !== n || offset + n === size)) {
          const digest = hash.digest();
          if (got !== n || !this.core.mayCross(effect.entry, digest)) {
            // Of the writer's doing, and no fault of this channel.
            this.core.valueAltered(channel, request, position);
            break;
          }
          if (toRaylet) this.#writePort(channel, digestFrame(request, position, digest));
        } else if (got !== n) {
          // Its writer has kept it open and cut it: the worker and the client are of one tenant.
          this.#failLater(channel, new BulkheadError('OBJECT_LOST', 'an object file is shorter than it was'));
          offset = size;
          break;
        }
        offset += n;
        this.#writePort(channel, header, chunk.subarray(0, n), () => this.parts.giveBack(chunk));
      }
      reader.close();
      shell.readers.delete(reader);
      if (channel.deferred.length > 0) this.core.state.markChannel(channel, -1);
      return true;
    };
    this.#push(channel.job.tenant, shell.outbox, () => {
      if (shell.streams.length > 0 || !step()) shell.streams.push(step);
    }, effect.needed);
  }

  #streamCode(upstream: Upstream, digestHex: string): void {
    const box = this.#upstreamBoxes.get(upstream);
    if (box === undefined) return;
    const source = this.readCode(upstream.job.tenant.name, digestHex);
    for (let offset = 0; offset < source.length; offset += CHUNK_BYTES) {
      const part = source.subarray(offset, offset + CHUNK_BYTES);
      upstream.codeOut.begin(OP.CODE).raw(Buffer.from(digestHex, 'hex')).u32(source.length).u32(offset).raw(part).end();
      this.#push(upstream.job.tenant, box, upstream.codeOut.take(), -1);
    }
  }

  readCode(tenant: string, digestHex: string): Buffer {
    return readFileSync(join(this.#codeDir, parseTenantName(tenant), `${digestHex}.js`));
  }

  // --- names and credentials ----------------------------------------------------------------------------------------------------

  /** A name costs a few octets to ask for, and the head a record on disk: so a tenant has so many questions open. */
  async #askHead<T>(tenant: string, ask: () => Promise<T>): Promise<T> {
    const open = this.#nameCalls.get(tenant) ?? 0;
    if (open >= MAX_NAME_CALLS_PER_TENANT) throw new BulkheadError('RESOURCE_EXHAUSTED', `${open} actor names of the tenant are being asked for on this node already: wait for some of them`);
    this.#nameCalls.set(tenant, open + 1);
    try {
      return await ask();
    } finally {
      const left = (this.#nameCalls.get(tenant) ?? 1) - 1;
      if (left > 0) this.#nameCalls.set(tenant, left);
      else this.#nameCalls.delete(tenant);
    }
  }

  /** Of a driver that has gone there is none any more, whatever detached actors it left. */
  #credentialOf(job: Job): string {
    if (job.credentialEndsMs <= this.#options.clock.nowMs()) throw new BulkheadError('UNAUTHENTICATED', "the job's session has ended: names of actors are registered and looked up only while a driver of the job is there");
    return job.credential;
  }

  async #registerName(actor: Actor, id: Uint8Array, classInfo: string): Promise<void> {
    const { job, name, template: { options: { namespace } } } = actor;
    const failure = await this.#nameAtHead(job.tenant.name, namespace, name, async () => {
      actor.kept = await this.#options.names.register(this.#credentialOf(job), job.tenant.name, namespace, name, id, classInfo, this.#seedOf(actor));
    });
    this.core.nameRegistered(actor, failure);
    this.flush();
  }

  /** Registers a name. A client that looks up at once what it has named finds it: the look-up waits for the registration before it. */
  async #nameAtHead(tenant: string, namespace: string, name: string, register: () => Promise<void>): Promise<Failure | undefined> {
    const registering = this.#askHead(tenant, register);
    const key = nameKey(tenant, namespace, name);
    this.#naming.set(key, registering);
    try {
      await registering;
      return undefined;
    } catch (error) {
      return failureOf(toSafeError(error));
    } finally {
      if (this.#naming.get(key) === registering) this.#naming.delete(key);
      this.core.state.nowMs = this.#clock.nowMs();
    }
  }

  /** What an actor is made of, when it is to outlive this node and refers to nothing that would not. */
  #seedOf(actor: Actor): ActorSeed | undefined {
    const { seed, template, job } = actor;
    if (seed === undefined || !template.options.detached || seed.deps.length > 0 || seed.contained.length > 0) return undefined;
    if ((job.tenant.code.get(template.digestHex)?.size ?? Number.POSITIVE_INFINITY) + seed.args.length > MAX_ACTOR_SEED_BYTES) return undefined;
    try {
      return { options: template.optionsJson, args: seed.args, code: this.readCode(job.tenant.name, template.digestHex), restarts: actor.restarts };
    } catch (error) {
      this.#options.log.warn({ err: error, tenant: job.tenant.name }, 'the code of a detached actor cannot be read, so it is not kept for other nodes');
      return undefined;
    }
  }

  /** After a silence the head may have taken this node for dead and its names for free: what another has now is not ours any more. */
  async registerNamesAgain(): Promise<void> {
    for (const job of [...this.core.state.jobs.values()]) {
      for (const actor of [...job.actors]) {
        if (!actor.nameRegistered || actor.state === 'DEAD') continue;
        const { namespace, detached } = actor.template.options;
        const id = this.core.state.idOf(actor.session, actor.index);
        try {
          await this.#options.names.register(job.credential, job.tenant.name, namespace, actor.name, id, classInfoOf(actor), detached ? this.#seedOf(actor) : undefined);
        } catch (error) {
          const failure = failureOf(toSafeError(error));
          this.core.state.nowMs = this.#clock.nowMs();
          if (failure.code === 'INVALID_ARGUMENT') this.core.nameLost(actor);
          this.flush();
        }
      }
    }
    for (const group of [...this.core.state.groups.values()]) {
      if (!group.nameRegistered || group.name === '' || group.state === 'REMOVED') continue;
      const { job } = group;
      try {
        await this.#options.names.register(job.credential, job.tenant.name, GROUP_NAMES, group.name, idFromHex(group.id), groupInfo(group), groupSeed(group));
      } catch (error) {
        const failure = failureOf(toSafeError(error));
        this.core.state.nowMs = this.#clock.nowMs();
        if (failure.code === 'INVALID_ARGUMENT') this.core.groupNameLost(group);
        this.flush();
      }
    }
  }

  async #registerGroup(group: PlacementGroup, id: Uint8Array, info: string): Promise<void> {
    const { job, name } = group;
    const failure = await this.#nameAtHead(job.tenant.name, GROUP_NAMES, name, async () => {
      group.kept = await this.#options.names.register(this.#credentialOf(job), job.tenant.name, GROUP_NAMES, name, id, info, groupSeed(group));
    });
    this.core.groupNamed(group, failure);
    this.flush();
  }

  async #lookupGroup({ channel, request, name, auditSeq }: Effect & { readonly type: 'lookup-group' }): Promise<void> {
    let found: { id: Uint8Array; info: string } | Failure | undefined;
    const { tenant } = channel.job;
    try {
      for (let tries = 0; ; tries++) {
        await this.#naming.get(nameKey(tenant.name, GROUP_NAMES, name))?.catch(() => undefined);
        const row = await this.#askHead(tenant.name, () => this.#options.names.lookup(this.#credentialOf(channel.job), tenant.name, GROUP_NAMES, name));
        found = row === undefined ? undefined : { id: row.id, info: row.classInfo };
        if (row === undefined || !row.orphaned || channel.closed) break;
        this.core.state.nowMs = this.#clock.nowMs();
        // Two that ask at once both try; the name belongs to the first.
        const failure = row.seed === undefined || tries > 1 ? GROUP_ORPHANED : this.core.adoptGroup(channel, name, row.id, row.seed);
        this.flush();
        if (failure === undefined) continue;
        found = failure;
        break;
      }
    } catch (error) {
      const { code } = toSafeError(error);
      if (code !== 'RESOURCE_EXHAUSTED' && code !== 'UNAUTHENTICATED' && code !== 'DENIED') this.#options.log.warn({ err: error }, 'the head could not be asked for the name of a placement group');
      found = code === 'RESOURCE_EXHAUSTED' || code === 'UNAUTHENTICATED' || code === 'DENIED' ? failureOf(toSafeError(error)) : { code: 'UNAVAILABLE', message: 'the head cannot be asked for the name now; try again', stack: '' };
    }
    this.core.state.nowMs = this.#clock.nowMs();
    this.core.groupFound(channel, request, found, auditSeq);
    this.flush();
  }

  async #lookupName(effect: Effect & { readonly type: 'lookup-name' }): Promise<void> {
    let found: FoundActor | Failure | undefined;
    const { tenant } = effect.channel.job;
    const key = nameKey(tenant.name, effect.namespace, effect.name);
    try {
      for (let tries = 0; ; tries++) {
        await this.#naming.get(key)?.catch(() => undefined);
        found = await this.#askHead(tenant.name, () => this.#options.names.lookup(this.#credentialOf(effect.channel.job), tenant.name, effect.namespace, effect.name));
        if (found === undefined || !found.orphaned || effect.channel.closed) break;
        this.core.state.nowMs = this.#clock.nowMs();
        // Two that ask at once both try; the name belongs to the first.
        const failure = found.seed === undefined || tries > 1 ? ORPHANED : this.core.adoptActor(effect.channel, effect.name, effect.namespace, found.classInfo, found.seed);
        this.flush();
        if (failure === undefined) continue;
        found = failure;
        break;
      }
    } catch (error) {
      if (error instanceof BulkheadError && (error.code === 'RESOURCE_EXHAUSTED' || error.code === 'UNAUTHENTICATED' || error.code === 'DENIED')) found = failureOf(error);
      else {
        this.#options.log.warn({ err: error }, 'the head could not be asked for an actor name');
        // Not the same as "nobody has it": the client may try again.
        found = { code: 'UNAVAILABLE', message: 'the head cannot be asked for the name now; try again', stack: '' };
      }
    }
    this.core.nameFound(effect.channel, effect.request, found, effect.auditSeq);
    this.flush();
  }

  #credentialRenewed(channel: Channel, credential: string, { expiresMs, issuedMs }: RenewedCredential): void {
    const { job } = channel;
    this.core.ensureJob(job.id, job.tenant, job.submitter, job.principal, credential, expiresMs, issuedMs, job.project.name);
    for (const upstream of this.core.state.upstreams.values()) {
      if (upstream.job !== job) continue;
      upstream.out.begin(OP.CREDENTIAL).text(credential).end();
      this.core.state.markUpstream(upstream, -1);
    }
    this.flush();
  }

  #tellRefused(channel: Channel, error: BulkheadError): void {
    this.#options.log.warn({ job: channel.job.id, node: channel.peer }, error.safeMessage);
    channel.out.begin(OP.CREDENTIAL_REFUSED).str(error.code).text(error.safeMessage).end();
    this.core.state.markChannel(channel, -1);
    this.flush();
  }

  // --- time and end ---------------------------------------------------------------------------------------------------------------

  #tick(): void {
    this.core.state.wallAheadMs = this.#options.clock.nowMs() - this.#clock.nowMs();
    this.core.tick(this.#clock.nowMs(), (worker) => this.processes.get(worker)?.cpuMicros() ?? 0);
    this.flush();
    if (this.core.state.shares.short.size > 0) this.onShort?.();
    this.#metering.tick(this.#clock.nowMs(), this.#options.clock.nowMs());
    this.#renewals.tick();
    if (++this.#ticks % PROBE_TICKS === 0) for (const [worker, process] of this.processes) if (isBusy(worker)) process.probe();
    // What finished without a word to its client may be what it was held back for.
    for (const [channel, shell] of this.#channels) if (shell.paused) this.#throttle(channel, shell);
  }

  stopJob(id: JobId, reason: string): void {
    this.core.state.nowMs = this.#clock.nowMs();
    this.core.stopJob(id, reason);
    this.flush();
  }

  releaseDrivers(id: JobId, reason: string): void {
    this.core.state.nowMs = this.#clock.nowMs();
    this.core.releaseDrivers(id, reason);
    this.flush();
  }

  available(): ResourceVector {
    return this.core.state.available;
  }

  queuedTasks(): number {
    return queuedForRoom(this.core.state);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    clearInterval(this.#timer);
    this.#intake.close();
    for (const channel of [...this.#channels.keys()]) if (channel.kind !== CHANNEL_KIND.SLOT) this.#dropChannel(channel, new BulkheadError('UNAVAILABLE', 'the raylet is stopping'));
    await this.#options.pool.close();
    this.#metering.finish(this.#clock.nowMs(), this.#options.clock.nowMs());
    this.logs.flush();
    this.objects.close();
    this.spills.close();
    rmSync(this.#codeDir, { recursive: true, force: true });
  }
}

const ORPHANED: Failure = { code: 'ACTOR_UNAVAILABLE', message: 'the node of this actor is lost; it is made again when the principal that made it asks for its name', stack: '' };

const GROUP_ORPHANED: Failure = { code: 'UNAVAILABLE', message: 'the node that coordinates this placement group is lost; another one takes over when the principal that made it asks for its name', stack: '' };

/** What a detached group is made again of. */
function groupSeed(group: PlacementGroup): ActorSeed | undefined {
  return group.detached ? { options: group.wanted, args: NOTHING, code: NOTHING, restarts: 0 } : undefined;
}

const NOTHING = new Uint8Array();

function nameKey(tenant: string, namespace: string, name: string): string {
  return JSON.stringify([tenant, namespace, name]);
}

function digestFrame(request: number, position: number, digest: Uint8Array): Uint8Array {
  const frame = Buffer.allocUnsafe(13 + digest.length);
  frame.writeUInt32LE(9 + digest.length, 0);
  frame[4] = OP.VALUE_DIGEST;
  frame.writeUInt32LE(request, 5);
  frame.writeUInt32LE(position, 9);
  frame.set(digest, 13);
  return frame;
}

/** What is inside a value, for the raylet that gets it. */
function refsFrame(request: number, position: number, refs: readonly Uint8Array[]): Uint8Array {
  const out = new FrameWriter(64 + 24 * refs.length);
  out.begin(OP.VALUE_REFS).u32(request).u32(position).refs(refs).end();
  return out.take();
}

function isBusy(worker: Worker): boolean {
  for (const slot of worker.slots.values()) if (slot.execs.size > 0) return true;
  return false;
}

const ACTOR_WORKER_BYTES = 2 * 2 ** 30;

function slotPort(process: WorkerProcess, slot: Slot): ChannelPort {
  return {
    // Large values reach a guest as attachments, so a tail comes never; if it did, it must not be lost.
    write: (batch, tail) => process.send(slot.number, tail === undefined ? batch : Buffer.concat([batch, tail])),
    // A worker that is behind is not paused: its own reads are what it waits for.
    pause: () => undefined,
    resume: () => undefined,
    close: () => undefined,
  };
}

/**
 * What the kernel lets a tenant's workers use here: its share; one cpu at least where its quota is that large, since what waits and what asks for none must go on
 * where the share is small.
 */
function kernelCpus({ quota, nominal, cpuUnitsInUse }: TenantState): number {
  return Math.max(quota.cpuUnits, cpuUnitsInUse, Math.min(nominal.cpuUnits, UNITS_PER_CPU)) / UNITS_PER_CPU;
}
