/**
 * What a step wants done, as data. The driver (src/raylet/raylet.ts) executes them in order, then sends what the writers of
 * dirty channels, slots and upstreams hold — each no earlier than the audit record it needs is on disk.
 */
import type { ErrorCode } from '../../base/errors.ts';
import type { PlacementGroup } from './placement-groups.ts';
import type { Actor, Channel, Job, ObjectEntry, Slot, TenantState, Upstream, Worker } from './state.ts';

export type Effect =
  | { readonly type: 'start-worker'; readonly worker: Worker; readonly cpus: number }
  | { readonly type: 'kill-worker'; readonly worker: Worker; readonly reason: 'TIMEOUT' | 'CANCELLED' | 'IDLE' | 'MISBEHAVED' | 'JOB_ENDED' }
  | { readonly type: 'open-slot'; readonly slot: Slot; readonly memoryMiB: number }
  | { readonly type: 'close-slot'; readonly slot: Slot }
  | { readonly type: 'load-code'; readonly slot: Slot; readonly codeNumber: number; readonly digestHex: string }
  | { readonly type: 'attach'; readonly slot: Slot; readonly attachment: number; readonly fileName: string; readonly size: number }
  | { readonly type: 'store-code'; readonly tenant: TenantState; readonly digestHex: string; readonly source: Uint8Array }
  | { readonly type: 'delete-code'; readonly tenant: TenantState; readonly digestHex: string }
  | { readonly type: 'seal-staged'; readonly worker: Worker; readonly slotNumber: number; readonly staged: number; readonly fileName: string; readonly size: number; readonly entry: ObjectEntry }
  | { readonly type: 'write-part'; readonly tenant: TenantState; readonly fileName: string; readonly offset: number; readonly bytes: Uint8Array; readonly last: boolean }
  | { readonly type: 'copy-file'; readonly from: TenantState; readonly fileName: string; readonly to: TenantState; readonly copyName: string; readonly size: number; readonly entry: ObjectEntry }
  | { readonly type: 'delete-file'; readonly tenant: TenantState; readonly fileName: string }
  | { readonly type: 'spill-file'; readonly entry: ObjectEntry; readonly tenant: TenantState; readonly fileName: string; readonly size: number; readonly spillName: string; readonly id: Uint8Array; readonly version: number }
  | { readonly type: 'restore-file'; readonly entry: ObjectEntry; readonly tenant: TenantState; readonly spillName: string; readonly size: number; readonly fileName: string; readonly id: Uint8Array; readonly version: number }
  | { readonly type: 'delete-spill'; readonly tenant: TenantState; readonly spillName: string }
  | { readonly type: 'stream-file'; readonly channel: Channel; readonly owner: TenantState; readonly request: number; readonly position: number; readonly fileName: string; readonly size: number; readonly needed: number; readonly entry: ObjectEntry; readonly refs: readonly Uint8Array[] | undefined; readonly copy: boolean }
  | { readonly type: 'check-file'; readonly upstream: Upstream; readonly request: number; readonly tenant: TenantState; readonly fileName: string; readonly digest: Uint8Array }
  | { readonly type: 'register-name'; readonly actor: Actor; readonly id: Uint8Array; readonly classInfo: string }
  | { readonly type: 'release-name'; readonly actor: Actor; readonly id: Uint8Array }
  | { readonly type: 'lookup-name'; readonly channel: Channel; readonly request: number; readonly name: string; readonly namespace: string; readonly auditSeq: number }
  | { readonly type: 'register-group'; readonly group: PlacementGroup; readonly id: Uint8Array; readonly info: string }
  | { readonly type: 'release-group'; readonly group: PlacementGroup; readonly id: Uint8Array }
  | { readonly type: 'lookup-group'; readonly channel: Channel; readonly request: number; readonly name: string; readonly auditSeq: number }
  | { readonly type: 'open-upstream'; readonly upstream: Upstream; readonly depth: number }
  | { readonly type: 'close-upstream'; readonly upstream: Upstream }
  | { readonly type: 'close-channel'; readonly channel: Channel; readonly reason: string; readonly code?: ErrorCode }
  | { readonly type: 'stream-code'; readonly upstream: Upstream; readonly digestHex: string }
  | { readonly type: 'log'; readonly job: Job; readonly taskId: string; readonly actorId: string; readonly name: string; readonly stream: number; readonly text: Uint8Array }
  | { readonly type: 'credential'; readonly channel: Channel; readonly credential: string };
