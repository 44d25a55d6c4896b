/**
 * Session credentials that clients renew on an open channel. Must never: check more than one signature of a channel at a time; let a channel go
 * on with a credential that is not of its own session; let one whose renewal was refused outlive the credential in force.
 *
 * 1. in force, of this session: the job has it from here on, and so have the raylets where it has channels.
 * 2. authentic and of this session, but not in force by this node's clock: that says as much about the clock as about the client, which gains nothing by it.
 *    The channel stays on the credential before, until that ends; the client is told; one that is too early counts when its time has come (1).
 * 3. anything else, forged, revoked, of another session: its channel ends, whatever the time in it.
 */
import { BulkheadError, toSafeError } from '../base/errors.ts';
import type { JobId } from '../base/ids.ts';
import { CLOCK_SKEW_MS } from '../base/limits.ts';
import type { Principal } from '../base/principal.ts';
import type { Channel } from './core/state.ts';

/** What a credential says that is authentic and of nobody who was revoked. */
export interface RenewedCredential {
  readonly principal: Principal;
  readonly jobId: JobId;
  readonly issuedMs: number;
  readonly expiresMs: number;
  /** Why it is not in force now; undefined: it is. */
  readonly untimely: string | undefined;
}

export interface RenewalPort {
  /** Throws for what is not authentic. */
  readonly verify: (credential: string) => Promise<RenewedCredential>;
  /** The wall clock: credentials live by it. */
  readonly nowMs: () => number;
  readonly accept: (channel: Channel, credential: string, verified: RenewedCredential) => void;
  readonly tell: (channel: Channel, error: BulkheadError) => void;
  readonly close: (channel: Channel, error: BulkheadError) => void;
}

/** Undefined: what was refused will not come into force. */
type Early = { readonly credential: string; readonly fromMs: number } | undefined;

export class Renewals {
  readonly #port: RenewalPort;
  readonly #checking = new Set<Channel>();
  /** Channels whose last renewal was refused for its time. */
  readonly #refused = new Map<Channel, Early>();

  constructor(port: RenewalPort) {
    this.#port = port;
  }

  async renew(channel: Channel, credential: string): Promise<void> {
    // A batch holds thousands of them, and each costs far more to check than to send.
    if (this.#checking.has(channel)) return;
    this.#checking.add(channel);
    try {
      const verified = await this.#port.verify(credential);
      // Its job may have ended meanwhile, and must not come back.
      if (channel.closed) return;
      if (verified.jobId !== channel.job.id || verified.principal.spiffeId !== channel.job.submitter.spiffeId) throw new BulkheadError('UNAUTHENTICATED', 'the credential is for another session');
      if (verified.untimely !== undefined) return this.#refuse(channel, credential, verified, verified.untimely);
      this.#refused.delete(channel);
      // Raylets of one job are each other's clients: what is known already is not passed on again, or it would go round for ever.
      if (verified.expiresMs > channel.job.credentialEndsMs) this.#port.accept(channel, credential, verified);
    } catch (error) {
      this.#port.close(channel, toSafeError(error));
    } finally {
      this.#checking.delete(channel);
    }
  }

  #refuse(channel: Channel, credential: string, verified: RenewedCredential, why: string): void {
    // The first that waits stays: a client behind whose clock we are sends the next one before this one's time, again and again.
    if (this.#refused.get(channel) !== undefined) return;
    const fromMs = verified.issuedMs - CLOCK_SKEW_MS;
    this.#refused.set(channel, fromMs > this.#port.nowMs() ? { credential, fromMs } : undefined);
    this.#port.tell(channel, new BulkheadError('UNAUTHENTICATED', `${why}; the channel goes on with the credential before, until that ends`));
  }

  /** Clocks are set in both directions, so what is due is looked at and not timed. */
  tick(): void {
    if (this.#refused.size === 0) return;
    const nowMs = this.#port.nowMs();
    for (const [channel, early] of this.#refused) {
      if (channel.closed) this.#refused.delete(channel);
      else if (channel.job.credentialEndsMs <= nowMs) {
        this.#refused.delete(channel);
        this.#port.close(channel, new BulkheadError('UNAUTHENTICATED', 'the session credential has ended, and what should renew it was refused; compare the clocks of this node and the head'));
      } else if (early !== undefined && early.fromMs <= nowMs && !this.#checking.has(channel)) {
        this.#refused.delete(channel);
        void this.renew(channel, early.credential);
      }
    }
  }

  /** Channels that go on with an older credential than they were sent. */
  get waiting(): number {
    return this.#refused.size;
  }
}
