/**
 * The second decider: docs/adr/0004-authorisation.md read aloud, one rule after the other, with no index, no cache, no CASL and nothing from
 * src/authz but the type of a parsed file. Slow on purpose. Where it and the decision point differ, one of them is wrong.
 */
import type { DecisionRequest, ResourceAttributes } from '../../src/base/decision.ts';
import type { Condition, PolicyDocument, RuleDocument } from '../../src/authz/core/policy-schema.ts';

export interface NaivePolicy {
  readonly files: readonly { readonly name: string; readonly document: PolicyDocument }[];
  readonly identityRoles: readonly { readonly tenant: string; readonly kind: string; readonly name: string; readonly role: string }[];
}

const GRANTABLE = 'object.get object.wait object.read object.list actor.call actor.find actor.read actor.list task.read task.list job.read job.list log.read audit.read audit.export'.split(' ');
const GOVERNANCE = /^(tenant\..*|identity\..*|policy\..*|pki\..*|node\.(list|read)|worker\..*|session\.read|audit\.stats|cluster\.(read|doctor)|metrics\.read)$/;

function holds(c: Condition, a: ResourceAttributes): boolean {
  const left = a[c.attribute];
  const right = c.value;
  switch (c.operator) {
    case 'eq': return left === right;
    case 'ne': return left !== right;
    case 'in': return (right as unknown[]).some((v) => v === left);
    case 'nin': return !(right as unknown[]).some((v) => v === left);
    case 'lt': return left < right;
    case 'lte': return left <= right;
    case 'gt': return left > right;
    case 'gte': return left >= right;
  }
}

export function naiveDecide(policy: NaivePolicy, { principal, action, resource, nowMs }: DecisionRequest): { allow: boolean; rule: string } {
  const deny = (rule: string): { allow: boolean; rule: string } => ({ allow: false, rule });
  const a = resource.attributes;

  // An action acts on one kind. A principal that cannot exist is an error.
  const first = action.split('.')[0] ?? '';
  if (resource.kind !== (first === 'peer' ? 'node' : first)) return deny('error');
  const inTenant = principal.kind === 'user' || principal.kind === 'service' || principal.kind === 'job';
  if (inTenant !== (principal.tenant !== undefined)) return deny('error');

  // A job is its submitter.
  const who = principal.kind === 'job' ? principal.submitter : principal;
  if (who === undefined) return deny('default-deny');
  const tenant: string = principal.tenant ?? '';

  // Canonical order: the platform, then tenants by name; files by name; rules as they stand.
  const files = [...policy.files].sort((x, y) => (x.document.tenant + '\u0000' + x.name < y.document.tenant + '\u0000' + y.name ? -1 : 1));
  const sees = (rule: { actions: readonly string[]; kinds: readonly string[]; when: readonly Condition[] }): boolean =>
    rule.actions.includes(action) && rule.kinds.includes(resource.kind) && rule.when.every((c) => holds(c, a));

  // The wall.
  let grant: string | undefined;
  const foreign = a.tenant !== '' && a.tenant !== tenant;
  if (foreign && principal.kind === 'node') return deny('wall');
  if (foreign && !(principal.kind === 'system' && GOVERNANCE.test(action))) {
    let n = 0;
    for (const { document } of files.filter((f) => f.document.tenant === a.tenant)) {
      for (const g of document.grants) {
        const id = `${a.tenant}/grant/${n++}`;
        const forMe = g.to.kind === 'system' ? principal.kind === 'system' && principal.name === g.to.name
          : inTenant && g.to.tenant === tenant && (g.to.kind === 'any' || (g.to.kind === who.kind && g.to.name === who.name));
        if (forMe && nowMs < g.untilMs && GRANTABLE.includes(action) && sees(g)) grant = id;
      }
    }
    if (grant === undefined) return deny('wall');
  }

  // Its roles: bindings of its tenant, bindings of the platform, roles its identity carries.
  const has = (author: string, role: { name: string; assignable: boolean }): boolean => {
    const owns = (t: string, name: string): boolean => policy.files.some((f) => f.document.tenant === t && f.document.roles.some((r) => r.name === name));
    const meant = (by: string): boolean => role.name !== '' && (author === by || (author === '' && !owns(by, role.name) && role.assignable));
    const bound = files.some(({ document: d }) => (d.tenant === '' || d.tenant === tenant) && meant(d.tenant) &&
      d.bindings.some((b) => b.role === role.name && b.to.some((t) => t.kind === who.kind && (t.name === '*' || t.name === who.name))));
    return bound || (meant(tenant) && policy.identityRoles.some((i) => i.tenant === tenant && i.kind === who.kind && i.name === who.name && i.role === role.name));
  };

  const matching: { permit: string[]; forbid: string[] } = { permit: [], forbid: [] };
  for (const { document: d } of files) {
    for (const role of d.roles.filter((r) => has(d.tenant, r))) {
      for (const effect of ['permit', 'forbid'] as const) {
        role[effect].forEach((rule: RuleDocument, i) => {
          const scope = d.tenant === '' ? rule.scope : effect === 'permit' ? 'tenant' : 'any';
          if (scope !== 'any' && (scope === 'cluster') !== (a.tenant === '')) return;
          if (sees(rule)) matching[effect].push(`${d.tenant === '' ? 'platform' : d.tenant}/${role.name}/${effect}/${i}`);
        });
      }
    }
  }

  // Forbid beats permit; the last one of a kind determines; nothing means no.
  const forbidden = matching.forbid.at(-1);
  if (forbidden !== undefined) return deny(forbidden);
  const permitted = matching.permit.at(-1);
  return permitted === undefined ? deny('default-deny') : { allow: true, rule: grant ?? permitted };
}
