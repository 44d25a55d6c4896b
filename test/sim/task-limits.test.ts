/** Tries, fan-out and depth of tasks, in clusters of raylet cores. */
import { describe, expect, it } from 'vitest';
import { CALL_KIND, FrameWriter, OP } from '../../src/base/frame.ts';
import { MAX_TASK_DEPTH } from '../../src/base/limits.ts';
import { OBJECT_STATUS, type Slot } from '../../src/raylet/core/state.ts';
import { DO, World, type SimClient } from './world.ts';

function world(options: object, settings: { nodes?: number; cpus?: number; seed?: number } = {}): { world: World; client: SimClient } {
  const made = new World({ nodes: settings.nodes ?? 1, cpus: settings.cpus ?? 1, seed: settings.seed ?? 3 });
  const client = made.client(0, 1);
  client.define(1, CALL_KIND.TASK, options);
  client.define(2, CALL_KIND.TASK, {});
  return { world: made, client };
}

/** Until every get is answered; returns how long that took. */
function settle(made: World, client: SimClient, ms = 200_000): number {
  const from = made.nowMs;
  client.flush();
  for (let i = 0; i < ms / 5; i++) {
    made.run(100_000);
    if ([...client.calls.values()].every((call) => !call.answers.includes(undefined))) break;
    made.tick();
  }
  made.run(100_000);
  return made.nowMs - from;
}

const attempts = (made: World): number[] => made.ran.map((run) => run.attempt);

describe('a task that fails', () => {
  it('is not tried again unless its options say so', () => {
    for (const options of [{}, { retryOn: [] }, { retryOn: ['TypeError', 'TIMEOUT'] }]) {
      const { world: made, client } = world(options);
      client.get([client.call(OP.SUBMIT, 1, DO.THROW)]);
      settle(made, client);
      expect([client.failed, attempts(made)]).toEqual([['TASK_FAILED'], [0]]);
    }
  });

  it('is tried as often as it may be, after a while that doubles', () => {
    const { world: made, client } = world({ retryOn: ['TASK_FAILED'], maxRetries: 4, retryDelayMs: 1_000 });
    client.get([client.call(OP.SUBMIT, 1, DO.THROW)]);
    const ms = settle(made, client);
    expect([client.failed, attempts(made)]).toEqual([['TASK_FAILED'], [0, 1, 2, 3, 4]]);
    // 1 + 2 + 4 + 8 seconds, of each a half at least.
    expect(ms).toBeGreaterThanOrEqual(7_500);
    expect(ms).toBeLessThan(16_000);
  });

  it('whose isolate says that its class is named is tried again; one that says nothing is not', () => {
    const { world: made, client } = world({ retryOn: ['Transient'], maxRetries: 2, retryDelayMs: 0 });
    client.get([client.call(OP.SUBMIT, 1, DO.HANG)]);
    client.flush();
    made.run(10_000);
    const say = (...ops: number[]): void => {
      const [hanging] = made.hanging;
      if (hanging === undefined) throw new Error('nothing hangs');
      made.hanging.delete(hanging);
      const out = new FrameWriter();
      for (const op of ops) (op === OP.RETRY ? out.begin(op).u32(hanging.exec) : out.begin(op).u32(hanging.exec).str('TASK_FAILED').text('x').text('')).end();
      hanging.node.core.guestBatch(hanging.slot, out.take(), made.nowMs);
      made.drain(hanging.node);
      made.run(10_000);
    };
    say(OP.RETRY, OP.FAILURE);
    expect([client.failed, attempts(made)]).toEqual([[], [0, 1]]);
    say(OP.FAILURE);
    expect([client.failed, attempts(made)]).toEqual([['TASK_FAILED'], [0, 1]]);
  });

  it('by its time limit is tried again when that is named', () => {
    const { world: made, client } = world({ retryOn: ['TIMEOUT'], maxRetries: 2, timeoutMs: 50, retryDelayMs: 10 });
    client.get([client.call(OP.SUBMIT, 1, DO.HANG)]);
    settle(made, client);
    expect([client.failed, attempts(made)]).toEqual([['TIMEOUT'], [0, 1, 2]]);
  });

  it('shares its tries between lost workers and failures, and -1 has no end of them', () => {
    const { world: made, client } = world({ maxRetries: 2 });
    client.get([client.call(OP.SUBMIT, 1, DO.DIE)]);
    settle(made, client);
    expect([client.failed, attempts(made)]).toEqual([['WORKER_DIED'], [0, 1, 2]]);
    const endless = world({ maxRetries: -1, retryDelayMs: 1 });
    endless.client.get([endless.client.call(OP.SUBMIT, 1, DO.DIE)]);
    settle(endless.world, endless.client, 5_000);
    expect(endless.client.failed).toEqual([]);
    expect(attempts(endless.world).length).toBeGreaterThan(5);
  });

  it('is cancelled while it waits for its next try, and leaves nothing', () => {
    const { world: made, client } = world({ retryOn: ['TASK_FAILED'], maxRetries: 5, retryDelayMs: 60_000 });
    const ref = client.call(OP.SUBMIT, 1, DO.THROW);
    client.get([ref]);
    client.flush();
    made.run(10_000);
    const { state } = client.node.core;
    expect([client.failed, state.delayed.size]).toEqual([[], 1]);
    client.cancel(ref, false);
    client.flush();
    made.run(10_000);
    made.tick();
    expect([client.failed, state.delayed.size, client.channel.inFlight]).toEqual([['CANCELLED'], 0, 0]);
    expect(state.available).toEqual(state.config.total);
  });
});

