/** Refs that an actor on another node keeps, on real processes: what they name stays as long as the actor does, and goes with it. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Inspection } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import type { Cluster, ObjectRef, RemoteModule } from '../../src/sdk/sdk.ts';
import { TestCluster, until } from '../support/cluster.ts';

type Work = typeof import('../support/work.ts');

let cluster: TestCluster;
let driver: Cluster;
let work: RemoteModule<Work>;
let home: string;
let awayId: string;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 2, cpus: 2 });
  driver = await cluster.connect('acme-dev');
  work = await driver.module<Work>(new URL('../support/work.ts', import.meta.url));
  home = cluster.nodeById(driver.nodeId).name;
  awayId = cluster.node(home === 'raylet-1' ? 'raylet-2' : 'raylet-1').nodeId;
});
afterAll(() => cluster?.stop());

async function facts(ref: ObjectRef<unknown>): Promise<Readonly<Record<string, string>> | undefined> {
  const { entities } = await (await cluster.as('acme-dev')).on(home, Inspection).list({ kind: 'objects', tenant: 'acme' });
  return entities.find((e) => e.id === ref.id)?.facts;
}

describe('an actor on another node', () => {
  it.each([['inline', 100], ['large', 300_000]])('keeps an object alive that nobody else has a ref of any more: %s', async (_how, size) => {
    const keeper = await work.Keeper.options({ nodeAffinity: awayId }).create();
    expect(await driver.get(keeper.node())).toBe(awayId);
    const ref = await driver.put(new Uint8Array(size).fill(7));
    await driver.get(keeper.keep([ref]));
    driver.release(ref);
    await until('only the other node holds it', async () => (await facts(ref))?.['refs'] === '0');
    expect((await facts(ref))?.['held']).toMatch(/^lent to node/);
    expect(await driver.get(keeper.first())).toBe(7);
    // Out again, inside a value: the driver holds it when the actor does not any more.
    const given = keeper.giveAll();
    const [back] = (await driver.get(given)) as unknown as [ObjectRef<Uint8Array>];
    driver.release(given);
    await driver.kill(keeper);
    expect((await driver.get(back))[0]).toBe(7);
    driver.release(back);
    await until('it is gone with the last ref', async () => (await facts(ref)) === undefined);
  });

  it('that dies lets go of what it kept', async () => {
    const keeper = await work.Keeper.options({ nodeAffinity: awayId }).create();
    const ref = await driver.put('kept');
    await driver.get(keeper.keep([ref]));
    driver.release(ref);
    await until('only the other node holds it', async () => (await facts(ref))?.['refs'] === '0');
    await driver.kill(keeper);
    await until('it is gone', async () => (await facts(ref)) === undefined);
  });
});
