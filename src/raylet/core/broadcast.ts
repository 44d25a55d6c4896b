/**
 * One large object for many raylets: whoever has it serves so many at once (SPREAD_FANOUT), and each that has got it whole serves others, so N have it after
 * log N turns. Who gets it from whom is decided by the raylet that is asked, which decides and records each reader as ever; one that serves a copy has its word for
 * each, by a ticket that counts once. Must never: name a source for a reader that was not allowed; send anybody to a raylet that has no session of the same job, which
 * would spread credentials; wait for a raylet that is silent. The other end of it, fetching, is in copies.ts.
 *
 *   1. asked → WAITING                 in the order they asked
 *   2. WAITING → RUNNING, own          a turn of ours is free: we send it
 *   3. WAITING → ASKED                 one that has it has a turn free: does it still have it? (SHARE)
 *   4. ASKED → RUNNING, elsewhere      it has (SHARED): the reader is told where (VALUE_ELSEWHERE)
 *   5. ASKED → WAITING                 it has not, does not say, or is gone: it serves no more
 *   6. RUNNING → over                  the reader has it and serves too, or will not have it (COPIED)
 *   7. RUNNING, elsewhere → WAITING    the reader was let down (COPIED): it is sent elsewhere, at last to us
 *   8. RUNNING → overdue               its turn is somebody else's; the reader may still say 6 or 7
 */
import { hex } from '../../base/ids.ts';
import { resource } from '../../base/decision.ts';
import { BulkheadError } from '../../base/errors.ts';
import { OP, type FrameReader } from '../../base/frame.ts';
import { COPY_BYTES_PER_SECOND, MAX_DETOURS, MAX_SHARES_PER_CHANNEL, SHARE_ANSWER_MS, SPREAD_FANOUT, SPREAD_LEASE_MS } from '../../base/limits.ts';
import { idIndex, idWord, type Core } from './core.ts';
import { awaitEntry, DENIED, isLocal, LOST, refuseValue, unpin, writeValue } from './objects.ts';
import { OBJECT_STATUS, PENDING_KIND, PendingCall, type Channel, type ObjectEntry, type Upstream } from './state.ts';

export const TICKET_BYTES = 16;
/** What a raylet says of a value that it was getting. */
export const COPY_OUTCOME = { HAS_IT: 0, LET_DOWN: 1, GIVEN_UP: 2 } as const;

/** A raylet that gets one of our objects. It pins the object until it is sent by us, or has it. */
export interface Pull {
  readonly channel: Channel;
  readonly request: number;
  readonly position: number;
  readonly entry: ObjectEntry;
  /** The audit record of the decision. */
  readonly needed: number;
  /** What is inside the value, lent to the reader: sent before anything else of it. */
  refs: readonly Uint8Array[] | undefined;
  state: 'WAITING' | 'ASKED' | 'RUNNING';
  /** Who serves it; undefined: we do. */
  source: Channel | undefined;
  ticket: Uint8Array | undefined;
  untilMs: number;
  /** Who has let it down. */
  failed: Set<Channel> | undefined;
}

/** Who has an object of ours and who is getting it. */
export class Spread {
  readonly entry: ObjectEntry;
  readonly pulls = new Set<Pull>();
  readonly waiting = new Set<Pull>();
  /** How many we send it to, and how many each other that has it does. */
  own = 0;
  readonly holders = new Map<Channel, { readonly nodeNumber: number; running: number }>();
  /** Holders with a turn free. */
  readonly idle = new Set<Channel>();

  constructor(entry: ObjectEntry) {
    this.entry = entry;
  }
}

/** One reader, by its node and principal, may come for a copy that we have of another raylet's object. */
export interface Share {
  readonly entry: ObjectEntry;
  readonly peer: string;
  readonly principal: string;
  readonly untilMs: number;
}

// --- the raylet that is asked -----------------------------------------------------------------------------------------------

/** At the end of a step: who may begin. */
export function takeUpPulls(core: Core): void {
  for (const pull of core.pulls.splice(0)) {
    const { channel, entry } = pull;
    let spread = core.spreads.get(entry);
    let twice = channel.closed;
    // No raylet asks for the same twice; one that does is served, and counts once.
    for (const other of channel.pulls?.values() ?? []) if (other.entry === entry || other.request === pull.request) twice = true;
    if (twice) {
      send(core, pull);
      continue;
    }
    if (spread === undefined) core.spreads.set(entry, (spread = new Spread(entry)));
    (channel.pulls ??= new Map()).set(pull.request, pull);
    spread.pulls.add(pull);
    spread.waiting.add(pull);
    core.spreading.add(spread);
  }
  for (const spread of core.spreading) {
    core.spreading.delete(spread);
    assign(core, spread);
  }
}

