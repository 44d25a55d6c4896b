/**
 * The SDK's transport over the cluster: a session at the head (a job and its short-lived credential), then one `Calls.Attach` stream to one
 * of its raylets. Must never: send the credential to a raylet other than the one the head named, or keep a session open behind a
 * closed channel. The stream moves to a new connection before an SVID under it ends (`LastingStream`), and the raylet gets each renewed credential.
 */
import { createHash } from 'node:crypto';
import { basename } from 'node:path';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import { FrameReader, FrameWriter, OP } from '../base/frame.ts';
import { SESSION_PREFIX_BYTES } from '../base/ids.ts';
import { Sessions, type RayletAddress, type Session } from '../rpc/generated/bulkhead/v1/head_pb.js';
import { Calls, Inspection, type TimelineCall } from '../rpc/generated/bulkhead/v1/raylet_pb.js';
import { client, createChannel, LastingStream, RESUME_METADATA, type BatchStream, type Client, type RpcChannel } from '../rpc/rpc.ts';
import { answerFor, outcomeSoFar, settled, type Outcome, type OwnJob } from './job-outcome.ts';
import { JOB_VARIABLE, openHead, type HeadConnection, type HeadTarget } from './head-client.ts';
import type { Connection, Transport, TransportHandlers } from './transport.ts';

/** Metadata entry of `Calls.Attach` with the session credential. */
export const SESSION_METADATA = 'bulkhead-session';

const CALL_TIMEOUT_MS = 10_000;
const CLOSE_TIMEOUT_MS = 5_000;
/** A refresh that failed is tried again this soon; the credential has then half of its life left. */
const RETRY_MS = 5_000;
const MAX_WELCOME_BYTES = 1 << 20;

export interface GrpcTarget extends HeadTarget {
  /**
   * An open job of the same identity to join; default: the one in BULKHEAD_JOB_ID, in which `bulkhead run` started this program, unless a
   * profile or an address is given; else a new one.
   */
  readonly job?: string | undefined;
  /** Of the tenant, whose quotas a new job counts against; default: the one in BULKHEAD_PROJECT, then the default project. */
  readonly project?: string | undefined;
  /** What job lists show; default: BULKHEAD_JOB_NAME, which `bulkhead run --name` sets, then the file name of the running program. */
  readonly jobName?: string | undefined;
}

/** `open`: how to reach the head; the connection is the transport's to close. */
export function grpcTransport(target: GrpcTarget, open: (target: HeadTarget) => Promise<HeadConnection> = openHead): Transport {
  return { open: (handlers) => openSession(target, handlers, open) };
}

async function openSession(target: GrpcTarget, handlers: TransportHandlers, open: (target: HeadTarget) => Promise<HeadConnection>): Promise<Connection> {
  const head = await open(target);
  try {
    const sessions = client(Sessions, head.channel);
    const { job = target.profile === undefined && target.address === undefined ? process.env[JOB_VARIABLE] || undefined : undefined } = target;
    const session = await sessions.open({ jobName: target.jobName ?? (process.env['BULKHEAD_JOB_NAME'] || basename(process.argv[1] ?? 'driver')), jobId: job ?? '', project: target.project ?? (job === undefined ? (process.env['BULKHEAD_PROJECT'] ?? '') : '') }, { timeoutMs: CALL_TIMEOUT_MS });
    const own = job === undefined ? { profile: target.profile, address: target.address, jobId: session.jobId, sessionId: session.sessionId } : undefined;
    if (own !== undefined) answerFor(own);
    return new GrpcConnection(head, sessions, session, handlers, own);
  } catch (thrown) {
    await head.close();
    throw toSafeError(thrown);
  }
}

/** Jobs spread over raylets by their random id; drivers of one job meet on the same raylet, where its objects are. The others follow as substitutes. */
function inOrderFor(jobId: string, raylets: readonly RayletAddress[]): RayletAddress[] {
  const sorted = [...raylets].sort((a, b) => a.nodeNumber - b.nodeNumber);
  const first = createHash('sha256').update(jobId).digest().readUInt32LE(0) % Math.max(1, sorted.length);
  return [...sorted.slice(first), ...sorted.slice(0, first)];
}

