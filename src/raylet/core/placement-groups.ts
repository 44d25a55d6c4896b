/**
 * Placement groups that this raylet coordinates: those whose creation was submitted to it. All bundles are reserved, or none:
 *   1. (none) → PENDING          it may be made; its name and room are waited for
 *   2. PENDING → PREPARING       a plan for all bundles: every node of it is asked to reserve its part
 *   3. PREPARING → PENDING       a node refused, was lost, or did not answer in time: every part is given back
 *   4. PREPARING → CREATED       all are reserved, and told to be firm
 *   5. CREATED → RESCHEDULING    a node with bundles was lost: those are planned anew, the others stay
 *   6. RESCHEDULING → CREATED    as 2 to 4, for the lost bundles
 *      A detached group whose coordinator is lost is begun anew by another raylet (group-heirs.ts): (none) → PENDING, then what is left of it counts as placed.
 *   7. any → REMOVED             it was removed, its job ended (detached ones stay), its tenant was deleted, its name was taken
 * Nodes that hold bundles keep them for as long as they hear from here (bundle-holds.ts), so that the death of either side between two
 * of these leaves nothing reserved. Must never: call a group created before every node has said yes.
 */
import { resource, type Resource } from '../../base/decision.ts';
import { BulkheadError } from '../../base/errors.ts';
import { OP, type FrameReader } from '../../base/frame.ts';
import { OBJECT_ID_BYTES, hex, objectIdText, quote } from '../../base/ids.ts';
import { parseSelector } from '../../base/labels.ts';
import { BUNDLE_PREPARE_MS, MAX_BUNDLES_PER_GROUP, MAX_GROUP_JSON_BYTES, MAX_PLACEMENT_GROUPS_PER_TENANT } from '../../base/limits.ts';
import { fits, type ResourceVector } from '../../base/resources.ts';
import { actorDied } from './actors.ts';
import type { BundleFields } from './bundle.ts';
import { holdsOf, prepare, release } from './bundle-holds.ts';
import { planBundles, STRATEGIES, type Strategy, type WantedBundle } from './bundle-plan.ts';
import { DENIED, createEntry, settleFailed, settleInline, unpin } from './objects.ts';
import { decideOn, done, failRequest } from './deciding.ts';
import { decideUse, groupResource, resourceOf } from './group-rights.ts';
import { idFromHex, REMOVED, type GroupBundle, type GroupView } from './group-views.ts';
import { idWord, makeId, type Core } from './core.ts';
import { failQueued, groupClasses } from './scheduler.ts';
import { parseResources } from './function-options.ts';
import { giveBackOn, ownPlace, placesOf, takeOn, type Place } from './placement.ts';
import { CHANNEL_KIND, type Channel, type Failure, type Job, type ObjectEntry, type Session, type TenantState, type Upstream } from './state.ts';
import { askRemote } from './upstreams.ts';
import { upstreamTo } from './upstream-channels.ts';

interface Round {
  /** Indexes by node. */
  readonly parts: ReadonlyMap<number, readonly number[]>;
  readonly waiting: Set<number>;
  readonly deadlineMs: number;
}

export class PlacementGroup implements GroupView {
  readonly id: string;
  readonly session: Session;
  readonly index: number;
  readonly job: Job;
  readonly asJob: boolean;
  readonly name: string;
  readonly strategy: Strategy;
  readonly detached: boolean;
  readonly bundles: GroupBundle[];
  readonly resource: Resource;
  /** Its value is there when the group is: what `ready()` waits for. */
  readonly entry: ObjectEntry;
  readonly auditSeq: number;
  /** As it was asked for, for who may have to make it again. */
  readonly wanted: string;
  /** The group that this one takes the place of, or ''. */
  readonly former: string;
  /** The head keeps it for other nodes. */
  kept = false;
  /** Nodes that have not said yet which bundles of `former` they have. */
  taking: { readonly waiting: Set<number>; readonly deadlineMs: number } | undefined = undefined;
  state: 'PENDING' | 'CREATED' | 'RESCHEDULING' | 'REMOVED' = 'PENDING';
  failure: Failure | undefined = undefined;
  round: Round | undefined = undefined;
  nameRegistered: boolean;
  /** Rounds in a row that failed, the time before which the next one does not begin, and why the last failed. */
  refusals = 0;
  notBeforeMs = 0;
  refused = '';
  readonly avoidedUntilMs = new Map<number, number>();
  /** Raylets that were told of it: of every change they are told again. */
  readonly watchers = new Set<Channel>();

