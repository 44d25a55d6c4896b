/**
 * What must hold of a raylet after each of its steps, counted anew from its nouns: resources, quotas, references, files. A second way to
 * every number that the core keeps by adding and subtracting.
 */
import { CALL_KIND } from '../../src/base/frame.ts';
import { CHANNEL_KIND, OBJECT_STATUS, PENDING_KIND, TASK_STATE, type Job, type Lease, type ObjectEntry, type Task, type TenantState } from '../../src/raylet/core/state.ts';
import { NO_PROJECT_QUOTA } from '../../src/base/project-quota.ts';
import type { ResourceVector } from '../../src/base/resources.ts';
import type { BundleHold } from '../../src/raylet/core/bundle.ts';
import type { ProjectState } from '../../src/raylet/core/project-state.ts';
import type { SimRaylet } from './raylet-machine.ts';

function count<K>(map: Map<K, number>, key: K, n = 1): void {
  map.set(key, (map.get(key) ?? 0) + n);
}

/** Every call that has not ended. */
export function liveTasks(raylet: SimRaylet): Set<Task> {
  const core = raylet.core.state;
  const tasks = new Set<Task>();
  const add = (task: Task | undefined): void => {
    if (task !== undefined && task.state !== TASK_STATE.DONE) tasks.add(task);
  };
  for (const session of core.sessions.values()) for (const entry of session.objects.values()) {
    add(entry.producer);
    for (const waiter of entry.waiters ?? []) add(waiter.task);
  }
  for (const c of core.classes) for (const task of c.queue) add(task);
  for (const worker of core.workers.values()) for (const slot of worker.slots.values()) for (const task of slot.execs.values()) add(task);
  for (const upstream of core.upstreams.values()) for (const task of upstream.tasks) add(task);
  for (const task of core.delayed) add(task);
  for (const job of core.jobs.values()) for (const actor of job.actors) {
    add(actor.creation);
    for (const queue of actor.queues.values()) for (const task of queue) add(task);
  }
  return tasks;
}

