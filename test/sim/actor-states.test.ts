/**
 * The transitions of src/raylet/core/actors.ts by their numbers, with a crash in each state; then what callers see, and their order, under
 * random crashes.
 */
import { describe, expect, it } from 'vitest';
import { CALL_KIND, OP } from '../../src/base/frame.ts';
import { idIndex } from '../../src/raylet/core/core.ts';
import type { Actor } from '../../src/raylet/core/state.ts';
import { DO, World, type SimClient, type SimNode } from './world.ts';

const CLASS = 4;
const CALL = 5;
const RETRIED = 6;

class Scene {
  readonly world: World;
  readonly client: SimClient;

  constructor(options: object = {}, { nodes = 1, cpus = 2, seed = 1 }: { nodes?: number; cpus?: number; seed?: number } = {}) {
    this.world = new World({ nodes, cpus, seed });
    this.client = this.world.client(0, 1);
    this.client.define(1, CALL_KIND.TASK, { maxRetries: 0 });
    this.client.define(CLASS, CALL_KIND.ACTOR_CLASS, options, 'Counter');
    this.client.define(CALL, CALL_KIND.ACTOR_METHOD, {}, 'add');
    this.client.define(RETRIED, CALL_KIND.ACTOR_METHOD, { maxTaskRetries: 5 }, 'add');
  }

  get node(): SimNode {
    return this.world.nodes[0] as SimNode;
  }

  settle(): void {
    this.client.flush();
    this.world.run(20_000);
  }

  /** What nodes report of themselves arrives. */
  pass(): void {
    for (let i = 0; i < 3; i++) {
      this.settle();
      this.world.tick();
    }
    this.settle();
  }

  create(what: number, deps: readonly Uint8Array[] = []): Uint8Array {
    const id = this.client.call(OP.CREATE_ACTOR, CLASS, what, deps);
    this.settle();
    return id;
  }

  /** Its ref is asked for at once: answers are in `client.calls`. */
  call(actor: Uint8Array, what: number = DO.RETURN, template = CALL): { answers: (string | undefined)[] } {
    const asked = this.client.get([this.client.call(OP.CALL_ACTOR, template, what, [], actor)]);
    this.client.flush();
    return asked;
  }

  actor(id: Uint8Array): Actor {
    return this.client.channel.session.actors.get(idIndex(id)) as Actor;
  }

  /** Without settling: what follows is for the test to let happen. */
  crash(id: Uint8Array, node = this.node): void {
    const { worker } = node === this.node ? this.actor(id) : { worker: [...node.pools.keys()][0] };
    if (worker === undefined) throw new Error('it runs nowhere');
    this.world.killWorker(node, worker, false);
    // Only its end is told yet.
    while (worker.state !== 'DEAD') this.world.step();
  }

  kill(id: Uint8Array, restart = false): void {
    this.client.out.begin(OP.KILL).u32(0).u32(this.client.nextRequest++).raw(id).u8(restart ? 1 : 0).end();
    this.settle();
  }

  events(): string[] {
    return (this.node.logs.get(1)?.records ?? []).flatMap((r) => (r.type === 'lifecycle' && r.event.startsWith('actor.') ? [`${r.event} ${r.detail.replace(/sha256:\w+ Counter/, '').trim()}`.trim()] : []));
  }

  creations(): number[] {
    return this.world.ran.filter((r) => r.kind === CALL_KIND.ACTOR_CLASS).map((r) => r.attempt);
  }

  /** Nothing is held for the tenant once it has gone. */
  expectNothingLeft(): void {
    this.node.core.closeChannel(this.client.channel);
    this.world.drain(this.node);
    this.world.run(20_000);
    for (const node of this.world.nodes) {
      const core = node.core.state;
      expect([core.available, core.callsInFlight]).toEqual([core.config.total, 0]);
      for (const tenant of core.tenants.values()) expect([tenant.cpuUnitsInUse, tenant.memoryBytesInUse, tenant.heldBytes, tenant.objectBytes, tenant.entries]).toEqual([0, 0, 0, 0, 0]);
      for (const worker of core.workers.values()) expect([worker.seats, worker.booting]).toEqual([0, 0]);
    }
  }
}

