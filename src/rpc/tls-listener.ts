/**
 * The listening socket of a server. TLS, chain verification, revocation and limits happen here, before the first HTTP/2 byte is
 * answered: what grpc-js gets is a connection of a known peer. Must never: hand on a connection without a verified peer
 * (except where the server was built for callers without an SVID: no `peers`, the attestation listener and the gateway).
 *
 * The TLS sockets are made here and not by `tls.createServer`: Node 24.21 and 26.8 read the peer's certificate before they hand a
 * server's socket over, in a way that drops its intermediates (nodejs/node#65579), and without them no chain can be verified.
 */
import { createServer, type Server, type Socket } from 'node:net';
import { createSecureContext, TLSSocket, type SecureContext } from 'node:tls';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import type { Clock } from '../base/time.ts';
import { contextOptions, PeerWatch, verifyPeer, type RpcLog } from './tls.ts';
import type { OwnIdentity, PeerVerifier, VerifiedPeer } from './ports.ts';

export interface ListenerLimits {
  readonly connections: number;
  readonly connectionsPerPeer: number;
  readonly handshakeTimeoutMs: number;
}

export interface Connection {
  /** Address and port of the other side. */
  readonly remote: string;
  readonly address: string;
  /** Undefined only where callers have no SVID. */
  readonly peer: VerifiedPeer | undefined;
  readonly leafDer: Uint8Array | undefined;
  /** False once it was cut: calls that still come out of it are refused. */
  readonly open: boolean;
}

interface OpenConnection extends Connection {
  open: boolean;
  readonly socket: TLSSocket;
}

export interface ListenerOptions {
  readonly identity: OwnIdentity;
  /** Undefined: callers without an SVID. */
  readonly peers: PeerVerifier | undefined;
  readonly limits: ListenerLimits;
  /** What may be spoken inside TLS, by their ALPN names; HTTP/1.1 is also what a peer speaks that names none. */
  readonly protocols: readonly string[];
  readonly clock: Clock;
  readonly log: RpcLog;
  readonly onConnection: (socket: TLSSocket, connection: Connection) => void;
  /** A peer that was refused or cut, for the audit log; `remote` is an address. */
  readonly onRefused: (remote: string, why: string) => void;
}

export class TlsListener {
  readonly #options: ListenerOptions;
  readonly #server: Server;
  readonly #watch: PeerWatch | undefined;
  readonly #connections = new Map<string, OpenConnection>();
  readonly #perPeer = new Map<string, number>();
  /** Handshakes under way, by address. */
  readonly #handshakes = new Map<string, number>();
  /** Below TLS, so that closing also ends handshakes under way. */
  readonly #sockets = new Set<Socket>();
  readonly #stopIdentity: () => void;
  /** Replaced when the own identity is renewed; open connections keep theirs. */
  #context: SecureContext;

