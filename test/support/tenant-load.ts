/**
 * The load of one tenant while things break, and what it was told: tasks, large and small objects, an actor, tries at the other tenant's
 * objects. Checks each answer as it comes; `audited` then holds the tenant's logs against what was acknowledged. Must never: take an untyped
 * error or a wrong value for a fault's doing.
 */
import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { verifyExport } from '../../src/audit/audit-verify.ts';
import { FORWARDED } from '../../src/base/usage-record.ts';
import { Jobs } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { BulkheadError, type ActorHandle, type Cluster, type ObjectRef, type RemoteModule } from '../../src/sdk/sdk.ts';
import { NODE, type TestCluster } from './cluster.ts';

type Work = typeof import('./fault-work.ts');
type Ledger = ActorHandle<import('./fault-work.ts').Ledger>;

const CLI = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));
const run = promisify(execFile);
const WORK = new URL('./fault-work.ts', import.meta.url);
/** Far beyond any fault here: an answer that takes longer is none. */
const ANSWER_TIMEOUT_MS = 90_000;
const TASKS_PER_ROUND = 6;
const KEPT_OBJECTS = 12;
/** In frames, and more than a driver keeps beside a ref of its own: whoever reads it asks the raylet. */
const SMALL_BYTES = 20_000;
/** In a row: then a new session is tried. */
const MAX_FAILURES = 10;

/** Numbers from a seed, so that a failure can be tried again with the same moments. */
export function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

export interface LoadOptions {
  readonly tenant: string;
  readonly person?: string;
  readonly seed?: number;
  /** Ids of the other tenant's objects, tried each round. */
  readonly foreign?: () => string | undefined;
  /** Milliseconds between two rounds. */
  readonly pauseMs?: number;
  readonly slowMs?: number;
}

interface Book {
  readonly id: string;
  attempted: number;
  acknowledged: number;
  /** Acknowledged entries by life. */
  readonly lives: Map<number, number[]>;
}

export class TenantLoad {
  readonly tenant: string;
  /** Answers that no fault explains. */
  readonly wrong: string[] = [];
  /** `what code`, how often. */
  readonly errors = new Map<string, number>();
  /** What the first of each said. */
  readonly messages = new Map<string, string>();
  readonly tasks: string[] = [];
  readonly puts: string[] = [];
  readonly books: Book[] = [];
  readonly jobs: string[] = [];
  rounds = 0;
  sessions = 0;
  denials = 0;
  /** Connections that could not be made, tried again. */
  refusedSessions = 0;
  lastPut: string | undefined;
  driver: Cluster | undefined;
  readonly #cluster: TestCluster;
  readonly #options: LoadOptions;
  readonly #random: () => number;
  #stopping = false;
  readonly #done: Promise<void>;
  #next = 1;

  private constructor(cluster: TestCluster, options: LoadOptions) {
    this.tenant = options.tenant;
    this.#cluster = cluster;
    this.#options = options;
    this.#random = random(options.seed ?? 1);
    this.#done = this.#run();
    this.#done.catch(() => undefined);
  }

  static start(cluster: TestCluster, options: LoadOptions): TenantLoad {
    return new TenantLoad(cluster, options);
  }

