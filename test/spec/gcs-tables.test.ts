/** What the head's tables decide, each rule with its refusal; and that the driver acts in the one safe order. */
import fc from 'fast-check';
import { describe, expect, it, vi } from 'vitest';
import { CLOCK_SKEW_MS, JOIN_TOKEN_TTL_MS, MAX_ACTOR_SEED_BYTES, MAX_ACTOR_SEED_BYTES_PER_TENANT, MAX_ENDED_JOBS_PER_TENANT, MAX_SESSIONS_PER_JOB, NODE_DEAD_AFTER_MS, SESSION_TTL_MS, STOPPED_JOBS_TOLD_FOR_MS } from '../../src/base/limits.ts';
import { parseTenantName, parseTrustDomain, spiffeId } from '../../src/base/ids.ts';
import type { HeadState } from '../../src/gcs/head-state.ts';
import type { ActorNameEvent } from '../../src/gcs/core/actor-names.ts';
import type { JobEvent } from '../../src/gcs/core/jobs.ts';
import { hex, jobId, RecordingStore, testHead, TestClock } from './gcs-head.ts';

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const ADMIN = 'spiffe://td/system/admin';
const ANA = 'spiffe://td/tenant/acme/user/ana';
const BOB = 'spiffe://td/tenant/acme/user/bob';
const NOTHING = { cpuUnits: 0, memoryBytes: 0, custom: undefined };
const FACTS = { available: NOTHING, policyVersion: 1, revocationVersion: 0, queuedTasks: 0 };

const create = (head: HeadState, name: string, quota = {}) => head.commit((now, out) => head.tenants.step({ type: 'create', name, quota, by: ADMIN }, now, out));
const remove = (head: HeadState, name: string) => head.commit((now, out) => head.tenants.step({ type: 'delete', name, by: ADMIN }, now, out));
const job = (head: HeadState, event: JobEvent) => head.commit((now, out) => head.jobs.step(event, now, out));
const open = (head: HeadState, n: number, by = ANA) => job(head, { type: 'open', jobId: jobId(n), tenant: 'acme', name: 'j', by, expiresMs: head.clock.nowMs() + SESSION_TTL_MS });
const refused = (code: string, text?: string) => expect.objectContaining({ code, ...(text === undefined ? {} : { safeMessage: expect.stringContaining(text) }) });

