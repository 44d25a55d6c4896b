/**
 * What a driver's process says about its jobs when it ends: exit code and error, told to the head in the 'exit' event by a thread for which
 * the process waits, because nothing else still runs then. Must never: change how the process ends (output, exit code, handlers), keep it
 * longer than the limit below, or put the error's text where other processes see it.
 */
import { isMainThread, Worker } from 'node:worker_threads';
import { SECOND_THOUGHTS_MS } from '../base/limits.ts';

const LAST_WORDS = new URL('./last-words.ts', import.meta.url);
const LAST_WORDS_TIMEOUT_MS = 5_000;
const MAX_MESSAGE_CHARS = 300;

export interface Outcome {
  readonly outcome: 'succeeded' | 'failed';
  readonly message: string;
}

/** A job that this process opened, and how to reach its head without anything of the process that ends. */
export interface OwnJob {
  readonly profile: string | undefined;
  readonly address: string | undefined;
  readonly jobId: string;
  readonly sessionId: string;
}

/** What the thread is given. */
export interface LastWords {
  /** Set and notified when all has been said. */
  readonly done: Int32Array;
  readonly words: readonly (OwnJob & Outcome)[];
}

/** Jobs of this process; the value: when it was closed as succeeded, undefined while it is open. */
const jobs = new Map<OwnJob, number | undefined>();
let fatal: string | undefined;
let listening = false;

/** First line, bounded: what a job list has room for. */
function firstLine(error: unknown): string {
  let text: string;
  try {
    text = error instanceof Error ? `${error.name}: ${error.message}` : `threw ${String(error)}`;
  } catch {
    text = 'threw something that has no text';
  }
  const [line = ''] = text.split('\n', 1);
  return (line.length > MAX_MESSAGE_CHARS ? `${line.slice(0, MAX_MESSAGE_CHARS)}…` : line).toWellFormed();
}

/** How the process is ending, as far as it shows by now. */
export function outcomeSoFar(code: typeof process.exitCode = process.exitCode): Outcome {
  if (fatal !== undefined) return { outcome: 'failed', message: fatal };
  return code === undefined || code === null || Number(code) === 0 ? { outcome: 'succeeded', message: '' } : { outcome: 'failed', message: `exit code ${code}` };
}

/** The process answers for this job from now on: if it ends before `settled`, its exit code says how the job went. */
export function answerFor(job: OwnJob): void {
  const nowMs = performance.now();
  for (const [known, closedMs] of jobs) if (closedMs !== undefined && nowMs - closedMs > SECOND_THOUGHTS_MS) jobs.delete(known);
  jobs.set(job, undefined);
  // A thread's own end says nothing about the program.
  if (listening || !isMainThread) return;
  listening = true;
  process.on('uncaughtExceptionMonitor', (error) => {
    // With a handler the program goes on.
    if (process.listenerCount('uncaughtException') === 0 && !process.hasUncaughtExceptionCaptureCallback()) fatal ??= firstLine(error);
  });
  process.on('exit', sayLastWords);
}

/** The head knows how the job went. A success can still be taken back: `await using` closes a connection before an error around it shows. */
export function settled(job: OwnJob, outcome: Outcome['outcome']): void {
  if (outcome === 'succeeded') jobs.set(job, performance.now());
  else jobs.delete(job);
}

function sayLastWords(code: number): void {
  const said = outcomeSoFar(code);
  const nowMs = performance.now();
  const due = [...jobs].filter(([, closedMs]) => (closedMs === undefined ? true : said.outcome === 'failed' && nowMs - closedMs <= SECOND_THOUGHTS_MS)).map(([job]) => job);
  jobs.clear();
  if (due.length === 0) return;
  const done = new Int32Array(new SharedArrayBuffer(4));
  const workerData: LastWords = { done, words: due.map(({ profile, address, jobId, sessionId }) => ({ profile, address, jobId, sessionId, ...said })) };
  try {
    new Worker(LAST_WORDS, { workerData, execArgv: [], stdout: true, stderr: true }).on('error', () => undefined);
    Atomics.wait(done, 0, 0, LAST_WORDS_TIMEOUT_MS);
  } catch {
    // The raylet sees the connection die and the head counts the job as lost.
  }
}
