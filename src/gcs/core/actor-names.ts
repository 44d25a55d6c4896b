/**
 * Names of actors, unique per tenant and actor namespace, and what detached ones are made of. Transitions of a name:
 *  1. free → taken       register
 *  2. taken → free       its holder releases it; its node died or its raylet is a new process, and it has no seed; its tenant was deleted
 *  3. taken → orphaned   its node died or its raylet is a new process, and it has a seed: whoever may have that can make the actor again
 *  4. orphaned → taken   registered: by its old holder, whose node was only silent; by who made it again; by anyone who makes another one
 *  5. orphaned → free    its job is stopped, its tenant is deleted
 * Names of placement groups are here too; 4 is then for its old holder, or a group of the same principal that takes its place (`former`), alone.
 * A seed is code and arguments of a tenant, sealed under the tenant's key and never read here. Must never: keep one without proof of a
 * session, or give it to anyone but a session of the principal that submitted the actor's job: it runs as that principal.
 */
import { quote } from '../../base/ids.ts';
import { MAX_ACTOR_NAMES_PER_TENANT, MAX_ACTOR_NAME_CHARS, MAX_ACTOR_SEED_BYTES, MAX_ACTOR_SEED_BYTES_PER_TENANT, MAX_CLASS_INFO_CHARS } from '../../base/limits.ts';
import { boundedText, full, keyPart, refuse, type Effect, type Table } from './table.ts';

/** Where raylets keep the names of placement groups: no actor's namespace can end so. */
const GROUP_NAMES = 'placement-group/';

export interface ActorSeed {
  /** SPIFFE ID of who submitted the job that made it. */
  readonly submitter: string;
  readonly jobId: string;
  /** Options, arguments, code: encrypted, base64. */
  readonly sealed: string;
}

export interface ActorNameRow {
  readonly tenant: string;
  readonly namespace: string;
  readonly name: string;
  /** 48 hex digits: an actor has an object id. */
  readonly actorId: string;
  readonly classInfo: string;
  readonly nodeId: string;
  readonly seed?: ActorSeed | undefined;
  readonly orphaned?: true | undefined;
  /** Whose name it was before, and was only silent perhaps: it may learn that another has it now. */
  readonly former?: { readonly actorId: string; readonly nodeId: string } | undefined;
}

export type ActorNameEvent =
  | { readonly type: 'register'; readonly row: Omit<ActorNameRow, 'orphaned' | 'former'> }
  | { readonly type: 'release'; readonly tenant: string; readonly namespace: string; readonly name: string; readonly actorId: string; readonly nodeId: string }
  /** At most `limit` names at a time; call again while `ofNode`/`ofTenant`/`orphansOf` is not empty. */
  | { readonly type: 'nodeGone'; readonly nodeId: string; readonly limit: number }
  | { readonly type: 'jobStopped'; readonly tenant: string; readonly jobId: string; readonly limit: number }
  | { readonly type: 'tenantGone'; readonly tenant: string; readonly limit: number };

/** A group of the same principal's that takes the place of this one. */
function isHeir(row: Omit<ActorNameRow, 'orphaned' | 'former'>, before: ActorNameRow): boolean {
  if (row.seed === undefined || row.seed.submitter !== before.seed?.submitter) return false;
  try {
    return (JSON.parse(row.classInfo) as { former?: unknown } | null)?.former === before.actorId;
  } catch {
    return false;
  }
}

function seedBytes(seed: ActorSeed | undefined): number {
  return seed === undefined ? 0 : Math.ceil((seed.sealed.length * 3) / 4);
}

export class ActorNames implements Table<ActorNameEvent> {
  readonly prefix = 'actor-names/';
  readonly #rows = new Map<string, ActorNameRow>();
  readonly #perTenant = new Map<string, number>();
  readonly #seedBytes = new Map<string, number>();

