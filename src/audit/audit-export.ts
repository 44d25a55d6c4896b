/**
 * Exports: a directory that an auditor verifies without a cluster (audit-verify.ts) or with other people's C2SP tools.
 * A tenant's logs of several nodes come as `LogMaterial`, from this node or over the network, and are written side by side:
 *   manifest.json · <log>/checkpoint · <log>/key.vkey · <log>/records.<format> · <log>/tile/entries/… · <log>/tile/<level>/…
 * Must never: write a raw control character of a tenant's; overwrite files; finish an export whose entries do not hash to the checkpoint.
 */
import * as fs from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { BulkheadError } from '../base/errors.ts';
import { hex, quote } from '../base/ids.ts';
import { MAX_AUDIT_RECORD_BYTES } from '../base/limits.ts';
import type { AuditStore } from './audit-store.ts';
import { openCheckpoint } from './checkpoint-signer.ts';
import { inRange, RangeFinder, type TimeRange } from './core/export-range.ts';
import { equalBytes, Frontier, leafHash, TILE_WIDTH } from './core/merkle.ts';
import { EXPORT_FORMATS, recordLine, RECORDS_FILE, type ExportFormat } from './core/record-lines.ts';
import { RecordDecoder } from './core/record-codec.ts';
import { tilePath } from './core/tiles.ts';
import { sha256 } from './node-hash.ts';

/** One log as it travels: everything below the signed checkpoint. */
export interface LogMaterial {
  readonly origin: string;
  /** Signed note. */
  readonly checkpoint: string;
  /** C2SP verifier keys of the checkpoint's signatures: Ed25519 first, then ML-DSA-44 if there is one. */
  readonly vkeys: readonly string[];
  /** Entries from 0 up to the checkpoint's tree size: u16 big-endian length and leaf each. Chunks may break anywhere. */
  readonly entries: AsyncIterable<Uint8Array>;
}

export interface ExportOptions {
  readonly tenant: string;
  readonly format: ExportFormat;
  /** Inclusive and exclusive, ms. */
  readonly fromMs?: number;
  readonly toMs?: number;
}

export interface ManifestLog {
  readonly directory: string;
  readonly origin: string;
  readonly treeSize: number;
  /** Hex. */
  readonly rootHash: string;
  /** Leaves whose entries are here: [firstIndex, endIndex). */
  readonly firstIndex: number;
  readonly endIndex: number;
  /** Lines of the records file. */
  readonly records: number;
}

export interface Manifest {
  readonly kind: 'bulkhead-audit-export';
  readonly version: 1;
  readonly tenant: string;
  readonly format: ExportFormat;
  readonly fromMs: number | null;
  readonly toMs: number | null;
  readonly logs: readonly ManifestLog[];
}

export interface ExportSummary {
  readonly records: number;
  readonly logs: readonly ManifestLog[];
}

/** Signs and reads one tenant's log of this node; undefined when it has none. */
export async function readLogMaterial(store: AuditStore, tenant: string): Promise<LogMaterial | undefined> {
  if (!store.has(tenant)) return undefined;
  const log = store.forTenant(tenant);
  const checkpoint = await log.checkpoint(true);
  const { signer, cosigner } = store.options;
  const { treeSize } = openCheckpoint(checkpoint, log.trustedKeys);
  return { origin: log.origin, checkpoint, vkeys: [signer.publicKeyLine, ...(cosigner === undefined ? [] : [cosigner.publicKeyLine])], entries: log.bundles(0, treeSize) };
}

export interface ExportTenantOptions {
  readonly store: AuditStore;
  readonly tenant: string;
  readonly format: ExportFormat;
  /** A new or empty directory. */
  readonly out: string;
  readonly fromMs?: number;
  readonly toMs?: number;
}

/** Exports the log that this node has of a tenant. Throws INVALID_ARGUMENT when there is none. */
export async function exportTenant({ store, out, ...options }: ExportTenantOptions): Promise<ExportSummary> {
  const material = await readLogMaterial(store, options.tenant);
  if (material === undefined) throw new BulkheadError('INVALID_ARGUMENT', `there is no audit log of ${quote(options.tenant)} here`);
  return writeExport(out, [material], options);
}

