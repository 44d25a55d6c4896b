"""A call that streams, where it runs: its generator goes as far as its reader has room (PULL), in a thread, or in the actor's event loop when it is async.

Must never: send an item that PULL does not allow: the raylet ends the worker for it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any, Callable

from . import frames as f
from . import values
from .errors import BulkheadError

if TYPE_CHECKING:
    from .slot import Exec, Slot

# Items that are yielded fast leave together; after so long they leave, whatever the generator does.
LINGER_SECONDS = 0.001


class Production:
    """How far the generator is and may go, in numbers through all attempts of the call. `done` is what whoever waits for room looks at."""

    __slots__ = ("of", "skip", "up_to", "room", "made", "sent_bytes", "event", "callback")

    def __init__(self, of: Exec) -> None:
        self.of = of
        self.skip = self.up_to = self.room = self.made = self.sent_bytes = 0
        self.event: threading.Event | None = None
        self.callback: Callable[[], object] | None = None

    @property
    def done(self) -> bool:
        return self.of.over or (self.made < self.up_to and self.sent_bytes < self.room)

    def pull(self, skip: int, up_to: int, room: int) -> None:
        self.skip, self.up_to, self.room = skip, up_to, room
        self.wake()

    def wake(self) -> None:
        callback = self.callback
        if callback is not None:
            callback()


class Cancelled(Exception):
    """The call was cancelled, or its reader has gone."""


class Producer:
    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._lingers = threading.Event()
        self._thread: threading.Thread | None = None

    def run(self, of: Exec, production: Production, iterable: Any) -> None:
        """To the end of the generator, in this thread."""
        try:
            iterator = iter(iterable)
        except TypeError:
            raise TypeError(f"num_returns='streaming' needs a generator; {of.template.method or of.template.export} returned a {type(iterable).__name__}") from None
        try:
            while True:
                if not production.done:
                    self._slot.block(production, None)
                if of.over:
                    raise Cancelled()
                try:
                    value = next(iterator)
                except StopIteration:
                    return
                self._item(of, production, value)
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    async def run_async(self, of: Exec, production: Production, iterable: Any) -> None:
        loop = asyncio.get_running_loop()
        room = asyncio.Event()
        production.callback = lambda: loop.call_soon_threadsafe(room.set)
        later = hasattr(iterable, "__aiter__")
        iterator: Any = aiter(iterable) if later else iter(iterable)
        try:
            while True:
                room.clear()
                if not production.done:
                    self._slot.flush()
                    await room.wait()
                    continue
                if of.over:
                    raise Cancelled()
                try:
                    value = await anext(iterator) if later else next(iterator)
                except (StopAsyncIteration, StopIteration):
                    return
                self._item(of, production, value)
                if not later:
                    await asyncio.sleep(0)
        finally:
            if later and hasattr(iterator, "aclose"):
                await iterator.aclose()
            elif hasattr(iterator, "close"):
                iterator.close()

    def _item(self, of: Exec, production: Production, value: Any) -> None:
        if production.made < production.skip:
            production.made += 1
            return
        slot = self._slot
        encoded = values.encode(value, "item", of.plain)
        if encoded.size > f.MAX_OBJECT_BYTES:
            raise BulkheadError("RESOURCE_EXHAUSTED", f"an item of {encoded.size} bytes exceeds the limit of {f.MAX_OBJECT_BYTES}")
        head = f.u32(of.number)
        if encoded.size <= f.MAX_INLINE_BYTES:
            octets = f.frame(f.ITEM, head, f.u8(0), f.refs(encoded.ids), *encoded.parts)
        else:
            octets = f.frame(f.ITEM, head, f.u8(1), f.refs(encoded.ids), f.u32(slot.stage(encoded) or 0), f.u64(encoded.size))
        production.made += 1
        production.sent_bytes += encoded.size
        slot.core_write(octets)
        if time.monotonic() - slot.flushed_at > LINGER_SECONDS:
            slot.flush()
        else:
            self._linger()

    def _linger(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._flush_later, name="bulkhead-items", daemon=True)
            self._thread.start()
        self._lingers.set()

    def _flush_later(self) -> None:
        while True:
            self._lingers.wait()
            self._lingers.clear()
            time.sleep(LINGER_SECONDS)
            self._slot.flush()
