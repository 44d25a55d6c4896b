"""One slot: a process of a tenant in its sandbox, which runs tasks of one job one after the other, or one actor. It has no thread of its own beside those
that run calls: whoever is idle, or waits for a value, reads the channel.

Must never: be trusted by anything outside. Everything here may be changed by the code it runs.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import inspect
import io
import itertools
import json
import mmap
import os
import re
import select
import socket
import sys
import threading
import time
from collections import deque
from typing import Any, Callable, Iterable, Iterator

from . import api, runtime_env, values
from . import frames as f
from .client import CAUSE_MARK, ClientCore, Pending, describe_failure
from .errors import BulkheadError
from .job import Program
from .producing import Cancelled, Producer, Production
from .streams import DynamicGenerator
from .ray_errors import RayTaskError, error_of

FLUSH_BYTES = 64 * 2**10
GATHER_BYTES = 16 * 2**10
GATHER_SECONDS = 0.001
# So many looks without anything to send, and the thread that sends sleeps.
QUIET_TURNS = 20
FLUSH_SECONDS = 0.002
# A long call's lines are seen while it runs.
LOG_SECONDS = 0.1
MAX_RUNNERS = 1_024
MAX_LOG_BYTES = 2**20
FILE_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")
READ_BYTES = 256 * 2**10
STAGING_SECONDS = 30.0


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
    __slots__ = ("number", "template", "attempt", "origin", "deps", "args", "plain", "over", "log_bytes", "production", "lane", "task", "dynamic")

    def __init__(self, number: int, template: TemplateInfo, attempt: int, origin: int, deps: list[tuple[int, Any, bool]], args: bytes) -> None:
        self.number = number
        self.template = template
        self.attempt = attempt
        self.origin = origin
        self.deps = deps
        self.args = args
        # Who asks in the encoding of all languages is answered in it.
        self.plain = not values.is_pickle(args)
        self.over = False
        self.log_bytes = 0
        self.production: Production | None = Production(self) if template.returns == f.STREAMS else None
        self.lane: Lane | None = None
        self.dynamic = False
        self.task: asyncio.Task[None] | None = None


class Lane:
    """One concurrency group of an actor."""

    __slots__ = ("limit", "active")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.active = 0


class ActorExit(BaseException):
    """The actor has ended itself: nothing more is said of the call."""


# The call that a piece of asyncio runs for; a thread that runs a call has it in `_here`.
_of_coroutine: contextvars.ContextVar[Exec | None] = contextvars.ContextVar("bulkhead-call", default=None)


class _Here(threading.local):
    exec: Exec | None = None
    counted = False


class Slot:
    core: ClientCore

    def __init__(self, channel: socket.socket, number: int, prefix: bytes, supervisor: socket.socket) -> None:
        # Imported here so that process 1 has it loaded and does not need it.
        from .worker import Envelopes

        self._channel = channel
        # What only process 1 can do is asked for here.
        self._supervisor = supervisor
        self._number = number
        self._envelopes = Envelopes()
        # Kept: an answer of this size for each read would be mapped, shrunk and unmapped, and each of that costs gVisor more than the read.
        self._incoming = memoryview(bytearray(READ_BYTES))
        self._cond = threading.Condition(threading.Lock())
        self._send_lock = threading.Lock()
        self._execs: deque[Exec] = deque()
        self._running: dict[int, Exec] = {}
        self._active = 0
        self._limit = self._concurrency = 1
        self._idle = 0
        self._runners = 1
        self._pumping = False
        self._here = _Here()
        self._templates: dict[int, TemplateInfo] = {}
        self._codes: dict[int, Any] = {}
        self._attachments: dict[int, memoryview] = {}
        self._instance: Any = None
        # The call of a job's program: threads that the program starts are part of it.
        self._program: Exec | None = None
        self._lines_planned = False
        self._staged = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        # An actor with async methods runs all of them in its event loop, as in Ray; its constructor says so.
        self._async = False
        self._flush_planned = False
        self._is_actor = False
        self._lanes: dict[str, Lane] = {}
        self._groups: dict[str, str] = {}
        # What calls of this process inherit from the first that ran in it.
        self._inherited: tuple[Any, ...] | None = None
        # What its calls are told besides what their templates say.
        self._own: dict[str, Any] = {"workerId": os.urandom(14).hex()}
        self._producer = Producer(self)
        self.flushed_at = 0.0
        self._hot = False
        self._gatherer: threading.Event | None = None
        self.core = ClientCore(prefix, self, error_of)
        api.set_runtime(self)
        sys.stdin = open(os.devnull)
        sys.stdout = Printed(self, 1)
        sys.stderr = Printed(self, 2)

    # --- what the core needs ---

    def touched(self) -> None:
        # What a call starts begins at once, whatever the call does next; what follows within a moment leaves together, since each send costs more than the call that is sent.
        if self.core.out_bytes > GATHER_BYTES or time.monotonic() - self.flushed_at > GATHER_SECONDS:
            self.flush()
        elif not self._hot:
            self._hot = True
            if self._gatherer is None:
                self._gatherer = threading.Event()
                threading.Thread(target=self._gather, args=(self._gatherer,), name="bulkhead-send", daemon=True).start()
            self._gatherer.set()

    def _gather(self, wake: threading.Event) -> None:
        """Sends what was gathered while the call that made it goes on with something else. Sleeps for good while nothing is."""
        while True:
            wake.wait()
            wake.clear()
            quiet = 0
            while quiet < QUIET_TURNS:
                time.sleep(GATHER_SECONDS)
                quiet += 1
                if self.core.out_bytes and time.monotonic() - self.flushed_at > GATHER_SECONDS:
                    self.flush()
                    quiet = 0
            self._hot = False
            if self.core.out_bytes:
                self.flush()

    def parent(self) -> int:
        found = self._here.exec or _of_coroutine.get() or self._program
        return found.number if found is not None else 0

    def stage(self, encoded: values.Encoded) -> int | None:
        with self._send_lock:
            self._staged += 1
            number = self._staged
            fd = _opened(f"/staging/{self._number}-{number}")
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

            self._supervisor.sendall(envelope(0, f.frame(STAGED_USED)))
        return number

    def attachment(self, number: int) -> memoryview:
        found = self._attachments.pop(number, None)
        if found is None:
            raise BulkheadError("INVALID_ARGUMENT", f"malformed frame: attachment {number} does not exist")
        return found

    def block(self, pending: Pending | Production, timeout: float | None) -> bool:
        """Waits; meanwhile this thread reads the channel, if nobody does, and another call may run."""
        self.flush()
        end = None if timeout is None else time.monotonic() + timeout
        # Tasks of a job make room for others here; an actor's call that waits still is the one that runs.
        counted = self._here.counted and not self._is_actor
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
        found = self._here.exec or _of_coroutine.get() or self._program
        if found is None:
            # A thread of the program's own: what all calls of this process have in common.
            known = next(iter(self._templates.values()), None)
            return {} if known is None else {**{k: v for k, v in known.context.items() if k != "name"}, **self._own}
        own = self._own
        return {**found.template.context, **own, "taskId": f"{found.template.context.get('origin', '')}{found.origin.to_bytes(4, 'little').hex()}", "attempt": found.attempt, "function": found.template.method or found.template.export}

    # --- the channel ---

    def flush(self) -> None:
        with self._send_lock:
            for batch in self.core.take():
                self._channel.sendall(len(batch).__add__(4).to_bytes(4, "little") + self._number.to_bytes(4, "little") + batch)
        self.flushed_at = time.monotonic()

    def _pump(self, timeout: float | None) -> None:
        """Reads once. The caller has taken `_pumping`."""
        try:
            if timeout is not None and not select.select([self._channel], [], [], timeout)[0]:
                return
            size = self._channel.recv_into(self._incoming)
            if size == 0:
                # The raylet wants this slot no more and has told the supervisor, which ends it: one that went first would be taken for dead.
                if self._channel is not self._supervisor:
                    self._supervisor.recv(1)
                os._exit(0)
            for slot, batch in self._envelopes.push(self._incoming[:size]):
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
            if source.startswith(runtime_env.HEAD):
                parts = runtime_env.Parts(source)
                runtime_env.apply(parts.environment, f"/tmp/job-{self._number}")
                if parts.job is not None:
                    self._codes[number] = [Program(parts.job)]
                    return
                source = parts.rest
            if not source.startswith((api.SOURCE_HEAD, api.NAME_HEAD)):
                raise ValueError("the code was not made by a Python program")
            self._codes[number] = (source, None)
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
            found = self._codes[number] = [api.code_of(source)]
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
                    self._is_actor = True
                    self._concurrency = max(1, int(context.pop("concurrency", 1) or 1))
                    self._limit = min(MAX_RUNNERS, self._concurrency)
                if kind != f.ACTOR_METHOD:
                    if self._inherited is None:
                        self._inherited = api.inherited_of(context)
                    elif self._inherited != api.inherited_of(context):
                        api.tell_apart()
                self._templates[number] = info
            elif op == f.CANCEL_EXEC:
                self._cancel(reader.u32())
            elif op == f.PULL:
                number, skip, up_to, room = reader.u32(), reader.u32(), reader.u32(), reader.u64()
                reader.finish()
                with self._cond:
                    of = self._running.get(number) or next((e for e in self._execs if e.number == number), None)
                if of is not None and of.production is not None:
                    of.production.pull(skip, up_to, room)
            elif not self.core.receive(reader):
                raise BulkheadError("INVALID_ARGUMENT", f"malformed frame (op 0x{op:x}): not for a slot")
        if self._async:
            self._start_async()

    def _arrived(self, reader: f.FrameReader) -> None:
        number, kind, template_number, attempt, origin = reader.u32(), reader.u8(), reader.u32(), reader.u32(), reader.u32()
        deps: list[tuple[int, Any, bool]] = []
        for _ in range(reader.u16()):
            position = reader.u16()
            form = reader.u8()
            deps.append((position, bytes(reader.sized()) if form & f.ATTACHED == 0 else self.attachment(reader.u32()), form & f.FOREIGN != 0))
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
            runs = self._running.get(number)
        if runs is not None:
            runs.over = True
            if runs.production is not None:
                runs.production.wake()
            if runs.task is not None:
                self._events().call_soon_threadsafe(runs.task.cancel)
        if found is not None:
            self._failure(found, "CANCELLED", "the call was cancelled", "")
            self.flush()

    # --- running ---

    def _spawn_if_needed(self) -> None:
        with self._cond:
            if not self._execs or self._async or self._active >= self._limit or self._idle > 0 or self._runners >= MAX_RUNNERS:
                return
            self._runners += 1
        threading.Thread(target=self.serve, name="bulkhead-run", daemon=True).start()

    def serve(self) -> None:
        while True:
            with self._cond:
                taken: Exec | None = None
                while True:
                    if not self._async and (taken := self._take()) is not None:
                        break
                    if not self._pumping:
                        self._pumping = True
                        break
                    self._idle += 1
                    self._cond.wait()
                    self._idle -= 1
            if taken is None:
                if self.core.out_bytes or self.core._released or self.core.closing:
                    self.flush()
                self._pump(None)
                # What came together is answered together, so that the raylet sees how long calls take and not how long they wait.
                self.flushed_at = time.monotonic()
                continue
            if self._limit > 1:
                # Somebody must read on while this one runs.
                self._spawn_reader()
            self._here.exec = taken
            self._here.counted = True
            goes_on = False
            try:
                goes_on = self._run(taken)
            finally:
                self._here.exec = None
                self._here.counted = False
                if not goes_on:
                    self._left(taken)
                more = bool(self._execs)
            if not more or self.core.out_bytes >= FLUSH_BYTES or time.monotonic() - self.flushed_at > FLUSH_SECONDS:
                self.flush()

    def _spawn_reader(self) -> None:
        with self._cond:
            if self._pumping or self._idle > 0 or self._runners >= MAX_RUNNERS:
                return
            self._runners += 1
        threading.Thread(target=self.serve, name="bulkhead-run", daemon=True).start()

    def _take(self) -> Exec | None:
        """The next call that may run now. The caller has `_cond`."""
        if not self._execs or self._active >= self._limit:
            return None
        if not self._lanes:
            taken = self._execs.popleft()
        else:
            for i, waits in enumerate(self._execs):
                lane = self._lane_of(waits.template)
                if lane.active < lane.limit:
                    break
            else:
                return None
            taken = waits
            del self._execs[i]
            taken.lane = lane
            lane.active += 1
        self._active += 1
        if taken.production is not None or self._async:
            self._running[taken.number] = taken
        return taken

    def _lane_of(self, template: TemplateInfo) -> Lane:
        wanted = template.context.get("concurrencyGroup") or self._groups.get(template.method) or ""
        return self._lanes.get(str(wanted)) or self._lanes[""]

    def _left(self, of: Exec) -> None:
        """The call is over: another may run."""
        with self._cond:
            self._active -= 1
            if of.lane is not None:
                of.lane.active -= 1
            self._running.pop(of.number, None)
            if self._execs and self._idle > 0:
                self._cond.notify()

    def _arguments(self, of: Exec) -> tuple[list[Any], dict[str, Any]]:
        deps, of.deps = of.deps, []
        args, kwargs = api.unpack_arguments(of.args, [(position, values.decode(octets, foreign)) for position, octets, foreign in deps])
        if kwargs and kwargs.pop(api.DYNAMIC_MARK, False):
            of.dynamic = True
        return args, kwargs

    def _run(self, of: Exec) -> bool:
        """Runs a call in this thread; True when it goes on in the event loop."""
        template = of.template
        try:
            call: Any = None if template.kind == f.ACTOR_METHOD else self._code(template.code)
            if type(call) is Program:
                self._run_program(of, call)
                return False
            args, kwargs = self._arguments(of)
            if template.kind == f.ACTOR_METHOD:
                call = self._method(template.method)
            if template.kind == f.ACTOR_CLASS:
                self._construct(call, args, kwargs)
                self._finish(of, None)
                return False
            result = call(*args, **kwargs)
            if inspect.iscoroutine(result) or inspect.isasyncgen(result):
                with self._cond:
                    self._running[of.number] = of
                self._events().call_soon_threadsafe(self._begin_async, [(of, result)])
                return True
            if of.production is not None:
                self._producer.run(of, of.production, result)
            self._finish(of, result)
        except BaseException as thrown:  # noqa: BLE001 - a tenant's SystemExit ends its call, not the slot
            self._threw(of, thrown)
        return False

    def _construct(self, make: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
        of = make
        if isinstance(make, api.ActorSource):
            of = make.of
            self._lanes = {"": Lane(make.limit), **{name: Lane(limit) for name, limit in make.groups.items()}}
            for name, member in inspect.getmembers(of, callable):
                group = getattr(member, "__ray_method_options__", {}).get("concurrency_group")
                if group is not None:
                    self._groups[name] = group
        creation = self._here.exec
        if creation is not None:
            self._own.update(className=creation.template.export, restarted=creation.attempt > 0, resources=creation.template.context.get("resources"))
            if creation.template.context.get("placementGroup"):
                self._own["placementGroup"] = creation.template.context["placementGroup"]
                self._own["captureChildTasks"] = creation.template.context.get("captureChildTasks", False)
            if creation.template.context.get("jobNamespace"):
                self._own["jobNamespace"] = creation.template.context["jobNamespace"]
        self._instance = make(*args, **kwargs)
        if any(inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member) for _, member in inspect.getmembers(of, callable)):
            self._events()
            # Coroutines need no thread each.
            self._limit = self._concurrency
            self._async = True
            self._start_async()

    def _run_program(self, of: Exec, program: Program) -> None:
        self._program = of
        api.in_job = True
        code = program.run(f"/tmp/job-{self._number}")
        # Data, not a pickle: who started the job reads it in a trusted process.
        self.core_write(f.frame(f.RESULT, f.u32(of.number), f.u8(1), f.u8(0), f.refs([]), f.sized(bytes([code]) if code < 24 else bytes([0x18, code]))))

    def _method(self, name: str) -> Callable[..., Any]:
        if name == "__ray_terminate__":
            return self.exit_actor
        if name == "__ray_ready__":
            return lambda: True
        if name == "__ray_call__":
            return lambda of, *args, **kwargs: of(self._instance, *args, **kwargs)
        return getattr(self._instance, name)  # type: ignore[no-any-return]

    def exit_actor(self) -> None:
        """Ends this actor, for good and on purpose."""
        found = self._here.exec or _of_coroutine.get()
        if found is None or not self._is_actor:
            raise TypeError("exit_actor() is called on a non-actor worker: it ends the actor whose method calls it")
        atexit._run_exitfuncs()
        self.core_write(f.frame(f.EXIT, f.u32(found.number)))
        self.flush()
        raise ActorExit()

    def is_cancelled(self) -> bool:
        found = self._here.exec or _of_coroutine.get()
        return found is not None and found.over

    # --- async actors ---

    def _events(self) -> asyncio.AbstractEventLoop:
        # One for all: the first calls of an actor may come to two threads at once.
        with self._cond:
            return self._events_held()

    def _events_held(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="bulkhead-asyncio", daemon=True).start()
        return self._loop

    def _start_async(self) -> None:
        """Gives the event loop what may run, in the order in which it came."""
        taken: list[tuple[Exec, Any]] = []
        with self._cond:
            while (of := self._take()) is not None:
                taken.append((of, None))
            if taken:
                self._events_held().call_soon_threadsafe(self._begin_async, taken)

    def _begin_async(self, taken: list[tuple[Exec, Any]]) -> None:
        for of, result in taken:
            token = _of_coroutine.set(of)
            of.task = asyncio.get_running_loop().create_task(self._run_async(of, result))
            _of_coroutine.reset(token)

    async def _run_async(self, of: Exec, result: Any) -> None:
        """One call, in the event loop; `result` is what it returned, where it was called elsewhere."""
        try:
            if of.over:
                raise Cancelled()
            if result is None:
                args, kwargs = self._arguments(of)
                result = self._method(of.template.method)(*args, **kwargs)
            if inspect.iscoroutine(result):
                result = await result
            if of.production is not None:
                await self._producer.run_async(of, of.production, result)
            elif inspect.isasyncgen(result):
                collected = [value async for value in result]
                result = (value for value in collected)
            self._finish(of, result)
        except BaseException as thrown:  # noqa: BLE001
            self._threw(of, thrown)
        finally:
            of.task = None
            self._left(of)
            if not self._async:
                self._spawn_if_needed()
            elif self._execs:
                self._start_async()
            self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flush_planned:
            self._flush_planned = True
            asyncio.get_running_loop().call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flush_planned = False
        self.flush()

    def _finish(self, of: Exec, result: Any) -> None:
        template = of.template
        if template.kind == f.ACTOR_CLASS or template.returns == 0 or of.production is not None:
            return self.core_write(f.frame(f.RESULT, f.u32(of.number), f.u8(0)))
        results = [result]
        if of.dynamic:
            if not inspect.isgenerator(result):
                raise TypeError("num_returns='dynamic' needs a generator")
            results = [DynamicGenerator([api.put(value) for value in self._yielded(of, result)])]
        elif template.returns >= 1 and inspect.isgenerator(result):
            return self._write_results(of, self._several(of, result))
        elif template.returns > 1:
            results = list(result)
            if len(results) != template.returns:
                raise ValueError(f"Task returned {len(results)} objects, but num_returns={template.returns}.")
        self._write_results(of, results)

    def _write_results(self, of: Exec, results: Iterable[Any]) -> None:
        """One after the other, so that a generator's need not all be in memory."""
        parts: list[bytes] = []
        count = 0
        inline = 0
        for value in results:
            count += 1
            encoded = values.encode(value, "result", of.plain)
            if encoded.size > f.MAX_OBJECT_BYTES:
                raise BulkheadError("RESOURCE_EXHAUSTED", f"a result of {encoded.size} bytes exceeds the limit of {f.MAX_OBJECT_BYTES}")
            if encoded.size <= f.MAX_INLINE_BYTES and inline + encoded.size <= 2**20:
                inline += encoded.size
                parts += [f.u8(0), f.refs(encoded.ids), f.sized(encoded.join())]
            else:
                number = self.stage(encoded)
                parts += [f.u8(1), f.refs(encoded.ids), f.u32(number or 0), f.u64(encoded.size)]
        self.core_write(f.frame(f.RESULT, f.u32(of.number), f.u8(count), *parts))

    def _yielded(self, of: Exec, generator: Any) -> Iterator[Any]:
        """What it yields; where it fails after some, the last one is why, and raises it where it is read. What may be tried again is."""
        some = False
        try:
            for value in generator:
                yield value
                some = True
        except Exception as thrown:
            if not some or _named(thrown, of.template.retry_on):
                raise
            message, stack = describe_failure(thrown)
            yield values.Failed(message, stack.partition(CAUSE_MARK)[0], thrown.with_traceback(None))

    def _several(self, of: Exec, generator: Any) -> Iterator[Any]:
        """As many as its call has results. As in Ray, what it yields beyond them is dropped."""
        wanted = of.template.returns
        count = 0
        for value in itertools.islice(self._yielded(of, generator), wanted):
            count += 1
            yield value
            if type(value) is values.Failed:
                for _ in range(wanted - count):
                    yield value
                return
        if count < wanted:
            raise ValueError(f"Task returned {count} objects, but num_returns={wanted}.")

    def core_write(self, octets: bytes) -> None:
        with self.core.lock:
            self.core._put(octets)

    def _threw(self, of: Exec, thrown: BaseException) -> None:
        code = "TASK_FAILED"
        if isinstance(thrown, ActorExit):
            return
        if isinstance(thrown, Cancelled) or (of.over and isinstance(thrown, asyncio.CancelledError)):
            return self._failure(of, "CANCELLED", "the call was cancelled", "")
        if isinstance(thrown, BulkheadError):
            code = thrown.code if thrown.code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "DENIED") else "TASK_FAILED"
        if isinstance(thrown, RayTaskError) and thrown.cause is not None:
            thrown = thrown.cause
        message, stack = describe_failure(thrown, plain=of.plain)
        if _named(thrown, of.template.retry_on):
            self.core_write(f.frame(f.RETRY, f.u32(of.number)))
        self._failure(of, code, message, stack)

    def _failure(self, of: Exec, code: str, message: str, stack: str) -> None:
        self.core_write(f.frame(f.FAILURE, f.u32(of.number), f.short(code), f.text(message), f.text(stack)))

    def log(self, stream: int, line: str) -> None:
        of = self._here.exec or self._program
        number = 0
        if of is not None:
            number = of.number
            if of.log_bytes > MAX_LOG_BYTES:
                return
            of.log_bytes += len(line)
            if of.log_bytes > MAX_LOG_BYTES:
                line = f"… more than {MAX_LOG_BYTES} bytes of log: the rest is dropped\n"
        self.core_write(f.frame(f.LOG, f.u32(number), f.u8(stream), line.encode("utf-8", "replace")[:65_536]))
        if time.monotonic() - self.flushed_at > LOG_SECONDS:
            self.flush()
        elif self._program is not None and not self._lines_planned:
            # A program may print and then sleep: its lines are seen all the same.
            self._lines_planned = True
            late = threading.Timer(LOG_SECONDS, self._late_lines)
            late.daemon = True
            late.start()

    def _late_lines(self) -> None:
        self._lines_planned = False
        try:
            self.flush()
        except OSError:
            # The sandbox ends.
            pass


def _opened(path: str) -> int:
    """A staging file, which process 1 makes ahead; a slot that writes faster than that waits for it."""
    end = time.monotonic() + STAGING_SECONDS
    while True:
        try:
            return os.open(path, os.O_WRONLY)
        except FileNotFoundError:
            if time.monotonic() > end:
                raise
            time.sleep(0.001)


def _named(thrown: BaseException, names: list[str]) -> bool:
    return bool(names) and any(kind.__name__ in names for kind in type(thrown).__mro__)


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
