/**
 * Labels of nodes: what an operator calls a node by, and what work asks for. Pure. Must never: take a label that a selector could not name, or
 * a selector that a node could not meet.
 */
import { BulkheadError } from './errors.ts';
import { quote } from './ids.ts';
import { MAX_LABELS, MAX_LABEL_VALUES, MAX_SELECTORS } from './limits.ts';

export type Labels = Readonly<Record<string, string>>;

/** `in`: the node has the label with one of the values; `notIn`: it has none of them, or not the label at all; `exists`, `absent`: it has the label, or has not. */
export interface LabelCondition {
  readonly key: string;
  readonly op: 'in' | 'notIn' | 'exists' | 'absent';
  readonly values: readonly string[];
}

export type LabelSelector = readonly LabelCondition[];

export const NO_LABELS: Labels = Object.freeze({});
export const LABEL_KEY = /^[A-Za-z](?:[A-Za-z0-9_.:/-]{0,61}[A-Za-z0-9])?$/;
export const LABEL_VALUE = /^[A-Za-z0-9](?:[A-Za-z0-9._:/-]{0,126}[A-Za-z0-9])?$/;
const NONE: readonly string[] = Object.freeze([]);

function refuse(what: string): never {
  throw new BulkheadError('INVALID_ARGUMENT', what);
}

function parseKey(key: string): string {
  return LABEL_KEY.test(key) ? key : refuse(`the label ${quote(key)} is not valid: a letter, then at most 62 letters, digits and _ . : / -`);
}

function parseValue(key: string, value: unknown): string {
  return typeof value === 'string' && LABEL_VALUE.test(value) ? value : refuse(`the value of label ${key} is not valid: 1 to 128 characters of A-Z a-z 0-9 and inner . _ : / -`);
}

function entriesOf(what: string, value: unknown): [string, unknown][] {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) refuse(`${what} must be an object: give an object of texts by name`);
  const entries = Object.entries(value);
  return entries.length <= MAX_LABELS ? entries : refuse(`${what} has ${entries.length} labels, at most ${MAX_LABELS} are allowed`);
}

/** What a node is called by. Throws INVALID_ARGUMENT. */
export function parseLabels(value: unknown): Labels {
  const entries = entriesOf('labels', value);
  return entries.length === 0 ? NO_LABELS : Object.freeze(Object.fromEntries(entries.map(([key, item]) => [parseKey(key), parseValue(key, item)] as const).sort(([a], [b]) => (a < b ? -1 : 1))) as Record<string, string>);
}

function parseCondition(key: string, wanted: unknown): LabelCondition[] {
  parseKey(key);
  if (typeof wanted === 'string') return [{ key, op: 'in', values: [parseValue(key, wanted)] }];
  if (typeof wanted !== 'object' || wanted === null || Array.isArray(wanted)) refuse(`label ${key} must be a text, or { in: […] }, { notIn: […] }, { exists: true }`);
  const conditions = Object.entries(wanted).map(([op, given]): LabelCondition => {
    if (op === 'exists' && typeof given === 'boolean') return { key, op: given ? 'exists' : 'absent', values: NONE };
    if ((op === 'in' || op === 'notIn') && Array.isArray(given) && given.length >= 1 && given.length <= MAX_LABEL_VALUES) return { key, op, values: given.map((value) => parseValue(key, value)) };
    return refuse(`label ${key}: ${quote(op)} is not one of in and notIn with a list of 1 to ${MAX_LABEL_VALUES} texts, or exists with true or false`);
  });
  return conditions.length > 0 ? conditions : refuse(`label ${key} asks for nothing: give a text, or { in: […] }, { notIn: […] }, { exists: true }`);
}

/** `{ zone: 'eu', tier: { in: ['a', 'b'] }, spot: { exists: false } }`: all of it must hold. Throws INVALID_ARGUMENT. */
export function parseSelector(value: unknown): LabelSelector {
  return entriesOf('labels', value).sort(([a], [b]) => (a < b ? -1 : 1)).flatMap(([key, wanted]) => parseCondition(key, wanted));
}

/** Selectors to try when no living node meets those before. Throws INVALID_ARGUMENT. */
export function parseFallback(value: unknown): LabelSelector[] {
  if (!Array.isArray(value) || value.length > MAX_SELECTORS) refuse(`fallback must be a list of at most ${MAX_SELECTORS} objects such as { labels: { zone: 'us' } }`);
  return value.map((item: unknown) => {
    if (typeof item !== 'object' || item === null || Object.keys(item).some((key) => key !== 'labels')) refuse("each of fallback must be an object such as { labels: { zone: 'us' } }; {} is any node");
    return parseSelector((item as { labels?: unknown }).labels ?? {});
  });
}

export function meets(labels: Labels, selector: LabelSelector): boolean {
  for (const { key, op, values } of selector) {
    const has = Object.hasOwn(labels, key) ? labels[key] : undefined;
    const ok = op === 'in' ? has !== undefined && values.includes(has) : op === 'notIn' ? has === undefined || !values.includes(has) : (has !== undefined) === (op === 'exists');
    if (!ok) return false;
  }
  return true;
}

/** For people: `zone=eu, tier in (a, b)`. */
export function describeSelector(selector: LabelSelector): string {
  return selector.map(({ key, op, values }) => {
    if (op === 'exists') return key;
    if (op === 'absent') return `no ${key}`;
    return op === 'in' && values.length === 1 ? `${key}=${values[0]}` : `${key} ${op === 'in' ? 'in' : 'not in'} (${values.join(', ')})`;
  }).join(', ');
}

export function describeLabels(labels: Labels): string {
  return Object.keys(labels).sort().map((key) => `${key}=${labels[key]}`).join(' ');
}
