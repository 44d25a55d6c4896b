/**
 * The inside of one isolate: takes EXEC frames, runs tenant functions, answers with RESULT or FAILURE, and is the client of nested
 * calls. Every tenant value is encoded, decoded and caught here, inside the timed call: only bytes and numbers cross to the host.
 * Must never: let tenant code reach `emit` or the writer, leave a torn frame behind, or throw because of what tenant code did.
 *
 * Who makes a nested call (`parent`) is known exactly while tenant code runs synchronously (`current`), and when only one call is
 * running. Otherwise, after an `await`, it is the call that was resumed last through a runtime promise, timer or microtask;
 * settlements of different calls are kept two microtasks apart, so that what follows `await get(…)` runs under its own call. Beyond that
 * it is a guess, and the raylet treats it as a claim: it may mislead only about calls of the same isolate.
 */
import { BulkheadError } from '../../../base/errors.ts';
import { CALL_KIND, FrameReader, FrameWriter, OP, STREAMS, type CallKind } from '../../../base/frame.ts';
import { MAX_ERROR_MESSAGE_CHARS, MAX_FRAME_BYTES, MAX_INLINE_BYTES, MAX_LOG_BYTES, MAX_OBJECT_BYTES, MAX_REFS_PER_CALL, MAX_STACK_CHARS, MAX_STREAMING_METHODS } from '../../../base/limits.ts';
import { idTextOf } from '../../../base/ids.ts';
import { decodeValue, encodeValue, type EncodedValue } from '../../../base/value.ts';
import { ClientCore } from '../../../sdk/client-core.ts';
import type { ObjectRef } from '../../../sdk/object-ref.ts';
import { describeThrown } from './inspect.ts';
import { encodeUtf8 } from './text-codecs.ts';

export const EMIT = { FRAMES: 0, STAGED_FILE: 1, SET_TIMER: 2, CLEAR_TIMER: 3 } as const;
export type Emit = (kind: number, n: number, bytes: ArrayBuffer | undefined) => void;

/** Answers leave early when this much has gathered, or after this long within one delivery: others wait for them. */
const FLUSH_BYTES = 64 * 1024;
const FLUSH_MS = 2;
/** Turns of the microtask queue between two items of an async generator that awaits nothing but what is there, with room. */
const ITEM_TURNS = 12;
/** A generator that goes on for this long lets the host in. */
const SLICE_MS = 20;
/** Results of one call that go inline together; the rest are staged, so that the frame keeps its limit. */
const MAX_INLINE_TOTAL = MAX_FRAME_BYTES / 4;
const MAX_LOG_LINE_BYTES = 65_536;
const MAX_TIMERS = 10_000;

interface TemplateInfo {
  readonly kind: CallKind;
  readonly code: number;
  readonly exportName: string;
  readonly method: string;
  readonly returns: number;
  readonly context: Readonly<Record<string, unknown>>;
  /** Session that its calls come from, as 40 hex digits. */
  readonly origin: string;
  /** Codes and names of classes of what is thrown that the call is tried again for. */
  readonly retryOn: readonly string[];
}

/** A call that has come: what it needs to start. */
interface Arrival {
  readonly exec: Exec;
  readonly template: TemplateInfo;
  readonly positions: readonly number[];
  readonly values: readonly Uint8Array[];
  readonly packed: Uint8Array;
}

interface Exec {
  readonly number: number;
  readonly template: TemplateInfo | undefined;
  readonly attempt: number;
  /** Which call of its session it is. */
  readonly origin: number;
  /** What it yields, once it has begun. */
  stream: Production | undefined;
  /** Answered or cancelled: what it still does changes no answer. Calls it still makes keep its number, so that the raylet can refuse them. */
  over: boolean;
  /** One of `#underWay`. */
  counted: boolean;
  logBytes: number;
}

/** A generator that is being run as far as its reader has room: items are numbered through all attempts of the call. */
interface Production {
  iterator: object | undefined;
  next: ((...args: unknown[]) => unknown) | undefined;
  /** Items that earlier attempts have delivered; how many there may be; octets that this attempt may send. */
  skip: number;
  upTo: number;
  room: number;
  made: number;
  sentBytes: number;
  busy: boolean;
}

interface Code {
  readonly exports: object | undefined;
  readonly failure: { readonly message: string; readonly stack: string } | undefined;
}

export interface ExecutorOptions {
  readonly emit: Emit;
  readonly sessionPrefix: Uint8Array;
  /** Wall clock, ms. */
  readonly now: () => number;
  readonly queueMicrotask: (run: () => void) => void;
  readonly collects: typeof FinalizationRegistry | undefined;
  /** Called whenever the host enters the isolate: time stands still in between. */
  readonly entered: () => void;
}

