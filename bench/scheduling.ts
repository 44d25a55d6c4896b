/**
 * What scheduling one task costs, from few to very many queued ones and from one node to a thousand: the real core of a raylet, alone in one thread,
 * with workers and other nodes that answer from memory. Counted is all that the core does for a task: reading its frames, deciding, queueing, choosing
 * where it runs, its result and its release; and its share of ticks and of what the head tells of nodes. Not counted: sockets, TLS, the audit's disk, the
 * isolate. Measured is processor time of this thread, garbage collection in it included: what else runs on the machine does not count. Must never: leave out work of
 * the core that a real raylet has.
 */
import { execFileSync } from 'node:child_process';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { CALL_KIND, FrameReader, FrameWriter, OP } from '../src/base/frame.ts';
import { parseTenantName, type JobId } from '../src/base/ids.ts';
import { HEARTBEAT_MS } from '../src/base/limits.ts';
import { principalFromSpiffeId, type Principal } from '../src/base/principal.ts';
import type { ResourceVector } from '../src/base/resources.ts';
import { makeId } from '../src/raylet/core/core.ts';
import { RayletCore } from '../src/raylet/core/raylet-core.ts';
import { NO_QUOTA } from '../src/base/tenant-quota.ts';
import { CHANNEL_KIND, type Channel, type Slot, type Upstream } from '../src/raylet/core/state.ts';
import { median } from './measure.ts';

export interface SchedulingPoint {
  readonly queued: number;
  readonly nodes: number;
  /** Of the core, a task. */
  readonly micros: number;
}

export const QUEUED = [10, 100, 1_000, 10_000, 100_000] as const;
export const NODES = [1, 10, 100, 1_000] as const;
/** While nodes are varied. */
const QUEUED_BESIDE_NODES = 10_000;
const CPUS = 2;
/** How long a task runs. Every node has as many as it has cpus, so one ends somewhere every so often. */
const TASK_MS = 1_000;
const TICK_MS = 25;

/** Runs somewhere: here in a slot, or on another node, where its one result is asked for. */
interface Running {
  readonly slot?: Slot;
  readonly exec: number;
  readonly upstream?: Upstream;
}

const CODE = Uint8Array.of(1);
const DIGEST = new Uint8Array(32).fill(9);
const VALUE = Uint8Array.of(0xf6);
const FULL: ResourceVector = { cpuUnits: 0, memoryBytes: 0, custom: undefined };
const WHOLE: ResourceVector = { cpuUnits: CPUS * 10_000, memoryBytes: 2 ** 36, custom: undefined };

/** One raylet's core among so many nodes. `whole` is what each of them says that it has in all. */
export class SchedulingCluster {
  readonly core: RayletCore;
  readonly #client: Channel;
  readonly #nodes: number;
  readonly #whole: ResourceVector;
  readonly running: Running[] = [];
  #next = 0;
  #seq = 1;
  #nowMs = 1_000;
  #tickedMs = 0;
  #told = 0;
  readonly #done: Uint8Array[] = [];
  readonly #reader = new FrameReader();
  /** Of the client, and of whoever answers: each has one for as long as it lives. */
  readonly #asks = new FrameWriter();
  readonly #answers = new FrameWriter();

