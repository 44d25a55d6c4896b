/** Tenants side by side on one real raylet: what one of them sends, or asks for, is not paid by the other. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { FrameWriter, OP } from '../../src/base/frame.ts';
import type { Cluster, RemoteModule } from '../../src/sdk/sdk.ts';
import { failure, TestCluster } from '../support/cluster.ts';
import { batch, RawDriver } from '../support/raw-driver.ts';

type Work = typeof import('../support/work.ts');

const FLOOD_BYTES = 15 * 2 ** 20;

let cluster: TestCluster;
let acme: Cluster;
let globex: Cluster;
let work: RemoteModule<Work>;
let theirs: RemoteModule<Work>;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 1, cpus: 2, quota: { tasks: '50', actors: '2', workers: '2' } });
  [acme, globex] = await Promise.all([cluster.connect('acme-dev'), cluster.connect('globex-dev')]);
  const url = new URL('../support/work.ts', import.meta.url);
  [work, theirs] = await Promise.all([acme.module<Work>(url), globex.module<Work>(url)]);
  await Promise.all([acme.get(work.add(1, 1)), globex.get(theirs.add(1, 1))]);
});
afterAll(() => cluster?.stop());

describe('one batch of half a million tiny frames', () => {
  it('is read between the lone calls of a neighbour, who goes on', async () => {
    using flood = await RawDriver.open(await cluster.as('acme-dev'));
    const out = new FrameWriter(FLOOD_BYTES + 64);
    // Each is a decision and a record; every second index, so that none share theirs.
    let frames = 0;
    for (; out.length < FLOOD_BYTES; frames++) out.begin(OP.RELEASE).refs([flood.id(2 * frames)]).end();
    expect(frames).toBeGreaterThan(400_000);
    out.begin(OP.CONTEXT).u32(0).u32(1).end();
    flood.send(out.take());
    let read = false;
    const answered = flood.answer(1, 120_000).then((frame) => {
      read = true;
      return frame;
    });
    let between = 0;
    while (!read) {
      expect(await globex.get(theirs.add(between, 1))).toBe(between + 1);
      if (!read) between++;
    }
    expect((await answered)?.op).toBe(OP.DONE);
    expect(between, 'calls that were answered before the batch had been read').toBeGreaterThan(10);
  });

  it('that ends in rubbish ends its channel, after what came before it', async () => {
    using flood = await RawDriver.open(await cluster.as('acme-dev'));
    const out = new FrameWriter();
    for (let i = 0; i < 20_000; i++) out.begin(OP.RELEASE).refs([flood.id(2 * i)]).end();
    out.begin(OP.CONTEXT).u32(0).u32(1).end();
    out.begin(OP.CONTEXT).u32(0).end();
    flood.send(out.take());
    expect((await flood.ended).error?.code).toBe('INVALID_ARGUMENT');
    expect(await globex.get(theirs.add(1, 2))).toBe(3);
  });
});

describe('quotas of a tenant on a node', () => {
  it('of tasks: the next one is told which quota, how much, and what to do; a neighbour has its own', async () => {
    const sleeping = Array.from({ length: 50 }, () => work.sleep(300));
    const error = await failure(acme.get(work.add(1, 1)));
    expect(error.code).toBe('QUOTA_EXCEEDED');
    expect(error.message).toMatch(/50 tasks on this node that have not ended, its quota is 50: wait for results/);
    expect(await globex.get(theirs.add(1, 1))).toBe(2);
    await acme.get(sleeping);
    expect(await acme.get(work.add(1, 1))).toBe(2);
  });

  it('of actors: the next one is told too, and a killed one makes room', async () => {
    const actors = await Promise.all([work.Counter.create(), work.Counter.create()]);
    await acme.get(actors.map((actor) => actor.add(1)));
    const error = await failure(work.Counter.create().then((actor) => acme.get(actor.add(1))));
    expect(error.code).toBe('QUOTA_EXCEEDED');
    expect(error.message).toMatch(/2 actors on this node, its quota is 2: kill some/);
    await acme.kill(actors[0]!);
    const next = await work.Counter.create();
    expect(await acme.get(next.add(1))).toBe(1);
    await Promise.all([acme.kill(actors[1]!), acme.kill(next)]);
  });
});

describe('a channel', () => {
  it('still answers when the flood is over', async () => {
    using driver = await RawDriver.open(await cluster.as('acme-dev'));
    driver.send(batch((w) => w.begin(OP.CONTEXT).u32(0).u32(7)));
    expect((await driver.answer(7))?.op).toBe(OP.DONE);
  });
});
