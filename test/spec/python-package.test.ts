/** The Python package as its users get it: types that a strict checker accepts, nothing newer than the oldest Python that it names, and a wheel that anyone builds to the same octets. */
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { FILES, ROOT } from '../source-tree.ts';
import { runPython } from '../support/python-codec.ts';
import { testPython } from '../support/python.ts';

const PROJECT = join(ROOT, 'python');
const python = testPython();

function scratch(): string {
  const directory = mkdtempSync(join(tmpdir(), 'bulkhead-wheel-test-'));
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

test.runIf(!('missing' in python))('mypy --strict finds nothing in it, as of the oldest Python that it runs on and of the newest', { timeout: 240_000 }, () => {
  if ('missing' in python) throw new Error(python.missing);
  const cache = scratch();
  const check = (...args: readonly string[]) => {
    const { status, stdout, stderr } = spawnSync(python.interpreter, ['-m', 'mypy', '--strict', '--cache-dir', cache, ...args], { cwd: PROJECT, encoding: 'utf8', timeout: 120_000 });
    return { status, said: stdout.trim() + stderr.trim() };
  };
  for (const version of ['3.10', '3.13']) expect(check('--python-version', version), version).toEqual({ status: 0, said: expect.stringMatching(/^Success: no issues found in \d\d+ source files$/) as string });
  // A program of a user's sees the types.
  const program = join(cache, 'program.py');
  writeFileSync(program, 'import bulkhead.ray as ray\nfrom bulkhead.ray.util.queue import Queue\nref = ray.put(1)\nnumber: int = ref.hex()\nQueue(maxsize="2")\n');
  expect(check(program).said.replaceAll(program, 'program.py').replace(/^.*\/(?=program\.py)/gm, '').split('\n')).toEqual([
    'program.py:4: error: Incompatible types in assignment (expression has type "str", variable has type "int")  [assignment]',
    'program.py:5: error: Argument "maxsize" to "Queue" has incompatible type "str"; expected "int"  [arg-type]',
    'Found 2 errors in 1 file (checked 1 source file)',
  ]);
});

test.runIf(!('missing' in python))('two builds of the wheel are the same octets: whatever umask, time zone and place; it has every module and says which Pythons it is for', { timeout: 240_000 }, () => {
  const build = (umask: string, zone: string): { digest: string; path: string } => {
    const out = scratch();
    const said = execFileSync('/bin/sh', ['-c', `umask ${umask}; exec "$0" "$1" "$2"`, process.execPath, join(ROOT, 'scripts/wheel.ts'), out], { encoding: 'utf8', timeout: 120_000, env: { ...process.env, TZ: zone, TMPDIR: out } });
    const [name = ''] = readdirSync(out).filter((file) => file.endsWith('.whl'));
    const digest = createHash('sha256').update(readFileSync(join(out, name))).digest('hex');
    expect(said).toBe(`${digest}  ${join(out, name)}\n`);
    return { digest, path: join(out, name) };
  };
  const one = build('022', 'UTC');
  expect(build('077', 'Asia/Tokyo').digest).toBe(one.digest);
  const { names, metadata } = JSON.parse(execFileSync('python3', ['-c', 'import json, sys, zipfile\nz = zipfile.ZipFile(sys.argv[1])\nprint(json.dumps({"names": z.namelist(), "metadata": z.read(next(n for n in z.namelist() if n.endswith("/METADATA"))).decode()}))', one.path], { encoding: 'utf8' })) as { names: string[]; metadata: string };
  expect(names.filter((name) => name.startsWith('bulkhead/')).sort()).toEqual(FILES.filter((file) => file.startsWith('python/bulkhead/')).map((file) => file.slice('python/'.length)).sort());
  expect(names).toContain('bulkhead/py.typed');
  expect(metadata).toMatch(/^Requires-Python: <3\.14,>=3\.10$/m);
  expect([...metadata.matchAll(/^Classifier: Programming Language :: Python :: (3\.\d+)$/gm)].map(([, version]) => version)).toEqual(['3.10', '3.11', '3.12', '3.13']);
});

test('every Python from 3.10 to 3.13 that is on this machine compiles all of it', () => {
  const program = 'import pathlib, sys\nfor p in sorted(pathlib.Path(sys.argv[1]).rglob("*.py")): compile(p.read_bytes(), str(p), "exec", dont_inherit=True)\nprint("compiled", "%d.%d" % sys.version_info[:2])';
  const compiled = ['python3', 'python3.10', 'python3.11', 'python3.12', 'python3.13'].map((name) => spawnSync(name, ['-W', 'error', '-c', program, join(PROJECT, 'bulkhead')], { encoding: 'utf8' })).filter(({ status, stderr }) => status !== null && !/command not found/.test(stderr ?? ''));
  expect(compiled.length).toBeGreaterThan(0);
  for (const { stdout, stderr } of compiled) expect(`${stdout}${stderr}`).toMatch(/^compiled 3\.1[0-3]\n$/);
});

test.runIf(!('missing' in python))('what is wrong or not supported raises at once, with the name of the option, and needs no cluster to', () => {
  if ('missing' in python) throw new Error(python.missing);
  const said = runPython(python.interpreter, `
import bulkhead.ray as ray
from bulkhead.ray.util import placement_group
from bulkhead.ray.util.multiprocessing import Pool
from bulkhead.ray.util.queue import Queue
from bulkhead.ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy
@ray.remote
def f(): ...
@ray.remote
class A: ...
for of in (
    lambda: f.options(num_cpu=1), lambda: f.options(accelerator_type="A100"), lambda: f.options(max_restarts=1), lambda: A.options(max_retries=1), lambda: A.options(name=3), lambda: A.options(max_concurrency=0),
    lambda: f.options(resources={"CPU": 1}), lambda: f.options(resources={"x": "1"}), lambda: f.options(retry_exceptions=3), lambda: f.options(scheduling_strategy="spread"), lambda: f.options(label_selector="a"),
    lambda: PlacementGroupSchedulingStrategy(None), lambda: f.options(placement_group="name"), lambda: NodeAffinitySchedulingStrategy("n", True, _spill_on_unavailable=True), lambda: placement_group([{"CPU": 1}], name=3),
    lambda: placement_group([{"CPU": 1}], _soft_target_node_id="n"), lambda: Queue(maxsize="2"), lambda: Pool(1, context="fork"), lambda: Pool(1, initializer=3), lambda: ray.init(namespace=""), lambda: ray.init(_system_config={}), lambda: ray.timeline(), lambda: ray.util.iter,
):
    try: of(); print("nothing")
    except (TypeError, ValueError, NotImplementedError, AttributeError) as error: print(type(error).__name__, str(error))
`).trim().split('\n');
  const expected = [
    ['NotImplementedError', 'num_cpu'], ['NotImplementedError', 'accelerator_type'], ['ValueError', 'max_restarts'], ['ValueError', 'max_retries'], ['TypeError', 'name'], ['ValueError', 'max_concurrency'],
    ['ValueError', 'num_cpus'], ['ValueError', "resources['x']"], ['TypeError', 'retry_exceptions'], ['ValueError', 'scheduling_strategy'], ['ValueError', 'label_selector'],
    ['ValueError', 'placement_group'], ['ValueError', 'placement_group'], ['NotImplementedError', '_spill_on_unavailable'], ['TypeError', 'name'],
    ['NotImplementedError', '_soft_target_node_id'], ['TypeError', 'maxsize'], ['NotImplementedError', 'context'], ['TypeError', 'initializer'], ['ValueError', 'namespace'], ['NotImplementedError', '_system_config'], ['AttributeError', 'ray.timeline'], ['AttributeError', 'ray.util.iter'],
  ];
  expect(said.map((line, i) => [line.split(' ')[0], line.includes(expected[i]?.[1] ?? '?') ? expected[i]?.[1] : line])).toEqual(expected);
});
