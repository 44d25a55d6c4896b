/** A directory as a zip archive, for a job's working directory. Must never: follow a link, or take what is not a regular file. */
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { crc32, deflateRawSync } from 'node:zlib';
import { MAX_CODE_BYTES } from '../base/limits.ts';
import { UsageError } from './terminal.ts';

const MAX_FILES = 10_000;
const MAX_UNPACKED_BYTES = 256 * 2 ** 20;
const SKIPPED = new Set(['__pycache__', '.git', '.venv', 'node_modules']);
const DEFLATED = 8;
/** UTF-8 names; made under Unix, so that modes are kept. */
const FLAGS = 0x0800;
const MADE_BY_UNIX = 0x0314;
/** 1980-01-01, so that the same files are the same archive. */
const DATE = 0x0021;

function files(root: string): string[] {
  const found: string[] = [];
  const walk = (relative: string): void => {
    for (const entry of readdirSync(join(root, relative), { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1))) {
      const path = relative === '' ? entry.name : `${relative}/${entry.name}`;
      if (entry.isDirectory() && !SKIPPED.has(entry.name)) walk(path);
      else if (entry.isFile() && !entry.name.endsWith('.pyc')) found.push(path);
    }
  };
  walk('');
  return found;
}

/** Throws UsageError when it is too much to travel with a program. */
export function packDirectory(root: string): Uint8Array {
  const names = files(root);
  const parts: Uint8Array[] = [];
  const directory: Uint8Array[] = [];
  let at = 0;
  let unpacked = 0;
  for (const name of names) {
    const path = join(root, name);
    const { size, mode } = statSync(path);
    unpacked += size;
    if (names.length > MAX_FILES || unpacked > MAX_UNPACKED_BYTES || at > MAX_CODE_BYTES) throw new UsageError(`${root} has more than ${MAX_FILES} files, ${MAX_UNPACKED_BYTES} bytes, or ${MAX_CODE_BYTES} bytes packed: leave data out, and pass it with ray.put`);
    const raw = readFileSync(path);
    const packed = deflateRawSync(raw);
    const octets = Buffer.from(name, 'utf8');
    const common = Buffer.alloc(26);
    [[20, 2], [FLAGS, 2], [DEFLATED, 2], [0, 2], [DATE, 2], [crc32(raw), 4], [packed.length, 4], [raw.length, 4], [octets.length, 2], [0, 2]].reduce((offset, [value = 0, bytes = 2]) => common.writeUIntLE(value, offset, bytes), 0);
    const entry = Buffer.alloc(14);
    entry.writeUInt32LE(((mode & 0o100) === 0 ? 0o100644 : 0o100755) * 0x10000, 6);
    entry.writeUInt32LE(at, 10);
    directory.push(Buffer.from([0x50, 0x4b, 1, 2, MADE_BY_UNIX & 0xff, MADE_BY_UNIX >> 8]), common, entry, octets);
    parts.push(Buffer.from([0x50, 0x4b, 3, 4]), common, octets, packed);
    at += 30 + octets.length + packed.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = Buffer.alloc(22);
  end.writeUInt32LE(0x06054b50, 0);
  end.writeUInt16LE(names.length, 8);
  end.writeUInt16LE(names.length, 10);
  end.writeUInt32LE(size, 12);
  end.writeUInt32LE(at, 16);
  return Buffer.concat([...parts, ...directory, end]);
}
