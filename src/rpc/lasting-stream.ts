/**
 * Batch streams that outlive the SVIDs under them. A stream lives on one connection, and a connection ends with the older of its two SVIDs:
 * so the client offers a second stream before that (`onStale`), with a token that the server gave it on the first, and both move
 * over. Must never: lose, repeat or reorder a batch, or move a stream for anyone but its own client.
 *
 * 1. client: opens the next stream with the token; goes on with the old one meanwhile.
 * 2. server: checks identity and token, says "accepted" on the next stream, does not read it yet.
 * 3. client: at "accepted" ends its side of the old stream and writes only on the next one; holds back what that brings.
 * 4. server: at the client's end of the old stream has read all of it; ends its own side, then reads and writes the next one.
 * 5. client: at the server's end of the old stream has read all of it; delivers what the next one brought.
 * Before 3 a failure of the next stream changes nothing, and the client tries again. From 3 on a lost connection may have taken
 * batches with it: then the stream is gone, as it is whenever a connection dies.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import type { FrameSink } from '../base/frame.ts';
import type { BatchStream } from './streams.ts';

/** Metadata entry with which a stream takes over from another: `<id>:<secret>`, 40 and 64 hex digits. */
export const RESUME_METADATA = 'bulkhead-resume';
export const RESUME_SECRET_BYTES = 32;

const TOKEN = /^([0-9a-f]{40}):([0-9a-f]{64})$/;
/** From opening the next stream until it is accepted. */
const OFFER_TIMEOUT_MS = 15_000;
const RETRY_FIRST_MS = 250;
const RETRY_MOST_MS = 10_000;

// --- client -----------------------------------------------------------------------------------------------------------------

export interface LastingStreamOptions {
  /** Opens a stream on a new connection; with a token: as the heir of this one (metadata `RESUME_METADATA`). */
  readonly open: (token: string | undefined) => BatchStream;
  /** The token in the first batch of the first stream; undefined where the server gives none: the stream then ends with its connection. */
  readonly token: (first: Uint8Array) => string | undefined;
  /** Whether the first batch of a later stream says that it was accepted. */
  readonly accepted: (first: Uint8Array) => boolean;
}

/** The client's end. Its owner sees one stream; `onStale` is never called. */
export class LastingStream implements BatchStream {
  onDrain: (() => void) | undefined;
  onData: ((frames: Uint8Array) => void) | undefined;
  onLarge: ((head: Uint8Array, length: number) => FrameSink | undefined) | undefined;
  onEnd: ((error: BulkheadError | undefined) => void) | undefined;
  onStale: (() => void) | undefined;
  readonly #options: LastingStreamOptions;
  /** Written to. */
  #current: BatchStream;
  /** Ended by us and still read: before it is over nothing of `#current` is delivered. */
  #old: BatchStream | undefined;
  /** Offered, not accepted yet. */
  #next: BatchStream | undefined;
  #timer: NodeJS.Timeout | undefined;
  #begun = false;
  #token: string | undefined;
  #stale = false;
  #nextStale = false;
  #failures = 0;
  #lastFailure: BulkheadError | undefined;
  readonly #held: Uint8Array[] = [];
  /** The server ended `#current` while something before that was still to be delivered. */
  #currentEnded = false;
  #paused = false;
  #ended = false;
  #over = false;

  constructor(options: LastingStreamOptions) {
    this.#options = options;
    this.#current = options.open(undefined);
    this.#listen(this.#current);
  }

