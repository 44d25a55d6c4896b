/**
 * What policies can speak of beyond the closed lists of src/base/decision.ts: which attributes a kind has, which kind an
 * action acts on, which operators a type takes. Policy files, JSON Schema, compiler and decision point all read these
 * tables; nothing may accept a word that is not here.
 */
import { ACTIONS, RESOURCE_KINDS, type Action, type ResourceAttributes, type ResourceKind } from '../../base/decision.ts';
import { invariant } from '../../base/errors.ts';

export type AttributeName = keyof ResourceAttributes;
export type AttributeType = 'string' | 'number' | 'boolean';
export type Scalar = string | number | boolean;

export const TYPE_OF_ATTRIBUTE: Readonly<Record<AttributeName, AttributeType>> = {
  tenant: 'string', name: 'string', owner: 'string', label: 'string', code: 'string', function: 'string',
  cpus: 'number', memory: 'number', isolation: 'string', detached: 'boolean', size: 'number',
};
export const ATTRIBUTE_NAMES = Object.keys(TYPE_OF_ATTRIBUTE) as readonly AttributeName[];

/** Attributes in bytes: policies may write `64MiB`. */
export const BYTE_ATTRIBUTES: ReadonlySet<AttributeName> = new Set<AttributeName>(['memory', 'size']);

const COMMON: readonly AttributeName[] = ['tenant', 'name', 'owner'];
const CALL: readonly AttributeName[] = [...COMMON, 'label', 'code', 'function', 'cpus', 'memory', 'isolation'];

/** A condition on an attribute that its kind never carries would compare with '' or 0 for ever, so the schema refuses it. */
export const ATTRIBUTES_OF_KIND: Readonly<Record<ResourceKind, readonly AttributeName[]>> = {
  task: CALL,
  actor: [...CALL, 'detached'],
  object: [...COMMON, 'label', 'size'],
  code: [...COMMON, 'code', 'size'],
  job: [...COMMON, 'label', 'code', 'function'],
  log: [...COMMON, 'label'],
  session: COMMON,
  node: [...COMMON, 'label'],
  worker: [...COMMON, 'label', 'isolation'],
  tenant: COMMON,
  identity: [...COMMON, 'label'],
  pki: COMMON,
  policy: COMMON,
  audit: COMMON,
  cluster: COMMON,
  metrics: COMMON,
  'placement-group': [...COMMON, 'cpus', 'memory', 'detached'],
  token: COMMON,
  environment: COMMON,
};

const KINDS: ReadonlySet<string> = new Set(RESOURCE_KINDS);

function kindOf(action: Action): ResourceKind {
  const first = action.slice(0, action.indexOf('.'));
  const kind = first === 'peer' ? 'node' : first;
  invariant(KINDS.has(kind), `action ${action} acts on no resource kind`);
  return kind as ResourceKind;
}

/** Each action acts on exactly one kind: `object.get` on an object. A request that pairs them otherwise meets no rule. */
export const KIND_OF_ACTION: ReadonlyMap<string, ResourceKind> = new Map(ACTIONS.map((action) => [action, kindOf(action)]));
/** Kind and position in ACTIONS, in one look-up for the decision point. */
export const ACTION_FACTS: ReadonlyMap<string, { readonly kind: ResourceKind; readonly index: number }> = new Map(ACTIONS.map((action, index) => [action, { kind: kindOf(action), index }]));

export const OPERATORS = ['eq', 'ne', 'in', 'nin', 'lt', 'lte', 'gt', 'gte'] as const;
export type Operator = (typeof OPERATORS)[number];

export const OPERATORS_OF_TYPE: Readonly<Record<AttributeType, readonly Operator[]>> = {
  string: ['eq', 'ne', 'in', 'nin'],
  number: OPERATORS,
  boolean: ['eq', 'ne'],
};

/**
 * What an owner may let another tenant (or the platform's administrator) do with its resources. Everything that changes
 * or governs the owner's tenant stays inside it, whatever a file says.
 */
export const GRANTABLE_ACTIONS: ReadonlySet<Action> = new Set<Action>([
  'object.get', 'object.wait', 'object.read', 'object.list', 'actor.call', 'actor.find', 'actor.read', 'actor.list',
  'task.read', 'task.list', 'job.read', 'job.list', 'log.read', 'audit.read', 'audit.export',
]);

/**
 * What system principals (the cluster's administrator and components) may do to a tenant without its grant, where platform policy
 * permits it: govern, never read. Tenants' objects, logs, tasks, jobs and audit records are not in it.
 */
export const GOVERNANCE_ACTIONS: ReadonlySet<Action> = new Set<Action>([
  'tenant.create', 'tenant.list', 'tenant.read', 'tenant.update', 'tenant.divide', 'tenant.delete', 'identity.issue', 'identity.renew', 'identity.revoke', 'identity.read',
  'policy.apply', 'policy.read', 'policy.check', 'pki.read', 'pki.rotate', 'pki.join-token', 'pki.trust-bundle',
  'node.list', 'node.read', 'worker.list', 'worker.read', 'session.read', 'audit.stats', 'cluster.read', 'cluster.doctor', 'metrics.read',
]);
