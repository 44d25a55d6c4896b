/**
 * Names of actors, unique per tenant and actor namespace. Transitions: 1. free → taken (register); 2. taken → free (release by its holder;
 * its node died or its raylet is a new process; its tenant was deleted).
 */
import { quote } from '../../base/ids.ts';
import { MAX_ACTOR_NAMES_PER_TENANT, MAX_ACTOR_NAME_CHARS, MAX_CLASS_INFO_CHARS } from '../../base/limits.ts';
import { boundedText, full, keyPart, refuse, type Effect, type Table } from './table.ts';

export interface ActorNameRow {
  readonly tenant: string;
  readonly namespace: string;
  readonly name: string;
  /** 48 hex digits: an actor has an object id. */
  readonly actorId: string;
  readonly classInfo: string;
  readonly nodeId: string;
}

export type ActorNameEvent =
  | { readonly type: 'register'; readonly row: ActorNameRow }
  | { readonly type: 'release'; readonly tenant: string; readonly namespace: string; readonly name: string; readonly actorId: string; readonly nodeId: string }
  /** At most `limit` names at a time; call again while `ofNode`/`ofTenant` is not empty. */
  | { readonly type: 'nodeGone'; readonly nodeId: string; readonly limit: number }
  | { readonly type: 'tenantGone'; readonly tenant: string; readonly limit: number };

export class ActorNames implements Table<ActorNameEvent> {
  readonly prefix = 'actor-names/';
  readonly #rows = new Map<string, ActorNameRow>();
  readonly #perTenant = new Map<string, number>();

  #key(tenant: string, namespace: string, name: string): string {
    return `${this.prefix}${keyPart(tenant)}/${keyPart(namespace)}/${keyPart(name)}`;
  }

  get(tenant: string, namespace: string, name: string): ActorNameRow | undefined {
    return this.#rows.get(this.#key(tenant, namespace, name));
  }

  ofNode(nodeId: string): ActorNameRow[] {
    return [...this.#rows.values()].filter((r) => r.nodeId === nodeId);
  }

  ofTenant(tenant: string): ActorNameRow[] {
    return [...this.#rows.values()].filter((r) => r.tenant === tenant);
  }

  step(event: ActorNameEvent, _nowMs: number, out: Effect[]): void {
    switch (event.type) {
      case 'register': {
        const { row } = event;
        boundedText('the actor name', row.name, MAX_ACTOR_NAME_CHARS, 1);
        boundedText('the actor namespace', row.namespace, MAX_ACTOR_NAME_CHARS);
        boundedText('the class description', row.classInfo, MAX_CLASS_INFO_CHARS);
        const key = this.#key(row.tenant, row.namespace, row.name);
        const before = this.#rows.get(key);
        // The same holder again: its answer was lost, or it re-registers after the head restarted.
        if (before !== undefined && (before.actorId !== row.actorId || before.nodeId !== row.nodeId)) return refuse(`an actor named ${quote(row.name)} exists already in this namespace`);
        if (before === undefined && (this.#perTenant.get(row.tenant) ?? 0) >= MAX_ACTOR_NAMES_PER_TENANT) throw full('named actors', MAX_ACTOR_NAMES_PER_TENANT, 'kill some');
        out.push({ type: 'put', key, row });
        return;
      }
      case 'release': {
        const key = this.#key(event.tenant, event.namespace, event.name);
        const before = this.#rows.get(key);
        if (before !== undefined && before.actorId === event.actorId && before.nodeId === event.nodeId) out.push({ type: 'delete', key });
        return;
      }
      case 'nodeGone':
      case 'tenantGone': {
        const rows = event.type === 'nodeGone' ? this.ofNode(event.nodeId) : this.ofTenant(event.tenant);
        for (const row of rows.slice(0, event.limit)) out.push({ type: 'delete', key: this.#key(row.tenant, row.namespace, row.name) });
      }
    }
  }

  absorb(key: string, row: unknown): void {
    const before = this.#rows.get(key);
    if (before !== undefined) this.#perTenant.set(before.tenant, (this.#perTenant.get(before.tenant) ?? 1) - 1);
    this.#rows.delete(key);
    if (row === undefined) return;
    const now = row as ActorNameRow;
    this.#rows.set(key, now);
    this.#perTenant.set(now.tenant, (this.#perTenant.get(now.tenant) ?? 0) + 1);
  }
}
