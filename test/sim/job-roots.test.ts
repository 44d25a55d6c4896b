/** Jobs on several nodes end with their last driver or detached actor, whichever raylets are each other's clients for them, and no sooner. */
import { describe, expect, it } from 'vitest';
import { CALL_KIND, FrameWriter, OP } from '../../src/base/frame.ts';
import { CHANNEL_KIND } from '../../src/raylet/core/state.ts';
import { DO, World, type SimClient } from './world.ts';

function leave(world: World, client: SimClient): void {
  client.node.core.closeChannel(client.channel);
  world.drain(client.node);
}

/** What is left of jobs on each node. */
function left(world: World): unknown[] {
  return world.nodes.map(({ core: { state } }) => [state.jobs.size, state.upstreams.size, state.channels.size, state.sessions.size, state.available.cpuUnits === state.config.total.cpuUnits]);
}

const NOTHING = [0, 0, 0, 0, true];

/** A driver with an actor on its node that keeps what it is called with. */
function holder(world: World, client: SimClient, options: object = {}): { readonly client: SimClient; readonly actor: Uint8Array } {
  client.define(1, CALL_KIND.ACTOR_CLASS, options, 'Holder');
  client.define(2, CALL_KIND.ACTOR_METHOD, {}, 'call');
  const actor = client.call(OP.CREATE_ACTOR, 1, DO.RETURN);
  client.flush();
  world.run(10_000);
  return { client, actor };
}

function keep(world: World, client: SimClient, actor: Uint8Array): void {
  client.call(OP.CALL_ACTOR, 2, DO.KEEP, [], actor, 1, [client.putSmall()]);
  client.flush();
  world.run(10_000);
}

describe('a job whose drivers have left', () => {
  it.each([2, 3])('is forgotten by %i raylets that hold each other’s objects for it, in a ring', (nodes) => {
    for (let seed = 1; seed <= 8; seed++) {
      const world = new World({ nodes, cpus: 4, seed });
      const first = world.client(0, 1);
      const all = world.nodes.map((_, i) => holder(world, i === 0 ? first : world.attach(i, first)));
      all.forEach(({ client }, i) => keep(world, client, (all[(i + 1) % nodes] as (typeof all)[0]).actor));
      expect(world.nodes.every(({ core: { state } }) => [...state.upstreams.values()].some((u) => !u.closed))).toBe(true);
      for (const { client } of all) {
        leave(world, client);
        for (let n = Math.floor(world.random() * 20); n > 0; n--) world.step();
      }
      world.run(100_000);
      expect(left(world), `seed ${seed}`).toEqual(world.nodes.map(() => NOTHING));
    }
  });

  it('is forgotten by a node that has an actor of it, which holds what the driver’s node has', () => {
    const world = new World({ nodes: 2, cpus: 1, seed: 3 });
    const { client } = holder(world, world.client(0, 1), { cpus: 1 });
    const far = client.call(OP.CREATE_ACTOR, 1, DO.RETURN);
    client.flush();
    world.run(10_000);
    keep(world, client, far);
    expect(world.nodes[1]?.core.state.upstreams.size).toBeGreaterThan(0);
    leave(world, client);
    world.run(100_000);
    expect(left(world)).toEqual([NOTHING, NOTHING]);
  });

  it('is forgotten when its detached actor has been killed by another one’s driver', () => {
    const world = new World({ nodes: 2, cpus: 4, seed: 4 });
    const { client, actor } = holder(world, world.client(0, 1), { detached: true, name: 'lasting' });
    const other = holder(world, world.client(1, 1));
    keep(world, other.client, other.actor);
    keep(world, client, actor);
    leave(world, client);
    world.run(100_000);
    expect([...(world.nodes[0]?.core.state.jobs.values() ?? [])].flatMap((job) => [...job.actors].map((a) => a.state))).toEqual(['ALIVE']);
    other.client.out.begin(OP.KILL).u32(0).u32(other.client.nextRequest++).raw(actor).u8(0).end();
    other.client.flush();
    world.run(100_000);
    leave(world, other.client);
    world.run(100_000);
    expect(left(world).map((of) => (of as unknown[])[0])).toEqual([0, 0]);
  });
});

