/**
 * The nouns of a raylet: tenants, jobs, channels, objects, tasks, leases, actors. State only; what happens to them is in the
 * files beside this one. Nothing here is ever shared between tenants: every noun hangs under one TenantState.
 */
import type { AuditLog, AuditRecord, DecisionRecord } from '../../base/audit-record.ts';
import type { Resource } from '../../base/decision.ts';
import type { BulkheadError, ErrorCode } from '../../base/errors.ts';
import { FrameWriter, type CallKind } from '../../base/frame.ts';
import type { JobId, TenantName, WorkerId } from '../../base/ids.ts';
import type { Labels } from '../../base/labels.ts';
import { MAX_ISOLATES_PER_WORKER, MAX_TASK_DEPTH } from '../../base/limits.ts';
import type { Principal } from '../../base/principal.ts';
import type { ResourceVector } from '../../base/resources.ts';
import type { TenantQuota } from '../../base/tenant-quota.ts';
import { CallHistory } from './call-history.ts';
import type { FunctionOptions, StreamWindow } from './function-options.ts';
import type { Place, Placement } from './placement.ts';
import type { Pull, Share, Spread } from './broadcast.ts';
import type { BundleHold } from './bundle.ts';
import { FairUsage, LendingPool, TokenBucket, type ProjectState } from './project-state.ts';
import { TenantShares } from './share-state.ts';

export class TenantState {
  readonly name: TenantName;
  readonly number: number;
  readonly log: AuditLog;
  /** The quotas as they hold for the whole cluster, and what of them this node may use. */
  nominal: TenantQuota;
  readonly quota: TenantQuota;
  readonly shares = new TenantShares();
  active = true;
  objectBytes = 0;
  /** Octets of objects' files in memory, begun ones too; of those, on their way to disk; and on disk. */
  fileBytes = 0;
  spillingBytes = 0;
  spilledBytes = 0;
  /** Objects whose files are in memory, the longest unused first. */
  readonly files = new Set<ObjectEntry>();
  /** What lost results can be computed again from, the oldest first, and the octets of it. */
  readonly lineages = new Set<Lineage>();
  lineageBytes = 0;
  /** Object entries, and sessions of other nodes that they are in. */
  entries = 0;
  codeBytes = 0;
  classes = 0;
  /** Its workers died too often: until then none is started, and what needs one waits. */
  nextStartMs = 0;
  /** Octets of batches of which some call is not finished. */
  heldBytes = 0;
  cpuUnitsInUse = 0;
  memoryBytesInUse = 0;
  /** As the quotas of these names count. */
  tasks = 0;
  inFlight = 0;
  actors = 0;
  /** Placement groups that this node coordinates. */
  groups = 0;
  /** Facts that its log could not take when they came about: appended before any further decision. */
  readonly owed: AuditRecord[] = [];
  /** Denied tries of other tenants at what is this one's, by their number. */
  readonly intruders = new Map<number, Intruder>();
  /** By name; those with a quota, and those that a job of this node is of. */
  readonly projects = new Map<string, ProjectState>();
  readonly pool = new LendingPool();
  readonly usage = new FairUsage();
  readonly calls = new TokenBucket();
  /** Some function of it asked for a priority. */
  ranked = false;
  readonly code = new Map<string, CodeBundle>();
  /** Those of `Core.sessions` that are its own: what is asked about one tenant takes no longer for what its neighbours have. */
  readonly sessions = new Set<Session>();
  readonly jobs = new Set<Job>();
  /** Octets from and to its drivers since they were last recorded. */
  bytesIn = 0;
  bytesOut = 0;
  /** Calls this month here, and how many the budget of the whole cluster allows; what the head says when any budget is used up. */
  monthCalls = 0;
  callBudget = Number.POSITIVE_INFINITY;
  overBudget = '';
  readonly history = new CallHistory();
  /** Ended actors that late callers are still told of, oldest first. */
  readonly deadActors = new Set<Actor>();

  constructor(name: TenantName, number: number, log: AuditLog, quota: TenantQuota) {
    this.name = name;
    this.number = number;
    this.log = log;
    this.nominal = quota;
    this.quota = { ...quota };
  }
}

/** What was told to the owner since `sinceMs`, and what was only counted. */
export interface Intruder {
  sinceMs: number;
  told: number;
  counted: number;
  last: DecisionRecord;
}

export interface JobQuota {
  readonly cpuUnits: number;
  readonly memoryBytes: number;
  readonly tasks: number;
  readonly callsPerSecond: number;
  readonly inFlight: number;
}

export const NO_JOB_QUOTA: JobQuota = Object.freeze({ cpuUnits: Number.POSITIVE_INFINITY, memoryBytes: Number.POSITIVE_INFINITY, tasks: Number.POSITIVE_INFINITY, callsPerSecond: Number.POSITIVE_INFINITY, inFlight: Number.POSITIVE_INFINITY });

