/**
 * TLS of a client: the server must show an SVID that our verifier accepts and that names the expected SPIFFE ID. Used under grpc-js's
 * channel (as its credentials) and by batch streams. Must never: hand out a connection before that is checked.
 */
import { X509Certificate } from 'node:crypto';
import type { SocketConstructorOpts } from 'node:net';
import { connect as tlsConnect, createSecureContext, type ConnectionOptions, type SecureContext, type TLSSocket } from 'node:tls';
import * as grpc from '@grpc/grpc-js';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import { quote } from '../base/ids.ts';
import { TLS_HANDSHAKE_TIMEOUT_MS } from '../base/limits.ts';
import type { Principal } from '../base/principal.ts';
import type { Clock } from '../base/time.ts';
import { BATCH_PROTOCOL } from './batch-frames.ts';
import type { OwnIdentity, PeerVerifier, VerifiedPeer } from './ports.ts';
import { contextOptions, PeerWatch, systemClock, trustOnlyContext, verifyPeer } from './tls.ts';
import { parseListenAddress } from './tls-listener.ts';

/** The part of the server's remaining life after which new calls use a new connection. */
const STALE_AT = 0.8;
const READ_BUFFER_BYTES = 64 * 2 ** 10;

export interface ChannelOptions {
  /** Only a node that has no SVID yet gives the bundle alone, to the attestation listener. */
  readonly identity: OwnIdentity | { readonly trustBundlePem: string };
  readonly peers: PeerVerifier;
  /** `host:port`. */
  readonly address: string;
  /** The server's SPIFFE ID, or a test of its principal. */
  readonly expectedSpiffeId: string | ((principal: Principal) => boolean);
  readonly clock?: Clock;
}

/** TLS by our own rules under grpc-js's channel. */
export class VerifiedCredentials extends grpc.ChannelCredentials {
  readonly #options: ChannelOptions;
  readonly #onStale: () => void;
  readonly #clock: Clock;
  readonly #watch: PeerWatch;
  readonly #sockets = new Set<TLSSocket>();
  readonly #stopIdentity: () => void;
  #context: SecureContext | undefined;
  server: VerifiedPeer | undefined;
  /** Why the last attempt to connect failed, or the last connection was cut; grpc-js itself only says UNAVAILABLE. */
  lastFailure: BulkheadError | undefined;

