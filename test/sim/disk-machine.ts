/**
 * A disk of the simulation, and an audit log on it: the core of src/audit (journal, record codec, Merkle tree) with the commit rule of
 * `TenantLog`. Writes are in the page cache until fsync; a crash keeps any of their sectors and loses the others. Must never: show a
 * record as durable before its batch is synced; start on less than a checkpoint covers.
 */
import type { AuditLog, AuditRecord } from '../../src/base/audit-record.ts';
import { BulkheadError } from '../../src/base/errors.ts';
import { BATCH_HEADER_BYTES, completeBatch, ENTRY_PREFIX_BYTES, FILE_HEADER_BYTES, writeBatchHeader } from '../../src/audit/core/journal.ts';
import { consistencyProof, equalBytes, Frontier, leafHash, nodeHash, rangeHash, verifyConsistency } from '../../src/audit/core/merkle.ts';
import { leafBound, RecordDecoder, RecordEncoder } from '../../src/audit/core/record-codec.ts';
import { saltedChecksum, sha256 } from '../../src/audit/node-hash.ts';

const SECTOR_BYTES = 64;

/** One file. */
export class SimDisk {
  #durable: Uint8Array = new Uint8Array(0);
  #cached: { readonly at: number; readonly bytes: Uint8Array }[] = [];
  /** Whether the crash before this start tore or lost a write. */
  torn = false;

  /** What a process reads: the cache over the platter. */
  read(): Uint8Array {
    return this.#over(this.#cached);
  }

  write(bytes: Uint8Array, at: number): void {
    this.#cached.push({ at, bytes: bytes.slice() });
  }

  sync(): void {
    this.#durable = this.#over(this.#cached);
    this.#cached = [];
  }

  truncate(length: number): void {
    this.sync();
    this.#durable = this.#durable.slice(0, length);
  }

  /** The machine loses power: of what was not synced any sectors are there. */
  crash(random: () => number): void {
    const kept: { at: number; bytes: Uint8Array }[] = [];
    const everything = random() < 0.3;
    const nothing = !everything && random() < 0.3;
    this.torn = this.#cached.length > 0 && !everything;
    for (const { at, bytes } of this.#cached) {
      for (let from = 0; from < bytes.length; from += SECTOR_BYTES) {
        if (everything || (!nothing && random() < 0.6)) kept.push({ at: at + from, bytes: bytes.slice(from, from + SECTOR_BYTES) });
      }
    }
    this.#durable = this.#over(kept);
    this.#cached = [];
  }

  #over(writes: readonly { readonly at: number; readonly bytes: Uint8Array }[]): Uint8Array {
    const end = writes.reduce((most, w) => Math.max(most, w.at + w.bytes.length), this.#durable.length);
    const all = new Uint8Array(end);
    all.set(this.#durable);
    for (const { at, bytes } of writes) all.set(bytes, at);
    return all;
  }
}

export interface SimCheckpoint {
  readonly treeSize: number;
  readonly rootHash: Uint8Array;
  readonly offset: number;
}

/** What outlives the process: the files of one log, and the model it is held against. */
export class LogFiles {
  readonly entries = new SimDisk();
  /** Replaced atomically, after the entries that it covers are synced. */
  checkpoint: SimCheckpoint = { treeSize: 0, rootHash: new Frontier(sha256).root(), offset: FILE_HEADER_BYTES };
  /** The model: every record that was ever acknowledged as appended and not lost in a crash, in order. */
  records: AuditRecord[] = [];
  /** How many of them are known to be on disk for ever. */
  durable = 0;
  /** The disk takes nothing more for now. */
  full = false;
  readonly checksum = saltedChecksum(Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8));

  constructor() {
    this.entries.write(new Uint8Array(FILE_HEADER_BYTES), 0);
    this.entries.sync();
  }
}

/** What canaries change about a log. */
export interface LogBugs {
  readonly durableBeforeSync?: boolean;
  /** A torn last batch takes the whole one before it along. */
  readonly cutsTooMuch?: boolean;
  /** Each so many-th record is not written. */
  readonly losesEvery?: number;
}