describe('transitions', () => {
  it('1: an actor whose arguments are not here is DEPENDENCIES_UNREADY, and runs nowhere', () => {
    const scene = new Scene();
    const never = scene.client.call(OP.SUBMIT, 1, DO.HANG);
    const id = scene.create(DO.RETURN, [never]);
    expect([scene.actor(id).state, scene.actor(id).worker]).toEqual(['DEPENDENCIES_UNREADY', undefined]);
    scene.expectNothingLeft();
  });

  it('2: with its arguments it is PENDING_CREATION, while its constructor runs too', () => {
    const scene = new Scene();
    const id = scene.create(DO.HANG, [scene.client.call(OP.SUBMIT, 1, DO.RETURN)]);
    expect(scene.actor(id).state).toBe('PENDING_CREATION');
    expect(scene.creations()).toEqual([0]);
    scene.expectNothingLeft();
  });

  it('3: a constructor that returned makes it ALIVE', () => {
    const scene = new Scene();
    const id = scene.create(DO.RETURN);
    const call = scene.call(id);
    scene.settle();
    expect([scene.actor(id).state, call.answers]).toEqual(['ALIVE', ['value']]);
    expect(scene.events()).toEqual(['actor.created']);
    scene.expectNothingLeft();
  });

  it('4: its worker dies under its constructor: RESTARTING', () => {
    const scene = new Scene({ maxRestarts: 1 });
    const id = scene.create(DO.HANG);
    const waiting = scene.call(id);
    scene.crash(id);
    expect([scene.actor(id).state, scene.actor(id).restarts]).toEqual(['RESTARTING', 1]);
    scene.settle();
    // The same constructor hangs once more, and who called before is still waiting.
    expect([scene.creations(), waiting.answers]).toEqual([[0, 1], [undefined]]);
    scene.expectNothingLeft();
  });

  it('5 and 6: its worker dies under a call: it starts again for the same arguments, and the call without retries fails', () => {
    const scene = new Scene({ maxRestarts: 2, cpus: 1 });
    const argument = scene.client.call(OP.SUBMIT, 1, DO.RETURN);
    const id = scene.create(DO.RETURN, [argument]);
    const hung = scene.call(id, DO.HANG);
    scene.settle();
    // Nobody but the actor has use for its argument any more.
    scene.client.release([argument]);
    scene.settle();
    scene.crash(id);
    expect(scene.actor(id).state).toBe('RESTARTING');
    scene.settle();
    expect([scene.actor(id).state, scene.actor(id).restarts, hung.answers]).toEqual(['ALIVE', 1, ['failed']]);
    expect(scene.client.failed).toEqual(['ACTOR_UNAVAILABLE']);
    const made = scene.world.ran.filter((r) => r.kind === CALL_KIND.ACTOR_CLASS);
    expect(made.map((r) => [...r.payload])).toEqual([[DO.RETURN, 7], [DO.RETURN, 7]]);
    const later = scene.call(id);
    scene.settle();
    expect(later.answers).toEqual(['value']);
    expect(scene.events()).toEqual(['actor.created', 'actor.restarting 1/2 WORKER_DIED', 'actor.restarted 1/2']);
    scene.expectNothingLeft();
  });

  it('5: a kill that allows it to restart, and 10: one that does not', () => {
    const scene = new Scene({ maxRestarts: -1 });
    const id = scene.create(DO.RETURN);
    scene.kill(id, true);
    expect([scene.actor(id).state, scene.actor(id).restarts]).toEqual(['ALIVE', 1]);
    scene.kill(id);
    expect([scene.actor(id).state, scene.actor(id).reason]).toEqual(['DEAD', 'it was killed']);
    expect(scene.events()).toEqual(['actor.created', 'actor.restarting 1 ACTOR_DIED', 'actor.restarted 1', 'actor.died ACTOR_DIED']);
    scene.expectNothingLeft();
  });

  it('7: it is lost while it restarts, waits longer each time, and 11: dies when its restarts are used up', () => {
    const scene = new Scene({ maxRestarts: 3 });
    const id = scene.create(DO.HANG);
    for (const restart of [1, 2, 3]) {
      scene.crash(id);
      expect([scene.actor(id).state, scene.actor(id).restarts]).toEqual(['RESTARTING', restart]);
      if (restart > 1) {
        const begun = scene.creations().length;
        scene.settle();
        expect(scene.creations().length, 'not at once').toBe(begun);
      }
      for (let i = 0; i < 200 && scene.actor(id).slot === undefined; i++) {
        scene.world.tick();
        scene.settle();
      }
    }
    scene.crash(id);
    expect([scene.actor(id).state, scene.creations()]).toEqual(['DEAD', [0, 1, 2, 3]]);
    const late = scene.call(id);
    scene.settle();
    expect([late.answers, scene.client.failed]).toEqual([['failed'], ['ACTOR_DIED']]);
    scene.expectNothingLeft();
  });

  it.each(['an argument fails', 'its name is taken', 'it is killed', 'its owner ends', 'nobody has a handle'])('8: DEPENDENCIES_UNREADY → DEAD: %s', (how) => {
    const scene = new Scene(how === 'its name is taken' ? { name: 'taken', maxRestarts: 5 } : { maxRestarts: 5 });
    scene.world.nameTaken = () => true;
    const argument = scene.client.call(OP.SUBMIT, 1, how === 'an argument fails' ? DO.THROW : DO.HANG);
    const id = scene.create(DO.RETURN, [argument]);
    const actor = scene.actor(id);
    if (how === 'it is killed') scene.kill(id);
    else if (how === 'nobody has a handle') {
      scene.client.release([id]);
      scene.client.cancel(argument, true);
      scene.settle();
    } else if (how === 'its owner ends') scene.expectNothingLeft();
    expect(actor.state).toBe('DEAD');
    expect([scene.creations().filter(() => how !== 'nobody has a handle'), actor.restarts]).toEqual([[], 0]);
    if (how !== 'its owner ends') scene.expectNothingLeft();
  });

  it.each(['its constructor throws', 'it is lost and may not restart', 'it is killed', 'it ends itself'])('9: PENDING_CREATION → DEAD: %s', (how) => {
    const scene = new Scene({ maxRestarts: how === 'it is lost and may not restart' ? 0 : 5 });
    const id = scene.create(how === 'its constructor throws' ? DO.THROW : how === 'it ends itself' ? DO.EXIT : DO.HANG);
    const actor = scene.actor(id);
    if (how === 'it is killed') scene.kill(id);
    else if (how === 'it is lost and may not restart') scene.crash(id);
    expect([actor.state, scene.creations()]).toEqual(['DEAD', [0]]);
    scene.expectNothingLeft();
  });

  it.each(['it is lost and may not restart', 'it ends itself', 'its owner ends', 'nobody has a handle'])('10: ALIVE → DEAD: %s', (how) => {
    const scene = new Scene({ maxRestarts: how === 'it is lost and may not restart' ? 0 : 5 });
    const id = scene.create(DO.RETURN);
    const actor = scene.actor(id);
    const call = scene.call(id, how === 'it ends itself' ? DO.EXIT : DO.RETURN);
    if (how === 'it is lost and may not restart') scene.crash(id);
    else if (how === 'nobody has a handle') scene.client.release([id]);
    scene.settle();
    if (how === 'its owner ends') scene.expectNothingLeft();
    expect([actor.state, scene.creations()]).toEqual(['DEAD', [0]]);
    if (how === 'it ends itself') expect(scene.client.failed).toEqual(['ACTOR_DIED']);
    // It ended when its last call had.
    if (how === 'nobody has a handle') expect(call.answers).toEqual(['value']);
    if (how !== 'its owner ends') scene.expectNothingLeft();
  });

  it.each(['it is killed', 'its owner ends', 'its constructor throws this time'])('11: RESTARTING → DEAD: %s', (how) => {
    const scene = new Scene({ maxRestarts: 5 });
    const id = scene.create(DO.HANG);
    const actor = scene.actor(id);
    scene.crash(id);
    expect(actor.state).toBe('RESTARTING');
    if (how === 'its constructor throws this time') {
      scene.settle();
      const slot = actor.slot!;
      scene.node.core.slotFailed(slot, { code: 'WORKER_DIED', message: 'gone', stack: '' }, scene.world.nowMs);
      scene.world.drain(scene.node);
      scene.kill(id);
    } else if (how === 'it is killed') scene.kill(id);
    else scene.expectNothingLeft();
    expect(actor.state).toBe('DEAD');
    if (how !== 'its owner ends') scene.expectNothingLeft();
  });
});

