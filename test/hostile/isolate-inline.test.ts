/**
 * An actor that was quick so far is entered on its worker host's own thread. Here it does its worst right then: each case ends as a typed error of its call,
 * the tenant's other actors and another tenant go on, and nothing is left burning.
 */
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { BulkheadError, type Cluster, type RemoteModule } from '../../src/sdk/sdk.ts';
import { failure, TestCluster } from '../support/cluster.ts';

type Work = typeof import('../support/work.ts');

let cluster: TestCluster;
let driver: Cluster;
let other: Cluster;
let work: RemoteModule<Work>;
let othersWork: RemoteModule<Work>;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 1, cpus: 2 });
  driver = await cluster.connect('acme-dev');
  other = await cluster.connect('globex-dev');
  work = await driver.module<Work>(new URL('../support/work.ts', import.meta.url));
  othersWork = await other.module<Work>(new URL('../support/work.ts', import.meta.url));
});
afterAll(() => cluster?.stop());

const actors: { readonly id: string }[] = [];
/** One actor at a time: it is to have its process to itself. */
afterEach(async () => {
  for (const actor of actors.splice(0)) await driver.kill(actor).catch(() => undefined);
});

async function quick(): Promise<Awaited<ReturnType<RemoteModule<Work>['Sudden']['create']>>> {
  const actor = await work.Sudden.create();
  actors.push(actor);
  for (let i = 1; i <= 64; i++) expect(await driver.get(actor.ping())).toBe(i);
  return actor;
}

const LIMIT = { timeoutMs: 1_500 };

describe('on the host thread', () => {
  it('endless recursion is an error of the call, and the actor goes on', async () => {
    const actor = await quick();
    expect(await failure(driver.get(actor.turn('recursion')))).toMatchObject({ code: 'TASK_FAILED' });
    expect(await driver.get(actor.ping())).toBe(65);
  });

  it('a rejection that nobody handles is nobody else\'s affair', async () => {
    const actor = await quick();
    expect(await driver.get(actor.turn('rejection'))).toBe('done');
    expect(await driver.get(actor.ping())).toBe(65);
  });

  it('a flood of what it prints reaches the log, and large results their reader', async () => {
    const actor = await quick();
    expect(await driver.get(actor.turn('prints'))).toBe('done');
    expect(await driver.get(actor.bytes(3_000_000))).toHaveLength(3_000_000);
    expect(await driver.get(actor.ping())).toBe(65);
  });

  it.each(['loop', 'fill', 'microtasks', 'later', 'map', 'arrays'])('%s: ends typed within the limit of the call, the process with it', async (kind) => {
    const actor = await quick();
    const ended = await driver.get(actor.turn.options(LIMIT)(kind)).catch((error: unknown) => error);
    // Where the machine was too busy for it to be quick, the answer leaves before the loop behind it begins; the next call then meets the loop.
    const error = ended === 'done' ? await failure(driver.get(actor.ping.options(LIMIT)())) : ended;
    expect(error).toBeInstanceOf(BulkheadError);
    expect(['TIMEOUT', 'ACTOR_DIED', 'OUT_OF_MEMORY']).toContain((error as BulkheadError).code);
    expect(await failure(driver.get(actor.ping()))).toMatchObject({ code: 'ACTOR_DIED' });
    expect(await other.get(othersWork.add(2, 3))).toBe(5);
  });

  it('memory that runs out without a time limit is told as such, since V8 parks the thread for good', async () => {
    const actor = await quick();
    expect(String(await failure(driver.get(actor.turn('map'), { timeoutMs: 40_000 })))).toMatch(/memory/i);
  }, 60_000);

  it('a long call does not hold up the tenant\'s next actor, and can be killed', async () => {
    const actor = await quick();
    const endless = actor.turn('loop');
    const next = await work.Sudden.create();
    actors.push(next);
    expect(await driver.get(next.ping(), { timeoutMs: 20_000 })).toBe(1);
    await driver.kill(actor);
    expect(await failure(driver.get(endless))).toMatchObject({ code: 'ACTOR_DIED' });
    expect(await driver.get(next.ping())).toBe(2);
  }, 60_000);
});
