/** Errors as they come over a channel. ECMAScript only. */
import { BulkheadError, isErrorCode } from '../base/errors.ts';

/** Behind the stack of a failed Python call: the exception itself as a pickle, which is nobody's to see but Python's. */
const CAUSE_MARK = '\n#bulkhead:cause:';

/** Bounded and typed; an unknown code is INTERNAL. */
export function remoteError(code: string, message: string, stack = ''): BulkheadError {
  const at = stack.indexOf(CAUSE_MARK);
  const shown = at < 0 ? stack : stack.slice(0, at);
  return new BulkheadError(isErrorCode(code) ? code : 'INTERNAL', message, shown === '' ? {} : { remoteStack: shown });
}