describe('driver', () => {
  it('puts the record on disk, then the rows, then tells others, then answers', async () => {
    const { head, store } = await testHead();
    head.onPush((parts) => store.events.push(`push ${[...parts].join(' ')} ${head.tenants.get('acme')?.number}`));
    await create(head, 'acme');
    store.events.push('answer');
    expect(store.events).toEqual(['audit cluster tenant.created', 'store put tenants/acme', 'push tenants 1', 'answer']);
  });

  it('changes nothing by a refusal, and goes on', async () => {
    const { head, store, fatal } = await testHead();
    await expect(create(head, 'Not A Name')).rejects.toEqual(refused('INVALID_ARGUMENT'));
    expect([store.events, fatal]).toEqual([[], []]);
    await create(head, 'acme');
    expect(head.tenants.get('acme')?.number).toBe(1);
  });

  it.each(['audit', 'store'] as const)('stops for good when the %s fails, and shows nothing of the change', async (what) => {
    const test = await testHead();
    const { head, store, fatal } = test;
    const disk = new Error('no space left');
    if (what === 'audit') test.failAudit = disk;
    else store.failNext = disk;
    await expect(create(head, 'acme')).rejects.toEqual(refused('UNAVAILABLE'));
    expect(fatal).toEqual([disk]);
    expect(head.tenants.get('acme')).toBeUndefined();
    await expect(create(head, 'globex')).rejects.toEqual(refused('UNAVAILABLE'));
    expect(fatal).toHaveLength(1);
  });

  it('stops when another head has taken the store over', async () => {
    const { head, store, fatal } = await testHead();
    const second = await testHead(store);
    await expect(create(head, 'acme')).rejects.toEqual(refused('UNAVAILABLE'));
    expect(fatal).toHaveLength(1);
    await create(second.head, 'acme');
    expect(second.head.tenants.get('acme')?.number).toBe(1);
  });

  it('decides one after the other', async () => {
    const { head } = await testHead();
    const results = await Promise.allSettled(Array.from({ length: 10 }, () => create(head, 'acme')));
    expect(results.filter((r) => r.status === 'fulfilled')).toHaveLength(1);
    await Promise.all(['b', 'c', 'd'].map((name) => create(head, name)));
    expect(head.tenants.all().map((t) => t.number)).toEqual([1, 2, 3, 4]);
  });

  it('loads after a restart exactly what it was, whatever happened (property)', async () => {
    const name = fc.constantFrom('acme', 'globex', 'initech');
    const action = fc.oneof(
      fc.record({ what: fc.constant('create' as const), name }),
      fc.record({ what: fc.constant('delete' as const), name }),
      fc.record({ what: fc.constant('open' as const), name, n: fc.nat(5) }),
      fc.record({ what: fc.constant('close' as const), n: fc.nat(5), outcome: fc.constantFrom('succeeded', 'failed', 'stopped', 'vanished') }),
      fc.record({ what: fc.constant('policy' as const), name, content: fc.string({ maxLength: 5 }) }),
      fc.record({ what: fc.constant('forget' as const), name }),
      fc.record({ what: fc.constant('identity' as const), name, user: fc.constantFrom('ana', 'bob'), roles: fc.array(fc.constantFrom('r', 's')) }),
      fc.record({ what: fc.constant('revoke' as const), name }),
      fc.record({ what: fc.constant('actor' as const), name, actor: fc.string({ maxLength: 3 }), id: fc.nat(3) }),
      fc.record({ what: fc.constant('node' as const), id: fc.constantFrom('n1', 'n2') }),
      fc.record({ what: fc.constant('token' as const), n: fc.nat(3) }),
      fc.record({ what: fc.constant('later' as const), ms: fc.nat(SESSION_TTL_MS) }),
    );
    await fc.assert(fc.asyncProperty(fc.array(action, { maxLength: 40 }), async (actions) => {
      const { head, store, clock } = await testHead();
      for (const a of actions) {
        await head.commit((now, out) => {
          switch (a.what) {
            case 'create': return head.tenants.step({ type: 'create', name: a.name, quota: {}, by: ADMIN }, now, out);
            case 'delete': return head.tenants.step({ type: 'delete', name: a.name, by: ADMIN }, now, out);
            case 'open': return head.jobs.step({ type: 'open', jobId: jobId(a.n), tenant: a.name, name: 'x', by: ANA, expiresMs: now + 1 }, now, out);
            case 'close': return head.jobs.step({ type: 'close', jobId: jobId(a.n), by: ANA, outcome: a.outcome, message: '' }, now, out);
            case 'policy': return head.policies.step({ type: 'apply', tenant: a.name, fileName: 'p.yaml', digest: Buffer.from(a.content).toString('hex'), content: a.content, by: ADMIN, change: 'apply' }, now, out);
            case 'forget': return head.policies.step({ type: 'tenantGone', tenant: a.name, limit: 3 }, now, out);
            case 'identity': return head.identities.step({ type: 'issue', spiffeId: spiffeId(parseTrustDomain('td'), { kind: 'user', tenant: parseTenantName(a.name), name: a.user }), tenant: parseTenantName(a.name), kind: 'user', name: a.user, roles: a.roles }, now, out);
            case 'revoke': return head.revocations.step({ type: 'revoke', spiffeIds: [`spiffe://td/tenant/${a.name}/user/x`], serial: '', reason: 'r', by: ADMIN, trustDomain: 'td', tenant: '' }, now, out);
            case 'actor': return head.actorNames.step({ type: 'register', row: { tenant: a.name, namespace: '', name: a.actor, actorId: hex(a.id, 48), classInfo: '{}', nodeId: 'n1' } }, now, out);
            case 'node': return head.nodes.step({ type: 'reserve', id: a.id, by: ADMIN }, now, out);
            case 'token': return head.joinTokens.step({ type: 'create', digest: hex(a.n, 64), nodeId: 'n1', by: ADMIN }, now, out);
            case 'later': {
              clock.ms += a.ms;
              head.jobs.step({ type: 'tick' }, now, out);
              return head.joinTokens.step({ type: 'tick' }, now, out);
            }
          }
        }).catch((error: unknown) => expect(error).toEqual(expect.objectContaining({ name: 'BulkheadError', code: expect.stringMatching(/INVALID_ARGUMENT|DENIED/) })));
      }
      const { head: again } = await testHead(store, clock);
      const all = (h: HeadState) => ({
        tenants: h.tenants.all(), nodes: h.nodes.all(), identities: h.identities.all(), version: h.policies.version, files: h.policies.current().sort((a, b) => (a.tenant < b.tenant ? -1 : 1)),
        history: ['acme', 'globex', 'initech'].map((t) => h.policies.history(t)), jobs: ['acme', 'globex', 'initech'].map((t) => h.jobs.ofTenant(t)),
        names: ['acme', 'globex', 'initech'].map((t) => h.actorNames.ofTenant(t).map((r) => JSON.stringify(r)).sort()), revoked: h.revocations.all().map((r) => JSON.stringify(r)).sort(), revocations: h.revocations.version,
      });
      expect(all(again)).toEqual(all(head));
    }), { numRuns: 40 });
  });
});