it('an actor is not put into a process in which an isolate has just run out of memory', () => {
  const scene = new Scene({});
  const first = scene.create(DO.RETURN);
  scene.settle();
  const { worker, slot } = scene.actor(first);
  const neighbour = scene.create(DO.RETURN);
  scene.settle();
  expect(scene.actor(neighbour).worker).toBe(worker);
  scene.node.core.slotFailed(slot!, { code: 'OUT_OF_MEMORY', message: 'gone', stack: '' }, scene.world.nowMs);
  scene.world.drain(scene.node);
  const next = scene.create(DO.RETURN);
  scene.settle();
  expect([scene.actor(first).state, scene.actor(neighbour).state, scene.actor(next).state]).toEqual(['DEAD', 'ALIVE', 'ALIVE']);
  expect(scene.actor(neighbour).worker).toBe(worker);
  expect(scene.actor(next).worker).not.toBe(worker);
});

describe('callers of an actor that restarts', () => {
  it('with retries: calls under way come first, in their order, then those that waited', () => {
    const scene = new Scene({ maxRestarts: -1, maxTaskRetries: 3 });
    const id = scene.create(DO.RETURN);
    const hung = scene.call(id, DO.HANG);
    const behind = [1, 2, 3].map(() => scene.call(id, DO.HANG));
    scene.settle();
    scene.crash(id);
    const during = [1, 2].map(() => scene.call(id, DO.HANG));
    scene.settle();
    scene.crash(id);
    for (let i = 0; i < 40; i++) scene.world.tick();
    scene.settle();
    for (const { slot, node, exec } of [...scene.world.hanging]) scene.world.answerHanging(node, slot, exec);
    scene.settle();
    expect([hung, ...behind, ...during].map((c) => c.answers[0])).toEqual(Array.from({ length: 6 }, () => 'value'));
    const calls = scene.world.ran.filter((r) => r.kind === CALL_KIND.ACTOR_METHOD);
    // Four were under way when the first life ended, six when the second did.
    expect(calls.map((r) => r.attempt)).toEqual([0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 2, 2, 2, 2, 1, 1]);
    const order = calls.slice(4, 10).map((r) => r.seq);
    expect(order).toEqual([...order].sort((a, b) => a - b));
    expect(calls.slice(10).map((r) => r.seq)).toEqual(order);
    expect(calls.slice(0, 4).map((r) => r.seq)).toEqual(order.slice(0, 4));
    scene.expectNothingLeft();
  });

  it('without: what comes while it restarts fails at once with ACTOR_UNAVAILABLE; what had not been sent waits', () => {
    const scene = new Scene({ maxRestarts: 1 });
    const id = scene.create(DO.RETURN);
    const argument = scene.client.call(OP.SUBMIT, 1, DO.HANG);
    const unsent = scene.client.get([scene.client.call(OP.CALL_ACTOR, CALL, DO.RETURN, [argument], id)]);
    scene.settle();
    scene.crash(id);
    const during = scene.call(id);
    const retried = scene.call(id, DO.RETURN, RETRIED);
    const pushed = [...scene.world.hanging];
    while (during.answers[0] === undefined) scene.world.step();
    expect(scene.client.failed).toEqual(['ACTOR_UNAVAILABLE']);
    for (const { slot, node, exec } of pushed) scene.world.answerHanging(node, slot, exec);
    scene.settle();
    expect([unsent.answers, retried.answers, scene.actor(id).state]).toEqual([['value'], ['value'], 'ALIVE']);
    scene.expectNothingLeft();
  });

  it('a call that took its worker with it as often as it may be retried fails, and the actor goes on', () => {
    const scene = new Scene({ maxRestarts: -1, maxTaskRetries: 2 });
    const id = scene.create(DO.RETURN);
    const poison = scene.call(id, DO.DIE);
    for (let i = 0; i < 100; i++) {
      scene.settle();
      scene.world.tick();
    }
    scene.settle();
    const after = scene.call(id);
    scene.settle();
    expect([poison.answers, after.answers, scene.client.failed, scene.actor(id).restarts]).toEqual([['failed'], ['value'], ['ACTOR_UNAVAILABLE'], 3]);
    scene.expectNothingLeft();
  });

  it('over maxPendingCalls: RESOURCE_EXHAUSTED at once, and room again when a call has ended', () => {
    const scene = new Scene({ maxPendingCalls: 2 });
    const id = scene.create(DO.RETURN);
    const held = [scene.call(id, DO.HANG), scene.call(id, DO.HANG)];
    scene.settle();
    const over = scene.call(id);
    scene.settle();
    expect([over.answers, scene.client.failed]).toEqual([['failed'], ['RESOURCE_EXHAUSTED']]);
    for (const { slot, node, exec } of [...scene.world.hanging]) scene.world.answerHanging(node, slot, exec);
    scene.settle();
    const next = scene.call(id);
    scene.settle();
    expect([...held, next].map((c) => c.answers[0])).toEqual(['value', 'value', 'value']);
    scene.expectNothingLeft();
  });
});

