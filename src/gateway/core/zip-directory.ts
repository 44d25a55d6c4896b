/**
 * Whether an uploaded archive may go to a tenant's sandbox, from its central directory alone: nothing is ever unpacked here. What is not plainly a zip of regular files and directories
 * inside one directory, of a bounded size, is refused. Must never: trust one number of the archive to find another without bounds.
 */
import { BulkheadError } from '../../base/errors.ts';

export const MAX_PACKAGE_ENTRIES = 10_000;
export const MAX_UNPACKED_BYTES = 256 * 2 ** 20;
const MAX_NAME_BYTES = 1_024;
const MAX_DEPTH = 64;
const END = 0x06054b50;
const CENTRAL = 0x02014b50;
const LOCAL = 0x04034b50;
const END_BYTES = 22;
const CENTRAL_BYTES = 46;
const LOCAL_BYTES = 30;
const ENCRYPTED = 0x0001 | 0x0040 | 0x2000;
const TYPE_MASK = 0o170000;
const DIRECTORY = 0o040000;
const REGULAR = 0o100000;

function refuse(why: string): never {
  throw new BulkheadError('INVALID_ARGUMENT', `the package is refused: ${why}`);
}

export interface ZipFacts {
  readonly entries: number;
  readonly unpackedBytes: number;
}

/** Throws INVALID_ARGUMENT. */
export function checkZip(bytes: Uint8Array): ZipFacts {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const end = bytes.length - END_BYTES;
  // Exactly at the end: a comment could hold a second directory, which another reader would find.
  if (end < 0 || view.getUint32(end, true) !== END || view.getUint16(end + 20, true) !== 0) return refuse('it is not a zip archive, or has a comment');
  const entries = view.getUint16(end + 10, true);
  const size = view.getUint32(end + 12, true);
  const start = view.getUint32(end + 16, true);
  if (view.getUint16(end + 4, true) !== 0 || view.getUint16(end + 6, true) !== 0 || view.getUint16(end + 8, true) !== entries) return refuse('it is in several parts');
  if (entries > MAX_PACKAGE_ENTRIES || entries === 0xffff) return refuse(`it has more than ${MAX_PACKAGE_ENTRIES} entries`);
  if (start + size !== end) return refuse('its directory is not where it says');
  const seen = new Set<string>();
  const ranges: { readonly from: number; readonly to: number }[] = [];
  let unpackedBytes = 0;
  let at = start;
  for (let i = 0; i < entries; i++) {
    if (at + CENTRAL_BYTES > end || view.getUint32(at, true) !== CENTRAL) return refuse('its directory is damaged');
    const flags = view.getUint16(at + 8, true);
    const method = view.getUint16(at + 10, true);
    const packed = view.getUint32(at + 20, true);
    const unpacked = view.getUint32(at + 24, true);
    const nameBytes = view.getUint16(at + 28, true);
    const next = at + CENTRAL_BYTES + nameBytes + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
    const mode = view.getUint32(at + 38, true) >>> 16;
    const local = view.getUint32(at + 42, true);
    if (next > end || nameBytes === 0 || nameBytes > MAX_NAME_BYTES) return refuse('an entry has no name, or one that is too long');
    const name = nameOf(bytes.subarray(at + CENTRAL_BYTES, at + CENTRAL_BYTES + nameBytes));
    if ((flags & ENCRYPTED) !== 0) return refuse('an entry is encrypted');
    if (method !== 0 && method !== 8) return refuse('an entry is packed in a way that is not stored or deflated');
    if (packed === 0xffffffff || unpacked === 0xffffffff || local === 0xffffffff || (method === 0 && packed !== unpacked)) return refuse('an entry has sizes that cannot be');
    const type = mode & TYPE_MASK;
    if (type !== 0 && type !== REGULAR && type !== DIRECTORY) return refuse('an entry is a link or a device');
    if (seen.has(name)) return refuse('two entries have one name');
    seen.add(name);
    unpackedBytes += unpacked;
    if (unpackedBytes > MAX_UNPACKED_BYTES) return refuse(`it has more than ${MAX_UNPACKED_BYTES} bytes unpacked`);
    // Deflate cannot do better than 1032 to 1: more is a lie.
    if (unpacked > packed * 1_032 + 64) return refuse('an entry claims more than its bytes can hold');
    ranges.push({ from: local, to: contentsEnd(bytes, view, start, local, at + CENTRAL_BYTES, nameBytes, packed) });
    at = next;
  }
  if (at !== end) return refuse('its directory is damaged');
  // Entries that share bytes are how a small archive becomes a large one.
  ranges.sort((a, b) => a.from - b.from);
  for (let i = 1; i < ranges.length; i++) if ((ranges[i] as { from: number }).from < (ranges[i - 1] as { to: number }).to) return refuse('two entries share bytes');
  return { entries, unpackedBytes };
}

/** Where the entry's contents end. The local header must be of the same name: readers differ in which of the two they believe. */
function contentsEnd(bytes: Uint8Array, view: DataView, directory: number, local: number, nameAt: number, nameBytes: number, packed: number): number {
  if (local + LOCAL_BYTES > directory || view.getUint32(local, true) !== LOCAL || view.getUint16(local + 26, true) !== nameBytes) return refuse('an entry is not where the directory says');
  const contents = local + LOCAL_BYTES + nameBytes + view.getUint16(local + 28, true);
  if (contents + packed > directory) return refuse('an entry runs into the directory');
  for (let i = 0; i < nameBytes; i++) if (bytes[local + LOCAL_BYTES + i] !== bytes[nameAt + i]) return refuse('an entry has two names');
  return contents + packed;
}

function nameOf(octets: Uint8Array): string {
  let name = '';
  for (const octet of octets) {
    if (octet < 0x20 || octet === 0x7f || octet === 0x5c) return refuse('a name has a backslash or a control character');
    name += String.fromCharCode(octet);
  }
  const parts = name.split('/');
  if (name.startsWith('/') || /^[A-Za-z]:/.test(name) || parts.length > MAX_DEPTH || parts.some((part, i) => part === '.' || part === '..' || (part === '' && i < parts.length - 1))) return refuse('a name would leave its directory');
  return name;
}
