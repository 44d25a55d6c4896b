/**
 * Certificates rotate without dropping a call: a driver and an actor on another node work on while everyone's SVIDs and the intermediate
 * are replaced under them. And the door this opens is shut to everyone but the driver itself.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { BulkheadError } from '../../src/base/errors.ts';
import { FrameReader, FrameWriter, OP } from '../../src/base/frame.ts';
import { Identities, Sessions } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { Audit, Calls } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import { RESUME_METADATA, type BatchStream, type RpcChannel } from '../../src/rpc/rpc.ts';
import { grpcTransport, SESSION_METADATA } from '../../src/sdk/grpc-transport.ts';
import { openHead, type HeadConnection } from '../../src/sdk/head-client.ts';
import { connect, type Cluster, type RemoteModule } from '../../src/sdk/sdk.ts';
import { TestCluster, until } from '../support/cluster.ts';

type Work = typeof import('../support/work.ts');

let cluster: TestCluster;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 2, cpus: 2 });
});
afterAll(() => cluster?.stop());

interface Record {
  readonly event?: string;
  readonly principal?: string;
  readonly resource?: string;
}

async function events(tenant: string, event: string): Promise<Record[]> {
  const caller = await cluster.as(tenant === '' ? 'admin' : `${tenant}-siem`);
  const found: Record[] = [];
  for (const node of cluster.nodes) for await (const { record } of caller.on(node.name, Audit).tail({ tenant, last: 10_000 })) found.push(JSON.parse(record) as Record);
  return found.filter((r) => r.event === event);
}

/** A driver whose identity the test can renew, and whose channel to the head it can look into. */
async function driverOf(profile: string, watch: (head: HeadConnection) => HeadConnection = (head) => head): Promise<{ driver: Cluster; head: HeadConnection }> {
  let head: HeadConnection | undefined;
  const transport = grpcTransport({ profile: cluster.profile(profile), address: cluster.headAddress }, async (target) => watch((head = await openHead(target))));
  const driver = await connect({ transport });
  return { driver, head: head as HeadConnection };
}

async function renewNode(name: string): Promise<void> {
  const renewals = (): number => cluster.log(name).split('the identity of this node was renewed').length;
  const before = renewals();
  process.kill(cluster.node(name).pid, 'SIGHUP');
  await until(`${name} has renewed its identity`, () => renewals() > before);
}

/** Calls without a pause until it is told to stop; every result is checked, in the order of the calls. */
function traffic(step: (i: number) => Promise<void>): { done: () => number; stop: () => Promise<number>; past: (n: number) => Promise<void> } {
  let going = true;
  let steps = 0;
  let failed: unknown;
  const running = (async () => {
    while (going) {
      await step(steps);
      steps++;
    }
  })().catch((error: unknown) => {
    failed = error;
  });
  const check = (): void => {
    if (failed !== undefined) throw failed as Error;
  };
  return {
    done: () => steps,
    // Some whole rounds after now: what changed before has been under load.
    past: async (n) => {
      const goal = steps + n;
      await until('the calls go on', () => (check(), steps >= goal), 30_000);
    },
    stop: async () => {
      going = false;
      await running;
      check();
      return steps;
    },
  };
}

