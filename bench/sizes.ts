/** Rows that `ray microbenchmark` does not have: start to ready, memory at rest, actors' creation and memory, large values through Ray Client. */
import { startCluster } from './cluster.ts';
import { Driver } from './drivers.ts';
import { median, processorSeconds, processTree, proportionalBytes, sleep } from './measure.ts';
import { RayProcess } from './ray.ts';
import { LARGE_BYTES } from './rows.ts';

/** As many actors as an answer in a few seconds allows on either side. */
const ACTORS = 200;
const RAY_ACTORS = 20;
const SETTLE_MS = 2_000;
const IDLE_WATCH_MS = 3_000;

export interface Sizes {
  readonly readyMs: number;
  readonly idleBytes: number;
  /** Processors busy at rest, 1 = one whole processor. */
  readonly idleCpus: number;
  readonly actorsPerSecond: number;
  readonly bytesPerActor: number;
}

const LOWER: readonly (keyof Sizes)[] = ['readyMs', 'idleBytes', 'idleCpus', 'actorsPerSecond', 'bytesPerActor'];

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
    return { readyMs: cluster.readyMs, idleBytes, idleCpus: idle, actorsPerSecond, bytesPerActor };
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
    return { readyMs, idleBytes, idleCpus: idle, actorsPerSecond: rate, bytesPerActor: (proportionalBytes(tree()) - idleBytes) / actors };
  } finally {
    await ray.stop();
  }
}

/** GB/s of large values that a Ray Client gets from its cluster; a row's slices. */
export async function rayClient(python: string): Promise<{ get(seconds: number): Promise<number>; stop(): Promise<void> }> {
  const ray = new RayProcess(python, ['extras']);
  try {
    await ray.ask({ do: 'client', bytes: LARGE_BYTES });
    return { get: async (seconds) => (await ray.ask({ do: 'get', seconds })).rate ?? Number.NaN, stop: () => ray.stop() };
  } catch (thrown) {
    await ray.stop();
    throw thrown;
  }
}
