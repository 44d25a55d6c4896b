/**
 * Names and contents of C2SP tlog-tiles: `tile/<level>/<n>[.p/<width>]` and entry bundles (u16 big-endian length, entry).
 * Must never: touch a file. Bundles come from exports, so their parser trusts nothing.
 */
import { BulkheadError } from '../../base/errors.ts';
import { TILE_WIDTH } from './merkle.ts';

/** Path of a tile or entry bundle below the log's directory; `width` is 256 for a full one. */
export function tilePath(level: number | 'entries', index: number, width: number): string {
  let rest = Math.floor(index / 1000);
  let name = (index % 1000).toString().padStart(3, '0');
  while (rest > 0) {
    name = `x${(rest % 1000).toString().padStart(3, '0')}/${name}`;
    rest = Math.floor(rest / 1000);
  }
  return `tile/${level}/${name}${width === TILE_WIDTH ? '' : `.p/${width}`}`;
}

/** Hashes at tile level `level` of a tree of `size` leaves. */
export function hashesAtLevel(level: number, size: number): number {
  return Math.floor(size / TILE_WIDTH ** level);
}

/** Width of tile `index` of a level that has `hashes` hashes (or of a bundle, for the tree size). 0 when there is no such tile. */
export function tileWidth(index: number, hashes: number): number {
  return Math.max(0, Math.min(TILE_WIDTH, hashes - index * TILE_WIDTH));
}

/** Calls `entry` with the bounds of each entry of a bundle; throws INVALID_ARGUMENT when it is malformed or does not hold `width` entries. */
export function splitBundle(bundle: Uint8Array, width: number, entry: (from: number, to: number) => void): void {
  let at = 0;
  for (let i = 0; i < width; i++) {
    if (at + 2 > bundle.length) throw new BulkheadError('INVALID_ARGUMENT', `the entry bundle ends after ${i} of ${width} entries`);
    const length = ((bundle[at] as number) << 8) | (bundle[at + 1] as number);
    at += 2;
    if (length > bundle.length - at) throw new BulkheadError('INVALID_ARGUMENT', `entry ${i} of the bundle runs past its end`);
    entry(at, at + length);
    at += length;
  }
  if (at !== bundle.length) throw new BulkheadError('INVALID_ARGUMENT', `${bundle.length - at} bytes follow the ${width} entries of the bundle`);
}
