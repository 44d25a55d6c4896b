/**
 * The rows: the names of `ray microbenchmark` (Ray 2.60), what one step of each does on a Bulkhead cluster, and the floor of its ratio to Ray.
 * A row that cannot run says why; none is left out. Runs inside driver processes.
 */
import { randomUUID } from 'node:crypto';
import { availableParallelism } from 'node:os';
import type { Timed } from './measure.ts';
import type { ActorHandle, Cluster, ObjectRef, RemoteClass, RemoteModule } from '../src/sdk/sdk.ts';

type Workload = typeof import('./workload.ts');
export type Step = () => Promise<number | Timed>;

/** What a driver gives a row. */
export interface RowContext {
  readonly cluster: Cluster;
  readonly module: RemoteModule<Workload>;
  /** Of this driver among those of the row. */
  readonly index: number;
  /** The same in all drivers of one preparation. */
  readonly key: string;
}

export interface Row {
  /** As Ray prints it, or a name of our own where `ray` is false. */
  readonly name: string;
  readonly unit: 'calls/s' | 'items/s' | 'GB/s';
  /** Driver processes that run the step at once. */
  readonly drivers: number;
  /** Nodes that it needs; else one. They have a cpu each. */
  readonly raylets?: number;
  /** Whether the drivers belong to two tenants in turn; else to one. */
  readonly tenants?: 2;
  /** Whether `ray microbenchmark` has the row; `own`: it has not, and `ray_rows.py` does the same on Ray. */
  readonly ray: boolean | 'own';
  /** Least ratio to Ray. */
  readonly floor?: number;
  readonly prepare?: (context: RowContext) => Promise<Step>;
  /** Instead of `prepare`: why it cannot run yet. */
  readonly missing?: string;
}

const BATCH = 1_000;
/** Of one call; `ray_rows.py` has the same number. */
const STREAM_ITEMS = 10_000;
/** Ray's row uses 800 MiB; a rate in GB/s is the same from an eighth of it, and leaves the machine's memory alone. */
export const LARGE_BYTES = 100 * 2 ** 20;
const MULTI_LARGE_BYTES = 50 * 2 ** 20;
const MULTI_CLIENTS = 4;
/** Of Ray's row. */
const GROUPS = 100;
/** Ray's own choice. */
const ACTORS = Math.max(1, availableParallelism() >> 1);

type Calls = { readonly smallValue: () => ObjectRef; readonly smallValueArg: (x: never) => ObjectRef };

const times = <T>(n: number, make: (i: number) => T): T[] => Array.from({ length: n }, (_, i) => make(i));

function getSmall({ cluster }: RowContext): Promise<Step> {
  return cluster.put(0).then((value) => async () => {
    await cluster.get(value);
    return 1;
  });
}

/** A driver keeps small values that it has seen. A fresh ref by the id's text knows nothing of them, so that each get asks the raylet. */
function getFromRaylet(inFlight: number) {
  return async ({ cluster }: RowContext): Promise<Step> => {
    const { id } = await cluster.put(0);
    return async () => {
      await Promise.all(times(inFlight, () => cluster.get(cluster.ref(id))));
      return inFlight;
    };
  };
}

async function putSmall({ cluster }: RowContext): Promise<Step> {
  // A put is on its way when it returns. The answer about the last one, through a ref that knows nothing, says that the cluster has them all.
  return async () => {
    let last: ObjectRef<number> | undefined;
    for (let i = 0; i < BATCH; i++) last = await cluster.put(0);
    await cluster.get(cluster.ref((last as ObjectRef<number>).id));
    return BATCH;
  };
}

function putLarge(bytes: number) {
  return async ({ cluster }: RowContext): Promise<Step> => {
    const value = new Uint8Array(bytes);
    return async () => {
      const ref = await cluster.put(value);
      await cluster.wait([ref], { count: 1 });
      cluster.release(ref);
      return bytes / 1e9;
    };
  };
}

async function getLarge({ cluster }: RowContext): Promise<Step> {
  const ref = await cluster.put(new Uint8Array(LARGE_BYTES));
  return async () => {
    const value = await cluster.get(ref);
    return value.byteLength / 1e9;
  };
}

function taskBatch(count: (n: number) => number) {
  return async ({ cluster, module }: RowContext): Promise<Step> =>
    async () => {
      await cluster.get(times(BATCH, () => module.smallValue()));
      return count(BATCH);
    };
}

async function taskSync({ cluster, module }: RowContext): Promise<Step> {
  return async () => {
    await cluster.get(module.smallValue());
    return 1;
  };
}

async function wait1k({ cluster, module }: RowContext): Promise<Step> {
  return async () => {
    let pending: ObjectRef[] = times(BATCH, () => module.smallValue());
    while (pending.length > 0) pending = (await cluster.wait(pending, { count: 1 })).pending;
    return 1;
  };
}

