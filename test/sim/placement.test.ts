/** Where work runs: labels, affinity, spread and fallback, on clusters of raylet cores. A hard condition holds whatever is free elsewhere. */
import { describe, expect, it } from 'vitest';
import { CALL_KIND, OP } from '../../src/base/frame.ts';
import { actorReason, pendingReason } from '../../src/raylet/core/reasons.ts';
import { queuedForRoom } from '../../src/raylet/core/scheduler.ts';
import type { Task } from '../../src/raylet/core/state.ts';
import { DO, World, type SimClient } from './world.ts';

const ZONES = [{ zone: 'us', disk: 'hdd' }, { zone: 'eu', disk: 'ssd' }, { zone: 'eu', disk: 'hdd' }];

function world(seed: number, labels: readonly Readonly<Record<string, string>>[] = ZONES): { world: World; client: SimClient } {
  const made = new World({ nodes: labels.length, cpus: 2, seed, labels });
  return { world: made, client: made.client(0, 1) };
}

/** Nodes that ran tasks of this template. */
function nodesOf(w: World, arg: number): number[] {
  return w.ran.filter(({ payload }) => payload[1] === arg).map(({ node }) => node).sort((a, b) => a - b);
}

function submit(client: SimClient, template: number, count: number, arg: number): Uint8Array[] {
  return Array.from({ length: count }, () => client.call(OP.SUBMIT, template, DO.RETURN, [], undefined, 1, [], arg));
}

function queued(client: SimClient): Task[] {
  return [...client.channel.job.classes.values()].flatMap((c) => [...c.queue]);
}

function reasonOf(client: SimClient): string {
  const [task] = queued(client);
  return task === undefined ? '' : pendingReason(client.node.core.state, task);
}

describe.each([1, 2, 3])('labels (seed %i)', (seed) => {
  it.each<[string, object, number[]]>([
    ['a value', { zone: 'eu' }, [2, 3]], ['two labels', { zone: 'eu', disk: 'ssd' }, [2]], ['one of several values', { zone: { in: ['us', 'ap'] } }, [1]],
    ['none of several values', { disk: { notIn: ['ssd'] } }, [1, 3]], ['a label at all', { zone: { exists: true } }, [1, 2, 3]],
  ])('send tasks and actors to nodes with %s only', (_what, labels, nodes) => {
    const { world: w, client } = world(seed);
    client.define(1, CALL_KIND.TASK, { labels });
    client.define(2, CALL_KIND.ACTOR_CLASS, { labels, cpus: 0.1 }, 'Counter');
    client.define(3, CALL_KIND.ACTOR_METHOD, {}, 'add');
    const call = client.get(submit(client, 1, 12, 50));
    const calls = Array.from({ length: 4 }, () => client.call(OP.CALL_ACTOR, 3, DO.RETURN, [], client.call(OP.CREATE_ACTOR, 2, DO.RETURN), 1, [], 51));
    const made = client.get(calls);
    client.flush();
    w.run(100_000);
    expect(call.answers).toEqual(Array.from({ length: 12 }, () => 'value'));
    expect(made.answers).toEqual(calls.map(() => 'value'));
    for (const node of [...nodesOf(w, 50), ...nodesOf(w, 51)]) expect(nodes).toContain(node);
  });

  it('that no node has keep work waiting, in words, until one has them; nothing runs elsewhere meanwhile', () => {
    const { world: w, client } = world(seed, [{ zone: 'us' }, {}]);
    client.define(1, CALL_KIND.TASK, { labels: { zone: 'eu' } });
    client.define(2, CALL_KIND.ACTOR_CLASS, { labels: { gpu: { exists: true }, zone: 'us' } }, 'Counter');
    const call = client.get(submit(client, 1, 3, 60));
    client.call(OP.CREATE_ACTOR, 2, DO.RETURN);
    client.flush();
    w.run(20_000);
    expect([nodesOf(w, 60), reasonOf(client)]).toEqual([[], 'no node has label zone=eu']);
    const [made] = [...client.channel.session.actors.values()];
    expect([made?.state, actorReason(client.node.core.state, made!)]).toEqual(['PENDING_CREATION', 'no node has label gpu, zone=us']);
    w.relabel(w.nodes[1]!, { zone: 'eu' });
    w.tick();
    w.run(20_000);
    expect([nodesOf(w, 60), call.answers]).toEqual([[2, 2, 2], ['value', 'value', 'value']]);
  });

  it('fall back in order, and no further than they say', () => {
    const { world: w, client } = world(seed);
    client.define(1, CALL_KIND.TASK, { labels: { zone: 'ap' }, fallback: [{ labels: { zone: 'sa' } }, { labels: { disk: 'ssd' } }] });
    client.define(2, CALL_KIND.TASK, { labels: { zone: 'ap' }, fallback: [{}] });
    client.define(3, CALL_KIND.TASK, { labels: { zone: 'ap' }, fallback: [{ labels: { zone: 'sa' } }] });
    const call = client.get([...submit(client, 1, 4, 70), ...submit(client, 2, 4, 71)]);
    client.get(submit(client, 3, 1, 72));
    client.flush();
    w.run(50_000);
    expect(call.answers).toEqual(Array.from({ length: 8 }, () => 'value'));
    expect(new Set(nodesOf(w, 70))).toEqual(new Set([2]));
    expect([nodesOf(w, 72), reasonOf(client)]).toEqual([[], 'no node has label zone=ap, nor zone=sa']);
  });
});