export class Job {
  readonly id: JobId;
  readonly tenant: TenantState;
  /** The user or service whose session this is. */
  readonly submitter: Principal;
  /** What the job's own tasks and actors act as. */
  readonly principal: Principal;
  /** Newest session credential, for channels to other raylets. Never given to a worker. */
  credential: string;
  credentialEndsMs: number;
  /** When the newest credential was issued: a revocation ends what was issued before it. */
  issuedMs: number;
  stopped = false;
  /** It goes, or is gone, from the core: nothing of it is queued any more. */
  ended = false;
  readonly channels = new Set<Channel>();
  readonly actors = new Set<Actor>();
  readonly classes = new Map<string, SchedulingClass>();
  /** Tasks that were submitted under a key, by principal and key, the oldest first. */
  readonly once = new Map<string, Once>();
  /** Over which nodes it is wanted here, as told to other raylets; empty: nobody wants it; undefined: not known yet (job-roots.ts). */
  roots: readonly number[] | undefined = undefined;
  /** Measured time of a run by function, across the job's channels. */
  readonly functions = new Map<string, FunctionStats>();
  readonly project: ProjectState;
  /** What of its project's quotas for each job it may use here. */
  quota: JobQuota = NO_JOB_QUOTA;
  /** Its calls are counted against a quota of calls, or of its project. */
  limited = false;
  cpuUnitsInUse = 0;
  memoryBytesInUse = 0;
  /** As the quota of this name counts. */
  tasks = 0;
  inFlight = 0;
  readonly calls = new TokenBucket();

  constructor(id: JobId, tenant: TenantState, project: ProjectState, submitter: Principal, principal: Principal, credential: string, credentialEndsMs: number, issuedMs: number) {
    this.id = id;
    this.tenant = tenant;
    this.project = project;
    this.submitter = submitter;
    this.principal = principal;
    this.credential = credential;
    this.credentialEndsMs = credentialEndsMs;
    this.issuedMs = issuedMs;
  }
}

/** A task that was submitted under a key: its refs are pinned for as long as the key is known. */
export interface Once {
  readonly function: string;
  readonly entries: readonly ObjectEntry[];
  readonly untilMs: number;
}

export class FunctionStats {
  /** Smoothed ms between results while a lease is busy with this function; 0: not measured. */
  meanMs = 0;
}

export interface CodeBundle {
  readonly digestHex: string;
  readonly size: number;
}

/** A function, class or method with its options, as one channel defined it. */
export class Template {
  readonly kind: CallKind;
  readonly digestHex: string;
  readonly exportName: string;
  readonly methodName: string;
  readonly optionsJson: string;
  readonly options: FunctionOptions;
  readonly resource: Resource;
  /** What the audit record says of it. */
  readonly detail: string;
  readonly stats: FunctionStats;
  readonly schedulingClass: SchedulingClass | undefined;
  /** The placement group that its calls are in: each use is decided. */
  readonly groupResource: Resource | undefined;
  /** Session that its calls come from, on whatever node that is. */
  readonly originHex: string;

  constructor(fields: Omit<Template, never>) {
    this.kind = fields.kind;
    this.digestHex = fields.digestHex;
    this.exportName = fields.exportName;
    this.methodName = fields.methodName;
    this.optionsJson = fields.optionsJson;
    this.options = fields.options;
    this.resource = fields.resource;
    this.detail = fields.detail;
    this.stats = fields.stats;
    this.schedulingClass = fields.schedulingClass;
    this.groupResource = fields.groupResource;
    this.originHex = fields.originHex;
  }
}

/** The namespace of ids that one channel draws from. Of one that lives on another raylet each principal here has its own, so that nobody is given what was fetched for another. */
export class Session {
  readonly prefix: Uint8Array;
  readonly prefixHex: string;
  /** In `Core.sessions`. */
  readonly key: string;
  readonly tenant: TenantState;
  readonly nodeNumber: number;
  /** The principal whose objects these are, as the audit record and policies see the owner. */
  readonly ownerId: string;
  /** SPIFFE ID of the one principal that what was fetched of another node's session is for; '' for a session of this node. */
  readonly reader: string;
  readonly objects = new Map<number, ObjectEntry>();
  readonly actors = new Map<number, Actor>();
  /** Indexes that are another object's too, and whether their client still has the ref. */
  aliases: Map<number, { readonly entry: ObjectEntry; held: boolean }> | undefined = undefined;
  /** Of the job whose code makes these objects; undefined: it runs on another node. */
  project: ProjectState | undefined = undefined;
  /** Policy resource of an object of this session without a label. */
  readonly objectResource: Resource;
  closed = false;

