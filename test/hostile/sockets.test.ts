/** Every socket that any process of a cluster listens on, found in /proc, against every kind of peer that has no business there. */
import http2 from 'node:http2';
import tls from 'node:tls';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Identities } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { toPem } from '../../src/pki/pem.ts';
import { TestCluster } from '../support/cluster.ts';
import { listeningSockets, speak, type ListeningSocket } from '../support/sockets.ts';
import { build, caExtensions, entity, extension, leafExtensions, name, uri, HOUR_MS } from './certificate-builder.ts';
import { derSequence } from '../../src/pki/core/der.ts';
import { OID } from '../../src/pki/core/certificate.ts';

let cluster: TestCluster;
let sockets: ListeningSocket[];
let attestation: number;
/** Those that speak HTTP/1.1 to a scraper, and those that speak HTTP/2 to everybody else. */
let scraped: number[];
const mutual = (): ListeningSocket[] => sockets.filter((s) => s.port !== attestation && !scraped.includes(s.port));

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 2, metrics: true });
  // With work in it, so that workers of a tenant are among the processes.
  const driver = await cluster.connect('acme-dev');
  await driver.get(driver.task(() => 1)());
  sockets = listeningSockets(cluster.pids());
  attestation = Number(cluster.local.head?.attestationAddress.split(':').at(-1));
  scraped = [cluster.local.head?.metricsAddress ?? '', ...cluster.local.metricsAddresses.values()].map((address) => Number(address.split(':').at(-1)));
});
afterAll(() => cluster?.stop());

