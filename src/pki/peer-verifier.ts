/**
 * Verifies the peer of a connection, once per connection: builds the chain leaf → intermediates → root of our bundle itself, checks
 * signatures, SPIFFE rules, time and revocation. TLS proves only that the peer holds the leaf's key; everything else is proved here.
 * Must never: trust `authorized`, a chain that Node built, or a name in the certificate other than the one URI.
 */
import { BulkheadError } from '../base/errors.ts';
import { CLOCK_SKEW_MS } from '../base/limits.ts';
import { principalFromSpiffeId, type Principal } from '../base/principal.ts';
import type { Clock } from '../base/time.ts';
import { acceptChain, pathCandidates, spiffeIdOfLeaf, type AcceptedSvid } from './core/acceptable.ts';
import { parseCertificate, refuseCertificate } from './core/certificate.ts';
import { bytesEqual } from './core/der.ts';
import { isSignedBy } from './signature.ts';
import type { Revocations } from './revocations.ts';
import type { TrustBundle, TrustBundleSource } from './trust-bundle.ts';

/** More intermediates than this from a peer are refused. */
const MAX_INTERMEDIATES = 4;

export interface VerifiedPeer {
  readonly principal: Principal;
  /** Lower-case hex; what revokes this one SVID. */
  readonly serial: string;
  /** Of the leaf, ms. */
  readonly notBeforeMs: number;
  /** The earliest end in the chain, ms: end the connection then. */
  readonly notAfterMs: number;
}

/**
 * Finds and checks a path from the leaf (first of `chainDer`, the rest in any order, roots allowed and ignored) to a root of the bundle.
 * Throws UNAUTHENTICATED with a reason that may be told to the peer: it speaks only of the peer's own certificate.
 */
export function verifyChain(chainDer: readonly Uint8Array[], bundle: TrustBundle, nowMs: number): AcceptedSvid {
  try {
    return findChain(chainDer, bundle, nowMs);
  } catch (error) {
    if (error instanceof BulkheadError && error.code === 'UNAUTHENTICATED') throw error;
    const why = error instanceof BulkheadError && error.code === 'INVALID_ARGUMENT' ? error.safeMessage : 'it cannot be checked';
    throw new BulkheadError('UNAUTHENTICATED', `certificate refused: ${why}`, { cause: error });
  }
}

function findChain(chainDer: readonly Uint8Array[], bundle: TrustBundle, nowMs: number): AcceptedSvid {
  const [leafDer, ...rest] = chainDer;
  if (leafDer === undefined) return refuseCertificate('the peer showed none');
  // Copied: the parsed forms share memory with their input, and Node's buffers are pooled.
  const leaf = parseCertificate(Uint8Array.from(leafDer));
  spiffeIdOfLeaf(leaf, bundle.trustDomain);
  const sent = rest.filter((der) => !bundle.roots.some((root) => bytesEqual(root.der, der)));
  if (sent.length > MAX_INTERMEDIATES) refuseCertificate(`the peer sent more than ${MAX_INTERMEDIATES} intermediates`);
  let refusal: unknown;
  for (const path of pathCandidates(leaf, sent.map((der) => parseCertificate(Uint8Array.from(der))), bundle.roots)) {
    // The bundle has checked its roots; a signature counts only from the next certificate of the path.
    if (!path.slice(0, -1).every((certificate, depth) => isSignedBy(certificate, path[depth + 1] ?? refuseCertificate('its path has no end')))) continue;
    try {
      return acceptChain(path, bundle.trustDomain, nowMs);
    } catch (error) {
      refusal ??= error;
    }
  }
  if (refusal !== undefined) throw refusal;
  return refuseCertificate('no chain of signatures leads from it to a root of this cluster');
}

export class PeerVerifier {
  readonly #bundles: TrustBundleSource;
  readonly #revocations: Revocations;
  readonly #clock: Pick<Clock, 'nowMs'>;

  constructor(options: { bundles: TrustBundleSource; revocations: Revocations; clock: Pick<Clock, 'nowMs'> }) {
    this.#bundles = options.bundles;
    this.#revocations = options.revocations;
    this.#clock = options.clock;
  }

  /** `chainDer` is what the handshake showed, leaf first, so that the chain is complete (`getPeerCertificate(true)`; grpc-js' `getAuthContext()` has the leaf only). Throws UNAUTHENTICATED. */
  verify(chainDer: readonly Uint8Array[]): VerifiedPeer {
    const { id, serial, authoritySerials, notBeforeMs, notAfterMs } = verifyChain(chainDer, this.#bundles.bundle(), this.#clock.nowMs());
    const peer = { principal: principalFromSpiffeId(id), serial, notBeforeMs, notAfterMs };
    if (authoritySerials.some((authority) => this.#revocations.isSerialRevoked(authority))) refuseCertificate('the authority that issued it is revoked; ask for a new identity');
    if (this.isRevoked(peer)) refuseCertificate('it is revoked; ask for a new identity');
    return peer;
  }

  /** Of the peer itself; an authority above it is found by `verify`. The authority dates every certificate back by the tolerated clock difference, so that is added again. */
  isRevoked(peer: Pick<VerifiedPeer, 'serial' | 'notBeforeMs' | 'principal'>): boolean {
    return this.#revocations.isRevoked(peer.serial, peer.principal.spiffeId, peer.notBeforeMs + CLOCK_SKEW_MS);
  }

  /** Called after revocations or the bundle changed: whoever holds connections verifies each again and cuts the refused. Returns the way to stop. */
  onChange(listener: () => void): () => void {
    const stops = [this.#revocations.onChange(listener), this.#bundles.onChange(listener)];
    return () => stops.forEach((stop) => stop());
  }
}
