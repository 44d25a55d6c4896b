/** Errors as they come over a channel. ECMAScript only. */
import { BulkheadError, isErrorCode } from '../base/errors.ts';

/** Bounded and typed; an unknown code is INTERNAL. */
export function remoteError(code: string, message: string, stack = ''): BulkheadError {
  return new BulkheadError(isErrorCode(code) ? code : 'INTERNAL', message, stack === '' ? {} : { remoteStack: stack });
}
