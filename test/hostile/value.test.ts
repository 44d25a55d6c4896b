/** Hostile octets against the value decoder: every one ends as INVALID_ARGUMENT or as a harmless value, in bounded time and memory. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { BulkheadError } from '../../src/base/errors.ts';
import { ArrowTable, NdArray } from '../../src/base/neutral-data.ts';
import { decodeValue, encodeValue } from '../../src/base/value.ts';

function attempt(bytes: Uint8Array): unknown {
  try {
    return decodeValue(bytes);
  } catch (thrown) {
    if (!(thrown instanceof BulkheadError) || thrown.code !== 'INVALID_ARGUMENT') throw thrown;
    return thrown;
  }
}

const shared = { a: 1 };
const sample = {
  matrix: new NdArray([2, 2], Int16Array.of(1, 2, 3, 4)), columns: new NdArray([2, 2], new Uint8Array(4), 'F'), none: new NdArray([], Float64Array.of(1)), table: new ArrowTable(Uint8Array.of(1)), large: new Float64Array(0),
  text: 'héllo', long: 'x'.repeat(60), n: [0, -1, 300, 70_000, 2 ** 40, 1.5, -0], big: [2n ** 70n, -5n], date: new Date(1_500), far: new Date(8.64e15 - 1), re: [/a/g, /b/],
  map: new Map<unknown, unknown>([[1, [shared]], ['k', shared]]), set: new Set([1, 'a']), bytes: new Uint8Array(5), floats: new Float32Array(2), view: new DataView(new ArrayBuffer(2)),
  buffer: new ArrayBuffer(3), error: new TypeError('t', { cause: [null, undefined, true] }), lone: '\ud800', holes: Object.assign(new Array(5), { 2: 'x' }), nested: [[[{}]]],
};

describe('every octet', () => {
  const bytes = encodeValue(sample).bytes;

  it('truncated anywhere is refused', () => {
    for (let end = 0; end < bytes.length; end++) expect(attempt(bytes.subarray(0, end))).toBeInstanceOf(BulkheadError);
  });

  it('replaced by any other neither crashes nor hangs nor pollutes', () => {
    for (let at = 0; at < bytes.length; at++) {
      const mutated = bytes.slice();
      for (const octet of [0x00, 0x1b, 0x3b, 0x5a, 0x5f, 0x7b, 0x80, 0x9b, 0xbb, 0xbf, 0xc1, 0xd8, 0xdb, 0xf9, 0xff, (bytes[at] as number) ^ 1, (bytes[at] as number) ^ 0x20, (bytes[at] as number) ^ 0x80]) {
        mutated[at] = octet;
        attempt(mutated);
      }
    }
    expect(Object.keys(Object.prototype)).toEqual([]);
  });

  it('of random input is answered', () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), (random) => {
      attempt(random);
    }), { numRuns: 5_000 });
  });

  it('left over is refused', () => {
    for (const value of [1, 'a', [], sample]) expect(attempt(new Uint8Array([...encodeValue(value).bytes, 0]))).toBeInstanceOf(BulkheadError);
  });
});

describe('crafted input', () => {
  const refused: [what: string, hex: string][] = [
    ['nothing', ''], ['an indefinite byte string', '5f4101ff'], ['an indefinite text', '7f6161ff'], ['an indefinite array', '9f01ff'], ['an indefinite map', 'bf616101ff'], ['a lone break', 'ff'], ['reserved lengths', '1c'],
    ['a reserved simple value', 'f8ff'], ['simple(0)', 'e0'], ['simple(24..31)', 'f818'], ['an array of 2^32 elements', '9affffffff'], ['an array of 2^63 elements', '9b7fffffffffffffff'], ['a map of 2^32', 'baffffffff'],
    ['a text of 4 GiB', '7affffffff61'], ['bytes of 2^53', '5b001fffffffffffff00'], ['a set of 2^32', 'd901029affffffff'], ['a Map of 2^32', 'd90103baffffffff'], ['an unknown tag', 'd9ffff00'], ['a tag of 2^64-1', 'dbffffffffffffffff00'],
    ['tag 24 (embedded CBOR)', 'd8184100'], ['overlong UTF-8', '62c080'], ['a UTF-8 surrogate', '63eda080'], ['truncated UTF-8', '61c3'], ['long broken UTF-8', `783c${'61'.repeat(59)}ff`], ['a number as a key', 'a10000'], ['a key twice', 'a2616100616101'],
    ['__proto__ twice', 'a2695f5f70726f746f5f5f00695f5f70726f746f5f5f01'], ['an element twice', 'd90102820101'], ['a Map key twice', 'd90103a201000101'], ['a reference to nothing', 'd81d00'], ['a reference to itself', 'd81cd81d00'],
    ['a reference beyond', '82d81ca0d81d01'], ['a shared scalar', 'd81c05'], ['sharing twice', 'd81cd81ca0'], ['a date of text', 'c16161'], ['a bigint of text', 'c26161'], ['a bigint of a number', 'c205'],
    ['Float64Array of 7 octets', 'd85647'.padEnd(20, '0')], ['a big-endian float array', 'd852480000000000000000'], ['a broken regular expression', 'd8236128'], ['unknown flags', 'd9424f8261616171'], ['an id of 23 octets', `d9424857${'00'.repeat(23)}`],
    ['a ref where none may be', `d942485818${'00'.repeat(24)}`], ['an actor where none may be', `d94249825818${'00'.repeat(24)}627b7d`], ['an error with two fields', 'd9424a8261616161'], ['an error with a number as its name', 'd9424a83006161f7'],
    ['an error with an object as its stack', 'd9424a8361616161a0'], ['half a UTF-16 unit', 'd9424b4100'], ['a sparse array out of order', 'd9424e8205a201000000'], ['a sparse index beyond', 'd9424e8202a10500'], ['an array with a shape of one element only', 'd8288101'], ['a shape that is no list', 'd828820041'],
    ['a shape of more than there is', 'd828828102d8404101'], ['a shape below zero', 'd828828120d84040'], ['a shape that overflows', 'd82882821b001fffffffffffff1b001fffffffffffff4100'], ['33 dimensions', `d828829821${'01'.repeat(33)}4100`],
    ['an array of a list', 'd8288281018101'], ['an array of big-endian elements', 'd828828101d8524800'],
    ['an Arrow table of text', 'd942516161'], ['a pickle of Python', 'da424b50595b000000000000000a0000000000000000'], ['a sparse array too long', 'd9424e821b0000000100000000a0'],
  ];
  for (const [what, hex] of refused) {
    it(`refuses ${what}`, () => {
      const result = attempt(Buffer.from(hex, 'hex'));
      expect(result).toBeInstanceOf(BulkheadError);
      expect((result as BulkheadError).message).toMatch(/malformed value|not valid UTF-8/);
    });
  }

  it('allocates nothing before it has seen the octets', () => {
    const before = process.memoryUsage().rss;
    for (let i = 0; i < 10_000; i++) {
      attempt(Buffer.from('9affffff00', 'hex'));
      attempt(Buffer.from('5a7fffffff00', 'hex'));
      attempt(Buffer.from('d8565a7ffffff800', 'hex'));
    }
    expect(process.memoryUsage().rss - before).toBeLessThan(64 * 2 ** 20);
  });

  it('does not grow with nesting of tags', () => {
    for (const tag of ['c1', 'd81c', 'd90102', 'd9424a']) expect(attempt(Buffer.from(tag.repeat(100_000), 'hex'))).toBeInstanceOf(BulkheadError);
    expect(attempt(Buffer.from('d9424e8200a100'.repeat(1), 'hex'))).toBeInstanceOf(BulkheadError);
  });
});

describe('hostile programs', () => {
  it('cannot reach a prototype through any key', () => {
    const keys = ['__proto__', 'constructor', 'prototype', '__defineGetter__', 'toString', 'valueOf', 'then'];
    for (const outer of keys) {
      for (const inner of keys) {
        const value = Object.defineProperty({}, outer, { value: Object.defineProperty({}, inner, { value: 'polluted', enumerable: true }), enumerable: true });
        const copy = decodeValue(encodeValue(value).bytes) as Record<string, unknown>;
        expect(Object.getPrototypeOf(copy)).toBe(Object.prototype);
        expect(Object.hasOwn(copy, outer)).toBe(true);
      }
    }
    expect(Object.getOwnPropertyNames(Object.prototype).sort()).toEqual(['__defineGetter__', '__defineSetter__', '__lookupGetter__', '__lookupSetter__', '__proto__', 'constructor', 'hasOwnProperty', 'isPrototypeOf', 'propertyIsEnumerable', 'toLocaleString', 'toString', 'valueOf']);
  });

  it('cannot break the encoder from a getter, a proxy or a value that changes while it is encoded', () => {
    const growing = new Map<unknown, unknown>([[1, null]]);
    growing.set('g', { get x() { growing.set(Math.random(), 1); return 1; } });
    expect(() => encodeValue(growing)).toThrow(/changed while it was encoded/);
    const array = [{ get x() { array.length = 0; return 1; } }, 2, 3];
    expect(() => decodeValue(encodeValue(array).bytes)).not.toThrow(TypeError);
    const revoked = Proxy.revocable({}, {});
    revoked.revoke();
    expect(() => encodeValue([revoked.proxy])).toThrow(TypeError);
    const lying = new Proxy({}, { ownKeys: () => ['a', 'b'], getOwnPropertyDescriptor: () => ({ value: 1, enumerable: true, configurable: true }), get: () => 5 });
    expect(decodeValue(encodeValue(lying).bytes)).toEqual({ a: 5, b: 5 });
    expect(decodeValue(encodeValue('still well').bytes)).toBe('still well');
  });
});
