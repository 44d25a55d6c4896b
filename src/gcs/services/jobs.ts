/** Jobs as their tenant sees them. Must never: show or stop a job of another tenant. */
import { DEFAULT_PROJECT } from '../../base/project-quota.ts';
import { parseJobId } from '../../base/ids.ts';
import type { Jobs } from '../../rpc/generated/bulkhead/v1/head_pb.js';
import type { CallContext, Implementation } from '../../rpc/service-types.ts';
import type { JobRow } from '../core/jobs.ts';
import { unknown } from '../core/table.ts';
import type { HeadContext } from '../ports.ts';
import { isSystem, requireTenant } from './access.ts';

const NAMES_PER_COMMIT = 100;

const shown = (row: JobRow) => ({
  jobId: row.jobId, tenant: row.tenant, name: row.name, submitter: row.submitter, status: row.status, message: row.message, startedMs: BigInt(row.startedMs), endedMs: BigInt(row.endedMs), project: row.project ?? DEFAULT_PROJECT,
});

const submitted = (row: JobRow) => ({ ...shown(row), ...(row.submission === undefined ? {} : { submission: { ...row.submission } }) });

export function jobsService(context: HeadContext): Implementation<typeof Jobs> {
  const { head } = context;

  const find = async (call: CallContext, jobId: string, action: 'job.read' | 'job.stop' | 'job.delete'): Promise<JobRow> => {
    const id = parseJobId(jobId);
    const row = head.jobs.find(id);
    await requireTenant(context, call, { tenant: row?.tenant, action, kind: 'job', name: id });
    return row ?? head.jobs.get(id);
  };

  return {
    async list(call, request) {
      const tenant = request.tenant === '' ? (call.principal.tenant ?? '') : request.tenant;
      if (tenant === '' && isSystem(call.principal)) return { jobs: head.tenants.all().flatMap((t) => head.jobs.ofTenant(t.name)).map(shown) };
      await requireTenant(context, call, { tenant, action: 'job.list', kind: 'job', name: '' });
      return { jobs: request.submitted ? head.jobs.submitted(tenant).map(submitted) : head.jobs.ofTenant(tenant).map(shown) };
    },

    async get(call, request) {
      if (request.jobId === '' && request.submissionId !== '') {
        // Of the caller's own tenant: what others submitted is not looked for.
        const row = head.jobs.submittedAs(call.principal.tenant ?? '', request.submissionId);
        if (row === undefined) throw unknown('submitted job');
        return submitted(row);
      }
      return shown(await find(call, request.jobId, 'job.read'));
    },

    async stop(call, request) {
      const row = await find(call, request.jobId, 'job.stop');
      await head.commit((nowMs, out) => head.jobs.step({ type: 'stop', jobId: row.jobId, by: call.principal.spiffeId, message: `stopped by ${call.principal.spiffeId}` }, nowMs, out));
      // What it left on nodes that are lost is not made again.
      while (head.actorNames.orphansOf(row.tenant, row.jobId).length > 0) await head.commit((nowMs, out) => head.actorNames.step({ type: 'jobStopped', tenant: row.tenant, jobId: row.jobId, limit: NAMES_PER_COMMIT }, nowMs, out));
      return shown(head.jobs.get(row.jobId));
    },

    async deleteSubmission(call, request) {
      const row = await find(call, request.jobId, 'job.delete');
      await head.commit((nowMs, out) => head.jobs.step({ type: 'deleteSubmission', jobId: row.jobId }, nowMs, out));
      return {};
    },
  };
}
