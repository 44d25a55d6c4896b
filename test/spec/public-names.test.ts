/** The public names: adding one is a decision, removing one breaks programs. */
import { expect, it } from 'vitest';
import * as actorPool from '../../src/sdk/actor-pool.ts';
import * as queue from '../../src/sdk/queue.ts';
import * as runtime from '../../src/sdk/runtime.ts';
import * as sdk from '../../src/sdk/sdk.ts';

it('`bulkhead` exports these', () => {
  expect(Object.keys(sdk).sort()).toEqual(['ArrowTable', 'BulkheadError', 'Cluster', 'NdArray', 'ObjectRef', 'connect']);
});

it('`bulkhead/actor-pool` and `bulkhead/queue` export these', () => {
  expect([Object.keys(actorPool), Object.keys(queue).sort()]).toEqual([['ActorPool'], ['Queue', 'QueueActor']]);
});

it('`bulkhead/runtime` exports what bundles may import, and says that it needs a cluster elsewhere', () => {
  expect(Object.keys(runtime).filter((name) => !name.startsWith('RUNTIME_')).sort()).toEqual([...runtime.RUNTIME_EXPORTS].sort());
  expect(() => runtime.context()).toThrow(/inside tasks and actors only/);
});

it('a cluster has these methods', () => {
  expect(Object.getOwnPropertyNames(sdk.Cluster.prototype).sort()).toEqual(['actor', 'cancel', 'close', 'constructor', 'get', 'getPlacementGroup', 'jobId', 'kill', 'module', 'nodeId', 'placementGroup', 'put', 'python', 'pythonClass', 'ref', 'release', 'task', 'tenant', 'wait']);
  expect(Symbol.asyncDispose in sdk.Cluster.prototype).toBe(true);
});
