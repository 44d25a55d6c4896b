/** The value codec carries what structured clone carries, exactly; and plain CBOR readers understand the common part. */
import { Decoder as CborX } from 'cbor-x';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { BulkheadError } from '../../src/base/errors.ts';
import { MAX_VALUE_DEPTH } from '../../src/base/limits.ts';
import { decodeValue, encodeValue, singleBuffer } from '../../src/base/value.ts';

const roundTrip = (value: unknown): unknown => decodeValue(encodeValue(value).bytes);
const hex = (value: unknown): string => Buffer.from(encodeValue(value).bytes).toString('hex');

const leaf = fc.oneof(
  fc.constantFrom(undefined, null, true, false, -0, NaN, Infinity, -Infinity, 2 ** 53, -(2 ** 53), 2 ** 32, 1e300),
  fc.integer(), fc.maxSafeInteger(), fc.double(), fc.float(), fc.bigInt(), fc.string({ unit: 'binary' }), fc.string({ maxLength: 200 }), fc.date({ noInvalidDate: false }),
  fc.uint8Array(), fc.int16Array(), fc.float64Array(), fc.uint32Array(), fc.uint8ClampedArray(), fc.bigInt64Array(),
  fc.constantFrom(/a(b)?/giu, /x/, new Error('e'), new RangeError('r', { cause: { a: 1 } })),
);
const anyValue = fc.letrec((tie) => ({
  value: fc.oneof({ maxDepth: 4 }, leaf, fc.array(tie('value'), { maxLength: 5 }), fc.dictionary(fc.string({ unit: 'binary' }), tie('value'), { maxKeys: 5 }), fc.array(fc.tuple(tie('value'), tie('value')), { maxLength: 4 }).map((e) => new Map(e)), fc.array(tie('value'), { maxLength: 4 }).map((e) => new Set(e))),
})).value;

describe('round trips', () => {
  it('agrees with structuredClone', () => {
    fc.assert(fc.property(anyValue, (value) => {
      expect(roundTrip(value)).toStrictEqual(structuredClone(value));
    }), { numRuns: 1_000 });
  });

  it('keeps every string, lone surrogates and long ones included', () => {
    const texts = fc.oneof(fc.array(fc.integer({ min: 0, max: 0xffff }), { maxLength: 120 }).map((units) => String.fromCharCode(...units)), fc.string({ unit: 'grapheme', maxLength: 300 }));
    fc.assert(fc.property(texts, (text) => roundTrip(text) === text && Object.keys(roundTrip({ [text]: 1 }) as object)[0] === text), { numRuns: 1_000 });
  });

  it('keeps every date that exists, to the millisecond', () => {
    fc.assert(fc.property(fc.integer({ min: -8.64e15, max: 8.64e15 }), (ms) => (roundTrip(new Date(ms)) as Date).getTime() === ms), { numRuns: 1_000 });
  });

  it('keeps holes, and lengths without elements', () => {
    // eslint-disable-next-line no-sparse-arrays
    const sparse = [1, , undefined, , 5];
    expect(roundTrip(sparse)).toStrictEqual(sparse);
    expect(Object.keys(roundTrip(sparse) as object)).toEqual(['0', '2', '4']);
    const long = new Array(4_000_000_000) as unknown[];
    long[3_999_999_999] = 'end';
    expect(encodeValue(long).bytes.length).toBeLessThan(32);
    expect((roundTrip(long) as unknown[])[3_999_999_999]).toBe('end');
  });

  it('keeps cycles and shared objects, and copies what only looks the same', () => {
    const shared = { n: 1 };
    const node: Record<string, unknown> = { shared, again: [shared, shared], map: new Map([[shared, shared]]), set: new Set([shared]), other: { n: 1 } };
    node['self'] = node;
    const error = new Error('loop', { cause: node });
    node['error'] = error;
    const copy = roundTrip(node) as typeof node & { again: object[]; map: Map<object, object>; set: Set<object>; error: Error };
    expect(copy['self']).toBe(copy);
    expect(copy.again[0]).toBe(copy['shared']);
    expect(copy.again[1]).toBe(copy['shared']);
    expect([...copy.map][0]).toEqual([copy['shared'], copy['shared']]);
    expect(copy.set.has(copy['shared'] as object)).toBe(true);
    expect(copy['other']).not.toBe(copy['shared']);
    expect(copy.error.cause).toBe(copy);
    const many = Array.from({ length: 50 }, () => shared);
    const manyCopied = roundTrip(many) as object[];
    expect(new Set(manyCopied).size).toBe(1);
    // eslint-disable-next-line no-sparse-arrays
    const twice = [shared, , [shared]];
    const sparseCopy = roundTrip(twice) as [object, undefined, [object]];
    expect(sparseCopy[0]).toBe(sparseCopy[2][0]);
  });

  it('copies typed arrays into memory of their own, aligned', () => {
    const buffer = new ArrayBuffer(32);
    const view = new Float64Array(buffer, 8, 2);
    view[0] = 1.5;
    const copy = roundTrip({ pad: 'x', view }) as { view: Float64Array };
    expect(copy.view).toStrictEqual(new Float64Array([1.5, 0]));
    expect(copy.view.buffer.byteLength).toBe(16);
    expect(roundTrip(Buffer.from('abc'))).toStrictEqual(new Uint8Array([97, 98, 99]));
    expect((roundTrip(new DataView(buffer, 8, 8)) as DataView).getFloat64(0, true)).toBe(1.5);
    expect((roundTrip(buffer) as ArrayBuffer).byteLength).toBe(32);
    const decoded = decodeValue(Buffer.concat([Buffer.from([1]), encodeValue(new Uint8Array([9])).bytes]).subarray(1)) as Uint8Array;
    expect(decoded.buffer.byteLength).toBe(1);
  });

  it('carries errors with name, message, stack and cause', () => {
    class HttpError extends Error {
      override readonly name = 'HttpError';
    }
    const copy = roundTrip(new HttpError('404', { cause: 5 })) as Error;
    expect(copy).toBeInstanceOf(Error);
    expect([copy.name, copy.message, copy.cause]).toEqual(['HttpError', '404', 5]);
    expect(copy.stack).toContain('value.test');
    expect(roundTrip(new TypeError('t'))).toBeInstanceOf(TypeError);
  });

  it('defines `__proto__` and other inherited names as properties, whatever they hold', () => {
    const hostile = JSON.parse('{"__proto__":{"polluted":1},"constructor":{"prototype":2},"toString":3,"hasOwnProperty":4}') as object;
    const copy = roundTrip(hostile) as Record<string, unknown>;
    expect(Object.getPrototypeOf(copy)).toBe(Object.prototype);
    expect(Object.keys(copy)).toEqual(['__proto__', 'constructor', 'toString', 'hasOwnProperty']);
    expect(copy['polluted']).toBeUndefined();
    expect(({} as Record<string, unknown>)['polluted']).toBeUndefined();
    expect(Object.keys(roundTrip(Object.assign(Object.create(null), { a: 1 })) as object)).toEqual(['a']);
  });
});

