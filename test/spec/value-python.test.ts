/** The two codecs against each other: what TypeScript writes Python reads and writes again as the same, and neither reads what the other refuses. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { BulkheadError } from '../../src/base/errors.ts';
import { NdArray } from '../../src/base/neutral-data.ts';
import { decodeValue, encodeValue } from '../../src/base/value.ts';
import { testPython } from '../support/python.ts';
import { throughPython } from '../support/python-codec.ts';

const python = testPython();
const SEED = 20_261;

/** Values that both languages have, so that they come back the same. */
const scalar = fc.oneof(
  fc.constant(null), fc.boolean(), fc.maxSafeInteger(), fc.double(), fc.bigInt().filter((n) => n > BigInt(Number.MAX_SAFE_INTEGER) || n < BigInt(Number.MIN_SAFE_INTEGER)), fc.string({ unit: 'binary' }), fc.string(),
  // Lone surrogates, which Python keeps as such; a pair of them is one character in both.
  fc.array(fc.constantFrom('a', '\ud800', 'b\udc00x'), { maxLength: 3 }).map((parts) => parts.join('-')),
  fc.date({ noInvalidDate: true, min: new Date('0001-01-02'), max: new Date('9999-12-30') }), fc.uint8Array(),
);
const typed = fc.oneof(fc.int8Array(), fc.int16Array(), fc.uint16Array(), fc.int32Array(), fc.uint32Array(), fc.float32Array(), fc.float64Array(), fc.bigInt64Array(), fc.bigUint64Array());
const shaped = fc.tuple(fc.array(fc.nat(4), { maxLength: 4 }), fc.constantFrom('C', 'F'), fc.boolean()).filter(([shape]) => shape.length !== 1).map(([shape, order, small]) => {
  const size = shape.reduce((all, n) => all * n, 1);
  const data = small ? Uint8Array.from({ length: size }, (_, i) => i) : Float64Array.from({ length: size }, (_, i) => i / 2);
  // Python knows one order of what has one only.
  return new NdArray(shape, data, shape.filter((n) => n > 1).length > 1 && !shape.includes(0) ? (order as 'C' | 'F') : 'C');
});
const { value: tree } = fc.letrec<{ value: unknown }>((tie) => ({
  value: fc.oneof(
    { maxDepth: 4, withCrossShrink: true }, scalar, typed, shaped, fc.array(tie('value'), { maxLength: 5 }), fc.dictionary(fc.string(), tie('value'), { maxKeys: 5, noNullPrototype: true }),
    fc.tuple(fc.uniqueArray(fc.string(), { maxLength: 3 }), tie('value')).map(([keys, item]) => new Map<unknown, unknown>([[-1, item], ...keys.map((key): [string, unknown] => [key, 1])])),
    fc.uniqueArray(fc.string(), { maxLength: 4 }).map((items) => new Set(items)),
    tie('value').map((item) => {
      const both: unknown[] = [item];
      both.push({ both, again: both });
      return both;
    }),
  ),
}));

function read(octets: Uint8Array): unknown {
  try {
    return decodeValue(octets);
  } catch (thrown) {
    if (thrown instanceof BulkheadError && thrown.code === 'INVALID_ARGUMENT') return thrown;
    throw thrown;
  }
}

/** What Python does not have, or compares otherwise. */
const OWN = /has no equal in Python|cannot be one in Python|as Python compares|beyond the years|numpy does not have|Arrow|nested too deeply|hashes of others/;

describe.runIf(!('missing' in python))('Python and TypeScript', () => {
  if ('missing' in python) return;

  test('read and write each other’s values as the same', () => {
    const values = fc.sample(tree, { numRuns: 1_500, seed: SEED });
    const answers = throughPython(python.interpreter, values.map((value) => encodeValue(value).bytes));
    values.forEach((value, i) => {
      const { written, ...not } = answers[i] ?? {};
      expect(not, `value ${i}`).toEqual({});
      expect(read(written as Uint8Array), `value ${i}`).toEqual(value);
    });
  });

  test('large arrays begin where a mapped file needs no copy, wherever they are in a value', () => {
    const octets = new Uint8Array(throughPython(python.interpreter, [encodeValue(['x', new Float64Array(1_000).fill(7), { y: new NdArray([10, 100], new Float64Array(1_000).fill(7)) }]).bytes])[0]?.written ?? []);
    const seven = Buffer.from(Float64Array.of(7, 7, 7).buffer);
    const starts: number[] = [];
    for (let at = Buffer.from(octets).indexOf(seven); at >= 0; at = Buffer.from(octets).indexOf(seven, at + 8_000)) starts.push(at % 8);
    expect(starts).toEqual([0, 0]);
    expect(encodeValue(new Float64Array(1_000)).bytes.length % 8).toBe(0);
  });

  test('damaged octets are an error of the same kind to both, and neither reads what the other refuses for its form', () => {
    const random = fc.sample(fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 3 }), { numRuns: 6_000, seed: SEED });
    const values = fc.sample(tree, { numRuns: 200, seed: SEED + 1 }).map((value) => encodeValue(value).bytes).filter((bytes) => bytes.length > 1);
    const damaged = random.map((changes, i) => {
      const bytes = (values[i % values.length] as Uint8Array).slice();
      for (const [at, octet] of changes) bytes[at % bytes.length] = octet;
      return i % 5 === 0 ? bytes.subarray(0, (changes[0]?.[0] ?? 0) % bytes.length) : bytes;
    });
    const noise = fc.sample(fc.uint8Array({ maxLength: 40 }), { numRuns: 4_000, seed: SEED });
    const inputs = [...damaged, ...noise];
    const answers = throughPython(python.interpreter, inputs);
    const read_ = inputs.map(read);
    inputs.forEach((bytes, i) => {
      const { written, refused, failed } = answers[i] ?? {};
      const here = read_[i];
      const shown = Buffer.from(bytes).toString('hex').slice(0, 400);
      expect(failed?.startsWith('W') === true ? undefined : failed, shown).toBe(undefined);
      if (written !== undefined) expect(here, `Python reads ${shown}`).not.toBeInstanceOf(BulkheadError);
      else if (refused !== undefined && !(here instanceof BulkheadError)) expect(refused, `TypeScript reads ${shown}`).toMatch(OWN);
    });
    expect(answers.filter(({ written }) => written !== undefined).length).toBeGreaterThan(500);
    expect(answers.filter(({ refused }) => refused !== undefined).length).toBeGreaterThan(3_000);
  });
});
