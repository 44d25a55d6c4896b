/** Placement groups under attack, on raylet cores: other tenants, bundles beyond a quota, policies that say no, and raylets that were stolen. */
import { describe, expect, it } from 'vitest';
import type { DecisionRequest } from '../../src/base/decision.ts';
import { CALL_KIND, FrameWriter, OP } from '../../src/base/frame.ts';
import { objectIdText } from '../../src/base/ids.ts';
import { MAX_BUNDLES_PER_GROUP, MAX_PLACEMENT_GROUPS_PER_TENANT } from '../../src/base/limits.ts';
import { groupReason } from '../../src/raylet/core/placement-groups.ts';
import { CHANNEL_KIND, type Channel } from '../../src/raylet/core/state.ts';
import { DO, World, type SimClient, type SimNode } from '../sim/world.ts';

function create(client: SimClient, asked: object): Uint8Array {
  const id = client.id(client.nextSeq++);
  client.out.begin(OP.CREATE_GROUP).u32(0).u32(client.nextSeq - 1).text(typeof asked === 'string' ? asked : JSON.stringify(asked)).end();
  return id;
}

function settle(world: World, client: SimClient): void {
  client.flush();
  world.run(50_000);
}

const keyOf = (id: Uint8Array): string => objectIdText(id).slice(4);
const holdsOn = (node: SimNode): number => [...node.core.state.holds.values()].reduce((sum, of) => sum + of.size, 0);

/** What the calls of a client were answered with, in order. */
function failures(client: SimClient, refs: Uint8Array[], world: World): string[] {
  const from = client.failed.length;
  client.get(refs);
  settle(world, client);
  return client.failed.slice(from);
}

describe('another tenant', () => {
  it('neither uses, removes nor learns of a group, from its node or another; the owner has it on record', () => {
    const world = new World({ nodes: 2, cpus: 2, seed: 1 });
    const owner = world.client(0, 1);
    const id = create(owner, { bundles: [{ cpus: 1 }], name: 'acmes' });
    const ready = owner.get([id]);
    settle(world, owner);
    expect(ready.answers).toEqual(['value']);
    for (const at of [0, 1]) {
      const thief = world.client(at, 2, 'eve');
      thief.define(1, CALL_KIND.TASK, { placementGroup: objectIdText(id) });
      thief.define(2, CALL_KIND.ACTOR_CLASS, { placementGroup: objectIdText(id) }, 'Counter');
      thief.out.begin(OP.REMOVE_GROUP).u32(0).u32(900).raw(id).end();
      const task = thief.call(OP.SUBMIT, 1, DO.RETURN);
      const actor = thief.call(OP.CREATE_ACTOR, 2, DO.RETURN);
      expect(failures(thief, [task, actor, id], world)).toEqual(['DENIED', 'DENIED', 'DENIED']);
      expect(thief.refused).toEqual(['DENIED']);
    }
    expect([owner.node.core.state.groups.get(keyOf(id))?.state, world.nodes.map(holdsOn)]).toEqual(['CREATED', [1, 0]]);
    const told = owner.node.logs.get(1)?.records.filter((r) => r.type === 'decision' && !r.allow && r.principal.includes('globex')) ?? [];
    expect(new Set(told.map((r) => (r.type === 'decision' ? r.action : '')))).toEqual(new Set(['placement-group.use', 'placement-group.remove', 'object.get']));
  });

  it('does not lose room by groups that wait: what is not whole holds nothing', () => {
    const world = new World({ nodes: 2, cpus: 2, seed: 2 });
    const greedy = world.client(0, 1);
    for (let i = 0; i < 50; i++) create(greedy, { strategy: 'STRICT_SPREAD', bundles: [{ cpus: 2 }, { cpus: 2 }, { cpus: 2 }] });
    settle(world, greedy);
    expect(world.nodes.map(holdsOn)).toEqual([0, 0]);
    const other = world.client(1, 2);
    other.define(1, CALL_KIND.TASK, { cpus: 2 });
    const got = other.get([other.call(OP.SUBMIT, 1, DO.RETURN)]);
    settle(world, other);
    expect(got.answers).toEqual(['value']);
  });
});

