/**
 * Options of a task function, actor class or method, as a client sends them in DEFINE. Untrusted JSON: every field is
 * checked, unknown ones are refused, so that a misspelt limit never silently means "no limit".
 */
import { BulkheadError } from '../../base/errors.ts';
import { quote } from '../../base/ids.ts';
import { DEFAULT_STREAM_BYTES, DEFAULT_STREAM_ITEMS, MAX_FAN_OUT, MAX_PRIORITY, MAX_RETRY_DELAY_MS, MAX_RETURNS, MAX_STREAM_BYTES, MAX_STREAM_ITEMS, MAX_STREAMING_METHODS, MAX_TASK_DEPTH } from '../../base/limits.ts';
import type { ResourceVector } from '../../base/resources.ts';
import { parseRequirements, runtimeWith } from '../../base/requirements.ts';
import { parseUnits } from '../../base/resources.ts';
import { parsePlacement, type Placement } from './placement.ts';

/** How far a stream may be ahead of its reader. */
export interface StreamWindow {
  readonly items: number;
  readonly bytes: number;
}

export interface FunctionOptions {
  /** 0 where what it yields is streamed. */
  readonly returns: number;
  readonly stream: StreamWindow | undefined;
  readonly resources: ResourceVector;
  /** Tries after the first; -1: no end of them. */
  readonly maxRetries: number;
  /** Besides a lost worker or node: codes of failures, and names of error classes. */
  readonly retryOn: readonly string[];
  readonly retryDelayMs: number;
  /** Calls that a call may have made and that have not ended; levels of calls below it. */
  readonly maxFanOut: number;
  readonly maxDepth: number;
  /** Between raylets: the session that the calls come from, as 40 hex digits. */
  readonly origin: string;
  /** Wall time of one run, ms; 0: none. */
  readonly timeoutMs: number;
  /** CPU time of one run, ms; 0: none. */
  readonly cpuTimeMs: number;
  /** Time a task may wait before it starts, ms; 0: none. */
  readonly queueTimeoutMs: number;
  readonly name: string;
  readonly namespace: string;
  /** The namespace that a Python driver chose for names of its own: told to what it calls, never acted on. '': none. */
  readonly jobNamespace: string;
  readonly label: string;
  readonly isolation: 'isolate' | 'gvisor';
  /** What runs it: V8, or Python in a sandbox of gVisor, with what must be installed for it (src/base/requirements.ts). */
  readonly runtime: string;
  /** The same requirements: what the policy is asked about. */
  readonly packages: readonly string[];
  readonly detached: boolean;
  readonly getIfExists: boolean;
  /** How often an actor is made again after what it ran in was lost; -1: always. */
  readonly maxRestarts: number;
  /** How often a call that was under way then is made again; -1: always; undefined on a method: as its class says. */
  readonly maxTaskRetries: number | undefined;
  readonly maxConcurrency: number;
  readonly maxPendingCalls: number;
  /** Of a class: its methods that are generators. For its handles; nothing here depends on it. */
  readonly streams: readonly string[];
  /** Of a method of a Python actor: the concurrency group that it runs in, which the actor's own process keeps; '': the one that its class says. */
  readonly concurrencyGroup: string;
  /** W3C trace context of the driver that traces its calls; '': it does not. Carried and told to the code, never acted on. */
  readonly traceparent: string;
  /** Where it may run; undefined: anywhere. */
  readonly placement: Placement | undefined;
  /** With a placement group: its own calls run in it too. Told to the code, which gives them the group; never acted on. */
  readonly captureChildTasks: boolean;
  /** Among tasks of the tenant; more goes first. */
  readonly priority: number;
}

const MAX_RETRY_NAMES = 16;
const NO_NAMES: readonly string[] = Object.freeze([]);
const DAY_MS = 24 * 3_600_000;

function refuse(what: string): never {
  throw new BulkheadError('INVALID_ARGUMENT', `options are not valid: ${what}`);
}

function integer(name: string, value: unknown, low: number, high: number): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < low || value > high) refuse(`${name} must be a whole number from ${low} to ${high}`);
  return value;
}

function shortText(name: string, value: unknown, pattern: RegExp, form: string): string {
  if (typeof value !== 'string' || (value !== '' && !pattern.test(value))) refuse(`${name} must be ${form}`);
  return value;
}

const NAME = /^[A-Za-z0-9](?:[A-Za-z0-9._:/-]{0,126}[A-Za-z0-9])?$/;
const TRACEPARENT = /^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$/;
const METHOD = /^[\p{ID_Start}$_][\p{ID_Continue}$]{0,127}$/u;
/** With `+` and a digest: an environment of a job's own, which has sandboxes of its own. Without a version: the one that the node has. */
const PYTHON = /^python3(?:\.[1-9][0-9]?)?(?:\+[0-9a-f]{32})?$/;
const ANY_PYTHON = 'python3';
const NAME_FORM = '1 to 128 characters of A-Z a-z 0-9 . _ : / -';

