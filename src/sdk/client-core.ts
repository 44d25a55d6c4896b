/**
 * The client's half of the frame protocol: allocates object ids, writes calls, keeps the promises of GET and WAIT. One core serves a
 * driver (src/sdk/sdk.ts) and the inside of an isolate (src/sandbox/isolate/guest). ECMAScript only: no IO, clock or host types;
 * sending, timers and staging are the owner's. Must never: decode a frame of another direction, or hold a promise per submitted call.
 */
import { BulkheadError } from '../base/errors.ts';
import { CHUNK_HEADER_BYTES, FrameWriter, NO_TIMEOUT, OP, type CallKind, type FrameReader, type FrameSink } from '../base/frame.ts';
import { OBJECT_ID_BYTES, objectIdFromText, objectIdText, SESSION_PREFIX_BYTES } from '../base/ids.ts';
import {
  CHUNK_BYTES, MAX_DEPENDENCIES, MAX_ERROR_MESSAGE_CHARS, MAX_FRAME_BYTES, MAX_INLINE_BYTES, MAX_OBJECT_BYTES, MAX_REFS_PER_CALL, MAX_STACK_CHARS, MAX_TEMPLATES_PER_CHANNEL,
} from '../base/limits.ts';
import { decodeValue, encodeValue, singleBuffer, type EncodedValue, type RefHooks } from '../base/value.ts';
import { actorHandle, describeActorHandle, type ClassInfo } from './actor-handle.ts';
import { ObjectRef } from './object-ref.ts';
import { ClientStreams, type ObjectStream, type StreamWindow } from './object-stream.ts';
import { remoteError } from './remote-error.ts';

/** UTF-8 takes up to three octets a UTF-16 unit. */
const MAX_MESSAGE_BYTES = MAX_ERROR_MESSAGE_CHARS * 3;
const MAX_STACK_BYTES = MAX_STACK_CHARS * 3;
const MAX_INFO_BYTES = 65_536;
/** Index 0 stays unused, so that no id of a session is all zeros at its end. */
const FIRST_INDEX = 1;
const RELEASE_BATCH = 1_024;
/** Refs made between two flushes that share one registration: registering each costs more than the call (measured: 225 ns). */
const REFS_PER_LIFETIME = 16;
/** So many refs are out before the runtime is asked to collect, and so much more than were left before it is asked again. */
const COLLECT_REFS = 200_000;
const COLLECT_GROWTH = 1.5;

/** What the registry knows of a lifetime that ended: own refs by index, or one ref of another session. */
type Held = { readonly indexes: number[] } | { readonly ids: Uint8Array[] };

export interface ClientCoreOptions {
  readonly sessionPrefix: Uint8Array;
  /** Shared with whoever writes other frames of the same channel; the core only adds whole frames. */
  readonly writer: FrameWriter;
  /** Called after frames were added: the owner schedules one flush a turn, or flushes at once when the writer is full. */
  readonly touched: () => void;
  /** Exec number of the running task or actor call; 0 in a driver. */
  readonly parent: () => number;
  /** Settles a promise that `parent` waits for; default: at once. */
  readonly settle?: ((parent: number, run: () => void) => void) | undefined;
  /** Inside a worker: hands a large value to the host, returns its staged file number. Elsewhere large values go in parts. */
  readonly stage?: ((bytes: Uint8Array<ArrayBuffer>) => number) | undefined;
  /** Inside a worker: takes what the host attached. */
  readonly attachment?: ((number: number) => Uint8Array) | undefined;
  /** Memory for a large value, in a buffer of its own; it is given to nobody before each octet was written. Default: zeroed memory. */
  readonly allocate?: ((bytes: number) => Uint8Array<ArrayBuffer>) | undefined;
  /** Resolves when more may be sent; undefined: now. Only parts of large values wait for it. */
  readonly drained?: (() => Promise<void> | undefined) | undefined;
  /** Sends what the writer holds and `octets` right behind it, uncopied. They are never written to afterwards. */
  readonly sendTail?: ((octets: Uint8Array) => void) | undefined;
  readonly timers?: { set(ms: number, fire: () => void): unknown; clear(timer: unknown): void } | undefined;
  /** Where the runtime has no FinalizationRegistry, refs are released explicitly or with the session. */
  readonly collects?: typeof FinalizationRegistry | undefined;
  /** Asks the runtime to collect garbage soon: many refs are out, and what each costs its raylet the runtime cannot see. */
  readonly collect?: (() => void) | undefined;
  /** Encoded values up to this size stay with their refs, so that a value that was put or read once is not asked for again. 0: none. */
  readonly keptValueBytes?: number | undefined;
  /** Where calls are traced: the W3C trace context that functions defined now carry; '': none. */
  readonly traceparent?: (() => string) | undefined;
  /** Where calls are traced: told of each, by the index of its first result. */
  readonly submitted?: ((seq: number) => void) | undefined;
  /** A call was refused as malformed; without a listener only GET of its ref tells. */
  readonly onRejected?: ((error: BulkheadError) => void) | undefined;
}

/** What DEFINE says about a function, class or method. */
export interface Template {
  readonly kind: CallKind;
  /** 64 hex digits of SHA-256. */
  readonly digest: string;
  readonly exportName: string;
  readonly method: string;
  readonly options: string;
  readonly returns: number;
}

