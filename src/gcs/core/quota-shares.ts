/**
 * Shares of quotas: what of each tenant's quota each node may use, so that the sum over nodes is never more than the quota. Memory only: nodes say what
 * they hold. A share has these states: 1. none → granted (out of what nobody holds); 2. granted → called back (somebody needs it: the node keeps what it
 * uses and starts nothing more); 3. called back → free (the node has said that it holds less); 4. granted → free (the node's process has ended, or its
 * lease has). Must never: give out what some node may still use under its lease.
 */
import type { LineDemand, TenantDemand, TenantShare } from '../../base/tenant-quota.ts';

/** What waited this long is served before those who go on using what they have. */
const STARVED_MS = 1_000;

/** What waits for its node's word. */
interface Sent {
  readonly serial: number;
  readonly amounts: ReadonlyMap<string, number>;
}

/** What one node has of one tenant. */
class Holding {
  demands = new Map<string, LineDemand>();
  /** The newest that it was told, and what it has not confirmed. */
  granted: ReadonlyMap<string, number> = new Map();
  coming: ReadonlySet<string> = new Set();
  serial = 0;
  unconfirmed: Sent[] = [];
  /** To be told. */
  due = false;

  /** What nobody else may have. */
  outstanding(line: string): number {
    let most = this.demands.get(line)?.held ?? 0;
    for (const { amounts } of this.unconfirmed) most = Math.max(most, amounts.get(line) ?? 0);
    return most;
  }
}

class NodeShares {
  readonly id: string;
  readonly tenants = new Map<string, Holding>();
  alive = true;
  reported = 0;
  /** Until when it may use what it was given, by the clock of the head: later than by its own. */
  leaseUntilMs = 0;

  constructor(id: string) {
    this.id = id;
  }
}

/** What a node is told. */
export interface ShareUpdate {
  readonly epoch: number;
  /** Serial of the report that this answers: it renews the lease from when that was sent. */
  readonly answered: number;
  readonly leaseMs: number;
  readonly shares: readonly TenantShare[];
}

/** Of one line on one node, for `divideLine`. */
export interface Claim {
  readonly granted: number;
  readonly use: number;
  readonly firm: number;
  readonly want: number;
  readonly next: number;
  readonly blockedMs: number;
}

/**
 * What each should have of `total`: what is used, then what is wanted in steps that help, who waited longest first; who waited too long for a step
 * that is larger than what is free has others start nothing until it is there. What nobody needs stays where it is, or is spread while somebody asks.
 */
export function divideLine(total: number, claims: readonly Claim[]): number[] {
  const targets = claims.map(() => 0);
  let left = total;
  const give = (i: number, amount: number): number => {
    const given = Math.max(0, Math.min(amount, left));
    targets[i] = (targets[i] as number) + given;
    left -= given;
    return given;
  };
  claims.forEach(({ firm }, i) => give(i, firm));
  claims.forEach(({ use }, i) => give(i, use - (targets[i] as number)));
  const order = claims.map((_, i) => i).filter((i) => (claims[i] as Claim).want > 0).sort((a, b) => (claims[b] as Claim).blockedMs - (claims[a] as Claim).blockedMs || a - b);
  const wanted = claims.map(({ use, want }, i) => Math.max(0, use + want - (targets[i] as number)));
  // Large wishes in few steps.
  const stepOf = (i: number): number => {
    const next = Math.max(1, (claims[i] as Claim).next);
    return Math.min(next * Math.max(1, Math.floor((wanted[i] as number) / (16 * next))), wanted[i] as number);
  };
  const first = order[0];
  if (first !== undefined) {
    const { blockedMs, use, next } = claims[first] as Claim;
    const lacking = stepOf(first) - left;
    const fair = total / claims.filter((c) => c.use + c.want > 0).length;
    if (lacking > 0 && blockedMs >= STARVED_MS && next > 0 && use < fair && use + next <= total) {
      // Those who have most give it back first, as what they run ends.
      let missing = lacking;
      for (const i of claims.map((_, j) => j).filter((j) => j !== first).sort((a, b) => (targets[b] as number) - (targets[a] as number) || a - b)) {
        const taken = Math.min(missing, targets[i] as number);
        targets[i] = (targets[i] as number) - taken;
        wanted[i] = 0;
        missing -= taken;
      }
      left += lacking - missing;
    }
  }
  for (let served = true; served && left > 0; ) {
    served = false;
    for (const i of order) {
      const step = stepOf(i);
      if (step <= 0 || step > left) continue;
      wanted[i] = (wanted[i] as number) - give(i, step);
      served = true;
    }
  }
  if (left <= 0 || claims.length === 0) return targets;
  if (order.length === 0) claims.forEach(({ granted }, i) => give(i, granted - (targets[i] as number)));
  // Less than a step for each helps nobody: it waits for the rest where it is needed first.
  const short = order.find((i) => (wanted[i] as number) > 0);
  const each = short === undefined ? Math.floor(left / claims.length) : 0;
  const rest = left - each * claims.length;
  claims.forEach((_, i) => give(i, each));
  give(short ?? first ?? 0, rest);
  return targets;
}