type Parser = (value: unknown) => unknown;
const PARSERS: Readonly<Record<string, Parser>> = Object.freeze({
  __proto__: null as never,
  returns: (v: unknown) => (v === 'streaming' ? v : integer('returns', v, 0, MAX_RETURNS)),
  streamItems: (v: unknown) => integer('streamItems', v, 1, MAX_STREAM_ITEMS),
  streamBytes: (v: unknown) => integer('streamBytes', v, 1, MAX_STREAM_BYTES),
  cpus: (v: unknown) => parseUnits('cpus', v),
  memoryBytes: (v: unknown) => integer('memoryBytes', v, 0, 2 ** 44),
  resources: (v: unknown) => {
    if (typeof v !== 'object' || v === null || Array.isArray(v)) refuse('resources must be an object of amounts');
    const custom: Record<string, number> = Object.create(null) as Record<string, number>;
    const entries = Object.entries(v);
    if (entries.length > 32) refuse('resources names more than 32 resources');
    for (const [name, amount] of entries) {
      if (!/^[A-Za-z][A-Za-z0-9_.:-]{0,62}$/.test(name)) refuse(`the resource name ${quote(name)} is not valid`);
      custom[name] = parseUnits(`resource ${name}`, amount);
    }
    return entries.length === 0 ? undefined : custom;
  },
  maxRetries: (v: unknown) => integer('maxRetries', v, -1, 100),
  retryOn: (v: unknown) => (Array.isArray(v) && v.length <= MAX_RETRY_NAMES ? v.map((name) => shortText('retryOn', name, METHOD, 'codes of failures or names of error classes')) : refuse(`retryOn must be a list of at most ${MAX_RETRY_NAMES} codes or names of error classes`)),
  retryDelayMs: (v: unknown) => integer('retryDelayMs', v, 0, MAX_RETRY_DELAY_MS),
  maxFanOut: (v: unknown) => integer('maxFanOut', v, 0, MAX_FAN_OUT),
  maxDepth: (v: unknown) => integer('maxDepth', v, 0, MAX_TASK_DEPTH),
  origin: (v: unknown) => shortText('origin', v, /^[0-9a-f]{40}$/, '40 hex digits'),
  timeoutMs: (v: unknown) => integer('timeoutMs', v, 0, 30 * DAY_MS),
  cpuTimeMs: (v: unknown) => integer('cpuTimeMs', v, 0, 30 * DAY_MS),
  queueTimeoutMs: (v: unknown) => integer('queueTimeoutMs', v, 0, 30 * DAY_MS),
  name: (v: unknown) => shortText('name', v, NAME, NAME_FORM),
  namespace: (v: unknown) => shortText('namespace', v, NAME, NAME_FORM),
  jobNamespace: (v: unknown) => shortText('jobNamespace', v, NAME, NAME_FORM),
  captureChildTasks: (v: unknown) => (typeof v === 'boolean' ? v : refuse('captureChildTasks must be true or false')),
  concurrencyGroup: (v: unknown) => shortText('concurrencyGroup', v, NAME, NAME_FORM),
  label: (v: unknown) => shortText('label', v, NAME, NAME_FORM),
  traceparent: (v: unknown) => shortText('traceparent', v, TRACEPARENT, 'a W3C traceparent of version 00'),
  isolation: (v: unknown) => (v === 'isolate' || v === 'gvisor' ? v : refuse("isolation must be 'isolate' or 'gvisor'")),
  runtime: (v: unknown) => (v === 'javascript' || (typeof v === 'string' && PYTHON.test(v)) ? v : refuse("runtime must be 'javascript', 'python3.N' or 'python3.N+' and 32 hex digits")),
  packages: parseRequirements,
  // Looked at together: `parsePlacement`.
  labels: (v: unknown) => v,
  fallback: (v: unknown) => v,
  nodeAffinity: (v: unknown) => v,
  scheduling: (v: unknown) => v,
  placementGroup: (v: unknown) => v,
  bundleIndex: (v: unknown) => v,
  priority: (v: unknown) => integer('priority', v, -MAX_PRIORITY, MAX_PRIORITY),
  detached: (v: unknown) => (typeof v === 'boolean' ? v : refuse('detached must be true or false')),
  getIfExists: (v: unknown) => (typeof v === 'boolean' ? v : refuse('getIfExists must be true or false')),
  maxRestarts: (v: unknown) => integer('maxRestarts', v, -1, 1_000),
  maxTaskRetries: (v: unknown) => integer('maxTaskRetries', v, -1, 1_000),
  maxConcurrency: (v: unknown) => integer('maxConcurrency', v, 1, 10_000),
  maxPendingCalls: (v: unknown) => integer('maxPendingCalls', v, 0, 1_000_000),
  streams: (v: unknown) => (Array.isArray(v) && v.length <= MAX_STREAMING_METHODS ? v.map((name) => shortText('streams', name, METHOD, 'names of methods')) : refuse(`streams must be a list of at most ${MAX_STREAMING_METHODS} names of methods`)),
});