export class Executor {
  readonly #emit: Emit;
  readonly #now: () => number;
  readonly #entered: () => void;
  readonly #microtask: (run: () => void) => void;
  readonly #writer = new FrameWriter();
  readonly #reader = new FrameReader();
  readonly core: ClientCore;
  readonly #templates = new Map<number, TemplateInfo>();
  readonly #codes = new Map<number, Code>();
  readonly #digests = new Map<number, string>();
  readonly #exported = new WeakMap<object, { readonly code: number; readonly name: string }>();
  readonly #attachments = new Map<number, Uint8Array>();
  readonly #running = new Map<number, Exec>();
  readonly #outside: Exec = { number: 0, template: undefined, attempt: 0, origin: 0, stream: undefined, over: false, counted: false, logBytes: 0 };
  /** The call whose code is on the stack, `#outside` when none is. */
  #current: Exec;
  #resumed: Exec;
  #instance: object | undefined;
  /** Calls of this actor that may be under way at once, those that are, and those that wait for that. */
  #concurrency = Number.POSITIVE_INFINITY;
  #underWay = 0;
  #waiting: Arrival[] = [];
  #starting = false;
  #exited = false;
  #delivering = false;
  #flushing = false;
  /** Turns of the queue in which nothing is written that a flush waits for: the next item of a stream takes some. */
  #patience = 0;
  #flushedAt = 0;
  #stagedFiles = 0;
  readonly #settlements: { readonly exec: number; readonly run: () => void }[] = [];
  #settling = false;
  readonly #timers = new Map<number, { readonly exec: Exec; readonly run: () => void; readonly everyMs: number | undefined }>();
  #nextTimer = 1;

  constructor(options: ExecutorOptions) {
    this.#emit = options.emit;
    this.#now = options.now;
    this.#entered = options.entered;
    this.#microtask = options.queueMicrotask;
    this.#current = this.#resumed = this.#outside;
    this.core = new ClientCore({
      sessionPrefix: options.sessionPrefix,
      writer: this.#writer,
      touched: () => this.#touched(),
      parent: () => this.#who().number,
      // What a traced call calls is traced.
      traceparent: () => (this.#who().template?.context['traceparent'] as string | undefined) ?? '',
      settle: (exec, run) => this.#settle(exec, run),
      stage: (bytes) => this.#stage(bytes),
      attachment: (number) => this.#takeAttachment(number),
      timers: { set: (ms, fire) => this.setTimer(fire, ms, false), clear: (timer) => this.clearTimer(timer as number) },
      collects: options.collects,
    });
  }

  // --- out ------------------------------------------------------------------------------------------------------------

  /** Sends what has gathered. */
  #flush(): void {
    this.core.writeReleases();
    this.#flushedAt = this.#now();
    if (this.#writer.length > 0) this.#emit(EMIT.FRAMES, 0, this.#writer.take().buffer);
  }

  #touched(): void {
    if (this.#writer.length >= FLUSH_BYTES) this.#flush();
    else if (!this.#delivering) this.#flushLater(0);
  }

  /** One flush for what a run of microtasks writes: it goes to the end of the queue again while more is being written. */
  #flushLater(seen: number, quiet = 0): void {
    if (seen === 0 && this.#flushing) return;
    const before = this.#writer.length;
    this.#microtask(() => {
      if (this.#writer.length > before || seen === 0) this.#flushLater(seen + 1);
      else if (quiet < this.#patience) this.#flushLater(seen + 1, quiet + 1);
      else {
        this.#flushing = false;
        this.#patience = 0;
        this.#flush();
      }
    });
    // Only now: when tenant code called from the end of its stack, the line above threw, and a later flush must not be ruled out.
    this.#flushing = true;
  }

  #stage(bytes: Uint8Array<ArrayBuffer>): number {
    const file = ++this.#stagedFiles;
    const whole = bytes.byteLength === bytes.buffer.byteLength ? bytes.buffer : bytes.buffer.transfer(bytes.byteLength);
    this.#emit(EMIT.STAGED_FILE, file, whole);
    return file;
  }

  // --- in -------------------------------------------------------------------------------------------------------------

  deliver(batch: ArrayBuffer): ArrayBuffer | undefined {
    this.#entered();
    this.#delivering = true;
    this.#flushedAt = this.#now();
    try {
      const reader = this.#reader.reset(new Uint8Array(batch));
      while (reader.next()) {
        if (reader.op === OP.EXEC) this.#exec(reader);
        else if (reader.op === OP.TEMPLATE) this.#template(reader);
        else if (reader.op === OP.PULL) this.#pull(reader);
        else if (reader.op === OP.CANCEL_EXEC) this.#cancel(reader);
        else if (!this.core.receive(reader)) throw new BulkheadError('INVALID_ARGUMENT', `malformed frame (op 0x${reader.op.toString(16)}): not for a guest`);
        if (this.#writer.length > 0 && this.#now() - this.#flushedAt >= FLUSH_MS) this.#flush();
      }
    } finally {
      this.#delivering = false;
    }
    this.core.writeReleases();
    return this.#writer.length > 0 ? this.#writer.take().buffer : undefined;
  }

  attach(attachment: number, bytes: ArrayBuffer): void {
    this.#attachments.set(attachment, new Uint8Array(bytes));
  }

  #takeAttachment(number: number): Uint8Array {
    const bytes = this.#attachments.get(number);
    if (bytes === undefined) throw new BulkheadError('INVALID_ARGUMENT', `malformed frame: attachment ${number} does not exist`);
    this.#attachments.delete(number);
    return bytes;
  }

  /** Runs a module's top level. What it throws is the answer to every call of it. */
  load(code: number, factory: () => unknown): void {
    this.#entered();
    let exports: object | undefined;
    let failure: Code['failure'];
    try {
      const made = factory();
      if (typeof made === 'object' && made !== null) exports = made;
      else failure = { message: 'the module exports nothing', stack: '' };
    } catch (thrown) {
      failure = describeThrown(thrown, MAX_ERROR_MESSAGE_CHARS, MAX_STACK_CHARS);
    }
    this.#codes.set(code, { exports, failure });
    if (exports !== undefined) this.#learnExports(code, exports);
  }

  #learnExports(code: number, exports: object): void {
    let names: string[] = [];
    try {
      names = Object.keys(exports);
    } catch {
      // A proxy that refuses to be looked at has no exports that nested calls could name.
    }
    for (const name of names) {
      try {
        const value = (exports as Record<string, unknown>)[name];
        if (typeof value === 'function' && !this.#exported.has(value)) this.#exported.set(value, { code, name });
      } catch {
        // An export in its temporal dead zone is nobody's task.
      }
    }
  }

  #template(reader: FrameReader): void {
    const number = reader.u32();
    const kind = reader.u8() as CallKind;
    const code = reader.u32();
    const exportName = reader.str();
    const method = reader.str();
    const returns = reader.u8();
    const json = reader.text(MAX_FRAME_BYTES);
    reader.finish();
    const { concurrency, origin, retryOn, ...context } = (json === '' ? {} : JSON.parse(json)) as Record<string, unknown>;
    Object.freeze(context['resources']);
    Object.freeze(context);
    if (kind === CALL_KIND.ACTOR_CLASS && typeof concurrency === 'number') this.#concurrency = concurrency;
    const { code: digest } = context;
    if (typeof digest === 'string') this.#digests.set(code, digest.startsWith('sha256:') ? digest.slice(7) : digest);
    this.#templates.set(number, { kind, code, exportName, method, returns, context, origin: typeof origin === 'string' ? origin : '', retryOn: Array.isArray(retryOn) ? (retryOn as string[]) : [] });
  }

