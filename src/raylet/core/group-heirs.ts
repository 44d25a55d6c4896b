/**
 * Taking over a detached placement group whose coordinator's node is lost: here, for a session of the principal that made it and asked for its name. The group
 * gets an id of this raylet's; nodes that hold bundles of it go on holding them, with what runs in them, and know both ids from then on.
 *   1. the head gives the name to the heir, or to another one that was first (`PlacementGroup.former`)
 *   2. every node is asked for the bundles it has of the old id; what did not answer in time is taken as lost, and given back when it does
 *   3. bundles that nobody has are planned anew, as after the loss of a node
 * Must never: give a principal another's group, or take bundles from a coordinator that is still there.
 */
import { hex } from '../../base/ids.ts';
import { BulkheadError } from '../../base/errors.ts';
import type { FrameReader } from '../../base/frame.ts';
import { OP } from '../../base/frame.ts';
import { BUNDLE_PREPARE_MS, MAX_BUNDLES_PER_GROUP, MAX_GROUP_HEIRS, MAX_PLACEMENT_GROUPS_PER_TENANT } from '../../base/limits.ts';
import type { ActorSeed } from './adoption.ts';
import type { BundleHold } from './bundle.ts';
import { holdsOf } from './bundle-holds.ts';
import { idWord, type Core } from './core.ts';
import { decideOn, done, failRequest } from './deciding.ts';
import { groupResource, resourceOf } from './group-rights.ts';
import { idFromHex } from './group-views.ts';
import { createEntry, DENIED } from './objects.ts';
import { allPlaced, beginGroup, giveBack, parseWanted, PlacementGroup } from './placement-groups.ts';
import { CHANNEL_KIND, failureOf, type Channel, type Failure } from './state.ts';
import { askRemote } from './upstreams.ts';
import { upstreamTo } from './upstream-channels.ts';

const INDEX = 1;

function unusable(why: string): Failure {
  return { code: 'UNAVAILABLE', message: `the node that coordinated this placement group is lost, and it is not taken over: ${why}`, stack: '' };
}

/** Undefined: it is under way, and its name will be this raylet's, or another's that was first. */
export function adoptGroup(core: Core, channel: Channel, name: string, former: Uint8Array, seed: Pick<ActorSeed, 'options'>): Failure | undefined {
  const { job } = channel;
  const { tenant } = job;
  let wanted;
  try {
    wanted = parseWanted(seed.options);
  } catch (error) {
    if (!(error instanceof BulkheadError)) throw error;
    return failureOf(error);
  }
  if (!wanted.detached || wanted.name !== name || idWord(former, 0) !== tenant.number) return unusable('what is kept of it is not of this group');
  if (tenant.groups >= MAX_PLACEMENT_GROUPS_PER_TENANT) return { code: 'RESOURCE_EXHAUSTED', message: `the tenant has ${tenant.groups} placement groups on this node: remove some of them`, stack: '' };
  const session = core.newSession(tenant, channel.principal.spiffeId);
  session.project = job.project;
  // It belongs to no client: it ends when it is removed.
  session.closed = true;
  const target = groupResource(tenant.name, channel.principal.spiffeId, name, wanted.bundles, true);
  const auditSeq = core.decide(channel, 'placement-group.create', target, session.prefixHex, INDEX, 1, `${wanted.strategy} ${wanted.bundles.length} again, of ${hex(former)}`);
  if (auditSeq < 0) {
    core.sessions.delete(session.prefixHex);
    tenant.sessions.delete(session);
    return DENIED;
  }
  beginGroup(core, new PlacementGroup({ session, index: INDEX, job, asJob: channel.principal.kind === 'job', ...wanted, resource: target, entry: createEntry(session, INDEX), auditSeq, wanted: seed.options, former: hex(former) }, hex(core.idOf(session, INDEX))));
  return undefined;
}