/** What the raylet's welcome says to the transport: the token by which its stream may move. */
function resumeToken(first: Uint8Array): string | undefined {
  try {
    const reader = new FrameReader().reset(first);
    if (!reader.next() || reader.op !== OP.WELCOME) return undefined;
    const prefix = Buffer.from(reader.raw(SESSION_PREFIX_BYTES)).toString('hex');
    const { resume } = JSON.parse(reader.text(MAX_WELCOME_BYTES)) as { resume?: unknown };
    return typeof resume === 'string' ? `${prefix}:${resume}` : undefined;
  } catch {
    // Malformed: the SDK says so when it reads the same batch.
    return undefined;
  }
}

function credentialBatch(credential: string): Uint8Array<ArrayBuffer> {
  const out = new FrameWriter(credential.length + 64);
  out.begin(OP.CREDENTIAL).text(credential).end();
  return out.take();
}

function isResumed(first: Uint8Array): boolean {
  const reader = new FrameReader().reset(first);
  return reader.next() && reader.op === OP.RESUMED && reader.remaining === 0 && !reader.next();
}

class GrpcConnection implements Connection {
  readonly #head: HeadConnection;
  readonly #sessions: Client<typeof Sessions>;
  readonly #jobId: string;
  #credential: string;
  readonly #candidates: RayletAddress[];
  readonly #raylets: readonly RayletAddress[];
  /** To raylets that are only asked about calls, by node id. */
  readonly #asked = new Map<string, RpcChannel>();
  readonly #handlers: TransportHandlers;
  readonly #sessionId: string;
  /** Whoever opened the job ends it; a driver that joined only leaves. */
  readonly #own: OwnJob | undefined;
  #raylet: RpcChannel | undefined;
  #stream: BatchStream | undefined;
  /** A raylet has answered; from then on there is no other. */
  #settled = false;
  #welcomed = false;
  #expiresMs: number;
  #refresh: NodeJS.Timeout | undefined;
  #waiting: { promise: Promise<void>; resolve: () => void } | undefined;
  #ended: (() => void) | undefined;
  #gone = false;
  #closing: Promise<void> | undefined;

  constructor(head: HeadConnection, sessions: Client<typeof Sessions>, session: Session, handlers: TransportHandlers, own: OwnJob | undefined) {
    this.#head = head;
    this.#sessions = sessions;
    this.#jobId = session.jobId;
    this.#sessionId = session.sessionId;
    this.#credential = session.credential;
    this.#candidates = inOrderFor(session.jobId, session.raylets);
    this.#raylets = session.raylets;
    this.#handlers = handlers;
    this.#own = own;
    this.#expiresMs = Number(session.expiresMs);
    this.#plan();
    this.#attach(new BulkheadError('UNAVAILABLE', "the cluster has no raylet alive; 'bulkhead status' shows its nodes"));
  }

