/** Calls that stream, in clusters of raylet cores under random orders of events: items come once, in order and within the window, whatever dies. */
import { describe, expect, it } from 'vitest';
import { CALL_KIND, FrameWriter, NO_ITEM, OP } from '../../src/base/frame.ts';
import { DO, LARGE_ITEM_BYTES, World, type SimClient, type SimNode, type SimStream } from './world.ts';

const STREAM = { returns: 'streaming', streamItems: 8, streamBytes: 500_000, maxRetries: 20 };

function reader(world: World, node = 0, options: object = STREAM): SimClient {
  const client = world.client(node, 1);
  client.define(1, CALL_KIND.TASK, options);
  client.define(2, CALL_KIND.TASK, {});
  client.define(4, CALL_KIND.ACTOR_CLASS, {}, 'Counter');
  client.define(5, CALL_KIND.ACTOR_METHOD, options, 'chunks');
  return client;
}

/** What `n` items are: every fifth comes as a ref. */
const numbers = (n: number): number[] => Array.from({ length: n }, (_, i) => (i % 5 === 4 ? -1 : i));

function readAll(world: World, client: SimClient, streams: readonly SimStream[], between: () => void = () => undefined): void {
  for (let round = 0; round < 2_000 && streams.some((s) => s.end === undefined); round++) {
    for (let i = Math.floor(world.random() * 40); i > 0; i--) world.step();
    for (const stream of streams) if (world.random() < 0.5) client.take(stream);
    client.flush();
    between();
    world.tick();
  }
  world.run(200_000);
}

function expectNothingLeft(world: World): void {
  for (const client of world.clients) {
    client.node.core.closeChannel(client.channel);
    world.drain(client.node);
  }
  world.run(200_000);
  for (const node of world.nodes) {
    const core = node.core.state;
    expect(core.available).toEqual(core.config.total);
    for (const tenant of core.tenants.values()) expect([tenant.cpuUnitsInUse, tenant.objectBytes, tenant.heldBytes]).toEqual([0, 0, 0]);
    for (const channel of core.channels.values()) expect([channel.inFlight, channel.waiting]).toEqual([0, 0]);
  }
}

describe.each([1, 2, 3])('streams of %i raylets', (nodes) => {
  it.each([1, 2, 3, 4, 5, 6, 7, 8])('bring every item once and in order, whatever dies (seed %i)', (seed) => {
    const world = new World({ nodes, cpus: 2, seed: seed * 13 + nodes });
    const client = reader(world);
    const actor = client.call(OP.CREATE_ACTOR, 4, DO.RETURN);
    const streams = [20, 40, 7, 0, 33].map((n) => ({ n, stream: client.stream(OP.SUBMIT, 1, n, 8) }));
    const failing = client.stream(OP.SUBMIT, 1, 12, 8, { fails: true });
    const ofActor = client.stream(OP.CALL_ACTOR, 5, 15, 8, { actor });
    client.flush();
    let deaths = 0;
    readAll(world, client, [...streams.map((s) => s.stream), failing, ofActor], () => {
      if (deaths > 6 || world.random() > 0.05) return;
      const node = world.nodes[Math.floor(world.random() * nodes)] as SimNode;
      const worker = world.anyWorker(node);
      if (worker === undefined || worker.purpose === 'actors') return;
      deaths++;
      world.killWorker(node, worker, false);
    });
    for (const { n, stream } of streams) expect([stream.end, stream.items]).toEqual(['done', numbers(n)]);
    expect([failing.end, failing.items]).toEqual(['TASK_FAILED', numbers(12)]);
    expect([ofActor.end, ofActor.items]).toEqual(['done', numbers(15)]);
    for (const node of world.nodes) expect(node.core.state.available).toEqual(node.core.state.config.total);
    // Their items are objects like others.
    const call = client.get(streams.flatMap((s) => s.stream.ids));
    client.flush();
    world.run(200_000);
    expect(new Set(call.answers)).toEqual(new Set(['value']));
    client.release(streams.flatMap((s) => s.stream.ids));
    client.flush();
    world.run(200_000);
    const records = [...(world.nodes[0] as SimNode).logs.values()].flatMap((log) => log.records);
    expect(records.filter((r) => r.type === 'lifecycle' && r.event === 'stream.ended').map((r) => ('detail' in r ? Number.parseInt(r.detail, 10) : 0)).sort((a, b) => a - b)).toEqual([0, 7, 12, 15, 20, 33, 40]);
    expectNothingLeft(world);
  });

  it('wait for their reader, give up its cpu meanwhile, and end when it does', () => {
    const world = new World({ nodes, cpus: 1, seed: 40 + nodes });
    const client = reader(world);
    const stream = client.stream(OP.SUBMIT, 1, 100, 8);
    client.flush();
    world.run(200_000);
    expect(stream.items).toHaveLength(8);
    // The one cpu is free for others, though the stream goes on.
    const others = client.get(Array.from({ length: 5 }, () => client.call(OP.SUBMIT, 2, DO.RETURN)));
    client.flush();
    world.run(200_000);
    expect(others.answers).toEqual(Array.from({ length: 5 }, () => 'value'));
    client.take(stream);
    client.flush();
    world.run(200_000);
    expect([stream.items.length, stream.end]).toEqual([16, undefined]);
    client.cancel(idOf(client, stream.seq), false);
    client.release([idOf(client, stream.seq), ...stream.ids, ...others.refs]);
    client.flush();
    world.run(200_000);
    expect(stream.end).toBe('CANCELLED');
    expect(client.channel.session.objects.size).toBe(0);
    expectNothingLeft(world);
  });

  it('end when the ref of the call is given up, without a word', () => {
    const world = new World({ nodes, cpus: 1, seed: 60 + nodes });
    const client = reader(world);
    const stream = client.stream(OP.SUBMIT, 1, 100, 8);
    const unopened = client.call(OP.SUBMIT, 1, DO.STREAM, [], undefined, 1, [], 5);
    client.flush();
    world.run(200_000);
    client.release([idOf(client, stream.seq), unopened]);
    client.flush();
    world.run(200_000);
    expect(stream.end).toBe('CANCELLED');
    expectNothingLeft(world);
  });

  it('stop at the window in octets, one item beyond', () => {
    const world = new World({ nodes: 1, cpus: 1, seed: 70 + nodes });
    const client = reader(world, 0, { ...STREAM, streamItems: 100, streamBytes: LARGE_ITEM_BYTES + 1 });
    const stream = client.stream(OP.SUBMIT, 1, 60, 100);
    client.flush();
    world.run(200_000);
    // Four small ones and a large one take less than the window; the next five go over it.
    expect(stream.items).toEqual(numbers(10).slice(0, stream.items.length));
    expect(stream.items.length).toBeLessThanOrEqual(10);
    readAll(world, client, [stream]);
    expect(stream.items).toEqual(numbers(60));
    expectNothingLeft(world);
  });
});