/** Writes an export of all given logs. Throws INVALID_ARGUMENT when `dir` is not empty or material does not hash to its checkpoint. */
export async function writeExport(dir: string, logs: readonly LogMaterial[], options: ExportOptions): Promise<ExportSummary> {
  const { tenant, format, fromMs, toMs } = options;
  if (!EXPORT_FORMATS.includes(format)) throw new BulkheadError('INVALID_ARGUMENT', `format ${quote(format)} is not known: give ${EXPORT_FORMATS.join(', ')}`);
  for (const t of [fromMs, toMs]) if (t !== undefined && !Number.isSafeInteger(t)) throw new BulkheadError('INVALID_ARGUMENT', 'the time range is given in whole milliseconds');
  if (fromMs !== undefined && toMs !== undefined && fromMs > toMs) throw new BulkheadError('INVALID_ARGUMENT', 'the time range ends before it begins');
  await fs.mkdir(dir, { recursive: true, mode: 0o700 });
  if ((await fs.readdir(dir)).length > 0) throw new BulkheadError('INVALID_ARGUMENT', 'the export directory is not empty: give a new one');
  const written: ManifestLog[] = [];
  for (const material of logs) {
    const directory = directoryOf(material.origin);
    if (written.some((w) => w.directory === directory)) throw new BulkheadError('INVALID_ARGUMENT', `two logs have the origin ${quote(material.origin)}`);
    written.push(await new LogWriter(join(dir, directory), directory, material, options).write());
  }
  const manifest: Manifest = { kind: 'bulkhead-audit-export', version: 1, tenant, format, fromMs: fromMs ?? null, toMs: toMs ?? null, logs: written };
  await fs.writeFile(join(dir, 'manifest.json'), `${JSON.stringify(manifest, null, 2)}\n`, { mode: 0o600, flag: 'wx' });
  return { records: written.reduce((n, w) => n + w.records, 0), logs: written };
}

/** Directory of a log inside an export. */
function directoryOf(origin: string): string {
  return origin.toLowerCase().replace(/[^a-z0-9.-]/g, '_').replace(/^\.+/, '_');
}

const LINES_BYTES = 256 * 1024;

class LogWriter {
  readonly #dir: string;
  readonly #directory: string;
  readonly #material: LogMaterial;
  readonly #options: ExportOptions;
  readonly #range: TimeRange;
  readonly #made = new Set<string>();
  /** Hashes of the tile being filled, by level. */
  readonly #tiles: { hashes: Uint8Array[]; index: number }[] = [];

  constructor(dir: string, directory: string, material: LogMaterial, options: ExportOptions) {
    this.#dir = dir;
    this.#directory = directory;
    this.#material = material;
    this.#options = options;
    this.#range = { fromMs: options.fromMs, toMs: options.toMs };
  }

