/**
 * The bytes of a log's `entries` file: a header, then batches of one group commit each: batch header, then entries as
 * u16 little-endian length and leaf. A length of 0 marks a batch header, so reading can begin at any entry.
 * Little-endian on purpose: below 256 bytes the octet before a leaf is then 0x00, which is the leaf prefix of RFC 6962, and the
 * leaf is hashed where it stands. Must never: trust a length before it is checked against what is there.
 */
import { MAX_AUDIT_COMMIT_BYTES } from '../../base/limits.ts';

export const FILE_MAGIC = 'BHLOG01\n';
/** Magic and a random salt that seeds every checksum: tenant text in a record cannot pose as a batch. */
export const FILE_HEADER_BYTES = 16;
/**
 * u16 0 · u32 entries · u32 bytes · u32 CRC-32 of the entries · u32 CRC-32 of the header so far. The header has its own checksum, so
 * that looking for batches behind a torn one costs little whatever a tenant wrote there.
 */
export const BATCH_HEADER_BYTES = 18;
const HEADER_SUMMED_BYTES = 14;
export const ENTRY_PREFIX_BYTES = 2;
export interface BatchHeader {
  readonly entries: number;
  /** Of the entries that follow the header. */
  readonly bytes: number;
  readonly checksum: number;
}

export type Checksum = (bytes: Uint8Array, from: number, to: number) => number;

export function writeBatchHeader(into: Uint8Array, at: number, h: BatchHeader, checksum: Checksum): void {
  const view = new DataView(into.buffer, into.byteOffset + at, BATCH_HEADER_BYTES);
  view.setUint16(0, 0, true);
  view.setUint32(2, h.entries, true);
  view.setUint32(6, h.bytes, true);
  view.setUint32(10, h.checksum, true);
  view.setUint32(HEADER_SUMMED_BYTES, checksum(into, at, at + HEADER_SUMMED_BYTES), true);
}

/** Undefined when there is no batch header. */
export function readBatchHeader(bytes: Uint8Array, at: number, checksum: Checksum): BatchHeader | undefined {
  if (at + BATCH_HEADER_BYTES > bytes.length || bytes[at] !== 0 || bytes[at + 1] !== 0) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset + at, BATCH_HEADER_BYTES);
  const h = { entries: view.getUint32(2, true), bytes: view.getUint32(6, true), checksum: view.getUint32(10, true) };
  if (h.entries === 0 || h.bytes < h.entries * 4 || h.bytes > MAX_AUDIT_COMMIT_BYTES) return undefined;
  return checksum(bytes, at, at + HEADER_SUMMED_BYTES) === view.getUint32(HEADER_SUMMED_BYTES, true) ? h : undefined;
}

/** The complete batch at `at`: how many entries, and its length with the header; undefined when it is torn or damaged. */
export function completeBatch(bytes: Uint8Array, at: number, checksum: Checksum): { readonly entries: number; readonly length: number } | undefined {
  const h = readBatchHeader(bytes, at, checksum);
  if (h === undefined || at + BATCH_HEADER_BYTES + h.bytes > bytes.length) return undefined;
  const from = at + BATCH_HEADER_BYTES;
  return checksum(bytes, from, from + h.bytes) === h.checksum ? { entries: h.entries, length: BATCH_HEADER_BYTES + h.bytes } : undefined;
}
