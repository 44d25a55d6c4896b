/** The head as its clients see it: a real process, every RPC, over mTLS, by profiles and a node that joined. */
import { createPublicKey, verify } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import type { MessageStream } from '../../src/rpc/rpc.ts';
import { verifySession, TrustBundle } from '../../src/pki/pki.ts';
import { parseTrustDomain } from '../../src/base/ids.ts';
import { parseSnapshot } from '../../src/authz/authz.ts';
import { Audit } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import { Cluster, Identities, Jobs, NodeSync, Policies, Sessions, Tenants, type HeadUpdate, type NodeReport } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { adminOf, freshKey, issued, joined, startHeadProcess, temporaryDirectory, type Caller, type HeadProcess } from './start-head.ts';

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const POLICY = (cpus: number): Uint8Array => Buffer.from(`version: 1
tenant: acme
roles:
  analyst:
    permit:
      - { action: task.submit, resource: task, when: { cpus: { lte: ${cpus} } } }
tests:
  - { as: user/ana, roles: analyst, do: task.submit, on: { cpus: 1 }, expect: permit }
`);

/** A node's end of the stream: the parts as last told. */
class TestNode {
  readonly state: Partial<HeadUpdate> = {};
  readonly #stream: MessageStream<HeadUpdate, object>;
  #waiting: (() => void)[] = [];
  ended: unknown;

  constructor(stream: unknown) {
    this.#stream = stream as MessageStream<HeadUpdate, object>;
    void this.#read();
  }

