/**
 * Refs across nodes against a model: drivers and actors on three nodes put objects, pass refs on, keep them, return them and drop them, in any order of
 * events, while workers, drivers and a node die. An object is there as long as somebody holds it, and no longer.
 */
import { describe, expect, it } from 'vitest';
import { CALL_KIND, OP } from '../../src/base/frame.ts';
import { DO, World, type SimClient, type SimNode } from './world.ts';

interface Driver {
  readonly client: SimClient;
  readonly actor: Uint8Array;
  readonly node: SimNode;
  /** What the program has refs of, by id. */
  readonly holds: Map<string, Uint8Array>;
  closed: boolean;
}

interface Model {
  readonly world: World;
  readonly drivers: Driver[];
  readonly puts: { readonly id: Uint8Array; readonly node: SimNode }[];
}

function start(seed: number, large: boolean): Model {
  const world = new World({ nodes: 3, cpus: 4, seed, ...(seed % 2 === 0 ? { pieces: 3 } : {}), ...(large ? { objectMemoryBytes: 1_000_000, spillBytes: 2 ** 30 } : {}) });
  const drivers = world.nodes.map((node, i): Driver => {
    const client = world.client(i, 1);
    client.define(1, CALL_KIND.ACTOR_CLASS, {}, 'Holder');
    client.define(2, CALL_KIND.ACTOR_METHOD, {}, 'call');
    const actor = client.call(OP.CREATE_ACTOR, 1, DO.RETURN);
    client.flush();
    return { client, actor, node, holds: new Map(), closed: false };
  });
  world.run(100_000);
  return { world, drivers, puts: [] };
}

function exists(node: SimNode, id: Uint8Array): boolean {
  const prefix = Buffer.from(id.subarray(0, 20)).toString('hex');
  return node.core.state.sessions.get(prefix)?.objects.has(Buffer.from(id).readUInt32LE(20)) === true;
}

function expectModel({ world, drivers, puts }: Model): void {
  const held = new Set<string>();
  for (const { holds, closed, node } of drivers) if (!closed && !world.isLost(node)) for (const key of holds.keys()) held.add(key);
  for (const [slot, kept] of world.kept) for (const node of world.nodes) if (world.isOpen(node, slot)) for (const key of kept.keys()) held.add(key);
  for (const [i, { id, node }] of puts.entries()) {
    if (!world.isLost(node) && exists(node, id) !== held.has(id.toString())) throw new Error(`object ${i} of node ${node.core.state.config.nodeNumber} is ${held.has(id.toString()) ? 'freed though somebody holds it' : 'kept though nobody holds it'}`);
  }
  for (const node of world.nodes) {
    if (world.isLost(node)) continue;
    for (const upstream of node.core.state.upstreams.values()) expect([upstream.returning.size, upstream.returnedEarly.size, upstream.borrowing.size]).toEqual([0, 0, 0]);
  }
}

