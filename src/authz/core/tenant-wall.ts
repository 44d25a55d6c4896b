/**
 * The wall between tenants. Code, not policy: no rule of any file is asked before it, and the only thing that opens it is an unexpired grant
 * by the tenant that owns the resource. A grant opens the wall and nothing more: the principal's own roles must still permit the action.
 *
 *   principal                 resource of its tenant   the cluster's own ('')   resource of another tenant
 *   user, service, job        rules decide             rules decide             grant by the owner, then rules
 *   system                    -                        rules decide             governance: rules; else grant by the owner, then rules
 *   node                      -                        rules decide             never
 */
import type { Action, Resource } from '../../base/decision.ts';
import type { Principal } from '../../base/principal.ts';
import { predicateOf, type Predicate } from './conditions.ts';
import { buildIndex, type EqualityIndex } from './rule-index.ts';
import type { SnapshotGrant } from './snapshot.ts';
import { GOVERNANCE_ACTIONS, GRANTABLE_ACTIONS, KIND_OF_ACTION } from './vocabulary.ts';

/** Which rules may speak: those for the principal's own tenant, for the cluster's own resources, for a governed tenant, or, with a grant, for the owner's. */
export type WallSide = 'own' | 'cluster' | 'governed' | 'needs-grant' | 'closed';

export function wallSide(principal: Principal, action: Action, resourceTenant: string): WallSide {
  switch (principal.kind) {
    case 'user':
    case 'service':
    case 'job':
      return resourceTenant === principal.tenant ? 'own' : resourceTenant === '' ? 'cluster' : 'needs-grant';
    case 'system':
      return resourceTenant === '' ? 'cluster' : GOVERNANCE_ACTIONS.has(action) ? 'governed' : 'needs-grant';
    case 'node':
      return resourceTenant === '' ? 'cluster' : 'closed';
    default:
      return 'closed';
  }
}

/** Whether a grant names this principal; a job counts as its submitter. */
export function namesPrincipal(to: SnapshotGrant['to'], principal: Principal): boolean {
  if (to.kind === 'system') return principal.kind === 'system' && principal.name === to.name;
  if (principal.tenant === undefined || principal.tenant !== to.tenant) return false;
  if (to.kind === 'any') return true;
  const who = principal.kind === 'job' ? principal.submitter : principal;
  return who !== undefined && who.kind === to.kind && who.name === to.name;
}

interface GrantEntry {
  readonly grant: SnapshotGrant;
  readonly order: number;
  readonly predicate: Predicate | undefined;
  readonly conditions: SnapshotGrant['conditions'];
}

/** All grants of a snapshot, by owner and action. */
export class GrantTable {
  readonly #byOwner = new Map<string, Map<string, EqualityIndex<readonly GrantEntry[]>>>();

  constructor(grants: readonly SnapshotGrant[]) {
    const lists = new Map<string, Map<string, GrantEntry[]>>();
    grants.forEach((grant, order) => {
      const entry: GrantEntry = { grant, order, conditions: grant.conditions, predicate: grant.conditions.length === 0 ? undefined : predicateOf(grant.conditions) };
      for (const action of grant.actions) {
        const kind = KIND_OF_ACTION.get(action);
        if (kind === undefined || !grant.kinds.includes(kind) || !GRANTABLE_ACTIONS.has(action)) continue;
        let actions = lists.get(grant.tenant);
        if (actions === undefined) lists.set(grant.tenant, (actions = new Map()));
        const entries = actions.get(action);
        if (entries === undefined) actions.set(action, [entry]);
        else if (entries[entries.length - 1] !== entry) entries.push(entry);
      }
    });
    for (const [owner, actions] of lists) this.#byOwner.set(owner, new Map([...actions].map(([action, entries]) => [action, buildIndex(entries, (bucket) => bucket)])));
  }

  /** The last grant, in the order of the snapshot, that lets this principal do this; undefined when there is none. */
  find(principal: Principal, action: Action, resource: Resource, nowMs: number): SnapshotGrant | undefined {
    const index = this.#byOwner.get(resource.attributes.tenant)?.get(action);
    if (index === undefined) return undefined;
    let found = index.unkeyed === undefined ? undefined : lastMatch(index.unkeyed, principal, resource, nowMs);
    for (const { attribute, buckets } of index.keyed) {
      const bucket = buckets.get(resource.attributes[attribute]);
      const match = bucket === undefined ? undefined : lastMatch(bucket, principal, resource, nowMs);
      if (match !== undefined && (found === undefined || match.order > found.order)) found = match;
    }
    return found?.grant;
  }
}

function lastMatch(entries: readonly GrantEntry[], principal: Principal, resource: Resource, nowMs: number): GrantEntry | undefined {
  for (let i = entries.length - 1; i >= 0; i--) {
    const entry = entries[i] as GrantEntry;
    if (nowMs < entry.grant.untilMs && namesPrincipal(entry.grant.to, principal) && (entry.predicate === undefined || entry.predicate(resource.attributes))) return entry;
  }
  return undefined;
}
