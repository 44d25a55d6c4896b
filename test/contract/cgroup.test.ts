/** One contract for every way to limit a worker from outside: a model of the kernel's files for v1 and v2, and the real tree of this machine. */
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { afterEach, describe, expect, test } from 'vitest';
import { openCgroupTree, openV1Tree, openV2Tree, parseCgroupMounts, type Cgroup, type CgroupFiles, type CgroupLimits, type CgroupTree } from '../../src/sandbox/jail/cgroup.ts';

// Of this run alone: other clusters of the machine have tenants too.
const [ACME, GLOBEX] = [`acme-${process.pid}`, `globex-${process.pid}`] as const;
const LIMITS: CgroupLimits = { memoryBytes: 64 * 2 ** 20, cpus: 0.5, pids: 32 };

function refuse(code: string): never {
  throw Object.assign(new Error(code), { code });
}

/** The rules of cgroupfs that matter: directories bring files, only empty groups go, v2 has no processes in inner groups. */
class ModelKernel implements CgroupFiles {
  readonly files = new Map<string, string>();
  readonly directories = new Set<string>();
  readonly where = new Map<number, Map<string, string>>();
  readonly version: 'v1' | 'v2';
  readonly refused = new Set<string>();
  readonly refusedPaths = new Set<string>();

  constructor(version: 'v1' | 'v2', roots: readonly string[]) {
    this.version = version;
    for (const root of roots) this.#make(root);
  }

  #make(path: string): void {
    this.directories.add(path);
    const defaults: Record<string, string> = this.version === 'v2'
      ? { 'cgroup.controllers': 'cpuset cpu io memory pids', 'cgroup.subtree_control': '', 'cgroup.procs': '', 'cgroup.kill': '', 'memory.max': 'max', 'memory.swap.max': 'max', 'memory.current': '4096', 'memory.events': 'low 0\noom 0\noom_kill 0\n', 'cpu.max': 'max 100000', 'cpu.stat': 'usage_usec 7\nuser_usec 5\n', 'pids.max': 'max' }
      : { 'cgroup.procs': '', 'memory.limit_in_bytes': '9223372036854771712', 'memory.usage_in_bytes': '4096', 'memory.oom_control': 'oom_kill_disable 0\nunder_oom 0\noom_kill 0\n', 'cpu.cfs_period_us': '100000', 'cpu.cfs_quota_us': '-1', 'cpuacct.usage': '7000', 'pids.max': 'max' };
    for (const [name, text] of Object.entries(defaults)) this.files.set(`${path}/${name}`, text);
  }

  members(path: string): number[] {
    return (this.files.get(`${path}/cgroup.procs`) ?? '').split('\n').filter((line) => line !== '').map(Number);
  }

  read(path: string): string {
    return this.files.get(path) ?? refuse('ENOENT');
  }

  write(path: string, text: string): void {
    if (!this.files.has(path)) refuse('ENOENT');
    if (this.refused.has(path.slice(path.lastIndexOf('/') + 1)) || this.refusedPaths.has(path)) refuse('EACCES');
    const directory = path.slice(0, path.lastIndexOf('/'));
    if (path.endsWith('/cgroup.subtree_control')) {
      if (directory !== '/fs' && this.members(directory).length > 0) refuse('EBUSY');
      this.files.set(path, text.replaceAll('+', ''));
    } else if (path.endsWith('/cgroup.procs')) {
      const tree = `/${directory.split('/')[1]}${this.version === 'v1' ? `/${directory.split('/')[2]}` : ''}`;
      const pid = Number(text);
      for (const other of this.directories) if (other.startsWith(tree)) this.files.set(`${other}/cgroup.procs`, this.members(other).filter((member) => member !== pid).map((member) => `${member}\n`).join(''));
      this.files.set(path, `${this.read(path)}${text}\n`);
      const places = this.where.get(pid) ?? new Map<string, string>();
      places.set(tree, directory.slice(tree.length) || '/');
      this.where.set(pid, places);
    } else {
      if (path.endsWith('/cpu.cfs_quota_us')) this.#checkV1Quota(directory, Number(text));
      this.files.set(path, text);
    }
  }

  /** As Linux's tg_cfs_schedulable_down: no group may have more than the one above it. */
  #checkV1Quota(directory: string, quota: number): void {
    const quotaOf = (of: string): number => Number(this.files.get(`${of}/cpu.cfs_quota_us`) ?? '-1');
    const above = directory.slice(0, directory.lastIndexOf('/'));
    if (quota > 0 && quotaOf(above) > 0 && quota > quotaOf(above)) refuse('EINVAL');
    for (const below of this.directories) if (below.startsWith(`${directory}/`) && !below.slice(directory.length + 1).includes('/') && quota > 0 && quotaOf(below) > quota) refuse('EINVAL');
  }

  mkdir(path: string): void {
    if (this.directories.has(path)) refuse('EEXIST');
    if (!this.directories.has(path.slice(0, path.lastIndexOf('/')))) refuse('ENOENT');
    this.#make(path);
  }

  rmdir(path: string): void {
    if (!this.directories.has(path)) refuse('ENOENT');
    if (this.members(path).length > 0 || [...this.directories].some((other) => other.startsWith(`${path}/`))) refuse('EBUSY');
    this.directories.delete(path);
    for (const file of [...this.files.keys()]) if (file.startsWith(`${path}/`)) this.files.delete(file);
  }

  list(path: string): string[] {
    return [...this.directories].filter((other) => other.startsWith(`${path}/`)).map((other) => other.slice(path.length + 1));
  }

  readProc = (pid: number): string => {
    const places = [...(this.where.get(pid) ?? [])];
    return this.version === 'v2' ? places.map(([, path]) => `0::${path}\n`).join('') : places.map(([tree, path], i) => `${i + 1}:${tree.split('/')[2]}:${path}\n`).join('');
  };
}

