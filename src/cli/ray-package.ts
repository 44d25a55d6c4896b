/** Where Ray's own package is, as `npm run bench -- --ray` installs it: what compares this project with Ray, or tries Ray's clients on it, needs it. Must never: run it. */
import { existsSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { BulkheadError } from '../base/errors.ts';

export const RAY_VERSION = '2.60.0';

/** Its virtual environment, which need not be there. */
export function rayEnvironment(): string {
  return join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'bulkhead-bench', `ray-${RAY_VERSION}`);
}

/** The directory of its programs (`ray`, `python`). Throws UNAVAILABLE with what to do. */
export function findRay(): string {
  const bin = join(rayEnvironment(), 'bin');
  if (existsSync(join(bin, 'ray'))) return bin;
  throw new BulkheadError('UNAVAILABLE', `Ray ${RAY_VERSION} is not installed for comparison, so what tries its own clients is left out; npm run bench -- --ray installs it`);
}
