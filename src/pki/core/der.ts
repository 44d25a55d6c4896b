/**
 * A strict reader of DER, and trees that describe DER to be written. Refuses everything BER allows beyond DER: indefinite
 * or padded lengths, padded integers, booleans other than 00 and FF, trailing bytes. Must never repair, skip or guess:
 * two readers that understand the same bytes differently are how a certificate comes to mean two things.
 */
import { BulkheadError } from '../../base/errors.ts';

export const TAG = {
  boolean: 0x01, integer: 0x02, bitString: 0x03, octetString: 0x04, null: 0x05, oid: 0x06, utf8String: 0x0c, printableString: 0x13,
  ia5String: 0x16, utcTime: 0x17, generalizedTime: 0x18, sequence: 0x30, set: 0x31,
} as const;

/** Tag of `[n]`: `constructed` for explicit tagging and implicit tagging of a structure. */
export function contextTag(n: number, constructed: boolean): number {
  return 0x80 | (constructed ? 0x20 : 0) | n;
}

/** Nesting of a certificate is below 12; a deeper one is made to hurt. */
const MAX_DEPTH = 16;

export class DerElement {
  readonly tag: number;
  /** The element as it stands on the wire, header included. */
  readonly raw: Uint8Array;
  readonly content: Uint8Array;
  readonly depth: number;

  constructor(tag: number, raw: Uint8Array, content: Uint8Array, depth: number) {
    this.tag = tag;
    this.raw = raw;
    this.content = content;
    this.depth = depth;
  }
}

export function refuseDer(why: string): never {
  throw new BulkheadError('INVALID_ARGUMENT', `not valid DER: ${why}`);
}

function readAt(bytes: Uint8Array, at: number, depth: number): { element: DerElement; next: number } {
  if (depth > MAX_DEPTH) refuseDer('nested too deeply');
  const tag = bytes[at];
  const first = bytes[at + 1];
  if (tag === undefined || first === undefined) return refuseDer('truncated header');
  if ((tag & 0x1f) === 0x1f) refuseDer('multi-byte tag');
  let length = first;
  let start = at + 2;
  if (first >= 0x80) {
    const count = first & 0x7f;
    if (count === 0 || count > 3) refuseDer('indefinite or oversized length');
    length = 0;
    for (let i = 0; i < count; i++) {
      const byte = bytes[start + i];
      if (byte === undefined) return refuseDer('truncated length');
      length = length * 256 + byte;
    }
    start += count;
    if (length < 0x80 || length < 256 ** (count - 1)) refuseDer('length is not in its shortest form');
  }
  const next = start + length;
  if (next > bytes.length) refuseDer('length reaches beyond the end');
  return { element: new DerElement(tag, bytes.subarray(at, next), bytes.subarray(start, next), depth), next };
}

/** The one element that `bytes` is, with nothing after it. */
export function readDer(bytes: Uint8Array, depth = 0): DerElement {
  const { element, next } = readAt(bytes, 0, depth);
  if (next !== bytes.length) refuseDer('bytes after the end');
  return element;
}

/** The elements inside a constructed element. */
export function readChildren(parent: DerElement): DerElement[] {
  if ((parent.tag & 0x20) === 0) refuseDer('a primitive element where a structure is expected');
  const children: DerElement[] = [];
  for (let at = 0; at < parent.content.length; ) {
    const { element, next } = readAt(parent.content, at, parent.depth + 1);
    children.push(element);
    at = next;
  }
  return children;
}

export function expectTag(element: DerElement | undefined, tag: number, what: string): DerElement {
  if (element === undefined) return refuseDer(`${what} is missing`);
  if (element.tag !== tag) refuseDer(`${what} has tag 0x${element.tag.toString(16)} instead of 0x${tag.toString(16)}`);
  return element;
}

/** Children of a SEQUENCE. */
export function readSequence(element: DerElement | undefined, what: string): DerElement[] {
  return readChildren(expectTag(element, TAG.sequence, what));
}

