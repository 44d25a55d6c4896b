"""The client's half of the frame protocol: makes object ids, writes calls, keeps what GET and WAIT wait for. One core serves a driver and the inside of
a sandbox; how to send and how to wait are the owner's. Thread-safe.

Must never: unpickle what another tenant made, or keep a ref alive that its program has dropped.
"""

from __future__ import annotations

import base64
import json
import pickle
import struct
import threading
import time
import traceback
from collections import deque
from hashlib import sha256
from typing import Any, Callable, Iterable, Protocol, Sequence

from . import frames as f
from . import values
from .errors import BulkheadError
from .ray_errors import RayTaskError
from .streams import WINDOW_ITEMS, Reading

MAX_DEPENDENCIES = 1_024
MAX_REFS_PER_CALL = 100_000
KEPT_BYTES = 4_096
_CALL = struct.Struct("<IBIII")
_PLACE = struct.Struct("<II")
# How a ref, or a handle of an actor, is named in a pickle and among neutral values.
_REF_MARKS = (b"bulkhead.api", b"BH", b"BI")
# Behind the stack of a failed Python call: the exception itself, for the tenant's own programs.
CAUSE_MARK = "\n#bulkhead:cause:"
MAX_STACK_CHARS = 16_000
MAX_TRACE_CHARS = 6_000


class Host(Protocol):
    """What the core needs from its surroundings."""

    def touched(self) -> None: ...
    def parent(self) -> int: ...
    def block(self, pending: Pending, timeout: float | None) -> bool: ...
    def stage(self, encoded: values.Encoded) -> int | None: ...
    def attachment(self, number: int) -> memoryview: ...


class Pending:
    """One GET, WAIT or other request, until it is answered."""

    __slots__ = ("refs", "values", "missing", "error", "done", "event", "callback", "parts", "foreign", "keep")

    def __init__(self, ids: Sequence[bytes], count: int, foreign: Sequence[bool]) -> None:
        self.refs = ids
        self.values: list[Any] = [None] * count
        self.missing = count
        self.error: BaseException | None = None
        self.done = False
        self.event: threading.Event | None = None
        self.callback: Callable[[Pending], None] | None = None
        self.parts: dict[int, tuple[bytearray, int]] = {}
        self.foreign = foreign
        self.keep: Sequence[Any] = ()


def describe_failure(thrown: BaseException, skip: int = 1, plain: bool = False) -> tuple[str, str]:
    """Message and stack of what a call has thrown; behind the stack the exception itself, if it is small enough and its caller reads Python (not `plain`)."""
    message = (thrown.message if isinstance(thrown, BulkheadError) else f"{type(thrown).__name__}: {thrown}")[:8_000]
    message = message.replace(CAUSE_MARK, " ")
    shown = traceback.TracebackException.from_exception(thrown)
    del shown.stack[:skip]
    # What the text quotes is data, and may come from another tenant: only what is put behind it here is an exception.
    stack = "".join(shown.format()).replace(CAUSE_MARK, "\n")
    if len(stack) > MAX_TRACE_CHARS:
        stack = "…" + stack[-MAX_TRACE_CHARS:]
    if plain:
        return message, stack
    try:
        import cloudpickle

        cause = base64.b64encode(cloudpickle.dumps(thrown.with_traceback(None), protocol=5)).decode("ascii")
        if len(stack) + len(CAUSE_MARK) + len(cause) <= MAX_STACK_CHARS:
            stack += CAUSE_MARK + cause
    except Exception:
        pass
    return message, stack


def split_stack(stack: str, foreign: bool) -> tuple[str, BaseException | None]:
    """The stack to show, and the exception behind it; one that another tenant made stays octets."""
    shown, mark, cause = stack.partition(CAUSE_MARK)
    if mark == "" or foreign:
        return shown, None
    try:
        found = pickle.loads(base64.b64decode(cause, validate=True))
    except Exception:
        return shown, None
    return shown, found if isinstance(found, BaseException) else None


class Template:
    """What DEFINE says about a function, class or method."""

    __slots__ = ("kind", "digest", "source", "export", "method", "options", "returns", "window", "known", "tail", "tail_actor")

    def __init__(self, kind: int, digest: bytes, source: bytes | None, export: str, method: str, options: str, returns: int) -> None:
        self.kind = kind
        self.digest = digest
        self.source = source
        self.export = export
        self.method = method
        self.options = options
        self.returns = returns
        self.window = int(json.loads(options).get("streamItems", WINDOW_ITEMS)) if returns == -1 else 0
        self.known: tuple[ClientCore, int] | None = None
        self.tail: bytes | None = None
        self.tail_actor: bytes | None = None


