/**
 * A listening socket for HTTP clients that have no SVID: HTTP/1.1 inside TLS with the limits of every listener. Who may ask, and what, is its owner's to decide, before anything
 * else. Must never: speak without TLS, or keep a connection that asks for nothing.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import type { Clock } from '../base/time.ts';
import type { OwnIdentity } from './ports.ts';
import { NO_LOG, systemClock, type RpcLog } from './tls.ts';
import { parseListenAddress, TlsListener } from './tls-listener.ts';

const LIMITS = { connections: 512, connectionsPerPeer: 512, handshakeTimeoutMs: 5_000 };
const MAX_HEADER_BYTES = 16_384;
const HEADERS_TIMEOUT_MS = 10_000;
/** Packages of some megabytes over slow lines. */
const REQUEST_TIMEOUT_MS = 120_000;
const KEEP_ALIVE_MS = 30_000;

export interface HttpsListenerOptions {
  /** Shown to clients: a certificate with names of DNS. */
  readonly certificate: OwnIdentity;
  readonly clock?: Clock;
  readonly log?: RpcLog;
  readonly onRequest: (request: IncomingMessage, response: ServerResponse) => void;
  readonly onUpgrade: (request: IncomingMessage, socket: Duplex, head: Buffer) => void;
}

export interface HttpsListener {
  listen(address: string): Promise<{ address: string; port: number }>;
  close(): Promise<void>;
}

export function createHttpsListener(options: HttpsListenerOptions): HttpsListener {
  const clock = options.clock ?? systemClock;
  const log = options.log ?? NO_LOG;
  const http = createServer({ maxHeaderSize: MAX_HEADER_BYTES, headersTimeout: HEADERS_TIMEOUT_MS, requestTimeout: REQUEST_TIMEOUT_MS, keepAliveTimeout: KEEP_ALIVE_MS, connectionsCheckingInterval: HEADERS_TIMEOUT_MS }, options.onRequest);
  http.on('upgrade', options.onUpgrade);
  // What is no HTTP is answered with nothing.
  http.on('clientError', (_error, socket) => void socket.destroy());
  const listener = new TlsListener({
    identity: options.certificate, peers: undefined, limits: LIMITS, protocols: ['http/1.1'], clock, log,
    onConnection: (socket) => void http.emit('connection', socket),
    onRefused: (remote, why) => log.warn({ remote, why }, 'a connection was refused'),
  });
  return servedBy(http, listener);
}

/** The listening and the end of an HTTP server that has its connections from a TLS listener. */
export function servedBy(http: Server, listener: TlsListener): HttpsListener {
  return {
    listen(address) {
      const { host, port } = parseListenAddress(address);
      return listener.listen(host, port);
    },
    async close() {
      listener.stopAccepting();
      http.closeAllConnections();
      listener.destroyAll();
    },
  };
}
