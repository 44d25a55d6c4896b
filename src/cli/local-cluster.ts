/**
 * A cluster on this machine: a head and raylets as processes of their own, each in its own session. Order at start: all processes at once
 * (they load while they wait for their configuration) → head ready → join tokens → raylets ready. At stop: raylets, head, leftovers.
 * Must never: put a token into arguments, environment or files; start beside a cluster that runs in the same directory; signal a bare pid.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { chmodSync, closeSync, existsSync, fstatSync, mkdirSync, openSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { availableParallelism, totalmem } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { BulkheadError, type ErrorCode } from '../base/errors.ts';
import type { Labels } from '../base/labels.ts';
import type { PackageIndexConfig } from '../sandbox/packages/package-index.ts';
import { adminProfile, gatewayProfile, headDirectory, makeRunDirectory, rayletDirectory, removeGroups, removeRunDirectory, runDirectory } from './leftovers.ts';
import { identify, isAlive, processesOf, readRecord, recordPath, removeRecord, runningProcesses, signalProcess, waitUntilGone, writeRecord, type ClusterRecord, type ProcessIdentity } from './process-record.ts';

const HEAD_MAIN = fileURLToPath(new URL('../gcs/main.ts', import.meta.url));
const GATEWAY_MAIN = fileURLToPath(new URL('../gateway/main.ts', import.meta.url));
const RAYLET_MAIN = fileURLToPath(new URL('../raylet/main.ts', import.meta.url));
/** A cold disk and a busy machine; the jail's own limit is 20 s. */
const READY_TIMEOUT_MS = 45_000;
const STOP_TIMEOUT_MS = 10_000;
const KILL_TIMEOUT_MS = 5_000;
/** A supervisor that was told to stop may itself wait for a kill. */
const SUPERVISOR_STOP_TIMEOUT_MS = STOP_TIMEOUT_MS + KILL_TIMEOUT_MS + 5_000;
/** An identity that ends sooner is replaced by a join instead of renewed. */
const LAST_MINUTE_MS = 60_000;
/** What stays with the operating system, the processes themselves and the page cache. */
const MEMORY_SHARE = 0.7;
/** The environment that children get: what the system needs, nothing that may hold a secret or change how node runs. */
const KEPT_ENVIRONMENT = ['PATH', 'HOME', 'LANG', 'LC_ALL', 'TZ', 'TMPDIR', 'XDG_CACHE_HOME', 'BULKHEAD_RUNSC'];

export interface ClusterOptions {
  readonly dataDir: string;
  readonly raylets: number;
  readonly listen: string | undefined;
  /** Where the head is scraped, `host:port`; raylets have the ports after it, or with port 0 any. */
  readonly metrics?: string | undefined;
  /** Where HTTP clients find the gateway, `host:port`; undefined: there is none. */
  readonly gateway?: string | undefined;
  readonly cpus: number | undefined;
  readonly memoryBytes: number | undefined;
  /** Of each raylet: memory that objects may take, and disk beyond it. */
  readonly objectMemoryBytes?: number | undefined;
  readonly spillBytes?: number | undefined;
  readonly resources: Readonly<Record<string, number>>;
  /** Labels of all raylets, and those of one by its name. */
  readonly labels?: Labels;
  readonly labelsOf?: Readonly<Record<string, Labels>>;
  readonly insecureDev: readonly string[];
  /** Interpreter of Python sandboxes, an absolute path. */
  readonly python?: string | undefined;
  /** Where packages of runtime environments come from; undefined: they are refused. */
  readonly pythonIndex?: PackageIndexConfig | undefined;
  /** How a process is started, where it is not simply node: in a namespace of its own, with another clock. */
  readonly launch?: (name: string) => Launch;
  /** The last word on a process's configuration. */
  readonly configure?: (name: string, config: object) => object;
}

export interface Launch {
  /** A program and its arguments that become node without a new process id; may be empty. */
  readonly through?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
}

interface HeadReady {
  readonly address: string;
  readonly attestationAddress: string;
  readonly trustDomain: string;
  readonly metricsAddress?: string;
}

interface RayletReady {
  readonly address: string;
  readonly nodeId: string;
  readonly metricsAddress?: string;
}