describe('while calls run', () => {
  it('identities of driver, nodes and authority are replaced, and no call fails or comes out of order', { timeout: 90_000 }, async () => {
    const { driver, head } = await driverOf('acme-dev');
    const work: RemoteModule<Work> = await driver.module<Work>(new URL('../support/work.ts', import.meta.url));
    const home = cluster.nodeById(driver.nodeId);
    const other = cluster.nodes.find((n) => n.nodeId !== home.nodeId);
    // Most of the driver's own node is taken, so what needs a whole processor goes to the other one.
    const filler = await work.Counter.options({ cpus: 1.5 }).create(0);
    await driver.get(filler.add(0));
    const counter = await work.Counter.options({ cpus: 1 }).create(0);
    expect(await driver.get(counter.add(0))).toBe(0);
    const near = work.add.options({ cpus: 0.25 });
    const tasks = traffic(async (i) => {
      expect(await driver.get(Array.from({ length: 20 }, (_, k) => near(i, k)))).toEqual(Array.from({ length: 20 }, (_, k) => i + k));
    });
    let counted = 0;
    const calls = traffic(async () => {
      const from = counted;
      counted += 10;
      // Ten calls in flight: the actor counts, so a lost, repeated or overtaken call shows in every value after it.
      expect(await driver.get(Array.from({ length: 10 }, () => counter.add(1)))).toEqual(Array.from({ length: 10 }, (_, k) => from + k + 1));
    });
    // More than one message each way and more than fits a window, so that a move falls into the middle of it.
    const bulk = traffic(async (i) => {
      const size = 3 * 2 ** 20 + i;
      const [there, back] = await Promise.all([driver.put(new Uint8Array(size).fill(i)), driver.get(work.bytes(size, i & 0xff))]);
      expect([back.length, back[0], back[size - 1]]).toEqual([size, i & 0xff, i & 0xff]);
      expect(await driver.get(work.lengthOf(there))).toBe(size);
      driver.release(there);
    });
    const all = [tasks, calls, bulk];
    const under = async (change: () => Promise<unknown>): Promise<void> => {
      await change();
      await Promise.all([tasks.past(3), calls.past(3)]);
    };
    await Promise.all(all.map((t) => t.past(1)));
    const [exchanges, syncs] = [await decisions('peer.exchange'), await decisions('node.sync')];
    for (let i = 0; i < 3; i++) await under(() => head.identity.renewNow());
    await until('the driver moved', async () => (await events('acme', 'session.moved')).length >= 3);
    await under(() => renewNode(home.name));
    await under(() => renewNode(other?.name ?? ''));
    const admin = await cluster.as('admin');
    const before = head.identity.current().certificateChainPem;
    await under(() => admin.to(Identities).rotateAuthority({}));
    await under(() => head.identity.renewNow());
    expect(head.identity.current().certificateChainPem.split('-----END CERTIFICATE-----')[1]).not.toBe(before.split('-----END CERTIFICATE-----')[1]);
    await under(() => Promise.all(cluster.nodes.map((n) => renewNode(n.name))));
    await Promise.all(all.map((t) => t.past(1)));
    for (const t of all) expect(await t.stop()).toBeGreaterThan(0);
    // Everything that lives longer than an SVID has moved: drivers above, streams between raylets and to the head.
    expect(await decisions('peer.exchange')).toBeGreaterThan(exchanges);
    expect(await decisions('node.sync')).toBeGreaterThanOrEqual(syncs + 3);
    expect(await driver.get(counter.add(0))).toBe(counted);
    expect(await events('acme', 'session.move-refused')).toEqual([]);
    expect(await events('', 'peer.move-refused')).toEqual([]);
    // The head never took a planned change for a node's death.
    expect(await deaths()).toEqual([]);
    expect(cluster.faults()).toEqual([]);
    for (const node of cluster.nodes) expect(cluster.log(node.name)).not.toMatch(/the stream to (?:the head|another raylet) ended/);
    await driver.close();
  });
});

/** A driver's stream without an SDK around it: what a thief or a broken client would write. */
class RawStream {
  readonly stream: BatchStream;
  readonly session: { readonly jobId: string; readonly credential: string };
  readonly #reader = new FrameReader();
  readonly answered: number[] = [];
  token = '';
  resumed = false;
  end: { readonly error: { readonly code: string } | undefined } | undefined;

  constructor(channel: RpcChannel, session: { readonly jobId: string; readonly credential: string }, metadata: Readonly<{ [name: string]: string }> = {}) {
    this.session = session;
    this.stream = channel.batchStream(Calls.method.attach, { metadata: { [SESSION_METADATA]: session.credential, ...metadata } });
    this.stream.onData = (batch) => {
      const reader = this.#reader.reset(batch);
      while (reader.next()) {
        if (reader.op === OP.WELCOME) {
          const prefix = Buffer.from(reader.raw(20)).toString('hex');
          this.token = `${prefix}:${(JSON.parse(reader.text(65_536)) as { resume: string }).resume}`;
        } else if (reader.op === OP.RESUMED) this.resumed = true;
        else if (reader.op === OP.DONE) this.answered.push(reader.u32());
      }
    };
    this.stream.onEnd = (error) => {
      this.end = { error };
    };
  }

  /** Asks for the context, which every open channel answers. */
  ask(request: number): void {
    const out = new FrameWriter(64);
    out.begin(OP.CONTEXT).u32(0).u32(request).end();
    this.stream.write(out.take());
  }

  async works(request: number): Promise<void> {
    this.ask(request);
    await until(`request ${request} is answered`, () => this.answered.includes(request) || this.end !== undefined);
    expect(this.end).toBeUndefined();
  }
}

