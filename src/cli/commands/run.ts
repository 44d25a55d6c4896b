/** `bulkhead run` and `bulkhead bench`: a program as a child under Node 24, with its own streams, exit code and signals. */
import { spawn } from 'node:child_process';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { constants, homedir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { BulkheadError } from '../../base/errors.ts';
import { ExitCode, UsageError } from '../terminal.ts';

const HOOKS = new URL('../driver-hooks.ts', import.meta.url).href;
const BENCH = fileURLToPath(new URL('../../../bench/bench.ts', import.meta.url));

async function runChild(args: readonly string[], env: NodeJS.ProcessEnv): Promise<void> {
  const child = spawn(process.execPath, args, { stdio: 'inherit', env });
  // A terminal sends ^C to both; the child decides what it means, and this process ends with it.
  process.on('SIGINT', () => undefined);
  for (const signal of ['SIGTERM', 'SIGHUP'] as const) process.on(signal, () => child.kill(signal));
  const code = await new Promise<number>((done, failed) => {
    child.once('error', (cause) => failed(new BulkheadError('UNAVAILABLE', `node could not be started (${process.execPath})`, { cause })));
    child.once('exit', (exitCode, signal) => done(signal === null ? (exitCode ?? 1) : 128 + constants.signals[signal]));
  });
  if (code !== 0) throw new ExitCode(code);
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

export async function runDriver(file: string, args: readonly string[], { profile, name }: { readonly profile: string | undefined; readonly name: string | undefined }): Promise<void> {
  if (!existsSync(file) || !statSync(file).isFile()) throw new UsageError(`${file} is not a file; give the program to run, for example: bulkhead run hello.ts`);
  if (isAdministrator(profileDirectory(profile))) throw new UsageError(`the profile ${profileDirectory(profile)} is of the cluster itself, which runs no programs; use a tenant's: bulkhead identity issue user NAME --tenant T --role developer --out DIR, then bulkhead run --profile DIR ${basename(file)}`);
  const chosen = profile === undefined ? {} : { BULKHEAD_PROFILE: resolve(profile) };
  await runChild(['--import', HOOKS, resolve(file), ...args], { ...process.env, BULKHEAD_JOB_NAME: name ?? basename(file), ...chosen });
}

export async function runBench(args: readonly string[]): Promise<void> {
  if (!existsSync(BENCH)) throw new BulkheadError('UNAVAILABLE', `${BENCH} is missing: the benchmark is part of a checkout, not of the installed package`);
  await runChild([BENCH, ...args], process.env);
}