  #key(tenant: string, namespace: string, name: string): string {
    return `${this.prefix}${keyPart(tenant)}/${keyPart(namespace)}/${keyPart(name)}`;
  }

  get(tenant: string, namespace: string, name: string): ActorNameRow | undefined {
    return this.#rows.get(this.#key(tenant, namespace, name));
  }

  /** Those whose actors are taken to live there. */
  ofNode(nodeId: string): ActorNameRow[] {
    return [...this.#rows.values()].filter((r) => r.nodeId === nodeId && r.orphaned !== true);
  }

  ofTenant(tenant: string): ActorNameRow[] {
    return [...this.#rows.values()].filter((r) => r.tenant === tenant);
  }

  /** Actors that a job made and that could be made again. */
  orphansOf(tenant: string, jobId: string): ActorNameRow[] {
    return [...this.#rows.values()].filter((r) => r.orphaned === true && r.tenant === tenant && r.seed?.jobId === jobId);
  }

  heldBy(tenant: string, namespace: string, name: string, actorId: string, nodeId: string): boolean {
    const row = this.get(tenant, namespace, name);
    return row !== undefined && [row, row.former].some((holder) => holder?.actorId === actorId && holder.nodeId === nodeId);
  }

  /** Whether there is room for what an actor is made of; `before`: what its name has there already. */
  mayKeep(tenant: string, seed: ActorSeed, before: ActorSeed | undefined): boolean {
    const bytes = seedBytes(seed);
    return bytes <= MAX_ACTOR_SEED_BYTES && (this.#seedBytes.get(tenant) ?? 0) - seedBytes(before) + bytes <= MAX_ACTOR_SEED_BYTES_PER_TENANT;
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
        // The same holder again: its answer was lost, its node was silent for too long, or the head restarted.
        const same = before !== undefined && before.actorId === row.actorId && before.nodeId === row.nodeId;
        // The bundles of a lost coordinator's group are still held somewhere: nobody has its name before somebody has them.
        const free = before?.orphaned === true && (row.namespace !== GROUP_NAMES || isHeir(row, before));
        if (before !== undefined && !same && !free) return refuse(row.namespace === GROUP_NAMES ? `a placement group named ${quote(row.name)} exists already` : `an actor named ${quote(row.name)} exists already in this namespace`);
        if (before === undefined && (this.#perTenant.get(row.tenant) ?? 0) >= MAX_ACTOR_NAMES_PER_TENANT) throw full('named actors', MAX_ACTOR_NAMES_PER_TENANT, 'kill some');
        const seed = row.seed ?? (same ? before.seed : undefined);
        if (seed !== undefined && !this.mayKeep(row.tenant, seed, before?.seed)) return refuse('what the actor is made of is too large to be kept');
        const { seed: _given, ...bare } = row;
        const former = before === undefined || same ? before?.former : { actorId: before.actorId, nodeId: before.nodeId };
        out.push({ type: 'put', key, row: { ...bare, ...(seed === undefined ? {} : { seed }), ...(former === undefined ? {} : { former }) } });
        return;
      }
      case 'release': {
        const key = this.#key(event.tenant, event.namespace, event.name);
        const before = this.#rows.get(key);
        if (before !== undefined && before.actorId === event.actorId && before.nodeId === event.nodeId) out.push({ type: 'delete', key });
        return;
      }
      case 'nodeGone': {
        for (const row of this.ofNode(event.nodeId).slice(0, event.limit)) {
          const key = this.#key(row.tenant, row.namespace, row.name);
          out.push(row.seed === undefined ? { type: 'delete', key } : { type: 'put', key, row: { ...row, orphaned: true } });
        }
        return;
      }
      case 'jobStopped':
      case 'tenantGone': {
        const rows = event.type === 'jobStopped' ? this.orphansOf(event.tenant, event.jobId) : this.ofTenant(event.tenant);
        for (const row of rows.slice(0, event.limit)) out.push({ type: 'delete', key: this.#key(row.tenant, row.namespace, row.name) });
      }
    }
  }

  absorb(key: string, row: unknown): void {
    const before = this.#rows.get(key);
    if (before !== undefined) this.#count(before, -1);
    this.#rows.delete(key);
    if (row === undefined) return;
    const now = row as ActorNameRow;
    this.#rows.set(key, now);
    this.#count(now, 1);
  }

  #count({ tenant, seed }: ActorNameRow, sign: 1 | -1): void {
    this.#perTenant.set(tenant, (this.#perTenant.get(tenant) ?? 0) + sign);
    if (seed !== undefined) this.#seedBytes.set(tenant, (this.#seedBytes.get(tenant) ?? 0) + sign * seedBytes(seed));
  }
}
