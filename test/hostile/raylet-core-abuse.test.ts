/** What a client or a worker that is native code can ask of a raylet's core with few octets: bounded in what it holds and sends, and never another tenant's harm. */
import { describe, expect, it } from 'vitest';
import type { AuditRecord, DecisionRecord } from '../../src/base/audit-record.ts';
import { BulkheadError, type ErrorCode } from '../../src/base/errors.ts';
import { CALL_KIND, FrameWriter, NO_ITEM, OP } from '../../src/base/frame.ts';
import { MAX_ANSWER_BYTES, MAX_BATCH_BYTES, MAX_CODE_BYTES, MAX_CODE_BYTES_PER_TENANT, MAX_FRAME_BYTES, MAX_HELD_BYTES_PER_TENANT, MAX_INLINE_BYTES, MAX_OBJECT_BYTES, MAX_OBJECTS_PER_TENANT, MAX_OWED_RECORDS_PER_TENANT, MAX_SCHEDULING_CLASSES_PER_TENANT, MAX_SESSIONS_PER_JOB, MAX_WAITING_PER_CHANNEL } from '../../src/base/limits.ts';
import { makeId } from '../../src/raylet/core/core.ts';
import { principalFromSpiffeId } from '../../src/base/principal.ts';
import { CHANNEL_KIND, type TenantState } from '../../src/raylet/core/state.ts';
import { DO, SimLog, World, type SimClient } from '../sim/world.ts';

const ACME = 1;
const GLOBEX = 2;

function put(client: SimClient, octets: number): Uint8Array {
  const seq = client.nextSeq++;
  client.out.begin(OP.PUT).u32(0).u32(seq).u32(0).raw(new Uint8Array(octets)).end();
  return makeId(client.prefix, seq);
}

/** One node, a client of each tenant, definitions made. */
function world(options: { seed: number; cpus?: number }): { world: World; acme: SimClient; globex: SimClient } {
  const made = new World({ nodes: 1, cpus: options.cpus ?? 2, seed: options.seed });
  const [acme, globex] = [made.client(0, ACME), made.client(0, GLOBEX)] as const;
  for (const client of [acme, globex]) client.define(1, CALL_KIND.TASK, {});
  return { world: made, acme, globex };
}

const core = (client: SimClient) => client.node.core.state;
const send = (client: SimClient): number => client.node.core.clientBatch(client.channel, client.out.take(), client.world.nowMs);
const logOf = (client: SimClient): SimLog => client.node.logs.get(client.channel.job.tenant.number) as SimLog;

/** Octets that wait for a client, in its batches; each must fit a message. */
function waiting(client: SimClient): number {
  const batches = [...client.channel.cut.map((c) => c.batch.length), client.channel.out.length];
  for (const octets of batches) expect(octets).toBeLessThan(MAX_BATCH_BYTES);
  return batches.reduce((a, b) => a + b, 0);
}

