/**
 * A client's batch stream: gRPC's own framing over a raw HTTP/2 stream on a connection of its own. grpc-js's client sends one message
 * after the other is written and makes a promise for each: this path is three times as fast, and what it moves cannot hold up control
 * calls. On the wire it is ordinary gRPC. Must never: buffer without a limit.
 */
import * as http2 from 'node:http2';
import type { TLSSocket } from 'node:tls';
import * as grpc from '@grpc/grpc-js';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import type { FrameSink } from '../base/frame.ts';
import { FLOW_CONTROL_WINDOW_BYTES, MAX_METADATA_BYTES, MAX_STREAM_BUFFER_BYTES } from '../base/limits.ts';
import { BatchPipe } from './batch-pipe.ts';
import type { CallOptions } from './service-types.ts';
import { CODE_TRAILER, errorOf } from './status.ts';
import type { BatchStream } from './streams.ts';

const KEEPALIVE_MS = 30_000;
const KEEPALIVE_TIMEOUT_MS = 10_000;
const CLOSE_TIMEOUT_MS = 2_000;

export interface BatchStreamOptions extends CallOptions {
  /** `/package.Service/Method`. */
  readonly path: string;
  readonly address: string;
  /** Makes a verified connection. */
  readonly dial: () => Promise<TLSSocket>;
}

export interface ClientBatchStream extends BatchStream {
  cancel(): void;
  onOver: () => void;
}

export function openBatchStream(options: BatchStreamOptions): ClientBatchStream {
  return new Http2BatchStream(options);
}

class Http2BatchStream implements ClientBatchStream {
  onDrain: (() => void) | undefined;
  onData: ((frames: Uint8Array) => void) | undefined;
  onLarge: ((head: Uint8Array, length: number) => FrameSink | undefined) | undefined;
  onEnd: ((error: BulkheadError | undefined) => void) | undefined;
  onStale: (() => void) | undefined;
  onOver: () => void = () => undefined;
  readonly #options: BatchStreamOptions;
  readonly #pipe = new BatchPipe();
  #socket: TLSSocket | undefined;
  #session: http2.ClientHttp2Session | undefined;
  #stream: http2.ClientHttp2Stream | undefined;
  #ended = false;
  #gone = false;
  #status: BulkheadError | 'ok' | undefined;
  #keepalive: NodeJS.Timeout | undefined;
  #deadline: NodeJS.Timeout | undefined;

