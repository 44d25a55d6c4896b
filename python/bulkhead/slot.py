"""One slot: a process of a tenant in its sandbox, which runs tasks of one job one after the other, or one actor. It has no thread of its own beside those
that run calls: whoever is idle, or waits for a value, reads the channel.

Must never: be trusted by anything outside. Everything here may be changed by the code it runs.
"""

from __future__ import annotations

import asyncio
import inspect
import io
import json
import mmap
import os
import pickle
import re
import select
import socket
import sys
import threading
import time
from collections import deque
from typing import Any, Callable

from . import api, values
from . import frames as f
from .client import ClientCore, Pending, describe_failure
from .errors import BulkheadError
from .ray_errors import RayTaskError, error_of

FLUSH_BYTES = 64 * 2**10
FLUSH_SECONDS = 0.002
# A long call's lines are seen while it runs.
LOG_SECONDS = 0.1
MAX_RUNNERS = 1_024
MAX_LOG_BYTES = 2**20
FILE_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")
READ_BYTES = 256 * 2**10


class TemplateInfo:
    __slots__ = ("kind", "code", "export", "method", "returns", "context", "retry_on")

    def __init__(self, kind: int, code: int, export: str, method: str, returns: int, context: dict[str, Any]) -> None:
        self.kind = kind
        self.code = code
        self.export = export
        self.method = method
        self.returns = returns
        self.context = context
        self.retry_on: list[str] = context.pop("retryOn", None) or []


class Exec:
    __slots__ = ("number", "template", "attempt", "origin", "deps", "args", "over", "log_bytes")

    def __init__(self, number: int, template: TemplateInfo, attempt: int, origin: int, deps: list[tuple[int, Any]], args: bytes) -> None:
        self.number = number
        self.template = template
        self.attempt = attempt
        self.origin = origin
        self.deps = deps
        self.args = args
        self.over = False
        self.log_bytes = 0


class _Here(threading.local):
    exec: Exec | None = None
    counted = False


