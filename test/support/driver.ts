/** A driver program that tests start as a process of its own, to kill it. Prints one JSON line when its work is under way, then waits. */
import { connect } from '../../src/sdk/sdk.ts';

type Work = typeof import('./work.ts');

const cluster = await connect({ profile: process.env['TEST_PROFILE'] });
const work = await cluster.module<Work>(new URL('./work.ts', import.meta.url));
const counter = await work.Counter.options({ name: 'of-the-driver' }).create(0);
await cluster.get(counter.add(1));
const nested = work.spawnAndSleep.options({ name: 'with-children', cpus: 0.1 })(3, 600_000);
const tasks = Array.from({ length: 3 }, () => work.sleep.options({ name: 'of-the-driver', cpus: 0.1 })(600_000));
const kept = await cluster.put(new Uint8Array(3 * 2 ** 20));
await cluster.wait([kept], { count: 1, timeoutMs: 10_000 });
process.stdout.write(`${JSON.stringify({ job: cluster.jobId, node: cluster.nodeId, object: kept.id, actor: counter.id })}\n`);
await cluster.get([nested, ...tasks]);
