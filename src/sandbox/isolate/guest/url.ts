/**
 * URL and URLSearchParams for isolates, after the WHATWG URL standard: its state machine, state by state, so that it can be read beside
 * the text. Names of hosts that are not ASCII are normalised (NFKC, lower case) and encoded as Punycode, without the full UTS 46 table.
 */
import { TextDecoder, encodeUtf8 } from './text-codecs.ts';

interface UrlRecord {
  scheme: string;
  username: string;
  password: string;
  host: string | null;
  port: number | null;
  /** Text: an opaque path. */
  path: string[] | string;
  query: string | null;
  fragment: string | null;
}

type State =
  | 'scheme start' | 'scheme' | 'no scheme' | 'special relative or authority' | 'path or authority' | 'relative' | 'relative slash' | 'special authority slashes' | 'special authority ignore slashes'
  | 'authority' | 'host' | 'hostname' | 'port' | 'file' | 'file slash' | 'file host' | 'path start' | 'path' | 'opaque path' | 'query' | 'fragment';

const DEFAULT_PORTS = new Map<string, number | null>([['ftp', 21], ['file', null], ['http', 80], ['https', 443], ['ws', 80], ['wss', 443]]);
const isSpecial = (url: UrlRecord): boolean => DEFAULT_PORTS.has(url.scheme);

// --- percent-encoding -----------------------------------------------------------------------------------------------

const FRAGMENT_SET = ' "<>`';
const QUERY_SET = ' "#<>';
const SPECIAL_QUERY_SET = `${QUERY_SET}'`;
const PATH_SET = `${QUERY_SET}?^\`{}`;
const USERINFO_SET = `${PATH_SET}/:;=@[\\]|`;
const COMPONENT_SET = `${USERINFO_SET}$%&+,`;
const FORM_SET = `${COMPONENT_SET}!'()~`;

function percentEncode(text: string, set: string): string {
  let out = '';
  for (const c of text) {
    const code = c.codePointAt(0) as number;
    if (code > 0x1f && code < 0x7f && !set.includes(c)) out += c;
    else for (const octet of encodeUtf8(c)) out += `%${(octet + 0x100).toString(16).slice(1).toUpperCase()}`;
  }
  return out;
}

function percentDecode(text: string): string {
  const octets = encodeUtf8(text);
  const out: number[] = [];
  for (let i = 0; i < octets.length; i++) {
    const hex = octets[i] === 0x25 ? String.fromCharCode(octets[i + 1] ?? 0, octets[i + 2] ?? 0) : '';
    if (/^[0-9A-Fa-f]{2}$/.test(hex)) {
      out.push(Number.parseInt(hex, 16));
      i += 2;
    } else out.push(octets[i] as number);
  }
  return new TextDecoder('utf-8', { ignoreBOM: true }).decode(Uint8Array.from(out));
}

// --- hosts ----------------------------------------------------------------------------------------------------------