/** A large value that comes in parts. One buffer or typed array is gathered without its head, so that it need not be copied again. */
interface Assembly {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly total: number;
  readonly skip: number;
  at: number;
  readonly finish: ((octets: ArrayBuffer) => unknown) | undefined;
}

interface Pending {
  readonly parent: number;
  /** The refs stay alive while they are waited for. */
  readonly refs: readonly ObjectRef[];
  readonly values: unknown[];
  missing: number;
  parts: Map<number, Assembly> | undefined;
  timer: unknown;
  readonly resolve: (value: never) => void;
  readonly reject: (error: BulkheadError) => void;
}

function digestOctets(hex: string): Uint8Array {
  const octets = new Uint8Array(32);
  for (let i = 0; i < 32; i++) octets[i] = Number.parseInt(hex.slice(2 * i, 2 * i + 2), 16);
  return octets;
}

export class ClientCore {
  readonly #options: ClientCoreOptions;
  readonly #writer: FrameWriter;
  readonly #prefix: Uint8Array;
  #nextIndex = FIRST_INDEX;
  #nextRequest = 1;
  #nextTemplate = 1;
  readonly #templates = new Map<string, number>();
  readonly #codeSent = new Set<string>();
  readonly #pending = new Map<number, Pending>();
  readonly #rejected = new Map<number, BulkheadError>();
  #closed: BulkheadError | undefined;
  readonly #registry: FinalizationRegistry<Held> | undefined;
  /** Refs that were made here and not collected, and at how many of them the runtime is asked to look. */
  #out = 0;
  #collectAt = COLLECT_REFS;
  /** The lifetime that new refs join, and its list of indexes. */
  #lifetime: object | undefined;
  #lifetimeIndexes: number[] = [];
  /** Refs that were made again from a value or text, by id: how many of those are alive. */
  readonly #copies = new Map<string, number>();
  /** Ids whose first ref is gone while a copy is alive, and ids that must not be released (again) when their ref goes. */
  readonly #originalGone = new Set<string>();
  readonly #neverAgain = new Set<number>();
  /** While a value is decoded: the refs in it that share a lifetime. */
  #adopted: { ids: Uint8Array[]; lifetime: object | undefined } | undefined = undefined;
  #released: Uint8Array[] = [];
  /** Of those, once somebody has looked. */
  #releasedTexts: Set<string> | undefined = undefined;
  readonly #streams: ClientStreams;
  readonly hooks: RefHooks;

  constructor(options: ClientCoreOptions) {
    if (options.sessionPrefix.length !== SESSION_PREFIX_BYTES) throw new BulkheadError('INVALID_ARGUMENT', `a session prefix has ${SESSION_PREFIX_BYTES} octets`);
    this.#options = options;
    this.#writer = options.writer;
    this.#prefix = options.sessionPrefix.slice();
    this.#registry = options.collects === undefined ? undefined : new options.collects((held) => this.#collected(held));
    this.#streams = new ClientStreams({
      take: (count) => this.#take(count),
      parent: options.parent,
      settle: (parent, run) => this.#settle(parent, run),
      more: (parent, seq, waitsFor, taken, first, count) => this.#frame(OP.MORE, (w) => w.u32(parent).u32(seq).u32(0).u32(waitsFor).u32(taken).u32(first).u32(count)),
      idOf: (index) => this.#id(index),
      giveUp: (index) => {
        if (this.#closed === undefined) this.#giveUp(this.#id(index));
      },
      refTo: (index, encoded) => {
        const ref = this.#newRef(index);
        ObjectRef.know(ref, encoded);
        return ref;
      },
      valueOf: (index, encoded) => {
        if (encoded === undefined) return this.#takeValue(this.#newRef(index));
        if (this.#closed === undefined) this.#giveUp(this.#id(index));
        return decodeValue(encoded, this.hooks);
      },
    }, options.collects);
    this.hooks = {
      describe: (value) => {
        const id = ObjectRef.idOf(value);
        return id === undefined ? describeActorHandle(value) : { id, actor: undefined };
      },
      ref: (id) => this.#adopt(id),
      actor: (id, info) => actorHandle(this, id, parseClassInfo(info), this.#adoptLifetime(id)),
    };
  }

  /** Why the channel is closed, if it is. */
  get closed(): BulkheadError | undefined {
    return this.#closed;
  }

  // --- ids and refs ---------------------------------------------------------------------------------------------------

  #take(count: number): number {
    this.#open();
    const index = this.#nextIndex;
    if (index + count > 0xffff_ffff) throw new BulkheadError('RESOURCE_EXHAUSTED', 'this session has used up its object ids: open a new one');
    this.#nextIndex = index + count;
    return index;
  }

  #open(): void {
    if (this.#closed !== undefined) throw new BulkheadError(this.#closed.code, this.#closed.safeMessage);
  }

  #id(index: number): Uint8Array {
    const id = new Uint8Array(OBJECT_ID_BYTES);
    id.set(this.#prefix);
    id[20] = index;
    id[21] = index >>> 8;
    id[22] = index >>> 16;
    id[23] = index >>> 24;
    return id;
  }

