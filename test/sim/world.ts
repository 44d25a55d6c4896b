/**
 * A cluster of real raylet cores in one thread: links, workers, audit disks and clients are queues that a seeded random source
 * drains in any order (first in, first out per link). The same seed replays the same run.
 */
import type { AuditLog, AuditRecord } from '../../src/base/audit-record.ts';
import type { DecisionRequest, PolicyDecisionPoint } from '../../src/base/decision.ts';
import { CALL_KIND, FrameReader, FrameWriter, NO_ITEM, OP } from '../../src/base/frame.ts';
import { hex, parseTenantName, type JobId } from '../../src/base/ids.ts';
import { principalFromSpiffeId } from '../../src/base/principal.ts';
import { makeId } from '../../src/raylet/core/core.ts';
import { RayletCore } from '../../src/raylet/core/raylet-core.ts';
import { CHANNEL_KIND, type Channel, type Failure, type HeldBatch, type Job, type Slot, type TenantState, type Upstream, type Worker } from '../../src/raylet/core/state.ts';
import { NO_QUOTA, type TenantQuota } from '../../src/base/tenant-quota.ts';

/** mulberry32: small, fast and good enough to choose what happens next. */
export function seeded(seed: number): () => number {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = a;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  };
}

/** What a simulated function does: the first octet of its argument payload. */
export const DO = { RETURN: 0, THROW: 1, DIE: 2, HANG: 3, NEST: 4, LARGE: 5, LOG: 6, EXIT: 7, STREAM: 8, STREAM_THROW: 9, KEEP: 10, PASS: 11, GIVE: 12, FORGET: 13 } as const;
/** Every so many items of a simulated stream is a large one. */
const LARGE_ITEM = 5;
export const LARGE_ITEM_BYTES = 200_000;
/** Every large value of a simulation is served by whoever has it. */
const SPREAD_MIN = 150_000;

export class SimLog implements AuditLog {
  readonly records: AuditRecord[] = [];
  durable = 0;
  onDurable: ((durable: number) => void) | undefined = undefined;

  append(record: AuditRecord): number {
    this.records.push(record);
    return this.records.length - 1;
  }

  commit(): void {
    this.durable = this.records.length;
    this.onDurable?.(this.durable);
  }
}

export class SimNode {
  readonly core: RayletCore;
  readonly logs = new Map<number, SimLog>();
  readonly pools = new Map<Worker, Map<number, Slot>>();
  /** Names of files in memory, and of those on disk with the write that they are. */
  readonly files = new Set<string>();
  readonly spills = new Map<string, number>();

  constructor(core: RayletCore) {
    this.core = core;
  }
}

interface ClientCall {
  readonly request: number;
  readonly refs: readonly Uint8Array[];
  readonly answers: (string | undefined)[];
}

/** A stream as its reader keeps the books of it. */
export interface SimStream {
  readonly seq: number;
  readonly window: number;
  readonly indexes: number[];
  /** What came: the number that an item carries, -1 for one that came as a ref. */
  readonly items: number[];
  readonly ids: Uint8Array[];
  taken: number;
  end: string | undefined;
}

interface SimProduction {
  readonly total: number;
  readonly fails: boolean;
  made: number;
  skip: number;
  upTo: number;
  room: number;
  sent: number;
}

/** A driver that keeps the books: what it submitted and what it was told. */
export class SimClient {
  readonly world: World;
  readonly node: SimNode;
  readonly channel: Channel;
  readonly prefix: Uint8Array;
  readonly calls = new Map<number, ClientCall>();
  readonly ready = new Map<number, number[]>();
  readonly answers: string[] = [];
  readonly streams = new Map<number, SimStream>();
  /** Highest audit record any delivered batch needed, against what was durable then. */
  nextSeq = 1;
  nextRequest = 1;
  readonly out = new FrameWriter();
  /** Codes and messages of what failed. */
  readonly failed: string[] = [];
  readonly stacks: string[] = [];
  readonly reasons: string[] = [];
  /** What requests were answered with. */
  readonly done: string[] = [];
  readonly refused: string[] = [];

  constructor(world: World, node: SimNode, channel: Channel) {
    this.world = world;
    this.node = node;
    this.channel = channel;
    this.prefix = channel.session.prefix;
  }

  id(index: number): Uint8Array {
    return makeId(this.prefix, index);
  }

  define(template: number, kind: number, options: object, name = 'f'): void {
    this.out.begin(OP.DEFINE).u32(template).u8(kind).raw(CODE_DIGEST).str(kind === CALL_KIND.ACTOR_METHOD ? '' : name).str(kind === CALL_KIND.ACTOR_METHOD ? name : '').text(JSON.stringify(options)).end();
  }

  call(op: number, template: number, what: number, deps: readonly Uint8Array[] = [], actor?: Uint8Array, returns = 1, contained: readonly Uint8Array[] = [], arg = 7): Uint8Array {
    const seq = this.nextSeq;
    this.nextSeq += returns;
    this.out.begin(op).u32(0).u32(seq).u32(template);
    if (actor !== undefined) this.out.raw(actor);
    this.out.u16(deps.length);
    deps.forEach((id, i) => this.out.u16(i).raw(id));
    this.out.refs(contained).raw(Uint8Array.of(what, arg)).end();
    return makeId(this.prefix, seq);
  }

