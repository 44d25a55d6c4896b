/**
 * Options of tasks, actors and methods: checked by name and value here, where the mistake is, and mapped to the JSON that
 * DEFINE carries. Must never pass an unknown option on: a misspelt limit would be no limit.
 */
import { BulkheadError } from '../base/errors.ts';
import { quote } from '../base/ids.ts';
import { DEFAULT_STREAM_BYTES, DEFAULT_STREAM_ITEMS, MAX_BUNDLES_PER_GROUP, MAX_FAN_OUT, MAX_PRIORITY, MAX_RETRY_DELAY_MS, MAX_RETURNS, MAX_STREAM_BYTES, MAX_STREAM_ITEMS, MAX_TASK_DEPTH } from '../base/limits.ts';
import { parseFallback, parseSelector } from '../base/labels.ts';
import { parseMemory, parseUnits } from '../base/resources.ts';
import type { StreamWindow } from './object-stream.ts';

interface CallOptions {
  /** How many values the call returns, each under its own ref; default 1. `'streaming'`: what it yields, while it goes on. */
  readonly returns?: number | 'streaming';
  /** Of a stream: items that may come before its reader takes them, 64 at first and more while it has to wait; default 4096. */
  readonly streamItems?: number;
  /** The same in bytes, or text such as '16MiB'; default 4 MiB. */
  readonly streamBytes?: number | string;
  /** Wall time of one attempt; then TIMEOUT. */
  readonly timeoutMs?: number;
  readonly cpuTimeMs?: number;
  readonly queueTimeoutMs?: number;
  /** For lists and logs: letters, digits and . _ : / -; need not be unique. */
  readonly name?: string;
}

export interface MethodOptions extends CallOptions {
  /** Instead of the actor's, for this call. */
  readonly maxTaskRetries?: number;
}

export type LabelSelector = Readonly<Record<string, string | { readonly in?: readonly string[]; readonly notIn?: readonly string[]; readonly exists?: boolean }>>;

interface PlacementOptions {
  /** Fractions allowed, four decimals; default 1 for tasks, 0 for a living actor. */
  readonly cpus?: number;
  /** Bytes, or text such as '64MiB'. */
  readonly memory?: number | string;
  /** Custom resources by name. */
  readonly resources?: Readonly<Record<string, number>>;
  /** Labels that the node must have, all of them: `{ zone: 'eu', tier: { in: ['a', 'b'] }, spot: { exists: false } }`. */
  readonly labels?: LabelSelector;
  /** What to ask for instead while no living node meets `labels`, in this order; `{}` is any node. */
  readonly fallback?: readonly { readonly labels?: LabelSelector }[];
  /** A node by its id; with `soft` another one will do while that one is not there. */
  readonly nodeAffinity?: string | { readonly node: string; readonly soft?: boolean };
  /** `'spread'`: over the nodes in turn. */
  readonly scheduling?: 'default' | 'spread';
  /** Run in a bundle of this placement group: the group, or its id. */
  readonly placementGroup?: string | { readonly id: string };
  /** Which bundle, from 0; default -1: any that has room. */
  readonly bundleIndex?: number;
  readonly isolation?: 'isolate' | 'gvisor';
  /** Label of the results, for policies. */
  readonly label?: string;
}

export interface TaskOptions extends CallOptions, PlacementOptions {
  /** Among the tenant's tasks, -100 to 100, default 0: more goes first, and may stop running ones of less that can be tried again. Above 0 only as far as the project's quota `priority` allows. */
  readonly priority?: number;
  /** Tries after the first, when its worker or node is lost or as `retryOn` says; default 3, -1 for no end of them. */
  readonly maxRetries?: number;
  /** Beyond lost workers and nodes: names or classes of what the function throws, subclasses included; codes such as 'TIMEOUT' or 'OUT_OF_MEMORY'; 'TASK_FAILED' for whatever it throws. Default: none. */
  readonly retryOn?: readonly (string | (abstract new (...args: never[]) => unknown))[];
  /** Before the second try of a failed call, half of it at least; it doubles with each. Default 100, 0 for at once. */
  readonly retryDelayMs?: number;
  /** The task runs once: who submits under the same key again, as the same user and in the same job, gets the same result. Known for ten minutes. */
  readonly idempotencyKey?: string;
  /** Calls that one call of this function may have made and that have not ended. */
  readonly maxFanOut?: number;
  /** Levels of calls below a call of this function; 0: it makes none. */
  readonly maxDepth?: number;
}

