/** The smallest program: tasks in parallel, and an actor that keeps state. Run: npx bulkhead run examples/hello/hello.ts */
import { connect } from 'bulkhead';

await using cluster = await connect();
const code = await cluster.module<typeof import('./tasks.ts')>(new URL('./tasks.ts', import.meta.url));

const refs = [1, 2, 3, 4].map((n) => code.square(n));
console.log('squares:', await cluster.get(refs));

const cube = cluster.task((n: number) => n ** 3);
console.log('a cube:', await cluster.get(cube(3)));

const counter = await code.Counter.create();
for (const ref of refs) counter.add(ref);
console.log('sum of the squares:', await cluster.get(counter.add(0)));
