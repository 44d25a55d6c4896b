/**
 * The books of the memory (tmpfs) and the disk that objects' files take, per tenant and on the node: what is counted when, and what is refused.
 * What leaves memory is decided in object-memory.ts. Must never: count the same octets twice, or forget some.
 */
import type { Core } from './core.ts';
import type { Failure, ObjectEntry, Slot, TenantState } from './state.ts';

/** Memory is about to be used: counted from the first octet on. */
export function takeMemory(core: Core, tenant: TenantState, bytes: number): void {
  tenant.fileBytes += bytes;
  core.fileBytes += bytes;
  if (core.fileBytes > core.config.objectMemoryBytes || tenant.fileBytes > tenant.quota.objectMemoryBytes) core.pressed = true;
}

export function giveMemory(core: Core, tenant: TenantState, bytes: number): void {
  tenant.fileBytes -= bytes;
  core.fileBytes -= bytes;
}

/** The entry's file is in memory. */
export function enterMemory(core: Core, entry: ObjectEntry): void {
  takeMemory(core, entry.session.tenant, entry.size);
  entry.session.tenant.files.add(entry);
}

export function leaveMemory(core: Core, entry: ObjectEntry): void {
  if (entry.session.tenant.files.delete(entry)) giveMemory(core, entry.session.tenant, entry.size);
}

/** Its file is read: it is the last in the order now. */
export function touch(entry: ObjectEntry): void {
  const { files } = entry.session.tenant;
  if (files.delete(entry)) files.add(entry);
  entry.touched = true;
}

/** Why an object of so many octets is not taken; undefined: it is, though others may have to leave memory for it. */
export function noMemoryFor(core: Core, tenant: TenantState, bytes: number): Failure | undefined {
  const { objectMemoryBytes } = core.config;
  const own = tenant.quota.objectMemoryBytes;
  if (bytes > own || bytes > objectMemoryBytes) return { code: 'RESOURCE_EXHAUSTED', message: `an object of ${bytes} bytes is larger than the memory for objects: ${own < objectMemoryBytes ? `${own} bytes of the tenant (quota objectMemory)` : `${objectMemoryBytes} bytes of this node`}; put it in parts`, stack: '' };
  const over = tenant.fileBytes + bytes > own || core.fileBytes + bytes > objectMemoryBytes;
  if (!over || core.spillRefused === '') return undefined;
  return { code: 'RESOURCE_EXHAUSTED', message: `no memory is left for an object of ${bytes} bytes on this node (${tenant.fileBytes} bytes of the tenant's objects are in it), and none can be moved to disk now: ${core.spillRefused}; release refs, or try again later`, stack: '' };
}

/** A slot was given the file. */
export function noteAttached(core: Core, entry: ObjectEntry, slot: Slot): void {
  touch(entry);
  (entry.attached ??= new Set()).add(slot);
  entry.attachedMs = core.nowMs;
}

/** The encrypted copy is not needed any more. */
export function dropSpill(core: Core, entry: ObjectEntry): void {
  if (entry.spillName === '') return;
  const { tenant } = entry.session;
  core.out.push({ type: 'delete-spill', tenant, spillName: entry.spillName });
  core.spilledBytes -= entry.size;
  tenant.spilledBytes -= entry.size;
  entry.spillName = '';
  if (core.spillRefused !== '') core.spillAfterMs = 0;
}