describe('encoding', () => {
  it('is compact, and the same as RFC 8949 appendix A', () => {
    const vectors: [unknown, string][] = [
      [0, '00'], [10, '0a'], [23, '17'], [24, '1818'], [100, '1864'], [1000, '1903e8'], [1_000_000, '1a000f4240'], [1_000_000_000_000, '1b000000e8d4a51000'], [-1, '20'], [-100, '3863'],
      [1.1, 'fb3ff199999999999a'], [-4.1, 'fbc010666666666666'], [false, 'f4'], [true, 'f5'], [null, 'f6'], [undefined, 'f7'], ['', '60'], ['IETF', '6449455446'], ['ü', '62c3bc'], ['水', '63e6b0b4'],
      ['𐅑', '64f0908591'], [[], '80'], [[1, [2, 3], [4, 5]], '8301820203820405'], [{}, 'a0'], [{ a: 1, b: [2, 3] }, 'a26161016162820203'], [18446744073709551616n, 'c249010000000000000000'],
      [-18446744073709551617n, 'c349010000000000000000'], [new Date(1363896240000), 'c11a514b67b0'], [new Date(1363896240500), 'c1fb41d452d9ec200000'], [new Uint8Array([1, 2, 3, 4]), '4401020304'],
    ];
    for (const [value, expected] of vectors) expect(hex(value)).toBe(expected);
  });

  it('is read by another CBOR library', () => {
    const common = fc.letrec((tie) => ({
      value: fc.oneof({ maxDepth: 3 }, fc.constantFrom(undefined, null, true, false, 1.5, -0), fc.integer(), fc.maxSafeInteger(), fc.double({ noNaN: true }), fc.string(), fc.bigInt({ min: 2n ** 64n }), fc.array(tie('value'), { maxLength: 4 }), fc.dictionary(fc.string().filter((k) => k !== '__proto__'), tie('value'), { maxKeys: 4 })),
    })).value;
    const reader = new CborX({ mapsAsObjects: true, useRecords: false, int64AsNumber: true } as ConstructorParameters<typeof CborX>[0]);
    fc.assert(fc.property(common, (value) => {
      expect(reader.decode(encodeValue(value).bytes)).toEqual(value);
    }), { numRuns: 300 });
    expect(reader.decode(encodeValue(new Set([1, 2])).bytes)).toEqual(new Set([1, 2]));
    expect(reader.decode(encodeValue(new Map<unknown, unknown>([[1, 'a']])).bytes)).toEqual(new Map([[1, 'a']]));
    expect(reader.decode(encodeValue(new Float64Array([1.5, -2])).bytes)).toEqual(new Float64Array([1.5, -2]));
    expect(reader.decode(encodeValue(new Date(1_700_000_000_123)).bytes)).toEqual(new Date(1_700_000_000_123));
  });

  it('reads integers and floats of other writers', () => {
    const read = (text: string): unknown => decodeValue(Buffer.from(text, 'hex'));
    expect(read('1bffffffffffffffff')).toBe(18446744073709551615n);
    expect(read('3bffffffffffffffff')).toBe(-18446744073709551616n);
    expect(read('1b001fffffffffffff')).toBe(Number.MAX_SAFE_INTEGER);
    expect(read('f93c00')).toBe(1);
    expect(read('f90001')).toBe(5.960464477539063e-8);
    expect(read('f97e00')).toBeNaN();
    expect(read('f98000')).toBe(-0);
    expect(read('fa47c35000')).toBe(100000);
    expect(read('d8404401020304')).toEqual(new Uint8Array([1, 2, 3, 4]));
  });

  it('marks sharing only where there is some', () => {
    expect(hex([{}, {}])).toBe('82a0a0');
    const one = {};
    expect(hex([one, one])).toBe('82d81ca0d81d00');
  });
});

