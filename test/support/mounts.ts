/**
 * Small tmpfs mounts under the processes of a test cluster, in a mount namespace of theirs: gone with it, however the test ends. Needs root. Must never: mount
 * anything where others see it.
 */
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';

export class TestMounts implements AsyncDisposable {
  readonly #holder: ChildProcess;

  private constructor(holder: ChildProcess) {
    this.#holder = holder;
  }

  static async create(): Promise<TestMounts> {
    const holder = spawn('unshare', ['--mount', 'sh', '-c', 'echo; read -r line'], { stdio: ['pipe', 'pipe', 'ignore'] });
    await once(holder.stdout, 'data');
    return new TestMounts(holder);
  }

  /** The command in front of one that is to see the mounts. */
  through(): string[] {
    return ['nsenter', `--mount=/proc/${this.#holder.pid}/ns/mnt`, '--'];
  }

  /** An empty tmpfs on a directory, unless one is there already. */
  tmpfs(path: string, size: string, mode: string): void {
    const [program = '', ...args] = this.through();
    execFileSync(program, [...args, 'sh', '-c', 'mkdir -p -m "$3" "$1" && { mountpoint -q "$1" || mount -t tmpfs -o "size=$2,mode=$3" tmpfs "$1"; }', 'sh', path, size, mode]);
  }

  /** Where this process finds what the others see under a path. */
  seen(path: string): string {
    return `/proc/${this.#holder.pid}/root${path}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const gone = once(this.#holder, 'exit');
    this.#holder.stdin?.end();
    await gone;
  }
}
