/** Metrics of a real cluster as Prometheus scrapes them: by name of DNS, with a client certificate; who is shown what, and that it is recorded. */
import https from 'node:https';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { readFileSync, existsSync } from 'node:fs';
import { join } from 'node:path';
import { Metrics } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import { failure, TestCluster, until } from '../support/cluster.ts';
import { parseMetrics, type Family } from '../support/metrics-text.ts';
import { runInProcess } from './cli-in-process.ts';

const TEST_TIMEOUT_MS = 60_000;
let cluster: TestCluster;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 1, metrics: true, quota: { cpus: '2' } });
  await cluster.enrol({ tenant: 'acme', kind: 'service', name: 'prom', roles: ['monitor'] });
  for (const name of ['acme-dev', 'globex-dev']) {
    const driver = await cluster.connect(name);
    const one = driver.task(() => 1);
    await driver.get(Array.from({ length: 20 }, () => one()));
    await failure(driver.get(driver.task(() => {
      throw new Error('no');
    })()));
  }
  vi.stubEnv('BULKHEAD_PROFILE', cluster.profile('admin'));
  const issued = await runInProcess(['identity', 'issue', 'component', 'monitor', '--out', cluster.profile('monitor')]);
  vi.unstubAllEnvs();
  expect(issued.code, issued.err).toBe(0);
}, TEST_TIMEOUT_MS);
afterAll(() => cluster?.stop(), TEST_TIMEOUT_MS);

const head = (): string => cluster.local.head?.metricsAddress ?? '';
const raylet = (): string => cluster.local.metricsAddresses.get('raylet-1') ?? '';

/** As Prometheus does: files of a profile, `server_name`, and Node's own verification of chain and name. */
function scrape(address: string, profile: string | undefined, serverName: string, path = '/metrics', method = 'GET'): Promise<{ status: number; type: string; text: string }> {
  const file = (name: string): string => readFileSync(join(cluster.profile(profile ?? 'acme-dev'), name), 'utf8');
  const [host = '', port = ''] = address.split(':');
  return new Promise((resolve, reject) => {
    const request = https.request({ host, port, path, method, servername: serverName, agent: false, ca: file('bundle.pem'), ...(profile === undefined ? {} : { cert: file('svid.pem'), key: file('key.pem') }) }, (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (chunk: string) => (text += chunk)).on('end', () => resolve({ status: response.statusCode ?? 0, type: response.headers['content-type'] ?? '', text })).on('error', reject);
    });
    request.on('error', reject).end();
  });
}

async function metricsOf(address: string, profile: string, kind: 'head' | 'raylet', path?: string): Promise<Map<string, Family>> {
  const { status, type, text } = await scrape(address, profile, `${kind}.${cluster.trustDomain}`, path);
  expect(status, text).toBe(200);
  expect(type).toBe('text/plain; version=0.0.4; charset=utf-8');
  return parseMetrics(text);
}

const tenantsIn = (families: Map<string, Family>): string[] => [...new Set([...families.values()].flatMap((f) => f.samples.flatMap((s) => (s.labels['tenant'] === undefined ? [] : [s.labels['tenant']]))))].sort();
const valueOf = (families: Map<string, Family>, name: string, labels: Record<string, string>): number | undefined => families.get(name)?.samples.find((s) => Object.entries(labels).every(([k, v]) => s.labels[k] === v))?.value;