  constructor(fields: Pick<PlacementGroup, 'session' | 'index' | 'job' | 'asJob' | 'name' | 'strategy' | 'detached' | 'bundles' | 'resource' | 'entry' | 'auditSeq' | 'wanted' | 'former'>, id: string) {
    this.id = id;
    this.session = fields.session;
    this.index = fields.index;
    this.job = fields.job;
    this.asJob = fields.asJob;
    this.name = fields.name;
    this.strategy = fields.strategy;
    this.detached = fields.detached;
    this.bundles = fields.bundles;
    this.resource = fields.resource;
    this.entry = fields.entry;
    this.auditSeq = fields.auditSeq;
    this.wanted = fields.wanted;
    this.former = fields.former;
    this.nameRegistered = fields.name === '';
  }
}

const READY = Uint8Array.of(0xf6);
const FIRST_PAUSE_MS = 25;
const MAX_PAUSE_MS = 1_000;
const AVOIDED_MS = 1_000;
/** Groups of one tenant that are planned at a time. */
const PLANNED_AT_ONCE = 4;
const GROUP_NAME = /^[A-Za-z0-9](?:[A-Za-z0-9._:-]{0,126}[A-Za-z0-9])?$/;

function refused(code: Failure['code'], message: string): Failure {
  return { code, message, stack: '' };
}

function invalid(what: string): never {
  throw new BulkheadError('INVALID_ARGUMENT', `the placement group is not valid: ${what}`);
}

interface Wanted {
  readonly strategy: Strategy;
  readonly name: string;
  readonly detached: boolean;
  readonly bundles: GroupBundle[];
}

function parseJson(text: string): Record<string, unknown> {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch {
    return invalid('not JSON');
  }
  return typeof parsed === 'object' && parsed !== null && !Array.isArray(parsed) ? (parsed as Record<string, unknown>) : invalid('not an object');
}

/** As a client says it. Throws INVALID_ARGUMENT. */
export function parseWanted(text: string): Wanted {
  const { strategy = 'PACK', name = '', detached = false, bundles, ...more } = parseJson(text);
  const [unknown] = Object.keys(more);
  if (unknown !== undefined) invalid(`${quote(unknown)} is not an option`);
  if (!STRATEGIES.includes(strategy as Strategy)) invalid(`strategy must be one of ${STRATEGIES.join(', ')}`);
  if (typeof name !== 'string' || (name !== '' && !GROUP_NAME.test(name))) invalid('name must be 1 to 128 characters of A-Z a-z 0-9 and inner . _ : -');
  if (typeof detached !== 'boolean') invalid('detached must be true or false');
  if (detached && name === '') invalid('a detached group needs a name, or nobody could find it again');
  if (!Array.isArray(bundles) || bundles.length < 1 || bundles.length > MAX_BUNDLES_PER_GROUP) invalid(`bundles must be a list of 1 to ${MAX_BUNDLES_PER_GROUP}`);
  return {
    strategy: strategy as Strategy, name, detached,
    bundles: bundles.map((bundle: unknown, i) => {
      if (typeof bundle !== 'object' || bundle === null || Array.isArray(bundle)) invalid(`bundle ${i} must be an object of amounts`);
      const { labels, ...amounts } = bundle as Record<string, unknown>;
      const resources = parseResources(amounts);
      if (resources.cpuUnits === 0 && resources.memoryBytes === 0 && resources.custom === undefined) invalid(`bundle ${i} holds nothing`);
      return { resources, labels: labels === undefined ? [] : parseSelector(labels), node: 0 };
    }),
  };
}

export function amounts({ cpuUnits, memoryBytes, custom }: ResourceVector): Record<string, unknown> {
  return { cpus: cpuUnits / 10_000, memoryBytes, ...(custom === undefined ? {} : { resources: Object.fromEntries(Object.entries(custom).map(([name, units]) => [name, units / 10_000])) }) };
}

/** What its name tells of it, and what a handle shows. */
export function groupInfo(group: PlacementGroup): string {
  return JSON.stringify({ strategy: group.strategy, bundles: group.bundles.map(({ resources }) => amounts(resources)), ...(group.former === '' ? {} : { former: group.former }) });
}

/** Of one that has an heir, the heir's. */
function currentId(core: Core, id: Uint8Array): Uint8Array {
  if (core.groupHeirs.size === 0) return id;
  const heir = core.groupHeirs.get(hex(id));
  return heir === undefined ? id : idFromHex(heir);
}

