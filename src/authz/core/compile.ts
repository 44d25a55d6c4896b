/**
 * Policy files to one snapshot. Pure and canonical: the order of files does not matter, equal input gives equal bytes. What spans files is
 * checked here (names of roles, limits); a mistake anywhere means no snapshot at all, so that a file that does not check changes nothing.
 */
import { BulkheadError } from '../../base/errors.ts';
import { MAX_RULES_PER_TENANT } from '../../base/limits.ts';
import { predicateOf } from './conditions.ts';
import { diagnosticText, type Condition, type Diagnostic, type PolicyDocument, type Position, type RuleDocument } from './policy-schema.ts';
import { worstScan } from './rule-index.ts';
import { compareText, type PolicySnapshot, type SnapshotGrant, type SnapshotMember, type SnapshotRule } from './snapshot.ts';
import { GRANTABLE_ACTIONS, KIND_OF_ACTION } from './vocabulary.ts';

export interface PolicySource {
  /** Shown in errors and used to order several files of one tenant. */
  readonly name: string;
  readonly document: PolicyDocument;
}

/** A role that an issued identity carries (`identity issue --role`). `tenant` is '' for nodes and system components. */
export interface IdentityRole {
  readonly tenant: string;
  readonly kind: 'user' | 'service' | 'node' | 'system';
  readonly name: string;
  readonly role: string;
}

export interface CompileInput {
  readonly files: readonly PolicySource[];
  readonly identityRoles: readonly IdentityRole[];
  readonly version: number;
}

/** Prefix of the platform's rule ids; so no tenant of this name can have a file. */
export const PLATFORM = 'platform';

/**
 * Rules of one author that a single request may have to be compared with, after the index. It keeps a tenant's file from slowing
 * the decisions of a node that others share: 128 comparisons take less than 5 µs.
 */
export const MAX_SCANNED_RULES = 128;

/** Values in all conditions of one author: what a node has to index when its principals call. */
export const MAX_VALUES_PER_TENANT = 20_000;

const ZERO: Position = { line: 1, column: 1 };

