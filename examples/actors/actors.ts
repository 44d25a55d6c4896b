/** Actors that start again, share work and hand things on. Run: npx bulkhead run examples/actors/actors.ts */
import { connect } from 'bulkhead';
import { ActorPool } from 'bulkhead/actor-pool';
import { Queue } from 'bulkhead/queue';

await using cluster = await connect();
const shop = await cluster.module<typeof import('./shop.ts')>(new URL('./shop.ts', import.meta.url));

// When its process or node is lost it is made again for 'EUR', and calls that were under way are made again.
const till = await shop.Till.options({ maxRestarts: 3, maxTaskRetries: 3 }).create('EUR');
console.log('paid:', await cluster.get(till.pay(5)));
await cluster.kill(till, { noRestart: false });
console.log('paid after a restart:', await cluster.get(till.pay(1)));

// Ends itself, for good: whoever calls it later is told why.
till.close();
const late = await cluster.get(till.pay(1)).catch((error: unknown) => (error as { code?: string }).code);
console.log('after its end:', late);

// Two bakers, six loaves: each gets the next one when it is free.
const bakers = await Promise.all([shop.Baker.create(), shop.Baker.create()]);
const pool = new ActorPool(cluster, bakers);
const loaves: string[] = [];
for await (const loaf of pool.map((baker, name: string) => baker.bake(name), ['rye', 'oat', 'spelt', 'corn', 'wheat', 'millet'])) loaves.push(loaf);
console.log('loaves:', loaves.join('; '));

// A queue of at most two, between this program and a task.
const counter = await Queue.create<string>(cluster, { maxSize: 2 });
const served = shop.serve(counter.actor, loaves.length);
for (const loaf of loaves) await counter.put(loaf);
console.log('served:', (await cluster.get(served)).length);