  constructor(options: ListenerOptions) {
    this.#options = options;
    const { identity, peers, limits, clock, log } = options;
    this.#watch = peers === undefined ? undefined : new PeerWatch(peers, clock);
    this.#context = createSecureContext(contextOptions(identity.current()));
    this.#server = createServer({ noDelay: true }, (socket) => this.#handshake(socket));
    this.#server.maxConnections = limits.connections;
    this.#stopIdentity = identity.onChange(() => {
      try {
        this.#context = createSecureContext(contextOptions(identity.current()));
      } catch (error) {
        log.warn({ error }, 'the renewed identity could not be loaded; the server goes on with the old one until that ends');
      }
    });
  }

  #handshake(raw: Socket): void {
    const { peers, limits, onRefused } = this.#options;
    const address = raw.remoteAddress ?? 'unknown';
    const underWay = this.#handshakes.get(address) ?? 0;
    // So that one host without an identity cannot take every place while its handshakes stand still.
    if (underWay >= limits.connections / 4) {
      onRefused(address, 'too many TLS handshakes are under way');
      return void raw.destroy();
    }
    this.#handshakes.set(address, underWay + 1);
    const left = (): void => {
      const now = (this.#handshakes.get(address) ?? 1) - 1;
      if (now > 0) this.#handshakes.set(address, now);
      else this.#handshakes.delete(address);
    };
    this.#sockets.add(raw);
    raw.once('close', () => this.#sockets.delete(raw));
    raw.on('error', () => raw.destroy());
    const client = peers === undefined ? { requestCert: false } : { requestCert: true, rejectUnauthorized: true };
    const socket = new TLSSocket(raw, { isServer: true, secureContext: this.#context, ALPNProtocols: [...this.#options.protocols], ...client });
    let over = false;
    const refuse = (why: string): void => {
      if (over) return;
      over = true;
      left();
      clearTimeout(timer);
      onRefused(address, why);
      socket.destroy();
      raw.destroy();
    };
    const timer = setTimeout(() => refuse('the TLS handshake took too long'), limits.handshakeTimeoutMs);
    // The text of OpenSSL's errors is fixed; a peer cannot put words into it.
    const failed = (error: Error): void => refuse((error as NodeJS.ErrnoException).code ?? error.message);
    socket.on('_tlsError', (error: Error) => (over ? socket.destroy() : failed(error)));
    // Stays for good: from here on a reset of the other side is an ordinary end.
    socket.on('error', (error: Error) => (over ? socket.destroy() : failed(error)));
    socket.once('close', () => refuse('the peer ended the TLS handshake'));
    socket.once('secure', () => {
      if (over) return;
      over = true;
      left();
      clearTimeout(timer);
      // What a `tls.Server` does to its sockets here; HTTP/2 waits for it.
      Reflect.set(socket, 'secureConnecting', false);
      this.#accept(socket);
    });
  }

  #accept(socket: TLSSocket): void {
    const { peers, limits, log, onConnection, onRefused } = this.#options;
    const address = addressOf(socket);
    const remote = `${address}:${socket.remotePort ?? 0}`;
    try {
      if (socket.remoteAddress === undefined || socket.destroyed) throw new BulkheadError('UNAVAILABLE', 'the peer left during the handshake');
      if (peers === undefined) {
        const { protocols } = this.#options;
        // HTTP/1.1 is what a client speaks that names nothing.
        if (!protocols.includes(socket.alpnProtocol || 'http/1.1') || socket.isSessionReused()) throw new BulkheadError('UNAUTHENTICATED', `the peer does not speak ${protocols.join(' or ')} over a fresh TLS session`);
        const connection = { remote, address, peer: undefined, leafDer: undefined, open: true, socket };
        this.#remember(connection);
        onConnection(socket, connection);
      } else {
        checkByNode(socket);
        const { peer, chain } = verifyPeer(socket, peers, this.#options.protocols);
        const id = peer.principal.spiffeId;
        const count = this.#perPeer.get(id) ?? 0;
        if (count >= limits.connectionsPerPeer) throw new BulkheadError('RESOURCE_EXHAUSTED', `the peer has ${count} connections open already`);
        socket.authorized = true;
        const connection = { remote, address, peer, leafDer: chain[0], open: true, socket };
        this.#remember(connection);
        this.#perPeer.set(id, count + 1);
        socket.once('close', () => {
          const left = (this.#perPeer.get(id) ?? 1) - 1;
          if (left > 0) this.#perPeer.set(id, left);
          else this.#perPeer.delete(id);
        });
        this.#watch?.add(socket, peer, chain, (why) => {
          connection.open = false;
          onRefused(remote, `${id}: ${why.safeMessage}`);
          socket.destroy();
        });
        if (connection.open) onConnection(socket, connection);
      }
    } catch (thrown) {
      const error = toSafeError(thrown);
      if (error.code === 'INTERNAL') log.warn({ error: thrown, remote }, 'a connection could not be accepted');
      onRefused(remote, error.safeMessage);
      socket.destroy();
    }
  }

  #remember(connection: OpenConnection): void {
    this.#connections.set(connection.remote, connection);
    connection.socket.once('close', () => {
      connection.open = false;
      if (this.#connections.get(connection.remote) === connection) this.#connections.delete(connection.remote);
    });
  }

  /** The connection of a call, by its remote address and port: one of each exists at a time. */
  find(remoteAddress: string | undefined, remotePort: number | undefined): Connection | undefined {
    const connection = this.#connections.get(`${remoteAddress ?? ''}:${remotePort ?? 0}`);
    return connection?.open === true ? connection : undefined;
  }

  get connectionCount(): number {
    return this.#connections.size;
  }

  listen(host: string, port: number): Promise<{ address: string; port: number }> {
    return new Promise((resolve, reject) => {
      const failed = (error: Error): void => reject(new BulkheadError('UNAVAILABLE', `cannot listen on ${host}:${port}: ${(error as NodeJS.ErrnoException).code ?? 'unknown error'}; choose another address with --listen`, { cause: error }));
      this.#server.once('error', failed);
      this.#server.listen({ host, port }, () => {
        this.#server.off('error', failed);
        this.#server.on('error', (error) => this.#options.log.warn({ error }, 'the listening socket failed'));
        const bound = this.#server.address();
        if (bound === null || typeof bound === 'string') return reject(new BulkheadError('INTERNAL', 'the listening socket has no address'));
        resolve({ address: bound.address, port: bound.port });
      });
    });
  }

  /** Takes no more connections; open ones go on until `destroyAll`. */
  stopAccepting(): void {
    if (this.#server.listening) this.#server.close();
  }

  destroyAll(): void {
    this.#stopIdentity();
    this.#watch?.close();
    for (const connection of [...this.#connections.values()]) {
      connection.open = false;
      connection.socket.destroy();
    }
    for (const socket of [...this.#sockets]) socket.destroy();
  }
}

/** OpenSSL's own verdict on the chain, beside that of our verifier: both must accept. `tls.createServer` would ask the same. */
function checkByNode(socket: TLSSocket): void {
  const handle: unknown = Reflect.get(socket, '_handle');
  const verifyError: unknown = typeof handle === 'object' && handle !== null ? Reflect.get(handle, 'verifyError') : undefined;
  if (typeof verifyError !== 'function') throw new BulkheadError('INTERNAL', 'this version of Node does not tell whether TLS verified the peer; use the version in package.json');
  const verdict: unknown = Reflect.apply(verifyError, handle, []);
  // Null is its way to say "no error"; anything else is a refusal.
  if (verdict !== null) throw new BulkheadError('UNAUTHENTICATED', `TLS refused the peer: ${verdict instanceof Error ? String(Reflect.get(verdict, 'code')) : 'unknown reason'}`);
}

function addressOf(socket: TLSSocket): string {
  return socket.remoteAddress ?? 'unknown';
}

/** Splits `host:port`, `[v6]:port`. */
export function parseListenAddress(text: string): { host: string; port: number } {
  const match = /^(?:\[([0-9a-f:.]+)\]|([a-z0-9.-]+)):(\d{1,5})$/i.exec(text);
  const port = Number(match?.[3]);
  const host = match?.[1] ?? match?.[2];
  if (host === undefined || port > 65_535) throw new BulkheadError('INVALID_ARGUMENT', `the address '${text.slice(0, 80)}' is not HOST:PORT`);
  return { host, port };
}
