/**
 * Tenants. Transitions: 1. none → active (create); 2. active → active (quota); 3. active → deleted (delete). A deleted tenant's row stays: neither its number nor its
 * name is ever given out again, so no old object id, certificate or audit record can come to mean somebody else.
 */
import { BUDGET_NAMES, checkBudget } from '../../base/budget.ts';
import { parseTenantName, quote, type TenantName } from '../../base/ids.ts';
import { MAX_PROJECTS_PER_TENANT, MAX_TENANTS } from '../../base/limits.ts';
import { checkProjectQuota, DEFAULT_PROJECT, parseCallsPerSecond, parseProjectName, PROJECT_QUOTA_NAMES, projectQuotas } from '../../base/project-quota.ts';
import { parseMemory, parseUnits } from '../../base/resources.ts';
import { parseDuration } from '../../base/time.ts';
import { full, refuse, unknown, type Effect, type Table } from './table.ts';

export interface TenantRow {
  readonly name: TenantName;
  /** From 1; 0 is the cluster. Goes into every object id. */
  readonly number: number;
  readonly quota: Readonly<Record<string, string>>;
  readonly state: 'active' | 'deleted';
  readonly createdMs: number;
  readonly deletedMs: number;
}

export type TenantEvent =
  | { readonly type: 'create'; readonly name: string; readonly quota: Readonly<Record<string, string>>; readonly by: string }
  | { readonly type: 'quota'; readonly name: string; readonly quota: Readonly<Record<string, string>>; readonly remove: readonly string[]; readonly by: string }
  /** Of one project, whose quotas are among the tenant's as `project/name`. */
  | { readonly type: 'project'; readonly name: string; readonly project: string; readonly quota: Readonly<Record<string, string>>; readonly remove: readonly string[]; readonly by: string }
  | { readonly type: 'delete'; readonly name: string; readonly by: string };

/** Rule ids of platform policies begin with it. */
const RESERVED = 'platform';
const COUNT = /^\d{1,9}$/;
/** Quota names and what makes a value valid; anything else is refused. */
const QUOTA: Readonly<Record<string, (value: string) => void>> = {
  cpus: (v) => void (/^\d{1,7}(?:\.\d{1,4})?$/.test(v) ? parseUnits('quota cpus', Number(v)) : refuse(`quota cpus ${quote(v)} is not a number`)),
  memory: (v) => void parseMemory(/^\d+$/.test(v) ? Number(v) : v),
  objects: (v) => void parseMemory(/^\d+$/.test(v) ? Number(v) : v),
  objectMemory: (v) => void parseMemory(/^\d+$/.test(v) ? Number(v) : v),
  tasks: (v) => void (COUNT.test(v) || refuse(`quota tasks ${quote(v)} is not a whole number`)),
  actors: (v) => void (COUNT.test(v) || refuse(`quota actors ${quote(v)} is not a whole number`)),
  idle: (v) => void parseDuration(v),
  workers: (v) => void (COUNT.test(v) || refuse(`quota workers ${quote(v)} is not a whole number`)),
  calls: (v) => void parseCallsPerSecond(v),
  inflight: (v) => void (COUNT.test(v) || refuse(`quota inflight ${quote(v)} is not a whole number`)),
  ...Object.fromEntries(BUDGET_NAMES.map((name) => [name, (v: string) => checkBudget(name, v)])),
};

function parseQuota(quota: Readonly<Record<string, string>>): Record<string, string> {
  const parsed: Record<string, string> = {};
  for (const name of Object.keys(quota).sort()) {
    const check = Object.hasOwn(QUOTA, name) ? QUOTA[name] : undefined;
    if (check === undefined) return refuse(`quota ${quote(name)} is not known: ${Object.keys(QUOTA).join(', ')} are`);
    const value = quota[name] ?? '';
    check(value);
    parsed[name] = value;
  }
  return parsed;
}

export class Tenants implements Table<TenantEvent> {
  readonly prefix = 'tenants/';
  readonly #rows = new Map<string, TenantRow>();

  get(name: string): TenantRow | undefined {
    return this.#rows.get(name);
  }

  /** Throws DENIED when there is none or it is deleted. */
  active(name: string): TenantRow {
    const row = this.#rows.get(name);
    if (row?.state !== 'active') throw unknown(`tenant ${quote(name)}`);
    return row;
  }

