/**
 * OpenTelemetry spans of a driver's calls: submit (here), queue and run (as the raylets kept them), one trace for a driver. Off unless asked
 * for. Ids of spans follow from ids of calls, so that nothing but the trace context travels in frames. Must never: fail or hold up a call,
 * put arguments, values or credentials into a span, or send spans anywhere but where the program said.
 */
import { createHash, randomBytes } from 'node:crypto';
import { appendFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { basename } from 'node:path';
import { BulkheadError } from '../base/errors.ts';
import type { TimelineCall } from '../rpc/generated/bulkhead/v1/raylet_pb.js';
import type { Connection } from './transport.ts';

export interface TraceOptions {
  /** OTLP over HTTP as JSON: where spans are posted, for example http://127.0.0.1:4318/v1/traces. */
  readonly endpoint?: string | undefined;
  /** Of these posts, for example an authorisation of the collector's. */
  readonly headers?: Readonly<Record<string, string>> | undefined;
  /** The same documents, a line each, appended to a file. */
  readonly file?: string | undefined;
  /** `service.name`; default: the name of the running program. */
  readonly serviceName?: string | undefined;
  /** W3C trace context to continue; default: TRACEPARENT of the environment, else a trace of its own. One that says not sampled is not recorded. */
  readonly traceparent?: string | undefined;
}

const POLL_MS = 1_000;
/** A call is noted when it ends on its node, and seen when it is asked for; clocks of nodes differ a little. */
const OVERLAP_MS = 5_000;
const POST_TIMEOUT_MS = 5_000;
/** Spans of one post; calls that are remembered so that each is told once, and submissions whose end has not been seen. */
const MAX_SPANS_PER_POST = 1_000;
const MAX_REMEMBERED = 200_000;
const TRACEPARENT = /^00-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})$/;
/** OTLP's numbers. */
const KIND = { INTERNAL: 1, CLIENT: 3, PRODUCER: 4, CONSUMER: 5 } as const;
const STATUS_ERROR = 2;

type Attribute = { readonly key: string; readonly value: { readonly stringValue: string } | { readonly intValue: string } };

export interface Span {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly name: string;
  readonly kind: number;
  readonly startTimeUnixNano: string;
  readonly endTimeUnixNano: string;
  readonly attributes: readonly Attribute[];
  readonly status?: { readonly code: number; readonly message: string };
}

