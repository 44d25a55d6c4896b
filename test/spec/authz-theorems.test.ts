/** What must hold of every policy, by name (after Cedar's theorems); each over generated worlds or by the smallest example that would break it. */
import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, test, vi } from 'vitest';
import { bindableRoles, compileOrExplain, compilePolicies, MAX_SCANNED_RULES, MAX_VALUES_PER_TENANT } from '../../src/authz/core/compile.ts';
import type { PolicyDocument, RuleDocument } from '../../src/authz/core/policy-schema.ts';
import { EMPTY_SNAPSHOT, snapshotText } from '../../src/authz/core/snapshot.ts';
import { GRANTABLE_ACTIONS, GOVERNANCE_ACTIONS, KIND_OF_ACTION } from '../../src/authz/core/vocabulary.ts';
import { createDecisionPoint, LiveDecisionPoint } from '../../src/authz/decision-point.ts';
import { explain, explanationText, whoCan } from '../../src/authz/explain.ts';
import { parsePolicyFile } from '../../src/authz/policy-file.ts';
import { checkPolicies, checkText } from '../../src/authz/policy-tests.ts';
import { defaultPolicy } from '../../src/authz/builtin-policies.ts';
import { ACTIONS, resource, type Action, type DecisionRequest } from '../../src/base/decision.ts';
import { principalFromSpiffeId } from '../../src/base/principal.ts';
import { AT, kindOf, request, world, type World } from './authz-worlds.ts';

vi.setConfig({ testTimeout: 60_000 });

const RUNS = { numRuns: 200 } as const;
const requests = fc.array(request, { minLength: 10, maxLength: 10 });
const ana = principalFromSpiffeId('spiffe://test/tenant/acme/user/ana');

const compile = (w: World, version = 1): ReturnType<typeof createDecisionPoint> => createDecisionPoint(compilePolicies({ ...w, version }));
const everything = (scope: RuleDocument['scope']): RuleDocument => ({ actions: ACTIONS, kinds: [...new Set(ACTIONS.map(kindOf))], when: [], scope, at: AT });
const edit = (w: World, change: (d: PolicyDocument) => PolicyDocument): World => ({ ...w, files: w.files.map((f) => ({ ...f, document: change(f.document) })) });
const forAll = (property: (w: World, asked: DecisionRequest[]) => void): void => fc.assert(fc.property(world, requests, property), RUNS);

function tenantFile(tenant: string, body: Partial<PolicyDocument>): World['files'][number] {
  return { name: `${tenant}.yaml`, document: { version: 1, tenant, roles: [], bindings: [], grants: [], tests: [], ...body } };
}

