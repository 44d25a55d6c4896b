/**
 * Limits that hold from outside: one control group per worker, `bulkhead/<cluster>/<node>/<worker>`, on cgroup v1 or v2. The files of
 * the kernel are reached through `CgroupFiles`, so that both layouts run against a model in tests and against the real tree here.
 * Must never: run a worker whose process is not seen in its group; leave a group behind; touch a group that it did not make.
 */
import { mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { BulkheadError } from '../../base/errors.ts';

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
  /** The limits as the kernel holds them, read back. */
  readLimits(): CgroupLimits;
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

export interface CgroupTree {
  readonly version: 'v1' | 'v2' | 'none';
  /** Creates a group with its limits in force. Throws LAYER_MISSING where the kernel refuses. */
  create(name: string, limits: CgroupLimits): Cgroup;
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

// --- v1: one tree per controller ------------------------------------------------------------------------------------

class CgroupV1 implements Cgroup {
  readonly #files: CgroupFiles;
  readonly #directories: ReadonlyMap<V1Controller, string>;
  readonly #readProc: (pid: number) => string;
  readonly #suffix: string;

  constructor(files: CgroupFiles, directories: ReadonlyMap<V1Controller, string>, suffix: string, readProc: (pid: number) => string) {
    this.#files = files;
    this.#directories = directories;
    this.#suffix = suffix;
    this.#readProc = readProc;
  }

  #at(controller: V1Controller, file: string): string {
    return `${this.#directories.get(controller) ?? ''}/${file}`;
  }

  add(pid: number): void {
    for (const controller of V1_CONTROLLERS) this.#files.write(this.#at(controller, 'cgroup.procs'), String(pid));
    const groups = parseGroups(this.#readProc(pid));
    for (const controller of V1_CONTROLLERS) if (!(groups.get(controller) ?? '').endsWith(this.#suffix)) throw missing(`the worker's process is not in its ${controller} group`);
  }

  setLimits(limits: CgroupLimits): void {
    this.#files.write(this.#at('memory', 'memory.limit_in_bytes'), String(limits.memoryBytes));
    this.#files.write(this.#at('cpu', 'cpu.cfs_period_us'), String(CPU_PERIOD_MICROS));
    this.#files.write(this.#at('cpu', 'cpu.cfs_quota_us'), String(Math.max(1_000, Math.round(limits.cpus * CPU_PERIOD_MICROS))));
    this.#files.write(this.#at('pids', 'pids.max'), String(limits.pids));
  }

  readLimits(): CgroupLimits {
    return {
      memoryBytes: toInteger(this.#files.read(this.#at('memory', 'memory.limit_in_bytes'))),
      cpus: toInteger(this.#files.read(this.#at('cpu', 'cpu.cfs_quota_us'))) / toInteger(this.#files.read(this.#at('cpu', 'cpu.cfs_period_us'))),
      pids: toInteger(this.#files.read(this.#at('pids', 'pids.max'))),
    };
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
    for (const directory of new Set(this.#directories.values())) all = removed(this.#files, directory) && all;
    return all;
  }
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
  return {
    version: 'v1',
    create: (name, limits) => {
      checkName(name);
      const directories = new Map<V1Controller, string>();
      const group = new CgroupV1(files, directories, `/bulkhead/${[...options.path, name].join('/')}`, options.readProc ?? readProcCgroup);
      try {
        // Controllers mounted together share a directory.
        for (const controller of V1_CONTROLLERS) directories.set(controller, ensure(files, bases.get(controller) ?? '', [name], []));
        group.setLimits(limits);
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
  for (const name of files.list(parent)) {
    const path = `${parent}/${name}`;
    try {
      signalAll(processList(files.read(`${path}/cgroup.procs`)));
    } catch {
      // Gone in the meantime.
    }
    if (!removed(files, path)) left++;
  }
  return left;
}

function checkName(name: string): void {
  if (!NAME.test(name)) throw new BulkheadError('INTERNAL', 'a group name is letters, digits, dots and hyphens');
}

// --- v2: one tree, controllers enabled level by level ---------------------------------------------------------------

class CgroupV2 implements Cgroup {
  readonly #files: CgroupFiles;
  readonly #directory: string;
  readonly #readProc: (pid: number) => string;
  readonly #suffix: string;

  constructor(files: CgroupFiles, directory: string, suffix: string, readProc: (pid: number) => string) {
    this.#files = files;
    this.#directory = directory;
    this.#suffix = suffix;
    this.#readProc = readProc;
  }

  #at(file: string): string {
    return `${this.#directory}/${file}`;
  }

  add(pid: number): void {
    this.#files.write(this.#at('cgroup.procs'), String(pid));
    if (!(parseGroups(this.#readProc(pid)).get('') ?? '').endsWith(this.#suffix)) throw missing("the worker's process is not in its group");
  }

  setLimits(limits: CgroupLimits): void {
    this.#files.write(this.#at('memory.max'), String(limits.memoryBytes));
    try {
      this.#files.write(this.#at('memory.swap.max'), '0');
    } catch {
      // The file is absent where the machine has no swap.
    }
    this.#files.write(this.#at('cpu.max'), `${Math.max(1_000, Math.round(limits.cpus * CPU_PERIOD_MICROS))} ${CPU_PERIOD_MICROS}`);
    this.#files.write(this.#at('pids.max'), String(limits.pids));
  }

  readLimits(): CgroupLimits {
    const [quota, period] = this.#files.read(this.#at('cpu.max')).trim().split(' ');
    return {
      memoryBytes: toInteger(this.#files.read(this.#at('memory.max'))),
      cpus: toInteger(quota ?? '') / toInteger(period ?? ''),
      pids: toInteger(this.#files.read(this.#at('pids.max'))),
    };
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
    return removed(this.#files, this.#directory);
  }
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
  return {
    version: 'v2',
    create: (name, limits) => {
      checkName(name);
      const directory = ensure(files, parent, [name], []);
      const group = new CgroupV2(files, directory, `/bulkhead/${[...options.path, name].join('/')}`, options.readProc ?? readProcCgroup);
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

  readLimits(): CgroupLimits {
    return { memoryBytes: 0, cpus: 0, pids: 0 };
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
  if (options.insecureDev?.includes('cgroup') === true) return { version: 'none', create: () => new NoCgroup(), sweep: () => 0, close: () => undefined };
  throw missing('neither cgroup v2 nor v1 lets this process make groups with memory, cpu and pids limits', new AggregateError(failures));
}
