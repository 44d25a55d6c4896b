/**
 * A whole cluster in one thread: raylets, head, drivers, and between them links that delay, reorder against each other, lose their tail and
 * part in one direction; disks that tear and fill; clocks that jump; processes that die. One seeded random source decides all of it, so a
 * seed is a run. Must never: ask a clock, the host's random source, or the order of anything that the seed does not decide.
 */
import { hex } from '../../src/base/ids.ts';
import { FrameReader, FrameWriter, OP } from '../../src/base/frame.ts';
import type { JobId } from '../../src/base/ids.ts';
import { DEFAULT_PROJECT, NO_PROJECT_QUOTA, type ProjectQuota } from '../../src/base/project-quota.ts';
import { SESSION_TTL_MS } from '../../src/base/limits.ts';
import { principalFromSpiffeId } from '../../src/base/principal.ts';
import { CHANNEL_KIND, type Channel, type Upstream } from '../../src/raylet/core/state.ts';
import { NO_QUOTA, type TenantQuota } from '../../src/base/tenant-quota.ts';
import { NO_BUGS, type Bugs } from './canaries.ts';
import { LogFiles } from './disk-machine.ts';
import { SimHead, TENANTS, VARIANTS, type Variant } from './head-machine.ts';
import { checkEmpty, checkGroups, checkRaylet, describeCalls } from './invariants.ts';
import { SimRaylet, type NodeSize, type Surroundings } from './raylet-machine.ts';
import { QuotaSums } from './quota-sums.ts';
import { ShareMachine } from './share-machine.ts';
import { SimDriver } from './sim-driver.ts';
import { seeded } from './world.ts';

/** Steps in which faults happen and drivers work, and those within which everything must then have ended. */
const FAULTY_STEPS = 1_500;
const QUIET_STEPS = 12_000;
const KEPT_EVENTS = 60;

interface Connection {
  readonly from: SimRaylet;
  readonly to: number;
  readonly upstream: Upstream;
  target: SimRaylet | undefined;
  channel: Channel | undefined;
  dead: boolean;
}

export interface Outcome {
  readonly seed: number;
  /** What does not hold; '' when all does. */
  readonly failure: string;
  /** Of all events, in order: two runs of a seed have the same. */
  readonly digest: string;
  readonly steps: number;
  readonly lastEvents: readonly string[];
  readonly counts: Readonly<Record<string, number>>;
}

class Simulation {
  readonly random: () => number;
  readonly #bugs: Bugs;
  readonly #tellEvent: ((event: string) => void) | undefined;
  readonly #head: SimHead;
  readonly raylets: SimRaylet[] = [];
  readonly #logs: ReadonlyMap<number, LogFiles>[] = [];
  readonly #drivers: SimDriver[] = [];
  readonly #connections = new Set<Connection>();
  readonly #peers = new Map<Channel, Connection>();
  readonly #links = new Map<string, (() => void)[]>();
  readonly #routes = new Map<string, string>();
  /** Directions in which nothing passes for now, `1>2`. */
  readonly #parted = new Map<string, number>();
  /** Of each tenant, in the whole cluster. */
  readonly #quota: TenantQuota;
  readonly #shares: ShareMachine;
  readonly #sums = new QuotaSums();
  readonly #size: NodeSize;
  readonly #calm: boolean;
  /** How long credentials are good, and until when the newest of each job is. */
  readonly #ttlMs: number;
  readonly #issued = new Map<string, number>();
  readonly #world: Surroundings;
  readonly #jobs = new Map<string, number>();
  readonly #projects = new Map<string, string>();
  #nowMs = 1_000_000;
  #faulty = true;
  #headDownUntil = 0;
  readonly #downUntil = new Map<number, number>();
  #nextJob = 1;
  #digest = 0x811c9dc5;
  steps = 0;
  readonly lastEvents: string[] = [];
  readonly counts: Record<string, number> = {};

