/** Policy files: apply, history, read, roll back. Must never: change anything when a file does not check, or let a tenant touch the platform's. */
import { BulkheadError } from '../../base/errors.ts';
import { MAX_POLICY_BYTES } from '../../base/limits.ts';
import type { Policies } from '../../rpc/generated/bulkhead/v1/head_pb.js';
import type { Implementation } from '../../rpc/service-types.ts';
import type { PolicyFileVersion } from '../core/policy-versions.ts';
import type { HeadContext } from '../ports.ts';
import { requireTenant } from './access.ts';

/** How long an answer waits for the living nodes to report the new version; they normally do within one heartbeat. */
const IN_FORCE_TIMEOUT_MS = 2_000;

export function policiesService(context: HeadContext): Implementation<typeof Policies> {
  const { head, policies } = context;

  const shown = (v: PolicyFileVersion, inForceOn: string[] = []) => ({ version: v.version, tenant: v.tenant, fileName: v.fileName, digest: `sha256:${v.digest}`, appliedMs: BigInt(v.appliedMs), appliedBy: v.appliedBy, inForceOn });
  const applied = async (v: PolicyFileVersion) => shown(v, await policies.inForceOn(v.version, IN_FORCE_TIMEOUT_MS));

  return {
    async apply(call, request) {
      const { tenant, fileName, content } = request;
      await requireTenant(context, call, { tenant, action: 'policy.apply', kind: 'policy', name: fileName.slice(0, 100) });
      if (content.length > MAX_POLICY_BYTES) throw new BulkheadError('RESOURCE_EXHAUSTED', `a policy file of ${content.length} bytes exceeds the limit of ${MAX_POLICY_BYTES}`);
      let text: string;
      try {
        text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(content);
      } catch (cause) {
        throw new BulkheadError('INVALID_ARGUMENT', 'the policy file is not UTF-8', { cause });
      }
      return applied(await policies.apply({ tenant, fileName, content: text }, call.principal.spiffeId));
    },

    async history(call, request) {
      await requireTenant(context, call, { tenant: request.tenant, action: 'policy.read', kind: 'policy', name: '' });
      return { versions: head.policies.history(request.tenant).map((v) => shown(v)) };
    },

    async get(call, request) {
      await requireTenant(context, call, { tenant: request.tenant, action: 'policy.read', kind: 'policy', name: '' });
      const version = head.policies.find(request.tenant, request.version, request.fileName);
      return { version: shown(version, head.nodes.alive().filter((n) => n.policyVersion >= version.version).map((n) => n.id)), content: new TextEncoder().encode(head.policies.content(version.digest)) };
    },

    async rollback(call, request) {
      await requireTenant(context, call, { tenant: request.tenant, action: 'policy.apply', kind: 'policy', name: `version ${request.version}` });
      return applied(await policies.rollback(request.tenant, request.version, call.principal.spiffeId));
    },
  };
}
