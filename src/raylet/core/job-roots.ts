/**
 * Who wants a job on this node: a driver or a detached actor of it here, or another raylet, for as long as somebody wants the job there. Raylets of
 * one job are each other's clients, so each would be kept by the other when the drivers have left. Therefore each tells those where it has channels
 * of the job over which nodes it is wanted (ROOTS), from the one with the driver to itself: what leads through a node does not keep the job on it.
 * Where no such path is left the raylet lets its channels go, which ends those that were wanted only through it. Must never: end a job for what
 * another raylet has not said yet.
 */
import { OP, type FrameReader } from '../../base/frame.ts';
import { MAX_ROOT_NODES } from '../../base/limits.ts';
import type { Core } from './core.ts';
import { CHANNEL_KIND, type Actor, type Channel, type Job, type Upstream } from './state.ts';

const NOBODY: readonly number[] = [];

/** It keeps its job on this node. What another raylet had made here is kept by that one. */
export function keepsJob(actor: Actor): boolean {
  return actor.template.options.detached && actor.creation.channel.kind !== CHANNEL_KIND.PEER;
}

/** Over which nodes the job is wanted here, this one last; none: nobody wants it; undefined: some raylet has not said. */
function rootsOf(core: Core, job: Job): readonly number[] | undefined {
  const self = core.config.nodeNumber;
  for (const channel of job.channels) if (channel.kind === CHANNEL_KIND.DRIVER) return [self];
  for (const actor of job.actors) if (keepsJob(actor)) return [self];
  let shortest: readonly number[] | undefined;
  let unsaid = false;
  for (const { kind, roots } of job.channels) {
    if (kind !== CHANNEL_KIND.PEER) continue;
    if (roots === undefined) unsaid = true;
    else if (roots.length > 0 && !roots.includes(self) && (shortest === undefined || roots.length < shortest.length)) shortest = roots;
  }
  if (shortest !== undefined) return [...shortest.slice(1 - MAX_ROOT_NODES), self];
  return unsaid ? undefined : NOBODY;
}

function same(a: readonly number[] | undefined, b: readonly number[]): boolean {
  return a !== undefined && a.length === b.length && a.every((node, i) => node === b[i]);
}

/** Something has changed in who wants the job: the raylets where it has channels are told. True when nobody does any more. */
export function lookForRoots(core: Core, job: Job): boolean {
  const roots = rootsOf(core, job);
  if (roots === undefined || same(job.roots, roots)) return false;
  job.roots = roots;
  for (const upstream of core.upstreams.values()) if (upstream.job === job && upstream.prefix !== undefined) tellRoots(core, upstream);
  return roots.length === 0;
}

/** The first word on a channel, and whenever it changes. */
export function tellRoots(core: Core, upstream: Upstream): void {
  const { roots } = upstream.job;
  if (roots === undefined) return;
  upstream.out.begin(OP.ROOTS).u8(roots.length);
  for (const node of roots) upstream.out.u32(node);
  upstream.out.end();
  core.markUpstream(upstream, -1);
}

/** ROOTS: looked at when the step ends. */
export function onRoots(core: Core, channel: Channel, r: FrameReader): void {
  const roots: number[] = [];
  for (let n = r.u8(); n > 0; n--) roots.push(r.u32());
  r.finish();
  channel.roots = roots;
  core.rootsChanged.push(channel.job);
}

/** Nobody wants it here, or it is over: nothing more is asked of other raylets for it. */
export function isUnwanted(job: Job): boolean {
  return job.ended || job.stopped || job.roots?.length === 0;
}