interface Subject {
  readonly tree: CgroupTree;
  pid(): number;
  /** Groups named so that are left anywhere. */
  left(name: string): number;
  dispose(): void;
}

const V1_ROOTS = ['memory', 'cpu', 'cpuacct', 'pids'];
const children: ChildProcess[] = [];

function modelV1(): Subject {
  const kernel = new ModelKernel('v1', V1_ROOTS.map((name) => `/fs/${name}`));
  const mounts = parseCgroupMounts(V1_ROOTS.map((name, i) => `${i} 0 0:1 / /fs/${name} rw - cgroup cgroup rw,${name}`).join('\n'), V1_ROOTS.map((name, i) => `${i + 1}:${name}:/`).join('\n'));
  let next = 100;
  return { tree: openV1Tree(mounts, { path: ['c', 'n'], files: kernel, readProc: kernel.readProc }), pid: () => next++, left: (name) => [...kernel.directories].filter((path) => path.endsWith(`/${name}`)).length, dispose: () => expect([...kernel.directories].filter((path) => path.includes('bulkhead'))).toEqual([]) };
}

function modelV2(): Subject {
  const kernel = new ModelKernel('v2', ['/fs', '/fs/own']);
  // The usual start of a delegated service: it sits itself in the group that it was given.
  kernel.write('/fs/own/cgroup.procs', '50');
  kernel.refusedPaths.add('/fs/cgroup.subtree_control');
  const mounts = parseCgroupMounts('1 0 0:1 / /fs rw - cgroup2 cgroup2 rw', '0::/own');
  let next = 100;
  return { tree: openV2Tree(mounts, { path: ['c', 'n'], files: kernel, readProc: kernel.readProc }), pid: () => next++, left: (name) => [...kernel.directories].filter((path) => path.endsWith(`/${name}`)).length, dispose: () => expect([...kernel.directories].filter((path) => path.includes('/bulkhead/'))).toEqual([]) };
}

