/**
 * What a job prints, from every node it runs on: each piece once, however often it is read. The driver's own lines stay as they are, those of its calls have their name before them. Must
 * never: let one node that is away hide what the others have.
 */
import { toSafeError } from '../base/errors.ts';
import { Inspection } from '../rpc/generated/bulkhead/v1/raylet_pb.js';
import type { Client } from '../rpc/rpc.ts';
import { DRIVER_NAME } from './python-program.ts';

export interface LogSource {
  readonly nodeId: string;
  to(service: typeof Inspection): Client<typeof Inspection>;
}

export interface LogPiece {
  readonly timeMs: number;
  readonly stream: 'stdout' | 'stderr';
  readonly text: string;
}

export class JobLog {
  readonly #tenant: string;
  readonly #jobId: string;
  /** Pieces that were taken, by node: reading starts at the beginning each time. */
  readonly #taken = new Map<string, number>();

  constructor(tenant: string, jobId: string) {
    this.#tenant = tenant;
    this.#jobId = jobId;
  }

  /** Calls `take` for what is new; with `follow` until `signal`. Throws when no node answers, or one refuses. */
  async read(sources: readonly LogSource[], follow: boolean, signal: AbortSignal, take: (piece: LogPiece) => void | Promise<void>): Promise<void> {
    let answered = 0;
    let away: unknown;
    await Promise.all(sources.map(async (source) => {
      let seen = 0;
      try {
        for await (const chunk of source.to(Inspection).readLog({ tenant: this.#tenant, kind: 'job', id: this.#jobId, follow }, { signal })) {
          if (++seen <= (this.#taken.get(source.nodeId) ?? 0)) continue;
          this.#taken.set(source.nodeId, seen);
          const { timeMs = 0, name = '', stream } = JSON.parse(chunk.source) as { timeMs?: number; name?: string; stream?: string };
          const text = new TextDecoder().decode(chunk.text);
          await take({ timeMs, stream: stream === 'stderr' ? 'stderr' : 'stdout', text: name === DRIVER_NAME ? text : text.replace(/^(?=[^])/gm, (_, at: number) => (at === text.length ? '' : `(${name}) `)) });
        }
        answered++;
      } catch (thrown) {
        if (signal.aborted) return;
        const { code } = toSafeError(thrown);
        if (code !== 'UNAVAILABLE' && code !== 'TIMEOUT') throw thrown;
        away = thrown;
      }
    }));
    if (answered === 0 && away !== undefined && !signal.aborted) throw away;
  }
}
