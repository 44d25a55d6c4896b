/**
 * The streams between raylets, over real connections and real raylets without workers: credentials that are renewed all along the way, streams
 * that move, a node that does not read, and goodbyes.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import type { AuditLogs } from '../../src/base/audit-record.ts';
import { BulkheadError } from '../../src/base/errors.ts';
import { FrameReader, FrameWriter, OP } from '../../src/base/frame.ts';
import { parseJobId, parseTenantName, spiffeId, type JobId } from '../../src/base/ids.ts';
import { principalFromSpiffeId } from '../../src/base/principal.ts';
import { untimely } from '../../src/pki/pki.ts';
import { makeId } from '../../src/raylet/core/core.ts';
import { ProjectState } from '../../src/raylet/core/project-state.ts';
import { CHANNEL_KIND, Job, Upstream } from '../../src/raylet/core/state.ts';
import { callsService, SESSION_METADATA } from '../../src/raylet/driver-channels.ts';
import { PeerClients, peersService, type PeerLinkOptions, type VerifiedCredential } from '../../src/raylet/peer-links.ts';
import { Raylet, type RayletOptions } from '../../src/raylet/raylet.ts';
import { Calls, Peers } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import { createChannel, createServer, RESUME_METADATA, type BatchStream } from '../../src/rpc/rpc.ts';
import { CALLS_ROW, clock, node, openFixture, PEERS_ROW, TRUST_DOMAIN, until, user, type Fixture, type TestIdentity } from './rpc-fixture.ts';

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

const TENANT = parseTenantName('acme');
const quiet = { info: () => undefined, warn: () => undefined, error: () => undefined };

/** Stands for what the head signs: who, which job, until when. */
const credentialOf = (job: JobId, endsMs: number, issuedMs = Date.now(), who = 'ana'): string => JSON.stringify({ job, endsMs, issuedMs, who });

class Node {
  readonly raylet: Raylet;
  readonly identity: TestIdentity;
  readonly links: PeerClients;
  address = '';
  verified = 0;
  readonly connections = new Set<number>();
  /** By which its wall clock is wrong. */
  aheadMs = 0;
  readonly clock = { nowMs: () => Date.now() + this.aheadMs, monotonicMs: () => performance.now() };

  constructor(fixture: Fixture, identity: TestIdentity, number: number, addressOf: (number: number) => { address: string; spiffeId: string }) {
    this.identity = identity;
    const dir = mkdtempSync(join(tmpdir(), 'bulkhead-peers-'));
    closers.push(() => rmSync(dir, { recursive: true, force: true }));
    const { clock } = this;
    const authenticate = async (credential: string): Promise<VerifiedCredential> => {
      this.verified++;
      const { job, endsMs, issuedMs, who } = JSON.parse(credential) as { job: string; endsMs: number; issuedMs: number; who: string };
      const jobId = parseJobId(job);
      return {
        principal: principalFromSpiffeId(spiffeId(TRUST_DOMAIN, user('acme', who))), jobPrincipal: principalFromSpiffeId(spiffeId(TRUST_DOMAIN, { kind: 'job', tenant: TENANT, name: jobId }), { kind: 'user', name: who }),
        jobId, sessionId: '', project: 'default', tenantNumber: 1, issuedMs, expiresMs: endsMs,
      };
    };
    const verify = async (credential: string): Promise<VerifiedCredential> => {
      const verified = await authenticate(credential);
      const why = untimely(verified.issuedMs, verified.expiresMs, clock.nowMs());
      if (why !== undefined) throw new BulkheadError('UNAUTHENTICATED', why);
      return verified;
    };
    let seq = 0;
    const audit: AuditLogs = { forTenant: () => ({ append: () => seq++, durable: Number.MAX_SAFE_INTEGER, onDurable: undefined }) };
    this.raylet = new Raylet({
      nodeId: `n${number}`, nodeNumber: number, total: { cpuUnits: 0, memoryBytes: 0, custom: undefined }, maxWorkers: 0, runDir: dir, dataDir: dir, audit, clock, log: quiet, defaultIsolateBytes: 2 ** 20,
      decisions: { version: 1, decide: () => ({ allow: true, rule: 'test', policyVersion: 1 }) }, random: { bytes: (n: number) => crypto.getRandomValues(new Uint8Array(n)) },
      pool: { close: async () => undefined, python: new BulkheadError('LAYER_MISSING', 'none') } as unknown as RayletOptions['pool'], names: { register: async () => false, lookup: async () => undefined, release: async () => undefined },
      verifyCredential: async (credential) => {
        const verified = await authenticate(credential);
        return { ...verified, untimely: untimely(verified.issuedMs, verified.expiresMs, clock.nowMs()) };
      },
    });
    closers.push(() => this.raylet[Symbol.asyncDispose]());
    this.raylet.setTenant('acme', 1, {}, true);
    const security = fixture.security(identity, [CALLS_ROW, PEERS_ROW]);
    const options: PeerLinkOptions = {
      raylet: this.raylet, verify, audit: security.audit, clock, log: quiet,
      connect: (other) => {
        const { address, spiffeId: expectedSpiffeId } = addressOf(other);
        return createChannel({ identity, peers: fixture.peers, address, expectedSpiffeId });
      },
    };
    this.links = new PeerClients(options);
    this.raylet.peers = this.links;
    closers.push(() => this.links.closeAll());
    const server = createServer(security, { knowsTenant: () => true });
    server.add(Calls, callsService({ raylet: this.raylet, verify, audit: security.audit, clock, onStreamEnded: () => undefined }));
    const service = peersService(options);
    server.add(Peers, {
      exchange: (call, stream) => {
        this.connections.add(Number(call.remote.split(':').at(-1)));
        service.exchange(call, stream);
      },
    });
    closers.push(() => server.close());
    this.listening = server.listen('127.0.0.1:0').then((bound) => void (this.address = `127.0.0.1:${bound.port}`));
  }

