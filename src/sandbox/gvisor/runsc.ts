/**
 * Which gVisor runs Python: finds `runsc`, reads its release, and refuses what is too old, saying why. The pinned release is built by
 * build-runsc.ts from the Go module; a newer one of the system is accepted. Must never: download anything, or start a sandbox.
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { accessSync, constants, readFileSync, realpathSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { BulkheadError, toSafeError } from '../../base/errors.ts';
import { quote } from '../../base/ids.ts';

/** The pinned release, as the day it was made; build-runsc.ts has the module that it is built from. */
export const RUNSC_RELEASE = 20260905;
/** Older releases have holes through which the host's root was reached; Debian's package is of 2022. */
const OLDEST_RELEASE = 20260101;
const VERSION_TIMEOUT_MS = 10_000;
/** How a raylet gets one that is there on purpose. */
const RUNSC_VARIABLE = 'BULKHEAD_RUNSC';
const RUNSC_REMEDY = 'build the pinned release with: npm run gvisor (needs Go)';

export interface Runsc {
  readonly path: string;
  /** As its day, for instance 20260905. */
  readonly release: number;
  readonly text: string;
}

/** Where set-up puts what it built, with its digest beside it (`.sha256`). */
export function builtRunsc(): string {
  return join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'bulkhead', `runsc-${RUNSC_RELEASE}`);
}

/** The release in what `runsc --version` prints, as its day; undefined: it tells none. */
export function parseRelease(text: string): number | undefined {
  const found = /^runsc version (?:release-|.*-)?(20\d{6})\b/m.exec(text);
  return found?.[1] === undefined ? undefined : Number(found[1]);
}

/** Throws LAYER_MISSING with the reason. */
export function checkRunsc(path: string, pinnedDigest: string | undefined): Runsc {
  if (pinnedDigest !== undefined && createHash('sha256').update(readFileSync(path)).digest('hex') !== pinnedDigest) {
    throw new BulkheadError('LAYER_MISSING', `layer gvisor is missing: the runsc that set-up built has not the digest that was recorded with it; ${RUNSC_REMEDY}`);
  }
  let text: string;
  try {
    text = execFileSync(path, ['--version'], { encoding: 'utf8', timeout: VERSION_TIMEOUT_MS, stdio: ['ignore', 'pipe', 'ignore'], env: {} });
  } catch (thrown) {
    throw new BulkheadError('LAYER_MISSING', `layer gvisor is missing: runsc does not run; ${RUNSC_REMEDY}`, { cause: thrown });
  }
  const release = parseRelease(text);
  if (release === undefined) throw new BulkheadError('LAYER_MISSING', `layer gvisor is missing: runsc tells no release (${quote(text.split('\n')[0] ?? '')}), so it cannot be known to be recent; ${RUNSC_REMEDY}`);
  if (release < OLDEST_RELEASE) throw new BulkheadError('LAYER_MISSING', `layer gvisor is missing: runsc is of ${release}, and releases before ${OLDEST_RELEASE} have known ways out to the host; ${RUNSC_REMEDY}`);
  return { path, release, text: text.split('\n')[0] ?? '' };
}

/** The one named by BULKHEAD_RUNSC or `named`, else the newer of what set-up built and what the system has. Throws LAYER_MISSING with the reason. */
export function findRunsc(named = process.env[RUNSC_VARIABLE]): Runsc {
  if (named !== undefined && named !== '') return checkRunsc(named, undefined);
  let refusal: BulkheadError | undefined;
  let best: Runsc | undefined;
  const built = builtRunsc();
  const candidates = ['/usr/local/bin/runsc', '/usr/bin/runsc'].map((path) => ({ path, digest: false }));
  for (const { path, digest } of [{ path: built, digest: true }, ...candidates]) {
    try {
      accessSync(path, constants.X_OK);
    } catch {
      continue;
    }
    try {
      const found = checkRunsc(realpathSync(path), digest ? readFileSync(`${path}.sha256`, 'latin1').slice(0, 64) : undefined);
      if (best === undefined || found.release > best.release) best = found;
    } catch (thrown) {
      refusal ??= toSafeError(thrown);
    }
  }
  if (best !== undefined) return best;
  throw refusal ?? new BulkheadError('LAYER_MISSING', `layer gvisor is missing: runsc is not installed; ${RUNSC_REMEDY}`);
}
