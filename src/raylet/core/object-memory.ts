/**
 * How much memory (tmpfs) the files of objects may take, per tenant and on the node, and what happens beyond: a copy of what another node has is
 * dropped, and fetched again when wanted; everything else is written to disk, encrypted, and read back when wanted. The tenant that is over its own
 * limit goes first, and on a full node the one that has most: nobody's objects make room for a heavier neighbour. Of a tenant's objects the longest
 * unused go first. Must never: drop the only copy of a value, or let go of a file that a call is about to read.
 *
 *   1. FILE → FILE, spilling    over a limit; the driver writes the encrypted copy (`spill-file`)
 *   2. FILE, spilling → SPILLED  it is on disk, and nobody has begun to use the file meanwhile: the file goes
 *   3. FILE → SPILLED            it was restored before: its copy is still on disk
 *   4. FILE → REMOTE             another raylet has it, and holds it for us
 *   5. SPILLED → SPILLED, fetching   somebody waits for the bytes (`restore-file`)
 *   6. SPILLED, fetching → FILE  what was read is what was written; the encrypted copy stays for 3
 *   7. SPILLED, fetching → FAILED  it is not (or is recomputed: lineage.ts)
 */
import { MAX_SPILLS_AT_ONCE } from '../../base/limits.ts';
import type { Core } from './core.ts';
import { loseEntry } from './lineage.ts';
import { enterMemory, giveMemory, leaveMemory, takeMemory } from './memory-books.ts';
import { collect, dropCopies, wake } from './objects.ts';
import { OBJECT_STATUS, type Failure, type ObjectEntry, type TenantState } from './state.ts';

/** After a spill that failed the next is tried so much later; until then what is over the limit is refused. */
const RETRY_MS = 1_000;
/** What was given to a worker is read by then, when no call runs there any more. */
const ATTACHED_MS = 2_000;
/** Entries that one look at a tenant passes over because they are in use, before it gives up. */
const LOOKS = 1_024;

/** The tenant's clients are read from no further until its objects have left memory. While none can leave, puts are refused instead: refs must still be released. */
export function overMemory(core: Core, tenant: TenantState): boolean {
  if (core.spilling.size === 0 || core.spillRefused !== '') return false;
  return tenant.fileBytes > tenant.quota.objectMemoryBytes || (core.fileBytes > core.config.objectMemoryBytes && tenant === heaviest(core));
}

function heaviest(core: Core): TenantState | undefined {
  let most: TenantState | undefined;
  for (const tenant of core.tenants.values()) if (most === undefined || tenant.fileBytes > most.fileBytes) most = tenant;
  return most;
}

/** The worker's link to the file is all that is left of it once it is spilled, and the worker opens it in its own time. */
function isRead(core: Core, entry: ObjectEntry): boolean {
  if (entry.attached === undefined) return false;
  for (const slot of entry.attached) if (slot.worker.slots.get(slot.number) !== slot) entry.attached.delete(slot);
  for (const slot of entry.attached) if (slot.execs.size > 0) return true;
  if (entry.attached.size > 0 && core.nowMs - entry.attachedMs < ATTACHED_MS) return true;
  entry.attached = undefined;
  return false;
}

function mayLeave(core: Core, entry: ObjectEntry): boolean {
  return entry.status === OBJECT_STATUS.FILE && entry.uses === 0 && entry.waiters === undefined && !core.spilling.has(entry) && !isRead(core, entry);
}

/** At the end of a step: what must leave memory begins to. */
export function relieve(core: Core): void {
  core.pressed = false;
  for (const tenant of core.tenants.values()) {
    if (tenant.fileBytes > tenant.quota.objectMemoryBytes) relieveTenant(core, tenant, tenant.fileBytes - tenant.spillingBytes - tenant.quota.objectMemoryBytes);
  }
  let over = core.fileBytes - core.spillingBytes - core.config.objectMemoryBytes;
  if (over <= 0) return;
  const byWeight = [...core.tenants.values()].filter((t) => t.fileBytes > 0).sort((a, b) => b.fileBytes - a.fileBytes);
  for (const tenant of byWeight) {
    over -= relieveTenant(core, tenant, over);
    if (over <= 0) return;
  }
  if (core.spilling.size === 0 && core.spillRefused === '') refuseSpills(core, 'all of them are in use');
}

/** Returns how many octets leave, now or when they are on disk. */
function relieveTenant(core: Core, tenant: TenantState, wanted: number): number {
  let freed = 0;
  let looks = 0;
  for (const entry of tenant.files) {
    if (freed >= wanted || ++looks > LOOKS) break;
    if (!mayLeave(core, entry)) continue;
    const { size } = entry;
    if (entry.remote !== undefined && !entry.remote.closed && entry.remoteId !== undefined) {
      dropFile(core, entry);
      tenant.objectBytes -= size;
      if (entry.session.project !== undefined) entry.session.project.objectBytes -= size;
      entry.size = 0;
      entry.status = OBJECT_STATUS.REMOTE;
    } else if (entry.spillName !== '') {
      dropFile(core, entry);
      entry.status = OBJECT_STATUS.SPILLED;
    } else if (!beginSpill(core, entry)) continue;
    freed += size;
  }
  return freed;
}

function dropFile(core: Core, entry: ObjectEntry): void {
  leaveMemory(core, entry);
  dropCopies(core, entry);
  core.out.push({ type: 'delete-file', tenant: entry.session.tenant, fileName: entry.fileName });
  entry.fileName = '';
}

