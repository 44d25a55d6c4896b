/**
 * The door of the gateway: an HTTP request becomes a call of a known principal, or nothing. Order: limits → no browser's → bearer token → route → the head's decision, on record → handler. Must never:
 * tell a caller without a token in force what there is, or let a browser's page, cookie or rebound name reach a handler.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import { BulkheadError, toSafeError, type ErrorCode } from '../base/errors.ts';
import type { RpcLog } from '../rpc/rpc.ts';
import type { Admitted, Callers } from './callers.ts';
import { MAX_PACKAGE_BYTES } from './packages.ts';
import type { RayJobs } from './ray-jobs.ts';
import { submissionId } from './submissions.ts';
import { WebSocket, webSocketKey } from './web-socket.ts';

const MAX_JSON_BYTES = 1 << 20;
const MAX_PATH_CHARS = 1_024;
/** Requests at once: each waits for the head. */
const MAX_UNDER_WAY = 256;
const MAX_TAILS = 256;
/** Tries with tokens that turned out not to be in force, from one address and in all: each costs the head a look. A token that was in force before is not held back by others' tries. */
const REFUSED = { perAddress: 20, inAll: 200, windowMs: 10_000 };
const RECHECK_MS = 10_000;
const TOKEN = /^Bearer (bht_[A-Za-z0-9_-]{43})$/;
const UNAUTHENTICATED_TEXT = 'Unauthorized: a bearer token in force is needed (Authorization: Bearer …); make one with: bulkhead token create --out FILE';

const STATUS_OF_CODE: Partial<Record<ErrorCode, number>> = { DENIED: 404, UNAUTHENTICATED: 401, INVALID_ARGUMENT: 400, RESOURCE_EXHAUSTED: 429, QUOTA_EXCEEDED: 429, UNAVAILABLE: 503, TIMEOUT: 504 };

interface Call {
  readonly admitted: Admitted;
  readonly request: IncomingMessage;
  readonly parts: readonly string[];
}

interface Route {
  readonly method: 'GET' | 'POST' | 'PUT' | 'DELETE';
  readonly path: RegExp;
  /** Row under `gateway` in policies/methods.yaml. */
  readonly call: string;
  readonly name: (parts: readonly string[]) => string;
  readonly run: (call: Call, jobs: RayJobs) => unknown;
}

const job = (parts: readonly string[]): string => submissionId(parts[0] ?? '');
const none = (): string => '';

const ROUTES: readonly Route[] = [
  { method: 'GET', path: /^\/api\/version$/, call: 'version', name: none, run: (_call, jobs) => jobs.version() },
  { method: 'GET', path: /^\/api\/jobs\/?$/, call: 'list-jobs', name: none, run: ({ admitted }, jobs) => jobs.list(admitted.person) },
  { method: 'POST', path: /^\/api\/jobs\/?$/, call: 'submit-job', name: none, run: async ({ admitted, request }, jobs) => jobs.submit(admitted.person, await jsonBody(request)) },
  { method: 'GET', path: /^\/api\/jobs\/([^/]+)$/, call: 'get-job', name: job, run: ({ admitted, parts }, jobs) => jobs.get(admitted.person, job(parts)) },
  { method: 'DELETE', path: /^\/api\/jobs\/([^/]+)$/, call: 'delete-job', name: job, run: ({ admitted, parts }, jobs) => jobs.delete(admitted.person, job(parts)) },
  { method: 'POST', path: /^\/api\/jobs\/([^/]+)\/stop$/, call: 'stop-job', name: job, run: ({ admitted, parts }, jobs) => jobs.stop(admitted.person, job(parts)) },
  { method: 'GET', path: /^\/api\/jobs\/([^/]+)\/logs$/, call: 'read-logs', name: job, run: ({ admitted, parts }, jobs) => jobs.logs(admitted.person, job(parts)) },
  { method: 'GET', path: /^\/api\/packages\/([^/]+)\/([^/]+)$/, call: 'get-package', name: ([, name = '']) => name.slice(0, 200), run: ({ admitted, parts: [protocol = '', name = ''] }, jobs) => {
    if (!jobs.hasPackage(admitted.person, protocol, name)) throw new BulkheadError('DENIED', 'not found, or not permitted');
    return {};
  } },
  { method: 'PUT', path: /^\/api\/packages\/([^/]+)\/([^/]+)$/, call: 'put-package', name: ([, name = '']) => name.slice(0, 200), run: async ({ admitted, request, parts: [protocol = '', name = ''] }, jobs) => {
    jobs.putPackage(admitted.person, protocol, name, await bodyOf(request, MAX_PACKAGE_BYTES));
    return {};
  } },
];
const TAIL: Omit<Route, 'run'> = { method: 'GET', path: /^\/api\/jobs\/([^/]+)\/logs\/tail$/, call: 'read-logs', name: job };

