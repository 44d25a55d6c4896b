/**
 * Verifies an export offline: signatures, tree, entries, records file. Needs no cluster, no clock and no network; everything in the
 * directory is taken for hostile. Must never: say ok for what it could not read, or follow a path out of the directory.
 *
 * What it shows: the records file holds exactly the records of the covered times, in order, that the log of this origin had when
 * its key signed the checkpoint. What it cannot show: that a node's whole log was left out (compare the list of origins with the
 * cluster's nodes), or that the key belongs to the cluster unless `trustedKeys` are given.
 */
import { constants } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import * as z from 'zod';
import { BulkheadError } from '../base/errors.ts';
import { hex, quote } from '../base/ids.ts';
import { MAX_AUDIT_RECORD_BYTES } from '../base/limits.ts';
import { tileRoot, type Manifest, type ManifestLog } from './audit-export.ts';
import { openCheckpoint } from './checkpoint-signer.ts';
import { inRange, type TimeRange } from './core/export-range.ts';
import { equalBytes, Frontier, HASH_BYTES, leafHash, TILE_WIDTH } from './core/merkle.ts';
import { EXPORT_FORMATS, recordLine, RECORDS_FILE } from './core/record-lines.ts';
import { RecordDecoder, RESTART_INTERVAL } from './core/record-codec.ts';
import { hashesAtLevel, splitBundle, tilePath, tileWidth } from './core/tiles.ts';
import { sha256 } from './node-hash.ts';

export interface VerifyOptions {
  /** Verifier keys that the auditor has from elsewhere; without them the export's own keys are used and `trusted` is false. */
  readonly trustedKeys?: readonly string[];
  /** Signed checkpoints that the auditor kept from earlier exports: the log must extend each of them. */
  readonly earlierCheckpoints?: readonly string[];
  /** The tenant that the export must be of. */
  readonly tenant?: string;
}

export interface Problem {
  /** Leaf index of the first record concerned; -1 for the log as a whole. */
  readonly index: number;
  readonly what: string;
}

export interface LogVerdict {
  readonly origin: string;
  readonly treeSize: number;
  /** Hex. */
  readonly rootHash: string;
  /** Records checked against their leaves. */
  readonly records: number;
  /** In the order of the log; the first names the first bad record. */
  readonly problems: readonly Problem[];
}

export interface Verdict {
  readonly ok: boolean;
  readonly tenant: string;
  readonly format: string;
  readonly fromMs: number | null;
  readonly toMs: number | null;
  /** Whether the signatures were checked with keys that did not come with the export. */
  readonly trusted: boolean;
  readonly logs: readonly LogVerdict[];
}

const MAX_MANIFEST_BYTES = 4 * 2 ** 20;
/** Checkpoint and key files: a few signatures and keys of a few kilobytes each. */
const MAX_SIGNED_BYTES = 128 * 1024;
const MAX_BUNDLE_BYTES = TILE_WIDTH * (2 + MAX_AUDIT_RECORD_BYTES);
/** A leaf as a line: each of its octets may become an escape, and OCSF repeats some texts. */
const MAX_LINE_BYTES = 8 * 2 ** 20;
const READ_BYTES = 256 * 1024;
const NEWLINE = 0x0a;
const MAX_PROBLEMS = 100;

const INDEX = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER);
const MANIFEST: z.ZodType<Manifest> = z.strictObject({
  kind: z.literal('bulkhead-audit-export'), version: z.literal(1), tenant: z.string().max(63), format: z.enum(EXPORT_FORMATS), fromMs: z.number().int().nullable(), toMs: z.number().int().nullable(),
  logs: z.array(z.strictObject({
    directory: z.string().max(255).regex(/^[a-z0-9_][a-z0-9_.-]*$/), origin: z.string().max(255), treeSize: INDEX, rootHash: z.string().regex(/^[0-9a-f]{64}$/),
    firstIndex: INDEX, endIndex: INDEX, records: INDEX,
  })).max(100_000),
});

