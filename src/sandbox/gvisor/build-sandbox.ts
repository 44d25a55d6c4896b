/**
 * The throw-away sandbox of one build of packages: started, seen to have its layers, ended and gone, whatever it does. It is no worker: it has no slots, no objects, no code and no place of the
 * host to write to. Must never: leave a process, a control group or a directory behind; go on when the signal says stop.
 */
import { BulkheadError } from '../../base/errors.ts';
import { MAX_ENVIRONMENT_BYTES, MAX_WHEEL_BYTES } from '../../base/limits.ts';
import { endGroup, type Cgroup } from '../jail/cgroup.ts';
import { killStrays } from '../jail/bubblewrap.ts';
import type { IndexBroker } from '../packages/index-broker.ts';
import { runBuild, type Built } from '../packages/package-build.ts';
import type { SandboxProcess } from './sandbox.ts';

/** Of /tmp, where the wheels and what is in them lie: in the sandbox's memory. */
export const BUILD_TMP_BYTES = MAX_ENVIRONMENT_BYTES + MAX_WHEEL_BYTES;
const MAX_SAID_CHARS = 2_000;

export interface BuildSandbox {
  readonly process: SandboxProcess;
  readonly cgroup: Cgroup;
  readonly directory: string;
  /** Throws when a layer is not seen. */
  checkLayers(): void;
}

export async function runInSandbox(sandbox: BuildSandbox, broker: IndexBroker, requirements: readonly string[], into: string, signal: AbortSignal, log: (said: string) => void): Promise<Built> {
  const { process, cgroup, directory } = sandbox;
  let said = '';
  for (const stream of [process.stdout, process.stderr]) {
    stream.on('error', () => undefined);
    stream.on('data', (chunk: Buffer) => {
      if (said.length < MAX_SAID_CHARS) said += chunk.toString('latin1').slice(0, MAX_SAID_CHARS - said.length);
    });
  }
  for (const channel of process.direct) channel.on('error', () => undefined);
  process.channel.on('error', () => undefined);
  const stop = (): void => {
    cgroup.killAll();
    process.monitor.kill('SIGKILL');
    process.channel.destroy();
  };
  try {
    if (signal.aborted) throw new BulkheadError('UNAVAILABLE', 'the build was stopped');
    signal.addEventListener('abort', stop);
    cgroup.add(process.pid);
    process.release();
    return await runBuild({ channel: process.channel, ready: () => sandbox.checkLayers() }, broker, requirements, into);
  } catch (thrown) {
    if (said !== '') log(said);
    if (cgroup.oomKills() > 0) throw new BulkheadError('ENVIRONMENT_FAILED', `the packages need more memory to install than a build has (${BUILD_TMP_BYTES} bytes of files)`, { cause: thrown });
    if (signal.aborted) throw new BulkheadError('ENVIRONMENT_FAILED', 'the packages were not installed in the time that a build has', { cause: thrown });
    throw thrown;
  } finally {
    signal.removeEventListener('abort', stop);
    stop();
    for (const stream of [process.stdout, process.stderr, ...process.direct]) stream.destroy();
    killStrays(directory);
    await endGroup(cgroup);
  }
}
