/**
 * The state of one raylet and the few operations every part of the core needs: audit, dirty marks, ids. Deterministic: the
 * time is a parameter, ids come from a random source that the driver gives, IO leaves as effects.
 */
import type { AuditRecord, DecisionRecord } from '../../base/audit-record.ts';
import type { Action, DecisionRequest, PolicyDecisionPoint, Resource } from '../../base/decision.ts';
import { resource } from '../../base/decision.ts';
import { BulkheadError } from '../../base/errors.ts';
import { OBJECT_ID_BYTES, SESSION_PREFIX_BYTES, hex, objectIdText, type JobId, type ObjectIdText } from '../../base/ids.ts';
import type { Labels } from '../../base/labels.ts';
import { CLOCK_SKEW_MS, CUT_BATCH_BYTES, MAX_INTRUSIONS_TOLD, MAX_OBJECTS_PER_TENANT, MAX_OWED_RECORDS_PER_TENANT, NODE_DEAD_AFTER_MS, SESSION_TTL_MS } from '../../base/limits.ts';
import type { ResourceVector } from '../../base/resources.ts';
import type { RandomSource } from '../../base/time.ts';
import type { Pull, Spread } from './broadcast.ts';
import type { BundleHold } from './bundle.ts';
import type { Effect } from './effects.ts';
import type { RemoteGroup } from './group-views.ts';
import type { PlacementGroup } from './placement-groups.ts';
import type { Actor, Channel, Failure, HeldBatch, Intruder, Job, ObjectEntry, RemoteNode, SchedulingClass, Slot, Task, Upstream, Worker } from './state.ts';
import { NodeShares } from './share-state.ts';
import { Session, TenantState } from './state.ts';

export interface CoreConfig {
  readonly nodeId: string;
  readonly nodeNumber: number;
  readonly total: ResourceVector;
  readonly labels: Labels;
  readonly maxWorkers: number;
  readonly random: RandomSource;
  readonly decisions: PolicyDecisionPoint;
  readonly sha256: (bytes: Uint8Array) => Uint8Array;
  /** Memory of an isolate whose task or actor asks for none, bytes. */
  readonly defaultIsolateBytes: number;
  /** What objects' files may take: of memory, and of disk beyond that. */
  readonly objectMemoryBytes: number;
  readonly spillBytes: number;
  /** From this size on objects are served by those that have got them too. */
  readonly spreadMinBytes: number;
  /** Which Python this node runs, `python3.N`; '': none. */
  readonly python?: string;
  /** Quotas hold for several nodes together: this one may use what `takeShares` said. False: a core by itself, whose quotas are its own. */
  readonly sharedQuotas: boolean;
}

/** Reads a u32 of an id without a DataView. */
export function idWord(id: Uint8Array, at: number): number {
  return ((id[at] as number) | ((id[at + 1] as number) << 8) | ((id[at + 2] as number) << 16) | ((id[at + 3] as number) << 24)) >>> 0;
}

export function idIndex(id: Uint8Array): number {
  return idWord(id, SESSION_PREFIX_BYTES);
}

export function makeId(prefix: Uint8Array, index: number): Uint8Array {
  const id = new Uint8Array(OBJECT_ID_BYTES);
  id.set(prefix);
  id[20] = index & 0xff;
  id[21] = (index >>> 8) & 0xff;
  id[22] = (index >>> 16) & 0xff;
  id[23] = index >>> 24;
  return id;
}

/** Of a session of another node. No prefix alone is such a key, so who asks without a principal finds this node's own only. */
function borrowedKey(prefixHex: string, reader: string): string {
  return `${prefixHex}|${reader}`;
}

/** A batch that grew large leaves as it is; what follows is another. */
function cutBatch(of: Channel | Upstream): void {
  of.cut.push({ batch: of.out.takeView(), needed: of.needed });
  of.needed = -1;
}

const INTRUSIONS_MS = 1_000;
const REOPEN_MS = 1_000;

/** Actors and groups without a place, by tenant: a step looks at some of each, however many one tenant has that fit nowhere. */
class Waiting<T extends { readonly job: Job }> {
  readonly #byTenant = new Map<TenantState, Set<T>>();

  get size(): number {
    return this.#byTenant.size;
  }

  add(actor: T): void {
    const of = this.#byTenant.get(actor.job.tenant);
    if (of === undefined) this.#byTenant.set(actor.job.tenant, new Set([actor]));
    else of.add(actor);
  }

  has(actor: T): boolean {
    return this.#byTenant.get(actor.job.tenant)?.has(actor) === true;
  }