/** Throws INVALID_ARGUMENT only when the directory has no readable manifest; everything else is a problem of its log. */
export async function verifyExport(dir: string, options: VerifyOptions = {}): Promise<Verdict> {
  let manifest: Manifest;
  try {
    manifest = MANIFEST.parse(JSON.parse((await readBounded(join(dir, 'manifest.json'), MAX_MANIFEST_BYTES)).toString('utf8')));
  } catch (cause) {
    throw new BulkheadError('INVALID_ARGUMENT', 'this is not an audit export: manifest.json is missing or malformed', { cause });
  }
  const logs: LogVerdict[] = [];
  const origins = new Set<string>();
  for (const log of manifest.logs) {
    const check = new LogCheck(join(dir, log.directory), manifest, log, options);
    if (origins.has(log.origin)) check.problem(-1, 'the export holds this log twice');
    origins.add(log.origin);
    logs.push(await check.run());
  }
  if (logs.length === 0) logs.push({ origin: '', treeSize: 0, rootHash: '', records: 0, problems: [{ index: -1, what: 'the export holds no log' }] });
  const { tenant, format, fromMs, toMs } = manifest;
  return { ok: logs.every((l) => l.problems.length === 0), tenant, format, fromMs, toMs, trusted: options.trustedKeys !== undefined, logs };
}

/** Opens regular files only: a link would lead out of the export, a pipe would hold the verifier. */
async function openRegular(path: string): Promise<FileHandle> {
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  if ((await file.stat()).isFile()) return file;
  await file.close();
  throw new BulkheadError('INVALID_ARGUMENT', 'a file of the export is not a regular file');
}

async function readBounded(path: string, limit: number): Promise<Buffer> {
  const file = await openRegular(path);
  try {
    if ((await file.stat()).size > limit) throw new BulkheadError('INVALID_ARGUMENT', 'a file of the export is too large');
    return await file.readFile();
  } finally {
    await file.close();
  }
}

/** Ends the check of a log whose rest can tell nothing more. */
class Stop extends Error {}

class LogCheck {
  readonly #dir: string;
  readonly #manifest: Manifest;
  readonly #log: ManifestLog;
  readonly #options: VerifyOptions;
  readonly #problems: Problem[] = [];
  /** Roots that earlier checkpoints signed, by tree size, until the tree has passed that size. */
  readonly #earlier = new Map<number, Uint8Array>();
  #records = 0;

  constructor(dir: string, manifest: Manifest, log: ManifestLog, options: VerifyOptions) {
    this.#dir = dir;
    this.#manifest = manifest;
    this.#log = log;
    this.#options = options;
  }

