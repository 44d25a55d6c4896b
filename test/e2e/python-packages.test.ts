/** `pip` and `uv` of runtime environments on a real cluster: packages of a small index on loopback, installed in throw-away sandboxes, seen by whoever asked and by nobody else. */
import { execFile } from 'node:child_process';
import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { Policies } from '../../src/rpc/generated/bulkhead/v1/head_pb.js';
import { Audit } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import { NODE, TestCluster } from '../support/cluster.ts';
import { TestIndex, wheelOf, zeros } from '../support/package-index.ts';
import { testPython } from '../support/python.ts';

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 240_000, hookTimeout: 120_000 });

const ROOT = join(import.meta.dirname, '../..');
const python = testPython();

// Where gVisor is missing, python.test.ts compares the reason with what doctor prints.
describe.runIf('interpreter' in python)('packages of a runtime environment', () => {
  if (!('interpreter' in python)) return;
  let cluster: TestCluster;
  let index: TestIndex;
  const run = (program: string, profile = 'acme-ana'): Promise<unknown> => python.run(cluster, profile, `import json, sys
import bulkhead.ray as ray
def show(x): print("RESULT", json.dumps(x))
def failure(of):
    try: return of()
    except Exception as e: return [type(e).__name__, str(e)]
${program}`).then((out) => {
    const line = out.split('\n').findLast((l) => l.startsWith('RESULT '));
    if (line === undefined) throw new Error(`the program showed nothing:\n${out}`);
    return JSON.parse(line.slice(7)) as unknown;
  });
  const recorded = async (tenant: string): Promise<string[]> => {
    const lines: string[] = [];
    for await (const { record } of (await cluster.as(`${tenant}-siem`)).on('raylet-1', Audit).tail({ tenant, last: 1_000, follow: false })) if (record.includes('environment.')) lines.push(record);
    return lines;
  };

  beforeAll(async () => {
    index = await TestIndex.start();
    const greet = (word: string) => ({ 'greeting/__init__.py': `from words import word\ndef greet(): return "${word} " + word\n` });
    index.wheel('greeting', '1.0', greet('old'), ['words>=1']);
    index.wheel('greeting', '2.0', greet('new'), ['words>=1']);
    index.wheel('words', '1.1', { 'words.py': 'word = "hello"\n' });
    // What would run at the start of an interpreter, or in the place of its own modules, if anything let it.
    index.wheel('startup', '1', { 'startup.pth': 'import os; os.environ["STARTED"] = "pth"\n', 'sitecustomize.py': 'import os; os.environ["STARTED"] = "site"\n', 'json.py': 'raise SystemExit("not json")\n', 'bulkhead/__init__.py': 'raise SystemExit("not bulkhead")\n', 'startup.py': 'x = 1\n' });
    index.add('climber', 'climber-1-py3-none-any.whl', wheelOf('climber', '1', [{ name: '../../../../tmp/environment/../climbed.py', content: 'x = 1\n' }, { name: 'climber.py', content: 'x = 1\n' }]));
    const part = zeros(16 * 2 ** 20);
    index.add('bomb', 'bomb-1-py3-none-any.whl', wheelOf('bomb', '1', Array.from({ length: 120 }, (_, i) => ({ name: `bomb/${i}.bin`, content: part }))));
    cluster = await TestCluster.start({ cpus: 2, python: python.interpreter, pythonIndex: { url: index.url, fileHosts: [], loopbackHttp: true } });
  });

  afterAll(async () => {
    const faults = cluster.faults();
    await cluster.stop();
    await index[Symbol.asyncDispose]();
    expect(faults).toEqual([]);
  });

  test('are there for tasks, actors and child tasks that name them, with what they need, fetched once', async () => {
    expect(await run(`
ray.init()
@ray.remote(runtime_env={"pip": ["greeting==1.0"]})
def pinned():
    import greeting
    return greeting.greet()
@ray.remote(runtime_env={"uv": {"packages": ["greeting"]}})
class Newest:
    def greet(self):
        import greeting
        @ray.remote
        def child():
            import greeting
            return greeting.__file__
        return [greeting.greet(), ray.get(child.remote())]
@ray.remote
def without():
    try: import greeting; return "there"
    except ImportError: return "not there"
newest = Newest.remote()
show(ray.get([pinned.remote(), newest.greet.remote(), without.remote(), pinned.remote()]))
`)).toEqual(['old hello', ['new hello', '/opt/environment/greeting/__init__.py'], 'not there', 'old hello']);
    expect(index.asked.filter((path) => path.endsWith('greeting-1.0-py3-none-any.whl')).length).toBe(1);
    const lines = await recorded('acme');
    expect(lines.filter((line) => line.includes('environment.build') && line.includes('greeting==1.0')).length).toBeGreaterThan(0);
    expect(lines.filter((line) => line.includes('environment.fetched') && line.includes('greeting-1.0-py3-none-any.whl')).length).toBe(1);
    expect(lines.filter((line) => line.includes('environment.built') && line.includes('greeting-1.0-py3-none-any.whl, words-1.1-py3-none-any.whl')).length).toBe(1);
  });

  test('are each tenant’s own: another one’s are fetched and built for it, and records tell nobody else', async () => {
    expect(await run(`
ray.init(runtime_env={"pip": {"packages": ["greeting==1.0"], "pip_check": False}})
@ray.remote
def pinned():
    import greeting
    return greeting.greet()
show(ray.get(pinned.remote()))
`, 'globex-ana')).toBe('old hello');
    expect(index.asked.filter((path) => path.endsWith('greeting-1.0-py3-none-any.whl')).length).toBe(2);
    const kept = join(cluster.dataDir, 'raylet-1', 'environments');
    expect(existsSync(kept)).toBe(true);
    expect(readdirSync(kept).sort((a, b) => a.localeCompare(b))).toEqual(['acme', 'globex']);
    expect((await recorded('globex')).filter((line) => line.includes('greeting-2.0'))).toEqual([]);
  });

  test('are there for a job’s driver and its tasks', async () => {
    const program = join(cluster.directory, 'job.py');
    writeFileSync(program, 'import bulkhead.ray as ray, greeting\nray.init()\n@ray.remote\ndef f():\n    import greeting\n    return greeting.greet()\nprint(greeting.greet(), ray.get(f.remote()), flush=True)\n');
    writeFileSync(join(cluster.directory, 'requirements.txt'), '# what it needs\ngreeting==2.0  # the newest\n');
    // The index is in this process, which must go on.
    const done = await promisify(execFile)(NODE, [join(ROOT, 'bin/bulkhead.js'), 'run', '--requirements', join(cluster.directory, 'requirements.txt'), program], { encoding: 'utf8', timeout: 120_000, env: { PATH: process.env['PATH'] ?? '', BULKHEAD_PROFILE: cluster.profile('acme-ana') } });
    expect(done.stdout).toContain('new hello new hello');
  });

  test('run nothing when they are installed or a sandbox starts, and stand behind the standard library and ours', async () => {
    expect(await run(`
ray.init()
@ray.remote(runtime_env={"pip": ["startup"]})
def f():
    import os, json, startup
    return [os.environ.get("STARTED"), json.__file__.startswith("/opt/environment"), startup.__file__, os.access(startup.__file__, os.W_OK), os.access(os.path.dirname(startup.__file__), os.W_OK)]
show(ray.get(f.remote()))
`)).toEqual([null, false, '/opt/environment/startup.py', false, false]);
  });

  test('that cannot be had raise RuntimeEnvSetupError with the package and the index: an absent one, a path that climbs', async () => {
    const [absent, climber, actor, after] = (await run(`
ray.init()
def named(name):
    @ray.remote(runtime_env={"pip": [name]})
    def f(): return "ran"
    return failure(lambda: ray.get(f.remote()))
@ray.remote(runtime_env={"pip": ["absent"]})
class A:
    def f(self): return 1
show([named("absent"), named("climber"), failure(lambda: ray.get(A.remote().f.remote())), named("words")])
`)) as (readonly [string, string])[];
    expect(absent).toEqual(['RuntimeEnvSetupError', expect.stringContaining(`the package 'absent' is not in the index ${index.url}`)]);
    expect(climber).toEqual(['RuntimeEnvSetupError', expect.stringContaining('outside the target directory')]);
    expect(actor?.[1]).toContain("'absent' is not in the index");
    expect(after).toBe('ran');
  });

  test('that are a bomb end with the limits of their build, and the next build is fine', async () => {
    expect(await run(`
ray.init()
def named(name):
    @ray.remote(runtime_env={"pip": [name]})
    def f(): return "ran"
    return failure(lambda: ray.get(f.remote()))
show([named("bomb"), named("words==1.1")])
`)).toEqual([['RuntimeEnvSetupError', expect.stringMatching(/No space left on device|more memory to install|more bytes/)], 'ran']);
  });

  test('need a right of their own, are refused by name where they name a place, and never name an index', async () => {
    const named = `
ray.init()
@ray.remote(runtime_env={"pip": ["words"]})
def f(): return "ran"
show(failure(lambda: ray.get(f.remote())))
`;
    expect(await run(named, 'acme-dev')).toBe('ran');
    const admin = await cluster.as('acme-ana');
    await admin.to(Policies).apply({ tenant: 'acme', fileName: 'no-packages.yaml', content: Buffer.from('version: 1\ntenant: acme\nroles:\n  plain:\n    forbid:\n      - { action: environment.build, resource: environment }\nbindings:\n  - { role: plain, to: [user/dev] }\n') });
    await expect.poll(() => run(named, 'acme-dev'), { timeout: 60_000 }).toEqual(['PermissionDeniedError', expect.any(String)]);
    expect(await run(`
def refused(env): return failure(lambda: ray.remote(runtime_env=env)(lambda: 1) and "taken")
show([refused(e)[0] for e in ({"pip": ["--index-url=https://evil.example", "x"]}, {"pip": ["x @ https://evil.example/x.whl"]}, {"pip": ["./x.whl"]}, {"pip": {"packages": ["x"], "pip_version": "==24"}}, {"uv": {"packages": ["x"], "uv_pip_install_options": ["-v"]}}, {"pip": ["x"], "uv": ["y"]}, {"pip": "absent.txt"}, {"pip": [1]}, {"pip": ["x y"]})])
`)).toEqual([...Array.from({ length: 5 }, () => 'NotImplementedError'), 'ValueError', 'ValueError', 'TypeError', 'ValueError']);
  });
});