  /** Finishes the round under way. Throws what the load itself failed of. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await this.#done;
  }

  /** Resolves when so many more rounds have ended well: the tenant is served again. Throws when they do not. */
  async served(rounds = 2, timeoutMs = 120_000): Promise<void> {
    const goal = this.rounds + rounds;
    const end = performance.now() + timeoutMs;
    while (this.rounds < goal) {
      if (this.#stopping) throw new Error(`the load of ${this.tenant} was stopped`);
      if (performance.now() > end) throw new Error(`${this.tenant} was not served for ${timeoutMs / 1_000} s; errors so far: ${[...this.errors].join('; ')}; wrong: ${this.wrong.join('; ')}`);
      await Promise.race([sleep(50), this.#done]);
    }
  }

  /** Resolves when it has been stopped; rejects when it could not go on. */
  get ended(): Promise<void> {
    return this.#done;
  }

  codesOf(what: string): string[] {
    return [...this.errors.keys()].filter((key) => key.startsWith(`${what} `)).map((key) => key.slice(what.length + 1));
  }

  async #run(): Promise<void> {
    while (!this.#stopping) {
      let driver: Cluster;
      let work: RemoteModule<Work>;
      try {
        driver = await this.#cluster.connect(`${this.tenant}-${this.#options.person ?? 'dev'}`);
        this.driver = driver;
        this.jobs.push(driver.jobId);
        work = await driver.module<Work>(WORK);
        this.sessions++;
      } catch (thrown) {
        this.#typed('session', thrown);
        this.refusedSessions++;
        await sleep(200);
        continue;
      }
      try {
        await this.#session(driver, work);
      } finally {
        await Promise.race([driver.close().catch((thrown: unknown) => this.#typed('close', thrown)), sleep(10_000)]);
      }
    }
  }

  /** An error is told by its code; anything else is wrong. */
  #typed(what: string, thrown: unknown): string {
    const code = thrown instanceof BulkheadError ? thrown.code : '';
    if (code === '' || code === 'INTERNAL') this.wrong.push(`${what}: ${(thrown as Error)?.stack?.slice(0, 500) ?? String(thrown)}`);
    else if (code === 'TIMEOUT') this.wrong.push(`${what}: no answer: ${(thrown as BulkheadError).safeMessage}`);
    if (!this.messages.has(`${what} ${code}`)) this.messages.set(`${what} ${code}`, (thrown as Error).message);
    this.errors.set(`${what} ${code}`, (this.errors.get(`${what} ${code}`) ?? 0) + 1);
    return code;
  }

  /** Rounds until the connection is lost. */
  async #session(driver: Cluster, work: RemoteModule<Work>): Promise<void> {
    let ledger: Ledger | undefined;
    let book: Book | undefined;
    const kept: { readonly ref: ObjectRef<Uint8Array>; readonly size: number; readonly fill: number }[] = [];
    let lost = false;
    /** Since the last answer. */
    let failures = 0;
    const answer = async <T>(what: string, work: () => Promise<T>): Promise<{ value: T } | undefined> => {
      try {
        const value = await work();
        failures = 0;
        return { value };
      } catch (thrown) {
        // Of a session that has ended every call says why, whatever the code is.
        if (this.#typed(what, thrown) === 'UNAVAILABLE' || ++failures >= MAX_FAILURES) lost = true;
        return undefined;
      }
    };
    while (!this.#stopping && !lost) {
      const before = [...this.errors.values()].reduce((a, b) => a + b, 0);
      const base = this.#next++;
      const tasks = Array.from({ length: TASKS_PER_ROUND }, async (_, i) => {
        const got = await answer('task', async () => {
          const ref = i % 2 === 0 ? work.add(base, i) : work.addSlowly.options({ cpus: 0.2 })(base, i, this.#options.slowMs ?? 60);
          return { id: ref.id, value: await driver.get(ref, { timeoutMs: ANSWER_TIMEOUT_MS }) };
        });
        if (got === undefined) return;
        const ref = got.value;
        this.tasks.push(ref.id);
        if (ref.value !== base + i) this.wrong.push(`task ${ref.id} answered ${String(ref.value)} instead of ${base + i}`);
      });
      const size = this.#random() < 0.3 ? 300_000 : SMALL_BYTES;
      const fill = base % 251;
      const put = await answer('put', () => driver.put(new Uint8Array(size).fill(fill)));
      if (put !== undefined) {
        // Reading is what shows that it is there: a ref is ready too when its put was refused.
        const done = await answer('put', () => driver.get(put.value, { timeoutMs: ANSWER_TIMEOUT_MS }));
        if (done !== undefined) {
          this.puts.push(put.value.id);
          this.lastPut = put.value.id;
          kept.push({ ref: put.value as ObjectRef<Uint8Array>, size, fill });
          if (kept.length > KEPT_OBJECTS) driver.release(kept.shift()?.ref as ObjectRef);
        }
      }
      const old = kept[Math.floor(this.#random() * kept.length)];
      if (old !== undefined) {
        const got = await answer('get', () => driver.get(old.ref, { timeoutMs: ANSWER_TIMEOUT_MS }));
        if (got !== undefined && !(got.value instanceof Uint8Array && got.value.length === old.size && got.value.every((b) => b === old.fill))) this.wrong.push(`object ${old.ref.id} is not what was put`);
        const read = await answer('task', () => driver.get(work.summary(old.ref), { timeoutMs: ANSWER_TIMEOUT_MS }));
        if (read !== undefined && (read.value.size !== old.size || read.value.first !== old.fill || read.value.last !== old.fill)) this.wrong.push(`object ${old.ref.id} is not what was put, inside a task`);
      }
      if (ledger === undefined) {
        const made = await answer('actor', () => work.Ledger.options({ maxRestarts: 100, cpus: 0.1 }).create() as Promise<Ledger>);
        ledger = made?.value;
        if (ledger !== undefined) this.books.push((book = { id: ledger.id, attempted: 0, acknowledged: 0, lives: new Map() }));
      }
      if (ledger !== undefined && book !== undefined) {
        const { note } = ledger;
        for (let i = 0; i < 3 && !lost; i++) {
          const entry = base * 10 + i;
          book.attempted++;
          const got = await answer('actor', () => driver.get(note(entry), { timeoutMs: ANSWER_TIMEOUT_MS }));
          if (got === undefined) continue;
          book.acknowledged++;
          const life = book.lives.get(got.value.life) ?? [];
          life.push(entry);
          book.lives.set(got.value.life, life);
        }
        book.attempted++;
        const got = lost ? undefined : await answer('actor', () => driver.get((ledger as Ledger).read(), { timeoutMs: ANSWER_TIMEOUT_MS }));
        if (got !== undefined) {
          book.acknowledged++;
          const { life, entries } = got.value;
          if (new Set(entries).size !== entries.length) this.wrong.push(`actor ${book.id} made a call twice: ${entries.join(' ')}`);
          const missing = (book.lives.get(life) ?? []).filter((entry) => !entries.includes(entry));
          if (missing.length > 0) this.wrong.push(`actor ${book.id} has lost acknowledged calls of its life ${life}: ${missing.join(' ')}`);
        }
        if (this.codesOf('actor').includes('ACTOR_DIED')) lost = true;
      }
      const foreign = this.#options.foreign?.();
      if (foreign !== undefined && !lost) {
        try {
          const stolen = await driver.get(driver.ref(foreign), { timeoutMs: ANSWER_TIMEOUT_MS });
          this.wrong.push(`${this.tenant} has read ${foreign}: ${typeof stolen}`);
        } catch (thrown) {
          const code = this.#typed('foreign', thrown);
          if (code === 'DENIED') this.denials++;
          else if (code === 'UNAVAILABLE' || code === 'RESOURCE_EXHAUSTED') lost = code === 'UNAVAILABLE';
          else this.wrong.push(`another tenant's object answered ${code}`);
        }
      }
      await Promise.all(tasks);
      const foreignErrors = foreign === undefined ? 0 : 1;
      if ([...this.errors.values()].reduce((a, b) => a + b, 0) <= before + foreignErrors) this.rounds++;
      await sleep(this.#options.pauseMs ?? 40);
    }
  }

  /** Signed checkpoints of all logs of the tenant as they are now: a later log must extend them. */
  async checkpoints(): Promise<string[]> {
    const { checkpoints } = await this.#export();
    return checkpoints;
  }

  /** What the tenant's auditor is answered on the command line. Throws what it says when it fails. */
  async #command(...args: string[]): Promise<unknown> {
    const { stdout } = await run(NODE, [CLI, ...args, '--json', '--profile', this.#cluster.profile(`${this.tenant}-siem`)], { maxBuffer: 64 * 2 ** 20, timeout: ANSWER_TIMEOUT_MS });
    return JSON.parse(stdout);
  }

  async #export(): Promise<{ dir: string; checkpoints: string[]; logs: { origin: string; directory: string }[] }> {
    const dir = join(mkdtempSync(join(this.#cluster.directory, 'export-')), this.tenant);
    const { logs } = (await this.#command('audit', 'export', '-o', dir)) as { logs: { origin: string; directory: string }[] };
    return { dir, logs, checkpoints: logs.map((log) => readFileSync(join(dir, log.directory, 'checkpoint'), 'utf8')) };
  }

  async #tasksUsed(): Promise<string | undefined> {
    const { totals } = (await this.#command('usage', '--from', '2000-01-01', '--to', '2200-01-01')) as { totals: { sku: string; quantity: string }[] };
    return totals.find((t) => t.sku === 'tasks')?.quantity;
  }

  /**
   * What the logs of all nodes, exported and verified offline, say of what was acknowledged; empty when each has its record once and nothing
   * else is there that must not be. The load is over and all nodes are alive.
   */
  async audited(earlierCheckpoints: readonly string[] = []): Promise<string[]> {
    const found: string[] = [];
    // What a cut had kept in a socket may still come: both are looked at when nothing came between.
    let counted = await this.#tasksUsed();
    let { dir, logs } = await this.#export();
    for (let tries = 0; tries < 20; tries++) {
      const now = await this.#tasksUsed();
      if (now === counted) break;
      await sleep(1_000);
      counted = await this.#tasksUsed();
      ({ dir, logs } = await this.#export());
    }
    const verdict = await verifyExport(dir, { tenant: this.tenant, earlierCheckpoints: [...earlierCheckpoints] });
    for (const log of verdict.logs) for (const problem of log.problems) found.push(`${log.origin}: ${problem.what}`);
    interface Line { type: string; action?: string; allow?: boolean; resource: string; index: number; count?: number; detail: string; principal: string; event?: string }
    const lines = logs.flatMap(({ directory }) => readFileSync(join(dir, directory, 'records.jsonl'), 'utf8').split('\n').filter((l) => l !== '').map((l) => JSON.parse(l) as Line));
    const allowed = lines.filter((l) => l.type === 'decision' && l.allow === true);
    for (const l of allowed) if (l.principal.includes('/tenant/') && !l.principal.includes(`/tenant/${this.tenant}/`)) found.push(`${l.principal} was allowed ${l.action ?? ''} on what is ${this.tenant}'s`);
    const times = new Map<string, number>();
    let tasks = 0;
    for (const l of allowed) {
      if (l.detail.endsWith(FORWARDED)) continue;
      if (l.action === 'task.submit') tasks += l.count ?? 1;
      for (let i = 0; i < (l.count ?? 1); i++) {
        const key = `${l.action ?? ''} ${l.resource} ${l.action === 'actor.call' ? l.index : l.index + i}`;
        times.set(key, (times.get(key) ?? 0) + 1);
      }
    }
    const of = (action: string, id: string): number => times.get(`${action} ${id.slice(4, 44)} ${Buffer.from(id.slice(44), 'hex').readUInt32LE()}`) ?? 0;
    for (const [action, ids] of [['task.submit', this.tasks], ['object.put', this.puts], ['actor.create', this.books.map((b) => b.id)]] as const) {
      if (new Set(ids).size !== ids.length) found.push(`ids of ${action} were given out twice`);
      const wrong = ids.filter((id) => of(action, id) !== 1);
      if (wrong.length > 0) found.push(`${wrong.length} acknowledged ${action} of ${ids.length} do not have one record each: ${wrong.slice(0, 3).map((id) => `${id} has ${of(action, id)}`).join(', ')}`);
    }
    for (const { id, attempted, acknowledged } of this.books) {
      const calls = of('actor.call', id);
      if (calls < acknowledged || calls > attempted) found.push(`actor ${id}: ${acknowledged} calls acknowledged of ${attempted}, ${calls} on record`);
    }
    if (counted !== String(tasks)) found.push(`usage counts ${counted ?? ''} tasks, the logs have ${tasks}`);
    const listed = new Set((await (await this.#cluster.as(`${this.tenant}-ana`)).to(Jobs).list({ tenant: this.tenant })).jobs.map((j) => j.jobId));
    for (const job of this.jobs) if (!listed.has(job)) found.push(`job ${job} was acknowledged and is not known`);
    return found;
  }
}

export interface Loads {
  readonly acme: TenantLoad;
  readonly globex: TenantLoad;
  readonly both: readonly TenantLoad[];
}

/** Faults under the load of both tenants, who are served before and after; then everything is checked. */
export async function underLoad(cluster: TestCluster, seed: number, faults: (loads: Loads) => Promise<void>): Promise<Loads> {
  const acme: TenantLoad = TenantLoad.start(cluster, { tenant: 'acme', seed, foreign: () => globex.lastPut });
  const globex: TenantLoad = TenantLoad.start(cluster, { tenant: 'globex', seed: seed + 1, foreign: () => acme.lastPut });
  const both = [acme, globex];
  try {
    await Promise.all(both.map((load) => load.served(2)));
    const earlier = await Promise.all(both.map((load) => load.checkpoints()));
    await faults({ acme, globex, both });
    await Promise.all(both.map((load) => load.served(3)));
    await Promise.all(both.map((load) => load.stop()));
    await cluster.settled();
    for (const [i, load] of both.entries()) {
      const wrong = [...load.wrong, ...(await load.audited(earlier[i])), ...(load.denials === 0 ? ['no try at the other tenant’s objects was made'] : [])];
      if (wrong.length > 0) throw new Error(`${load.tenant} (seed ${seed}): ${wrong.join('\n')}\nerrors: ${errorsOf(load)}`);
    }
    return { acme, globex, both };
  } finally {
    await Promise.all(both.map((load) => load.stop().catch(() => undefined)));
  }
}

export const errorsOf = (load: TenantLoad): string => [...load.errors].map(([what, n]) => `${what}: ${n} (${load.messages.get(what) ?? ''})`).join(', ');