const H2_PREFACE = Buffer.concat([Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'), Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 0])]);
const BODY = '{"entrypoint":"id > /tmp/owned"}';
/** What a browser, a scanner or a worm sends. */
const REQUESTS: Readonly<Record<string, string | Uint8Array>> = {
  garbage: Buffer.from(Array.from({ length: 512 }, (_, i) => (i * 31 + 7) & 0xff)),
  'GET /': 'GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n',
  'job submission': `POST /api/jobs/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: ${BODY.length}\r\n\r\n${BODY}`,
  'job submission as a simple form, from a browser': `POST /api/jobs/ HTTP/1.1\r\nHost: evil.example\r\nOrigin: https://evil.example\r\nContent-Type: text/plain\r\nContent-Length: ${BODY.length}\r\n\r\n${BODY}`,
  'drive-by DELETE': 'DELETE /api/jobs/job-000000000000000000000000 HTTP/1.1\r\nHost: evil.example\r\nOrigin: https://evil.example\r\n\r\n',
  preflight: 'OPTIONS /api/jobs/ HTTP/1.1\r\nHost: evil.example\r\nOrigin: https://evil.example\r\nAccess-Control-Request-Method: DELETE\r\n\r\n',
  'upgrade to h2c': 'GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n',
  'h2c with prior knowledge': H2_PREFACE,
  websocket: 'GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n',
};

/** A TLS record that says no, or nothing. */
function onlyAlerts(answer: Buffer): boolean {
  for (let at = 0; at < answer.length; at += 5 + answer.readUInt16BE(at + 3)) if (answer[at] !== 0x15 || at + 5 > answer.length) return false;
  return true;
}

it('are exactly the head’s two, one of each raylet, and one more of each for metrics, on loopback', () => {
  const port = (text: string): number => Number(text.split(':').at(-1));
  const known = [port(cluster.headAddress), attestation, ...cluster.nodes.map((n) => port(n.address)), ...scraped];
  expect(scraped.length).toBe(3);
  expect(sockets.map((s) => s.kind)).toEqual(known.map(() => 'tcp'));
  expect(sockets.map((s) => s.port).sort()).toEqual([...known].sort());
  for (const socket of sockets) expect(socket.address).toMatch(/^127\.0\.0\.1:/);
  // One process each: a listening socket that a child inherited would show twice.
  expect(new Set(sockets.map((s) => s.pid)).size).toBe(3);
});

describe('over plain TCP', () => {
  it.each(Object.keys(REQUESTS))('%s gets no answer anywhere', async (request) => {
    const answers = await Promise.all(sockets.map(({ port }) => speak(port, REQUESTS[request] as string)));
    expect(answers.filter((answer) => !onlyAlerts(answer)).map((answer) => answer.toString('latin1'))).toEqual([]);
  });
});

describe('over TLS', () => {
  const names = (id: string): Partial<typeof leafExtensions> => ({ alternativeNames: extension(OID.subjectAltName, false, derSequence(uri(id))) });
  const pems = ({ der, keys }: ReturnType<typeof build>, ...chain: Uint8Array[]): tls.ConnectionOptions => ({ cert: [der, ...chain].map((d) => toPem('CERTIFICATE', d)).join(''), key: keys.privateKey.export({ format: 'pem', type: 'pkcs8' }) });
  const now = Date.now();
  const times = { notBeforeMs: now - 60_000, notAfterMs: now + HOUR_MS };

  async function credentials(): Promise<Record<string, tls.ConnectionOptions>> {
    const td = cluster.trustDomain;
    const root = entity(undefined, caExtensions(1), { subject: name('root'), ...times });
    const ca = entity(root, caExtensions(0), { subject: name('intermediate'), ...times });
    const ana = await cluster.svid('acme-ana');
    await cluster.enrol({ tenant: 'acme', name: 'gone', roles: ['developer'] });
    const gone = await cluster.svid('acme-gone');
    await (await cluster.as('admin')).to(Identities).revoke({ spiffeId: gone.spiffeId, reason: 'test' });
    const stolen = build(undefined, leafExtensions, { ...times, extensions: names(`spiffe://${td}/tenant/acme/user/ana`) });
    return {
      'no certificate': {},
      'a self-signed one with an administrator’s name': pems(build(undefined, leafExtensions, { ...times, extensions: names(`spiffe://${td}/system/admin`) })),
      'one of another authority with a node’s name': pems(build(ca, leafExtensions, { ...times, extensions: names(`spiffe://${td}/node/${cluster.node('raylet-1').nodeId}`) }), ca.certificate.der),
      'one of another authority, with its root': pems(build(ca, leafExtensions, { ...times, extensions: names(`spiffe://${td}/tenant/acme/user/ana`) }), ca.certificate.der, root.certificate.der),
      'one that ended': pems(build(ca, leafExtensions, { notBeforeMs: now - 2 * HOUR_MS, notAfterMs: now - HOUR_MS, extensions: names(`spiffe://${td}/tenant/acme/user/ana`) }), ca.certificate.der),
      'a user’s own certificate used as an authority': pems(build({ keys: stolen.keys, certificate: entity(undefined, leafExtensions, times).certificate }, leafExtensions, { ...times, extensions: names(`spiffe://${td}/system/admin`) }), stolen.der),
      'a revoked one': { cert: gone.certificateChainPem, key: gone.privateKeyPem },
      'a good one, but speaking HTTP/1.1': { cert: ana.certificateChainPem, key: ana.privateKeyPem, ALPNProtocols: ['http/1.1'] },
      'a good one, but without ALPN': { cert: ana.certificateChainPem, key: ana.privateKeyPem, ALPNProtocols: [] },
      'a good one, but TLS 1.2': { cert: ana.certificateChainPem, key: ana.privateKeyPem, ALPNProtocols: ['h2'], maxVersion: 'TLSv1.2' },
    };
  }

  it('nobody without a valid SVID hears a single octet inside TLS', async () => {
    const all = await credentials();
    const heard = await Promise.all(Object.entries(all).flatMap(([what, options]) => mutual().flatMap(({ port }) => [H2_PREFACE, REQUESTS['job submission'] as string].map(async (payload) => {
      const answer = await speak(port, payload, { tls: { ALPNProtocols: ['h2'], ...options }, waitMs: 3_000 });
      return answer.length === 0 ? [] : [`${what} at ${port}: ${answer.toString('latin1').slice(0, 100)}`];
    }))));
    expect(heard.flat()).toEqual([]);
  });

  it('nor at the sockets for metrics, whatever is spoken there; with a valid SVID, nothing but HTTP/1.1 is heard', async () => {
    const { 'a good one, but speaking HTTP/1.1': good, 'a good one, but without ALPN': silent, ...all } = await credentials();
    const request = 'GET /metrics HTTP/1.1\r\nHost: metrics\r\n\r\n';
    const heard = await Promise.all(Object.entries(all).flatMap(([what, options]) => scraped.flatMap((port) => [{ ALPNProtocols: ['http/1.1'] }, { ALPNProtocols: ['h2'] }, {}].map(async (alpn) => {
      if (what === 'a good one, but TLS 1.2' && alpn.ALPNProtocols === undefined) return [];
      const answer = await speak(port, request, { tls: { ...options, ALPNProtocols: [], ...alpn }, waitMs: 3_000 });
      return answer.length === 0 ? [] : [`${what} at ${port} with ${JSON.stringify(alpn)}: ${answer.toString('latin1').slice(0, 100)}`];
    }))));
    expect(heard.flat()).toEqual([]);
    for (const port of scraped) {
      for (const options of [good, silent]) expect((await speak(port, request, { tls: options as tls.ConnectionOptions, waitMs: 1_000 })).toString('latin1')).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
      expect((await speak(port, H2_PREFACE, { tls: { ...good, ALPNProtocols: ['h2'] }, waitMs: 1_000 })).length).toBe(0);
      // What is no scrape is refused, or ends the connection.
      for (const what of ['garbage', 'GET /', 'job submission', 'drive-by DELETE', 'preflight', 'upgrade to h2c', 'websocket']) expect((await speak(port, REQUESTS[what] as string, { tls: good as tls.ConnectionOptions, waitMs: 1_000 })).toString('latin1')).toMatch(/^(?:HTTP\/1\.1 40[04] |$)/);
    }
  });

  it('and who has one is heard, so that silence means something', async () => {
    const ana = await cluster.svid('acme-ana');
    for (const { port } of mutual()) {
      const answer = await speak(port, H2_PREFACE, { tls: { ALPNProtocols: ['h2'], cert: ana.certificateChainPem, key: ana.privateKeyPem }, waitMs: 500 });
      expect(answer.length).toBeGreaterThan(0);
    }
  });
});

describe('the attestation listener', () => {
  /** Response headers, trailers and body of one request without a client certificate. */
  async function ask(method: string, path: string, body: Uint8Array = Buffer.alloc(0)): Promise<{ status: unknown; grpc: unknown; text: string }> {
    const session = http2.connect(`https://127.0.0.1:${attestation}`, { rejectUnauthorized: false, checkServerIdentity: () => undefined });
    try {
      return await new Promise((resolve) => {
        const answer = { status: undefined as unknown, grpc: undefined as unknown, text: '' };
        const done = (): void => resolve(answer);
        session.on('error', done);
        const stream = session.request({ ':method': method, ':path': path, te: 'trailers', 'content-type': 'application/grpc' });
        const take = (headers: http2.IncomingHttpHeaders): void => {
          answer.status ??= headers[':status'];
          answer.grpc ??= headers['grpc-status'];
        };
        stream.on('response', take);
        stream.on('trailers', take);
        stream.on('data', (chunk: Buffer) => (answer.text += chunk.toString('latin1')));
        stream.on('error', done);
        stream.on('close', done);
        stream.setTimeout(3_000, done);
        stream.end(body);
      });
    } finally {
      session.destroy();
    }
  }

  const [INVALID_ARGUMENT, UNIMPLEMENTED, UNAUTHENTICATED] = ['3', '12', '16'];
  const request = (token: string): Buffer => Buffer.concat([Buffer.from([0, 0, 0, 0, token.length + 2, 0x0a, token.length]), Buffer.from(token)]);

  it('refuses every token that it did not make in the same way', async () => {
    const answers = await Promise.all(['', 'x', 'not-a-join-token-of-this-cluster', 'A'.repeat(43)].map((token) => ask('POST', '/bulkhead.v1.NodeAttestation/Attest', request(token))));
    expect(answers).toEqual(answers.map(() => ({ status: 200, grpc: UNAUTHENTICATED, text: '' })));
    // No message at all is malformed, whatever its token would have been.
    expect(await ask('POST', '/bulkhead.v1.NodeAttestation/Attest')).toEqual({ status: 200, grpc: INVALID_ARGUMENT, text: '' });
  });

  it('knows nothing else, and does not tell what the cluster has from what nobody has', async () => {
    const paths = ['/bulkhead.v1.Tenants/List', '/bulkhead.v1.Identities/CreateJoinToken', '/bulkhead.v1.Calls/Attach', '/bulkhead.v1.Nothing/AtAll', '/grpc.reflection.v1.ServerReflection/ServerReflectionInfo', '/api/jobs/', '/', '/../../etc/passwd'];
    const answers = await Promise.all(paths.map((path) => ask('POST', path, Buffer.alloc(5))));
    expect(answers).toEqual(paths.map(() => ({ status: 200, grpc: UNIMPLEMENTED, text: '' })));
  });

  it.each(['GET', 'DELETE', 'PUT', 'OPTIONS', 'PATCH'])('%s is not for it', async (method) => {
    const { grpc, text } = await ask(method, '/metrics');
    expect([undefined, UNIMPLEMENTED]).toContain(grpc);
    expect(text).toBe('');
  });

  it('says nothing in HTTP/1.1, and takes no client certificate for more', async () => {
    const ana = await cluster.svid('acme-ana');
    for (const options of [{ ALPNProtocols: ['http/1.1'] }, { ALPNProtocols: [] }, { ALPNProtocols: ['http/1.1'], cert: ana.certificateChainPem, key: ana.privateKeyPem }]) {
      const answer = await speak(attestation, REQUESTS['GET /'] as string, { tls: options, waitMs: 1_500 });
      expect(answer.toString('latin1')).toBe('');
    }
  });
});

it('the cluster works as before, and nothing broke inside', async () => {
  const driver = await cluster.connect('globex-dev');
  expect(await driver.get(driver.task(() => 2)())).toBe(2);
  expect(cluster.faults()).toEqual([]);
});
