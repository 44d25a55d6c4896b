/** How many certificates the authority has signed, and the audit record of each, which is on disk before the certificate leaves. */
import type { Effect, Table } from './table.ts';

export interface IssuedEvent {
  readonly type: 'issued';
  readonly kind: 'svid' | 'server' | 'intermediate' | 'root';
  readonly spiffeId: string;
  /** Log that the record goes to: the tenant of the SPIFFE ID, or '' for the cluster's own. */
  readonly tenant: string;
  readonly serial: string;
  readonly notAfterMs: number;
  readonly publicKeySha256: string;
}

export class Issuance implements Table<IssuedEvent> {
  readonly prefix = 'issuance/';
  #svids = 0;

  get svids(): number {
    return this.#svids;
  }

  step(event: IssuedEvent, _nowMs: number, out: Effect[]): void {
    if (event.kind === 'svid') out.push({ type: 'put', key: `${this.prefix}svids`, row: { count: this.#svids + 1 } });
    out.push({
      type: 'record', tenant: event.tenant, event: event.kind === 'svid' ? 'svid.issued' : event.kind === 'server' ? 'server-certificate.issued' : `authority.${event.kind}-issued`, principal: event.spiffeId,
      kind: event.kind === 'svid' || event.kind === 'server' ? 'identity' : 'pki', resource: event.serial, detail: `until ${new Date(event.notAfterMs).toISOString()} key sha256:${event.publicKeySha256}`,
    });
  }

  absorb(_key: string, row: unknown): void {
    this.#svids = (row as { count: number } | undefined)?.count ?? 0;
  }
}
