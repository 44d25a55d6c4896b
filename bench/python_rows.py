"""The rows of `npm run bench:python`: one program, run with `import bulkhead.ray as ray` and with Ray's own `import ray`. What a step does is what the row of
`ray microbenchmark` of that name does.

`python_rows.py bulkhead|ray rows` prepares and measures rows as standard input tells it, so that slices of both sides alternate; `first` connects and times
its first task. Answers are JSON Lines that begin with '@'; everything else that is printed is ignored.
"""

import importlib
import json
import os
import sys
import time

import numpy as np

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
SIDE = sys.argv[1]
ray = importlib.import_module("ray" if SIDE == "ray" else "bulkhead.ray")

# No worker process gets a copy of the pipe that the commands come through.
COMMANDS = os.fdopen(os.dup(0), "r")
ANSWERS = os.fdopen(os.dup(1), "w")

BATCH = 1_000
CLIENTS = 4
# Ray's row has 800 MiB; a rate in GB/s is the same from an eighth of it, and leaves the machine's memory alone.
LARGE_BYTES = 100 * 2**20
ACTORS = max(1, (os.cpu_count() or 2) // 2)
CREATED = 16


@ray.remote(num_cpus=0)
class Actor:
    def small_value(self):
        return b"ok"

    def small_value_arg(self, x):
        return b"ok"

    def small_value_batch(self, n):
        ray.get([small_value.remote() for _ in range(n)])

    def make_large(self, size):
        self.large = np.zeros(size // 8, dtype=np.int64)

    def put_large(self, n):
        for _ in range(n):
            ray.put(self.large)


@ray.remote(num_cpus=0)
class AsyncActor:
    async def small_value(self):
        return b"ok"

    async def small_value_with_arg(self, x):
        return b"ok"


@ray.remote(num_cpus=0)
class Client:
    def __init__(self, servers):
        self.servers = servers

    def small_value_batch(self, n):
        results = []
        for server in self.servers:
            results.extend([server.small_value.remote() for _ in range(n)])
        ray.get(results)

    def small_value_batch_arg(self, n):
        x = ray.put(0)
        results = []
        for server in self.servers:
            results.extend([server.small_value_arg.remote(x) for _ in range(n)])
        ray.get(results)


@ray.remote
def small_value():
    return b"ok"


@ray.remote
def put_small(n):
    for _ in range(n):
        ray.put(0)
    return 0


@ray.remote
def many_refs(n):
    return [ray.put(1) for _ in range(n)]


@ray.remote
def work(actors, n):
    ray.get([actors[i % len(actors)].small_value.remote() for i in range(n)])


def get_small():
    value = ray.put(0)
    return lambda: ray.get(value), 1


def put_small_row():
    return lambda: ray.put(0), 1


def multi_put_small():
    return lambda: ray.get([put_small.remote(100) for _ in range(10)]), 1_000


def put_large():
    """From a program in the cluster. Ray's driver is one always; ours is remote, so that an actor puts."""
    if SIDE == "ray":
        array = np.zeros(LARGE_BYTES // 8, dtype=np.int64)
        return lambda: ray.put(array), LARGE_BYTES / 1e9
    actor = Actor.remote()
    ray.get(actor.make_large.remote(LARGE_BYTES))
    return lambda: ray.get(actor.put_large.remote(4)), 4 * LARGE_BYTES / 1e9


def put_large_remote():
    array = np.zeros(LARGE_BYTES // 8, dtype=np.int64)

    def step():
        ref = ray.put(array)
        ray.wait([ref])

    return step, LARGE_BYTES / 1e9


def tasks_and_get():
    return lambda: ray.get([small_value.remote() for _ in range(BATCH)]), 1


def nested_refs():
    ref = many_refs.remote(10_000)
    ray.get(ref)
    return lambda: ray.get(ref), 1


def wait_1k():
    def step():
        waiting = [small_value.remote() for _ in range(BATCH)]
        while waiting:
            _, waiting = ray.wait(waiting)

    return step, 1


def tasks_sync():
    return lambda: ray.get(small_value.remote()), 1


def tasks_async():
    return lambda: ray.get([small_value.remote() for _ in range(BATCH)]), BATCH


def multi_tasks_async():
    actors = [Actor.remote() for _ in range(CLIENTS)]
    return lambda: ray.get([a.small_value_batch.remote(BATCH) for a in actors]), BATCH * CLIENTS


def actor_sync(kind):
    def prepare():
        actor = kind.remote()
        return lambda: ray.get(actor.small_value.remote()), 1

    return prepare


def actor_async(kind, **options):
    def prepare():
        actor = kind.options(**options).remote() if options else kind.remote()
        return lambda: ray.get([actor.small_value.remote() for _ in range(BATCH)]), BATCH

    return prepare


def async_actor_with_arg():
    actor = AsyncActor.remote()
    return lambda: ray.get([actor.small_value_with_arg.remote(i) for i in range(BATCH)]), BATCH


def one_to_n(kind):
    def prepare():
        servers = [kind.remote() for _ in range(ACTORS)]
        client = Client.remote(servers)
        return lambda: ray.get(client.small_value_batch.remote(5_000)), 5_000 * ACTORS

    return prepare


def n_to_n(kind):
    def prepare():
        actors = [kind.remote() for _ in range(ACTORS)]
        return lambda: ray.get([work.remote(actors, 5_000) for _ in range(CLIENTS)]), 5_000 * CLIENTS

    return prepare


def n_to_n_with_arg():
    actors = [Actor.remote() for _ in range(ACTORS)]
    clients = [Client.remote([a]) for a in actors]
    return lambda: ray.get([c.small_value_batch_arg.remote(BATCH) for c in clients]), BATCH * len(clients)


def create_actors():
    """Only the time until the last one has answered counts."""

    def measured(seconds):
        spent = 0.0
        made = 0
        while spent < seconds:
            start = time.perf_counter()
            actors = [Actor.remote() for _ in range(CREATED)]
            ray.get([a.small_value.remote() for a in actors])
            spent += time.perf_counter() - start
            made += CREATED
            for actor in actors:
                ray.kill(actor)
        return made / spent

    return measured, None


ROWS = {
    "single client get calls (Plasma Store)": get_small,
    "single client put calls (Plasma Store)": put_small_row,
    "multi client put calls (Plasma Store)": multi_put_small,
    "put gigabytes, from inside the cluster": put_large,
    "put gigabytes, from a remote driver": put_large_remote,
    "single client tasks and get batch": tasks_and_get,
    "single client get object containing 10k refs": nested_refs,
    "single client wait 1k refs": wait_1k,
    "single client tasks sync": tasks_sync,
    "single client tasks async": tasks_async,
    "multi client tasks async": multi_tasks_async,
    "1:1 actor calls sync": actor_sync(Actor),
    "1:1 actor calls async": actor_async(Actor),
    "1:1 actor calls concurrent": actor_async(Actor, max_concurrency=16),
    "1:n actor calls async": one_to_n(Actor),
    "n:n actor calls async": n_to_n(Actor),
    "n:n actor calls with arg async": n_to_n_with_arg,
    "1:1 async-actor calls sync": actor_sync(AsyncActor),
    "1:1 async-actor calls async": actor_async(AsyncActor),
    "1:1 async-actor calls with args async": async_actor_with_arg,
    "1:n async-actor calls async": one_to_n(AsyncActor),
    "n:n async-actor calls async": n_to_n(AsyncActor),
    "actor creation": create_actors,
}


def say(**answer):
    ANSWERS.write("@" + json.dumps(answer) + "\n")
    ANSWERS.flush()


def slice_rate(step, multiplier, seconds):
    """Calls a second over one slice; at least one step, the last one whole."""
    start = time.perf_counter()
    count = 0
    while True:
        step()
        count += 1
        now = time.perf_counter()
        if now - start >= seconds:
            return multiplier * count / (now - start)


def connect(address=None):
    options = {"logging_level": "ERROR", "log_to_driver": False} if SIDE == "ray" else {}
    ray.init(address, **options) if address else ray.init(**options)


def main():
    if sys.argv[2] == "first":
        connect(sys.argv[3] if len(sys.argv) > 3 else None)
        start = time.perf_counter()
        ray.get(small_value.remote())
        say(firstTaskMs=(time.perf_counter() - start) * 1e3)
        return
    connect()
    say(ready=True, address=ray.get_runtime_context().gcs_address if SIDE == "ray" else "")
    prepared = None
    for line in iter(COMMANDS.readline, ""):
        command = json.loads(line)
        if command["do"] == "stop":
            break
        try:
            if command["do"] == "prepare":
                # What the last row held goes before the next one is measured.
                prepared = None
                prepared = ROWS[command["row"]]()
                say(row=command["row"])
            else:
                step, multiplier = prepared
                seconds = command["seconds"]
                say(rate=step(seconds) if multiplier is None else slice_rate(step, multiplier, seconds))
        except Exception as error:
            say(error=f"{type(error).__name__}: {error}"[:300])
    ray.shutdown()


if __name__ == "__main__":
    main()
