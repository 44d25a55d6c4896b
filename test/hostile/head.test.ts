/** Attacks on the head's two sockets: peers without an identity, with a wrong one, across the wall, and with bytes that are no message. */
import { randomBytes } from 'node:crypto';
import { readdir, readFile, readlink } from 'node:fs/promises';
import { connect as connectHttp2, type ClientHttp2Session } from 'node:http2';
import { connect as connectTcp } from 'node:net';
import { join } from 'node:path';
import { connect as connectTls } from 'node:tls';
import { create, toBinary, type DescField, type DescMethod } from '@bufbuild/protobuf';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import type { BulkheadError } from '../../src/base/errors.ts';
import type { MessageStream } from '../../src/rpc/rpc.ts';
import { Audit, file_bulkhead_v1_raylet, Metrics } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import { Cluster, file_bulkhead_v1_head, Identities, Jobs, NodeAttestation, NodeSync, Policies, Sessions, Tenants, Tokens, type HeadUpdate } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { adminOf, Caller, freshKey, issued, joined, startHeadProcess, temporaryDirectory, type HeadProcess } from '../e2e/start-head.ts';

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

let dir: Awaited<ReturnType<typeof temporaryDirectory>>;
let head: HeadProcess;
let admin: Caller;
let ana: Caller;
let eve: Caller;
let node: Caller;
let stolen: Awaited<ReturnType<typeof joined>>;
let anasJob: string;
let anasSession: string;
let anasToken: string;

beforeAll(async () => {
  dir = await temporaryDirectory();
  head = await startHeadProcess(join(dir.path, 'data'), { trustDomain: 'test.example' });
  admin = await adminOf(join(dir.path, 'data'));
  for (const name of ['acme', 'globex']) await admin.to(Tenants).create({ name });
  ana = await issued(admin, head.address, { tenant: 'acme', name: 'ana', roles: ['tenant-admin'] });
  eve = await issued(admin, head.address, { tenant: 'globex', name: 'eve', roles: ['tenant-admin'] });
  node = await joined(admin, head, 'n1');
  stolen = await joined(admin, head, 'n9');
  ({ jobId: anasJob, sessionId: anasSession } = await ana.to(Sessions).open({ jobName: 'a', submission: { id: 'anas', details: '{}' } }));
  anasToken = (await ana.to(Tokens).create({ name: 'a' })).info?.tokenId ?? '';
  await ana.to(Policies).apply({ tenant: 'acme', fileName: 'p.yaml', content: Buffer.from('version: 1\ntenant: acme\nroles: {}\n') });
});

afterAll(async () => {
  for (const caller of [admin, ana, eve, node, stolen]) caller?.[Symbol.dispose]();
  const code = await head?.kill('SIGTERM');
  await dir?.[Symbol.asyncDispose]();
  expect(code).toBe(0);
});

const codeOf = (call: Promise<unknown>): Promise<string> => call.then(() => 'OK', (error: unknown) => (error as BulkheadError).code);
const split = (address: string): { host: string; port: number } => ({ host: address.slice(0, address.lastIndexOf(':')), port: Number(address.slice(address.lastIndexOf(':') + 1)) });

/** Everything the process listens on, as the kernel says. */
async function listeningPorts(pid: number): Promise<number[]> {
  const inodes = new Set<string>();
  for (const fd of await readdir(`/proc/${pid}/fd`)) {
    const match = /^socket:\[(\d+)\]$/.exec(await readlink(`/proc/${pid}/fd/${fd}`).catch(() => ''));
    if (match?.[1] !== undefined) inodes.add(match[1]);
  }
  const ports: number[] = [];
  for (const table of ['tcp', 'tcp6', 'udp', 'udp6']) {
    for (const line of (await readFile(`/proc/${pid}/net/${table}`, 'utf8')).split('\n').slice(1)) {
      const fields = line.trim().split(/\s+/);
      if (fields[9] !== undefined && inodes.has(fields[9]) && (fields[3] === '0A' || table.startsWith('udp'))) ports.push(Number.parseInt(fields[1]?.split(':')[1] ?? '0', 16));
    }
  }
  return ports;
}

