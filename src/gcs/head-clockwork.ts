/** The head's timers: they only ask the tables what is due. Must never: keep the process alive, or let two ticks of a kind overlap. */
import { HEARTBEAT_MS, NODE_DEAD_AFTER_MS } from '../base/limits.ts';
import type { QuotaShares } from './core/quota-shares.ts';
import type { HeadState } from './head-state.ts';

const ROWS_EVERY_MS = 1_000;
const REVOCATIONS_EVERY_MS = 60_000;
const AUTHORITY_EVERY_MS = 3_600_000;
const NAMES_PER_COMMIT = 100;

export interface ClockworkOptions {
  readonly head: HeadState;
  readonly shares: QuotaShares;
  /** Longest life of a certificate: a revocation older than that concerns none. */
  readonly longestTtlMs: number;
  readonly rotateIfDue: () => Promise<unknown>;
  readonly onProblem: (what: string, error: unknown) => void;
}

export class HeadClockwork implements Disposable {
  readonly #timers: NodeJS.Timeout[] = [];
  readonly #options: ClockworkOptions;
  readonly #startedMs: number;

  constructor(options: ClockworkOptions) {
    this.#options = options;
    const { head, shares, longestTtlMs, rotateIfDue } = options;
    this.#startedMs = head.steady.nowMs();
    let lookedMs = this.#startedMs;
    let listeningMs = lookedMs;
    this.#every(HEARTBEAT_MS, 'nodes', async () => {
      const nowMs = head.steady.nowMs();
      // This process stood still: what nodes said meanwhile waits in its sockets, and their silence was its own.
      if (nowMs - lookedMs > NODE_DEAD_AFTER_MS / 2) listeningMs = nowMs + NODE_DEAD_AFTER_MS;
      lookedMs = nowMs;
      if (nowMs < listeningMs) return;
      head.observe({ type: 'tick' });
      for (const { id, state } of head.nodes.all()) if (state !== 'alive') shares.silent(id);
      shares.tick(nowMs);
    });
    this.#every(ROWS_EVERY_MS, 'rows', async () => {
      await head.commit((nowMs, out) => {
        head.jobs.step({ type: 'tick' }, nowMs, out);
        head.joinTokens.step({ type: 'tick' }, nowMs, out);
        head.tokens.step({ type: 'tick' }, nowMs, out);
      });
      await this.#releaseNames();
    });
    // Who has not come back by then is dead to the others too.
    const told = setTimeout(() => head.announce('nodes'), 2 * NODE_DEAD_AFTER_MS);
    told.unref();
    this.#timers.push(told);
    this.#every(REVOCATIONS_EVERY_MS, 'revocations', () => head.commit((nowMs, out) => head.revocations.step({ type: 'tick', longestTtlMs }, nowMs, out)));
    this.#every(AUTHORITY_EVERY_MS, 'authority', rotateIfDue);
  }

  #every(intervalMs: number, what: string, tick: () => Promise<unknown>): void {
    let running = false;
    const timer = setInterval(() => {
      if (running) return;
      running = true;
      tick().catch((error: unknown) => this.#options.onProblem(what, error)).finally(() => {
        running = false;
      });
    }, intervalMs);
    timer.unref();
    this.#timers.push(timer);
  }

  /** Actors of a dead node are dead, so their names are free. Not right after a start of the head, when no node has had time to come back. */
  async #releaseNames(): Promise<void> {
    const { head } = this.#options;
    if (head.steady.nowMs() - this.#startedMs < 2 * NODE_DEAD_AFTER_MS) return;
    for (const node of head.nodes.all()) {
      while (head.nodes.get(node.id)?.state === 'dead' && head.actorNames.ofNode(node.id).length > 0) {
        await head.commit((nowMs, out) => head.actorNames.step({ type: 'nodeGone', nodeId: node.id, limit: NAMES_PER_COMMIT }, nowMs, out));
      }
    }
  }

  [Symbol.dispose](): void {
    for (const timer of this.#timers) clearInterval(timer);
  }
}