describe('refusals', () => {
  class Account {
    balance = 1;
  }
  const cases: [unknown, RegExp][] = [
    [[{ foo: [1, 2, 3, () => 1] }], /^args\[0\]\.foo\[3\] is a function/], [[Symbol('s')], /^args\[0\] is a symbol/], [{ 'a b': new Account() }, /^args\['a b'\] is an instance of class 'Account'/],
    [new Map([['k', new WeakMap()]]), /^args\.values\(\)\[0\] is a WeakMap/], [new Set([Promise.resolve()]), /^args\.values\(\)\[0\] is a Promise: await it first/],
    [new Error('e', { cause: Symbol('x') }), /^args\.cause is a symbol/], [Object.create(Map.prototype), /^args only looks like/], [Object.create(Date.prototype), /^args only looks like/],
    [new (class extends Map {})(), /^args is an instance of class ''|unknown prototype/], [new (class Stack extends Array {})(), /class 'Stack'/], [new Proxy(new Account(), {}), /class 'Account'/], [new Number(1), /class 'Number'/],
    [globalThis, /class|function|prototype/],
  ];
  for (const [value, message] of cases) {
    it(`says what and where: ${message.source}`, () => {
      expect(() => encodeValue(value, undefined, 'args')).toThrow(message);
      try {
        encodeValue(value, undefined, 'args');
      } catch (thrown) {
        expect((thrown as BulkheadError).code).toBe('INVALID_ARGUMENT');
      }
    });
  }

  it('limits depth in both directions, exactly alike', () => {
    const nested = (depth: number): unknown => {
      let value: unknown = 1;
      for (let i = 0; i < depth; i++) value = [value];
      return value;
    };
    expect(roundTrip(nested(MAX_VALUE_DEPTH))).toEqual(nested(MAX_VALUE_DEPTH));
    expect(() => encodeValue(nested(MAX_VALUE_DEPTH + 1))).toThrow(/nested deeper than 512/);
    expect(() => decodeValue(new Uint8Array(MAX_VALUE_DEPTH + 2).fill(0x81))).toThrow(/nested deeper/);
  });

  it('lets what a getter throws through, and encodes again afterwards', () => {
    const mine = new Error('from the getter');
    expect(() => encodeValue({ get x() { throw mine; } })).toThrow(mine);
    expect(roundTrip({ get x() { return roundTrip([1, { y: 2 }]); } })).toEqual({ x: [1, { y: 2 }] });
  });
});

describe('a value that is one buffer', () => {
  it.each([new Uint8Array([1, 2, 3]), new Uint8Array(70_000).fill(5), new Float64Array([1.5, -0, NaN]), new Uint16Array(300).fill(9), new Uint8Array([7, 8]).buffer, new BigInt64Array([5n])])('is made of its octets alone (%#)', (value) => {
    const { bytes } = encodeValue(value);
    const single = singleBuffer(bytes.subarray(0, 16), bytes.length);
    expect(single).toBeDefined();
    expect(single?.finish(bytes.slice(single.headBytes).buffer)).toEqual(value);
  });

  it.each([[1], 'text', new Map([[1, 2]]), { a: new Uint8Array(4) }, new DataView(new ArrayBuffer(4)), 5, null])('is recognised only when it is nothing else (%#)', (value) => {
    const { bytes } = encodeValue(value);
    expect(singleBuffer(bytes.subarray(0, 16), bytes.length)).toBeUndefined();
  });

  it('is not claimed for octets that are cut, too many, or of a broken element', () => {
    const { bytes } = encodeValue(new Float64Array(4));
    for (const [length, total] of [[0, bytes.length], [1, bytes.length], [3, bytes.length], [16, bytes.length + 1], [16, bytes.length - 1]] as const) expect(singleBuffer(bytes.subarray(0, length), total)).toBeUndefined();
    expect(singleBuffer(Uint8Array.of(0xd8, 86, 0x43, 1, 2, 3), 6)).toBeUndefined();
  });
});
