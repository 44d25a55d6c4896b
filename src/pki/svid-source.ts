/**
 * The identity of this process: key, chain and bundle in memory, renewed at half life (± 10 %) through a given function, with a fresh key
 * each time. Must never: put a renewed SVID in force that is for another identity, key or cluster, or let a failed renewal
 * end the one in force before its time.
 */
import { generateKeyPairSync, type KeyObject } from 'node:crypto';
import { BulkheadError } from '../base/errors.ts';
import type { SpiffeId, TrustDomain } from '../base/ids.ts';
import { CLOCK_SKEW_MS } from '../base/limits.ts';
import type { Clock, RandomSource } from '../base/time.ts';
import { renewalTimeMs, retryDelayMs } from './core/rotation.ts';
import { bytesEqual } from './core/der.ts';
import { svidMaterial, type SvidMaterial } from './svid-material.ts';
import { createCsr } from './signature.ts';
import { TrustBundle, type TrustBundleSource } from './trust-bundle.ts';

/** Timers wake at least this often and look at the wall clock, so that a suspended laptop renews when it wakes. */
const LONGEST_SLEEP_MS = 60_000;

/** Sends a CSR (DER) to the authority. */
export type RenewSvid = (csrDer: Uint8Array) => Promise<{ certificateChainPem: string; trustBundlePem: string }>;

export interface SvidSourceOptions {
  readonly initial: SvidMaterial;
  readonly renew: RenewSvid;
  readonly clock: Pick<Clock, 'nowMs'>;
  readonly random: RandomSource;
  /** Writes a renewed SVID back, for example into its profile, before it is in force; a failure is reported and does not stop the renewal. */
  readonly save?: (svid: SvidMaterial) => Promise<void>;
  /** Told of every failed renewal; it is tried again until the SVID ends and beyond. */
  readonly onError?: (error: unknown, attempt: number) => void;
}

export class SvidSource implements AsyncDisposable, TrustBundleSource {
  readonly #options: SvidSourceOptions;
  #current: SvidMaterial;
  #bundle: TrustBundle;
  #timer: NodeJS.Timeout | undefined;
  #renewAtMs = 0;
  #attempt = 0;
  #renewing: Promise<SvidMaterial> | undefined;
  #closed = false;
  readonly #listeners = new Set<(svid: SvidMaterial) => void>();

  /** Starts the clock of renewal at once; timers do not keep the process alive. */
  constructor(options: SvidSourceOptions) {
    this.#options = options;
    this.#current = options.initial;
    this.#bundle = TrustBundle.fromPem(options.initial.trustDomain, options.initial.trustBundlePem);
    this.#plan(0);
  }

  current(): SvidMaterial {
    return this.#current;
  }

  get spiffeId(): SpiffeId {
    return this.#current.spiffeId;
  }

  get trustDomain(): TrustDomain {
    return this.#current.trustDomain;
  }

  /** The newest bundle known here: of the SVID, or set by `updateBundle`. */
  bundle(): TrustBundle {
    return this.#bundle;
  }