  #exec(reader: FrameReader): void {
    const number = reader.u32();
    const kind = reader.u8();
    const templateNumber = reader.u32();
    const attempt = reader.u32();
    const origin = reader.u32();
    const positions: number[] = [];
    const values: Uint8Array[] = [];
    const dependencies = reader.u16();
    for (let i = 0; i < dependencies; i++) {
      positions.push(reader.u16());
      values.push((reader.u8() & 1) === 0 ? reader.bytes(MAX_FRAME_BYTES) : this.#takeAttachment(reader.u32()));
    }
    const packed = reader.rest();
    const template = this.#templates.get(templateNumber);
    if (template === undefined || kind !== template.kind) throw new BulkheadError('INVALID_ARGUMENT', `malformed frame: exec ${number} names template ${templateNumber}, which is not there or of another kind`);
    const exec: Exec = { number, template, attempt, origin, stream: template.returns === STREAMS ? { iterator: undefined, next: undefined, skip: 0, upTo: 0, room: 0, made: 0, sentBytes: 0, busy: false } : undefined, over: false, counted: false, logBytes: 0 };
    if (this.#exited) return;
    if (this.#underWay >= this.#concurrency || this.#waiting.length > 0) this.#waiting.push({ exec, template, positions, values, packed });
    else this.#start(exec, template, positions, values, packed);
  }

  #start(exec: Exec, template: TemplateInfo, positions: readonly number[], values: readonly Uint8Array[], packed: Uint8Array): void {
    const before = this.#current;
    this.#current = exec;
    try {
      const args = decodeValue(packed, this.core.hooks);
      if (!Array.isArray(args)) throw new BulkheadError('INVALID_ARGUMENT', 'the arguments of a call are not an array');
      for (let i = 0; i < positions.length; i++) args[positions[i] as number] = decodeValue(values[i] as Uint8Array, this.core.hooks);
      let result = this.#invoke(template, args);
      if (exec.stream !== undefined) return this.#produce(exec, result);
      if (isGenerator(result) && template.kind !== CALL_KIND.ACTOR_CLASS) result = this.#collect(exec, result);
      if (typeof result === 'object' && result !== null && typeof (result as { then?: unknown }).then === 'function') {
        this.#running.set(exec.number, exec);
        this.#underWay++;
        exec.counted = true;
        this.#resumed = exec;
        void this.#finishLater(exec, result);
      } else this.#finish(exec, result);
    } catch (thrown) {
      this.#fail(exec, thrown);
    } finally {
      this.#current = before;
    }
  }

  #invoke(template: TemplateInfo, args: unknown[]): unknown {
    if (template.kind === CALL_KIND.ACTOR_METHOD) return this.#invokeMethod(template.method, args);
    const code = this.#codes.get(template.code);
    if (code?.failure !== undefined) throw new ModuleFailure(code.failure.message, code.failure.stack);
    if (code?.exports === undefined) throw new BulkheadError('INTERNAL', 'the code of this call was not loaded');
    const found = Object.hasOwn(code.exports, template.exportName) ? (code.exports as Record<string, unknown>)[template.exportName] : undefined;
    if (typeof found !== 'function') throw new BulkheadError('INVALID_ARGUMENT', `the module exports no ${template.kind === CALL_KIND.TASK ? 'function' : 'class'} named '${template.exportName.slice(0, 100)}'`);
    if (template.kind === CALL_KIND.TASK) return Reflect.apply(found, undefined, args);
    this.#instance = Reflect.construct(found, args) as object;
    return undefined;
  }