it('no actor is seated in a process whose end is under way for having been idle', () => {
  const scene = new Scene({ maxRestarts: 0 });
  const first = scene.create(DO.RETURN);
  const { worker } = scene.actor(first);
  scene.kill(first);
  scene.world.nowMs += 60_000;
  scene.world.tick();
  expect(worker?.state, 'its end is under way, not over').toBe('ALIVE');
  const id = scene.client.call(OP.CREATE_ACTOR, CLASS, DO.RETURN);
  const call = scene.client.get([scene.client.call(OP.CALL_ACTOR, CALL, DO.RETURN, [], id)]);
  scene.node.core.clientBatch(scene.client.channel, scene.client.out.take(), scene.world.nowMs);
  scene.world.drain(scene.node);
  scene.settle();
  expect([worker?.state, scene.actor(id).state, call.answers, scene.actor(id).worker === worker]).toEqual(['DEAD', 'ALIVE', ['value'], false]);
  scene.expectNothingLeft();
});

describe('handles', () => {
  it('in another object, task or actor keep an actor, also when the task that made it has ended', () => {
    const scene = new Scene({ maxRestarts: 1 });
    const keeper = scene.create(DO.RETURN);
    const id = scene.create(DO.RETURN);
    const done = scene.client.call(OP.CALL_ACTOR, CALL, DO.RETURN, [], keeper, 1, [id]);
    scene.client.get([done]);
    scene.settle();
    scene.client.release([id]);
    scene.settle();
    expect(scene.actor(id).state, 'the keeper may hold it').toBe('ALIVE');
    scene.kill(keeper);
    expect(scene.actor(id).state).toBe('DEAD');
    scene.expectNothingLeft();
  });

  it('of detached actors keep nothing: those live on without their driver, and restart', () => {
    const scene = new Scene({ name: 'lasting', detached: true, maxRestarts: 1 });
    const id = scene.create(DO.RETURN);
    const actor = scene.actor(id);
    scene.client.release([id]);
    scene.settle();
    scene.node.core.closeChannel(scene.client.channel);
    scene.world.drain(scene.node);
    scene.settle();
    expect(actor.state).toBe('ALIVE');
    scene.world.killWorker(scene.node, actor.worker!, false);
    scene.world.run(20_000);
    expect([actor.state, actor.restarts]).toEqual(['ALIVE', 1]);
    scene.node.core.stopJob(actor.job.id, 'stopped');
    scene.world.drain(scene.node);
    scene.world.run(20_000);
    expect(actor.state).toBe('DEAD');
    expect(scene.node.core.state.tenants.get(1)?.heldBytes).toBe(0);
  });

  it('another tenant cannot kill, restart or keep an actor', () => {
    const scene = new Scene({ maxRestarts: 5 });
    const id = scene.create(DO.RETURN);
    const thief = scene.world.client(0, 2);
    for (const restart of [0, 1]) thief.out.begin(OP.KILL).u32(0).u32(90 + restart).raw(id).u8(restart).end();
    thief.release([id]);
    thief.flush();
    scene.settle();
    expect([scene.actor(id).state, scene.actor(id).restarts]).toEqual(['ALIVE', 0]);
  });
});

