/** Another raylet that was stolen: what it sends as an answer is bounded by what was asked for and by the tenant's quota here. */
import { describe, expect, it } from 'vitest';
import { CALL_KIND, FrameWriter, OP } from '../../src/base/frame.ts';
import { MAX_OBJECT_BYTES } from '../../src/base/limits.ts';
import type { ResourceVector } from '../../src/base/resources.ts';
import { Nodes } from '../../src/gcs/core/nodes.ts';
import { OBJECT_STATUS, type ObjectEntry, type TenantState, type Upstream } from '../../src/raylet/core/state.ts';
import type { Effect } from '../../src/raylet/core/effects.ts';
import { DO, World, type SimClient } from '../sim/world.ts';

const GLOBEX = 2;

interface Asked {
  readonly world: World;
  readonly client: SimClient;
  readonly upstream: Upstream;
  readonly tenant: TenantState;
  readonly effects: Effect[];
  entry(): ObjectEntry | undefined;
  /** What the other node says; then the effects of it are in `effects`. */
  say(write: (out: FrameWriter) => void): void;
  chunk(total: number, offset: number, octets: number): void;
  digest(octet: number): void;
}

const send = (client: SimClient): number => client.node.core.clientBatch(client.channel, client.out.take(), client.world.nowMs);

/** A client waits for an object of the other node, which has welcomed this one and now answers as it likes. */
function asked(quotaBytes = Number.POSITIVE_INFINITY, checked = true): Asked {
  const world = new World({ nodes: 2, cpus: 1, seed: 40 });
  const client = world.client(0, GLOBEX);
  const { core } = client.node;
  const { tenant } = client.channel.job;
  Object.assign(tenant, { quota: { ...tenant.quota, objectBytes: quotaBytes } });
  const id = new Uint8Array(24).fill(7);
  [GLOBEX, 2].forEach((word, i) => new DataView(id.buffer).setUint32(4 * i, word, true));
  client.get([id]);
  send(client);
  const upstream = [...core.state.upstreams.values()][0] as Upstream;
  const effects: Effect[] = [];
  const say = (write: (out: FrameWriter) => void): void => {
    const out = new FrameWriter();
    write(out);
    core.upstreamBatch(upstream, out.take(), world.nowMs);
    for (let done = effects.length; ; ) {
      effects.push(...core.state.out.splice(0));
      const next = effects[done++];
      if (next === undefined) break;
      // The driver's part: every digest of zeros is that of what was written.
      if (next.type === 'check-file' && checked) core.fileChecked(next.upstream, next.request, next.fileName, next.digest.every((octet) => octet === 0));
    }
  };
  say((out) => out.begin(OP.WELCOME).raw(new Uint8Array(20)).text('{}').end());
  const session = [...core.state.sessions.values()].find((s) => s.nodeNumber === 2);
  const entry = (): ObjectEntry | undefined => [...(session?.objects.values() ?? [])][0];
  const request = [...upstream.requests.keys()][0] as number;
  return {
    world, client, upstream, tenant, effects, entry, say, digest: (octet) => say((out) => out.begin(OP.VALUE_DIGEST).u32(request).u32(0).raw(new Uint8Array(32).fill(octet)).end()),
    chunk: (total, offset, octets) => say((out) => out.begin(OP.VALUE_CHUNK).u32(request).u32(0).u64(total).u64(offset).raw(new Uint8Array(octets)).end()),
  };
}

/** Octets that the parts written would take on disk, and the names that were not deleted again. */
function written(effects: readonly Effect[]): { end: number; kept: string[] } {
  const parts = effects.filter((e) => e.type === 'write-part');
  const deleted = new Set(effects.filter((e) => e.type === 'delete-file').map((e) => e.fileName));
  return { end: Math.max(0, ...parts.map((e) => e.offset + e.bytes.length)), kept: [...new Set(parts.map((e) => e.fileName))].filter((name) => !deleted.has(name)) };
}

/** The client has its answer, nothing is held for the transfer, and nothing of it is left. */
function expectEnded(a: Asked, code: string): void {
  a.world.drain(a.client.node);
  a.world.run(1_000);
  expect(a.client.failed).toEqual([code]);
  expect([a.tenant.objectBytes, a.upstream.requests.size, a.entry(), written(a.effects).kept]).toEqual([0, 0, undefined, []]);
}