/** Everyone does something; `quiet` drivers drop, the others pass and get. */
function round(model: Model): void {
  const { world, drivers, puts } = model;
  const pick = <T>(from: readonly T[]): T | undefined => from[Math.floor(world.random() * from.length)];
  const alive = drivers.filter((d) => !d.closed && !world.isLost(d.node));
  const forgetful = world.random() < 0.4 ? pick(alive) : undefined;
  // A client that lets go of a ref while another copy is on its way to it gives up both (one RELEASE tells of all): no actor does both in a round.
  const passing = new Set(alive.filter((d) => d === forgetful || world.random() < 0.3));
  const gets: { driver: Driver; result: Uint8Array; call: ReturnType<SimClient['get']> }[] = [];
  for (const driver of alive) {
    const { client, holds } = driver;
    if (world.random() < 0.3) {
      for (const [key, id] of holds) {
        if (world.random() < 0.6) continue;
        holds.delete(key);
        client.release([id]);
      }
    } else {
      for (let n = Math.floor(world.random() * 4); n > 0; n--) {
        const to = pick(alive) as Driver;
        const dice = world.random();
        if (dice < 0.35 || holds.size === 0) {
          const id = world.random() < 0.3 ? client.putLarge(200_000) : client.putSmall();
          holds.set(id.toString(), id);
          puts.push({ id, node: driver.node });
        } else if (dice < 0.8) {
          const carried = [...holds.values()].filter(() => world.random() < 0.4);
          const what = passing.has(to) ? DO.PASS : DO.KEEP;
          client.release([client.call(OP.CALL_ACTOR, 2, what, [], to.actor, 1, carried)]);
        } else if (to !== forgetful) {
          const result = client.call(OP.CALL_ACTOR, 2, DO.GIVE, [], to.actor);
          gets.push({ driver, result, call: client.get([result]) });
        }
      }
    }
    // What was just passed on is dropped at once: only the call and whoever gets it hold it now.
    if (!gets.some((g) => g.driver === driver) && world.random() < 0.4) {
      for (const [key, id] of holds) {
        if (world.random() < 0.4) continue;
        holds.delete(key);
        client.release([id]);
      }
    }
    if (driver === forgetful) client.release([client.call(OP.CALL_ACTOR, 2, DO.FORGET, [], driver.actor)]);
    client.flush();
    for (let n = Math.floor(world.random() * 8); n > 0; n--) world.step();
  }
  world.run(200_000);
  for (const { driver, result, call } of gets) {
    if (call.answers[0] === 'value') for (const id of world.given.get(`${Buffer.from(result.subarray(0, 20)).toString('hex')} ${Buffer.from(result).readUInt32LE(20)}`) ?? []) driver.holds.set(id.toString(), id);
    if (driver.closed || world.isLost(driver.node)) continue;
    driver.client.release([result]);
    driver.client.flush();
  }
  world.run(200_000);
}

function closeAll(model: Model): void {
  for (const driver of model.drivers) {
    if (driver.closed || model.world.isLost(driver.node)) continue;
    driver.closed = true;
    driver.node.core.closeChannel(driver.client.channel);
    model.world.drain(driver.node);
  }
  model.world.run(500_000);
  for (const node of model.world.nodes) {
    if (model.world.isLost(node)) continue;
    const core = node.core.state;
    for (const session of core.sessions.values()) expect([...session.objects.values()].map((o) => `${o.status}/${o.handles}/${o.pins}`)).toEqual([]);
    for (const tenant of core.tenants.values()) expect([tenant.objectBytes, tenant.fileBytes, tenant.entries]).toEqual([0, 0, 0]);
  }
}

/** More in a night; the first 400 hold. */
const SEEDS = 12;

describe.each(Array.from({ length: SEEDS }, (_, i) => i + 1))('drivers and actors on three nodes (seed %i)', (seed) => {
  it('hold every object that they have a ref of, and no other', () => {
    const model = start(seed, seed % 3 === 0);
    for (let i = 0; i < 12; i++) {
      round(model);
      expectModel(model);
    }
    closeAll(model);
  });

  it('and so they do when workers and drivers die', () => {
    const model = start(seed + 100, false);
    for (let i = 0; i < 10; i++) {
      round(model);
      const { world, drivers } = model;
      const dice = world.random();
      const victim = drivers[Math.floor(world.random() * 3)] as Driver;
      if (dice < 0.25) {
        const worker = world.anyWorker(victim.node);
        if (worker !== undefined) world.killWorker(victim.node, worker, false);
      } else if (dice < 0.35 && !victim.closed) {
        victim.closed = true;
        victim.node.core.closeChannel(victim.client.channel);
        world.drain(victim.node);
      }
      world.run(200_000);
      expectModel(model);
    }
    closeAll(model);
  });

  it('and when a node dies, what it held for others goes, and nothing else', () => {
    const model = start(seed + 200, false);
    for (let i = 0; i < 8; i++) {
      round(model);
      if (i === 4) model.world.loseNode(model.world.nodes[Math.floor(model.world.random() * 3)] as SimNode);
      model.world.run(200_000);
      expectModel(model);
    }
    closeAll(model);
  });
});
