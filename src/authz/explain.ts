/**
 * Why a decision came out as it did, and who could do a thing: for people (`policy explain`, `policy who-can`, failed policy tests). Reads the snapshot
 * rule by rule without the index, so that what it says is independent of the code that decides; it never decides anything itself. It quotes policies, so it
 * is for their authors and the administrator, never part of the answer to a caller who was denied.
 */
import type { Action, Decision, DecisionRequest, Resource } from '../base/decision.ts';
import type { TenantName } from '../base/ids.ts';
import type { Principal } from '../base/principal.ts';
import { createDecisionPoint } from './decision-point.ts';
import { predicateOf } from './core/conditions.ts';
import { roleLabel } from './core/compile.ts';
import type { Condition } from './core/policy-schema.ts';
import type { PolicySnapshot, SnapshotMember } from './core/snapshot.ts';
import { namesPrincipal, wallSide, type WallSide } from './core/tenant-wall.ts';
import { KIND_OF_ACTION } from './core/vocabulary.ts';

export interface ExplainedRule {
  readonly id: string;
  readonly effect: 'permit' | 'forbid' | 'grant';
  readonly matched: boolean;
  /** What did not hold, in words; empty when it matched. */
  readonly unmet: readonly string[];
}

export interface Explanation {
  readonly decision: Decision;
  readonly wall: WallSide;
  /** `platform/developer`, `acme/analyst`. */
  readonly roles: readonly string[];
  /** Rules of these roles for this action and kind, in the order of the snapshot; the last match determines. */
  readonly rules: readonly ExplainedRule[];
  /** The owner's grants of this action, where the wall asks for one. */
  readonly grants: readonly ExplainedRule[];
}

function unmet(conditions: readonly Condition[], resource: Resource): string[] {
  return conditions
    .filter((c) => !predicateOf([c])(resource.attributes))
    .map((c) => `${c.attribute} is ${JSON.stringify(resource.attributes[c.attribute])}, not ${c.operator} ${JSON.stringify(c.value).slice(0, 200)}`);
}

function hasMember(m: SnapshotMember, tenant: string, kind: string, name: string): boolean {
  return m.kind === kind && (m.name === '*' || m.name === name) && (m.tenant === tenant || (m.tenant === '*' && tenant !== ''));
}

function membershipsOf(snapshot: PolicySnapshot, principal: Principal): readonly SnapshotMember[] {
  const who = principal.kind === 'job' ? principal.submitter : principal;
  return who === undefined ? [] : snapshot.members.filter((m) => hasMember(m, principal.tenant ?? '', who.kind, who.name));
}

/** The roles a principal has (`platform/developer`, `acme/analyst`), sorted; a job has its submitter's. */
export function rolesOf(snapshot: PolicySnapshot, principal: Principal): readonly string[] {
  return [...new Set(membershipsOf(snapshot, principal).map((m) => roleLabel(m.roleTenant, m.role)))].sort();
}

export function explain(snapshot: PolicySnapshot, request: DecisionRequest): Explanation {
  const { principal, action, resource, nowMs } = request;
  const kind = KIND_OF_ACTION.get(action);
  const wall = wallSide(principal, action, resource.attributes.tenant);
  const memberships = membershipsOf(snapshot, principal);
  const reach = resource.attributes.tenant === '' ? 'cluster' : 'tenant';
  const concerns = (r: { readonly actions: readonly string[]; readonly kinds: readonly string[] }): boolean => r.actions.includes(action) && kind !== undefined && resource.kind === kind && r.kinds.includes(kind);
  const rules = snapshot.rules
    .filter((r) => memberships.some((m) => m.roleTenant === r.tenant && m.role === r.role) && concerns(r))
    .map((r): ExplainedRule => {
      const why = [...(r.scope === 'any' || r.scope === reach ? [] : [`it reaches resources of ${r.scope === 'cluster' ? 'the cluster' : 'tenants'} only`]), ...unmet(r.conditions, resource)];
      return { id: r.id, effect: r.effect, matched: why.length === 0, unmet: why };
    });
  const grants = wall !== 'needs-grant' ? [] : snapshot.grants
    .filter((g) => g.tenant === resource.attributes.tenant && concerns(g))
    .map((g): ExplainedRule => {
      const why = [
        ...(namesPrincipal(g.to, principal) ? [] : ['it is for somebody else']),
        ...(nowMs < g.untilMs ? [] : [`it ended at ${new Date(g.untilMs).toISOString()}`]),
        ...unmet(g.conditions, resource),
      ];
      return { id: g.id, effect: 'grant', matched: why.length === 0, unmet: why };
    });
  return { decision: createDecisionPoint(snapshot).decide(request), wall, roles: rolesOf(snapshot, principal), rules, grants };
}

/** One line for people: what determined and, after a denial by default, what came nearest. */
export function explanationText(e: Explanation): string {
  if (e.decision.rule === 'wall') return e.wall === 'needs-grant' ? `the resource belongs to another tenant and ${nearest(e.grants, 'no grant of it')}` : 'the tenant wall stands between them';
  if (e.decision.rule !== 'default-deny') return `${e.decision.allow ? 'permitted' : 'denied'} by ${e.decision.rule}`;
  if (e.roles.length === 0) return 'the principal has no role';
  return nearest(e.rules.filter((r) => r.effect === 'permit'), `no rule of its roles (${e.roles.join(', ')}) permits this action`);
}

function nearest(rules: readonly ExplainedRule[], none: string): string {
  const close = [...rules].sort((a, b) => a.unmet.length - b.unmet.length)[0];
  return close === undefined ? none.startsWith('no grant') ? 'there is no grant of this action' : none : `${close.id} does not match: ${close.unmet.join('; ')}`;
}

export interface WhoCan {
  readonly tenant: string;
  readonly kind: SnapshotMember['kind'];
  /** `*`: everyone of this kind who is not listed by name. */
  readonly name: string;
  readonly allow: boolean;
  readonly rule: string;
}

/** Everyone who may do this, by name where policy names them; jobs act for their submitters and are not listed. */
export function whoCan(snapshot: PolicySnapshot, action: Action, resource: Resource, nowMs: number): WhoCan[] {
  const tenants = new Set([resource.attributes.tenant, ...snapshot.members.map((m) => m.tenant), ...snapshot.grants.map((g) => g.to.tenant)].filter((t) => t !== '' && t !== '*'));
  const people = new Map<string, Omit<WhoCan, 'allow' | 'rule'>>();
  const consider = (tenant: string, kind: WhoCan['kind'], name: string): unknown => people.set(`${tenant}\u0000${kind}\u0000${name}`, { tenant, kind, name });
  for (const tenant of tenants) for (const kind of ['user', 'service'] as const) consider(tenant, kind, '*');
  for (const kind of ['node', 'system'] as const) consider('', kind, '*');
  for (const m of snapshot.members) if (m.tenant !== '*') consider(m.tenant, m.kind, m.name);
  for (const { to } of snapshot.grants) if (to.kind !== 'any') consider(to.tenant, to.kind, to.name);
  const point = createDecisionPoint(snapshot);
  return [...people.values()]
    .map((who): WhoCan => {
      const principal = { spiffeId: '', kind: who.kind, tenant: who.tenant === '' ? undefined : (who.tenant as TenantName), name: who.name, submitter: undefined } as unknown as Principal;
      const { allow, rule } = point.decide({ principal, action, resource, nowMs });
      return { ...who, allow, rule };
    })
    .filter((w) => w.allow)
    .sort((a, b) => (`${a.tenant}/${a.kind}/${a.name}` < `${b.tenant}/${b.kind}/${b.name}` ? -1 : 1));
}