/** Throws what does not hold. */
export function checkRaylet(raylet: SimRaylet): void {
  const core = raylet.core.state;
  const fail = (what: string): never => {
    throw new Error(`node ${raylet.number}: ${what}`);
  };
  raylet.documented();
  // --- resources: what is free and what is held are what there is
  let cpus = core.available.cpuUnits;
  let memory = core.available.memoryBytes;
  const cpusOf = new Map<TenantState, number>();
  const cpusOfProject = new Map<ProjectState, number>();
  const cpusOfJob = new Map<Job, number>();
  /** Taken from bundles. */
  const inside = new Map<BundleHold, number>();
  const hold = (job: Job, { cpuUnits, memoryBytes }: ResourceVector, bundle?: BundleHold): void => {
    if (bundle?.released === false) return count(inside, bundle, cpuUnits);
    // Of a bundle that is gone it counts where that did.
    const of = bundle?.of.job ?? job;
    cpus += cpuUnits;
    memory += memoryBytes;
    count(cpusOf, of.tenant, cpuUnits);
    count(cpusOfProject, of.project, cpuUnits);
    count(cpusOfJob, of, cpuUnits);
  };
  for (const holds of core.holds.values()) for (const { of } of holds.values()) hold(of.job, of.resources);
  // Of a job that has ended, leases go with their workers.
  const leases = new Set<Lease>();
  for (const c of core.classes) for (const lease of c.leases) leases.add(lease);
  for (const worker of core.workers.values()) for (const slot of worker.slots.values()) if (slot.lease !== undefined) leases.add(slot.lease);
  for (const lease of leases) {
    const c = lease.schedulingClass;
    if (lease.holding) hold(c.job, c.resources, lease.bundle);
    if (lease.active < 0 || (lease.slot !== undefined && lease.active > lease.slot.execs.size)) fail(`resources: a lease has ${lease.active} active calls of ${lease.slot?.execs.size}`);
  }
  for (const job of core.jobs.values()) for (const actor of job.actors) if (actor.holding) hold(job, actor.template.options.resources, actor.bundle);
  for (const holds of core.holds.values()) {
    for (const bundle of holds.values()) {
      const left = bundle.of.resources.cpuUnits - (inside.get(bundle) ?? 0);
      if (bundle.available.cpuUnits !== left || (left < 0 && !raylet.waited)) fail(`resources: bundle ${bundle.of.index} of ${bundle.of.group} has ${bundle.available.cpuUnits} units free, and ${left} are`);
    }
  }
  if (cpus !== core.config.total.cpuUnits || memory !== core.config.total.memoryBytes) fail(`resources: free and held are ${cpus} units and ${memory} bytes, and ${core.config.total.cpuUnits} and ${core.config.total.memoryBytes} are there`);
  if (core.available.cpuUnits < 0 && !raylet.waited) fail(`resources: ${core.available.cpuUnits} units are free`);
  // --- calls
  const tasks = liveTasks(raylet);
  const tasksOf = new Map<TenantState, number>();
  const callsOf = new Map<TenantState | ProjectState | Job, number>();
  const inFlight = new Map<unknown, number>();
  const tasksOfProject = new Map<ProjectState, number>();
  const tasksOfJob = new Map<Job, number>();
  for (const task of tasks) {
    if (task.template.kind === CALL_KIND.TASK && task.channel.kind !== CHANNEL_KIND.PEER) count(tasksOf, task.channel.job.tenant);
    count(inFlight, task.channel);
    const { kind, job } = task.channel;
    if (kind !== CHANNEL_KIND.PEER) for (const level of [job, job.project, job.tenant]) count(callsOf, level);
    if (task.template.kind === CALL_KIND.TASK && task.channel.kind !== CHANNEL_KIND.PEER) {
      count(tasksOfProject, task.channel.job.project);
      count(tasksOfJob, task.channel.job);
    }
  }
  if (core.callsInFlight !== tasks.size) fail(`calls: ${core.callsInFlight} are counted as in flight, ${tasks.size} are`);
  for (const tenant of core.tenants.values()) {
    if (tenant.inFlight !== (callsOf.get(tenant) ?? 0)) fail(`calls: tenant ${tenant.name} counts ${tenant.inFlight} in flight, ${callsOf.get(tenant) ?? 0} are`);
    for (const project of tenant.projects.values()) if (project.inFlight !== (callsOf.get(project) ?? 0)) fail(`calls: project ${project.name} counts ${project.inFlight} in flight, ${callsOf.get(project) ?? 0} are`);
    for (const job of tenant.jobs) if (job.inFlight !== (callsOf.get(job) ?? 0)) fail(`calls: job ${job.id} counts ${job.inFlight} in flight, ${callsOf.get(job) ?? 0} are`);
  }
  for (const channel of core.channels.values()) if (channel.inFlight !== (inFlight.get(channel) ?? 0)) fail(`calls: channel ${channel.number} counts ${channel.inFlight} in flight, ${inFlight.get(channel) ?? 0} are`);
  // --- references: every pin has who holds it
  const pins = new Map<ObjectEntry, number>();
  const entries = new Set<ObjectEntry>();
  const names = new Map<TenantState, number>();
  const bytes = new Map<TenantState, number>();
  const bytesOfProject = new Map<ProjectState, number>();
  const files = new Set<string>();
  /** Octets of files in memory, and on disk. */
  const inMemory = new Map<TenantState, number>();
  const onDisk = new Map<TenantState, number>();
  const copies = new Set<string>();
  for (const session of core.sessions.values()) {
    if (session.nodeNumber !== core.config.nodeNumber) count(names, session.tenant);
    for (const [index, entry] of session.objects) {
      count(names, session.tenant);
      if (session.aliases?.has(index) === true) continue;
      entries.add(entry);
      count(bytes, session.tenant, entry.size);
      if (session.project !== undefined) count(bytesOfProject, session.project, entry.size);
      if (entry.fileName !== '') {
        files.add(`${session.tenant.name}/${entry.fileName}`);
        count(inMemory, session.tenant, entry.size);
      }
      // On its way back from disk.
      if (entry.status === OBJECT_STATUS.SPILLED && entry.fetching) count(inMemory, session.tenant, entry.size);
      if (entry.spillName !== '') {
        copies.add(`${session.tenant.name}/${entry.spillName}`);
        count(onDisk, session.tenant, entry.size);
      }
      for (const [tenant, name] of entry.copies ?? []) {
        count(bytes, tenant, entry.size);
        count(inMemory, tenant, entry.size);
        files.add(`${tenant.name}/${name}`);
      }
      for (const inner of entry.contained ?? []) count(pins, inner);
      for (const waiter of entry.waiters ?? []) if (waiter.call !== undefined && waiter.call.kind !== PENDING_KIND.WAIT) count(pins, entry);
    }
    for (const { entry, held } of session.aliases?.values() ?? []) if (held) count(pins, entry);
  }
  // What lost results are computed again from.
  const lineagePins = new Map<ObjectEntry, number>();
  for (const tenant of core.tenants.values()) for (const lineage of tenant.lineages) {
    for (const entry of lineage.contained) count(pins, entry);
    for (const entry of lineage.deps) count(lineagePins, entry);
  }
  for (const task of tasks) {
    for (const entry of task.deps ?? []) count(pins, entry);
    for (const entry of task.contained ?? []) count(pins, entry);
  }
  for (const channel of core.channels.values()) {
    for (const { entry } of channel.deferred) count(pins, entry);
    for (const entry of channel.borrowed.keys()) count(pins, entry);
    for (const { total, fileName } of channel.puts.values()) {
      count(bytes, channel.job.tenant, total);
      count(inMemory, channel.job.tenant, total);
      files.add(`${channel.job.tenant.name}/${fileName}`);
    }
  }
  // What other nodes are given, or have given, stays held until its owner knows.
  for (const upstream of core.upstreams.values()) {
    for (const held of upstream.returning.values()) for (const entry of held) count(pins, entry);
    for (const { lent } of upstream.requests.values()) for (const held of lent?.values() ?? []) for (const entry of held) count(pins, entry);
  }
  for (const upstream of core.upstreams.values()) for (const { upload } of upstream.requests.values()) {
    if (upload === undefined) continue;
    count(bytes, upload.tenant, upload.total);
    count(inMemory, upload.tenant, upload.total);
    files.add(`${upload.tenant.name}/${upload.fileName}`);
  }
  for (const group of core.groups.values()) count(pins, group.entry);
  const actorsOf = new Map<TenantState, number>();
  for (const job of core.jobs.values()) {
    for (const { entries: held } of job.once.values()) for (const entry of held) count(pins, entry);
    for (const actor of job.actors) {
      if (actor.creation.channel.kind !== CHANNEL_KIND.PEER) count(actorsOf, job.tenant);
      for (const entry of [...(actor.seed?.deps ?? []), ...(actor.seed?.contained ?? [])]) count(pins, entry);
    }
  }
  for (const entry of entries) {
    const wanted = pins.get(entry) ?? 0;
    // One of another node may stay held until that knows who reads it here: what is owed to that is not counted, so only too few are wrong before the end.
    const borrowed = entry.session.nodeNumber !== core.config.nodeNumber;
    if (borrowed ? entry.pins < wanted : entry.pins !== wanted) fail(`references: ${entry.session.prefixHex}/${entry.index} has ${entry.pins} pins, and ${wanted} that hold it`);
    if (entry.lineagePins !== (lineagePins.get(entry) ?? 0)) fail(`references: ${entry.session.prefixHex}/${entry.index} has ${entry.lineagePins} pins of lineages, and ${lineagePins.get(entry) ?? 0} that hold it`);
    if (entry.handles < 0) fail(`references: ${entry.session.prefixHex}/${entry.index} has ${entry.handles} handles`);
    if (entry.handles === 0 && entry.pins === 0 && entry.waiters === undefined && entry.producer === undefined && !entry.fetching && entry.lineagePins === 0) fail(`references: ${entry.session.prefixHex}/${entry.index} is held by nobody and is still there`);
    if (entry.status === OBJECT_STATUS.INLINE && entry.value === undefined) fail(`references: ${entry.session.prefixHex}/${entry.index} has no value`);
  }
  for (const [entry, wanted] of pins) if (!entries.has(entry)) fail(`references: ${entry.session.prefixHex}/${entry.index} is gone, and ${wanted} hold it`);
  // --- quotas: as counted, and not exceeded
  for (const tenant of core.tenants.values()) {
    const same = (what: string, has: number, wanted: number): void => {
      if (has !== wanted) fail(`quotas: ${tenant.name} counts ${has} ${what}, and has ${wanted}`);
    };
    same('cpu units', tenant.cpuUnitsInUse, cpusOf.get(tenant) ?? 0);
    same('tasks', tenant.tasks, tasksOf.get(tenant) ?? 0);
    same('actors', tenant.actors, actorsOf.get(tenant) ?? 0);
    same('entries', tenant.entries, names.get(tenant) ?? 0);
    same('bytes of objects', tenant.objectBytes, bytes.get(tenant) ?? 0);
    same('bytes of files in memory', tenant.fileBytes, inMemory.get(tenant) ?? 0);
    same('bytes of copies on disk', tenant.spilledBytes, onDisk.get(tenant) ?? 0);
    if (tenant.cpuUnitsInUse > raylet.quota.cpuUnits && !raylet.waited) fail(`quotas: ${tenant.name} uses ${tenant.cpuUnitsInUse} cpu units of ${raylet.quota.cpuUnits}`);
    // A lost result is computed again whatever the quota says: the call was let in once.
    const again = new Set([...tenant.lineages].map((lineage) => lineage.args));
    const rebuilt = [...tasks].filter((task) => task.channel.job.tenant === tenant && again.has(task.batch)).length;
    if (tenant.tasks - rebuilt > raylet.quota.tasks) fail(`quotas: ${tenant.name} has ${tenant.tasks} tasks of ${raylet.quota.tasks}`);
    if (tenant.actors > raylet.quota.actors) fail(`quotas: ${tenant.name} has ${tenant.actors} actors of ${raylet.quota.actors}`);
    if (tenant.objectBytes > raylet.quota.objectBytes) fail(`quotas: ${tenant.name} has ${tenant.objectBytes} bytes of ${raylet.quota.objectBytes}`);
    let lent = 0;
    let beyond = 0;
    for (const project of tenant.projects.values()) {
      const of = `project ${project.name} of ${tenant.name}`;
      const quota = raylet.quota.projects.get(project.name) ?? NO_PROJECT_QUOTA;
      const equal = (what: string, has: number, wanted: number): void => {
        if (has !== wanted) fail(`quotas: ${of} counts ${has} ${what}, and has ${wanted}`);
      };
      equal('cpu units', project.cpuUnitsInUse, cpusOfProject.get(project) ?? 0);
      equal('tasks', project.tasks, tasksOfProject.get(project) ?? 0);
      equal('bytes of objects', project.objectBytes, bytesOfProject.get(project) ?? 0);
      if (quota === NO_PROJECT_QUOTA) continue;
      lent += quota.cpuLendUnits;
      beyond += Math.max(0, project.cpuUnitsInUse - (quota.cpuUnits - quota.cpuLendUnits));
      if (project.cpuUnitsInUse > quota.cpuUnits + quota.cpuBorrowUnits && !raylet.waited) fail(`quotas: ${of} uses ${project.cpuUnitsInUse} units of ${quota.cpuUnits} and ${quota.cpuBorrowUnits} that it may borrow`);
      if (project.tasks - rebuilt > quota.tasks) fail(`quotas: ${of} has ${project.tasks} tasks of ${quota.tasks}`);
      if (project.objectBytes > quota.objectBytes) fail(`quotas: ${of} has ${project.objectBytes} bytes of ${quota.objectBytes}`);
    }
    if (beyond > lent && !raylet.waited) fail(`quotas: the projects of ${tenant.name} use ${beyond} units beyond what is kept for them, and lend ${lent}`);
    for (const job of tenant.jobs) {
      const quota = raylet.quota.projects.get(job.project.name) ?? NO_PROJECT_QUOTA;
      if (job.cpuUnitsInUse !== (cpusOfJob.get(job) ?? 0) || job.tasks !== (tasksOfJob.get(job) ?? 0)) fail(`quotas: ${job.id} counts ${job.cpuUnitsInUse} units and ${job.tasks} tasks, and has ${cpusOfJob.get(job) ?? 0} and ${tasksOfJob.get(job) ?? 0}`);
      if (job.cpuUnitsInUse > quota.jobCpuUnits && !raylet.waited) fail(`quotas: ${job.id} uses ${job.cpuUnitsInUse} units of ${quota.jobCpuUnits}`);
      if (job.tasks - rebuilt > quota.jobTasks) fail(`quotas: ${job.id} has ${job.tasks} tasks of ${quota.jobTasks}`);
    }
  }
  // --- files: none without an object
  for (const path of raylet.files.keys()) if (!files.has(path)) fail(`files: ${path} is of no object`);
  for (const path of raylet.spills.keys()) if (!copies.has(path)) fail(`spilling: ${path} is a copy of no object`);
  for (const path of copies) if (!raylet.spills.has(path)) fail(`spilling: the copy ${path} is gone, and its object is not`);
  if (core.spilledBytes + core.spillingBytes > core.config.spillBytes) fail(`spilling: ${core.spilledBytes} bytes are on disk and ${core.spillingBytes} on their way, of ${core.config.spillBytes}`);
}

