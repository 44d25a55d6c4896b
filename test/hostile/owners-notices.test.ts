/** Whoever tries at other tenants' resources over and over writes into its own log; its victims learn who and how often, and an answer tells nothing. */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { AuditRecord, DecisionRecord } from '../../src/base/audit-record.ts';
import { BulkheadError } from '../../src/base/errors.ts';
import { MAX_INTRUSIONS_TOLD } from '../../src/base/limits.ts';
import { principalFromSpiffeId } from '../../src/base/principal.ts';
import { deny } from '../../src/gcs/services/access.ts';
import type { HeadContext } from '../../src/gcs/ports.ts';
import { Admission, type MethodPlan } from '../../src/rpc/admission.ts';
import { OwnersNotices, noticesOf } from '../../src/rpc/owners-notices.ts';
import type { ServerSecurity, VerifiedPeer } from '../../src/rpc/ports.ts';
import { DENIED_TEXT } from '../../src/rpc/status.ts';
import type { CallContext } from '../../src/rpc/service-types.ts';
import { resource } from '../../src/base/decision.ts';
import { row } from '../contract/rpc-fixture.ts';

const EVE = 'spiffe://cluster.test/tenant/acme/user/eve';
const NOBODY: DecisionRecord = { type: 'decision', timeMs: 1, principal: EVE, action: 'job.list', resourceKind: 'job', resource: 'j', index: -1, count: 1, allow: false, rule: 'wall', policyVersion: 1, detail: '' };
const clock = { nowMs: () => 1_700_000_000_000, monotonicMs: () => 0 };

class Logs {
  readonly records: { log: string; record: DecisionRecord }[] = [];
  /** Logs that take nothing now, and ones that never answer. */
  readonly full = new Set<string>();
  readonly stuck = new Set<string>();
  readonly append = async (log: string, record: AuditRecord): Promise<void> => {
    if (this.stuck.has(log)) await new Promise(() => undefined);
    if (this.full.has(log)) throw new BulkheadError('QUOTA_EXCEEDED', `the audit log of ${log} is full: export it and ask the operator`);
    if (record.type === 'decision') this.records.push({ log, record });
  };

  of(log: string): DecisionRecord[] {
    return this.records.filter((r) => r.log === log).map((r) => r.record);
  }

  tries(log: string): number {
    return this.of(log).reduce((n, r) => n + r.count, 0);
  }
}

const EXISTING = new Set(['globex', 'initech', 'acme']);

function admission(logs: Logs): (tenant: string, who?: string) => Promise<string> {
  const security = { peers: { isRevoked: () => false }, decisions: { version: 1, decide: () => ({ allow: false, rule: 'wall', policyVersion: 1 }) }, audit: logs.append } as unknown as ServerSecurity;
  const admit = new Admission(security, { knowsTenant: (t) => EXISTING.has(t), clock, log: { warn: () => undefined, info: () => undefined, error: () => undefined } as never });
  return async (tenant, who = EVE) => {
    const plan: MethodPlan = { row: row('bulkhead.v1.Jobs/List'), question: () => ({ action: 'job.list', target: resource('job', { tenant, name: 'j' }) }) };
    const peer = { principal: principalFromSpiffeId(who as never), serial: '1', notBeforeMs: 0, notAfterMs: Infinity } as unknown as VerifiedPeer;
    return admit.admit(plan, peer, undefined).then(() => 'allowed', (error: BulkheadError) => `${error.code} ${error.safeMessage}`);
  };
}

beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] }));
afterEach(() => void vi.useRealTimers());

