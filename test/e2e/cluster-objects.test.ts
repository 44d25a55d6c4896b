/** Objects on a cluster of two raylets: inline and large, waited for, moved between nodes, counted and freed, within a quota. */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { runDirectory } from '../../src/cli/leftovers.ts';
import { Inspection } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import type { Cluster, ObjectRef, RemoteModule } from '../../src/sdk/sdk.ts';
import { failure, TestCluster, until } from '../support/cluster.ts';

type Work = typeof import('../support/work.ts');
const MIB = 2 ** 20;

let cluster: TestCluster;
let driver: Cluster;
let work: RemoteModule<Work>;
/** The raylet that the driver talks to, and the other one. */
let home: string;
let away: string;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 2, cpus: 1, quota: { objects: '64MiB' } });
  driver = await cluster.connect('acme-dev');
  work = await driver.module<Work>(new URL('../support/work.ts', import.meta.url));
  home = cluster.nodeById(driver.nodeId).name;
  away = home === 'raylet-1' ? 'raylet-2' : 'raylet-1';
});
afterAll(() => cluster?.stop());

/** Files of acme's objects on a raylet, with their sizes. */
function files(raylet: string): number[] {
  const dir = join(runDirectory(cluster.dataDir), raylet, 'objects', 'acme');
  return existsSync(dir) ? readdirSync(dir).map((name) => statSync(join(dir, name)).size) : [];
}

async function objects(raylet: string): Promise<{ id: string; state: string; size: string | undefined }[]> {
  const { entities } = await (await cluster.as('acme-dev')).on(raylet, Inspection).list({ kind: 'objects', tenant: 'acme' });
  return entities.map(({ id, state, facts }) => ({ id, state, size: facts['size'] }));
}

/** Bytes of objects that tasks made on the node that the driver is not connected to. */
async function madeAway(n: number, fill: number): Promise<ObjectRef<Uint8Array>> {
  // One cpu a node: with the one here taken, a task goes to the other node.
  const holding = work.sleep.options({ name: 'hold-home' })(60_000);
  await until('the cpu here is taken', async () => (await (await cluster.as('acme-dev')).on(home, Inspection).list({ kind: 'tasks', tenant: 'acme' })).entities.some((e) => e.name === 'hold-home' && e.state === 'RUNNING' && e.reason === ''));
  const made = work.bytes(n, fill);
  await driver.wait([made], { count: 1, timeoutMs: 20_000 });
  await driver.cancel(holding, { force: true });
  driver.release(holding);
  return made;
}

describe('values', () => {
  it('come back as they went, inline', async () => {
    const value = { text: 'ä', list: [1, 2n, null, undefined], map: new Map([[{ k: 1 }, new Set([1])]]), when: new Date(5), floats: new Float64Array([0.5, -0]), nested: { deep: [[]] } };
    expect(await driver.get(await driver.put(value))).toEqual(value);
  });

  it('come back as they went, large', async () => {
    const value = new Uint8Array(5 * MIB).map((_, i) => i * 7);
    const ref = await driver.put(value);
    await driver.wait([ref], { count: 1, timeoutMs: 20_000 });
    expect(files(home).filter((size) => size >= 5 * MIB).length).toBe(1);
    expect((await objects(home)).filter((o) => o.id === ref.id).map((o) => Number(o.size))).toEqual(files(home).filter((size) => size >= 5 * MIB));
    expect(Buffer.compare(Buffer.from(await driver.get(ref)), Buffer.from(value))).toBe(0);
    expect(await driver.get(work.lengthOf(ref))).toBe(value.length);
    driver.release(ref);
  });

  it('are put by tasks and outlive them when they are returned', async () => {
    const { inner } = await driver.get(work.putBelow(300_000));
    const bytes = await driver.get(inner);
    expect([bytes.length, bytes[0], bytes.at(-1)]).toEqual([300_000, 9, 9]);
    driver.release(inner);
  });

  it('that are no values are refused, naming what they hold', async () => {
    expect((await failure(driver.put({ callback: () => 1 }))).code).toBe('INVALID_ARGUMENT');
    expect((await failure(driver.put(new (class Flight {})()))).message).toContain('Flight');
  });
});