  #invokeMethod(name: string, args: unknown[]): unknown {
    const instance = this.#instance;
    if (instance === undefined) throw new BulkheadError('ACTOR_DIED', 'this actor was never constructed');
    // Methods are what the class and its ancestors define: not what every object has, and not the constructor.
    for (let holder: object | null = instance; holder !== null && holder !== Object.prototype; holder = Object.getPrototypeOf(holder) as object | null) {
      if (name === 'constructor' || !Object.hasOwn(holder, name)) continue;
      const method = (instance as Record<string, unknown>)[name];
      if (typeof method === 'function') return Reflect.apply(method, instance, args);
      break;
    }
    throw new BulkheadError('INVALID_ARGUMENT', `the actor has no method named '${name.slice(0, 100)}'`);
  }

  #runUnder<T>(exec: Exec, run: () => T): T {
    const before = this.#current;
    this.#current = exec;
    try {
      return run();
    } finally {
      this.#current = before;
    }
  }

  /** Begins a call that streams: what the function returned is what is iterated, after its promise where it is one. */
  #produce(exec: Exec, result: unknown): void {
    this.#running.set(exec.number, exec);
    this.#underWay++;
    exec.counted = true;
    this.#resumed = exec;
    const begin = (iterable: unknown): void => {
      const production = exec.stream as Production;
      const make = iteratorOf(iterable);
      const iterator = make === undefined ? undefined : (Reflect.apply(make, iterable, []) as { next?: unknown });
      if (typeof iterator !== 'object' || iterator === null || typeof iterator.next !== 'function') throw new BulkheadError('INVALID_ARGUMENT', "with returns: 'streaming' the function must be a generator, or return something to iterate");
      production.iterator = iterator;
      production.next = iterator.next as (...args: unknown[]) => unknown;
    };
    const fail = (thrown: unknown): void => {
      this.#runUnder(exec, () => this.#fail(exec, thrown));
      this.#leave(exec);
    };
    let later = false;
    try {
      later = isThenable(result) && iteratorOf(result) === undefined;
      if (!later) begin(result);
    } catch (thrown) {
      return fail(thrown);
    }
    if (!later) return void this.#yield(exec);
    void (async () => {
      try {
        const iterable = await result;
        if (exec.over) return;
        this.#runUnder(exec, () => begin(iterable));
      } catch (thrown) {
        return fail(thrown);
      }
      return this.#yield(exec);
    })();
  }

  /** The reader has room for more. */
  #pull(reader: FrameReader): void {
    const exec = this.#given(reader.u32());
    const skip = reader.u32();
    const upTo = reader.u32();
    const room = reader.u64();
    reader.finish();
    const production = exec?.stream;
    if (exec === undefined || production === undefined) return;
    Object.assign(production, { skip, upTo, room });
    void this.#yield(exec);
  }

  /** Runs the generator as far as there is room. One at a time; a generator that is not async takes no promise per item. */
  async #yield(exec: Exec): Promise<void> {
    const production = exec.stream as Production;
    const { iterator, next } = production;
    if (production.busy || iterator === undefined || next === undefined) return;
    production.busy = true;
    let since = this.#now();
    try {
      while (!exec.over && production.made < production.upTo && production.sentBytes < production.room) {
        let step = this.#runUnder(exec, () => Reflect.apply(next, iterator, []));
        if (isThenable(step)) step = await step;
        if (exec.over) break;
        let item = this.#runUnder(exec, () => readStep(step));
        if (item !== undefined && isThenable(item.value)) item = { value: await item.value };
        if (exec.over) break;
        const made = item;
        if (made === undefined) this.#runUnder(exec, () => this.#endProduction(exec));
        else this.#runUnder(exec, () => this.#item(exec, production, made.value));
        const now = this.#now();
        if (now - this.#flushedAt >= FLUSH_MS) this.#flush();
        if (now - since < SLICE_MS || exec.over) continue;
        // Others of this isolate, and a cancel of this call, get their turn.
        await new Promise<void>((resolve) => this.#runUnder(exec, () => this.setTimer(resolve, 0, false)));
        since = this.#now();
      }
    } catch (thrown) {
      this.#runUnder(exec, () => this.#fail(exec, thrown));
      this.#close(exec);
    } finally {
      production.busy = false;
      if (exec.over) this.#leave(exec);
    }
  }

  #item(exec: Exec, production: Production, value: unknown): void {
    if (production.made++ < production.skip) return;
    const { bytes, contained } = encodeValue(value, this.core.hooks, 'item');
    // Encoding runs getters of the value, which may have cancelled their own call.
    if (exec.over) return;
    const size = bytes.length;
    if (size > MAX_OBJECT_BYTES) throw new BulkheadError('RESOURCE_EXHAUSTED', `an item of ${size} bytes exceeds the limit of ${MAX_OBJECT_BYTES}`);
    const file = size <= MAX_INLINE_BYTES ? undefined : this.#stage(bytes);
    const w = this.#writer;
    try {
      w.begin(OP.ITEM).u32(exec.number).u8(file === undefined ? 0 : 1).refs(contained);
      if (file === undefined) w.raw(bytes);
      else w.u32(file).u64(size);
      w.end();
    } catch (thrown) {
      w.abandon();
      throw thrown;
    }
    production.sentBytes += size;
    this.#patience = ITEM_TURNS;
    this.#touched();
  }

  #endProduction(exec: Exec): void {
    this.#writer.begin(OP.RESULT).u32(exec.number).u8(0).end();
    this.#end(exec);
  }

  /** Lets a generator that is not run to its end do what is in its `finally`. */
  #close(exec: Exec): void {
    const iterator = exec.stream?.iterator as { return?: unknown } | undefined;
    if (iterator === undefined) return;
    this.#runUnder(exec, () => {
      try {
        const close = iterator.return;
        const closing: unknown = typeof close === 'function' ? Reflect.apply(close, iterator, []) : undefined;
        if (isThenable(closing)) void (async () => closing)().catch(() => undefined);
      } catch {
        // The call has its answer already.
      }
    });
  }

  /** What a generator yields becomes objects, one by one; its result are their refs. */
  async #collect(exec: Exec, generator: AnyGenerator): Promise<ObjectRef[]> {
    const refs: ObjectRef[] = [];
    for (;;) {
      const step = await this.#runUnder(exec, () => generator.next());
      if (step.done === true || exec.over) return refs;
      if (refs.length >= MAX_REFS_PER_CALL) throw new BulkheadError('RESOURCE_EXHAUSTED', `a generator yielded more than ${MAX_REFS_PER_CALL} values`);
      const value: unknown = await step.value;
      refs.push(await this.#runUnder(exec, () => this.core.put(value)));
    }
  }

  async #finishLater(exec: Exec, result: unknown): Promise<void> {
    try {
      const value = await result;
      this.#current = exec;
      this.#finish(exec, value);
    } catch (thrown) {
      this.#current = exec;
      this.#fail(exec, thrown);
    } finally {
      this.#current = this.#outside;
      this.#running.delete(exec.number);
      this.#madeRoom(exec);
    }
  }

  #madeRoom(exec: Exec): void {
    if (exec.counted) this.#underWay--;
    exec.counted = false;
    if (this.#waiting.length > 0) this.#startWaiting();
  }

  /** Calls whose turn has come. One that is done at once makes room for the next, so this goes on while it can. */
  #startWaiting(): void {
    if (this.#starting) return;
    this.#starting = true;
    let started = 0;
    try {
      for (const { exec, template, positions, values, packed } of this.#waiting) {
        if (this.#exited || this.#underWay >= this.#concurrency) break;
        started++;
        if (!exec.over) this.#start(exec, template, positions, values, packed);
      }
    } finally {
      this.#starting = false;
      this.#waiting.splice(0, started);
    }
  }

  /** Ends this actor: nothing more of it runs or is answered. */
  exitActor(): never {
    const exec = this.#who();
    if (exec.template === undefined || exec.template.kind === CALL_KIND.TASK) throw new BulkheadError('INVALID_ARGUMENT', 'exitActor() is for actors: a task ends by returning');
    if (!this.#exited) {
      const w = this.#writer;
      try {
        w.begin(OP.EXIT).u32(exec.number).end();
      } catch (thrown) {
        w.abandon();
        throw thrown;
      }
      this.#exited = true;
      for (const other of this.#running.values()) other.over = true;
      exec.over = true;
      this.#touched();
    }
    throw new BulkheadError('ACTOR_DIED', 'the actor has ended itself');
  }

  #encodeResults(template: TemplateInfo, value: unknown): EncodedValue[] {
    if (template.kind === CALL_KIND.ACTOR_CLASS || template.returns === 0) return [];
    if (template.returns === 1) return [encodeValue(value, this.core.hooks, 'result')];
    if (!Array.isArray(value) || value.length !== template.returns) {
      throw new BulkheadError('INVALID_ARGUMENT', `with returns: ${template.returns} the function must return an array of ${template.returns} values; it returned ${Array.isArray(value) ? `${value.length}` : `a ${typeof value}`}`);
    }
    const encoded: EncodedValue[] = [];
    for (let i = 0; i < template.returns; i++) encoded.push(encodeValue(value[i], this.core.hooks, `result[${i}]`));
    return encoded;
  }

  #finish(exec: Exec, value: unknown): void {
    if (exec.over) return;
    // Encoding runs getters of the value, which may call the runtime: all of it comes before the frame is begun.
    const results = this.#encodeResults(exec.template as TemplateInfo, value);
    if (exec.over) return;
    let inline = 0;
    const staged = results.map(({ bytes }) => {
      if (bytes.length > MAX_OBJECT_BYTES) throw new BulkheadError('RESOURCE_EXHAUSTED', `a result of ${bytes.length} bytes exceeds the limit of ${MAX_OBJECT_BYTES}`);
      if (bytes.length <= MAX_INLINE_BYTES && inline + bytes.length <= MAX_INLINE_TOTAL) {
        inline += bytes.length;
        return undefined;
      }
      const size = bytes.length;
      return { file: this.#stage(bytes), size };
    });
    const w = this.#writer;
    try {
      w.begin(OP.RESULT).u32(exec.number).u8(results.length);
      for (let i = 0; i < results.length; i++) {
        const { bytes, contained } = results[i] as EncodedValue;
        const file = staged[i];
        w.u8(file === undefined ? 0 : 1).refs(contained);
        if (file === undefined) w.bytes(bytes);
        else w.u32(file.file).u64(file.size);
      }
      w.end();
    } catch (thrown) {
      w.abandon();
      throw thrown;
    }
    this.#end(exec);
  }

  #end(exec: Exec): void {
    exec.over = true;
    this.#touched();
  }

  #fail(exec: Exec, thrown: unknown): void {
    if (exec.over) return;
    const failure = ModuleFailure.of(thrown);
    const described = failure ?? describeThrown(thrown, MAX_ERROR_MESSAGE_CHARS, MAX_STACK_CHARS);
    const code = failure === undefined ? refusalCode(thrown) : undefined;
    const message = code !== undefined && described.message.startsWith('BulkheadError: ') ? described.message.slice('BulkheadError: '.length) : described.message;
    const again = exec.template !== undefined && exec.template.retryOn.length > 0 && isOfClass(thrown, exec.template.retryOn);
    // Looking at it may have run tenant code, which may have cancelled what this call waits for.
    if (again && !exec.over) this.#writer.begin(OP.RETRY).u32(exec.number).end();
    if (!exec.over) this.#failure(exec, code ?? 'TASK_FAILED', message, described.stack);
  }

  #failure(exec: Exec, code: string, message: string, stack: string): void {
    const w = this.#writer;
    try {
      w.begin(OP.FAILURE).u32(exec.number).str(code).text(message).text(stack).end();
    } catch (thrown) {
      w.abandon();
      throw thrown;
    }
    this.#end(exec);
  }

  /** A call that has not ended: it runs, or waits for its turn. */
  #given(number: number): Exec | undefined {
    return this.#running.get(number) ?? this.#waiting.find((arrival) => arrival.exec.number === number)?.exec;
  }

  /** A stream is over. */
  #leave(exec: Exec): void {
    this.#running.delete(exec.number);
    this.#madeRoom(exec);
  }

  #cancel(reader: FrameReader): void {
    const exec = this.#given(reader.u32());
    reader.finish();
    if (exec === undefined || exec.over) return;
    this.#failure(exec, 'CANCELLED', 'the call was cancelled', '');
    for (const [id, timer] of this.#timers) if (timer.exec === exec) this.clearTimer(id);
    this.core.failParent(exec.number, new BulkheadError('CANCELLED', 'the call was cancelled'));
    // What it still waits for may never come.
    this.#madeRoom(exec);
    if (exec.stream !== undefined) {
      this.#close(exec);
      this.#leave(exec);
    }
  }

  // --- who is running ---------------------------------------------------------------------------------------------------

  #who(): Exec {
    if (this.#current !== this.#outside) return this.#current;
    if (this.#running.size === 1) for (const only of this.#running.values()) return only;
    return this.#resumed;
  }

  #settle(number: number, run: () => void): void {
    this.#settlements.push({ exec: number, run });
    if (this.#settling) return;
    this.#settling = true;
    this.#settleSome();
  }

  /** Settles the promises of one call, then lets its continuations run before those of the next call. */
  #settleSome(): void {
    const first = this.#settlements[0];
    if (first === undefined) {
      this.#settling = false;
      return;
    }
    let n = 0;
    this.#resumed = this.#running.get(first.exec) ?? this.#outside;
    for (; n < this.#settlements.length && this.#settlements[n]?.exec === first.exec; n++) this.#settlements[n]?.run();
    this.#settlements.splice(0, n);
    // Two turns: `await get(ref)` resumes one microtask after its promise, a function around it one later.
    this.#microtask(() => this.#microtask(() => this.#settleSome()));
  }

  /** Binds a callback to the call that is running now; what it throws becomes a line in that call's log. */
  bind(run: () => void): () => void {
    const exec = this.#who();
    return () => this.#runAs(exec, run);
  }

  #runAs(exec: Exec, run: () => void): void {
    const before = this.#current;
    this.#current = this.#resumed = exec;
    try {
      run();
    } catch (thrown) {
      const { message, stack } = describeThrown(thrown, MAX_ERROR_MESSAGE_CHARS, MAX_STACK_CHARS);
      this.log(2, `Uncaught ${stack === '' ? message : stack}`);
    } finally {
      this.#current = before;
    }
  }

  // --- what the globals need ----------------------------------------------------------------------------------------------

  setTimer(run: () => void, ms: number, repeats: boolean): number {
    if (this.#timers.size >= MAX_TIMERS) throw new BulkheadError('RESOURCE_EXHAUSTED', `more than ${MAX_TIMERS} timers at once`);
    const delay = Number.isFinite(ms) && ms > 0 ? Math.min(Math.trunc(ms), 0x7fff_ffff) : 0;
    const id = this.#nextTimer++;
    this.#timers.set(id, { exec: this.#who(), run, everyMs: repeats ? Math.max(1, delay) : undefined });
    this.#arm(id, delay);
    return id;
  }

  #arm(id: number, ms: number): void {
    const bytes = new ArrayBuffer(4);
    new DataView(bytes).setUint32(0, ms, true);
    this.#emit(EMIT.SET_TIMER, id, bytes);
  }

  clearTimer(id: number): void {
    if (this.#timers.delete(id)) this.#emit(EMIT.CLEAR_TIMER, id, undefined);
  }

  fireTimer(id: number): void {
    this.#entered();
    const timer = this.#timers.get(id);
    if (timer === undefined) return;
    if (timer.everyMs === undefined) this.#timers.delete(id);
    this.#runAs(timer.exec, timer.run);
    if (timer.everyMs !== undefined && this.#timers.has(id)) this.#arm(id, timer.everyMs);
  }

  log(stream: 1 | 2, line: string): void {
    const exec = this.#who();
    if (exec.logBytes > MAX_LOG_BYTES) return;
    let bytes = encodeUtf8(`${line.length > MAX_LOG_LINE_BYTES ? `${line.slice(0, MAX_LOG_LINE_BYTES)}…` : line}\n`);
    exec.logBytes += bytes.length;
    if (exec.logBytes > MAX_LOG_BYTES) bytes = encodeUtf8(`… more than ${MAX_LOG_BYTES} bytes of log: the rest is dropped\n`);
    const w = this.#writer;
    try {
      w.begin(OP.LOG).u32(exec.number).u8(stream).raw(bytes).end();
    } catch (thrown) {
      w.abandon();
      throw thrown;
    }
    this.#touched();
  }

  /** Digest and name of a function or class that a loaded module exports. */
  exportOf(value: unknown): { digest: string; exportName: string; streams: string[] } | undefined {
    const found = typeof value === 'function' ? this.#exported.get(value) : undefined;
    const digest = found === undefined ? undefined : this.#digests.get(found.code);
    return found === undefined || digest === undefined ? undefined : { digest, exportName: found.name, streams: generatorMethods(value) };
  }

  context(): Readonly<Record<string, unknown>> {
    const exec = this.#who();
    const { template } = exec;
    return Object.freeze({ ...template?.context, taskId: template === undefined ? null : idTextOf(template.origin, exec.origin), attempt: exec.attempt });
  }
}

function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof value === 'object' && value !== null && typeof (value as { then?: unknown }).then === 'function';
}

