/**
 * A Python for tests: the pinned gVisor and a virtual environment with this project's package, made once for all test files. Where one of them cannot be had, the reason
 * that `doctor` gives. Must never: take a reason for granted that `doctor` does not print.
 */
import { execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { cpSync, existsSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { findRunsc } from '../../src/sandbox/gvisor/runsc.ts';
import type { TestCluster } from './cluster.ts';

const ROOT = join(import.meta.dirname, '../..');
const PROGRAM_TIMEOUT_MS = 60_000;

/** What tests import besides the package's own requirements. */
const PACKAGES = ['numpy', 'pyarrow>=14.0.1', 'mypy==2.4.1'];

/** Interpreter with `pip install ./python` and those; kept between runs while the package's requirements are the same. */
function makeEnvironment(): string {
  const key = createHash('sha256').update(readFileSync(join(ROOT, 'python/pyproject.toml'))).update(PACKAGES.join(' ')).digest('hex').slice(0, 12);
  const directory = join(tmpdir(), `bulkhead-test-python-${key}`);
  const python = join(directory, 'bin/python');
  if (!existsSync(join(directory, 'ready'))) {
    const made = `${directory}.${process.pid}`;
    try {
      // A copy: setuptools writes beside what it builds.
      cpSync(join(ROOT, 'python'), join(made, 'source'), { recursive: true });
      execFileSync('python3', ['-m', 'venv', made], { timeout: 120_000, stdio: 'pipe' });
      execFileSync(join(made, 'bin/python'), ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', join(made, 'source'), ...PACKAGES], { timeout: 300_000, stdio: 'pipe' });
      writeFileSync(join(made, 'ready'), '');
      // Scripts of an environment name its place; the interpreter is all that is used of it.
      renameSync(made, directory);
    } catch (thrown) {
      rmSync(made, { recursive: true, force: true });
      if (!existsSync(join(directory, 'ready'))) throw thrown;
    }
  }
  return python;
}

export interface TestPython {
  readonly interpreter: string;
  /** Runs a driver program; its standard output. Throws with what it said when it fails. */
  run(cluster: TestCluster, profile: string, program: string, args?: readonly string[]): Promise<string>;
}

/** Undefined with a reason where gVisor is not there. */
export function testPython(): TestPython | { readonly missing: string } {
  try {
    findRunsc();
  } catch (thrown) {
    return { missing: (thrown as Error).message };
  }
  const interpreter = makeEnvironment();
  return {
    interpreter,
    run: (cluster, profile, program, args = []) => new Promise((resolve, reject) => {
      // The package of the working tree, not the copy that was installed when the environment was made.
      const env = { PATH: process.env['PATH'] ?? '', PYTHONPATH: join(ROOT, 'python'), PYTHONDONTWRITEBYTECODE: '1', BULKHEAD_PROFILE: cluster.profile(profile) };
      const child = spawn(interpreter, ['-', ...args], { stdio: ['pipe', 'pipe', 'pipe'], env });
      let out = '';
      let said = '';
      child.stdout.on('data', (chunk: Buffer) => (out += chunk.toString('utf8')));
      child.stderr.on('data', (chunk: Buffer) => (said += chunk.toString('utf8')));
      const timer = setTimeout(() => child.kill('SIGKILL'), PROGRAM_TIMEOUT_MS);
      child.on('error', reject);
      child.on('close', (code, signal) => {
        clearTimeout(timer);
        if (code === 0) resolve(out);
        else reject(new Error(`the program ended with ${code ?? signal}\n${out.slice(-4_000)}\n${said.slice(-8_000)}`));
      });
      child.stdin.end(program);
    }),
  };
}