/** At rest: each bundle that is reserved is one that its coordinator has placed there, for good, and each that is placed is reserved. */
export function checkGroups(raylets: readonly SimRaylet[]): void {
  for (const { number, core: { state } } of raylets) {
    for (const [id, holds] of state.holds) {
      for (const [index, { firm, of }] of holds) {
        const bundle = raylets[of.ownerNode - 1]?.core.state.groups.get(id)?.bundles[index];
        if (bundle?.node !== number) throw new Error(`node ${number}: groups: bundle ${index} of ${id} is reserved, and node ${of.ownerNode} ${bundle === undefined ? 'knows no such group' : `has it on node ${bundle.node}`}`);
        if (!firm) throw new Error(`node ${number}: groups: bundle ${index} of ${id} is placed here, and not firm`);
      }
    }
    for (const group of state.groups.values()) {
      const placed = group.bundles.filter(({ node }) => node !== 0);
      if (group.state === 'CREATED' && placed.length < group.bundles.length) throw new Error(`node ${number}: groups: ${group.id} has ${placed.length} of ${group.bundles.length} bundles, and is said to be there`);
      for (const [index, { node }] of group.bundles.entries()) if (node !== 0 && raylets[node - 1]?.core.state.holds.get(group.id)?.has(index) !== true) throw new Error(`node ${number}: groups: bundle ${index} of ${group.id} is placed on node ${node}, where it is not reserved`);
    }
  }
}

