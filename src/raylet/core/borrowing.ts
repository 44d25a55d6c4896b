/**
 * Refs across nodes: what a client here keeps of another raylet's object its owner holds for this raylet, until nobody here has it or this raylet's channel
 * ends (Ray's borrowers). Whoever passed a ref on inside an argument holds it until that is known: no moment is without a holder. Must never: hold for
 * a raylet what its principal may not read, or end a call's wait before the owners have answered.
 *
 *   1. a client is given a ref (inside an argument or a value)   BORROW to its owner, which answers BORROWED
 *   2. a value with refs inside comes from another raylet         VALUE_REFS before it: lent by that raylet, as often as they come
 *   3. the refs of 2 are a third raylet's                          1, and given back to whoever sent them once the owner has answered
 *   4. a call of another raylet has ended here                     RETURNED, once 1 is answered for what stays of its refs
 *   5. nobody here has it any more                                 GIVE_BACK, as many as were lent
 */
import { OP, type FrameReader } from '../../base/frame.ts';
import { MAX_REFS_PER_CALL } from '../../base/limits.ts';
import { idWord, type Core } from './core.ts';
import { isUnwanted } from './job-roots.ts';
import { confirm, entryOf, returnTo, unpin } from './objects.ts';
import { upstreamTo, whenOpen } from './upstream-channels.ts';
import type { ObjectEntry, Upstream, UpstreamRequest } from './state.ts';

/** At the end of a step: owners are told of what somebody here has begun to hold. */
export function takeUpBorrows(core: Core): void {
  const asked = core.borrows;
  core.borrows = [];
  const byOwner = new Map<Upstream, ObjectEntry[]>();
  for (const { entry, job, asJob } of asked) {
    const { session } = entry;
    if (session.objects.get(entry.index) !== entry) continue;
    if (!core.nodes.has(session.nodeNumber) || isUnwanted(job)) {
      if (entry.unconfirmed === 0) confirm(entry);
      continue;
    }
    const upstream = upstreamTo(core, session.nodeNumber, job, asJob, 0);
    if (entry.lenders?.has(upstream) === true) {
      if (entry.unconfirmed === 0) confirm(entry);
      continue;
    }
    (entry.lenders ??= new Map()).set(upstream, 1);
    entry.unconfirmed++;
    const entries = byOwner.get(upstream);
    if (entries === undefined) byOwner.set(upstream, [entry]);
    else entries.push(entry);
  }
  for (const [upstream, all] of byOwner) {
    for (let at = 0; at < all.length; at += MAX_REFS_PER_CALL) {
      const entries = all.slice(at, at + MAX_REFS_PER_CALL);
      const request = upstream.nextRequest++;
      upstream.borrowing.set(request, entries);
      const ids = entries.map((entry) => entry.remoteId as Uint8Array);
      whenOpen(upstream, () => {
        upstream.out.begin(OP.BORROW).u32(0).u32(request).refs(ids).end();
        core.markUpstream(upstream, -1);
      });
    }
  }
}

/** BORROWED: the owner holds what was asked for, or never will. */
export function onBorrowed(upstream: Upstream, request: number): void {
  const entries = upstream.borrowing.get(request);
  upstream.borrowing.delete(request);
  for (const entry of entries ?? []) if (--entry.unconfirmed === 0) confirm(entry);
}

/** VALUE_REFS: what is inside a value that is on its way. Held from here on; who sent it holds it for us. */
export function onValueRefs(core: Core, upstream: Upstream, request: UpstreamRequest | undefined, position: number, reader: FrameReader): void {
  const { job } = upstream;
  const principal = upstream.asJob ? job.principal : job.submitter;
  const inner: ObjectEntry[] = [];
  for (let n = reader.refCount(MAX_REFS_PER_CALL); n > 0; n--) {
    const id = reader.id().slice();
    const entry = request === undefined ? undefined : entryOf(core, core.sessionFor(job.tenant, principal.spiffeId, id), id);
    if (entry === undefined) {
      returnTo(core, upstream, id, 1);
      continue;
    }
    entry.pins++;
    inner.push(entry);
    const owner = idWord(id, 4);
    if (owner === upstream.nodeNumber) (entry.lenders ??= new Map()).set(upstream, (entry.lenders.get(upstream) ?? 0) + 1);
    else if (owner === core.config.nodeNumber) returnTo(core, upstream, id, 1);
    else {
      (entry.confirmed ??= []).push(() => returnTo(core, upstream, id, 1));
      core.borrows.push({ entry, job, asJob: upstream.asJob });
    }
  }
  if (request !== undefined && inner.length > 0) (request.lent ??= new Map()).set(position, inner);
}

/** At the end of a step: raylets whose calls have ended here are told that they need not hold what was inside the arguments. */
export function takeUpReturned(core: Core): void {
  for (const { channel, seq, entries } of core.returned.splice(0)) {
    let left = 1;
    const done = (): void => {
      if (--left > 0 || channel.closed) return;
      channel.out.begin(OP.RETURNED).u32(seq).end();
      core.markChannel(channel, -1);
    };
    const held = new Set(entries);
    for (const entry of entries) {
      for (const own of entry.stands ?? []) held.add(own);
      entry.stands = undefined;
    }
    for (const entry of held) {
      if (entry.unconfirmed === 0) continue;
      left++;
      (entry.confirmed ??= []).push(done);
    }
    done();
  }
}

/** RETURNED: what this call carried is known to its owners. It may still be on its way to its end here. */
export function onReturned(core: Core, upstream: Upstream, seq: number): void {
  const entries = upstream.returning.get(seq);
  if (entries === undefined) {
    for (const task of upstream.tasks) if (task.remoteSeq === seq) return void upstream.returnedEarly.add(seq);
    return;
  }
  upstream.returning.delete(seq);
  for (const entry of entries) unpin(core, entry);
}

/** The other raylet is gone, or will not have us: nothing is held there any more. What it owned is asked for again where it can be reached and somebody here still holds it. */
export function endBorrowing(core: Core, upstream: Upstream): void {
  const { returning, borrowing, job, asJob } = upstream;
  for (const [seq, entries] of returning) {
    returning.delete(seq);
    for (const entry of entries) unpin(core, entry);
  }
  for (const request of borrowing.keys()) onBorrowed(upstream, request);
  const again = upstream.prefix !== undefined && !isUnwanted(job) && core.nodes.has(upstream.nodeNumber) && core.reachable(upstream.nodeNumber);
  for (const session of job.tenant.sessions) {
    if (session.nodeNumber === core.config.nodeNumber) continue;
    for (const entry of session.objects.values()) if (entry.lenders?.delete(upstream) === true && again && session.nodeNumber === upstream.nodeNumber) core.borrows.push({ entry, job, asJob });
  }
}
