/**
 * Placement groups on clusters of raylet cores: all bundles or none, whatever dies or is lost between the two phases; what is reserved is
 * accounted once, and given back exactly.
 */
import { describe, expect, it } from 'vitest';
import { CALL_KIND, OP } from '../../src/base/frame.ts';
import { objectIdText, type JobId } from '../../src/base/ids.ts';
import { ORPHANED_BUNDLE_MS } from '../../src/base/limits.ts';
import { DEFAULT_PROJECT, NO_PROJECT_QUOTA } from '../../src/base/project-quota.ts';
import { groupReason } from '../../src/raylet/core/placement-groups.ts';
import { pendingReason } from '../../src/raylet/core/reasons.ts';
import { upstreamTo } from '../../src/raylet/core/upstream-channels.ts';
import { askRemote } from '../../src/raylet/core/upstreams.ts';
import { DO, World, type SimClient, type SimNode, type WorldOptions } from './world.ts';

interface Asked {
  readonly bundles: readonly object[];
  readonly strategy?: string;
  readonly name?: string;
  readonly detached?: boolean;
}

function create(client: SimClient, asked: Asked): Uint8Array {
  const id = client.id(client.nextSeq++);
  client.out.begin(OP.CREATE_GROUP).u32(0).u32(client.nextSeq - 1).text(JSON.stringify(asked)).end();
  return id;
}

function remove(client: SimClient, id: Uint8Array): void {
  client.out.begin(OP.REMOVE_GROUP).u32(0).u32(client.nextRequest++).raw(id).end();
}

function started(options: Partial<WorldOptions> & { nodes: number; seed: number }): { world: World; client: SimClient } {
  const world = new World({ cpus: 2, ...options });
  return { world, client: world.client(0, 1) };
}

function settle(world: World, client: SimClient, steps = 100_000): void {
  client.flush();
  world.run(steps);
}

/** Ticks, as long as rounds and pauses need. */
function pass(world: World, ms: number): void {
  for (let at = 0; at < ms; at += 25) {
    world.nowMs += 20;
    world.tick();
    world.run(50_000);
  }
}

function groupOf(client: SimClient, id: Uint8Array) {
  return client.node.core.state.groups.get(objectIdText(id).slice(4));
}

/** Nodes of its bundles. */
function nodesOf(client: SimClient, id: Uint8Array): number[] {
  return groupOf(client, id)?.bundles.map(({ node }) => node) ?? [];
}

/** Bundles that nodes hold: `node/index`, with `?` while they are not firm. */
function held(world: World): string[] {
  return world.nodes.flatMap((node) => [...node.core.state.holds.values()].flatMap((holds) => [...holds.values()].map((hold) => `${node.core.state.config.nodeNumber}/${hold.of.index}${hold.firm ? '' : '?'}`))).sort((a, b) => (a < b ? -1 : 1));
}

/** Everything that was taken has been given back; what still lives, holds what it says. */
function expectConserved(nodes: readonly SimNode[]): void {
  for (const { core: { state: core } } of nodes) {
    const holds = [...core.holds.values()].flatMap((of) => [...of.values()]);
    const reserved = holds.reduce((sum, hold) => sum + hold.of.resources.cpuUnits, 0);
    expect(core.available.cpuUnits, `node ${core.config.nodeNumber}`).toBe(core.config.total.cpuUnits - reserved);
    expect([...core.tenants.values()].reduce((sum, tenant) => sum + tenant.cpuUnitsInUse, 0)).toBe(reserved);
    for (const hold of holds) expect(hold.available).toEqual(hold.of.resources);
  }
}

const ONE = { cpus: 1 };

