/**
 * One raylet of the simulation: the real core, the real outbox, and a driver around them that executes effects as src/raylet/raylet.ts
 * does, with workers, isolates, object files and the audit disk as machines of its own. What must hold after each step is asked in
 * `invariants.ts`; what must hold at each run and each send is asked here, from books that the core does not know.
 */
import type { AuditRecord } from '../../src/base/audit-record.ts';
import type { Decision, DecisionRequest, PolicyDecisionPoint } from '../../src/base/decision.ts';
import { BulkheadError } from '../../src/base/errors.ts';
import { CALL_KIND, FrameReader, FrameWriter, OP } from '../../src/base/frame.ts';
import { NO_LABELS } from '../../src/base/labels.ts';
import type { ProjectQuota } from '../../src/base/project-quota.ts';
import { hex, parseTenantName } from '../../src/base/ids.ts';
import { LiveDecisionPoint, type PolicySnapshot } from '../../src/authz/authz.ts';
import { Revocations } from '../../src/pki/revocations.ts';
import { idIndex, idWord, makeId } from '../../src/raylet/core/core.ts';
import type { Effect } from '../../src/raylet/core/effects.ts';
import { RayletCore } from '../../src/raylet/core/raylet-core.ts';
import { CHANNEL_KIND, type Channel, type HeldBatch, type ObjectEntry, type Slot, type Task, type Upstream, type Worker } from '../../src/raylet/core/state.ts';
import { NO_QUOTA, type TenantQuota } from '../../src/base/tenant-quota.ts';
import { Outbox } from '../../src/raylet/outbox.ts';
import type { Bugs } from './canaries.ts';
import { SimLog, type LogFiles } from './disk-machine.ts';
import { TENANTS } from './head-machine.ts';

/** What a simulated function does: the first octet of its payload. The second is of its own use. */
export const DO = { RETURN: 0, THROW: 1, DIE: 2, HANG: 3, LARGE: 4, NEST: 5, BORROW: 6, PUT: 7, EXIT: 8, LIE: 9, STREAM: 10 } as const;
/** Each so many-th item of a stream is large. */
const LARGE_ITEM = 4;
export const LARGE_BYTES = 3_000;
/** Every bundle's: only that it is the same counts. */
export const CODE = Uint8Array.of(1, 2, 3);
export const CODE_DIGEST = new Uint8Array(32).fill(9);

/** What a raylet asks of the world around it. */
export interface Surroundings {
  readonly random: () => number;
  readonly bugs: Bugs;
  nowMs(): number;
  /** An event of this raylet on a link: first in, first out for each link. */
  push(link: string, raylet: SimRaylet, event: () => void): void;
  unshift(link: string, raylet: SimRaylet, event: () => void): void;
  toDriver(channel: Channel, batch: Uint8Array): void;
  driverClosed(channel: Channel): void;
  toPeer(channel: Channel, batch: Uint8Array): void;
  peerClosed(channel: Channel): void;
  open(raylet: SimRaylet, upstream: Upstream, depth: number): void;
  write(raylet: SimRaylet, upstream: Upstream, batch: Uint8Array): void;
  close(raylet: SimRaylet, upstream: Upstream): void;
  /** Whether the policy of this version lets the tenant with this number read what the other labelled as published. */
  granted(version: number, owner: number, reader: number): boolean;
  mayBob(version: number, tenant: number): boolean;
  /** A fresh credential came on a channel. */
  renew(raylet: SimRaylet, channel: Channel, credential: string): void;
  note(text: string): void;
  /** Something that runs are to have had. */
  count(what: string): void;
}

/** What every node of a run has. */
export interface NodeSize {
  readonly cpus: number;
  readonly objectMemoryBytes: number;
  readonly spillBytes: number;
}

interface Guest {
  readonly execs: Map<number, { readonly what: number; request: number }>;
  /** What streams, and how far it may go. */
  readonly productions: Map<number, Production>;
  nextSeq: number;
  nextRequest: number;
  defined: boolean;
}

interface Production {
  readonly total: number;
  made: number;
  skip: number;
  upTo: number;
  room: number;
  sent: number;
}

const TENANT_AT = (prefixHex: string): number => Number.parseInt(prefixHex.slice(0, 2), 16);

export class SimRaylet {
  readonly core: RayletCore;
  readonly number: number;
  readonly logs = new Map<number, SimLog>();
  readonly live: LiveDecisionPoint;
  readonly revocations = new Revocations();
  readonly instance: string;
  readonly quota: TenantQuota;
  /** Files of objects: the tenant whose directory they are in, whose bytes they hold and how many. */
  readonly files = new Map<string, { tag: number; size: number; written: number }>();
  readonly #unwritten = new Set<string>();
  /** Encrypted copies on disk, by path: which write they are of which object; and those whose writing is under way. */
  readonly spills = new Map<string, { readonly key: string; readonly version: number; readonly tag: number; readonly size: number }>();
  readonly spilling = new Set<string>();
  readonly pools = new Map<Worker, Map<number, Slot>>();
  readonly boxes = new Map<Channel | Upstream, Outbox>();
  readonly #guests = new WeakMap<Slot, Guest>();
  readonly hanging = new Set<{ readonly slot: Slot; readonly exec: number }>();
  readonly #world: Surroundings;
  /** Of decisions: `principal|action|resource|index`, permitted and any, when they were taken and when they were on disk. */
  readonly allowed = new Set<string>();
  readonly durableAllowed = new Set<string>();
  readonly durableDecided = new Set<string>();
  /** `reader|prefix|index` that a grant has opened here. */
  readonly opened = new Set<string>();
  /** Decisions of this step whose record has not come yet. */
  #undocumented: { readonly request: DecisionRequest; readonly decision: Decision } | undefined = undefined;
  decisions = 0;
  #newestPolicy = 0;
  alive = true;
  clockOffsetMs = 0;
  /** The tmpfs of objects takes nothing more for now. */
  full = false;
  /** A step was taken since it was last looked at. */
  touched = false;
  headSerial = 0;
  runs = 0;
  /** A node or a link was lost: what lay there may be. */
  mayLose = false;
  /** A task has waited in an isolate: taking its resources back may exceed what is free, as in Ray. */
  waited = false;