export class SimLog implements AuditLog {
  readonly files: LogFiles;
  readonly #bugs: LogBugs;
  readonly #encoder = new RecordEncoder();
  #frontier = new Frontier(sha256);
  readonly #leaves: Uint8Array[] = [];
  /** Perfect subtrees of them, by level: they never change. */
  readonly #inner: Uint8Array[][] = [];
  #next = 0;
  #durable = 0;
  #offset = FILE_HEADER_BYTES;
  #open: { readonly record: AuditRecord; readonly leaf: Uint8Array }[] = [];
  #flight: { readonly bytes: Uint8Array; readonly end: number } | undefined = undefined;
  #asked = 0;
  failure: Error | undefined = undefined;
  onDurable: ((durable: number, failure?: Error) => void) | undefined = undefined;
  /** Called when one is not taken. */
  onRefused: (() => void) | undefined = undefined;
  /** Called with every record that is taken. */
  onAppend: ((record: AuditRecord) => void) | undefined = undefined;

  /** Opens the log and recovers it, as `TenantLog` does. Throws what must not be: an acknowledged record is missing, or the roots differ. */
  constructor(files: LogFiles, bugs: LogBugs) {
    this.files = files;
    this.#bugs = bugs;
    const bytes = files.entries.read();
    const decoder = new RecordDecoder();
    const ends: number[] = [];
    const recovered: AuditRecord[] = [];
    for (let at = this.#offset; at < bytes.length; ) {
      const batch = completeBatch(bytes, at, files.checksum);
      if (batch === undefined) {
        if (bugs.cutsTooMuch === true && ends.length > 0 && recovered.length > 0) {
          recovered.length = ends.pop() as number;
          this.#leaves.length = recovered.length;
        }
        files.entries.truncate(at);
        break;
      }
      ends.push(recovered.length);
      const end = at + batch.length;
      for (let p = at + BATCH_HEADER_BYTES; p < end; ) {
        const length = (bytes[p] as number) | ((bytes[p + 1] as number) << 8);
        const start = p + ENTRY_PREFIX_BYTES;
        recovered.push(decoder.decode(bytes, start, start + length, recovered.length));
        this.#leaves.push(leafHash(sha256, bytes.subarray(start, start + length)));
        p = start + length;
      }
      at = this.#offset = end;
    }
    if (recovered.length < files.durable) throw new Error(`audit: ${files.durable} records were durable and ${recovered.length} are there after the crash`);
    recovered.forEach((record, i) => {
      if (JSON.stringify(record) !== JSON.stringify(files.records[i])) throw new Error(`audit: record ${i} is another one after the crash: ${JSON.stringify(record)} and not ${JSON.stringify(files.records[i])}`);
    });
    for (const leaf of this.#leaves) this.#frontier.appendLeafHash(leaf);
    const { treeSize, rootHash } = files.checkpoint;
    if (recovered.length < treeSize) throw new Error(`audit: a checkpoint covers ${treeSize} records, ${recovered.length} are there`);
    if (!equalBytes(this.#rootOf(treeSize), rootHash)) throw new Error(`audit: the first ${treeSize} records do not hash to their checkpoint`);
    files.records = recovered;
    files.durable = this.#next = this.#durable = recovered.length;
  }

  get durable(): number {
    return this.#durable;
  }

  get size(): number {
    return this.#next;
  }

  get idle(): boolean {
    return this.#flight === undefined && this.#open.length === 0;
  }

  append(record: AuditRecord): number {
    // As TenantLog: decisions of tenants are refused first, what has happened already has headroom.
    const refused = this.failure ?? (this.files.full && record.type === 'decision' ? new BulkheadError('RESOURCE_EXHAUSTED', 'the disk of the audit log is full') : undefined);
    if (refused !== undefined) {
      this.onRefused?.();
      throw refused;
    }
    this.onAppend?.(record);
    this.#asked++;
    if (this.#bugs.losesEvery !== undefined && this.#asked % this.#bugs.losesEvery === 0) return this.#next - 1;
    const leaf = new Uint8Array(leafBound(record));
    const length = this.#encoder.encode(record, this.#next, leaf, 0);
    this.#open.push({ record: { ...record }, leaf: leaf.slice(0, length) });
    this.files.records.push({ ...record });
    return this.#next++;
  }

  /** The disk goes on: a batch is handed to it, or the one in flight is synced. `fails`: the sync is answered by an error. */
  work(fails: boolean): void {
    if (this.failure !== undefined) return;
    if (this.#flight === undefined) {
      if (this.#open.length === 0) return;
      const size = this.#open.reduce((n, { leaf }) => n + ENTRY_PREFIX_BYTES + leaf.length, BATCH_HEADER_BYTES);
      const bytes = new Uint8Array(size);
      let at = BATCH_HEADER_BYTES;
      for (const { leaf } of this.#open) {
        bytes[at] = leaf.length & 0xff;
        bytes[at + 1] = leaf.length >> 8;
        bytes.set(leaf, at + ENTRY_PREFIX_BYTES);
        at += ENTRY_PREFIX_BYTES + leaf.length;
        const hash = leafHash(sha256, leaf);
        this.#leaves.push(hash);
        this.#frontier.appendLeafHash(hash);
      }
      writeBatchHeader(bytes, 0, { entries: this.#open.length, bytes: size - BATCH_HEADER_BYTES, checksum: this.files.checksum(bytes, BATCH_HEADER_BYTES, size) }, this.files.checksum);
      this.#open = [];
      this.#flight = { bytes, end: this.#next };
      this.files.entries.write(bytes, this.#offset);
      if (this.#bugs.durableBeforeSync === true) this.#landed();
      return;
    }
    if (fails) {
      this.failure = new BulkheadError('UNAVAILABLE', 'the audit log cannot be written');
      this.onDurable?.(this.#durable, this.failure);
      return;
    }
    this.files.entries.sync();
    this.#offset += this.#flight.bytes.length;
    if (this.#bugs.durableBeforeSync !== true) this.#landed();
    this.#flight = undefined;
  }

  #landed(): void {
    const flight = this.#flight as { readonly end: number };
    this.#durable = this.files.durable = flight.end;
    if (this.#bugs.durableBeforeSync !== true) this.#flight = undefined;
    this.onDurable?.(this.#durable);
  }

  /** Signs what is durable when the log stands between two batches. Proves first that it continues the last one. */
  checkpoint(): SimCheckpoint | undefined {
    if (!this.idle || this.failure !== undefined) return undefined;
    const before = this.files.checkpoint;
    const rootHash = this.#frontier.root();
    if (this.#frontier.size !== this.files.records.length) throw new Error(`audit: the tree has ${this.#frontier.size} leaves and ${this.files.records.length} records were appended`);
    if (!equalBytes(rootHash, this.#rootOf(this.#leaves.length))) throw new Error('audit: the frontier and the leaves have different roots');
    if (before.treeSize > 0 && this.#leaves.length > before.treeSize) {
      const proof = consistencyProof(sha256, this.#node, before.treeSize, this.#leaves.length);
      if (!verifyConsistency(sha256, before.treeSize, this.#leaves.length, before.rootHash, rootHash, proof)) throw new Error('audit: the tree does not continue its last checkpoint');
    }
    this.files.checkpoint = { treeSize: this.#leaves.length, rootHash, offset: this.#offset };
    return this.files.checkpoint;
  }

  readonly #node = (level: number, index: number): Uint8Array => {
    if (level === 0) return this.#leaves[index] as Uint8Array;
    const known = (this.#inner[level] ??= []);
    return (known[index] ??= nodeHash(sha256, this.#node(level - 1, 2 * index), this.#node(level - 1, 2 * index + 1)));
  };

  #rootOf(size: number): Uint8Array {
    return size === 0 ? new Frontier(sha256).root() : rangeHash(sha256, this.#node, 0, size);
  }
}