describe('a frame that asks for much', () => {
  it.each([['small', 200], ['inline', 100_000], ['as large as a frame', MAX_FRAME_BYTES - 100]])('one %s value, many times: a few are on their way, all come', (_name, octets) => {
    const { world: w, globex } = world({ seed: 1 });
    const ref = put(globex, octets);
    send(globex);
    w.drain(globex.node);
    const many = Math.min(10_000, Math.ceil((40 * MAX_FRAME_BYTES) / octets / 4));
    globex.get(Array.from({ length: many }, () => ref));
    send(globex);
    expect(waiting(globex)).toBeLessThan(MAX_ANSWER_BYTES + 2 * MAX_FRAME_BYTES);
    // Somebody who reads gets everything, in order, exactly once.
    w.drain(globex.node);
    w.run(100_000);
    expect([...globex.calls.values()].flatMap((c) => c.answers).filter((a) => a === 'value')).toHaveLength(many);
    expect(core(globex).sessions.get(globex.channel.session.prefixHex)?.objects.get(1)?.pins).toBe(0);
  });

  it('values that end while answers wait are given back with the channel', () => {
    const { world: w, globex } = world({ seed: 2 });
    const ref = put(globex, 100_000);
    globex.get(Array.from({ length: 1_000 }, () => ref));
    globex.release([ref]);
    send(globex);
    expect(globex.channel.deferred.length).toBeGreaterThan(900);
    globex.node.core.closeChannel(globex.channel);
    w.drain(globex.node);
    expect(globex.channel.deferred).toEqual([]);
    expect(globex.channel.job.tenant.objectBytes).toBe(0);
  });

  it.each([['two as large as a frame', 2, MAX_FRAME_BYTES - 100], ['a thousand of 100 kB', 1_000, 100_000]])('arguments that no frame holds, %s: they go as files, and nobody else’s step fails', (_name, count, octets) => {
    const { world: w, acme, globex } = world({ seed: 3, cpus: 1 });
    const refs = Array.from({ length: count }, () => put(globex, octets));
    const result = globex.call(OP.SUBMIT, 1, DO.RETURN, refs);
    globex.get([result]);
    for (let out = globex.out.take(), at = 0; at < out.length; ) {
      // As a driver sends it: batches of some frames.
      let end = at;
      while (end < out.length && end - at < 8 * 2 ** 20) end += 4 + new DataView(out.buffer, out.byteOffset + end).getUint32(0, true);
      globex.node.core.clientBatch(globex.channel, out.subarray(at, end), w.nowMs);
      w.drain(globex.node);
      at = end;
    }
    acme.get([acme.call(OP.SUBMIT, 1, DO.RETURN)]);
    acme.flush();
    w.run(100_000);
    expect([...globex.calls.values(), ...acme.calls.values()].flatMap((c) => c.answers)).toEqual(['value', 'value']);
  });
});

describe('a log that cannot take more', () => {
  class FullLog extends SimLog {
    room = Number.POSITIVE_INFINITY;
    readonly code: ErrorCode;
    constructor(code: ErrorCode) {
      super();
      this.code = code;
    }
    override append(record: AuditRecord): number {
      if (this.records.length >= this.room) throw new BulkheadError(this.code, 'the audit log cannot keep up');
      return super.append(record);
    }
  }

  it.each(['RESOURCE_EXHAUSTED', 'QUOTA_EXCEEDED'] as const)('%s: ends the calls of its own tenant only, loses no record, and leaves nothing half done', (code) => {
    const { world: w, acme, globex } = world({ seed: 4 });
    w.drain(globex.node);
    const log = new FullLog(code);
    Object.assign(globex.channel.job.tenant, { log });
    globex.node.logs.set(GLOBEX, log);
    for (let i = 0; i < 50; i++) globex.call(OP.SUBMIT, 1, DO.HANG);
    send(globex);
    log.room = log.records.length;
    globex.call(OP.SUBMIT, 1, DO.RETURN);
    expect(() => send(globex)).toThrow('cannot keep up');
    // As the raylet does with a channel whose batch threw, and as its clock does.
    globex.node.core.closeChannel(globex.channel);
    globex.node.core.tick(w.nowMs + 50, () => 0);
    w.drain(globex.node);
    expect(globex.channel.inFlight).toBe(0);
    acme.get([acme.call(OP.SUBMIT, 1, DO.RETURN)]);
    acme.flush();
    log.room = Number.POSITIVE_INFINITY;
    w.run(100_000);
    w.tick();
    expect([...acme.calls.values()].flatMap((c) => c.answers)).toEqual(['value']);
    expect(log.records.filter((r) => r.type === 'lifecycle' && r.event === 'task.failed')).toHaveLength(50);
    expect(globex.channel.job.tenant.owed).toEqual([]);
  });

  it('is owed a bounded number of what neighbours try, and learns all of it as a count when it has room', () => {
    const { world: w, acme, globex } = world({ seed: 6 });
    w.drain(globex.node);
    const log = new FullLog('QUOTA_EXCEEDED');
    const victim = core(acme).tenants.get(GLOBEX) as TenantState;
    Object.assign(victim, { log });
    log.room = 0;
    const record: DecisionRecord = {
      type: 'decision', timeMs: w.nowMs, principal: acme.channel.principal.spiffeId, action: 'object.get', resourceKind: 'object', resource: 'x', index: -1, count: 1, allow: false, rule: 'wall', policyVersion: 1, detail: '',
    };
    const owed = victim.owed.length;
    for (let second = 0; second < 50; second++) {
      for (let i = 0; i < 40; i++) core(acme).tellOwner(victim, acme.channel.job.tenant, record);
      w.nowMs += 1_000;
      acme.node.core.tick(w.nowMs, () => 0);
    }
    expect(victim.owed.length - owed).toBeLessThan(4);
    // What a grant allows cannot go on for ever without its owner's record.
    while (victim.owed.length < MAX_OWED_RECORDS_PER_TENANT) core(acme).tellOwner(victim, acme.channel.job.tenant, { ...record, allow: true });
    expect(() => core(acme).tellOwner(victim, acme.channel.job.tenant, { ...record, allow: true })).toThrow('can record no more on this node');
    log.room = Number.POSITIVE_INFINITY;
    for (let i = 0; i < 3; i++) {
      w.nowMs += 2_000;
      acme.node.core.tick(w.nowMs, () => 0);
    }
    expect(victim.owed).toEqual([]);
    expect(victim.intruders.size).toBe(0);
    const told = log.records.filter((r): r is DecisionRecord => r.type === 'decision' && !r.allow);
    expect(told.reduce((n, r) => n + r.count, 0)).toBe(50 * 40);
  });
});