function assign(core: Core, spread: Spread): void {
  const { entry, waiting, holders, idle } = spread;
  if (entry.session.objects.get(entry.index) !== entry) gone(core, spread);
  for (const pull of waiting) {
    if (entry.status !== OBJECT_STATUS.FILE) {
      entry.pins++;
      end(core, spread, pull);
      askAgain(core, pull);
      unpin(core, entry);
      continue;
    }
    if (spread.own >= SPREAD_FANOUT && idle.size === 0) break;
    if (spread.own < SPREAD_FANOUT) {
      waiting.delete(pull);
      spread.own++;
      begin(core, pull, undefined, 'RUNNING', leaseMs(entry));
      send(core, pull);
      continue;
    }
    const source = sourceFor(spread, pull);
    if (source === undefined) continue;
    const holder = holders.get(source);
    if (holder === undefined || ++holder.running >= SPREAD_FANOUT) idle.delete(source);
    waiting.delete(pull);
    begin(core, pull, source, 'ASKED', SHARE_ANSWER_MS);
    const ticket = (pull.ticket = core.config.random.bytes(TICKET_BYTES));
    source.out.begin(OP.SHARE).raw(core.idOf(entry.session, entry.index)).raw(ticket).str(pull.channel.peer).str(pull.channel.principal.spiffeId).end();
    core.markChannel(source, pull.needed);
  }
  if (spread.pulls.size === 0 && holders.size === 0) core.spreads.delete(entry);
}

function leaseMs(entry: ObjectEntry): number {
  return SPREAD_LEASE_MS + (entry.size / COPY_BYTES_PER_SECOND) * 1_000;
}

function begin(core: Core, pull: Pull, source: Channel | undefined, state: 'ASKED' | 'RUNNING', ms: number): void {
  pull.source = source;
  pull.state = state;
  pull.untilMs = core.nowMs + ms;
  core.pullsUnderWay.add(pull);
}

/** Another that has it, of the same job, with a turn free: not the reader's own node, nor one that let it down. After some of those it waits for us. */
function sourceFor(spread: Spread, pull: Pull): Channel | undefined {
  if (pull.failed !== undefined && pull.failed.size >= MAX_DETOURS) return undefined;
  for (const holder of spread.idle) if (holder.job === pull.channel.job && holder.peer !== pull.channel.peer && pull.failed?.has(holder) !== true) return holder;
  return undefined;
}

/** The file goes to its reader from here. It needs no pin any more: whoever reads a file has it open. */
function send(core: Core, pull: Pull): void {
  const { channel, request, position, entry, needed, refs } = pull;
  pull.refs = undefined;
  if (!channel.closed) core.out.push({ type: 'stream-file', channel, owner: entry.session.tenant, request, position, fileName: entry.fileName, size: entry.size, needed, entry, refs, copy: false });
  entry.uses--;
  unpin(core, entry);
}

/** It is no file any more: as anything else that is asked for. */
function askAgain(core: Core, pull: Pull): void {
  const { channel, request, position, entry, needed } = pull;
  if (channel.closed) return;
  if (entry.session.objects.get(entry.index) !== entry) return refuseValue(core, channel, request, position, LOST, needed);
  if (isLocal(entry)) return writeValue(core, channel, request, position, entry, needed, PENDING_KIND.GET);
  const call = new PendingCall(channel, request, PENDING_KIND.GET, needed, undefined, 1);
  call.positions = 1;
  channel.waiting++;
  entry.pins++;
  awaitEntry(core, entry, { call, position, task: undefined });
}

/** Its turn, if it had one, is free. */
function leave(core: Core, spread: Spread, pull: Pull): void {
  spread.waiting.delete(pull);
  if (!core.pullsUnderWay.delete(pull)) return;
  core.spreading.add(spread);
  if (pull.source === undefined) spread.own--;
  else {
    const holder = spread.holders.get(pull.source);
    if (holder === undefined) return;
    holder.running--;
    spread.idle.add(pull.source);
  }
}

function end(core: Core, spread: Spread, pull: Pull): void {
  leave(core, spread, pull);
  spread.pulls.delete(pull);
  pull.channel.pulls?.delete(pull.request);
  // What we sent ourselves was let go of then.
  if (pull.state === 'RUNNING' && pull.source === undefined) return;
  pull.entry.uses--;
  unpin(core, pull.entry);
}

