/**
 * The envelopes of the worker socket (proto/frames.md): `u32 length | u32 slot | batch`. One reader and one writer for both ends: what is
 * sent in one event-loop turn leaves in one system call, and nothing is allocated per frame. The reader's input is hostile on the
 * raylet's side: a bad length is reported, never thrown. It never looks into a batch.
 */
import type { Socket } from 'node:net';
import { MAX_BATCH_BYTES } from '../base/limits.ts';

const HEADER_BYTES = 8;
/** Batches up to this size are copied into the turn's buffer; larger ones are sent from where they are. */
const COPY_BYTES = 32 * 2 ** 10;
const BUFFER_BYTES = 128 * 2 ** 10;

export class EnvelopeReader {
  readonly #onEnvelope: (slot: number, batch: Buffer) => void;
  readonly #header = Buffer.alloc(HEADER_BYTES);
  #headerLength = 0;
  #body: Buffer | undefined;
  #bodyLength = 0;
  #slot = 0;
  #stopped = false;

  /** `onEnvelope` gets views that are valid as long as they are held, but share memory with other batches. */
  constructor(onEnvelope: (slot: number, batch: Buffer) => void) {
    this.#onEnvelope = onEnvelope;
  }

  /** No envelope is given out after this, not even from the chunk in hand. */
  stop(): void {
    this.#stopped = true;
  }

  /** Takes what the socket gave. Returns what is wrong, or undefined. */
  push(chunk: Buffer): string | undefined {
    let at = 0;
    while (at < chunk.length && !this.#stopped) {
      if (this.#body !== undefined) {
        const n = chunk.copy(this.#body, this.#bodyLength, at);
        at += n;
        this.#bodyLength += n;
        if (this.#bodyLength < this.#body.length) return undefined;
        const body = this.#body;
        this.#body = undefined;
        this.#onEnvelope(this.#slot, body);
        continue;
      }
      let header = chunk;
      let headerAt = at;
      if (this.#headerLength > 0 || chunk.length - at < HEADER_BYTES) {
        const n = chunk.copy(this.#header, this.#headerLength, at, at + HEADER_BYTES - this.#headerLength);
        at += n;
        this.#headerLength += n;
        if (this.#headerLength < HEADER_BYTES) return undefined;
        this.#headerLength = 0;
        header = this.#header;
        headerAt = 0;
      } else at += HEADER_BYTES;
      const length = header.readUInt32LE(headerAt) - 4;
      this.#slot = header.readUInt32LE(headerAt + 4);
      if (length < 1 || length > MAX_BATCH_BYTES) {
        this.#stopped = true;
        return `an envelope length of ${length + 4} bytes is out of bounds`;
      }
      if (chunk.length - at >= length) {
        const body = chunk.subarray(at, at + length);
        at += length;
        this.#onEnvelope(this.#slot, body);
      } else {
        this.#body = Buffer.allocUnsafeSlow(length);
        this.#bodyLength = 0;
      }
    }
    return undefined;
  }
}

export class EnvelopeWriter {
  readonly #socket: Socket;
  #chunks: Buffer[] = [];
  #buffer = Buffer.allocUnsafeSlow(BUFFER_BYTES);
  #start = 0;
  #end = 0;
  #queuedBytes = 0;
  #scheduled = false;
  readonly #flush = (): void => this.flush();

  constructor(socket: Socket) {
    this.#socket = socket;
  }

  /** Bytes that the other side has not taken yet. */
  get pendingBytes(): number {
    return this.#queuedBytes + this.#socket.writableLength;
  }

  /** Queues a batch; all of a turn leave together in its check phase. A large batch is not copied: its memory must not change. */
  send(slot: number, batch: Uint8Array): void {
    const small = batch.length <= COPY_BYTES;
    this.#room(HEADER_BYTES + (small ? batch.length : 0));
    this.#buffer.writeUInt32LE(batch.length + 4, this.#end);
    this.#buffer.writeUInt32LE(slot, this.#end + 4);
    this.#end += HEADER_BYTES;
    if (small) {
      this.#buffer.set(batch, this.#end);
      this.#end += batch.length;
    } else {
      this.#seal();
      this.#chunks.push(Buffer.from(batch.buffer, batch.byteOffset, batch.length));
    }
    this.#queuedBytes += HEADER_BYTES + batch.length;
    if (!this.#scheduled) {
      this.#scheduled = true;
      setImmediate(this.#flush);
    }
  }

  #room(bytes: number): void {
    if (this.#end + bytes <= this.#buffer.length) return;
    this.#seal();
    this.#buffer = Buffer.allocUnsafeSlow(BUFFER_BYTES);
    this.#start = this.#end = 0;
  }

  #seal(): void {
    if (this.#end > this.#start) this.#chunks.push(this.#buffer.subarray(this.#start, this.#end));
    this.#start = this.#end;
  }

  flush(): void {
    this.#scheduled = false;
    this.#seal();
    const chunks = this.#chunks;
    if (chunks.length === 0) return;
    this.#chunks = [];
    this.#queuedBytes = 0;
    if (this.#socket.destroyed || !this.#socket.writable) return;
    if (chunks.length > 1) this.#socket.cork();
    for (const chunk of chunks) this.#socket.write(chunk);
    if (chunks.length > 1) this.#socket.uncork();
  }
}
