/**
 * Verifies the peer of a connection, once per connection: builds the chain leaf → intermediates → root of our bundle itself, checks
 * signatures, SPIFFE rules, time and revocation. TLS proves only that the peer holds the leaf's key; everything else is proved here.
 * Must never: trust `authorized`, a chain that Node built, or a name in the certificate other than the one URI.
 */
import type { TLSSocket } from 'node:tls';
import { BulkheadError } from '../base/errors.ts';
import { CLOCK_SKEW_MS } from '../base/limits.ts';
import { principalFromSpiffeId, type Principal } from '../base/principal.ts';
import type { Clock } from '../base/time.ts';
import type { TrustDomain } from '../base/ids.ts';
import { acceptChain, pathCandidates, spiffeIdOfLeaf } from './core/acceptable.ts';
import { parseCertificate, refuseCertificate, type ParsedCertificate } from './core/certificate.ts';
import { bytesEqual } from './core/der.ts';
import { isSignedBy } from './signature.ts';
import type { Revocations } from './revocations.ts';
import type { TrustBundle } from './trust-bundle.ts';

/** More intermediates than this from a peer are refused. */
const MAX_INTERMEDIATES = 4;
/** Verified intermediates kept for peers whose chain TLS no longer shows (a resumed session shows the leaf only). */
const MAX_REMEMBERED = 8;

export interface VerifiedPeer {
  readonly principal: Principal;
  readonly serial: string;
  /** When the authority issued the leaf; what `Revocations.isRevoked` wants. */
  readonly issuedAtMs: number;
  /** The earliest end in the chain: end the connection then. */
  readonly notAfterMs: number;
}

export class PeerVerifier {
  readonly #trustDomain: TrustDomain;
  readonly #bundle: () => TrustBundle;
  readonly #revocations: Revocations;
  readonly #clock: Pick<Clock, 'nowMs'>;
  #remembered: ParsedCertificate[] = [];

  /** `bundle` is asked at every verification, so that a rotated root counts at once. */
  constructor(options: { trustDomain: TrustDomain; bundle: () => TrustBundle; revocations: Revocations; clock: Pick<Clock, 'nowMs'> }) {
    this.#trustDomain = options.trustDomain;
    this.#bundle = options.bundle;
    this.#revocations = options.revocations;
    this.#clock = options.clock;
  }

  /** Throws UNAUTHENTICATED with a reason that may be told to the peer (it speaks only of the peer's own certificate). */
  verify(leafDer: Uint8Array | undefined, intermediatesDer: readonly Uint8Array[] = []): VerifiedPeer {
    if (leafDer === undefined) return refuseCertificate('the peer showed none');
    try {
      return this.#verify(leafDer, intermediatesDer);
    } catch (error) {
      if (error instanceof BulkheadError && error.code === 'INVALID_ARGUMENT') throw new BulkheadError('UNAUTHENTICATED', `certificate refused: ${error.safeMessage}`, { cause: error });
      if (error instanceof BulkheadError && error.code === 'UNAUTHENTICATED') throw error;
      throw new BulkheadError('UNAUTHENTICATED', 'certificate refused: it cannot be checked', { cause: error });
    }
  }

  /** As `verify`, for a TLS socket (grpc-js: `stream.session.socket`; its `getAuthContext()` carries the leaf only). */
  verifySocket(socket: TLSSocket): VerifiedPeer {
    const { leaf, intermediates } = peerChain(socket);
    return this.verify(leaf, intermediates);
  }

  /** Whether a peer verified earlier may go on: not revoked and not past its end. */
  isStillValid(peer: VerifiedPeer): boolean {
    return this.#clock.nowMs() <= peer.notAfterMs && !this.#revocations.isRevoked(peer.serial, peer.principal.spiffeId, peer.issuedAtMs);
  }

  /** Teaches intermediates for peers whose TLS shows the leaf only: those of our own chain. They are candidates, never trusted unsigned. */
  remember(intermediatesDer: readonly Uint8Array[]): void {
    for (const der of intermediatesDer) {
      if (this.#remembered.some((known) => bytesEqual(known.der, der))) continue;
      this.#remembered = [parseCertificate(Uint8Array.from(der)), ...this.#remembered].slice(0, MAX_REMEMBERED);
    }
  }

  #verify(leafDer: Uint8Array, intermediatesDer: readonly Uint8Array[]): VerifiedPeer {
    const bundle = this.#bundle();
    const nowMs = this.#clock.nowMs();
    if (bundle.trustDomain !== this.#trustDomain) throw new BulkheadError('INTERNAL', 'the trust bundle is of another trust domain');
    // Copied: the parsed forms share memory with their input, and Node's buffers are pooled.
    const leaf = parseCertificate(Uint8Array.from(leafDer));
    spiffeIdOfLeaf(leaf, this.#trustDomain);
    // The peer may send the root along; it is dropped, ours count.
    const sent = intermediatesDer.filter((der) => !bundle.roots.some((root) => bytesEqual(root.der, der)));
    if (sent.length > MAX_INTERMEDIATES) refuseCertificate(`the peer sent more than ${MAX_INTERMEDIATES} intermediates`);
    const own = sent.map((der) => parseCertificate(Uint8Array.from(der)));
    let reason: unknown;
    for (const path of pathCandidates(leaf, [...own, ...this.#remembered], bundle.roots)) {
      if (!path.every((certificate, depth) => isSignedBy(certificate, path[depth + 1] ?? certificate))) continue;
      try {
        const accepted = acceptChain(path, this.#trustDomain, nowMs);
        const issuedAtMs = accepted.notBeforeMs + CLOCK_SKEW_MS;
        if (this.#revocations.isRevoked(accepted.serial, accepted.id, issuedAtMs)) refuseCertificate('it is revoked; ask for a new identity');
        this.remember(path.slice(1, -1).map(({ der }) => der));
        return { principal: principalFromSpiffeId(accepted.id), serial: accepted.serial, issuedAtMs, notAfterMs: accepted.notAfterMs };
      } catch (error) {
        reason ??= error;
      }
    }
    if (reason !== undefined) throw reason;
    return refuseCertificate('no chain of signatures leads from it to a root of this cluster');
  }
}

/** What the peer showed in the handshake, as DER. Bounded, and safe against the loop that Node makes at a self-signed certificate. */
export function peerChain(socket: Pick<TLSSocket, 'getPeerCertificate'>): { leaf: Uint8Array | undefined; intermediates: Uint8Array[] } {
  let certificate = socket.getPeerCertificate(true) as ReturnType<TLSSocket['getPeerCertificate']> & { issuerCertificate?: unknown } | null | undefined;
  const chain: Uint8Array[] = [];
  const seen = new Set<unknown>();
  while (certificate?.raw !== undefined && !seen.has(certificate) && chain.length <= MAX_INTERMEDIATES + 2) {
    seen.add(certificate);
    chain.push(certificate.raw);
    certificate = certificate.issuerCertificate as typeof certificate;
  }
  return { leaf: chain[0], intermediates: chain.slice(1) };
}
