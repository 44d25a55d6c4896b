/** The wider part of Ray's API on a real cluster, in real gVisor sandboxes: streams, concurrency groups, what `ray.util` has. test/e2e/python.test.ts has the core. */
import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ROOT } from '../source-tree.ts';
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
    async def sleeps(self): await asyncio.sleep(600)
def caught(ref):
    try: return ray.get(ref)
    except KeyError as e: return type(e).__name__
async def impatient():
    never = Async.remote().sleeps.remote()
    try: await asyncio.wait_for(never, 0.05)
    except asyncio.TimeoutError: pass
    ray.cancel(never)
    try: await never
    except ray.exceptions.TaskCancelledError: return "cancelled"
async def later(stream): return [await ref async for ref in stream]
gave_up = asyncio.run(impatient())
gen = fails.remote()
failed = [caught(ref) for ref in gen]
show([
    sum(ray.get(ref) for ref in numbers.remote(1000)), [int(ray.get(ref)[-1]) for ref in arrays.remote(12)] == list(range(12)), failed, [caught(ref) for ref in fails.options(num_returns=3).remote()], [int(a[0]) for a in ray.get(arrays.options(num_returns=9).remote(20))] == list(range(9)), gen.is_finished(), ray.get(reads.remote(300)),
    asyncio.run(later(numbers.remote(4))), asyncio.run(later(Async.remote().items.remote(4))),
    [ray.get(ref) for ref in ray.get(numbers.options(num_returns="dynamic").remote(3))], ray.get(numbers.options(num_returns=2).remote(2)), gave_up,
])
`)).toEqual([499_500, true, [1, 'RayTaskError(KeyError)'], [1, 'RayTaskError(KeyError)', 'RayTaskError(KeyError)'], true, true, 44_850, [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2], [0, 1], 'cancelled']);
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

  test('ray.util: ActorPool, Queue, as_completed, multiprocessing.Pool', async () => {
    expect(await run(`
from bulkhead.ray.util import ActorPool, as_completed
from bulkhead.ray.util.queue import Empty, Full, Queue
from bulkhead.ray.util.multiprocessing import Pool
@ray.remote
class Doubler:
    def double(self, x): return 2 * x
    def slow(self, x): time.sleep(60)
pool = ActorPool([Doubler.remote(), Doubler.remote()])
mapped = list(pool.map(lambda a, v: a.double.remote(v), range(5)))
unordered = sorted(pool.map_unordered(lambda a, v: a.double.remote(v), range(5)))
pool.submit(lambda a, v: a.slow.remote(v), 1)
def raised(of):
    try: of(); return None
    except Exception as e: return type(e).__name__
late = raised(lambda: pool.get_next(timeout=0.05))
q = Queue(maxsize=2)
@ray.remote
def fill(q, n):
    for i in range(n): q.put(i)
filling = fill.remote(q, 5)
got = [q.get(timeout=20) for _ in range(5)]
ray.get(filling)
q.put_nowait_batch([1, 2])
errors = [raised(lambda: q.put(3, timeout=0.05)), raised(lambda: q.put_nowait(3)), q.get_nowait_batch(2), raised(q.get_nowait), raised(lambda: q.get(timeout=0.05)), raised(lambda: q.put(1, timeout=-1))]
q.shutdown()
def boom(x): raise KeyError(x)
with Pool(2) as workers:
    told = []
    later = workers.apply_async(lambda x: x + 1, (1,), callback=told.append)
    sums = [workers.map(lambda x: x * x, range(6), chunksize=2), workers.starmap(lambda a, b: a * b, [(1, 2), (3, 4)]), list(workers.imap(lambda x: -x, range(4))), sorted(workers.imap_unordered(lambda x: -x, range(4))), later.get(timeout=20), raised(lambda: workers.map(boom, [1]))]
    while not told: time.sleep(0.01)
