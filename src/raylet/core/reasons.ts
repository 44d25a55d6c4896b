/**
 * Why things are as they are, in words: what a task or actor waits for, and who holds an object. What `list` and `get` show. Must never:
 * name anything of another tenant, or change anything.
 */
import { CALL_KIND } from '../../base/frame.ts';
import { fits, type ResourceVector } from '../../base/resources.ts';
import type { Core } from './core.ts';
import { nameOf, taskName } from './dispatch.ts';
import { isLocal } from './objects.ts';
import { groupReason } from './placement-groups.ts';
import { allowedPlaces, nowhere, type Place, type Placement } from './placement.ts';
import { projectReason } from './quota-reasons.ts';
import { CHANNEL_KIND, OBJECT_STATUS, PENDING_KIND, TASK_STATE, type Actor, type Channel, type ObjectEntry, type Task, type TenantState } from './state.ts';

/** Of the holders of one object, and the arguments of one call. */
const NAMED = 10;

export function nodeName(core: Core, number: number): string {
  return number === core.config.nodeNumber ? core.config.nodeId : (core.nodes.get(number)?.nodeId ?? `number ${number}`);
}

/** Why a call has not started, or what it does that is not running. */
export function taskReason(core: Core, task: Task): string {
  switch (task.state) {
    case TASK_STATE.WAITING:
      if (task.missing > 0) return waitsFor(core, task);
      if (task.notBeforeMs > core.nowMs) return `failed, and is tried again in ${task.notBeforeMs - core.nowMs} ms (try ${task.attempt + 1})`;
      return task.actor === undefined ? '' : actorCallReason(core, task.actor);
    case TASK_STATE.QUEUED:
      return pendingReason(core, task);
    case TASK_STATE.RUNNING:
      if (task.upstream !== undefined) return `on node ${nodeName(core, task.upstream.nodeNumber)}`;
      return task.blocked > 0 ? 'waits for an object' : '';
    case TASK_STATE.DONE:
      return '';
  }
}

function waitsFor(core: Core, task: Task): string {
  const missing = (task.deps ?? []).filter((entry) => !isLocal(entry));
  const named = missing.slice(0, NAMED).map((entry) => `argument ${core.idText(entry.session, entry.index)} ${whereIs(core, entry)}`);
  if (missing.length > NAMED) named.push(`${missing.length - NAMED} more`);
  return named.length === 0 ? 'waits for its arguments' : `waits for ${named.join(', ')}`;
}

/** Where a value comes from that is not here. */
function whereIs(core: Core, entry: ObjectEntry): string {
  const { producer } = entry;
  const node = entry.remote === undefined ? entry.session.nodeNumber : entry.remote.nodeNumber;
  if (entry.status === OBJECT_STATUS.REMOTE || entry.fetching) return `on node ${nodeName(core, node)}${entry.fetching ? ', on its way' : ''}`;
  if (producer === undefined) return node === core.config.nodeNumber ? '' : `on node ${nodeName(core, node)}`;
  const at = producer.upstream === undefined ? node : producer.upstream.nodeNumber;
  return `(of ${taskName(producer)}, ${producer.state === TASK_STATE.RUNNING ? 'running' : 'pending'} on node ${nodeName(core, at)})`;
}

function actorCallReason(core: Core, actor: Actor): string {
  if (actor.state === 'RESTARTING') return `its actor starts again: ${actorReason(core, actor)}`;
  if (actor.state !== 'ALIVE') return `its actor is not alive yet: ${actorReason(core, actor)}`;
  return 'waits for earlier calls of its caller';
}

export function actorReason(core: Core, actor: Actor): string {
  if (actor.state === 'ALIVE' || actor.state === 'DEAD') return actor.reason;
  if (actor.state === 'RESTARTING') return `was lost: ${actor.reason}; ${startReason(core, actor)}`;
  return startReason(core, actor);
}

function startReason(core: Core, actor: Actor): string {
  if (actor.notBeforeMs > core.nowMs) return `waits ${actor.notBeforeMs - core.nowMs} ms, since its last lives were short`;
  if (actor.creation.missing > 0) return waitsFor(core, actor.creation);
  if (actor.name !== '' && !actor.nameRegistered) return 'waits for the head to register its name';
  if (actor.upstream !== undefined) return `is created on node ${nodeName(core, actor.upstream.nodeNumber)}`;
  const grouped = actor.template.options.placement;
  if (actor.worker === undefined && grouped !== undefined && grouped.group !== '') return groupLack(core, grouped, actor.template.options.resources, actor.job.tenant) ?? noWorker(core, actor.job.tenant);
  if (actor.worker === undefined) return projectReason(actor.job, actor.template.options.resources) ?? lacks(core, actor.template.options.resources, actor.job.tenant, placementOf(actor.creation)) ?? noWorker(core, actor.job.tenant);
  return actor.worker.state === 'STARTING' ? 'a worker is starting' : 'its constructor runs';
}

