/** The thread of src/sdk/job-outcome.ts: closes jobs at the head over connections of its own while the process that had them ends. */
import { workerData } from 'node:worker_threads';
import { Sessions } from '../rpc/generated/bulkhead/v1/head_pb.js';
import { client } from '../rpc/rpc.ts';
import { openHead } from './head-client.ts';
import type { LastWords } from './job-outcome.ts';

const CLOSE_TIMEOUT_MS = 4_500;

const { done, words } = workerData as LastWords;
await Promise.allSettled(words.map(async ({ profile, address, jobId, sessionId, outcome, message }) => {
  const head = await openHead({ profile, address });
  try {
    await client(Sessions, head.channel).close({ jobId, sessionId, outcome, message }, { timeoutMs: CLOSE_TIMEOUT_MS });
  } finally {
    await head.close();
  }
}));
Atomics.store(done, 0, 1);
Atomics.notify(done, 0);