/** The slot and exec of the first call that hangs, and a way to call from within it. */
function inside(made: World, client: SimClient): { slot: Slot; exec: number; submit(seq: number, parent?: number): void } {
  const [hanging] = made.hanging;
  if (hanging === undefined) throw new Error('nothing hangs');
  const { slot, exec } = hanging;
  let defined = false;
  return {
    slot, exec,
    submit: (seq, parent = exec) => {
      const out = new FrameWriter();
      if (!defined) out.begin(OP.DEFINE).u32(1).u8(CALL_KIND.TASK).raw(new Uint8Array(32).fill(9)).str('f').str('').text('{"cpus":0}').end();
      defined = true;
      out.begin(OP.SUBMIT).u32(parent).u32(seq).u32(1).u16(0).u32(0).raw(Uint8Array.of(DO.HANG, 7)).end();
      client.node.core.guestBatch(slot, out.take(), made.nowMs);
      made.drain(client.node);
      made.run(10_000);
    },
  };
}

const refusedIn = (slot: Slot, seq: number): string | undefined => {
  const entry = slot.channel.session.objects.get(seq);
  return entry?.status === OBJECT_STATUS.FAILED ? entry.failure?.code : undefined;
};

describe('a call that makes calls', () => {
  it('makes no more than its option allows at once', () => {
    const { world: made, client } = world({ maxFanOut: 3 });
    const ref = client.call(OP.SUBMIT, 1, DO.HANG);
    client.flush();
    made.run(10_000);
    const { slot, submit } = inside(made, client);
    for (let seq = 1; seq <= 5; seq++) submit(seq);
    expect([1, 2, 3, 4, 5].map((seq) => refusedIn(slot, seq))).toEqual([undefined, undefined, undefined, 'RESOURCE_EXHAUSTED', 'RESOURCE_EXHAUSTED']);
    // One ends: there is room for another.
    const child = [...made.hanging][1];
    if (child === undefined) throw new Error('no child hangs');
    made.hanging.delete(child);
    const out = new FrameWriter();
    out.begin(OP.RESULT).u32(child.exec).u8(1).u8(0).u32(0).bytes(Uint8Array.of(1)).end();
    child.node.core.guestBatch(child.slot, out.take(), made.nowMs);
    made.drain(child.node);
    submit(6);
    submit(7);
    expect([refusedIn(slot, 6), refusedIn(slot, 7)]).toEqual([undefined, 'RESOURCE_EXHAUSTED']);
    client.cancel(ref, true);
    client.flush();
  });

  it('makes none below the depth that its option allows', () => {
    const { world: made, client } = world({ maxDepth: 0 });
    client.call(OP.SUBMIT, 1, DO.HANG);
    client.flush();
    made.run(10_000);
    const { slot, submit } = inside(made, client);
    submit(1);
    expect(refusedIn(slot, 1)).toBe('RESOURCE_EXHAUSTED');
  });

  it('takes its depth along to another node', () => {
    const { world: made, client } = world({}, { nodes: 2, cpus: 1 });
    // One runs here, the other over there; what is made there is as deep as it would be here.
    for (let i = 0; i < 2; i++) client.call(OP.SUBMIT, 2, DO.HANG);
    client.flush();
    made.run(10_000);
    const there = [...made.hanging].find((h) => h.node !== client.node);
    if (there === undefined) throw new Error('nothing runs over there');
    const task = there.slot.execs.get(there.exec);
    const here = [...made.hanging].find((h) => h.node === client.node);
    const other = here?.slot.execs.get(here.exec)?.seq;
    expect([task?.depth, task?.depthLimit, task?.origin, task?.template.originHex]).toEqual([0, MAX_TASK_DEPTH, other === 1 ? 2 : 1, client.channel.session.prefixHex]);
  });

  it('cannot say where it comes from', () => {
    const { world: made, client } = world({});
    client.define(3, CALL_KIND.TASK, { origin: '00'.repeat(20) });
    client.get([client.call(OP.SUBMIT, 3, DO.RETURN)]);
    settle(made, client);
    expect(client.failed).toEqual(['INVALID_ARGUMENT']);
  });
});
