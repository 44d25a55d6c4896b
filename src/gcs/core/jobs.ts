/**
 * Jobs and the sessions in them (one a driver, and one of `bulkhead run`). Transitions, in Ray's words: 1. none → RUNNING (open: the owner's
 * session); 2. RUNNING → RUNNING (join, refresh, another session than the owner's leaves or is lost while others remain); 3. RUNNING →
 * SUCCEEDED | FAILED | STOPPED (the owner closes, or the last session does, by its outcome); 4. RUNNING → STOPPED (stop; of what ended already, a stop ends the detached actors); 5. RUNNING → FAILED
 * (the last session is lost: its connection died, it left without a word, or its credential ran out; of a submitted job, whose owner has no connection, the last besides the owner's); 6. SUCCEEDED → FAILED (the session that
 * closed it takes it back within seconds: a program's error shows only after its connection is disposed of). Else ended is for ever.
 */
import { parseJobId, quote, type JobId } from '../../base/ids.ts';
import { CLOCK_SKEW_MS, LAST_WORD_TTL_MS, MAX_ENDED_JOBS_PER_TENANT, MAX_JOB_TEXT_CHARS, MAX_OPEN_JOBS_PER_TENANT, MAX_SESSIONS_PER_JOB, MAX_SUBMISSION_CHARS, MAX_SUBMISSION_CHARS_PER_TENANT, MAX_SUBMISSION_ID_CHARS, SECOND_THOUGHTS_MS, STOPPED_JOBS_TOLD_FOR_MS } from '../../base/limits.ts';
import { DEFAULT_PROJECT } from '../../base/project-quota.ts';
import { boundedText, full, refuse, unknown, type Effect, type Table } from './table.ts';

export type JobStatus = 'PENDING' | 'RUNNING' | 'SUCCEEDED' | 'FAILED' | 'STOPPED';

interface JobSession {
  /** 16 hex digits. */
  readonly id: string;
  /** It opened the job, so its close ends it. */
  readonly owner: boolean;
  readonly spiffeId: string;
  readonly expiresMs: number;
  /** When its stream ended in order; its close is due. 0: not so far. */
  readonly leftMs: number;
}

/** What raylets must let go of a job that ended: with drivers attached, those; with a stop everything, detached actors too. */
type Cut = 'nothing' | 'drivers' | 'everything';

/** What a job was submitted as, by HTTP. */
export interface Submission {
  /** One in its tenant. */
  readonly id: string;
  readonly details: string;
}

export interface JobRow {
  readonly jobId: JobId;
  readonly tenant: string;
  readonly name: string;
  /** Undefined in rows from before there were projects: the default one. */
  readonly project?: string;
  /** SPIFFE ID. */
  readonly submitter: string;
  readonly status: JobStatus;
  readonly message: string;
  readonly startedMs: number;
  /** 0 while it runs. */
  readonly endedMs: number;
  readonly sessions: readonly JobSession[];
  readonly cut: Cut;
  /** When `cut` was decided; raylets are told for a while. */
  readonly cutMs: number;
  /** The session whose close ended it; '' when none did. */
  readonly closedBy: string;
  readonly submission?: Submission;
}

export type JobEvent =
  | { readonly type: 'open'; readonly jobId: string; readonly tenant: string; readonly name: string; readonly project?: string; readonly by: string; readonly expiresMs: number; readonly sessionId?: string; readonly submission?: Submission }
  | { readonly type: 'join' | 'refresh'; readonly jobId: string; readonly by: string; readonly expiresMs: number; readonly sessionId?: string }
  | { readonly type: 'close'; readonly jobId: string; readonly by: string; readonly sessionId?: string; readonly outcome: string; readonly message: string }
  | { readonly type: 'stop'; readonly jobId: string; readonly by: string; readonly message: string }
  /** What it was submitted as is forgotten; a job that runs keeps it. */
  | { readonly type: 'deleteSubmission'; readonly jobId: string }
  | { readonly type: 'tenantDeleted'; readonly tenant: string; readonly limit: number }
  /** A node says that the stream of a session ended there. What it names and the table does not know was over already. */
  | { readonly type: 'streamEnded'; readonly jobId: string; readonly sessionId: string; readonly how: string }
  | { readonly type: 'tick' };

const OUTCOMES: Readonly<Record<string, JobStatus>> = { succeeded: 'SUCCEEDED', failed: 'FAILED', stopped: 'STOPPED' };
const STATUS_RECORDED = { SUCCEEDED: 'job.succeeded', FAILED: 'job.failed', STOPPED: 'job.stopped' } as const;
const LOST = 'its driver was lost';
/** Ends decided in one tick, or submissions forgotten for a new one; the next goes on. Keeps a transaction small. */
const ENDS_PER_TICK = 50;

