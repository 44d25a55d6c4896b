/** Marks every record of a node that runs with an isolation layer missing, so that no auditor takes it for a whole one. */
import type { AppendDurably, AuditLog, AuditLogs, AuditRecord } from '../base/audit-record.ts';

const STAMP = 'insecure-dev';

function stamped(record: AuditRecord): AuditRecord {
  return { ...record, detail: record.detail === '' ? STAMP : `${STAMP} ${record.detail}` };
}

class StampedLog implements AuditLog {
  readonly #log: AuditLog;

  constructor(log: AuditLog) {
    this.#log = log;
  }

  append(record: AuditRecord): number {
    return this.#log.append(stamped(record));
  }

  get durable(): number {
    return this.#log.durable;
  }

  get onDurable(): AuditLog['onDurable'] {
    return this.#log.onDurable;
  }

  set onDurable(listener: AuditLog['onDurable']) {
    this.#log.onDurable = listener;
  }
}

export function stampedLogs(logs: AuditLogs): AuditLogs {
  return { forTenant: (tenant) => new StampedLog(logs.forTenant(tenant)) };
}

export function stampedAppend(append: AppendDurably): AppendDurably {
  return (tenant, record) => append(tenant, stamped(record));
}