/** All findings, or the snapshot when there is no error among them. */
export function compileOrExplain({ files, identityRoles, version }: CompileInput): { snapshot: PolicySnapshot | undefined; diagnostics: Diagnostic[] } {
  const diagnostics: Diagnostic[] = [];
  const error = (file: string, at: Position, message: string): void => {
    diagnostics.push({ file, ...at, severity: 'error', message });
  };
  const sources = [...files].sort((a, b) => compareText(a.document.tenant, b.document.tenant) || compareText(a.name, b.name));
  const rules: SnapshotRule[] = [];
  const grants: SnapshotGrant[] = [];
  const members: SnapshotMember[] = [];
  /** role key -> may others than its author use it. */
  const roles = new Map<string, boolean>();
  const grantCount = new Map<string, number>();

  sources.forEach(({ name: file, document }, i) => {
    if (sources[i - 1]?.name === file && sources[i - 1]?.document.tenant === document.tenant) error(file, ZERO, 'this file was given twice');
    const author = document.tenant;
    if (author === PLATFORM) error(file, ZERO, `the tenant name '${PLATFORM}' is reserved: rule ids of platform policies begin with it`);
    for (const role of document.roles) {
      const key = roleKey(author, role.name);
      if (roles.has(key)) error(file, role.at, `role '${role.name}' is already defined ${author === '' ? 'by the platform' : 'in this or another file of the tenant'}; a role has one definition`);
      else if (author !== '' && roles.has(roleKey('', role.name))) error(file, role.at, `role '${role.name}' is a role of the platform; choose another name`);
      roles.set(key, role.assignable);
      role.permit.forEach((r, n) => rules.push(ruleOf(author, role.name, 'permit', n, r)));
      role.forbid.forEach((r, n) => rules.push(ruleOf(author, role.name, 'forbid', n, r)));
    }
    for (const grant of document.grants) {
      const n = grantCount.get(author) ?? 0;
      grantCount.set(author, n + 1);
      if (author === '') error(file, grant.at, "a platform policy cannot grant: only a resource's own tenant can");
      if (grant.to.tenant === author && grant.to.kind !== 'system') error(file, grant.at, 'a grant to its own tenant does nothing; bind a role instead');
      for (const action of grant.actions) if (!GRANTABLE_ACTIONS.has(action)) error(file, grant.at, `'${action}' cannot be granted`);
      grants.push({ id: `${author}/grant/${n}`, tenant: author, to: { tenant: grant.to.tenant, kind: grant.to.kind, name: grant.to.name }, actions: unique(grant.actions), kinds: unique(grant.kinds), conditions: canonical(grant.when), untilMs: grant.untilMs });
    }
  });

  // Bindings after all roles are known. A tenant's binding reaches its own principals and nobody else's, whatever it says.
  for (const { name: file, document } of sources) {
    const author = document.tenant;
    for (const binding of document.bindings) {
      const own = roles.has(roleKey(author, binding.role));
      const assignable = roles.get(roleKey('', binding.role));
      if (!own && assignable !== true) {
        error(file, binding.at, assignable === false ? `role '${binding.role}' of the platform is not assignable by tenants` : `role '${binding.role}' does not exist; ${known(roles, author)}`);
        continue;
      }
      for (const to of binding.to) {
        const cluster = to.kind === 'node' || to.kind === 'system';
        if (author !== '' && cluster) error(file, binding.at, `a tenant cannot bind ${to.kind}/${to.name}: only platform policies name nodes and system components`);
        else if (author === '' && !cluster && to.name !== '*') error(file, binding.at, `a platform policy cannot bind ${to.kind}/${to.name}, which would mean one in every tenant; write ${to.kind}/* or bind it in the tenant's file`);
        else members.push({ tenant: cluster ? '' : author === '' ? '*' : author, kind: to.kind, name: to.name, roleTenant: own ? author : '', role: binding.role });
      }
    }
  }
  for (const { tenant, kind, name, role } of identityRoles) {
    // An identity may outlive the role it was issued with; then it simply has one role less.
    const own = roles.has(roleKey(tenant, role));
    if (!own && (tenant === '' || roles.get(roleKey('', role)) !== true)) continue;
    if ((kind === 'node' || kind === 'system') !== (tenant === '') || name === '*' || tenant === '*') continue;
    members.push({ tenant, kind, name, roleTenant: own ? tenant : '', role });
  }

  checkLimits(rules, grants, sources, error);
  if (diagnostics.some((d) => d.severity === 'error')) return { snapshot: undefined, diagnostics };
  rules.sort((a, b) => Number(a.effect === 'forbid') - Number(b.effect === 'forbid'));
  members.sort((a, b) => compareText(memberKey(a), memberKey(b)));
  const distinct = members.filter((m, i) => i === 0 || memberKey(m) !== memberKey(members[i - 1] as SnapshotMember));
  return { snapshot: deepFreeze({ format: 1, version, rules, members: distinct, grants }), diagnostics };
}

/** As `compileOrExplain`, for files that have been checked: throws INVALID_ARGUMENT with every error, one a line. */
export function compilePolicies(input: CompileInput): PolicySnapshot {
  const { snapshot, diagnostics } = compileOrExplain(input);
  if (snapshot === undefined) throw new BulkheadError('INVALID_ARGUMENT', diagnostics.map(diagnosticText).join('\n'));
  return snapshot;
}

/** Roles that principals of this tenant can be bound to and issued with: its own and the platform's assignable ones, sorted. For `''`: the platform's. */
export function bindableRoles(documents: readonly PolicyDocument[], tenant: string): string[] {
  const roles = documents.flatMap((d) => d.roles.filter((r) => d.tenant === tenant || (d.tenant === '' && r.assignable)).map((r) => r.name));
  return [...new Set(roles)].sort(compareText);
}

/** Unique for author and role, also where a tenant is called 'platform'. */
export function roleKey(author: string, role: string): string {
  return `${author}/${role}`;
}

/** For people and rule ids. */
export function roleLabel(author: string, role: string): string {
  return `${author === '' ? PLATFORM : author}/${role}`;
}