/** Why a queued task has not started. */
export function pendingReason(core: Core, task: Task): string {
  const c = task.template.schedulingClass;
  if (c === undefined) return '';
  const lack = c.placement !== undefined && c.placement.group !== '' ? groupLack(core, c.placement, c.resources, c.job.tenant) : (projectReason(c.job, c.resources) ?? lacks(core, c.resources, c.job.tenant, c.placement));
  if (lack !== undefined) return lack;
  if (c.starting > 0) return 'a worker is starting';
  if (c.leases.size > 0) return `waits for its turn: ${c.leases.size} of its tenant’s workers run tasks like it`;
  return noWorker(core, c.job.tenant);
}

function noWorker(core: Core, tenant: TenantState): string {
  const waitMs = tenant.nextStartMs - core.nowMs;
  return waitMs > 0 ? `waits for a worker: workers of the tenant died too often; the next may start in ${Math.ceil(waitMs / 1_000)} s` : 'waits for a worker: the tenant or the node has as many as it may';
}

/** What keeps a request of resources from being met; undefined: nothing does. */
function lacks(core: Core, wanted: ResourceVector, tenant: TenantState, placement: Placement | undefined): string | undefined {
  const { nominal: quota } = tenant;
  const gib = (bytes: number): string => `${Math.round(bytes / 2 ** 20)} MiB`;
  if (wanted.cpuUnits > quota.cpuUnits) return `needs ${cpus(wanted.cpuUnits)}, tenant quota ${quota.cpuUnits / 10_000}: it can never start`;
  if (wanted.memoryBytes > quota.memoryBytes) return `needs ${gib(wanted.memoryBytes)}, tenant quota ${gib(quota.memoryBytes)}: it can never start`;
  if (placement !== undefined) return nowhere(core, placement, wanted, describe(wanted)) ?? noRoom(core, wanted, tenant, allowedPlaces(core, placement, wanted));
  if (!fits(wanted, core.config.total) && ![...core.nodes.values()].some((n) => fits(wanted, n.total))) return `infeasible: no node has ${describe(wanted)}`;
  const lack = shareLack(tenant, wanted);
  if (lack !== undefined) return lack;
  if (!fits(wanted, core.available)) return `needs ${describe(wanted)}, this node has ${describe(core.available)} free`;
  return undefined;
}

/** The tenant's quota, or this node's share of it, is in use. */
function shareLack({ cpuUnitsInUse, memoryBytesInUse, quota, nominal }: TenantState, wanted: ResourceVector): string | undefined {
  const of = (needs: string, whole: string, share: string, used: string, all: boolean): string => `needs ${needs}, tenant quota ${whole}, of which ${all ? `${used} in use` : `this node may use ${share} (${used} in use): more comes when other nodes need less`}`;
  const mib = (bytes: number): string => `${Math.round(bytes / 2 ** 20)} MiB`;
  if (cpuUnitsInUse + wanted.cpuUnits > quota.cpuUnits) return of(cpus(wanted.cpuUnits), `${nominal.cpuUnits / 10_000}`, `${quota.cpuUnits / 10_000}`, `${cpuUnitsInUse / 10_000}`, quota.cpuUnits === nominal.cpuUnits);
  if (memoryBytesInUse + wanted.memoryBytes > quota.memoryBytes) return of(mib(wanted.memoryBytes), mib(nominal.memoryBytes), mib(quota.memoryBytes), mib(memoryBytesInUse), quota.memoryBytes === nominal.memoryBytes);
  return undefined;
}

/** Of the places that a call may run in. */
function noRoom(core: Core, wanted: ResourceVector, tenant: TenantState, places: readonly Place[]): string | undefined {
  const here = places.some(({ number }) => number === core.config.nodeNumber);
  const lack = here ? shareLack(tenant, wanted) : undefined;
  if (lack !== undefined) return lack;
  if (places.some(({ available }) => fits(wanted, available))) return undefined;
  return places.length === 1 ? `needs ${describe(wanted)}, node ${places[0]?.nodeId} has not so much free` : `needs ${describe(wanted)}, none of the ${places.length} nodes that it may run on has so much free`;
}

/** What keeps a call from the bundles of its group; undefined: nothing does. */
function groupLack(core: Core, { group: given, bundle }: Placement, wanted: ResourceVector, tenant: TenantState): string | undefined {
  const group = core.groupNow(given);
  const own = core.groups.get(group);
  if (own !== undefined && own.job.tenant === tenant && own.state !== 'CREATED' && own.bundles.some(({ node }, i) => node === 0 && (bundle < 0 || i === bundle))) return `its placement group is ${own.state}: ${groupReason(core, own)}`;
  const here = [...(core.holds.get(group)?.values() ?? [])].filter(({ of, firm }) => firm && of.tenant === tenant && (bundle < 0 || of.index === bundle));
  if (here.some(({ available }) => fits(wanted, available))) return undefined;
  return `waits for room in ${bundle < 0 ? 'a bundle' : `bundle ${bundle}`} of its placement group`;
}