function real(): Subject {
  return {
    tree: openCgroupTree({ path: ['contract', `n${process.pid}`] }),
    pid: () => {
      const child = spawn('/bin/sleep', ['60'], { stdio: 'ignore' });
      children.push(child);
      return child.pid as number;
    },
    left: (name) => execFileSync('find', ['/sys/fs/cgroup', '-name', name], { encoding: 'utf8' }).split('\n').filter((line) => line !== '').length,
    dispose: () => expect(execFileSync('find', ['/sys/fs/cgroup', '-name', 'contract'], { encoding: 'utf8' })).toBe(''),
  };
}

afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL');
});

async function removeSoon(remove: () => boolean): Promise<boolean> {
  for (let i = 0; i < 200; i++) {
    if (remove()) return true;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  return false;
}

describe.each([['a model of v1', modelV1, false], ['a model of v2', modelV2, false], ['this machine', real, true]] as const)('%s', (_name, make, isReal) => {
  test('limits are in force, a process is inside, usage is read, nothing is left', async () => {
    const subject = make();
    const group = subject.tree.create('worker-a', LIMITS);
    expect(group.readLimits()).toEqual(LIMITS);
    const pid = subject.pid();
    group.add(pid);
    expect(group.pids()).toEqual([pid]);
    expect(group.memoryBytes()).toBeGreaterThanOrEqual(0);
    expect(group.cpuMicros()).toBeGreaterThanOrEqual(0);
    expect(group.oomKills()).toBe(0);
    group.setLimits({ memoryBytes: 128 * 2 ** 20, cpus: 2, pids: 64 });
    expect(group.readLimits()).toEqual({ memoryBytes: 128 * 2 ** 20, cpus: 2, pids: 64 });
    expect(group.remove()).toBe(false);
    expect(subject.left('worker-a')).toBeGreaterThan(0);
    if (isReal) {
      expect(readFileSync(`/proc/${pid}/cgroup`, 'latin1')).toContain('/bulkhead/contract/');
      group.killAll();
      expect(await removeSoon(() => group.remove())).toBe(true);
      expect(subject.left('worker-a')).toBe(0);
      expect(group.remove()).toBe(true);
      subject.tree.close();
      subject.dispose();
    }
  });

  test('two groups are apart', async () => {
    const subject = make();
    const [a, b] = [subject.tree.create('worker-a', LIMITS), subject.tree.create('worker-b', { ...LIMITS, pids: 8 })];
    expect(a.readLimits().pids).toBe(32);
    expect(b.readLimits().pids).toBe(8);
    expect(a.remove()).toBe(true);
    expect(b.readLimits().pids).toBe(8);
    expect(b.remove()).toBe(true);
    subject.tree.close();
    subject.dispose();
  });

  test('groups of one tenant are held together to its cpus, and leave with their last', async () => {
    const subject = make();
    subject.tree.setTenantCpus(ACME, 0.5);
    const [a, b, other] = ['worker-a', 'worker-b', 'worker-c'].map((name) => subject.tree.create(name, LIMITS)) as [Cgroup, Cgroup, Cgroup];
    const pids = [a, b, other].map((group) => {
      const pid = subject.pid();
      group.add(pid);
      return pid;
    });
    expect(a.readTenantCpus()).toBeUndefined();
    for (const group of [a, b]) group.join(ACME, { ...LIMITS, cpus: 2 });
    other.join(GLOBEX, { ...LIMITS, cpus: 2 });
    expect([a, b, other].map((group) => group.pids())).toEqual(pids.map((pid) => [pid]));
    expect([a, b, other].map((group) => group.readTenantCpus())).toEqual([0.5, 0.5, Number.POSITIVE_INFINITY]);
    expect([a, b, other].map((group) => group.readLimits().cpus)).toEqual([0.5, 0.5, 2]);
    expect(a.readLimits()).toEqual({ ...LIMITS, cpus: 0.5 });
    // More, then less than they have, then no bound.
    for (const [cpus, each] of [[3, 2], [0.25, 0.25], [Number.POSITIVE_INFINITY, 2]] as const) {
      subject.tree.setTenantCpus(ACME, cpus);
      expect([a.readTenantCpus(), a.readLimits().cpus, b.readLimits().cpus, other.readLimits().cpus]).toEqual([cpus, each, each, 2]);
    }
    if (isReal) {
      expect(readFileSync(`/proc/${pids[0]}/cgroup`, 'latin1')).toContain(`/tenant-${ACME}/worker-a`);
      for (const group of [a, b, other]) group.killAll();
      expect(await removeSoon(() => a.remove())).toBe(true);
      expect(subject.left(`tenant-${ACME}`), 'its neighbour is still there').toBeGreaterThan(0);
      for (const group of [b, other]) expect(await removeSoon(() => group.remove())).toBe(true);
      expect(subject.left(`tenant-${ACME}`) + subject.left(`tenant-${GLOBEX}`) + subject.left('worker-a')).toBe(0);
      subject.tree.close();
      subject.dispose();
    }
  });

  test('a tenant’s group comes again for its next worker, with the limit it has by then', () => {
    const subject = make();
    for (const cpus of [1, 0.75]) {
      subject.tree.setTenantCpus(ACME, cpus);
      const group = subject.tree.create('worker-a', LIMITS);
      group.join(ACME, { ...LIMITS, cpus: 4 });
      expect([group.readTenantCpus(), group.readLimits().cpus]).toEqual([cpus, cpus]);
      expect(group.remove()).toBe(true);
      expect(subject.left(`tenant-${ACME}`)).toBe(0);
    }
    subject.tree.close();
    subject.dispose();
  });

  test('what a killed owner left is ended and removed', async () => {
    const subject = make();
    const mine = subject.tree.create('worker-a', LIMITS);
    mine.join(ACME, LIMITS);
    const group = subject.tree.create('worker-b', LIMITS);
    if (isReal) group.add(subject.pid());
    expect(await removeSoon(() => subject.tree.sweep() === 0)).toBe(true);
    expect(subject.left('worker-a') + subject.left('worker-b') + subject.left(`tenant-${ACME}`)).toBe(0);
    subject.tree.close();
    subject.dispose();
  });

  test('a name that is a path is refused', () => {
    const subject = make();
    for (const name of ['../x', 'a/b', '', '.', '..']) expect(() => subject.tree.create(name, LIMITS)).toThrow(/group name/);
    const group = subject.tree.create('worker-a', LIMITS);
    for (const tenant of ['../x', 'a/b', '/..']) expect(() => group.join(tenant, LIMITS)).toThrow(/group name/);
    expect(group.remove()).toBe(true);
    subject.tree.close();
    subject.dispose();
  });
});

test('a group over its memory is killed, and it is known', async () => {
  const tree = openCgroupTree({ path: ['contract', `oom${process.pid}`] });
  const group = tree.create('hog', { ...LIMITS, memoryBytes: 16 * 2 ** 20 });
  const child = spawn(process.execPath, ['-e', 'process.stdin.once("data", () => { const a = []; for (;;) a.push(Buffer.alloc(1e6, 1)); })'], { stdio: ['pipe', 'ignore', 'ignore'] });
  children.push(child);
  group.add(child.pid as number);
  const exit = new Promise((resolve) => child.on('exit', (_code, signal) => resolve(signal)));
  child.stdin?.on('error', () => undefined);
  child.stdin?.write('go\n');
  expect(await exit).toBe('SIGKILL');
  expect(group.oomKills()).toBeGreaterThan(0);
  expect(await removeSoon(() => group.remove())).toBe(true);
  tree.close();
});

test('on v2, root takes the root of the tree before it moves anybody', () => {
  const kernel = new ModelKernel('v2', ['/fs', '/fs/session']);
  kernel.write('/fs/session/cgroup.procs', '50');
  const tree = openV2Tree(parseCgroupMounts('1 0 0:1 / /fs rw - cgroup2 cgroup2 rw', '0::/session'), { path: ['c', 'n'], files: kernel, readProc: kernel.readProc });
  tree.create('worker-a', LIMITS);
  expect(kernel.directories).toContain('/fs/bulkhead/c/n/worker-a');
  expect(kernel.members('/fs/session')).toEqual([50]);
});

test('on v2, a delegated group is emptied into a leaf', () => {
  const { tree } = modelV2();
  const group = tree.create('worker-a', LIMITS);
  expect(group.readLimits()).toEqual(LIMITS);
});

describe('fail closed', () => {
  test('a kernel that refuses a limit is a missing layer, and the half-made group is gone', () => {
    const kernel = new ModelKernel('v2', ['/fs']);
    const tree = openV2Tree(parseCgroupMounts('1 0 0:1 / /fs rw - cgroup2 cgroup2 rw', '0::/'), { path: ['c', 'n'], files: kernel, readProc: kernel.readProc });
    kernel.refused.add('pids.max');
    expect(() => tree.create('worker-a', LIMITS)).toThrow(/layer cgroup is missing/);
    expect([...kernel.directories].filter((path) => path.includes('worker-a'))).toEqual([]);
  });

  test('a kernel that refuses the tenant’s limit, and a process that does not come along, are missing layers', () => {
    for (const refusal of ['cpu.max', 'cgroup.procs'] as const) {
      const kernel = new ModelKernel('v2', ['/fs']);
      const tree = openV2Tree(parseCgroupMounts('1 0 0:1 / /fs rw - cgroup2 cgroup2 rw', '0::/'), { path: ['c', 'n'], files: kernel, readProc: kernel.readProc });
      const group = tree.create('worker-a', LIMITS);
      group.add(7);
      kernel.refused.add(refusal);
      expect(() => group.join(ACME, LIMITS)).toThrow(/layer cgroup is missing/);
      // The worker is killed for it: what was half made goes with it.
      kernel.refused.delete('cgroup.procs');
      kernel.write('/fs/cgroup.procs', '7');
      expect(group.remove()).toBe(true);
      tree.close();
      expect([...kernel.directories]).toEqual(['/fs']);
    }
  });

  test('a process that is not seen in its group is a missing layer', () => {
    const kernel = new ModelKernel('v2', ['/fs']);
    const tree = openV2Tree(parseCgroupMounts('1 0 0:1 / /fs rw - cgroup2 cgroup2 rw', '0::/'), { path: ['c', 'n'], files: kernel, readProc: () => '0::/elsewhere\n' });
    expect(() => tree.create('worker-a', LIMITS).add(7)).toThrow(/layer cgroup is missing/);
  });

  test('no controllers, no mounts: a missing layer with a remedy', () => {
    const none = parseCgroupMounts('', '');
    expect(() => openV1Tree(none, { path: ['c', 'n'] })).toThrow(/layer cgroup is missing.*start the raylet as root/);
    expect(() => openV2Tree(none, { path: ['c', 'n'] })).toThrow(/layer cgroup is missing/);
    const kernel = new ModelKernel('v2', ['/fs']);
    kernel.files.set('/fs/cgroup.controllers', 'cpu');
    expect(() => openV2Tree(parseCgroupMounts('1 0 0:1 / /fs rw - cgroup2 cgroup2 rw', '0::/'), { path: ['c', 'n'], files: kernel })).toThrow(/no memory controller/);
  });
});

test('mounts are found as a container shows them', () => {
  const mounts = parseCgroupMounts(
    '30 24 0:26 /docker/abc /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory\n31 24 0:27 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n32 24 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n',
    '9:memory:/docker/abc/inner\n8:cpu,cpuacct:/docker/abc\n0::/x/../y\n',
  );
  expect(mounts.v1.get('memory')).toEqual({ mount: '/sys/fs/cgroup/memory', own: '/sys/fs/cgroup/memory/inner' });
  expect(mounts.v1.get('cpuacct')).toEqual({ mount: '/sys/fs/cgroup/cpu,cpuacct', own: '/sys/fs/cgroup/cpu,cpuacct' });
  expect(mounts.v1.get('pids')).toBeUndefined();
  // A path upwards is not followed.
  expect(mounts.v2).toEqual({ mount: '/sys/fs/cgroup/unified', own: '/sys/fs/cgroup/unified' });
  expect(existsSync('/sys/fs/cgroup')).toBe(true);
});
