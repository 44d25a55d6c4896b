/**
 * A client's batch stream: a TLS connection of its own (ALPN `bulkhead-batch/1`) with gRPC's framing straight on it, see batch-frames.ts. What it moves
 * cannot hold up control calls, and nothing is allocated per read: HTTP/2 under it cost a large get half of its rate. Must never: buffer without a limit.
 */
import type { TLSSocket } from 'node:tls';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import type { FrameSink } from '../base/frame.ts';
import { CONTROL, encodeOpening, parseEnding } from './batch-frames.ts';
import { BatchPipe, SILENT_BEATS } from './batch-pipe.ts';
import type { CallOptions } from './service-types.ts';
import type { BatchStream } from './streams.ts';

const CLOSE_TIMEOUT_MS = 2_000;

export interface BatchStreamOptions extends CallOptions {
  /** `package.Service/Method`. */
  readonly method: string;
  readonly address: string;
  /** Makes a verified connection; what comes on it goes to `read`, in memory that is used again. */
  readonly dial: (read: (chunk: Buffer) => void) => Promise<TLSSocket>;
}

export interface ClientBatchStream extends BatchStream {
  cancel(): void;
  onOver: () => void;
}

export function openBatchStream(options: BatchStreamOptions): ClientBatchStream {
  return new DirectBatchStream(options);
}

class DirectBatchStream implements ClientBatchStream {
  onDrain: (() => void) | undefined;
  onData: ((frames: Uint8Array) => void) | undefined;
  onLarge: ((head: Uint8Array, length: number) => FrameSink | undefined) | undefined;
  onEnd: ((error: BulkheadError | undefined) => void) | undefined;
  onStale: (() => void) | undefined;
  onOver: () => void = () => undefined;
  readonly #options: BatchStreamOptions;
  readonly #pipe = new BatchPipe();
  #socket: TLSSocket | undefined;
  /** The server has said so, which it does once. */
  #admitted = false;
  #ended = false;
  #gone = false;
  #deadline: NodeJS.Timeout | undefined;

  constructor(options: BatchStreamOptions) {
    this.#options = options;
    const opening = encodeOpening(options.method, options.metadata ?? {});
    const pipe = this.#pipe;
    pipe.onBatch = (frames) => {
      if (!this.#gone) this.onData?.(frames);
    };
    pipe.onLarge = (head, length) => (this.#gone ? undefined : this.onLarge?.(head, length));
    pipe.onDrain = () => this.onDrain?.();
    pipe.onControl = (kind, body) => this.#control(kind, body);
    pipe.onWrong = (error) => this.end(error);
    if (options.timeoutMs !== undefined) this.#deadline = setTimeout(() => this.end(new BulkheadError('TIMEOUT', 'the stream reached its time limit')), options.timeoutMs);
    options.dial((chunk) => this.#read(chunk)).then((socket) => this.#connected(socket, opening), (error: unknown) => this.#finish(toSafeError(error)));
  }

  #connected(socket: TLSSocket, opening: Buffer): void {
    if (this.#gone) return void socket.destroy();
    this.#socket = socket;
    socket.on('error', (error) => this.#finish(this.#lost(error)));
    socket.on('end', () => this.#finish(this.#lost(undefined)));
    socket.on('close', () => this.#finish(this.#lost(undefined)));
    socket.write(opening);
    this.#pipe.attach(socket);
    if (this.#ended) this.#pipe.control(CONTROL.END);
    this.#pipe.beat(() => this.#finish(this.#lost(undefined)), SILENT_BEATS);
  }

  #read(chunk: Buffer): void {
    // Nothing of a peer is taken before it is verified; ours never speak first.
    if (this.#socket === undefined) this.#finish(new BulkheadError('UNAUTHENTICATED', `${this.#options.address} spoke before it was asked; is it a node of the cluster?`));
    else this.#pipe.receive(chunk);
  }

  #control(kind: number, body: Buffer): void {
    if (kind === CONTROL.END) this.#finish(parseEnding(body));
    else if (kind === CONTROL.OPEN && !this.#admitted && body.length === 0) this.#admitted = true;
    else throw new BulkheadError('INVALID_ARGUMENT', `the peer sent a control frame of kind ${kind}`);
  }

  #lost(cause: unknown): BulkheadError {
    return new BulkheadError('UNAVAILABLE', `the connection to ${this.#options.address} ended; check that it runs, and that this identity is valid there`, { cause });
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
    if (this.#socket !== undefined) this.#pipe.control(CONTROL.END);
  }

  cancel(): void {
    this.end(new BulkheadError('CANCELLED', 'the stream was cancelled'));
  }

  #finish(error: BulkheadError | undefined): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#pipe.close();
    clearTimeout(this.#deadline);
    const socket = this.#socket;
    // The connection is this stream's own: after a good end it closes when all is sent, else it is cut.
    if (error !== undefined) socket?.destroy();
    else if (socket !== undefined) {
      socket.end();
      socket.resume();
      const timer = setTimeout(() => socket.destroy(), CLOSE_TIMEOUT_MS);
      timer.unref();
      socket.once('close', () => clearTimeout(timer));
    }
    this.onOver();
    this.onEnd?.(error);
  }
}
