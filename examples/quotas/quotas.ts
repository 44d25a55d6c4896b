/**
 * Projects and priorities. Run as a developer of a tenant whose administrator has said
 * `npx bulkhead tenant quota TENANT/reports cpus=1,priority=10`: npx bulkhead run examples/quotas/quotas.ts
 */
import { connect } from 'bulkhead';

await using cluster = await connect({ project: 'reports' });

const work = cluster.task((name: string) => `${name} done`, { priority: -10 });
const urgent = cluster.task((name: string) => `${name} done`, { priority: 10 });

// Tasks of the project run on one cpu; what is urgent goes before what waits.
const background = Array.from({ length: 5 }, (_, i) => work(`background ${i + 1}`));
console.log(await cluster.get(urgent('urgent')));
for (const line of await cluster.get(background)) console.log(line);

// More than the administrator allows is refused, and says who can change that.
try {
  await cluster.get(cluster.task(() => 'never', { priority: 11 })());
} catch (error) {
  console.log((error as { code: string }).code);
}
