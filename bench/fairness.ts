/**
 * What a neighbour costs: how long the lone calls of one tenant take, alone and beside another tenant's flood, slices of both in turn on one raylet.
 * Floods: frames (small puts without pause: nothing but the raylet's event loop) and tasks (which also want its CPUs, and the machine's).
 */
import { startCluster } from './cluster.ts';
import { Driver } from './drivers.ts';
import { median, type Latencies } from './measure.ts';
import { shown } from './report.ts';

export interface FairnessResult {
  readonly row: string;
  /** The row that the other tenant runs meanwhile. */
  readonly flood: string;
  readonly alone: Latencies;
  readonly beside: Latencies;
}

const LONE = ['single client tasks sync', '1:1 actor calls sync'] as const;
const FLOODS = ['single client put calls (Plasma Store)', 'single client tasks async'] as const;
const FLOOD_DRIVERS = 2;
/** The flood is under way before the first call that counts, and after the last. */
const MARGIN_SECONDS = 1;

function medians(slices: readonly Latencies[]): Latencies {
  return { calls: slices.reduce((sum, slice) => sum + slice.calls, 0), p50Ms: median(slices.map((slice) => slice.p50Ms)), p99Ms: median(slices.map((slice) => slice.p99Ms)) };
}

export async function measureFairness(options: { readonly seconds: number; readonly runs: number; readonly note: (text: string) => void }): Promise<readonly FairnessResult[]> {
  await using cluster = await startCluster();
  const results: FairnessResult[] = [];
  const started: Driver[] = [];
  const driver = (tenant: 'acme' | 'globex'): Driver => {
    const made = new Driver(cluster.profiles[tenant]);
    started.push(made);
    return made;
  };
  try {
    for (const row of LONE) {
      for (const flood of FLOODS) {
        const lone = driver('globex');
        const flooders = Array.from({ length: FLOOD_DRIVERS }, () => driver('acme'));
        for (const [index, each] of [lone, ...flooders].entries()) await each.ask({ do: 'prepare', row: each === lone ? row : flood, index, key: `${row} ${flood}` });
        await lone.loneCalls(Math.min(1, options.seconds));
        const alone: Latencies[] = [];
        const beside: Latencies[] = [];
        for (let i = 0; i < options.runs; i++) {
          alone.push(await lone.loneCalls(options.seconds));
          const flooding = Promise.all(flooders.map((each) => each.ask({ do: 'run', seconds: options.seconds + 2 * MARGIN_SECONDS })));
          await new Promise((resolve) => setTimeout(resolve, MARGIN_SECONDS * 1_000));
          beside.push(await lone.loneCalls(options.seconds));
          await flooding;
        }
        const result = { row, flood, alone: medians(alone), beside: medians(beside) };
        results.push(result);
        options.note(`  '${row}' beside '${flood}': p99 ${shown(result.alone.p99Ms)} ms alone, ${shown(result.beside.p99Ms)} ms beside it`);
        await Promise.all(started.splice(0).map((each) => each.stop()));
      }
    }
  } finally {
    await Promise.all(started.map((each) => each.stop()));
  }
  return results;
}
