/**
 * The client side: a channel to one address whose server must show an SVID that our verifier accepts and that names the expected
 * SPIFFE ID. Host names play no part. Must never: send a byte of a call before that is checked, or go through a proxy.
 */
import { X509Certificate } from 'node:crypto';
import type { Socket } from 'node:net';
import { connect as tlsConnect, createSecureContext, type SecureContext, type TLSSocket } from 'node:tls';
import * as grpc from '@grpc/grpc-js';
import type { DescMethod, DescService, Message } from '@bufbuild/protobuf';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import { quote } from '../base/ids.ts';
import { FLOW_CONTROL_WINDOW_BYTES, MAX_BATCH_BYTES, MAX_STREAM_BUFFER_BYTES, STREAM_HIGH_WATER_BYTES, TLS_HANDSHAKE_TIMEOUT_MS } from '../base/limits.ts';
import type { Principal } from '../base/principal.ts';
import type { Clock } from '../base/time.ts';
import { decodeBatch, EncodedBatch } from './batch-codec.ts';
import type { OwnIdentity, PeerVerifier, VerifiedPeer } from './ports.ts';
import { isBatchMethod, methodName, type CallOptions, type Client } from './service-types.ts';
import { errorOf } from './status.ts';
import type { BatchStream, MessageStream, RawStream } from './streams.ts';
import { contextOptions, PeerWatch, systemClock, trustOnlyContext, verifyPeer } from './tls.ts';
import { encodeMessage, parseMessage, TypedStream } from './typed-stream.ts';

export interface ChannelOptions {
  /** Only a node that has no SVID yet gives the bundle alone, to the attestation listener. */
  readonly identity: OwnIdentity | { readonly trustBundlePem: string };
  readonly peers: PeerVerifier;
  /** `host:port`. */
  readonly address: string;
  /** The server's SPIFFE ID, or a test of its principal. */
  readonly expectedSpiffeId: string | ((principal: Principal) => boolean);
  readonly clock?: Clock;
}

export interface RpcChannel {
  readonly address: string;
  unary(method: DescMethod, request: object, options?: CallOptions): Promise<Message>;
  serverStream(method: DescMethod, request: object, options?: CallOptions): AsyncIterable<Message>;
  bidi(method: DescMethod, options?: CallOptions): MessageStream<Message, Message>;
  /** A stream of batches; the method is one of `Batch` both ways. */
  batchStream(method: DescMethod, options?: CallOptions): BatchStream;
  /** Who answered on the connection made last; undefined before the first. */
  readonly server: VerifiedPeer | undefined;
  /** Ends open calls and the connection. */
  close(): void;
}

const CLIENT_OPTIONS: grpc.ChannelOptions = {
  'grpc.max_receive_message_length': MAX_BATCH_BYTES + 16, 'grpc.max_send_message_length': MAX_BATCH_BYTES + 16,
  // A proxy from the environment would see who talks to whom; ours is a direct connection always.
  'grpc.enable_http_proxy': 0, 'grpc.enable_channelz': 0, 'grpc.enable_retries': 0, 'grpc.service_config_disable_resolution': 1,
  // Channels with other identities or expectations must never share a connection.
  'grpc.use_local_subchannel_pool': 1,
  'grpc.initial_reconnect_backoff_ms': 100, 'grpc.max_reconnect_backoff_ms': 5_000, 'grpc.client_idle_timeout_ms': 2 ** 31 - 1,
  'grpc.keepalive_time_ms': 30_000, 'grpc.keepalive_timeout_ms': 10_000,
  'grpc-node.flow_control_window': FLOW_CONTROL_WINDOW_BYTES, 'grpc.default_authority': 'bulkhead',
};

/** TLS by our own rules under grpc-js's channel. */
class VerifiedCredentials extends grpc.ChannelCredentials {
  readonly #options: ChannelOptions;
  readonly #clock: Clock;
  readonly #watch: PeerWatch;
  readonly #sockets = new Set<TLSSocket>();
  readonly #stopIdentity: () => void;
  #context: SecureContext | undefined;
  server: VerifiedPeer | undefined;
  /** Why the last attempt to connect failed, or the last connection was cut; grpc-js itself only says UNAVAILABLE. */
  lastFailure: BulkheadError | undefined;