async function nestedRefs({ cluster, module }: RowContext): Promise<Step> {
  const ref = module.manyRefs(10_000);
  await cluster.get(ref);
  return async () => {
    await cluster.get(ref);
    return 1;
  };
}

function actorOf(module: RemoteModule<Workload>, kind: 'Actor' | 'AsyncActor'): RemoteClass<new () => Calls> {
  return module[kind] as unknown as RemoteClass<new () => Calls>;
}

function actorSync(kind: 'Actor' | 'AsyncActor') {
  return async ({ cluster, module }: RowContext): Promise<Step> => {
    const actor = await actorOf(module, kind).create();
    return async () => {
      await cluster.get(actor.smallValue());
      return 1;
    };
  };
}

/** `count` actors of this driver in turn. */
function actorBatch(kind: 'Actor' | 'AsyncActor', { count = 1, batch = BATCH, withArg = false, maxConcurrency = 1 }: { count?: number; batch?: number; withArg?: boolean; maxConcurrency?: number } = {}) {
  return async ({ cluster, module }: RowContext): Promise<Step> => {
    const of = maxConcurrency === 1 ? actorOf(module, kind) : actorOf(module, kind).options({ maxConcurrency });
    const actors = await Promise.all(times(count, () => of.create()));
    return async () => {
      await cluster.get(times(batch * count, (i) => {
        const actor = actors[i % count] as ActorHandle<Calls>;
        return withArg ? actor.smallValueArg(i as never) : actor.smallValue();
      }));
      return batch * count;
    };
  };
}

/** Actors that all drivers share, by name. */
function sharedActors(kind: 'Actor' | 'AsyncActor', batch: number) {
  return async ({ cluster, module, key }: RowContext): Promise<Step> => {
    const actors = await Promise.all(times(ACTORS, (i) => actorOf(module, kind).options({ name: `bench-${key}-${i}`, getIfExists: true }).create()));
    return async () => {
      await cluster.get(times(batch, (i) => (actors[i % ACTORS] as ActorHandle<Calls>).smallValue()));
      return batch;
    };
  };
}

/** Each driver has an actor of its own and one argument that it put. */
async function actorsWithArg({ cluster, module }: RowContext): Promise<Step> {
  const actor = await actorOf(module, 'Actor').create();
  return async () => {
    const x = await cluster.put(0);
    await cluster.get(times(BATCH, () => actor.smallValueArg(x as never)));
    return BATCH;
  };
}

/** Every item by its ref, while the call goes on. */
async function streamItems({ cluster, module }: RowContext): Promise<Step> {
  return async () => {
    let items = 0;
    for await (const ref of module.smallValues(STREAM_ITEMS)) {
      await cluster.get(ref);
      items++;
    }
    return items;
  };
}

async function putInTasks({ cluster, module }: RowContext): Promise<Step> {
  return async () => {
    await cluster.get(times(10, () => module.putSmall(100)));
    return 1_000;
  };
}

/** As many as Ray's row makes at once, each of one small bundle: there, then gone. */
async function placementGroups({ cluster }: RowContext): Promise<Step> {
  return async () => {
    const groups = times(GROUPS, () => cluster.placementGroup([{ cpus: 0.001 }]));
    const { pending } = await cluster.wait(groups.map((group) => group.ready()), { count: GROUPS, timeoutMs: 30_000 });
    if (pending.length > 0) throw new Error(`${pending.length} placement groups did not come`);
    await Promise.all(groups.map((group) => group.remove()));
    return GROUPS;
  };
}

/** Nodes of the cluster, one of which the driver is connected to, and which has the object. */
const BROADCAST_NODES = 4;

/** From a task's submission on each of the other nodes until all of them have read a fresh object; putting it does not count. */
async function broadcast({ cluster, module }: RowContext): Promise<Step> {
  const others = times(BROADCAST_NODES, (i) => `node-${i + 1}`).filter((node) => node !== cluster.nodeId);
  const readers = others.map((node) => module.size.options({ nodeAffinity: node, memory: '1GiB' }));
  await cluster.get(readers.map((read) => read(new Uint8Array(1))));
  const bytes = new Uint8Array(LARGE_BYTES);
  return async () => {
    const ref = await cluster.put(bytes);
    await cluster.wait([ref]);
    const start = performance.now();
    const sizes = await cluster.get(readers.map((read) => read(ref)));
    const ms = performance.now() - start;
    if (sizes.some((size) => size !== LARGE_BYTES)) throw new Error('a node has read something else');
    cluster.release(ref);
    return { done: (others.length * LARGE_BYTES) / 1e9, ms };
  };
}