describe('tenants', () => {
  it('never gives a number or a name out again', async () => {
    const { head, store } = await testHead();
    await create(head, 'a');
    await create(head, 'b');
    await remove(head, 'b');
    await create(head, 'c');
    expect(head.tenants.all().map((t) => [t.name, t.number, t.state])).toEqual([['a', 1, 'active'], ['b', 2, 'deleted'], ['c', 3, 'active']]);
    await expect(create(head, 'b')).rejects.toEqual(refused('INVALID_ARGUMENT', 'never given out again'));
    const { head: again } = await testHead(store);
    await create(again, 'd');
    expect(again.tenants.get('d')?.number).toBe(4);
    await expect(create(again, 'b')).rejects.toEqual(refused('INVALID_ARGUMENT'));
  });

  it('knows only active tenants as active; the others look like none', async () => {
    const { head } = await testHead();
    await create(head, 'a');
    await remove(head, 'a');
    expect(() => head.tenants.active('a')).toThrow(refused('DENIED'));
    expect(() => head.tenants.active('never')).toThrow(refused('DENIED'));
    await expect(remove(head, 'a')).rejects.toEqual(refused('DENIED'));
  });

  it.each([{ cpus: '2' }, { cpus: '0.5', memory: '2GiB', objects: '1024', tasks: '100', actors: '0', workers: '4' }, { idle: '30m' }, {}])('takes the quota %j', async (quota) => {
    const { head } = await testHead();
    await create(head, 'a', quota);
    expect(head.tenants.get('a')?.quota).toEqual(quota);
  });

  it.each([
    [{ cpu: '2' }, "'cpu' is not known"], [{ cpus: 'two' }, 'cpus'], [{ cpus: '' }, 'cpus'], [{ cpus: '-1' }, 'cpus'], [{ cpus: '0.00001' }, 'cpus'], [{ cpus: 'Infinity' }, 'cpus'], [{ memory: '2 gigs' }, 'memory'],
    [{ objects: '-5' }, 'memory'], [{ tasks: '1.5' }, 'tasks'], [JSON.parse('{"__proto__":"1"}') as Record<string, string>, '__proto__'], [{ constructor: '1' } as unknown as Record<string, string>, 'constructor'],
  ])('refuses the quota %j', async (quota, text) => {
    const { head } = await testHead();
    await expect(create(head, 'a', quota)).rejects.toEqual(refused('INVALID_ARGUMENT', text));
  });

  it.each(['platform', 'Acme', 'a/b', '', '-a', 'a'.repeat(64), '../x', 'ä'])('refuses the name %j', async (name) => {
    const { head } = await testHead();
    await expect(create(head, name)).rejects.toEqual(refused('INVALID_ARGUMENT'));
  });
});

