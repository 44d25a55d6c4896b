/**
 * Processes of a real cluster are killed and stopped under the load of two tenants. What clients were told holds, each acknowledged call has
 * its record once in logs that verify offline, nobody reads across the wall, and all of it goes on without a hand but the supervisor's restart.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import { TestCluster, until } from '../support/cluster.ts';
import { errorsOf, random, underLoad } from '../support/tenant-load.ts';

const TEST_TIMEOUT_MS = 240_000;
vi.setConfig({ testTimeout: TEST_TIMEOUT_MS, hookTimeout: TEST_TIMEOUT_MS });
const SEED = Number(process.env['FAULTS_SEED'] ?? 20_261_124);

let cluster: TestCluster;
beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 2, cpus: 2 });
});
afterAll(() => cluster?.stop());

it(`workers that are killed at random moments cost no task and no object (seed ${SEED})`, async () => {
  const next = random(SEED);
  let killed = 0;
  const { both } = await underLoad(cluster, SEED, async ({ both }) => {
    for (let i = 0; i < 8; i++) {
      await sleep(300 + next() * 900);
      const pids = cluster.workerPids().filter((pid) => cluster.jailOf(pid).length > 0);
      const victim = pids[Math.floor(next() * pids.length)];
      if (victim === undefined) continue;
      try {
        process.kill(victim, 'SIGKILL');
        killed++;
      } catch {
        // It ended by itself.
      }
      if (i === 4) await Promise.all(both.map((load) => load.served(1)));
    }
  });
  expect(killed).toBeGreaterThan(4);
  for (const load of both) {
    // Tasks are tried again; an actor starts again, and the call under way is told.
    expect(load.codesOf('task'), errorsOf(load)).toEqual([]);
    expect(load.codesOf('put').concat(load.codesOf('get')), errorsOf(load)).toEqual([]);
    expect(['ACTOR_UNAVAILABLE'], errorsOf(load)).toEqual(expect.arrayContaining(load.codesOf('actor')));
    expect(load.sessions).toBe(1);
  }
});

it(`a raylet that is killed and started on its data: typed errors, and no record lost or doubled (seed ${SEED})`, async () => {
  const next = random(SEED + 1);
  const { both } = await underLoad(cluster, SEED + 10, async ({ both }) => {
    for (let i = 0; i < 3; i++) {
      await sleep(500 + next() * 1_500);
      const name = `raylet-${1 + Math.floor(next() * 2)}`;
      await cluster.kill(name);
      await sleep(next() * 1_000);
      await cluster.restart(name);
      await Promise.all(both.map((load) => load.served(1)));
    }
  });
  for (const load of both) {
    expect(['UNAVAILABLE', 'WORKER_DIED', 'OBJECT_LOST', 'ACTOR_UNAVAILABLE', 'ACTOR_DIED'], errorsOf(load)).toEqual(expect.arrayContaining(['task', 'put', 'get', 'actor'].flatMap((what) => load.codesOf(what))));
  }
});

it('a head that is killed and started again costs no call of a session that is open', async () => {
  const { both } = await underLoad(cluster, SEED + 20, async ({ both }) => {
    for (let i = 0; i < 2; i++) {
      await cluster.kill('head');
      await Promise.all(both.map((load) => load.served(2)));
      await cluster.restart('head');
      await Promise.all(['admin', 'acme-ana', 'globex-ana'].map((name) => cluster.forget(name)));
      await cluster.settled();
    }
  });
  for (const load of both) {
    expect([load.sessions, ['task', 'put', 'get', 'actor'].flatMap((what) => load.codesOf(what))], errorsOf(load)).toEqual([1, []]);
  }
});

it('a worker that is stopped with work in hand is ended, its tasks run again, and its neighbours do not notice', async () => {
  const { both } = await underLoad(cluster, SEED + 30, async ({ both }) => {
    const pids = cluster.workerPids().filter((pid) => cluster.jailOf(pid).length > 0);
    const stopped = pids.slice(0, 2);
    for (const pid of stopped) process.kill(pid, 'SIGSTOP');
    await Promise.all(both.map((load) => load.served(3)));
    // One that has nothing in hand is not asked, and goes on when it may.
    for (const pid of stopped) {
      try {
        process.kill(pid, 'SIGCONT');
      } catch {
        // The raylet has ended it.
      }
    }
  });
  for (const load of both) expect([load.codesOf('task'), load.codesOf('put'), load.codesOf('get')], errorsOf(load)).toEqual([[], [], []]);
});

it.each([2_000, 8_000])('a raylet that is stopped for %i ms goes on, or is gone to the others and comes back', async (ms) => {
  const { both } = await underLoad(cluster, SEED + 40 + ms, async () => {
    const { pid } = cluster.node('raylet-2');
    process.kill(pid, 'SIGSTOP');
    await sleep(ms);
    process.kill(pid, 'SIGCONT');
  });
  for (const load of both) expect(['UNAVAILABLE', 'WORKER_DIED', 'ACTOR_UNAVAILABLE', 'ACTOR_DIED'], errorsOf(load)).toEqual(expect.arrayContaining(['task', 'put', 'get', 'actor'].flatMap((what) => load.codesOf(what))));
  await cluster.settled();
});

it('a head that is stopped for eight seconds costs no call, and no node', async () => {
  const before = await cluster.deaths();
  const { both } = await underLoad(cluster, SEED + 50, async ({ both }) => {
    process.kill(cluster.headPid, 'SIGSTOP');
    const started = performance.now();
    await Promise.all(both.map((load) => load.served(2)));
    await sleep(Math.max(0, 8_000 - (performance.now() - started)));
    process.kill(cluster.headPid, 'SIGCONT');
    await until('all nodes are alive again', async () => cluster.settled().then(() => true, () => false), 60_000);
  });
  for (const load of both) expect([load.sessions, ['task', 'put', 'get', 'actor'].flatMap((what) => load.codesOf(what))], errorsOf(load)).toEqual([1, []]);
  expect(await cluster.deaths()).toEqual(before);
});

it('nothing went wrong inside', () => {
  expect(cluster.faults()).toEqual([]);
});
