/**
 * What both sides of a TLS connection share: TLS 1.3 only, the chain as the handshake showed it, and the watch that ends a
 * connection with its peer's SVID or at once when that is revoked. Must never: let a connection outlive its identity.
 */
import { constants } from 'node:crypto';
import type { PeerCertificate, DetailedPeerCertificate, SecureContextOptions, TLSSocket } from 'node:tls';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import type { Clock } from '../base/time.ts';
import type { OwnIdentity, PeerVerifier, VerifiedPeer } from './ports.ts';

/** What rpc reports to the operator; pino fits. Facts may hold causes, never keys or credentials. */
export interface RpcLog {
  warn(facts: Record<string, unknown>, message: string): void;
}

export const NO_LOG: RpcLog = { warn: () => undefined };

export const systemClock: Clock = { nowMs: () => Date.now(), monotonicMs: () => performance.now() };

/** AES-128 first: same security margin here, a third faster than AES-256 on the hot path. */
const CIPHERS = 'TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256';
/** A chain of ours has at most four; more would only cost time. */
const MAX_CHAIN_CERTIFICATES = 8;
const MAX_TIMER_MS = 2 ** 31 - 1;

/** No session tickets: a resumed session shows no chain, and each connection is to prove its identity anew. */
const SECURE_OPTIONS = constants.SSL_OP_NO_TICKET;

const TLS_VERSION = { minVersion: 'TLSv1.3', maxVersion: 'TLSv1.3' } as const;

export function contextOptions(identity: ReturnType<OwnIdentity['current']>): SecureContextOptions {
  return { key: identity.privateKeyPem, cert: identity.certificateChainPem, ca: identity.trustBundlePem, ciphers: CIPHERS, secureOptions: SECURE_OPTIONS, ...TLS_VERSION };
}

/** Only the bundle: for a peer that has no SVID yet, or a server that asks for none. */
export function trustOnlyContext(trustBundlePem: string): SecureContextOptions {
  return { ca: trustBundlePem, ciphers: CIPHERS, secureOptions: SECURE_OPTIONS, ...TLS_VERSION };
}

/** Leaf first, DER. Node completes the chain with the root from our own bundle; that one is dropped again. */
export function chainOf(socket: TLSSocket): Uint8Array[] {
  const chain: Uint8Array[] = [];
  let certificate: PeerCertificate | DetailedPeerCertificate | undefined = socket.getPeerCertificate(true);
  while (certificate?.raw !== undefined && chain.length < MAX_CHAIN_CERTIFICATES) {
    const issuer: DetailedPeerCertificate | undefined = 'issuerCertificate' in certificate ? certificate.issuerCertificate : undefined;
    const selfIssued = issuer !== undefined && (issuer === certificate || certificate.raw.equals(issuer.raw));
    if (!selfIssued || chain.length === 0) chain.push(certificate.raw);
    if (selfIssued) break;
    certificate = issuer;
  }
  return chain;
}

/**
 * Verifies the peer of a fresh connection, which speaks one of `protocols` (ALPN). Throws UNAUTHENTICATED. A resumed TLS session shows no chain and skips Node's own
 * checks, so it is refused.
 */
export function verifyPeer(socket: TLSSocket, peers: PeerVerifier, protocols: readonly string[]): { peer: VerifiedPeer; chain: Uint8Array[] } {
  if (socket.isSessionReused()) throw new BulkheadError('UNAUTHENTICATED', 'the peer resumed a TLS session; a full handshake is required');
  const { alpnProtocol } = socket;
  // Whoever names no protocol speaks HTTP/1.1, as scrapers do.
  if (!protocols.includes(alpnProtocol === null || alpnProtocol === false ? 'http/1.1' : alpnProtocol)) throw new BulkheadError('UNAUTHENTICATED', `the peer does not speak ${protocols.join(' or ')}`);
  const chain = chainOf(socket);
  if (chain.length === 0) throw new BulkheadError('UNAUTHENTICATED', 'the peer showed no certificate');
  const peer = peers.verify(chain);
  if (peers.isRevoked(peer)) throw new BulkheadError('UNAUTHENTICATED', 'the identity of the peer is revoked');
  return { peer, chain };
}

/** Watches all open connections of one server or channel. */
export class PeerWatch {
  readonly #peers: PeerVerifier;
  readonly #clock: Clock;
  readonly #watched = new Map<TLSSocket, { chain: readonly Uint8Array[]; peer: VerifiedPeer; timer: NodeJS.Timeout | undefined; cut: (why: BulkheadError) => void }>();
  readonly #stop: () => void;

  constructor(peers: PeerVerifier, clock: Clock) {
    this.#peers = peers;
    this.#clock = clock;
    this.#stop = peers.onChange(() => this.#checkAll());
  }

  /** Calls `cut` when the SVID ends, is revoked, or its authority is no longer trusted; `cut` must end the connection. */
  add(socket: TLSSocket, peer: VerifiedPeer, chain: readonly Uint8Array[], cut: (why: BulkheadError) => void): void {
    const entry = { chain, peer, timer: undefined as NodeJS.Timeout | undefined, cut };
    this.#watched.set(socket, entry);
    const arm = (): void => {
      const leftMs = peer.notAfterMs - this.#clock.nowMs();
      if (leftMs <= 0) return cut(new BulkheadError('UNAUTHENTICATED', 'the identity of the peer has expired'));
      entry.timer = setTimeout(arm, Math.min(leftMs, MAX_TIMER_MS));
      entry.timer.unref();
    };
    socket.once('close', () => {
      clearTimeout(entry.timer);
      this.#watched.delete(socket);
    });
    arm();
  }

  #checkAll(): void {
    for (const { chain, peer, cut } of [...this.#watched.values()]) {
      try {
        if (this.#peers.isRevoked(peer)) throw new BulkheadError('UNAUTHENTICATED', 'the identity of the peer was revoked');
        this.#peers.verify(chain);
      } catch (error) {
        cut(toSafeError(error));
      }
    }
  }

  close(): void {
    this.#stop();
  }
}
