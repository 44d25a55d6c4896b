/**
 * The embedded store: one SQLite file (Node's own `node:sqlite`), one writer process. WAL with synchronous=FULL: a commit has been
 * fsynced when `txn` resolves, so an acknowledged write survives kill -9 and a power cut.
 * Must never: be opened by two heads at once (an exclusive lock refuses the second), or put a caller's text into SQL.
 */
import { chmodSync } from 'node:fs';
import { DatabaseSync, type StatementSync } from 'node:sqlite';
import { BulkheadError } from '../base/errors.ts';
import { LeaseClock, Watchers } from './store-watchers.ts';
import {
  HISTORY_EVENTS, checkKey, checkLeaseTtl, checkPrefix, checkTxn, compacted, leaseEnded,
  type Compare, type Operation, type RangeResult, type Store, type StoredValue, type StoreEvent, type TxnResult, type Watch,
} from './store.ts';

/** Bumped when the tables change; a file with another number is refused, never guessed at. */
const SCHEMA_VERSION = 1;
const SCHEMA = `
  CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB NOT NULL, create_revision INTEGER NOT NULL, mod_revision INTEGER NOT NULL, lease INTEGER NOT NULL) WITHOUT ROWID, STRICT;
  CREATE INDEX entries_of_lease ON entries (lease) WHERE lease <> 0;
  CREATE TABLE history (sequence INTEGER PRIMARY KEY, revision INTEGER NOT NULL, key TEXT NOT NULL, value BLOB) STRICT;
  CREATE INDEX history_by_revision ON history (revision);
  CREATE TABLE leases (id INTEGER PRIMARY KEY, ttl_ms INTEGER NOT NULL) STRICT;
  CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID, STRICT;
  INSERT INTO counters VALUES ('revision', 0), ('lease', 0), ('compacted', 0);
`;
/** The last possible key character is `~`; DEL sorts after all of them. */
const AFTER_EVERY_KEY = '\x7f';

type Row = Record<string, unknown>;

function storedValue(row: Row): StoredValue {
  return { key: row.key as string, value: row.value as Uint8Array, createRevision: row.create_revision as number, modRevision: row.mod_revision as number, lease: row.lease as number };
}

export class SqliteStore implements Store {
  readonly #db: DatabaseSync;
  readonly #statements = new Map<string, StatementSync>();
  readonly #watchers = new Watchers();
  readonly #leases = new LeaseClock((lease) => this.#endLease(lease));
  #revision: number;

  /** Opens the file or makes it (mode 0600). Throws UNAVAILABLE when another process has it open. */
  static open(path: string): SqliteStore {
    try {
      return new SqliteStore(new DatabaseSync(path), path);
    } catch (error) {
      if (error instanceof BulkheadError) throw error;
      const busy = error instanceof Error && /locked|busy/.test(error.message);
      throw new BulkheadError('UNAVAILABLE', busy ? 'the head store is in use by another process: stop that head first' : 'the head store cannot be opened; the log names the cause', { cause: error });
    }
  }

  private constructor(db: DatabaseSync, path: string) {
    this.#db = db;
    chmodSync(path, 0o600);
    // The exclusive lock is held from the first read on, and released by the kernel when the process dies however it dies.
    db.exec('PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA trusted_schema=OFF; PRAGMA secure_delete=ON');
    const version = (db.prepare('PRAGMA user_version').get() as Row).user_version as number;
    if (version === 0) db.exec(`BEGIN IMMEDIATE; ${SCHEMA} PRAGMA user_version=${SCHEMA_VERSION}; COMMIT`);
    else if (version !== SCHEMA_VERSION) throw new BulkheadError('UNAVAILABLE', `the head store has format ${version}, this program reads format ${SCHEMA_VERSION}: use the version that wrote it`);
    this.#revision = this.#counter('revision');
    for (const row of db.prepare('SELECT id, ttl_ms FROM leases').all() as Row[]) this.#leases.start(row.id as number, row.ttl_ms as number);
  }