function idBytes(group: PlacementGroup): Uint8Array {
  return makeId(group.session.prefix, group.index);
}

// --- calls of clients ---------------------------------------------------------------------------------------------------

export function onCreateGroup(core: Core, channel: Channel, r: FrameReader): void {
  const parent = r.u32();
  const seq = r.u32();
  const text = r.text(MAX_GROUP_JSON_BYTES);
  r.finish();
  if (channel.kind === CHANNEL_KIND.PEER) throw new BulkheadError('INVALID_ARGUMENT', 'a placement group is coordinated where it is submitted');
  const { session, job } = channel;
  const { tenant } = job;
  if (session.objects.has(seq)) throw new BulkheadError('INVALID_ARGUMENT', `object index ${seq} is used twice`);
  const entry = createEntry(session, seq);
  // What a call of an isolate's makes and does not return goes with it; the group has its own end.
  const maker = channel.slot?.lease === undefined ? undefined : channel.slot.execs.get(parent);
  if (maker !== undefined) (maker.created ??= []).push(seq);
  let wanted: Wanted;
  try {
    wanted = parseWanted(text);
  } catch (error) {
    if (!(error instanceof BulkheadError)) throw error;
    return settleFailed(core, entry, refused(error.code, error.safeMessage));
  }
  const target = groupResource(tenant.name, channel.principal.spiffeId, wanted.name, wanted.bundles, wanted.detached);
  const detail = `${wanted.strategy} ${wanted.bundles.length}`;
  if (tenant.overBudget !== '') {
    core.refuse(channel, 'placement-group.create', target, session.prefixHex, seq, 'budget', detail);
    return settleFailed(core, entry, refused('QUOTA_EXCEEDED', tenant.overBudget));
  }
  const auditSeq = core.decide(channel, 'placement-group.create', target, session.prefixHex, seq, 1, detail);
  if (auditSeq < 0) return settleFailed(core, entry, DENIED);
  if (tenant.groups >= MAX_PLACEMENT_GROUPS_PER_TENANT) return settleFailed(core, entry, refused('RESOURCE_EXHAUSTED', `the tenant has ${tenant.groups} placement groups on this node: remove some of them`));
  const group = new PlacementGroup({ session, index: seq, job, asJob: channel.principal.kind === 'job', ...wanted, resource: target, entry, auditSeq, wanted: text, former: '' }, hex(makeId(session.prefix, seq)));
  beginGroup(core, group);
}

export function beginGroup(core: Core, group: PlacementGroup): void {
  const { entry } = group;
  group.job.tenant.groups++;
  // The value by which it is known to be ready stays as long as the group.
  entry.pins++;
  core.groups.set(group.id, group);
  core.pendingGroups.add(group);
  if (group.nameRegistered) place(core, group);
  else core.out.push({ type: 'register-group', group, id: idBytes(group), info: groupInfo(group) });
}

/** The head has answered whether the name was free. One that takes another's place is not planned before it has what is left of that. */
export function groupNamed(core: Core, group: PlacementGroup, failure: Failure | undefined): void {
  if (group.state === 'REMOVED') {
    if (failure === undefined) core.out.push({ type: 'release-group', group, id: idBytes(group) });
    return;
  }
  if (failure !== undefined) return removeGroup(core, group, failure);
  group.nameRegistered = true;
  if (group.former === '') place(core, group);
}

export function onRemoveGroup(core: Core, channel: Channel, r: FrameReader): void {
  r.u32();
  const request = r.u32();
  const id = currentId(core, r.id());
  r.finish();
  const seq = decideOn(core, channel, 'placement-group.remove', resourceOf(core, channel, id), hex(id.subarray(0, 20)), idWord(id, 20), 1, '', id);
  const needed = seq < 0 ? ~seq : seq;
  const own = seq >= 0 && idWord(id, 0) === channel.job.tenant.number;
  const group = own ? core.groups.get(hex(id)) : undefined;
  if (group !== undefined) {
    removeGroup(core, group, REMOVED, { job: channel.job, asJob: channel.principal.kind === 'job' });
    return done(core, channel, request, '{"removed":true}', needed);
  }
  // Coordinated elsewhere: asked there, by who asks here.
  if (!own || channel.kind === CHANNEL_KIND.PEER || !core.nodes.has(idWord(id, 4))) return failRequest(core, channel, request, DENIED, needed);
  const copy = id.slice();
  const upstream = upstreamTo(core, idWord(id, 4), channel.job, channel.principal.kind === 'job', 0);
  askRemote(core, upstream, needed, (out, number) => out.begin(OP.REMOVE_GROUP).u32(0).u32(number).raw(copy), (failure) => {
    if (channel.closed) return;
    if (failure === undefined) done(core, channel, request, '{"removed":true}', needed);
    else failRequest(core, channel, request, failure, needed);
  });
}

