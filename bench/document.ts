/** Writes the results of a bench run (its JSON) into docs/PERFORMANCE.md, between the markers. `node bench/document.ts [results/latest.json]` */
import { readFileSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { ControlResult } from './controls.ts';
import { COLUMNS, markdownTable, shown, tableRows, type Machine, type RowResult } from './report.ts';

const BEGIN = '<!-- results: written by bench/document.ts -->';
const END = '<!-- end of results -->';

export interface ResultsFile {
  readonly machine: Machine & { readonly loadAfter: number };
  readonly ray: string | null;
  readonly runs: number;
  readonly seconds: number;
  readonly rows: readonly RowResult[];
  readonly controls: readonly ControlResult[];
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

export function withResults(page: string, text: string): string {
  const from = page.indexOf(BEGIN);
  const to = page.indexOf(END);
  if (from < 0 || to < from) throw new Error(`the page has no place for results: the lines '${BEGIN}' and '${END}'`);
  return `${page.slice(0, from + BEGIN.length)}\n\n${text}\n\n${page.slice(to)}`;
}

if (process.argv[1] !== undefined && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const page = fileURLToPath(new URL('../docs/PERFORMANCE.md', import.meta.url));
  const file = process.argv[2] ?? fileURLToPath(new URL('./results/latest.json', import.meta.url));
  writeFileSync(page, withResults(readFileSync(page, 'utf8'), resultsText(JSON.parse(readFileSync(file, 'utf8')) as ResultsFile)));
}