describe('the parts of a value from another node', () => {
  it('in order and complete are one object, counted once', () => {
    const a = asked(1_000);
    a.chunk(900, 0, 400);
    // It is counted from its first part on.
    expect(a.tenant.objectBytes).toBe(900);
    a.chunk(900, 400, 0);
    a.digest(0);
    a.chunk(900, 400, 500);
    const streamed = a.effects.filter((e) => e.type === 'stream-file');
    expect([streamed.length, streamed[0]?.size, written(a.effects).end]).toEqual([1, 900, 900]);
    expect(a.upstream.requests.size).toBe(0);
  });

  it.each<[string, [number, number, number][]]>([
    ['that begin in the middle', [[1_000, 500, 100]]],
    ['that begin far beyond', [[MAX_OBJECT_BYTES, MAX_OBJECT_BYTES - 10, 10]]],
    ['that leave a hole', [[1_000, 0, 100], [1_000, 200, 100]]],
    ['that overlap', [[1_000, 0, 100], [1_000, 50, 100]]],
    ['that come twice', [[1_000, 0, 100], [1_000, 0, 100]]],
    ['whose total grows', [[1_000, 0, 100], [2_000, 100, 100]]],
    ['whose total shrinks, to be complete at once', [[1_000, 0, 100], [200, 100, 100]]],
    ['that are more than announced', [[1_000, 0, 100], [1_000, 100, 901]]],
    ['of which the last comes without a digest', [[1_000, 0, 100], [1_000, 100, 900]]],
    ['of nothing', [[0, 0, 0]]],
    ['of more than any object', [[MAX_OBJECT_BYTES + 1, 0, 100]]],
  ])('%s: the object is lost, and what was written goes', (_name, parts) => {
    const a = asked();
    for (const part of parts) a.chunk(...part);
    // The rest is passed over: it writes nothing, and breaks nothing.
    const before = a.effects.length;
    a.chunk(1_000, 300, 100);
    a.chunk(1_000, 0, 1_000);
    expect(a.effects.length).toBe(before);
    expectEnded(a, 'OBJECT_LOST');
  });

  it('that do not have the digest that came with them are no value, and what was written goes', () => {
    for (const digests of [[1], [0, 0], [0, 1], [1, 0]]) {
      const a = asked();
      a.chunk(1_000, 0, 100);
      for (const octet of digests) a.digest(octet);
      a.chunk(1_000, 100, 900);
      expectEnded(a, 'OBJECT_LOST');
    }
  });

  it('are read by nobody before their digest is compared', () => {
    const a = asked(1_000, false);
    a.digest(0);
    a.chunk(900, 0, 900);
    expect([a.entry()?.status, a.tenant.objectBytes, a.effects.filter((e) => e.type === 'stream-file').length]).toEqual([OBJECT_STATUS.PENDING, 900, 0]);
    // More parts, another answer, or the end of the connection meanwhile: it is no value, however the comparison goes.
    const [check] = a.effects.filter((e) => e.type === 'check-file');
    a.chunk(900, 0, 900);
    if (check === undefined) throw new Error('nothing is compared');
    a.client.node.core.fileChecked(check.upstream, check.request, check.fileName, true);
    expectEnded(a, 'OBJECT_LOST');
  });

  it('a digest of what was not fetched ends the connection', () => {
    const a = asked();
    expect(() => a.say((out) => out.begin(OP.VALUE_DIGEST).u32([...a.upstream.requests.keys()][0] as number).u32(1).raw(new Uint8Array(32)).end())).toThrow('not asked for');
  });

  it('beyond the tenant’s quota: not one octet is written', () => {
    const a = asked(1_000);
    a.chunk(1_001, 0, 100);
    for (let i = 1; i < 10; i++) a.chunk(1_001, 100 * i, 100);
    expect(a.effects.filter((e) => e.type === 'write-part')).toEqual([]);
    expectEnded(a, 'QUOTA_EXCEEDED');
  });

  it('that stop with the connection, with a failure, or with another answer leave nothing', () => {
    for (const how of ['closed', 'failed', 'value'] as const) {
      const a = asked();
      a.chunk(1_000, 0, 100);
      const request = [...a.upstream.requests.keys()][0] as number;
      if (how === 'closed') a.client.node.core.upstreamClosed(a.upstream, { code: 'UNAVAILABLE', message: 'gone', stack: '' });
      else if (how === 'failed') a.say((out) => out.begin(OP.VALUE_FAILED).u32(request).u32(0).str('OBJECT_LOST').text('gone').text('').end());
      else a.say((out) => out.begin(OP.VALUE).u32(request).u32(0).raw(Uint8Array.of(1)).end());
      a.effects.push(...a.client.node.core.state.out);
      a.world.drain(a.client.node);
      a.world.run(1_000);
      expect([...a.client.calls.values()].flatMap((c) => c.answers)).toEqual([how === 'value' ? 'value' : 'failed']);
      expect([a.tenant.objectBytes, written(a.effects).kept], how).toEqual([0, []]);
    }
  });

  it('that cannot be written fail their reader, in the middle and at the end', () => {
    for (const parts of [[100], [100, 900]]) {
      const a = asked(Number.POSITIVE_INFINITY, false);
      a.digest(0);
      // Somebody else here needs it too, so that it stays.
      const entry = a.entry() as ObjectEntry;
      entry.pins++;
      parts.reduce((offset, n) => (a.chunk(1_000, offset, n), offset + n), 0);
      const [name = ''] = written(a.effects).kept;
      a.client.node.core.transferFailed(name, { code: 'RESOURCE_EXHAUSTED', message: 'full', stack: '' });
      a.effects.push(...a.client.node.core.state.out);
      a.world.drain(a.client.node);
      a.world.run(1_000);
      expect([...a.client.calls.values()].flatMap((c) => c.answers)).toEqual(['failed']);
      // The value is where it was: whoever asks when there is room gets it.
      expect([a.tenant.objectBytes, a.upstream.requests.size, entry.status, entry.fetching, written(a.effects).kept]).toEqual([0, 0, OBJECT_STATUS.PENDING, false, []]);
    }
  });
});

