/**
 * The one stream between a raylet and the head: reports up, whole parts down. The node is the one in the caller's SVID; nothing in a message
 * says who it is. A part is sent whole, so a slow reader skips states and never gets half of one, and what waits for it is bounded.
 */
import { Buffer } from 'node:buffer';
import { fromBinary, toBinary, type MessageInitShape } from '@bufbuild/protobuf';
import { BulkheadError } from '../../base/errors.ts';
import { OBJECT_ID_BYTES, parseJobId, parseTenantName, quote } from '../../base/ids.ts';
import { describeLabels, parseLabels } from '../../base/labels.ts';
import { MAX_ACTOR_NAME_CHARS, MAX_ACTOR_SEED_BYTES, MAX_ENDED_SESSIONS_PER_REPORT, MAX_QUOTA_LINES_PER_TENANT, MAX_TENANTS, QUOTA_LEASE_MS, SECOND_THOUGHTS_MS } from '../../base/limits.ts';
import { describeResources, UNITS_PER_CPU, type ResourceVector } from '../../base/resources.ts';
import { ActorSeedSchema, type AuditCheckpoint, type EndedSession, type HeadUpdateSchema, type MonthUsage, type NodeReport, type NodeSync, type QuotaDemands, type Resources } from '../../rpc/generated/bulkhead/v1/head_pb.js';
import type { CallContext, Implementation } from '../../rpc/service-types.ts';
import type { MessageStream } from '../../rpc/streams.ts';
import type { JobRow } from '../core/jobs.ts';
import type { NodeReportFacts } from '../core/nodes.ts';
import { PARTS, type Part } from '../core/table.ts';
import type { HeadContext } from '../ports.ts';
import { deny } from './access.ts';
import { shownNode } from './cluster.ts';
import { shownTenant } from './tenants.ts';

type HeadUpdate = MessageInitShape<typeof HeadUpdateSchema>;

/** What changes together goes together. */
const GATHER_MS = 5;
/** Loads of nodes change all the time; others need them only to choose where to spill. */
const NODES_EVERY_MS = 100;
const NAMES_PER_COMMIT = 100;
/** A transaction must hold them all. */
const MAX_CHECKPOINTS_PER_REPORT = 100;
const MAX_CUSTOM_RESOURCES = 64;
const MAX_CPU_UNITS = 1_000_000 * UNITS_PER_CPU;

/** Throws INVALID_ARGUMENT for what no number here can hold. */
export function resources(r: Resources | undefined): ResourceVector {
  if (r === undefined) return { cpuUnits: 0, memoryBytes: 0, custom: undefined };
  const custom = Object.entries(r.custom);
  if (custom.length > MAX_CUSTOM_RESOURCES) throw new BulkheadError('INVALID_ARGUMENT', `${custom.length} custom resources exceed the limit of ${MAX_CUSTOM_RESOURCES}`);
  const whole = (value: bigint, limit: number): number => {
    if (value > BigInt(limit)) throw new BulkheadError('INVALID_ARGUMENT', 'a resource total is beyond what any node has');
    return Number(value);
  };
  return {
    cpuUnits: whole(r.cpuUnits, MAX_CPU_UNITS), memoryBytes: whole(r.memoryBytes, Number.MAX_SAFE_INTEGER),
    custom: custom.length === 0 ? undefined : Object.fromEntries(custom.map(([name, units]) => [name.slice(0, 64), whole(units, MAX_CPU_UNITS)])),
  };
}

/** Throws INVALID_ARGUMENT for what is no amount of anything. */
function amount(value: bigint): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new BulkheadError('INVALID_ARGUMENT', 'an amount of a quota is beyond what any tenant has');
  return Number(value);
}

function facts(report: NodeReport): NodeReportFacts {
  return { available: resources(report.available), policyVersion: report.policyVersion, revocationVersion: Number(report.revocationVersion), queuedTasks: report.queuedTasks };
}

/** Each part as it is now, encoded once for all streams. */
class HeadUpdates {
  readonly #context: HeadContext;
  readonly #parts = new Map<Part, HeadUpdate>();

  constructor(context: HeadContext) {
    this.#context = context;
    context.head.onPush((changed) => {
      for (const part of changed) this.#parts.delete(part);
    });
  }

  of(parts: ReadonlySet<Part>): HeadUpdate {
    const update: HeadUpdate = {};
    for (const part of parts) {
      let value = this.#parts.get(part);
      if (value === undefined) this.#parts.set(part, (value = this.#make(part)));
      Object.assign(update, value);
    }
    return update;
  }

