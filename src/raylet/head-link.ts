/**
 * The raylet's stream to the head: reports every heartbeat, takes policy, revocations, nodes, tenants and stopped jobs. While the
 * head is away the raylet goes on with what it knows; when it is back the first update has everything. Before an SVID under the stream
 * ends, a second stream takes over: to the head a planned change is no silence.
 */
import { parseSnapshot, type LiveDecisionPoint } from '../authz/authz.ts';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import { parseJobId, parseNodeId, type JobId } from '../base/ids.ts';
import { parseLabels, type Labels } from '../base/labels.ts';
import { HEARTBEAT_MS, MAX_ENDED_SESSIONS_KEPT, MAX_ENDED_SESSIONS_PER_REPORT, NODE_DEAD_AFTER_MS } from '../base/limits.ts';
import type { ResourceVector } from '../base/resources.ts';
import type { DataKey } from '../objects/spill-files.ts';
import { TrustBundle, type Revocations, type SvidSource } from '../pki/pki.ts';
import { NodeSync, type HeadUpdate, type Resources } from '../rpc/generated/bulkhead/v1/head_pb.js';
import { client, type Client, type MessageStream, type RpcChannel } from '../rpc/rpc.ts';
import type { ActorSeed } from './core/adoption.ts';
import type { ActorNames, FoundActor, Raylet, RayletLog } from './raylet.ts';

const RECONNECT_FIRST_MS = 50;
const RECONNECT_MOST_MS = 2_000;
const NAME_CALL_TIMEOUT_MS = 5_000;
/** A report may be lost with its stream; to the head the second one is nothing new. */
const REPORTS_OF_AN_ENDED_SESSION = 3;

export interface HeadLinkOptions {
  readonly channel: () => RpcChannel;
  readonly raylet: () => Raylet;
  readonly identity: SvidSource;
  readonly decisions: LiveDecisionPoint;
  readonly revocations: Revocations;
  readonly nodeNumber: number;
  readonly instance: string;
  readonly address: () => string;
  readonly total: ResourceVector;
  readonly labels: Labels;
  readonly insecureDev: boolean;
  readonly log: RayletLog;
}

function wireResources(r: ResourceVector): { cpuUnits: bigint; memoryBytes: bigint; custom: Record<string, bigint> } {
  return { cpuUnits: BigInt(Math.max(0, r.cpuUnits)), memoryBytes: BigInt(Math.max(0, r.memoryBytes)), custom: Object.fromEntries(Object.entries(r.custom ?? {}).map(([k, v]) => [k, BigInt(Math.max(0, v))])) };
}

function coreResources(r: Resources | undefined): ResourceVector {
  const custom = Object.entries(r?.custom ?? {});
  return { cpuUnits: Number(r?.cpuUnits ?? 0n), memoryBytes: Number(r?.memoryBytes ?? 0n), custom: custom.length === 0 ? undefined : Object.fromEntries(custom.map(([k, v]) => [k, Number(v)])) };
}

export class HeadLink implements ActorNames, AsyncDisposable {
  readonly #options: HeadLinkOptions;
  #channel: RpcChannel | undefined;
  #stream: MessageStream<HeadUpdate, object> | undefined;
  /** Opened to take over from `#stream`; does so with its first update. */
  #heir: MessageStream<HeadUpdate, object> | undefined;
  #retry: NodeJS.Timeout | undefined;
  #retryMs = RECONNECT_FIRST_MS;
  /** When the stream after a silence of the head was opened; an heir is no silence. */
  #openedMs = 0;
  #closed = false;
  /** Driver streams that ended, and how often the head was told on a stream that it answers. Oldest first. */
  #ended: { readonly jobId: string; readonly sessionId: string; readonly how: string; told: number }[] = [];
  #answered: MessageStream<HeadUpdate, object> | undefined;
  readonly #first = Promise.withResolvers<void>();
  #answeredOnce = false;
  /** Resolves when the first update is in force: policy, tenants and nodes are known. Rejects when the head will not have this node as it is. */
  readonly ready = this.#first.promise;

  constructor(options: HeadLinkOptions) {
    this.#options = options;
    this.ready.catch(() => undefined);
  }