  /** Calls what streams `total` items, and grants the first of them. */
  stream(op: number, template: number, total: number, window: number, options: { actor?: Uint8Array; deps?: readonly Uint8Array[]; fails?: boolean } = {}): SimStream {
    this.call(op, template, options.fails === true ? DO.STREAM_THROW : DO.STREAM, options.deps ?? [], options.actor, 1, [], total);
    const stream: SimStream = { seq: this.nextSeq - 1, window, indexes: [], items: [], ids: [], taken: 0, end: undefined };
    this.streams.set(stream.seq, stream);
    this.more(stream, window);
    return stream;
  }

  more(stream: SimStream, count: number, taken = 0): void {
    const first = this.nextSeq;
    this.nextSeq += count;
    for (let i = 0; i < count; i++) stream.indexes.push(first + i);
    this.out.begin(OP.MORE).u32(0).u32(stream.seq).u32(0).u32(NO_ITEM).u32(taken).u32(first).u32(count).end();
  }

  /** Takes what has come and makes room for as much. */
  take(stream: SimStream): void {
    const count = stream.items.length - stream.taken;
    if (count === 0 || stream.end !== undefined) return;
    stream.taken += count;
    this.more(stream, count, count);
  }

  putSmall(): Uint8Array {
    const seq = this.nextSeq++;
    this.out.begin(OP.PUT).u32(0).u32(seq).refs([]).raw(Uint8Array.of(0xf6)).end();
    return makeId(this.prefix, seq);
  }

  /** Puts a value of so many octets, which becomes a file. */
  putLarge(size: number): Uint8Array {
    const seq = this.nextSeq++;
    this.out.begin(OP.PUT_CHUNK).u32(0).u32(seq).u64(size).u64(0).raw(new Uint8Array(size)).end();
    return makeId(this.prefix, seq);
  }

  get(refs: readonly Uint8Array[]): ClientCall {
    const call: ClientCall = { request: this.nextRequest++, refs, answers: refs.map(() => undefined) };
    this.calls.set(call.request, call);
    this.out.begin(OP.GET).u32(0).u32(call.request).refs(refs).end();
    return call;
  }

  release(refs: readonly Uint8Array[]): void {
    this.out.begin(OP.RELEASE).refs(refs).end();
  }

  cancel(ref: Uint8Array, force: boolean): void {
    this.out.begin(OP.CANCEL).u32(0).u32(this.nextRequest++).raw(ref).u8(force ? 1 : 0).end();
  }

  flush(): void {
    if (this.out.length > 0) {
      const batch = this.out.take();
      this.world.pushBatch(`client ${this.channel.number}`, this.node, batch, (...piece) => (this.channel.closed ? batch.length : this.node.core.clientBatch(this.channel, batch, this.world.nowMs, ...piece)));
    }
  }

  receive(batch: Uint8Array): void {
    const r = new FrameReader().reset(batch);
    const settle = (answer: string): void => {
      const call = this.calls.get(r.u32());
      const position = r.u32();
      if (call === undefined) throw new Error('an answer to nothing');
      if (call.answers[position] !== undefined) throw new Error(`answered twice: ${call.answers[position]} and ${answer}`);
      call.answers[position] = answer;
    };
    while (r.next()) {
      if (r.op === OP.VALUE || r.op === OP.VALUE_CHUNK) settle('value');
      else if (r.op === OP.VALUE_FAILED) {
        settle('failed');
        this.failed.push(r.str());
        this.reasons.push(r.text(65_536));
        this.stacks.push(r.text(65_536));
      } else if (r.op === OP.DONE) {
        r.u32();
        this.done.push(r.text(65_536));
      } else if (r.op === OP.FAILED) {
        r.u32();
        this.refused.push(r.str());
      } else if (r.op === OP.STREAM_ITEM) {
        const stream = this.streams.get(r.u32()) as SimStream;
        const form = r.u8();
        if (stream.end !== undefined) throw new Error('an item after the end');
        const index = stream.indexes.shift();
        if (index === undefined) throw new Error('an item that was not granted');
        stream.ids.push(makeId(this.prefix, index));
        stream.items.push(form === 0 ? (r.u8() as number) : -1);
      } else if (r.op === OP.STREAM_END) {
        const stream = this.streams.get(r.u32());
        r.u32();
        const end = r.str() || 'done';
        // A grant that crosses the end on its way is answered by the same end again.
        if (stream?.end !== undefined && (stream.end !== end || end === 'done')) throw new Error('a stream ended twice');
        if (stream !== undefined) stream.end = end;
      }
      r.skipRest();
    }
  }
}

const NOTHING = new Uint8Array();
const CODE = new Uint8Array([1, 2, 3]);
/** The simulation's hash: constant, since only equality with what was announced counts. */
const CODE_DIGEST = new Uint8Array(32).fill(9);

