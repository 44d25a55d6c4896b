/**
 * Jailed worker processes: a few wait, warm and without a tenant; a tenant gets one and nobody gets it after. A start fails closed: a
 * layer of isolation that is not seen in /proc is an error that names it, unless the operator gave it up by name.
 * Must never: give out a process that served another tenant; run a tenant's code in a process whose layers were not read back.
 */
import { randomBytes } from 'node:crypto';
import { chmodSync, chownSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import type { Socket } from 'node:net';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import { parseWorkerId, quote } from '../base/ids.ts';
import { MAX_ACTORS_PER_WORKER } from '../base/limits.ts';
import type { Clock } from '../base/time.ts';
import { CrashLoopBreaker, type CrashLoopLimits } from './core/crash-loop.ts';
import { StartTurns } from './core/start-turns.ts';
import { packageBuilder, pythonEnvironment, PYTHON_REMEDY, withPackages, type PythonEnvironment } from './gvisor/python-environment.ts';
import { findRunsc, type Runsc } from './gvisor/runsc.ts';
import { startSandbox, type SandboxProcess } from './gvisor/sandbox.ts';
import { readSandboxLayers } from './gvisor/sandbox-layers.ts';
import { killStrays, startJail, type Bind, type ResourceLimits } from './jail/bubblewrap.ts';
import { endGroup, openCgroupTree, type CgroupLimits, type CgroupTree } from './jail/cgroup.ts';
import { buildImage, findProgram, prepareImage, unsearchableParent, workerSpec, type JailImage } from './jail/image.ts';
import { LAYER_REMEDIES, LAYERS, readLayers, requireLayers, type Layer, type LayerName } from './jail/layers.ts';
import type { Built } from './packages/package-build.ts';
import type { IndexBroker } from './packages/index-broker.ts';
import type { LentEnvironment, PackageCache, PackagesOptions, TellFact } from './packages/package-cache.ts';
import { WorkerProcess } from './worker-process.ts';

/** What node and the worker host need before any tenant's memory. */
export const WORKER_BASE_MEMORY_BYTES = 160 * 2 ** 20;
/** Processes that start at once. */
const MOST_STARTS = 2 * availableParallelism();
const START_TIMEOUT_MS = 20_000;
/** Processes that are started, one after the other, where one only ends: what wants a worker then fails. */
const START_TRIES = 3;
/** Threads of node and V8, and one for each isolate that is busy at the same time; a jail cannot make processes at all. */
const MAX_PIDS = MAX_ACTORS_PER_WORKER + 64;
const RESOURCE_LIMITS: ResourceLimits = { openFiles: 256, fileBytes: 2 * 2 ** 30 };
/**
 * Users of the host that workers of a root raylet run as: a range that distributions and container runtimes leave alone. Each worker
 * gets its own, so that even outside its namespaces it could not touch another's files or processes.
 */
const FIRST_WORKER_UID = 0x7000_0000;
const WORKER_UIDS = 0x0fff_0000;
const FAILED_WARM_STARTS = 3;
/** What gVisor, the interpreter and its packages need before any tenant's memory. */
const PYTHON_BASE_MEMORY_BYTES = 384 * 2 ** 20;
/** Threads of gVisor's kernel, its processes for the guests' address spaces, and a guest's own threads: each is one of the host. */
const PYTHON_MAX_PIDS = 1_024;
const WARM_PYTHON = 1;
const BUILD_CPUS = 1;
const SWEEP_TRIES = 200;

export interface PoolLog {
  info(detail: object, message: string): void;
  warn(detail: object, message: string): void;
}

const SILENT: PoolLog = { info: () => undefined, warn: () => undefined };

export interface WorkerPoolOptions {
  /** On a tmpfs that also holds the object files; made if absent. Every parent must be searchable by others (0711 will do). */
  readonly runDir: string;
  /** Processes that wait without a tenant. */
  readonly warm: number;
  readonly clusterName: string;
  readonly nodeName: string;
  readonly clock: Clock;
  readonly log?: PoolLog;
  /** Layers given up by name; the raylet stamps them on every audit record. */
  readonly insecureDev?: readonly string[];
  readonly limits?: { readonly pids?: number; readonly crashLoop?: CrashLoopLimits };
  /** Where packages of runtime environments come from and are kept; without it they are refused. */
  readonly packages?: PackagesOptions | undefined;
  /** Guest prelude source instead of the bundled one: tests. */
  readonly prelude?: string;
  /** Interpreter of Python sandboxes; without one no Python runs here. */
  readonly python?: string | undefined;
  /** A program in place of node: the assume-breach tests. */
  readonly program?: Bind;
}

export interface AcquireRequest {
  readonly tenant: string;
  /** `javascript`, or Python, as DEFINE names it. */
  readonly runtime?: string;
  /** Packages that must be installed for it, in a sandbox of their own. */
  readonly requirements?: readonly string[];
  /** Memory for the tenant's isolates; the process's own is added. */
  readonly memoryBytes: number;
  readonly cpus: number;
  /** What all workers of the tenant may use together; not given: no bound. */
  readonly tenantCpus?: number;
}

/** What Python needs, or why it is not here. */
type PythonSupport = { readonly runsc: Runsc; readonly environment: PythonEnvironment; readonly unshare: string; readonly setpriv: string } | { readonly refusal: BulkheadError };

function pythonSupport(interpreter: string | undefined): PythonSupport {
  try {
    if (interpreter === undefined) throw new BulkheadError('LAYER_MISSING', `layer python is missing: this node was given no interpreter; ${PYTHON_REMEDY}`);
    return { runsc: findRunsc(), environment: pythonEnvironment(interpreter), unshare: findProgram('unshare', 'install the package util-linux'), setpriv: findProgram('setpriv', 'install the package util-linux') };
  } catch (thrown) {
    return { refusal: toSafeError(thrown) };
  }
}

export class WorkerPool {
  readonly #options: WorkerPoolOptions;
  readonly #log: PoolLog;
  readonly #image: JailImage;
  readonly #tree: CgroupTree;
  readonly #bwrap: string;
  readonly #prlimit: string;
  readonly #breaker: CrashLoopBreaker;
  readonly #warm: WorkerProcess[] = [];
  readonly #python: PythonSupport;
  readonly #warmPython: WorkerProcess[] = [];
  #warmPythonStarting = 0;
  #failedPythonStarts = 0;
  readonly #workers = new Set<WorkerProcess>();
  readonly #starting = new Set<Promise<WorkerProcess>>();
  readonly #turns = new StartTurns<() => void>(MOST_STARTS);
  #warmStarting = 0;
  readonly #uids = new Set<number>();
  #failedWarmStarts = 0;
  #closed = false;
  /** Made when the first environment with packages is asked for. */
  #packages: Promise<PackageCache> | undefined;
  /** What becomes of builds, for the tenants' logs. */
  onPackageFact: TellFact = () => undefined;

  private constructor(options: WorkerPoolOptions, image: JailImage, tree: CgroupTree, bwrap: string, prlimit: string) {
    this.#options = options;
    this.#log = options.log ?? SILENT;
    this.#image = image;
    this.#tree = tree;
    this.#bwrap = bwrap;
    this.#prlimit = prlimit;
    this.#python = pythonSupport(options.python);
    this.#breaker = new CrashLoopBreaker(options.limits?.crashLoop);
  }

  /** What any pool needs and no configuration decides: a process may do it while it waits for its own. */
  static prepare(): Promise<void> {
    return prepareImage();
  }

  /** Builds the image, starts the warm workers and returns when the first of them stands. Throws LAYER_MISSING. */
  static async start(options: WorkerPoolOptions): Promise<WorkerPool> {
    const bwrap = findProgram('bwrap', 'install the package bubblewrap');
    const prlimit = findProgram('prlimit', 'install the package util-linux');
    const workersDir = join(options.runDir, 'workers');
    // What a raylet that was killed left. Its workers died with it, but not a jail that was just being set up.
    killStrays(workersDir);
    rmSync(workersDir, { recursive: true, force: true });
    rmSync(join(options.runDir, 'image'), { recursive: true, force: true });
    mkdirSync(workersDir, { recursive: true, mode: 0o711 });
    if (process.getuid?.() === 0) {
      const closed = unsearchableParent(join(workersDir, 'x'));
      if (closed !== undefined) throw new BulkheadError('INVALID_ARGUMENT', `the run directory cannot be used: workers run as users of their own and cannot pass ${closed}; make it searchable (chmod o+x) or choose a directory under /run or /dev/shm`);
    }
    const tree = openCgroupTree({ path: [options.clusterName, options.nodeName], insecureDev: options.insecureDev ?? [] });
    try {
      for (let i = 0; tree.sweep() > 0 && i < SWEEP_TRIES; i++) await new Promise((resolve) => setTimeout(resolve, 10));
      const image = await buildImage({ directory: join(options.runDir, 'image'), ...(options.prelude === undefined ? {} : { prelude: options.prelude }) });
      const pool = new WorkerPool(options, image, tree, bwrap, prlimit);
      try {
        if (options.warm > 0) {
          pool.#warm.push(await pool.#start(''));
          pool.#refill();
        }
        pool.#refillPython();
      } catch (thrown) {
        await pool.close();
        throw thrown;
      }
      return pool;
    } catch (thrown) {
      tree.close();
      throw thrown;
    }
  }

  /** Workers that live: the warm ones and the tenants'. */
  get size(): number {
    return this.#workers.size;
  }

  get warm(): number {
    return this.#warm.length;
  }

  /** Milliseconds until a worker of this tenant may start, because too many of them died; 0: now. */
  waitMs(tenant: string): number {
    return this.#breaker.waitMs(tenant, this.#options.clock.monotonicMs());
  }

  /** A process for this tenant alone. Throws RESOURCE_EXHAUSTED while the tenant's workers crash in a loop. */
  async acquire(request: AcquireRequest): Promise<WorkerProcess> {
    if (this.#closed) throw new BulkheadError('UNAVAILABLE', 'the worker pool is closed');
    const waitMs = this.waitMs(request.tenant);
    if (waitMs > 0) throw new BulkheadError('RESOURCE_EXHAUSTED', `workers of this tenant died too often; the next may start in ${Math.ceil(waitMs / 1_000)} s`);
    const python = (request.runtime ?? 'javascript') !== 'javascript';
    if (python) this.#requirePython(request.runtime ?? '');
    const lent = (request.requirements?.length ?? 0) === 0 ? undefined : await (await this.#packageCache()).lend(request.tenant, request.requirements as readonly string[]);
    const given = await this.#given(request.tenant, python, lent);
    if (this.#closed) {
      given.kill('KILLED', 'the pool closes');
      throw new BulkheadError('UNAVAILABLE', 'the worker pool is closed');
    }
    if (python) this.#refillPython();
    else this.#refill();
    try {
      const tenantCpus = request.tenantCpus ?? Number.POSITIVE_INFINITY;
      this.setTenantCpus(request.tenant, tenantCpus);
      given.assign(request.tenant, this.#limits(request.memoryBytes, request.cpus, python), this.#tree.version === 'none' ? undefined : tenantCpus);
      if (this.#options.program === undefined) requireLayers(given.layers, this.#options.insecureDev ?? []);
    } catch (thrown) {
      given.kill('KILLED', 'its limits could not be set');
      throw thrown;
    }
    return given;
  }

  /** A warm one, or a fresh one; with packages of a tenant always a fresh one, which gives them back when it is gone. */
  async #given(tenant: string, python: boolean, lent: LentEnvironment | undefined): Promise<WorkerProcess> {
    if (lent !== undefined) {
      try {
        const started = await this.#start(tenant, true, lent.directory);
        void started.gone.then(() => lent.release());
        return started;
      } catch (thrown) {
        lent.release();
        throw thrown;
      }
    }
    const warm = python ? this.#warmPython : this.#warm;
    let worker = warm.shift();
    while (worker?.exited === true) worker = warm.shift();
    return worker ?? (await this.#start(tenant, python));
  }

  #packageCache(): Promise<PackageCache> {
    const { packages } = this.#options;
    if (packages === undefined) throw new BulkheadError('ENVIRONMENT_FAILED', "runtime_env: pip and uv are refused: this cluster has no package index; the operator names one with 'bulkhead up --python-index URL'");
    return (this.#packages ??= import('./packages/package-cache.ts').then(({ PackageCache: Cache }) => {
      const cache = new Cache(packages, (tenant, broker, requirements, into, signal) => this.#build(tenant, broker, requirements, into, signal));
      cache.onFact = (...fact) => this.onPackageFact(...fact);
      return cache;
    }));
  }

  /** A deleted tenant's packages go. */
  forgetTenant(tenant: string): void {
    void this.#packages?.then((cache) => cache.forget(tenant), () => undefined);
  }

  /** Installs packages in a sandbox that nothing else ever runs in. */
  async #build(tenant: string, broker: IndexBroker, requirements: readonly string[], into: string, signal: AbortSignal): Promise<Built> {
    if ('refusal' in this.#python) throw this.#python.refusal;
    const { BUILD_TMP_BYTES, runInSandbox } = await import('./gvisor/build-sandbox.ts');
    const { runsc, environment, unshare, setpriv } = this.#python;
    const id = `build-${randomBytes(8).toString('hex')}`;
    const directory = join(this.#options.runDir, 'workers', id);
    const hostUid = process.getuid?.() === 0 ? this.#freshUid() : undefined;
    const limits = this.#limits(BUILD_TMP_BYTES, BUILD_CPUS, true);
    const cgroup = this.#tree.create(id, limits);
    try {
      mkdirSync(directory, { mode: 0o700 });
      if (hostUid !== undefined) {
        this.#uids.add(hostUid);
        chownSync(directory, hostUid, hostUid);
      }
      const started = startSandbox({ runsc: runsc.path, unshare, setpriv, prlimit: this.#prlimit, directory, name: id, environment: packageBuilder(environment), hostUid, readOnly: [], readWrite: [], tmpBytes: BUILD_TMP_BYTES });
      const checkLayers = (): void => requireLayers(readSandboxLayers(started.pid, { hostUid, cgroup: this.#tree.version === 'none' ? undefined : cgroup, limits }), this.#options.insecureDev ?? []);
      return await runInSandbox({ process: started, cgroup, directory, checkLayers }, broker, requirements, into, signal, (said) => this.#log.warn({ build: id, tenant, output: said }, 'a build of packages failed'));
    } finally {
      cgroup.remove();
      rmSync(directory, { recursive: true, force: true });
      if (hostUid !== undefined) this.#uids.delete(hostUid);
    }
  }

  /** What all workers of a tenant may use together, those that run included; Infinity: no bound. */
  setTenantCpus(tenant: string, cpus: number): void {
    this.#tree.setTenantCpus(tenant, cpus);
  }

  /** Throws LAYER_MISSING with the reason why this node runs no such Python. */
  #requirePython(runtime: string): void {
    if ('refusal' in this.#python) throw new BulkheadError(this.#python.refusal.code, this.#python.refusal.safeMessage);
    const { version } = this.#python.environment;
    const asked = runtime.replace(/\+.*$/, '');
    if (asked !== 'python3' && asked !== `python${version}`) throw new BulkheadError('LAYER_MISSING', `the program runs under ${asked}, and this node has python${version}: functions travel between equal versions only; use python${version}`);
  }

  /** Which Python this node runs, or why none. */
  get python(): { readonly version: string; readonly gvisor: string } | BulkheadError {
    return 'refusal' in this.#python ? this.#python.refusal : { version: this.#python.environment.version, gvisor: this.#python.runsc.text };
  }

  #limits(memoryBytes: number, cpus: number, python: boolean): CgroupLimits {
    if (python) return { memoryBytes: Math.ceil((PYTHON_BASE_MEMORY_BYTES + memoryBytes) / 4_096) * 4_096, cpus: Math.max(0.01, cpus), pids: PYTHON_MAX_PIDS };
    // A whole multiple of the page size, as the kernel keeps it.
    return { memoryBytes: Math.ceil((WORKER_BASE_MEMORY_BYTES + memoryBytes) / 4_096) * 4_096, cpus: Math.max(0.01, cpus), pids: this.#options.limits?.pids ?? MAX_PIDS };
  }

  #refill(): void {
    while (!this.#closed && this.#warm.length + this.#warmStarting < this.#options.warm && this.#failedWarmStarts < FAILED_WARM_STARTS) {
      this.#warmStarting++;
      this.#start('').then(
        (worker) => {
          this.#warmStarting--;
          if (this.#closed) worker.kill('KILLED', 'the pool closes');
          else this.#warm.push(worker);
        },
        (thrown: unknown) => {
          this.#warmStarting--;
          this.#failedWarmStarts++;
          this.#log.warn({ err: toSafeError(thrown) }, 'a warm worker did not start');
          this.#refill();
        },
      );
    }
  }

  #refillPython(): void {
    while (!this.#closed && !('refusal' in this.#python) && this.#options.warm > 0 && this.#warmPython.length + this.#warmPythonStarting < WARM_PYTHON && this.#failedPythonStarts < FAILED_WARM_STARTS) {
      this.#warmPythonStarting++;
      this.#start('', true).then(
        (worker) => {
          this.#warmPythonStarting--;
          this.#failedPythonStarts = 0;
          if (this.#closed) worker.kill('KILLED', 'the pool closes');
          else this.#warmPython.push(worker);
        },
        (thrown: unknown) => {
          this.#warmPythonStarting--;
          this.#failedPythonStarts++;
          this.#log.warn({ err: toSafeError(thrown) }, 'a warm Python sandbox did not start');
          this.#refillPython();
        },
      );
    }
  }

  #freshUid(): number {
    for (;;) {
      const uid = FIRST_WORKER_UID + (randomBytes(4).readUInt32LE(0) % WORKER_UIDS);
      if (!this.#uids.has(uid)) return uid;
    }
  }

  /** Starts a process in its tenant's turn ('': the warm ones' own) and keeps count of it, so that `close` waits for what is under way. */
  async #start(tenant: string, python = false, packages?: string): Promise<WorkerProcess> {
    const start = this.#inTurn(tenant, python, packages);
    this.#starting.add(start);
    try {
      const worker = await start;
      if (!python) this.#failedWarmStarts = 0;
      return worker;
    } finally {
      this.#starting.delete(start);
    }
  }

  async #inTurn(tenant: string, python: boolean, packages: string | undefined): Promise<WorkerProcess> {
    const turn = Promise.withResolvers<void>();
    if (!this.#turns.begin(tenant, turn.resolve)) await turn.promise;
    try {
      for (let tries = 1; ; tries++) {
        if (this.#closed) throw new BulkheadError('UNAVAILABLE', 'the worker pool is closed');
        const worker = await this.#startProcess(python, tries < START_TRIES, packages);
        if (worker !== undefined) return worker;
      }
    } finally {
      this.#turns.ended()?.();
    }
  }

  /** Undefined: it was ended from outside before it was ready, and `again` may be tried. It had no tenant yet, so it was no tenant's doing. */
  async #startProcess(python: boolean, again: boolean, packages: string | undefined): Promise<WorkerProcess | undefined> {
    const id = parseWorkerId(`worker-${randomBytes(8).toString('hex')}`);
    const directory = join(this.#options.runDir, 'workers', id);
    const hostUid = process.getuid?.() === 0 ? this.#freshUid() : undefined;
    const limits = this.#limits(0, 1, python);
    const cgroup = this.#tree.create(id, limits);
    let worker: WorkerProcess | undefined;
    try {
      mkdirSync(directory, { mode: 0o700 });
      for (const name of ['objects', 'code', 'staging']) mkdirSync(join(directory, name), { mode: 0o755 });
      if (hostUid !== undefined) {
        this.#uids.add(hostUid);
        // Only this worker's user passes its directory; only the staging directory is its own to write, and the jail binds the rest read-only.
        chownSync(join(directory, 'staging'), hostUid, hostUid);
        chownSync(directory, hostUid, hostUid);
      }
      // The tenant's user of a Python sandbox fills files there; nobody else of the host passes the directory above.
      chmodSync(join(directory, 'staging'), python ? 0o711 : 0o700);
      const jail = python ? this.#startSandbox(id, directory, hostUid, packages) : startJail({
        bwrap: this.#bwrap,
        prlimit: this.#prlimit,
        spec: workerSpec(this.#image, { objects: join(directory, 'objects'), code: join(directory, 'code'), staging: join(directory, 'staging') }, this.#options.program),
        limits: RESOURCE_LIMITS,
        seccompFile: this.#image.seccompFile,
        hostUid,
      });
      let pid: number;
      try {
        pid = await jail.pid;
        cgroup.add(pid);
      } catch (thrown) {
        jail.monitor.kill('SIGKILL');
        killStrays(directory);
        const said = await readAll(jail.stderr);
        throw python ? new BulkheadError('LAYER_MISSING', 'layer gvisor is missing: the sandbox could not be started', { cause: new Error(said, { cause: thrown }) }) : setUpFailed('user-namespace', said, thrown);
      }
      worker = new WorkerProcess({
        id, pid, directory, cgroup,
        monitor: jail.monitor, channel: jail.channel, stdout: jail.stdout, stderr: jail.stderr,
        ...('direct' in jail ? { direct: jail.direct } : {}),
        // Before anybody wants another worker in its place.
        onEnded: (ended) => this.#count(ended),
        onGone: (gone) => {
          this.#workers.delete(gone);
          if (hostUid !== undefined) this.#uids.delete(hostUid);
          this.#ended(gone);
        },
      });
      this.#workers.add(worker);
      const ready = worker.ready;
      jail.release();
      if (this.#options.program === undefined) {
        try {
          await withTimeout(ready, START_TIMEOUT_MS);
        } catch (thrown) {
          if (worker.output.startsWith('bwrap:')) throw setUpFailed('empty-root', worker.output.trim(), thrown);
          if (again && worker.exitReason !== undefined && worker.exitReason.reason !== 'KILLED') {
            this.#log.warn({ worker: id, detail: worker.exitReason.detail, output: worker.output }, 'a worker ended before it was ready; another one is started');
            return undefined;
          }
          throw thrown;
        }
        if (python) worker.layers = readSandboxLayers(pid, { hostUid, cgroup: this.#tree.version === 'none' ? undefined : cgroup, limits });
        else worker.layers = readLayers(pid, { seccompFilters: 2, hostUid, cgroup: this.#tree.version === 'none' ? undefined : cgroup, limits, writable: ['/staging'] });
        requireLayers(worker.layers, this.#options.insecureDev ?? []);
      }
      return worker;
    } catch (thrown) {
      if (worker === undefined) {
        await endGroup(cgroup);
        rmSync(directory, { recursive: true, force: true });
        if (hostUid !== undefined) this.#uids.delete(hostUid);
      } else worker.kill('KILLED', 'it did not start');
      throw thrown;
    }
  }

  #startSandbox(id: string, directory: string, hostUid: number | undefined, packages: string | undefined): SandboxProcess {
    if ('refusal' in this.#python) throw this.#python.refusal;
    const { runsc, environment, unshare, setpriv } = this.#python;
    return startSandbox({
      runsc: runsc.path, unshare, setpriv, prlimit: this.#prlimit, directory, name: id, environment: packages === undefined ? environment : withPackages(environment, packages), hostUid,
      readOnly: [{ source: join(directory, 'objects'), target: '/objects' }, { source: join(directory, 'code'), target: '/code' }],
      readWrite: [{ source: join(directory, 'staging'), target: '/staging' }],
    });
  }

  #count(worker: WorkerProcess): void {
    const reason = worker.exitReason;
    if (worker.tenant === undefined || reason === undefined || reason.reason === 'KILLED') return;
    this.#breaker.died(worker.tenant, this.#options.clock.monotonicMs());
    this.#log.warn({ worker: worker.id, tenant: worker.tenant, reason: reason.reason, detail: reason.detail, output: worker.output }, 'a worker died');
  }

  #ended(worker: WorkerProcess): void {
    const at = this.#warm.indexOf(worker);
    if (at >= 0) this.#warm.splice(at, 1);
    const atPython = this.#warmPython.indexOf(worker);
    if (atPython >= 0) this.#warmPython.splice(atPython, 1);
    this.#refill();
    this.#refillPython();
  }

  /** Kills all workers and waits until nothing of them is left. */
  async close(): Promise<void> {
    this.#closed = true;
    await (await this.#packages?.catch(() => undefined))?.close();
    await Promise.allSettled([...this.#starting]);
    for (const worker of this.#workers) worker.kill('KILLED', 'the pool closes');
    await Promise.all([...this.#workers].map((worker) => worker.gone));
    this.#tree.close();
    rmSync(join(this.#options.runDir, 'workers'), { recursive: true, force: true });
    rmSync(join(this.#options.runDir, 'image'), { recursive: true, force: true });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** What bubblewrap says helps, unless it names a path of this host: that is for the log. */
function setUpFailed(layer: LayerName, said: string, cause: unknown): BulkheadError {
  const shown = said === '' || said.includes('/') ? '' : ` (${quote(said)})`;
  return new BulkheadError('LAYER_MISSING', `layer ${layer} is missing: the jail could not be set up${shown}; ${LAYER_REMEDIES[layer]}`, { cause: new Error(said, { cause }) });
}

/** What bubblewrap said before it ended; bounded in size and time, since a stream that never opened never closes. */
function readAll(stream: Socket): Promise<string> {
  return new Promise((resolve) => {
    let text = '';
    const done = (): void => {
      clearTimeout(timer);
      resolve(text.trim());
    };
    const timer = setTimeout(done, 1_000);
    if (stream.destroyed) return done();
    stream.on('data', (chunk: Buffer) => {
      if (text.length < 500) text += chunk.toString('latin1').slice(0, 500);
    });
    stream.on('close', done);
    stream.on('error', done);
  });
}

async function withTimeout(work: Promise<void>, timeoutMs: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  try {
    await Promise.race([
      work,
      new Promise<never>((_, reject) => {
        timer = setTimeout(() => reject(new BulkheadError('UNAVAILABLE', `a worker was not ready in ${timeoutMs / 1_000} s`)), timeoutMs);
      }),
    ]);
  } finally {
    clearTimeout(timer);
  }
}

/** Starts one jail, reads its layers back and ends it: for `doctor` and a raylet's start. Never throws for a layer that is off: it lists it. */
export async function probeLayers(options: { readonly clock: Clock; readonly prelude?: string }): Promise<Layer[]> {
  const runDir = mkdtempSync(join(tmpdir(), 'bulkhead-probe-'));
  try {
    chmodSync(runDir, 0o711);
    const pool = await WorkerPool.start({ runDir, warm: 0, clusterName: 'probe', nodeName: `probe-${randomBytes(4).toString('hex')}`, clock: options.clock, insecureDev: LAYERS, ...(options.prelude === undefined ? {} : { prelude: options.prelude }) });
    try {
      const worker = await pool.acquire({ tenant: 'probe', memoryBytes: 64 * 2 ** 20, cpus: 1, tenantCpus: 1 });
      return [...worker.layers];
    } finally {
      await pool.close();
    }
  } finally {
    rmSync(runDir, { recursive: true, force: true });
  }
}
