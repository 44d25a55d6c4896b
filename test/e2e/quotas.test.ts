/** Projects of a tenant on a real cluster: their administrator divides, jobs count, what is lent comes back; and what strangers and odd values get. */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { Sessions, Tenants } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { Inspection } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import { read } from '../source-tree.ts';
import { failure, NODE, TestCluster, until } from '../support/cluster.ts';
import { runInProcess, type CommandResult } from './cli-in-process.ts';

type Work = typeof import('../support/work.ts');
const WORK = new URL('../support/work.ts', import.meta.url);
const TEST_TIMEOUT_MS = 90_000;

let cluster: TestCluster;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 1, cpus: 2 });
}, TEST_TIMEOUT_MS);
afterAll(() => cluster?.stop(), TEST_TIMEOUT_MS);

async function run(line: string, profile = 'acme-ana'): Promise<CommandResult> {
  vi.stubEnv('BULKHEAD_PROFILE', cluster.profile(profile));
  try {
    return await runInProcess(line.split(' '));
  } finally {
    vi.unstubAllEnvs();
  }
}

describe('a tenant’s administrator', () => {
  it('divides the tenant among projects, which developers, other tenants and the cluster’s administrator cannot', async () => {
    expect(await run('tenant quota acme/etl cpus=1,cpus-lend=1')).toMatchObject({ code: 0, out: expect.stringContaining('etl/cpus-lend=1') as string });
    expect((await run('tenant quota acme/bi cpus=1,cpus-borrow=1')).code).toBe(0);
    expect((await run('tenant quota acme/reports cpus=1,priority=10')).code).toBe(0);
    for (const profile of ['acme-dev', 'globex-ana', 'admin']) {
      const { code, err } = await run('tenant quota acme/etl cpus=2', profile);
      expect([code, err], profile).toEqual([3, expect.stringContaining('not permitted')]);
    }
    expect((await run('tenant show acme')).out).toContain('bi/cpus-borrow=1');
    // Quotas of the tenant itself stay the cluster's administrator's.
    expect((await run('tenant quota acme cpus=100')).code).toBe(3);
    expect((await run('audit tail --last 50')).out).toContain('project.quota-set');
  });

  it.each([
    'cpus=-1', 'cpus=1e99', 'cpus=NaN', 'cpus=Infinity', 'cpus=0x10', 'memory=99999999999999999999', 'memory=1PiB', 'tasks=1.5', 'tasks=-0', 'calls=1e3', 'calls=99999999', 'priority=101', 'priority=-1', 'cpus=', 'gpus=1', '__proto__=1', 'constructor=1', 'budget-calls=5', 'objects=١٠',
  ])('gets no %s', async (quota) => {
    const { code, err } = await run(`tenant quota acme/etl ${quota}`);
    expect([code, err]).toEqual([2, expect.stringMatching(/not valid|not known|not a|form|give|name=value|k=v/)]);
  });

  it.each(['Etl', 'ｅｔｌ', 'еtl', 'etl\u200b', '../etl', 'etl/x', '', '-etl', 'etl-', 'a'.repeat(41), '__proto__', 'e tl'])('makes no project %j', async (project) => {
    const ana = (await cluster.as('acme-ana')).to(Tenants);
    expect((await failure(ana.setProjectQuota({ tenant: 'acme', project, quota: { cpus: '1' } }))).code).toBe('INVALID_ARGUMENT');
    // As a name in a credential: refused before there is one.
    if (project !== '') expect((await failure((await cluster.as('acme-dev')).to(Sessions).open({ jobName: 'x', project }))).code).toBe('INVALID_ARGUMENT');
  });

  it('has room for so many projects and no more', async () => {
    const ana = (await cluster.as('globex-ana')).to(Tenants);
    for (let i = 0; i < 64; i++) await ana.setProjectQuota({ tenant: 'globex', project: `p${i}`, quota: { cpus: '1' } });
    expect((await failure(ana.setProjectQuota({ tenant: 'globex', project: 'p64', quota: { cpus: '1' } }))).code).toBe('RESOURCE_EXHAUSTED');
    for (let i = 0; i < 64; i++) await ana.setProjectQuota({ tenant: 'globex', project: `p${i}`, remove: ['cpus'] });
  }, TEST_TIMEOUT_MS);
});

describe('a job', () => {
  it('is of a project that its tenant has; another tenant’s is as none', async () => {
    const [theirs, nobodys] = await Promise.all(['etl', 'nowhere'].map(async (project) => failure(cluster.connect('globex-dev', { project }))));
    expect(theirs?.code).toBe('INVALID_ARGUMENT');
    expect(theirs?.message.replaceAll('etl', '<p>')).toBe(nobodys?.message.replaceAll('nowhere', '<p>'));
    const driver = await cluster.connect('acme-dev', { project: 'etl' });
    expect((await failure(cluster.connect('acme-dev', { job: driver.jobId, project: 'bi' }))).message).toContain('of another project');
    await (await cluster.connect('acme-dev', { job: driver.jobId })).close();
    await driver.close();
  });

  it('borrows what is not used, says why it waits, and gives back what its owner asks for', { timeout: TEST_TIMEOUT_MS }, async () => {
    const bi = await cluster.connect('acme-dev', { project: 'bi' });
    const etl = await cluster.connect('acme-dev', { project: 'etl' });
    const [slow, quick] = [(await bi.module<Work>(WORK)).sleep, (await etl.module<Work>(WORK)).add];
    const refs = Array.from({ length: 3 }, () => slow(6_000));
    const dev = (await cluster.as('acme-dev')).on('raylet-1', Inspection);
    const listed = async (): Promise<string[]> => (await dev.list({ kind: 'tasks', tenant: 'acme' })).entities.map((e) => JSON.stringify(e));
    await until('two run and one waits, and says so', async () => (await listed()).some((e) => e.includes('waits: project bi uses 1 of 1 cpus and 1 of 1 that it may borrow')));
    expect(await etl.get(quick(1, 2))).toBe(3);
    await until('what was stopped is on record', async () => (await run('audit tail --last 50')).out.includes('task.preempted'));
    // It went on, as if nothing had been, though it may not be tried again more than it may.
    expect(await bi.get(refs)).toHaveLength(3);
    await Promise.all([bi.close(), etl.close()]);
  });

  it('the example of docs/quotas.md prints what the page shows, and the page quotes it as it is', { timeout: TEST_TIMEOUT_MS }, async () => {
    const page = read('docs/quotas.md');
    expect(/<!-- examples\/quotas\/quotas\.ts -->\n```ts\n([\s\S]*?)```/.exec(page)?.[1]).toBe(read('examples/quotas/quotas.ts'));
    const example = fileURLToPath(new URL('../../examples/quotas/quotas.ts', import.meta.url));
    const { stdout } = await promisify(execFile)(NODE, [example], { env: { PATH: process.env['PATH'] ?? '', BULKHEAD_PROFILE: cluster.profile('acme-dev') }, timeout: 60_000 });
    expect(stdout).toBe(/```text\n(urgent done[\s\S]*?)```/.exec(page)?.[1]);
  });
});