  /** Opens the stream to the next raylet; `failure` is what happened to the one before. */
  #attach(failure: BulkheadError): void {
    const chosen = this.#candidates.shift();
    // Later: the caller of `open` has no connection in hand yet.
    if (chosen === undefined) return void setImmediate(() => this.#over(failure));
    const raylet = createChannel({ identity: this.#head.identity, peers: this.#head.peers, address: chosen.address, expectedSpiffeId: chosen.spiffeId });
    const stream = new LastingStream({
      open: (token) => client(Calls, raylet).attach({ metadata: { [SESSION_METADATA]: this.#credential, ...(token === undefined ? {} : { [RESUME_METADATA]: token }) } }),
      token: resumeToken,
      accepted: isResumed,
    });
    this.#raylet = raylet;
    this.#stream = stream;
    stream.onData = (batch) => {
      this.#settled = true;
      this.#welcomed = true;
      this.#handlers.batch(batch);
    };
    stream.onLarge = (head, length) => this.#handlers.large?.(head, length);
    stream.onDrain = () => this.#release();
    stream.onEnd = (error) => {
      // A node that died a moment ago is still in the head's list. Nothing was sent to it: the SDK waits for the first frame.
      if (error?.code === 'UNAVAILABLE' && !this.#settled && this.#closing === undefined) {
        raylet.close();
        this.#attach(error);
      } else this.#over(error);
    };
  }

  /**
   * At half of the credential's life, so that the head may be away for minutes. The job stays open at the head by this, and the raylet's
   * channels to other raylets, which end with the credential, by the new one.
   */
  #plan(afterMs = Math.max(1_000, (this.#expiresMs - Date.now()) / 2)): void {
    clearTimeout(this.#refresh);
    if (this.#gone) return;
    this.#refresh = setTimeout(() => {
      this.#sessions.refresh({ jobId: this.#jobId, sessionId: this.#sessionId }, { timeoutMs: CALL_TIMEOUT_MS }).then(
        (session) => {
          this.#credential = session.credential;
          this.#expiresMs = Number(session.expiresMs);
          this.#plan();
          if (this.#welcomed && !this.#gone && this.#closing === undefined) void this.send(credentialBatch(session.credential));
        },
        (thrown: unknown) => {
          const error = toSafeError(thrown);
          // The head knows the job no more, or this identity: nothing that waiting would mend.
          if (error.code === 'DENIED' || error.code === 'UNAUTHENTICATED') this.#stream?.end(error);
          else this.#plan(RETRY_MS);
        },
      );
    }, afterMs);
    this.#refresh.unref();
  }

  /** A newer one may be taken, and if not, the raylet has this one's time in mind. */
  credentialRefused(): void {
    this.#plan(RETRY_MS);
  }

  send(batch: Uint8Array<ArrayBuffer>, tail?: Uint8Array): void | Promise<void> {
    if (this.#gone || this.#stream === undefined) return undefined;
    this.#settled = true;
    if (this.#stream.write(batch, tail) || this.#gone) return undefined;
    let waiting = this.#waiting;
    if (waiting === undefined) {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#waiting = waiting = { promise, resolve };
    }
    return waiting.promise;
  }

  #release(): void {
    this.#waiting?.resolve();
    this.#waiting = undefined;
  }

  #over(error: BulkheadError | undefined): void {
    if (this.#gone) return;
    this.#gone = true;
    clearTimeout(this.#refresh);
    this.#release();
    this.#ended?.();
    if (this.#closing !== undefined) return this.#handlers.closed();
    this.#handlers.closed(error ?? new BulkheadError('UNAVAILABLE', 'the raylet ended the connection'));
    this.#closing = this.#shut({ outcome: 'failed', message: error === undefined ? 'the raylet ended the connection' : `its connection ended: ${error.code}` });
  }

  /** A node that is away is passed over: its part of the trace is missing. */
  async *timeline(jobId: string, tenant: string, fromMs: number): AsyncGenerator<{ readonly nodeId: string; readonly calls: readonly TimelineCall[] }, void, undefined> {
    for (const { nodeId, address, spiffeId } of this.#raylets) {
      if (this.#gone) return;
      let channel = this.#asked.get(nodeId);
      if (channel === undefined) this.#asked.set(nodeId, (channel = createChannel({ identity: this.#head.identity, peers: this.#head.peers, address, expectedSpiffeId: spiffeId })));
      try {
        for await (const { calls } of client(Inspection, channel).timeline({ tenant, jobId, fromMs: BigInt(fromMs) }, { timeoutMs: CALL_TIMEOUT_MS })) yield { nodeId, calls };
      } catch (thrown) {
        const { code } = toSafeError(thrown);
        if (code !== 'UNAVAILABLE' && code !== 'TIMEOUT') throw thrown;
      }
    }
  }

  close(): Promise<void> {
    return (this.#closing ??= this.#closeWell());
  }

  async #closeWell(): Promise<void> {
    if (!this.#gone) {
      // What was written is sent first; a raylet that does not end its side in time is left.
      const ended = new Promise<void>((resolve) => {
        this.#ended = resolve;
      });
      const timer = setTimeout(() => this.#stream?.end(new BulkheadError('CANCELLED', 'closed')), CLOSE_TIMEOUT_MS);
      this.#stream?.end();
      await ended;
      clearTimeout(timer);
    }
    await this.#shut(outcomeSoFar());
  }

  async #shut({ outcome, message }: Outcome): Promise<void> {
    this.#raylet?.close();
    for (const channel of this.#asked.values()) channel.close();
    try {
      // Without an id the head would take the close of a driver that joined for another session's.
      if (this.#own !== undefined || this.#sessionId !== '') await this.#sessions.close({ jobId: this.#jobId, sessionId: this.#sessionId, outcome, message }, { timeoutMs: CLOSE_TIMEOUT_MS });
    } catch {
      // The head is away, or ended the job itself; what it does not hear from here it hears from the raylet.
    }
    if (this.#own !== undefined) settled(this.#own, outcome);
    await this.#head.close();
  }
}
