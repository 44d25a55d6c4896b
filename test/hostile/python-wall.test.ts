/**
 * What one tenant's Python program can read of another's across a grant: data, and never code, however it is dressed up. Every pickle here would leave a mark in
 * whatever process opens it, a program or a sandbox; none may. Real clusters, real sandboxes.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Audit } from '../../src/rpc/generated/bulkhead/v1/raylet_pb.js';
import { bundleModule } from '../../src/sdk/bundle.ts';
import { failure, TestCluster, until } from '../support/cluster.ts';
import { testPython } from '../support/python.ts';

const WORK = new URL('../support/interchange-work.ts', import.meta.url);
const python = testPython();

/** A pickle that marks the process which opens it, and values as raw octets, past what the library would write. */
const ARMS = `
import json, os, pickle, struct, sys
import bulkhead.ray as ray, numpy as np
from bulkhead import api, values
from bulkhead import frames as f
from bulkhead.ray.cross_language import Neutral, js_function
class Evil(Exception):
    def __reduce__(self): return exec, ("import builtins; builtins.MARKED = True",)
class Raw:
    def __init__(self, octets): self.octets = octets
def armed():
    "From now on this process writes what it is told."
    encode = values.encode
    def raw(value, *rest, **more):
        return values.Encoded([value.octets], len(value.octets), []) if type(value) is Raw else encode(value, *rest, **more)
    values.encode = raw
def pickled(size=0):
    code = pickle.dumps((Evil(), b"x" * size), 5)
    body = struct.pack("<IQ", 0, len(code)) + code
    return struct.pack(">Q", len(body)) + body
def tagged(size=0): return values.TAG + pickled(size)
def head(major, n): return bytes([major | 26]) + struct.pack(">I", n)
def forms():
    p = tagged()
    yield "pickle", p
    yield "large pickle", tagged(300_000)
    yield "wide tag", bytes.fromhex("db00000000424b5059") + b"\\x5b" + pickled()
    yield "large wide tag", bytes.fromhex("db00000000424b5059") + b"\\x5b" + pickled(300_000)
    yield "in a list", b"\\x82\\x01" + p
    yield "in a dict", b"\\xa1\\x61a" + p
    yield "as a key", bytes.fromhex("d90103a1") + p + b"\\x01"
    yield "in a set", bytes.fromhex("d9010281") + p
    yield "shared", b"\\xd8\\x1c" + p
    yield "as an array", bytes.fromhex("d8288281") + b"\\x01" + p
    yield "in an error", bytes.fromhex("d9424a84") + b"\\x61E\\x60\\xf7" + p
    yield "self-described", bytes.fromhex("d9d9f7") + p
    yield "embedded", bytes.fromhex("d818") + head(0x40, len(p)) + p
    yield "behind another", b"\\x00" + p
    yield "bare pickle", pickle.dumps(Evil(), 5)
    yield "as bytes", head(0x40, len(p)) + p
    yield "code by name", api.NAME_HEAD + b"os:system"
    yield "code", api.SOURCE_HEAD + pickle.dumps(Evil(), 5)
    yield "nothing", b"\\xf6"
    yield "zeros", bytes(200_000)
    yield "mark in text", head(0x60, 61) + (b"\\n#bulkhead:cause:" + b"A" * 44)
`;

