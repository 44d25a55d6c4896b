/**
 * The one table between error codes and gRPC status. Only `code` and `safeMessage` cross the socket; a foreign error becomes
 * INTERNAL with a generic text. Must never: let "denied" and "not found" differ, whatever text the handler gave.
 */
import * as grpc from '@grpc/grpc-js';
import { BulkheadError, isErrorCode, toSafeError, type ErrorCode } from '../base/errors.ts';
import { MAX_STATUS_TEXT_CHARS } from '../base/limits.ts';

/** Trailer that carries our own code: gRPC's seventeen are fewer and mean less. */
export const CODE_TRAILER = 'bulkhead-code';

/** Not found and denied read the same, so that nobody learns what exists behind the wall. */
export const DENIED_TEXT = "not found, or not permitted; check the name, and with 'bulkhead whoami' who you are";

const STATUS_OF_CODE: Readonly<Record<ErrorCode, grpc.status>> = {
  TASK_FAILED: grpc.status.ABORTED,
  WORKER_DIED: grpc.status.ABORTED,
  OUT_OF_MEMORY: grpc.status.RESOURCE_EXHAUSTED,
  TIMEOUT: grpc.status.DEADLINE_EXCEEDED,
  CANCELLED: grpc.status.CANCELLED,
  DENIED: grpc.status.PERMISSION_DENIED,
  QUOTA_EXCEEDED: grpc.status.RESOURCE_EXHAUSTED,
  PREEMPTED: grpc.status.ABORTED,
  OBJECT_LOST: grpc.status.DATA_LOSS,
  ACTOR_DIED: grpc.status.ABORTED,
  ACTOR_UNAVAILABLE: grpc.status.UNAVAILABLE,
  INVALID_ARGUMENT: grpc.status.INVALID_ARGUMENT,
  UNAVAILABLE: grpc.status.UNAVAILABLE,
  RESOURCE_EXHAUSTED: grpc.status.RESOURCE_EXHAUSTED,
  UNAUTHENTICATED: grpc.status.UNAUTHENTICATED,
  LAYER_MISSING: grpc.status.FAILED_PRECONDITION,
  ENVIRONMENT_FAILED: grpc.status.FAILED_PRECONDITION,
  INTERNAL: grpc.status.INTERNAL,
};

/** For answers without our trailer: from grpc-js itself, or from a peer that is not ours. */
const CODE_OF_STATUS: ReadonlyMap<grpc.status, ErrorCode> = new Map<grpc.status, ErrorCode>([
  [grpc.status.CANCELLED, 'CANCELLED'],
  [grpc.status.INVALID_ARGUMENT, 'INVALID_ARGUMENT'],
  [grpc.status.DEADLINE_EXCEEDED, 'TIMEOUT'],
  [grpc.status.NOT_FOUND, 'DENIED'],
  [grpc.status.PERMISSION_DENIED, 'DENIED'],
  [grpc.status.RESOURCE_EXHAUSTED, 'RESOURCE_EXHAUSTED'],
  [grpc.status.FAILED_PRECONDITION, 'LAYER_MISSING'],
  [grpc.status.ABORTED, 'UNAVAILABLE'],
  [grpc.status.UNIMPLEMENTED, 'INVALID_ARGUMENT'],
  [grpc.status.UNAVAILABLE, 'UNAVAILABLE'],
  [grpc.status.DATA_LOSS, 'OBJECT_LOST'],
  [grpc.status.UNAUTHENTICATED, 'UNAUTHENTICATED'],
]);

/** The error as a peer may see it. */
export function asSeenByPeer(thrown: unknown): BulkheadError {
  const error = toSafeError(thrown);
  return error.code === 'DENIED' ? new BulkheadError('DENIED', DENIED_TEXT, { cause: error }) : error;
}

/** What goes into the trailers. Lone surrogates would make grpc-js throw while it encodes the text. */
export function statusOf(thrown: unknown): { code: grpc.status; details: string; metadata: grpc.Metadata } {
  const error = asSeenByPeer(thrown);
  const metadata = new grpc.Metadata();
  metadata.set(CODE_TRAILER, error.code);
  return { code: STATUS_OF_CODE[error.code], details: error.safeMessage.slice(0, MAX_STATUS_TEXT_CHARS).toWellFormed(), metadata };
}

/** The other way: an answer's status as an error, or undefined for OK. */
export function errorOf(status: { code: grpc.status; details: string; metadata?: grpc.Metadata }): BulkheadError | undefined {
  if (status.code === grpc.status.OK) return undefined;
  const named = status.metadata?.get(CODE_TRAILER)[0];
  const code = typeof named === 'string' && isErrorCode(named) ? named : (CODE_OF_STATUS.get(status.code) ?? 'INTERNAL');
  const text = status.code === grpc.status.UNIMPLEMENTED ? 'the server does not know this method; compare the versions of both sides' : status.details.slice(0, MAX_STATUS_TEXT_CHARS);
  return new BulkheadError(code, text === '' ? code : text);
}
