"""The reader's half of calls that stream (proto/frames.md, "Calls that stream"): what a program iterates over while the call goes on. Items come as far ahead as
the window allows; taking them makes room for more.

Must never: hold more than the window, or wait in a finalizer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Iterator

from . import frames as f
from .errors import BulkheadError

if TYPE_CHECKING:
    from .client import ClientCore, Pending

WINDOW_ITEMS = 4_096
WINDOW_BYTES = 4 * 2**20
FIRST_ITEMS = 64
NO_ITEM = 0xFFFF_FFFF


class Item:
    """One that has come: its index, and its octets where they came with it."""

    __slots__ = ("index", "size", "octets")

    def __init__(self, index: int, size: int, octets: bytes | None) -> None:
        self.index = index
        self.size = size
        self.octets = octets


class Reading:
    """One stream as the client keeps it. Everything here is under the core's lock."""

    def __init__(self, core: ClientCore, seq: int, window: int) -> None:
        self.core = core
        self.seq = seq
        self._window = window
        self._ahead = min(FIRST_ITEMS, window)
        # Granted and not come yet, and the runs of their indexes.
        self._expected = 0
        self._granted: deque[list[int]] = deque()
        self._since_grown = 0
        self.items: deque[Item] = deque()
        self._waiters: deque[Pending] = deque()
        self._watchers: list[Pending] = []
        self._received = 0
        self._taken = 0
        self._taken_bytes = 0
        self.ended = False
        self.failed = False
        self.closed = False

    def grant(self, parent: int, waits_for: int = NO_ITEM) -> None:
        count = max(0, self._ahead - self._expected - len(self.items))
        first = 0
        if count > 0:
            first = self.core.take_indexes(count)
            self._granted.append([first, first + count])
        self._expected += count
        self.core._put(f.frame(f.MORE, f.u32(parent), f.u32(self.seq), f.u32(0), f.u32(waits_for), f.u32(self._taken), f.u32(first), f.u32(count)))
        self._taken = self._taken_bytes = 0

    # --- what the raylet says ---

    def came(self, size: int, octets: bytes | None) -> Pending | None:
        """An item. Who waits for it, to be woken; its grant may have been written."""
        if not self._granted:
            raise BulkheadError("INVALID_ARGUMENT", "malformed frame: an item that was not asked for")
        run = self._granted[0]
        index = run[0]
        run[0] += 1
        if run[0] == run[1]:
            self._granted.popleft()
        self._received += 1
        self._expected -= 1
        self._since_grown += 1
        if self.closed:
            self.core.drop(self.core.id_of(index))
            return None
        item = Item(index, size, octets)
        if not self._waiters:
            self.items.append(item)
            return None
        waiter = self._waiters.popleft()
        waiter.values = [item]
        self._took(item)
        return waiter

    def end(self, failed: bool) -> list[Pending]:
        self.ended = True
        self.failed = failed
        woken = list(self._waiters)
        self._waiters.clear()
        return woken

    def watched(self) -> list[Pending]:
        found, self._watchers = self._watchers, []
        return found

    # --- what its reader does ---

    def _took(self, item: Item) -> None:
        self._taken += 1
        self._taken_bytes += item.size
        if not self.ended and (2 * self._taken >= self._ahead or 2 * self._taken_bytes >= WINDOW_BYTES):
            self.grant(self.core.host.parent())

    def ready(self) -> Item | None:
        if not self.items:
            return None
        item = self.items.popleft()
        self._took(item)
        return item

    @property
    def something(self) -> bool:
        """Whether its next step has an answer now."""
        return bool(self.items) or self.ended or self.closed

    def wait(self, pending: Pending) -> None:
        parent = self.core.host.parent()
        # It waits although it took as many as it may have ahead: with more on their way it would not.
        grows = 2 * self._since_grown >= self._ahead and self._ahead < self._window
        if grows:
            self._ahead = min(2 * self._ahead, self._window)
            self._since_grown = 0
        # Of a call on the cluster the raylet must know that it waits: others may use its cpu meanwhile.
        if parent != 0:
            self.grant(parent, self._received + len(self._waiters))
        elif grows:
            self.grant(parent)
        self._waiters.append(pending)

    def watch(self, pending: Pending) -> None:
        self._watchers.append(pending)

    def forget(self, pending: Pending) -> None:
        for held in (self._waiters, self._watchers):
            try:
                held.remove(pending)
            except ValueError:
                pass