  readonly listening: Promise<void>;

  /** Ends of the credentials of the channels that other raylets hold here. */
  peerChannels(job: JobId): number[] {
    return [...this.raylet.core.state.channels.values()].filter((c) => c.kind === CHANNEL_KIND.PEER && c.job.id === job).map((c) => c.job.credentialEndsMs);
  }
}

async function nodes(): Promise<{ fixture: Fixture; one: Node; two: Node }> {
  const fixture = await openFixture();
  const all: Node[] = [];
  for (const number of [1, 2]) {
    all.push(new Node(fixture, await fixture.issue(node(`n${number}`)), number, (other) => ({ address: all[other - 1]?.address ?? '', spiffeId: all[other - 1]?.identity.spiffeId ?? '' })));
    await all[number - 1]?.listening;
  }
  const nothing = { cpuUnits: 0, memoryBytes: 0, custom: undefined };
  for (const [i, n] of all.entries()) {
    const other = all[1 - i] as Node;
    n.raylet.core.setNode(`n${2 - i}`, 2 - i, other.address, other.identity.spiffeId, nothing, nothing);
  }
  return { fixture, one: all[0] as Node, two: all[1] as Node };
}

/** A driver at the frame level. */
class Driver {
  readonly stream: BatchStream;
  readonly values = new Map<number, string>();
  /** What was said of credentials that it sent. */
  readonly refusals: string[] = [];
  prefix: Uint8Array | undefined;
  ended = false;

  constructor(fixture: Fixture, identity: TestIdentity, at: Node, credential: string) {
    const channel = createChannel({ identity, peers: fixture.peers, address: at.address, expectedSpiffeId: at.identity.spiffeId });
    closers.push(() => channel.close());
    this.stream = channel.batchStream(Calls.method.attach, { metadata: { [SESSION_METADATA]: credential } });
    this.stream.onData = (batch) => {
      const reader = new FrameReader().reset(batch);
      while (reader.next()) {
        if (reader.op === OP.WELCOME) this.prefix = reader.raw(20).slice();
        else if (reader.op === OP.VALUE) {
          const request = reader.u32();
          reader.u32();
          this.values.set(request, Buffer.from(reader.rest()).toString());
        } else if (reader.op === OP.VALUE_FAILED) {
          const request = reader.u32();
          reader.u32();
          this.values.set(request, `${reader.str()}: ${reader.text(65_536)}`);
        } else if (reader.op === OP.CREDENTIAL_REFUSED) this.refusals.push(`${reader.str()}: ${reader.text(65_536)}`);
      }
    };
    this.stream.onEnd = () => {
      this.ended = true;
    };
  }

  send(op: number, write: (out: FrameWriter) => void): void {
    const out = new FrameWriter();
    out.begin(op);
    write(out);
    out.end();
    this.stream.write(out.take());
  }

  async put(seq: number, text: string): Promise<Uint8Array> {
    await until(() => this.prefix !== undefined, 'the welcome');
    this.send(OP.PUT, (out) => out.u32(0).u32(seq).refs([]).raw(Buffer.from(text)));
    const id = makeId(this.prefix as Uint8Array, seq);
    // The other node's question comes by another way: it must not be there first.
    await this.get(1_000_000 + seq, id);
    return id;
  }

