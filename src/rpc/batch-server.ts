/**
 * The server's side of streams of batches: `BatchEnd` is what a handler sees, whatever carries it; `DirectCall` is a connection of ALPN `bulkhead-batch/1`,
 * which is one call. Must never: run a handler before the call is admitted, give it out of the callback that sets it up, or leave a connection behind.
 */
import type { Duplex } from 'node:stream';
import type { TLSSocket } from 'node:tls';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import type { FrameSink } from '../base/frame.ts';
import { CONTROL, controlFrame, encodeEnding, parseOpening, type Opening } from './batch-frames.ts';
import { BatchPipe, PATIENT_BEATS, SILENT_BEATS } from './batch-pipe.ts';
import type { CoreOptions, Method } from './server.ts';
import type { BaseCall } from './service-types.ts';
import { asSeenByPeer } from './status.ts';
import type { BatchStream } from './streams.ts';
import type { Connection } from './tls-listener.ts';

const CLOSE_TIMEOUT_MS = 2_000;

export class BatchEnd implements BatchStream {
  onDrain: (() => void) | undefined;
  onData: ((frames: Uint8Array) => void) | undefined;
  onLarge: ((head: Uint8Array, length: number) => FrameSink | undefined) | undefined;
  onEnd: ((error: BulkheadError | undefined) => void) | undefined;
  onStale: (() => void) | undefined;
  readonly pipe = new BatchPipe();
  readonly #finish: (error?: BulkheadError) => void;
  #begun = false;
  #paused = false;
  #peerEnded = false;
  #ownEnd = false;
  #gone = false;

