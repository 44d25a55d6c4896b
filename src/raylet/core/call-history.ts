/**
 * The calls of one tenant that have ended here: what `list tasks` and `timeline` show, and how long calls waited and ran. Columns in rings of
 * fixed size, so that noting a call makes no object: the newest calls all, older ones as a sample of each second. Must never: grow without
 * bound, or hold an argument or a value.
 */
import type { JobId } from '../../base/ids.ts';
import type { Session, Task, Template } from './state.ts';

/** Calls that are kept one by one, and as many sampled ones that are older. A power of two. */
const KEPT = 8_192;
const FIRST_CAPACITY = 256;
const SAMPLED_PER_SECOND = 100;
const FAILED_PER_SECOND = 20;
/** Powers of two of a millisecond; the last holds everything longer (35 minutes). */
export const DURATION_BUCKETS = 22;

const NUMBERS = 10;
const [SEQ, SUBMITTED, STARTED, ENDED, SLOT, REMOTE_SEQ, REMOTE_NODE, FLAGS, ATTEMPT, CALLER_SEQ] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
const FAILED = 1;
const FORWARDED_HERE = 2;

export interface PastCall {
  readonly session: Session;
  readonly seq: number;
  readonly job: JobId;
  readonly template: Template;
  readonly submittedMs: number;
  /** 0: it never started. */
  readonly startedMs: number;
  readonly endedMs: number;
  readonly failed: boolean;
  readonly reason: string;
  readonly attempt: number;
  /** Another raylet had it run here: it is listed where it was submitted. */
  readonly forwardedHere: boolean;
  readonly worker: string;
  readonly slot: number;
  /** Where this raylet had it run, and the id it has there. */
  readonly remoteNode: number;
  readonly remotePrefix: Uint8Array | undefined;
  readonly remoteSeq: number;
  /** Of a traced call that another call made. */
  readonly callerSession: Session | undefined;
  readonly callerSeq: number;
}

class CallRing {
  #numbers = new Float64Array(0);
  readonly #sessions: Session[] = [];
  readonly #jobs: JobId[] = [];
  readonly #templates: Template[] = [];
  readonly #workers: string[] = [];
  readonly #reasons: string[] = [];
  readonly #remotes: (Uint8Array | undefined)[] = [];
  readonly #callers: (Session | undefined)[] = [];
  /** Calls that were ever put here; the last of them are still. */
  total = 0;

  get size(): number {
    return Math.min(this.total, KEPT);
  }