it('what came and went between two reports of a node is not counted for ever: the next group gets its room', () => {
  const { world, client } = started({ nodes: 3, seed: 1, cpus: 1 });
  const spread = { bundles: [ONE, ONE, ONE], strategy: 'STRICT_SPREAD' };
  world.reporting = false;
  const first = create(client, spread);
  settle(world, client);
  expect(groupOf(client, first)?.state).toBe('CREATED');
  remove(client, first);
  settle(world, client);
  world.reporting = true;
  const second = create(client, spread);
  settle(world, client);
  pass(world, 2_000);
  expect(groupOf(client, second)?.state).toBe('CREATED');
  expect(new Set(nodesOf(client, second)).size).toBe(3);
});

it('what the coordinator has no room for itself is asked of nobody else, so that no other node keeps a bundle for it', () => {
  const { world, client } = started({ nodes: 2, seed: 1, cpus: 4, quota: { projects: new Map([[DEFAULT_PROJECT, { ...NO_PROJECT_QUOTA, cpuUnits: 20_000 }]]) } });
  client.define(1, CALL_KIND.TASK, {});
  client.call(OP.SUBMIT, 1, DO.HANG);
  settle(world, client);
  expect(world.hanging.size).toBe(1);
  // The node has the cpus, the project's quota has not: the plan does not know.
  const id = create(client, { strategy: 'STRICT_SPREAD', bundles: [{ cpus: 1.5 }, { cpus: 1.5 }] });
  settle(world, client);
  expect([groupOf(client, id)?.state, groupOf(client, id)?.refused, held(world)]).toEqual(['PENDING', expect.stringMatching(/^node .*more than the quotas of its tenant and project/), []]);
  remove(client, id);
  settle(world, client);
  expect(held(world)).toEqual([]);
});