describe('quota', () => {
  it('counts what is reserved, on every node, whether anything runs in it or not', () => {
    const world = new World({ nodes: 2, cpus: 8, seed: 3, quota: { cpuUnits: 20_000 } });
    const client = world.client(0, 1);
    const first = create(client, { strategy: 'STRICT_SPREAD', bundles: [{ cpus: 1.5 }, { cpus: 1.5 }] });
    settle(world, client);
    expect(world.nodes.map((node) => node.core.state.tenants.get(1)?.cpuUnitsInUse)).toEqual([15_000, 15_000]);
    client.define(1, CALL_KIND.TASK, { cpus: 1 });
    const outside = client.get([client.call(OP.SUBMIT, 1, DO.RETURN)]);
    // Beyond what is left, and beyond what there ever is.
    const second = create(client, { strategy: 'STRICT_SPREAD', bundles: [{ cpus: 1 }, { cpus: 1 }] });
    const third = create(client, { bundles: [{ cpus: 3 }] });
    settle(world, client);
    for (let i = 0; i < 40; i++) {
      world.nowMs += 50;
      world.tick();
      world.run(50_000);
    }
    expect(world.nodes.map((node) => node.core.state.tenants.get(1)?.cpuUnitsInUse)).toEqual([15_000, 15_000]);
    const { groups } = client.node.core.state;
    expect([groups.get(keyOf(second))?.state, groupReason(client.node.core.state, groups.get(keyOf(third))!)]).toEqual(['PENDING', "bundle 0 is larger than the tenant's quota: it can never be reserved"]);
    client.out.begin(OP.REMOVE_GROUP).u32(0).u32(901).raw(first).end();
    settle(world, client);
    for (let i = 0; i < 60; i++) {
      world.nowMs += 50;
      world.tick();
      world.run(50_000);
    }
    expect([groups.get(keyOf(second))?.state, outside.answers.concat(...world.nodes.map((node) => String(node.core.state.tenants.get(1)?.cpuUnitsInUse)))]).toEqual(['CREATED', ['value', '10000', '10000']]);
  });

  it('of groups themselves is a limit, and so is the size of one', () => {
    const world = new World({ nodes: 1, cpus: 2, seed: 4 });
    const client = world.client(0, 1);
    const ids = Array.from({ length: MAX_PLACEMENT_GROUPS_PER_TENANT + 1 }, () => create(client, { bundles: [{ cpus: 64 }] }));
    expect(failures(client, ids.slice(-1), world)).toEqual(['RESOURCE_EXHAUSTED']);
    expect(failures(client, [create(client, { bundles: Array.from({ length: MAX_BUNDLES_PER_GROUP + 1 }, () => ({ cpus: 0.001 })) })], world)).toEqual(['INVALID_ARGUMENT']);
  });
});

it.each<object | string>([
  'no json', {}, { bundles: [] }, { bundles: {} }, { bundles: [{}] }, { bundles: [{ cpus: 0 }] }, { bundles: [{ cpus: -1 }] }, { bundles: [{ cpus: 1, gpus: 1 }] }, { bundles: [null] }, { bundles: [{ cpus: 1 }], strategy: 'MOST' }, { bundles: [{ cpus: 1 }], detached: true },
  { bundles: [{ cpus: 1 }], name: 'a/b' }, { bundles: [{ cpus: 1 }], name: 7 }, { bundles: [{ cpus: 1 }], tenant: 'globex' }, { bundles: [{ cpus: 1, labels: { a: { like: 'b' } } }] }, { bundles: [{ cpus: 1 }], __proto__: null, constructor: 1 }, { bundles: [{ cpus: 1e300 }] },
])('a group that means nothing is refused, and holds nothing: %j', (asked) => {
  const world = new World({ nodes: 1, cpus: 2, seed: 5 });
  const client = world.client(0, 1);
  expect(failures(client, [create(client, asked as object)], world)).toEqual(['INVALID_ARGUMENT']);
  expect([client.node.core.state.groups.size, holdsOn(client.node)]).toEqual([0, 0]);
});