  #make(part: Part): HeadUpdate {
    const { head, pki, policies, budgets } = this.#context;
    switch (part) {
      case 'policy': return policies.current === undefined ? {} : { policy: { version: policies.current.version, snapshot: new TextEncoder().encode(policies.current.text) } };
      case 'revocations': return {
        revocations: { version: BigInt(head.revocations.version), revocations: head.revocations.all().map((r) => ({ spiffeId: r.spiffeId, serial: r.serial, issuedBeforeMs: BigInt(r.issuedBeforeMs) })) },
      };
      case 'nodes': return { nodes: { nodes: head.nodes.all().map((n) => shownNode(n, pki.trustDomain, true, head.clock.nowMs() - head.steady.nowMs())) } };
      case 'tenants': return { tenants: { tenants: head.tenants.all().map((t) => shownTenant(t, budgets.overOf(t.name))) } };
      case 'stoppedJobs': return { stoppedJobs: head.jobs.stopped(head.clock.nowMs()), endedJobs: head.jobs.ended(head.clock.nowMs()) };
      case 'trustBundle': return { trustBundle: { pem: pki.trustBundlePem(), jwks: pki.trustBundleJwks() } };
    }
  }
}

/** One node's stream, from its first report to its end. */
class NodeStream {
  readonly #stream: MessageStream<NodeReport, HeadUpdate>;
  readonly #updates: HeadUpdates;
  readonly #due = new Set<Part>(PARTS);
  #timer: NodeJS.Timeout | undefined;
  #dueAtMs = 0;
  #nodesSentMs = 0;
  #blocked = false;
  #ended = false;
  /** When the node was last told of its shares of quotas. */
  leasedMs = Number.NEGATIVE_INFINITY;

  constructor(stream: MessageStream<NodeReport, HeadUpdate>, updates: HeadUpdates) {
    this.#stream = stream;
    this.#updates = updates;
  }