describe('tries at another tenant’s objects', () => {
  const foreign = (n: number): Uint8Array => {
    const id = new Uint8Array(24).fill(n & 0xff);
    new DataView(id.buffer).setUint32(0, ACME, true);
    new DataView(id.buffer).setUint32(4, 1, true);
    new DataView(id.buffer).setUint32(20, n, true);
    return id;
  };

  it.each(['GET', 'WAIT', 'SUBMIT', 'CANCEL', 'KILL', 'CALL_ACTOR'])('%s: the owner is told of the first few and the number of the rest, whoever tries how often', (op) => {
    const { world: w, globex } = world({ seed: 5 });
    globex.define(2, CALL_KIND.ACTOR_METHOD, {}, 'add');
    send(globex);
    const theirs = globex.node.logs.get(ACME) as SimLog;
    const own = logOf(globex);
    const before = theirs.records.length;
    const tries = 1_000;
    const ids = Array.from({ length: tries }, (_, i) => foreign(i));
    if (op === 'GET') globex.get(ids);
    else if (op === 'WAIT') globex.out.begin(OP.WAIT).u32(0).u32(1).u32(1).u32(0).refs(ids).end();
    else if (op === 'SUBMIT') globex.call(OP.SUBMIT, 1, DO.RETURN, ids);
    else for (const id of ids) {
      if (op === 'CANCEL') globex.cancel(id, false);
      else if (op === 'KILL') globex.out.begin(OP.KILL).u32(0).u32(7).raw(id).u8(0).end();
      else globex.call(OP.CALL_ACTOR, 2, DO.RETURN, [], id);
    }
    send(globex);
    w.drain(globex.node);
    expect(theirs.records.length - before).toBeLessThan(32);
    w.nowMs += 2_000;
    globex.node.core.tick(w.nowMs, () => 0);
    const told = theirs.records.slice(before).filter((r) => r.type === 'decision');
    expect(told.reduce((n, r) => n + r.count, 0)).toBe(tries);
    expect(told.every((r) => !r.allow && r.principal === globex.channel.principal.spiffeId)).toBe(true);
    // Who tried has every one of them.
    expect(own.records.filter((r) => r.type === 'decision' && !r.allow)).toHaveLength(tries);
    expect(globex.channel.job.tenant.intruders.size + (core(globex).tenants.get(ACME)?.intruders.size ?? 0)).toBe(0);
  });
});

