/**
 * The one way in for frames: of clients, of isolates, of other raylets. A batch is read where it comes in, or in pieces when its tenant's turn
 * is (`FairShare`), with everything that follows from it on its tenant's account. Must never: let what a source says overtake what it said
 * before; make a promise, closure or object for a batch that does not wait.
 */
import type { Clock } from '../base/time.ts';
import type { RayletCore } from './core/raylet-core.ts';
import type { Channel, HeldBatch, Slot, TenantState, Upstream, Worker } from './core/state.ts';
import { FairShare, type Unread } from './fair-share.ts';

/** What can go no further is tried again after so long, if nothing wakes it before. */
const STALLED_MS = 10;

/** Whose batches stay in order. The isolates of a worker share a socket, so they are one. */
export type Source = Channel | Worker | Upstream;

export interface IntakeOptions {
  readonly core: RayletCore;
  readonly clock: Clock;
  /** Executes what a step wants, and sends. */
  readonly flush: () => void;
  /** A batch could not be read: its source ends. */
  readonly malformed: (source: Source, error: unknown) => void;
  /** `unreadBytes` of a source has changed. */
  readonly keepPace: (source: Source) => void;
}

/** Reads a part of a batch; returns where it stopped. */
type Read<S> = (core: RayletCore, from: S, batch: Uint8Array, nowMs: number, budget: number, at: number, held: HeldBatch | undefined) => number;
const readClient: Read<Channel> = (core, channel, batch, nowMs, budget, at, held) => (channel.closed ? batch.length : core.clientBatch(channel, batch, nowMs, budget, at, held));
const readGuest: Read<Slot> = (core, slot, batch, nowMs, budget, at, held) => (slot.worker.slots.get(slot.number) === slot ? core.guestBatch(slot, batch, nowMs, budget, at, held) : batch.length);
const readUpstream: Read<Upstream> = (core, upstream, batch, nowMs, budget, at) => (upstream.closed ? batch.length : core.upstreamBatch(upstream, batch, nowMs, budget, at));

export class Intake {
  readonly #options: IntakeOptions;
  readonly #fair = new FairShare<TenantState>();
  readonly #monotonicMs: () => number;
  readonly #turn: () => void;
  readonly #wake: () => void;
  #scheduled: NodeJS.Immediate | undefined;
  #alarm: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(options: IntakeOptions) {
    this.#options = options;
    this.#monotonicMs = () => options.clock.monotonicMs();
    this.#turn = () => {
      this.#scheduled = undefined;
      this.#fair.turn(this.#monotonicMs);
      this.#schedule();
    };
    this.#wake = () => {
      this.#alarm = undefined;
      this.resume();
    };
  }

  /** `release` is called when the batch was read to its end, and nothing of it is kept; never, when it is not read. */
  client(channel: Channel, batch: Uint8Array, release?: () => void): void {
    if (!channel.closed) this.#take(channel.job.tenant, channel, channel, batch, readClient, release);
  }

  guest(slot: Slot, batch: Uint8Array): void {
    this.#take(slot.worker.tenant, slot.worker, slot, batch, readGuest);
  }

  /** As `client`. */
  upstream(upstream: Upstream, batch: Uint8Array, release?: () => void): void {
    if (!upstream.closed) this.#take(upstream.job.tenant, upstream, upstream, batch, readUpstream, release);
  }

  /** Runs `act` behind what the source sent before: at once, if nothing of that waits. */
  after(tenant: TenantState, source: Source, act: () => void): void {
    if (!this.#fair.waits(tenant, source)) return act();
    this.#add(tenant, source, {
      read: () => {
        act();
        return true;
      },
    });
  }

  /** Does what is not the reading of frames, as sending a file to a client that takes it, on its tenant's account. */
  charged(tenant: TenantState, act: () => void): void {
    const startedMs = this.#options.clock.monotonicMs();
    act();
    this.#fair.charge(tenant, this.#options.clock.monotonicMs() - startedMs);
  }

  /** A tenant that is gone. */
  forget(tenant: TenantState): void {
    this.#fair.forget(tenant);
  }

  close(): void {
    this.#closed = true;
    clearImmediate(this.#scheduled);
    clearTimeout(this.#alarm);
  }

  #take<S>(tenant: TenantState, source: Source, from: S, batch: Uint8Array, read: Read<S>, release?: () => void): void {
    const { core, clock, flush } = this.#options;
    const startedMs = clock.monotonicMs();
    const budget = this.#fair.admit(tenant, startedMs);
    let at = 0;
    if (budget > 0) {
      at = this.#read(source, from, batch, read, budget, 0, undefined);
      // Before anything else happens: `held` is of the batch that was read last.
      if (at < batch.length) this.#wait(tenant, source, from, batch, read, at, core.state.held, release);
      flush();
      if (at === batch.length) release?.();
      this.#options.keepPace(source);
      this.#fair.charge(tenant, clock.monotonicMs() - startedMs);
    } else {
      this.#wait(tenant, source, from, batch, read, 0, undefined, release);
      this.#options.keepPace(source);
    }
  }

  #read<S>(source: Source, from: S, batch: Uint8Array, read: Read<S>, budget: number, at: number, held: HeldBatch | undefined): number {
    try {
      return read(this.#options.core, from, batch, this.#options.clock.nowMs(), budget, at, held);
    } catch (error) {
      // What the frames before it brought about leaves first.
      this.#options.flush();
      this.#options.malformed(source, error);
      return batch.length;
    }
  }

  #wait<S>(tenant: TenantState, source: Source, from: S, batch: Uint8Array, read: Read<S>, start: number, heldSoFar: HeldBatch | undefined, release: (() => void) | undefined): void {
    let at = start;
    let held = heldSoFar;
    source.unreadBytes += batch.length - start;
    this.#add(tenant, source, {
      read: (budget) => {
        const before = at;
        const next = this.#read(source, from, batch, read, budget, at, held);
        held = this.#options.core.state.held;
        source.unreadBytes -= next - at;
        at = next;
        this.#options.flush();
        this.#options.keepPace(source);
        if (at === batch.length) release?.();
        return at === batch.length || (next === before && 'stalled');
      },
    });
  }

  #add(tenant: TenantState, source: Source, unread: Unread): void {
    this.#fair.add(tenant, source, unread);
    this.#schedule();
  }

  /** What waits for a larger share of a quota is looked at. */
  resume(): void {
    this.#fair.wake();
    this.#schedule();
  }

  #schedule(): void {
    if (!this.#closed && this.#fair.sleeps && this.#alarm === undefined) this.#alarm = setTimeout(this.#wake, STALLED_MS).unref();
    if (!this.#closed && this.#scheduled === undefined && !this.#fair.idle) this.#scheduled = setImmediate(this.#turn);
  }
}
