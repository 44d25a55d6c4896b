/**
 * The second tenant's program: knows every id of the first tenant's result, actor and job, and tries to use them.
 * Possession of an id grants nothing, so each attempt must end DENIED. Exit 0: all were; exit 1: something came through.
 *
 *   npx bulkhead run --profile SECOND-TENANT examples/flights/intruder.ts --ids FILE --tenant FIRST [--json]
 *
 * --ids FILE     what `driver.ts --result-id-file FILE` wrote
 * --tenant NAME  the first tenant
 * --json         prints one JSON array: { what, action, resource, denied, code, message }, to find the audit records by
 */
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { BulkheadError, connect } from 'bulkhead';

interface Attempt {
  readonly what: string;
  /** Action and resource of the audit record that the attempt leaves behind. */
  readonly action: string;
  readonly resource: string;
  /** Resolves to what came through, if anything does. */
  readonly run: () => Promise<unknown>;
}
interface Outcome extends Omit<Attempt, 'run'> { readonly denied: boolean; readonly code: string; readonly message: string }

const CLI = fileURLToPath(new URL('../../bin/bulkhead.js', import.meta.url));
/** Exit code of the command line for "denied". */
const EXIT_DENIED = 3;
/** An attempt that neither succeeds nor is refused by then has failed to be denied. */
const ATTEMPT_MS = 20_000;

const { values: options } = parseArgs({ options: { ids: { type: 'string' }, tenant: { type: 'string' }, json: { type: 'boolean', default: false } } });
if (options.ids === undefined || options.tenant === undefined) {
  console.error('usage: intruder.ts --ids FILE --tenant NAME [--json]   (FILE: written by driver.ts --result-id-file FILE)');
  process.exit(2);
}
const victim = options.tenant;
const ids = readIds(options.ids);

await using cluster = await connect();

const attempts: Attempt[] = [
  { what: 'get its result by the id', action: 'object.get', resource: ids.result, run: () => cluster.get(cluster.ref(ids.result)) },
  {
    what: 'let an own task read the result', action: 'object.get', resource: ids.result,
    run: () => cluster.get(cluster.task((value: unknown) => value)(cluster.ref(ids.result))),
  },
  { what: 'list its actors', action: 'actor.list', resource: victim, run: () => bulkhead('list', 'actors', '--tenant', victim) },
  { what: 'submit in its name', action: 'session.open', resource: ids.job, run: () => submitAs(ids.job) },
  { what: 'read its audit log', action: 'audit.read', resource: victim, run: () => bulkhead('audit', 'tail', '--tenant', victim) },
];

const outcomes: Outcome[] = [];
for (const { run, ...attempt } of attempts) outcomes.push({ ...attempt, ...(await outcomeOf(run)) });
if (options.json) console.log(JSON.stringify(outcomes));
else for (const o of outcomes) console.log(`${o.denied ? 'denied   ' : 'NOT DENIED'}  ${o.what.padEnd(32)}  ${o.code}: ${o.message}`);
process.exitCode = outcomes.every((o) => o.denied) ? 0 : 1;

async function outcomeOf(run: () => Promise<unknown>): Promise<Pick<Outcome, 'denied' | 'code' | 'message'>> {
  try {
    const deadline = AbortSignal.timeout(ATTEMPT_MS);
    const late = new Promise<never>((_, reject) => deadline.addEventListener('abort', () => reject(new BulkheadError('TIMEOUT', `no answer in ${ATTEMPT_MS / 1_000} s`))));
    await Promise.race([run(), late]);
    return { denied: false, code: 'OK', message: 'it came through' };
  } catch (error) {
    if (!(error instanceof BulkheadError)) throw error;
    return { denied: error.code === 'DENIED', code: error.code, message: error.safeMessage };
  }
}

/** Joins the other tenant's job and submits a task there: what a stolen job id would be good for. */
async function submitAs(job: string): Promise<unknown> {
  await using foreign = await connect({ job });
  return await foreign.get(foreign.task(() => 1)());
}

/** The command line with the same profile; its exit code 3 says "denied". */
async function bulkhead(...args: string[]): Promise<string> {
  return new Promise((done, fail) => {
    execFile(process.execPath, [CLI, ...args], { timeout: ATTEMPT_MS }, (error, stdout, stderr) => {
      if (error === null) done(stdout);
      else if (error.code === EXIT_DENIED) fail(new BulkheadError('DENIED', stderr.trim()));
      else fail(new BulkheadError('UNAVAILABLE', `bulkhead ${args.join(' ')} ended with ${error.code ?? error.signal}: ${stderr.trim()}`));
    });
  });
}

function readIds(path: string): { result: string; job: string } {
  const ids: unknown = JSON.parse(readFileSync(path, 'utf8'));
  if (typeof ids === 'object' && ids !== null && 'result' in ids && 'job' in ids && typeof ids.result === 'string' && typeof ids.job === 'string') return { result: ids.result, job: ids.job };
  throw new BulkheadError('INVALID_ARGUMENT', `${path} does not hold the ids that driver.ts --result-id-file writes`);
}
