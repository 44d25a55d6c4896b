/**
 * Installs the Debian packages that a job needs, saying which and why; without root it prints the one command to run. Package names are
 * fixed here: nothing from outside reaches a command line.
 */
import { spawnSync } from 'node:child_process';
import { accessSync, constants, existsSync } from 'node:fs';
import { join } from 'node:path';

interface SystemPackage {
  readonly name: string;
  /** A program of it, looked for before anything is installed. */
  readonly program: string;
  readonly why: string;
}

export const SANDBOX_PACKAGES: readonly SystemPackage[] = [
  { name: 'bubblewrap', program: 'bwrap', why: 'puts each worker process into namespaces of its own, with an empty root' },
  { name: 'util-linux', program: 'prlimit', why: 'sets resource limits of worker processes' },
];

/** What only the tests use. Absent ones are named by the test that would have used them. */
export const TEST_PACKAGES: readonly SystemPackage[] = [
  { name: 'gcc', program: 'gcc', why: 'compiles the hostile native program that tries to break out of the jail' },
  { name: 'libc6-dev', program: 'gcc', why: 'headers for it' },
  { name: 'openssl', program: 'openssl', why: 'an independent judge of our certificates' },
  { name: 'iproute2', program: 'ip', why: 'networks between processes of a cluster, which the fault tests cut' },
  { name: 'faketime', program: 'faketime', why: 'clocks that jump under the processes of a cluster' },
];

export function findProgram(program: string): string | undefined {
  for (const directory of (process.env['PATH'] ?? '').split(':').concat('/usr/sbin', '/sbin')) {
    const path = join(directory, program);
    try {
      if (directory === '' || !existsSync(path)) continue;
      accessSync(path, constants.X_OK);
      return path;
    } catch {
      continue;
    }
  }
  return undefined;
}

/** Returns when every program is there; else explains and exits with 4 (a layer is missing). */
export function requirePackages(packages: readonly SystemPackage[]): void {
  const missing = packages.filter((p) => findProgram(p.program) === undefined);
  if (missing.length === 0) return;
  const names = [...new Set(missing.map((p) => p.name))];
  console.error('Bulkhead needs system packages that are not here:');
  for (const { name, why } of missing) console.error(`  ${name.padEnd(12)} ${why}`);
  const command = `apt-get install -y --no-install-recommends ${names.join(' ')}`;
  if (findProgram('apt-get') === undefined) {
    console.error('This is not a Debian system: install these with its own package manager, then try again.');
    process.exit(4);
  }
  if (process.getuid?.() !== 0) {
    console.error(`Installing needs root. Run this, then try again:\n  sudo sh -c 'apt-get update && ${command}'`);
    process.exit(4);
  }
  console.error(`Installing them: ${command}`);
  const environment = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  const install = (): number => spawnSync('apt-get', command.split(' ').slice(1).concat('-qq'), { stdio: ['ignore', 'ignore', 'inherit'], env: environment }).status ?? 1;
  // Package lists may be old or absent: fetch them only when the first try fails.
  if (install() !== 0) {
    spawnSync('apt-get', ['update', '-qq'], { stdio: ['ignore', 'ignore', 'inherit'], env: environment });
    if (install() !== 0) {
      console.error(`The packages could not be installed. Try by hand: ${command}`);
      process.exit(4);
    }
  }
  const still = packages.filter((p) => findProgram(p.program) === undefined);
  if (still.length > 0) {
    console.error(`Still missing after the installation: ${still.map((p) => p.program).join(', ')}`);
    process.exit(4);
  }
}

if (import.meta.main) requirePackages(process.argv.includes('--tests') ? [...SANDBOX_PACKAGES, ...TEST_PACKAGES] : SANDBOX_PACKAGES);
