/**
 * `bulkhead audit …`: the head's and every raylet's logs as one. Must never: let an export look complete when a node's part is missing, or
 * let text in a record write terminal codes.
 */
import { readFileSync } from 'node:fs';
import type { LogMaterial } from '../../audit/audit-export.ts';
import type { AuditRecord } from '../../base/audit-record.ts';
import { BulkheadError, toSafeError } from '../../base/errors.ts';
import { MAX_AUDIT_TAIL_RECORDS } from '../../base/limits.ts';
import { Cluster } from '../../rpc/generated/bulkhead/v1/head_pb.js';
import { Audit, type AuditLine, type AuditMaterial } from '../../rpc/generated/bulkhead/v1/raylet_pb.js';
import type { Client } from '../../rpc/rpc.ts';
import { CALL_TIMEOUT_MS, CallerSession } from '../session.ts';
import { bytesText, ExitCode, printable, timeText, UsageError, type Terminal } from '../terminal.ts';

/** Records that may come between the first look and the following. */
const FOLLOW_OVERLAP = 1_000;

interface Source {
  readonly nodeId: string;
  readonly audit: Client<typeof Audit>;
}

async function sources(session: CallerSession): Promise<Source[]> {
  return [{ nodeId: 'head', audit: session.to(Audit) }, ...(await session.raylets()).map((r) => ({ nodeId: r.nodeId, audit: r.to(Audit) }))];
}

interface Shown {
  readonly nodeId: string;
  readonly index: number;
  readonly record: AuditRecord;
}

const parseLine = (line: AuditLine): Shown => ({ nodeId: line.nodeId, index: Number(line.index), record: JSON.parse(line.record) as AuditRecord });
const byTime = (a: Shown, b: Shown): number => a.record.timeMs - b.record.timeMs || (a.nodeId === b.nodeId ? a.index - b.index : a.nodeId < b.nodeId ? -1 : 1);

const shortPrincipal = (id: string): string => id.replace(/^spiffe:\/\/[^/]*\/(?:tenant\/)?/, '');

/** One record as a sentence. */
export function recordText(terminal: Terminal, { nodeId, record: r }: Shown): string {
  const time = new Date(r.timeMs).toISOString();
  const resource = `${r.resourceKind}${r.resource === '' ? '' : ` ${r.resource}`}${r.index >= 0 ? `#${r.index}` : ''}`;
  const detail = r.detail === '' ? '' : ` (${r.detail})`;
  if (r.type === 'lifecycle') return `${time} ${terminal.colour('dim', 'fact ')} ${printable(`${r.event} ${resource}${r.principal === '' ? '' : ` by ${shortPrincipal(r.principal)}`}${detail} [${nodeId}]`)}`;
  const verdict = r.allow ? terminal.colour('green', 'allow') : terminal.colour('red', 'DENY ');
  return `${time} ${verdict} ${printable(`${shortPrincipal(r.principal)} ${r.action} on ${resource}${r.count > 1 ? ` and ${r.count - 1} more` : ''} by ${r.rule}, policy ${r.policyVersion}${detail} [${nodeId}]`)}`;
}

const denied = (r: AuditRecord): boolean => r.type === 'decision' && !r.allow;

export async function auditTail(terminal: Terminal, options: { readonly tenant: string | undefined; readonly last: number; readonly follow: boolean; readonly deny: boolean }, profile: string | undefined): Promise<void> {
  await using session = await CallerSession.open(profile);
  const tenant = options.tenant ?? session.tenant ?? '';
  const from = await sources(session);
  const wanted = (s: Shown): boolean => !options.deny || denied(s.record);
  const show = (s: Shown): void => {
    terminal.answer({ node: s.nodeId, index: s.index, record: s.record });
    terminal.say(recordText(terminal, s));
  };
  const seen = new Map<string, number>();
  const all: Shown[] = [];
  await terminal.progress('reading the logs', Promise.all(from.map((source) => reachable(terminal, source.nodeId, async () => {
    for await (const line of source.audit.tail({ tenant, last: options.deny ? MAX_AUDIT_TAIL_RECORDS : options.last, follow: false }, { timeoutMs: 60_000 })) {
      const shown = parseLine(line);
      seen.set(source.nodeId, shown.index);
      if (wanted(shown)) all.push(shown);
    }
  }))));
  for (const shown of all.sort(byTime).slice(-options.last)) show(shown);
  if (!options.follow) return;
  const stop = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => stop.abort());
  await Promise.all(from.map((source) => reachable(terminal, source.nodeId, async () => {
    try {
      for await (const line of source.audit.tail({ tenant, last: FOLLOW_OVERLAP, follow: true }, { signal: stop.signal })) {
        const shown = parseLine(line);
        if (shown.index > (seen.get(source.nodeId) ?? -1) && wanted(shown)) show(shown);
      }
    } catch (thrown) {
      if (!stop.signal.aborted) throw thrown;
    }
  })));
}

