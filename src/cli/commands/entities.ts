/** `bulkhead list|get|summary KIND [ID]`: what the caller may see, merged over all raylets. Must never: count one thing of two raylets twice in a list. */
import { BulkheadError, toSafeError } from '../../base/errors.ts';
import { quote } from '../../base/ids.ts';
import { Cluster, Jobs, Tenants } from '../../rpc/generated/bulkhead/v1/head_pb.js';
import { Inspection, type Entity } from '../../rpc/generated/bulkhead/v1/raylet_pb.js';
import { CALL_TIMEOUT_MS, CallerSession, type Unreachable } from '../session.ts';
import { bytesText, printable, timeText, UsageError, type Terminal } from '../terminal.ts';
import { JOB_HEADERS, jobRow, sortJobs } from './job.ts';
import { NODE_HEADERS, nodeRow } from './status.ts';
import { listTenants, showTenant } from './tenant.ts';

const KINDS = ['nodes', 'tenants', 'workers', 'jobs', 'tasks', 'actors', 'objects', 'placement-groups'] as const;
type Kind = (typeof KINDS)[number];

function parseKind(text: string): Kind {
  const kind = KINDS.find((k) => k === text || k === `${text}s`);
  if (kind === undefined) throw new UsageError(`there is no kind ${quote(text)}; kinds are: ${KINDS.join(', ')}`);
  return kind;
}

function tenantFor(session: CallerSession, given: string | undefined, kind: Kind): string {
  const tenant = given ?? session.tenant;
  if (tenant === undefined) throw new UsageError(`whose ${kind}? you are ${session.self.id}, which is of no tenant: give --tenant NAME`);
  return tenant;
}

function tellUnreachable(terminal: Terminal, unreachable: readonly Unreachable[]): void {
  for (const { nodeId, error } of unreachable) terminal.warn(printable(`node ${nodeId} did not answer, so what it holds is missing: ${error.safeMessage}`));
}

/** What lives on another node than its owner's is known to both, under an id each: shown once, under the owner's, with the worker that only the other knows. */
function merged(entities: readonly Entity[]): Entity[] {
  const elsewhere = new Map(entities.filter((e) => e.facts['forwarded'] !== undefined).map((e) => [e.id, e]));
  const owned = entities.filter((e) => e.facts['forwarded'] === undefined);
  for (const entity of owned) {
    const there = elsewhere.get(entity.facts['remote'] ?? '');
    if (there === undefined) continue;
    elsewhere.delete(there.id);
    entity.facts['worker'] = there.facts['worker'] ?? '';
  }
  // Those that are left have an owner that did not answer.
  return [...owned, ...elsewhere.values()].sort((a, b) => (a.id < b.id ? -1 : 1));
}

const FACTS: Readonly<Record<string, readonly string[]>> = { tasks: ['type', 'cpus', 'attempt', 'worker'], actors: ['class', 'pending', 'worker'], objects: ['size', 'refs', 'pins', 'held'], 'placement-groups': ['strategy', 'bundles', 'nodes'], workers: ['isolates', 'memory', 'cpuMs'] };
const TIMES = ['submitted', 'started', 'ended'];

function factText(name: string, value: string): string {
  if (TIMES.includes(name)) return value === '0' ? '' : timeText(Number(value));
  return (name === 'size' || name === 'memory') && value !== '' ? bytesText(Number(value)) : value;
}

function entityTable(terminal: Terminal, kind: Kind, entities: readonly Entity[]): void {
  const facts = FACTS[kind] ?? [];
  terminal.table(['ID', 'NAME', 'STATE', 'NODE', ...facts.map((f) => f.toUpperCase()), 'REASON'], entities.map((e) => [e.id, e.name, e.state, e.nodeId, ...facts.map((f) => factText(f, e.facts[f] ?? '')), e.reason]));
}

export async function list(terminal: Terminal, text: string, options: { readonly tenant: string | undefined; readonly job: string | undefined; readonly limit: number | undefined }, profile: string | undefined): Promise<void> {
  const kind = parseKind(text);
  if (kind === 'tenants') return listTenants(terminal, profile);
  await using session = await CallerSession.open(profile);
  if (kind === 'nodes') {
    const { nodes } = await session.to(Cluster).listNodes({}, { timeoutMs: CALL_TIMEOUT_MS });
    const sorted = [...nodes].sort((a, b) => (a.nodeId < b.nodeId ? -1 : 1));
    terminal.answer({ nodes: sorted });
    return terminal.table(NODE_HEADERS, sorted.map(nodeRow), [7, 8]);
  }
  if (kind === 'jobs') {
    const { jobs } = await session.to(Jobs).list({ tenant: options.tenant ?? session.tenant ?? '' }, { timeoutMs: CALL_TIMEOUT_MS });
    const sorted = sortJobs(jobs);
    terminal.answer({ jobs: sorted });
    return terminal.table(JOB_HEADERS, sorted.map(jobRow));
  }
  const tenant = tenantFor(session, options.tenant, kind);
  const limit = options.limit ?? 1_000;
  const { answers, unreachable } = await terminal.progress('asking the raylets', session.ask(await session.raylets(), (r) => r.to(Inspection).list({ kind, tenant, jobId: options.job ?? '', limit }, { timeoutMs: CALL_TIMEOUT_MS })));
  const all = merged(answers.flatMap((a) => a.entities));
  const shown = all.slice(0, limit);
  const truncated = all.length > limit || answers.some((a) => a.truncated);
  terminal.answer({ [kind]: shown, truncated, unreachable: unreachable.map((u) => u.nodeId) });
  entityTable(terminal, kind, shown);
  tellUnreachable(terminal, unreachable);
  if (truncated) terminal.warn(`there are more than ${limit}; --limit shows more`);
}

