/**
 * A process of the cluster as its starter sees it: one ready line of JSON out, then nothing until SIGTERM or SIGINT; exit codes 0 stopped, 1 failed, others as
 * given. Must never: go on after an error that nobody caught.
 */
import { toSafeError, type ErrorCode } from '../base/errors.ts';

export interface Life {
  /** Logs why it ends. */
  readonly fatal: (error: unknown, message: string) => void;
  readonly exitCodes: Partial<Record<ErrorCode, number>>;
  /** `fail` ends the process with this error. */
  readonly start: (fail: (error: unknown) => never) => Promise<{ readonly ready: Readonly<Record<string, unknown>>; stop(): Promise<void> }>;
}

export async function live({ fatal, exitCodes, start }: Life): Promise<void> {
  const fail = (error: unknown): never => {
    const { code, safeMessage } = toSafeError(error);
    fatal(error, safeMessage);
    process.exit(exitCodes[code] ?? 1);
  };
  process.on('uncaughtException', fail);
  process.on('unhandledRejection', fail);
  const stopped = new Promise<void>((resolve) => {
    process.once('SIGTERM', () => resolve());
    process.once('SIGINT', () => resolve());
  });
  try {
    const { ready, stop } = await start(fail);
    process.stdout.write(`${JSON.stringify({ ready: true, ...ready })}\n`);
    await stopped;
    await stop();
    process.exit(0);
  } catch (error) {
    fail(error);
  }
}