describe.each([1, 2, 3, 4, 5, 6])('placement groups (seed %i)', (seed) => {
  it.each<[string, object[], number, (nodes: number[]) => boolean]>([
    ['PACK', [ONE, ONE], 3, (n) => new Set(n).size === 1], ['PACK', [ONE, ONE, ONE], 3, (n) => new Set(n).size === 2],
    ['SPREAD', [ONE, ONE, ONE], 3, (n) => new Set(n).size === 3], ['SPREAD', [ONE, ONE, ONE, ONE], 3, (n) => new Set(n).size === 3],
    ['STRICT_PACK', [ONE, { cpus: 0.5 }, { cpus: 0.5 }], 3, (n) => new Set(n).size === 1], ['STRICT_SPREAD', [{ cpus: 2 }, ONE, { cpus: 0.1 }], 3, (n) => new Set(n).size === 3],
  ])('%s: bundles go where the strategy says, all firm, counted once, and back when it is removed', (strategy, bundles, nodes, right) => {
    const { world, client } = started({ nodes, seed });
    const id = create(client, { strategy, bundles });
    const ready = client.get([id]);
    settle(world, client);
    expect([ready.answers, groupOf(client, id)?.state, right(nodesOf(client, id))]).toEqual([['value'], 'CREATED', true]);
    expect(held(world).length).toBe(bundles.length);
    expect(held(world).filter((h) => h.endsWith('?'))).toEqual([]);
    expectConserved(world.nodes);
    remove(client, id);
    settle(world, client);
    expect([held(world), client.node.core.state.groups.size]).toEqual([[], 0]);
    expectConserved(world.nodes);
  });

  it.each(['STRICT_PACK', 'STRICT_SPREAD'])('%s that finds no room reserves nothing, says why, and is there as soon as there is room', (strategy) => {
    const { world, client } = started({ nodes: 2, seed });
    const first = create(client, { strategy: 'STRICT_SPREAD', bundles: [ONE, ONE] });
    settle(world, client);
    const second = create(client, { strategy, bundles: [{ cpus: 1 }, { cpus: 1 }, ...(strategy === 'STRICT_PACK' ? [] : [{ cpus: 0.5 }])] });
    const ready = client.get([second]);
    settle(world, client);
    pass(world, 200);
    expect([ready.answers, held(world).length]).toEqual([[undefined], 2]);
    const group = groupOf(client, second);
    client.define(1, CALL_KIND.TASK, { placementGroup: objectIdText(second) });
    client.call(OP.SUBMIT, 1, DO.RETURN);
    settle(world, client);
    const [task] = [...client.channel.job.classes.values()].flatMap((c) => [...c.queue]);
    expect(pendingReason(client.node.core.state, task!)).toBe(`its placement group is PENDING: ${groupReason(client.node.core.state, group!)}`);
    expect(groupReason(client.node.core.state, group!)).toMatch(strategy === 'STRICT_PACK' ? /^waits for room for 2 bundles at once/ : /^infeasible: STRICT_SPREAD of 3 bundles finds no room on 2 nodes/);
    remove(client, first);
    settle(world, client);
    pass(world, 1_500);
    expect(ready.answers).toEqual([strategy === 'STRICT_PACK' ? 'value' : undefined]);
    remove(client, second);
    settle(world, client);
    expect(held(world)).toEqual([]);
    expectConserved(world.nodes);
  });

  it('tasks and actors run in the bundles they ask for, take from them, and never from the rest of the node', () => {
    const { world, client } = started({ nodes: 3, seed });
    const id = create(client, { strategy: 'STRICT_SPREAD', bundles: [ONE, ONE, ONE] });
    const placementGroup = objectIdText(id);
    for (let i = 0; i < 3; i++) client.define(10 + i, CALL_KIND.TASK, { placementGroup, bundleIndex: i });
    client.define(20, CALL_KIND.TASK, { placementGroup, cpus: 0.5 });
    client.define(21, CALL_KIND.ACTOR_CLASS, { placementGroup, bundleIndex: 2, cpus: 0.5 }, 'Counter');
    client.define(22, CALL_KIND.ACTOR_METHOD, {}, 'add');
    const calls = [0, 1, 2].flatMap((i) => Array.from({ length: 4 }, () => client.call(OP.SUBMIT, 10 + i, DO.RETURN, [], undefined, 1, [], 30 + i)));
    const any = Array.from({ length: 6 }, () => client.call(OP.SUBMIT, 20, DO.RETURN, [], undefined, 1, [], 33));
    const got = client.get([...calls, ...any]);
    settle(world, client);
    expect(got.answers).toEqual([...calls, ...any].map(() => 'value'));
    const where = nodesOf(client, id);
    for (let i = 0; i < 3; i++) expect(new Set(world.ran.filter(({ payload }) => payload[1] === 30 + i).map(({ node }) => node))).toEqual(new Set([where[i]]));
    const actor = client.call(OP.CREATE_ACTOR, 21, DO.RETURN);
    const said = client.get([client.call(OP.CALL_ACTOR, 22, DO.RETURN, [], actor, 1, [], 34)]);
    settle(world, client);
    expect([said.answers, world.ran.filter(({ payload }) => payload[1] === 34).map(({ node }) => node)]).toEqual([['value'], [where[2]]]);
    // What is more than its bundle has left waits for that, whatever else is free.
    client.define(24, CALL_KIND.TASK, { placementGroup, bundleIndex: 2, cpus: 0.75 });
    const waiting = client.get([client.call(OP.SUBMIT, 24, DO.RETURN)]);
    settle(world, client);
    expect(waiting.answers).toEqual([undefined]);
    // What else the tenant runs has the other half of each node.
    client.define(23, CALL_KIND.TASK, { cpus: 2 });
    const whole = client.get([client.call(OP.SUBMIT, 23, DO.RETURN)]);
    settle(world, client);
    expect(whole.answers).toEqual([undefined]);
    remove(client, id);
    settle(world, client);
    expect(whole.answers).toEqual(['value']);
    const late = client.get([client.call(OP.CALL_ACTOR, 22, DO.RETURN, [], actor)]);
    settle(world, client);
    expect(late.answers).toEqual(['failed']);
    expect([client.failed.at(-1), held(world)]).toEqual(['ACTOR_DIED', []]);
    expectConserved(world.nodes);
  });

  it('what runs in a group ends with it', () => {
    const { world, client } = started({ nodes: 2, seed });
    const id = create(client, { strategy: 'STRICT_SPREAD', bundles: [ONE, ONE] });
    const placementGroup = objectIdText(id);
    client.define(1, CALL_KIND.TASK, { placementGroup, maxRetries: 5 });
    const got = client.get(Array.from({ length: 6 }, () => client.call(OP.SUBMIT, 1, DO.HANG)));
    settle(world, client);
    expect(world.hanging.size).toBeGreaterThan(0);
    remove(client, id);
    settle(world, client);
    expect(got.answers).toEqual(Array.from({ length: 6 }, () => 'failed'));
    expect([new Set(client.failed), held(world)]).toEqual([new Set(['CANCELLED']), []]);
    expectConserved(world.nodes);
  });

  it('a node that dies anywhere between asking and answering leaves nothing reserved, and the group finds others', () => {
    for (let at = 0; at < 40; at++) {
      const { world, client } = started({ nodes: 4, seed: seed * 1_000 + at });
      const id = create(client, { strategy: 'STRICT_SPREAD', bundles: [ONE, ONE, ONE] });
      const ready = client.get([id]);
      client.flush();
      for (let i = 0; i < at; i++) world.step();
      const dead = world.nodes[1 + (at % 3)] as SimNode;
      world.loseNode(dead);
      world.run(100_000);
      pass(world, 8_000);
      const living = world.nodes.filter((node) => node !== dead);
      expect([at, groupOf(client, id)?.state, ready.answers]).toEqual([at, 'CREATED', ['value']]);
      expect([at, new Set(nodesOf(client, id))]).toEqual([at, new Set(living.map((node) => node.core.state.config.nodeNumber))]);
      expect(living.flatMap((node) => [...node.core.state.holds.values()].map((of) => of.size))).toEqual([1, 1, 1]);
      remove(client, id);
      settle(world, client);
      expectConserved(living);
      expect(living.flatMap((node) => [...node.core.state.holds.values()])).toEqual([]);
    }
  });

  it('the death of the node that coordinates, at any moment, leaves nothing reserved elsewhere, but whole bundles of a detached group, for a time', () => {
    for (let at = 0; at < 40; at++) {
      const { world, client } = started({ nodes: 3, seed: seed * 2_000 + at });
      create(client, { strategy: 'STRICT_SPREAD', bundles: [ONE, ONE, ONE], ...(at % 2 === 0 ? { name: 'kept', detached: true } : {}) });
      client.flush();
      for (let i = 0; i < at; i++) world.step();
      world.loseNode(client.node);
      world.run(100_000);
      pass(world, 200);
      const living = world.nodes.slice(1);
      const left = (): boolean[] => living.flatMap((node) => [...node.core.state.holds.values()].flatMap((holds) => [...holds.values()].map((hold) => hold.firm && hold.of.kept)));
      expect([at, left().filter((whole) => at % 2 === 1 || !whole)]).toEqual([at, []]);
      expectConserved(living);
      world.nowMs += ORPHANED_BUNDLE_MS;
      pass(world, 100);
      expect([at, left()]).toEqual([at, []]);
      expectConserved(living);
    }
  });

  it('a node that says nothing is given up: nothing stays reserved on the others, and others are asked', () => {
    const { world, client } = started({ nodes: 4, seed });
    world.mute(world.nodes[0] as SimNode, world.nodes[2] as SimNode);
    const id = create(client, { strategy: 'STRICT_SPREAD', bundles: [ONE, ONE, { cpus: 2 }] });
    settle(world, client);
    pass(world, 7_000);
    expect([groupOf(client, id)?.state, nodesOf(client, id).includes(3)]).toEqual(['CREATED', false]);
    expect(held(world).filter((h) => h.endsWith('?'))).toEqual([]);
    // Muted again, with no other way: what was asked for elsewhere is given back each time.
    const second = create(client, { strategy: 'STRICT_SPREAD', bundles: [{ cpus: 0.5 }, { cpus: 0.5 }, { cpus: 2 }] });
    settle(world, client);
    pass(world, 12_000);
    expect([groupOf(client, second)?.state, held(world).filter((h) => !h.endsWith('?')).length]).toEqual(['PENDING', 3]);
    remove(client, id);
    remove(client, second);
    settle(world, client);
    expect(held(world)).toEqual([]);
    expectConserved(world.nodes);
  });

  it('a coordinator that the head has lost sight of keeps its bundles as long as its connection lives, and no longer', () => {
    const { world, client } = started({ nodes: 2, seed });
    create(client, { strategy: 'STRICT_SPREAD', bundles: [ONE, ONE] });
    settle(world, client);
    const [, other] = world.nodes as [SimNode, SimNode];
    other.core.removeNode(1);
    world.drain(other);
    world.run(100_000);
    expect(held(world).length).toBe(2);
    world.loseNode(client.node);
    world.run(100_000);
    expect(other.core.state.holds.size).toBe(0);
    expectConserved([other]);
  });

  it('a bundle whose node dies is placed anew, the others stay, and its tasks run again there', () => {
    const { world, client } = started({ nodes: 4, seed });
    const id = create(client, { strategy: 'SPREAD', bundles: [ONE, ONE, ONE] });
    settle(world, client);
    const before = nodesOf(client, id);
    const index = before.findIndex((node) => node !== 1);
    client.define(1, CALL_KIND.TASK, { placementGroup: objectIdText(id), bundleIndex: index, maxRetries: 3 });
    const got = client.get([client.call(OP.SUBMIT, 1, DO.HANG, [], undefined, 1, [], 40)]);
    settle(world, client);
    expect(world.ran.filter(({ payload }) => payload[1] === 40).map(({ node }) => node)).toEqual([before[index]]);
    world.loseNode(world.nodes[(before[index] as number) - 1] as SimNode);
    world.run(100_000);
    pass(world, 1_500);
    const after = nodesOf(client, id);
    expect([groupOf(client, id)?.state, after.filter((node, i) => i !== index && node !== before[i])]).toEqual(['CREATED', []]);
    expect([after[index] === 0, after[index] === before[index]]).toEqual([false, false]);
    expect(world.ran.filter(({ payload }) => payload[1] === 40).map(({ node }) => node)).toEqual([before[index], after[index]]);
    for (const { node, slot, exec } of [...world.hanging]) world.answerHanging(node, slot, exec);
    world.run(50_000);
    expect(got.answers).toEqual(['value']);
  });

  it('is whole where it is detached, though its job ends as soon as it is told so', () => {
    for (let at = 0; at < 20; at++) {
      const { world, client } = started({ nodes: 3, seed: seed * 3_000 + at });
      const id = create(client, { strategy: 'STRICT_SPREAD', bundles: [ONE, ONE, ONE], name: 'kept', detached: true });
      const ready = client.get([id]);
      client.flush();
      for (let i = 0; i < 10_000 && ready.answers[0] === undefined; i++) world.step();
      client.node.core.closeChannel(client.channel);
      world.drain(client.node);
      world.run(50_000);
      expect([at, ready.answers, groupOf(client, id)?.state, held(world)]).toEqual([at, ['value'], 'CREATED', ['1/0', '2/1', '3/2'].map(() => expect.any(String) as string)]);
      expect(held(world).filter((h) => h.endsWith('?'))).toEqual([]);
      expectConserved(world.nodes);
    }
  });

  it('ends with its job, unless it is detached; that one is found by its name and removed by another job', () => {
    const { world, client } = started({ nodes: 2, seed });
    const bound = create(client, { strategy: 'STRICT_SPREAD', bundles: [{ cpus: 0.5 }, { cpus: 0.5 }] });
    const kept = create(client, { strategy: 'STRICT_SPREAD', bundles: [ONE, ONE], name: 'kept', detached: true });
    const ready = client.get([bound, kept]);
    settle(world, client);
    expect([ready.answers, held(world).length]).toEqual([['value', 'value'], 4]);
    client.node.core.closeChannel(client.channel);
    world.drain(client.node);
    world.run(50_000);
    expect(held(world).length).toBe(2);
    const next = world.client(1, 1);
    next.out.begin(OP.LOOKUP_GROUP).u32(0).u32(next.nextRequest++).str('kept').end();
    settle(world, next);
    const found = JSON.parse(next.done.at(-1) ?? '{}') as { id: string; strategy: string; bundles: object[] };
    expect(found).toMatchObject({ id: objectIdText(kept), strategy: 'STRICT_SPREAD', bundles: [{ cpus: 1 }, { cpus: 1 }] });
    // From another node, and another job: the tasks go to the bundles.
    next.define(1, CALL_KIND.TASK, { placementGroup: found.id, bundleIndex: 0 });
    next.define(2, CALL_KIND.TASK, { placementGroup: found.id, bundleIndex: 1 });
    const got = next.get([next.call(OP.SUBMIT, 1, DO.RETURN, [], undefined, 1, [], 50), next.call(OP.SUBMIT, 2, DO.RETURN, [], undefined, 1, [], 51)]);
    settle(world, next);
    expect(got.answers).toEqual(['value', 'value']);
    const where = world.ran.filter(({ payload }) => payload[1] === 50 || payload[1] === 51).map(({ node }) => node);
    expect(new Set(where).size).toBe(2);
    remove(next, kept);
    settle(world, next);
    expect([held(world), world.groupNames.size]).toEqual([[], 0]);
    expectConserved(world.nodes);
  });
});

