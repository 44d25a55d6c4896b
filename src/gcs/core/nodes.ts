/**
 * Nodes. In the store: id and number, for ever, since the number is in object ids; and which raylet process it last was. In memory only: what the node last reported.
 * Transitions: 1. none → known (reserve, at attestation); 2. known/dead → alive (register, when its stream opens); 3. alive → alive
 * (report); 4. alive → dead (no report for NODE_DEAD_AFTER_MS, or it said goodbye: leave). A stream that breaks changes nothing by itself:
 * it may come back.
 */
import { parseNodeId, quote, type NodeId } from '../../base/ids.ts';
import { describeLabels, NO_LABELS, type Labels } from '../../base/labels.ts';
import { MAX_NODES, NODE_DEAD_AFTER_MS } from '../../base/limits.ts';
import { describeResources, NO_RESOURCES, UNITS_PER_CPU, type ResourceVector } from '../../base/resources.ts';
import { full, refuse, unknown, type Effect, type Table } from './table.ts';

interface NodeRow {
  readonly id: NodeId;
  /** From 1; 0 is the head. */
  readonly number: number;
  readonly joinedMs: number;
  /** Random, per raylet process; '' before the first. */
  readonly instance: string;
  /** From its newest join token: what it may say at most that it has; amounts of 0: the head's own limits. */
  readonly most?: ResourceVector;
  /** From the same token: labels that it may say it has; left out: the head's own limits. */
  readonly mayHave?: Labels;
}

/** The head's own limits to what a node may say that it has. */
export interface NodeMost {
  readonly cpuUnits: number;
  readonly memoryBytes: number;
  /** Of each custom resource. */
  readonly eachUnits: number;
  /** Labels that nodes may say they have, with the values that count. */
  readonly labels: Readonly<Record<string, readonly string[]>>;
}

export interface NodeReportFacts {
  readonly available: ResourceVector;
  readonly policyVersion: number;
  readonly revocationVersion: number;
  readonly queuedTasks: number;
}

export interface NodeState extends NodeRow, NodeReportFacts {
  readonly state: 'alive' | 'dead';
  readonly address: string;
  readonly total: ResourceVector;
  readonly labels: Labels;
  readonly insecureDev: boolean;
  /** 0: never in this life of the head. */
  readonly lastSeenMs: number;
}

export type NodeEvent =
  | { readonly type: 'reserve'; readonly id: string; readonly by: string; readonly most?: ResourceVector | undefined; readonly mayHave?: Labels | undefined }
  | { readonly type: 'register'; readonly id: string; readonly address: string; readonly total: ResourceVector; readonly labels: Labels; readonly most: NodeMost; readonly insecureDev: boolean; readonly instance: string; readonly facts: NodeReportFacts }
  | { readonly type: 'report'; readonly id: string; readonly facts: NodeReportFacts }
  | { readonly type: 'leave'; readonly id: string }
  | { readonly type: 'tick' };

/**
 * What a node has is its own word. Work goes where there is most room, so a stolen node would claim all of the world's: beyond what the
 * operator said, when it joined or for all nodes, it is refused, and what it claims is on record.
 */
function requireWithin(id: string, total: ResourceVector, own: ResourceVector | undefined, most: NodeMost): void {
  const check = (what: string, has: number, token: number | undefined, head: number, text: (n: number) => string): void => {
    const limit = token === undefined || token === 0 ? head : token;
    if (has > limit) refuse(`node ${quote(id)} says it has ${text(has)} ${what}, and ${text(limit)} is the most it may: correct its configuration, or let it join again with a token from 'bulkhead pki join-token --node ${id} --most …' (for all nodes: nodeMost in the head's configuration)`);
  };
  const units = (n: number): string => String(n / UNITS_PER_CPU);
  check('cpus', total.cpuUnits, own?.cpuUnits, most.cpuUnits, units);
  check('bytes of memory', total.memoryBytes, own?.memoryBytes, most.memoryBytes, String);
  for (const [name, amount] of Object.entries(total.custom ?? {})) {
    // Where the token names custom resources, it names all of them.
    if (own?.custom !== undefined && !Object.hasOwn(own.custom, name) && amount > 0) refuse(`node ${quote(id)} says it has ${units(amount)} ${quote(name)}, which its join token does not name: correct its configuration, or let it join again with a token from 'bulkhead pki join-token --node ${id} --most …'`);
    check(quote(name), amount, own?.custom?.[name], most.eachUnits, units);
  }
}

