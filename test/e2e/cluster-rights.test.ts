/** Rights and records on a cluster of two raylets: policy and revocation in force while work goes on, tenants that end, the audit of it all. */
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { runDirectory } from '../../src/cli/leftovers.ts';
import { Identities, Jobs, Policies, Sessions, Tenants } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { Audit, Inspection } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import type { Cluster, RemoteModule } from '../../src/sdk/sdk.ts';
import { failure, NODE, runProgram, TestCluster, until } from '../support/cluster.ts';

type Work = typeof import('../support/work.ts');
type Line = { readonly node: string; readonly type: string; readonly principal: string; readonly action?: string; readonly event?: string; readonly count?: number; readonly allow?: boolean; readonly rule?: string; readonly detail: string; readonly resource: string };

let cluster: TestCluster;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 2, cpus: 2 });
});
afterAll(() => cluster?.stop());

async function open(profile: string, on?: string): Promise<{ driver: Cluster; work: RemoteModule<Work>; sessions: number }> {
  for (let i = 0; i < 64; i++) {
    const driver = await cluster.connect(profile);
    if (on === undefined || cluster.nodeById(driver.nodeId).name === on) return { driver, work: await driver.module<Work>(new URL('../support/work.ts', import.meta.url)), sessions: i + 1 };
    await driver.close();
  }
  throw new Error(`no job came to ${on}`);
}

/** Every record of a tenant, from the head and all raylets. */
async function records(profile: string, tenant: string): Promise<Line[]> {
  const caller = await cluster.as(profile);
  const all: Line[] = [];
  const sources = [caller.to(Audit), ...cluster.nodes.map((n) => caller.on(n.name, Audit))];
  for (const source of sources) for await (const { nodeId, record } of source.tail({ tenant, last: 10_000 })) all.push({ node: nodeId, ...(JSON.parse(record) as Omit<Line, 'node'>) });
  return all;
}

describe('a policy that changes', () => {
  const file = (forbidden: boolean): string => `version: 1
tenant: acme
roles:
  frozen:
    permit:
      - { action: identity.read, resource: identity }
${forbidden ? `    forbid:
      - { action: task.submit, resource: task }
` : ''}bindings:
  - { role: frozen, to: 'user/dev' }
`;

  it('is in force on every raylet, for drivers that are connected', async () => {
    const drivers = await Promise.all(['raylet-1', 'raylet-2'].map((name) => open('acme-dev', name)));
    const others = await open('globex-dev');
    for (const { driver, work } of drivers) expect(await driver.get(work.add(1, 1))).toBe(2);
    // The answer comes when it is in force on every node.
    const applied = await (await cluster.as('acme-ana')).to(Policies).apply({ tenant: 'acme', fileName: 'test.yaml', content: new TextEncoder().encode(file(true)) });
    expect([...applied.inForceOn].sort()).toEqual(cluster.nodes.map((n) => n.nodeId).sort());
    for (const { driver, work } of drivers) {
      expect((await failure(driver.get(work.add(1, 1)))).code).toBe('DENIED');
    }
    // Only the tenant's own, and only who is bound.
    expect(await others.driver.get(others.work.add(2, 2))).toBe(4);
    const ana = await open('acme-ana');
    expect(await ana.driver.get(ana.work.add(2, 3))).toBe(5);
    await cluster.applyPolicy('acme-ana', 'acme', file(false));
    for (const { driver, work } of drivers) {
      await until('it is allowed again', async () => {
        try {
          return (await driver.get(work.add(1, 1))) === 2;
        } catch {
          return false;
        }
      });
    }
    await Promise.all([...drivers, others, ana].map(({ driver }) => driver.close()));
  });

  it('binds the tasks of the tenant’s jobs too', async () => {
    const { driver, work } = await open('acme-ana');
    expect(await driver.get(work.fibonacci(3))).toBe(2);
    await cluster.applyPolicy('acme-ana', 'acme', `version: 1
tenant: acme
roles:
  flat:
    forbid:
      - { action: task.submit, resource: task, when: { function: { eq: fail } } }
bindings:
  - { role: flat, to: 'user/*' }
`, 'flat.yaml');
    await until('a nested call is denied', async () => (await failure(driver.get(work.failNested()))).message.includes('not permitted'));
    expect(await driver.get(work.fibonacci(3))).toBe(2);
    await driver.close();
  });
});

