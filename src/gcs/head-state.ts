/**
 * The driver of the head's tables: decide (pure) → audit records on disk → rows in the store → tables → pushes; then the caller's answer.
 * One decision at a time. Must never: let a table show what the store has not acknowledged. When a record or row cannot be
 * written the head stops: going on would mean answering from a state that nobody can restore.
 */
import type { AppendDurably } from '../base/audit-record.ts';
import { BulkheadError } from '../base/errors.ts';
import { steadyClock, type Clock } from '../base/time.ts';
import { ActorNames } from './core/actor-names.ts';
import { Checkpoints } from './core/checkpoints.ts';
import { Identities } from './core/identities.ts';
import { Issuance } from './core/issuance.ts';
import { Jobs } from './core/jobs.ts';
import { JoinTokens } from './core/join-tokens.ts';
import { Nodes, type NodeEvent } from './core/nodes.ts';
import { PolicyVersions } from './core/policy-versions.ts';
import { Revocations } from './core/revocations.ts';
import type { Effect, Part, Table } from './core/table.ts';
import { Tenants } from './core/tenants.ts';
import { Tokens } from './core/tokens.ts';
import type { Operation, Store } from './store.ts';

/** Written at every start. A head whose epoch is no longer the stored one has been replaced, and its writes fail. */
const EPOCH_KEY = 'head/epoch';

export interface HeadStateOptions {
  readonly store: Store;
  readonly clock: Clock;
  readonly appendAudit: AppendDurably;
  /** The head cannot go on: the log or the store failed. Called once. */
  readonly onFatal: (cause: unknown) => void;
}

export class HeadState {
  readonly tenants = new Tenants();
  readonly nodes = new Nodes();
  readonly jobs = new Jobs();
  readonly actorNames = new ActorNames();
  readonly identities = new Identities();
  readonly policies = new PolicyVersions();
  readonly revocations = new Revocations();
  readonly joinTokens = new JoinTokens();
  readonly tokens = new Tokens();
  readonly issuance = new Issuance();
  readonly checkpoints = new Checkpoints();
  readonly clock: Pick<Clock, 'nowMs'>;
  /** For how long a node has been silent: a clock that is set kills none. */
  readonly steady: Clock;
  readonly #tables: readonly Table<never>[] = [this.tenants, this.nodes, this.jobs, this.actorNames, this.identities, this.policies, this.revocations, this.joinTokens, this.tokens, this.issuance, this.checkpoints];
  readonly #options: HeadStateOptions;
  readonly #listeners = new Set<(parts: ReadonlySet<Part>) => void>();
  #epochRevision = 0;
  #tail: Promise<unknown> = Promise.resolve();
  #failure: BulkheadError | undefined;

  private constructor(options: HeadStateOptions) {
    this.#options = options;
    this.clock = options.clock;
    this.steady = steadyClock(options.clock);
  }

  static async load(options: HeadStateOptions): Promise<HeadState> {
    const head = new HeadState(options);
    const { store } = options;
    const before = await store.get(EPOCH_KEY);
    const taken = await store.txn([{ key: EPOCH_KEY, modRevision: before?.modRevision ?? 0 }], [{ type: 'put', key: EPOCH_KEY, value: encode({ startedMs: options.clock.nowMs() }) }]);
    if (!taken.succeeded) throw new BulkheadError('UNAVAILABLE', 'another head started on this store in the same moment: only one may run');
    head.#epochRevision = taken.revision;
    for (const table of head.#tables) {
      for (const { key, value } of (await store.range(table.prefix)).items) table.absorb(key, JSON.parse(new TextDecoder().decode(value)));
    }
    return head;
  }

  /**
   * Runs `decide` alone, executes its effects, and resolves with its result when everything is on disk and in the tables. What `decide`
   * throws (a refusal) goes to the caller and changes nothing; `inForce` runs right after the tables changed, before the pushes.
   */
  commit<T>(decide: (nowMs: number, out: Effect[]) => T, inForce?: (result: T) => void): Promise<T> {
    const done = this.#tail.then(async () => {
      if (this.#failure !== undefined) throw this.#failure;
      const out: Effect[] = [];
      const nowMs = this.clock.nowMs();
      const result = decide(nowMs, out);
      await this.#execute(out, nowMs);
      inForce?.(result);
      this.#push(out);
      return result;
    });
    this.#tail = done.catch(() => undefined);
    return done;
  }

  /** What a node says about itself: in memory only, at once. Its records are written behind, since no answer depends on them. */
  observe(event: Extract<NodeEvent, { type: 'report' | 'leave' | 'tick' }>): void {
    const out: Effect[] = [];
    this.nodes.step(event, this.steady.nowMs(), out);
    this.#push(out);
    if (out.some((e) => e.type === 'record')) void this.commit((_now, later) => void later.push(...out.filter((e) => e.type === 'record'))).catch(() => undefined);
  }

  /** A part changed that no table holds (the trust bundle). */
  announce(part: Part): void {
    this.#push([{ type: 'push', part }]);
  }

  /** Calls back after each change with what raylets must hear of. Returns the way to stop. */
  onPush(listener: (parts: ReadonlySet<Part>) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Rises with each life of the head on this store. */
  get epoch(): number {
    return this.#epochRevision;
  }

  /** Resolves when every decision taken so far has been executed. */
  async settled(): Promise<void> {
    await this.#tail;
  }

  #push(effects: readonly Effect[]): void {
    const parts = new Set<Part>();
    for (const e of effects) if (e.type === 'push') parts.add(e.part);
    if (parts.size > 0) for (const listener of [...this.#listeners]) listener(parts);
  }

  async #execute(effects: readonly Effect[], nowMs: number): Promise<void> {
    const { store, appendAudit } = this.#options;
    const operations: Operation[] = [];
    const rows: { key: string; row: unknown }[] = [];
    const records: Promise<void>[] = [];
    for (const e of effects) {
      if (e.type === 'put') {
        operations.push({ type: 'put', key: e.key, value: encode(e.row) });
        rows.push({ key: e.key, row: e.row });
      } else if (e.type === 'delete') {
        operations.push({ type: 'delete', key: e.key });
        rows.push({ key: e.key, row: undefined });
      }
    }
    try {
      for (const e of effects) {
        if (e.type === 'record') records.push(appendAudit(e.tenant, { type: 'lifecycle', timeMs: nowMs, event: e.event, principal: e.principal, resourceKind: e.kind, resource: e.resource, index: -1, detail: e.detail }));
      }
      await Promise.all(records);
      if (operations.length > 0 && !(await store.txn([{ key: EPOCH_KEY, modRevision: this.#epochRevision }], operations)).succeeded) throw new BulkheadError('UNAVAILABLE', 'another head has taken over this store');
    } catch (cause) {
      // A limit of the store or of a tenant's log refuses before anything is written; everything else leaves the outcome unknown.
      if (cause instanceof BulkheadError && (cause.code === 'RESOURCE_EXHAUSTED' || cause.code === 'QUOTA_EXCEEDED' || cause.code === 'INVALID_ARGUMENT')) throw cause;
      this.#failure = new BulkheadError('UNAVAILABLE', 'the head cannot write its state and stops; free the disk and start it again', { cause });
      this.#options.onFatal(cause);
      throw this.#failure;
    }
    for (const { key, row } of rows) this.#tables.find((t) => key.startsWith(t.prefix))?.absorb(key, row);
  }
}

function encode(row: object): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(row));
}
