/** Quotas hold for a cluster: on two real raylets a tenant has what its quota says and not twice that, and has it wherever the demand is. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Cluster, RemoteModule } from '../../src/sdk/sdk.ts';
import { Inspection } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import { failure, TestCluster, until } from '../support/cluster.ts';

type Work = typeof import('../support/work.ts');
type Span = Awaited<ReturnType<Work['span']>>;
const WORK = new URL('../support/work.ts', import.meta.url);
const TEST_TIMEOUT_MS = 120_000;
const TASKS = 40;

let cluster: TestCluster;
let drivers: readonly [Cluster, Cluster];
let works: readonly RemoteModule<Work>[];
let nodes: readonly [string, string];

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 2, cpus: 4, quota: { cpus: '2', tasks: String(TASKS) } });
  // One on each raylet.
  const first = await cluster.connect('acme-dev');
  let second = await cluster.connect('acme-dev');
  for (let i = 0; i < 20 && second.nodeId === first.nodeId; i++) {
    await second.close();
    second = await cluster.connect('acme-dev');
  }
  drivers = [first, second];
  nodes = [first.nodeId, second.nodeId];
  works = await Promise.all(drivers.map((driver) => driver.module<Work>(WORK)));
}, TEST_TIMEOUT_MS);
afterAll(() => cluster?.stop(), TEST_TIMEOUT_MS);

/** The most that ran at one time, between the first and the last thing that each of them saw of the clock. */
function atOnce(spans: readonly Span[]): number {
  return Math.max(...spans.map(({ from }) => spans.filter((other) => other.from <= from && from < other.to).length));
}

describe('a tenant with 2 cpus on two nodes of 4', () => {
  it('is on both', () => expect(new Set(nodes).size).toBe(2));

  it('never runs more than two tasks at once, whoever submits them', { timeout: TEST_TIMEOUT_MS }, async () => {
    const spans = (await Promise.all(works.map((work, i) => (drivers[i] as Cluster).get(Array.from({ length: 8 }, () => work.span(120)))))).flat();
    expect(spans).toHaveLength(16);
    // Workers that start late run one after the other.
    expect(atOnce(spans)).toBeLessThanOrEqual(2);
  });

  it.each([0, 1, 0])('has both cpus on node %i when only that one is asked', { timeout: TEST_TIMEOUT_MS }, async (n) => {
    const span = (works[n] as RemoteModule<Work>).span.options({ nodeAffinity: nodes[n] as string });
    let spans: Span[] = [];
    await until('two run at once there', async () => {
      spans = await (drivers[n] as Cluster).get(Array.from({ length: 6 }, () => span(150)));
      expect(atOnce(spans)).toBeLessThanOrEqual(2);
      return atOnce(spans) === 2;
    });
    expect(new Set(spans.map(({ node }) => node))).toEqual(new Set([nodes[n]]));
  });

  it('runs what needs all of the quota, though the other node uses a part of it', { timeout: TEST_TIMEOUT_MS }, async () => {
    const small = (works[1] as RemoteModule<Work>).span.options({ nodeAffinity: nodes[1] });
    const busy = Array.from({ length: 20 }, () => small(150));
    const large = (works[0] as RemoteModule<Work>).span.options({ cpus: 2, nodeAffinity: nodes[0] });
    const [whole, others] = await Promise.all([drivers[0].get(large(100)), drivers[1].get(busy)]);
    // None ran beside it.
    expect(others.filter(({ from, to }) => from < whole.to && whole.from < to)).toEqual([]);
  });

  it('is told what can never start, and what waits for others', { timeout: TEST_TIMEOUT_MS }, async () => {
    const [work] = works as [RemoteModule<Work>];
    const never = work.span.options({ cpus: 3 })(1);
    const caller = await cluster.as('acme-dev');
    const reasons = async (): Promise<string[]> => (await Promise.all(nodes.map(async (id) => await caller.on(cluster.nodeById(id).name, Inspection).list({ kind: 'tasks', tenant: 'acme' })))).flatMap(({ entities }) => entities.map((e) => JSON.stringify(e)));
    await until('the reason', async () => (await reasons()).some((e) => e.includes('needs 3 cpus, tenant quota 2: it can never start')));
    await drivers[0].cancel(never);
    expect((await failure(drivers[0].get(never))).code).toBe('CANCELLED');
  });

  it('has its tasks counted on both nodes together, and gets the rest of them where it asks', { timeout: TEST_TIMEOUT_MS }, async () => {
    const [here, there] = works as [RemoteModule<Work>, RemoteModule<Work>];
    // They wait for what does not end by itself, and for nothing else.
    const first = here.sleep.options({ cpus: 3 })(1);
    const waiting = Array.from({ length: TASKS - 6 }, () => here.add(first, 1));
    const caller = await cluster.as('acme-dev');
    await until('they wait', async () => (await caller.on(cluster.nodeById(nodes[0]).name, Inspection).summarize({ kind: 'tasks', tenant: 'acme' })).rows.reduce((sum, row) => sum + (row.state.startsWith('PENDING') ? Number(row.count) : 0), 0) === TASKS - 5);
    // Five are left, and they are there without anybody's having to try twice.
    const blocker = there.sleep.options({ cpus: 3 })(1);
    const five = Array.from({ length: 14 }, () => there.add(blocker, 1));
    const codes: string[] = [];
    for (const ref of five) void drivers[1].get(ref).catch((error: { code: string }) => codes.push(error.code));
    await until('what is beyond the quota of both is refused', async () => codes.length === 10);
    expect(new Set(codes)).toEqual(new Set(['QUOTA_EXCEEDED']));
    await Promise.all([drivers[0].cancel(first), drivers[1].cancel(blocker)]);
    expect((await failure(drivers[0].get(waiting[0]!))).code).toBe('CANCELLED');
    // What has ended on one node is free on the other.
    await until('the rest has ended', async () => codes.length === five.length);
    await until('the other node has said so', async () => (await drivers[1].get(Array.from({ length: TASKS - 2 }, (_, i) => there.add(i, 1))).catch((error: { code: string }) => {
      expect(error.code).toBe('QUOTA_EXCEEDED');
      return [];
    })).length === TASKS - 2);
  });
});
