/**
 * A real cluster for tests: a head and raylets as processes, two tenants with people of several roles, clients of every kind. Whoever
 * starts one disposes of it; disposal asserts that no process, control group, mount or shared-memory directory of it is left.
 */
import type { DescService } from '@bufbuild/protobuf';
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { createHash, generateKeyPairSync } from 'node:crypto';
import { existsSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { createCsr, readProfile, svidMaterial, writeProfile } from '../../src/pki/pki.ts';
import { adminProfile, runDirectory } from '../../src/cli/leftovers.ts';
import { LocalCluster, type ClusterOptions } from '../../src/cli/local-cluster.ts';
import { Cluster as ClusterService, Identities, Policies, Tenants } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { Audit } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import { client, createChannel, type Client, type RpcChannel } from '../../src/rpc/rpc.ts';
import { openHead, type HeadConnection } from '../../src/sdk/head-client.ts';
import { connect, type Cluster } from '../../src/sdk/sdk.ts';
import { parseCgroupMounts } from '../../src/sandbox/jail/cgroup.ts';

const GUARDIAN = fileURLToPath(new URL('./cluster-guardian.ts', import.meta.url));
/** The runtime that the project brings. */
export const NODE = fileURLToPath(new URL('../../node_modules/node/bin/node', import.meta.url));

export interface Person {
  readonly tenant: string;
  readonly kind?: 'user' | 'service';
  readonly name: string;
  readonly roles: readonly string[];
}

/** Everyone that a test cluster begins with; profiles are named `<tenant>-<name>`, the administrator's `admin`. */
export const PEOPLE: readonly Person[] = ['acme', 'globex'].flatMap((tenant): Person[] => [
  { tenant, name: 'ana', roles: ['tenant-admin'] },
  { tenant, name: 'dev', roles: ['developer'] },
  { tenant, name: 'vic', roles: ['viewer'] },
  { tenant, kind: 'service', name: 'siem', roles: ['auditor'] },
]);

export interface NodeInfo {
  readonly name: string;
  readonly nodeId: string;
  readonly address: string;
  readonly pid: number;
}

/** Connections of one profile, to the head and to raylets; closed with the cluster. */
export class Caller {
  readonly head: HeadConnection;
  readonly #raylets = new Map<string, RpcChannel>();
  readonly #cluster: TestCluster;

  constructor(head: HeadConnection, cluster: TestCluster) {
    this.head = head;
    this.#cluster = cluster;
  }

  to<S extends DescService>(service: S): Client<S> {
    return client(service, this.head.channel);
  }

  /** A channel to a raylet, by its name (`raylet-1`). */
  channel(raylet: string): RpcChannel {
    const { address, nodeId } = this.#cluster.node(raylet);
    const key = `${raylet} ${address}`;
    let channel = this.#raylets.get(key);
    if (channel === undefined) {
      channel = createChannel({ identity: this.head.identity, peers: this.head.peers, address, expectedSpiffeId: `spiffe://${this.head.identity.trustDomain}/node/${nodeId}` });
      this.#raylets.set(key, channel);
    }
    return channel;
  }

  on<S extends DescService>(raylet: string, service: S): Client<S> {
    return client(service, this.channel(raylet));
  }

  async close(): Promise<void> {
    for (const channel of this.#raylets.values()) channel.close();
    this.#raylets.clear();
    await this.head.close();
  }
}

export interface TestClusterOptions extends Partial<Pick<ClusterOptions, 'raylets' | 'cpus' | 'memoryBytes' | 'resources' | 'labels' | 'labelsOf' | 'python' | 'pythonIndex' | 'launch' | 'configure'>> {
  /** Quota of each tenant, as `tenant create --quota` takes it. */
  readonly quota?: Readonly<Record<string, string>>;
  /** With a gateway for HTTP clients. */
  readonly gateway?: boolean;
  /** Every component is scraped somewhere. */
  readonly metrics?: boolean;
}

export class TestCluster implements AsyncDisposable {
  /** Removed at the end; the cluster's own data is in `dataDir` below it. */
  readonly directory: string;
  readonly dataDir: string;
  readonly local: LocalCluster;
  readonly #guardian: ChildProcess;
  readonly #callers = new Map<string, Promise<Caller>>();
  readonly #drivers = new Set<Cluster>();
  readonly #trustDomain: string;
  #stopped: Promise<void> | undefined;

  private constructor(directory: string, local: LocalCluster, guardian: ChildProcess) {
    this.directory = directory;
    this.dataDir = local.options.dataDir;
    this.local = local;
    this.#guardian = guardian;
    this.#trustDomain = local.head?.trustDomain ?? '';
  }

  static async start(options: TestClusterOptions = {}): Promise<TestCluster> {
    const directory = mkdtempSync(join(tmpdir(), 'bulkhead-cluster-'));
    // Becomes node only when this process is gone, so that it costs nothing until then.
    const guardian = spawn('/bin/sh', ['-c', 'read -r line || exec "$0" "$1" "$2"', NODE, GUARDIAN, directory], { stdio: ['pipe', 'ignore', 'ignore'], detached: true });
    guardian.unref();
    guardian.stdin?.on('error', () => undefined);
    (guardian.stdin as (NodeJS.WritableStream & { unref?: () => void }) | null)?.unref?.();
    const end = (): void => {
      guardian.stdin?.end('done\n');
      rmSync(directory, { recursive: true, force: true });
    };
    try {
      const local = await LocalCluster.start({
        dataDir: join(directory, 'cluster'), raylets: options.raylets ?? 1, listen: undefined, cpus: options.cpus ?? 2, memoryBytes: options.memoryBytes, resources: options.resources ?? {}, labels: options.labels ?? {}, labelsOf: options.labelsOf ?? {}, insecureDev: [],
        python: options.python, pythonIndex: options.pythonIndex, ...(options.metrics === true ? { metrics: '127.0.0.1:0' } : {}),
        ...(options.gateway === true ? { gateway: '127.0.0.1:0' } : {}),
        ...(options.launch === undefined ? {} : { launch: options.launch }), ...(options.configure === undefined ? {} : { configure: options.configure }),
      });
      const cluster = new TestCluster(directory, local, guardian);
      try {
        await cluster.#prepare(options.quota ?? {});
        return cluster;
      } catch (thrown) {
        await cluster.stop();
        throw thrown;
      }
    } catch (thrown) {
      end();
      throw thrown;
    }
  }

  async #prepare(quota: Readonly<Record<string, string>>): Promise<void> {
    const admin = await this.as('admin');
    await Promise.all(['acme', 'globex'].map((name) => admin.to(Tenants).create({ name, quota })));
    await Promise.all(PEOPLE.map((person) => this.enrol(person)));
    // Sessions are given the raylets that the head sees alive, and raylets take tenants from the head.
    await this.settled();
  }

  get trustDomain(): string {
    return this.#trustDomain;
  }

  get headAddress(): string {
    return this.local.head?.address ?? '';
  }

  /** Issues an identity, as the administrator or another profile, and writes its profile. */
  async enrol(person: Person, issuer = 'admin', profile = `${person.tenant}-${person.name}`): Promise<string> {
    const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const { head } = await this.as(issuer);
    const issued = await client(Identities, head.channel).issue({ tenant: person.tenant, kind: person.kind ?? 'user', name: person.name, roles: [...person.roles], csr: createCsr(privateKey) });
    const dir = this.profile(profile);
    await writeProfile(dir, {
      address: this.headAddress, gateway: undefined,
      svid: svidMaterial({ trustDomain: head.identity.trustDomain, keyPem: privateKey.export({ format: 'pem', type: 'pkcs8' }) as string, certificateChainPem: issued.svidChain, trustBundlePem: issued.trustBundle }),
    });
    return dir;
  }

  /** Directory of a profile. */
  profile(name: string): string {
    return name === 'admin' ? adminProfile(this.dataDir) : join(this.directory, 'profiles', name);
  }

  svid(name: string): Promise<Awaited<ReturnType<typeof readProfile>>['svid']> {
    return readProfile(this.profile(name)).then((p) => p.svid);
  }

  /** Clients under a profile; kept until the end, or until `forget`. */
  as(name: string): Promise<Caller> {
    let caller = this.#callers.get(name);
    if (caller === undefined) {
      caller = openHead({ profile: this.profile(name), address: this.headAddress }).then((head) => new Caller(head, this));
      this.#callers.set(name, caller);
    }
    return caller;
  }

  async forget(name: string): Promise<void> {
    const caller = this.#callers.get(name);
    this.#callers.delete(name);
    await (await caller)?.close();
  }

  /** A driver: an SDK connection with a job of its own. */
  async connect(name: string, options: { readonly job?: string; readonly project?: string } = {}): Promise<Cluster> {
    const driver = await connect({ profile: this.profile(name), address: this.headAddress, ...options });
    this.#drivers.add(driver);
    return driver;
  }

  node(name: string): NodeInfo {
    const found = this.local.record.raylets.find((r) => r.name === name);
    if (found === undefined) throw new Error(`there is no ${name}`);
    return { name, nodeId: found.nodeId ?? '', address: found.address ?? '', pid: found.process.pid };
  }

  get nodes(): NodeInfo[] {
    return this.local.record.raylets.map((r) => this.node(r.name));
  }

  nodeById(nodeId: string): NodeInfo {
    const found = this.nodes.find((n) => n.nodeId === nodeId);
    if (found === undefined) throw new Error(`there is no node ${nodeId}`);
    return found;
  }

  get headPid(): number {
    return this.local.record.head?.pid ?? 0;
  }

  /** Every process of the cluster: head, raylets and what they started, jails included. */
  pids(): number[] {
    const roots = [this.local.record.gateway?.pid, this.local.record.head?.pid, ...this.local.record.raylets.map((r) => r.process.pid)].filter((pid) => pid !== undefined);
    const children = new Map<number, number[]>();
    for (const { pid, parent } of processes()) children.set(parent, [...(children.get(parent) ?? []), pid]);
    const all: number[] = [];
    for (let next = [...roots]; next.length > 0; ) {
      all.push(...next);
      next = next.flatMap((pid) => children.get(pid) ?? []);
    }
    return all;
  }

  /** The innermost processes of a raylet's jails: what runs tenants' code. */
  workerPids(raylet?: string): number[] {
    const within = new Set(this.pids());
    const parents = new Set<number>();
    const rows = processes().filter((p) => within.has(p.pid));
    for (const row of rows) parents.add(row.parent);
    const raylets = new Map(this.nodes.filter((n) => raylet === undefined || n.name === raylet).map((n) => [n.pid, n.name]));
    const byPid = new Map(rows.map((r) => [r.pid, r]));
    const under = (pid: number): boolean => {
      for (let row = byPid.get(pid); row !== undefined; row = byPid.get(row.parent)) if (raylets.has(row.parent)) return true;
      return false;
    };
    return rows.filter((r) => !parents.has(r.pid) && under(r.pid)).map((r) => r.pid);
  }

  /** Ids of workers whose control groups a process is in. */
  jailOf(pid: number): string[] {
    try {
      return [...new Set(readFileSync(`/proc/${pid}/cgroup`, 'latin1').match(/worker-[0-9a-f]{16}/g) ?? [])];
    } catch {
      return [];
    }
  }

  /** Waits until the head counts as many live nodes as there are raylets, each with the newest policy. */
  async settled(raylets = this.local.options.raylets): Promise<void> {
    const admin = await this.as('admin');
    await until('all raylets are alive with the newest policy', async () => {
      const { nodes } = await admin.to(ClusterService).listNodes({});
      const alive = nodes.filter((n) => n.state === 'alive');
      const newest = Math.max(...alive.map((n) => n.policyVersion));
      return alive.length === raylets && alive.every((n) => n.policyVersion === newest);
    });
  }

  #pidOf(name: string): number {
    const { head, gateway } = this.local.record;
    return name === 'head' ? (head?.pid ?? 0) : name === 'gateway' ? (gateway?.pid ?? 0) : this.node(name).pid;
  }

  async kill(name: string, signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    const pid = this.#pidOf(name);
    process.kill(pid, signal);
    await until(`${name} is gone`, () => !running(pid));
  }

  async restart(name: string): Promise<void> {
    if (running(this.#pidOf(name))) throw new Error(`${name} runs: kill it first`);
    await this.local.restart(name);
  }

  /** Applies a policy file of a tenant ('' for the platform's). */
  async applyPolicy(as: string, tenant: string, yaml: string, fileName = 'test.yaml'): Promise<number> {
    const caller = await this.as(as);
    return (await caller.to(Policies).apply({ tenant, fileName, content: new TextEncoder().encode(yaml) })).version;
  }

  /** What a process of the cluster logged so far. */
  log(name: string): string {
    const path = join(this.dataDir, 'logs', `${name}.log`);
    return existsSync(path) ? readFileSync(path, 'utf8') : '';
  }

  /** Records of the root log that a node was taken for dead. */
  async deaths(): Promise<string[]> {
    const lines: string[] = [];
    for await (const { record } of (await this.as('admin')).to(Audit).tail({ tenant: '', last: 10_000 })) if (record.includes('"node.died"')) lines.push(record);
    return lines;
  }

  /** Lines of the logs that say something went wrong inside. */
  faults(): string[] {
    return ['head', ...(this.local.record.gateway === undefined ? [] : ['gateway']), ...this.local.record.raylets.map((r) => r.name)].flatMap((name) => this.log(name).split('\n').filter((line) => /"level":(?:50|60)/.test(line)).map((line) => `${name}: ${line.slice(0, 1_000)}`));
  }

  stop(): Promise<void> {
    return (this.#stopped ??= this.#stop());
  }

  async #stop(): Promise<void> {
    try {
      await Promise.allSettled([...this.#drivers].map((driver) => Promise.race([driver.close(), sleep(3_000)])));
      await Promise.allSettled([...this.#callers.values()].map(async (caller) => (await caller).close()));
      await this.local.stop();
      await this.#assertNothingLeft();
    } finally {
      // What the assertion has told of still goes: by the files it has open it is this cluster's.
      for (const { pid } of processes()) if (pid !== process.pid && belongs(pid, runDirectory(this.dataDir), this.dataDir)) process.kill(pid, 'SIGKILL');
      this.#guardian.stdin?.end('done\n');
      rmSync(this.directory, { recursive: true, force: true });
    }
  }

  /** Directories of the control groups of this cluster, one a hierarchy. */
  controlGroups(): string[] {
    return controlGroups(this.#trustDomain);
  }

  /** What is left of this cluster on the machine, as sentences. */
  leftovers(): string[] {
    const left: string[] = [];
    const run = runDirectory(this.dataDir);
    if (existsSync(run)) left.push(`directory ${run}: ${readdirSync(run).join(', ')}`);
    for (const { pid, command } of processes()) if (pid !== process.pid && (command.includes(run) || (command.includes(this.dataDir) && !command.includes('cluster-guardian')) || belongs(pid, run, this.dataDir))) left.push(`process ${pid}: ${command.slice(0, 200)}`);
    for (const line of readFileSync('/proc/self/mountinfo', 'utf8').split('\n')) if (line.includes(run) || line.includes(this.dataDir)) left.push(`mount ${line}`);
    for (const group of controlGroups(this.#trustDomain)) left.push(`control group ${group}`);
    return left;
  }

  async #assertNothingLeft(): Promise<void> {
    let left = this.leftovers();
    // The kernel needs a moment after the last process of a group has ended.
    for (let i = 0; i < 100 && left.length > 0; i++) {
      await sleep(50);
      left = this.leftovers();
    }
    if (left.length > 0) throw new Error(`the cluster left something behind:\n${left.join('\n')}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}

function processes(): { pid: number; parent: number; command: string }[] {
  const rows: { pid: number; parent: number; command: string }[] = [];
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const stat = readFileSync(`/proc/${name}/stat`, 'latin1');
      rows.push({ pid: Number(name), parent: Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]), command: readFileSync(`/proc/${name}/cmdline`, 'latin1').replaceAll('\0', ' ') });
    } catch {
      // It ended while we looked.
    }
  }
  return rows;
}

export function running(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    return !/^[ZX]/.test(stat.slice(stat.lastIndexOf(')') + 2));
  } catch {
    return false;
  }
}

/** Whether a process has a file of the cluster open: its own log at least, if it is one of the cluster's. */
function belongs(pid: number, ...directories: string[]): boolean {
  try {
    return readdirSync(`/proc/${pid}/fd`).some((fd) => {
      try {
        const path = readlinkSync(`/proc/${pid}/fd/${fd}`);
        return directories.some((directory) => path.startsWith(`${directory}/`));
      } catch {
        return false;
      }
    });
  } catch {
    return false;
  }
}

function controlGroups(trustDomain: string): string[] {
  const name = createHash('sha256').update(trustDomain).digest('hex').slice(0, 12);
  const { v1, v2 } = parseCgroupMounts(readFileSync('/proc/self/mountinfo', 'latin1'), readFileSync('/proc/self/cgroup', 'latin1'));
  const bases = new Set([...v1.values(), ...(v2 === undefined ? [] : [v2])].flatMap(({ mount, own }) => [mount, own, own.replace(/\/bulkhead-supervisor$/, '')]));
  return [...bases].map((base) => join(base, 'bulkhead', name)).filter((path) => existsSync(path));
}

/** Polls until a condition holds; fails with `what` after `timeoutMs`. Never used to measure. */
export async function until(what: string, condition: () => boolean | Promise<boolean>, timeoutMs = 20_000): Promise<void> {
  const end = performance.now() + timeoutMs;
  for (;;) {
    if (await condition()) return;
    if (performance.now() > end) throw new Error(`it did not happen in ${timeoutMs / 1_000} s that ${what}`);
    await sleep(20);
  }
}

/** The error of a promise that must fail; throws when it does not. */
export async function failure(promise: Promise<unknown>): Promise<{ code?: string; message: string; safeMessage?: string; remoteStack?: string }> {
  let value: unknown;
  try {
    value = await promise;
  } catch (thrown) {
    return thrown as Error;
  }
  throw new Error(`expected a failure, got ${JSON.stringify(value)?.slice(0, 300) ?? String(value)}`);
}

/** Runs a program as a driver process of its own, so that it can be killed. */
export function driverProgram(file: string, env: Readonly<Record<string, string>>): ChildProcess {
  return spawn(NODE, [file], { env: { PATH: process.env['PATH'] ?? '', HOME: process.env['HOME'] ?? '', ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
}

export function runProgram(program: string, args: readonly string[]): string {
  return execFileSync(program, args, { encoding: 'utf8', timeout: 30_000 });
}