const FORBIDDEN_HOST = /[\0\t\n\r #/:<>?@[\\\]^|]/;
const FORBIDDEN_DOMAIN = /[\0-\x20#%/:<>?@[\\\]^|\x7f]/;

function punycode(label: string): string {
  const points = Array.from(label, (c) => c.codePointAt(0) as number);
  let out = points.filter((c) => c < 0x80).map((c) => String.fromCharCode(c)).join('');
  let handled = out.length;
  const basic = handled;
  if (basic > 0) out += '-';
  let [n, delta, bias] = [128, 0, 72];
  const digit = (d: number): string => String.fromCharCode(d < 26 ? 97 + d : 22 + d);
  while (handled < points.length) {
    const m = Math.min(...points.filter((c) => c >= n));
    delta += (m - n) * (handled + 1);
    n = m;
    for (const c of points) {
      if (c < n) delta++;
      if (c !== n) continue;
      let q = delta;
      for (let k = 36; ; k += 36) {
        const t = k <= bias ? 1 : k >= bias + 26 ? 26 : k - bias;
        if (q < t) break;
        out += digit(t + ((q - t) % (36 - t)));
        q = Math.floor((q - t) / (36 - t));
      }
      out += digit(q);
      delta = handled === basic ? Math.floor(delta / 700) : delta >> 1;
      delta += Math.floor(delta / (handled + 1));
      let k = 0;
      for (; delta > 455; k += 36) delta = Math.floor(delta / 35);
      bias = k + Math.floor((36 * delta) / (delta + 38));
      delta = 0;
      handled++;
    }
    delta++;
    n++;
  }
  return `xn--${out}`;
}

/** Empty: not a domain. */
function domainToAscii(domain: string): string {
  if (/^[\0-\x7f]*$/.test(domain)) return domain.toLowerCase();
  const mapped = domain.replace(/[\u3002\uff0e\uff61]/g, '.').replace(/[\u00ad\u200b\u2060\ufeff]/g, '').normalize('NFKC').toLowerCase().normalize('NFC');
  if (/[\ufffd\p{C}]/u.test(mapped)) return '';
  return mapped.split('.').map((label) => (/^[\0-\x7f]*$/.test(label) ? label : punycode(label))).join('.');
}

function parseIpv4Number(text: string): number | undefined {
  if (text === '') return undefined;
  const radix = /^0[xX]/.test(text) ? 16 : text.length >= 2 && text.startsWith('0') ? 8 : 10;
  const digits = radix === 16 ? text.slice(2) : radix === 8 ? text.slice(1) : text;
  if (digits === '') return 0;
  const allowed = radix === 16 ? /^[0-9a-fA-F]+$/ : radix === 8 ? /^[0-7]+$/ : /^[0-9]+$/;
  return allowed.test(digits) ? Number.parseInt(digits, radix) : undefined;
}

function endsInNumber(domain: string): boolean {
  const parts = domain.split('.');
  if (parts.at(-1) === '') {
    if (parts.length === 1) return false;
    parts.pop();
  }
  const last = parts.at(-1) as string;
  return /^[0-9]+$/.test(last) || (/^0[xX]/.test(last) && parseIpv4Number(last) !== undefined);
}

function parseIpv4(domain: string): string | undefined {
  const parts = domain.split('.');
  if (parts.at(-1) === '' && parts.length > 1) parts.pop();
  if (parts.length > 4) return undefined;
  const numbers = parts.map(parseIpv4Number);
  let address = 0;
  for (let i = 0; i < numbers.length; i++) {
    const n = numbers[i];
    const last = i === numbers.length - 1;
    if (n === undefined || (last ? n >= 256 ** (5 - numbers.length) : n > 255)) return undefined;
    address += last ? n : n * 256 ** (3 - i);
  }
  return [24, 16, 8, 0].map((shift) => Math.floor(address / 2 ** shift) % 256).join('.');
}

function parseIpv6(text: string): string | undefined {
  const halves = text.split('::');
  if (halves.length > 2) return undefined;
  const pieces: number[][] = [];
  for (const [h, half] of halves.entries()) {
    const values: number[] = [];
    const parts = half === '' ? [] : half.split(':');
    for (const [i, part] of parts.entries()) {
      if (part.includes('.') && h === halves.length - 1 && i === parts.length - 1) {
        const octets = part.split('.');
        if (octets.length !== 4 || !octets.every((o) => /^(0|[1-9][0-9]{0,2})$/.test(o) && Number(o) < 256)) return undefined;
        const [a, b, c, d] = octets.map(Number) as [number, number, number, number];
        values.push(a * 256 + b, c * 256 + d);
      } else if (/^[0-9a-fA-F]{1,4}$/.test(part)) values.push(Number.parseInt(part, 16));
      else return undefined;
    }
    pieces.push(values);
  }
  const [head = [], tail] = pieces;
  const total = head.length + (tail?.length ?? 0);
  if (tail === undefined ? total !== 8 : total > 7) return undefined;
  const words = tail === undefined ? head : [...head, ...Array.from({ length: 8 - total }, () => 0), ...tail];
  let [best, bestLength] = [-1, 1];
  for (let i = 0; i < 8; i++) {
    let n = 0;
    while (words[i + n] === 0) n++;
    if (n > bestLength) [best, bestLength] = [i, n];
    i += n;
  }
  const hex = (list: readonly number[]): string => list.map((word) => word.toString(16)).join(':');
  return best < 0 ? hex(words) : `${hex(words.slice(0, best))}::${hex(words.slice(best + bestLength))}`;
}

/** Undefined: failure. */
function parseHost(input: string, notSpecial: boolean): string | undefined {
  if (input.startsWith('[')) {
    const address = input.endsWith(']') ? parseIpv6(input.slice(1, -1)) : undefined;
    return address === undefined ? undefined : `[${address}]`;
  }
  if (notSpecial) return FORBIDDEN_HOST.test(input) ? undefined : percentEncode(input, '');
  const domain = domainToAscii(percentDecode(input));
  if (domain === '' || FORBIDDEN_DOMAIN.test(domain)) return undefined;
  return endsInNumber(domain) ? parseIpv4(domain) : domain;
}

// --- the parser -----------------------------------------------------------------------------------------------------

const isDriveLetter = (text: string): boolean => /^[A-Za-z][:|]$/.test(text);
const startsWithDriveLetter = (points: readonly string[], at: number): boolean => isDriveLetter(points.slice(at, at + 2).join('')) && (points.length === at + 2 || '/\\?#'.includes(points[at + 2] as string));
const isSingleDot = (text: string): boolean => /^(?:\.|%2e)$/i.test(text);
const isDoubleDot = (text: string): boolean => /^(?:\.|%2e){2}$/i.test(text);

function shorten(url: UrlRecord): void {
  const path = url.path as string[];
  if (url.scheme === 'file' && path.length === 1 && /^[A-Za-z]:$/.test(path[0] as string)) return;
  path.pop();
}

/** The basic URL parser. With `given` and `override` it serves a setter: what it returns then does not matter. Undefined: failure. */
function parse(text: string, base?: UrlRecord, given?: UrlRecord, override?: State): UrlRecord | undefined {
  const trimmed = given === undefined ? text.replace(/^[\0-\x20]+|[\0-\x20]+$/g, '') : text;
  const points = Array.from(trimmed.replace(/[\t\n\r]/g, ''));
  const url: UrlRecord = given ?? { scheme: '', username: '', password: '', host: null, port: null, path: [], query: null, fragment: null };
  let state: State = override ?? 'scheme start';
  let buffer = '';
  let [atSeen, inBrackets, passwordSeen] = [false, false, false];
  const hasCredentials = (): boolean => url.username !== '' || url.password !== '';
  const list = (): string[] => url.path as string[];
  const copyFrom = (from: UrlRecord, path: boolean): void => {
    url.username = from.username;
    url.password = from.password;
    url.host = from.host;
    url.port = from.port;
    if (path) {
      url.path = [...from.path];
      url.query = from.query;
    }
  };

  for (let p = 0; ; p++) {
    const c = points[p];
    const slash = c === '/' || (isSpecial(url) && c === '\\');
    const toQueryOrFragment = (): boolean => {
      if (c === '?') {
        url.query = '';
        state = 'query';
      } else if (c === '#') {
        url.fragment = '';
        state = 'fragment';
      } else return false;
      return true;
    };
    switch (state) {
      case 'scheme start':
        if (c !== undefined && /[A-Za-z]/.test(c)) {
          buffer += c.toLowerCase();
          state = 'scheme';
        } else if (override === undefined) {
          state = 'no scheme';
          p--;
        } else return undefined;
        break;
      case 'scheme':
        if (c !== undefined && /[A-Za-z0-9+.-]/.test(c)) buffer += c.toLowerCase();
        else if (c === ':') {
          if (override !== undefined) {
            if (isSpecial(url) !== DEFAULT_PORTS.has(buffer) || ((hasCredentials() || url.port !== null) && buffer === 'file') || (url.scheme === 'file' && url.host === '')) return url;
            url.scheme = buffer;
            if (url.port === DEFAULT_PORTS.get(buffer)) url.port = null;
            return url;
          }
          url.scheme = buffer;
          buffer = '';
          if (url.scheme === 'file') state = 'file';
          else if (isSpecial(url)) state = base?.scheme === url.scheme ? 'special relative or authority' : 'special authority slashes';
          else if (points[p + 1] === '/') {
            state = 'path or authority';
            p++;
          } else {
            url.path = '';
            state = 'opaque path';
          }
        } else if (override === undefined) {
          buffer = '';
          state = 'no scheme';
          p = -1;
          continue;
        } else return undefined;
        break;
      case 'no scheme':
        if (base === undefined || (typeof base.path === 'string' && c !== '#')) return undefined;
        if (typeof base.path === 'string') {
          url.scheme = base.scheme;
          url.path = base.path;
          url.query = base.query;
          url.fragment = '';
          state = 'fragment';
        } else {
          state = base.scheme === 'file' ? 'file' : 'relative';
          p--;
        }
        break;
      case 'special relative or authority':
        if (c === '/' && points[p + 1] === '/') {
          state = 'special authority ignore slashes';
          p++;
        } else {
          state = 'relative';
          p--;
        }
        break;
      case 'path or authority':
        if (c === '/') state = 'authority';
        else {
          state = 'path';
          p--;
        }
        break;
      case 'relative': {
        const from = base as UrlRecord;
        url.scheme = from.scheme;
        if (c === '/' || (isSpecial(url) && c === '\\')) state = 'relative slash';
        else {
          copyFrom(from, true);
          if (!toQueryOrFragment() && c !== undefined) {
            url.query = null;
            shorten(url);
            state = 'path';
            p--;
          }
        }
        break;
      }
      case 'relative slash':
        if (isSpecial(url) && slash) state = 'special authority ignore slashes';
        else if (c === '/') state = 'authority';
        else {
          copyFrom(base as UrlRecord, false);
          state = 'path';
          p--;
        }
        break;
      case 'special authority slashes':
        state = 'special authority ignore slashes';
        if (c === '/' && points[p + 1] === '/') p++;
        else p--;
        break;
      case 'special authority ignore slashes':
        if (c !== '/' && c !== '\\') {
          state = 'authority';
          p--;
        }
        break;
      case 'authority':
        if (c === '@') {
          if (atSeen) buffer = `%40${buffer}`;
          atSeen = true;
          for (const point of buffer) {
            if (point === ':' && !passwordSeen) passwordSeen = true;
            else if (passwordSeen) url.password += percentEncode(point, USERINFO_SET);
            else url.username += percentEncode(point, USERINFO_SET);
          }
          buffer = '';
        } else if (c === undefined || slash || c === '?' || c === '#') {
          if (atSeen && buffer === '') return undefined;
          p -= Array.from(buffer).length + 1;
          buffer = '';
          state = 'host';
        } else buffer += c;
        break;
      case 'host':
      case 'hostname':
        if (override !== undefined && url.scheme === 'file') {
          p--;
          state = 'file host';
        } else if (c === ':' && !inBrackets) {
          if (buffer === '' || override === 'hostname') return undefined;
          const host = parseHost(buffer, !isSpecial(url));
          if (host === undefined) return undefined;
          url.host = host;
          buffer = '';
          state = 'port';
        } else if (c === undefined || slash || c === '?' || c === '#') {
          p--;
          if (isSpecial(url) && buffer === '') return undefined;
          if (override !== undefined && buffer === '' && (hasCredentials() || url.port !== null)) return undefined;
          const host = buffer === '' ? '' : parseHost(buffer, !isSpecial(url));
          if (host === undefined) return undefined;
          url.host = host;
          buffer = '';
          state = 'path start';
          if (override !== undefined) return url;
        } else {
          if (c === '[') inBrackets = true;
          if (c === ']') inBrackets = false;
          buffer += c;
        }
        break;
      case 'port':
        if (c !== undefined && /[0-9]/.test(c)) buffer += c;
        else if (c === undefined || slash || c === '?' || c === '#' || override !== undefined) {
          if (buffer !== '') {
            const port = Number(buffer);
            if (port > 65_535) return undefined;
            url.port = port === DEFAULT_PORTS.get(url.scheme) ? null : port;
            buffer = '';
            if (override !== undefined) return url;
          }
          if (override !== undefined) return undefined;
          state = 'path start';
          p--;
        } else return undefined;
        break;
      case 'file':
        url.scheme = 'file';
        url.host = '';
        if (c === '/' || c === '\\') state = 'file slash';
        else if (base?.scheme === 'file') {
          url.host = base.host;
          url.path = [...base.path];
          url.query = base.query;
          if (!toQueryOrFragment() && c !== undefined) {
            url.query = null;
            if (startsWithDriveLetter(points, p)) url.path = [];
            else shorten(url);
            state = 'path';
            p--;
          }
        } else {
          state = 'path';
          p--;
        }
        break;
      case 'file slash':
        if (c === '/' || c === '\\') state = 'file host';
        else {
          if (base?.scheme === 'file') {
            url.host = base.host;
            const [first] = base.path;
            if (!startsWithDriveLetter(points, p) && first !== undefined && /^[A-Za-z]:$/.test(first)) list().push(first);
          }
          state = 'path';
          p--;
        }
        break;
      case 'file host':
        if (c === undefined || c === '/' || c === '\\' || c === '?' || c === '#') {
          p--;
          if (override === undefined && isDriveLetter(buffer)) state = 'path';
          else {
            const host = buffer === '' ? '' : parseHost(buffer, !isSpecial(url));
            if (host === undefined) return undefined;
            url.host = host === 'localhost' ? '' : host;
            if (override !== undefined) return url;
            buffer = '';
            state = 'path start';
          }
        } else buffer += c;
        break;
      case 'path start':
        if (isSpecial(url)) {
          state = 'path';
          if (!slash) p--;
        } else if (override !== undefined || !toQueryOrFragment()) {
          if (c !== undefined) {
            state = 'path';
            if (c !== '/') p--;
          } else if (override !== undefined && url.host === null) list().push('');
        }
        break;
      case 'path':
        if (c === undefined || slash || (override === undefined && (c === '?' || c === '#'))) {
          if (isDoubleDot(buffer)) {
            shorten(url);
            if (!slash) list().push('');
          } else if (isSingleDot(buffer)) {
            if (!slash) list().push('');
          } else {
            if (url.scheme === 'file' && list().length === 0 && isDriveLetter(buffer)) buffer = `${buffer[0] as string}:`;
            list().push(buffer);
          }
          buffer = '';
          if (override === undefined) toQueryOrFragment();
        } else buffer += percentEncode(c, PATH_SET);
        break;
      case 'opaque path':
        if (!toQueryOrFragment() && c !== undefined) url.path = (url.path as string) + (c === ' ' && (points[p + 1] === '?' || points[p + 1] === '#') ? '%20' : percentEncode(c, ''));
        break;
      case 'query':
        if (c === undefined || (override === undefined && c === '#')) {
          url.query = (url.query ?? '') + percentEncode(buffer, isSpecial(url) ? SPECIAL_QUERY_SET : QUERY_SET);
          buffer = '';
          toQueryOrFragment();
        } else buffer += c;
        break;
      case 'fragment':
        if (c !== undefined) url.fragment = (url.fragment ?? '') + percentEncode(c, FRAGMENT_SET);
        break;
    }
    if (p >= points.length) return url;
  }
}

function pathText(url: UrlRecord): string {
  return typeof url.path === 'string' ? url.path : url.path.map((segment) => `/${segment}`).join('');
}

function serialize(url: UrlRecord): string {
  let out = `${url.scheme}:`;
  if (url.host !== null) {
    const credentials = url.username === '' && url.password === '' ? '' : `${url.username}${url.password === '' ? '' : `:${url.password}`}@`;
    out += `//${credentials}${url.host}${url.port === null ? '' : `:${url.port}`}`;
  } else if (typeof url.path !== 'string' && url.path.length > 1 && url.path[0] === '') out += '/.';
  return out + pathText(url) + (url.query === null ? '' : `?${url.query}`) + (url.fragment === null ? '' : `#${url.fragment}`);
}

// --- the classes ----------------------------------------------------------------------------------------------------

const decodeForm = (text: string): string => percentDecode(text.replaceAll('+', ' '));
const encodeForm = (text: string): string => percentEncode(text, FORM_SET).replaceAll('%20', '+');

function parseForm(text: string): [string, string][] {
  return text.split('&').filter((part) => part !== '').map((part) => {
    const at = part.indexOf('=');
    return at < 0 ? [decodeForm(part), ''] : [decodeForm(part.slice(0, at)), decodeForm(part.slice(at + 1))];
  });
}

/** Set by URL: replaces the list of its own parameters, and tells it when they change. */
let replaceList: (params: URLSearchParams, query: string) => void;
let onChange: (params: URLSearchParams, changed: (query: string) => void) => void;

export class URLSearchParams {
  #list: [string, string][] = [];
  #changed: ((query: string) => void) | undefined;

  static {
    replaceList = (params, query) => {
      params.#list = parseForm(query);
    };
    onChange = (params, changed) => {
      params.#changed = changed;
    };
  }

  constructor(init: unknown = '') {
    const pair = (name: unknown, value: unknown): void => void this.#list.push([String(name).toWellFormed(), String(value).toWellFormed()]);
    if (typeof init === 'object' && init !== null) {
      if (Symbol.iterator in init) {
        for (const entry of init as Iterable<Iterable<unknown>>) {
          const items = [...entry];
          if (items.length !== 2) throw new TypeError('each query pair must have a name and a value');
          pair(items[0], items[1]);
        }
      } else for (const name of Object.keys(init)) pair(name, (init as Record<string, unknown>)[name]);
    } else {
      const text = String(init).toWellFormed();
      this.#list = parseForm(text.startsWith('?') ? text.slice(1) : text);
    }
  }

  #update(): void {
    this.#changed?.(this.toString());
  }

  get size(): number {
    return this.#list.length;
  }

  append(name: unknown, value: unknown): void {
    this.#list.push([String(name).toWellFormed(), String(value).toWellFormed()]);
    this.#update();
  }

  delete(name: unknown, value?: unknown): void {
    this.#list = this.#list.filter(([n, v]) => n !== String(name) || (value !== undefined && v !== String(value)));
    this.#update();
  }

  get(name: unknown): string | null {
    return this.#list.find(([n]) => n === String(name))?.[1] ?? null;
  }

  getAll(name: unknown): string[] {
    return this.#list.filter(([n]) => n === String(name)).map(([, v]) => v);
  }

  has(name: unknown, value?: unknown): boolean {
    return this.#list.some(([n, v]) => n === String(name) && (value === undefined || v === String(value)));
  }

  set(name: unknown, value: unknown): void {
    const first = this.#list.find(([n]) => n === String(name));
    if (first === undefined) this.#list.push([String(name).toWellFormed(), String(value).toWellFormed()]);
    else {
      first[1] = String(value).toWellFormed();
      this.#list = this.#list.filter((entry) => entry === first || entry[0] !== String(name));
    }
    this.#update();
  }

  sort(): void {
    this.#list.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
    this.#update();
  }

  forEach(callback: (value: string, name: string, params: URLSearchParams) => void, self?: unknown): void {
    for (const [name, value] of this) callback.call(self, value, name, this);
  }

  *entries(): Generator<[string, string]> {
    for (let i = 0; i < this.#list.length; i++) {
      const [name, value] = this.#list[i] as [string, string];
      yield [name, value];
    }
  }

  *keys(): Generator<string> {
    for (const [name] of this.entries()) yield name;
  }

  *values(): Generator<string> {
    for (const [, value] of this.entries()) yield value;
  }

  [Symbol.iterator](): Generator<[string, string]> {
    return this.entries();
  }

  toString(): string {
    return this.#list.map(([name, value]) => `${encodeForm(name)}=${encodeForm(value)}`).join('&');
  }

  get [Symbol.toStringTag](): string {
    return 'URLSearchParams';
  }
}

function parseBoth(text: unknown, base: unknown): UrlRecord | undefined {
  const from = base === undefined ? undefined : parse(String(base).toWellFormed());
  return base !== undefined && from === undefined ? undefined : parse(String(text).toWellFormed(), from);
}

export class URL {
  #url: UrlRecord;
  readonly #params = new URLSearchParams();

  constructor(text: unknown, base?: unknown) {
    const url = parseBoth(text, base);
    if (url === undefined) throw new TypeError('Invalid URL');
    this.#url = url;
    replaceList(this.#params, url.query ?? '');
    onChange(this.#params, (query) => {
      this.#url.query = query === '' ? null : query;
    });
  }

  static canParse(text: unknown, base?: unknown): boolean {
    return parseBoth(text, base) !== undefined;
  }

  static parse(text: unknown, base?: unknown): URL | null {
    return URL.canParse(text, base) ? new URL(text, base) : null;
  }

  /** As the standard says: what was set before a failure stays set. */
  #override(text: string, state: State): void {
    parse(text, undefined, this.#url, state);
  }

  get #cannotHaveCredentials(): boolean {
    return this.#url.host === null || this.#url.host === '' || this.#url.scheme === 'file';
  }

  get href(): string {
    return serialize(this.#url);
  }

  set href(value: unknown) {
    const url = parse(String(value).toWellFormed());
    if (url === undefined) throw new TypeError('Invalid URL');
    this.#url = url;
    replaceList(this.#params, url.query ?? '');
  }

  get origin(): string {
    const { scheme, host, port } = this.#url;
    if (scheme === 'blob') {
      const inner = parse(pathText(this.#url));
      return inner !== undefined && (inner.scheme === 'http' || inner.scheme === 'https') ? new URL(serialize(inner)).origin : 'null';
    }
    return isSpecial(this.#url) && scheme !== 'file' ? `${scheme}://${host ?? ''}${port === null ? '' : `:${port}`}` : 'null';
  }

  get protocol(): string {
    return `${this.#url.scheme}:`;
  }

  set protocol(value: unknown) {
    this.#override(`${String(value).toWellFormed()}:`, 'scheme start');
  }

  get username(): string {
    return this.#url.username;
  }

  set username(value: unknown) {
    if (!this.#cannotHaveCredentials) this.#url.username = percentEncode(String(value).toWellFormed(), USERINFO_SET);
  }

  get password(): string {
    return this.#url.password;
  }

  set password(value: unknown) {
    if (!this.#cannotHaveCredentials) this.#url.password = percentEncode(String(value).toWellFormed(), USERINFO_SET);
  }

  get host(): string {
    return `${this.#url.host ?? ''}${this.#url.port === null ? '' : `:${this.#url.port}`}`;
  }

  set host(value: unknown) {
    if (typeof this.#url.path !== 'string') this.#override(String(value).toWellFormed(), 'host');
  }

  get hostname(): string {
    return this.#url.host ?? '';
  }

  set hostname(value: unknown) {
    if (typeof this.#url.path !== 'string') this.#override(String(value).toWellFormed(), 'hostname');
  }

  get port(): string {
    return this.#url.port === null ? '' : String(this.#url.port);
  }

  set port(value: unknown) {
    if (this.#cannotHaveCredentials) return;
    if (String(value) === '') this.#url.port = null;
    else this.#override(String(value).toWellFormed(), 'port');
  }

  get pathname(): string {
    return pathText(this.#url);
  }

  set pathname(value: unknown) {
    if (typeof this.#url.path === 'string') return;
    this.#url.path = [];
    this.#override(String(value).toWellFormed(), 'path start');
  }

  get search(): string {
    return this.#url.query === null || this.#url.query === '' ? '' : `?${this.#url.query}`;
  }

  set search(value: unknown) {
    const text = String(value).toWellFormed();
    if (text === '') this.#url.query = null;
    else {
      this.#url.query = '';
      this.#override(text.startsWith('?') ? text.slice(1) : text, 'query');
    }
    replaceList(this.#params, this.#url.query ?? '');
  }

  get searchParams(): URLSearchParams {
    return this.#params;
  }

  get hash(): string {
    return this.#url.fragment === null || this.#url.fragment === '' ? '' : `#${this.#url.fragment}`;
  }

  set hash(value: unknown) {
    const text = String(value).toWellFormed();
    if (text === '') this.#url.fragment = null;
    else {
      this.#url.fragment = '';
      this.#override(text.startsWith('#') ? text.slice(1) : text, 'fragment');
    }
  }

  toString(): string {
    return this.href;
  }

  toJSON(): string {
    return this.href;
  }

  get [Symbol.toStringTag](): string {
    return 'URL';
  }
}