  async write(): Promise<ManifestLog> {
    const { checkpoint, origin, vkeys } = this.#material;
    const { format, tenant } = this.#options;
    const { treeSize, rootHash, origin: signedOrigin } = openCheckpoint(checkpoint, vkeys);
    if (signedOrigin !== origin) throw new BulkheadError('INVALID_ARGUMENT', `the checkpoint is of the log ${quote(signedOrigin)}, not of ${quote(origin)}`);
    await fs.mkdir(this.#dir, { mode: 0o700 });
    const lines = await fs.open(join(this.#dir, RECORDS_FILE[format]), 'wx', 0o600);
    const finder = new RangeFinder(this.#range);
    const frontier = new Frontier(sha256);
    const decoder = new RecordDecoder();
    const place = { origin, tenant, treeSize, rootHash: hex(rootHash) };
    let text: string[] = [];
    let textChars = 0;
    let records = 0;
    let bundle: Uint8Array[] = [];
    const flush = async (): Promise<void> => {
      await lines.writeFile(text.join(''));
      text = [];
      textChars = 0;
    };
    try {
      for await (const entry of splitEntries(this.#material.entries)) {
        const seq = frontier.size;
        if (seq === treeSize) throw new BulkheadError('INVALID_ARGUMENT', `the log ${quote(origin)} came with more entries than its checkpoint covers`);
        const record = decoder.decode(entry, 2, entry.length, seq);
        const hash = leafHash(sha256, entry.subarray(2));
        frontier.appendLeafHash(hash);
        finder.see(seq, record.timeMs);
        if (inRange(this.#range, record.timeMs)) {
          const line = `${recordLine(format, record, { ...place, seq, leafHash: hex(hash) })}\n`;
          text.push(line);
          textChars += line.length;
          records++;
          if (textChars > LINES_BYTES) await flush();
        }
        bundle.push(entry);
        if (bundle.length === TILE_WIDTH || frontier.size === treeSize) {
          await this.#file(tilePath('entries', Math.floor(seq / TILE_WIDTH), bundle.length), Buffer.concat(bundle));
          bundle = [];
        }
        await this.#addHash(0, hash);
      }
      await flush();
      await lines.datasync();
    } finally {
      await lines.close();
    }
    if (frontier.size !== treeSize || !equalBytes(frontier.root(), rootHash)) {
      throw new BulkheadError('INVALID_ARGUMENT', `the log ${quote(origin)} came with ${frontier.size} entries that do not hash to the root of its checkpoint over ${treeSize}: it was damaged or changed`);
    }
    await this.#finishTiles();
    const covered = finder.covered(treeSize);
    await this.#dropOutside(covered.first, covered.end, treeSize);
    await this.#file('checkpoint', checkpoint);
    await this.#file('key.vkey', vkeys.map((k) => `${k}\n`).join(''));
    return { directory: this.#directory, origin, treeSize, rootHash: hex(rootHash), firstIndex: covered.first, endIndex: covered.end, records };
  }

  async #file(path: string, content: Uint8Array | string): Promise<void> {
    const full = join(this.#dir, path);
    const parent = dirname(full);
    if (!this.#made.has(parent)) {
      await fs.mkdir(parent, { recursive: true, mode: 0o700 });
      this.#made.add(parent);
    }
    await fs.writeFile(full, content, { mode: 0o600, flag: 'wx' });
  }

  /** Adds a hash to its level; a full tile is written and its root goes one level up. */
  async #addHash(level: number, hash: Uint8Array): Promise<void> {
    const tile = (this.#tiles[level] ??= { hashes: [], index: 0 });
    tile.hashes.push(hash);
    if (tile.hashes.length < TILE_WIDTH) return;
    const full = tile.hashes;
    tile.hashes = [];
    await this.#file(tilePath(level, tile.index++, TILE_WIDTH), Buffer.concat(full));
    await this.#addHash(level + 1, tileRoot(full));
  }

  async #finishTiles(): Promise<void> {
    for (const [level, tile] of this.#tiles.entries()) {
      if (tile.hashes.length > 0) await this.#file(tilePath(level, tile.index, tile.hashes.length), Buffer.concat(tile.hashes));
    }
  }

  /** For a time range: the tiles from level 1 and the last partial one stay, they are the proof; entries and leaf hashes of other times go. */
  async #dropOutside(first: number, end: number, treeSize: number): Promise<void> {
    for (let at = 0; at < treeSize; at += TILE_WIDTH) {
      if (at >= first && at < end) continue;
      const width = Math.min(TILE_WIDTH, treeSize - at);
      const entries = join(this.#dir, tilePath('entries', at / TILE_WIDTH, width));
      await fs.rm(width === TILE_WIDTH ? entries : dirname(entries), { recursive: true });
      if (width === TILE_WIDTH) await fs.rm(join(this.#dir, tilePath(0, at / TILE_WIDTH, width)));
    }
  }
}

/** Root of a full tile's hashes. */
export function tileRoot(hashes: readonly Uint8Array[]): Uint8Array {
  const frontier = new Frontier(sha256);
  for (const h of hashes) frontier.appendLeafHash(h);
  return frontier.root();
}

/** Cuts a byte stream into entries, the two octets of length included. Throws INVALID_ARGUMENT when it ends inside one. */
async function* splitEntries(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array, void, undefined> {
  let rest: Uint8Array = new Uint8Array(0);
  for await (const chunk of chunks) {
    const bytes = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
    let at = 0;
    while (at + 2 <= bytes.length) {
      const end = at + 2 + (((bytes[at] as number) << 8) | (bytes[at + 1] as number));
      if (end > bytes.length) break;
      yield bytes.subarray(at, end);
      at = end;
    }
    rest = bytes.slice(at);
    if (rest.length > 2 + MAX_AUDIT_RECORD_BYTES) throw new BulkheadError('INVALID_ARGUMENT', 'an entry is longer than its length allows');
  }
  if (rest.length > 0) throw new BulkheadError('INVALID_ARGUMENT', 'the log ends inside an entry');
}