export interface WorldOptions {
  readonly nodes: number;
  readonly cpus: number;
  readonly seed: number;
  readonly decide?: (request: DecisionRequest) => boolean;
  /** Of the nodes in their order. */
  readonly labels?: readonly Readonly<Record<string, string>>[];
  /** Of both tenants, on every node. */
  readonly quota?: Partial<TenantQuota>;
  /** Batches are read in pieces of this many frames at most, with whatever else happens in between. */
  readonly pieces?: number;
  /** Milliseconds for which the crash-loop breaker lets a tenant start no worker. */
  readonly startsIn?: (tenant: string, nowMs: number) => number;
  /** Of every node; everything stays in memory where they are left out. */
  readonly objectMemoryBytes?: number;
  readonly spillBytes?: number;
  /** What comes of a write to disk or a read back. */
  readonly disk?: (what: 'write' | 'read') => Failure | undefined;
  /** What becomes of a large value on its way to another raylet: `go` lets it arrive; `wrong` makes it other octets. */
  readonly transfer?: (from: number, to: string, go: (how?: 'wrong') => void) => void;
}

export class World {
  readonly random: () => number;
  readonly #startsIn: (tenant: string, nowMs: number) => number;
  readonly #disk: (what: 'write' | 'read') => Failure | undefined;
  readonly #transfer: WorldOptions['transfer'];
  /** Files that are not what was sent. */
  readonly #wrong = new Set<string>();
  readonly nodes: SimNode[] = [];
  nowMs = 1_000_000;
  readonly #queues = new Map<string, (() => void)[]>();
  readonly #held: { readonly log: SimLog; readonly needed: number; readonly go: () => void; readonly key: object }[] = [];
  /** Whether nodes report what they have left. */
  reporting = true;
  /** What a node knows of another, by both. */
  readonly #told = new Map<string, string>();
  readonly #labels = new Map<SimNode, Readonly<Record<string, string>>>();
  readonly hanging = new Set<{ node: SimNode; slot: Slot; exec: number }>();
  /** What isolates were given to run, in the order they got it. */
  readonly ran: { readonly node: number; readonly kind: number; readonly caller: number; readonly seq: number; readonly attempt: number; readonly payload: Uint8Array; readonly forms: readonly number[] }[] = [];
  /** Answers of the head to names; undefined: free. */
  nameTaken: (name: string) => boolean = () => false;
  readonly groupNames = new Map<string, { readonly id: Uint8Array; readonly info: string; readonly node: SimNode; readonly seed: string | undefined; readonly submitter: string; orphaned: boolean }>();
  readonly clients: SimClient[] = [];
  readonly #pieces: number | undefined;
  steps = 0;

  constructor(options: WorldOptions) {
    this.random = seeded(options.seed);
    this.#pieces = options.pieces;
    this.#disk = options.disk ?? (() => undefined);
    this.#transfer = options.transfer;
    this.#startsIn = options.startsIn ?? (() => 0);
    const decisions: PolicyDecisionPoint = { version: 1, decide: (request) => ({ allow: request.resource.attributes.tenant === request.principal.tenant && (options.decide?.(request) ?? true), rule: 'sim', policyVersion: 1 }) };
    for (let i = 1; i <= options.nodes; i++) {
      const core = new RayletCore({
        nodeId: `node-${i}`, nodeNumber: i, total: { cpuUnits: options.cpus * 10_000, memoryBytes: 2 ** 33, custom: undefined }, labels: options.labels?.[i - 1] ?? {}, maxWorkers: 16, decisions, defaultIsolateBytes: 2 ** 26,
        objectMemoryBytes: options.objectMemoryBytes ?? Number.POSITIVE_INFINITY, spillBytes: options.spillBytes ?? 0, spreadMinBytes: SPREAD_MIN, sharedQuotas: false,
        random: { bytes: (n) => Uint8Array.from({ length: n }, () => Math.floor(this.random() * 256)) }, sha256: () => CODE_DIGEST,
      });
      const node = new SimNode(core);
      this.nodes.push(node);
      for (const [number, name] of [[1, 'acme'], [2, 'globex']] as const) {
        const log = new SimLog();
        node.logs.set(number, log);
        core.setTenant(parseTenantName(name), number, () => log, { ...NO_QUOTA, ...options.quota }, true);
      }
    }
    for (const node of this.nodes) this.shareNodes(node);
  }