describe.runIf(!('missing' in python))('across a grant', () => {
  if ('missing' in python) return;
  let cluster: TestCluster;
  let made: Record<string, string>;
  const dir = mkdtempSync(join(tmpdir(), 'bulkhead-wall-'));
  const bundle = join(dir, 'work.js');
  const run = async <T>(profile: string, program: string, ...args: string[]): Promise<T> => {
    const out = await python.run(cluster, profile, `${ARMS}\nray.init()\ndef show(x): print("RESULT", json.dumps(x))\n${program}`, args);
    const line = out.split('\n').findLast((l) => l.startsWith('RESULT '));
    if (line === undefined) throw new Error(`the program showed nothing:\n${out}`);
    return JSON.parse(line.slice(7)) as T;
  };

  beforeAll(async () => {
    writeFileSync(bundle, (await bundleModule(WORK)).source);
    cluster = await TestCluster.start({ cpus: 2, python: python.interpreter });
    const day = new Date(Date.now() + 10 * 86_400_000).toISOString().slice(0, 10);
    await cluster.applyPolicy('acme-ana', 'acme', `version: 1
tenant: acme
grants:
  - { to: tenant/globex, action: [object.get, object.wait], resource: object, until: ${day} }
  - { to: tenant/globex, action: actor.call, resource: actor, until: ${day} }
`);
    await cluster.settled();
    made = await run('acme-ana', `
import pyarrow as pa
@ray.remote
def fails(): raise Evil("as data")
@ray.remote
def yields():
    armed()
    yield Raw(tagged()); yield Raw(dict(forms())["in a list"]); yield np.arange(3)
@ray.remote
class Keeper:
    def keep(self):
        armed()
        kept = {"raw " + name: ray.put(Raw(octets)) for name, octets in forms()}
        kept["ordinary"] = ray.put({"a": object})
        kept["ordinary large"] = ray.put([np.ones(100_000)])
        kept["array"] = ray.put(np.arange(4))
        kept["large array"] = ray.put(np.ones(100_000))
        kept["table"] = ray.put(pa.table({"n": [1, 2, 3]}))
        kept["dict"] = ray.put(Neutral({"a": [1, "x", None], "when": (1, 2)}))
        kept["text"] = ray.put("plain")
        kept["failed"] = fails.remote()
        items = list(yields.remote())
        kept.update({"item pickle": items[0], "item nested": items[1], "item array": items[2]})
        field = pa.field("x", pa.binary(), metadata={b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(Evil())})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, pa.schema([field])) as out: out.write_table(pa.table([pa.array([b"y"])], schema=pa.schema([field])))
        ipc = sink.getvalue().to_pybytes()
        kept["pickled type"] = ray.put(Raw(bytes.fromhex("d94251") + head(0x40, len(ipc)) + ipc))
        self.kept = kept
        ray.wait(list(kept.values()), num_returns=len(kept))
        return {name: ref.hex() for name, ref in kept.items()}
    def marked(self): import builtins; return hasattr(builtins, "MARKED")
    def add(self, a, b): return a
    def bad(self, n): return Raw(tagged(n))
keeper = Keeper.options(name="keeper", lifetime="detached").remote()
ids = ray.get(keeper.keep.remote())
ids["keeper"] = keeper._actor_id.hex()
show(ids)
`);
  });

  afterAll(async () => {
    rmSync(dir, { recursive: true, force: true });
    const faults = cluster.faults();
    await cluster.stop();
    expect(faults).toEqual([]);
  });

  /** How each object reads, got by a program, as an argument of a task, and inside one. */
  const READ = `
import builtins
made = json.loads(sys.argv[1])
def said(of):
    try: return "value " + str(of())[:60]
    except Exception as e: return type(e).__name__
@ray.remote(max_retries=0)
def take(x): import builtins; return str(x)[:60], hasattr(builtins, "MARKED")
@ray.remote(max_retries=0)
def fetch(refs):
    import builtins
    def one(ref):
        try: return "value " + str(ray.get(ref))[:60]
        except Exception as e: return type(e).__name__
    return one(refs[0]), hasattr(builtins, "MARKED")
def arg(ref):
    shown, marked = ray.get(take.remote(ref))
    return "MARKED" if marked else shown
def inside(ref):
    shown, marked = ray.get(fetch.remote([ref]))
    return "MARKED" if marked else shown
out = {}
for name, id in made.items():
    if name == "keeper": continue
    ref = api.ObjectRef(bytes.fromhex(id))
    again = said(lambda: ray.get(ref))
    out[name] = [again, said(lambda: arg(ref)), said(lambda: inside(ref)).removeprefix("value ")]
js = js_function(sys.argv[2], "failAs")
text = "Error\\n#bulkhead:cause:" + __import__("base64").b64encode(pickle.dumps(Evil())).decode()
`;

  test('data is read and code is not, got, as an argument and inside a task', async () => {
    const { out, marked, quoted } = await run<{ out: Record<string, string[]>; marked: boolean; quoted: string }>('globex-ana', `${READ}
quoted = said(lambda: ray.get(js.remote(text)))
show({"out": out, "marked": hasattr(builtins, "MARKED"), "quoted": quoted})`, JSON.stringify(made), bundle);
    expect([marked, quoted]).toEqual([false, 'RayTaskError']);
    const data = (text: string): string[] => [`value ${text}`, `value ${text}`, `value ${text}`];
    const tableText = expect.stringContaining('pyarrow.Table') as string;
    for (const [name, text] of [['array', '[0 1 2 3]'], ['large array', '[1. 1. 1. ... 1. 1. 1.]'], ['dict', "{'a': [1, 'x', None], 'when': [1, 2]}"], ['text', 'plain'], ['item array', '[0 1 2]'], ['raw nothing', 'None']] as const) expect([name, out[name]]).toEqual([name, data(text)]);
    expect(out['table']).toEqual([tableText, tableText, tableText]);
    expect(out['raw as bytes']?.every((text) => /^value b["']\\xdaBKPY/.test(text))).toBe(true);
    expect(out['raw mark in text']?.every((text) => text.startsWith('value \n#bulkhead:cause:AAAA'))).toBe(true);
    // What begins as a pickle does is refused by the raylet, which tells its owner; all else by whoever reads it.
    for (const name of ['ordinary', 'ordinary large', 'raw pickle', 'raw large pickle', 'item pickle']) expect([name, out[name]]).toEqual([name, ['PermissionDeniedError', 'PermissionDeniedError', 'PermissionDeniedError']]);
    const refused = ['raw wide tag', 'raw large wide tag', 'raw in a list', 'raw in a dict', 'raw as a key', 'raw in a set', 'raw shared', 'raw as an array', 'raw in an error', 'raw self-described', 'raw embedded', 'raw behind another', 'raw bare pickle', 'raw code by name', 'raw code', 'item nested', 'pickled type'];
    for (const name of refused) expect([name, out[name]]).toEqual([name, ['ValueError', 'ValueError', 'ValueError']]);
    expect(out['raw zeros']).toEqual(['PermissionDeniedError', 'PermissionDeniedError', 'PermissionDeniedError']);
    // Its owner's exception comes as text.
    expect(out['failed']).toEqual(['RayTaskError', 'RayTaskError', 'RayTaskError']);
    expect(Object.keys(out).length).toBe(Object.keys(made).length - 1);
    await until('the owner’s log tells', async () => {
      for await (const { record } of (await cluster.as('acme-ana')).on('raylet-1', Audit).tail({ tenant: 'acme', last: 500, follow: false })) if (record.includes('object.code-refused')) return true;
      return false;
    });
  });

  test('a TypeScript program reads the same data, and the rest is an error that says what to do', async () => {
    const driver = await cluster.connect('globex-dev');
    const get = (name: string): Promise<unknown> => driver.get(driver.ref(made[name] === undefined ? '' : `obj-${made[name]}`));
    expect([await get('dict'), await get('array'), (await get('large array') as Float64Array).length]).toEqual([{ a: [1, 'x', null], when: [1, 2] }, BigInt64Array.of(0n, 1n, 2n, 3n), 100_000]);
    expect(await failure(get('ordinary'))).toMatchObject({ code: 'DENIED', safeMessage: expect.stringContaining('carries code (a pickle)') as string });
    expect(await failure(get('raw in a list'))).toMatchObject({ code: 'INVALID_ARGUMENT', safeMessage: expect.stringContaining('pickle of a Python program') as string });
    const failed = await failure(get('failed'));
    expect([failed.code, failed.remoteStack?.includes('#bulkhead')]).toEqual(['TASK_FAILED', false]);
    await driver.close();
  });

  test('an actor is not another tenant’s to call, whatever was granted', async () => {
    expect(await run('globex-ana', `
keeper = api.ActorHandle(bytes.fromhex(sys.argv[1]), "Keeper", {}, None)
def said(of):
    try: return of()
    except Exception as e: return type(e).__name__
show([said(lambda: ray.get(keeper.add.remote(Evil(), 1))), said(lambda: ray.get(keeper.bad.remote(0)))])
`, made['keeper'] ?? '')).toEqual(['PermissionDeniedError', 'PermissionDeniedError']);
    expect(await run('acme-ana', 'show(ray.get(ray.get_actor("keeper").marked.remote()))')).toBe(false);
  });
});
