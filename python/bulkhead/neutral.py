"""Values without code, in the encoding of TypeScript programs (src/base/value.ts, docs/adr/0007-values-and-code.md): what crosses between languages and between
tenants. The parser takes what that page allows and nothing else, and makes plain values only.

Must never: import, call or unpickle anything that a value names; allocate more than a small multiple of its input; change a value in silence.
"""

from __future__ import annotations

import datetime
import math
import struct
import sys
from typing import Any, Protocol, cast

from .errors import BulkheadError
from .ray_errors import CrossLanguageError

MAX_DEPTH = 512
_STACK_CHARS = 16_000
_SAFE = 2**53 - 1
# A buffer of this size is not copied into the octets around it.
_APART = 4_096
_COLLISIONS = 256
_EPOCH, _BIG, _NEGATIVE_BIG, _SHARED, _REFERENCE, _REGEXP, _ROWS, _UINT8, _COLUMNS = 1, 2, 3, 28, 29, 35, 40, 64, 1040
_SET, _MAP = 258, 259
_REF, _ACTOR, _ERROR, _UTF16, _ARRAY_BUFFER, _DATA_VIEW, _SPARSE, _REGEXP_FLAGS, _DATE_MS, _ARROW = range(0x4248, 0x4252)
# RFC 8746, little-endian: tag, format of `struct` and `memoryview`, name of numpy's dtype.
_ARRAYS = {64: ("B", "u1"), 68: ("B", "u1"), 69: ("H", "<u2"), 70: ("I", "<u4"), 71: ("Q", "<u8"), 72: ("b", "i1"), 77: ("h", "<i2"), 78: ("i", "<i4"), 79: ("q", "<i8"), 84: ("e", "<f2"), 85: ("f", "<f4"), 86: ("d", "<f8")}
_TAG_OF = {"u1": 64, "u2": 69, "u4": 70, "u8": 71, "i1": 72, "i2": 77, "i4": 78, "i8": 79, "f2": 84, "f4": 85, "f8": 86}
_LITTLE = sys.byteorder == "little"
_F64 = struct.Struct(">d")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_FLOATS = {25: struct.Struct(">e"), 26: struct.Struct(">f"), 27: _F64}
_UTC_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
# What an error of this name becomes; all other names become a CrossLanguageError that tells the name.
_EXCEPTIONS: dict[str, type[Exception]] = {
    of.__name__: of
    for of in (ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, IndexError, KeyError, LookupError, MemoryError, NameError, NotImplementedError, OSError, OverflowError, PermissionError, RecursionError, ReferenceError, RuntimeError, TimeoutError, TypeError, ValueError, ZeroDivisionError)
}


class Refs(Protocol):
    """How refs and handles of actors are written and read; without it they are refused."""

    def describe(self, value: Any) -> tuple[bytes, str | None] | None: ...
    def ref(self, ref_id: bytes) -> Any: ...
    def actor(self, ref_id: bytes, info: str) -> Any: ...


# --- writing ---


class _Refusal(Exception):
    """What does not cross, and what to do; the path to it is found afterwards."""


def _head(major: int, n: int) -> bytes:
    if n < 24:
        return bytes((major | n,))
    if n < 0x100:
        return bytes((major | 24, n))
    if n < 0x1_0000:
        return bytes((major | 25, n >> 8, n & 0xFF))
    if n < 0x1_0000_0000:
        return bytes((major | 26,)) + _U32.pack(n)
    return bytes((major | 27,)) + _U64.pack(n)