describe('a job that somebody wants', () => {
  it('goes on where its driver has left, for another’s on another node', () => {
    const world = new World({ nodes: 2, cpus: 1, seed: 5 });
    const first = world.client(0, 1);
    const second = world.attach(1, first);
    for (const client of [first, second]) client.define(1, CALL_KIND.TASK, { maxRetries: 0 });
    first.get([first.call(OP.SUBMIT, 1, DO.RETURN)]);
    first.flush();
    const large = second.putLarge(200_000);
    // More than one node has room for: some run beside the first driver, which read the argument from here.
    const got = second.get(Array.from({ length: 6 }, () => second.call(OP.SUBMIT, 1, DO.RETURN, [large])));
    second.flush();
    for (let i = 0; i < 30 && world.nodes[0]?.core.state.upstreams.size === 0; i++) world.step();
    leave(world, first);
    world.run(100_000);
    expect(got.answers).toEqual(Array.from({ length: 6 }, () => 'value'));
    expect(world.ran.some((r) => r.node === 1)).toBe(true);
    leave(world, second);
    world.run(100_000);
    expect(left(world)).toEqual([NOTHING, NOTHING]);
  });

  it('is not ended by what a raylet says of itself, but for that raylet’s own channel', () => {
    const world = new World({ nodes: 1, cpus: 1, seed: 6 });
    const client = world.client(0, 1);
    const { job } = client.channel;
    const { core } = client.node;
    const peer = core.openChannel(CHANNEL_KIND.PEER, job, job.submitter, 0, {});
    const say = (nodes: readonly number[]): number => {
      const out = new FrameWriter();
      out.begin(OP.ROOTS).u8(nodes.length);
      for (const node of nodes) out.u32(node);
      out.end();
      return core.clientBatch(peer, out.take(), world.nowMs);
    };
    for (const nodes of [[], [1], [2], [2, 1], Array.from({ length: 255 }, (_, i) => i + 2), []]) say(nodes);
    expect([job.roots, job.ended, peer.closed, client.channel.closed]).toEqual([[1], false, false, false]);
    say([7, 2]);
    leave(world, client);
    expect([job.roots, job.ended, peer.closed]).toEqual([[7, 2, 1], false, false]);
    say([7, 1, 2]);
    expect([job.roots, job.ended, peer.closed]).toEqual([[], false, false]);
    say([]);
    expect([job.ended, peer.closed, core.state.jobs.size]).toEqual([true, true, 0]);
  });
});

it('what one raylet had made on another it may take back, whatever the policy has become meanwhile', () => {
  let denied: readonly string[] = [];
  const world = new World({ nodes: 2, cpus: 1, seed: 7, decide: ({ action }) => !denied.includes(action) });
  const { client } = holder(world, world.client(0, 1), { cpus: 1 });
  const far = client.call(OP.CREATE_ACTOR, 1, DO.RETURN);
  client.define(3, CALL_KIND.ACTOR_METHOD, { returns: 1 }, 'large');
  const large = client.call(OP.CALL_ACTOR, 3, DO.LARGE, [], far);
  client.flush();
  world.run(10_000);
  const there = world.nodes[1]?.core.state;
  const peer = [...(there?.channels.values() ?? [])].find((c) => c.kind === CHANNEL_KIND.PEER);
  expect([[...(peer?.job.actors ?? [])].map((a) => a.state), peer?.session.objects.size]).toEqual([['ALIVE'], 2]);
  client.release([large]);
  client.out.begin(OP.KILL).u32(0).u32(client.nextRequest++).raw(far).u8(0).end();
  client.flush();
  // As soon as it is decided where it was asked for.
  for (let i = 0; i < 1_000 && client.channel.job.actors.size === 2; i++) world.step();
  denied = ['actor.kill', 'task.cancel', 'object.release'];
  world.run(10_000);
  expect([peer?.job.actors.size, peer?.session.objects.size, there?.available.cpuUnits, client.channel.closed]).toEqual([0, 1, 10_000, false]);
});

it('an actor that is killed while the word that it lives is on its way does not stay', () => {
  for (let wait = 0; wait < 40; wait++) {
    const world = new World({ nodes: 2, cpus: 1, seed: 8 });
    const { client } = holder(world, world.client(0, 1), { cpus: 1 });
    const far = client.call(OP.CREATE_ACTOR, 1, DO.RETURN);
    client.flush();
    for (let i = 0; i < wait; i++) world.step();
    client.out.begin(OP.KILL).u32(0).u32(client.nextRequest++).raw(far).u8(0).end();
    client.flush();
    world.run(10_000);
    const there = world.nodes[1]?.core.state;
    expect([[...(there?.jobs.values() ?? [])].flatMap((job) => [...job.actors]).length, there?.available.cpuUnits], `after ${wait} events`).toEqual([0, 10_000]);
  }
});