  async get(request: number, id: Uint8Array): Promise<string | undefined> {
    await until(() => this.prefix !== undefined, 'the welcome');
    this.send(OP.GET, (out) => out.u32(0).u32(request).refs([id]));
    await until(() => this.values.has(request), `the value of request ${request}`);
    return this.values.get(request);
  }
}

const JOBS = [parseJobId('job-000000000000000000000001'), parseJobId('job-000000000000000000000002')] as const;

describe('session credentials', () => {
  it('are renewed on every node of a job, once, and a job that does not renew loses its channels', async () => {
    const { fixture, one, two } = await nodes();
    const ana = await fixture.issue(user('acme', 'ana'));
    const endsMs = Date.now() + 4_000;
    const drivers = JOBS.map((job) => ({ at1: new Driver(fixture, ana, one, credentialOf(job, endsMs)), at2: new Driver(fixture, ana, two, credentialOf(job, endsMs)) }));
    for (const [i, { at1, at2 }] of drivers.entries()) {
      // Each node is the other's client for each job.
      expect(await at1.get(1, await at2.put(1, `"from two ${i}"`))).toContain('from two');
      expect(await at2.get(1, await at1.put(1, `"from one ${i}"`))).toContain('from one');
    }
    const [renewed, stale] = drivers;
    for (const n of [one, two]) expect(JOBS.map((job) => n.peerChannels(job))).toEqual([[endsMs], [endsMs]]);
    const before = one.verified + two.verified;
    const laterMs = Date.now() + 60_000;
    renewed?.at1.send(OP.CREDENTIAL, (out) => out.text(credentialOf(JOBS[0], laterMs)));
    await until(() => one.peerChannels(JOBS[0])[0] === laterMs && two.peerChannels(JOBS[0])[0] === laterMs, 'both nodes have the new credential');
    await until(() => one.peerChannels(JOBS[1]).length + two.peerChannels(JOBS[1]).length === 0, 'the channels of the other job end', 10_000);
    // At one, at two, and once more at one, which knows it by then: it does not go round.
    expect(one.verified + two.verified - before).toBeLessThanOrEqual(4);
    expect(JOBS.map((job) => [one.peerChannels(job).length, two.peerChannels(job).length])).toEqual([[1, 1], [0, 0]]);
    expect(await renewed?.at1.get(2, await (renewed.at2 as Driver).put(2, '"still here"'))).toContain('still here');
    expect(await stale?.at1.get(2, await (stale.at2 as Driver).put(2, '"gone"'))).toMatch(/^(?:UNAUTHENTICATED|UNAVAILABLE|OBJECT_LOST)/);
  });

  it('of another session or none end the channel that sends them, whatever time is in them', async () => {
    const { fixture, one } = await nodes();
    const ana = await fixture.issue(user('acme', 'ana'));
    const now = Date.now();
    const times = [[now + 90_000, now], [now + 400_000, now + 120_000], [now - 1, now - 300_000]] as const;
    for (const bad of [...times.flatMap(([ends, issued]) => [credentialOf(JOBS[1], ends, issued), credentialOf(JOBS[0], ends, issued, 'bob')]), 'nonsense']) {
      const driver = new Driver(fixture, ana, one, credentialOf(JOBS[0], Date.now() + 60_000));
      await until(() => driver.prefix !== undefined, 'the welcome');
      driver.send(OP.CREDENTIAL, (out) => out.text(bad));
      await until(() => driver.ended, 'the channel ends');
    }
  });
});