show([mapped, unordered, late, got, errors, sums, told, sorted(as_completed([ray.put(i) for i in range(4)]))])
`)).toEqual([
      [0, 2, 4, 6, 8], [0, 2, 4, 6, 8], 'TimeoutError', [0, 1, 2, 3, 4], ['Full', 'Full', [1, 2], 'Empty', 'Empty', 'ValueError'],
      [[0, 1, 4, 9, 16, 25], [2, 12], [0, -1, -2, -3], [-3, -2, -1, 0], 2, 'KeyError'], [2], [0, 1, 2, 3],
    ]);
  });

  test('placement groups and strategies place calls; nodes and resources are told, and what runs in which group', async () => {
    expect(await run(`
from bulkhead.ray.util import get_placement_group, placement_group, placement_group_table, remove_placement_group
from bulkhead.ray.util.scheduling_strategies import Exists, NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy, PlacementGroupSchedulingStrategy
node = ray.nodes()[0]["NodeID"]
group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_PACK", name="py-group")
here = group.wait(30) and ray.get(group.ready()) == group
table = placement_group_table(group)
@ray.remote
class Member:
    def where(self):
        context = ray.get_runtime_context()
        return [context.get_node_id(), context.get_actor_name(), context.get_assigned_resources(), ray.util.get_current_placement_group() == get_placement_group("py-group"), context.get_task_function_name()]
member = Member.options(name="member", num_cpus=1, scheduling_strategy=PlacementGroupSchedulingStrategy(group, 1)).remote()
@ray.remote
def inside(): return ray.get_runtime_context().get_node_id(), len(ray.nodes()), ray.available_resources()["CPU"]
member_says = ray.get(member.where.remote())
task_says = ray.get(inside.options(placement_group=group, placement_group_bundle_index=0).remote())
affine = ray.get(inside.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote())[0]
soft = ray.get(inside.options(scheduling_strategy=NodeLabelSchedulingStrategy({}, soft={"zone": Exists()})).remote())[0]
def raised(of):
    try: of(); return None
    except Exception as e: return type(e).__name__
huge = placement_group([{"CPU": 1000}])
not_here = huge.wait(0.2)
pending = placement_group_table(huge)["state"]
remove_placement_group(huge)
def fate(ref):
    try: return ray.get(ref)
    except ray.exceptions.RayError: return "ended"
remove_placement_group(group)
show([
    here, table["state"], table["strategy"], list(table["bundles_to_node_id"].values()) == [node, node], member_says[0] == node, member_says[1:], task_says[0] == node, task_says[1:], affine == node, soft == node,
    not_here, pending, fate(member.where.remote()), placement_group_table(group)["state"], ray.cluster_resources()["CPU"],
    raised(lambda: get_placement_group("py-group")), raised(lambda: placement_group([{}])), raised(lambda: placement_group([{"CPU": 1}], strategy="NO")), raised(lambda: inside.options(placement_group=group, placement_group_bundle_index=7)),
    raised(lambda: inside.options(placement_group="py-group")), raised(lambda: ray.remote(resources={"x": 1})(Member).options(placement_group=group).remote()),
])
`)).toEqual([
      true, 'CREATED', 'STRICT_PACK', true, true, ['member', { CPU: 1 }, true, 'where'], true, [1, 2], true, true,
      false, 'PENDING', 'ended', 'REMOVED', 4, 'ValueError', 'ValueError', 'ValueError', 'ValueError', 'ValueError', 'ValueError',
    ]);
  });

  test('a driver’s namespace holds for what its tasks and actors name, and child calls keep to the group of who asks for it', async () => {
    expect(await run(`
from bulkhead.ray.util import get_current_placement_group, placement_group, remove_placement_group
ray.shutdown()
@ray.remote(num_cpus=0)
def where():
    group = get_current_placement_group()
    return [group and group.id.hex(), ray.get_runtime_context().should_capture_child_tasks_in_placement_group]
@ray.remote(num_cpus=0)
class Named:
    def namespace(self): return ray.get_runtime_context().namespace
    def all(*args): return len(args)
    def children(self): return ray.get([where.remote(), where.options(placement_group=None).remote(), where.options(scheduling_strategy="DEFAULT").remote()])
@ray.remote(num_cpus=1)
def asks(times): return [ray.get(where.remote()) for _ in range(times)]
@ray.remote
def finds(): return ray.get(ray.get_actor("one").namespace.remote())
@ray.remote
def wrong(handle):
    # A handle that travelled knows how its methods are called.
    try: handle.namespace.remote(1)
    except TypeError as error: return [str(error), ray.get(handle.all.remote(1, 2))]
