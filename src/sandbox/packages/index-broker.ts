/**
 * The only way out of a build: fetches pages and wheels of the operator's index for one throw-away sandbox. The sandbox names a project, or a number that the broker gave to a link;
 * no URL, header or octet of its own ever leaves. Must never: fetch anything but by GET from the index's own hosts, redirections included; hand on a file whose digest is not
 * the one that the page said; go on beyond its limits.
 */
import { createHash } from 'node:crypto';
import { get as getHttp, type IncomingMessage } from 'node:http';
import { get as getHttps } from 'node:https';
import { rootCertificates } from 'node:tls';
import { BulkheadError } from '../../base/errors.ts';
import { quote } from '../../base/ids.ts';
import { INDEX_STALL_MS, MAX_BUILD_FILES, MAX_BUILD_PAGES, MAX_INDEX_PAGE_BYTES, MAX_WHEEL_BYTES } from '../../base/limits.ts';
import { isProject, missingProject, parseProjectPage, type PackageIndex, type ProjectPage, type WheelLink } from './package-index.ts';

const MAX_REDIRECTIONS = 3;
const ACCEPT_PAGE = 'application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1';

export interface OfferedLink {
  readonly number: number;
  readonly file: string;
  readonly sha256: string;
  readonly requiresPython?: string;
  readonly yanked?: string;
}

export interface FetchedWheel {
  readonly file: string;
  readonly sha256: string;
  readonly bytes: number;
}

function failed(why: string, cause?: unknown): BulkheadError {
  return new BulkheadError('ENVIRONMENT_FAILED', why, { cause });
}

export class IndexBroker {
  readonly #index: PackageIndex;
  readonly #signal: AbortSignal;
  readonly #links: WheelLink[] = [];
  readonly #pages = new Map<string, readonly OfferedLink[] | undefined>();
  /** Why a project cannot be had, by its name: pip does not know. */
  readonly #missing = new Map<string, string>();
  readonly #fetched = new Map<number, FetchedWheel>();
  #bytes = 0;

  constructor(index: PackageIndex, signal: AbortSignal) {
    this.#index = index;
    this.#signal = signal;
  }

