/** Sessions of drivers: a job, a short-lived credential for raylets, and where they are. Must never: sign a credential for a job that is not stored as running and the caller's own. */
import { BulkheadError } from '../../base/errors.ts';
import type { Principal } from '../../base/principal.ts';
import { parseJobId, spiffeId } from '../../base/ids.ts';
import { DEFAULT_PROJECT } from '../../base/project-quota.ts';
import { SESSION_TTL_MS } from '../../base/limits.ts';
import type { Sessions } from '../../rpc/generated/bulkhead/v1/head_pb.js';
import type { CallContext, Implementation } from '../../rpc/service-types.ts';
import type { HeadContext } from '../ports.ts';
import { deny } from './access.ts';

/** The only party that session credentials are for. */
export const SESSION_AUDIENCE = 'raylet';

export function sessionsService(context: HeadContext): Implementation<typeof Sessions> {
  const { head, pki, random } = context;
  const hex = (length: number): string => Buffer.from(random.bytes(length)).toString('hex');

  const tenantOf = (principal: Principal): { name: string; number: number } => {
    if (principal.tenant === undefined) throw new BulkheadError('INVALID_ARGUMENT', 'only users and services of a tenant have sessions; issue yourself an identity with `bulkhead identity issue`');
    return head.tenants.active(principal.tenant);
  };

  const session = async (principal: Principal, jobId: string, sessionId: string, tenantNumber: number) => {
    const project = head.jobs.get(jobId).project ?? DEFAULT_PROJECT;
    // `jti`: job id, session id and project, with '_' between them. The job id in it is what raylets run the session's calls under; the session id is what they name when its stream ends.
    const { token, expiresAtMs } = await pki.issueSession({ principal, tenantNumber, jti: `${jobId}_${sessionId === '' ? hex(8) : sessionId}_${project}` });
    const raylets = head.nodes.alive().map((n) => ({ nodeId: n.id, nodeNumber: n.number, address: n.address, spiffeId: spiffeId(pki.trustDomain, { kind: 'node', node: n.id }) }));
    return { jobId, sessionId, credential: token, expiresMs: BigInt(expiresAtMs), tenantNumber, raylets };
  };

  /** Somebody else's job, of whatever tenant, an ended one and none look alike; the attempt is on record where it concerns somebody. */
  const requireOwn = async (call: CallContext, jobId: string): Promise<void> => {
    const id = parseJobId(jobId);
    const row = head.jobs.find(id);
    if (row?.submitter !== call.principal.spiffeId) await deny(context, call, { tenant: row?.tenant, action: 'session.open', kind: 'session', name: id }, row?.tenant === call.principal.tenant ? 'owner' : 'wall');
  };

  return {
    async open(call, request) {
      const { principal } = call;
      const tenant = tenantOf(principal);
      if (request.jobId !== '') await requireOwn(call, request.jobId);
      const jobId = request.jobId === '' ? `job-${hex(12)}` : request.jobId;
      const sessionId = hex(8);
      await head.commit((nowMs, out) => {
        const expiresMs = nowMs + SESSION_TTL_MS;
        // Again, now alone: between the look above and here the tenant may have been deleted.
        head.tenants.active(tenant.name);
        if (request.project !== '' && request.jobId !== '' && request.project !== (head.jobs.get(request.jobId).project ?? DEFAULT_PROJECT)) throw new BulkheadError('INVALID_ARGUMENT', `the job ${request.jobId} is of another project: join it without a project, or open a job of your own`);
        head.tenants.requireProject(tenant.name, request.project);
        if (request.jobId === '') head.jobs.step({ type: 'open', jobId, tenant: tenant.name, name: request.jobName, project: request.project, by: principal.spiffeId, expiresMs, sessionId, ...(request.submission === undefined ? {} : { submission: { id: request.submission.id, details: request.submission.details } }) }, nowMs, out);
        else head.jobs.step({ type: 'join', jobId, by: principal.spiffeId, expiresMs, sessionId }, nowMs, out);
      });
      return session(principal, jobId, sessionId, tenant.number);
    },

    async refresh(call, request) {
      const { principal } = call;
      const tenant = tenantOf(principal);
      await requireOwn(call, request.jobId);
      await head.commit((nowMs, out) => head.jobs.step({ type: 'refresh', jobId: request.jobId, sessionId: request.sessionId, by: principal.spiffeId, expiresMs: nowMs + SESSION_TTL_MS }, nowMs, out));
      return session(principal, request.jobId, request.sessionId, tenant.number);
    },

    async close(call, request) {
      await requireOwn(call, request.jobId);
      await head.commit((nowMs, out) => head.jobs.step({ type: 'close', jobId: request.jobId, sessionId: request.sessionId, by: call.principal.spiffeId, outcome: request.outcome, message: request.message }, nowMs, out));
      return {};
    },
  };
}
