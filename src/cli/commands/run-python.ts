/**
 * `bulkhead run program.py`: the driver runs in a sandbox of the tenant's, not here. This process opens the job, sends the program, shows what it prints, and ends with
 * its exit code. Must never: run the program on this machine, or take variables for it from its own environment or arguments.
 */
import { readFileSync, statSync } from 'node:fs';
import { basename, resolve } from 'node:path';
import { toSafeError } from '../../base/errors.ts';
import { MAX_CODE_BYTES } from '../../base/limits.ts';
import { parseRequirements } from '../../base/requirements.ts';
import { JobLog } from '../../sdk/job-log.ts';
import { submitProgram, type ProgramPackage } from '../../sdk/python-program.ts';
import { connect, type Cluster, type ObjectRef } from '../../sdk/sdk.ts';
import { CallerSession } from '../session.ts';
import { printable, UsageError } from '../terminal.ts';
import { packDirectory } from '../zip.ts';
import type { JobEnd } from './run.ts';

/** Where the driver's last line may still be under way. */
const LAST_LINES_MS = 10_000;

export interface PythonRun {
  /** A file of this machine; undefined: `args` begin with -m or -c. */
  readonly file: string | undefined;
  readonly args: readonly string[];
  readonly profile: string | undefined;
  /** Everything in it is beside the program. */
  readonly workingDir: string | undefined;
  /** KEY=VALUE lines. */
  readonly envFile: string | undefined;
  /** Lines as in pip's requirements files. */
  readonly requirements: string | undefined;
  /** Nothing is shown here; told once the program is under way. */
  readonly onSubmitted?: ((jobId: string) => void) | undefined;
}

/** Throws UsageError: what is not a package by its name is refused here, before anything is sent. */
function requirementsOf(path: string | undefined): readonly string[] {
  if (path === undefined) return [];
  const lines = readFileSync(path, 'utf8').replace(/\\\r?\n/g, ' ').split('\n').map((line) => line.replace(/(?:^|\s)#.*$/, '').trim()).filter((line) => line !== '');
  try {
    return lines.length === 0 ? [] : parseRequirements(lines);
  } catch (thrown) {
    throw new UsageError(`${path}: ${toSafeError(thrown).safeMessage}`);
  }
}

/** Throws UsageError, naming the line and never what is in it. */
function variablesOf(path: string | undefined): Record<string, string> {
  const variables: Record<string, string> = {};
  if (path === undefined) return variables;
  readFileSync(path, 'utf8').split('\n').forEach((line, i) => {
    if (/^\s*(?:#|$)/.test(line)) return;
    const [, name, value] = /^\s*([A-Za-z_][A-Za-z0-9_]*)=(.*)$/.exec(line) ?? [];
    if (name === undefined || value === undefined) throw new UsageError(`line ${i + 1} of ${path} is not NAME=VALUE`);
    variables[name] = value;
  });
  return variables;
}

function packagesOf({ file, workingDir }: PythonRun): { readonly program: readonly string[]; readonly packages: ProgramPackage[] } {
  if (file === undefined) return { program: [], packages: workingDir === undefined ? [] : [{ kind: 'working_dir', name: '', bytes: packDirectory(resolve(workingDir)) }] };
  if (workingDir === undefined) {
    if (statSync(file).size > MAX_CODE_BYTES) throw new UsageError(`${file} has more than ${MAX_CODE_BYTES} bytes`);
    return { program: [basename(file)], packages: [{ kind: 'file', name: basename(file), bytes: readFileSync(file) }] };
  }
  const root = resolve(workingDir);
  const program = resolve(file);
  if (!program.startsWith(`${root}/`)) throw new UsageError(`${file} is not in ${workingDir}: the program is started inside the working directory`);
  return { program: [program.slice(root.length + 1)], packages: [{ kind: 'working_dir', name: '', bytes: packDirectory(root) }] };
}

/** Prints what the job prints. */
class Printer {
  readonly #session: CallerSession;
  readonly #log: JobLog;
  readonly #stop = new AbortController();
  #following: Promise<void> | undefined;

  constructor(session: CallerSession, jobId: string) {
    this.#session = session;
    this.#log = new JobLog(session.tenant ?? '', jobId);
  }

  follow(): void {
    this.#following = this.#read(true, this.#stop.signal).catch((thrown: unknown) => {
      if (!this.#stop.signal.aborted) process.stderr.write(`bulkhead: the program's output cannot be shown: ${printable(toSafeError(thrown).safeMessage)}\n`);
    });
  }

  /** The rest, after the program's end. */
  async finish(): Promise<void> {
    this.#stop.abort();
    await this.#following;
    await this.#read(false, AbortSignal.timeout(LAST_LINES_MS)).catch(() => undefined);
  }

  async #read(follow: boolean, signal: AbortSignal): Promise<void> {
    await this.#log.read(await this.#session.raylets(), follow, signal, ({ stream, text }) => {
      const out = stream === 'stderr' ? process.stderr : process.stdout;
      out.write(out.isTTY ? printable(text, true) : text);
    });
  }
}

/** The exit code; a signal that asked this process to stop cancels the program. */
async function driverEnd(cluster: Cluster, ref: ObjectRef<number>): Promise<JobEnd> {
  let asked: NodeJS.Signals | undefined;
  const stop = (signal: NodeJS.Signals): void => {
    asked ??= signal;
    void cluster.cancel(ref, { force: true }).catch(() => undefined);
  };
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  for (const signal of signals) process.on(signal, stop);
  try {
    return { exitCode: await cluster.get(ref), signal: null, asked };
  } catch (thrown) {
    if (asked === undefined) throw thrown;
    return { exitCode: null, signal: asked, asked };
  } finally {
    for (const signal of signals) process.removeListener(signal, stop);
  }
}

/** Runs it in the job; throws what kept it from running. */
export async function runPython(run: PythonRun, jobId: string): Promise<JobEnd> {
  const { program, packages } = packagesOf(run);
  const variables = variablesOf(run.envFile);
  const requirements = requirementsOf(run.requirements);
  await using cluster = await connect({ profile: run.profile, job: jobId });
  await using session = await CallerSession.open(run.profile);
  const printer = run.onSubmitted === undefined ? new Printer(session, jobId) : undefined;
  const ref = submitProgram(cluster, { argv: [...program, ...run.args], variables, packages, requirements });
  printer?.follow();
  run.onSubmitted?.(jobId);
  try {
    return await driverEnd(cluster, ref);
  } finally {
    await printer?.finish();
  }
}
