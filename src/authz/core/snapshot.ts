/**
 * The compiled policy: what the head makes, numbers, stores and pushes, and every raylet decides by. Plain JSON in lists (no key is ever
 * tenant text, so no prototype can be reached), in one canonical order, so that equal policies are equal bytes. `parseSnapshot` is the door
 * for snapshots that arrive as text: it takes nothing on trust and repairs nothing.
 */
import { ACTIONS, RESOURCE_KINDS, type Action, type ResourceKind } from '../../base/decision.ts';
import { BulkheadError } from '../../base/errors.ts';
import { SCOPES, type Condition, type Grantee, type Scope } from './policy-schema.ts';
import { ATTRIBUTE_NAMES, GRANTABLE_ACTIONS, OPERATORS, OPERATORS_OF_TYPE, TYPE_OF_ATTRIBUTE, type AttributeType, type Scalar } from './vocabulary.ts';

export interface SnapshotRule {
  /** `acme/analyst/permit/0`, `platform/developer/forbid/2`: tenant, role, effect, place in the file. */
  readonly id: string;
  /** Author: '' for the platform. */
  readonly tenant: string;
  readonly role: string;
  readonly effect: 'permit' | 'forbid';
  readonly scope: Scope;
  readonly actions: readonly Action[];
  readonly kinds: readonly ResourceKind[];
  /** Sorted by attribute and operator; all must hold. Empty: no condition. */
  readonly conditions: readonly Condition[];
}

/** Who has a role, from bindings and issued identities. */
export interface SnapshotMember {
  /** A tenant; `*` for every tenant (platform bindings); '' for nodes and system components. */
  readonly tenant: string;
  readonly kind: 'user' | 'service' | 'node' | 'system';
  readonly name: string;
  /** Author of the role: '' for the platform. */
  readonly roleTenant: string;
  readonly role: string;
}

export interface SnapshotGrant {
  /** `acme/grant/0`. */
  readonly id: string;
  readonly tenant: string;
  readonly to: Grantee;
  readonly actions: readonly Action[];
  readonly kinds: readonly ResourceKind[];
  readonly conditions: readonly Condition[];
  readonly untilMs: number;
}

export interface PolicySnapshot {
  readonly format: 1;
  readonly version: number;
  /** Permits first, then forbids; each half by author (platform first), role and place. The tenant guard comes after all of them, in code. */
  readonly rules: readonly SnapshotRule[];
  readonly members: readonly SnapshotMember[];
  readonly grants: readonly SnapshotGrant[];
}

export const EMPTY_SNAPSHOT: PolicySnapshot = Object.freeze({ format: 1, version: 0, rules: Object.freeze([]), members: Object.freeze([]), grants: Object.freeze([]) });

/** By code units: never the locale, which differs between machines. */
export function compareText(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

// --- the door -------------------------------------------------------------------------------------------------------

const refuse = (where: string, what: string): never => {
  throw new BulkheadError('INVALID_ARGUMENT', `policy snapshot is not valid: ${where} ${what}`);
};

function fields(value: unknown, where: string, names: readonly string[]): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return refuse(where, 'is not an object');
  const keys = Object.keys(value);
  if (keys.length !== names.length || !names.every((name) => Object.hasOwn(value, name))) return refuse(where, `must have exactly the fields ${names.join(', ')}`);
  return value as Record<string, unknown>;
}

function text(value: unknown, where: string): string {
  return typeof value === 'string' && value.length <= 4096 ? value : refuse(where, 'is not a string');
}

function list<T>(value: unknown, where: string, item: (value: unknown, where: string) => T): readonly T[] {
  if (!Array.isArray(value)) return refuse(where, 'is not a list');
  return Object.freeze(value.map((entry, i) => item(entry, `${where}[${i}]`)));
}

function oneOf<T extends string>(allowed: readonly T[]): (value: unknown, where: string) => T {
  return (value, where) => (allowed.includes(value as T) ? (value as T) : refuse(where, `is none of ${allowed.join(', ')}`));
}

function wholeNumber(value: unknown, where: string): number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 ? value : refuse(where, 'is not a whole number');
}

function scalarOf(type: AttributeType): (value: unknown, where: string) => Scalar {
  return (value, where) => (typeof value === type && (type !== 'number' || Number.isFinite(value)) ? (value as Scalar) : refuse(where, `is not a ${type}`));
}

const attributeName = oneOf(ATTRIBUTE_NAMES);
const operatorName = oneOf(OPERATORS);
const action = oneOf(ACTIONS);
const kind = oneOf(RESOURCE_KINDS);

