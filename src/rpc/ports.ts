/**
 * What rpc needs from pki, authz and audit, as small interfaces: those areas and rpc never import each other; composition
 * roots (`main.ts`) join them. A server cannot be built without all of these.
 */
import type { AppendDurably } from '../base/audit-record.ts';
import type { Action, PolicyDecisionPoint, ResourceKind } from '../base/decision.ts';
import type { Principal, PrincipalKind } from '../base/principal.ts';

/** This process's own identity; `current()` changes when it is renewed and never throws once loaded. */
export interface OwnIdentity {
  current(): { readonly privateKeyPem: string; readonly certificateChainPem: string; readonly trustBundlePem: string };
  /** Calls back after each renewal or bundle change; returns the way to stop. */
  onChange(listener: () => void): () => void;
}

export interface VerifiedPeer {
  readonly principal: Principal;
  readonly serial: string;
  /** Of the SVID, ms: revocation by "issued before" compares with it. */
  readonly notBeforeMs: number;
  /** The connection must end then at the latest. */
  readonly notAfterMs: number;
}

export interface PeerVerifier {
  /** Leaf first, DER, as the TLS handshake showed them. Throws BulkheadError UNAUTHENTICATED. */
  verify(chainDer: readonly Uint8Array[]): VerifiedPeer;
  isRevoked(peer: VerifiedPeer): boolean;
  /** Calls back when revocations or bundles changed: open connections are checked again. */
  onChange(listener: () => void): () => void;
}

/** One row of policies/methods.yaml. */
export interface MethodRow {
  /** `bulkhead.v1.Service/Method` or `channel/<call>`. */
  readonly method: string;
  /** With `cases`: of the first case, never used. */
  readonly action: Action;
  readonly resource: ResourceKind;
  /** Where a request field chooses what is asked: its name, and what each of its values means. Other values are refused. */
  readonly cases?: { readonly field: string; readonly targets: ReadonlyMap<string, { readonly action: Action; readonly resource: ResourceKind }> } | undefined;
  readonly callers: readonly PrincipalKind[];
  /** Where the resource's tenant is found: the caller's own, a request field's name, or none (cluster-wide). */
  readonly tenant: 'own' | 'none' | { readonly field: string };
  /** Request field that names the resource. */
  readonly name: { readonly field: string } | undefined;
}

export interface ServerSecurity {
  readonly identity: OwnIdentity;
  readonly peers: PeerVerifier;
  readonly decisions: PolicyDecisionPoint;
  readonly audit: AppendDurably;
  /** Row of a method, by full name. A method without one keeps the server from starting. */
  readonly methods: ReadonlyMap<string, MethodRow>;
}