/** Work that asks for a label goes to whoever has it: a node has those that its token, or the operator for all nodes, gave it, and no other. */
function requireLabels(id: string, labels: Labels, own: Labels | undefined, most: NodeMost): void {
  for (const [key, value] of Object.entries(labels)) {
    const allowed = own === undefined ? (Object.hasOwn(most.labels, key) && most.labels[key]?.includes(value) === true) : Object.hasOwn(own, key) && own[key] === value;
    if (!allowed) refuse(`node ${quote(id)} says it has the label ${key}=${value}, which it may not: correct its configuration, or let it join again with a token from 'bulkhead pki join-token --node ${id} --label ${key}=${value}' (for all nodes: nodeLabels in the head's configuration)`);
  }
}

/** A node that says it has more free than it has at all would draw the others' work to it. */
function credible(facts: NodeReportFacts, total: ResourceVector): NodeReportFacts {
  const { available } = facts;
  const custom: Record<string, number> = {};
  for (const name of Object.keys(available.custom ?? {})) {
    if (total.custom !== undefined && Object.hasOwn(total.custom, name)) custom[name] = Math.min(available.custom?.[name] ?? 0, total.custom[name] ?? 0);
  }
  return {
    ...facts,
    available: { cpuUnits: Math.min(available.cpuUnits, total.cpuUnits), memoryBytes: Math.min(available.memoryBytes, total.memoryBytes), custom: Object.keys(custom).length === 0 ? undefined : custom },
  };
}

type Reported = NodeReportFacts & Pick<NodeState, 'state' | 'address' | 'total' | 'labels' | 'insecureDev' | 'lastSeenMs'> & Pick<NodeRow, 'most' | 'mayHave'>;
const NOTHING_REPORTED: Reported = { state: 'dead', address: '', total: NO_RESOURCES, labels: NO_LABELS, available: NO_RESOURCES, policyVersion: 0, revocationVersion: 0, queuedTasks: 0, insecureDev: false, lastSeenMs: 0 };
const INSTANCE = /^[a-zA-Z0-9-]{0,64}$/;
const HOST_PORT = /^(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]{0,253}[a-zA-Z0-9])?|\[[0-9a-fA-F:]{2,39}\]):([1-9]\d{0,4})$/;

function parseAddress(text: string): string {
  const port = HOST_PORT.exec(text)?.[1];
  return port !== undefined && Number(port) <= 65_535 ? text : refuse(`address ${quote(text)} is not host:port`);
}

function sameResources(a: ResourceVector, b: ResourceVector): boolean {
  const names = new Set([...Object.keys(a.custom ?? {}), ...Object.keys(b.custom ?? {})]);
  return a.cpuUnits === b.cpuUnits && a.memoryBytes === b.memoryBytes && [...names].every((n) => a.custom?.[n] === b.custom?.[n]);
}

/** What a token said, for the node's row; nothing where it said nothing. */
function bounds({ most, mayHave }: { readonly most?: ResourceVector | undefined; readonly mayHave?: Labels | undefined }): { readonly most?: ResourceVector; readonly mayHave?: Labels } {
  return { ...(most === undefined ? {} : { most }), ...(mayHave === undefined ? {} : { mayHave }) };
}

export class Nodes implements Table<NodeEvent> {
  readonly prefix = 'nodes/';
  readonly #nodes = new Map<string, NodeState>();

  get(id: string): NodeState | undefined {
    return this.#nodes.get(id);
  }

