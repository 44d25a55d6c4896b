/** `pip` and `uv` of runtime environments on a real cluster: packages of a small index on loopback, installed in throw-away sandboxes, seen by the tasks that asked and by nobody else. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { TestCluster } from '../support/cluster.ts';
import { TestIndex } from '../support/package-index.ts';
import { testPython } from '../support/python.ts';

const python = testPython();

describe.runIf(!('missing' in python))('packages of a runtime environment', () => {
  if ('missing' in python) return;
  let cluster: TestCluster;
  let index: TestIndex;
  const run = (program: string, profile = 'acme-ana'): Promise<unknown> => python.run(cluster, profile, `import json, sys\nimport bulkhead.ray as ray\ndef show(x): print("RESULT", json.dumps(x))\n${program}`).then((out) => {
    const line = out.split('\n').findLast((l) => l.startsWith('RESULT '));
    if (line === undefined) throw new Error(`the program showed nothing:\n${out}`);
    return JSON.parse(line.slice(7)) as unknown;
  });

  beforeAll(async () => {
    index = await TestIndex.start();
    index.wheel('greeting', '1.0', { 'greeting/__init__.py': 'from words import word\ndef greet(): return "old " + word\n' }, ['words>=1']);
    index.wheel('greeting', '2.0', { 'greeting/__init__.py': 'from words import word\ndef greet(): return "new " + word\n' }, ['words>=1']);
    index.wheel('words', '1.1', { 'words.py': 'word = "hello"\n' });
    cluster = await TestCluster.start({ cpus: 2, python: python.interpreter, pythonIndex: { url: index.url, fileHosts: [], loopbackHttp: true } });
  });

  afterAll(async () => {
    const faults = cluster.faults();
    await cluster.stop();
    await index[Symbol.asyncDispose]();
    expect(faults).toEqual([]);
  });

  test('are there for the task that names them, with what they need, fetched once', async () => {
    expect(await run(`
ray.init()
@ray.remote(runtime_env={"pip": ["greeting==1.0"]})
def pinned():
    import greeting
    return greeting.greet()
@ray.remote(runtime_env={"uv": {"packages": ["greeting"]}})
def newest():
    import greeting
    return greeting.greet()
@ray.remote
def without():
    try: import greeting; return "there"
    except ImportError: return "not there"
show(ray.get([pinned.remote(), newest.remote(), without.remote(), pinned.remote()]))
`)).toEqual(['old hello', 'new hello', 'not there', 'old hello']);
    expect(index.asked.filter((path) => path.endsWith('greeting-1.0-py3-none-any.whl')).length).toBe(1);
  });
});