describe('an identity that is revoked', () => {
  it('is cut off where it is connected, its job ends, and it never comes back', async () => {
    await cluster.enrol({ tenant: 'acme', name: 'leaver', roles: ['developer'] });
    const { driver, work } = await open('acme-leaver');
    const raylet = cluster.nodeById(driver.nodeId).name;
    const stays = await open('acme-dev', raylet);
    const running = work.sleep.options({ name: 'of-the-leaver' })(600_000);
    const actor = await work.Counter.options({ name: 'of-the-leaver', detached: true }).create(0);
    expect(await driver.get(actor.add(1))).toBe(1);
    const { spiffeId } = await cluster.svid('acme-leaver');
    await (await cluster.as('acme-ana')).to(Identities).revoke({ spiffeId, reason: 'left' });
    const error = await failure(driver.get(running));
    expect(['UNAUTHENTICATED', 'UNAVAILABLE', 'CANCELLED']).toContain(error.code);
    const look = await cluster.as('acme-ana');
    await until('its task and even its detached actor are gone', async () => {
      const lists = await Promise.all(cluster.nodes.flatMap(({ name }) => ['tasks', 'actors'].map((kind) => look.on(name, Inspection).list({ kind, tenant: 'acme', jobId: driver.jobId }))));
      return lists.flatMap((l) => l.entities).every((e) => ['FAILED', 'FINISHED', 'DEAD'].includes(e.state));
    });
    await until('its job is over', async () => !['RUNNING', 'PENDING'].includes((await look.to(Jobs).get({ jobId: driver.jobId })).status));
    await cluster.forget('acme-leaver');
    expect(['UNAUTHENTICATED', 'UNAVAILABLE']).toContain((await failure(cluster.connect('acme-leaver'))).code);
    expect(await stays.driver.get(stays.work.add(1, 1))).toBe(2);
    await stays.driver.close();
  });
});

describe('a tenant that is deleted', () => {
  it('leaves nothing: no work, no process, no object, no code, no log line, no name', async () => {
    const admin = await cluster.as('admin');
    const tenant = 'initech';
    await admin.to(Tenants).create({ name: tenant, quota: {} });
    await cluster.enrol({ tenant, name: 'ana', roles: ['tenant-admin'] });
    const { driver, work } = await open('initech-ana');
    const raylet = cluster.nodeById(driver.nodeId).name;
    const counter = await work.Counter.options({ name: 'theirs', detached: true }).create(1);
    await driver.get([counter.add(1), work.say('their secret')]);
    const kept = await driver.put(new Uint8Array(2 ** 20));
    await driver.wait([kept], { count: 1, timeoutMs: 20_000 });
    const running = work.sleep(600_000);
    const run = join(runDirectory(cluster.dataDir), raylet);
    const traces = (): string[] => [join(run, 'objects', tenant), join(run, 'code', tenant), join(cluster.dataDir, raylet, 'logs', tenant)].filter((dir) => existsSync(dir) && readdirSync(dir).length > 0);
    expect(traces().length).toBe(3);
    const certificate = await admin.to(Tenants).delete({ tenant });
    expect(certificate.tenant).toBe(tenant);
    expect(certificate.signature.length).toBeGreaterThan(0);
    const error = await failure(driver.get(running));
    expect(['UNAUTHENTICATED', 'UNAVAILABLE', 'CANCELLED']).toContain(error.code);
    await until('its files are gone', () => traces().length === 0);
    await cluster.forget('initech-ana');
    expect((await failure(cluster.connect('initech-ana'))).code).not.toBe(undefined);
    // A new tenant cannot take the name, so it inherits nothing.
    expect((await failure(admin.to(Tenants).create({ name: tenant, quota: {} }))).code).toBe('INVALID_ARGUMENT');
    const stays = await open('acme-dev', raylet);
    expect(await stays.driver.get(stays.work.add(1, 1))).toBe(2);
    expect((await failure(stays.driver.get(stays.driver.ref(kept.id)))).code).toBe('DENIED');
    await stays.driver.close();
  });
});

