/**
 * Join tokens of nodes. Only the SHA-256 of a token is ever here or in the store. Transitions: 1. none → open (create); 2. open → none
 * (redeem: once; or tick: its time is over). Unknown, used and expired are one error.
 */
import { BulkheadError } from '../../base/errors.ts';
import { parseNodeId, parseSha256Hex, type NodeId } from '../../base/ids.ts';
import { describeLabels, type Labels } from '../../base/labels.ts';
import { JOIN_TOKEN_TTL_MS, MAX_JOIN_TOKENS } from '../../base/limits.ts';
import { describeResources, type ResourceVector } from '../../base/resources.ts';
import { full, type Effect, type Table } from './table.ts';

export interface JoinTokenRow {
  readonly digest: string;
  readonly nodeId: NodeId;
  readonly expiresMs: number;
  readonly by: string;
  /** What the node may say that it has; amounts of 0: the head's own limits. */
  readonly most?: ResourceVector;
  /** Labels that the node may say it has; left out: the head's own limits. */
  readonly labels?: Labels;
}

export type JoinTokenEvent =
  | { readonly type: 'create'; readonly digest: string; readonly nodeId: string; readonly by: string; readonly most?: ResourceVector | undefined; readonly labels?: Labels | undefined }
  | { readonly type: 'redeem'; readonly digest: string }
  | { readonly type: 'tick' };

const DROPPED_PER_TICK = 50;

export class JoinTokens implements Table<JoinTokenEvent> {
  readonly prefix = 'join-tokens/';
  readonly #rows = new Map<string, JoinTokenRow>();

  /** The open token of this digest. Throws UNAUTHENTICATED. */
  open(digest: string, nowMs: number): JoinTokenRow {
    const row = this.#rows.get(digest);
    if (row === undefined || nowMs >= row.expiresMs) throw new BulkheadError('UNAUTHENTICATED', 'this join token is not known, used already, or expired: ask for a new one with `bulkhead pki join-token`');
    return row;
  }

  step(event: JoinTokenEvent, nowMs: number, out: Effect[]): void {
    switch (event.type) {
      case 'create': {
        const digest = parseSha256Hex(event.digest);
        const nodeId = parseNodeId(event.nodeId);
        if (this.#rows.size >= MAX_JOIN_TOKENS) throw full('open join tokens', MAX_JOIN_TOKENS, 'use them or let them expire');
        out.push({ type: 'put', key: this.prefix + digest, row: { digest, nodeId, expiresMs: nowMs + JOIN_TOKEN_TTL_MS, by: event.by, ...(event.most === undefined ? {} : { most: event.most }), ...(event.labels === undefined ? {} : { labels: event.labels }) } satisfies JoinTokenRow });
        out.push({ type: 'record', tenant: '', event: 'join-token.created', principal: event.by, kind: 'pki', resource: nodeId, detail: [event.most === undefined ? '' : `at most ${describeResources(event.most)}`, event.labels === undefined ? '' : `labels ${describeLabels(event.labels)}`].filter((part) => part !== '').join('; ') });
        return;
      }
      case 'redeem': {
        const row = this.open(event.digest, nowMs);
        out.push({ type: 'delete', key: this.prefix + row.digest });
        out.push({ type: 'record', tenant: '', event: 'join-token.used', principal: row.by, kind: 'pki', resource: row.nodeId, detail: '' });
        return;
      }
      case 'tick':
        for (const row of [...this.#rows.values()].filter((r) => nowMs >= r.expiresMs).slice(0, DROPPED_PER_TICK)) out.push({ type: 'delete', key: this.prefix + row.digest });
    }
  }

  absorb(key: string, row: unknown): void {
    const digest = key.slice(this.prefix.length);
    if (row === undefined) this.#rows.delete(digest);
    else this.#rows.set(digest, row as JoinTokenRow);
  }
}
