/**
 * The frame codec of proto/frames.md: one writer and one reader for every hop (driver, raylet, worker host, isolate).
 * Runs inside isolates too, so it uses only DataView and typed arrays. The reader never reads past its frame: malformed
 * input throws INVALID_ARGUMENT, and the owner of the channel must then close it.
 */
import { BulkheadError } from './errors.ts';
import { OBJECT_ID_BYTES } from './ids.ts';
import { MAX_FRAME_BYTES } from './limits.ts';

export const OP = {
  DEFINE: 0x01, CODE: 0x02, SUBMIT: 0x03, CREATE_ACTOR: 0x04, CALL_ACTOR: 0x05, PUT: 0x06, PUT_CHUNK: 0x07, PUT_STAGED: 0x08,
  GET: 0x09, WAIT: 0x0a, RELEASE: 0x0b, CANCEL: 0x0c, KILL: 0x0d, LOOKUP_ACTOR: 0x0e, CONTEXT: 0x0f, RESOLVE: 0x10, CREDENTIAL: 0x11, MORE: 0x12, SUBMIT_ONCE: 0x13, IDLE_LIMIT: 0x14,
  CREATE_GROUP: 0x15, REMOVE_GROUP: 0x16, LOOKUP_GROUP: 0x17, PREPARE_BUNDLES: 0x18, COMMIT_BUNDLES: 0x19, RELEASE_BUNDLES: 0x1a, WATCH_GROUP: 0x1b, BORROW: 0x1c, GIVE_BACK: 0x1d, COPY: 0x1e, COPIED: 0x1f,
  SHARED: 0x30, LIST_NODES: 0x31, DESCRIBE_GROUP: 0x32, ROOTS: 0x33, TAKE_BUNDLES: 0x34, RECALL: 0x35,
  RESULT: 0x20, FAILURE: 0x21, LOG: 0x22, EXIT: 0x23, ITEM: 0x24, RETRY: 0x25,
  WELCOME: 0x40, VALUE: 0x41, VALUE_CHUNK: 0x42, VALUE_ATTACHED: 0x43, VALUE_FAILED: 0x44, READY: 0x45, ACTOR: 0x46, DONE: 0x47,
  FAILED: 0x48, REJECTED: 0x49, VALUE_STORED: 0x4a, RESUMED: 0x4b, ACTOR_STATE: 0x4c, STREAM_ITEM: 0x4d, STREAM_END: 0x4e, VALUE_DIGEST: 0x4f, GROUP_STATE: 0x50, BORROWED: 0x51, RETURNED: 0x52, VALUE_REFS: 0x53,
  VALUE_ELSEWHERE: 0x54, SHARE: 0x55, CREDENTIAL_REFUSED: 0x56,
  EXEC: 0x60, TEMPLATE: 0x61, CANCEL_EXEC: 0x62, PULL: 0x63,
} as const;

export const HOST_OP = {
  OPEN_SLOT: 0x80, LOAD_CODE: 0x81, ATTACH: 0x82, CLOSE_SLOT: 0x83, PING: 0x84,
  READY: 0x90, SLOT_FAILED: 0x91, CODE_FAILED: 0x92, SLOT_STATS: 0x93, PONG: 0x94,
} as const;

/** What a raylet tells another one of an actor that it made for it: constructed; ended for good; what it ran in is gone. */
export const ACTOR_STATE = { ALIVE: 1, ENDED: 2, LOST: 3 } as const;

export const CALL_KIND = { TASK: 0, ACTOR_CLASS: 1, ACTOR_METHOD: 2 } as const;
export type CallKind = (typeof CALL_KIND)[keyof typeof CALL_KIND];
export const NO_TIMEOUT = 0xffff_ffff;
/** In MORE: nobody waits for an item. */
export const NO_ITEM = 0xffff_ffff;
/** In TEMPLATE, instead of a number of returns: what it yields is streamed. */
export const STREAMS = 0xff;

