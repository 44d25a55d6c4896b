/** What the audit log keeps; ports of src/audit. Strings may hold tenant-controlled text: only exports escape it, never the store. */

/** One decision, allow or deny. Ranges keep a call on many objects of one session to one record. */
export interface DecisionRecord {
  readonly type: 'decision';
  readonly timeMs: number;
  /** SPIFFE ID. */
  readonly principal: string;
  readonly action: string;
  readonly resourceKind: string;
  /** Resource name; for objects, tasks and actors the session prefix as 40 hex digits, completed by `index`. */
  readonly resource: string;
  /** Index within the session of the first object, or -1 where `resource` is the whole name. */
  readonly index: number;
  /** How many consecutive indexes from `index` this decision covers; 1 for a single resource. */
  readonly count: number;
  readonly allow: boolean;
  readonly rule: string;
  readonly policyVersion: number;
  /** '' or a short fact (`sha256:…` of the code and the function name, refusal reason). Repeats often, so it is dictionary-coded. */
  readonly detail: string;
}

/** One fact of a lifetime: node joined, SVID issued, worker started or killed, task finished, policy applied. */
export interface LifecycleRecord {
  readonly type: 'lifecycle';
  readonly timeMs: number;
  /** Dotted name: `svid.issued`, `worker.killed`, `actor.died`, `policy.applied`, `node.joined`. */
  readonly event: string;
  readonly principal: string;
  readonly resourceKind: string;
  readonly resource: string;
  readonly index: number;
  readonly detail: string;
}

export type AuditRecord = DecisionRecord | LifecycleRecord;

/** One tenant's log on one node. */
export interface AuditLog {
  /** Adds a record to the batch in the making and returns its sequence number (0-based leaf index). Cheap, synchronous; throws UNAVAILABLE when the log has failed (disk full): the caller must then refuse the call. */
  append(record: AuditRecord): number;
  /** All records with a sequence number below this are on disk (fdatasync returned). */
  readonly durable: number;
  /** Called after every group commit with the new value of `durable`, and with the error when the log fails for good. One listener. */
  onDurable: ((durable: number, failure?: Error) => void) | undefined;
}

/** All logs of one node; '' names the log of the cluster itself (nodes, keys, platform policy). */
export interface AuditLogs {
  forTenant(tenant: string): AuditLog;
}

/** Appends and waits until the record is on disk: for control calls, where a promise per call is affordable. */
export type AppendDurably = (tenant: string, record: AuditRecord) => Promise<void>;