describe('an open stream is taken over by its own driver only', () => {
  const session = async (profile: string, jobId = '') => (await cluster.as(profile)).to(Sessions).open({ jobName: 'raw', jobId });
  const on = async (profile: string): Promise<RpcChannel> => (await cluster.as(profile)).channel('raylet-1');

  async function victim(): Promise<RawStream> {
    const raw = new RawStream(await on('acme-dev'), await session('acme-dev'));
    await until('the victim is welcome', () => raw.token !== '');
    return raw;
  }

  it('refuses everyone else, leaves the stream as it is, and keeps a record', async () => {
    const raw = await victim();
    const prefix = raw.token.slice(0, 40);
    const secret = raw.token.slice(41);
    const flipped = `${prefix}:${secret.slice(0, -1)}${secret.endsWith('0') ? '1' : '0'}`;
    const stranger = await session('globex-dev');
    const colleague = await session('acme-ana');
    const otherJob = await session('acme-dev');
    const attempts: readonly (readonly [what: string, profile: string, credential: string, token: string, code: string])[] = [
      ['a wrong secret', 'acme-dev', raw.session.credential, flipped, 'DENIED'],
      ['no secret', 'acme-dev', raw.session.credential, `${prefix}:`, 'DENIED'],
      ['a session that never was', 'acme-dev', raw.session.credential, `${'0'.repeat(40)}:${'0'.repeat(64)}`, 'DENIED'],
      ['something else', 'acme-dev', raw.session.credential, 'x'.repeat(2_000), 'DENIED'],
      ['another job of the same user', 'acme-dev', otherJob.credential, raw.token, 'DENIED'],
      ['another user of the tenant', 'acme-ana', colleague.credential, raw.token, 'DENIED'],
      ['another tenant', 'globex-dev', stranger.credential, raw.token, 'DENIED'],
      ['another tenant with a guessed secret', 'globex-dev', stranger.credential, flipped, 'DENIED'],
      ['a colleague with the stolen credential', 'acme-ana', raw.session.credential, raw.token, 'UNAUTHENTICATED'],
      ['another tenant with the stolen credential', 'globex-dev', raw.session.credential, raw.token, 'UNAUTHENTICATED'],
      ['a credential that is none', 'acme-dev', 'x.y.z', raw.token, 'UNAUTHENTICATED'],
    ];
    let request = 1;
    for (const [what, profile, credential, token, code] of attempts) {
      const thief = new RawStream(await on(profile), { jobId: '', credential }, { [RESUME_METADATA]: token });
      thief.ask(1_000);
      await until(`${what} is refused`, () => thief.end !== undefined);
      expect([what, thief.end?.error?.code, thief.resumed, thief.answered]).toEqual([what, code, false, []]);
      await raw.works(request++);
    }
    const refused = [...(await events('acme', 'session.move-refused')), ...(await events('globex', 'session.move-refused'))];
    const by = (name: string): number => refused.filter((r) => r.principal?.endsWith(name) === true).length;
    expect([by('/acme/user/dev'), by('/acme/user/ana'), by('/globex/user/dev')]).toEqual([6, 2, 3]);
    expect(JSON.stringify(refused)).not.toContain(secret);
    expect(refused.filter((r) => r.resource === prefix).length).toBe(8);

    // The owner moves it still, and what it wrote ahead waits for its turn.
    const next = new RawStream(await on('acme-dev'), raw.session, { [RESUME_METADATA]: raw.token });
    await until('the owner is let in', () => next.resumed);
    next.ask(2_000);
    await raw.works(1_999);
    expect(next.answered).toEqual([]);
    raw.stream.end();
    await until('the new stream is in use', () => next.answered.length === 1);
    expect([raw.end, next.answered]).toEqual([{ error: undefined }, [2_000]]);

    // Nothing is left of a session that was closed.
    next.stream.end();
    await until('it has ended', () => next.end !== undefined);
    const late = new RawStream(await on('acme-dev'), raw.session, { [RESUME_METADATA]: raw.token });
    await until('the late one is refused', () => late.end !== undefined);
    expect(late.end?.error?.code).toBe('DENIED');
  });

  it('survives offers that come to nothing, and ends when its client ends it without one', async () => {
    const raw = await victim();
    const offer = async (): Promise<RawStream> => {
      const next = new RawStream(await on('acme-dev'), raw.session, { [RESUME_METADATA]: raw.token });
      await until('the offer is accepted', () => next.resumed);
      return next;
    };
    const cut = await offer();
    cut.stream.end(new BulkheadError('CANCELLED', 'gone'));
    await raw.works(1);
    const first = await offer();
    const second = await offer();
    await until('the newer offer counts', () => first.end !== undefined);
    await raw.works(2);
    second.stream.end(new BulkheadError('CANCELLED', 'gone'));
    await raw.works(3);
    // It may take a moment until the raylet has heard of it.
    await until('the last offer is gone', () => second.end !== undefined);
    raw.stream.end();
    await until('the channel is closed', () => raw.end !== undefined);
  });
});

/** Allowed calls of an action that nodes make, in the logs of the whole cluster. */
async function decisions(action: string): Promise<number> {
  const admin = await cluster.as('admin');
  let n = 0;
  for (const service of [admin.to(Audit), ...cluster.nodes.map((node) => admin.on(node.name, Audit))]) {
    for await (const { record } of service.tail({ tenant: '', last: 10_000 })) {
      const found = JSON.parse(record) as { action?: string; allow?: boolean };
      if (found.action === action && found.allow === true) n++;
    }
  }
  return n;
}

async function deaths(): Promise<string[]> {
  const admin = await cluster.as('admin');
  const found: string[] = [];
  for await (const { record } of admin.to(Audit).tail({ tenant: '', last: 10_000 })) if (/node\.(?:died|left)/.test(record)) found.push(record);
  return found;
}
