/** Whole clusters of raylet cores under random orders of events: every call is answered once, everything is given back. */
import { describe, expect, it } from 'vitest';
import { CALL_KIND, FrameWriter, OP } from '../../src/base/frame.ts';
import { makeId } from '../../src/raylet/core/core.ts';
import type { Slot } from '../../src/raylet/core/state.ts';
import { DO, World, type SimClient, type SimNode } from './world.ts';

function expectAtRest(world: World): void {
  for (const node of world.nodes) {
    const core = node.core.state;
    expect(core.available, `node ${core.config.nodeNumber} has all its resources back`).toEqual(core.config.total);
    for (const tenant of core.tenants.values()) expect([tenant.cpuUnitsInUse, tenant.memoryBytesInUse]).toEqual([0, 0]);
    for (const channel of core.channels.values()) expect(channel.inFlight).toBe(0);
    for (const c of core.classes) {
      expect([c.queue.length, c.starting]).toEqual([0, 0]);
      for (const lease of c.leases) expect([lease.active, lease.holding]).toEqual([0, false]);
      for (const remote of c.remoteLeases.values()) expect(remote.inFlight).toBe(0);
    }
    for (const channel of core.channels.values()) expect(channel.heldBytes, 'no batch is kept').toBe(0);
  }
}

/** Every run must follow from a permit that was recorded: no exec without a decision in the log. */
function expectEveryRunWasAllowed(node: SimNode, submitted: number): void {
  let permits = 0;
  for (const log of node.logs.values()) for (const r of log.records) if (r.type === 'decision' && r.allow && (r.action === 'task.submit' || r.action === 'actor.call' || r.action === 'actor.create')) permits += r.count;
  expect(permits).toBeGreaterThanOrEqual(submitted);
}

function closeAll(world: World): void {
  for (const client of world.clients) {
    client.node.core.closeChannel(client.channel);
    world.drain(client.node);
  }
  world.run(200_000);
  for (const node of world.nodes) {
    const core = node.core.state;
    for (const session of core.sessions.values()) expect([...session.objects.values()].filter((o) => o.status !== 0).map((o) => `${o.handles}/${o.pins}`), 'objects that nobody holds are gone').toEqual([]);
    for (const tenant of core.tenants.values()) expect(tenant.objectBytes).toBe(0);
  }
}

describe.each([1, 2, 3])('%i raylets', (nodes) => {
  it.each([11, 12, 13, 14, 15, 16, 17, 18])('answer every call exactly once, whatever dies (seed %i)', (seed) => {
    // In every second run batches are read in pieces.
    const world = new World({ nodes, cpus: 2, seed: seed * 7 + nodes, ...(seed % 2 === 0 ? { pieces: 3 } : {}) });
    const clients: SimClient[] = [];
    const pending: { client: SimClient; refs: Uint8Array[] }[] = [];
    for (let i = 0; i < nodes + 1; i++) {
      const client = world.client(i % nodes, 1 + (i % 2));
      client.define(1, CALL_KIND.TASK, { maxRetries: 2 });
      client.define(2, CALL_KIND.TASK, { cpus: 0.5, returns: 2 });
      client.define(3, CALL_KIND.TASK, { cpus: 2, timeoutMs: 40 });
      client.define(4, CALL_KIND.ACTOR_CLASS, {}, 'Counter');
      client.define(5, CALL_KIND.ACTOR_METHOD, {}, 'add');
      clients.push(client);
    }
    const actors: { client: SimClient; id: Uint8Array }[] = [];
    for (let round = 0; round < 60; round++) {
      const client = clients[Math.floor(world.random() * clients.length)] as SimClient;
      const refs: Uint8Array[] = [];
      const earlier = pending.filter((p) => p.client === client).flatMap((p) => p.refs);
      const dep = (): Uint8Array[] => (earlier.length > 0 && world.random() < 0.4 ? [earlier[Math.floor(world.random() * earlier.length)] as Uint8Array] : []);
      for (let k = Math.floor(world.random() * 6); k >= 0; k--) {
        const dice = world.random();
        if (dice < 0.5) refs.push(client.call(OP.SUBMIT, 1, world.random() < 0.2 ? DO.LARGE : DO.RETURN, dep()));
        else if (dice < 0.6) refs.push(client.call(OP.SUBMIT, 1, DO.THROW, dep()));
        else if (dice < 0.68) refs.push(client.call(OP.SUBMIT, 1, DO.DIE, dep()));
        else if (dice < 0.74) refs.push(client.call(OP.SUBMIT, 3, DO.HANG, dep()));
        else if (dice < 0.84) refs.push(client.call(OP.SUBMIT, 2, DO.RETURN, dep(), undefined, 2));
        else if (dice < 0.9) {
          const id = client.call(OP.CREATE_ACTOR, 4, world.random() < 0.15 ? DO.THROW : DO.RETURN);
          actors.push({ client, id });
        } else {
          const own = actors.filter((a) => a.client === client);
          const actor = own[Math.floor(world.random() * own.length)];
          if (actor !== undefined) refs.push(client.call(OP.CALL_ACTOR, 5, world.random() < 0.1 ? DO.DIE : DO.RETURN, dep(), actor.id));
        }
      }
      if (refs.length > 0) {
        client.get(refs);
        pending.push({ client, refs });
      }
      if (refs.length > 1 && world.random() < 0.2) client.cancel(refs[0] as Uint8Array, world.random() < 0.5);
      client.flush();
      for (let s = Math.floor(world.random() * 30); s > 0; s--) world.step();
      if (world.random() < 0.1) {
        const node = world.nodes[Math.floor(world.random() * nodes)] as SimNode;
        const worker = world.anyWorker(node);
        if (worker !== undefined) world.killWorker(node, worker, false);
      }
    }
    // Hanging calls have limits: time passes until everything has ended.
    for (let i = 0; i < 400; i++) {
      world.run(200_000);
      if (clients.every((c) => [...c.calls.values()].every((call) => call.answers.every((a) => a !== undefined)))) break;
      world.tick();
    }
    world.run(200_000);
    for (const client of clients) for (const call of client.calls.values()) expect(call.answers.includes(undefined), 'every ref was answered').toBe(false);
    expectAtRest(world);
    for (const node of world.nodes) expectEveryRunWasAllowed(node, 0);
    closeAll(world);
  });
});