describe('a session credential that is good, but not by this node’s clock', () => {
  it('leaves its channel on the one before, is told, and counts when its time has come, here and on other nodes', async () => {
    const { fixture, one, two } = await nodes();
    const ana = await fixture.issue(user('acme', 'ana'));
    const endsMs = Date.now() + 200_000;
    const at1 = new Driver(fixture, ana, one, credentialOf(JOBS[0], endsMs));
    const at2 = new Driver(fixture, ana, two, credentialOf(JOBS[0], endsMs));
    expect(await at1.get(1, await at2.put(1, '"before"'))).toBe('"before"');
    for (const n of [one, two]) n.aheadMs = -120_000;
    const laterMs = Date.now() + 300_000;
    at1.send(OP.CREDENTIAL, (out) => out.text(credentialOf(JOBS[0], laterMs)));
    await until(() => at1.refusals.length === 1, 'the driver is told');
    expect(at1.refusals[0]).toMatch(/^UNAUTHENTICATED: .*from the future.*goes on/);
    // Whoever is told once is not told again of the next ones.
    at1.send(OP.CREDENTIAL, (out) => out.text(credentialOf(JOBS[0], laterMs + 1_000, Date.now() + 10_000)));
    expect(await at1.get(2, await at2.put(2, '"meanwhile"'))).toBe('"meanwhile"');
    expect([one, two].map((n) => n.raylet.core.state.jobs.get(JOBS[0])?.credentialEndsMs)).toEqual([endsMs, endsMs]);
    // The other node is still behind when it is passed on.
    one.aheadMs = 0;
    await until(() => one.raylet.core.state.jobs.get(JOBS[0])?.credentialEndsMs === laterMs, 'it counts here');
    expect(two.raylet.core.state.jobs.get(JOBS[0])?.credentialEndsMs).toBe(endsMs);
    two.aheadMs = 0;
    await until(() => two.raylet.core.state.jobs.get(JOBS[0])?.credentialEndsMs === laterMs, 'and there');
    expect(await at1.get(3, await at2.put(3, '"after"'))).toBe('"after"');
    expect([at1.ended, at2.ended, at1.refusals.length]).toEqual([false, false, 1]);
    const held = new Driver(fixture, ana, one, credentialOf(JOBS[0], endsMs));
    await until(() => held.prefix !== undefined, 'the welcome');
    one.aheadMs = -120_000;
    held.send(OP.CREDENTIAL, (out) => out.text(credentialOf(JOBS[0], laterMs + 2_000)));
    await until(() => held.refusals.length === 1, 'it is told');
    held.send(OP.CREDENTIAL, (out) => out.text(credentialOf(JOBS[1], laterMs + 2_000)));
    await until(() => held.ended, 'the channel ends for the forged one');
  });

  it('does not outlive the one before: neither one from the future nor one that has ended', async () => {
    const { fixture, one } = await nodes();
    const ana = await fixture.issue(user('acme', 'ana'));
    const endsMs = Date.now() + 100_000;
    for (const [i, late] of [credentialOf(JOBS[0], endsMs + 200_000, Date.now() + 90_000), credentialOf(JOBS[1], Date.now() - 1, Date.now() - 300_000)].entries()) {
      const driver = new Driver(fixture, ana, one, credentialOf(JOBS[i] as JobId, endsMs));
      await until(() => driver.prefix !== undefined, 'the welcome');
      driver.send(OP.CREDENTIAL, (out) => out.text(late));
      await until(() => driver.refusals.length === 1, 'the driver is told');
      expect(driver.ended).toBe(false);
      const job = one.raylet.core.state.jobs.get(JOBS[i] as JobId);
      // As if its time had passed; the early one's has not come.
      if (job !== undefined) job.credentialEndsMs = Date.now();
      await until(() => driver.ended, 'the channel ends with it');
    }
  });
});

describe('streams between raylets', () => {
  it('move to a new connection when an identity is renewed, and their channels stay', async () => {
    const { fixture, one, two } = await nodes();
    const ana = await fixture.issue(user('acme', 'ana'));
    const credential = credentialOf(JOBS[0], Date.now() + 60_000);
    const at1 = new Driver(fixture, ana, one, credential);
    const at2 = new Driver(fixture, ana, two, credential);
    expect(await at1.get(1, await at2.put(1, '"a"'))).toBe('"a"');
    const [channel] = two.raylet.core.state.channels.values().filter((c) => c.kind === CHANNEL_KIND.PEER);
    for (let i = 2; i < 6; i++) {
      const asked = Array.from({ length: 20 }, async (_, k) => at1.get(i * 100 + k, await at2.put(i * 100 + k, `"${i}-${k}"`)));
      one.identity.replace(await fixture.material(one.identity.spiffeId));
      expect(await Promise.all(asked)).toEqual(Array.from({ length: 20 }, (_, k) => `"${i}-${k}"`));
      await until(() => two.connections.size >= i, 'a new connection');
    }
    expect(two.raylet.core.state.channels.get(channel?.number ?? -1)).toBe(channel);
    expect(channel?.closed).toBe(false);
  });

  it('are not taken over by another node, and the attempt is recorded', async () => {
    const { fixture, two } = await nodes();
    const stream = async (identity: TestIdentity, token?: string): Promise<{ token: string; error: BulkheadError | undefined }> => {
      const channel = createChannel({ identity, peers: fixture.peers, address: two.address, expectedSpiffeId: two.identity.spiffeId });
      closers.push(() => channel.close());
      const opened = channel.batchStream(Peers.method.exchange, token === undefined ? {} : { metadata: { [RESUME_METADATA]: token } });
      let said = '';
      let error: BulkheadError | undefined;
      opened.onData = (message) => {
        const reader = new FrameReader().reset(message.subarray(8));
        if (reader.next() && reader.op === 0xa3) said = reader.text(256);
        else said = `op ${reader.op}`;
      };
      opened.onEnd = (thrown) => {
        error = thrown;
      };
      await until(() => said !== '' || error !== undefined, 'an answer');
      return { token: said, error };
    };
    const three = await fixture.issue(node('n3'));
    const four = await fixture.issue(node('n4'));
    const { token } = await stream(three);
    expect(token).toMatch(/^[0-9a-f]{40}:[0-9a-f]{64}$/);
    expect((await stream(four, token)).error?.code).toBe('DENIED');
    expect((await stream(three, `${token.slice(0, -1)}${token.endsWith('0') ? '1' : '0'}`)).error?.code).toBe('DENIED');
    expect((await stream(three, '')).error?.code).toBe('DENIED');
    const refused = fixture.records.filter(({ record }) => record.type === 'lifecycle' && record.event === 'peer.move-refused');
    expect(refused.map(({ log, record }) => [log, record.principal])).toEqual([['', four.spiffeId], ['', three.spiffeId], ['', three.spiffeId]]);
    expect(JSON.stringify(refused)).not.toContain(token.slice(41));
    expect((await stream(three, token)).token).toBe(`op ${0xa4}`);
  });
});

