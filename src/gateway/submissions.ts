/**
 * Jobs that were submitted by HTTP: who submitted what, and the connection that each one's driver has while it runs. How a job stands is the head's to say. Must never: keep a variable of a
 * job's environment beyond its start, or show one tenant's submissions to another.
 */
import { randomBytes } from 'node:crypto';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import { Jobs, type Job } from '../rpc/generated/bulkhead/v1/head_pb.js';
import type { RpcLog } from '../rpc/rpc.ts';
import { grpcTransport } from '../sdk/grpc-transport.ts';
import { OwnedJob, type JobOutcome } from '../sdk/owned-job.ts';
import { submitProgram, type PythonProgram } from '../sdk/python-program.ts';
import { connect } from '../sdk/sdk.ts';
import type { Person } from './callers.ts';

const CALL_TIMEOUT_MS = 15_000;
const MAX_PER_TENANT = 1_000;
const ID = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$/;

export interface Submission {
  readonly id: string;
  readonly jobId: string;
  readonly tenant: string;
  readonly entrypoint: string;
  readonly metadata: Readonly<Record<string, string>>;
  /** As it was sent, with every variable's value left out. */
  readonly runtimeEnv: Readonly<Record<string, unknown>>;
  exitCode: number | undefined;
  /** Its driver has one here. */
  running: boolean;
}

/** A submission with its job as the head knows it. */
export interface Known {
  readonly submission: Submission;
  readonly job: Job;
}

export interface NewSubmission {
  readonly id: string | undefined;
  readonly entrypoint: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly runtimeEnv: Readonly<Record<string, unknown>>;
  readonly program: PythonProgram;
}

/** Throws INVALID_ARGUMENT. */
export function submissionId(text: string): string {
  if (!ID.test(text) || text.includes('..')) throw new BulkheadError('INVALID_ARGUMENT', 'a submission id is 1 to 128 letters, digits and _ . -');
  return text;
}

const notFound = (): BulkheadError => new BulkheadError('DENIED', 'not found, or not permitted');

export class Submissions {
  /** By tenant, then id; oldest first. */
  readonly #byTenant = new Map<string, Map<string, Submission>>();
  readonly #driving = new Set<Promise<void>>();
  readonly #stop = new AbortController();
  readonly #log: RpcLog;

  constructor(log: RpcLog) {
    this.#log = log;
  }

  #of(tenant: string): Map<string, Submission> {
    let found = this.#byTenant.get(tenant);
    if (found === undefined) this.#byTenant.set(tenant, (found = new Map<string, Submission>()));
    return found;
  }

  /** Opens the job as the person, and starts its driver. Throws what the head or the program's limits refuse. */
  async start(person: Person, wanted: NewSubmission): Promise<Submission> {
    const own = this.#of(person.tenant);
    const id = wanted.id === undefined ? `raysubmit_${randomBytes(12).toString('hex')}` : submissionId(wanted.id);
    if (own.has(id)) throw new BulkheadError('INVALID_ARGUMENT', `a job with the submission id ${id} exists already; choose another, or leave it out`);
    // The place is taken before anything is awaited: two requests with one id must not both get it.
    const placeholder: Submission = { id, jobId: '', tenant: person.tenant, entrypoint: wanted.entrypoint, metadata: {}, runtimeEnv: {}, exitCode: undefined, running: true };
    own.set(id, placeholder);
    try {
      this.#makeRoom(own);
      const job = await OwnedJob.open(person.head.channel, id, '');
      const submission: Submission = { id, jobId: job.id, tenant: person.tenant, entrypoint: wanted.entrypoint, metadata: wanted.metadata, runtimeEnv: wanted.runtimeEnv, exitCode: undefined, running: true };
      own.set(id, submission);
      const driving = this.#drive(person, job, submission, wanted.program).catch((error: unknown) => this.#log.warn({ error, jobId: job.id }, 'the end of a job could not be told'));
      this.#driving.add(driving);
      void driving.then(() => this.#driving.delete(driving));
      return submission;
    } catch (thrown) {
      own.delete(id);
      throw thrown;
    }
  }

  #makeRoom(own: Map<string, Submission>): void {
    for (const [id, { running }] of own) {
      if (own.size <= MAX_PER_TENANT) return;
      if (!running) own.delete(id);
    }
    if (own.size > MAX_PER_TENANT) throw new BulkheadError('RESOURCE_EXHAUSTED', `${MAX_PER_TENANT} jobs of this tenant run already; let some end`);
  }

  async #drive(person: Person, job: OwnedJob, submission: Submission, program: PythonProgram): Promise<void> {
    using _ = person.use();
    let outcome: JobOutcome;
    try {
      const { head } = person;
      // The transport closes what it opened; the person's connection is for others too.
      const shared = { ...head, close: async () => undefined, [Symbol.asyncDispose]: async () => undefined };
      await using cluster = await connect({ transport: grpcTransport({ job: job.id }, async () => shared) });
      const ended = cluster.get(submitProgram(cluster, program));
      const code = await Promise.race([ended, this.#stopped()]);
      submission.exitCode = code;
      outcome = code === 0 ? { outcome: 'succeeded', message: '' } : { outcome: 'failed', message: `exit code ${code}` };
    } catch (thrown) {
      const { code, safeMessage } = toSafeError(thrown);
      outcome = { outcome: 'failed', message: `${code}: ${safeMessage}` };
    }
    submission.running = false;
    const failed = await job.end(outcome);
    if (failed !== undefined) this.#log.warn({ jobId: job.id, code: failed }, 'the head could not be told how a job ended');
  }

  #stopped(): Promise<never> {
    return new Promise((_, reject) => {
      const stop = (): void => reject(new BulkheadError('UNAVAILABLE', 'the gateway was stopped while the job ran'));
      if (this.#stop.signal.aborted) stop();
      else this.#stop.signal.addEventListener('abort', stop, { once: true });
    });
  }

  /** Throws DENIED when the person's tenant has none of this id. */
  async get(person: Person, id: string): Promise<Known> {
    const submission = this.#of(person.tenant).get(submissionId(id));
    if (submission === undefined || submission.jobId === '') throw notFound();
    return { submission, job: await person.to(Jobs).get({ jobId: submission.jobId }, { timeoutMs: CALL_TIMEOUT_MS }) };
  }

  /** Newest first. */
  async list(person: Person): Promise<Known[]> {
    const { jobs } = await person.to(Jobs).list({ tenant: person.tenant }, { timeoutMs: CALL_TIMEOUT_MS });
    const byId = new Map(jobs.map((job) => [job.jobId, job]));
    return [...this.#of(person.tenant).values()].reverse().flatMap((submission) => {
      const job = byId.get(submission.jobId);
      return job === undefined ? [] : [{ submission, job }];
    });
  }

  /** False when it had ended before. */
  async stop(person: Person, id: string): Promise<boolean> {
    const { submission, job } = await this.get(person, id);
    if (job.endedMs !== 0n) return false;
    await person.to(Jobs).stop({ jobId: submission.jobId }, { timeoutMs: CALL_TIMEOUT_MS });
    return true;
  }

  /** Throws INVALID_ARGUMENT while it runs. */
  async delete(person: Person, id: string): Promise<void> {
    const { submission, job } = await this.get(person, id);
    if (job.endedMs === 0n) throw new BulkheadError('INVALID_ARGUMENT', `the job ${submission.id} is ${job.status}: stop it before you delete it`);
    this.#of(person.tenant).delete(submission.id);
  }

  /** Ends all that run, and tells the head. */
  async close(): Promise<void> {
    this.#stop.abort();
    await Promise.all([...this.#driving]);
  }
}
