/**
 * `npm run bench`: the rows of `ray microbenchmark` on a cluster of its own, over mTLS with every control on. `--ray` measures Ray in the same
 * run, slices of both in turn, and prints ratios and floors. Must never: turn a control off, or leave something running.
 * Exit codes: 0 done, 1 failed or (with --ray) a floor is missed, 2 wrong usage.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { loadavg } from 'node:os';
import { dirname, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { startCluster } from './cluster.ts';
import { measureControls, type ControlResult } from './controls.ts';
import { Drivers } from './drivers.ts';
import { measureFairness, type FairnessResult } from './fairness.ts';
import { endOnSignals } from './lifetimes.ts';
import { RAY_VERSION, RayProcess, rayPython } from './ray.ts';
import { COLUMNS, notedMachine, SCHEDULING_COLUMNS, schedulingRows, shown, tableRows, textTable, verdictOf, type RowResult } from './report.ts';
import { ROWS, type Row } from './rows.ts';
import { measureScheduling, type SchedulingResult } from './scheduling.ts';
import { bulkheadSizes, rayClient, raySizes, type Sizes } from './sizes.ts';

const USAGE = `usage: npm run bench -- [--ray] [--rows TEXT] [--runs N] [--seconds S] [--controls] [--fairness] [--scheduling] [--json FILE] [--profile DIR]
  --ray       install Ray ${RAY_VERSION} in a virtual environment (once) and measure it in the same run
  --rows      only the rows whose name contains TEXT (several: separated by '|')
  --runs      runs of each row, of which the median counts (default 3)
  --seconds   length of one slice (default 2)
  --controls  what each control costs: mTLS, policy, audit, jail, with and without
  --fairness  p99 of a tenant's lone calls, with and without another tenant's flood
  --scheduling what scheduling a task costs, by queued tasks and by nodes, simulated; without other options nothing else is measured
  --json      also write the results to FILE (default bench/results/latest.json)
  --profile   write V8 CPU profiles of head, raylet and drivers into DIR (rates are lower then)`;
/** Long enough for both sides to have started the worker processes that the row needs. */
const WARM_UP_SECONDS = 2;
const MIB = 2 ** 20;

interface Options {
  readonly ray: boolean;
  readonly controls: boolean;
  readonly fairness: boolean;
  readonly scheduling: boolean;
  readonly wanted: (name: string) => boolean;
  readonly all: boolean;
  readonly runs: number;
  readonly seconds: number;
  readonly json: string;
  /** Options of the node binary of every process. */
  readonly nodeArgs: readonly string[];
}

class UsageError extends Error {}

export function parseOptions(args: readonly string[]): Options {
  let values;
  try {
    ({ values } = parseArgs({
      args: [...args], strict: true, allowPositionals: false,
      options: { ray: { type: 'boolean' }, controls: { type: 'boolean' }, fairness: { type: 'boolean' }, scheduling: { type: 'boolean' }, rows: { type: 'string' }, runs: { type: 'string' }, seconds: { type: 'string' }, json: { type: 'string' }, profile: { type: 'string' }, help: { type: 'boolean', short: 'h' } },
    }));
  } catch (thrown) {
    throw new UsageError(thrown instanceof Error ? thrown.message : '');
  }
  if (values.help === true) throw new UsageError('');
  const number = (name: 'runs' | 'seconds', fallback: number, min: number, max: number): number => {
    const given = values[name];
    const value = given === undefined ? fallback : Number(given);
    if (!(value >= min && value <= max) || (name === 'runs' && !Number.isInteger(value))) throw new UsageError(`--${name} ${given ?? ''} is not a ${name === 'runs' ? 'whole ' : ''}number from ${min} to ${max}`);
    return value;
  };
  const filters = values.rows?.split('|').map((f) => f.trim()).filter((f) => f !== '');
  const noRows = values.scheduling === true && filters === undefined && values.ray !== true && values.controls !== true && values.fairness !== true;
  const wanted = (name: string): boolean => !noRows && (filters === undefined || filters.some((f) => name.includes(f)));
  if (!noRows && ![...ROWS.map((r) => r.name), ...SIZE_ROWS.map((r) => r.name)].some(wanted)) throw new UsageError(`no row's name contains '${values.rows ?? ''}'`);
  return {
    ray: values.ray === true, controls: values.controls === true, fairness: values.fairness === true, scheduling: values.scheduling === true, wanted, all: filters === undefined, runs: number('runs', 3, 1, 100), seconds: number('seconds', 2, 0.05, 60),
    json: resolve(values.json ?? fileURLToPath(new URL('./results/latest.json', import.meta.url))),
    nodeArgs: values.profile === undefined ? [] : ['--cpu-prof', `--cpu-prof-dir=${resolve(values.profile)}`],
  };
}

