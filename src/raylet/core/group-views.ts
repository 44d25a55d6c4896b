/**
 * What this raylet knows of the groups that its calls are to run in: its own, and, as their raylets tell it, those that others coordinate. Must
 * never: let one principal's calls use what another's were told, or trust a raylet with more than its own groups.
 */
import { isErrorCode } from '../../base/errors.ts';
import { OBJECT_ID_BYTES, hex } from '../../base/ids.ts';
import { OP, type FrameReader } from '../../base/frame.ts';
import { MAX_BUNDLES_PER_GROUP, MAX_ERROR_MESSAGE_CHARS, MAX_GROUP_JSON_BYTES } from '../../base/limits.ts';
import { fits, type ResourceVector } from '../../base/resources.ts';
import { idWord, type Core } from './core.ts';
import type { LabelSelector } from '../../base/labels.ts';
import { parseResources } from './function-options.ts';
import type { Failure, Job, Upstream } from './state.ts';
import { askRemote } from './upstreams.ts';
import { upstreamTo } from './upstream-channels.ts';

export interface GroupBundle {
  readonly resources: ResourceVector;
  readonly labels: LabelSelector;
  /** Number of the node that holds it; 0: none yet. */
  node: number;
}

/** What those who use a group need to know of it, whoever coordinates it. */
export interface GroupView {
  readonly bundles: readonly GroupBundle[];
  /** Nothing can be in it any more. */
  readonly failure: Failure | undefined;
}

export const REMOVED: Failure = { code: 'CANCELLED', message: 'its placement group was removed', stack: '' };

export function idFromHex(text: string): Uint8Array {
  const id = new Uint8Array(OBJECT_ID_BYTES);
  for (let i = 0; i < OBJECT_ID_BYTES; i++) id[i] = Number.parseInt(text.slice(2 * i, 2 * i + 2), 16);
  return id;
}

export class RemoteGroup implements GroupView {
  readonly id: string;
  readonly upstream: Upstream;
  bundles: GroupBundle[] = [];
  failure: Failure | undefined = undefined;
  /** Another raylet can take its raylet's place. */
  kept = false;

  constructor(id: string, upstream: Upstream) {
    this.id = id;
    this.upstream = upstream;
  }
}

const GONE: Failure = { code: 'UNAVAILABLE', message: 'the node that coordinates the placement group cannot be reached; a detached one is taken over when the principal that made it looks it up by its name', stack: '' };

function keyOf(id: string, job: Job, asJob: boolean): string {
  return `${id}|${job.id}|${asJob ? 1 : 0}`;
}

/** The group as calls of a job see it; without bundles while its raylet has not answered. */
export function viewOf(core: Core, given: string, job: Job, asJob: boolean): GroupView {
  const id = core.groupNow(given);
  const bytes = idFromHex(id);
  const node = idWord(bytes, 4);
  if (node === core.config.nodeNumber) {
    const own = core.groups.get(id);
    return own !== undefined && own.job.tenant === job.tenant ? own : { bundles: [], failure: REMOVED };
  }
  const key = keyOf(id, job, asJob);
  const known = core.groupViews.get(key);
  if (known !== undefined) return known;
  if (!core.nodes.has(node) || !core.reachable(node)) return { bundles: [], failure: GONE };
  const upstream = upstreamTo(core, node, job, asJob, 0);
  const view = new RemoteGroup(id, upstream);
  core.groupViews.set(key, view);
  askRemote(core, upstream, -1, (out, number) => out.begin(OP.WATCH_GROUP).u32(number).raw(bytes), (failure) => {
    if (failure !== undefined) end(core, view, failure);
  });
  return view;
}

/** Whether there is such a group, as far as is known here. */
export function groupKnown(core: Core, id: string, job: Job, asJob: boolean): boolean {
  const now = core.groupNow(id);
  return core.groups.has(now) || core.groupViews.has(keyOf(now, job, asJob));
}

/** Its calls end, and whoever comes next asks anew. */
function end(core: Core, view: RemoteGroup, failure: Failure): void {
  view.failure = failure;
  const { job, asJob } = view.upstream;
  core.groupViews.delete(keyOf(view.id, job, asJob));
  core.endedGroups.push({ tenant: job.tenant, group: view.id, failure });
}

/** The raylet that coordinates a group says where it is. Throws what is malformed: the connection ends. */
export function onGroupState(core: Core, upstream: Upstream, reader: FrameReader): void {
  const id = hex(reader.id());
  const said = JSON.parse(reader.text(MAX_GROUP_JSON_BYTES)) as { bundles?: unknown; kept?: unknown; failure?: { code?: unknown; message?: unknown } };
  const view = core.groupViews.get(keyOf(id, upstream.job, upstream.asJob));
  if (view === undefined || view.upstream !== upstream) return;
  if (said.failure !== undefined) {
    const { code, message } = said.failure;
    return end(core, view, { code: typeof code === 'string' && isErrorCode(code) ? code : 'INTERNAL', message: typeof message === 'string' ? message.slice(0, MAX_ERROR_MESSAGE_CHARS) : '', stack: '' });
  }
  if (!Array.isArray(said.bundles) || said.bundles.length > MAX_BUNDLES_PER_GROUP) throw new Error('a placement group without bundles from another raylet');
  view.kept = said.kept === true;
  view.bundles = said.bundles.map((bundle: unknown) => {
    const { node, ...given } = bundle as Record<string, unknown>;
    if (typeof node !== 'number' || !Number.isInteger(node) || node < 0 || node > 0xffff_ffff) throw new Error('a bundle without a node from another raylet');
    return { resources: parseResources(given), labels: [], node };
  });
}

/** What waits for a place in it ends; actors in it stay where the group itself may: its bundles are others', or it is taken over. */
export function viewsUpstreamClosed(core: Core, upstream: Upstream): void {
  for (const view of [...core.groupViews.values()]) {
    if (view.upstream !== upstream) continue;
    if (view.kept) core.groupViews.delete(keyOf(view.id, upstream.job, upstream.asJob));
    else end(core, view, GONE);
  }
}

/** Why a request can never be met in a group; undefined: it can. */
export function misfit(bundles: readonly GroupBundle[], index: number, wanted: ResourceVector): Failure | undefined {
  if (index >= bundles.length) return { code: 'INVALID_ARGUMENT', message: `bundleIndex ${index} is out of range: the placement group has ${bundles.length} bundles`, stack: '' };
  if (bundles.some(({ resources }, i) => (index < 0 || i === index) && fits(wanted, resources))) return undefined;
  return { code: 'INVALID_ARGUMENT', message: `${index < 0 ? 'no bundle of the placement group holds' : `bundle ${index} of the placement group does not hold`} what the call asks for`, stack: '' };
}
