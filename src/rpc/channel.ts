/**
 * The client side: a channel to one address whose server must show an SVID that our verifier accepts and that names the expected
 * SPIFFE ID. Host names play no part. Must never: send a byte of a call before that is checked, or go through a proxy.
 */
import * as grpc from '@grpc/grpc-js';
import type { DescMethod, DescService, Message } from '@bufbuild/protobuf';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import { FLOW_CONTROL_WINDOW_BYTES, MAX_BATCH_BYTES, MAX_STREAM_BUFFER_BYTES, STREAM_HIGH_WATER_BYTES } from '../base/limits.ts';
import { openBatchStream } from './batch-client.ts';
import { VerifiedCredentials, type ChannelOptions } from './client-tls.ts';
import type { VerifiedPeer } from './ports.ts';
import { isBatchMethod, methodName, type CallOptions, type Client } from './service-types.ts';
import { CODE_TRAILER, errorOf } from './status.ts';
import type { BatchStream, MessageStream, RawStream } from './streams.ts';
import { encodeMessage, parseMessage, TypedStream } from './typed-stream.ts';

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

const identityBytes = (bytes: Buffer): Buffer => bytes;

/**
 * The connections of one age. When the own identity is renewed, or the server's SVID nears its end, new calls use a new
 * generation; the old one serves its calls to their end. So renewals drop no call that ends before the SVID does.
 */
interface Generation {
  readonly credentials: VerifiedCredentials;
  readonly client: grpc.Client;
  readonly calls: Set<{ cancel(): void; onStale?: (() => void) | undefined }>;
}

class Channel implements RpcChannel {
  readonly address: string;
  readonly #options: ChannelOptions;
  readonly #generations = new Set<Generation>();
  #current: Generation;
  #server: VerifiedPeer | undefined;
  #closed = false;

  constructor(options: ChannelOptions) {
    this.address = options.address;
    this.#options = options;
    this.#current = this.#generation();
  }

  #generation(): Generation {
    const credentials = new VerifiedCredentials(this.#options, () => this.#stale(generation));
    const generation: Generation = { credentials, client: new grpc.Client(this.address, credentials, CLIENT_OPTIONS), calls: new Set() };
    this.#generations.add(generation);
    return generation;
  }

  #stale(generation: Generation): void {
    if (this.#closed || generation !== this.#current) return;
    this.#server = generation.credentials.server ?? this.#server;
    this.#current = this.#generation();
    for (const call of [...generation.calls]) call.onStale?.();
    this.#letGo(generation);
  }

  #letGo(generation: Generation): void {
    if (generation === this.#current || generation.calls.size > 0 || !this.#generations.delete(generation)) return;
    generation.client.close();
    generation.credentials.close();
  }

  get server(): VerifiedPeer | undefined {
    return this.#current.credentials.server ?? this.#server;
  }

  #start<C extends { cancel(): void }>(method: DescMethod, options: CallOptions, open: (on: Generation, path: string, metadata: grpc.Metadata, callOptions: grpc.CallOptions) => C): { call: C; generation: Generation; over: () => void } {
    if (this.#closed) throw new BulkheadError('UNAVAILABLE', `the channel to ${this.address} is closed`);
    options.signal?.throwIfAborted();
    const metadata = new grpc.Metadata();
    for (const [name, value] of Object.entries(options.metadata ?? {})) metadata.set(name, value);
    const callOptions: grpc.CallOptions = options.timeoutMs === undefined ? {} : { deadline: Date.now() + options.timeoutMs };
    const generation = this.#current;
    const call = open(generation, `/${methodName(method)}`, metadata, callOptions);
    const cancel = (): void => call.cancel();
    options.signal?.addEventListener('abort', cancel, { once: true });
    generation.calls.add(call);
    return {
      call,
      generation,
      over: () => {
        options.signal?.removeEventListener('abort', cancel);
        generation.calls.delete(call);
        this.#letGo(generation);
      },
    };
  }