it('a task bound to a node runs there or waits for it; one that only prefers it goes elsewhere', () => {
  const { world: w, client } = world(4);
  client.define(1, CALL_KIND.TASK, { nodeAffinity: 'node-3' });
  client.define(2, CALL_KIND.TASK, { nodeAffinity: { node: 'node-9', soft: true } });
  client.define(3, CALL_KIND.TASK, { nodeAffinity: 'node-9' });
  client.define(4, CALL_KIND.TASK, { nodeAffinity: 'node-3', labels: { disk: 'ssd' } });
  const call = client.get([...submit(client, 1, 5, 80), ...submit(client, 2, 2, 81)]);
  client.get(submit(client, 3, 1, 82));
  client.flush();
  w.run(50_000);
  expect([nodesOf(w, 80), call.answers]).toEqual([[3, 3, 3, 3, 3], Array.from({ length: 7 }, () => 'value')]);
  expect([nodesOf(w, 82), reasonOf(client)]).toEqual([[], "node 'node-9' is not alive"]);
  client.get(submit(client, 4, 1, 83));
  client.flush();
  w.run(50_000);
  const last = queued(client).find((task) => task.template.options.placement?.node === 'node-3') as Task;
  expect([nodesOf(w, 83), pendingReason(client.node.core.state, last)]).toEqual([[], "node 'node-3' has not label disk=ssd"]);
});

it.each([5, 6, 7, 8])('tasks that are spread use every node, although one would do (seed %i)', (seed) => {
  const { world: w, client } = world(seed, [{}, {}, {}]);
  client.define(1, CALL_KIND.TASK, { scheduling: 'spread', cpus: 0.5 });
  client.define(2, CALL_KIND.ACTOR_CLASS, { scheduling: 'spread' }, 'Counter');
  client.define(3, CALL_KIND.ACTOR_METHOD, {}, 'add');
  const call = client.get(submit(client, 1, 9, 90));
  const made = client.get(Array.from({ length: 6 }, () => client.call(OP.CALL_ACTOR, 3, DO.RETURN, [], client.call(OP.CREATE_ACTOR, 2, DO.RETURN), 1, [], 91)));
  client.flush();
  w.run(100_000);
  expect(call.answers.concat(made.answers)).toEqual(Array.from({ length: 15 }, () => 'value'));
  expect([new Set(nodesOf(w, 90)), nodesOf(w, 91)]).toEqual([new Set([1, 2, 3]), [1, 1, 2, 2, 3, 3]]);
});

it.each([
  { labels: { zone: 7 } }, { labels: { zone: { like: 'e' } } }, { labels: { 'z one': 'eu' } }, { labels: [] }, { labels: { zone: { in: [] } } }, { labels: Object.fromEntries(Array.from({ length: 33 }, (_, i) => [`l${i}`, 'x'])) },
  { fallback: [{}] }, { labels: { a: 'b' }, fallback: [{ node: 'x' }] }, { nodeAffinity: 7 }, { nodeAffinity: { node: 'node-1', hard: true } }, { nodeAffinity: '../node' }, { scheduling: 'random' }, { labels: { zone: { exists: 'yes' } } },
])('options that mean nothing are refused, so that none means “anywhere”: %j', (options) => {
  const { world: w, client } = world(1);
  client.define(1, CALL_KIND.TASK, options);
  const call = client.get(submit(client, 1, 1, 99));
  client.flush();
  w.run(10_000);
  expect([call.answers, client.failed, nodesOf(w, 99)]).toEqual([['failed'], ['INVALID_ARGUMENT'], []]);
});

describe('work that waits for a place that there is not', () => {
  it('does not keep others away from the node where it waits', () => {
    const { world: w, client } = world(1);
    client.define(1, CALL_KIND.TASK, { labels: { zone: 'mars' } });
    client.define(2, CALL_KIND.TASK, { cpus: 64 });
    client.define(3, CALL_KIND.TASK, { cpus: 1 });
    submit(client, 1, 3, 0);
    submit(client, 2, 3, 0);
    client.flush();
    w.run(20_000);
    expect(queuedForRoom(client.node.core.state)).toBe(0);
    // As many as two cpus do not take at once: those wait for room.
    submit(client, 3, 100, 0);
    client.flush();
    let most = 0;
    while (w.step()) most = Math.max(most, queuedForRoom(client.node.core.state));
    expect(most).toBeGreaterThan(0);
    expect(queuedForRoom(client.node.core.state)).toBe(0);
  });

  it.each([['tasks', 10], ['calls of an actor', 11]])('is not kept when it is cancelled: %s, again and again', (what, seed) => {
    const { world: w, client } = world(seed);
    const { state: core } = client.node.core;
    client.define(1, CALL_KIND.TASK, { labels: { zone: 'mars' } });
    client.define(2, CALL_KIND.ACTOR_CLASS, { labels: { zone: 'mars' } }, 'Counter');
    client.define(3, CALL_KIND.ACTOR_METHOD, {}, 'add');
    submit(client, 1, 1, 0);
    const actor = client.call(OP.CREATE_ACTOR, 2, DO.RETURN);
    client.call(OP.CALL_ACTOR, 3, DO.RETURN, [], actor);
    for (let round = 0; round < 40; round++) {
      for (const ref of what === 'tasks' ? submit(client, 1, 50, 0) : Array.from({ length: 50 }, () => client.call(OP.CALL_ACTOR, 3, DO.RETURN, [], actor))) client.cancel(ref, false);
      client.flush();
      w.run(20_000);
    }
    const [found] = [...core.classes].filter((c) => c.queue.length > 0);
    expect(found?.queue.length).toBe(1);
    expect(found?.queue.kept).toBeLessThan(200);
    const [counter] = [...client.channel.session.actors.values()];
    expect([...(counter?.queues.values() ?? [])].reduce((n, queue) => n + queue.length, 0)).toBeLessThan(200);
  });
});