  problem(index: number, what: string): void {
    if (this.#problems.length >= MAX_PROBLEMS) throw new Stop();
    this.#problems.push({ index, what });
  }

  async run(): Promise<LogVerdict> {
    try {
      await this.#check();
    } catch (error) {
      if (!(error instanceof Stop)) this.#problems.push({ index: -1, what: `the log cannot be checked: ${error instanceof BulkheadError ? error.safeMessage : `a file is missing or unreadable (${(error as NodeJS.ErrnoException).code ?? 'error'})`}` });
    }
    // Problems of the log as a whole come last: the first record is what people look for.
    const at = (p: Problem): number => (p.index < 0 ? Number.POSITIVE_INFINITY : p.index);
    const problems = this.#problems.toSorted((a, b) => at(a) - at(b) || 0);
    const { origin, treeSize, rootHash } = this.#log;
    return { origin, treeSize, rootHash, records: this.#records, problems };
  }

  async #check(): Promise<void> {
    const log = this.#log;
    const { tenant, format } = this.#manifest;
    const root = await this.#checkpoint();
    const suffix = tenant === '' ? '/cluster' : `/tenant/${tenant}`;
    if (!log.origin.endsWith(suffix)) this.problem(-1, `this is the log ${quote(log.origin)}, not one of the tenant ${quote(tenant)}`);
    if (this.#options.tenant !== undefined && this.#options.tenant !== tenant) this.problem(-1, `the export is of the tenant ${quote(tenant)}, not of ${quote(this.#options.tenant)}`);
    if (log.firstIndex % RESTART_INTERVAL !== 0 || log.endIndex > log.treeSize || log.firstIndex > log.endIndex || (log.endIndex % TILE_WIDTH !== 0 && log.endIndex !== log.treeSize)) {
      this.problem(-1, 'the manifest names an impossible range of leaves');
      throw new Stop();
    }
    const lines = new LineReader(join(this.#dir, RECORDS_FILE[format]));
    try {
      await this.#walk(root, lines);
      for (let line = await lines.next(); line !== undefined; line = await lines.next()) this.problem(-1, `line ${lines.number} of ${RECORDS_FILE[format]} has no leaf behind it`);
    } finally {
      await lines.close();
    }
    if (this.#problems.length === 0 && this.#records !== log.records) this.problem(-1, `the manifest counts ${log.records} records, the log has ${this.#records}`);
  }

  /** Throws nothing: an earlier checkpoint that is not this log's own is passed over, one that is wrong is a problem. */
  #takeEarlier(keys: readonly string[]): void {
    for (const note of this.#options.earlierCheckpoints ?? []) {
      try {
        const c = openCheckpoint(note, keys);
        if (c.origin !== this.#log.origin) continue;
        const known = this.#earlier.get(c.treeSize);
        if (c.treeSize > this.#log.treeSize) this.problem(-1, `the log was cut: it had ${c.treeSize} records when an earlier checkpoint was signed`);
        else if (known !== undefined && !equalBytes(known, c.rootHash)) this.problem(-1, `two earlier checkpoints over ${c.treeSize} records contradict each other`);
        else this.#earlier.set(c.treeSize, c.rootHash);
      } catch (error) {
        if (error instanceof Stop) throw error;
        // Of another node, or signed by a key that is not trusted: no statement about this log.
        if (note.startsWith(`${this.#log.origin}\n`)) this.problem(-1, `an earlier checkpoint is not usable: ${error instanceof BulkheadError ? error.safeMessage : 'it cannot be read'}`);
      }
    }
  }

  /** Compares the tree so far with an earlier checkpoint over as many records. */
  #compareEarlier(frontier: Frontier): void {
    if (this.#earlier.size === 0) return;
    const root = this.#earlier.get(frontier.size);
    if (root === undefined) return;
    this.#earlier.delete(frontier.size);
    if (!equalBytes(frontier.root(), root)) this.problem(-1, `the past was rewritten: the first ${frontier.size} records are not those that an earlier checkpoint signed`);
  }

  /** Root hash that the log's key signed. */
  async #checkpoint(): Promise<Uint8Array> {
    const log = this.#log;
    const note = (await readBounded(join(this.#dir, 'checkpoint'), MAX_SIGNED_BYTES)).toString('utf8');
    const own = (await readBounded(join(this.#dir, 'key.vkey'), MAX_SIGNED_BYTES)).toString('utf8').split('\n').filter((line) => line !== '');
    let signed;
    try {
      signed = openCheckpoint(note, this.#options.trustedKeys ?? own);
    } catch (error) {
      this.problem(-1, error instanceof BulkheadError ? error.safeMessage : 'the checkpoint cannot be read');
      throw new Stop();
    }
    this.#takeEarlier(this.#options.trustedKeys ?? own);
    if (signed.origin !== log.origin) this.problem(-1, `the checkpoint is of another log, ${quote(signed.origin)}`);
    if (signed.treeSize !== log.treeSize || hex(signed.rootHash) !== log.rootHash) {
      this.problem(-1, `the manifest names a tree of ${log.treeSize} records, the signed checkpoint one of ${signed.treeSize}`);
      throw new Stop();
    }
    return signed.rootHash;
  }

  /** Bundle by bundle: leaves from entries where they are here, else from the tiles above; then the root. */
  async #walk(root: Uint8Array, lines: LineReader): Promise<void> {
    const { treeSize, firstIndex, endIndex } = this.#log;
    const range: TimeRange = { fromMs: this.#manifest.fromMs ?? undefined, toMs: this.#manifest.toMs ?? undefined };
    const frontier = new Frontier(sha256);
    const decoder = new RecordDecoder();
    const firstTimes: number[] = [];
    let lastTime = 0;
    let linesGood = true;
    this.#compareEarlier(frontier);
    for (let first = 0; first < treeSize; first += TILE_WIDTH) {
      const bundle = first / TILE_WIDTH;
      const width = Math.min(TILE_WIDTH, treeSize - first);
      if (first < firstIndex || first >= endIndex) {
        if (width === TILE_WIDTH) frontier.appendBundleRoot(await this.#hashAt(1, bundle, first));
        else for (const hash of await this.#tile(0, bundle, first)) {
          frontier.appendLeafHash(hash);
          this.#compareEarlier(frontier);
        }
        this.#compareEarlier(frontier);
        continue;
      }
      const bytes = await this.#read(tilePath('entries', bundle, width), MAX_BUNDLE_BYTES, first, 'entries');
      const leaves: { from: number; to: number }[] = [];
      try {
        splitBundle(bytes, width, (from, to) => leaves.push({ from, to }));
      } catch (error) {
        this.problem(first + Math.min(leaves.length, width - 1), `the entries of leaves ${first} to ${first + width - 1} are malformed: ${(error as BulkheadError).safeMessage}`);
        throw new Stop();
      }
      const tile = await this.#tile(0, bundle, first);
      const hashes: Uint8Array[] = [];
      let named = false;
      for (const [i, { from, to }] of leaves.entries()) {
        const index = first + i;
        const hash = leafHash(sha256, bytes.subarray(from, to));
        hashes.push(hash);
        frontier.appendLeafHash(hash);
        this.#compareEarlier(frontier);
        if (!equalBytes(hash, tile[i] as Uint8Array)) {
          named = true;
          this.problem(index, `record ${index} was changed: its entry does not hash to its leaf in the tree`);
        }
        let record;
        try {
          record = decoder.decode(bytes, from, to, index);
        } catch (error) {
          this.problem(index, `record ${index} cannot be decoded: ${(error as BulkheadError).safeMessage}`);
          throw new Stop();
        }
        if (firstTimes.length === 0) firstTimes.push(record.timeMs);
        lastTime = record.timeMs;
        if (!inRange(range, record.timeMs)) continue;
        this.#records++;
        if (!linesGood) continue;
        const line = await lines.next();
        const expected = recordLine(this.#manifest.format, record, { origin: this.#log.origin, tenant: this.#manifest.tenant, seq: index, leafHash: hex(hash), treeSize, rootHash: hex(root) });
        if (line === expected) continue;
        // After the first difference every later line would differ too when one was removed or put in.
        linesGood = false;
        this.problem(index, line === undefined ? `the records file ends before record ${index}` : `line ${lines.number} of the records file is not what record ${index} says: it was changed, removed, put in or moved`);
        await lines.close();
      }
      if (width === TILE_WIDTH && !named && !equalBytes(tileRoot(hashes), await this.#hashAt(1, bundle, first))) {
        this.problem(first, `a record from ${first} to ${first + width - 1} was changed: they do not hash to their place in the tree`);
      }
    }
    if (!equalBytes(frontier.root(), root)) this.problem(-1, 'the tree does not hash to the root that the log signed: records were changed, removed or put in');
    for (const size of this.#earlier.keys()) this.problem(-1, `an earlier checkpoint over ${size} records cannot be compared with this part of the log: export it without a time range`);
    await this.#upperTiles(treeSize);
    if (firstIndex > 0 && (range.fromMs === undefined || !(firstTimes[0] !== undefined && firstTimes[0] < range.fromMs))) this.problem(firstIndex, 'records before the first one here may belong to the time range: the range is cut off');
    if (endIndex < treeSize && (range.toMs === undefined || !(endIndex > firstIndex && lastTime >= range.toMs))) this.problem(endIndex, 'records after the last one here may belong to the time range: the range is cut off');
  }

  /** Tiles from level 2 are not needed for the root, but other tools read them: they must be right too. */
  async #upperTiles(treeSize: number): Promise<void> {
    for (let level = 2; hashesAtLevel(level, treeSize) > 0; level++) {
      for (let i = 0; i < hashesAtLevel(level, treeSize); i++) {
        const first = i * TILE_WIDTH ** level;
        if (!equalBytes(tileRoot(await this.#tile(level - 1, i, first)), await this.#hashAt(level, i, first))) this.problem(-1, `tile ${tilePath(level, Math.floor(i / TILE_WIDTH), 256)} does not fit the tree`);
      }
    }
  }

  #cached: { level: number; index: number; hashes: Uint8Array[] } | undefined;

  async #hashAt(level: number, index: number, forLeaf: number): Promise<Uint8Array> {
    const tile = Math.floor(index / TILE_WIDTH);
    if (this.#cached?.level !== level || this.#cached.index !== tile) this.#cached = { level, index: tile, hashes: await this.#tile(level, tile, forLeaf) };
    return this.#cached.hashes[index % TILE_WIDTH] as Uint8Array;
  }

  async #tile(level: number, index: number, forLeaf: number): Promise<Uint8Array[]> {
    const width = tileWidth(index, hashesAtLevel(level, this.#log.treeSize));
    const path = tilePath(level, index, width);
    const bytes = await this.#read(path, TILE_WIDTH * HASH_BYTES, forLeaf, 'hashes');
    if (bytes.length !== width * HASH_BYTES) {
      this.problem(forLeaf, `${path} has ${bytes.length} bytes instead of ${width * HASH_BYTES}`);
      throw new Stop();
    }
    return Array.from({ length: width }, (_, i) => bytes.subarray(i * HASH_BYTES, (i + 1) * HASH_BYTES));
  }

  async #read(path: string, limit: number, forLeaf: number, what: string): Promise<Uint8Array> {
    try {
      return await readBounded(join(this.#dir, path), limit);
    } catch {
      this.problem(forLeaf, `the ${what} from record ${forLeaf} on are missing or unreadable (${path})`);
      throw new Stop();
    }
  }
}

/** Lines of a file, bounded; a last line without its newline is a line that no writer made. A missing file has no lines. */
class LineReader {
  readonly #path: string;
  readonly #lines: AsyncGenerator<string, void, undefined>;
  number = 0;

  constructor(path: string) {
    this.#path = path;
    this.#lines = this.#read();
  }

  async *#read(): AsyncGenerator<string, void, undefined> {
    let file: FileHandle;
    try {
      file = await openRegular(this.#path);
    } catch {
      return;
    }
    try {
      const chunk = Buffer.alloc(READ_BYTES);
      let rest: Buffer = Buffer.alloc(0);
      for (;;) {
        const { bytesRead } = await file.read(chunk, 0, READ_BYTES, null);
        if (bytesRead === 0) break;
        const bytes = Buffer.concat([rest, chunk.subarray(0, bytesRead)]);
        let at = 0;
        for (let end = bytes.indexOf(NEWLINE); end >= 0; end = bytes.indexOf(NEWLINE, at)) {
          yield bytes.toString('utf8', at, end);
          at = end + 1;
        }
        rest = Buffer.from(bytes.subarray(at));
        if (rest.length > MAX_LINE_BYTES) throw new BulkheadError('INVALID_ARGUMENT', 'a line of the records file is too long');
      }
      if (rest.length > 0) yield `${rest.toString('utf8')}\n`;
    } finally {
      await file.close();
    }
  }

  async next(): Promise<string | undefined> {
    const step = await this.#lines.next();
    if (step.done === true) return undefined;
    this.number++;
    return step.value;
  }

  /** No more lines after this. */
  async close(): Promise<void> {
    await this.#lines.return();
  }
}
