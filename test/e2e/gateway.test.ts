/**
 * The gateway, as Ray's Jobs API: requests as Ray's client makes them (the same paths, bodies and answers, read from its package), and where that package is installed, the real `ray job` command line
 * and `JobSubmissionClient`.
 */
import { execFileSync, spawn } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { findRay } from '../../src/cli/ray-package.ts';
import { Cluster as ClusterService, Identities, Jobs, Tokens } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { until, TestCluster } from '../support/cluster.ts';
import { ask, caFile, tail, tokenOf, zipOf, type Answer } from '../support/gateway.ts';
import { testPython } from '../support/python.ts';

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 180_000, hookTimeout: 120_000 });

const ROOT = join(import.meta.dirname, '../..');
const python = testPython();
/** Its programs, or why they are not tried. */
function ray26(): { readonly bin: string } | { readonly missing: string } {
  try {
    return { bin: findRay() };
  } catch (thrown) {
    return { missing: (thrown as Error).message };
  }
}
const found = ray26();
/** Each call of its command line takes seconds to load. */
const RAY_TEST_TIMEOUT_MS = 300_000;
const TERMINAL = ['SUCCEEDED', 'FAILED', 'STOPPED'];

if ('missing' in found) {
  test(`without it: ${found.missing}`, () => {
    const said = execFileSync(join(ROOT, 'node_modules/.bin/node'), [join(ROOT, 'bin/bulkhead.js'), 'doctor', '--local', '--json'], { encoding: 'utf8', timeout: 60_000 });
    expect((JSON.parse(said) as { machine: { ray: string } }).machine.ray).toBe(found.missing);
  });
}

