/**
 * The reader's half of calls that stream: what `for await` iterates over. Items come as far ahead as the window allows; taking them makes
 * room for more. Runs in drivers and in isolates. Must never: hold more than the window, or a promise for an item that nobody waits for.
 */
import { BulkheadError } from '../base/errors.ts';
import { NO_ITEM, type FrameReader } from '../base/frame.ts';
import { FIRST_STREAM_ITEMS, MAX_ERROR_MESSAGE_CHARS, MAX_STACK_CHARS } from '../base/limits.ts';
import { objectIdText, type ObjectIdText } from '../base/ids.ts';
import { remoteError } from './remote-error.ts';
import type { ObjectRef } from './object-ref.ts';

/** How far a stream may be ahead of its reader. */
export interface StreamWindow {
  readonly items: number;
  readonly bytes: number;
}

/** An item that has come: where it is, and its encoded value where that came with it. */
interface Item {
  readonly index: number;
  readonly bytes: number;
  readonly encoded: Uint8Array | undefined;
}

interface Waiter {
  readonly parent: number;
  readonly resolve: (item: Item | undefined) => void;
  readonly reject: (error: BulkheadError) => void;
}

/** What streams need of the client core. */
export interface StreamCore {
  /** So many unused indexes; the first of them. */
  take(count: number): number;
  parent(): number;
  settle(parent: number, run: () => void): void;
  more(parent: number, seq: number, waitsFor: number, taken: number, first: number, count: number): void;
  idOf(index: number): Uint8Array;
  giveUp(index: number): void;
  refTo(index: number, encoded: Uint8Array | undefined): ObjectRef;
  valueOf(index: number, encoded: Uint8Array | undefined): unknown;
}

/** One stream as the client keeps it, until the raylet has said that it ended. */
class Reading {
  readonly seq: number;
  readonly window: StreamWindow;
  /** Items that may be granted or here and not taken, now: it grows while the reader has to wait. */
  ahead: number;
  /** Granted and not come yet. */
  expected = 0;
  /** Come since `ahead` grew. */
  sinceGrown = 0;
  /** Runs of indexes that were granted, as pairs of next and end. */
  readonly granted: number[] = [];
  readonly items: Item[] = [];
  head = 0;
  readonly waiters: Waiter[] = [];
  received = 0;
  /** Taken since the last grant. */
  takenItems = 0;
  takenBytes = 0;
  ended = false;
  error: BulkheadError | undefined = undefined;
  /** Its reader wants no more. */
  closed = false;

  constructor(seq: number, window: StreamWindow) {
    this.seq = seq;
    this.window = window;
    this.ahead = Math.min(FIRST_STREAM_ITEMS, window.items);
  }
}

export class ClientStreams {
  readonly #core: StreamCore;
  readonly #readings = new Map<number, Reading>();
  readonly #registry: FinalizationRegistry<Reading> | undefined;

  constructor(core: StreamCore, collects: typeof FinalizationRegistry | undefined) {
    this.#core = core;
    this.#registry = collects === undefined ? undefined : new collects((reading) => this.close(reading));
  }

