/** The gRPC listeners against peers that have no right to speak, and against identified peers that do not keep to the protocol. */
import 'reflect-metadata';
import { once } from 'node:events';
import * as http2 from 'node:http2';
import * as net from 'node:net';
import * as tls from 'node:tls';
import { gzipSync } from 'node:zlib';
import * as x509 from '@peculiar/x509';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { BulkheadError } from '../../src/base/errors.ts';
import { FLOW_CONTROL_WINDOW_BYTES, MAX_METADATA_BYTES } from '../../src/base/limits.ts';
import { PeerVerifier, Revocations, TrustBundle } from '../../src/pki/pki.ts';
import { Jobs, NodeAttestation } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { Calls } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import { client, createAttestationServer, createChannel, createServer, type OwnIdentity, type RpcServer } from '../../src/rpc/rpc.ts';
import { CALLS_ROW, JOB_ROWS, TRUST_DOMAIN, clock, node, openFixture, row, until, user, type Fixture, type TestIdentity } from '../contract/rpc-fixture.ts';

type Pems = ReturnType<OwnIdentity['current']>;

let fixture: Fixture;
let server: RpcServer;
let port: number;
let serverIdentity: TestIdentity;
let ana: TestIdentity;
/** Every handler adds to this: what no refused peer may do. */
let handled = 0;
/** Batches that the paused handler of `Calls.Attach` was given. */
let batches = 0;
let resumeHandler = (): void => undefined;

beforeAll(async () => {
  fixture = await openFixture();
  serverIdentity = await fixture.issue(node('n1'));
  ana = await fixture.issue(user('acme', 'ana'));
  ({ server, port } = await start(fixture, serverIdentity));
});
afterAll(() => server.close());

async function start(of: Fixture, identity: TestIdentity): Promise<{ server: RpcServer; port: number }> {
  const made = createServer(of.security(identity, [...JOB_ROWS, CALLS_ROW]), { knowsTenant: () => true, limits: { handshakeTimeoutMs: 400, requestReadTimeoutMs: 300, connectionsPerPeer: 4, streamsPerConnection: 8 } });
  made.add(Jobs, { list: async () => (handled++, {}), get: async () => (handled++, {}), stop: async () => (handled++, {}), deleteSubmission: async () => (handled++, {}) });
  made.add(Calls, {
    attach: (_call, stream) => {
      handled++;
      stream.pause();
      resumeHandler = () => stream.resume();
      stream.onData = () => void batches++;
      stream.onEnd = (error) => {
        if (error === undefined) stream.end();
      };
    },
  });
  return { server: made, port: (await made.listen('127.0.0.1:0')).port };
}

const refusals = (): string[] => fixture.records.flatMap(({ log, record }) => (log === '' && record.type === 'lifecycle' && record.event === 'peer.refused' ? [record.detail] : []));

/** Connects, sends octets at once, and returns everything that the server says in clear or inside TLS, until it closes. */
async function speak(toPort: number, options: tls.ConnectionOptions | undefined, send: string | Buffer): Promise<Buffer> {
  const said: Buffer[] = [];
  const raw = net.connect(toPort, '127.0.0.1');
  raw.on('error', () => undefined);
  let talking: net.Socket = raw;
  if (options !== undefined) {
    talking = tls.connect({ socket: raw, rejectUnauthorized: false, checkServerIdentity: () => undefined, ALPNProtocols: ['h2'], ...options });
    talking.on('error', () => raw.destroy());
  }
  talking.on('data', (chunk: Buffer) => said.push(chunk));
  talking.once(options === undefined ? 'connect' : 'secureConnect', () => talking.write(send));
  await once(raw, 'close');
  return Buffer.concat(said);
}

