/**
 * One tenant's log on this node: append, group commit, checkpoints, recovery, reading.
 * Commit: 1. records are encoded into the batch in the making; 2. when no write is under way the batch is written and
 * fdatasync'ed while the next one collects; 3. then `durable` moves. Hashing runs beside the disk.
 * Must never: move `durable` before fdatasync returned; drop a record; go on after a failed write (the kernel may have
 * thrown the pages away, so trying again would lie); start on a file shorter than a signed checkpoint says.
 *
 * Files: `entries` (core/journal.ts); `index`, 40 bytes per 256 records (root of the bundle, offset of its first entry; can be rebuilt);
 * `state`, replaced atomically: the last signed checkpoint, where in `entries` it ends, frontier and tally there.
 */
import { randomBytes } from 'node:crypto';
import * as fs from 'node:fs';
import { join } from 'node:path';
import type { AuditLog, AuditRecord } from '../base/audit-record.ts';
import { BulkheadError, invariant } from '../base/errors.ts';
import { quote } from '../base/ids.ts';
import { AUDIT_HEADROOM_BYTES, MAX_AUDIT_COMMIT_BYTES, MAX_AUDIT_WAITERS } from '../base/limits.ts';
import type { Clock } from '../base/time.ts';
import { openCheckpoint, signCheckpoint, syncDirectory, writeDurably, type CheckpointSigner } from './checkpoint-signer.ts';
import {
  BATCH_HEADER_BYTES, completeBatch, ENTRY_PREFIX_BYTES, FILE_HEADER_BYTES, FILE_MAGIC, writeBatchHeader, type Checksum,
} from './core/journal.ts';
import { equalBytes, Frontier, HASH_BYTES, TILE_WIDTH } from './core/merkle.ts';
import { fromBase64, toBase64 } from './core/note.ts';
import { leafBound, RecordDecoder, RecordEncoder, RESTART_INTERVAL } from './core/record-codec.ts';
import { Tally, type TallyState } from './core/tally.ts';
import { diskFull, logFull, type DiskRoom } from './disk-room.ts';
import { saltedChecksum, sha256 } from './node-hash.ts';

/** The two calls on the path of every record, so that tests can let a disk fail. `done` is called in a later turn of the event loop, as Node's own are. */
export interface AuditDisk {
  write(fd: number, bytes: Uint8Array, offset: number, length: number, position: number, done: (error: Error | null, written: number) => void): void;
  fdatasync(fd: number, done: (error: Error | null) => void): void;
  /** Its writes are on the disk when they are done, given a descriptor opened with O_DSYNC: one call where two would wait for each other. */
  readonly syncsOnWrite?: boolean;
  /** The same in this turn, where writes sync; returns how many octets. Throws what the disk says. */
  writeNow?(fd: number, bytes: Uint8Array, offset: number, length: number, position: number): number;
  /** Makes the file longer, without taking place: a write inside a file syncs its octets, one that makes it longer the file's size too, in the file system's journal. */
  extend?(fd: number, size: number): void;
}

export const NODE_DISK: AuditDisk = { write: fs.write, fdatasync: fs.fdatasync, syncsOnWrite: true, writeNow: fs.writeSync, extend: fs.ftruncateSync };

export interface TenantLogOptions {
  readonly dir: string;
  /** '' for the cluster's log. */
  readonly tenant: string;
  readonly origin: string;
  readonly signer: CheckpointSigner;
  readonly cosigner: CheckpointSigner | undefined;
  /** Verifier keys that may have signed the checkpoint found on disk. */
  readonly trustedKeys: readonly string[];
  readonly clock: Clock;
  readonly disk: AuditDisk;
  /** Bytes of `entries` at which the tenant's decisions are refused, and what the disk has left for tenants. Undefined: the cluster's log, which nothing limits. */
  readonly room: { readonly quotaBytes: number; readonly disk: DiskRoom } | undefined;
  /** Whether nobody waits for this thread but who waits for this log; see `AuditStoreOptions.alone`. */
  readonly alone?: (() => boolean) | undefined;
}

/** The tree between two batches. */
interface TreeCut {
  readonly size: number;
  readonly bundleOffset: number;
  readonly frontier: readonly Uint8Array[];
  readonly rootHash: Uint8Array;
  /** Bytes of `index` that go with it. */
  readonly index: number;
}

/** A consistent cut: everything below `size` is on disk. */
interface Cut extends TreeCut {
  readonly offset: number;
  readonly tally: TallyState;
}

interface StateFile {
  readonly version: 1;
  readonly checkpoint: string;
  readonly offset: number;
  readonly bundleOffset: number;
  readonly frontier: readonly string[];
  readonly tally: TallyState;
}

const INDEX_ENTRY_BYTES = HASH_BYTES + 8;
const FIRST_BATCH_BYTES = 4096;
/** Appending hashes whenever so much waits, so that a large batch does not hold the event loop when it is committed. */
const HASH_AHEAD_BYTES = 16 * 1024;
/** A batch buffer larger than this is given back when the log falls idle: a node has thousands of logs. */
const KEPT_BATCH_BYTES = 64 * 1024;
const READ_BYTES = 256 * 1024;
/** By so much `entries` is longer than what is in it, until the log is closed. */
const ROOM_AHEAD_BYTES = 256 * 1024;
/** A batch that this thread writes itself is a few records, on a disk that was fast of late: handing it to another thread and back costs 70 µs. */
const OWN_WRITE_BYTES = 2048;
const OWN_WRITE_MS = 1;

