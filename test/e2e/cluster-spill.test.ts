/** Objects beyond the memory they may take, on real processes: encrypted on disk and back, damaged and exchanged files, nodes that die, nothing left behind. */
import { copyFileSync, existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { rayletDirectory, runDirectory } from '../../src/cli/leftovers.ts';
import { Tenants } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { Audit, Inspection } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import type { Cluster, ObjectRef, RemoteModule } from '../../src/sdk/sdk.ts';
import { failure, TestCluster, until } from '../support/cluster.ts';

type Work = typeof import('../support/work.ts');
const MIB = 2 ** 20;

let cluster: TestCluster;
let driver: Cluster;
let work: RemoteModule<Work>;
let home: string;
let away: string;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 2, cpus: 1, quota: { objects: '256MiB', objectMemory: '6MiB' } });
  driver = await cluster.connect('acme-dev');
  work = await driver.module<Work>(new URL('../support/work.ts', import.meta.url));
  home = cluster.nodeById(driver.nodeId).name;
  away = home === 'raylet-1' ? 'raylet-2' : 'raylet-1';
});
afterAll(() => cluster?.stop());

const spillDir = (raylet: string, tenant: string): string => join(rayletDirectory(cluster.dataDir, raylet), 'spill', tenant);
const spills = (raylet: string, tenant = 'acme'): string[] => (existsSync(spillDir(raylet, tenant)) ? readdirSync(spillDir(raylet, tenant)).map((name) => join(spillDir(raylet, tenant), name)) : []);

function inMemory(raylet: string): number {
  const dir = join(runDirectory(cluster.dataDir), raylet, 'objects', 'acme');
  return existsSync(dir) ? readdirSync(dir).reduce((sum, name) => sum + statSync(join(dir, name)).size, 0) : 0;
}

async function stateOf(ref: ObjectRef<unknown>): Promise<string | undefined> {
  const { entities } = await (await cluster.as('acme-dev')).on(home, Inspection).list({ kind: 'objects', tenant: 'acme' });
  return entities.find((e) => e.id === ref.id)?.state;
}

/** Comparing a megabyte octet by octet is the test runner's slowest way. */
function isAll(value: Uint8Array, octet: number): boolean {
  return value.length > 0 && Buffer.from(value).equals(Buffer.alloc(value.length, octet));
}

async function fill(mib: number): Promise<ObjectRef<Uint8Array>[]> {
  const refs: ObjectRef<Uint8Array>[] = [];
  for (let i = 0; i < mib; i++) refs.push(await driver.put(new Uint8Array(MIB).fill(i + 1)));
  return refs;
}

function damage(path: string): void {
  const bytes = readFileSync(path);
  bytes[bytes.length - 100] = (bytes[bytes.length - 100] as number) ^ 1;
  writeFileSync(path, bytes);
}