  /** Wheels that the sandbox was given, whole. */
  get fetched(): readonly FetchedWheel[] {
    return [...this.#fetched.values()];
  }

  /** What pip cannot say of a failure. */
  get missing(): readonly string[] {
    return [...this.#missing.values()];
  }

  /** Links of a project; undefined: the index does not have it. Throws when the build is to end. */
  async page(project: string): Promise<readonly OfferedLink[] | undefined> {
    if (!isProject(project)) throw failed('the build asked for something that is no name of a package');
    if (this.#pages.has(project)) return this.#pages.get(project);
    if (this.#pages.size >= MAX_BUILD_PAGES) throw failed(`the build asked for more than ${MAX_BUILD_PAGES} packages: pin more of the requirements`);
    const found = await this.#fetchPage(project);
    if (found === undefined || found.wheels.length === 0) this.#missing.set(project, missingProject(this.#index, project, found));
    const offered = found?.wheels.map((link): OfferedLink => ({
      number: this.#links.push(link) - 1, file: link.file, sha256: link.sha256,
      ...(link.requiresPython === undefined ? {} : { requiresPython: link.requiresPython }), ...(link.yanked === undefined ? {} : { yanked: link.yanked }),
    }));
    this.#pages.set(project, offered);
    return offered;
  }

  async #fetchPage(project: string): Promise<ProjectPage | undefined> {
    const { response, url } = await this.#open(this.#index.page(project), ACCEPT_PAGE);
    if (response.statusCode === 404) {
      response.destroy();
      return undefined;
    }
    this.#ok(response, `the page of ${quote(project)}`);
    const parts: Buffer[] = [];
    let bytes = 0;
    for await (const part of this.#body(response)) {
      bytes += part.length;
      if (bytes > MAX_INDEX_PAGE_BYTES) throw failed(`the page of ${quote(project)} in the index ${this.#index.shown} has more than ${MAX_INDEX_PAGE_BYTES} bytes`);
      parts.push(part);
    }
    return parseProjectPage(this.#index, project, url, response.headers['content-type'] ?? '', Buffer.concat(parts).toString('utf8'));
  }

  /** A file's octets as they come; the last part only when all of them have the digest of the link. */
  async *file(number: number): AsyncGenerator<Buffer> {
    const link = this.#links[number];
    if (link === undefined) throw failed('the build asked for a file that no page has');
    if (this.#fetched.size >= MAX_BUILD_FILES) throw failed(`the build asked for more than ${MAX_BUILD_FILES} files: pin more of the requirements`);
    const { response } = await this.#open(link.url, '*/*');
    this.#ok(response, `the file ${quote(link.file)}`);
    const digest = createHash('sha256');
    let bytes = 0;
    let held: Buffer | undefined;
    for await (const part of this.#body(response)) {
      bytes += part.length;
      this.#bytes += part.length;
      if (this.#bytes > MAX_WHEEL_BYTES) throw failed(`the packages have more than ${MAX_WHEEL_BYTES} bytes to fetch`);
      digest.update(part);
      if (held !== undefined) yield held;
      held = part;
    }
    if (digest.digest('hex') !== link.sha256) throw failed(`the file ${quote(link.file)} of the index ${this.#index.shown} has not the digest that the index says`);
    this.#fetched.set(number, { file: link.file, sha256: link.sha256, bytes });
    if (held !== undefined) yield held;
  }

  #ok(response: IncomingMessage, what: string): void {
    if (response.statusCode === 200) return;
    response.destroy();
    throw failed(`${what} cannot be had: the index ${this.#index.shown} answered ${response.statusCode ?? 0}`);
  }

  async #open(from: URL, accept: string): Promise<{ readonly response: IncomingMessage; readonly url: URL }> {
    let url = from;
    for (let hop = 0; hop <= MAX_REDIRECTIONS; hop++) {
      if (!this.#index.allows(url)) throw failed(`the index ${this.#index.shown} sends to the host ${quote(url.host)}, which the operator has not allowed (--python-index-files)`);
      const response = await this.#get(url, accept);
      const status = response.statusCode ?? 0;
      if (status < 301 || status > 308 || status === 304) return { response, url };
      response.destroy();
      try {
        url = new URL(response.headers.location ?? '', url);
      } catch (thrown) {
        throw failed(`the index ${this.#index.shown} sends to somewhere that is no URL`, thrown);
      }
    }
    throw failed(`the index ${this.#index.shown} sends on more than ${MAX_REDIRECTIONS} times`);
  }

  #get(url: URL, accept: string): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      const unreachable = (cause: unknown): void => reject(failed(`the index ${this.#index.shown} cannot be reached; tell the operator of the cluster`, cause));
      if (this.#signal.aborted) return unreachable(this.#signal.reason);
      const authorization = this.#index.authorization(url);
      const own = this.#index.certificateAuthorities;
      const headers = { accept, 'user-agent': 'bulkhead', 'accept-encoding': 'identity', ...(authorization === undefined ? {} : { authorization }) };
      const request = url.protocol === 'https:'
        ? getHttps(url, { headers, agent: false, signal: this.#signal, ...(own === undefined ? {} : { ca: [...rootCertificates, own] }) })
        : getHttp(url, { headers, agent: false, signal: this.#signal });
      request.setTimeout(INDEX_STALL_MS, () => request.destroy(new Error('no answer in time')));
      request.on('response', resolve);
      request.on('error', unreachable);
    });
  }

  async *#body(response: IncomingMessage): AsyncGenerator<Buffer> {
    try {
      for await (const part of response) yield part as Buffer;
    } catch (thrown) {
      throw thrown instanceof BulkheadError ? thrown : failed(`the index ${this.#index.shown} broke off its answer`, thrown);
    } finally {
      response.destroy();
    }
  }
}