describe('nodes', () => {
  const known = async (id = 'n1') => {
    const test = await testHead();
    await test.head.commit((now, out) => test.head.nodes.step({ type: 'reserve', id, by: ADMIN }, now, out));
    return test;
  };
  const register = (head: HeadState, id = 'n1', more = {}) =>
    head.commit((now, out) => head.nodes.step({ type: 'register', id, address: '127.0.0.1:4000', total: NOTHING, labels: {}, most: { cpuUnits: 640_000, memoryBytes: 2 ** 40, labels: {}, eachUnits: 80_000 }, insecureDev: false, instance: 'i1', facts: FACTS, ...more }, now, out));

  it('keeps the number of a node across restarts and re-joins', async () => {
    const { head, store } = await known();
    for (const id of ['n2', 'n1', 'n3']) await head.commit((now, out) => head.nodes.step({ type: 'reserve', id, by: ADMIN }, now, out));
    const { head: again } = await testHead(store);
    expect(again.nodes.all().map((n) => [n.id, n.number, n.state])).toEqual([['n1', 1, 'dead'], ['n2', 2, 'dead'], ['n3', 3, 'dead']]);
  });

  it('is alive while it reports and dead when it is silent, at exactly the limit', async () => {
    const { head, clock } = await known();
    await register(head);
    clock.ms += NODE_DEAD_AFTER_MS - 1;
    head.observe({ type: 'tick' });
    expect(head.nodes.get('n1')?.state).toBe('alive');
    head.observe({ type: 'report', id: 'n1', facts: { ...FACTS, queuedTasks: 7 } });
    clock.ms += NODE_DEAD_AFTER_MS - 1;
    head.observe({ type: 'tick' });
    expect(head.nodes.get('n1')).toMatchObject({ state: 'alive', queuedTasks: 7 });
    clock.ms += 1;
    head.observe({ type: 'tick' });
    expect(head.nodes.get('n1')).toMatchObject({ state: 'dead', queuedTasks: 0 });
    await head.settled();
  });

  it('records each life once', async () => {
    const { head, records, clock } = await known();
    await register(head);
    await register(head);
    clock.ms += NODE_DEAD_AFTER_MS;
    head.observe({ type: 'tick' });
    head.observe({ type: 'tick' });
    await register(head, 'n1', { instance: 'i2' });
    head.observe({ type: 'leave', id: 'n1' });
    await head.settled();
    expect(records.map(({ record }) => record.type === 'lifecycle' && record.event)).toEqual(['node.reserved', 'node.joined', 'node.died', 'node.joined', 'node.left']);
  });

  it('tells others only of what changed', async () => {
    const { head } = await known();
    await register(head, 'n1', { total: { ...NOTHING, custom: { gpu: 1 } } });
    let pushes = 0;
    head.onPush(() => pushes++);
    head.observe({ type: 'report', id: 'n1', facts: { ...FACTS, available: { ...NOTHING } } });
    expect(pushes).toBe(0);
    head.observe({ type: 'report', id: 'n1', facts: { ...FACTS, available: { ...NOTHING, custom: { gpu: 1 } } } });
    expect(pushes).toBe(1);
  });

  it('refuses who is unknown, reports before registering, and addresses that are none', async () => {
    const { head } = await known();
    expect(() => head.observe({ type: 'report', id: 'n1', facts: FACTS })).toThrow(refused('INVALID_ARGUMENT'));
    await expect(register(head, 'n9')).rejects.toEqual(refused('DENIED'));
    for (const address of ['', 'x', '127.0.0.1', '127.0.0.1:0', '127.0.0.1:65536', 'http://a:1', 'a b:1', '[::1]:99999', '\u0000:1']) await expect(register(head, 'n1', { address }), address).rejects.toEqual(refused('INVALID_ARGUMENT'));
    await expect(register(head, 'n1', { instance: '../x' })).rejects.toEqual(refused('INVALID_ARGUMENT'));
  });
});