def integer(value: int) -> bytes:
    if 0 <= value <= 0xFFFF_FFFF_FFFF_FFFF:
        return _head(0x00, value)
    if -0x1_0000_0000_0000_0000 <= value < 0:
        return _head(0x20, -1 - value)
    magnitude = value if value >= 0 else -1 - value
    octets = magnitude.to_bytes((magnitude.bit_length() + 7) // 8, "big")
    return _head(0xC0, _BIG if value >= 0 else _NEGATIVE_BIG) + _head(0x40, len(octets)) + octets


def scalar(value: Any) -> bytes | None:
    """A value of exactly one of the types that every language has; None where it is none."""
    kind = type(value)
    if value is None:
        return b"\xf6"
    if kind is bool:
        return b"\xf5" if value else b"\xf4"
    if kind is int:
        return integer(value)
    if kind is float:
        return b"\xfb" + _F64.pack(value)
    if kind is bytes:
        octets: bytes = value
        return _head(0x40, len(octets)) + octets
    if kind is str:
        try:
            octets = value.encode()
        except UnicodeEncodeError:
            return None
        return _head(0x60, len(octets)) + octets
    return None


def array_tag(value: Any) -> int | None:
    """The tag of a numpy array that crosses as it is; None of others."""
    dtype = value.dtype
    if dtype.fields is not None or dtype.subdtype is not None:
        return None
    return _TAG_OF.get(f"{dtype.kind}{dtype.itemsize}") if dtype.isnative else None


class Encoder:
    """One value. `parts` are written one behind the other; arrays among them begin at multiples of 8, so that who maps the octets needs no copy."""

    def __init__(self, refs: Refs | None = None) -> None:
        self.refs = refs
        self.ids: list[bytes] = []
        self.parts: list[bytes | memoryview] = []
        self.size = 0
        self._out = bytearray()
        # Containers that are met more than once, by identity: -1 before they are written, else their number.
        self._shared: dict[int, int] = {}
        self._count = 0

    def run(self, value: Any, what: str) -> None:
        try:
            self._find_shared(value)
            self._value(value, 0)
        except RecursionError:
            raise BulkheadError("INVALID_ARGUMENT", f"{what} is nested too deeply to cross to another language") from None
        except _Refusal as refused:
            culprit, why = refused.args
            path = _path(value, culprit, what)
            raise BulkheadError("INVALID_ARGUMENT", f"{path if len(path) < 300 else '…' + path[-300:]} {why}") from None
        self._close()

    def _close(self) -> None:
        if self._out:
            self.parts.append(bytes(self._out))
            self.size += len(self._out)
            self._out = bytearray()

    def _find_shared(self, value: Any) -> None:
        met: set[int] = set()
        todo = [value]
        while todo:
            of = todo.pop()
            kind = type(of)
            if kind not in _CONTAINERS:
                continue
            if id(of) in met:
                self._shared[id(of)] = -1
                continue
            met.add(id(of))
            if kind is dict:
                todo.extend(of.keys())
                todo.extend(of.values())
            else:
                todo.extend(of)

    def _octets(self, head: bytes, raw: bytes | memoryview) -> None:
        self._out += head
        if len(raw) < _APART:
            self._out += raw
            return
        self._close()
        self.parts.append(raw)
        self.size += len(raw)

    def _text(self, value: str) -> None:
        try:
            octets = value.encode()
        except UnicodeEncodeError:
            octets = value.encode("utf-16-le", "surrogatepass")
            self._octets(_head(0xC0, _UTF16) + _head(0x40, len(octets)), octets)
            return
        self._octets(_head(0x60, len(octets)), octets)

    def _value(self, value: Any, depth: int) -> None:
        kind = type(value)
        if kind is str:
            return self._text(value)
        if kind is bytes:
            return self._octets(_head(0x40, len(value)), value)
        simple = scalar(value)
        if simple is not None:
            self._out += simple
            return
        if kind not in _CONTAINERS:
            return self._other(value, kind, depth)
        if depth >= MAX_DEPTH:
            raise _Refusal(value, f"is nested deeper than {MAX_DEPTH}")
        number = self._shared.get(id(value))
        out = self._out
        if number is not None:
            if number >= 0:
                out += _head(0xC0, _REFERENCE) + _head(0, number)
                return
            self._shared[id(value)] = self._count
            self._count += 1
            out += _head(0xC0, _SHARED)
        if kind is dict:
            plain = all(type(key) is str for key in value)
            out += _head(0xA0, len(value)) if plain else _head(0xC0, _MAP) + _head(0xA0, len(value))
            for key, item in value.items():
                self._value(key, depth + 1)
                self._value(item, depth + 1)
            return
        if kind is set or kind is frozenset:
            out += _head(0xC0, _SET)
        out += _head(0x80, len(value))
        for item in value:
            self._value(item, depth + 1)

    def _other(self, value: Any, kind: type, depth: int) -> None:
        described = self.refs.describe(value) if self.refs is not None else None
        if described is not None:
            ref_id, info = described
            self.ids.append(ref_id)
            self._out += _head(0xC0, _REF if info is None else _ACTOR)
            if info is not None:
                self._out += b"\x82"
            self._out += _head(0x40, len(ref_id)) + ref_id
            if info is not None:
                self._text(info)
            return
        if kind is bytearray or kind is memoryview:
            raw = memoryview(value)
            return self._octets(_head(0x40, raw.nbytes), raw.cast("B") if raw.contiguous else raw.tobytes())
        if kind is datetime.datetime:
            return self._date(value)
        if isinstance(value, Exception):
            return self._error(value, depth)
        module = kind.__module__.partition(".")[0]
        if module == "numpy":
            return self._numpy(value, kind)
        if module == "pyarrow":
            return self._arrow(value, kind)
        if isinstance(value, (int, str, float)) and not isinstance(value, bool) and hasattr(value, "value"):
            raise _Refusal(value, f"is a {kind.__name__} (an enum): pass its .value")
        raise _Refusal(value, _advice(value, kind))

    def _date(self, value: datetime.datetime) -> None:
        if value.tzinfo is None:
            raise _Refusal(value, "is a datetime without a time zone: attach one (value.astimezone(), or value.replace(tzinfo=timezone.utc))")
        # Exact to the microsecond, which a double holds until the year 2255.
        passed = value - _UTC_EPOCH
        seconds = passed.days * 86_400 + passed.seconds
        whole = passed.microseconds == 0
        self._out += _head(0xC0, _EPOCH) + (integer(seconds) if whole else b"\xfb" + _F64.pack((seconds * 1_000_000 + passed.microseconds) / 1_000_000))

    def _error(self, value: Exception, depth: int) -> None:
        if depth >= MAX_DEPTH:
            raise _Refusal(value, f"is nested deeper than {MAX_DEPTH}")
        foreign = isinstance(value, CrossLanguageError)
        name = value.name if isinstance(value, CrossLanguageError) else type(value).__name__
        message = str(value.args[0]) if foreign or (isinstance(value, KeyError) and len(value.args) == 1) else str(value)
        stack = value.stack if isinstance(value, CrossLanguageError) else None
        cause = value.__cause__ if isinstance(value.__cause__, Exception) else None
        self._out += _head(0xC0, _ERROR) + (b"\x83" if cause is None else b"\x84")
        self._text(name)
        self._text(message)
        if stack is None:
            self._out += b"\xf7"
        else:
            self._text(stack[:_STACK_CHARS])
        if cause is not None:
            self._error(cause, depth + 1)

    def _numpy(self, value: Any, kind: type) -> None:
        import numpy as np

        if isinstance(value, np.generic):
            if isinstance(value, (np.bool_, np.integer, np.floating)) and value.dtype.itemsize <= 8:
                self._out += scalar(value.item()) or b""
                return
            raise _Refusal(value, f"is a {kind.__name__}, which no other language has: pass a number or text made from it")
        if kind is not np.ndarray:
            raise _Refusal(value, f"is a {kind.__name__}: pass a plain numpy.ndarray (numpy.asarray(…))")
        self.array(value)

    def array(self, value: Any) -> None:
        import numpy as np

        tag = array_tag(value)
        if tag is None:
            dtype = value.dtype
            if not dtype.isnative and dtype.fields is None:
                return self.array(value.astype(dtype.newbyteorder("=")))
            hint = ".astype(numpy.uint8)" if dtype.kind == "b" else ".astype(numpy.int64) with the unit told beside it" if dtype.kind in "mM" else ".real and .imag" if dtype.kind == "c" else ".tolist()"
            raise _Refusal(value, f"is an array of {dtype}, which no typed array holds: pass {hint}")
        if not _LITTLE:
            value = value.astype(value.dtype.newbyteorder("<"))
        columns = value.ndim > 1 and value.flags.f_contiguous and not value.flags.c_contiguous
        if not columns and not value.flags.c_contiguous:
            value = np.ascontiguousarray(value)
        raw = memoryview(value.T if columns else value).cast("B") if value.size else memoryview(b"")
        dims = b"" if value.ndim == 1 else b"\x82" + _head(0x80, value.ndim) + b"".join(_head(0, n) for n in value.shape)
        self._octets(self._aligned(_COLUMNS if columns else _ROWS, dims, tag, len(raw)), raw)

    def _aligned(self, outer: int, dims: bytes, tag: int, size: int) -> bytes:
        """The heads in front of an array's octets, of a length that makes those begin at a multiple of 8: CBOR leaves the width of a head open, and what is
        marked as shared is the same value."""
        at = self.size + len(self._out)
        for prefix in (b"", _wide(0xC0, _SHARED, 3)):
            for a in _WIDTHS[1 if outer == _COLUMNS else 0 :] if dims else (0,):
                for b in _WIDTHS:
                    for c in (5, 9):
                        if (at + len(prefix) + a + len(dims) + b + c) % 8 == 0:
                            self._count += len(prefix) != 0
                            return prefix + (_wide(0xC0, outer, a) if a else b"") + dims + _wide(0xC0, tag, b) + _wide(0x40, size, c)
        raise AssertionError("no widths fit")

    def _arrow(self, value: Any, kind: type) -> None:
        import pyarrow as pa

        if isinstance(value, pa.RecordBatch):
            value = pa.Table.from_batches([value])
        if not isinstance(value, pa.Table):
            raise _Refusal(value, f"is a pyarrow.{kind.__name__}: pass a pyarrow.Table or RecordBatch")
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_table(value)
        raw = memoryview(sink.getvalue()).cast("B")
        at = self.size + len(self._out)
        # Its buffers lie at multiples of 8 within the stream.
        head = next(h for a in (3, 5, 9) for b in (5, 9) if (at + len(h := _wide(0xC0, _ARROW, a) + _wide(0x40, len(raw), b))) % 8 == 0 or (a, b) == (9, 9))
        self._octets(head, raw)


_WIDTHS = (2, 3, 5, 9)
_CONTAINERS: frozenset[type] = frozenset({dict, list, tuple, set, frozenset})


def _wide(major: int, n: int, width: int) -> bytes:
    """A head of a given width."""
    info = {2: 24, 3: 25, 5: 26, 9: 27}[width]
    return bytes((major | info,)) + n.to_bytes(width - 1, "big")


def _advice(value: Any, kind: type) -> str:
    name = kind.__name__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__name__}"
    if callable(value):
        return f"is a {name}: functions and classes do not cross to another language or tenant; name one (cluster.python('module:function'), js_function) and pass data"
    if kind.__module__.partition(".")[0] == "pandas":
        return f"is a {name}: pass pyarrow.Table.from_pandas(…), or numpy arrays"
    if name in ("datetime.date", "datetime.time", "datetime.timedelta"):
        return f"is a {name}: pass a datetime with a time zone, .isoformat() or .total_seconds()"
    if name in ("complex", "decimal.Decimal", "fractions.Fraction", "uuid.UUID"):
        return f"is a {name}: pass str(…), or numbers"
    return f"is a {name}: pass a dict, list, str, bytes, number, numpy array or Arrow table made from it, or keep it in an actor"


