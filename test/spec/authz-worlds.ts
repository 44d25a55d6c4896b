/** Small random worlds for the authorisation tests: few names, so that rules, grants and requests meet often. Valid by construction. */
import fc from 'fast-check';
import { ACTIONS, resource, type Action, type DecisionRequest, type ResourceKind } from '../../src/base/decision.ts';
import { principalFromSpiffeId, type Principal } from '../../src/base/principal.ts';
import type { IdentityRole, PolicySource } from '../../src/authz/core/compile.ts';
import type { BindingTarget, Condition, GrantDocument, Grantee, PolicyDocument, RoleDocument, RuleDocument } from '../../src/authz/core/policy-schema.ts';

export const AT = { line: 1, column: 1 } as const;
const TENANTS = ['acme', 'globex', 'initech'];
const NAMES = ['ana', 'bob', 'cleo'];
const BUSY: readonly Action[] = ['task.submit', 'object.get', 'object.get', 'object.get', 'actor.call', 'audit.read', 'tenant.read', 'identity.issue', 'policy.apply', 'node.sync', 'peer.exchange', 'cluster.read'];
const GRANTABLE: readonly Action[] = ['object.get', 'actor.call', 'audit.read'];
export const kindOf = (action: Action): ResourceKind => (action === 'peer.exchange' ? 'node' : (action.split('.')[0] as ResourceKind));

const texts = ['', 'a', 'b', 'c'];
const action = fc.oneof({ weight: 6, arbitrary: fc.constantFrom(...BUSY) }, { weight: 1, arbitrary: fc.constantFrom(...ACTIONS) });
const text = fc.constantFrom(...texts);
const number = fc.constantFrom(0, 0.5, 1, 2, 4);

const condition: fc.Arbitrary<Condition> = fc.oneof(
  fc.record({ attribute: fc.constantFrom('name' as const, 'function' as const, 'label' as const, 'owner' as const), operator: fc.constantFrom('eq' as const, 'ne' as const), value: text }),
  fc.record({ attribute: fc.constantFrom('name' as const, 'function' as const, 'code' as const, 'tenant' as const), operator: fc.constantFrom('in' as const, 'nin' as const), value: fc.array(fc.constantFrom(...texts, ...TENANTS), { minLength: 1, maxLength: 3 }) }),
  fc.record({ attribute: fc.constantFrom('cpus' as const, 'memory' as const), operator: fc.constantFrom('eq' as const, 'ne' as const, 'lt' as const, 'lte' as const, 'gt' as const, 'gte' as const), value: number }),
  fc.record({ attribute: fc.constant('detached' as const), operator: fc.constantFrom('eq' as const, 'ne' as const), value: fc.boolean() }),
);

const when = fc.oneof(fc.constant([]), fc.array(condition, { maxLength: 2 }));
const actions = fc.uniqueArray(action, { minLength: 2, maxLength: 6 });
/** Mostly the kinds of the actions, sometimes without one of them. */
const kindsFor = (list: readonly Action[]): ResourceKind[] => [...new Set(list.slice(0, list.length === 6 ? 5 : 6).map(kindOf))];

const rule: fc.Arbitrary<RuleDocument> = fc.record({ actions, when, scope: fc.constantFrom('tenant' as const, 'any' as const, 'cluster' as const, 'any' as const) }).map((r) => ({ ...r, kinds: kindsFor(r.actions), at: AT }));
const role = (names: readonly string[]): fc.Arbitrary<RoleDocument[]> =>
  fc.uniqueArray(fc.record({ name: fc.constantFrom(...names), assignable: fc.boolean(), permit: fc.array(rule, { maxLength: 5 }), forbid: fc.array(rule, { maxLength: 2 }), at: fc.constant(AT) }), { selector: (r) => r.name, maxLength: 3 });

const grantee: fc.Arbitrary<Grantee> = fc.oneof(
  fc.constantFrom(...TENANTS).map((tenant): Grantee => ({ tenant, kind: 'any', name: '' })),
  fc.record({ tenant: fc.constantFrom(...TENANTS), kind: fc.constantFrom('user' as const, 'service' as const), name: fc.constantFrom(...NAMES) }),
  fc.constant<Grantee>({ tenant: '', kind: 'system', name: 'admin' }),
);
const grant = (owner: string): fc.Arbitrary<GrantDocument> =>
  fc.record({ to: grantee.filter((g) => g.tenant !== owner), actions: fc.uniqueArray(fc.constantFrom(...GRANTABLE), { minLength: 1 }), when, untilMs: fc.constantFrom(50, 100, 150) })
    .map((g) => ({ ...g, kinds: kindsFor(g.actions), at: AT }));

const target = (platform: boolean): fc.Arbitrary<BindingTarget> =>
  platform
    ? fc.constantFrom<BindingTarget>({ kind: 'user', name: '*' }, { kind: 'service', name: '*' }, { kind: 'system', name: 'admin' }, { kind: 'node', name: '*' }, { kind: 'node', name: 'n1' }, { kind: 'system', name: '*' })
    : fc.record({ kind: fc.constantFrom('user' as const, 'service' as const), name: fc.constantFrom('*', ...NAMES) });