  constructor(seed: number, bugs: Bugs, tell: ((event: string) => void) | undefined) {
    this.#tellEvent = tell;
    this.random = seeded(seed);
    this.#bugs = bugs;
    const { random } = this;
    // Every fourth run has no crash and no loss: there nothing may be lost, too.
    this.#calm = random() < 0.25;
    const cpus = 1 + Math.floor(random() * 3);
    // In some runs there is room for a few large objects only: the others go to disk, and there is not much of that.
    this.#size = random() < 0.4 ? { cpus, objectMemoryBytes: 7_000 + Math.floor(random() * 20_000), spillBytes: 10_000 + Math.floor(random() * 60_000) } : { cpus, objectMemoryBytes: Number.POSITIVE_INFINITY, spillBytes: 0 };
    this.#quota = random() < 0.3 ? { ...NO_QUOTA } : { ...NO_QUOTA, cpuUnits: cpus * 10_000 - (cpus > 1 && random() < 0.5 ? 5_000 : 0), tasks: 10 + Math.floor(random() * 40), actors: 2 + Math.floor(random() * 6), objectBytes: 20_000 + Math.floor(random() * 100_000), objectMemoryBytes: random() < 0.3 ? 5_000 + Math.floor(random() * 15_000) : Number.POSITIVE_INFINITY };
    // By what was drawn already, so that the seeds stay the runs that they were.
    if (seed % 6 === 0 && this.#quota.tasks !== Number.POSITIVE_INFINITY) this.#quota = { ...this.#quota, inFlight: this.#quota.tasks + 4 };
    if (this.#quota.tasks !== Number.POSITIVE_INFINITY && random() < 0.5) {
      const share = 5_000 * (1 + Math.floor(random() * 2 * cpus));
      // A task of a whole cpu can run when nobody else of the tenant runs.
      const etl: ProjectQuota = { ...NO_PROJECT_QUOTA, cpuUnits: share, cpuLendUnits: random() < 0.5 ? 0 : share, cpuBorrowUnits: 10_000, tasks: 5 + Math.floor(random() * 20), jobTasks: 4 + Math.floor(random() * 12), objectBytes: 8_000 + Math.floor(random() * 40_000), jobCpuUnits: 10_000 };
      const rest: ProjectQuota = { ...NO_PROJECT_QUOTA, cpuUnits: cpus * 10_000, cpuLendUnits: cpus * 10_000, cpuBorrowUnits: share };
      this.#quota = { ...this.#quota, projects: new Map([['etl', etl], [DEFAULT_PROJECT, rest]]) };
    }
    this.#ttlMs = random() < 0.3 ? 300 + Math.floor(random() * 2_000) : SESSION_TTL_MS;
    this.#world = {
      random, bugs,
      nowMs: () => this.#nowMs,
      push: (link, raylet, event) => this.#queue(link).push(this.#guarded(raylet, event)),
      unshift: (link, raylet, event) => void this.#queue(link).unshift(this.#guarded(raylet, event)),
      toDriver: (channel, batch) => this.#toDriver(channel, batch),
      driverClosed: (channel) => {
        const driver = this.#drivers.find((d) => d.channel === channel);
        if (driver !== undefined) driver.closed = true;
      },
      toPeer: (channel, batch) => this.#toPeer(channel, batch),
      peerClosed: (channel) => this.#peerClosed(channel),
      open: (raylet, upstream, depth) => this.#open(raylet, upstream, depth),
      write: (raylet, upstream, batch) => this.#write(raylet, upstream, batch),
      close: (_raylet, upstream) => this.#close(upstream),
      granted: (version, owner) => this.#variant(version, owner)?.grants === true,
      mayBob: (version, tenant) => this.#variant(version, tenant)?.bobMay === true,
      renew: (raylet, channel, credential) => this.#renewed(raylet, channel, credential),
      note: (text) => this.note(text),
      count: (what) => this.#count(what),
    };
    this.#shares = new ShareMachine(this.#quota, bugs, random, (id) => this.#projects.get(id), this.#nowMs);
    this.#head = new SimHead(random, { ...bugs.head });
    TENANTS.forEach((name, i) => {
      this.#head.commit(this.#nowMs, (out) => this.#head.tenants.step({ type: 'create', name, quota: {}, by: 'spiffe://sim/system/admin' }, this.#nowMs, out));
      this.#head.apply(i, 0, this.#nowMs);
    });
    const nodes = 1 + Math.floor(random() * 3);
    for (let n = 1; n <= nodes; n++) {
      this.#head.commit(this.#nowMs, (out) => this.#head.nodes.step({ type: 'reserve', id: `node-${n}`, by: 'spiffe://sim/system/admin' }, this.#nowMs, out));
      this.#logs.push(new Map(TENANTS.map((_, i) => [i + 1, new LogFiles()])));
      this.#start(n);
    }
    this.note(`seed ${seed}: ${nodes} nodes of ${cpus} cpus${this.#size.spillBytes > 0 ? ', spilling' : ''}${this.#calm ? ', calm' : ''}`);
  }

  #variant(version: number, tenant: number): Variant | undefined {
    return VARIANTS[this.#head.said.get(version)?.[tenant - 1] ?? -1];
  }

  note(text: string): void {
    const line = `${this.steps} ${this.#nowMs} ${text}`;
    for (let i = 0; i < line.length; i++) this.#digest = Math.imul(this.#digest ^ line.charCodeAt(i), 0x01000193) >>> 0;
    this.#tellEvent?.(line);
    this.lastEvents.push(line);
    if (this.lastEvents.length > KEPT_EVENTS) this.lastEvents.shift();
  }

