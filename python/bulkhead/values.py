"""Python values as octets. What every language has goes in their common encoding (neutral.py): None, bool, int, float, str, bytes, plain numpy arrays, Arrow
tables, and whatever the program marks with `Neutral`. Everything else is a pickle of protocol 5 and its out-of-band buffers, each at a multiple of 64 octets,
so that what is read from a mapped file needs no copy. To CBOR readers that is a byte string under a tag of ours, which other languages and tenants refuse by name.

    da 'BKPY' 5b u64 length (big-endian) | u32 n | u64 pickle octets | n × (u64 offset, u64 octets) | pickle | buffers

Must never: be called in a trusted process; unpickle octets of another tenant (`foreign`): a pickle is code.
"""

from __future__ import annotations

import io
import pickle
import struct
import threading
from typing import Any, Callable, Iterable

import cloudpickle

from . import neutral
from .errors import BulkheadError
from .ray_errors import RayTaskError

TAG = b"\xdaBKPY\x5b"
_HEAD = struct.Struct("<IQ")
_BUFFER = struct.Struct("<QQ")
_PREFIX = len(TAG) + 8
_ALIGN = 64


class _Contained(threading.local):
    """Refs met while the thread pickles a value: whoever sends it names them beside it."""

    ids: list[bytes] | None = None


contained = _Contained()


class Neutral:
    """Says that a value is to be written without code, as other languages and tenants read it: what cannot be is refused with its path and type."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


# How refs and actor handles travel among neutral values: api.py knows.
refs: neutral.Refs | None = None


def note_contained(ref_id: bytes) -> None:
    if contained.ids is not None:
        contained.ids.append(ref_id)


class Encoded:
    """An encoded value in parts, which are written one behind the other."""

    __slots__ = ("parts", "size", "ids", "shared")

    def __init__(self, parts: list[bytes | memoryview], size: int, ids: list[bytes]) -> None:
        self.parts = parts
        self.size = size
        self.ids = ids
        # Whether many calls have these very octets.
        self.shared = False

    def join(self) -> bytes:
        return b"".join(self.parts) if len(self.parts) > 1 else bytes(self.parts[0])


class Failed:
    """A value that raises where it is read: the place of an item that a generator did not come to."""

    def __init__(self, message: str, stack: str, cause: BaseException | None) -> None:
        self.told = (message, stack, cause)

    def __reduce__(self) -> tuple[Any, ...]:
        return _raise, self.told


def _raise(message: str, stack: str, cause: BaseException | None) -> Any:
    raise RayTaskError(message, stack, cause).as_instanceof_cause()


def _dump(value: Any, callback: Callable[[pickle.PickleBuffer], Any]) -> bytes:
    """The C pickler takes what it can; what it cannot (functions and classes of the program itself) needs cloudpickle's."""
    out = io.BytesIO()
    cloudpickle.CloudPickler(out, protocol=5, buffer_callback=callback).dump(value)
    return out.getvalue()


_SCALARS: frozenset[type] = frozenset({type(None), bool, int, float, str, bytes})
_LARGE = 65_536


def all_plain(of: Iterable[Any]) -> bool:
    """Whether all are of types that the pickler of the standard library writes without a look at the program."""
    return _SCALARS.issuperset(map(type, of))


def encode_plain(value: Any) -> Encoded:
    """As `encode`, for a plain value, or tuples and dicts of some."""
    pickled = pickle.dumps(value, 5)
    size = _HEAD.size + len(pickled)
    return Encoded([b"".join((TAG, size.to_bytes(8, "big"), _HEAD.pack(0, len(pickled)), pickled))], _PREFIX + size, [])


def _neutral(value: Any, what: str) -> Encoded:
    made = neutral.encode(value, refs, what)
    return Encoded(made.parts, made.size, made.ids)


def _as_it_is(value: Any, kind: type) -> bool:
    """Whether a reader in Python gets the very same from the neutral encoding."""
    if kind.__module__ == "numpy":
        return kind.__name__ == "ndarray" and neutral.array_tag(value) is not None
    return kind.__module__ == "pyarrow.lib" and kind.__name__ == "Table"