/** A node that is away is told and does not hide the others; a refusal ends the command. */
async function reachable(terminal: Terminal, nodeId: string, work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (thrown) {
    const error = toSafeError(thrown);
    if (error.code !== 'UNAVAILABLE' && error.code !== 'TIMEOUT') throw thrown;
    terminal.warn(printable(`${nodeId} did not answer, so its records are missing: ${error.safeMessage}`));
  }
}

export async function auditStats(terminal: Terminal, given: string | undefined, profile: string | undefined): Promise<void> {
  await using session = await CallerSession.open(profile);
  const tenant = given ?? session.tenant ?? '';
  const nodes: { nodeId: string; records: number; bytes: number; allowed: number; denied: number; byAction: Record<string, number>; firstMs: number; lastMs: number; rootHash: string }[] = [];
  await Promise.all((await sources(session)).map((source) => reachable(terminal, source.nodeId, async () => {
    const s = await source.audit.stats({ tenant }, { timeoutMs: CALL_TIMEOUT_MS });
    const byAction = Object.fromEntries(Object.keys(s.byAction).sort().map((name) => [name, Number(s.byAction[name])]));
    nodes.push({ nodeId: source.nodeId, records: Number(s.records), bytes: Number(s.bytes), allowed: Number(s.allowed), denied: Number(s.denied), byAction, firstMs: Number(s.firstMs), lastMs: Number(s.lastMs), rootHash: s.rootHash });
  })));
  nodes.sort((a, b) => (a.nodeId === 'head' ? -1 : b.nodeId === 'head' ? 1 : a.nodeId < b.nodeId ? -1 : 1));
  const total = (pick: (n: (typeof nodes)[number]) => number): number => nodes.reduce((sum, n) => sum + pick(n), 0);
  const actions = new Map<string, number>();
  for (const n of nodes) for (const [name, count] of Object.entries(n.byAction)) actions.set(name, (actions.get(name) ?? 0) + count);
  terminal.answer({ tenant, records: total((n) => n.records), bytes: total((n) => n.bytes), allowed: total((n) => n.allowed), denied: total((n) => n.denied), byAction: Object.fromEntries([...actions].sort(([a], [b]) => (a < b ? -1 : 1))), nodes });
  terminal.say(`audit of ${tenant === '' ? 'the cluster itself' : `tenant ${tenant}`}`);
  terminal.table(['NODE', 'RECORDS', 'ON DISK', 'ALLOWED', 'DENIED', 'FIRST', 'LAST', 'ROOT HASH'], [
    ...nodes.map((n) => [n.nodeId, String(n.records), bytesText(n.bytes), String(n.allowed), String(n.denied), timeText(n.firstMs), timeText(n.lastMs), n.rootHash.slice(0, 16)]),
    ['total', String(total((n) => n.records)), bytesText(total((n) => n.bytes)), String(total((n) => n.allowed)), String(total((n) => n.denied)), '', '', ''],
  ], [1, 2, 3, 4]);
  terminal.say('');
  terminal.table(['ACTION', 'DECISIONS'], [...actions].sort(([a, x], [b, y]) => y - x || (a < b ? -1 : 1)).map(([name, count]) => [name, String(count)]), [1]);
}

export interface AuditExportOptions {
  readonly tenant: string | undefined;
  readonly fromMs: number | undefined;
  readonly toMs: number | undefined;
  readonly format: string;
  readonly out: string;
  readonly partial: boolean;
}

/** The header of a stream of material and, as it is read, its entries; undefined when the node has no log of the tenant. */
async function openMaterial(stream: AsyncIterable<AuditMaterial>): Promise<LogMaterial | undefined> {
  const messages = stream[Symbol.asyncIterator]();
  const first = await messages.next();
  if (first.done === true) return undefined;
  const { origin, checkpoint, vkeys } = JSON.parse(first.value.header) as { origin: string; checkpoint: string; vkeys: string[] };
  const rest: AsyncIterable<Uint8Array> = {
    async *[Symbol.asyncIterator]() {
      for (let step = await messages.next(); step.done !== true; step = await messages.next()) yield step.value.entries;
    },
  };
  return { origin, checkpoint, vkeys, entries: rest };
}

