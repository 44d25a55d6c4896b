/**
 * What a killed raylet cannot take along: its run directory on tmpfs and the control groups of its workers. Must never: touch a group or
 * directory that is not of this very cluster, or follow a link that somebody else put there.
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, rmdirSync, rmSync, statfsSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { BulkheadError } from '../base/errors.ts';
import { parseCgroupMounts } from '../sandbox/jail/cgroup.ts';

const SHARED_MEMORY = '/dev/shm';
const GROUP_GONE_TIMEOUT_MS = 5_000;

function shortDigest(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 12);
}

export function headDirectory(dataDir: string): string {
  return join(dataDir, 'head');
}

/** The administrator's profile, which the head writes at each start. */
export function adminProfile(dataDir: string): string {
  return join(headDirectory(dataDir), 'admin');
}

export function rayletDirectory(dataDir: string, name: string): string {
  return join(dataDir, name);
}

/** The gateway's profile. */
export function gatewayProfile(dataDir: string): string {
  return join(dataDir, 'gateway');
}

/** Where this cluster's raylets keep objects and workers: memory, never disk. */
export function runDirectory(dataDir: string): string {
  return join(SHARED_MEMORY, `bulkhead-${process.getuid?.() ?? 0}-${shortDigest(dataDir)}`);
}

/** Others may put anything into /dev/shm: ours is used only when it is a directory, ours, and closed to their writes. */
function checkOwn(path: string): void {
  const status = lstatSync(path);
  if (!status.isDirectory() || status.uid !== process.getuid?.() || (status.mode & 0o022) !== 0) {
    throw new BulkheadError('UNAVAILABLE', `${path} is not a directory of yours that others cannot write; somebody else made it: have it removed, or choose another --data directory`);
  }
}

export function makeRunDirectory(dataDir: string): string {
  const path = runDirectory(dataDir);
  if (!existsSync(SHARED_MEMORY)) throw new BulkheadError('LAYER_MISSING', `${SHARED_MEMORY} is missing: objects live on tmpfs; mount it (mount -t tmpfs tmpfs ${SHARED_MEMORY})`);
  try {
    // Searchable by others: workers run as users of their own.
    mkdirSync(path, { mode: 0o711 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw new BulkheadError('UNAVAILABLE', `${path} cannot be made (${(error as NodeJS.ErrnoException).code})`, { cause: error });
  }
  checkOwn(path);
  mountLarge(path);
  return path;
}

const isMount = (path: string): boolean => lstatSync(path).dev !== lstatSync(SHARED_MEMORY).dev;
const withMounts = (command: 'mount' | 'umount', args: readonly string[]): boolean => spawnSync(command, args, { stdio: 'ignore', env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' } }).status === 0;

/**
 * A tmpfs of the cluster's own, which takes pages of 2 MiB for what is large: in pages of 4 KiB, three quarters of the time of a large put go into making and
 * charging them. Where this process may not mount, or the kernel has no such pages, the directory stays one of /dev/shm: that is slower, and otherwise the same.
 */
function mountLarge(path: string): void {
  if (process.getuid?.() !== 0 || isMount(path)) return;
  const { blocks, bsize } = statfsSync(SHARED_MEMORY);
  withMounts('mount', ['-t', 'tmpfs', '-o', `nosuid,nodev,mode=0711,huge=within_size,size=${blocks * bsize}`, 'bulkhead', path]);
}

export function removeRunDirectory(dataDir: string): void {
  const path = runDirectory(dataDir);
  if (!existsSync(path)) return;
  checkOwn(path);
  // Detached, since a process that was killed may still be ending in it.
  if (isMount(path)) withMounts('umount', ['--lazy', path]);
  rmSync(path, { recursive: true, force: true });
}

/** Directories that hold this cluster's groups, for every controller and every place where a raylet may have made them. */
function groupDirectories(trustDomain: string, startedIn: string): string[] {
  const mountInfo = readFileSync('/proc/self/mountinfo', 'latin1');
  const bases = new Set<string>();
  for (const groups of [startedIn, readFileSync('/proc/self/cgroup', 'latin1')]) {
    const { v1, v2 } = parseCgroupMounts(mountInfo, groups);
    for (const { mount, own } of [...v1.values(), ...(v2 === undefined ? [] : [v2])]) {
      bases.add(mount);
      bases.add(own);
      // A raylet under a delegated v2 group moves itself to this leaf.
      bases.add(own.replace(/\/bulkhead-supervisor$/, ''));
    }
  }
  return [...bases].map((base) => join(base, 'bulkhead', shortDigest(trustDomain))).filter((path) => existsSync(path));
}

function subdirectories(path: string): string[] {
  try {
    return readdirSync(path, { withFileTypes: true }).filter((e) => e.isDirectory()).map((e) => join(path, e.name));
  } catch {
    return [];
  }
}

function removedGroup(path: string): boolean {
  try {
    rmdirSync(path);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOENT';
  }
  return true;
}

function killGroup(path: string): void {
  let pids: number[];
  try {
    pids = readFileSync(join(path, 'cgroup.procs'), 'latin1').split('\n').filter((l) => l !== '').map(Number);
  } catch {
    return;
  }
  for (const pid of pids) {
    try {
      if (pid > 1 && pid !== process.pid) process.kill(pid, 'SIGKILL');
    } catch {
      // It ended in the meantime.
    }
  }
}

/** Groups of workers, and of tenants with those of their workers in them. */
function removeBelow(parent: string, left: string[]): void {
  for (const group of subdirectories(parent)) {
    removeBelow(group, left);
    killGroup(group);
    if (!removedGroup(group)) left.push(group);
  }
}

/** Ends what runs in the groups of these raylets and removes the groups. Returns the ones that would not go. Call it when the raylets are gone. */
export async function removeGroups(trustDomain: string, rayletDataDirs: readonly string[], startedIn: string): Promise<string[]> {
  const endMs = performance.now() + GROUP_GONE_TIMEOUT_MS;
  const nodes = new Set(rayletDataDirs.map(shortDigest));
  for (;;) {
    let left: string[] = [];
    for (const cluster of groupDirectories(trustDomain, startedIn)) {
      for (const node of subdirectories(cluster).filter((path) => nodes.has(path.slice(path.lastIndexOf('/') + 1)))) {
        removeBelow(node, left);
        if (!removedGroup(node)) left.push(node);
      }
      // Groups of other nodes keep these; the kernel removes only empty ones.
      if (removedGroup(cluster)) removedGroup(join(cluster, '..'));
    }
    left = left.filter((path) => existsSync(path));
    if (left.length === 0 || performance.now() >= endMs) return left;
    await sleep(25);
  }
}