function condition(value: unknown, where: string): Condition {
  const f = fields(value, where, ['attribute', 'operator', 'value']);
  const attribute = attributeName(f['attribute'], `${where}.attribute`);
  const operator = operatorName(f['operator'], `${where}.operator`);
  const type = TYPE_OF_ATTRIBUTE[attribute];
  if (!OPERATORS_OF_TYPE[type].includes(operator)) return refuse(where, `compares a ${type} with '${operator}'`);
  const many = operator === 'in' || operator === 'nin';
  const operand = many ? list(f['value'], `${where}.value`, scalarOf(type)) : scalarOf(type)(f['value'], `${where}.value`);
  if (Array.isArray(operand) && operand.length === 0) return refuse(where, 'has an empty list');
  return Object.freeze({ attribute, operator, value: operand });
}

function rule(value: unknown, where: string): SnapshotRule {
  const f = fields(value, where, ['id', 'tenant', 'role', 'effect', 'scope', 'actions', 'kinds', 'conditions']);
  const parsed: SnapshotRule = {
    id: text(f['id'], `${where}.id`), tenant: text(f['tenant'], `${where}.tenant`), role: text(f['role'], `${where}.role`),
    effect: oneOf(['permit', 'forbid'] as const)(f['effect'], `${where}.effect`), scope: oneOf(SCOPES)(f['scope'], `${where}.scope`),
    actions: list(f['actions'], `${where}.actions`, action), kinds: list(f['kinds'], `${where}.kinds`, kind),
    conditions: list(f['conditions'], `${where}.conditions`, condition),
  };
  if (parsed.tenant !== '' && parsed.effect === 'permit' && parsed.scope !== 'tenant') return refuse(where, 'is a permit of a tenant that reaches beyond tenants');
  return Object.freeze(parsed);
}

function member(value: unknown, where: string): SnapshotMember {
  const f = fields(value, where, ['tenant', 'kind', 'name', 'roleTenant', 'role']);
  const parsed: SnapshotMember = {
    tenant: text(f['tenant'], `${where}.tenant`), kind: oneOf(['user', 'service', 'node', 'system'] as const)(f['kind'], `${where}.kind`),
    name: text(f['name'], `${where}.name`), roleTenant: text(f['roleTenant'], `${where}.roleTenant`), role: text(f['role'], `${where}.role`),
  };
  if (parsed.roleTenant !== '' && parsed.roleTenant !== parsed.tenant) return refuse(where, "gives a tenant's role outside that tenant");
  if ((parsed.kind === 'node' || parsed.kind === 'system') !== (parsed.tenant === '')) return refuse(where, 'pairs a kind of principal with a tenant it cannot have');
  return Object.freeze(parsed);
}

function grant(value: unknown, where: string): SnapshotGrant {
  const f = fields(value, where, ['id', 'tenant', 'to', 'actions', 'kinds', 'conditions', 'untilMs']);
  const to = fields(f['to'], `${where}.to`, ['tenant', 'kind', 'name']);
  const parsed: SnapshotGrant = {
    id: text(f['id'], `${where}.id`), tenant: text(f['tenant'], `${where}.tenant`),
    to: Object.freeze({
      tenant: text(to['tenant'], `${where}.to.tenant`), kind: oneOf(['any', 'user', 'service', 'system'] as const)(to['kind'], `${where}.to.kind`),
      name: text(to['name'], `${where}.to.name`),
    }),
    actions: list(f['actions'], `${where}.actions`, action), kinds: list(f['kinds'], `${where}.kinds`, kind),
    conditions: list(f['conditions'], `${where}.conditions`, condition), untilMs: wholeNumber(f['untilMs'], `${where}.untilMs`),
  };
  if (parsed.tenant === '') return refuse(where, 'is not owned by a tenant');
  if (!parsed.actions.every((a) => GRANTABLE_ACTIONS.has(a))) return refuse(where, 'grants an action that no grant can give');
  return Object.freeze(parsed);
}

/** A snapshot from its JSON text or the value of it; deeply frozen. Throws INVALID_ARGUMENT naming the part. */
export function parseSnapshot(input: unknown): PolicySnapshot {
  let value = input;
  if (typeof input === 'string') {
    try {
      value = JSON.parse(input);
    } catch (cause) {
      throw new BulkheadError('INVALID_ARGUMENT', 'policy snapshot is not valid: it is not JSON', { cause });
    }
  }
  const f = fields(value, 'it', ['format', 'version', 'rules', 'members', 'grants']);
  if (f['format'] !== 1) return refuse('format', 'is not 1: this version of Bulkhead cannot read it');
  const rules = list(f['rules'], 'rules', rule);
  const firstForbid = rules.findIndex((r) => r.effect === 'forbid');
  if (firstForbid >= 0 && rules.slice(firstForbid).some((r) => r.effect === 'permit')) return refuse('rules', 'has a permit after a forbid');
  return Object.freeze({
    format: 1, version: wholeNumber(f['version'], 'version'), rules, members: list(f['members'], 'members', member), grants: list(f['grants'], 'grants', grant),
  });
}

/** The one text of a snapshot: what is stored, pushed and hashed. */
export function snapshotText(snapshot: PolicySnapshot): string {
  return JSON.stringify(snapshot);
}