function file(tenant: string, name: string, roles: readonly RoleDocument[], bindable: readonly string[], bindingCount: number): fc.Arbitrary<PolicySource> {
  const bindings = bindable.length === 0 ? fc.constant([]) : fc.array(fc.record({ role: fc.constantFrom(...bindable), to: fc.array(target(tenant === ''), { minLength: 1, maxLength: 2 }), at: fc.constant(AT) }), { minLength: 1, maxLength: bindingCount });
  return fc.record({ bindings, grants: tenant === '' ? fc.constant([]) : fc.array(grant(tenant), { maxLength: 3 }) })
    .map(({ bindings, grants }) => ({ name, document: { version: 1, tenant, roles, bindings, grants, tests: [] } satisfies PolicyDocument }));
}

export interface World {
  readonly files: readonly PolicySource[];
  readonly identityRoles: readonly IdentityRole[];
}

export const world: fc.Arbitrary<World> = fc
  .record({ platform: role(['base', 'power', 'ops']), acme: role(['a1', 'a2', 'shared']), more: role(['a3']), globex: role(['g1', 'shared']) })
  .chain(({ platform, acme, more, globex }) => {
    const assignable = platform.filter((r) => r.assignable).map((r) => r.name);
    const names = (roles: readonly RoleDocument[]): string[] => roles.map((r) => r.name);
    return fc.record({
      files: fc.tuple(
        file('', 'platform.yaml', platform, names(platform), 4),
        file('acme', 'acme.yaml', acme, [...names(acme), ...names(more), ...assignable], 4),
        file('acme', 'acme-more.yaml', more, [...names(acme), ...names(more)], 2),
        file('globex', 'globex.yaml', globex, [...names(globex), ...assignable], 4),
      ),
      identityRoles: fc.array(
        fc.oneof(
          fc.record({ tenant: fc.constantFrom(...TENANTS), kind: fc.constantFrom('user' as const, 'service' as const), name: fc.constantFrom(...NAMES), role: fc.constantFrom('base', 'power', 'ops', 'a1', 'g1', 'shared', 'gone') }),
          fc.record({ tenant: fc.constant(''), kind: fc.constantFrom('system' as const, 'node' as const), name: fc.constantFrom('admin', 'n1'), role: fc.constantFrom('ops', 'base', 'a1') }),
        ),
        { maxLength: 4 },
      ),
    });
  });

const principal: fc.Arbitrary<Principal> = fc.oneof(
  { weight: 6, arbitrary: fc.tuple(fc.constantFrom(...TENANTS), fc.constantFrom('user', 'service'), fc.constantFrom(...NAMES, 'zoe')).map(([t, k, n]) => principalFromSpiffeId(`spiffe://test/tenant/${t}/${k}/${n}`)) },
  { weight: 2, arbitrary: fc.tuple(fc.constantFrom(...TENANTS), fc.option(fc.record({ kind: fc.constantFrom('user' as const, 'service' as const), name: fc.constantFrom(...NAMES) }), { nil: undefined })).map(([t, submitter]) => principalFromSpiffeId(`spiffe://test/tenant/${t}/job/job-1`, submitter)) },
  { weight: 2, arbitrary: fc.constantFrom('system/admin', 'system/gateway', 'node/n1', 'node/n2').map((path) => principalFromSpiffeId(`spiffe://test/${path}`)) },
);

const anyRequest: fc.Arbitrary<DecisionRequest> = fc
  .record({
    principal, action, nowMs: fc.constantFrom(0, 49, 50, 99, 100, 149, 150, 1000), otherKind: fc.integer({ min: 0, max: 40 }),
    attributes: fc.record({ tenant: fc.constantFrom('', 'acme', 'acme', 'globex', 'globex', 'initech', 'nobody'), name: text, owner: text, label: text, code: text, function: text, isolation: text, cpus: number, memory: number, detached: fc.boolean() }),
  })
  .map(({ principal, action, nowMs, otherKind, attributes }) => ({ principal, action, nowMs, resource: resource(otherKind === 0 ? 'session' : kindOf(action), attributes) }));

/** A neighbour asks for what grants can give. */
const crossing: fc.Arbitrary<DecisionRequest> = fc
  .record({ from: fc.constantFrom('tenant/globex/user/ana', 'tenant/globex/service/bob', 'tenant/acme/user/ana', 'tenant/acme/user/bob', 'system/admin'), action: fc.constantFrom(...GRANTABLE), nowMs: fc.constantFrom(0, 49, 50, 149), label: text, name: text })
  .map(({ from, action, nowMs, label, name }) => ({ principal: principalFromSpiffeId(`spiffe://test/${from}`), action, nowMs, resource: resource(kindOf(action), { tenant: from.includes('acme') ? 'globex' : 'acme', label, name }) }));

export const request: fc.Arbitrary<DecisionRequest> = fc.oneof({ weight: 4, arbitrary: anyRequest }, { weight: 1, arbitrary: crossing });
