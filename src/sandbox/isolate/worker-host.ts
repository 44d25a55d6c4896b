/**
 * The program inside the jail: one V8 isolate per slot, and a pipe between each and the raylet. Bundled into one file and run by the
 * jail's node; descriptor 3 is its only way out. It moves batches as bytes and never decodes a tenant's payload.
 * It must never: touch a guest object (only bytes, strings and numbers cross), let guest code of one slot hold up another by running it on the
 * host's own thread, or take its first slot before the run-time filter holds all of its threads.
 */
import { randomBytes } from 'node:crypto';
import { closeSync, fstatSync, openSync, read, readFileSync, readSync, writeFileSync, writeSync } from 'node:fs';
import { Socket } from 'node:net';
import type IsolatedVm from 'isolated-vm';
import { FrameReader, FrameWriter, HOST_OP } from '../../base/frame.ts';
import { MAX_BATCH_BYTES, MAX_CODE_BYTES, MAX_ERROR_MESSAGE_CHARS, MAX_OBJECT_BYTES, MAX_STACK_CHARS } from '../../base/limits.ts';
import { SESSION_PREFIX_BYTES } from '../../base/ids.ts';
import { EnvelopeReader, EnvelopeWriter } from '../envelope.ts';
import { bridgeSource } from './bridge.ts';

const EMIT = { FRAMES: 0, STAGED_FILE: 1, SET_TIMER: 2, CLEAR_TIMER: 3, BROKEN: 4 } as const;
/** Bytes that may wait for the raylet before a slot that adds more has failed: the guest floods, or the raylet has paused it for long. */
const MAX_PENDING_BYTES = 64 * 2 ** 20;
const MAX_TIMERS_PER_SLOT = 10_000;
const MAX_TIMER_MS = 2 ** 31 - 1;
/** Batches that wait for a busy isolate are joined into one call, up to this size. */
const MAX_DELIVER_BYTES = 4 * 2 ** 20;
const SYNC_READ_BYTES = 2 ** 20;
const OUT_OF_MEMORY = /memory limit|allocation failed|out of memory/i;
const FILE_NAME = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/;
/** Size of the room that waits for the first slot: what a task gets that asks for nothing. */
const SPARE_MEMORY_MIB = 64;
const SPARE_DELAY_MS = 20;
const STATS_EVERY_MS = 1_000;
/**
 * A slot that has the process to itself and has been quick this many times is entered on the host's own thread: two thread switches less a call. A run that
 * takes long all the same holds up nobody else, and the raylet's clock is outside; after it the slot has to prove itself again.
 */
const QUICK_RUNS = 8;
const QUICK_MS = 2;
const INLINE_BYTES = 4_096;
/** Read by the raylet (worker-process.ts). */
const EXIT = { DONE: 0, PROTOCOL: 70, CATASTROPHE: 71, NO_FILTER: 72, OUT_OF_MEMORY: 73 } as const;

type Ivm = typeof IsolatedVm;

function loadAddon(path: string): unknown {
  const holder = { exports: {} };
  process.dlopen(holder, path);
  return holder.exports;
}

/**
 * libc's `_exit`: `process.exit` would run destructors that join the threads of isolates, and a thread that V8 has parked for ever
 * after running out of memory would keep the process.
 */
let leave: (code: number) => void = (code) => process.exit(code);

function die(code: number, message: string): never {
  try {
    writeSync(2, `worker host: ${message}\n`);
  } catch {
    // Nobody listens.
  }
  leave(code);
  throw new Error(message);
}

// --- the run-time filter --------------------------------------------------------------------------------------------

interface Koffi {
  struct(name: string, members: Record<string, string>): unknown;
  load(path: null): { func(declaration: string): (...args: unknown[]) => number | bigint };
}

/** Gives up, in all threads and for ever, the system calls that only start-up needs (see jail/seccomp.ts). */
function installFilter(file: string): void {
  const filter = readFileSync(file);
  const koffi = loadAddon('/app/koffi.node') as Koffi;
  koffi.struct('sock_fprog', { len: 'uint16', filter: 'const void *' });
  const libc = koffi.load(null);
  const prctl = libc.func('int prctl(int, unsigned long, unsigned long, unsigned long, unsigned long)');
  const exit = libc.func('void _exit(int)');
  leave = (code) => void exit(code);
  const syscall = libc.func('long syscall(long, unsigned long, unsigned long, const sock_fprog *)');
  const PR_SET_NO_NEW_PRIVS = 38;
  const SECCOMP = process.arch === 'x64' ? 317 : 277;
  const SECCOMP_SET_MODE_FILTER = 1;
  const SECCOMP_FILTER_FLAG_TSYNC = 1;
  if (Number(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) !== 0) die(EXIT.NO_FILTER, 'no_new_privs cannot be set');
  const answer = syscall(SECCOMP, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, { len: filter.length / 8, filter });
  if (Number(answer) !== 0) die(EXIT.NO_FILTER, `the run-time filter was refused (${answer})`);
}