export function onLookupGroup(core: Core, channel: Channel, r: FrameReader): void {
  r.u32();
  const request = r.u32();
  const name = r.str();
  r.finish();
  const seq = core.decide(channel, 'placement-group.use', resource('placement-group', { tenant: channel.job.tenant.name, name }), name.slice(0, 256), -1, 1, 'by name');
  if (seq < 0) return failRequest(core, channel, request, DENIED, ~seq);
  core.out.push({ type: 'lookup-group', channel, request, name, auditSeq: seq });
}

export function groupFound(core: Core, channel: Channel, request: number, found: { readonly id: Uint8Array; readonly info: string } | Failure | undefined, auditSeq: number): void {
  if (channel.closed) return;
  if (found !== undefined && 'code' in found) return failRequest(core, channel, request, found, auditSeq);
  if (found === undefined || found.id.length !== OBJECT_ID_BYTES) return failRequest(core, channel, request, DENIED, auditSeq);
  const { strategy, bundles } = JSON.parse(found.info) as { strategy: unknown; bundles: unknown };
  done(core, channel, request, JSON.stringify({ id: objectIdText(found.id), strategy, bundles }), auditSeq);
}

// --- planning and the two phases ----------------------------------------------------------------------------------------

/** What the tenant's quota leaves of this node; of others it is their own word, in answer to a reservation. */
function places(core: Core, group: PlacementGroup): Place[] {
  const { nominal: quota, cpuUnitsInUse, memoryBytesInUse } = group.job.tenant;
  const own = ownPlace(core);
  const here: Place = { ...own, available: { ...own.available, cpuUnits: Math.min(own.available.cpuUnits, quota.cpuUnits - cpuUnitsInUse), memoryBytes: Math.min(own.available.memoryBytes, quota.memoryBytes - memoryBytesInUse) } };
  const others = group.job.credentialEndsMs <= core.wallMs ? [] : placesOf(core).slice(1);
  return [here, ...others].filter(({ number }) => (group.avoidedUntilMs.get(number) ?? 0) <= core.nowMs);
}

function lacking(group: PlacementGroup): WantedBundle[] {
  return group.bundles.flatMap(({ node, resources, labels }, index) => (node === 0 ? [{ index, resources, labels }] : []));
}

function placedOn(group: PlacementGroup): Map<number, number> {
  const placed = new Map<number, number>();
  for (const { node } of group.bundles) if (node !== 0) placed.set(node, (placed.get(node) ?? 0) + 1);
  return placed;
}

function place(core: Core, group: PlacementGroup): void {
  if (group.state === 'REMOVED' || group.round !== undefined || group.taking !== undefined || !group.nameRegistered || group.notBeforeMs > core.nowMs) return;
  const plan = planBundles(group.strategy, lacking(group), places(core, group), placedOn(group));
  if (plan === undefined) return;
  const parts = new Map<number, number[]>();
  for (const [index, node] of plan) parts.set(node, [...(parts.get(node) ?? []), index]);
  const self = core.config.nodeNumber;
  const mine = parts.get(self);
  // This node first: when it has no room nobody else is asked, and nothing is given back that was not taken.
  if (mine !== undefined) {
    const of = { tenant: group.job.tenant, job: group.job, group: group.id, channel: undefined, ownerNode: self, detached: group.detached, kept: group.kept, name: group.name, owner: group.session.ownerId };
    let failure: Failure | undefined;
    for (const index of mine) failure ??= prepare(core, { ...of, index, resources: (group.bundles[index] as GroupBundle).resources });
    if (failure !== undefined) return giveUp(core, group, new Map([[self, mine]]), `node ${nodeText(core, self)}: ${failure.message}`, self);
  }
  const round: Round = { parts, waiting: new Set(parts.keys()), deadlineMs: core.nowMs + BUNDLE_PREPARE_MS };
  group.round = round;
  core.pendingGroups.delete(group);
  core.preparing.add(group);
  if (mine !== undefined) prepared(core, group, round, self, undefined);
  for (const [node, indexes] of parts) {
    if (node === self) continue;
    const remote = core.nodes.get(node);
    if (remote !== undefined) for (const index of indexes) takeOn(core, remote, (group.bundles[index] as GroupBundle).resources);
    const text = JSON.stringify({ name: group.name, detached: group.detached, kept: group.kept, bundles: indexes.map((index) => ({ index, ...amounts((group.bundles[index] as GroupBundle).resources) })) });
    askRemote(core, upstreamOf(core, group, node), group.auditSeq, (out, number) => out.begin(OP.PREPARE_BUNDLES).u32(number).raw(idBytes(group)).text(text), (failure) => prepared(core, group, round, node, failure));
  }
}