interface Waiter {
  readonly seq: number;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

export class TenantLog implements AuditLog {
  readonly tenant: string;
  readonly origin: string;
  onDurable: ((durable: number, failure?: Error) => void) | undefined;

  readonly #options: TenantLogOptions;
  readonly #disk: AuditDisk;
  readonly #encoder = new RecordEncoder();
  readonly #entriesFd: number;
  /** Where batches are written; the same descriptor unless the disk syncs on write. */
  readonly #writeFd: number;
  readonly #indexFd: number;
  readonly #checksum: Checksum;
  readonly #frontier: Frontier;

  /** Sequence number of the next record. */
  #next: number;
  #durable: number;
  /** End of the last durable batch in `entries`. */
  #offset: number;
  /** Size of `entries`, where it was made longer than what is in it. */
  #extended = 0;
  #open: Uint8Array = new Uint8Array(0);
  #openUsed = BATCH_HEADER_BYTES;
  /** Where the batch in the making will begin in the file, and up to where it is hashed already. */
  #openBase: number;
  #openHashed = BATCH_HEADER_BYTES;
  #openTally = new Tally();
  /** Place in `entries` that the batch in the making may fill without asking what the record is. */
  #freeUntil = 0;
  readonly #ownIds: string;
  #spare: Uint8Array = new Uint8Array(0);
  /** How long the last writes took, ms: falls slowly and rises at once. */
  #writeMs = Infinity;
  #flight: Uint8Array | undefined;
  #flightUsed = 0;
  #flightHashed = 0;
  #flightEnd = 0;
  #flightTally = new Tally();
  #kicked = false;
  #tally: Tally;
  #failure: BulkheadError | undefined;
  /** No more appends. */
  #closing = false;
  /** No more anything: the files are shut. */
  #closed = false;
  /** Calls on the two files that Node has not answered; closing waits for them. */
  #activeCalls = 0;
  #callsDone: (() => void) | undefined;
  #waiters: Waiter[] = [];
  /** 0x00 ‖ leaf, for leaves too long to be hashed in place. */
  #leaf = new Uint8Array(0);

  /** Offset of the first entry of the bundle that is being filled. */
  #bundleOffset: number;
  /** Bundles whose index entry is in the file; the later ones are in `#indexTail`. */
  #indexFlushed: number;
  #indexTail: Uint8Array = new Uint8Array(INDEX_ENTRY_BYTES * 16);
  #indexTailBytes = 0;

  #checkpoint: string;
  #checkpointSize: number;
  #cosigned = false;
  #cutWanted: ((cut: Cut | Error) => void)[] = [];
  /** A cut at the end of the batch in flight, to be handed out when that is on disk. */
  #cutTaken: { readonly tree: TreeCut; readonly give: ((cut: Cut | Error) => void)[] } | undefined;
  #checkpointing: Promise<unknown> = Promise.resolve();

  /** Opens or creates the log in `options.dir`; synchronous, once per tenant. Throws UNAVAILABLE, naming the log, when it was tampered with or is damaged. */
  static open(options: TenantLogOptions): TenantLog {
    return new TenantLog(options);
  }

