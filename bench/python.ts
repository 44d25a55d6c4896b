/**
 * `npm run bench:python`: the rows of `ray microbenchmark` from a Python program, on a cluster of its own with every control on and workers in gVisor. `--ray` runs the
 * same program on Ray in the same run, slices of both in turn. Must never: turn a control off, or leave something running.
 * Exit codes: 0 done, 1 failed or (with --ray) a floor is missed, 2 wrong usage.
 */
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { loadavg } from 'node:os';
import { dirname, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { startCluster, type BenchCluster } from './cluster.ts';
import { endOnSignals } from './lifetimes.ts';
import { RAY_VERSION, RayProcess, rayPython } from './ray.ts';
import { COLUMNS, notedMachine, tableRows, textTable, verdictOf, type RowResult } from './report.ts';

const USAGE = `usage: npm run bench:python -- [--ray] [--rows TEXT] [--runs N] [--seconds S] [--json FILE]
  --ray      install Ray ${RAY_VERSION} in a virtual environment (once) and measure it in the same run
  --rows     only the rows whose name contains TEXT (several: separated by '|')
  --runs     runs of each row, of which the median counts (default 3)
  --seconds  length of one slice (default 2)
  --json     also write the results to FILE (default bench/results/python.json)`;
const WARM_UP_SECONDS = 2;
const PROGRAM = 'python_rows.py';
const SOURCES = fileURLToPath(new URL('../python', import.meta.url));
const VENV = fileURLToPath(new URL('../scripts/python-venv.ts', import.meta.url));
const FIRST = 'first task of a new tenant, warm sandbox';

interface Row {
  readonly name: string;
  readonly unit: string;
  /** Least ratio to Ray. */
  readonly floor?: number;
}

const calls = (name: string, floor?: number): Row => ({ name, unit: 'calls/s', ...(floor === undefined ? {} : { floor }) });

/** In the order in which Ray has them; those without a floor are there to be seen. */
const ROWS: readonly Row[] = [
  calls('single client get calls (Plasma Store)', 2),
  calls('single client put calls (Plasma Store)', 5),
  calls('multi client put calls (Plasma Store)'),
  { name: 'put gigabytes, from inside the cluster', unit: 'GB/s', floor: 0.7 },
  { name: 'put gigabytes, from a remote driver', unit: 'GB/s' },
  calls('single client tasks and get batch', 8),
  calls('single client get object containing 10k refs'),
  calls('single client wait 1k refs', 5),
  calls('single client tasks sync', 1.5),
  calls('single client tasks async', 8),
  calls('multi client tasks async', 4),
  calls('1:1 actor calls sync', 0.8),
  calls('1:1 actor calls async', 3),
  calls('1:1 actor calls concurrent'),
  calls('1:n actor calls async'),
  calls('n:n actor calls async', 2.5),
  calls('n:n actor calls with arg async'),
  calls('1:1 async-actor calls sync'),
  calls('1:1 async-actor calls async'),
  calls('1:1 async-actor calls with args async'),
  calls('1:n async-actor calls async'),
  calls('n:n async-actor calls async'),
  { name: 'actor creation', unit: 'actors/s', floor: 8 },
];

class UsageError extends Error {}
const note = (text: string): void => void process.stderr.write(`${text}\n`);
const reasonOf = (thrown: unknown): string => (thrown instanceof Error ? thrown.message : String(thrown)).replace(/\s+/g, ' ').slice(0, 200);

interface Options {
  readonly ray: boolean;
  readonly wanted: (name: string) => boolean;
  readonly runs: number;
  readonly seconds: number;
  readonly json: string;
}

function parseOptions(args: readonly string[]): Options {
  let values;
  try {
    ({ values } = parseArgs({
      args: [...args], strict: true, allowPositionals: false,
      options: { ray: { type: 'boolean' }, rows: { type: 'string' }, runs: { type: 'string' }, seconds: { type: 'string' }, json: { type: 'string' }, help: { type: 'boolean', short: 'h' } },
    }));
  } catch (thrown) {
    throw new UsageError(reasonOf(thrown));
  }
  if (values.help === true) throw new UsageError('');
  const number = (name: 'runs' | 'seconds', fallback: number, min: number, max: number): number => {
    const value = values[name] === undefined ? fallback : Number(values[name]);
    if (!(value >= min && value <= max) || (name === 'runs' && !Number.isInteger(value))) throw new UsageError(`--${name} ${values[name] ?? ''} is not a ${name === 'runs' ? 'whole ' : ''}number from ${min} to ${max}`);
    return value;
  };
  const filters = values.rows?.split('|').map((part) => part.trim()).filter((part) => part !== '');
  const wanted = (name: string): boolean => filters === undefined || filters.some((part) => name.includes(part));
  if (![FIRST, ...ROWS.map((row) => row.name)].some(wanted)) throw new UsageError(`no row's name contains '${values.rows ?? ''}'`);
  return { ray: values.ray === true, wanted, runs: number('runs', 3, 1, 20), seconds: number('seconds', 2, 0.05, 60), json: resolve(values.json ?? fileURLToPath(new URL('./results/python.json', import.meta.url))) };
}

interface Side {
  readonly process: RayProcess;
  readonly rates: number[];
  failure?: string;
}

/** One row: both sides prepared and warm, then slices in turn. A side that failed once is left out of the rest of its row. */
async function measureRow(row: Row, options: Options, bulkhead: RayProcess, ray: RayProcess | undefined): Promise<RowResult> {
  const sides: Side[] = [bulkhead, ...(ray === undefined ? [] : [ray])].map((process) => ({ process, rates: [] }));
  const turn = async (each: (process: RayProcess) => Promise<number | undefined>): Promise<void> => {
    for (const side of sides) {
      if (side.failure !== undefined) continue;
      try {
        const rate = await each(side.process);
        if (rate !== undefined) side.rates.push(rate);
      } catch (thrown) {
        side.failure = `${side.process === ray ? 'Ray: ' : ''}${reasonOf(thrown)}`;
      }
    }
  };
  await turn(async (process) => {
    await process.ask({ do: 'prepare', row: row.name });
    await process.ask({ do: 'run', seconds: Math.min(WARM_UP_SECONDS, options.seconds) });
    return undefined;
  });
  for (let i = 0; i < options.runs; i++) await turn(async (process) => (await process.ask({ do: 'run', seconds: options.seconds })).rate);
  const failures = sides.map((side) => side.failure).filter((failure) => failure !== undefined);
  return {
    name: row.name, unit: row.unit, bulkhead: sides[0]?.rates ?? [], ray: sides[1]?.rates ?? [],
    ...(row.floor === undefined ? {} : { floor: { kind: 'ratio', value: row.floor } as const }), ...(failures.length === 0 ? {} : { reason: failures.join('; ') }),
  };
}

/** A task of a tenant that has none of its processes yet, while a sandbox waits; beside the first task of a new job of a Ray that runs. */
async function measureFirst(options: Options, cluster: BenchCluster, python: string, theirs: { readonly python: string; readonly address: string; readonly env: Readonly<Record<string, string>> } | undefined): Promise<RowResult> {
  const result = { name: FIRST, unit: 'ms', bulkhead: [] as number[], ray: [] as number[], floor: { kind: 'part', value: 1 / 2 } as const };
  const one = async (interpreter: string, args: readonly string[], env: Readonly<Record<string, string>>): Promise<number> => {
    const process = new RayProcess(interpreter, args, { program: PROGRAM, env });
    try {
      return (await process.answer()).firstTaskMs ?? Number.NaN;
    } finally {
      await process.stop();
    }
  };
  try {
    for (const profile of cluster.freshProfiles) {
      result.bulkhead.push(await one(python, ['bulkhead', 'first'], { PYTHONPATH: SOURCES, BULKHEAD_PROFILE: profile }));
      if (theirs !== undefined) result.ray.push(await one(theirs.python, ['ray', 'first', theirs.address], theirs.env));
    }
    return result;
  } catch (thrown) {
    return { ...result, reason: reasonOf(thrown) };
  }
}

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2));
  endOnSignals();
  const here = notedMachine(note);
  const python = execFileSync(process.execPath, [VENV, 'numpy'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] }).trim();
  const theirs = options.ray ? await rayPython(note) : undefined;
  const results: RowResult[] = [];
  const report = (result: RowResult): void => {
    results.push(result);
    const [name, ours, rays, unit, ratio, , verdict] = tableRows([result])[0] as string[];
    note(`  ${name}: ${ours} ${unit}${options.ray ? `, Ray ${rays}, ratio ${ratio}` : ''} ${verdict}`);
    mkdirSync(dirname(options.json), { recursive: true });
    writeFileSync(options.json, `${JSON.stringify({ version: 1, python: true, machine: { ...here, loadAfter: loadavg()[0] }, ray: options.ray ? RAY_VERSION : null, runs: options.runs, seconds: options.seconds, rows: results.map((r) => ({ ...r, verdict: verdictOf(r) })), controls: [] }, null, 1)}\n`);
  };
  await using cluster = await startCluster({ python, fresh: options.wanted(FIRST) ? options.runs : 0 });
  // A Ray that starts by itself lets no second driver in without its token.
  const rayEnv = { RAY_AUTH_MODE: 'token', RAY_AUTH_TOKEN: randomBytes(32).toString('hex') };
  const ray = theirs === undefined ? undefined : new RayProcess(theirs, ['ray', 'rows'], { program: PROGRAM, env: rayEnv });
  const bulkhead = new RayProcess(python, ['bulkhead', 'rows'], { program: PROGRAM, env: { PYTHONPATH: SOURCES, BULKHEAD_PROFILE: cluster.profiles.acme } });
  try {
    await bulkhead.answer();
    const { address = '' } = (await ray?.answer()) ?? {};
    for (const row of ROWS) if (options.wanted(row.name)) report(await measureRow(row, options, bulkhead, ray));
    if (options.wanted(FIRST)) report(await measureFirst(options, cluster, python, theirs === undefined ? undefined : { python: theirs, address, env: rayEnv }));
  } finally {
    await bulkhead.stop();
    await ray?.stop();
  }
  process.stdout.write(`${textTable(COLUMNS, tableRows(results))}\n`);
  note(`written to ${options.json}`);
  if (results.some((r) => verdictOf(r) === 'FAIL')) process.exitCode = 1;
}

main().catch((thrown: unknown) => {
  if (thrown instanceof UsageError) note(`${thrown.message === '' ? '' : `${thrown.message}\n`}${USAGE}`);
  else note(`the bench failed: ${thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown)}`);
  process.exit(thrown instanceof UsageError ? 2 : 1);
});
