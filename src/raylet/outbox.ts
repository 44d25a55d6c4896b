/**
 * Holds a channel's batches back until the audit records behind them are on disk, in order. Must never: let a batch pass that
 * needs a record which is not durable.
 */
import type { AuditLog } from '../base/audit-record.ts';

export class Outbox {
  readonly #log: AuditLog;
  readonly #write: (batch: Uint8Array) => void;
  readonly #waiting: { readonly batch: Uint8Array | (() => void); readonly needed: number }[] = [];
  waitingBytes = 0;

  constructor(log: AuditLog, write: (batch: Uint8Array) => void) {
    this.#log = log;
    this.#write = write;
  }

  get empty(): boolean {
    return this.#waiting.length === 0;
  }

  /** `needed`: sequence number of the record, -1 for none. A function runs in its turn instead of a batch. */
  push(batch: Uint8Array | (() => void), needed: number): void {
    if (this.#waiting.length === 0 && needed < this.#log.durable) return this.#send(batch);
    this.#waiting.push({ batch, needed });
    if (typeof batch !== 'function') this.waitingBytes += batch.length;
  }

  flush(): void {
    let sent = 0;
    for (const { batch, needed } of this.#waiting) {
      if (needed >= this.#log.durable) break;
      sent++;
      if (typeof batch !== 'function') this.waitingBytes -= batch.length;
      this.#send(batch);
    }
    if (sent > 0) this.#waiting.splice(0, sent);
  }

  #send(batch: Uint8Array | (() => void)): void {
    if (typeof batch === 'function') batch();
    else this.#write(batch);
  }
}