describe('answers that were not asked for', () => {
  function forwarded(returns: number): { client: SimClient; upstream: Upstream; say: (write: (out: FrameWriter) => void) => void } {
    const world = new World({ nodes: 2, cpus: 1, seed: 41 });
    const client = world.client(0, GLOBEX);
    client.define(1, CALL_KIND.TASK, { cpus: 1, returns });
    const { core } = client.node;
    // Nothing fits here: the task goes to the other node.
    core.state.available = { cpuUnits: 0, memoryBytes: 0, custom: undefined };
    client.call(OP.SUBMIT, 1, DO.RETURN, [], undefined, returns);
    send(client);
    const upstream = [...core.state.upstreams.values()][0] as Upstream;
    const say = (write: (out: FrameWriter) => void): void => {
      const out = new FrameWriter();
      write(out);
      core.upstreamBatch(upstream, out.take(), world.nowMs);
    };
    say((out) => out.begin(OP.WELCOME).raw(new Uint8Array(20)).text('{}').end());
    return { client, upstream, say };
  }

  it('one result twice is not two results', () => {
    const { upstream, say, client } = forwarded(2);
    const request = [...upstream.requests.keys()][0] as number;
    const value = (position: number): void => say((out) => out.begin(OP.VALUE).u32(request).u32(position).raw(Uint8Array.of(1)).end());
    value(0);
    value(0);
    expect([upstream.requests.size, upstream.tasks.size]).toEqual([1, 1]);
    value(1);
    expect([upstream.requests.size, upstream.tasks.size]).toEqual([0, 0]);
    expect([...client.channel.session.objects.values()].map((e) => e.status)).toEqual([OBJECT_STATUS.INLINE, OBJECT_STATUS.INLINE]);
  });

  it('parts of a result that was not fetched end the connection', () => {
    const { upstream, say, client } = forwarded(1);
    const request = [...upstream.requests.keys()][0] as number;
    expect(() => say((out) => out.begin(OP.VALUE_CHUNK).u32(request).u32(0).u64(1_000).u64(0).raw(new Uint8Array(10)).end())).toThrow('not asked for');
    expect(client.node.core.state.out.filter((e) => e.type === 'write-part')).toEqual([]);
  });
});

it.each([
  ['cpus', { cpuUnits: 20_001, memoryBytes: 1_000, custom: undefined }, '2.0001 cpus'], ['memory', { cpuUnits: 0, memoryBytes: 1_001, custom: undefined }, '1001 bytes of memory'], ['a custom resource', { cpuUnits: 0, memoryBytes: 0, custom: { gpu: 10_001 } }, "1.0001 'gpu'"],
])('a node that claims more %s than it may is refused, changes nothing, and is no target for work', (_what, total, said) => {
  const nodes = new Nodes();
  nodes.absorb('nodes/n1', { id: 'n1', number: 1, joinedMs: 0, instance: '' });
  const out: Parameters<Nodes['step']>[2] = [];
  const facts = { available: total, policyVersion: 1, revocationVersion: 1, queuedTasks: 0 };
  const register = (most: { cpuUnits: number; memoryBytes: number; labels: Record<string, string[]>; eachUnits: number }): void => nodes.step({ type: 'register', id: 'n1', address: '127.0.0.1:4000', total, labels: {}, most, insecureDev: false, instance: 'i1', facts }, 1, out);
  expect(() => register({ cpuUnits: 20_000, memoryBytes: 1_000, labels: {}, eachUnits: 10_000 })).toThrow(said);
  expect([nodes.get('n1')?.state, nodes.get('n1')?.available.cpuUnits, out]).toEqual(['dead', 0, []]);
  register({ cpuUnits: 20_001, memoryBytes: 1_001, labels: {}, eachUnits: 10_001 });
  expect(out.find((e) => e.type === 'record')).toMatchObject({ event: 'node.joined', detail: expect.stringContaining(said.replaceAll("'", '')) });
});