  /** Called with every SVID or bundle that comes into force. Returns the way to stop. */
  onChange(listener: (svid: SvidMaterial) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Puts a bundle pushed by the head in force when its sequence is higher; false when it is not. Throws INVALID_ARGUMENT for one of another cluster. */
  updateBundle(bundle: TrustBundle): boolean {
    if (bundle.trustDomain !== this.trustDomain || !overlaps(bundle, this.#bundle)) throw new BulkheadError('INVALID_ARGUMENT', 'the trust bundle shares no root with the one in force: it is of another cluster');
    if (bundle.sequence <= this.#bundle.sequence) return false;
    this.#bundle = bundle;
    this.#current = this.#current.withTrustBundle(bundle.toPem());
    if (!this.#current.leadsTo(bundle)) {
      // Our root was retired before we renewed: peers refuse us from now on.
      this.#renewAtMs = this.#options.clock.nowMs();
      this.#sleep();
    }
    this.#tell();
    return true;
  }

  /** Renews now (at most one renewal at a time); the timer does the same. Throws what went wrong; the SVID in force stays. */
  renewNow(): Promise<SvidMaterial> {
    if (this.#closed) return Promise.reject(new BulkheadError('UNAVAILABLE', 'the SVID source is closed'));
    this.#renewing ??= this.#renew().finally(() => {
      this.#renewing = undefined;
    });
    return this.#renewing;
  }

  /** Stops the timer and waits for a renewal that is under way. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#listeners.clear();
    await this.#renewing?.catch(() => undefined);
  }

  async #renew(): Promise<SvidMaterial> {
    const { renew, clock, save, onError } = this.#options;
    const { privateKey, keyPem } = freshKey();
    const answer = await renew(createCsr(privateKey));
    const svid = checkRenewed(this.#current, this.#bundle, { keyPem, ...answer }, clock);
    try {
      await save?.(svid);
    } catch (error) {
      onError?.(error, 0);
    }
    if (this.#closed) return svid;
    // A pushed bundle has a sequence and the JWT keys; the roots of the answer only count where none was pushed, or not yet the new root.
    if (this.#bundle.sequence > 0 && svid.leadsTo(this.#bundle)) this.#current = svid.withTrustBundle(this.#bundle.toPem());
    else {
      const { roots } = TrustBundle.fromPem(svid.trustDomain, svid.trustBundlePem);
      this.#bundle = new TrustBundle(svid.trustDomain, this.#bundle.sequence, roots, [...this.#bundle.jwtKeys.values()]);
      this.#current = svid;
    }
    this.#attempt = 0;
    this.#plan(shortestPauseMs(svid));
    this.#tell();
    return this.#current;
  }

  #tell(): void {
    for (const listener of [...this.#listeners]) listener(this.#current);
  }

  /** The authority dates SVIDs back, so life begins after that. The pause keeps a node whose clock is far ahead from renewing without end. */
  #plan(pauseMs: number): void {
    const { notBeforeMs, notAfterMs } = this.#current;
    const bornMs = Math.min(notBeforeMs + CLOCK_SKEW_MS, notAfterMs);
    this.#renewAtMs = Math.max(renewalTimeMs(bornMs, notAfterMs, this.#unit()), this.#options.clock.nowMs() + pauseMs);
    this.#sleep();
  }

  #sleep(): void {
    clearTimeout(this.#timer);
    if (this.#closed) return;
    const waitMs = Math.max(0, this.#renewAtMs - this.#options.clock.nowMs());
    this.#timer = setTimeout(() => this.#wake(), Math.min(waitMs, LONGEST_SLEEP_MS));
    this.#timer.unref();
  }

  #wake(): void {
    if (this.#options.clock.nowMs() < this.#renewAtMs) return this.#sleep();
    this.renewNow().catch((error: unknown) => {
      this.#attempt++;
      this.#options.onError?.(error, this.#attempt);
      this.#renewAtMs = this.#options.clock.nowMs() + retryDelayMs(this.#attempt, this.#unit());
      this.#sleep();
    });
  }

  #unit(): number {
    const [a = 0, b = 0] = this.#options.random.bytes(2);
    return (a * 256 + b) / 65_536;
  }
}

/** A first identity: a fresh key, its CSR to the authority (with a join token, for example), and the answer checked. */
export async function requestSvid(options: { trustDomain: TrustDomain; spiffeId: SpiffeId; request: RenewSvid }): Promise<SvidMaterial> {
  const { privateKey, keyPem } = freshKey();
  const svid = svidMaterial({ trustDomain: options.trustDomain, keyPem, ...(await options.request(createCsr(privateKey))) });
  if (svid.spiffeId !== options.spiffeId) throw new BulkheadError('UNAUTHENTICATED', 'the authority answered with an SVID of another identity');
  return svid;
}

function freshKey(): { privateKey: KeyObject; keyPem: string } {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return { privateKey, keyPem: privateKey.export({ format: 'pem', type: 'pkcs8' }) as string };
}

function checkRenewed(before: SvidMaterial, bundle: TrustBundle, parts: { keyPem: string; certificateChainPem: string; trustBundlePem: string }, clock: Pick<Clock, 'nowMs'>): SvidMaterial {
  const svid = svidMaterial({ trustDomain: before.trustDomain, keyPem: parts.keyPem, certificateChainPem: parts.certificateChainPem, trustBundlePem: parts.trustBundlePem });
  if (svid.spiffeId !== before.spiffeId) throw new BulkheadError('UNAUTHENTICATED', 'the authority answered with an SVID of another identity');
  const next = TrustBundle.fromPem(before.trustDomain, parts.trustBundlePem);
  if (!overlaps(next, bundle)) throw new BulkheadError('UNAUTHENTICATED', 'the authority answered with a trust bundle that shares no root with ours');
  svid.verifyAgainst(next, clock.nowMs());
  return svid;
}

/** After a renewal the next one is at least a twentieth of a life away, and no more than 30 s for this reason alone. */
function shortestPauseMs(svid: SvidMaterial): number {
  return Math.min(30_000, Math.max(100, (svid.notAfterMs - svid.notBeforeMs - CLOCK_SKEW_MS) / 20));
}

function overlaps(a: TrustBundle, b: TrustBundle): boolean {
  return a.roots.some((root) => b.roots.some((other) => bytesEqual(root.der, other.der)));
}