  delete(actor: T): void {
    const of = this.#byTenant.get(actor.job.tenant);
    if (of?.delete(actor) === true && of.size === 0) this.#byTenant.delete(actor.job.tenant);
  }

  /** The first of each tenant; where there are more, they are the last next time. */
  some(most: number): T[] {
    const taken: T[] = [];
    for (const of of this.#byTenant.values()) {
      const first: T[] = [];
      for (const actor of of) {
        if (first.length === most) break;
        first.push(actor);
      }
      if (of.size > most) {
        for (const actor of first) {
          of.delete(actor);
          of.add(actor);
        }
      }
      taken.push(...first);
    }
    return taken;
  }
}

export class Core {
  readonly config: CoreConfig;
  /** For limits, waits and ages: no clock that is set changes it. */
  nowMs = 0;
  /** How far the wall clock, which records and rules with dates go by, is ahead of it. */
  wallAheadMs = 0;
  out: Effect[] = [];
  available: ResourceVector;
  readonly tenants = new Map<number, TenantState>();
  readonly jobs = new Map<JobId, Job>();
  readonly shares = new NodeShares();
  /** The frame that was read last is to be read again: it waits for a larger share of a quota. */
  stalled = false;
  readonly channels = new Map<number, Channel>();
  readonly sessions = new Map<string, Session>();
  readonly workers = new Map<number, Worker>();
  readonly upstreams = new Map<string, Upstream>();
  readonly upstreamsByNumber = new Map<number, Upstream>();
  /** Nodes that were here, by number, with their ids: one that was away may speak before the head says that it is back. */
  readonly goneNodes = new Map<number, string>();
  readonly nodes = new Map<number, RemoteNode>();
  readonly #stoppedUntilMs = new Map<JobId, number>();
  /** Until when nodes whose connection was lost get no work, by number: the head learns of their end later than we do. */
  readonly #avoidedUntilMs = new Map<number, number>();
  readonly classes = new Set<SchedulingClass>();
  /** Counts changes of which nodes there are, what they have in all, their labels and whether they can be reached. */
  nodesChanged = 0;
  #reopenedMs = 0;
  /** When forwarded work was last looked through for what has not begun (recalls.ts). */
  recalledMs = 0;
  readonly dirtyChannels: Channel[] = [];
  readonly dirtySlots: Slot[] = [];
  readonly dirtyUpstreams: Upstream[] = [];
  /** Tasks whose arguments have all arrived, and remote values that somebody wants here: taken up at the end of the step. */
  woken: Task[] = [];
  fetches: ObjectEntry[] = [];
  /** Octets of objects' files in memory, on their way to disk, and there (object-memory.ts). */
  fileBytes = 0;
  spillingBytes = 0;
  spilledBytes = 0;
  readonly spilling = new Set<ObjectEntry>();
  /** Some limit is passed: looked at when the step ends. */
  pressed = false;
  /** Why nothing can leave memory now, and when that is tried again. */
  spillRefused = '';
  spillAfterMs = 0;
  /** Spilled objects that somebody waits for; how many are being read; those that could not be. */
  readonly restores: ObjectEntry[] = [];
  restoring = 0;
  readonly restoreLater: ObjectEntry[] = [];
  /** Other raylets' objects that somebody here has begun to hold, and calls of other raylets that have ended with what was inside their arguments. */
  borrows: { readonly entry: ObjectEntry; readonly job: Job; readonly asJob: boolean }[] = [];
  returned: { readonly channel: Channel; readonly seq: number; readonly entries: readonly ObjectEntry[] }[] = [];
  /** Large objects that other raylets have asked for: taken up at the end of the step. What is known of each object that any has got or is getting; transfers that have a time limit; the channels for copies. */
  pulls: Pull[] = [];
  readonly spreads = new Map<ObjectEntry, Spread>();
  readonly spreading = new Set<Spread>();
  readonly pullsUnderWay = new Set<Pull>();
  readonly copyChannels = new Set<Upstream>();
  /** Jobs of which somebody else may want them now, or nobody any more (job-roots.ts). */
  rootsChanged: Job[] = [];
  /** Lost objects whose tasks are to run again: taken up at the end of the step. */
  rebuilds: Task[] = [];
  /** Entries and sessions of other nodes that this step made; those that nothing holds at its end go. */
  readonly fresh: ObjectEntry[] = [];
  readonly freshSessions: Session[] = [];
  /** Allowed calls to, and kills of, actors that another raylet owns. */
  remoteCalls: { readonly task: Task; readonly actorId: Uint8Array }[] = [];
  remoteKills: { readonly channel: Channel; readonly id: Uint8Array; readonly restart: boolean }[] = [];
  /** Actors whose last handle went in this step. */
  unreachable: Actor[] = [];
  /** Calls that have a slot but were not sent: an argument cannot be given to its worker. */
  refusedExecs: { readonly slot: Slot; readonly task: Task; readonly failure: Failure }[] = [];
  /** Streams that nobody reads any more, or whose items can go nowhere, and calls whose arguments find no room here: ended at the end of the step. */
  toEnd: { readonly task: Task; readonly failure: Failure }[] = [];
  /** Tasks that are tried again after a while. */
  readonly delayed = new Set<Task>();
  readonly waitingActors = new Waiting<Actor>();
  /** Placement groups that this raylet coordinates, by id; those that lack bundles, and those whose nodes are being asked. */
  readonly groups = new Map<string, PlacementGroup>();
  readonly pendingGroups = new Waiting<PlacementGroup>();
  readonly preparing = new Set<PlacementGroup>();
  /** What is known of others' groups, by id and by whose calls are for it. */
  readonly groupViews = new Map<string, RemoteGroup>();
  /** Of groups that another raylet took over, their ids now. */
  readonly groupHeirs = new Map<string, string>();
  /** Bundles that are reserved on this node, by group and index. */
  readonly holds = new Map<string, Map<number, BundleHold>>();
  /** Groups of other raylets that are no more: what waits for them here ends with the step. */
  readonly endedGroups: { readonly tenant: TenantState; readonly group: string; readonly failure: Failure }[] = [];
  /** A bundle was given back in this step: waiting groups are looked at. */
  roomFreed = false;
  readonly timed = new Set<Task>();
  servedCounter = 0;
  /** Leases that may be given before others are asked: one where several wait. */
  grants = Number.POSITIVE_INFINITY;
  /** Counts actors that are spread. */
  spreadTurn = 0;
  /** The client batch that is being read, once a call in it keeps it. */
  held: HeldBatch | undefined = undefined;
  /** Calls of all tenants that have begun and not ended. */
  callsInFlight = 0;
  #nextNumber = 1;
  readonly #request: { principal: DecisionRequest['principal']; action: Action; resource: Resource; nowMs: number } = {} as never;