/** Nobody is left: no call, no resource, no object, job or file. */
export function checkEmpty(raylet: SimRaylet): void {
  const core = raylet.core.state;
  const fail = (what: string): never => {
    throw new Error(`node ${raylet.number} at the end: ${what}`);
  };
  checkRaylet(raylet);
  if (core.available.cpuUnits !== core.config.total.cpuUnits) fail(`${core.available.cpuUnits} of ${core.config.total.cpuUnits} units are free`);
  if (core.callsInFlight > 0) fail(`${core.callsInFlight} calls are left`);
  for (const tenant of core.tenants.values()) if (tenant.tasks + tenant.actors !== 0) fail(`${tenant.name} has ${tenant.tasks} tasks, ${tenant.actors} actors`);
  if (core.holds.size + core.groups.size > 0) fail(`${core.groups.size} placement groups and bundles of ${core.holds.size} are left`);
  for (const session of core.sessions.values()) if (session.objects.size > 0) fail(`objects of session ${session.prefixHex} are left: ${[...session.objects].map(([i, o]) => `${i}: ${o.handles} handles, ${o.pins} pins, status ${o.status}`).join('; ')}`);
  if (core.jobs.size > 0) fail(`jobs are left: ${[...core.jobs.values()].map((job) => `${job.id} with ${[...job.channels].map((c) => `channel ${c.number} of kind ${c.kind}`).join(', ')} and ${job.actors.size} actors`).join('; ')}`);
  if (core.callsInFlight > 0) fail(`${core.callsInFlight} calls are left`);
  if (raylet.files.size + raylet.spills.size > 0) fail(`files are left: ${[...raylet.files.keys(), ...raylet.spills.keys()].join(', ')}`);
  for (const tenant of core.tenants.values()) if (tenant.tasks + tenant.actors + tenant.objectBytes + tenant.entries + tenant.heldBytes !== 0) fail(`${tenant.name} has ${tenant.tasks} tasks, ${tenant.actors} actors, ${tenant.objectBytes} bytes of objects, ${tenant.entries} entries, ${tenant.heldBytes} bytes of batches`);
}