// Where gVisor is missing, python.test.ts compares the reason with what doctor prints.
describe.runIf('interpreter' in python)('jobs by HTTP', () => {
  let cluster: TestCluster;
  let ana: string;
  let eve: string;
  const json = (answer: Answer): unknown => JSON.parse(answer.text) as unknown;
  const submit = async (token: string, job: object): Promise<string> => {
    const answer = await ask(cluster, 'POST', '/api/jobs/', { token, json: job });
    expect(answer.status, answer.text).toBe(200);
    return (json(answer) as { submission_id: string }).submission_id;
  };
  const details = async (token: string, id: string): Promise<Record<string, unknown>> => json(await ask(cluster, 'GET', `/api/jobs/${id}`, { token })) as Record<string, unknown>;
  const ended = async (token: string, id: string): Promise<Record<string, unknown>> => {
    await until(`job ${id} ended`, async () => TERMINAL.includes((await details(token, id))['status'] as string), 60_000);
    return details(token, id);
  };

  beforeAll(async () => {
    if (!('interpreter' in python)) return;
    cluster = await TestCluster.start({ cpus: 2, python: python.interpreter, gateway: true });
    [ana, eve] = await Promise.all([tokenOf(cluster, 'acme-ana'), tokenOf(cluster, 'globex-dev')]);
  });

  afterAll(async () => {
    const faults = cluster.faults();
    await cluster.stop();
    expect(faults).toEqual([]);
  });

  test('a job from upload to deletion, as Ray’s client asks for it', async () => {
    expect(json(await ask(cluster, 'GET', '/api/version', { token: ana }))).toMatchObject({ ray_version: '2.60.0' });
    expect((await (await cluster.as('admin')).to(ClusterService).status({})).gateway).toBe(cluster.local.gatewayUrl);
    const archive = zipOf([{ name: 'script.py', bytes: Buffer.from('import sys, os\nimport bulkhead.ray as ray\nfrom lib import twice\nray.init()\nf = ray.remote(twice)\nprint("got", ray.get(f.remote(21)), sys.argv[1:], len(os.environ["KEY"]))\nsys.exit(int(sys.argv[1]))\n') }, { name: 'lib.py', bytes: Buffer.from('def twice(n): return 2 * n\n') }]);
    const uri = '/api/packages/gcs/_ray_pkg_0123456789abcdef.zip';
    expect((await ask(cluster, 'GET', uri, { token: ana })).status).toBe(404);
    expect((await ask(cluster, 'PUT', uri, { token: ana, body: archive })).status).toBe(200);
    expect((await ask(cluster, 'GET', uri, { token: ana })).status).toBe(200);
    // Its uploader's own: the same name means nothing to anybody else.
    expect((await ask(cluster, 'GET', uri, { token: eve })).status).toBe(404);
    const id = await submit(ana, { entrypoint: 'python script.py 0 "two words"', submission_id: 'raysubmit_one', runtime_env: { working_dir: 'gcs://_ray_pkg_0123456789abcdef.zip', env_vars: { KEY: 'hidden-value' } }, metadata: { team: 'blue' } });
    expect(id).toBe('raysubmit_one');
    const followed = tail(cluster, `/api/jobs/${id}/logs/tail`, ana);
    expect(await ended(ana, id)).toMatchObject({ type: 'SUBMISSION', submission_id: id, status: 'SUCCEEDED', metadata: { team: 'blue' }, driver_exit_code: 0, entrypoint: 'python script.py 0 "two words"', runtime_env: { env_vars: { KEY: '(hidden)' } } });
    const line = "got 42 ['0', 'two words'] 12\n";
    expect(await followed).toEqual({ text: line, code: 1000, refused: '' });
    expect(json(await ask(cluster, 'GET', `/api/jobs/${id}/logs`, { token: ana }))).toEqual({ logs: line });
    expect((json(await ask(cluster, 'GET', '/api/jobs/', { token: ana })) as { submission_id: string }[]).map((j) => j.submission_id)).toEqual([id]);
    expect((await ask(cluster, 'POST', '/api/jobs/', { token: ana, json: { entrypoint: 'python x.py', submission_id: id } })).status).toBe(400);
    // The head knows it as a job of hers, like any other.
    expect((await (await cluster.as('acme-ana')).to(Jobs).list({ tenant: 'acme' })).jobs.find((j) => j.name === id)).toMatchObject({ status: 'SUCCEEDED', submitter: expect.stringMatching(/\/tenant\/acme\/user\/ana$/) });
    expect(json(await ask(cluster, 'POST', `/api/jobs/${id}/stop`, { token: ana }))).toEqual({ stopped: false });
    expect(json(await ask(cluster, 'DELETE', `/api/jobs/${id}`, { token: ana }))).toEqual({ deleted: true });
    expect((await ask(cluster, 'GET', `/api/jobs/${id}`, { token: ana })).status).toBe(404);
  });

  test('an exit code, a stop, and what is not supported, by its name', async () => {
    const failed = await submit(ana, { entrypoint: 'python -c "raise SystemExit(3)"' });
    expect(await ended(ana, failed)).toMatchObject({ status: 'FAILED', message: 'exit code 3', driver_exit_code: 3 });
    const slow = await submit(ana, { entrypoint: 'python -c "import time; print(1, flush=True); time.sleep(600)"' });
    await until('the job has begun', async () => (json(await ask(cluster, 'GET', `/api/jobs/${slow}/logs`, { token: ana })) as { logs: string }).logs === '1\n', 60_000);
    expect((await ask(cluster, 'DELETE', `/api/jobs/${slow}`, { token: ana })).status).toBe(400);
    expect(json(await ask(cluster, 'POST', `/api/jobs/${slow}/stop`, { token: ana }))).toEqual({ stopped: true });
    expect(await details(ana, slow)).toMatchObject({ status: 'STOPPED' });
    for (const [job, why] of [
      [{ entrypoint: 'echo hello' }, 'does not start with python'], [{ entrypoint: 'python a.py && rm -rf /' }, "'&' needs a shell"], [{ entrypoint: 'python -X dev a.py' }, 'the option -X'],
      [{ entrypoint: 'python a.py', runtime_env: { conda: ['requests'] } }, 'the option conda is not supported'], [{ entrypoint: 'python a.py', runtime_env: { pip: ['requests @ https://evil.example/r.whl'] } }, 'is not a package by its name'], [{ entrypoint: 'python a.py', runtime_env: { working_dir: 'https://evil.example/a.zip' } }, 'must be a package that was uploaded'],
      [{ entrypoint: 'python a.py', runtime_env: { working_dir: 'gcs://_ray_pkg_other.zip' } }, 'is not here'], [{ entrypoint: 'python a.py', entrypoint_label_selector: { zone: 'eu' } }, 'entrypoint_label_selector'], [{ entrypoint: 'python a.py', surprise: 1 }, 'the option surprise'],
    ] as const) {
      const answer = await ask(cluster, 'POST', '/api/jobs/', { token: ana, json: job });
      expect(answer.status, answer.text).toBe(400);
      expect(answer.text).toContain(why);
    }
  });

  test('a neighbour with a token of its own finds nothing, and both are told on record', async () => {
    const id = await submit(ana, { entrypoint: 'python -c "print(1)"' });
    await ended(ana, id);
    const nowhere = await ask(cluster, 'GET', '/api/jobs/raysubmit_nowhere', { token: eve });
    for (const [method, path] of [['GET', ''], ['DELETE', ''], ['POST', '/stop'], ['GET', '/logs']] as const) {
      const answer = await ask(cluster, method, `/api/jobs/${id}${path}`, { token: eve });
      expect({ status: answer.status, text: answer.text }).toEqual({ status: nowhere.status, text: nowhere.text });
    }
    expect((await tail(cluster, `/api/jobs/${id}/logs/tail`, eve)).refused).toContain('404');
    expect(json(await ask(cluster, 'GET', '/api/jobs/', { token: eve }))).toEqual([]);
    expect(await details(ana, id)).toMatchObject({ status: 'SUCCEEDED' });
  });

  test('a token ends when it is revoked, or its identity is; a viewer’s lets nothing run', async () => {
    const people = await cluster.as('acme-ana');
    const made = await people.to(Tokens).create({ name: 'gone soon', ttlSeconds: 60 });
    expect((await ask(cluster, 'GET', '/api/jobs/', { token: made.token })).status).toBe(200);
    await expect((await cluster.as('globex-dev')).to(Tokens).revoke({ tokenId: made.info?.tokenId ?? '' })).rejects.toMatchObject({ code: 'DENIED' });
    await people.to(Tokens).revoke({ tokenId: made.info?.tokenId ?? '' });
    expect((await ask(cluster, 'GET', '/api/jobs/', { token: made.token })).status).toBe(401);
    // Kept as a digest: the token is in no file of the cluster.
    expect(readFileSync(join(cluster.dataDir, 'head', 'head.sqlite')).includes(Buffer.from(ana))).toBe(false);
    const vic = await tokenOf(cluster, 'acme-vic');
    expect((await ask(cluster, 'GET', '/api/jobs/', { token: vic })).status).toBe(200);
    expect((await ask(cluster, 'POST', '/api/jobs/', { token: vic, json: { entrypoint: 'python -c "print(1)"' } })).status).toBe(404);
    expect((await ask(cluster, 'PUT', '/api/packages/gcs/x.zip', { token: vic, body: zipOf([{ name: 'a.py' }]) })).status).toBe(404);
    await cluster.enrol({ tenant: 'acme', name: 'leaver', roles: ['developer'] });
    const leaver = await tokenOf(cluster, 'acme-leaver');
    expect((await ask(cluster, 'GET', '/api/version', { token: leaver })).status).toBe(200);
    const svid = await cluster.svid('acme-leaver');
    await (await cluster.as('admin')).to(Identities).revoke({ spiffeId: svid.spiffeId, reason: 'left' });
    expect((await ask(cluster, 'GET', '/api/version', { token: leaver })).status).toBe(401);
  });

  test('what was submitted outlives a gateway that is killed: what ended stands as it ended, what ran has failed, and the next one says so', async () => {
    const done = await submit(ana, { entrypoint: 'python -c "print(7)"', submission_id: 'before_the_kill', metadata: { team: 'red' }, runtime_env: { env_vars: { KEY: 'hidden-value' } } });
    const before = await ended(ana, done);
    const slow = await submit(ana, { entrypoint: 'python -c "import time; print(1, flush=True); time.sleep(600)"' });
    await until('the job has begun', async () => (json(await ask(cluster, 'GET', `/api/jobs/${slow}/logs`, { token: ana })) as { logs: string }).logs === '1\n', 60_000);
    await cluster.kill('gateway');
    await cluster.restart('gateway');
    expect(await details(ana, done)).toEqual(before);
    expect(before).toMatchObject({ status: 'SUCCEEDED', driver_exit_code: 0, metadata: { team: 'red' }, runtime_env: { env_vars: { KEY: '(hidden)' } } });
    expect(json(await ask(cluster, 'GET', `/api/jobs/${done}/logs`, { token: ana }))).toEqual({ logs: '7\n' });
    expect(await ended(ana, slow)).toMatchObject({ status: 'FAILED', message: 'its driver was lost', driver_exit_code: null });
    expect(json(await ask(cluster, 'GET', `/api/jobs/${slow}/logs`, { token: ana }))).toEqual({ logs: '1\n' });
    expect((json(await ask(cluster, 'GET', '/api/jobs/', { token: ana })) as { submission_id: string }[]).map((j) => j.submission_id)).toEqual(expect.arrayContaining([done, slow]));
    expect((await ask(cluster, 'GET', `/api/jobs/${done}`, { token: eve })).status).toBe(404);
    expect((await ask(cluster, 'POST', '/api/jobs/', { token: ana, json: { entrypoint: 'python x.py', submission_id: done } })).status).toBe(400);
    expect(json(await ask(cluster, 'DELETE', `/api/jobs/${done}`, { token: ana }))).toEqual({ deleted: true });
    expect((await ask(cluster, 'GET', `/api/jobs/${done}`, { token: ana })).status).toBe(404);
    expect(await ended(ana, await submit(ana, { entrypoint: 'python -c "raise SystemExit(5)"' }))).toMatchObject({ status: 'FAILED', driver_exit_code: 5 });
  });

  describe.runIf('bin' in found)('with the real package of Ray 2.60', () => {
    const ray = (args: readonly string[], program = 'ray'): Promise<{ readonly code: number | null; readonly out: string }> => new Promise((resolve, reject) => {
      const env = { PATH: process.env['PATH'] ?? '', HOME: cluster.directory, RAY_ADDRESS: cluster.local.gatewayUrl ?? '', RAY_JOB_HEADERS: JSON.stringify({ Authorization: `Bearer ${ana}` }), CA: caFile(cluster, 'acme-ana'), RAY_USAGE_STATS_ENABLED: '0', PYTHONWARNINGS: 'ignore' };
      const child = spawn(join('bin' in found ? found.bin : '', program), args, { stdio: ['ignore', 'pipe', 'pipe'], env, cwd: cluster.directory });
      let out = '';
      for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk: Buffer) => (out += chunk.toString('utf8')));
      const timer = setTimeout(() => child.kill('SIGKILL'), 120_000);
      child.on('error', reject).on('close', (code) => {
        clearTimeout(timer);
        resolve({ code, out });
      });
    });
    const verify = (): string[] => ['--verify', caFile(cluster, 'acme-ana')];

    test('ray job submit, status, list, logs, stop and delete', async () => {
      mkdirSync(join(cluster.directory, 'wd'));
      writeFileSync(join(cluster.directory, 'wd', 'main.py'), 'import bulkhead.ray as ray\nray.init()\n@ray.remote\ndef f(n): return n + 1\nprint("answer", ray.get(f.remote(41)))\n');
      const submitted = await ray(['job', 'submit', ...verify(), '--submission-id', 'from_cli', '--working-dir', join(cluster.directory, 'wd'), '--', 'python', 'main.py']);
      expect(submitted.out).toContain('answer 42');
      expect(submitted.out).toContain("Job 'from_cli' succeeded");
      expect(submitted.code, submitted.out).toBe(0);
      expect((await ray(['job', 'status', ...verify(), 'from_cli'])).out).toContain('succeeded');
      expect((await ray(['job', 'list', ...verify()])).out).toContain('from_cli');
      expect((await ray(['job', 'logs', ...verify(), 'from_cli'])).out).toContain('answer 42');
      expect((await ray(['job', 'logs', '--follow', ...verify(), 'from_cli'])).out).toContain('answer 42');
      await ray(['job', 'submit', ...verify(), '--no-wait', '--submission-id', 'to_stop', '--', 'python', '-c', 'import time; time.sleep(600)']);
      expect((await ray(['job', 'stop', ...verify(), 'to_stop'])).out).toContain('was stopped');
      expect((await ray(['job', 'delete', ...verify(), 'from_cli'])).out).toContain('deleted');
    }, RAY_TEST_TIMEOUT_MS);

    test('JobSubmissionClient', async () => {
      const program = `
import asyncio, json, os
from ray.job_submission import JobSubmissionClient
client = JobSubmissionClient(os.environ["RAY_ADDRESS"], headers=json.loads(os.environ["RAY_JOB_HEADERS"]), verify=os.environ["CA"])
job = client.submit_job(entrypoint="python -c 'import os; print(os.environ[\\"A\\"])'", runtime_env={"env_vars": {"A": "from the client"}}, metadata={"k": "v"})
async def follow(): return "".join([line async for line in client.tail_job_logs(job)])
text = asyncio.run(follow())
info = client.get_job_info(job)
print("RESULT", json.dumps([text, client.get_job_status(job), client.get_job_logs(job), info.metadata, info.runtime_env, job in [j.submission_id for j in client.list_jobs()], client.stop_job(job), client.delete_job(job)]))
`;
      const { out } = await ray(['-c', program], 'python');
      const line = out.split('\n').find((l) => l.startsWith('RESULT '));
      expect(line, out).toBeDefined();
      expect(JSON.parse((line ?? '').slice(7))).toEqual(['from the client\n', 'SUCCEEDED', 'from the client\n', { k: 'v' }, { env_vars: { A: '(hidden)' } }, true, false, true]);
    }, RAY_TEST_TIMEOUT_MS);
  });
});
