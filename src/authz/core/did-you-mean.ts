/** The nearest known word to a misspelt one, for error messages. Never used to accept a word. */

function distance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      row.push(Math.min((previous[j] ?? 0) + 1, (row[j - 1] ?? 0) + 1, (previous[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1)));
    }
    previous = row;
  }
  return previous[b.length] ?? 0;
}

/** `; did you mean 'object.get'?`, or the whole vocabulary when nothing is near and it is short, or ''. */
export function hint(word: string, known: readonly string[]): string {
  if (word.length <= 64) {
    let best: string | undefined;
    let least = Math.max(2, Math.floor(word.length / 3)) + 1;
    for (const candidate of known) {
      const d = distance(word.toLowerCase(), candidate.toLowerCase());
      if (d < least) [best, least] = [candidate, d];
    }
    if (best !== undefined) return `; did you mean '${best}'?`;
  }
  return known.length <= 20 ? `; known are ${known.join(', ')}` : '';
}