describe.each([1, 2])('a reader of an actor’s stream that goes away (%i raylets)', (nodes) => {
  it.each(['gives up the ref', 'ends'])('%s: the actor lives on for others, even when its generator does not stop', (how) => {
    const world = new World({ nodes, cpus: 1, seed: 90 });
    const owner = reader(world);
    const other = reader(world, nodes - 1);
    owner.define(6, CALL_KIND.ACTOR_METHOD, {}, 'add');
    const actor = owner.call(OP.CREATE_ACTOR, 4, DO.RETURN);
    owner.get([owner.call(OP.CALL_ACTOR, 6, DO.RETURN, [], actor)]);
    owner.flush();
    world.run(10_000);
    const streams = [other.call(OP.CALL_ACTOR, 5, DO.HANG, [], actor), other.call(OP.CALL_ACTOR, 5, DO.STREAM, [], actor, 1, [], 50)];
    other.flush();
    world.run(10_000);
    expect(world.hanging.size).toBe(1);
    // It answers nothing any more.
    world.hanging.clear();
    if (how === 'ends') other.node.core.closeChannel(other.channel);
    else other.release(streams);
    other.flush();
    world.drain(other.node);
    for (let i = 0; i < 1_000; i++) {
      world.run(10_000);
      world.tick();
    }
    const late = owner.get([owner.call(OP.CALL_ACTOR, 6, DO.RETURN, [], actor)]);
    owner.flush();
    world.run(10_000);
    expect(late.answers).toEqual(['value']);
    expectNothingLeft(world);
  });
});

const idOf = (client: SimClient, index: number): Uint8Array => {
  const id = new Uint8Array(24);
  id.set(client.prefix);
  new DataView(id.buffer).setUint32(20, index, true);
  return id;
};

describe('a denied or refused stream', () => {
  it('tells its reader why', () => {
    const world = new World({ nodes: 1, cpus: 1, seed: 5, decide: (r) => r.action !== 'task.submit' });
    const client = reader(world);
    const stream = client.stream(OP.SUBMIT, 1, 3, 8);
    client.flush();
    world.run(1_000);
    expect([stream.items, stream.end]).toEqual([[], 'DENIED']);
  });

  it('whose items its reader may not get ends as DENIED, and no item leaves', () => {
    const world = new World({ nodes: 1, cpus: 1, seed: 6, decide: (r) => r.action !== 'object.get' });
    const client = reader(world);
    const stream = client.stream(OP.SUBMIT, 1, 3, 8);
    client.flush();
    world.run(1_000);
    expect([stream.items, stream.end]).toEqual([[], 'DENIED']);
    expectNothingLeft(world);
  });

  it('of an actor class is refused', () => {
    const world = new World({ nodes: 1, cpus: 1, seed: 7 });
    const client = world.client(0, 1);
    client.define(1, CALL_KIND.ACTOR_CLASS, { returns: 'streaming' }, 'Counter');
    client.get([client.call(OP.CREATE_ACTOR, 1, DO.RETURN)]);
    client.flush();
    world.run(1_000);
    expect(client.failed).toEqual(['INVALID_ARGUMENT']);
  });
});