export interface QuotaSharesOptions {
  /** Rises with each life of the head: serials are of one life. */
  readonly epoch: number;
  readonly leaseMs: number;
  /** The whole amount of a line; undefined: there is none, or no limit. */
  readonly amountOf: (tenant: string, line: string) => number | undefined;
  /** Nodes that an earlier life of the head may have given shares to. */
  readonly before: readonly string[];
  readonly nowMs: number;
}

export class QuotaShares {
  readonly #options: QuotaSharesOptions;
  readonly #nodes = new Map<string, NodeShares>();
  /** Those of `before` that have not been heard of, until their leases are over; meanwhile only what the others said they held is shared. */
  readonly #missing: Set<string>;
  readonly #missingUntilMs: number;
  readonly #found = new Map<string, number>();
  #serial = 0;

  constructor(options: QuotaSharesOptions) {
    this.#options = options;
    this.#missing = new Set(options.before);
    this.#missingUntilMs = options.nowMs + options.leaseMs * 1.1;
  }

  /** The node's process is a new one: what an earlier one had is free. */
  started(nodeId: string): void {
    this.#missing.delete(nodeId);
    this.#forget(nodeId);
  }

  /** Its process has ended for sure. */
  left(nodeId: string): void {
    this.started(nodeId);
  }

  /** Nothing was heard of it: it is given nothing, and keeps what it has until its lease is over. */
  silent(nodeId: string): void {
    const node = this.#nodes.get(nodeId);
    if (node !== undefined) node.alive = false;
  }