  constructor(config: CoreConfig) {
    this.config = config;
    this.available = config.total;
  }

  get wallMs(): number {
    return this.nowMs + this.wallAheadMs;
  }

  nextNumber(): number {
    return this.#nextNumber++;
  }

  /** Its credentials may be valid for minutes yet; they must not bring it back. */
  noteStopped(job: JobId): void {
    for (const [other, untilMs] of this.#stoppedUntilMs) {
      // In the order of their ends: the first that has not ended ends the search.
      if (untilMs > this.nowMs) break;
      this.#stoppedUntilMs.delete(other);
    }
    this.#stoppedUntilMs.delete(job);
    this.#stoppedUntilMs.set(job, this.nowMs + SESSION_TTL_MS + CLOCK_SKEW_MS);
  }

  wasStopped(job: JobId): boolean {
    return (this.#stoppedUntilMs.get(job) ?? 0) > this.nowMs;
  }

  /** A connection to it was lost, or could not be made. */
  avoidNode(number: number): void {
    this.#avoidedUntilMs.set(number, this.nowMs + NODE_DEAD_AFTER_MS);
    this.nodesChanged++;
  }

  /** Once in a while: nodes that can be reached again, and now and then all of them, are asked for room again. */
  reopenNodes(): void {
    let again = this.nowMs - this.#reopenedMs >= REOPEN_MS;
    for (const [number, untilMs] of this.#avoidedUntilMs) {
      if (untilMs > this.nowMs) continue;
      this.#avoidedUntilMs.delete(number);
      again = true;
    }
    if (!again) return;
    this.#reopenedMs = this.nowMs;
    this.nodesChanged++;
    for (const c of this.classes) c.open[0] = c.open[1] = undefined;
  }

  reachable(number: number): boolean {
    const untilMs = this.#avoidedUntilMs.get(number);
    if (untilMs === undefined) return true;
    if (untilMs > this.nowMs) return false;
    this.#avoidedUntilMs.delete(number);
    this.nodesChanged++;
    return true;
  }

  markChannel(channel: Channel, needed: number): void {
    if (needed > channel.needed) channel.needed = needed;
    if (channel.out.length > CUT_BATCH_BYTES) cutBatch(channel);
    if (channel.dirty) return;
    channel.dirty = true;
    this.dirtyChannels.push(channel);
  }

  markUpstream(upstream: Upstream, needed: number): void {
    if (needed > upstream.needed) upstream.needed = needed;
    if (upstream.out.length > CUT_BATCH_BYTES) cutBatch(upstream);
    if (upstream.dirty) return;
    upstream.dirty = true;
    this.dirtyUpstreams.push(upstream);
  }

  /**
   * One decision and its record. Returns the record's sequence number, or the bitwise complement of it when denied (so that
   * the hot path gets both facts without an object): `seq >= 0` is a permit.
   */
  decide(channel: Channel, action: Action, target: Resource, resourceName: string, index: number, count: number, detail: string): number {
    const request = this.#request;
    request.principal = channel.principal;
    request.action = action;
    request.resource = target;
    request.nowMs = this.wallMs;
    const decision = this.config.decisions.decide(request);
    const { tenant } = channel.job;
    if (tenant.owed.length > 0) this.#payOwed(tenant);
    const seq = tenant.log.append({
      type: 'decision', timeMs: this.wallMs, principal: channel.principal.spiffeId, action, resourceKind: target.kind, resource: resourceName, index, count,
      allow: decision.allow, rule: decision.rule, policyVersion: decision.policyVersion, detail,
    });
    return decision.allow ? seq : ~seq;
  }

  /** A call that no policy was asked about, since its tenant may not call at all now. Throws what the log throws. */
  refuse(channel: Channel, action: Action, target: Resource, resourceName: string, index: number, rule: string, detail: string): number {
    const { tenant } = channel.job;
    if (tenant.owed.length > 0) this.#payOwed(tenant);
    return tenant.log.append({
      type: 'decision', timeMs: this.wallMs, principal: channel.principal.spiffeId, action, resourceKind: target.kind, resource: resourceName, index, count: 1, allow: false, rule, policyVersion: this.config.decisions.version, detail,
    });
  }

  lifecycle(tenant: TenantState, event: string, principal: string, kind: string, name: string, index: number, detail: string): void {
    this.#note(tenant, { type: 'lifecycle', timeMs: this.wallMs, event, principal, resourceKind: kind, resource: name, index, detail });
  }

  /**
   * Keeps a record of what has happened already and cannot be refused any more, often in a step that another tenant's frame began: never
   * throws. What a full log cannot take now is owed, and no call of the tenant is decided before that is paid.
   */
  #note(tenant: TenantState, record: AuditRecord): void {
    if (tenant.owed.length > 0) return void tenant.owed.push(record);
    try {
      tenant.log.append(record);
    } catch (error) {
      // A log that failed for good takes nothing any more: the raylet ends the tenant's calls for that.
      if (error instanceof BulkheadError && (error.code === 'RESOURCE_EXHAUSTED' || error.code === 'QUOTA_EXCEEDED')) tenant.owed.push(record);
    }
  }

