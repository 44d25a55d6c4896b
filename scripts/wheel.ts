/**
 * `npm run wheel [DIR]`: the Python package as a wheel, in python/dist/ or DIR. The same sources give the same octets wherever and whenever it is built: build tools of one version
 * (pyproject.toml), times of one moment, modes that no umask changes, and nothing but the sources. Prints the file and its digest. Must never: build in the work tree, where older builds lie.
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmodSync, copyFileSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';

const PROJECT = join(import.meta.dirname, '..', 'python');
const OUT = resolve(process.argv[2] ?? join(PROJECT, 'dist'));
const BUILD_TIMEOUT_MS = 300_000;
/** The earliest moment that archives can hold for sure: what a commit's time would add, the version says already. */
const EPOCH = '315619200';

/** Package directories and files by name, so that nothing that lies beside the sources (caches, environments, earlier builds) comes along. */
function sources(): string[] {
  const inside = readdirSync(join(PROJECT, 'bulkhead'), { recursive: true, encoding: 'utf8' }).filter((name) => /^[\w/]+\.(?:py|typed)$/.test(name));
  return ['pyproject.toml', ...inside.map((name) => join('bulkhead', name))].sort();
}

process.umask(0o022);
const work = mkdtempSync(join(tmpdir(), 'bulkhead-wheel-'));
try {
  for (const name of sources()) {
    const to = join(work, 'source', name);
    mkdirSync(dirname(to), { recursive: true });
    copyFileSync(join(PROJECT, name), to);
    chmodSync(to, 0o644);
  }
  const env = { PATH: process.env['PATH'] ?? '', HOME: process.env['HOME'] ?? work, SOURCE_DATE_EPOCH: EPOCH, PYTHONHASHSEED: '0', TZ: 'UTC', LC_ALL: 'C.UTF-8' };
  execFileSync(process.env['BULKHEAD_BASE_PYTHON'] ?? 'python3', ['-m', 'pip', 'wheel', '--quiet', '--disable-pip-version-check', '--no-input', '--no-deps', '--wheel-dir', join(work, 'out'), join(work, 'source')], { stdio: ['ignore', 'inherit', 'inherit'], timeout: BUILD_TIMEOUT_MS, env });
  const built = readdirSync(join(work, 'out'));
  const [name] = built;
  if (name === undefined || built.length !== 1) throw new Error(`pip made ${built.length} files instead of one wheel: ${built.join(', ')}`);
  mkdirSync(OUT, { recursive: true });
  copyFileSync(join(work, 'out', name), join(OUT, name));
  console.log(`${createHash('sha256').update(readFileSync(join(OUT, name))).digest('hex')}  ${join(OUT, name)}`);
} finally {
  rmSync(work, { recursive: true, force: true });
}
