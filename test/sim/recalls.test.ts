/** Work that was forwarded to a node that has no room after all does not stay there while there is room elsewhere, and runs once. */
import { describe, expect, it } from 'vitest';
import { CALL_KIND, FrameReader, FrameWriter, OP } from '../../src/base/frame.ts';
import { NO_RESOURCES } from '../../src/base/resources.ts';
import { CHANNEL_KIND, type TenantState } from '../../src/raylet/core/state.ts';
import { DO, World, type SimClient, type SimNode } from './world.ts';

function pass(world: World, ms: number): void {
  for (let at = 0; at < ms; at += 25) {
    world.nowMs += 20;
    world.tick();
    world.run(50_000);
  }
}

/** Two nodes of a cpu each. On the second an actor has its cpu, which the first has not heard of; what runs on the first hangs. */
function full(seed: number): { world: World; client: SimClient; hanging: Uint8Array } {
  const world = new World({ nodes: 2, cpus: 1, seed });
  const [client, neighbour] = [world.client(0, 1), world.client(1, 1, 'bo')];
  world.reporting = false;
  for (const each of [client, neighbour]) {
    each.define(1, CALL_KIND.TASK, { cpus: 1 });
    each.define(2, CALL_KIND.ACTOR_CLASS, { cpus: 1 }, 'Counter');
    each.define(3, CALL_KIND.ACTOR_METHOD, {}, 'add');
  }
  neighbour.call(OP.CREATE_ACTOR, 2, DO.RETURN);
  const hanging = client.call(OP.SUBMIT, 1, DO.HANG);
  neighbour.flush();
  client.flush();
  world.run(50_000);
  return { world, client, hanging };
}

function ran(world: World, arg: number): number[] {
  return world.ran.filter(({ payload }) => payload[1] === arg).map(({ node }) => node);
}

describe.each([1, 2, 3, 4])('forwarded work (seed %i)', (seed) => {
  it('that has not begun comes back when there is room here: tasks', () => {
    const { world, client, hanging } = full(seed);
    const refs = [20, 21, 22].map((arg) => client.call(OP.SUBMIT, 1, DO.RETURN, [], undefined, 1, [], arg));
    const got = client.get(refs);
    client.flush();
    world.run(50_000);
    expect(world.nodes[0]?.core.state.upstreams.size).toBeGreaterThan(0);
    client.cancel(hanging, true);
    client.flush();
    pass(world, 8_000);
    expect(got.answers).toEqual(['value', 'value', 'value']);
    expect([20, 21, 22].map((arg) => ran(world, arg))).toEqual([[1], [1], [1]]);
  });

  it('that has not begun comes back when there is room here: an actor, with the calls that wait for it', () => {
    const { world, client, hanging } = full(seed);
    const actor = client.call(OP.CREATE_ACTOR, 2, DO.RETURN);
    const got = client.get([client.call(OP.CALL_ACTOR, 3, DO.RETURN, [], actor, 1, [], 30), client.call(OP.CALL_ACTOR, 3, DO.RETURN, [], actor, 1, [], 31)]);
    client.flush();
    world.run(50_000);
    client.cancel(hanging, true);
    client.flush();
    pass(world, 8_000);
    expect(got.answers).toEqual(['value', 'value']);
    expect([30, 31].map((arg) => ran(world, arg))).toEqual([[1], [1]]);
  });

  it('that runs there stays there, for as long as it takes', () => {
    const world = new World({ nodes: 2, cpus: 1, seed });
    const client = world.client(0, 1);
    client.define(1, CALL_KIND.TASK, { cpus: 1 });
    const refs = [40, 41].map((arg) => client.call(OP.SUBMIT, 1, DO.HANG, [], undefined, 1, [], arg));
    client.flush();
    world.run(50_000);
    const here = ran(world, 40)[0] === 1 ? 0 : 1;
    client.cancel(refs[here] as Uint8Array, true);
    client.flush();
    pass(world, 20_000);
    expect([ran(world, 40).length, ran(world, 41).length]).toEqual([1, 1]);
    expect(client.node.core.state.available).not.toEqual(NO_RESOURCES);
  });
});

it('an argument of the raylet that sends the call is not lost because that raylet was away: the call may be made again', () => {
  const world = new World({ nodes: 3, cpus: 1, seed: 3 });
  const client = world.client(0, 1);
  const { core } = (world.nodes[1] as SimNode);
  const { job } = client.channel;
  client.define(1, CALL_KIND.TASK, { cpus: 1 });
  const own = client.putSmall();
  client.flush();
  world.run(50_000);
  const theirs = core.ensureJob(job.id, core.state.tenants.get(1) as TenantState, job.submitter, job.principal, job.credential, job.credentialEndsMs, job.issuedMs);
  const asked = (peer: string, argument: Uint8Array): string => {
    const channel = core.openChannel(CHANNEL_KIND.PEER, theirs, theirs.submitter, 0, {});
    channel.peer = peer;
    const out = new FrameWriter();
    out.begin(OP.GET).u32(0).u32(7).refs([argument]).end();
    channel.out.take();
    core.clientBatch(channel, out.take(), world.nowMs);
    const r = new FrameReader().reset(channel.out.take());
    let said = '';
    while (r.next()) {
      if (r.op === OP.VALUE_FAILED) said = (r.u32(), r.u32(), r.str());
      r.skipRest();
    }
    return said;
  };
  core.removeNode(1);
  // Its own word for it, another's, and one that says it is a node that never was.
  expect([asked('node-1', own), asked('node-3', own), asked('', own)]).toEqual(['UNAVAILABLE', 'OBJECT_LOST', 'OBJECT_LOST']);
});

it('RECALL is for raylets, and reaches what its own channel sent and nothing has begun of', () => {
  const world = new World({ nodes: 1, cpus: 1, seed: 1 });
  const client = world.client(0, 1);
  const { core } = client.node;
  client.define(1, CALL_KIND.TASK, { cpus: 1 });
  client.call(OP.SUBMIT, 1, DO.HANG);
  const own = client.get([client.call(OP.SUBMIT, 1, DO.RETURN, [], undefined, 1, [], 50)]);
  client.flush();
  world.run(50_000);
  const { job } = client.channel;
  const peer = core.openChannel(CHANNEL_KIND.PEER, job, job.submitter, 0, {});
  const said: string[] = [];
  peer.out.take();
  for (const seq of [0, 1, 2, 3, 0xffff_ffff]) {
    const out = new FrameWriter();
    out.begin(OP.RECALL).u32(seq).u32(seq).end();
    core.clientBatch(peer, out.take(), world.nowMs);
    const r = new FrameReader().reset(peer.out.take());
    while (r.next()) {
      if (r.op === OP.FAILED) said.push(`FAILED ${r.u32()} ${r.str()}`);
      r.skipRest();
    }
  }
  expect(said).toEqual(['FAILED 0 UNAVAILABLE', 'FAILED 1 UNAVAILABLE', 'FAILED 2 UNAVAILABLE', 'FAILED 3 UNAVAILABLE', 'FAILED 4294967295 UNAVAILABLE']);
  expect(own.answers).toEqual([undefined]);
  expect(core.state.callsInFlight).toBe(2);
  client.out.begin(OP.RECALL).u32(1).u32(1).end();
  expect(() => core.clientBatch(client.channel, client.out.take(), 0)).toThrow(/RECALL is for raylets/);
});
