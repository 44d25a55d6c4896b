/** `bulkhead job …`: jobs as the head knows them. */
import { Jobs, type Job } from '../../rpc/generated/bulkhead/v1/head_pb.js';
import { CALL_TIMEOUT_MS, CallerSession } from '../session.ts';
import { durationText, timeText, type Cell, type Colour, type Terminal } from '../terminal.ts';

export const JOB_HEADERS = ['JOB', 'NAME', 'STATUS', 'TENANT', 'SUBMITTER', 'STARTED', 'FOR', 'MESSAGE'];

const COLOUR: Readonly<Record<string, Colour>> = { RUNNING: 'green', FAILED: 'red', STOPPED: 'yellow' };

export function jobRow(job: Job): Cell[] {
  const endMs = Number(job.endedMs) || Date.now();
  return [job.jobId, job.name, { text: job.status, colour: COLOUR[job.status] }, job.tenant, job.submitter.replace(/^spiffe:\/\/[^/]*\/tenant\/[^/]*\//, ''), timeText(Number(job.startedMs)), durationText(endMs - Number(job.startedMs)), job.message];
}

/** Newest first. */
export function sortJobs(jobs: readonly Job[]): Job[] {
  return [...jobs].sort((a, b) => Number(b.startedMs - a.startedMs) || (a.jobId < b.jobId ? -1 : 1));
}

export async function listJobs(terminal: Terminal, tenant: string | undefined, profile: string | undefined): Promise<void> {
  await using session = await CallerSession.open(profile);
  const { jobs } = await session.to(Jobs).list({ tenant: tenant ?? session.tenant ?? '' }, { timeoutMs: CALL_TIMEOUT_MS });
  const sorted = sortJobs(jobs);
  terminal.answer({ jobs: sorted });
  terminal.table(JOB_HEADERS, sorted.map(jobRow));
}

export async function showJob(terminal: Terminal, jobId: string, profile: string | undefined): Promise<void> {
  await using session = await CallerSession.open(profile);
  const job = await session.to(Jobs).get({ jobId }, { timeoutMs: CALL_TIMEOUT_MS });
  terminal.answer(job);
  terminal.table(JOB_HEADERS, [jobRow(job)]);
}

export async function stopJob(terminal: Terminal, jobId: string, profile: string | undefined): Promise<void> {
  await using session = await CallerSession.open(profile);
  const job = await terminal.progress('stopping the job', session.to(Jobs).stop({ jobId }, { timeoutMs: CALL_TIMEOUT_MS }));
  terminal.answer(job);
  terminal.say(`job ${job.jobId} is ${job.status}`);
}