class ClientCore:
    def __init__(self, prefix: bytes, host: Host, failure: Callable[[str, str, str, BaseException | None], BaseException]) -> None:
        if len(prefix) != f.PREFIX_BYTES:
            raise BulkheadError("INVALID_ARGUMENT", "a session prefix has 20 octets")
        self.prefix = prefix
        self.tenant = prefix[:4]
        self.host = host
        self._failure = failure
        self.lock = threading.RLock()
        self.out: list[bytes | memoryview] = []
        self.out_bytes = 0
        self._index = 1
        self._request = 1
        self._template = 1
        self._templates: dict[tuple[int, bytes, str, str, str], int] = {}
        self._code_sent: set[bytes] = set()
        self._pending: dict[int, Pending] = {}
        self._rejected: dict[int, BaseException] = {}
        self._counts: dict[bytes, int] = {}
        # Refs made and dropped since the last look. The collector appends to the second, in any thread and at any moment: nothing may wait there.
        self._held: deque[bytes] = deque()
        self._released: deque[bytes] = deque()
        self.hold: Callable[[bytes], None] = self._held.append
        self.drop: Callable[[bytes], None] = self._released.append
        self._streams: dict[int, Reading] = {}
        # Streams that nobody reads any more.
        self.closing: list[Reading] = []
        self.closed: BaseException | None = None

    # --- refs ---

    def _write_releases(self) -> None:
        if self.closing:
            self._close_streams()
        # Drops are counted before holds are read: whatever was dropped was held before.
        dropped = len(self._released)
        if dropped == 0:
            return
        counts = self._counts
        for _ in range(len(self._held)):
            ref_id = self._held.popleft()
            counts[ref_id] = counts.get(ref_id, 0) + 1
        gone: list[bytes] = []
        for _ in range(dropped):
            ref_id = self._released.popleft()
            left = counts.get(ref_id, 1) - 1
            if left > 0:
                counts[ref_id] = left
            else:
                counts.pop(ref_id, None)
                gone.append(ref_id)
        for start in range(0, len(gone), 1_024):
            self._put(f.frame(f.RELEASE, f.refs(gone[start : start + 1_024])))

    def _close_streams(self) -> None:
        closing, self.closing = self.closing, []
        for reading in closing:
            if reading.closed:
                continue
            reading.closed = True
            for item in reading.items:
                self.drop(self.id_of(item.index))
            reading.items.clear()

    # --- streams ---

    def id_of(self, index: int) -> bytes:
        return self.prefix + f.u32(index)

    def take_indexes(self, count: int) -> int:
        first = self._index
        self._index += count
        return first

    def open_stream(self, call: bytes, window: int) -> Reading:
        """Of the call that was just written."""
        parent = self.host.parent()
        with self.lock:
            reading = Reading(self, int.from_bytes(call[f.PREFIX_BYTES :], "little"), window)
            self._streams[reading.seq] = reading
            reading.grant(parent)
        self.host.touched()
        return reading

    def _wake(self, pending: Pending) -> None:
        """Of what has no request number."""
        with self.lock:
            pending.done = True
            event, callback = pending.event, pending.callback
        if event is not None:
            event.set()
        if callback is not None:
            callback(pending)

    def _stream_item(self, r: f.FrameReader) -> None:
        seq, form = r.u32(), r.u8()
        size = r.remaining if form == 0 else r.u64()
        octets = bytes(r.rest())
        if form > 1 or (form == 1 and octets):
            raise BulkheadError("INVALID_ARGUMENT", f"malformed frame: an item of form {form}")
        with self.lock:
            reading = self._streams.get(seq)
            if reading is None:
                return
            waiter = reading.came(size, octets if form == 0 else None)
            woken = reading.watched()
        for pending in [waiter, *woken] if waiter is not None else woken:
            self._wake(pending)
        if waiter is not None:
            # What it granted leaves, whoever is woken.
            self.host.touched()

    def _stream_end(self, seq: int, failed: bool) -> None:
        with self.lock:
            reading = self._streams.pop(seq, None)
            if reading is None:
                return
            woken = reading.end(failed) + reading.watched()
        for pending in woken:
            self._wake(pending)

    def is_foreign(self, ref_id: bytes) -> bool:
        return ref_id[:4] != self.tenant

    # --- out ---

    def _put(self, octets: bytes) -> None:
        self.out.append(octets)
        self.out_bytes += len(octets)

    def write(self, octets: bytes) -> None:
        with self.lock:
            self._open()
            self._put(octets)
        self.host.touched()

    def take(self) -> list[bytes]:
        """What waits to be sent, as batches within the limit of a message."""
        with self.lock:
            self._write_releases()
            if not self.out:
                return []
            parts, self.out, size = self.out, [], self.out_bytes
            self.out_bytes = 0
        if size <= f.MAX_BATCH_BYTES // 2:
            return [b"".join(parts)]
        batches: list[bytes] = []
        batch: list[bytes | memoryview] = []
        held = 0
        for part in parts:
            if held + len(part) > f.MAX_BATCH_BYTES // 2 and batch:
                batches.append(b"".join(batch))
                batch, held = [], 0
            batch.append(part)
            held += len(part)
        batches.append(b"".join(batch))
        return batches

    def _open(self) -> None:
        if self.closed is not None:
            raise self.closed

    # --- calls ---

    def template_number(self, template: Template) -> int:
        known = template.known
        if known is not None and known[0] is self:
            return known[1]
        key = (template.kind, template.digest, template.export, template.method, template.options)
        number = self._templates.get(key)
        if number is None:
            if template.source is not None and template.digest not in self._code_sent:
                source = template.source
                if len(source) > f.MAX_CODE_BYTES:
                    raise BulkheadError("INVALID_ARGUMENT", f"The {'actor' if template.kind == f.ACTOR_CLASS else 'remote function'} {template.export} is too large: with what it refers to it is {len(source)} bytes, at most {f.MAX_CODE_BYTES} are allowed: put large values and pass their refs")
                self._code_sent.add(template.digest)
                for offset in range(0, max(len(source), 1), f.CHUNK_BYTES):
                    self._put(f.frame(f.CODE, template.digest, f.u32(len(source)), f.u32(offset), source[offset : offset + f.CHUNK_BYTES]))
            number = self._template
            self._template += 1
            self._put(f.frame(f.DEFINE, f.u32(number), f.u8(template.kind), template.digest, f.short(template.export), f.short(template.method), f.text(template.options)))
            self._templates[key] = number
        template.known = (self, number)
        return number

    def call(self, op: int, template: Template, actor: bytes | None, args: values.Encoded, deps: Sequence[tuple[int, bytes]], contained: Sequence[bytes]) -> bytes:
        """Submits a task, an actor's creation or a call of one; returns the id of its first result."""
        if len(deps) > MAX_DEPENDENCIES:
            raise BulkheadError("INVALID_ARGUMENT", f"{len(deps)} refs among the arguments of one call; at most {MAX_DEPENDENCIES}: pass them in a list")
        # Where the actor's id and the arguments are the same for every call, they are put together once.
        tail = template.tail if args.shared and actor is template.tail_actor else None
        if tail is None:
            tail = b"".join([actor or b"", f.u16(len(deps)), *(f.u16(position) + ref_id for position, ref_id in deps), f.refs(contained), *args.parts])
            if args.shared:
                template.tail, template.tail_actor = tail, actor
        size = len(tail) + 13
        if size > f.MAX_FRAME_BYTES:
            raise BulkheadError("RESOURCE_EXHAUSTED", f"a frame of {size} bytes exceeds the limit of {f.MAX_FRAME_BYTES}: put large arguments first and pass their refs")
        parent = self.host.parent()
        with self.lock:
            self._open()
            known = template.known
            number = known[1] if known is not None and known[0] is self else self.template_number(template)
            index = self._index
            self._index = index + max(1, template.returns)
            self._put(_CALL.pack(size, op, parent, index, number) + tail)
        self.host.touched()
        return self.prefix + f.u32(index)

    def put(self, value: Any) -> tuple[bytes, bytes | None]:
        """The id, and the octets of a small value, to be kept with its ref."""
        encoded = values.encode(value)
        if encoded.size > f.MAX_OBJECT_BYTES:
            raise BulkheadError("INVALID_ARGUMENT", f"a value of {encoded.size} bytes exceeds the limit of {f.MAX_OBJECT_BYTES}")
        parent = f.u32(self.host.parent())
        staged = self.host.stage(encoded) if encoded.size > f.MAX_INLINE_BYTES else None
        known: bytes | None = None
        with self.lock:
            self._open()
            index = self._index
            self._index += 1
            seq = f.u32(index)
            if encoded.size <= f.MAX_INLINE_BYTES:
                octets = encoded.join()
                if encoded.size <= KEPT_BYTES and not encoded.ids:
                    known = octets
                self._put(f.frame(f.PUT, parent, seq, f.refs(encoded.ids), octets))
            elif staged is not None:
                self._put(f.frame(f.PUT_STAGED, parent, seq, f.u32(staged), f.u64(encoded.size), f.refs(encoded.ids)))
            else:
                for offset, part in chunks(encoded):
                    self._put(f.frame(f.PUT_CHUNK, parent, seq, f.u64(encoded.size), f.u64(offset), part))
        self.host.touched()
        return self.prefix + seq, known

    def create_group(self, text: str) -> bytes:
        """Asks for a placement group; its id is also the object that is there when the group is."""
        parent = f.u32(self.host.parent())
        with self.lock:
            self._open()
            seq = f.u32(self.take_indexes(1))
            self._put(f.frame(f.CREATE_GROUP, parent, seq, f.text(text)))
        self.host.touched()
        return self.prefix + seq

    # --- questions ---

    def _ask(self, ids: Sequence[bytes], count: int, frame: Callable[[bytes], bytes]) -> tuple[int, Pending]:
        if len(ids) > MAX_REFS_PER_CALL:
            raise BulkheadError("INVALID_ARGUMENT", f"{len(ids)} refs in one call; at most {MAX_REFS_PER_CALL}")
        tenant = self.tenant
        pending = Pending(ids, count, [i[:4] != tenant for i in ids])
        with self.lock:
            self._open()
            request = self._request
            self._request = request + 1
            self._pending[request] = pending
            self._put(frame(f.u32(request)))
        self.host.touched()
        return request, pending

    def start_get(self, ids: Sequence[bytes]) -> tuple[int, Pending]:
        parent = f.u32(self.host.parent())
        for ref_id in ids if self._rejected else ():
            if ref_id[:20] == self.prefix and (error := self._rejected.get(int.from_bytes(ref_id[20:], "little"))) is not None:
                raise error
        return self._ask(ids, len(ids), lambda request: f.frame(f.GET, parent, request, f.refs(ids)))

    def get(self, ids: Sequence[bytes], timeout: float | None, keep: Sequence[Any] = ()) -> list[Any]:
        """`keep`: the refs, which are given the octets of what is small."""
        if not ids:
            return []
        request, pending = self.start_get(ids)
        pending.keep = keep
        if not self.host.block(pending, timeout):
            with self.lock:
                self._pending.pop(request, None)
            raise BulkheadError("TIMEOUT", f"Get timed out: some object(s) not ready in {timeout} s.")
        if pending.error is not None:
            raise pending.error
        return pending.values

    def ask_wait(self, ids: Sequence[bytes], count: int, timeout: float | None) -> tuple[int, Pending]:
        parent = f.u32(self.host.parent())
        ms = f.NO_TIMEOUT if timeout is None else min(int(timeout * 1_000), f.NO_TIMEOUT - 1)
        return self._ask(ids, 1, lambda request: f.frame(f.WAIT, parent, request, f.u32(count), f.u32(ms), f.refs(ids)))

    def wait(self, ids: Sequence[bytes], count: int, timeout: float | None) -> list[int]:
        _, pending = self.ask_wait(ids, count, timeout)
        self.host.block(pending, None)
        if pending.error is not None:
            raise pending.error
        return list(pending.values[0])

    def ask(self, op: int, *body: bytes) -> Any:
        parent = f.u32(self.host.parent())
        _, pending = self._ask([], 1, lambda request: f.frame(op, parent, request, *body))
        self.host.block(pending, None)
        if pending.error is not None:
            raise pending.error
        return pending.values[0]

    # --- what comes back ---

    def receive(self, r: f.FrameReader) -> bool:
        """Handles one frame of a raylet to its client; False when it is none."""
        op = r.op
        if op == f.VALUE:
            if r.remaining < 8:
                raise BulkheadError("INVALID_ARGUMENT", "malformed frame: a value without its place")
            body = r.rest()
            request, position = _PLACE.unpack_from(body)
            self._value(request, position, body[8:].tobytes())
        elif op == f.VALUE_CHUNK:
            request, position, total, offset = r.u32(), r.u32(), r.u64(), r.u64()
            self._chunk(request, position, total, offset, r.rest())
        elif op == f.VALUE_ATTACHED:
            request, position, number = r.u32(), r.u32(), r.u32()
            r.finish()
            self._value(request, position, self.host.attachment(number))
        elif op == f.VALUE_FAILED:
            request, position = r.u32(), r.u32()
            code, message, stack = r.name(), r.text(), r.text()
            r.finish()
            pending = self._pending.get(request)
            if pending is not None:
                foreign = pending.foreign[position] if position < len(pending.foreign) else True
                self._fail(request, self._failure(code, message, *split_stack(stack, foreign)))
        elif op == f.READY:
            request, n = r.u32(), r.u32()
            positions = [r.u32() for _ in range(n)]
            r.finish()
            self._done(request, positions)
        elif op == f.ACTOR:
            request, actor, info = r.u32(), r.id(), r.text()
            r.finish()
            self._done(request, (actor, json.loads(info)))
        elif op == f.DONE:
            request, info = r.u32(), r.text()
            r.finish()
            self._done(request, json.loads(info) if info else None)
        elif op == f.FAILED:
            request, code, message = r.u32(), r.name(), r.text()
            r.finish()
            self._fail(request, self._failure(code, message, "", None))
        elif op == f.STREAM_ITEM:
            self._stream_item(r)
        elif op == f.STREAM_END:
            seq = r.u32()
            r.u32()
            code = r.name()
            r.text(), r.text()
            r.finish()
            self._stream_end(seq, code != "")
        elif op == f.REJECTED:
            number, code, message = r.u32(), r.name(), r.text()
            r.finish()
            if len(self._rejected) < 1_024:
                self._rejected[number] = self._failure(code, message, "", None)
        else:
            return False
        return True

    def _settle(self, request: int, pending: Pending) -> None:
        with self.lock:
            self._pending.pop(request, None)
            pending.done = True
            event, callback = pending.event, pending.callback
        if event is not None:
            event.set()
        if callback is not None:
            callback(pending)

    def _done(self, request: int, value: Any) -> None:
        pending = self._pending.get(request)
        if pending is not None:
            pending.values = [value]
            self._settle(request, pending)

    def _fail(self, request: int, error: BaseException) -> None:
        pending = self._pending.get(request)
        if pending is not None:
            pending.error = error
            self._settle(request, pending)

    def _value(self, request: int, position: int, octets: bytes | bytearray | memoryview) -> None:
        pending = self._pending.get(request)
        if pending is None:
            return
        try:
            if position >= len(pending.values):
                raise BulkheadError("INVALID_ARGUMENT", f"malformed frame: position {position} of a get is out of range")
            value = values.decode(octets, pending.foreign[position])
        except BulkheadError as refused:
            return self._fail(request, self._failure(refused.code, refused.message, refused.stack, None))
        except RayTaskError as failed:
            # The value is a failure: see values.Failed.
            return self._fail(request, failed)
        except Exception as thrown:
            return self._fail(request, self._failure("INTERNAL", f"a value could not be unpickled: {type(thrown).__name__}: {thrown}", "", None))
        pending.values[position] = value
        if len(octets) <= KEPT_BYTES and position < len(pending.keep) and not pending.foreign[position]:
            # One that names refs would have to hold them: only what names none is kept.
            kept = octets if type(octets) is bytes else bytes(octets)
            if not any(mark in kept for mark in _REF_MARKS):
                pending.keep[position]._known = kept
        pending.missing -= 1
        if pending.missing == 0:
            self._settle(request, pending)

    def _chunk(self, request: int, position: int, total: int, offset: int, part: memoryview) -> None:
        pending = self._pending.get(request)
        if pending is None:
            return
        if total > f.MAX_OBJECT_BYTES:
            raise BulkheadError("INVALID_ARGUMENT", "malformed frame: a value in parts is too large")
        whole, at = pending.parts.get(position) or (bytearray(total), 0)
        if offset != at or len(whole) != total or offset + len(part) > total:
            raise BulkheadError("INVALID_ARGUMENT", "malformed frame: the parts of a value are out of order")
        whole[offset : offset + len(part)] = part
        at += len(part)
        if at < total:
            pending.parts[position] = (whole, at)
            return
        pending.parts.pop(position, None)
        self._value(request, position, whole)

    def close(self, error: BaseException) -> None:
        with self.lock:
            if self.closed is not None:
                return
            self.closed = error
            waiting = list(self._pending.items())
            streams = list(self._streams)
        for request, _ in waiting:
            self._fail(request, error)
        for seq in streams:
            self._stream_end(seq, True)


def chunks(encoded: values.Encoded) -> Iterable[tuple[int, bytes]]:
    """Parts of a large value, in order."""
    offset = 0
    held: list[bytes | memoryview] = []
    size = 0
    for part in encoded.parts:
        view = memoryview(part).cast("B")
        at = 0
        while at < len(view):
            take = min(f.CHUNK_BYTES - size, len(view) - at)
            held.append(view[at : at + take])
            size += take
            at += take
            if size == f.CHUNK_BYTES:
                yield offset, b"".join(held)
                offset += size
                held, size = [], 0
    if size > 0:
        yield offset, b"".join(held)


def digest_of(source: bytes) -> bytes:
    return sha256(source).digest()


def deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout
