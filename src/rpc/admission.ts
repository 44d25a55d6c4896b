/**
 * The policy enforcement point of control calls: method row → caller kind → resource → decision → audit record on disk → handler.
 * Must never: run a handler or answer before the record of its decision is durable, or tell denied from not found.
 */
import { ScalarType, type DescField, type DescMethod, type Message } from '@bufbuild/protobuf';
import type { DecisionRecord } from '../base/audit-record.ts';
import { resource, type Action, type Decision, type Resource } from '../base/decision.ts';
import { BulkheadError, toSafeError } from '../base/errors.ts';
import { parseTenantName, quote, type TenantName } from '../base/ids.ts';
import type { Principal } from '../base/principal.ts';
import type { Clock } from '../base/time.ts';
import { noticesOf, type OwnersNotices } from './owners-notices.ts';
import type { MethodRow, ServerSecurity, VerifiedPeer } from './ports.ts';
import { DENIED_TEXT } from './status.ts';
import type { RpcLog } from './tls.ts';

/** Longest resource name that a request may give; every id of ours is far shorter. */
const MAX_RESOURCE_NAME_CHARS = 512;

export interface MethodPlan {
  readonly row: MethodRow;
  /** Undefined for a stream of requests: the resource is known without one. */
  /** Throws INVALID_ARGUMENT for what is no name of a tenant, resource or kind. */
  question(request: Message | undefined, caller: VerifiedPeer): { readonly action: Action; readonly target: Resource };
}

const refuseStart = (method: string, why: string): never => {
  throw new BulkheadError('INTERNAL', `${method} cannot start: ${why}; correct its row in policies/methods.yaml`);
};

/** The row of a method. A method without one does not start. */
export function rowOf(security: Pick<ServerSecurity, 'methods'>, method: string): MethodRow {
  const row = security.methods.get(method);
  if (row === undefined) return refuseStart(method, 'it has no row');
  if (row.method !== method) return refuseStart(method, `its row is for '${row.method}'`);
  return row;
}

function fieldOf(descriptor: DescMethod, method: string, name: string, what: string): DescField & { fieldKind: 'scalar' } {
  const field = descriptor.input.fields.find((f) => f.name === name || f.localName === name);
  if (field === undefined) return refuseStart(method, `${what} field '${name}' does not exist in ${descriptor.input.typeName}`);
  if (field.fieldKind !== 'scalar') return refuseStart(method, `${what} field '${name}' is not a single scalar`);
  return field;
}

function nameText(value: unknown): string {
  if (typeof value === 'string') {
    if (value.length > MAX_RESOURCE_NAME_CHARS) throw new BulkheadError('INVALID_ARGUMENT', `a name of ${value.length} characters exceeds the limit of ${MAX_RESOURCE_NAME_CHARS}`);
    return value;
  }
  if (value instanceof Uint8Array) {
    if (value.length * 2 > MAX_RESOURCE_NAME_CHARS) throw new BulkheadError('INVALID_ARGUMENT', `an id of ${value.length} bytes exceeds the limit of ${MAX_RESOURCE_NAME_CHARS / 2}`);
    return Buffer.from(value.buffer, value.byteOffset, value.length).toString('hex');
  }
  return String(value);
}

const valueAt = (request: Message | undefined, field: DescField): unknown => (request === undefined ? undefined : Reflect.get(request, field.localName));

