/** Time and randomness are parameters: cores get `now`, shells get these ports. Milliseconds since the epoch unless named otherwise. */
import { BulkheadError } from './errors.ts';
import { quote } from './ids.ts';

export interface Clock {
  /** Wall clock, ms since 1970-01-01 UTC. */
  nowMs(): number;
  /** Monotonic clock, ms from an arbitrary origin; for deadlines and durations. */
  monotonicMs(): number;
}

/**
 * The same clock for limits, waits and ages: begins with the wall clock and goes on with monotonic time, in whole milliseconds. One that an
 * operator or a time server sets forward ends nothing early, and one that is set back lets nothing wait for ever.
 */
export function steadyClock(clock: Clock): Clock {
  const aheadMs = clock.nowMs() - clock.monotonicMs();
  return { nowMs: () => Math.floor(clock.monotonicMs() + aheadMs), monotonicMs: () => clock.monotonicMs() };
}

export interface RandomSource {
  bytes(length: number): Uint8Array;
}

const UNIT_MS: Readonly<Record<string, number>> = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 24 * 3_600_000 };

/** `500ms`, `30s`, `15m`, `2h`, `1d` as milliseconds. */
export function parseDuration(text: string): number {
  const found = /^([1-9]\d{0,8})(ms|s|m|h|d)$/.exec(text);
  if (found === null) throw new BulkheadError('INVALID_ARGUMENT', `${quote(text)} is not a duration: a whole number and ms, s, m, h or d, such as 30m`);
  return Number(found[1]) * (UNIT_MS[found[2] as string] as number);
}
