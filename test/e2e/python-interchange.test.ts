/** Python and TypeScript programs of a tenant call each other's functions and pass each other's values, on a real cluster with real sandboxes. */
import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { bundleModule } from '../../src/sdk/bundle.ts';
import { ArrowTable, NdArray, type Cluster, type ObjectRef, type RemoteModule } from '../../src/sdk/sdk.ts';
import { failure, TestCluster } from '../support/cluster.ts';
import { testPython } from '../support/python.ts';

type Work = typeof import('../support/interchange-work.ts');
const WORK = new URL('../support/interchange-work.ts', import.meta.url);
const python = testPython();

describe.runIf(!('missing' in python))('between Python and TypeScript', () => {
  if ('missing' in python) return;
  let cluster: TestCluster;
  let driver: Cluster;
  let work: RemoteModule<Work>;
  const dir = mkdtempSync(join(tmpdir(), 'bulkhead-interchange-'));
  const bundle = join(dir, 'work.js');
  const run = async (program: string): Promise<unknown> => {
    const out = await python.run(cluster, 'acme-ana', `import json, sys\nimport bulkhead.ray as ray, numpy as np\nfrom bulkhead.ray.cross_language import js_function, js_actor_class, Neutral\nray.init()\njs = lambda name: js_function(sys.argv[1], name)\ndef show(x): print("RESULT", json.dumps(x))\n${program}`, [bundle, fileURLToPath(WORK), join(dir, 'bulkhead')]);
    return JSON.parse(out.split('\n').findLast((l) => l.startsWith('RESULT '))?.slice(7) ?? 'null') as unknown;
  };

  beforeAll(async () => {
    writeFileSync(bundle, (await bundleModule(WORK)).source);
    writeFileSync(join(dir, 'bulkhead'), `#!/bin/sh\nexec ${process.execPath} ${join(import.meta.dirname, '../../bin/bulkhead.js')} "$@"\n`, { mode: 0o755 });
    cluster = await TestCluster.start({ cpus: 2, python: python.interpreter });
    driver = await cluster.connect('acme-ana');
    work = await driver.module<Work>(WORK);
  });

  afterAll(async () => {
    rmSync(dir, { recursive: true, force: true });
    await driver?.close();
    const faults = cluster.faults();
    await cluster.stop();
    expect(faults).toEqual([]);
  });

  test('a TypeScript program calls Python functions by name, and passes on what they return', async () => {
    const add = driver.python<(a: number, b: number) => number>('operator:add');
    const identity = driver.python<(value: unknown) => unknown>('copy:copy');
    const linspace = driver.python<(from: number, to: number, n: number) => Float64Array>('numpy:linspace');
    const line: ObjectRef<Float64Array> = linspace(0, 100, 801);
    expect(await driver.get([add(1, 2), add(add(1, 2), 10), work.total(line), work.echo(line)])).toEqual([3, 13, 40_050, Float64Array.from({ length: 801 }, (_, i) => i / 8)]);
    const value = {
      n: 1, half: 1.5, big: 2n ** 70n, yes: true, none: null, text: 'h\u00e9', lone: '\ud800', list: [1, [2, 'x']], map: new Map<unknown, unknown>([[1, 'a'], ['b', new Set([1, 2])]]), when: new Date(1_700_000_000_123),
      bytes: Uint8Array.of(1, 2), floats: Float32Array.of(0.5), matrix: new NdArray([2, 3], Int16Array.of(1, 2, 3, 4, 5, 6)),
    };
    expect(await driver.get(identity(value))).toEqual(value);
    expect(await driver.get(identity(identity(work.echo(value))))).toEqual(value);
  });

  test('large arrays, matrices and Arrow tables go both ways', async () => {
    const ones = driver.python<(shape: number[]) => NdArray>('numpy:ones');
    const sum = driver.python<(values: unknown) => number>('numpy:sum');
    const table = driver.python<(columns: object) => ArrowTable>('pyarrow:table');
    const matrix = await driver.get(ones([300, 200]));
    expect([matrix.shape, matrix.data.length, matrix.data[7]]).toEqual([[300, 200], 60_000, 1]);
    expect(await driver.get([sum(matrix), sum(ones([300, 200])), sum(work.ramp(100_000)), sum(new NdArray([2, 2], Float64Array.of(1, 2, 3, 4), 'F'))])).toEqual([60_000, 60_000, 4_999_950_000, 10]);
    const made = await driver.get(table({ n: Int32Array.of(1, 2, 3), s: ['a', 'b', 'c'] }));
    expect(made).toBeInstanceOf(ArrowTable);
    expect(await driver.get([driver.python<(t: ArrowTable) => number>('builtins:len')(made), work.kind(made)])).toEqual([3, 'ArrowTable']);
  });

  test('a class of Python is an actor of a TypeScript program, also by its name', async () => {
    type Tally = new (start: object) => { update(by: object): null; most_common(n: number): [string, number][] };
    const Tally = driver.pythonClass<Tally>('collections:Counter');
    const tally = await Tally.options({ name: 'tally' }).create({ a: 1 });
    await driver.get(tally.update({ b: 5 }));
    const found = await driver.actor<{ most_common(n: number): unknown }>('tally');
    expect(await driver.get([tally.most_common(1), found.most_common(2)])).toEqual([[['b', 5]], [['b', 5], ['a', 1]]]);
    expect(await run('show(ray.get(ray.get_actor("tally").most_common.remote(1)))')).toEqual([['b', 5]]);
  });

  test('says what is wrong: names that are none, results that cannot cross, exceptions with their class', async () => {
    const call = (name: string, ...args: unknown[]): Promise<string> => failure(driver.get(driver.python(name)(...args))).then(({ code, safeMessage }) => `${code} ${safeMessage}`);
    expect(() => driver.python('operator.add')).toThrow(/is not the name of a Python function/);
    expect(await call('no_such_module:f')).toMatch(/^INVALID_ARGUMENT .*no_such_module.* is not among the packages/);
    expect(await call('operator:no_such')).toMatch(/^INVALID_ARGUMENT .*has no 'no_such'/);
    expect(await call('builtins:complex', 1, 2)).toMatch(/^INVALID_ARGUMENT result is a complex: pass str/);
    expect(await call('builtins:iter', [1])).toMatch(/^INVALID_ARGUMENT result is a list_iterator/);
    expect(await call('operator:truediv', 1, 0)).toMatch(/^TASK_FAILED ZeroDivisionError: division by zero/);
    const thrown: unknown = await driver.get(driver.python('operator:truediv')(1, 0)).catch((error: unknown) => error);
    expect(String((thrown as { remoteStack?: string }).remoteStack)).not.toContain('#bulkhead');
    expect(await driver.get(work.throughPython('operator:mul', 6, 7))).toBe(42);
  });

  test('a Python program calls JavaScript functions and actors, with refs of Python tasks', async () => {
    expect(await run(`
@ray.remote
def numbers(n): return np.arange(n, dtype=np.float64)
@ray.remote
def record(): return {"name": "x", "tags": ("a", "b"), 1: None}
Tally = js_actor_class(sys.argv[1], "Tally")
tally = Tally.remote()
@ray.remote
def use(handle, f): return ray.get([handle.add.remote(5), f.remote(np.ones(3))])
first = ray.get(tally.add.remote(2))
stream = [ray.get(r) for r in js("count").options(num_returns="streaming").remote(3)]
back = ray.get(js("echo").remote(record.remote()))
big = ray.get(js("ramp").remote(200_000))
show([ray.get(js("total").remote(numbers.remote(100_000))), ray.get(js("total").remote(np.ones(50_000))), first, ray.get(use.remote(tally, js("total"))), stream,
  sorted(map(str, back.items())), [str(big.dtype), big.shape, bool(big.flags.writeable), bool(big.flags.owndata)],
  [ray.get(js("kind").remote(v)) for v in (None, 1, 2**60, 1.5, "s", b"b", [1], {"a": 1}, {1: 2}, {1}, np.zeros(2, np.uint8), np.zeros((2, 3), np.float32), True)]])
`)).toEqual([
      4_999_950_000, 50_000, 2, [7, 3], [0, 1, 2], ["('name', 'x')", "('tags', ['a', 'b'])", '(1, None)'], ['float64', [200_000], false, false],
      ['null', 'number', 'bigint', 'number', 'string', 'Uint8Array', 'Array', 'Object', 'Map', 'Set', 'Uint8Array', 'NdArray 2x3 C Float32Array', 'boolean'],
    ]);
  });

  test('a Python program names a TypeScript source file, which is bundled by the command line', async () => {
    expect(await run('import os; os.environ["BULKHEAD_CLI"] = sys.argv[3]; show(ray.get(js_function(sys.argv[2], "kind").remote({"a": 1})))')).toBe('Object');
  });

  test('the examples of the page do what it says', async () => {
    const section = readFileSync(join(import.meta.dirname, '../../docs/python.md'), 'utf8').split('\n## ').find((part) => part.startsWith('With TypeScript')) ?? '';
    const [main = '', stats = ''] = [...section.matchAll(/```ts\n([\s\S]*?)```/g)].map(([, text]) => text);
    const [program = ''] = [...section.matchAll(/```python\n([\s\S]*?)```/g)].map(([, text]) => text);
    writeFileSync(join(dir, 'main.ts'), main);
    writeFileSync(join(dir, 'stats.ts'), stats);
    const { stdout } = await promisify(execFile)(join(dir, 'bulkhead'), ['run', join(dir, 'main.ts')], { env: { ...process.env, BULKHEAD_PROFILE: cluster.profile('acme-ana') }, timeout: 60_000 });
    expect(stdout).toBe("[ 5, [ [ 'b', 2 ] ] ]\n");
    expect(await python.run(cluster, 'acme-ana', `import os\nos.chdir(${JSON.stringify(dir)})\nos.environ["BULKHEAD_CLI"] = "./bulkhead"\n${program}`)).toBe('[10, 2, 5]\n');
  });

  test('a Python program is told what JavaScript threw and what cannot go there', async () => {
    expect(await run(`
def said(of):
    try: ray.get(of()); return "done"
    except Exception as e: return type(e).__name__ + ": " + str(e).split("\\n")[0]
@ray.remote
def odd(): return object()
class Mine: pass
show([said(lambda: js("fail").remote("no")), said(lambda: js("echo").remote(Mine())), said(lambda: js("echo").remote(odd.remote())), said(lambda: js("echo").remote(a=1)), said(lambda: js("nothing").remote()), said(lambda: ray.put(Neutral([{"x": 1j}])))])
`)).toEqual([
      expect.stringMatching(/RangeError: no/), expect.stringMatching(/ValueError: args\[0\] is a Mine: pass a dict/), expect.stringMatching(/ValueError: result is a object/),
      expect.stringMatching(/TypeError: echo\(\) is of another language and takes no keyword arguments \(a\)/), expect.stringMatching(/exports no function named 'nothing'/), expect.stringMatching(/ValueError: value\[0\]\['x'\] is a complex/),
    ]);
  });
});
