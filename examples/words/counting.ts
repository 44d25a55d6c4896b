/** Counting words: plain functions that run anywhere; `words.ts` makes tasks of them. */

export type Counts = Map<string, number>;

export function countWords(text: string): Counts {
  const counts: Counts = new Map();
  for (const [word] of text.toLowerCase().matchAll(/\p{L}+(?:['’]\p{L}+)*/gu)) counts.set(word, (counts.get(word) ?? 0) + 1);
  return counts;
}

export function addCounts(parts: Counts[]): Counts {
  const sum: Counts = new Map();
  for (const part of parts) for (const [word, n] of part) sum.set(word, (sum.get(word) ?? 0) + n);
  return sum;
}

/** Two returns: the words that occur once, and the others with the most frequent first. */
export function split(counts: Counts): [once: string[], often: [word: string, times: number][]] {
  const once = Array.from(counts).flatMap(([word, times]) => (times === 1 ? [word] : [])).sort();
  const often = Array.from(counts).filter(([, times]) => times > 1).sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1));
  return [once, often];
}