export async function auditExport(terminal: Terminal, options: AuditExportOptions, profile: string | undefined): Promise<void> {
  const { writeExport } = await import('../../audit/audit-export.ts');
  const { EXPORT_FORMATS } = await import('../../audit/core/record-lines.ts');
  const format = EXPORT_FORMATS.find((f) => f === options.format);
  if (format === undefined) throw new UsageError(`--format: give ${EXPORT_FORMATS.join(', ')}`);
  await using session = await CallerSession.open(profile);
  const tenant = options.tenant ?? session.tenant ?? '';
  const range = { ...(options.fromMs === undefined ? {} : { fromMs: options.fromMs }), ...(options.toMs === undefined ? {} : { toMs: options.toMs }) };
  const absent = await deadNodes(session);
  const material: LogMaterial[] = [];
  for (const source of await sources(session)) {
    try {
      const log = await openMaterial(source.audit.export({ tenant, fromMs: BigInt(options.fromMs ?? 0), toMs: BigInt(options.toMs ?? 0) }));
      if (log !== undefined) material.push(log);
    } catch (thrown) {
      const error = toSafeError(thrown);
      if (error.code !== 'UNAVAILABLE' && error.code !== 'TIMEOUT') throw thrown;
      absent.push(source.nodeId);
    }
  }
  if (absent.length > 0 && !options.partial) throw new BulkheadError('UNAVAILABLE', `records of ${absent.join(', ')} cannot be had now, and an export without them is not complete; start the node again, or take what there is with --partial`);
  if (material.length === 0) throw new BulkheadError('DENIED', (await import('../../rpc/rpc.ts')).DENIED_TEXT);
  const summary = await terminal.progress('writing the export', writeExport(options.out, material, { tenant, format, ...range }));
  terminal.answer({ directory: options.out, tenant, format, records: summary.records, logs: summary.logs, absent });
  if (absent.length > 0) terminal.warn(`PARTIAL: without the records of ${absent.join(', ')}`);
  terminal.say(`${summary.records} record${summary.records === 1 ? '' : 's'} of ${tenant === '' ? 'the cluster' : `tenant ${tenant}`} from ${summary.logs.length} log${summary.logs.length === 1 ? '' : 's'} in ${options.out}\nanyone can verify it, offline: bulkhead audit verify ${options.out}`);
}

/** Nodes that were here and are away: their records exist and are missing. */
async function deadNodes(session: CallerSession): Promise<string[]> {
  return (await session.to(Cluster).listNodes({}, { timeoutMs: CALL_TIMEOUT_MS })).nodes.filter((n) => n.state !== 'alive').map((n) => n.nodeId);
}

function readText(path: string, what: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    throw new UsageError(`${what}: ${path} cannot be read (${(error as NodeJS.ErrnoException).code})`);
  }
}

export async function auditVerify(terminal: Terminal, dir: string, options: { readonly keys: readonly string[]; readonly earlier: readonly string[]; readonly tenant: string | undefined }): Promise<void> {
  const { verifyExport } = await import('../../audit/audit-verify.ts');
  const trustedKeys = options.keys.flatMap((path) => readText(path, '--key').split('\n').map((line) => line.trim()).filter((line) => line !== ''));
  const verdict = await terminal.progress('verifying', verifyExport(dir, {
    ...(trustedKeys.length === 0 ? {} : { trustedKeys }), ...(options.earlier.length === 0 ? {} : { earlierCheckpoints: options.earlier.map((path) => readText(path, '--earlier')) }), ...(options.tenant === undefined ? {} : { tenant: options.tenant }),
  }));
  terminal.answer(verdict);
  for (const log of verdict.logs) {
    const [first] = log.problems;
    if (first === undefined) terminal.say(printable(`ok    ${log.origin}: ${log.records} of ${log.treeSize} records, root ${log.rootHash.slice(0, 16)}`));
    else {
      terminal.say(printable(`BAD   ${log.origin}: ${first.what}`));
      for (const problem of log.problems.slice(1, 10)) terminal.say(printable(`      ${problem.what}`));
      if (log.problems.length > 10) terminal.say(`      and ${log.problems.length - 10} more`);
    }
  }
  if (!verdict.trusted) terminal.note('the signatures were checked with the keys in the export itself; with keys from elsewhere (--key FILE) nobody can have made it anew');
  if (!verdict.ok) throw new ExitCode(1);
  terminal.say(`${terminal.colour('green', 'verified')}: ${verdict.logs.reduce((n, l) => n + l.records, 0)} records of ${verdict.tenant === '' ? 'the cluster' : `tenant ${printable(verdict.tenant)}`} are complete and unchanged`);
}