describe('an actor on another node', () => {
  function away(options: object, nodes = 2): { scene: Scene; id: Uint8Array } {
    // Its own node has no cpu left for it.
    const scene = new Scene({ cpus: 2, ...options }, { nodes, cpus: 2, seed: 3 });
    const blocker = scene.client.call(OP.SUBMIT, 1, DO.HANG);
    scene.settle();
    scene.client.get([blocker]);
    const id = scene.create(DO.RETURN);
    expect(scene.actor(id).upstream?.nodeNumber).toBe(2);
    return { scene, id };
  }

  it('is created and called there', () => {
    const { scene, id } = away({});
    const call = scene.call(id);
    scene.settle();
    expect([scene.actor(id).state, call.answers, scene.world.ran.at(-1)?.node]).toEqual(['ALIVE', ['value'], 2]);
    scene.expectNothingLeft();
  });

  it('its worker dies there: its owner is told and restarts it, calls with retries in their order', () => {
    const { scene, id } = away({ maxRestarts: 2, maxTaskRetries: 1 });
    const calls = [scene.call(id, DO.HANG), scene.call(id, DO.HANG)];
    scene.settle();
    scene.crash(id, scene.world.nodes[1]);
    scene.pass();
    expect([scene.actor(id).state, scene.actor(id).restarts]).toEqual(['ALIVE', 1]);
    for (const { slot, node, exec } of [...scene.world.hanging]) if (node !== scene.node) scene.world.answerHanging(node, slot, exec);
    scene.settle();
    expect(calls.map((c) => c.answers[0])).toEqual(['value', 'value']);
    const seqs = scene.world.ran.filter((r) => r.kind === CALL_KIND.ACTOR_METHOD).map((r) => r.attempt);
    expect(seqs.length).toBe(4);
    scene.expectNothingLeft();
  });

  it('its node is lost: it starts on a third one, and calls without retries fail with ACTOR_UNAVAILABLE', () => {
    const { scene, id } = away({ maxRestarts: 1 }, 3);
    const hung = scene.call(id, DO.HANG);
    scene.settle();
    scene.world.loseNode(scene.world.nodes[1] as SimNode);
    scene.settle();
    const after = scene.call(id);
    scene.settle();
    expect([scene.actor(id).state, scene.actor(id).upstream?.nodeNumber, hung.answers, scene.client.failed, after.answers]).toEqual(['ALIVE', 3, ['failed'], ['ACTOR_UNAVAILABLE'], ['value']]);
  });

  it('its node is lost and it may not restart: dead, for the callers too', () => {
    const { scene, id } = away({});
    const hung = scene.call(id, DO.HANG);
    scene.settle();
    scene.world.loseNode(scene.world.nodes[1] as SimNode);
    scene.settle();
    expect([scene.actor(id).state, hung.answers, scene.client.failed]).toEqual(['DEAD', ['failed'], ['ACTOR_DIED']]);
  });

  it('ends itself there, throws in its constructor there: final', () => {
    const { scene, id } = away({ maxRestarts: 5, maxTaskRetries: 5 });
    const last = scene.call(id, DO.EXIT);
    scene.settle();
    expect([scene.actor(id).state, scene.actor(id).restarts, last.answers, scene.client.failed]).toEqual(['DEAD', 0, ['failed'], ['ACTOR_DIED']]);
    const thrown = scene.create(DO.THROW);
    scene.pass();
    expect([scene.actor(thrown).state, scene.actor(thrown).restarts]).toEqual(['DEAD', 0]);
    scene.expectNothingLeft();
  });

  it('goes when nobody has a handle', () => {
    const { scene, id } = away({ maxRestarts: 5 });
    const actor = scene.actor(id);
    scene.client.release([id]);
    scene.settle();
    expect(actor.state).toBe('DEAD');
    for (const job of (scene.world.nodes[1] as SimNode).core.state.jobs.values()) expect(job.actors.size).toBe(0);
    scene.expectNothingLeft();
  });
});

