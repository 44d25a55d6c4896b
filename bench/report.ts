/** What the bench prints and writes: one line a row with medians, ratio, floor and verdict. No measuring here. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { cpus, loadavg, release, totalmem } from 'node:os';
import { median } from './measure.ts';
import type { SchedulingResult } from './scheduling.ts';

export interface RowResult {
  readonly name: string;
  readonly unit: string;
  /** One value a run. Missing where the row could not run, for the reason in `reason`. */
  readonly bulkhead: readonly number[];
  readonly ray: readonly number[];
  readonly reason?: string;
  /** Least (or, for costs, greatest) ratio to Ray; or a bound of its own. */
  readonly floor?: Floor;
}

/** `ratio`: Bulkhead over Ray at least. `part`: Bulkhead over Ray at most. `most`: Bulkhead at most, in the row's unit. */
export type Floor = { readonly kind: 'ratio' | 'part' | 'most'; readonly value: number };

export type Verdict = 'PASS' | 'FAIL' | '';

/** Slices of one run lie side by side in time, so that the median of their ratios is steadier than the ratio of medians. */
export function ratioOf(result: RowResult): number {
  const pairs = Math.min(result.bulkhead.length, result.ray.length);
  return median(Array.from({ length: pairs }, (_, i) => (result.bulkhead[i] as number) / (result.ray[i] as number)));
}

export function verdictOf(result: RowResult): Verdict {
  const { floor } = result;
  if (floor === undefined || result.bulkhead.length === 0) return '';
  if (floor.kind === 'most') return median(result.bulkhead) <= floor.value ? 'PASS' : 'FAIL';
  const ratio = ratioOf(result);
  if (Number.isNaN(ratio)) return '';
  return (floor.kind === 'ratio' ? ratio >= floor.value : ratio <= floor.value) ? 'PASS' : 'FAIL';
}

export function shown(value: number): string {
  if (Number.isNaN(value)) return '-';
  if (value >= 1_000) return Math.round(value).toLocaleString('en-US');
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

function floorText(floor: Floor | undefined): string {
  if (floor === undefined) return '';
  if (floor.kind === 'most') return `≤ ${floor.value.toLocaleString('en-US')}`;
  return floor.kind === 'ratio' ? `≥ ${floor.value}` : `≤ 1/${Math.round(1 / floor.value)}`;
}

function ratioText(result: RowResult): string {
  const ratio = ratioOf(result);
  if (Number.isNaN(ratio)) return '-';
  return result.floor?.kind === 'part' ? `1/${shown(1 / ratio)}` : shown(ratio);
}

export function tableRows(results: readonly RowResult[]): string[][] {
  return results.map((r) => [r.name, shown(median(r.bulkhead)), shown(median(r.ray)), r.unit, ratioText(r), floorText(r.floor), r.reason === undefined ? verdictOf(r) : `not run: ${r.reason}`]);
}

export const SCHEDULING_COLUMNS = ['tasks that wait', 'nodes', 'µs a task'] as const;

export function schedulingRows({ byQueued, byNodes }: SchedulingResult): string[][] {
  return [...byQueued, ...byNodes].map(({ queued, nodes, micros }) => [queued.toLocaleString('en-US'), nodes.toLocaleString('en-US'), shown(micros)]);
}

export const COLUMNS = ['row', 'Bulkhead', 'Ray', 'unit', 'ratio', 'floor', ''] as const;

export function textTable(columns: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = columns.map((name, i) => Math.max(name.length, ...rows.map((row) => (i === columns.length - 1 ? 0 : (row[i] ?? '').length))));
  const line = (cells: readonly string[]): string => cells.map((cell, i) => (i === 0 || i === cells.length - 1 || columns[i] === 'unit' ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0))).join('  ').trimEnd();
  return [line(columns), line(widths.map((w) => '-'.repeat(w))), ...rows.map(line)].join('\n');
}

export function markdownTable(columns: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]): string => `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
  return [line(columns), line(columns.map((_, i) => (i === 0 ? '---' : '---:'))), ...rows.map(line)].join('\n');
}

export interface Machine {
  readonly processor: string;
  readonly cores: number;
  readonly memoryGiB: number;
  readonly kernel: string;
  readonly node: string;
  readonly commit: string;
  readonly loadBefore: number;
}

/** Looks at the machine, and tells of it. */
export function notedMachine(note: (text: string) => void): Machine {
  const here = machine();
  note(`${here.cores} × ${here.processor}, ${here.memoryGiB} GiB, Linux ${here.kernel}, Node ${here.node}, load ${here.loadBefore}`);
  if (here.loadBefore > 0.5) note('the machine is not quiet: compare ratios, not rates');
  return here;
}

function machine(): Machine {
  let commit = '';
  try {
    commit = execFileSync('git', ['rev-parse', '--short', 'HEAD'], { cwd: new URL('..', import.meta.url), encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  } catch {
    // A package has no repository.
  }
  const model = /^model name\s*:\s*(.+)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? 'unknown';
  return { processor: model, cores: cpus().length, memoryGiB: Math.round(totalmem() / 2 ** 30), kernel: release(), node: process.version, commit, loadBefore: Math.round((loadavg()[0] ?? 0) * 100) / 100 };
}
