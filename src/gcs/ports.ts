/**
 * What the head's services need from pki, authz and audit, as small interfaces: main.ts joins them with the real ones. So each service can
 * be read, and tested, with nothing but this file and the tables.
 */
import type { AuditCounts } from '../base/audit-metrics.ts';
import type { AppendDurably } from '../base/audit-record.ts';
import type { Action, PolicyDecisionPoint, ResourceKind } from '../base/decision.ts';
import type { SpiffeId, TenantName, TrustDomain } from '../base/ids.ts';
import type { Principal, PrincipalKind } from '../base/principal.ts';
import type { RandomSource } from '../base/time.ts';
import type { Budgets } from './core/budgets.ts';
import type { QuotaShares } from './core/quota-shares.ts';
import type { CurrentFile } from './core/policy-versions.ts';
import type { IdentityRow } from './core/identities.ts';
import type { NodeMost } from './core/nodes.ts';
import type { HeadState } from './head-state.ts';
import type { PolicyAdministrator } from './policy-administrator.ts';

/** It announces itself every half minute. */
const GATEWAY_SILENT_AFTER_MS = 90_000;

export interface IssuedChain {
  readonly certificateChainPem: string;
  readonly serial: string;
  readonly notAfterMs: number;
}

export interface SessionFacts {
  readonly principal: Principal;
  readonly tenantNumber: number;
  readonly jti: string;
  readonly issuedAtMs: number;
}

export interface AuthorityFacts {
  readonly kind: 'root' | 'intermediate';
  readonly serial: string;
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
  readonly active: boolean;
}

export interface HeadPki {
  readonly trustDomain: TrustDomain;
  readonly keyManagerName: string;
  /** Throws INVALID_ARGUMENT when the request is not a CSR signed by its own key. The record of the issue is durable when it resolves. */
  issue(spiffeId: SpiffeId, csrDer: Uint8Array, ttlMs: number): Promise<IssuedChain>;
  /** A certificate with names of DNS for a node or component, no SVID. Throws INVALID_ARGUMENT for another identity, or a CSR that is none. */
  certifyServer(spiffeId: SpiffeId, csrDer: Uint8Array, ttlMs: number, moreNames?: readonly string[]): Promise<IssuedChain & { readonly dnsNames: readonly string[] }>;
  /** Throws as `issue` would; signs nothing. */
  checkCsr(csrDer: Uint8Array): void;
  trustBundlePem(): string;
  trustBundleJwks(): string;
  authorities(): AuthorityFacts[];
  /** A new intermediate and a new JWT key; nothing that was issued before ends. */
  rotate(): Promise<void>;
  createTenantKey(tenant: TenantName): Promise<void>;
  /** A fresh data key for what a node writes to its disk for the tenant, and the same wrapped for that node. */
  createDataKey(tenant: TenantName, nodeId: string): Promise<{ readonly key: Uint8Array; readonly wrapped: Uint8Array }>;
  /** Crypto-shredding: resolves when everything wrapped for the tenant is unreadable. */
  destroyTenantKey(tenant: TenantName): Promise<void>;
  /** Who a session credential that a raylet shows is of. Throws UNAUTHENTICATED when it was not issued here, was altered, or has ended. */
  verifySession(credential: string): Promise<SessionFacts>;
  /** Encrypts under the tenant's key, so that nothing is readable when that is destroyed; opened only for the same tenant and `what`. Base64. */
  seal(tenant: TenantName, bytes: Uint8Array, what: string): Promise<string>;
  /** Throws INVALID_ARGUMENT for what was not sealed so. */
  unseal(tenant: TenantName, sealed: string, what: string): Promise<Uint8Array>;
  /** Session credential (JWT-SVID) for raylets. */
  issueSession(request: { readonly principal: Principal; readonly tenantNumber: number; readonly jti: string }): Promise<{ readonly token: string; readonly expiresAtMs: number }>;
}

/** A policy that has been compiled, whole. */
export interface CompiledPolicy {
  readonly version: number;
  /** JSON, as raylets get it. */
  readonly text: string;
  /** The roles that the principal has, by bindings and by its identity: `platform/developer`, `acme/analyst`. */
  rolesOf(principal: Principal): string[];
}

