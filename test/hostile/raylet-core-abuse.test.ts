/** What a client or a worker that is native code can ask of a raylet's core with few octets: bounded in what it holds and sends, and never another tenant's harm. */
import { describe, expect, it } from 'vitest';
import type { AuditRecord } from '../../src/base/audit-record.ts';
import { BulkheadError } from '../../src/base/errors.ts';
import { CALL_KIND, FrameReader, FrameWriter, OP } from '../../src/base/frame.ts';
import { MAX_ANSWER_BYTES, MAX_BATCH_BYTES, MAX_FRAME_BYTES } from '../../src/base/limits.ts';
import { makeId } from '../../src/raylet/core/core.ts';
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
const send = (client: SimClient): void => client.node.core.clientBatch(client.channel, client.out.take(), client.world.nowMs);
const logOf = (client: SimClient): SimLog => client.node.logs.get(client.channel.job.tenant.number) as SimLog;

/** Octets that wait for a client, in its batches; each must fit a message. */
function waiting(client: SimClient): number {
  const batches = [...client.channel.cut.map((c) => c.batch.length), client.channel.out.length];
  for (const octets of batches) expect(octets).toBeLessThan(MAX_BATCH_BYTES);
  return batches.reduce((a, b) => a + b, 0);
}

describe('a frame that asks for much', () => {
  it.each([['small', 200], ['inline', 100_000], ['as large as a frame', MAX_FRAME_BYTES - 100]])('one %s value, ten thousand times: a few are on their way, all come', (_name, octets) => {
    const { world: w, globex } = world({ seed: 1 });
    const ref = put(globex, octets);
    send(globex);
    w.drain(globex.node);
    const many = octets > 1_000 ? 400 : 10_000;
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
    override append(record: AuditRecord): number {
      if (this.records.length >= this.room) throw new BulkheadError('RESOURCE_EXHAUSTED', 'the audit log cannot keep up');
      return super.append(record);
    }
  }

  it('ends the calls of its own tenant only, loses no record, and leaves nothing half done', () => {
    const { world: w, acme, globex } = world({ seed: 4 });
    w.drain(globex.node);
    const log = new FullLog();
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
      else if (op === 'KILL') globex.out.begin(OP.KILL).u32(0).u32(7).raw(id).end();
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
