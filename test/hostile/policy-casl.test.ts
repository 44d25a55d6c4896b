/** Every trap of CASL that DESIGN §6 lists: first that it is real (CASL by itself falls into it), then that ours does not. */
import { readdirSync, readFileSync } from 'node:fs';
import { createMongoAbility, type MongoAbility } from '@casl/ability';
import { describe, expect, test } from 'vitest';
import { CaslRules, type AdapterRule } from '../../src/authz/casl-adapter.ts';
import { compilePolicies } from '../../src/authz/core/compile.ts';
import type { Condition, RuleDocument } from '../../src/authz/core/policy-schema.ts';
import { parseSnapshot, snapshotText } from '../../src/authz/core/snapshot.ts';
import { createDecisionPoint } from '../../src/authz/decision-point.ts';
import { resource, type DecisionRequest, type Resource } from '../../src/base/decision.ts';
import { principalFromSpiffeId } from '../../src/base/principal.ts';

const at = { line: 1, column: 1 };
const ana = principalFromSpiffeId('spiffe://test/tenant/acme/user/ana');
const plain = (rules: unknown[]): MongoAbility => createMongoAbility(rules as never);
const decision = (allow: boolean, rule: string): AdapterRule['decision'] => ({ allow, rule, policyVersion: 1 });
const rule = (inverted: boolean, conditions: readonly Condition[], order = 0): AdapterRule => ({ inverted, conditions, order, decision: decision(!inverted, `r${order}`) });
const only = (label: string): Condition[] => [{ attribute: 'label', operator: 'eq', value: label }];

/** A decision point in which ana may get objects under `when`, and never those labelled 'secret'. */
function point(when: readonly Condition[]): ReturnType<typeof createDecisionPoint> {
  const of = (conditions: readonly Condition[]): RuleDocument => ({ actions: ['object.get'], kinds: ['object'], when: conditions, scope: 'any', at });
  const document = { version: 1 as const, tenant: 'acme', roles: [{ name: 'r', assignable: false, permit: [of(when)], forbid: [of(only('secret'))], at }], bindings: [{ role: 'r', to: [{ kind: 'user' as const, name: '*' }], at }], grants: [], tests: [] };
  return createDecisionPoint(compilePolicies({ files: [{ name: 'acme.yaml', document }], identityRoles: [], version: 1 }));
}

function ask(what: Resource, when: readonly Condition[] = only('published'), action: DecisionRequest['action'] = 'object.get'): string {
  return point(when).decide({ principal: ana, action, resource: what, nowMs: 0 }).rule;
}

const withAttributes = (attributes: object): Resource => ({ kind: 'object', attributes: Object.assign(Object.create(null), resource('object', { tenant: 'acme' }).attributes, attributes) });