describe('waiting', () => {
  it('returns what is ready when enough is', async () => {
    const fast = work.add(1, 1);
    const slow = work.sleep.options({ cpus: 0 })(60_000);
    const { ready, pending } = await driver.wait([slow, fast], { count: 1, timeoutMs: 20_000 });
    expect([ready, pending]).toEqual([[fast], [slow]]);
    await driver.cancel(slow, { force: true });
  });

  it('returns at its timeout with what there is, and get gives up at its own', async () => {
    const slow = work.sleep.options({ cpus: 0 })(60_000);
    expect(await driver.wait([slow], { count: 1, timeoutMs: 100 })).toEqual({ ready: [], pending: [slow] });
    expect((await failure(driver.get(slow, { timeoutMs: 100 }))).code).toBe('TIMEOUT');
    await driver.cancel(slow, { force: true });
  });

  it('counts what has failed as ready', async () => {
    const bad = work.fail('x');
    expect((await driver.wait([bad], { count: 1, timeoutMs: 20_000 })).ready).toEqual([bad]);
    expect((await failure(driver.get(bad))).code).toBe('TASK_FAILED');
  });

  it('takes a thousand refs', async () => {
    const refs = await Promise.all(Array.from({ length: 1_000 }, (_, i) => driver.put(i)));
    expect((await driver.wait(refs, { count: 1_000, timeoutMs: 20_000 })).ready.length).toBe(1_000);
    for (const ref of refs) driver.release(ref);
  });
});

describe('between nodes', () => {
  it('a result stays where it was made until it is wanted, then it is pulled', async () => {
    const made = await madeAway(2 * MIB, 5);
    expect(files(away).some((size) => size >= 2 * MIB)).toBe(true);
    expect(files(home).some((size) => size >= 2 * MIB)).toBe(false);
    const bytes = await driver.get(made);
    expect([bytes.length, bytes[0], bytes.at(-1)]).toEqual([2 * MIB, 5, 5]);
    driver.release(made);
    await until('both nodes have freed it', () => [...files(home), ...files(away)].every((size) => size < 2 * MIB));
  });

  it('a task gets an argument from another node', async () => {
    const made = await madeAway(MIB, 6);
    expect(await driver.get(work.lengthOf(made))).toBe(MIB);
    driver.release(made);
    await until('both nodes have freed it', () => [...files(home), ...files(away)].every((size) => size < MIB));
  });

  it('a driver on the other node gets it by its id, within the tenant', async () => {
    const ref = await driver.put(new Uint8Array(MIB).fill(3));
    const drivers: Cluster[] = [];
    // Which raylet a driver gets follows from its job's id.
    while (drivers.at(-1)?.nodeId !== cluster.node(away).nodeId) {
      expect(drivers.length).toBeLessThan(64);
      drivers.push(await cluster.connect('acme-ana'));
    }
    const other = drivers.at(-1) as Cluster;
    expect((await other.get(other.ref<Uint8Array>(ref.id))).length).toBe(MIB);
    await Promise.all(drivers.map((d) => d.close()));
    expect((await driver.get(ref)).length).toBe(MIB);
    driver.release(ref);
  });

  it('another tenant gets nothing by the same id, not even a reason', async () => {
    const ref = await driver.put('a secret');
    const spy = await cluster.connect('globex-ana');
    const real = await failure(spy.get(spy.ref(ref.id)));
    const never = await failure(spy.get(spy.ref(`${ref.id.slice(0, 20)}${'5'.repeat(32)}`)));
    expect([real.code, real.message]).toEqual(['DENIED', never.message]);
    expect(never.code).toBe('DENIED');
    await spy.close();
  });
});

