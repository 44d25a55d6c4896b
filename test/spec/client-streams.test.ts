/** Calls that stream, seen from the SDK: against real guests behind a raylet in memory, and against frames that a raylet may not send. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { FrameReader, FrameWriter, OP } from '../../src/base/frame.ts';
import { MAX_STREAM_ITEMS } from '../../src/base/limits.ts';
import { encodeValue } from '../../src/base/value.ts';
import { ClientCore } from '../../src/sdk/client-core.ts';
import type { ObjectStream } from '../../src/sdk/object-stream.ts';
import { connect, ObjectRef, type BulkheadError, type Cluster } from '../../src/sdk/sdk.ts';
import { FakeRaylet } from './fake-raylet.ts';

let raylet: FakeRaylet;
let cluster: Cluster;
const flow = () => cluster.module<typeof import('./fixtures/flow.ts')>(new URL('./fixtures/flow.ts', import.meta.url));

beforeEach(async () => {
  raylet = new FakeRaylet();
  cluster = await connect({ transport: raylet });
});
afterEach(async () => {
  await cluster.close();
});

async function all<T>(values: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const value of values) found.push(value);
  return found;
}

async function errorOf(promise: Promise<unknown>): Promise<BulkheadError> {
  return promise.then(() => { throw new Error('nothing was thrown'); }, (thrown: unknown) => thrown as BulkheadError);
}

const made = (): number => raylet.logs.filter((line) => line.includes('made')).length;
const settled = (): Promise<void> => new Promise((resolve) => { setTimeout(resolve, 30); });

describe('a stream', () => {
  it('of a generator gives refs, or values, in order', async () => {
    const { counted, chunks } = await flow();
    const refs = await all(counted(200));
    expect(refs.every((ref) => ref instanceof ObjectRef)).toBe(true);
    expect(await cluster.get(refs)).toEqual(Array.from({ length: 200 }, (_, i) => i));
    expect(await all(chunks(3).values())).toEqual([[0], [1], [2]]);
    expect(new Set(refs.map((ref) => ref.id)).size).toBe(200);
  });

  it('is made ahead of its reader as far as the window goes, and no further', async () => {
    const { counted } = await flow();
    const stream = counted.options({ streamItems: 10 })(1_000);
    await settled();
    expect(made()).toBe(10);
    for (let i = 0; i < 4; i++) await stream.next();
    await settled();
    expect(made()).toBe(10);
    await stream.next();
    await settled();
    expect(made()).toBe(15);
    await stream.return();
  });

  it('ends when its reader leaves the loop: the generator is closed, what nobody took is given up', async () => {
    const { counted } = await flow();
    const stream = counted.options({ streamItems: 10 })(1_000);
    const seen: number[] = [];
    for await (const ref of stream) {
      seen.push(await cluster.get(ref));
      if (seen.length === 3) break;
    }
    await settled();
    expect(seen).toEqual([0, 1, 2]);
    expect(raylet.logs.at(-1)).toContain('closed');
    expect(raylet.released).toContain(stream.id);
    expect(raylet.released.length).toBeGreaterThanOrEqual(8);
    expect(await stream.next()).toEqual({ value: undefined, done: true });
  });

  it('that fails says so after its items, once', async () => {
    const { slowChunks, unsendable } = await flow();
    const stream = slowChunks(3);
    await settled();
    const values: string[] = [];
    const error = await errorOf((async () => { for await (const value of stream.values()) values.push(value); })());
    expect([values, error.code, error.message]).toEqual([['chunk 0', 'chunk 1', 'chunk 2'], 'TASK_FAILED', 'no third chunk']);
    expect(await stream.next()).toEqual({ value: undefined, done: true });
    const refused = unsendable();
    expect(await cluster.get((await refused.next()).value as ObjectRef)).toBe(1);
    expect((await errorOf(refused.next())).message).toContain('item is a function');
  });

  it('carries large items as objects', async () => {
    const { large } = await flow();
    const sizes = (await all(large(3, 300_000).values())).map((value) => [value.length, value[0]]);
    expect(sizes).toEqual([[300_000, 0], [300_000, 1], [300_000, 2]]);
    expect(await all(large(2, 30_000).values())).toHaveLength(2);
  });

  it('is read from within tasks, and passes refs on', async () => {
    const { sumOfStream, firstOfStream, add, counted } = await flow();
    expect(await cluster.get([sumOfStream(100), firstOfStream(100)])).toEqual([4950, 0]);
    const [one, two] = await all(counted(2));
    expect(await cluster.get(add(one as ObjectRef<number>, add(two as ObjectRef<number>, 5)))).toBe(6);
  });

  it('of an actor’s method needs no option, also through a handle that was passed on or looked up', async () => {
    const { Ticker, readTicker } = await flow();
    const ticker = await Ticker.options({ name: 'ticker' }).create();
    expect(await all(ticker.ticks(3).values())).toEqual([0, 1, 2]);
    expect(await cluster.get(readTicker(ticker, 2))).toEqual([3, 4]);
    const found = await cluster.actor<InstanceType<(typeof import('./fixtures/flow.ts'))['Ticker']>>('ticker');
    expect(await all(found.ticks(2).values())).toEqual([5, 6]);
  });

  it('is what any function gives that returns something to iterate, when asked', async () => {
    const list = cluster.task((n: number) => Promise.resolve(Array.from({ length: n }, (_, i) => i * i)), { returns: 'streaming' });
    expect(await all(list(4).values())).toEqual([0, 1, 4, 9]);
    const inline = cluster.task(async function* (n: number) { for (let i = 0; i < n; i++) yield `n${i}`; });
    expect(await all(inline(3).values())).toEqual(['n0', 'n1', 'n2']);
    const none = cluster.task((n: number) => n, { returns: 'streaming' });
    expect((await errorOf(all(none(4)))).message).toContain('must be a generator');
    const text = cluster.task(() => 'abc', { returns: 'streaming' });
    expect((await errorOf(all(text()))).code).toBe('INVALID_ARGUMENT');
  });

  it('is read by one reader at a time or several, each item by one', async () => {
    const { counted } = await flow();
    const stream = counted.options({ streamItems: 2 })(20);
    const read = await Promise.all(Array.from({ length: 25 }, () => stream.next()));
    const values = await cluster.get(read.flatMap(({ value }) => (value === undefined ? [] : [value])));
    expect(values).toEqual(Array.from({ length: 20 }, (_, i) => i));
    expect(read.filter(({ done }) => done === true)).toHaveLength(5);
  });

  it('does not travel, and says what does', async () => {
    const { counted, sumOf } = (await flow()) as unknown as { counted: (n: number) => ObjectStream; sumOf: (refs: unknown) => ObjectRef };
    const stream = counted(1);
    expect(() => JSON.stringify({ stream })).toThrow(/pass the refs of its items/);
    expect(() => sumOf([stream])).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });

  it.each([{ streamItems: 0 }, { streamItems: MAX_STREAM_ITEMS + 1 }, { streamBytes: 0 }, { streamBytes: '1TiB' }, { returns: 'many' }])('refuses the option %o', async (options) => {
    const { counted } = await flow();
    expect(() => counted.options(options as never)(1)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });

  it('whose options are given to a plain function says that they are for streams', async () => {
    const { add } = await flow();
    expect(() => add.options({ streamItems: 3 })(1, 2)).toThrow(/are for generators/);
  });
});

describe('a raylet that sends what it may not', () => {
  const core = (): { core: ClientCore; stream: ObjectStream; seq: number; receive(write: (w: FrameWriter) => void): void } => {
    const writer = new FrameWriter();
    const client = new ClientCore({ sessionPrefix: new Uint8Array(20).fill(7), writer, touched: () => undefined, parent: () => 0 });
    const stream = client.submitStream(1, { items: 2, bytes: 1_000 }, []);
    const receive = (write: (w: FrameWriter) => void): void => {
      const w = new FrameWriter();
      write(w);
      w.end();
      const reader = new FrameReader().reset(w.take());
      while (reader.next()) client.receive(reader);
    };
    return { core: client, stream, seq: 1, receive };
  };
  const item = (seq: number) => (w: FrameWriter): unknown => w.begin(OP.STREAM_ITEM).u32(seq).u8(0).raw(encodeValue(1).bytes);

  it('items beyond the window end the channel', () => {
    const { receive, seq } = core();
    receive(item(seq));
    receive(item(seq));
    expect(() => receive(item(seq))).toThrow(/not asked for/);
  });

  it('items of a form that does not exist, or with octets left over, end the channel', () => {
    const { receive, seq } = core();
    expect(() => receive((w) => w.begin(OP.STREAM_ITEM).u32(seq).u8(7))).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    expect(() => receive((w) => w.begin(OP.STREAM_ITEM).u32(seq).u8(1).u64(5).u8(1))).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    expect(() => receive((w) => w.begin(OP.STREAM_ITEM).u32(seq))).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });

  it('items and ends of what is no stream are passed over', async () => {
    const { receive, stream, seq } = core();
    receive(item(4_711));
    receive((w) => w.begin(OP.STREAM_END).u32(4_711).u32(0).str('').text('').text(''));
    receive((w) => w.begin(OP.STREAM_END).u32(seq).u32(0).str('').text('').text(''));
    receive((w) => w.begin(OP.STREAM_END).u32(seq).u32(0).str('DENIED').text('again').text(''));
    expect(await stream.next()).toEqual({ value: undefined, done: true });
  });

  it('the end of the channel is the end of its streams', async () => {
    const { core: client, stream } = core();
    const next = stream.next();
    client.close({ code: 'UNAVAILABLE', safeMessage: 'gone' } as BulkheadError);
    expect(await errorOf(next)).toMatchObject({ code: 'UNAVAILABLE' });
    expect(await stream.next()).toEqual({ value: undefined, done: true });
  });
});
