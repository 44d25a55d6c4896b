/**
 * What the quotas of a tenant are, the same for the head, which shares them out, and for raylets, which enforce their shares. A *line* is one amount that
 * holds for the sum over all nodes: `cpus` of the tenant, `etl/cpus` of a project, `@job-…/tasks` of a job, `cpus-pool` of what projects lend each other.
 */
import { parseCallsPerSecond, projectQuotas, type ProjectQuota } from './project-quota.ts';
import { parseMemory, parseUnits } from './resources.ts';
import { parseDuration } from './time.ts';

export interface TenantQuota {
  /** Units of 1/10,000 cpu in use at once; Infinity: none. */
  cpuUnits: number;
  memoryBytes: number;
  /** Bytes of objects held. */
  objectBytes: number;
  /** Of a node's, those in memory (tmpfs): what is over it is moved to disk. Of each node, as the memory is. */
  objectMemoryBytes: number;
  /** Tasks that were submitted and have not ended; those that another node forwarded count over there. */
  tasks: number;
  /** Actors that were created and are not dead; each counts where it was created. */
  actors: number;
  /** Worker processes. */
  workers: number;
  /** A driver that has asked for nothing for so long, and has nothing under way, is ended, ms. */
  idleMs: number;
  /** Tasks, actor creations and actor calls that are submitted. */
  callsPerSecond: number;
  /** Tasks, actor creations and actor calls that were made and have not ended; each counts where it was made. */
  inFlight: number;
  projects: ReadonlyMap<string, ProjectQuota>;
}

const NONE = Number.POSITIVE_INFINITY;
export const NO_QUOTA: TenantQuota = Object.freeze({
  cpuUnits: NONE, memoryBytes: NONE, objectBytes: NONE, objectMemoryBytes: NONE, tasks: NONE, actors: NONE, workers: NONE, idleMs: NONE, callsPerSecond: NONE, inFlight: NONE, projects: new Map<string, ProjectQuota>(),
});

/** As `tenant create --quota` stores them; what is not given has no limit. Throws INVALID_ARGUMENT. */
export function parseQuota(quota: Readonly<Record<string, string>>): TenantQuota {
  const given = <T>(name: string, parse: (text: string) => T): T | undefined => (quota[name] === undefined ? undefined : parse(quota[name]));
  return {
    cpuUnits: given('cpus', (text) => parseUnits('cpus', Number(text))) ?? NONE,
    memoryBytes: given('memory', parseMemory) ?? NONE,
    objectBytes: given('objects', parseMemory) ?? NONE,
    objectMemoryBytes: given('objectMemory', parseMemory) ?? NONE,
    tasks: given('tasks', Number) ?? NONE,
    actors: given('actors', Number) ?? NONE,
    workers: given('workers', Number) ?? NONE,
    idleMs: given('idle', parseDuration) ?? NONE,
    callsPerSecond: given('calls', parseCallsPerSecond) ?? NONE,
    inFlight: given('inflight', Number) ?? NONE,
    projects: projectQuotas(quota),
  };
}

/** Whether it has a quota that holds for the sum over nodes. */
export function hasShared(quota: TenantQuota): boolean {
  return quota.projects.size > 0 || Object.values(OF_TENANT).some((field) => quota[field] !== NONE);
}

/** What all projects of the tenant lend. */
export function lent(quota: TenantQuota, field: 'cpuLendUnits' | 'memoryLendBytes'): number {
  let sum = 0;
  for (const project of quota.projects.values()) sum += project[field];
  return sum;
}

const OF_TENANT: Readonly<Record<string, keyof Omit<TenantQuota, 'projects'>>> = Object.freeze({ cpus: 'cpuUnits', memory: 'memoryBytes', tasks: 'tasks', actors: 'actors', workers: 'workers', calls: 'callsPerSecond', inflight: 'inFlight' });
const OF_PROJECT: Readonly<Record<string, keyof ProjectQuota>> = Object.freeze({ cpus: 'cpuUnits', 'cpus-borrow': 'cpuBorrowUnits', memory: 'memoryBytes', 'memory-borrow': 'memoryBorrowBytes', tasks: 'tasks', calls: 'callsPerSecond', inflight: 'inFlight' });
const OF_JOB: Readonly<Record<string, keyof ProjectQuota>> = Object.freeze({ cpus: 'jobCpuUnits', memory: 'jobMemoryBytes', tasks: 'jobTasks', calls: 'jobCallsPerSecond', inflight: 'jobInFlight' });

/** The whole amount of a line, to be shared by all nodes; undefined: there is no such line, or it has no limit. */
export function amountOfLine(quota: TenantQuota, line: string, projectOfJob: (jobId: string) => string | undefined): number | undefined {
  const slash = line.indexOf('/');
  let amount: number | undefined;
  if (slash < 0) {
    const field = Object.hasOwn(OF_TENANT, line) ? OF_TENANT[line] : undefined;
    amount = line === 'cpus-pool' ? lent(quota, 'cpuLendUnits') : line === 'memory-pool' ? lent(quota, 'memoryLendBytes') : field === undefined ? undefined : quota[field];
  } else {
    const name = line.slice(slash + 1);
    const ofJob = line.startsWith('@');
    const project = ofJob ? projectOfJob(line.slice(1, slash)) : line.slice(0, slash);
    const fields = ofJob ? OF_JOB : OF_PROJECT;
    const field = Object.hasOwn(fields, name) ? fields[name] : undefined;
    amount = field === undefined || project === undefined ? undefined : quota.projects.get(project)?.[field];
  }
  return amount === NONE ? undefined : amount;
}

/** What a node says about one line. Amounts are whole numbers in the unit of the line. */
export interface LineDemand {
  readonly line: string;
  /** What the node may use, or uses where that is more: nobody else may have it. */
  readonly held: number;
  readonly use: number;
  /** Of what it uses and wants, what it has a right to before what others merely borrow; the same as `use` where nothing is borrowed. */
  readonly firm: number;
  /** What it could use now beyond `use`. */
  readonly want: number;
  /** The least that helps it; 0: nothing waits. */
  readonly next: number;
  /** For how long that has waited, ms. */
  readonly blockedMs: number;
}

export interface LineShare {
  readonly line: string;
  readonly amount: number;
  /** More is on its way: others were asked to give it back. */
  readonly coming: boolean;
}

/** What a node says of a tenant. */
export interface TenantDemand {
  readonly tenant: string;
  /** Serial of the newest shares of this tenant that are in force on the node. */
  readonly applied: number;
  /** All lines of the tenant that the node knows of. None: it holds nothing. */
  readonly lines: readonly LineDemand[];
}

/** What a node is told of a tenant. */
export interface TenantShare {
  readonly tenant: string;
  readonly serial: number;
  readonly lines: readonly LineShare[];
}
