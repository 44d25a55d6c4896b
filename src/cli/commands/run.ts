/**
 * `bulkhead run` and `bulkhead bench`: a program as a child under Node 24, with its own streams, exit code and signals; Python is run by run-python.ts. A run is a job: opened
 * here before the program starts, ended here by how the program ended. Must never: hand the program a credential, only the job's id.
 */
import { fork, spawn } from 'node:child_process';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { constants, homedir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { BulkheadError, isErrorCode, toSafeError } from '../../base/errors.ts';
import { JOB_VARIABLE } from '../../sdk/head-client.ts';
import { OwnedJob, type JobOutcome } from '../../sdk/owned-job.ts';
import type { BackgroundAnswer, BackgroundOrder } from '../background-job.ts';
import { CallerSession } from '../session.ts';
import { ExitCode, Terminal, UsageError } from '../terminal.ts';

const HOOKS = new URL('../driver-hooks.ts', import.meta.url).href;
const BACKGROUND = fileURLToPath(new URL('../background-job.ts', import.meta.url));
const BENCH = fileURLToPath(new URL('../../../bench/bench.ts', import.meta.url));

/** How the program ended. */
export interface JobEnd {
  readonly exitCode: number | null;
  readonly signal: NodeJS.Signals | null;
  /** The signal with which somebody asked this process to stop, before the child ended. */
  readonly asked: NodeJS.Signals | undefined;
}

async function runChild(args: readonly string[], env: NodeJS.ProcessEnv): Promise<JobEnd> {
  let asked: NodeJS.Signals | undefined;
  const child = spawn(process.execPath, args, { stdio: 'inherit', env });
  // A terminal sends ^C to both; the child decides what it means, and this process ends with it.
  const interrupted = (): void => {
    asked ??= 'SIGINT';
  };
  const forward = (signal: NodeJS.Signals): void => {
    asked ??= signal;
    child.kill(signal);
  };
  process.on('SIGINT', interrupted);
  for (const signal of ['SIGTERM', 'SIGHUP'] as const) process.on(signal, forward);
  try {
    const [exitCode, signal] = await new Promise<[number | null, NodeJS.Signals | null]>((done, failed) => {
      child.once('error', (cause) => failed(new BulkheadError('UNAVAILABLE', `node could not be started (${process.execPath})`, { cause })));
      child.once('exit', (...end) => done(end));
    });
    return { exitCode, signal, asked };
  } finally {
    // SIGINT stays caught: what is left to do is to tell the head.
    for (const each of ['SIGTERM', 'SIGHUP'] as const) process.removeListener(each, forward);
  }
}

function exitLikeChild({ exitCode, signal }: JobEnd): void {
  const code = signal === null ? (exitCode ?? 1) : 128 + constants.signals[signal];
  if (code !== 0) throw new ExitCode(code);
}

function outcomeOf({ exitCode, signal, asked }: JobEnd): JobOutcome {
  if (asked !== undefined) return { outcome: 'stopped', message: asked === 'SIGINT' ? 'interrupted (^C)' : `stopped by ${asked}` };
  if (signal !== null) return { outcome: signal === 'SIGINT' ? 'stopped' : 'failed', message: `signal ${signal}` };
  return exitCode === 0 ? { outcome: 'succeeded', message: '' } : { outcome: 'failed', message: `exit code ${exitCode ?? 1}` };
}

/** The job of a run, and the connection under which it was opened. */
class RunJob implements AsyncDisposable {
  readonly #session: CallerSession;
  readonly #job: OwnedJob;
  #outcome: JobOutcome = { outcome: 'failed', message: 'the program could not be started' };

  private constructor(session: CallerSession, job: OwnedJob) {
    this.#session = session;
    this.#job = job;
  }

  static async open(profile: string | undefined, jobName: string, project: string): Promise<RunJob> {
    const session = await CallerSession.open(profile);
    try {
      return new RunJob(session, await OwnedJob.open(session.head.channel, jobName, project));
    } catch (thrown) {
      await session[Symbol.asyncDispose]();
      throw thrown;
    }
  }

  get id(): string {
    return this.#job.id;
  }

  ended(end: JobEnd): void {
    this.#outcome = outcomeOf(end);
  }

  failed(thrown: unknown): void {
    const { code, safeMessage } = toSafeError(thrown);
    this.#outcome = { outcome: 'failed', message: `${code}: ${safeMessage}` };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await using _ = this.#session;
    const failed = await this.#job.end(this.#outcome);
    if (failed !== undefined) new Terminal(false).warn(`the head could not be told how job ${this.id} ended (${failed}); it counts the job as failed when its session runs out`);
  }
}

function profileDirectory(given: string | undefined): string {
  return resolve(given ?? (process.env['BULKHEAD_PROFILE'] || join(homedir(), '.bulkhead', 'default')));
}

/** Only for a better message than the refusal that would follow; what is unreadable here is told by the program's own connect. */
function isAdministrator(directory: string): boolean {
  try {
    return /^spiffe:\/\/[^/]+\/system\//.test((JSON.parse(readFileSync(join(directory, 'profile.json'), 'utf8')) as { spiffeId: string }).spiffeId);
  } catch {
    return false;
  }
}

export interface RunOptions {
  readonly profile: string | undefined;
  readonly name: string | undefined;
  readonly project?: string | undefined;
  /** Python only. */
  readonly workingDir?: string | undefined;
  readonly envFile?: string | undefined;
  readonly requirements?: string | undefined;
  /** The program is under way: nothing of it is shown here, and its job's id is told. */
  readonly onSubmitted?: (jobId: string) => void;
}

export async function runDriver(file: string, args: readonly string[], { profile, name, project, workingDir, envFile, requirements }: RunOptions): Promise<void> {
  if (!existsSync(file) || !statSync(file).isFile()) throw new UsageError(`${file} is not a file; give the program to run, for example: bulkhead run hello.ts`);
  if (!file.endsWith('.py') && (workingDir ?? envFile ?? requirements) !== undefined) throw new UsageError('--working-dir, --env-file and --requirements are for Python programs, which run in a sandbox; others run here, in this directory and environment');
  if (isAdministrator(profileDirectory(profile))) throw new UsageError(`the profile ${profileDirectory(profile)} is of the cluster itself, which runs no programs; use a tenant's: bulkhead identity issue user NAME --tenant T --role developer --out DIR, then bulkhead run --profile DIR ${basename(file)}`);
  const jobName = name ?? basename(file);
  const chosen = profile === undefined ? {} : { BULKHEAD_PROFILE: resolve(profile) };
  let end: JobEnd;
  {
    await using job = await RunJob.open(profile, jobName, project ?? process.env['BULKHEAD_PROJECT'] ?? '');
    try {
      end = file.endsWith('.py')
        ? await (await import('./run-python.ts')).runPython({ file, args, profile, workingDir, envFile, requirements }, job.id)
        : await runChild(['--import', HOOKS, resolve(file), ...args], { ...process.env, BULKHEAD_JOB_NAME: jobName, [JOB_VARIABLE]: job.id, ...chosen });
      job.ended(end);
    } catch (thrown) {
      job.failed(thrown);
      throw thrown;
    }
  }
  exitLikeChild(end);
}

/** The file of a command of Python, undefined for -m and -c. Throws UsageError. */
function fileOf([python = '', first = '', ...rest]: readonly string[], workingDir: string | undefined): string | undefined {
  if (!/^python(?:3(?:\.\d{1,2})?)?$/.test(python) || first === '') throw new UsageError('what is the job? give one command of Python after --: bulkhead job submit --working-dir . -- python main.py');
  const module = first === '-m' || first === '-c';
  if (!module && first.startsWith('-')) throw new UsageError(`the option ${first.slice(0, 20)} of python is not supported: python FILE, -m MODULE or -c PROGRAM`);
  if (module && rest.length === 0) throw new UsageError(`${first} of what?`);
  // Ray starts a job in its working directory, and names its file from there.
  const file = module ? undefined : workingDir === undefined ? first : join(workingDir, first);
  if (file !== undefined && (!existsSync(file) || !statSync(file).isFile())) throw new UsageError(`${file} is not a file; it is looked for in ${workingDir ?? 'this directory'}`);
  return file;
}

/** `bulkhead job submit -- python …`: as Ray's, which waits and shows the output too. `command`: what follows `--`. */
export async function submitJob(command: readonly string[], { profile, name, project, workingDir, envFile, requirements, onSubmitted }: RunOptions): Promise<void> {
  const file = fileOf(command, workingDir);
  let end: JobEnd;
  {
    await using job = await RunJob.open(profile, name ?? (file === undefined ? (command[2] ?? '').slice(0, 64) : basename(file)), project ?? process.env['BULKHEAD_PROJECT'] ?? '');
    try {
      end = await (await import('./run-python.ts')).runPython({ file, args: command.slice(file === undefined ? 1 : 2), profile, workingDir, envFile, requirements, onSubmitted }, job.id);
      job.ended(end);
    } catch (thrown) {
      job.failed(thrown);
      throw thrown;
    }
  }
  exitLikeChild(end);
}

/** The same with --no-wait: the job's id, once its program is under way. A process of its own keeps the driver's connection, beyond this one's end and its terminal's. */
export async function submitInBackground(command: readonly string[], options: RunOptions): Promise<string> {
  fileOf(command, options.workingDir);
  const child = fork(BACKGROUND, { detached: true, stdio: ['ignore', 'ignore', 'ignore', 'ipc'] });
  const answer = await new Promise<BackgroundAnswer>((resolve, reject) => {
    child.once('message', (said) => resolve(said as BackgroundAnswer)).once('error', reject);
    child.once('exit', (code, signal) => reject(new BulkheadError('UNAVAILABLE', `the process that submits the job ended (${signal ?? code}) before it said how it went; try again without --no-wait to see why`)));
    child.send({ command, options } satisfies BackgroundOrder, (error) => error !== null && reject(error));
  });
  child.unref();
  if ('jobId' in answer) return answer.jobId;
  if ('usage' in answer) throw new UsageError(answer.usage);
  throw new BulkheadError(isErrorCode(answer.code) ? answer.code : 'INTERNAL', answer.message);
}

export async function runBench(args: readonly string[]): Promise<void> {
  if (!existsSync(BENCH)) throw new BulkheadError('UNAVAILABLE', `${BENCH} is missing: the benchmark is part of a checkout, not of the installed package`);
  exitLikeChild(await runChild([BENCH, ...args], process.env));
}