  constructor(world: Surroundings, number: number, size: NodeSize, logs: ReadonlyMap<number, LogFiles>, quota: TenantQuota) {
    this.#world = world;
    this.number = number;
    this.quota = quota;
    this.instance = `instance-${number}-${Math.floor(world.random() * 1e9)}`;
    this.live = new LiveDecisionPoint();
    const { bugs } = world;
    const decisions: PolicyDecisionPoint = this.#watched();
    this.core = new RayletCore({
      nodeId: `node-${number}`, nodeNumber: number, total: { cpuUnits: size.cpus * 10_000, memoryBytes: 2 ** 33, custom: undefined }, maxWorkers: 16, decisions, defaultIsolateBytes: 2 ** 26, labels: NO_LABELS, objectMemoryBytes: size.objectMemoryBytes, spillBytes: size.spillBytes, spreadMinBytes: 1, sharedQuotas: true,
      random: { bytes: (n) => Uint8Array.from({ length: n }, () => Math.floor(world.random() * 256)) }, sha256: () => CODE_DIGEST,
    });
    this.core.state.nowMs = this.nowMs();
    TENANTS.forEach((name, i) => {
      const log = new SimLog(logs.get(i + 1) as LogFiles, bugs.log);
      this.logs.set(i + 1, log);
      log.onAppend = (record) => this.#appended(i + 1, record);
      log.onRefused = () => this.#undone();
      let seen = log.durable;
      log.onDurable = (durable, failure) => {
        for (; seen < durable; seen++) this.#becameDurable(log.files.records[seen] as AuditRecord);
        if (failure !== undefined) this.#auditFailed(i + 1);
        for (const [key, box] of [...this.boxes]) if (key.job.tenant.number === i + 1) box.flush();
        this.flush();
      };
      this.core.setTenant(parseTenantName(name), i + 1, () => log, bugs.ignoresQuota === true ? { ...NO_QUOTA } : { ...quota, ...(bugs.ignoresProjects === true ? { projects: new Map<string, ProjectQuota>() } : {}) }, true);
    });
  }

  /** Steady time, which limits and waits go by: only the wall clock jumps. */
  nowMs(): number {
    return this.#world.nowMs();
  }