const calls = 'calls/s';
const one = { unit: calls, drivers: 1, ray: true } as const;
const many = { unit: calls, drivers: MULTI_CLIENTS, ray: true } as const;

/** In the order in which Ray runs them. */
export const ROWS: readonly Row[] = [
  { ...one, name: 'single client get calls (Plasma Store)', floor: 3, prepare: getSmall },
  { ...one, name: 'single client put calls (Plasma Store)', floor: 10, prepare: putSmall },
  { ...many, name: 'multi client put calls (Plasma Store)', prepare: putSmall },
  { ...one, name: 'single client put gigabytes', unit: 'GB/s', prepare: putLarge(LARGE_BYTES) },
  { ...one, name: 'single client tasks and get batch', floor: 20, prepare: taskBatch(() => 1) },
  { ...many, name: 'multi client put gigabytes', unit: 'GB/s', prepare: putLarge(MULTI_LARGE_BYTES) },
  { ...one, name: 'single client get object containing 10k refs', floor: 3, prepare: nestedRefs },
  { ...one, name: 'single client wait 1k refs', floor: 15, prepare: wait1k },
  { ...one, name: 'single client tasks sync', floor: 2.5, prepare: taskSync },
  { ...one, name: 'single client tasks async', floor: 20, prepare: taskBatch((n) => n) },
  { ...many, name: 'multi client tasks async', floor: 10, prepare: taskBatch((n) => n) },
  { ...one, name: '1:1 actor calls sync', floor: 1.5, prepare: actorSync('Actor') },
  { ...one, name: '1:1 actor calls async', floor: 8, prepare: actorBatch('Actor') },
  { ...one, name: '1:1 actor calls concurrent', floor: 8, prepare: actorBatch('Actor', { maxConcurrency: 16 }) },
  { ...one, name: '1:n actor calls async', floor: 8, prepare: actorBatch('Actor', { count: ACTORS, batch: 5_000 }) },
  { ...many, name: 'n:n actor calls async', floor: 8, prepare: sharedActors('Actor', 5_000) },
  { ...one, name: 'n:n actor calls with arg async', drivers: ACTORS, prepare: actorsWithArg },
  { ...one, name: '1:1 async-actor calls sync', prepare: actorSync('AsyncActor') },
  { ...one, name: '1:1 async-actor calls async', prepare: actorBatch('AsyncActor', { maxConcurrency: 1_000 }) },
  { ...one, name: '1:1 async-actor calls with args async', prepare: actorBatch('AsyncActor', { maxConcurrency: 1_000, withArg: true }) },
  { ...one, name: '1:n async-actor calls async', prepare: actorBatch('AsyncActor', { maxConcurrency: 1_000, count: ACTORS, batch: 5_000 }) },
  { ...many, name: 'n:n async-actor calls async', prepare: sharedActors('AsyncActor', 5_000) },
  { ...one, name: 'placement group create/removal', floor: 2.5, prepare: placementGroups },
  { ...one, name: 'client: get calls', prepare: getSmall },
  { ...one, name: 'client: put calls', prepare: putSmall },
  { ...one, name: 'client: put gigabytes', unit: 'GB/s', floor: 2, prepare: putLarge(LARGE_BYTES) },
  { ...one, name: 'client: tasks and put batch', prepare: putInTasks },
  { ...one, name: 'client: 1:1 actor calls sync', prepare: actorSync('Actor') },
  { ...one, name: 'client: 1:1 actor calls async', prepare: actorBatch('Actor') },
  { ...one, name: 'client: 1:1 actor calls concurrent', prepare: actorBatch('Actor', { maxConcurrency: 16 }) },
  { ...one, name: 'client: tasks and get batch', prepare: taskBatch(() => 1) },
  // Not in Ray's list.
  { ...one, name: 'single client streaming generator items', unit: 'items/s', ray: 'own', floor: 5, prepare: streamItems },
  { ...one, name: 'broadcast of 100 MB to 3 raylets', unit: 'GB/s', ray: 'own', raylets: BROADCAST_NODES, floor: 0.5, prepare: broadcast },
  { ...one, name: 'client: get gigabytes', unit: 'GB/s', ray: false, floor: 2, prepare: getLarge },
  { ...one, name: 'single client get calls, from the raylet', ray: false, prepare: getFromRaylet(1) },
  { ...one, name: 'single client get calls, from the raylet, 1000 in flight', ray: false, prepare: getFromRaylet(BATCH) },
  { ...many, name: 'multi client tasks async, two tenants', ray: false, tenants: 2, prepare: taskBatch((n) => n) },
];

export function rowNamed(name: string): Row {
  const row = ROWS.find((r) => r.name === name);
  if (row === undefined) throw new Error(`there is no row '${name}'`);
  return row;
}

export const preparationKey = (): string => randomUUID().slice(0, 8);
