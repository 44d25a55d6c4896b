/**
 * `GET /metrics` for Prometheus: HTTP/1.1 inside TLS that asks for an SVID, on a listening socket of its own. The same row, decision, audit
 * record and handler as the RPC `Metrics/Read`. Must never: answer anything to a peer without a valid SVID, or before the record is on disk.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { create } from '@bufbuild/protobuf';
import { BulkheadError, toSafeError, type ErrorCode } from '../base/errors.ts';
import { METRICS_CONTENT_TYPE } from '../base/metrics-text.ts';
import type { TenantName } from '../base/ids.ts';
import type { Clock } from '../base/time.ts';
import { Admission, planMethod, rowOf } from './admission.ts';
import { Metrics } from './generated/bulkhead/v1/raylet_pb.js';
import type { OwnIdentity, ServerSecurity } from './ports.ts';
import { refusalRecorder } from './server.ts';
import { methodName, type CallContext, type Implementation } from './service-types.ts';
import { servedBy } from './https-listener.ts';
import { NO_LOG, systemClock, type RpcLog } from './tls.ts';
import { TlsListener } from './tls-listener.ts';
import { TokenBucket } from './token-bucket.ts';

/** A Prometheus holds one connection and scrapes some times a minute. */
const LIMITS = { connections: 64, connectionsPerPeer: 8, handshakeTimeoutMs: 5_000 };
const PER_CONNECTION = { perSecond: 2, burst: 10 };
const MAX_HEADER_BYTES = 8_192;
const REQUEST_TIMEOUT_MS = 5_000;
const KEEP_ALIVE_MS = 5 * 60_000;

const STATUS_OF_CODE: Partial<Record<ErrorCode, number>> = { DENIED: 403, UNAUTHENTICATED: 401, INVALID_ARGUMENT: 400, RESOURCE_EXHAUSTED: 429, QUOTA_EXCEEDED: 429, UNAVAILABLE: 503 };

export interface MetricsListenerOptions {
  /** Shown to clients: a certificate with names of DNS. */
  readonly certificate: OwnIdentity;
  readonly knowsTenant: (tenant: TenantName) => boolean;
  readonly clock?: Clock;
  readonly log?: RpcLog;
}

export interface MetricsListener {
  listen(address: string): Promise<{ address: string; port: number }>;
  close(): Promise<void>;
}

export function createMetricsListener(security: ServerSecurity, options: MetricsListenerOptions, service: Implementation<typeof Metrics>): MetricsListener {
  const clock = options.clock ?? systemClock;
  const log = options.log ?? NO_LOG;
  const method = methodName(Metrics.method.read);
  const plan = planMethod(rowOf(security, method), Metrics.method.read);
  const admission = new Admission(security, { knowsTenant: options.knowsTenant, clock, log });
  const buckets = new WeakMap<object, TokenBucket>();

  const http = createServer({ maxHeaderSize: MAX_HEADER_BYTES, headersTimeout: REQUEST_TIMEOUT_MS, requestTimeout: REQUEST_TIMEOUT_MS, keepAliveTimeout: KEEP_ALIVE_MS, connectionsCheckingInterval: REQUEST_TIMEOUT_MS }, (request, response) => void answer(request, response));
  const listener = new TlsListener({
    identity: options.certificate, peers: security.peers, limits: LIMITS, protocols: ['http/1.1'], clock, log,
    onConnection: (socket) => void http.emit('connection', socket), onRefused: refusalRecorder((record) => security.audit('', record), clock, log),
  });

  async function read(request: IncomingMessage, signal: AbortSignal): Promise<string> {
    const { socket } = request;
    let bucket = buckets.get(socket);
    if (bucket === undefined) buckets.set(socket, (bucket = new TokenBucket(PER_CONNECTION.perSecond, PER_CONNECTION.burst)));
    if (!bucket.take(clock.monotonicMs())) throw new BulkheadError('RESOURCE_EXHAUSTED', 'too many scrapes on one connection; scrape less often');
    const connection = listener.find(socket.remoteAddress, socket.remotePort);
    const peer = connection?.peer;
    if (connection === undefined || peer === undefined) throw new BulkheadError('UNAUTHENTICATED', 'this connection has no identity');
    const given = new URL(request.url ?? '/', 'https://metrics').searchParams.get('tenant');
    const asked = create(Metrics.method.read.input, { tenant: given ?? peer.principal.tenant ?? '' });
    const decision = await admission.admit(plan, peer, asked);
    const call: CallContext = { method, remote: connection.remote, metadata: () => undefined, signal, deadlineMs: undefined, principal: peer.principal, peer, decision };
    return (await service.read(call, asked)).text ?? '';
  }

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const gone = new AbortController();
    response.once('close', () => gone.abort());
    const send = (status: number, type: string, text: string): void => {
      response.writeHead(status, { 'content-type': type, 'content-length': Buffer.byteLength(text), 'cache-control': 'no-store', 'x-content-type-options': 'nosniff' });
      response.end(text);
    };
    // Bodies are not read: what sends one is no scraper.
    const path = (request.url ?? '').split('?')[0];
    if (request.method !== 'GET' || path !== '/metrics' || request.headers['content-length'] !== undefined || request.headers['transfer-encoding'] !== undefined) {
      response.shouldKeepAlive = false;
      return send(404, 'text/plain', 'GET /metrics is all there is\n');
    }
    try {
      send(200, METRICS_CONTENT_TYPE, await read(request, gone.signal));
    } catch (thrown) {
      const error = toSafeError(thrown);
      if (error.code === 'INTERNAL') log.warn({ error: thrown }, 'metrics could not be made');
      send(STATUS_OF_CODE[error.code] ?? 500, 'text/plain', `${error.code}: ${error.safeMessage}\n`);
    }
  }

  const served = servedBy(http, listener);
  return {
    listen: served.listen,
    async close() {
      await served.close();
      await admission.settle();
    },
  };
}
