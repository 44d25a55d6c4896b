/** The event loop of one raylet, shared: a tenant's flood of frames is read in pieces, and whoever else comes is read in between. */
import { describe, expect, it } from 'vitest';
import { CALL_KIND, FrameWriter, OP } from '../../src/base/frame.ts';
import { CONTENDED_BUDGET, FairShare } from '../../src/raylet/fair-share.ts';
import { Intake, type Source } from '../../src/raylet/intake.ts';
import { DO, World, type SimClient } from './world.ts';

const MICROS_PER_FRAME = 4;

/** A raylet's intake on a clock that moves with the frames that are read: real cores, invented time, no timers but the turns that it asks for. */
class SimLoop {
  readonly world = new World({ nodes: 1, cpus: 2, seed: 3 });
  readonly intake: Intake;
  readonly paused = new Set<Source>();
  readonly errors: unknown[] = [];
  readonly order: { readonly tenant: string; readonly frames: number }[] = [];
  readonly #records = new Map<string, number>();
  #nowMs = 1_000;

  constructor() {
    const node = this.world.nodes[0]!;
    this.intake = new Intake({
      core: node.core, clock: { nowMs: () => this.world.nowMs, monotonicMs: () => this.#nowMs },
      flush: () => {
        // Each of these frames leaves a record in its tenant's log.
        for (const log of node.logs.values()) {
          const tenant = log === node.logs.get(1) ? 'acme' : 'globex';
          const frames = log.records.length - (this.#records.get(tenant) ?? 0);
          this.#records.set(tenant, log.records.length);
          if (frames > 0) this.order.push({ tenant, frames });
          this.#nowMs += (frames * MICROS_PER_FRAME) / 1_000;
        }
        this.world.drain(node);
      },
      malformed: (_source, error) => this.errors.push(error),
      keepPace: (source) => {
        if (source.unreadBytes > 64 * 1_024) this.paused.add(source);
        else this.paused.delete(source);
      },
    });
  }

  client(tenant: number): SimClient {
    const client = this.world.client(0, tenant);
    client.define(1, CALL_KIND.TASK, {});
    this.send(client);
    return client;
  }

  send(client: SimClient): void {
    this.intake.client(client.channel, client.out.take());
  }

  /** Frames that cost a decision each and nothing else. */
  flood(client: SimClient, frames: number): void {
    const out = new FrameWriter();
    for (let i = 0; i < frames; i++) out.begin(OP.CONTEXT).u32(0).u32(i).end();
    this.intake.client(client.channel, out.take());
  }

  read(tenant: string): number {
    return this.order.reduce((sum, piece) => sum + (piece.tenant === tenant ? piece.frames : 0), 0);
  }
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

describe('a batch of tiny frames', () => {
  it('is read in pieces, and a neighbour’s lone call between two of them', async () => {
    const loop = new SimLoop();
    const [a, b] = [loop.client(1), loop.client(2)];
    loop.flood(a, 100_000);
    expect(loop.read('acme')).toBeLessThan(3_000);
    expect(loop.paused.has(a.channel), 'no more of it is read from the socket').toBe(true);
    for (let i = 0; i < 5; i++) {
      await turn();
      const before = loop.read('acme');
      b.get([b.call(OP.SUBMIT, 1, DO.RETURN)]);
      const mark = loop.read('globex');
      loop.send(b);
      expect(loop.read('globex') - mark, 'the call was read in the turn in which it came').toBeGreaterThan(0);
      expect(loop.read('acme')).toBe(before);
    }
    const mark = loop.read('acme');
    await turn();
    expect(loop.read('acme') - mark, 'what is read between two looks at the sockets, while others are about').toBeLessThanOrEqual(500 / MICROS_PER_FRAME + CONTENDED_BUDGET);
    while (loop.read('acme') < 100_000) await turn();
    expect(loop.paused.has(a.channel)).toBe(false);
    loop.world.run(10_000);
    expect([...b.calls.values()].flatMap((call) => call.answers)).toEqual(Array.from({ length: 5 }, () => 'value'));
  });

  it('of one tenant counts once, on however many channels it comes', async () => {
    const loop = new SimLoop();
    const many = [1, 1, 1, 1].map((tenant) => loop.client(tenant));
    const one = loop.client(2);
    for (const client of many) loop.flood(client, 20_000);
    loop.flood(one, 20_000);
    const [a, b] = [loop.read('acme'), loop.read('globex')];
    while (loop.read('globex') < 20_000) await turn();
    const [read, other] = [loop.read('acme') - a, loop.read('globex') - b];
    expect(read / other).toBeGreaterThan(0.8);
    expect(read / other).toBeLessThan(1.25);
    while (loop.read('acme') < 80_000) await turn();
  });

  it('gives its memory back when it is read to its end, once, and not before', async () => {
    const loop = new SimLoop();
    const a = loop.client(1);
    const given: string[] = [];
    // What was read before, counted out.
    loop.flood(a, 1);
    const start = loop.read('acme');
    const lone = new FrameWriter();
    lone.begin(OP.CONTEXT).u32(0).u32(0).end();
    loop.intake.client(a.channel, lone.take(), () => given.push('lone'));
    expect(given).toEqual(['lone']);
    const many = new FrameWriter();
    for (let i = 0; i < 10_000; i++) many.begin(OP.CONTEXT).u32(0).u32(i).end();
    const long = many.take();
    loop.intake.client(a.channel, long, () => given.push(`long ${loop.read('acme') - start}`));
    lone.begin(OP.CONTEXT).u32(0).u32(0).end();
    // Behind one that waits it waits too.
    loop.intake.client(a.channel, lone.take(), () => given.push(`behind ${loop.read('acme') - start}`));
    while (loop.read('acme') - start < 10_001) {
      expect(given).toHaveLength(1);
      await turn();
    }
    while (loop.read('acme') - start < 10_002) await turn();
    expect(given).toEqual(['lone', 'long 10001', 'behind 10002']);
    await turn();
    expect(given).toHaveLength(3);
    const closed = new FrameWriter();
    closed.begin(OP.CONTEXT).u32(0).u32(0).end();
    a.channel.closed = true;
    loop.intake.client(a.channel, closed.take(), () => given.push('closed'));
    expect(given).toHaveLength(3);
  });

  it('stays in order with what its channel sends next, and with its end', async () => {
    const loop = new SimLoop();
    const a = loop.client(1);
    loop.flood(a, 10_000);
    const ref = a.call(OP.SUBMIT, 1, DO.RETURN);
    a.get([ref]);
    loop.send(a);
    expect(a.channel.session.objects.size, 'the call waits behind the batch').toBe(0);
    let ended = false;
    loop.intake.after(a.channel.job.tenant, a.channel, () => {
      ended = true;
      expect(a.channel.session.objects.size).toBe(1);
    });
    expect(ended).toBe(false);
    while (!ended) await turn();
    expect(loop.read('acme')).toBeGreaterThanOrEqual(10_001);
  });

  it('of a closed channel is not read on', async () => {
    const loop = new SimLoop();
    const a = loop.client(1);
    loop.flood(a, 50_000);
    loop.world.nodes[0]!.core.closeChannel(a.channel);
    const before = loop.read('acme');
    for (let i = 0; i < 50 && a.channel.unreadBytes > 0; i++) await turn();
    expect(a.channel.unreadBytes).toBe(0);
    expect(loop.read('acme') - before).toBeLessThan(10);
  });

  it('that is malformed at its end closes the channel then, and what came before it has been done', async () => {
    const loop = new SimLoop();
    const a = loop.client(1);
    const out = new FrameWriter();
    for (let i = 0; i < 5_000; i++) out.begin(OP.CONTEXT).u32(0).u32(i).end();
    out.begin(OP.CONTEXT).u32(0).end();
    loop.intake.client(a.channel, out.take());
    for (let i = 0; i < 100 && a.channel.unreadBytes > 0; i++) await turn();
    expect(loop.errors.map(String)).toEqual([expect.stringContaining('malformed frame')]);
    expect(loop.read('acme')).toBeGreaterThanOrEqual(5_000);
  });
});

describe('deficit round robin', () => {
  /** Items that take `ms` each, on an invented clock. */
  function fixture(): { fair: FairShare<object>; now: () => number; item: (ms: number, times: number, done: () => void) => { read: () => boolean } } {
    let nowMs = 0;
    return {
      fair: new FairShare<object>(), now: () => nowMs,
      item: (ms, times, done) => {
        let left = times;
        return {
          read: () => {
            nowMs += ms;
            done();
            return --left === 0;
          },
        };
      },
    };
  }

  it('gives equal time, not equal frames', () => {
    const { fair, now, item } = fixture();
    const count = { dear: 0, cheap: 0 };
    fair.add({}, {}, item(3, 10_000, () => count.dear++));
    fair.add({}, {}, item(0.1, 100_000, () => count.cheap++));
    while (now() < 1_000) fair.turn(now);
    expect((count.dear * 3) / (count.cheap * 0.1)).toBeGreaterThan(0.9);
    expect((count.dear * 3) / (count.cheap * 0.1)).toBeLessThan(1.1);
  });

  it('lets a tenant that took long pay it back before it reads at once again', () => {
    const { fair, now, item } = fixture();
    const [a, b] = [{}, {}];
    expect(fair.admit(a, now())).toBeGreaterThan(0);
    fair.charge(a, 100);
    expect(fair.admit(a, now())).toBe(0);
    expect(fair.admit(b, now())).toBeGreaterThan(0);
    // Alone, it waits for nobody: the next turn reads it.
    let read = 0;
    fair.add(a, {}, item(0.01, 1, () => read++));
    fair.turn(now);
    expect(read).toBe(1);
    expect(fair.idle).toBe(true);
  });

  it('ends a turn after its time, whoever waits, and goes on where it was', () => {
    const { fair, now, item } = fixture();
    const order: number[] = [];
    for (let tenant = 0; tenant < 5; tenant++) fair.add({ tenant }, {}, item(0.3, 10, () => order.push(tenant)));
    for (let i = 0; i < 5; i++) {
      const startMs = now();
      fair.turn(now);
      expect(now() - startMs).toBeLessThanOrEqual(0.5 + 0.3);
    }
    expect(new Set(order)).toEqual(new Set([0, 1, 2, 3, 4]));
    while (!fair.idle) fair.turn(now);
    expect(order.length).toBe(50);
  });

  it('takes the sources of a tenant in turn', () => {
    const { fair, now, item } = fixture();
    const order: string[] = [];
    const tenant = {};
    fair.add(tenant, { a: 1 }, item(0.1, 100, () => order.push('a')));
    fair.add(tenant, { b: 1 }, item(0.1, 2, () => order.push('b')));
    while (!fair.idle) fair.turn(now);
    expect(order.slice(0, 4)).toEqual(['a', 'b', 'a', 'b']);
  });
});