/** Of what another raylet sent here it was that one's to choose. */
function placementOf(task: Task): Placement | undefined {
  return task.channel.kind === CHANNEL_KIND.PEER ? undefined : task.template.options.placement;
}

function cpus(units: number): string {
  return `${units / 10_000} cpus`;
}

function describe(r: ResourceVector): string {
  const custom = r.custom === undefined ? '' : Object.keys(r.custom).map((k) => `, ${(r.custom?.[k] ?? 0) / 10_000} ${k}`).join('');
  return `${cpus(r.cpuUnits)}${r.memoryBytes > 0 ? `, ${Math.round(r.memoryBytes / 2 ** 20)} MiB` : ''}${custom}`;
}

// --- who holds an object ----------------------------------------------------------------------------------------------

function clientName(core: Core, channel: Channel): string {
  if (channel.kind === CHANNEL_KIND.DRIVER) return 'a driver';
  if (channel.kind === CHANNEL_KIND.PEER) return channel.peer === '' ? 'another node' : `node ${channel.peer}`;
  const { slot } = channel;
  if (slot?.actor !== undefined) return `actor ${slot.actor.template.exportName} ${core.idText(slot.actor.session, slot.actor.index)}`;
  return `worker ${slot?.worker.id ?? ''}`;
}

/**
 * Finds who pins the objects of `holders`, among what their tenant has here; yields now and then, since that can be a million things.
 * What it does not find is outside: a transfer, or another tenant by a grant of the owner.
 */
export function* findHolders(core: Core, tenant: TenantState, holders: ReadonlyMap<ObjectEntry, Holders>): Generator<undefined, void, undefined> {
  const add = (entry: ObjectEntry, who: () => string, pins = 1): void => {
    const of = holders.get(entry);
    if (of === undefined) return;
    of.pins += pins;
    if (of.names.length < NAMED) of.names.push(who());
    else of.more++;
  };
  for (const session of tenant.sessions) {
    for (const entry of session.objects.values()) {
      yield undefined;
      const { producer } = entry;
      // A call with several results is met once.
      if (producer !== undefined && producer.channel.session === session && producer.seq === entry.index) {
        const call = (): string => `${taskName(producer)} ${core.idText(session, producer.seq)}`;
        for (const dep of producer.deps ?? []) add(dep, () => `argument of ${call()}`);
        for (const dep of producer.contained ?? []) add(dep, () => `inside an argument of ${call()}`);
      }
      for (const inner of entry.contained ?? []) add(inner, () => `inside object ${core.idText(session, entry.index)}`);
      if (!holders.has(entry)) continue;
      for (const { call } of entry.waiters ?? []) if (call !== undefined && !call.done) add(entry, () => `${call.kind === PENDING_KIND.WAIT ? 'wait' : 'get'} of ${clientName(core, call.channel)}`, call.kind === PENDING_KIND.WAIT ? 0 : 1);
    }
  }
  for (const { contained, channel, seq, template } of tenant.lineages) {
    yield undefined;
    for (const inner of contained) add(inner, () => `inside an argument of what ${nameOf(template)} ${core.idText(channel.session, seq)} is computed again from`);
  }
  for (const upstream of core.upstreams.values()) {
    if (upstream.job.tenant !== tenant) continue;
    yield undefined;
    for (const entries of upstream.returning.values()) for (const entry of entries) add(entry, () => `passed on to node ${nodeName(core, upstream.nodeNumber)}, which has not told its owner yet`);
  }
  for (const job of tenant.jobs) {
    for (const channel of job.channels) {
      yield undefined;
      for (const entry of channel.borrowed.keys()) add(entry, () => `lent to ${clientName(core, channel)}`);
      for (const { entry } of channel.deferred) add(entry, () => `answer to ${clientName(core, channel)}, which has not read the ones before`);
    }
  }
}

export class Holders {
  readonly names: string[] = [];
  more = 0;
  /** Of the object's pins, those that are explained. */
  pins = 0;
}

export function holdersText(core: Core, entry: ObjectEntry, { names, more, pins }: Holders): string {
  const all = [...names];
  if (more > 0) all.push(`${more} more`);
  if (entry.handles > 0) all.unshift(`${entry.handles === 1 ? 'a ref' : `${entry.handles} refs`} of its owner`);
  if (entry.producer !== undefined) all.unshift(`result of ${taskName(entry.producer)} to come${entry.producer.template.kind === CALL_KIND.ACTOR_CLASS ? ' (an actor’s creation)' : ''}`);
  if (entry.fetching) all.push(`on its way from node ${nodeName(core, entry.remote?.nodeNumber ?? entry.session.nodeNumber)}`);
  if (entry.pins > pins) all.push(`${entry.pins - pins} outside what is shown here: transfers, tenants that it was granted to`);
  return all.join('; ');
}