describe('theorems', () => {
  test('forbidTrumpsPermit', () => {
    forAll((w, asked) => {
      const before = compile(w);
      const forbidding = compile(edit(w, (d) => ({ ...d, roles: d.roles.map((r) => ({ ...r, forbid: [...r.forbid, everything('any')] })) })));
      for (const q of asked) {
        const was = before.decide(q);
        if (was.rule.includes('/permit/') || was.rule.includes('/grant/')) expect(forbidding.decide(q)).toMatchObject({ allow: false, rule: expect.stringContaining('/forbid/') });
      }
    });
  });

  test('defaultDeny: no policy, no right; nor from a role without rules for the action', () => {
    const nothing = [createDecisionPoint(EMPTY_SNAPSHOT), new LiveDecisionPoint()];
    fc.assert(fc.property(request, (q) => nothing.every((point) => !point.decide(q).allow)), RUNS);
    forAll((w, asked) => {
      const noPermits = compile(edit(w, (d) => ({ ...d, roles: d.roles.map((r) => ({ ...r, permit: [] })) })));
      for (const q of asked) expect(noPermits.decide(q).allow).toBe(false);
    });
  });

  test('allowNeedsAPermitOfARoleOfThePrincipal: without bindings and carried roles nobody may do anything', () => {
    forAll((w, asked) => {
      const unbound = compile({ ...edit(w, (d) => ({ ...d, bindings: [] })), identityRoles: [] });
      for (const q of asked) expect(unbound.decide(q).allow).toBe(false);
    });
  });

  test('addingAForbidNeverAllows, removingAPermitNeverAllows', () => {
    forAll((w, asked) => {
      const before = compile(w);
      const fewer = compile(edit(w, (d) => ({ ...d, roles: d.roles.map((r) => ({ ...r, permit: r.permit.slice(1), forbid: [...r.forbid, { ...everything('any'), actions: ['task.submit' as const] }] })) })));
      for (const q of asked) if (!before.decide(q).allow) expect(fewer.decide(q).allow).toBe(false);
    });
  });

  test('wallStandsAgainstAnyTenantPolicy: whatever acme and globex write, they get nothing of initech, and of each other only by a grant of the owner', () => {
    const all: PolicyDocument['roles'] = [{ name: 'all', assignable: true, permit: [everything('any')], forbid: [], at: AT }];
    const bindings: PolicyDocument['bindings'] = [{ role: 'all', to: [{ kind: 'user', name: '*' }, { kind: 'service', name: '*' }], at: AT }];
    forAll((w, asked) => {
      const greedy = compile(edit(w, (d) => (d.tenant === 'acme' ? { ...d, roles: d.roles.some((r) => r.name === 'a3') || d.roles.length === 0 ? d.roles : [...d.roles, ...all], bindings: d.bindings } : d)));
      for (const q of asked) {
        const { tenant } = q.resource.attributes;
        const { allow, rule } = greedy.decide(q);
        if (allow && tenant !== '' && q.principal.tenant !== tenant && !GOVERNANCE_ACTIONS.has(q.action)) expect(rule).toMatch(new RegExp(`^${tenant}/grant/`));
      }
    });
    // The greediest tenant there can be, against every action.
    const point = compile({ files: [tenantFile('acme', { roles: all, bindings })], identityRoles: [] });
    for (const action of ACTIONS) {
      expect(point.decide({ principal: ana, action, resource: resource(kindOf(action), { tenant: 'globex' }), nowMs: 0 })).toMatchObject({ allow: false, rule: 'wall' });
      expect(point.decide({ principal: ana, action, resource: resource(kindOf(action), { tenant: '' }), nowMs: 0 }).allow).toBe(false);
      expect(point.decide({ principal: ana, action, resource: resource(kindOf(action), { tenant: 'acme' }), nowMs: 0 }).allow).toBe(true);
    }
  });

  test('aTenantFileChangesNothingForOthers: a rule, role or binding of acme never changes a decision about other principals', () => {
    forAll((w, asked) => {
      const before = compile(w);
      const without = compile({ ...w, files: w.files.filter((f) => f.document.tenant !== 'acme'), identityRoles: w.identityRoles });
      for (const q of asked) {
        if (q.principal.tenant === 'acme' || q.resource.attributes.tenant === 'acme') continue;
        expect(without.decide(q)).toEqual(before.decide(q));
      }
    });
  });

  test('aGrantOpensTheWallAndNothingMore: the grantee still needs a permit of its own, and a forbid of its own still holds', () => {
    const grants: PolicyDocument['grants'] = [{ to: { tenant: 'globex', kind: 'any', name: '' }, actions: ['object.get'], kinds: ['object'], when: [{ attribute: 'label', operator: 'eq', value: 'published' }], untilMs: 100, at: AT }];
    const bob = principalFromSpiffeId('spiffe://test/tenant/globex/user/bob');
    const rule: RuleDocument = { ...everything('tenant'), actions: ['object.get'] };
    const asks = (roles: PolicyDocument['roles'], attributes: object, nowMs = 99, action: Action = 'object.get'): string => {
      const globex = tenantFile('globex', { roles, bindings: roles.length === 0 ? [] : [{ role: 'r', to: [{ kind: 'user', name: '*' }], at: AT }] });
      return compile({ files: [tenantFile('acme', { grants }), globex], identityRoles: [] }).decide({ principal: bob, action, resource: resource(kindOf(action), { tenant: 'acme', ...attributes }), nowMs }).rule;
    };
    const reader = [{ name: 'r', assignable: false, permit: [rule], forbid: [], at: AT }];
    expect(asks(reader, { label: 'published' })).toBe('acme/grant/0');
    expect(asks([], { label: 'published' })).toBe('default-deny');
    expect(asks([{ ...reader[0]!, forbid: [rule] }], { label: 'published' })).toBe('globex/r/forbid/0');
    expect(asks(reader, { label: 'draft' })).toBe('wall');
    expect(asks(reader, { label: 'published' }, 100)).toBe('wall');
    expect(asks(reader, { label: 'published' }, 99, 'object.read')).toBe('wall');
  });

  test('governingActionsCannotBeGranted', () => {
    for (const action of ACTIONS.filter((a) => !GRANTABLE_ACTIONS.has(a))) {
      const grants: PolicyDocument['grants'] = [{ to: { tenant: 'globex', kind: 'any', name: '' }, actions: [action], kinds: [kindOf(action)], when: [], untilMs: 1e15, at: AT }];
      expect(compileOrExplain({ files: [tenantFile('acme', { grants })], identityRoles: [], version: 1 }).snapshot).toBeUndefined();
    }
  });

  test('theAdministratorReadsNoTenant: by the default policy it governs, and every other action on a tenant meets the wall', () => {
    const { snapshot } = checkPolicies({ files: [defaultPolicy()], identityRoles: [], version: 1, nowMs: 0 });
    const point = createDecisionPoint(snapshot!);
    const admin = principalFromSpiffeId('spiffe://test/system/admin');
    for (const action of ACTIONS) {
      const { allow, rule } = point.decide({ principal: admin, action, resource: resource(kindOf(action), { tenant: 'acme' }), nowMs: 0 });
      if (!GOVERNANCE_ACTIONS.has(action)) expect([action, allow, rule]).toEqual([action, false, 'wall']);
      if (/^(object|task|log|actor|job|code|audit\.(read|export))/.test(action)) expect(allow).toBe(false);
    }
  });

  test('aNodeNeverTouchesATenantInItsOwnName', () => {
    fc.assert(
      fc.property(world, request, (w, q) => {
        const q2 = { ...q, principal: principalFromSpiffeId('spiffe://test/node/n1') };
        if (q2.resource.attributes.tenant !== '') expect(compile(w).decide(q2).allow).toBe(false);
      }),
      RUNS,
    );
  });

  test('aJobIsItsSubmitter: the same answer by the same rule, and without a submitter none', () => {
    forAll((w, asked) => {
      const point = compile(w);
      for (const q of asked) {
        const { principal } = q;
        if (principal.kind !== 'user' && principal.kind !== 'service') continue;
        const path = `spiffe://test/tenant/${principal.tenant}/job/ana`;
        const job = principalFromSpiffeId(path, { kind: principal.kind, name: principal.name });
        expect(point.decide({ ...q, principal: job })).toEqual(point.decide(q));
        expect(point.decide({ ...q, principal: principalFromSpiffeId(path) }).allow).toBe(false);
      }
    });
  });

  test('orderOfFilesDoesNotMatter, and equal input gives equal bytes', () => {
    fc.assert(
      fc.property(world, fc.nat(), (w, n) => {
        const text = snapshotText(compilePolicies({ ...w, version: 1 }));
        const turned = { files: [...w.files.slice(n % w.files.length), ...w.files.slice(0, n % w.files.length)].reverse(), identityRoles: [...w.identityRoles].reverse() };
        expect(snapshotText(compilePolicies({ ...turned, version: 1 }))).toBe(text);
        expect(snapshotText(compilePolicies({ ...structuredClone(w), version: 1 }))).toBe(text);
      }),
      RUNS,
    );
  });

  test('aSnapshotListsPermitsFirst, and is frozen to the last list', () => {
    forAll((w) => {
      const snapshot = compilePolicies({ ...w, version: 1 });
      const effects = snapshot.rules.map((r) => r.effect);
      expect(effects.lastIndexOf('permit')).toBeLessThan(effects.includes('forbid') ? effects.indexOf('forbid') : Infinity);
      const frozen = (v: unknown): boolean => typeof v !== 'object' || v === null || (Object.isFrozen(v) && Object.values(v).every(frozen));
      expect(frozen(snapshot)).toBe(true);
      expect(new Set([...snapshot.rules, ...snapshot.grants].map((r) => r.id)).size).toBe(snapshot.rules.length + snapshot.grants.length);
    });
  });

  test('errorDenies: whatever is wrong with a request, the answer is a denial and never a throw', () => {
    const point = compile({ files: [tenantFile('acme', { roles: [{ name: 'all', assignable: false, permit: [everything('tenant')], forbid: [], at: AT }], bindings: [{ role: 'all', to: [{ kind: 'user', name: '*' }], at: AT }] })], identityRoles: [] });
    const good: DecisionRequest = { principal: ana, action: 'task.submit', resource: resource('task', { tenant: 'acme' }), nowMs: 0 };
    expect(point.decide(good).allow).toBe(true);
    const thrower = new Proxy({}, { get: () => { throw new Error('no'); }, getPrototypeOf: () => { throw new Error('no'); } });
    const bad: unknown[] = [
      undefined, null, 1, 'x', {}, [], thrower, { ...good, principal: null }, { ...good, principal: thrower }, { ...good, resource: null }, { ...good, resource: thrower },
      { ...good, resource: { kind: 'task', attributes: thrower } }, { ...good, action: 'task.conquer' }, { ...good, action: ['task.submit'] }, { ...good, action: '__proto__' }, { ...good, nowMs: Number.NaN },
      { ...good, nowMs: undefined }, { ...good, principal: { ...ana, tenant: '' }, resource: resource('task', { tenant: '' }) }, { ...good, principal: { ...ana, tenant: undefined }, resource: resource('task', { tenant: '' }) },
      { ...good, principal: { ...ana, kind: 'admin' } }, { ...good, principal: { ...ana, kind: 'node' } }, { ...good, principal: { ...ana, kind: 'job', submitter: { kind: 'system', name: 'admin' } } },
    ];
    for (const q of bad) expect(point.decide(q as DecisionRequest)).toEqual({ allow: false, rule: 'error', policyVersion: 1 });
  });
});