it.each(['bundleIndex', 'resources'])('calls whose %s no bundle has fail at once, on the node of the group and on others', (what) => {
  const world = new World({ nodes: 2, cpus: 4, seed: 6 });
  const client = world.client(0, 1);
  const id = create(client, { bundles: [{ cpus: 1 }, { cpus: 1 }], name: 'two', detached: true });
  settle(world, client);
  const options = { placementGroup: objectIdText(id), ...(what === 'bundleIndex' ? { bundleIndex: 2 } : { cpus: 1.5 }) };
  for (const caller of [client, world.client(1, 1)]) {
    caller.define(1, CALL_KIND.TASK, options);
    caller.define(2, CALL_KIND.ACTOR_CLASS, { ...options, cpus: 1.5 }, 'Counter');
    expect(failures(caller, [caller.call(OP.SUBMIT, 1, DO.RETURN), caller.call(OP.CREATE_ACTOR, 2, DO.RETURN)], world)).toEqual(['INVALID_ARGUMENT', 'INVALID_ARGUMENT']);
  }
});

describe('policy', () => {
  it.each(['placement-group.create', 'placement-group.use', 'placement-group.remove'])('%s is decided, and its denial stops that and nothing else', (denied) => {
    const asked: string[] = [];
    let armed = false;
    const world = new World({ nodes: 1, cpus: 2, seed: 7, decide: ({ action }: DecisionRequest) => (asked.push(action), !armed || action !== denied) });
    const client = world.client(0, 1);
    if (denied === 'placement-group.create') armed = true;
    const id = create(client, { bundles: [{ cpus: 1 }] });
    settle(world, client);
    client.define(1, CALL_KIND.TASK, { placementGroup: objectIdText(id) });
    settle(world, client);
    armed = true;
    const ref = client.call(OP.SUBMIT, 1, DO.RETURN);
    client.out.begin(OP.REMOVE_GROUP).u32(0).u32(902).raw(id).end();
    const got = failures(client, [ref], world);
    expect(asked).toContain(denied);
    if (denied === 'placement-group.create') expect([got, client.refused, holdsOn(client.node)]).toEqual([['DENIED'], ['DENIED'], 0]);
    // A right that was taken away after the function was defined is missing at its next call.
    else if (denied === 'placement-group.use') expect([got, client.refused, holdsOn(client.node)]).toEqual([['DENIED'], [], 0]);
    else expect([got, client.refused, holdsOn(client.node)]).toEqual([[], ['DENIED'], 1]);
  });
});