class Slot:
    core: ClientCore

    def __init__(self, channel: socket.socket, number: int, prefix: bytes) -> None:
        # Imported here so that process 1 has it loaded and does not need it.
        from .worker import Envelopes

        self._channel = channel
        self._number = number
        self._envelopes = Envelopes()
        self._cond = threading.Condition(threading.Lock())
        self._send_lock = threading.Lock()
        self._execs: deque[Exec] = deque()
        self._running: dict[int, Exec] = {}
        self._active = 0
        self._limit = 1
        self._idle = 0
        self._runners = 1
        self._pumping = False
        self._here = _Here()
        self._templates: dict[int, TemplateInfo] = {}
        self._codes: dict[int, Any] = {}
        self._attachments: dict[int, memoryview] = {}
        self._instance: Any = None
        self._staged = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._flushed = 0.0
        self.core = ClientCore(prefix, self, error_of)
        api.set_runtime(self)
        sys.stdin = open(os.devnull)
        sys.stdout = Printed(self, 1)
        sys.stderr = Printed(self, 2)

    # --- what the core needs ---

    def touched(self) -> None:
        # What a call starts begins at once, whatever the call does next.
        self.flush()

    def parent(self) -> int:
        found = self._here.exec
        return found.number if found is not None else 0

    def stage(self, encoded: values.Encoded) -> int | None:
        with self._send_lock:
            self._staged += 1
            number = self._staged
            fd = os.open(f"/staging/{self._number}-{number}", os.O_WRONLY)
            try:
                parts = [memoryview(part).cast("B") for part in encoded.parts]
                while parts:
                    wrote = os.writev(fd, parts[:64])
                    while wrote > 0 and parts:
                        if wrote >= len(parts[0]):
                            wrote -= len(parts.pop(0))
                        else:
                            parts[0] = parts[0][wrote:]
                            wrote = 0
                    while parts and len(parts[0]) == 0:
                        parts.pop(0)
            finally:
                os.close(fd)
            from .worker import STAGED_USED, envelope

            self._channel.sendall(envelope(0, f.frame(STAGED_USED)))
        return number

    def attachment(self, number: int) -> memoryview:
        found = self._attachments.pop(number, None)
        if found is None:
            raise BulkheadError("INVALID_ARGUMENT", f"malformed frame: attachment {number} does not exist")
        return found

    def block(self, pending: Pending, timeout: float | None) -> bool:
        """Waits; meanwhile this thread reads the channel, if nobody does, and another call may run."""
        self.flush()
        end = None if timeout is None else time.monotonic() + timeout
        counted = self._here.counted
        if counted:
            with self._cond:
                self._active -= 1
            self._here.counted = False
        try:
            while not pending.done:
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._spawn_if_needed()
                with self._cond:
                    if pending.done:
                        return True
                    if self._pumping:
                        self._cond.wait(left)
                        continue
                    self._pumping = True
                self._pump(left)
            return True
        finally:
            if counted:
                with self._cond:
                    self._active += 1
                self._here.counted = True

    def context(self) -> dict[str, Any]:
        found = self._here.exec
        if found is None:
            return {}
        return {**found.template.context, "taskId": f"{found.template.context.get('origin', '')}{found.origin.to_bytes(4, 'little').hex()}", "attempt": found.attempt}

    # --- the channel ---

    def flush(self) -> None:
        with self._send_lock:
            for batch in self.core.take():
                self._channel.sendall(len(batch).__add__(4).to_bytes(4, "little") + self._number.to_bytes(4, "little") + batch)
        self._flushed = time.monotonic()

    def _pump(self, timeout: float | None) -> None:
        """Reads once. The caller has taken `_pumping`."""
        try:
            if timeout is not None and not select.select([self._channel], [], [], timeout)[0]:
                return
            octets = self._channel.recv(READ_BYTES)
            if not octets:
                os._exit(0)
            for slot, batch in self._envelopes.push(octets):
                if slot == 0:
                    self._host(batch)
                else:
                    self._frames(batch)
        finally:
            with self._cond:
                self._pumping = False
                self._cond.notify_all()

    def _host(self, batch: bytes) -> None:
        reader = f.FrameReader(batch)
        while reader.next():
            reader.u32()
            if reader.op == f.LOAD_CODE:
                number = reader.u32()
                reader.raw(32)
                self._load(number, reader.name())
            elif reader.op == f.ATTACH:
                number, name, size = reader.u32(), reader.name(), reader.u64()
                if not FILE_NAME.match(name):
                    raise BulkheadError("INVALID_ARGUMENT", "an object file has a bad name")
                self._attachments[number] = _mapped(f"/objects/{name}", size)

    def _load(self, number: int, name: str) -> None:
        try:
            with open(f"/code/{name}", "rb") as file:
                source = file.read()
            if not source.startswith(api.SOURCE_HEAD):
                raise ValueError("the code was not made by a Python program")
            self._codes[number] = (source[len(api.SOURCE_HEAD) :], None)
        except Exception as thrown:
            self._codes[number] = (None, thrown)

    def _code(self, number: int) -> Any:
        """Unpickled when first called, in the call: what that runs or prints is the call's."""
        found = self._codes.get(number)
        if found is None:
            raise BulkheadError("INTERNAL", "the code of this call was not loaded")
        if isinstance(found, tuple):
            source, failure = found
            if failure is not None:
                raise failure
            found = self._codes[number] = [pickle.loads(source)]
        return found[0]

    def _frames(self, batch: bytes) -> None:
        reader = f.FrameReader(batch)
        while reader.next():
            op = reader.op
            if op == f.EXEC:
                self._arrived(reader)
            elif op == f.TEMPLATE:
                number, kind, code = reader.u32(), reader.u8(), reader.u32()
                export, method, returns, context = reader.name(), reader.name(), reader.u8(), json.loads(reader.text() or "{}")
                reader.finish()
                info = TemplateInfo(kind, code, export, method, returns, context)
                if kind == f.ACTOR_CLASS:
                    self._limit = max(1, min(MAX_RUNNERS, int(context.pop("concurrency", 1) or 1)))
                self._templates[number] = info
            elif op == f.CANCEL_EXEC:
                self._cancel(reader.u32())
            elif op == f.PULL:
                continue
            elif not self.core.receive(reader):
                raise BulkheadError("INVALID_ARGUMENT", f"malformed frame (op 0x{op:x}): not for a slot")

    def _arrived(self, reader: f.FrameReader) -> None:
        number, kind, template_number, attempt, origin = reader.u32(), reader.u8(), reader.u32(), reader.u32(), reader.u32()
        deps: list[tuple[int, Any]] = []
        for _ in range(reader.u16()):
            position = reader.u16()
            deps.append((position, bytes(reader.sized()) if reader.u8() == 0 else self.attachment(reader.u32())))
        template = self._templates.get(template_number)
        if template is None or template.kind != kind:
            raise BulkheadError("INVALID_ARGUMENT", f"malformed frame: exec {number} names template {template_number}, which is not there or of another kind")
        arrived = Exec(number, template, attempt, origin, deps, bytes(reader.rest()))
        with self._cond:
            self._execs.append(arrived)

    def _cancel(self, number: int) -> None:
        """What waits is cancelled at once; what runs is ended from outside, if it does not end in time."""
        with self._cond:
            found = next((e for e in self._execs if e.number == number), None)
            if found is not None:
                self._execs.remove(found)
        if found is not None:
            self._failure(found, "CANCELLED", "the call was cancelled", "")
            self.flush()

    # --- running ---

    def _spawn_if_needed(self) -> None:
        with self._cond:
            if not self._execs or self._active >= self._limit or self._idle > 0 or self._runners >= MAX_RUNNERS:
                return
            self._runners += 1
        threading.Thread(target=self.serve, name="bulkhead-run", daemon=True).start()

    def serve(self) -> None:
        while True:
            with self._cond:
                taken: Exec | None = None
                while True:
                    if self._execs and self._active < self._limit:
                        taken = self._execs.popleft()
                        self._active += 1
                        break
                    if not self._pumping:
                        self._pumping = True
                        break
                    self._idle += 1
                    self._cond.wait()
                    self._idle -= 1
            if taken is None:
                if self.core.out_bytes or self.core._released:
                    self.flush()
                self._pump(None)
                # What came together is answered together, so that the raylet sees how long calls take and not how long they wait.
                self._flushed = time.monotonic()
                continue
            if self._limit > 1:
                # Somebody must read on while this one runs.
                self._spawn_reader()
            self._here.exec = taken
            self._here.counted = True
            try:
                self._run(taken)
            finally:
                self._here.exec = None
                self._here.counted = False
                with self._cond:
                    self._active -= 1
                    more = bool(self._execs)
            if not more or self.core.out_bytes >= FLUSH_BYTES or time.monotonic() - self._flushed > FLUSH_SECONDS:
                self.flush()

    def _spawn_reader(self) -> None:
        with self._cond:
            if self._pumping or self._idle > 0 or self._runners >= MAX_RUNNERS:
                return
            self._runners += 1
        threading.Thread(target=self.serve, name="bulkhead-run", daemon=True).start()

    def _run(self, of: Exec) -> None:
        template = of.template
        try:
            found: list[Any] = [None] * len(of.deps)
            for i, (position, octets) in enumerate(of.deps):
                found[position if position < len(found) else i] = values.decode(octets)
            args, kwargs = api.unpack_arguments(of.args, found)
            of.deps = []
            if template.kind == f.ACTOR_METHOD:
                call = self._method(template.method)
            else:
                call = self._code(template.code)
            if template.kind == f.ACTOR_CLASS:
                self._instance = call(*args, **kwargs)
                return self._finish(of, None)
            result = call(*args, **kwargs)
            if inspect.iscoroutine(result):
                asyncio.run_coroutine_threadsafe(self._await(of, result), self._events())
                return
            self._finish(of, result)
        except BaseException as thrown:  # noqa: BLE001 - a tenant's SystemExit ends its call, not the slot
            self._threw(of, thrown)

    def _method(self, name: str) -> Callable[..., Any]:
        if name == "__ray_terminate__":
            return lambda: os._exit(0)
        if name == "__ray_ready__":
            return lambda: True
        return getattr(self._instance, name)  # type: ignore[no-any-return]

    def _events(self) -> asyncio.AbstractEventLoop:
        # One for all: the first calls of an actor may come to two threads at once.
        with self._cond:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="bulkhead-asyncio", daemon=True).start()
            return self._loop

    async def _await(self, of: Exec, coroutine: Any) -> None:
        try:
            result = await coroutine
            self._finish(of, result)
        except BaseException as thrown:  # noqa: BLE001
            self._threw(of, thrown)
        self.flush()

    def _finish(self, of: Exec, result: Any) -> None:
        template = of.template
        if template.kind == f.ACTOR_CLASS or template.returns == 0:
            return self.core_write(f.frame(f.RESULT, f.u32(of.number), f.u8(0)))
        results = [result]
        if template.returns > 1:
            results = list(result)
            if len(results) != template.returns:
                raise ValueError(f"Task returned {len(results)} objects, but num_returns={template.returns}.")
        parts: list[bytes] = []
        inline = 0
        for value in results:
            encoded = values.encode(value, "result")
            if encoded.size > f.MAX_OBJECT_BYTES:
                raise BulkheadError("RESOURCE_EXHAUSTED", f"a result of {encoded.size} bytes exceeds the limit of {f.MAX_OBJECT_BYTES}")
            if encoded.size <= f.MAX_INLINE_BYTES and inline + encoded.size <= 2**20:
                inline += encoded.size
                parts += [f.u8(0), f.refs(encoded.ids), f.sized(encoded.join())]
            else:
                number = self.stage(encoded)
                parts += [f.u8(1), f.refs(encoded.ids), f.u32(number or 0), f.u64(encoded.size)]
        self.core_write(f.frame(f.RESULT, f.u32(of.number), f.u8(len(results)), *parts))

    def core_write(self, octets: bytes) -> None:
        with self.core.lock:
            self.core._put(octets)

    def _threw(self, of: Exec, thrown: BaseException) -> None:
        code = "TASK_FAILED"
        if isinstance(thrown, BulkheadError):
            code = thrown.code if thrown.code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED") else "TASK_FAILED"
        if isinstance(thrown, RayTaskError) and thrown.cause is not None:
            thrown = thrown.cause
        message, stack = describe_failure(thrown)
        if of.template.retry_on and any(kind.__name__ in of.template.retry_on for kind in type(thrown).__mro__):
            self.core_write(f.frame(f.RETRY, f.u32(of.number)))
        self._failure(of, code, message, stack)

    def _failure(self, of: Exec, code: str, message: str, stack: str) -> None:
        self.core_write(f.frame(f.FAILURE, f.u32(of.number), f.short(code), f.text(message), f.text(stack)))

    def log(self, stream: int, line: str) -> None:
        of = self._here.exec
        number = 0
        if of is not None:
            number = of.number
            if of.log_bytes > MAX_LOG_BYTES:
                return
            of.log_bytes += len(line)
            if of.log_bytes > MAX_LOG_BYTES:
                line = f"… more than {MAX_LOG_BYTES} bytes of log: the rest is dropped\n"
        self.core_write(f.frame(f.LOG, f.u32(number), f.u8(stream), line.encode("utf-8", "replace")[:65_536]))
        if time.monotonic() - self._flushed > LOG_SECONDS:
            self.flush()


def _mapped(path: str, size: int) -> memoryview:
    """A sealed object's file, read-only and without a copy."""
    fd = os.open(path, os.O_RDONLY)
    try:
        if os.fstat(fd).st_size != size:
            raise BulkheadError("OBJECT_LOST", "an object file has not the size that was announced")
        return memoryview(mmap.mmap(fd, size, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)) if size else memoryview(b"")
    finally:
        os.close(fd)


class Printed(io.TextIOBase):
    """Standard output of a call, line by line into its job's log."""

    def __init__(self, slot: Slot, stream: int) -> None:
        self._slot = slot
        self._stream = stream
        self._line = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._line += text
        if "\n" in self._line:
            lines, _, self._line = self._line.rpartition("\n")
            self._slot.log(self._stream, lines + "\n")
        return len(text)

    def flush(self) -> None:
        if self._line:
            line, self._line = self._line, ""
            self._slot.log(self._stream, line)
