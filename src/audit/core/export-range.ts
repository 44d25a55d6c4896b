/**
 * Which leaves an export of a time range must carry so that its completeness can be checked: whole bundles, from a fresh
 * start of the dictionary, and one record beyond each end that lies outside the times asked for. Must never: assume that clocks only go forward.
 */
import { RESTART_INTERVAL } from './record-codec.ts';
import { TILE_WIDTH } from './merkle.ts';

export interface TimeRange {
  /** Inclusive; undefined from the beginning. */
  readonly fromMs: number | undefined;
  /** Exclusive; undefined to the end. */
  readonly toMs: number | undefined;
}

export function inRange(range: TimeRange, timeMs: number): boolean {
  return (range.fromMs === undefined || timeMs >= range.fromMs) && (range.toMs === undefined || timeMs < range.toMs);
}

/** Fed with the time of every record in order; then says what must be carried. */
export class RangeFinder {
  readonly #range: TimeRange;
  #first = -1;
  #end = 0;

  constructor(range: TimeRange) {
    this.#range = range;
  }

  see(seq: number, timeMs: number): void {
    const { fromMs, toMs } = this.#range;
    if (this.#first < 0 && (fromMs === undefined || timeMs >= fromMs)) this.#first = seq;
    if (toMs === undefined || timeMs < toMs) this.#end = seq + 1;
  }

  /** Leaves [first, end) that the export carries. */
  covered(treeSize: number): { first: number; end: number } {
    const from = this.#first < 0 ? treeSize : this.#first;
    const end = Math.min(treeSize, Math.max(this.#end, from) + 1);
    const first = Math.max(0, from - 1);
    return { first: first - (first % RESTART_INTERVAL), end: Math.min(treeSize, Math.ceil(end / TILE_WIDTH) * TILE_WIDTH) };
  }
}