/** How to iterate a value; text is not a stream. */
function iteratorOf(value: unknown): ((...args: unknown[]) => unknown) | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  const of = value as { [Symbol.asyncIterator]?: unknown; [Symbol.iterator]?: unknown };
  const make = of[Symbol.asyncIterator] ?? of[Symbol.iterator];
  return typeof make === 'function' ? (make as (...args: unknown[]) => unknown) : undefined;
}

/** The value of one step of an iterator; undefined at its end. */
function readStep(step: unknown): { readonly value: unknown } | undefined {
  if (typeof step !== 'object' || step === null) throw new TypeError('an iterator gave a step that is no object');
  const { done, value } = step as { done?: unknown; value?: unknown };
  return done === true ? undefined : { value };
}

/** Whether a function is a generator: the tag is on the prototype that only those have, and which is frozen. */
export function isGeneratorFunction(value: unknown): boolean {
  if (typeof value !== 'function') return false;
  const tag: unknown = (value as { [Symbol.toStringTag]?: unknown })[Symbol.toStringTag];
  return tag === 'GeneratorFunction' || tag === 'AsyncGeneratorFunction';
}

/** The methods of a class that are generators, inherited ones too. What cannot be looked at has none. */
function generatorMethods(of: unknown): string[] {
  const names = new Set<string>();
  const seen = new Set<string>();
  try {
    let holder = typeof of === 'function' ? (of as { prototype?: unknown }).prototype : undefined;
    for (let depth = 0; depth < 32 && typeof holder === 'object' && holder !== null && holder !== Object.prototype; depth++) {
      for (const name of Object.getOwnPropertyNames(holder)) {
        if (seen.has(name)) continue;
        seen.add(name);
        if (names.size < MAX_STREAMING_METHODS && isGeneratorFunction(Object.getOwnPropertyDescriptor(holder, name)?.value)) names.add(name);
      }
      holder = Object.getPrototypeOf(holder) as unknown;
    }
  } catch {
    return [];
  }
  return [...names];
}

