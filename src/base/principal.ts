/** Who asks. Made only from a verified SVID (src/pki) or a verified session credential; never from a request field. */
import { parseSpiffeId, type SpiffeId, type TenantName } from './ids.ts';

export type PrincipalKind = 'user' | 'service' | 'job' | 'node' | 'system';

export interface Principal {
  readonly spiffeId: SpiffeId;
  readonly kind: PrincipalKind;
  /** The tenant of a user, service or job; undefined for nodes and system components (the cluster administrator is `system/admin`). */
  readonly tenant: TenantName | undefined;
  /** Last segment of the SPIFFE ID. */
  readonly name: string;
  /** For a job: the user or service of the same tenant that submitted it; a job has the roles of its submitter and no more. */
  readonly submitter: { readonly kind: 'user' | 'service'; readonly name: string } | undefined;
}

export function principalFromSpiffeId(text: string, submitter?: Principal['submitter']): Principal {
  const { id, path } = parseSpiffeId(text);
  if (path.kind === 'node') return { spiffeId: id, kind: 'node', tenant: undefined, name: path.node, submitter: undefined };
  if (path.kind === 'system') return { spiffeId: id, kind: 'system', tenant: undefined, name: path.component, submitter: undefined };
  return { spiffeId: id, kind: path.kind, tenant: path.tenant, name: path.name, submitter: path.kind === 'job' ? submitter : undefined };
}
