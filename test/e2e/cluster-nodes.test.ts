/** What happens to work on two nodes when parts of the cluster come and go: drivers, workers, raylets, the head. */
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Inspection } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import { Cluster as ClusterService, Identities, Jobs } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import type { Cluster, RemoteModule } from '../../src/sdk/sdk.ts';
import { driverProgram, failure, TestCluster, until } from '../support/cluster.ts';
import { fileURLToPath } from 'node:url';

type Work = typeof import('../support/work.ts');

let cluster: TestCluster;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 2, cpus: 2 });
});
afterAll(() => cluster?.stop());

async function open(profile = 'acme-dev', on?: string): Promise<{ driver: Cluster; work: RemoteModule<Work> }> {
  for (let i = 0; i < 64; i++) {
    const driver = await cluster.connect(profile);
    if (on === undefined || cluster.nodeById(driver.nodeId).name === on) return { driver, work: await driver.module<Work>(new URL('../support/work.ts', import.meta.url)) };
    await driver.close();
  }
  throw new Error(`no job came to ${on}`);
}

async function list(raylet: string, kind: string, jobId = ''): Promise<{ id: string; name: string; state: string; reason: string; jobId: string }[]> {
  const { entities } = await (await cluster.as('acme-dev')).on(raylet, Inspection).list({ kind, tenant: 'acme', jobId });
  return entities;
}

const other = (name: string): string => (name === 'raylet-1' ? 'raylet-2' : 'raylet-1');

describe('two nodes', () => {
  it('share eleven slow tasks', async () => {
    const { driver, work } = await open();
    const home = cluster.nodeById(driver.nodeId).name;
    const refs = Array.from({ length: 11 }, () => work.where.options({ name: 'slow' })(400));
    // A task is listed where it was submitted, wherever it runs.
    await until('tasks run on the other node too', async () => (await list(home, 'tasks')).some((t) => t.name === 'slow' && t.state === 'RUNNING' && t.reason.includes(cluster.node(other(home)).nodeId)));
    // Forwarded is RUNNING at home from the moment it leaves.
    await until('a worker is there', async () => (await list(other(home), 'workers')).length > 0);
    await until('and here', async () => (await list(home, 'tasks')).some((t) => t.name === 'slow' && t.state.startsWith('RUNNING') && t.reason === ''));
    expect(await driver.get(refs)).toEqual(refs.map(() => 'done'));
    await driver.close();
  });

  it('serve actors of each other’s jobs', async () => {
    const { driver, work } = await open();
    const home = cluster.nodeById(driver.nodeId).name;
    // Each takes a whole node.
    const actors = await Promise.all([0, 10].map((n) => work.Counter.options({ cpus: 2 }).create(n)));
    expect(await driver.get(actors.map((a) => a.add(1)))).toEqual([1, 11]);
    expect((await list(other(home), 'actors')).filter((a) => a.state === 'ALIVE').length).toBe(1);
    const far = actors[1] as (typeof actors)[0];
    await driver.get(Array.from({ length: 200 }, (_, i) => far.note(i)));
    expect(await driver.get(far.seen())).toEqual(Array.from({ length: 200 }, (_, i) => i));
    await Promise.all(actors.map((a) => driver.kill(a)));
    await until('both are dead on both nodes', async () => [...(await list(home, 'actors')), ...(await list(other(home), 'actors'))].every((a) => a.state === 'DEAD'));
    await driver.close();
  });
});