interface AnyGenerator {
  next(): IteratorResult<unknown> | Promise<IteratorResult<unknown>>;
}

function isGenerator(value: unknown): value is AnyGenerator {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false;
  const tag: unknown = (value as { [Symbol.toStringTag]?: unknown })[Symbol.toStringTag];
  return (tag === 'Generator' || tag === 'AsyncGenerator') && typeof (value as { next?: unknown }).next === 'function';
}

/** Codes of what the prelude itself refuses. An error of a nested call that the function let through is the function's failure. */
const REFUSALS: ReadonlySet<string> = new Set(['INVALID_ARGUMENT', 'ACTOR_DIED', 'RESOURCE_EXHAUSTED', 'CANCELLED']);

/** The thrown value may be a proxy whose traps throw: looking at it is done in here only. */
function refusalCode(thrown: unknown): string | undefined {
  try {
    return thrown instanceof BulkheadError && REFUSALS.has(thrown.code) ? thrown.code : undefined;
  } catch {
    return undefined;
  }
}

/** Whether a thrown value has one of these names: its own, its code, or that of a class it is of. */
function isOfClass(thrown: unknown, names: readonly string[]): boolean {
  if (typeof thrown !== 'object' || thrown === null) return false;
  try {
    const { name, code } = thrown as { name?: unknown; code?: unknown };
    if ((typeof name === 'string' && names.includes(name)) || (thrown instanceof BulkheadError && names.includes(String(code)))) return true;
    let holder = Object.getPrototypeOf(thrown) as object | null;
    for (let depth = 0; depth < 32 && holder !== null; depth++, holder = Object.getPrototypeOf(holder) as object | null) {
      const made: unknown = Object.getOwnPropertyDescriptor(holder, 'constructor')?.value;
      if (typeof made === 'function' && names.includes(made.name)) return true;
    }
  } catch {
    // What cannot be looked at is of no class.
  }
  return false;
}

/** A module that threw when it was loaded, as thrown by every call of it. */
class ModuleFailure {
  readonly #described: { readonly message: string; readonly stack: string };

  constructor(message: string, stack: string) {
    this.#described = { message: `the module failed to load: ${message}`, stack };
  }

  static of(thrown: unknown): { readonly message: string; readonly stack: string } | undefined {
    return typeof thrown === 'object' && thrown !== null && #described in thrown ? thrown.#described : undefined;
  }
}