/** Checks a row against the descriptor of its method once, at start. Throws INTERNAL naming the row. */
export function planMethod(row: MethodRow, descriptor: DescMethod): MethodPlan {
  const { method } = row;
  const streaming = descriptor.methodKind === 'bidi_streaming' || descriptor.methodKind === 'client_streaming';
  if (streaming && (typeof row.tenant === 'object' || row.name !== undefined || row.cases !== undefined)) refuseStart(method, 'a stream has no request to take fields from');
  if (row.callers.length === 0) refuseStart(method, 'its row admits nobody');
  const tenantField = typeof row.tenant === 'object' ? fieldOf(descriptor, method, row.tenant.field, 'tenant') : undefined;
  if (tenantField !== undefined && tenantField.scalar !== ScalarType.STRING) refuseStart(method, `tenant field '${tenantField.name}' is not a string`);
  const nameField = row.name === undefined ? undefined : fieldOf(descriptor, method, row.name.field, 'name');
  const { cases } = row;
  const caseField = cases === undefined ? undefined : fieldOf(descriptor, method, cases.field, 'case');
  if (caseField !== undefined && caseField.scalar !== ScalarType.STRING) refuseStart(method, `case field '${caseField.name}' is not a string`);
  if (cases?.targets.size === 0) refuseStart(method, 'it has no case');
  return {
    row,
    question(request, caller) {
      let asked: { readonly action: Action; readonly resource: Resource['kind'] } = row;
      if (cases !== undefined && caseField !== undefined) {
        const value = valueAt(request, caseField);
        const found = typeof value === 'string' ? cases.targets.get(value) : undefined;
        if (found === undefined) throw new BulkheadError('INVALID_ARGUMENT', `${caseField.name} ${quote(value)} is not one of ${[...cases.targets.keys()].join(', ')}`);
        asked = found;
      }
      let tenant: string = '';
      if (tenantField !== undefined) {
        const given = valueAt(request, tenantField);
        // Empty means the cluster itself; the tenant wall decides who may ask about that.
        tenant = given === '' ? '' : parseTenantName(given);
      } else if (row.tenant === 'own') tenant = caller.principal.tenant ?? '';
      return { action: asked.action, target: resource(asked.resource, { tenant, name: nameField === undefined ? '' : nameText(valueAt(request, nameField)) }) };
    },
  };
}

export interface AdmissionOptions {
  /** Whether the tenant exists: a record about a tenant that does not goes to the cluster's log, so that names in requests make no logs. */
  readonly knowsTenant: (tenant: TenantName) => boolean;
  readonly clock: Clock;
  readonly log: RpcLog;
}

export class Admission {
  readonly #security: ServerSecurity;
  readonly #options: AdmissionOptions;
  readonly #notices: OwnersNotices;

  constructor(security: ServerSecurity, options: AdmissionOptions) {
    this.#security = security;
    this.#options = options;
    this.#notices = noticesOf(security.audit);
  }

  /** Resolves when the call is allowed and the record is on disk. Throws DENIED, or UNAVAILABLE when the audit log is not there. */
  async admit(plan: MethodPlan, peer: VerifiedPeer, request: Message | undefined): Promise<Decision> {
    const { row } = plan;
    const { principal } = peer;
    const { action, target } = plan.question(request, peer);
    const nowMs = this.#options.clock.nowMs();
    // Again per call: a revocation between two calls of one connection needs no wait for the connection's end.
    const decision = !row.callers.includes(principal.kind)
      ? { allow: false, rule: 'callers', policyVersion: this.#security.decisions.version }
      : this.#security.peers.isRevoked(peer)
        ? { allow: false, rule: 'revoked', policyVersion: this.#security.decisions.version }
        : this.#security.decisions.decide({ principal, action, resource: target, nowMs });
    // `true` and nothing like it: whatever else a decision point returns is a denial.
    const allow = decision.allow === true;
    const record: DecisionRecord = {
      type: 'decision', timeMs: nowMs, principal: principal.spiffeId, action, resourceKind: target.kind,
      resource: target.attributes.name, index: -1, count: 1, allow, rule: decision.rule, policyVersion: decision.policyVersion, detail: row.method,
    };
    const owner = target.attributes.tenant;
    const ownersLog = owner !== '' && this.#options.knowsTenant(owner as TenantName) ? owner : '';
    const actorsLog = principal.tenant ?? '';
    // A denied try at another tenant's resource waits for the record of who tried alone, so that neither time nor a full log tells whether that tenant exists.
    const crossing = !allow && owner !== actorsLog;
    const recorded = this.#append(crossing ? actorsLog : ownersLog, record, principal);
    if (crossing && ownersLog !== actorsLog) this.#notices.tell(actorsLog, owner, ownersLog, record);
    await recorded;
    if (!allow) throw new BulkheadError('DENIED', DENIED_TEXT);
    return decision;
  }

  async #append(log: string, record: DecisionRecord, principal: Principal): Promise<void> {
    try {
      await this.#security.audit(log, record);
    } catch (thrown) {
      this.#options.log.warn({ error: thrown, code: toSafeError(thrown).code }, 'an audit record could not be written; the call is refused');
      // What its own log lacks the caller may know, and the operator of any.
      if (thrown instanceof BulkheadError && thrown.code === 'QUOTA_EXCEEDED' && (principal.tenant === undefined || principal.tenant === log)) throw thrown;
      throw new BulkheadError('UNAVAILABLE', 'the audit log cannot be written, so the call was refused; tell the operator of the node', { cause: thrown });
    }
  }

  /** Tells owners what they have not been told yet. */
  settle(): Promise<void> {
    return this.#notices.settle();
  }
}
