/**
 * Branded identifiers, parsed once at the door. A value of these types has been checked: code behind the door never
 * re-checks, and never builds one by a cast. Allow-lists only; what does not match is refused, never repaired.
 */
import { BulkheadError } from './errors.ts';

declare const brand: unique symbol;
type Brand<T, B extends string> = T & { readonly [brand]: B };

export type TenantName = Brand<string, 'TenantName'>;
export type TrustDomain = Brand<string, 'TrustDomain'>;
export type SpiffeId = Brand<string, 'SpiffeId'>;
export type NodeId = Brand<string, 'NodeId'>;
export type JobId = Brand<string, 'JobId'>;
export type WorkerId = Brand<string, 'WorkerId'>;
/** `obj-` and 48 hex digits: tenant number, node number, session (12 random bytes), index. */
export type ObjectIdText = Brand<string, 'ObjectIdText'>;
export type Sha256Hex = Brand<string, 'Sha256Hex'>;

const NAME = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/;

function parser<T>(what: string, pattern: RegExp, hint: string): (text: unknown) => T {
  return (text) => {
    if (typeof text !== 'string' || !pattern.test(text)) {
      throw new BulkheadError('INVALID_ARGUMENT', `${what} ${quote(text)} is not valid: ${hint}`);
    }
    return text as T;
  };
}

/** Shows a foreign value in an error: bounded, printable ASCII only, so that it cannot forge a log line or a terminal code. */
export function quote(value: unknown): string {
  const text = typeof value === 'string' ? value : typeof value;
  const shown = text.length > 80 ? `${text.slice(0, 80)}…` : text;
  return `'${shown.replace(/[^\x20-\x26\x28-\x5b\x5d-\x7e…]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`)}'`;
}

