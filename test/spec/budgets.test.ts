/** Budgets: what is over one, on one node at once and cluster-wide by sums; what is refused is typed and on record. */
import { expect, it } from 'vitest';
import { callBudget, hasBudget, overBudget } from '../../src/base/budget.ts';
import { CALL_KIND, OP } from '../../src/base/frame.ts';
import { NO_USAGE, parseMonth, parseUsage, usageText } from '../../src/base/usage-record.ts';
import { Budgets } from '../../src/gcs/core/budgets.ts';
import { Metering } from '../../src/raylet/metering.ts';
import type { TenantState } from '../../src/raylet/core/state.ts';
import { DO, World } from '../sim/world.ts';

const MONTH = '2026-11';
const none = { month: MONTH, calls: 0, cpuMicros: 0, memoryMibMs: 0 };

it('each budget is of its own unit, and says which it is', () => {
  expect(overBudget({ cpus: '1' }, { ...none, calls: 1e9 })).toBe('');
  expect(overBudget({ 'budget-calls': '10' }, { ...none, calls: 9 })).toBe('');
  expect(overBudget({ 'budget-calls': '10' }, { ...none, calls: 10 })).toMatch(/budget of 10 calls for 2026-11 \(quota budget-calls\)/);
  expect(overBudget({ 'budget-cpu-seconds': '1.5' }, { ...none, cpuMicros: 1_499_999 })).toBe('');
  expect(overBudget({ 'budget-cpu-seconds': '1.5' }, { ...none, cpuMicros: 1_500_000 })).toMatch('CPU-seconds');
  expect(overBudget({ 'budget-memory-gib-hours': '1' }, { ...none, memoryMibMs: 1_024 * 3_600_000 })).toMatch('GiB-hours');
  expect([hasBudget({ cpus: '1' }), hasBudget({ 'budget-calls': '0' }), callBudget({}), callBudget({ 'budget-calls': '7' })]).toEqual([false, true, Infinity, 7]);
  expect(overBudget({ 'budget-calls': '0' }, none)).not.toBe('');
});

it('the head sums nodes of one month: a sum never shrinks, an old month does not count, a node that is away keeps its own', () => {
  const budgets = new Budgets();
  const quota = { 'budget-calls': '10' };
  expect(budgets.report('n1', 'acme', quota, { ...none, calls: 6 })).toBe(false);
  expect(budgets.report('n2', 'acme', quota, { ...none, calls: 3 })).toBe(false);
  expect(budgets.report('n2', 'acme', quota, { ...none, calls: 4 })).toBe(true);
  expect(budgets.overOf('acme')).not.toBe('');
  // A node that says less than before, or tells of an older month, changes nothing.
  expect(budgets.report('n1', 'acme', quota, { ...none, calls: 0 })).toBe(false);
  expect(budgets.report('n1', 'acme', quota, { ...none, month: '2026-10', calls: 0 })).toBe(false);
  expect(budgets.overOf('globex')).toBe('');
  expect(budgets.report('n1', 'acme', { 'budget-calls': '100' }, { ...none, calls: 6 })).toBe(true);
  expect(budgets.overOf('acme')).toBe('');
  expect(budgets.report('n1', 'acme', quota, { ...none, calls: 6 })).toBe(true);
  expect(budgets.report('n1', 'acme', quota, { ...none, month: '2026-12', calls: 1 })).toBe(true);
  expect(budgets.overOf('acme')).toBe('');
});

it('a raylet refuses the call after the last, of every kind, with a denial on record; nobody else’s', () => {
  const w = new World({ nodes: 1, cpus: 2, seed: 7 });
  const [acme, globex] = [w.client(0, 1), w.client(0, 2)];
  acme.channel.job.tenant.callBudget = 3;
  for (const client of [acme, globex]) {
    client.define(1, CALL_KIND.TASK, {}, 'f');
    client.define(2, CALL_KIND.ACTOR_CLASS, {}, 'Counter');
    client.define(3, CALL_KIND.ACTOR_METHOD, {}, 'add');
    const actor = client.call(OP.CREATE_ACTOR, 2, DO.RETURN);
    const refs = [client.call(OP.SUBMIT, 1, DO.RETURN), client.call(OP.CALL_ACTOR, 3, DO.RETURN, [], actor), client.call(OP.SUBMIT, 1, DO.RETURN), client.call(OP.CALL_ACTOR, 3, DO.RETURN, [], actor), client.call(OP.CREATE_ACTOR, 2, DO.RETURN)];
    client.get(refs);
  }
  acme.flush();
  globex.flush();
  w.run(10_000);
  expect(acme.failed).toEqual(['QUOTA_EXCEEDED', 'QUOTA_EXCEEDED', 'QUOTA_EXCEEDED']);
  expect(globex.failed).toEqual([]);
  const records = acme.node.logs.get(1)?.records ?? [];
  const refused = records.filter((r) => r.type === 'decision' && !r.allow);
  expect(refused).toMatchObject([{ action: 'task.submit', rule: 'budget' }, { action: 'actor.call', rule: 'budget' }, { action: 'actor.create', rule: 'budget' }]);
  expect(acme.channel.job.tenant.monthCalls).toBe(3);
  expect(acme.node.logs.get(2)?.records.some((r) => r.type === 'decision' && r.rule === 'budget')).toBe(false);
  // What the head says counts the same.
  globex.channel.job.tenant.overBudget = 'used up';
  globex.get([globex.call(OP.SUBMIT, 1, DO.RETURN)]);
  globex.flush();
  w.run(10_000);
  expect(globex.failed).toEqual(['QUOTA_EXCEEDED']);
});

it('a month goes on after a restart, and begins anew with the next', () => {
  const detail = usageText(NO_USAGE, { month: MONTH, calls: 5, cpuMicros: 1_000, memoryMibMs: 7 });
  expect([parseUsage(detail), parseMonth(detail), parseMonth(usageText(NO_USAGE))]).toEqual([NO_USAGE, { month: MONTH, calls: 5, cpuMicros: 1_000, memoryMibMs: 7 }, undefined]);
  const tenant = { name: 'acme', objectBytes: 0, bytesIn: 0, bytesOut: 0, monthCalls: 0 } as unknown as TenantState;
  const metering = new Metering({ tenants: () => [tenant], processes: new Map(), record: () => undefined });
  const start = Date.UTC(2026, 10, 30, 23, 59, 58);
  metering.tick(start, start);
  tenant.monthCalls = 2;
  metering.restore(tenant, { month: MONTH, calls: 5, cpuMicros: 1_000, memoryMibMs: 7 }, start);
  metering.restore(tenant, { month: '2026-10', calls: 500, cpuMicros: 0, memoryMibMs: 0 }, start);
  expect(metering.monthOf(tenant, start)).toEqual({ month: MONTH, calls: 7, cpuMicros: 1_000, memoryMibMs: 7 });
  for (let i = 1; i < 5; i++) metering.tick(start + i * 1_000, start + i * 1_000);
  expect(metering.monthOf(tenant, start + 5_000)).toEqual({ month: '2026-12', calls: 0, cpuMicros: 0, memoryMibMs: 0 });
});