describe.each([1, 2, 3])('under random crashes, %i raylets', (nodes) => {
  it.each([1, 2, 3, 4, 5, 6, 7, 8])('every call is answered once, and calls of a caller that ran last ran in order (seed %i)', (seed) => {
    const scene = new Scene({ maxRestarts: -1, maxTaskRetries: -1, cpus: 0.5 }, { nodes, cpus: 2, seed: seed * 31 + nodes });
    const { world, client } = scene;
    const ids = [0, 1, 2].map(() => client.call(OP.CREATE_ACTOR, CLASS, DO.RETURN));
    client.flush();
    const asked: { answers: (string | undefined)[] }[] = [];
    const calledOf = new Map<number, number>();
    for (let round = 0; round < 40; round++) {
      for (let k = 0; k < 3; k++) {
        const which = Math.floor(world.random() * 3);
        calledOf.set(client.nextSeq, which);
        asked.push(scene.call(ids[which] as Uint8Array));
      }
      for (let s = Math.floor(world.random() * 40); s > 0; s--) world.step();
      const node = world.nodes[Math.floor(world.random() * nodes)] as SimNode;
      const worker = world.random() < 0.3 ? world.anyWorker(node) : undefined;
      if (worker !== undefined) world.killWorker(node, worker, false);
    }
    for (let i = 0; i < 4_000 && asked.some((c) => c.answers[0] === undefined); i++) {
      world.run(200_000);
      world.tick();
    }
    expect(asked.map((c) => c.answers[0])).toEqual(asked.map(() => 'value'));
    for (const id of ids) expect(scene.actor(id).state).toBe('ALIVE');
    const lastRun = new Map<number, number>();
    if (nodes === 1) for (const [at, { kind, seq }] of world.ran.entries()) if (kind === CALL_KIND.ACTOR_METHOD) lastRun.set(seq, at);
    for (const which of [0, 1, 2]) {
      const seqs = [...lastRun].filter(([seq]) => calledOf.get(seq) === which).sort(([, a], [, b]) => a - b).map(([seq]) => seq);
      expect(seqs).toEqual([...seqs].sort((a, b) => a - b));
    }
    scene.expectNothingLeft();
  });
});
