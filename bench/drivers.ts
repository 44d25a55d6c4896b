/** The bench's side of driver processes: starts them, asks them one thing at a time, and ends them. */
import { fork, type ChildProcess } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { DriverAnswer, DriverCommand } from './driver.ts';
import { owned } from './lifetimes.ts';
import type { Latencies } from './measure.ts';
import { preparationKey, type Row } from './rows.ts';
import { TENANTS, type BenchCluster } from './cluster.ts';

const ANSWER_TIMEOUT_MS = 120_000;

export class Driver {
  readonly #child: ChildProcess;
  readonly ready: Promise<DriverAnswer>;
  readonly #forget: () => void;

  constructor(profile: string, nodeArgs: readonly string[] = [], environment: Readonly<Record<string, string>> = {}) {
    this.#child = fork(fileURLToPath(new URL('./driver.ts', import.meta.url)), { env: { ...process.env, BULKHEAD_PROFILE: profile, ...environment }, execArgv: [...nodeArgs] });
    this.#forget = owned(async () => void this.#child.kill('SIGKILL'));
    this.ready = this.#answer('connect');
    this.ready.catch(() => undefined);
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  #answer(what: string): Promise<DriverAnswer> {
    return new Promise((resolve, reject) => {
      const over = (settle: () => void): void => {
        clearTimeout(timer);
        this.#child.off('message', onMessage);
        this.#child.off('exit', onExit);
        settle();
      };
      const onMessage = (answer: unknown): void => over(() => resolve(answer as DriverAnswer));
      const onExit = (code: number | null): void => over(() => reject(new Error(`a driver ended (${code}) at '${what}'`)));
      const timer = setTimeout(() => over(() => reject(new Error(`a driver did not answer '${what}' in ${ANSWER_TIMEOUT_MS / 1_000} s`))), ANSWER_TIMEOUT_MS);
      this.#child.once('message', onMessage);
      this.#child.once('exit', onExit);
    });
  }

  async ask(command: DriverCommand): Promise<number> {
    return (await this.#given(command)).rate ?? 0;
  }

  /** Lone calls of the prepared row, one after the other. */
  async loneCalls(seconds: number): Promise<Latencies> {
    const { latencies } = await this.#given({ do: 'lone-calls', seconds });
    if (latencies === undefined) throw new Error('a driver gave no latencies');
    return latencies;
  }

  async #given(command: DriverCommand): Promise<Exclude<DriverAnswer, { readonly error: string }>> {
    await this.ready;
    const answer = this.#answer(command.do);
    this.#child.send(command);
    const given = await answer;
    if ('error' in given) throw new Error(given.error);
    return given;
  }

  async stop(): Promise<void> {
    this.#forget();
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const gone = new Promise<void>((resolve) => this.#child.once('exit', () => resolve()));
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), 10_000);
    await this.ask({ do: 'stop' }).catch(() => this.#child.kill('SIGKILL'));
    await gone;
    clearTimeout(timer);
  }
}

/** Drivers of both tenants, started when a row first needs them. */
export class Drivers implements AsyncDisposable {
  readonly #cluster: BenchCluster;
  readonly #nodeArgs: readonly string[];
  readonly #started = new Map<string, Driver>();

  constructor(cluster: BenchCluster, nodeArgs: readonly string[] = []) {
    this.#cluster = cluster;
    this.#nodeArgs = nodeArgs;
  }

  #driver(tenant: (typeof TENANTS)[number], number: number): Driver {
    const key = `${tenant}-${number}`;
    let driver = this.#started.get(key);
    if (driver === undefined) this.#started.set(key, (driver = new Driver(this.#cluster.profiles[tenant], this.#nodeArgs)));
    return driver;
  }

  /** Drivers for a row, prepared. */
  async prepare(row: Row): Promise<PreparedRow> {
    const drivers = Array.from({ length: row.drivers }, (_, i) => (row.tenants === 2 ? this.#driver(TENANTS[i % 2] as (typeof TENANTS)[number], i >> 1) : this.#driver(TENANTS[0], i)));
    const key = preparationKey();
    // One after the other: the first one creates what the others look up.
    for (const [index, driver] of drivers.entries()) await driver.ask({ do: 'prepare', row: row.name, index, key });
    return {
      async run(seconds) {
        const rates = await Promise.all(drivers.map((driver) => driver.ask({ do: 'run', seconds })));
        return rates.reduce((sum, rate) => sum + rate, 0);
      },
    };
  }

  /** A new connection for the next row: what the last one held is let go with its session. */
  async renew(): Promise<void> {
    const old = [...this.#started.values()];
    this.#started.clear();
    await Promise.all(old.map((driver) => driver.stop()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.renew();
  }
}

export interface PreparedRow {
  /** Sum of the drivers' rates over one slice. */
  run(seconds: number): Promise<number>;
}