function session(event: { readonly by: string; readonly expiresMs: number; readonly sessionId?: string }, owner: boolean): JobSession {
  return { id: event.sessionId ?? '', owner, spiffeId: event.by, expiresMs: event.expiresMs, leftMs: 0 };
}

/** The open session that an event names; undefined when it names none. Throws DENIED when what it names is over. */
function named(row: JobRow, sessionId: string | undefined): JobSession | undefined {
  if (sessionId === undefined || sessionId === '') return undefined;
  const found = row.sessions.find((s) => s.id === sessionId);
  if (found === undefined) throw unknown(`an open session of job ${quote(row.jobId)}`);
  return found;
}

export class Jobs implements Table<JobEvent> {
  readonly prefix = 'jobs/';
  readonly #rows = new Map<string, JobRow>();
  /** So that what one tenant asks does not take longer for the jobs of others. */
  readonly #byTenant = new Map<string, Map<string, JobRow>>();

  /** Throws DENIED when there is none. */
  get(jobId: string): JobRow {
    const row = this.#rows.get(parseJobId(jobId));
    if (row === undefined) throw unknown(`job ${quote(jobId)}`);
    return row;
  }

  find(jobId: JobId): JobRow | undefined {
    return this.#rows.get(jobId);
  }

  /** Newest first. */
  ofTenant(tenant: string): JobRow[] {
    return [...(this.#byTenant.get(tenant)?.values() ?? [])].sort((a, b) => b.startedMs - a.startedMs || (a.jobId < b.jobId ? 1 : -1));
  }

  running(tenant: string): JobRow[] {
    return [...(this.#byTenant.get(tenant)?.values() ?? [])].filter((r) => r.endedMs === 0);
  }

  /** Newest first. */
  submitted(tenant: string): JobRow[] {
    return this.ofTenant(tenant).filter((r) => r.submission !== undefined);
  }

  submittedAs(tenant: string, submissionId: string): JobRow | undefined {
    for (const row of this.#byTenant.get(tenant)?.values() ?? []) if (row.submission?.id === submissionId) return row;
    return undefined;
  }

  /** What raylets must end if they still know it. */
  stopped(nowMs: number): string[] {
    return this.#cut('everything', nowMs);
  }

  /** Jobs that ended while drivers were attached: raylets let those go. */
  ended(nowMs: number): string[] {
    return this.#cut('drivers', nowMs);
  }

  #cut(cut: Cut, nowMs: number): string[] {
    return [...this.#rows.values()].filter((r) => r.cut === cut && r.cutMs > nowMs - STOPPED_JOBS_TOLD_FOR_MS).map((r) => r.jobId);
  }

  /** Whether a node's word on a session would change anything. */
  knowsSession(jobId: string, sessionId: string): boolean {
    return this.#rows.get(jobId)?.sessions.some((s) => s.id === sessionId) === true;
  }

  step(event: JobEvent, nowMs: number, out: Effect[]): void {
    switch (event.type) {
      case 'open': {
        const jobId = parseJobId(event.jobId);
        if (this.#rows.has(jobId)) return refuse(`job ${quote(jobId)} exists already`);
        if (this.running(event.tenant).length >= MAX_OPEN_JOBS_PER_TENANT) throw full('open jobs', MAX_OPEN_JOBS_PER_TENANT, 'close some or let them end');
        const name = boundedText('the job name', event.name, MAX_JOB_TEXT_CHARS);
        const submission = event.submission === undefined ? {} : { submission: this.#room(event.tenant, event.submission, out) };
        this.#put({ jobId, ...submission, tenant: event.tenant, name, project: event.project === undefined || event.project === '' ? DEFAULT_PROJECT : event.project, submitter: event.by, status: 'RUNNING', message: '', startedMs: nowMs, endedMs: 0, sessions: [session(event, true)], cut: 'nothing', cutMs: 0, closedBy: '' }, out);
        out.push({ type: 'record', tenant: event.tenant, event: 'job.started', principal: event.by, kind: 'job', resource: jobId, detail: name });
        return;
      }
      case 'join': {
        const row = this.#own(event.jobId, event.by);
        if (row.sessions.length >= MAX_SESSIONS_PER_JOB) throw full('drivers of this job', MAX_SESSIONS_PER_JOB, 'open another job');
        return this.#put({ ...row, sessions: [...row.sessions, session(event, false)] }, out);
      }
      case 'refresh': {
        const row = this.#own(event.jobId, event.by);
        // Without an id: drivers of one submitter are alike, so the one that would end first is the one that asks.
        const which = named(row, event.sessionId) ?? row.sessions.reduce((a, b) => (b.expiresMs < a.expiresMs ? b : a));
        return this.#put({ ...row, sessions: row.sessions.map((s) => (s === which ? { ...s, expiresMs: event.expiresMs, leftMs: 0 } : s)) }, out);
      }
      case 'close': {
        const status = Object.hasOwn(OUTCOMES, event.outcome) ? OUTCOMES[event.outcome] : undefined;
        if (status === undefined) return refuse(`outcome ${quote(event.outcome)} is not one of ${Object.keys(OUTCOMES).join(', ')}`);
        const message = boundedText('the message', event.message, MAX_JOB_TEXT_CHARS);
        if (status === 'FAILED' && this.#mayTakeBack(event, nowMs)) return this.#end({ ...this.get(event.jobId), endedMs: 0 }, 'FAILED', message, event.by, nowMs, out);
        const row = this.#own(event.jobId, event.by);
        const which = named(row, event.sessionId) ?? (row.sessions.at(-1) as JobSession);
        const others = row.sessions.filter((s) => s !== which);
        // How one of several drivers ended is its own affair: the job goes on, and its owner has the last word.
        if (others.length > 0 && !which.owner) return this.#put({ ...row, sessions: others }, out);
        return this.#end({ ...row, sessions: others, closedBy: which.id }, status, message, event.by, nowMs, out);
      }
      case 'deleteSubmission': {
        const row = this.get(event.jobId);
        if (row.endedMs === 0) return refuse(`job ${quote(row.jobId)} runs: stop it before you delete what it was submitted as`);
        if (row.submission !== undefined) this.#putUnsubmitted(row, out);
        return;
      }
      case 'tenantDeleted': {
        for (const row of this.submitted(event.tenant).slice(0, event.limit)) this.#putUnsubmitted(row, out);
        return;
      }
      case 'streamEnded': {
        const row = this.#rows.get(event.jobId);
        const which = event.sessionId === '' ? undefined : row?.sessions.find((s) => s.id === event.sessionId);
        if (row === undefined || which === undefined) return;
        if (event.how === 'lost') return this.#lost(row, [which], LOST, nowMs, out);
        if (event.how !== 'closed') return refuse(`the end of a stream, ${quote(event.how)}, is not one of closed, lost`);
        if (which.leftMs === 0) this.#put({ ...row, sessions: row.sessions.map((s) => (s === which ? { ...s, leftMs: nowMs } : s)) }, out);
        return;
      }
      case 'stop': {
        const row = this.get(event.jobId);
        if (row.endedMs === 0) return this.#end(row, 'STOPPED', event.message, event.by, nowMs, out, 'everything');
        // Stopping what is stopped is no error: the caller has what it wants. What ended otherwise keeps its outcome and loses its detached actors.
        if (row.cut === 'everything') return;
        this.#put({ ...row, cut: 'everything', cutMs: nowMs }, out);
        out.push({ type: 'record', tenant: row.tenant, event: 'job.stopped', principal: event.by, kind: 'job', resource: row.jobId, detail: event.message });
        out.push({ type: 'push', part: 'stoppedJobs' });
        return;
      }
      case 'tick': return this.#tick(nowMs, out);
    }
  }

  /** A running job that `by` submitted; anybody else's looks like none. */
  #own(jobId: string, by: string): JobRow {
    const row = this.get(jobId);
    if (row.submitter !== by || row.endedMs !== 0) throw unknown(`open job ${quote(jobId)}`);
    return row;
  }

  #putUnsubmitted(row: JobRow, out: Effect[]): void {
    const bare: { -readonly [K in keyof JobRow]: JobRow[K] } = { ...row };
    delete bare.submission;
    this.#put(bare, out);
  }

  /** The place of a new submission; the jobs that ended first give theirs. */
  #room(tenant: string, { id, details }: Submission, out: Effect[]): Submission {
    boundedText('the submission id', id, MAX_SUBMISSION_ID_CHARS, 1);
    boundedText('what the job is submitted as (command line, metadata, environment)', details, MAX_SUBMISSION_CHARS);
    const others = this.submitted(tenant);
    if (others.some((r) => r.submission?.id === id)) return refuse(`a job with the submission id ${quote(id)} exists already; choose another, or leave it out`);
    let chars = others.reduce((sum, r) => sum + (r.submission?.details.length ?? 0), details.length);
    const ended = others.filter((r) => r.endedMs !== 0).sort((a, b) => a.endedMs - b.endedMs);
    for (const row of ended.slice(0, ENDS_PER_TICK)) {
      if (chars <= MAX_SUBMISSION_CHARS_PER_TENANT) break;
      chars -= row.submission?.details.length ?? 0;
      this.#putUnsubmitted(row, out);
    }
    // Many small ones go over several submissions.
    if (chars > MAX_SUBMISSION_CHARS_PER_TENANT && ended.length <= ENDS_PER_TICK) throw full('characters of submitted jobs that run', MAX_SUBMISSION_CHARS_PER_TENANT, 'let some end');
    return { id, details };
  }

  #put(row: JobRow, out: Effect[]): void {
    out.push({ type: 'put', key: this.prefix + row.jobId, row });
  }

  /** `row.sessions`: those that are still open. */
  #end(row: JobRow, status: JobStatus, message: string, by: string, nowMs: number, out: Effect[], cut: Cut = row.sessions.length > 0 ? 'drivers' : row.cut): void {
    this.#put({ ...row, status, message, endedMs: nowMs, sessions: [], cut, cutMs: nowMs }, out);
    const event = STATUS_RECORDED[status as keyof typeof STATUS_RECORDED];
    out.push({ type: 'record', tenant: row.tenant, event, principal: by, kind: 'job', resource: row.jobId, detail: message });
    if (cut !== 'nothing') out.push({ type: 'push', part: 'stoppedJobs' });
  }

  /** Sessions are over without a word on how it went; with the last one the job has failed. */
  #lost(row: JobRow, lost: readonly JobSession[], message: string, nowMs: number, out: Effect[], cut: Cut = row.cut): void {
    const others = row.sessions.filter((s) => !lost.includes(s));
    // Who submitted it drives it from the same process, which has no stream for the session that it opened the job by.
    const alone = row.submission !== undefined && others.every((s) => s.owner);
    if (others.length > 0 && alone) this.#end({ ...row, sessions: others }, 'FAILED', message, row.submitter, nowMs, out);
    else if (others.length > 0) this.#put({ ...row, sessions: others }, out);
    else this.#end({ ...row, sessions: [] }, 'FAILED', message, row.submitter, nowMs, out, cut);
  }

  #mayTakeBack(event: JobEvent & { readonly type: 'close' }, nowMs: number): boolean {
    const row = this.get(event.jobId);
    return row.status === 'SUCCEEDED' && row.submitter === event.by && row.closedBy !== '' && row.closedBy === event.sessionId && nowMs - row.endedMs <= SECOND_THOUGHTS_MS;
  }

  #tick(nowMs: number, out: Effect[]): void {
    let ends = 0;
    const ended = new Map<string, JobRow[]>();
    for (const row of this.#rows.values()) {
      if (ends >= ENDS_PER_TICK) return;
      if (row.endedMs !== 0) {
        const list = ended.get(row.tenant);
        if (list === undefined) ended.set(row.tenant, [row]);
        else list.push(row);
      } else {
        const silent = row.sessions.filter((s) => s.leftMs > 0 && s.leftMs + LAST_WORD_TTL_MS < nowMs);
        if (silent.length > 0) this.#lost(row, silent, 'its driver left without saying how it went', nowMs, out);
        // A driver whose credential ran out may still be attached somewhere.
        else if (row.sessions.every((s) => s.expiresMs + CLOCK_SKEW_MS < nowMs)) this.#lost(row, row.sessions, 'its driver went away without closing the session', nowMs, out, 'drivers');
        else continue;
        ends++;
      }
    }
    for (const rows of ended.values()) {
      if (rows.length <= MAX_ENDED_JOBS_PER_TENANT) continue;
      rows.sort((a, b) => a.endedMs - b.endedMs);
      for (const row of rows.slice(0, Math.min(rows.length - MAX_ENDED_JOBS_PER_TENANT, ENDS_PER_TICK - ends))) {
        out.push({ type: 'delete', key: this.prefix + row.jobId });
        ends++;
      }
    }
  }

  absorb(key: string, row: unknown): void {
    const id = key.slice(this.prefix.length);
    const before = this.#rows.get(id);
    if (before !== undefined) this.#byTenant.get(before.tenant)?.delete(id);
    this.#rows.delete(id);
    if (row === undefined) return;
    const now = row as JobRow;
    this.#rows.set(id, now);
    const own = this.#byTenant.get(now.tenant);
    if (own === undefined) this.#byTenant.set(now.tenant, new Map([[id, now]]));
    else own.set(id, now);
  }
}
