/** A raylet that says its clients hold objects: it is believed within the rights of the principal that it acts for, and no further. */
import { describe, expect, it } from 'vitest';
import { FrameWriter, OP } from '../../src/base/frame.ts';
import { makeId } from '../../src/raylet/core/core.ts';
import { CHANNEL_KIND, type Channel } from '../../src/raylet/core/state.ts';
import { World, type SimClient, type SimNode } from '../sim/world.ts';

function setUp(decide?: ConstructorParameters<typeof World>[0]['decide']): { world: World; node: SimNode; owner: SimClient; id: Uint8Array; peer: (tenant: number) => Channel; send: (channel: Channel, write: (out: FrameWriter) => void) => void; there: () => boolean } {
  const world = new World({ nodes: 1, cpus: 1, seed: 3, ...(decide === undefined ? {} : { decide }) });
  const owner = world.client(0, 1);
  const node = owner.node;
  const id = owner.putSmall();
  owner.flush();
  world.run(1_000);
  const clients = [owner, world.client(0, 2)];
  return {
    world, node, owner, id,
    peer: (tenant) => {
      const { job } = (clients[tenant - 1] as SimClient).channel;
      return node.core.openChannel(CHANNEL_KIND.PEER, job, job.submitter, 0, {});
    },
    send: (channel, write) => {
      const out = new FrameWriter();
      write(out);
      node.core.clientBatch(channel, out.take(), world.nowMs);
      world.drain(node);
      world.run(1_000);
    },
    there: () => owner.channel.session.objects.has(1),
  };
}

describe('a raylet that borrows', () => {
  it('holds what it named until it gives it back, as often as it took it, or its channel ends', () => {
    const { node, world, owner, id, peer, send, there } = setUp();
    const [one, two] = [peer(1), peer(1)];
    for (const channel of [one, one, two]) send(channel, (out) => out.begin(OP.BORROW).u32(0).u32(1).refs([id]).end());
    owner.release([id]);
    owner.flush();
    world.run(1_000);
    expect(there()).toBe(true);
    send(one, (out) => out.begin(OP.GIVE_BACK).u32(1).raw(id).u32(1).end());
    node.core.closeChannel(two);
    expect(there()).toBe(true);
    send(one, (out) => out.begin(OP.GIVE_BACK).u32(1).raw(id).u32(1).end());
    expect(there()).toBe(false);
  });

  it('gives back no more than it has: others’ holds stay', () => {
    const { owner, world, id, peer, send, there } = setUp();
    const [one, two] = [peer(1), peer(1)];
    send(one, (out) => out.begin(OP.BORROW).u32(0).u32(1).refs([id]).end());
    send(two, (out) => out.begin(OP.GIVE_BACK).u32(1).raw(id).u32(0xffff_ffff).end());
    owner.release([id]);
    owner.flush();
    world.run(1_000);
    expect(there()).toBe(true);
    send(one, (out) => out.begin(OP.GIVE_BACK).u32(2).raw(id).u32(0xffff_ffff).raw(id).u32(7).end());
    expect(there()).toBe(false);
  });

  it.each([
    ['another tenant’s object', undefined],
    ['what its principal may not read', (request: { action: string }) => request.action !== 'object.get'],
  ] as const)('does not hold %s, and is answered all the same', (what, decide) => {
    const { owner, world, id, peer, send, there } = setUp(decide as never);
    const channel = peer(what.startsWith('another') ? 2 : 1);
    send(channel, (out) => out.begin(OP.BORROW).u32(0).u32(9).refs([id]).end());
    expect(channel.borrowed.size).toBe(0);
    owner.release([id]);
    owner.flush();
    world.run(1_000);
    expect(there()).toBe(false);
  });

  it('names ids that nobody has, or other nodes’, for nothing', () => {
    const { node, id, peer, send } = setUp();
    const channel = peer(1);
    const elsewhere = id.slice();
    elsewhere[4] = 7;
    send(channel, (out) => out.begin(OP.BORROW).u32(0).u32(1).refs([makeId(id.subarray(0, 20), 99), elsewhere]).end());
    send(channel, (out) => out.begin(OP.GIVE_BACK).u32(1).raw(elsewhere).u32(1).end());
    expect([channel.borrowed.size, [...node.core.state.sessions.values()].filter((s) => s.nodeNumber === 7)]).toEqual([0, []]);
  });

  it('must be a raylet: from a driver both frames are malformed', () => {
    const { node, owner, id } = setUp();
    for (const write of [(out: FrameWriter) => out.begin(OP.BORROW).u32(0).u32(1).refs([id]).end(), (out: FrameWriter) => out.begin(OP.GIVE_BACK).u32(1).raw(id).u32(1).end()]) {
      const out = new FrameWriter();
      write(out);
      expect(() => node.core.clientBatch(owner.channel, out.take(), 0)).toThrow('is not a call of this channel');
    }
  });

  it('ends its channel with a count that no frame holds', () => {
    const { node, peer } = setUp();
    const out = new FrameWriter();
    out.begin(OP.GIVE_BACK).u32(0xffff_ffff).end();
    expect(() => node.core.clientBatch(peer(1), out.take(), 0)).toThrow('malformed frame');
  });
});
