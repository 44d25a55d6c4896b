/** Metering: what is recorded sums to what was used, what is summed to what is in the log, and FOCUS rows to both. */
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { usageByHour } from '../../src/audit/audit-usage.ts';
import type { AuditRecord } from '../../src/base/audit-record.ts';
import { NO_USAGE, parseUsage, USAGE_EVENT, usageText } from '../../src/base/usage-record.ts';
import { focusCsv, METERS, quantityText } from '../../src/cli/commands/usage.ts';
import { Metering } from '../../src/raylet/metering.ts';
import type { TenantState, Worker } from '../../src/raylet/core/state.ts';
import type { UsageHour } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import { openStore } from '../contract/audit-fixture.ts';

const HOUR_MS = 3_600_000;

it('a usage record reads back, and nothing else is one', () => {
  const numbers = fc.record({ cpuMicros: fc.nat(), memoryMibMs: fc.nat(), objectKibMs: fc.nat(), bytesIn: fc.nat(), bytesOut: fc.nat() });
  fc.assert(fc.property(numbers, (usage) => {
    expect(parseUsage(usageText(usage))).toEqual(usage);
  }));
  expect(parseUsage(`insecure-dev ${usageText(NO_USAGE)}`)).toEqual(NO_USAGE);
  for (const bad of ['', 'cpuMicros=1', usageText(NO_USAGE).replace('0', '-1'), `${usageText(NO_USAGE)} more=1`, `x ${usageText(NO_USAGE)}`]) expect(parseUsage(bad)).toBeUndefined();
});

it('metering loses nothing between records: processes that end, counters that stand, clocks that jump', () => {
  const tenant = (name: string) => ({ name, objectBytes: 0, bytesIn: 0, bytesOut: 0, monthCalls: 0 }) as unknown as TenantState;
  const [acme, globex] = [tenant('acme'), tenant('globex')];
  const processes = new Map<Worker, { micros: number; cpuMicros(): number; memoryBytes(): number }>();
  const made = (micros: number) => ({ micros, cpuMicros() { return this.micros; }, memoryBytes: () => 100 * 2 ** 20 });
  const records: [string, string][] = [];
  const metering = new Metering({ tenants: () => [acme, globex], processes, record: (t, detail) => void records.push([t.name, detail]) });
  const [first, second] = [{ tenant: acme }, { tenant: globex }] as unknown as Worker[];
  processes.set(first as Worker, made(0));
  processes.set(second as Worker, made(500));
  acme.bytesIn = 7;
  acme.objectBytes = 2_048;
  metering.tick(1_000, 1_000);
  for (let ms = 1_025; ms <= 21_000; ms += 25) {
    (processes.get(first as Worker) ?? made(0)).micros += 10;
    metering.tick(ms, ms);
    if (ms === 15_000) {
      // It ends between two samples: its last count is not lost, nor counted twice.
      const ended = processes.get(first as Worker) as ReturnType<typeof made>;
      ended.micros += 3;
      metering.workerEnded(first as Worker, ended);
      processes.delete(first as Worker);
    }
  }
  metering.tick(10 * HOUR_MS, 10 * HOUR_MS);
  metering.finish(10 * HOUR_MS + 10, 10 * HOUR_MS + 10);
  const sum = (name: string) => records.filter(([of]) => of === name).map(([, detail]) => parseUsage(detail) ?? NO_USAGE).reduce((a, b) => ({ cpuMicros: a.cpuMicros + b.cpuMicros, memoryMibMs: a.memoryMibMs + b.memoryMibMs, objectKibMs: a.objectKibMs + b.objectKibMs, bytesIn: a.bytesIn + b.bytesIn, bytesOut: a.bytesOut + b.bytesOut }));
  expect(sum('acme').cpuMicros).toBe(((15_000 - 1_000) / 25) * 10 + 3);
  expect(sum('acme').bytesIn).toBe(7);
  // 2 KiB for 20 s, the pause counted as five.
  expect(sum('acme').objectKibMs).toBe(2 * (20_000 + 5_000 + 10));
  expect(sum('globex')).toMatchObject({ cpuMicros: 500, memoryMibMs: 100 * (20_000 + 5_000 + 10) });
});

