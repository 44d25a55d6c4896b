/** TextEncoder, TextDecoder (UTF-8 only), atob and btoa for isolates, which have none of their own. */

export function encodeUtf8(text: string): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(text.length * 3);
  const { written } = encodeInto(text, out);
  return out.slice(0, written);
}

function encodeInto(text: string, into: Uint8Array): { read: number; written: number } {
  let read = 0;
  let written = 0;
  while (read < text.length) {
    let c = text.charCodeAt(read);
    let units = 1;
    if (c >= 0xd800 && c < 0xe000) {
      const next = c < 0xdc00 ? text.charCodeAt(read + 1) : 0;
      if (next >= 0xdc00 && next < 0xe000) {
        c = 0x10000 + ((c - 0xd800) << 10) + (next - 0xdc00);
        units = 2;
      } else c = 0xfffd;
    }
    const size = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    if (written + size > into.length) break;
    if (size === 1) into[written] = c;
    else {
      for (let i = size - 1; i > 0; i--) {
        into[written + i] = 0x80 | (c & 0x3f);
        c >>= 6;
      }
      into[written] = (size === 2 ? 0xc0 : size === 3 ? 0xe0 : 0xf0) | c;
    }
    written += size;
    read += units;
  }
  return { read, written };
}

/** Decodes as the WHATWG Encoding standard does: each maximal broken part becomes one U+FFFD. Returns how many octets at the end are an unfinished character. */
function decodeUtf8(bytes: Uint8Array, last: boolean, fatal: boolean): { text: string; unfinished: number } {
  const chunks: string[] = [];
  let codes: number[] = [];
  const broken = (): void => {
    if (fatal) throw new TypeError('The encoded data was not valid for encoding utf-8');
    codes.push(0xfffd);
  };
  let i = 0;
  while (i < bytes.length) {
    if (codes.length >= 4_096) {
      chunks.push(String.fromCodePoint(...codes));
      codes = [];
    }
    const lead = bytes[i] as number;
    if (lead < 0x80) {
      codes.push(lead);
      i++;
      continue;
    }
    const size = lead >= 0xc2 && lead < 0xe0 ? 2 : lead >= 0xe0 && lead < 0xf0 ? 3 : lead >= 0xf0 && lead < 0xf5 ? 4 : 0;
    if (size === 0) {
      broken();
      i++;
      continue;
    }
    let c = lead & (size === 2 ? 0x1f : size === 3 ? 0x0f : 0x07);
    let n = 1;
    for (; n < size && i + n < bytes.length; n++) {
      const tail = bytes[i + n] as number;
      const low = n === 1 && lead === 0xe0 ? 0xa0 : n === 1 && lead === 0xf0 ? 0x90 : 0x80;
      const high = n === 1 && lead === 0xed ? 0x9f : n === 1 && lead === 0xf4 ? 0x8f : 0xbf;
      if (tail < low || tail > high) break;
      c = (c << 6) | (tail & 0x3f);
    }
    if (n === size) codes.push(c);
    else {
      if (i + n === bytes.length && !last) return { text: chunks.join('') + String.fromCodePoint(...codes), unfinished: n };
      broken();
    }
    i += n;
  }
  return { text: chunks.join('') + String.fromCodePoint(...codes), unfinished: 0 };
}

/** Octets of anything that the Web calls a BufferSource. */
export function octetsOf(source: unknown, what: string): Uint8Array {
  if (ArrayBuffer.isView(source)) return new Uint8Array(source.buffer, source.byteOffset, source.byteLength);
  if (source instanceof ArrayBuffer) return new Uint8Array(source);
  throw new TypeError(`${what} takes an ArrayBuffer, a typed array or a DataView`);
}

export class TextEncoder {
  get encoding(): string {
    return 'utf-8';
  }

  encode(text: unknown = ''): Uint8Array<ArrayBuffer> {
    return encodeUtf8(String(text));
  }

  encodeInto(text: string, into: Uint8Array): { read: number; written: number } {
    return encodeInto(String(text), into);
  }
}

export class TextDecoder {
  readonly #fatal: boolean;
  readonly #ignoreBOM: boolean;
  #rest = new Uint8Array(0);
  #atStart = true;

  constructor(label: unknown = 'utf-8', options: { fatal?: boolean; ignoreBOM?: boolean } = {}) {
    const name = String(label).trim().toLowerCase();
    if (name !== 'utf-8' && name !== 'utf8' && name !== 'unicode-1-1-utf-8') throw new RangeError(`The "${name.slice(0, 40)}" encoding is not supported: isolates decode utf-8 only`);
    this.#fatal = options.fatal === true;
    this.#ignoreBOM = options.ignoreBOM === true;
  }

  get encoding(): string {
    return 'utf-8';
  }

  get fatal(): boolean {
    return this.#fatal;
  }

  get ignoreBOM(): boolean {
    return this.#ignoreBOM;
  }

  decode(source?: unknown, options: { stream?: boolean } = {}): string {
    let bytes = source === undefined ? new Uint8Array(0) : octetsOf(source, 'TextDecoder.decode');
    const stream = options.stream === true;
    if (this.#rest.length > 0) {
      const joined = new Uint8Array(this.#rest.length + bytes.length);
      joined.set(this.#rest);
      joined.set(bytes, this.#rest.length);
      bytes = joined;
      this.#rest = new Uint8Array(0);
    }
    const { text, unfinished } = decodeUtf8(bytes, !stream, this.#fatal);
    if (unfinished > 0) this.#rest = bytes.slice(bytes.length - unfinished) as Uint8Array<ArrayBuffer>;
    const strip = this.#atStart && !this.#ignoreBOM && text.charCodeAt(0) === 0xfeff;
    if (text.length > 0) this.#atStart = false;
    if (!stream) this.#atStart = true;
    return strip ? text.slice(1) : text;
  }
}

const ALPHABET = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';

export function btoa(value: unknown): string {
  const text = String(value);
  let out = '';
  for (let i = 0; i < text.length; i += 3) {
    const [a, b, c] = [text.charCodeAt(i), text.charCodeAt(i + 1), text.charCodeAt(i + 2)];
    if (a > 255 || b > 255 || c > 255) throw new RangeError('btoa takes characters up to U+00FF only: encode the text with TextEncoder first');
    const bits = (a << 16) | ((b || 0) << 8) | (c || 0);
    out += (ALPHABET[bits >> 18] as string) + (ALPHABET[(bits >> 12) & 63] as string) + (Number.isNaN(b) ? '=' : (ALPHABET[(bits >> 6) & 63] as string)) + (Number.isNaN(c) ? '=' : (ALPHABET[bits & 63] as string));
  }
  return out;
}

export function atob(value: unknown): string {
  let text = String(value).replace(/[\t\n\f\r ]/g, '');
  if (text.length % 4 === 0) text = text.replace(/={1,2}$/, '');
  let out = '';
  let bits = 0;
  let held = 0;
  for (const character of text) {
    const index = ALPHABET.indexOf(character);
    if (index < 0) throw new RangeError('atob: the text is not base64');
    bits = (bits << 6) | index;
    held += 6;
    if (held >= 8) {
      held -= 8;
      out += String.fromCharCode((bits >> held) & 0xff);
      bits &= (1 << held) - 1;
    }
  }
  if (text.length % 4 === 1) throw new RangeError('atob: the text is not base64');
  return out;
}

