/** What `list`, `get` and `timeline` say about a tenant's things: why they wait, who holds them, when they ran. On simulated cores. */
import { describe, expect, it } from 'vitest';
import { CALL_KIND, OP } from '../../src/base/frame.ts';
import { objectIdText } from '../../src/base/ids.ts';
import { CallHistory, DURATION_BUCKETS } from '../../src/raylet/core/call-history.ts';
import { parseFunctionOptions } from '../../src/raylet/core/function-options.ts';
import { inspectionService } from '../../src/raylet/inspection.ts';
import type { Raylet } from '../../src/raylet/raylet.ts';
import { chromeTrace } from '../../src/cli/commands/timeline.ts';
import type { TimelineCall } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import { DO, World, type SimClient, type SimNode } from '../sim/world.ts';

const [ACME, GLOBEX] = [1, 2];
const call = { signal: new AbortController().signal } as never;

interface Shown {
  readonly id: string;
  readonly name: string;
  readonly state: string;
  readonly reason: string;
  readonly facts: Readonly<Record<string, string>>;
}

function service(node: SimNode, tenant: string) {
  const raylet = { core: node.core, processes: new Map() } as unknown as Raylet;
  const made = inspectionService({ raylet, nodeId: node.core.state.config.nodeId, insecureDev: false, layers: async () => [] });
  return {
    list: async (kind: string) => (await made.list(call, { kind, tenant, limit: 0, jobId: '' } as never)).entities as unknown as Shown[],
    get: async (kind: string, id: string) => (await made.get(call, { kind, tenant, id } as never)) as unknown as Shown,
    timeline: async (jobId = '', fromMs = 0) => {
      const pages = [];
      for await (const page of made.timeline(call, { tenant, jobId, fromMs: BigInt(fromMs) } as never)) pages.push(page);
      return { ended: pages.reduce((n, p) => n + Number(p.ended ?? 0n), 0), calls: pages.flatMap((p) => p.calls ?? []) as unknown as Partial<TimelineCall>[] };
    },
  };
}
const of = (client: SimClient) => service(client.node, client.channel.job.tenant.name);

describe('why a task waits', () => {
  it('says what it needs, what the quota is, and what is in use', async () => {
    const w = new World({ nodes: 1, cpus: 8, seed: 1, quota: { cpuUnits: 2 * 10_000 } });
    const acme = w.client(0, ACME);
    acme.define(1, CALL_KIND.TASK, { cpus: 4 }, 'wide');
    acme.define(2, CALL_KIND.TASK, { cpus: 2 }, 'narrow');
    acme.define(3, CALL_KIND.TASK, { cpus: 1, resources: { gpu: 1 } }, 'exotic');
    for (const [template, what] of [[2, DO.HANG], [2, DO.HANG], [1, DO.RETURN], [3, DO.RETURN]] as const) acme.call(OP.SUBMIT, template, what);
    acme.flush();
    w.run(10_000);
    const tasks = await of(acme).list('tasks');
    const reasons = (name: string): string[] => tasks.filter((t) => t.name === name).map((t) => `${t.state}: ${t.reason}`).sort();
    expect(reasons('wide')).toEqual(['PENDING_NODE_ASSIGNMENT: needs 4 cpus, tenant quota 2: it can never start']);
    expect(reasons('narrow')).toEqual(['PENDING_NODE_ASSIGNMENT: needs 2 cpus, tenant quota 2, of which 2 in use', 'RUNNING: ']);
    expect(reasons('exotic')).toEqual(['PENDING_NODE_ASSIGNMENT: infeasible: no node has 1 cpus, 1 gpu']);
  });

  it('names the argument, what makes it and where; a call of an actor says what is before it', async () => {
    const w = new World({ nodes: 2, cpus: 1, seed: 2 });
    const acme = w.client(0, ACME);
    acme.define(1, CALL_KIND.TASK, {}, 'slow');
    acme.define(2, CALL_KIND.TASK, {}, 'after');
    acme.define(3, CALL_KIND.ACTOR_CLASS, {}, 'Counter');
    acme.define(4, CALL_KIND.ACTOR_METHOD, {}, 'add');
    const first = acme.call(OP.SUBMIT, 1, DO.HANG);
    acme.call(OP.SUBMIT, 2, DO.RETURN, [first]);
    acme.flush();
    w.run(10_000);
    const actor = acme.call(OP.CREATE_ACTOR, 3, DO.RETURN, [first]);
    acme.call(OP.CALL_ACTOR, 4, DO.RETURN, [], actor);
    acme.flush();
    w.run(10_000);
    const { list, get } = of(acme);
    const shown = await list('tasks');
    const running = shown.find((t) => t.name === 'slow');
    const where = running?.facts['node'];
    expect(shown.find((t) => t.name === 'after')).toMatchObject({ state: 'PENDING_ARGS_AVAIL', reason: `waits for argument ${objectIdText(first)} (of slow, running on node ${where})` });
    expect(shown.find((t) => t.name === '.add' || t.name.endsWith('add'))).toMatchObject({ state: 'PENDING_ACTOR_TASK_ORDERING_OR_CONCURRENCY', reason: expect.stringMatching(/^its actor is not alive yet: waits for argument/), facts: { type: 'ACTOR_TASK' } });
    expect(await get('actors', objectIdText(actor))).toMatchObject({ state: 'DEPENDENCIES_UNREADY', reason: expect.stringMatching(/^waits for argument/) });
  });

  it('a task that another node runs has its id there, and is listed once', async () => {
    const w = new World({ nodes: 2, cpus: 1, seed: 3 });
    const acme = w.client(0, ACME);
    acme.define(1, CALL_KIND.TASK, {}, 'slow');
    for (let i = 0; i < 2; i++) acme.call(OP.SUBMIT, 1, DO.HANG);
    acme.flush();
    w.run(10_000);
    const tasks = await of(acme).list('tasks');
    expect(tasks.map((t) => t.facts['node']).sort()).toEqual(['node-1', 'node-2']);
    const away = tasks.find((t) => t.facts['node'] === 'node-2');
    expect(away).toMatchObject({ state: 'RUNNING', reason: 'on node node-2' });
    expect(await service(w.nodes[1] as SimNode, 'acme').list('tasks')).toEqual([]);
    const there = await service(w.nodes[1] as SimNode, 'acme').timeline();
    expect(there.calls).toMatchObject([{ id: away?.facts['remote'], forwardedHere: true, state: 'RUNNING' }]);
  });
});

