/** Writes the results of a bench run (its JSON) into docs/PERFORMANCE.md, between the markers, what it did not measure left as it was; and draws docs/scheduling.svg. `node bench/document.ts [results/latest.json]` */
import { readFileSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { ControlResult } from './controls.ts';
import type { SchedulingResult } from './scheduling.ts';
import { schedulingCurve } from './curve.ts';
import { COLUMNS, markdownTable, SCHEDULING_COLUMNS, schedulingRows, shown, tableRows, type Machine, type RowResult } from './report.ts';

type Place = 'results' | 'scheduling' | 'python';

export interface ResultsFile {
  readonly machine: Machine & { readonly loadAfter: number };
  readonly ray: string | null;
  readonly runs: number;
  readonly seconds: number;
  readonly rows: readonly RowResult[];
  readonly controls: readonly ControlResult[];
  readonly scheduling?: SchedulingResult;
  /** Rows of `npm run bench:python`, which have a place of their own. */
  readonly python?: true;
}

export function resultsText({ machine, ray, runs, seconds, rows, controls }: ResultsFile): string {
  const parts = [
    `${machine.cores} × ${machine.processor}, ${machine.memoryGiB} GiB, Linux ${machine.kernel}, Node ${machine.node}, ${ray === null ? 'without Ray' : `Ray ${ray}`}; commit ${machine.commit}; median of ${runs}, slices of ${seconds} s; ` +
      `load average ${shown(machine.loadBefore)} before and ${shown(machine.loadAfter)} after.`,
    markdownTable(COLUMNS.map((name) => (name === '' ? 'verdict' : name)), tableRows(rows)),
  ];
  if (controls.length > 0) {
    parts.push('What each control costs (share of the rate, or time added; negative or a few per cent: within the noise of the machine):');
    parts.push(markdownTable(['control', 'row', 'with', 'without', 'unit', 'cost'], controls.map((c) => [c.control, c.row, shown(c.with), shown(c.without), c.unit, c.cost])));
  }
  return parts.join('\n\n');
}

export function schedulingText({ machine, runs }: ResultsFile, scheduling: SchedulingResult): string {
  return [
    `${machine.processor}, Node ${machine.node}; commit ${machine.commit}; median of ${runs}; load average ${shown(machine.loadBefore)} before and ${shown(machine.loadAfter)} after. ` +
      'A task that another node runs is forwarded, which takes more than handing it to a worker here: hence the step from one node to ten.',
    '![What the core of a raylet takes for a task](scheduling.svg)', markdownTable(SCHEDULING_COLUMNS, schedulingRows(scheduling)),
  ].join('\n\n');
}

export function withResults(page: string, text: string, place: Place = 'results'): string {
  const begin = `<!-- ${place}: written by bench/document.ts -->`;
  const end = `<!-- end of ${place} -->`;
  const from = page.indexOf(begin);
  const to = page.indexOf(end);
  if (from < 0 || to < from) throw new Error(`the page has no place for ${place}: the lines '${begin}' and '${end}'`);
  return `${page.slice(0, from + begin.length)}\n\n${text}\n\n${page.slice(to)}`;
}

if (process.argv[1] !== undefined && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const page = fileURLToPath(new URL('../docs/PERFORMANCE.md', import.meta.url));
  const file = process.argv[2] ?? fileURLToPath(new URL('./results/latest.json', import.meta.url));
  const results = JSON.parse(readFileSync(file, 'utf8')) as ResultsFile;
  let text = readFileSync(page, 'utf8');
  if (results.rows.length > 0) text = withResults(text, resultsText(results), results.python === true ? 'python' : 'results');
  if (results.scheduling !== undefined) {
    text = withResults(text, schedulingText(results, results.scheduling), 'scheduling');
    writeFileSync(fileURLToPath(new URL('../docs/scheduling.svg', import.meta.url)), schedulingCurve(results.scheduling));
  }
  writeFileSync(page, text);
}