const PREFACE = Buffer.concat([Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'), Buffer.from('000000040000000000', 'hex')]);
const pems = (p: Pems): tls.ConnectionOptions => ({ key: p.privateKeyPem, cert: p.certificateChainPem, ca: p.trustBundlePem });

describe('a peer without a valid SVID gets no octet of HTTP/2', () => {
  const isRefused = async (options: tls.ConnectionOptions | undefined, send: string | Buffer = PREFACE, to = port): Promise<void> => {
    const before = handled;
    expect((await speak(to, options, send)).toString('latin1')).toBe('');
    expect(handled).toBe(before);
  };

  it('without TLS: HTTP/1, HTTP/2 in clear, garbage, silence', async () => {
    const alert = async (send: string | Buffer): Promise<void> => {
      const answer = await speak(port, undefined, send);
      // At most a TLS alert, which names no resource: 0x15.
      expect(answer.length === 0 || (answer[0] === 0x15 && answer.length <= 16)).toBe(true);
    };
    await Promise.all([alert('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'), alert(PREFACE), alert(Buffer.alloc(4096, 0xff)), alert('')]);
    expect(handled).toBe(0);
  });

  it('without a certificate', async () => {
    await isRefused({});
  });

  it('with a certificate of another authority, even one of the same trust domain', async () => {
    const other = await openFixture();
    await isRefused(pems((await other.issue(user('acme', 'ana'))).current()));
  });

  it('with its own key but another\'s chain is not even a client', async () => {
    const other = await fixture.issue(user('acme', 'bob'));
    expect(() => tls.createSecureContext({ key: other.current().privateKeyPem, cert: ana.current().certificateChainPem })).toThrow();
  });

  it('with TLS 1.2, or without HTTP/2', async () => {
    await isRefused({ ...pems(ana.current()), maxVersion: 'TLSv1.2' });
    await isRefused({ ...pems(ana.current()), ALPNProtocols: ['http/1.1'] }, 'GET / HTTP/1.1\r\n\r\n');
    await isRefused({ ...pems(ana.current()), ALPNProtocols: [] }, 'GET / HTTP/1.1\r\n\r\n');
  });

  it('with a leaf that arrives without its intermediate', async () => {
    const { privateKeyPem, certificateChainPem, trustBundlePem } = ana.current();
    await isRefused({ key: privateKeyPem, cert: certificateChainPem.slice(0, certificateChainPem.indexOf('-----END') + 26), ca: trustBundlePem });
  });

  it('after its SVID has ended, or was revoked', async () => {
    const brief = await fixture.issue(user('acme', 'brief'), 1_000);
    const mallory = await fixture.issue(user('acme', 'mallory'));
    fixture.revocations.apply({ serials: [], identities: [{ spiffeId: mallory.spiffeId, revokedBeforeMs: Date.now() + 60_000 }] }, 1);
    await isRefused(pems(mallory.current()));
    await new Promise((resolve) => setTimeout(resolve, 1_300));
    await isRefused(pems(brief.current()));
    await until(() => refusals().some((why) => why.includes('revoked')) && refusals().some((why) => /expired|CERT_HAS_EXPIRED/.test(why)), 'both refusals are on record');
  });

  it('with certificates of a trusted authority that are no SVIDs', async () => {
    const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' };
    const rootKeys = await crypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);
    const times = { notBefore: new Date(Date.now() - 60_000), notAfter: new Date(Date.now() + 3_600_000) };
    const root = await x509.X509CertificateGenerator.createSelfSigned({
      serialNumber: '01', name: 'CN=root', keys: rootKeys, signingAlgorithm: algorithm, ...times,
      extensions: [new x509.BasicConstraintsExtension(true, 1, true), new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign, true), await x509.SubjectKeyIdentifierExtension.create(rootKeys.publicKey)],
    });
    const rootPem = root.toString('pem');
    const usages = new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true);
    const both = new x509.ExtendedKeyUsageExtension(['1.3.6.1.5.5.7.3.1', '1.3.6.1.5.5.7.3.2']);
    const names = (...list: { type: 'url' | 'dns'; value: string }[]): x509.Extension => new x509.SubjectAlternativeNameExtension(list);
    const good = names({ type: 'url', value: 'spiffe://cluster.test/tenant/acme/user/ana' });
    const leaf = async (...extensions: x509.Extension[]): Promise<Pems> => {
      const keys = await crypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);
      const made = await x509.X509CertificateGenerator.create({
        serialNumber: '0102', subject: 'CN=leaf', issuer: root.subject, publicKey: keys.publicKey, signingKey: rootKeys.privateKey, signingAlgorithm: algorithm, ...times,
        extensions: [...extensions, await x509.AuthorityKeyIdentifierExtension.create(rootKeys.publicKey), await x509.SubjectKeyIdentifierExtension.create(keys.publicKey)],
      });
      const key = Buffer.from(await crypto.subtle.exportKey('pkcs8', keys.privateKey)).toString('base64');
      return { privateKeyPem: `-----BEGIN PRIVATE KEY-----\n${key}\n-----END PRIVATE KEY-----\n`, certificateChainPem: made.toString('pem'), trustBundlePem: rootPem };
    };
    const bundle = TrustBundle.fromPem(TRUST_DOMAIN, rootPem);
    const peers = new PeerVerifier({ bundles: { bundle: () => bundle, onChange: () => () => undefined }, revocations: new Revocations(), clock });
    const basics = new x509.BasicConstraintsExtension(false, undefined, true);
    const own = await leaf(names({ type: 'url', value: 'spiffe://cluster.test/node/n7' }), usages, both);
    const identity: OwnIdentity = { current: () => own, onChange: () => () => undefined };
    const made = createServer({ ...fixture.security(identity, JOB_ROWS), peers }, { knowsTenant: () => true });
    made.add(Jobs, { list: async () => (handled++, {}), get: async () => (handled++, {}), stop: async () => (handled++, {}), deleteSubmission: async () => (handled++, {}) });
    const bound = await made.listen('127.0.0.1:0');
    try {
      // The control: the same authority's proper SVID is let in.
      const control = await leaf(good, usages, both);
      const channel = createChannel({ identity: { current: () => control, onChange: () => () => undefined }, peers, address: `127.0.0.1:${bound.port}`, expectedSpiffeId: 'spiffe://cluster.test/node/n7' });
      await client(Jobs, channel).list({});
      channel.close();
      const bad: Record<string, x509.Extension[]> = {
        'no name': [usages, both],
        'DNS name only': [names({ type: 'dns', value: 'localhost' }), usages, both],
        'two URIs': [names({ type: 'url', value: 'spiffe://cluster.test/tenant/acme/user/ana' }, { type: 'url', value: 'spiffe://cluster.test/system/admin' }), usages, both],
        'URI and DNS': [names({ type: 'url', value: 'spiffe://cluster.test/tenant/acme/user/ana' }, { type: 'dns', value: 'localhost' }), usages, both],
        'other trust domain': [names({ type: 'url', value: 'spiffe://other.test/tenant/acme/user/ana' }), usages, both],
        'dot segment': [names({ type: 'url', value: 'spiffe://cluster.test/tenant/globex/../acme/user/ana' }), usages, both],
        'no path': [names({ type: 'url', value: 'spiffe://cluster.test' }), usages, both],
        'unknown path': [names({ type: 'url', value: 'spiffe://cluster.test/admin' }), usages, both],
        'https URI': [names({ type: 'url', value: 'https://cluster.test/tenant/acme/user/ana' }), usages, both],
        'leaf is a CA': [good, new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.digitalSignature, true), both, new x509.BasicConstraintsExtension(true, undefined, true)],
        'may sign certificates': [good, new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature | x509.KeyUsageFlags.keyCertSign, true), both],
        'server only': [good, usages, new x509.ExtendedKeyUsageExtension(['1.3.6.1.5.5.7.3.1'])],
        'client only': [good, usages, new x509.ExtendedKeyUsageExtension(['1.3.6.1.5.5.7.3.2'])],
        'no usages': [good, basics],
      };
      for (const [what, extensions] of Object.entries(bad)) {
        const before = handled;
        const said = await speak(bound.port, pems(await leaf(...extensions)), PREFACE);
        expect([what, said.length, handled]).toEqual([what, 0, before]);
      }
      expect(made.connectionCount).toBe(0);
    } finally {
      await made.close();
    }
  });

  it('nor by resuming a session: every connection shows its whole chain', async () => {
    const connectWith = async (resumed: Buffer | undefined): Promise<{ reused: boolean; session: Buffer | undefined }> => {
      const socket = tls.connect({ port, host: '127.0.0.1', ALPNProtocols: ['h2'], checkServerIdentity: () => undefined, ...pems(ana.current()), ...(resumed === undefined ? {} : { session: resumed }) });
      socket.on('error', () => undefined);
      let ticket: Buffer | undefined;
      socket.on('session', (given: Buffer) => (ticket = given));
      await once(socket, 'secureConnect');
      const reused = socket.isSessionReused();
      const on = http2.connect('https://bulkhead', { createConnection: () => socket });
      on.on('error', () => undefined);
      expect((await request(on, '/bulkhead.v1.Jobs/List', grpcMessage(Buffer.alloc(0)))).grpcStatus).toBe(0);
      on.destroy();
      return { reused, session: ticket };
    };
    const first = await connectWith(undefined);
    expect(first.reused).toBe(false);
    if (first.session !== undefined) expect((await connectWith(first.session)).reused).toBe(false);
  });

  it('and a refused peer is on record, at most a few a second', async () => {
    const before = refusals().length;
    expect(before).toBeGreaterThan(3);
    await Promise.all(Array.from({ length: 100 }, () => speak(port, undefined, 'x'.repeat(64))));
    expect(refusals().length - before).toBeLessThan(60);
  });
});