function upstreamOf(core: Core, group: PlacementGroup, node: number): Upstream {
  return upstreamTo(core, node, group.job, group.asJob, 0);
}

function prepared(core: Core, group: PlacementGroup, round: Round, node: number, failure: Failure | undefined): void {
  // An answer to a round that was given up: what it reserved was given back behind the question.
  if (group.round !== round || !round.waiting.delete(node)) return;
  if (failure !== undefined) return giveUp(core, group, round.parts, `node ${nodeText(core, node)}: ${failure.message}`, node);
  if (round.waiting.size > 0) return;
  group.round = undefined;
  core.preparing.delete(group);
  group.refusals = 0;
  group.refused = '';
  for (const [at, indexes] of round.parts) {
    for (const index of indexes) (group.bundles[index] as GroupBundle).node = at;
    if (at === core.config.nodeNumber) for (const hold of holdsOf(core, group.id, indexes)) hold.firm = true;
    else askRemote(core, upstreamOf(core, group, at), group.auditSeq, (out, number) => {
      out.begin(OP.COMMIT_BUNDLES).u32(number).raw(idBytes(group)).u32(indexes.length);
      for (const index of indexes) out.u32(index);
      return out;
    }, (refusal) => {
      // The job ended before the answer came: it was said before the goodbye, and a detached group stays.
      if (refusal !== undefined && group.state !== 'REMOVED' && !(group.detached && refusal.code === 'CANCELLED')) lose(core, group, at, refusal.message, indexes);
    });
  }
  created(core, group);
}

/** What is left of the group before is known: the rest is planned. */
export function allPlaced(core: Core, group: PlacementGroup): void {
  group.taking = undefined;
  core.preparing.delete(group);
  if (group.state === 'REMOVED') return;
  if (lacking(group).length === 0) core.pendingGroups.delete(group);
  created(core, group);
  if (group.state !== 'CREATED') place(core, group);
}

function created(core: Core, group: PlacementGroup): void {
  // While some were asked for, others may have been lost.
  if (lacking(group).length > 0) return void core.pendingGroups.add(group);
  const again = group.state === 'RESCHEDULING';
  group.state = 'CREATED';
  core.lifecycle(group.job.tenant, again ? 'placement-group.rescheduled' : 'placement-group.created', group.session.ownerId, 'placement-group', group.session.prefixHex, group.index, nodesText(core, group));
  settleInline(core, group.entry, READY.slice());
  tellWatchers(core, group);
}

function nodesText(core: Core, group: PlacementGroup): string {
  return `${group.strategy} on ${[...placedOn(group)].map(([node, count]) => `${nodeText(core, node)} ${count}`).join(', ')}`;
}

function nodeText(core: Core, number: number): string {
  return number === core.config.nodeNumber ? core.config.nodeId : (core.nodes.get(number)?.nodeId ?? `number ${number}`);
}

/** Tells every node of a round to give back what it may have reserved: behind the question, on the same channel. */
function giveUp(core: Core, group: PlacementGroup, parts: Round['parts'], why: string, avoid: number): void {
  group.round = undefined;
  core.preparing.delete(group);
  for (const [node, indexes] of parts) giveBack(core, group, node, indexes, REMOVED, group);
  if (avoid !== core.config.nodeNumber) group.avoidedUntilMs.set(avoid, core.nowMs + AVOIDED_MS);
  group.refused = why;
  group.notBeforeMs = core.nowMs + Math.min(FIRST_PAUSE_MS * 2 ** Math.min(group.refusals++, 10), MAX_PAUSE_MS);
  if (group.state !== 'REMOVED') core.pendingGroups.add(group);
}

