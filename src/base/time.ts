/** Time and randomness are parameters: cores get `now`, shells get these ports. Milliseconds since the epoch unless named otherwise. */

export interface Clock {
  /** Wall clock, ms since 1970-01-01 UTC. */
  nowMs(): number;
  /** Monotonic clock, ms from an arbitrary origin; for deadlines and durations. */
  monotonicMs(): number;
}

export interface RandomSource {
  bytes(length: number): Uint8Array;
}
