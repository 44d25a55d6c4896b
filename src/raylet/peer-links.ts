/**
 * The streams between raylets, both ends. As client: one stream per other node, one channel in it per job. As server: each
 * channel is opened under a session credential that is verified here, whatever the other raylet says of it. Must never: open a
 * channel without a valid credential, or keep one beyond the credential's end.
 */
import { isErrorCode, BulkheadError, toSafeError } from '../base/errors.ts';
import type { JobId } from '../base/ids.ts';
import type { Principal } from '../base/principal.ts';
import type { Clock } from '../base/time.ts';
import { Peers } from '../rpc/generated/bulkhead/v1/raylet_pb.js';
import type { BatchStream, CallContext, Implementation, RpcChannel } from '../rpc/rpc.ts';
import { CHANNEL_KIND, type Channel, type Upstream } from './core/state.ts';
import { control, PEER_OP, unwrap, wrap } from './peer-envelope.ts';
import type { PeerLinks, Raylet, RayletLog } from './raylet.ts';

const MAX_CHANNELS_PER_PEER = 10_000;
/** Frames of a channel whose credential is being verified wait here. */
const MAX_EARLY_BYTES = 16 * 2 ** 20;

export interface VerifiedCredential {
  readonly principal: Principal;
  readonly jobPrincipal: Principal;
  readonly jobId: JobId;
  readonly tenantNumber: number;
  readonly issuedMs: number;
  readonly expiresMs: number;
}

export interface PeerLinkOptions {
  readonly raylet: Raylet;
  /** A channel to a node, by its number; undefined when the node is not known. */
  readonly connect: (nodeNumber: number) => RpcChannel | undefined;
  readonly verify: (credential: string) => Promise<VerifiedCredential>;
  readonly clock: Clock;
  readonly log: RayletLog;
}

// --- as client ------------------------------------------------------------------------------------------------------------

interface Link {
  readonly channel: RpcChannel;
  readonly stream: BatchStream;
  readonly upstreams: Map<number, Upstream>;
  readonly waiting: Uint8Array[];
  blocked: boolean;
}

export class PeerClients implements PeerLinks {
  readonly #options: PeerLinkOptions;
  readonly #links = new Map<number, Link>();

  constructor(options: PeerLinkOptions) {
    this.#options = options;
  }

  open(upstream: Upstream, depth: number): void {
    const link = this.#linkTo(upstream.nodeNumber);
    if (link === undefined) {
      queueMicrotask(() => this.#options.raylet.upstreamClosed(upstream, { code: 'UNAVAILABLE', message: 'the node is not part of the cluster any more', stack: '' }));
      return;
    }
    link.upstreams.set(upstream.number, upstream);
    this.#write(link, control(PEER_OP.OPEN_CHANNEL, (out) => out.u32(upstream.number).u8(upstream.asJob ? 1 : 0).u16(depth).text(upstream.job.credential)));
  }

  write(upstream: Upstream, batch: Uint8Array): void {
    const link = this.#links.get(upstream.nodeNumber);
    if (link?.upstreams.get(upstream.number) === upstream) this.#write(link, wrap(upstream.number, batch));
  }

  close(upstream: Upstream): void {
    const link = this.#links.get(upstream.nodeNumber);
    if (link === undefined || !link.upstreams.delete(upstream.number)) return;
    this.#write(link, control(PEER_OP.CLOSE_CHANNEL, (out) => out.u32(upstream.number)));
  }

  #write(link: Link, message: Uint8Array): void {
    if (link.blocked) link.waiting.push(message);
    else link.blocked = !link.stream.write(message);
  }

  #linkTo(nodeNumber: number): Link | undefined {
    const known = this.#links.get(nodeNumber);
    if (known !== undefined) return known;
    const channel = this.#options.connect(nodeNumber);
    if (channel === undefined) return undefined;
    const stream = channel.batchStream(Peers.method.exchange);
    const link: Link = { channel, stream, upstreams: new Map(), waiting: [], blocked: false };
    this.#links.set(nodeNumber, link);
    stream.onData = (message) => {
      unwrap(message, (number, batch) => {
        const upstream = link.upstreams.get(number);
        if (upstream !== undefined) this.#options.raylet.upstreamBatch(upstream, batch);
      }, (reader) => {
        const number = reader.u32();
        const code = reader.op === PEER_OP.CHANNEL_REFUSED ? reader.str() : 'UNAVAILABLE';
        const message = reader.op === PEER_OP.CHANNEL_REFUSED ? reader.text(65_536) : 'another node closed the channel';
        const upstream = link.upstreams.get(number);
        link.upstreams.delete(number);
        if (upstream !== undefined) this.#options.raylet.upstreamClosed(upstream, { code: isErrorCode(code) ? code : 'UNAVAILABLE', message, stack: '' });
      });
    };
    stream.onDrain = () => {
      link.blocked = false;
      while (!link.blocked && link.waiting.length > 0) link.blocked = !stream.write(link.waiting.shift() as Uint8Array);
    };
    stream.onEnd = (error) => {
      if (this.#links.get(nodeNumber) === link) this.#links.delete(nodeNumber);
      channel.close();
      if (error !== undefined) this.#options.log.warn({ node: nodeNumber, code: error.code, err: error }, 'the stream to another raylet ended');
      for (const upstream of [...link.upstreams.values()]) this.#options.raylet.upstreamClosed(upstream, { code: 'UNAVAILABLE', message: 'the connection to another node was lost', stack: '' });
    };
    return link;
  }

  closeAll(): void {
    for (const link of this.#links.values()) {
      link.stream.end();
      link.channel.close();
    }
    this.#links.clear();
  }
}

// --- as server --------------------------------------------------------------------------------------------------------------

class PeerStream {
  readonly #options: PeerLinkOptions;
  readonly #stream: BatchStream;
  readonly #channels = new Map<number, Channel>();
  readonly #early = new Map<number, { readonly batches: Uint8Array[]; bytes: number }>();
  readonly #expiry = new Map<number, NodeJS.Timeout>();

  constructor(options: PeerLinkOptions, stream: BatchStream) {
    this.#options = options;
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
    stream.onEnd = () => {
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
      const job = raylet.ensureJob(verified.jobId, tenant, verified.principal, verified.jobPrincipal, credential, verified.expiresMs, verified.issuedMs);
      const channel = raylet.openChannel(CHANNEL_KIND.PEER, job, asJob ? verified.jobPrincipal : verified.principal, depth, {
        write: (batch) => this.#stream.write(wrap(number, batch)),
        // One stream carries many channels, so a single one cannot be paused; calls beyond the limit are refused.
        pause: () => undefined, resume: () => undefined,
        close: (error) => this.#refuse(number, error),
      });
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
    if (channel !== undefined) this.#options.raylet.closeChannel(channel, undefined);
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
  return { exchange: (_call: CallContext, stream: BatchStream) => void new PeerStream(options, stream) };
}