def encode(value: Any, what: str = "value", plain: bool = False) -> Encoded:
    """`plain`: without code, whatever it is, since who asked does not read Python's."""
    kind = type(value)
    if kind in _SCALARS and (kind is not bytes or len(value) < _LARGE):
        octets = neutral.scalar(value)
        if octets is not None:
            return Encoded([octets], len(octets), [])
    if plain or kind is Neutral:
        return _neutral(value.value if kind is Neutral else value, what)
    if kind is bytes or _as_it_is(value, kind):
        return _neutral(value, what)
    before = contained.ids
    ids: list[bytes] = []
    contained.ids = ids
    raws: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:
            return True
        if raw.nbytes < 4_096:
            return True
        raws.append(raw)
        return False

    try:
        pickled = _dump(value, keep)
    except BulkheadError:
        raise
    except Exception as thrown:
        raise TypeError(f"Could not serialize the {what} of type {type(value).__name__}: {thrown}") from thrown
    finally:
        contained.ids = before
    if not raws:
        size = _HEAD.size + len(pickled)
        return Encoded([b"".join((TAG, size.to_bytes(8, "big"), _HEAD.pack(0, len(pickled)), pickled))], _PREFIX + size, ids)
    at = _PREFIX + _HEAD.size + _BUFFER.size * len(raws) + len(pickled)
    table = bytearray()
    tail: list[bytes | memoryview] = []
    for raw in raws:
        pad = -at % _ALIGN
        tail.append(bytes(pad))
        tail.append(raw)
        table += _BUFFER.pack(at + pad, raw.nbytes)
        at += pad + raw.nbytes
    head = b"".join((TAG, (at - _PREFIX).to_bytes(8, "big"), _HEAD.pack(len(raws), len(pickled)), table, pickled))
    return Encoded([head, *tail], at, ids)


def is_pickle(octets: bytes | bytearray | memoryview) -> bool:
    return bytes(octets[: len(TAG)]) == TAG


def decode(octets: bytes | bytearray | memoryview, foreign: bool = False) -> Any:
    """The value; buffers in it are views of `octets`, read-only as in Ray. `foreign`: another tenant made it, so that nothing in it is run."""
    if type(octets) is bytes and not foreign and octets.startswith(TAG):
        # Most values: a small pickle and nothing beside it.
        pickled = len(octets) - _PREFIX - _HEAD.size
        if pickled > 0 and octets.startswith((pickled + _HEAD.size).to_bytes(8, "big"), len(TAG)) and octets.startswith(_HEAD.pack(0, pickled), _PREFIX):
            return pickle.loads(memoryview(octets)[_PREFIX + _HEAD.size :])
    view = memoryview(octets).toreadonly()
    if view[: len(TAG)] != TAG:
        if foreign and len(view) > 1 and not any(view[:16]):
            # What a raylet did not let across the wall is zeros.
            raise BulkheadError("DENIED", "the value carries code or was changed by its owner: it did not leave its tenant")
        return neutral.decode(view, refs, foreign)
    if foreign:
        raise BulkheadError("DENIED", "a value of another tenant that carries code (a pickle) is never read: its owner can share it as data, with Neutral(value), a numpy array or an Arrow table")
    if len(view) < _PREFIX + _HEAD.size:
        raise BulkheadError("INVALID_ARGUMENT", "a value is shorter than it says")
    n, pickled = _HEAD.unpack_from(view, _PREFIX)
    start = _PREFIX + _HEAD.size + _BUFFER.size * n
    if start + pickled > len(view) or int.from_bytes(view[len(TAG) : _PREFIX], "big") != len(view) - _PREFIX:
        raise BulkheadError("INVALID_ARGUMENT", "a value is shorter than it says")
    if n == 0:
        return pickle.loads(view[start : start + pickled])
    buffers = []
    for i in range(n):
        offset, size = _BUFFER.unpack_from(view, _PREFIX + _HEAD.size + i * _BUFFER.size)
        if offset + size > len(view):
            raise BulkheadError("INVALID_ARGUMENT", "a buffer of a value runs past its end")
        buffers.append(view[offset : offset + size])
    return pickle.loads(view[start : start + pickled], buffers=buffers)