describe('what a client names and makes', () => {
  const unknown = (n: number): Uint8Array => {
    const id = new Uint8Array(24).fill(n & 0xff);
    const view = new DataView(id.buffer);
    [GLOBEX, 2, n, n * 7].forEach((word, i) => view.setUint32(4 * i, word, true));
    return id;
  };
  const ids = Array.from({ length: 2_000 }, (_, i) => unknown(i));

  it.each<[string, (c: SimClient) => void]>([
    ['RELEASE', (c) => c.release(ids)],
    ['WAIT that does not wait', (c) => void c.out.begin(OP.WAIT).u32(0).u32(1).u32(2_000).u32(0).refs(ids).end()],
    ['KILL', (c) => void ids.forEach((id) => c.out.begin(OP.KILL).u32(0).u32(1).raw(id).u8(0).end())],
    ['CANCEL', (c) => ids.forEach((id) => c.cancel(id, true))],
    ['PUT that is released', (c) => {
      c.out.begin(OP.PUT).u32(0).u32(77).refs(ids).raw(Uint8Array.of(1)).end();
      c.release([makeId(c.prefix, 77)]);
    }],
  ])('%s of refs of another node that never existed leaves nothing', (_name, frames) => {
    const w = new World({ nodes: 2, cpus: 1, seed: 6 });
    const client = w.client(0, GLOBEX);
    send(client);
    const sessions = core(client).sessions.size;
    frames(client);
    send(client);
    expect([core(client).sessions.size, client.channel.job.tenant.entries]).toEqual([sessions, 0]);
  });

  it('a session goes with its last object, whatever it had: dead actors, borrowers, values inside values', () => {
    const { world: w, globex } = world({ seed: 7 });
    globex.define(4, CALL_KIND.ACTOR_CLASS, {}, 'Counter');
    const actor = globex.call(OP.CREATE_ACTOR, 4, DO.RETURN);
    globex.get([globex.call(OP.SUBMIT, 1, DO.RETURN, [put(globex, 10)]), actor]);
    globex.flush();
    w.run(10_000);
    // Its creation is over, so its arguments are not kept for as long as it lives.
    for (const a of globex.channel.session.actors.values()) expect([a.state, a.creation.batch.length]).toEqual(['ALIVE', 0]);
    const { tenant } = globex.channel.job;
    globex.node.core.closeChannel(globex.channel);
    w.drain(globex.node);
    w.run(10_000);
    w.tick();
    w.run(10_000);
    expect([...core(globex).sessions.values()].filter((x) => x.tenant === tenant && x.closed)).toEqual([]);
    expect([tenant.entries, tenant.heldBytes, tenant.classes]).toEqual([0, 0, 0]);
  });

  it('objects beyond the limit fail, far beyond it their channel ends, and others go on', () => {
    const { world: w, acme, globex } = world({ seed: 8 });
    const { tenant } = globex.channel.job;
    send(globex);
    tenant.entries += MAX_OBJECTS_PER_TENANT;
    const refs = [put(globex, 1), globex.call(OP.SUBMIT, 1, DO.RETURN)];
    globex.get(refs);
    acme.get([put(acme, 1)]);
    globex.flush();
    acme.flush();
    w.run(10_000);
    expect(globex.failed).toEqual(['RESOURCE_EXHAUSTED', 'RESOURCE_EXHAUSTED']);
    expect([...acme.calls.values()].flatMap((c) => c.answers)).toEqual(['value']);
    tenant.entries += MAX_OBJECTS_PER_TENANT;
    put(globex, 1);
    expect(() => send(globex)).toThrow('release refs');
  });

  it('calls that are not finished are counted by the octets that they keep, whole batches, and given back', () => {
    const { world: w, globex } = world({ seed: 9 });
    const { tenant } = globex.channel.job;
    globex.call(OP.SUBMIT, 1, DO.HANG);
    put(globex, 300_000);
    send(globex);
    expect(tenant.heldBytes).toBeGreaterThan(300_000);
    expect(globex.channel.heldBytes).toBe(tenant.heldBytes);
    tenant.heldBytes += MAX_HELD_BYTES_PER_TENANT;
    globex.get([globex.call(OP.SUBMIT, 1, DO.RETURN)]);
    send(globex);
    w.drain(globex.node);
    w.run(10_000);
    expect(globex.failed).toContain('RESOURCE_EXHAUSTED');
    globex.node.core.closeChannel(globex.channel);
    w.drain(globex.node);
    for (let i = 0; i < 3; i++) {
      w.tick();
      w.run(10_000);
    }
    expect(tenant.heldBytes).toBe(MAX_HELD_BYTES_PER_TENANT);
  });

  it('different resource requests are so many, of all jobs and channels of the tenant, until their jobs end', () => {
    const { world: w, globex, acme } = world({ seed: 10 });
    const other = w.client(0, GLOBEX);
    for (let i = 0; i < MAX_SCHEDULING_CLASSES_PER_TENANT; i++) (i % 2 === 0 ? globex : other).define(100 + i, CALL_KIND.TASK, { cpus: 1 + (i + 1) / 10_000 });
    send(globex);
    send(other);
    expect(globex.channel.job.tenant.classes).toBe(MAX_SCHEDULING_CLASSES_PER_TENANT);
    expect(globex.channel.refusedTemplates.size + other.channel.refusedTemplates.size).toBe(1);
    acme.define(2, CALL_KIND.TASK, { cpus: 0.25 });
    send(acme);
    expect(acme.channel.refusedTemplates.size).toBe(0);
    globex.node.core.closeChannel(globex.channel);
    other.node.core.closeChannel(other.channel);
    expect(globex.channel.job.tenant.classes).toBe(0);
    expect(core(acme).classes.size).toBe(2);
  });

  it.each([
    ['a task with a method', CALL_KIND.TASK, 'f', 'x'.repeat(60_000)], ['a class with a method', CALL_KIND.ACTOR_CLASS, 'f', 'm'], ['a method of a class with a long name', CALL_KIND.ACTOR_METHOD, 'x'.repeat(60_000), 'm'],
    ['a method of a class with two lines', CALL_KIND.ACTOR_METHOD, 'a\nb', 'm'], ['a task with a long name', CALL_KIND.TASK, 'x'.repeat(129), ''], ['a method without a name', CALL_KIND.ACTOR_METHOD, 'f', ''],
  ])('%s is no definition: what is in the record of every call is short and a name', (_name, kind, exportName, methodName) => {
    const { globex } = world({ seed: 11 });
    send(globex);
    const digest = new Uint8Array(32).fill(9);
    globex.out.begin(OP.DEFINE).u32(9).u8(kind).raw(digest).str(exportName).str(methodName).text('{}').end();
    send(globex);
    expect([globex.channel.templates.has(9), globex.channel.refusedTemplates.get(9)?.code]).toEqual([false, 'INVALID_ARGUMENT']);
  });
});

