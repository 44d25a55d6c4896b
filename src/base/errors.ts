/**
 * The one error class. `safeMessage` may reach a tenant; `cause` goes to the operator's log only and never
 * crosses a socket. Must never: carry a secret, a path of the host or another tenant's name in `safeMessage`.
 */

export const ERROR_CODES = [
  'TASK_FAILED', 'WORKER_DIED', 'OUT_OF_MEMORY', 'TIMEOUT', 'CANCELLED', 'DENIED', 'QUOTA_EXCEEDED', 'OBJECT_LOST',
  'ACTOR_DIED', 'ACTOR_UNAVAILABLE', 'INVALID_ARGUMENT', 'UNAVAILABLE', 'RESOURCE_EXHAUSTED', 'UNAUTHENTICATED', 'PREEMPTED', 'LAYER_MISSING', 'ENVIRONMENT_FAILED', 'INTERNAL',
] as const;
export type ErrorCode = (typeof ERROR_CODES)[number];

const KNOWN_CODES: ReadonlySet<string> = new Set(ERROR_CODES);

export function isErrorCode(text: string): text is ErrorCode {
  return KNOWN_CODES.has(text);
}

export class BulkheadError extends Error {
  readonly code: ErrorCode;
  readonly safeMessage: string;
  /** Stack of the tenant's own code where it threw, when the error came from a task or actor. */
  readonly remoteStack: string | undefined;

  constructor(code: ErrorCode, safeMessage: string, options: { cause?: unknown; remoteStack?: string } = {}) {
    super(safeMessage, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'BulkheadError';
    this.code = code;
    this.safeMessage = safeMessage;
    this.remoteStack = options.remoteStack;
  }
}

/** What a caller outside the trust boundary may see of any thrown value: never the message of a foreign error. */
export function toSafeError(thrown: unknown): BulkheadError {
  if (thrown instanceof BulkheadError) return thrown;
  return new BulkheadError('INTERNAL', 'internal error; the operator finds the cause in the log', { cause: thrown });
}

/** States a thing that must hold whatever a tenant sends; its failure is our defect, so it stops the process. */
export function invariant(condition: unknown, what: string): asserts condition {
  if (!condition) throw new BulkheadError('INTERNAL', `invariant broken: ${what}`);
}
