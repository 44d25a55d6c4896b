/**
 * Attacks on the gateway's socket: strangers, browsers' pages and rebound names, tokens of nobody, tenants among each other, archives and sockets that are not what they say. What has been done to Ray's Jobs API
 * (CVE-2023-48022, CVE-2025-62593) is done to this one.
 */
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { Duplex } from 'node:stream';
import { connect as connectTls } from 'node:tls';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { WebSocket } from '../../src/gateway/web-socket.ts';
import { Jobs, Tokens } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { Audit } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import { TestCluster } from '../support/cluster.ts';
import { ask, tail, tokenOf, zipOf } from '../support/gateway.ts';
import { listeningSockets, speak } from '../support/sockets.ts';

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 });

let cluster: TestCluster;
let ana: string;
let port: number;
let owned: string;
const MADE_UP = `bht_${randomBytes(32).toString('base64url')}`;

beforeAll(async () => {
  cluster = await TestCluster.start({ cpus: 1, gateway: true });
  ana = await tokenOf(cluster, 'acme-ana');
  port = Number(new URL(cluster.local.gatewayUrl ?? '').port);
  owned = join(cluster.directory, 'owned');
});
afterAll(() => cluster?.stop());

const PATHS = [['GET', '/'], ['GET', '/api/version'], ['GET', '/api/jobs/'], ['POST', '/api/jobs/'], ['GET', '/api/jobs/x'], ['DELETE', '/api/jobs/x'], ['POST', '/api/jobs/x/stop'], ['GET', '/api/jobs/x/logs'], ['PUT', '/api/packages/gcs/x.zip'], ['OPTIONS', '/api/jobs/'], ['GET', '/metrics'], ['GET', '/../../etc/passwd'], ['TRACE', '/api/version']] as const;