describe('credentials', () => {
  it('that name a job of another tenant, submitter or principal open nothing', () => {
    const { globex, acme } = world({ seed: 12 });
    const { job } = globex.channel;
    const node = globex.node.core;
    const stranger = principalFromSpiffeId('spiffe://sim/tenant/globex/user/eve');
    for (const [tenant, submitter, principal] of [[acme.channel.job.tenant, job.submitter, job.principal], [job.tenant, stranger, job.principal], [job.tenant, job.submitter, acme.channel.job.principal]] as const) {
      expect(() => node.ensureJob(job.id, tenant, submitter, principal, 'other', Number.POSITIVE_INFINITY, 1)).toThrow('not its own');
    }
    expect([job.credential, job.submitter.spiffeId]).toEqual(['credential', 'spiffe://sim/tenant/globex/user/ana']);
  });

  it('attach so many drivers of a job, and the next one when one has gone', () => {
    const { globex } = world({ seed: 13 });
    const { job, principal } = globex.channel;
    const node = globex.node.core;
    const open = () => node.openChannel(CHANNEL_KIND.DRIVER, job, principal, 0, {});
    const more = Array.from({ length: MAX_SESSIONS_PER_JOB - 1 }, open);
    expect(open).toThrow('attached to this node already');
    node.closeChannel(more[0] as ReturnType<typeof open>);
    expect(() => open()).not.toThrow();
  });
});

describe('what a worker that is native code says', () => {
  it('of a failure is short, or the worker has broken the protocol', () => {
    const { world: w, globex } = world({ seed: 14 });
    globex.call(OP.SUBMIT, 1, DO.HANG);
    globex.flush();
    w.run(10_000);
    const slot = [...core(globex).workers.values()].flatMap((worker) => [...worker.slots.values()])[0];
    if (slot === undefined) throw new Error('no slot');
    const out = new FrameWriter();
    out.begin(OP.FAILURE).u32(1).str('TASK_FAILED').text('x'.repeat(1_000_000)).text('').end();
    expect(() => globex.node.core.guestBatch(slot, out.take(), w.nowMs)).toThrow('exceeds the limit');
    for (let i = 0; i < 3; i++) globex.call(OP.SUBMIT, 1, DO.THROW);
    globex.flush();
    w.killWorker(globex.node, slot.worker, true);
    w.drain(globex.node);
    w.run(10_000);
    expect([...globex.channel.job.tenant.history.recent()].filter((call) => call.failed).length).toBeGreaterThan(0);
    for (const f of globex.channel.job.tenant.history.recent()) expect(f.reason.length).toBeLessThan(256);
  });
});

