/**
 * One large object for many raylets: N of them have it after log N turns, whoever is slow, silent, gone or lies on the way, and nobody gets it who was not allowed to.
 * A turn is as long as one transfer: all that are under way arrive together.
 */
import { describe, expect, it } from 'vitest';
import { CALL_KIND, FrameWriter, OP } from '../../src/base/frame.ts';
import { COPY_STALL_MS, SHARE_ANSWER_MS, SPREAD_FANOUT, SPREAD_LEASE_MS } from '../../src/base/limits.ts';
import type { DecisionRecord } from '../../src/base/audit-record.ts';
import { DO, World, type SimClient, type SimNode } from './world.ts';

const SIZE = 160_000;
const ACME = 1;

interface Transfer {
  readonly from: number;
  readonly to: string;
  readonly go: (how?: 'wrong') => void;
}

class Broadcast {
  readonly world: World;
  readonly owner: SimClient;
  readonly object: Uint8Array;
  readonly results: Uint8Array[] = [];
  readonly underWay: Transfer[] = [];
  /** How many each node sent, in all, and at once at most. */
  readonly sent = new Map<number, number>();
  most = 0;

  constructor(pullers: number, seed: number, options: Partial<ConstructorParameters<typeof World>[0]> = {}) {
    this.world = new World({
      nodes: pullers + 1, cpus: 1, seed, labels: Array.from({ length: pullers + 1 }, (_, i) => ({ n: String(i) })), ...options,
      transfer: (from, to, go) => this.underWay.push({ from, to, go }),
    });
    this.owner = this.world.client(0, ACME);
    this.object = this.owner.putLarge(SIZE);
    for (let i = 1; i <= pullers; i++) {
      this.owner.define(i, CALL_KIND.TASK, { labels: { n: String(i) } });
      this.results.push(this.owner.call(OP.SUBMIT, i, DO.HANG, [this.object]));
    }
    this.owner.flush();
    this.rest();
  }

  /** Everything but transfers happens. */
  rest(): void {
    this.world.run(1_000_000);
  }

  /** Time passes, and everything that comes of it. */
  wait(ms: number): void {
    this.world.nowMs += ms;
    this.world.tick();
    this.rest();
  }

  /** All that are under way arrive, or what `how` makes of them. */
  turn(how: (transfer: Transfer) => 'arrives' | 'wrong' | 'stays' = () => 'arrives'): void {
    const stay: Transfer[] = [];
    const now = this.underWay.splice(0);
    const each = new Map<number, number>();
    for (const { from } of now) each.set(from, (each.get(from) ?? 0) + 1);
    this.most = Math.max(this.most, ...each.values());
    for (const transfer of now) {
      const what = how(transfer);
      if (what === 'stays') {
        stay.push(transfer);
        continue;
      }
      this.sent.set(transfer.from, (this.sent.get(transfer.from) ?? 0) + 1);
      transfer.go(what === 'wrong' ? 'wrong' : undefined);
    }
    this.rest();
    this.underWay.push(...stay);
  }

  /** Turns until all have it. */
  turns(how?: (transfer: Transfer) => 'arrives' | 'wrong' | 'stays'): number {
    let n = 0;
    for (; this.underWay.length > 0; n++) {
      if (n > 200) throw new Error('it never ends');
      this.turn(how);
    }
    return n;
  }

  get running(): number {
    return this.world.hanging.size;
  }

  core(node: number): SimNode['core']['state'] {
    return (this.world.nodes[node - 1] as SimNode).core.state;
  }

  /** Everything ends, and nothing of it is left anywhere. */
  finish(): void {
    for (const { node, slot, exec } of this.world.hanging) this.world.answerHanging(node, slot, exec);
    this.rest();
    this.owner.node.core.closeChannel(this.owner.channel);
    this.world.drain(this.owner.node);
    this.rest();
    this.turns();
    for (const node of this.world.nodes) {
      if (this.world.isLost(node)) continue;
      const core = node.core.state;
      expect([core.spreads.size, core.spreading.size, core.pulls.length, core.pullsUnderWay.size, core.copyChannels.size, core.upstreams.size, core.jobs.size]).toEqual([0, 0, 0, 0, 0, 0, 0]);
      for (const tenant of core.tenants.values()) expect([tenant.objectBytes, tenant.fileBytes, tenant.entries]).toEqual([0, 0, 0]);
    }
  }
}