/** 5 and 7: its source serves nobody any more, and it waits for another. */
function letDown(core: Core, spread: Spread, pull: Pull): void {
  const { source } = pull;
  leave(core, spread, pull);
  if (source !== undefined) {
    (pull.failed ??= new Set()).add(source);
    forgetHolder(core, spread, source);
  }
  pull.source = undefined;
  pull.state = 'WAITING';
  pull.ticket = undefined;
  spread.waiting.add(pull);
  core.spreading.add(spread);
}

/** It has what the object was, or is gone. */
export function forgetHolder(core: Core, spread: Spread, holder: Channel): void {
  spread.holders.delete(holder);
  spread.idle.delete(holder);
  holder.holds?.delete(spread);
  core.spreading.add(spread);
}

/** It serves the object from now on. */
function hold(core: Core, spread: Spread, channel: Channel): void {
  const { entry } = spread;
  if (entry.digest === undefined || entry.altered || entry.session.objects.get(entry.index) !== entry || spread.holders.has(channel)) return;
  let nodeNumber = 0;
  for (const node of core.nodes.values()) if (node.nodeId === channel.peer) nodeNumber = node.number;
  if (nodeNumber === 0) return;
  spread.holders.set(channel, { nodeNumber, running: 0 });
  spread.idle.add(channel);
  (channel.holds ??= new Set()).add(spread);
}

/** COPIED: what became of a value that a raylet was getting. */
export function onCopied(core: Core, channel: Channel, r: FrameReader): void {
  const request = r.u32();
  const outcome = r.u8();
  r.finish();
  if (outcome > COPY_OUTCOME.GIVEN_UP) throw new BulkheadError('INVALID_ARGUMENT', `outcome ${outcome} of a copy`);
  const pull = channel.pulls?.get(request);
  const spread = pull === undefined ? undefined : core.spreads.get(pull.entry);
  // Of small ones we keep no books; and it may cross our giving up.
  if (pull === undefined || spread === undefined || pull.state !== 'RUNNING') return;
  if (outcome === COPY_OUTCOME.LET_DOWN && pull.source !== undefined) return letDown(core, spread, pull);
  end(core, spread, pull);
  if (outcome === COPY_OUTCOME.HAS_IT) hold(core, spread, channel);
}

/** SHARED: whether a raylet still has the copy that it is to serve. */
export function onShared(core: Core, channel: Channel, r: FrameReader): void {
  const ticket = hex(r.raw(TICKET_BYTES));
  const has = r.u8();
  r.finish();
  for (const pull of core.pullsUnderWay) {
    if (pull.source !== channel || pull.state !== 'ASKED' || pull.ticket === undefined || hex(pull.ticket) !== ticket) continue;
    const { entry, channel: reader, request, position, refs, needed } = pull;
    const spread = core.spreads.get(entry) as Spread;
    const holder = spread.holders.get(channel);
    if (has !== 1 || holder === undefined || entry.digest === undefined || entry.altered) return letDown(core, spread, pull);
    pull.state = 'RUNNING';
    pull.untilMs = core.nowMs + leaseMs(entry);
    if (refs !== undefined) reader.out.begin(OP.VALUE_REFS).u32(request).u32(position).refs(refs).end();
    pull.refs = undefined;
    reader.out.begin(OP.VALUE_ELSEWHERE).u32(request).u32(position).u32(holder.nodeNumber).raw(pull.ticket).u64(entry.size).raw(entry.digest).end();
    return core.markChannel(reader, needed);
  }
}

/** What we were sending cannot be sent: its reader has been told. */
export function pullFailed(core: Core, channel: Channel, request: number): void {
  const pull = channel.pulls?.get(request);
  const spread = pull === undefined ? undefined : core.spreads.get(pull.entry);
  if (pull === undefined || spread === undefined || pull.source !== undefined || pull.state !== 'RUNNING') return;
  end(core, spread, pull);
}

/** A raylet's channel has ended: it gets nothing, and serves nobody. */
export function pullsChannelClosed(core: Core, channel: Channel): void {
  for (const spread of channel.holds ?? []) {
    for (const pull of core.pullsUnderWay) if (pull.source === channel && pull.entry === spread.entry && pull.state === 'ASKED') letDown(core, spread, pull);
    forgetHolder(core, spread, channel);
  }
  for (const pull of channel.pulls?.values() ?? []) {
    const spread = core.spreads.get(pull.entry);
    if (spread !== undefined) end(core, spread, pull);
  }
}