def _path(root: Any, culprit: Any, what: str) -> str:
    """Where the culprit sits."""
    seen: set[int] = set()
    todo: list[tuple[Any, str]] = [(root, what)]
    while todo:
        value, path = todo.pop()
        if value is culprit:
            return path
        if type(value) not in _CONTAINERS or id(value) in seen or len(seen) > 50_000:
            continue
        seen.add(id(value))
        if type(value) is dict:
            for i, (key, item) in enumerate(value.items()):
                todo.append((item, f"{path}[{key!r}]" if isinstance(key, (str, int)) else f"{path}.values()[{i}]"))
                todo.append((key, f"{path}.keys()[{i}]"))
        else:
            todo.extend((item, f"{path}[{i}]") for i, item in enumerate(value))
    return f"something in {what}"


# --- reading ---

_PENDING = object()


class _Decoder:
    __slots__ = ("view", "at", "end", "refs", "shared", "_checked", "_keys_left")

    def __init__(self, view: memoryview, refs: Refs | None, checked: bool) -> None:
        self.view = view
        self.at = 0
        self.end = len(view)
        self.refs = refs
        self.shared: list[Any] = []
        self._checked = checked
        # Elements of keys that are made of lists: no more than the value has octets, or shared lists would grow without end.
        self._keys_left = self.end

    def refuse(self, what: str) -> BulkheadError:
        return BulkheadError("INVALID_ARGUMENT", f"malformed value at octet {self.at}: {what}")

    def take(self, n: int) -> int:
        at = self.at
        if n > self.end - at:
            raise self.refuse("it ends too early")
        self.at = at + n
        return at

    def argument(self, info: int) -> int:
        if info < 24:
            return info
        if info > 27:
            raise self.refuse("an indefinite or reserved length")
        size = 1 << (info - 24)
        at = self.take(size)
        return int.from_bytes(self.view[at : at + size], "big")

    def count(self, info: int, each: int) -> int:
        n = self.argument(info)
        if n * each > self.end - self.at:
            raise self.refuse(f"{n} elements do not fit in what is left")
        return n

    def raw(self, info: int) -> memoryview:
        n = self.argument(info)
        at = self.take(n)
        return self.view[at : at + n]

    def expect(self, major: int, what: str) -> int:
        initial = self.view[self.take(1)]
        if initial >> 5 != major:
            raise self.refuse(f"{what} has content of another type")
        return initial & 0x1F

    def text(self, what: str) -> str:
        initial = self.view[self.take(1)]
        if initial >> 5 == 3:
            return self.utf8(initial & 0x1F)
        if initial >> 5 == 6 and self.argument(initial & 0x1F) == _UTF16:
            return self.utf16()
        raise self.refuse(f"{what} is not text")

    def utf8(self, info: int) -> str:
        try:
            return str(self.raw(info), "utf-8")
        except UnicodeDecodeError:
            raise self.refuse("text is not valid UTF-8") from None

    def utf16(self) -> str:
        octets = self.raw(self.expect(2, "text"))
        if len(octets) % 2:
            raise self.refuse("UTF-16 text has half a code unit")
        return str(octets, "utf-16-le", "surrogatepass")

    def root(self) -> Any:
        try:
            value = self.value(0, -1)
        except RecursionError:
            raise self.refuse("it is nested too deeply for where it is read") from None
        if self.at != self.end:
            raise self.refuse(f"{self.end - self.at} octets are left over")
        return value

    def value(self, depth: int, slot: int) -> Any:
        if depth > MAX_DEPTH:
            raise self.refuse(f"it is nested deeper than {MAX_DEPTH}")
        initial = self.view[self.take(1)]
        major, info = initial >> 5, initial & 0x1F
        if major == 0:
            return self.argument(info)
        if major == 1:
            return -1 - self.argument(info)
        if major == 2:
            return bytes(self.raw(info))
        if major == 3:
            return self.utf8(info)
        if major == 4:
            n = self.count(info, 1)
            items: list[Any] = []
            if slot >= 0:
                self.shared[slot] = items
            for _ in range(n):
                items.append(self.value(depth + 1, -1))
            return items
        if major == 5:
            n = self.count(info, 2)
            found: dict[Any, Any] = {}
            if slot >= 0:
                self.shared[slot] = found
            for _ in range(n):
                name = self.text("the key of an object")
                if name in found:
                    raise self.refuse(f"the key {name[:64]!r} comes twice")
                found[name] = self.value(depth + 1, -1)
            return found
        if major == 6:
            return self.tagged(self.argument(info), depth, slot)
        if info == 20:
            return False
        if info == 21:
            return True
        if info == 22 or info == 23:
            return None
        form = _FLOATS.get(info)
        if form is None:
            raise self.refuse("an unknown simple value")
        return form.unpack_from(self.view, self.take(form.size))[0]

    def tagged(self, tag: int, depth: int, slot: int) -> Any:
        if tag in _ARRAYS:
            return self.array(tag, None, False)
        if tag == _EPOCH or tag == _DATE_MS:
            return self.date(self.value(depth + 1, -1), 1 if tag == _EPOCH else 1_000)
        if tag == _BIG:
            return int.from_bytes(self.raw(self.expect(2, "a big integer")), "big")
        if tag == _NEGATIVE_BIG:
            return -1 - int.from_bytes(self.raw(self.expect(2, "a big integer")), "big")
        if tag == _SHARED:
            if slot >= 0:
                raise self.refuse("a value is marked as shared twice")
            self.shared.append(_PENDING)
            index = len(self.shared) - 1
            value = self.value(depth + 1, index)
            if value is None or isinstance(value, (bool, int, float, str)):
                raise self.refuse("a scalar is marked as shared")
            self.shared[index] = value
            return value
        if tag == _REFERENCE:
            number = self.argument(self.expect(0, "a reference"))
            value = self.shared[number] if number < len(self.shared) else _PENDING
            if value is _PENDING:
                raise self.refuse("a reference to nothing")
            return value
        if tag == _SET:
            n = self.count(self.expect(4, "a set"), 1)
            elements: set[Any] = set()
            if slot >= 0:
                self.shared[slot] = elements
            hashes: set[int] = set()
            for i in range(n):
                element = self.hashable(self.value(depth + 1, -1), "an element of a set")
                self.spread(hashes, element, i)
                elements.add(element)
            if len(elements) != n:
                raise self.refuse("an element of a set comes twice, as Python compares (1, 1.0 and True are equal)")
            return elements
        if tag == _MAP:
            n = self.count(self.expect(5, "a map"), 2)
            found: dict[Any, Any] = {}
            if slot >= 0:
                self.shared[slot] = found
            hashes = set()
            for i in range(n):
                key = self.hashable(self.value(depth + 1, -1), "a key of a map")
                self.spread(hashes, key, i)
                found[key] = self.value(depth + 1, -1)
            if len(found) != n:
                raise self.refuse("a key of a map comes twice, as Python compares (1, 1.0 and True are equal)")
            return found
        if tag == _ROWS or tag == _COLUMNS:
            return self.shaped(tag == _COLUMNS)
        if tag == _UTF16:
            return self.utf16()
        if tag == _ARRAY_BUFFER or tag == _DATA_VIEW:
            return bytes(self.raw(self.expect(2, "a buffer")))
        if tag == _ERROR:
            return self.error(depth, slot)
        if tag == _ARROW:
            return self.arrow(self.raw(self.expect(2, "an Arrow table")))
        if tag == _REF:
            if self.refs is None:
                raise self.refuse("an object ref where none may be")
            return self.refs.ref(self.id())
        if tag == _ACTOR:
            if self.refs is None:
                raise self.refuse("an actor handle where none may be")
            if self.expect(4, "an actor handle") != 2:
                raise self.refuse("an actor handle is not a pair")
            ref_id = self.id()
            return self.refs.actor(ref_id, self.text("class info"))
        if tag in (_REGEXP, _REGEXP_FLAGS):
            raise self.refuse("a regular expression has no equal in Python: pass its source as text")
        if tag == _SPARSE:
            raise self.refuse("an array with holes has no equal in Python: fill it, Array.from(array)")
        if tag == _PICKLE_TAG:
            raise self.refuse("a pickle inside a value that may not carry code")
        raise self.refuse(f"unknown tag {tag}")

    def id(self) -> bytes:
        octets = bytes(self.raw(self.expect(2, "an id")))
        if len(octets) != 24:
            raise self.refuse("an id has another length")
        return octets

    def hashable(self, value: Any, what: str) -> Any:
        if type(value) is list:
            # What was a tuple in Python.
            self._keys_left -= len(value) + 1
            if self._keys_left < 0:
                raise self.refuse(f"{what} is larger than what it is made of")
            value = tuple(self.hashable(item, what) for item in value)
        try:
            hash(value)
        except TypeError:
            raise self.refuse(f"{what} is a {type(value).__name__}, which cannot be one in Python: use text or numbers") from None
        return value

    def spread(self, hashes: set[int], key: Any, n: int) -> None:
        """Numbers chosen so that Python finds them by one hash would take hours to be looked up."""
        hashes.add(hash(key))
        if n - len(hashes) > _COLLISIONS:
            raise self.refuse(f"more than {_COLLISIONS} keys have hashes of others")

    def date(self, given: Any, per_second: int) -> datetime.datetime:
        if isinstance(given, bool) or not isinstance(given, (int, float)):
            raise self.refuse("a date is not a number")
        if isinstance(given, float) and not math.isfinite(given):
            raise self.refuse("an invalid date has no equal in Python: pass null")
        try:
            if isinstance(given, int):
                return _UTC_EPOCH + datetime.timedelta(seconds=given // per_second, milliseconds=given % per_second if per_second > 1 else 0)
            return _UTC_EPOCH + datetime.timedelta(microseconds=round(given * 1_000_000 / per_second))
        except OverflowError:
            raise self.refuse("a date is beyond the years 1 to 9999 that Python has") from None

    def error(self, depth: int, slot: int) -> Exception:
        n = self.expect(4, "an error")
        if n not in (3, 4):
            raise self.refuse("an error has another number of fields")
        name, message = self.text("the name of an error"), self.text("the message of an error")
        stack = self.value(depth + 1, -1)
        if stack is not None and not isinstance(stack, str):
            raise self.refuse("the stack of an error is not text")
        of = _EXCEPTIONS.get(name)
        made: Exception = of(message) if of is not None else CrossLanguageError(message, name, stack)
        if slot >= 0:
            self.shared[slot] = made
        if n == 4:
            cause = self.value(depth + 1, -1)
            if isinstance(cause, BaseException) and cause is not made:
                made.__cause__ = cause
        return made

    def array(self, tag: int, shape: list[int] | None, columns: bool) -> Any:
        octets = self.raw(self.expect(2, "a typed array"))
        form, dtype = _ARRAYS[tag]
        size = struct.calcsize(f"={form}")
        if len(octets) % size:
            raise self.refuse("a typed array has a broken element")
        if shape is not None and math.prod(shape) * size != len(octets):
            raise self.refuse("an array has another number of elements than its shape")
        try:
            import numpy as np
        except ImportError:
            if not _LITTLE:
                raise self.refuse("arrays cannot be read here without numpy") from None
            # The type checker knows `cast` with literal formats only.
            flat: Any = cast(Any, octets).cast(form)
            return flat if shape is None or columns or not math.prod(shape) else flat.cast("B").cast(form, shape)
        made = np.frombuffer(octets, dtype=np.dtype(dtype)) if len(octets) else np.empty(0, np.dtype(dtype))
        if not made.flags.aligned:
            made = made.copy()
        if shape is not None:
            try:
                made = made.reshape(shape, order="F" if columns else "C")
            except (ValueError, OverflowError, MemoryError):
                raise self.refuse("an array has a shape that numpy does not have") from None
        made.flags.writeable = False
        return made

    def shaped(self, columns: bool) -> Any:
        if self.expect(4, "an array of dimensions") != 2:
            raise self.refuse("an array with a shape is not a pair")
        n = self.count(self.expect(4, "a shape"), 1)
        if n > 32:
            raise self.refuse(f"an array of {n} dimensions")
        shape = [self.argument(self.expect(0, "a dimension")) for _ in range(n)]
        initial = self.view[self.at] if self.at < self.end else 0
        tag = _UINT8
        if initial >> 5 == 6:
            tag = self.argument(self.view[self.take(1)] & 0x1F)
        if tag not in _ARRAYS:
            raise self.refuse(f"an array of unknown elements (tag {tag})")
        return self.array(tag, shape, columns)

    def arrow(self, octets: memoryview) -> Any:
        try:
            import pyarrow as pa
        except ImportError:
            raise BulkheadError("INVALID_ARGUMENT", "the value is an Arrow table, and pyarrow is not installed here: install it") from None
        # Older ones unpickle what a schema names (CVE-2023-47248).
        if tuple(int(p) for p in pa.__version__.split(".")[:3] if p.isdigit()) < (14, 0, 1):
            raise BulkheadError("INVALID_ARGUMENT", f"pyarrow {pa.__version__} runs code out of schemas: Arrow tables need 14.0.1 or newer")
        try:
            stream = pa.py_buffer(octets)
            messages = pa.ipc.MessageReader.open_stream(stream)
            while True:
                try:
                    message = messages.read_next_message()
                except StopIteration:
                    break
                if _is_compressed(memoryview(message.metadata)):
                    raise self.refuse("an Arrow table that is compressed, which may be of any size: write it without compression")
            with pa.ipc.open_stream(stream) as reader:
                for field in _fields(reader.schema):
                    if field.metadata is not None and field.metadata.get(b"ARROW:extension:name") == b"arrow.py_extension_type":
                        raise self.refuse("an Arrow schema names a pickled type")
                table = reader.read_all()
            table.validate(full=self._checked)
        except BulkheadError:
            raise
        except Exception as thrown:
            raise self.refuse(f"not an Arrow stream: {type(thrown).__name__}") from None
        return table


# Ours, of Python programs among themselves (values.py).
_PICKLE_TAG = 0x424B5059


def _is_compressed(metadata: memoryview) -> bool:
    """Whether the message is a batch (or a dictionary) whose buffers are compressed, by its flatbuffer: what pyarrow does not tell."""

    def u16(at: int) -> int:
        return int(struct.unpack_from("<H", metadata, at)[0])

    def u32(at: int) -> int:
        return int(struct.unpack_from("<I", metadata, at)[0])

    def field(table: int, n: int) -> int:
        layout = table - int(struct.unpack_from("<i", metadata, table)[0])
        offset = u16(layout + 4 + 2 * n) if 4 + 2 * n < u16(layout) else 0
        return table + offset if offset else 0

    root = u32(0)
    kind = field(root, 1)
    header = field(root, 2)
    of = metadata[kind] if kind else 0
    if of not in (_DICTIONARY, _BATCH) or not header:
        return False
    batch = header + u32(header)
    if of == _DICTIONARY:
        data = field(batch, 1)
        if not data:
            return False
        batch = data + u32(data)
    return field(batch, 3) != 0


# Kinds of Arrow's messages.
_DICTIONARY, _BATCH = 2, 3


def _fields(schema: Any) -> Any:
    todo = list(schema)
    while todo:
        field = todo.pop()
        yield field
        of = field.type
        todo.extend(of.field(i) for i in range(of.num_fields))


def decode(octets: bytes | bytearray | memoryview, refs: Refs | None = None, checked: bool = True) -> Any:
    """The value. Arrays and tables in it are views of `octets`, read-only. `checked`: all of a table is looked at before anyone uses it."""
    return _Decoder(memoryview(octets).toreadonly(), refs, checked).root()


def encode(value: Any, refs: Refs | None = None, what: str = "value") -> Encoder:
    """Throws INVALID_ARGUMENT naming the path and type of the first thing that does not cross."""
    made = Encoder(refs)
    made.run(value, what)
    return made