describe('jobs', () => {
  it('runs from open to the outcome of its last session', async () => {
    const { head, records } = await testHead();
    await open(head, 1);
    await job(head, { type: 'join', jobId: jobId(1), by: ANA, expiresMs: 1 });
    await job(head, { type: 'close', jobId: jobId(1), by: ANA, outcome: 'failed', message: 'one of two' });
    expect(head.jobs.get(jobId(1))).toMatchObject({ status: 'RUNNING', endedMs: 0 });
    await job(head, { type: 'close', jobId: jobId(1), by: ANA, outcome: 'succeeded', message: 'done' });
    expect(head.jobs.get(jobId(1))).toMatchObject({ status: 'SUCCEEDED', message: 'done', endedMs: 1_000_000, sessions: [] });
    expect(records.map(({ log, record }) => [log, record.type === 'lifecycle' && record.event])).toEqual([['acme', 'job.started'], ['acme', 'job.succeeded']]);
    expect(head.jobs.stopped(head.clock.nowMs())).toEqual([]);
  });

  it("looks like none to whoever did not open it, and once it has ended", async () => {
    const { head } = await testHead();
    await open(head, 1);
    for (const type of ['join', 'refresh'] as const) await expect(job(head, { type, jobId: jobId(1), by: BOB, expiresMs: 1 })).rejects.toEqual(refused('DENIED'));
    await expect(job(head, { type: 'close', jobId: jobId(1), by: BOB, outcome: 'failed', message: '' })).rejects.toEqual(refused('DENIED'));
    await expect(job(head, { type: 'refresh', jobId: jobId(2), by: ANA, expiresMs: 1 })).rejects.toEqual(refused('DENIED'));
    await job(head, { type: 'stop', jobId: jobId(1), by: BOB, message: 'enough' });
    for (const type of ['join', 'refresh'] as const) await expect(job(head, { type, jobId: jobId(1), by: ANA, expiresMs: 1 })).rejects.toEqual(refused('DENIED'));
  });

  it('is told to raylets as stopped for a day, and stopping again is no error', async () => {
    const { head, clock } = await testHead();
    await open(head, 1);
    await job(head, { type: 'stop', jobId: jobId(1), by: BOB, message: 'enough' });
    await job(head, { type: 'stop', jobId: jobId(1), by: ANA, message: 'again' });
    expect(head.jobs.get(jobId(1))).toMatchObject({ status: 'STOPPED', message: 'enough' });
    expect(head.jobs.stopped(clock.ms)).toEqual([jobId(1)]);
    expect(head.jobs.stopped(clock.ms + STOPPED_JOBS_TOLD_FOR_MS)).toEqual([]);
  });

  it('fails when every driver is gone, not before', async () => {
    const { head, clock } = await testHead();
    await open(head, 1);
    clock.ms += SESSION_TTL_MS / 2;
    await job(head, { type: 'refresh', jobId: jobId(1), by: ANA, expiresMs: clock.ms + SESSION_TTL_MS });
    clock.ms += SESSION_TTL_MS + CLOCK_SKEW_MS;
    await job(head, { type: 'tick' });
    expect(head.jobs.get(jobId(1)).status).toBe('RUNNING');
    clock.ms += 1;
    await job(head, { type: 'tick' });
    expect(head.jobs.get(jobId(1)).status).toBe('FAILED');
  });

  it('has a bounded number of drivers, and of ended jobs that stay listed', async () => {
    const { head, clock } = await testHead();
    await open(head, 0);
    for (let i = 1; i < MAX_SESSIONS_PER_JOB; i++) await job(head, { type: 'join', jobId: jobId(0), by: ANA, expiresMs: 1e12 });
    await expect(job(head, { type: 'join', jobId: jobId(0), by: ANA, expiresMs: 1 })).rejects.toEqual(refused('RESOURCE_EXHAUSTED'));
    for (let i = 1; i <= MAX_ENDED_JOBS_PER_TENANT + 60; i++) {
      clock.ms++;
      await open(head, i);
      await job(head, { type: 'close', jobId: jobId(i), by: ANA, outcome: 'succeeded', message: '' });
    }
    for (let i = 0; i < 3; i++) await job(head, { type: 'tick' });
    const left = head.jobs.ofTenant('acme');
    expect(left).toHaveLength(MAX_ENDED_JOBS_PER_TENANT + 1);
    expect(head.jobs.get(jobId(MAX_ENDED_JOBS_PER_TENANT + 60)).status).toBe('SUCCEEDED');
    expect(() => head.jobs.get(jobId(60))).toThrow(refused('DENIED'));
  });

  it('refuses outcomes and texts that are none', async () => {
    const { head } = await testHead();
    await open(head, 1);
    for (const outcome of ['', 'RUNNING', 'constructor', '__proto__']) await expect(job(head, { type: 'close', jobId: jobId(1), by: ANA, outcome, message: '' })).rejects.toEqual(refused('INVALID_ARGUMENT'));
    await expect(job(head, { type: 'close', jobId: jobId(1), by: ANA, outcome: 'failed', message: 'x'.repeat(2_000) })).rejects.toEqual(refused('INVALID_ARGUMENT'));
    await expect(job(head, { type: 'open', jobId: 'job-1', tenant: 'acme', name: '', by: ANA, expiresMs: 1 })).rejects.toEqual(refused('INVALID_ARGUMENT'));
    await expect(open(head, 1)).rejects.toEqual(refused('INVALID_ARGUMENT'));
  });
});