const log = (base: number, n: number): number => Math.ceil(Math.log(n) / Math.log(base) - 1e-9);
const gets = (node: SimNode): DecisionRecord[] => (node.logs.get(ACME)?.records ?? []).filter((r): r is DecisionRecord => r.type === 'decision' && r.action === 'object.get');

describe('one large object for N raylets', () => {
  // Around each power of what a turn multiplies by.
  const counts = [1, 2, 3, 4, 7, 8, 9, 10, 16, 25, 26, 27, 28, 40, 63, 64];
  it('takes turns that grow with log N, for N from 1 to 64; nobody sends more at once than it may', () => {
    const turns = counts.map((pullers) => {
      const b = new Broadcast(pullers, pullers);
      const n = b.turns();
      expect([b.running, b.most <= SPREAD_FANOUT]).toEqual([pullers, true]);
      expect([...b.sent.values()].reduce((sum, sent) => sum + sent, 0)).toBe(pullers);
      b.finish();
      return n;
    });
    // After k turns (1 + fan-out)^k have it, the owner among them.
    expect(turns).toEqual(counts.map((pullers) => log(1 + SPREAD_FANOUT, pullers + 1)));
  });

  it('is on record for each reader at its owner, and at whoever served it, before it left', () => {
    const b = new Broadcast(20, 3);
    b.turns();
    const [owner, ...others] = b.world.nodes as [SimNode, ...SimNode[]];
    expect(gets(owner).filter((r) => r.detail === '').length).toBe(20);
    const served = others.map((node) => gets(node).filter((r) => r.detail === 'copy' && r.allow).length);
    expect(served).toEqual(others.map((_, i) => b.sent.get(i + 2) ?? 0));
    expect(served.reduce((sum, n) => sum + n, b.sent.get(1) ?? 0)).toBe(20);
    b.finish();
  });
});

describe.each([1, 2, 3, 4])('on the way to 13 raylets (order %i)', (seed) => {
  it('a raylet that serves other octets gives none: whoever got them gets it elsewhere, and it serves nobody again', () => {
    const b = new Broadcast(13, seed);
    b.turn();
    const liars = new Set([...b.underWay].filter(({ from }) => from !== 1).map(({ from }) => from));
    expect(liars.size).toBeGreaterThan(0);
    const lied = new Map<number, number>();
    b.turns(({ from }) => {
      if (!liars.has(from)) return 'arrives';
      lied.set(from, (lied.get(from) ?? 0) + 1);
      return 'wrong';
    });
    expect(b.running).toBe(13);
    for (const times of lied.values()) expect(times).toBeLessThanOrEqual(SPREAD_FANOUT);
    b.finish();
  });

  it('a raylet that sends nothing is left after a while, and it serves nobody again', () => {
    const b = new Broadcast(13, seed);
    b.turn();
    const silent = new Set(b.underWay.filter(({ from }) => from !== 1).map(({ from }) => from));
    for (let n = 0; b.running < 13 && n < 40; n++) {
      b.turn(({ from }) => (silent.has(from) ? 'stays' : 'arrives'));
      if (b.underWay.every(({ from }) => silent.has(from))) b.wait(COPY_STALL_MS + 1_000);
    }
    expect(b.running).toBe(13);
    // What comes after all is for nobody.
    b.turns();
    b.finish();
  });

  it('a raylet that does not say whether it has it, or cannot be reached, is not waited for', () => {
    const b = new Broadcast(13, seed);
    const [owner, ...others] = b.world.nodes as [SimNode, ...SimNode[]];
    // The first that have it hear nothing from its owner from now on; the next are cut off from everyone else.
    for (const { to } of b.underWay) b.world.mute(others.find((node) => node.core.state.config.nodeId === to) as SimNode, owner);
    for (let n = 0; b.running < 13 && n < 40; n++) {
      b.turn();
      b.wait(b.underWay.length === 0 ? SPREAD_LEASE_MS + SHARE_ANSWER_MS + 1_000 : 1);
    }
    expect(b.running).toBe(13);
  });

  it('a raylet that dies while it serves takes nothing with it', () => {
    const b = new Broadcast(13, seed);
    b.turn();
    const from = b.underWay.find((t) => t.from !== 1)?.from as number;
    b.world.loseNode(b.world.nodes[from - 1] as SimNode);
    for (let i = b.underWay.length - 1; i >= 0; i--) if (b.underWay[i]?.from === from || b.underWay[i]?.to === `node-${from}`) b.underWay.splice(i, 1);
    b.rest();
    b.turns();
    expect([...b.world.hanging].filter(({ node }) => !b.world.isLost(node)).length).toBe(12);
  });

  it('readers that are let go while they wait cost the others nothing', () => {
    const b = new Broadcast(13, seed);
    b.turn();
    // Two give up while they wait.
    b.owner.cancel(b.results[5] as Uint8Array, true);
    b.owner.cancel(b.results[6] as Uint8Array, true);
    b.owner.flush();
    b.rest();
    b.turns();
    expect(b.running).toBeGreaterThanOrEqual(11);
    b.finish();
  });
});