interface SizeRow {
  readonly name: string;
  readonly unit: string;
  readonly of: (sizes: Sizes) => number;
  readonly floor?: NonNullable<RowResult['floor']>;
}

export const SIZE_ROWS: readonly SizeRow[] = [
  { name: 'start to ready', unit: 'ms', of: (s) => s.readyMs, floor: { kind: 'most', value: 1_000 } },
  { name: 'idle cluster memory', unit: 'MiB', of: (s) => s.idleBytes / MIB, floor: { kind: 'part', value: 1 / 3 } },
  { name: 'idle cluster processor use', unit: '% of a core', of: (s) => s.idleCpus * 100 },
  { name: 'actor creation', unit: 'actors/s', of: (s) => s.actorsPerSecond, floor: { kind: 'ratio', value: 40 } },
  { name: 'memory per idle actor', unit: 'MiB', of: (s) => s.bytesPerActor / MIB, floor: { kind: 'part', value: 1 / 15 } },
  { name: '100,000 queued tasks, memory', unit: 'MiB', of: (s) => s.queuedBytes / MIB, floor: { kind: 'most', value: 512 } },
];

const note = (text: string): void => void process.stderr.write(`${text}\n`);
const reasonOf = (thrown: unknown): string => (thrown instanceof Error ? thrown.message : String(thrown)).slice(0, 300);

/** One row on Bulkhead, and beside every slice one of `ray` if there is one. */
async function measureRow(drivers: Drivers, row: Row, options: Options, ray: ((seconds: number) => Promise<number>) | undefined): Promise<RowResult> {
  const floor = row.floor === undefined ? {} : { floor: { kind: 'ratio', value: row.floor } as const };
  const result = { name: row.name, unit: row.unit, bulkhead: [] as number[], ray: [] as number[], ...floor };
  const failures: string[] = [];
  let rayRuns = ray;
  const raySlice = async (seconds: number, kept: boolean): Promise<void> => {
    try {
      const rate = await rayRuns?.(seconds);
      if (kept && rate !== undefined) result.ray.push(rate);
    } catch (thrown) {
      rayRuns = undefined;
      failures.push(`Ray: ${reasonOf(thrown)}`);
    }
  };
  let prepared: Awaited<ReturnType<Drivers['prepare']>> | undefined;
  try {
    if (row.missing !== undefined) throw new Error(row.missing);
    prepared = await drivers.prepare(row);
    await prepared.run(Math.min(WARM_UP_SECONDS, 2 * options.seconds));
  } catch (thrown) {
    failures.push(reasonOf(thrown));
    prepared = undefined;
  }
  await raySlice(Math.min(WARM_UP_SECONDS, 2 * options.seconds), false);
  for (let i = 0; i < options.runs; i++) {
    try {
      if (prepared !== undefined) result.bulkhead.push(await prepared.run(options.seconds));
    } catch (thrown) {
      failures.push(reasonOf(thrown));
      prepared = undefined;
    }
    await raySlice(options.seconds, true);
  }
  await drivers.renew();
  return failures.length === 0 ? result : { ...result, reason: failures.join('; ') };
}

async function rateRows(options: Options, python: string | undefined, report: (result: RowResult) => void): Promise<void> {
  const rows = ROWS.filter((row) => options.wanted(row.name));
  if (rows.length === 0) return;
  await using clusters = new AsyncDisposableStack();
  const started = new Map<number, Promise<Drivers>>();
  // Rows of several nodes have a cluster of their own, which idles while others are measured only if it is there already.
  const driversFor = ({ raylets = 1 }: Row): Promise<Drivers> => {
    let drivers = started.get(raylets);
    if (drivers === undefined) {
      drivers = startCluster({ nodeArgs: options.nodeArgs, ...(raylets === 1 ? {} : { raylets, cpus: 1 }) }).then((cluster) => clusters.use(new Drivers(clusters.use(cluster), options.nodeArgs)));
      started.set(raylets, drivers);
    }
    return drivers;
  };
  const done = new Set<string>();
  const wantedOfRay = rows.filter((row) => row.ray).map((row) => row.name);
  if (python !== undefined && wantedOfRay.length > 0) {
    const ray = new RayProcess(python, ['rows', JSON.stringify(wantedOfRay)]);
    try {
      for (;;) {
        const { row: name, done: over } = await ray.answer();
        if (over === true) break;
        const row = rows.find((r) => r.name === name);
        let failed = false;
        if (row !== undefined) {
          done.add(row.name);
          report(await measureRow(await driversFor(row), row, options, async (seconds) => {
            try {
              return (await ray.ask({ do: 'run', seconds })).rate ?? Number.NaN;
            } catch (thrown) {
              failed = true;
              throw thrown;
            }
          }));
        }
        // After an error Ray has gone on to its next row by itself.
        if (!failed) ray.tell({ do: 'next' });
      }
    } catch (thrown) {
      note(`Ray's rows ended early: ${reasonOf(thrown)}`);
    } finally {
      await ray.stop();
    }
  }
  for (const row of rows) {
    if (done.has(row.name)) continue;
    if (python !== undefined && row.name === 'client: get gigabytes') {
      let remote: Awaited<ReturnType<typeof rayClient>> | undefined;
      const starting = rayClient(python).then((started) => (remote = started));
      starting.catch(() => undefined);
      try {
        report(await measureRow(await driversFor(row), row, options, async (seconds) => (await starting).get(seconds)));
      } finally {
        await starting.catch(() => undefined);
        await remote?.stop();
      }
    } else report(await measureRow(await driversFor(row), row, options, undefined));
  }
}

