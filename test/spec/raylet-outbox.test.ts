/** The raylet's gate between decision and answer: what needs a record waits until that record is on disk, and nothing overtakes it. */
import { expect, test } from 'vitest';
import type { AuditLog } from '../../src/base/audit-record.ts';
import { Outbox } from '../../src/raylet/outbox.ts';

function gate(): { log: { durable: number }; sent: string[]; outbox: Outbox } {
  const log = { durable: 0, append: () => 0, onDurable: undefined } satisfies AuditLog & { durable: number };
  const sent: string[] = [];
  return { log, sent, outbox: new Outbox(log, (batch) => sent.push(String.fromCharCode(...batch))) };
}
const batch = (text: string): Uint8Array => Uint8Array.from(text, (c) => c.charCodeAt(0));

test('nothing that needs a record leaves before the record is on disk', () => {
  const { log, sent, outbox } = gate();
  outbox.push(batch('needs 0'), 0);
  outbox.push(batch('needs 2'), 2);
  outbox.flush();
  expect(sent).toEqual([]);
  expect(outbox.waitingBytes).toBe(14);
  // `durable` is the number of records on disk: record 0 is there when it is 1.
  log.durable = 1;
  outbox.flush();
  expect(sent).toEqual(['needs 0']);
  log.durable = 2;
  outbox.flush();
  expect(sent).toEqual(['needs 0']);
  log.durable = 3;
  outbox.flush();
  expect(sent).toEqual(['needs 0', 'needs 2']);
  expect([outbox.waitingBytes, outbox.empty]).toEqual([0, true]);
});

test('what needs no record does not overtake what waits, and turns run in their place', () => {
  const { log, sent, outbox } = gate();
  outbox.push(batch('free'), -1);
  outbox.push(batch('waits'), 0);
  outbox.push(() => sent.push('turn'), -1);
  outbox.push(batch('behind'), -1);
  expect(sent).toEqual(['free']);
  log.durable = 1;
  outbox.flush();
  expect(sent).toEqual(['free', 'waits', 'turn', 'behind']);
});
