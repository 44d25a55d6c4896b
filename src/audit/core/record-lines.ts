/**
 * A record as one line of an export: JSON Lines, OCSF 1.5 or CEF. The line follows from the leaf and its log alone, so that a
 * verifier writes it again and compares. Must never: let tenant text reach a terminal, a log parser or a spreadsheet raw; change
 * with the version of Unicode or the host (what is escaped is a fixed list).
 */
import type { AuditRecord, DecisionRecord, LifecycleRecord } from '../../base/audit-record.ts';

export const EXPORT_FORMATS = ['jsonl', 'ocsf', 'cef'] as const;
export type ExportFormat = (typeof EXPORT_FORMATS)[number];

/** Name of the records file of a format. */
export const RECORDS_FILE: Readonly<Record<ExportFormat, string>> = { jsonl: 'records.jsonl', ocsf: 'records.ocsf.jsonl', cef: 'records.cef' };

/** Where the record stands: what an auditor needs to find it in the log. */
export interface LeafPlace {
  readonly origin: string;
  readonly tenant: string;
  readonly seq: number;
  /** Hex. */
  readonly leafHash: string;
  /** Of the checkpoint that the export goes with. */
  readonly treeSize: number;
  /** Hex. */
  readonly rootHash: string;
}

/** C1 controls, soft hyphen, bidirectional and zero-width marks, line and paragraph separators, byte order mark, annotation marks, tag characters. */
const HIDDEN = /[\u007f-\u00a0\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff9-\uffff]|\udb40[\udc00-\udfff]/g;
const UNPRINTABLE = /[\u0000-\u001f]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

function escapeUnits(text: string): string {
  let out = '';
  for (let i = 0; i < text.length; i++) out += `\\u${text.charCodeAt(i).toString(16).padStart(4, '0')}`;
  return out;
}

/** Strict JSON on one line: lone surrogates, controls and hidden characters stand as \u escapes. */
function json(value: unknown): string {
  return JSON.stringify(value).replace(HIDDEN, escapeUnits);
}

function jsonLine(r: AuditRecord, place: LeafPlace): string {
  const head = { seq: place.seq, time: new Date(r.timeMs).toISOString(), type: r.type };
  const tail = { leafHash: place.leafHash };
  if (r.type === 'decision') {
    const { principal, action, resourceKind, resource, index, count, allow, rule, policyVersion, detail } = r;
    return json({ ...head, allow, principal, action, resourceKind, resource, index, count, rule, policyVersion, detail, ...tail });
  }
  const { event, principal, resourceKind, resource, index, detail } = r;
  return json({ ...head, event, principal, resourceKind, resource, index, detail, ...tail });
}

// --- OCSF ----------------------------------------------------------------------------------------------------------

const OCSF_VERSION = '1.5.0';
type Named = readonly [id: number, name: string];
const OTHER = 99;

/** API Activity (6003): by the verb after the dot. */
const API_ACTIVITY: ReadonlyMap<string, Named> = new Map(
  Object.entries({ Create: ['submit', 'create', 'put', 'register', 'open', 'join', 'issue', 'join-token', 'admit', 'build'], Read: ['get', 'read', 'list', 'wait', 'find', 'stats', 'export', 'check', 'doctor', 'trust-bundle'],
    Update: ['call', 'rotate', 'renew', 'apply', 'sync', 'exchange', 'update', 'use', 'divide'], Delete: ['cancel', 'kill', 'release', 'stop', 'delete', 'revoke', 'remove'] })
    .flatMap(([name, verbs], i) => verbs.map((verb) => [verb, [i + 1, name] as const] as const)),
);
/** Authentication (3002). */
const AUTHENTICATION: ReadonlyMap<string, Named> = new Map([
  ['session.open', [1, 'Logon']], ['session.opened', [1, 'Logon']], ['session.closed', [2, 'Logoff']], ['session.expired', [2, 'Logoff']],
  ['svid.issued', [3, 'Authentication Ticket']], ['svid.renewed', [3, 'Authentication Ticket']],
] as const);
/** Application Lifecycle (6002): by the word after the dot. */
const LIFECYCLE: ReadonlyMap<string, Named> = new Map(
  Object.entries({ Install: ['created', 'joined', 'registered', 'installed', 'built', 'fetched'], Remove: ['removed', 'deleted', 'left'], Start: ['started', 'ready', 'opened'], Stop: ['stopped', 'killed', 'died', 'finished', 'failed', 'closed', 'cancelled'],
    Restart: ['restarted'], Enable: ['enabled'], Disable: ['disabled', 'revoked'], Update: ['applied', 'updated', 'rotated', 'renewed'] })
    .flatMap(([name, words], i) => words.map((word) => [word, [i + 1, name] as const] as const)),
);

function isAuthentication(name: string): boolean {
  return name === 'session.open' || name.startsWith('svid.') || name.startsWith('session.') && AUTHENTICATION.has(name);
}

function lastWord(name: string): string {
  return name.slice(name.lastIndexOf('.') + 1);
}

function user(principal: string): object {
  return { uid: principal, name: principal.slice(principal.lastIndexOf('/') + 1) };
}