/** It gave the object back: it will not have the copy for long. */
export function holderGaveBack(core: Core, channel: Channel, entry: ObjectEntry): void {
  const spread = channel.holds === undefined ? undefined : core.spreads.get(entry);
  if (spread?.holders.has(channel) === true) forgetHolder(core, spread, channel);
}

/** The object is gone: nobody waits for it, since that pins it. */
function gone(core: Core, spread: Spread): void {
  for (const pull of spread.pulls) end(core, spread, pull);
  for (const holder of spread.holders.keys()) forgetHolder(core, spread, holder);
  core.spreading.delete(spread);
}

/** Once in a while: whoever does not answer is not waited for. */
export function expirePulls(core: Core): void {
  for (const pull of core.pullsUnderWay) {
    if (pull.untilMs > core.nowMs) continue;
    const spread = core.spreads.get(pull.entry) as Spread;
    if (pull.state === 'ASKED') letDown(core, spread, pull);
    else if (pull.source === undefined) end(core, spread, pull);
    else leave(core, spread, pull);
  }
}

// --- a raylet that has a copy -----------------------------------------------------------------------------------------------

/** SHARE: the owner of what we have asks whether a reader may come for it. Only the owner can: nobody else's word counts for it. */
export function onShare(core: Core, upstream: Upstream, r: FrameReader): void {
  const id = r.id();
  const ticket = r.raw(TICKET_BYTES).slice();
  const peer = r.str();
  const principal = r.str();
  const { job, shares } = upstream;
  const reader = (upstream.asJob ? job.principal : job.submitter).spiffeId;
  const entry = core.knownSessionFor(job.tenant, reader, id)?.objects.get(idIndex(id));
  const has = entry !== undefined && idWord(id, 4) === upstream.nodeNumber && upstream.nodeNumber !== core.config.nodeNumber && entry.status === OBJECT_STATUS.FILE && entry.digest !== undefined && !entry.altered;
  if (has) {
    for (const [oldest, { untilMs }] of shares) {
      if (shares.size < MAX_SHARES_PER_CHANNEL && untilMs > core.nowMs) break;
      shares.delete(oldest);
    }
    shares.set(hex(ticket), { entry, peer, principal, untilMs: core.nowMs + SPREAD_LEASE_MS });
  }
  upstream.out.begin(OP.SHARED).raw(ticket).u8(has ? 1 : 0).end();
  core.markUpstream(upstream, -1);
}

/** COPY: a reader comes for a copy with its ticket. Decided and recorded here too; anything that does not fit is denied in the same words. */
export function onCopy(core: Core, channel: Channel, r: FrameReader): void {
  r.u32();
  const request = r.u32();
  const id = r.id();
  const ticket = hex(r.raw(TICKET_BYTES));
  r.finish();
  const share = takeShare(core, channel, id, ticket);
  const name = hex(id.subarray(0, 20));
  if (share === undefined) {
    const seq = core.refuse(channel, 'object.get', resource('object', { tenant: core.tenants.get(idWord(id, 0))?.name ?? '' }), name, idIndex(id), 'copy-ticket', 'copy');
    return refuseValue(core, channel, request, 0, DENIED, seq);
  }
  const { entry } = share;
  const seq = core.decide(channel, 'object.get', entry.session.objectResource, name, entry.index, 1, 'copy');
  if (seq < 0) return refuseValue(core, channel, request, 0, DENIED, ~seq);
  writeValue(core, channel, request, 0, entry, seq, PENDING_KIND.COPY);
}

function takeShare(core: Core, channel: Channel, id: Uint8Array, ticket: string): Share | undefined {
  for (const upstream of core.upstreams.values()) {
    if (upstream.nodeNumber !== idWord(id, 4) || upstream.job !== channel.job) continue;
    const share = upstream.shares.get(ticket);
    if (share === undefined) continue;
    const { entry } = share;
    if (share.peer !== channel.peer || share.principal !== channel.principal.spiffeId || share.untilMs <= core.nowMs || hex(core.idOf(entry.session, entry.index)) !== hex(id)) return undefined;
    upstream.shares.delete(ticket);
    // It may have been spilled, or let go, since.
    return entry.status === OBJECT_STATUS.FILE && !entry.altered && entry.session.objects.get(entry.index) === entry ? share : undefined;
  }
  return undefined;
}