describe('sockets', () => {
  it('are the two that were announced, and no other', async () => {
    expect((await listeningPorts(head.child.pid ?? 0)).sort()).toEqual([split(head.address).port, split(head.attestationAddress).port].sort());
  });

  it.each(['address', 'attestationAddress'] as const)('give %s no answer in plain text', async (which) => {
    for (const bytes of ['GET / HTTP/1.1\r\nHost: x\r\n\r\n', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', randomBytes(512), '\u0016\u0003\u0001']) {
      const socket = connectTcp(split(head[which]));
      socket.on('error', () => undefined);
      socket.end(bytes);
      const answer: Buffer[] = [];
      for await (const chunk of socket) answer.push(chunk as Buffer);
      // At most a TLS alert: content type 21.
      const all = Buffer.concat(answer);
      expect(all.length === 0 || (all[0] === 21 && all.length < 16)).toBe(true);
    }
  });

  it('speak to nobody without a certificate, and to none of another cluster', async () => {
    await using other = await temporaryDirectory();
    const foreign = await startHeadProcess(join(other.path, 'data'), { trustDomain: 'test.example' });
    try {
      using stranger = await adminOf(join(other.path, 'data'));
      const { spiffeId, trustDomain, serial, notAfterMs, privateKeyPem, certificateChainPem } = stranger.svid;
      using crossed = new Caller({ spiffeId, trustDomain, serial, notAfterMs, privateKeyPem, certificateChainPem, trustBundlePem: admin.svid.trustBundlePem }, head.address);
      expect(await codeOf(crossed.to(Identities).whoAmI({}))).toMatch(/UNAUTHENTICATED|UNAVAILABLE/);
      using wrongServer = new Caller(admin.svid, foreign.address);
      expect(await codeOf(wrongServer.to(Identities).whoAmI({}))).toMatch(/UNAUTHENTICATED|UNAVAILABLE/);
    } finally {
      await foreign.kill('SIGTERM');
    }
    const { host, port } = split(head.address);
    const bare = connectTls({ host, port, rejectUnauthorized: false, ALPNProtocols: ['h2'] });
    const seen = await new Promise<string>((resolve) => {
      bare.on('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? 'error')).on('close', () => resolve('closed')).on('data', () => resolve('data'));
    });
    bare.destroy();
    expect(seen).not.toBe('data');
  });

  it('serve nothing but attestation where no certificate is asked', async () => {
    const session = connectHttp2(`https://${head.attestationAddress}`, { rejectUnauthorized: false });
    session.on('error', () => undefined);
    try {
      for (const service of [...file_bulkhead_v1_head.services, ...file_bulkhead_v1_raylet.services]) {
        if (service.typeName === NodeAttestation.typeName) continue;
        for (const method of service.methods) expect(await rawCall(session, `/${service.typeName}/${method.name}`, frame(new Uint8Array(0))), method.name).not.toBe('0');
      }
    } finally {
      session.destroy();
    }
  });
});

describe('attestation', () => {
  const attest = async (joinToken: string, csr: Uint8Array): Promise<string> => {
    const session = connectHttp2(`https://${head.attestationAddress}`, { rejectUnauthorized: false });
    session.on('error', () => undefined);
    try {
      return await rawCall(session, '/bulkhead.v1.NodeAttestation/Attest', frame(toBinary(NodeAttestation.method.attest.input, create(NodeAttestation.method.attest.input, { joinToken, csr }))));
    } finally {
      session.destroy();
    }
  };

  it('takes a token once, from the first who brings a real request', async () => {
    const { token } = await admin.to(Identities).createJoinToken({ nodeId: 'n7' });
    const { csr } = freshKey();
    expect(await attest('', csr)).toBe('16');
    expect(await attest(`${token}x`, csr)).toBe('16');
    expect(await attest(token, new Uint8Array(10))).toBe('3');
    const answers = await Promise.all([attest(token, csr), attest(token, freshKey().csr)]);
    expect(answers.sort()).toEqual(['0', '16']);
    expect(await attest(token, csr)).toBe('16');
  });

  it('is bounded: a flood is told to wait', async () => {
    const answers = await Promise.all(Array.from({ length: 40 }, () => attest('wrong', new Uint8Array(0))));
    expect(new Set(answers)).toEqual(new Set(['16', '8']));
    expect(await ana.to(Identities).whoAmI({})).toMatchObject({ tenant: 'acme' });
  });
});

describe('who may call what', () => {
  it('nodes call nothing of tenants or of the administrator', async () => {
    const calls = [
      node.to(Tenants).list({}), node.to(Tenants).create({ name: 'x' }), node.to(Identities).issue({ tenant: 'acme', kind: 'user', name: 'x', csr: freshKey().csr }), node.to(Identities).revoke({ spiffeId: ana.svid.spiffeId }),
      node.to(Identities).createJoinToken({ nodeId: 'n2' }), node.to(Identities).rotateAuthority({}), node.to(Sessions).open({ jobName: 'x' }), node.to(Jobs).stop({ jobId: anasJob }), node.to(Policies).get({ tenant: 'acme' }), node.to(Cluster).status({}),
      (async () => {
        for await (const _line of node.to(Audit).tail({ tenant: 'acme' })) throw new Error('it was shown');
      })(),
    ];
    expect(new Set(await Promise.all(calls.map(codeOf)))).toEqual(new Set(['DENIED']));
  });

  it('a node leaves no code to run as a principal, and gets none, without a session of that principal', async () => {
    const names = stolen.to(NodeSync);
    const restart = async (instance: string): Promise<void> => {
      const stream = names.sync() as MessageStream<HeadUpdate, object>;
      stream.write({ address: '127.0.0.1:4000', instance });
      for await (const update of stream) if (update.policy !== undefined) break;
      stream.end();
    };
    await restart('a');
    const id = (n: number): Buffer => Buffer.concat([Buffer.from([1, 0, 0, 0, stolen.nodeNumber, 0, 0, 0]), Buffer.alloc(16, n)]);
    const key = (name: string) => ({ tenant: 'acme', namespace: '', name });
    const seed = { options: '{}', args: Buffer.from('secret arguments of acme'), code: Buffer.from('secret code of acme'), restarts: 0 };
    using bob = await issued(admin, head.address, { tenant: 'acme', name: 'bob', roles: ['tenant-admin'] });
    const [anas, bobs, eves] = await Promise.all([ana, bob, eve].map(async (caller) => (await caller.to(Sessions).open({ jobName: 's' })).credential));
    const register = async (name: string, n: number, credential = '', more: object = {}) => (await names.registerActorName({ ...key(name), actorId: id(n), classInfo: '{}', credential, ...more })).kept;
    for (const credential of ['', 'x.y.z', eves ?? '']) expect(await codeOf(register('left', 1, credential, { seed }))).toBe('DENIED');
    expect([await register('bare', 2, anas), await register('kept', 7, anas, { seed })]).toEqual([false, true]);
    // Not while its node lives, and then to its principal only.
    const look = async (name: string, credential = '') => await names.lookupActorName({ ...key(name), credential }).then(({ found, orphaned, seed: given }) => [found, orphaned, given?.code]);
    expect(await look('kept', anas)).toEqual([true, false, undefined]);
    await restart('b');
    expect(await look('bare', anas)).toEqual([false, false, undefined]);
    expect(await look('kept', bobs)).toEqual([true, true, undefined]);
    for (const credential of ['', eves ?? '']) expect(await codeOf(look('kept', credential))).toBe('DENIED');
    const found = await names.lookupActorName({ ...key('kept'), credential: anas ?? '' });
    expect([Buffer.from(found.seed?.code ?? []).toString(), Buffer.from(found.seed?.args ?? []).toString()]).toEqual(['secret code of acme', 'secret arguments of acme']);
    // Who had the name may ask for it again without a driver, and learns when another has it; nobody else learns that.
    expect([await register('kept', 7), await look('kept', anas)]).toEqual([true, [true, false, undefined]]);
    await restart('c');
    expect(await register('kept', 8, anas)).toBe(false);
    expect([await codeOf(register('kept', 7)), await codeOf(register('kept', 9))]).toEqual(['INVALID_ARGUMENT', 'DENIED']);
    // On disk it is readable to nobody without the tenant's key.
    const files = (await readdir(join(dir.path, 'data'), { recursive: true, withFileTypes: true })).filter((f) => f.isFile()).map((f) => join(f.parentPath, f.name));
    for (const file of files) {
      const bytes = await readFile(file);
      for (const text of ['secret arguments', Buffer.from('secret arguments of acme').toString('base64')]) expect([file, bytes.includes(text)]).toEqual([file, false]);
    }
  });

  it('tenants call nothing of nodes', async () => {
    const names = ana.to(NodeSync);
    const key = { tenant: 'acme', namespace: '', name: 'x', actorId: Buffer.alloc(24, 1) };
    expect(await Promise.all([names.registerActorName(key), names.lookupActorName(key), names.releaseActorName(key)].map(codeOf))).toEqual(['DENIED', 'DENIED', 'DENIED']);
    const stream = names.sync() as MessageStream<HeadUpdate, object>;
    stream.write({ address: '127.0.0.1:1' });
    expect(await codeOf((async () => {
      for await (const _update of stream) throw new Error('it was told');
    })())).toBe('DENIED');
  });

  it('a tenant that may see the nodes learns nothing of others by their load', async () => {
    const stream = node.to(NodeSync).sync() as MessageStream<HeadUpdate, object>;
    stream.write({ address: '127.0.0.1:4000', total: { cpuUnits: 20_000n, memoryBytes: 5n, custom: {} }, available: { cpuUnits: 10_000n, memoryBytes: 5n, custom: {} }, queuedTasks: 7 });
    for await (const update of stream) if (update.policy !== undefined) break;
    expect((await admin.to(Cluster).listNodes({})).nodes[0]).toMatchObject({ queuedTasks: 7, available: { cpuUnits: 10_000n } });
    const { nodes } = await ana.to(Cluster).listNodes({});
    expect([nodes[0]?.nodeId, nodes[0]?.queuedTasks, nodes[0]?.available]).toEqual(['n1', 0, undefined]);
    expect(await codeOf(ana.to(Cluster).status({}))).toBe('DENIED');
    stream.end();
  });

  it('a tenant administrator changes nothing of the platform', async () => {
    const defaults = await admin.to(Policies).get({ tenant: '' });
    const calls = [
      ana.to(Policies).apply({ tenant: '', fileName: 'defaults.yaml', content: defaults.content }), ana.to(Policies).rollback({ tenant: '', version: 1 }), ana.to(Policies).get({ tenant: '' }), ana.to(Policies).history({}),
      ana.to(Tenants).create({ name: 'mine' }), ana.to(Tenants).delete({ tenant: 'acme' }), ana.to(Identities).createJoinToken({}), ana.to(Identities).rotateAuthority({}), ana.to(Identities).showPki({}),
      ana.to(Identities).issue({ tenant: '', kind: 'user', name: 'root', csr: freshKey().csr }), ana.to(Identities).issue({ tenant: 'platform', kind: 'user', name: 'root', csr: freshKey().csr }),
    ];
    for (const [i, code] of (await Promise.all(calls.map(codeOf))).entries()) expect(code, `call ${i}`).toMatch(/DENIED|INVALID_ARGUMENT/);
    expect((await admin.to(Policies).get({ tenant: '' })).version).toEqual(defaults.version);
  });
});

describe("another tenant's ids", () => {
  /** Of acme, by the name of the field; the second is one of the same form that does not exist. */
  const IDS: Readonly<Record<string, () => readonly [unknown, unknown]>> = {
    tenant: () => ['acme', 'nonesuch'], job_id: () => [anasJob, `job-${'0'.repeat(24)}`], spiffe_id: () => [ana.svid.spiffeId, 'spiffe://test.example/tenant/nonesuch/user/x'],
    session_id: () => [anasSession, '0'.repeat(16)], node_id: () => ['n1', 'n99'], serial: () => [ana.svid.serial, '00ff'], token_id: () => [anasToken, '0'.repeat(16)], submission_id: () => ['anas', 'nobodys'],
  };
  /** Fields that name nothing of anybody's. */
  const FREE = new Set(['kind', 'most', 'labels', 'project', 'name', 'roles', 'csr', 'reason', 'quota', 'remove', 'outcome', 'message', 'file_name', 'content', 'version', 'job_name', 'last', 'follow', 'from_ms', 'to_ms', 'token', 'call', 'remote', 'ttl_seconds', 'url', 'submission', 'submitted']);
  const FILLED: Readonly<Record<string, unknown>> = { kind: 'user', name: 'x', outcome: 'failed', fileName: 'p.yaml', content: Buffer.from('version: 1\ntenant: acme\nroles: {}\n'), version: 1 };

  const served = [Identities, Sessions, Tenants, Policies, Jobs, Tokens, Cluster, Audit, Metrics];
  const attacks = served.flatMap((service) => service.methods.flatMap((method: DescMethod) => method.input.fields.filter((f) => !FREE.has(f.name)).map((field: DescField) => ({ service, method, field }))));

  it('has an id of each kind for every field that could hold one', () => {
    expect(attacks.length).toBeGreaterThan(15);
    for (const { method, field } of attacks) expect(Object.keys(IDS), `${method.name}.${field.name}`).toContain(field.name);
  });

  it('get the same answer as ids that do not exist, in every field of every RPC', async () => {
    for (const { service, method, field } of attacks) {
      const csr = freshKey().csr;
      const [theirs, nobodys] = IDS[field.name]?.() ?? [];
      const call = async (value: unknown): Promise<BulkheadError> => {
        const request = { ...Object.fromEntries(method.input.fields.filter((f) => f.localName in FILLED).map((f) => [f.localName, FILLED[f.localName]])), ...(method.input.fields.some((f) => f.localName === 'csr') ? { csr } : {}), ...(field.name === 'session_id' ? { jobId: anasJob } : {}), [field.localName]: value };
        const answer: unknown = (eve.to(service) as Record<string, (r: object) => unknown>)[method.localName]?.(request);
        try {
          if (method.methodKind === 'server_streaming') for await (const part of answer as AsyncIterable<unknown>) throw new Error(`answered ${JSON.stringify(part)}`);
          else await (answer as Promise<unknown>);
        } catch (error) {
          return error as BulkheadError;
        }
        throw new Error(`${method.name} with ${field.name} ${String(value)} was answered`);
      };
      const [denied, missing] = [await call(theirs), await call(nobodys)];
      expect([denied.code, denied.message], `${method.name}.${field.name}`).toEqual(['DENIED', missing.message]);
    }
    expect(await ana.to(Identities).whoAmI({})).toMatchObject({ tenant: 'acme' });
    expect(await ana.to(Jobs).get({ jobId: anasJob })).toMatchObject({ status: 'RUNNING' });
  });
});

describe('a stolen node that asks for names of actors', () => {
  const key = { tenant: 'acme', namespace: 'prod', name: 'ledger' };
  let serial = 0;
  let stream: MessageStream<HeadUpdate, object>;
  const id = (): Buffer => Buffer.concat([Buffer.from([1, 0, 0, 0, 1, 0, 0, 0]), Buffer.alloc(15, 5), Buffer.from([serial++])]);
  const both = async (credential: string, more: object = {}): Promise<string[]> => {
    const names = node.to(NodeSync);
    return Promise.all([names.registerActorName({ ...key, name: `n${serial}`, ...more, credential, actorId: id(), classInfo: '{}' }), names.lookupActorName({ ...key, ...more, credential })].map(codeOf));
  };

  beforeAll(async () => {
    stream = node.to(NodeSync).sync() as MessageStream<HeadUpdate, object>;
    stream.write({ address: '127.0.0.1:4000' });
    for await (const update of stream) if (update.policy !== undefined) break;
  });
  afterAll(() => stream.end());

  it('gets them with a session of the tenant that is in force', async () => {
    const { credential } = await ana.to(Sessions).open({ jobName: 'names' });
    expect(await both(credential)).toEqual(['OK', 'OK']);
  });

  it.each<[string, () => Promise<string> | string]>([
    ['none', () => ''], ['not a token', () => 'x.y.z'], ['one of another tenant’s session', async () => (await eve.to(Sessions).open({ jobName: 'e' })).credential],
    ['one that is altered', async () => {
      const [header, payload, signature] = (await ana.to(Sessions).open({ jobName: 'b' })).credential.split('.') as [string, string, string];
      const claims = JSON.parse(Buffer.from(payload, 'base64url').toString()) as Record<string, unknown>;
      return `${header}.${Buffer.from(JSON.stringify({ ...claims, exp: Number(claims['exp']) + 60 })).toString('base64url')}.${signature}`;
    }],
  ])('as a credential shows %s: it gets the same answer as for a tenant that does not exist, and both sides have it on record', async (_what, credential) => {
    const shown = await credential();
    expect(await both(shown)).toEqual(['DENIED', 'DENIED']);
    expect(await both(shown, { tenant: 'nonesuch' })).toEqual(['DENIED', 'DENIED']);
    expect((await ana.to(Audit).tail({ tenant: 'acme', last: 1_000 })[Symbol.asyncIterator]().next()).done).toBe(false);
    const told: string[] = [];
    for await (const { record } of ana.to(Audit).tail({ tenant: 'acme', last: 1_000 })) if (record.includes('LookupActorName') && record.includes('spiffe://test.example/node/n1')) told.push(record);
    expect(told.length).toBeGreaterThan(0);
  });

  it('for the tenant of the credential is told nothing of another’s', async () => {
    const { credential } = await eve.to(Sessions).open({ jobName: 'e' });
    expect(await both(credential, { tenant: 'acme' })).toEqual(['DENIED', 'DENIED']);
  });

  it('for a job that was stopped, or ended a while ago, gets nothing any more', async () => {
    const stopped = await ana.to(Sessions).open({ jobName: 'stopped' });
    expect(await both(stopped.credential)).toEqual(['OK', 'OK']);
    await ana.to(Jobs).stop({ jobId: stopped.jobId });
    expect(await both(stopped.credential)).toEqual(['UNAUTHENTICATED', 'UNAUTHENTICATED']);
    const ended = await ana.to(Sessions).open({ jobName: 'ended' });
    await ana.to(Sessions).close({ jobId: ended.jobId, sessionId: ended.sessionId, outcome: 'succeeded' });
    // What its driver sent before its goodbye may still be under way.
    expect(await both(ended.credential)).toEqual(['OK', 'OK']);
    await vi.waitFor(async () => expect(await both(ended.credential)).toEqual(['UNAUTHENTICATED', 'UNAUTHENTICATED']), { timeout: 30_000, interval: 500 });
  });

  it('for an identity that was revoked gets nothing any more', async () => {
    const ivy = await issued(admin, head.address, { tenant: 'acme', name: 'ivy', roles: ['developer'] });
    const { credential } = await ivy.to(Sessions).open({ jobName: 'i' });
    expect(await both(credential)).toEqual(['OK', 'OK']);
    await admin.to(Identities).revoke({ spiffeId: ivy.svid.spiffeId });
    expect(await both(credential)).toEqual(['DENIED', 'DENIED']);
    ivy[Symbol.dispose]();
  });

  it('cannot release what another node registered', async () => {
    const { credential } = await ana.to(Sessions).open({ jobName: 'r' });
    const actorId = id();
    await node.to(NodeSync).registerActorName({ ...key, name: 'kept', credential, actorId, classInfo: '{}' });
    using thief = await joined(admin, head, 'n-thief');
    await thief.to(NodeSync).releaseActorName({ ...key, name: 'kept', actorId });
    expect((await node.to(NodeSync).lookupActorName({ ...key, name: 'kept', credential })).found).toBe(true);
  });
});

describe('nodes that lie', () => {
  const report = async (more: object): Promise<string> => {
    const stream = node.to(NodeSync).sync() as MessageStream<HeadUpdate, object>;
    stream.write({ address: '127.0.0.1:4000', ...more });
    try {
      for await (const _update of stream) return 'OK';
      return 'ended';
    } catch (error) {
      return (error as BulkheadError).code;
    } finally {
      stream.end();
    }
  };

  it.each([
    ['more cpus than a machine has', { total: { cpuUnits: 20_490_000n, memoryBytes: 1n, custom: {} } }, 'says it has 2049 cpus, and 2048 is the most'],
    ['more memory than a machine has', { total: { cpuUnits: 1n, memoryBytes: 2n ** 46n + 1n, custom: {} } }, 'bytes of memory'],
    ['more of a custom resource than may be', { total: { cpuUnits: 1n, memoryBytes: 1n, custom: { gpu: 100_010_000n } } }, "10001 'gpu'"],
  ])('about what they have (%s) are told what is wrong, and it is on record', async (_what, more, why) => {
    const stream = node.to(NodeSync).sync() as MessageStream<HeadUpdate, object>;
    stream.write({ address: '127.0.0.1:4000', ...more });
    await expect((async () => {
      for await (const _update of stream) throw new Error('it was taken');
    })()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(why) });
    const records: string[] = [];
    for await (const { record } of admin.to(Audit).tail({ tenant: '', last: 50 })) if (record.includes('node.refused')) records.push(record);
    expect(records.at(-1)).toContain('says it has');
  });

  it('about more than their join token allows are refused; a new token raises it, and every claim is on record', async () => {
    const claim = async (who: Caller, total: object): Promise<string> => {
      const stream = who.to(NodeSync).sync() as MessageStream<HeadUpdate, object>;
      stream.write({ address: '127.0.0.1:4000', total: { cpuUnits: 0n, memoryBytes: 0n, custom: {}, ...total } });
      try {
        for await (const _update of stream) return 'OK';
        return 'ended';
      } catch (error) {
        return (error as BulkheadError).message;
      } finally {
        stream.end();
      }
    };
    const most = { cpuUnits: 40_000n, memoryBytes: 2n ** 30n, custom: { gpu: 10_000n } };
    using small = await joined(admin, head, 'n-small', most);
    expect(await claim(small, { cpuUnits: 40_000n, memoryBytes: 2n ** 30n, custom: { gpu: 10_000n } })).toBe('OK');
    expect(await claim(small, { cpuUnits: 40_001n })).toContain('4.0001 cpus, and 4 is the most it may');
    expect(await claim(small, { memoryBytes: 2n ** 30n + 1n })).toContain('bytes of memory');
    expect(await claim(small, { custom: { gpu: 10_001n } })).toContain("1.0001 'gpu'");
    expect(await claim(small, { custom: { tpu: 1n } })).toContain('does not name');
    using larger = await joined(admin, head, 'n-small', { ...most, cpuUnits: 80_000n });
    expect(await claim(larger, { cpuUnits: 80_000n })).toBe('OK');
    expect(await claim(larger, { cpuUnits: 80_001n })).toContain('8.0001 cpus');
    const records: string[] = [];
    for await (const { record } of admin.to(Audit).tail({ tenant: '', last: 100 })) if (record.includes('n-small')) records.push(record);
    for (const said of ['at most 4 cpus, 1073741824 bytes of memory, 1 gpu', 'says it has 4 cpus, 1073741824 bytes of memory, 1 gpu', 'says it has 8 cpus', 'says it has 8.0001 cpus']) expect(records.join()).toContain(said);
  });

  it.each([
    ['no address', { address: '' }], ['an address with a path', { address: '127.0.0.1:1/../x' }], ['an address that is a URL', { address: 'https://evil.example:443' }], ['an instance that is a path', { instance: '../../x' }],
    ['more memory than there is', { total: { cpuUnits: 1n, memoryBytes: 2n ** 64n - 1n, custom: {} } }], ['more cpus than there are', { available: { cpuUnits: 2n ** 63n, memoryBytes: 1n, custom: {} } }],
    ['boundless custom resources', { total: { cpuUnits: 1n, memoryBytes: 1n, custom: Object.fromEntries(Array.from({ length: 65 }, (_, i) => [`r${i}`, 1n])) } }],
    ['a checkpoint that is none', { checkpoints: [{ tenant: 'acme', note: randomBytes(50) }] }], ['a checkpoint of nobody', { checkpoints: [{ tenant: 'nonesuch', note: Buffer.from(`test.example/node/n1/tenant/nonesuch\n1\n${Buffer.alloc(32).toString('base64')}\n\n— x AAAAAAAA\n`) }] }],
    ['a checkpoint of another node', { checkpoints: [{ tenant: 'acme', note: Buffer.from(`test.example/node/n2/tenant/acme\n1\n${Buffer.alloc(32).toString('base64')}\n\n— x AAAAAAAA\n`) }] }],
    ['more checkpoints than there are logs', { checkpoints: Array.from({ length: 101 }, () => ({ tenant: 'acme', note: new Uint8Array(0) })) }],
  ])('with %s are refused', async (_what, more) => {
    // A stream whose first report is good but for its checkpoints is told everything first, then ended.
    expect(await report(more)).toMatch('checkpoints' in more ? /OK|INVALID_ARGUMENT|RESOURCE_EXHAUSTED/ : /INVALID_ARGUMENT/);
    expect((await admin.to(Cluster).status({})).nodes.every((n) => /^$|^127\.0\.0\.1:4000$/.test(n.address))).toBe(true);
  });

  it('that show two histories are recorded', async () => {
    const stream = node.to(NodeSync).sync() as MessageStream<HeadUpdate, object>;
    const note = (size: number, fill: number): Uint8Array => Buffer.from(`test.example/node/n1/tenant/acme\n${size}\n${Buffer.alloc(32, fill).toString('base64')}\n\n— test.example/node/n1 ${Buffer.alloc(68).toString('base64')}\n`);
    const told = stream[Symbol.asyncIterator]();
    const cosigned = async (): Promise<string[]> => {
      for (;;) {
        const { value } = await told.next();
        if ((value as HeadUpdate).cosigned.length > 0) return (value as HeadUpdate).cosigned.map((c) => Buffer.from(c.note).toString().split('\n')[1] ?? '');
      }
    };
    const show = (size: number, fill: number) => stream.write({ address: '127.0.0.1:4000', checkpoints: [{ tenant: 'acme', note: note(size, fill) }] });
    show(5, 1);
    expect(await cosigned()).toEqual(['5']);
    for (const [size, fill] of [[5, 2], [4, 1], [9, 3]] as const) show(size, fill);
    expect(await cosigned()).toEqual(['9']);
    stream.end();
    for (const [caller, tenant] of [[admin, ''], [ana, 'acme']] as const) {
      const lines: string[] = [];
      for await (const { record } of caller.to(Audit).tail({ tenant, last: 1_000 })) lines.push(record);
      expect(lines.filter((l) => l.includes('"audit.contradicted"')).map((l) => (JSON.parse(l) as { detail: string }).detail.slice(0, 6))).toEqual(['size 5', 'size 4']);
    }
  });
});

describe('bytes that are no message', () => {
  const withIdentity = (caller: Caller): ClientHttp2Session => {
    const session = connectHttp2(`https://${head.address}`, { rejectUnauthorized: false, key: caller.svid.privateKeyPem, cert: caller.svid.certificateChainPem });
    session.on('error', () => undefined);
    return session;
  };

  it('are refused by every RPC, and the head goes on', async () => {
    // What only nodes may call is refused for who asks, whatever the bytes: they are a message of a field of bytes.
    const methods = [Identities, Sessions, Tenants, Policies, Jobs, Cluster, Audit, Metrics].flatMap((s) => s.methods.filter((m) => m.input.fields.length > 0 && m !== Identities.method.certifyServer).map((m) => `/${s.typeName}/${m.name}`));
    const session = withIdentity(ana);
    try {
      for (const path of methods) {
        const broken = [Buffer.from([0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]), Buffer.from([0x0a, 0x02, 0xc3, 0x28]), Buffer.alloc(64, 0xff)];
        for (const bytes of broken) expect(await rawCall(session, path, frame(bytes)), `${path} ${bytes.toString('hex')}`).toBe('3');
      }
    } finally {
      session.destroy();
    }
    expect(await ana.to(Identities).whoAmI({})).toMatchObject({ tenant: 'acme' });
  });

  it('are bounded: a frame that says it is huge, one that never comes, and one that is compressed', async () => {
    const path = '/bulkhead.v1.Policies/Apply';
    const huge = Buffer.alloc(5);
    huge.writeUInt32BE(2 ** 31, 1);
    const compressed = frame(Buffer.from('x'));
    compressed[0] = 1;
    for (const bytes of [huge, Buffer.from([0, 0, 0]), compressed]) {
      const session = withIdentity(ana);
      expect(await rawCall(session, path, bytes)).not.toBe('0');
      session.destroy();
    }
    expect(await ana.to(Identities).whoAmI({})).toMatchObject({ tenant: 'acme' });
  });

  it('leave nothing in the log but warnings', () => {
    for (const line of head.stderr().split('\n').filter((l) => l !== '')) expect((JSON.parse(line) as { level: number }).level, line).toBeLessThanOrEqual(40);
  });
});

function frame(message: Uint8Array): Buffer {
  const bytes = Buffer.alloc(5 + message.length);
  bytes.writeUInt32BE(message.length, 1);
  bytes.set(message, 5);
  return bytes;
}

/** grpc-status of one call, or why there is none. */
function rawCall(session: ClientHttp2Session, path: string, body: Uint8Array): Promise<string> {
  return new Promise((resolve) => {
    if (session.destroyed) return resolve('no session');
    const stream = session.request({ ':method': 'POST', ':path': path, 'content-type': 'application/grpc', te: 'trailers' });
    stream.on('response', (headers) => {
      if (headers['grpc-status'] !== undefined) resolve(String(headers['grpc-status']));
      else if (headers[':status'] !== 200) resolve(`http ${headers[':status']}`);
    });
    stream.on('trailers', (trailers) => resolve(String(trailers['grpc-status'])));
    stream.on('error', (error) => resolve(error.message));
    stream.on('close', () => resolve('closed'));
    stream.resume();
    stream.end(body);
  });
}