describe('a driver that is killed', () => {
  it('takes its tasks, what those started, its actors and its objects along', async () => {
    const program = driverProgram(fileURLToPath(new URL('../support/driver.ts', import.meta.url)), { TEST_PROFILE: cluster.profile('acme-ana') });
    let said = '';
    program.stderr?.on('data', (chunk: Buffer) => (said += chunk.toString()));
    try {
      const [line] = (await Promise.race([once(createInterface({ input: program.stdout as NodeJS.ReadableStream }), 'line'), once(program, 'exit').then(() => [undefined])])) as [string | undefined];
      if (line === undefined) throw new Error(`the driver ended: ${said}`);
      const { job, node, object } = JSON.parse(line) as { job: string; node: string; object: string };
      const home = cluster.nodeById(node).name;
      await until('its children run', async () => (await Promise.all(['raylet-1', 'raylet-2'].map((r) => list(r, 'tasks', job)))).flat().filter((t) => t.name === 'sleep' && t.state === 'RUNNING').length >= 3);
      program.kill('SIGKILL');
      await until('its tasks are gone', async () => (await Promise.all(['raylet-1', 'raylet-2'].map((r) => list(r, 'tasks', job)))).flat().every((t) => t.state === 'FAILED' || t.state === 'FINISHED'));
      await until('its actor is gone', async () => (await Promise.all(['raylet-1', 'raylet-2'].map((r) => list(r, 'actors', job)))).flat().every((a) => a.state === 'DEAD'));
      await until('no cpu of either node is held', async () => (await (await cluster.as('admin')).to(ClusterService).listNodes({})).nodes.every((n) => n.available?.cpuUnits === n.total?.cpuUnits));
      await until('its object is gone', async () => !(await list(home, 'objects')).some((o) => o.id === object));
      const { driver } = await open('acme-ana');
      expect((await failure(driver.actor('of-the-driver'))).code).toBe('DENIED');
      await driver.close();
    } finally {
      program.kill('SIGKILL');
    }
  });
});

it('drivers that leave while their workers start leave no cpu held', async () => {
  for (let i = 0; i < 4; i++) {
    const { driver, work } = await open('acme-dev');
    // Sizes that no idle worker has.
    for (let k = 0; k < 3; k++) work.add.options({ memory: `${300 + 8 * (3 * i + k)}MiB`, cpus: 0.5 })(1, 1);
    await driver.close();
  }
  await until('no cpu of either node is held', async () => (await (await cluster.as('admin')).to(ClusterService).listNodes({})).nodes.every((n) => n.available?.cpuUnits === n.total?.cpuUnits && n.available?.memoryBytes === n.total?.memoryBytes));
});

describe('a job that is stopped', () => {
  it('ends its driver’s calls, and its credential opens nothing more', async () => {
    const { driver, work } = await open('acme-dev');
    const running = work.sleep.options({ name: 'stopped' })(600_000);
    const home = cluster.nodeById(driver.nodeId).name;
    await until('it runs', async () => (await list(home, 'tasks', driver.jobId)).some((t) => t.state === 'RUNNING'));
    await (await cluster.as('acme-ana')).to(Jobs).stop({ jobId: driver.jobId });
    const error = await failure(driver.get(running));
    expect(['CANCELLED', 'UNAVAILABLE']).toContain(error.code);
    await until('nothing of it is left', async () => (await list(home, 'tasks', driver.jobId)).every((t) => t.state === 'FAILED'));
  });
});

describe('the head is killed', () => {
  it('running drivers do not notice; new ones come in when it is back', async () => {
    const { driver, work } = await open();
    const counter = await work.Counter.create(0);
    const slow = work.sleep(1_500);
    await driver.get(counter.add(1));
    const before = cluster.headPid;
    await cluster.kill('head');
    expect(await driver.get(Array.from({ length: 100 }, (_, i) => work.add(i, 1)))).toEqual(Array.from({ length: 100 }, (_, i) => i + 1));
    expect(await driver.get(counter.add(1))).toBe(2);
    expect(await driver.get(await driver.put(new Uint8Array(300_000)))).toHaveLength(300_000);
    const naps = Array.from({ length: 4 }, () => work.sleep.options({ cpus: 1 })(300));
    expect(await driver.get(naps)).toEqual([300, 300, 300, 300]);
    expect((await failure(cluster.connect('acme-dev'))).code).toBe('UNAVAILABLE');
    await cluster.restart('head');
    expect(cluster.headPid).not.toBe(before);
    await Promise.all(['admin', 'acme-dev', 'acme-ana'].map((name) => cluster.forget(name)));
    await cluster.settled();
    expect(await driver.get(slow)).toBe(1_500);
    const later = await open();
    expect(await later.driver.get(later.work.add(2, 2))).toBe(4);
    expect(await driver.get(counter.add(1))).toBe(3);
    const jobs = (await (await cluster.as('acme-dev')).to(Jobs).list({ tenant: 'acme' })).jobs;
    expect(jobs.find((j) => j.jobId === driver.jobId)?.status).toBe('RUNNING');
    // A named actor of a job that began before still registers and is found.
    const named = await work.Counter.options({ name: 'after-the-restart' }).create(5);
    expect(await later.driver.get((await later.driver.actor<import('../support/work.ts').Counter>('after-the-restart')).add(1))).toBe(6);
    await driver.kill(named);
    await Promise.all([driver.close(), later.driver.close()]);
  });
});

