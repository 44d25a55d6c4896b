/**
 * The first tenant's program: 3 million flights, one task per row group, merged by tasks, with an actor that counts progress.
 * It reads the file and shows results; every decoding and every sum happens in the tenant's isolates on the cluster.
 *
 *   npx bulkhead run examples/flights/driver.ts --out DIR [--result-id-file FILE] [--hold]
 *
 * --out DIR              where `flights.svg` goes (default: the current directory)
 * --result-id-file FILE  writes the ids of the result and of the actor as JSON, for `intruder.ts` to try
 * --hold                 keeps result and actor alive until standard input ends, so that an intruder meets things that exist
 */
import { mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { connect, type ObjectRef } from 'bulkhead';
import { flightsChart } from './chart.ts';
import { airportCities, openFlights } from './data.ts';
import type { Delays } from './flights.ts';
import { airportRows, airportTable, hourRows, hourTable, period, whole } from './report.ts';

const POLL_MS = 200;

const { values: options } = parseArgs({ options: { out: { type: 'string', default: '.' }, 'result-id-file': { type: 'string' }, hold: { type: 'boolean', default: false } } });

await using cluster = await connect();
const flights = await cluster.module<typeof import('./flights.ts')>(new URL('./flights.ts', import.meta.url));

const file = openFlights();
const footer = await cluster.put(file.footer);
const rowGroups = await cluster.get(flights.rowGroupsOf(footer));
const rows = rowGroups.reduce((sum, group) => sum + group.rows, 0);
console.log(`${whole(rows)} flights in ${rowGroups.length} row groups; one task for each`);

const progress = await flights.Progress.options({ name: 'flights-progress' }).create();
const decode = flights.delaysOfRowGroup.options({ memory: '128MiB', timeoutMs: 120_000 });
const parts: ObjectRef<Delays>[] = [];
for (const group of rowGroups) {
  const bytes = await cluster.put(file.bytes(group.start, group.end));
  parts.push(decode(bytes, footer, group, progress));
}

// All merges are submitted now: a task whose arguments are refs starts when they are there.
let layer = parts;
while (layer.length > 1) {
  const pairs: ObjectRef<Delays>[] = [];
  for (let i = 0; i < layer.length; i += 2) {
    const [a, b] = [layer[i]!, layer[i + 1]];
    pairs.push(b === undefined ? a : flights.merge(a, b));
  }
  layer = pairs;
}
const total = layer[0];
if (total === undefined) throw new Error(`${file.path} has no row groups`);

const showProgress = progressLine(rowGroups.length, rows);
let finished = false;
for (let counted = 0; !finished || counted < rowGroups.length; ) {
  finished ||= (await cluster.wait([total], { count: 1, timeoutMs: POLL_MS })).ready.length > 0;
  const now = await cluster.get(progress.read());
  showProgress(now);
  counted = now.rowGroups;
}
const delays = await cluster.get(total);

const cities = airportCities();
console.log(`\nThe busiest airports, ${period(delays)}\n\n${airportTable(airportRows(delays, cities))}`);
console.log(`\nBy hour of departure (local time)\n\n${hourTable(hourRows(delays))}`);

const folder = resolve(options.out);
mkdirSync(folder, { recursive: true });
const chart = join(folder, 'flights.svg');
writeFileSync(chart, flightsChart(delays, cities));
console.log(`\nChart: ${chart}`);

if (options['result-id-file'] !== undefined) {
  // Renamed into place, so that whoever waits for the file never reads half of it.
  const target = resolve(options['result-id-file']);
  writeFileSync(`${target}.part`, `${JSON.stringify({ result: total.id, actor: progress.id, actorName: 'flights-progress', job: cluster.jobId })}\n`);
  renameSync(`${target}.part`, target);
}
if (options.hold) {
  for await (const _ of process.stdin) { /* whatever is typed, only the end counts */ }
  const still = await cluster.get(total);
  console.log(`\nThe result is still there for its owner: ${whole(still.rows)} flights`);
}

/** One line that is rewritten on a terminal; a line per change elsewhere. Standard error, so that results can be piped. */
function progressLine(groups: number, allRows: number): (now: { rowGroups: number; rows: number }) => void {
  let shown = -1;
  return (now) => {
    if (now.rowGroups === shown) return;
    shown = now.rowGroups;
    const line = `decoded ${now.rowGroups} of ${groups} row groups, ${whole(now.rows)} of ${whole(allRows)} flights`;
    if (process.stderr.isTTY) process.stderr.write(`\r\x1b[2K${line}${shown === groups ? '\n' : ''}`);
    else process.stderr.write(`${line}\n`);
  };
}
