"""`ray.util.queue`: a first-in-first-out queue that drivers, tasks and actors share. It is an async actor with a client around it."""

from __future__ import annotations

import asyncio
import queue
from typing import Any, Iterable

from ... import api


class Empty(queue.Empty):
    """Nothing came in time."""


class Full(queue.Full):
    """There was no room in time."""


class _QueueActor:
    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.queue: asyncio.Queue[Any] = asyncio.Queue(maxsize)

    async def qsize(self) -> int:
        return self.queue.qsize()

    async def put(self, item: Any, timeout: float | None = None) -> None:
        try:
            await asyncio.wait_for(self.queue.put(item), timeout)
        except asyncio.TimeoutError:
            raise Full from None

    async def get(self, timeout: float | None = None) -> Any:
        try:
            return await asyncio.wait_for(self.queue.get(), timeout)
        except asyncio.TimeoutError:
            raise Empty from None

    async def empty(self) -> bool:
        return self.queue.empty()

    async def full(self) -> bool:
        return self.queue.full()

    async def put_now(self, items: list[Any]) -> None:
        if self.maxsize > 0 and len(items) + self.queue.qsize() > self.maxsize:
            raise Full(f"Cannot add {len(items)} items to queue of size {self.queue.qsize()} and maxsize {self.maxsize}.")
        for item in items:
            self.queue.put_nowait(item)

    async def get_now(self, count: int) -> list[Any]:
        if count > self.queue.qsize():
            raise Empty(f"Cannot get {count} items from queue of size {self.queue.qsize()}.")
        return [self.queue.get_nowait() for _ in range(count)]


def _answer(ref: Any) -> Any:
    """As `queue.Queue` raises, not as a task's error."""
    try:
        return api.get(ref)
    except Empty as thrown:
        raise Empty(*thrown.args) from None
    except Full as thrown:
        raise Full(*thrown.args) from None


def _checked(timeout: float | None) -> float | None:
    if timeout is not None and timeout < 0:
        raise ValueError("'timeout' must be a non-negative number")
    return timeout


class Queue:
    """Pass it to tasks and actors: it is the same queue there."""

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None) -> None:
        if not isinstance(maxsize, int) or isinstance(maxsize, bool):
            raise TypeError(f"maxsize is a whole number, 0 for no limit; this is {maxsize!r}")
        self.maxsize = maxsize
        self.actor: Any = api.ActorClass(_QueueActor, {"max_concurrency": 1_000, **(actor_options or {})}).remote(maxsize)

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        return int(_answer(self.actor.qsize.remote()))

    qsize = size

    def empty(self) -> bool:
        return self.size() == 0

    def full(self) -> bool:
        return 0 < self.maxsize <= self.size()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        _answer(self.actor.put.remote(item, _checked(timeout)) if block else self.actor.put_now.remote([item]))

    async def put_async(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        await _answer_async(self.actor.put.remote(item, _checked(timeout)) if block else self.actor.put_now.remote([item]))

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if block:
            return _answer(self.actor.get.remote(_checked(timeout)))
        return _answer(self.actor.get_now.remote(1))[0]

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:
        if block:
            return await _answer_async(self.actor.get.remote(_checked(timeout)))
        return (await _answer_async(self.actor.get_now.remote(1)))[0]

    def put_nowait(self, item: Any) -> None:
        self.put(item, block=False)

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """All of them at once, or none."""
        if not isinstance(items, Iterable):
            raise TypeError("Argument 'items' must be an Iterable")
        _answer(self.actor.put_now.remote(list(items)))

    def get_nowait(self) -> Any:
        return self.get(block=False)

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """So many at once, or none."""
        if not isinstance(num_items, int):
            raise TypeError("Argument 'num_items' must be an int")
        if num_items < 0:
            raise ValueError("'num_items' must be nonnegative")
        return list(_answer(self.actor.get_now.remote(num_items)))

    def shutdown(self, force: bool = False, grace_period_s: int = 5) -> None:
        """Ends the actor behind it; what waits there fails."""
        actor, self.actor = self.actor, None
        if actor is None:
            return
        if not force and api.wait([actor.__ray_terminate__.remote()], timeout=grace_period_s)[0]:
            return
        api.kill(actor, no_restart=True)


async def _answer_async(ref: Any) -> Any:
    try:
        return await ref
    except Empty as thrown:
        raise Empty(*thrown.args) from None
    except Full as thrown:
        raise Full(*thrown.args) from None