/** UTF-8 without host types: isolates have no TextEncoder of their own when the prelude loads. Lone surrogates become U+FFFD. */
export function writeUtf8(text: string, into: Uint8Array, at: number): number {
  let p = at;
  for (let i = 0; i < text.length; i++) {
    let c = text.charCodeAt(i);
    if (c < 0x80) {
      into[p++] = c;
      continue;
    }
    if (c >= 0xd800 && c < 0xe000) {
      const next = c < 0xdc00 ? text.charCodeAt(i + 1) : 0;
      if (next >= 0xdc00 && next < 0xe000) {
        c = 0x10000 + ((c - 0xd800) << 10) + (next - 0xdc00);
        i++;
      } else c = 0xfffd;
    }
    if (c < 0x800) into[p++] = 0xc0 | (c >> 6);
    else {
      if (c < 0x10000) into[p++] = 0xe0 | (c >> 12);
      else {
        into[p++] = 0xf0 | (c >> 18);
        into[p++] = 0x80 | ((c >> 12) & 0x3f);
      }
      into[p++] = 0x80 | ((c >> 6) & 0x3f);
    }
    into[p++] = 0x80 | (c & 0x3f);
  }
  return p - at;
}

/** Strict UTF-8: overlong forms, surrogates and truncated sequences throw. */
export function readUtf8(from: Uint8Array, start: number, end: number): string {
  let text = '';
  let p = start;
  const bad = (): never => {
    throw new BulkheadError('INVALID_ARGUMENT', 'text is not valid UTF-8');
  };
  const tail = (): number => {
    const c = p < end ? (from[p++] as number) : 0;
    return (c & 0xc0) === 0x80 ? c & 0x3f : bad();
  };
  while (p < end) {
    const c = from[p++] as number;
    if (c < 0x80) text += String.fromCharCode(c);
    else if (c < 0xc2) bad();
    else if (c < 0xe0) text += String.fromCharCode(((c & 0x1f) << 6) | tail());
    else if (c < 0xf0) {
      const u = ((c & 0x0f) << 12) | (tail() << 6) | tail();
      if (u < 0x800 || (u >= 0xd800 && u < 0xe000)) bad();
      text += String.fromCharCode(u);
    } else if (c < 0xf5) {
      const u = ((c & 0x07) << 18) | (tail() << 12) | (tail() << 6) | tail();
      if (u < 0x10000 || u > 0x10ffff) bad();
      text += String.fromCodePoint(u);
    } else bad();
  }
  return text;
}

const HANDED_OVER_BYTES = 64 * 2 ** 10;

/** Grows a batch frame by frame: `begin(op)`, fields, `end()`; `take()` hands the batch out and starts the next. */
export class FrameWriter {
  #bytes: Uint8Array;
  #view: DataView;
  #at = 0;
  #start = -1;
  readonly #initialBytes: number;

  constructor(initialBytes = 16_384) {
    this.#initialBytes = initialBytes;
    this.#bytes = new Uint8Array(initialBytes);
    this.#view = new DataView(this.#bytes.buffer);
  }

  /** Octets written so far. */
  get length(): number {
    return this.#at;
  }

  #need(n: number): void {
    if (this.#at + n <= this.#bytes.length) return;
    const grown = new Uint8Array(Math.max(this.#bytes.length * 2, this.#at + n));
    grown.set(this.#bytes.subarray(0, this.#at));
    this.#bytes = grown;
    this.#view = new DataView(grown.buffer);
  }

  begin(op: number): this {
    this.#need(5);
    this.#start = this.#at;
    this.#bytes[this.#at + 4] = op;
    this.#at += 5;
    return this;
  }

  end(): void {
    this.endBeforeTail(0);
  }

  /** Ends the frame although `octets` of it are still missing: whoever sends the batch sends them right behind it. */
  endBeforeTail(octets: number): void {
    const length = this.#at - this.#start - 4 + octets;
    if (length > MAX_FRAME_BYTES) {
      this.#at = this.#start;
      throw new BulkheadError('RESOURCE_EXHAUSTED', `a frame of ${length} bytes exceeds the limit of ${MAX_FRAME_BYTES}`);
    }
    this.#view.setUint32(this.#start, length, true);
    this.#start = -1;
  }

  /** Forgets the frame begun last, when writing one of its fields threw. */
  abandon(): void {
    if (this.#start >= 0) this.#at = this.#start;
    this.#start = -1;
  }

  u8(value: number): this {
    this.#need(1);
    this.#bytes[this.#at++] = value;
    return this;
  }

  u16(value: number): this {
    this.#need(2);
    this.#view.setUint16(this.#at, value, true);
    this.#at += 2;
    return this;
  }

  u32(value: number): this {
    this.#need(4);
    this.#view.setUint32(this.#at, value, true);
    this.#at += 4;
    return this;
  }

  /** A non-negative safe integer as 64 bits. */
  u64(value: number): this {
    this.u32(value % 0x1_0000_0000);
    return this.u32(Math.floor(value / 0x1_0000_0000));
  }

  /** Octets without a length: ids, digests, and the `rest` of a frame. */
  raw(octets: Uint8Array): this {
    this.#need(octets.length);
    this.#bytes.set(octets, this.#at);
    this.#at += octets.length;
    return this;
  }

  /** Octets `start` to `end` of another batch, without making a view of them: most payloads are a few octets. */
  range(octets: Uint8Array, start: number, end: number): this {
    const n = end - start;
    this.#need(n);
    if (n > 48) this.#bytes.set(octets.subarray(start, end), this.#at);
    else for (let i = 0; i < n; i++) this.#bytes[this.#at + i] = octets[start + i] as number;
    this.#at += n;
    return this;
  }

  bytes(octets: Uint8Array): this {
    return this.u32(octets.length).raw(octets);
  }

  str(text: string): this {
    this.#need(2 + text.length * 3);
    const n = writeUtf8(text, this.#bytes, this.#at + 2);
    if (n > 0xffff) throw new BulkheadError('INVALID_ARGUMENT', `a name of ${n} bytes is longer than 65535`);
    this.#view.setUint16(this.#at, n, true);
    this.#at += 2 + n;
    return this;
  }

  text(text: string): this {
    this.#need(4 + text.length * 3);
    const n = writeUtf8(text, this.#bytes, this.#at + 4);
    this.#view.setUint32(this.#at, n, true);
    this.#at += 4 + n;
    return this;
  }

  refs(ids: readonly Uint8Array[]): this {
    this.u32(ids.length);
    for (const id of ids) this.raw(id);
    return this;
  }

  /** As `take`, but a large batch is handed over in the memory it was written to, uncopied: its buffer may be larger than it. */
  takeView(): Uint8Array<ArrayBuffer> {
    if (this.#at < HANDED_OVER_BYTES) return this.take();
    const batch = this.#bytes.subarray(0, this.#at) as Uint8Array<ArrayBuffer>;
    this.#at = 0;
    this.#bytes = new Uint8Array(this.#initialBytes);
    this.#view = new DataView(this.#bytes.buffer);
    return batch;
  }

  /** The batch so far, as its own memory; the writer starts anew. */
  take(): Uint8Array<ArrayBuffer> {
    const batch = this.#bytes.slice(0, this.#at) as Uint8Array<ArrayBuffer>;
    this.#at = 0;
    if (this.#bytes.length > 16 * this.#initialBytes) {
      this.#bytes = new Uint8Array(this.#initialBytes);
      this.#view = new DataView(this.#bytes.buffer);
    }
    return batch;
  }
}

/** Of a VALUE_CHUNK frame, before its octets: length, op, request, position, size of the value, offset of the part. */
export const CHUNK_HEADER_BYTES = 4 + 1 + 4 + 4 + 8 + 8;

/**
 * Where the rest of a large batch goes while it is still arriving, so that its octets are copied once: those from `skip` on into all of `into`, then `done`
 * instead of the batch. Throws what reading the batch would.
 */
export interface FrameSink {
  readonly skip: number;
  readonly into: Uint8Array;
  done(): void;
}

/** Walks the frames of one batch: `while (reader.next()) switch (reader.op) …; reader.finish()`. Views, no copies: copy what outlives the batch. */
export class FrameReader {
  #bytes: Uint8Array = new Uint8Array(0);
  #view: DataView = new DataView(this.#bytes.buffer);
  #at = 0;
  #end = 0;
  #next = 0;
  op = 0;

  /** Starts on a batch. `offset` skips an envelope. */
  reset(batch: Uint8Array, offset = 0): this {
    this.#bytes = batch;
    this.#view = new DataView(batch.buffer, batch.byteOffset, batch.byteLength);
    this.#next = offset;
    this.#at = this.#end = offset;
    return this;
  }

  next(): boolean {
    const start = this.#next;
    if (start === this.#bytes.length) return false;
    if (start + 5 > this.#bytes.length) this.#refuse('a batch ends inside a frame header');
    const length = this.#view.getUint32(start, true);
    if (length < 1 || length > MAX_FRAME_BYTES || start + 4 + length > this.#bytes.length) this.#refuse(`a frame length of ${length} is out of bounds`);
    this.op = this.#bytes[start + 4] as number;
    this.#at = start + 5;
    this.#end = this.#next = start + 4 + length;
    return true;
  }

  #refuse(what: string): never {
    throw new BulkheadError('INVALID_ARGUMENT', `malformed frame (op 0x${this.op.toString(16)}): ${what}`);
  }

  #take(n: number): number {
    const at = this.#at;
    if (n > this.#end - at) this.#refuse('a field runs past the end of its frame');
    this.#at = at + n;
    return at;
  }

  /** The batch under the reader; with `position` and `frameEnd` a payload can be kept as a range instead of a view. */
  get batch(): Uint8Array {
    return this.#bytes;
  }

  get position(): number {
    return this.#at;
  }

  get frameEnd(): number {
    return this.#end;
  }

  /** Where the next frame begins: with it a batch can be put aside and read on later. */
  get nextFrame(): number {
    return this.#next;
  }

  /** Passes over the rest of the frame, whose range the caller has noted. */
  skipRest(): void {
    this.#at = this.#end;
  }

  skip(n: number): void {
    this.#take(n);
  }

  /** Octets left in this frame. */
  get remaining(): number {
    return this.#end - this.#at;
  }

  u8(): number {
    return this.#bytes[this.#take(1)] as number;
  }

  u16(): number {
    return this.#view.getUint16(this.#take(2), true);
  }

  u32(): number {
    return this.#view.getUint32(this.#take(4), true);
  }

  u64(): number {
    const at = this.#take(8);
    const value = this.#view.getUint32(at + 4, true) * 0x1_0000_0000 + this.#view.getUint32(at, true);
    if (!Number.isSafeInteger(value)) this.#refuse('a 64-bit number is beyond 2^53');
    return value;
  }

  raw(n: number): Uint8Array {
    const at = this.#take(n);
    return this.#bytes.subarray(at, at + n);
  }

  id(): Uint8Array {
    return this.raw(OBJECT_ID_BYTES);
  }

  bytes(limit: number): Uint8Array {
    const n = this.u32();
    if (n > limit) this.#refuse(`${n} bytes exceed the limit of ${limit}`);
    return this.raw(n);
  }

  str(): string {
    const n = this.u16();
    const at = this.#take(n);
    return readUtf8(this.#bytes, at, at + n);
  }

  text(limit: number): string {
    const n = this.u32();
    if (n > limit) this.#refuse(`a text of ${n} bytes exceeds the limit of ${limit}`);
    const at = this.#take(n);
    return readUtf8(this.#bytes, at, at + n);
  }

  /** Count of a `refs` list, checked against the limit and what is left; the ids follow, to be read by `id()`. */
  refCount(limit: number): number {
    const n = this.u32();
    if (n > limit) this.#refuse(`${n} refs exceed the limit of ${limit}`);
    if (n * OBJECT_ID_BYTES > this.remaining) this.#refuse('a list of refs runs past the end of its frame');
    return n;
  }

  rest(): Uint8Array {
    return this.raw(this.remaining);
  }

  /** Every op's reader ends with this: octets left over are refused. */
  finish(): void {
    if (this.#at !== this.#end) this.#refuse(`${this.#end - this.#at} octets are left over`);
  }
}