// --- slots ----------------------------------------------------------------------------------------------------------

type Work =
  | { readonly kind: 'batch'; readonly parts: Buffer[]; bytes: number }
  | { readonly kind: 'attach'; readonly attachment: number; readonly file: string; readonly size: number }
  | { readonly kind: 'load'; readonly codeNumber: number; readonly file: string }
  | { readonly kind: 'timer'; readonly id: number };

function boundedText(value: unknown, limit: number): string {
  return typeof value === 'string' ? value.slice(0, limit) : '';
}

/** Message of an error that isolated-vm carried over; it is a host error by then, made of strings. */
function messageOf(thrown: unknown): string {
  return thrown instanceof Error ? boundedText(thrown.message, MAX_ERROR_MESSAGE_CHARS) : 'the isolate failed';
}

interface ReadyRoom {
  readonly context: IsolatedVm.Context;
  readonly boot: IsolatedVm.Reference<(send: unknown, sendAndWait: unknown, config: string) => object>;
}

/** An isolate with the prelude compiled and nothing of a slot in it yet. One is kept ready, so that opening a slot need not wait for V8. */
class Room {
  readonly isolate: IsolatedVm.Isolate;
  readonly memoryMiB: number;
  readonly ready: Promise<ReadyRoom>;
  onCatastrophe: (message: string) => void = () => die(EXIT.CATASTROPHE, 'V8 has lost control over an empty isolate');

  constructor(host: Host, memoryMiB: number) {
    this.memoryMiB = memoryMiB;
    this.isolate = new host.ivm.Isolate({ memoryLimit: Math.max(8, memoryMiB), onCatastrophicError: (message) => this.onCatastrophe(message) });
    this.ready = this.#prepare(host);
    this.ready.catch(() => undefined);
  }

  async #prepare(host: Host): Promise<ReadyRoom> {
    const context = await this.isolate.createContext();
    const cachedData = host.preludeCache;
    const script = await this.isolate.compileScript(host.prelude, { filename: 'bulkhead:prelude', ...(cachedData === undefined ? { produceCachedData: true } : { cachedData }) });
    if (cachedData === undefined) host.preludeCache = (script as { cachedData?: IsolatedVm.ExternalCopy<ArrayBuffer> }).cachedData;
    return { context, boot: (await script.run(context, { reference: true, release: true })) as ReadyRoom['boot'] };
  }
}

class Slot {
  readonly #host: Host;
  readonly number: number;
  readonly #isolate: IsolatedVm.Isolate;
  readonly #memoryMiB: number;
  #context: IsolatedVm.Context | undefined;
  #deliver: IsolatedVm.Reference<(batch: ArrayBuffer, unused?: undefined, onHostThread?: boolean) => void> | undefined;
  #attach: IsolatedVm.Reference<(attachment: number, bytes: ArrayBuffer) => void> | undefined;
  #fireTimer: IsolatedVm.Reference<(id: number) => void> | undefined;
  #load: IsolatedVm.Reference<(codeNumber: number, factory: unknown) => void> | undefined;
  readonly #work: Work[] = [];
  readonly #timers = new Map<number, NodeJS.Timeout>();
  #busy = true;
  #closed = false;
  #statsAtMs = 0;
  #quickRuns = 0;
  #startedMs = 0;
  /** Guest code is on this thread's stack. */
  #inline = false;
  readonly #done = (): void => this.#finished();
  readonly #failed = (thrown: unknown): void => this.#threw(thrown);
  readonly #rejected = (thrown: unknown): void => this.#entryRejected(thrown);
  #broken = false;

