/**
 * The streams between raylets, both ends. As client: one stream per other node, one channel in it per job. As server: each
 * channel is opened under a session credential that is verified here, whatever the other raylet says of it. Must never: open a
 * channel without a valid credential, or keep one beyond the credential's end. The streams move to new connections before an SVID under
 * them ends (`LastingStream`), so that channels outlive both.
 */
import { randomBytes } from 'node:crypto';
import type { AppendDurably } from '../base/audit-record.ts';
import { isErrorCode, BulkheadError, toSafeError } from '../base/errors.ts';
import { OP } from '../base/frame.ts';
import { SESSION_PREFIX_BYTES, type JobId } from '../base/ids.ts';
import type { Principal } from '../base/principal.ts';
import type { Clock } from '../base/time.ts';
import { Peers } from '../rpc/generated/bulkhead/v1/raylet_pb.js';
import { LastingStream, MovableStream, MovableStreams, RESUME_METADATA, type BatchStream, type CallContext, type Implementation, type RpcChannel } from '../rpc/rpc.ts';
import { CHANNEL_KIND, type Channel, type Job, type Upstream } from './core/state.ts';
import { control, ENVELOPE_BYTES, PEER_OP, unwrap, wrap } from './peer-envelope.ts';
import type { PeerLinks, Raylet, RayletLog } from './raylet.ts';

const MAX_CHANNELS_PER_PEER = 10_000;
/** Frames of a channel whose credential is being verified wait here. */
const MAX_EARLY_BYTES = 16 * 2 ** 20;
/** What may wait for a node that reads too slowly: of one channel, before its job's drivers are no longer read; then before it is closed, so that its calls go elsewhere; of all. */
const HIGH_WATER_BYTES = 8 * 2 ** 20;
const MAX_CHANNEL_WAITING_BYTES = 64 * 2 ** 20;
const MAX_LINK_WAITING_BYTES = 256 * 2 ** 20;
const GOODBYE_TIMEOUT_MS = 500;
const MAX_TOKEN_CHARS = 256;

export interface VerifiedCredential {
  readonly principal: Principal;
  readonly jobPrincipal: Principal;
  readonly jobId: JobId;
  /** Of the driver at the head; '' in a credential that names none. */
  readonly sessionId: string;
  readonly project: string;
  readonly tenantNumber: number;
  readonly issuedMs: number;
  readonly expiresMs: number;
}

export interface PeerLinkOptions {
  readonly raylet: Raylet;
  /** A channel to a node, by its number; undefined when the node is not known. */
  readonly connect: (nodeNumber: number) => RpcChannel | undefined;
  readonly verify: (credential: string) => Promise<VerifiedCredential>;
  readonly audit: AppendDurably;
  readonly clock: Clock;
  readonly log: RayletLog;
}

/** The token in the first message of a stream. */
function tokenIn(message: Uint8Array): string | undefined {
  let token: string | undefined;
  unwrap(message, () => undefined, (reader) => {
    if (reader.op === PEER_OP.STREAM) token = reader.text(MAX_TOKEN_CHARS);
  });
  return token;
}

function isResumed(message: Uint8Array): boolean {
  let resumed = false;
  unwrap(message, () => undefined, (reader) => {
    resumed = reader.op === PEER_OP.RESUMED;
  });
  return resumed;
}

// --- as client ------------------------------------------------------------------------------------------------------------

interface Waiting {
  /** Of which channel; control messages too. */
  readonly number: number;
  readonly message: Uint8Array;
}

interface Link {
  readonly channel: RpcChannel;
  readonly stream: BatchStream;
  readonly upstreams: Map<number, Upstream>;
  waiting: Waiting[];
  /** Bytes that wait, by channel: one tenant's flood must not cost another's channel. */
  readonly waitingBytes: Map<number, number>;
  totalBytes: number;
  /** Jobs above their high-water mark. */
  readonly behind: Set<Job>;
  blocked: boolean;
  readonly ended: PromiseWithResolvers<void>;
}

export class PeerClients implements PeerLinks {
  readonly #options: PeerLinkOptions;
  readonly #links = new Map<number, Link>();
  #closed = false;

  constructor(options: PeerLinkOptions) {
    this.#options = options;
  }

