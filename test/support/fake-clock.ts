/**
 * Wall clocks that jump under real processes, by libfaketime: a process reads its offset from a file of its own. Monotonic time goes on, as it does
 * when somebody sets a machine's clock. Must never: leave a process without a file to read.
 */
import { existsSync, mkdtempSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Launch } from '../../src/cli/local-cluster.ts';

function library(): string {
  for (const name of readdirSync('/usr/lib')) {
    const path = join('/usr/lib', name, 'faketime', 'libfaketime.so.1');
    if (existsSync(path)) return path;
  }
  throw new Error('libfaketime is not installed: apt-get install -y --no-install-recommends faketime');
}

export class FakeClocks implements Disposable {
  readonly #directory = mkdtempSync(join(tmpdir(), 'bulkhead-clocks-'));

  launch(name: string): Launch {
    this.set(name, 0);
    return { env: { LD_PRELOAD: library(), FAKETIME_TIMESTAMP_FILE: join(this.#directory, name), FAKETIME_CACHE_DURATION: '1', FAKETIME_DONT_FAKE_MONOTONIC: '1', DONT_FAKE_MONOTONIC: '1' } };
  }

  /** So many seconds ahead of the machine's clock, within about a second. */
  set(name: string, seconds: number): void {
    const path = join(this.#directory, name);
    writeFileSync(`${path}.new`, `${seconds < 0 ? '-' : '+'}${Math.abs(seconds)}s\n`);
    renameSync(`${path}.new`, path);
  }

  [Symbol.dispose](): void {
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