  constructor(nodes: number, whole: ResourceVector = WHOLE) {
    this.#nodes = nodes;
    this.#whole = whole;
    let records = 0;
    let drawn = 1;
    const principal = (path: string): Principal => principalFromSpiffeId(`spiffe://bench/tenant/acme/${path}`, path.startsWith('job') ? { kind: 'user', name: 'ana' } : undefined);
    this.core = new RayletCore({
      nodeId: 'node-1', nodeNumber: 1, total: WHOLE, labels: {}, maxWorkers: 64, decisions: { version: 1, decide: () => ({ allow: true, rule: 'bench', policyVersion: 1 }) }, defaultIsolateBytes: 2 ** 26,
      objectMemoryBytes: Number.POSITIVE_INFINITY, spillBytes: 0, spreadMinBytes: 2 ** 20, sharedQuotas: false, random: { bytes: (n) => new Uint8Array(n).map(() => drawn++) }, sha256: () => DIGEST,
    });
    this.core.setTenant(parseTenantName('acme'), 1, () => ({ append: () => records++, durable: Number.POSITIVE_INFINITY, onDurable: undefined }), NO_QUOTA, true);
    for (let n = 2; n <= nodes; n++) this.#tell(n, whole);
    const tenant = this.core.state.tenants.get(1);
    if (tenant === undefined) throw new Error('the tenant is not there');
    const job = this.core.ensureJob('job-000000000000000000000000' as JobId, tenant, principal('user/ana'), principal('job/job-000000000000000000000000'), 'credential', Number.POSITIVE_INFINITY, 0);
    this.#client = this.core.openChannel(CHANNEL_KIND.DRIVER, job, job.submitter, 0, {});
    const out = new FrameWriter();
    out.begin(OP.CODE).raw(DIGEST).u32(CODE.length).u32(0).raw(CODE).end();
    out.begin(OP.DEFINE).u32(1).u8(CALL_KIND.TASK).raw(DIGEST).str('f').str('').text('{}').end();
    this.#client.out.take();
    this.core.clientBatch(this.#client, out.take(), this.#nowMs);
    this.#settle();
  }

  #tell(number: number, available: ResourceVector): void {
    this.core.setNode(`node-${number}`, number, '', `spiffe://bench/node/node-${number}`, this.#whole, available);
  }

  submit(count: number): void {
    const out = this.#asks;
    for (let i = 0; i < count; i++) out.begin(OP.SUBMIT).u32(0).u32(this.#seq++).u32(1).u16(0).refs([]).raw(VALUE).end();
    for (const id of this.#done.splice(0)) out.begin(OP.RELEASE).refs([id]).end();
    const batch = out.take();
    this.core.clientBatch(this.#client, batch, this.#nowMs);
    this.#settle();
  }

  /** The one that began first ends. */
  finish(): void {
    const running = this.running[this.#next++];
    if (running === undefined) throw new Error('nothing runs');
    if (this.#next > 10_000) {
      this.running.splice(0, this.#next);
      this.#next = 0;
    }
    const { slot, exec, upstream } = running;
    const out = this.#answers;
    if (slot !== undefined) {
      const task = slot.execs.get(exec);
      if (task !== undefined) this.#done.push(makeId(this.#client.session.prefix, task.seq));
      out.begin(OP.RESULT).u32(exec).u8(1).u8(0).u32(0).bytes(VALUE).end();
      const batch = out.take();
      this.core.guestBatch(slot, batch, this.#nowMs);
    } else if (upstream !== undefined) {
      const task = upstream.requests.get(exec)?.task;
      if (task !== undefined) this.#done.push(makeId(this.#client.session.prefix, task.seq));
      out.begin(OP.VALUE).u32(exec).u32(0).raw(VALUE).end();
      const batch = out.take();
      this.core.upstreamBatch(upstream, batch, this.#nowMs);
    }
    this.#settle();
  }

  /** The first tasks have run for as long as any. */
  begin(): void {
    this.#nowMs += TASK_MS;
  }

  /** Time goes on until the next task ends; ticks, and the heartbeats of all nodes, fall into it. */
  pass(): void {
    this.#nowMs += TASK_MS / (CPUS * this.#nodes);
    if (this.#nowMs - this.#tickedMs >= TICK_MS) {
      this.#tickedMs = this.#nowMs;
      this.core.tick(this.#nowMs, () => 0);
      this.#settle();
    }
    if (this.#nodes === 1) return;
    for (const until = Math.floor((this.#nowMs / HEARTBEAT_MS) * (this.#nodes - 1)); this.#told < until; this.#told++) this.#tell(2 + (this.#told % (this.#nodes - 1)), FULL);
  }

  /** What the drivers of effects and links do, in memory. */
  #settle(): void {
    const { state } = this.core;
    for (let again = true; again; ) {
      again = false;
      for (const effect of state.out.splice(0)) {
        again = true;
        if (effect.type === 'start-worker') this.core.workerStarted(effect.worker, this.#nowMs);
        else if (effect.type === 'open-upstream') {
          const welcome = new FrameWriter(64);
          welcome.begin(OP.WELCOME).raw(makeId(this.#client.session.prefix, 0).subarray(0, 20)).text('{}').end();
          this.core.upstreamBatch(effect.upstream, welcome.take(), this.#nowMs);
        } else if (effect.type === 'stream-code') effect.upstream.codeOut.take();
      }
      for (let channel = state.dirtyChannels.pop(); channel !== undefined; channel = state.dirtyChannels.pop()) {
        channel.dirty = false;
        for (const { batch } of channel.cut.splice(0)) this.#toSlot(channel, batch);
        if (channel.out.length > 0) this.#toSlot(channel, channel.out.take());
      }
      for (let upstream = state.dirtyUpstreams.pop(); upstream !== undefined; upstream = state.dirtyUpstreams.pop()) {
        upstream.dirty = false;
        upstream.cut.splice(0);
        const r = this.#reader.reset(upstream.out.take());
        while (r.next()) {
          if (r.op === OP.RESOLVE) {
            r.u32();
            this.running.push({ upstream, exec: r.u32() });
          }
          r.skipRest();
        }
      }
    }
  }

  #toSlot(channel: Channel, batch: Uint8Array): void {
    const { slot } = channel;
    if (slot === undefined) return;
    const r = this.#reader.reset(batch);
    while (r.next()) {
      if (r.op === OP.EXEC) this.running.push({ slot, exec: r.u32() });
      r.skipRest();
    }
  }

  get queued(): number {
    let n = 0;
    for (const c of this.core.state.classes) n += c.queue.length;
    return n;
  }
}

/** One task ends, another is submitted, so that always as many wait. Half as many are for warming up: caches, and the measured time of the function. */
export function measurePoint(queued: number, nodes: number, tasks: number): SchedulingPoint {
  const cluster = new SchedulingCluster(nodes);
  for (let left = queued + CPUS * nodes; left > 0; left -= 1_000) cluster.submit(Math.min(left, 1_000));
  cluster.begin();
  let before = 0;
  for (let i = -tasks / 2; i < tasks; i++) {
    if (i === 0) before = process.threadCpuUsage().user + process.threadCpuUsage().system;
    cluster.pass();
    cluster.finish();
    cluster.submit(1);
  }
  const { user, system } = process.threadCpuUsage();
  if (Math.abs(cluster.queued - queued) > CPUS * nodes) throw new Error(`${cluster.queued} tasks wait where ${queued} should`);
  return { queued, nodes, micros: (user + system - before) / tasks };
}

export interface SchedulingResult {
  readonly byQueued: readonly SchedulingPoint[];
  readonly byNodes: readonly SchedulingPoint[];
}

const TASKS = 40_000;

/** Each point in a process of its own: the memory that one leaves behind would be the next one's cost. */
function point(queued: number, nodes: number): SchedulingPoint {
  const answer = execFileSync(process.execPath, [fileURLToPath(import.meta.url), String(queued), String(nodes)], { encoding: 'utf8', timeout: 300_000 });
  return JSON.parse(answer) as SchedulingPoint;
}

/** The median of so many runs for each point, all points in turn. */
export function measureScheduling({ runs, note }: { readonly runs: number; readonly note: (text: string) => void }): SchedulingResult {
  const curve = (points: readonly (readonly [queued: number, nodes: number])[]): SchedulingPoint[] => {
    const all = Array.from({ length: runs }, () => points.map(([queued, nodes]) => point(queued, nodes)));
    return points.map(([queued, nodes], i) => {
      const micros = median(all.map((run) => (run[i] as SchedulingPoint).micros));
      note(`  ${queued} queued, ${nodes} nodes: ${micros.toFixed(1)} µs a task`);
      return { queued, nodes, micros };
    });
  };
  return { byQueued: curve(QUEUED.map((queued) => [queued, 1] as const)), byNodes: curve(NODES.map((nodes) => [QUEUED_BESIDE_NODES, nodes] as const)) };
}

if (process.argv[1] !== undefined && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  // Compiled code first.
  measurePoint(1_000, 10, TASKS / 2);
  process.stdout.write(JSON.stringify(measurePoint(Number(process.argv[2]), Number(process.argv[3]), TASKS)));
}