describe('a node that does not read', () => {
  it('holds back the job that floods it, costs that channel only, and goodbyes leave before the connection ends', async () => {
    const fixture = await openFixture();
    const serverIdentity = await fixture.issue(node('slow'));
    const received: number[] = [];
    let reading: BatchStream | undefined;
    let ended: { error: BulkheadError | undefined } | undefined;
    const server = createServer(fixture.security(serverIdentity, [PEERS_ROW]), { knowsTenant: () => true });
    server.add(Peers, {
      exchange: (_call, stream) => {
        reading = stream;
        stream.pause();
        stream.onData = (message) => void received.push(message.length);
        stream.onEnd = (error) => {
          ended = { error };
          if (error === undefined) stream.end();
        };
      },
    });
    closers.push(() => server.close());
    const { port } = await server.listen('127.0.0.1:0');
    const identity = await fixture.issue(node('n1'));
    const closed: [Upstream, string][] = [];
    const drained: Job[] = [];
    const links = new PeerClients({
      raylet: { upstreamClosed: (upstream: Upstream, failure: { code: string }) => closed.push([upstream, failure.code]), jobDrained: (job: Job) => drained.push(job), nodeLost: () => undefined } as unknown as Raylet,
      connect: () => createChannel({ identity, peers: fixture.peers, address: `127.0.0.1:${port}`, expectedSpiffeId: serverIdentity.spiffeId }),
      verify: () => Promise.reject(new Error('not asked')), audit: async () => undefined, clock, log: quiet,
    });
    const principal = principalFromSpiffeId(spiffeId(TRUST_DOMAIN, user('acme', 'ana')));
    const [greedy, modest] = JOBS.map((id, i) => new Upstream(i + 1, 7, new Job(id, { name: TENANT } as never, new ProjectState('default'), principal, principal, 'credential', Date.now() + 60_000, 0), false)) as [Upstream, Upstream];
    links.open(greedy, 0);
    links.open(modest, 0);
    const part = new Uint8Array(2 ** 20);
    for (let i = 0; i < 3; i++) links.write(greedy, part);
    links.write(modest, part);
    expect([links.behind(greedy.job), links.behind(modest.job)]).toEqual([false, false]);
    for (let i = 0; i < 16; i++) links.write(greedy, part);
    expect([links.behind(greedy.job), links.behind(modest.job), closed.length]).toEqual([true, false, 0]);
    for (let i = 0; i < 64; i++) links.write(greedy, part);
    await until(() => closed.length > 0, 'the greedy channel is given up');
    expect(closed).toEqual([[greedy, 'RESOURCE_EXHAUSTED']]);
    expect(links.behind(greedy.job)).toBe(false);
    expect(drained).toContain(greedy.job);
    links.write(greedy, part);
    links.write(modest, new Uint8Array(77));
    await until(() => reading !== undefined, 'the stream is open');
    reading?.resume();
    await until(() => received.includes(77 + 8), 'what the modest channel wrote last');
    expect(received.length).toBeLessThan(30);
    links.close(modest);
    await links.closeAll();
    expect(ended).toEqual({ error: undefined });
    expect(closed).toHaveLength(1);
  });
});