  #listen(stream: BatchStream): void {
    stream.onData = (batch) => this.#receive(stream, batch);
    stream.onLarge = (head, length) => (this.#delivers(stream) ? this.onLarge?.(head, length) : undefined);
    stream.onDrain = () => {
      if (stream === this.#current) this.onDrain?.();
    };
    stream.onEnd = (error) => this.#streamEnded(stream, error);
    stream.onStale = () => {
      if (stream === this.#next) this.#nextStale = true;
      else if (stream === this.#current) {
        this.#stale = true;
        this.#move();
      }
    };
  }

  /** What comes from it now goes straight to the owner: nothing of another stream, and no first batch, is to come before. */
  #delivers(stream: BatchStream): boolean {
    if (this.#over || !this.#begun) return false;
    return stream === this.#old || (stream === this.#current && this.#old === undefined && this.#held.length === 0);
  }

  #receive(stream: BatchStream, batch: Uint8Array): void {
    if (this.#over) return;
    if (stream === this.#next) {
      if (!this.#options.accepted(batch)) throw new BulkheadError('INVALID_ARGUMENT', 'the peer did not say that it accepts the new stream');
      return this.#switch(stream);
    }
    if (stream !== this.#old && stream !== this.#current) return;
    if (stream === this.#current && (this.#old !== undefined || this.#held.length > 0)) return void this.#held.push(batch);
    if (!this.#begun) {
      this.#begun = true;
      this.#token = this.#options.token(batch);
    }
    this.onData?.(batch);
    if (this.#stale) this.#move();
  }

  #move(): void {
    if (!this.#stale || this.#token === undefined || this.#ended || this.#over || this.#next !== undefined || this.#timer !== undefined) return;
    // One move at a time: what is held back is of one stream.
    if (this.#old !== undefined || this.#held.length > 0) return;
    try {
      const next = this.#options.open(this.#token);
      this.#next = next;
      this.#nextStale = false;
      this.#listen(next);
      this.#timer = setTimeout(() => next.end(new BulkheadError('TIMEOUT', 'the peer did not answer in time')), OFFER_TIMEOUT_MS);
      this.#timer.unref();
    } catch (error) {
      this.#offerFailed(toSafeError(error));
    }
  }

  #offerFailed(error: BulkheadError): void {
    this.#next = undefined;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#over || this.#ended) return;
    this.#lastFailure = error;
    // These stay as they are however often one asks.
    if (error.code === 'DENIED' || error.code === 'INVALID_ARGUMENT') return void (this.#stale = false);
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#move();
    }, Math.min(RETRY_FIRST_MS * 2 ** this.#failures++, RETRY_MOST_MS));
    this.#timer.unref();
  }

  #switch(next: BatchStream): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const old = this.#current;
    next.pause();
    this.#next = undefined;
    this.#old = old;
    this.#current = next;
    this.#stale = this.#nextStale;
    this.#failures = 0;
    this.#lastFailure = undefined;
    old.end();
    // Whoever waited for the old one to drain may write on.
    this.onDrain?.();
  }

  #streamEnded(stream: BatchStream, error: BulkheadError | undefined): void {
    if (this.#over) return;
    if (stream === this.#next) return this.#offerFailed(error ?? new BulkheadError('UNAVAILABLE', 'the peer ended the new stream'));
    if (stream === this.#old) {
      if (error !== undefined) return this.#finish(error);
      this.#old = undefined;
      if (!this.#paused) this.#deliverHeld();
    } else if (stream === this.#current) {
      if (error !== undefined) this.#finish(this.#explain(error));
      else if (this.#old !== undefined || this.#held.length > 0) this.#currentEnded = true;
      else this.#finish(undefined);
    }
  }

  #explain(error: BulkheadError): BulkheadError {
    const before = this.#lastFailure;
    return before === undefined ? error : new BulkheadError(error.code, `${error.safeMessage}; it could not be replaced before: ${before.safeMessage}`, { cause: error });
  }

  #deliverHeld(): void {
    try {
      while (this.#held.length > 0) {
        if (this.#paused || this.#over) return;
        this.onData?.(this.#held.shift() as Uint8Array);
      }
    } catch (error) {
      return this.end(toSafeError(error));
    }
    if (this.#over) return;
    if (this.#currentEnded) return this.#finish(undefined);
    if (!this.#paused) this.#current.resume();
    this.#move();
  }

  #finish(error: BulkheadError | undefined): void {
    if (this.#over) return;
    this.#over = true;
    clearTimeout(this.#timer);
    const reason = error ?? new BulkheadError('CANCELLED', 'the stream has ended');
    for (const stream of [this.#next, this.#old, this.#current]) stream?.end(reason);
    this.#held.length = 0;
    this.onEnd?.(error);
  }

  write(frames: Uint8Array, tail?: Uint8Array, written?: () => void): boolean {
    return !this.#over && !this.#ended && this.#current.write(frames, tail, written);
  }

  pause(): void {
    this.#paused = true;
    (this.#old ?? this.#current).pause();
  }

  resume(): void {
    this.#paused = false;
    if (this.#old !== undefined) this.#old.resume();
    else this.#deliverHeld();
  }

  end(error?: BulkheadError): void {
    if (this.#over) return;
    if (error !== undefined) return this.#finish(error);
    if (this.#ended) return;
    this.#ended = true;
    clearTimeout(this.#timer);
    const offered = this.#next;
    this.#next = undefined;
    offered?.end(new BulkheadError('CANCELLED', 'the stream has ended'));
    this.#current.end();
  }
}

// --- server -----------------------------------------------------------------------------------------------------------------

/** The server's end: one stream to its owner, on one connection after the other. Set the callbacks in the turn in which it is made. */
export class MovableStream implements BatchStream {
  onDrain: (() => void) | undefined;
  onData: ((frames: Uint8Array) => void) | undefined;
  onLarge: ((head: Uint8Array, length: number) => FrameSink | undefined) | undefined;
  onEnd: ((error: BulkheadError | undefined) => void) | undefined;
  onStale: (() => void) | undefined;
  #stream: BatchStream;
  #next: BatchStream | undefined;
  #paused = false;
  #clientEnded = false;
  #over = false;

  constructor(first: BatchStream) {
    this.#stream = first;
    this.#listen(first);
  }

  #listen(stream: BatchStream): void {
    stream.onData = (batch) => this.onData?.(batch);
    stream.onLarge = (head, length) => (this.#over ? undefined : this.onLarge?.(head, length));
    stream.onDrain = () => {
      if (stream === this.#stream) this.onDrain?.();
    };
    stream.onEnd = (error) => {
      if (stream !== this.#stream || this.#over) return;
      if (error === undefined && this.#next !== undefined) return this.#moveTo(this.#next);
      this.#clientEnded = true;
      if (error !== undefined) {
        this.#over = true;
        this.#dropNext(error);
      }
      this.onEnd?.(error);
    };
  }

  get open(): boolean {
    return !this.#clientEnded && !this.#over;
  }

  /** A stream of the same client on another connection, not read so far. It is told `accepted`, and takes over when the client ends the one in use. */
  offer(next: BatchStream, accepted: Uint8Array): void {
    if (!this.open) return next.end(new BulkheadError('DENIED', 'the stream has ended'));
    this.#dropNext(new BulkheadError('CANCELLED', 'a newer stream took its place'));
    this.#next = next;
    next.pause();
    // Not before it is read: only the loss of it can be told here. The stream in use goes on.
    next.onEnd = () => {
      if (this.#next === next) this.#next = undefined;
    };
    next.write(accepted);
  }

  #dropNext(error: BulkheadError): void {
    const next = this.#next;
    this.#next = undefined;
    next?.end(error);
  }

  #moveTo(next: BatchStream): void {
    const old = this.#stream;
    this.#next = undefined;
    this.#stream = next;
    this.#listen(next);
    old.end();
    if (!this.#paused) next.resume();
    this.onDrain?.();
  }

  write(frames: Uint8Array, tail?: Uint8Array, written?: () => void): boolean {
    return !this.#over && this.#stream.write(frames, tail, written);
  }

  pause(): void {
    this.#paused = true;
    this.#stream.pause();
  }

  resume(): void {
    this.#paused = false;
    this.#stream.resume();
  }

  end(error?: BulkheadError): void {
    if (this.#over) return;
    this.#over = true;
    this.#dropNext(error ?? new BulkheadError('CANCELLED', 'the stream has ended'));
    this.#stream.end(error);
  }
}

/** The open streams of a server that may move, by an id that may be known: what counts is the owner and the secret. */
export class MovableStreams {
  readonly #entries = new Map<string, { readonly owner: string; readonly secret: Buffer; readonly stream: MovableStream }>();

  static newSecret(): string {
    return randomBytes(RESUME_SECRET_BYTES).toString('hex');
  }

  /** `id`: 40 hex digits; `owner`: whatever must be the same of the caller that resumes. */
  add(id: string, secret: string, owner: string, stream: MovableStream): void {
    this.#entries.set(id, { owner, secret: Buffer.from(secret, 'hex'), stream });
  }

  delete(id: string): void {
    this.#entries.delete(id);
  }

  /** The stream of a token and its owner; throws the same DENIED whatever does not fit. */
  find(token: string, owner: string): MovableStream {
    const [, id, secret] = TOKEN.exec(token) ?? [];
    const entry = id === undefined ? undefined : this.#entries.get(id);
    const same = timingSafeEqual(entry?.secret ?? Buffer.alloc(RESUME_SECRET_BYTES), Buffer.from(secret ?? '00'.repeat(RESUME_SECRET_BYTES), 'hex'));
    if (entry === undefined || !same || entry.owner !== owner || !entry.stream.open) throw new BulkheadError('DENIED', 'there is no such stream of this caller');
    return entry.stream;
  }

  /** The id in a token, for a record of the attempt; '' when it is none. */
  static idIn(token: string): string {
    return TOKEN.exec(token)?.[1] ?? '';
  }
}