export function readBoolean(element: DerElement, what: string): boolean {
  const { content } = expectTag(element, TAG.boolean, what);
  if (content.length !== 1 || (content[0] !== 0 && content[0] !== 0xff)) refuseDer(`${what} is not a DER boolean`);
  return content[0] === 0xff;
}

/** Content of an INTEGER in its shortest form: two's complement, big endian. */
export function readInteger(element: DerElement | undefined, what: string): Uint8Array {
  const { content } = expectTag(element, TAG.integer, what);
  const [first, second] = content;
  if (first === undefined) return refuseDer(`${what} is empty`);
  if (second !== undefined && ((first === 0 && second < 0x80) || (first === 0xff && second >= 0x80))) refuseDer(`${what} is padded`);
  return content;
}

/** A non-negative integer below 2^31. */
export function readSmallInteger(element: DerElement | undefined, what: string): number {
  const content = readInteger(element, what);
  if (content.length > 4 || (content[0] ?? 0) >= 0x80) refuseDer(`${what} is negative or too large`);
  return content.reduce((sum, byte) => sum * 256 + byte, 0);
}

/** Dotted form, for example `1.2.840.10045.4.3.2`. */
export function readOid(element: DerElement | undefined, what: string): string {
  const { content } = expectTag(element, TAG.oid, what);
  if (content.length === 0 || content.length > 32) refuseDer(`${what} is empty or too long`);
  const arcs: number[] = [];
  let value = 0;
  let fresh = true;
  for (const byte of content) {
    if (fresh && byte === 0x80) refuseDer(`${what} has a padded arc`);
    value = value * 128 + (byte & 0x7f);
    if (value > 0xffff_ffff) refuseDer(`${what} has an arc beyond 32 bits`);
    fresh = byte < 0x80;
    if (fresh) {
      if (arcs.length === 0) {
        const root = value < 40 ? 0 : value < 80 ? 1 : 2;
        arcs.push(root, value - 40 * root);
      } else arcs.push(value);
      value = 0;
    }
  }
  if (!fresh) refuseDer(`${what} is truncated`);
  return arcs.join('.');
}

/** A BIT STRING of whole bytes: signatures and public keys. */
export function readBitStringBytes(element: DerElement | undefined, what: string): Uint8Array {
  const { content } = expectTag(element, TAG.bitString, what);
  if (content.length < 2 || content[0] !== 0) refuseDer(`${what} is not a bit string of whole bytes`);
  return content.subarray(1);
}

/** A named-bit list (X.690 §11.2.2: no trailing zero bits): the set bits, 0 being the first. */
export function readNamedBits(element: DerElement, what: string): number[] {
  const { content } = expectTag(element, TAG.bitString, what);
  const unused = content[0];
  if (unused === undefined || unused > 7 || content.length < 2 || content.length > 3) return refuseDer(`${what} is not a short list of bits`);
  if ((((content[content.length - 1] ?? 0) >> unused) & 1) === 0 || ((content[content.length - 1] ?? 0) & ((1 << unused) - 1)) !== 0) refuseDer(`${what} has padding bits`);
  const bits: number[] = [];
  for (let i = 0; i < (content.length - 1) * 8; i++) if (((content[1 + (i >> 3)] ?? 0) >> (7 - (i & 7))) & 1) bits.push(i);
  return bits;
}

/** Text of bytes that are all printable ASCII; anything else is refused, also where the type would allow it. */
export function readAscii(content: Uint8Array, what: string): string {
  let text = '';
  for (const byte of content) {
    if (byte < 0x20 || byte > 0x7e) refuseDer(`${what} has a character that is not printable ASCII`);
    text += String.fromCharCode(byte);
  }
  return text;
}

