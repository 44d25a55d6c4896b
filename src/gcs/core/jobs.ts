/**
 * Jobs and the sessions in them (one a driver). Transitions, in Ray's words: 1. none → RUNNING (open); 2. RUNNING → RUNNING (join,
 * refresh, a close that leaves other sessions); 3. RUNNING → SUCCEEDED | FAILED | STOPPED (the last session closes, by its outcome);
 * 4. RUNNING → STOPPED (stop); 5. RUNNING → FAILED (every session's credential ran out: the drivers are gone). Ended is for ever.
 */
import { parseJobId, quote, type JobId } from '../../base/ids.ts';
import { CLOCK_SKEW_MS, MAX_ENDED_JOBS_PER_TENANT, MAX_JOB_TEXT_CHARS, MAX_OPEN_JOBS_PER_TENANT, MAX_SESSIONS_PER_JOB, STOPPED_JOBS_TOLD_FOR_MS } from '../../base/limits.ts';
import { boundedText, full, refuse, unknown, type Effect, type Table } from './table.ts';

export type JobStatus = 'PENDING' | 'RUNNING' | 'SUCCEEDED' | 'FAILED' | 'STOPPED';

interface JobSession {
  readonly spiffeId: string;
  readonly expiresMs: number;
}

export interface JobRow {
  readonly jobId: JobId;
  readonly tenant: string;
  readonly name: string;
  /** SPIFFE ID. */
  readonly submitter: string;
  readonly status: JobStatus;
  readonly message: string;
  readonly startedMs: number;
  /** 0 while it runs. */
  readonly endedMs: number;
  readonly sessions: readonly JobSession[];
}

export type JobEvent =
  | { readonly type: 'open'; readonly jobId: string; readonly tenant: string; readonly name: string; readonly by: string; readonly expiresMs: number }
  | { readonly type: 'join' | 'refresh'; readonly jobId: string; readonly by: string; readonly expiresMs: number }
  | { readonly type: 'close'; readonly jobId: string; readonly by: string; readonly outcome: string; readonly message: string }
  | { readonly type: 'stop'; readonly jobId: string; readonly by: string; readonly message: string }
  | { readonly type: 'tick' };

const OUTCOMES: Readonly<Record<string, JobStatus>> = { succeeded: 'SUCCEEDED', failed: 'FAILED', stopped: 'STOPPED' };
const STATUS_RECORDED = { SUCCEEDED: 'job.succeeded', FAILED: 'job.failed', STOPPED: 'job.stopped' } as const;
/** Ends decided in one tick; the next tick goes on. Keeps a transaction small. */
const ENDS_PER_TICK = 50;

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

  /** What raylets must end if they still know it. */
  stopped(nowMs: number): string[] {
    return [...this.#rows.values()].filter((r) => (r.status === 'STOPPED' || r.status === 'FAILED') && r.endedMs > nowMs - STOPPED_JOBS_TOLD_FOR_MS).map((r) => r.jobId);
  }

  step(event: JobEvent, nowMs: number, out: Effect[]): void {
    switch (event.type) {
      case 'open': {
        const jobId = parseJobId(event.jobId);
        if (this.#rows.has(jobId)) return refuse(`job ${quote(jobId)} exists already`);
        if (this.running(event.tenant).length >= MAX_OPEN_JOBS_PER_TENANT) throw full('open jobs', MAX_OPEN_JOBS_PER_TENANT, 'close some or let them end');
        const name = boundedText('the job name', event.name, MAX_JOB_TEXT_CHARS);
        this.#put({ jobId, tenant: event.tenant, name, submitter: event.by, status: 'RUNNING', message: '', startedMs: nowMs, endedMs: 0, sessions: [{ spiffeId: event.by, expiresMs: event.expiresMs }] }, out);
        out.push({ type: 'record', tenant: event.tenant, event: 'job.started', principal: event.by, kind: 'job', resource: jobId, detail: name });
        return;
      }
      case 'join': {
        const row = this.#own(event.jobId, event.by);
        if (row.sessions.length >= MAX_SESSIONS_PER_JOB) throw full('drivers of this job', MAX_SESSIONS_PER_JOB, 'open another job');
        return this.#put({ ...row, sessions: [...row.sessions, { spiffeId: event.by, expiresMs: event.expiresMs }] }, out);
      }
      case 'refresh': {
        const row = this.#own(event.jobId, event.by);
        // Drivers of one submitter are alike, so the one that would end first is the one that asks.
        const oldest = row.sessions.reduce((a, b) => (b.expiresMs < a.expiresMs ? b : a));
        return this.#put({ ...row, sessions: [...row.sessions.filter((s) => s !== oldest), { ...oldest, expiresMs: event.expiresMs }] }, out);
      }
      case 'close': {
        const status = Object.hasOwn(OUTCOMES, event.outcome) ? OUTCOMES[event.outcome] : undefined;
        if (status === undefined) return refuse(`outcome ${quote(event.outcome)} is not one of ${Object.keys(OUTCOMES).join(', ')}`);
        const message = boundedText('the message', event.message, MAX_JOB_TEXT_CHARS);
        const row = this.#own(event.jobId, event.by);
        if (row.sessions.length > 1) return this.#put({ ...row, message, sessions: row.sessions.slice(1) }, out);
        return this.#end(row, status, message, event.by, nowMs, out);
      }
      case 'stop': {
        const row = this.get(event.jobId);
        // Stopping what has ended is no error: the caller has what it wants.
        return row.endedMs === 0 ? this.#end(row, 'STOPPED', event.message, event.by, nowMs, out) : undefined;
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

  #put(row: JobRow, out: Effect[]): void {
    out.push({ type: 'put', key: this.prefix + row.jobId, row });
  }

  #end(row: JobRow, status: 'SUCCEEDED' | 'FAILED' | 'STOPPED' | JobStatus, message: string, by: string, nowMs: number, out: Effect[]): void {
    this.#put({ ...row, status, message, endedMs: nowMs, sessions: [] }, out);
    const event = STATUS_RECORDED[status as keyof typeof STATUS_RECORDED];
    out.push({ type: 'record', tenant: row.tenant, event, principal: by, kind: 'job', resource: row.jobId, detail: message });
    if (status !== 'SUCCEEDED') out.push({ type: 'push', part: 'stoppedJobs' });
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
      } else if (row.sessions.every((s) => s.expiresMs + CLOCK_SKEW_MS < nowMs)) {
        this.#end(row, 'FAILED', 'its driver went away without closing the session', row.submitter, nowMs, out);
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