export function giveBack(core: Core, group: PlacementGroup, node: number, indexes: readonly number[], failure: Failure, as: { readonly job: Job; readonly asJob: boolean }): void {
  if (node === core.config.nodeNumber) {
    for (const hold of holdsOf(core, group.id, indexes)) release(core, hold, failure);
    return;
  }
  // Without a credential no node would listen: it learns from the end of this node, or of the tenant.
  if (!core.nodes.has(node) || as.job.credentialEndsMs <= core.wallMs || core.jobs.get(as.job.id) !== as.job) return;
  askRemote(core, upstreamTo(core, node, as.job, as.asJob, 0), group.auditSeq, (out, number) => {
    out.begin(OP.RELEASE_BUNDLES).u32(number).raw(idBytes(group)).u32(indexes.length);
    for (const index of indexes) out.u32(index);
    return out;
  }, (failure) => {
    const remote = core.nodes.get(node);
    if (failure === undefined && remote !== undefined) for (const index of indexes) giveBackOn(core, remote, (group.bundles[index] as GroupBundle).resources);
  });
}

/** Bundles on a node are not there any more. */
function lose(core: Core, group: PlacementGroup, node: number, why: string, indexes?: readonly number[]): void {
  // Also where it had said yes already: the others of the round are still being asked.
  if (indexes === undefined && group.round?.parts.has(node) === true) giveUp(core, group, group.round.parts, `node ${nodeText(core, node)}: ${why}`, node);
  const lost: number[] = [];
  group.bundles.forEach((bundle, index) => {
    if (bundle.node !== node || indexes?.includes(index) === false) return;
    bundle.node = 0;
    lost.push(index);
  });
  if (lost.length === 0 || group.state === 'REMOVED') return;
  // Perhaps the node is there, and only could not be heard.
  giveBack(core, group, node, lost, REMOVED, group);
  if (group.state === 'CREATED') {
    group.state = 'RESCHEDULING';
    core.lifecycle(group.job.tenant, 'placement-group.rescheduling', group.session.ownerId, 'placement-group', group.session.prefixHex, group.index, `${lost.length} bundles were lost with node ${nodeText(core, node)}`);
  }
  group.refused = why;
  group.avoidedUntilMs.set(node, core.nowMs + AVOIDED_MS);
  if (group.round === undefined) core.pendingGroups.add(group);
  tellWatchers(core, group);
}

/** A channel to a node closed. A detached group's bundles stay there, unless the node is gone itself. */
export function groupsUpstreamClosed(core: Core, upstream: Upstream, why: string): void {
  for (const group of core.groups.values()) if (group.job === upstream.job && group.asJob === upstream.asJob && !group.detached) lose(core, group, upstream.nodeNumber, why);
}

export function groupsNodeGone(core: Core, node: number): void {
  for (const group of core.groups.values()) lose(core, group, node, 'the node is gone');
}

/** Whenever something was given back, and once in a while: some of each tenant's. */
export function placePending(core: Core): void {
  for (const group of core.pendingGroups.some(PLANNED_AT_ONCE)) {
    if (group.state === 'REMOVED') core.pendingGroups.delete(group);
    else place(core, group);
  }
}

export function expireRounds(core: Core): void {
  for (const group of [...core.preparing]) {
    const { round, taking } = group;
    if (taking !== undefined && taking.deadlineMs <= core.nowMs) allPlaced(core, group);
    if (round === undefined || round.deadlineMs > core.nowMs) continue;
    const [silent = 0] = round.waiting;
    giveUp(core, group, round.parts, `node ${nodeText(core, silent)} did not answer in ${BUNDLE_PREPARE_MS / 1_000} s`, silent);
  }
}

// --- the end ------------------------------------------------------------------------------------------------------------

/** `as`: by whose rights other nodes are told, where that is not the one who made it. */
export function removeGroup(core: Core, group: PlacementGroup, failure: Failure, as: { readonly job: Job; readonly asJob: boolean } = group): void {
  if (group.state === 'REMOVED') return;
  const { tenant } = group.job;
  const before = placedOn(group);
  group.state = 'REMOVED';
  group.failure = failure;
  group.taking = undefined;
  core.pendingGroups.delete(group);
  core.preparing.delete(group);
  core.groups.delete(group.id);
  tenant.groups--;
  const { round } = group;
  if (round !== undefined) giveUp(core, group, round.parts, '', 0);
  for (const node of before.keys()) giveBack(core, group, node, group.bundles.flatMap((bundle, index) => (bundle.node === node ? [index] : [])), failure, as);
  for (const bundle of group.bundles) bundle.node = 0;
  core.lifecycle(tenant, 'placement-group.removed', group.session.ownerId, 'placement-group', group.session.prefixHex, group.index, failure.message);
  if (group.nameRegistered && group.name !== '') core.out.push({ type: 'release-group', group, id: idBytes(group) });
  endUsers(core, tenant, group.id, failure);
  tellWatchers(core, group);
  settleFailed(core, group.entry, failure);
  unpin(core, group.entry);
}