function memberKey(m: SnapshotMember): string {
  return [m.tenant, m.kind, m.name, m.roleTenant, m.role].join('\u0000');
}

function ruleOf(tenant: string, role: string, effect: 'permit' | 'forbid', n: number, rule: RuleDocument): SnapshotRule {
  // What a tenant writes about scope does not count: its permits end at its wall, its forbids hold for its principals everywhere.
  const scope = tenant === '' ? rule.scope : effect === 'permit' ? 'tenant' : 'any';
  return { id: `${roleLabel(tenant, role)}/${effect}/${n}`, tenant, role, effect, scope, actions: unique(rule.actions), kinds: unique(rule.kinds), conditions: canonical(rule.when) };
}

function unique<T extends string>(items: readonly T[]): T[] {
  return [...new Set(items)].sort(compareText);
}

/** Sorted, copied, and proved to be evaluable: a forbid whose condition cannot be evaluated would forbid nothing. */
function canonical(conditions: readonly Condition[]): Condition[] {
  if (!Array.isArray(conditions)) throw new BulkheadError('INTERNAL', 'conditions of a policy rule are not a list');
  if (conditions.length > 0) predicateOf(conditions);
  return conditions
    .map(({ attribute, operator, value }) => ({ attribute, operator, value: Array.isArray(value) ? [...value] : value }))
    .sort((a, b) => compareText(a.attribute, b.attribute) || compareText(a.operator, b.operator));
}

function known(roles: ReadonlyMap<string, boolean>, author: string): string {
  const names = [...roles].filter(([key, assignable]) => key.startsWith(`${author}/`) || (assignable && key.startsWith('/'))).map(([key]) => key.slice(key.indexOf('/') + 1));
  return names.length === 0 ? 'no role is defined' : `roles that can be bound here: ${[...new Set(names)].sort(compareText).slice(0, 20).join(', ')}`;
}

function checkLimits(rules: readonly SnapshotRule[], grants: readonly SnapshotGrant[], sources: readonly PolicySource[], error: (file: string, at: Position, message: string) => void): void {
  const authors = new Map<string, { rules: SnapshotRule[]; grants: SnapshotGrant[] }>(sources.map((s) => [s.document.tenant, { rules: [], grants: [] }]));
  for (const r of rules) authors.get(r.tenant)?.rules.push(r);
  for (const g of grants) authors.get(g.tenant)?.grants.push(g);
  for (const [author, own] of authors) {
    const file = sources.find((s) => s.document.tenant === author)?.name ?? '';
    const count = own.rules.length + own.grants.length;
    let values = 0;
    for (const r of [...own.rules, ...own.grants]) for (const c of r.conditions) values += Array.isArray(c.value) ? c.value.length : 1;
    if (values > MAX_VALUES_PER_TENANT) error(file, ZERO, `${values} values in conditions exceed the limit of ${MAX_VALUES_PER_TENANT} of one tenant; label resources, and compare the label`);
    else if (count > MAX_RULES_PER_TENANT) error(file, ZERO, `${count} rules and grants exceed the limit of ${MAX_RULES_PER_TENANT} of one tenant`);
    else for (const list of [own.rules, own.grants]) {
      const byAction = new Map<string, (SnapshotRule | SnapshotGrant)[]>();
      for (const r of list) {
        for (const a of r.actions) {
          if (!r.kinds.includes(KIND_OF_ACTION.get(a) as never)) continue;
          const some = byAction.get(a);
          if (some === undefined) byAction.set(a, [r]);
          else some.push(r);
        }
      }
      for (const [action, some] of byAction) {
        const scan = some.length <= MAX_SCANNED_RULES ? 0 : worstScan(some);
        if (scan > MAX_SCANNED_RULES) error(file, ZERO, `a '${action}' would be compared with ${scan} ${list === own.grants ? 'grants' : 'rules'}, more than ${MAX_SCANNED_RULES}: give them a condition 'eq' or 'in' on name, function, code, label or owner, by which they are found at once`);
      }
    }
  }
}

function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const part of Object.values(value)) deepFreeze(part);
  }
  return value;
}
