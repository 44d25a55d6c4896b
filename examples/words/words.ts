/**
 * Counts words with nested tasks: `countAll` runs on the cluster and starts one task per text itself.
 * `split` returns two values under two refs, so that a caller can pass one on without fetching the other.
 */
import { get, task } from 'bulkhead/runtime';
import { addCounts, countWords, type Counts } from './counting.ts';

export { countWords, split } from './counting.ts';

/** A task that starts tasks: one for each text, in parallel where the cluster has room, and waits for them. */
export async function countAll(texts: string[]): Promise<Counts> {
  const count = task(countWords);
  return addCounts(await get(texts.map((text) => count(text))));
}