  constructor(prefix: Uint8Array, prefixHex: string, key: string, tenant: TenantState, nodeNumber: number, ownerId: string, reader: string, objectResource: Resource) {
    this.prefix = prefix;
    this.prefixHex = prefixHex;
    this.key = key;
    this.tenant = tenant;
    this.nodeNumber = nodeNumber;
    this.ownerId = ownerId;
    this.reader = reader;
    this.objectResource = objectResource;
  }
}

export interface Failure {
  readonly code: ErrorCode;
  readonly message: string;
  readonly stack: string;
}

export function failureOf(error: BulkheadError): Failure {
  return { code: error.code, message: error.safeMessage, stack: error.remoteStack ?? '' };
}

export const OBJECT_STATUS = { PENDING: 0, INLINE: 1, FILE: 2, REMOTE: 3, FAILED: 4, SPILLED: 5 } as const;
export type ObjectStatus = (typeof OBJECT_STATUS)[keyof typeof OBJECT_STATUS];

export class ObjectEntry {
  readonly session: Session;
  readonly index: number;
  status: ObjectStatus = OBJECT_STATUS.PENDING;
  value: Uint8Array | undefined = undefined;
  size = 0;
  fileName = '';
  failure: Failure | undefined = undefined;
  /** Refs that clients hold. */
  handles = 1;
  /** Tasks that need it, gets under way, transfers. */
  pins = 0;
  /** Calls and answers under way that read its file: it stays in memory. */
  uses = 0;
  waiters: Waiter[] | undefined = undefined;
  producer: Task | undefined = undefined;
  label = '';
  /** Where a REMOTE value lies: the channel to that raylet and the id it has there. */
  remote: Upstream | undefined = undefined;
  remoteId: Uint8Array | undefined = undefined;
  fetching = false;
  /** Its encrypted copy on disk, which write of it that is, and whether the file was used since that began. */
  spillName = '';
  spillVersion = 0;
  touched = false;
  /** Slots that were given its file, and when the last one was. */
  attached: Set<Slot> | undefined = undefined;
  attachedMs = 0;
  /** Of another raylet's object: the channels on which its owner, or who gave it to us, holds it for this raylet, and how often; how many of those are only asked for. */
  lenders: Map<Upstream, number> | undefined = undefined;
  unconfirmed = 0;
  /** The same object, as other principals here have begun to hold it while this one was inside a call. */
  stands: ObjectEntry[] | undefined = undefined;
  /** What waits for its owner to know of us, or for nobody here to hold it. */
  confirmed: (() => void)[] | undefined = undefined;
  /** How it can be computed again. */
  lineage: Lineage | undefined = undefined;
  /** Lineages that have it as an argument. */
  lineagePins = 0;
  /** Files for the workers of tenants that were granted it, by tenant: each counts in its reader's objects, and goes with the value. */
  copies: Map<TenantState, string> | undefined = undefined;
  /** SHA-256 of the file, fixed when it first left for another tenant or node, or when it came from there. */
  digest: Uint8Array | undefined = undefined;
  /** The file was found to be another than what left before: it leaves no more. */
  altered = false;
  /** It begins as what carries code does: it never leaves its tenant. */
  pickle = false;
  pickleTold = false;
  /** Indexes of sessions under which it is known besides its own, until it is gone. */
  aliases: { readonly session: Session; readonly index: number }[] | undefined = undefined;
  /** Refs inside the value, held for as long as the value is. */
  contained: ObjectEntry[] | undefined = undefined;

  constructor(session: Session, index: number) {
    this.session = session;
    this.index = index;
  }
}

/** A finished task whose results may have to be computed again: they are large, or on another node. Its arguments are known, but their bytes may go. */
export interface Lineage {
  readonly channel: Channel;
  readonly seq: number;
  readonly template: Template;
  readonly args: Uint8Array;
  readonly restStart: number;
  readonly deps: readonly ObjectEntry[];
  readonly depPositions: readonly number[];
  readonly contained: readonly ObjectEntry[];
  readonly depth: number;
  readonly depthLimit: number;
  readonly origin: number;
  /** Tries so far. */
  attempt: number;
  rebuilt: number;
  /** Results that it is kept for. */
  results: number;
}

/** What waits for an object: a call (GET, WAIT, RESOLVE) at a position, or a task that has it as an argument. */
export interface Waiter {
  readonly call: PendingCall | undefined;
  readonly position: number;
  readonly task: Task | undefined;
}

/** COPY: a GET of what another raylet owns, whose owner said that it may be had here. */
export const PENDING_KIND = { GET: 0, WAIT: 1, RESOLVE: 2, COPY: 3 } as const;