describe('denied control calls at another tenant', () => {
  it('are each in the log of who tried, and a few and a number in the victim’s', async () => {
    const logs = new Logs();
    const call = admission(logs);
    const answers = new Set<string>();
    for (let i = 0; i < 1_000; i++) answers.add(await call('globex'));
    expect([...answers]).toEqual([`DENIED ${DENIED_TEXT}`]);
    expect(logs.of('acme')).toHaveLength(1_000);
    expect(logs.of('globex')).toHaveLength(MAX_INTRUSIONS_TOLD);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(logs.of('globex')).toHaveLength(MAX_INTRUSIONS_TOLD + 1);
    expect(logs.of('globex').at(-1)).toMatchObject({ principal: EVE, count: 1_000 - MAX_INTRUSIONS_TOLD, allow: false, action: 'job.list', resource: '', detail: 'as many tries, the last by this principal' });
    // A new window.
    await call('globex');
    expect(logs.of('globex')).toHaveLength(MAX_INTRUSIONS_TOLD + 2);
    await vi.advanceTimersByTimeAsync(5_000);
    expect(logs.tries('globex')).toBe(1_001);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('of one tenant do not hide another’s', async () => {
    const logs = new Logs();
    const call = admission(logs);
    for (let i = 0; i < 500; i++) await call('globex');
    await call('globex', 'spiffe://cluster.test/tenant/initech/user/bob');
    expect(logs.of('globex').at(-1)?.principal).toBe('spiffe://cluster.test/tenant/initech/user/bob');
  });

  it('at names that nobody has fill no log of the cluster', async () => {
    const logs = new Logs();
    const call = admission(logs);
    for (let i = 0; i < 2_000; i++) await call(`nobody-${i}`);
    expect(logs.of('').length).toBeLessThanOrEqual(2 * MAX_INTRUSIONS_TOLD);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(logs.tries('')).toBe(2_000);
    expect(logs.of('').length).toBeLessThanOrEqual(2 * MAX_INTRUSIONS_TOLD + 1);
  });

  it.each([['the same name', () => 'globex', () => 'nobody'], ['after the names of nobody', (i: number) => (i % 20 === 19 ? 'globex' : `x-${i}`), (i: number) => (i % 20 === 19 ? 'nobody' : `x-${i}`)]])('do as many appends for a tenant that exists as for one that does not: %s', async (_name, there, missing) => {
    const appendsAfterEach = async (nameOf: (i: number) => string): Promise<number[]> => {
      const logs = new Logs();
      const call = admission(logs);
      const seen: number[] = [];
      for (let i = 0; i < 200; i++) {
        await call(nameOf(i));
        seen.push(logs.records.length);
      }
      return seen;
    };
    expect(await appendsAfterEach(there)).toEqual(await appendsAfterEach(missing));
  });

  it.each(['full', 'stuck'] as const)('get the same answer when the victim’s log is %s', async (how) => {
    const logs = new Logs();
    logs[how].add('globex');
    const call = admission(logs);
    for (let i = 0; i < 40; i++) expect(await call('globex')).toBe(await call('nobody'));
    expect(logs.of('acme')).toHaveLength(80);
    if (how === 'stuck') return;
    // As many as it could not take, once it can.
    for (let i = 0; i < 5; i++) await vi.advanceTimersByTimeAsync(1_000);
    expect(logs.of('globex')).toEqual([]);
    logs.full.clear();
    await vi.advanceTimersByTimeAsync(1_000);
    expect(logs.of('globex')).toHaveLength(1);
    expect(logs.tries('globex')).toBe(40);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('are refused when the own log is full, with what to do, and a neighbour’s text never comes', async () => {
    const logs = new Logs();
    logs.full.add('acme');
    const call = admission(logs);
    expect(await call('acme')).toBe('QUOTA_EXCEEDED the audit log of acme is full: export it and ask the operator');
    logs.full.add('globex');
    expect(await call('globex')).toContain('QUOTA_EXCEEDED the audit log of acme');
    logs.full.delete('acme');
    expect(await call('globex')).toBe(`DENIED ${DENIED_TEXT}`);
  });

  it('found out by a service after a look-up share the window and tell as little', async () => {
    const logs = new Logs();
    const context = { appendAudit: logs.append, head: { clock, tenants: { get: (t: string) => (EXISTING.has(t) ? {} : undefined) } } } as unknown as HeadContext;
    const call = { principal: principalFromSpiffeId(EVE as never), decision: { policyVersion: 1 }, method: 'm' } as unknown as CallContext;
    const work: number[][] = [[], []];
    for (let i = 0; i < 500; i++) {
      for (const [n, tenant] of ['globex', undefined].entries()) {
        const before = logs.records.length;
        await expect(deny(context, call, { tenant, action: 'job.read', kind: 'job', name: `job-${i}` }, 'wall')).rejects.toMatchObject({ code: 'DENIED', safeMessage: 'not found, or not permitted' });
        work[n]?.push(logs.records.length - before);
      }
    }
    expect(work[0]).toEqual(work[1]);
    expect(logs.of('acme')).toHaveLength(1_000);
    expect(logs.of('globex').length + logs.of('').length).toBe(MAX_INTRUSIONS_TOLD);
    await noticesOf(logs.append).settle();
    expect([logs.tries('globex'), logs.tries('')]).toEqual([500, 500]);
    expect(vi.getTimerCount()).toBe(0);
  });
});

it('a process that ends tells what it has counted', async () => {
  vi.useRealTimers();
  const logs = new Logs();
  const slow = async (log: string, record: AuditRecord): Promise<void> => {
    await sleep(5);
    await logs.append(log, record);
  };
  const notices = new OwnersNotices(slow);
  for (let i = 0; i < 100; i++) notices.tell('acme', 'globex', 'globex', NOBODY);
  await notices.settle();
  expect(logs.tries('globex')).toBe(100);
});

it('a process that ends does not wait for a log that never answers', async () => {
  const logs = new Logs();
  logs.stuck.add('globex');
  const notices = new OwnersNotices(logs.append);
  notices.tell('acme', 'globex', 'globex', NOBODY);
  const settled = notices.settle();
  await vi.advanceTimersByTimeAsync(5_000);
  await settled;
});
