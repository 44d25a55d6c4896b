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
import { graph, rising, type Sample } from '../support/soak-samples.ts';
import { errorsOf, TenantLoad } from '../support/tenant-load.ts';

const SAMPLE_MS = 4_000;
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