function lookup(world: World, client: SimClient, name: string): string | undefined {
  const before = client.done.length;
  client.out.begin(OP.LOOKUP_GROUP).u32(0).u32(client.nextRequest++).str(name).end();
  settle(world, client);
  return client.done.length === before ? undefined : (JSON.parse(client.done.at(-1) ?? '{}') as { id: string }).id;
}

describe.each([1, 2, 3, 4])('a detached group whose coordinator’s node is lost (seed %i)', (seed) => {
  /** Coordinated on node 1, with a bundle on each of nodes 1 to 3, and an actor of another driver in the bundle of node 3. */
  function lost() {
    const { world, client } = started({ nodes: 4, seed });
    const kept = create(client, { strategy: 'STRICT_SPREAD', bundles: [ONE, ONE, ONE], name: 'kept', detached: true });
    const bound = create(client, { strategy: 'STRICT_SPREAD', bundles: [{ cpus: 0.25 }, { cpus: 0.25 }] });
    const ready = client.get([kept, bound]);
    settle(world, client);
    expect(ready.answers).toEqual(['value', 'value']);
    const places = nodesOf(client, kept);
    const neighbour = world.client(3, 1, 'bob');
    const at = places.findIndex((node) => node === 3);
    neighbour.define(4, CALL_KIND.ACTOR_CLASS, { placementGroup: objectIdText(kept), bundleIndex: at, cpus: 0.5, maxRestarts: 1 }, 'Counter');
    neighbour.define(5, CALL_KIND.ACTOR_METHOD, {}, 'add');
    const actor = neighbour.call(OP.CREATE_ACTOR, 4, DO.RETURN);
    const first = neighbour.get([neighbour.call(OP.CALL_ACTOR, 5, DO.RETURN, [], actor)]);
    settle(world, neighbour);
    expect([at >= 0, first.answers]).toEqual([true, ['value']]);
    world.loseNode(world.nodes[0] as SimNode);
    world.run(100_000);
    const call = (): string | undefined => {
      const got = neighbour.get([neighbour.call(OP.CALL_ACTOR, 5, DO.RETURN, [], actor)]);
      settle(world, neighbour);
      return got.answers[0];
    };
    return { world, kept, places, neighbour, call, at };
  }

  it('keeps its bundles elsewhere, with what runs in them, and is taken over by who asks for its name, once', () => {
    const { world, kept, neighbour, call, at } = lost();
    // The others of the job are gone with it; these are nobody's to take.
    expect(held(world).filter((h) => !h.startsWith('1/')).length).toBe(2);
    expect(call(), 'the actor in its bundle lives').toBe('value');
    const [heir, second] = [world.client(1, 1), world.client(3, 1)];
    for (const client of [heir, second]) {
      client.out.begin(OP.LOOKUP_GROUP).u32(0).u32(client.nextRequest++).str('kept').end();
      client.flush();
    }
    world.run(100_000);
    const ids = [lookup(world, heir, 'kept'), lookup(world, second, 'kept')];
    expect(new Set(ids).size).toBe(1);
    pass(world, 400);
    const id = ids[0] as string;
    const owner = [heir, second].find((client) => client.node.core.state.groups.has(id.slice(4))) as SimClient;
    expect([...owner.node.core.state.groups.values()].map((group) => [group.state, group.bundles.filter(({ node }) => node === 0 || node === 1).length])).toEqual([['CREATED', 0]]);
    const living = world.nodes.slice(1);
    expect(living.reduce((sum, node) => sum + [...node.core.state.holds.values()].reduce((n, holds) => n + holds.size, 0), 0), 'no bundle twice').toBe(3);
    expect(call(), 'the actor has not noticed').toBe('value');
    // Under its new id, and under the old one, which programs and actors still have.
    for (const [n, group] of [id, objectIdText(kept)].entries()) {
      neighbour.define(10 + n, CALL_KIND.TASK, { placementGroup: group, bundleIndex: (at + 1) % 3 });
      const got = neighbour.get([neighbour.call(OP.SUBMIT, 10 + n, DO.RETURN)]);
      settle(world, neighbour);
      pass(world, 100);
      expect([n, got.answers, neighbour.reasons.at(-1)]).toEqual([n, ['value'], undefined]);
    }
    const worker = [...(world.nodes[2] as SimNode).core.state.workers.values()].find((w) => [...w.slots.values()].some((slot) => slot.actor !== undefined));
    if (worker === undefined) throw new Error('the actor is not on node 3');
    world.killWorker(world.nodes[2] as SimNode, worker, false);
    world.run(100_000);
    expect(call(), 'it starts again in its bundle').toBe('value');
    remove(neighbour, kept);
    settle(world, neighbour);
    expect([held(world).filter((h) => !h.startsWith('1/')), world.groupNames.size]).toEqual([[], 0]);
    expect(call(), 'and dies with the group').toBe('failed');
    expectConserved(living);
  });

  it('is not given to another principal, nor is its name; its bundles go when its job is stopped', () => {
    const { world, kept, neighbour } = lost();
    expect([lookup(world, neighbour, 'kept'), neighbour.refused.at(-1)]).toEqual([undefined, 'UNAVAILABLE']);
    const other = create(neighbour, { bundles: [{ cpus: 0.1 }], name: 'kept', detached: true });
    const got = neighbour.get([other]);
    settle(world, neighbour);
    expect([got.answers, neighbour.failed.at(-1)]).toEqual([['failed'], 'INVALID_ARGUMENT']);
    // A raylet that claims it, for a principal whose it is not, gets nothing; nor does one for a group that has another node's number.
    const [thief, owner] = [world.client(3, 1, 'eve'), world.client(3, 1)];
    for (const [client, node] of [[thief, 4], [owner, 3]] as const) {
      const heir = kept.slice();
      heir[4] = node;
      const upstream = upstreamTo(client.node.core.state, 2, client.channel.job, false, 0);
      let answer = '';
      askRemote(client.node.core.state, upstream, -1, (out, request) => out.begin(OP.TAKE_BUNDLES).u32(request).raw(kept).raw(heir), (failure, info) => void (answer = failure?.code ?? info));
      world.drain(client.node);
      world.run(10_000);
      expect(answer).toBe(node === 4 ? '{"indexes":[]}' : 'DENIED');
    }
    const living = world.nodes.slice(1);
    expect(held(world).filter((h) => !h.startsWith('1/')).length).toBe(2);
    const [job] = [...(world.nodes[1] as SimNode).core.state.holds.values()].flatMap((holds) => [...holds.values()].map((hold) => hold.of.job.id));
    for (const node of living) {
      node.core.stopJob(job as JobId, 'stopped');
      world.drain(node);
    }
    world.run(100_000);
    expect(held(world).filter((h) => !h.startsWith('1/'))).toEqual([]);
  });
});

