/**
 * The part of Web Crypto that pure computations need: random values, UUIDs, digests. Randomness is a generator seeded by the host with
 * 32 octets (SHA-256 in counter mode, rekeyed after every request, so that earlier output cannot be computed from later state).
 */
import { sha256, sha384, sha512 } from './sha2.ts';
import { octetsOf } from './text-codecs.ts';

const MAX_RANDOM_BYTES = 65_536;

class Generator {
  #key: Uint8Array | undefined;
  #counter = 0;

  constructor(seed: Uint8Array | undefined) {
    // As it is: hashing it here would make SHA-256's tables in every isolate, used or not.
    this.#key = seed;
  }

  #block(): Uint8Array {
    if (this.#key === undefined) throw new Error('crypto: this isolate was started without a random seed');
    const input = new Uint8Array(40);
    input.set(this.#key);
    new DataView(input.buffer).setUint32(32, this.#counter++);
    return sha256(input);
  }

  fill(into: Uint8Array): void {
    for (let at = 0; at < into.length; at += 32) into.set(this.#block().subarray(0, into.length - at), at);
    this.#key = this.#block();
  }
}

const DIGESTS: Readonly<Record<string, (data: Uint8Array) => Uint8Array<ArrayBuffer>>> = { 'SHA-256': sha256, 'SHA-384': sha384, 'SHA-512': sha512 };

export function webCrypto(seed: Uint8Array | undefined): object {
  const generator = new Generator(seed);
  return Object.freeze({
    getRandomValues(array: unknown): unknown {
      if (!ArrayBuffer.isView(array) || array instanceof DataView || array instanceof Float32Array || array instanceof Float64Array) throw new TypeError('crypto.getRandomValues takes an integer typed array');
      if (array.byteLength > MAX_RANDOM_BYTES) throw new RangeError(`crypto.getRandomValues gives at most ${MAX_RANDOM_BYTES} bytes at once`);
      generator.fill(new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
      return array;
    },
    randomUUID(): string {
      const octets = new Uint8Array(16);
      generator.fill(octets);
      octets[6] = ((octets[6] as number) & 0x0f) | 0x40;
      octets[8] = ((octets[8] as number) & 0x3f) | 0x80;
      let hex = '';
      for (let i = 0; i < 16; i++) hex += `${i === 4 || i === 6 || i === 8 || i === 10 ? '-' : ''}${((octets[i] as number) + 0x100).toString(16).slice(1)}`;
      return hex;
    },
    subtle: Object.freeze({
      async digest(algorithm: unknown, data: unknown): Promise<ArrayBuffer> {
        const name = String(typeof algorithm === 'object' && algorithm !== null ? (algorithm as { name?: unknown }).name : algorithm).toUpperCase();
        const digest = Object.hasOwn(DIGESTS, name) ? DIGESTS[name] : undefined;
        if (digest === undefined) throw new TypeError(`crypto.subtle.digest: ${name.slice(0, 40)} is not supported; SHA-256, SHA-384 and SHA-512 are`);
        return digest(octetsOf(data, 'crypto.subtle.digest')).buffer;
      },
    }),
  });
}
