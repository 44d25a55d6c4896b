/** The head's division of quotas among nodes: what examples say, and, against random orders, losses and restarts of messages, that no amount is given out twice. */
import { describe, expect, it } from 'vitest';
import { divideLine, QuotaShares, type Claim, type ShareUpdate } from '../../src/gcs/core/quota-shares.ts';
import type { LineDemand } from '../../src/base/tenant-quota.ts';
import { seeded } from '../sim/world.ts';

const claim = (of: Partial<Claim>): Claim => ({ granted: 0, use: 0, firm: of.use ?? 0, want: 0, next: 0, blockedMs: 0, ...of });

describe('a line is divided', () => {
  it.each<[string, number, Partial<Claim>[], number[]]>([
    ['all of it to the one node that there is', 10, [{}], [10]],
    ['evenly among those who only may come to need it', 10, [{}, {}], [5, 5]],
    ['not anew while nobody asks', 10, [{ granted: 8, use: 1 }, { granted: 2 }], [8, 2]],
    ['to who wants it, from who does not use it', 4, [{ granted: 4 }, { want: 4, next: 1 }], [0, 4]],
    ['by turns where several want it', 4, [{ want: 4, next: 1 }, { want: 4, next: 1 }], [2, 2]],
    ['in steps that help', 5, [{ want: 4, next: 2 }, { want: 4, next: 2 }], [3, 2]],
    ['to who uses it before who wants it', 4, [{ use: 4, granted: 4 }, { want: 2, next: 1 }], [4, 0]],
    ['to who waited for a second and has less than an equal part, as others end', 4, [{ use: 4, granted: 4, want: 4, next: 1 }, { want: 1, next: 1, blockedMs: 1_000 }], [3, 1]],
    ['to who needs all of it, when that one has waited', 4, [{ use: 1, granted: 2, want: 9, next: 1 }, { want: 4, next: 4, blockedMs: 2_000 }], [0, 4]],
    ['never to who can have no use of it', 4, [{ use: 1, granted: 4 }, { want: 4, next: 5, blockedMs: 9_000 }], [1, 3]],
    ['to owners before borrowers', 2, [{ use: 2, firm: 0, granted: 2 }, { want: 2, next: 1, firm: 2 }], [0, 2]],
    ['by what there is when more is used', 2, [{ use: 3, granted: 3 }, { use: 1, granted: 1 }], [2, 0]],
  ])('%s', (_what, total, claims, wanted) => {
    expect(divideLine(total, claims.map(claim))).toEqual(wanted);
  });

  it('of a mebibyte is no work of a million steps', () => {
    const targets = divideLine(2 ** 40, [claim({ want: 2 ** 39, next: 1 }), claim({ want: 2 ** 39, next: 1 })]);
    expect(targets).toEqual([2 ** 39, 2 ** 39]);
  });
});

/** A node that obeys: it never starts beyond its share, and keeps what it has begun. */
class Node {
  use = 0;
  share = 0;
  applied = 0;
  epoch = 0;
  serial = 0;

  report(want: number): [number, number, { tenant: string; applied: number; lines: LineDemand[] }[]] {
    return [++this.serial, this.epoch, [{ tenant: 'acme', applied: this.applied, lines: [{ line: 'cpus', held: Math.max(this.use, this.share), use: this.use, firm: this.use, want, next: want > 0 ? 1 : 0, blockedMs: 0 }] }]];
  }

  take({ epoch, shares }: ShareUpdate): void {
    if (epoch < this.epoch) return;
    if (epoch > this.epoch) this.applied = 0;
    this.epoch = epoch;
    for (const { serial, lines } of shares) {
      if (serial <= this.applied) continue;
      this.applied = serial;
      this.share = lines.find(({ line }) => line === 'cpus')?.amount ?? 0;
    }
  }
}

describe('shares', () => {
  it.each(Array.from({ length: 20 }, (_, i) => i + 1))('are together no more than the quota, whatever is lost, late or started anew (seed %i)', (seed) => {
    const random = seeded(seed);
    const quota = 1 + Math.floor(random() * 12);
    const nodes = [new Node(), new Node(), new Node()];
    let nowMs = 0;
    let epoch = 1;
    const begin = (before: readonly string[]): QuotaShares => new QuotaShares({ epoch, leaseMs: 1e9, nowMs, before, amountOf: () => quota });
    let head = begin([]);
    const up: (() => void)[] = [];
    const down: (() => void)[] = [];
    for (let step = 0; step < 2_000; step++) {
      nowMs++;
      const i = Math.floor(random() * nodes.length);
      const node = nodes[i] as Node;
      const id = `node-${i}`;
      const dice = random();
      if (dice < 0.3) {
        const report = node.report(Math.floor(random() * 6));
        const to = epoch;
        // A stream of an earlier life of the head is gone with it.
        up.splice(Math.floor(random() * (up.length + 1)), 0, () => void (to === epoch && head.report(id, ...report)));
      } else if (dice < 0.5) up.shift()?.();
      else if (dice < 0.6) {
        const told = head.take(id, nowMs, true);
        down.splice(Math.floor(random() * (down.length + 1)), 0, () => node.take(told));
      } else if (dice < 0.8) down.shift()?.();
      else if (dice < 0.9) node.use = Math.max(0, node.use - 1);
      else if (dice < 0.98) {
        if (node.use < node.share) node.use++;
      } else if (dice < 0.99) {
        epoch++;
        head = begin(['node-0', 'node-1', 'node-2']);
      } else if (random() < 0.5) up.pop();
      else down.pop();
      const sum = nodes.reduce((all, { use, share }) => all + Math.max(use, share), 0);
      expect(sum, `after step ${step}`).toBeLessThanOrEqual(quota);
    }
    // In the end who asks has all of it.
    for (let round = 0; round < 6; round++) for (const [i, node] of nodes.entries()) {
      node.use = Math.min(node.use, i === 0 ? node.share : 0);
      head.report(`node-${i}`, ...node.report(i === 0 ? quota : 0));
      for (const [k, other] of nodes.entries()) other.take(head.take(`node-${k}`, nowMs, true));
    }
    expect(nodes.map(({ share }) => share)).toEqual([quota, 0, 0]);
  });

  it('of a node that is silent are kept for it until its lease is over, and of one that left are free at once', () => {
    const head = new QuotaShares({ epoch: 1, leaseMs: 1_000, nowMs: 0, before: [], amountOf: () => 4 });
    const [a, b] = [new Node(), new Node()];
    head.report('a', ...a.report(4));
    a.take(head.take('a', 0, true));
    expect(a.share).toBe(4);
    head.report('a', ...a.report(0));
    head.silent('a');
    const ask = (nowMs: number): number => {
      head.tick(nowMs);
      head.report('b', ...b.report(4));
      b.take(head.take('b', nowMs, true));
      return b.share;
    };
    expect([ask(10), ask(1_050), ask(1_101)]).toEqual([0, 0, 4]);
    head.report('b', ...b.report(0));
    head.left('b');
    head.report('c', 1, 1, [{ tenant: 'acme', applied: 0, lines: [{ line: 'cpus', held: 0, use: 0, firm: 0, want: 4, next: 1, blockedMs: 0 }] }]);
    expect(head.take('c', 1_200, true).shares[0]?.lines).toEqual([{ line: 'cpus', amount: 4, coming: false }]);
  });
});