it('one group after the other: what they needed is forgotten, on every node, and a late call for one that is gone is told so', () => {
  const { world, client } = started({ nodes: 2, seed: 1 });
  for (let i = 0; i < 300; i++) {
    const id = create(client, { strategy: 'STRICT_SPREAD', bundles: [ONE, ONE] });
    client.define(100 + 2 * i, CALL_KIND.TASK, { placementGroup: objectIdText(id), bundleIndex: 0 });
    client.define(101 + 2 * i, CALL_KIND.TASK, { placementGroup: objectIdText(id), bundleIndex: 1 });
    const got = client.get([client.call(OP.SUBMIT, 100 + 2 * i, DO.RETURN), client.call(OP.SUBMIT, 101 + 2 * i, DO.RETURN)]);
    settle(world, client);
    expect([i, got.answers]).toEqual([i, ['value', 'value']]);
    remove(client, id);
    settle(world, client);
    world.tick();
    world.run(10_000);
  }
  expect(world.nodes.map((node) => node.core.state.tenants.get(1)?.classes)).toEqual([0, 0]);
  const late = client.get([client.call(OP.SUBMIT, 100, DO.RETURN), client.call(OP.SUBMIT, 101, DO.RETURN)]);
  settle(world, client);
  expect([late.answers, client.failed.slice(-2)]).toEqual([['failed', 'failed'], ['CANCELLED', 'CANCELLED']]);
  expectConserved(world.nodes);
});