/** The calls that have not ended, for who looks for the reason. */
export function describeCalls(raylet: SimRaylet): string {
  const states = ['waiting', 'queued', 'running', 'done'];
  const core = raylet.core.state;
  const calls = [...liveTasks(raylet)].slice(0, 8).map((t) => [
    `${states[t.state]} ${t.template.exportName}${t.template.methodName} ${JSON.stringify(t.template.optionsJson)} seq ${t.seq} of channel ${t.channel.number}${t.channel.closed ? ' (closed)' : ''} kind ${t.channel.kind}`,
    t.slot === undefined ? '' : `in worker ${t.slot.worker.key} ${t.slot.worker.state}${raylet.pools.has(t.slot.worker) ? '' : ' (gone)'}`,
    t.upstream === undefined ? '' : `on node ${t.upstream.nodeNumber} as ${t.remoteSeq}${t.upstream.prefix === undefined ? ' (not open)' : ''}${t.upstream.closed ? ' (closed)' : ''}`,
    t.channel.job.ended ? 'its job ended' : '', t.template.schedulingClass === undefined || core.classes.has(t.template.schedulingClass) ? '' : 'its class is gone',
    t.missing > 0 ? `${t.missing} arguments missing` : '', t.cancelled === undefined ? '' : 'cancelled', t.blocked > 0 ? `blocked ${t.blocked}` : '',
  ].filter((text) => text !== '').join(' '));
  const tenants = [...core.tenants.values()].map((t) => `${t.name} uses ${t.cpuUnitsInUse} of ${t.quota.cpuUnits} units`);
  return calls.length === 0 ? '' : `${calls.join(' | ')}; ${core.available.cpuUnits} of ${core.config.total.cpuUnits} units free, ${tenants.join(', ')}, ${core.workers.size} workers`;
}
