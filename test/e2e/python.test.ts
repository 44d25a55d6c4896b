/** Python programs with Ray's API on a real cluster, their tasks and actors in real gVisor sandboxes. */
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { TestCluster } from '../support/cluster.ts';
import { testPython } from '../support/python.ts';

const ROOT = join(import.meta.dirname, '../..');
const python = testPython();

if ('missing' in python) {
  test('without gVisor Python is refused for the reason that doctor prints', () => {
    const said = execFileSync(join(ROOT, 'node_modules/.bin/node'), [join(ROOT, 'bin/bulkhead.js'), 'doctor', '--local', '--json'], { encoding: 'utf8', timeout: 60_000 });
    expect((JSON.parse(said) as { machine: { gvisor: string } }).machine.gvisor).toBe(python.missing);
  });
} else {
  describe('a Ray program with one line changed', () => {
    let cluster: TestCluster;
    const run = (program: string, profile = 'acme-ana', args: readonly string[] = []): Promise<unknown> => python.run(cluster, profile, `import json, sys\nimport bulkhead.ray as ray\nray.init()\ndef show(x): print("RESULT", json.dumps(x))\n${program}`, args).then((out) => {
      const line = out.split('\n').findLast((l) => l.startsWith('RESULT '));
      if (line === undefined) throw new Error(`the program showed nothing:\n${out}`);
      return JSON.parse(line.slice(7)) as unknown;
    });

    beforeAll(async () => {
      cluster = await TestCluster.start({ cpus: 2, python: python.interpreter });
    });

    afterAll(async () => {
      const faults = cluster.faults();
      await cluster.stop();
      expect(faults).toEqual([]);
    });

    test('runs tasks with refs, keywords, several results and nested tasks', async () => {
      expect(await run(`
@ray.remote
def add(a, b=1): return a + b
@ray.remote(num_returns=2)
def two(): return 1, 2
@ray.remote
def nested(n): return sum(ray.get([add.remote(i) for i in range(n)]))
x, y = two.remote()
show([ray.get(add.remote(1, 2)), ray.get(add.remote(add.remote(1, 2), b=10)), ray.get([x, y]), ray.get(nested.remote(5)), ray.get([add.remote(i) for i in range(100)])])
`)).toEqual([3, 13, [1, 2], 15, Array.from({ length: 100 }, (_, i) => i + 1)]);
    });

    test('shares numpy arrays read-only, and gets large results', async () => {
      expect(await run(`
import numpy as np
ref = ray.put(np.arange(1_000_000, dtype=np.float64))
@ray.remote
def total(a): return float(a.sum()), bool(a.flags.writeable), bool(a.flags.owndata)
@ray.remote
def make(n): return np.ones(n)
made = ray.get(make.remote(500_000))
show([ray.get(total.remote(ref)), list(made.shape), bool(made.flags.writeable), float(ray.get(total.remote(make.remote(200_000)))[0])])
`)).toEqual([[499_999_500_000, false, false], [500_000], false, 200_000]);
    });

    test('keeps no file of an object that is gone: its memory is free at once', async () => {
      expect(await run(`
import os, time
import numpy as np
@ray.remote
class Keeper:
    def put(self, n):
        array = np.ones(100_000)
        for _ in range(n): ray.put(array)
    def read(self, refs): return float(sum(ray.get(r).sum() for r in refs))
def kept():
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if open(f"/proc/{pid}/cmdline").read().startswith("runsc-sandbox"):
                files = [os.stat(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
                found += [s.st_size for s in files if s.st_nlink == 0 and 800_000 <= s.st_size < 801_000]
        except OSError: pass
    return found
keeper = Keeper.remote()
ray.get(keeper.put.remote(20))
refs = [ray.put(np.ones(100_000)) for _ in range(5)]
total = ray.get(keeper.read.remote(refs))
del refs
end = time.monotonic() + 20
while kept() and time.monotonic() < end: time.sleep(0.1)
show([total, kept()])
`)).toEqual([500_000, []]);
    });

    test('raises what a task threw, of its class, and types of the cluster’s own failures', async () => {
      expect(await run(`
import os, time
class Mine(Exception): pass
@ray.remote
def boom(of, text): raise of(text)
@ray.remote(max_retries=0)
def die(): os._exit(1)
@ray.remote
def slow(): time.sleep(60)
def caught(ref, **how):
    try: ray.get(ref, **how); return None
    except Exception as e: return [isinstance(e, k) for k in (ValueError, Mine, ray.exceptions.RayTaskError, ray.exceptions.WorkerCrashedError, ray.exceptions.GetTimeoutError, ray.exceptions.TaskCancelledError)]
s = slow.remote()
late = caught(s, timeout=0.1)
ray.cancel(s, force=True)
show([caught(boom.remote(ValueError, "x")), caught(boom.remote(Mine, "x")), caught(die.remote()), late, caught(s)])
`)).toEqual([[true, false, true, false, false, false], [false, true, true, false, false, false], [false, false, false, true, false, false], [false, false, false, false, true, false], [false, false, false, false, false, true]]);
    });

    test('tries again what is of a class that its options name', async () => {
      expect(await run(`
@ray.remote
class Tries:
    def __init__(self): self.n = 0
    def next(self): self.n += 1; return self.n
tries = Tries.remote()
@ray.remote(max_retries=5, retry_exceptions=[ConnectionError])
def flaky(t):
    if ray.get(t.next.remote()) < 3: raise ConnectionError("again")
    return "done"
show([ray.get(flaky.remote(tries)), ray.get(tries.next.remote())])
`)).toEqual(['done', 4]);
    });

    test('has actors: state, order, names, handles as arguments, async and threaded', async () => {
      expect(await run(`
import asyncio, time
@ray.remote
class Counter:
    def __init__(self, n=0): self.n = n
    def inc(self, by=1): self.n += by; return self.n
@ray.remote
class Async:
    def __init__(self): self.ready = asyncio.Event()
    async def wait(self): await self.ready.wait(); return "waited"
    async def go(self): self.ready.set()
@ray.remote(max_concurrency=2)
class Threads:
    def __init__(self): import threading; self.both = threading.Barrier(2)
    def meet(self): self.both.wait(20); return True
@ray.remote
def use(h): return ray.get(h.inc.remote(100))
c = Counter.remote(10)
order = ray.get([c.inc.remote() for _ in range(5)])
named = Counter.options(name="py-counter").remote()
first = ray.get(named.inc.remote(7))
found = ray.get(ray.get_actor("py-counter").inc.remote())
a = Async.remote(); waits = a.wait.remote(); ray.get(a.go.remote())
t = Threads.remote()
show([order, first, found, ray.get(use.remote(c)), ray.get(waits), ray.get([t.meet.remote(), t.meet.remote()])])
`)).toEqual([[11, 12, 13, 14, 15], 7, 8, 115, 'waited', [true, true]]);
    });

    test('tells the death of an actor, and restarts one that may', async () => {
      expect(await run(`
import os, time
@ray.remote
class Frail:
    def __init__(self): self.n = 0
    def inc(self): self.n += 1; return self.n
    def die(self): os._exit(1)
def fate(ref):
    try: return ray.get(ref)
    except ray.exceptions.RayActorError: return "actor error"
    except ray.exceptions.RayError as e: return type(e).__name__
f = Frail.remote(); ray.get(f.inc.remote()); fate(f.die.remote()); dead = fate(f.inc.remote())
r = Frail.options(max_restarts=1).remote(); ray.get([r.inc.remote(), r.inc.remote()]); fate(r.die.remote())
again = fate(r.inc.remote())
while not isinstance(again, int): time.sleep(0.05); again = fate(r.inc.remote())
k = Frail.remote(); ray.get(k.inc.remote()); ray.kill(k)
show([dead, again, fate(k.inc.remote())])
`)).toEqual(['actor error', 1, 'actor error']);
    });

    test('waits for tasks that wait for each other on a node with fewer cpus than tasks', async () => {
      expect(await run(`
@ray.remote
def leaf(n): return n
@ray.remote
def tree(depth): return 1 if depth == 0 else sum(ray.get([tree.remote(depth - 1), tree.remote(depth - 1)]))
ready, rest = ray.wait([leaf.remote(i) for i in range(10)], num_returns=4)
show([ray.get(tree.remote(4)), len(ready), len(rest)])
`)).toEqual([16, 4, 6]);
    });

    test('threads, futures and waits of one program share its connection, and more actors than a sandbox has channels answer', async () => {
      expect(await run(`
import asyncio, threading, time
@ray.remote
def echo(x, seconds=0):
    time.sleep(seconds)
    return x
@ray.remote(num_cpus=0)
class Many:
    def __init__(self, n): self.n = n
    def double(self): return sum(ray.get([echo.remote(self.n), echo.remote(self.n)]))
late = echo.remote("late", 1).future()
sums, seen = [], []
threads = [threading.Thread(target=lambda: sums.append(sum(ray.get([echo.remote(i) for i in range(20)])))) for _ in range(4)]
for t in threads: t.start()
waiting = [echo.remote(i) for i in range(50)]
while waiting:
    done, waiting = ray.wait(waiting)
    seen += ray.get(done)
for t in threads: t.join()
async def gathered(): return await asyncio.gather(*[echo.remote(i) for i in range(5)])
actors = [Many.remote(i) for i in range(11)]
show([sums, sorted(seen) == list(range(50)), late.result(40), asyncio.run(gathered()), ray.get([a.double.remote() for a in actors])])
`)).toEqual([[190, 190, 190, 190], true, 'late', [0, 1, 2, 3, 4], Array.from({ length: 11 }, (_, i) => 2 * i)]);
    });

    test('refuses what it does not support, by name', async () => {
      expect(await run(`
def refused(of):
    try: of(); return None
    except (NotImplementedError, AttributeError) as e: return str(e).split(" is not")[0]
def f(): pass
show([refused(lambda: ray.remote(runtime_env={"conda": "x"})(f)), refused(lambda: ray.timeline)])
`)).toEqual(["runtime_env['conda']", 'ray.timeline']);
    });

    test('keeps tenants apart: another tenant can neither read a ref, nor pass it on, nor find an actor by its name', async () => {
      const id = await run(`
import time
@ray.remote
class Keeper:
    def keep(self): self.ref = ray.put("acme's"); return self.ref.hex()
k = Keeper.options(name="keeper", lifetime="detached").remote()
show(ray.get(k.keep.remote()))
`);
      expect(await run(`
from bulkhead.api import ObjectRef
@ray.remote
def take(x): return x
def caught(of):
    try: return ray.get(of())
    except Exception as e: return type(e).__name__
foreign = ObjectRef(bytes.fromhex(sys.argv[1]))
def named():
    try: ray.get_actor("keeper"); return "found"
    except ValueError: return "not found"
show([caught(lambda: foreign), caught(lambda: take.remote(foreign)), named()])
`, 'globex-ana', [String(id)])).toEqual(['PermissionDeniedError', 'PermissionDeniedError', 'not found']);
    });

    test('a rule about the isolation class is about Python', async () => {
      await cluster.applyPolicy('acme-ana', 'acme', `version: 1
tenant: acme
roles:
  no-sandbox:
    permit:
      - { action: session.read, resource: session }
    forbid:
      - { action: task.submit, resource: task, when: { isolation: { eq: gvisor } } }
bindings:
  - { role: no-sandbox, to: ['user/dev'] }
`);
      await cluster.settled();
      const program = `
@ray.remote
def one(): return 1
try: show(ray.get(one.remote()))
except ray.exceptions.PermissionDeniedError: show("denied")
`;
      expect([await run(program, 'acme-dev'), await run(program, 'acme-ana')]).toEqual(['denied', 1]);
    });
  });

  test('spreads over two nodes: tasks with a large argument, actors, and what they throw', async () => {
    await using cluster = await TestCluster.start({ cpus: 1, raylets: 2, python: python.interpreter });
    const out = await python.run(cluster, 'acme-ana', `
import time
import bulkhead.ray as ray, numpy as np
ray.init()
@ray.remote
def where(x): time.sleep(0.5); return ray.get_runtime_context().get_node_id(), float(x.sum())
@ray.remote(num_cpus=1)
class A:
    def node(self): return ray.get_runtime_context().get_node_id()
    def boom(self): raise KeyError("k")
big = ray.put(np.ones(300_000))
ran = ray.get([where.remote(big) for _ in range(8)])
actors = [A.remote(), A.remote()]
lives = set(ray.get([a.node.remote() for a in actors]))
caught = 0
for a in actors:
    try: ray.get(a.boom.remote())
    except KeyError: caught += 1
print(len({n for n, _ in ran}), {s for _, s in ran}, len(lives), caught)
`);
    expect(out).toBe('2 {300000.0} 2 2\n');
  });
}
