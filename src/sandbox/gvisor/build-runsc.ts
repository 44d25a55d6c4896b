/**
 * Set-up: builds the pinned `runsc` from the Go module, into the user's cache, with its digest beside it. Run: npm run gvisor. Go itself checks the module against the
 * public checksum database; its checksum is pinned here too. Must never: take a version from outside, or leave a half-made file in place.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { toSafeError } from '../../base/errors.ts';
import { builtRunsc, checkRunsc, RUNSC_RELEASE } from './runsc.ts';

const MODULE = 'gvisor.dev/gvisor';
const MODULE_VERSION = 'v0.0.0-20260905035102-160fafc42237';
const MODULE_SUM = 'h1:AU5+CtCvnBnxdZRNcZt1NfSLqgkXZVT3N/u6u1aXg44=';
const BUILD_TIMEOUT_MS = 30 * 60_000;
const QUERY_TIMEOUT_MS = 5 * 60_000;

/** Without C, without what the machine or its user has set, and with a newer Go where the module asks for one. */
function goEnvironment(): NodeJS.ProcessEnv {
  return { ...process.env, CGO_ENABLED: '0', GOFLAGS: '', GOTOOLCHAIN: 'auto', GOWORK: 'off' };
}

function build(target: string): void {
  const work = mkdtempSync(join(tmpdir(), 'bulkhead-runsc-'));
  try {
    const said: unknown = JSON.parse(execFileSync('go', ['mod', 'download', '-json', `${MODULE}@${MODULE_VERSION}`], { encoding: 'utf8', cwd: work, env: goEnvironment(), timeout: QUERY_TIMEOUT_MS, stdio: ['ignore', 'pipe', 'inherit'] }));
    const sum = (said as { Sum?: unknown }).Sum;
    if (sum !== MODULE_SUM) throw new Error(`the module ${MODULE} has the checksum ${String(sum)}, not the pinned one`);
    const { status } = spawnSync('go', ['install', '-trimpath', '-ldflags', `-s -w -X ${MODULE}/runsc/version.version=release-${RUNSC_RELEASE}.0`, `${MODULE}/runsc@${MODULE_VERSION}`], {
      cwd: work, env: { ...goEnvironment(), GOBIN: work }, timeout: BUILD_TIMEOUT_MS, stdio: ['ignore', 'inherit', 'inherit'],
    });
    if (status !== 0) throw new Error('the build failed; the lines above say why');
    const built = readFileSync(join(work, 'runsc'));
    mkdirSync(dirname(target), { recursive: true, mode: 0o755 });
    const fresh = `${target}.${process.pid}`;
    writeFileSync(fresh, built, { mode: 0o755 });
    writeFileSync(`${target}.sha256`, `${createHash('sha256').update(built).digest('hex')}  ${target}\n`);
    renameSync(fresh, target);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

function main(): void {
  const target = builtRunsc();
  try {
    if (existsSync(target)) return console.log(checkRunsc(target, readFileSync(`${target}.sha256`, 'latin1').slice(0, 64)).text);
  } catch (thrown) {
    console.error(`${toSafeError(thrown).safeMessage}: it is built again`);
  }
  if (spawnSync('go', ['version'], { stdio: 'ignore' }).status !== 0) {
    console.error('gVisor is not built: Go is not installed. Install 1.21 or later (Debian 13 or newer: apt-get install golang-go; elsewhere the archive of the Go project, its bin directory in PATH), then say: npm run gvisor. It fetches the newer Go that the module asks for by itself. Python tasks stay off; everything else works.');
    process.exit(process.argv.includes('--if-possible') ? 0 : 4);
  }
  console.log(`Building runsc of ${RUNSC_RELEASE} (gVisor), once for this user; it takes five to fifteen minutes, and some 2 GiB of disk while it lasts`);
  try {
    build(target);
    console.log(checkRunsc(target, undefined).text);
  } catch (thrown) {
    console.error(`gVisor was not built: ${thrown instanceof Error ? thrown.message : String(thrown)}`);
    process.exit(process.argv.includes('--if-possible') ? 0 : 1);
  }
}

if (import.meta.main) main();
