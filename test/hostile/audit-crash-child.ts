/** Appends decisions until it is killed, printing each new `durable`: what the parent then holds to be acknowledged. */
import { writeSync } from 'node:fs';
import { join } from 'node:path';
import { AuditStore } from '../../src/audit/audit-store.ts';
import { loadOrCreateSigner } from '../../src/audit/checkpoint-signer.ts';
import type { DecisionRecord } from '../../src/base/audit-record.ts';

const START_MS = 1_700_000_000_000;
const root = process.argv[2] as string;
const store = await AuditStore.open({
  dir: join(root, 'audit'), origin: 'cluster.example/node/n1', signer: loadOrCreateSigner(join(root, 'keys'), 'cluster.example/node/n1'), clock: { nowMs: () => START_MS, monotonicMs: () => 0 }, checkpointIntervalMs: 5,
});
const log = store.forTenant('acme');
let next = log.durable;

// The same records as `decision(i)` of test/contract/audit-fixture.ts, which needs vitest.
const record = (i: number): DecisionRecord => ({
  type: 'decision', timeMs: START_MS + i, principal: 'spiffe://cluster.example/tenant/acme/user/ana', action: i % 2 === 0 ? 'task.submit' : 'object.get', resourceKind: i % 2 === 0 ? 'task' : 'object',
  resource: '0123456789abcdef0123456789abcdef01234567', index: i >> 1, count: 1, allow: i % 5 !== 4, rule: i % 5 === 4 ? 'default-deny' : 'acme/analyst/permit/0', policyVersion: 3, detail: i % 2 === 0 ? `sha256:${'ab'.repeat(32)} f` : '',
});

log.onDurable = (durable) => writeSync(1, `${durable}\n`);
const pump = (): void => {
  for (let burst = next % 37; burst >= 0; burst--) log.append(record(next++));
  setImmediate(pump);
};
pump();
