/**
 * A job that somebody opens for a program and ends by how that ended: its session is refreshed at half of its credential's life. Must never: leave a job open that it opened
 * without having tried to end it.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { toSafeError } from '../base/errors.ts';
import { MAX_JOB_TEXT_CHARS } from '../base/limits.ts';
import { Sessions, type Session } from '../rpc/generated/bulkhead/v1/head_pb.js';
import { client, type Client, type RpcChannel } from '../rpc/rpc.ts';

const OPEN_TIMEOUT_MS = 15_000;
const CLOSE_TIMEOUT_MS = 5_000;
/** A head that restarts is back in a few seconds. */
const CLOSE_ATTEMPTS = 6;
const CLOSE_RETRY_MS = 500;
const REFRESH_RETRY_MS = 5_000;

export interface JobOutcome {
  readonly outcome: 'succeeded' | 'failed' | 'stopped';
  readonly message: string;
}

export class OwnedJob {
  readonly id: string;
  readonly #sessions: Client<typeof Sessions>;
  readonly #sessionId: string;
  #timer: NodeJS.Timeout | undefined;

  private constructor(sessions: Client<typeof Sessions>, opened: Session) {
    this.#sessions = sessions;
    this.id = opened.jobId;
    this.#sessionId = opened.sessionId;
    this.#plan(Math.max(1_000, (Number(opened.expiresMs) - Date.now()) / 2));
  }

  /** `submission`: of a job that came by HTTP. */
  static async open(head: RpcChannel, jobName: string, project: string, submission?: { readonly id: string; readonly details: string }): Promise<OwnedJob> {
    const sessions = client(Sessions, head);
    return new OwnedJob(sessions, await sessions.open({ jobName, jobId: '', project, ...(submission === undefined ? {} : { submission }) }, { timeoutMs: OPEN_TIMEOUT_MS }));
  }

  #plan(afterMs: number): void {
    this.#timer = setTimeout(() => {
      this.#sessions.refresh({ jobId: this.id, sessionId: this.#sessionId }, { timeoutMs: OPEN_TIMEOUT_MS }).then(
        ({ expiresMs }) => this.#plan(Math.max(1_000, (Number(expiresMs) - Date.now()) / 2)),
        (thrown: unknown) => {
          // A job that was stopped, or an identity that was revoked: the program's own calls fail and say so.
          const { code } = toSafeError(thrown);
          if (code !== 'DENIED' && code !== 'UNAUTHENTICATED') this.#plan(REFRESH_RETRY_MS);
        },
      );
    }, afterMs);
    this.#timer.unref();
  }

  /** Says how it ended. Undefined, or the code of what kept the head from hearing it. */
  async end({ outcome, message }: JobOutcome): Promise<string | undefined> {
    clearTimeout(this.#timer);
    for (let attempt = 1; ; attempt++) {
      try {
        await this.#sessions.close({ jobId: this.id, sessionId: this.#sessionId, outcome, message: message.slice(0, MAX_JOB_TEXT_CHARS) }, { timeoutMs: CLOSE_TIMEOUT_MS });
        return undefined;
      } catch (thrown) {
        const { code } = toSafeError(thrown);
        // DENIED: the job was stopped, or ended, before; that is its outcome.
        if (code === 'DENIED') return undefined;
        if (code !== 'UNAVAILABLE' || attempt === CLOSE_ATTEMPTS) return code;
        await sleep(CLOSE_RETRY_MS);
      }
    }
  }
}
