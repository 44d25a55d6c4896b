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

export interface AccessTarget {
  /** Undefined: there is no such resource. */
  readonly tenant: string | undefined;
  readonly action: Action;
  readonly kind: ResourceKind;
  readonly name: string;
}

/** Records a denial that the policy decision could not see, and throws it. `rule`: `wall`, or `owner` inside a tenant. */
export async function deny(context: HeadContext, call: CallContext, target: AccessTarget, rule: 'wall' | 'owner'): Promise<never> {
  const { principal, decision, method } = call;
  const record = {
    type: 'decision', timeMs: context.head.clock.nowMs(), principal: principal.spiffeId, action: target.action, resourceKind: target.kind, resource: target.name, index: -1, count: 1,
    allow: false, rule, policyVersion: decision.policyVersion, detail: method,
  } as const;
  // To both sides of the wall; two appends also when the resource does not exist, so that time does not tell.
  const owner = target.tenant !== undefined && context.head.tenants.get(target.tenant) !== undefined ? target.tenant : '';
  await Promise.all([...new Set([principal.tenant ?? '', owner])].map((log) => context.appendAudit(log, record)));
  throw new BulkheadError('DENIED', 'not found, or not permitted');
}

/** Passes when the resource is of the caller's own tenant or the caller is of the cluster; otherwise records the denial and throws. */
export async function requireTenant(context: HeadContext, call: CallContext, target: AccessTarget): Promise<void> {
  if (isSystem(call.principal) || (target.tenant !== undefined && target.tenant !== '' && target.tenant === call.principal.tenant)) return;
  await deny(context, call, target, 'wall');
}