describe('an identity of a node', () => {
  it('is renewed without cutting a driver’s stream', async () => {
    const { driver, work } = await open();
    const admin = await cluster.as('admin');
    const issued = (await admin.to(Identities).showPki({})).issued;
    // A new authority makes every node take a new SVID; the streams that are open stay.
    await admin.to(Identities).rotateAuthority({});
    const refs = [];
    for (let i = 0; i < 30; i++) {
      refs.push(work.add(i, 0));
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    expect(await driver.get(refs)).toEqual(refs.map((_, i) => i));
    expect((await admin.to(Identities).showPki({})).issued).toBeGreaterThanOrEqual(issued);
    const later = await open();
    expect(await later.driver.get(later.work.add(1, 1))).toBe(2);
    await Promise.all([driver.close(), later.driver.close()]);
  });
});

// Last: it leaves the cluster with one node that was away.
describe('a raylet is killed', () => {
  it('its own drivers get typed errors; tasks that others sent there run again', async () => {
    const stays = await open('acme-dev', 'raylet-1');
    const goes = await open('acme-ana', 'raylet-2');
    const lost = goes.work.sleep.options({ name: 'lost' })(600_000);
    const held = await goes.driver.put(new Uint8Array(300_000));
    await goes.driver.wait([held], { count: 1, timeoutMs: 10_000 });
    const refs = Array.from({ length: 4 }, () => stays.work.sleep.options({ name: 'moved', maxRetries: 3 })(1_200));
    await until('some run on the other node', async () => (await list('raylet-1', 'tasks')).some((t) => t.name === 'moved' && t.state === 'RUNNING' && t.reason.includes(cluster.node('raylet-2').nodeId)));
    const borrowed = stays.driver.ref<Uint8Array>(held.id);
    await cluster.kill('raylet-2');
    expect((await failure(goes.driver.get(lost))).code).toBe('UNAVAILABLE');
    expect((await failure(Promise.resolve().then(() => goes.driver.get(goes.work.add(1, 1))))).code).toBe('UNAVAILABLE');
    expect(await stays.driver.get(refs)).toEqual([1_200, 1_200, 1_200, 1_200]);
    const error = await failure(stays.driver.get(borrowed, { timeoutMs: 15_000 }));
    expect(['OBJECT_LOST', 'UNAVAILABLE']).toContain(error.code);
    expect(await stays.driver.get(stays.work.add(1, 1))).toBe(2);
    // New drivers all come to the node that is left.
    for (let i = 0; i < 4; i++) {
      const next = await open();
      expect(cluster.nodeById(next.driver.nodeId).name).toBe('raylet-1');
      expect(await next.driver.get(next.work.add(i, 1))).toBe(i + 1);
      await next.driver.close();
    }
    await stays.driver.close();
  });

  it('and is the same node when it comes back', async () => {
    const before = cluster.node('raylet-2').nodeId;
    await cluster.restart('raylet-2');
    expect(cluster.node('raylet-2').nodeId).toBe(before);
    await cluster.settled();
    const { driver, work } = await open('acme-dev', 'raylet-2');
    expect(await driver.get(work.add(1, 2))).toBe(3);
    await driver.close();
  });
});

it('nothing broke inside', () => {
  expect(cluster.faults()).toEqual([]);
});