/** For the record. What is no name is refused by the handler, to those who may ask at all. */
function nameIn(route: Omit<Route, 'run'> | undefined, parts: readonly string[]): string {
  try {
    return route?.name(parts) ?? '';
  } catch {
    return '';
  }
}

async function bodyOf(request: IncomingMessage, limit: number): Promise<Buffer> {
  const tooLarge = (): never => {
    throw new BulkheadError('INVALID_ARGUMENT', `the body is larger than ${limit} bytes`);
  };
  if (Number(request.headers['content-length'] ?? 0) > limit) return tooLarge();
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > limit) return tooLarge();
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

async function jsonBody(request: IncomingMessage): Promise<unknown> {
  // A page may send forms and plain text anywhere without asking; JSON it may not.
  if (!/^application\/json(?:;|$)/.test(request.headers['content-type'] ?? '')) throw new BulkheadError('INVALID_ARGUMENT', 'the body must be application/json');
  const body = await bodyOf(request, MAX_JSON_BYTES);
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(body));
  } catch {
    throw new BulkheadError('INVALID_ARGUMENT', 'the body is not JSON');
  }
}

export interface DoorOptions {
  readonly callers: Callers;
  readonly jobs: RayJobs;
  /** Of the certificate: requests for other hosts are refused. */
  readonly names: () => readonly string[];
  readonly log: RpcLog;
}

export class HttpDoor {
  readonly #options: DoorOptions;
  #underWay = 0;
  #tails = 0;
  #refused = { sinceMs: 0, inAll: 0, byAddress: new Map<string, number>() };

  constructor(options: DoorOptions) {
    this.#options = options;
  }

  readonly onRequest = (request: IncomingMessage, response: ServerResponse): void => {
    void this.#answer(request, response);
  };

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const send = (status: number, type: string, body: string): void => {
      if (response.destroyed || response.headersSent) return;
      // What was not read would be taken for the next request.
      if (!request.complete) response.shouldKeepAlive = false;
      response.writeHead(status, { 'content-type': type, 'content-length': Buffer.byteLength(body), 'cache-control': 'no-store', 'x-content-type-options': 'nosniff', 'cross-origin-resource-policy': 'same-origin', ...(status === 401 ? { 'www-authenticate': 'Bearer' } : {}) });
      response.end(body);
    };
    if (this.#underWay >= MAX_UNDER_WAY) return send(503, 'text/plain', 'UNAVAILABLE: the gateway has as many requests as it can; try again\n');
    this.#underWay++;
    try {
      const { token, remote, path } = this.#checked(request);
      const route = ROUTES.find((r) => r.method === request.method && r.path.test(path));
      // Without a route there is no row and no decision; a token that is not in force learns as little as with one.
      const parts = route?.path.exec(path)?.slice(1) ?? [];
      const admitted = await this.#admit(token, route?.call ?? 'version', nameIn(route, parts), remote);
      if (route === undefined) return send(404, 'text/plain', 'not found\n');
      using _ = admitted.person.use();
      send(200, 'application/json', JSON.stringify(await route.run({ admitted, request, parts }, this.#options.jobs)));
    } catch (thrown) {
      const error = toSafeError(thrown);
      if (error.code === 'INTERNAL') this.#options.log.warn({ error: thrown }, 'a request could not be served');
      if (error.code === 'UNAUTHENTICATED') send(401, 'text/plain', `${UNAUTHENTICATED_TEXT}\n`);
      else send(STATUS_OF_CODE[error.code] ?? 500, 'text/plain', `${error.code}: ${error.safeMessage}\n`);
    } finally {
      this.#underWay--;
    }
  }

  readonly onUpgrade = (request: IncomingMessage, socket: Duplex, head: Buffer): void => {
    socket.on('error', () => socket.destroy());
    const refuse = (status: string): void => void socket.end(`HTTP/1.1 ${status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n`);
    if (this.#tails >= MAX_TAILS) return refuse('503 Service Unavailable');
    this.#tails++;
    void this.#follow(request, socket, head).catch((thrown: unknown) => {
      const { code } = toSafeError(thrown);
      refuse(code === 'UNAUTHENTICATED' ? '401 Unauthorized' : code === 'DENIED' ? '404 Not Found' : code === 'INVALID_ARGUMENT' ? '400 Bad Request' : '503 Service Unavailable');
    }).finally(() => this.#tails--);
  };

  async #follow(request: IncomingMessage, socket: Duplex, head: Buffer): Promise<void> {
    const { token, remote, path } = this.#checked(request);
    const key = webSocketKey(request);
    const parts = TAIL.path.exec(path)?.slice(1);
    const admitted = await this.#admit(token, parts === undefined ? 'version' : TAIL.call, nameIn(parts === undefined ? undefined : TAIL, parts ?? []), remote);
    if (parts === undefined || key === undefined) throw new BulkheadError('DENIED', 'not found, or not permitted');
    const { person } = admitted;
    using _ = person.use();
    const id = job(parts);
    // Not there, or not this tenant's: said before the connection changes its protocol.
    await this.#options.jobs.get(person, id);
    const web = new WebSocket(socket, head, key);
    let checkedMs = performance.now();
    const permitted = async (): Promise<boolean> => {
      if (performance.now() - checkedMs < RECHECK_MS) return true;
      checkedMs = performance.now();
      return this.#options.callers.admit(token, TAIL.call, id, remote).then(() => true, (thrown: unknown) => toSafeError(thrown).code === 'UNAVAILABLE');
    };
    await this.#options.jobs.tail(person, id, web, permitted).catch((thrown: unknown) => {
      this.#options.log.warn({ error: thrown }, 'a log could not be followed');
      web.close(1011);
    });
  }

