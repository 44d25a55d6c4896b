/** Counts the words of text files. Run: npx bulkhead run examples/words/driver.ts FILE… (default: the examples' README) */
import { readFileSync } from 'node:fs';
import { connect } from 'bulkhead';

const paths = process.argv.length > 2 ? process.argv.slice(2) : [new URL('../README.md', import.meta.url)];
const paragraphs = paths.flatMap((path) => readFileSync(path, 'utf8').split(/\n\s*\n/));

await using cluster = await connect();
const words = await cluster.module<typeof import('./words.ts')>(new URL('./words.ts', import.meta.url));

// `counts` never comes here: it goes from task to task as a ref.
const counts = words.countAll(paragraphs);
const [once, often] = words.split.options({ returns: 2 })(counts);
for (const [word, times] of (await cluster.get(often)).slice(0, 10)) console.log(String(times).padStart(5), word);
console.log(`${(await cluster.get(once)).length} words occur once`);