describe('who holds an object', () => {
  it('tells its refs, the calls it is an argument of, and the values it is inside of', async () => {
    const w = new World({ nodes: 1, cpus: 1, seed: 4 });
    const acme = w.client(0, ACME);
    acme.define(1, CALL_KIND.TASK, {}, 'slow');
    acme.out.begin(OP.PUT).u32(0).u32(acme.nextSeq++).u32(0).raw(Uint8Array.of(1)).end();
    const inner = acme.node.core.state.idOf(acme.channel.session, 1);
    acme.out.begin(OP.PUT).u32(0).u32(acme.nextSeq++).refs([inner]).raw(Uint8Array.of(1)).end();
    const waiting = acme.call(OP.SUBMIT, 1, DO.HANG, [inner]);
    acme.get([waiting]);
    acme.flush();
    w.run(10_000);
    const { list, get } = of(acme);
    const held = (await get('objects', objectIdText(inner))).facts['held'] ?? '';
    expect(held).toContain('a ref of its owner');
    expect(held).toContain(`argument of slow ${objectIdText(waiting)}`);
    expect(held).toContain('inside object ');
    expect(held).not.toContain('outside');
    const all = await list('objects');
    expect(all.find((o) => o.id === objectIdText(inner))?.facts['held']).toBe(held);
    expect(all.find((o) => o.id === objectIdText(waiting))?.facts['held']).toBe('result of slow to come; a ref of its owner; get of a driver');
    // Every pin is explained.
    for (const object of all) expect(object.facts['held']).not.toContain('outside');
  });

  it('a neighbour sees none of it', async () => {
    const w = new World({ nodes: 1, cpus: 2, seed: 5 });
    const [acme, globex] = [w.client(0, ACME), w.client(0, GLOBEX)];
    acme.define(1, CALL_KIND.TASK, {}, 'secret');
    acme.call(OP.SUBMIT, 1, DO.HANG);
    acme.call(OP.SUBMIT, 1, DO.RETURN);
    acme.flush();
    w.run(10_000);
    const seen = of(globex);
    for (const kind of ['tasks', 'objects', 'actors', 'workers']) expect(await seen.list(kind)).toEqual([]);
    expect(await seen.timeline()).toEqual({ ended: 0, calls: [] });
    expect((await of(acme).timeline()).calls.length).toBe(2);
  });
});

it('a trace context is carried as it is, or refused', () => {
  const good = `00-${'ab'.repeat(16)}-${'cd'.repeat(8)}-01`;
  expect(parseFunctionOptions(JSON.stringify({ traceparent: good }), false).traceparent).toBe(good);
  expect(parseFunctionOptions('{}', false).traceparent).toBe('');
  for (const bad of ['00', `${good}\n`, `01${good.slice(2)}`, good.toUpperCase(), `00-${'0'.repeat(32)}-${'cd'.repeat(8)}-01`, 7, { toString: () => good }]) expect(() => parseFunctionOptions(JSON.stringify({ traceparent: bad }), false)).toThrow('traceparent');
});