export class PendingCall {
  readonly channel: Channel;
  readonly request: number;
  readonly kind: number;
  readonly auditSeq: number;
  /** The exec that waits, when it comes from a worker, and its number: what its call is given again after a loss is another exec. */
  readonly exec: Task | undefined;
  readonly execNumber: number;
  remaining: number;
  /** How many refs it has waited for. */
  positions = 0;
  /** WAIT: how many must be ready, which are, and until when. */
  need = 0;
  ready: number[] | undefined = undefined;
  deadlineMs = Number.POSITIVE_INFINITY;
  done = false;

  constructor(channel: Channel, request: number, kind: number, auditSeq: number, exec: Task | undefined, remaining: number) {
    this.channel = channel;
    this.request = request;
    this.kind = kind;
    this.auditSeq = auditSeq;
    this.exec = exec;
    this.execNumber = exec === undefined ? 0 : exec.exec;
    this.remaining = remaining;
  }
}

export interface CutBatch {
  readonly batch: Uint8Array<ArrayBuffer>;
  readonly needed: number;
}

/** A value that a client is to get when it has taken what it got before; pinned until then. */
export interface DeferredAnswer {
  readonly request: number;
  readonly position: number;
  readonly entry: ObjectEntry;
  readonly needed: number;
  readonly kind: number;
}

export const CHANNEL_KIND = { DRIVER: 0, SLOT: 1, PEER: 2 } as const;
export type ChannelKind = (typeof CHANNEL_KIND)[keyof typeof CHANNEL_KIND];

/** One client: a driver's stream, a worker's slot, or another raylet acting for a session. */
export class Channel {
  readonly number: number;
  readonly kind: ChannelKind;
  readonly session: Session;
  readonly job: Job;
  readonly principal: Principal;
  readonly depth: number;
  readonly slot: Slot | undefined;
  /** Which node, where it is another raylet's. */
  peer = '';
  /** Of another raylet's: over which nodes its job is wanted there, that one last; empty: nobody wants it; undefined: not said yet. */
  roots: readonly number[] | undefined = undefined;
  readonly out = new FrameWriter();
  /** The audit record that must be on disk before `out` may leave. */
  needed = -1;
  /** Full batches of this step, to leave before `out`. */
  readonly cut: CutBatch[] = [];
  dirty = false;
  closed = false;
  inFlight = 0;
  /** Refs that its gets and waits wait for. */
  waiting = 0;
  /** Octets of its batches of which some call is not finished. */
  heldBytes = 0;
  /** Octets of its batches that wait their turn to be read. */
  unreadBytes = 0;
  /** Octets of values written since its last ones had left, and the answers that wait for that. */
  answeredBytes = 0;
  readonly deferred: DeferredAnswer[] = [];
  /** Of another raylet: large objects of ours that it is getting, by its request, and those that it has and serves to others. */
  pulls: Map<number, Pull> | undefined = undefined;
  holds: Set<Spread> | undefined = undefined;
  readonly templates = new Map<number, Template>();
  /** Definitions that were refused: their submissions fail with the reason. */
  readonly refusedTemplates = new Map<number, Failure>();
  readonly pendingWaits = new Set<PendingCall>();
  /** When its client last asked for something, and after how long without that, and without work under way, it is ended. */
  activeMs = 0;
  idleMs = Number.POSITIVE_INFINITY;
  /** Refs of other sessions that were handed to this client inside values, how often: held until it gives them back or ends. */
  readonly borrowed = new Map<ObjectEntry, number>();
  codeUpload: { readonly digest: Uint8Array; readonly digestHex: string; readonly bytes: Uint8Array; filled: number } | undefined = undefined;
  readonly puts = new Map<number, { readonly total: number; offset: number; readonly fileName: string }>();

  constructor(number: number, kind: ChannelKind, session: Session, job: Job, principal: Principal, depth: number, slot: Slot | undefined) {
    this.number = number;
    this.kind = kind;
    this.session = session;
    this.job = job;
    this.principal = principal;
    this.depth = depth;
    this.slot = slot;
  }
}

export const TASK_STATE = { WAITING: 0, QUEUED: 1, RUNNING: 2, DONE: 3 } as const;
export type TaskState = (typeof TASK_STATE)[keyof typeof TASK_STATE];

/** A batch that calls in flight keep in memory, whole. */
export interface HeldBatch {
  readonly bytes: number;
  calls: number;
}

const NOTHING = new Uint8Array(0);