const nameHint = 'lower-case letters, digits and inner hyphens, 1 to 63 characters';
export const parseTenantName = parser<TenantName>('tenant name', NAME, nameHint);
export const parseNodeId = parser<NodeId>('node id', NAME, nameHint);
/** A user's, service's, actor's or role's own name: lower case, with `.`, `_` and `-` inside. */
export const parseLocalName = parser<string>('name', /^[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?$/, 'lower-case letters, digits and inner . _ -, 1 to 64 characters');
export const parseTrustDomain = parser<TrustDomain>('trust domain', /^[a-z0-9](?:[a-z0-9.-]{0,253}[a-z0-9])?$/, 'lower-case letters, digits, dots and hyphens');
export const parseJobId = parser<JobId>('job id', /^job-[0-9a-f]{24}$/, "'job-' and 24 hex digits");
export const parseWorkerId = parser<WorkerId>('worker id', /^worker-[0-9a-f]{16}$/, "'worker-' and 16 hex digits");
export const parseObjectIdText = parser<ObjectIdText>('object id', /^obj-[0-9a-f]{48}$/, "'obj-' and 48 hex digits");
export const parseSha256Hex = parser<Sha256Hex>('digest', /^[0-9a-f]{64}$/, '64 lower-case hex digits');

// --- SPIFFE IDs -----------------------------------------------------------------------------------------------------

/** A SPIFFE ID of this cluster, taken apart. Only these five shapes exist; every other path is refused. */
export type SpiffePath =
  | { readonly kind: 'node'; readonly node: NodeId }
  | { readonly kind: 'system'; readonly component: string }
  | { readonly kind: 'user' | 'service' | 'job'; readonly tenant: TenantName; readonly name: string };

export interface ParsedSpiffeId {
  readonly id: SpiffeId;
  readonly trustDomain: TrustDomain;
  readonly path: SpiffePath;
}

const MAX_SPIFFE_ID_BYTES = 2048;

/** Parses `spiffe://<trust domain>/<path>` strictly (SPIFFE-ID §2): no query, port, user info, empty or dot segment. */
export function parseSpiffeId(text: unknown): ParsedSpiffeId {
  const refuse = (why: string): never => {
    throw new BulkheadError('INVALID_ARGUMENT', `SPIFFE ID ${quote(text)} is not valid: ${why}`);
  };
  if (typeof text !== 'string' || text.length > MAX_SPIFFE_ID_BYTES) return refuse('not a string of at most 2048 bytes');
  if (!text.startsWith('spiffe://')) return refuse("it must start with 'spiffe://'");
  const rest = text.slice('spiffe://'.length);
  const slash = rest.indexOf('/');
  if (slash <= 0) return refuse('it needs a trust domain and a path');
  const trustDomain = parseTrustDomain(rest.slice(0, slash));
  const segments = rest.slice(slash + 1).split('/');
  if (!segments.every((s) => /^[a-zA-Z0-9._-]+$/.test(s) && s !== '.' && s !== '..')) return refuse('a path segment is empty, a dot segment, or has other characters than a-z A-Z 0-9 . _ -');
  const [first, second, third, fourth] = segments;
  let path: SpiffePath | undefined;
  if (first === 'node' && second !== undefined && segments.length === 2) path = { kind: 'node', node: parseNodeId(second) };
  else if (first === 'system' && second !== undefined && segments.length === 2) path = { kind: 'system', component: parseLocalName(second) };
  else if (first === 'tenant' && second !== undefined && fourth !== undefined && segments.length === 4 && (third === 'user' || third === 'service' || third === 'job')) {
    path = { kind: third, tenant: parseTenantName(second), name: parseLocalName(fourth) };
  }
  if (path === undefined) return refuse('its path is none of /node/<id>, /system/<component>, /tenant/<t>/(user|service|job)/<name>');
  return { id: text as SpiffeId, trustDomain, path };
}

export function spiffeId(trustDomain: TrustDomain, path: SpiffePath): SpiffeId {
  const tail = path.kind === 'node' ? `node/${path.node}` : path.kind === 'system' ? `system/${path.component}` : `tenant/${path.tenant}/${path.kind}/${path.name}`;
  return parseSpiffeId(`spiffe://${trustDomain}/${tail}`).id;
}

// --- object ids -----------------------------------------------------------------------------------------------------

/** Binary object id: u32le tenant number, u32le node number, 12 random bytes of the session, u32le index. Actors have one too. */
export const OBJECT_ID_BYTES = 24;
/** The part of an object id that every object of one session shares. */
export const SESSION_PREFIX_BYTES = 20;

const HEX = Array.from({ length: 256 }, (_, octet) => (octet + 0x100).toString(16).slice(1));

/** Lower-case hex digits, two an octet. */
export function hex(bytes: Uint8Array): string {
  let text = '';
  for (const octet of bytes) text += HEX[octet] as string;
  return text;
}

/** Ids come in runs of one session: the text of its prefix is made once a run. */
const lastPrefix = new Uint8Array(SESSION_PREFIX_BYTES);
let lastPrefixText = `obj-${'00'.repeat(SESSION_PREFIX_BYTES)}`;

export function objectIdText(id: Uint8Array): ObjectIdText {
  let same = true;
  for (let i = 0; same && i < SESSION_PREFIX_BYTES; i++) same = id[i] === lastPrefix[i];
  if (!same) {
    lastPrefixText = 'obj-';
    for (let i = 0; i < SESSION_PREFIX_BYTES; i++) lastPrefixText += HEX[(lastPrefix[i] = id[i] ?? 0)] as string;
  }
  return `${lastPrefixText}${HEX[id[20] ?? 0]}${HEX[id[21] ?? 0]}${HEX[id[22] ?? 0]}${HEX[id[23] ?? 0]}` as ObjectIdText;
}

/** The id of an index of a session whose prefix is 40 hex digits. */
export function idTextOf(prefixHex: string, index: number): ObjectIdText {
  let text = `obj-${prefixHex}`;
  for (let shift = 0; shift < 32; shift += 8) text += HEX[(index >>> shift) & 0xff] as string;
  return text as ObjectIdText;
}

export function objectIdFromText(text: string): Uint8Array {
  const parsed = parseObjectIdText(text);
  const id = new Uint8Array(OBJECT_ID_BYTES);
  for (let i = 0; i < OBJECT_ID_BYTES; i++) id[i] = Number.parseInt(parsed.slice(4 + 2 * i, 6 + 2 * i), 16);
  return id;
}
