/**
 * The wall clock of one process after the other jumps, forwards and backwards, under the load of two tenants: what runs goes on, no time limit ends early, nobody is
 * taken for dead, and where a clock makes identities invalid calls are refused with a code and go on when it is set right.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import { OP } from '../../src/base/frame.ts';
import { Sessions } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import type { Cluster } from '../../src/sdk/sdk.ts';
import { TestCluster, until } from '../support/cluster.ts';
import { FakeClocks } from '../support/fake-clock.ts';
import { batch, failureIn, RawDriver, type Frame } from '../support/raw-driver.ts';
import { errorsOf, underLoad } from '../support/tenant-load.ts';

const TEST_TIMEOUT_MS = 240_000;
vi.setConfig({ testTimeout: TEST_TIMEOUT_MS, hookTimeout: TEST_TIMEOUT_MS });
const SEED = Number(process.env['FAULTS_SEED'] ?? 4_711);
const CALLS = ['task', 'put', 'get', 'actor'];
const MINUTE = 60;

const clocks = new FakeClocks();
let cluster: TestCluster;
beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 2, cpus: 2, launch: (name) => clocks.launch(name) });
});
afterAll(async () => {
  await cluster?.stop();
  clocks[Symbol.dispose]();
});

it.each([
  ['a raylet’s', 'raylet-1', 2 * MINUTE],
  ['a raylet’s', 'raylet-2', -2 * MINUTE],
  ['the head’s', 'head', 2 * MINUTE],
  ['the head’s', 'head', -2 * MINUTE],
] as const)('%s clock (%s) jumps by %i seconds: no call is lost, no time limit ends early, no node dies', async (_whose, name, seconds) => {
  const before = await cluster.deaths();
  const { both } = await underLoad(cluster, SEED + seconds, async ({ both }) => {
    // One at home on each raylet.
    const homes = new Map<string, Cluster>();
    const drivers: Cluster[] = [];
    for (let i = 0; homes.size < 2 && i < 30; i++) {
      const driver = await cluster.connect(i % 2 === 0 ? 'acme-dev' : 'globex-dev');
      drivers.push(driver);
      homes.set(driver.nodeId, driver);
    }
    expect(homes.size).toBe(2);
    const limited = [...homes.values()].map(async (driver) => {
      const work = await driver.module<typeof import('../support/fault-work.ts')>(new URL('../support/fault-work.ts', import.meta.url));
      const ref = work.addSlowly.options({ timeoutMs: 60_000, cpus: 0.1, maxRetries: 0 })(1, 2, 6_000);
      return driver.get(ref, { timeoutMs: 90_000 }).then((value) => `answered ${value}`, (thrown: { code?: string; message: string }) => `${thrown.code}: ${thrown.message}`);
    });
    await sleep(1_000);
    clocks.set(name, seconds);
    await sleep(2_000);
    expect(await Promise.all(limited)).toEqual(['answered 3', 'answered 3']);
    await Promise.all(both.map((load) => load.served(3)));
    clocks.set(name, 0);
    await sleep(2_000);
    await Promise.all(drivers.map((driver) => driver.close()));
  });
  for (const load of both) expect([load.sessions, CALLS.flatMap((what) => load.codesOf(what))], errorsOf(load)).toEqual([1, []]);
  expect(await cluster.deaths()).toEqual(before);
});

it('a raylet behind the head’s clock goes on with the credential before, says so, and has the renewed one when its clock is right; a forged one ends the channel', async () => {
  const [globex, dev] = await Promise.all([cluster.as('globex-dev'), cluster.as('acme-dev')]);
  const session = await globex.to(Sessions).open({ jobName: 'raw', jobId: '' });
  const drivers = await Promise.all(['the renewed', 'the neighbour', 'forged', 'forged'].map(() => RawDriver.attach(globex, 'raylet-2', session.credential)));
  const renewed = drivers[0] as RawDriver;
  const renew = (driver: RawDriver, credential: string): void => driver.send(batch((w) => w.begin(OP.CREDENTIAL).text(credential)));
  clocks.set('raylet-2', -2 * MINUTE);
  let refused: Frame | undefined;
  // Its clock is read again within a second; before that what is renewed is taken.
  await until('the raylet is behind', async () => {
    renew(renewed, (await globex.to(Sessions).refresh({ jobId: session.jobId, sessionId: session.sessionId })).credential);
    refused = await renewed.next((f) => f.op === OP.CREDENTIAL_REFUSED, 500);
    return refused !== undefined;
  }, 30_000);
  expect(failureIn((refused as Frame).body, 0)).toMatchObject({ code: 'UNAUTHENTICATED', message: expect.stringContaining('from the future') as string });
  expect(await renewed.alive()).toBe(true);
  const other = await RawDriver.session(dev);
  for (const [i, forged] of [other.credential, session.credential.replace(/.{6}$/, 'AAAAAA')].entries()) {
    const driver = drivers[2 + i] as RawDriver;
    renew(driver, forged);
    expect((await driver.ended).error?.code).toBe('UNAUTHENTICATED');
  }
  clocks.set('raylet-2', 0);
  await sleep(2_000);
  expect(await Promise.all(drivers.map((driver) => driver.alive()))).toEqual([true, true, false, false]);
  for (const driver of drivers) driver[Symbol.dispose]();
});

it('a raylet whose clock is two hours ahead takes nobody’s identity; set right, it serves again', async () => {
  const { both } = await underLoad(cluster, SEED + 1, async ({ both }) => {
    clocks.set('raylet-2', 120 * MINUTE);
    await sleep(6_000);
    await Promise.all(both.map((load) => load.served(1)));
    clocks.set('raylet-2', 0);
    await until('all nodes are alive again', async () => cluster.settled().then(() => true, () => false), 90_000);
  });
  for (const load of both) expect(CALLS.flatMap((what) => load.codesOf(what)).filter((code) => !['UNAVAILABLE', 'WORKER_DIED', 'ACTOR_UNAVAILABLE', 'ACTOR_DIED', 'UNAUTHENTICATED'].includes(code)), errorsOf(load)).toEqual([]);
});