  /** Throws what the log throws while it cannot take them. */
  #payOwed(tenant: TenantState): void {
    let paid = 0;
    try {
      for (const record of tenant.owed) {
        tenant.log.append(record);
        paid++;
      }
    } finally {
      tenant.owed.splice(0, paid);
    }
  }

  /**
   * A try at what is another tenant's, for that tenant's log. Each denial is whole in the log of who tried; its victim is told of the first
   * in a second one by one and of the rest as a number, so that nobody fills a neighbour's log or disk. What a grant allowed is always told.
   */
  tellOwner(owner: TenantState, intruder: TenantState, record: DecisionRecord): void {
    if (record.allow) {
      // The grant goes no further than its owner's auditors can follow: what is owed lives in memory, and a log can be full for days.
      if (owner.owed.length >= MAX_OWED_RECORDS_PER_TENANT) throw new BulkheadError('UNAVAILABLE', 'the owner of what was asked for can record no more on this node, so the call is refused; tell the operator of the node');
      return this.#note(owner, record);
    }
    let seen = owner.intruders.get(intruder.number);
    if (seen === undefined) owner.intruders.set(intruder.number, (seen = { sinceMs: this.nowMs, told: 0, counted: 0, last: record }));
    if (this.nowMs - seen.sinceMs >= INTRUSIONS_MS) this.#sumUp(owner, seen);
    seen.last = record;
    if (seen.told < MAX_INTRUSIONS_TOLD && owner.owed.length === 0) {
      seen.told++;
      this.#note(owner, record);
    } else seen.counted++;
  }

  /** While its log is full, its owner's notice grows as a number and not as records. */
  #sumUp(owner: TenantState, seen: Intruder): void {
    if (owner.owed.length > 0) return;
    if (seen.counted > 0) this.#note(owner, { ...seen.last, timeMs: this.wallMs, resource: '', index: -1, count: Math.min(seen.counted, 0xffff_ffff), detail: 'as many more tries, the last by this principal' });
    seen.sinceMs = this.nowMs;
    seen.told = seen.counted = 0;
  }

  /** Once in a while: what is owed to logs and to owners. */
  payLogs(): void {
    for (const tenant of this.tenants.values()) {
      if (tenant.owed.length > 0) {
        try {
          this.#payOwed(tenant);
        } catch {
          // The next tick, or the next decision.
        }
      }
      for (const [number, seen] of tenant.intruders) {
        if (this.nowMs - seen.sinceMs < INTRUSIONS_MS) continue;
        this.#sumUp(tenant, seen);
        if (seen.counted === 0) tenant.intruders.delete(number);
      }
    }
  }

  /** A fresh session of this raylet: 12 random bytes after the tenant's and the node's number. */
  newSession(tenant: TenantState, ownerId: string): Session {
    const prefix = new Uint8Array(SESSION_PREFIX_BYTES);
    const view = new DataView(prefix.buffer);
    view.setUint32(0, tenant.number, true);
    view.setUint32(4, this.config.nodeNumber, true);
    prefix.set(this.config.random.bytes(12), 8);
    return this.#addSession(prefix, hex(prefix), tenant, this.config.nodeNumber, ownerId, '');
  }

  #addSession(prefix: Uint8Array, prefixHex: string, tenant: TenantState, nodeNumber: number, ownerId: string, reader: string): Session {
    const session = new Session(prefix, prefixHex, reader === '' ? prefixHex : borrowedKey(prefixHex, reader), tenant, nodeNumber, ownerId, reader, resource('object', { tenant: tenant.name, owner: ownerId }));
    this.sessions.set(session.key, session);
    tenant.sessions.add(session);
    return session;
  }

  /** The same, of those that are known already: for what changes nothing about others. */
  knownSessionOf(channel: Channel, id: Uint8Array): Session | undefined {
    return this.knownSessionFor(channel.job.tenant, channel.principal.spiffeId, id);
  }

  knownSessionFor(tenant: TenantState, reader: string, id: Uint8Array): Session | undefined {
    if (idWord(id, 0) !== tenant.number) return undefined;
    const prefixHex = hex(id.subarray(0, SESSION_PREFIX_BYTES));
    return this.sessions.get(idWord(id, 4) === this.config.nodeNumber ? prefixHex : borrowedKey(prefixHex, reader));
  }

  /**
   * The session an id belongs to. One of another node is each principal's own: labels, owners and so the tenant's rules are known to that node
   * alone, which has to decide for everyone who reads, and not only for whoever was first here. Undefined when it is of another tenant or unknown here: the caller answers "denied" to both.
   */
  sessionOf(channel: Channel, id: Uint8Array): Session | undefined {
    const own = channel.session.prefix;
    let same = true;
    for (let i = 8; i < SESSION_PREFIX_BYTES && same; i++) same = id[i] === own[i];
    if (same && idWord(id, 0) === channel.session.tenant.number && idWord(id, 4) === this.config.nodeNumber) return channel.session;
    return this.sessionFor(channel.job.tenant, channel.principal.spiffeId, id);
  }

  /** As `sessionOf`, for refs inside a value that came from another node for this principal. */
  sessionFor(tenant: TenantState, reader: string, id: Uint8Array): Session | undefined {
    if (idWord(id, 0) !== tenant.number) return undefined;
    const prefixHex = hex(id.subarray(0, SESSION_PREFIX_BYTES));
    const node = idWord(id, 4);
    if (node === this.config.nodeNumber) return this.sessions.get(prefixHex);
    const session = this.sessions.get(borrowedKey(prefixHex, reader));
    if (session !== undefined) return session;
    if (!this.nodes.has(node) || tenant.entries >= MAX_OBJECTS_PER_TENANT) return undefined;
    tenant.entries++;
    const made = this.#addSession(id.slice(0, SESSION_PREFIX_BYTES), prefixHex, tenant, node, '', reader);
    this.freshSessions.push(made);
    return made;
  }

  /** What a group is called now. */
  groupNow(id: string): string {
    return this.groupHeirs.size === 0 ? id : (this.groupHeirs.get(id) ?? id);
  }

  idOf(session: Session, index: number): Uint8Array {
    return makeId(session.prefix, index);
  }

  idText(session: Session, index: number): ObjectIdText {
    return objectIdText(makeId(session.prefix, index));
  }
}

export const DENIED_TEXT = 'not found, or not permitted';