  constructor(host: Host, number: number, memoryMiB: number, sessionPrefix: string) {
    this.#host = host;
    this.number = number;
    this.#memoryMiB = memoryMiB;
    const room = host.takeRoom(memoryMiB);
    room.onCatastrophe = (message) => this.#catastrophe(message);
    this.#isolate = room.isolate;
    this.#boot(room, sessionPrefix).then(
      () => {
        this.#busy = false;
        this.#next();
      },
      this.#failed,
    );
  }

  /** V8 has given up on the isolate in a way that ends the process: say which slot it was, as far as the socket takes it at once. */
  #catastrophe(message: string): never {
    const outOfMemory = /memory/i.test(message);
    this.#host.slotFailed(this.number, outOfMemory ? 'OUT_OF_MEMORY' : 'INTERNAL', outOfMemory ? `the isolate exceeded its memory of ${this.#memoryMiB} MiB` : 'the isolate failed');
    this.#host.flush();
    return die(outOfMemory ? EXIT.OUT_OF_MEMORY : EXIT.CATASTROPHE, 'V8 has lost control over an isolate');
  }

  async #boot(room: Room, sessionPrefix: string): Promise<void> {
    const ready = await room.ready;
    this.#context = ready.context;
    const emitted = (kind: unknown, n: unknown, bytes: unknown): void => this.#emitted(kind, n, bytes);
    const send = new this.#host.ivm.Callback(emitted, { ignored: true });
    const sendAndWait = new this.#host.ivm.Callback(emitted, { sync: true });
    const config = JSON.stringify({ slot: this.number, sessionPrefix, memoryMiB: this.#memoryMiB, seed: randomBytes(32).toString('hex') });
    const installed = (await ready.boot.apply(undefined, [send, sendAndWait, config], { result: { reference: true } })) as IsolatedVm.Reference<Record<string, never>>;
    ready.boot.release();
    const get = (name: string): Promise<never> => installed.get(name, { reference: true }) as Promise<never>;
    [this.#deliver, this.#attach, this.#fireTimer, this.#load] = await Promise.all([get('deliver'), get('attach'), get('fireTimer'), get('load')]);
    installed.release();
  }

  push(work: Work): void {
    if (this.#closed) return;
    const last = this.#work[this.#work.length - 1];
    if (work.kind === 'batch' && last?.kind === 'batch' && last.bytes + work.bytes <= MAX_DELIVER_BYTES) {
      last.parts.push(...work.parts);
      last.bytes += work.bytes;
    } else this.#work.push(work);
    if (!this.#busy) this.#next();
  }

  #next(): void {
    const work = this.#work.shift();
    if (work === undefined || this.#closed) return;
    this.#busy = true;
    try {
      if (work.kind === 'batch') this.#runDeliver(work.parts, work.bytes);
      else if (work.kind === 'timer') this.#fireTimer?.apply(undefined, [work.id]).then(this.#done, this.#rejected);
      else if (work.kind === 'load') this.#runLoad(work.codeNumber, work.file).then(this.#done, this.#failed);
      else this.#runAttach(work.attachment, work.file, work.size).then(this.#done, this.#failed);
    } catch (thrown) {
      this.#threw(thrown);
    }
  }

  #runDeliver(parts: readonly Buffer[], bytes: number): void {
    const batch = new ArrayBuffer(bytes);
    const view = new Uint8Array(batch);
    let at = 0;
    for (const part of parts) {
      view.set(part, at);
      at += part.length;
    }
    this.#startedMs = performance.now();
    if (this.#quickRuns >= QUICK_RUNS && bytes <= INLINE_BYTES && this.#host.slotCount === 1) this.#runInline(batch);
    else this.#deliver?.apply(undefined, [this.#moved(batch)]).then(this.#done, this.#rejected);
  }

  #runInline(batch: ArrayBuffer): void {
    let failure: { readonly thrown: unknown } | undefined;
    this.#inline = true;
    try {
      this.#deliver?.applySync(undefined, [this.#moved(batch), undefined, true]);
    } catch (thrown) {
      failure = { thrown };
    }
    this.#inline = false;
    // Failed in the middle: what could not be disposed of under the guest's feet goes now.
    if (this.#closed && !this.#isolate.isDisposed) this.#isolate.dispose();
    this.#host.flush();
    if (failure === undefined) this.#finished();
    else this.#entryRejected(failure.thrown);
  }

  /** The buffer's memory itself goes into the isolate. */
  #moved(buffer: ArrayBuffer): IsolatedVm.Copy<ArrayBuffer> {
    return new this.#host.ivm.ExternalCopy(buffer, { transferOut: true }).copyInto({ release: true, transferIn: true });
  }

  async #runAttach(attachment: number, file: string, size: number): Promise<void> {
    const bytes = await readWhole(`/objects/${file}`, size);
    await this.#attach?.apply(undefined, [attachment, this.#moved(bytes)]);
  }

  async #runLoad(codeNumber: number, file: string): Promise<void> {
    const source = Buffer.from(await readWhole(`/code/${file}`, undefined)).toString('utf8');
    let factory: IsolatedVm.Reference<unknown>;
    try {
      const script = await this.#isolate.compileScript(`(function(){${source}\n;return __bulkhead_exports;})`, { filename: `bulkhead:code/${file}` });
      factory = (await script.run(this.#context as IsolatedVm.Context, { reference: true, release: true })) as IsolatedVm.Reference<unknown>;
    } catch (thrown) {
      if (this.#isolate.isDisposed) throw thrown;
      this.#host.codeFailed(this.number, codeNumber, messageOf(thrown), thrown instanceof Error ? boundedText(thrown.stack, MAX_STACK_CHARS) : '');
      return;
    }
    try {
      await this.#load?.apply(undefined, [codeNumber, factory.derefInto({ release: true })]);
    } catch (thrown) {
      if (this.#broken || this.#isolate.isDisposed || OUT_OF_MEMORY.test(messageOf(thrown))) throw thrown;
    }
  }

  #finished(): void {
    if (this.#closed) return;
    this.#busy = false;
    if (this.#startedMs > 0) {
      this.#quickRuns = performance.now() - this.#startedMs < QUICK_MS ? this.#quickRuns + 1 : 0;
      this.#startedMs = 0;
    }
    if (this.#work.length > 0) this.#next();
    else this.#stats();
  }

  #stats(): void {
    const now = performance.now();
    if (now - this.#statsAtMs < STATS_EVERY_MS || this.#closed) return;
    this.#statsAtMs = now;
    this.#host.stats(this.number, Number(this.#isolate.cpuTime / 1_000n), this.#isolate.getHeapStatisticsSync().used_heap_size);
  }

  #sendFrames(bytes: ArrayBuffer): void {
    if (bytes.byteLength === 0) return;
    if (bytes.byteLength > MAX_BATCH_BYTES) return this.fail('RESOURCE_EXHAUSTED', `a batch of ${bytes.byteLength} bytes exceeds the limit of ${MAX_BATCH_BYTES}`);
    if (this.#host.pendingBytes + bytes.byteLength > MAX_PENDING_BYTES) return this.fail('RESOURCE_EXHAUSTED', 'the isolate sends more than is read');
    this.#host.send(this.number, new Uint8Array(bytes));
  }

  /** The guest's only call out. Its arguments come from a frozen prelude, and are checked as if they did not. */
  #emitted(kind: unknown, n: unknown, bytes: unknown): void {
    if (this.#closed) return;
    if (!(bytes instanceof ArrayBuffer) && bytes !== undefined) return this.fail('INTERNAL', 'an emit without bytes');
    if (kind === EMIT.FRAMES && bytes !== undefined) return this.#sendFrames(bytes);
    if (kind === EMIT.BROKEN) {
      this.#broken = true;
      return;
    }
    if (typeof n !== 'number' || !Number.isInteger(n) || n < 0 || n > 0xffff_ffff) return this.fail('INTERNAL', 'an emit without a number');
    if (kind === EMIT.STAGED_FILE && bytes !== undefined) {
      try {
        // O_EXCL: a number is used once. The file is complete before the frame that names it leaves, since both go through this thread in order.
        writeFileSync(`/staging/${this.number}-${n}`, new Uint8Array(bytes), { flag: 'wx', mode: 0o644 });
      } catch (thrown) {
        this.fail('RESOURCE_EXHAUSTED', `a large result could not be staged (${String((thrown as NodeJS.ErrnoException).code)})`);
      }
      return;
    }
    if (kind === EMIT.CLEAR_TIMER) {
      clearTimeout(this.#timers.get(n));
      this.#timers.delete(n);
      return;
    }
    if (kind === EMIT.SET_TIMER && bytes?.byteLength === 4) {
      if (this.#timers.size >= MAX_TIMERS_PER_SLOT) return this.fail('RESOURCE_EXHAUSTED', `more than ${MAX_TIMERS_PER_SLOT} timers`);
      const delayMs = Math.min(new DataView(bytes).getUint32(0, true), MAX_TIMER_MS);
      clearTimeout(this.#timers.get(n));
      this.#timers.set(n, setTimeout(() => this.#timerDue(n), delayMs));
      return;
    }
    this.fail('INTERNAL', 'an emit of an unknown kind');
  }

  #timerDue(id: number): void {
    this.#timers.delete(id);
    this.push({ kind: 'timer', id });
  }

  /**
   * An entry into the guest rejects for two reasons: the prelude itself threw (it said so before, by BROKEN), or tenant code left a promise
   * rejected that nobody handles, which isolated-vm throws at whoever entered last. The second is the tenant's own affair: the slot goes on.
   */
  #entryRejected(thrown: unknown): void {
    if (this.#broken || this.#isolate.isDisposed || OUT_OF_MEMORY.test(messageOf(thrown))) this.#threw(thrown);
    else this.#finished();
  }

  #threw(thrown: unknown): void {
    if (this.#closed) return;
    const message = messageOf(thrown);
    const outOfMemory = OUT_OF_MEMORY.test(message);
    this.fail(outOfMemory ? 'OUT_OF_MEMORY' : 'INTERNAL', outOfMemory ? `the isolate exceeded its memory of ${this.#memoryMiB} MiB` : message);
  }

  fail(code: string, message: string): void {
    if (this.#closed) return;
    this.#host.slotFailed(this.number, code, message);
    this.close();
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#host.forget(this.number);
    for (const timer of this.#timers.values()) clearTimeout(timer);
    this.#timers.clear();
    this.#work.length = 0;
    // Stops guest code wherever it is, unless it sits in one native call: then only the raylet's kill does.
    if (!this.#isolate.isDisposed && !this.#inline) this.#isolate.dispose();
  }
}

/** A file as its own ArrayBuffer. Small ones at once, large ones on the thread pool so that other slots go on. */
function readWhole(path: string, expected: number | undefined): Promise<ArrayBuffer> {
  return new Promise((resolve, reject) => {
    const fd = openSync(path, 'r');
    const finish = (failure: unknown, bytes?: ArrayBuffer): void => {
      closeSync(fd);
      if (bytes === undefined) reject(failure as Error);
      else resolve(bytes);
    };
    try {
      const size = fstatSync(fd).size;
      if (expected === undefined ? size > MAX_CODE_BYTES : size !== expected || size > MAX_OBJECT_BYTES) throw new Error('a file has not the size that was announced');
      const buffer = new ArrayBuffer(size);
      const view = new Uint8Array(buffer);
      let at = 0;
      if (size <= SYNC_READ_BYTES) {
        while (at < size) {
          const n = readSync(fd, view, at, size - at, at);
          if (n === 0) throw new Error('a file ended early');
          at += n;
        }
        return finish(undefined, buffer);
      }
      const more = (): void => {
        read(fd, view, at, Math.min(size - at, 2 ** 30), at, (failure, n) => {
          if (failure !== null || n === 0) return finish(failure ?? new Error('a file ended early'));
          at += n;
          if (at === size) finish(undefined, buffer);
          else more();
        });
      };
      more();
    } catch (thrown) {
      finish(thrown);
    }
  });
}

// --- the host -------------------------------------------------------------------------------------------------------

class Host {
  readonly ivm: Ivm;
  readonly prelude: string;
  preludeCache: IsolatedVm.ExternalCopy<ArrayBuffer> | undefined;
  #spare: Room | undefined;
  #spareTimer: NodeJS.Timeout | undefined;
  readonly #slots = new Map<number, Slot>();
  readonly #reader = new FrameReader();
  readonly #frames = new FrameWriter(1_024);
  readonly #writer: EnvelopeWriter;

  constructor(socket: Socket, ivm: Ivm, prelude: string) {
    this.ivm = ivm;
    this.prelude = bridgeSource(prelude);
    this.#spare = new Room(this, SPARE_MEMORY_MIB);
    this.#writer = new EnvelopeWriter(socket);
    const envelopes = new EnvelopeReader((slot, batch) => this.#envelope(slot, batch));
    socket.on('data', (chunk: Buffer) => {
      const wrong = envelopes.push(chunk);
      if (wrong !== undefined) die(EXIT.PROTOCOL, wrong);
    });
    // The raylet is gone or wants no more: nothing is left to do.
    socket.on('end', () => leave(EXIT.DONE));
    socket.on('error', () => leave(EXIT.DONE));
    this.#frames.begin(HOST_OP.READY).u32(process.pid).end();
    this.#sendHostFrame();
    this.#writer.flush();
  }

  get pendingBytes(): number {
    return this.#writer.pendingBytes;
  }

  get slotCount(): number {
    return this.#slots.size;
  }

  takeRoom(memoryMiB: number): Room {
    let room = this.#spare;
    this.#spare = undefined;
    if (room === undefined || room.memoryMiB !== memoryMiB) {
      room?.isolate.dispose();
      room = new Room(this, memoryMiB);
    }
    // The next slot will most likely be of the same size; a burst of openings does not pay for a spare each time.
    clearTimeout(this.#spareTimer);
    this.#spareTimer = setTimeout(() => {
      this.#spare ??= new Room(this, memoryMiB);
    }, SPARE_DELAY_MS);
    return room;
  }

  send(slot: number, batch: Uint8Array): void {
    this.#writer.send(slot, batch);
  }

  flush(): void {
    this.#writer.flush();
  }

  #sendHostFrame(): void {
    this.#writer.send(0, this.#frames.take());
  }

  slotFailed(slot: number, code: string, message: string): void {
    this.#frames.begin(HOST_OP.SLOT_FAILED).u32(slot).str(code).text(message).end();
    this.#sendHostFrame();
  }

  codeFailed(slot: number, codeNumber: number, message: string, stack: string): void {
    this.#frames.begin(HOST_OP.CODE_FAILED).u32(slot).u32(codeNumber).text(message).text(stack).end();
    this.#sendHostFrame();
  }

  stats(slot: number, cpuMicros: number, heapBytes: number): void {
    this.#frames.begin(HOST_OP.SLOT_STATS).u32(slot).u64(cpuMicros).u64(heapBytes).end();
    this.#sendHostFrame();
  }

  forget(slot: number): void {
    this.#slots.delete(slot);
  }

  #envelope(slot: number, batch: Buffer): void {
    if (slot !== 0) {
      // A slot that failed a moment ago: the raylet knows by now, or will.
      this.#slots.get(slot)?.push({ kind: 'batch', parts: [batch], bytes: batch.length });
      return;
    }
    const reader = this.#reader.reset(batch);
    while (reader.next()) this.#hostFrame(reader);
  }

  #hostFrame(reader: FrameReader): void {
    const slot = reader.op === HOST_OP.PING ? 0 : reader.u32();
    switch (reader.op) {
      case HOST_OP.OPEN_SLOT: {
        const memoryMiB = reader.u32();
        const sessionPrefix = Buffer.from(reader.raw(SESSION_PREFIX_BYTES)).toString('hex');
        reader.finish();
        if (slot === 0 || this.#slots.has(slot)) die(EXIT.PROTOCOL, 'a slot was opened twice');
        this.#slots.set(slot, new Slot(this, slot, memoryMiB, sessionPrefix));
        return;
      }
      case HOST_OP.LOAD_CODE: {
        const codeNumber = reader.u32();
        reader.raw(32);
        const file = reader.str();
        reader.finish();
        if (!FILE_NAME.test(file)) die(EXIT.PROTOCOL, 'a code file has a bad name');
        this.#slots.get(slot)?.push({ kind: 'load', codeNumber, file });
        return;
      }
      case HOST_OP.ATTACH: {
        const attachment = reader.u32();
        const file = reader.str();
        const size = reader.u64();
        reader.finish();
        if (!FILE_NAME.test(file)) die(EXIT.PROTOCOL, 'an object file has a bad name');
        this.#slots.get(slot)?.push({ kind: 'attach', attachment, file, size });
        return;
      }
      case HOST_OP.CLOSE_SLOT:
        reader.finish();
        this.#slots.get(slot)?.close();
        return;
      case HOST_OP.PING:
        reader.finish();
        this.#frames.begin(HOST_OP.PONG).end();
        return this.#sendHostFrame();
      default:
        die(EXIT.PROTOCOL, `unknown op 0x${reader.op.toString(16)}`);
    }
  }
}

async function main(): Promise<void> {
  process.on('uncaughtException', (thrown) => die(EXIT.CATASTROPHE, thrown.message));
  const { ivm } = loadAddon('/app/isolated-vm.node') as { ivm: Ivm };
  const prelude = readFileSync('/app/prelude.js', 'utf8');
  const socket = new Socket({ fd: 3, readable: true, writable: true });
  // Starts the threads of V8 and isolated-vm while start-up calls are still allowed.
  const warmUp = new ivm.Isolate({ memoryLimit: 8 });
  await warmUp.createContext();
  warmUp.dispose();
  installFilter('/app/run-time.bpf');
  randomBytes(32);
  new Host(socket, ivm, prelude);
}

void main();