  #fail(what: string): never {
    throw new Error(`node ${this.number}: ${what}`);
  }

  // --- decisions and their records, watched -----------------------------------------------------------------------------

  #watched(): PolicyDecisionPoint {
    const { live } = this;
    const skipsWall = this.#world.bugs.skipsWall === true;
    const asked = (request: DecisionRequest): Decision => {
      if (this.#undocumented !== undefined) this.#fail(`audit: a decision on ${this.#undocumented.request.action} has no record`);
      this.#policyInForce();
      let decision = live.decide(request);
      if (skipsWall && request.action === 'object.get' && request.resource.attributes.tenant !== request.principal.tenant && request.resource.attributes.tenant !== '') decision = { allow: true, rule: 'canary', policyVersion: decision.policyVersion };
      this.decisions++;
      this.#undocumented = { request: { ...request }, decision };
      return decision;
    };
    return { get version() { return live.version; }, decide: asked };
  }

  #appended(log: number, record: AuditRecord): void {
    if (record.type !== 'decision') return;
    const open = this.#undocumented;
    // What was owed to a log comes before: also what others tried there.
    if (open !== undefined && TENANTS[log - 1] === open.request.principal.tenant && record.principal.includes(`/tenant/${TENANTS[log - 1]}/`)) {
      this.#undocumented = undefined;
      if (record.principal !== open.request.principal.spiffeId || record.action !== open.request.action || record.allow !== open.decision.allow || record.policyVersion !== open.decision.policyVersion) this.#fail(`audit: the record of a decision on ${open.request.action} says something else`);
    } else if (record.principal.includes(`/tenant/${TENANTS[log - 1]}/`) && record.rule !== 'budget') this.#fail(`audit: a record of ${record.action} without a decision`);
    if (!record.allow) return;
    // The oracle: what the files of this version say, and not what the snapshot made of them.
    const own = record.principal.includes(`/tenant/${TENANTS[log - 1]}/`);
    if (own && record.principal.endsWith('/user/bob') && !this.#world.mayBob(record.policyVersion, log)) this.#fail(`policy: bob was allowed ${record.action} by version ${record.policyVersion}, which gives him nothing`);
    const crosses = own && record.resource.length === 40 && TENANT_AT(record.resource) !== log;
    for (let i = 0; i < record.count; i++) {
      this.allowed.add(keyOf(record, i));
      if (!crosses) continue;
      const owner = TENANT_AT(record.resource);
      const entry = this.core.state.sessions.get(record.resource)?.objects.get(record.index + i);
      if (!['object.get', 'object.wait'].includes(record.action) || entry?.label !== 'published' || !this.#world.granted(record.policyVersion, owner, log)) this.#fail(`wall: ${record.principal} was allowed ${record.action} on ${record.resource}/${record.index + i} of ${TENANTS[owner - 1]} without a grant`);
      this.opened.add(`${log}|${record.resource}|${record.index + i}`);
    }
  }

  #becameDurable(record: AuditRecord): void {
    if (record.type !== 'decision') return;
    for (let i = 0; i < record.count; i++) {
      const key = keyOf(record, i);
      this.durableDecided.add(key);
      if (record.allow) this.durableAllowed.add(key);
    }
  }

  /** After each step: every decision has its record. */
  documented(): void {
    if (this.#undocumented !== undefined) this.#fail(`audit: a decision on ${this.#undocumented.request.action} has no record`);
  }

  /** A log that took no record threw: the decision came to nothing. */
  #undone(): void {
    this.#undocumented = undefined;
  }

  #auditFailed(tenant: number): void {
    for (const channel of [...this.core.state.channels.values()]) if (channel.job.tenant.number === tenant && channel.kind !== CHANNEL_KIND.SLOT) this.closeChannel(channel);
  }

  install(snapshot: PolicySnapshot): void {
    if (this.#world.bugs.stalePolicy === true && snapshot.version < this.live.version) {
      const stale = new LiveDecisionPoint(snapshot);
      this.live.decide = (request) => stale.decide(request);
      Object.defineProperty(this.live, 'version', { configurable: true, get: () => stale.version });
    } else this.live.swap(snapshot);
    this.#policyInForce();
  }

  /** Never an older one than was in force before, whatever comes late. */
  #policyInForce(): void {
    const { version } = this.live;
    if (version < this.#newestPolicy) this.#fail(`policy: version ${version} is in force after ${this.#newestPolicy}`);
    this.#newestPolicy = version;
  }

  // --- events -----------------------------------------------------------------------------------------------------------

  /** A batch of a client, read in pieces with whatever else happens in between. */
  clientBatch(link: string, channel: Channel, batch: Uint8Array): void {
    let at = 0;
    let held: HeldBatch | undefined;
    const piece = (): void => {
      if (channel.closed) return;
      const before = channel.job.tenant.tasks;
      try {
        at = this.core.clientBatch(channel, batch, this.nowMs(), 1 + Math.floor(this.#world.random() * 8), at, held);
      } catch (error) {
        if (!(error instanceof BulkheadError)) throw error;
        this.#undone();
        this.#world.note(`channel ${channel.number} on ${this.number} is closed: ${error.code} ${error.safeMessage}`);
        this.closeChannel(channel);
        return;
      }
      if (this.#world.bugs.releasesTwice === true) for (const entry of channel.session.objects.values()) if (entry.pins > 1 && this.#world.random() < 0.1) entry.pins--;
      if (this.#world.bugs.countsTwice === true && channel.job.tenant.tasks > before) channel.job.tenant.tasks++;
      held = this.core.state.held;
      this.flush();
      if (at < batch.length) this.#world.unshift(link, this, piece);
    };
    piece();
  }

  upstreamBatch(link: string, upstream: Upstream, batch: Uint8Array): void {
    let at = 0;
    const piece = (): void => {
      if (upstream.closed) return;
      try {
        at = this.core.upstreamBatch(upstream, batch, this.nowMs(), 1 + Math.floor(this.#world.random() * 8), at);
      } catch (error) {
        this.#undone();
        this.#fail(`an honest raylet's batch was not understood: ${String(error)}`);
      }
      this.flush();
      if (at < batch.length) this.#world.unshift(link, this, piece);
    };
    piece();
  }

  closeChannel(channel: Channel): void {
    this.core.state.nowMs = this.nowMs();
    if (!channel.closed) this.core.closeChannel(channel);
    this.#dropChannel(channel);
    this.flush();
  }

  #dropChannel(channel: Channel): void {
    if (!this.boxes.delete(channel)) return;
    if (channel.kind === CHANNEL_KIND.DRIVER) this.#world.driverClosed(channel);
    else if (channel.kind === CHANNEL_KIND.PEER) this.#world.peerClosed(channel);
  }

  adopt(channel: Channel): void {
    const write = channel.kind === CHANNEL_KIND.DRIVER ? (batch: Uint8Array) => this.#world.toDriver(channel, batch)
      : channel.kind === CHANNEL_KIND.PEER ? (batch: Uint8Array) => this.#world.toPeer(channel, batch)
        : (batch: Uint8Array) => this.#toGuest(channel.slot as Slot, batch);
    this.boxes.set(channel, this.#outbox(channel.job.tenant.number, write));
  }

  #outbox(tenant: number, write: (batch: Uint8Array) => void): Outbox {
    const log = this.logs.get(tenant) as SimLog;
    // A canary: replies leave as if every record were on disk.
    return new Outbox(this.#world.bugs.repliesEarly === true ? { append: (r) => log.append(r), get durable() { return log.size; }, onDurable: undefined } : log, write);
  }

  upstreamClosed(upstream: Upstream, code: 'UNAVAILABLE' | 'UNAUTHENTICATED'): void {
    if (upstream.closed) return;
    this.core.state.nowMs = this.nowMs();
    this.core.upstreamClosed(upstream, { code, message: 'the connection to another node was lost', stack: '' });
    this.flush();
  }

  tick(): void {
    this.core.tick(this.nowMs(), () => 0);
    this.flush();
    // Sessions of other raylets and of drivers end with their credential.
    for (const channel of [...this.core.state.channels.values()]) if (channel.kind !== CHANNEL_KIND.SLOT && channel.job.credentialEndsMs <= this.nowMs() && this.#world.bugs.ignoresExpiry !== true) this.closeChannel(channel);
  }

  /** What takes a while and is not of the core. */
  later(event: () => void): void {
    this.#world.push(`later ${this.number}`, this, event);
  }

  stopJob(id: Parameters<RayletCore['stopJob']>[0]): void {
    this.core.state.nowMs = this.nowMs();
    this.core.stopJob(id, 'stopped');
    this.flush();
  }

  releaseDrivers(id: Parameters<RayletCore['releaseDrivers']>[0]): void {
    this.core.state.nowMs = this.nowMs();
    this.core.releaseDrivers(id, 'ended');
    this.flush();
  }

  // --- effects ----------------------------------------------------------------------------------------------------------

  flush(): void {
    this.touched = true;
    const core = this.core.state;
    do {
      while (core.out.length > 0) {
        const effects = core.out;
        core.out = [];
        for (const effect of effects) this.#execute(effect);
      }
      while (core.dirtyChannels.length > 0) {
        const channel = core.dirtyChannels.pop() as Channel;
        channel.dirty = false;
        const { needed } = channel;
        channel.needed = -1;
        const box = this.boxes.get(channel);
        const cut = channel.cut.splice(0);
        const rest = channel.out.length === 0 ? undefined : channel.out.take();
        if (box === undefined) continue;
        for (const part of cut) box.push(part.batch, part.needed);
        if (rest !== undefined) box.push(rest, needed);
        channel.answeredBytes = 0;
        if (channel.deferred.length > 0) this.core.answerDeferred(channel);
      }
      while (core.dirtyUpstreams.length > 0) {
        const upstream = core.dirtyUpstreams.pop() as Upstream;
        upstream.dirty = false;
        const { needed } = upstream;
        upstream.needed = -1;
        const box = this.boxes.get(upstream);
        const cut = upstream.cut.splice(0);
        if (box === undefined) continue;
        for (const part of cut) box.push(part.batch, part.needed);
        if (upstream.out.length > 0) box.push(upstream.out.take(), needed);
      }
    } while (core.out.length > 0 || core.dirtyChannels.length > 0 || core.dirtyUpstreams.length > 0);
  }

  #path(tenant: { readonly name: string }, fileName: string): string {
    return `${tenant.name}/${fileName}`;
  }

  /** Undefined: it never came to be, by a fault of the disk or the worker. */
  #file(path: string): { readonly tag: number; readonly size: number; readonly written: number } | undefined {
    const file = this.files.get(path);
    if (file === undefined && !this.#unwritten.has(path)) this.#fail(`files: ${path} is read and is not there`);
    return file;
  }

  #execute(e: Effect): void {
    const { core } = this;
    switch (e.type) {
      case 'start-worker': {
        this.pools.set(e.worker, new Map());
        const fails = this.#world.random() < 0.02;
        this.#world.push(`worker ${this.number}/${e.worker.key}`, this, () => {
          if (e.worker.state === 'DEAD' || !this.pools.has(e.worker)) return;
          if (fails) {
            this.pools.delete(e.worker);
            core.workerDelayed(e.worker, 20, this.nowMs());
          } else core.workerStarted(e.worker, this.nowMs());
          this.flush();
        });
        return;
      }
      case 'kill-worker': return this.killWorker(e.worker, e.reason !== 'MISBEHAVED');
      case 'open-slot': {
        const pool = this.pools.get(e.slot.worker);
        if (pool === undefined) return;
        pool.set(e.slot.number, e.slot);
        this.#guests.set(e.slot, { execs: new Map(), productions: new Map(), nextSeq: 1, nextRequest: 1, defined: false });
        return this.adopt(e.slot.channel);
      }
      case 'close-slot':
        this.pools.get(e.slot.worker)?.delete(e.slot.number);
        core.slotClosed(e.slot);
        return this.#dropChannel(e.slot.channel);
      case 'attach': {
        const file = this.#file(this.#path(e.slot.job.tenant, e.fileName));
        return file === undefined ? this.killWorker(e.slot.worker, false) : this.#mayHave(e.slot.job.tenant.number, file.tag, e.fileName);
      }
      case 'seal-staged': {
        // A full disk, or a worker that announced what it did not write.
        if (this.full || !this.pools.has(e.worker) || this.#world.random() < 0.01) {
          this.#unwritten.add(this.#path(e.worker.tenant, e.fileName));
          core.sealFailed(e.entry, e.fileName);
          return this.killWorker(e.worker, false);
        }
        this.files.set(this.#path(e.worker.tenant, e.fileName), { tag: e.worker.tenant.number, size: e.size, written: e.size });
        return;
      }
      case 'write-part': {
        const path = this.#path(e.tenant, e.fileName);
        if (this.full) {
          this.#unwritten.add(path);
          if (e.fileName.startsWith('in-')) core.transferFailed(e.fileName, { code: 'RESOURCE_EXHAUSTED', message: 'the disk is full', stack: '' });
          else for (const channel of [...core.state.channels.values()]) if (channel.job.tenant === e.tenant && channel.puts.size > 0) this.closeChannel(channel);
          return;
        }
        const file = this.files.get(path) ?? { tag: e.bytes[0] as number, size: 0, written: 0 };
        if (file.written !== e.offset) this.#fail(`files: ${path} is written at ${e.offset} and has ${file.written} octets`);
        file.written = file.size = e.offset + e.bytes.length;
        this.files.set(path, file);
        return;
      }
      case 'copy-file': {
        const from = this.#file(this.#path(e.from, e.fileName));
        if (this.full || from === undefined) {
          this.#unwritten.add(this.#path(e.to, e.copyName));
          return core.copyFailed(e.to, e.copyName);
        }
        this.files.set(this.#path(e.to, e.copyName), { ...from });
        return;
      }
      case 'delete-file':
        // One whose writing failed was never there.
        this.files.delete(this.#path(e.tenant, e.fileName));
        return;
      case 'stream-file': {
        const file = this.#file(this.#path(e.owner, e.fileName));
        if (file === undefined) return core.valueLost(e.channel, e.request, e.position, e.needed);
        const { tag, size } = file;
        const out = new FrameWriter(256);
        if (e.channel.kind === CHANNEL_KIND.PEER && !core.mayCross(e.entry, new Uint8Array(32))) this.#fail('objects: a digest changed');
        if (e.refs !== undefined) out.begin(OP.VALUE_REFS).u32(e.request).u32(e.position).refs(e.refs).end();
        if (e.channel.kind === CHANNEL_KIND.PEER) out.begin(OP.VALUE_DIGEST).u32(e.request).u32(e.position).raw(new Uint8Array(32)).end();
        const bytes = new Uint8Array(size);
        bytes[0] = tag;
        const half = Math.floor(size / 2);
        out.begin(OP.VALUE_CHUNK).u32(e.request).u32(e.position).u64(size).u64(0).raw(bytes.subarray(0, half)).end();
        out.begin(OP.VALUE_CHUNK).u32(e.request).u32(e.position).u64(size).u64(half).raw(bytes.subarray(half)).end();
        this.boxes.get(e.channel)?.push(out.take(), e.needed);
        return;
      }
      case 'check-file':
        return core.fileChecked(e.upstream, e.request, e.fileName, this.#file(this.#path(e.tenant, e.fileName)) !== undefined);
      case 'open-upstream':
        this.boxes.set(e.upstream, this.#outbox(e.upstream.job.tenant.number, (batch) => this.#forwards(e.upstream, batch)));
        return this.#world.open(this, e.upstream, e.depth);
      case 'close-upstream':
        this.boxes.delete(e.upstream);
        return this.#world.close(this, e.upstream);
      case 'close-channel': return this.#dropChannel(e.channel);
      case 'stream-code': {
        e.upstream.codeOut.begin(OP.CODE).raw(CODE_DIGEST).u32(CODE.length).u32(0).raw(CODE).end();
        this.boxes.get(e.upstream)?.push(e.upstream.codeOut.take(), -1);
        return;
      }
      case 'credential': return this.#world.renew(this, e.channel, e.credential);
      case 'register-name':
        return this.#world.push(`names ${this.number}`, this, () => {
          core.nameRegistered(e.actor, this.#world.random() < 0.1 ? { code: 'INVALID_ARGUMENT', message: 'the name is taken', stack: '' } : undefined);
          this.flush();
        });
      case 'lookup-name':
        return this.#world.push(`names ${this.number}`, this, () => {
          core.nameFound(e.channel, e.request, undefined, e.auditSeq);
          this.flush();
        });
      case 'spill-file': {
        const path = this.#path(e.tenant, e.spillName);
        this.spilling.add(path);
        this.#world.count('an object goes to disk');
        return this.#world.push(`disk ${this.number}`, this, () => {
          this.spilling.delete(path);
          const file = this.files.get(this.#path(e.tenant, e.fileName));
          const failure = file !== undefined && !this.full && this.#world.random() > 0.03 ? undefined : { code: 'RESOURCE_EXHAUSTED' as const, message: 'the disk is full', stack: '' };
          if (failure === undefined) this.spills.set(path, { key: hex(e.id), version: e.version, tag: file?.tag ?? 0, size: e.size });
          core.spilled(e.entry, e.fileName, e.spillName, e.size, failure, this.nowMs());
          this.flush();
        });
      }
      case 'restore-file':
        this.#world.count('an object comes back from disk');
        return this.#world.push(`disk ${this.number}`, this, () => {
          const path = this.#path(e.tenant, e.spillName);
          const copy = this.spills.get(path);
          const tag = this.#world.bugs.restoresAnother === true ? 1 + (copy?.tag ?? 0) % TENANTS.length : (copy?.tag ?? 0);
          const dice = this.#world.random();
          const same = copy !== undefined && copy.key === hex(e.id) && copy.version === e.version;
          // Not for an object that has gone meanwhile, with its copy.
          if (!same && e.entry.spillName === e.spillName) this.#fail(`spilling: ${path} is to come back as write ${e.version} of ${hex(e.id)}, and is ${copy === undefined ? 'not there' : `write ${copy.version} of ${copy.key}`}`);
          const lost = !same || dice < 0.02;
          if (lost) this.mayLose = true;
          const failure = lost ? { code: 'OBJECT_LOST' as const, message: 'its copy on disk was changed', stack: '' } : dice < 0.06 ? { code: 'UNAVAILABLE' as const, message: 'the disk does not answer', stack: '' } : undefined;
          if (failure === undefined) this.files.set(this.#path(e.tenant, e.fileName), { tag, size: e.size, written: e.size });
          core.restored(e.entry, e.spillName, e.fileName, e.size, failure, this.nowMs());
          this.flush();
        });
      case 'delete-spill':
        if (this.#world.bugs.keepsSpills !== true) this.spills.delete(this.#path(e.tenant, e.spillName));
        return;
      // None is reserved in these runs.
      case 'register-group': case 'release-group': case 'lookup-group': return this.#fail(`${e.type} was not expected`);
      case 'load-code': case 'store-code': case 'delete-code': case 'release-name': case 'log': return;
    }
  }

  /** Calls leave for another raylet only when the record of their decision is on disk. */
  #forwards(upstream: Upstream, batch: Uint8Array): void {
    const r = new FrameReader().reset(batch);
    while (r.next()) {
      if (r.op === OP.SUBMIT || r.op === OP.CALL_ACTOR || r.op === OP.CREATE_ACTOR) {
        r.u32();
        const seq = r.u32();
        for (const task of upstream.tasks) {
          if (task.remoteSeq === seq && task.auditSeq >= (this.logs.get(upstream.job.tenant.number) as SimLog).durable) this.#fail(`audit: call ${task.seq} left for node ${upstream.nodeNumber} before its record was on disk`);
        }
      }
      r.skipRest();
    }
    this.#world.write(this, upstream, batch);
  }

  /** A reader of this tenant gets bytes of that one. */
  #mayHave(reader: number, tag: number, what: string): void {
    if (tag !== reader && tag !== 0xf6 && ![...this.opened].some((key) => key.startsWith(`${reader}|`))) this.#fail(`wall: tenant ${TENANTS[reader - 1]} got bytes of ${TENANTS[tag - 1]} (${what})`);
  }

  // --- workers and isolates -----------------------------------------------------------------------------------------------

  killWorker(worker: Worker, ours: boolean): void {
    const pool = this.pools.get(worker);
    if (!this.pools.delete(worker)) return;
    for (const h of [...this.hanging]) if (h.slot.worker === worker) this.hanging.delete(h);
    if (this.#world.bugs.losesExits === true && this.#world.random() < 0.3) return;
    this.#world.push(`exit ${this.number}/${worker.key}`, this, () => {
      const { available } = this.core.state;
      this.core.state.nowMs = this.nowMs();
      this.core.workerExited(worker, { code: 'WORKER_DIED', message: 'killed', stack: '' }, ours, this.nowMs());
      if (this.#world.bugs.keepsResources === true && this.core.state.available.cpuUnits > available.cpuUnits) this.core.state.available = available;
      for (const slot of pool?.values() ?? []) this.#dropChannel(slot.channel);
      this.flush();
    });
  }

  anyWorker(): Worker | undefined {
    const workers = [...this.pools.keys()].filter((w) => w.state === 'ALIVE');
    return workers[Math.floor(this.#world.random() * workers.length)];
  }

  #toGuest(slot: Slot, batch: Uint8Array): void {
    this.#world.push(`slot ${this.number}/${slot.worker.key}/${slot.number}`, this, () => this.#guest(slot, batch));
  }

  #here(slot: Slot): boolean {
    return this.pools.get(slot.worker)?.get(slot.number) === slot;
  }

  #say(slot: Slot, write: (out: FrameWriter) => void): void {
    const out = new FrameWriter(256);
    write(out);
    const batch = out.take();
    const link = `from ${this.number}/${slot.worker.key}/${slot.number}`;
    let at = 0;
    let held: HeldBatch | undefined;
    const piece = (): void => {
      if (!this.#here(slot)) return;
      try {
        at = this.core.guestBatch(slot, batch, this.nowMs(), 1 + Math.floor(this.#world.random() * 4), at, held);
      } catch (error) {
        if (!(error instanceof BulkheadError)) throw error;
        this.#undone();
        this.killWorker(slot.worker, false);
        this.flush();
        return;
      }
      held = this.core.state.held;
      this.flush();
      if (at < batch.length) this.#world.unshift(link, this, piece);
    };
    this.#world.push(link, this, piece);
  }

  /** Before its code runs: the call was allowed, its job is not revoked, and its arguments may be read by its tenant. */
  #mayRun(slot: Slot, task: Task): void {
    const { prefixHex } = task.channel.session;
    const action = task.template.kind === CALL_KIND.TASK ? 'task.submit' : task.template.kind === CALL_KIND.ACTOR_CLASS ? 'actor.create' : 'actor.call';
    if (action === 'actor.call') {
      const actor = slot.actor as NonNullable<Slot['actor']>;
      if (!this.allowed.has(`${task.channel.principal.spiffeId}|actor.call|${actor.session.prefixHex}|${actor.index}`)) this.#fail(`audit: a call of actor ${actor.index} runs without a decision`);
    } else if (!this.allowed.has(`${task.channel.principal.spiffeId}|${action}|${prefixHex}|${task.seq}`)) this.#fail(`audit: ${action} ${prefixHex}/${task.seq} runs without a decision`);
    const { submitter, issuedMs } = slot.job;
    if (this.revocations.isIdentityRevoked(submitter.spiffeId, issuedMs)) this.#fail(`revoked: a call of ${submitter.spiffeId} runs after its revocation was in force here`);
    for (const entry of task.deps ?? []) this.#mayRead(slot, entry);
  }

  #mayRead(slot: Slot, entry: ObjectEntry): void {
    const reader = slot.job.tenant.number;
    if (entry.session.tenant.number !== reader && !this.opened.has(`${reader}|${entry.session.prefixHex}|${entry.index}`)) this.#fail(`wall: a call of ${slot.job.tenant.name} got ${entry.session.prefixHex}/${entry.index} of ${entry.session.tenant.name}`);
  }

  #guest(slot: Slot, batch: Uint8Array): void {
    if (!this.#here(slot)) return;
    const guest = this.#guests.get(slot) as Guest;
    const tenant = slot.job.tenant.number;
    const r = new FrameReader().reset(batch);
    const answerNested = (request: number): void => {
      for (const [exec, state] of guest.execs) if (state.request === request) this.#returns(slot, exec, 1);
    };
    while (r.next()) {
      if (r.op === OP.VALUE || r.op === OP.VALUE_FAILED || r.op === OP.VALUE_ATTACHED) {
        const request = r.u32();
        r.u32();
        if (r.op === OP.VALUE) this.#mayHave(tenant, r.u8(), 'a nested get');
        answerNested(request);
      } else if (r.op === OP.PULL) {
        const exec = r.u32();
        const production = guest.productions.get(exec);
        const told = { skip: r.u32(), upTo: r.u32(), room: r.u64() };
        if (production !== undefined) this.#produce(slot, guest, exec, Object.assign(production, told));
      } else if (r.op === OP.CANCEL_EXEC) {
        const exec = r.u32();
        if (guest.productions.delete(exec)) this.#say(slot, (out) => out.begin(OP.FAILURE).u32(exec).str('CANCELLED').text('').text('').end());
        for (const h of [...this.hanging]) {
          if (h.slot !== slot || h.exec !== exec) continue;
          this.hanging.delete(h);
          this.#say(slot, (out) => out.begin(OP.FAILURE).u32(exec).str('CANCELLED').text('').text('').end());
        }
      } else if (r.op === OP.EXEC) {
        if (this.#exec(slot, guest, r)) return;
        continue;
      }
      r.skipRest();
    }
  }

  /** True when the worker is gone. */
  #exec(slot: Slot, guest: Guest, r: FrameReader): boolean {
    const tenant = slot.job.tenant.number;
    const exec = r.u32();
    const kind = r.u8();
    r.u32();
    r.u32();
    r.u32();
    const task = slot.execs.get(exec);
    const d = r.u16();
    for (let i = 0; i < d; i++) {
      r.u16();
      if ((r.u8() & 1) === 0) this.#mayHave(tenant, r.bytes(2 ** 22)[0] as number, 'an argument');
      else r.u32();
    }
    const [what = 0, arg = 0] = r.rest();
    // It was taken back while it was on its way: an isolate runs it all the same, and nobody hears of it.
    if (task !== undefined) this.#mayRun(slot, task);
    this.runs++;
    this.#world.note(`node ${this.number} runs ${kind}/${what} exec ${exec} of ${slot.job.tenant.name}`);
    const returns = kind === 1 ? 0 : (task?.template.options.returns ?? 1);
    switch (what) {
      case DO.DIE:
        this.killWorker(slot.worker, false);
        return true;
      case DO.THROW:
        this.#say(slot, (out) => out.begin(OP.FAILURE).u32(exec).str('TASK_FAILED').text('boom').text('').end());
        return false;
      case DO.STREAM:
        // It gives its place up while its reader has no room.
        this.waited = true;
        guest.productions.set(exec, { total: arg, made: 0, skip: 0, upTo: 0, room: 0, sent: 0 });
        return false;
      case DO.HANG:
        this.hanging.add({ slot, exec });
        return false;
      case DO.EXIT:
        if (slot.actor !== undefined) this.#say(slot, (out) => out.begin(OP.EXIT).u32(exec).end());
        else this.#returns(slot, exec, returns);
        return false;
      case DO.LIE:
        // A hostile isolate: noise, or results of calls that it was never given.
        this.#say(slot, (out) => (arg % 2 === 0 ? out.begin(OP.RESULT).u32(exec + 1_000).u8(1).u8(0).u32(0).bytes(Uint8Array.of(tenant)).end() : out.begin(OP.RESULT).u32(exec).u8(9).raw(new Uint8Array(arg)).end()));
        if (arg % 2 === 0) this.#returns(slot, exec, returns);
        return false;
      case DO.NEST: {
        if (kind !== CALL_KIND.TASK) break;
        this.waited = true;
        const seq = guest.nextSeq++;
        const request = guest.nextRequest++;
        guest.execs.set(exec, { what, request });
        this.#say(slot, (out) => {
          if (!guest.defined) out.begin(OP.DEFINE).u32(1).u8(CALL_KIND.TASK).raw(CODE_DIGEST).str('nested').str('').text('{}').end();
          guest.defined = true;
          out.begin(OP.SUBMIT).u32(exec).u32(seq).u32(1).u16(0).u32(0).raw(Uint8Array.of(DO.RETURN, 0)).end();
          out.begin(OP.GET).u32(exec).u32(request).refs([makeId(slot.channel.session.prefix, seq)]).end();
        });
        return false;
      }
      case DO.PUT: {
        const seq = guest.nextSeq++;
        this.#say(slot, (out) => {
          out.begin(OP.PUT).u32(exec).u32(seq).refs([]).raw(Uint8Array.of(tenant, 1)).end();
          this.#result(out, slot, exec, returns, [makeId(slot.channel.session.prefix, seq)], false);
        });
        return false;
      }
      case DO.BORROW: {
        const refs = (task?.contained ?? []).map((entry) => makeId(entry.session.prefix, entry.index));
        this.#say(slot, (out) => this.#result(out, slot, exec, returns, refs, false));
        return false;
      }
      default: break;
    }
    this.#say(slot, (out) => this.#result(out, slot, exec, returns, [], what === DO.LARGE));
    return false;
  }

  /** As the executor in the isolate: as far as there is room. */
  #produce(slot: Slot, guest: Guest, exec: number, p: Production): void {
    while (p.made < p.upTo && p.sent < p.room) {
      const number = p.made;
      if (number === p.total) {
        guest.productions.delete(exec);
        return this.#say(slot, (out) => out.begin(OP.RESULT).u32(exec).u8(0).end());
      }
      if (p.made++ < p.skip) continue;
      const large = number % LARGE_ITEM === LARGE_ITEM - 1;
      p.sent += large ? LARGE_BYTES : 2;
      this.#say(slot, (out) => {
        out.begin(OP.ITEM).u32(exec).u8(large ? 1 : 0).u32(0);
        if (large) out.u32(number).u64(LARGE_BYTES);
        else out.raw(Uint8Array.of(slot.job.tenant.number, number));
        out.end();
      });
    }
  }

  #returns(slot: Slot, exec: number, returns: number): void {
    this.#guests.get(slot)?.execs.delete(exec);
    this.#say(slot, (out) => this.#result(out, slot, exec, returns, [], false));
  }

  #result(out: FrameWriter, slot: Slot, exec: number, returns: number, refs: readonly Uint8Array[], large: boolean): void {
    out.begin(OP.RESULT).u32(exec).u8(returns);
    for (let i = 0; i < returns; i++) {
      if (large) out.u8(1).refs(refs).u32(i).u64(LARGE_BYTES);
      else out.u8(0).refs(refs).bytes(Uint8Array.of(slot.job.tenant.number, 7));
    }
    out.end();
  }

  /** An item that a driver is told follows from the decision on its call, on disk. */
  mayStream(channel: Channel, seq: number): void {
    if (!this.durableAllowed.has(`${channel.principal.spiffeId}|task.submit|${channel.session.prefixHex}|${seq}`)) this.#fail(`audit: an item of ${seq} was told before the record of its call was on disk`);
  }

  /** What a driver is told of an object follows from decisions that are on disk. */
  mayAnswer(channel: Channel, id: Uint8Array, value: boolean, call: { readonly action: string; readonly prefixHex: string; readonly index: number } | undefined): void {
    const prefixHex = hex(id.subarray(0, 20));
    const key = `${channel.principal.spiffeId}|object.get|${prefixHex}|${idIndex(id)}`;
    if (!(value ? this.durableAllowed : this.durableDecided).has(key)) this.#fail(`audit: ${prefixHex}/${idIndex(id)} was answered before the decision on it was on disk`);
    if (value && call !== undefined && !this.durableAllowed.has(`${channel.principal.spiffeId}|${call.action}|${call.prefixHex}|${call.index}`)) this.#fail(`audit: the result of ${call.action} ${call.index} was told before its record was on disk`);
    if (value && idWord(id, 0) !== channel.job.tenant.number && !this.opened.has(`${channel.job.tenant.number}|${prefixHex}|${idIndex(id)}`)) this.#fail(`wall: ${channel.principal.spiffeId} got ${prefixHex}/${idIndex(id)} without a grant`);
  }
}

function keyOf(record: AuditRecord & { readonly type: 'decision' }, i: number): string {
  return `${record.principal}|${record.action}|${record.resource}|${record.index < 0 ? record.index : record.index + i}`;
}