describe('a copy on another raylet', () => {
  /** Three nodes: the owner, one that has a copy and is asked to share it, and one that wants it. */
  function shared(decide?: ConstructorParameters<typeof World>[0]['decide']): { b: Broadcast; ask: (peer: string, as: 'submitter' | 'job', ticket: Uint8Array, id?: Uint8Array, job?: SimClient) => string; ticket: Uint8Array } {
    const b = new Broadcast(1, 5, { nodes: 3, labels: [{ n: '0' }, { n: '1' }, { n: '2' }], ...(decide === undefined ? {} : { decide }) });
    b.turns();
    const node = b.world.nodes[1] as SimNode;
    const core = node.core.state;
    const [upstream] = core.upstreams.values();
    const ticket = new Uint8Array(16).fill(3);
    const say = new FrameWriter();
    say.begin(OP.SHARE).raw(b.object).raw(ticket).str('node-3').str(b.owner.channel.principal.spiffeId).end();
    node.core.upstreamBatch(upstream as never, say.take(), b.world.nowMs);
    b.world.drain(node);
    return {
      b, ticket,
      ask: (peer, as, given, id = b.object, from) => {
        const own = from === undefined ? [...core.jobs.values()][0] : from.channel.job;
        if (own === undefined) throw new Error('no job');
        const channel = node.core.openChannel(2, own, as === 'job' ? own.principal : own.submitter, 0, {});
        channel.peer = peer;
        const out = new FrameWriter();
        out.begin(OP.COPY).u32(0).u32(1).raw(id).raw(given).end();
        b.underWay.length = 0;
        node.core.clientBatch(channel, out.take(), b.world.nowMs);
        const failed = channel.out.length;
        b.world.drain(node);
        const got = b.underWay.length > 0 ? 'value' : failed > 0 ? 'refused' : 'nothing';
        node.core.closeChannel(channel);
        b.world.drain(node);
        return got;
      },
    };
  }

  it('is had once, by the node and the principal that its owner named', () => {
    const { ask, ticket } = shared();
    expect([ask('node-3', 'submitter', ticket), ask('node-3', 'submitter', ticket)]).toEqual(['value', 'refused']);
  });

  it.each([
    ['another node', 'node-1', 'submitter', undefined], ['another principal', 'node-3', 'job', undefined], ['another ticket', 'node-3', 'submitter', new Uint8Array(16)],
  ] as const)('is not had by %s, which is on record', (_who, peer, as, given) => {
    const { b, ask, ticket } = shared();
    expect(ask(peer, as, given ?? ticket)).toBe('refused');
    const record = gets(b.world.nodes[1] as SimNode).at(-1);
    expect([record?.allow, record?.rule, record?.detail]).toEqual([false, 'copy-ticket', 'copy']);
  });

  it('is not had for another object, by another job, by another tenant, or when it is too late', () => {
    const { b, ask, ticket } = shared();
    const other = b.object.slice();
    other[20] = 77;
    expect(ask('node-3', 'submitter', ticket, other)).toBe('refused');
    const [, node] = b.world.nodes as [SimNode, SimNode];
    const same = b.world.client(1, ACME);
    const foreign = b.world.client(1, 2);
    expect([ask('node-3', 'submitter', ticket, b.object, same), ask('node-3', 'submitter', ticket, b.object, foreign)]).toEqual(['refused', 'refused']);
    b.world.nowMs += SPREAD_LEASE_MS + 1;
    node.core.tick(b.world.nowMs, () => 0);
    expect(ask('node-3', 'submitter', ticket)).toBe('refused');
  });

  it('is not had by whom the policy of the node that has it does not allow, ticket or not', () => {
    let deny = false;
    const { ask, ticket } = shared(({ action }) => !(deny && action === 'object.get'));
    deny = true;
    expect(ask('node-3', 'submitter', ticket)).toBe('refused');
  });
});
