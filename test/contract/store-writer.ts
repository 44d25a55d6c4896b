/** Run as a process of its own by store.test.ts: writes numbered pairs of keys and reports each one that was acknowledged, until it is killed. */
import { writeSync } from 'node:fs';
import { SqliteStore } from '../../src/gcs/sqlite-store.ts';

const store = SqliteStore.open(process.argv[2] as string);
for (let i = 0; ; i++) {
  const value = new TextEncoder().encode(String(i));
  await store.txn([], [{ type: 'put', key: `a/${i}`, value }, { type: 'put', key: `b/${i}`, value }]);
  writeSync(1, `${i}\n`);
}
