/**
 * Batches over one byte stream, the same on both sides: gRPC's framing by hand, since grpc-js makes promises and pauses the stream for each message. The stream is
 * a TLS connection (batch-frames.ts), or a stream of HTTP/2 where the client speaks gRPC. Must never: buffer without a limit, or give out a batch while it is paused.
 */
import type { Duplex } from 'node:stream';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import type { FrameSink } from '../base/frame.ts';
import { MAX_BATCH_BYTES, MAX_METADATA_BYTES, MAX_STREAM_BUFFER_BYTES, STREAM_HIGH_WATER_BYTES } from '../base/limits.ts';
import { batchHeadBytes, decodeBatch, framesStart, writeBatchHead } from './batch-codec.ts';
import { CONTROL, controlFrame, PREFIX_BYTES } from './batch-frames.ts';

/** A message of at least this size that comes in several chunks may be placed by its reader; enough of it must be there to tell what it is. */
const PLACED_BYTES = 64 * 2 ** 10;
const PLACED_HEAD_BYTES = 64;
/** A batch and its protobuf tag and length. */
const MAX_MESSAGE_BYTES = MAX_BATCH_BYTES + 16;

export interface ReaderOptions {
  /** Most octets of a message. */
  readonly limit: number;
  /** Where the rest of a large message goes. */
  readonly place?: (head: Buffer, length: number) => FrameSink | undefined;
  /** Takes control frames, and answers as `each` does; without it they are refused, as anything with a flag is. */
  readonly control?: (kind: number, body: Buffer) => boolean;
}

/**
 * Cuts a byte stream into messages. A message inside one chunk is a view of it, or a copy where chunks are used again; one over several chunks is copied
 * once: to where `place` says, else into a buffer of its own.
 */
export class MessageReader {
  readonly #options: ReaderOptions;
  /** Chunks lie in memory that is written over afterwards. */
  volatile = false;
  readonly #prefix = Buffer.alloc(PREFIX_BYTES);
  #prefixAt = 0;
  #kind = 0;
  #message: Uint8Array | undefined;
  #messageAt = 0;
  #sink: FrameSink | undefined;
  /** The first octets of a large message whose chunk ended among them: as likely as not, where the peer's TLS made a record of them. */
  readonly #head = Buffer.alloc(PLACED_HEAD_BYTES);
  #headAt = -1;
  #length = 0;

  constructor(options: ReaderOptions) {
    this.#options = options;
  }

