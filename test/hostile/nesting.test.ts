/** A worker that lies about which call makes its calls: the raylet counts the depth of nested calls by its own books. */
import { describe, expect, it } from 'vitest';
import { CALL_KIND, FrameWriter, OP } from '../../src/base/frame.ts';
import { MAX_TASK_DEPTH } from '../../src/base/limits.ts';
import { CHANNEL_KIND, type Slot, type Task } from '../../src/raylet/core/state.ts';
import { DO, World, type SimClient } from '../sim/world.ts';

const ACME = 1;
const CODE = new Uint8Array(32).fill(9);

function define(out: FrameWriter, template: number, kind: number): void {
  out.begin(OP.DEFINE).u32(template).u8(kind).raw(CODE).str('f').str('').text('{"cpus":0}').end();
}

/** A worker's frames, as hostile native code would write them. */
function say(client: SimClient, slot: Slot, write: (out: FrameWriter) => void): void {
  const out = new FrameWriter();
  write(out);
  client.node.core.guestBatch(slot, out.take(), client.world.nowMs);
  client.world.drain(client.node);
  client.world.run(20_000);
}

const codeOf = (slot: Slot, seq: number): string | undefined => slot.channel.session.objects.get(seq)?.failure?.code;

describe.each([['none', 0], ['one that never was', 4_000_000_000], ['one that has ended', 1]])('calls that name as their parent %s', (_name, parent) => {
  it('count as nested in the deepest call that the slot ever ran: tasks', () => {
    const world = new World({ nodes: 1, cpus: 1, seed: 1 });
    const client = world.client(0, ACME);
    client.define(1, CALL_KIND.TASK, { cpus: 0 });
    client.call(OP.SUBMIT, 1, DO.RETURN);
    client.flush();
    world.run(1_000);
    const slot = [...[...client.node.core.state.workers.values()][0]!.slots.values()][0] as Slot;
    say(client, slot, (out) => define(out, 1, CALL_KIND.TASK));
    // Every task runs on this one slot, and ends before the next is submitted.
    const codes: (string | undefined)[] = [];
    for (let seq = 1; seq <= MAX_TASK_DEPTH + 3; seq++) {
      say(client, slot, (out) => out.begin(OP.SUBMIT).u32(parent).u32(seq).u32(1).u16(0).refs([]).raw(Uint8Array.of(DO.RETURN)).end());
      codes.push(codeOf(slot, seq));
    }
    expect(codes).toEqual([...Array.from({ length: MAX_TASK_DEPTH }, () => undefined), 'RESOURCE_EXHAUSTED', 'RESOURCE_EXHAUSTED', 'RESOURCE_EXHAUSTED']);
    // A driver's call on the same slot is as deep as ever.
    client.get([client.call(OP.SUBMIT, 1, DO.RETURN)]);
    client.flush();
    world.run(1_000);
    expect([...client.calls.values()].flatMap((c) => c.answers)).toEqual(['value']);
  });

  it('count as nested in the deepest call that the slot ever ran: actors that make actors', () => {
    const world = new World({ nodes: 1, cpus: 1, seed: 2 });
    const client = world.client(0, ACME);
    client.define(2, CALL_KIND.ACTOR_CLASS, { cpus: 0 }, 'Counter');
    client.call(OP.CREATE_ACTOR, 2, DO.RETURN);
    client.flush();
    world.run(1_000);
    const actors = client.channel.job.actors;
    let made = 0;
    for (; made < 3 * MAX_TASK_DEPTH; made++) {
      const { slot } = [...actors].at(-1)!;
      say(client, slot as Slot, (out) => {
        define(out, 1, CALL_KIND.ACTOR_CLASS);
        out.begin(OP.CREATE_ACTOR).u32(parent).u32(1).u32(1).u16(0).refs([]).raw(Uint8Array.of(DO.RETURN)).end();
      });
      if (codeOf(slot as Slot, 1) === undefined) continue;
      expect(codeOf(slot as Slot, 1)).toBe('RESOURCE_EXHAUSTED');
      break;
    }
    expect(made).toBe(MAX_TASK_DEPTH);
  });
});

it('a driver cannot make its calls deeper or shallower by a parent', () => {
  const world = new World({ nodes: 1, cpus: 1, seed: 3 });
  const client = world.client(0, ACME);
  client.define(1, CALL_KIND.TASK, {});
  client.out.begin(OP.SUBMIT).u32(1_000).u32(1).u32(1).u16(0).refs([]).raw(Uint8Array.of(DO.HANG)).end();
  client.flush();
  world.run(1_000);
  expect([...world.hanging].map((h) => h.slot.execs.get(h.exec)?.depth)).toEqual([0]);
});

describe('calls of another raylet', () => {
  const peer = (depth: number, ...named: number[]): (number | string | undefined)[] => {
    const world = new World({ nodes: 1, cpus: 4, seed: 4 });
    const client = world.client(0, ACME);
    client.flush();
    world.run(1_000);
    const { core } = client.node;
    const { job } = client.channel;
    const channel = core.openChannel(CHANNEL_KIND.PEER, job, job.principal, depth, {});
    const out = new FrameWriter();
    define(out, 1, CALL_KIND.TASK);
    // In the high octet; the attempt is in the others, and says nothing of depth. Behind the template: how deep it may get, by what it says, and its origin.
    named.forEach((n, i) => out.begin(OP.SUBMIT).u32(((n << 24) | 0xff_fff7) >>> 0).u32(i + 1).u32(1).u8(255).u32(i + 1).u16(0).refs([]).raw(Uint8Array.of(DO.HANG)).end());
    core.clientBatch(channel, out.take(), world.nowMs);
    world.drain(client.node);
    world.run(1_000);
    return named.map((_, i) => {
      const entry = channel.session.objects.get(i + 1);
      return entry?.failure?.code ?? (entry?.producer as Task).depth;
    });
  };

  it('are as deep as they say, never less deep than their channel, and never beyond the limit', () => {
    expect(peer(3, 0, 2, 3, 7, MAX_TASK_DEPTH, MAX_TASK_DEPTH + 1, 255)).toEqual([3, 3, 3, 7, MAX_TASK_DEPTH, 'RESOURCE_EXHAUSTED', 'RESOURCE_EXHAUSTED']);
    expect(peer(65_535, 0)).toEqual(['RESOURCE_EXHAUSTED']);
  });

  it('keep their depth when they are forwarded over a channel that shallower ones opened', () => {
    const world = new World({ nodes: 2, cpus: 1, seed: 5 });
    const client = world.client(0, ACME);
    client.define(1, CALL_KIND.TASK, {});
    client.call(OP.SUBMIT, 1, DO.HANG);
    client.flush();
    world.run(1_000);
    const { slot, exec } = [...world.hanging][0]!;
    const submit = (seq: number, what: number): void => say(client, slot, (out) => {
      if (seq === 1) out.begin(OP.DEFINE).u32(1).u8(CALL_KIND.TASK).raw(CODE).str('f').str('').text('{}').end();
      out.begin(OP.SUBMIT).u32(exec).u32(seq).u32(1).u16(0).refs([]).raw(Uint8Array.of(what)).end();
    });
    // This node is full. The first opens the channel there; the next is made by the same call, which the books now show ten deep.
    submit(1, DO.RETURN);
    Object.assign(slot.execs.get(exec) as Task, { depth: 10 });
    world.tick();
    submit(2, DO.HANG);
    expect([...world.hanging].map((h) => h.slot.execs.get(h.exec)?.depth)).toEqual([10, 11]);
  });
});