/** A started process that waits for its configuration on stdin. */
class Part<Ready> {
  readonly name: string;
  readonly child: ChildProcess;
  readonly identity: ProcessIdentity;
  readonly exited: Promise<string>;
  /** It printed its ready line; before that, whoever configures it hears of its end. */
  ready = false;
  readonly #logPath: string;
  readonly #logFrom: number;

  constructor(name: string, main: string, logsDir: string, { through = [], env: more = {} }: Launch = {}) {
    this.name = name;
    this.#logPath = join(logsDir, `${name}.log`);
    const log = openSync(this.#logPath, 'a', 0o600);
    try {
      this.#logFrom = fstatSync(log).size;
      const env = Object.fromEntries(KEPT_ENVIRONMENT.flatMap((key) => (process.env[key] === undefined ? [] : [[key, process.env[key]]])));
      const command = [...through, process.execPath, main];
      this.child = spawn(command[0] as string, command.slice(1), { stdio: ['pipe', 'pipe', log], detached: true, cwd: '/', env: { ...env, ...more } });
    } finally {
      closeSync(log);
    }
    this.exited = new Promise((resolve) => {
      this.child.once('exit', (code, signal) => resolve(signal ?? `exit ${code}`));
      this.child.once('error', (error) => resolve(error.message));
    });
    // It may end before it has read its configuration; why is in its log.
    this.child.stdin?.on('error', () => undefined);
    const identity = this.child.pid === undefined ? undefined : identify(this.child.pid);
    if (identity === undefined) throw new BulkheadError('UNAVAILABLE', `${name} could not be started with ${process.execPath}`);
    this.identity = identity;
  }

  /** Gives it its configuration and waits for its ready line. */
  async configure(config: object): Promise<Ready> {
    const { child } = this;
    if (child.stdout === null || child.stdin === null) throw new BulkheadError('INTERNAL', 'a child without pipes');
    const lines = createInterface({ input: child.stdout });
    const ready = new Promise<string>((resolve) => lines.once('line', resolve));
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<'late'>((resolve) => {
      timer = setTimeout(() => resolve('late'), READY_TIMEOUT_MS);
    });
    child.stdin.end(JSON.stringify(config));
    const first = await Promise.race([ready.then((line) => ({ line })), this.exited.then((how) => ({ how })), late]);
    clearTimeout(timer);
    if (first === 'late') throw new BulkheadError('TIMEOUT', `${this.name} was not ready in ${READY_TIMEOUT_MS / 1_000} s; its log is ${this.#logPath}`);
    if ('how' in first) throw this.#failure(first.how);
    lines.close();
    // It prints nothing more; an open pipe would only keep this process alive.
    child.stdout.destroy();
    this.ready = true;
    return JSON.parse(first.line) as Ready;
  }

  /** Why it ended: the last fatal line of its log, and its exit code as a code of ours. */
  #failure(how: string): BulkheadError {
    const code: ErrorCode = how === 'exit 2' ? 'INVALID_ARGUMENT' : how === 'exit 4' ? 'LAYER_MISSING' : 'UNAVAILABLE';
    const written = readFileSync(this.#logPath).subarray(this.#logFrom).toString('utf8').trimEnd().split('\n');
    for (const line of written.reverse()) {
      try {
        const { level, msg } = JSON.parse(line) as { level?: unknown; msg?: unknown };
        if (level === 60 && typeof msg === 'string') return new BulkheadError(code, `${this.name} did not start: ${msg} (log: ${this.#logPath})`);
      } catch {
        // Not one of its JSON lines.
      }
    }
    return new BulkheadError(code, `${this.name} ended before it was ready (${how}): ${(written.find((line) => /^\w*Error\b/.test(line)) ?? written[0] ?? '').slice(0, 300)}; its log is ${this.#logPath}`);
  }

  /** Lets this process end while the child lives on. */
  release(): void {
    this.child.unref();
  }
}

export interface Ended {
  readonly name: string;
  readonly how: string;
}

/** A cluster that this process started. */
export class LocalCluster {
  readonly options: ClusterOptions;
  head: HeadReady | undefined;
  /** `https://…`, where HTTP clients find it. */
  gatewayUrl: string | undefined;
  /** Where raylets are scraped, by name. */
  readonly metricsAddresses = new Map<string, string>();
  /** Called when a process ended that nobody told to. */
  onEnded: ((ended: Ended) => void) | undefined;
  #record: ClusterRecord;
  #stopping = false;
  readonly #parts = new Map<string, Part<unknown>>();

