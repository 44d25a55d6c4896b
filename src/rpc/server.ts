/**
 * The gRPC server: connections of verified peers (tls-listener), each call admitted (admission) before its handler runs. grpc-js
 * frames and multiplexes; every call is answered here, through its interceptor interface. Must never: be built without
 * identity, verifier, decisions, audit and method rows, or answer with the text of a foreign error.
 */
import type { TLSSocket } from 'node:tls';
import * as grpc from '@grpc/grpc-js';
import type { DescMethod, DescService, Message } from '@bufbuild/protobuf';
import type { Decision } from '../base/decision.ts';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import type { TenantName } from '../base/ids.ts';
import {
  FLOW_CONTROL_WINDOW_BYTES, MAX_BATCH_BYTES, MAX_CONNECTIONS_PER_PEER, MAX_CONNECTIONS_PER_SERVER, MAX_METADATA_BYTES, MAX_STREAM_BUFFER_BYTES,
  MAX_STREAMS_PER_CONNECTION, REQUEST_READ_TIMEOUT_MS, STREAM_HIGH_WATER_BYTES, TLS_HANDSHAKE_TIMEOUT_MS,
} from '../base/limits.ts';
import type { Clock } from '../base/time.ts';
import { Admission, planMethod, rowOf, type MethodPlan } from './admission.ts';
import { BATCH_PROTOCOL } from './batch-frames.ts';
import { BatchEnd, DirectCall } from './batch-server.ts';
import { createInjector, cutStream, takeStream } from './grpc-internals.ts';
import type { OwnIdentity, PeerVerifier, ServerSecurity } from './ports.ts';
import { isBatchMethod, methodName, type BaseCall, type CallContext, type Implementation } from './service-types.ts';
import { asSeenByPeer, statusOf } from './status.ts';
import type { RawStream } from './streams.ts';
import { encodeMessage, parseMessage, TypedStream } from './typed-stream.ts';
import { NO_LOG, systemClock, type RpcLog } from './tls.ts';
import { parseListenAddress, TlsListener, type Connection } from './tls-listener.ts';
import { TokenBucket } from './token-bucket.ts';

export interface RpcLimits {
  readonly connections: number;
  readonly connectionsPerPeer: number;
  readonly streamsPerConnection: number;
  readonly messageBytes: number;
  readonly metadataBytes: number;
  readonly handshakeTimeoutMs: number;
  readonly requestReadTimeoutMs: number;
}

export const DEFAULT_LIMITS: RpcLimits = {
  connections: MAX_CONNECTIONS_PER_SERVER,
  connectionsPerPeer: MAX_CONNECTIONS_PER_PEER,
  streamsPerConnection: MAX_STREAMS_PER_CONNECTION,
  // A batch and its protobuf tag and length.
  messageBytes: MAX_BATCH_BYTES + 16,
  metadataBytes: MAX_METADATA_BYTES,
  handshakeTimeoutMs: TLS_HANDSHAKE_TIMEOUT_MS,
  requestReadTimeoutMs: REQUEST_READ_TIMEOUT_MS,
};

export interface ServerOptions {
  /** Whether a tenant exists; decides only in which log a record about it is kept. */
  readonly knowsTenant: (tenant: TenantName) => boolean;
  readonly limits?: Partial<RpcLimits>;
  readonly clock?: Clock;
  readonly log?: RpcLog;
}

export interface RpcServer {
  /** Registers a service. Throws INTERNAL when a method lacks a row, a handler, or its row does not fit the request. */
  add<S extends DescService>(service: S, implementation: Implementation<S>): void;
  /** `'127.0.0.1:0'`: any free port. Once. */
  listen(address: string): Promise<{ address: string; port: number }>;
  /** Ends every call with UNAVAILABLE, then the connections. */
  close(): Promise<void>;
  readonly connectionCount: number;
}

export function createServer(security: ServerSecurity, options: ServerOptions): RpcServer {
  for (const part of ['identity', 'peers', 'decisions', 'audit', 'methods'] as const) {
    if (security[part] === undefined) throw new BulkheadError('INTERNAL', `a server cannot be built without ${part}`);
  }
  const clock = options.clock ?? systemClock;
  const log = options.log ?? NO_LOG;
  const admission = new Admission(security, { knowsTenant: options.knowsTenant, clock, log });
  const core = new ServerCore({
    identity: security.identity, peers: security.peers, limits: { ...DEFAULT_LIMITS, ...options.limits }, clock, log,
    refused: refusalRecorder((record) => security.audit('', record), clock, log),
  });
  return {
    add(service, implementation) {
      // All of a service or nothing.
      const methods = service.methods.map((descriptor) => [descriptor, handlerOf(implementation, descriptor), admitWith(admission, planMethod(rowOf(security, methodName(descriptor)), descriptor))] as const);
      for (const method of methods) core.add(...method);
    },
    listen: (address) => core.listen(address),
    async close() {
      await core.close();
      await admission.settle();
    },
    get connectionCount() {
      return core.connectionCount;
    },
  };
}