describe('the operator’s Prometheus', () => {
  it('is given every component and tenant, by an identity that may do nothing else', { timeout: TEST_TIMEOUT_MS }, async () => {
    const of = await metricsOf(raylet(), 'monitor', 'raylet');
    expect(tenantsIn(of)).toEqual(['acme', 'globex']);
    for (const tenant of ['acme', 'globex']) {
      expect(valueOf(of, 'bulkhead_calls_ended_total', { tenant, outcome: 'finished' })).toBe(20);
      expect(valueOf(of, 'bulkhead_calls_ended_total', { tenant, outcome: 'failed' })).toBe(1);
      // From the audit log: each of them was a decision.
      expect(valueOf(of, 'bulkhead_decisions_total', { tenant, action: 'task.submit', outcome: 'allow' })).toBe(21);
      expect(valueOf(of, 'bulkhead_quota_cpus', { tenant })).toBe(2);
      expect(of.get('bulkhead_call_run_seconds')?.samples.find((s) => s.name.endsWith('_count') && s.labels['tenant'] === tenant)?.value).toBe(21);
    }
    expect(valueOf(of, 'bulkhead_node_cpus', {})).toBe(2);
    expect(valueOf(of, 'process_open_fds', {})).toBeGreaterThan(5);
    const cluster2 = await metricsOf(head(), 'monitor', 'head');
    expect(tenantsIn(cluster2)).toEqual(['acme', 'globex']);
    expect(valueOf(cluster2, 'bulkhead_nodes', { state: 'alive' })).toBe(1);
    expect(valueOf(cluster2, 'bulkhead_tenants', { state: 'active' })).toBe(2);
    expect(tenantsIn(await metricsOf(raylet(), 'monitor', 'raylet', '/metrics?tenant=acme'))).toEqual(['acme']);
    // Nothing but numbers.
    vi.stubEnv('BULKHEAD_PROFILE', cluster.profile('monitor'));
    try {
      for (const line of ['status', 'tenant list', 'list nodes', 'list tasks --tenant acme', 'audit tail', 'pki show']) expect((await runInProcess(line.split(' '))).code, line).toBe(3);
      expect((await runInProcess(['metrics', '--json'])).out).toContain('bulkhead_tenants');
    } finally {
      vi.unstubAllEnvs();
    }
  });

  it('verifies the servers by names that only they have', { timeout: TEST_TIMEOUT_MS }, async () => {
    for (const [address, name] of [[head(), 'raylet'], [raylet(), 'head'], [raylet(), 'localhost']] as const) expect((await failure(scrape(address, 'monitor', name === 'localhost' ? name : `${name}.${cluster.trustDomain}`))).code).toBe('ERR_TLS_CERT_ALTNAME_INVALID');
    expect((await scrape(raylet(), 'monitor', `${cluster.node('raylet-1').nodeId}.raylet.${cluster.trustDomain}`)).status).toBe(200);
  });
});

describe('a tenant', () => {
  it('that is allowed is given its own series only, without being asked for a name', { timeout: TEST_TIMEOUT_MS }, async () => {
    for (const profile of ['acme-prom', 'acme-dev', 'acme-vic']) {
      const of = await metricsOf(raylet(), profile, 'raylet');
      expect(tenantsIn(of)).toEqual(['acme']);
      for (const family of of.values()) for (const sample of family.samples) expect(sample.labels['tenant']).toBe('acme');
      const text = (await scrape(head(), profile, `head.${cluster.trustDomain}`)).text;
      expect(text).not.toContain('globex');
      expect(tenantsIn(parseMetrics(text))).toEqual(['acme']);
    }
  });

  it('is refused what is another’s or the cluster’s in the same words as what nobody has, and the tries are recorded', { timeout: TEST_TIMEOUT_MS }, async () => {
    const ask = (tenant: string, profile = 'globex-dev'): Promise<{ status: number; text: string }> => scrape(raylet(), profile, `raylet.${cluster.trustDomain}`, `/metrics?tenant=${tenant}`);
    const answers = [await ask('acme'), await ask('nobody'), await ask('')];
    expect(answers.map(({ status, text }) => [status, text])).toEqual(answers.map(() => [403, expect.stringMatching(/^DENIED: not found, or not permitted/)]));
    expect(new Set(answers.map(({ text }) => text)).size).toBe(1);
    expect((await ask('Not%20a%20name')).status).toBe(400);
    // An auditor has no such right.
    expect((await ask('globex', 'globex-siem')).status).toBe(403);
    for (const service of [(await cluster.as('globex-dev')).on('raylet-1', Metrics), (await cluster.as('globex-dev')).to(Metrics)]) expect((await failure(service.read({ tenant: 'acme' }))).code).toBe('DENIED');
    vi.stubEnv('BULKHEAD_PROFILE', cluster.profile('acme-ana'));
    try {
      const { out } = await runInProcess(['audit', 'tail', '--json', '--last', '1000']);
      const records = out.trim().split('\n').map((line) => (JSON.parse(line) as { record: { action?: string; allow?: boolean; principal: string; detail: string } }).record).filter((r) => r.action === 'metrics.read');
      expect(records.some((r) => r.allow === true && r.principal.endsWith('/service/prom') && r.detail === 'bulkhead.v1.Metrics/Read')).toBe(true);
      expect(records.some((r) => r.allow === false && r.principal.endsWith('/globex/user/dev'))).toBe(true);
    } finally {
      vi.unstubAllEnvs();
    }
  });
});