  changed(parts: ReadonlySet<Part>): void {
    for (const part of parts) this.#due.add(part);
    if (this.#due.size > 0) this.#schedule();
  }

  #schedule(): void {
    if (this.#blocked || this.#ended) return;
    const now = performance.now();
    const onlyNodes = this.#due.size === 1 && this.#due.has('nodes');
    const at = Math.max(now + GATHER_MS, onlyNodes ? this.#nodesSentMs + NODES_EVERY_MS : 0);
    if (this.#timer !== undefined && this.#dueAtMs <= at) return;
    clearTimeout(this.#timer);
    this.#dueAtMs = at;
    this.#timer = setTimeout(() => this.flush(), at - now);
  }

  flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#ended || this.#blocked || this.#due.size === 0) return;
    if (this.#due.has('nodes')) this.#nodesSentMs = performance.now();
    const update = this.#updates.of(this.#due);
    this.#due.clear();
    this.send(update);
  }

  send(update: HeadUpdate): void {
    if (this.#ended) return;
    try {
      if (this.#stream.write(update)) return;
    } catch (error) {
      return this.end(error instanceof BulkheadError ? error : new BulkheadError('INTERNAL', 'the update could not be sent', { cause: error }));
    }
    this.#blocked = true;
    void this.#stream.drained().then(() => {
      this.#blocked = false;
      if (this.#due.size > 0) this.#schedule();
    });
  }

  end(error?: BulkheadError): void {
    if (this.#ended) return;
    this.#ended = true;
    clearTimeout(this.#timer);
    if (error !== undefined) this.#stream.end(error);
  }
}

export function nodeSyncService(context: HeadContext): Implementation<typeof NodeSync> {
  const { head, pki, checkpoints, shares } = context;
  const updates = new HeadUpdates(context);
  /** Open streams by node id: a node has one, and the newest counts. */
  const streams = new Map<string, NodeStream>();
  head.onPush((parts) => {
    for (const stream of streams.values()) stream.changed(parts);
    if (parts.has('tenants')) {
      shares.changed();
      tellDue();
    }
  });

  const register = async (nodeId: string, report: NodeReport): Promise<void> => {
    const total = resources(report.total);
    const labels = parseLabels(report.labels);
    const isNew = await head.commit((nowMs, out) => {
      const before = head.nodes.get(nodeId)?.instance;
      head.nodes.step({ type: 'register', id: nodeId, address: report.address, total, labels, most: context.nodeMost, insecureDev: report.insecureDev, instance: report.instance, facts: facts(report) }, head.steady.nowMs(), out);
      return before !== report.instance;
    }).catch(async (error: unknown) => {
      if (error instanceof BulkheadError && error.code === 'INVALID_ARGUMENT') await context.appendAudit('', { type: 'lifecycle', timeMs: head.clock.nowMs(), event: 'node.refused', principal: '', resourceKind: 'node', resource: nodeId, index: -1, detail: `says it has ${describeResources(total)}${Object.keys(labels).length === 0 ? '' : `, labels ${describeLabels(labels)}`}` });
      throw error;
    });
    // What the earlier process of this node held is gone.
    if (isNew) shares.started(nodeId);
    while (isNew && head.actorNames.ofNode(nodeId).length > 0) await head.commit((nowMs, out) => head.actorNames.step({ type: 'nodeGone', nodeId, limit: NAMES_PER_COMMIT }, nowMs, out));
  };

  const see = async (nodeId: string, reported: readonly AuditCheckpoint[], node: NodeStream): Promise<void> => {
    if (reported.length > MAX_CHECKPOINTS_PER_REPORT) throw new BulkheadError('RESOURCE_EXHAUSTED', `${reported.length} checkpoints in a report exceed the limit of ${MAX_CHECKPOINTS_PER_REPORT}`);
    const seen = reported.map(({ tenant, note }) => {
      const { origin, treeSize, rootHash } = checkpoints.parse(note);
      if (tenant !== '' && head.tenants.get(tenant) === undefined) throw new BulkheadError('INVALID_ARGUMENT', 'a checkpoint is of a tenant that does not exist');
      if (origin !== `${pki.trustDomain}/node/${nodeId}/${tenant === '' ? 'cluster' : `tenant/${tenant}`}`) throw new BulkheadError('INVALID_ARGUMENT', `a checkpoint is of another log, ${quote(origin)}`);
      return { nodeId, tenant, treeSize, rootHash, note };
    });
    if (new Set(seen.map((c) => c.tenant)).size !== seen.length) throw new BulkheadError('INVALID_ARGUMENT', 'a report has two checkpoints of one log');
    const signed = await head.commit((nowMs, out) => {
      for (const { note: _note, ...c } of seen) head.checkpoints.step({ type: 'seen', ...c }, nowMs, out);
      return seen.filter((c) => head.checkpoints.agrees(c));
    });
    if (signed.length > 0) node.send({ cosigned: signed.map(({ tenant, note }) => ({ tenant, note: checkpoints.sign(note) })) });
  };

  /** Sums of a node's budgets. One that turns is a fact of its tenant's log, with the node whose report it was. */
  const used = async (nodeId: string, reported: readonly MonthUsage[]): Promise<void> => {
    if (reported.length > MAX_TENANTS) throw new BulkheadError('RESOURCE_EXHAUSTED', `${reported.length} tenants in a report exceed the limit of ${MAX_TENANTS}`);
    for (const { tenant, month, calls, cpuMicros, memoryMibMs } of reported) {
      const row = head.tenants.get(tenant);
      if (row?.state !== 'active' || !/^\d{4}-\d\d$/.test(month) || month !== new Date(head.clock.nowMs()).toISOString().slice(0, 7)) continue;
      if (!context.budgets.report(nodeId, tenant, row.quota, { month, calls: Number(calls), cpuMicros: Number(cpuMicros), memoryMibMs: Number(memoryMibMs) })) continue;
      const over = context.budgets.overOf(tenant);
      await context.appendAudit(tenant, { type: 'lifecycle', timeMs: head.clock.nowMs(), event: over === '' ? 'budget.renewed' : 'budget.exceeded', principal: '', resourceKind: 'tenant', resource: tenant, index: -1, detail: `${over} by a report of node ${nodeId}`.trim() });
      head.announce('tenants');
    }
  };

  /** What the node needs of quotas. It is answered where it waits for more, and often enough for its lease. */
  const needs = (nodeId: string, { serial, epoch, tenants }: QuotaDemands, node: NodeStream): void => {
    if (tenants.length > MAX_TENANTS) throw new BulkheadError('RESOURCE_EXHAUSTED', `${tenants.length} tenants in a report exceed the limit of ${MAX_TENANTS}`);
    const demands = tenants.filter(({ tenant }) => head.tenants.get(tenant)?.state === 'active').map(({ tenant, applied, lines }) => {
      if (lines.length > MAX_QUOTA_LINES_PER_TENANT) throw new BulkheadError('RESOURCE_EXHAUSTED', `${lines.length} quotas of a tenant in a report exceed the limit of ${MAX_QUOTA_LINES_PER_TENANT}`);
      return { tenant, applied: amount(applied), lines: lines.map((l) => ({ line: l.line, held: amount(l.held), use: amount(l.use), firm: amount(l.firm), want: amount(l.want), next: amount(l.next), blockedMs: amount(l.blockedMs) })) };
    });
    const waits = shares.report(nodeId, amount(serial), amount(epoch), demands);
    if (waits || head.steady.nowMs() - node.leasedMs > QUOTA_LEASE_MS / 8) tell(nodeId, node, false);
    tellDue();
  };

  const tell = (nodeId: string, node: NodeStream, all: boolean): void => {
    const nowMs = head.steady.nowMs();
    const { epoch, answered, leaseMs, shares: due } = shares.take(nodeId, nowMs, all);
    node.leasedMs = nowMs;
    const tenants = due.map(({ tenant, serial, lines }) => ({ tenant, serial: BigInt(serial), lines: lines.map(({ line, amount: units, coming }) => ({ line, amount: BigInt(units), coming })) }));
    node.send({ quotas: { epoch: BigInt(epoch), answered: BigInt(answered), leaseMs, tenants } });
  };

  const tellDue = (): void => {
    for (const nodeId of shares.due()) {
      const node = streams.get(nodeId);
      if (node !== undefined) tell(nodeId, node, false);
    }
  };

  /** A session id is a secret of its credential, so a node can only tell of sessions whose credential it has seen; the rest is nothing new. */
  const streamsEnded = async (reported: readonly EndedSession[]): Promise<void> => {
    if (reported.length > MAX_ENDED_SESSIONS_PER_REPORT) throw new BulkheadError('RESOURCE_EXHAUSTED', `${reported.length} ended sessions in a report exceed the limit of ${MAX_ENDED_SESSIONS_PER_REPORT}`);
    const news = reported.filter((e) => e.sessionId !== '' && head.jobs.knowsSession(e.jobId, e.sessionId));
    // One decision each: a table changes only when a decision is on disk, and two of these may be of one job.
    for (const { jobId, sessionId, how } of news) await head.commit((nowMs, out) => head.jobs.step({ type: 'streamEnded', jobId, sessionId, how }, nowMs, out));
  };

  /** An actor lives where it is registered: a node cannot send callers of a name to another. */
  const actorId = (bytes: Uint8Array, tenant: string, nodeId: string): string => {
    const { number } = head.tenants.active(tenant);
    const id = Buffer.from(bytes);
    if (id.length !== OBJECT_ID_BYTES || id.readUInt32LE(0) !== number || id.readUInt32LE(4) !== head.nodes.get(nodeId)?.number) throw new BulkheadError('INVALID_ARGUMENT', 'the actor id is not one of this tenant on this node');
    return id.toString('hex');
  };

  /**
   * A node asks about names for a job that it has a session of, and shows that job's credential: a stolen one learns and takes no names of
   * tenants that do not use it. What does not hold is one answer, and on record with both sides.
   */
  const requireSession = async (call: CallContext, action: 'actor.create' | 'actor.find', { tenant, name, credential }: { readonly tenant: string; readonly name: string; readonly credential: string }): Promise<JobRow> => {
    const row = await jobOf(tenant, credential);
    if (row === undefined) return await deny(context, call, { tenant, action, kind: 'actor', name: name.slice(0, MAX_ACTOR_NAME_CHARS) }, 'wall');
    // Its driver's last calls may be under way when it says goodbye.
    if (row.endedMs === 0 || (row.cut !== 'everything' && head.clock.nowMs() - row.endedMs <= SECOND_THOUGHTS_MS)) return row;
    return await deny(context, call, { tenant, action, kind: 'actor', name: name.slice(0, MAX_ACTOR_NAME_CHARS) }, 'owner').catch((error: unknown) => {
      if (!(error instanceof BulkheadError) || error.code !== 'DENIED') throw error;
      throw new BulkheadError('UNAUTHENTICATED', 'the job has ended: names of actors are registered and looked up only while a driver of the job is there');
    });
  };

  /** The job whose credential this is, where both are of this tenant and not revoked. */
  const jobOf = async (tenant: string, credential: string): Promise<JobRow | undefined> => {
    let session;
    try {
      session = await pki.verifySession(credential);
    } catch (error) {
      if (error instanceof BulkheadError && error.code === 'UNAUTHENTICATED') return undefined;
      throw error;
    }
    const { principal, tenantNumber, jti, issuedAtMs } = session;
    const known = head.tenants.get(tenant);
    if (principal.tenant !== tenant || known?.state !== 'active' || known.number !== tenantNumber || head.revocations.covers(principal.spiffeId, '', issuedAtMs)) return undefined;
    const row = head.jobs.find(parseJobId(jti.split('_')[0]));
    return row?.tenant === tenant && row.submitter === principal.spiffeId ? row : undefined;
  };

  /** What is sealed opens only as what it was sealed as. */
  const sealedAs = (row: { readonly namespace: string; readonly name: string; readonly actorId: string }): string => JSON.stringify(['actor', row.namespace, row.name, row.actorId]);

  return {
    async sync(call: CallContext, stream) {
      const nodeId = call.principal.name;
      const node = new NodeStream(stream, updates);
      let registered = false;
      try {
        for await (const report of stream) {
          if (registered) {
            head.observe({ type: 'report', id: nodeId, facts: facts(report) });
          } else {
            await register(nodeId, report);
            registered = true;
            streams.get(nodeId)?.end(new BulkheadError('UNAVAILABLE', 'another stream of this node took over'));
            streams.set(nodeId, node);
            node.flush();
          }
          if (report.quotas !== undefined && streams.get(nodeId) === node) needs(nodeId, report.quotas, node);
          if (report.endedSessions.length > 0) await streamsEnded(report.endedSessions);
          if (report.monthUsage.length > 0) await used(nodeId, report.monthUsage);
          if (report.checkpoints.length > 0) await see(nodeId, report.checkpoints, node);
        }
        // It said goodbye: the others need not wait for its silence.
        if (streams.get(nodeId) === node) {
          head.observe({ type: 'leave', id: nodeId });
          shares.left(nodeId);
          tellDue();
        }
      } finally {
        node.end();
        if (streams.get(nodeId) === node) streams.delete(nodeId);
      }
    },

    async registerActorName(call, request) {
      const { tenant, namespace, name, classInfo } = request;
      const nodeId = call.principal.name;
      // Who has the name, or had it until its node was silent for too long, learns nothing new; its driver may have gone.
      const hadIt = head.actorNames.heldBy(tenant, namespace, name, Buffer.from(request.actorId).toString('hex'), nodeId);
      const job = hadIt ? await jobOf(tenant, request.credential) : await requireSession(call, 'actor.create', request);
      const row = { tenant, namespace, name, actorId: actorId(request.actorId, tenant, nodeId), classInfo, nodeId };
      const { seed } = request;
      const small = seed !== undefined && seed.options.length + seed.args.length + seed.code.length <= MAX_ACTOR_SEED_BYTES;
      const made = !small || job === undefined ? undefined : { submitter: job.submitter, jobId: job.jobId, sealed: await pki.seal(parseTenantName(tenant), toBinary(ActorSeedSchema, seed), sealedAs(row)) };
      await head.commit((nowMs, out) => {
        const keep = made !== undefined && head.actorNames.mayKeep(tenant, made, head.actorNames.get(tenant, namespace, name)?.seed);
        head.actorNames.step({ type: 'register', row: keep ? { ...row, seed: made } : row }, nowMs, out);
      });
      return { found: true, actorId: request.actorId, classInfo, kept: head.actorNames.get(tenant, namespace, name)?.seed !== undefined };
    },

    async lookupActorName(call, request) {
      const job = await requireSession(call, 'actor.find', request);
      const row = head.actorNames.get(request.tenant, request.namespace, request.name);
      if (row === undefined) return { found: false };
      const { seed, orphaned = false } = row;
      const mine = orphaned && seed !== undefined && job.submitter === seed.submitter;
      return {
        found: true, actorId: Buffer.from(row.actorId, 'hex'), classInfo: row.classInfo, orphaned,
        ...(mine ? { seed: fromBinary(ActorSeedSchema, await pki.unseal(parseTenantName(row.tenant), seed.sealed, sealedAs(row))) } : {}),
      };
    },

    async dataKey(call, request) {
      const nodeId = call.principal.name;
      const row = head.tenants.get(request.tenant);
      if (row?.state !== 'active') return await deny(context, call, { tenant: '', action: 'node.sync', kind: 'tenant', name: request.tenant.slice(0, 64) }, 'owner');
      const made = await pki.createDataKey(row.name, nodeId);
      // The tenant's auditors see which nodes hold keys for its data; on record before the key leaves.
      await context.appendAudit(row.name, { type: 'lifecycle', timeMs: head.clock.nowMs(), event: 'key.issued', principal: call.principal.spiffeId, resourceKind: 'tenant', resource: row.name, index: -1, detail: `data key of node ${nodeId}` });
      return made;
    },

    async releaseActorName(call, request) {
      const { tenant, namespace, name } = request;
      await head.commit((nowMs, out) => head.actorNames.step({ type: 'release', tenant, namespace, name, actorId: Buffer.from(request.actorId).toString('hex'), nodeId: call.principal.name }, nowMs, out));
      return {};
    },
  };
}