describe('actor names', () => {
  const row = { tenant: 'acme', namespace: 'prod', name: 'delays', actorId: hex(1, 48), classInfo: '{}', nodeId: 'n1' };
  const register = (head: HeadState, more = {}) => head.commit((now, out) => head.actorNames.step({ type: 'register', row: { ...row, ...more } }, now, out));
  const release = (head: HeadState, more = {}) => head.commit((now, out) => head.actorNames.step({ type: 'release', ...row, ...more }, now, out));

  it('is unique per tenant and namespace, and may be registered again by its holder', async () => {
    const { head } = await testHead();
    await register(head);
    await register(head);
    for (const other of [{ actorId: hex(2, 48) }, { nodeId: 'n2' }]) await expect(register(head, other)).rejects.toEqual(refused('INVALID_ARGUMENT', 'exists already'));
    await register(head, { tenant: 'globex', actorId: hex(2, 48) });
    await register(head, { namespace: 'test', actorId: hex(3, 48) });
    expect(head.actorNames.get('acme', 'prod', 'delays')?.actorId).toBe(hex(1, 48));
  });

  it('is released by its holder only', async () => {
    const { head } = await testHead();
    await register(head);
    for (const other of [{ actorId: hex(2, 48) }, { nodeId: 'n2' }, { tenant: 'globex' }]) await release(head, other);
    expect(head.actorNames.get('acme', 'prod', 'delays')).toBeDefined();
    await release(head);
    expect(head.actorNames.get('acme', 'prod', 'delays')).toBeUndefined();
  });

  describe('of actors that can be made again', () => {
    const seed = { submitter: ANA, jobId: jobId(1), sealed: Buffer.from('code and arguments').toString('base64') };
    const step = (head: HeadState, event: ActorNameEvent) => head.commit((now, out) => head.actorNames.step(event, now, out));
    const gone = (head: HeadState, nodeId = 'n1') => step(head, { type: 'nodeGone', nodeId, limit: 10 });

    it('3: are orphaned with their node, others are free; 4: anyone may take the name', async () => {
      const { head } = await testHead();
      await register(head, { seed });
      await register(head, { name: 'plain', actorId: hex(2, 48) });
      await gone(head);
      expect(head.actorNames.get('acme', 'prod', 'delays')).toEqual({ ...row, seed, orphaned: true });
      expect(head.actorNames.get('acme', 'prod', 'plain')).toBeUndefined();
      // Whoever goes through the names of the node comes to an end.
      expect(head.actorNames.ofNode('n1')).toEqual([]);
      await register(head, { actorId: hex(3, 48), nodeId: 'n2' });
      expect(head.actorNames.get('acme', 'prod', 'delays')).toEqual({ ...row, actorId: hex(3, 48), nodeId: 'n2', former: { actorId: row.actorId, nodeId: 'n1' } });
      // Who lost it may be told so; nobody else is.
      expect([[row.actorId, 'n1'], [hex(3, 48), 'n2'], [row.actorId, 'n2'], [hex(3, 48), 'n1']].map(([id = '', node = '']) => head.actorNames.heldBy('acme', 'prod', 'delays', id, node))).toEqual([true, true, false, false]);
      await expect(register(head)).rejects.toEqual(refused('INVALID_ARGUMENT', 'exists already'));
    });

    it('4: are their old holder’s again, with what they are made of, when its node was only silent', async () => {
      const { head } = await testHead();
      await register(head, { seed });
      await gone(head);
      await register(head);
      expect(head.actorNames.get('acme', 'prod', 'delays')).toEqual({ ...row, seed });
    });

    it('4: of a placement group go to one of the same principal that takes its place, and to nobody else', async () => {
      const { head } = await testHead();
      const group = { namespace: 'placement-group/', seed };
      await register(head, group);
      await gone(head);
      const heir = { ...group, actorId: hex(3, 48), nodeId: 'n2', classInfo: JSON.stringify({ former: row.actorId }) };
      const none = { ...heir, seed: undefined };
      for (const other of [none, { ...heir, seed: { ...seed, submitter: `${ANA}2` } }, { ...heir, classInfo: '{}' }, { ...heir, classInfo: 'null' }, { ...heir, classInfo: JSON.stringify({ former: hex(4, 48) }) }]) {
        await expect(register(head, other)).rejects.toEqual(refused('INVALID_ARGUMENT', 'exists already'));
      }
      await register(head, heir);
      expect(head.actorNames.get('acme', 'placement-group/', 'delays')).toMatchObject({ nodeId: 'n2', seed, former: { actorId: row.actorId, nodeId: 'n1' } });
      await expect(register(head, group)).rejects.toEqual(refused('INVALID_ARGUMENT', 'exists already'));
    });

    it('5: are forgotten with their job or tenant, and not while they live', async () => {
      const { head } = await testHead();
      await register(head, { seed });
      expect(head.actorNames.orphansOf('acme', jobId(1))).toEqual([]);
      await gone(head);
      for (const [tenant, job] of [['globex', jobId(1)], ['acme', jobId(2)]] as const) await step(head, { type: 'jobStopped', tenant, jobId: job, limit: 10 });
      expect(head.actorNames.orphansOf('acme', jobId(1))).toHaveLength(1);
      await step(head, { type: 'jobStopped', tenant: 'acme', jobId: jobId(1), limit: 10 });
      expect(head.actorNames.get('acme', 'prod', 'delays')).toBeUndefined();
    });

    it('take so much of the head, each and per tenant, and give it back', async () => {
      const { head } = await testHead();
      const large = { ...seed, sealed: 'A'.repeat(Math.floor((MAX_ACTOR_SEED_BYTES * 4) / 3)) };
      expect(head.actorNames.mayKeep('acme', { ...large, sealed: `${large.sealed}AAAA` }, undefined)).toBe(false);
      const most = MAX_ACTOR_SEED_BYTES_PER_TENANT / MAX_ACTOR_SEED_BYTES;
      for (let i = 0; i < most; i++) await register(head, { name: `n${i}`, actorId: hex(i + 1, 48), seed: large });
      expect([head.actorNames.mayKeep('acme', large, undefined), head.actorNames.mayKeep('globex', large, undefined), head.actorNames.mayKeep('acme', large, large)]).toEqual([false, true, true]);
      await expect(register(head, { name: 'one-more', actorId: hex(99, 48), seed: large })).rejects.toEqual(refused('INVALID_ARGUMENT', 'too large'));
      await release(head, { name: 'n0', actorId: hex(1, 48) });
      expect(head.actorNames.mayKeep('acme', large, undefined)).toBe(true);
    });
  });

  it('cannot reach another key by its spelling (property)', async () => {
    const { head, store } = await testHead();
    const odd = fc.oneof(fc.string({ minLength: 1, maxLength: 20, unit: 'binary' }), fc.constantFrom('/', '..', '%2F', 'a/b', 'a%2Fb', "'", '~', '\u0000', '💥', '__proto__'));
    let n = 10;
    await fc.assert(fc.asyncProperty(odd, odd, async (namespace, name) => {
      const before = head.actorNames.get('acme', namespace, name);
      if (before === undefined) await register(head, { namespace, name, actorId: hex(++n, 48) });
      const found = head.actorNames.get('acme', namespace, name);
      expect(found).toMatchObject({ namespace, name });
      expect(head.actorNames.get('acme', name, namespace)?.name ?? namespace).toBe(namespace);
    }), { numRuns: 100 });
    const keys = (await store.range('actor-names/')).items.map((i) => i.key.split('/').length);
    expect(new Set(keys)).toEqual(new Set([4]));
  });

  it('refuses empty and boundless names', async () => {
    const { head } = await testHead();
    for (const bad of [{ name: '' }, { name: 'x'.repeat(201) }, { namespace: 'x'.repeat(201) }, { classInfo: 'x'.repeat(65_537) }]) await expect(register(head, bad)).rejects.toEqual(refused('INVALID_ARGUMENT'));
  });
});

