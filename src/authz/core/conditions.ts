/**
 * Conditions as predicates over resource attributes. Scalars against scalars of one type, no pattern, no path, no coercion: what a
 * condition costs does not depend on what a tenant wrote into an attribute, beyond comparing two strings.
 */
import { ATTRIBUTES_PROTOTYPE, type ResourceAttributes } from '../../base/decision.ts';
import { BulkheadError } from '../../base/errors.ts';
import type { Condition } from './policy-schema.ts';
import { TYPE_OF_ATTRIBUTE, type Scalar } from './vocabulary.ts';

export type Predicate = (attributes: ResourceAttributes) => boolean;

const defect = (what: string): never => {
  throw new BulkheadError('INTERNAL', `a policy condition cannot be evaluated: ${what}`);
};

function one({ attribute, operator, value }: Condition): Predicate {
  const type = TYPE_OF_ATTRIBUTE[attribute] ?? defect('unknown attribute');
  if (operator === 'in' || operator === 'nin') {
    if (!Array.isArray(value) || value.length === 0 || !value.every((v) => typeof v === type)) return defect('the operand is not a list of its type');
    const set: ReadonlySet<Scalar> = new Set(value as readonly Scalar[]);
    return operator === 'in' ? (a) => set.has(a[attribute]) : (a) => !set.has(a[attribute]);
  }
  if (typeof value !== type) return defect('the operand is not of its type');
  const scalar = value as Scalar;
  switch (operator) {
    case 'eq': return (a) => a[attribute] === scalar;
    case 'ne': return (a) => a[attribute] !== scalar;
    case 'lt': return (a) => a[attribute] < scalar;
    case 'lte': return (a) => a[attribute] <= scalar;
    case 'gt': return (a) => a[attribute] > scalar;
    case 'gte': return (a) => a[attribute] >= scalar;
    default: return defect('unknown operator');
  }
}

/** All conditions together. An empty list has no predicate: a rule without conditions must say so, not fall into it. */
export function predicateOf(conditions: readonly Condition[]): Predicate {
  const [first, second, ...rest] = conditions.map(one);
  if (first === undefined) return defect('there is none');
  if (second === undefined) return first;
  if (rest.length === 0) return (a) => first(a) && second(a);
  return (a) => first(a) && second(a) && rest.every((p) => p(a));
}

/** Every attribute present with its type, on an object with nothing under it, numbers finite: what conditions rely on. Written out, since it runs for every decision. */
export function wellFormed(a: ResourceAttributes): boolean {
  const prototype: unknown = Object.getPrototypeOf(a);
  return (prototype === ATTRIBUTES_PROTOTYPE || prototype === null)
    && typeof a.tenant === 'string' && typeof a.name === 'string' && typeof a.owner === 'string' && typeof a.label === 'string' && typeof a.code === 'string'
    && typeof a.function === 'string' && typeof a.isolation === 'string' && typeof a.detached === 'boolean'
    && Number.isFinite(a.cpus) && Number.isFinite(a.memory) && Number.isFinite(a.size);
}
