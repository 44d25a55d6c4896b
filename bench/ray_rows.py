"""The Ray side of the bench: Ray's own microbenchmark, one slice at a time, and the rows that Ray has no benchmark for.

`ray_rows.py rows [FILTER]` runs the code of `ray microbenchmark` itself. Only its stopwatch is replaced: for every row it announces the
name, then measures slices as it is told on standard input, so that slices of Ray and of Bulkhead alternate. `ray_rows.py extras` does
what it is told, one command a line. Answers are JSON Lines that begin with '@'; everything else that Ray prints is ignored.
"""

import json
import os
import sys
import time

os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray's workers get no copy of the pipe that the commands come through.
COMMANDS = os.fdopen(os.dup(0), "r")
ANSWERS = os.fdopen(os.dup(1), "w")


# Of one call, as in rows.ts.
STREAM_ITEMS = 10_000
STREAMING = "single client streaming generator items"
BROADCAST = "broadcast of 100 MB to 3 raylets"
OWN = {STREAMING, BROADCAST}
# As in rows.ts.
BROADCAST_NODES = 4
LARGE_BYTES = 100 * 2**20


class Timed(float):
    """Seconds that a call says it took itself: what it had to prepare is left out."""


def say(**answer):
    ANSWERS.write("@" + json.dumps(answer) + "\n")
    ANSWERS.flush()


def commands():
    for line in iter(COMMANDS.readline, ""):
        yield json.loads(line)


def slice_rate(fn, multiplier, seconds):
    """Calls a second over one slice; at least one call, the last one whole."""
    start = time.perf_counter()
    count = 0
    beside = 0.0
    while True:
        before = time.perf_counter()
        took = fn()
        count += 1
        now = time.perf_counter()
        if isinstance(took, Timed):
            beside += now - before - took
        if now - start - beside >= seconds:
            return multiplier * count / (now - start - beside)


def microbenchmark(wanted):
    from ray._private import ray_client_microbenchmark, ray_perf

    def timeit(name, fn, multiplier=1, warmup_time_sec=0):
        if wanted is not None and name not in wanted:
            return [None]
        say(row=name)
        for command in commands():
            if command["do"] == "next":
                return [None]
            if command["do"] == "stop":
                raise SystemExit(0)
            try:
                say(row=name, rate=slice_rate(fn, multiplier, command["seconds"]))
            except Exception as error:
                say(row=name, error=str(error)[:300])
                return [None]
        raise SystemExit(0)

    ray_perf.timeit = timeit
    ray_client_microbenchmark.timeit = timeit
    # Ray prepares all of its rows, measured or not: that takes minutes.
    if wanted is None or wanted - OWN:
        ray_perf.main()
    own_rows(wanted, timeit)
    say(done=True)


def own_rows(wanted, timeit):
    """Rows that `ray microbenchmark` does not have."""
    if wanted is None or STREAMING in wanted:
        streaming(timeit)
    if wanted is None or BROADCAST in wanted:
        broadcast(timeit)


def streaming(timeit):
    import ray

    ray.init(logging_level="WARNING", log_to_driver=False, ignore_reinit_error=True)

    @ray.remote(num_returns="streaming")
    def small_values(n):
        for _ in range(n):
            yield b"ok"

    def stream():
        for ref in small_values.remote(STREAM_ITEMS):
            ray.get(ref)

    timeit(STREAMING, stream, STREAM_ITEMS)
    ray.shutdown()


def broadcast(timeit):
    """Several nodes of one machine, as Ray's own tests start them."""
    import numpy as np
    import ray
    from ray.cluster_utils import Cluster
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    room = {"num_cpus": 1, "object_store_memory": 10 * LARGE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=room)
    try:
        for _ in range(BROADCAST_NODES - 1):
            cluster.add_node(**room)
        ray.init(address=cluster.address, logging_level="WARNING", log_to_driver=False)
        cluster.wait_for_nodes()
        here = ray.get_runtime_context().get_node_id()

        @ray.remote(num_cpus=1)
        def size(array):
            return array.nbytes

        others = [node["NodeID"] for node in ray.nodes() if node["NodeID"] != here]
        readers = [size.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)) for node in others]
        ray.get([read.remote(np.zeros(1)) for read in readers])
        array = np.zeros(LARGE_BYTES // 8, dtype=np.int64)

        def everywhere():
            ref = ray.put(array)
            start = time.perf_counter()
            sizes = ray.get([read.remote(ref) for read in readers])
            took = time.perf_counter() - start
            assert sizes == [LARGE_BYTES] * len(readers)
            return Timed(took)

        timeit(BROADCAST, everywhere, len(readers) * LARGE_BYTES / 1e9)
    finally:
        ray.shutdown()
        cluster.shutdown()


def extras():
    import numpy as np
    import ray

    kept = {}
    client = session = None
    for command in commands():
        do = command["do"]
        if do == "init":
            start = time.perf_counter()
            ray.init(logging_level="WARNING", log_to_driver=False)
            ready = time.perf_counter()

            @ray.remote
            def one():
                return 1

            ray.get(one.remote())
            first = time.perf_counter()
            say(readyMs=(ready - start) * 1e3, firstTaskMs=(first - start) * 1e3, pid=os.getpid())
        elif do == "actors":

            @ray.remote(num_cpus=0)
            class Idle:
                def __init__(self):
                    self.n = 0

                def ping(self):
                    return b"ok"

            start = time.perf_counter()
            actors = [Idle.remote() for _ in range(command["count"])]
            ray.get([a.ping.remote() for a in actors])
            say(rate=command["count"] / (time.perf_counter() - start))
            kept["actors"] = actors
        elif do == "drop":
            for actor in kept.pop("actors", []):
                ray.kill(actor)
            say(ok=True)
        elif do == "block":
            # All cpus are taken for so long.
            @ray.remote
            def block(seconds):
                time.sleep(seconds)

            kept["blockers"] = [block.remote(command["seconds"]) for _ in range(int(ray.cluster_resources()["CPU"]))]
            say(ok=True)
        elif do == "queue":

            @ray.remote
            def small_value():
                return b"ok"

            kept["queued"] = [small_value.remote() for _ in range(command["count"])]
            say(ok=True)
        elif do == "client":
            # As Ray's own rows of its client do it: server and client in one process, gRPC between them.
            from ray._private.client_mode_hook import disable_client_hook
            from ray.util.client.ray_client_helpers import ray_start_client_server

            def cluster(job_config=None, **options):
                with disable_client_hook():
                    if not ray.is_initialized():
                        ray.init(logging_level="WARNING", log_to_driver=False)

            session = ray_start_client_server(ray_connect_handler=cluster)
            client = session.__enter__()
            kept["array"] = np.zeros(command["bytes"] // 8, dtype=np.int64)
            say(ok=True)
        elif do == "get":
            array = kept["array"]
            ref = kept.setdefault("ref", client.put(array))
            say(rate=slice_rate(lambda: client.get(ref), array.nbytes / 1e9, command["seconds"]))
        elif do == "stop":
            break
    if session is not None:
        kept.clear()
        session.__exit__(None, None, None)
    elif ray.is_initialized():
        ray.shutdown()


if __name__ == "__main__":
    if sys.argv[1] == "rows":
        microbenchmark(set(json.loads(sys.argv[2])) if len(sys.argv) > 2 else None)
    else:
        extras()
