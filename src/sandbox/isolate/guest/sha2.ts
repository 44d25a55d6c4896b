/** SHA-256, SHA-384 and SHA-512 (FIPS 180-4), for `crypto.subtle.digest` inside isolates, which have no host crypto. Digests of tenant data only, never keys. */

/** The first `bits` bits of the fractional part of the square or cube root of a prime: where the standard takes its constants from. */
function rootFraction(prime: bigint, cube: boolean, bits: bigint): bigint {
  const power = cube ? 3n : 2n;
  const scaled = prime << (bits * power);
  let low = 0n;
  let high = 1n << (bits + 8n);
  while (low + 1n < high) {
    const middle = (low + high) >> 1n;
    if (middle ** power <= scaled) low = middle;
    else high = middle;
  }
  return low & ((1n << bits) - 1n);
}

function primes(count: number): bigint[] {
  const found: bigint[] = [];
  for (let n = 2; found.length < count; n++) if (found.every((p) => n % Number(p) !== 0)) found.push(BigInt(n));
  return found;
}

interface Constants {
  readonly k256: Uint32Array;
  readonly h256: Uint32Array;
  readonly k512: BigUint64Array;
  readonly h512: BigUint64Array;
  readonly h384: BigUint64Array;
}
let constants: Constants | undefined;

/** Computed on first use: most isolates never hash. */
function tables(): Constants {
  if (constants === undefined) {
    const first = primes(80);
    const k512 = BigUint64Array.from(first, (p) => rootFraction(p, true, 64n));
    const h512 = BigUint64Array.from(first.slice(0, 8), (p) => rootFraction(p, false, 64n));
    constants = {
      k512, h512, h384: BigUint64Array.from(first.slice(8, 16), (p) => rootFraction(p, false, 64n)),
      k256: Uint32Array.from(k512.slice(0, 64), (k) => Number(k >> 32n)), h256: Uint32Array.from(h512, (h) => Number(h >> 32n)),
    };
  }
  return constants;
}

function padded(data: Uint8Array, block: number, lengthBytes: number): Uint8Array {
  const out = new Uint8Array(Math.ceil((data.length + 1 + lengthBytes) / block) * block);
  out.set(data);
  out[data.length] = 0x80;
  const view = new DataView(out.buffer);
  view.setUint32(out.length - 8, Math.floor(data.length / 0x2000_0000));
  view.setUint32(out.length - 4, (data.length << 3) >>> 0);
  return out;
}

export function sha256(data: Uint8Array): Uint8Array<ArrayBuffer> {
  const { k256, h256 } = tables();
  const message = padded(data, 64, 8);
  const view = new DataView(message.buffer);
  const h = h256.slice();
  const w = new Int32Array(64);
  for (let at = 0; at < message.length; at += 64) {
    for (let i = 0; i < 16; i++) w[i] = view.getInt32(at + 4 * i);
    for (let i = 16; i < 64; i++) {
      const a = w[i - 15] as number;
      const b = w[i - 2] as number;
      const s0 = ((a >>> 7) | (a << 25)) ^ ((a >>> 18) | (a << 14)) ^ (a >>> 3);
      const s1 = ((b >>> 17) | (b << 15)) ^ ((b >>> 19) | (b << 13)) ^ (b >>> 10);
      w[i] = ((w[i - 16] as number) + s0 + (w[i - 7] as number) + s1) | 0;
    }
    let [a, b, c, d, e, f, g, x] = h as unknown as [number, number, number, number, number, number, number, number];
    for (let i = 0; i < 64; i++) {
      const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
      const t1 = (x + s1 + ((e & f) ^ (~e & g)) + (k256[i] as number) + (w[i] as number)) | 0;
      const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
      const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      x = g;
      g = f;
      f = e;
      e = (d + t1) | 0;
      d = c;
      c = b;
      b = a;
      a = (t1 + t2) | 0;
    }
    [a, b, c, d, e, f, g, x].forEach((value, i) => {
      h[i] = (h[i] as number) + value;
    });
  }
  const out = new Uint8Array(32);
  const result = new DataView(out.buffer);
  for (let i = 0; i < 8; i++) result.setUint32(4 * i, h[i] as number);
  return out;
}

function sha512Family(data: Uint8Array, initial: BigUint64Array, size: number): Uint8Array<ArrayBuffer> {
  const { k512 } = tables();
  const message = padded(data, 128, 16);
  const view = new DataView(message.buffer);
  const h = initial.slice();
  const w = new BigUint64Array(80);
  const rotate = (v: bigint, n: bigint): bigint => BigInt.asUintN(64, (v >> n) | (v << (64n - n)));
  for (let at = 0; at < message.length; at += 128) {
    for (let i = 0; i < 16; i++) w[i] = view.getBigUint64(at + 8 * i);
    for (let i = 16; i < 80; i++) {
      const a = w[i - 15] as bigint;
      const b = w[i - 2] as bigint;
      w[i] = (w[i - 16] as bigint) + (rotate(a, 1n) ^ rotate(a, 8n) ^ (a >> 7n)) + (w[i - 7] as bigint) + (rotate(b, 19n) ^ rotate(b, 61n) ^ (b >> 6n));
    }
    let [a, b, c, d, e, f, g, x] = h as unknown as [bigint, bigint, bigint, bigint, bigint, bigint, bigint, bigint];
    for (let i = 0; i < 80; i++) {
      const t1 = BigInt.asUintN(64, x + (rotate(e, 14n) ^ rotate(e, 18n) ^ rotate(e, 41n)) + ((e & f) ^ (BigInt.asUintN(64, ~e) & g)) + (k512[i] as bigint) + (w[i] as bigint));
      const t2 = (rotate(a, 28n) ^ rotate(a, 34n) ^ rotate(a, 39n)) + ((a & b) ^ (a & c) ^ (b & c));
      x = g;
      g = f;
      f = e;
      e = BigInt.asUintN(64, d + t1);
      d = c;
      c = b;
      b = a;
      a = BigInt.asUintN(64, t1 + t2);
    }
    [a, b, c, d, e, f, g, x].forEach((value, i) => {
      h[i] = (h[i] as bigint) + value;
    });
  }
  const out = new Uint8Array(64);
  const result = new DataView(out.buffer);
  for (let i = 0; i < 8; i++) result.setBigUint64(8 * i, h[i] as bigint);
  return out.slice(0, size);
}

export function sha384(data: Uint8Array): Uint8Array<ArrayBuffer> {
  return sha512Family(data, tables().h384, 48);
}

export function sha512(data: Uint8Array): Uint8Array<ArrayBuffer> {
  return sha512Family(data, tables().h512, 64);
}