/** A task, actor creation or actor call. Its payload stays in the batch it came in: `args` is a range of it. */
export class Task {
  readonly channel: Channel;
  readonly seq: number;
  readonly template: Template;
  batch: Uint8Array;
  held: HeldBatch | undefined = undefined;
  readonly argsStart: number;
  readonly restStart: number;
  readonly argsEnd: number;
  readonly auditSeq: number;
  readonly depth: number;
  readonly submittedMs: number;
  /** When it last began to wait for its turn. */
  queuedMs: number;
  deps: ObjectEntry[] | undefined = undefined;
  depPositions: number[] | undefined = undefined;
  contained: ObjectEntry[] | undefined = undefined;
  missing = 0;
  state: TaskState = TASK_STATE.WAITING;
  attempt = 0;
  slot: Slot | undefined = undefined;
  /** Of a traced call: the call whose code made it, until this one has ended. */
  caller: Task | undefined = undefined;
  /** The slot it was on last, also when it has left it. */
  ranOn: Slot | undefined = undefined;
  exec = 0;
  upstream: Upstream | undefined = undefined;
  remoteSeq = 0;
  startedMs = 0;
  cpuAtStartMicros = 0;
  blocked = 0;
  cancelled: Failure | undefined = undefined;
  killAtMs = 0;
  actor: Actor | undefined = undefined;
  /** Refs that a running task made, released when it ends. */
  created: number[] | undefined = undefined;
  /** Of a call that streams. */
  stream: Stream | undefined = undefined;
  /** Index of the call in the session that it comes from, on whatever node that is. */
  origin: number;
  /** The call that made this one, where that is known, and how many calls this one has made that have not ended. */
  parent: Task | undefined = undefined;
  children = 0;
  /** Calls below it may be nested so deep. */
  depthLimit = MAX_TASK_DEPTH;
  /** What was thrown is of a class that its options name. */
  retryable = false;
  /** Its next try comes no earlier. */
  notBeforeMs = 0;

  constructor(channel: Channel, seq: number, template: Template, batch: Uint8Array, argsStart: number, restStart: number, argsEnd: number, auditSeq: number, depth: number, nowMs: number) {
    this.channel = channel;
    this.seq = seq;
    this.template = template;
    this.batch = batch;
    this.argsStart = argsStart;
    this.restStart = restStart;
    this.argsEnd = argsEnd;
    this.auditSeq = auditSeq;
    this.depth = depth;
    this.submittedMs = nowMs;
    this.queuedMs = nowMs;
    this.origin = seq;
  }

  /** Counts the batch that keeps the arguments, once for all calls in it. */
  hold(held: HeldBatch): void {
    this.held = held;
    if (held.calls++ > 0) return;
    this.channel.heldBytes += held.bytes;
    this.channel.job.tenant.heldBytes += held.bytes;
  }

  /** It has ended: whoever still knows it, as an actor its creation, does not keep its arguments. */
  letGo(): void {
    this.batch = NOTHING;
    const { held } = this;
    this.held = undefined;
    if (held === undefined || --held.calls > 0) return;
    this.channel.heldBytes -= held.bytes;
    this.channel.job.tenant.heldBytes -= held.bytes;
  }
}

/**
 * What a call that streams has yielded, and may yet. Items are numbered from 0 through all attempts: an attempt begins by passing over
 * those that were delivered before it.
 */
export class Stream {
  readonly window: StreamWindow;
  /** The call of the reader's side that made this one: refs of items end with it. */
  readonly reader: Task | undefined;
  /** The reader has asked for items. */
  opened = false;
  /** Number of the next item. Those below `granted` may come. */
  delivered = 0;
  granted = 0;
  /** Items of which the reader has got the ref, through all attempts and not counting those it passed over. */
  count = 0;
  /** Indexes of the reader's session that items take: a run, and the runs after it as pairs of first and count. */
  nextIndex = 0;
  endIndex = 0;
  readonly indexes: number[] = [];
  /** Octets of items that were delivered and not taken yet, in all and one by one. */
  unreadBytes = 0;
  readonly unread: number[] = [];
  /** The audit record of the newest decision about its items. */
  needed = -1;
  /** Of the attempt under way: how many items it passes over, what it was told it may send, and what it has sent. */
  skip = 0;
  upTo = 0;
  room = 0;
  sentBytes = 0;
  /** It may send nothing more now, and gives up its place on the cpu. */
  stalled = false;
  /** The reader's call that waits for an item, and its exec number. */
  waiting: Task | undefined = undefined;
  waitingExec = 0;
  /** It runs on another raylet and was told how many items to send; the indexes they have there, as pairs of next and end. */
  remote = false;
  remoteIndexes: number[] = [];

  constructor(window: StreamWindow, reader: Task | undefined) {
    this.window = window;
    this.reader = reader;
  }
}