  /** `finish`: ends the call, well or with an error. */
  constructor(finish: (error?: BulkheadError) => void) {
    this.#finish = finish;
    this.pipe.onBatch = (frames) => {
      if (!this.#begun) throw new BulkheadError('INVALID_ARGUMENT', 'a batch came before the call was opened');
      if (this.#peerEnded) throw new BulkheadError('INVALID_ARGUMENT', 'a batch came after the end of the stream');
      if (!this.#gone) this.onData?.(frames);
    };
    this.pipe.onLarge = (head, length) => (!this.#begun || this.#gone || this.#peerEnded ? undefined : this.onLarge?.(head, length));
    this.pipe.onDrain = () => {
      if (!this.#gone) this.onDrain?.();
    };
    this.pipe.onWrong = (error) => this.#finish(error);
    this.pipe.pause();
  }

  /** Writes to the stream; reading begins with `begin`. */
  attach(stream: Duplex, listens: boolean): void {
    this.pipe.attach(stream, listens);
  }

  /** The handler has set its callbacks: what comes is read, unless it has paused. */
  begin(): void {
    this.#begun = true;
    if (!this.#paused) this.pipe.resume();
  }

  write(frames: Uint8Array, tail?: Uint8Array, written?: () => void): boolean {
    return !this.#gone && this.pipe.write(frames, tail, written);
  }

  pause(): void {
    this.#paused = true;
    this.pipe.pause();
  }

  resume(): void {
    this.#paused = false;
    if (this.#begun) this.pipe.resume();
  }

  /** The peer sends no more. */
  ended(): void {
    if (this.#gone) return;
    if (this.pipe.idle) this.peerEnded(undefined);
    else this.#finish(new BulkheadError('INVALID_ARGUMENT', 'the stream ended inside a batch'));
  }

  peerEnded(error: BulkheadError | undefined): void {
    if (this.#gone || (error === undefined && this.#peerEnded)) return;
    const told = this.#peerEnded;
    this.#peerEnded = true;
    if (error !== undefined) {
      this.#gone = true;
      this.pipe.close();
    }
    // After the peer's end, the owner's own `end` is no news to it; a loss is.
    if (!told || !this.#ownEnd) this.onEnd?.(error);
  }

  end(error?: BulkheadError): void {
    this.#ownEnd = true;
    this.#finish(error);
  }
}

/** Reason of the signal after a good end. */
const ENDED = new BulkheadError('CANCELLED', 'the call has ended');

/** 1. OPEN within the time for requests; 2. admission, with reading paused; 3. the handler, told to the client by an OPEN of its own; 4. END, and the connection closes. */
export class DirectCall {
  onFinished: () => void = () => undefined;
  readonly #socket: TLSSocket;
  readonly #connection: Connection;
  readonly #options: CoreOptions;
  readonly #find: (method: string) => Method | undefined;
  readonly #abort = new AbortController();
  readonly #end: BatchEnd;
  readonly #opening: NodeJS.Timeout;
  #method: Method | undefined;
  #opened = false;
  #finished = false;

  constructor(socket: TLSSocket, connection: Connection, options: CoreOptions, find: (method: string) => Method | undefined) {
    this.#socket = socket;
    this.#connection = connection;
    this.#options = options;
    this.#find = find;
    this.#end = new BatchEnd((error) => this.finish(error));
    this.#opening = setTimeout(() => this.finish(new BulkheadError('TIMEOUT', 'the request did not arrive in time')), options.limits.requestReadTimeoutMs);
    this.#opening.unref();
    const { pipe } = this.#end;
    pipe.onControl = (kind, body) => this.#control(kind, body);
    const lost = (): void => this.#lost();
    socket.on('end', lost);
    socket.on('close', lost);
    this.#end.attach(socket, true);
    // The opening alone; what follows it waits for the handler.
    pipe.resume();
  }

  #control(kind: number, body: Buffer): void {
    if (kind === CONTROL.OPEN && !this.#opened) {
      this.#opened = true;
      clearTimeout(this.#opening);
      this.#end.pipe.pause();
      void this.#run(parseOpening(body));
    } else if (kind === CONTROL.END && this.#opened && body.length === 0) this.#end.ended();
    else throw new BulkheadError('INVALID_ARGUMENT', `a control frame of kind ${kind} is not allowed here`);
  }

  async #run({ method, metadata }: Opening): Promise<void> {
    try {
      const found = this.#find(method);
      if (found === undefined) throw new BulkheadError('INVALID_ARGUMENT', 'the server does not know this method; compare the versions of both sides');
      this.#method = found;
      const base: BaseCall = { method: found.name, remote: this.#connection.remote, metadata: (name) => metadata.get(name), signal: this.#abort.signal, deadlineMs: undefined };
      const context = await found.admit(base, this.#connection, undefined);
      if (this.#finished) return;
      this.#socket.write(controlFrame(CONTROL.OPEN));
      this.#end.pipe.beat(() => this.#lost(), this.#connection.peer?.principal.kind === 'node' ? SILENT_BEATS : PATIENT_BEATS);
      const result = found.handler(context, this.#end as never);
      this.#end.begin();
      if (result instanceof Promise) await result;
    } catch (error) {
      this.finish(error);
    }
  }

  #lost(): void {
    if (this.#finished) return;
    this.#socket.destroy();
    this.#done(new BulkheadError('CANCELLED', 'the caller cancelled the call or its connection ended'));
  }

  finish(thrown?: unknown): void {
    if (this.#finished) return;
    if (thrown !== undefined && toSafeError(thrown).code === 'INTERNAL') this.#options.log.warn({ error: thrown, method: this.#method?.name ?? '', remote: this.#connection.remote }, 'a call failed inside');
    const socket = this.#socket;
    socket.end(encodeEnding(thrown));
    // What the client still sends is read and dropped, so that its reader finds the status and no reset.
    socket.resume();
    const timer = setTimeout(() => socket.destroy(), CLOSE_TIMEOUT_MS);
    timer.unref();
    socket.once('close', () => clearTimeout(timer));
    this.#done(thrown === undefined ? ENDED : asSeenByPeer(thrown));
  }

  #done(reason: BulkheadError): void {
    this.#finished = true;
    clearTimeout(this.#opening);
    this.#abort.abort(reason);
    this.#end.peerEnded(reason);
    this.onFinished();
  }
}