test('a tenant called platform gets none of the platform’s own roles', () => {
  const check = checkPolicies({ files: [defaultPolicy()], identityRoles: [{ tenant: 'platform', kind: 'user', name: 'eve', role: 'platform-admin' }, { tenant: 'platform', kind: 'user', name: 'eve', role: 'support' }], version: 1, nowMs: 0 });
  const eve = principalFromSpiffeId('spiffe://test/tenant/platform/user/eve');
  const point = createDecisionPoint(check.snapshot!);
  for (const action of ['tenant.create', 'cluster.stop', 'pki.rotate', 'audit.read'] as const) for (const tenant of ['', 'platform']) {
    expect(point.decide({ principal: eve, action, resource: resource(kindOf(action), { tenant }), nowMs: 0 }).allow).toBe(false);
  }
  expect(compileOrExplain({ files: [tenantFile('platform', {})], identityRoles: [], version: 1 }).diagnostics[0]?.message).toMatch(/reserved/);
});

test('a live decision point takes newer snapshots only, whole', () => {
  const snapshotOf = (version: number, permit: boolean): ReturnType<typeof compilePolicies> =>
    compilePolicies({ files: [tenantFile('acme', { roles: [{ name: 'r', assignable: false, permit: permit ? [everything('tenant')] : [], forbid: [], at: AT }], bindings: [{ role: 'r', to: [{ kind: 'user', name: '*' }], at: AT }] })], identityRoles: [], version });
  const live = new LiveDecisionPoint();
  const ask = (): unknown => live.decide({ principal: ana, action: 'task.submit', resource: resource('task', { tenant: 'acme' }), nowMs: 0 });
  expect([live.version, ask()]).toEqual([0, { allow: false, rule: 'default-deny', policyVersion: 0 }]);
  expect(live.swap(snapshotOf(2, true))).toBe(true);
  expect(ask()).toEqual({ allow: true, rule: 'acme/r/permit/0', policyVersion: 2 });
  expect(live.swap(snapshotOf(3, false))).toBe(true);
  expect(live.swap(snapshotOf(2, true))).toBe(false);
  expect(live.swap(snapshotOf(3, true))).toBe(false);
  expect(live.swap({ ...snapshotOf(4, true), version: Number.NaN })).toBe(false);
  expect(ask()).toEqual({ allow: false, rule: 'default-deny', policyVersion: 3 });
});