  async #read(): Promise<void> {
    try {
      for await (const update of this.#stream) {
        for (const part of ['policy', 'revocations', 'nodes', 'tenants', 'trustBundle'] as const) if (update[part] !== undefined) Object.assign(this.state, { [part]: update[part] });
        if (update.stoppedJobs.length > 0) this.state.stoppedJobs = update.stoppedJobs;
        for (const wake of this.#waiting.splice(0)) wake();
      }
      this.ended = true;
    } catch (error) {
      this.ended = error;
    }
    for (const wake of this.#waiting.splice(0)) wake();
  }

  report(more: Partial<NodeReport> = {}): void {
    this.#stream.write({ address: '127.0.0.1:4000', instance: 'first', total: { cpuUnits: 20_000n, memoryBytes: 1_000n, custom: {} }, available: { cpuUnits: 20_000n, memoryBytes: 1_000n, custom: {} }, ...more });
  }

  end(): void {
    this.#stream.end();
  }

  /** Resolves when the condition holds or the stream ended. */
  async until(condition: (state: Partial<HeadUpdate>) => boolean): Promise<void> {
    while (!condition(this.state) && this.ended === undefined) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    expect(condition(this.state), `stream ended: ${String(this.ended)}`).toBe(true);
  }
}

let dir: Awaited<ReturnType<typeof temporaryDirectory>>;
let head: HeadProcess;
let admin: Caller;
let ana: Caller;
let tom: Caller;
let eve: Caller;

beforeAll(async () => {
  dir = await temporaryDirectory();
  head = await startHeadProcess(join(dir.path, 'data'), { trustDomain: 'test.example' });
  admin = await adminOf(join(dir.path, 'data'));
  for (const name of ['acme', 'globex']) await admin.to(Tenants).create({ name, quota: { cpus: '2' } });
  ana = await issued(admin, head.address, { tenant: 'acme', name: 'ana', roles: ['developer', 'auditor'] });
  tom = await issued(admin, head.address, { tenant: 'acme', name: 'tom', roles: ['tenant-admin'] });
  eve = await issued(admin, head.address, { tenant: 'globex', name: 'eve', roles: ['tenant-admin'] });
});

afterAll(async () => {
  for (const caller of [admin, ana, tom, eve]) caller?.[Symbol.dispose]();
  const code = await head?.kill('SIGTERM');
  await dir?.[Symbol.asyncDispose]();
  expect(code).toBe(0);
});

const denied = expect.objectContaining({ code: 'DENIED' });

describe('first start', () => {
  it('makes a data directory and an administrator that only we can read', async () => {
    const data = join(dir.path, 'data');
    expect((await stat(data)).mode & 0o777).toBe(0o700);
    expect((await stat(join(data, 'admin', 'key.pem'))).mode & 0o777).toBe(0o600);
    expect(JSON.parse(await readFile(join(data, 'admin', 'profile.json'), 'utf8'))).toMatchObject({ address: head.address, spiffeId: 'spiffe://test.example/system/admin', trustDomain: 'test.example' });
    expect(head.stderr()).toBe('');
  });

  it('says who one is', async () => {
    expect(await admin.to(Identities).whoAmI({})).toMatchObject({ spiffeId: 'spiffe://test.example/system/admin', kind: 'system', tenant: '', serial: admin.svid.serial });
    expect(await ana.to(Identities).whoAmI({})).toMatchObject({ spiffeId: 'spiffe://test.example/tenant/acme/user/ana', kind: 'user', tenant: 'acme', roles: ['platform/auditor', 'platform/developer', 'platform/everyone'], svidNotAfterMs: BigInt(ana.svid.notAfterMs) });
  });

  it('shows the cluster to its administrator', async () => {
    expect(await admin.to(Cluster).status({})).toMatchObject({ trustDomain: 'test.example', tenants: 2, insecureDev: false, version: expect.stringMatching(/^\d+\.\d+\.\d+/) });
    await expect(ana.to(Cluster).status({})).rejects.toEqual(denied);
  });
});

describe('tenants', () => {
  it('lists, shows, and refuses bad ones', async () => {
    expect((await admin.to(Tenants).list({})).tenants.map((t) => [t.name, t.number, t.state])).toEqual([['acme', 1, 'active'], ['globex', 2, 'active']]);
    expect(await tom.to(Tenants).show({ tenant: 'acme' })).toMatchObject({ name: 'acme', quota: { cpus: '2' } });
    await expect(admin.to(Tenants).create({ name: 'Acme!' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(admin.to(Tenants).create({ name: 'acme' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(tom.to(Tenants).create({ name: 'mine' })).rejects.toEqual(denied);
  });

  it('ends everything of a deleted tenant, and certifies it', async () => {
    await admin.to(Tenants).create({ name: 'initech' });
    using pam = await issued(admin, head.address, { tenant: 'initech', name: 'pam', roles: ['tenant-admin', 'developer'] });
    const session = await pam.to(Sessions).open({ jobName: 'last' });
    await pam.to(Policies).apply({ tenant: 'initech', fileName: 'p.yaml', content: Buffer.from('version: 1\ntenant: initech\nroles: {}\n') });
    const certificate = await admin.to(Tenants).delete({ tenant: 'initech' });
    const statement = JSON.parse(certificate.statement) as Record<string, unknown>;
    expect(statement).toMatchObject({ tenant: 'initech', trustDomain: 'test.example', deletedMs: Number(certificate.deletedMs), verifierKey: certificate.verifierKey });
    const raw = Buffer.from(certificate.verifierKey.split('+').slice(2).join('+'), 'base64').subarray(1);
    const key = createPublicKey({ key: Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'), raw]), format: 'der', type: 'spki' });
    expect(verify(null, Buffer.from(certificate.statement), key, certificate.signature)).toBe(true);
    await expect(pam.to(Identities).whoAmI({})).rejects.toMatchObject({ code: expect.stringMatching(/DENIED|UNAUTHENTICATED|UNAVAILABLE/) });
    await expect(pam.to(Sessions).refresh({ jobId: session.jobId })).rejects.toMatchObject({ code: expect.stringMatching(/DENIED|UNAUTHENTICATED|UNAVAILABLE/) });
    expect((await admin.to(Tenants).show({ tenant: 'initech' })).state).toBe('deleted');
    expect((await admin.to(Policies).history({ tenant: 'initech' })).versions).toEqual([]);
    await expect(issued(admin, head.address, { tenant: 'initech', name: 'pam' })).rejects.toEqual(denied);
    expect(await admin.to(Tenants).delete({ tenant: 'initech' })).toEqual(certificate);
    await expect(admin.to(Tenants).create({ name: 'initech' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});

describe('identities', () => {
  it('issues with the roles asked for, at once in force', async () => {
    using vic = await issued(tom, head.address, { tenant: 'acme', kind: 'service', name: 'vic' });
    await expect(vic.to(Jobs).list({ tenant: 'acme' })).rejects.toEqual(denied);
    using viewer = await issued(tom, head.address, { tenant: 'acme', kind: 'service', name: 'vic', roles: ['viewer'] });
    expect(viewer.svid.spiffeId).toBe(vic.svid.spiffeId);
    expect(await vic.to(Jobs).list({ tenant: 'acme' })).toMatchObject({ jobs: [] });
  });

  it('refuses roles that do not exist or cannot be given, kinds, names and requests that are none', async () => {
    const issue = (more: object) => tom.to(Identities).issue({ tenant: 'acme', kind: 'user', name: 'x', roles: [], csr: freshKey().csr, ...more });
    for (const bad of [{ roles: ['nonesuch'] }, { roles: ['platform-admin'] }, { roles: ['node'] }, { kind: 'system' }, { kind: 'node' }, { name: '../x' }, { name: '' }, { csr: new Uint8Array(3) }]) await expect(issue(bad), JSON.stringify(bad)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(issue({ tenant: 'globex' })).rejects.toEqual(denied);
    await expect(ana.to(Identities).issue({ tenant: 'acme', kind: 'user', name: 'x', roles: [], csr: freshKey().csr })).rejects.toEqual(denied);
  });

  it('renews for the caller itself, with its own new key', async () => {
    const { csr } = freshKey();
    const answer = await ana.to(Identities).renew({ csr });
    expect(answer).toMatchObject({ spiffeId: ana.svid.spiffeId, trustBundle: ana.svid.trustBundlePem });
    expect(answer.svidChain).not.toBe(ana.svid.certificateChainPem);
  });

  it('revokes within a second, open connections too, and a new identity works at once', async () => {
    using kim = await issued(tom, head.address, { tenant: 'acme', name: 'kim', roles: ['developer'] });
    const { jobId } = await kim.to(Sessions).open({ jobName: 'with kim' });
    await tom.to(Identities).revoke({ spiffeId: kim.svid.spiffeId, reason: 'left' });
    await expect(kim.to(Identities).whoAmI({})).rejects.toMatchObject({ code: expect.stringMatching(/DENIED|UNAUTHENTICATED|UNAVAILABLE/) });
    await expect(kim.to(Identities).renew({ csr: freshKey().csr })).rejects.toMatchObject({ code: expect.stringMatching(/DENIED|UNAUTHENTICATED|UNAVAILABLE/) });
    expect(await tom.to(Jobs).get({ jobId })).toMatchObject({ status: 'STOPPED', message: 'its identity was revoked' });
    using again = await issued(tom, head.address, { tenant: 'acme', name: 'kim' });
    expect(await again.to(Identities).whoAmI({})).toMatchObject({ spiffeId: kim.svid.spiffeId });
  });

  it('revokes one certificate by its serial number, for the administrator only', async () => {
    using one = await issued(tom, head.address, { tenant: 'acme', name: 'two-devices' });
    using two = await issued(tom, head.address, { tenant: 'acme', name: 'two-devices' });
    await expect(tom.to(Identities).revoke({ serial: one.svid.serial })).rejects.toEqual(denied);
    await admin.to(Identities).revoke({ serial: one.svid.serial });
    await expect(one.to(Identities).whoAmI({})).rejects.toMatchObject({ code: expect.stringMatching(/DENIED|UNAUTHENTICATED|UNAVAILABLE/) });
    expect(await two.to(Identities).whoAmI({})).toMatchObject({ tenant: 'acme' });
  });

  it('lets nobody revoke across the wall', async () => {
    await expect(eve.to(Identities).revoke({ spiffeId: ana.svid.spiffeId })).rejects.toEqual(denied);
    await expect(tom.to(Identities).revoke({ spiffeId: 'spiffe://test.example/system/admin' })).rejects.toEqual(denied);
    expect(await ana.to(Identities).whoAmI({})).toMatchObject({ tenant: 'acme' });
  });

  it('shows and rotates the authority without ending what was issued', async () => {
    const before = await admin.to(Identities).showPki({});
    expect(before).toMatchObject({ trustDomain: 'test.example', keyManager: 'encrypted-file', authorities: [{ kind: 'root', active: true }, { kind: 'intermediate', active: true }] });
    const after = await admin.to(Identities).rotateAuthority({});
    expect(after.authorities[1]?.serial).not.toBe(before.authorities[1]?.serial);
    expect(after.authorities[0]?.serial).toBe(before.authorities[0]?.serial);
    expect(await ana.to(Identities).whoAmI({})).toMatchObject({ tenant: 'acme' });
    using late = await issued(tom, head.address, { tenant: 'acme', name: 'late' });
    expect(await late.to(Identities).whoAmI({})).toMatchObject({ tenant: 'acme' });
    expect((await admin.to(Identities).showPki({})).issued).toBeGreaterThan(before.issued);
  });
});

describe('policies', () => {
  it('checks, applies, shows, and rolls back', async () => {
    const first = await tom.to(Policies).apply({ tenant: 'acme', fileName: 'acme.yaml', content: POLICY(4) });
    const second = await tom.to(Policies).apply({ tenant: 'acme', fileName: 'acme.yaml', content: POLICY(8) });
    expect(second.version).toBeGreaterThan(first.version);
    expect((await ana.to(Policies).history({ tenant: 'acme' })).versions.map((v) => [v.version, v.appliedBy])).toEqual([[second.version, tom.svid.spiffeId], [first.version, tom.svid.spiffeId]]);
    const back = await tom.to(Policies).rollback({ tenant: 'acme', version: first.version });
    expect([back.version > second.version, back.digest]).toEqual([true, first.digest]);
    expect(Buffer.from((await ana.to(Policies).get({ tenant: 'acme' })).content)).toEqual(POLICY(4));
    expect(Buffer.from((await ana.to(Policies).get({ tenant: 'acme', version: second.version })).content)).toEqual(POLICY(8));
  });

  it('changes nothing by a file that does not check, and says where it is wrong', async () => {
    const before = (await ana.to(Policies).history({ tenant: 'acme' })).versions.length;
    const apply = (content: string, tenant = 'acme') => tom.to(Policies).apply({ tenant, fileName: 'acme.yaml', content: Buffer.from(content) });
    await expect(apply('version: 1\ntenant: acme\nroles:\n  a:\n    permit:\n      - { action: task.fly, resource: task }\n')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringMatching(/acme\/acme\.yaml:6:\d+.*task\.fly/s) });
    await expect(apply('version: 1\ntenant: globex\nroles: {}\n')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(apply('version: 1\nplatform: true\nroles: {}\n')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(apply(POLICY(0.5).toString())).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('test failed') });
    await expect(tom.to(Policies).apply({ tenant: 'acme', fileName: 'acme.yaml', content: Uint8Array.of(0xff, 0xfe) })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    for (const tenant of ['globex', '']) await expect(apply('version: 1\nplatform: true\nroles: {}\n', tenant)).rejects.toEqual(denied);
    expect((await ana.to(Policies).history({ tenant: 'acme' })).versions).toHaveLength(before);
  });

  it('lets the administrator change the platform, whose defaults are version one of it', async () => {
    const { version, content } = await admin.to(Policies).get({ tenant: '' });
    expect([version?.appliedBy, version?.digest.startsWith('sha256:')]).toEqual(['', true]);
    const changed = Buffer.concat([Buffer.from(content), Buffer.from('# reviewed\n')]);
    const applied = await admin.to(Policies).apply({ tenant: '', fileName: 'defaults.yaml', content: changed });
    expect(applied.version).toBeGreaterThan(version?.version ?? 0);
    expect(await ana.to(Identities).whoAmI({})).toMatchObject({ roles: ['platform/auditor', 'platform/developer', 'platform/everyone'] });
  });
});

describe('sessions and jobs', () => {
  it('opens, joins, refreshes and closes', async () => {
    const session = await ana.to(Sessions).open({ jobName: 'delays' });
    const bundle = TrustBundle.fromJwks(parseTrustDomain('test.example'), (await ana.to(Identities).getTrustBundle({})).jwks);
    const verified = await verifySession(session.credential, { audience: 'raylet', nowMs: Date.now(), bundle });
    expect(verified).toMatchObject({ principal: { spiffeId: ana.svid.spiffeId, tenant: 'acme' }, tenantNumber: 1 });
    expect(verified.jti).toMatch(new RegExp(`^${session.jobId}_[0-9a-f]{16}_default$`));
    const joinedSession = await ana.to(Sessions).open({ jobId: session.jobId });
    expect(joinedSession.jobId).toBe(session.jobId);
    expect((await ana.to(Sessions).refresh({ jobId: session.jobId })).credential).not.toBe(session.credential);
    expect(await ana.to(Jobs).get({ jobId: session.jobId })).toMatchObject({ status: 'RUNNING', name: 'delays', submitter: ana.svid.spiffeId });
    for (let i = 0; i < 2; i++) await ana.to(Sessions).close({ jobId: session.jobId, outcome: 'succeeded' });
    expect(await ana.to(Jobs).get({ jobId: session.jobId })).toMatchObject({ status: 'SUCCEEDED' });
    await expect(ana.to(Sessions).refresh({ jobId: session.jobId })).rejects.toEqual(denied);
  });

  it('shows and stops jobs inside the tenant only', async () => {
    const { jobId } = await ana.to(Sessions).open({ jobName: 'endless' });
    await expect(eve.to(Jobs).get({ jobId })).rejects.toEqual(denied);
    await expect(eve.to(Jobs).stop({ jobId })).rejects.toEqual(denied);
    await expect(eve.to(Jobs).list({ tenant: 'acme' })).rejects.toEqual(denied);
    await expect(eve.to(Sessions).open({ jobId })).rejects.toEqual(denied);
    await expect(eve.to(Sessions).close({ jobId, outcome: 'failed' })).rejects.toEqual(denied);
    // Inside the tenant a job has one owner; its colleagues may stop it, not speak for it.
    for (const call of [() => tom.to(Sessions).open({ jobId }), () => tom.to(Sessions).refresh({ jobId }), () => tom.to(Sessions).close({ jobId, outcome: 'failed' })]) await expect(call()).rejects.toEqual(denied);
    expect((await eve.to(Jobs).list({ tenant: 'globex' })).jobs).toEqual([]);
    expect(await tom.to(Jobs).stop({ jobId })).toMatchObject({ status: 'STOPPED' });
    expect((await ana.to(Jobs).list({ tenant: 'acme' })).jobs[0]).toMatchObject({ jobId, status: 'STOPPED' });
    await expect(admin.to(Sessions).open({ jobName: 'x' })).rejects.toEqual(denied);
  });
});

describe('nodes', () => {
  it('join by a token, learn everything at once, and every change within a moment', async () => {
    using caller = await joined(admin, head, 'n1');
    expect([caller.svid.spiffeId, caller.nodeNumber]).toEqual(['spiffe://test.example/node/n1', 1]);
    const node = new TestNode(caller.to(NodeSync).sync());
    node.report();
    await node.until((s) => s.policy !== undefined);
    const { state } = node;
    expect(parseSnapshot(Buffer.from(state.policy?.snapshot ?? []).toString()).version).toBe(state.policy?.version);
    expect([state.nodes?.nodes.map((n) => [n.nodeId, n.state]), state.tenants?.tenants.map((t) => [t.name, t.state])]).toEqual([[['n1', 'alive']], [['acme', 'active'], ['globex', 'active'], ['initech', 'deleted']]]);
    expect(TrustBundle.fromJwks(parseTrustDomain('test.example'), state.trustBundle?.jwks).jwtKeys.size).toBeGreaterThan(0);
    expect(state.revocations?.version).toBeGreaterThan(0n);

    const version = state.policy?.version ?? 0;
    const applying = tom.to(Policies).apply({ tenant: 'acme', fileName: 'acme.yaml', content: POLICY(16) });
    await node.until((s) => (s.policy?.version ?? 0) > version);
    node.report({ policyVersion: state.policy?.version ?? 0 });
    expect((await applying).inForceOn).toEqual(['n1']);

    using kim = await issued(tom, head.address, { tenant: 'acme', name: 'kim2' });
    await tom.to(Identities).revoke({ spiffeId: kim.svid.spiffeId });
    await node.until((s) => s.revocations?.revocations.some((r) => r.spiffeId === kim.svid.spiffeId) ?? false);

    const { jobId, raylets } = await ana.to(Sessions).open({ jobName: 'here' });
    expect(raylets).toMatchObject([{ nodeId: 'n1', nodeNumber: 1, address: '127.0.0.1:4000', spiffeId: 'spiffe://test.example/node/n1' }]);
    await tom.to(Jobs).stop({ jobId });
    await node.until((s) => s.stoppedJobs?.includes(jobId) ?? false);

    const keys = state.trustBundle?.jwks;
    await admin.to(Identities).rotateAuthority({});
    await node.until((s) => s.trustBundle?.jwks !== keys);

    node.end();
    await node.until(() => node.ended !== undefined);
    await expect.poll(async () => (await admin.to(Cluster).listNodes({})).nodes.map((n) => [n.nodeId, n.state])).toEqual([['n1', 'dead']]);
    expect((await ana.to(Sessions).open({ jobName: 'nowhere' })).raylets).toEqual([]);
  });

  it('are dead to the others at once when they are revoked, and cannot come back by what they hold', async () => {
    using caller = await joined(admin, head, 'n5');
    const node = new TestNode(caller.to(NodeSync).sync());
    node.report();
    await node.until((s) => s.policy !== undefined);
    const state = async () => (await admin.to(Cluster).listNodes({})).nodes.find((n) => n.nodeId === 'n5')?.state;
    expect(await state()).toBe('alive');
    await admin.to(Identities).revoke({ spiffeId: caller.svid.spiffeId, reason: 'stolen' });
    expect(await state()).toBe('dead');
    await node.until(() => node.ended !== undefined);
    await expect(caller.to(Identities).renew({ csr: freshKey().csr })).rejects.toMatchObject({ code: expect.stringMatching(/DENIED|UNAUTHENTICATED|UNAVAILABLE/) });
    await expect(admin.to(Identities).revoke({ spiffeId: 'spiffe://test.example/system/head' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    using again = await joined(admin, head, 'n5');
    expect([again.nodeNumber, (await again.to(Identities).whoAmI({})).spiffeId]).toEqual([caller.nodeNumber, caller.svid.spiffeId]);
  });

  it('have one stream each: a newer one ends the older', async () => {
    using caller = await joined(admin, head, 'n1');
    const [one, two] = [new TestNode(caller.to(NodeSync).sync()), new TestNode(caller.to(NodeSync).sync())];
    one.report();
    await one.until((s) => s.policy !== undefined);
    two.report();
    await two.until((s) => s.policy !== undefined);
    await one.until(() => one.ended !== undefined);
    expect(one.ended).toMatchObject({ code: 'UNAVAILABLE' });
    expect((await admin.to(Cluster).listNodes({})).nodes.find((n) => n.nodeId === 'n1')?.state).toBe('alive');
    two.end();
    await two.until(() => two.ended !== undefined);
  });

  it('keep the names of actors: unique, of the tenant, free again with a new process', async () => {
    using caller = await joined(admin, head, 'n2');
    const { nodeNumber } = caller;
    const names = caller.to(NodeSync);
    const node = new TestNode(names.sync());
    node.report({ instance: 'a' });
    await node.until((s) => s.policy !== undefined);
    const id = (n: number, tenant = 1): Buffer => Buffer.concat([Buffer.from([tenant, 0, 0, 0, nodeNumber, 0, 0, 0]), Buffer.alloc(16, n)]);
    const { credential } = await ana.to(Sessions).open({ jobName: 'names' });
    const others = (await eve.to(Sessions).open({ jobName: 'names' })).credential;
    const key = { tenant: 'acme', namespace: 'prod', name: 'delays', credential };
    expect(await names.registerActorName({ ...key, actorId: id(1), classInfo: '{}' })).toMatchObject({ found: true });
    await expect(names.registerActorName({ ...key, actorId: id(2), classInfo: '{}' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('exists already') });
    await expect(names.registerActorName({ ...key, name: 'other', actorId: id(1, 2), classInfo: '{}' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(names.registerActorName({ ...key, tenant: 'initech', actorId: id(1, 3), classInfo: '{}' })).rejects.toEqual(denied);
    const found = await names.lookupActorName(key);
    expect([found.found, Buffer.from(found.actorId)]).toEqual([true, id(1)]);
    expect((await names.lookupActorName({ ...key, tenant: 'globex', credential: others })).found).toBe(false);
    await names.releaseActorName({ ...key, actorId: id(2) });
    expect((await names.lookupActorName(key)).found).toBe(true);
    const restarted = new TestNode(names.sync());
    restarted.report({ instance: 'b' });
    await restarted.until((s) => s.policy !== undefined);
    expect((await names.lookupActorName(key)).found).toBe(false);
    restarted.end();
    await restarted.until(() => restarted.ended !== undefined);
  });
});

describe('audit', () => {
  const tail = async (caller: Caller, tenant: string) => {
    const lines: Record<string, unknown>[] = [];
    for await (const { record, nodeId } of caller.to(Audit).tail({ tenant, last: 10_000 })) lines.push({ nodeId, ...(JSON.parse(record) as object) });
    return lines;
  };

  it('has the decision and the fact of everything above, in the log of whom it concerns', async () => {
    const acme = await tail(ana, 'acme');
    for (const event of ['svid.issued', 'identity.revoked', 'policy.applied', 'policy.rolled-back', 'job.started', 'job.succeeded', 'job.stopped']) expect(acme.filter((r) => r['event'] === event), event).not.toEqual([]);
    expect(acme).toContainEqual(expect.objectContaining({ nodeId: 'head', type: 'decision', action: 'job.stop', principal: eve.svid.spiffeId, allow: false, rule: 'wall' }));
    expect(acme).toContainEqual(expect.objectContaining({ type: 'decision', action: 'identity.revoke', principal: eve.svid.spiffeId, allow: false, rule: 'wall', resource: ana.svid.spiffeId }));
    expect(acme).toContainEqual(expect.objectContaining({ type: 'decision', action: 'session.open', principal: eve.svid.spiffeId, allow: false, rule: 'wall' }));
    expect(acme.filter((r) => r['principal'] === tom.svid.spiffeId && r['rule'] === 'owner')).toHaveLength(3);
    const globex = await tail(eve, 'globex').catch(() => []);
    expect(JSON.stringify(globex)).not.toContain('kim');
    const cluster = await tail(admin, '');
    for (const event of ['authority.root-issued', 'tenant.created', 'tenant.deleted', 'node.reserved', 'node.joined', 'node.left', 'join-token.created', 'join-token.used', 'svid.issued']) expect(cluster.filter((r) => r['event'] === event), event).not.toEqual([]);
    await expect(tail(eve, 'acme')).rejects.toEqual(denied);
    await expect(tail(ana, '')).rejects.toEqual(denied);
  });

  it('follows', async () => {
    const abort = new AbortController();
    const seen: string[] = [];
    const following = (async () => {
      for await (const { record } of ana.to(Audit).tail({ tenant: 'acme', last: 1, follow: true }, { signal: abort.signal })) {
        seen.push(record);
        if (record.includes('followed')) abort.abort();
      }
    })().catch((error: unknown) => error);
    await expect.poll(() => seen.length).toBeGreaterThan(0);
    await ana.to(Sessions).open({ jobName: 'followed' });
    await following;
    expect(seen.at(-1)).toContain('followed');
  });

  it('counts, and gives out signed material', async () => {
    const stats = await ana.to(Audit).stats({ tenant: 'acme' });
    expect(Number(stats.records)).toBeGreaterThan(20);
    expect(Number(stats.denied)).toBeGreaterThan(3);
    expect(stats.rootHash).toMatch(/^[0-9a-f]{64}$/);
    const parts = [];
    for await (const part of ana.to(Audit).export({ tenant: 'acme' })) parts.push(part);
    expect(JSON.parse(parts[0]?.header ?? '')).toMatchObject({ origin: 'test.example/head/tenant/acme', checkpoint: expect.stringContaining('test.example/head/tenant/acme\n'), vkeys: [expect.any(String), expect.any(String)] });
    expect(parts.slice(1).reduce((n, p) => n + p.entries.length, 0)).toBeGreaterThan(500);
  });
});
