/**
 * A virtual environment with what this project's Python package needs and the packages that a program asks for, kept in the user's cache and made again when either
 * list changes. `node scripts/python-venv.ts PACKAGE…` prints its interpreter. Must never: leave a half-made environment that would be taken for a whole one, or touch another environment.
 */
import { execFile, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
const INSTALL_TIMEOUT_MS = 15 * 60_000;
const PROJECT = join(import.meta.dirname, '..', 'python', 'pyproject.toml');
const VERSIONS = 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))';

/** As pyproject.toml lists them. */
function ownRequirements(): string[] {
  const list = /^dependencies = \[(.*)\]$/m.exec(readFileSync(PROJECT, 'utf8'))?.[1] ?? '';
  return [...list.matchAll(/"([^"]+)"/g)].map((found) => found[1] as string);
}

/** Path of its interpreter. `note`: what takes long, line by line. */
export async function pythonWith(packages: readonly string[], note: (text: string) => void): Promise<string> {
  const base = process.env['BULKHEAD_BASE_PYTHON'] ?? 'python3';
  const version = await run(base, ['-c', `${VERSIONS.replace('sys.exit(', 'print(sys.version); sys.exit(')}`], { timeout: 20_000 }).then(({ stdout }) => stdout, () => undefined);
  if (version === undefined) throw new Error(`${base} is not there, or not Python 3.10 to 3.13: install one (Debian: apt-get install python3 python3-venv), or name it with BULKHEAD_BASE_PYTHON`);
  const wanted = [...ownRequirements(), ...packages];
  const key = createHash('sha256').update(JSON.stringify([version, wanted])).digest('hex').slice(0, 12);
  const home = join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'bulkhead');
  const directory = join(home, `python-${key}`);
  const python = join(directory, 'bin', 'python');
  if (existsSync(join(directory, 'complete'))) return python;
  note(`installing ${packages.join(', ')} into ${directory} (once, a minute or two)`);
  mkdirSync(home, { recursive: true, mode: 0o755 });
  const made = `${directory}.${process.pid}`;
  try {
    await run(base, ['-m', 'venv', made], { timeout: INSTALL_TIMEOUT_MS });
    await new Promise<void>((resolve, reject) => {
      const pip = spawn(join(made, 'bin', 'python'), ['-m', 'pip', 'install', '--disable-pip-version-check', '--no-input', ...wanted], { stdio: ['ignore', 'pipe', 'pipe'], timeout: INSTALL_TIMEOUT_MS });
      let last = '';
      let said = '';
      pip.stdout.setEncoding('utf8').on('data', (text: string) => {
        for (const line of text.split('\n')) {
          const what = /^(Collecting|Downloading|Installing collected packages:) ?\S*/.exec(line.trim())?.[0];
          if (what !== undefined && what !== last) note(`  ${(last = what)}`);
        }
      });
      pip.stderr.setEncoding('utf8').on('data', (text: string) => (said = (said + text).slice(-2_000)));
      pip.on('error', reject);
      pip.on('close', (code) => (code === 0 ? resolve() : reject(new Error(said.trim().split('\n').at(-1) ?? `pip ended with ${code}`))));
    });
    writeFileSync(join(made, 'complete'), wanted.join('\n'));
    // Scripts of an environment name its place; the interpreter is all that is used of it.
    renameSync(made, directory);
  } catch (thrown) {
    rmSync(made, { recursive: true, force: true });
    // Another process may have made it meanwhile.
    if (existsSync(join(directory, 'complete'))) return python;
    throw new Error(`the Python packages could not be installed (${thrown instanceof Error ? (thrown.message.split('\n')[0] ?? '') : ''}): it needs python3 with venv, and a package index that pip reaches`, { cause: thrown });
  }
  return python;
}

if (import.meta.main) {
  try {
    console.log(await pythonWith(process.argv.slice(2), (text) => console.error(text)));
  } catch (thrown) {
    console.error(thrown instanceof Error ? thrown.message : String(thrown));
    process.exitCode = 1;
  }
}