/** The name is ours: so are the bundles that nodes have. */
export function takeOver(core: Core, group: PlacementGroup): void {
  const own = core.config.nodeNumber;
  const taking = { waiting: new Set(core.nodes.keys()), deadlineMs: core.nowMs + BUNDLE_PREPARE_MS };
  group.taking = taking;
  core.preparing.add(group);
  noteHeir(core, group.former, group.id);
  for (const index of takeHolds(core, group.former, { group: group.id, channel: undefined, ownerNode: own, owner: group.session.ownerId }, group.job.submitter.spiffeId)) place(group, index, own);
  const [former, heir] = [idFromHex(group.former), idFromHex(group.id)];
  for (const node of taking.waiting) {
    askRemote(core, upstreamTo(core, node, group.job, group.asJob, 0), group.auditSeq, (out, number) => out.begin(OP.TAKE_BUNDLES).u32(number).raw(former).raw(heir), (failure, info) => {
      const indexes = failure === undefined ? indexesIn(info) : [];
      const inTime = group.taking === taking && taking.waiting.delete(node);
      if (inTime) for (const index of indexes) place(group, index, node);
      // Planned anew because it came too late, or held by another node as well.
      const elsewhere = indexes.filter((index) => group.bundles[index]?.node !== node);
      if (elsewhere.length > 0) giveBack(core, group, node, elsewhere, { code: 'CANCELLED', message: 'its bundle is on another node', stack: '' }, group);
      if (inTime && taking.waiting.size === 0) allPlaced(core, group);
    });
  }
  if (taking.waiting.size === 0) allPlaced(core, group);
}

function place(group: PlacementGroup, index: number, node: number): void {
  const bundle = group.bundles[index];
  if (bundle?.node === 0) bundle.node = node;
}

function indexesIn(info: string): number[] {
  const { indexes } = JSON.parse(info) as { indexes?: unknown };
  if (!Array.isArray(indexes) || indexes.length > MAX_BUNDLES_PER_GROUP || !indexes.every((index) => Number.isInteger(index))) throw new Error('another raylet answered with bundles that are none');
  return indexes as number[];
}

type Heir = Pick<BundleHold['of'], 'group' | 'channel' | 'ownerNode' | 'owner'>;

/** Firm bundles of a group of this submitter's whose coordinator is not heard any more; their indexes. What runs in them goes on. */
function takeHolds(core: Core, former: string, heir: Heir, submitter: string): number[] {
  const taken: number[] = [];
  for (const hold of holdsOf(core, former)) {
    const { of } = hold;
    if (of.job.submitter.spiffeId !== submitter || !of.detached || !hold.firm || of.channel?.closed !== true || core.holds.get(heir.group)?.has(of.index) === true) continue;
    const before = core.holds.get(former);
    before?.delete(of.index);
    if (before?.size === 0) core.holds.delete(former);
    hold.of = { ...of, ...heir };
    const holds = core.holds.get(heir.group);
    if (holds === undefined) core.holds.set(heir.group, new Map([[of.index, hold]]));
    else holds.set(of.index, hold);
    taken.push(of.index);
  }
  return taken;
}

/** What was begun under the old id goes on under the new one. Some are remembered, the last ones. */
function noteHeir(core: Core, former: string, heir: string): void {
  for (const [before, now] of core.groupHeirs) if (now === former) core.groupHeirs.set(before, heir);
  core.groupHeirs.delete(former);
  core.groupHeirs.set(former, heir);
  if (core.groupHeirs.size > MAX_GROUP_HEIRS) for (const oldest of core.groupHeirs.keys()) return void core.groupHeirs.delete(oldest);
}

/** Another raylet has taken over a group, of whose bundles some may be here. */
export function onTakeBundles(core: Core, channel: Channel, r: FrameReader): void {
  if (channel.kind !== CHANNEL_KIND.PEER) throw new BulkheadError('INVALID_ARGUMENT', 'TAKE_BUNDLES is for raylets');
  const request = r.u32();
  const former = r.id();
  const formerText = hex(former);
  const target = resourceOf(core, channel, former);
  const prefix = hex(former.subarray(0, 20));
  const seq = decideOn(core, channel, 'placement-group.create', target, prefix, idWord(former, 20), 1, 'take over', former);
  const own = idWord(former, 0) === channel.job.tenant.number;
  const heir = r.id();
  r.finish();
  const ownerNode = idWord(heir, 4);
  // A node speaks for groups that have its number, and of the caller's tenant.
  if (seq < 0 || !own || idWord(heir, 0) !== channel.job.tenant.number || core.nodes.get(ownerNode)?.nodeId !== channel.peer) return failRequest(core, channel, request, DENIED, seq < 0 ? ~seq : seq);
  const { submitter } = channel.job;
  const known = holdsOf(core, formerText);
  const heirText = hex(heir);
  const indexes = takeHolds(core, formerText, { group: heirText, channel, ownerNode, owner: channel.principal.spiffeId }, submitter.spiffeId);
  // Whoever has nothing of it believes it of a group that has nobody else any more.
  if (indexes.length > 0 || (known.length === 0 && !core.nodes.has(idWord(former, 4)))) noteHeir(core, formerText, heirText);
  done(core, channel, request, JSON.stringify({ indexes }), seq);
}