describe('a denied principal', () => {
  it('gets DENIED for every call, and nothing runs', () => {
    const world = new World({ nodes: 1, cpus: 1, seed: 5, decide: (r) => r.action !== 'task.submit' && r.action !== 'actor.create' });
    const client = world.client(0, 1);
    client.define(1, CALL_KIND.TASK, {});
    client.define(4, CALL_KIND.ACTOR_CLASS, {}, 'Counter');
    const refs = [client.call(OP.SUBMIT, 1, DO.RETURN), client.call(OP.CREATE_ACTOR, 4, DO.RETURN)];
    client.get(refs);
    client.flush();
    world.run(1_000);
    expect(client.failed).toEqual(['DENIED', 'DENIED']);
    expect(world.nodes[0]?.core.state.workers.size).toBe(0);
    expectAtRest(world);
  });

  it('cannot use another tenant’s object or actor by its id, and both tenants have the record', () => {
    const world = new World({ nodes: 1, cpus: 1, seed: 6 });
    const owner = world.client(0, 1);
    owner.define(1, CALL_KIND.TASK, {});
    owner.define(4, CALL_KIND.ACTOR_CLASS, {}, 'Counter');
    const ref = owner.call(OP.SUBMIT, 1, DO.RETURN);
    const actor = owner.call(OP.CREATE_ACTOR, 4, DO.RETURN);
    owner.get([ref]);
    owner.flush();
    world.run(1_000);
    const thief = world.client(0, 2);
    thief.define(1, CALL_KIND.TASK, {});
    thief.define(5, CALL_KIND.ACTOR_METHOD, {}, 'add');
    thief.get([ref]);
    thief.get([thief.call(OP.SUBMIT, 1, DO.RETURN, [ref])]);
    thief.get([thief.call(OP.CALL_ACTOR, 5, DO.RETURN, [], actor)]);
    thief.out.begin(OP.KILL).u32(0).u32(99).raw(actor).u8(0).end();
    thief.cancel(ref, true);
    thief.release([ref]);
    thief.flush();
    world.run(1_000);
    expect(thief.failed).toEqual(['DENIED', 'DENIED', 'DENIED']);
    const node = world.nodes[0] as SimNode;
    expect(node.core.state.sessions.get([...node.core.state.sessions.keys()][0] as string)?.objects.size).toBeGreaterThan(0);
    for (const number of [1, 2]) expect(node.logs.get(number)?.records.some((r) => r.type === 'decision' && !r.allow && r.principal.includes('globex') && r.action === 'object.get'), `tenant ${number} sees the attempt`).toBe(true);
  });
});