describe('processes', () => {
  const workersOf = (client: SimClient): number => [...core(client).workers.values()].filter((worker) => worker.tenant === client.channel.job.tenant).length;

  it.each<[string, (i: number) => { memoryBytes: number; cpus: number }]>([
    ['of actors that each ask for one octet more', (i) => ({ memoryBytes: i + 1, cpus: 0 })],
    ['of actors that each ask for a page more than the default', (i) => ({ memoryBytes: 2 ** 26 + 4_096 * (i + 1), cpus: 0 })],
  ])('%s leave room for others', (_name, ask) => {
    const { world: w, globex, acme } = world({ seed: 20, cpus: 8 });
    for (let i = 0; i < 40; i++) {
      globex.define(50 + i, CALL_KIND.ACTOR_CLASS, ask(i), 'Counter');
      globex.call(OP.CREATE_ACTOR, 50 + i, DO.RETURN);
    }
    globex.flush();
    w.run(10_000);
    expect(workersOf(globex)).toBeLessThanOrEqual(12);
    acme.get([acme.call(OP.SUBMIT, 1, DO.RETURN)]);
    acme.flush();
    w.run(10_000);
    expect([...acme.calls.values()].flatMap((c) => c.answers)).toEqual(['value']);
  });

  it('that are all blocked by one tenant leave room for others', () => {
    const { world: w, globex, acme } = world({ seed: 21, cpus: 16 });
    for (let i = 0; i < 100; i++) globex.call(OP.SUBMIT, 1, DO.HANG);
    globex.flush();
    w.run(10_000);
    for (let round = 0; round < 30; round++) {
      // Native code in each says that its call waits for a value that never comes, which frees its cpu for another.
      for (const worker of [...core(globex).workers.values()]) {
        for (const slot of worker.slots.values()) {
          for (const exec of slot.execs.keys()) {
            const out = new FrameWriter();
            out.begin(OP.GET).u32(exec).u32(exec).refs([makeId(globex.prefix, 100)]).end();
            globex.node.core.guestBatch(slot, out.take(), w.nowMs);
          }
        }
      }
      w.drain(globex.node);
      w.run(10_000);
    }
    expect(workersOf(globex)).toBeLessThanOrEqual(12);
    acme.get([acme.call(OP.SUBMIT, 1, DO.RETURN)]);
    acme.flush();
    w.run(10_000);
    expect([...acme.calls.values()].flatMap((c) => c.answers)).toEqual(['value']);
  });

  it('actors count against the quota of memory too', () => {
    const { world: w, globex } = world({ seed: 22 });
    const { tenant } = globex.channel.job;
    tenant.quota.memoryBytes = 2 ** 30;
    globex.define(4, CALL_KIND.ACTOR_CLASS, { memoryBytes: 600 * 2 ** 20 }, 'Counter');
    for (let i = 0; i < 3; i++) globex.call(OP.CREATE_ACTOR, 4, DO.RETURN);
    globex.flush();
    w.run(10_000);
    expect([...globex.channel.job.actors].map((a) => a.state).sort()).toEqual(['ALIVE', 'PENDING_CREATION', 'PENDING_CREATION']);
    globex.node.core.closeChannel(globex.channel);
    expect(tenant.memoryBytesInUse).toBe(0);
  });

  it('thousands of actors that fit nowhere cost a step a few looks, and the next tenant’s actor finds its place', () => {
    const { world: w, globex, acme } = world({ seed: 23 });
    globex.define(4, CALL_KIND.ACTOR_CLASS, { cpus: 1_000 }, 'Counter');
    for (let i = 0; i < 5_000; i++) globex.call(OP.CREATE_ACTOR, 4, DO.RETURN);
    send(globex);
    expect(core(globex).waitingActors.some(16)).toHaveLength(16);
    acme.define(4, CALL_KIND.ACTOR_CLASS, {}, 'Counter');
    acme.get([acme.call(OP.CREATE_ACTOR, 4, DO.RETURN)]);
    acme.flush();
    w.run(20_000);
    expect([...acme.calls.values()].flatMap((c) => c.answers)).toEqual(['value']);
  });
});