describe('what nobody holds is freed', () => {
  it('with its file, when its last ref is released', async () => {
    const here = (): number => files(home).filter((size) => size >= 3 * MIB).length;
    const ref = await driver.put(new Uint8Array(3 * MIB));
    await until('it is there', () => here() === 1);
    driver.release(ref);
    await until('it is gone', () => here() === 0);
    expect((await objects(home)).some((o) => o.id === ref.id)).toBe(false);
  });

  it('not while a task still needs it', async () => {
    const ref = await driver.put(new Uint8Array(MIB));
    const slow = work.sleep(200);
    const length = driver.task((data: Uint8Array, _after: number) => data.length)(ref, slow);
    driver.release(ref);
    expect(await driver.get(length)).toBe(MIB);
    driver.release(length);
  });

  it('with everything inside it', async () => {
    const before = files(home).length;
    const { inner } = await driver.get(work.putBelow(MIB));
    expect((await driver.get(inner)).length).toBe(MIB);
    driver.release(inner);
    await until('the inner one is gone', () => files(home).length + files(away).length <= before);
  });

  it('when the driver goes', async () => {
    const short = await cluster.connect('acme-dev');
    const at = cluster.nodeById(short.nodeId).name;
    const here = (): number => files(at).filter((size) => size >= 4 * MIB).length;
    await short.put(new Uint8Array(4 * MIB));
    await until('it is there', () => here() === 1);
    await short.close();
    await until('it is gone', () => here() === 0);
  });
});

describe('the quota of the tenant', () => {
  it('refuses what does not fit and takes what does after a release', async () => {
    const first = await driver.put(new Uint8Array(40 * MIB));
    await driver.wait([first], { count: 1, timeoutMs: 20_000 });
    const second = await driver.put(new Uint8Array(40 * MIB));
    const error = await failure(driver.get(second));
    expect(error.code).toBe('QUOTA_EXCEEDED');
    driver.release(first);
    driver.release(second);
    const third = await driver.put(new Uint8Array(40 * MIB));
    expect((await driver.get(third)).length).toBe(40 * MIB);
    driver.release(third);
    await until('it is gone', () => files(home).every((size) => size < 40 * MIB));
  });

  it('counts what is still being sent', async () => {
    const refs = await Promise.all([1, 2, 3].map((fill) => driver.put(new Uint8Array(30 * MIB).fill(fill))));
    const settled = await Promise.allSettled(refs.map((ref) => driver.get(ref)));
    expect(settled.filter((s) => s.status === 'fulfilled').length).toBe(2);
    expect(settled.filter((s) => s.status === 'rejected').map((s) => (s.reason as { code: string }).code)).toEqual(['QUOTA_EXCEEDED']);
    for (const ref of refs) driver.release(ref);
    await until('they are gone', () => files(home).every((size) => size < 30 * MIB));
  });

  it('holds for results of tasks', async () => {
    const kept = await driver.put(new Uint8Array(50 * MIB));
    await driver.wait([kept], { count: 1, timeoutMs: 20_000 });
    const error = await failure(driver.get(work.bytes.options({ maxRetries: 0 })(30 * MIB, 1)));
    expect(error.code).toBe('QUOTA_EXCEEDED');
    driver.release(kept);
  });

  it('is each tenant’s own', async () => {
    const kept = await driver.put(new Uint8Array(50 * MIB));
    const other = await cluster.connect('globex-dev');
    expect((await other.get(await other.put(new Uint8Array(50 * MIB)))).length).toBe(50 * MIB);
    await other.close();
    driver.release(kept);
  });
});

it('in the end nothing is held, and nothing broke inside', async () => {
  await driver.close();
  await until('no files are left', () => files(home).length === 0 && files(away).length === 0);
  await until('no objects are listed', async () => (await objects(home)).length === 0 && (await objects(away)).length === 0);
  expect(cluster.faults()).toEqual([]);
});