/** An HTTP/2 session with a valid SVID, to break gRPC with. */
async function session(identity: TestIdentity = ana, options: http2.ClientSessionOptions = {}): Promise<http2.ClientHttp2Session> {
  const socket = tls.connect({ port, host: '127.0.0.1', ALPNProtocols: ['h2'], checkServerIdentity: () => undefined, ...pems(identity.current()) });
  socket.on('error', () => undefined);
  await once(socket, 'secureConnect');
  const made = http2.connect('https://bulkhead', { createConnection: () => socket, ...options });
  made.on('error', () => undefined);
  await once(made, 'remoteSettings');
  return made;
}

const grpcMessage = (body: Uint8Array, flag = 0): Buffer => {
  const head = Buffer.alloc(5);
  head[0] = flag;
  head.writeUInt32BE(body.length, 1);
  return Buffer.concat([head, body]);
};

interface Answer { status: number | undefined; grpcStatus: number | undefined; message: string; code: string; body: number }

async function request(on: http2.ClientHttp2Session, path: string, body: Buffer | undefined, headers: http2.OutgoingHttpHeaders = {}, end = true): Promise<Answer> {
  const answer: Answer = { status: undefined, grpcStatus: undefined, message: '', code: '', body: 0 };
  const stream = on.request({ ':method': 'POST', ':path': path, te: 'trailers', 'content-type': 'application/grpc+proto', ...headers });
  const closed = new Promise((resolve) => stream.once('close', resolve));
  const read = (h: http2.IncomingHttpHeaders): void => {
    // An answer that comes before our end: there is nothing more to say.
    if (h['grpc-status'] !== undefined && !end) setImmediate(() => stream.close());
    if (h[':status'] !== undefined) answer.status = Number(h[':status']);
    if (h['grpc-status'] !== undefined) answer.grpcStatus = Number(h['grpc-status']);
    answer.message += decodeURIComponent(String(h['grpc-message'] ?? ''));
    answer.code += String(h['bulkhead-code'] ?? '');
  };
  stream.on('error', () => undefined);
  stream.on('response', read);
  stream.on('trailers', read);
  stream.on('data', (chunk: Buffer) => (answer.body += chunk.length));
  if (body !== undefined) stream.write(body);
  if (end) stream.end();
  await closed;
  return answer;
}

