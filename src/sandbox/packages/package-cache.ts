/**
 * Installed packages of runtime environments: built once for a tenant and its requirements, kept in a directory named by the digest of their lock, read-only, and lent to sandboxes. A
 * raylet begins with none. Must never: give one tenant what another tenant's build made; remove what a sandbox is using; run two builds of a tenant at once.
 */
import { randomBytes } from 'node:crypto';
import { mkdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { BulkheadError, toSafeError } from '../../base/errors.ts';
import { BUILD_TIMEOUT_MS, MAX_BUILDS, MAX_ENVIRONMENTS_BYTES_PER_TENANT } from '../../base/limits.ts';
import { StartTurns } from '../core/start-turns.ts';
import { IndexBroker } from './index-broker.ts';
import type { Built } from './package-build.ts';
import { PackageIndex, type PackageIndexConfig } from './package-index.ts';

export interface PackagesOptions {
  /** On a disk, 0700; emptied at the start. */
  readonly directory: string;
  readonly index: PackageIndexConfig;
}

/** Runs a throw-away sandbox for `tenant` until it is built or `signal` says stop. */
export type RunBuild = (tenant: string, broker: IndexBroker, requirements: readonly string[], into: string, signal: AbortSignal) => Promise<Built>;
/** What happened, for the tenant's audit log: `environment.fetched`, `.built`, `.failed`. */
export type TellFact = (tenant: string, event: string, name: string, detail: string) => void;

interface Installed {
  readonly directory: string;
  readonly lock: string;
  readonly bytes: number;
  users: number;
  lastUsed: number;
}

interface OfTenant {
  /** By the digest of the lock. */
  readonly installed: Map<string, Installed>;
  /** By the requirements, as JSON. */
  readonly known: Map<string, Installed>;
  readonly building: Map<string, Promise<Installed>>;
  last: Promise<unknown>;
  bytes: number;
}

export interface LentEnvironment {
  readonly directory: string;
  release(): void;
}

export class PackageCache {
  readonly #options: PackagesOptions;
  readonly #index: PackageIndex;
  readonly #run: RunBuild;
  readonly #turns = new StartTurns<() => void>(MAX_BUILDS);
  readonly #tenants = new Map<string, OfTenant>();
  readonly #closing = new AbortController();
  readonly #under = new Set<Promise<unknown>>();
  #uses = 0;
  onFact: TellFact = () => undefined;

  constructor(options: PackagesOptions, run: RunBuild) {
    this.#options = options;
    this.#index = new PackageIndex(options.index);
    this.#run = run;
    rmSync(options.directory, { recursive: true, force: true });
    mkdirSync(options.directory, { recursive: true, mode: 0o700 });
  }

  /** Throws ENVIRONMENT_FAILED with the reason. Whoever gets one gives it back. */
  async lend(tenant: string, requirements: readonly string[]): Promise<LentEnvironment> {
    const of = this.#of(tenant);
    const key = JSON.stringify(requirements);
    let installed = of.known.get(key);
    if (installed === undefined) {
      let building = of.building.get(key);
      if (building === undefined) {
        building = this.#build(of, tenant, key, requirements);
        of.building.set(key, building);
        const forget = (): void => void of.building.delete(key);
        building.then(forget, forget);
      }
      installed = await building;
    }
    installed.users++;
    installed.lastUsed = ++this.#uses;
    let lent = true;
    const taken = installed;
    return {
      directory: taken.directory,
      release: () => {
        if (lent) taken.users--;
        lent = false;
      },
    };
  }

  #of(tenant: string): OfTenant {
    let of = this.#tenants.get(tenant);
    if (of === undefined) this.#tenants.set(tenant, (of = { installed: new Map(), known: new Map(), building: new Map(), last: Promise.resolve(), bytes: 0 }));
    return of;
  }

  #build(of: OfTenant, tenant: string, key: string, requirements: readonly string[]): Promise<Installed> {
    const work = of.last.then(() => this.#inTurn(of, tenant, key, requirements));
    of.last = work.catch(() => undefined);
    this.#under.add(of.last);
    const last = of.last;
    void last.then(() => this.#under.delete(last));
    return work;
  }

  async #inTurn(of: OfTenant, tenant: string, key: string, requirements: readonly string[]): Promise<Installed> {
    const turn = Promise.withResolvers<void>();
    if (!this.#turns.begin(tenant, turn.resolve)) await turn.promise;
    try {
      if (this.#closing.signal.aborted || this.#tenants.get(tenant) !== of) throw new BulkheadError('UNAVAILABLE', 'this node stops, or the tenant is gone');
      return await this.#install(of, tenant, key, requirements);
    } catch (thrown) {
      const error = toSafeError(thrown);
      this.onFact(tenant, 'environment.failed', error.code, requirements.join(', '));
      throw error;
    } finally {
      this.#turns.ended()?.();
    }
  }

  async #install(of: OfTenant, tenant: string, key: string, requirements: readonly string[]): Promise<Installed> {
    const place = join(this.#options.directory, tenant);
    mkdirSync(place, { recursive: true, mode: 0o700 });
    const made = join(place, `.${randomBytes(8).toString('hex')}`);
    mkdirSync(made, { mode: 0o755 });
    const signal = AbortSignal.any([this.#closing.signal, AbortSignal.timeout(BUILD_TIMEOUT_MS)]);
    const broker = new IndexBroker(this.#index, signal);
    try {
      const built = await this.#run(tenant, broker, requirements, made, signal);
      for (const { file, sha256 } of broker.fetched) this.onFact(tenant, 'environment.fetched', `sha256:${sha256}`, file);
      if (this.#tenants.get(tenant) !== of) throw new BulkheadError('UNAVAILABLE', 'the tenant is gone');
      let installed = of.installed.get(built.lock);
      if (installed === undefined) {
        const directory = join(place, built.lock);
        renameSync(made, directory);
        installed = { directory, lock: built.lock, bytes: built.bytes, users: 0, lastUsed: ++this.#uses };
        of.installed.set(built.lock, installed);
        of.bytes += built.bytes;
      }
      of.known.set(key, installed);
      this.#makeRoom(of, installed);
      this.onFact(tenant, 'environment.built', `sha256:${built.lock}`, `${built.wheels.map((w) => w.file).join(', ')} (${built.files} files, ${built.bytes} bytes)`);
      return installed;
    } finally {
      rmSync(made, { recursive: true, force: true });
    }
  }

  #makeRoom(of: OfTenant, keep: Installed): void {
    const unused = [...of.installed.values()].filter((each) => each.users === 0 && each !== keep).sort((a, b) => a.lastUsed - b.lastUsed);
    for (const each of unused) {
      if (of.bytes <= MAX_ENVIRONMENTS_BYTES_PER_TENANT) return;
      of.installed.delete(each.lock);
      for (const [key, known] of of.known) if (known === each) of.known.delete(key);
      of.bytes -= each.bytes;
      rmSync(each.directory, { recursive: true, force: true });
    }
    if (of.bytes <= MAX_ENVIRONMENTS_BYTES_PER_TENANT) return;
    of.installed.delete(keep.lock);
    for (const [key, known] of of.known) if (known === keep) of.known.delete(key);
    of.bytes -= keep.bytes;
    rmSync(keep.directory, { recursive: true, force: true });
    throw new BulkheadError('RESOURCE_EXHAUSTED', `the packages of this tenant's environments in use have more than ${MAX_ENVIRONMENTS_BYTES_PER_TENANT} bytes on this node: end some of them, or use fewer different environments`);
  }

  /** A deleted tenant's. What still runs with them is ended by others. */
  forget(tenant: string): void {
    this.#tenants.delete(tenant);
    rmSync(join(this.#options.directory, tenant), { recursive: true, force: true });
  }

  async close(): Promise<void> {
    this.#closing.abort(new Error('the node stops'));
    await Promise.allSettled([...this.#under]);
    rmSync(this.#options.directory, { recursive: true, force: true });
  }
}