describe('hostile frames about streams', () => {
  const opened = (): { world: World; client: SimClient; stream: SimStream; node: SimNode } => {
    const world = new World({ nodes: 1, cpus: 1, seed: 8 });
    const client = reader(world);
    const stream = client.stream(OP.SUBMIT, 1, 100, 8);
    client.flush();
    world.run(10_000);
    return { world, client, stream, node: client.node };
  };
  const more = (client: SimClient, seq: number, skip: number, first: number, count: number): Uint8Array => {
    client.out.begin(OP.MORE).u32(0).u32(seq).u32(skip).u32(NO_ITEM).u32(0).u32(first).u32(count).end();
    return client.out.take();
  };

  it.each([
    ['more than the window', (s: SimStream) => [s.seq, 0, 1_000, 9]],
    ['far more', (s: SimStream) => [s.seq, 0, 1_000, 0xffff_0000]],
    ['indexes beyond the last', (s: SimStream) => [s.seq, 0, 0xffff_ffff, 1]],
    ['index 0', (s: SimStream) => [s.seq, 0, 0, 1]],
    ['a new beginning', (s: SimStream) => [s.seq, 3, 1_000, 1]],
  ] as const)('a reader that grants %s ends its own channel', (_name, args) => {
    const { world, client, stream, node } = opened();
    expect(() => node.core.clientBatch(client.channel, more(client, ...(args(stream) as [number, number, number, number])), world.nowMs)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    expectNothingLeft(world);
  });

  it('grants for what is no stream, or is another client’s, do nothing', () => {
    const { world, client, stream, node } = opened();
    const other = reader(world);
    other.flush();
    world.run(1_000);
    const before = [...(node.logs.get(1)?.records ?? [])].length;
    for (const seq of [stream.seq, 77, 0, 0xffff_ffff]) node.core.clientBatch(other.channel, more(other, seq, 0, 500, 4), world.nowMs);
    world.drain(node);
    world.run(1_000);
    expect(stream.items).toHaveLength(8);
    expect(node.logs.get(1)?.records).toHaveLength(before);
    const plain = client.call(OP.SUBMIT, 2, DO.HANG);
    client.flush();
    world.run(1_000);
    node.core.clientBatch(client.channel, more(client, client.nextSeq - 1, 0, 900, 4), world.nowMs);
    client.cancel(plain, true);
    client.flush();
    world.run(1_000);
    expectNothingLeft(world);
  });

  it('an index that its reader uses itself ends the stream, and only it', () => {
    const { world, client, stream } = opened();
    client.more(stream, 0);
    const used = client.nextSeq;
    client.take(stream);
    client.out.begin(OP.PUT).u32(0).u32(used).u32(0).raw(Uint8Array.of(1)).end();
    client.flush();
    world.run(10_000);
    expect(stream.end).toBe('INVALID_ARGUMENT');
    expectNothingLeft(world);
  });

  it.each([
    ['an item beyond the window', (exec: number, out: FrameWriter) => out.begin(OP.ITEM).u32(exec).u8(0).u32(0).u8(1)],
    ['an item of a form that does not exist', (exec: number, out: FrameWriter) => out.begin(OP.ITEM).u32(exec).u8(2).u32(0)],
  ] as const)('a worker that sends %s is malformed', (_name, write) => {
    const { world, node } = opened();
    const slot = [...node.core.state.workers.values()].flatMap((w) => [...w.slots.values()])[0];
    if (slot === undefined) throw new Error('no slot');
    const out = new FrameWriter();
    write([...slot.execs.keys()][0] as number, out);
    out.end();
    expect(() => node.core.guestBatch(slot, out.take(), world.nowMs)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });

  it('an item of a call that is not on the slot is nobody’s; of one that does not stream it is malformed', () => {
    const { world, client, stream, node } = opened();
    const slot = [...node.core.state.workers.values()].flatMap((w) => [...w.slots.values()])[0];
    if (slot === undefined) throw new Error('no slot');
    const item = (exec: number): Uint8Array => {
      const out = new FrameWriter();
      out.begin(OP.ITEM).u32(exec).u8(0).u32(0).u8(1).end();
      return out.take();
    };
    node.core.guestBatch(slot, item(4_711), world.nowMs);
    world.drain(node);
    expect(stream.items).toHaveLength(8);
    client.call(OP.SUBMIT, 2, DO.HANG);
    client.flush();
    world.run(10_000);
    const plain = [...slot.execs].find(([, task]) => task.stream === undefined)?.[0];
    expect(plain).toBeDefined();
    expect(() => node.core.guestBatch(slot, item(plain as number), world.nowMs)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });
});
