/** What a tenant asks about itself takes no time for what its neighbours have, and does not hold their calls up. */
import { expect, it } from 'vitest';
import { CALL_KIND, OP } from '../../src/base/frame.ts';
import { inspectionService } from '../../src/raylet/inspection.ts';
import type { Raylet } from '../../src/raylet/raylet.ts';
import { makeId } from '../../src/raylet/core/core.ts';
import { DO, World, type SimClient } from '../sim/world.ts';

const [ACME, GLOBEX] = [1, 2];
const KINDS = ['objects', 'tasks', 'actors'];
const call = { signal: new AbortController().signal } as never;

function service(client: SimClient): { list: (kind: string, limit?: number, jobId?: string, context?: never) => Promise<{ entities: { id: string }[]; truncated: boolean }>; get: (kind: string, id: string) => Promise<unknown>; summarize: (kind: string) => Promise<{ rows: { name: string; count: bigint }[] }> } {
  const raylet = { core: client.node.core, processes: new Map() } as unknown as Raylet;
  const made = inspectionService({ raylet, nodeId: 'node-1', insecureDev: false, layers: async () => [] });
  const tenant = client.channel.job.tenant.name;
  return {
    list: (kind, limit = 0, jobId = '', context = call) => made.list(context, { kind, tenant, limit, jobId } as never) as never,
    get: (kind, id) => made.get(call, { kind, tenant, id } as never) as never,
    summarize: (kind) => made.summarize(call, { kind, tenant } as never) as never,
  };
}

function puts(client: SimClient, count: number): void {
  for (let i = 0; i < count; i++) client.out.begin(OP.PUT).u32(0).u32(client.nextSeq++).u32(0).raw(Uint8Array.of(1)).end();
  client.node.core.clientBatch(client.channel, client.out.take(), client.world.nowMs);
}

it('looks at nothing of another tenant, whatever is asked', async () => {
  const w = new World({ nodes: 1, cpus: 1, seed: 50 });
  const [acme, globex] = [w.client(0, ACME), w.client(0, GLOBEX)];
  for (const client of [acme, globex]) {
    client.define(1, CALL_KIND.TASK, {});
    client.define(2, CALL_KIND.ACTOR_CLASS, {}, 'Counter');
    client.call(OP.SUBMIT, 1, DO.HANG);
    client.call(OP.CREATE_ACTOR, 2, DO.RETURN);
    puts(client, 5);
  }
  const { state } = acme.node.core;
  // Whoever walks the neighbour's things, or those of all, finds out here.
  const trap = (): never => {
    throw new Error('a neighbour was looked at');
  };
  Object.defineProperty(state.sessions, 'values', { value: trap });
  Object.defineProperty(state.sessions, Symbol.iterator, { value: trap });
  for (const name of ['objects', 'actors']) Object.defineProperty(acme.channel.session, name, { get: trap });
  const { list, get, summarize } = service(globex);
  const counts: number[] = [];
  for (const kind of KINDS) {
    counts.push((await list(kind)).entities.length);
    expect((await summarize(kind)).rows.reduce((n, row) => n + Number(row.count), 0)).toBe(counts.at(-1));
    await expect(get(kind, 'obj-that-is-not')).rejects.toThrow('not found, or not permitted');
  }
  expect(counts).toEqual([7, 1, 1]);
});

it('sessions are the tenant’s own, and go with their end', () => {
  const w = new World({ nodes: 2, cpus: 1, seed: 51 });
  const [acme, globex] = [w.client(0, ACME), w.client(0, GLOBEX)];
  const { state } = acme.node.core;
  const id = makeId(globex.prefix, 1);
  new DataView(id.buffer).setUint32(4, 2, true);
  globex.get([id]);
  puts(globex, 1);
  puts(acme, 1);
  const all = (): void => {
    const own = [...state.tenants.values()].flatMap((tenant) => [...tenant.sessions].map((session) => [session.key, session.tenant === tenant]));
    expect(own.sort()).toEqual([...state.sessions.keys()].map((key) => [key, true]).sort());
  };
  all();
  expect(globex.channel.job.tenant.sessions.size).toBe(2);
  globex.node.core.closeChannel(globex.channel);
  w.drain(globex.node);
  w.run(10_000);
  all();
  expect(globex.channel.job.tenant.sessions.size).toBe(0);
});

it('a million things are looked at some at a time, stop at the limit, and stop with their caller', async () => {
  const w = new World({ nodes: 1, cpus: 1, seed: 52 });
  const globex = w.client(0, GLOBEX);
  puts(globex, 12_000);
  const { list, summarize } = service(globex);
  let turns = 0;
  let counting = true;
  const turn = (): void => {
    turns++;
    if (counting) setImmediate(turn);
  };
  setImmediate(turn);
  expect((await summarize('objects')).rows).toMatchObject([{ count: 12_000n }]);
  counting = false;
  // The others' calls have had their turns meanwhile.
  expect(turns).toBeGreaterThan(8);
  const few = await list('objects', 10);
  expect([few.entities.length, few.truncated]).toEqual([10, true]);
  expect((await list('objects', 0xffff_ffff)).entities).toHaveLength(10_000);
  const gone = new AbortController();
  gone.abort();
  expect((await list('objects', 10_000, '', { signal: gone.signal } as never)).entities).toHaveLength(1_000);
});

it('names that a tenant makes up do not make the summary endless', async () => {
  const w = new World({ nodes: 1, cpus: 1, seed: 53 });
  const globex = w.client(0, GLOBEX);
  puts(globex, 10_100);
  for (const entry of globex.channel.session.objects.values()) entry.label = `label-${entry.index}`;
  const { rows } = await service(globex).summarize('objects');
  expect(rows).toHaveLength(10_001);
  expect(rows.find((row) => row.name === '(others)')?.count).toBe(100n);
});