  /** What a node says. `serial` rises with each report of a process; an older one is passed over. `epoch`: whose shares are in force there. True when it waits for an answer. */
  report(nodeId: string, serial: number, epoch: number, demands: readonly TenantDemand[]): boolean {
    let node = this.#nodes.get(nodeId);
    const isNew = node === undefined;
    if (node === undefined) this.#nodes.set(nodeId, (node = new NodeShares(nodeId)));
    if (serial <= node.reported) return false;
    node.reported = serial;
    node.alive = true;
    if (this.#missing.delete(nodeId) || isNew) for (const { tenant, lines } of demands) for (const { line, held } of lines) this.#found.set(`${tenant} ${line}`, (this.#found.get(`${tenant} ${line}`) ?? 0) + held);
    let waits = false;
    for (const { tenant, applied, lines } of demands) {
      let holding = node.tenants.get(tenant);
      if (holding === undefined) {
        if (lines.length === 0) continue;
        node.tenants.set(tenant, (holding = new Holding()));
      }
      holding.unconfirmed = holding.unconfirmed.filter((sent) => epoch !== this.#options.epoch || sent.serial > applied);
      holding.demands = new Map(lines.map((demand) => [demand.line, demand]));
      if (holding.unconfirmed.length > 0) holding.due = true;
      if (lines.length === 0 && holding.unconfirmed.length === 0) node.tenants.delete(tenant);
      waits ||= lines.some(({ want }) => want > 0);
    }
    for (const { tenant } of demands) this.#share(tenant);
    return waits;
  }

  /** Quotas may have changed. */
  changed(): void {
    for (const tenant of this.#tenants()) this.#share(tenant);
  }

  /** Once in a while: leases that are over. */
  tick(nowMs: number): void {
    if (this.#missing.size > 0 && nowMs >= this.#missingUntilMs) {
      this.#missing.clear();
      this.#found.clear();
      for (const tenant of this.#tenants()) this.#share(tenant);
    }
    for (const node of [...this.#nodes.values()]) if (!node.alive && node.leaseUntilMs <= nowMs) this.#forget(node.id);
  }

  /** Nodes that have to be told something. */
  due(): string[] {
    return [...this.#nodes.values()].filter((node) => node.alive && [...node.tenants.values()].some((h) => h.due)).map((node) => node.id);
  }

  /** What the node is told now; `all`: also what it was told before. The serial of its report that this answers renews its lease. */
  take(nodeId: string, nowMs: number, all: boolean): ShareUpdate {
    const node = this.#nodes.get(nodeId);
    const { leaseMs, epoch } = this.#options;
    if (node === undefined) return { epoch, answered: 0, leaseMs, shares: [] };
    // The node counts from when it sent that report. A tenth more, for clocks that are not equally fast.
    node.leaseUntilMs = nowMs + leaseMs * 1.1;
    const shares: TenantShare[] = [];
    for (const [tenant, holding] of node.tenants) {
      if (!holding.due && !all) continue;
      holding.due = false;
      shares.push({ tenant, serial: holding.serial, lines: [...holding.granted].map(([line, amount]) => ({ line, amount, coming: holding.coming.has(line) })) });
    }
    return { epoch, answered: node.reported, leaseMs, shares };
  }

  #tenants(): Set<string> {
    const tenants = new Set<string>();
    for (const node of this.#nodes.values()) for (const tenant of node.tenants.keys()) tenants.add(tenant);
    return tenants;
  }

  #forget(nodeId: string): void {
    const node = this.#nodes.get(nodeId);
    if (node === undefined) return;
    this.#nodes.delete(nodeId);
    for (const tenant of node.tenants.keys()) this.#share(tenant);
  }

  #share(tenant: string): void {
    const holders: Holding[] = [];
    let lines: Set<string> | undefined;
    let elsewhere: Holding[] | undefined;
    for (const node of this.#nodes.values()) {
      const holding = node.tenants.get(tenant);
      if (holding === undefined) continue;
      // What a silent node may use is not there to be shared.
      if (!node.alive) {
        (elsewhere ??= []).push(holding);
        continue;
      }
      holders.push(holding);
      lines ??= new Set();
      for (const line of holding.demands.keys()) lines.add(line);
    }
    if (lines === undefined) return;
    const next = holders.map(() => new Map<string, number>());
    const coming = holders.map(() => new Set<string>());
    for (const line of lines) this.#shareLine(tenant, line, holders, elsewhere ?? [], next, coming);
    holders.forEach((holding, i) => {
      const amounts = next[i] as Map<string, number>;
      const more = coming[i] as Set<string>;
      if (same(holding.granted, amounts) && more.size === holding.coming.size && [...more].every((line) => holding.coming.has(line))) return;
      holding.granted = amounts;
      holding.coming = more;
      holding.serial = ++this.#serial;
      holding.unconfirmed.push({ serial: holding.serial, amounts });
      holding.due = true;
    });
  }

  #shareLine(tenant: string, line: string, holders: readonly Holding[], elsewhere: readonly Holding[], next: readonly Map<string, number>[], coming: readonly Set<string>[]): void {
    const amount = this.#options.amountOf(tenant, line);
    if (amount === undefined) return;
    const whole = this.#missing.size === 0 ? amount : Math.min(amount, this.#found.get(`${tenant} ${line}`) ?? 0);
    const taken = elsewhere.reduce((sum, holding) => sum + holding.outstanding(line), 0);
    const known = holders.flatMap((holding, i) => {
      const demand = holding.demands.get(line);
      return demand === undefined ? [] : [{ i, holding, out: holding.outstanding(line), claim: { granted: holding.granted.get(line) ?? 0, use: demand.use, firm: demand.firm, want: demand.want, next: demand.next, blockedMs: demand.blockedMs } }];
    });
    const targets = divideLine(Math.max(0, whole - taken), known.map(({ claim }) => claim));
    let free = whole - taken - known.reduce((sum, { out }) => sum + out, 0);
    // Who holds the line and knows nothing of it any more.
    for (const holding of holders) if (!holding.demands.has(line)) free -= holding.outstanding(line);
    const order = known.map((_, k) => k).sort((a, b) => (known[b] as { claim: Claim }).claim.blockedMs - (known[a] as { claim: Claim }).claim.blockedMs || a - b);
    for (const k of order) {
      const { i, out, claim } = known[k] as (typeof known)[number];
      const target = targets[k] as number;
      const more = Math.max(0, Math.min(target - out, free));
      // What is used beyond a share is not made a part of it where that would be more than there is.
      const granted = target <= out ? Math.min(target, Math.max(claim.granted, out + Math.min(0, free))) : out + more;
      if (target > out) free -= more;
      (next[i] as Map<string, number>).set(line, granted);
      if (granted < target) (coming[i] as Set<string>).add(line);
    }
  }
}

function same(a: ReadonlyMap<string, number>, b: ReadonlyMap<string, number>): boolean {
  if (a.size !== b.size) return false;
  for (const [line, amount] of a) if (b.get(line) !== amount) return false;
  return true;
}