  /** The stream of the call that was just written. */
  open(seq: number, window: StreamWindow): ObjectStream {
    const reading = new Reading(seq, window);
    this.#readings.set(seq, reading);
    this.#grant(reading, NO_ITEM);
    const stream = new ObjectStream(this, reading, objectIdText(this.#core.idOf(seq)));
    this.#registry?.register(stream, reading);
    return stream;
  }

  #grant(reading: Reading, waitsFor: number): void {
    const count = Math.max(0, reading.ahead - reading.expected - (reading.items.length - reading.head));
    const first = count === 0 ? 0 : this.#core.take(count);
    if (count > 0) reading.granted.push(first, first + count);
    reading.expected += count;
    const taken = reading.takenItems;
    reading.takenItems = reading.takenBytes = 0;
    this.#core.more(this.#core.parent(), reading.seq, waitsFor, taken, first, count);
  }

  // --- what the raylet says -----------------------------------------------------------------------------------------------

  /** STREAM_ITEM. Throws on an item that was not granted. */
  item(reader: FrameReader): void {
    const reading = this.#readings.get(reader.u32());
    const form = reader.u8();
    const bytes = form === 0 ? reader.remaining : reader.u64();
    const value = reader.rest();
    if (reading === undefined) return;
    if (form > 1 || (form === 1 && value.length > 0)) throw new BulkheadError('INVALID_ARGUMENT', `malformed frame: an item of form ${form}`);
    const { granted } = reading;
    const [index = 0, end = 0] = granted;
    if (index === end) throw new BulkheadError('INVALID_ARGUMENT', 'malformed frame: an item that was not asked for');
    if (index + 1 === end) granted.splice(0, 2);
    else granted[0] = index + 1;
    reading.received++;
    reading.expected--;
    reading.sinceGrown++;
    if (reading.closed) return this.#core.giveUp(index);
    const item: Item = { index, bytes, encoded: form === 0 ? value.slice() : undefined };
    const waiter = reading.waiters.shift();
    if (waiter === undefined) return void reading.items.push(item);
    this.#taken(reading, item);
    this.#core.settle(waiter.parent, () => waiter.resolve(item));
  }

  /** STREAM_END: after the last item. */
  end(reader: FrameReader): void {
    const seq = reader.u32();
    reader.u32();
    const code = reader.str();
    const message = reader.text(3 * MAX_ERROR_MESSAGE_CHARS);
    const stack = reader.text(3 * MAX_STACK_CHARS);
    reader.finish();
    const reading = this.#readings.get(seq);
    if (reading !== undefined) this.#ended(reading, code === '' ? undefined : remoteError(code, message, stack), true);
  }

  #ended(reading: Reading, error: BulkheadError | undefined, giveUp: boolean): void {
    this.#readings.delete(reading.seq);
    reading.ended = true;
    // Whoever closed it has given it up already, and asked for the end that this is.
    if (giveUp && !reading.closed) this.#core.giveUp(reading.seq);
    const [first, ...others] = reading.waiters.splice(0);
    if (first === undefined) {
      if (!reading.closed) reading.error = error;
      return;
    }
    // As a generator that throws: once, and then it is over.
    this.#core.settle(first.parent, () => (error === undefined ? first.resolve(undefined) : first.reject(error)));
    for (const waiter of others) this.#core.settle(waiter.parent, () => waiter.resolve(undefined));
  }

  /** What one task or actor call waits for rejects. */
  failParent(parent: number, error: BulkheadError): void {
    for (const { waiters } of this.#readings.values()) {
      for (let i = 0; i < waiters.length; ) {
        const waiter = waiters[i] as Waiter;
        if (waiter.parent !== parent) i++;
        else {
          waiters.splice(i, 1);
          this.#core.settle(parent, () => waiter.reject(error));
        }
      }
    }
  }

