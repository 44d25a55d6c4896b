/** The wider part of Ray's API on a real cluster, in real gVisor sandboxes: streams, concurrency groups, what `ray.util` has. test/e2e/python.test.ts has the core. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { TestCluster } from '../support/cluster.ts';
import { testPython } from '../support/python.ts';

const python = testPython();

describe.runIf(!('missing' in python))('Ray’s API in sandboxes', () => {
  let cluster: TestCluster;
  const run = async (program: string, profile = 'acme-ana'): Promise<unknown> => {
    if ('missing' in python) throw new Error(python.missing);
    const out = await python.run(cluster, profile, `import asyncio, json, sys, time\nimport bulkhead.ray as ray\nray.init()\ndef show(x): print("RESULT", json.dumps(x))\n${program}`);
    const line = out.split('\n').findLast((l) => l.startsWith('RESULT '));
    if (line === undefined) throw new Error(`the program showed nothing:\n${out}`);
    return JSON.parse(line.slice(7)) as unknown;
  };

  beforeAll(async () => {
    if ('missing' in python) throw new Error(python.missing);
    cluster = await TestCluster.start({ cpus: 4, python: python.interpreter });
  });

  afterAll(async () => {
    const faults = cluster.faults();
    await cluster.stop();
    expect(faults).toEqual([]);
  });

  test('generators stream: small and large items, errors in their place, readers in tasks and in asyncio', async () => {
    expect(await run(`
import numpy as np
@ray.remote
def numbers(n):
    for i in range(n): yield i
@ray.remote
def arrays(n):
    for i in range(n): yield np.full(100_000, i)
@ray.remote
def fails():
    yield 1
    raise KeyError("k")
@ray.remote
def reads(n): return sum(ray.get(ref) for ref in numbers.remote(n))
@ray.remote
class Async:
    async def items(self, n):
        for i in range(n):
            await asyncio.sleep(0)
            yield i
def caught(ref):
    try: return ray.get(ref)
    except KeyError as e: return type(e).__name__
async def later(stream): return [await ref async for ref in stream]
gen = fails.remote()
failed = [caught(ref) for ref in gen]
show([
    sum(ray.get(ref) for ref in numbers.remote(1000)), [int(ray.get(ref)[-1]) for ref in arrays.remote(3)], failed, gen.is_finished(), ray.get(reads.remote(300)),
    asyncio.run(later(numbers.remote(4))), asyncio.run(later(Async.remote().items.remote(4))),
    [ray.get(ref) for ref in ray.get(numbers.options(num_returns="dynamic").remote(3))], ray.get(numbers.options(num_returns=2).remote(2)),
])
`)).toEqual([499_500, [0, 1, 2], [1, 'RayTaskError(KeyError)'], true, 44_850, [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2], [0, 1]]);
  });

  test('a stream goes no further than its reader has room, is waited for as refs are, and ends with its generator or a cancel', async () => {
    expect(await run(`
@ray.remote
class Source:
    def __init__(self): self.made = 0
    def items(self):
        try:
            while True:
                self.made += 1
                yield self.made
        except GeneratorExit:
            self.made = -self.made
            raise
    def count(self): return self.made
source = Source.remote()
stream = source.items.options(_generator_backpressure_num_objects=3).remote()
first = ray.get(next(stream))
ready, rest = ray.wait([stream, Source.remote().items.remote()], num_returns=2)
del stream, ready, rest
count = ray.get(source.count.remote())
again = source.items.remote()
next(again)
ray.cancel(again)
def end():
    try:
        for ref in again: ray.get(ref)
    except ray.exceptions.TaskCancelledError: return "cancelled"
show([first, -8 < count < 0, end()])
`)).toEqual([1, true, 'cancelled']);
  });

  test('concurrency groups keep to their limits, an actor that waits in a call runs no other, and async calls begin in order', async () => {
    expect(await run(`
@ray.remote(concurrency_groups={"io": 1, "compute": 2})
class Groups:
    def __init__(self):
        import threading
        self.both = threading.Barrier(2)
        self.running = self.most = 0
    @ray.method(concurrency_group="io")
    def io(self):
        self.running += 1
        self.most = max(self.most, self.running)
        time.sleep(0.05)
        self.running -= 1
    @ray.method(concurrency_group="compute")
    def meet(self): self.both.wait(20); return True
    def other(self): return self.most
g = Groups.remote()
meets = [g.meet.remote(), g.other.options(concurrency_group="compute").remote(), g.meet.remote()]
ray.get([g.io.remote() for _ in range(4)])
@ray.remote
def slow(): time.sleep(0.2)
@ray.remote
class One:
    def __init__(self): self.log = []
    def waits(self): self.log.append("begin"); ray.get(slow.remote()); self.log.append("end")
    def seen(self): return self.log
o = One.remote()
o.waits.remote(); o.waits.remote()
@ray.remote
class Async:
    def __init__(self): self.log = []
    async def note(self, n): self.log.append(n); await asyncio.sleep(0.01); return ray.get_runtime_context().get_actor_id() is not None
    def seen(self): return self.log
a = Async.remote()
known = all(ray.get([a.note.remote(n) for n in range(50)]))
def refused(of):
    try: of()
    except ValueError as e: return str(e).split(" ")[0]
async def coroutine(): pass
show([ray.get(meets[::2]), ray.get(g.other.remote()), ray.get(o.seen.remote()), known, ray.get(a.seen.remote()) == list(range(50)), refused(lambda: ray.remote(coroutine))])
`)).toEqual([[true, true], 1, ['begin', 'end', 'begin', 'end'], true, true, "'async"]);
  });

  test('an actor ends itself, and the cancel of an async call reaches it', async () => {
    expect(await run(`
@ray.remote(max_restarts=3)
class Ends:
    def end(self): ray.actor.exit_actor()
    async def sleep(self):
        try: await asyncio.sleep(600)
        except asyncio.CancelledError: self.told = True; raise
    async def was_told(self): return self.__dict__.get("told", False)
e = Ends.remote()
sleeps = e.sleep.remote()
ray.get(e.was_told.remote())
ray.cancel(sleeps)
def fate(ref):
    try: return ray.get(ref)
    except ray.exceptions.TaskCancelledError: return "cancelled"
    except ray.exceptions.RayActorError: return "actor error"
show([fate(sleeps), ray.get(e.was_told.remote()), fate(e.end.remote()), fate(e.was_told.remote())])
`)).toEqual(['cancelled', true, 'actor error', 'actor error']);
  });
});