  start(): void {
    if (this.#closed) return;
    this.#channel = this.#options.channel();
    void this.#run(this.#channel);
  }

  #client(): Client<typeof NodeSync> {
    return client(NodeSync, (this.#channel ??= this.#options.channel()));
  }

  /** One stream, from its first report to its end. */
  async #run(channel: RpcChannel): Promise<void> {
    const { log, total, labels, insecureDev } = this.#options;
    // Not when a stream takes over from another: to the head that was no silence.
    const again = this.#answered !== undefined && this.#stream === undefined;
    let stream: MessageStream<HeadUpdate, object> | undefined;
    let timer: NodeJS.Timeout | undefined;
    let stale = false;
    const replace = (): void => {
      if (!stale || this.#heir !== undefined || this.#stream !== stream || this.#channel !== channel || this.#closed) return;
      stale = false;
      void this.#run(channel);
    };
    try {
      const opened = client(NodeSync, channel).sync({
        onStale: () => {
          stale = true;
          replace();
        },
      }) as MessageStream<HeadUpdate, object>;
      stream = opened;
      const told = new Map<string, string>();
      const toldQuotas = new Map<string, string>();
      const hurry = (): void => {
        if (this.#stream === opened) opened.write(this.#facts(toldQuotas));
      };
      if (this.#stream === undefined) {
        this.#stream = opened;
        this.#openedMs = performance.now();
      } else this.#heir = opened;
      stream.write({ ...this.#facts(toldQuotas), address: this.#options.address(), total: wireResources(total), labels: { ...labels }, insecureDev, instance: this.#options.instance });
      let reportedMs = performance.now();
      timer = setInterval(() => {
        // This process stood still for so long that the head may have taken the node for dead.
        const silent = performance.now() - reportedMs > NODE_DEAD_AFTER_MS - 4 * HEARTBEAT_MS;
        reportedMs = performance.now();
        opened.write(this.#answered === opened ? { ...this.#facts(toldQuotas), endedSessions: this.#endedSessions(), monthUsage: this.#monthUsage(told) } : this.#facts(toldQuotas));
        if (silent) void this.#options.raylet().registerNamesAgain();
      }, HEARTBEAT_MS);
      for await (const update of stream) {
        if (this.#heir === stream) {
          this.#stream = stream;
          this.#heir = undefined;
          // What the older stream told since is not in this one's books.
          toldQuotas.clear();
        }
        this.#options.raylet().onShort = hurry;
        // The head speaks on the newer stream only; what the older one still brings may be older.
        if (this.#stream !== stream) break;
        // Told while it was not in use yet.
        replace();
        this.#retryMs = RECONNECT_FIRST_MS;
        const first = this.#answered !== stream;
        this.#answered = stream;
        this.#apply(update);
        if (update.quotas !== undefined && update.quotas.tenants.length > 0) hurry();
        if (first && again) void this.#options.raylet().registerNamesAgain();
      }
    } catch (error) {
      // What it says of itself: trying again changes nothing.
      if (!this.#answeredOnce && error instanceof BulkheadError && error.code === 'INVALID_ARGUMENT') this.#first.reject(error);
      if (!this.#closed && this.#stream === stream && this.#heir === undefined) log.warn({ code: toSafeError(error).code, err: error }, 'the stream to the head ended; this node goes on with what it knows and tries again');
    }
    clearInterval(timer);
    if (this.#heir === stream) {
      this.#heir = undefined;
      // The older stream goes on for now.
      setTimeout(() => {
        if (this.#stream !== undefined && this.#heir === undefined && this.#channel === channel && !this.#closed) void this.#run(channel);
      }, RECONNECT_MOST_MS).unref();
    }
    if (this.#stream !== stream) return stream?.end(new BulkheadError('CANCELLED', 'another stream took over'));
    this.#stream = this.#heir;
    this.#heir = undefined;
    // The head ends the older stream when it has the newer one's first report.
    if (this.#stream !== undefined) return;
    channel.close();
    if (this.#channel === channel) this.#channel = undefined;
    if (this.#closed) return;
    this.#retry = setTimeout(() => this.start(), this.#retryMs);
    this.#retryMs = Math.min(this.#retryMs * 2, RECONNECT_MOST_MS);
  }

  /** With the next heartbeats the head hears of it: what it does about a driver that is gone does not wait for the credential's end. */
  streamEnded(jobId: JobId, sessionId: string, how: 'closed' | 'lost'): void {
    if (this.#closed) return;
    this.#ended.push({ jobId, sessionId, how, told: 0 });
    if (this.#ended.length > MAX_ENDED_SESSIONS_KEPT) this.#ended.shift();
  }

  #endedSessions(): { jobId: string; sessionId: string; how: string }[] {
    const due = this.#ended.slice(0, MAX_ENDED_SESSIONS_PER_REPORT);
    if (due.length === 0) return [];
    for (const entry of due) entry.told++;
    this.#ended = this.#ended.filter((entry) => entry.told < REPORTS_OF_AN_ENDED_SESSION);
    return due.map(({ jobId, sessionId, how }) => ({ jobId, sessionId, how }));
  }

  /** What changed since it was told on this stream, by tenant. */
  #monthUsage(told: Map<string, string>) {
    return this.#options.raylet().monthUsage().flatMap(({ tenant, usage: { month, calls, cpuMicros, memoryMibMs } }) => {
      const row = { tenant, month, calls: BigInt(calls), cpuMicros: BigInt(Math.round(cpuMicros)), memoryMibMs: BigInt(Math.round(memoryMibMs)) };
      const said = `${month} ${row.calls} ${row.cpuMicros} ${row.memoryMibMs}`;
      if (told.get(tenant) === said) return [];
      told.set(tenant, said);
      return [row];
    });
  }

  /** What changed since it was told on this stream, by tenant; how long something has waited counts only in seconds. */
  #quotas(told: Map<string, string>) {
    const { serial, epoch, tenants } = this.#options.raylet().shareReport(new Set(told.keys()));
    const news = tenants.filter(({ tenant, applied, lines, asks }) => {
      const said = `${epoch} ${applied} ${lines.map((l) => `${l.line} ${l.held} ${l.use} ${l.firm} ${l.want} ${l.next} ${Math.floor(l.blockedMs / 1_000)}`).join(' ')}`;
      if (!asks && told.get(tenant) === said) return false;
      if (lines.length === 0 && applied === 0) told.delete(tenant);
      else told.set(tenant, said);
      return true;
    });
    return {
      serial: BigInt(serial), epoch: BigInt(epoch),
      tenants: news.map(({ tenant, applied, lines }) => ({ tenant, applied: BigInt(applied), lines: lines.map(({ line, held, use, firm, want, next, blockedMs }) => ({ line, held: BigInt(held), use: BigInt(use), firm: BigInt(firm), want: BigInt(want), next: BigInt(next), blockedMs: BigInt(Math.floor(blockedMs)) })) })),
    };
  }

  #facts(told: Map<string, string> | undefined) {
    const raylet = this.#options.raylet();
    return { ...(told === undefined ? {} : { quotas: this.#quotas(told) }), available: wireResources(raylet.available()), policyVersion: this.#options.decisions.version, revocationVersion: BigInt(Math.max(0, this.#options.revocations.version)), queuedTasks: raylet.queuedTasks() };
  }

  /** Revocations and policy first: nothing else of an update may be used under older ones. */
  #apply(update: HeadUpdate): void {
    const { revocations, decisions, identity, nodeNumber, log } = this.#options;
    const raylet = this.#options.raylet();
    if (update.revocations !== undefined) {
      const rows = update.revocations.revocations;
      revocations.apply({
        serials: rows.filter((r) => r.serial !== '').map((r) => r.serial),
        identities: rows.filter((r) => r.spiffeId !== '').map((r) => ({ spiffeId: r.spiffeId, revokedBeforeMs: Number(r.issuedBeforeMs) })),
      }, Number(update.revocations.version));
      for (const job of [...raylet.core.state.jobs.values()]) {
        // A session is at most as old as its credential; one that was issued after the revocation stays.
        if (revocations.isIdentityRevoked(job.submitter.spiffeId, job.issuedMs)) raylet.stopJob(job.id, 'the identity that submitted it was revoked');
      }
    }
    if (update.trustBundle !== undefined) identity.updateBundle(TrustBundle.fromJwks(identity.trustDomain, update.trustBundle.jwks));
    if (update.policy !== undefined) {
      decisions.swap(parseSnapshot(new TextDecoder().decode(update.policy.snapshot)));
      this.#stream?.write(this.#facts(undefined));
    }
    for (const tenant of update.tenants?.tenants ?? []) raylet.setTenant(tenant.name, tenant.number, tenant.quota, tenant.state === 'active', tenant.overBudget);
    if (update.quotas !== undefined) {
      const { epoch, answered, leaseMs, tenants } = update.quotas;
      raylet.takeShares(Number(epoch), Number(answered), leaseMs, tenants.map(({ tenant, serial, lines }) => ({ tenant, serial: Number(serial), lines: lines.map(({ line, amount, coming }) => ({ line, amount: Number(amount), coming })) })));
    }
    if (update.nodes !== undefined) {
      const alive = new Set<number>();
      for (const node of update.nodes.nodes) {
        if (node.nodeNumber === nodeNumber) continue;
        // A head that has just started has not heard of everyone yet: that says nothing about a node that we know.
        if (node.state !== 'alive' && node.lastSeenMs === 0n && performance.now() - this.#openedMs < NODE_DEAD_AFTER_MS) alive.add(node.nodeNumber);
        if (node.state !== 'alive') continue;
        alive.add(node.nodeNumber);
        raylet.core.setNode(parseNodeId(node.nodeId), node.nodeNumber, node.address, node.spiffeId, coreResources(node.total), node.queuedTasks > 0 ? { cpuUnits: 0, memoryBytes: 0, custom: undefined } : coreResources(node.available), parseLabels(node.labels));
      }
      for (const number of [...raylet.core.state.nodes.keys()]) if (!alive.has(number)) raylet.core.removeNode(number);
      raylet.core.settle();
      raylet.flush();
    }
    const each = (jobs: readonly string[], end: (job: JobId) => void): void => {
      for (const job of jobs) {
        try {
          end(parseJobId(job));
        } catch (error) {
          log.warn({ err: error }, 'the head named a job that is not one');
        }
      }
    };
    each(update.stoppedJobs, (job) => raylet.stopJob(job, 'the job was stopped'));
    each(update.endedJobs, (job) => raylet.releaseDrivers(job, 'the job has ended'));
    this.#answeredOnce = true;
    this.#first.resolve();
  }

  async register(credential: string, tenant: string, namespace: string, name: string, id: Uint8Array, classInfo: string, seed: ActorSeed | undefined): Promise<boolean> {
    const { kept } = await this.#client().registerActorName({ credential, tenant, namespace, name, actorId: id, classInfo, ...(seed === undefined ? {} : { seed }) }, { timeoutMs: NAME_CALL_TIMEOUT_MS });
    return kept;
  }

  async lookup(credential: string, tenant: string, namespace: string, name: string): Promise<FoundActor | undefined> {
    const found = await this.#client().lookupActorName({ credential, tenant, namespace, name }, { timeoutMs: NAME_CALL_TIMEOUT_MS });
    return found.found ? { id: found.actorId, classInfo: found.classInfo, orphaned: found.orphaned, seed: found.seed } : undefined;
  }

  async release(tenant: string, namespace: string, name: string, id: Uint8Array): Promise<void> {
    if (!this.#closed) await this.#client().releaseActorName({ tenant, namespace, name, actorId: id }, { timeoutMs: NAME_CALL_TIMEOUT_MS });
  }

  /** A key for what this node writes to its disk for a tenant. */
  async dataKey(tenant: string): Promise<DataKey> {
    const { key, wrapped } = await this.#client().dataKey({ tenant }, { timeoutMs: NAME_CALL_TIMEOUT_MS });
    if (key.length !== 32) throw new BulkheadError('INTERNAL', 'the head answered with a data key that is none');
    return { key, wrapped };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#retry);
    this.#heir?.end();
    this.#stream?.end();
    // Long enough for the goodbye to leave, so that the others need not wait for this node's silence.
    await new Promise((resolve) => setTimeout(resolve, 20));
    this.#channel?.close();
  }
}
