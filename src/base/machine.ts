/**
 * A core is a deterministic machine: it is told what happened and when, and appends what must be done to `out`. It has no
 * clock, randomness, IO or `await`; whoever drives it executes the effects: audit first, then send, reply, spawn.
 */
export interface Machine<Event, Effect> {
  step(event: Event, nowMs: number, out: Effect[]): void;
}