export interface PolicyCompiler {
  /** Throws INVALID_ARGUMENT with file, line and column of everything that is wrong. */
  compile(input: { readonly version: number; readonly files: readonly CurrentFile[]; readonly identities: readonly IdentityRow[] }): CompiledPolicy;
  /**
   * Checks one file alone: it parses, is of this tenant ('' for the platform), and its own tests pass with all files in force.
   * Throws INVALID_ARGUMENT with file, line and column. Others are served meanwhile.
   */
  checkFile(file: CurrentFile, all: readonly CurrentFile[]): Promise<void>;
}

/** The head's own audit logs: the cluster's (tenant '') and its part of each tenant's. */
export interface AuditReader {
  /** JSON of the last records, then, with `follow`, of each one that becomes durable, until `signal`. */
  tail(tenant: string, options: { readonly last: number; readonly follow: boolean; readonly signal: AbortSignal }): AsyncIterable<{ readonly index: number; readonly record: string }>;
  /** A header (JSON), then entry bundles. */
  material(tenant: string, fromMs: number, toMs: number): AsyncIterable<{ readonly header: string } | { readonly entries: Uint8Array }>;
  /** Of each log that is open. */
  counts(): Iterable<AuditCounts>;
  /** Undefined when there is no such log here. */
  stats(tenant: string): Promise<AuditLogStats | undefined>;
}

export interface AuditLogStats {
  readonly records: number;
  readonly bytes: number;
  readonly allowed: number;
  readonly denied: number;
  readonly byAction: Readonly<Record<string, number>>;
  readonly firstMs: number;
  readonly lastMs: number;
  /** Hex. */
  readonly rootHash: string;
}

/** Signs deletion certificates. */
export interface StatementSigner {
  /** C2SP verifier key line. */
  readonly verifierKey: string;
  sign(statement: Uint8Array): Uint8Array;
}

/** Checkpoints of nodes' logs (C2SP signed notes). */
export interface CheckpointReader {
  /** What the note says; its signature is the node's own and not checked here, the stream's SVID says whose note it is. Throws INVALID_ARGUMENT. */
  parse(note: Uint8Array): { readonly origin: string; readonly treeSize: number; readonly rootHash: string };
  /** The same checkpoint signed by the head: it saw this one and none that contradicts it. */
  sign(note: Uint8Array): Uint8Array;
}

/** What a request of the gateway asks for: a row under `gateway` in policies/methods.yaml. */
export interface GatewayCall {
  readonly call: string;
  readonly action: Action;
  readonly resource: ResourceKind;
  readonly callers: readonly PrincipalKind[];
}

/** Where the gateway said that it is; in memory, since it says so again. */
export class AnnouncedGateway {
  #url = '';
  #atMs = 0;

  announce(url: string, nowMs: number): void {
    this.#url = url;
    this.#atMs = nowMs;
  }

  /** Empty when it has not spoken for a while. */
  url(nowMs: number): string {
    return nowMs - this.#atMs < GATEWAY_SILENT_AFTER_MS ? this.#url : '';
  }
}

/** Everything that a service may use. */
export interface HeadContext {
  readonly head: HeadState;
  readonly pki: HeadPki;
  readonly policies: PolicyAdministrator;
  readonly budgets: Budgets;
  readonly shares: QuotaShares;
  readonly appendAudit: AppendDurably;
  readonly decisions: PolicyDecisionPoint;
  readonly gateway: AnnouncedGateway;
  /** By which HTTP clients know the gateway, beside its name in the trust domain. */
  readonly gatewayNames: readonly string[];
  /** What HTTP clients may ask for, by name. */
  readonly gatewayCalls: ReadonlyMap<string, GatewayCall>;
  readonly statements: StatementSigner;
  readonly audit: AuditReader;
  readonly checkpoints: CheckpointReader;
  readonly random: RandomSource;
  /** What a node may say that it has, where its join token says nothing. */
  readonly nodeMost: NodeMost;
  /** Known once the listeners are open. */
  readonly addresses: { readonly main: string; readonly attestation: string };
  readonly insecureDev: boolean;
  readonly version: string;
  readonly startedMs: number;
}
