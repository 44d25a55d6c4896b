/**
 * Objects of another node and a rule inside the tenant: only the owner knows labels, so what it gave to one principal must never answer
 * another one here, whoever came first, by whatever call, and whatever this node has of it already.
 */
import { describe, expect, it } from 'vitest';
import { CALL_KIND, FrameWriter, OP } from '../../src/base/frame.ts';
import { makeId } from '../../src/raylet/core/core.ts';
import { DO, World, type SimClient } from '../sim/world.ts';

const ACME = 1;
const [TASK, SECRET, CLASS, METHOD, HANG] = [1, 2, 3, 4, 5];

/** dev, and what dev's jobs run, may not read what is labelled secret. */
function world(seed: number): { world: World; owner: SimClient; ana: SimClient; dev: SimClient } {
  const w = new World({
    nodes: 2, cpus: 4, seed,
    decide: ({ action, principal, resource }) => action !== 'object.get' || resource.attributes.label !== 'secret' || (principal.submitter?.name ?? principal.name) !== 'dev',
  });
  const [owner, ana, dev] = [w.client(0, ACME), w.client(1, ACME), w.client(1, ACME, 'dev')];
  for (const client of [owner, ana, dev]) {
    client.define(TASK, CALL_KIND.TASK, { maxRetries: 0 });
    client.define(SECRET, CALL_KIND.TASK, { label: 'secret' });
    client.define(CLASS, CALL_KIND.ACTOR_CLASS, { cpus: 0 }, 'Counter');
    client.define(METHOD, CALL_KIND.ACTOR_METHOD, {}, 'add');
    client.define(HANG, CALL_KIND.TASK, {});
  }
  return { world: w, owner, ana, dev };
}

const go = (w: World): void => {
  for (const client of w.clients) client.flush();
  w.run(20_000);
};
const answers = (client: SimClient): (string | undefined)[] => [...client.calls.values()].flatMap((call) => call.answers);

/** ana holds what was fetched for her: it is inside a value of hers. */
function keep(client: SimClient, ref: Uint8Array): void {
  client.out.begin(OP.PUT).u32(0).u32(client.nextSeq++).refs([ref]).raw(Uint8Array.of(0xf6)).end();
}

describe.each([['inline', DO.RETURN], ['as a file', DO.LARGE]])('a labelled object of another node, %s', (_form, what) => {
  it.each(Array.from({ length: 12 }, (_, i) => i))('is decided for each of two principals that wait at the same time (order %i)', (seed) => {
    const { world: w, owner, ana, dev } = world(seed);
    const ref = owner.call(OP.SUBMIT, SECRET, what);
    // Its owner knows of it; its value is still to come.
    owner.node.core.clientBatch(owner.channel, owner.out.take(), w.nowMs);
    w.drain(owner.node);
    for (const client of seed % 2 === 0 ? [ana, dev] : [dev, ana]) client.get([ref]);
    go(w);
    expect([answers(ana), answers(dev), dev.failed]).toEqual([['value'], ['failed'], ['DENIED']]);
  });

  it.each(['get', 'wait and get', 'argument of a task', 'argument of an actor', 'argument of an actor call', 'inside a value that may be read', 'get after a release'] as const)('is not read by %s once it is here for another principal', (how) => {
    const { world: w, owner, ana, dev } = world(7);
    const ref = owner.call(OP.SUBMIT, SECRET, what);
    keep(ana, ref);
    ana.get([ref]);
    go(w);
    expect(answers(ana)).toEqual(['value']);
    const actor = dev.call(OP.CREATE_ACTOR, CLASS, DO.RETURN);
    let asked = [ref];
    if (how === 'wait and get') {
      dev.out.begin(OP.WAIT).u32(0).u32(dev.nextRequest++).u32(1).u32(60_000).refs([ref]).end();
      go(w);
    } else if (how === 'argument of a task') asked = [dev.call(OP.SUBMIT, TASK, DO.RETURN, [ref])];
    else if (how === 'argument of an actor') asked = [dev.call(OP.CREATE_ACTOR, CLASS, DO.RETURN, [ref])];
    else if (how === 'argument of an actor call') asked = [dev.call(OP.CALL_ACTOR, METHOD, DO.RETURN, [ref], actor)];
    else if (how === 'inside a value that may be read') {
      // ana's value on this node contains the ref; dev may read that one, and is lent what is in it.
      dev.get([makeId(ana.prefix, 1)]);
      go(w);
      expect(answers(dev)).toEqual(['value']);
      dev.calls.clear();
    } else if (how === 'get after a release') dev.release([ref]);
    dev.get(asked);
    go(w);
    expect([answers(dev), dev.failed]).toEqual([['failed'], ['DENIED']]);
    // And the other way round: what dev was denied is no answer for ana.
    ana.get([ref]);
    go(w);
    expect([answers(ana), ana.failed]).toEqual([['value', 'value'], []]);
  });

  it('is not read by the code of a job whose submitter may not, and is by one whose may', () => {
    const { world: w, owner, ana, dev } = world(8);
    const ref = owner.call(OP.SUBMIT, SECRET, what);
    keep(ana, ref);
    ana.get([ref]);
    const codes = [dev, ana].map((client) => {
      client.call(OP.SUBMIT, HANG, DO.HANG);
      go(w);
      const hanging = [...w.hanging].find((h) => h.slot.job === client.channel.job);
      if (hanging === undefined) throw new Error('it does not run');
      const { slot, exec, node } = hanging;
      const guest = new FrameWriter();
      guest.begin(OP.DEFINE).u32(1).u8(CALL_KIND.TASK).raw(new Uint8Array(32).fill(9)).str('f').str('').text('{}').end();
      guest.begin(OP.SUBMIT).u32(exec).u32(1).u32(1).u16(1).u16(0).raw(ref).refs([]).raw(Uint8Array.of(DO.RETURN)).end();
      node.core.guestBatch(slot, guest.take(), w.nowMs);
      w.drain(node);
      go(w);
      return slot.channel.session.objects.get(1)?.failure?.code;
    });
    expect(codes).toEqual(['DENIED', undefined]);
  });

  it('by a call of an actor that another principal has there is read with the caller’s rights', () => {
    const { world: w, owner, ana, dev } = world(9);
    const ref = owner.call(OP.SUBMIT, SECRET, what);
    const actor = owner.call(OP.CREATE_ACTOR, CLASS, DO.RETURN);
    go(w);
    ana.get([ana.call(OP.CALL_ACTOR, METHOD, DO.RETURN, [ref], actor)]);
    dev.get([dev.call(OP.CALL_ACTOR, METHOD, DO.RETURN, [ref], actor)]);
    go(w);
    expect([answers(ana), answers(dev), dev.failed]).toEqual([['value'], ['failed'], ['DENIED']]);
  });
});

