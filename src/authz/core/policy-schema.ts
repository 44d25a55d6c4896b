/**
 * A policy file after parsing: typed, closed, plain. Positions stay with the parts so that errors found later (an unknown role, too many
 * rules) still name line and column. Only src/authz/policy-file.ts and tests make these; they hold no reference to the YAML tree.
 */
import type { Action, ResourceAttributes, ResourceKind } from '../../base/decision.ts';
import type { AttributeName, Operator, Scalar } from './vocabulary.ts';

/** 1-based. */
export interface Position {
  readonly line: number;
  readonly column: number;
}

export interface Condition {
  readonly attribute: AttributeName;
  readonly operator: Operator;
  /** A list for `in` and `nin`, a scalar of the attribute's type for all others. */
  readonly value: Scalar | readonly Scalar[];
}

/**
 * Which resources a rule reaches: those of a tenant (which one, the wall decides), the cluster's own (`tenant` is ''), or both. Tenant files
 * cannot say: their permits are `tenant`, their forbids `any`.
 */
export const SCOPES = ['tenant', 'cluster', 'any'] as const;
export type Scope = (typeof SCOPES)[number];

export interface RuleDocument {
  readonly actions: readonly Action[];
  readonly kinds: readonly ResourceKind[];
  readonly when: readonly Condition[];
  readonly scope: Scope;
  readonly at: Position;
}

export interface RoleDocument {
  readonly name: string;
  /** Platform roles only: tenants may bind it and `identity issue --role` may name it. */
  readonly assignable: boolean;
  readonly permit: readonly RuleDocument[];
  readonly forbid: readonly RuleDocument[];
  readonly at: Position;
}

export interface BindingTarget {
  /** Never `job`: a job has the roles of its submitter. `node` and `system` in platform files only. */
  readonly kind: 'user' | 'service' | 'node' | 'system';
  /** `*` for all of this kind. */
  readonly name: string;
}

export interface BindingDocument {
  readonly role: string;
  readonly to: readonly BindingTarget[];
  readonly at: Position;
}

export interface Grantee {
  /** '' where `kind` is system. */
  readonly tenant: string;
  /** `any`: every principal of the tenant that its own policy permits the action. */
  readonly kind: 'any' | 'user' | 'service' | 'system';
  readonly name: string;
}

export interface GrantDocument {
  readonly to: Grantee;
  readonly actions: readonly Action[];
  readonly kinds: readonly ResourceKind[];
  readonly when: readonly Condition[];
  /** Milliseconds since the epoch; from this moment on the grant is void. */
  readonly untilMs: number;
  readonly at: Position;
}

export interface TestDocument {
  readonly as: { readonly tenant: string; readonly kind: 'user' | 'service' | 'node' | 'system'; readonly name: string };
  /** Roles that the identity carries in this test, besides its bindings. */
  readonly roles: readonly string[];
  readonly do: Action;
  readonly on: Partial<ResourceAttributes>;
  /** `forbid`: denied, and by a forbid rule. */
  readonly expect: 'permit' | 'deny' | 'forbid';
  /** The determining rule, when the test demands one. */
  readonly rule: string | undefined;
  /** Time of the request; undefined: the time of the check. */
  readonly atMs: number | undefined;
  readonly at: Position;
}

export interface PolicyDocument {
  readonly version: 1;
  /** '' in a platform file. */
  readonly tenant: string;
  readonly roles: readonly RoleDocument[];
  readonly bindings: readonly BindingDocument[];
  readonly grants: readonly GrantDocument[];
  readonly tests: readonly TestDocument[];
}

/** A finding of a check. Warnings do not stop a policy. */
export interface Diagnostic {
  readonly file: string;
  readonly line: number;
  readonly column: number;
  readonly severity: 'error' | 'warning';
  readonly message: string;
}

export function diagnosticText(d: Diagnostic): string {
  return `${d.file}:${d.line}:${d.column}: ${d.severity === 'warning' ? 'warning: ' : ''}${d.message}`;
}