  open(upstream: Upstream, depth: number): void {
    const link = this.#linkTo(upstream.nodeNumber);
    if (link === undefined) {
      // Later: the core is in the middle of the step that asked.
      queueMicrotask(() => this.#options.raylet.upstreamClosed(upstream, { code: 'UNAVAILABLE', message: 'the node is not part of the cluster any more', stack: '' }));
      return;
    }
    link.upstreams.set(upstream.number, upstream);
    this.#write(link, upstream, control(PEER_OP.OPEN_CHANNEL, (out) => out.u32(upstream.number).u8(upstream.asJob ? 1 : 0).u16(depth).text(upstream.job.credential)));
  }

  write(upstream: Upstream, batch: Uint8Array): void {
    const link = this.#links.get(upstream.nodeNumber);
    if (link?.upstreams.get(upstream.number) === upstream) this.#write(link, upstream, wrap(upstream.number, batch));
  }

  close(upstream: Upstream): void {
    const link = this.#links.get(upstream.nodeNumber);
    if (link === undefined || !link.upstreams.delete(upstream.number)) return;
    this.#write(link, upstream, control(PEER_OP.CLOSE_CHANNEL, (out) => out.u32(upstream.number)));
  }

  /** Whether a node is behind with what this job sends it: whoever can wait should. */
  behind(job: Job): boolean {
    for (const link of this.#links.values()) if (link.behind.has(job)) return true;
    return false;
  }

  #write(link: Link, upstream: Upstream, message: Uint8Array): void {
    if (!link.blocked) {
      link.blocked = !link.stream.write(message);
      return;
    }
    const { number } = upstream;
    const bytes = (link.waitingBytes.get(number) ?? 0) + message.length;
    link.waiting.push({ number, message });
    link.waitingBytes.set(number, bytes);
    link.totalBytes += message.length;
    if (bytes > HIGH_WATER_BYTES) link.behind.add(upstream.job);
    if (bytes > MAX_CHANNEL_WAITING_BYTES) this.#giveUp(link, number);
    else if (link.totalBytes > MAX_LINK_WAITING_BYTES) {
      // The greediest pays, not whoever comes last.
      let most = number;
      for (const [other, waiting] of link.waitingBytes) if (waiting > (link.waitingBytes.get(most) ?? 0)) most = other;
      this.#giveUp(link, most);
    }
  }

  #giveUp(link: Link, number: number): void {
    const upstream = link.upstreams.get(number);
    link.upstreams.delete(number);
    this.#forget(link, number);
    if (upstream === undefined) return;
    this.#write(link, upstream, control(PEER_OP.CLOSE_CHANNEL, (out) => out.u32(number)));
    // Later, as above.
    queueMicrotask(() => this.#options.raylet.upstreamClosed(upstream, { code: 'RESOURCE_EXHAUSTED', message: 'another node is too slow for what this job sends it', stack: '' }));
  }

  /** Drops what waits for a channel that is given up. */
  #forget(link: Link, number: number): void {
    const bytes = link.waitingBytes.get(number);
    if (bytes === undefined) return;
    link.waiting = link.waiting.filter((w) => w.number !== number);
    link.waitingBytes.delete(number);
    link.totalBytes -= bytes;
    this.#caughtUp(link);
  }

  #caughtUp(link: Link): void {
    if (link.behind.size === 0) return;
    const still = new Set<Job>();
    for (const [number, bytes] of link.waitingBytes) {
      const job = link.upstreams.get(number)?.job;
      if (job !== undefined && bytes > HIGH_WATER_BYTES / 2) still.add(job);
    }
    for (const job of [...link.behind]) {
      if (still.has(job)) continue;
      link.behind.delete(job);
      // Later, as above.
      queueMicrotask(() => this.#options.raylet.jobDrained(job));
    }
  }