describe('an id whose owner’s node is lost', () => {
  it('tells its own tenant so, for objects and actors, and to another tenant it is what any id is that nobody has', () => {
    const world = new World({ nodes: 2, cpus: 1, seed: 12 });
    const owner = world.client(1, 1);
    const [known, unknown] = [owner.putSmall(), owner.putSmall()];
    const actor = owner.putSmall();
    const reader = world.client(0, 1, 'bob');
    owner.flush();
    world.run(1_000);
    // One of them was read here while the node was there.
    expect(reader.get([known]).answers).toEqual([undefined]);
    reader.flush();
    world.run(1_000);
    reader.release([known]);
    reader.flush();
    world.run(1_000);
    world.loseNode(world.nodes[1] as SimNode);
    world.run(1_000);
    const made = makeId(unknown.slice(0, 20).fill(7, 8), 1);
    const tries = (client: SimClient): { failed: string[]; refused: string[]; reasons: string[] } => {
      const before = [client.failed.length, client.refused.length] as const;
      client.define(1, CALL_KIND.TASK, {});
      client.define(5, CALL_KIND.ACTOR_METHOD, {}, 'add');
      for (const id of [known, unknown, made]) {
        client.get([id]);
        client.get([client.call(OP.SUBMIT, 1, DO.RETURN, [id])]);
      }
      client.get([client.call(OP.CALL_ACTOR, 5, DO.RETURN, [], actor)]);
      client.out.begin(OP.KILL).u32(0).u32(client.nextRequest++).raw(actor).u8(0).end();
      client.cancel(unknown, true);
      client.flush();
      world.run(1_000);
      return { failed: client.failed.slice(before[0]), refused: client.refused.slice(before[1]), reasons: client.reasons.slice(before[0]) };
    };
    const own = tries(reader);
    expect(own.failed.toSorted()).toEqual(['ACTOR_DIED', ...Array.from({ length: 6 }, () => 'OBJECT_LOST')]);
    expect(own.refused.toSorted()).toEqual(['ACTOR_DIED', 'OBJECT_LOST']);
    expect(own.reasons.filter((reason) => !/the node that owned|another node/.test(reason))).toEqual([]);
    const thief = world.client(0, 2);
    const foreign = tries(thief);
    expect([new Set(foreign.failed), new Set(foreign.refused), new Set(foreign.reasons).size]).toEqual([new Set(['DENIED']), new Set(['DENIED']), 1]);
    expect(foreign.failed.length).toBe(7);
    expectAtRest(world);
  });
});

describe('a ref inside an argument', () => {
  it('keeps its object for the actor that may hold it, until the actor is gone', () => {
    const world = new World({ nodes: 1, cpus: 1, seed: 9 });
    const client = world.client(0, 1);
    client.define(1, CALL_KIND.TASK, {});
    client.define(4, CALL_KIND.ACTOR_CLASS, {}, 'Keeper');
    client.define(5, CALL_KIND.ACTOR_METHOD, {}, 'keep');
    const kept = client.call(OP.SUBMIT, 1, DO.RETURN);
    const actor = client.call(OP.CREATE_ACTOR, 4, DO.RETURN);
    const done = client.call(OP.CALL_ACTOR, 5, DO.RETURN, [], actor, 1, [kept]);
    client.get([done]);
    client.flush();
    world.run(1_000);
    client.release([kept]);
    client.flush();
    world.run(1_000);
    const { objects } = client.channel.session;
    expect(objects.has(1), 'the actor may still hold it').toBe(true);
    client.out.begin(OP.KILL).u32(0).u32(77).raw(actor).u8(0).end();
    client.flush();
    world.run(1_000);
    expect(objects.has(1), 'nobody can hold it any more').toBe(false);
  });
});