export interface ActorOptions extends PlacementOptions {
  /** Found again with `cluster.actor(name)`, in another namespace with `cluster.actor('namespace/name')`. */
  readonly name?: string;
  readonly namespace?: string;
  /** Lives on when its job ends. */
  readonly detached?: boolean;
  /** Return the actor of this name when there is one. */
  readonly getIfExists?: boolean;
  /** How often the actor is made again, with the arguments it was created with, after its process or node was lost; -1: always; default 0. */
  readonly maxRestarts?: number;
  /** How often a call that was under way then is made again, so that it may run more than once; -1: always; default 0: the call fails with ACTOR_UNAVAILABLE. */
  readonly maxTaskRetries?: number;
  /** Async methods that may run interleaved; default 1,000. */
  readonly maxConcurrency?: number;
  /** Calls that may wait or run; beyond it a call fails at once with RESOURCE_EXHAUSTED; default 0: no limit. */
  readonly maxPendingCalls?: number;
  readonly timeoutMs?: number;
  readonly cpuTimeMs?: number;
  readonly queueTimeoutMs?: number;
}

type Check = (name: string, value: unknown) => unknown;

function refuse(name: string, value: unknown, hint: string): never {
  throw new BulkheadError('INVALID_ARGUMENT', `option ${name}: ${typeof value === 'number' || typeof value === 'boolean' ? String(value) : quote(value)} is not valid: ${hint}`);
}

function integer(min: number, max: number): Check {
  return (name, value) => (typeof value === 'number' && Number.isSafeInteger(value) && value >= min && value <= max ? value : refuse(name, value, `give a whole number from ${min} to ${max}`));
}

function oneOf(...allowed: readonly string[]): Check {
  return (name, value) => (typeof value === 'string' && allowed.includes(value) ? value : refuse(name, value, `give one of ${allowed.join(', ')}`));
}

const flag: Check = (name, value) => (typeof value === 'boolean' ? value : refuse(name, value, 'give true or false'));
function matching(pattern: RegExp, form: string): Check {
  return (name, value) => (typeof value === 'string' && pattern.test(value) ? value : refuse(name, value, form));
}
const errorName = matching(/^[\p{ID_Start}$_][\p{ID_Continue}$]{0,127}$/u, 'give an error class, its name, or an error code');
const text = matching(/^[A-Za-z0-9](?:[A-Za-z0-9._:/-]{0,126}[A-Za-z0-9])?$/, '1 to 128 characters of A-Z a-z 0-9 and inner . _ : / -');
/** Without `/`: an actor is looked up as `namespace/name`. */
const actorName = matching(/^[A-Za-z0-9](?:[A-Za-z0-9._:-]{0,126}[A-Za-z0-9])?$/, '1 to 128 characters of A-Z a-z 0-9 and inner . _ : -');
const ONE_DAY_MS = 24 * 60 * 60_000;
const milliseconds = integer(1, 7 * ONE_DAY_MS);
const TABLE_KEY = /^[A-Za-z][A-Za-z0-9_.:-]{0,62}$/;
const MAX_TABLE_ENTRIES = 32;

function table(what: string, check: Check): Check {
  return (name, value) => {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) return refuse(name, value, `give an object of ${what}`);
    const entries = Object.entries(value);
    if (entries.length > MAX_TABLE_ENTRIES) refuse(name, value, `at most ${MAX_TABLE_ENTRIES} entries`);
    return Object.fromEntries(entries.map(([key, item]) => [TABLE_KEY.test(key) ? key : refuse(`${name} key`, key, 'a letter, then at most 62 letters, digits and _ . : -'), check(`${name}.${key}`, item)]));
  };
}

