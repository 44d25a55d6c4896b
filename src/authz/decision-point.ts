/**
 * The policy decision point: one snapshot, one answer per request, deny by default. It never throws and never waits; whatever goes wrong inside
 * is a denial with rule `error`. On the hot path it allocates nothing: decisions are interned, abilities are built once per snapshot.
 */
import { ACTIONS, type Action, type Decision, type DecisionRequest, type PolicyDecisionPoint, type Resource, type ResourceKind } from '../base/decision.ts';
import { BulkheadError } from '../base/errors.ts';
import type { Principal } from '../base/principal.ts';
import { CaslRules, type AdapterRule } from './casl-adapter.ts';
import { roleKey } from './core/compile.ts';
import { predicateOf, wellFormed } from './core/conditions.ts';
import { buildIndex, type EqualityIndex } from './core/rule-index.ts';
import { EMPTY_SNAPSHOT, type PolicySnapshot, type SnapshotGrant, type SnapshotRule } from './core/snapshot.ts';
import { GrantTable, wallSide, type WallSide } from './core/tenant-wall.ts';
import { ACTION_FACTS } from './core/vocabulary.ts';

/** Tenants and names come from verified identities, so they are bounded; this bounds the memory for them all the same. */
const MAX_TENANTS_CACHED = 10_000;

type Side = 'own' | 'cluster' | 'other';
const SIDE: Readonly<Record<WallSide, Side>> = { own: 'own', cluster: 'cluster', governed: 'other', 'needs-grant': 'other', closed: 'other' };

interface RankedRule {
  readonly rule: SnapshotRule;
  readonly order: number;
  readonly decision: Decision;
}

/** Some rules for one action and kind; CASL is loaded with them when a request first gets here. */
class Bucket {
  readonly #action: Action;
  readonly #kind: ResourceKind;
  #rules: readonly AdapterRule[];
  #casl: CaslRules | undefined;

  constructor(action: Action, kind: ResourceKind, rules: readonly AdapterRule[]) {
    this.#action = action;
    this.#kind = kind;
    this.#rules = rules;
  }

  determining(resource: Resource): AdapterRule | undefined {
    if (this.#casl === undefined) {
      this.#casl = new CaslRules(this.#action, this.#kind, this.#rules);
      this.#rules = [];
    }
    return this.#casl.determining(resource);
  }
}

/** What everyone with the same roles in the same tenant may do. */
class RoleSet {
  readonly #tenant: string;
  readonly #rules: readonly RankedRule[];
  readonly #wall: Decision;
  readonly #cells: Record<Side, (EqualityIndex<Bucket> | undefined)[]> = { own: [], cluster: [], other: [] };

  constructor(tenant: string, rules: readonly RankedRule[], wall: Decision) {
    this.#tenant = tenant;
    this.#rules = rules;
    this.#wall = wall;
    for (const side of ['own', 'cluster', 'other'] as const) this.#cells[side] = new Array<undefined>(ACTIONS.length).fill(undefined);
  }

