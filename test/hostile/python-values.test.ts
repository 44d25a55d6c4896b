/** Hostile octets against Python's half of the value codec: each ends as INVALID_ARGUMENT, nothing is run, and no small input takes long or much memory. */
import { describe, expect, it } from 'vitest';
import { encodeValue } from '../../src/base/value.ts';
import { testPython } from '../support/python.ts';
import { runPython, throughPython } from '../support/python-codec.ts';

const python = testPython();
const hex = (text: string): Uint8Array => Buffer.from(text, 'hex');
const u32 = (n: number): string => n.toString(16).padStart(8, '0');
const map = (n: number, entry: (i: number) => string): string => `d90103ba${u32(n)}${Array.from({ length: n }, (_, i) => entry(i)).join('')}`;
/** Python's hash of a whole number is its remainder by this. */
const COLLIDE = 2n ** 61n - 1n;

function doubling(inside: (of: unknown) => unknown): string {
  let of: unknown[] = [1];
  for (let i = 0; i < 40; i++) of = [of, of];
  return Buffer.from(encodeValue(inside(of)).bytes).toString('hex');
}

describe.runIf(!('missing' in python))('what Python reads', () => {
  if ('missing' in python) return;
  const { interpreter } = python;

  const refused: [what: string, hex: string][] = [
    ['nothing', ''], ['an indefinite byte string', '5f4101ff'], ['an indefinite text', '7f6161ff'], ['an indefinite array', '9f01ff'], ['an indefinite map', 'bf616101ff'], ['a lone break', 'ff'], ['reserved lengths', '1c'],
    ['a reserved simple value', 'f8ff'], ['simple(0)', 'e0'], ['an array of 2^32 elements', '9affffffff'], ['an array of 2^63 elements', '9b7fffffffffffffff'], ['a map of 2^32', 'baffffffff'], ['a text of 4 GiB', '7affffffff61'], ['bytes of 2^64', '5bffffffffffffffff00'],
    ['a set of 2^32', 'd901029affffffff'], ['a Map of 2^32', 'd90103baffffffff'], ['an unknown tag', 'd9ffff00'], ['tag 24 (embedded CBOR)', 'd8184100'], ['self-described CBOR', 'd9d9f700'], ['overlong UTF-8', '62c080'], ['a UTF-8 surrogate', '63eda080'], ['truncated UTF-8', '61c3'],
    ['a number as a key', 'a10000'], ['a key twice', 'a2616100616101'], ['an element twice', 'd90102820101'], ['a Map key twice', 'd90103a201000101'], ['1 and true as keys', 'd90103a20100f501'], ['1 and 1.0 in a set', 'd901028201fb3ff0000000000000'], ['a map as a key', 'd90103a1a000'], ['a list of maps as a key', 'd90103a181a000'],
    ['a reference to nothing', 'd81d00'], ['a reference to itself', 'd81cd81d00'], ['a reference beyond', '82d81ca0d81d01'], ['a shared scalar', 'd81c05'], ['sharing twice', 'd81cd81ca0'], ['a list in itself as a key', 'd90103a1d81c81d81d0000'],
    ['a date of text', 'c16161'], ['a date of truth', 'c1f5'], ['no date', 'c1f97e00'], ['an endless date', 'c1f97c00'], ['a date beyond the years', 'c11b00ffffffffffffff'], ['a bigint of text', 'c26161'],
    ['Float64Array of 7 octets', 'd85647'.padEnd(20, '0')], ['a big-endian float array', 'd852480000000000000000'], ['a shape that is no list', 'd828820041'], ['a shape of more than there is', 'd828828102d8404101'], ['a shape below zero', 'd828828120d84040'], ['a shape of text', 'd8288281613140'],
    ['a shape that overflows', `d82882821b7fffffffffffffff1b7fffffffffffffff4100`], ['nothing of a shape beyond numpy', 'd8288282001bffffffffffffffff40'], ['33 dimensions', `d828829821${'01'.repeat(33)}4100`], ['an array of a list', 'd8288281018101'],
    ['an id of 23 octets', `d9424857${'00'.repeat(23)}`], ['a ref where none may be', `d942485818${'00'.repeat(24)}`], ['an actor where none may be', `d94249825818${'00'.repeat(24)}627b7d`], ['an error with two fields', 'd9424a8261616161'], ['an error with an object as its stack', 'd9424a8361616161a0'],
    ['half a UTF-16 unit', 'd9424b4100'], ['a regular expression', 'd8236161'], ['a sparse array', 'd9424e8202a0'], ['an Arrow table of nothing', 'd9425140'], ['an Arrow table of noise', 'd9425144ffffffff'], ['an Arrow table without end', `d9425148ffffffff${'ffffff7f'}`],
    ['a pickle', 'da424b50595b000000000000000a0000000000000000'], ['a pickle under a wide tag', 'db00000000424b50595b0000000000000000'], ['nesting of 600', `${'81'.repeat(600)}00`], ['nesting of 100,000', `${'81'.repeat(100_000)}00`], ['nested tags', `${'d81c'.repeat(50_000)}80`], ['nested Maps', `${'d90103a100'.repeat(20_000)}00`],
    ['numbers of one hash', map(2_000, (i) => `c250${(COLLIDE * BigInt(i)).toString(16).padStart(32, '0')}00`)],
    // As lists a few hundred octets, taken apart 2^40 elements.
    ['a key that doubles forty times', doubling((of) => new Map([[of, 0]]))], ['an element that doubles forty times', doubling((of) => new Set([of]))],
  ];

  it('is refused when it is crafted, with the reason', () => {
    const answers = throughPython(interpreter, refused.map(([, octets]) => hex(octets)));
    expect(answers.map(({ refused: why }, i) => [refused[i]?.[0], why !== undefined && /malformed value at octet \d+: /.test(why) ? 'refused' : answers[i]])).toEqual(refused.map(([what]) => [what, 'refused']));
  });

  it('is refused when it is truncated anywhere, or has octets left over', () => {
    const bytes = encodeValue({ text: 'h\u00e9', n: [0, -1, 70_000, 2 ** 40, 1.5, 2n ** 70n], date: new Date(1_500), map: new Map<unknown, unknown>([[1, [2]], ['k', null]]), set: new Set(['a']), bytes: new Uint8Array(5), floats: new Float32Array(2), error: new TypeError('t', { cause: [true] }), lone: '\ud800' }).bytes;
    const answers = throughPython(interpreter, [...bytes.keys()].map((end) => bytes.subarray(0, end)).concat(new Uint8Array([...bytes, 0])));
    expect(answers.filter(({ refused: why }) => why === undefined)).toEqual([]);
    expect(throughPython(interpreter, [bytes])[0]?.refused).toBe(undefined);
  });

  it('as an Arrow table is not compressed, names no pickled type, and may be damaged', () => {
    expect(JSON.parse(runPython(interpreter, `
import json, pickle, random
import pyarrow as pa
from bulkhead import neutral
from bulkhead.errors import BulkheadError
def stream(table, **how):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**how)) as out: out.write_table(table)
    return sink.getvalue().to_pybytes()
def read(ipc):
    try: neutral.decode(neutral._wide(0xC0, 0x4251, 3) + neutral._wide(0x40, len(ipc), 5) + ipc).to_pylist(); return "read"
    except BulkheadError as refused: return refused.message.split(": ", 1)[1][:40]
class Evil:
    def __reduce__(self): return exec, ("import builtins; builtins.MARKED = True",)
bomb = pa.table({"zeros": pa.array([0] * 200_000), "words": pa.array(["x"] * 200_000).dictionary_encode()})
field = pa.field("list", pa.list_(pa.field("item", pa.binary(), metadata={b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(Evil())})))
typed = pa.table([pa.array([[b"x"]], pa.list_(pa.binary()))], names=["list"]).cast(pa.schema([field]))
small, rand, kinds = stream(pa.table({"n": [1, 2], "s": ["x", None], "d": pa.array(["p", "q"]).dictionary_encode()})), random.Random(5), set()
for _ in range(1_500):
    damaged = bytearray(small)
    for _ in range(2): damaged[rand.randrange(len(damaged))] = rand.choice((0, 1, 127, 128, 255))
    kinds.add(read(bytes(damaged)).split(":")[0])
print(json.dumps([read(stream(bomb)), read(stream(bomb, compression="zstd")), read(stream(bomb, compression="lz4")), read(stream(typed)), sorted(kinds), hasattr(__builtins__, "MARKED")]))
`))).toEqual(['read', expect.stringMatching(/^an Arrow table that is compressed/), expect.stringMatching(/^an Arrow table that is compressed/), expect.stringMatching(/^an Arrow schema names a pickled type/), expect.arrayContaining(['not an Arrow stream', 'read']), false]);
  });

  it('as text of a failure is text: an exception is taken only from where Python put it', () => {
    expect(JSON.parse(runPython(interpreter, `
import base64, json, pickle
from bulkhead.client import CAUSE_MARK, describe_failure, split_stack
class Evil(Exception):
    def __reduce__(self): return exec, ("import builtins; builtins.MARKED = True",)
mark = CAUSE_MARK + base64.b64encode(pickle.dumps(Evil())).decode()
class Bare(Exception):
    __module__ = "builtins"
seen = []
for thrown in (ValueError(mark), ValueError("x" * 9_000 + mark), KeyError(mark), ValueError("a" + mark + "\\n" + mark), OSError(2, mark)):
    message, stack = describe_failure(thrown)
    shown, cause = split_stack(stack, False)
    seen.append([type(cause).__name__, CAUSE_MARK in message])
    assert split_stack(stack, True)[1] is None
message, stack = describe_failure(ValueError("v"), plain=True)
print(json.dumps([seen, CAUSE_MARK in stack, hasattr(__builtins__, "MARKED")]))
`))).toEqual([[['ValueError', false], expect.anything(), ['KeyError', false], ['ValueError', false], expect.anything()], false, false]);
  });
});
