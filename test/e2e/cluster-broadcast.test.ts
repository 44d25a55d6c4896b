/** One large object for all nodes of a real cluster: each has it whole, some from others than its owner, every reader is on record, and a node that stands still holds up nobody. */
import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { Audit } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import type { Cluster, ObjectRef } from '../../src/sdk/sdk.ts';
import { TestCluster, until } from '../support/cluster.ts';

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 });

const NODES = 6;
let cluster: TestCluster;
let driver: Cluster;
let others: string[];

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: NODES, cpus: 1 });
  driver = await cluster.connect('acme-dev');
  others = Array.from({ length: NODES }, (_, i) => cluster.node(`raylet-${i + 1}`)).filter(({ nodeId }) => nodeId !== driver.nodeId).map(({ name }) => name);
});
afterAll(() => cluster?.stop());

/** Decisions of reading that a node has recorded: those about copies of others' objects, or the rest. */
async function reads(raylet: string, copies: boolean): Promise<number> {
  let n = 0;
  for await (const { record: line } of (await cluster.as('acme-siem')).on(raylet, Audit).tail({ tenant: 'acme', last: 10_000 })) {
    const record = JSON.parse(line) as { action?: string; detail?: string; allow?: boolean };
    if (record.action === 'object.get' && record.allow === true && (record.detail === 'copy') === copies) n++;
  }
  return n;
}

/** What comes of the object on every other node, by tasks that keep it until all have it. */
function everywhere(ref: ObjectRef<Uint8Array>, on: readonly string[] = others): ObjectRef<string>[] {
  return on.map((name) => driver.task((bytes: Uint8Array) => `${bytes.length} ${bytes.reduce((sum, octet) => (sum * 31 + octet) >>> 0, 7)}`, { nodeAffinity: cluster.node(name).nodeId })(ref));
}

function told(bytes: Uint8Array): string {
  return `${bytes.length} ${bytes.reduce((sum, octet) => (sum * 31 + octet) >>> 0, 7)}`;
}

describe('a large object that all nodes want', () => {
  it('reaches each whole; nodes that have it serve others, and each reader is on record', async () => {
    const bytes = new Uint8Array(randomBytes(6 * 2 ** 20));
    const owner = cluster.nodeById(driver.nodeId).name;
    const before = await reads(owner, false);
    let copies = 0;
    // Whom a node gets it from depends on who is when where: some round has more than two that ask at once.
    await until('a node has it from another one than its owner', async () => {
      const ref = await driver.put(bytes);
      expect(await driver.get(everywhere(ref))).toEqual(others.map(() => told(bytes)));
      driver.release(ref);
      copies = (await Promise.all(others.map((name) => reads(name, true)))).reduce((sum, n) => sum + n, 0);
      return copies > 0;
    });
    expect(await reads(owner, false)).toBeGreaterThanOrEqual(before + others.length);
  });

  it('does so while one of them stands still', async () => {
    const bytes = new Uint8Array(randomBytes(4 * 2 ** 20));
    const [still = '', ...rest] = others;
    const { pid } = cluster.node(still);
    const ref = await driver.put(bytes);
    process.kill(pid, 'SIGSTOP');
    try {
      // The one that asks first has a turn and does not take it.
      const stuck = everywhere(ref, [still]);
      expect(await driver.get(everywhere(ref, rest))).toEqual(rest.map(() => told(bytes)));
      for (const result of stuck) driver.release(result);
    } finally {
      process.kill(pid, 'SIGCONT');
    }
  });
});
