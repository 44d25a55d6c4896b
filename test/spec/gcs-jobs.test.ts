/** How jobs end: whose close ends them, whose streams may be lost, and when a success is taken back. */
import { describe, expect, it } from 'vitest';
import { CLOCK_SKEW_MS, LAST_WORD_TTL_MS, MAX_SUBMISSION_CHARS, MAX_SUBMISSION_CHARS_PER_TENANT, SECOND_THOUGHTS_MS, SESSION_TTL_MS, STOPPED_JOBS_TOLD_FOR_MS } from '../../src/base/limits.ts';
import type { JobEvent } from '../../src/gcs/core/jobs.ts';
import { hex, jobId, testHead, type TestHead } from './gcs-head.ts';

const ANA = 'spiffe://td/tenant/acme/user/ana';
const BOB = 'spiffe://td/tenant/acme/user/bob';
const JOB = jobId(1);
/** The session that opened the job, and two that joined. */
const [OWNER, SECOND, THIRD] = [1, 2, 3].map((n) => hex(n, 16)) as [string, string, string];
const denied = expect.objectContaining({ code: 'DENIED' });

class Table {
  readonly t: TestHead;
  pushes = 0;

  private constructor(t: TestHead) {
    this.t = t;
    t.head.onPush((parts) => {
      if (parts.has('stoppedJobs')) this.pushes++;
    });
  }

  /** A job with its owner's session and those that joined. */
  static async open(...joined: string[]): Promise<Table> {
    const table = new Table(await testHead());
    await table.step({ type: 'open', jobId: JOB, tenant: 'acme', name: 'j', by: ANA, expiresMs: table.nowMs + SESSION_TTL_MS, sessionId: OWNER });
    for (const sessionId of joined) await table.step({ type: 'join', jobId: JOB, by: ANA, expiresMs: table.nowMs + SESSION_TTL_MS, sessionId });
    return table;
  }

  get nowMs(): number {
    return this.t.clock.ms;
  }

  step(event: JobEvent): Promise<void> {
    return this.t.head.commit((now, out) => this.t.head.jobs.step(event, now, out));
  }

  close(sessionId: string, outcome: string, message = '', by = ANA): Promise<void> {
    return this.step({ type: 'close', jobId: JOB, by, sessionId, outcome, message });
  }

  streamEnded(sessionId: string, how: string): Promise<void> {
    return this.step({ type: 'streamEnded', jobId: JOB, sessionId, how });
  }

  async later(ms: number): Promise<void> {
    this.t.clock.ms += ms;
    await this.step({ type: 'tick' });
  }

  get row() {
    return this.t.head.jobs.get(JOB);
  }

  /** What raylets are told to end, and to let go. */
  get told(): { stopped: string[]; ended: string[] } {
    const { jobs } = this.t.head;
    return { stopped: jobs.stopped(this.nowMs), ended: jobs.ended(this.nowMs) };
  }

  get events(): string[] {
    return this.t.records.flatMap(({ record }) => (record.type === 'lifecycle' ? [record.event] : []));
  }
}

describe('whoever opened a job', () => {
  it('ends it, with its outcome, and drivers that are still attached are let go', async () => {
    const table = await Table.open(SECOND);
    await table.close(OWNER, 'failed', 'exit code 3');
    expect(table.row).toMatchObject({ status: 'FAILED', message: 'exit code 3', sessions: [] });
    expect(table.told).toEqual({ stopped: [], ended: [JOB] });
    expect(table.pushes).toBe(1);
    await expect(table.step({ type: 'refresh', jobId: JOB, by: ANA, expiresMs: 1, sessionId: SECOND })).rejects.toEqual(denied);
  });

  it('ends it alone without a word to raylets: they saw its driver leave, and detached actors stay', async () => {
    for (const outcome of ['succeeded', 'failed', 'stopped']) {
      const table = await Table.open();
      await table.close(OWNER, outcome);
      expect(table.row.status).toBe(outcome.toUpperCase());
      expect(table.told).toEqual({ stopped: [], ended: [] });
      expect(table.pushes).toBe(0);
    }
  });

  it('is not spoken for by a driver that joined', async () => {
    const table = await Table.open(SECOND, THIRD);
    await table.close(SECOND, 'failed', 'exit code 1');
    await table.streamEnded(THIRD, 'lost');
    expect(table.row).toMatchObject({ status: 'RUNNING', message: '', sessions: [{ id: OWNER }] });
    await expect(table.close(SECOND, 'failed')).rejects.toEqual(denied);
    await expect(table.step({ type: 'refresh', jobId: JOB, by: ANA, expiresMs: 1, sessionId: THIRD })).rejects.toEqual(denied);
    await table.close(OWNER, 'succeeded');
    expect(table.row.status).toBe('SUCCEEDED');
  });
});

