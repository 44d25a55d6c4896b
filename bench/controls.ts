/**
 * What each control costs: raylets put together from the real parts, one with everything and one each without mTLS, policy, audit or jail, run
 * side by side and measured in turn. The base is everything on.
 */
import { fork, type ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { startCluster, type BenchCluster } from './cluster.ts';
import type { ControlRayletConfig } from './control-raylet.ts';
import { Driver } from './drivers.ts';
import { owned } from './lifetimes.ts';
import { median } from './measure.ts';
import { shown } from './report.ts';

export interface ControlResult {
  readonly control: string;
  readonly row: string;
  readonly unit: string;
  readonly with: number;
  readonly without: number;
  /** Share of the rate that the control takes, or for a time what it adds. Negative: within the noise. */
  readonly cost: string;
}

const ROWS = ['single client tasks async', 'single client tasks sync', '1:1 actor calls async', 'single client put gigabytes'] as const;
const WITHOUT: readonly { readonly control: string; readonly off: Partial<ControlRayletConfig> }[] = [
  { control: 'everything on', off: {} },
  { control: 'mTLS', off: { tls: false } },
  { control: 'policy', off: { policy: false } },
  { control: 'audit', off: { audit: false } },
  { control: 'jail', off: { jail: false } },
];
const START_TIMEOUT_MS = 60_000;

interface Variant {
  readonly control: string;
  readonly driver: Driver;
  readonly workerStartMs: number;
  stop(): Promise<void>;
}

async function startVariant(cluster: BenchCluster, control: string, off: Partial<ControlRayletConfig>): Promise<Variant> {
  // The node's own certificate serves: what a real raylet shows.
  const config: ControlRayletConfig = { tls: true, policy: true, audit: true, jail: true, identity: join(cluster.directory, 'raylet-0', 'identity'), ...off };
  const child: ChildProcess = fork(fileURLToPath(new URL('./control-raylet.ts', import.meta.url)), { execArgv: [] });
  const end = async (): Promise<void> => {
    forget();
    if (child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    child.send('stop');
    const timer = setTimeout(() => child.kill('SIGKILL'), 10_000);
    await gone;
    clearTimeout(timer);
  };
  const forget = owned(end);
  try {
    const answer = new Promise<{ port?: number; workerStartMs?: number; error?: string }>((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`the raylet without ${control} did not start in ${START_TIMEOUT_MS / 1_000} s`)), START_TIMEOUT_MS);
      child.once('message', (message) => {
        clearTimeout(timer);
        resolve(message as object);
      });
      child.once('exit', (code) => {
        clearTimeout(timer);
        reject(new Error(`the raylet without ${control} exited with ${code}`));
      });
    });
    child.send(config);
    const { port, workerStartMs = Number.NaN, error } = await answer;
    if (error !== undefined) throw new Error(error);
    const driver = new Driver(cluster.profiles.acme, [], { BENCH_TARGET: `${config.tls ? 'https' : 'http'}://127.0.0.1:${port}` });
    return {
      control, driver, workerStartMs,
      async stop() {
        await driver.stop();
        await end();
      },
    };
  } catch (thrown) {
    await end();
    throw thrown;
  }
}

export async function measureControls(options: { readonly seconds: number; readonly runs: number; readonly note: (text: string) => void }): Promise<readonly ControlResult[]> {
  await using cluster = await startCluster();
  const variants: Variant[] = [];
  const results: ControlResult[] = [];
  try {
    for (const { control, off } of WITHOUT) variants.push(await startVariant(cluster, control, off));
    for (const row of ROWS) {
      const unit = row.includes('gigabytes') ? 'GB/s' : 'calls/s';
      const rates = variants.map((): number[] => []);
      for (const { driver } of variants) {
        await driver.ask({ do: 'prepare', row, index: 0, key: 'controls' });
        await driver.ask({ do: 'run', seconds: Math.min(1, options.seconds) });
      }
      for (let i = 0; i < options.runs; i++) for (const [n, { driver }] of variants.entries()) rates[n]?.push(await driver.ask({ do: 'run', seconds: options.seconds }));
      const base = rates[0] as number[];
      for (const [n, { control }] of variants.entries()) {
        if (n === 0) continue;
        const without = rates[n] as number[];
        // Run by run, as slices of one run see the same machine.
        const share = median(base.map((rate, i) => 1 - rate / (without[i] as number)));
        results.push({ control, row, unit, with: median(base), without: median(without), cost: `${(share * 100).toFixed(0)} %` });
        options.note(`  ${control} on '${row}': ${shown(median(base))} with, ${shown(median(without))} without`);
      }
    }
    const started = variants[0]?.workerStartMs ?? Number.NaN;
    const bare = variants.find((v) => v.control === 'jail')?.workerStartMs ?? Number.NaN;
    results.push({ control: 'jail', row: 'start of a worker process', unit: 'ms', with: started, without: bare, cost: `${(started - bare).toFixed(0)} ms` });
  } finally {
    for (const variant of variants) await variant.stop();
  }
  return results;
}
