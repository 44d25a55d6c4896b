/** Who asks. Made only from a verified SVID (src/pki) or a verified session credential; never from a request field. */
import type { SpiffeId, TenantName } from './ids.ts';

export type PrincipalKind = 'user' | 'service' | 'job' | 'node' | 'system';

export interface Principal {
  readonly spiffeId: SpiffeId;
  readonly kind: PrincipalKind;
  /** The tenant of a user, service or job; undefined for nodes and system components (cluster administrators are `system`). */
  readonly tenant: TenantName | undefined;
  /** Last segment of the SPIFFE ID. */
  readonly name: string;
}
