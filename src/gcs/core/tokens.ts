/**
 * Bearer tokens of users and services. Only the SHA-256 of a token is ever here or in the store. Transitions: 1. none → in force (create); 2. in force → none (revoke by its
 * own principal; or tick: its time is over, or its tenant is gone). Unknown, revoked and expired are one error.
 */
import { BulkheadError } from '../../base/errors.ts';
import { parseSha256Hex } from '../../base/ids.ts';
import { DEFAULT_TOKEN_TTL_MS, MAX_TOKEN_TTL_MS, MAX_TOKENS_PER_PRINCIPAL, MAX_TOKENS_PER_TENANT } from '../../base/limits.ts';
import { boundedText, full, refuse, unknown, type Effect, type Table } from './table.ts';

export interface TokenRow {
  /** 16 hex digits; names the token in lists and records. */
  readonly id: string;
  readonly digest: string;
  readonly name: string;
  readonly tenant: string;
  readonly spiffeId: string;
  readonly createdMs: number;
  readonly expiresMs: number;
}

export type TokenEvent =
  | { readonly type: 'create'; readonly id: string; readonly digest: string; readonly name: string; readonly tenant: string; readonly by: string; readonly ttlMs: number }
  | { readonly type: 'revoke'; readonly id: string; readonly by: string }
  | { readonly type: 'tenantDeleted'; readonly tenant: string }
  | { readonly type: 'tick' };

const MAX_NAME_CHARS = 64;
const DROPPED_PER_STEP = 50;

export class Tokens implements Table<TokenEvent> {
  readonly prefix = 'tokens/';
  readonly #byId = new Map<string, TokenRow>();
  readonly #byDigest = new Map<string, TokenRow>();

  /** Undefined for every token that is not in force. */
  find(digest: string, nowMs: number): TokenRow | undefined {
    const row = this.#byDigest.get(digest);
    return row === undefined || nowMs >= row.expiresMs ? undefined : row;
  }

  /** Newest first. */
  of(spiffeId: string, nowMs: number): TokenRow[] {
    return [...this.#byId.values()].filter((r) => r.spiffeId === spiffeId && nowMs < r.expiresMs).sort((a, b) => b.createdMs - a.createdMs || (a.id < b.id ? -1 : 1));
  }

  ofTenant(tenant: string): TokenRow[] {
    return [...this.#byId.values()].filter((r) => r.tenant === tenant);
  }

  step(event: TokenEvent, nowMs: number, out: Effect[]): void {
    switch (event.type) {
      case 'create': {
        const digest = parseSha256Hex(event.digest);
        const name = boundedText('the name of a token', event.name, MAX_NAME_CHARS);
        if (!Number.isSafeInteger(event.ttlMs) || event.ttlMs < 0 || event.ttlMs > MAX_TOKEN_TTL_MS) return refuse(`a token lasts for at most ${MAX_TOKEN_TTL_MS / 3_600_000} hours`);
        if (this.#byId.has(event.id) || this.#byDigest.has(digest)) return refuse('this token exists already');
        if (this.of(event.by, nowMs).length >= MAX_TOKENS_PER_PRINCIPAL) throw full('tokens of yours', MAX_TOKENS_PER_PRINCIPAL, 'revoke some with: bulkhead token revoke ID');
        if (this.ofTenant(event.tenant).length >= MAX_TOKENS_PER_TENANT) throw full('tokens of this tenant', MAX_TOKENS_PER_TENANT, 'revoke some, or let them end');
        const row: TokenRow = { id: event.id, digest, name, tenant: event.tenant, spiffeId: event.by, createdMs: nowMs, expiresMs: nowMs + (event.ttlMs || DEFAULT_TOKEN_TTL_MS) };
        out.push({ type: 'put', key: this.prefix + row.id, row });
        out.push({ type: 'record', tenant: row.tenant, event: 'token.created', principal: row.spiffeId, kind: 'token', resource: row.id, detail: `until ${new Date(row.expiresMs).toISOString()}` });
        return;
      }
      case 'revoke': {
        const row = this.#byId.get(event.id);
        if (row === undefined || row.spiffeId !== event.by) throw unknown('this token');
        return this.#drop(row, event.by, out);
      }
      case 'tenantDeleted':
        for (const row of this.ofTenant(event.tenant).slice(0, DROPPED_PER_STEP)) out.push({ type: 'delete', key: this.prefix + row.id });
        return;
      case 'tick':
        for (const row of [...this.#byId.values()].filter((r) => nowMs >= r.expiresMs).slice(0, DROPPED_PER_STEP)) out.push({ type: 'delete', key: this.prefix + row.id });
    }
  }

  #drop(row: TokenRow, by: string, out: Effect[]): void {
    out.push({ type: 'delete', key: this.prefix + row.id });
    out.push({ type: 'record', tenant: row.tenant, event: 'token.revoked', principal: by, kind: 'token', resource: row.id, detail: '' });
  }

  absorb(key: string, row: unknown): void {
    const id = key.slice(this.prefix.length);
    const before = this.#byId.get(id);
    if (before !== undefined) this.#byDigest.delete(before.digest);
    this.#byId.delete(id);
    if (row === undefined) return;
    const now = row as TokenRow;
    this.#byId.set(id, now);
    this.#byDigest.set(now.digest, now);
  }
}

/** One text for every token that is not in force, and for none. */
export function notInForce(): BulkheadError {
  return new BulkheadError('UNAUTHENTICATED', 'the bearer token is missing or not in force; make one with: bulkhead token create --out FILE');
}
