/** Rows that `ray microbenchmark` does not have: start to ready, memory at rest, actors' creation and memory, large values through Ray Client. */
import { startCluster, type BenchCluster } from './cluster.ts';
import { Driver } from './drivers.ts';
import { median, processorSeconds, processTree, proportionalBytes, sleep } from './measure.ts';
import { RayProcess } from './ray.ts';
import { LARGE_BYTES } from './rows.ts';

/** As many actors as an answer in a few seconds allows on either side. */
const ACTORS = 200;
const RAY_ACTORS = 20;
/** Tasks that wait behind some that keep the cpus for so long. */
const QUEUED = 100_000;
const BLOCK_MS = 20_000;
const SETTLE_MS = 2_000;
const IDLE_WATCH_MS = 3_000;

export interface Sizes {
  readonly readyMs: number;
  readonly idleBytes: number;
  /** Processors busy at rest, 1 = one whole processor. */
  readonly idleCpus: number;
  readonly actorsPerSecond: number;
  readonly bytesPerActor: number;
  /** What cluster and driver grow by when so many tasks wait. */
  readonly queuedBytes: number;
}

const LOWER: readonly (keyof Sizes)[] = ['readyMs', 'idleBytes', 'idleCpus', 'actorsPerSecond', 'bytesPerActor', 'queuedBytes'];

export function medianSizes(all: readonly Sizes[]): Sizes {
  return Object.fromEntries(LOWER.map((key) => [key, median(all.map((s) => s[key]))])) as unknown as Sizes;
}

async function idleCpus(pids: readonly number[]): Promise<number> {
  const before = processorSeconds(pids);
  await sleep(IDLE_WATCH_MS);
  return (processorSeconds(pids) - before) / (IDLE_WATCH_MS / 1_000);
}

export async function bulkheadSizes(actors = ACTORS): Promise<Sizes> {
  await using cluster = await startCluster();
  const tree = (): number[] => processTree(cluster.headPid, ...cluster.rayletPids);
  await sleep(SETTLE_MS);
  const idleBytes = proportionalBytes(tree());
  const idle = await idleCpus(tree());
  const driver = new Driver(cluster.profiles.acme);
  try {
    // The tenant has its worker process and the code is there, as in the Ray cluster that has run a task.
    await driver.ask({ do: 'create-actors', count: 1 });
    await sleep(SETTLE_MS);
    const before = proportionalBytes(tree());
    const actorsPerSecond = await driver.ask({ do: 'create-actors', count: actors });
    await sleep(SETTLE_MS);
    const bytesPerActor = (proportionalBytes(tree()) - before) / actors;
    await driver.stop();
    return { readyMs: cluster.readyMs, idleBytes, idleCpus: idle, actorsPerSecond, bytesPerActor, queuedBytes: await queuedBytes(cluster, tree) };
  } finally {
    await driver.stop();
  }
}

/** Submitted by a driver of its own, whose memory counts too: in Ray the queue is there. All of them are run in the end. */
async function queuedBytes(cluster: BenchCluster, tree: () => number[]): Promise<number> {
  const driver = new Driver(cluster.profiles.acme);
  try {
    await driver.ask({ do: 'queue', count: 0, blockers: 2, ms: 1 });
    await driver.ask({ do: 'queue', count: 0, blockers: 2, ms: BLOCK_MS });
    await sleep(SETTLE_MS);
    const before = proportionalBytes([...tree(), driver.pid]);
    await driver.ask({ do: 'queue', count: QUEUED, blockers: 0, ms: 0 });
    await sleep(SETTLE_MS);
    const bytes = proportionalBytes([...tree(), driver.pid]) - before;
    await driver.ask({ do: 'drain' });
    return bytes;
  } finally {
    await driver.stop();
  }
}

export async function raySizes(python: string, actors = RAY_ACTORS): Promise<Sizes> {
  const ray = new RayProcess(python, ['extras']);
  try {
    const { readyMs = Number.NaN } = await ray.ask({ do: 'init' });
    // Without the driver, which is the user's program.
    const tree = (): number[] => processTree(ray.pid).filter((pid) => pid !== ray.pid);
    await sleep(SETTLE_MS * 2);
    const idleBytes = proportionalBytes(tree());
    const idle = await idleCpus(tree());
    const { rate = Number.NaN } = await ray.ask({ do: 'actors', count: actors });
    await sleep(SETTLE_MS);
    const bytesPerActor = (proportionalBytes(tree()) - idleBytes) / actors;
    await ray.ask({ do: 'drop' });
    await ray.ask({ do: 'block', seconds: (4 * BLOCK_MS) / 1_000 });
    await sleep(SETTLE_MS);
    const before = proportionalBytes([...tree(), ray.pid]);
    await ray.ask({ do: 'queue', count: QUEUED });
    await sleep(SETTLE_MS);
    return { readyMs, idleBytes, idleCpus: idle, actorsPerSecond: rate, bytesPerActor, queuedBytes: proportionalBytes([...tree(), ray.pid]) - before };
  } finally {
    await ray.stop();
  }
}

/** GB/s of large values that a Ray Client gets from its cluster; a row's slices. Its server, or the process of both, ended at its start in one run of ten: it may try again. */
export async function rayClient(python: string, tries = 2): Promise<{ get(seconds: number): Promise<number>; stop(): Promise<void> }> {
  const ray = new RayProcess(python, ['extras']);
  try {
    await ray.ask({ do: 'client', bytes: LARGE_BYTES });
    await ray.ask({ do: 'get', seconds: 0.1 });
    return { get: async (seconds) => (await ray.ask({ do: 'get', seconds })).rate ?? Number.NaN, stop: () => ray.stop() };
  } catch (thrown) {
    await ray.stop();
    if (tries <= 1) throw thrown;
    return rayClient(python, tries - 1);
  }
}
