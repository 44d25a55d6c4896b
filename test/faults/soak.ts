/**
 * `npm run soak -- --minutes N`: the mixed load of two tenants on a real cluster, and every few seconds what each process takes: memory (PSS), file
 * descriptors, control groups, octets on tmpfs. Writes the samples as JSON and draws them; exits with 1 when a line goes on rising or an answer was wrong.
 * Must never: judge the first third, in which caches and heaps fill.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { runDirectory } from '../../src/cli/leftovers.ts';
import { TestCluster } from '../support/cluster.ts';
import { errorsOf, TenantLoad } from '../support/tenant-load.ts';

const SAMPLE_MS = 4_000;
/** What a line may rise from the middle third to the last, beside a part of itself: heaps are collected when they please. */
const SLACK: Readonly<Record<Measure, { readonly part: number; readonly least: number }>> = {
  memoryMib: { part: 0.2, least: 24 }, descriptors: { part: 0.1, least: 12 }, groups: { part: 0.2, least: 4 }, tmpfsMib: { part: 0.3, least: 16 },
};
type Measure = 'memoryMib' | 'descriptors' | 'groups' | 'tmpfsMib';
const TITLES: Readonly<Record<Measure, string>> = { memoryMib: 'Memory (PSS), MiB', descriptors: 'File descriptors', groups: 'Control groups', tmpfsMib: 'tmpfs, MiB' };

interface Sample {
  readonly seconds: number;
  /** By line: a process, or all workers together. */
  readonly memoryMib: Record<string, number>;
  readonly descriptors: Record<string, number>;
  readonly groups: Record<string, number>;
  readonly tmpfsMib: Record<string, number>;
  readonly rounds: Record<string, number>;
}

function pssMib(pid: number): number {
  try {
    return Number(/^Pss:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, 'latin1'))?.[1] ?? 0) / 1_024;
  } catch {
    return 0;
  }
}

function descriptors(pid: number): number {
  try {
    return readdirSync(`/proc/${pid}/fd`).length;
  } catch {
    return 0;
  }
}

/** Octets below a directory; a file with several links counts once. */
function bytesBelow(path: string, seen = new Set<number>()): number {
  let bytes = 0;
  try {
    for (const entry of readdirSync(path, { withFileTypes: true })) {
      const below = join(path, entry.name);
      if (entry.isDirectory()) bytes += bytesBelow(below, seen);
      else if (entry.isFile()) {
        const { ino, blocks } = statSync(below);
        if (!seen.has(ino)) bytes += blocks * 512;
        seen.add(ino);
      }
    }
  } catch {
    // It went while we looked.
  }
  return bytes;
}

function groupsBelow(path: string): number {
  try {
    return readdirSync(path, { withFileTypes: true }).reduce((n, e) => (e.isDirectory() ? n + 1 + groupsBelow(join(path, e.name)) : n), 0);
  } catch {
    return 0;
  }
}

function sample(cluster: TestCluster, loads: readonly TenantLoad[], seconds: number): Sample {
  const memoryMib: Record<string, number> = {};
  const fds: Record<string, number> = {};
  const tmpfsMib: Record<string, number> = {};
  const processes: [string, number][] = [['head', cluster.headPid], ...cluster.nodes.map((n): [string, number] => [n.name, n.pid])];
  for (const [name, pid] of processes) {
    memoryMib[name] = pssMib(pid);
    fds[name] = descriptors(pid);
  }
  const own = new Set(processes.map(([, pid]) => pid));
  const workers = cluster.pids().filter((pid) => !own.has(pid));
  memoryMib['workers'] = workers.reduce((sum, pid) => sum + pssMib(pid), 0);
  fds['workers'] = workers.reduce((sum, pid) => sum + descriptors(pid), 0);
  for (const { name } of cluster.nodes) tmpfsMib[name] = bytesBelow(join(runDirectory(cluster.dataDir), name)) / 2 ** 20;
  const rounds = Object.fromEntries(loads.map((load) => [load.tenant, load.rounds]));
  return { seconds, memoryMib, descriptors: fds, groups: { all: cluster.controlGroups().reduce((n, path) => n + groupsBelow(path), 0) }, tmpfsMib, rounds };
}

const mean = (numbers: readonly number[]): number => numbers.reduce((a, b) => a + b, 0) / Math.max(1, numbers.length);

/** Lines that do not flatten: the last third lies above the middle one by more than chance. */
function rising(samples: readonly Sample[]): string[] {
  const third = Math.floor(samples.length / 3);
  if (third < 3) return ['the run was too short to say anything: at least ten samples are needed'];
  return (Object.keys(TITLES) as Measure[]).flatMap((measure) => Object.keys(samples.at(-1)?.[measure] ?? {}).flatMap((line) => {
    const of = (some: readonly Sample[]): number => mean(some.map((s) => s[measure][line] ?? 0));
    const middle = of(samples.slice(third, 2 * third));
    const last = of(samples.slice(2 * third));
    const { part, least } = SLACK[measure];
    return last - middle > Math.max(least, middle * part) ? [`${TITLES[measure]} of ${line}: ${middle.toFixed(1)} in the middle third, ${last.toFixed(1)} in the last`] : [];
  }));
}