export type AnyHandler = (call: BaseCall, input: never) => unknown;

/** A handler by the descriptor's own name, never from a prototype. */
export function handlerOf(implementation: object, descriptor: DescMethod): AnyHandler {
  const found: unknown = Object.hasOwn(implementation, descriptor.localName) ? Reflect.get(implementation, descriptor.localName) : undefined;
  if (typeof found !== 'function') throw new BulkheadError('INTERNAL', `${methodName(descriptor)} has no handler`);
  return found.bind(implementation) as AnyHandler;
}

/** Makes the handler's context out of the plain call, or throws: the door of one method. */
export type Admit = (call: BaseCall, connection: Connection, request: Message | undefined) => Promise<BaseCall>;

function admitWith(admission: Admission, plan: MethodPlan): Admit {
  return async (call, connection, request) => {
    const { peer } = connection;
    if (peer === undefined) throw new BulkheadError('UNAUTHENTICATED', 'this connection has no identity');
    const decision: Decision = await admission.admit(plan, peer, request);
    const context: CallContext = { ...call, principal: peer.principal, peer, decision };
    return context;
  };
}

/** Refused peers go to the cluster's log, at most a few a second: the rest are counted, so that a flood cannot fill the disk. */
export function refusalRecorder(append: (record: { type: 'lifecycle'; timeMs: number; event: string; principal: string; resourceKind: string; resource: string; index: number; detail: string }) => Promise<void>, clock: Clock, log: RpcLog): (remote: string, why: string) => void {
  const bucket = new TokenBucket(5, 20);
  let suppressed = 0;
  return (remote, why) => {
    const timeMs = clock.nowMs();
    if (!bucket.take(clock.monotonicMs())) {
      suppressed++;
      return;
    }
    const detail = suppressed === 0 ? why : `${why} (and ${suppressed} more refusals before)`;
    suppressed = 0;
    append({ type: 'lifecycle', timeMs, event: 'peer.refused', principal: '', resourceKind: 'node', resource: remote, index: -1, detail }).catch((error: unknown) => {
      log.warn({ error, remote }, 'the record of a refused peer could not be written');
    });
  };
}

export interface CoreOptions {
  readonly identity: OwnIdentity;
  readonly peers: PeerVerifier | undefined;
  readonly limits: RpcLimits;
  readonly clock: Clock;
  readonly log: RpcLog;
  readonly refused: (remote: string, why: string) => void;
}

export interface Method {
  readonly name: string;
  readonly descriptor: DescMethod;
  readonly handler: AnyHandler;
  readonly admit: Admit;
}

const identity = (bytes: Buffer): Buffer => bytes;

/** Reason of the signal after a good end; one for all, since making an error per call costs more than the rest of ending it. */
const ENDED = new BulkheadError('CANCELLED', 'the call has ended');

/** Everything below the question who may call: shared by the servers here and the attestation listener. */
export class ServerCore {
  readonly options: CoreOptions;
  readonly #grpc: grpc.Server;
  readonly #listener: TlsListener;
  readonly #methods = new Map<string, Method>();
  readonly #calls = new Set<{ finish(thrown?: unknown): void }>();
  #closed = false;

