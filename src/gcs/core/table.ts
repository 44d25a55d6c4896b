/**
 * What the head's tables have in common. A table decides by `step` (which changes no row of it) and changes only by `absorb`, with rows
 * that are already on disk; loading after a restart is the same `absorb`. So memory never runs ahead of the store, and a refused or
 * failed write leaves no trace. Must never: answer from something that a crash could take back.
 */
import { BulkheadError } from '../../base/errors.ts';
import type { ResourceKind } from '../../base/decision.ts';
import type { Machine } from '../../base/machine.ts';

/** Parts of what raylets are told; a part is pushed whole when it changed. */
export const PARTS = ['policy', 'revocations', 'nodes', 'tenants', 'stoppedJobs', 'trustBundle'] as const;
export type Part = (typeof PARTS)[number];

export type Effect =
  | { readonly type: 'put'; readonly key: string; readonly row: object }
  | { readonly type: 'delete'; readonly key: string }
  /** A fact for the audit log of `tenant` ('': the cluster's own), on disk before the rows are. */
  | { readonly type: 'record'; readonly tenant: string; readonly event: string; readonly principal: string; readonly kind: ResourceKind; readonly resource: string; readonly detail: string }
  | { readonly type: 'push'; readonly part: Part };

export interface Table<Event> extends Machine<Event, Effect> {
  /** Of its keys in the store; ends in '/'. */
  readonly prefix: string;
  /** Throws BulkheadError when the event is refused; then nothing was decided. */
  step(event: Event, nowMs: number, out: Effect[]): void;
  /** A row as it now is in the store; undefined: it is gone. */
  absorb(key: string, row: unknown): void;
}

export function refuse(why: string): never {
  throw new BulkheadError('INVALID_ARGUMENT', why);
}

/** Not-found and denied look the same to a tenant, so there is one error for both. */
export function unknown(what: string): BulkheadError {
  return new BulkheadError('DENIED', `${what} does not exist, or you may not see it`);
}

export function full(what: string, limit: number, remedy: string): BulkheadError {
  return new BulkheadError('RESOURCE_EXHAUSTED', `there are already ${limit} ${what}: ${remedy}`);
}

/** Text of a caller inside a key: everything but letters, digits and `_.-` becomes `%hh`, so that '/' only ever separates. */
export function keyPart(text: string): string {
  return encodeURIComponent(text.toWellFormed()).replace(/[!'()*~]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
}

/** Printable or not, but bounded: what a caller may store as a free text. */
export function boundedText(what: string, text: string, maxChars: number, minChars = 0): string {
  if (text.length < minChars || text.length > maxChars) refuse(`${what} has ${text.length} characters; ${minChars} to ${maxChars} are allowed`);
  return text;
}
