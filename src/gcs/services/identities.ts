/** Identities: issue, renew, revoke, and what the authority shows. Must never: issue for a SPIFFE ID other than the caller's without `identity.issue`, or copy anything from a CSR but its key. */
import { createHash } from 'node:crypto';
import { BulkheadError } from '../../base/errors.ts';
import { parseLocalName, parseNodeId, parseSpiffeId, parseTenantName, quote, spiffeId, type SpiffeId } from '../../base/ids.ts';
import { parseLabels } from '../../base/labels.ts';
import { CLOCK_SKEW_MS, JOIN_TOKEN_TTL_MS, SVID_TTL_MS } from '../../base/limits.ts';
import type { Identities } from '../../rpc/generated/bulkhead/v1/head_pb.js';
import type { Implementation } from '../../rpc/service-types.ts';
import type { HeadContext, IssuedChain } from '../ports.ts';
import { requireTenant } from './access.ts';
import { resources } from './node-sync.ts';

/** Profiles renew themselves when used, and people are away for weeks; processes that always run get an hour. */
export const PROFILE_TTL_MS = 30 * 24 * 3_600_000;
/** The head itself, in its own SVID. */
export const HEAD_COMPONENT = 'head';
/** Components that people run beside the cluster, each with a role of its own in policies/defaults.yaml. Never the cluster's own processes or its administrator. */
const ISSUED_COMPONENTS = ['monitor', 'gateway'];
const GATEWAY_COMPONENT = 'gateway';
const JOIN_TOKEN_BYTES = 32;
/** A transaction must hold them all. */
const JOBS_PER_COMMIT = 50;

export function joinTokenDigest(token: string): string {
  return createHash('sha256').update(token, 'utf8').digest('hex');
}

/** A first SVID. One issued in the very second of a revocation would count as revoked, since certificates know whole seconds: so it waits for the next. */
export async function issueFirst({ head, pki }: HeadContext, id: SpiffeId, csr: Uint8Array, ttlMs: number): Promise<IssuedChain> {
  const issuedMs = (): number => Math.floor(head.clock.nowMs() / 1000) * 1000;
  for (let i = 0; i < 100 && head.revocations.covers(id, '', issuedMs()); i++) await new Promise((resolve) => setTimeout(resolve, 20));
  return pki.issue(id, csr, ttlMs);
}

