/** The SDK's transport against a head and raylets that answer as theirs do: sessions, choice of a raylet, back-pressure, close. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { BulkheadError } from '../../src/base/errors.ts';
import type { SpiffePath } from '../../src/base/ids.ts';
import { publicKeyFromCsr, svidMaterial, writeProfile } from '../../src/pki/pki.ts';
import { Identities, Sessions } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { Calls } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import { FrameReader, FrameWriter, OP } from '../../src/base/frame.ts';
import { client, createServer, MovableStream, RESUME_METADATA, type BatchStream, type CallContext, type Implementation } from '../../src/rpc/rpc.ts';
import { grpcTransport, SESSION_METADATA } from '../../src/sdk/grpc-transport.ts';
import { openHead, type HeadConnection } from '../../src/sdk/head-client.ts';
import { CALLS_ROW, TRUST_DOMAIN, node, openFixture, row, system, until, user, type Fixture } from './rpc-fixture.ts';

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

const SESSION_ROWS = ['Open', 'Refresh', 'Close'].map((name) => row(`bulkhead.v1.Sessions/${name}`, { action: 'session.open', resource: 'session' }));
const IDENTITY_ROWS = Identities.methods.map((method) => row(`bulkhead.v1.Identities/${method.name}`, { action: 'identity.read', resource: 'identity' }));

interface Bench {
  fixture: Fixture;
  profile: string;
  closes: { jobId: string; outcome: string }[];
  refreshes: number;
  attached: CallContext[];
  raylets: { nodeId: string; nodeNumber: number; address: string; spiffeId: string }[];
}

async function bench(attach: (call: CallContext, stream: BatchStream) => void, options: { expiresInMs?: number; headIs?: SpiffePath } = {}): Promise<Bench> {
  const fixture = await openFixture();
  const made: Bench = { fixture, profile: await mkdtemp(join(tmpdir(), 'bulkhead-transport-')), closes: [], refreshes: 0, attached: [], raylets: [] };
  closers.push(() => rm(made.profile, { recursive: true }));
  const rayletIdentity = await fixture.issue(node('n1'));
  const raylet = createServer(fixture.security(rayletIdentity, [CALLS_ROW]), { knowsTenant: () => true });
  raylet.add(Calls, { attach: (call, stream) => { made.attached.push(call); attach(call, stream); } });
  const rayletPort = (await raylet.listen('127.0.0.1:0')).port;
  closers.push(() => raylet.close());
  made.raylets.push({ nodeId: 'n1', nodeNumber: 1, address: `127.0.0.1:${rayletPort}`, spiffeId: rayletIdentity.spiffeId });

  const head = createServer(fixture.security(await fixture.issue(options.headIs ?? system('head')), [...SESSION_ROWS, ...IDENTITY_ROWS]), { knowsTenant: () => true });
  const session = (jobId: string): object => ({ jobId, credential: made.refreshes === 0 ? 'credential-of-the-session' : `credential-${made.refreshes}`, expiresMs: BigInt(Date.now() + (options.expiresInMs ?? 300_000)), raylets: made.raylets });
  const never = async (): Promise<never> => Promise.reject(new BulkheadError('DENIED', 'no'));
  head.add(Sessions, {
    open: async (_call, request) => session(request.jobId === '' ? 'job-000000000000000000000001' : request.jobId),
    refresh: async (_call, request) => (made.refreshes++, session(request.jobId)),
    close: async (_call, request) => (made.closes.push({ jobId: request.jobId, outcome: request.outcome }), {}),
  });
  head.add(Identities, {
    issue: never, revoke: never, showPki: never, rotateAuthority: never, createJoinToken: never, getTrustBundle: never, certifyServer: never,
    whoAmI: async (call) => ({ spiffeId: call.principal.spiffeId }),
    renew: async (call, request) => {
      const issued = await fixture.authority.issueX509Svid({ spiffeId: call.principal.spiffeId, publicKeySpkiDer: publicKeyFromCsr(request.csr) });
      return { spiffeId: call.principal.spiffeId, svidChain: issued.certificateChainPem, trustBundle: fixture.authority.trustBundlePem(), notAfterMs: BigInt(issued.notAfterMs) };
    },
  } as Implementation<typeof Identities>);
  const headPort = (await head.listen('127.0.0.1:0')).port;
  closers.push(() => head.close());
  const ana = await fixture.issue(user('acme', 'ana'));
  const { privateKeyPem, certificateChainPem, trustBundlePem } = ana.current();
  await writeProfile(made.profile, { address: `127.0.0.1:${headPort}`, gateway: undefined, svid: svidMaterial({ trustDomain: TRUST_DOMAIN, keyPem: privateKeyPem, certificateChainPem, trustBundlePem }) });
  return made;
}

const echo = (_call: CallContext, stream: BatchStream): void => {
  stream.write(Uint8Array.of(0x40));
  stream.onData = (batch) => void stream.write(batch);
  stream.onEnd = (error) => {
    if (error === undefined) stream.end();
  };
};

describe('the transport', () => {
  it('opens a session, attaches with its credential, carries batches, and closes the job', async () => {
    const b = await bench(echo);
    const got: number[][] = [];
    let closed: [Error?] | undefined;
    const connection = await grpcTransport({ profile: b.profile }).open({ batch: (batch) => void got.push([...batch]), closed: (...error) => void (closed = error as [Error?]) });
    await until(() => got.length === 1, 'the welcome');
    void connection.send(Uint8Array.of(1, 2, 3));
    await until(() => got.length === 2, 'the echo');
    expect(got).toEqual([[0x40], [1, 2, 3]]);
    expect(b.attached[0]?.metadata(SESSION_METADATA)).toBe('credential-of-the-session');
    expect(b.attached[0]?.principal.name).toBe('ana');
    await connection.close();
    expect(closed).toEqual([]);
    expect(b.closes).toEqual([{ jobId: 'job-000000000000000000000001', outcome: 'succeeded' }]);
    await connection.close();
    expect(b.closes).toHaveLength(1);
  });

  it('sends what was written before it closes, and only leaves a job that it joined', async () => {
    let received = 0;
    const b = await bench((_call, stream) => {
      stream.write(Uint8Array.of(0x40));
      stream.onData = (batch) => void (received += batch.length);
      stream.onEnd = () => stream.end();
    });
    let welcomed = false;
    const connection = await grpcTransport({ profile: b.profile, job: 'job-0000000000000000000000aa' }).open({ batch: () => (welcomed = true), closed: () => undefined });
    await until(() => welcomed, 'the welcome');
    const waits: (void | Promise<void>)[] = [];
    for (let i = 0; i < 12; i++) waits.push(connection.send(new Uint8Array(2 ** 20)));
    expect(waits.some((wait) => wait instanceof Promise)).toBe(true);
    await Promise.all(waits);
    await connection.close();
    expect(received).toBe(12 * 2 ** 20);
    expect(b.closes).toEqual([]);
  });

  it('goes to another raylet where one is gone', async () => {
    const b = await bench(echo);
    const [alive] = b.raylets;
    // Whichever is chosen first: both orders end at the one that lives.
    b.raylets.unshift({ nodeId: 'n0', nodeNumber: 0, address: '127.0.0.1:1', spiffeId: 'spiffe://cluster.test/node/n0' });
    b.raylets.push({ nodeId: 'n2', nodeNumber: 2, address: '127.0.0.1:1', spiffeId: alive?.spiffeId ?? '' });
    let welcomed = false;
    const connection = await grpcTransport({ profile: b.profile }).open({ batch: () => (welcomed = true), closed: () => undefined });
    await until(() => welcomed, 'the welcome');
    await connection.close();
  });

  it('says so where no raylet lives, and fails the job', async () => {
    const b = await bench(echo);
    b.raylets.length = 0;
    let closed: Error | undefined;
    await grpcTransport({ profile: b.profile }).open({ batch: () => undefined, closed: (error) => (closed = error) });
    await until(() => closed !== undefined && b.closes.length === 1, 'it is closed');
    expect(closed?.message).toContain('no raylet alive');
    expect(b.closes[0]?.outcome).toBe('failed');
  });

  it('never sends the credential to a node of another name', async () => {
    const b = await bench(echo);
    const [alive] = b.raylets;
    b.raylets.splice(0, 1, { nodeId: 'n2', nodeNumber: 2, address: alive?.address ?? '', spiffeId: 'spiffe://cluster.test/node/n2' });
    let closed: BulkheadError | undefined;
    await grpcTransport({ profile: b.profile }).open({ batch: () => undefined, closed: (error) => (closed = error as BulkheadError) });
    await until(() => closed !== undefined, 'it is refused');
    expect(closed?.code).toBe('UNAUTHENTICATED');
    expect(b.attached).toHaveLength(0);
  });

  it('refreshes the session, and tells why a raylet ended the stream', async () => {
    let stream: BatchStream | undefined;
    const b = await bench((call, s) => { echo(call, s); stream = s; }, { expiresInMs: 2_000 });
    let closed: BulkheadError | undefined;
    await grpcTransport({ profile: b.profile }).open({ batch: () => undefined, closed: (error) => (closed = error as BulkheadError) });
    await until(() => b.refreshes >= 1, 'a refresh');
    stream?.end(new BulkheadError('QUOTA_EXCEEDED', 'the job was stopped'));
    await until(() => closed !== undefined && b.closes.length === 1, 'it is closed');
    expect([closed?.code, closed?.message]).toEqual(['QUOTA_EXCEEDED', 'the job was stopped']);
    expect(b.closes[0]?.outcome).toBe('failed');
  });
});

const PREFIX = 'ab'.repeat(20);
const SECRET = 'cd'.repeat(32);

function frame(op: number, write: (out: FrameWriter) => void): Uint8Array {
  const out = new FrameWriter();
  out.begin(op);
  write(out);
  out.end();
  return out.take();
}

const welcome = (): Uint8Array => frame(OP.WELCOME, (out) => out.raw(Buffer.from(PREFIX, 'hex')).text(JSON.stringify({ job: 'job-1', resume: SECRET })));

describe('renewals', () => {
  it('give the raylet each new credential, and the stream a new connection under it', async () => {
    const received: string[] = [];
    let movable: MovableStream | undefined;
    const b = await bench((call, stream) => {
      if (call.metadata(RESUME_METADATA) !== undefined) return movable?.offer(stream, frame(OP.RESUMED, () => undefined));
      const moving = new MovableStream(stream);
      movable = moving;
      moving.onData = (batch) => {
        const reader = new FrameReader().reset(batch);
        while (reader.next()) received.push(reader.op === OP.CREDENTIAL ? reader.text(8_192) : `op ${reader.op}`);
        moving.write(batch);
      };
      moving.onEnd = (error) => {
        if (error === undefined) moving.end();
      };
      moving.write(welcome());
    }, { expiresInMs: 2_000 });
    let head: HeadConnection | undefined;
    const got: number[] = [];
    const connection = await grpcTransport({ profile: b.profile }, async (target) => (head = await openHead(target))).open({
      batch: (batch) => {
        const reader = new FrameReader().reset(batch);
        if (reader.next() && reader.op === OP.GET) got.push(reader.u32());
        else got.push(-reader.op);
      }, closed: () => undefined,
    });
    await until(() => received.includes('credential-1'), 'the new credential');
    for (let i = 0; i < 50; i++) {
      void connection.send(frame(OP.GET, (out) => out.u32(i)) as Uint8Array<ArrayBuffer>);
      if (i === 25) await head?.identity.renewNow();
    }
    await until(() => got.filter((n) => n >= 0).length === 50 && b.attached.length === 2, 'every echo, over two streams');
    expect(got.filter((n) => n >= 0)).toEqual(Array.from({ length: 50 }, (_, i) => i));
    // The transport's own frames stay below the SDK.
    expect(got.filter((n) => n === -OP.RESUMED)).toEqual([]);
    expect(got[0]).toBe(-OP.WELCOME);
    expect(b.attached[1]?.metadata(RESUME_METADATA)).toBe(`${PREFIX}:${SECRET}`);
    expect(b.attached[1]?.metadata(SESSION_METADATA)).toMatch(/^credential-\d+$/);
    await connection.close();
    expect(b.closes).toHaveLength(1);
  });

  it('that the raylet refuses change nothing until the old connection ends, and then say so', async () => {
    let first: BatchStream | undefined;
    const b = await bench((call, stream) => {
      if (call.metadata(RESUME_METADATA) !== undefined) return stream.end(new BulkheadError('UNAUTHENTICATED', 'the session is not yours'));
      first = stream;
      stream.write(welcome());
      stream.onData = (batch) => void stream.write(batch);
    });
    let head: HeadConnection | undefined;
    let batches = 0;
    let closed: BulkheadError | undefined;
    const connection = await grpcTransport({ profile: b.profile }, async (target) => (head = await openHead(target))).open({ batch: () => batches++, closed: (error) => (closed = error as BulkheadError) });
    await until(() => batches === 1, 'the welcome');
    await head?.identity.renewNow();
    // A second attempt shows that the first one's refusal has arrived.
    await until(() => b.attached.length >= 3, 'attempts to move');
    void connection.send(Uint8Array.of(1) as Uint8Array<ArrayBuffer>);
    await until(() => batches === 2, 'the echo');
    expect(closed).toBeUndefined();
    first?.end(new BulkheadError('UNAVAILABLE', 'the connection is too old'));
    await until(() => closed !== undefined && b.closes.length === 1, 'it is closed');
    expect(closed?.message).toBe('the connection is too old; it could not be replaced before: the session is not yours');
  });
});

describe('the head client', () => {
  it('speaks for the profile, to the head only', async () => {
    const b = await bench(echo);
    await using head = await openHead({ profile: b.profile });
    expect((await client(Identities, head.channel).whoAmI({}, { timeoutMs: 5_000 })).spiffeId).toBe('spiffe://cluster.test/tenant/acme/user/ana');
    const other = await bench(echo, { headIs: node('n1') });
    await using notHead = await openHead({ profile: other.profile });
    await expect(client(Identities, notHead.channel).whoAmI({}, { timeoutMs: 5_000 })).rejects.toMatchObject({ code: 'UNAUTHENTICATED' });
    await expect(openHead({ profile: join(b.profile, 'nowhere') })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});