describe('CASL traps', () => {
  test('asking with a type instead of an instance ignores conditions', () => {
    expect(plain([{ action: 'get', subject: 'object', conditions: { label: 'published' } }]).can('get', 'object')).toBe(true);
    const rules = new CaslRules('object.get', 'object', [rule(false, only('published'))]);
    for (const type of ['object', Object, class {}, undefined, null]) expect(() => rules.determining(type as never)).toThrow('without an instance');
    expect(ask('object' as never)).toBe('error');
    expect(rules.determining(resource('object', { label: 'draft' }))).toBeUndefined();
  });

  test('a condition that is undefined matches resources without the attribute', () => {
    expect(plain([{ action: 'get', subject: 'object', conditions: { owner: undefined } }]).can('get', { constructor: { modelName: 'object' } } as never)).toBe(true);
    const undefinedValue = [{ attribute: 'owner', operator: 'eq', value: undefined }] as unknown as Condition[];
    expect(() => new CaslRules('object.get', 'object', [rule(false, undefinedValue)]).determining(resource('object', {}))).toThrow('not of its type');
    expect(() => ask(resource('object', { tenant: 'acme' }), undefinedValue)).toThrow('not of its type');
    const broken = { format: 1 as const, version: 1, members: [], grants: [], rules: [{ id: 'x', tenant: 'acme', role: 'r', effect: 'forbid' as const, scope: 'any' as const, actions: ['object.get' as const], kinds: ['object' as const], conditions: undefinedValue }] };
    expect(() => createDecisionPoint(broken)).toThrow('not of its type');
    expect(() => parseSnapshot(broken)).toThrow('is not a string');
  });

  test('and after a JSON round trip it matches everything', () => {
    const tripped = JSON.parse(JSON.stringify([{ action: 'get', subject: 'object', conditions: { owner: undefined } }])) as unknown[];
    expect(plain(tripped).can('get', { owner: 'somebody else', constructor: { modelName: 'object' } } as never)).toBe(true);
    const snapshot = JSON.parse(snapshotText(compilePolicies({ files: [{ name: 'a', document: { version: 1, tenant: 'acme', roles: [{ name: 'r', assignable: false, permit: [{ actions: ['object.get'], kinds: ['object'], when: only('x'), scope: 'tenant', at }], forbid: [], at }], bindings: [], grants: [], tests: [] } }], identityRoles: [], version: 1 })));
    expect(parseSnapshot(snapshot).rules[0]?.conditions).toEqual(only('x'));
    for (const gone of ['conditions', 'effect', 'scope', 'kinds']) {
      const copy = structuredClone(snapshot);
      delete copy.rules[0][gone];
      expect(() => parseSnapshot(copy)).toThrow(/rules\[0\] must have exactly the fields/);
    }
    const copy = structuredClone(snapshot);
    delete copy.rules[0].conditions[0].value;
    expect(() => parseSnapshot(copy)).toThrow(/conditions\[0\] must have exactly the fields/);
  });

  test('a resource can choose its own subject type: __caslSubjectType__, constructor.modelName', () => {
    const ability = plain([{ action: 'get', subject: 'public' }]);
    expect(ability.can('get', JSON.parse('{"__caslSubjectType__":"public","label":"secret"}'))).toBe(true);
    expect(ability.can('get', JSON.parse('{"constructor":{"modelName":"public"},"label":"secret"}'))).toBe(true);
    for (const claim of [{ __caslSubjectType__: 'object' }, { constructor: { modelName: 'object' } }, { kind: 'object' }, { __typename: 'object' }]) {
      const rules = new CaslRules('object.get', 'object', [rule(false, [])]);
      expect(() => rules.determining({ ...claim, kind: 'task', attributes: withAttributes(claim).attributes } as never)).toThrow('without an instance');
      expect(ask({ ...withAttributes(claim), ...claim, kind: 'task' } as Resource, [{ attribute: 'label', operator: 'eq', value: 'published' }])).toBe('error');
      // With the claim inside the attributes, it is no attribute: the decision is as without it.
      expect(ask(withAttributes({ ...claim, label: 'published' }))).toBe('acme/r/permit/0');
      expect(ask(withAttributes({ ...claim, label: 'secret' }))).toBe('acme/r/forbid/0');
    }
  });

  test('the last rule wins: a permit after a forbid overrides it, so permits never come after forbids', () => {
    expect(plain([{ action: 'get', subject: 'object', inverted: true }, { action: 'get', subject: 'object' }]).can('get', 'object')).toBe(true);
    expect(ask(withAttributes({ label: 'secret' }), [{ attribute: 'label', operator: 'ne', value: 'x' }])).toBe('acme/r/forbid/0');
    const turned = { format: 1, version: 1, members: [], grants: [], rules: ['forbid', 'permit'].map((effect) => ({ id: effect, tenant: 'acme', role: 'r', effect, scope: 'tenant', actions: ['object.get'], kinds: ['object'], conditions: [] })) };
    expect(() => parseSnapshot(turned)).toThrow('a permit after a forbid');
  });

  test('$regex hangs, so there is none: not in conditions, not in snapshots', () => {
    expect(plain([{ action: 'get', subject: 'object', conditions: { name: { $regex: '^a+$' } } }]).can('get', { name: 'aaa', constructor: { modelName: 'object' } } as never)).toBe(true);
    for (const conditions of [[{ attribute: 'name', operator: '$regex', value: '(a+)+$' }], [{ attribute: 'name', operator: 'regex', value: '(a+)+$' }], { name: { $regex: '(a+)+$' } }, { $where: 'true' }, [{ attribute: '$or', operator: 'eq', value: 'x' }]]) {
      expect(() => ask(withAttributes({ name: `${'a'.repeat(64)}!` }), conditions as never)).toThrow(/cannot be evaluated|not a list/);
      const snapshot = { format: 1, version: 1, members: [], grants: [], rules: [{ id: 'x', tenant: 'acme', role: 'r', effect: 'permit', scope: 'tenant', actions: ['object.get'], kinds: ['object'], conditions }] };
      expect(() => parseSnapshot(snapshot)).toThrow('policy snapshot is not valid');
    }
    // A value that looks like a pattern is a value.
    expect(ask(withAttributes({ name: 'anything' }), [{ attribute: 'name', operator: 'eq', value: '.*' }])).toBe('default-deny');
  });

  test('an array attribute matches a scalar condition', () => {
    expect(plain([{ action: 'get', subject: 'object', conditions: { label: 'published' } }]).can('get', { label: ['secret', 'published'], constructor: { modelName: 'object' } } as never)).toBe(true);
    for (const label of [['published'], ['secret', 'published'], { 0: 'published' }, new String('published'), Symbol('published'), null, undefined, 1]) expect(ask(withAttributes({ label }))).toBe('error');
    for (const cpus of [[1], '1', Number.NaN, Infinity, 1n, null, undefined, true]) expect(ask(withAttributes({ label: 'published', cpus }))).toBe('error');
    for (const detached of [0, 1, 'false', null, undefined]) expect(ask(withAttributes({ label: 'published', detached }))).toBe('error');
  });

  test('$ne matches a missing attribute', () => {
    expect(plain([{ action: 'get', subject: 'object', conditions: { label: { $ne: 'secret' } } }]).can('get', { constructor: { modelName: 'object' } } as never)).toBe(true);
    const missing = withAttributes({});
    delete (missing.attributes as { label?: string }).label;
    for (const operator of ['ne', 'nin'] as const) expect(ask(missing, [{ attribute: 'label', operator, value: operator === 'ne' ? 'x' : ['x'] }])).toBe('error');
  });

  test('{} , manage and all are wildcards', () => {
    expect(plain([{ action: 'manage', subject: 'all' }]).can('destroy', 'world')).toBe(true);
    expect(plain([{ action: 'get', subject: 'object', conditions: {} }]).can('get', { label: 'secret', constructor: { modelName: 'object' } } as never)).toBe(true);
    const wild = new CaslRules('manage' as never, 'all' as never, [rule(false, [])]);
    expect(() => wild.determining(resource('object', {}))).toThrow('without an instance');
    for (const [action, kind] of [['manage', 'object'], ['object.get', 'all'], ['manage', 'all'], ['', 'object'], ['__proto__', 'object'], ['constructor', 'object']]) {
      expect(ask({ ...withAttributes({ label: 'published' }), kind: kind as never }, [], action as never)).toBe('error');
    }
    // Rules that name the wildcards reach nothing but the words.
    const rules = new CaslRules('object.get', 'object', [{ ...rule(false, []), conditions: {} as never }]);
    expect(() => rules.determining(resource('object', {}))).toThrow();
  });

  test('attributes with a prototype, and prototypes that somebody polluted, decide nothing', () => {
    expect(ask({ kind: 'object', attributes: { ...resource('object', { tenant: 'acme', label: 'published' }).attributes } })).toBe('error');
    expect(ask({ kind: 'object', attributes: Object.create(resource('object', { tenant: 'acme', label: 'published' }).attributes) as never })).toBe('error');
    const polluted = Object.prototype as unknown as Record<string, unknown>;
    const before = ask(withAttributes({ label: 'draft' }));
    try {
      Object.assign(polluted, { label: 'published', conditions: undefined, inverted: false, fields: ['x'], fieldMatcher: () => () => true, allow: true, tenant: 'acme', __caslSubjectType__: 'object', matchesAll: true });
      expect([before, ask(withAttributes({ label: 'draft' })), ask(withAttributes({ label: 'secret' })), ask(withAttributes({ tenant: 'globex', label: 'published' }))]).toEqual(['default-deny', 'default-deny', 'acme/r/forbid/0', 'wall']);
    } finally {
      for (const key of ['label', 'conditions', 'inverted', 'fields', 'fieldMatcher', 'allow', 'tenant', '__caslSubjectType__', 'matchesAll']) delete polluted[key];
    }
  });

  test('rulesToFields pollutes prototypes: @casl/ability/extra is imported nowhere, @casl/ability in one file', () => {
    const sources = readdirSync('src', { recursive: true, encoding: 'utf8' }).filter((f) => /\.(ts|js)$/.test(f) && !f.includes('node_modules'));
    const importing = sources.filter((f) => /(?:from|import|require)\s*\(?\s*['"]@casl\/ability/.test(readFileSync(`src/${f}`, 'utf8')));
    expect(importing).toEqual(['authz/casl-adapter.ts']);
    expect(sources.filter((f) => /['"]@casl\/ability\/extra/.test(readFileSync(`src/${f}`, 'utf8')))).toEqual([]);
  });

  test('the tenant guard inside CASL holds by itself', () => {
    const guarded = new CaslRules('object.get', 'object', [rule(false, [], 0), rule(true, [{ attribute: 'tenant', operator: 'ne', value: 'acme' }], Infinity)]);
    expect(guarded.determining(resource('object', { tenant: 'acme' }))?.order).toBe(0);
    for (const tenant of ['globex', '', 'acme ', 'ACME', '__proto__']) expect(guarded.determining(resource('object', { tenant }))?.order).toBe(Infinity);
  });
});
