/**
 * The rows of policies/methods.yaml: what each RPC and each call of a channel asks of the decision point. A method without a row, a row without a
 * method and an action that nothing asks for keep the process from starting; there is no default row.
 */
import { LineCounter, parseDocument } from 'yaml';
import { z } from 'zod';
import { ACTIONS, RESOURCE_KINDS, type Action, type ResourceKind } from '../base/decision.ts';
import { BulkheadError } from '../base/errors.ts';
import type { PrincipalKind } from '../base/principal.ts';
import { hint } from './core/did-you-mean.ts';
import { KIND_OF_ACTION } from './core/vocabulary.ts';

const CALLER_KINDS = ['user', 'service', 'job', 'node', 'system'] as const satisfies readonly PrincipalKind[];

/** `call`: a record per call, on disk before the answer. `range`: consecutive objects of one session share one. `stream`: one when the stream opens; its frames have rows of their own. */
export const AUDIT_CLASSES = ['call', 'range', 'stream'] as const;
export type AuditClass = (typeof AUDIT_CLASSES)[number];

/** Calls inside a channel (proto/frames.md); each needs a row. */
export const CHANNEL_CALLS = [
  'define', 'code', 'submit-task', 'create-actor', 'call-actor', 'put', 'get', 'wait', 'stream', 'borrow', 'copy', 'release', 'cancel', 'kill', 'lookup-actor', 'create-group', 'remove-group', 'use-group', 'context', 'idle-limit', 'list-nodes', 'environment',
] as const;
export type ChannelCall = (typeof CHANNEL_CALLS)[number];

/** Requests of HTTP clients (src/gateway); each needs a row. */
export const GATEWAY_CALLS = ['version', 'list-jobs', 'submit-job', 'get-job', 'delete-job', 'stop-job', 'read-logs', 'get-package', 'put-package'] as const;
export type GatewayCall = (typeof GATEWAY_CALLS)[number];

export interface MethodTarget {
  readonly action: Action;
  readonly resource: ResourceKind;
}

interface Row extends MethodTarget {
  /** Kinds of principals that may ask at all. Empty: reached without an SVID, on the attestation listener only. */
  readonly callers: readonly PrincipalKind[];
  readonly audit: AuditClass;
}

export interface MethodRow extends Row {
  /** `bulkhead.v1.Service/Method`. */
  readonly method: string;
  /** The resource's tenant: the caller's own ('' for nodes and system), none (the cluster's), or what a request field says ('' the cluster's). */
  readonly tenant: 'own' | 'none' | { readonly field: string };
  /** Request field that names the resource. */
  readonly name: { readonly field: string } | undefined;
  /** Where a request field chooses what is asked: the target by the field's value. `action` and `resource` are then those of the first case; a value without a case is refused. */
  readonly cases: { readonly field: string; readonly targets: ReadonlyMap<string, MethodTarget> } | undefined;
}

export interface ChannelRow extends Row {
  readonly call: ChannelCall;
  /** The resource's tenant: the caller's own, the owner of the id in the frame, or none (the cluster's). */
  readonly tenant: 'own' | 'target' | 'none';
}

export interface GatewayRow extends Row {
  readonly call: GatewayCall;
}

const target = { action: z.enum(ACTIONS), resource: z.enum(RESOURCE_KINDS) };
const field = z.string().regex(/^request\.[a-z][a-z0-9_]*$/, "must be 'request.<field>'");
const common = { callers: z.array(z.enum(CALLER_KINDS)), audit: z.enum(AUDIT_CLASSES) };
const rpc = { ...common, tenant: z.union([z.enum(['own', 'none']), field]), name: field.optional() };
const row = z.union([z.strictObject({ ...target, ...rpc }), z.strictObject({ by: field, cases: z.record(z.string().regex(/^[a-z]+(?:-[a-z]+)*$/), z.strictObject(target)), ...rpc })]);
const channelRow = z.strictObject({ ...target, ...common, tenant: z.enum(['own', 'target', 'none']) });
const gatewayRow = z.strictObject({ ...target, ...common });
const file = z.strictObject({ version: z.literal(1), rpc: z.record(z.string(), row), channel: z.partialRecord(z.enum(CHANNEL_CALLS), channelRow), gateway: z.partialRecord(z.enum(GATEWAY_CALLS), gatewayRow).default({}), reserved: z.array(z.enum(ACTIONS)) });

export interface MethodFile {
  readonly rows: readonly MethodRow[];
  readonly channel: readonly ChannelRow[];
  readonly gateway: readonly GatewayRow[];
  /** Actions of the vocabulary that nothing asks for yet. */
  readonly reserved: readonly Action[];
}

const refuse = (what: string): never => {
  throw new BulkheadError('INTERNAL', `policies/methods.yaml: ${what}`);
};

