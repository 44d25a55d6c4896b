/**
 * Users and services of tenants, and the roles they were issued with. Transitions: 1. none → known (issue); 2. known → known (issue again:
 * roles replaced); 3. known → none (its tenant was deleted). Certificates are not kept here: who issued what when is in the audit log.
 */
import { parseLocalName, type SpiffeId, type TenantName } from '../../base/ids.ts';
import { MAX_IDENTITIES_PER_TENANT, MAX_ROLES_PER_IDENTITY } from '../../base/limits.ts';
import { full, type Effect, type Table } from './table.ts';

export interface IdentityRow {
  readonly spiffeId: SpiffeId;
  readonly tenant: TenantName;
  readonly kind: 'user' | 'service';
  readonly name: string;
  readonly roles: readonly string[];
  readonly issuedMs: number;
}

export type IdentityEvent =
  | { readonly type: 'issue'; readonly spiffeId: SpiffeId; readonly tenant: TenantName; readonly kind: 'user' | 'service'; readonly name: string; readonly roles: readonly string[] }
  | { readonly type: 'tenantGone'; readonly tenant: string; readonly limit: number };

export class Identities implements Table<IdentityEvent> {
  readonly prefix = 'identities/';
  readonly #rows = new Map<string, IdentityRow>();
  readonly #perTenant = new Map<string, number>();

  get(spiffeId: string): IdentityRow | undefined {
    return this.#rows.get(spiffeId);
  }

  all(): IdentityRow[] {
    return [...this.#rows.values()].sort((a, b) => (a.spiffeId < b.spiffeId ? -1 : 1));
  }

  ofTenant(tenant: string): IdentityRow[] {
    return this.all().filter((r) => r.tenant === tenant);
  }

  /** The row that `issue` would write; for compiling the policy with it first. */
  issued(event: Extract<IdentityEvent, { type: 'issue' }>, nowMs: number): IdentityRow {
    const { spiffeId, tenant, kind, name } = event;
    if (event.roles.length > MAX_ROLES_PER_IDENTITY) throw full('roles of one identity allowed', MAX_ROLES_PER_IDENTITY, 'combine roles in the policy file');
    if (!this.#rows.has(spiffeId) && (this.#perTenant.get(tenant) ?? 0) >= MAX_IDENTITIES_PER_TENANT) throw full('identities of this tenant', MAX_IDENTITIES_PER_TENANT, 'delete the tenant or share identities');
    return { spiffeId, tenant, kind, name, roles: [...new Set(event.roles.map(parseLocalName))].sort(), issuedMs: nowMs };
  }

  step(event: IdentityEvent, nowMs: number, out: Effect[]): void {
    if (event.type === 'issue') {
      const row = this.issued(event, nowMs);
      out.push({ type: 'put', key: this.#key(row.spiffeId), row });
      return;
    }
    for (const row of this.ofTenant(event.tenant).slice(0, event.limit)) out.push({ type: 'delete', key: this.#key(row.spiffeId) });
  }

  #key(spiffeId: SpiffeId): string {
    return this.prefix + spiffeId.slice('spiffe://'.length);
  }

  absorb(key: string, row: unknown): void {
    const id = `spiffe://${key.slice(this.prefix.length)}`;
    const before = this.#rows.get(id);
    if (before !== undefined) this.#perTenant.set(before.tenant, (this.#perTenant.get(before.tenant) ?? 1) - 1);
    this.#rows.delete(id);
    if (row === undefined) return;
    const now = row as IdentityRow;
    this.#rows.set(id, now);
    this.#perTenant.set(now.tenant, (this.#perTenant.get(now.tenant) ?? 0) + 1);
  }
}