  #count(what: string): void {
    this.counts[what] = (this.counts[what] ?? 0) + 1;
    this.note(what);
  }

  digest(): string {
    return this.#digest.toString(16).padStart(8, '0');
  }

  #queue(link: string, route = ''): (() => void)[] {
    let queue = this.#links.get(link);
    if (queue === undefined) this.#links.set(link, (queue = []));
    if (route !== '') this.#routes.set(link, route);
    return queue;
  }

  #guarded(raylet: SimRaylet, event: () => void): () => void {
    return () => {
      if (raylet.alive) event();
    };
  }

  #pick<T>(list: readonly T[]): T | undefined {
    return list[Math.floor(this.random() * list.length)];
  }

  // --- nodes ------------------------------------------------------------------------------------------------------------

  #start(number: number): SimRaylet {
    const raylet = new SimRaylet(this.#world, number, this.#size, this.#logs[number - 1] as ReadonlyMap<number, LogFiles>, this.#quota);
    this.raylets[number - 1] = raylet;
    this.#heartbeat(raylet);
    return raylet;
  }

  #crash(raylet: SimRaylet, downMs: number): void {
    this.#count(`node ${raylet.number} loses power`.replace(/\d+ /, ''));
    raylet.alive = false;
    this.#downUntil.set(raylet.number, this.#nowMs + downMs);
    for (const files of (this.#logs[raylet.number - 1] as ReadonlyMap<number, LogFiles>).values()) {
      files.entries.crash(this.random);
      files.full = false;
    }
    for (const driver of this.#drivers) if (driver.raylet === raylet) driver.closed = true;
    for (const other of this.raylets) other.mayLose = true;
    for (const c of [...this.#connections]) if (c.from === raylet || c.target === raylet) this.#sever(c);
  }

  #down(): number[] {
    return this.raylets.filter((r) => !r.alive).map((r) => r.number);
  }

  // --- between nodes ------------------------------------------------------------------------------------------------------

  #open(raylet: SimRaylet, upstream: Upstream, depth: number): void {
    const c: Connection = { from: raylet, to: upstream.nodeNumber, upstream, target: undefined, channel: undefined, dead: false };
    this.#connections.add(c);
    this.#queue(`link ${raylet.number}>${c.to}`, `${raylet.number}>${c.to}`).push(() => {
      if (c.dead) return;
      const target = this.raylets[c.to - 1] as SimRaylet;
      if (!target.alive) return this.#sever(c);
      c.target = target;
      const { job, asJob } = upstream;
      const tenant = target.core.state.tenants.get(job.tenant.number);
      let refused = tenant === undefined || job.credentialEndsMs <= target.nowMs() || target.revocations.isIdentityRevoked(job.submitter.spiffeId, job.issuedMs);
      if (!refused && tenant !== undefined) {
        try {
          target.core.state.nowMs = target.nowMs();
          const theirs = target.core.ensureJob(job.id, tenant, job.submitter, job.principal, job.credential, job.credentialEndsMs, job.issuedMs, job.project.name);
          c.channel = target.core.openChannel(CHANNEL_KIND.PEER, theirs, asJob ? theirs.principal : theirs.submitter, depth, {});
          c.channel.peer = `node-${c.from.number}`;
          this.#peers.set(c.channel, c);
          target.adopt(c.channel);
          target.flush();
        } catch {
          refused = true;
        }
      }
      if (refused) this.#refuse(c);
    });
  }

  /** The other side would not have it. */
  #refuse(c: Connection): void {
    this.#queue(`back ${c.from.number}<${c.to}`, `${c.to}>${c.from.number}`).push(this.#guarded(c.from, () => {
      if (c.dead) return;
      this.#forget(c);
      c.from.upstreamClosed(c.upstream, 'UNAUTHENTICATED');
    }));
  }

  #forget(c: Connection): void {
    c.dead = true;
    this.#connections.delete(c);
    if (c.channel !== undefined) this.#peers.delete(c.channel);
  }

  #write(raylet: SimRaylet, upstream: Upstream, sent: Uint8Array): void {
    const c = [...this.#connections].find((x) => x.upstream === upstream);
    if (c === undefined || c.dead) return;
    const link = `link ${raylet.number}>${c.to}`;
    const batch = this.#bugs.losesCommits === true ? without(sent, OP.COMMIT_BUNDLES) : this.#bugs.keepsBundles === true ? without(sent, OP.RELEASE_BUNDLES) : sent;
    this.#queue(link, `${raylet.number}>${c.to}`).push(() => {
      if (c.dead || c.target?.alive !== true || c.channel === undefined || c.channel.closed) return;
      c.target.clientBatch(link, c.channel, batch);
    });
  }

  #toPeer(channel: Channel, batch: Uint8Array): void {
    const c = this.#peers.get(channel);
    if (c === undefined || c.dead) return;
    const link = `back ${c.from.number}<${c.to}`;
    this.#queue(link, `${c.to}>${c.from.number}`).push(() => {
      if (!c.dead && c.from.alive) c.from.upstreamBatch(link, c.upstream, batch);
    });
  }

  /** The raylet that asked lets go. */
  #close(upstream: Upstream): void {
    const c = [...this.#connections].find((x) => x.upstream === upstream);
    if (c === undefined) return;
    this.#queue(`link ${c.from.number}>${c.to}`, `${c.from.number}>${c.to}`).push(() => {
      const { channel, target } = c;
      this.#forget(c);
      if (target?.alive === true && channel !== undefined && !channel.closed) target.closeChannel(channel);
    });
  }

  /** The raylet that serves ended the channel: its client is told. */
  #peerClosed(channel: Channel): void {
    const c = this.#peers.get(channel);
    if (c === undefined || c.dead) return;
    this.#refuse(c);
  }

  /** A connection is lost: each side learns of it by itself, after what had come through before. */
  #sever(c: Connection): void {
    if (c.dead) return;
    const { from, to, upstream } = c;
    from.mayLose = true;
    if (c.target !== undefined) c.target.mayLose = true;
    this.#connections.delete(c);
    const deaf = this.#bugs.losesLinkLoss === true;
    const here = this.#guarded(from, () => {
      if (deaf) return;
      from.core.state.nowMs = from.nowMs();
      from.core.state.avoidNode(to);
      from.upstreamClosed(upstream, 'UNAVAILABLE');
    });
    const there = (): void => {
      const { channel, target } = c;
      c.dead = true;
      if (channel !== undefined) this.#peers.delete(channel);
      if (target?.alive === true && channel !== undefined && !channel.closed) target.closeChannel(channel);
    };
    this.#losses.add(here).add(there);
    this.#queue(`back ${from.number}<${to}`).push(here);
    this.#queue(`link ${from.number}>${to}`).push(there);
  }

  /** All connections from one node to another, with what was under way. */
  #breakLink(from: number, to: number): void {
    for (const link of [`link ${from}>${to}`, `back ${from}<${to}`]) {
      const queue = this.#links.get(link);
      // A tail of what was sent is lost. What the loss itself says comes after.
      if (queue === undefined || this.random() < 0.3) continue;
      const kept = Math.floor(this.random() * (queue.length + 1));
      const rest = queue.splice(kept);
      queue.push(...rest.filter((event) => this.#losses.has(event)));
    }
    for (const c of [...this.#connections]) if (c.from.number === from && c.to === to) this.#sever(c);
  }

  /** What tells a side of the end of a connection: it is not of the connection, so it is not lost with it. */
  readonly #losses = new WeakSet<() => void>();

  // --- head -----------------------------------------------------------------------------------------------------------------

  /** A message between head and node: may be lost, come twice, or overtake others. */
  #unreliable(link: string, event: () => void): void {
    const queue = this.#queue(link);
    const faulty = this.#faulty;
    if (faulty && this.random() < 0.1) return;
    const at = faulty ? Math.floor(this.random() * (queue.length + 1)) : queue.length;
    queue.splice(at, 0, event);
    if (faulty && this.random() < 0.1) queue.push(event);
  }

  #heartbeat(raylet: SimRaylet): void {
    const { number, instance } = raylet;
    const { available, config } = raylet.core.state;
    const facts = { available, policyVersion: raylet.live.version, revocationVersion: Math.max(0, raylet.revocations.version), queuedTasks: 0 };
    const checkpoints = [...raylet.logs].flatMap(([tenant, log]) => {
      const c = this.random() < 0.3 ? log.checkpoint() : undefined;
      return c === undefined || c.treeSize === 0 ? [] : [{ tenant: TENANTS[tenant - 1] as string, treeSize: c.treeSize, rootHash: hex(c.rootHash) }];
    });
    const needs = this.#shares.report(raylet);
    this.#unreliable(`up ${number}`, () => {
      const head = this.#head;
      if (!head.up || !raylet.alive) return;
      const { id } = { id: config.nodeId };
      const known = head.nodes.get(id);
      const commit = (decide: Parameters<SimHead['commit']>[1]): void => void head.commit(this.#nowMs, decide);
      if (known?.state !== 'alive' || known.instance !== instance) commit((out) => head.nodes.step({ type: 'register', id, address: `10.0.0.${number}:1`, labels: {}, total: config.total, most: { cpuUnits: 1e9, memoryBytes: 2 ** 50, eachUnits: 0, labels: {} }, insecureDev: false, instance, facts }, this.#nowMs, out));
      else head.nodes.step({ type: 'report', id, facts }, this.#nowMs, []);
      if (!head.up) return;
      this.#shares.heard(id, instance, needs, this.#nowMs);
      for (const c of checkpoints) {
        head.sawCheckpoint(id, c.tenant, c.treeSize, c.rootHash, this.#nowMs);
        if (!head.up) return;
      }
      this.#tell(raylet);
    });
  }

  #tell(raylet: SimRaylet): void {
    const head = this.#head;
    const serial = ++head.serial;
    const snapshot = head.snapshot();
    const revocations = { version: head.revocations.version, identities: head.revocations.all().map((r) => ({ spiffeId: r.spiffeId, revokedBeforeMs: r.issuedBeforeMs })) };
    const nodes = head.nodes.alive().map((n) => ({ number: n.number, id: n.id, total: n.total, available: n.available }));
    const shares = this.#shares.tell(raylet.core.state.config.nodeId, this.#nowMs);
    const stopped = head.jobs.stopped(this.#nowMs) as JobId[];
    const ended = head.jobs.ended(this.#nowMs) as JobId[];
    this.#unreliable(`down ${raylet.number}`, () => {
      if (!raylet.alive) return;
      raylet.install(snapshot);
      this.#shares.install(raylet, shares);
      if (raylet.revocations.apply({ serials: [], identities: revocations.identities }, revocations.version) && this.#bugs.forgetsRevoked !== true) {
        for (const job of [...raylet.core.state.jobs.values()]) if (raylet.revocations.isIdentityRevoked(job.submitter.spiffeId, job.issuedMs)) raylet.stopJob(job.id);
      }
      // These parts have no version: a stream keeps their order.
      if (serial > raylet.headSerial) {
        raylet.headSerial = serial;
        for (const n of nodes) if (n.number !== raylet.number) raylet.core.setNode(n.id, n.number, '', `spiffe://sim/node/${n.id}`, n.total, n.available);
        for (const known of [...raylet.core.state.nodes.keys()]) if (!nodes.some((n) => n.number === known)) {
          raylet.core.removeNode(known);
          raylet.mayLose = true;
        }
        for (const job of stopped) raylet.stopJob(job);
        for (const job of ended) raylet.releaseDrivers(job);
      }
      raylet.flush();
    });
  }

  // --- drivers ----------------------------------------------------------------------------------------------------------------

  #attach(): void {
    const raylet = this.#pick(this.raylets.filter((r) => r.alive));
    if (!this.#head.up || raylet === undefined || raylet.live.version === 0) return;
    const tenantNumber = 1 + Math.floor(this.random() * 2);
    const hostile = this.random() < 0.2;
    this.#connect(raylet, tenantNumber, this.random() < 0.35 ? 'bob' : 'ana', hostile);
  }

  #connect(raylet: SimRaylet, tenantNumber: number, user: string, hostile: boolean): SimDriver | undefined {
    const head = this.#head;
    const tenantName = TENANTS[tenantNumber - 1] as string;
    const submitter = principalFromSpiffeId(`spiffe://sim/tenant/${tenantName}/user/${user}`);
    const id = `job-${String(this.#nextJob++).padStart(24, '0')}` as JobId;
    const endsMs = this.#nowMs + this.#ttlMs;
    const project = this.#quota.projects.size > 0 && this.random() < 0.6 ? 'etl' : DEFAULT_PROJECT;
    const issuedMs = this.#nowMs;
    this.#projects.set(id, project);
    head.commit(this.#nowMs, (out) => head.jobs.step({ type: 'open', jobId: id, tenant: tenantName, name: 'sim', by: submitter.spiffeId, expiresMs: endsMs, sessionId: '' }, this.#nowMs, out));
    if (!head.up) return undefined;
    const tenant = raylet.core.state.tenants.get(tenantNumber);
    if (tenant === undefined || endsMs <= raylet.nowMs() || raylet.revocations.isIdentityRevoked(submitter.spiffeId, issuedMs)) return undefined;
    raylet.core.state.nowMs = raylet.nowMs();
    const job = raylet.core.ensureJob(id, tenant, submitter, principalFromSpiffeId(`spiffe://sim/tenant/${tenantName}/job/${id}`, { kind: 'user', name: user }), 'credential', endsMs, issuedMs, project);
    this.#issued.set(id, endsMs);
    const driver = new SimDriver(raylet, raylet.core.openChannel(CHANNEL_KIND.DRIVER, job, submitter, 0, {}), user, hostile, this.#bugs.forgetsDetached === true);
    this.#drivers.push(driver);
    this.#jobs.set(id, issuedMs);
    raylet.adopt(driver.channel);
    raylet.flush();
    this.#count(`${hostile ? 'a hostile ' : 'a '}driver attaches`);
    return driver;
  }

  /** Honest drivers get another credential before theirs ends, while the head can give one. */
  #renew(): void {
    for (const driver of this.#drivers) {
      const { raylet, channel, hostile } = driver;
      if (driver.closed || hostile || !this.#head.up || !raylet.alive || driver.credentialEndsMs - this.#nowMs > this.#ttlMs / 2 || this.#head.revocations.all().some((r) => r.spiffeId === channel.principal.spiffeId)) continue;
      const endsMs = this.#nowMs + this.#ttlMs;
      this.#issued.set(channel.job.id, endsMs);
      this.#count('a credential is renewed');
      driver.renew(JSON.stringify({ job: channel.job.id, endsMs, issuedMs: this.#nowMs }), endsMs);
      this.#send(driver);
    }
  }

  /** As src/raylet/raylet.ts: checked, taken, and passed on to the nodes where the job has channels. What a hostile driver says is none. */
  #renewed(raylet: SimRaylet, channel: Channel, credential: string): void {
    raylet.later(() => {
      if (channel.closed) return;
      let known: { readonly job: string; readonly endsMs: number; readonly issuedMs: number } | undefined;
      try {
        known = JSON.parse(credential) as NonNullable<typeof known>;
      } catch {
        return raylet.closeChannel(channel);
      }
      const { job } = channel;
      if (known.job !== job.id || known.endsMs <= this.#nowMs || raylet.revocations.isIdentityRevoked(job.submitter.spiffeId, known.issuedMs)) return raylet.closeChannel(channel);
      if (known.endsMs <= job.credentialEndsMs) return;
      raylet.core.ensureJob(job.id, job.tenant, job.submitter, job.principal, credential, known.endsMs, known.issuedMs, job.project.name);
      for (const upstream of raylet.core.state.upstreams.values()) {
        if (upstream.job !== job) continue;
        upstream.out.begin(OP.CREDENTIAL).text(credential).end();
        raylet.core.state.markUpstream(upstream, -1);
      }
      raylet.flush();
    });
  }

  /** No session outlives its credential by more than it takes to see that, and none has one that the head did not give. */
  #checkCredentials(): void {
    for (const raylet of this.raylets) {
      if (!raylet.alive) continue;
      for (const { kind, number, job } of raylet.core.state.channels.values()) {
        if (kind === CHANNEL_KIND.SLOT) continue;
        if (job.credentialEndsMs < this.#nowMs - 100) throw new Error(`node ${raylet.number}: credentials: channel ${number} of ${job.id} is open at ${this.#nowMs}, and its credential ended at ${job.credentialEndsMs}`);
        if (job.credentialEndsMs > (this.#issued.get(job.id) ?? 0)) throw new Error(`node ${raylet.number}: credentials: ${job.id} has one that nobody was given`);
      }
    }
  }

  #toDriver(channel: Channel, batch: Uint8Array): void {
    const driver = this.#drivers.find((d) => d.channel === channel);
    if (driver === undefined) return;
    driver.receive(this.#bugs.losesItems === true && this.random() < 0.05 ? without(batch, OP.STREAM_ITEM) : batch);
    if (this.random() < 0.8 || !this.#faulty) driver.read();
    this.#send(driver);
    if (this.#bugs.answersTwice === true && this.random() < 0.05) driver.receive(batch);
    this.note(`driver ${channel.number} gets ${batch.length} octets`);
  }

  #send(driver: SimDriver): void {
    const taken = driver.take();
    if (taken === undefined) return;
    const batch = this.#bugs.dropsReleases === true ? without(taken, OP.RELEASE) : taken;
    const { raylet, channel } = driver;
    const link = `driver ${raylet.number}/${channel.number}`;
    this.#queue(link).push(this.#guarded(raylet, () => {
      if (!channel.closed) raylet.clientBatch(link, channel, batch);
    }));
  }

  #work(): void {
    const open = this.#drivers.filter((d) => !d.closed);
    if (open.length < 2 || (open.length < 5 && this.random() < 0.05)) return this.#attach();
    const driver = this.#pick(open) as SimDriver;
    const others = open.filter((d) => d.channel.job.tenant.number !== driver.channel.job.tenant.number);
    const dice = this.random();
    if (dice < 0.01) {
      this.#count('a driver leaves');
      driver.closed = true;
      driver.raylet.closeChannel(driver.channel);
      return;
    }
    if (driver.hostile) driver.attack(this.random, open.filter((d) => d !== driver).flatMap((d) => [...d.published.slice(-3), ...d.actors.slice(-2).map((a) => a.id), ...[...d.own.keys()].slice(-3).map((seq) => idAt(d, seq))]));
    else driver.act(this.random, others.flatMap((d) => (d.raylet === driver.raylet ? d.published.slice(-4) : [])));
    this.#send(driver);
  }

  // --- faults -----------------------------------------------------------------------------------------------------------------

  #fault(): void {
    const { random } = this;
    const raylet = this.#pick(this.raylets.filter((r) => r.alive));
    const a = 1 + Math.floor(random() * this.raylets.length);
    const b = 1 + Math.floor(random() * this.raylets.length);
    const head = this.#head;
    const dice = Math.floor(random() * 14);
    const harmless = this.#calm && dice < 7;
    if (harmless || raylet === undefined) return;
    switch (dice) {
      case 0:
      case 1: return random() < 0.5 ? this.#crash(raylet, Math.floor(random() * 500)) : undefined;
      case 2:
      case 3:
        if (a === b) return;
        this.#count('a link breaks');
        return this.#breakLink(a, b);
      case 4:
        if (a === b) return;
        this.#count('a one-way partition');
        this.#parted.set(`${a}>${b}`, this.#nowMs + Math.floor(random() * 300));
        return;
      case 5: {
        this.#count('a failing disk');
        const log = raylet.logs.get(1 + Math.floor(random() * 2));
        log?.work(false);
        log?.work(true);
        raylet.flush();
        return;
      }
      case 6: {
        this.#count('a clock jumps');
        raylet.clockOffsetMs += random() < 0.1 ? Math.floor(random() * 2 * SESSION_TTL_MS) : Math.floor((random() - 0.4) * 4_000);
        raylet.core.state.wallAheadMs = raylet.clockOffsetMs;
        return;
      }
      case 7: {
        this.#count('a full disk');
        raylet.full = random() < 0.5;
        const files = (this.#logs[raylet.number - 1] as ReadonlyMap<number, LogFiles>).get(1 + Math.floor(random() * 2)) as LogFiles;
        files.full = random() < 0.5;
        return;
      }
      case 8: {
        raylet.full = false;
        for (const files of (this.#logs[raylet.number - 1] as ReadonlyMap<number, LogFiles>).values()) files.full = false;
        return;
      }
      case 9: {
        const worker = raylet.anyWorker();
        if (worker === undefined) return;
        this.#count('a worker dies');
        return raylet.killWorker(worker, false);
      }
      case 10:
      case 11:
        if (!head.up) return;
        this.#count('another policy');
        return head.apply(Math.floor(random() * 2), Math.floor(random() * VARIANTS.length), this.#nowMs);
      case 12: {
        if (!head.up) return;
        const tenant = this.#pick(TENANTS) as string;
        if (random() < 0.5) {
          this.#count('an identity is revoked');
          const id = `spiffe://sim/tenant/${tenant}/user/${random() < 0.5 ? 'ana' : 'bob'}`;
          return void head.commit(this.#nowMs, (out) => head.revocations.step({ type: 'revoke', spiffeIds: [id], serial: '', reason: 'sim', by: 'spiffe://sim/system/admin', trustDomain: 'sim', tenant }, this.#nowMs, out));
        }
        const job = this.#pick(head.jobs.running(tenant));
        if (job === undefined) return;
        this.#count('a job is stopped');
        return void head.commit(this.#nowMs, (out) => head.jobs.step({ type: 'stop', jobId: job.jobId, by: 'spiffe://sim/system/admin', message: 'sim' }, this.#nowMs, out));
      }
      default:
        this.#count('the head loses power');
        head.crash();
        this.#headDownUntil = this.#nowMs + Math.floor(random() * 300);
    }
  }

  // --- time ---------------------------------------------------------------------------------------------------------------------

  #mend(all: boolean): void {
    for (const [route, untilMs] of [...this.#parted]) if (all || untilMs <= this.#nowMs) {
      this.#parted.delete(route);
      // A connection that was silent for long is given up by one side or the other.
      if (this.random() < 0.5) this.#breakLink(Number(route.split('>')[0]), Number(route.split('>')[1]));
    }
    if (!this.#head.up && (all || this.#headDownUntil <= this.#nowMs)) {
      this.#head.restart();
      this.#shares.restart(this.#nowMs);
    }
    for (const number of this.#down()) if (all || (this.#downUntil.get(number) ?? 0) <= this.#nowMs) this.#start(number);
    if (!all) return;
    // Everybody may give back and kill what is theirs.
    TENANTS.forEach((_, i) => this.#head.apply(i, 0, this.#nowMs));
    for (const raylet of this.raylets) {
      raylet.full = false;
      // A clock that is set wrong makes credentials look over: nothing is sent elsewhere then.
      raylet.clockOffsetMs = raylet.core.state.wallAheadMs = 0;
      for (const files of (this.#logs[raylet.number - 1] as ReadonlyMap<number, LogFiles>).values()) files.full = false;
      // A log that failed takes nothing until its node is started again.
      if ([...raylet.logs.values()].some((log) => log.failure !== undefined)) {
        this.#crash(raylet, 0);
        this.#start(raylet.number);
      }
    }
  }

  #pass(ms: number): void {
    this.#nowMs += ms;
    this.#renew();
    this.#mend(false);
    if (this.#head.up) {
      this.#shares.tick(this.#nowMs, this.#faulty && !this.#calm);
      this.#head.nodes.step({ type: 'tick' }, this.#nowMs, []);
      this.#head.commit(this.#nowMs, (out) => this.#head.jobs.step({ type: 'tick' }, this.#nowMs, out));
    }
    for (const raylet of this.raylets) {
      if (!raylet.alive) continue;
      raylet.tick();
      this.#heartbeat(raylet);
      checkRaylet(raylet);
    }
    this.#checkCredentials();
    this.#sums.check(this.raylets);
  }

  #disks(): void {
    for (const raylet of this.raylets) if (raylet.alive) for (const log of raylet.logs.values()) if (this.random() < 0.3) log.work(false);
  }

  /** One thing happens, somewhere. */
  step(): void {
    this.steps++;
    const links = [...this.#links.keys()].filter((link) => (this.#links.get(link) as unknown[]).length > 0 && !this.#parted.has(this.#routes.get(link) ?? ''));
    const link = this.#pick(links);
    if (link === undefined) this.#pass(5);
    else {
      const queue = this.#links.get(link) as (() => void)[];
      const event = queue.shift() as () => void;
      if (queue.length === 0) this.#links.delete(link);
      this.note(link);
      event();
      if (this.random() < 0.2) this.#nowMs++;
      if (this.steps % 25 === 0) this.#pass(5);
    }
    this.#disks();
    let touched = false;
    for (const raylet of this.raylets) if (raylet.alive && raylet.touched) {
      raylet.touched = false;
      checkRaylet(raylet);
      touched = true;
    }
    if (touched) this.#sums.check(this.raylets);
  }

  /** Nothing is under way. */
  #quiet(): boolean {
    for (const raylet of this.raylets) {
      if (!raylet.alive || raylet.core.state.callsInFlight > 0) return false;
      for (const log of raylet.logs.values()) if (!log.idle) return false;
    }
    return this.#drivers.every((d) => d.closed || d.hostile || d.pending === 0);
  }

  #settle(what: string, makesRoom = true): void {
    const began = this.steps;
    while (!this.#quiet()) {
      if (this.steps - began >= QUIET_STEPS) {
        const waiting = this.#drivers.filter((d) => !d.closed && !d.hostile && d.pending > 0).map((d) => `driver ${d.channel.number} on node ${d.raylet.number} waits for ${d.owed().join(', ')}`);
        const left = this.raylets.map((r) => `node ${r.number} has ${describeCalls(r) || 'nothing in flight'}`);
        throw new Error(`${what}: not everything has ended after ${QUIET_STEPS} steps: ${[...waiting, ...left].join('; ')}`);
      }
      // An actor that sits on all cpus for good makes what waits for them infeasible.
      if (makesRoom && (this.steps - began) % 1_000 === 999) for (const driver of this.#drivers) if (!driver.closed) {
        driver.makeRoom();
        this.#send(driver);
      }
      this.step();
    }
    // What follows from the last answers: releases to other nodes, files, workers.
    for (let i = 0; i < 400; i++) this.step();
  }

  run(): void {
    for (let i = 0; i < FAULTY_STEPS; i++) {
      this.#head.mayFail = !this.#calm;
      if (this.random() < 0.12) this.#work();
      if (this.random() < 0.03) this.#fault();
      this.step();
    }
    this.note('faults stop');
    this.#faulty = false;
    this.#head.mayFail = false;
    this.#mend(true);
    this.#settle('after the faults');
    checkGroups(this.raylets);
    for (const driver of this.#drivers) if (!driver.closed && !driver.hostile) driver.checkRefs();
    for (const driver of this.#drivers) if (!driver.closed && !driver.hostile) {
      driver.getAll();
      this.#send(driver);
    }
    for (let i = 0; i < 50; i++) this.step();
    this.#settle('after asking for everything again');
    // What a program begins now finds every node, whatever was lost before.
    for (const act of ['makeRoom', 'spread'] as const) {
      for (const driver of this.#drivers) if (!driver.closed && !driver.hostile) {
        driver[act](this.raylets.length);
        this.#send(driver);
      }
      for (let i = 0; i < 50; i++) this.step();
      this.#settle('with a new group over all nodes', act === 'makeRoom');
    }
    checkGroups(this.raylets);
    this.note('drivers leave');
    for (const driver of this.#drivers) if (!driver.closed) {
      driver.closed = true;
      driver.raylet.closeChannel(driver.channel);
    }
    this.#settle('after the drivers left');
    for (let i = 0; i < 600; i++) this.step();
    this.#checkLasting();
    this.#killLasting();
    this.#settle('after the detached actors were killed');
    for (let i = 0; i < 600; i++) this.step();
    for (const raylet of this.raylets) checkEmpty(raylet);
    // Power goes once more: what the logs hold is what was acknowledged.
    for (const raylet of this.raylets) this.#crash(raylet, 0);
    this.#mend(true);
    if (this.#head.up) this.#head.crash();
    this.#head.restart();
    for (const raylet of this.raylets) for (const log of raylet.logs.values()) log.checkpoint();
  }

  /** Actors that were made to live on without their drivers do, unless their node or job ended, or their identity was revoked. */
  #checkLasting(): void {
    for (const { raylet, channel, own, lasting, hostile } of this.#drivers) {
      const { state } = raylet.core;
      const { id, submitter, issuedMs } = channel.job;
      if (hostile || !raylet.alive || this.raylets[raylet.number - 1] !== raylet || state.wasStopped(id) || raylet.revocations.isIdentityRevoked(submitter.spiffeId, issuedMs)) continue;
      for (const { seq } of lasting) {
        if (own.get(seq)?.answered !== 'value') continue;
        const actor = [...(state.jobs.get(id)?.actors ?? [])].find((a) => a.session === channel.session && a.index === seq);
        if (actor === undefined) throw new Error(`node ${raylet.number}: detached: actor ${seq} of channel ${channel.number} went with its driver`);
        this.#count('a detached actor lives on');
      }
    }
  }

  /** An administrator of each tenant comes for what was left to live on. */
  #killLasting(): void {
    for (const raylet of this.raylets) for (const number of [1, 2]) {
      const ids = this.#drivers.filter((d) => d.raylet === raylet && d.channel.job.tenant.number === number).flatMap((d) => d.lasting.map((a) => a.id));
      const driver = ids.length === 0 ? undefined : this.#connect(raylet, number, 'eve', false);
      if (driver === undefined) continue;
      driver.kill(ids);
      this.#send(driver);
      for (let i = 0; i < 200; i++) this.step();
      driver.closed = true;
      raylet.closeChannel(driver.channel);
    }
  }

  runs(): number {
    return this.raylets.reduce((n, r) => n + r.runs, 0);
  }
}

function idAt(driver: SimDriver, seq: number): Uint8Array {
  const id = new Uint8Array(24);
  id.set(driver.channel.session.prefix);
  new DataView(id.buffer).setUint32(20, seq, true);
  return id;
}

/** The batch without the frames of one op. */
function without(batch: Uint8Array, op: number): Uint8Array {
  const out = new FrameWriter();
  const r = new FrameReader().reset(batch);
  while (r.next()) {
    if (r.op !== op) out.begin(r.op).range(batch, r.position, r.frameEnd).end();
    r.skipRest();
  }
  return out.take();
}

/** `look` sees the raylets of a run that failed, as they were then; `tell` hears of each event. */
export function simulate(seed: number, bugs: Bugs = NO_BUGS, look?: (raylets: readonly SimRaylet[]) => void, tell?: (event: string) => void): Outcome {
  const simulation = new Simulation(seed, bugs, tell);
  let failure = '';
  try {
    simulation.run();
  } catch (error) {
    failure = error instanceof Error ? (error.stack ?? error.message) : String(error);
    look?.(simulation.raylets);
  }
  return { seed, failure, digest: simulation.digest(), steps: simulation.steps, lastEvents: simulation.lastEvents, counts: simulation.counts };
}
