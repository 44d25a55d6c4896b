/**
 * What is no longer accepted: all SVIDs and sessions of a SPIFFE ID issued before a moment, or one serial number. Transitions: 1. none →
 * revoked (revoke; again moves the moment forward); 2. revoked → none (every certificate it could concern has expired). The version rises
 * by one with each change, so that "in force" is a number.
 */
import { parseSpiffeId, quote } from '../../base/ids.ts';
import { MAX_JOB_TEXT_CHARS, MAX_REVOCATIONS } from '../../base/limits.ts';
import { boundedText, full, keyPart, refuse, type Effect, type Table } from './table.ts';

export interface RevocationRow {
  /** Exactly one of the two is not ''. */
  readonly spiffeId: string;
  readonly serial: string;
  readonly issuedBeforeMs: number;
  readonly reason: string;
  readonly version: number;
}

export type RevocationEvent =
  | { readonly type: 'revoke'; readonly spiffeIds: readonly string[]; readonly serial: string; readonly reason: string; readonly by: string; readonly trustDomain: string; readonly tenant: string }
  | { readonly type: 'tick'; readonly longestTtlMs: number };

/** 16-byte serials of ours, and any other that X.509 allows. */
const SERIAL = /^(?:[0-9a-f]{2}){1,20}$/;
const PRUNED_PER_TICK = 50;

export class Revocations implements Table<RevocationEvent> {
  readonly prefix = 'revocations/';
  readonly #rows = new Map<string, RevocationRow>();
  #version = 0;

  get version(): number {
    return this.#version;
  }

  all(): RevocationRow[] {
    return [...this.#rows.values()];
  }

  /** Whether a certificate or credential is refused; `issuedMs` is its notBefore. */
  covers(spiffeId: string, serial: string, issuedMs: number): boolean {
    const byId = this.#rows.get(`${this.prefix}id/${keyPart(spiffeId)}`);
    return (byId !== undefined && issuedMs < byId.issuedBeforeMs) || this.#rows.has(`${this.prefix}serial/${serial}`);
  }

  step(event: RevocationEvent, nowMs: number, out: Effect[]): void {
    if (event.type === 'tick') {
      const old = [...this.#rows].filter(([, r]) => r.issuedBeforeMs + event.longestTtlMs < nowMs).slice(0, PRUNED_PER_TICK);
      for (const [key] of old) out.push({ type: 'delete', key });
      if (old.length > 0) this.#bump(this.#version + 1, out);
      return;
    }
    if (event.spiffeIds.length > 0 === (event.serial !== '')) return refuse('give either a SPIFFE ID or a serial number to revoke');
    if (event.serial !== '' && !SERIAL.test(event.serial)) return refuse(`serial number ${quote(event.serial)} is not lower-case hex of 1 to 20 bytes`);
    const reason = boundedText('the reason', event.reason, MAX_JOB_TEXT_CHARS);
    if (this.#rows.size + Math.max(1, event.spiffeIds.length) > MAX_REVOCATIONS) throw full('revocations', MAX_REVOCATIONS, 'rotate the authority instead, which ends every certificate under it');
    const version = this.#version + 1;
    const write = (key: string, spiffeId: string, serial: string): void => {
      out.push({ type: 'put', key, row: { spiffeId, serial, issuedBeforeMs: nowMs, reason, version } satisfies RevocationRow });
      out.push({ type: 'record', tenant: event.tenant, event: 'identity.revoked', principal: event.by, kind: 'identity', resource: spiffeId || serial, detail: reason });
    };
    for (const text of event.spiffeIds) {
      const { id, trustDomain } = parseSpiffeId(text);
      if (trustDomain !== event.trustDomain) return refuse(`SPIFFE ID ${quote(id)} is of another trust domain`);
      write(`${this.prefix}id/${keyPart(id)}`, id, '');
    }
    if (event.serial !== '') write(`${this.prefix}serial/${event.serial}`, '', event.serial);
    this.#bump(version, out);
  }

  #bump(version: number, out: Effect[]): void {
    out.push({ type: 'put', key: `${this.prefix}version`, row: { version } }, { type: 'push', part: 'revocations' });
  }

  absorb(key: string, row: unknown): void {
    if (key === `${this.prefix}version`) this.#version = (row as { version: number } | undefined)?.version ?? 0;
    else if (row === undefined) this.#rows.delete(key);
    else this.#rows.set(key, row as RevocationRow);
  }
}
