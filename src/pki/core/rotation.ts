/** When to renew, pure over time and a given random number, so that a thousand nodes do not renew in the same second. */

/** Half life ± 10 % of the whole life. `unit` is a random number in [0, 1). */
export function renewalTimeMs(notBeforeMs: number, notAfterMs: number, unit: number): number {
  return notBeforeMs + (notAfterMs - notBeforeMs) * (0.4 + 0.2 * unit);
}

/** Wait before attempt `attempt` (1 is the first retry): doubling from 250 ms to 30 s, full jitter above the half. */
export function retryDelayMs(attempt: number, unit: number): number {
  const ceiling = Math.min(30_000, 250 * 2 ** Math.min(attempt - 1, 10));
  return ceiling / 2 + (ceiling / 2) * unit;
}

/** An authority's certificate is replaced when less than a third of its life is left, or less than two lives of what it signs. */
export function isAuthorityDue(notBeforeMs: number, notAfterMs: number, nowMs: number, longestChildMs: number): boolean {
  return notAfterMs - nowMs < Math.max((notAfterMs - notBeforeMs) / 3, 2 * longestChildMs);
}