  private constructor(options: TenantLogOptions) {
    this.#options = options;
    this.#disk = options.disk;
    this.tenant = options.tenant;
    this.origin = options.origin;
    this.#ownIds = `/tenant/${options.tenant}/`;
    const { dir } = options;
    fs.mkdirSync(dir, { recursive: true, mode: 0o700 });
    this.#entriesFd = fs.openSync(join(dir, 'entries'), fs.constants.O_RDWR | fs.constants.O_CREAT, 0o600);
    this.#writeFd = options.disk.syncsOnWrite === true ? fs.openSync(join(dir, 'entries'), fs.constants.O_WRONLY | fs.constants.O_DSYNC) : this.#entriesFd;
    this.#indexFd = fs.openSync(join(dir, 'index'), fs.constants.O_RDWR | fs.constants.O_CREAT, 0o600);
    try {
      const salt = this.#readOrCreateHeader();
      this.#checksum = saltedChecksum(salt);
      const state = this.#readState();
      const checkpoint = this.#guard('its last checkpoint is not valid', () => openCheckpoint(state.checkpoint, options.trustedKeys));
      if (checkpoint.origin !== options.origin) this.#refuse(`its checkpoint is of another log, ${quote(checkpoint.origin)}`);
      this.#checkpoint = state.checkpoint;
      this.#checkpointSize = checkpoint.treeSize;

      const fileSize = fs.fstatSync(this.#entriesFd).size;
      if (fileSize < state.offset) this.#refuse(`it ends at byte ${fileSize}, but a signed checkpoint covers ${checkpoint.treeSize} records up to byte ${state.offset}: records are missing`);
      const frontier = this.#guard('its state does not fit its checkpoint', () => Frontier.restore(sha256, checkpoint.treeSize, state.frontier.map(fromBase64)));
      if (!equalBytes(frontier.root(), checkpoint.rootHash)) this.#refuse('its frontier does not hash to the root of its signed checkpoint');
      const bundles = Math.floor(checkpoint.treeSize / TILE_WIDTH);
      const indexed = fs.fstatSync(this.#indexFd).size >= bundles * INDEX_ENTRY_BYTES;
      this.#frontier = indexed ? frontier : new Frontier(sha256);
      this.#tally = indexed ? Tally.restore(state.tally) : new Tally();
      this.#offset = indexed ? state.offset : FILE_HEADER_BYTES;
      this.#bundleOffset = indexed ? state.bundleOffset : FILE_HEADER_BYTES + BATCH_HEADER_BYTES;
      this.#indexFlushed = indexed ? bundles : 0;
      fs.ftruncateSync(this.#indexFd, this.#indexFlushed * INDEX_ENTRY_BYTES);
      this.#recover(fileSize, checkpoint.treeSize, checkpoint.rootHash);
      this.#next = this.#durable = this.#frontier.size;
      this.#openBase = this.#offset;
    } catch (error) {
      if (this.#writeFd !== this.#entriesFd) fs.closeSync(this.#writeFd);
      fs.closeSync(this.#entriesFd);
      fs.closeSync(this.#indexFd);
      throw error;
    }
  }

  // --- opening -----------------------------------------------------------------------------------------------------

  #refuse(why: string, cause?: unknown): never {
    throw new BulkheadError('UNAVAILABLE', `the audit log ${this.origin} cannot be opened: ${why}. It was tampered with or damaged: keep its directory as evidence and restore it from a backup`, { cause });
  }

  #guard<T>(why: string, body: () => T): T {
    try {
      return body();
    } catch (cause) {
      return this.#refuse(why, cause);
    }
  }

  #readOrCreateHeader(): Uint8Array {
    const header = new Uint8Array(FILE_HEADER_BYTES);
    const got = fs.readSync(this.#entriesFd, header, 0, FILE_HEADER_BYTES, 0);
    const stateExists = fs.existsSync(join(this.#options.dir, 'state'));
    if (stateExists) {
      if (got < FILE_HEADER_BYTES || Buffer.from(header.buffer, 0, FILE_MAGIC.length).toString('latin1') !== FILE_MAGIC) this.#refuse('its entries file has no valid header');
      return header.subarray(FILE_MAGIC.length);
    }
    // Without a state there was never an acknowledged record: the state of the empty log is on disk before the first append.
    if (fs.fstatSync(this.#entriesFd).size > FILE_HEADER_BYTES) this.#refuse('it has entries but no state file');
    header.set(Buffer.from(FILE_MAGIC, 'latin1'));
    header.set(randomBytes(FILE_HEADER_BYTES - FILE_MAGIC.length), FILE_MAGIC.length);
    fs.writeSync(this.#entriesFd, header, 0, FILE_HEADER_BYTES, 0);
    fs.fsyncSync(this.#entriesFd);
    fs.fsyncSync(this.#indexFd);
    const empty = new Frontier(sha256);
    this.#writeStateSync(signCheckpoint({ origin: this.origin, treeSize: 0, rootHash: empty.root() }, this.#options.signer, undefined, this.#options.clock.nowMs()), {
      size: 0, offset: FILE_HEADER_BYTES, bundleOffset: FILE_HEADER_BYTES + BATCH_HEADER_BYTES, frontier: [], rootHash: empty.root(), tally: new Tally().state(), index: 0,
    });
    syncDirectory(join(this.#options.dir, '..'));
    return header.subarray(FILE_MAGIC.length);
  }

  #readState(): StateFile {
    return this.#guard('its state file is not readable', () => {
      const state = JSON.parse(fs.readFileSync(join(this.#options.dir, 'state'), 'utf8')) as StateFile;
      const offsets = [state.offset, state.bundleOffset].every((n) => Number.isSafeInteger(n) && n >= FILE_HEADER_BYTES);
      if (state.version !== 1 || typeof state.checkpoint !== 'string' || !offsets || !Array.isArray(state.frontier) || !Array.isArray(state.tally?.actions) || !Array.isArray(state.tally.events)) throw new Error('not a state file of version 1');
      return state;
    });
  }

  /** Reads the entries after the frontier, keeps complete batches, cuts a torn last one off. */
  #recover(fileSize: number, signedSize: number, signedRoot: Uint8Array): void {
    const decoder = new RecordDecoder();
    if (this.#offset < fileSize && this.#frontier.size % RESTART_INTERVAL !== 0) this.#warmUp(decoder);
    let window = new Uint8Array(0);
    let windowAt = 0;
    while (this.#offset < fileSize) {
      const wanted = Math.min(fileSize - this.#offset, MAX_AUDIT_COMMIT_BYTES + BATCH_HEADER_BYTES);
      if (windowAt + window.length < this.#offset + wanted) {
        window = this.#readSync(this.#offset, Math.min(fileSize - this.#offset, 2 * (MAX_AUDIT_COMMIT_BYTES + BATCH_HEADER_BYTES)));
        windowAt = this.#offset;
      }
      const at = this.#offset - windowAt;
      const batch = completeBatch(window, at, this.#checksum);
      if (batch === undefined) {
        this.#cutTorn(fileSize, signedSize);
        break;
      }
      const before = this.#frontier.size;
      this.#takeRecovered(window, at, batch.length, batch.entries, decoder);
      this.#offset += batch.length;
      // Checkpoints are cut between batches, so a batch across one is not the log's own.
      if (before < signedSize && this.#frontier.size > signedSize) this.#refuse(`no batch ends at the ${signedSize} records that its signed checkpoint covers`);
      if (this.#frontier.size === signedSize && !equalBytes(this.#frontier.root(), signedRoot)) this.#refuse(`its first ${signedSize} records do not hash to the root of its signed checkpoint`);
    }
    if (this.#frontier.size < signedSize) this.#refuse(`it holds ${this.#frontier.size} records, but a signed checkpoint covers ${signedSize}`);
  }

  #readSync(position: number, length: number): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(length);
    let got = 0;
    while (got < length) {
      const n = fs.readSync(this.#entriesFd, bytes, got, length - got, position + got);
      if (n === 0) break;
      got += n;
    }
    return bytes.subarray(0, got);
  }

  /** Decodes, without hashing, from the last fresh start of the dictionary up to the frontier. */
  #warmUp(decoder: RecordDecoder): void {
    const size = this.#frontier.size;
    let seq = size - (size % RESTART_INTERVAL);
    const bundle = seq / TILE_WIDTH;
    const from = bundle < this.#indexFlushed ? this.#indexOffsetSync(bundle) : this.#bundleOffset;
    if (!(from >= FILE_HEADER_BYTES && from < this.#offset)) this.#refuse('its index does not fit its entries');
    let at = from;
    let window = new Uint8Array(0);
    let windowAt = from;
    /** Octets [at, at + n) of the file, which must lie before the frontier. */
    const take = (n: number): Uint8Array => {
      if (at + n > this.#offset) this.#refuse('its entries do not end where its state says');
      if (at + n > windowAt + window.length) {
        window = this.#readSync(at, Math.min(this.#offset - at, Math.max(READ_BYTES, n)));
        windowAt = at;
      }
      const bytes = window.subarray(at - windowAt, at - windowAt + n);
      at += n;
      return bytes;
    };
    while (seq < size) {
      const prefix = take(ENTRY_PREFIX_BYTES);
      const length = (prefix[0] as number) | ((prefix[1] as number) << 8);
      if (length === 0) {
        take(BATCH_HEADER_BYTES - ENTRY_PREFIX_BYTES);
        continue;
      }
      const leaf = take(length);
      this.#guard(`record ${seq} is damaged`, () => decoder.decode(leaf, 0, length, seq));
      seq++;
    }
    if (at !== this.#offset) this.#refuse('its entries do not end where its state says');
  }

  #indexOffsetSync(bundle: number): number {
    const bytes = Buffer.alloc(8);
    fs.readSync(this.#indexFd, bytes, 0, 8, bundle * INDEX_ENTRY_BYTES + HASH_BYTES);
    return Number(bytes.readBigUInt64LE());
  }

  #takeRecovered(window: Uint8Array, at: number, length: number, entries: number, decoder: RecordDecoder): void {
    const end = at + length;
    const before = this.#frontier.size;
    let seq = before;
    let p = at + BATCH_HEADER_BYTES;
    while (p < end) {
      const n = p + ENTRY_PREFIX_BYTES <= end ? (window[p] as number) | ((window[p + 1] as number) << 8) : 0;
      const start = p + ENTRY_PREFIX_BYTES;
      if (n === 0 || start + n > end) this.#refuse(`a batch after record ${before} is malformed`);
      this.#guard(`record ${seq} is damaged`, () => this.#tally.add(decoder.decode(window, start, start + n, seq)));
      seq++;
      p = start + n;
    }
    this.#hash(window, at + BATCH_HEADER_BYTES, end, this.#offset - at);
    if (this.#frontier.size - before !== entries) this.#refuse(`a batch after record ${before} holds another number of records than it says`);
  }

  /** A broken batch may only be the last thing in the file, but for the room ahead: one write is under way at a time. */
  #cutTorn(fileSize: number, signedSize: number): void {
    if (this.#frontier.size < signedSize) this.#refuse(`the batch after record ${this.#frontier.size} is damaged, and a signed checkpoint covers ${signedSize} records`);
    const rest = fileSize - this.#offset;
    const tail = this.#readSync(this.#offset, rest > MAX_AUDIT_COMMIT_BYTES + BATCH_HEADER_BYTES + ROOM_AHEAD_BYTES ? 0 : rest);
    let later = tail.length !== rest;
    const zeros = tail.findLastIndex((octet) => octet !== 0) + 1;
    for (let p = 1; p < zeros && !later; p++) later = tail[p] === 0 && completeBatch(tail, p, this.#checksum) !== undefined;
    if (later) this.#refuse(`the batch after record ${this.#frontier.size} is damaged, and whole ones follow it`);
    fs.ftruncateSync(this.#entriesFd, this.#offset);
    fs.fsyncSync(this.#entriesFd);
  }

  // --- appending ---------------------------------------------------------------------------------------------------

  get durable(): number {
    return this.#durable;
  }

  get failure(): BulkheadError | undefined {
    return this.#failure;
  }

  append(record: AuditRecord): number {
    if (this.#failure !== undefined || this.#closing) throw this.#failure ?? new BulkheadError('UNAVAILABLE', 'the audit log is closed');
    const bound = leafBound(record) + ENTRY_PREFIX_BYTES;
    if (this.#openBase + this.#openUsed + bound > this.#freeUntil || this.#openUsed === BATCH_HEADER_BYTES) this.#findRoom(record, this.#openBase + this.#openUsed + bound);
    if (this.#openUsed + bound > this.#open.length) this.#grow(bound);
    const open = this.#open;
    const at = this.#openUsed;
    const seq = this.#next;
    const length = this.#encoder.encode(record, seq, open, at + ENTRY_PREFIX_BYTES);
    open[at] = length & 0xff;
    open[at + 1] = length >> 8;
    this.#openUsed = at + ENTRY_PREFIX_BYTES + length;
    this.#openTally.add(record);
    this.#next = seq + 1;
    if (this.#openUsed - this.#openHashed >= HASH_AHEAD_BYTES) this.#hashOpen();
    if (!this.#kicked && this.#flight === undefined) {
      this.#kicked = true;
      setImmediate(this.#kick);
    }
    return seq;
  }

  /**
   * Throws QUOTA_EXCEEDED or RESOURCE_EXHAUSTED when a record that would end at `end` may not be written. Who caused the volume stops first: the
   * tenant's own decisions. What has happened already, the operator's calls and, for half as long, calls about the log itself go on.
   */
  #findRoom(record: AuditRecord, end: number): void {
    const { room } = this.#options;
    if (room === undefined) {
      this.#freeUntil = Infinity;
      return;
    }
    const disk = room.disk;
    const left = disk.bytesAbove(1);
    // On a small disk no log may be larger than what is left for all others.
    const quota = Math.min(room.quotaBytes, Math.max(left, AUDIT_HEADROOM_BYTES));
    this.#freeUntil = Math.min(quota, this.#openBase + left);
    if (end <= this.#freeUntil) return;
    const headroom = this.#headroomOf(record);
    if (end > quota + AUDIT_HEADROOM_BYTES * headroom) throw logFull(this.origin, quota);
    if (end > this.#openBase + disk.bytesAbove(1 - headroom / 2)) throw diskFull(this.origin);
  }

  #headroomOf(record: AuditRecord): 0 | 0.5 | 1 {
    if (record.type === 'lifecycle') return 1;
    if (record.action.startsWith('audit.')) return record.principal.includes(this.#ownIds) || !record.principal.includes('/tenant/') ? 0.5 : 0;
    return record.principal.includes('/tenant/') ? 0 : 1;
  }

  #grow(bound: number): void {
    const wanted = this.#openUsed + bound;
    if (wanted > MAX_AUDIT_COMMIT_BYTES + BATCH_HEADER_BYTES) throw new BulkheadError('RESOURCE_EXHAUSTED', 'the audit log cannot keep up: its disk is slower than the calls; try again');
    const grown = new Uint8Array(Math.min(Math.max(this.#open.length * 2, FIRST_BATCH_BYTES, wanted), MAX_AUDIT_COMMIT_BYTES + BATCH_HEADER_BYTES));
    grown.set(this.#open.subarray(0, this.#openUsed));
    this.#open = grown;
  }

  readonly #kick = (): void => {
    this.#kicked = false;
    if (this.#flight !== undefined || this.#failure !== undefined || this.#openUsed === BATCH_HEADER_BYTES) return;
    if (this.#openUsed <= OWN_WRITE_BYTES && this.#writeMs < OWN_WRITE_MS && this.#disk.writeNow !== undefined && this.#options.alone?.() === true) return this.#writeNow();
    this.#submit();
    this.#hashFlight();
  };

  /** Hands the batch in the making to the disk. */
  #submit(): void {
    const batch = this.#board();
    this.#write(batch, 0, this.#flightUsed);
  }

  #writeNow(): void {
    const batch = this.#board();
    this.#hashFlight();
    const startMs = this.#options.clock.monotonicMs();
    try {
      for (let at = 0; at < this.#flightUsed; ) {
        const written = this.#disk.writeNow?.(this.#writeFd, batch, at, this.#flightUsed - at, this.#offset + at) ?? 0;
        if (written <= 0) throw new Error('the disk took nothing');
        at += written;
      }
    } catch (error) {
      return this.#fail(error as Error);
    }
    this.#took(startMs);
    this.#landed();
  }

  #took(startMs: number): void {
    const ms = this.#options.clock.monotonicMs() - startMs;
    this.#writeMs = ms > this.#writeMs || this.#writeMs === Infinity ? ms : this.#writeMs + (ms - this.#writeMs) / 8;
  }

  /** The batch in the making becomes the batch in flight. */
  #board(): Uint8Array {
    const batch = this.#open;
    const used = this.#openUsed;
    writeBatchHeader(batch, 0, { entries: this.#next - this.#durable, bytes: used - BATCH_HEADER_BYTES, checksum: this.#checksum(batch, BATCH_HEADER_BYTES, used) }, this.#checksum);
    this.#flight = batch;
    this.#flightUsed = used;
    this.#flightHashed = this.#openHashed;
    this.#flightEnd = this.#next;
    [this.#flightTally, this.#openTally] = [this.#openTally, this.#flightTally];
    this.#open = this.#spare;
    this.#spare = new Uint8Array(0);
    this.#openUsed = this.#openHashed = BATCH_HEADER_BYTES;
    this.#openBase = this.#offset + used;
    this.#options.room?.disk.took(used);
    this.#extend(this.#offset + used);
    return batch;
  }

  #extend(end: number): void {
    if (end <= this.#extended) return;
    this.#extended = end + ROOM_AHEAD_BYTES;
    try {
      this.#disk.extend?.(this.#writeFd, this.#extended);
    } catch {
      // What the disk has to say it says to the write.
    }
  }

  #write(batch: Uint8Array, from: number, to: number): void {
    this.#activeCalls++;
    const startMs = this.#options.clock.monotonicMs();
    this.#disk.write(this.#writeFd, batch, from, to - from, this.#offset + from, (error, written) => {
      this.#answered();
      this.#took(startMs);
      if (error !== null) return this.#fail(error);
      if (written <= 0) return this.#fail(new Error('the disk took nothing'));
      if (from + written < to) return this.#write(batch, from + written, to);
      if (this.#disk.syncsOnWrite === true) return this.#landed();
      this.#activeCalls++;
      this.#disk.fdatasync(this.#entriesFd, (failure) => {
        this.#answered();
        if (failure === null || failure === undefined) this.#landed();
        else this.#fail(failure);
      });
    });
  }

  #answered(): void {
    this.#activeCalls--;
    if (this.#activeCalls === 0) this.#callsDone?.();
  }

  /** Hashes what is left of the batch in flight; then the tree stands between two batches, the moment to take a cut. */
  #hashFlight(): void {
    if (this.#flight === undefined || this.#flightHashed === this.#flightUsed) return;
    this.#hash(this.#flight, this.#flightHashed, this.#flightUsed, this.#offset);
    this.#flightHashed = this.#flightUsed;
    if (this.#cutWanted.length > 0) this.#cutTaken = { tree: this.#treeCut(), give: this.#cutWanted.splice(0) };
  }

  #hashOpen(): void {
    this.#hashFlight();
    this.#hash(this.#open, this.#openHashed, this.#openUsed, this.#openBase);
    this.#openHashed = this.#openUsed;
  }

  /** Appends the entries in `bytes[from, to)` to the tree; `base` is the place in the file of `bytes[0]`. */
  #hash(bytes: Uint8Array, from: number, to: number, base: number): void {
    const frontier = this.#frontier;
    let at = from;
    while (at < to) {
      const length = (bytes[at] as number) | ((bytes[at + 1] as number) << 8);
      if (frontier.size % TILE_WIDTH === 0) this.#bundleOffset = base + at;
      const start = at + ENTRY_PREFIX_BYTES;
      // The high octet of a short length is the 0x00 that RFC 6962 puts before a leaf.
      if (length < 0x100) frontier.appendInput(bytes, start - 1, start + length);
      else {
        if (this.#leaf.length <= length) this.#leaf = new Uint8Array(length + 1);
        this.#leaf.set(bytes.subarray(start, start + length), 1);
        frontier.appendInput(this.#leaf, 0, length + 1);
      }
      at = start + length;
      if (frontier.size % TILE_WIDTH === 0) this.#indexBundle();
    }
  }

  #indexBundle(): void {
    if (this.#indexTailBytes + INDEX_ENTRY_BYTES > this.#indexTail.length) {
      const grown = new Uint8Array(this.#indexTail.length * 2);
      grown.set(this.#indexTail);
      this.#indexTail = grown;
    }
    this.#indexTail.set(this.#frontier.bundleRoot, this.#indexTailBytes);
    new DataView(this.#indexTail.buffer).setBigUint64(this.#indexTailBytes + HASH_BYTES, BigInt(this.#bundleOffset), true);
    this.#indexTailBytes += INDEX_ENTRY_BYTES;
  }

  /** The batch in flight is on disk: the next one starts first, then callers hear of it. */
  #landed(): void {
    const batch = this.#flight;
    // A log that failed meanwhile, its checkpoint not being writable, acknowledges nothing more.
    if (batch === undefined || this.#failure !== undefined) return;
    this.#durable = this.#flightEnd;
    this.#offset += this.#flightUsed;
    this.#tally.take(this.#flightTally);
    this.#flight = undefined;
    const taken = this.#cutTaken;
    this.#cutTaken = undefined;
    if (taken !== undefined) this.#giveCut(taken.tree, taken.give);
    const more = this.#openUsed > BATCH_HEADER_BYTES;
    if (!more && this.#cutWanted.length > 0) this.#giveCut(this.#treeCut(), this.#cutWanted.splice(0));
    if (more || batch.length <= KEPT_BATCH_BYTES) this.#spare = batch;
    if (more) this.#submit();
    else if (this.#open.length > KEPT_BATCH_BYTES) this.#open = new Uint8Array(0);
    try {
      this.#wake();
      this.onDurable?.(this.#durable);
    } finally {
      if (more) this.#hashFlight();
    }
  }

  #fail(cause: Error): void {
    if (this.#failure !== undefined) return;
    const code = (cause as NodeJS.ErrnoException).code;
    this.#failure = new BulkheadError('UNAVAILABLE', `the audit log cannot be written${code === 'ENOSPC' ? ': its disk is full; make room and restart the node' : '; see the node log, then restart the node'}`, { cause });
    for (const give of [...(this.#cutTaken?.give ?? []), ...this.#cutWanted.splice(0)]) give(this.#failure);
    this.#cutTaken = undefined;
    for (const w of this.#waiters.splice(0)) w.reject(this.#failure);
    this.onDurable?.(this.#durable, this.#failure);
  }

  #wake(): void {
    if (this.#waiters.length === 0) return;
    const waiting = this.#waiters;
    this.#waiters = waiting.filter((w) => w.seq >= this.#durable);
    for (const w of waiting) if (w.seq < this.#durable) w.resolve();
  }

  /** Resolves when record `seq` is on disk; rejects when the log fails or closes first. */
  whenDurable(seq: number): Promise<void> {
    if (seq < this.#durable) return Promise.resolve();
    if (this.#failure !== undefined || this.#closed) return Promise.reject(this.#failure ?? new BulkheadError('UNAVAILABLE', 'the audit log is closed'));
    if (this.#waiters.length >= MAX_AUDIT_WAITERS) return Promise.reject(new BulkheadError('RESOURCE_EXHAUSTED', 'too many callers wait for the audit log; try again'));
    return new Promise((resolve, reject) => this.#waiters.push({ seq, resolve, reject }));
  }

  // --- checkpoints -------------------------------------------------------------------------------------------------

  /** Whether durable records are not yet under a signed checkpoint. */
  get grew(): boolean {
    return this.#durable > this.#checkpointSize;
  }

  #treeCut(): TreeCut {
    const frontier = this.#frontier;
    return { size: frontier.size, bundleOffset: this.#bundleOffset, frontier: frontier.hashes(), rootHash: frontier.root(), index: this.#indexTailBytes };
  }

  #giveCut(tree: TreeCut, wanted: readonly ((cut: Cut) => void)[]): void {
    invariant(tree.size === this.#durable, 'a cut between two batches holds exactly the durable records');
    const cut: Cut = { ...tree, offset: this.#offset, tally: this.#tally.state() };
    for (const give of wanted) give(cut);
  }

  /** Everything on disk at the end of a batch: now when the log is idle, else with the next batch whose hashing ends. */
  #cut(): Promise<Cut> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    return new Promise((resolve, reject) => {
      const give = (cut: Cut | Error): void => (cut instanceof Error ? reject(cut) : resolve(cut));
      if (this.#flight === undefined && this.#openUsed === BATCH_HEADER_BYTES) this.#giveCut(this.#treeCut(), [give]);
      else this.#cutWanted.push(give);
    });
  }

  /** Signs all that is durable, puts it on disk and returns the note. With `cosign` the ML-DSA-44 cosignature stands beside the log's own. */
  checkpoint(cosign = true): Promise<string> {
    const run = this.#checkpointing.then(() => this.#sign(cosign));
    this.#checkpointing = run.catch(() => undefined);
    return run;
  }

  async #sign(cosign: boolean): Promise<string> {
    const { signer, cosigner, clock } = this.#options;
    if (this.#closed) throw new BulkheadError('UNAVAILABLE', 'the audit log is closed');
    const cosignedEnough = this.#cosigned || !cosign || cosigner === undefined;
    if (!this.grew && cosignedEnough) return this.#checkpoint;
    const cut = await this.#cut();
    const note = signCheckpoint({ origin: this.origin, treeSize: cut.size, rootHash: cut.rootHash }, signer, cosign ? cosigner : undefined, clock.nowMs());
    try {
      await this.#flushIndex(cut.index);
      await this.#writeState(note, cut);
    } catch (cause) {
      // Records that nobody can sign over are not kept as they should be: this is a dead disk like any other.
      this.#fail(cause as Error);
      throw cause;
    }
    this.#checkpoint = note;
    this.#checkpointSize = cut.size;
    this.#cosigned = cosign;
    return note;
  }

  async #flushIndex(bytes: number): Promise<void> {
    if (bytes === 0) return;
    const part = this.#indexTail.slice(0, bytes);
    await new Promise<void>((resolve, reject) => {
      fs.write(this.#indexFd, part, 0, bytes, this.#indexFlushed * INDEX_ENTRY_BYTES, (error, written) => {
        if (error !== null || written !== bytes) return reject(error ?? new BulkheadError('UNAVAILABLE', 'the index of the audit log was not written whole'));
        fs.fdatasync(this.#indexFd, (failure) => (failure === null ? resolve() : reject(failure)));
      });
    });
    this.#indexFlushed += bytes / INDEX_ENTRY_BYTES;
    this.#indexTail.copyWithin(0, bytes, this.#indexTailBytes);
    this.#indexTailBytes -= bytes;
  }

  #stateText(note: string, cut: Cut): string {
    const state: StateFile = { version: 1, checkpoint: note, offset: cut.offset, bundleOffset: cut.bundleOffset, frontier: cut.frontier.map(toBase64), tally: cut.tally };
    return JSON.stringify(state);
  }

  #writeStateSync(note: string, cut: Cut): void {
    writeDurably(this.#options.dir, 'state', this.#stateText(note, cut));
  }

  /** As `writeDurably`, without holding the event loop. The directory is not synced: an older state only covers less. */
  async #writeState(note: string, cut: Cut): Promise<void> {
    const temporary = join(this.#options.dir, '.state.new');
    const file = await fs.promises.open(temporary, 'w', 0o600);
    try {
      await file.writeFile(this.#stateText(note, cut));
      await file.datasync();
    } finally {
      await file.close();
    }
    await fs.promises.rename(temporary, join(this.#options.dir, 'state'));
  }

  /** Refuses further appends, commits and signs what was appended, waits for readers in the middle of a read, closes. */
  async close(): Promise<void> {
    if (this.#closing) return;
    this.#closing = true;
    try {
      if (this.#failure === undefined && this.#next > this.#durable) await this.whenDurable(this.#next - 1);
      if (this.#failure === undefined) await this.checkpoint(true);
    } finally {
      await this.#checkpointing;
      this.#closed = true;
      for (const w of this.#waiters.splice(0)) w.reject(new BulkheadError('UNAVAILABLE', 'the audit log is closed'));
      // A descriptor closed under a call could be another file by the time the call runs.
      if (this.#activeCalls > 0) await new Promise<void>((resolve) => (this.#callsDone = resolve));
      if (this.#failure === undefined && this.#extended > this.#offset) fs.ftruncateSync(this.#entriesFd, this.#offset);
      if (this.#writeFd !== this.#entriesFd) fs.closeSync(this.#writeFd);
      fs.closeSync(this.#entriesFd);
      fs.closeSync(this.#indexFd);
    }
  }

  // --- reading -----------------------------------------------------------------------------------------------------

  /** Bytes of the log on disk, its index and state included. */
  diskBytes(): number {
    const size = (file: string): number => {
      try {
        return fs.statSync(join(this.#options.dir, file)).size;
      } catch {
        return 0;
      }
    };
    return this.#offset + size('index') + size('state');
  }

  /** Verifier keys that sign this log. */
  get trustedKeys(): readonly string[] {
    return this.#options.trustedKeys;
  }

  tally(): TallyState {
    return this.#tally.state();
  }

  async #bundleOffsetOf(bundle: number): Promise<number> {
    const tail = bundle - this.#indexFlushed;
    if (tail >= 0) {
      const at = tail * INDEX_ENTRY_BYTES + HASH_BYTES;
      if (at < this.#indexTailBytes) return Number(new DataView(this.#indexTail.buffer).getBigUint64(at, true));
      return this.#bundleOffset;
    }
    const bytes = Buffer.alloc(8);
    if ((await this.#read(this.#indexFd, bytes, 0, bundle * INDEX_ENTRY_BYTES + HASH_BYTES)) !== 8) throw this.#unreadable(bundle * TILE_WIDTH);
    return Number(bytes.readBigUInt64LE());
  }

  /** Fills `bytes` from `from` as far as the file goes; returns how many octets came. */
  #read(fd: number, bytes: Buffer, from: number, position: number): Promise<number> {
    if (this.#closed) return Promise.reject(new BulkheadError('UNAVAILABLE', 'the audit log is closed'));
    this.#activeCalls++;
    return new Promise((resolve, reject) => {
      fs.read(fd, bytes, from, bytes.length - from, position, (error, got) => {
        this.#answered();
        if (error === null) resolve(got);
        else reject(error);
      });
    });
  }

  #unreadable(seq: number): BulkheadError {
    return new BulkheadError('UNAVAILABLE', `the audit log ${this.origin} cannot be read at record ${seq}: its files are damaged`);
  }

  /**
   * Entry bundles (C2SP tlog-tiles: u16 big-endian length, leaf) from bundle `firstBundle` up to record `size`; each holds 256
   * entries but the last. `size` must not exceed `durable`.
   */
  async *bundles(firstBundle: number, size: number): AsyncGenerator<Uint8Array, void, undefined> {
    invariant(size <= this.#durable, 'only durable records are read');
    let seq = firstBundle * TILE_WIDTH;
    if (seq >= size) return;
    let position = await this.#bundleOffsetOf(firstBundle);
    let window = Buffer.alloc(0);
    let at = 0;
    let bundle = Buffer.alloc(16 * 1024);
    let used = 0;
    const need = async (n: number): Promise<void> => {
      if (at + n <= window.length) return;
      const rest = window.length - at;
      const bytes = Buffer.allocUnsafe(Math.max(READ_BYTES, n));
      window.copy(bytes, 0, at);
      const got = await this.#read(this.#entriesFd, bytes, rest, position);
      position += got;
      window = bytes.subarray(0, rest + got);
      at = 0;
      if (n > window.length) throw this.#unreadable(seq);
    };
    while (seq < size) {
      await need(ENTRY_PREFIX_BYTES);
      const length = window.readUInt16LE(at);
      if (length === 0) {
        await need(BATCH_HEADER_BYTES);
        at += BATCH_HEADER_BYTES;
        continue;
      }
      await need(ENTRY_PREFIX_BYTES + length);
      if (used + ENTRY_PREFIX_BYTES + length > bundle.length) bundle = Buffer.concat([bundle], Math.max(bundle.length * 2, used + ENTRY_PREFIX_BYTES + length));
      bundle.writeUInt16BE(length, used);
      window.copy(bundle, used + ENTRY_PREFIX_BYTES, at + ENTRY_PREFIX_BYTES, at + ENTRY_PREFIX_BYTES + length);
      used += ENTRY_PREFIX_BYTES + length;
      at += ENTRY_PREFIX_BYTES + length;
      seq++;
      if (seq % TILE_WIDTH === 0 || seq === size) {
        yield Uint8Array.prototype.slice.call(bundle, 0, used);
        used = 0;
      }
    }
  }
}
