/** The head is killed and started again under its clients: nothing that it acknowledged is lost, and it is the same head. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { chmod, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import type { MessageStream } from '../../src/rpc/rpc.ts';
import { Audit } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import { Cluster, Identities, Jobs, NodeSync, Policies, Sessions, Tenants, type HeadUpdate } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { parseHeadConfig } from '../../src/gcs/head-config.ts';
import { adminOf, Caller, freshKey, issued, joined, startHeadProcess, temporaryDirectory, type HeadProcess } from './start-head.ts';

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

let dir: Awaited<ReturnType<typeof temporaryDirectory>>;
let data: string;
const heads: HeadProcess[] = [];

const start = async (more: object = {}): Promise<HeadProcess> => {
  const head = await startHeadProcess(data, more);
  heads.push(head);
  return head;
};

beforeEach(async () => {
  dir = await temporaryDirectory();
  data = join(dir.path, 'data');
});

afterEach(async () => {
  for (const head of heads.splice(0)) await head.kill('SIGKILL');
  await dir[Symbol.asyncDispose]();
});

const policy = (n: number): Uint8Array => Buffer.from(`version: 1\ntenant: acme\nroles:\n  analyst:\n    permit:\n      - { action: task.submit, resource: task, when: { cpus: { lte: ${n} } } }\n`);

/** The next update of a node's stream that has what is asked for. */
async function next(stream: AsyncIterator<HeadUpdate>, wanted: (update: HeadUpdate) => boolean): Promise<HeadUpdate> {
  for (;;) {
    const { value, done } = await stream.next();
    if (done === true) throw new Error('the stream ended');
    if (wanted(value)) return value;
  }
}

it('is the same after kill -9, and clients and nodes go on', async () => {
  const first = await start();
  using admin = await adminOf(data);
  await admin.to(Tenants).create({ name: 'gone' });
  await admin.to(Tenants).delete({ tenant: 'gone' });
  await admin.to(Tenants).create({ name: 'acme', quota: { memory: '1GiB' } });
  using ana = await issued(admin, first.address, { tenant: 'acme', name: 'ana', roles: ['developer', 'auditor'] });
  using bad = await issued(admin, first.address, { tenant: 'acme', name: 'bad', roles: ['developer'] });
  using node = await joined(admin, first, 'n1');
  const { token } = await admin.to(Identities).createJoinToken({ nodeId: 'n2' });
  const applied = await admin.to(Policies).apply({ tenant: 'acme', fileName: 'acme.yaml', content: policy(4) });
  const session = await ana.to(Sessions).open({ jobName: 'across' });
  const stopped = await ana.to(Sessions).open({ jobName: 'stopped' });
  await ana.to(Jobs).stop({ jobId: stopped.jobId });
  await admin.to(Identities).revoke({ spiffeId: bad.svid.spiffeId, reason: 'bad' });
  const before = await admin.to(Identities).showPki({});

  await first.kill('SIGKILL');
  const second = await start();
  expect([second.trustDomain, second.address, second.attestationAddress]).toEqual([first.trustDomain, first.address, first.attestationAddress]);

  // Old identities, over old channels that connect again.
  await expect.poll(() => ana.to(Identities).whoAmI({}).catch(() => undefined), { timeout: 10_000 }).toMatchObject({ roles: ['platform/auditor', 'platform/developer', 'platform/everyone'] });
  expect(await ana.to(Jobs).get({ jobId: session.jobId })).toMatchObject({ status: 'RUNNING', name: 'across' });
  expect((await ana.to(Sessions).refresh({ jobId: session.jobId })).jobId).toBe(session.jobId);
  expect(await ana.to(Jobs).get({ jobId: stopped.jobId })).toMatchObject({ status: 'STOPPED' });
  using stillBad = new Caller(bad.svid, second.address);
  await expect(stillBad.to(Identities).whoAmI({})).rejects.toMatchObject({ code: expect.stringMatching(/DENIED|UNAUTHENTICATED|UNAVAILABLE/) });

  using again = await adminOf(data);
  expect(again.svid.serial).not.toBe(admin.svid.serial);
  expect((await again.to(Tenants).list({})).tenants.map((t) => [t.name, t.number, t.state])).toEqual([['gone', 1, 'deleted'], ['acme', 2, 'active']]);
  expect((await again.to(Policies).history({ tenant: 'acme' })).versions).toMatchObject([{ version: applied.version, digest: applied.digest }]);
  expect(Buffer.from((await again.to(Policies).get({ tenant: 'acme' })).content)).toEqual(policy(4));
  const pki = await again.to(Identities).showPki({});
  expect([pki.authorities, pki.revoked]).toEqual([before.authorities, before.revoked]);
  expect(pki.issued).toBeGreaterThan(before.issued);
  await again.to(Tenants).create({ name: 'next' });
  expect((await again.to(Tenants).show({ tenant: 'next' })).number).toBe(3);

  const stream = node.to(NodeSync).sync() as MessageStream<HeadUpdate, object>;
  stream.write({ address: '127.0.0.1:4000', instance: 'x' });
  const told = stream[Symbol.asyncIterator]();
  const all = await next(told, (u) => u.policy !== undefined);
  expect(all.policy?.version).toBeGreaterThanOrEqual(applied.version);
  expect([all.stoppedJobs, all.revocations?.revocations.map((r) => r.spiffeId)]).toEqual([[stopped.jobId], [bad.svid.spiffeId]]);
  expect(await again.to(Cluster).listNodes({})).toMatchObject({ nodes: [{ nodeId: 'n1', nodeNumber: 1, state: 'alive' }] });
  stream.end();

  // The audit log of the killed head opens, and holds what it acknowledged.
  const lines: string[] = [];
  for await (const { record } of ana.to(Audit).tail({ tenant: 'acme', last: 1_000 })) lines.push(record);
  for (const event of ['svid.issued', 'policy.applied', 'job.started', 'job.stopped', 'identity.revoked']) expect(lines.filter((l) => l.includes(`"${event}"`)), event).not.toEqual([]);
  expect(token.length).toBeGreaterThanOrEqual(43);
});

