/**
 * Ray's Jobs REST API, as the package of 2.60 speaks it: what each request means, and its answer. Who asks, and whether it may, was decided before. Must never: answer with a value of
 * a job's variables, or take an option that it does not carry out.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { z } from 'zod';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import { parseRequirements } from '../base/requirements.ts';
import { Jobs } from '../rpc/generated/bulkhead/v1/head_pb.js';
import { JobLog, type LogPiece } from '../sdk/job-log.ts';
import type { ProgramPackage, PythonProgram } from '../sdk/python-program.ts';
import type { Person } from './callers.ts';
import { pythonArguments } from './core/entrypoint.ts';
import { packageName, type Packages } from './packages.ts';
import type { Known, Submissions } from './submissions.ts';
import type { WebSocket } from './web-socket.ts';

/** The API that is spoken here, not a package that is installed. */
const RAY_VERSION = '2.60.0';
const API_VERSION = '4';
const MAX_LOG_CHARS = 16 * 2 ** 20;
const LOG_TIMEOUT_MS = 30_000;
const FOLLOW_POLL_MS = 500;
const CALL_TIMEOUT_MS = 15_000;

const text = (max: number) => z.string().max(max);
const SubmitSchema = z.strictObject({
  entrypoint: text(65_536),
  submission_id: text(128).nullish(),
  job_id: text(128).nullish(),
  runtime_env: z.record(text(64), z.unknown()).nullish(),
  metadata: z.record(text(256), text(4_096)).nullish().refine((m) => m === null || m === undefined || Object.keys(m).length <= 64, 'at most 64 entries'),
  entrypoint_num_cpus: z.number().nonnegative().max(10_000).nullish(),
  entrypoint_num_gpus: z.number().nonnegative().max(10_000).nullish(),
  entrypoint_memory: z.int().nonnegative().nullish(),
  entrypoint_resources: z.record(text(63), z.number().nonnegative()).nullish(),
  entrypoint_label_selector: z.record(text(256), text(256)).nullish(),
});

const URI = /^gcs:\/\/([^/]+)$/;
const VariablesSchema = z.record(text(256), text(32_768));

function refuse(why: string): never {
  throw new BulkheadError('INVALID_ARGUMENT', why);
}

export class RayJobs {
  readonly #submissions: Submissions;
  readonly #packages: Packages;

  constructor(submissions: Submissions, packages: Packages) {
    this.#submissions = submissions;
    this.#packages = packages;
  }

  version(): object {
    return { version: API_VERSION, ray_version: RAY_VERSION, ray_commit: 'bulkhead', session_name: '' };
  }