it('code of one tenant takes so much, and what nothing uses makes room', () => {
  const { world: w, globex } = world({ seed: 24 });
  send(globex);
  const { tenant } = globex.channel.job;
  const digestOf = (n: number): Uint8Array => new Uint8Array(32).fill(n);
  let n = 100;
  // The simulation's hash is a constant: the upload is what counts here.
  Object.assign(globex.node.core.state.config, { sha256: (bytes: Uint8Array) => digestOf(bytes[0] as number) });
  for (; n < 100 + (2 * MAX_CODE_BYTES_PER_TENANT) / MAX_CODE_BYTES; n++) {
    const source = new Uint8Array(MAX_CODE_BYTES).fill(n);
    for (let at = 0; at < source.length; at += 2 ** 21) {
      globex.out.begin(OP.CODE).raw(digestOf(n)).u32(source.length).u32(at).raw(source.subarray(at, at + 2 ** 21)).end();
      send(globex);
    }
    core(globex).out = [];
    expect(tenant.codeBytes).toBeLessThanOrEqual(MAX_CODE_BYTES_PER_TENANT);
  }
  expect(tenant.codeBytes).toBe([...tenant.code.values()].reduce((sum, c) => sum + Math.ceil(c.size / 4_096) * 4_096, 0));
  // The first is what the client's function is made of.
  expect([tenant.code.has('09'.repeat(32)), tenant.code.has(digestOf(n - 1)[0]!.toString(16).repeat(32))]).toEqual([true, true]);
  void w;
});

it('gets and waits that are never answered are so many, and are counted until they are', () => {
  const { world: w, globex } = world({ seed: 25 });
  const ref = globex.call(OP.SUBMIT, 1, DO.HANG);
  for (let i = 0; i < 10; i++) globex.get([ref, ref]);
  const wait = (): void => void globex.out.begin(OP.WAIT).u32(0).u32(globex.nextRequest++).u32(1).u32(10).refs([ref]).end();
  wait();
  send(globex);
  const { channel } = globex;
  expect(channel.waiting).toBe(21);
  channel.waiting += MAX_WAITING_PER_CHANNEL;
  globex.get([ref]);
  wait();
  send(globex);
  expect(channel.waiting).toBe(21 + MAX_WAITING_PER_CHANNEL);
  w.drain(globex.node);
  globex.cancel(ref, false);
  globex.flush();
  w.run(10_000);
  for (let i = 0; i < 5; i++) w.tick();
  w.run(10_000);
  expect(globex.failed.filter((code) => code === 'RESOURCE_EXHAUSTED')).toHaveLength(1);
  expect([channel.waiting, [...globex.calls.values()].every((c) => c.answers.every((a) => a === 'failed'))]).toEqual([MAX_WAITING_PER_CHANNEL, true]);
});

it('a release that the policy denies lets nothing go, whole runs of it, and what it permits does', () => {
  let allowed = false;
  const w = new World({ nodes: 1, cpus: 1, seed: 26, decide: (request) => request.action !== 'object.release' || allowed });
  const globex = w.client(0, GLOBEX);
  const refs = Array.from({ length: 10 }, () => put(globex, 10));
  const uploading = globex.nextSeq++;
  globex.out.begin(OP.PUT_CHUNK).u32(0).u32(uploading).u64(500_000).u64(0).raw(new Uint8Array(100)).end();
  send(globex);
  w.drain(globex.node);
  const { session, job: { tenant } } = globex.channel;
  const release = (): void => {
    globex.release([...refs.slice(0, 4), refs[7] as Uint8Array, ...refs.slice(5), makeId(globex.prefix, uploading)]);
    send(globex);
  };
  release();
  const denied = logOf(globex).records.filter((r) => r.type === 'decision' && r.action === 'object.release');
  expect(denied.map((r) => r.type === 'decision' && [r.allow, r.count])).toEqual([[false, 4], [false, 1], [false, 6]]);
  expect([session.objects.size, tenant.objectBytes, globex.channel.puts.size]).toEqual([11, 500_100, 1]);
  // They are still to be had.
  globex.get(refs);
  globex.flush();
  w.run(10_000);
  expect([...globex.calls.values()].flatMap((c) => c.answers)).toEqual(refs.map(() => 'value'));
  allowed = true;
  release();
  expect(session.objects.has(5)).toBe(true);
  expect([session.objects.size, tenant.objectBytes, globex.channel.puts.size]).toEqual([1, 10, 0]);
});