  /** The index of an id of this session, -1 of any other. */
  #indexOf(id: Uint8Array): number {
    for (let i = 0; i < SESSION_PREFIX_BYTES; i++) if (id[i] !== this.#prefix[i]) return -1;
    return (((id[23] as number) << 24) | ((id[22] as number) << 16) | ((id[21] as number) << 8) | (id[20] as number)) >>> 0;
  }

  #newRef(index: number): ObjectRef {
    const registry = this.#registry;
    if (registry === undefined) return new ObjectRef(this.#id(index));
    if (this.#lifetime === undefined || this.#lifetimeIndexes.length >= REFS_PER_LIFETIME) {
      this.#lifetime = {};
      this.#lifetimeIndexes = [];
      registry.register(this.#lifetime, { indexes: this.#lifetimeIndexes });
    }
    this.#lifetimeIndexes.push(index);
    if (++this.#out >= this.#collectAt) {
      this.#collectAt = this.#out * COLLECT_GROWTH;
      this.#options.collect?.();
    }
    return new ObjectRef(this.#id(index), this.#lifetime);
  }

  /** A ref to an id that came from elsewhere: out of a value, or from text. */
  #adopt(id: Uint8Array): ObjectRef {
    const group = this.#adopted;
    if (group === undefined || this.#registry === undefined) return new ObjectRef(id, this.#adoptLifetime(id));
    this.#countCopy(id);
    if (group.ids.length === 0 || group.ids.length >= REFS_PER_LIFETIME) {
      group.lifetime = {};
      group.ids = [];
      this.#registry.register(group.lifetime, { ids: group.ids });
    }
    group.ids.push(id);
    return new ObjectRef(id, group.lifetime);
  }

  /** Refs inside one value are noticed to be gone some at a time, as those of calls are: a registration for each costs more than its decoding. */
  #decode(encoded: Uint8Array): unknown {
    this.#adopted = { ids: [], lifetime: undefined };
    try {
      return decodeValue(encoded, this.hooks);
    } finally {
      this.#adopted = undefined;
    }
  }

  /** What a ref or handle from elsewhere holds on to: when it is collected, the raylet is told. */
  #adoptLifetime(id: Uint8Array): object | undefined {
    if (this.#registry === undefined) return undefined;
    const lifetime = {};
    this.#countCopy(id);
    this.#registry.register(lifetime, { ids: [id] });
    return lifetime;
  }

  #countCopy(id: Uint8Array): void {
    const text = objectIdText(id);
    if (this.#released.length > 0 && (this.#releasedTexts ??= new Set(this.#released.map(objectIdText))).has(text)) {
      // Given up but not yet said so: it is wanted again.
      const kept = this.#released.filter((released) => objectIdText(released) !== text);
      if (kept.length < this.#released.length && this.#indexOf(id) >= 0) this.#originalGone.add(text);
      this.#released = kept;
      this.#releasedTexts = undefined;
    }
    this.#copies.set(text, (this.#copies.get(text) ?? 0) + 1);
  }

  refFrom(id: Uint8Array): ObjectRef {
    return this.#adopt(id.slice());
  }

  #collected(held: Held): void {
    if (this.#closed !== undefined) return;
    if ('indexes' in held) {
      this.#out -= held.indexes.length;
      this.#collectAt = Math.max(COLLECT_REFS, this.#out * COLLECT_GROWTH);
      for (const index of held.indexes) {
        if (this.#neverAgain.delete(index)) continue;
        const id = this.#id(index);
        if (this.#copies.size > 0 && this.#copies.has(objectIdText(id))) this.#originalGone.add(objectIdText(id));
        else this.#giveUp(id);
      }
      return;
    }
    for (const id of held.ids) this.#copyGone(id);
  }

  #copyGone(id: Uint8Array): void {
    const text = objectIdText(id);
    const left = (this.#copies.get(text) ?? 1) - 1;
    if (left > 0) return void this.#copies.set(text, left);
    this.#copies.delete(text);
    // A ref of this session is released when its first ref is gone too; one of another session has no first ref here.
    if (this.#indexOf(id) < 0 || this.#originalGone.delete(text)) this.#giveUp(id);
  }

  #giveUp(id: Uint8Array): void {
    this.#released.push(id);
    this.#releasedTexts = undefined;
    if (this.#released.length === 1) this.#options.touched();
    if (this.#released.length >= RELEASE_BATCH) this.writeReleases();
  }

  /** Called right before the owner takes a batch: adds what was collected, and closes the lifetime that this batch's refs share. */
  writeReleases(): void {
    this.#lifetime = undefined;
    if (this.#released.length === 0) return;
    const ids = this.#released;
    this.#released = [];
    this.#releasedTexts = undefined;
    this.#frame(OP.RELEASE, (w) => w.refs(ids));
  }

  /** Gives a ref up now. It must not be used afterwards. */
  release(ref: ObjectRef): void {
    this.#open();
    const id = idOf(ref, 'release(ref)');
    ObjectRef.forget(ref);
    const index = this.#indexOf(id);
    if (index >= 0 && this.#registry !== undefined) this.#neverAgain.add(index);
    this.#giveUp(id);
  }

  // --- frames ---------------------------------------------------------------------------------------------------------

  /** Writes one whole frame or, when a field throws, nothing: a torn frame would end the channel. */
  #frame(op: number, body: (w: FrameWriter) => void): void {
    const w = this.#writer;
    try {
      body(w.begin(op));
      w.end();
    } catch (thrown) {
      w.abandon();
      throw thrown;
    }
    this.#options.touched();
  }

  /** Sends a bundle's source, once. */
  sendCode(digest: string, source: Uint8Array): void {
    this.#open();
    if (this.#codeSent.has(digest)) return;
    this.#codeSent.add(digest);
    const octets = digestOctets(digest);
    for (let offset = 0; offset === 0 || offset < source.length; offset += CHUNK_BYTES) {
      this.#frame(OP.CODE, (w) => w.raw(octets).u32(source.length).u32(offset).raw(source.subarray(offset, offset + CHUNK_BYTES)));
    }
  }

  /** The template's number, defined on first use. */
  template(template: Template): number {
    const traceparent = this.#options.traceparent?.() ?? '';
    const options = traceparent === '' ? template.options : JSON.stringify({ ...(JSON.parse(template.options === '' ? '{}' : template.options) as object), traceparent });
    const key = `${template.kind} ${template.digest} ${template.exportName} ${template.method} ${options}`;
    let number = this.#templates.get(key);
    if (number === undefined) {
      this.#open();
      if (this.#templates.size >= MAX_TEMPLATES_PER_CHANNEL) throw new BulkheadError('RESOURCE_EXHAUSTED', `more than ${MAX_TEMPLATES_PER_CHANNEL} different functions and options in one session: reuse the object that options() returns`);
      number = this.#nextTemplate++;
      const n = number;
      this.#frame(OP.DEFINE, (w) => w.u32(n).u8(template.kind).raw(digestOctets(template.digest)).str(template.exportName).str(template.method).text(options));
      this.#templates.set(key, number);
    }
    return number;
  }

  /** Writes SUBMIT, CREATE_ACTOR or CALL_ACTOR with its arguments; returns the first index of its results. */
  #call(op: number, template: number, actor: Uint8Array | undefined, returns: number, args: readonly unknown[], key?: string): number {
    let positions: number[] | undefined;
    let ids: Uint8Array[] | undefined;
    let plain: unknown[] | undefined;
    for (let i = 0; i < args.length; i++) {
      const arg = args[i];
      if (typeof arg !== 'object' || arg === null) continue;
      const id = ObjectRef.idOf(arg);
      if (id === undefined) continue;
      plain ??= Array.from(args);
      (positions ??= []).push(i);
      (ids ??= []).push(id);
      plain[i] = null;
    }
    let encoded = encodeValue(plain ?? args, this.hooks, 'args');
    if (encoded.bytes.length > MAX_INLINE_BYTES) {
      // Like Ray, large arguments become objects of their own: the frame stays small, and a retry does not send them again.
      plain ??= Array.from(args);
      for (let i = 0; i < plain.length; i++) {
        const arg = plain[i];
        if ((typeof arg !== 'object' && typeof arg !== 'string') || arg === null) continue;
        const single = encodeValue(arg, this.hooks, `args[${i}]`);
        if (single.bytes.length <= MAX_INLINE_BYTES / 4) continue;
        (positions ??= []).push(i);
        (ids ??= []).push(idOf(this.#putEncoded(single), 'args'));
        plain[i] = null;
      }
      encoded = encodeValue(plain, this.hooks, 'args');
    }
    const count = positions?.length ?? 0;
    if (count > MAX_DEPENDENCIES) throw new BulkheadError('INVALID_ARGUMENT', `${count} refs among the arguments; at most ${MAX_DEPENDENCIES}: pass an array of refs and get them inside`);
    // A call without results has an index too: it names the call.
    const seq = this.#take(Math.max(returns, 1));
    const w = this.#writer;
    try {
      w.begin(op).u32(this.#options.parent()).u32(seq).u32(template);
      if (actor !== undefined) w.raw(actor);
      if (key !== undefined) w.str(key);
      w.u16(count);
      for (let i = 0; i < count; i++) w.u16((positions as number[])[i] as number).raw((ids as Uint8Array[])[i] as Uint8Array);
      w.refs(encoded.contained).raw(encoded.bytes).end();
    } catch (thrown) {
      w.abandon();
      throw thrown;
    }
    this.#options.touched();
    this.#options.submitted?.(seq);
    return seq;
  }

  #results(seq: number, returns: number): ObjectRef | ObjectRef[] {
    if (returns === 1) return this.#newRef(seq);
    const refs: ObjectRef[] = [];
    for (let i = 0; i < returns; i++) refs.push(this.#newRef(seq + i));
    return refs;
  }

  submit(template: number, returns: number, args: readonly unknown[], key?: string): ObjectRef | ObjectRef[] {
    return this.#results(this.#call(key === undefined ? OP.SUBMIT : OP.SUBMIT_ONCE, template, undefined, returns, args, key), returns);
  }

  callActor(actor: Uint8Array, template: number, returns: number, args: readonly unknown[]): ObjectRef | ObjectRef[] {
    return this.#results(this.#call(OP.CALL_ACTOR, template, actor, returns, args), returns);
  }

  submitStream(template: number, window: StreamWindow, args: readonly unknown[]): ObjectStream {
    return this.#streams.open(this.#call(OP.SUBMIT, template, undefined, 1, args), window);
  }

  callActorStream(actor: Uint8Array, template: number, window: StreamWindow, args: readonly unknown[]): ObjectStream {
    return this.#streams.open(this.#call(OP.CALL_ACTOR, template, actor, 1, args), window);
  }

  /** A handle to the actor in the making; calls to it may follow at once. The actor lives as long as a handle that stems from this one. */
  createActor(template: number, info: ClassInfo, args: readonly unknown[]): object {
    const index = this.#call(OP.CREATE_ACTOR, template, undefined, 1, args);
    if (this.#registry === undefined) return actorHandle(this, this.#id(index), info, undefined);
    const lifetime = {};
    this.#registry.register(lifetime, { indexes: [index] });
    return actorHandle(this, this.#id(index), info, lifetime);
  }

  // --- objects --------------------------------------------------------------------------------------------------------

  #putEncoded(encoded: EncodedValue): ObjectRef {
    const { bytes, contained } = encoded;
    if (bytes.length > MAX_OBJECT_BYTES) throw new BulkheadError('RESOURCE_EXHAUSTED', `a value of ${bytes.length} bytes exceeds the limit of ${MAX_OBJECT_BYTES}`);
    const seq = this.#take(1);
    const parent = this.#options.parent();
    if (bytes.length <= MAX_INLINE_BYTES) this.#frame(OP.PUT, (w) => w.u32(parent).u32(seq).refs(contained).raw(bytes));
    else if (this.#options.stage !== undefined) {
      const size = bytes.length;
      const file = this.#options.stage(bytes);
      this.#frame(OP.PUT_STAGED, (w) => w.u32(parent).u32(seq).u32(file).u64(size).refs(contained));
    } else {
      this.#pin(contained);
      for (let offset = 0; offset < bytes.length; offset += CHUNK_BYTES) this.#part(parent, seq, bytes, offset);
    }
    return this.#newRef(seq);
  }

  /** One part of a large value. With `sendTail` its octets leave from where they lie, behind the frames written so far. */
  #part(parent: number, seq: number, bytes: Uint8Array, offset: number): void {
    const octets = bytes.subarray(offset, offset + CHUNK_BYTES);
    const { sendTail } = this.#options;
    if (sendTail === undefined) return this.#frame(OP.PUT_CHUNK, (w) => w.u32(parent).u32(seq).u64(bytes.length).u64(offset).raw(octets));
    this.#writer.begin(OP.PUT_CHUNK).u32(parent).u32(seq).u64(bytes.length).u64(offset).endBeforeTail(octets.length);
    sendTail(octets);
  }

  /** PUT_CHUNK names no contained refs, so those are held until the session ends. */
  #pin(contained: readonly Uint8Array[]): void {
    if (this.#registry === undefined) return;
    for (const id of contained) this.#copies.set(objectIdText(id), (this.#copies.get(objectIdText(id)) ?? 0) + 1);
  }

  /** Stores a value. Small ones return at once; the parts of large ones wait for the channel, so that memory stays bounded. */
  async put(value: unknown): Promise<ObjectRef> {
    this.#open();
    if (ObjectRef.idOf(value) !== undefined) throw new BulkheadError('INVALID_ARGUMENT', 'put(ref): the value is already an object of the cluster; pass the ref itself');
    const encoded = encodeValue(value, this.hooks);
    const { bytes, contained } = encoded;
    const { drained } = this.#options;
    if (bytes.length <= MAX_INLINE_BYTES || this.#options.stage !== undefined || drained === undefined || bytes.length > MAX_OBJECT_BYTES) {
      const ref = this.#putEncoded(encoded);
      if (bytes.length <= (this.#options.keptValueBytes ?? 0)) ObjectRef.know(ref, bytes);
      return ref;
    }
    const seq = this.#take(1);
    const parent = this.#options.parent();
    this.#pin(contained);
    // A program at its quota that gives up one object to put another: the release goes first.
    this.writeReleases();
    for (let offset = 0; offset < bytes.length; offset += CHUNK_BYTES) {
      this.#open();
      this.#part(parent, seq, bytes, offset);
      const wait = drained();
      if (wait !== undefined) await wait;
    }
    return this.#newRef(seq);
  }

  #takeRequest(): number {
    const request = this.#nextRequest;
    this.#nextRequest = request === 0xffff_ffff ? 1 : request + 1;
    return request;
  }

  async #takeValue(ref: ObjectRef): Promise<unknown> {
    const [value] = await this.get([ref]);
    this.release(ref);
    return value;
  }

  #request<T>(refs: readonly ObjectRef[], missing: number, write: (request: number, parent: number) => void): Promise<T> & { readonly request?: number } {
    this.#open();
    const request = this.#takeRequest();
    const parent = this.#options.parent();
    write(request, parent);
    return new Promise<T>((resolve, reject) => {
      this.#pending.set(request, { parent, refs, values: [], missing, parts: undefined, timer: undefined, resolve: resolve as (value: never) => void, reject });
    });
  }

  #expire(request: number, ms: number, error: () => BulkheadError): void {
    const { timers } = this.#options;
    const pending = this.#pending.get(request);
    if (timers === undefined || pending === undefined) return;
    pending.timer = timers.set(ms, () => this.#fail(request, error()));
  }

  /** Values of all refs, in order; the first failure rejects. */
  get(refs: readonly ObjectRef[], timeoutMs?: number): Promise<unknown[]> {
    checkCount(refs.length);
    if (timeoutMs !== undefined) checkTimeout(timeoutMs);
    if (refs.length === 0) return Promise.resolve([]);
    const ids = refs.map((ref) => idOf(ref, 'get(refs)'));
    const known = this.#closed === undefined ? this.#knownValues(refs) : undefined;
    if (known !== undefined) return this.#at(known);
    for (const id of this.#rejected.size === 0 ? [] : ids) {
      const error = this.#rejected.get(this.#indexOf(id));
      if (error !== undefined) return Promise.reject(error);
    }
    const request = this.#nextRequest;
    const promise = this.#request<unknown[]>(refs, refs.length, (r, parent) => this.#frame(OP.GET, (w) => w.u32(parent).u32(r).refs(ids)));
    if (timeoutMs !== undefined) this.#expire(request, timeoutMs, () => new BulkheadError('TIMEOUT', `get: no value within ${timeoutMs} ms`));
    return promise;
  }

  /** What is here already, for the call that asks: what follows runs under it. */
  #at<T>(value: T): Promise<T> {
    const parent = this.#options.parent();
    if (parent === 0) return Promise.resolve(value);
    return new Promise((resolve) => this.#settle(parent, () => resolve(value)));
  }

  /** Values that are here already, when all are. Each is decoded anew: callers never share one. */
  #knownValues(refs: readonly ObjectRef[]): unknown[] | undefined {
    for (const ref of refs) if (ObjectRef.encodedOf(ref) === undefined) return undefined;
    return refs.map((ref) => this.#decode(ObjectRef.encodedOf(ref) as Uint8Array));
  }

  /** Positions that are ready. */
  wait(refs: readonly ObjectRef[], count: number, timeoutMs: number | undefined): Promise<number[]> {
    checkCount(refs.length);
    if (timeoutMs !== undefined) checkTimeout(timeoutMs);
    if (!Number.isSafeInteger(count) || count < 1 || count > refs.length) throw new BulkheadError('INVALID_ARGUMENT', `wait: count ${count} must be from 1 to the ${refs.length} refs given`);
    const ids = refs.map((ref) => idOf(ref, 'wait(refs)'));
    const known: number[] = [];
    for (let i = 0; i < refs.length && known.length < count; i++) if (ObjectRef.isReady(refs[i] as ObjectRef)) known.push(i);
    // Ready once is ready for ever.
    if (known.length >= count && this.#closed === undefined) return Promise.resolve(known);
    return this.#request<number[]>(refs, 1, (r, parent) => this.#frame(OP.WAIT, (w) => w.u32(parent).u32(r).u32(count).u32(timeoutMs ?? NO_TIMEOUT).refs(ids)));
  }

  /** Asks to be ended after so long without activity; 0: never. */
  idleLimit(ms: number): void {
    this.#frame(OP.IDLE_LIMIT, (w) => w.u32(ms));
  }

  cancel(ref: ObjectRef, force: boolean): Promise<void> {
    const id = idOf(ref, 'cancel(ref)');
    return this.#request<void>([], 1, (r, parent) => this.#frame(OP.CANCEL, (w) => w.u32(parent).u32(r).raw(id).u8(force ? 1 : 0)));
  }

  /** Ends an actor; with `restart` what it runs in only, so that it starts again if it may. */
  kill(handle: object, restart: boolean): Promise<void> {
    const described = describeActorHandle(handle);
    if (described === undefined) throw new BulkheadError('INVALID_ARGUMENT', 'kill(handle) takes an actor handle; a task is stopped with cancel(ref)');
    return this.#request<void>([], 1, (r, parent) => this.#frame(OP.KILL, (w) => w.u32(parent).u32(r).raw(described.id).u8(restart ? 1 : 0)));
  }

  /** A handle to a named actor. */
  lookupActor(name: string): Promise<object> {
    return this.#request<object>([], 1, (r, parent) => this.#frame(OP.LOOKUP_ACTOR, (w) => w.u32(parent).u32(r).str(name)));
  }

  /** Asks for a placement group. The ref is its id, and has its value when the group is there. */
  createGroup(json: string): ObjectRef {
    this.#open();
    const seq = this.#take(1);
    const parent = this.#options.parent();
    this.#frame(OP.CREATE_GROUP, (w) => w.u32(parent).u32(seq).text(json));
    return this.#newRef(seq);
  }

  removeGroup(id: string): Promise<void> {
    const octets = objectIdFromText(id);
    return this.#request<void>([], 1, (r, parent) => this.#frame(OP.REMOVE_GROUP, (w) => w.u32(parent).u32(r).raw(octets)));
  }

  lookupGroup(name: string): Promise<{ readonly id: string; readonly strategy: string; readonly bundles: readonly { readonly cpus: number; readonly memoryBytes: number }[] }> {
    return this.#request([], 1, (r, parent) => this.#frame(OP.LOOKUP_GROUP, (w) => w.u32(parent).u32(r).str(name)));
  }

  refOf(id: string): ObjectRef {
    return this.refFrom(objectIdFromText(id));
  }

  context(): Promise<Record<string, unknown>> {
    return this.#request<Record<string, unknown>>([], 1, (r, parent) => this.#frame(OP.CONTEXT, (w) => w.u32(parent).u32(r)));
  }

  // --- what comes back ------------------------------------------------------------------------------------------------

  /** Handles one frame of a raylet to its client; false when the op is none of those. Throws on a malformed frame: close the channel then. */
  receive(reader: FrameReader): boolean {
    switch (reader.op) {
      case OP.VALUE: {
        const request = reader.u32();
        const position = reader.u32();
        const bytes = reader.rest();
        if (this.#pending.has(request)) this.#value(request, position, bytes);
        return true;
      }
      case OP.VALUE_CHUNK: {
        const request = reader.u32();
        const position = reader.u32();
        const total = reader.u64();
        const offset = reader.u64();
        this.#chunk(request, position, total, offset, reader.rest());
        return true;
      }
      case OP.VALUE_ATTACHED: {
        const request = reader.u32();
        const position = reader.u32();
        const number = reader.u32();
        reader.finish();
        const bytes = this.#options.attachment?.(number);
        if (bytes === undefined) throw new BulkheadError('INVALID_ARGUMENT', `malformed frame: attachment ${number} does not exist`);
        if (this.#pending.has(request)) this.#value(request, position, bytes);
        return true;
      }
      case OP.VALUE_FAILED: {
        const request = reader.u32();
        reader.u32();
        const error = remoteError(reader.str(), reader.text(MAX_MESSAGE_BYTES), reader.text(MAX_STACK_BYTES));
        reader.finish();
        this.#fail(request, error);
        return true;
      }
      case OP.READY: {
        const request = reader.u32();
        const n = reader.u32();
        if (n * 4 > reader.remaining) throw new BulkheadError('INVALID_ARGUMENT', 'malformed frame: READY is too short');
        const positions: number[] = [];
        const refs = this.#pending.get(request)?.refs;
        for (let i = 0; i < n; i++) {
          const position = reader.u32();
          positions.push(position);
          const ref = refs?.[position];
          if (ref !== undefined) ObjectRef.know(ref, undefined);
        }
        reader.finish();
        this.#done(request, positions);
        return true;
      }
      case OP.STREAM_ITEM:
        this.#streams.item(reader);
        return true;
      case OP.STREAM_END:
        this.#streams.end(reader);
        return true;
      case OP.ACTOR: {
        const request = reader.u32();
        const id = reader.id().slice();
        const info = reader.text(MAX_INFO_BYTES);
        reader.finish();
        // As in Ray, who found an actor by its name does not keep it alive.
        this.#done(request, actorHandle(this, id, parseClassInfo(info), undefined));
        return true;
      }
      case OP.DONE: {
        const request = reader.u32();
        const info = reader.text(MAX_FRAME_BYTES);
        reader.finish();
        this.#done(request, info === '' ? undefined : JSON.parse(info));
        return true;
      }
      case OP.FAILED: {
        const request = reader.u32();
        const error = remoteError(reader.str(), reader.text(MAX_MESSAGE_BYTES));
        reader.finish();
        this.#fail(request, error);
        return true;
      }
      case OP.REJECTED: {
        const number = reader.u32();
        const error = remoteError(reader.str(), reader.text(MAX_MESSAGE_BYTES));
        reader.finish();
        if (this.#rejected.size < 1_024) this.#rejected.set(number, error);
        for (const [request, pending] of this.#pending) if (pending.refs.some((ref) => this.#indexOf(idOf(ref, 'get')) === number)) this.#fail(request, error);
        this.#options.onRejected?.(error);
        return true;
      }
      default:
        return false;
    }
  }

  #remove(request: number): Pending | undefined {
    const pending = this.#pending.get(request);
    if (pending === undefined) return undefined;
    this.#pending.delete(request);
    if (pending.timer !== undefined) this.#options.timers?.clear(pending.timer);
    return pending;
  }

  #settle(parent: number, run: () => void): void {
    if (this.#options.settle === undefined) run();
    else this.#options.settle(parent, run);
  }

  #done(request: number, value: unknown): void {
    const pending = this.#remove(request);
    if (pending !== undefined) this.#settle(pending.parent, () => pending.resolve(value as never));
  }

  #fail(request: number, error: BulkheadError): void {
    const pending = this.#remove(request);
    if (pending !== undefined) this.#settle(pending.parent, () => pending.reject(error));
  }

  #value(request: number, position: number, bytes: Uint8Array): void {
    const pending = this.#pending.get(request) as Pending;
    if (position >= pending.refs.length || position in pending.values) throw new BulkheadError('INVALID_ARGUMENT', `malformed frame: position ${position} of a get is out of range or came twice`);
    let value: unknown;
    try {
      value = this.#decode(bytes);
    } catch (thrown) {
      return this.#fail(request, thrown instanceof BulkheadError ? thrown : new BulkheadError('INTERNAL', 'a value did not decode'));
    }
    if (bytes.length <= (this.#options.keptValueBytes ?? 0)) ObjectRef.know(pending.refs[position] as ObjectRef, bytes.slice());
    this.#arrived(pending, request, position, value);
  }

  #arrived(pending: Pending, request: number, position: number, value: unknown): void {
    pending.values[position] = value;
    if (--pending.missing === 0) this.#done(request, pending.values);
  }

  #chunk(request: number, position: number, total: number, offset: number, part: Uint8Array): void {
    const pending = this.#pending.get(request);
    if (pending === undefined) return;
    pending.parts ??= new Map();
    let assembled = pending.parts.get(position);
    if (assembled === undefined) {
      if (total > MAX_OBJECT_BYTES || position >= pending.refs.length) throw new BulkheadError('INVALID_ARGUMENT', 'malformed frame: a value in parts is too large or out of range');
      const single = singleBuffer(part, total);
      const skip = single?.headBytes ?? 0;
      assembled = { bytes: this.#options.allocate?.(total - skip) ?? new Uint8Array(total - skip), total, skip, at: 0, finish: single?.finish };
      pending.parts.set(position, assembled);
    }
    if (offset !== assembled.at || assembled.total !== total || part.length > total - offset) throw new BulkheadError('INVALID_ARGUMENT', 'malformed frame: the parts of a value are out of order');
    const { skip } = assembled;
    if (offset >= skip) assembled.bytes.set(part, offset - skip);
    else if (part.length > skip - offset) assembled.bytes.set(part.subarray(skip - offset), 0);
    this.#partArrived(pending, request, position, assembled, part.length);
  }

  #partArrived(pending: Pending, request: number, position: number, assembled: Assembly, length: number): void {
    assembled.at += length;
    if (assembled.at !== assembled.total) return;
    pending.parts?.delete(position);
    if (assembled.finish === undefined) this.#value(request, position, assembled.bytes);
    else this.#arrived(pending, request, position, assembled.finish(assembled.bytes.buffer));
  }

  /** Where the rest of a batch goes that is one further part of a large value; undefined for any other batch: `receive` judges it when it is whole. */
  place(head: Uint8Array, length: number): FrameSink | undefined {
    if (head.length < CHUNK_HEADER_BYTES || head[4] !== OP.VALUE_CHUNK) return undefined;
    const view = new DataView(head.buffer, head.byteOffset, head.length);
    if (view.getUint32(0, true) !== length - 4) return undefined;
    const request = view.getUint32(5, true);
    const position = view.getUint32(9, true);
    const offset = Number(view.getBigUint64(21, true));
    const pending = this.#pending.get(request);
    const assembled = pending?.parts?.get(position);
    const octets = length - CHUNK_HEADER_BYTES;
    if (pending === undefined || assembled === undefined || BigInt(assembled.total) !== view.getBigUint64(13, true)) return undefined;
    if (offset !== assembled.at || offset < assembled.skip || octets > assembled.total - offset) return undefined;
    return {
      skip: CHUNK_HEADER_BYTES,
      into: assembled.bytes.subarray(offset - assembled.skip, offset - assembled.skip + octets),
      done: () => {
        // Given up meanwhile: what came lies where nobody looks.
        if (this.#pending.get(request) === pending) this.#partArrived(pending, request, position, assembled, octets);
      },
    };
  }

  /** Rejects what one task or actor call waits for. */
  failParent(parent: number, error: BulkheadError): void {
    for (const [request, pending] of this.#pending) if (pending.parent === parent) this.#fail(request, error);
    this.#streams.failParent(parent, error);
  }

  /** The channel is gone: everything pending rejects, and every later call throws the same error. */
  close(error: BulkheadError): void {
    if (this.#closed !== undefined) return;
    this.#closed = error;
    for (const request of this.#pending.keys()) this.#fail(request, error);
    this.#streams.disconnected(error);
  }
}

function idOf(ref: unknown, where: string): Uint8Array {
  const id = ObjectRef.idOf(ref);
  if (id === undefined) throw new BulkheadError('INVALID_ARGUMENT', `${where} takes ObjectRefs, what a remote call or put() returned; this is ${ref === null ? 'null' : `a ${typeof ref}`}`);
  return id;
}

function checkCount(n: number): void {
  if (n > MAX_REFS_PER_CALL) throw new BulkheadError('INVALID_ARGUMENT', `${n} refs in one call; at most ${MAX_REFS_PER_CALL}`);
}

function checkTimeout(ms: number): void {
  if (!Number.isSafeInteger(ms) || ms < 0 || ms >= 0x7fff_ffff) throw new BulkheadError('INVALID_ARGUMENT', `timeoutMs ${ms} must be a whole number of milliseconds from 0 to 2147483646`);
}

/** Class info travels as JSON: `{ digest, export, streams? }`. */
export function parseClassInfo(text: string): ClassInfo {
  let info: unknown;
  try {
    info = JSON.parse(text);
  } catch {
    // Falls through to the refusal.
  }
  const { digest, export: exportName, streams = [] } = (typeof info === 'object' && info !== null ? info : {}) as { digest?: unknown; export?: unknown; streams?: unknown };
  if (typeof digest !== 'string' || !/^[0-9a-f]{64}$/.test(digest) || typeof exportName !== 'string') throw new BulkheadError('INVALID_ARGUMENT', 'class info of an actor is malformed');
  if (!Array.isArray(streams) || !streams.every((name) => typeof name === 'string')) throw new BulkheadError('INVALID_ARGUMENT', 'class info of an actor is malformed');
  return { digest, exportName, streams };
}