  /**
   * Takes a chunk and returns how much of it: less than all when `each` answered false, to be pushed again later. Throws RESOURCE_EXHAUSTED or
   * INVALID_ARGUMENT; the stream must then end.
   */
  push(chunk: Buffer, each: (message: Buffer) => boolean | void, placed: () => boolean = () => true): number {
    let at = 0;
    while (at < chunk.length) {
      if (this.#message !== undefined) {
        const n = Math.min(chunk.length - at, this.#message.length - this.#messageAt);
        this.#message.set(n === chunk.length ? chunk : chunk.subarray(at, at + n), this.#messageAt);
        this.#messageAt += n;
        at += n;
        if (this.#messageAt < this.#message.length) return at;
        const whole = this.#message;
        const sink = this.#sink;
        this.#message = this.#sink = undefined;
        if (sink !== undefined) {
          sink.done();
          if (!placed()) return at;
        } else if (this.#give(whole as Buffer, each) === false) return at;
        continue;
      }
      if (this.#headAt >= 0) {
        const n = Math.min(PLACED_HEAD_BYTES - this.#headAt, chunk.length - at);
        chunk.copy(this.#head, this.#headAt, at, at + n);
        this.#headAt += n;
        at += n;
        if (this.#headAt < PLACED_HEAD_BYTES) return at;
        this.#headAt = -1;
        this.#begin(this.#head);
        continue;
      }
      const n = Math.min(PREFIX_BYTES - this.#prefixAt, chunk.length - at);
      chunk.copy(this.#prefix, this.#prefixAt, at, at + n);
      this.#prefixAt += n;
      at += n;
      if (this.#prefixAt < PREFIX_BYTES) return at;
      this.#prefixAt = 0;
      const length = this.#prefix.readUInt32BE(1);
      this.#kind = this.#prefix[0] as number;
      const limit = this.#kind === 0 ? this.#options.limit : MAX_METADATA_BYTES;
      if (this.#kind !== 0 && (this.#kind < 0x80 || this.#options.control === undefined)) throw new BulkheadError('INVALID_ARGUMENT', 'the peer sent a compressed batch, which was not agreed');
      if (length > limit) throw new BulkheadError('RESOURCE_EXHAUSTED', `a batch of ${length} bytes exceeds the limit of ${limit}`);
      const there = chunk.length - at;
      if (there >= length) {
        const whole = chunk.subarray(at, at + length);
        at += length;
        if (this.#give(this.volatile ? Buffer.from(whole) : whole, each) === false) return at;
      } else {
        this.#length = length;
        if (length >= PLACED_BYTES && there < PLACED_HEAD_BYTES) {
          chunk.copy(this.#head, 0, at);
          this.#headAt = there;
        } else this.#begin(chunk.subarray(at));
        return chunk.length;
      }
    }
    return at;
  }

  /** The first octets of a message that needs more chunks. */
  #begin(first: Buffer): void {
    this.#sink = this.#kind === 0 && this.#length >= PLACED_BYTES ? this.#options.place?.(first, this.#length) : undefined;
    const skip = this.#sink?.skip ?? 0;
    const into = this.#sink?.into ?? Buffer.allocUnsafeSlow(this.#length);
    if (into.length !== this.#length - skip || skip > first.length) throw new BulkheadError('INTERNAL', 'a message was given a place that it does not fit');
    into.set(first.subarray(skip), 0);
    this.#message = into;
    this.#messageAt = first.length - skip;
  }

  #give(message: Buffer, each: (message: Buffer) => boolean | void): boolean | void {
    return this.#kind === 0 ? each(message) : this.#options.control?.(this.#kind, message);
  }

  /** True between messages: an end elsewhere is a truncated message. */
  get idle(): boolean {
    return this.#message === undefined && this.#prefixAt === 0 && this.#headAt < 0;
  }
}

/** A cut link is noticed within `SILENT_BEATS` and one: long enough for a process that is stopped for seconds or starved of its processor. */
const BEAT_MS = 2_000;
export const SILENT_BEATS = 5;
/** Of a peer that may well be busy with itself for longer, as a client's program is that computes and never waits; and of any before its first word. */
export const PATIENT_BEATS = 20;

interface Waiting {
  readonly octets: Buffer;
  readonly written: (() => void) | undefined;
}

export class BatchPipe {
  onBatch: (frames: Uint8Array) => void = () => undefined;
  /** See `BatchStream.onLarge`. */
  onLarge: ((head: Uint8Array, length: number) => FrameSink | undefined) | undefined;
  onDrain: () => void = () => undefined;
  /** Where the stream has control frames; undefined: it has none. */
  onControl: ((kind: number, body: Buffer) => void) | undefined;
  /** What came cannot be taken: the stream must end with this error. */
  onWrong: (error: BulkheadError) => void = () => undefined;
  readonly #reader = new MessageReader({ limit: MAX_MESSAGE_BYTES, place: (head, length) => this.#place(head, length), control: (kind, body) => this.#onControl(kind, body) });
  readonly #each = (message: Buffer): boolean => {
    this.onBatch(decodeBatch(message));
    return !this.#paused;
  };
  readonly #placed = (): boolean => !this.#paused;
  #stream: Duplex | undefined;
  /** Written before there was a stream. */
  #waiting: Waiting[] = [];
  #buffered = 0;
  #blocked = false;
  #paused = false;
  #reading = false;
  #rest: Buffer | undefined;
  #beat: NodeJS.Timeout | undefined;
  #silent = 0;
  #gone = false;

  /** From here on the pipe writes to the stream and reads it, unless it is paused. What has no 'data' is read by `receive`. */
  attach(stream: Duplex, listens = false): void {
    this.#stream = stream;
    if (listens) stream.on('data', (chunk: Buffer) => this.#receive(chunk));
    if (this.#paused) stream.pause();
    else stream.resume();
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const { octets, written } of waiting) this.#send(octets, written);
  }

  /** From here on the peer hears in each interval that this side lives, and is taken for lost when nothing at all came in `silentBeats` of them. */
  beat(lost: () => void, silentBeats: number): void {
    // Before its first word a peer is admitting the call, which may take its disk a while.
    this.#silent = silentBeats - PATIENT_BEATS;
    this.#beat = setInterval(() => {
      if (!this.#blocked) this.control(CONTROL.BEAT);
      // Whoever does not read hears nothing; a process that stood still counts one interval, however long.
      if (!this.#paused && ++this.#silent > silentBeats) lost();
    }, BEAT_MS);
    this.#beat.unref();
  }

  /** Nothing more is given out or written. */
  close(): void {
    this.#gone = true;
    clearInterval(this.#beat);
    this.#waiting = [];
    this.#rest = undefined;
  }

  /** True when what was read so far ends with a whole message. */
  get idle(): boolean {
    return this.#reader.idle && this.#rest === undefined;
  }

  #place(head: Buffer, length: number): FrameSink | undefined {
    if (this.onLarge === undefined) return undefined;
    const start = framesStart(head, length);
    const sink = start === undefined ? undefined : this.onLarge(head.subarray(start), length - start);
    return start === undefined || sink === undefined ? undefined : { into: sink.into, skip: sink.skip + start, done: () => sink.done() };
  }

  /** A chunk in memory that is used again. */
  receive(chunk: Buffer): void {
    this.#reader.volatile = true;
    this.#receive(chunk);
  }

  /** Sends a control frame without a body, behind what was written before. */
  control(kind: number): void {
    if (!this.#gone) this.#stream?.write(controlFrame(kind));
  }

  #onControl(kind: number, body: Buffer): boolean {
    if (kind === CONTROL.BEAT && this.#beat !== undefined && body.length === 0) return true;
    if (this.onControl === undefined) throw new BulkheadError('INVALID_ARGUMENT', 'the peer sent a compressed batch, which was not agreed');
    this.onControl(kind, body);
    return !this.#paused;
  }

  #receive(chunk: Buffer): void {
    this.#silent = 0;
    if (this.#gone) return;
    // Paused within the chunk before this one: Node gives no more by then, but it may have had this one in hand.
    if (this.#paused || this.#reading) {
      this.#rest = this.#rest === undefined ? Buffer.from(chunk) : Buffer.concat([this.#rest, chunk]);
      return;
    }
    this.#reading = true;
    try {
      const taken = this.#reader.push(chunk, this.#each, this.#placed);
      if (taken < chunk.length && !this.#gone) this.#rest = Buffer.from(chunk.subarray(taken));
    } catch (error) {
      this.onWrong(toSafeError(error));
    } finally {
      this.#reading = false;
    }
    // It was resumed by what the last batch caused.
    if (!this.#paused && this.#rest !== undefined) this.#readRest();
  }

  #readRest(): void {
    const rest = this.#rest;
    this.#rest = undefined;
    if (rest !== undefined) this.#receive(rest);
  }

  pause(): void {
    this.#paused = true;
    this.#stream?.pause();
  }

  resume(): void {
    if (!this.#paused) return;
    this.#paused = false;
    if (this.#reading) return void this.#stream?.resume();
    this.#readRest();
    if (!this.#paused) this.#stream?.resume();
  }

  /**
   * Sends a batch: `frames`, then `tail` from where it lies. `written` is called when both may be used again; never, when the stream dies before. False: wait
   * for `onDrain`. Throws RESOURCE_EXHAUSTED.
   */
  write(frames: Uint8Array, tail?: Uint8Array, written?: () => void): boolean {
    if (this.#gone) return false;
    const batchBytes = frames.length + (tail?.length ?? 0);
    if (batchBytes > MAX_BATCH_BYTES) throw new BulkheadError('RESOURCE_EXHAUSTED', `a batch of ${batchBytes} bytes exceeds the limit of ${MAX_BATCH_BYTES}`);
    const headBytes = PREFIX_BYTES + batchHeadBytes(batchBytes);
    if (this.#buffered + headBytes + batchBytes > MAX_STREAM_BUFFER_BYTES) throw new BulkheadError('RESOURCE_EXHAUSTED', `more than ${MAX_STREAM_BUFFER_BYTES} bytes wait on one stream; the peer does not read: wait for onDrain`);
    const message = Buffer.allocUnsafe(headBytes + frames.length);
    message[0] = 0;
    message.writeUInt32BE(headBytes - PREFIX_BYTES + batchBytes, 1);
    writeBatchHead(message, PREFIX_BYTES, batchBytes);
    message.set(frames, headBytes);
    this.#put(message, tail === undefined ? written : undefined);
    if (tail !== undefined) this.#put(Buffer.from(tail.buffer, tail.byteOffset, tail.byteLength), written);
    this.#blocked = this.#blocked || this.#buffered >= STREAM_HIGH_WATER_BYTES;
    return !this.#blocked;
  }

  #put(octets: Buffer, written: (() => void) | undefined): void {
    this.#buffered += octets.length;
    if (this.#stream === undefined) this.#waiting.push({ octets, written });
    else this.#send(octets, written);
  }

  #send(octets: Buffer, written: (() => void) | undefined): void {
    this.#stream?.write(octets, (error) => {
      this.#buffered -= octets.length;
      if (error === null || error === undefined) written?.();
      if (!this.#blocked || this.#gone || this.#buffered >= STREAM_HIGH_WATER_BYTES / 2) return;
      this.#blocked = false;
      this.onDrain();
    });
  }
}
