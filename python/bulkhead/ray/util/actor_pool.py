"""`ray.util.ActorPool`: hands work to whichever of its actors is free."""

from __future__ import annotations

from collections import deque
from typing import Any, Callable, Iterable, Iterator

from ... import api

Call = Callable[[Any, Any], Any]


def _ready(refs: list[Any], timeout: float | None) -> list[Any]:
    """Of refs, and of tuples of refs, one that is there; none when the time is over."""
    first = {ref[-1] if isinstance(ref, tuple) else ref: ref for ref in refs}
    return [first[done] for done in api.wait(list(first), num_returns=1, timeout=timeout)[0]]


def _value(ref: Any) -> Any:
    return api.get(list(ref) if isinstance(ref, tuple) else ref)


class ActorPool:
    def __init__(self, actors: Iterable[Any]) -> None:
        self._idle: list[Any] = list(actors)
        # By ref: which result it is, and who computes it. By number: its ref.
        self._running: dict[Any, tuple[int, Any]] = {}
        self._refs: dict[int, Any] = {}
        self._waiting: deque[tuple[Call, Any]] = deque()
        self._submitted = 0
        self._returned = 0

    # --- one by one ---

    def submit(self, fn: Call, value: Any) -> None:
        """Calls `fn(actor, value)`, now or when an actor is free."""
        if not self._idle:
            self._waiting.append((fn, value))
            return
        actor = self._idle.pop()
        ref = fn(actor, value)
        if isinstance(ref, list):
            # Of a method with several results: all of them are one result here.
            ref = tuple(ref)
        self._running[ref] = (self._submitted, actor)
        self._refs[self._submitted] = ref
        self._submitted += 1

    def has_next(self) -> bool:
        return bool(self._running)

    def has_free(self) -> bool:
        return bool(self._idle) and not self._waiting

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The next result in the order of `submit`."""
        if not self.has_next():
            raise StopIteration("No more results to get")
        if self._returned not in self._refs:
            raise ValueError("It is not allowed to call get_next() after get_next_unordered().")
        ref = self._refs[self._returned]
        late = timeout is not None and not _ready([ref], timeout)
        if late and not ignore_if_timedout:
            raise TimeoutError("Timed out waiting for result")
        del self._refs[self._returned]
        self._returned += 1
        _, actor = self._running.pop(ref)
        if late:
            # Nobody waits for it any more; its actor goes on with the next when it is done.
            self._give_back(actor)
            raise TimeoutError("Timed out waiting for result: it is ignored")
        self._give_back(actor)
        return _value(ref)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The next result that is there."""
        if not self.has_next():
            raise StopIteration("No more results to get")
        ready = _ready(list(self._running), timeout)
        if not ready:
            if not ignore_if_timedout:
                raise TimeoutError("Timed out waiting for result")
            ref = next(iter(self._running))
        else:
            ref = ready[0]
        number, actor = self._running.pop(ref)
        del self._refs[number]
        self._returned = max(self._returned, number + 1)
        self._give_back(actor)
        if not ready:
            raise TimeoutError("Timed out waiting for result: it is ignored")
        return _value(ref)

    def _give_back(self, actor: Any) -> None:
        self._idle.append(actor)
        if self._waiting:
            self.submit(*self._waiting.popleft())

    # --- many ---

    def _drain(self) -> None:
        """Results of before that nobody took."""
        while self.has_next():
            try:
                self.get_next(timeout=0, ignore_if_timedout=True)
            except (TimeoutError, ValueError):
                if self._refs and self._returned not in self._refs:
                    self._returned = min(self._refs)

    def map(self, fn: Call, values: Iterable[Any]) -> Iterator[Any]:
        self._drain()
        for value in values:
            self.submit(fn, value)

        def results() -> Iterator[Any]:
            while self.has_next():
                yield self.get_next()

        return results()

    def map_unordered(self, fn: Call, values: Iterable[Any]) -> Iterator[Any]:
        self._drain()
        for value in values:
            self.submit(fn, value)

        def results() -> Iterator[Any]:
            while self.has_next():
                yield self.get_next_unordered()

        return results()

    # --- its actors ---

    def pop_idle(self) -> Any:
        return self._idle.pop() if self.has_free() else None

    def push(self, actor: Any) -> None:
        if actor in self._idle or any(actor == busy for _, busy in self._running.values()):
            raise ValueError("Actor already belongs to current ActorPool")
        self._give_back(actor)