  constructor(options: CoreOptions) {
    this.options = options;
    const { limits } = options;
    this.#grpc = new grpc.Server({
      'grpc.max_receive_message_length': limits.messageBytes, 'grpc.max_send_message_length': limits.messageBytes,
      'grpc.keepalive_time_ms': 30_000, 'grpc.keepalive_timeout_ms': 10_000, 'grpc.enable_channelz': 0,
      interceptors: [(definition, call) => this.#intercept(definition.path, call)],
    });
    const injector = createInjector(this.#grpc, { windowBytes: FLOW_CONTROL_WINDOW_BYTES, streams: limits.streamsPerConnection, metadataBytes: limits.metadataBytes });
    this.#listener = new TlsListener({
      identity: options.identity, peers: options.peers, limits, clock: options.clock, log: options.log,
      // Who calls without an SVID has nothing to stream.
      protocols: options.peers === undefined ? ['h2'] : ['h2', BATCH_PROTOCOL], onRefused: options.refused,
      onConnection: (socket, connection) => (socket.alpnProtocol === BATCH_PROTOCOL ? this.#serveBatches(socket, connection) : injector.injectConnection(socket)),
    });
  }

  add(descriptor: DescMethod, handler: AnyHandler, admit: Admit): void {
    const name = methodName(descriptor);
    if (descriptor.methodKind === 'client_streaming') throw new BulkheadError('INTERNAL', `${name} streams requests only, which this server does not do`);
    const path = `/${name}`;
    if (this.#methods.has(path)) throw new BulkheadError('INTERNAL', `${name} is served twice`);
    this.#methods.set(path, { name, descriptor, handler, admit });
    // The interceptor answers; grpc-js only has to know the path.
    this.#grpc.register(path, () => undefined, identity, identity, 'bidi');
  }

  #intercept(path: string, call: grpc.ServerInterceptingCallInterface): grpc.ServerInterceptingCall {
    const method = this.#methods.get(path);
    if (method === undefined) call.sendStatus(statusOf(new BulkheadError('INTERNAL', 'the method is not served')));
    else this.#serve(method, call);
    return new AnsweredCall(call);
  }

  #serve(method: Method, call: grpc.ServerInterceptingCallInterface): void {
    const { remoteAddress, remotePort } = call.getConnectionInfo();
    const connection = this.#listener.find(remoteAddress, remotePort);
    const serving = new ServerCall(method, call, connection, this.options);
    this.#calls.add(serving);
    serving.onFinished = () => this.#calls.delete(serving);
    if (this.#closed) serving.finish(new BulkheadError('UNAVAILABLE', 'the server is stopping'));
    else serving.start();
  }

  /** A connection that is one stream of batches. */
  #serveBatches(socket: TLSSocket, connection: Connection): void {
    const call = new DirectCall(socket, connection, this.options, (method) => {
      const found = this.#methods.get(`/${method}`);
      return found !== undefined && isBatchMethod(found.descriptor) ? found : undefined;
    });
    this.#calls.add(call);
    call.onFinished = () => this.#calls.delete(call);
    if (this.#closed) call.finish(new BulkheadError('UNAVAILABLE', 'the server is stopping'));
  }

  get connectionCount(): number {
    return this.#listener.connectionCount;
  }

  listen(address: string): Promise<{ address: string; port: number }> {
    const { host, port } = parseListenAddress(address);
    return this.#listener.listen(host, port);
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#listener.stopAccepting();
    for (const call of [...this.#calls]) call.finish(new BulkheadError('UNAVAILABLE', 'the server is stopping'));
    // One turn for the trailers to leave; clients that get none see the connection end, which means the same.
    await new Promise((resolve) => setTimeout(resolve, 20));
    this.#grpc.forceShutdown();
    this.#listener.destroyAll();
  }
}

/** What grpc-js's own dispatch gets: a call that does nothing, since it is answered already. */
class AnsweredCall extends grpc.ServerInterceptingCall {
  override start(): void {}
  override startRead(): void {}
  override sendMetadata(): void {}
  override sendMessage(): void {}
  override sendStatus(): void {}
}

class ServerCall {
  readonly method: string;
  readonly remote: string;
  readonly deadlineMs: number | undefined;
  onFinished: () => void = () => undefined;
  readonly #method: Method;
  readonly #call: grpc.ServerInterceptingCallInterface;
  readonly #connection: Connection | undefined;
  readonly #options: CoreOptions;
  readonly #abort = new AbortController();
  #metadata = new grpc.Metadata();
  #readTimer: NodeJS.Timeout | undefined;
  #request: Buffer | undefined;
  #stream: MessageEnd | undefined;
  #batches: BatchEnd | undefined;
  #finished = false;
  readonly #cut: () => boolean;
  #reading = false;
  #readAgain = false;

  constructor(method: Method, call: grpc.ServerInterceptingCallInterface, connection: Connection | undefined, options: CoreOptions) {
    this.#method = method;
    this.#call = call;
    this.#cut = cutStream(call);
    this.#connection = connection;
    this.#options = options;
    this.method = method.name;
    this.remote = connection?.remote ?? 'unknown';
    const deadline = call.getDeadline();
    this.deadlineMs = deadline instanceof Date ? deadline.getTime() : deadline === Number.POSITIVE_INFINITY ? undefined : deadline;
  }

  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  metadata(name: string): string | undefined {
    const value = this.#metadata.get(name)[0];
    return typeof value === 'string' ? value : undefined;
  }

  /** What handlers see: plain values, none of the call's own levers. */
  #context(): BaseCall {
    return { method: this.method, remote: this.remote, metadata: (name) => this.metadata(name), signal: this.signal, deadlineMs: this.deadlineMs };
  }

  start(): void {
    this.#call.start({
      onReceiveMetadata: (metadata) => {
        this.#metadata = metadata;
        this.#begin();
      },
      onReceiveMessage: (message: Buffer) => this.#message(message),
      onReceiveHalfClose: () => this.#halfClose(),
      onCancel: () => this.#cancelled(),
    });
  }

  #begin(): void {
    const connection = this.#connection;
    // The address found the connection; the certificate proves that it is the one under this call.
    const leaf = connection?.leafDer;
    const sameLeaf = leaf === undefined ? connection?.peer === undefined : this.#call.getAuthContext().sslPeerCertificate?.raw.equals(leaf) === true;
    if (connection === undefined || !sameLeaf) return this.finish(new BulkheadError('UNAUTHENTICATED', 'the connection of this call has no verified peer'));
    if (this.#method.descriptor.methodKind === 'bidi_streaming') void this.#runStream(connection);
    else {
      this.#readTimer = setTimeout(() => this.finish(new BulkheadError('TIMEOUT', 'the request did not arrive in time')), this.#options.limits.requestReadTimeoutMs);
      this.#readTimer.unref();
      this.#call.startRead();
    }
  }

  #message(message: Buffer): void {
    if (this.#finished) return;
    if (this.#stream !== undefined) return this.#stream.receive(message);
    if (this.#request !== undefined) return this.finish(new BulkheadError('INVALID_ARGUMENT', `${this.method} takes one request, not several`));
    this.#request = message;
    this.#call.startRead();
  }

  #halfClose(): void {
    // The loss is told right after; it must not look like a goodbye.
    if (this.#finished || this.#cut()) return;
    if (this.#stream !== undefined) return this.#stream.peerEnded(undefined);
    clearTimeout(this.#readTimer);
    if (this.#request === undefined) return this.finish(new BulkheadError('INVALID_ARGUMENT', `${this.method} takes a request, none came`));
    if (this.#connection !== undefined) void this.#runRequest(this.#connection, this.#request);
  }

  #cancelled(): void {
    clearTimeout(this.#readTimer);
    const gone = new BulkheadError('CANCELLED', 'the caller cancelled the call or its connection ended');
    this.#done(gone);
  }

  /** Bookkeeping of the end, whoever brought it about. */
  #done(reason: BulkheadError): void {
    if (this.#finished) return;
    this.#finished = true;
    clearTimeout(this.#readTimer);
    this.#abort.abort(reason);
    this.#stream?.peerEnded(reason);
    this.#batches?.peerEnded(reason);
    this.onFinished();
  }

  /** Ends the call with the error, or well. */
  finish(thrown?: unknown): void {
    if (this.#finished) return;
    if (thrown === undefined) this.#call.sendStatus({ code: grpc.status.OK, details: '' });
    else {
      const error = toSafeError(thrown);
      if (error.code === 'INTERNAL') this.#options.log.warn({ error: thrown, method: this.method, remote: this.remote }, 'a call failed inside');
      this.#call.sendStatus(statusOf(error));
    }
    this.#done(thrown === undefined ? ENDED : asSeenByPeer(thrown));
  }

  async #runRequest(connection: Connection, bytes: Buffer): Promise<void> {
    const { descriptor, handler, admit } = this.#method;
    try {
      const request = parseMessage(descriptor.input, bytes);
      const context = await admit(this.#context(), connection, request);
      if (this.#finished) return;
      if (descriptor.methodKind === 'unary') {
        const response = await (handler(context, request as never) as Promise<Message>);
        await this.#send(encodeMessage(descriptor.output, response));
      } else {
        for await (const response of handler(context, request as never) as AsyncIterable<Message>) {
          if (this.#finished) return;
          await this.#send(encodeMessage(descriptor.output, response));
        }
      }
      this.finish();
    } catch (error) {
      this.finish(error);
    }
  }

  async #runStream(connection: Connection): Promise<void> {
    const { descriptor, handler, admit } = this.#method;
    try {
      const context = await admit(this.#context(), connection, undefined);
      if (this.#finished) return;
      // Headers at once: the caller learns that it is admitted, and grpc-js stops buffering for a transparent retry.
      this.#call.sendMetadata(new grpc.Metadata());
      if (isBatchMethod(descriptor)) {
        const batches = new BatchEnd((error) => this.finish(error));
        this.#batches = batches;
        const stream = takeStream(this.#call);
        // The loss is told right after; it must not look like a goodbye.
        stream.on('end', () => this.#cut() || batches.ended());
        batches.attach(stream, true);
        const result = handler(context, batches as never);
        batches.begin();
        // The type says void, which an async function satisfies; its failure is the stream's.
        if (result instanceof Promise) await result;
      } else {
        const stream = new MessageEnd(this);
        this.#stream = stream;
        const typed = new TypedStream(stream, descriptor.input, descriptor.output);
        const result = handler(context, typed as never);
        stream.begin();
        if (result instanceof Promise) {
          await result;
          this.finish();
        }
      }
    } catch (error) {
      this.finish(error);
    }
  }

  /** Resolves when the message is on its way, or the call is gone. */
  #send(message: Buffer): Promise<void> {
    return new Promise((resolve) => {
      if (this.#finished) return resolve();
      const gone = (): void => resolve();
      this.signal.addEventListener('abort', gone, { once: true });
      this.sendRaw(message, () => {
        this.signal.removeEventListener('abort', gone);
        resolve();
      });
    });
  }

  sendRaw(message: Buffer, sent: () => void): void {
    this.#call.sendMessage(message, sent);
  }

  /** One read; a loop instead of recursion, since messages that wait already come back inside `startRead`. */
  read(): void {
    if (this.#reading) {
      this.#readAgain = true;
      return;
    }
    this.#reading = true;
    do {
      this.#readAgain = false;
      this.#call.startRead();
    } while (this.#readAgain);
    this.#reading = false;
  }
}

/** The server's end of a stream of typed messages, over grpc-js. */
class MessageEnd implements RawStream {
  onDrain: (() => void) | undefined;
  onEnd: ((error: BulkheadError | undefined) => void) | undefined;
  onRaw: ((message: Buffer) => void) | undefined;
  readonly #call: ServerCall;
  #begun = false;
  #paused = false;
  #readPending = false;
  #peerEnded = false;
  #ownEnd = false;
  #gone = false;
  #buffered = 0;
  #blocked = false;

  constructor(call: ServerCall) {
    this.#call = call;
  }

  writeRaw(message: Buffer): boolean {
    if (this.#gone) return false;
    if (message.length > DEFAULT_LIMITS.messageBytes) throw new BulkheadError('RESOURCE_EXHAUSTED', `a batch of ${message.length} bytes exceeds the limit of ${MAX_BATCH_BYTES}`);
    if (this.#buffered + message.length > MAX_STREAM_BUFFER_BYTES) throw new BulkheadError('RESOURCE_EXHAUSTED', `more than ${MAX_STREAM_BUFFER_BYTES} bytes wait on one stream; the peer does not read`);
    this.#buffered += message.length;
    this.#call.sendRaw(message, () => {
      this.#buffered -= message.length;
      if (this.#blocked && this.#buffered < STREAM_HIGH_WATER_BYTES / 2 && !this.#gone) {
        this.#blocked = false;
        this.onDrain?.();
      }
    });
    this.#blocked = this.#blocked || this.#buffered >= STREAM_HIGH_WATER_BYTES;
    return !this.#blocked;
  }

  receive(message: Buffer): void {
    this.#readPending = false;
    try {
      this.onRaw?.(message);
    } catch (error) {
      return this.#call.finish(error);
    }
    this.#read();
  }

  /** Reading begins when the handler has set its callbacks, and has not paused. */
  begin(): void {
    this.#begun = true;
    this.#read();
  }

  #read(): void {
    if (!this.#begun || this.#paused || this.#readPending || this.#peerEnded || this.#gone) return;
    this.#readPending = true;
    this.#call.read();
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    this.#read();
  }

  peerEnded(error: BulkheadError | undefined): void {
    if (this.#gone || (error === undefined && this.#peerEnded)) return;
    const told = this.#peerEnded;
    this.#peerEnded = true;
    if (error !== undefined) this.#gone = true;
    // After the peer's end, the owner's own `end` is no news to it; a loss is.
    if (!told || !this.#ownEnd) this.onEnd?.(error);
  }

  end(error?: BulkheadError): void {
    this.#ownEnd = true;
    this.#call.finish(error);
  }
}