describe('a stolen raylet', () => {
  /** A channel of another raylet's, for a job of acme's, and what it is answered. */
  function peer(world: World, tenantNumber = 1): { channel: Channel; say: (write: (out: FrameWriter) => void) => void } {
    const node = world.nodes[0] as SimNode;
    const client = world.client(0, tenantNumber);
    const { job } = client.channel;
    const channel = node.core.openChannel(CHANNEL_KIND.PEER, job, job.submitter, 0, {});
    world.drain(node);
    return {
      channel,
      say: (write) => {
        const out = new FrameWriter();
        write(out);
        out.end();
        node.core.clientBatch(channel, out.take(), world.nowMs);
        world.drain(node);
      },
    };
  }
  const id = (tenant: number, node: number): Uint8Array => Uint8Array.of(tenant, 0, 0, 0, node, 0, 0, 0, ...Array.from({ length: 12 }, () => 7), 1, 0, 0, 0);
  const prepare = (of: Uint8Array, bundles: object[], more: object = {}) => (out: FrameWriter) => void out.begin(OP.PREPARE_BUNDLES).u32(1).raw(of).text(JSON.stringify({ name: '', detached: false, bundles, ...more }));

  it('reserves for nobody but whose session it has, within that tenant’s quota, all or none', () => {
    const world = new World({ nodes: 1, cpus: 8, seed: 8, quota: { cpuUnits: 30_000 } });
    const [node] = world.nodes as [SimNode];
    const { say } = peer(world);
    say(prepare(id(2, 9), [{ index: 0, cpus: 1 }]));
    say(prepare(id(1, 9), [{ index: 0, cpus: 2 }, { index: 1, cpus: 2 }]));
    expect([holdsOn(node), node.core.state.available.cpuUnits]).toEqual([0, 80_000]);
    say(prepare(id(1, 9), [{ index: 0, cpus: 2 }]));
    expect([holdsOn(node), node.core.state.tenants.get(1)?.cpuUnitsInUse, node.core.state.tenants.get(2)?.cpuUnitsInUse]).toEqual([1, 20_000, 0]);
    // What it never makes firm goes.
    world.nowMs += 11_000;
    world.tick();
    expect([holdsOn(node), node.core.state.available.cpuUnits]).toEqual([0, 80_000]);
  });

  it('takes no bundle of a group from the raylet that reserved it, and gives back none', () => {
    const world = new World({ nodes: 1, cpus: 8, seed: 9, decide: ({ action }) => action !== 'placement-group.remove' });
    const [node] = world.nodes as [SimNode];
    const honest = peer(world);
    const thief = peer(world);
    const foreign = peer(world, 2);
    honest.say(prepare(id(1, 9), [{ index: 0, cpus: 2 }]));
    honest.say((out) => out.begin(OP.COMMIT_BUNDLES).u32(2).raw(id(1, 9)).u32(1).u32(0));
    for (const { say } of [thief, foreign]) {
      say(prepare(id(1, 9), [{ index: 0, cpus: 4 }]));
      say((out) => out.begin(OP.COMMIT_BUNDLES).u32(2).raw(id(1, 9)).u32(1).u32(0));
      say((out) => out.begin(OP.RELEASE_BUNDLES).u32(3).raw(id(1, 9)).u32(1).u32(0));
    }
    const [hold] = [...(node.core.state.holds.get(keyOf(id(1, 9)))?.values() ?? [])];
    expect([hold?.of.channel, hold?.firm, hold?.of.resources.cpuUnits]).toEqual([honest.channel, true, 20_000]);
    node.core.closeChannel(honest.channel);
    expect([holdsOn(node), node.core.state.available.cpuUnits]).toEqual([0, 80_000]);
  });

  it.each<[string, (out: FrameWriter) => void]>([
    ['no bundles', (out) => void out.begin(OP.PREPARE_BUNDLES).u32(1).raw(id(1, 9)).text('{}')], ['no JSON', (out) => void out.begin(OP.PREPARE_BUNDLES).u32(1).raw(id(1, 9)).text('x')],
    ['a bundle that is none', prepare(id(1, 9), [{ index: -1, cpus: 1 }])], ['a number of indexes beyond the frame', (out) => void out.begin(OP.COMMIT_BUNDLES).u32(1).raw(id(1, 9)).u32(200)],
    ['4 billion indexes', (out) => void out.begin(OP.RELEASE_BUNDLES).u32(1).raw(id(1, 9)).u32(0xffff_ffff)], ['a creation, which is for clients', (out) => void out.begin(OP.CREATE_GROUP).u32(0).u32(1).text('{"bundles":[{"cpus":1}]}')],
  ])('that says %s ends its channel and changes nothing', (_what, write) => {
    const world = new World({ nodes: 1, cpus: 8, seed: 10 });
    const { say } = peer(world);
    expect(() => say(write)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    expect(holdsOn(world.nodes[0] as SimNode)).toBe(0);
  });

  it('says nothing about groups that are not its own', () => {
    const world = new World({ nodes: 3, cpus: 2, seed: 11 });
    const client = world.client(0, 1);
    const other = world.client(1, 1);
    const mine = create(other, { bundles: [{ cpus: 1 }], name: 'far', detached: true });
    settle(world, other);
    client.define(1, CALL_KIND.TASK, { placementGroup: objectIdText(mine) });
    client.define(2, CALL_KIND.TASK, { nodeAffinity: 'node-3' });
    client.get([client.call(OP.SUBMIT, 1, DO.RETURN), client.call(OP.SUBMIT, 2, DO.HANG)]);
    settle(world, client);
    const { core } = client.node;
    const upstream = [...core.state.upstreams.values()].find((u) => u.nodeNumber === 3);
    const out = new FrameWriter();
    out.begin(OP.GROUP_STATE).raw(mine).text(JSON.stringify({ bundles: [{ node: 3, cpus: 1 }] })).end();
    core.upstreamBatch(upstream!, out.take(), world.nowMs);
    expect([...core.state.groupViews.values()].map((view) => view.bundles.map(({ node }) => node))).toEqual([[2]]);
  });
});
