/**
 * Waits for the end of the test process that started a cluster, by the end of a pipe from it; then stops the cluster and removes its
 * directory. A test that is killed leaves nothing behind. Must never: act while the pipe is open.
 */
import { rmSync } from 'node:fs';
import { stopCluster } from '../../src/cli/local-cluster.ts';

const [dataDir] = process.argv.slice(2);
if (dataDir === undefined) throw new Error('usage: cluster-guardian.ts DATA_DIR');
await stopCluster(`${dataDir}/cluster`);
rmSync(dataDir, { recursive: true, force: true });