describe('the listener', () => {
  it('answers nothing else, and not for ever', { timeout: TEST_TIMEOUT_MS }, async () => {
    const name = `raylet.${cluster.trustDomain}`;
    for (const [path, method] of [['/', 'GET'], ['/metrics', 'POST'], ['/metrics', 'DELETE'], ['/metrics/../../etc/passwd', 'GET'], ['/api/jobs/', 'GET']] as const) expect((await scrape(raylet(), 'monitor', name, path, method)).status, `${method} ${path}`).toBe(404);
    await expect(scrape(raylet(), undefined, name)).rejects.toThrow();
    const agent = new https.Agent({ keepAlive: true, maxSockets: 1 });
    const file = (of: string): string => readFileSync(join(cluster.profile('monitor'), of), 'utf8');
    const [host = '', port = ''] = raylet().split(':');
    const once = (): Promise<number> => new Promise((resolve, reject) => https.get({ host, port, path: '/metrics', servername: name, agent, ca: file('bundle.pem'), cert: file('svid.pem'), key: file('key.pem') }, (r) => r.resume().on('end', () => resolve(r.statusCode ?? 0))).on('error', reject));
    const statuses: number[] = [];
    for (let i = 0; i < 40; i++) statuses.push(await once());
    agent.destroy();
    expect(statuses[0]).toBe(200);
    expect(statuses).toContain(429);
  });

  it('lets a revoked monitor no further, and its certificate is renewed with the node’s identity', { timeout: TEST_TIMEOUT_MS }, async () => {
    const serial = async (): Promise<string> => new Promise((resolve, reject) => {
      const [host = '', port = ''] = raylet().split(':');
      const file = (of: string): string => readFileSync(join(cluster.profile('admin'), of), 'utf8');
      const request = https.get({ host, port, path: '/metrics', servername: `raylet.${cluster.trustDomain}`, agent: false, ca: file('bundle.pem'), cert: file('svid.pem'), key: file('key.pem') }, (r) => {
        const socket = r.socket as import('node:tls').TLSSocket;
        const certificate = socket.getPeerCertificate();
        // No identity: names of DNS only.
        expect(certificate.subjectaltname).toMatch(/^DNS:raylet\.[^,]+, DNS:[^,]+\.raylet\.[^,]+$/);
        r.resume().on('end', () => resolve(certificate.serialNumber));
      }).on('error', reject);
      request.end();
    });
    const before = await serial();
    process.kill(cluster.node('raylet-1').pid, 'SIGHUP');
    await until('another certificate is shown', async () => (await serial()) !== before);
    vi.stubEnv('BULKHEAD_PROFILE', cluster.profile('admin'));
    try {
      expect((await runInProcess(['pki', 'revoke', 'system/monitor'])).code).toBe(0);
      for (const name of ['head', 'admin', 'anything']) expect((await runInProcess(['identity', 'issue', 'component', name, '--out', join(cluster.directory, `no-${name}`)])).code).toBe(2);
    } finally {
      vi.unstubAllEnvs();
    }
    await until('it is refused', async () => scrape(raylet(), 'monitor', `raylet.${cluster.trustDomain}`).then(() => false, () => true));
    expect(existsSync(join(cluster.directory, 'no-head'))).toBe(false);
    expect(cluster.faults()).toEqual([]);
  });
});
