/** A raylet in miniature, run as a process of its own so that a test can kill it or run it as another user. Prints one JSON line. */
import { WorkerPool } from '../../src/sandbox/worker-pool.ts';
import { openProbes, TEST_PRELUDE } from './sandbox-fixture.ts';

const [runDir = '', nodeName = '', mode = '', insecure = ''] = process.argv.slice(2);
if (mode === 'as-nobody') {
  process.setgroups?.([]);
  process.setgid?.(65_534);
  process.setuid?.(65_534);
}
try {
  const pool = await WorkerPool.start({ runDir, warm: mode === 'as-nobody' ? 0 : 2, clusterName: 'test', nodeName, clock: { nowMs: Date.now, monotonicMs: () => performance.now() }, prelude: TEST_PRELUDE, insecureDev: insecure === '' ? [] : insecure.split(',') });
  const worker = await pool.acquire({ tenant: 'acme', memoryBytes: 64 * 2 ** 20, cpus: 1 });
  const [probe] = openProbes(worker, 1);
  const answer = await probe?.run('6 * 7');
  console.log(JSON.stringify({ pid: worker.pid, id: worker.id, answer, off: worker.layers.filter((layer) => !layer.on).map((layer) => layer.layer) }));
  if (mode === 'as-nobody') await pool.close();
  else probe?.send('for (;;);');
} catch (thrown) {
  console.log(JSON.stringify({ code: (thrown as { code?: string }).code, message: (thrown as Error).message }));
}
