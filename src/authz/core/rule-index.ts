/**
 * The hash index in front of the decision: rules that demand a value of a text attribute (`eq` or `in` on function, code, name …) are found by
 * that value, so that a decision looks at the few rules that can match and not at a thousand that cannot. It only leaves out rules whose
 * own condition is false; it never decides.
 */
import type { Condition } from './policy-schema.ts';

/** In order of preference where two are equally selective. */
const KEY_ATTRIBUTES = ['name', 'function', 'code', 'label', 'owner', 'isolation', 'tenant'] as const;
type KeyAttribute = (typeof KEY_ATTRIBUTES)[number];

interface Conditional {
  readonly conditions: readonly Condition[];
}

export interface EqualityIndex<Bucket> {
  /** Rules without a usable key: candidates of every request. */
  readonly unkeyed: Bucket | undefined;
  readonly keyed: readonly { readonly attribute: KeyAttribute; readonly buckets: ReadonlyMap<string, Bucket> }[];
}

/** Values of one `eq` or `in` condition; the resource must have one of them for the rule to match. */
function keysOf(rule: Conditional, attribute: KeyAttribute): readonly string[] | undefined {
  let best: readonly string[] | undefined;
  for (const c of rule.conditions) {
    if (c.attribute !== attribute) continue;
    const keys = c.operator === 'eq' ? [c.value as string] : c.operator === 'in' ? [...new Set(c.value as readonly string[])] : undefined;
    if (keys !== undefined && (best === undefined || keys.length < best.length)) best = keys;
  }
  return best;
}

/** Splits rules over buckets, each rule under its most selective key; the order of rules is kept within each bucket. */
function split<R extends Conditional>(rules: readonly R[]): { unkeyed: R[]; keyed: Map<KeyAttribute, Map<string, R[]>> } {
  const crowd = new Map<KeyAttribute, Map<string, number>>(KEY_ATTRIBUTES.map((a) => [a, new Map()]));
  for (const rule of rules) {
    for (const a of KEY_ATTRIBUTES) for (const key of keysOf(rule, a) ?? []) crowd.get(a)?.set(key, (crowd.get(a)?.get(key) ?? 0) + 1);
  }
  const unkeyed: R[] = [];
  const keyed = new Map<KeyAttribute, Map<string, R[]>>();
  for (const rule of rules) {
    let chosen: KeyAttribute | undefined;
    let chosenKeys: readonly string[] = [];
    let fewest = Infinity;
    for (const a of KEY_ATTRIBUTES) {
      const keys = keysOf(rule, a);
      if (keys === undefined) continue;
      let most = 0;
      for (const key of keys) most = Math.max(most, crowd.get(a)?.get(key) ?? 0);
      if (most < fewest) {
        fewest = most;
        chosen = a;
        chosenKeys = keys;
      }
    }
    if (chosen === undefined) {
      unkeyed.push(rule);
      continue;
    }
    let buckets = keyed.get(chosen);
    if (buckets === undefined) keyed.set(chosen, (buckets = new Map()));
    for (const key of chosenKeys) {
      const bucket = buckets.get(key);
      if (bucket === undefined) buckets.set(key, [rule]);
      else bucket.push(rule);
    }
  }
  return { unkeyed, keyed };
}

export function buildIndex<R extends Conditional, Bucket>(rules: readonly R[], makeBucket: (rules: readonly R[]) => Bucket): EqualityIndex<Bucket> {
  const { unkeyed, keyed } = split(rules);
  return {
    unkeyed: unkeyed.length === 0 ? undefined : makeBucket(unkeyed),
    keyed: KEY_ATTRIBUTES.filter((a) => keyed.has(a)).map((attribute) => ({
      attribute,
      buckets: new Map([...(keyed.get(attribute) ?? [])].map(([key, bucket]) => [key, makeBucket(bucket)])),
    })),
  };
}

/** How many rules the worst request has to be compared with. */
export function worstScan(rules: readonly Conditional[]): number {
  const { unkeyed, keyed } = split(rules);
  let scan = unkeyed.length;
  for (const buckets of keyed.values()) {
    let most = 0;
    for (const bucket of buckets.values()) most = Math.max(most, bucket.length);
    scan += most;
  }
  return scan;
}