describe('more than the memory that objects may take', () => {
  it('goes to disk, encrypted, and comes back whole to gets and to tasks', async () => {
    const refs = await fill(20);
    await until('what is over the limit is on disk', () => spills(home).length >= 14 && inMemory(home) <= 6.5 * MIB);
    for (const path of spills(home)) {
      const bytes = readFileSync(path);
      // A megabyte of one octet would show.
      expect(bytes.includes(Buffer.alloc(64, bytes[bytes.length - 40] as number))).toBe(false);
    }
    expect(await stateOf(refs[0] as ObjectRef<Uint8Array>)).toBe('SPILLED');
    for (const [i, ref] of refs.entries()) expect(isAll(await driver.get(ref), i + 1)).toBe(true);
    expect(await driver.get(work.lengthOf(refs[3] as unknown as Uint8Array))).toBe(MIB);
    expect(inMemory(home)).toBeLessThanOrEqual(9 * MIB);
    const { ready } = await driver.wait(refs, { count: refs.length, timeoutMs: 1_000 });
    expect(ready).toHaveLength(refs.length);
    for (const ref of refs) driver.release(ref);
    await until('files of objects that nobody holds are gone', () => spills(home).length === 0 && inMemory(home) === 0);
  });

  it('a damaged file of a put is OBJECT_LOST, with the reason; a damaged file of a result is computed again', async () => {
    const made = work.bytes(MIB, 9);
    await driver.wait([made], { count: 1, timeoutMs: 20_000 });
    const put = await driver.put(new Uint8Array(MIB).fill(5));
    const others = await fill(8);
    await until('both are on disk', async () => (await stateOf(put)) === 'SPILLED' && ['SPILLED', 'REMOTE'].includes((await stateOf(made)) ?? ''));
    for (const path of spills(home)) damage(path);
    const lost = await failure(driver.get(put));
    expect([lost.code, lost.message]).toEqual(['OBJECT_LOST', expect.stringMatching(/not what was written.*cannot be computed again: it was put/)]);
    expect(isAll(await driver.get(made), 9)).toBe(true);
    for (const ref of [made, put, ...others]) driver.release(ref);
    await until('all is gone', () => spills(home).length === 0);
  });

  it('another tenant’s file, moved in the place of one’s own, opens nothing', async () => {
    const globex = await cluster.connect('globex-dev');
    try {
      const near = cluster.nodeById(globex.nodeId).name;
      const theirs: ObjectRef<Uint8Array>[] = [];
      for (let i = 0; i < 9; i++) theirs.push(await globex.put(new Uint8Array(MIB).fill(77)));
      const mine = await fill(9);
      await until('both tenants have something on disk', () => spills(near, 'globex').length > 0 && spills(home).length > 0);
      await until('nothing more is being written', async () => (await stateOf(mine[0] as ObjectRef<Uint8Array>)) === 'SPILLED');
      for (const path of spills(home)) copyFileSync(spills(near, 'globex')[0] as string, path);
      const got = await Promise.all(mine.map((ref) => driver.get(ref).then((value) => value[0], (error: unknown) => (error as { code: string }).code)));
      expect(got[0]).toBe('OBJECT_LOST');
      expect(got).not.toContain(77);
      for (const ref of theirs) globex.release(ref);
      for (const ref of mine) driver.release(ref);
    } finally {
      await globex.close();
    }
  });

  it('which nodes hold a key for a tenant’s data is in its log', async () => {
    const issued: string[] = [];
    for await (const { record: line } of (await cluster.as('acme-siem')).to(Audit).tail({ tenant: 'acme', last: 10_000 })) {
      const record = JSON.parse(line) as { event?: string; principal: string; detail: string };
      if (record.event === 'key.issued') issued.push(`${record.principal} ${record.detail}`);
    }
    const { nodeId } = cluster.node(home);
    expect(issued).toContain(`spiffe://${cluster.trustDomain}/node/${nodeId} data key of node ${nodeId}`);
    // One for each process, however much it wrote.
    expect(new Set(issued).size).toBe(issued.length);
  });
});

describe('when a node dies', () => {
  it('results that were there are computed again, puts of its drivers are gone, and the next start leaves no file of before', async () => {
    const holding = work.sleep.options({ name: 'hold' })(60_000);
    await until('the cpu here is taken', async () => (await (await cluster.as('acme-dev')).on(home, Inspection).list({ kind: 'tasks', tenant: 'acme' })).entities.some((e) => e.name === 'hold' && e.state === 'RUNNING' && e.reason === ''));
    const made = work.bytes(2 * MIB, 3);
    await driver.wait([made], { count: 1, timeoutMs: 20_000 });
    expect(await stateOf(made)).toBe('REMOTE');
    await driver.cancel(holding, { force: true });
    writeFileSync(join(rayletDirectory(cluster.dataDir, away), 'spill', 'left-over'), 'x');
    await cluster.kill(away);
    expect(isAll(await driver.get(made), 3)).toBe(true);
    await cluster.restart(away);
    expect(readdirSync(join(rayletDirectory(cluster.dataDir, away), 'spill'))).toEqual([]);
    for (const ref of [made, holding]) driver.release(ref);
  });
});

describe('a tenant that is deleted', () => {
  it('leaves no file', async () => {
    const refs = await fill(9);
    await until('something is on disk', () => spills(home).length > 0);
    expect(refs).toHaveLength(9);
    await (await cluster.as('admin')).to(Tenants).delete({ tenant: 'acme' });
    await until('its directory is gone', () => !existsSync(spillDir(home, 'acme')));
  });
});
