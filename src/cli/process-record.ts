/**
 * Which processes belong to a cluster on this machine: `processes.json` in its data directory. A process is its pid *and* when it
 * started (field 22 of /proc/<pid>/stat, and the boot it happened in), so that a pid used again by somebody else is never signalled.
 */
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { z } from 'zod';
import { BulkheadError } from '../base/errors.ts';

const IdentitySchema = z.strictObject({ pid: z.int().min(2), startTicks: z.string().regex(/^\d+$/), bootId: z.string().max(64) });
const RecordSchema = z.strictObject({
  version: z.literal(1),
  startedMs: z.number(),
  /** The `bulkhead up` that watches over them; a detached one is gone by then. */
  supervisor: IdentitySchema.optional(),
  /** /proc/self/cgroup of who started it: below it are its workers' groups. */
  startedIn: z.string().max(8_192).optional(),
  trustDomain: z.string().optional(),
  address: z.string().optional(),
  head: IdentitySchema.optional(),
  raylets: z.array(z.strictObject({ name: z.string().regex(/^raylet-\d{1,4}$/), process: IdentitySchema, nodeId: z.string().optional(), address: z.string().optional() })),
});

export type ProcessIdentity = z.infer<typeof IdentitySchema>;
export type ClusterRecord = z.infer<typeof RecordSchema>;

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
    return RecordSchema.parse(JSON.parse(text));
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
  return [...record.raylets.map((r) => r.process), ...(record.head === undefined ? [] : [record.head])];
}

export function runningProcesses(record: ClusterRecord): ProcessIdentity[] {
  return processesOf(record).filter(isAlive);
}