  #sql(text: string): StatementSync {
    let statement = this.#statements.get(text);
    if (statement === undefined) this.#statements.set(text, (statement = this.#db.prepare(text)));
    return statement;
  }

  #counter(name: 'revision' | 'lease' | 'compacted'): number {
    return (this.#sql('SELECT value FROM counters WHERE name = ?').get(name) as Row).value as number;
  }

  #transaction<T>(body: () => T): T {
    this.#db.exec('BEGIN IMMEDIATE');
    try {
      const result = body();
      this.#db.exec('COMMIT');
      return result;
    } catch (error) {
      if (this.#db.isTransaction) this.#db.exec('ROLLBACK');
      throw error;
    }
  }

  async get(key: string): Promise<StoredValue | undefined> {
    checkKey(key);
    const row = this.#sql('SELECT * FROM entries WHERE key = ?').get(key) as Row | undefined;
    return row && storedValue(row);
  }

  async range(prefix: string): Promise<RangeResult> {
    checkPrefix(prefix);
    const rows = this.#sql('SELECT * FROM entries WHERE key >= ? AND key < ? ORDER BY key').all(prefix, prefix + AFTER_EVERY_KEY) as Row[];
    return { items: rows.map(storedValue), revision: this.#revision };
  }

  async put(key: string, value: Uint8Array, options: { readonly lease?: number } = {}): Promise<number> {
    return (await this.txn([], [{ type: 'put', key, value, ...options }])).revision;
  }

  async delete(key: string): Promise<number> {
    return (await this.txn([], [{ type: 'delete', key }])).revision;
  }

  async txn(compares: readonly Compare[], operations: readonly Operation[]): Promise<TxnResult> {
    checkTxn(compares, operations);
    for (const { key, modRevision } of compares) {
      const row = this.#sql('SELECT mod_revision FROM entries WHERE key = ?').get(key) as Row | undefined;
      if (((row?.mod_revision as number | undefined) ?? 0) !== modRevision) return { succeeded: false, revision: this.#revision };
    }
    for (const o of operations) if (o.type === 'put' && o.lease !== undefined && !this.#leases.has(o.lease)) throw leaseEnded(o.lease);
    this.#write(operations);
    return { succeeded: true, revision: this.#revision };
  }

  #write(operations: readonly Operation[], alsoInTransaction: () => void = () => {}): void {
    const revision = this.#revision + 1;
    const events: StoreEvent[] = [];
    this.#transaction(() => {
      for (const operation of operations) {
        if (operation.type === 'delete') {
          if (this.#sql('DELETE FROM entries WHERE key = ?').run(operation.key).changes === 0) continue;
          events.push({ key: operation.key, value: undefined, revision });
        } else {
          this.#sql('INSERT INTO entries VALUES (?1, ?2, ?3, ?3, ?4) ON CONFLICT (key) DO UPDATE SET value = ?2, mod_revision = ?3, lease = ?4')
            .run(operation.key, operation.value, revision, operation.lease ?? 0);
          events.push({ key: operation.key, value: operation.value.slice(), revision });
        }
      }
      for (const e of events) this.#sql('INSERT INTO history (revision, key, value) VALUES (?, ?, ?)').run(e.revision, e.key, e.value ?? null);
      if (events.length > 0) {
        this.#sql("UPDATE counters SET value = ? WHERE name = 'revision'").run(revision);
        this.#compact();
      }
      alsoInTransaction();
    });
    if (events.length === 0) return;
    this.#revision = revision;
    this.#watchers.notify(events);
  }

  /** Drops whole transactions only, so that a watcher never sees half of one. */
  #compact(): void {
    const surplus = this.#sql('SELECT max(sequence) - ? AS upTo FROM history').get(HISTORY_EVENTS) as Row;
    const last = this.#sql('SELECT max(revision) AS revision FROM history WHERE sequence <= ?').get(surplus.upTo as number) as Row;
    if (last.revision === null) return;
    this.#sql('DELETE FROM history WHERE revision <= ?').run(last.revision as number);
    this.#sql("UPDATE counters SET value = ? WHERE name = 'compacted'").run(last.revision as number);
  }

  async watch(prefix: string, fromRevision: number, listener: (events: readonly StoreEvent[]) => void): Promise<Watch> {
    checkPrefix(prefix);
    const compactedTo = this.#counter('compacted');
    if (fromRevision <= compactedTo) throw compacted(fromRevision, compactedTo + 1);
    const rows = this.#sql('SELECT revision, key, value FROM history WHERE revision >= ? AND key >= ? AND key < ? ORDER BY sequence').all(fromRevision, prefix, prefix + AFTER_EVERY_KEY) as Row[];
    const past = rows.map((r): StoreEvent => ({ key: r.key as string, value: (r.value as Uint8Array | null) ?? undefined, revision: r.revision as number }));
    return this.#watchers.add(prefix, fromRevision, past, listener);
  }

  async grantLease(ttlMs: number): Promise<number> {
    checkLeaseTtl(ttlMs);
    const lease = this.#transaction(() => {
      this.#sql("UPDATE counters SET value = value + 1 WHERE name = 'lease'").run();
      const id = this.#counter('lease');
      this.#sql('INSERT INTO leases VALUES (?, ?)').run(id, ttlMs);
      return id;
    });
    this.#leases.start(lease, ttlMs);
    return lease;
  }

  async keepAlive(lease: number): Promise<void> {
    if (!this.#leases.keepAlive(lease)) throw leaseEnded(lease);
  }

  async revokeLease(lease: number): Promise<void> {
    this.#leases.forget(lease);
    this.#endLease(lease);
  }

  #endLease(lease: number): void {
    const keys = this.#sql('SELECT key FROM entries WHERE lease = ? AND lease <> 0').all(lease) as Row[];
    this.#write(keys.map((r): Operation => ({ type: 'delete', key: r.key as string })), () => void this.#sql('DELETE FROM leases WHERE id = ?').run(lease));
  }

  async revision(): Promise<number> {
    return this.#revision;
  }

  async close(): Promise<void> {
    this.#leases.stop();
    this.#watchers.clear();
    this.#statements.clear();
    if (this.#db.isOpen) this.#db.close();
  }
}
