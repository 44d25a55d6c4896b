"""The frame codec of proto/frames.md: `u32 length | u8 op | body`, little-endian. The reader never reads past its frame.

Must never: know what a payload means.
"""

from __future__ import annotations

import struct
from typing import Iterable

from .errors import BulkheadError

ID_BYTES = 24
PREFIX_BYTES = 20
MAX_FRAME_BYTES = 4 * 2**20
MAX_BATCH_BYTES = 16 * 2**20
MAX_INLINE_BYTES = 100 * 2**10
CHUNK_BYTES = 512 * 2**10
MAX_OBJECT_BYTES = 2 * 2**30
MAX_CODE_BYTES = 16 * 2**20
NO_TIMEOUT = 0xFFFF_FFFF
STREAMS = 0xFF

DEFINE, CODE, SUBMIT, CREATE_ACTOR, CALL_ACTOR, PUT, PUT_CHUNK, PUT_STAGED = range(0x01, 0x09)
GET, WAIT, RELEASE, CANCEL, KILL, LOOKUP_ACTOR, CONTEXT = range(0x09, 0x10)
CREDENTIAL, MORE = 0x11, 0x12
CREATE_GROUP, REMOVE_GROUP, LOOKUP_GROUP = range(0x15, 0x18)
LIST_NODES, DESCRIBE_GROUP = 0x31, 0x32
RESULT, FAILURE, LOG, EXIT, ITEM, RETRY = range(0x20, 0x26)
WELCOME, VALUE, VALUE_CHUNK, VALUE_ATTACHED, VALUE_FAILED, READY, ACTOR, DONE, FAILED, REJECTED = range(0x40, 0x4A)
STREAM_ITEM, STREAM_END = 0x4D, 0x4E
CREDENTIAL_REFUSED = 0x56
EXEC, TEMPLATE, CANCEL_EXEC, PULL = range(0x60, 0x64)
OPEN_SLOT, LOAD_CODE, ATTACH, CLOSE_SLOT, PING = range(0x80, 0x85)
HOST_READY, SLOT_FAILED, CODE_FAILED, SLOT_STATS, PONG = range(0x90, 0x95)

TASK, ACTOR_CLASS, ACTOR_METHOD = 0, 1, 2
# How an argument of an EXEC comes, and that another tenant made it.
ATTACHED, FOREIGN = 1, 2

_U8 = struct.Struct("<B")
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_HEAD = struct.Struct("<IB")


def text(value: str) -> bytes:
    octets = value.encode("utf-8", "replace")
    return _U32.pack(len(octets)) + octets


def short(value: str) -> bytes:
    octets = value.encode("utf-8", "replace")
    if len(octets) > 0xFFFF:
        raise BulkheadError("INVALID_ARGUMENT", f"a name of {len(octets)} bytes is longer than 65535")
    return _U16.pack(len(octets)) + octets


def sized(value: bytes) -> bytes:
    return _U32.pack(len(value)) + value


def refs(ids: Iterable[bytes]) -> bytes:
    listed = list(ids)
    return _U32.pack(len(listed)) + b"".join(listed)


def u8(value: int) -> bytes:
    return _U8.pack(value)


def u16(value: int) -> bytes:
    return _U16.pack(value)


def u32(value: int) -> bytes:
    return _U32.pack(value)


def u64(value: int) -> bytes:
    return _U64.pack(value)


def frame(op: int, *parts: bytes | bytearray | memoryview) -> bytes:
    """One whole frame."""
    body = b"".join(parts)
    if len(body) + 1 > MAX_FRAME_BYTES:
        raise BulkheadError("RESOURCE_EXHAUSTED", f"a frame of {len(body) + 1} bytes exceeds the limit of {MAX_FRAME_BYTES}: put large arguments first and pass their refs")
    return _HEAD.pack(len(body) + 1, op) + body


class FrameReader:
    """Walks the frames of one batch. Views of the batch, no copies: copy what outlives it."""

    __slots__ = ("_batch", "_at", "_end", "_next", "op")

    def __init__(self, batch: bytes | bytearray | memoryview) -> None:
        self._batch = memoryview(batch)
        self._at = self._end = self._next = 0
        self.op = 0

    def next(self) -> bool:
        start = self._next
        if start == len(self._batch):
            return False
        if start + 5 > len(self._batch):
            self._refuse("a batch ends inside a frame header")
        length, op = _HEAD.unpack_from(self._batch, start)
        if length < 1 or length > MAX_FRAME_BYTES or start + 4 + length > len(self._batch):
            self._refuse(f"a frame length of {length} is out of bounds")
        self.op = op
        self._at = start + 5
        self._end = self._next = start + 4 + length
        return True

    def _refuse(self, what: str) -> None:
        raise BulkheadError("INVALID_ARGUMENT", f"malformed frame (op 0x{self.op:x}): {what}")

    def _take(self, n: int) -> int:
        at = self._at
        if n > self._end - at:
            self._refuse("a field runs past the end of its frame")
        self._at = at + n
        return at

    @property
    def remaining(self) -> int:
        return self._end - self._at

    def u8(self) -> int:
        return self._batch[self._take(1)]

    def u16(self) -> int:
        return int(_U16.unpack_from(self._batch, self._take(2))[0])

    def u32(self) -> int:
        return int(_U32.unpack_from(self._batch, self._take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack_from(self._batch, self._take(8))[0])

    def raw(self, n: int) -> memoryview:
        at = self._take(n)
        return self._batch[at : at + n]

    def id(self) -> bytes:
        return bytes(self.raw(ID_BYTES))

    def sized(self) -> memoryview:
        return self.raw(self.u32())

    def name(self) -> str:
        return str(bytes(self.raw(self.u16())), "utf-8")

    def text(self) -> str:
        return str(bytes(self.raw(self.u32())), "utf-8")

    def rest(self) -> memoryview:
        return self.raw(self.remaining)

    def finish(self) -> None:
        if self._at != self._end:
            self._refuse(f"{self._end - self._at} octets are left over")
