/** Streams, tries and keys of tasks. Run: npx bulkhead run examples/tasks/tasks.ts */
import { connect } from 'bulkhead';

await using cluster = await connect();
const shop = await cluster.module<typeof import('./orders.ts')>(new URL('./orders.ts', import.meta.url));

// Refs of the items, as they come; leaving the loop ends the call.
for await (const ref of shop.orders(1_000_000)) {
  const { number, amount } = await cluster.get(ref);
  console.log(`order ${number}: ${amount}`);
  if (number === 3) break;
}

// The items themselves, with at most 100 of them on their way.
let sum = 0;
for await (const { amount } of shop.orders.options({ streamItems: 100 })(1_000).values()) sum += amount;
console.log('sum:', sum);
console.log('with tax, by tasks:', await cluster.get(shop.total(100)));

// Tried again when what it throws is of this class, after 10 ms, then 20.
console.log('flaky:', await cluster.get(shop.flaky.options({ retryOn: ['NotYet'], retryDelayMs: 10 })()));

// Submitted twice, run once.
const charge = shop.charge.options({ idempotencyKey: 'order-17' });
const [first, second] = await cluster.get([charge(250), charge(250)]);
console.log('charged once:', first === second);