it('each principal’s own is counted, given back, and gone when nobody needs it', () => {
  const { world: w, owner, ana, dev } = world(10);
  const ref = owner.call(OP.SUBMIT, TASK, DO.RETURN);
  const sessions = ana.node.core.state.sessions.size;
  for (const client of [ana, dev]) client.get([ref, ref]);
  go(w);
  expect([answers(ana), answers(dev)]).toEqual([['value', 'value'], ['value', 'value']]);
  expect([ana.node.core.state.sessions.size, ana.channel.job.tenant.entries]).toEqual([sessions, 0]);
  // A ref in a value that another principal made: who reads that holds the object for itself, and nothing stays lent when it is given back.
  keep(ana, ref);
  go(w);
  dev.get([makeId(ana.prefix, 1)]);
  go(w);
  expect([...dev.channel.borrowed.keys()].map((entry) => entry.session.reader)).toEqual([dev.channel.principal.spiffeId]);
  dev.release([ref]);
  ana.release([makeId(ana.prefix, 1)]);
  go(w);
  expect([ana.node.core.state.sessions.size, ana.channel.job.tenant.entries]).toEqual([sessions, 0]);
});

it('what the submitter calls and what its tasks call run elsewhere as who they are, also one after the other', () => {
  const seen: string[] = [];
  const w = new World({
    nodes: 2, cpus: 1, seed: 11,
    decide: ({ action, principal }) => {
      if (action === 'task.submit') seen.push(principal.kind);
      return true;
    },
  });
  const ana = w.client(0, ACME);
  ana.define(TASK, CALL_KIND.TASK, {});
  ana.call(OP.SUBMIT, TASK, DO.HANG);
  go(w);
  const { slot, exec, node } = [...w.hanging][0]!;
  // This node is full: both go to the other one, by the same class.
  const guest = new FrameWriter();
  guest.begin(OP.DEFINE).u32(1).u8(CALL_KIND.TASK).raw(new Uint8Array(32).fill(9)).str('f').str('').text('{}').end();
  guest.begin(OP.SUBMIT).u32(exec).u32(1).u32(1).u16(0).refs([]).raw(Uint8Array.of(DO.RETURN)).end();
  seen.length = 0;
  ana.get([ana.call(OP.SUBMIT, TASK, DO.RETURN)]);
  ana.flush();
  w.run(20_000);
  node.core.guestBatch(slot, guest.take(), w.nowMs);
  w.drain(node);
  w.tick();
  w.run(20_000);
  // Once here and once there, each.
  expect(seen).toEqual(['user', 'user', 'job', 'job']);
});