  constructor(options: ChannelOptions) {
    super();
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#watch = new PeerWatch(options.peers, this.#clock);
    const { identity } = options;
    this.#stopIdentity = 'onChange' in identity ? identity.onChange(() => (this.#context = undefined)) : () => undefined;
  }

  /** Made again after each renewal; throws UNAUTHENTICATED when the own SVID has ended, which a server would only show as a reset. */
  #secureContext(): SecureContext {
    const { identity } = this.#options;
    if ('trustBundlePem' in identity) return (this.#context ??= createSecureContext(trustOnlyContext(identity.trustBundlePem)));
    const current = identity.current();
    const endsMs = Date.parse(new X509Certificate(current.certificateChainPem).validTo);
    if (endsMs <= this.#clock.nowMs()) throw new BulkheadError('UNAUTHENTICATED', `the own identity ended at ${new Date(endsMs).toISOString()}; renew it (bulkhead identity issue, or log in again)`);
    return (this.#context ??= createSecureContext(contextOptions(current)));
  }

  #verify(socket: TLSSocket): { peer: VerifiedPeer; chain: Uint8Array[] } {
    const { peers, expectedSpiffeId, address } = this.#options;
    const found = verifyPeer(socket, peers);
    const { principal } = found.peer;
    const expected = typeof expectedSpiffeId === 'string' ? principal.spiffeId === expectedSpiffeId : expectedSpiffeId(principal) === true;
    if (!expected) {
      const wanted = typeof expectedSpiffeId === 'string' ? quote(expectedSpiffeId) : 'the expected one';
      throw new BulkheadError('UNAUTHENTICATED', `the server at ${address} is ${quote(principal.spiffeId)}, not ${wanted}; check the address and the profile`);
    }
    return found;
  }

  #connect(socket: Socket): Promise<{ socket: Socket; secure: boolean }> {
    return new Promise((resolve, reject) => {
      const fail = (thrown: unknown): void => {
        clearTimeout(timer);
        this.lastFailure = thrown instanceof BulkheadError ? thrown : new BulkheadError('UNAVAILABLE', `no TLS connection to ${this.#options.address}: ${(thrown as NodeJS.ErrnoException).code ?? 'refused'}; check the address and that both sides are of one cluster`, { cause: thrown });
        tls?.destroy();
        socket.destroy();
        reject(this.lastFailure);
      };
      let tls: TLSSocket | undefined;
      const timer = setTimeout(() => fail(new BulkheadError('UNAVAILABLE', `the TLS handshake with ${this.#options.address} took too long`)), TLS_HANDSHAKE_TIMEOUT_MS);
      try {
        // Node checks the chain against the bundle; the name is checked by `#verify`, from the SVID.
        const connecting = tlsConnect({ socket, secureContext: this.#secureContext(), ALPNProtocols: ['h2'], rejectUnauthorized: true, checkServerIdentity: () => undefined });
        tls = connecting;
        connecting.on('error', fail);
        const ended = (): void => fail(new BulkheadError('UNAVAILABLE', `${this.#options.address} ended the TLS handshake`));
        connecting.once('close', ended);
        connecting.once('secureConnect', () => {
          try {
            if (!connecting.authorized) throw connecting.authorizationError;
            const { peer, chain } = this.#verify(connecting);
            clearTimeout(timer);
            connecting.off('error', fail);
            connecting.off('close', ended);
            connecting.on('error', () => connecting.destroy());
            connecting.once('close', () => this.#sockets.delete(connecting));
            this.#sockets.add(connecting);
            this.#watch.add(connecting, peer, chain, (why) => {
              this.lastFailure = why;
              connecting.destroy();
            });
            this.server = peer;
            this.lastFailure = undefined;
            resolve({ socket: connecting, secure: true });
          } catch (error) {
            fail(error);
          }
        });
      } catch (error) {
        fail(toSafeError(error));
      }
    });
  }

  override _isSecure(): boolean {
    return true;
  }

  override _equals(other: grpc.ChannelCredentials): boolean {
    return this === other;
  }

  override _createSecureConnector(): grpc.experimental.SecureConnector {
    return { connect: (socket) => this.#connect(socket), waitForReady: () => Promise.resolve(), getCallCredentials: () => grpc.CallCredentials.createEmpty(), destroy: () => undefined };
  }

  close(): void {
    this.#stopIdentity();
    this.#watch.close();
    for (const socket of [...this.#sockets]) socket.destroy();
  }
}

const identityBytes = (bytes: Buffer): Buffer => bytes;

/** Both kinds of encoded messages as grpc-js types them; see `EncodedBatch`. */
const asBuffer = (message: Buffer | EncodedBatch): Buffer => message as Buffer;

class Channel implements RpcChannel {
  readonly address: string;
  readonly #credentials: VerifiedCredentials;
  readonly #client: grpc.Client;
  readonly #calls = new Set<{ cancel(): void }>();
  #closed = false;

  constructor(options: ChannelOptions) {
    this.address = options.address;
    this.#credentials = new VerifiedCredentials(options);
    this.#client = new grpc.Client(options.address, this.#credentials, CLIENT_OPTIONS);
  }

  get server(): VerifiedPeer | undefined {
    return this.#credentials.server;
  }

  #start<C extends { cancel(): void }>(method: DescMethod, options: CallOptions, open: (path: string, metadata: grpc.Metadata, callOptions: grpc.CallOptions) => C): { call: C; over: () => void } {
    if (this.#closed) throw new BulkheadError('UNAVAILABLE', `the channel to ${this.address} is closed`);
    options.signal?.throwIfAborted();
    const metadata = new grpc.Metadata();
    for (const [name, value] of Object.entries(options.metadata ?? {})) metadata.set(name, value);
    const callOptions: grpc.CallOptions = options.timeoutMs === undefined ? {} : { deadline: Date.now() + options.timeoutMs };
    const call = open(`/${methodName(method)}`, metadata, callOptions);
    const cancel = (): void => call.cancel();
    options.signal?.addEventListener('abort', cancel, { once: true });
    this.#calls.add(call);
    return {
      call,
      over: () => {
        options.signal?.removeEventListener('abort', cancel);
        this.#calls.delete(call);
      },
    };
  }

  /** grpc-js reports a refused server as UNAVAILABLE; what really happened is known to the credentials. */
  #explain(error: unknown): BulkheadError {
    if (error instanceof BulkheadError) return error;
    const found = error instanceof Error && 'details' in error ? errorOf(error as grpc.ServiceError) : undefined;
    if (found === undefined) return toSafeError(error);
    const foreign = (error as grpc.ServiceError).metadata?.get('bulkhead-code').length === 0;
    if (found.code !== 'UNAVAILABLE' || !foreign) return found;
    return this.#credentials.lastFailure ?? new BulkheadError('UNAVAILABLE', `${this.address} cannot be reached or ended the connection; check that it runs, and that this identity is valid there`, { cause: error });
  }

  unary(method: DescMethod, request: object, options: CallOptions = {}): Promise<Message> {
    return new Promise((resolve, reject) => {
      const bytes = encodeMessage(method.input, request);
      const { over } = this.#start(method, options, (path, metadata, callOptions) => this.#client.makeUnaryRequest(path, identityBytes, identityBytes, bytes, metadata, callOptions, (error, answer) => {
        over();
        if (error !== null || answer === undefined) return reject(this.#explain(error));
        try {
          resolve(parseMessage(method.output, answer));
        } catch (thrown) {
          reject(thrown as BulkheadError);
        }
      }));
    });
  }

  async *serverStream(method: DescMethod, request: object, options: CallOptions = {}): AsyncGenerator<Message> {
    const bytes = encodeMessage(method.input, request);
    const { call, over } = this.#start(method, options, (path, metadata, callOptions) => this.#client.makeServerStreamRequest(path, identityBytes, identityBytes, bytes, metadata, callOptions));
    try {
      for await (const message of call) yield parseMessage(method.output, message as Buffer);
    } catch (error) {
      throw this.#explain(error);
    } finally {
      over();
      call.cancel();
    }
  }

  #duplex(method: DescMethod, options: CallOptions): ClientStream {
    let stream: ClientStream | undefined;
    const { call, over } = this.#start(method, options, (path, metadata, callOptions) => this.#client.makeBidiStreamRequest<Buffer | EncodedBatch, Buffer>(path, asBuffer, identityBytes, metadata, callOptions));
    stream = new ClientStream(call, over, (error) => this.#explain(error));
    return stream;
  }

  bidi(method: DescMethod, options: CallOptions = {}): MessageStream<Message, Message> {
    return new TypedStream(this.#duplex(method, options), method.output, method.input);
  }

  batchStream(method: DescMethod, options: CallOptions = {}): BatchStream {
    if (!isBatchMethod(method)) throw new BulkheadError('INTERNAL', `${methodName(method)} does not stream batches`);
    return this.#duplex(method, options);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const call of [...this.#calls]) call.cancel();
    this.#client.close();
    this.#credentials.close();
  }
}

/** The client's end of a stream. */
class ClientStream implements BatchStream, RawStream {
  onDrain: (() => void) | undefined;
  onData: ((frames: Uint8Array) => void) | undefined;
  onEnd: ((error: BulkheadError | undefined) => void) | undefined;
  onRaw: ((message: Buffer) => void) | undefined;
  readonly #call: grpc.ClientDuplexStream<Buffer | EncodedBatch, Buffer>;
  #gone = false;
  #buffered = 0;
  #blocked = false;
  #reason: BulkheadError | undefined;

  constructor(call: grpc.ClientDuplexStream<Buffer | EncodedBatch, Buffer>, over: () => void, explain: (error: unknown) => BulkheadError) {
    this.#call = call;
    const finish = (error: BulkheadError | undefined): void => {
      if (this.#gone) return;
      this.#gone = true;
      over();
      this.onEnd?.(this.#reason ?? error);
    };
    call.on('data', (message: Buffer) => {
      if (this.#gone) return;
      try {
        if (this.onRaw !== undefined) this.onRaw(message);
        else this.onData?.(decodeBatch(message));
      } catch (error) {
        this.end(toSafeError(error));
      }
    });
    call.on('error', (error) => finish(explain(error)));
    // After the answers are all read; errors have come by then.
    call.on('end', () => setImmediate(finish, undefined));
    call.on('status', (status) => {
      if (status.code !== grpc.status.OK) finish(explain(Object.assign(new Error(status.details), status)));
    });
    call.pause();
    setImmediate(() => {
      if (!this.#pausedByOwner) call.resume();
    });
  }

  #pausedByOwner = false;

  write(frames: Uint8Array): boolean {
    return this.writeRaw(new EncodedBatch(frames));
  }

  writeRaw(message: Buffer | EncodedBatch): boolean {
    if (this.#gone) return false;
    const { length } = message;
    if (length > MAX_BATCH_BYTES + 16) throw new BulkheadError('RESOURCE_EXHAUSTED', `a batch of ${length} bytes exceeds the limit of ${MAX_BATCH_BYTES}`);
    if (this.#buffered + length > MAX_STREAM_BUFFER_BYTES) throw new BulkheadError('RESOURCE_EXHAUSTED', `more than ${MAX_STREAM_BUFFER_BYTES} bytes wait on one stream; wait for onDrain`);
    this.#buffered += length;
    this.#call.write(message, () => {
      this.#buffered -= length;
      if (this.#blocked && this.#buffered < STREAM_HIGH_WATER_BYTES / 2 && !this.#gone) {
        this.#blocked = false;
        this.onDrain?.();
      }
    });
    this.#blocked = this.#blocked || this.#buffered >= STREAM_HIGH_WATER_BYTES;
    return !this.#blocked;
  }

  pause(): void {
    this.#pausedByOwner = true;
    this.#call.pause();
  }

  resume(): void {
    this.#pausedByOwner = false;
    this.#call.resume();
  }

  end(error?: BulkheadError): void {
    if (this.#gone) return;
    if (error === undefined) this.#call.end();
    else {
      this.#reason = error;
      this.#call.cancel();
    }
  }
}

export function createChannel(options: ChannelOptions): RpcChannel {
  return new Channel(options);
}

/** The methods of a service on a channel, typed by its descriptor. */
export function client<S extends DescService>(service: S, channel: RpcChannel): Client<S> {
  const methods: Record<string, unknown> = Object.create(null) as Record<string, unknown>;
  for (const method of service.methods) {
    if (method.methodKind === 'unary') methods[method.localName] = (request: object, options?: CallOptions) => channel.unary(method, request, options);
    else if (method.methodKind === 'server_streaming') methods[method.localName] = (request: object, options?: CallOptions) => channel.serverStream(method, request, options);
    else if (method.methodKind === 'bidi_streaming') methods[method.localName] = (options?: CallOptions) => (isBatchMethod(method) ? channel.batchStream(method, options) : channel.bidi(method, options));
  }
  return Object.freeze(methods) as Client<S>;
}
