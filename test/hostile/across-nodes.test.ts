/** On a real cluster of two nodes: rules inside a tenant hold where an object is not owned, what leaves its node is what was sealed, and a crash loop makes its own tenant wait. */
import { closeSync, openSync, readdirSync, statSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { runDirectory } from '../../src/cli/leftovers.ts';
import { Audit, Inspection } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import type { Cluster } from '../../src/sdk/sdk.ts';
import { failure, TestCluster, until } from '../support/cluster.ts';

type Work = typeof import('../support/work.ts');

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 });

let cluster: TestCluster;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 2, cpus: 2 });
  await cluster.applyPolicy('acme-ana', 'acme', `version: 1
tenant: acme
roles:
  nosecret:
    forbid:
      - { action: object.get, resource: object, when: { label: { eq: secret } } }
bindings:
  - { role: nosecret, to: 'user/dev' }
`);
});
afterAll(() => cluster?.stop());

async function on(profile: string, raylet: string): Promise<Cluster> {
  for (let i = 0; i < 64; i++) {
    const driver = await cluster.connect(profile);
    if (cluster.nodeById(driver.nodeId).name === raylet) return driver;
    await driver.close();
  }
  throw new Error(`no job came to ${raylet}`);
}

const codeOf = (promise: Promise<unknown>): Promise<string> => promise.then(() => 'OK', (error: unknown) => String((error as { code?: unknown }).code));

describe('an object that another node owns', () => {
  it.each([['small', 10], ['large', 700_000]])('a label’s rule holds for each principal, whoever reads first (%s)', async (_size, octets) => {
    const [owner, ana, dev] = await Promise.all([on('acme-ana', 'raylet-1'), on('acme-ana', 'raylet-2'), on('acme-dev', 'raylet-2')]);
    const make = owner.task(async (n: number, ms: number) => {
      await new Promise<void>((resolve) => {
        setTimeout(() => resolve(), ms);
      });
      return new Uint8Array(n).fill(7);
    }, { label: 'secret' });
    const slow = make(octets, 500);
    const together = await Promise.all([dev, ana, dev].map((driver) => codeOf(driver.get(driver.ref(slow.id)))));
    expect(together).toEqual(['DENIED', 'OK', 'DENIED']);
    // Now ana's copy is there, and kept: it is in a value of hers.
    const mine = ana.ref<Uint8Array>(slow.id);
    const kept = await ana.put({ mine });
    expect((await ana.get(mine)).length).toBe(octets);
    const size = dev.task((bytes: Uint8Array) => bytes.length);
    expect(await codeOf(dev.get(dev.ref(slow.id)))).toBe('DENIED');
    expect(await codeOf(dev.get(size(dev.ref<Uint8Array>(slow.id))))).toBe('DENIED');
    expect(await ana.get(ana.task((bytes: Uint8Array) => bytes.length)(mine))).toBe(octets);
    expect(kept.id).toBeTruthy();
    await Promise.all([owner, ana, dev].map((driver) => driver.close()));
  });

  it('whose file was written to after it left once leaves no more, and the owner’s log says so', async () => {
    const [owner, ana, dev] = await Promise.all([on('acme-ana', 'raylet-1'), on('acme-ana', 'raylet-2'), on('acme-dev', 'raylet-2')]);
    const ref = await owner.put(new Uint8Array(3_000_000).fill(1));
    expect((await ana.get(ana.ref<Uint8Array>(ref.id)))[2_999_999]).toBe(1);
    // As a worker of the tenant would that had kept the file open.
    const dir = join(runDirectory(cluster.dataDir), 'raylet-1', 'objects', 'acme');
    const file = readdirSync(dir).map((name) => join(dir, name)).find((path) => statSync(path).size > 3_000_000);
    if (file === undefined) throw new Error(`no such object in ${dir}`);
    const fd = openSync(file, 'r+');
    writeSync(fd, Buffer.from([2]), 0, 1, 1_500_000);
    closeSync(fd);
    const error = await failure(dev.get(dev.ref(ref.id)));
    expect([error.code, error.message]).toEqual(['OBJECT_LOST', expect.stringContaining('changed after it was sealed')]);
    await until('it is on record', async () => {
      for await (const { record } of (await cluster.as('acme-ana')).on('raylet-1', Audit).tail({ tenant: 'acme', last: 100, follow: false })) if (record.includes('object.altered')) return true;
      return false;
    });
    // The connection between the nodes serves others as before.
    const other = await owner.put(new Uint8Array(3_000_000).fill(3));
    expect((await dev.get(dev.ref<Uint8Array>(other.id)))[0]).toBe(3);
    await Promise.all([owner, ana, dev].map((driver) => driver.close()));
  });
});

it('a tenant whose workers crash in a loop waits, and its tasks run in the end; its neighbour notices nothing', async () => {
  await using one = await TestCluster.start({ raylets: 1, cpus: 2 });
  const [acme, globex] = await Promise.all([one.connect('acme-dev'), one.connect('globex-dev')]);
  const work = await acme.module<Work>(new URL('../support/work.ts', import.meta.url));
  const list = async (kind: string): Promise<{ id: string; name: string; reason: string }[]> => (await (await one.as('acme-dev')).on('raylet-1', Inspection).list({ kind, tenant: 'acme', jobId: acme.jobId })).entities;
  // Several at once: one alone is tried again later each time, and dies too seldom.
  const patient = Array.from({ length: 10 }, () => work.sleep.options({ name: 'patient', maxRetries: 100, cpus: 0.2 })(1_000));
  await until('its workers died more often than they may', async () => {
    if ((await list('tasks')).some(({ name, reason }) => name === 'patient' && reason.includes('died too often'))) return true;
    for (const { id } of (await (await one.as('acme-dev')).on('raylet-1', Inspection).list({ kind: 'workers', tenant: 'acme', jobId: '' })).entities) {
      for (const pid of one.workerPids('raylet-1').filter((p) => one.jailOf(p).includes(id))) process.kill(pid, 'SIGKILL');
    }
    return false;
  }, 90_000);
  const late = work.add.options({ maxRetries: 0 })(1, 2);
  expect(await globex.get(globex.task(() => 'at once')())).toBe('at once');
  expect(await acme.get([...patient, late])).toEqual([...patient.map(() => 1_000), 3]);
  await Promise.all([acme, globex].map((driver) => driver.close()));
}, 150_000);
