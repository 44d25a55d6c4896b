/** Tenants: made and deleted by the cluster's administrator. Must never: give a number or name out twice, or certify a deletion before the keys are gone. */
import { parseTenantName, type TenantName } from '../../base/ids.ts';
import type { Tenants } from '../../rpc/generated/bulkhead/v1/head_pb.js';
import type { Implementation } from '../../rpc/service-types.ts';
import { unknown } from '../core/table.ts';
import type { TenantRow } from '../core/tenants.ts';
import type { HeadContext } from '../ports.ts';
import { isSystem, requireTenant } from './access.ts';

/** Rows per transaction while a tenant is taken apart: below the store's limit with an audit record and a second row each. */
const BATCH = 40;

export const shownTenant = (row: TenantRow, overBudget: string) => ({ overBudget, name: row.name, number: row.number, quota: { ...row.quota }, state: row.state, createdMs: BigInt(row.createdMs) });

/**
 * Everything that hangs on a deleted tenant: keys, jobs, identities, names, policy. Each step can be taken twice, so that a head that was
 * killed in between goes on at its next start.
 */
export async function finishDeletion(context: HeadContext, tenant: TenantName, by: string): Promise<void> {
  const { head, pki, policies } = context;
  await pki.destroyTenantKey(tenant);
  for (let running = head.jobs.running(tenant); running.length > 0; running = head.jobs.running(tenant)) {
    await head.commit((nowMs, out) => {
      for (const { jobId } of running.slice(0, BATCH)) head.jobs.step({ type: 'stop', jobId, by, message: 'its tenant was deleted' }, nowMs, out);
    });
  }
  for (let identities = head.identities.ofTenant(tenant); identities.length > 0; identities = head.identities.ofTenant(tenant)) {
    const batch = identities.slice(0, BATCH).map((i) => i.spiffeId);
    // Revoked first, forgotten then: a crash between repeats the first.
    await head.commit((nowMs, out) => head.revocations.step({ type: 'revoke', spiffeIds: batch, serial: '', reason: 'its tenant was deleted', by, trustDomain: pki.trustDomain, tenant }, nowMs, out));
    await policies.forgetTenant(tenant, BATCH);
  }
  while (head.jobs.submitted(tenant).length > 0) await head.commit((nowMs, out) => head.jobs.step({ type: 'tenantDeleted', tenant, limit: BATCH }, nowMs, out));
  while (head.tokens.ofTenant(tenant).length > 0) await head.commit((nowMs, out) => head.tokens.step({ type: 'tenantDeleted', tenant }, nowMs, out));
  while (head.policies.history(tenant).length > 0) await policies.forgetTenant(tenant, BATCH);
  while (head.actorNames.ofTenant(tenant).length > 0) await head.commit((nowMs, out) => head.actorNames.step({ type: 'tenantGone', tenant, limit: BATCH }, nowMs, out));
}

export function tenantsService(context: HeadContext): Implementation<typeof Tenants> {
  const { head, pki, statements } = context;

  return {
    async create(call, request) {
      await requireTenant(context, call, { tenant: '', action: 'tenant.create', kind: 'tenant', name: request.name.slice(0, 64) });
      const name = parseTenantName(request.name);
      await head.commit((nowMs, out) => head.tenants.step({ type: 'create', name, quota: request.quota, by: call.principal.spiffeId }, nowMs, out));
      await pki.createTenantKey(name);
      return shownTenant(head.tenants.active(name), '');
    },

    async list({ principal }) {
      return { tenants: head.tenants.all().filter((t) => isSystem(principal) || (t.name === principal.tenant && t.state === 'active')).map((t) => shownTenant(t, context.budgets.overOf(t.name))) };
    },

    async show(call, request) {
      await requireTenant(context, call, { tenant: request.tenant, action: 'tenant.read', kind: 'tenant', name: request.tenant.slice(0, 64) });
      const row = head.tenants.get(request.tenant);
      if (row === undefined) throw unknown('tenant');
      return shownTenant(row, context.budgets.overOf(row.name));
    },

    async setQuota(call, request) {
      await requireTenant(context, call, { tenant: request.tenant, action: 'tenant.update', kind: 'tenant', name: request.tenant.slice(0, 64) });
      await head.commit((nowMs, out) => head.tenants.step({ type: 'quota', name: request.tenant, quota: request.quota, remove: request.remove, by: call.principal.spiffeId }, nowMs, out));
      const row = head.tenants.active(request.tenant);
      if (context.budgets.decide(row.name, row.quota, new Date(head.clock.nowMs()).toISOString().slice(0, 7))) head.announce('tenants');
      return shownTenant(row, context.budgets.overOf(row.name));
    },

    async setProjectQuota(call, request) {
      await requireTenant(context, call, { tenant: request.tenant, action: 'tenant.divide', kind: 'tenant', name: request.project.slice(0, 64) });
      await head.commit((nowMs, out) => head.tenants.step({ type: 'project', name: request.tenant, project: request.project, quota: request.quota, remove: request.remove, by: call.principal.spiffeId }, nowMs, out));
      const row = head.tenants.active(request.tenant);
      return shownTenant(row, context.budgets.overOf(row.name));
    },

    async delete(call, request) {
      await requireTenant(context, call, { tenant: '', action: 'tenant.delete', kind: 'tenant', name: request.tenant.slice(0, 64) });
      const name = parseTenantName(request.tenant);
      const by = call.principal.spiffeId;
      // Again for a tenant that is deleted already: the first answer may have been lost, and the certificate is the same.
      if (head.tenants.get(name)?.state !== 'deleted') await head.commit((nowMs, out) => head.tenants.step({ type: 'delete', name, by }, nowMs, out));
      await finishDeletion(context, name, by);
      const row = head.tenants.get(name);
      if (row === undefined) throw unknown('tenant');
      const statement = JSON.stringify({
        type: 'bulkhead.tenant-deletion.v1', trustDomain: pki.trustDomain, tenant: name, tenantNumber: row.number, deletedMs: row.deletedMs,
        // What is done when this is signed; nodes drop actors and objects as they hear of it, and what lay encrypted on a disk is unreadable with the keys gone.
        destroyed: ['keys', 'identities', 'policies', 'actor-names'], stopped: ['jobs'], verifierKey: statements.verifierKey,
      });
      return { tenant: name, deletedMs: BigInt(row.deletedMs), statement, signature: statements.sign(new TextEncoder().encode(statement)), verifierKey: statements.verifierKey };
    },
  };
}
