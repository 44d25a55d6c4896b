/** Python programs as jobs: the driver too runs in its tenant's sandbox, with no credential, in an environment of its own. */
import { spawn, spawnSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { Jobs } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { TestCluster, until } from '../support/cluster.ts';
import { testPython } from '../support/python.ts';

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 240_000, hookTimeout: 120_000 });

const ROOT = join(import.meta.dirname, '../..');
const RUN_TIMEOUT_MS = 90_000;
const python = testPython();

interface Ran {
  readonly code: number | null;
  readonly out: string;
  readonly errors: string;
}

// Where gVisor is missing, python.test.ts compares the reason with what doctor prints.
describe.runIf('interpreter' in python)('a Python program as a job', () => {
  let cluster: TestCluster;

  const bulkhead = (args: readonly string[], profile = 'acme-ana'): Promise<Ran> => new Promise((resolve, reject) => {
    const child = spawn(join(ROOT, 'node_modules/.bin/node'), [join(ROOT, 'bin/bulkhead.js'), ...args], { stdio: ['ignore', 'pipe', 'pipe'], env: { PATH: process.env['PATH'] ?? '', BULKHEAD_PROFILE: cluster.profile(profile), BULKHEAD_SECRET_HERE: 'not for the program' } });
    let out = '';
    let errors = '';
    child.stdout.on('data', (chunk: Buffer) => (out += chunk.toString('utf8')));
    child.stderr.on('data', (chunk: Buffer) => (errors += chunk.toString('utf8')));
    const timer = setTimeout(() => child.kill('SIGKILL'), RUN_TIMEOUT_MS);
    child.on('error', reject);
    child.on('close', (code) => {
      clearTimeout(timer);
      resolve({ code, out, errors });
    });
  });
  const write = (name: string, text: string): string => {
    const path = join(cluster.directory, name);
    mkdirSync(join(path, '..'), { recursive: true });
    writeFileSync(path, text);
    return path;
  };
  const newestJob = async (name: string) => (await (await cluster.as('acme-ana')).to(Jobs).list({ tenant: 'acme' })).jobs.filter((j) => j.name === name).sort((a, b) => Number(b.startedMs - a.startedMs))[0];

  beforeAll(async () => {
    if ('interpreter' in python) cluster = await TestCluster.start({ cpus: 2, python: python.interpreter });
  });

  afterAll(async () => {
    const faults = cluster.faults();
    await cluster.stop();
    expect(faults).toEqual([]);
  });

  test('bulkhead run program.py: its output, its exit code, its calls, and nothing of who started it', async () => {
    const file = write('program.py', `
import os, sys
import bulkhead.ray as ray
ray.init()
@ray.remote
def square(n): return n * n
@ray.remote
class Counter:
    def __init__(self): self.n = 0
    def add(self, by): self.n += by; return self.n
counter = Counter.remote()
print("sum", sum(ray.get([square.remote(i) for i in range(10)])), ray.get(counter.add.remote(5)), sys.argv[1:])
secrets = [k for k in os.environ if "BULKHEAD" in k or "TOKEN" in k]
print("environment", secrets, os.path.exists("${ROOT}"), __name__, ray.get_runtime_context().get_job_id().startswith("job-"))
def walk(top): return [os.path.join(d, f) for d, _, fs in os.walk(top) for f in fs if f.endswith((".pem", "profile.json"))]
print("keys", walk("/tmp") + walk("/opt/bulkhead"))
print("to stderr", file=sys.stderr)
sys.exit(7)
`);
    const { code, out, errors } = await bulkhead(['run', file, 'one', '--two']);
    expect(out.split('\n').slice(0, 3), errors).toEqual(['sum 285 5 [\'one\', \'--two\']', 'environment [] False __main__ True', 'keys []']);
    expect(errors).toContain('to stderr');
    expect(code).toBe(7);
    expect(await newestJob('program.py')).toMatchObject({ status: 'FAILED', message: 'exit code 7' });
  });

  test('an exception is shown as an interpreter shows it, and the job has failed', async () => {
    const { code, errors } = await bulkhead(['run', write('broken.py', 'def f():\n    raise KeyError("gone")\nf()\n')]);
    expect(errors).toMatch(/Traceback \(most recent call last\):\n  File ".*broken\.py", line 3, in <module>\n    f\(\)[\s\S]*KeyError: 'gone'/);
    expect(code).toBe(1);
    expect(await newestJob('broken.py')).toMatchObject({ status: 'FAILED' });
  });

  test('a working directory and variables are the driver’s and its tasks’, and nobody else’s', async () => {
    write('wd/helper/__init__.py', 'def twice(n): return 2 * n\n');
    write('wd/data.txt', 'forty-two');
    write('slow/waits.py', 'import time\nprint("begun", flush=True)\ntime.sleep(600)\n');
    const main = write('wd/main.py', `
import os
import bulkhead.ray as ray
from helper import twice
@ray.remote
def look(n): return twice(n), open("data.txt").read(), len(os.environ.get("SECRET_NAME"))
@ray.remote(runtime_env={"env_vars": {"MORE": "1"}})
class Holder:
    def see(self): return len(os.environ.get("SECRET_NAME")), os.environ.get("MORE"), twice(1)
print(ray.get(look.remote(21)), open("data.txt").read(), len(os.environ["SECRET_NAME"]), ray.get(Holder.remote().see.remote()), os.environ.get("MORE"))
`);
    const { code, out, errors } = await bulkhead(['run', '--working-dir', join(cluster.directory, 'wd'), '--env-file', write('env', '# of the job\nSECRET_NAME=s3cret\n'), main]);
    expect(out, errors).toBe("(42, 'forty-two', 6) forty-two 6 (6, '1', 2) None\n");
    expect(code).toBe(0);
    expect(await newestJob('main.py')).toMatchObject({ status: 'SUCCEEDED' });
    const others = await bulkhead(['run', write('other.py', `
import os
import bulkhead.ray as ray
@ray.remote
def look():
    seen = [os.environ.get("SECRET_NAME")]
    for top, _, files in [*os.walk("/code"), *os.walk("/tmp"), *os.walk("/staging")]:
        for file in files:
            try: seen += [file] if bytes.fromhex("733363726574") in open(os.path.join(top, file), "rb").read() else []
            except OSError: pass
    return seen
print(ray.get(look.remote()), os.environ.get("SECRET_NAME"))
`)]);
    expect(others.out, others.errors).toBe('[None] None\n');
    // Nor where calls are listed, audited or logged; of the files that a cluster keeps, in none.
    const submitted = await bulkhead(['job', 'submit', '--working-dir', join(cluster.directory, 'wd'), '--', 'python', '-m', 'helper', 'x']);
    expect([submitted.code, submitted.errors]).toEqual([1, expect.stringContaining('helper.__main__')]);
    expect(await bulkhead(['job', 'submit', '--working-dir', join(cluster.directory, 'wd'), '--name', 'as-ray', '--', 'python', '-c', 'import sys, helper; print(helper.twice(4), sys.argv[1:])', 'x'])).toEqual({ code: 0, out: "8 ['x']\n", errors: '' });
    expect(await newestJob('as-ray')).toMatchObject({ status: 'SUCCEEDED' });
    for (const wait of [[], ['--no-wait']]) expect((await bulkhead(['job', 'submit', ...wait, '--', 'echo', 'hi'])).code).toBe(2);
    // Without waiting: the id at once, while it runs; the log and the end are the cluster's to tell, and a stop ends it.
    const id = (await bulkhead(['job', 'submit', '--no-wait', '--working-dir', join(cluster.directory, 'slow'), '--', 'python', 'waits.py'])).out.trim();
    expect(id).toMatch(/^job-[0-9a-f]{24}$/);
    await until('the job without a terminal printed', async () => (await bulkhead(['job', 'logs', id])).out.includes('begun'), 60_000);
    const { code: stopped } = await bulkhead(['job', 'stop', id]);
    expect([stopped, (await newestJob('waits.py'))]).toMatchObject([0, { jobId: id, status: 'STOPPED' }]);
    const quick = (await bulkhead(['job', 'submit', '--no-wait', '--name', 'quick', '--', 'python', '-c', 'raise SystemExit(6)'])).out.trim();
    await until('the job without a terminal ended', async () => (await newestJob('quick'))?.endedMs !== 0n, 60_000);
    expect(await newestJob('quick')).toMatchObject({ jobId: quick, status: 'FAILED', message: 'exit code 6' });
    expect(await bulkhead(['job', 'submit', '--no-wait', '--env-file', write('bad-env', 'nothing'), '--', 'python', '-c', '1'])).toMatchObject({ code: 2, out: '', errors: expect.stringContaining('is not NAME=VALUE') });
    // A driver on the user's own machine gives its calls an environment in the same way.
    if (!('interpreter' in python)) return;
    write('mods/tool/__init__.py', 'def name(): return "tool"\n');
    write('mods/tool/big.csv', 'x'.repeat(10));
    const said = await python.run(cluster, 'acme-ana', `
import os, sys
import bulkhead.ray as ray
ray.init(runtime_env={"working_dir": ${JSON.stringify(join(cluster.directory, 'wd'))}, "py_modules": [${JSON.stringify(join(cluster.directory, 'mods/tool'))}], "env_vars": {"OUTER": "1", "BOTH": "1"}, "excludes": ["*.csv", "main.py"]})
@ray.remote(runtime_env={"env_vars": {"BOTH": "2"}})
def look():
    import tool, helper
    return tool.name(), helper.twice(2), os.environ["OUTER"], os.environ["BOTH"], sorted(os.listdir(".")), os.path.exists(os.path.join(os.path.dirname(tool.__file__), "big.csv"))
print(ray.get(look.remote()), "OUTER" in os.environ)
def refused(**env):
    try: ray.remote(runtime_env=env)(look._function)
    except Exception as e: return type(e).__name__ + (" conda" if "conda" in str(e) else "")
print(refused(conda={"x": 1}), refused(env_vars={"A": 1}), refused(working_dir="s3://b/x.zip"), refused(working_dir="/nowhere/at/all"))
`);
    expect(said).toBe("('tool', 4, '1', '2', ['data.txt', 'helper'], False) False\nNotImplementedError conda TypeError NotImplementedError ValueError\n");
    const { code: listed, out: tasks } = await bulkhead(['list', 'tasks', '--json']);
    expect(listed, tasks).toBe(0);
    expect(tasks).not.toContain('s3cret');
    expect(spawnSync('grep', ['-rlaF', 's3cret', cluster.dataDir], { encoding: 'utf8' })).toMatchObject({ status: 1, stdout: '' });
  });
});
