/**
 * Limits that hold from outside: one control group per worker, `bulkhead/<cluster>/<node>/<worker>`, on cgroup v1 or v2; when the worker gets a
 * tenant, its group goes below the tenant's, `…/tenant-<name>/<worker>`, which holds all of them to the tenant's CPUs whatever they claim. The files of
 * the kernel are reached through `CgroupFiles`, so that both layouts run against a model in tests and against the real tree here.
 * Must never: run a worker whose process is not seen in its group; leave a group behind; touch a group that it did not make.
 */
import { mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { BulkheadError } from '../../base/errors.ts';

const END_TRIES = 500;
const END_RETRY_MS = 10;

export interface CgroupLimits {
  readonly memoryBytes: number;
  /** Fraction of CPUs, 0.01 at least. */
  readonly cpus: number;
  /** Processes and threads. */
  readonly pids: number;
}

/** One worker's group. */
export interface Cgroup {
  /** Moves a process in and checks, from /proc, that it is there. */
  add(pid: number): void;
  setLimits(limits: CgroupLimits): void;
  /** Puts the group below its tenant's, with what is in it, and sets its limits: once. Throws LAYER_MISSING where the kernel refuses, or a process is not seen there. */
  join(tenant: string, limits: CgroupLimits): void;
  /** The limits as the kernel holds them, read back. */
  readLimits(): CgroupLimits;
  /** CPUs that all workers of the tenant may use together, read back; Infinity: no bound. Undefined: it has no tenant. */
  readTenantCpus(): number | undefined;
  memoryBytes(): number;
  cpuMicros(): number;
  /** How many processes of the group the kernel killed for memory. */
  oomKills(): number;
  pids(): number[];
  /** SIGKILL to all processes in it. */
  killAll(): void;
  /** Removes the group; false while a process is still in it: ask again. */
  remove(): boolean;
}

/** Ends whatever is in a group, and removes it: the kernel needs a moment after the last process ended. */
export async function endGroup(cgroup: Cgroup): Promise<void> {
  for (let tries = 0; tries < END_TRIES; tries++) {
    cgroup.killAll();
    if (cgroup.remove()) return;
    await sleep(END_RETRY_MS);
  }
}

export interface CgroupTree {
  readonly version: 'v1' | 'v2' | 'none';
  /** Creates a group with its limits in force. Throws LAYER_MISSING where the kernel refuses. */
  create(name: string, limits: CgroupLimits): Cgroup;
  /** What all workers of a tenant may use together, CPUs; Infinity: no bound but an equal weight beside other tenants. */
  setTenantCpus(tenant: string, cpus: number): void;
  /** Ends and removes groups that an earlier owner of this path left when it was killed. Answers how many are still there: ask again. */
  sweep(): number;
  /** Removes the directories above the groups that are empty now. */
  close(): void;
}

/** The few file calls that a group needs. */
export interface CgroupFiles {
  read(path: string): string;
  write(path: string, text: string): void;
  mkdir(path: string): void;
  rmdir(path: string): void;
  /** Names of directories inside. */
  list(path: string): string[];
}

export const KERNEL_FILES: CgroupFiles = {
  read: (path) => readFileSync(path, 'latin1'),
  write: (path, text) => writeFileSync(path, text),
  mkdir: (path) => {
    mkdirSync(path, { mode: 0o755 });
  },
  rmdir: (path) => rmdirSync(path),
  list: (path) => readdirSync(path, { withFileTypes: true }).filter((entry) => entry.isDirectory()).map((entry) => entry.name),
};

const V1_CONTROLLERS = ['memory', 'cpu', 'cpuacct', 'pids'] as const;
type V1Controller = (typeof V1_CONTROLLERS)[number];
const CPU_PERIOD_MICROS = 100_000;
const MOVE_TRIES = 16;
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;
const REMEDY = 'start the raylet as root, or under a delegated group (systemd-run --scope -p Delegate=yes)';

function codeOf(thrown: unknown): string {
  return typeof thrown === 'object' && thrown !== null && 'code' in thrown ? String(thrown.code) : '';
}

function missing(what: string, cause?: unknown): BulkheadError {
  return new BulkheadError('LAYER_MISSING', `layer cgroup is missing: ${what}; ${REMEDY}`, { cause });
}

function toInteger(text: string): number {
  const value = Number(text.trim());
  return Number.isFinite(value) ? value : 0;
}

function keyed(text: string, key: string): number {
  for (const line of text.split('\n')) if (line.startsWith(`${key} `)) return toInteger(line.slice(key.length + 1));
  return 0;
}

/** Where this process finds its groups. */
export interface CgroupMounts {
  /** Mount point of each v1 controller, and this process's own directory under it. */
  readonly v1: ReadonlyMap<V1Controller, { readonly mount: string; readonly own: string }>;
  readonly v2: { readonly mount: string; readonly own: string } | undefined;
}

/** From the texts of /proc/self/mountinfo and /proc/self/cgroup. Pure. */
export function parseCgroupMounts(mountInfo: string, ownGroups: string): CgroupMounts {
  const own = new Map<string, string>();
  for (const line of ownGroups.split('\n')) {
    const match = /^\d+:([^:]*):(\/.*)$/.exec(line);
    if (match === null) continue;
    for (const controller of (match[1] ?? '').split(',')) own.set(controller, match[2] ?? '/');
  }
  // Own path relative to the mount: in a container the mount shows a subtree whose root is the fourth field.
  const inside = (mount: string, root: string, path: string): string => {
    const relative = root !== '/' && (path === root || path.startsWith(`${root}/`)) ? path.slice(root.length) : path;
    return relative.split('/').includes('..') ? mount : `${mount}${relative === '/' ? '' : relative}`;
  };
  const v1 = new Map<V1Controller, { mount: string; own: string }>();
  let v2: { mount: string; own: string } | undefined;
  for (const line of mountInfo.split('\n')) {
    const [before, after] = line.split(' - ');
    if (before === undefined || after === undefined) continue;
    const [, , , root, mount] = before.split(' ');
    const [type, , options] = after.split(' ');
    if (root === undefined || mount === undefined) continue;
    if (type === 'cgroup2') v2 ??= { mount, own: inside(mount, root, own.get('') ?? '/') };
    if (type !== 'cgroup') continue;
    for (const option of (options ?? '').split(',')) {
      const controller = V1_CONTROLLERS.find((name) => name === option);
      if (controller !== undefined && !v1.has(controller)) v1.set(controller, { mount, own: inside(mount, root, own.get(controller) ?? '/') });
    }
  }
  return { v1, v2 };
}

function ensure(files: CgroupFiles, base: string, segments: readonly string[], made: string[]): string {
  let path = base;
  for (const segment of segments) {
    path = `${path}/${segment}`;
    try {
      files.mkdir(path);
    } catch (thrown) {
      if (codeOf(thrown) !== 'EEXIST') throw thrown;
    }
    made.push(path);
  }
  return path;
}

function processList(text: string): number[] {
  return text.split('\n').filter((line) => line !== '').map(Number);
}

function signalAll(pids: readonly number[]): void {
  for (const pid of pids) {
    try {
      if (pid > 1) process.kill(pid, 'SIGKILL');
    } catch {
      // It ended in the meantime.
    }
  }
}

/** Removes one directory; true when it is gone. */
function removed(files: CgroupFiles, path: string): boolean {
  try {
    files.rmdir(path);
  } catch (thrown) {
    return codeOf(thrown) === 'ENOENT';
  }
  return true;
}

/** Directories on the way to the groups, whoever made them: the kernel removes only empty ones, so the last node that leaves takes them along. */
function removeMade(files: CgroupFiles, made: readonly string[]): void {
  for (const path of [...made].reverse()) removed(files, path);
}

function quotaMicros(cpus: number): number {
  return Math.max(1_000, Math.round(cpus * CPU_PERIOD_MICROS));
}

// --- groups of tenants ----------------------------------------------------------------------------------------------

/** How a version of the kernel's files says how much CPU a group may use. */
interface CpuFiles {
  /** Directories of a tenant's group, the one with the CPU limit first; makes them. */
  make(group: string): readonly string[];
  write(directory: string, cpus: number): void;
  read(directory: string): number;
}

interface Member {
  /** Its own limit again, now that the tenant's is another. */
  applyCpus(): void;
}

interface TenantGroup {
  cpus: number;
  directories: readonly string[];
  readonly members: Set<Member>;
}

/** The groups above the workers' groups: one a tenant, there while it has workers. */
class TenantGroups {
  readonly #files: CgroupFiles;
  readonly #cpuFiles: CpuFiles;
  readonly #tenants = new Map<string, TenantGroup>();

  constructor(files: CgroupFiles, cpuFiles: CpuFiles) {
    this.#files = files;
    this.#cpuFiles = cpuFiles;
  }

  static nameOf(tenant: string): string {
    const name = `tenant-${tenant}`;
    checkName(name);
    return name;
  }

  #of(tenant: string): TenantGroup {
    let group = this.#tenants.get(tenant);
    if (group === undefined) this.#tenants.set(tenant, (group = { cpus: Number.POSITIVE_INFINITY, directories: [], members: new Set() }));
    return group;
  }

  setCpus(tenant: string, cpus: number): void {
    const group = this.#of(tenant);
    const { cpus: before, directories: [directory] } = group;
    group.cpus = cpus;
    if (directory === undefined || cpus === before) return;
    // v1 lets no group have more than the one above it.
    if (cpus < before) for (const member of group.members) member.applyCpus();
    this.#cpuFiles.write(directory, cpus);
    if (cpus > before) for (const member of group.members) member.applyCpus();
  }

  /** Before a worker's group is made there: the tenant's stands, with its limit. */
  enter(tenant: string, member: Member): void {
    const group = this.#of(tenant);
    const first = group.members.size === 0;
    group.members.add(member);
    if (first) {
      group.directories = this.#cpuFiles.make(TenantGroups.nameOf(tenant));
      this.#cpuFiles.write(group.directories[0] as string, group.cpus);
    }
  }

  leave(tenant: string, member: Member): void {
    const group = this.#of(tenant);
    if (!group.members.delete(member) || group.members.size > 0) return;
    for (const directory of new Set(group.directories)) removed(this.#files, directory);
    group.directories = [];
  }

  cpusOf(tenant: string | undefined): number {
    return tenant === undefined ? Number.POSITIVE_INFINITY : this.#of(tenant).cpus;
  }

  readCpus(tenant: string): number {
    const [directory] = this.#of(tenant).directories;
    if (directory === undefined) throw missing('the tenant has no group');
    return this.#cpuFiles.read(directory);
  }
}

/** Moves all processes of a group: they cannot make others, but one may be in the middle of its start. */
function moveAll(pids: () => number[], move: (pid: number) => void): void {
  for (let i = 0; i < MOVE_TRIES; i++) {
    const left = pids();
    if (left.length === 0) return;
    for (const pid of left) {
      try {
        move(pid);
      } catch (thrown) {
        // It ended in the meantime.
        if (codeOf(thrown) !== 'ESRCH') throw thrown;
      }
    }
  }
  throw missing("processes of a worker stay outside their tenant's group");
}

// --- v1: one tree per controller ------------------------------------------------------------------------------------

interface V1Tree {
  readonly files: CgroupFiles;
  readonly readProc: (pid: number) => string;
  readonly bases: ReadonlyMap<V1Controller, string>;
  /** `/bulkhead/<cluster>/<node>`. */
  readonly path: string;
  /** The trees in which tenants have groups: those of CPU time, and what is mounted with them. Memory stays where it is charged. */
  readonly ofTenants: readonly V1Controller[];
  readonly tenants: TenantGroups;
}

class CgroupV1 implements Cgroup, Member {
  readonly #tree: V1Tree;
  readonly #files: CgroupFiles;
  readonly #name: string;
  readonly #directories = new Map<V1Controller, string>();
  /** Where it was before it had a tenant, until they are removed. */
  readonly #left = new Set<string>();
  #limits: CgroupLimits;
  #tenant: string | undefined;

  constructor(tree: V1Tree, name: string, limits: CgroupLimits) {
    this.#tree = tree;
    this.#files = tree.files;
    this.#name = name;
    this.#limits = limits;
  }

  create(): void {
    // Controllers mounted together share a directory.
    for (const controller of V1_CONTROLLERS) this.#directories.set(controller, ensure(this.#files, this.#tree.bases.get(controller) ?? '', [this.#name], []));
    this.setLimits(this.#limits);
  }

  #at(controller: V1Controller, file: string): string {
    return `${this.#directories.get(controller) ?? ''}/${file}`;
  }

  #suffix(controller: V1Controller): string {
    const above = this.#tenant !== undefined && this.#tree.ofTenants.includes(controller) ? `/${TenantGroups.nameOf(this.#tenant)}` : '';
    return `${this.#tree.path}${above}/${this.#name}`;
  }

  #check(pid: number, controllers: readonly V1Controller[] = V1_CONTROLLERS): void {
    const groups = parseGroups(this.#tree.readProc(pid));
    for (const controller of controllers) if (!(groups.get(controller) ?? '').endsWith(this.#suffix(controller))) throw missing(`the worker's process is not in its ${controller} group`);
  }

  add(pid: number): void {
    for (const controller of V1_CONTROLLERS) this.#files.write(this.#at(controller, 'cgroup.procs'), String(pid));
    this.#check(pid);
  }

  join(tenant: string, limits: CgroupLimits): void {
    const { bases, ofTenants, tenants } = this.#tree;
    const before = new Map(this.#directories);
    for (const controller of ofTenants) this.#left.add(before.get(controller) ?? '');
    this.#tenant = tenant;
    try {
      tenants.enter(tenant, this);
      for (const controller of ofTenants) this.#directories.set(controller, ensure(this.#files, bases.get(controller) ?? '', [TenantGroups.nameOf(tenant), this.#name], []));
      this.setLimits(limits);
      for (const directory of this.#left) {
        const into = ofTenants.filter((controller) => before.get(controller) === directory);
        moveAll(() => processList(this.#files.read(`${directory}/cgroup.procs`)), (pid) => {
          for (const controller of into) this.#files.write(this.#at(controller, 'cgroup.procs'), String(pid));
          this.#check(pid, into);
        });
        if (removed(this.#files, directory)) this.#left.delete(directory);
      }
    } catch (thrown) {
      throw thrown instanceof BulkheadError ? thrown : missing("the kernel refuses a worker in its tenant's group", thrown);
    }
  }

  setLimits(limits: CgroupLimits): void {
    this.#limits = limits;
    this.#files.write(this.#at('memory', 'memory.limit_in_bytes'), String(limits.memoryBytes));
    this.applyCpus();
    this.#files.write(this.#at('pids', 'pids.max'), String(limits.pids));
  }

  applyCpus(): void {
    const cpu = this.#directories.get('cpu');
    if (cpu !== undefined) writeV1Cpus(this.#files, cpu, Math.min(this.#limits.cpus, this.#tree.tenants.cpusOf(this.#tenant)));
  }

  readLimits(): CgroupLimits {
    return {
      memoryBytes: toInteger(this.#files.read(this.#at('memory', 'memory.limit_in_bytes'))),
      cpus: readV1Cpus(this.#files, this.#directories.get('cpu') ?? ''),
      pids: toInteger(this.#files.read(this.#at('pids', 'pids.max'))),
    };
  }

  readTenantCpus(): number | undefined {
    return this.#tenant === undefined ? undefined : this.#tree.tenants.readCpus(this.#tenant);
  }

  memoryBytes(): number {
    return toInteger(this.#files.read(this.#at('memory', 'memory.usage_in_bytes')));
  }

  cpuMicros(): number {
    return Math.floor(toInteger(this.#files.read(this.#at('cpuacct', 'cpuacct.usage'))) / 1_000);
  }

  oomKills(): number {
    return keyed(this.#files.read(this.#at('memory', 'memory.oom_control')), 'oom_kill');
  }

  pids(): number[] {
    return processList(this.#files.read(this.#at('pids', 'cgroup.procs')));
  }

  killAll(): void {
    signalAll(this.pids());
  }

  remove(): boolean {
    let all = true;
    for (const directory of new Set([...this.#directories.values(), ...this.#left])) all = removed(this.#files, directory) && all;
    if (all && this.#tenant !== undefined) this.#tree.tenants.leave(this.#tenant, this);
    return all;
  }
}

function writeV1Cpus(files: CgroupFiles, directory: string, cpus: number): void {
  files.write(`${directory}/cpu.cfs_period_us`, String(CPU_PERIOD_MICROS));
  files.write(`${directory}/cpu.cfs_quota_us`, cpus === Number.POSITIVE_INFINITY ? '-1' : String(quotaMicros(cpus)));
}

function readV1Cpus(files: CgroupFiles, directory: string): number {
  const quota = toInteger(files.read(`${directory}/cpu.cfs_quota_us`));
  return quota < 0 ? Number.POSITIVE_INFINITY : quota / toInteger(files.read(`${directory}/cpu.cfs_period_us`));
}

function parseGroups(text: string): Map<string, string> {
  const groups = new Map<string, string>();
  for (const line of text.split('\n')) {
    const match = /^\d+:([^:]*):(\/.*)$/.exec(line);
    if (match !== null) for (const controller of (match[1] ?? '').split(',')) groups.set(controller, match[2] ?? '');
  }
  return groups;
}

const readProcCgroup = (pid: number): string => readFileSync(`/proc/${pid}/cgroup`, 'latin1');

export interface OpenTreeOptions {
  /** `<cluster>/<node>` below `bulkhead`. */
  readonly path: readonly string[];
  readonly files?: CgroupFiles;
  readonly readProc?: (pid: number) => string;
}

export function openV1Tree(mounts: CgroupMounts, options: OpenTreeOptions): CgroupTree {
  const files = options.files ?? KERNEL_FILES;
  const made: string[] = [];
  const bases = new Map<V1Controller, string>();
  for (const controller of V1_CONTROLLERS) {
    const found = mounts.v1.get(controller);
    if (found === undefined) throw missing(`the v1 controller ${controller} is not mounted`);
    // Inside the raylet's own group first, so that a container's limits bind its workers too.
    let failure: unknown;
    for (const base of new Set([found.own, found.mount])) {
      try {
        bases.set(controller, ensure(files, base, ['bulkhead', ...options.path], made));
        break;
      } catch (thrown) {
        failure = thrown;
      }
    }
    if (!bases.has(controller)) {
      removeMade(files, made);
      throw missing(`no group can be made in the ${controller} tree`, failure);
    }
  }
  // What is mounted together moves together.
  const timed = new Set([bases.get('cpu'), bases.get('cpuacct')]);
  const ofTenants = V1_CONTROLLERS.filter((controller) => timed.has(bases.get(controller)));
  const tenants = new TenantGroups(files, {
    make: (group) => (['cpu', ...ofTenants] as const).map((controller) => ensure(files, bases.get(controller) ?? '', [group], [])),
    write: (directory, cpus) => writeV1Cpus(files, directory, cpus),
    read: (directory) => readV1Cpus(files, directory),
  });
  const above: V1Tree = { files, readProc: options.readProc ?? readProcCgroup, bases, path: `/bulkhead/${options.path.join('/')}`, ofTenants, tenants };
  return {
    version: 'v1',
    setTenantCpus: (tenant, cpus) => tenants.setCpus(tenant, cpus),
    create: (name, limits) => {
      checkName(name);
      const group = new CgroupV1(above, name, limits);
      try {
        group.create();
      } catch (thrown) {
        group.remove();
        throw missing('the kernel refuses the limits', thrown);
      }
      return group;
    },
    sweep: () => {
      let left = 0;
      for (const base of new Set(bases.values())) left += sweepGroups(files, base);
      return left;
    },
    close: () => removeMade(files, made),
  };
}

function sweepGroups(files: CgroupFiles, parent: string): number {
  let left = 0;
  let names: string[] = [];
  try {
    names = files.list(parent);
  } catch {
    // Gone in the meantime, here and below.
  }
  for (const name of names) {
    const path = `${parent}/${name}`;
    left += sweepGroups(files, path);
    try {
      signalAll(processList(files.read(`${path}/cgroup.procs`)));
    } catch {
      continue;
    }
    if (!removed(files, path)) left++;
  }
  return left;
}

function checkName(name: string): void {
  if (!NAME.test(name)) throw new BulkheadError('INTERNAL', 'a group name is letters, digits, dots and hyphens');
}

// --- v2: one tree, controllers enabled level by level ---------------------------------------------------------------

interface V2Tree {
  readonly files: CgroupFiles;
  readonly readProc: (pid: number) => string;
  readonly base: string;
  readonly path: string;
  readonly tenants: TenantGroups;
}

class CgroupV2 implements Cgroup, Member {
  readonly #tree: V2Tree;
  readonly #files: CgroupFiles;
  readonly #name: string;
  #directory: string;
  /** Where it was before it had a tenant, until that is removed. */
  #left: string | undefined;
  #limits: CgroupLimits;
  #tenant: string | undefined;

  constructor(tree: V2Tree, name: string, limits: CgroupLimits) {
    this.#tree = tree;
    this.#files = tree.files;
    this.#name = name;
    this.#limits = limits;
    this.#directory = ensure(tree.files, tree.base, [name], []);
  }

  #at(file: string): string {
    return `${this.#directory}/${file}`;
  }

  add(pid: number): void {
    this.#files.write(this.#at('cgroup.procs'), String(pid));
    const above = this.#tenant === undefined ? '' : `/${TenantGroups.nameOf(this.#tenant)}`;
    if (!(parseGroups(this.#tree.readProc(pid)).get('') ?? '').endsWith(`${this.#tree.path}${above}/${this.#name}`)) throw missing("the worker's process is not in its group");
  }

  /** Memory that the processes have by now stays charged above: to the node's group, when the old one is gone. */
  join(tenant: string, limits: CgroupLimits): void {
    const before = this.#directory;
    this.#tenant = tenant;
    try {
      this.#tree.tenants.enter(tenant, this);
      this.#left = before;
      this.#directory = ensure(this.#files, this.#tree.base, [TenantGroups.nameOf(tenant), this.#name], []);
      this.setLimits(limits);
      moveAll(() => processList(this.#files.read(`${before}/cgroup.procs`)), (pid) => this.add(pid));
      if (removed(this.#files, before)) this.#left = undefined;
    } catch (thrown) {
      throw thrown instanceof BulkheadError ? thrown : missing("the kernel refuses a worker in its tenant's group", thrown);
    }
  }

  setLimits(limits: CgroupLimits): void {
    this.#limits = limits;
    this.#files.write(this.#at('memory.max'), String(limits.memoryBytes));
    try {
      this.#files.write(this.#at('memory.swap.max'), '0');
    } catch {
      // The file is absent where the machine has no swap.
    }
    this.applyCpus();
    this.#files.write(this.#at('pids.max'), String(limits.pids));
  }

  applyCpus(): void {
    writeV2Cpus(this.#files, this.#directory, Math.min(this.#limits.cpus, this.#tree.tenants.cpusOf(this.#tenant)));
  }

  readLimits(): CgroupLimits {
    return {
      memoryBytes: toInteger(this.#files.read(this.#at('memory.max'))),
      cpus: readV2Cpus(this.#files, this.#directory),
      pids: toInteger(this.#files.read(this.#at('pids.max'))),
    };
  }

  readTenantCpus(): number | undefined {
    return this.#tenant === undefined ? undefined : this.#tree.tenants.readCpus(this.#tenant);
  }

  memoryBytes(): number {
    return toInteger(this.#files.read(this.#at('memory.current')));
  }

  cpuMicros(): number {
    return keyed(this.#files.read(this.#at('cpu.stat')), 'usage_usec');
  }

  oomKills(): number {
    return keyed(this.#files.read(this.#at('memory.events')), 'oom_kill');
  }

  pids(): number[] {
    return processList(this.#files.read(this.#at('cgroup.procs')));
  }

  killAll(): void {
    try {
      this.#files.write(this.#at('cgroup.kill'), '1');
    } catch {
      // Kernels before 5.14 have no cgroup.kill.
      signalAll(this.pids());
    }
  }

  remove(): boolean {
    if (!removed(this.#files, this.#directory) || (this.#left !== undefined && !removed(this.#files, this.#left))) return false;
    if (this.#tenant !== undefined) this.#tree.tenants.leave(this.#tenant, this);
    return true;
  }
}

function writeV2Cpus(files: CgroupFiles, directory: string, cpus: number): void {
  files.write(`${directory}/cpu.max`, `${cpus === Number.POSITIVE_INFINITY ? 'max' : quotaMicros(cpus)} ${CPU_PERIOD_MICROS}`);
}

function readV2Cpus(files: CgroupFiles, directory: string): number {
  const [quota, period] = files.read(`${directory}/cpu.max`).trim().split(' ');
  return quota === 'max' ? Number.POSITIVE_INFINITY : toInteger(quota ?? '') / toInteger(period ?? '');
}

const V2_NEEDED = ['cpu', 'memory', 'pids'] as const;

/** Enables the controllers for the children of `directory`. A group with processes of its own cannot have them, the root excepted. */
function enableControllers(files: CgroupFiles, directory: string): void {
  const enabled = files.read(`${directory}/cgroup.subtree_control`).split(/\s+/);
  const wanted = V2_NEEDED.filter((name) => !enabled.includes(name));
  if (wanted.length > 0) files.write(`${directory}/cgroup.subtree_control`, wanted.map((name) => `+${name}`).join(' '));
}

export function openV2Tree(mounts: CgroupMounts, options: OpenTreeOptions): CgroupTree {
  const files = options.files ?? KERNEL_FILES;
  const found = mounts.v2;
  if (found === undefined) throw missing('cgroup v2 is not mounted');
  const available = files.read(`${found.mount}/cgroup.controllers`).split(/\s+/);
  for (const name of V2_NEEDED) if (!available.includes(name)) throw missing(`cgroup v2 here has no ${name} controller`);
  const made: string[] = [];
  let failure: unknown;
  let base: string | undefined;
  // Its own group, if that takes children as it is; the root of the tree, which only root may write; and last the usual step of a
  // delegated service or container, whose processes move to a leaf so that the group itself is empty.
  const candidates = [{ start: found.own, move: false }, { start: found.mount, move: false }, { start: found.own, move: true }];
  for (const { start, move } of candidates) {
    try {
      if (move) {
        const leaf = ensure(files, start, ['bulkhead-supervisor'], []);
        for (const pid of processList(files.read(`${start}/cgroup.procs`))) files.write(`${leaf}/cgroup.procs`, String(pid));
      }
      enableControllers(files, start);
      let directory = start;
      for (const segment of ['bulkhead', ...options.path]) {
        directory = ensure(files, directory, [segment], made);
        enableControllers(files, directory);
      }
      base = directory;
      break;
    } catch (thrown) {
      failure = thrown;
      removeMade(files, made.splice(0));
    }
  }
  if (base === undefined) throw missing('no group with cpu, memory and pids limits can be made', failure);
  const parent = base;
  const tenants = new TenantGroups(files, {
    make: (group) => {
      const directory = ensure(files, parent, [group], []);
      enableControllers(files, directory);
      return [directory];
    },
    write: (directory, cpus) => writeV2Cpus(files, directory, cpus),
    read: (directory) => readV2Cpus(files, directory),
  });
  const above: V2Tree = { files, readProc: options.readProc ?? readProcCgroup, base: parent, path: `/bulkhead/${options.path.join('/')}`, tenants };
  return {
    version: 'v2',
    setTenantCpus: (tenant, cpus) => tenants.setCpus(tenant, cpus),
    create: (name, limits) => {
      checkName(name);
      const group = new CgroupV2(above, name, limits);
      try {
        group.setLimits(limits);
      } catch (thrown) {
        group.remove();
        throw missing('the kernel refuses the limits', thrown);
      }
      return group;
    },
    sweep: () => sweepGroups(files, parent),
    close: () => removeMade(files, made),
  };
}

// --- none: only by --insecure-dev -----------------------------------------------------------------------------------

/** No limits at all: what `insecureDev: ['cgroup']` asks for by name. Accounting comes from /proc of the one process. */
class NoCgroup implements Cgroup {
  #pid = 0;

  add(pid: number): void {
    this.#pid = pid;
  }

  setLimits(): void {
    // There is nothing that would hold them; the layer list says so.
  }

  join(): void {
    // As above.
  }

  readLimits(): CgroupLimits {
    return { memoryBytes: 0, cpus: 0, pids: 0 };
  }

  readTenantCpus(): undefined {
    return undefined;
  }

  #stat(): string[] {
    try {
      const text = readFileSync(`/proc/${this.#pid}/stat`, 'latin1');
      return text.slice(text.lastIndexOf(')') + 2).split(' ');
    } catch {
      return [];
    }
  }

  memoryBytes(): number {
    return toInteger(this.#stat()[21] ?? '0') * 4_096;
  }

  cpuMicros(): number {
    const fields = this.#stat();
    return (toInteger(fields[11] ?? '0') + toInteger(fields[12] ?? '0')) * 10_000;
  }

  oomKills(): number {
    return 0;
  }

  pids(): number[] {
    return this.#stat().length === 0 || this.#pid === 0 ? [] : [this.#pid];
  }

  killAll(): void {
    signalAll(this.pids());
  }

  remove(): boolean {
    return true;
  }
}

/** The tree of this machine: v2 where its controllers are there, else v1. Throws LAYER_MISSING unless `insecureDev` names `cgroup`. */
export function openCgroupTree(options: OpenTreeOptions & { readonly insecureDev?: readonly string[] }): CgroupTree {
  options.path.forEach(checkName);
  const mounts = parseCgroupMounts(readFileSync('/proc/self/mountinfo', 'latin1'), readFileSync('/proc/self/cgroup', 'latin1'));
  const failures: unknown[] = [];
  for (const open of [openV2Tree, openV1Tree]) {
    try {
      return open(mounts, options);
    } catch (thrown) {
      failures.push(thrown);
    }
  }
  if (options.insecureDev?.includes('cgroup') === true) return { version: 'none', create: () => new NoCgroup(), setTenantCpus: () => undefined, sweep: () => 0, close: () => undefined };
  throw missing('neither cgroup v2 nor v1 lets this process make groups with memory, cpu and pids limits', new AggregateError(failures));
}