async function sizeRows(options: Options, python: string | undefined, report: (result: RowResult) => void): Promise<void> {
  const rows = SIZE_ROWS.filter((row) => options.wanted(row.name));
  if (rows.length === 0) return;
  const bulkhead: Sizes[] = [];
  const ray: Sizes[] = [];
  let reason: string | undefined;
  for (let i = 0; i < options.runs && reason === undefined; i++) {
    try {
      bulkhead.push(await bulkheadSizes());
      if (python !== undefined) ray.push(await raySizes(python));
    } catch (thrown) {
      reason = reasonOf(thrown);
    }
  }
  for (const { name, unit, of, floor } of rows) report({ name, unit, bulkhead: bulkhead.map(of), ray: ray.map(of), ...(floor === undefined ? {} : { floor }), ...(reason === undefined ? {} : { reason }) });
}

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2));
  endOnSignals();
  const here = notedMachine(note);
  const python = options.ray ? await rayPython(note) : undefined;
  const results: RowResult[] = [];
  let controls: readonly ControlResult[] = [];
  let fairness: readonly FairnessResult[] = [];
  let scheduling: SchedulingResult | undefined;
  const write = (): void => {
    mkdirSync(dirname(options.json), { recursive: true });
    writeFileSync(options.json, `${JSON.stringify({ version: 1, machine: { ...here, loadAfter: loadavg()[0] }, ray: options.ray ? RAY_VERSION : null, runs: options.runs, seconds: options.seconds, rows: results.map((r) => ({ ...r, verdict: verdictOf(r) })), controls, fairness, scheduling }, null, 1)}\n`);
  };
  const report = (result: RowResult): void => {
    results.push(result);
    const [name, ours, theirs, unit, ratio, , verdict] = tableRows([result])[0] as string[];
    note(`  ${name}: ${ours} ${unit}${options.ray ? `, Ray ${theirs}, ratio ${ratio}` : ''} ${verdict}`);
    write();
  };
  await sizeRows(options, python, report);
  await rateRows(options, python, report);
  if (options.fairness) fairness = await measureFairness({ seconds: options.seconds, runs: options.runs, note });
  if (options.controls) controls = await measureControls({ seconds: options.seconds, runs: options.runs, note });
  if (options.scheduling) scheduling = measureScheduling({ runs: options.runs, note });
  write();
  if (results.length > 0) process.stdout.write(`${textTable(COLUMNS, tableRows(results))}\n`);
  if (controls.length > 0) process.stdout.write(`\n${textTable(['control', 'row', 'with', 'without', 'unit', 'cost'], controls.map((c) => [c.control, c.row, shown(c.with), shown(c.without), c.unit, c.cost]))}\n`);
  if (fairness.length > 0) process.stdout.write(`\n${textTable(['lone calls', 'beside', 'p50 alone', 'p50 beside', 'p99 alone', 'p99 beside', 'unit'], fairness.map((f) => [f.row, f.flood, shown(f.alone.p50Ms), shown(f.beside.p50Ms), shown(f.alone.p99Ms), shown(f.beside.p99Ms), 'ms']))}\n`);
  if (scheduling !== undefined) process.stdout.write(`\n${textTable(SCHEDULING_COLUMNS, schedulingRows(scheduling))}\n`);
  note(`written to ${options.json}`);
  if (results.some((r) => verdictOf(r) === 'FAIL')) process.exitCode = 1;
}

if (process.argv[1] !== undefined && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  main().catch((thrown: unknown) => {
    if (thrown instanceof UsageError) note(`${thrown.message === '' ? '' : `${thrown.message}\n`}${USAGE}`);
    else note(`the bench failed: ${thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown)}`);
    process.exit(thrown instanceof UsageError ? 2 : 1);
  });
}
