/** The head's own audit logs, read over the wire. Must never: show a log of another tenant, or a record that is not on disk. */
import { MAX_AUDIT_TAIL_RECORDS } from '../../base/limits.ts';
import type { Audit } from '../../rpc/generated/bulkhead/v1/raylet_pb.js';
import type { Implementation } from '../../rpc/service-types.ts';
import { unknown } from '../core/table.ts';
import type { HeadContext } from '../ports.ts';

const DEFAULT_TAIL_RECORDS = 100;
/** What the head calls itself where nodes give their id. */
const HEAD = 'head';

export function auditService({ audit, head }: HeadContext): Implementation<typeof Audit> {
  /** A log is never made by asking for it. */
  const known = (tenant: string): string => {
    if (tenant !== '' && head.tenants.get(tenant) === undefined) throw unknown('the audit log');
    return tenant;
  };
  return {
    async *tail(call, request) {
      const last = Math.min(request.last === 0 ? DEFAULT_TAIL_RECORDS : request.last, MAX_AUDIT_TAIL_RECORDS);
      for await (const { index, record } of audit.tail(known(request.tenant), { last, follow: request.follow, signal: call.signal })) yield { nodeId: HEAD, index: BigInt(index), record };
    },

    async *export(_call, request) {
      for await (const part of audit.material(known(request.tenant), Number(request.fromMs), Number(request.toMs))) yield part;
    },

    async *usage(_call, request) {
      known(request.tenant);
      // Nothing of a tenant's runs here.
      yield* [];
    },

    async stats(_call, request) {
      const s = await audit.stats(known(request.tenant));
      if (s === undefined) return { nodeId: HEAD };
      return {
        nodeId: HEAD, records: BigInt(s.records), bytes: BigInt(s.bytes), allowed: BigInt(s.allowed), denied: BigInt(s.denied), rootHash: s.rootHash, firstMs: BigInt(s.firstMs), lastMs: BigInt(s.lastMs),
        byAction: Object.fromEntries(Object.entries(s.byAction).map(([name, count]) => [name, BigInt(count)])),
      };
    },
  };
}