it('what a node says is free is never more than what it has, so that it does not draw the others’ work by it', () => {
  const nodes = new Nodes();
  nodes.absorb('nodes/n1', { id: 'n1', number: 1, joinedMs: 0, instance: '' });
  const out: Parameters<Nodes['step']>[2] = [];
  const total = { cpuUnits: 20_000, memoryBytes: 1_000, custom: { gpu: 10_000 } };
  const facts = (available: ResourceVector) => ({ available, policyVersion: 1, revocationVersion: 1, queuedTasks: 0 });
  const lie = facts({ cpuUnits: 1e10, memoryBytes: Number.MAX_SAFE_INTEGER, custom: { gpu: 1e10, tpu: 50_000, constructor: 50_000 } });
  nodes.step({ type: 'register', id: 'n1', address: '127.0.0.1:4000', total, labels: {}, most: { cpuUnits: 20_000, memoryBytes: 1_000, labels: {}, eachUnits: 10_000 }, insecureDev: false, instance: 'i1', facts: lie }, 1, out);
  expect(nodes.get('n1')?.available).toEqual(total);
  const honest = { cpuUnits: 5_000, memoryBytes: 10, custom: { gpu: 0 } };
  nodes.step({ type: 'report', id: 'n1', facts: facts(honest) }, 2, out);
  expect(nodes.get('n1')?.available).toEqual(honest);
  nodes.step({ type: 'report', id: 'n1', facts: lie }, 3, out);
  expect(nodes.get('n1')?.available).toEqual(total);
  // The same lie again is nothing new to the others.
  const told = out.length;
  nodes.step({ type: 'report', id: 'n1', facts: lie }, 4, out);
  expect(out.length).toBe(told);
});

it.each<[string, Record<string, string>, Record<string, string> | undefined, Record<string, string[]>]>([
  ['nobody gave it', { zone: 'eu' }, undefined, {}], ['the operator gave to no node with this value', { zone: 'eu' }, undefined, { zone: ['us'] }],
  ['its token gave another value', { zone: 'eu' }, { zone: 'us' }, { zone: ['eu'] }], ['its token does not name, though other nodes may have it', { gpu: 'a100' }, { zone: 'eu' }, { gpu: ['a100'] }],
  ['is of every object', { constructor: 'x' }, undefined, {}],
])('a node that claims a label that %s is refused, so that a stolen one draws no labelled work', (_what, labels, mayHave, all) => {
  const nodes = new Nodes();
  nodes.absorb('nodes/n1', { id: 'n1', number: 1, joinedMs: 0, instance: '', ...(mayHave === undefined ? {} : { mayHave }) });
  const out: Parameters<Nodes['step']>[2] = [];
  const total = { cpuUnits: 10_000, memoryBytes: 1_000, custom: undefined };
  const register = (claims: Record<string, string>): void => nodes.step({ type: 'register', id: 'n1', address: '127.0.0.1:4000', total, labels: claims, most: { cpuUnits: 10_000, memoryBytes: 1_000, eachUnits: 0, labels: all }, insecureDev: false, instance: 'i1', facts: { available: total, policyVersion: 1, revocationVersion: 1, queuedTasks: 0 } }, 1, out);
  expect(() => register(labels)).toThrow('which it may not');
  expect([nodes.get('n1')?.state, nodes.get('n1')?.labels, out]).toEqual(['dead', {}, []]);
  register({ ...mayHave });
  expect(nodes.get('n1')?.labels).toEqual({ ...mayHave });
  expect(out.find((e) => e.type === 'record')).toMatchObject({ event: 'node.joined', ...(mayHave === undefined ? {} : { detail: expect.stringContaining('labels ') }) });
});

it('a newer join token says anew which labels a node may have', () => {
  const nodes = new Nodes();
  nodes.absorb('nodes/n1', { id: 'n1', number: 1, joinedMs: 0, instance: '', mayHave: { zone: 'eu' } });
  const out: Parameters<Nodes['step']>[2] = [];
  nodes.step({ type: 'reserve', id: 'n1', by: 'admin', mayHave: { zone: 'us' } }, 1, out);
  expect(out).toMatchObject([{ type: 'put', row: { mayHave: { zone: 'us' } } }]);
  nodes.step({ type: 'reserve', id: 'n1', by: 'admin' }, 1, out);
  expect(out[1]).toMatchObject({ type: 'put', row: expect.not.objectContaining({ mayHave: expect.anything() }) });
});