/** Tasks of one job that need the same resources: what Ray calls a scheduling class. */
export class SchedulingClass {
  readonly job: Job;
  readonly resources: ResourceVector;
  /** As in `FunctionOptions`. */
  readonly runtime: string;
  /** Undefined: anywhere. */
  readonly placement: Placement | undefined;
  /** Of those in a placement group: another raylet sent its tasks to the bundles that are here; and who they run as. */
  readonly forwarded: boolean;
  readonly asJob: boolean;
  /** As its functions ask; what they get is no more than their project may. */
  readonly priority: number;
  /** Order of its last grant, for turns between what is equal otherwise. */
  servedAt = 0;
  /** Since when it waits for what others of its tenant hold; 0: it does not. Leases that were told to end for it, and until when it waits for them. */
  blockedSinceMs = 0;
  /** Since when it waits for nothing but a larger share of a quota; 0: it does not. */
  shortSinceMs = 0;
  promised = 0;
  promisedUntilMs = 0;
  /** Among its job's classes. */
  key: string;
  /** Its group is gone and nothing of it is left: it is not looked at, until a call comes for it after all. */
  parked = false;
  /**
   * Other nodes that may have room for its calls, of the submitter and of the job: one that has none is asked again when something of the class ends there or the head
   * tells of it, and all are once in a while. Undefined: all. So a step costs no more where there are many nodes.
   */
  readonly open: (Set<number> | undefined)[] = [undefined, undefined];
  /** Where it may run, the same by the nodes' numbers as positions, and as of which change of the nodes. */
  places: readonly Place[] = [];
  readonly positions = new Map<number, number>();
  placesAt = -1;
  /** Of those that are spread: the node that is tried first next time. */
  turn = 0;
  readonly queue = new TaskQueue();
  readonly leases = new Set<Lease>();
  /** By node and by who its tasks run as there: `remoteLeaseKey`. */
  readonly remoteLeases = new Map<number, RemoteLease>();
  starting = 0;

  constructor(job: Job, resources: ResourceVector, runtime: string, placement: Placement | undefined, forwarded: boolean, asJob: boolean, priority: number, key: string) {
    this.job = job;
    this.key = key;
    this.resources = resources;
    this.runtime = runtime;
    this.placement = placement;
    this.forwarded = forwarded;
    this.asJob = asJob;
    this.priority = priority;
  }
}

/** First in, first out, with room to give a task back to the front; no array shift per task. A task is QUEUED exactly while it is in here. */
export class TaskQueue {
  #items: (Task | undefined)[] = [];
  #head = 0;
  /** Of the items, those that ended where they are. */
  #ended = 0;

  get length(): number {
    return this.#items.length - this.#head - this.#ended;
  }

  /** Items, those that have ended included. */
  get kept(): number {
    return this.#items.length - this.#head;
  }

  push(task: Task): void {
    task.state = TASK_STATE.QUEUED;
    this.#items.push(task);
  }