  shareNodes(node: SimNode): void {
    for (const other of this.nodes) {
      if (other === node || this.#lost.has(other)) continue;
      const { config, available } = other.core.state;
      // As the head does: a node that has nothing new to say is not passed on.
      const labels = this.#labels.get(other) ?? config.labels;
      const told = `${node.core.state.nodes.has(config.nodeNumber)} ${JSON.stringify([available, labels])}`;
      const pair = `${node.core.state.config.nodeNumber} ${config.nodeNumber}`;
      if (this.#told.get(pair) === told) continue;
      this.#told.set(pair, told.replace('false', 'true'));
      node.core.setNode(config.nodeId, config.nodeNumber, '', `spiffe://sim/node/${config.nodeId}`, config.total, available, labels);
    }
  }

  /** As if the node had left and come again with other labels: the others are told with the next tick. */
  relabel(node: SimNode, labels: Readonly<Record<string, string>>): void {
    this.#labels.set(node, labels);
  }

  client(nodeIndex: number, tenantNumber: number, name = 'ana', project = 'default'): SimClient {
    const node = this.nodes[nodeIndex] as SimNode;
    const tenant = node.core.state.tenants.get(tenantNumber);
    if (tenant === undefined) throw new Error('no such tenant');
    const id = `job-${String(this.clients.length).padStart(24, '0')}` as JobId;
    const user = principalFromSpiffeId(`spiffe://sim/tenant/${tenant.name}/user/${name}`);
    const job = node.core.ensureJob(id, tenant, user, principalFromSpiffeId(`spiffe://sim/tenant/${tenant.name}/job/${id}`, { kind: 'user', name }), 'credential', Number.POSITIVE_INFINITY, 0, project);
    return this.#attach(node, job);
  }

  /** Another driver of the same job, on this node or another. */
  attach(nodeIndex: number, { channel: { job: { id, submitter, principal, project, tenant } } }: SimClient): SimClient {
    const node = this.nodes[nodeIndex] as SimNode;
    return this.#attach(node, node.core.ensureJob(id, node.core.state.tenants.get(tenant.number) as TenantState, submitter, principal, 'credential', Number.POSITIVE_INFINITY, 0, project.name));
  }

  #attach(node: SimNode, job: Job): SimClient {
    const client = new SimClient(this, node, node.core.openChannel(CHANNEL_KIND.DRIVER, job, job.submitter, 0, {}));
    this.clients.push(client);
    client.out.begin(OP.CODE).raw(CODE_DIGEST).u32(CODE.length).u32(0).raw(CODE).end();
    this.drain(node);
    return client;
  }

  push(link: string, event: () => void): void {
    const queue = this.#queues.get(link);
    if (queue === undefined) this.#queues.set(link, [event]);
    else queue.push(event);
  }

  /** A batch on a link; in a world of pieces, its rest is the next event there. */
  pushBatch(link: string, node: SimNode, batch: Uint8Array, read: (budget: number, at: number, held: HeldBatch | undefined) => number): void {
    let at = 0;
    let held: HeldBatch | undefined;
    const piece = (): void => {
      at = read(this.#pieces === undefined ? Number.POSITIVE_INFINITY : 1 + Math.floor(this.random() * this.#pieces), at, held);
      held = node.core.state.held;
      this.drain(node);
      if (at === batch.length) return;
      const queue = this.#queues.get(link);
      if (queue === undefined) this.#queues.set(link, [piece]);
      else queue.unshift(piece);
    };
    this.push(link, piece);
  }

  /** One thing happens, somewhere. False: nothing is left to happen. */
  step(): boolean {
    const links = [...this.#queues.keys()];
    if (links.length === 0) {
      if (this.#held.length === 0) return false;
      for (const node of this.nodes) for (const log of node.logs.values()) this.#commit(log);
      return true;
    }
    const link = links[Math.floor(this.random() * links.length)] as string;
    const queue = this.#queues.get(link) as (() => void)[];
    const event = queue.shift() as () => void;
    if (queue.length === 0) this.#queues.delete(link);
    this.nowMs += this.random() < 0.2 ? 1 : 0;
    this.steps++;
    event();
    if (this.random() < 0.3) for (const node of this.nodes) for (const log of node.logs.values()) this.#commit(log);
    if (this.steps % 50 === 0) this.tick();
    return true;
  }

  tick(): void {
    this.nowMs += 5;
    for (const node of this.nodes) {
      if (this.reporting) this.shareNodes(node);
      node.core.tick(this.nowMs, () => 0);
      this.drain(node);
    }
  }

  run(maxSteps: number): void {
    for (let i = 0; i < maxSteps; i++) if (!this.step()) return;
    throw new Error(`the world did not come to rest in ${maxSteps} steps`);
  }

  #commit(log: SimLog): void {
    log.commit();
    for (let i = 0; i < this.#held.length; ) {
      const held = this.#held[i]!;
      if (held.log === log && held.needed < log.durable && this.#held.findIndex((h) => h.key === held.key) === i) {
        this.#held.splice(i, 1);
        held.go();
      } else i++;
    }
  }

  /** As the raylet's outbox: in order per receiver, not before the record is durable. */
  #send(key: object, log: SimLog, needed: number, go: () => void): void {
    if (needed < log.durable && !this.#held.some((h) => h.key === key)) go();
    else this.#held.push({ key, log, needed, go });
  }

  /** Executes effects and lets frames out, as the raylet's driver does. */
  drain(node: SimNode): void {
    const core = node.core.state;
    while (core.out.length > 0) {
      const effects = core.out;
      core.out = [];
      for (const e of effects) {
        switch (e.type) {
          case 'start-worker': {
            const waitMs = this.#startsIn(e.worker.tenant.name, this.nowMs);
            if (waitMs > 0) {
              node.core.workerDelayed(e.worker, waitMs, this.nowMs);
              break;
            }
            node.pools.set(e.worker, new Map());
            this.push(`worker ${core.config.nodeNumber}/${e.worker.key}`, () => {
              if (e.worker.state === 'DEAD') return;
              node.core.workerStarted(e.worker, this.nowMs);
              this.drain(node);
            });
            break;
          }
          case 'kill-worker':
            this.killWorker(node, e.worker, e.reason !== 'MISBEHAVED');
            break;
          case 'open-slot':
            node.pools.get(e.slot.worker)?.set(e.slot.number, e.slot);
            break;
          case 'close-slot':
            node.pools.get(e.slot.worker)?.delete(e.slot.number);
            node.core.slotClosed(e.slot);
            break;
          case 'stream-file': {
            this.#seen(node, node.files, e.fileName, false);
            const out = new FrameWriter();
            const toRaylet = e.channel.kind === CHANNEL_KIND.PEER;
            if (toRaylet && !node.core.mayCross(e.entry, new Uint8Array(32))) throw new Error('the digest of a value changed');
            if (e.refs !== undefined) out.begin(OP.VALUE_REFS).u32(e.request).u32(e.position).refs(e.refs).end();
            if (toRaylet) out.begin(OP.VALUE_DIGEST).u32(e.request).u32(e.position).raw(new Uint8Array(32)).end();
            out.begin(OP.VALUE_CHUNK).u32(e.request).u32(e.position).u64(e.size).u64(0).raw(new Uint8Array(e.size)).end();
            const batch = out.take();
            const go = (how?: 'wrong'): void => {
              if (how === 'wrong') batch.fill(1, batch.length - 8);
              this.#send(e.channel, this.#logOf(node, e.channel), e.needed, () => this.#deliver(node, e.channel, batch));
            };
            if (toRaylet && this.#transfer !== undefined) this.#transfer(core.config.nodeNumber, e.channel.peer, go);
            else go();
            break;
          }
          case 'check-file':
            node.core.fileChecked(e.upstream, e.request, e.fileName, !this.#wrong.delete(`${core.config.nodeNumber} ${e.fileName}`));
            break;
          case 'seal-staged':
            this.#seen(node, node.files, e.fileName, true);
            break;
          case 'write-part':
            if (e.offset === 0) this.#seen(node, node.files, e.fileName, true);
            if (e.bytes.at(-1) === 1) this.#wrong.add(`${core.config.nodeNumber} ${e.fileName}`);
            break;
          case 'copy-file':
            this.#seen(node, node.files, e.fileName, false);
            node.files.add(e.copyName);
            break;
          case 'attach':
            this.#seen(node, node.files, e.fileName, false);
            break;
          case 'delete-file':
            node.files.delete(e.fileName);
            break;
          case 'spill-file':
            this.#seen(node, node.files, e.fileName, false);
            this.push(`disk ${core.config.nodeNumber}`, () => {
              const failure = this.#disk('write');
              if (failure === undefined) node.spills.set(e.spillName, e.version);
              node.core.spilled(e.entry, e.fileName, e.spillName, e.size, failure, this.nowMs);
              this.drain(node);
            });
            break;
          case 'restore-file':
            this.push(`disk ${core.config.nodeNumber}`, () => {
              let failure = this.#disk('read');
              if (failure === undefined && node.spills.get(e.spillName) !== e.version) failure = { code: 'OBJECT_LOST', message: 'not what was written', stack: '' };
              if (failure === undefined) node.files.add(e.fileName);
              node.core.restored(e.entry, e.spillName, e.fileName, e.size, failure, this.nowMs);
              this.drain(node);
            });
            break;
          case 'delete-spill':
            node.spills.delete(e.spillName);
            break;
          case 'close-channel': {
            const opener = this.#openers.get(e.channel);
            if (opener === undefined) break;
            this.push(opener.back, () => {
              if (opener.upstream.closed || this.#lost.has(opener.node)) return;
              opener.node.core.upstreamClosed(opener.upstream, { code: 'UNAUTHENTICATED', message: e.reason, stack: '' });
              this.drain(opener.node);
            });
            break;
          }
          case 'open-upstream':
            this.#openUpstream(node, e.upstream, e.depth);
            break;
          case 'close-upstream':
            this.#peers.get(e.upstream)?.close();
            break;
          case 'stream-code':
            e.upstream.codeOut.begin(OP.CODE).raw(CODE_DIGEST).u32(CODE.length).u32(0).raw(CODE).end();
            this.#peers.get(e.upstream)?.send(e.upstream.codeOut.take());
            break;
          case 'register-name':
            this.push('head', () => {
              node.core.nameRegistered(e.actor, this.nameTaken(e.actor.name) ? { code: 'INVALID_ARGUMENT', message: 'the name is taken', stack: '' } : undefined);
              this.drain(node);
            });
            break;
          case 'register-group':
            this.push('head', () => {
              const before = this.groupNames.get(e.group.name);
              const free = before === undefined || (before.orphaned && e.group.former === hex(before.id));
              e.group.kept = e.group.detached;
              node.core.groupNamed(e.group, !free || this.nameTaken(e.group.name) ? { code: 'INVALID_ARGUMENT', message: 'the name is taken', stack: '' } : undefined);
              if (e.group.state !== 'REMOVED') this.groupNames.set(e.group.name, { id: e.id, info: e.info, node, seed: e.group.detached ? e.group.wanted : undefined, submitter: e.group.job.submitter.spiffeId, orphaned: false });
              this.drain(node);
            });
            break;
          case 'release-group':
            if (hex(this.groupNames.get(e.group.name)?.id ?? new Uint8Array()) === hex(e.id)) this.groupNames.delete(e.group.name);
            break;
          case 'lookup-group':
            this.push('head', () => {
              const row = this.groupNames.get(e.name);
              if (row === undefined || !row.orphaned || row.seed === undefined) node.core.groupFound(e.channel, e.request, row, e.auditSeq);
              else {
                const failure = row.submitter === e.channel.job.submitter.spiffeId ? node.core.adoptGroup(e.channel, e.name, row.id, { options: row.seed, args: NOTHING, code: NOTHING, restarts: 0 }) : { code: 'UNAVAILABLE' as const, message: 'its node is lost', stack: '' };
                if (failure !== undefined) node.core.groupFound(e.channel, e.request, failure, e.auditSeq);
                this.drain(node);
                // Behind the registration that this asked for.
                if (failure === undefined) this.push('head', () => {
                  node.core.groupFound(e.channel, e.request, this.groupNames.get(e.name), e.auditSeq);
                  this.drain(node);
                });
              }
              this.drain(node);
            });
            break;
          case 'lookup-name':
            this.push('head', () => {
              node.core.nameFound(e.channel, e.request, undefined, e.auditSeq);
              this.drain(node);
            });
            break;
          default:
            break;
        }
      }
    }
    while (core.dirtyChannels.length > 0) {
      const channel = core.dirtyChannels.pop() as Channel;
      channel.dirty = false;
      const needed = channel.needed;
      channel.needed = -1;
      const parts = channel.cut.splice(0);
      if (channel.out.length > 0) parts.push({ batch: channel.out.take(), needed });
      for (const part of parts) this.#send(channel, this.#logOf(node, channel), part.needed, () => this.#deliver(node, channel, part.batch));
      channel.answeredBytes = 0;
      if (channel.deferred.length > 0) node.core.answerDeferred(channel);
    }
    while (core.dirtyUpstreams.length > 0) {
      const upstream = core.dirtyUpstreams.pop() as Upstream;
      upstream.dirty = false;
      const needed = upstream.needed;
      upstream.needed = -1;
      const parts = upstream.cut.splice(0);
      if (upstream.out.length > 0) parts.push({ batch: upstream.out.take(), needed });
      for (const part of parts) this.#send(upstream, node.logs.get(upstream.job.tenant.number) as SimLog, part.needed, () => this.#peers.get(upstream)?.send(part.batch));
    }
    if (core.out.length > 0) this.drain(node);
  }

  /** A file that is read is there, and no name is used twice. */
  #seen(node: SimNode, files: Set<string>, fileName: string, made: boolean): void {
    if (files.has(fileName) === made) throw new Error(`node ${node.core.state.config.nodeNumber}: ${fileName} ${made ? 'is made twice' : 'is read and not there'}`);
    if (made) files.add(fileName);
  }

  #logOf(node: SimNode, channel: Channel): SimLog {
    return node.logs.get(channel.job.tenant.number) as SimLog;
  }

  #deliver(node: SimNode, channel: Channel, batch: Uint8Array): void {
    if (channel.kind === CHANNEL_KIND.DRIVER) this.clients.find((c) => c.channel === channel)?.receive(batch);
    else if (channel.kind === CHANNEL_KIND.PEER) this.#peerOf.get(channel)?.(batch);
    else {
      const slot = channel.slot as Slot;
      this.push(`slot ${node.core.state.config.nodeNumber}/${slot.worker.key}/${slot.number}`, () => this.#guest(node, slot, batch));
    }
  }

  /** A node is gone at once: what it has to say is never said, and the others are told. */
  loseNode(node: SimNode): void {
    this.#lost.add(node);
    for (const [name, row] of this.groupNames) {
      if (row.node !== node) continue;
      if (row.seed === undefined) this.groupNames.delete(name);
      else row.orphaned = true;
    }
    const { nodeNumber } = node.core.state.config;
    for (const [channel] of this.#peerOf) if (channel.session.nodeNumber === nodeNumber) this.#peerOf.delete(channel);
    for (const other of this.nodes) {
      if (this.#lost.has(other)) continue;
      this.push(`loss ${nodeNumber}→${other.core.state.config.nodeNumber}`, () => {
        // Its connections are cut: what was on its way on them comes no more.
        this.#cut.add(`${nodeNumber}→${other.core.state.config.nodeNumber}`);
        for (const [channel, of] of this.#cameFrom) if (of === node && !channel.closed && other.core.state.channels.get(channel.number) === channel) other.core.closeChannel(channel);
        other.core.state.avoidNode(nodeNumber);
        other.core.removeNode(nodeNumber);
        this.drain(other);
      });
    }
  }

  // --- other raylets ------------------------------------------------------------------------------------------------------

  /** From now on nothing that one node sends to another arrives, and nobody notices. */
  mute(from: SimNode, to: SimNode): void {
    this.#muted.add(`${from.core.state.config.nodeNumber}→${to.core.state.config.nodeNumber}`);
  }

  readonly #muted = new Set<string>();
  readonly #cut = new Set<string>();
  readonly #cameFrom = new Map<Channel, SimNode>();
  readonly #lost = new Set<SimNode>();
  readonly #peers = new Map<Upstream, { send(batch: Uint8Array): void; close(): void }>();
  readonly #peerOf = new Map<Channel, (batch: Uint8Array) => void>();
  /** Who opened a channel that raylets serve each other. */
  readonly #openers = new WeakMap<Channel, { readonly node: SimNode; readonly upstream: Upstream; readonly back: string }>();

  #openUpstream(node: SimNode, upstream: Upstream, depth: number): void {
    const other = this.nodes[upstream.nodeNumber - 1] as SimNode;
    const there = `peer ${node.core.state.config.nodeNumber}→${upstream.nodeNumber}`;
    const back = `peer ${upstream.nodeNumber}→${node.core.state.config.nodeNumber} for ${node.core.state.config.nodeNumber}`;
    const link = `${node.core.state.config.nodeNumber}→${upstream.nodeNumber}`;
    let channel: Channel | undefined;
    this.#peers.set(upstream, {
      send: (batch) => this.#muted.has(link) ? undefined : this.pushBatch(there, other, batch, (...piece) => (channel === undefined || channel.closed || this.#lost.has(other) ? batch.length : other.core.clientBatch(channel, batch, this.nowMs, ...piece))),
      close: () => this.push(there, () => {
        if (channel === undefined || channel.closed || this.#lost.has(other)) return;
        other.core.closeChannel(channel);
        this.drain(other);
      }),
    });
    this.push(there, () => {
      const { job } = upstream;
      const tenant = other.core.state.tenants.get(job.tenant.number);
      if (tenant === undefined || this.#lost.has(other) || this.#lost.has(node) || this.#cut.has(link)) return;
      const theirs = other.core.ensureJob(job.id, tenant, job.submitter, job.principal, job.credential, Number.POSITIVE_INFINITY, 0, job.project.name);
      channel = other.core.openChannel(CHANNEL_KIND.PEER, theirs, upstream.asJob ? theirs.principal : theirs.submitter, depth, {});
      channel.peer = node.core.state.config.nodeId;
      this.#cameFrom.set(channel, node);
      this.#openers.set(channel, { node, upstream, back });
      this.#peerOf.set(channel, (batch) => this.pushBatch(back, node, batch, (budget, at) => (upstream.closed || this.#lost.has(node) || this.#lost.has(other) ? batch.length : node.core.upstreamBatch(upstream, batch, this.nowMs, budget, at))));
      this.drain(other);
    });
  }

  // --- workers ----------------------------------------------------------------------------------------------------------------

  killWorker(node: SimNode, worker: Worker, ours: boolean): void {
    if (!node.pools.delete(worker)) return;
    for (const h of [...this.hanging]) if (h.slot.worker === worker) this.hanging.delete(h);
    this.push(`exit ${node.core.state.config.nodeNumber}/${worker.key}`, () => {
      node.core.workerExited(worker, { code: 'WORKER_DIED', message: 'killed', stack: '' }, ours, this.nowMs);
      this.drain(node);
    });
  }

  /** What hung returns after all. */
  answerHanging(node: SimNode, slot: Slot, exec: number): void {
    for (const h of this.hanging) if (h.slot === slot && h.exec === exec) this.hanging.delete(h);
    this.#answer(node, slot, (out) => out.begin(OP.RESULT).u32(exec).u8(1).u8(0).u32(0).bytes(Uint8Array.of(0xf6)).end());
  }

  anyWorker(node: SimNode): Worker | undefined {
    const workers = [...node.pools.keys()].filter((w) => w.state === 'ALIVE');
    return workers[Math.floor(this.random() * workers.length)];
  }

  #guest(node: SimNode, slot: Slot, batch: Uint8Array): void {
    if (this.#lost.has(node) || node.pools.get(slot.worker)?.get(slot.number) !== slot) return;
    const r = new FrameReader().reset(batch);
    while (r.next()) {
      if (r.op === OP.PULL) {
        const exec = r.u32();
        const production = this.#productions.get(slot)?.get(exec);
        const told = { skip: r.u32(), upTo: r.u32(), room: r.u64() };
        if (production !== undefined) this.#produce(node, slot, exec, Object.assign(production, told));
        continue;
      }
      if (r.op === OP.CANCEL_EXEC) {
        const exec = r.u32();
        if (this.#productions.get(slot)?.delete(exec) === true) this.#answer(node, slot, (out) => out.begin(OP.FAILURE).u32(exec).str('CANCELLED').text('').text('').end());
        for (const h of this.hanging) {
          if (h.slot !== slot || h.exec !== exec) continue;
          this.hanging.delete(h);
          this.#answer(node, slot, (out) => out.begin(OP.FAILURE).u32(exec).str('CANCELLED').text('').text('').end());
        }
        continue;
      }
      if (r.op !== OP.EXEC) {
        r.skipRest();
        continue;
      }
      const exec = r.u32();
      const kind = r.u8();
      r.u32();
      const attempt = r.u32();
      r.u32();
      const d = r.u16();
      const forms: number[] = [];
      for (let i = 0; i < d; i++) {
        r.u16();
        const form = r.u8();
        forms.push(form);
        if ((form & 1) === 0) r.bytes(2 ** 22);
        else r.u32();
      }
      const payload = r.rest();
      const [what = 0, arg = 0] = payload;
      const given = slot.execs.get(exec);
      this.ran.push({ node: node.core.state.config.nodeNumber, kind, caller: given?.channel.number ?? 0, seq: given?.seq ?? 0, attempt, payload: payload.slice(), forms });
      if (what === DO.STREAM || what === DO.STREAM_THROW) {
        let productions = this.#productions.get(slot);
        if (productions === undefined) this.#productions.set(slot, (productions = new Map()));
        productions.set(exec, { total: arg, fails: what === DO.STREAM_THROW, made: 0, skip: 0, upTo: 0, room: 0, sent: 0 });
        continue;
      }
      if (what === DO.DIE) return this.killWorker(node, slot.worker, false);
      if (what === DO.EXIT) {
        this.#answer(node, slot, (out) => out.begin(OP.EXIT).u32(exec).end());
        continue;
      }
      if (what === DO.HANG) {
        this.hanging.add({ node, slot, exec });
        continue;
      }
      if (what >= DO.KEEP && what <= DO.FORGET) {
        this.#holdRefs(node, slot, exec, what);
        continue;
      }
      const task = slot.execs.get(exec);
      const returns = kind === 1 ? 0 : (task?.template.options.returns ?? 1);
      this.#answer(node, slot, (out) => {
        if (what === DO.THROW) out.begin(OP.FAILURE).u32(exec).str('TASK_FAILED').text('boom').text('').end();
        else {
          out.begin(OP.RESULT).u32(exec).u8(returns);
          for (let i = 0; i < returns; i++) {
            if (what === DO.LARGE) out.u8(1).u32(0).u32(i).u64(200_000);
            else out.u8(0).u32(0).bytes(Uint8Array.of(what));
          }
          out.end();
        }
      });
    }
  }

  /** What the code in an isolate holds of refs inside arguments, by id; and what it returned inside values, by the call's index in its session. */
  readonly kept = new Map<Slot, Map<string, Uint8Array>>();
  readonly given = new Map<string, Uint8Array[]>();

  /** KEEP holds what came inside the arguments, PASS lets go of it at once, GIVE returns all that is held, FORGET lets go of it. */
  #holdRefs(node: SimNode, slot: Slot, exec: number, what: number): void {
    const task = slot.execs.get(exec);
    if (task === undefined) return;
    let kept = this.kept.get(slot);
    if (kept === undefined) this.kept.set(slot, (kept = new Map()));
    const came = (task.contained ?? []).map((entry) => makeId(entry.session.prefix, entry.index));
    if (what === DO.KEEP) for (const id of came) kept.set(id.toString(), id);
    const held = [...kept.values()];
    const gone = what === DO.FORGET ? held : what === DO.PASS ? came.filter((id) => !kept.has(id.toString())) : [];
    if (what === DO.FORGET) kept.clear();
    if (what === DO.GIVE) this.given.set(`${task.template.originHex} ${task.origin}`, held);
    this.#answer(node, slot, (out) => {
      if (gone.length > 0) out.begin(OP.RELEASE).refs(gone).end();
      out.begin(OP.RESULT).u32(exec).u8(1).u8(0).refs(what === DO.GIVE ? held : []).bytes(Uint8Array.of(what)).end();
    });
  }

  isOpen(node: SimNode, slot: Slot): boolean {
    return !this.#lost.has(node) && node.pools.get(slot.worker)?.get(slot.number) === slot;
  }

  isLost(node: SimNode): boolean {
    return this.#lost.has(node);
  }

  readonly #productions = new WeakMap<Slot, Map<number, SimProduction>>();

  /** As the executor in the isolate: as far as there is room. An item carries its number; some are large. */
  #produce(node: SimNode, slot: Slot, exec: number, p: SimProduction): void {
    while (p.made < p.upTo && p.sent < p.room) {
      const number = p.made;
      if (number === p.total) {
        this.#productions.get(slot)?.delete(exec);
        return this.#answer(node, slot, (out) => (p.fails ? out.begin(OP.FAILURE).u32(exec).str('TASK_FAILED').text('boom').text('').end() : out.begin(OP.RESULT).u32(exec).u8(0).end()));
      }
      if (p.made++ < p.skip) continue;
      const large = number % LARGE_ITEM === LARGE_ITEM - 1;
      p.sent += large ? LARGE_ITEM_BYTES : 1;
      this.#answer(node, slot, (out) => {
        out.begin(OP.ITEM).u32(exec).u8(large ? 1 : 0).u32(0);
        if (large) out.u32(number).u64(LARGE_ITEM_BYTES);
        else out.u8(number);
        out.end();
      });
    }
  }

  #answer(node: SimNode, slot: Slot, write: (out: FrameWriter) => void): void {
    const out = new FrameWriter(256);
    write(out);
    const batch = out.take();
    const gone = (): boolean => node.pools.get(slot.worker)?.get(slot.number) !== slot;
    this.pushBatch(`from ${node.core.state.config.nodeNumber}/${slot.worker.key}/${slot.number}`, node, batch, (...piece) => (gone() ? batch.length : node.core.guestBatch(slot, batch, this.nowMs, ...piece)));
  }
}
