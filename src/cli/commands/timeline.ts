/**
 * `bulkhead timeline -o FILE`: what the raylets kept of a tenant's calls as a Chrome trace, which ui.perfetto.dev and chrome://tracing open.
 * Must never: make up a time that no raylet has measured.
 */
import { writeFileSync } from 'node:fs';
import { Inspection, type TimelineCall } from '../../rpc/generated/bulkhead/v1/raylet_pb.js';
import { CallerSession } from '../session.ts';
import { printable, UsageError, type Terminal } from '../terminal.ts';

/** Reading a million calls takes a while. */
const TIMEOUT_MS = 120_000;
const US = 1_000;

interface CallsOfNode {
  readonly nodeId: string;
  readonly calls: readonly TimelineCall[];
}

/** One event of the format (Google, "Trace Event Format"): times in microseconds. */
interface TraceEvent {
  readonly name: string;
  readonly ph: 'X' | 'M' | 'b' | 'e';
  readonly pid: number;
  readonly tid: number;
  readonly ts?: number;
  readonly dur?: number;
  readonly cat?: string;
  readonly id?: string;
  readonly args?: Readonly<Record<string, unknown>>;
}

/** Calls that overlap cannot share a row: an isolate with several at once gets several, the first that is free is taken. */
class Rows {
  readonly #freeAtMs: number[] = [];

  take(startMs: number, endMs: number): number {
    let row = this.#freeAtMs.findIndex((freeMs) => freeMs <= startMs);
    if (row < 0) row = this.#freeAtMs.length;
    this.#freeAtMs[row] = endMs;
    return row;
  }
}

/** Processes are nodes, threads are isolates of workers; waiting is a span of the node that the call was submitted to. */
export function chromeTrace(nodes: readonly CallsOfNode[], nowMs: number): TraceEvent[] {
  const events: TraceEvent[] = [];
  // What ran elsewhere is shown there, under the id that its owner knows.
  const ownerIds = new Map<string, TimelineCall>();
  for (const { calls } of nodes) for (const call of calls) if (call.remoteId !== '') ownerIds.set(call.remoteId, call);
  nodes.forEach(({ nodeId, calls }, i) => {
    const pid = i + 1;
    events.push({ name: 'process_name', ph: 'M', pid, tid: 0, args: { name: `node ${nodeId}` } });
    const tids = new Map<string, number>();
    const tidOf = (thread: string): number => {
      let tid = tids.get(thread);
      if (tid === undefined) {
        tids.set(thread, (tid = tids.size + 1));
        events.push({ name: 'thread_name', ph: 'M', pid, tid, args: { name: thread } }, { name: 'thread_sort_index', ph: 'M', pid, tid, args: { sort_index: tid } });
      }
      return tid;
    };
    const rows = new Map<string, Rows>();
    const inOrder = [...calls].sort((a, b) => Number(a.startedMs - b.startedMs) || Number(a.endedMs - b.endedMs));
    for (const call of inOrder) {
      const [submittedMs, startedMs] = [Number(call.submittedMs), Number(call.startedMs)];
      const endMs = call.endedMs === 0n ? nowMs : Number(call.endedMs);
      const id = ownerIds.get(call.id)?.id ?? call.id;
      const args = {
        id, job: call.jobId, type: call.type, state: call.state, attempt: call.attempt, ...(call.reason === '' ? {} : { reason: call.reason }), ...(call.remoteNode === '' ? {} : { node: call.remoteNode }), ...(call.endedMs === 0n ? { unfinished: true } : {}),
      };
      if (!call.forwardedHere) {
        const waitedUntil = startedMs === 0 ? endMs : startedMs;
        const queued = { name: `${call.name} waits`, cat: 'queue', id, pid, tid: 0 } as const;
        events.push({ ...queued, ph: 'b', ts: submittedMs * US, args }, { ...queued, ph: 'e', ts: Math.max(submittedMs, waitedUntil) * US });
      }
      // Without a worker it ran elsewhere, or never: only its waiting was here.
      if (startedMs === 0 || call.worker === '') continue;
      const isolate = `worker ${call.worker} isolate ${call.slot}`;
      let ofIsolate = rows.get(isolate);
      if (ofIsolate === undefined) rows.set(isolate, (ofIsolate = new Rows()));
      const row = ofIsolate.take(startedMs, endMs);
      events.push({ name: call.name, cat: call.type === 'NORMAL_TASK' ? 'task' : 'actor', ph: 'X', pid, tid: tidOf(row === 0 ? isolate : `${isolate} (${row + 1})`), ts: startedMs * US, dur: Math.max(0, endMs - startedMs) * US, args });
    }
  });
  return events;
}

export async function timeline(terminal: Terminal, options: { readonly tenant: string | undefined; readonly job: string | undefined; readonly fromMs: number | undefined; readonly out: string }, profile: string | undefined): Promise<void> {
  await using session = await CallerSession.open(profile);
  const tenant = options.tenant ?? session.tenant;
  if (tenant === undefined) throw new UsageError(`whose timeline? you are ${session.self.id}, which is of no tenant: give --tenant NAME`);
  let ended = 0;
  const { answers, unreachable } = await terminal.progress('asking the raylets', session.ask(await session.raylets(), async (raylet): Promise<CallsOfNode> => {
    const calls: TimelineCall[] = [];
    for await (const page of raylet.to(Inspection).timeline({ tenant, jobId: options.job ?? '', fromMs: BigInt(options.fromMs ?? 0) }, { timeoutMs: TIMEOUT_MS })) {
      ended += Number(page.ended);
      calls.push(...page.calls);
    }
    return { nodeId: raylet.nodeId, calls };
  }));
  const nodes = [...answers].sort((a, b) => (a.nodeId < b.nodeId ? -1 : 1));
  const traceEvents = chromeTrace(nodes, Date.now());
  const calls = nodes.reduce((n, node) => n + node.calls.filter((call) => !call.forwardedHere).length, 0);
  writeFileSync(options.out, JSON.stringify({ traceEvents, displayTimeUnit: 'ms', metadata: { tenant, ended, unreachable: unreachable.map((u) => u.nodeId) } }), { mode: 0o600 });
  terminal.answer({ file: options.out, tenant, calls, ended, nodes: nodes.map((n) => n.nodeId), unreachable: unreachable.map((u) => u.nodeId) });
  terminal.say(`${calls} calls on ${nodes.length} node${nodes.length === 1 ? '' : 's'} in ${options.out}; open it at https://ui.perfetto.dev (it stays in the browser) or chrome://tracing`);
  for (const { nodeId, error } of unreachable) terminal.warn(printable(`node ${nodeId} did not answer, so what ran there is missing: ${error.safeMessage}`));
}
