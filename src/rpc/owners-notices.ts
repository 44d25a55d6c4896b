/**
 * Tells the owner of a resource about denied tries of other tenants, in the owner's log; the cluster's where there is no such owner. Who tried has
 * every record whole in its own log, and its answer waits for that one alone. Must never: let a neighbour fill a log with octets of its own choice;
 * do more or less for an owner that exists than for one that does not; lose the number of tries; fail the call that is told of.
 *
 * In each window of a second: 1. the first tries of a caller's tenant at each name are told one by one, up to a sum over all names, so that made-up
 * names neither fill the cluster's log nor show by the work whether they exist; 2. the rest is one record with their number at the window's end.
 * What a log cannot take (full, or failed) joins the number that it is told at the next end.
 */
import type { AppendDurably, DecisionRecord } from '../base/audit-record.ts';
import { MAX_INTRUSIONS_TOLD } from '../base/limits.ts';

const WINDOW_MS = 1_000;
const SETTLE_MS = 2_000;
/** Told one by one in a window over all names that one tenant asks for: two names' worth. */
const MAX_TOLD_PER_CALLER = 2 * MAX_INTRUSIONS_TOLD;
const MAX_COUNT = 0xffff_ffff;

interface Caller {
  told: number;
  /** By the name asked for, whether it exists or not; bounded by what is told. */
  readonly byName: Map<string, number>;
  /** By log. */
  readonly counted: Map<string, Sum>;
}

interface Sum {
  count: number;
  last: DecisionRecord;
}

export class OwnersNotices {
  readonly #append: AppendDurably;
  readonly #callers = new Map<string, Caller>();
  /** By log: what it could not take. One entry whoever tried, so that a log that stays full costs nothing more. */
  readonly #owed = new Map<string, Sum>();
  readonly #writing = new Set<Promise<void>>();
  #timer: NodeJS.Timeout | undefined;

  constructor(append: AppendDurably) {
    this.#append = append;
  }

  /** `caller`: its tenant, '' for the cluster's own; `asked`: what the request named, an owner or a kind, whether it exists or not; `log`: where that owner is told. */
  tell(caller: string, asked: string, log: string, record: DecisionRecord): void {
    let of = this.#callers.get(caller);
    if (of === undefined) this.#callers.set(caller, (of = { told: 0, byName: new Map(), counted: new Map() }));
    this.#timer ??= setTimeout(() => this.#endWindow(), WINDOW_MS).unref();
    const ofName = of.told < MAX_TOLD_PER_CALLER ? (of.byName.get(asked) ?? 0) : MAX_INTRUSIONS_TOLD;
    if (ofName >= MAX_INTRUSIONS_TOLD) return add(of.counted, log, record, 1);
    of.told++;
    of.byName.set(asked, ofName + 1);
    this.#write(log, record);
  }

  #write(log: string, record: DecisionRecord): void {
    const written: Promise<void> = this.#append(log, record)
      .catch(() => {
        add(this.#owed, log, record, record.count);
        this.#timer ??= setTimeout(() => this.#endWindow(), WINDOW_MS).unref();
      })
      .finally(() => this.#writing.delete(written));
    this.#writing.add(written);
  }

  #endWindow(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const ended = [...this.#callers.values()].map((of) => of.counted);
    const owed = new Map(this.#owed);
    this.#callers.clear();
    this.#owed.clear();
    for (const sums of [owed, ...ended]) {
      for (const [log, { count, last }] of sums) this.#write(log, count === 1 ? last : { ...last, resource: '', index: -1, count, detail: 'as many tries, the last by this principal' });
    }
  }

  /** Ends the window now; resolves when everything that can be told is on disk, or in two seconds. For the end of a process: the next one knows nothing of this window. */
  async settle(): Promise<void> {
    this.#endWindow();
    let timer: NodeJS.Timeout | undefined;
    await Promise.race([Promise.all(this.#writing), new Promise((resolve) => (timer = setTimeout(resolve, SETTLE_MS)))]);
    clearTimeout(timer);
  }
}

function add(sums: Map<string, Sum>, log: string, record: DecisionRecord, count: number): void {
  const sum = sums.get(log);
  if (sum === undefined) {
    sums.set(log, { count, last: record });
    return;
  }
  sum.count = Math.min(sum.count + count, MAX_COUNT);
  sum.last = record;
}

const NOTICES = new WeakMap<AppendDurably, OwnersNotices>();

/** One for each set of logs, whoever asks: a tenant that goes through several doors has one window. */
export function noticesOf(append: AppendDurably): OwnersNotices {
  let notices = NOTICES.get(append);
  if (notices === undefined) NOTICES.set(append, (notices = new OwnersNotices(append)));
  return notices;
}