describe('a stream that ended', () => {
  it('lost: the job has failed at once, on record', async () => {
    const table = await Table.open();
    await table.streamEnded(OWNER, 'lost');
    expect(table.row).toMatchObject({ status: 'FAILED', message: 'its driver was lost', endedMs: table.nowMs });
    expect(table.events).toEqual(['job.started', 'job.failed']);
    await expect(table.close(OWNER, 'succeeded')).rejects.toEqual(denied);
    // Detached actors stay, and nobody else is attached.
    expect(table.told).toEqual({ stopped: [], ended: [] });
  });

  it('of one of several: another driver keeps the job, and its outcome counts when it is the last', async () => {
    const table = await Table.open(SECOND);
    await table.streamEnded(OWNER, 'lost');
    expect(table.row.status).toBe('RUNNING');
    await table.close(SECOND, 'succeeded');
    expect(table.row.status).toBe('SUCCEEDED');
  });

  it('in order: the driver has time for its word', async () => {
    const table = await Table.open();
    await table.streamEnded(OWNER, 'closed');
    await table.later(LAST_WORD_TTL_MS);
    expect(table.row.status).toBe('RUNNING');
    await table.close(OWNER, 'succeeded');
    expect(table.row.status).toBe('SUCCEEDED');
  });

  it('in order and without a word after it: the job has failed; said twice is said once', async () => {
    const table = await Table.open();
    await table.streamEnded(OWNER, 'closed');
    await table.later(LAST_WORD_TTL_MS / 2);
    await table.streamEnded(OWNER, 'closed');
    await table.later(LAST_WORD_TTL_MS / 2 + 1);
    expect(table.row).toMatchObject({ status: 'FAILED', message: 'its driver left without saying how it went' });
  });

  it('is forgiven a session that lives', async () => {
    const table = await Table.open();
    await table.streamEnded(OWNER, 'closed');
    await table.step({ type: 'refresh', jobId: JOB, by: ANA, expiresMs: table.nowMs + SESSION_TTL_MS, sessionId: OWNER });
    await table.later(LAST_WORD_TTL_MS + 1);
    expect(table.row.status).toBe('RUNNING');
  });

  it('of a session that is over, of no session and of no job says nothing', async () => {
    const table = await Table.open(SECOND);
    await table.close(SECOND, 'succeeded');
    const before = table.row;
    const { length } = table.t.store.events;
    for (const sessionId of [SECOND, THIRD, '', '__proto__']) await table.streamEnded(sessionId, 'lost');
    await table.step({ type: 'streamEnded', jobId: jobId(9), sessionId: OWNER, how: 'lost' });
    expect(table.row).toBe(before);
    expect(table.t.store.events).toHaveLength(length);
    await expect(table.streamEnded(OWNER, 'vanished')).rejects.toEqual(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    expect(['', SECOND, OWNER].map((id) => table.t.head.jobs.knowsSession(JOB, id))).toEqual([false, false, true]);
  });

  it('unknown, and a credential that ran out: the job has failed, and a driver that may still be attached is let go', async () => {
    const table = await Table.open();
    await table.later(SESSION_TTL_MS + CLOCK_SKEW_MS + 1);
    expect(table.row).toMatchObject({ status: 'FAILED', message: 'its driver went away without closing the session' });
    expect(table.told).toEqual({ stopped: [], ended: [JOB] });
  });
});

describe('a success', () => {
  it('is taken back by the session that reported it, for a few seconds, on record', async () => {
    const table = await Table.open();
    await table.close(OWNER, 'succeeded');
    table.t.clock.ms += SECOND_THOUGHTS_MS;
    await table.close(OWNER, 'failed', 'Error: boom');
    expect(table.row).toMatchObject({ status: 'FAILED', message: 'Error: boom', endedMs: table.nowMs });
    expect(table.events).toEqual(['job.started', 'job.succeeded', 'job.failed']);
    await expect(table.close(OWNER, 'failed', 'again')).rejects.toEqual(denied);
  });

  it('stays: later, by another session, by nobody’s, by somebody else, by any other word', async () => {
    const table = await Table.open(SECOND);
    await table.close(SECOND, 'succeeded');
    await table.close(OWNER, 'succeeded');
    await expect(table.close(SECOND, 'failed')).rejects.toEqual(denied);
    await expect(table.close('', 'failed')).rejects.toEqual(denied);
    await expect(table.close(OWNER, 'failed', '', BOB)).rejects.toEqual(denied);
    for (const outcome of ['succeeded', 'stopped']) await expect(table.close(OWNER, outcome)).rejects.toEqual(denied);
    table.t.clock.ms += SECOND_THOUGHTS_MS + 1;
    await expect(table.close(OWNER, 'failed')).rejects.toEqual(denied);
    expect(table.row.status).toBe('SUCCEEDED');
  });

  it('is the only end that is taken back', async () => {
    for (const outcome of ['failed', 'stopped']) {
      const table = await Table.open();
      await table.close(OWNER, outcome, 'first');
      await expect(table.close(OWNER, 'failed', 'second')).rejects.toEqual(denied);
      expect(table.row.message).toBe('first');
    }
  });
});

it('what is stopped is stopped whole: raylets end even detached actors', async () => {
  const table = await Table.open(SECOND);
  await table.step({ type: 'stop', jobId: JOB, by: BOB, message: 'enough' });
  expect(table.told).toEqual({ stopped: [JOB], ended: [] });
  await expect(table.close(OWNER, 'succeeded')).rejects.toEqual(denied);
});

it('what has ended keeps its outcome when it is stopped, and loses its detached actors', async () => {
  const table = await Table.open();
  await table.close(OWNER, 'succeeded', 'well');
  table.t.clock.ms += 2 * STOPPED_JOBS_TOLD_FOR_MS;
  await table.step({ type: 'stop', jobId: JOB, by: BOB, message: 'enough' });
  await table.step({ type: 'stop', jobId: JOB, by: BOB, message: 'again' });
  expect(table.row).toMatchObject({ status: 'SUCCEEDED', message: 'well' });
  expect(table.told).toEqual({ stopped: [JOB], ended: [] });
  expect(table.pushes).toBe(1);
  expect(table.events).toEqual(['job.started', 'job.succeeded', 'job.stopped']);
});

describe('a job that was submitted by HTTP', () => {
  const open = (table: Table, n: number, details = 'd'.repeat(MAX_SUBMISSION_CHARS)): Promise<void> =>
    table.step({ type: 'open', jobId: jobId(n), tenant: 'acme', name: 'j', by: ANA, expiresMs: table.nowMs + SESSION_TTL_MS, sessionId: hex(n, 16), submission: { id: `s${n}`, details } });

  it('fails with its driver, since nobody else speaks for it; any other goes on with its owner', async () => {
    const table = await Table.open(SECOND);
    await table.streamEnded(SECOND, 'lost');
    expect(table.row.status).toBe('RUNNING');
    await open(table, 2);
    await table.step({ type: 'join', jobId: jobId(2), by: ANA, expiresMs: table.nowMs + SESSION_TTL_MS, sessionId: THIRD });
    await table.step({ type: 'streamEnded', jobId: jobId(2), sessionId: THIRD, how: 'lost' });
    expect(table.t.head.jobs.get(jobId(2))).toMatchObject({ status: 'FAILED', message: 'its driver was lost', sessions: [], submission: { id: 's2' } });
    expect(table.told).toEqual({ stopped: [], ended: [jobId(2)] });
  });

  it('is found by what it was submitted as, also after a restart, until that is deleted or its tenant is', async () => {
    const table = await Table.open();
    await open(table, 2);
    await open(table, 3);
    await expect(table.step({ type: 'open', jobId: jobId(4), tenant: 'acme', name: 'j', by: BOB, expiresMs: table.nowMs, submission: { id: 's2', details: '' } })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(open(table, 4, 'd'.repeat(MAX_SUBMISSION_CHARS + 1))).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    const { head } = await testHead(table.t.store, table.t.clock);
    const { jobs } = head;
    const step = (event: JobEvent): Promise<void> => head.commit((now, out) => jobs.step(event, now, out));
    expect(jobs.submitted('acme').map((r) => r.submission?.id).sort()).toEqual(['s2', 's3']);
    expect([jobs.submittedAs('acme', 's2')?.jobId, jobs.submittedAs('globex', 's2')]).toEqual([jobId(2), undefined]);
    await expect(step({ type: 'deleteSubmission', jobId: jobId(2) })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await step({ type: 'stop', jobId: jobId(2), by: ANA, message: '' });
    await step({ type: 'deleteSubmission', jobId: jobId(2) });
    expect([jobs.submittedAs('acme', 's2'), jobs.get(jobId(2)).status]).toEqual([undefined, 'STOPPED']);
    await step({ type: 'tenantDeleted', tenant: 'acme', limit: 10 });
    expect(jobs.submitted('acme')).toEqual([]);
  });

  it('has a place that is bounded: those that ended first give theirs, those that run do not', async () => {
    const table = await Table.open();
    const most = MAX_SUBMISSION_CHARS_PER_TENANT / MAX_SUBMISSION_CHARS;
    for (let n = 2; n < 2 + most; n++) await open(table, n);
    await expect(open(table, 90)).rejects.toMatchObject({ code: 'RESOURCE_EXHAUSTED' });
    for (const n of [3, 2]) {
      await table.step({ type: 'stop', jobId: jobId(n), by: ANA, message: '' });
      table.t.clock.ms++;
    }
    await open(table, 90);
    expect([3, 2, 90].map((n) => table.t.head.jobs.submittedAs('acme', `s${n}`) !== undefined)).toEqual([false, true, true]);
  });
});

it('is the same after a restart of the head', async () => {
  const table = await Table.open(SECOND);
  await table.streamEnded(OWNER, 'closed');
  const again = await testHead(table.t.store, table.t.clock);
  expect(again.head.jobs.get(JOB)).toEqual(table.row);
});