  /** grpc-js reports a refused server as UNAVAILABLE; what really happened is known to the credentials. */
  #explain(generation: Generation, error: unknown): BulkheadError {
    if (error instanceof BulkheadError) return error;
    const found = error instanceof Error && 'details' in error ? errorOf(error as grpc.ServiceError) : undefined;
    if (found === undefined) return toSafeError(error);
    const foreign = (error as grpc.ServiceError).metadata?.get(CODE_TRAILER).length === 0;
    if (found.code !== 'UNAVAILABLE' || !foreign) return found;
    return generation.credentials.lastFailure ?? new BulkheadError('UNAVAILABLE', `${this.address} cannot be reached or ended the connection; check that it runs, and that this identity is valid there`, { cause: error });
  }

  unary(method: DescMethod, request: object, options: CallOptions = {}): Promise<Message> {
    return new Promise((resolve, reject) => {
      const bytes = encodeMessage(method.input, request);
      const { over, generation } = this.#start(method, options, (on, path, metadata, callOptions) => on.client.makeUnaryRequest(path, identityBytes, identityBytes, bytes, metadata, callOptions, (error, answer) => {
        over();
        if (error !== null || answer === undefined) return reject(this.#explain(generation, error));
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
    const { call, over, generation } = this.#start(method, options, (on, path, metadata, callOptions) => on.client.makeServerStreamRequest(path, identityBytes, identityBytes, bytes, metadata, callOptions));
    try {
      for await (const message of call) yield parseMessage(method.output, message as Buffer);
    } catch (error) {
      throw this.#explain(generation, error);
    } finally {
      over();
      call.cancel();
    }
  }

  bidi(method: DescMethod, options: CallOptions = {}): MessageStream<Message, Message> {
    const { call, over, generation } = this.#start(method, options, (on, path, metadata, callOptions) =>
      Object.assign(on.client.makeBidiStreamRequest(path, identityBytes, identityBytes, metadata, callOptions), { onStale: options.onStale }));
    return new TypedStream(new ClientStream(call, over, (error) => this.#explain(generation, error)), method.output, method.input);
  }

  batchStream(method: DescMethod, options: CallOptions = {}): BatchStream {
    if (!isBatchMethod(method)) throw new BulkheadError('INTERNAL', `${methodName(method)} does not stream batches`);
    const stream = this.#start(method, options, (on, path) => openBatchStream({ method: path.slice(1), address: this.address, dial: (read) => on.credentials.dial(read), ...options }));
    stream.call.onOver = stream.over;
    return stream.call;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const generation of [...this.#generations]) {
      for (const call of [...generation.calls]) call.cancel();
      generation.client.close();
      generation.credentials.close();
    }
    this.#generations.clear();
  }
}

/** The client's end of a stream of typed messages, over grpc-js. */
class ClientStream implements RawStream {
  onDrain: (() => void) | undefined;
  onEnd: ((error: BulkheadError | undefined) => void) | undefined;
  onRaw: ((message: Buffer) => void) | undefined;
  readonly #call: grpc.ClientDuplexStream<Buffer, Buffer>;
  #gone = false;
  #paused = false;
  #buffered = 0;
  #blocked = false;
  #reason: BulkheadError | undefined;

  constructor(call: grpc.ClientDuplexStream<Buffer, Buffer>, over: () => void, explain: (error: unknown) => BulkheadError) {
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
        this.onRaw?.(message);
      } catch (error) {
        this.end(toSafeError(error));
      }
    });
    call.on('error', (error) => finish(explain(error)));
    // After the last answer was read; an error has been told by then.
    call.on('end', () => setImmediate(finish, undefined));
    call.on('status', (status) => {
      if (status.code !== grpc.status.OK) finish(explain(Object.assign(new Error(status.details), status)));
    });
    call.pause();
    // The owner sets its callbacks in this turn.
    setImmediate(() => {
      if (!this.#paused) call.resume();
    });
  }

  writeRaw(message: Buffer): boolean {
    if (this.#gone) return false;
    const { length } = message;
    if (this.#buffered + length > MAX_STREAM_BUFFER_BYTES) throw new BulkheadError('RESOURCE_EXHAUSTED', `more than ${MAX_STREAM_BUFFER_BYTES} bytes wait on one stream; wait until it has drained`);
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
    this.#paused = true;
    this.#call.pause();
  }

  resume(): void {
    this.#paused = false;
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