  private constructor(options: ClusterOptions, record: ClusterRecord) {
    this.options = options;
    this.#record = record;
  }

  get record(): ClusterRecord {
    return this.#record;
  }

  /** Starts everything; when anything fails, everything that was started is ended again. */
  static async start(options: ClusterOptions): Promise<LocalCluster> {
    const record = await claim(options.dataDir);
    const cluster = new LocalCluster(options, record);
    try {
      await cluster.#start();
      return cluster;
    } catch (thrown) {
      await cluster.stop();
      throw thrown;
    }
  }

  async #start(): Promise<void> {
    const { dataDir, raylets } = this.options;
    makeRunDirectory(dataDir);
    mkdirSync(join(dataDir, 'logs'), { recursive: true, mode: 0o700 });
    const names = Array.from({ length: raylets }, (_, i) => `raylet-${i + 1}`);
    const head = this.#spawn<HeadReady>('head', HEAD_MAIN);
    const parts = names.map((name) => this.#spawn<RayletReady>(name, RAYLET_MAIN));
    this.#save();
    const joining = names.filter((name) => needsToken(rayletDirectory(dataDir, name)));
    // Loads while the head starts.
    const tokens = joining.length === 0 ? undefined : import('./join-tokens.ts');
    tokens?.catch(() => undefined);
    this.head = await head.configure(this.#headConfig());
    this.#record = { ...this.#record, trustDomain: this.head.trustDomain, address: this.head.address };
    this.#save();
    const joins = tokens === undefined ? new Map<string, object>() : await (await tokens).createJoins(adminProfile(dataDir), joining.map((name) => ({ name, nodeId: knownNodeId(rayletDirectory(dataDir, name)) })));
    // All settle before anything is stopped, so that the first failure is the one that is told.
    const started = await Promise.allSettled(parts.map(async (part) => this.#ready(part.name, await part.configure(this.#rayletConfig(part.name, joins.get(part.name))))));
    const failed = started.find((s) => s.status === 'rejected');
    if (failed !== undefined) throw failed.reason;
    this.#save();
    if (this.options.gateway !== undefined) await this.#startGateway(this.options.gateway);
  }

  async #startGateway(listen: string): Promise<void> {
    const { dataDir } = this.options;
    const profile = gatewayProfile(dataDir);
    await (await import('./gateway-identity.ts')).ensureGatewayIdentity(adminProfile(dataDir), profile);
    const part = this.#spawn<{ readonly url: string }>('gateway', GATEWAY_MAIN);
    this.#save();
    this.gatewayUrl = (await part.configure(this.#configured('gateway', { profile, headAddress: this.head?.address, listen }))).url;
  }

  #spawn<Ready>(name: string, main: string): Part<Ready> {
    const part = new Part<Ready>(name, main, join(this.options.dataDir, 'logs'), this.options.launch?.(name));
    this.#parts.set(name, part);
    const { identity } = part;
    this.#record = name === 'head' || name === 'gateway'
      ? { ...this.#record, [name]: identity }
      : { ...this.#record, raylets: [...this.#record.raylets.filter((r) => r.name !== name), { name, process: identity }].sort((a, b) => a.name.localeCompare(b.name, 'en', { numeric: true })) };
    void part.exited.then((how) => {
      if (!this.#stopping && part.ready && this.#parts.get(name) === part) this.onEnded?.({ name, how });
    });
    return part;
  }

  #ready(name: string, { address, nodeId, metricsAddress }: RayletReady): void {
    if (metricsAddress !== undefined) this.metricsAddresses.set(name, metricsAddress);
    this.#record = { ...this.#record, raylets: this.#record.raylets.map((r) => (r.name === name ? { ...r, address, nodeId } : r)) };
  }

  #save(): void {
    writeRecord(this.options.dataDir, this.#record);
  }

  #headConfig(): object {
    const { dataDir, listen, insecureDev, raylets } = this.options;
    // Who starts the cluster is its operator: what its raylets are called here, they may be called.
    const nodeLabels: Record<string, string[]> = {};
    for (let i = 1; i <= raylets; i++) for (const [key, value] of Object.entries(this.#labelsOf(`raylet-${i}`))) if (!(nodeLabels[key] ??= []).includes(value)) nodeLabels[key].push(value);
    return this.#configured('head', { dataDir: headDirectory(dataDir), nodeLabels, insecureDev: insecureDev.length > 0, ...(listen === undefined ? {} : { listen }), ...this.#metricsListen(0) });
  }

  #configured(name: string, config: object): object {
    return this.options.configure?.(name, config) ?? config;
  }

  #rayletConfig(name: string, joinWith: object | undefined): object {
    const { dataDir, raylets, cpus, memoryBytes, objectMemoryBytes, spillBytes, resources, insecureDev, python, pythonIndex } = this.options;
    const head = this.head as HeadReady;
    return this.#configured(name, {
      dataDir: rayletDirectory(dataDir, name), runDir: join(runDirectory(dataDir), name), trustDomain: head.trustDomain, headAddress: head.address, resources, labels: this.#labelsOf(name), insecureDev, ...(python === undefined ? {} : { python }), ...(pythonIndex === undefined ? {} : { pythonIndex }),
      cpus: cpus ?? Math.max(1, Math.floor(availableParallelism() / raylets)), memoryBytes: memoryBytes ?? Math.floor((totalmem() * MEMORY_SHARE) / raylets),
      ...(objectMemoryBytes === undefined ? {} : { objectMemoryBytes }), ...(spillBytes === undefined ? {} : { spillBytes }),
      ...this.#metricsListen(Number(name.slice(name.lastIndexOf('-') + 1))), ...(joinWith === undefined ? {} : { join: joinWith }),
    });
  }

  #labelsOf(name: string): Labels {
    return { ...this.options.labels, ...this.options.labelsOf?.[name] };
  }

  #metricsListen(offset: number): { readonly metricsListen?: string } {
    const { metrics } = this.options;
    if (metrics === undefined) return {};
    const colon = metrics.lastIndexOf(':');
    const port = Number(metrics.slice(colon + 1));
    return { metricsListen: `${metrics.slice(0, colon)}:${port === 0 ? 0 : port + offset}` };
  }

