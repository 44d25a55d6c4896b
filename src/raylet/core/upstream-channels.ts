/**
 * Channels of this raylet to others, one for each node, job and principal, opened when first wanted. Must never: open one for a job that is not the
 * caller's.
 */
import type { Core } from './core.ts';
import { Upstream, type Job } from './state.ts';

/** The channel to a node for a job, opened when first wanted. */
export function upstreamTo(core: Core, nodeNumber: number, job: Job, asJob: boolean, depth: number): Upstream {
  const key = `${nodeNumber}|${job.id}|${asJob ? 1 : 0}`;
  const existing = core.upstreams.get(key);
  if (existing !== undefined && !existing.closed) return existing;
  const upstream = new Upstream(core.nextNumber(), nodeNumber, job, asJob);
  core.upstreams.set(key, upstream);
  core.upstreamsByNumber.set(upstream.number, upstream);
  core.out.push({ type: 'open-upstream', upstream, depth });
  return upstream;
}

/** At once, or when WELCOME has come. */
export function whenOpen(upstream: Upstream, act: () => void): void {
  if (upstream.prefix === undefined) upstream.deferred.push(act);
  else act();
}
