/**
 * The process behind `bulkhead job submit --no-wait`: opens the job and sends the program, tells its parent the job's id, and keeps the driver's connection until the program's end.
 * Must never: be started with anything but what its parent checked, or write where nobody reads: the job's log has what it prints.
 */
import { toSafeError } from '../base/errors.ts';
import { submitJob, type RunOptions } from './commands/run.ts';
import { UsageError } from './terminal.ts';

export interface BackgroundOrder {
  readonly command: readonly string[];
  readonly options: RunOptions;
}

/** What the parent waits for. `usage`: whoever typed it can mend it. */
export type BackgroundAnswer = { readonly jobId: string } | { readonly usage: string } | { readonly code: string; readonly message: string };

function answer(value: BackgroundAnswer): void {
  // A parent that has gone hears nothing; the job goes on without it.
  if (process.connected) process.send?.(value, () => process.connected && process.disconnect());
}

process.once('message', (order: BackgroundOrder) => {
  submitJob(order.command, { ...order.options, onSubmitted: (jobId) => answer({ jobId }) }).catch((thrown: unknown) => {
    if (thrown instanceof UsageError) return answer({ usage: thrown.message });
    const { code, safeMessage } = toSafeError(thrown);
    answer({ code, message: safeMessage });
  });
});
