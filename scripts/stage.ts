/**
 * What the quickstarts have in common: a work directory, commands that are shown and run as a user would type them, one cluster, and the end of all of it, also when
 * something fails or the user stops it. Must never: leave a process or a directory behind.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

export const ROOT = fileURLToPath(new URL('..', import.meta.url));
const CLI = join(ROOT, 'bin', 'bulkhead.js');
const FILE_TIMEOUT_MS = 180_000;
const colour = process.stdout.isTTY && process.env['NO_COLOR'] === undefined;
export const bold = (text: string): string => (colour ? `\x1b[1m${text}\x1b[0m` : text);
export const dim = (text: string): string => (colour ? `\x1b[2m${text}\x1b[0m` : text);

export interface AuditLine {
  readonly node: string;
  readonly index: number;
  readonly record: { readonly type: string; readonly action?: string; readonly allow?: boolean; readonly principal: string; readonly rule?: string; readonly resource: string; readonly resourceKind: string };
}

export interface RunOptions {
  /** Whose profile; not given: the cluster's administrator. */
  readonly as?: string;
  readonly wanted?: number;
  readonly show?: boolean;
}

export class Stage {
  readonly work = mkdtempSync(join(tmpdir(), 'bulkhead-quickstart-'));
  readonly data = join(this.work, 'cluster');
  readonly #startedMs = performance.now();
  #step = 0;

  profile(name: string): string {
    return join(this.work, 'profiles', name);
  }

  seconds(): string {
    return ((performance.now() - this.#startedMs) / 1_000).toFixed(1);
  }

  title(text: string): void {
    console.log(`\n${bold(`${++this.#step}. ${text}`)}  ${dim(`(${this.seconds()} s)`)}`);
  }

  /** Starts a command of the command line, or with `program` another program whose words are shown as given. */
  start(args: readonly string[], as: string | undefined, stdio: ('ignore' | 'pipe' | 'inherit')[], program?: { readonly file: string; readonly shown: string; readonly env: Readonly<Record<string, string>> }): ChildProcess {
    const words = args.map((a) => (a.startsWith(this.work) ? `$WORK${a.slice(this.work.length)}` : a.startsWith(ROOT) ? relative(ROOT, a) : a));
    console.log(dim(`   $ ${as === undefined ? '' : `BULKHEAD_PROFILE=$WORK/profiles/${as} `}${program?.shown ?? 'npx bulkhead'} ${words.join(' ')}`));
    // Nothing of the user's own home is used but what set-up has built or installed there.
    const cache = process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache');
    const env = { ...process.env, HOME: this.work, XDG_CACHE_HOME: cache, BULKHEAD_PROFILE: as === undefined ? join(this.data, 'head', 'admin') : this.profile(as), ...program?.env };
    return spawn(program?.file ?? process.execPath, program === undefined ? [CLI, ...args] : args, { cwd: ROOT, stdio, env });
  }

  /** Runs a command; its standard output is returned, its errors are shown. Fails unless the exit code is the wanted one. */
  async run(args: readonly string[], options: RunOptions = {}): Promise<string> {
    return this.output(this.start(args, options.as, ['ignore', 'pipe', 'pipe']), options);
  }

  async output(child: ChildProcess, options: RunOptions = {}): Promise<string> {
    let stdout = '';
    let stderr = '';
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (stderr += text));
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
      if (options.show === true) process.stdout.write(text.replace(/^(?=.)/gm, '   '));
    });
    const code = await new Promise<number>((resolve) => child.on('close', (status) => resolve(status ?? 1)));
    if (code !== (options.wanted ?? 0)) throw new Error(`the command ended with ${code}: ${stderr.slice(-2_000)}${stdout.slice(-2_000)}`);
    return stdout;
  }

  /** Waits for a file that a program writes when it has a result. */
  async appears(file: string, child: ChildProcess): Promise<void> {
    for (const end = performance.now() + FILE_TIMEOUT_MS; performance.now() < end; ) {
      if (existsSync(file)) return;
      if (child.exitCode !== null) throw new Error(`the first tenant's program ended with ${child.exitCode} before it had a result`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    throw new Error('the first tenant’s program had no result in time');
  }

  async denials(tenant: string, as: string): Promise<AuditLine[]> {
    const tail = await this.run(['audit', 'tail', '--tenant', tenant, '--deny', '--json'], { as });
    return tail.split('\n').filter((line) => line !== '').map((line) => JSON.parse(line) as AuditLine);
  }

  /** Runs the whole of it, ends everything, and the process with its outcome. */
  async play(body: () => Promise<void>): Promise<never> {
    let failed = false;
    for (const [signal, code] of [['SIGINT', 130], ['SIGTERM', 143]] as const) {
      process.once(signal, () => {
        console.error('\nStopping…');
        void this.#stop().then(() => process.exit(code));
      });
    }
    try {
      await body();
    } catch (error) {
      failed = true;
      console.error(`\nThe quickstart failed: ${error instanceof Error ? error.message : String(error)}`);
      for (const log of ['head.log', 'raylet-1.log', 'raylet-2.log']) {
        const path = join(this.data, 'logs', log);
        if (existsSync(path)) console.error(`--- ${log}\n${readFileSync(path, 'utf8').slice(-1_500)}`);
      }
    }
    await this.#stop();
    process.exit(failed ? 1 : 0);
  }

  /** Processes that name the work directory: none after `down`. */
  processes(): number[] {
    return readdirSync('/proc').filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid).map(Number).filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes(this.work) || readFileSync(`/proc/${pid}/environ`, 'latin1').includes(this.work);
      } catch {
        // It ended meanwhile.
        return false;
      }
    });
  }

  async #stop(): Promise<void> {
    if (existsSync(join(this.data, 'processes.json'))) await this.run(['down', '--data', this.data]).catch(() => undefined);
    rmSync(this.work, { recursive: true, force: true });
  }
}