it('a round under random deaths, many groups at once: every group is whole or waits, and everything comes back', () => {
  for (let seed = 1; seed <= 12; seed++) {
    const { world, client } = started({ nodes: 5, seed: 7_000 + seed });
    const ids: Uint8Array[] = [];
    for (let round = 0; round < 30; round++) {
      const strategy = ['PACK', 'SPREAD', 'STRICT_PACK', 'STRICT_SPREAD'][Math.floor(world.random() * 4)] as string;
      if (world.random() < 0.6) ids.push(create(client, { strategy, bundles: Array.from({ length: 1 + Math.floor(world.random() * 3) }, () => ({ cpus: 0.25 * (1 + Math.floor(world.random() * 3)) })) }));
      else if (ids.length > 0) remove(client, ids.splice(Math.floor(world.random() * ids.length), 1)[0] as Uint8Array);
      client.flush();
      for (let i = 0; i < 20; i++) world.step();
      if (round === 10 || round === 20) world.loseNode(world.nodes[round === 10 ? 2 : 4] as SimNode);
    }
    world.run(200_000);
    pass(world, 8_000);
    const living = [0, 1, 3].map((i) => world.nodes[i] as SimNode);
    expectConserved(living);
    for (const id of ids) {
      const group = groupOf(client, id);
      const placed = nodesOf(client, id).filter((node) => node !== 0);
      const holds = living.reduce((sum, node) => sum + (node.core.state.holds.get(group?.id ?? '')?.size ?? 0), 0);
      expect([seed, holds]).toEqual([seed, placed.length]);
      if (group?.state === 'CREATED') expect(placed.length).toBe(group.bundles.length);
    }
    for (const id of ids) remove(client, id);
    settle(world, client);
    pass(world, 200);
    expect(living.flatMap((node) => [...node.core.state.holds.values()])).toEqual([]);
    expectConserved(living);
  }
});
