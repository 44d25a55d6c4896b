/**
 * Ray on the same machine in the same run: a virtual environment of its own in the user's cache, and the script `ray_rows.py` told over pipes.
 * Must never: run Ray's code in this process, or leave one of its processes behind.
 */
import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { createInterface, type Interface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { RAY_VERSION, rayEnvironment } from '../src/cli/ray-package.ts';
import { owned } from './lifetimes.ts';
import { processTree, sleep } from './measure.ts';

export { RAY_VERSION };
const run = promisify(execFile);
const INSTALL_TIMEOUT_MS = 15 * 60_000;
const ANSWER_TIMEOUT_MS = 120_000;
const GONE_TIMEOUT_MS = 15_000;

/** Path of a Python that has Ray; installs it the first time. */
export async function rayPython(onProgress: (text: string) => void): Promise<string> {
  const directory = rayEnvironment();
  const python = join(directory, 'bin', 'python');
  const check = async (): Promise<boolean> => run(python, ['-c', 'import ray; print(ray.__version__)'], { timeout: 120_000 }).then(({ stdout }) => stdout.trim() === RAY_VERSION, () => false);
  if (existsSync(python) && (await check())) return python;
  onProgress(`installing Ray ${RAY_VERSION} into ${directory} (once, about a minute)`);
  mkdirSync(dirname(directory), { recursive: true, mode: 0o700 });
  rmSync(directory, { recursive: true, force: true });
  try {
    await run('python3', ['-m', 'venv', directory], { timeout: INSTALL_TIMEOUT_MS });
    await run(join(directory, 'bin', 'pip'), ['install', '--quiet', '--disable-pip-version-check', `ray[default]==${RAY_VERSION}`, 'numpy'], { timeout: INSTALL_TIMEOUT_MS, maxBuffer: 2 ** 26 });
    if (!(await check())) throw new Error('the installed package cannot be imported');
  } catch (thrown) {
    // A half of it would be taken for whole the next time.
    if (existsSync(directory)) renameSync(directory, `${directory}.failed-${Date.now()}`);
    throw new Error(`Ray ${RAY_VERSION} could not be installed: it needs Python 3.10 to 3.13 with venv and a package index; run without --ray to do without it (${thrown instanceof Error ? thrown.message.split('\n')[0] : ''})`, { cause: thrown });
  }
  return python;
}

export interface RayAnswer {
  readonly row?: string;
  readonly rate?: number;
  readonly error?: string;
  readonly done?: boolean;
  readonly readyMs?: number;
  readonly firstTaskMs?: number;
  readonly pid?: number;
  readonly address?: string;
  readonly ready?: boolean;
}

/** One Python process that answers commands: Ray's side, or with another program either side. */
export class RayProcess {
  readonly #child: ChildProcess;
  readonly #lines: Interface;
  readonly #forget: () => void;
  readonly #answers: RayAnswer[] = [];
  #waiting: (() => void) | undefined;
  #ended = false;

  constructor(python: string, args: readonly string[], { program = 'ray_rows.py', env = {} }: { readonly program?: string; readonly env?: Readonly<Record<string, string>> } = {}) {
    this.#child = spawn(python, [fileURLToPath(new URL(`./${program}`, import.meta.url)), ...args], { env: { ...process.env, ...env }, stdio: ['pipe', 'pipe', process.env['BENCH_RAY_LOG'] === undefined ? 'ignore' : 'inherit'] });
    this.#forget = owned(() => this.stop());
    this.#child.stdin?.on('error', () => undefined);
    this.#lines = createInterface(this.#child.stdout as NodeJS.ReadableStream);
    this.#lines.on('line', (line) => {
      if (!line.startsWith('@')) return;
      this.#answers.push(JSON.parse(line.slice(1)) as RayAnswer);
      this.#waiting?.();
    });
    this.#child.once('exit', () => {
      this.#ended = true;
      this.#waiting?.();
    });
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  async answer(): Promise<RayAnswer> {
    const deadline = performance.now() + ANSWER_TIMEOUT_MS;
    while (this.#answers.length === 0) {
      if (this.#ended) throw new Error('the Ray process ended; BENCH_RAY_LOG=1 shows what it said');
      if (performance.now() > deadline) throw new Error(`Ray did not answer in ${ANSWER_TIMEOUT_MS / 1_000} s`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, 1_000);
        this.#waiting = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      this.#waiting = undefined;
    }
    const answer = this.#answers.shift() as RayAnswer;
    return answer;
  }

  tell(command: object): void {
    this.#child.stdin?.write(`${JSON.stringify(command)}\n`);
  }

  async ask(command: object): Promise<RayAnswer> {
    this.tell(command);
    const answer = await this.answer();
    if (answer.error !== undefined) throw new Error(answer.error);
    return answer;
  }

  /** Ends the process and all that it started. Ray's daemons sit in its process tree; those that outlive it are ended by their pid. */
  async stop(): Promise<void> {
    this.#forget();
    const tree = processTree(this.pid).filter((pid) => pid !== this.pid);
    if (!this.#ended) {
      const gone = new Promise<void>((resolve) => this.#child.once('exit', () => resolve()));
      this.tell({ do: 'stop' });
      this.#child.stdin?.end();
      const timer = setTimeout(() => this.#child.kill('SIGKILL'), GONE_TIMEOUT_MS);
      await gone;
      clearTimeout(timer);
    }
    const deadline = performance.now() + GONE_TIMEOUT_MS;
    while (tree.some(alive) && performance.now() < deadline) await sleep(100);
    for (const pid of tree) if (alive(pid)) process.kill(pid, 'SIGKILL');
  }
}

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