  cell(side: Side, actionIndex: number, action: Action, kind: ResourceKind): EqualityIndex<Bucket> {
    const cells = this.#cells[side];
    return cells[actionIndex] ?? (cells[actionIndex] = this.#build(side, action, kind));
  }

  #build(side: Side, action: Action, kind: ResourceKind): EqualityIndex<Bucket> {
    const reach = side === 'cluster' ? 'cluster' : 'tenant';
    const rules = this.#rules
      .filter(({ rule }) => rule.actions.includes(action) && rule.kinds.includes(kind) && (rule.scope === 'any' || rule.scope === reach))
      .map(({ rule, order, decision }): AdapterRule => ({ inverted: rule.effect === 'forbid', conditions: rule.conditions, order, decision }));
    // The guard repeats the wall inside CASL, last of all: were the wall's code wrong, these rules still could not reach another tenant.
    const guard: AdapterRule | undefined = side === 'other' ? undefined
      : { inverted: true, conditions: [{ attribute: 'tenant', operator: 'ne', value: side === 'own' ? this.#tenant : '' }], order: Infinity, decision: this.#wall };
    return buildIndex(rules, (some) => new Bucket(action, kind, guard === undefined ? some : [...some, guard]));
  }
}

/** Role sets of one tenant's principals (or of nodes and system components, for ''). */
interface TenantRoles {
  readonly named: ReadonlyMap<string, ReadonlyMap<string, RoleSet>>;
  readonly others: ReadonlyMap<string, RoleSet>;
}

class SnapshotDecisionPoint implements PolicyDecisionPoint {
  readonly version: number;
  readonly #byRole = new Map<string, RankedRule[]>();
  readonly #membersOfTenant = new Map<string, { kind: string; name: string; role: string }[]>();
  readonly #tenants = new Map<string, TenantRoles>();
  readonly #grants: GrantTable;
  readonly #grantDecisions: ReadonlyMap<SnapshotGrant, Decision>;
  readonly #wall: Decision;
  readonly #defaultDeny: Decision;
  readonly #error: Decision;

  constructor(snapshot: PolicySnapshot) {
    const version = (this.version = snapshot.version);
    const decision = (allow: boolean, rule: string): Decision => Object.freeze({ allow, rule, policyVersion: version });
    this.#wall = decision(false, 'wall');
    this.#defaultDeny = decision(false, 'default-deny');
    this.#error = decision(false, 'error');
    snapshot.rules.forEach((rule, order) => {
      // Now rather than at the first request: a snapshot with a rule that cannot be evaluated must not come into force.
      if (rule.conditions.length > 0) predicateOf(rule.conditions);
      const key = roleKey(rule.tenant, rule.role);
      const ranked = { rule, order, decision: decision(rule.effect === 'permit', rule.id) };
      const list = this.#byRole.get(key);
      if (list === undefined) this.#byRole.set(key, [ranked]);
      else list.push(ranked);
    });
    for (const m of snapshot.members) {
      const entry = { kind: m.kind, name: m.name, role: roleKey(m.roleTenant, m.role) };
      const list = this.#membersOfTenant.get(m.tenant);
      if (list === undefined) this.#membersOfTenant.set(m.tenant, [entry]);
      else list.push(entry);
    }
    this.#grants = new GrantTable(snapshot.grants);
    this.#grantDecisions = new Map(snapshot.grants.map((grant) => [grant, decision(true, grant.id)]));
  }

  decide(request: DecisionRequest): Decision {
    try {
      return this.#decide(request);
    } catch {
      return this.#error;
    }
  }

  #decide({ principal, action, resource, nowMs }: DecisionRequest): Decision {
    const facts = ACTION_FACTS.get(action);
    if (facts === undefined || resource.kind !== facts.kind || !wellFormed(resource.attributes) || !Number.isFinite(nowMs)) return this.#error;
    const roles = this.#roleSetOf(principal);
    if (roles === undefined) return this.#defaultDeny;
    const side = wallSide(principal, action, resource.attributes.tenant);
    let granted: Decision | undefined;
    if (side === 'closed') return this.#wall;
    if (side === 'needs-grant') {
      const grant = this.#grants.find(principal, action, resource, nowMs);
      granted = grant === undefined ? undefined : this.#grantDecisions.get(grant);
      if (granted === undefined) return this.#wall;
    }
    const index = roles.cell(SIDE[side], facts.index, action, facts.kind);
    let last = index.unkeyed === undefined ? undefined : index.unkeyed.determining(resource);
    const { keyed } = index;
    for (let i = 0; i < keyed.length; i++) {
      const { attribute, buckets } = keyed[i] as (typeof keyed)[number];
      const bucket = buckets.get(resource.attributes[attribute]);
      if (bucket === undefined) continue;
      const found = bucket.determining(resource);
      if (found !== undefined && (last === undefined || found.order > last.order)) last = found;
    }
    if (last === undefined) return this.#defaultDeny;
    return last.inverted || granted === undefined ? last.decision : granted;
  }

  /** Undefined: a job without a known submitter, who has no role. Throws for a principal that cannot exist. */
  #roleSetOf(principal: Principal): RoleSet | undefined {
    let { kind, name }: { kind: string; name: string } = principal;
    let tenant: string;
    if (kind === 'node' || kind === 'system') {
      if (principal.tenant !== undefined) throw new BulkheadError('INTERNAL', 'a node or system principal has a tenant');
      tenant = '';
    } else if (kind === 'user' || kind === 'service' || kind === 'job') {
      if (typeof principal.tenant !== 'string' || principal.tenant === '' || principal.tenant === '*') throw new BulkheadError('INTERNAL', 'a principal has no tenant');
      tenant = principal.tenant;
      if (kind === 'job') {
        if (principal.submitter === undefined) return undefined;
        ({ kind, name } = principal.submitter);
        if (kind !== 'user' && kind !== 'service') throw new BulkheadError('INTERNAL', 'a job was submitted by neither user nor service');
      }
    } else throw new BulkheadError('INTERNAL', 'a principal is of no known kind');
    const roles = this.#tenants.get(tenant) ?? this.#loadTenant(tenant);
    return roles.named.get(kind)?.get(name) ?? roles.others.get(kind);
  }

  #loadTenant(tenant: string): TenantRoles {
    const members = [...(tenant === '' ? [] : (this.#membersOfTenant.get('*') ?? [])), ...(this.#membersOfTenant.get(tenant) ?? [])];
    const interned = new Map<string, RoleSet>();
    const setOf = (roles: ReadonlySet<string>): RoleSet => {
      const key = [...roles].sort().join('\u0000');
      let set = interned.get(key);
      if (set === undefined) {
        const rules = [...roles].flatMap((role) => this.#byRole.get(role) ?? []).sort((a, b) => a.order - b.order);
        interned.set(key, (set = new RoleSet(tenant, rules, this.#wall)));
      }
      return set;
    };
    const named = new Map<string, Map<string, RoleSet>>();
    const others = new Map<string, RoleSet>();
    for (const kind of tenant === '' ? ['node', 'system'] : ['user', 'service']) {
      const everyone = new Set(members.filter((m) => m.kind === kind && m.name === '*').map((m) => m.role));
      const rolesOf = new Map<string, Set<string>>();
      for (const m of members) {
        if (m.kind !== kind || m.name === '*') continue;
        let roles = rolesOf.get(m.name);
        if (roles === undefined) rolesOf.set(m.name, (roles = new Set(everyone)));
        roles.add(m.role);
      }
      others.set(kind, setOf(everyone));
      named.set(kind, new Map([...rolesOf].map(([name, roles]) => [name, setOf(roles)])));
    }
    if (this.#tenants.size >= MAX_TENANTS_CACHED) this.#tenants.clear();
    const loaded = { named, others };
    this.#tenants.set(tenant, loaded);
    return loaded;
  }
}

/** Decides by one snapshot for ever. Throws INTERNAL for a snapshot that cannot be evaluated (neither `compilePolicies` nor `parseSnapshot` makes one). */
export function createDecisionPoint(snapshot: PolicySnapshot): PolicyDecisionPoint {
  return new SnapshotDecisionPoint(snapshot);
}

/** A decision point whose snapshot is replaced whole, between two decisions; before the first one it denies everything. */
export class LiveDecisionPoint implements PolicyDecisionPoint {
  #snapshot: PolicySnapshot;
  #current: PolicyDecisionPoint;

  constructor(snapshot: PolicySnapshot = EMPTY_SNAPSHOT) {
    this.#snapshot = snapshot;
    this.#current = createDecisionPoint(snapshot);
  }

  get version(): number {
    return this.#current.version;
  }

  get snapshot(): PolicySnapshot {
    return this.#snapshot;
  }

  decide(request: DecisionRequest): Decision {
    return this.#current.decide(request);
  }

  /**
   * Puts a newer snapshot in force and returns true; an older or equal version changes nothing and returns false, so that snapshots arriving
   * out of order cannot bring back a right that was taken away. (A rollback is a new version with old content.)
   */
  swap(snapshot: PolicySnapshot): boolean {
    if (!(snapshot.version > this.version)) return false;
    const next = createDecisionPoint(snapshot);
    this.#snapshot = snapshot;
    this.#current = next;
    return true;
  }
}