  /** Throws when the tenant has no quotas for it, so that a misspelt name is never a project without limits. */
  requireProject(name: string, project: string): void {
    if (project === '' || project === DEFAULT_PROJECT) return;
    const prefix = `${parseProjectName(project)}/`;
    if (!Object.keys(this.active(name).quota).some((key) => key.startsWith(prefix))) return refuse(`the tenant has no project ${quote(project)}: its administrator makes one with \`bulkhead tenant quota ${name}/${project} cpus=…\``);
  }

  all(): TenantRow[] {
    return [...this.#rows.values()].sort((a, b) => a.number - b.number);
  }

  step(event: TenantEvent, nowMs: number, out: Effect[]): void {
    if (event.type === 'create') {
      const name = parseTenantName(event.name);
      if (name === RESERVED) return refuse(`the tenant name '${RESERVED}' is reserved for policies of the platform; choose another`);
      const before = this.#rows.get(name);
      if (before?.state === 'active') return refuse(`tenant ${quote(name)} exists already`);
      if (before !== undefined) return refuse(`tenant ${quote(name)} was deleted; names are never given out again, choose another`);
      if (this.#rows.size >= MAX_TENANTS) throw full('tenants, deleted ones included', MAX_TENANTS, 'use another cluster');
      let number = 1;
      for (const row of this.#rows.values()) number = Math.max(number, row.number + 1);
      const row: TenantRow = { name, number, quota: parseQuota(event.quota), state: 'active', createdMs: nowMs, deletedMs: 0 };
      out.push({ type: 'put', key: this.prefix + name, row }, { type: 'push', part: 'tenants' });
      out.push({ type: 'record', tenant: '', event: 'tenant.created', principal: event.by, kind: 'tenant', resource: name, detail: `number ${number}` });
      return;
    }
    const row = this.active(event.name);
    if (event.type === 'quota') {
      const unknownName = event.remove.find((name) => !Object.hasOwn(QUOTA, name));
      if (unknownName !== undefined) return refuse(`quota ${quote(unknownName)} is not known: ${Object.keys(QUOTA).join(', ')} are`);
      const changes = parseQuota(event.quota);
      const kept = Object.entries(row.quota).filter(([name]) => !event.remove.includes(name));
      out.push({ type: 'put', key: this.prefix + row.name, row: { ...row, quota: { ...Object.fromEntries(kept), ...changes } } satisfies TenantRow }, { type: 'push', part: 'tenants' });
      const detail = [...Object.entries(changes).map(([name, value]) => `${name}=${value}`), ...event.remove.map((name) => `${name} removed`)].join(' ');
      for (const tenant of ['', row.name]) out.push({ type: 'record', tenant, event: 'tenant.quota-set', principal: event.by, kind: 'tenant', resource: row.name, detail });
      return;
    }
    if (event.type === 'project') {
      const project = parseProjectName(event.project);
      const unknownName = event.remove.find((name) => !PROJECT_QUOTA_NAMES.includes(name));
      if (unknownName !== undefined) return refuse(`quota ${quote(unknownName)} of a project is not known: ${PROJECT_QUOTA_NAMES.join(', ')} are`);
      for (const [name, value] of Object.entries(event.quota)) checkProjectQuota(name, value);
      const gone = new Set(event.remove.map((name) => `${project}/${name}`));
      const changed = { ...Object.fromEntries(Object.entries(row.quota).filter(([name]) => !gone.has(name))), ...Object.fromEntries(Object.entries(event.quota).map(([name, value]) => [`${project}/${name}`, value])) };
      if (projectQuotas(changed).size > MAX_PROJECTS_PER_TENANT) throw full('projects with quotas of the tenant', MAX_PROJECTS_PER_TENANT, 'remove all quotas of one');
      out.push({ type: 'put', key: this.prefix + row.name, row: { ...row, quota: changed } satisfies TenantRow }, { type: 'push', part: 'tenants' });
      const detail = [...Object.entries(event.quota).sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, value]) => `${name}=${value}`), ...event.remove.map((name) => `${name} removed`)].join(' ');
      out.push({ type: 'record', tenant: row.name, event: 'project.quota-set', principal: event.by, kind: 'tenant', resource: project, detail });
      return;
    }
    out.push({ type: 'put', key: this.prefix + row.name, row: { ...row, state: 'deleted', deletedMs: nowMs } satisfies TenantRow }, { type: 'push', part: 'tenants' });
    for (const tenant of ['', row.name]) out.push({ type: 'record', tenant, event: 'tenant.deleted', principal: event.by, kind: 'tenant', resource: row.name, detail: '' });
  }

  absorb(key: string, row: unknown): void {
    const name = key.slice(this.prefix.length);
    if (row === undefined) this.#rows.delete(name);
    else this.#rows.set(name, row as TenantRow);
  }
}