/** Groups of others that ended in this step. */
export function takeUpEnded(core: Core): void {
  for (const { tenant, group, failure } of core.endedGroups.splice(0)) endUsers(core, tenant, group, failure);
}

/** What waits here for a place in a group that is no more, and its actors wherever they are. */
function endUsers(core: Core, tenant: TenantState, group: string, failure: Failure): void {
  for (const c of groupClasses(core, tenant, group)) failQueued(core, c, failure);
  for (const job of tenant.jobs) for (const actor of [...job.actors]) if (actor.template.options.placement !== undefined && core.groupNow(actor.template.options.placement.group) === group && actor.creation.channel.kind !== CHANNEL_KIND.PEER) actorDied(core, actor, failure);
}

/** A job has ended here: its groups go, unless they are detached. */
export function jobGroupsEnd(core: Core, job: Job): void {
  for (const group of [...core.groups.values()]) if (group.job === job && !group.detached) removeGroup(core, group, refused('CANCELLED', 'the job of its placement group ended'));
}

export function tenantGroupsEnd(core: Core, tenant: TenantState): void {
  for (const group of [...core.groups.values()]) if (group.job.tenant === tenant) removeGroup(core, group, refused('CANCELLED', 'its tenant was deleted'));
}

// --- for other raylets --------------------------------------------------------------------------------------------------

function requirePeer(channel: Channel, op: string): void {
  if (channel.kind !== CHANNEL_KIND.PEER) throw new BulkheadError('INVALID_ARGUMENT', `${op} is for raylets`);
}

function readIndexes(r: FrameReader): number[] {
  const n = r.u32();
  if (n > MAX_BUNDLES_PER_GROUP) throw new BulkheadError('INVALID_ARGUMENT', `${n} bundles are more than a group has`);
  return Array.from({ length: n }, () => r.u32());
}

/** Another raylet asks for bundles of a group that it coordinates: all of them, or none. */
export function onPrepareBundles(core: Core, channel: Channel, r: FrameReader): void {
  requirePeer(channel, 'PREPARE_BUNDLES');
  const request = r.u32();
  const id = r.id();
  const text = r.text(MAX_GROUP_JSON_BYTES);
  r.finish();
  const { name, detached, kept = false, bundles } = parseJson(text);
  if (typeof name !== 'string' || name.length > 128 || typeof detached !== 'boolean' || typeof kept !== 'boolean' || !Array.isArray(bundles) || bundles.length > MAX_BUNDLES_PER_GROUP) return invalid('a reservation without its parts');
  const wanted = bundles.map((bundle: unknown) => {
    const { index, ...given } = bundle as Record<string, unknown>;
    if (typeof index !== 'number' || !Number.isInteger(index) || index < 0 || index >= MAX_BUNDLES_PER_GROUP) return invalid('a bundle without its index');
    return { index, resources: parseResources(given) };
  });
  const { tenant } = channel.job;
  const target = groupResource(tenant.name, channel.principal.spiffeId, name, wanted, detached);
  const seq = decideOn(core, channel, 'placement-group.create', target, hex(id.subarray(0, 20)), idWord(id, 20), 1, 'reserve', id);
  if (seq < 0 || idWord(id, 0) !== tenant.number) return failRequest(core, channel, request, DENIED, seq < 0 ? ~seq : seq);
  const of: Omit<BundleFields, 'index' | 'resources'> = { tenant, job: channel.job, group: hex(id), channel, ownerNode: idWord(id, 4), detached, kept, name, owner: channel.principal.spiffeId };
  const taken: number[] = [];
  for (const { index, resources } of wanted) {
    const failure = prepare(core, { ...of, index, resources });
    if (failure === undefined) {
      taken.push(index);
      continue;
    }
    for (const hold of holdsOf(core, of.group, taken)) release(core, hold, REMOVED);
    return failRequest(core, channel, request, failure, seq);
  }
  done(core, channel, request, '', seq);
}