export function identitiesService(context: HeadContext): Implementation<typeof Identities> {
  const { head, pki, policies, random } = context;

  const svid = (id: SpiffeId, issued: IssuedChain) => ({ spiffeId: id, svidChain: issued.certificateChainPem, trustBundle: pki.trustBundlePem(), notAfterMs: BigInt(issued.notAfterMs) });
  const status = () => ({
    trustDomain: pki.trustDomain, keyManager: pki.keyManagerName, issued: BigInt(head.issuance.svids), revoked: BigInt(head.revocations.all().length),
    authorities: pki.authorities().map((a) => ({ kind: a.kind, serial: a.serial, notBeforeMs: BigInt(a.notBeforeMs), notAfterMs: BigInt(a.notAfterMs), active: a.active })),
  });

  return {
    async issue(call, request) {
      if (request.tenant === '' && request.kind === 'component') {
        await requireTenant(context, call, { tenant: '', action: 'identity.issue', kind: 'identity', name: request.name.slice(0, 64) });
        if (!ISSUED_COMPONENTS.includes(request.name) || request.roles.length > 0) throw new BulkheadError('INVALID_ARGUMENT', `components that an identity is issued for: ${ISSUED_COMPONENTS.join(', ')}; their roles are the platform policy's`);
        pki.checkCsr(request.csr);
        const component = spiffeId(pki.trustDomain, { kind: 'system', component: request.name });
        return svid(component, await issueFirst(context, component, request.csr, PROFILE_TTL_MS));
      }
      const tenant = parseTenantName(request.tenant);
      if (request.kind !== 'user' && request.kind !== 'service') throw new BulkheadError('INVALID_ARGUMENT', `kind ${quote(request.kind)} is not 'user' or 'service'`);
      await requireTenant(context, call, { tenant, action: 'identity.issue', kind: 'identity', name: request.name.slice(0, 64) });
      head.tenants.active(tenant);
      const name = parseLocalName(request.name);
      pki.checkCsr(request.csr);
      const id = spiffeId(pki.trustDomain, { kind: request.kind, tenant, name });
      await policies.putIdentity({ type: 'issue', spiffeId: id, tenant, kind: request.kind, name, roles: request.roles });
      return svid(id, await issueFirst(context, id, request.csr, PROFILE_TTL_MS));
    },

    async renew(call, request) {
      const { principal, peer } = call;
      if (principal.tenant !== undefined) head.tenants.active(principal.tenant);
      // The connection would have been cut; this is for the moment between. Certificates are dated back by the tolerated clock difference.
      if (head.revocations.covers(principal.spiffeId, peer.serial, peer.notBeforeMs + CLOCK_SKEW_MS)) throw new BulkheadError('UNAUTHENTICATED', 'this identity is revoked; ask for a new one');
      // A process's hour stays an hour, whoever's the identity is: the gateway holds users' for their jobs.
      const short = peer.notAfterMs - peer.notBeforeMs <= SVID_TTL_MS + CLOCK_SKEW_MS;
      const ttlMs = principal.kind === 'node' || principal.kind === 'job' || short ? SVID_TTL_MS : PROFILE_TTL_MS;
      return svid(principal.spiffeId, await pki.issue(principal.spiffeId, request.csr, ttlMs));
    },

    async certifyServer(call, request) {
      const { principal } = call;
      // Of the cluster's components only the gateway is a server of its own.
      if (principal.kind === 'system' && principal.name !== GATEWAY_COMPONENT) throw new BulkheadError('DENIED', 'not found, or not permitted');
      const { certificateChainPem, dnsNames, notAfterMs } = await pki.certifyServer(principal.spiffeId, request.csr, SVID_TTL_MS, principal.name === GATEWAY_COMPONENT ? context.gatewayNames : []);
      return { chain: certificateChainPem, dnsNames: [...dnsNames], notAfterMs: BigInt(notAfterMs) };
    },

    async whoAmI(call) {
      const { principal, peer } = call;
      return {
        spiffeId: principal.spiffeId, kind: principal.kind, tenant: principal.tenant ?? '', roles: policies.current?.rolesOf(principal) ?? [],
        svidNotAfterMs: BigInt(peer.notAfterMs), serial: peer.serial,
      };
    },

    async revoke(call, request) {
      const target = request.spiffeId === '' ? undefined : parseSpiffeId(request.spiffeId);
      const tenant = target === undefined || !('tenant' in target.path) ? '' : target.path.tenant;
      // A serial number does not say whose it is, so only the cluster may revoke by one.
      await requireTenant(context, call, { tenant, action: 'identity.revoke', kind: 'identity', name: (request.spiffeId || request.serial).slice(0, 512) });
      if (target?.path.kind === 'system' && target.path.component === HEAD_COMPONENT) throw new BulkheadError('INVALID_ARGUMENT', 'revoking the head would cut every node off from it: rotate the authority, or start a new cluster if its keys are lost');
      const version = await head.commit((nowMs, out) => {
        head.revocations.step({
          type: 'revoke', spiffeIds: target === undefined ? [] : [target.id], serial: request.serial, reason: request.reason, by: call.principal.spiffeId, trustDomain: pki.trustDomain,
          tenant: head.tenants.get(tenant) === undefined ? '' : tenant,
        }, nowMs, out);
        return head.revocations.version + 1;
      });
      // What the identity started ends with it; raylets cut its connections and sessions by the revocation itself.
      const running = () => (target === undefined ? [] : head.jobs.running(tenant).filter((j) => j.submitter === target.id).slice(0, JOBS_PER_COMMIT));
      for (let jobs = running(); jobs.length > 0; jobs = running()) {
        await head.commit((nowMs, out) => {
          for (const { jobId } of jobs) head.jobs.step({ type: 'stop', jobId, by: call.principal.spiffeId, message: 'its identity was revoked' }, nowMs, out);
        });
      }
      // Nobody may send work to a node that may no longer speak.
      if (target?.path.kind === 'node' && head.nodes.get(target.path.node) !== undefined) head.observe({ type: 'leave', id: target.path.node });
      return { revocationVersion: BigInt(version) };
    },

    async getTrustBundle() {
      return { pem: pki.trustBundlePem(), jwks: pki.trustBundleJwks() };
    },

    async showPki() {
      return status();
    },

    async rotateAuthority(call) {
      await requireTenant(context, call, { tenant: '', action: 'pki.rotate', kind: 'pki', name: '' });
      await pki.rotate();
      return status();
    },

    async createJoinToken(call, request) {
      await requireTenant(context, call, { tenant: '', action: 'pki.join-token', kind: 'pki', name: request.nodeId.slice(0, 64) });
      const nodeId = request.nodeId === '' ? `node-${Buffer.from(random.bytes(4)).toString('hex')}` : parseNodeId(request.nodeId);
      const most = request.most === undefined ? undefined : resources(request.most);
      const labels = Object.keys(request.labels).length === 0 ? undefined : parseLabels(request.labels);
      const token = Buffer.from(random.bytes(JOIN_TOKEN_BYTES)).toString('base64url');
      const expiresMs = await head.commit((nowMs, out) => {
        head.joinTokens.step({ type: 'create', digest: joinTokenDigest(token), nodeId, by: call.principal.spiffeId, most, labels }, nowMs, out);
        return nowMs + JOIN_TOKEN_TTL_MS;
      });
      return { token, expiresMs: BigInt(expiresMs), attestationAddress: context.addresses.attestation, trustBundle: pki.trustBundlePem() };
    },
  };
}

