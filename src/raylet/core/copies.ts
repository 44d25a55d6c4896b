/**
 * A value that its owner sends us to another raylet for (broadcast.ts is the other end): fetched there on a channel that is for this and nothing else, whole or not at all,
 * and compared with the size and digest that the owner said. Must never: take the other raylet's word for anything; leave the owner without ours, since whoever else waits
 * for the object waits for that; go on waiting for one that sends nothing, or hardly anything.
 */
import { OP, type FrameReader } from '../../base/frame.ts';
import { COPY_BYTES_PER_SECOND, COPY_STALL_MS, MAX_DETOURS, MAX_OBJECT_BYTES } from '../../base/limits.ts';
import { COPY_OUTCOME, TICKET_BYTES } from './broadcast.ts';
import type { Core } from './core.ts';
import { isUnwanted } from './job-roots.ts';
import { giveMemory } from './memory-books.ts';
import { Upstream, type Job, type UpstreamRequest } from './state.ts';
import { whenOpen } from './upstream-channels.ts';

/** Where it is answered how a transfer ended: at its owner. */
export function tellOwner(core: Core, upstream: Upstream, request: UpstreamRequest, outcome: number): void {
  const owner = request.copyOf?.upstream ?? upstream;
  if (owner.closed) return;
  owner.out.begin(OP.COPIED).u32((request.copyOf?.request ?? request).number).u8(outcome).end();
  core.markUpstream(owner, -1);
}

/** A channel to another raylet for copies. One of its own: what goes wrong on it ends nothing else, and raylets of one job that serve each other do not keep each other's channels open. */
function copyChannel(core: Core, nodeNumber: number, job: Job, asJob: boolean): Upstream {
  const key = `${nodeNumber}|${job.id}|${asJob ? 1 : 0}|copies`;
  const existing = core.upstreams.get(key);
  if (existing !== undefined && !existing.closed) return existing;
  const upstream = new Upstream(core.nextNumber(), nodeNumber, job, asJob, true);
  core.upstreams.set(key, upstream);
  core.upstreamsByNumber.set(upstream.number, upstream);
  core.copyChannels.add(upstream);
  core.out.push({ type: 'open-upstream', upstream, depth: 0 });
  return upstream;
}

function closeIfIdle(core: Core, upstream: Upstream): void {
  if (!upstream.copies || upstream.closed || upstream.requests.size > 0) return;
  forgetCopyChannel(core, upstream);
  core.out.push({ type: 'close-upstream', upstream });
}

function forgetCopyChannel(core: Core, upstream: Upstream): void {
  upstream.closed = true;
  upstream.deferred = [];
  for (const [key, value] of core.upstreams) if (value === upstream) core.upstreams.delete(key);
  core.upstreamsByNumber.delete(upstream.number);
  core.copyChannels.delete(upstream);
}

/** VALUE_ELSEWHERE: another raylet has it for us. */
export function onElsewhere(core: Core, upstream: Upstream, reader: FrameReader): void {
  const request = upstream.requests.get(reader.u32());
  const position = reader.u32();
  const nodeNumber = reader.u32();
  const ticket = reader.raw(TICKET_BYTES).slice();
  const size = reader.u64();
  const digest = reader.raw(32).slice();
  if (request === undefined) return;
  const [id] = request.ids;
  if (!request.fetch || id === undefined || position !== 0 || request.upload !== undefined || request.elsewhere !== undefined || size === 0 || size > MAX_OBJECT_BYTES || ++request.detours > MAX_DETOURS) throw new Error('a way to a value that was not asked for');
  const { job } = upstream;
  if (nodeNumber === core.config.nodeNumber || !core.nodes.has(nodeNumber) || !core.reachable(nodeNumber) || !core.jobs.has(job.id) || isUnwanted(job)) return tellOwner(core, upstream, request, COPY_OUTCOME.LET_DOWN);
  const other = copyChannel(core, nodeNumber, job, upstream.asJob);
  const number = other.nextRequest++;
  request.elsewhere = { upstream: other, number };
  // Known before the channel is open: it may never be.
  other.requests.set(number, {
    number, entries: request.entries, ids: request.ids, remaining: 1, task: undefined, fetch: true, upload: undefined, digest, lent: undefined, answered: undefined, elsewhere: undefined, detours: 0,
    copyOf: { upstream, request, size, sinceMs: core.nowMs },
  });
  whenOpen(other, () => {
    if (!other.requests.has(number)) return;
    other.out.begin(OP.COPY).u32(0).u32(number).raw(id).raw(ticket).end();
    core.markUpstream(other, -1);
  });
}

/** Gives up a transfer of which only some parts have come. */
export function dropUpload(core: Core, request: UpstreamRequest): void {
  const { upload } = request;
  if (upload === undefined) return;
  request.upload = undefined;
  upload.tenant.objectBytes -= upload.total;
  giveMemory(core, upload.tenant, upload.total);
  core.out.push({ type: 'delete-file', tenant: upload.tenant, fileName: upload.fileName });
}

/** The other raylet let us down: its owner sends us elsewhere, at last to itself. */
export function copyFailed(core: Core, upstream: Upstream, request: UpstreamRequest): void {
  endCopy(core, upstream, request, COPY_OUTCOME.LET_DOWN);
}

/** It has come, or is not wanted any more. */
export function endCopy(core: Core, upstream: Upstream, request: UpstreamRequest, outcome: number): void {
  const { copyOf } = request;
  upstream.requests.delete(request.number);
  dropUpload(core, request);
  if (copyOf !== undefined) {
    copyOf.request.elsewhere = undefined;
    tellOwner(core, upstream, request, outcome);
  }
  closeIfIdle(core, upstream);
}

/** The owner's own answer has come, or it is gone: what comes from elsewhere is not wanted any more. */
export function dropElsewhere(core: Core, request: UpstreamRequest): void {
  const { elsewhere } = request;
  if (elsewhere === undefined) return;
  request.elsewhere = undefined;
  const copy = elsewhere.upstream.requests.get(elsewhere.number);
  elsewhere.upstream.requests.delete(elsewhere.number);
  if (copy !== undefined) dropUpload(core, copy);
  closeIfIdle(core, elsewhere.upstream);
}

/** Such a channel has ended. */
export function copyChannelClosed(core: Core, upstream: Upstream): void {
  forgetCopyChannel(core, upstream);
  for (const request of [...upstream.requests.values()]) copyFailed(core, upstream, request);
}

/** Once in a while: whoever sends nothing, or octet by octet, is left. */
export function expireCopies(core: Core): void {
  for (const upstream of [...core.copyChannels]) {
    for (const request of [...upstream.requests.values()]) {
      const lateMs = core.nowMs - (request.copyOf?.sinceMs ?? core.nowMs) - COPY_STALL_MS;
      if ((request.upload?.offset ?? 0) < (lateMs / 1_000) * COPY_BYTES_PER_SECOND) copyFailed(core, upstream, request);
    }
  }
}
