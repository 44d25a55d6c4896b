/**
 * Bearer tokens: made by their principal for itself, and turned back into that principal for the gateway, with the decision on what it asks for. Must never: keep or
 * record a token, or answer before the record of the decision is on disk.
 */
import { createHash } from 'node:crypto';
import type { DecisionRecord } from '../../base/audit-record.ts';
import { resource } from '../../base/decision.ts';
import { BulkheadError } from '../../base/errors.ts';
import { quote, type SpiffeId } from '../../base/ids.ts';
import { SVID_TTL_MS } from '../../base/limits.ts';
import { principalFromSpiffeId } from '../../base/principal.ts';
import { DENIED_TEXT } from '../../rpc/rpc.ts';
import type { Tokens } from '../../rpc/generated/bulkhead/v1/head_pb.js';
import type { Implementation } from '../../rpc/service-types.ts';
import { notInForce, type TokenRow } from '../core/tokens.ts';
import type { HeadContext } from '../ports.ts';
import { issueFirst } from './identities.ts';

const TOKEN_BYTES = 32;
const ID_BYTES = 8;
/** So that scanners of leaked secrets know one. */
const TOKEN_PREFIX = 'bht_';
const TOKEN = /^bht_[A-Za-z0-9_-]{43}$/;
const MAX_NAME_CHARS = 256;

function digestOf(token: string): string {
  return createHash('sha256').update(token, 'utf8').digest('hex');
}

const shown = (row: TokenRow) => ({ tokenId: row.id, name: row.name, spiffeId: row.spiffeId, createdMs: BigInt(row.createdMs), expiresMs: BigInt(row.expiresMs) });

export function tokensService(context: HeadContext): Implementation<typeof Tokens> {
  const { head, pki, random } = context;
  return {
    async create(call, request) {
      const { principal } = call;
      const tenant = head.tenants.active(principal.tenant ?? '');
      const token = TOKEN_PREFIX + Buffer.from(random.bytes(TOKEN_BYTES)).toString('base64url');
      const id = Buffer.from(random.bytes(ID_BYTES)).toString('hex');
      await head.commit((nowMs, out) => head.tokens.step({ type: 'create', id, digest: digestOf(token), name: request.name, tenant: tenant.name, by: principal.spiffeId, ttlMs: request.ttlSeconds * 1_000 }, nowMs, out));
      const row = head.tokens.find(digestOf(token), head.clock.nowMs());
      if (row === undefined) throw new BulkheadError('INTERNAL', 'the token that was made is not there');
      return { token, info: shown(row) };
    },

    async list(call) {
      return { tokens: head.tokens.of(call.principal.spiffeId, head.clock.nowMs()).map(shown) };
    },

    async revoke(call, request) {
      await head.commit((nowMs, out) => head.tokens.step({ type: 'revoke', id: request.tokenId, by: call.principal.spiffeId }, nowMs, out));
      return {};
    },

    async announce(_call, request) {
      if (!/^https:\/\/[a-z0-9.-]{1,253}:\d{1,5}$/.test(request.url)) throw new BulkheadError('INVALID_ARGUMENT', 'the address of a gateway is https://name:port');
      context.gateway.announce(request.url, head.clock.nowMs());
      return {};
    },

    async admit(_call, request) {
      const asked = context.gatewayCalls.get(request.call);
      if (asked === undefined) throw new BulkheadError('INVALID_ARGUMENT', `${quote(request.call)} is no request of the gateway`);
      const nowMs = head.clock.nowMs();
      // Found by a digest of what was sent, so that how long it takes tells nothing of the tokens that there are.
      const row = TOKEN.test(request.token) ? head.tokens.find(digestOf(request.token), nowMs) : undefined;
      const remote = request.remote.slice(0, 64);
      if (row === undefined || head.tenants.get(row.tenant)?.state !== 'active' || head.revocations.covers(row.spiffeId, '', row.createdMs)) {
        // How many a second the gateway bounds. Whose it once was is not looked up.
        await context.appendAudit('', { type: 'lifecycle', timeMs: nowMs, event: 'token.refused', principal: '', resourceKind: 'token', resource: request.call, index: -1, detail: `from ${remote}` });
        throw notInForce();
      }
      const principal = principalFromSpiffeId(row.spiffeId);
      const name = request.name.slice(0, MAX_NAME_CHARS);
      const decision = asked.callers.includes(principal.kind)
        ? context.decisions.decide({ principal, action: asked.action, resource: resource(asked.resource, { tenant: row.tenant, name }), nowMs })
        : { allow: false, rule: 'callers', policyVersion: context.decisions.version };
      const allow = decision.allow === true;
      const record: DecisionRecord = {
        type: 'decision', timeMs: nowMs, principal: row.spiffeId, action: asked.action, resourceKind: asked.resource, resource: name, index: -1, count: 1,
        allow, rule: decision.rule, policyVersion: decision.policyVersion, detail: `gateway/${asked.call} with token ${row.id} from ${remote}`,
      };
      await context.appendAudit(row.tenant, record);
      if (!allow) throw new BulkheadError('DENIED', DENIED_TEXT);
      const answer = { spiffeId: row.spiffeId, tenant: row.tenant, expiresMs: BigInt(row.expiresMs), tokenId: row.id };
      if (request.csr.length === 0) return answer;
      const issued = await issueFirst(context, row.spiffeId as SpiffeId, request.csr, SVID_TTL_MS);
      return { ...answer, svidChain: issued.certificateChainPem, trustBundle: pki.trustBundlePem() };
    },
  };
}
