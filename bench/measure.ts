/** Stopwatch and scales of the bench: rates over bounded slices, medians, and the memory of process trees as /proc tells it. */
import { readdirSync, readFileSync } from 'node:fs';

/** A step that had to prepare something first: how many operations it was, and how long those took. */
export interface Timed {
  readonly done: number;
  readonly ms: number;
}

/** Operations a second over one slice of `seconds`; at least one step, the last one whole. A step says how many operations it was; what it does not count is left out of the time. */
export async function sliceRate(step: () => Promise<number | Timed>, seconds: number): Promise<number> {
  const start = performance.now();
  let done = 0;
  let besideMs = 0;
  for (;;) {
    const before = performance.now();
    const took = await step();
    if (typeof took === 'number') done += took;
    else {
      done += took.done;
      besideMs += performance.now() - before - took.ms;
    }
    const elapsedMs = performance.now() - start - besideMs;
    if (elapsedMs >= seconds * 1_000) return (done / elapsedMs) * 1_000;
  }
}

export interface Latencies {
  readonly calls: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
}

/** One step after the other for `seconds`: how long they took. */
export async function latencies(step: () => Promise<unknown>, seconds: number): Promise<Latencies> {
  const times: number[] = [];
  for (const start = performance.now(); performance.now() - start < seconds * 1_000; ) {
    const before = performance.now();
    await step();
    times.push(performance.now() - before);
  }
  times.sort((a, b) => a - b);
  const at = (quantile: number): number => times[Math.min(times.length - 1, Math.floor(times.length * quantile))] ?? Number.NaN;
  return { calls: times.length, p50Ms: at(0.5), p99Ms: at(0.99) };
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  if (sorted.length === 0) return Number.NaN;
  return sorted.length % 2 === 1 ? (sorted[middle] as number) : ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2;
}

/** Pid and pids of all descendants, one look at /proc. */
export function processTree(...roots: readonly number[]): number[] {
  const children = new Map<number, number[]>();
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const stat = readFileSync(`/proc/${name}/stat`, 'utf8');
      // The command name may hold spaces and brackets: fields count from its last bracket.
      const parent = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]);
      children.set(parent, [...(children.get(parent) ?? []), Number(name)]);
    } catch {
      // It ended meanwhile.
    }
  }
  const found: number[] = [];
  const open = [...roots];
  for (let pid = open.pop(); pid !== undefined; pid = open.pop()) {
    if (found.includes(pid)) continue;
    found.push(pid);
    open.push(...(children.get(pid) ?? []));
  }
  return found;
}

/** Proportional set size of the processes in bytes: memory that several share counts once in the sum. */
export function proportionalBytes(pids: readonly number[]): number {
  let total = 0;
  for (const pid of pids) {
    try {
      const kib = /^Pss:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8'))?.[1];
      total += Number(kib ?? 0) * 1_024;
    } catch {
      // It ended meanwhile.
    }
  }
  return total;
}

/** Processor seconds that the processes have used so far. */
export function processorSeconds(pids: readonly number[]): number {
  let ticks = 0;
  for (const pid of pids) {
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      ticks += Number(fields[11]) + Number(fields[12]);
    } catch {
      // It ended meanwhile.
    }
  }
  return ticks / 100;
}

export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
