/** The client core frame by frame: what it writes, what it releases and when, and that a failing call leaves nothing behind. */
import { beforeEach, describe, expect, it } from 'vitest';
import { BulkheadError } from '../../src/base/errors.ts';
import { CALL_KIND, FrameReader, FrameWriter, OP } from '../../src/base/frame.ts';
import { MAX_CODE_BYTES } from '../../src/base/limits.ts';
import { decodeValue, encodeValue } from '../../src/base/value.ts';
import { ClientCore } from '../../src/sdk/client-core.ts';
import type { ObjectRef } from '../../src/sdk/object-ref.ts';

/** A registry whose collections the test decides: the n-th registration is collected when it says so. */
class FakeRegistry {
  static readonly registered: { collect(): void }[] = [];
  readonly #callback: (held: unknown) => void;

  constructor(callback: (held: unknown) => void) {
    this.#callback = callback;
  }

  register(_: object, held: unknown): void {
    FakeRegistry.registered.push({ collect: () => this.#callback(held) });
  }

  unregister(): boolean {
    return false;
  }

  get [Symbol.toStringTag](): 'FinalizationRegistry' {
    return 'FinalizationRegistry';
  }
}

const DIGEST = 'ab'.repeat(32);
const prefix = Uint8Array.from({ length: 20 }, (_, i) => i + 1);
let writer: FrameWriter;
let core: ClientCore;

beforeEach(() => {
  FakeRegistry.registered.length = 0;
  writer = new FrameWriter();
  core = new ClientCore({ sessionPrefix: prefix, writer, touched: () => undefined, parent: () => 7, collects: FakeRegistry as unknown as typeof FinalizationRegistry });
});

/** Takes the batch as its owner does, and lists its frames. */
function flush(): { op: number; body: Uint8Array }[] {
  core.writeReleases();
  const frames: { op: number; body: Uint8Array }[] = [];
  const reader = new FrameReader().reset(writer.take());
  while (reader.next()) frames.push({ op: reader.op, body: reader.rest().slice() });
  return frames;
}

function deliver(build: (writer: FrameWriter) => void): void {
  const batch = new FrameWriter();
  build(batch);
  const reader = new FrameReader().reset(batch.take());
  while (reader.next()) expect(core.receive(reader)).toBe(true);
}

const define = (options = '{}', returns = 1): number => core.template({ kind: CALL_KIND.TASK, digest: DIGEST, exportName: 'f', method: '', options, returns });
const released = (): string[] => flush().filter(({ op }) => op === OP.RELEASE).flatMap(({ body }) => Array.from({ length: (body.length - 4) / 24 }, (_, i) => Buffer.from(body.subarray(4 + 24 * i, 28 + 24 * i)).toString('hex')));
const hexOf = (ref: ObjectRef): string => ref.id.slice(4);

describe('calls', () => {
  it('are defined once and written as proto/frames.md says', () => {
    const template = define();
    expect(define()).toBe(template);
    expect(define('{"cpus":2}')).toBe(template + 1);
    const first = core.submit(template, 1, [1, 'x']) as ObjectRef;
    const [a, b] = core.submit(template, 2, [first, [first]]) as ObjectRef[];
    const frames = flush();
    expect(frames.map(({ op }) => op)).toEqual([OP.DEFINE, OP.DEFINE, OP.SUBMIT, OP.SUBMIT]);
    const [, , one, two] = frames as [unknown, unknown, { body: Uint8Array }, { body: Uint8Array }];
    expect(Buffer.from(one.body).toString('hex')).toBe(`07000000${'01000000'}${'01000000'}0000${'00000000'}82016178`);
    expect(Buffer.from(two.body).toString('hex')).toBe(`07000000${'02000000'}${'01000000'}0100${'0000'}${hexOf(first)}01000000${hexOf(first)}82f681d942485818${hexOf(first)}`);
    expect([hexOf(first), hexOf(a as ObjectRef), hexOf(b as ObjectRef)]).toEqual(['01', '02', '03'].map((index) => `${Buffer.from(prefix).toString('hex')}${index}000000`));
  });

  it('without results still have an index of their own', () => {
    const template = define('{"returns":0}', 0);
    expect(core.submit(template, 0, [])).toEqual([]);
    expect(core.submit(template, 0, [])).toEqual([]);
    expect(flush().slice(1).map(({ body }) => body[4])).toEqual([1, 2]);
  });

  it('that cannot be encoded leave no torn frame', () => {
    const template = define();
    flush();
    expect(() => core.submit(template, 1, [() => 1])).toThrow(/args\[0\] is a function/);
    expect(() => core.submit(template, 1, [{ get x() { core.submit(template, 1, []); throw new Error('mine'); } }])).toThrow('mine');
    const many = Array.from({ length: 1_025 }, () => core.submit(template, 1, []) as ObjectRef);
    flush();
    expect(() => core.submit(template, 1, many)).toThrow(/1025 refs among the arguments/);
    expect(flush()).toEqual([]);
  });

  it('send code in parts, once', () => {
    const source = new Uint8Array(1_300_000);
    core.sendCode(DIGEST, source);
    core.sendCode(DIGEST, source);
    const parts = flush();
    expect(parts.map(({ op, body }) => [op, body.length - 40])).toEqual([[OP.CODE, 524_288], [OP.CODE, 524_288], [OP.CODE, 251_424]]);
    expect(source.length).toBeLessThan(MAX_CODE_BYTES);
  });

  it('end with the channel', async () => {
    const ref = core.submit(define(), 1, []) as ObjectRef;
    const pending = core.get([ref]);
    core.close(new BulkheadError('UNAVAILABLE', 'gone'));
    await expect(pending).rejects.toMatchObject({ code: 'UNAVAILABLE' });
    expect(() => core.submit(1, 1, [])).toThrow('gone');
    expect(() => core.get([ref])).toThrow('gone');
  });
});

describe('answers', () => {
  const value = (x: unknown): Uint8Array => encodeValue(x).bytes;

  it('come in any order, in parts, and late ones are ignored', async () => {
    const refs = core.submit(define('{"returns":3}', 3), 3, []) as ObjectRef[];
    const got = core.get(refs);
    const large = value(new Uint8Array(10).fill(3));
    deliver((w) => {
      w.begin(OP.VALUE).u32(1).u32(2).raw(value('c')).end();
      w.begin(OP.VALUE_CHUNK).u32(1).u32(0).u64(large.length).u64(0).raw(large.subarray(0, 4)).end();
      w.begin(OP.VALUE).u32(1).u32(1).raw(value(undefined)).end();
      w.begin(OP.VALUE_CHUNK).u32(1).u32(0).u64(large.length).u64(4).raw(large.subarray(4)).end();
      w.begin(OP.VALUE).u32(1).u32(1).raw(value('late')).end();
      w.begin(OP.VALUE).u32(99).u32(0).raw(value('unknown')).end();
    });
    expect(await got).toEqual([new Uint8Array(10).fill(3), undefined, 'c']);
  });

  it('that fail carry code, message and stack; an unknown code is INTERNAL', async () => {
    const ref = core.submit(define(), 1, []) as ObjectRef;
    const [first, second, third] = [core.get([ref]), core.get([ref]), core.get([ref])];
    deliver((w) => {
      w.begin(OP.VALUE_FAILED).u32(1).u32(0).str('OBJECT_LOST').text('lost').text('at x').end();
      w.begin(OP.VALUE_FAILED).u32(2).u32(0).str('NEW_CODE').text('?').text('').end();
      w.begin(OP.VALUE).u32(3).u32(0).raw(Uint8Array.of(0xff)).end();
    });
    await expect(first).rejects.toMatchObject({ code: 'OBJECT_LOST', message: 'lost', remoteStack: 'at x' });
    await expect(second).rejects.toMatchObject({ code: 'INTERNAL', remoteStack: undefined });
    await expect(third).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  it('REJECTED fails what waits for the call, now and later', async () => {
    const ref = core.submit(define(), 1, []) as ObjectRef;
    const waiting = core.get([ref]);
    deliver((w) => w.begin(OP.REJECTED).u32(1).str('RESOURCE_EXHAUSTED').text('too many calls').end());
    await expect(waiting).rejects.toMatchObject({ code: 'RESOURCE_EXHAUSTED' });
    await expect(core.get([ref])).rejects.toMatchObject({ message: 'too many calls' });
  });

  it('that are malformed throw, so that the owner closes the channel', () => {
    const refs = core.submit(define('{"returns":2}', 2), 2, []) as ObjectRef[];
    void core.get(refs).catch(() => undefined);
    const bad: ((w: FrameWriter) => void)[] = [
      (w) => w.begin(OP.VALUE).u32(1).u32(2).raw(value(1)).end(), (w) => w.begin(OP.VALUE_CHUNK).u32(1).u32(0).u64(10).u64(5).raw(new Uint8Array(5)).end(), (w) => w.begin(OP.VALUE_CHUNK).u32(1).u32(5).u64(10).u64(0).raw(new Uint8Array(5)).end(),
      (w) => w.begin(OP.READY).u32(1).u32(1_000_000).end(), (w) => w.begin(OP.VALUE_ATTACHED).u32(1).u32(0).u32(1).end(), (w) => w.begin(OP.DONE).u32(1).text('{}').u8(0).end(), (w) => w.begin(OP.ACTOR).u32(1).raw(new Uint8Array(24)).text('{"digest":"x"}').end(),
      (w) => w.begin(OP.VALUE_CHUNK).u32(1).u32(0).u64(2 ** 40).u64(0).raw(new Uint8Array(5)).end(),
    ];
    for (const build of bad) expect(() => deliver(build)).toThrow(/malformed/);
    const other = new FrameWriter();
    other.begin(OP.EXEC).u32(1).end();
    const reader = new FrameReader().reset(other.take());
    reader.next();
    expect(core.receive(reader)).toBe(false);
  });
});

describe('references', () => {
  it('made in one burst are released together, those of another burst are not', () => {
    const template = define();
    const [a, b] = [core.submit(template, 1, []) as ObjectRef, core.submit(template, 1, []) as ObjectRef];
    flush();
    const c = core.submit(template, 1, []) as ObjectRef;
    flush();
    expect(FakeRegistry.registered).toHaveLength(2);
    FakeRegistry.registered[0]?.collect();
    expect(released()).toEqual([hexOf(a), hexOf(b)]);
    FakeRegistry.registered[1]?.collect();
    expect(released()).toEqual([hexOf(c)]);
  });

  it('that were given up are not released again', () => {
    const [a, b] = [core.submit(define(), 1, []) as ObjectRef, core.submit(define(), 1, []) as ObjectRef];
    core.release(a);
    expect(released()).toEqual([hexOf(a)]);
    FakeRegistry.registered[0]?.collect();
    expect(released()).toEqual([hexOf(b)]);
  });

  it('live until the last copy is gone, whichever goes first', () => {
    const original = core.submit(define(), 1, []) as ObjectRef;
    flush();
    const bytes = encodeValue([original], core.hooks).bytes;
    const [copy] = decodeValue(bytes, core.hooks) as [ObjectRef];
    expect(copy.id).toBe(original.id);
    FakeRegistry.registered[0]?.collect();
    expect(released()).toEqual([]);
    FakeRegistry.registered[1]?.collect();
    expect(released()).toEqual([hexOf(original)]);

    const second = core.submit(define(), 1, []) as ObjectRef;
    flush();
    core.refFrom(Buffer.from(hexOf(second), 'hex'));
    FakeRegistry.registered[3]?.collect();
    expect(released()).toEqual([]);
    FakeRegistry.registered[2]?.collect();
    expect(released()).toEqual([hexOf(second)]);
  });

  it('of other sessions are released when their copies are gone, unless they came back meanwhile', () => {
    const id = new Uint8Array(24).fill(9);
    const hex = '09'.repeat(24);
    core.refFrom(id);
    core.refFrom(id);
    FakeRegistry.registered[0]?.collect();
    expect(released()).toEqual([]);
    FakeRegistry.registered[1]?.collect();
    core.refFrom(id);
    expect(released()).toEqual([]);
    FakeRegistry.registered[2]?.collect();
    expect(released()).toEqual([hex]);
  });
});