/** UTCTime until 2049 and GeneralizedTime from 2050 on, both with seconds and `Z` (RFC 5280 §4.1.2.5). Milliseconds since 1970. */
export function readTime(element: DerElement | undefined, what: string): number {
  if (element === undefined) return refuseDer(`${what} is missing`);
  const text = readAscii(element.content, what);
  const digits = element.tag === TAG.utcTime ? /^(\d{2})(\d{2})(\d{2})(\d{2})(\d{2})(\d{2})Z$/.exec(text) : element.tag === TAG.generalizedTime ? /^(\d{4})(\d{2})(\d{2})(\d{2})(\d{2})(\d{2})Z$/.exec(text) : null;
  if (digits === null) return refuseDer(`${what} is not a time with seconds in UTC`);
  const [yearText = 0, month = 0, day = 0, hour = 0, minute = 0, second = 0] = digits.slice(1).map(Number);
  const year = element.tag === TAG.generalizedTime ? yearText : yearText < 50 ? 2000 + yearText : 1900 + yearText;
  if (element.tag === TAG.generalizedTime && year < 2050) refuseDer(`${what} must be a UTCTime before 2050`);
  const timeMs = Date.UTC(year, month - 1, day, hour, minute, second);
  if (derTime(timeMs).text !== text) refuseDer(`${what} is not a date of the calendar`);
  return timeMs;
}

export function bytesEqual(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}

// --- writing --------------------------------------------------------------------------------------------------------

/**
 * DER to be written: bytes of a primitive element, the children of a constructed one, or an element that is DER already. `constant` trees
 * are made once and never change, so that their encoding may be kept.
 */
export type DerTree = { readonly tag: number; readonly content: Uint8Array | readonly DerTree[]; readonly constant?: true } | { readonly der: Uint8Array };

export function constantDer(tree: DerTree): DerTree {
  return 'der' in tree ? tree : { ...tree, constant: true };
}

export function ascii(text: string): Uint8Array {
  return Uint8Array.from(text, (c) => c.charCodeAt(0));
}

export function derSequence(...content: DerTree[]): DerTree {
  return { tag: TAG.sequence, content };
}

export function derOid(dotted: string): DerTree {
  const [root = 0, second = 0, ...arcs] = dotted.split('.').map(Number);
  const content: number[] = [];
  for (const arc of [root * 40 + second, ...arcs]) {
    const groups = [arc % 128];
    for (let rest = Math.floor(arc / 128); rest > 0; rest = Math.floor(rest / 128)) groups.unshift((rest % 128) | 0x80);
    content.push(...groups);
  }
  return { tag: TAG.oid, content: Uint8Array.from(content) };
}

/** A non-negative INTEGER from big-endian bytes. */
export function derUnsigned(bytes: Uint8Array): DerTree {
  let from = 0;
  while (from < bytes.length - 1 && bytes[from] === 0) from++;
  const trimmed = bytes.subarray(from);
  return { tag: TAG.integer, content: (trimmed[0] ?? 0) >= 0x80 || trimmed.length === 0 ? Uint8Array.of(0, ...trimmed) : trimmed };
}

export function derBitString(bytes: Uint8Array, unusedBits = 0): DerTree {
  return { tag: TAG.bitString, content: Uint8Array.of(unusedBits, ...bytes) };
}

export function derBoolean(value: boolean): DerTree {
  return { tag: TAG.boolean, content: Uint8Array.of(value ? 0xff : 0) };
}

/** Whole seconds: a fraction is cut off. */
export function derTime(timeMs: number): { readonly tag: number; readonly content: Uint8Array; readonly text: string } {
  const iso = new Date(timeMs).toISOString();
  const text = `${iso.slice(0, 19).replace(/[-:T]/g, '')}Z`;
  const year = Number(iso.slice(0, 4));
  const utc = year >= 1950 && year < 2050;
  const shown = utc ? text.slice(2) : text;
  return { tag: utc ? TAG.utcTime : TAG.generalizedTime, content: ascii(shown), text: shown };
}