it('loses no acknowledged write when it is killed at any moment', async () => {
  const acknowledged: string[] = [];
  for (let round = 0; round < 2; round++) {
    const head = await start();
    using admin = await adminOf(data);
    let killed: Promise<unknown> | undefined;
    for (let i = 0; killed === undefined || i < 100; i++) {
      const name = `t${round}-${i}`;
      if (i === 5 + 3 * round) setTimeout(() => (killed = head.kill('SIGKILL')), round);
      try {
        await admin.to(Tenants).create({ name });
        acknowledged.push(name);
      } catch {
        break;
      }
    }
    await killed;
  }
  await start();
  using admin = await adminOf(data);
  const { tenants } = await admin.to(Tenants).list({});
  expect(acknowledged.length).toBeGreaterThan(10);
  expect(tenants.map((t) => t.name)).toEqual(expect.arrayContaining(acknowledged));
  expect(new Set(tenants.map((t) => t.number)).size).toBe(tenants.length);
  // Each of them can be given an identity: the key of its tenant is there too.
  using someone = await issued(admin, heads.at(-1)?.address ?? '', { tenant: acknowledged.at(-1) ?? '', name: 'x' });
  expect(await someone.to(Identities).whoAmI({})).toMatchObject({ tenant: acknowledged.at(-1) });
});

it('stops cleanly on SIGTERM, with streams open, and leaves no lock', async () => {
  const head = await start();
  using admin = await adminOf(data);
  using node = await joined(admin, head, 'n1');
  const stream = node.to(NodeSync).sync() as MessageStream<HeadUpdate, object>;
  stream.write({ address: '127.0.0.1:4000' });
  await next(stream[Symbol.asyncIterator](), (u) => u.policy !== undefined);
  expect(await head.kill('SIGTERM')).toBe(0);
  expect(head.stderr()).toBe('');
  expect((await readdir(data)).filter((name) => /lock|wal|shm|tmp/.test(name))).toEqual([]);
  expect(existsSync(join(data, 'audit', 'lock'))).toBe(false);
  expect((await start()).address).toBe(head.address);
});

it('takes the ports it is told, and another one when its last is taken', async () => {
  const first = await start();
  await first.kill('SIGTERM');
  const { createServer } = await import('node:net');
  const squatter = createServer().listen(Number(first.address.split(':')[1]), '127.0.0.1');
  await once(squatter, 'listening');
  try {
    const second = await start();
    expect(second.address).not.toBe(first.address);
    using admin = await adminOf(data);
    expect(await admin.to(Identities).whoAmI({})).toMatchObject({ kind: 'system' });
    await second.kill('SIGTERM');
    await expect(start({ listen: first.address })).rejects.toThrow(/exit 1.*cannot listen/s);
  } finally {
    squatter.close();
  }
});