  /** What a request must have before anybody is asked about it. Throws UNAUTHENTICATED, alike for all that is missing. */
  #checked(request: IncomingMessage): { readonly token: string; readonly remote: string; readonly path: string } {
    const { headers, url = '' } = request;
    const remote = request.socket.remoteAddress ?? 'unknown';
    const host = (headers.host ?? '').toLowerCase().replace(/:\d{1,5}$/, '');
    const fromPage = headers.origin !== undefined || headers.referer !== undefined || headers.cookie !== undefined || Object.keys(headers).some((name) => name.startsWith('sec-fetch-') || name.startsWith('access-control-'));
    const token = TOKEN.exec(headers.authorization ?? '')?.[1];
    if (token === undefined || fromPage || !this.#options.names().includes(host)) throw new BulkheadError('UNAUTHENTICATED', UNAUTHENTICATED_TEXT);
    // No request of this API has a query, or an escape in its path.
    return { token, remote, path: url.length <= MAX_PATH_CHARS && /^\/[A-Za-z0-9_./-]*$/.test(url) ? url : '' };
  }

  async #admit(token: string, call: string, name: string, remote: string): Promise<Admitted> {
    const { callers } = this.#options;
    if (!callers.knows(token) && this.#limited(remote)) throw new BulkheadError('RESOURCE_EXHAUSTED', 'too many requests with tokens that are not in force; try again in some seconds');
    try {
      return await callers.admit(token, call, name, remote);
    } catch (thrown) {
      if (toSafeError(thrown).code === 'UNAUTHENTICATED') this.#count(remote);
      throw thrown;
    }
  }

  #window(): void {
    const nowMs = performance.now();
    if (nowMs - this.#refused.sinceMs > REFUSED.windowMs) this.#refused = { sinceMs: nowMs, inAll: 0, byAddress: new Map() };
  }

  #limited(remote: string): boolean {
    this.#window();
    return (this.#refused.byAddress.get(remote) ?? 0) >= REFUSED.perAddress || this.#refused.inAll >= REFUSED.inAll;
  }

  #count(remote: string): void {
    this.#window();
    this.#refused.inAll++;
    this.#refused.byAddress.set(remote, (this.#refused.byAddress.get(remote) ?? 0) + 1);
  }
}