/** Throws INVALID_ARGUMENT for options that are not valid. */
export function openTracer(options: TraceOptions): Tracer {
  if ((options.endpoint === undefined) === (options.file === undefined)) throw new BulkheadError('INVALID_ARGUMENT', 'option trace: give one of endpoint (OTLP over HTTP) and file');
  if (options.endpoint !== undefined && !/^https?:\/\//.test(options.endpoint)) throw new BulkheadError('INVALID_ARGUMENT', 'option trace.endpoint: an http or https URL, for example http://127.0.0.1:4318/v1/traces');
  const given = options.traceparent ?? process.env['TRACEPARENT'];
  const match = given === undefined || given === '' ? undefined : TRACEPARENT.exec(given);
  if (match === null) throw new BulkheadError('INVALID_ARGUMENT', 'the trace context is not a W3C traceparent of version 00: 00-<32 hex digits>-<16 hex digits>-<2 hex digits>');
  return new Tracer(options, match?.[1], match?.[2], match === undefined || (Number.parseInt(match[3] ?? '0', 16) & 1) === 1);
}

/** Of a call: the same on whatever node it is met. */
function spanIdOf(callId: string, what: 'submit' | 'queue' | 'run'): string {
  return createHash('sha256').update(`${what} ${callId}`).digest('hex').slice(0, 16);
}

const nanos = (ms: number): string => String(BigInt(Math.round(ms * 1_000)) * 1_000n);
const text = (key: string, value: string): Attribute => ({ key, value: { stringValue: value } });

export class Tracer {
  /** What functions carry: the driver's own span as the parent. '' when the trace is not sampled. */
  readonly traceparent: string;
  readonly #options: TraceOptions;
  readonly #traceId: string;
  readonly #parent: string | undefined;
  readonly #root = randomBytes(8).toString('hex');
  readonly #sampled: boolean;
  readonly #startedMs = performance.timeOrigin + performance.now();
  readonly #submittedMs = new Map<number, number>();
  /** Calls that were told already, oldest first. */
  readonly #told = new Set<string>();
  /** Ids that a call has on the node that runs it, to the one that its owner knows. */
  readonly #owners = new Map<string, string>();
  #connection: Connection | undefined;
  #prefix = '';
  #jobId = '';
  #tenant = '';
  #fromMs = 0;
  #timer: NodeJS.Timeout | undefined;
  #polling: Promise<void> | undefined;
  #warned = false;

  constructor(options: TraceOptions, traceId: string | undefined, parent: string | undefined, sampled: boolean) {
    this.#options = options;
    this.#traceId = traceId ?? randomBytes(16).toString('hex');
    this.#parent = parent;
    this.#sampled = sampled;
    this.traceparent = sampled ? `00-${this.#traceId}-${this.#root}-01` : '';
  }

  submitted(seq: number): void {
    if (!this.#sampled || this.#submittedMs.size >= MAX_REMEMBERED) return;
    this.#submittedMs.set(seq, performance.timeOrigin + performance.now());
  }

  start(connection: Connection, prefix: Uint8Array, jobId: string, tenant: string): void {
    this.#connection = connection;
    this.#prefix = Buffer.from(prefix).toString('hex');
    this.#jobId = jobId;
    this.#tenant = tenant;
    this.#fromMs = Date.now() - OVERLAP_MS;
    if (this.#sampled) this.#plan();
  }

  #plan(): void {
    this.#timer = setTimeout(() => {
      this.#polling = this.#poll().then(() => {
        this.#polling = undefined;
        if (this.#timer !== undefined) this.#plan();
      });
    }, POLL_MS);
    this.#timer.unref();
  }

  /** What has ended since the last time, and the driver's own span. */
  async finish(): Promise<void> {
    if (!this.#sampled || this.#connection === undefined) return;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    await this.#polling;
    await this.#poll();
    await this.#export([this.#span(this.#root, this.#parent, `driver ${this.#serviceName()}`, KIND.CLIENT, this.#startedMs, performance.timeOrigin + performance.now(), [text('bulkhead.job.id', this.#jobId), text('bulkhead.tenant', this.#tenant)], undefined)]);
  }

  async #poll(): Promise<void> {
    const connection = this.#connection;
    if (connection?.timeline === undefined) return;
    const fromMs = this.#fromMs;
    this.#fromMs = Date.now() - OVERLAP_MS;
    try {
      const met: { readonly nodeId: string; readonly call: TimelineCall }[] = [];
      for await (const { nodeId, calls } of connection.timeline(this.#jobId, this.#tenant, fromMs)) {
        for (const call of calls) {
          if (call.remoteId !== '') this.#owners.set(call.remoteId, call.id);
          if (call.endedMs !== 0n && call.traceparent.slice(3, 35) === this.#traceId) met.push({ nodeId, call });
        }
      }
      const spans = met.flatMap(({ nodeId, call }) => this.#spansOf(nodeId, call));
      for (let at = 0; at < spans.length; at += MAX_SPANS_PER_POST) await this.#export(spans.slice(at, at + MAX_SPANS_PER_POST));
      for (const remembered of [this.#told, this.#owners]) for (const oldest of remembered.keys()) {
        if (remembered.size <= MAX_REMEMBERED) break;
        remembered.delete(oldest);
      }
    } catch (error) {
      this.#fromMs = fromMs;
      this.#warn(error);
    }
  }

  #spansOf(nodeId: string, call: TimelineCall): Span[] {
    const key = `${nodeId} ${call.id}`;
    if (this.#told.has(key)) return [];
    this.#told.add(key);
    const id = this.#owners.get(call.id) ?? call.id;
    const [submittedMs, startedMs, endedMs] = [Number(call.submittedMs), Number(call.startedMs), Number(call.endedMs)];
    const attributes = [text('bulkhead.call.id', id), text('bulkhead.job.id', call.jobId), text('bulkhead.call.type', call.type), text('bulkhead.node.id', nodeId), { key: 'bulkhead.attempt', value: { intValue: String(call.attempt) } }];
    // A call that another call made hangs under that one's run; a driver's under its own submission.
    const caller = call.parentId === '' ? undefined : (this.#owners.get(call.parentId) ?? call.parentId);
    const spans: Span[] = [];
    if (!call.forwardedHere) {
      let parent = caller === undefined ? this.#root : spanIdOf(caller, 'run');
      const seq = call.id.startsWith(`obj-${this.#prefix}`) ? Buffer.from(call.id.slice(-8), 'hex').readUInt32LE(0) : undefined;
      const sentMs = seq === undefined ? undefined : this.#submittedMs.get(seq);
      if (seq !== undefined && sentMs !== undefined) {
        this.#submittedMs.delete(seq);
        spans.push(this.#span(spanIdOf(id, 'submit'), parent, `submit ${call.name}`, KIND.PRODUCER, sentMs, Math.max(sentMs, submittedMs), attributes, undefined));
        parent = spanIdOf(id, 'submit');
      }
      spans.push(this.#span(spanIdOf(id, 'queue'), parent, `queue ${call.name}`, KIND.INTERNAL, submittedMs, startedMs === 0 ? endedMs : Math.max(submittedMs, startedMs), attributes, undefined));
    }
    // Where it ran is where its run was measured: not on a node that had another run it.
    if (call.worker !== '' && startedMs !== 0) {
      const failed = call.state === 'FAILED' ? { code: STATUS_ERROR, message: call.reason } : undefined;
      spans.push(this.#span(spanIdOf(id, 'run'), spanIdOf(id, 'queue'), call.name, KIND.CONSUMER, startedMs, endedMs, [...attributes, text('bulkhead.worker.id', call.worker)], failed));
    }
    return spans;
  }

  #span(spanId: string, parentSpanId: string | undefined, name: string, kind: number, startMs: number, endMs: number, attributes: readonly Attribute[], status: Span['status']): Span {
    return { traceId: this.#traceId, spanId, ...(parentSpanId === undefined ? {} : { parentSpanId }), name, kind, startTimeUnixNano: nanos(startMs), endTimeUnixNano: nanos(Math.max(startMs, endMs)), attributes, ...(status === undefined ? {} : { status }) };
  }

  #serviceName(): string {
    return this.#options.serviceName ?? basename(process.argv[1] ?? 'driver');
  }

  async #export(spans: readonly Span[]): Promise<void> {
    const { endpoint, file, headers } = this.#options;
    const document = JSON.stringify({ resourceSpans: [{ resource: { attributes: [text('service.name', this.#serviceName()), text('host.name', hostname())] }, scopeSpans: [{ scope: { name: 'bulkhead' }, spans }] }] });
    try {
      if (file !== undefined) return await appendFile(file, `${document}\n`, { mode: 0o600 });
      const response = await fetch(endpoint ?? '', { method: 'POST', headers: { ...headers, 'content-type': 'application/json' }, body: document, redirect: 'error', signal: AbortSignal.timeout(POST_TIMEOUT_MS) });
      await response.body?.cancel();
      if (!response.ok) this.#warn(new Error(`the collector answered ${response.status}`));
    } catch (error) {
      this.#warn(error);
    }
  }

  /** Once: a collector that is away must not flood the program's output. */
  #warn(error: unknown): void {
    if (this.#warned) return;
    this.#warned = true;
    process.emitWarning(`spans could not be exported: ${error instanceof BulkheadError ? error.safeMessage : error instanceof Error ? error.message : 'unknown error'}; the program goes on`, 'BulkheadTracing');
  }
}

