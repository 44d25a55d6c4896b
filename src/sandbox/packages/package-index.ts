/**
 * The package index of the operator: which requests may be made of it at all, and what its pages say. Pure. Must never: accept a requirement that names a place (a URL, a path, an
 * option of pip); keep a link to a host that the operator did not allow, to anything but a wheel, or without a SHA-256.
 */
import { BulkheadError } from '../../base/errors.ts';
import { quote } from '../../base/ids.ts';

export interface PackageIndexConfig {
  /** The root of its simple pages (PEP 503, PEP 691), https. */
  readonly url: string;
  /** Hosts besides the index's own that its files may be on. */
  readonly fileHosts: readonly string[];
  /** PEM of authorities beside those that node brings. */
  readonly certificateAuthorities?: string | undefined;
  /** Plain HTTP to a loopback address is taken: an index on this machine, for tests. */
  readonly loopbackHttp: boolean;
}

/** Where the most used index keeps its files. */
const KNOWN_FILE_HOSTS: Readonly<Record<string, readonly string[]>> = { 'pypi.org': ['files.pythonhosted.org'] };
const LOOPBACK = /^(?:127\.\d{1,3}\.\d{1,3}\.\d{1,3}|\[::1\])$/;
const WHEEL = /^([A-Za-z0-9](?:[A-Za-z0-9._]*[A-Za-z0-9])?)-([A-Za-z0-9_.!+]+)(?:-\d[A-Za-z0-9_.]*)?-[A-Za-z0-9_.]+-[A-Za-z0-9_.]+-[A-Za-z0-9_.]+\.whl$/;
const SOURCE = /\.(?:tar\.gz|zip|tar\.bz2|tgz)$/;
const MAX_FILE_NAME_CHARS = 255;
const MAX_LINKS = 20_000;

export class PackageIndex {
  readonly root: URL;
  readonly certificateAuthorities: string | undefined;
  /** As tenants may see it. */
  readonly shown: string;
  readonly #hosts: ReadonlySet<string>;
  readonly #loopbackHttp: boolean;
  readonly #authorization: string | undefined;