it('sums of a log are what is in it, exactly: allowed calls once, by hour, and all usage records', async () => {
  await fc.assert(fc.asyncProperty(fc.array(fc.record({ atMs: fc.nat(5 * HOUR_MS), what: fc.nat(5), count: fc.integer({ min: 1, max: 500 }), allow: fc.boolean(), usage: fc.record({ cpuMicros: fc.nat(), memoryMibMs: fc.nat(), objectKibMs: fc.nat(), bytesIn: fc.nat(), bytesOut: fc.nat() }) }), { maxLength: 60 }), async (entries) => {
    const store = await openStore();
    const startMs = 1_700_000_000_000 - (1_700_000_000_000 % HOUR_MS);
    const log = store.forTenant('acme');
    const expected = { calls: new Map<string, number>(), cpu: 0, bytes: 0 };
    const actions = ['task.submit', 'actor.call', 'actor.create', 'object.get', 'task.submit'];
    for (const { atMs, what, count, allow, usage } of entries) {
      const timeMs = startMs + atMs;
      const inRange = atMs < 4 * HOUR_MS;
      const record: AuditRecord = what === 5
        ? { type: 'lifecycle', timeMs, event: USAGE_EVENT, principal: '', resourceKind: 'tenant', resource: 'acme', index: -1, detail: usageText(usage) }
        : { type: 'decision', timeMs, principal: 'spiffe://x/tenant/acme/user/ana', action: actions[what] as string, resourceKind: 'task', resource: 'ab', index: 1, count, allow, rule: 'r', policyVersion: 1, detail: what === 4 ? 'sha256:00 f forwarded' : 'sha256:00 f' };
      log.append(record);
      if (!inRange) continue;
      if (what === 5) {
        expected.cpu += usage.cpuMicros;
        expected.bytes += usage.bytesIn + usage.bytesOut;
      } else if (allow && what < 3) expected.calls.set(actions[what] as string, (expected.calls.get(actions[what] as string) ?? 0) + count);
    }
    if (entries.length > 0) await log.whenDurable(entries.length - 1);
    const hours = await usageByHour(store, 'acme', startMs, startMs + 4 * HOUR_MS, new AbortController().signal);
    await store.close();
    const got = new Map<string, number>();
    for (const hour of hours) for (const [action, n] of hour.calls) got.set(action, (got.get(action) ?? 0) + n);
    expect(got).toEqual(expected.calls);
    expect(hours.reduce((n, h) => n + h.cpuMicros, 0)).toBe(expected.cpu);
    expect(hours.reduce((n, h) => n + h.bytesIn + h.bytesOut, 0)).toBe(expected.bytes);
    for (const hour of hours) expect(hour.startMs % HOUR_MS).toBe(0);
  }), { numRuns: 25 });
});

it('quantities are decimals without a double’s errors; FOCUS rows have every column, and sums that agree', () => {
  expect([quantityText(0n, 3n), quantityText(1n, 3n), quantityText(123_456_789_012_345_678n, 1n), quantityText(1_500_000n, 1_000_000n)]).toEqual(['0', '0.333333333', '123456789012345678', '1.5']);
  const hour = { nodeId: 'n,"1"', startMs: BigInt(Date.UTC(2026, 11, 31, 23)), calls: { 'task.submit': 7n, 'actor.call': 2n }, cpuMicros: 1_234_567n, memoryMibMs: 1_024n * 3_600_000n, objectKibMs: 0n, bytesIn: 10n, bytesOut: 0n } as unknown as UsageHour;
  const [header = '', ...rows] = focusCsv('td', 'acme', [hour]).trimEnd().split('\r\n');
  const columns = header.split(',');
  const mandatory = [
    'BilledCost', 'BillingAccountId', 'BillingCurrency', 'BillingPeriodStart', 'BillingPeriodEnd', 'ChargeCategory', 'ChargeClass', 'ChargePeriodStart', 'ChargePeriodEnd', 'ContractedCost',
    'EffectiveCost', 'ListCost', 'InvoiceIssuerName', 'ProviderName', 'PublisherName', 'ServiceCategory', 'ServiceName', 'ResourceId', 'ConsumedQuantity', 'ConsumedUnit',
  ];
  for (const column of mandatory) expect(columns).toContain(column);
  expect(rows.length).toBe(5);
  const cells = rows.map((row) => Object.fromEntries([...row.matchAll(/("(?:[^"]|"")*"|[^,]*)(?:,|$)/g)].slice(0, columns.length).map(([, cell], i) => [columns[i], (cell ?? '').replace(/^"|"$/g, '').replaceAll('""', '"')])));
  expect(cells.map((c) => [c['SkuId'], c['ConsumedQuantity'], c['ConsumedUnit']])).toEqual([['tasks', '7', 'Calls'], ['actor-calls', '2', 'Calls'], ['cpu', '1.234567', 'CPU-Seconds'], ['memory', '1', 'GiB-Hours'], ['bytes-in', '10', 'Bytes']]);
  expect(cells[0]).toMatchObject({ ResourceName: 'n,"1"', BillingPeriodStart: '2026-12-01T00:00:00Z', BillingPeriodEnd: '2027-01-01T00:00:00Z', ChargePeriodStart: '2026-12-31T23:00:00Z', ChargePeriodEnd: '2027-01-01T00:00:00Z', ChargeCategory: 'Usage', SubAccountName: 'acme' });
  expect(METERS.length).toBe(8);
});
