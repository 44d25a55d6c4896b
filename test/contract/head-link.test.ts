/** The raylet's stream to the head through renewals: a second stream takes over without a goodbye, a gap, or a step back in what it was told. */
import { afterEach, expect, it } from 'vitest';
import { LiveDecisionPoint } from '../../src/authz/authz.ts';
import { BulkheadError } from '../../src/base/errors.ts';
import { Revocations, type SvidSource } from '../../src/pki/pki.ts';
import { HeadLink } from '../../src/raylet/head-link.ts';
import type { Raylet } from '../../src/raylet/raylet.ts';
import { NodeSync } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { createChannel, createServer, type MessageStream } from '../../src/rpc/rpc.ts';
import { node, openFixture, row, system, until, type TestIdentity } from './rpc-fixture.ts';

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/** One stream as the head sees it. */
interface Seen {
  readonly stream: MessageStream<unknown, { tenants: { tenants: { name: string; number: number; state: string; quota: Record<string, string> }[] } }>;
  readonly serial: string;
  reports: number;
  end: 'goodbye' | 'lost' | undefined;
}

interface World {
  readonly seen: Seen[];
  /** Names of tenants, in the order in which the raylet was told. */
  readonly told: string[];
  readonly link: HeadLink;
  renew(): Promise<void>;
}

/** `answers`: what the head does with the n-th stream; default: it tells its number and ends the one before, as the real one does. */
async function world(answers: (n: number, tell: (name: string) => void, takeOver: () => void) => void): Promise<World> {
  const fixture = await openFixture();
  const seen: Seen[] = [];
  const server = createServer(fixture.security(await fixture.issue(system('head')), NodeSync.methods.map((m) => row(`bulkhead.v1.NodeSync/${m.name}`, { action: 'node.sync', resource: 'node', tenant: 'none', callers: ['node'] }))), { knowsTenant: () => true });
  const never = async (): Promise<never> => Promise.reject(new BulkheadError('DENIED', 'no'));
  server.add(NodeSync, {
    async sync(call, stream) {
      const mine: Seen = { stream: stream as unknown as Seen['stream'], serial: call.peer.serial, reports: 0, end: undefined };
      const before = seen.at(-1);
      const n = seen.push(mine);
      try {
        for await (const _report of stream) {
          if (++mine.reports > 1) continue;
          const tell = (name: string): void => void mine.stream.write({ tenants: { tenants: [{ name, number: 1, state: 'active', quota: {} }] } });
          answers(n, tell, () => before?.stream.end(new BulkheadError('UNAVAILABLE', 'another stream of this node took over')));
        }
        mine.end = 'goodbye';
      } catch {
        mine.end = 'lost';
      }
    },
    registerActorName: never, lookupActorName: never, releaseActorName: never, dataKey: never,
  });
  closers.push(() => server.close());
  const { port } = await server.listen('127.0.0.1:0');
  const identity: TestIdentity = await fixture.issue(node('n1'));
  const told: string[] = [];
  const nothing = { cpuUnits: 0, memoryBytes: 0, custom: undefined };
  const raylet = { available: () => nothing, queuedTasks: () => 0, monthUsage: () => [], shareReport: () => ({ serial: 0, epoch: 0, tenants: [] }), setTenant: (name: string) => void told.push(name) } as unknown as Raylet;
  const link = new HeadLink({
    channel: () => createChannel({ identity, peers: fixture.peers, address: `127.0.0.1:${port}`, expectedSpiffeId: 'spiffe://cluster.test/system/head' }),
    raylet: () => raylet, identity: identity as unknown as SvidSource, decisions: new LiveDecisionPoint(), revocations: new Revocations(), nodeNumber: 1, instance: 'one', address: () => '127.0.0.1:1',
    total: nothing, labels: {}, insecureDev: false, log: { info: () => undefined, warn: () => undefined, error: () => undefined },
  });
  closers.push(() => link[Symbol.asyncDispose]());
  link.start();
  await link.ready;
  return { seen, told, link, renew: async () => identity.replace(await fixture.material(identity.spiffeId)) };
}

it('moves to a new connection with each renewal, also when two come at once, and never says goodbye', async () => {
  const w = await world((n, tell, takeOver) => {
    // As the real head: the older stream ends before the newer one brings anything.
    takeOver();
    setTimeout(() => tell(`tenant-${n}`), 20);
  });
  for (let round = 0; round < 3; round++) {
    const { serial } = w.seen.at(-1) as Seen;
    await w.renew();
    await w.renew();
    await until(() => w.seen.at(-1)?.serial !== serial && w.told.at(-1) === `tenant-${w.seen.length}`, 'a newer stream is in use');
    await until(() => w.seen.filter((s) => s.end === undefined).length === 1, 'the older ones are over');
  }
  expect(w.seen.slice(0, -1).map((s) => s.end)).toEqual(w.seen.slice(0, -1).map(() => 'lost'));
  // The newest SVID is under the stream that is left: nothing cuts it at the end of an older one.
  expect(new Set(w.seen.map((s) => s.serial)).size).toBeGreaterThanOrEqual(4);
  const { reports } = w.seen.at(-1) as Seen;
  await until(() => (w.seen.at(-1)?.reports ?? 0) > reports, 'it reports on');
  await w.link[Symbol.asyncDispose]();
  await until(() => w.seen.at(-1)?.end === 'goodbye', 'it says goodbye at its own end');
});

it('stays on the old stream while the new one fails, takes no word from it afterwards, and tries again', async () => {
  let tellOld: (name: string) => void = () => undefined;
  const w = await world((n, tell) => {
    if (n === 1) {
      tellOld = tell;
      tell('tenant-old');
    } else if (n === 2) w.seen[1]?.stream.end(new BulkheadError('RESOURCE_EXHAUSTED', 'not now'));
    else tell('tenant-new');
  });
  await w.renew();
  await until(() => w.seen[1] !== undefined && w.seen[1].end !== undefined, 'the first attempt fails');
  const reports = w.seen[0]?.reports ?? 0;
  await until(() => (w.seen[0]?.reports ?? 0) > reports, 'the old one reports on');
  tellOld('tenant-meanwhile');
  await until(() => w.told.includes('tenant-meanwhile'), 'the old one counts');
  await until(() => w.told.includes('tenant-new'), 'the second attempt', 10_000);
  tellOld('tenant-stale');
  await until(() => w.seen[0]?.end !== undefined, 'the old one is left');
  expect(w.told).toEqual(['tenant-old', 'tenant-meanwhile', 'tenant-new']);
  expect(w.seen.map((s) => s.end)).toEqual(['lost', 'lost', undefined]);
});