describe('the audit', () => {
  it('has every decision of a session, allowed and denied, and its rule', async () => {
    await cluster.enrol({ tenant: 'acme', name: 'scripted', roles: ['developer'] });
    const theirs = await open('globex-dev');
    const secret = await theirs.driver.put('secret');
    expect(await theirs.driver.get(secret)).toBe('secret');
    const { driver, work, sessions } = await open('acme-scripted', 'raylet-1');
    const sums = Array.from({ length: 5 }, (_, i) => work.add(i, 1));
    await driver.wait(sums, { count: 5, timeoutMs: 10_000 });
    await driver.get(sums);
    const put = await driver.put('value');
    expect(await driver.get(work.add(put as never, 1))).toBe('value1');
    const counter = await work.Counter.create(0);
    await driver.get([counter.add(1), counter.add(1), counter.add(1)]);
    const nap = work.sleep(600_000);
    await driver.cancel(nap, { force: true });
    await failure(driver.get(nap));
    await driver.kill(counter);
    await failure(driver.actor('nobody'));
    await failure(driver.get(driver.ref(secret.id)));
    await failure((await cluster.as('acme-scripted')).to(Jobs).list({ tenant: 'globex' }));
    const { spiffeId } = await cluster.svid('acme-scripted');
    await driver.close();

    const decisions = (await records('acme-siem', 'acme')).filter((r) => r.type === 'decision' && r.principal === spiffeId && r.node !== cluster.node('raylet-2').nodeId);
    const sum = (action: string, allow: boolean): number => decisions.filter((r) => r.action === action && r.allow === allow).reduce((n, r) => n + (r.count ?? 0), 0);
    expect(Object.fromEntries([...new Set(decisions.filter((r) => r.allow === false).map((r) => r.action))].map((a) => [a, sum(a as string, false)]))).toEqual({ 'object.get': 1, 'job.list': 1 });
    expect({
      submit: sum('task.submit', true), cancel: sum('task.cancel', true), create: sum('actor.create', true), call: sum('actor.call', true), kill: sum('actor.kill', true), find: sum('actor.find', true),
      put: sum('object.put', true), get: sum('object.get', true), wait: sum('object.wait', true), code: sum('code.register', true),
    }).toEqual({ submit: 5 + 1 + 1, cancel: 1, create: 1, call: 3, kill: 1, find: 1, put: 1, get: 5 + 1 + 1 + 3 + 1, wait: 5, code: 1 });
    // A session is opened and closed at the head, and attached at its raylet.
    const opened = decisions.filter((r) => r.action === 'session.open').map((r) => r.node === cluster.node('raylet-1').nodeId);
    expect([opened.filter((here) => here).length, opened.filter((here) => !here).length]).toEqual([1, 2 * sessions]);
    expect(decisions.every((r) => typeof r.rule === 'string' && r.rule !== '')).toBe(true);
    expect(decisions.filter((r) => r.allow === false).map((r) => r.rule)).toEqual(['wall', 'wall']);
    // The owner's auditors see who tried.
    const tried = (await records('globex-siem', 'globex')).filter((r) => r.principal === spiffeId);
    expect(tried.map((r) => [r.type, r.action, r.allow])).toContainEqual(['decision', 'object.get', false]);
    await theirs.driver.close();
  });

  it('names the tenant’s people and processes only, never another’s', async () => {
    const globex = (await cluster.svid('globex-dev')).spiffeId;
    const acme = await records('acme-siem', 'acme');
    expect(acme.length).toBeGreaterThan(20);
    expect(acme.filter((r) => JSON.stringify(r).includes('initech') || r.principal.startsWith(globex.replace(/\/user\/.*/, '/')) && r.allow !== false)).toEqual([]);
  });

  it('is exported over head and raylets and verified offline', async () => {
    const out = join(cluster.directory, 'export');
    const bulkhead = fileURLToPath(new URL('../../bin/bulkhead.js', import.meta.url));
    runProgram(NODE, [bulkhead, 'audit', 'export', '--tenant', 'acme', '-o', out, '--profile', cluster.profile('acme-siem')]);
    const said = runProgram(NODE, [bulkhead, 'audit', 'verify', out]);
    expect(said).toMatch(/record/);
    const own = await failure(Promise.resolve().then(() => runProgram(NODE, [bulkhead, 'audit', 'export', '--tenant', 'acme', '-o', `${out}-2`, '--profile', cluster.profile('globex-siem')])));
    expect((own as { status?: number }).status).toBe(3);
  });
});

describe('sessions', () => {
  it('of another identity, or closed ones, cannot be used', async () => {
    const dev = await cluster.as('acme-dev');
    const ana = await cluster.as('globex-ana');
    const session = await dev.to(Sessions).open({ jobName: 'mine', jobId: '' });
    expect((await failure(ana.to(Sessions).refresh({ jobId: session.jobId }))).code).toBe('DENIED');
    expect((await failure(ana.to(Sessions).open({ jobName: 'x', jobId: session.jobId }))).code).toBe('DENIED');
    await dev.to(Sessions).close({ jobId: session.jobId, outcome: 'succeeded', message: '' });
    expect((await failure(dev.to(Sessions).refresh({ jobId: session.jobId }))).code).toBe('DENIED');
  });
});

it('nothing broke inside', () => {
  expect(cluster.faults()).toEqual([]);
});