  /** The channel is gone. */
  disconnected(error: BulkheadError): void {
    for (const reading of [...this.#readings.values()]) this.#ended(reading, error, false);
  }

  // --- what its reader does -------------------------------------------------------------------------------------------------

  #taken(reading: Reading, item: Item): void {
    reading.takenItems++;
    reading.takenBytes += item.bytes;
    if (!reading.ended && (2 * reading.takenItems >= reading.ahead || 2 * reading.takenBytes >= reading.window.bytes)) this.#grant(reading, NO_ITEM);
  }

  /** An item that is here; undefined when none is. */
  ready(reading: Reading): Item | undefined {
    const item = reading.items[reading.head];
    if (item === undefined) return undefined;
    if (++reading.head === reading.items.length) {
      reading.items.length = 0;
      reading.head = 0;
    }
    this.#taken(reading, item);
    return item;
  }

  /** The next item, undefined at the end; rejects with what the call failed with. */
  next(reading: Reading): Promise<Item | undefined> {
    if (reading.ended || reading.closed) {
      const { error } = reading;
      reading.error = undefined;
      return error === undefined ? Promise.resolve(undefined) : Promise.reject(error);
    }
    const parent = this.#core.parent();
    // It waits although it took as many as it may have ahead: with more on their way it would not.
    const grows = 2 * reading.sinceGrown >= reading.ahead && reading.ahead < reading.window.items;
    if (grows) {
      reading.ahead = Math.min(2 * reading.ahead, reading.window.items);
      reading.sinceGrown = 0;
    }
    // Of a call on the cluster the raylet must know that it waits: others may use its cpu meanwhile.
    if (parent !== 0) this.#grant(reading, reading.received + reading.waiters.length);
    else if (grows) this.#grant(reading, NO_ITEM);
    return new Promise((resolve, reject) => {
      reading.waiters.push({ parent, resolve, reject });
    });
  }

  /** Ends the call if it goes on, and gives up the items that nobody has taken. */
  close(reading: Reading): void {
    if (reading.closed) return;
    reading.closed = true;
    reading.error = undefined;
    for (let i = reading.head; i < reading.items.length; i++) this.#core.giveUp((reading.items[i] as Item).index);
    reading.items.length = reading.head = 0;
    // A call that streams ends when its ref is given up.
    if (!reading.ended) this.#core.giveUp(reading.seq);
    for (const waiter of reading.waiters.splice(0)) this.#core.settle(waiter.parent, () => waiter.resolve(undefined));
  }

  /** For the call that asks: what follows runs under it. */
  at<R>(result: R): Promise<R> {
    const parent = this.#core.parent();
    if (parent === 0) return Promise.resolve(result);
    return new Promise((resolve) => this.#core.settle(parent, () => resolve(result)));
  }

  refOf(item: Item): ObjectRef {
    return this.#core.refTo(item.index, item.encoded);
  }

  valueOf(item: Item): unknown {
    return this.#core.valueOf(item.index, item.encoded);
  }
}

declare const itemOfStream: unique symbol;

/**
 * What a call that streams returns: iterate over it for a ref to each item, or over `values()` for the items themselves, while the call goes
 * on. An error of the call comes after the items before it. Leaving the loop ends the call.
 */
export class ObjectStream<T = unknown> implements AsyncIterableIterator<ObjectRef<T>, undefined, void>, AsyncDisposable {
  /** Type only. */
  declare readonly [itemOfStream]: T;
  /** The id of the call as text: for lists and logs. */
  readonly id: ObjectIdText;
  readonly #streams: ClientStreams;
  readonly #reading: Reading;

  /** Made by a call. */
  constructor(streams: ClientStreams, reading: Reading, id: ObjectIdText) {
    this.id = id;
    this.#streams = streams;
    this.#reading = reading;
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  next(): Promise<IteratorResult<ObjectRef<T>, undefined>> {
    const item = this.#streams.ready(this.#reading);
    if (item === undefined) return this.#later();
    return this.#streams.at({ value: this.#streams.refOf(item) as ObjectRef<T>, done: false });
  }

  async #later(): Promise<IteratorResult<ObjectRef<T>, undefined>> {
    const item = await this.#streams.next(this.#reading);
    return item === undefined ? { value: undefined, done: true } : { value: this.#streams.refOf(item) as ObjectRef<T>, done: false };
  }

  /** Ends the call, if it has not ended. */
  return(): Promise<IteratorResult<ObjectRef<T>, undefined>> {
    this.#streams.close(this.#reading);
    return Promise.resolve({ value: undefined, done: true });
  }

  /** The items themselves. Each is given up when it was taken: keep the value, or iterate over the refs. */
  async *values(): AsyncGenerator<T, void, void> {
    try {
      for (;;) {
        const item = this.#streams.ready(this.#reading) ?? (await this.#streams.next(this.#reading));
        if (item === undefined) return;
        yield (item.encoded === undefined ? await this.#streams.valueOf(item) : this.#streams.valueOf(item)) as T;
      }
    } finally {
      this.#streams.close(this.#reading);
    }
  }

  toJSON(): never {
    throw new BulkheadError('INVALID_ARGUMENT', 'a stream does not travel: pass the refs of its items');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#streams.close(this.#reading);
  }
}