  /** Starts one process again after it ended. */
  async restart(name: string): Promise<void> {
    if (this.#stopping) return;
    const { dataDir } = this.options;
    if (name === 'gateway') await this.#startGateway(this.options.gateway ?? '127.0.0.1:0');
    else if (name === 'head') {
      const part = this.#spawn<HeadReady>('head', HEAD_MAIN);
      this.#save();
      this.head = await part.configure(this.#headConfig());
      this.#record = { ...this.#record, address: this.head.address };
    } else {
      const dir = rayletDirectory(dataDir, name);
      rmSync(join(runDirectory(dataDir), name), { recursive: true, force: true });
      const part = this.#spawn<RayletReady>(name, RAYLET_MAIN);
      this.#save();
      const joins = needsToken(dir) ? await (await import('./join-tokens.ts')).createJoins(adminProfile(dataDir), [{ name, nodeId: knownNodeId(dir) }]) : undefined;
      this.#ready(name, await part.configure(this.#rayletConfig(name, joins?.get(name))));
    }
    this.#save();
  }

  /** From here on the cluster lives without this process. */
  detach(): void {
    this.#stopping = true;
    const { supervisor: _, ...rest } = this.#record;
    this.#record = rest;
    this.#save();
    for (const part of this.#parts.values()) part.release();
  }

  /** Ends all processes and what they leave. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await stopProcesses(this.options.dataDir, this.#record);
  }
}

/** Makes this process the one that starts the cluster of a directory: an exclusive file, so that two of them cannot. */
async function claim(dataDir: string): Promise<ClusterRecord> {
  mkdirSync(dataDir, { recursive: true, mode: 0o700 });
  const { uid, mode } = statSync(dataDir);
  if (uid !== process.getuid?.()) throw new BulkheadError('INVALID_ARGUMENT', `the data directory ${dataDir} belongs to another user; start the cluster as that user, or choose another with --data`);
  if ((mode & 0o077) !== 0) chmodSync(dataDir, 0o700);
  const supervisor = identify(process.pid);
  if (supervisor === undefined) throw new BulkheadError('UNAVAILABLE', '/proc cannot be read; Bulkhead needs Linux with /proc mounted');
  const record: ClusterRecord = { version: 1, startedMs: Date.now(), supervisor, startedIn: readFileSync('/proc/self/cgroup', 'latin1').slice(0, 8_192), raylets: [] };
  for (let attempt = 0; ; attempt++) {
    try {
      writeFileSync(recordPath(dataDir), `${JSON.stringify(record)}\n`, { mode: 0o600, flag: 'wx' });
      return record;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST' || attempt > 2) throw new BulkheadError('UNAVAILABLE', `${recordPath(dataDir)} cannot be written (${(error as NodeJS.ErrnoException).code})`, { cause: error });
      const other = readRecord(dataDir);
      if (other === undefined) continue;
      const busy = runningProcesses(other);
      if (busy.length > 0 || (other.supervisor !== undefined && isAlive(other.supervisor))) {
        throw new BulkheadError('UNAVAILABLE', `a cluster runs in ${dataDir} already${other.address === undefined ? '' : ` (head at ${other.address})`}; use it, stop it with 'bulkhead down --data ${dataDir}', or choose another directory with --data`);
      }
      // The machine or all processes went down hard.
      await removeLeftovers(dataDir, other);
      removeRecord(dataDir);
    }
  }
}

/** No identity yet, or one that ended while the machine slept. */
function needsToken(rayletDir: string): boolean {
  try {
    const { validTo } = new X509Certificate(readFileSync(join(rayletDir, 'identity', 'svid.pem')));
    return !existsSync(join(rayletDir, 'node.json')) || Date.parse(validTo) < Date.now() + LAST_MINUTE_MS;
  } catch {
    return true;
  }
}

/** The id of a node that was here before: it joins again as the same. */
function knownNodeId(rayletDir: string): string {
  try {
    const { id } = JSON.parse(readFileSync(join(rayletDir, 'node.json'), 'utf8')) as { id?: unknown };
    return typeof id === 'string' ? id : '';
  } catch {
    return '';
  }
}

async function removeLeftovers(dataDir: string, record: ClusterRecord): Promise<void> {
  if (record.trustDomain !== undefined) {
    const left = await removeGroups(record.trustDomain, record.raylets.map((r) => rayletDirectory(dataDir, r.name)), record.startedIn ?? '');
    if (left.length > 0) throw new BulkheadError('UNAVAILABLE', `the control group ${left[0]} still holds processes that cannot be killed; look at its cgroup.procs, then run 'bulkhead down' again`);
  }
  removeRunDirectory(dataDir);
}

/** The gateway first, whose jobs end in order; raylets, so that the head hears that they leave; then the head; then by force. Throws when anything is left. */
async function stopProcesses(dataDir: string, record: ClusterRecord): Promise<{ readonly killed: number }> {
  let killed = 0;
  for (const group of [record.gateway === undefined ? [] : [record.gateway], record.raylets.map((r) => r.process), record.head === undefined ? [] : [record.head]]) {
    for (const identity of group) signalProcess(identity, 'SIGTERM');
    for (const identity of await waitUntilGone(group, STOP_TIMEOUT_MS)) if (signalProcess(identity, 'SIGKILL')) killed++;
  }
  const left = await waitUntilGone(processesOf(record), KILL_TIMEOUT_MS);
  if (left.length > 0) throw new BulkheadError('UNAVAILABLE', `process ${left[0]?.pid} does not end; look at it with: cat /proc/${left[0]?.pid}/status`);
  await removeLeftovers(dataDir, record);
  removeRecord(dataDir);
  return { killed };
}

/** Stops the cluster of a directory, whoever started it. Undefined when none runs. */
export async function stopCluster(dataDir: string): Promise<{ readonly stopped: number; readonly killed: number } | undefined> {
  const record = readRecord(dataDir);
  if (record === undefined) return undefined;
  const stopped = runningProcesses(record).length;
  let killed = 0;
  const { supervisor } = record;
  if (supervisor !== undefined && isAlive(supervisor)) {
    // It would start again what we end: so it stops them itself.
    signalProcess(supervisor, 'SIGTERM');
    if ((await waitUntilGone([supervisor], SUPERVISOR_STOP_TIMEOUT_MS)).length > 0 && signalProcess(supervisor, 'SIGKILL')) killed++;
    await waitUntilGone([supervisor], KILL_TIMEOUT_MS);
  }
  const now = readRecord(dataDir);
  if (now !== undefined) killed += (await stopProcesses(dataDir, now)).killed;
  return { stopped, killed };
}