describe('policy versions', () => {
  const apply = (head: HeadState, content: string, more = {}) =>
    head.commit((now, out) => head.policies.step({ type: 'apply', tenant: 'acme', fileName: 'p.yaml', digest: hex(content.length, 64), content, by: ANA, change: 'apply', ...more }, now, out));

  it('only rises, over tenants, files and everything else that decides', async () => {
    const { head, store } = await testHead();
    await apply(head, 'a');
    await apply(head, 'bb', { tenant: '' });
    await head.commit((now, out) => head.policies.step({ type: 'bump' }, now, out));
    await apply(head, 'ccc');
    expect([head.policies.version, head.policies.history('acme').map((v) => v.version), head.policies.history('').map((v) => v.version)]).toEqual([4, [4, 1], [2]]);
    const { head: again } = await testHead(store);
    await again.commit((now, out) => again.policies.step({ type: 'tenantGone', tenant: 'acme', limit: 10 }, now, out));
    expect([again.policies.version, again.policies.current().map((f) => f.content)]).toEqual([5, ['bb']]);
  });

  it('finds versions of the tenant only', async () => {
    const { head } = await testHead();
    await apply(head, 'a');
    await apply(head, 'bb', { tenant: 'globex' });
    await apply(head, 'ccc', { fileName: 'q.yaml' });
    expect([head.policies.find('acme', 0).version, head.policies.find('acme', 0, 'p.yaml').version, head.policies.find('acme', 1, 'p.yaml').version]).toEqual([3, 1, 1]);
    for (const [version, fileName] of [[0, 'r.yaml'], [1, 'q.yaml']] as const) expect(() => head.policies.find('acme', version, fileName)).toThrow(refused('DENIED'));
    for (const [tenant, version] of [['acme', 2], ['acme', 9], ['initech', 0], ['', 1]] as const) expect(() => head.policies.find(tenant, version)).toThrow(refused('DENIED'));
  });

  it('keeps content as long as a version needs it, and forgets what is too old', async () => {
    const { head, store } = await testHead();
    for (let i = 1; i <= 130; i++) await apply(head, 'x'.repeat(i));
    expect(head.policies.history('acme')).toHaveLength(101);
    expect((await store.range('policy/content/')).items).toHaveLength(101);
    await apply(head, 'x'.repeat(130));
    expect(head.policies.content(head.policies.find('acme', 0).digest)).toBe('x'.repeat(130));
  });

  it('bounds the files of a tenant', async () => {
    const { head } = await testHead();
    for (let i = 0; i < 32; i++) await apply(head, 'x'.repeat(i + 1), { fileName: `p${i}.yaml` });
    await expect(apply(head, 'y', { fileName: 'one-more.yaml' })).rejects.toEqual(refused('RESOURCE_EXHAUSTED'));
    await apply(head, 'y', { fileName: 'p3.yaml' });
  });

  it.each(['', '../p.yaml', 'a/b.yaml', 'P.yaml', '.hidden', 'a..b', 'x'.repeat(101), 'a\u0000'])('refuses the file name %j', async (fileName) => {
    const { head } = await testHead();
    await expect(apply(head, 'a', { fileName })).rejects.toEqual(refused('INVALID_ARGUMENT'));
  });
});