function beginSpill(core: Core, entry: ObjectEntry): boolean {
  if (core.nowMs < core.spillAfterMs || core.spilling.size >= MAX_SPILLS_AT_ONCE) return false;
  const { tenant } = entry.session;
  if (core.spilledBytes + core.spillingBytes + entry.size > core.config.spillBytes) {
    refuseSpills(core, `the ${core.config.spillBytes} bytes of disk that this node has for objects are used up`);
    return false;
  }
  core.spilling.add(entry);
  core.spillingBytes += entry.size;
  tenant.spillingBytes += entry.size;
  entry.touched = false;
  // No name twice: what is left of an earlier time is never taken for this one.
  const spillName = `sp-${entry.session.prefixHex}-${core.nextNumber()}`;
  core.out.push({ type: 'spill-file', entry, tenant, fileName: entry.fileName, size: entry.size, spillName, id: core.idOf(entry.session, entry.index), version: ++entry.spillVersion });
  return true;
}

function refuseSpills(core: Core, why: string): void {
  core.spillRefused = why;
  core.spillAfterMs = core.nowMs + RETRY_MS;
}

/** The encrypted copy is on disk, or could not be written: then the object stays where it is. */
export function spilled(core: Core, entry: ObjectEntry, fileName: string, spillName: string, size: number, failure: Failure | undefined): void {
  if (!core.spilling.delete(entry)) return;
  const { tenant } = entry.session;
  core.spillingBytes -= size;
  tenant.spillingBytes -= size;
  if (failure !== undefined) refuseSpills(core, failure.message);
  else if (core.nowMs >= core.spillAfterMs) core.spillRefused = '';
  // Let go, or used, while it was being written.
  const stays = entry.fileName !== fileName || entry.status !== OBJECT_STATUS.FILE || entry.session.objects.get(entry.index) !== entry;
  if (failure !== undefined || stays) core.out.push({ type: 'delete-spill', tenant, spillName });
  else {
    entry.spillName = spillName;
    core.spilledBytes += size;
    tenant.spilledBytes += size;
    if (!entry.touched && mayLeave(core, entry)) {
      dropFile(core, entry);
      entry.status = OBJECT_STATUS.SPILLED;
      core.lifecycle(tenant, 'object.spilled', entry.session.ownerId, 'object', entry.session.prefixHex, entry.index, `${size} bytes`);
    }
  }
  core.pressed = core.fileBytes > core.config.objectMemoryBytes || tenant.fileBytes > tenant.quota.objectMemoryBytes;
}

/** At the end of a step: what somebody waits for comes back, as there is room, the first asked for first. */
export function takeUpRestores(core: Core): void {
  while (core.restores.length > 0) {
    const entry = core.restores[0] as ObjectEntry;
    if (entry.status !== OBJECT_STATUS.SPILLED || entry.fetching || entry.waiters === undefined) {
      core.restores.shift();
      continue;
    }
    const { tenant } = entry.session;
    if (core.fileBytes + entry.size > core.config.objectMemoryBytes || tenant.fileBytes + entry.size > tenant.quota.objectMemoryBytes) {
      // Others leave first. Where none can, it goes over the limit: whoever waits holds what the others wait for.
      takeMemory(core, tenant, entry.size);
      relieve(core);
      giveMemory(core, tenant, entry.size);
      if (core.spilling.size > 0 && core.restoring > 0) return;
    }
    core.restores.shift();
    entry.fetching = true;
    core.restoring++;
    takeMemory(core, tenant, entry.size);
    core.out.push({ type: 'restore-file', entry, tenant, spillName: entry.spillName, size: entry.size, fileName: `re-${entry.session.prefixHex}-${core.nextNumber()}`, id: core.idOf(entry.session, entry.index), version: entry.spillVersion });
  }
}

/** What was read is what was written (no failure), is not (`OBJECT_LOST`), or cannot be read now: then it is tried again. */
export function restored(core: Core, entry: ObjectEntry, spillName: string, fileName: string, size: number, failure: Failure | undefined): void {
  const { tenant } = entry.session;
  core.restoring--;
  giveMemory(core, tenant, size);
  entry.fetching = false;
  const gone = entry.status !== OBJECT_STATUS.SPILLED || entry.spillName !== spillName || entry.session.objects.get(entry.index) !== entry;
  if (failure === undefined && !gone) {
    entry.status = OBJECT_STATUS.FILE;
    entry.fileName = fileName;
    enterMemory(core, entry);
    entry.touched = true;
    return wake(core, entry);
  }
  if (failure === undefined) core.out.push({ type: 'delete-file', tenant, fileName });
  if (gone) return collect(core, entry);
  if (failure?.code === 'OBJECT_LOST') {
    core.lifecycle(tenant, 'object.lost', entry.session.ownerId, 'object', entry.session.prefixHex, entry.index, failure.message);
    return loseEntry(core, entry, failure);
  }
  if (entry.waiters === undefined) return collect(core, entry);
  core.restoreLater.push(entry);
}

/** Once in a while. */
export function tickMemory(core: Core): void {
  if (core.restoreLater.length > 0) core.restores.push(...core.restoreLater.splice(0));
  if (core.spillRefused !== '' && core.nowMs >= core.spillAfterMs) {
    core.spillRefused = '';
    core.pressed = true;
  }
  if (core.fileBytes > core.config.objectMemoryBytes) core.pressed = true;
  else for (const tenant of core.tenants.values()) if (tenant.fileBytes > tenant.quota.objectMemoryBytes) core.pressed = true;
}