/** Ray's defaults: a task takes one cpu, an actor none while it runs; three retries when a worker dies. */
/** An amount of everything, as a bundle of a placement group has it: `{ cpus, memoryBytes, resources }`. Throws INVALID_ARGUMENT. */
export function parseResources(given: Readonly<Record<string, unknown>>): ResourceVector {
  const { cpus, memoryBytes, resources, ...more } = given;
  const [unknown] = Object.keys(more);
  if (unknown !== undefined) refuse(`${quote(unknown)} is not an amount`);
  const of = (name: string, value: unknown): unknown => (value === undefined ? undefined : PARSERS[name]?.(value));
  return { cpuUnits: (of('cpus', cpus) as number | undefined) ?? 0, memoryBytes: (of('memoryBytes', memoryBytes) as number | undefined) ?? 0, custom: of('resources', resources) as Readonly<Record<string, number>> | undefined };
}

/** @param python which one this node runs, '' for none. */
export function parseFunctionOptions(json: string, isActor: boolean, python = ''): FunctionOptions {
  let parsed: unknown;
  try {
    parsed = JSON.parse(json === '' ? '{}' : json);
  } catch {
    return refuse('not JSON');
  }
  if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed)) refuse('not an object');
  const given: Record<string, unknown> = Object.create(null) as Record<string, unknown>;
  for (const [key, value] of Object.entries(parsed)) {
    const parse = PARSERS[key];
    if (parse === undefined) refuse(`${quote(key)} is not an option`);
    given[key] = parse(value);
  }
  const streams = given['returns'] === 'streaming';
  const named = (given['runtime'] as string | undefined) ?? 'javascript';
  const runtime = named === ANY_PYTHON && python !== '' ? python : named;
  if (runtime !== 'javascript' && given['isolation'] === 'isolate') refuse("Python runs in 'gvisor' only");
  const packages = (given['packages'] as readonly string[] | undefined) ?? NO_NAMES;
  if (packages.length > 0 && runtime === 'javascript') refuse('packages are for Python');
  if (given['captureChildTasks'] === true && given['placementGroup'] === undefined) refuse('captureChildTasks goes with placementGroup');
  if (given['concurrencyGroup'] !== undefined && runtime === 'javascript') refuse('concurrencyGroup is for methods of Python actors');
  return {
    returns: streams ? 0 : ((given['returns'] as number | undefined) ?? 1),
    stream: streams ? { items: (given['streamItems'] as number | undefined) ?? DEFAULT_STREAM_ITEMS, bytes: (given['streamBytes'] as number | undefined) ?? DEFAULT_STREAM_BYTES } : undefined,
    resources: {
      cpuUnits: (given['cpus'] as number | undefined) ?? (isActor ? 0 : 10_000),
      memoryBytes: (given['memoryBytes'] as number | undefined) ?? 0,
      custom: given['resources'] as Readonly<Record<string, number>> | undefined,
    },
    maxRetries: (given['maxRetries'] as number | undefined) ?? 3,
    retryOn: (given['retryOn'] as string[] | undefined) ?? NO_NAMES,
    retryDelayMs: (given['retryDelayMs'] as number | undefined) ?? 100,
    maxFanOut: (given['maxFanOut'] as number | undefined) ?? MAX_FAN_OUT,
    maxDepth: (given['maxDepth'] as number | undefined) ?? MAX_TASK_DEPTH,
    origin: (given['origin'] as string | undefined) ?? '',
    timeoutMs: (given['timeoutMs'] as number | undefined) ?? 0,
    cpuTimeMs: (given['cpuTimeMs'] as number | undefined) ?? 0,
    queueTimeoutMs: (given['queueTimeoutMs'] as number | undefined) ?? 0,
    name: (given['name'] as string | undefined) ?? '',
    namespace: (given['namespace'] as string | undefined) ?? '',
    jobNamespace: (given['jobNamespace'] as string | undefined) ?? '',
    captureChildTasks: (given['captureChildTasks'] as boolean | undefined) ?? false,
    label: (given['label'] as string | undefined) ?? '',
    runtime: runtimeWith(runtime, packages),
    packages,
    isolation: (given['isolation'] as 'isolate' | 'gvisor' | undefined) ?? (runtime === 'javascript' ? 'isolate' : 'gvisor'),
    detached: (given['detached'] as boolean | undefined) ?? false,
    getIfExists: (given['getIfExists'] as boolean | undefined) ?? false,
    maxRestarts: (given['maxRestarts'] as number | undefined) ?? 0,
    maxTaskRetries: given['maxTaskRetries'] as number | undefined,
    maxConcurrency: (given['maxConcurrency'] as number | undefined) ?? 1_000,
    maxPendingCalls: (given['maxPendingCalls'] as number | undefined) ?? 0,
    streams: (given['streams'] as string[] | undefined) ?? NO_NAMES,
    concurrencyGroup: (given['concurrencyGroup'] as string | undefined) ?? '',
    traceparent: (given['traceparent'] as string | undefined) ?? '',
    placement: parsePlacement(given),
    priority: (given['priority'] as number | undefined) ?? 0,
  };
}
