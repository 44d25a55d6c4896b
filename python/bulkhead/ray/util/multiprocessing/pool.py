"""A `multiprocessing.Pool` whose processes are actors, on whatever nodes have room."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from multiprocessing import TimeoutError
from typing import Any, Callable, Iterable, Iterator

from .... import api
from ....cluster import cluster_resources
from ....ray_errors import GetTimeoutError

Batch = list[tuple[tuple[Any, ...], dict[str, Any]]]


class PoolTaskError(Exception):
    """What a call threw, until whoever asks for its result."""

    def __init__(self, underlying: BaseException) -> None:
        super().__init__(str(underlying))
        self.underlying = underlying


class _PoolActor:
    def __init__(self, initializer: Callable[..., Any] | None, initargs: tuple[Any, ...]) -> None:
        if initializer is not None:
            initializer(*initargs)

    def run_batch(self, func: Callable[..., Any], batch: Batch) -> list[tuple[bool, Any]]:
        results: list[tuple[bool, Any]] = []
        for args, kwargs in batch:
            try:
                results.append((True, func(*args, **kwargs)))
            except Exception as thrown:
                results.append((False, thrown))
        return results


class AsyncResult:
    """Results of one `…_async` call."""

    def __init__(self, refs: list[Any], callback: Any = None, error_callback: Any = None, single: bool = False) -> None:
        self._refs = refs
        self._single = single
        self._found: list[tuple[bool, Any]] | None = None
        self._lock = threading.Lock()
        if callback is not None or error_callback is not None:
            threading.Thread(target=self._tell, args=(callback, error_callback), name="bulkhead-pool", daemon=True).start()

    def _tell(self, callback: Any, error_callback: Any) -> None:
        try:
            value = self.get()
        except Exception as thrown:
            if error_callback is not None:
                error_callback(thrown)
            return
        if callback is not None:
            callback(value)

    def _results(self, timeout: float | None) -> list[tuple[bool, Any]]:
        with self._lock:
            found = self._found
        if found is None:
            try:
                found = [result for batch in api.get(self._refs, timeout=timeout) for result in batch]
            except GetTimeoutError:
                raise TimeoutError() from None
            with self._lock:
                self._found = found
        return found

    def get(self, timeout: float | None = None) -> Any:
        results = self._results(timeout)
        for ok, value in results:
            if not ok:
                raise value
        values = [value for _, value in results]
        return values[0] if self._single else values

    def wait(self, timeout: float | None = None) -> None:
        if self._refs:
            api.wait(self._refs, num_returns=len(self._refs), timeout=timeout)

    def ready(self) -> bool:
        return not self._refs or len(api.wait(self._refs, num_returns=len(self._refs), timeout=0)[0]) == len(self._refs)

    def successful(self) -> bool:
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        try:
            self.get()
        except Exception:
            return False
        return True


class IMapIterator:
    """Results of `imap` and `imap_unordered`: calls are made as results are taken, as many ahead as the pool has processes."""

    def __init__(self, pool: Pool, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int, ordered: bool) -> None:
        self._pool = pool
        self._func = func
        self._items = iter(iterable)
        self._chunksize = max(1, chunksize)
        self._ordered = ordered
        self._over = False
        self._running: list[Any] = []
        self._ready: deque[tuple[bool, Any]] = deque()
        for _ in range(max(1, len(pool._actors))):
            self._submit()

    def _submit(self) -> None:
        batch: Batch = [((item,), {}) for item in itertools.islice(self._items, self._chunksize)]
        if not batch:
            self._over = True
            return
        self._running.append(self._pool._run(self._func, batch))

    def __iter__(self) -> IMapIterator:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        while not self._ready:
            if not self._running:
                raise StopIteration
            done, _ = api.wait(self._running[:1] if self._ordered else self._running, num_returns=1, timeout=timeout)
            if not done:
                raise TimeoutError()
            self._running.remove(done[0])
            self._ready.extend(api.get(done[0]))
            if not self._over:
                self._submit()
        # As in Ray, what a call threw is its result here, so that the others can still be had.
        _, value = self._ready.popleft()
        return value


class Pool:
    def __init__(self, processes: int | None = None, initializer: Callable[..., Any] | None = None, initargs: Iterable[Any] | None = None, maxtasksperchild: int | None = None,
                 context: Any = None, ray_address: str | None = None, ray_remote_args: dict[str, Any] | None = None) -> None:
        if context is not None:
            raise NotImplementedError("Pool(context=…) is not supported: its processes are actors")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if ray_address is not None and not api.connected():
            from ....driver import init

            init(ray_address)
        cpus = int(cluster_resources().get("CPU", 0))
        if processes is not None and processes <= 0:
            raise ValueError("Processes in the pool must be >0.")
        if processes is not None and processes > cpus:
            raise ValueError(f"Tried to start a pool with {processes} processes on an existing ray cluster, but there are only {cpus} CPUs in the ray cluster.")
        self._closed = False
        self._maxtasksperchild = maxtasksperchild or -1
        self._actor_class = api.ActorClass(_PoolActor, dict(ray_remote_args or {}))
        self._init = (initializer, tuple(initargs or ()))
        # Each with the calls that it still may be given.
        self._actors: list[list[Any]] = [self._new_actor() for _ in range(processes or max(1, cpus))]
        self._next = 0
        self._pending: list[Any] = []

    def _new_actor(self) -> list[Any]:
        return [self._actor_class.remote(*self._init), self._maxtasksperchild]

    def _run(self, func: Callable[..., Any], batch: Batch) -> Any:
        place = self._next
        self._next = (self._next + 1) % len(self._actors)
        entry = self._actors[place]
        ref = entry[0].run_batch.remote(func, batch)
        if entry[1] > 0:
            entry[1] = max(0, entry[1] - len(batch))
            if entry[1] == 0:
                # Behind what it was given it ends, and another takes its place.
                entry[0].__ray_terminate__.remote()
                self._actors[place] = self._new_actor()
        self._pending = [*self._pending[-1_000:], ref]
        return ref

    def _check(self) -> None:
        if self._closed:
            raise ValueError("Pool not running")

    def _chunks(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None, unpack: bool) -> list[Any]:
        self._check()
        items = iterable if isinstance(iterable, (list, tuple)) else list(iterable)
        if chunksize is None:
            chunksize = max(1, -(-len(items) // (4 * len(self._actors))))
        batches = (items[start : start + chunksize] for start in range(0, len(items), chunksize))
        return [self._run(func, [(tuple(item) if unpack else (item,), {}) for item in batch]) for batch in batches]

    def apply(self, func: Callable[..., Any], args: Iterable[Any] | None = None, kwargs: dict[str, Any] | None = None) -> Any:
        return self.apply_async(func, args, kwargs).get()

    def apply_async(self, func: Callable[..., Any], args: Iterable[Any] | None = None, kwargs: dict[str, Any] | None = None, callback: Any = None, error_callback: Any = None) -> AsyncResult:
        self._check()
        return AsyncResult([self._run(func, [(tuple(args or ()), dict(kwargs or {}))])], callback, error_callback, single=True)

    def map(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        return list(self.map_async(func, iterable, chunksize).get())

    def map_async(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None, callback: Any = None, error_callback: Any = None) -> AsyncResult:
        return AsyncResult(self._chunks(func, iterable, chunksize, False), callback, error_callback)

    def starmap(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        return list(self.starmap_async(func, iterable, chunksize).get())

    def starmap_async(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None, callback: Any = None, error_callback: Any = None) -> AsyncResult:
        return AsyncResult(self._chunks(func, iterable, chunksize, True), callback, error_callback)

    def imap(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int = 1) -> Iterator[Any]:
        self._check()
        return IMapIterator(self, func, iterable, chunksize, True)

    def imap_unordered(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int = 1) -> Iterator[Any]:
        self._check()
        return IMapIterator(self, func, iterable, chunksize, False)

    def close(self) -> None:
        """Takes no more work."""
        self._closed = True

    def terminate(self) -> None:
        self._closed = True
        for actor, _ in self._actors:
            api.kill(actor)
        self._pending = []

    def join(self) -> None:
        if not self._closed:
            raise ValueError("Pool is still running")
        if self._pending:
            api.wait(self._pending, num_returns=len(self._pending))
        self._pending = []

    def __enter__(self) -> Pool:
        self._check()
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()