it.each([
  ['no JSON', 'hello', 'one JSON document'],
  ['an unknown field', '{"dataDir":"/x","secret":"s"}', 'Unrecognized key'],
  ['no data directory', '{}', 'dataDir'],
  ['a relative data directory', '{"dataDir":"x"}', 'absolute'],
  ['an address without a port', '{"dataDir":"/x","listen":"localhost"}', 'host:port'],
  ['a trust domain that is none', '{"dataDir":"/x","trustDomain":"A b"}', 'trust domain'],
])('refuses a configuration with %s', (_what, text, message) => {
  expect(() => parseHeadConfig(text)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', safeMessage: expect.stringContaining(message) }));
});

it('ends with exit 2 and a reason when its configuration or arguments are wrong', async () => {
  for (const [args, text] of [[[], '{"dataDir":"/x","secret":"s"}'], [['--data', '/x'], '']] as const) {
    const child = spawn(fileURLToPath(new URL('../../node_modules/.bin/node', import.meta.url)), [fileURLToPath(new URL('../../src/gcs/main.ts', import.meta.url)), ...args], { stdio: ['pipe', 'pipe', 'pipe'] });
    let output = '';
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk: Buffer) => (output += chunk.toString('utf8')));
    child.stdin.on('error', () => undefined).end(text);
    expect([...(await once(child, 'close')), output]).toEqual([2, null, expect.stringMatching(/configuration/)]);
  }
});

it('stamps every record of a cluster whose isolation is weakened, and tells the address it is given', async () => {
  const head = await start({ insecureDev: true, advertiseHost: 'localhost' });
  expect(head.address).toMatch(/^localhost:\d+$/);
  using admin = await adminOf(data);
  expect((await admin.to(Cluster).status({})).insecureDev).toBe(true);
  const lines: string[] = [];
  for await (const { record } of admin.to(Audit).tail({ tenant: '', last: 1_000 })) lines.push(record);
  expect(lines.length).toBeGreaterThan(5);
  for (const line of lines) expect((JSON.parse(line) as { detail: string }).detail).toMatch(/^insecure-dev/);
  await head.kill('SIGKILL');
  expect((await start({ insecureDev: true, advertiseHost: 'localhost' })).address).toBe(head.address);
});

it('refuses a second head on its directory, another trust domain, and a directory that others can read', async () => {
  const head = await start({ trustDomain: 'one.example' });
  await expect(start()).rejects.toThrow(/exit 1.*in use by another process/s);
  using admin = await adminOf(data);
  expect(await admin.to(Identities).whoAmI({})).toMatchObject({ kind: 'system' });
  await head.kill('SIGTERM');
  await expect(start({ trustDomain: 'two.example' })).rejects.toThrow(/exit 2.*one\.example/s);
  await chmod(data, 0o755);
  await expect(start()).rejects.toThrow(/exit 2.*chmod 700/s);
});

it('does not start over when its keys or its state are gone or changed', async () => {
  await (await start()).kill('SIGTERM');
  const keys = join(data, 'keys', 'keys.enc');
  const sealed = await readFile(keys);
  const changed = Buffer.from(sealed);
  changed[60] = (changed[60] ?? 0) ^ 1;
  await writeFile(keys, changed);
  await expect(start()).rejects.toThrow(/exit/);
  await writeFile(keys, sealed);
  await (await start()).kill('SIGTERM');
  await writeFile(join(data, 'head.sqlite'), '');
  await expect(start()).rejects.toThrow(/exit/);
});

it('puts no secret where others can read it', async () => {
  const head = await start();
  using admin = await adminOf(data);
  const { token } = await admin.to(Identities).createJoinToken({ nodeId: 'n1' });
  const key = await readFile(join(data, 'admin', 'key.pem'), 'utf8');
  await admin.to(Tenants).create({ name: 'acme' });
  await admin.to(Identities).issue({ tenant: 'acme', kind: 'user', name: 'x', roles: [], csr: freshKey().csr });
  const places = [await readFile(`/proc/${head.child.pid}/cmdline`, 'utf8'), await readFile(`/proc/${head.child.pid}/environ`, 'utf8')];
  await head.kill('SIGTERM');
  places.push(head.stderr());
  const walk = async (path: string): Promise<string[]> => (await Promise.all((await readdir(path, { withFileTypes: true })).map((e) => (e.isDirectory() ? walk(join(path, e.name)) : [join(path, e.name)])))).flat();
  for (const file of await walk(data)) if (!file.endsWith(join('admin', 'key.pem'))) places.push((await readFile(file)).toString('latin1'));
  for (const place of places) for (const secret of [token, key.split('\n')[1] ?? '-']) expect(place.includes(secret)).toBe(false);
});
