/**
 * The root log: every checkpoint that a node reports of a tenant's audit log becomes a record of the cluster's own log, so that a node that
 * later shows another history contradicts a log it cannot reach. Transitions: 1. none → seen (first checkpoint); 2. seen → seen (a larger
 * tree). A smaller tree, or another root for the same size, is recorded as an alarm in both logs and changes nothing.
 * That a larger tree continues the smaller one is not proved here: an auditor proves it from an export and these records.
 */
import { keyPart, refuse, type Effect, type Table } from './table.ts';

export interface CheckpointRow {
  readonly nodeId: string;
  readonly tenant: string;
  readonly treeSize: number;
  /** Lower-case hex. */
  readonly rootHash: string;
}

export interface CheckpointEvent extends CheckpointRow {
  readonly type: 'seen';
}

export class Checkpoints implements Table<CheckpointEvent> {
  readonly prefix = 'checkpoints/';
  readonly #rows = new Map<string, CheckpointRow>();

  #key(nodeId: string, tenant: string): string {
    // A tenant's name never begins with '_'.
    return `${this.prefix}${keyPart(nodeId)}/${tenant === '' ? '_cluster' : keyPart(tenant)}`;
  }

  get(nodeId: string, tenant: string): CheckpointRow | undefined {
    return this.#rows.get(this.#key(nodeId, tenant));
  }

  /** Whether the head may sign it: it does not contradict what was seen before. */
  agrees({ nodeId, tenant, treeSize, rootHash }: CheckpointRow): boolean {
    const before = this.get(nodeId, tenant);
    return before === undefined || treeSize > before.treeSize || (treeSize === before.treeSize && rootHash === before.rootHash);
  }

  step(event: CheckpointEvent, _nowMs: number, out: Effect[]): void {
    const { nodeId, tenant, treeSize, rootHash } = event;
    if (!Number.isSafeInteger(treeSize) || treeSize < 0 || !/^[0-9a-f]{64}$/.test(rootHash)) return refuse('the checkpoint has no valid size and root');
    const before = this.get(nodeId, tenant);
    const record = (log: string, name: string, detail: string): void => {
      out.push({ type: 'record', tenant: log, event: name, principal: '', kind: 'audit', resource: `${nodeId}/${tenant === '' ? 'cluster' : `tenant/${tenant}`}`, detail });
    };
    if (!this.agrees(event)) {
      for (const log of new Set(['', tenant])) record(log, 'audit.contradicted', `size ${treeSize} root ${rootHash} after size ${before?.treeSize} root ${before?.rootHash}`);
    } else if (before?.treeSize !== treeSize) {
      record('', 'audit.checkpoint', `size ${treeSize} root ${rootHash}`);
      out.push({ type: 'put', key: this.#key(nodeId, tenant), row: { nodeId, tenant, treeSize, rootHash } satisfies CheckpointRow });
    }
  }

  absorb(key: string, row: unknown): void {
    if (row === undefined) this.#rows.delete(key);
    else this.#rows.set(key, row as CheckpointRow);
  }
}