describe('without a token in force', () => {
  it('every request has the same answer, whatever its path, method and token', async () => {
    const answers = new Set<string>();
    for (const [method, path] of PATHS) {
      for (const token of [undefined, '', 'x', 'bht_short', `${ana}x`, ana.toUpperCase()]) answers.add(JSON.stringify(await ask(cluster, method, path, token === undefined ? {} : { token }).then(({ status, text, headers }) => [status, text, headers['www-authenticate'], headers['access-control-allow-origin']])));
    }
    answers.add(JSON.stringify(await ask(cluster, 'GET', '/api/jobs/', { token: MADE_UP }).then(({ status, text, headers }) => [status, text, headers['www-authenticate'], headers['access-control-allow-origin']])));
    expect([...answers]).toEqual([expect.stringMatching(/^\[401,"Unauthorized: a bearer token in force is needed/)]);
    expect((await tail(cluster, '/api/jobs/x/logs/tail', undefined)).refused).toContain('401');
  });

  it('a token elsewhere than in its header is none', async () => {
    for (const headers of [{ cookie: `token=${ana}` }, { 'x-ray-authorization': `Bearer ${ana}` }, { authorization: `Basic ${Buffer.from(`x:${ana}`).toString('base64')}` }, { authorization: `bearer ${ana}` }]) expect((await ask(cluster, 'GET', '/api/version', { headers })).status).toBe(401);
    expect((await ask(cluster, 'GET', `/api/version?token=${ana}`)).status).toBe(401);
  });

  it('tokens that are guessed are looked up so often and no more; one that was in force before goes on', async () => {
    const seen = new Set<number>();
    expect((await ask(cluster, 'GET', '/api/version', { token: ana })).status).toBe(200);
    for (let i = 0; i < 40 && !seen.has(429); i++) seen.add((await ask(cluster, 'GET', '/api/version', { token: `bht_${randomBytes(32).toString('base64url')}` })).status);
    expect([...seen].sort()).toEqual([401, 429]);
    expect((await ask(cluster, 'GET', '/api/version', { token: ana })).status).toBe(200);
  });

  it('in plain text nothing is heard, and inside TLS nothing but HTTP/1.1', async () => {
    expect((await speak(port, 'GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n', { waitMs: 1_000 })).toString('latin1')).not.toContain('HTTP');
    expect((await speak(port, Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'), { tls: { ALPNProtocols: ['h2'] }, waitMs: 1_000 })).length).toBe(0);
    expect((await speak(port, randomBytes(512), { tls: { ALPNProtocols: ['http/1.1'] }, waitMs: 1_000 })).length).toBe(0);
    // A certificate is no way in: a token is asked for all the same.
    const { certificateChainPem: cert, privateKeyPem: key } = await cluster.svid('acme-ana');
    expect((await speak(port, `GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n`, { tls: { cert, key, ALPNProtocols: ['http/1.1'] }, waitMs: 1_000 })).toString('latin1')).toMatch(/^HTTP\/1\.1 401 /);
  });
});

describe('a browser that has a token', () => {
  it.each<readonly [string, Readonly<Record<string, string>>]>([
    ['from a page', { origin: 'https://evil.example' }], ['from its own page', { origin: 'https://localhost' }], ['from a link', { referer: 'https://evil.example/' }], ['by fetch', { 'sec-fetch-mode': 'no-cors', 'sec-fetch-site': 'cross-site' }],
    ['with a cookie', { cookie: 'a=b' }], ['before it asks', { 'access-control-request-method': 'DELETE' }], ['by a rebound name', { host: 'rebound.example' }], ['by an address', { host: '127.0.0.1' }], ['by a name that only begins well', { host: 'localhost.evil.example' }], ['by a name with a dot', { host: 'localhost.' }],
  ])('%s reaches nothing', async (_how, headers) => {
    for (const [method, path, json] of [['GET', '/api/jobs/', undefined], ['POST', '/api/jobs/', { entrypoint: `python -c "open('${owned}','w')"` }], ['DELETE', '/api/jobs/x', undefined]] as const) {
      const { status, headers: answered } = await ask(cluster, method, path, { token: ana, headers, ...(json === undefined ? {} : { json }) });
      expect(status).toBe(401);
      expect(Object.keys(answered).filter((name) => name.startsWith('access-control'))).toEqual([]);
    }
  });

  it('a form or plain text is no job', async () => {
    const body = '{"entrypoint":"python a.py"}';
    for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x', '']) expect((await ask(cluster, 'POST', '/api/jobs/', { token: ana, body, headers: type === '' ? {} : { 'content-type': type } })).status).toBe(400);
    expect((await (await cluster.as('acme-ana')).to(Jobs).list({ tenant: 'acme' })).jobs).toEqual([]);
    expect(existsSync(owned)).toBe(false);
  });
});

describe('with a token', () => {
  it('paths and ids lead nowhere but to jobs', async () => {
    for (const path of ['/api/jobs/..', '/api/jobs/%2e%2e', '/api/jobs/a%2fb', '/api/jobs/../version', '/api/packages/gcs/..zip', '/api/packages/gcs/a/b.zip', '/api/packages/file/etc.zip', '/api/jobs/x/logs?lines=1', '/logs/', '/api/v0/tasks', '/static/js/../../etc/passwd', `/api/jobs/${'x'.repeat(500)}`, '/api/cluster_status']) {
      expect([400, 404], path).toContain((await ask(cluster, 'GET', path, { token: ana })).status);
    }
  });

  it('bodies have a limit, and must be what they say', async () => {
    expect((await ask(cluster, 'POST', '/api/jobs/', { token: ana, body: `{"entrypoint":"python a.py","metadata":{"a":"${'x'.repeat(2 ** 20)}"}}`, headers: { 'content-type': 'application/json' } })).status).toBe(400);
    for (const body of ['', '[]', 'null', '{"entrypoint":1}', '{"entrypoint":"python a.py","metadata":{"a":1}}', '{"entrypoint":"python a.py","entrypoint_num_cpus":-1}', '{', Buffer.from([0xff, 0xfe])]) {
      expect((await ask(cluster, 'POST', '/api/jobs/', { token: ana, body, headers: { 'content-type': 'application/json' } })).status).toBe(400);
    }
    // A secret that is in the wrong place is not sent back.
    const { text } = await ask(cluster, 'POST', '/api/jobs/', { token: ana, json: { entrypoint: 'python a.py', runtime_env: { env_vars: { KEY: ['s3cret-value'] } } } });
    expect(text).not.toContain('s3cret');
  });

  it('an archive that would leave its directory is refused before anything has it', async () => {
    for (const archive of [zipOf([{ name: '../evil.py' }]), zipOf([{ name: 'a', mode: 0o120777, bytes: Buffer.from('/etc/shadow') }]), zipOf([{ name: 'a', bytes: Buffer.alloc(100), unpacked: 2 ** 31, method: 8 }]), Buffer.from('PK')]) {
      expect((await ask(cluster, 'PUT', '/api/packages/gcs/evil.zip', { token: ana, body: archive })).status).toBe(400);
      expect((await ask(cluster, 'GET', '/api/packages/gcs/evil.zip', { token: ana })).status).toBe(404);
    }
    expect((await ask(cluster, 'PUT', '/api/packages/gcs/large.zip', { token: ana, headers: { 'content-length': String(2 ** 30) }, body: '' }).catch(() => ({ status: 400 }))).status).toBe(400);
  });

  it('a log that is not there is refused in HTTP, before the protocol changes', async () => {
    const answer = await new Promise<string>((resolve) => {
      const socket = connectTls({ host: '127.0.0.1', port, rejectUnauthorized: false, ALPNProtocols: ['http/1.1'] });
      let text = '';
      socket.on('data', (chunk: Buffer) => (text += chunk.toString('latin1'))).on('error', () => resolve(text)).on('close', () => resolve(text)).setTimeout(5_000, () => socket.destroy());
      socket.write(`GET /api/jobs/none/logs/tail HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${ana}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${randomBytes(16).toString('base64')}\r\n\r\n`);
    });
    expect(answer).toMatch(/^HTTP\/1\.1 404 /);
    expect((await tail(cluster, '/api/version', ana)).refused).toContain('404');
  });
});

/** A client's side of a WebSocket whose server is ours: what it was sent, and whether it was ended. `reads` false: it takes nothing. */
function webSocketOf(reads: boolean): { say(octets: Buffer): void; readonly sent: () => Buffer; readonly waiting: () => number; readonly destroyed: () => boolean } {
  const sent: Buffer[] = [];
  const socket = new Duplex({
    read: () => undefined,
    write: (chunk: Buffer, _encoding, written) => {
      sent.push(chunk);
      if (reads || sent.length === 1) written();
    },
  });
  void new WebSocket(socket, Buffer.alloc(0), randomBytes(16).toString('base64'));
  return { say: (octets) => void socket.emit('data', octets), sent: () => Buffer.concat(sent.slice(1)), waiting: () => socket.writableLength, destroyed: () => socket.destroyed };
}

function masked(first: number, payload: Buffer): Buffer {
  const mask = randomBytes(4);
  return Buffer.concat([Buffer.from([first, 0x80 | payload.length]), mask, Buffer.from(payload.map((octet, i) => octet ^ (mask[i & 3] as number)))]);
}

describe('the frames of a WebSocket', () => {
  const PING = 0x89;

  it.each<readonly [string, Buffer]>([
    ['text', masked(0x81, Buffer.from('x'))], ['binary', masked(0x82, Buffer.from('x'))], ['a continuation', masked(0x80, Buffer.from('x'))], ['a ping without a mask', Buffer.from([PING, 1, 0x41])],
    ['a ping in pieces', masked(0x09, Buffer.from('x'))], ['a ping with a reserved bit', masked(0xc9, Buffer.from('x'))], ['a ping of 126 octets', Buffer.from([PING, 0xfe, 0, 126])],
    ['a ping of 2^63 octets', Buffer.from([PING, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0])], ['an op that nobody knows', masked(0x83, Buffer.alloc(0))],
  ])('%s ends it', (_what, octets) => {
    const at = webSocketOf(true);
    at.say(octets);
    expect([at.destroyed(), at.sent().length]).toEqual([true, 0]);
  });

  it('pings are answered with what they brought, however they are cut', () => {
    const at = webSocketOf(true);
    for (const octet of Buffer.concat([masked(PING, Buffer.from('one')), masked(PING, Buffer.alloc(0)), masked(0x8a, Buffer.from('unasked'))])) at.say(Buffer.of(octet));
    expect([at.destroyed(), at.sent().toString('latin1')]).toEqual([false, '\u008a\u0003one\u008a\u0000']);
  });

  it('pings of a client that reads nothing are not kept for it', () => {
    const at = webSocketOf(false);
    const flood = Buffer.concat(Array.from({ length: 1_000 }, () => masked(PING, Buffer.alloc(125))));
    for (let i = 0; i < 20; i++) at.say(flood);
    expect([at.destroyed(), at.waiting() < 100_000]).toEqual([false, true]);
  });
});

it('the gateway itself may ask whose a token is, and nothing else', async () => {
  const { openHead } = await import('../../src/sdk/head-client.ts');
  const { client } = await import('../../src/rpc/rpc.ts');
  await using head = await openHead({ profile: join(cluster.dataDir, 'gateway'), address: cluster.headAddress });
  const refused = async (call: Promise<unknown>): Promise<string> => call.then(() => 'answered', (thrown: unknown) => (thrown as { code: string }).code);
  const jobs = client(Jobs, head.channel);
  expect(await refused(jobs.list({ tenant: 'acme' }))).toBe('DENIED');
  expect(await refused(client(Tokens, head.channel).create({ name: 'mine' }))).toBe('DENIED');
  expect(await refused(client(Tokens, head.channel).admit({ token: MADE_UP, call: 'version' }))).toBe('UNAUTHENTICATED');
  expect(await refused(client(Tokens, head.channel).admit({ token: ana, call: 'become-root' }))).toBe('INVALID_ARGUMENT');
  // Nobody else may ask it.
  expect(await refused((await cluster.as('globex-ana')).to(Tokens).admit({ token: ana, call: 'version' }))).toBe('DENIED');
  expect(await refused((await cluster.as('admin')).to(Tokens).admit({ token: ana, call: 'version' }))).toBe('DENIED');
});

it('what was asked is in the tenant’s log, with its token’s id and never the token', async () => {
  const people = await cluster.as('acme-ana');
  const lines: string[] = [];
  for await (const { record } of people.to(Audit).tail({ tenant: 'acme', last: 500 })) lines.push(record);
  const text = lines.join('\n');
  const ours: string[] = [];
  for await (const { record } of (await cluster.as('admin')).to(Audit).tail({ tenant: '', last: 500 })) ours.push(record);
  expect(ours.join('\n')).toMatch(/token\.refused.*from 127\.0\.0\.1/);
  expect(ours.join('\n')).not.toContain(ana);
  expect(text).toMatch(/gateway\/list-jobs with token [0-9a-f]{16} from 127\.0\.0\.1|gateway\/version with token [0-9a-f]{16} from 127\.0\.0\.1/);
  expect(text).toContain('gateway/put-package');
  expect(text).not.toContain(ana);
  expect(cluster.faults()).toEqual([]);
});

it('it listens on one socket, on loopback', () => {
  const sockets = listeningSockets([cluster.local.record.gateway?.pid ?? 0]);
  expect(sockets.map((s) => [s.kind, s.port, s.address])).toEqual([['tcp', port, expect.stringMatching(/^127\.0\.0\.1:/)]]);
});
