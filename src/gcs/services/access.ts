/**
 * The second look of the services: where the resource's tenant is known only after a look-up (a job's, a SPIFFE ID's), the policy decision
 * before the handler could not see it. Crossing the wall here is denied and recorded like any denial. Must never: throw DENIED for a
 * crossing without its record.
 */
import type { Action, ResourceKind } from '../../base/decision.ts';
import { BulkheadError } from '../../base/errors.ts';
import type { Principal } from '../../base/principal.ts';
import type { CallContext } from '../../rpc/service-types.ts';
import type { HeadContext } from '../ports.ts';

/** The cluster's own components and administrator: no tenant, and no node. */
export function isSystem(principal: Principal): boolean {
  return principal.kind === 'system';
}

/** Passes when the resource is of the caller's own tenant or the caller is of the cluster; otherwise records the denial and throws. */
export async function requireTenant(context: HeadContext, call: CallContext, target: { readonly tenant: string | undefined; readonly action: Action; readonly kind: ResourceKind; readonly name: string }): Promise<void> {
  const { principal, decision, method } = call;
  if (isSystem(principal) || (target.tenant !== undefined && target.tenant !== '' && target.tenant === principal.tenant)) return;
  const record = {
    type: 'decision', timeMs: context.head.clock.nowMs(), principal: principal.spiffeId, action: target.action, resourceKind: target.kind, resource: target.name, index: -1, count: 1,
    allow: false, rule: 'wall', policyVersion: decision.policyVersion, detail: method,
  } as const;
  // To both sides of the wall; always two appends, so that time does not tell whether the resource exists.
  const owner = target.tenant !== undefined && context.head.tenants.get(target.tenant) !== undefined ? target.tenant : '';
  await Promise.all([context.appendAudit(principal.tenant ?? '', record), context.appendAudit(owner, record)]);
  throw new BulkheadError('DENIED', 'not found, or not permitted');
}