describe('revocations', () => {
  const revoke = (head: HeadState, more = {}) => head.commit((now, out) => head.revocations.step({ type: 'revoke', spiffeIds: [ANA], serial: '', reason: 'left', by: ADMIN, trustDomain: 'td', tenant: 'acme', ...more }, now, out));

  it('covers what was issued before, and the serial', async () => {
    const { head, clock } = await testHead();
    await revoke(head);
    await revoke(head, { spiffeIds: [], serial: 'ab01' });
    const { revocations } = head;
    expect([revocations.version, revocations.covers(ANA, '', clock.ms - 1), revocations.covers(ANA, '', clock.ms), revocations.covers(BOB, '', 0), revocations.covers(BOB, 'ab01', clock.ms + 1)]).toEqual([2, true, false, false, true]);
  });

  it('moves forward, is recorded, and is dropped when nothing can be under it any more', async () => {
    const { head, clock, records } = await testHead();
    await revoke(head);
    clock.ms += 500;
    await revoke(head);
    expect(head.revocations.all()).toEqual([expect.objectContaining({ issuedBeforeMs: clock.ms, version: 2 })]);
    expect(records.map((r) => r.log)).toEqual(['acme', 'acme']);
    const tick = () => head.commit((now, out) => head.revocations.step({ type: 'tick', longestTtlMs: 1_000 }, now, out));
    clock.ms += 1_000;
    await tick();
    expect(head.revocations.version).toBe(2);
    clock.ms += 1;
    await tick();
    expect([head.revocations.version, head.revocations.all()]).toEqual([3, []]);
  });

  it.each([
    [{ spiffeIds: [], serial: '' }], [{ serial: 'ab01' }], [{ spiffeIds: [], serial: 'AB01' }], [{ spiffeIds: [], serial: 'abc' }], [{ spiffeIds: ['spiffe://other/tenant/acme/user/ana'] }],
    [{ spiffeIds: ['spiffe://td/tenant/acme/user/../x'] }], [{ spiffeIds: ['ana'] }], [{ reason: 'x'.repeat(2_000) }],
  ])('refuses %j', async (more) => {
    const { head } = await testHead();
    await expect(revoke(head, more)).rejects.toEqual(refused('INVALID_ARGUMENT'));
    expect(head.revocations.version).toBe(0);
  });
});

describe('join tokens', () => {
  const digest = hex(7, 64);
  const made = async () => {
    const test = await testHead(new RecordingStore(), new TestClock());
    await test.head.commit((now, out) => test.head.joinTokens.step({ type: 'create', digest, nodeId: 'n1', by: ADMIN }, now, out));
    return test;
  };
  const redeem = (head: HeadState, d = digest) => head.commit((now, out) => head.joinTokens.step({ type: 'redeem', digest: d }, now, out));

  it('works once; unknown, used and expired are one error', async () => {
    const { head, clock } = await made();
    await redeem(head);
    const used = await redeem(head).catch((e: unknown) => e);
    const never = await redeem(head, hex(8, 64)).catch((e: unknown) => e);
    const { head: other, clock: otherClock } = await made();
    otherClock.ms += JOIN_TOKEN_TTL_MS;
    const expired = await redeem(other).catch((e: unknown) => e);
    expect(clock.ms).toBe(1_000_000);
    expect([used, never, expired]).toEqual([refused('UNAUTHENTICATED'), used, used]);
  });

  it('works once among many at the same time', async () => {
    const { head } = await made();
    const results = await Promise.allSettled(Array.from({ length: 10 }, () => redeem(head)));
    expect(results.filter((r) => r.status === 'fulfilled')).toHaveLength(1);
  });

  it('is forgotten when its time is over', async () => {
    const { head, clock, store } = await made();
    clock.ms += JOIN_TOKEN_TTL_MS;
    await head.commit((now, out) => head.joinTokens.step({ type: 'tick' }, now, out));
    expect((await store.range('join-tokens/')).items).toEqual([]);
  });
});