/** What the raylet will read, read here first, where the mistake is. */
function checked(parse: (value: unknown) => unknown): Check {
  return (name, value) => {
    try {
      parse(value);
    } catch (error) {
      if (error instanceof BulkheadError) throw new BulkheadError('INVALID_ARGUMENT', `option ${name}: ${error.safeMessage}`);
      throw error;
    }
    return value;
  };
}

const PLACEMENT: Readonly<Record<string, Check>> = {
  cpus: (name, value) => {
    parseUnits(name, value);
    return value;
  },
  memory: (_, value) => parseMemory(value),
  resources: table('amounts by name', (name, value) => {
    parseUnits(name, value);
    return value;
  }),
  labels: checked(parseSelector),
  fallback: checked(parseFallback),
  nodeAffinity: (name, value) => {
    if (typeof value === 'string') return text(name, value);
    if (typeof value !== 'object' || value === null || Object.keys(value).some((key) => key !== 'node' && key !== 'soft')) return refuse(name, value, 'give the id of a node, or { node, soft }');
    const { node, soft = false } = value as { node?: unknown; soft?: unknown };
    return { node: text(`${name}.node`, node), soft: flag(`${name}.soft`, soft) };
  },
  placementGroup: (name, value) => matching(/^obj-[0-9a-f]{48}$/, 'give a placement group, or its id')(name, typeof value === 'object' && value !== null ? (value as { id?: unknown }).id : value),
  bundleIndex: integer(-1, MAX_BUNDLES_PER_GROUP - 1),
  scheduling: oneOf('default', 'spread'),
  isolation: oneOf('isolate', 'gvisor'),
  label: text,
};
const TIMES: Readonly<Record<string, Check>> = { timeoutMs: milliseconds, cpuTimeMs: milliseconds, queueTimeoutMs: milliseconds };
const someReturns = integer(0, MAX_RETURNS);
const someBytes = integer(1, MAX_STREAM_BYTES);
const CALL: Readonly<Record<string, Check>> = {
  ...TIMES, name: text, returns: (name, value) => (value === 'streaming' ? value : typeof value === 'string' ? refuse(name, value, `give a whole number from 0 to ${MAX_RETURNS}, or 'streaming'`) : someReturns(name, value)),
  streamItems: integer(1, MAX_STREAM_ITEMS), streamBytes: (name, value) => someBytes(name, parseMemory(value)),
};
const METHOD: Readonly<Record<string, Check>> = { ...CALL, maxTaskRetries: integer(-1, 1_000) };
const TASK: Readonly<Record<string, Check>> = {
  ...PLACEMENT, ...CALL, priority: integer(-MAX_PRIORITY, MAX_PRIORITY), maxRetries: integer(-1, 100), idempotencyKey: matching(/^[\s\S]{1,256}$/, 'give 1 to 256 characters'), retryDelayMs: integer(0, MAX_RETRY_DELAY_MS), maxFanOut: integer(0, MAX_FAN_OUT), maxDepth: integer(0, MAX_TASK_DEPTH),
  retryOn: (name, value) => (Array.isArray(value) && value.length <= 16 ? value.map((of: unknown) => errorName(name, typeof of === 'function' ? of.name : of)) : refuse(name, value, 'give a list of error classes, their names, or error codes')),
};
const ACTOR: Readonly<Record<string, Check>> = {
  ...PLACEMENT, ...TIMES, name: actorName, namespace: actorName, detached: flag, getIfExists: flag, maxRestarts: integer(-1, 1_000), maxTaskRetries: integer(-1, 1_000),
  maxConcurrency: integer(1, 10_000), maxPendingCalls: integer(0, 1_000_000),
};
/** Names whose JSON is called otherwise. */
const WIRE_NAME: Readonly<Record<string, string>> = { memory: 'memoryBytes' };

/** Edit distance, for "did you mean". */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) next[j] = Math.min((row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1, (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1));
    row = next;
  }
  return row[b.length] ?? 0;
}