  #linkTo(nodeNumber: number): Link | undefined {
    const known = this.#links.get(nodeNumber);
    if (known !== undefined) return known;
    if (this.#closed) return undefined;
    const channel = this.#options.connect(nodeNumber);
    if (channel === undefined) return undefined;
    const stream = new LastingStream({
      open: (token) => channel.batchStream(Peers.method.exchange, token === undefined ? {} : { metadata: { [RESUME_METADATA]: token } }),
      token: tokenIn,
      accepted: isResumed,
    });
    const link: Link = { channel, stream, upstreams: new Map(), waiting: [], waitingBytes: new Map(), totalBytes: 0, behind: new Set(), blocked: false, ended: Promise.withResolvers<void>() };
    this.#links.set(nodeNumber, link);
    const { raylet } = this.#options;
    /** `release`: of a message that is one envelope. */
    const take = (message: Uint8Array, release?: () => void): void => {
      unwrap(message, (number, batch) => {
        const upstream = link.upstreams.get(number);
        if (upstream !== undefined) raylet.upstreamBatch(upstream, batch, release);
      }, (reader) => {
        if (reader.op === PEER_OP.STREAM) return;
        const number = reader.u32();
        const code = reader.op === PEER_OP.CHANNEL_REFUSED ? reader.str() : 'UNAVAILABLE';
        const message = reader.op === PEER_OP.CHANNEL_REFUSED ? reader.text(65_536) : 'another node closed the channel';
        const upstream = link.upstreams.get(number);
        link.upstreams.delete(number);
        if (upstream !== undefined) raylet.upstreamClosed(upstream, { code: isErrorCode(code) ? code : 'UNAVAILABLE', message, stack: '' });
      });
    };
    stream.onData = (message) => take(message);
    stream.onLarge = (head, length) => raylet.parts.place(head, length, ENVELOPE_BYTES, OP.VALUE_CHUNK, take);
    stream.onDrain = () => {
      link.blocked = false;
      let sent = 0;
      for (const { number, message } of link.waiting) {
        if (link.blocked) break;
        link.blocked = !stream.write(message);
        const left = (link.waitingBytes.get(number) ?? 0) - message.length;
        if (left > 0) link.waitingBytes.set(number, left);
        else link.waitingBytes.delete(number);
        link.totalBytes -= message.length;
        sent++;
      }
      link.waiting.splice(0, sent);
      this.#caughtUp(link);
    };
    stream.onEnd = (error) => {
      if (this.#links.get(nodeNumber) === link) this.#links.delete(nodeNumber);
      channel.close();
      link.ended.resolve();
      link.waiting.length = 0;
      link.waitingBytes.clear();
      this.#caughtUp(link);
      // A node that stops has no use for retries.
      if (this.#closed) return;
      if (error !== undefined) this.#options.log.warn({ node: nodeNumber, code: error.code, err: error }, 'the stream to another raylet ended');
      // First of all, or what ran there would be sent there again.
      this.#options.raylet.nodeLost(nodeNumber);
      for (const upstream of [...link.upstreams.values()]) this.#options.raylet.upstreamClosed(upstream, { code: 'UNAVAILABLE', message: 'the connection to another node was lost', stack: '' });
    };
    return link;
  }

  /** Says goodbye on every link: what was written leaves first. */
  async closeAll(): Promise<void> {
    this.#closed = true;
    const links = [...this.#links.values()];
    this.#links.clear();
    for (const link of links) link.stream.end();
    let timer: NodeJS.Timeout | undefined;
    await Promise.race([Promise.all(links.map((link) => link.ended.promise)), new Promise<void>((resolve) => (timer = setTimeout(resolve, GOODBYE_TIMEOUT_MS)))]);
    clearTimeout(timer);
    for (const link of links) link.channel.close();
  }
}

// --- as server --------------------------------------------------------------------------------------------------------------

class PeerStream {
  readonly #options: PeerLinkOptions;
  readonly #stream: MovableStream;
  readonly #channels = new Map<number, Channel>();
  readonly #early = new Map<number, { readonly batches: Uint8Array[]; bytes: number }>();
  readonly #expiry = new Map<number, NodeJS.Timeout>();
  /** Whose it is, by its certificate. */
  readonly #node: string;

  constructor(options: PeerLinkOptions, stream: MovableStream, node: string, onOver: () => void) {
    this.#options = options;
    this.#node = node;
    this.#stream = stream;
    stream.onData = (message) => unwrap(message, (number, batch) => this.#onBatch(number, batch), (reader) => {
      if (reader.op === PEER_OP.CLOSE_CHANNEL) return this.#close(reader.u32(), undefined);
      if (reader.op !== PEER_OP.OPEN_CHANNEL) throw new BulkheadError('INVALID_ARGUMENT', `op 0x${reader.op.toString(16)} of a raylet`);
      const number = reader.u32();
      const asJob = reader.u8() === 1;
      const depth = reader.u16();
      const credential = reader.text(8_192);
      reader.finish();
      if (this.#channels.has(number) || this.#early.has(number) || this.#channels.size + this.#early.size >= MAX_CHANNELS_PER_PEER) throw new BulkheadError('INVALID_ARGUMENT', 'a channel number is used twice, or there are too many channels');
      this.#early.set(number, { batches: [], bytes: 0 });
      void this.#open(number, asJob, depth, credential);
    });
    stream.onDrain = () => {
      for (const channel of this.#channels.values()) options.raylet.drained(channel);
    };
    // May come twice: the other side's end, then a loss.
    stream.onEnd = () => {
      onOver();
      for (const number of [...this.#channels.keys()]) this.#close(number, undefined);
      this.#early.clear();
      stream.end();
    };
  }

  #onBatch(number: number, batch: Uint8Array): void {
    const channel = this.#channels.get(number);
    if (channel !== undefined) return this.#options.raylet.clientBatch(channel, batch);
    const early = this.#early.get(number);
    if (early === undefined) return;
    early.batches.push(batch);
    early.bytes += batch.length;
    if (early.bytes > MAX_EARLY_BYTES) throw new BulkheadError('RESOURCE_EXHAUSTED', 'a channel sends too much before it is open');
  }

  async #open(number: number, asJob: boolean, depth: number, credential: string): Promise<void> {
    const { raylet, verify, clock } = this.#options;
    try {
      const verified = await verify(credential);
      const early = this.#early.get(number);
      if (early === undefined) return;
      const tenant = raylet.core.state.tenants.get(verified.tenantNumber);
      if (tenant === undefined || tenant.name !== verified.principal.tenant || !tenant.active) throw new BulkheadError('UNAUTHENTICATED', 'the credential is of a tenant that is not known here');
      const job = raylet.ensureJob(verified.jobId, tenant, verified.principal, verified.jobPrincipal, credential, verified.expiresMs, verified.issuedMs, verified.project);
      const channel = raylet.openChannel(CHANNEL_KIND.PEER, job, asJob ? verified.jobPrincipal : verified.principal, depth, {
        write: (batch, tail, written) => this.#stream.write(wrap(number, batch, tail?.length), tail, written),
        // One stream carries many channels, so a single one cannot be paused; calls beyond the limit are refused.
        pause: () => undefined, resume: () => undefined,
        close: (error) => this.#refuse(number, error),
      });
      channel.peer = this.#node;
      this.#early.delete(number);
      this.#channels.set(number, channel);
      this.#expireLater(number, channel, clock);
      for (const batch of early.batches) raylet.clientBatch(channel, batch);
    } catch (error) {
      this.#early.delete(number);
      this.#refuse(number, toSafeError(error));
    }
  }

  /** A credential that was not renewed ends its channel: a stolen node keeps nobody's rights. */
  #expireLater(number: number, channel: Channel, clock: Clock): void {
    const check = (): void => {
      const left = channel.job.credentialEndsMs - clock.nowMs();
      if (left <= 0) this.#close(number, new BulkheadError('UNAUTHENTICATED', 'the session credential has ended'));
      else this.#expiry.set(number, setTimeout(check, Math.min(left + 1, 60_000)).unref());
    };
    check();
  }

  #close(number: number, error: BulkheadError | undefined): void {
    this.#early.delete(number);
    const channel = this.#channels.get(number);
    this.#channels.delete(number);
    clearTimeout(this.#expiry.get(number));
    this.#expiry.delete(number);
    if (error !== undefined) this.#refuse(number, error);
    if (channel === undefined) return;
    const { raylet } = this.#options;
    // What the other side had sent when it closed the channel counts.
    if (error === undefined) raylet.whenRead(channel, () => raylet.closeChannel(channel, undefined));
    else raylet.closeChannel(channel, undefined);
  }

  #refuse(number: number, error: BulkheadError | undefined): void {
    if (error === undefined) return;
    try {
      this.#stream.write(control(PEER_OP.CHANNEL_REFUSED, (out) => out.u32(number).str(error.code).text(error.safeMessage)));
    } catch {
      // The stream is gone; so are its channels.
    }
  }
}

export function peersService(options: PeerLinkOptions): Implementation<typeof Peers> {
  const streams = new MovableStreams();
  return {
    exchange(call: CallContext, stream: BatchStream) {
      const owner = call.principal.spiffeId;
      const token = call.metadata(RESUME_METADATA);
      if (token !== undefined) {
        try {
          return streams.find(token, owner).offer(stream, control(PEER_OP.RESUMED, () => undefined));
        } catch (thrown) {
          const error = toSafeError(thrown);
          stream.pause();
          const end = (): void => stream.end(error);
          options.audit('', { type: 'lifecycle', timeMs: options.clock.nowMs(), event: 'peer.move-refused', principal: owner, resourceKind: 'node', resource: call.principal.name, index: -1, detail: error.safeMessage }).then(end, end);
          return;
        }
      }
      const movable = new MovableStream(stream);
      const id = randomBytes(SESSION_PREFIX_BYTES).toString('hex');
      const secret = MovableStreams.newSecret();
      void new PeerStream(options, movable, call.principal.name, () => streams.delete(id));
      streams.add(id, secret, owner, movable);
      movable.write(control(PEER_OP.STREAM, (out) => out.text(`${id}:${secret}`)));
    },
  };
}