  unshift(task: Task): void {
    task.state = TASK_STATE.QUEUED;
    if (this.#head > 0) this.#items[--this.#head] = task;
    else this.#items.unshift(task);
  }

  /** One of its tasks has ended in here. They are not kept: what cannot run now, and is cancelled, may be followed by any number of the like. */
  ended(): void {
    if (++this.#ended < 64 || this.#ended * 2 < this.#items.length - this.#head) return;
    this.#items = this.#items.filter((task) => task?.state === TASK_STATE.QUEUED);
    this.#head = 0;
    this.#ended = 0;
  }

  /** Takes the next task that is still queued. */
  shift(): Task | undefined {
    while (this.#head < this.#items.length) {
      const task = this.#items[this.#head];
      this.#items[this.#head++] = undefined;
      if (this.#head > 1_024 && this.#head * 2 > this.#items.length) {
        this.#items = this.#items.slice(this.#head);
        this.#head = 0;
      }
      if (task?.state === TASK_STATE.QUEUED) {
        task.state = TASK_STATE.WAITING;
        return task;
      }
      this.#ended--;
    }
    this.#items = [];
    this.#head = 0;
    this.#ended = 0;
    return undefined;
  }

  *[Symbol.iterator](): IterableIterator<Task> {
    for (let i = this.#head; i < this.#items.length; i++) {
      const task = this.#items[i];
      if (task !== undefined && task.state === TASK_STATE.QUEUED) yield task;
    }
  }
}

/** A jailed process of one tenant, as the core knows it. */
export class Worker {
  /** It gets no more isolates: it has had its share and is replaced when what runs in it has finished, or its end is under way or near. */
  get worn(): boolean {
    return this.ending || this.failing || this.nextSlot > MAX_ISOLATES_PER_WORKER;
  }

  readonly key: number;
  readonly tenant: TenantState;
  readonly memoryBytes: number;
  readonly purpose: 'tasks' | 'actors';
  readonly runtime: string;
  id: WorkerId | undefined = undefined;
  pid = 0;
  state: 'STARTING' | 'ALIVE' | 'DEAD' = 'STARTING';
  readonly slots = new Map<number, Slot>();
  nextSlot = 1;
  ending = false;
  /** An isolate in it ran out of memory, which V8 as often as not does not outlive: its process may be on its way out. */
  failing = false;
  /** Actors that live here or are about to. */
  seats = 0;
  /** Those of them whose isolates are still being made, one after the other in each process. */
  booting = 0;
  idleSinceMs = 0;
  /** Octets out of its isolates that wait their turn to be read. */
  unreadBytes = 0;

  constructor(key: number, tenant: TenantState, memoryBytes: number, purpose: 'tasks' | 'actors', runtime: string) {
    this.key = key;
    this.tenant = tenant;
    this.memoryBytes = memoryBytes;
    this.purpose = purpose;
    this.runtime = runtime;
  }
}

/** One isolate of a worker: tasks of one job, or one actor. */
export class Slot {
  readonly worker: Worker;
  readonly number: number;
  readonly job: Job;
  readonly execs = new Map<number, Task>();
  readonly templates = new WeakMap<Template, number>();
  nextTemplate = 1;
  readonly codes = new Map<string, number>();
  channel!: Channel;
  lease: Lease | undefined = undefined;
  actor: Actor | undefined = undefined;
  nextExec = 1;
  /** Depth of the deepest call that it was ever given: what its code started and calls of no call of its own counts as that one's. */
  deepest = 0;
  nextAttachment = 1;
  opened = false;
  lastResultMs = 0;
  /** A call in it did not stop when it was told to. */
  stuck = false;

  constructor(worker: Worker, number: number, job: Job) {
    this.worker = worker;
    this.number = number;
    this.job = job;
  }
}

/** A worker lease: the right to run tasks of one class on one slot, holding the class's resources while it does. */
export class Lease {
  readonly schedulingClass: SchedulingClass;
  readonly worker: Worker;
  /** What it holds its resources of; undefined: the node. */
  readonly bundle: BundleHold | undefined;
  slot: Slot | undefined = undefined;
  holding = false;
  /** Execs that are running and not waiting for an object. */
  active = 0;
  heldSinceMs = 0;
  draining = false;

  constructor(schedulingClass: SchedulingClass, worker: Worker, bundle: BundleHold | undefined) {
    this.schedulingClass = schedulingClass;
    this.worker = worker;
    this.bundle = bundle;
  }
}

/** Room on another node, as last reported, that this class's tasks are forwarded into. */
export class RemoteLease {
  readonly upstream: Upstream;
  inFlight = 0;
  lastResultMs = 0;
  /** When tasks were last asked back, and how often in a row they had begun. */
  recalledMs = 0;
  refusals = 0;

  constructor(upstream: Upstream) {
    this.upstream = upstream;
  }
}

/** A channel to another raylet, on which this one is the client for one job. */
export class Upstream {
  readonly number: number;
  readonly nodeNumber: number;
  readonly job: Job;
  readonly asJob: boolean;
  readonly out = new FrameWriter();
  /** Code bundles leave before the frames of the step that needs them. */
  readonly codeOut = new FrameWriter();
  needed = -1;
  readonly cut: CutBatch[] = [];
  dirty = false;
  closed = false;
  /** Octets of its batches that wait their turn to be read. */
  unreadBytes = 0;
  prefix: Uint8Array | undefined = undefined;
  nextSeq = 1;
  nextRequest = 1;
  /** Questions that DONE or FAILED answers. */
  readonly asks = new Map<number, (failure: Failure | undefined, info: string) => void>();
  readonly templates = new Map<Template, number>();
  readonly codes = new Set<string>();
  readonly requests = new Map<number, UpstreamRequest>();
  /** Forwarded before WELCOME told the prefix: run when it arrives. */
  deferred: (() => void)[] = [];
  /** Objects whose fetch is among the deferred. */
  deferredFetches: ObjectEntry[] = [];
  readonly tasks = new Set<Task>();
  /** Refs inside the arguments of calls that have ended here, held until that raylet has told their owners what it keeps of them; and calls of which it said so before they ended here. */
  readonly returning = new Map<number, readonly ObjectEntry[]>();
  readonly returnedEarly = new Set<number>();
  /** Objects whose owner was asked to hold them for us, by request. */
  readonly borrowing = new Map<number, readonly ObjectEntry[]>();
  /** Actors that were made there for us, by the index that they have there. */
  readonly actors = new Map<number, Actor>();
  /** Calls there that stream to here, by the index they have there. */
  readonly streams = new Map<number, Task>();
  /** It is for getting copies of what others own, and nothing else: it closes with the last. */
  readonly copies: boolean;
  /** Who may come for copies of what that raylet owns and we have, by ticket, the oldest first. */
  readonly shares = new Map<string, Share>();

  constructor(number: number, nodeNumber: number, job: Job, asJob: boolean, copies = false) {
    this.copies = copies;
    this.number = number;
    this.nodeNumber = nodeNumber;
    this.job = job;
    this.asJob = asJob;
  }
}

export interface UpstreamRequest {
  readonly number: number;
  readonly entries: readonly ObjectEntry[];
  readonly ids: readonly Uint8Array[];
  remaining: number;
  readonly task: Task | undefined;
  /** It asks for the octets of one value, which may come in parts. */
  readonly fetch: boolean;
  /** The parts that have come so far; counted in the tenant's objects. */
  upload: { readonly tenant: TenantState; readonly total: number; offset: number; readonly fileName: string } | undefined;
  /** What the other node says that the parts will add up to. */
  digest: Uint8Array | undefined;
  /** Refs inside values that are on their way, by position. */
  lent: Map<number, ObjectEntry[]> | undefined;
  /** Positions that have their answer, where there is more than one. */
  answered: Set<number> | undefined;
  /** Its owner sent us to another raylet for it: the request there; and how often it has. */
  elsewhere: { readonly upstream: Upstream; readonly number: number } | undefined;
  detours: number;
  /** It is such a request: whose, since when, and what its owner says of the value. */
  readonly copyOf: { readonly upstream: Upstream; readonly request: UpstreamRequest; readonly size: number; readonly sinceMs: number } | undefined;
}

/** The transitions between these are numbered in actors.ts. */
export type ActorState = 'DEPENDENCIES_UNREADY' | 'PENDING_CREATION' | 'ALIVE' | 'RESTARTING' | 'DEAD';

/** The constructor's arguments as they came, with what they refer to held: an actor that starts again is given them again. */
export interface CreationSeed {
  readonly args: Uint8Array;
  /** Where the octets behind the refs begin in it. */
  readonly restStart: number;
  readonly deps: readonly ObjectEntry[];
  readonly depPositions: readonly number[];
  readonly contained: readonly ObjectEntry[];
}


export class Actor {
  readonly session: Session;
  readonly index: number;
  readonly job: Job;
  readonly template: Template;
  /** Of the life it has or is about to have. */
  creation: Task;
  readonly name: string;
  state: ActorState = 'DEPENDENCIES_UNREADY';
  reason = '';
  slot: Slot | undefined = undefined;
  worker: Worker | undefined = undefined;
  /** What it holds its resources of, while it does; undefined: the node. */
  bundle: BundleHold | undefined = undefined;
  upstream: Upstream | undefined = undefined;
  remoteId: Uint8Array | undefined = undefined;
  holding = false;
  /** Its worker counts it among those whose isolates are being made. */
  booting = false;
  nameRegistered = false;
  /** The head has what it is made of: it can be made again when this node is lost. */
  kept = false;
  /** Kept while it may start again. */
  seed: CreationSeed | undefined = undefined;
  restarts = 0;
  aliveSinceMs = 0;
  /** Lives in a row that were short, and the time before which the next one does not begin. */
  shortLives = 0;
  notBeforeMs = 0;
  /** Nobody has a handle any more: it ends when its last call has. */
  unreachable = false;
  /** A handle left for another node, where nobody counts it: it lives as long as its owner. */
  escaped = false;
  /** Calls that came before the actor was alive, or whose turn waits for an argument: in order, per caller. */
  readonly queues = new Map<Channel, Task[]>();
  inFlight = 0;
  /** Weak, as the templates of a slot: an actor outlives the drivers that call it, and their definitions must go with them. */
  readonly methodResources = new WeakMap<Template, Resource>();
  /** It never was: its tenant's quota had no room for it. */
  refused: Failure | undefined = undefined;

  /** While it waits on another node: when it may be asked back again. */
  notRecalledBeforeMs = 0;
  /** Of the calls in `queues`, at most so many ended where they are. */
  endedWaiting = 0;

  constructor(session: Session, index: number, job: Job, template: Template, creation: Task, name: string) {
    this.session = session;
    this.index = index;
    this.job = job;
    this.template = template;
    this.creation = creation;
    this.name = name;
  }
}

export interface RemoteNode {
  readonly nodeId: string;
  readonly number: number;
  readonly address: string;
  readonly spiffeId: string;
  readonly labels: Labels;
  total: ResourceVector;
  /** As last reported, less what was forwarded since. */
  available: ResourceVector;
  reported: ResourceVector;
  /** When something was last forwarded; Infinity: not since it reported. */
  takenMs: number;
}