function ocsfLine(r: AuditRecord, place: LeafPlace): string {
  const name = r.type === 'decision' ? r.action : r.event;
  const [classUid, className, categoryUid, categoryName, known] = isAuthentication(name)
    ? [3002, 'Authentication', 3, 'Identity & Access Management', AUTHENTICATION.get(name)] as const
    : r.type === 'decision' ? [6003, 'API Activity', 6, 'Application Activity', API_ACTIVITY.get(lastWord(name))] as const
      : [6002, 'Application Lifecycle', 6, 'Application Activity', LIFECYCLE.get(lastWord(name))] as const;
  const [activityId, activityName] = known ?? [OTHER, name === '' ? 'Other' : name] as const;
  const failed = r.type === 'decision' && !r.allow;
  const proof = { origin: place.origin, leaf_index: place.seq, leaf_hash: place.leafHash, tree_size: place.treeSize, root_hash: place.rootHash };
  const event = {
    class_uid: classUid, class_name: className, category_uid: categoryUid, category_name: categoryName, activity_id: activityId, activity_name: activityName,
    type_uid: classUid * 100 + activityId, type_name: `${className}: ${activityName}`, time: r.timeMs, severity_id: failed ? 2 : 1, severity: failed ? 'Low' : 'Informational',
    status_id: failed ? 2 : 1, status: failed ? 'Failure' : 'Success',
    metadata: { version: OCSF_VERSION, product: { name: 'Bulkhead', vendor_name: 'Bulkhead' }, log_name: place.origin, uid: `${place.origin}#${place.seq}`, sequence: place.seq, ...(r.type === 'decision' ? { profiles: ['security_control'] } : {}) },
    ...(classUid === 3002 ? { user: user(r.principal), service: { name: 'Bulkhead' } } : {}),
    ...(classUid === 6003 ? { api: { operation: name, service: { name: 'Bulkhead' } }, src_endpoint: { uid: r.principal, svc_name: 'Bulkhead' } } : {}),
    ...(classUid === 6002 ? { app: { name: `Bulkhead ${r.resourceKind}`, uid: r.resource, vendor_name: 'Bulkhead' } } : {}),
    actor: { user: user(r.principal) },
    ...(r.type === 'decision' ? ocsfDecision(r) : {}),
    ...(classUid === 6003 ? { resources: [{ type: r.resourceKind, name: r.resource, uid: r.index < 0 ? r.resource : `${r.resource}#${r.index}` }] } : {}),
    unmapped: { tenant: place.tenant, name, resource_kind: r.resourceKind, resource: r.resource, ...ocsfRest(r), detail: r.detail, proof },
  };
  return json(event);
}

function ocsfDecision(r: DecisionRecord): object {
  return {
    action_id: r.allow ? 1 : 2, action: r.allow ? 'Allowed' : 'Denied', disposition_id: r.allow ? 1 : 2, disposition: r.allow ? 'Allowed' : 'Blocked',
    policy: { name: r.rule, uid: r.rule, version: String(r.policyVersion), is_applied: true },
  };
}

function ocsfRest(r: AuditRecord): object {
  return r.type === 'decision' ? { index: r.index, count: r.count } : { index: r.index };
}

// --- CEF -----------------------------------------------------------------------------------------------------------

/** CEF has no escape for controls: they show as the text \uXXXX. */
function cefText(text: string): string {
  return text.replace(/\\/g, '\\\\').replace(UNPRINTABLE, (c) => `\\${escapeUnits(c)}`).replace(HIDDEN, (c) => escapeUnits(c).replace(/\\/g, '\\\\'));
}

function cefHeader(text: string): string {
  return cefText(text).replace(/\|/g, '\\|');
}

function cefValue(text: string): string {
  return cefText(text).replace(/=/g, '\\=');
}

function cefLine(r: AuditRecord, place: LeafPlace): string {
  const name = r.type === 'decision' ? r.action : r.event;
  const severity = r.type === 'decision' && !r.allow ? 5 : 1;
  const fields: [string, string | number][] = [
    ['rt', r.timeMs], ['externalId', place.seq], ['suser', r.principal], ['cs1Label', 'tenant'], ['cs1', place.tenant], ['cs2Label', 'resource'], ['cs2', `${r.resourceKind}:${r.resource}`],
    ['cs3Label', 'leafHash'], ['cs3', place.leafHash], ['cs4Label', 'log'], ['cs4', place.origin], ['cn1Label', 'index'], ['cn1', r.index],
  ];
  if (r.type === 'decision') fields.push(['act', r.allow ? 'allow' : 'deny'], ['outcome', r.allow ? 'success' : 'failure'], ['cs5Label', 'rule'], ['cs5', r.rule], ['cn2Label', 'count'], ['cn2', r.count], ['cn3Label', 'policyVersion'], ['cn3', r.policyVersion]);
  if (r.detail !== '') fields.push(['msg', r.detail]);
  return `CEF:0|Bulkhead|Bulkhead|1|${cefHeader(name)}|${cefHeader(`${r.type} ${name}`)}|${severity}|${fields.map(([k, v]) => `${k}=${cefValue(String(v))}`).join(' ')}`;
}

const LINE: Readonly<Record<ExportFormat, (r: AuditRecord, place: LeafPlace) => string>> = { jsonl: jsonLine, ocsf: ocsfLine, cef: cefLine };

/** The line of a record, without the newline. */
export function recordLine(format: ExportFormat, record: DecisionRecord | LifecycleRecord, place: LeafPlace): string {
  return LINE[format](record, place);
}
