/** The SDK end to end over the frame protocol, with real guests behind a raylet in memory. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { BulkheadError, connect, ObjectRef, type Cluster } from '../../src/sdk/sdk.ts';
import { FrameWriter, OP } from '../../src/base/frame.ts';
import type { Transport, TransportHandlers } from '../../src/sdk/sdk.ts';
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

async function errorOf(promise: Promise<unknown>): Promise<BulkheadError> {
  try {
    await promise;
  } catch (thrown) {
    expect(thrown).toBeInstanceOf(BulkheadError);
    return thrown as BulkheadError;
  }
  throw new Error('nothing was thrown');
}

describe('tasks', () => {
  it('knows its job, node and tenant from the welcome', () => {
    expect([cluster.jobId, cluster.nodeId, cluster.tenant]).toEqual(['job-fake', 'node-1', 'acme']);
  });

  it('runs functions of a module, with refs as arguments', async () => {
    const { add } = await flow();
    const three = add(1, 2);
    expect(three).toBeInstanceOf(ObjectRef);
    expect(await cluster.get(add(three, add(three, 4)))).toBe(10);
    expect(await cluster.get([three, add(1, 1)])).toEqual([3, 2]);
    expect(await cluster.get([])).toEqual([]);
  });

  it('gathers the calls of one turn into one batch', async () => {
    const { add } = await flow();
    await cluster.get(add(0, 0));
    const before = raylet.batches;
    const refs = Array.from({ length: 500 }, (_, i) => add(i, 1));
    const values = await cluster.get(refs);
    expect(values).toEqual(Array.from({ length: 500 }, (_, i) => i + 1));
    // A second batch may carry releases of what was collected meanwhile.
    expect(raylet.batches - before).toBeLessThanOrEqual(2);
  });

  it('runs inline functions, and nested tasks', async () => {
    const cube = cluster.task((n: number) => n ** 3);
    expect(await cluster.get(cube(3))).toBe(27);
    const { fib } = await flow();
    expect(await cluster.get(fib(7))).toBe(13);
  });

  it('gives each of several returns its own ref', async () => {
    const { divide } = await flow();
    const [quotient, rest] = divide.options({ returns: 2 })(47);
    expect(await cluster.get(rest)).toBe(7);
    expect(await cluster.get(quotient)).toBe(4);
    const wrong = divide.options({ returns: 3 })(47) as readonly ObjectRef[];
    expect((await errorOf(cluster.get(wrong[0] as ObjectRef))).message).toContain('an array of 3 values');
  });

  it('brings errors back with the stack of where they were thrown', async () => {
    const { fail, add } = await flow();
    const error = await errorOf(cluster.get(fail('out of bounds')));
    expect(error.code).toBe('TASK_FAILED');
    expect(error.message).toBe('RangeError: out of bounds');
    expect(error.remoteStack).toMatch(/RangeError: out of bounds\n\s+at .*fail/);
    expect((await errorOf(cluster.get(add(fail('first') as ObjectRef<number>, 1)))).message).toContain('first');
    expect(await cluster.get((await flow()).nestedFailure())).toBe('TASK_FAILED RangeError: inner');
  });

  it('refuses results that do not travel, naming the path', async () => {
    const bad = cluster.task(() => ({ list: [1, () => 2] }));
    const error = await errorOf(cluster.get(bad()));
    expect(error.code).toBe('INVALID_ARGUMENT');
    expect(error.message).toContain('result.list[1] is a function');
  });

  it('cancels, and reports what a call logs', async () => {
    const { never, where } = await flow();
    const stuck = never();
    expect((await cluster.wait([stuck], { timeoutMs: 5 })).pending).toEqual([stuck]);
    await cluster.cancel(stuck);
    expect((await errorOf(cluster.get(stuck))).code).toBe('CANCELLED');
    expect(await cluster.get(where())).toBe('job-fake acme');
    expect(raylet.logs).toEqual(['1:in where\n']);
  });

  it('times out a get, and only that', async () => {
    const { never, add } = await flow();
    expect((await errorOf(cluster.get(never(), { timeoutMs: 10 }))).code).toBe('TIMEOUT');
    expect(await cluster.get(add(1, 1), { timeoutMs: 10_000 })).toBe(2);
  });

  it('gives a ref for each value that a generator yields', async () => {
    const { chunks, slowChunks } = await flow();
    const values: unknown[] = [];
    for await (const ref of chunks(3)) values.push(await cluster.get(ref));
    for await (const ref of slowChunks.options({ cpus: 0.5 })(2)) values.push(await cluster.get(ref));
    expect(values).toEqual([[0], [1], [2], 'chunk 0', 'chunk 1']);
    expect((await errorOf((async () => { for await (const _ of slowChunks(3)); })())).message).toContain('no third chunk');
    for await (const _ of chunks(0)) throw new Error('nothing is yielded');
    expect(() => chunks.options({ returns: 2 } as never)).toThrow(/does not go with a generator/);
  });

  it('finds a module relative to the file that asks for it', async () => {
    const module = await cluster.module<typeof import('./fixtures/flow.ts')>('./fixtures/flow.ts');
    expect(await cluster.get(module.add(2, 2))).toBe(4);
    expect((await errorOf(cluster.module('./fixtures/nowhere.ts'))).message).toContain('nowhere.ts');
  });

  it('says what a module exports when a name is wrong', async () => {
    const module = (await flow()) as unknown as Record<string, unknown>;
    expect(() => module['ad']).toThrow(/exports no 'ad'; it exports .*add/);
    expect(() => module['version']).toThrow(/'version' is a (value|unknown)/);
  });
});

describe('objects', () => {
  it('puts and gets small and large values', async () => {
    const small = await cluster.put({ a: [1, 'x'] });
    expect(await cluster.get(small)).toEqual({ a: [1, 'x'] });
    const data = new Uint8Array(1_500_000).map((_, i) => i);
    const large = await cluster.put(data);
    expect(Buffer.compare(await cluster.get(large), data)).toBe(0);
    const { sum } = await flow();
    expect(await cluster.get(sum(large))).toBe(data.reduce((total, octet) => total + octet, 0));
  });

  it('moves large arguments and results out of the frames', async () => {
    const { sum, bytes } = await flow();
    const data = new Uint8Array(5_000_000).fill(1);
    expect(await cluster.get(sum(data))).toBe(5_000_000);
    expect(Buffer.compare(await cluster.get(bytes(300_000)), new Uint8Array(300_000).fill(7))).toBe(0);
  });

  it('gets large values inside tasks, and puts them there', async () => {
    const { sizeOf } = await flow();
    expect(await cluster.get(sizeOf([await cluster.put(new Uint8Array(700_000)), await cluster.put(new Uint8Array(5))]))).toBe(900_005);
  });

  it('passes refs inside values, both ways', async () => {
    const { add, sumOf, keep } = await flow();
    expect(await cluster.get(sumOf([add(1, 2), add(3, 4)]))).toBe(10);
    const inner = await cluster.get(keep('kept'));
    expect(inner).toBeInstanceOf(ObjectRef);
    expect(await cluster.get(inner)).toBe('kept');
  });

  it('waits for some of several', async () => {
    const { add, never } = await flow();
    const [quick, stuck] = [add(1, 1), never()];
    const { ready, pending } = await cluster.wait([stuck, quick] as ObjectRef[], { count: 1 });
    expect(ready).toEqual([quick]);
    expect(pending).toEqual([stuck]);
  });

  it('finds an object by the text of its id, and releases it', async () => {
    const ref = await cluster.put(1);
    expect(await cluster.get(cluster.ref<number>(ref.id))).toBe(1);
    cluster.release(ref);
    await cluster.get(cluster.ref((await cluster.put(2)).id));
    expect(raylet.released).toEqual([ref.id]);
  });

  it('reads a small value that it put or read before from its own memory, anew each time, until it is released', async () => {
    const ref = await cluster.put({ list: [1] });
    const first = await cluster.get(ref);
    first.list.push(2);
    expect(await cluster.get(ref)).toEqual({ list: [1] });
    const frames = raylet.batches;
    for (let i = 0; i < 10; i++) await cluster.get(ref);
    await cluster.wait([ref]);
    expect(raylet.batches).toBe(frames);
    cluster.release(ref);
    await cluster.get(ref).catch(() => undefined);
    expect(raylet.batches).toBeGreaterThan(frames);
  });

  it('waits for as many as were asked for, in the order of the refs, and asks no more about what is ready', async () => {
    const refs = await Promise.all([1, 2, 3, 4].map((n) => cluster.put(n)));
    const shared = refs.map((ref) => cluster.ref<number>(ref.id));
    const { ready, pending } = await cluster.wait(shared, { count: 2 });
    expect(ready).toEqual(shared.slice(0, 2));
    expect(pending).toEqual(shared.slice(2));
    await cluster.wait(shared, { count: 4 });
    const frames = raylet.batches;
    expect((await cluster.wait(pending, { count: 2 })).pending).toEqual([]);
    expect(raylet.batches).toBe(frames);
  });

  it('refuses to be mistaken for a value', async () => {
    const ref = await cluster.put(1);
    expect(() => JSON.stringify({ ref })).toThrow(/does not become JSON/);
    expect('then' in ref).toBe(false);
    expect((await errorOf(cluster.put(ref))).message).toContain('already an object');
    expect((await errorOf(cluster.get({ id: ref.id } as unknown as ObjectRef))).message).toContain('takes ObjectRefs');
  });
});

describe('actors', () => {
  it('keeps state, in the order of the calls', async () => {
    const { Counter } = await flow();
    const counter = await Counter.create(5);
    const refs = [counter.add(1), counter.slowAdd(2), counter.add(3)];
    const values = await cluster.get(refs);
    expect([...values].sort((a, b) => a - b)).toEqual([6, 9, 11]);
    expect(values[0]).toBe(6);
  });

  it('is found by name, once', async () => {
    const { Counter } = await flow();
    const made = await Counter.options({ name: 'delays' }).create(1);
    const found = await cluster.actor<{ add(n: number): number }>('delays');
    expect(found.id).toBe(made.id);
    expect(await cluster.get(found.add(1))).toBe(2);
    expect((await errorOf(Counter.options({ name: 'delays' }).create(1))).message).toContain("named 'delays' exists already");
    const same = await Counter.options({ name: 'delays', getIfExists: true }).create(1);
    expect(await cluster.get(same.add(1))).toBe(3);
    expect((await errorOf(cluster.actor('nobody'))).code).toBe('DENIED');
  });

  it('passes handles to tasks, and makes actors inside tasks', async () => {
    const { Counter, useCounter, makeCounter } = await flow();
    const counter = await Counter.create(1);
    expect(await cluster.get(useCounter(counter))).toBe(11);
    expect(await cluster.get(counter.add(0))).toBe(11);
    expect(await cluster.get(makeCounter())).toBe(42);
  });

  it('fails every call when it was killed or never started', async () => {
    const { Counter, Broken } = await flow();
    const counter = await Counter.create(1);
    await cluster.kill(counter);
    expect((await errorOf(cluster.get(counter.add(1)))).code).toBe('ACTOR_DIED');
    const broken = await Broken.create();
    expect((await errorOf(cluster.get(broken.hello()))).code).toBe('ACTOR_DIED');
  });

  it('has the methods of its class and no others', async () => {
    const { Counter } = await flow();
    const counter = (await Counter.create(1)) as unknown as Record<string, () => ObjectRef>;
    for (const name of ['nope', 'hasOwnProperty', '__proto__', 'valueOf']) expect((await errorOf(cluster.get((counter[name] as () => ObjectRef)()))).message).toContain(`no method named '${name}'`);
    expect(counter['then']).toBeUndefined();
    expect(() => JSON.stringify(counter)).toThrow(/does not become JSON/);
  });
});

describe('connecting', () => {
  const answering = (answer: (handlers: TransportHandlers) => void, closed: () => void = () => undefined): Transport => ({
    open: async (handlers) => {
      queueMicrotask(() => answer(handlers));
      return { send: () => undefined, close: async () => closed() };
    },
  });
  const frame = (build: (writer: FrameWriter) => void): Uint8Array => {
    const writer = new FrameWriter();
    build(writer);
    return writer.take();
  };

  it('fails with what the raylet says, and closes the connection', async () => {
    let closed = 0;
    const transport = answering((handlers) => handlers.batch(frame((w) => w.begin(OP.FAILED).u32(0).str('DENIED').text('session.open is denied').end())), () => closed++);
    expect(await errorOf(connect({ transport }))).toMatchObject({ code: 'DENIED', message: 'session.open is denied' });
    expect(closed).toBe(1);
  });

  it('fails when the welcome is missing, malformed or never comes', async () => {
    const bad: ((handlers: TransportHandlers) => void)[] = [
      (h) => h.batch(frame((w) => w.begin(OP.DONE).u32(1).text('').end())), (h) => h.batch(Uint8Array.of(1, 2, 3)), (h) => h.batch(frame((w) => w.begin(OP.WELCOME).raw(new Uint8Array(20)).text('{').end())),
      (h) => h.batch(frame((w) => w.begin(OP.WELCOME).raw(new Uint8Array(20)).text('{}').u8(1).end())), (h) => h.closed(new Error('reset')), (h) => h.closed(),
    ];
    for (const answer of bad) expect((await errorOf(connect({ transport: answering(answer) }))).code).toMatch(/UNAVAILABLE|INVALID_ARGUMENT/);
  });

  it('ends the session on a malformed frame', async () => {
    const { never } = await flow();
    const pending = errorOf(cluster.get(never()));
    raylet.handlers?.batch(Uint8Array.of(255, 255, 255, 255, 1));
    expect((await pending).message).toContain('malformed frame');
  });
});

describe('the end', () => {
  it('rejects what is pending and what comes after when the connection is lost', async () => {
    const { never } = await flow();
    const pending = errorOf(cluster.get(never()));
    raylet.handlers?.closed(new Error('reset'));
    expect((await pending).code).toBe('UNAVAILABLE');
    expect(() => cluster.task(() => 1)()).toThrow(/connection to the cluster was lost/);
    expect((await errorOf(cluster.put(1))).code).toBe('UNAVAILABLE');
  });
});