  /** In the order of their numbers. */
  all(): NodeState[] {
    return [...this.#nodes.values()].sort((a, b) => a.number - b.number);
  }

  alive(): NodeState[] {
    return this.all().filter((n) => n.state === 'alive');
  }

  /** `reserve` and a new `instance` decide rows; everything else changes only what is in memory, at once. */
  step(event: NodeEvent, nowMs: number, out: Effect[]): void {
    switch (event.type) {
      case 'reserve': return this.#reserve(event, nowMs, out);
      case 'register': {
        const before = this.#known(event.id);
        const { address, total, labels, insecureDev, instance, facts } = event;
        requireWithin(before.id, total, before.most, event.most);
        requireLabels(before.id, labels, before.mayHave, event.most);
        if (!INSTANCE.test(instance)) return refuse(`instance ${quote(instance)} is not '' or up to 64 letters and digits`);
        this.#nodes.set(before.id, { ...before, ...credible(facts, total), state: 'alive', address: parseAddress(address), total, labels, insecureDev, lastSeenMs: nowMs });
        out.push({ type: 'push', part: 'nodes' });
        if (before.instance !== instance) out.push({ type: 'put', key: this.prefix + before.id, row: { id: before.id, number: before.number, joinedMs: before.joinedMs, instance, ...bounds(before) } satisfies NodeRow });
        if (before.state === 'alive' && before.instance === instance && sameResources(before.total, total) && describeLabels(before.labels) === describeLabels(labels)) return;
        const called = describeLabels(labels);
        out.push({ type: 'record', tenant: '', event: 'node.joined', principal: '', kind: 'node', resource: before.id, detail: `${insecureDev ? 'insecure-dev ' : ''}says it has ${describeResources(total)}${called === '' ? '' : `, labels ${called}`}` });
        return;
      }
      case 'report': {
        const before = this.#known(event.id);
        if (before.state !== 'alive') return refuse(`node ${quote(event.id)} reports without having registered: open the stream anew`);
        const facts = credible(event.facts, before.total);
        this.#nodes.set(before.id, { ...before, ...facts, lastSeenMs: nowMs });
        if (before.policyVersion !== facts.policyVersion || before.queuedTasks !== facts.queuedTasks || !sameResources(before.available, facts.available)) out.push({ type: 'push', part: 'nodes' });
        return;
      }
      case 'leave': {
        const node = this.#known(event.id);
        return node.state === 'alive' ? this.#dead(node, 'node.left', 'its raylet stopped', out) : undefined;
      }
      case 'tick':
        for (const node of this.#nodes.values()) {
          if (node.state === 'alive' && nowMs - node.lastSeenMs >= NODE_DEAD_AFTER_MS) this.#dead(node, 'node.died', `no report for ${NODE_DEAD_AFTER_MS} ms`, out);
        }
    }
  }

  #dead(node: NodeState, event: string, detail: string, out: Effect[]): void {
    this.#nodes.set(node.id, { ...node, state: 'dead', available: NO_RESOURCES, queuedTasks: 0 });
    out.push({ type: 'push', part: 'nodes' }, { type: 'record', tenant: '', event, principal: '', kind: 'node', resource: node.id, detail });
  }

  #known(id: string): NodeState {
    const node = this.#nodes.get(id);
    if (node === undefined) throw unknown(`node ${quote(id)}`);
    return node;
  }

  #reserve(event: { readonly id: string; readonly by: string; readonly most?: ResourceVector | undefined; readonly mayHave?: Labels | undefined }, nowMs: number, out: Effect[]): void {
    const id = parseNodeId(event.id);
    const own = bounds(event);
    const before = this.#nodes.get(id);
    if (before !== undefined) {
      // The newest token counts, also one that says nothing.
      const { number, joinedMs, instance } = before;
      if (JSON.stringify(bounds(before)) !== JSON.stringify(own)) out.push({ type: 'put', key: this.prefix + id, row: { id, number, joinedMs, instance, ...own } satisfies NodeRow });
      return;
    }
    if (this.#nodes.size >= MAX_NODES) throw full('nodes', MAX_NODES, 'reuse the id of a node that is gone');
    let number = 1;
    for (const node of this.#nodes.values()) number = Math.max(number, node.number + 1);
    out.push({ type: 'put', key: this.prefix + id, row: { id, number, joinedMs: nowMs, instance: '', ...own } satisfies NodeRow });
    out.push({ type: 'record', tenant: '', event: 'node.reserved', principal: event.by, kind: 'node', resource: id, detail: `number ${number}` });
  }

  absorb(key: string, row: unknown): void {
    const id = key.slice(this.prefix.length);
    if (row === undefined) this.#nodes.delete(id);
    else {
      const { most: _most, mayHave: _mayHave, ...known } = this.#nodes.get(id) ?? NOTHING_REPORTED;
      this.#nodes.set(id, { ...known, ...(row as NodeRow) });
    }
  }
}
