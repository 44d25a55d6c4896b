/**
 * Jobs that were submitted by HTTP. What each was submitted as is with its job in the head's store, so that it outlives this process and ends with its tenant; here is only the connection that
 * each one's driver has while it runs. Must never: give a variable of a job's environment to be kept, or trust what is kept to be what this gateway wrote.
 */
import { randomBytes } from 'node:crypto';
import { z } from 'zod';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import { MAX_SUBMISSION_CHARS } from '../base/limits.ts';
import { Jobs, type Job } from '../rpc/generated/bulkhead/v1/head_pb.js';
import type { RpcLog } from '../rpc/rpc.ts';
import { grpcTransport } from '../sdk/grpc-transport.ts';
import { OwnedJob, type JobOutcome } from '../sdk/owned-job.ts';
import { submitProgram, type PythonProgram } from '../sdk/python-program.ts';
import { connect } from '../sdk/sdk.ts';
import type { Person } from './callers.ts';

const CALL_TIMEOUT_MS = 15_000;
const ID = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$/;
const EXIT_CODE = /^exit code (\d{1,3})$/;

const DetailsSchema = z.strictObject({
  entrypoint: z.string(),
  metadata: z.record(z.string(), z.string()),
  /** As it was sent, with every variable's value left out. */
  runtimeEnv: z.record(z.string(), z.unknown()),
});
export type SubmissionDetails = z.infer<typeof DetailsSchema>;

/** A submission with its job as the head knows it. */
export interface Known extends SubmissionDetails {
  readonly id: string;
  readonly job: Job;
  /** Undefined while it runs, and where no program ended. */
  readonly exitCode: number | undefined;
}

export interface NewSubmission extends SubmissionDetails {
  readonly id: string | undefined;
  readonly program: PythonProgram;
}

/** Throws INVALID_ARGUMENT. */
export function submissionId(text: string): string {
  if (!ID.test(text) || text.includes('..')) throw new BulkheadError('INVALID_ARGUMENT', 'a submission id is 1 to 128 letters, digits and _ . -');
  return text;
}

/** Whoever may open a session of a tenant may have written it: what is no submission shows as an empty one. */
export function knownOf(job: Job): Known {
  let kept: SubmissionDetails = { entrypoint: '', metadata: {}, runtimeEnv: {} };
  try {
    kept = DetailsSchema.parse(JSON.parse(job.submission?.details ?? ''));
  } catch {
    // Said above.
  }
  const code = job.status === 'SUCCEEDED' ? '0' : job.status === 'FAILED' ? EXIT_CODE.exec(job.message)?.[1] : undefined;
  return { ...kept, id: job.submission?.id ?? '', job, exitCode: code === undefined ? undefined : Number(code) };
}

export class Submissions {
  readonly #driving = new Set<Promise<void>>();
  readonly #stop = new AbortController();
  readonly #log: RpcLog;

  constructor(log: RpcLog) {
    this.#log = log;
  }

  /** Opens the job as the person, and starts its driver; its id. Throws what the head or the program's limits refuse. */
  async start(person: Person, { id: wanted, program, entrypoint, metadata, runtimeEnv }: NewSubmission): Promise<string> {
    const id = wanted === undefined ? `raysubmit_${randomBytes(12).toString('hex')}` : submissionId(wanted);
    const details = JSON.stringify({ entrypoint, metadata, runtimeEnv } satisfies SubmissionDetails);
    if (details.length > MAX_SUBMISSION_CHARS) throw new BulkheadError('INVALID_ARGUMENT', `the command line, the metadata and the environment's names come to ${details.length} characters; ${MAX_SUBMISSION_CHARS} are allowed: put more into the working directory`);
    const job = await OwnedJob.open(person.head.channel, id, '', { id, details });
    const driving = this.#drive(person, job, program).catch((error: unknown) => this.#log.warn({ error, jobId: job.id }, 'the end of a job could not be told'));
    this.#driving.add(driving);
    void driving.then(() => this.#driving.delete(driving));
    return id;
  }

  async #drive(person: Person, job: OwnedJob, program: PythonProgram): Promise<void> {
    using _ = person.use();
    let outcome: JobOutcome;
    try {
      const { head } = person;
      // The transport closes what it opened; the person's connection is for others too.
      const shared = { ...head, close: async () => undefined, [Symbol.asyncDispose]: async () => undefined };
      await using cluster = await connect({ transport: grpcTransport({ job: job.id }, async () => shared) });
      const code = await Promise.race([cluster.get(submitProgram(cluster, program)), this.#stopped()]);
      outcome = code === 0 ? { outcome: 'succeeded', message: '' } : { outcome: 'failed', message: `exit code ${code}` };
    } catch (thrown) {
      const { code, safeMessage } = toSafeError(thrown);
      outcome = { outcome: 'failed', message: `${code}: ${safeMessage}` };
    }
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

  /** Throws DENIED when the person's tenant has none of this id, with the same text as for what is not permitted. */
  async get(person: Person, id: string): Promise<Known> {
    const asked = person.to(Jobs).get({ submissionId: submissionId(id) }, { timeoutMs: CALL_TIMEOUT_MS });
    return knownOf(await asked.catch((thrown: unknown) => {
      throw toSafeError(thrown).code === 'DENIED' ? new BulkheadError('DENIED', 'not found, or not permitted') : thrown;
    }));
  }

  /** Newest first. */
  async list(person: Person): Promise<Known[]> {
    return (await person.to(Jobs).list({ tenant: person.tenant, submitted: true }, { timeoutMs: CALL_TIMEOUT_MS })).jobs.map(knownOf);
  }

  /** False when it had ended before. */
  async stop(person: Person, id: string): Promise<boolean> {
    const { job } = await this.get(person, id);
    if (job.endedMs !== 0n) return false;
    await person.to(Jobs).stop({ jobId: job.jobId }, { timeoutMs: CALL_TIMEOUT_MS });
    return true;
  }

  /** Throws INVALID_ARGUMENT while it runs. */
  async delete(person: Person, id: string): Promise<void> {
    const { job } = await this.get(person, id);
    if (job.endedMs === 0n) throw new BulkheadError('INVALID_ARGUMENT', `the job ${id} is ${job.status}: stop it before you delete it`);
    await person.to(Jobs).deleteSubmission({ jobId: job.jobId }, { timeoutMs: CALL_TIMEOUT_MS });
  }

  /** Ends all that run, and tells the head. */
  async close(): Promise<void> {
    this.#stop.abort();
    await Promise.all([...this.#driving]);
  }
}