export async function get(terminal: Terminal, text: string, id: string, tenant: string | undefined, profile: string | undefined): Promise<void> {
  const kind = parseKind(text);
  if (kind === 'tenants') return showTenant(terminal, id, profile);
  await using session = await CallerSession.open(profile);
  if (kind === 'nodes') {
    const { nodes } = await session.to(Cluster).listNodes({}, { timeoutMs: CALL_TIMEOUT_MS });
    const node = nodes.find((n) => n.nodeId === id);
    if (node === undefined) throw new BulkheadError('DENIED', (await import('../../rpc/rpc.ts')).DENIED_TEXT);
    terminal.answer(node);
    return terminal.table(NODE_HEADERS, [nodeRow(node)], [7, 8]);
  }
  if (kind === 'jobs') {
    const job = await session.to(Jobs).get({ jobId: id }, { timeoutMs: CALL_TIMEOUT_MS });
    terminal.answer(job);
    return terminal.table(JOB_HEADERS, [jobRow(job)]);
  }
  const owner = tenantFor(session, tenant, kind);
  let denied: BulkheadError | undefined;
  const { answers, unreachable } = await terminal.progress('asking the raylets', session.ask(await session.raylets(), async (raylet) => {
    try {
      return await raylet.to(Inspection).get({ kind, tenant: owner, id }, { timeoutMs: CALL_TIMEOUT_MS });
    } catch (thrown) {
      const error = toSafeError(thrown);
      if (error.code !== 'DENIED') throw thrown;
      denied = error;
      return undefined;
    }
  }));
  const [found] = merged(answers.filter((a) => a !== undefined));
  tellUnreachable(terminal, unreachable);
  if (found === undefined) throw denied ?? unreachable[0]?.error ?? new BulkheadError('UNAVAILABLE', 'no raylet lives; bulkhead status shows the nodes');
  terminal.answer(found);
  terminal.table(['FIELD', 'VALUE'], [
    ['kind', found.kind], ['id', found.id], ['name', found.name], ['state', found.state], ['reason', found.reason], ['node', found.nodeId], ['job', found.jobId],
    ...Object.keys(found.facts).filter((name) => found.facts[name] !== found.nodeId).sort().map((name) => [name, factText(name, found.facts[name] ?? '')]),
  ].filter(([, value]) => value !== ''));
}

export async function summary(terminal: Terminal, text: string, given: string | undefined, profile: string | undefined): Promise<void> {
  const kind = parseKind(text);
  await using session = await CallerSession.open(profile);
  const counts = new Map<string, { name: string; state: string; count: number }>();
  const count = (name: string, state: string, n: number): void => {
    const row = counts.get(`${name}\0${state}`) ?? { name, state, count: 0 };
    row.count += n;
    counts.set(`${name}\0${state}`, row);
  };
  let unreachable: readonly Unreachable[] = [];
  if (kind === 'nodes') for (const node of (await session.to(Cluster).listNodes({}, { timeoutMs: CALL_TIMEOUT_MS })).nodes) count('', node.state, 1);
  else if (kind === 'tenants') for (const tenant of (await session.to(Tenants).list({}, { timeoutMs: CALL_TIMEOUT_MS })).tenants) count('', tenant.state, 1);
  else if (kind === 'jobs') for (const job of (await session.to(Jobs).list({ tenant: given ?? session.tenant ?? '' }, { timeoutMs: CALL_TIMEOUT_MS })).jobs) count(job.name, job.status, 1);
  else {
    const tenant = tenantFor(session, given, kind);
    const asked = await terminal.progress('asking the raylets', session.ask(await session.raylets(), (r) => r.to(Inspection).summarize({ kind, tenant }, { timeoutMs: CALL_TIMEOUT_MS })));
    for (const row of asked.answers.flatMap((a) => a.rows)) count(row.name, row.state, Number(row.count));
    ({ unreachable } = asked);
  }
  const rows = [...counts.values()].sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : a.state < b.state ? -1 : 1));
  terminal.answer({ kind, rows, unreachable: unreachable.map((u) => u.nodeId) });
  terminal.table(['NAME', 'STATE', 'COUNT'], rows.map((r) => [r.name, r.state, String(r.count)]), [2]);
  tellUnreachable(terminal, unreachable);
}
