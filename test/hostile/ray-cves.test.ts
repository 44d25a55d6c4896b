/**
 * What has been done to Ray in public, done to this cluster: job submission without authentication (CVE-2023-48022), files of the host through log
 * and static end points (CVE-2023-6020, CVE-2023-6021), command injection through parameters (CVE-2023-6019), a browser as the attacker's
 * hands by rebinding and drive-by requests (CVE-2025-62593), the cluster's token stolen by a job.
 */
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Cluster as ClusterService, Identities, Jobs, Policies, Tenants } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { Inspection } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import type { Cluster } from '../../src/sdk/sdk.ts';
import { failure, TestCluster } from '../support/cluster.ts';
import { listeningSockets } from '../support/sockets.ts';

let cluster: TestCluster;
let driver: Cluster;
let ports: number[];
let owned: string;

beforeAll(async () => {
  cluster = await TestCluster.start({ raylets: 1 });
  owned = join(cluster.directory, 'owned');
  driver = await cluster.connect('acme-dev');
  const work = await driver.module<typeof import('../support/work.ts')>(new URL('../support/work.ts', import.meta.url));
  await driver.get(work.say('a line of acme'));
  ports = [...new Set(listeningSockets(cluster.pids()).map((s) => s.port))];
});
afterAll(() => cluster?.stop());

describe('CVE-2023-48022: jobs from anybody', () => {
  it('no port of the cluster takes a job, or anything, by HTTP', async () => {
    expect(ports.length).toBe(3);
    const body = JSON.stringify({ entrypoint: `touch ${owned}`, runtime_env: {}, metadata: {} });
    const tries = ports.flatMap((port) => ['http', 'https'].flatMap((scheme) => [['POST', '/api/jobs/', body], ['POST', '/api/job_agent/jobs/', body], ['GET', '/api/version', undefined], ['PUT', '/api/packages/gcs/x.zip', 'PK'], ['GET', '/', undefined]].map(
      ([method, path, content]) => failure(fetch(`${scheme}://127.0.0.1:${port}${path}`, { method: method as string, ...(content === undefined ? {} : { body: content }), signal: AbortSignal.timeout(10_000) })),
    )));
    for (const error of await Promise.all(tries)) expect(error.message).toMatch(/fetch failed|terminated/);
    expect(existsSync(owned)).toBe(false);
    expect((await (await cluster.as('acme-ana')).to(Jobs).list({ tenant: 'acme' })).jobs.map((j) => j.jobId)).toEqual([driver.jobId]);
  });
});

describe('CVE-2025-62593: a browser’s requests', () => {
  it('with the host names and headers of an attacker’s page they reach nothing', async () => {
    const headers = { 'content-type': 'text/plain', 'user-agent': 'Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0', origin: 'http://rebound.example', referer: 'http://rebound.example/' };
    const requests = [['DELETE', `/api/jobs/${driver.jobId}`], ['POST', `/api/jobs/${driver.jobId}/stop`], ['POST', '/api/jobs/'], ['OPTIONS', '/api/jobs/'], ['HEAD', '/']] as const;
    const tries = ports.flatMap((port) => requests.map(([method, path]) => failure(fetch(`http://localhost.:${port}${path}`, {
      method, headers, ...(method === 'POST' ? { body: `{"entrypoint":"touch ${owned}"}` } : {}), signal: AbortSignal.timeout(10_000),
    }))));
    for (const error of await Promise.all(tries)) expect(error.message).toMatch(/fetch failed|terminated/);
    expect(existsSync(owned)).toBe(false);
    expect((await (await cluster.as('acme-ana')).to(Jobs).get({ jobId: driver.jobId })).status).toBe('RUNNING');
  });
});

