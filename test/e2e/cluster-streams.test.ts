/** Calls that stream on a real cluster of two nodes: order, back-pressure, failures, kill -9 in the middle, other nodes, and what is left. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Cluster as ClusterService } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { Inspection } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import { NO_ITEM, OP } from '../../src/base/frame.ts';
import type { Cluster, RemoteModule } from '../../src/sdk/sdk.ts';
import { failure, TestCluster, until } from '../support/cluster.ts';
import { batch, RawDriver } from '../support/raw-driver.ts';

type Work = typeof import('../support/stream-work.ts');

let cluster: TestCluster;
let driver: Cluster;
let work: RemoteModule<Work>;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 2, cpus: 2 });
  driver = await cluster.connect('acme-dev');
  work = await driver.module<Work>(new URL('../support/stream-work.ts', import.meta.url));
});
afterAll(() => cluster?.stop());

const numbers = (n: number): number[] => Array.from({ length: n }, (_, i) => i);

async function all<T>(values: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const value of values) found.push(value);
  return found;
}

async function list(raylet: string, kind: string): Promise<{ id: string; name: string; state: string; reason: string }[]> {
  const { entities } = await (await cluster.as('acme-dev')).on(raylet, Inspection).list({ kind, tenant: 'acme', jobId: '' });
  return entities;
}

async function nothingRuns(): Promise<void> {
  await until('no cpu is held', async () => (await (await cluster.as('admin')).to(ClusterService).listNodes({})).nodes.every((n) => n.available?.cpuUnits === n.total?.cpuUnits));
}

describe('a stream', () => {
  it('brings thousands of items, in order, while the call goes on', async () => {
    expect(await all(work.countTo(5_000).values())).toEqual(numbers(5_000));
    const stream = work.countTo(1_000_000, 5);
    expect(await driver.get((await stream.next()).value as never)).toBe(0);
    expect((await list(cluster.nodeById(driver.nodeId).name, 'tasks')).some((t) => t.name === 'countTo' && t.state.startsWith('RUNNING'))).toBe(true);
    await stream.return();
    await nothingRuns();
  });

  it('fails after the items that came before', async () => {
    const seen: number[] = [];
    const error = await failure((async () => { for await (const value of work.squares(13).values()) seen.push(value); })());
    expect([seen, error.code, error.message]).toEqual([numbers(13).map((i) => i * i), 'TASK_FAILED', 'RangeError: thirteen is too many']);
  });

  it('carries large items as files, within its window', async () => {
    const blocks = work.blocks.options({ streamBytes: '1MiB' })(12, 600_000);
    const seen: number[] = [];
    for await (const ref of blocks) {
      const block = await driver.get(ref);
      seen.push(block.length === 600_000 && block.every((octet) => octet === block[0]) ? (block[0] as number) : -1);
      driver.release(ref);
    }
    expect(seen).toEqual(numbers(12));
  });

  it('is read from within tasks, which give up their cpu meanwhile, and whose items are arguments', async () => {
    // Four cpus in all: each of the readers needs one, and so do its generator and what it calls.
    expect(await driver.get(numbers(6).map(() => work.sumOfStream(20)))).toEqual(numbers(6).map(() => 2_470));
  });

  it('of an actor keeps the actor’s state', async () => {
    const feed = await work.Feed.create();
    expect(await all(feed.take(100).values())).toEqual(numbers(100));
    expect(await all(feed.take.options({ streamItems: 3 })(5).values())).toEqual([100, 101, 102, 103, 104]);
    await driver.kill(feed);
  });

  it('runs on the other node when this one is full', async () => {
    const home = cluster.nodeById(driver.nodeId).name;
    const streams = numbers(4).map(() => work.countTo(40, 25));
    await until('some of them run there', async () => (await list(home, 'tasks')).some((t) => t.name === 'countTo' && t.state.startsWith('RUNNING') && t.reason !== ''));
    expect(await Promise.all(streams.map((s) => all(s.values())))).toEqual(streams.map(() => numbers(40)));
    const far = numbers(4).map(() => work.blocks(6, 300_000));
    for (const blocks of await Promise.all(far.map(async (s) => driver.get(await all(s))))) expect(blocks.map((b) => b[0])).toEqual(numbers(6));
    await nothingRuns();
  });

  it('goes on where it was when its worker is killed', async () => {
    const seen: [number, number][] = [];
    let killed = 0;
    for await (const value of work.slowly.options({ name: 'victim' })(60).values()) {
      seen.push(value);
      if (seen.length !== 15 && seen.length !== 35) continue;
      // Those of the tenant only: a spare process that is killed before its first task costs the call a try too.
      const ours = (await Promise.all(['raylet-1', 'raylet-2'].map((r) => list(r, 'workers')))).flat().map((w) => w.id);
      for (const pid of cluster.workerPids()) {
        if (!cluster.jailOf(pid).some((id) => ours.includes(id))) continue;
        process.kill(pid, 'SIGKILL');
        killed++;
      }
    }
    expect(killed).toBeGreaterThanOrEqual(2);
    expect(seen.map(([i]) => i)).toEqual(numbers(60));
    expect(new Set(seen.map(([, attempt]) => attempt)).size).toBeGreaterThanOrEqual(2);
  });
});

describe('a hostile reader', () => {
  it('that grants for calls it does not have is not heard, and one whose frame is torn loses its channel; nobody else anything', async () => {
    const caller = await cluster.as('globex-dev');
    using raw = await RawDriver.open(caller);
    raw.send(batch((w) => w.begin(OP.MORE).u32(0).u32(5).u32(0).u32(NO_ITEM).u32(0).u32(10).u32(4)));
    expect(await raw.alive()).toBe(true);
    raw.send(batch((w) => w.begin(OP.MORE).u32(0).u32(5).u32(0)));
    expect((await raw.ended).error?.code).toBe('INVALID_ARGUMENT');
    expect(await all(work.countTo(100).values())).toEqual(numbers(100));
  });
});
