/** `bulkhead usage` on a real cluster of two nodes: its sums are those of the exported audit logs, each call once, and nobody's but one's own. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import { CALL_ACTIONS, FORWARDED, parseUsage, USAGE_EVENT } from '../../src/base/usage-record.ts';
import { Tenants } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { failure, TestCluster, until } from '../support/cluster.ts';
import { runInProcess, type CommandResult } from './cli-in-process.ts';

const TEST_TIMEOUT_MS = 150_000;
let cluster: TestCluster;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 2, cpus: 1 });
}, TEST_TIMEOUT_MS);
afterAll(() => cluster?.stop(), TEST_TIMEOUT_MS);

async function run(line: string, profile: string): Promise<CommandResult> {
  vi.stubEnv('BULKHEAD_PROFILE', cluster.profile(profile));
  try {
    return await runInProcess(line.split(' '));
  } finally {
    vi.unstubAllEnvs();
  }
}

interface Answer {
  readonly totals: readonly { readonly sku: string; readonly quantity: string; readonly unit: string }[];
  readonly hours: readonly { readonly nodeId: string; readonly cpuMicros: number; readonly bytesIn: number; readonly calls: Record<string, number> }[];
}

it('sums of usage are sums of calls, and both are the audit log’s', { timeout: TEST_TIMEOUT_MS }, async () => {
  const driver = await cluster.connect('acme-dev');
  const spin = driver.task((ms: number) => {
    const end = Date.now() + ms;
    let n = 0;
    // The clock stands between awaits: so it is counted.
    for (let i = 0; i < 30_000_000 && Date.now() < end; i++) n += i & 1;
    return n;
  });
  const refs = Array.from({ length: 12 }, () => spin(300));
  await driver.get(refs);
  const work = await driver.module<typeof import('../support/work.ts')>(join(import.meta.dirname, '..', 'support', 'work.ts'));
  const counter = await work.Counter.create(0);
  await driver.get(Array.from({ length: 5 }, () => counter.add(1)));
  await driver.get(work.fibonacci(3));
  await driver.put(new Uint8Array(3_000_000));
  const other = await cluster.connect('globex-dev');
  await other.get(other.task(() => 1)());
  await driver.close();

  const usage = async (profile = 'acme-siem', more = ''): Promise<Answer> => {
    const { code, out, err } = await run(`usage --json${more}`, profile);
    expect(code, err).toBe(0);
    return JSON.parse(out) as Answer;
  };
  const of = (answer: Answer, sku: string): number => Number(answer.totals.find((t) => t.sku === sku)?.quantity);
  // Recorded every ten seconds.
  await until('what was used is recorded', async () => of(await usage(), 'cpu') > 0.2 && of(await usage(), 'bytes-in') > 3_000_000, 40_000);
  const answer = await usage();
  // 12, and fib(3) with its four, each once although some ran on the other node.
  expect(of(answer, 'tasks')).toBe(12 + 5);
  expect(of(answer, 'actor-creations')).toBe(1);
  expect(of(answer, 'actor-calls')).toBe(5);
  expect(of(answer, 'memory')).toBeGreaterThan(0);

  // The logs as anyone can verify them, summed by other means.
  const out = join(cluster.directory, 'export');
  const exported = await run(`audit export -o ${out} --json`, 'acme-siem');
  expect(exported.code, exported.err).toBe(0);
  expect((await run(`audit verify ${out}`, 'acme-siem')).code).toBe(0);
  const { logs } = JSON.parse(exported.out) as { logs: { origin: string; directory: string }[] };
  expect(logs.filter((l) => l.origin.includes('/node/')).length).toBe(2);
  const records = logs.flatMap(({ directory }) => readFileSync(join(out, directory, 'records.jsonl'), 'utf8').trim().split('\n').filter((l) => l !== '').map((l) => JSON.parse(l) as { type: string; allow?: boolean; action?: string; event?: string; count?: number; detail: string }));
  const calls = new Map<string, number>();
  let forwarded = 0;
  let cpuMicros = 0;
  for (const r of records) {
    if (r.type === 'decision' && r.allow === true && CALL_ACTIONS.includes(r.action ?? '')) {
      if (r.detail.endsWith(FORWARDED)) forwarded += r.count ?? 0;
      else calls.set(r.action ?? '', (calls.get(r.action ?? '') ?? 0) + (r.count ?? 0));
    } else if (r.event === USAGE_EVENT) cpuMicros += parseUsage(r.detail)?.cpuMicros ?? 0;
  }
  expect(Object.fromEntries(calls)).toEqual({ 'task.submit': 17, 'actor.create': 1, 'actor.call': 5 });
  // Some did run on the other node, and were decided there too.
  expect(forwarded).toBeGreaterThan(0);
  const later = await usage();
  expect(later.hours.reduce((n, h) => n + h.cpuMicros, 0)).toBeGreaterThanOrEqual(cpuMicros);

  const csv = await run('usage --csv', 'acme-siem');
  expect(csv.out).toMatch(/^BilledCost,[^\r]*\r\n0,/);
  expect(csv.out).not.toContain('globex');
  expect(csv.out.match(/,tasks,/g)?.length).toBeGreaterThan(0);
  expect(of(await usage('acme-siem', ' --to 2020-01-01 --from 2019-01-01'), 'tasks')).toBe(0);
  // The administrator may count; another tenant, or who has no such right, may not.
  expect(of(await usage('admin', ' --tenant globex'), 'tasks')).toBe(1);
  for (const [line, profile] of [['usage --tenant acme', 'globex-siem'], ['usage --tenant nobody', 'globex-siem'], ['usage', 'acme-dev']] as const) expect((await run(line, profile)).code, line).toBe(3);
  // Nor is a name that nobody has a tenant that used nothing.
  for (const line of ['usage --tenant nosuch', 'usage --tenant NO_NAME', 'usage --csv --tenant nosuch']) expect(await run(line, 'admin'), line).toMatchObject({ code: 3, out: '', err: expect.stringMatching(/there is no tenant 'no/i) });
  expect((await run('usage --csv --json', 'acme-siem')).code).toBe(2);
  expect(cluster.faults()).toEqual([]);
});

it('a budget is a hard stop for new calls on every node, after a restart too; typed, on record, and nobody else’s', { timeout: TEST_TIMEOUT_MS }, async () => {
  const admin = await cluster.as('admin');
  await admin.to(Tenants).create({ name: 'poor', quota: { 'budget-calls': '20' } });
  await admin.to(Tenants).create({ name: 'thrifty', quota: { 'budget-cpu-seconds': '0.1' } });
  for (const quota of [{ 'budget-calls': '-1' }, { 'budget-calls': 'many' }, { 'budget-cats': '1' }]) expect((await failure(admin.to(Tenants).create({ name: 'bad', quota: quota as Record<string, string> }))).code).toBe('INVALID_ARGUMENT');
  for (const tenant of ['poor', 'thrifty']) await cluster.enrol({ tenant, name: 'dev', roles: ['tenant-admin'] });
  await cluster.settled();
  const first = await cluster.connect('poor-dev');
  const one = first.task(() => 1);
  const outcomes = await Promise.allSettled(Array.from({ length: 30 }, () => first.get(one())));
  expect(outcomes.filter((o) => o.status === 'fulfilled').length).toBe(20);
  const refused = outcomes.flatMap((o) => (o.status === 'rejected' ? [o.reason as { code: string; safeMessage: string }] : []));
  expect(new Set(refused.map((r) => r.code))).toEqual(new Set(['QUOTA_EXCEEDED']));
  expect(refused[0]?.safeMessage).toMatch(/budget of 20 calls/);
  // The head has heard of it, and told all nodes.
  await until('the tenant is over its budget', async () => (await admin.to(Tenants).show({ tenant: 'poor' })).overBudget !== '');
  for (let i = 0; i < 4; i++) {
    const driver = await cluster.connect('poor-dev');
    expect((await failure(driver.get(driver.task(() => 1)()))).code).toBe('QUOTA_EXCEEDED');
    await driver.close();
  }
  const { out } = await run('audit tail --json --last 1000', 'poor-dev');
  const records = out.trim().split('\n').map((line) => (JSON.parse(line) as { record: { action?: string; allow?: boolean; rule?: string; event?: string } }).record);
  expect(records.filter((r) => r.action === 'task.submit' && r.allow === false && r.rule === 'budget').length).toBe(10 + 4);
  expect(records.some((r) => r.event === 'budget.exceeded')).toBe(true);
  expect((await run('tenant list', 'admin')).out).toMatch(/poor .*over budget/);
  // More is given, and taken away again: in force on every node.
  expect((await run('tenant quota poor budget-calls=1000', 'poor-dev')).code).toBe(3);
  expect((await run('tenant quota poor budget-cats=1', 'admin')).code).toBe(2);
  expect((await run('tenant quota poor', 'admin')).code).toBe(2);
  expect((await run('tenant quota poor budget-calls=1000', 'admin')).out).not.toMatch('over budget');
  await until('it may call again', async () => first.get(first.task(() => 1)()).then((n) => n === 1, () => false));
  expect((await run('tenant quota poor --remove budget-calls --json', 'admin')).out).toMatch(/"quota":\{\}/);
  expect((await run('tenant quota poor budget-calls=20', 'admin')).code).toBe(0);
  await until('and no more', async () => first.get(first.task(() => 1)()).then(() => false, (e: { code?: string }) => e.code === 'QUOTA_EXCEEDED'));
  await first.close();

  // CPU time: measured where it is spent, summed at the head.
  const spinner = await cluster.connect('thrifty-dev');
  const work = await spinner.module<typeof import('../support/work.ts')>(join(import.meta.dirname, '..', 'support', 'work.ts'));
  // However little of a busy machine it gets: until it is told to stop.
  const codes: string[] = [];
  await until('its time is used up', async () => {
    codes.push((await failure(spinner.get(work.spin.options({ cpuTimeMs: 100, timeoutMs: 3_000 })()))).code ?? '');
    return codes.at(-1) === 'QUOTA_EXCEEDED';
  }, 60_000);
  expect(codes[0]).not.toBe('QUOTA_EXCEEDED');
  expect((await admin.to(Tenants).show({ tenant: 'thrifty' })).overBudget).toMatch('CPU-seconds');
  await spinner.close();

  const other = await cluster.connect('acme-dev');
  expect(await other.get(other.task(() => 1)())).toBe(1);
  await other.close();

  // Where the month stood is in the log.
  const home = cluster.nodes.map((n) => n.name);
  for (const name of home) {
    await cluster.kill(name, 'SIGTERM');
    await cluster.restart(name);
  }
  await cluster.settled();
  await until('it is refused as before', async () => {
    const driver = await cluster.connect('poor-dev');
    try {
      return (await failure(driver.get(driver.task(() => 1)()))).code === 'QUOTA_EXCEEDED';
    } finally {
      await driver.close();
    }
  });
  await cluster.kill('head');
  await cluster.restart('head');
  await cluster.settled();
  await until('a new head knows it too', async () => (await (await cluster.as('admin')).to(Tenants).show({ tenant: 'poor' }).catch(() => ({ overBudget: '' }))).overBudget !== '');
});