export function onCommitBundles(core: Core, channel: Channel, r: FrameReader): void {
  requirePeer(channel, 'COMMIT_BUNDLES');
  const request = r.u32();
  const id = r.id();
  const indexes = readIndexes(r);
  r.finish();
  const seq = decideOn(core, channel, 'placement-group.create', resourceOf(core, channel, id), hex(id.subarray(0, 20)), idWord(id, 20), 1, 'commit', id);
  if (seq < 0) return failRequest(core, channel, request, DENIED, ~seq);
  const holds = holdsOf(core, hex(id), indexes).filter(({ of }) => of.channel === channel);
  if (holds.length !== indexes.length) return failRequest(core, channel, request, refused('UNAVAILABLE', 'the reservation is not there any more'), seq);
  for (const hold of holds) hold.firm = true;
  done(core, channel, request, '', seq);
}

/** Whoever reserved a bundle gives it back; another, who removes a detached group, needs the right to. */
export function onReleaseBundles(core: Core, channel: Channel, r: FrameReader): void {
  requirePeer(channel, 'RELEASE_BUNDLES');
  const request = r.u32();
  const id = r.id();
  const indexes = readIndexes(r);
  r.finish();
  const { tenant } = channel.job;
  const seq = decideOn(core, channel, 'placement-group.remove', resourceOf(core, channel, id), hex(id.subarray(0, 20)), idWord(id, 20), 1, 'release', id);
  for (const hold of holdsOf(core, hex(id), indexes)) if (hold.of.tenant === tenant && (seq >= 0 || hold.of.channel === channel)) release(core, hold, REMOVED);
  done(core, channel, request, '', seq < 0 ? ~seq : seq);
}

/** Another raylet has calls for a group of this one's: it is told where its bundles are, now and whenever that changes. */
export function onWatchGroup(core: Core, channel: Channel, r: FrameReader): void {
  requirePeer(channel, 'WATCH_GROUP');
  const request = r.u32();
  const id = hex(r.id());
  r.finish();
  const { seq } = decideUse(core, channel, id);
  const group = core.groups.get(id);
  if (seq < 0 || group === undefined || group.job.tenant !== channel.job.tenant) return failRequest(core, channel, request, DENIED, seq < 0 ? ~seq : seq);
  group.watchers.add(channel);
  done(core, channel, request, '', seq);
  tell(core, group, channel, seq);
}

function tell(core: Core, group: PlacementGroup, channel: Channel, needed: number): void {
  const { failure } = group;
  channel.out.begin(OP.GROUP_STATE).raw(idBytes(group)).text(JSON.stringify({ bundles: group.bundles.map(({ resources, node }) => ({ node, ...amounts(resources) })), ...(group.kept ? { kept: true } : {}), ...(failure === undefined ? {} : { failure: { code: failure.code, message: failure.message } }) })).end();
  core.markChannel(channel, needed);
}

function tellWatchers(core: Core, group: PlacementGroup): void {
  for (const channel of group.watchers) {
    if (channel.closed) group.watchers.delete(channel);
    else tell(core, group, channel, group.auditSeq);
  }
}

// --- in words -----------------------------------------------------------------------------------------------------------

/** Why a group is not there, or not all of it. */
export function groupReason(core: Core, group: PlacementGroup): string {
  if (group.state === 'CREATED') return '';
  if (!group.nameRegistered) return 'waits for the head to register its name';
  if (group.taking !== undefined) return 'nodes are asked for the bundles that they have of it';
  if (group.round !== undefined) return 'nodes are asked to reserve its bundles';
  const { nominal: quota } = group.job.tenant;
  const missing = lacking(group);
  const over = missing.find(({ resources }) => resources.cpuUnits > quota.cpuUnits || resources.memoryBytes > quota.memoryBytes);
  if (over !== undefined) return `bundle ${over.index} is larger than the tenant's quota: it can never be reserved`;
  const all = placesOf(core).map((node) => ({ ...node, available: node.total }));
  const lost = group.state === 'RESCHEDULING' ? `${missing.length} of ${group.bundles.length} bundles were lost; ` : '';
  const alone = missing.find((bundle) => planBundles('PACK', [bundle], all, new Map()) === undefined);
  if (alone !== undefined) return `${lost}infeasible: no node has what bundle ${alone.index} asks for${all.some(({ total }) => fits(alone.resources, total)) ? ', with its labels' : ''}`;
  if (planBundles(group.strategy, missing, all, placedOn(group)) === undefined) return `${lost}infeasible: ${group.strategy} of ${group.bundles.length} bundles finds no room on ${all.length} node${all.length === 1 ? '' : 's'}, also when they are empty`;
  return `${lost}waits for room for ${missing.length} bundle${missing.length === 1 ? '' : 's'} at once${group.refused === '' ? '' : `; last: ${group.refused}`}`;
}