const COLOURS = ['#1f77b4', '#d62728', '#2ca02c', '#9467bd', '#ff7f0e'];

function graph(samples: readonly Sample[], title: string): string {
  const width = 860;
  const height = 190;
  const left = 60;
  const plot = { width: 640, height: 130 };
  const end = Math.max(1, samples.at(-1)?.seconds ?? 1);
  const parts = (Object.keys(TITLES) as Measure[]).map((measure, row) => {
    const top = 40 + row * height;
    const lines = [...new Set(samples.flatMap((s) => Object.keys(s[measure])))];
    const most = Math.max(1, ...samples.flatMap((s) => Object.values(s[measure]))) * 1.1;
    const paths = lines.map((line, i) => {
      const points = samples.map((s) => `${(left + (s.seconds / end) * plot.width).toFixed(1)},${(top + 20 + plot.height * (1 - (s[measure][line] ?? 0) / most)).toFixed(1)}`);
      return `<polyline points="${points.join(' ')}" fill="none" stroke="${COLOURS[i % COLOURS.length]}" stroke-width="1.5"/><text x="${left + plot.width + 12}" y="${top + 34 + i * 18}" fill="${COLOURS[i % COLOURS.length]}">${line}: ${(samples.at(-1)?.[measure][line] ?? 0).toFixed(0)}</text>`;
    });
    return `<text x="${left}" y="${top + 10}" font-weight="bold">${TITLES[measure]}</text><rect x="${left}" y="${top + 20}" width="${plot.width}" height="${plot.height}" fill="none" stroke="#999"/><text x="${left - 8}" y="${top + 28}" text-anchor="end">${most.toFixed(0)}</text><text x="${left - 8}" y="${top + 20 + plot.height}" text-anchor="end">0</text>${paths.join('')}`;
  });
  const total = 60 + parts.length * height;
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${total}" font-family="sans-serif" font-size="12"><rect width="${width}" height="${total}" fill="#fff"/><text x="${left}" y="24" font-size="15">${title}</text>${parts.join('')}<text x="${left + plot.width}" y="${total - 12}" text-anchor="end">${(end / 60).toFixed(1)} minutes</text></svg>\n`;
}

async function main(): Promise<number> {
  const { values } = parseArgs({ options: { minutes: { type: 'string', default: '20' }, out: { type: 'string', default: '.soak' } } });
  const minutes = Number(values.minutes);
  if (!(minutes > 0 && minutes <= 24 * 60)) throw new Error('--minutes: a number above 0, at most 1440');
  const out = resolve(values.out);
  if (!existsSync(out)) mkdirSync(out, { recursive: true });
  await using cluster = await TestCluster.start({ raylets: 2, cpus: 2 });
  const acme: TenantLoad = TenantLoad.start(cluster, { tenant: 'acme', seed: 1, foreign: () => globex.lastPut, pauseMs: 100 });
  const globex: TenantLoad = TenantLoad.start(cluster, { tenant: 'globex', seed: 2, foreign: () => acme.lastPut, pauseMs: 100 });
  const loads = [acme, globex];
  await Promise.all(loads.map((load) => load.served(2)));
  const samples: Sample[] = [];
  const started = performance.now();
  while (performance.now() - started < minutes * 60_000) {
    samples.push(sample(cluster, loads, (performance.now() - started) / 1_000));
    await Promise.race([sleep(SAMPLE_MS), ...loads.map((load) => load.ended.then(() => Promise.reject(new Error(`the load of ${load.tenant} ended`))))]);
  }
  await Promise.all(loads.map((load) => load.stop()));
  const problems = [...rising(samples)];
  for (const load of loads) {
    problems.push(...load.wrong, ...(await load.audited()));
    const unexpected = [...load.errors.keys()].filter((key) => key !== 'foreign DENIED');
    if (unexpected.length > 0) problems.push(`${load.tenant}: ${errorsOf(load)}`);
  }
  problems.push(...cluster.faults());
  writeFileSync(join(out, 'soak.json'), `${JSON.stringify({ minutes, samples, problems })}\n`);
  const svg = join(out, 'soak.svg');
  writeFileSync(svg, graph(samples, `Two tenants, two raylets, ${minutes} minutes: ${loads.map((load) => `${load.tenant} ${load.rounds} rounds`).join(', ')}`));
  console.log(`${samples.length} samples in ${dirname(svg)}; ${loads.map((load) => `${load.tenant}: ${load.rounds} rounds, ${load.tasks.length} tasks, ${load.puts.length} puts`).join('; ')}`);
  for (const problem of problems) console.log(`PROBLEM ${problem}`);
  return problems.length === 0 ? 0 : 1;
}

process.exitCode = await main();
