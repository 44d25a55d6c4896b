/** This node's audit logs over the wire: what a tenant may read of its own, decided before a handler runs. */
import { readLogMaterial } from '../audit/audit-export.ts';
import { stats, tail } from '../audit/audit-query.ts';
import { usageByHour } from '../audit/audit-usage.ts';
import type { AuditStore } from '../audit/audit-store.ts';
import { MAX_AUDIT_TAIL_RECORDS } from '../base/limits.ts';
import type { Audit } from '../rpc/generated/bulkhead/v1/raylet_pb.js';
import type { Implementation } from '../rpc/rpc.ts';

const DEFAULT_TAIL_RECORDS = 100;

export function auditService(store: AuditStore, nodeId: string, tenantExists: (name: string) => boolean): Implementation<typeof Audit> {
  const known = (tenant: string): boolean => tenant === '' || tenantExists(tenant);
  return {
    async *tail(call, request) {
      if (!known(request.tenant)) return;
      const limit = Math.min(request.last === 0 ? DEFAULT_TAIL_RECORDS : request.last, MAX_AUDIT_TAIL_RECORDS);
      for await (const { seq, record } of tail(store, request.tenant, { limit, follow: request.follow, signal: call.signal })) yield { nodeId, index: BigInt(seq), record: JSON.stringify(record) };
    },
    async *export(_call, request) {
      const log = known(request.tenant) ? await readLogMaterial(store, request.tenant) : undefined;
      if (log === undefined) return;
      yield { header: JSON.stringify({ origin: log.origin, checkpoint: log.checkpoint, vkeys: log.vkeys }) };
      for await (const entries of log.entries) yield { entries };
    },
    async *usage(call, request) {
      if (!known(request.tenant)) return;
      for (const { startMs, calls, cpuMicros, memoryMibMs, objectKibMs, bytesIn, bytesOut } of await usageByHour(store, request.tenant, Number(request.fromMs), Number(request.toMs), call.signal)) {
        yield {
          nodeId, startMs: BigInt(startMs), calls: Object.fromEntries([...calls].map(([action, n]) => [action, BigInt(n)])), cpuMicros: BigInt(cpuMicros), memoryMibMs: BigInt(memoryMibMs), objectKibMs: BigInt(objectKibMs),
          bytesIn: BigInt(bytesIn), bytesOut: BigInt(bytesOut),
        };
      }
    },
    async stats(_call, request) {
      const s = known(request.tenant) ? await stats(store, request.tenant) : undefined;
      if (s === undefined) return { nodeId };
      return {
        nodeId, records: BigInt(s.records), bytes: BigInt(s.bytes), allowed: BigInt(s.allow), denied: BigInt(s.deny), rootHash: s.rootHash, firstMs: BigInt(s.firstMs ?? 0), lastMs: BigInt(s.lastMs ?? 0),
        byAction: Object.fromEntries(Object.entries(s.actions).map(([name, n]) => [name, BigInt(n.allow + n.deny)])),
      };
    },
  };
}