  constructor(options: BatchStreamOptions) {
    this.#options = options;
    const pipe = this.#pipe;
    pipe.onBatch = (frames) => {
      if (!this.#gone) this.onData?.(frames);
    };
    pipe.onLarge = (head, length) => (this.#gone ? undefined : this.onLarge?.(head, length));
    pipe.onDrain = () => this.onDrain?.();
    pipe.onWrong = (error) => this.end(error);
    if (options.timeoutMs !== undefined) this.#deadline = setTimeout(() => this.end(new BulkheadError('TIMEOUT', 'the stream reached its time limit')), options.timeoutMs);
    options.dial().then((socket) => this.#connected(socket), (error: unknown) => this.#finish(toSafeError(error)));
  }

  #connected(socket: TLSSocket): void {
    if (this.#gone) return void socket.destroy();
    this.#socket = socket;
    const session = http2.connect('https://bulkhead', {
      createConnection: () => socket,
      settings: { enablePush: false, initialWindowSize: FLOW_CONTROL_WINDOW_BYTES, maxHeaderListSize: MAX_METADATA_BYTES },
      maxSessionMemory: MAX_STREAM_BUFFER_BYTES / 2 ** 20 * 2,
    });
    this.#session = session;
    session.once('connect', () => session.setLocalWindowSize(FLOW_CONTROL_WINDOW_BYTES));
    session.on('error', (error) => this.#finish(this.#lost(error)));
    session.on('close', () => this.#finish(this.#lost(undefined)));
    session.on('goaway', () => this.#finish(this.#lost(undefined)));
    this.#keepalive = setInterval(() => this.#ping(session), KEEPALIVE_MS);
    this.#keepalive.unref();
    let stream: http2.ClientHttp2Stream;
    try {
      stream = session.request({
        ...this.#options.metadata, ':method': 'POST', ':path': this.#options.path, te: 'trailers', 'content-type': 'application/grpc+proto', 'user-agent': 'bulkhead',
        ...(this.#options.timeoutMs === undefined ? {} : { 'grpc-timeout': `${Math.min(this.#options.timeoutMs, 99_999_999)}m` }),
      });
    } catch (error) {
      return this.#finish(new BulkheadError('INVALID_ARGUMENT', 'the metadata of the call cannot be sent', { cause: error }));
    }
    this.#stream = stream;
    stream.on('response', (headers) => {
      if (headers[':status'] !== 200) this.#finish(new BulkheadError('UNAVAILABLE', `${this.#options.address} answered with HTTP status ${String(headers[':status'])}; is it a node of the cluster?`));
      else if (headers['grpc-status'] !== undefined) this.#readStatus(headers);
    });
    stream.on('trailers', (headers) => this.#readStatus(headers));
    stream.on('error', (error) => this.#finish(this.#status === undefined || this.#status === 'ok' ? this.#lost(error) : this.#status));
    stream.on('end', () => {
      // Trailers come before 'end'; without them the stream was cut.
      if (this.#status === undefined || !this.#pipe.idle) this.#finish(this.#lost(undefined));
      else this.#finish(this.#status === 'ok' ? undefined : this.#status);
    });
    stream.on('close', () => this.#finish(this.#status === 'ok' ? undefined : (this.#status ?? this.#lost(undefined))));
    this.#pipe.attach(stream);
    if (this.#ended) stream.end();
  }

  #ping(session: http2.ClientHttp2Session): void {
    const timeout = setTimeout(() => session.destroy(), KEEPALIVE_TIMEOUT_MS);
    timeout.unref();
    try {
      session.ping(() => clearTimeout(timeout));
    } catch {
      clearTimeout(timeout);
    }
  }

  #lost(cause: unknown): BulkheadError {
    return new BulkheadError('UNAVAILABLE', `the connection to ${this.#options.address} ended; check that it runs, and that this identity is valid there`, { cause });
  }

  #readStatus(headers: http2.IncomingHttpHeaders): void {
    const metadata = new grpc.Metadata();
    const named = headers[CODE_TRAILER];
    if (typeof named === 'string') metadata.set(CODE_TRAILER, named);
    let details = '';
    try {
      details = decodeURIComponent(String(headers['grpc-message'] ?? ''));
    } catch {
      details = 'the peer sent a malformed error text';
    }
    const code = Number(headers['grpc-status'] ?? grpc.status.UNKNOWN);
    this.#status = errorOf({ code: Number.isInteger(code) ? code : grpc.status.UNKNOWN, details, metadata }) ?? 'ok';
  }

  write(frames: Uint8Array, tail?: Uint8Array, written?: () => void): boolean {
    return !this.#gone && !this.#ended && this.#pipe.write(frames, tail, written);
  }

  pause(): void {
    this.#pipe.pause();
  }

  resume(): void {
    this.#pipe.resume();
  }

  end(error?: BulkheadError): void {
    if (this.#gone) return;
    if (error !== undefined) return this.#finish(error);
    if (this.#ended) return;
    this.#ended = true;
    this.#stream?.end();
  }

  cancel(): void {
    this.end(new BulkheadError('CANCELLED', 'the stream was cancelled'));
  }

  #closeWell(): void {
    const socket = this.#socket;
    // The server may have ended first; HTTP/2 closes a connection when both sides of its streams are.
    if (!this.#ended) this.#stream?.end();
    this.#session?.close();
    if (socket === undefined) return;
    const timer = setTimeout(() => socket.destroy(), CLOSE_TIMEOUT_MS);
    timer.unref();
    socket.once('close', () => clearTimeout(timer));
  }

  #finish(error: BulkheadError | undefined): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#pipe.close();
    clearInterval(this.#keepalive);
    clearTimeout(this.#deadline);
    // The connection is this stream's own. A clean end closes it after what is still to be sent. Otherwise it is cut: Node resets a stream
    // only after it has ended it, which the server would take for a clean end.
    if (error === undefined) this.#closeWell();
    else this.#socket?.destroy();
    this.onOver();
    this.onEnd?.(error);
  }
}