  put(task: Task, failed: boolean, reason: string, forwardedHere: boolean, endedMs: number): void {
    const at = this.total++ & (KEPT - 1);
    if (at * NUMBERS >= this.#numbers.length) {
      const grown = new Float64Array(NUMBERS * Math.min(KEPT, Math.max(FIRST_CAPACITY, at * 2)));
      grown.set(this.#numbers);
      this.#numbers = grown;
    }
    const { ranOn, upstream, caller } = task;
    const n = this.#numbers;
    const base = at * NUMBERS;
    n[base + SEQ] = task.seq;
    n[base + SUBMITTED] = task.submittedMs;
    n[base + STARTED] = task.startedMs;
    n[base + ENDED] = endedMs;
    n[base + SLOT] = ranOn === undefined ? 0 : ranOn.number;
    n[base + REMOTE_SEQ] = task.remoteSeq;
    n[base + REMOTE_NODE] = upstream === undefined ? 0 : upstream.nodeNumber;
    n[base + FLAGS] = (failed ? FAILED : 0) | (forwardedHere ? FORWARDED_HERE : 0);
    n[base + ATTEMPT] = task.attempt;
    n[base + CALLER_SEQ] = caller === undefined ? 0 : caller.seq;
    this.#callers[at] = caller === undefined ? undefined : caller.channel.session;
    this.#sessions[at] = task.channel.session;
    this.#jobs[at] = task.channel.job.id;
    this.#templates[at] = task.template;
    this.#workers[at] = ranOn === undefined ? '' : (ranOn.worker.id ?? '');
    this.#reasons[at] = reason;
    this.#remotes[at] = upstream === undefined ? undefined : upstream.prefix;
  }

  /** The `number`th call that was put here. */
  at(number: number): PastCall {
    const at = number & (KEPT - 1);
    const numberAt = (field: number | undefined): number => this.#numbers[at * NUMBERS + (field as number)] as number;
    const flags = numberAt(FLAGS);
    return {
      session: this.#sessions[at] as Session, seq: numberAt(SEQ), job: this.#jobs[at] as JobId, template: this.#templates[at] as Template, submittedMs: numberAt(SUBMITTED), startedMs: numberAt(STARTED), endedMs: numberAt(ENDED),
      failed: (flags & FAILED) !== 0, reason: this.#reasons[at] as string, attempt: numberAt(ATTEMPT), forwardedHere: (flags & FORWARDED_HERE) !== 0, worker: this.#workers[at] as string, slot: numberAt(SLOT),
      remoteNode: numberAt(REMOTE_NODE), remotePrefix: this.#remotes[at], remoteSeq: numberAt(REMOTE_SEQ), callerSession: this.#callers[at], callerSeq: numberAt(CALLER_SEQ),
    };
  }

  clear(): void {
    this.total = 0;
    this.#numbers = new Float64Array(0);
    for (const column of [this.#sessions, this.#jobs, this.#templates, this.#workers, this.#reasons, this.#remotes, this.#callers]) column.length = 0;
  }
}

export class CallHistory {
  readonly #recent = new CallRing();
  readonly #sampled = new CallRing();
  #second = -1;
  #sampleLeft = 0;
  #failedLeft = 0;
  failed = 0;
  /** How many calls waited, and ran, less than 2^i ms. */
  readonly waited = new Float64Array(DURATION_BUCKETS);
  readonly ran = new Float64Array(DURATION_BUCKETS);
  waitedMs = 0;
  ranMs = 0;

  /** Calls that ended here since this raylet started. */
  get total(): number {
    return this.#recent.total;
  }

  note(task: Task, failed: boolean, reason: string, forwardedHere: boolean, nowMs: number): void {
    this.#recent.put(task, failed, reason, forwardedHere, nowMs);
    const second = Math.floor(nowMs / 1_000);
    if (second !== this.#second) {
      this.#second = second;
      this.#sampleLeft = SAMPLED_PER_SECOND;
      this.#failedLeft = FAILED_PER_SECOND;
    }
    if (this.#sampleLeft > 0) {
      this.#sampleLeft--;
      this.#sampled.put(task, failed, reason, forwardedHere, nowMs);
    } else if (failed && this.#failedLeft > 0) {
      this.#failedLeft--;
      this.#sampled.put(task, failed, reason, forwardedHere, nowMs);
    }
    if (failed) this.failed++;
    if (task.startedMs === 0) return;
    const waited = Math.max(0, task.startedMs - task.submittedMs);
    const ran = Math.max(0, nowMs - task.startedMs);
    this.waitedMs += waited;
    this.ranMs += ran;
    (this.waited[bucketOf(waited)] as number)++;
    (this.ran[bucketOf(ran)] as number)++;
  }

  /** Newest first, every one of them, as far back as they are kept. */
  *recent(): Generator<PastCall, void, undefined> {
    const ring = this.#recent;
    for (let number = ring.total - 1; number >= ring.total - ring.size; number--) yield ring.at(number);
  }

  /** The sampled ones that are older than the recent. */
  *older(): Generator<PastCall, void, undefined> {
    const ring = this.#sampled;
    const recent = this.#recent;
    if (recent.total <= KEPT) return;
    const oldestMs = recent.at(recent.total - KEPT).endedMs;
    for (let number = ring.total - 1; number >= ring.total - ring.size; number--) {
      const call = ring.at(number);
      if (call.endedMs < oldestMs) yield call;
    }
  }

  /** Its tenant was deleted. */
  clear(): void {
    this.#recent.clear();
    this.#sampled.clear();
  }
}

function bucketOf(ms: number): number {
  return Math.min(32 - Math.clz32(Math.min(ms, 0x7fff_ffff)), DURATION_BUCKETS - 1);
}
