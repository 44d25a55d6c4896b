/**
 * The raylet's end of one jailed worker: its socket, directories, limits and death. What the worker says is hostile input: bounded,
 * and a malformed byte ends it with a typed reason, never with an exception in the raylet. The hot path (`send`, `onBatch`) makes no
 * promise, closure or object per batch.
 * Must never: be given to a second tenant; look into a batch of a slot; leave a process, group or directory behind.
 */
import type { ChildProcess } from 'node:child_process';
import { chmodSync, chownSync, existsSync, linkSync, lstatSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { constants } from 'node:os';
import { basename, join } from 'node:path';
import type { Socket } from 'node:net';
import { BulkheadError, isErrorCode, type ErrorCode } from '../base/errors.ts';
import { FrameReader, FrameWriter, HOST_OP } from '../base/frame.ts';
import { SESSION_PREFIX_BYTES, type WorkerId } from '../base/ids.ts';
import { MAX_BATCH_BYTES, MAX_ERROR_MESSAGE_CHARS, MAX_ISOLATES_PER_WORKER, MAX_OBJECT_BYTES, MAX_STACK_CHARS } from '../base/limits.ts';
import { EnvelopeReader, EnvelopeWriter } from './envelope.ts';
import type { Cgroup, CgroupLimits } from './jail/cgroup.ts';
import { readCgroupLayer, type Layer } from './jail/layers.ts';

/** Bytes that may wait for a worker before `send` reports back-pressure, and before the worker counts as stuck. */
const HIGH_WATER_BYTES = 4 * 2 ** 20;
const MAX_PENDING_BYTES = 256 * 2 ** 20;
/** What a worker printed itself (not the tenant's log) is kept for the operator, up to this. */
const MAX_OUTPUT_BYTES = 4_096;
const FILE_NAME = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/;
/** Sealed bytes that may be gone already and still raise a worker's limit, at least. */
const ADOPTED_SLACK_BYTES = 64 * 2 ** 20;
/** What a worker host may say of a failed slot; any other code would be a claim about somebody else. */
const SLOT_FAILURES: ReadonlySet<ErrorCode> = new Set(['OUT_OF_MEMORY', 'RESOURCE_EXHAUSTED', 'INTERNAL']);
const EXIT_GRACE_MS = 250;
/** As the supervisor of relayed slots holds it: a slot that lets more than this wait has failed. */
const MAX_SLOT_PENDING_BYTES = 64 * 2 ** 20;
/** Processor time between two probes that shows a worker at work, and how many probes one may leave unanswered that shows none. */
const WORKING_MICROS = 2_000;
const UNANSWERED_PROBES = 2;
/** What waits inside gVisor looks the same from here as what waits for a processor: only time tells. */
const UNANSWERED_SANDBOX_PROBES = 30;
const MONITOR_GRACE_MS = 2_000;
const REMOVE_RETRY_MS = 5;
const REMOVE_RETRIES = 400;

export type ExitReason = 'OUT_OF_MEMORY' | 'KILLED' | 'CRASHED' | 'TIMEOUT';

export interface WorkerExit {
  readonly reason: ExitReason;
  /** For the operator's log and, bounded and without host paths, the tenant's error. */
  readonly detail: string;
}

/** A channel of one slot: its batches, and what the host says of it, in order. */
interface DirectChannel {
  readonly socket: Socket;
  readonly writer: EnvelopeWriter;
  readonly envelopes: EnvelopeReader;
  closed: boolean;
  /** The host has said that the slot failed: told when all is read that it wrote. */
  failure: { readonly code: ErrorCode; readonly message: string } | undefined;
}

export interface WorkerParts {
  readonly id: WorkerId;
  readonly pid: number;
  readonly monitor: ChildProcess;
  readonly channel: Socket;
  /** Of a sandbox of gVisor: channels that slots may be given, each to one slot and never to a second. */
  readonly direct?: readonly Socket[];
  readonly stdout: Socket;
  readonly stderr: Socket;
  readonly cgroup: Cgroup;
  readonly directory: string;
  /** It has ended, and `onExit` is about to tell; called once. */
  readonly onEnded: (worker: WorkerProcess) => void;
  /** Removed after the worker's end; called once. */
  readonly onGone: (worker: WorkerProcess) => void;
}

export class WorkerProcess {
  readonly id: WorkerId;
  /** PID on the host of the process in the jail. */
  readonly pid: number;
  readonly objectsDir: string;
  readonly codeDir: string;
  readonly stagingDir: string;
  /** Read back from /proc before the worker took a tenant. */
  layers: readonly Layer[] = [];
  #slotsOpened = 0;

  onBatch: (slot: number, batch: Uint8Array) => void = () => undefined;
  onSlotFailed: (slot: number, code: ErrorCode, message: string) => void = () => undefined;
  onCodeFailed: (slot: number, codeNumber: number, message: string, stack: string) => void = () => undefined;
  onSlotStats: (slot: number, cpuMicros: number, heapBytes: number) => void = () => undefined;
  /** The worker reads again after `send` answered false. */
  onDrain: () => void = () => undefined;
  onExit: (exit: WorkerExit) => void = () => undefined;

  #tenant: string | undefined;
  readonly #directory: string;
  readonly #monitor: ChildProcess;
  readonly #channel: Socket;
  readonly #cgroup: Cgroup;
  readonly #writer: EnvelopeWriter;
  readonly #envelopes: EnvelopeReader;
  readonly #reader = new FrameReader();
  readonly #host = new FrameWriter(256);
  /** Sockets that no slot has had yet, by their number from 1 as both sides count them. */
  readonly #unused: Socket[];
  readonly #inGvisor: boolean;
  #directGiven = 0;
  /** Undefined: no slot here has a channel of its own. */
  #direct: Map<number, DirectChannel> | undefined;
  readonly #onEnded: (worker: WorkerProcess) => void;
  readonly #onGone: (worker: WorkerProcess) => void;
  #limits: CgroupLimits = { memoryBytes: 0, cpus: 0, pids: 0 };
  /** Sealed objects that this process wrote, by their place in the store. */
  readonly #adopted = new Map<string, number>();
  #adoptedBytes = 0;
  #adoptedAtSweep = ADOPTED_SLACK_BYTES;
  #adoptedFilesAtSweep = 8;
  #output = '';
  #killed: WorkerExit | undefined;
  #exitCode: number | undefined;
  #exited = false;
  #channelClosed = false;
  #gone = false;
  #ending = false;
  #blocked = false;
  #lastCpuMicros = 0;
  #probedMicros = 0;
  /** Probes since the last answer; -1: it has answered. */
  #unanswered = 0;
  #ready: { resolve: () => void; reject: (cause: BulkheadError) => void } | undefined;
  readonly ready: Promise<void>;
  /** Resolves when process, group and directory are gone. */
  readonly gone: Promise<void>;
  #resolveGone: () => void = () => undefined;
  #exit: WorkerExit | undefined;

  constructor(parts: WorkerParts) {
    this.id = parts.id;
    this.pid = parts.pid;
    this.#directory = parts.directory;
    this.objectsDir = join(parts.directory, 'objects');
    this.codeDir = join(parts.directory, 'code');
    this.stagingDir = join(parts.directory, 'staging');
    this.#monitor = parts.monitor;
    this.#channel = parts.channel;
    this.#cgroup = parts.cgroup;
    this.#onEnded = parts.onEnded;
    this.#onGone = parts.onGone;
    this.#writer = new EnvelopeWriter(parts.channel);
    this.#unused = [...(parts.direct ?? [])];
    this.#inGvisor = parts.direct !== undefined;
    for (const socket of this.#unused) socket.on('error', () => undefined);
    this.#envelopes = new EnvelopeReader((slot, batch) => this.#envelope(slot, batch));
    this.ready = new Promise((resolve, reject) => (this.#ready = { resolve, reject }));
    this.ready.catch(() => undefined);
    this.gone = new Promise((resolve) => (this.#resolveGone = resolve));
    parts.channel.on('data', (chunk: Buffer) => {
      const wrong = this.#envelopes.push(chunk);
      if (wrong !== undefined) this.#misbehaved(wrong);
    });
    parts.channel.on('drain', () => this.#drained());
    parts.channel.on('error', () => undefined);
    parts.channel.on('close', () => {
      this.#channelClosed = true;
      // A process without its channel is of no use. Most often it is dying and its exit tells why; it may have closed it on purpose.
      if (!this.#exited) setTimeout(() => this.#end('CRASHED', 'the worker closed its channel'), EXIT_GRACE_MS);
      this.#finish();
    });
    for (const stream of [parts.stdout, parts.stderr]) {
      stream.on('data', (chunk: Buffer) => {
        if (this.#output.length < MAX_OUTPUT_BYTES) this.#output += chunk.toString('latin1').slice(0, MAX_OUTPUT_BYTES - this.#output.length);
      });
      stream.on('error', () => undefined);
    }
    const exited = (code: number | null, signal: NodeJS.Signals | null): void => {
      if (this.#exited) return;
      this.#exited = true;
      this.#exitCode = code ?? (signal === null ? undefined : 128 + constants.signals[signal]);
      this.#finish();
    };
    parts.monitor.on('exit', exited);
    if (parts.monitor.exitCode !== null || parts.monitor.signalCode !== null) exited(parts.monitor.exitCode, parts.monitor.signalCode);
  }

  /** The one tenant of this process; undefined while it waits in the pool. */
  get tenant(): string | undefined {
    return this.#tenant;
  }

  /** It has served as many isolates as a process should: open no more, let the rest finish, and kill it. */
  get worn(): boolean {
    return this.#slotsOpened >= MAX_ISOLATES_PER_WORKER;
  }

  get limits(): CgroupLimits {
    return this.#limits;
  }

  /** What the worker host itself printed: for the operator only. */
  get output(): string {
    return this.#output;
  }

  get exited(): boolean {
    return this.#gone;
  }

  get exitReason(): WorkerExit | undefined {
    return this.#exit;
  }

  /** For the pool: binds the process to a tenant, once and for ever. `tenantCpus`: what the kernel must hold all workers of the tenant to; it is read back. */
  assign(tenant: string, limits: CgroupLimits, tenantCpus?: number): void {
    if (this.#tenant !== undefined) throw new BulkheadError('INTERNAL', 'a worker never serves a second tenant');
    this.#tenant = tenant;
    this.#limits = limits;
    this.#cgroup.join(tenant, limits);
    if (tenantCpus !== undefined) this.layers = this.layers.map((layer) => (layer.layer === 'cgroup' ? readCgroupLayer(this.pid, this.#cgroup, limits, tenantCpus) : layer));
  }

  /** New limits, from outside: when more slots share the process. */
  setLimits(limits: CgroupLimits): void {
    this.#limits = limits;
    this.#applyLimits();
  }

  #applyLimits(): void {
    // Pages of sealed objects stay charged to the group that wrote them, though they are the store's by now.
    this.#cgroup.setLimits({ ...this.#limits, memoryBytes: this.#limits.memoryBytes + this.#adoptedBytes });
  }

  // --- to the worker ------------------------------------------------------------------------------------------------

  /** Queues a batch for a slot. False: the worker is behind; pause until `onDrain`. After the worker's end it is dropped: `onExit` tells. */
  send(slot: number, batch: Uint8Array): boolean {
    if (this.#gone || this.#killed !== undefined) return true;
    if (batch.length === 0 || batch.length > MAX_BATCH_BYTES) throw new BulkheadError('INTERNAL', `a batch of ${batch.length} bytes for a worker`);
    if (this.#direct !== undefined && slot !== 0) {
      const direct = this.#direct.get(slot);
      if (direct !== undefined) return this.#sendDirect(slot, direct, batch);
    }
    this.#writer.send(slot, batch);
    const pending = this.#writer.pendingBytes;
    if (pending > MAX_PENDING_BYTES) this.#end('TIMEOUT', 'the worker does not read its channel');
    if (pending > HIGH_WATER_BYTES) this.#blocked = true;
    return !this.#blocked;
  }

  #sendDirect(slot: number, direct: DirectChannel, batch: Uint8Array): boolean {
    if (direct.closed || direct.failure !== undefined) return true;
    direct.writer.send(slot, batch);
    const pending = direct.writer.pendingBytes;
    if (pending > MAX_SLOT_PENDING_BYTES) {
      this.#host.begin(HOST_OP.CLOSE_SLOT).u32(slot).end();
      this.#sendHost();
      this.#slotFailed(slot, 'RESOURCE_EXHAUSTED', 'its process reads less than it is sent');
    }
    if (pending > HIGH_WATER_BYTES) this.#blocked = true;
    return !this.#blocked;
  }

  /** Sends now what would leave at the end of this turn. */
  flush(): void {
    this.#writer.flush();
    if (this.#direct !== undefined) for (const { writer } of this.#direct.values()) writer.flush();
  }

  #drained(): void {
    if (!this.#blocked || this.#writer.pendingBytes > HIGH_WATER_BYTES / 2) return;
    if (this.#direct !== undefined) for (const { writer, closed } of this.#direct.values()) if (!closed && writer.pendingBytes > HIGH_WATER_BYTES / 2) return;
    this.#blocked = false;
    this.onDrain();
  }

  /** Stops reading from the worker: it then blocks, and a slot that goes on flooding fails inside. */
  pauseReading(): void {
    this.#channel.pause();
    if (this.#direct !== undefined) for (const { socket } of this.#direct.values()) socket.pause();
  }

  resumeReading(): void {
    this.#channel.resume();
    if (this.#direct !== undefined) for (const { socket } of this.#direct.values()) socket.resume();
  }

  #sendHost(): void {
    this.send(0, this.#host.take());
  }

  /** What must be there before the slot's next batch goes the way that the batch goes. */
  #sendHostOf(slot: number): void {
    const direct = this.#direct?.get(slot);
    const frame = this.#host.take();
    if (direct === undefined) this.send(0, frame);
    else if (!this.#gone && this.#killed === undefined && !direct.closed) direct.writer.send(0, frame);
  }

  #openDirect(slot: number, socket: Socket): void {
    const direct: DirectChannel = {
      socket, writer: new EnvelopeWriter(socket), closed: false, failure: undefined,
      envelopes: new EnvelopeReader((from, batch) => {
        if (from === slot) this.#envelope(slot, batch);
        else this.#misbehaved('a slot spoke for another one');
      }),
    };
    socket.on('data', (chunk: Buffer) => {
      const wrong = direct.envelopes.push(chunk);
      if (wrong !== undefined) this.#misbehaved(wrong);
    });
    socket.on('drain', () => this.#drained());
    socket.on('close', () => {
      direct.closed = true;
      this.#tellFailure(slot, direct);
      // Whatever waited for it waits for nothing.
      this.#drained();
      this.#finish();
    });
    this.#direct ??= new Map();
    this.#direct.set(slot, direct);
  }

  /** A slot has failed, as its host or its channel says: what it wrote before that comes first. */
  #slotFailed(slot: number, code: ErrorCode, message: string): void {
    const direct = this.#direct?.get(slot);
    if (direct === undefined) return this.onSlotFailed(slot, code, message);
    if (direct.failure !== undefined) return;
    direct.failure = { code, message };
    if (direct.closed) return this.#tellFailure(slot, direct);
    setTimeout(() => direct.socket.destroy(), EXIT_GRACE_MS);
  }

  #tellFailure(slot: number, direct: DirectChannel): void {
    if (direct.failure === undefined || this.#direct?.get(slot) !== direct) return;
    this.#direct.delete(slot);
    this.onSlotFailed(slot, direct.failure.code, direct.failure.message);
  }

  openSlot(slot: number, options: { readonly memoryMiB: number; readonly sessionPrefix: Uint8Array }): void {
    if (options.sessionPrefix.length !== SESSION_PREFIX_BYTES) throw new BulkheadError('INTERNAL', 'a session prefix has 20 octets');
    this.#slotsOpened++;
    this.#host.begin(HOST_OP.OPEN_SLOT).u32(slot).u32(options.memoryMiB).raw(options.sessionPrefix);
    const own = this.#unused.shift();
    if (own !== undefined) this.#host.u8(++this.#directGiven);
    this.#host.end();
    this.#sendHost();
    if (own !== undefined) this.#openDirect(slot, own);
  }

  /** Code that lies as `fileName` in `codeDir` already (see `linkCode`). */
  loadCode(slot: number, codeNumber: number, digest: Uint8Array, fileName: string): void {
    if (!FILE_NAME.test(fileName) || digest.length !== 32) throw new BulkheadError('INTERNAL', 'code has a plain file name and a digest of 32 octets');
    this.#host.begin(HOST_OP.LOAD_CODE).u32(slot).u32(codeNumber).raw(digest).str(fileName).end();
    this.#sendHostOf(slot);
  }

  /** Shows a code file of the raylet to this worker, by a hard link. */
  linkCode(hostPath: string, fileName: string): void {
    this.#link(hostPath, this.codeDir, fileName);
  }

  /**
   * Gives a sealed object's file to a slot as attachment: a hard link into the worker's own objects directory, so nothing is copied
   * here. `hostPath` must be on the same file system as the pool's `runDir` and readable by others (0644).
   */
  attach(slot: number, attachment: number, hostPath: string, size: number): void {
    const fileName = basename(hostPath);
    this.#link(hostPath, this.objectsDir, fileName);
    this.#host.begin(HOST_OP.ATTACH).u32(slot).u32(attachment).str(fileName).u64(size).end();
    this.#sendHostOf(slot);
  }

  #link(hostPath: string, directory: string, fileName: string): void {
    if (!FILE_NAME.test(fileName)) throw new BulkheadError('INTERNAL', 'a file for a worker has a plain name');
    if (this.#gone) return;
    try {
      linkSync(hostPath, join(directory, fileName));
    } catch (thrown) {
      const code = (thrown as NodeJS.ErrnoException).code;
      if (code === 'EEXIST' || (code === 'ENOENT' && this.#gone)) return;
      throw new BulkheadError(code === 'ENOENT' ? 'OBJECT_LOST' : 'UNAVAILABLE', 'a file could not be given to the worker', { cause: thrown });
    }
  }

  /** Takes an attached object's file away again, when the object is freed; what the guest has read stays with it. */
  detach(fileName: string): void {
    if (FILE_NAME.test(fileName)) rmSync(join(this.objectsDir, fileName), { force: true });
  }

  closeSlot(slot: number): void {
    this.#host.begin(HOST_OP.CLOSE_SLOT).u32(slot).end();
    this.#sendHost();
    const direct = this.#direct?.get(slot);
    if (direct === undefined) return;
    this.#direct?.delete(slot);
    direct.envelopes.stop();
    direct.socket.destroy();
  }

  /**
   * Moves staged file `n` of a slot to `destination` (same file system), as the seal of an object. The worker's claim is checked: a
   * regular file, one link, the announced size. Throws INVALID_ARGUMENT when it is not so: the caller then kills the worker.
   */
  takeStaged(slot: number, n: number, size: number, destination: string): void {
    const path = join(this.stagingDir, `${slot}-${n}`);
    try {
      const stat = lstatSync(path);
      if (!stat.isFile() || stat.nlink !== 1 || stat.size !== size || size > MAX_OBJECT_BYTES) throw new BulkheadError('INVALID_ARGUMENT', 'a staged file is not what was announced');
      renameSync(path, destination);
      // The file was the worker's to chmod; from here on it is sealed, and ours.
      if (process.getuid?.() === 0) chownSync(destination, 0, 0);
      chmodSync(destination, 0o444);
    } catch (thrown) {
      throw thrown instanceof BulkheadError ? thrown : new BulkheadError('INVALID_ARGUMENT', 'a staged file is not there', { cause: thrown });
    }
    this.#adopted.set(destination, size);
    this.#adoptedBytes += size;
    this.#sweepAdopted();
    this.#applyLimits();
  }

  /** Forgets sealed objects that are gone: without it, a tenant could raise its own limit by staging and freeing. */
  #sweepAdopted(): void {
    if (this.#adopted.size < 16 && this.#adoptedBytes < 2 * this.#adoptedAtSweep) return;
    if (this.#adopted.size < 2 * this.#adoptedFilesAtSweep && this.#adoptedBytes < 2 * this.#adoptedAtSweep) return;
    for (const [path, size] of this.#adopted) {
      if (existsSync(path)) continue;
      this.#adopted.delete(path);
      this.#adoptedBytes -= size;
    }
    this.#adoptedAtSweep = Math.max(ADOPTED_SLACK_BYTES, this.#adoptedBytes);
    this.#adoptedFilesAtSweep = Math.max(8, this.#adopted.size);
  }

  // --- from the worker ----------------------------------------------------------------------------------------------

  #envelope(slot: number, batch: Buffer): void {
    if (slot !== 0) {
      if (this.#tenant === undefined) return this.#misbehaved('a batch before there is a tenant');
      try {
        this.onBatch(slot, batch);
      } catch (thrown) {
        // What the raylet's decoder refuses is the worker's fault; anything else is ours.
        if (!(thrown instanceof BulkheadError) || thrown.code !== 'INVALID_ARGUMENT') throw thrown;
        this.#misbehaved(thrown.safeMessage);
      }
      return;
    }
    try {
      const reader = this.#reader.reset(batch);
      while (reader.next()) this.#hostFrame(reader);
    } catch (thrown) {
      this.#misbehaved(thrown instanceof BulkheadError ? thrown.safeMessage : 'a frame could not be read');
    }
  }

  #hostFrame(reader: FrameReader): void {
    switch (reader.op) {
      case HOST_OP.READY: {
        reader.u32();
        reader.finish();
        this.#ready?.resolve();
        this.#ready = undefined;
        return;
      }
      case HOST_OP.SLOT_FAILED: {
        const slot = reader.u32();
        const code = reader.str();
        const message = reader.text(4 * MAX_ERROR_MESSAGE_CHARS);
        reader.finish();
        this.#slotFailed(slot, isErrorCode(code) && SLOT_FAILURES.has(code) ? code : 'INTERNAL', message);
        return;
      }
      case HOST_OP.CODE_FAILED: {
        const slot = reader.u32();
        const codeNumber = reader.u32();
        const message = reader.text(4 * MAX_ERROR_MESSAGE_CHARS);
        const stack = reader.text(4 * MAX_STACK_CHARS);
        reader.finish();
        this.onCodeFailed(slot, codeNumber, message, stack);
        return;
      }
      case HOST_OP.SLOT_STATS: {
        const slot = reader.u32();
        const cpuMicros = reader.u64();
        const heapBytes = reader.u64();
        reader.finish();
        this.onSlotStats(slot, cpuMicros, heapBytes);
        return;
      }
      case HOST_OP.PONG:
        reader.finish();
        this.#unanswered = -1;
        return;
      default:
        throw new BulkheadError('INVALID_ARGUMENT', `unknown op 0x${reader.op.toString(16)}`);
    }
  }

  /**
   * To be called about once a second while the worker has work in hand. One that neither uses the processor nor answers is stuck for good, and ended: V8 parks a
   * thread that cannot go on, and that may be the host's own.
   */
  probe(): void {
    const micros = this.cpuMicros();
    const works = micros - this.#probedMicros >= WORKING_MICROS;
    this.#probedMicros = micros;
    if (works || this.#unanswered < 0) this.#unanswered = 0;
    else if (this.#unanswered >= (this.#inGvisor ? UNANSWERED_SANDBOX_PROBES : UNANSWERED_PROBES)) return this.#stuck();
    if (works) return;
    this.#unanswered++;
    this.#host.begin(HOST_OP.PING).end();
    this.#sendHost();
  }

  #stuck(): void {
    let state: string | undefined;
    try {
      const stat = readFileSync(`/proc/${this.pid}/stat`, 'latin1');
      state = stat[stat.lastIndexOf(')') + 2];
    } catch {
      // It is gone: its exit tells.
    }
    if (state === 'T' || state === 't') this.#end('CRASHED', 'it was stopped from outside');
    else if (this.#inGvisor) this.#end('CRASHED', `its sandbox has not answered for ${UNANSWERED_SANDBOX_PROBES} s`);
    else if (state === 'S') this.#end('OUT_OF_MEMORY', 'an isolate stopped in the middle of a call, as V8 does when it has no memory left');
    // Else it waits for a processor or a disk: a busy machine, and no fault of its own.
  }

  #misbehaved(what: string): void {
    this.#end('CRASHED', `the worker broke the protocol: ${what}`);
  }

  // --- the end ------------------------------------------------------------------------------------------------------

  /** SIGKILL to everything in the jail. `onExit` follows, with this reason. */
  kill(reason: ExitReason, detail = ''): void {
    this.#end(reason, detail);
  }

  #end(reason: ExitReason, detail: string): void {
    if (this.#killed !== undefined || this.#gone) return;
    this.#killed = { reason, detail };
    this.#envelopes.stop();
    if (this.#direct !== undefined) for (const { envelopes } of this.#direct.values()) envelopes.stop();
    try {
      // PID 1 of the jail: its end is the end of all. The number cannot be another's while the monitor, its parent, has not reaped it.
      if (!this.#exited) process.kill(this.pid, 'SIGKILL');
      this.#cgroup.killAll();
    } catch {
      // It ended a moment ago.
    }
    // The monitor ends after it has reaped the jail; if it does not, its own death takes the jail along.
    setTimeout(() => {
      if (!this.#exited) this.#monitor.kill('SIGKILL');
    }, MONITOR_GRACE_MS).unref();
    this.#channel.destroy();
    this.#destroyDirect();
  }

  #finish(): void {
    if (!this.#exited || this.#gone) return;
    // What the worker wrote before its end is read first.
    if (!this.#channelClosed) {
      this.#channel.resume();
      setTimeout(() => this.#channel.destroy(), EXIT_GRACE_MS);
    }
    if (this.#direct !== undefined) {
      for (const { socket, closed } of this.#direct.values()) if (!closed) socket.resume();
    }
    if (!this.#channelClosed || this.#directOpen()) {
      if (!this.#ending) {
        this.#ending = true;
        setTimeout(() => this.#destroyDirect(), EXIT_GRACE_MS);
      }
      return;
    }
    this.#gone = true;
    this.#destroyDirect();
    const exit = this.#reasonOfExit();
    this.#exit = exit;
    this.#ready?.reject(new BulkheadError('UNAVAILABLE', `a worker ended before it was ready: ${exit.detail}`, { cause: this.#output }));
    this.#ready = undefined;
    this.#removeGroup(REMOVE_RETRIES);
    this.#onEnded(this);
    try {
      this.onExit(exit);
    } finally {
      try {
        rmSync(this.#directory, { recursive: true, force: true });
      } finally {
        this.#onGone(this);
      }
    }
  }

  #directOpen(): boolean {
    if (this.#direct !== undefined) for (const { closed } of this.#direct.values()) if (!closed) return true;
    return false;
  }

  #destroyDirect(): void {
    for (const socket of this.#unused) socket.destroy();
    if (this.#direct !== undefined) for (const { socket } of this.#direct.values()) socket.destroy();
  }

  #reasonOfExit(): WorkerExit {
    let oomKills = 0;
    try {
      this.#lastCpuMicros = this.#cgroup.cpuMicros();
      oomKills = this.#cgroup.oomKills();
    } catch {
      // No group: nothing to tell.
    }
    if (oomKills > 0) return { reason: 'OUT_OF_MEMORY', detail: `the worker exceeded its memory of ${this.#limits.memoryBytes} bytes` };
    if (this.#killed !== undefined) return this.#killed;
    const code = this.#exitCode;
    if (code === 73) return { reason: 'OUT_OF_MEMORY', detail: 'an isolate of the worker took all its memory' };
    if (code === 70 || code === 71 || code === 72) return { reason: 'CRASHED', detail: 'the worker host gave up' };
    if (code === 128 + 31) return { reason: 'CRASHED', detail: 'the worker made a system call that the filter forbids' };
    if (code !== undefined && code > 128) return { reason: 'CRASHED', detail: `the worker died of signal ${code - 128}` };
    return { reason: 'CRASHED', detail: `the worker exited with code ${code ?? '?'}` };
  }

  #removeGroup(triesLeft: number): void {
    // The kernel needs a moment after the last process ended.
    if (this.#cgroup.remove() || triesLeft === 0) this.#resolveGone();
    else setTimeout(() => this.#removeGroup(triesLeft - 1), REMOVE_RETRY_MS);
  }

  /** CPU time of the whole jail so far, µs. */
  cpuMicros(): number {
    try {
      if (!this.#gone) this.#lastCpuMicros = this.#cgroup.cpuMicros();
    } catch {
      // It ended a moment ago: the last value stands.
    }
    return this.#lastCpuMicros;
  }

  /** Memory of the whole jail now, bytes, sealed objects included while they live. */
  memoryBytes(): number {
    try {
      return this.#gone ? 0 : this.#cgroup.memoryBytes();
    } catch {
      return 0;
    }
  }
}