it('objects that fit a frame make no files, however many are sent in parts', () => {
  const { world: w, globex } = world({ seed: 27 });
  const part = (seq: number, total: number, offset: number, octets: number): void => void globex.out.begin(OP.PUT_CHUNK).u32(0).u32(seq).u64(total).u64(offset).raw(new Uint8Array(octets)).end();
  for (let seq = 1; seq <= 1_000; seq++) part(seq, 1, 0, 1);
  part(1_001, MAX_INLINE_BYTES, 0, 10);
  part(1_001, MAX_INLINE_BYTES, 10, MAX_INLINE_BYTES - 10);
  send(globex);
  expect(core(globex).out.filter((e) => e.type === 'write-part')).toEqual([]);
  // The next octet makes it a file, as the SDK sends it.
  part(1_002, MAX_INLINE_BYTES + 1, 0, MAX_INLINE_BYTES + 1);
  send(globex);
  expect(core(globex).out.filter((e) => e.type === 'write-part')).toHaveLength(1);
  globex.get([1, 1_000, 1_001, 1_002].map((seq) => makeId(globex.prefix, seq)));
  globex.flush();
  w.run(10_000);
  expect([...globex.calls.values()].flatMap((c) => c.answers)).toEqual(['failed', 'failed', 'failed', 'value']);
  expect([globex.failed, globex.channel.job.tenant.objectBytes]).toEqual([['INVALID_ARGUMENT', 'INVALID_ARGUMENT', 'INVALID_ARGUMENT'], MAX_INLINE_BYTES + 1]);
});

describe('a staged object', () => {
  it.each([['of no octets', 0], ['of more than any object', MAX_OBJECT_BYTES + 1]])('%s breaks the protocol, as a result, an item and a put: its worker ends, and whoever waits has an answer', (_name, size) => {
    for (const how of ['result', 'item', 'put'] as const) {
      const { world: w, acme, globex } = world({ seed: 70 });
      acme.define(2, CALL_KIND.TASK, how === 'item' ? { maxRetries: 0, returns: 'streaming' } : { maxRetries: 0 });
      const call = acme.call(OP.SUBMIT, 2, DO.HANG);
      // An item must be one that its reader has room for.
      if (how === 'item') acme.out.begin(OP.MORE).u32(0).u32(acme.nextSeq - 1).u32(0).u32(NO_ITEM).u32(0).u32(100).u32(4).end();
      else acme.get([call]);
      globex.get([globex.call(OP.SUBMIT, 1, DO.RETURN)]);
      for (const client of [acme, globex]) client.flush();
      w.run(10_000);
      const [{ slot, exec, node } = { slot: undefined, exec: 0, node: acme.node }] = [...w.hanging];
      if (slot === undefined) throw new Error('it does not run');
      const out = new FrameWriter();
      if (how === 'result') out.begin(OP.RESULT).u32(exec).u8(1).u8(1).refs([]).u32(0).u64(size).end();
      else if (how === 'item') out.begin(OP.ITEM).u32(exec).u8(1).refs([]).u32(0).u64(size).end();
      else out.begin(OP.PUT_STAGED).u32(exec).u32(1).u32(0).u64(size).refs([]).end();
      expect(() => node.core.guestBatch(slot, out.take(), w.nowMs)).toThrow(`a staged object of ${size} bytes`);
      expect(core(acme).out.filter((e) => e.type === 'seal-staged')).toEqual([]);
      // What the raylet does then.
      w.killWorker(node, slot.worker, false);
      w.run(10_000);
      if (how === 'item') acme.get([call]);
      acme.flush();
      w.run(10_000);
      expect([acme.failed, [...globex.calls.values()].flatMap((c) => c.answers)]).toEqual([['WORKER_DIED'], ['value']]);
    }
  });
});
