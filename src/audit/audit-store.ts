/**
 * All audit logs of one node: one directory per tenant under one lock. Signs checkpoints of the logs that grew, at most once a second.
 * Must never: let two processes write one log; open a log by a name that is not a tenant name.
 */
import { chmodSync, linkSync, mkdirSync, readdirSync, readFileSync, renameSync, unlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { AuditCounts } from '../base/audit-metrics.ts';
import type { AppendDurably, AuditLogs } from '../base/audit-record.ts';
import { BulkheadError } from '../base/errors.ts';
import { parseTenantName } from '../base/ids.ts';
import { MAX_AUDIT_BYTES_PER_TENANT } from '../base/limits.ts';
import type { Clock } from '../base/time.ts';
import { syncDirectory, type CheckpointSigner } from './checkpoint-signer.ts';
import { checkKeyName } from './core/note.ts';
import { DiskRoom, diskSpaceOf, type DiskSpace } from './disk-room.ts';
import { NODE_DISK, TenantLog, type AuditDisk } from './tenant-log.ts';

/** Not a tenant name, so no tenant can have it. */
const CLUSTER_DIRECTORY = '_cluster';
const LOCK_FILE = 'lock';
const CHECKPOINT_INTERVAL_MS = 1_000;

export interface AuditStoreOptions {
  readonly dir: string;
  /** Prefix of every origin, `<trust domain>/node/<id>`. */
  readonly origin: string;
  readonly signer: CheckpointSigner;
  /** ML-DSA-44 beside it, on checkpoints that are asked for and on close. */
  readonly cosigner?: CheckpointSigner;
  /** Verifier keys of former signers that may have signed what is on disk. */
  readonly formerKeys?: readonly string[];
  readonly clock: Clock;
  /** Told about checkpoints that could not be written; the logs themselves report through `onDurable`. */
  readonly onProblem?: (tenant: string, error: unknown) => void;
  readonly disk?: AuditDisk;
  readonly checkpointIntervalMs?: number;
  /** Of each tenant's log here; the cluster's has none. */
  readonly bytesPerTenant?: number;
  /** Of the file system under `dir`. */
  readonly diskSpace?: () => DiskSpace;
  /**
   * Asked before a batch of a few records is written: true when nobody waits for this thread but who waits for that record, and whatever is to run beside the
   * disk has been started. The thread then writes it itself, for as long as the disk answers within a millisecond.
   */
  readonly alone?: () => boolean;
}

/** Origin of a tenant's log: the name that its checkpoints sign. */
export function originOf(prefix: string, tenant: string): string {
  return tenant === '' ? `${prefix}/cluster` : `${prefix}/tenant/${tenant}`;
}

export class AuditStore implements AuditLogs, AsyncDisposable {
  readonly options: AuditStoreOptions;
  readonly #logs = new Map<string, TenantLog>();
  readonly #unlock: () => void;
  readonly #room: { readonly quotaBytes: number; readonly disk: DiskRoom };
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  private constructor(options: AuditStoreOptions, unlock: () => void) {
    this.options = options;
    this.#unlock = unlock;
    this.#room = { quotaBytes: options.bytesPerTenant ?? MAX_AUDIT_BYTES_PER_TENANT, disk: new DiskRoom(options.diskSpace ?? (() => diskSpaceOf(options.dir)), options.clock) };
  }

  /** Opens the directory and the cluster's own log; logs of tenants open at first use. Throws UNAVAILABLE when another process has it or the cluster's log is damaged. */
  static async open(options: AuditStoreOptions): Promise<AuditStore> {
    checkKeyName(originOf(options.origin, 'x'.repeat(63)));
    mkdirSync(options.dir, { recursive: true, mode: 0o700 });
    chmodSync(options.dir, 0o700);
    syncDirectory(join(options.dir, '..'));
    const store = new AuditStore(options, lock(options.dir));
    try {
      store.forTenant('');
    } catch (error) {
      await store.close();
      throw error;
    }
    store.#schedule();
    return store;
  }

  forTenant(tenant: string): TenantLog {
    const known = this.#logs.get(tenant);
    if (known !== undefined) return known;
    if (this.#closed) throw new BulkheadError('UNAVAILABLE', 'the audit store is closed');
    const { dir, origin, signer, cosigner, clock, disk, formerKeys } = this.options;
    const log = TenantLog.open({
      dir: join(dir, tenant === '' ? CLUSTER_DIRECTORY : parseTenantName(tenant)), tenant, origin: originOf(origin, tenant), signer, cosigner,
      trustedKeys: [signer.publicKeyLine, ...(cosigner === undefined ? [] : [cosigner.publicKeyLine]), ...(formerKeys ?? [])], clock, disk: disk ?? NODE_DISK,
      room: tenant === '' ? undefined : this.#room, alone: this.options.alone,
    });
    this.#logs.set(tenant, log);
    return log;
  }

  /** Names with a log on this node; '' first. */
  tenants(): string[] {
    const names = readdirSync(this.options.dir, { withFileTypes: true }).filter((e) => e.isDirectory() && e.name !== CLUSTER_DIRECTORY).map((e) => e.name);
    return ['', ...names.sort()];
  }

  /** What is counted of each log that is open, by tenant ('' first); opens none. */
  *counts(): Generator<AuditCounts, void, undefined> {
    for (const [tenant, log] of this.#logs) {
      const { actions, events } = log.tally();
      yield { tenant, records: log.durable, actions, events };
    }
  }

  /** Whether the tenant has a log here, without making one. */
  has(tenant: string): boolean {
    return this.#logs.has(tenant) || this.tenants().includes(tenant);
  }

  readonly appendDurably: AppendDurably = async (tenant, record) => {
    const log = this.forTenant(tenant);
    await log.whenDurable(log.append(record));
  };

  /** Signs and returns the checkpoint of all durable records of a tenant's log. */
  checkpoint(tenant: string): Promise<string> {
    return this.forTenant(tenant).checkpoint(true);
  }

  #schedule(): void {
    this.#timer = setTimeout(() => void this.#signGrown(), this.options.checkpointIntervalMs ?? CHECKPOINT_INTERVAL_MS);
    this.#timer.unref();
  }

  async #signGrown(): Promise<void> {
    for (const [tenant, log] of this.#logs) {
      if (this.#closed) return;
      if (!log.grew || log.failure !== undefined) continue;
      try {
        await log.checkpoint(false);
      } catch (error) {
        this.options.onProblem?.(tenant, error);
      }
    }
    if (!this.#closed) this.#schedule();
  }

  /** Commits and signs everything, then releases the directory. Reports the first log that could not be closed well, after closing all. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#timer);
    const results = await Promise.allSettled([...this.#logs.values()].map((log) => log.close()));
    this.#unlock();
    const failed = results.find((r) => r.status === 'rejected');
    if (failed !== undefined) throw failed.reason;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** Start time of a process in clock ticks: with the id it names a process for good. Undefined when there is none, or only a dead one that nobody has reaped yet (a killed child of a gone parent, in a container without init). */
function startOf(pid: string): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' || fields[0] === 'X' ? undefined : fields[19];
  } catch {
    return undefined;
  }
}

/** The lock appears with its content at once (a link), and a dead owner's is moved aside before it is judged, so that two starters cannot both win. */
function lock(dir: string): () => void {
  const path = join(dir, LOCK_FILE);
  const mine = `${process.pid} ${startOf(String(process.pid)) ?? ''}`;
  const aside = join(dir, `.${LOCK_FILE}.${process.pid}`);
  const inUse = (pid: string): never => {
    throw new BulkheadError('UNAVAILABLE', `the audit directory is in use by process ${pid}: stop it first`);
  };
  writeFileSync(aside, mine, { mode: 0o600 });
  try {
    for (let attempt = 0; attempt < 3; attempt++) {
      try {
        linkSync(aside, path);
        return () => unlinkSync(path);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      }
      const seen = readFileSync(path, 'utf8');
      const [pid, start] = seen.split(' ');
      if (pid !== undefined && /^\d{1,10}$/.test(pid) && startOf(pid) === start) inUse(pid);
      const stale = `${aside}.stale`;
      renameSync(path, stale);
      const moved = readFileSync(stale, 'utf8');
      if (moved !== seen) linkSync(stale, path);
      unlinkSync(stale);
      if (moved !== seen) inUse(moved.split(' ')[0] ?? '');
    }
  } finally {
    unlinkSync(aside);
  }
  throw new BulkheadError('UNAVAILABLE', 'the audit directory could not be locked: another process starts at the same time; try again');
}
