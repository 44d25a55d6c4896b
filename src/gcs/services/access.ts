/**
 * The second look of the services: where the resource's tenant is known only after a look-up (a job's, a SPIFFE ID's), the policy decision
 * before the handler could not see it. Crossing the wall here is denied and recorded like any denial. Must never: throw DENIED for a
 * crossing without its record.
 */
import type { Action, ResourceKind } from '../../base/decision.ts';
import { BulkheadError } from '../../base/errors.ts';
import type { Principal } from '../../base/principal.ts';
import { noticesOf } from '../../rpc/rpc.ts';
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
  // Both sides of the wall are told; the answer waits for the caller's own record alone, so that time does not tell whether the resource exists.
  const actorsLog = principal.tenant ?? '';
  const owner = target.tenant !== undefined && context.head.tenants.get(target.tenant) !== undefined ? target.tenant : '';
  const recorded = context.appendAudit(actorsLog, record);
  // By kind, not by the tenant that was found: how many are told one by one must not depend on what exists.
  if (owner !== actorsLog) noticesOf(context.appendAudit).tell(actorsLog, `kind ${target.kind}`, owner, record);
  await recorded;
  throw new BulkheadError('DENIED', 'not found, or not permitted');
}

/** Passes when the resource is of the caller's own tenant or the caller is of the cluster; otherwise records the denial and throws. */
export async function requireTenant(context: HeadContext, call: CallContext, target: AccessTarget): Promise<void> {
  if (isSystem(call.principal) || (target.tenant !== undefined && target.tenant !== '' && target.tenant === call.principal.tenant)) return;
  await deny(context, call, target, 'wall');
}
