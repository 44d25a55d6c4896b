/**
 * Why a project's quotas keep a request of resources waiting, in words, with what could be borrowed and from whom. Names projects of the one tenant
 * only. Must never: change anything.
 */
import { NO_PROJECT_QUOTA } from '../../base/project-quota.ts';
import type { ResourceVector } from '../../base/resources.ts';
import { PREEMPT_AFTER_MS } from './preemption.ts';
import type { ProjectState } from './project-state.ts';
import { wholeOf } from './quota-tree.ts';
import type { Job } from './state.ts';

interface Measure {
  readonly name: string;
  readonly shown: (amount: number) => string;
  readonly wanted: number;
  readonly inUse: (p: ProjectState) => number;
  readonly own: (p: ProjectState) => number;
  readonly lend: (p: ProjectState) => number;
  readonly borrow: number;
  /** As they hold for the whole cluster. */
  readonly wholeOwn: number;
  readonly wholeBorrow: number;
  readonly job: number;
  readonly jobHere: number;
  readonly jobMost: number;
}

/** Undefined: they do not. */
export function projectReason(job: Job, { cpuUnits, memoryBytes }: ResourceVector): string | undefined {
  const { quota } = job.project;
  if (quota === NO_PROJECT_QUOTA) return undefined;
  const whole = wholeOf(job.tenant, job.project);
  return reasonOf(job, {
    name: 'cpus', shown: (n) => String(n / 10_000), wanted: cpuUnits, inUse: (p) => p.cpuUnitsInUse, own: (p) => p.quota.cpuUnits, lend: (p) => p.quota.cpuLendUnits, borrow: quota.cpuBorrowUnits, wholeOwn: whole.cpuUnits, wholeBorrow: whole.cpuBorrowUnits, job: job.cpuUnitsInUse, jobHere: job.quota.cpuUnits, jobMost: quota.jobCpuUnits,
  }) ?? reasonOf(job, {
    name: 'MiB', shown: (n) => String(Math.round(n / 2 ** 20)), wanted: memoryBytes, inUse: (p) => p.memoryBytesInUse, own: (p) => p.quota.memoryBytes, lend: (p) => p.quota.memoryLendBytes, borrow: quota.memoryBorrowBytes, wholeOwn: whole.memoryBytes, wholeBorrow: whole.memoryBorrowBytes, job: job.memoryBytesInUse, jobHere: job.quota.memoryBytes, jobMost: quota.jobMemoryBytes,
  });
}

function reasonOf(job: Job, of: Measure): string | undefined {
  const { project, tenant } = job;
  const { wanted, shown, name } = of;
  if (wanted === 0) return undefined;
  if (wanted > of.jobMost) return `needs ${shown(wanted)} ${name}, a job of project ${project.name} may have ${shown(of.jobMost)}: it can never start`;
  if (of.job + wanted > of.jobHere) return `waits: its job uses ${shown(of.job)} of the ${shown(of.jobMost)} ${name} that a job of project ${project.name} may have${of.jobHere < of.jobMost ? `, and may use ${shown(of.jobHere)} on this node until others need less` : ''}`;
  const own = of.own(project);
  const inUse = of.inUse(project);
  if (wanted > of.wholeOwn + of.wholeBorrow) return `needs ${shown(wanted)} ${name}, project ${project.name} may have ${shown(of.wholeOwn)}${of.wholeBorrow > 0 ? ` and borrow ${shown(of.wholeBorrow)}` : ''}: it can never start`;
  let lent = 0;
  let taken = 0;
  const lenders: string[] = [];
  for (const sibling of tenant.projects.values()) {
    const lends = of.lend(sibling);
    lent += lends;
    taken += Math.max(0, of.inUse(sibling) - (of.own(sibling) - lends));
    if (sibling !== project && lends > 0 && of.inUse(sibling) < of.own(sibling)) lenders.push(sibling.name);
  }
  const free = Math.max(0, lent - taken);
  const uses = `waits: project ${project.name} uses ${shown(Math.min(inUse, own))} of ${shown(own)}${own < of.wholeOwn ? ` (this node's share of ${shown(of.wholeOwn)})` : ''} ${name}`;
  if (inUse + wanted > own + of.borrow) {
    if (of.borrow > 0) return `${uses} and ${shown(Math.max(0, inUse - own))} of ${shown(of.borrow)} that it may borrow`;
    return free > 0 && lenders.length > 0 ? `${uses}; ${shown(free)} could be borrowed from ${lenders.join(', ')}, had it a limit for that (${name === 'cpus' ? 'cpus' : 'memory'}-borrow)` : uses;
  }
  if (inUse + wanted <= own - of.lend(project) || taken + inUse + wanted - Math.max(inUse, own - of.lend(project)) <= lent) return undefined;
  if (inUse + wanted <= own) {
    const borrowers = [...tenant.projects.values()].filter((p) => p !== project && of.inUse(p) > of.own(p)).map((p) => p.name);
    return `${uses}; the rest is lent${borrowers.length > 0 ? ` to ${borrowers.join(', ')}` : ''}, and is taken back after ${PREEMPT_AFTER_MS / 1_000} s from tasks that may be tried again`;
  }
  return `${uses} and ${shown(Math.max(0, inUse - own))} of ${shown(of.borrow)} that it may borrow; its siblings lend no more`;
}