describe('a quota', () => {
  it('of tasks refuses the next one with what to do, and takes it after a result', () => {
    const world = new World({ nodes: 1, cpus: 1, seed: 21, quota: { tasks: 3 } });
    const [client, neighbour] = [world.client(0, 1), world.client(0, 2)];
    for (const c of [client, neighbour]) c.define(1, CALL_KIND.TASK, {});
    const refs = Array.from({ length: 5 }, () => client.call(OP.SUBMIT, 1, DO.RETURN));
    client.get(refs);
    client.flush();
    neighbour.get(Array.from({ length: 3 }, () => neighbour.call(OP.SUBMIT, 1, DO.RETURN)));
    neighbour.flush();
    world.run(1_000);
    expect(client.failed).toEqual(['QUOTA_EXCEEDED', 'QUOTA_EXCEEDED']);
    expect(client.reasons[0]).toMatch(/3 tasks on this node .* quota is 3: wait for results .* larger quota \(tasks\)/);
    expect(neighbour.failed).toEqual([]);
    client.get([client.call(OP.SUBMIT, 1, DO.THROW), client.call(OP.SUBMIT, 1, DO.RETURN)]);
    client.flush();
    world.run(1_000);
    expect(client.failed.slice(2)).toEqual(['TASK_FAILED']);
    expectAtRest(world);
  });

  it('of tasks counts a forwarded one where it was submitted', () => {
    const world = new World({ nodes: 2, cpus: 1, seed: 22, quota: { tasks: 8 } });
    const client = world.client(0, 1);
    client.define(1, CALL_KIND.TASK, {});
    for (let round = 0; round < 5; round++) {
      client.get(Array.from({ length: 8 }, () => client.call(OP.SUBMIT, 1, DO.RETURN)));
      client.flush();
      world.run(10_000);
    }
    expect(client.failed).toEqual([]);
    for (const node of world.nodes) for (const tenant of node.core.state.tenants.values()) expect(tenant.tasks).toBe(0);
  });

  it('of actors counts those that are not dead', () => {
    const world = new World({ nodes: 1, cpus: 1, seed: 23, quota: { actors: 2 } });
    const client = world.client(0, 1);
    client.define(4, CALL_KIND.ACTOR_CLASS, {}, 'Counter');
    const actors = [1, 2, 3].map(() => client.call(OP.CREATE_ACTOR, 4, DO.RETURN));
    client.get(actors);
    client.flush();
    world.run(1_000);
    expect(client.failed).toEqual(['QUOTA_EXCEEDED']);
    expect(client.reasons[0]).toMatch(/2 actors on this node, its quota is 2: kill some .* larger quota \(actors\)/);
    client.out.begin(OP.KILL).u32(0).u32(77).raw(actors[0] as Uint8Array).u8(0).end();
    client.get([client.call(OP.CREATE_ACTOR, 4, DO.THROW)]);
    client.flush();
    world.run(1_000);
    client.get([client.call(OP.CREATE_ACTOR, 4, DO.RETURN)]);
    client.flush();
    world.run(1_000);
    expect(client.failed.slice(1)).toEqual(['TASK_FAILED']);
    closeAll(world);
    expect(world.nodes[0]?.core.state.tenants.get(1)?.actors).toBe(0);
  });

  it('of workers bounds the processes; tasks take turns, and are told when there will never be one', () => {
    const world = new World({ nodes: 1, cpus: 4, seed: 24, quota: { workers: 1 } });
    const client = world.client(0, 1);
    client.define(1, CALL_KIND.TASK, {});
    client.define(2, CALL_KIND.TASK, { cpus: 0.5 });
    client.define(4, CALL_KIND.ACTOR_CLASS, {}, 'Counter');
    client.get(Array.from({ length: 20 }, (_, i) => client.call(OP.SUBMIT, 1 + (i % 2), DO.RETURN)));
    client.flush();
    const core = (world.nodes[0] as SimNode).core.state;
    let most = 0;
    while (world.step()) most = Math.max(most, core.workers.size);
    // A worker that gives its place to another class leaves first.
    for (let i = 0; i < 20; i++) {
      world.tick();
      while (world.step()) most = Math.max(most, core.workers.size);
    }
    expect(most).toBe(1);
    expect([...client.calls.values()].flatMap((c) => c.answers)).toEqual(Array.from({ length: 20 }, () => 'value'));
    const actor = client.call(OP.CREATE_ACTOR, 4, DO.RETURN);
    client.get([actor]);
    client.flush();
    for (let i = 0; i < 20; i++) {
      world.run(1_000);
      world.tick();
    }
    client.get([client.call(OP.SUBMIT, 1, DO.RETURN)]);
    client.flush();
    world.run(1_000);
    expect(client.failed).toEqual(['QUOTA_EXCEEDED']);
    expect(client.reasons[0]).toMatch(/1 worker processes on this node, its whole quota, are its actors', so no task can run here: kill actors, or ask for a larger quota \(workers\)/);
  });

  it('of no workers at all is said at once, to tasks and to actors', () => {
    const world = new World({ nodes: 1, cpus: 4, seed: 25, quota: { workers: 0 } });
    const client = world.client(0, 1);
    client.define(1, CALL_KIND.TASK, {});
    client.define(4, CALL_KIND.ACTOR_CLASS, {}, 'Counter');
    client.get([client.call(OP.SUBMIT, 1, DO.RETURN), client.call(OP.CREATE_ACTOR, 4, DO.RETURN)]);
    client.flush();
    world.run(1_000);
    expect(client.failed).toEqual(['QUOTA_EXCEEDED', 'QUOTA_EXCEEDED']);
    expectAtRest(world);
  });
});

/** What the simulation of whole clusters found (simulation.ts), as small as it gets. */
describe('a call that waits for a call of its own', () => {
  /** The code of `exec` calls what hangs, and waits for it. */
  function nests(world: World, slot: Slot, exec: number, options: object): void {
    const node = world.nodes[0] as SimNode;
    const out = new FrameWriter();
    out.begin(OP.DEFINE).u32(1).u8(CALL_KIND.TASK).raw(new Uint8Array(32).fill(9)).str('nested').str('').text(JSON.stringify(options)).end();
    out.begin(OP.SUBMIT).u32(exec).u32(1).u32(1).u16(0).u32(0).raw(Uint8Array.of(DO.HANG)).end();
    out.begin(OP.GET).u32(exec).u32(1).refs([makeId(slot.channel.session.prefix, 1)]).end();
    node.core.guestBatch(slot, out.take(), world.nowMs);
    world.drain(node);
    world.run(1_000);
  }

  it('does not wait for it any more when it runs again', () => {
    const world = new World({ nodes: 1, cpus: 4, seed: 31 });
    const node = world.nodes[0] as SimNode;
    const client = world.client(0, 1);
    client.define(1, CALL_KIND.TASK, { maxRetries: 3 });
    client.get([client.call(OP.SUBMIT, 1, DO.HANG)]);
    client.flush();
    world.run(1_000);
    const [before] = [...world.hanging];
    nests(world, before!.slot, before!.exec, { cpus: 0.5 });
    world.killWorker(node, before!.slot.worker, false);
    world.run(1_000);
    const again = [...world.hanging].find((h) => h.slot.lease?.schedulingClass.resources.cpuUnits === 10_000)!;
    const nested = [...world.hanging].find((h) => h !== again)!;
    world.answerHanging(node, nested.slot, nested.exec);
    world.run(1_000);
    expect([again.slot.lease?.active, again.slot.lease?.holding], 'one call runs on the lease').toEqual([1, true]);
    world.answerHanging(node, again.slot, again.exec);
    world.run(1_000);
    expect([...client.calls.values()].map((c) => c.answers)).toEqual([['value']]);
    expectAtRest(world);
  });

  it('leaves nothing behind when it dies and its job ends after it', () => {
    const world = new World({ nodes: 1, cpus: 4, seed: 32 });
    const node = world.nodes[0] as SimNode;
    const client = world.client(0, 1);
    client.define(1, CALL_KIND.TASK, { maxRetries: 0 });
    client.get([client.call(OP.SUBMIT, 1, DO.HANG)]);
    client.flush();
    world.run(1_000);
    const [outer] = [...world.hanging];
    nests(world, outer!.slot, outer!.exec, { cpus: 0.5 });
    world.killWorker(node, outer!.slot.worker, false);
    world.run(1_000);
    expect(client.failed).toEqual(['WORKER_DIED']);
    closeAll(world);
    expect([node.core.state.callsInFlight, node.core.state.tenants.get(1)?.tasks]).toEqual([0, 0]);
    expectAtRest(world);
  });
});

describe('a call that waits for its turn', () => {
  it('fails with its argument when the file of that turns out to be none', () => {
    const world = new World({ nodes: 1, cpus: 1, seed: 33 });
    const node = world.nodes[0] as SimNode;
    const client = world.client(0, 1);
    client.define(1, CALL_KIND.TASK, {});
    const large = client.call(OP.SUBMIT, 1, DO.LARGE);
    client.flush();
    world.run(1_000);
    client.define(2, CALL_KIND.TASK, { cpus: 0.75 });
    client.call(OP.SUBMIT, 2, DO.HANG);
    client.flush();
    world.run(1_000);
    client.get([client.call(OP.SUBMIT, 1, DO.RETURN, [large])]);
    client.flush();
    world.run(1_000);
    const entry = client.channel.session.objects.get(1)!;
    node.core.sealFailed(entry, entry.fileName);
    const [hanging] = [...world.hanging];
    world.answerHanging(node, hanging!.slot, hanging!.exec);
    world.run(1_000);
    expect(client.failed).toEqual(['WORKER_DIED']);
    world.tick();
    expect(world.ran.map((r) => r.payload[0]), 'it did not run').toEqual([DO.LARGE, DO.HANG]);
    expectAtRest(world);
  });
});