  /** Throws ENVIRONMENT_FAILED. */
  constructor(config: PackageIndexConfig) {
    const refuse = (why: string): never => {
      throw new BulkheadError('ENVIRONMENT_FAILED', `the package index of this cluster cannot be used: ${why}; tell its operator`);
    };
    const root = URL.parse(config.url.endsWith('/') ? config.url : `${config.url}/`) ?? refuse('its URL is not one');
    this.#loopbackHttp = config.loopbackHttp;
    if (root.search !== '' || root.hash !== '') refuse('its URL has a query or a fragment');
    if (!this.#secure(root)) refuse('its URL must begin with https:// (plain HTTP is possible on a loopback address only, when asked for)');
    if (root.username !== '') this.#authorization = `Basic ${Buffer.from(`${decodeURIComponent(root.username)}:${decodeURIComponent(root.password)}`, 'utf8').toString('base64')}`;
    // From here on in the header of requests to this one host, and in no URL, message or link.
    root.username = root.password = '';
    this.root = root;
    this.certificateAuthorities = config.certificateAuthorities;
    this.shown = root.href;
    this.#hosts = new Set([root.host, ...(KNOWN_FILE_HOSTS[root.host] ?? []), ...config.fileHosts]);
  }

  #secure(url: URL): boolean {
    return url.protocol === 'https:' || (url.protocol === 'http:' && this.#loopbackHttp && LOOPBACK.test(url.hostname));
  }

  /** Whether anything may be fetched there: links and redirections alike. */
  allows(url: URL): boolean {
    return this.#secure(url) && this.#hosts.has(url.host) && url.username === '' && url.password === '';
  }

  /** Name and password for the index's own host, and for no other. */
  authorization(url: URL): string | undefined {
    return url.host === this.root.host ? this.#authorization : undefined;
  }

  /** `project` is normalised: see `isProject`. */
  page(project: string): URL {
    return new URL(`${project}/`, this.root);
  }
}

/** A project's name as PEP 503 normalises it. */
export function isProject(text: string): boolean {
  return text.length <= 128 && /^[a-z0-9](?:[a-z0-9-]*[a-z0-9])?$/.test(text);
}

export function normalisedProject(name: string): string {
  return name.replace(/[-_.]+/g, '-').toLowerCase();
}

export interface WheelLink {
  readonly file: string;
  readonly url: URL;
  readonly sha256: string;
  readonly requiresPython: string | undefined;
  readonly yanked: string | undefined;
}

export interface ProjectPage {
  readonly wheels: readonly WheelLink[];
  /** How many files are sources, which would run their own code to be built. */
  readonly sources: number;
}

/** Project and version of a wheel, by its file's name; undefined: it is none. */
export function wheelName(file: string): { readonly project: string; readonly version: string } | undefined {
  const found = file.length <= MAX_FILE_NAME_CHARS ? WHEEL.exec(file) : null;
  return found === null ? undefined : { project: normalisedProject(found[1] as string), version: found[2] as string };
}

/** What a page of the index offers of `project`. Whatever does not fit is left out; nothing here throws for the page's content. */
export function parseProjectPage(index: PackageIndex, project: string, base: URL, contentType: string, text: string): ProjectPage {
  const found = /\bjson\b/.test(contentType) ? fromJson(text) : fromHtml(text);
  const wheels: WheelLink[] = [];
  let sources = 0;
  for (const { file, href, sha256, requiresPython, yanked } of found.slice(0, MAX_LINKS)) {
    if (SOURCE.test(file)) sources++;
    // Another project's file on this page would be installed under this one's name.
    if (wheelName(file)?.project !== project || !/^[0-9a-f]{64}$/.test(sha256)) continue;
    let url: URL;
    try {
      url = new URL(href, base);
    } catch {
      continue;
    }
    url.hash = '';
    if (index.allows(url)) wheels.push({ file, url, sha256, requiresPython: requiresPython?.slice(0, 128), yanked: yanked?.slice(0, 256) });
  }
  return { wheels, sources };
}

interface RawLink {
  readonly file: string;
  readonly href: string;
  readonly sha256: string;
  readonly requiresPython: string | undefined;
  readonly yanked: string | undefined;
}

const text = (value: unknown): string => (typeof value === 'string' ? value : '');

function fromJson(page: string): RawLink[] {
  let said: unknown;
  try {
    said = JSON.parse(page);
  } catch {
    return [];
  }
  const files: unknown = (said as { files?: unknown } | null)?.files;
  if (!Array.isArray(files)) return [];
  return (files as unknown[]).filter((file): file is Record<string, unknown> => typeof file === 'object' && file !== null).map((file) => {
    const yanked = file['yanked'];
    return {
      file: text(file['filename']), href: text(file['url']), sha256: text((file['hashes'] as Record<string, unknown> | null | undefined)?.['sha256']),
      requiresPython: typeof file['requires-python'] === 'string' ? file['requires-python'] : undefined,
      yanked: yanked === true ? '' : typeof yanked === 'string' ? yanked : undefined,
    };
  });
}

const ENTITIES: Readonly<Record<string, string>> = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'", '#39': "'", '#34': '"', '#62': '>', '#60': '<', '#38': '&' };

function unescaped(value: string): string {
  return value.replace(/&([a-z]{2,4}|#\d{2});/g, (whole, name: string) => ENTITIES[name] ?? whole);
}

function fromHtml(page: string): RawLink[] {
  const found: RawLink[] = [];
  for (const [, attributes = ''] of page.matchAll(/<a\s([^>]{1,8192})>/gi)) {
    const of = (name: string): string | undefined => {
      const match = new RegExp(`(?:^|\\s)${name}\\s*=\\s*(?:"([^"]*)"|'([^']*)')`, 'i').exec(attributes);
      return match === null ? undefined : unescaped(match[1] ?? match[2] ?? '');
    };
    const href = of('href');
    if (href === undefined) continue;
    const [place = '', fragment = ''] = href.split('#');
    let file = '';
    try {
      file = decodeURIComponent(place.slice(place.lastIndexOf('/') + 1));
    } catch {
      continue;
    }
    const yanked = of('data-yanked') ?? (/(?:^|\s)data-yanked(?:\s|$)/.test(attributes) ? '' : undefined);
    found.push({ file, href: place, sha256: /^sha256=([0-9a-f]{64})$/.exec(fragment)?.[1] ?? '', requiresPython: of('data-requires-python'), yanked });
    if (found.length >= MAX_LINKS) break;
  }
  return found;
}

/** For messages: what a tenant asked for, and where. */
export function missingProject(index: PackageIndex, project: string, page: ProjectPage | undefined): string {
  if (page === undefined) return `the package ${quote(project)} is not in the index ${index.shown}`;
  if (page.wheels.length === 0 && page.sources > 0) return `the package ${quote(project)} has source distributions only in the index ${index.shown}: building one would run its code, so wheels only are installed`;
  return `the index ${index.shown} has no wheel of ${quote(project)}`;
}
