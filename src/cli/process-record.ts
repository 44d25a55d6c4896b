/**
 * Which processes belong to a cluster on this machine: `processes.json` in its data directory. A process is its pid *and* when it
 * started (field 22 of /proc/<pid>/stat, and the boot it happened in), so that a pid used again by somebody else is never signalled.
 */
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { BulkheadError } from '../base/errors.ts';

export interface ProcessIdentity {
  readonly pid: number;
  readonly startTicks: string;
  readonly bootId: string;
}

export interface ClusterRecord {
  readonly version: 1;
  readonly startedMs: number;
  /** The `bulkhead up` that watches over them; a detached one is gone by then. */
  readonly supervisor?: ProcessIdentity;
  /** /proc/self/cgroup of who started it: below it are its workers' groups. */
  readonly startedIn?: string;
  readonly trustDomain?: string;
  readonly address?: string;
  readonly head?: ProcessIdentity;
  readonly gateway?: ProcessIdentity;
  readonly raylets: readonly { readonly name: string; readonly process: ProcessIdentity; readonly nodeId?: string; readonly address?: string }[];
}

/** By hand: a schema library would cost every start of a cluster 50 ms. Throws for anything that is not a record. */
function parseRecord(text: string): ClusterRecord {
  const refuse = (): never => {
    throw new Error('not a record');
  };
  const object = (value: unknown): Readonly<Record<string, unknown>> => (typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : refuse());
  const string = (value: unknown, pattern: RegExp): string => (typeof value === 'string' && value.length <= 8_192 && pattern.test(value) ? value : refuse());
  const identity = (value: unknown): ProcessIdentity => {
    const { pid, startTicks, bootId } = object(value);
    if (typeof pid !== 'number' || !Number.isSafeInteger(pid) || pid < 2) return refuse();
    return { pid, startTicks: string(startTicks, /^\d{1,20}$/), bootId: string(bootId, /^[0-9a-f-]{1,64}$/) };
  };
  const { version, startedMs, raylets, supervisor, head, gateway, startedIn, trustDomain, address } = object(JSON.parse(text));
  if (version !== 1 || typeof startedMs !== 'number' || !Array.isArray(raylets)) return refuse();
  const optional = <K extends string, T>(key: K, value: unknown, parse: (value: unknown) => T): { readonly [P in K]?: T } => (value === undefined ? {} : ({ [key]: parse(value) } as { readonly [P in K]: T }));
  const text8k = (value: unknown): string => string(value, /^[^]*$/);
  return {
    version, startedMs, ...optional('supervisor', supervisor, identity), ...optional('head', head, identity), ...optional('gateway', gateway, identity), ...optional('startedIn', startedIn, text8k), ...optional('trustDomain', trustDomain, text8k), ...optional('address', address, text8k),
    raylets: raylets.map((value: unknown) => {
      const raylet = object(value);
      return { name: string(raylet['name'], /^raylet-\d{1,4}$/), process: identity(raylet['process']), ...optional('nodeId', raylet['nodeId'], text8k), ...optional('address', raylet['address'], text8k) };
    }),
  };
}

export function recordPath(dataDir: string): string {
  return join(dataDir, 'processes.json');
}

function bootId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim();
}

/** State letter and start time of a process; undefined when there is none. */
function readStat(pid: number): { state: string; startTicks: string } | undefined {
  let text: string;
  try {
    text = readFileSync(`/proc/${pid}/stat`, 'latin1');
  } catch {
    return undefined;
  }
  // The second field is the program's name in parentheses and may hold anything, spaces and parentheses too.
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  return { state: fields[0] ?? '', startTicks: fields[19] ?? '' };
}

export function identify(pid: number): ProcessIdentity | undefined {
  const stat = readStat(pid);
  return stat === undefined || stat.state === 'Z' ? undefined : { pid, startTicks: stat.startTicks, bootId: bootId() };
}

export function isAlive(identity: ProcessIdentity): boolean {
  const stat = readStat(identity.pid);
  return stat !== undefined && stat.state !== 'Z' && stat.state !== 'X' && stat.startTicks === identity.startTicks && identity.bootId === bootId();
}

/** Signals exactly this process; false when it is gone. */
export function signalProcess(identity: ProcessIdentity, signal: NodeJS.Signals): boolean {
  if (!isAlive(identity)) return false;
  try {
    return process.kill(identity.pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false;
    throw new BulkheadError('UNAVAILABLE', `process ${identity.pid} cannot be signalled (${(error as NodeJS.ErrnoException).code}); it belongs to another user: run this as that user`, { cause: error });
  }
}

/** Waits until all are gone; the ones that are not when the time is over. */
export async function waitUntilGone(identities: readonly ProcessIdentity[], timeoutMs: number): Promise<ProcessIdentity[]> {
  const endMs = performance.now() + timeoutMs;
  for (;;) {
    const left = identities.filter(isAlive);
    if (left.length === 0 || performance.now() >= endMs) return left;
    await sleep(20);
  }
}

/** The record; undefined when there is none. A damaged one is an error: guessing could leave processes behind. */
export function readRecord(dataDir: string): ClusterRecord | undefined {
  const path = recordPath(dataDir);
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT' || (error as NodeJS.ErrnoException).code === 'ENOTDIR') return undefined;
    throw new BulkheadError('UNAVAILABLE', `${path} cannot be read (${(error as NodeJS.ErrnoException).code}); run this as the user who started the cluster`, { cause: error });
  }
  try {
    return parseRecord(text);
  } catch (error) {
    throw new BulkheadError('UNAVAILABLE', `${path} is damaged; look for processes of this cluster (ps -C node), end them, and remove the file`, { cause: error });
  }
}

export function writeRecord(dataDir: string, record: ClusterRecord): void {
  const path = recordPath(dataDir);
  writeFileSync(`${path}.tmp`, `${JSON.stringify(record)}\n`, { mode: 0o600 });
  renameSync(`${path}.tmp`, path);
}

export function removeRecord(dataDir: string): void {
  rmSync(recordPath(dataDir), { force: true });
}

export function processesOf(record: ClusterRecord): ProcessIdentity[] {
  return [...record.raylets.map((r) => r.process), ...[record.gateway, record.head].filter((p) => p !== undefined)];
}

export function runningProcesses(record: ClusterRecord): ProcessIdentity[] {
  return processesOf(record).filter(isAlive);
}
