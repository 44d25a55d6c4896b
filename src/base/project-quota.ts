/**
 * Quotas of a tenant's projects: names, values and what they mean, the same for the head, which stores them, and the raylet, which enforces them.
 * Among a tenant's quotas they are `project/name`, for example `etl/cpus`. Must never: take a value that is not whole and within its bounds.
 */
import { BulkheadError } from './errors.ts';
import { quote } from './ids.ts';
import { MAX_CALLS_PER_SECOND, MAX_PRIORITY } from './limits.ts';
import { parseMemory, parseUnits } from './resources.ts';

/** Of jobs that name none. */
export const DEFAULT_PROJECT = 'default';

export interface ProjectQuota {
  /** Nominal: what is the project's own. What of it is lent goes to siblings while it is not used; what is borrowed comes on top of it. */
  readonly cpuUnits: number;
  readonly cpuLendUnits: number;
  readonly cpuBorrowUnits: number;
  readonly memoryBytes: number;
  readonly memoryLendBytes: number;
  readonly memoryBorrowBytes: number;
  /** Bytes of objects that its jobs made and that are held. */
  readonly objectBytes: number;
  /** Tasks that were submitted and have not ended. */
  readonly tasks: number;
  readonly callsPerSecond: number;
  /** Tasks, actor creations and actor calls that were made and have not ended. */
  readonly inFlight: number;
  /** The highest priority that its jobs may ask for. */
  readonly priority: number;
  /** Of each of its jobs. */
  readonly jobCpuUnits: number;
  readonly jobMemoryBytes: number;
  readonly jobTasks: number;
  readonly jobCallsPerSecond: number;
  readonly jobInFlight: number;
}

const NONE = Number.POSITIVE_INFINITY;
export const NO_PROJECT_QUOTA: ProjectQuota = Object.freeze({
  cpuUnits: NONE, cpuLendUnits: 0, cpuBorrowUnits: 0, memoryBytes: NONE, memoryLendBytes: 0, memoryBorrowBytes: 0, objectBytes: NONE, tasks: NONE, callsPerSecond: NONE, inFlight: NONE, priority: 0,
  jobCpuUnits: NONE, jobMemoryBytes: NONE, jobTasks: NONE, jobCallsPerSecond: NONE, jobInFlight: NONE,
});

type Parse = (name: string, value: string) => number;
const cpus: Parse = (name, value) => (/^\d{1,7}(?:\.\d{1,4})?$/.test(value) ? parseUnits(`quota ${name}`, Number(value)) : refuse(name, value, 'a number of cpus'));
const bytes: Parse = (name, value) => {
  const parsed = parseMemory(/^\d+$/.test(value) ? Number(value) : value);
  return Number.isSafeInteger(parsed) ? parsed : refuse(name, value, 'an amount of memory');
};
const count = (most: number): Parse => (name, value) => (/^\d{1,9}$/.test(value) && Number(value) <= most ? Number(value) : refuse(name, value, `a whole number from 0 to ${most}`));
const calls = count(MAX_CALLS_PER_SECOND);
const tasks = count(999_999_999);

/** Calls per second of a tenant, as of a project. Throws INVALID_ARGUMENT. */
export function parseCallsPerSecond(value: string): number {
  return calls('calls', value);
}

const FIELDS: ReadonlyMap<string, readonly [field: keyof ProjectQuota, parse: Parse]> = new Map<string, readonly [keyof ProjectQuota, Parse]>([
  ['cpus', ['cpuUnits', cpus]], ['cpus-lend', ['cpuLendUnits', cpus]], ['cpus-borrow', ['cpuBorrowUnits', cpus]],
  ['memory', ['memoryBytes', bytes]], ['memory-lend', ['memoryLendBytes', bytes]], ['memory-borrow', ['memoryBorrowBytes', bytes]],
  ['objects', ['objectBytes', bytes]], ['tasks', ['tasks', tasks]], ['calls', ['callsPerSecond', calls]], ['inflight', ['inFlight', tasks]], ['priority', ['priority', count(MAX_PRIORITY)]],
  ['job-cpus', ['jobCpuUnits', cpus]], ['job-memory', ['jobMemoryBytes', bytes]], ['job-tasks', ['jobTasks', tasks]], ['job-calls', ['jobCallsPerSecond', calls]], ['job-inflight', ['jobInFlight', tasks]],
]);
export const PROJECT_QUOTA_NAMES: readonly string[] = Object.freeze([...FIELDS.keys()]);

const PROJECT = /^[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?$/;

function refuse(name: string, value: string, form: string): never {
  throw new BulkheadError('INVALID_ARGUMENT', `quota ${name} ${quote(value)} is not valid: give ${form}`);
}

/** Lower case ASCII, so that no two names look alike. Throws INVALID_ARGUMENT. */
export function parseProjectName(name: string): string {
  if (!PROJECT.test(name)) throw new BulkheadError('INVALID_ARGUMENT', `the project name ${quote(name)} is not valid: give 1 to 40 characters of a-z 0-9 -, a letter first and no - last`);
  return name;
}

/** Throws INVALID_ARGUMENT when the quota is not known or its value is not valid. */
export function checkProjectQuota(name: string, value: string): void {
  const field = FIELDS.get(name);
  if (field === undefined) throw new BulkheadError('INVALID_ARGUMENT', `quota ${quote(name)} of a project is not known: ${PROJECT_QUOTA_NAMES.join(', ')} are`);
  field[1](name, value);
}

/** Those of all projects, out of a tenant's quotas. Throws INVALID_ARGUMENT. */
export function projectQuotas(quota: Readonly<Record<string, string>>): ReadonlyMap<string, ProjectQuota> {
  const found = new Map<string, Record<string, number>>();
  for (const [key, value] of Object.entries(quota)) {
    const slash = key.indexOf('/');
    if (slash < 0) continue;
    const project = parseProjectName(key.slice(0, slash));
    const name = key.slice(slash + 1);
    checkProjectQuota(name, value);
    const [field, parse] = FIELDS.get(name) as readonly [keyof ProjectQuota, Parse];
    let of = found.get(project);
    if (of === undefined) found.set(project, (of = {}));
    of[field] = parse(name, value);
  }
  const whole = new Map<string, ProjectQuota>();
  for (const [project, of] of found) {
    const q: ProjectQuota = { ...NO_PROJECT_QUOTA, ...of };
    // Nobody lends more than is its own, and what has no bound is not lent or borrowed against.
    const cpuLendUnits = q.cpuUnits === NONE ? 0 : Math.min(q.cpuLendUnits, q.cpuUnits);
    const memoryLendBytes = q.memoryBytes === NONE ? 0 : Math.min(q.memoryLendBytes, q.memoryBytes);
    whole.set(project, Object.freeze({ ...q, cpuLendUnits, memoryLendBytes }));
  }
  return whole;
}