/** Rows of a methods file. Throws INTERNAL naming the row: the file is part of the product, so a mistake in it is ours. */
export function parseMethods(text: string): MethodFile {
  const document = parseDocument(text, { version: '1.2', schema: 'core', merge: false, uniqueKeys: true, strict: true, lineCounter: new LineCounter() });
  const problem = document.errors[0] ?? document.warnings[0];
  if (problem !== undefined) return refuse(problem.message);
  let content: unknown;
  try {
    content = document.toJS({ maxAliasCount: 0 });
  } catch (thrown) {
    return refuse(String(thrown));
  }
  const parsed = file.safeParse(content);
  if (!parsed.success) return refuse(z.prettifyError(parsed.error));
  const { rpc: rpcs, channel, gateway, reserved } = parsed.data;
  return {
    rows: Object.entries(rpcs).map(([method, r]) => rowOf(method, r)),
    channel: Object.entries(channel).map(([call, r]) => {
      agree(`channel call '${call}'`, r);
      return Object.freeze({ ...r, call: call as ChannelCall, callers: Object.freeze([...new Set(r.callers)]) });
    }),
    gateway: Object.entries(gateway).map(([call, r]) => {
      agree(`gateway call '${call}'`, r);
      return Object.freeze({ ...r, call: call as GatewayCall, callers: Object.freeze([...new Set(r.callers)]) });
    }),
    reserved,
  };
}

/** An action on another kind than its own meets no rule: such a row would deny everybody. */
function agree(what: string, { action, resource }: MethodTarget): void {
  const kind = KIND_OF_ACTION.get(action);
  if (kind !== resource) refuse(`${what} asks for '${action}' on a '${resource}', but that action acts on a '${kind}'`);
}

function fieldName(text: string): { readonly field: string } {
  return { field: text.slice('request.'.length) };
}

function rowOf(method: string, r: z.infer<typeof row>): MethodRow {
  if (!/^bulkhead\.v\d+\.[A-Za-z]+\/[A-Za-z]+$/.test(method)) return refuse(`'${method}' is not the full name of a method (bulkhead.v1.Service/Method)`);
  const targets = 'by' in r ? new Map(Object.entries(r.cases)) : new Map([['', { action: r.action, resource: r.resource }]]);
  const [first] = targets.values();
  if (first === undefined) return refuse(`${method} has no case`);
  for (const t of targets.values()) agree(method, t);
  return Object.freeze({
    method, ...first, callers: Object.freeze([...new Set(r.callers)]), tenant: r.tenant === 'own' || r.tenant === 'none' ? r.tenant : fieldName(r.tenant),
    name: r.name === undefined ? undefined : fieldName(r.name), audit: r.audit, cases: 'by' in r ? { ...fieldName(r.by), targets } : undefined,
  });
}

export interface MethodTable {
  /** By full name: what an RPC server is built with. */
  readonly methods: ReadonlyMap<string, MethodRow>;
  readonly channel: ReadonlyMap<ChannelCall, ChannelRow>;
  readonly gateway: ReadonlyMap<GatewayCall, GatewayRow>;
}

/**
 * Rows for exactly the methods there are. `methods`: full names of all RPCs (`bulkhead.v1.Service/Method`). Throws INTERNAL when a method or
 * call of a channel has no row, a row has no method, or an action has neither row nor reservation.
 */
export function methodTable({ rows, channel, gateway, reserved }: MethodFile, methods: readonly string[]): MethodTable {
  const table = new Map(rows.map((r) => [r.method, r]));
  const calls = new Map(channel.map((r) => [r.call, r]));
  for (const method of methods) if (!table.has(method)) refuse(`${method} has no row, so it does not start; add one`);
  for (const { method } of rows) if (!methods.includes(method)) refuse(`the row '${method}' is for a method that does not exist${hint(method, methods)}`);
  for (const call of CHANNEL_CALLS) if (!calls.has(call)) refuse(`the channel call '${call}' has no row, so it does not start; add one`);
  const requests = new Map(gateway.map((r) => [r.call, r]));
  for (const call of GATEWAY_CALLS) if (!requests.has(call)) refuse(`the gateway call '${call}' has no row, so it does not start; add one`);
  const asked = new Set([...rows.flatMap((r) => (r.cases === undefined ? [r.action] : [...r.cases.targets.values()].map((t) => t.action))), ...channel.map((r) => r.action), ...gateway.map((r) => r.action)]);
  for (const action of ACTIONS) {
    if (!asked.has(action) && !reserved.includes(action)) refuse(`no row asks for the action '${action}'; add the row, or list the action under 'reserved'`);
    if (asked.has(action) && reserved.includes(action)) refuse(`the action '${action}' has a row, so it is no longer 'reserved'`);
  }
  return { methods: table, channel: calls, gateway: requests };
}

/** What a request asks for: the row's own target, or the one of its case. Undefined for a value without a case, which must be refused. */
export function targetOf(row: MethodRow, fieldValue: (field: string) => unknown): MethodTarget | undefined {
  if (row.cases === undefined) return row;
  const value = fieldValue(row.cases.field);
  return typeof value === 'string' ? row.cases.targets.get(value) : undefined;
}