describe('CVE-2023-6020 and -6021: files of the host by a name', () => {
  const up = '../'.repeat(12);
  const paths = (): string[] => [
    `${up}etc/passwd`, '/etc/passwd', `${up}${cluster.directory.slice(1)}/decoy`, 'file:///etc/passwd', '..%2f..%2f..%2fetc%2fpasswd', '..\\..\\etc\\passwd', './.', '..', '.', '', '\0', `${driver.jobId}\0.jsonl`, `${driver.jobId}/../${driver.jobId}`,
    `./${driver.jobId}`, `${driver.jobId}.jsonl`, `${driver.jobId} `, driver.jobId.toUpperCase(), `${up}proc/self/environ`, '/proc/self/root/etc/shadow', 'x'.repeat(10_000), '\u2025/\u2025/etc/passwd', `../../acme/${driver.jobId}`, '*', `${driver.jobId}\n`,
  ];
  const MARK = 'decoy-of-the-host';

  async function read(tenant: string, kind: string, id: string, as = 'acme-ana'): Promise<string> {
    let text = '';
    for await (const chunk of (await cluster.as(as)).on('raylet-1', Inspection).readLog({ tenant, kind, id }, { timeoutMs: 10_000 })) text += chunk.source + new TextDecoder().decode(chunk.text);
    return text;
  }

  it('logs are read by ids, and whatever else is asked for, no other file is', async () => {
    writeFileSync(join(cluster.directory, 'decoy'), MARK);
    writeFileSync(join(cluster.directory, 'decoy.jsonl'), `${JSON.stringify({ text: MARK })}\n`);
    expect(await read('acme', 'job', driver.jobId)).toContain('a line of acme');
    for (const id of [...paths(), `${up}${cluster.directory.slice(1)}/decoy`]) {
      for (const kind of ['job', 'task', 'actor']) {
        let got: string;
        try {
          got = await read('acme', kind, id);
        } catch (thrown) {
          const { code, message } = thrown as { code?: string; message: string };
          expect(['INVALID_ARGUMENT', 'DENIED'], `${kind} ${id}`).toContain(code);
          expect(message).not.toMatch(/ENOENT|EISDIR|EACCES|ENOTDIR|ENAMETOOLONG/);
          continue;
        }
        expect(got, `${kind} ${id}`).toBe('');
      }
    }
  });

  it('a tenant is a name too, and no path', async () => {
    for (const tenant of [...paths(), '../acme', 'acme/../globex', 'acme/', 'ACME']) {
      const error = await failure(read(tenant, 'job', driver.jobId).then((text) => (text === '' ? Promise.reject(Object.assign(new Error('nothing'), { code: 'DENIED' })) : text)));
      expect(['DENIED', 'INVALID_ARGUMENT'], tenant).toContain(error.code);
    }
  });

  it('the other tenant’s logs are not there for an own job’s directory, or by its id', async () => {
    expect((await failure(read('acme', 'job', driver.jobId, 'globex-ana'))).code).toBe('DENIED');
    expect(await read('globex', 'job', driver.jobId, 'globex-ana')).toBe('');
    expect(await read('globex', 'job', driver.jobId.replace(/.$/, '0'), 'globex-ana')).toBe('');
  });

  it('entities, policies and nodes have no names that are paths', async () => {
    const ana = await cluster.as('acme-ana');
    const content = new TextEncoder().encode('version: 1\ntenant: acme\nroles: {}\n');
    mkdirSync(join(cluster.directory, 'planted'), { recursive: true });
    for (const path of paths()) {
      expect(['INVALID_ARGUMENT', 'DENIED']).toContain((await failure(ana.on('raylet-1', Inspection).get({ kind: 'tasks', tenant: 'acme', id: path }))).code);
      expect((await failure((await cluster.as('admin')).to(Identities).createJoinToken({ nodeId: path === '' ? '..' : path }))).code).toBe('INVALID_ARGUMENT');
      expect(['INVALID_ARGUMENT', 'DENIED']).toContain((await failure((await cluster.as('admin')).to(Tenants).create({ name: path, quota: {} }))).code);
    }
    const error = await failure(ana.to(Policies).apply({ tenant: 'acme', fileName: `${up}${cluster.directory.slice(1)}/planted/x.yaml`, content }));
    expect(error.code).toBe('INVALID_ARGUMENT');
    expect(existsSync(join(cluster.directory, 'planted', 'x.yaml'))).toBe(false);
    rmSync(join(cluster.directory, 'planted'), { recursive: true });
  });
});

describe('CVE-2023-6019: commands in parameters', () => {
  it('no parameter is a command: a shell’s characters are text, or refused', async () => {
    const words = [`; touch ${owned}`, `$(touch ${owned})`, `\`touch ${owned}\``, `| touch ${owned}`, `x\ntouch ${owned}`];
    const ana = await cluster.as('acme-ana');
    for (const word of words) {
      await failure(ana.on('raylet-1', Inspection).get({ kind: 'workers', tenant: 'acme', id: word }));
      await failure(ana.on('raylet-1', Inspection).list({ kind: word, tenant: 'acme' }));
      await failure(Promise.resolve().then(() => driver.get(driver.task(() => 1, { name: word })())).then(() => Promise.reject(new Error('it ran, under a name that is only a name'))));
    }
    expect(existsSync(owned)).toBe(false);
  });
});

describe('a token stolen from a job', () => {
  it('there is none: what a task can read and say opens no call that its job has not', async () => {
    const texts = await driver.get(driver.task(() => {
      const seen = new Set<unknown>();
      const texts: string[] = [];
      const walk = (value: unknown, depth: number): void => {
        if (typeof value === 'string') texts.push(value);
        if ((typeof value !== 'object' && typeof value !== 'function') || value === null || seen.has(value) || depth > 5) return;
        seen.add(value);
        for (const key of Reflect.ownKeys(value)) {
          try {
            walk((value as Record<PropertyKey, unknown>)[key], depth + 1);
          } catch {
            // A getter that wants another `this`.
          }
        }
        walk(Object.getPrototypeOf(value), depth + 1);
      };
      walk(globalThis, 0);
      return texts.filter((t) => t.length > 12).slice(0, 5_000);
    })());
    expect(texts.length).toBeGreaterThan(0);
    for (const text of texts) expect(text).not.toMatch(/eyJ|PRIVATE KEY|BEGIN CERT|127\.0\.0\.1|spiffe:\/\/[^ ]*\/(?:node|system)\//);
  });

  it('and a user’s own certificate is no administrator’s', async () => {
    const dev = await cluster.as('acme-dev');
    for (const call of [
      () => dev.to(Tenants).list({}), () => dev.to(Tenants).delete({ tenant: 'globex' }), () => dev.to(Tenants).delete({ tenant: 'acme' }), () => dev.to(Identities).createJoinToken({ nodeId: '' }), () => dev.to(Identities).rotateAuthority({}),
      () => dev.to(Identities).showPki({}), () => dev.to(ClusterService).status({}), () => dev.on('raylet-1', Inspection).doctor({}), () => dev.to(Policies).apply({ tenant: '', fileName: 'x.yaml', content: new Uint8Array() }),
    ]) expect((await failure(call())).code).toBe('DENIED');
  });
});

it('the cluster works as before, and nothing broke inside', async () => {
  expect(await driver.get(driver.task((a: number) => a + 1)(1))).toBe(2);
  expect(cluster.faults()).toEqual([]);
});