  async list(person: Person): Promise<object[]> {
    return (await this.#submissions.list(person)).map(details);
  }

  async get(person: Person, id: string): Promise<object> {
    return details(await this.#submissions.get(person, id));
  }

  async submit(person: Person, body: unknown): Promise<object> {
    const parsed = SubmitSchema.safeParse(body);
    // Where it is wrong, and never what it says: a variable may be a secret.
    if (!parsed.success) return refuse(`the job is not valid: ${parsed.error.issues.map((i) => (i.code === 'unrecognized_keys' ? `the option ${i.keys.join(', ').slice(0, 200)} is not supported` : `${i.path.join('.') || 'the body'} is not what it should be`)).join('; ')}`);
    const { entrypoint, metadata, runtime_env: env, ...rest } = parsed.data;
    if (Object.keys(rest.entrypoint_label_selector ?? {}).length > 0) return refuse('the option entrypoint_label_selector is not supported yet');
    const argv = pythonArguments(entrypoint);
    const { variables, packages, requirements, shown } = this.#environment(person, env ?? {});
    const gpus = rest.entrypoint_num_gpus ?? 0;
    const resources = { ...rest.entrypoint_resources, ...(gpus > 0 ? { GPU: gpus } : {}) };
    const program: PythonProgram = { argv, variables, packages, requirements, cpus: rest.entrypoint_num_cpus ?? undefined, memoryBytes: rest.entrypoint_memory || undefined, resources: Object.keys(resources).length === 0 ? undefined : resources };
    const id = await this.#submissions.start(person, { id: rest.submission_id ?? rest.job_id ?? undefined, entrypoint, metadata: metadata ?? {}, runtimeEnv: shown, program });
    return { job_id: id, submission_id: id };
  }

  #environment(person: Person, env: Readonly<Record<string, unknown>>): { readonly variables: Record<string, string>; readonly packages: ProgramPackage[]; readonly requirements: readonly string[]; readonly shown: Record<string, unknown> } {
    const packages: ProgramPackage[] = [];
    const shown: Record<string, unknown> = {};
    let variables: Record<string, string> = {};
    let requirements: readonly string[] = [];
    for (const [key, value] of Object.entries(env)) {
      if (value === null || value === undefined || key.startsWith('_ray')) continue;
      if (key === 'working_dir') {
        packages.push({ kind: 'working_dir', name: '', bytes: this.#package(person, value, key) });
        shown[key] = value;
      } else if (key === 'py_modules') {
        if (!Array.isArray(value) || value.length > 64) return refuse('runtime_env.py_modules must be a list of uploaded packages');
        for (const uri of value as unknown[]) packages.push({ kind: 'py_module', name: '', bytes: this.#package(person, uri, key) });
        shown[key] = value;
      } else if (key === 'env_vars') {
        const parsed = VariablesSchema.safeParse(value);
        if (!parsed.success) return refuse('runtime_env.env_vars must be an object of texts');
        variables = parsed.data;
        shown[key] = Object.fromEntries(Object.keys(variables).map((name) => [name, '(hidden)']));
      } else if (key === 'pip' || key === 'uv') {
        if (requirements.length > 0) return refuse('runtime_env.pip and runtime_env.uv cannot be given at the same time');
        requirements = requirementsIn(key, value);
        shown[key] = requirements;
      } else if (key === 'excludes' && Array.isArray(value)) continue;
      else return refuse(`runtime_env: the option ${key} is not supported (supported: working_dir, py_modules, env_vars, excludes, pip, uv)`);
    }
    return { variables, packages, requirements, shown };
  }

  #package(person: Person, uri: unknown, option: string): Uint8Array {
    const name = typeof uri === 'string' ? URI.exec(uri)?.[1] : undefined;
    if (name === undefined) return refuse(`runtime_env.${option} must be a package that was uploaded (gcs://….zip); other places cannot be reached from here`);
    return this.#packages.get(person.spiffeId, packageName('gcs', name)) ?? refuse(`runtime_env.${option}: the package ${name} is not here (any more); upload it again`);
  }

  async stop(person: Person, id: string): Promise<object> {
    return { stopped: await this.#submissions.stop(person, id) };
  }

  async delete(person: Person, id: string): Promise<object> {
    await this.#submissions.delete(person, id);
    return { deleted: true };
  }

  hasPackage(person: Person, protocol: string, name: string): boolean {
    return this.#packages.get(person.spiffeId, packageName(protocol, name)) !== undefined;
  }

  putPackage(person: Person, protocol: string, name: string, bytes: Uint8Array): void {
    this.#packages.put(person.spiffeId, packageName(protocol, name), bytes);
  }

  async logs(person: Person, id: string): Promise<object> {
    const { job } = await this.#submissions.get(person, id);
    const pieces: LogPiece[] = [];
    let chars = 0;
    const full = new AbortController();
    await new JobLog(person.tenant, job.jobId).read(await person.raylets(), false, AbortSignal.any([full.signal, AbortSignal.timeout(LOG_TIMEOUT_MS)]), (piece) => {
      chars += piece.text.length;
      if (chars > MAX_LOG_CHARS) full.abort();
      else pieces.push(piece);
    });
    pieces.sort((a, b) => a.timeMs - b.timeMs);
    return { logs: pieces.map((p) => p.text).join('') + (full.signal.aborted ? `\n… the log goes on; more than ${MAX_LOG_CHARS} characters are not sent at once\n` : '') };
  }

  /** Sends the job's log until the job ends; `permitted` is asked all the while. */
  async tail(person: Person, id: string, socket: WebSocket, permitted: () => Promise<boolean>): Promise<void> {
    const { job } = await this.#submissions.get(person, id);
    const log = new JobLog(person.tenant, job.jobId);
    const send = ({ text: line }: LogPiece): Promise<void> => socket.send(line);
    const ended = new AbortController();
    const either = AbortSignal.any([ended.signal, socket.gone]);
    const following = log.read(await person.raylets(), true, either, send);
    // Whatever ends the reading is told below.
    following.catch(() => undefined);
    for (;;) {
      if (socket.gone.aborted) return;
      if (!(await permitted())) {
        ended.abort();
        return socket.close(1008);
      }
      if ((await person.to(Jobs).get({ jobId: job.jobId }, { timeoutMs: CALL_TIMEOUT_MS })).endedMs !== 0n) break;
      await sleep(FOLLOW_POLL_MS, undefined, { signal: socket.gone }).catch(() => undefined);
    }
    ended.abort();
    await following;
    await log.read(await person.raylets(), false, AbortSignal.any([socket.gone, AbortSignal.timeout(LOG_TIMEOUT_MS)]), send);
    socket.close(1000);
  }
}

const MESSAGES: Readonly<Record<string, string>> = { PENDING: 'Job has not started yet.', RUNNING: 'Job is currently running.', SUCCEEDED: 'Job finished successfully.', STOPPED: 'Job was intentionally stopped.' };

function details({ id, job, entrypoint, metadata, runtimeEnv, exitCode }: Known): object {
  return {
    type: 'SUBMISSION', job_id: null, submission_id: id, driver_info: null, status: job.status, entrypoint,
    message: job.status === 'FAILED' ? job.message : (MESSAGES[job.status] ?? job.message), error_type: null, start_time: Number(job.startedMs), end_time: job.endedMs === 0n ? null : Number(job.endedMs),
    metadata, runtime_env: runtimeEnv, driver_agent_http_address: '', driver_node_id: '', driver_exit_code: exitCode ?? null,
  };
}

/** Ray's client has read a requirements file already. */
function requirementsIn(option: string, value: unknown): readonly string[] {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return named(option, value);
  const { packages, ...more } = value as Record<string, unknown>;
  for (const [key, said] of Object.entries(more)) if (said !== null && said !== false && said !== undefined && !(Array.isArray(said) && said.length === 0)) return refuse(`runtime_env.${option}: the option ${key.slice(0, 64)} is not supported (supported: packages)`);
  return named(option, packages);
}

function named(option: string, value: unknown): readonly string[] {
  try {
    return parseRequirements(value);
  } catch (thrown) {
    return refuse(`runtime_env.${option}: ${toSafeError(thrown).safeMessage}`);
  }
}
