/**
 * Placement groups as programs hold them: resources that are reserved together, on nodes chosen by a strategy. Runs in drivers and in isolates.
 * Must never: say that a group is there before the cluster has said so.
 */
import { BulkheadError } from '../base/errors.ts';
import { quote } from '../base/ids.ts';
import { parseSelector } from '../base/labels.ts';
import { MAX_BUNDLES_PER_GROUP } from '../base/limits.ts';
import { parseMemory, parseUnits } from '../base/resources.ts';
import { ObjectRef } from './object-ref.ts';
import type { LabelSelector } from './options.ts';

/** What one bundle holds, on one node. */
export interface PlacementBundle {
  readonly cpus?: number;
  /** Bytes, or text such as '64MiB'. */
  readonly memory?: number | string;
  readonly resources?: Readonly<Record<string, number>>;
  /** Labels that its node must have. */
  readonly labels?: LabelSelector;
}

export interface PlacementGroupOptions {
  /** PACK (default): on as few nodes as can be; SPREAD: on as many; STRICT_PACK: on one; STRICT_SPREAD: each on a node of its own. */
  readonly strategy?: 'PACK' | 'SPREAD' | 'STRICT_PACK' | 'STRICT_SPREAD';
  /** Found again with `cluster.getPlacementGroup(name)`. */
  readonly name?: string;
  /** `'detached'`: lives on when its job ends, until it is removed; needs a name. */
  readonly lifetime?: 'job' | 'detached';
}

/** The part of ClientCore that groups need. */
export interface GroupClient {
  createGroup(json: string): ObjectRef;
  removeGroup(id: string): Promise<void>;
  refOf(id: string): ObjectRef;
  wait(refs: readonly ObjectRef[], count: number, timeoutMs: number | undefined): Promise<readonly number[]>;
}

export class PlacementGroup implements AsyncDisposable {
  readonly #client: GroupClient;
  readonly #ready: ObjectRef;
  readonly id: string;
  readonly strategy: string;
  /** Amounts, as the cluster has them. */
  readonly bundles: readonly PlacementBundle[];

  /** Made by `placementGroup` and `getPlacementGroup`. */
  constructor(client: GroupClient, ready: ObjectRef, strategy: string, bundles: readonly PlacementBundle[]) {
    this.#client = client;
    this.#ready = ready;
    this.id = ready.id;
    this.strategy = strategy;
    this.bundles = bundles;
  }

  /** A ref that has its value (null) when all bundles are reserved; it fails with why the group cannot be. */
  ready(): ObjectRef<null> {
    return this.#ready as ObjectRef<null>;
  }

  /** Whether it is there within the time. */
  async wait(timeoutMs?: number): Promise<boolean> {
    return (await this.#client.wait([this.#ready], 1, timeoutMs)).length > 0;
  }

  /** Gives the bundles back; what still runs in them ends. */
  async remove(): Promise<void> {
    await this.#client.removeGroup(this.id);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.remove();
  }

  toJSON(): never {
    throw new BulkheadError('INVALID_ARGUMENT', 'a PlacementGroup does not become JSON: pass group.id on, and use it as the option placementGroup');
  }
}

function refuse(what: string): never {
  throw new BulkheadError('INVALID_ARGUMENT', `placementGroup: ${what}`);
}

function wireBundle(bundle: unknown, i: number): Record<string, unknown> {
  if (typeof bundle !== 'object' || bundle === null || Array.isArray(bundle)) return refuse(`bundle ${i} must be an object such as { cpus: 1 }`);
  const { cpus, memory, resources, labels, ...more } = bundle as Record<string, unknown>;
  const [unknown] = Object.keys(more);
  if (unknown !== undefined) refuse(`bundle ${i} has no ${quote(unknown)}: a bundle has cpus, memory, resources and labels`);
  if (cpus !== undefined) parseUnits('cpus', cpus);
  if (labels !== undefined) parseSelector(labels);
  return { ...(cpus === undefined ? {} : { cpus }), ...(memory === undefined ? {} : { memoryBytes: parseMemory(memory) }), ...(resources === undefined ? {} : { resources }), ...(labels === undefined ? {} : { labels }) };
}

/** Asks for a group; it is there when `ready()` is. */
export function placementGroup(client: GroupClient, bundles: readonly PlacementBundle[], options: PlacementGroupOptions = {}): PlacementGroup {
  if (!Array.isArray(bundles) || bundles.length < 1 || bundles.length > MAX_BUNDLES_PER_GROUP) refuse(`give a list of 1 to ${MAX_BUNDLES_PER_GROUP} bundles`);
  const { strategy = 'PACK', name, lifetime = 'job', ...more } = options;
  const [unknown] = Object.keys(more);
  if (unknown !== undefined) refuse(`there is no option ${quote(unknown)}: the options are lifetime, name, strategy`);
  if (!['PACK', 'SPREAD', 'STRICT_PACK', 'STRICT_SPREAD'].includes(strategy)) refuse(`strategy ${quote(String(strategy))} is none of PACK, SPREAD, STRICT_PACK, STRICT_SPREAD`);
  if (lifetime !== 'job' && lifetime !== 'detached') refuse("lifetime is 'job' or 'detached'");
  const ready = client.createGroup(JSON.stringify({ strategy, bundles: bundles.map(wireBundle), ...(name === undefined ? {} : { name }), ...(lifetime === 'detached' ? { detached: true } : {}) }));
  return new PlacementGroup(client, ready, strategy, [...bundles]);
}

/** From what a look-up by name brought. */
export function foundGroup(client: GroupClient, found: { readonly id: string; readonly strategy: string; readonly bundles: readonly { readonly cpus: number; readonly memoryBytes: number; readonly resources?: Readonly<Record<string, number>> }[] }): PlacementGroup {
  return new PlacementGroup(client, client.refOf(found.id), found.strategy, found.bundles.map(({ cpus, memoryBytes, resources }) => ({ cpus, memory: memoryBytes, ...(resources === undefined ? {} : { resources }) })));
}
