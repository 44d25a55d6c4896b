/** `bulkhead down`: stops the cluster of this machine and shows that nothing is left. */
import { existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { BulkheadError } from '../../base/errors.ts';
import { adminProfile, headDirectory } from '../leftovers.ts';
import { stopCluster } from '../local-cluster.ts';
import type { Terminal } from '../terminal.ts';
import { unlinkDefaultProfile } from './up.ts';

export async function down(terminal: Terminal, { dataDir, purge }: { readonly dataDir: string; readonly purge: boolean }): Promise<void> {
  const result = await terminal.progress('stopping', stopCluster(dataDir));
  if (purge) {
    // Only what a cluster made is deleted, whatever directory was named.
    if (existsSync(dataDir) && !existsSync(headDirectory(dataDir)) && !existsSync(join(dataDir, 'logs', 'head.log'))) throw new BulkheadError('INVALID_ARGUMENT', `${dataDir} is not the data directory of a cluster; nothing was deleted`);
    unlinkDefaultProfile(adminProfile(dataDir));
    rmSync(dataDir, { recursive: true, force: true });
  }
  terminal.answer({ stopped: result?.stopped ?? 0, killed: result?.killed ?? 0, purged: purge, dataDir });
  if (result === undefined) terminal.say(`no cluster runs in ${dataDir}`);
  else terminal.say(`stopped ${result.stopped} process${result.stopped === 1 ? '' : 'es'}${result.killed > 0 ? ` (${result.killed} by force)` : ''}; no process, control group or shared memory is left`);
  if (purge) terminal.say(`deleted ${dataDir}`);
}