test('a file whose rules cannot be indexed is refused, and the same number of indexed rules is not', () => {
  const rules = (attribute: 'function' | 'cpus'): RuleDocument[] =>
    Array.from({ length: MAX_SCANNED_RULES + 1 }, (_, i) => ({ actions: ['task.submit'], kinds: ['task'], when: [attribute === 'cpus' ? { attribute, operator: 'lte', value: i } : { attribute, operator: 'eq', value: `f${i}` }], scope: 'tenant', at: AT }));
  const compiled = (permit: RuleDocument[]): ReturnType<typeof compileOrExplain> => compileOrExplain({ files: [tenantFile('acme', { roles: [{ name: 'r', assignable: false, permit, forbid: [], at: AT }] })], identityRoles: [], version: 1 });
  expect(compiled(rules('cpus')).diagnostics).toMatchObject([{ severity: 'error', message: expect.stringContaining(`more than ${MAX_SCANNED_RULES}`) }]);
  expect(compiled(rules('function')).snapshot?.rules).toHaveLength(MAX_SCANNED_RULES + 1);
});

test('conditions with more values than a node should index are refused', () => {
  const permit = (size: number): RuleDocument[] => [{ actions: ['task.submit'], kinds: ['task'], when: [{ attribute: 'name', operator: 'in', value: Array.from({ length: size }, (_, i) => `n${i}`) }], scope: 'tenant', at: AT }];
  const compiled = (size: number): ReturnType<typeof compileOrExplain> => compileOrExplain({ files: [tenantFile('acme', { roles: [{ name: 'r', assignable: false, permit: permit(size), forbid: [], at: AT }] })], identityRoles: [], version: 1 });
  expect(compiled(MAX_VALUES_PER_TENANT).diagnostics).toEqual([]);
  expect(compiled(MAX_VALUES_PER_TENANT + 1).diagnostics).toMatchObject([{ message: expect.stringContaining('exceed the limit of 20000') }]);
});