class StreamGenerator:
    """What a call that streams returns: iterate over it, in a thread or in asyncio, for a ref to each item. A call that fails ends in a ref that raises what it
    failed with. Dropping the generator ends the call."""

    def __init__(self, reading: Reading, call: Any, make_ref: Any) -> None:
        self._reading = reading
        # The ref of the call itself: dropping it is what ends the call.
        self._call = call
        self._make_ref = make_ref
        self._told = False

    def __del__(self) -> None:
        try:
            reading = self._reading
            reading.core.closing.append(reading)
        except AttributeError:
            pass

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._next_sync()

    def _begin(self) -> tuple[Item | None, Pending | None]:
        from .client import Pending

        reading = self._reading
        core = reading.core
        with core.lock:
            item = reading.ready()
            if item is not None or reading.ended or reading.closed:
                return item, None
            core._open()
            pending = Pending((), 1, ())
            reading.wait(pending)
        core.host.touched()
        return None, pending

    def _step(self, item: Item | None) -> Any:
        reading = self._reading
        if item is not None:
            return self._make_ref(reading.core.id_of(item.index), reading.core, item.octets)
        if reading.failed and not self._told and not reading.closed:
            self._told = True
            return self._call
        return None

    def _next_sync(self, timeout_s: float | None = None) -> Any:
        """The next ref; Ray answers a nil ref when the time is over, and so is this."""
        item, pending = self._begin()
        if pending is not None:
            core = self._reading.core
            if not core.host.block(pending, timeout_s):
                with core.lock:
                    if not pending.done:
                        self._reading.forget(pending)
                        return self._make_ref(None, core, None)
            item = pending.values[0]
        found = self._step(item)
        if found is None:
            raise StopIteration
        return found

    def __aiter__(self) -> StreamGenerator:
        return self

    async def __anext__(self) -> Any:
        item, pending = self._begin()
        if pending is not None:
            core = self._reading.core
            loop = asyncio.get_running_loop()
            woken: asyncio.Future[None] = loop.create_future()

            def settle() -> None:
                if not woken.done():
                    woken.set_result(None)

            def wake(_: Any) -> None:
                loop.call_soon_threadsafe(settle)

            with core.lock:
                done = pending.done
                if not done:
                    pending.callback = wake
            if not done:
                try:
                    await woken
                except asyncio.CancelledError:
                    with core.lock:
                        self._reading.forget(pending)
                        if pending.done and pending.values[0] is not None:
                            self._reading.items.appendleft(pending.values[0])
                    raise
            item = pending.values[0]
        found = self._step(item)
        if found is None:
            raise StopAsyncIteration
        return found

    def completed(self) -> Any:
        """A ref that is there when the call has ended, and raises what it failed with."""
        return self._call

    def next_ready(self) -> bool:
        with self._reading.core.lock:
            return not self.is_finished() and self._reading.something

    def is_finished(self) -> bool:
        """Whether there is nothing more to take."""
        with self._reading.core.lock:
            reading = self._reading
            return reading.closed or (reading.ended and not reading.items and (self._told or not reading.failed))

    def task_id(self) -> str:
        return str(self._call.hex())

    def close(self) -> None:
        """Ends the call, if it has not ended."""
        reading = self._reading
        reading.core.ask(f.CANCEL, reading.core.id_of(reading.seq), f.u8(0))
        with reading.core.lock:
            reading.core.closing.append(reading)

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._call.hex()})"

    def __reduce__(self) -> Any:
        raise NotImplementedError("You cannot return or pass a generator to other task. Serializing an ObjectRefGenerator is not allowed: pass the refs of its items.")


class DynamicGenerator:
    """What `num_returns="dynamic"` has as its value: refs, of a generator that has been run to its end."""

    def __init__(self, refs: list[Any]) -> None:
        self._refs = deque(refs)

    def __iter__(self) -> Iterator[Any]:
        while self._refs:
            yield self._refs.popleft()

    def __len__(self) -> int:
        return len(self._refs)

    def __reduce__(self) -> Any:
        return DynamicGenerator, (list(self._refs),)