function closest(name: string, known: readonly string[]): string | undefined {
  const wanted = name.toLowerCase();
  const [best] = known.map((k) => ({ k, d: k.toLowerCase().startsWith(wanted) || wanted.startsWith(k.toLowerCase()) ? 1 : distance(wanted, k.toLowerCase()) })).sort((a, b) => a.d - b.d);
  return best !== undefined && best.d <= Math.max(2, name.length / 3) ? best.k : undefined;
}

function map(what: string, options: unknown, checks: Readonly<Record<string, Check>>): Record<string, unknown> {
  const wire: Record<string, unknown> = {};
  if (options === undefined) return wire;
  if (typeof options !== 'object' || options === null || Array.isArray(options)) throw new BulkheadError('INVALID_ARGUMENT', `options of ${what} must be an object`);
  // Sorted, so that the same options are the same template whatever their order.
  for (const name of Object.keys(options).sort()) {
    const value: unknown = (options as Record<string, unknown>)[name];
    const check = Object.hasOwn(checks, name) ? checks[name] : undefined;
    if (check === undefined) {
      const hint = closest(name, Object.keys(checks));
      throw new BulkheadError('INVALID_ARGUMENT', `${what} has no option ${quote(name)}: ${hint === undefined ? `the options are ${Object.keys(checks).sort().join(', ')}` : `did you mean ${hint}?`}`);
    }
    if (value !== undefined) wire[WIRE_NAME[name] ?? name] = check(name, value);
  }
  return wire;
}

export interface WireOptions {
  readonly json: string;
  /** 0 where what it yields is streamed. */
  readonly returns: number;
  readonly stream: StreamWindow | undefined;
  /** Of one call, so that it is not among what its function is defined with. */
  readonly key: string | undefined;
}

const PYTHON = { runtime: 'python3', isolation: 'gvisor' };

function wireOptions(wire: Record<string, unknown>, python = false): WireOptions {
  if (python && wire['isolation'] === 'isolate') throw new BulkheadError('INVALID_ARGUMENT', "option isolation: Python runs in 'gvisor' only");
  const { returns, streamItems, streamBytes, idempotencyKey: key, ...others } = wire as { returns?: number | 'streaming'; streamItems?: number; streamBytes?: number; idempotencyKey?: string };
  const stream = returns === 'streaming' ? { items: streamItems ?? DEFAULT_STREAM_ITEMS, bytes: streamBytes ?? DEFAULT_STREAM_BYTES } : undefined;
  if (stream === undefined && (streamItems ?? streamBytes) !== undefined) throw new BulkheadError('INVALID_ARGUMENT', "options streamItems and streamBytes are for generators, and for functions with returns: 'streaming'");
  if (key !== undefined && stream !== undefined) throw new BulkheadError('INVALID_ARGUMENT', 'option idempotencyKey does not go with a stream: a stream is read once');
  const defined = { ...others, ...(returns === undefined ? {} : { returns }), ...(streamItems === undefined ? {} : { streamItems }), ...(streamBytes === undefined ? {} : { streamBytes }), ...(python ? PYTHON : {}) };
  return { json: JSON.stringify(defined), returns: stream === undefined ? ((returns as number | undefined) ?? 1) : 0, stream, key };
}

/** @param python of a Python function: it says what runs it. */
export function taskOptions(options?: TaskOptions, python = false): WireOptions {
  return wireOptions(map('a task', options, TASK), python);
}

export function methodOptions(options?: MethodOptions): WireOptions {
  return wireOptions(map('an actor method', options, METHOD));
}

/** @param streams the class's methods that are generators: whoever finds the actor by its name learns of them. */
export function actorOptions(options?: ActorOptions, streams: readonly string[] = [], python = false): WireOptions {
  const wire = map('an actor', options, ACTOR);
  if (streams.length > 0) wire['streams'] = streams;
  for (const needy of ['detached', 'getIfExists', 'namespace']) {
    if (wire[needy] !== undefined && wire[needy] !== false && wire['name'] === undefined) throw new BulkheadError('INVALID_ARGUMENT', `option ${needy} needs a name, or nobody could find the actor again`);
  }
  return wireOptions(wire, python);
}