test('bindableRoles are the tenant’s own and the platform’s assignable ones, and nobody else’s', () => {
  const documents = [['defaults.yaml', defaultPolicy().content], ...['acme', 'globex'].map((t) => [t, readFileSync(`policies/examples/${t}.yaml`, 'utf8')])].map(([name, text]) => parsePolicyFile(name as string, text as string).document!);
  expect(bindableRoles(documents, 'acme')).toEqual(['analyst', 'auditor', 'developer', 'monitor', 'tenant-admin', 'viewer']);
  expect(bindableRoles(documents, 'globex')).toEqual(['auditor', 'developer', 'monitor', 'tenant-admin', 'viewer']);
  expect(bindableRoles(documents, '')).toContain('platform-admin');
});

test('whoCan lists exactly those whose requests are permitted, and explain says why the others are not', () => {
  const { snapshot } = checkPolicies({ files: [defaultPolicy(), ...['acme', 'globex'].map((t) => ({ name: `${t}.yaml`, content: readFileSync(`policies/examples/${t}.yaml`) }))], identityRoles: [{ tenant: 'acme', kind: 'user', name: 'tom', role: 'tenant-admin' }], version: 1, nowMs: 0 });
  const names = (action: Action, attributes: object, nowMs = 0): string[] => whoCan(snapshot!, action, resource(kindOf(action), attributes), nowMs).map((w) => `${w.tenant}/${w.kind}/${w.name} ${w.rule}`);
  expect(names('audit.read', { tenant: 'acme' })).toEqual(['acme/user/olga platform/auditor/permit/0', 'acme/user/tom platform/tenant-admin/permit/4']);
  expect(names('audit.read', { tenant: '' })).toEqual(['/system/admin platform/platform-admin/permit/3']);
  expect(names('object.get', { tenant: 'globex', label: 'published' })).toEqual(['acme/service/etl globex/grant/0', 'acme/user/* globex/grant/0', 'acme/user/olga globex/grant/0', 'acme/user/tom globex/grant/0', 'globex/service/* platform/developer/permit/1', 'globex/user/* platform/developer/permit/1']);
  expect(names('object.get', { tenant: 'globex', label: 'published' }, Date.UTC(2027, 0, 1)).filter((n) => n.startsWith('acme'))).toEqual([]);
  const why = (path: string, action: Action, attributes: object, nowMs = 0): string => explanationText(explain(snapshot!, { principal: principalFromSpiffeId(`spiffe://test/${path}`), action, resource: resource(kindOf(action), attributes), nowMs }));
  expect(why('tenant/acme/user/ana', 'task.submit', { tenant: 'acme', cpus: 8 })).toBe('acme/analyst/permit/2 does not match: cpus is 8, not lte 4');
  expect(why('tenant/acme/user/ana', 'actor.kill', { tenant: 'acme', detached: true })).toBe('denied by acme/analyst/forbid/0');
  expect(why('tenant/acme/user/ana', 'object.get', { tenant: 'globex', label: 'published' }, Date.UTC(2027, 0, 1))).toBe('the resource belongs to another tenant and globex/grant/0 does not match: it ended at 2027-01-01T00:00:00.000Z');
  expect(why('tenant/globex/user/bob', 'object.get', { tenant: 'acme' })).toBe('the resource belongs to another tenant and there is no grant of this action');
  expect(why('node/n1', 'object.get', { tenant: 'acme' })).toBe('the tenant wall stands between them');
  expect(why('tenant/initech/user/ivy', 'task.submit', { tenant: 'initech' })).toBe('no rule of its roles (platform/everyone) permits this action');
});

test('each action acts on one kind, which carries the attributes it needs', () => {
  expect([...KIND_OF_ACTION.keys()]).toEqual([...ACTIONS]);
  for (const action of ACTIONS) expect(KIND_OF_ACTION.get(action)).toBe(kindOf(action));
});

test('the shipped default policy checks, and its own tests pass', () => {
  const check = checkPolicies({ files: [defaultPolicy()], identityRoles: [], version: 1, nowMs: 0 });
  expect(checkText(check)).toBe('');
  expect(check.ok).toBe(true);
  expect(check.tests.length).toBeGreaterThan(20);
});