describe('the timeline', () => {
  it('has each call once, with when it came, began and ended, and where', async () => {
    const w = new World({ nodes: 2, cpus: 1, seed: 6 });
    const acme = w.client(0, ACME);
    acme.define(1, CALL_KIND.TASK, {}, 'f');
    acme.define(2, CALL_KIND.ACTOR_CLASS, {}, 'Counter');
    acme.define(3, CALL_KIND.ACTOR_METHOD, {}, 'add');
    for (let i = 0; i < 30; i++) acme.call(OP.SUBMIT, 1, i % 7 === 6 ? DO.THROW : DO.RETURN);
    const actor = acme.call(OP.CREATE_ACTOR, 2, DO.RETURN);
    for (let i = 0; i < 5; i++) acme.call(OP.CALL_ACTOR, 3, DO.RETURN, [], actor);
    acme.flush();
    w.run(100_000);
    const nodes = [];
    for (const node of w.nodes) nodes.push({ nodeId: node.core.state.config.nodeId, calls: (await service(node, 'acme').timeline()).calls as TimelineCall[] });
    const own = nodes[0]?.calls.filter((c) => !c.forwardedHere) ?? [];
    expect(own.length).toBe(36);
    expect(new Set(own.map((c) => c.id)).size).toBe(36);
    expect(own.filter((c) => c.state === 'FAILED').length).toBe(4);
    for (const c of own) expect(Number(c.submittedMs) <= Number(c.startedMs) && Number(c.startedMs) <= Number(c.endedMs)).toBe(true);
    const whole = nodes.map(({ nodeId, calls }) => ({ nodeId, calls: calls.map((c) => ({ ...c, remoteId: c.remoteId ?? '', remoteNode: c.remoteNode ?? '', worker: c.worker === '' ? `w-${nodeId}` : c.worker, reason: c.reason ?? '' })) }));
    const events = chromeTrace(whole, w.nowMs);
    // What a node ran carries the id that its owner knows, and nothing ran twice.
    const ran = events.filter((e) => e.ph === 'X' && e.cat === 'task').map((e) => e.args?.['id']);
    const ids = new Set(own.map((c) => c.id));
    for (const id of ran) expect(ids.has(id as string)).toBe(true);
    expect(events.filter((e) => e.ph === 'b').length).toBe(36);
    expect(events.filter((e) => e.ph === 'e').length).toBe(36);
  });

  it('rows of the trace never overlap: calls that run at once get rows of their own', () => {
    const at = (i: number, startedMs: number, endedMs: number) => ({ id: `obj-${i}`, jobId: 'j', name: 'm', type: 'ACTOR_TASK', state: 'FINISHED', reason: '', submittedMs: 0n, startedMs: BigInt(startedMs), endedMs: BigInt(endedMs), worker: 'w', slot: 1, attempt: 0, remoteNode: '', remoteId: '', forwardedHere: false }) as TimelineCall;
    const events = chromeTrace([{ nodeId: 'n', calls: [at(1, 10, 30), at(2, 15, 20), at(3, 20, 40), at(4, 30, 31), at(5, 50, 50)] }], 100).filter((e) => e.ph === 'X');
    const rows = new Map<number, [number, number][]>();
    for (const e of events) rows.set(e.tid, [...(rows.get(e.tid) ?? []), [e.ts ?? 0, (e.ts ?? 0) + (e.dur ?? 0)]]);
    expect(rows.size).toBe(2);
    for (const spans of rows.values()) {
      spans.sort(([a], [b]) => a - b);
      spans.forEach(([start], i) => expect(start).toBeGreaterThanOrEqual(spans[i - 1]?.[1] ?? 0));
    }
  });
});

describe('the history of calls', () => {
  const task = (seq: number, submittedMs: number, startedMs: number): never => ({ seq, submittedMs, startedMs, attempt: 0, remoteSeq: 0, ranOn: undefined, upstream: undefined, channel: { session: {}, job: { id: 'job' } }, template: {} }) as never;

  it('keeps the newest whole and older ones as a sample of each second, in bounded memory', () => {
    const history = new CallHistory();
    for (let i = 0; i < 100_000; i++) history.note(task(i, i / 10, i / 10), i % 1_000 === 999, '', false, i / 10);
    const recent = [...history.recent()];
    expect(recent.length).toBe(8_192);
    expect(recent.map((c) => c.seq)).toEqual(Array.from({ length: 8_192 }, (_, i) => 99_999 - i));
    const older = [...history.older()];
    // 100 of each of the nine seconds that are no longer whole, and the failures that came on top.
    expect(older.length).toBeGreaterThan(800);
    expect(older.length).toBeLessThan(1_300);
    expect(new Set([...recent, ...older].map((c) => c.seq)).size).toBe(recent.length + older.length);
    expect(history.total).toBe(100_000);
    expect(history.failed).toBe(100);
  });

  it('counts how long calls waited and ran, each once', () => {
    const history = new CallHistory();
    for (const [submitted, started, ended] of [[0, 0, 5], [10, 10, 10], [10, 11, 13], [10, 1_034, 5_000], [0, 1, 2 ** 40]] as const) history.note(task(1, submitted, started), false, '', false, ended);
    // The first never started.
    expect(history.waited.reduce((a, b) => a + b)).toBe(4);
    expect(history.ran.reduce((a, b) => a + b)).toBe(4);
    expect([...history.waited].slice(0, 3)).toEqual([1, 2, 0]);
    expect(history.waited[11]).toBe(1);
    expect(history.ran[DURATION_BUCKETS - 1]).toBe(1);
    expect(history.waitedMs).toBe(0 + 1 + 1_024 + 1);
  });
});