describe('an identified peer that breaks the protocol', () => {
  const LIST = '/bulkhead.v1.Jobs/List';
  beforeEach(() => until(() => server.connectionCount === 0, 'the connections of the test before are gone'));
  const alive = async (): Promise<void> => {
    const channel = createChannel({ identity: ana, peers: fixture.peers, address: `127.0.0.1:${port}`, expectedSpiffeId: serverIdentity.spiffeId });
    await client(Jobs, channel).list({ tenant: 'acme' }, { timeoutMs: 5_000 });
    channel.close();
  };

  it('gets an error for what it sent, no handler runs, and the server goes on', async () => {
    const before = handled;
    const on = await session();
    const garbage = await request(on, LIST, grpcMessage(Buffer.from('0aff', 'hex')));
    expect([garbage.grpcStatus, garbage.code]).toEqual([3, 'INVALID_ARGUMENT']);
    const groups = await request(on, LIST, grpcMessage(Buffer.alloc(2_000, 0x0b)));
    expect(groups.code).toBe('INVALID_ARGUMENT');
    const badUtf8 = await request(on, LIST, grpcMessage(Buffer.from('0a02c328', 'hex')));
    expect(badUtf8.code).toBe('INVALID_ARGUMENT');
    const wrongTenant = await request(on, LIST, grpcMessage(Buffer.from('0a06412f2e2e2f42', 'hex')));
    expect(wrongTenant.code).toBe('INVALID_ARGUMENT');
    const two = await request(on, LIST, Buffer.concat([grpcMessage(Buffer.alloc(0)), grpcMessage(Buffer.alloc(0))]));
    expect(two.code).toBe('INVALID_ARGUMENT');
    const none = await request(on, LIST, undefined);
    expect(none.code).toBe('INVALID_ARGUMENT');
    const slow = await request(on, LIST, Buffer.from([0, 0, 0]), {}, false);
    expect(slow.code).toBe('TIMEOUT');
    const oversize = await request(on, LIST, Buffer.from([0, 0xff, 0xff, 0xff, 0xff, 1]), {}, false);
    expect(oversize.grpcStatus).toBe(8);
    const bomb = await request(on, LIST, grpcMessage(gzipSync(Buffer.alloc(64 * 2 ** 20)), 1), { 'grpc-encoding': 'gzip' });
    expect(bomb.grpcStatus).toBe(8);
    const notGzip = await request(on, LIST, grpcMessage(Buffer.alloc(100, 7), 1), { 'grpc-encoding': 'gzip' });
    expect(notGzip.grpcStatus).not.toBe(0);
    const noSuch = await request(on, '/bulkhead.v1.Jobs/Delete', grpcMessage(Buffer.alloc(0)));
    expect(noSuch.grpcStatus).toBe(12);
    for (const path of ['/', '/bulkhead.v1.Jobs/', '/bulkhead.v1.Jobs/list', '/bulkhead.v1.Jobs/constructor', '/__proto__/x', '//bulkhead.v1.Jobs/List']) expect((await request(on, path, grpcMessage(Buffer.alloc(0)))).grpcStatus).toBe(12);
    const http = await request(on, LIST, Buffer.from('{}'), { 'content-type': 'application/json' });
    expect([http.status, http.grpcStatus]).toEqual([415, undefined]);
    expect(handled).toBe(before);
    on.destroy();
    await alive();
  });

  it('cannot name itself: identity in headers and metadata is ignored', async () => {
    const on = await session();
    const before = fixture.records.length;
    const answer = await request(on, LIST, grpcMessage(Buffer.alloc(0)), { 'x-spiffe-id': 'spiffe://cluster.test/system/admin', 'x-forwarded-client-cert': 'URI=spiffe://cluster.test/system/admin', ':authority': 'admin.cluster.test', 'bulkhead-code': 'OK' });
    expect(answer.grpcStatus).toBe(0);
    expect(fixture.records.slice(before)).toMatchObject([{ record: { principal: ana.spiffeId } }]);
    on.destroy();
  });

  it('cannot send headers without end', async () => {
    const on = await session(ana, { maxSendHeaderBlockLength: 2 ** 20 });
    const before = handled;
    const answer = await request(on, LIST, grpcMessage(Buffer.alloc(0)), { 'x-long': 'a'.repeat(200_000) });
    expect(answer.grpcStatus).not.toBe(0);
    expect(handled).toBe(before);
    on.destroy();
    await alive();
  });

  it('cannot hold more streams or connections than allowed', async () => {
    const eve = await fixture.issue(user('acme', 'eve'));
    const sessions = await Promise.all(Array.from({ length: 4 }, () => session(eve)));
    // Set behind grpc-js's back: an upgrade of it must not drop them.
    expect(sessions[0]?.remoteSettings).toMatchObject({ maxConcurrentStreams: 8, initialWindowSize: FLOW_CONTROL_WINDOW_BYTES, maxHeaderListSize: MAX_METADATA_BYTES });
    const fifth = await speak(port, pems(eve.current()), PREFACE);
    expect(fifth.length).toBe(0);
    await until(() => refusals().some((why) => why.includes('4 connections')), 'the fifth connection is on record');
    sessions[0]?.destroy();
    await until(() => server.connectionCount === 3, 'one connection is free again');
    const again = await session(eve);
    for (const s of [...sessions, again]) s.destroy();
    await until(() => server.connectionCount === 0, 'all are free again');
    await alive();
  });

  it('gains nothing by resetting streams as fast as it can', async () => {
    const mallet = await fixture.issue(user('acme', 'mallet'));
    const on = await session(mallet);
    for (let i = 0; i < 3_000 && !on.destroyed; i++) {
      const stream = on.request({ ':method': 'POST', ':path': LIST, te: 'trailers', 'content-type': 'application/grpc' });
      stream.on('error', () => undefined);
      stream.close(http2.constants.NGHTTP2_CANCEL);
      if (i % 100 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    await alive();
    on.destroy();
    await until(() => server.connectionCount === 0, 'its connection is gone');
  });

  it('cannot exhaust the stack with thousands of small batches that wait', async () => {
    const on = await session();
    const stream = on.request({ ':method': 'POST', ':path': '/bulkhead.v1.Calls/Attach', te: 'trailers', 'content-type': 'application/grpc' });
    stream.on('error', () => undefined);
    const count = 100_000;
    const before = handled;
    batches = 0;
    stream.write(Buffer.alloc(5 * count));
    await until(() => handled > before, 'the stream is open');
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(batches).toBe(0);
    resumeHandler();
    await until(() => batches === count, 'every batch has arrived', 10_000);
    stream.end();
    stream.resume();
    await new Promise((resolve) => stream.once('close', resolve));
    on.destroy();
  });

  it('ends its stream with a batch that is none', async () => {
    const on = await session();
    const before = handled;
    const answered = request(on, '/bulkhead.v1.Calls/Attach', grpcMessage(Buffer.from('0affffffffff0f', 'hex')), {}, false);
    await until(() => handled > before, 'the stream is open');
    resumeHandler();
    expect((await answered).code).toBe('INVALID_ARGUMENT');
    on.destroy();
    await alive();
  });
});

describe('the attestation listener, open to callers without an identity', () => {
  it('serves one service, small requests, and never says what was wrong with a token', async () => {
    let attested = 0;
    const attestation = createAttestationServer(fixture.security(serverIdentity, [row('bulkhead.v1.NodeAttestation/Attest', { action: 'node.join', resource: 'node', callers: [], tenant: 'none' })]), { limits: { handshakeTimeoutMs: 400 } });
    attestation.add(NodeAttestation, {
      attest: async (_call, request) => {
        attested++;
        throw new BulkheadError('DENIED', `token ${request.joinToken} was used by node n7`);
      },
    });
    const bound = await attestation.listen('127.0.0.1:0');
    try {
      expect((await speak(bound.port, undefined, 'GET / HTTP/1.1\r\n\r\n')).length).toBeLessThanOrEqual(16);
      expect((await speak(bound.port, { ALPNProtocols: ['http/1.1'] }, 'GET / HTTP/1.1\r\n\r\n')).length).toBe(0);
      expect((await speak(bound.port, undefined, '')).length).toBe(0);
      const socket = tls.connect({ port: bound.port, host: '127.0.0.1', ALPNProtocols: ['h2'], ca: fixture.authority.trustBundlePem(), checkServerIdentity: () => undefined });
      socket.on('error', () => undefined);
      await once(socket, 'secureConnect');
      const on = http2.connect('https://bulkhead', { createConnection: () => socket });
      on.on('error', () => undefined);
      for (const path of ['/bulkhead.v1.Jobs/List', '/bulkhead.v1.Identities/Issue', '/bulkhead.v1.NodeAttestation/', '/grpc.reflection.v1.ServerReflection/ServerReflectionInfo', '/grpc.channelz.v1.Channelz/GetServers']) {
        expect((await request(on, path, grpcMessage(Buffer.alloc(0)))).grpcStatus).toBe(12);
      }
      const attest = '/bulkhead.v1.NodeAttestation/Attest';
      expect((await request(on, attest, grpcMessage(Buffer.alloc(70_000, 0x0a)), {}, false)).grpcStatus).toBe(8);
      expect((await request(on, attest, grpcMessage(Buffer.from('0aff', 'hex')))).code).toBe('INVALID_ARGUMENT');
      expect(attested).toBe(0);
      const tokens = await Promise.all(['0a0461616161', '0a0462626262'].map((hex) => request(on, attest, grpcMessage(Buffer.from(hex, 'hex')))));
      expect(new Set(tokens.map((t) => `${t.grpcStatus} ${t.code} ${t.message}`)).size).toBe(1);
      expect(tokens[0]?.code).toBe('UNAUTHENTICATED');
      expect(tokens[0]?.message).not.toMatch(/n7|aaaa|was used/);
      const flood = await Promise.all(Array.from({ length: 40 }, () => request(on, attest, grpcMessage(Buffer.from('0a0461616161', 'hex')))));
      expect(flood.filter((answer) => answer.code === 'RESOURCE_EXHAUSTED').length).toBeGreaterThan(20);
      expect(attested).toBeLessThan(20);
      on.destroy();
    } finally {
      await attestation.close();
    }
  });
});

describe('a server that is not the one expected', () => {
  const calls = async (toPort: number, peers = fixture.peers): Promise<string> => {
    const channel = createChannel({ identity: ana, peers, address: `127.0.0.1:${toPort}`, expectedSpiffeId: serverIdentity.spiffeId });
    try {
      await client(Jobs, channel).list({ tenant: 'acme' }, { timeoutMs: 2_000 });
      return 'answered';
    } catch (error) {
      return (error as { code: string }).code;
    } finally {
      channel.close();
    }
  };

  it('gets no call: another authority, another identity, no TLS, TLS 1.2', async () => {
    expect(await calls(port)).toBe('answered');
    const other = await openFixture();
    const strange = await start(other, await other.issue(node('n1')));
    const wrong = await start(fixture, await fixture.issue(node('n2')));
    const before = handled;
    expect(await calls(strange.port)).toBe('UNAVAILABLE');
    expect(await calls(wrong.port)).toBe('UNAUTHENTICATED');
    const listening: net.Server[] = [];
    const listen = async (made: net.Server): Promise<number> => {
      listening.push(made);
      made.listen(0, '127.0.0.1');
      await once(made, 'listening');
      return (made.address() as net.AddressInfo).port;
    };
    const heard: Buffer[] = [];
    const clear = await listen(net.createServer((socket) => socket.on('error', () => undefined).on('data', (chunk: Buffer) => heard.push(chunk)).end('HTTP/1.1 200 OK\r\n\r\n')));
    expect(['UNAVAILABLE', 'TIMEOUT']).toContain(await calls(clear));
    expect(Buffer.concat(heard).toString('latin1')).not.toContain('Jobs');
    const old = await listen(tls.createServer({ ...(pems(serverIdentity.current()) as tls.TlsOptions), maxVersion: 'TLSv1.2', ALPNProtocols: ['h2'] }, (socket) => socket.on('error', () => undefined)));
    expect(['UNAVAILABLE', 'TIMEOUT']).toContain(await calls(old));
    expect(handled).toBe(before);
    await Promise.all([strange.server.close(), wrong.server.close(), ...listening.map((made) => new Promise((resolve) => made.close(resolve)))]);
  });
});
