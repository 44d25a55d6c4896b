/**
 * Stops a tenant whose workers die again and again from spending the node on restarts. Pure: time is a parameter.
 *  1. Closed: deaths are counted in a sliding window. At the limit → 2.
 *  2. Open: starts are refused until `until`; then one may try → 3.
 *  3. Trying: a death opens again for twice as long, up to a cap; a quiet window closes → 1.
 */
export interface CrashLoopLimits {
  readonly deaths: number;
  readonly windowMs: number;
  readonly firstWaitMs: number;
  readonly longestWaitMs: number;
}

export const CRASH_LOOP_LIMITS: CrashLoopLimits = { deaths: 8, windowMs: 30_000, firstWaitMs: 1_000, longestWaitMs: 30_000 };

interface TenantDeaths {
  /** Times of the last deaths, oldest first; at most `deaths` of them. */
  times: number[];
  /** How often in a row the breaker opened. */
  opened: number;
  until: number;
}

export class CrashLoopBreaker {
  readonly #limits: CrashLoopLimits;
  readonly #tenants = new Map<string, TenantDeaths>();

  constructor(limits: CrashLoopLimits = CRASH_LOOP_LIMITS) {
    this.#limits = limits;
  }

  /** A worker of the tenant died by its own doing. */
  died(tenant: string, nowMs: number): void {
    const state = this.#tenants.get(tenant) ?? { times: [], opened: 0, until: 0 };
    this.#tenants.set(tenant, state);
    state.times = state.times.filter((time) => nowMs - time < this.#limits.windowMs);
    state.times.push(nowMs);
    const trying = state.opened > 0 && nowMs >= state.until;
    if (state.times.length < this.#limits.deaths && !trying) return;
    if (nowMs < state.until) return;
    state.until = nowMs + Math.min(this.#limits.longestWaitMs, this.#limits.firstWaitMs * 2 ** Math.min(state.opened, 30));
    state.opened++;
    state.times = [];
  }

  /** Milliseconds until the tenant may start a worker; 0 when it may now. Forgets tenants that have been quiet. */
  waitMs(tenant: string, nowMs: number): number {
    const state = this.#tenants.get(tenant);
    if (state === undefined) return 0;
    const last = state.times[state.times.length - 1] ?? state.until;
    if (nowMs >= state.until && nowMs - last >= this.#limits.windowMs) this.#tenants.delete(tenant);
    return Math.max(0, state.until - nowMs);
  }
}