  /** `onStale`: connections made so far should be replaced before they are cut; called for a renewal here and for a server whose SVID nears its end. */
  constructor(options: ChannelOptions, onStale: () => void) {
    super();
    this.#options = options;
    this.#onStale = onStale;
    this.#clock = options.clock ?? systemClock;
    this.#watch = new PeerWatch(options.peers, this.#clock);
    const { identity } = options;
    this.#stopIdentity = 'onChange' in identity ? identity.onChange(() => {
      this.#context = undefined;
      onStale();
    }) : () => undefined;
  }

  /** Servers renew at half life, so what is left then is the old SVID's only where renewing fails. */
  #watchAge(socket: TLSSocket, peer: VerifiedPeer): void {
    const staleMs = (peer.notAfterMs - this.#clock.nowMs()) * STALE_AT;
    // Longer than a timer can wait: weeks, and no server of ours.
    if (staleMs >= 2 ** 31) return;
    const timer = setTimeout(this.#onStale, staleMs);
    timer.unref();
    socket.once('close', () => clearTimeout(timer));
  }

  /** Made again after each renewal; throws UNAUTHENTICATED when the own SVID has ended, which a server would only show as a reset. */
  #secureContext(): SecureContext {
    const { identity } = this.#options;
    if ('trustBundlePem' in identity) return (this.#context ??= createSecureContext(trustOnlyContext(identity.trustBundlePem)));
    const current = identity.current();
    const endsMs = Date.parse(new X509Certificate(current.certificateChainPem).validTo);
    if (endsMs <= this.#clock.nowMs()) throw new BulkheadError('UNAUTHENTICATED', `the own identity ended at ${new Date(endsMs).toISOString()}; renew it (bulkhead identity issue, or log in again)`);
    return (this.#context ??= createSecureContext(contextOptions(current)));
  }

  #verify(socket: TLSSocket, protocol: string): { peer: VerifiedPeer; chain: Uint8Array[] } {
    const { peers, expectedSpiffeId, address } = this.#options;
    const found = verifyPeer(socket, peers, [protocol]);
    const { principal } = found.peer;
    const expected = typeof expectedSpiffeId === 'string' ? principal.spiffeId === expectedSpiffeId : expectedSpiffeId(principal) === true;
    if (!expected) {
      const wanted = typeof expectedSpiffeId === 'string' ? quote(expectedSpiffeId) : 'the expected one';
      throw new BulkheadError('UNAUTHENTICATED', `the server at ${address} is ${quote(principal.spiffeId)}, not ${wanted}; check the address and the profile`);
    }
    return found;
  }

  /** Through `on.socket`, or to `on.host`. */
  #connect(protocol: string, on: ConnectionOptions & Pick<SocketConstructorOpts, 'onread'>): Promise<TLSSocket> {
    return new Promise((resolve, reject) => {
      const fail = (thrown: unknown): void => {
        clearTimeout(timer);
        const code = (thrown as NodeJS.ErrnoException).code;
        this.lastFailure = thrown instanceof BulkheadError ? thrown
          : new BulkheadError('UNAVAILABLE', reached ? `no TLS connection to ${this.#options.address}: ${code ?? 'refused'}; check the address and that both sides are of one cluster` : `${this.#options.address} cannot be reached: ${code ?? 'unknown error'}; check the address and that it runs`, { cause: thrown });
        tls?.destroy();
        on.socket?.destroy();
        reject(this.lastFailure);
      };
      let tls: TLSSocket | undefined;
      let reached = on.socket !== undefined;
      const timer = setTimeout(() => fail(new BulkheadError('UNAVAILABLE', `the TLS handshake with ${this.#options.address} took too long`)), TLS_HANDSHAKE_TIMEOUT_MS);
      try {
        // Node checks the chain against the bundle; the name is checked by `#verify`, from the SVID.
        const connecting = tlsConnect({ ...on, ALPNProtocols: [protocol], secureContext: this.#secureContext(), rejectUnauthorized: true, checkServerIdentity: () => undefined });
        tls = connecting;
        connecting.once('connect', () => (reached = true));
        connecting.on('error', fail);
        const ended = (): void => fail(new BulkheadError('UNAVAILABLE', `${this.#options.address} ended the TLS handshake`));
        connecting.once('close', ended);
        connecting.once('secureConnect', () => {
          try {
            if (!connecting.authorized) throw connecting.authorizationError;
            const { peer, chain } = this.#verify(connecting, protocol);
            connecting.setNoDelay(true);
            clearTimeout(timer);
            connecting.off('error', fail);
            connecting.off('close', ended);
            connecting.on('error', () => connecting.destroy());
            connecting.once('close', () => this.#sockets.delete(connecting));
            this.#sockets.add(connecting);
            this.#watch.add(connecting, peer, chain, (why) => {
              this.lastFailure = why;
              connecting.destroy();
            });
            this.#watchAge(connecting, peer);
            this.server = peer;
            this.lastFailure = undefined;
            resolve(connecting);
          } catch (error) {
            fail(error);
          }
        });
      } catch (error) {
        fail(toSafeError(error));
      }
    });
  }

  /** A verified connection of its own, for a batch stream: what comes on it goes to `read`, in memory that is used again. Throws what `lastFailure` says. */
  dial(read: (chunk: Buffer) => void): Promise<TLSSocket> {
    const { host, port } = parseListenAddress(this.#options.address);
    return this.#connect(BATCH_PROTOCOL, {
      host, port,
      onread: {
        buffer: Buffer.allocUnsafeSlow(READ_BUFFER_BYTES),
        callback: (bytes, memory) => {
          read(Buffer.from(memory.buffer, memory.byteOffset, bytes));
          return true;
        },
      },
    });
  }

  override _isSecure(): boolean {
    return true;
  }

  override _equals(other: grpc.ChannelCredentials): boolean {
    return this === other;
  }

  override _createSecureConnector(): grpc.experimental.SecureConnector {
    return { connect: async (socket) => ({ socket: await this.#connect('h2', { socket }), secure: true }), waitForReady: () => Promise.resolve(), getCallCredentials: () => grpc.CallCredentials.createEmpty(), destroy: () => undefined };
  }

  close(): void {
    this.#stopIdentity();
    this.#watch.close();
    for (const socket of [...this.#sockets]) socket.destroy();
  }
}