def missing(*name):
    try: ray.get_actor(*name)
    except ValueError: return True
ray.init(namespace="team")
named = Named.options(name="one").remote()
group = placement_group([{"CPU": 2}])
mine = group.id.hex()
capturing = Named.options(placement_group=group, placement_group_capture_child_tasks=True, num_cpus=1).remote()
plain = Named.options(placement_group=group, num_cpus=0).remote()
# In one process after the other and beside each other: each asks for what it was told.
mixed = ray.get([asks.options(placement_group=group, placement_group_capture_child_tasks=i % 2 == 1).remote(3) for i in range(6)])
seen = [*ray.get(wrong.remote(named)), ray.get(finds.remote()), ray.get_runtime_context().namespace, missing("one", "other"), missing("one", "")]
children = [ray.get(capturing.children.remote()) == [[mine, True], [None, False], [None, False]], ray.get(plain.children.remote())[0], all(each == [[mine, True] if i % 2 else [None, False]] * 3 for i, each in enumerate(mixed))]
remove_placement_group(group)
ray.shutdown()
ray.init()
show([*seen, missing("one"), *children, ray.get(where.remote())])
`)).toEqual(['too many positional arguments', 3, 'team', 'team', true, true, true, true, [null, false], true, [null, false]]);
  });

  test('the programs of the page for Ray’s users print what it says, and its commands run', { timeout: 240_000 }, async () => {
    if ('missing' in python) throw new Error(python.missing);
    const page = readFileSync(join(ROOT, 'docs/migrating-from-ray.md'), 'utf8');
    const samples = [...page.matchAll(/```python\n([\s\S]*?)```(?:\n```text\n([\s\S]*?)```)?/g)].map(([, program = '', printed]) => ({ program, printed }));
    expect(samples.length).toBe(6);
    for (const { program, printed } of samples) expect(await python.run(cluster, 'acme-ana', program), program).toBe(printed);
    const directory = mkdtempSync(join(tmpdir(), 'bulkhead-migrating-'));
    try {
      writeFileSync(join(directory, 'sums.py'), samples[0]?.program ?? '');
      for (const [name, target] of [['python', python.interpreter], ['bulkhead', join(ROOT, 'bin/bulkhead.js')]] as const) {
        writeFileSync(join(directory, name), `#!/bin/sh\nexec ${name === 'python' ? '' : `'${process.execPath}' `}'${target}' "$@"\n`, { mode: 0o755 });
      }
      const [, script = ''] = /```sh\n([\s\S]*?)```/.exec(page) ?? [];
      const lines = script.trim().split('\n');
      expect(lines.length).toBe(3);
      const env = { ...process.env, PATH: `${directory}:${process.env['PATH'] ?? ''}`, PYTHONPATH: join(ROOT, 'python'), PYTHONDONTWRITEBYTECODE: '1', BULKHEAD_PROFILE: cluster.profile('acme-ana') };
      for (const line of lines) expect((await promisify(execFile)('/bin/sh', ['-c', line], { cwd: directory, env, timeout: 90_000 })).stdout, line).toMatch(/(?:^|\n)14\n/);
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  });

  test('what a tenant asks about nodes and groups tells nothing of others', async () => {
    const group = await run('g = ray.util.placement_group([{"CPU": 1}], name="theirs", lifetime="detached"); g.wait(30); show(g.id.hex())');
    expect(await run(`
from bulkhead.groups import PlacementGroup, PlacementGroupID, _described
octets = bytes.fromhex("${String(group)}")
def raised(of):
    try: of(); return None
    except Exception as e: return type(e).__name__
show([_described(octets), raised(lambda: ray.util.get_placement_group("theirs")), raised(lambda: ray.util.remove_placement_group(PlacementGroup(PlacementGroupID(octets), [{"CPU": 1}]))), ray.available_resources()["CPU"]])
`, 'globex-ana')).toEqual([null, 'ValueError', 'PermissionDeniedError', 4]);
    await run('ray.util.remove_placement_group(ray.util.get_placement_group("theirs")); show(1)');
  });
});
