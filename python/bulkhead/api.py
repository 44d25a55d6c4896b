"""Ray's names over the client core: remote functions, actors, refs. The same code serves a driver and the inside of a sandbox.

Must never: accept an option in silence that it does not carry out.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import importlib
import inspect
import json
import pickle
import re
import sys
import threading
import time
import weakref
from typing import Any, Callable, Generic, Protocol, Sequence, TypeVar

import cloudpickle

from . import frames as f
from . import runtime_env, scheduling, values
from .client import ClientCore, Pending, Template, deadline, digest_of
from .errors import BulkheadError
from .streams import WINDOW_ITEMS, DynamicGenerator, StreamGenerator
from . import ray_errors as exceptions

T = TypeVar("T")
SOURCE_HEAD = b"BKPY1\n"
# `returns` of a template whose calls stream: they take one index, as calls with one result do.
STREAMING = -1
NAME_HEAD = b"BKPN1\n"
# One result, whose value are the refs of what a generator yields.
DYNAMIC = -2
DYNAMIC_MARK = "__bulkhead_dynamic__"


class Runtime(Protocol):
    """What is behind the module's functions: a driver's connection, or the slot of a sandbox."""

    core: ClientCore

    def context(self) -> dict[str, Any]: ...


# This process runs a job's program (set by the slot).
in_job = False
_current: Runtime | None = None
_auto_init: Callable[[], Runtime] | None = None


def set_runtime(runtime: Runtime | None, auto_init: Callable[[], Runtime] | None = None) -> None:
    global _current, _auto_init
    _current = runtime
    if auto_init is not None:
        _auto_init = auto_init


def runtime() -> Runtime:
    """The one in force; as in Ray the first use connects, where a profile tells whereto."""
    if _current is not None:
        return _current
    if _auto_init is None:
        raise exceptions.RaySystemError("not connected: call ray.init() first")
    return _auto_init()


def connected() -> bool:
    return _current is not None


# --- refs ---


class ObjectRef(Generic[T]):
    """A value that is or will be somewhere in the cluster. Possession of one grants nothing."""

    __slots__ = ("_id", "_core", "_known", "_ready", "__weakref__")

    def __init__(self, ref_id: bytes, core: ClientCore | None = None) -> None:
        self._id = ref_id
        self._core = core if core is not None else runtime().core
        # A small value that was put or read by this very ref is not asked for again.
        self._known: bytes | None = None
        # Whether a wait has said so: what is ready stays it.
        self._ready = False
        self._core.hold(ref_id)

    def __del__(self) -> None:
        try:
            self._core.drop(self._id)
        except AttributeError:
            pass

    def binary(self) -> bytes:
        return self._id

    def hex(self) -> str:
        return self._id.hex()

    def as_future(self) -> asyncio.Future[T]:
        """Of the running event loop; `await ref` is the same."""
        return asyncio.wrap_future(self.future())

    def _on_completed(self, callback: Callable[[Any], Any]) -> None:
        """Calls back with the value, or with the exception, in a thread of the client."""
        self.future().add_done_callback(lambda done: callback(done.exception() or done.result()))

    def size(self) -> int:
        return len(self._id)

    @classmethod
    def from_binary(cls, octets: bytes) -> ObjectRef[Any]:
        return cls(octets)

    @classmethod
    def from_hex(cls, text: str) -> ObjectRef[Any]:
        return cls(bytes.fromhex(text))

    def is_nil(self) -> bool:
        return self._id == NIL_ID

    @classmethod
    def nil(cls) -> ObjectRef[Any]:
        return NIL_REF

    def task_id(self) -> str:
        """Of the call whose result this is. The same text as `hex()`: ids of calls and of their first results are one."""
        return self._id.hex()

    def __repr__(self) -> str:
        return f"ObjectRef({self.hex()})"

    def __hash__(self) -> int:
        return hash(self._id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectRef) and other._id == self._id

    def __reduce__(self) -> tuple[Any, ...]:
        values.note_contained(self._id)
        return ObjectRef, (self._id,)

    def future(self) -> concurrent.futures.Future[T]:
        made: concurrent.futures.Future[T] = concurrent.futures.Future()

        def settled(pending: Any) -> None:
            if not made.set_running_or_notify_cancel():
                # Whoever waited does no more, as after `asyncio.wait_for`.
                return
            if pending.error is not None:
                made.set_exception(pending.error)
            else:
                made.set_result(pending.values[0])

        core = self._core
        _, pending = core.start_get([self._id])
        with core.lock:
            done = pending.done
            if not done:
                pending.callback = settled
        if done:
            settled(pending)
        return made

    def __await__(self) -> Any:
        return asyncio.wrap_future(self.future()).__await__()


class ObjectRefGenerator(StreamGenerator):
    """The stream of a call: an ObjectRef for each item that it yields."""

    __slots__ = ()


# As Ray names what `num_returns="dynamic"` brings.
DynamicObjectRefGenerator = DynamicGenerator


def _item_ref(ref_id: bytes | None, core: ClientCore, octets: bytes | None) -> ObjectRef[Any]:
    if ref_id is None:
        return NIL_REF
    ref: ObjectRef[Any] = ObjectRef(ref_id, core)
    ref._known = octets
    return ref


class _NoCore:
    """What nobody counts."""

    closed = None

    def hold(self, _: bytes) -> None: ...
    def drop(self, _: bytes) -> None: ...


NIL_ID = b"\xff" * f.ID_BYTES
NIL_REF: ObjectRef[Any] = ObjectRef(NIL_ID, _NoCore())  # type: ignore[arg-type]


def _ids(refs: Any, what: str) -> list[bytes]:
    ids = []
    for ref in refs:
        if not isinstance(ref, ObjectRef):
            raise TypeError(f"{what} takes ObjectRefs; this is a {type(ref).__name__}")
        ids.append(ref._id)
    return ids


def get(object_refs: Any, *, timeout: float | None = None) -> Any:
    if isinstance(object_refs, StreamGenerator):
        return object_refs
    one = isinstance(object_refs, ObjectRef)
    if not one and not isinstance(object_refs, (list, tuple)):
        raise ValueError(f"Invalid type of object refs, {type(object_refs)}, is given. 'object_refs' must either be a list of object refs or a single object ref.")
    ids = _ids([object_refs] if one else object_refs, "ray.get()")
    if one and object_refs._known is not None and object_refs._core.closed is None:
        return values.decode(object_refs._known)
    try:
        found = runtime().core.get(ids, timeout, [object_refs] if one else object_refs)
    except BulkheadError as refused:
        raise exceptions.error_of(refused.code, refused.message, refused.stack, None) from None
    return found[0] if one else found


def put(value: Any) -> ObjectRef[Any]:
    if isinstance(value, ObjectRef):
        raise TypeError("Calling 'put' on an ray.ObjectRef is not allowed. If you really want to do this, you can wrap the ray.ObjectRef in a list and call 'put' on it.")
    core = runtime().core
    ref_id, known = _translated(core.put, value)
    ref: ObjectRef[Any] = ObjectRef(ref_id, core)
    ref._known = known
    return ref


def wait(ray_waitables: Sequence[ObjectRef[Any]], *, num_returns: int = 1, timeout: float | None = None, fetch_local: bool = True) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
    refs = list(ray_waitables)
    if isinstance(ray_waitables, ObjectRef):
        raise TypeError("wait() expected a list of ray.ObjectRef, got a single ray.ObjectRef")
    if not refs:
        return [], []
    plain = {ObjectRef}.issuperset(map(type, refs))
    ids = [ref._id for ref in refs] if plain else []
    if len(set(ids if plain else refs)) != len(refs):
        raise ValueError("Wait requires a list of unique object refs.")
    if num_returns <= 0:
        raise ValueError(f"Invalid number of objects to return {num_returns}.")
    if num_returns > len(refs):
        raise ValueError(f"num_returns cannot be greater than the number of objects provided to ray.wait. num_returns: {num_returns}, number of objects: {len(refs)}")
    if plain:
        if num_returns == 1:
            # The loop that takes one after the other: most of them were told to be ready by the answer about the first.
            for i, ref in enumerate(refs):
                if ref._ready and ref._core.closed is None:
                    del refs[i]
                    return [ref], refs
        for position in _translated(runtime().core.wait, ids, num_returns, timeout):
            refs[position]._ready = True
        ready = {i for i, ref in enumerate(refs) if ref._ready}
    elif any(isinstance(ref, StreamGenerator) for ref in refs):
        ready = _wait_mixed(refs, num_returns, timeout)
    else:
        ready = set(_translated(runtime().core.wait, _ids(refs, "ray.wait()"), num_returns, timeout))
    first = [i for i in range(len(refs)) if i in ready][:num_returns]
    taken = set(first)
    return [refs[i] for i in first], [ref for i, ref in enumerate(refs) if i not in taken]


def _wait_mixed(refs: list[Any], count: int, timeout: float | None) -> set[int]:
    """Waits for refs and for the next items of streams."""
    core = runtime().core
    end = deadline(timeout)
    streams = [i for i, ref in enumerate(refs) if isinstance(ref, StreamGenerator)]
    plain = [i for i, ref in enumerate(refs) if not isinstance(ref, StreamGenerator)]
    ids = _ids([refs[i] for i in plain], "ray.wait()")
    while True:
        woken = Pending((), 1, ())
        with core.lock:
            ready = {i for i in streams if refs[i]._reading.something}
            for i in streams:
                if i not in ready:
                    refs[i]._reading.watch(woken)
        ready |= {plain[i] for i in _translated(core.wait, ids, len(ids), 0)} if ids else set()
        left = None if end is None else end - time.monotonic()
        if len(ready) >= count or (left is not None and left <= 0):
            for i in streams:
                refs[i]._reading.forget(woken)
            return ready
        rest = [i for at, i in enumerate(ids) if plain[at] not in ready]
        if rest:
            _, other = core.ask_wait(rest, 1, left)
            with core.lock:
                done = other.done
                if not done:
                    other.callback = lambda _: core._wake(woken)
            if done:
                continue
        core.host.touched()
        core.host.block(woken, left)


def cancel(ref: ObjectRef[Any], *, force: bool = False, recursive: bool = True) -> None:
    if isinstance(ref, StreamGenerator):
        ref = ref._call
    if not isinstance(ref, ObjectRef):
        raise TypeError(f"ray.cancel() only supported for object refs. Got: {type(ref)}.")
    _translated(runtime().core.ask, f.CANCEL, ref._id, f.u8(1 if force else 0))


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    if not isinstance(actor, ActorHandle):
        raise ValueError(f"ray.kill() only supported for actors. For tasks, try ray.cancel(). Got: {type(actor)}.")
    _translated(runtime().core.ask, f.KILL, actor._actor_id, f.u8(0 if no_restart else 1))


def exit_actor() -> None:
    """Ends the actor whose method calls this, for good: it does not start again."""
    ends = getattr(runtime(), "exit_actor", None)
    if ends is None:
        raise TypeError("exit_actor() is called on a driver: it ends the actor whose method calls it")
    ends()


def get_actor(name: str, namespace: str | None = None) -> ActorHandle:
    if not name:
        raise ValueError("Please supply a non-empty value to get_actor")
    namespace = namespace_in_force() if namespace is None else namespace
    key = f"{namespace}/{name}" if namespace else name
    try:
        found, info = runtime().core.ask(f.LOOKUP_ACTOR, f.short(key))
    except (exceptions.PermissionDeniedError, BulkheadError):
        raise ValueError(f"Failed to look up actor with name '{name}': it was not found, or is not yours to call.") from None
    # As in Ray, who found an actor by its name does not keep it alive.
    # Which of its methods are generators is all that is known of them.
    return ActorHandle(found, str(info["export"]), {}, None, frozenset(info.get("streams") or ()), plain=info.get("runtime") != "python")


def _translated(act: Callable[..., T], *args: Any) -> T:
    try:
        return act(*args)
    except BulkheadError as refused:
        raise exceptions.error_of(refused.code, refused.message, refused.stack, None) from None


# --- options ---

_OF_ACTORS = frozenset({"max_restarts", "max_task_retries", "max_concurrency", "max_pending_calls", "concurrency_groups", "lifetime", "namespace", "get_if_exists"})
_OF_TASKS = frozenset({"max_retries", "max_calls", "retry_exceptions", "num_returns"})
_IGNORED = frozenset({"fetch_local", "max_calls", "_metadata", "enable_task_events", "memory_monitor"})


def _count(name: str, value: Any, infinite: bool, kind: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= (-1 if infinite else 0):
        return value
    raise ValueError(f"The keyword '{name}' only accepts {('-1, 0' if kind == f.ACTOR_CLASS else '0, -1') if infinite else '0'} or a positive integer; this is {value!r}")


def _amount(name: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value < 0:
        raise ValueError(f"The {name} option must be a number of at least 0; this is {value!r}")
    return value


def _resources(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise TypeError(f"The type of keyword 'resources' must be a dict, but received type {type(value).__name__}")
    for name, keyword in (("CPU", "num_cpus"), ("GPU", "num_gpus"), ("memory", "memory")):
        if name in value:
            raise ValueError(f"Use the '{keyword}' keyword instead of '{name}' in 'resources'")
    return {name: _amount(f"resources[{name!r}]", amount) for name, amount in value.items()}


def wire_options(options: dict[str, Any], kind: int, plain: bool = False) -> tuple[str, int]:
    """Ray's options as DEFINE takes them, and the number of results. What is not supported raises, with its name."""
    wire: dict[str, Any] = {} if plain else {"runtime": f"python{sys.version_info[0]}.{sys.version_info[1]}", "isolation": "gvisor"}
    returns = 1
    for name, value in options.items():
        if name == "max_calls" and value is not None:
            _count(name, value, False, kind)
        if value is None or name in _IGNORED:
            continue
        if (name in _OF_ACTORS and kind == f.TASK) or (name in _OF_TASKS and kind == f.ACTOR_CLASS):
            raise ValueError(f"Invalid option keyword {name} for {'remote functions' if kind == f.TASK else 'actors'}.")
        if name in ("name", "namespace") and (not isinstance(value, str) or not value):
            raise TypeError(f"{name} must be None or a string that is not empty, got: {value!r}")
        if name == "num_cpus":
            wire["cpus"] = _amount(name, value)
        elif name == "memory":
            wire["memoryBytes"] = int(_amount(name, value))
        elif name == "num_gpus":
            if value != 0:
                wire.setdefault("resources", {})["GPU"] = _amount(name, value)
        elif name == "resources":
            wire.setdefault("resources", {}).update(_resources(value))
        elif name == "num_returns" and kind != f.ACTOR_CLASS and value == "streaming":
            wire["returns"] = value
            returns = STREAMING
        elif name == "num_returns" and kind != f.ACTOR_CLASS and value == "dynamic":
            wire["returns"] = 1
            returns = DYNAMIC
        elif name == "_generator_backpressure_num_objects":
            if value != -1:
                wire["streamItems"] = min(WINDOW_ITEMS, int(_amount(name, value)))
        elif name == "_streams":
            wire["streams"] = value
        elif name == "concurrency_group" and kind == f.ACTOR_METHOD:
            wire["concurrencyGroup"] = value
        elif name == "concurrency_groups" and kind == f.ACTOR_CLASS:
            # Kept by the actor's own process: see ActorSource.
            continue
        elif name == "num_returns":
            if kind == f.ACTOR_CLASS or not isinstance(value, int) or value < 0:
                raise ValueError(f"The keyword 'num_returns' only accepts 0 or a positive integer, 'streaming' or 'dynamic'; this is {value!r}")
            returns = value
            wire["returns"] = value
        elif name == "max_retries" and kind == f.TASK:
            wire["maxRetries"] = _count(name, value, True, kind)
        elif name == "retry_exceptions":
            if value is True:
                wire["retryOn"] = ["Exception"]
            elif value:
                if not isinstance(value, (list, tuple)) or not all(isinstance(of, type) and issubclass(of, BaseException) for of in value):
                    raise TypeError(f"retry_exceptions must be either a boolean or a list of exception classes, got: {value!r}")
                wire["retryOn"] = [of.__name__ for of in value]
        elif name == "name":
            wire["name"] = value
        elif name == "namespace":
            wire["namespace"] = value
        elif name == "lifetime":
            if value not in ("detached", "non_detached"):
                raise ValueError("The `lifetime` argument must be one of 'detached', 'non_detached' and 'None'.")
            wire["detached"] = value == "detached"
        elif name == "get_if_exists":
            wire["getIfExists"] = bool(value)
        elif name == "max_restarts":
            wire["maxRestarts"] = _count(name, value, True, kind)
        elif name == "max_task_retries":
            wire["maxTaskRetries"] = _count(name, value, True, kind)
        elif name == "max_concurrency":
            if value == 0:
                raise ValueError("The max_concurrency option must be at least 1.")
            wire["maxConcurrency"] = min(10_000, _count(name, value, False, kind))
        elif name == "max_pending_calls":
            wire["maxPendingCalls"] = max(0, value)
        elif name == "scheduling_strategy":
            wire.update(scheduling.strategy_options(value))
        elif name == "placement_group":
            if value != "default" and options.get("scheduling_strategy") is not None:
                raise ValueError("placement_group and scheduling_strategy cannot be specified at the same time: give scheduling_strategy=PlacementGroupSchedulingStrategy(…)")
            wire.update(scheduling.group_options(value, -1 if options.get("placement_group_bundle_index") is None else int(options["placement_group_bundle_index"]), options.get("placement_group_capture_child_tasks")))
        elif name in ("placement_group_bundle_index", "placement_group_capture_child_tasks"):
            if options.get("placement_group") is None and name == "placement_group_bundle_index" and value != -1:
                raise ValueError("If placement group is not set, the value of placement group bundle index must be -1.")
        elif name == "label_selector":
            if value:
                wire["labels"] = scheduling.selector(value)
        elif name == "fallback_strategy":
            wire["fallback"] = [{"labels": scheduling.selector(each.get("label_selector") or {})} for each in value]
        elif name == "runtime_env" and kind != f.ACTOR_METHOD:
            continue
        else:
            raise NotImplementedError(f"the option {name} is not supported yet (see docs/python.md)")
    if kind == f.ACTOR_CLASS and not plain and "cpus" not in wire and wire.get("resources"):
        # As in Ray: an actor that names resources takes a cpu too, one that names none takes none while it lives.
        wire["cpus"] = 1
    group = options.get("placement_group") or getattr(options.get("scheduling_strategy"), "placement_group", None)
    if group is not None and "placementGroup" in wire:
        scheduling.check_fits(group, wire.get("bundleIndex", -1), {"CPU": wire.get("cpus", 0 if plain and kind == f.ACTOR_CLASS else 1), "memory": wire.get("memoryBytes", 0), **wire.get("resources", {})})
    return json.dumps(wire, sort_keys=True, separators=(",", ":")), returns


def _source_of(value: Any) -> bytes:
    before = values.contained.ids
    values.contained.ids = []
    try:
        return SOURCE_HEAD + bytes(cloudpickle.dumps(value, protocol=5))
    except Exception as thrown:
        raise TypeError(f"Could not serialize {value!r}: {thrown}") from thrown
    finally:
        values.contained.ids = before


def _checked(options: dict[str, Any], kind: int) -> dict[str, Any]:
    """Options with their runtime environment read: where it names directories, those are where the program was written, and nowhere else."""
    wire_options(options, kind)
    if not options.get("runtime_env"):
        return options
    return {**options, "runtime_env": runtime_env.parse(options["runtime_env"])}


# What the program of a driver or of a job chose for the names of its actors.
job_namespace: str | None = None
# Remote functions and classes that have told a raylet what they are, with what they inherited then.
_defined: weakref.WeakSet[RemoteFunction | ActorClass] = weakref.WeakSet()


def forget_templates() -> None:
    """What remote functions and classes inherit (namespace, placement group, runtime environment) has changed: their next calls say it anew."""
    for each in list(_defined):
        each._template = None


# Tasks of this process differ in what their calls inherit: a template is of one such inheritance. Where they do not, nobody asks.
_apart = False


def tell_apart() -> None:
    global _apart
    if not _apart:
        _apart = True
        forget_templates()


def inherited_of(context: dict[str, Any]) -> tuple[Any, ...]:
    return context.get("jobNamespace"), context.get("captureChildTasks") and context.get("placementGroup")


def namespace_in_force() -> str:
    """Of names that say none; '': the tenant's."""
    return job_namespace if job_namespace is not None else str(runtime().context().get("jobNamespace") or "")


def _call_options(options: dict[str, Any], kind: int) -> tuple[str, int]:
    """Options as DEFINE takes them, with what the call inherits from what calls it."""
    wire, returns = wire_options(options, kind)
    context = runtime().context()
    namespace = job_namespace if job_namespace is not None else context.get("jobNamespace")
    capture = options.get("placement_group_capture_child_tasks")
    capture = context.get("captureChildTasks") if capture is None else capture
    group = context.get("placementGroup") if capture and "placement_group" not in options and options.get("scheduling_strategy") is None and not options.get("label_selector") else None
    if not namespace and not group:
        return wire, returns
    more = json.loads(wire)
    if namespace:
        more["jobNamespace"] = namespace
        if more.get("name") and kind == f.ACTOR_CLASS:
            more.setdefault("namespace", namespace)
    if group:
        more.update(placementGroup=f"obj-{group}", captureChildTasks=True)
    return json.dumps(more, sort_keys=True, separators=(",", ":")), returns


def _in_environment(options: dict[str, Any], wire: str, source: bytes) -> tuple[str, bytes]:
    """Code with its runtime environment before it, for a sandbox that runs this job's calls in this environment only."""
    environment: runtime_env.Environment | None = options.get("runtime_env") or None
    environment = runtime_env.default if environment is None else environment.under(runtime_env.default)
    if environment is None:
        return wire, source
    named = json.loads(wire)
    named["runtime"] += environment.suffix(RuntimeContext(runtime().context()).get_job_id())
    if environment.requirements:
        named["packages"] = environment.requirements
    return json.dumps(named, sort_keys=True, separators=(",", ":")), environment.head() + source


def _export_name(value: Any) -> str:
    name = getattr(value, "__name__", type(value).__name__)
    return name if name.isidentifier() else "lambda_" if name == "<lambda>" else "function"


class _Dep:
    """Where a ref stood among the arguments: the value takes its place before the call."""

    __slots__ = ("n",)

    def __init__(self, n: int) -> None:
        self.n = n

    def __reduce__(self) -> tuple[Any, ...]:
        return _Dep, (self.n,)


def pack_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[values.Encoded, list[tuple[int, bytes]], list[ObjectRef[Any]]]:
    """Arguments as octets, the refs that are resolved before the call, and what must stay alive until it is sent."""
    deps: list[tuple[int, bytes]] = []
    kept: list[ObjectRef[Any]] = []
    if values.all_plain(args) and values.all_plain(kwargs.values()):
        packed = values.encode_plain((args, kwargs))
        if packed.size <= f.MAX_INLINE_BYTES:
            return packed, deps, kept

    def swap(value: Any) -> Any:
        if isinstance(value, ObjectRef):
            deps.append((len(deps), value._id))
            return _Dep(len(deps) - 1)
        return value

    packed = values.encode((tuple(swap(a) for a in args), {k: swap(v) for k, v in kwargs.items()}), "arguments")
    if packed.size > f.MAX_INLINE_BYTES:
        # Large arguments become an object, as in Ray.
        ref = put((args, kwargs)) if not deps else None
        if ref is not None:
            kept.append(ref)
            packed = values.encode(((_Dep(0),), {"__whole__": True}))
            deps.append((0, ref._id))
    return packed, deps, kept


def unpack_arguments(octets: Any, deps: list[tuple[int, Any]]) -> tuple[list[Any], dict[str, Any]]:
    """`deps`: what refs among the arguments stand for, with the place of each."""
    packed = values.decode(octets)
    if isinstance(packed, list):
        for position, value in deps:
            if position >= len(packed):
                raise BulkheadError("INVALID_ARGUMENT", "malformed frame: the place of an argument is out of range")
            packed[position] = value
        return packed, {}
    args, kwargs = packed
    found = [value for _, value in sorted(deps, key=lambda dep: dep[0])]
    if kwargs.get("__whole__") is True and len(found) == 1:
        whole_args, whole_kwargs = found[0]
        return list(whole_args), dict(whole_kwargs)
    return [found[a.n] if type(a) is _Dep else a for a in args], {k: found[v.n] if type(v) is _Dep else v for k, v in kwargs.items()}


_NO_ARGS = values.encode_plain(((), {}))
_NO_ARGS.shared = True


def _made(first: bytes, op: int, template: Template, core: ClientCore, ref: type[ObjectRef[Any]]) -> Any:
    """What a call gives its caller: an actor's id, a ref, refs, a generator, or nothing."""
    if op == f.CREATE_ACTOR:
        return first
    if template.returns == 1 or template.returns == DYNAMIC:
        return ref(first, core)
    if template.returns == STREAMING:
        return ObjectRefGenerator(core.open_stream(first, template.window), ref(first, core), _item_ref)
    start = int.from_bytes(first[20:], "little")
    refs = [ref(first[:20] + f.u32(start + i), core) for i in range(max(1, template.returns))]
    return refs if template.returns > 0 else None


def _submit(op: int, template: Template, actor: bytes | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    core = runtime().core
    if template.returns == DYNAMIC:
        kwargs = {**kwargs, DYNAMIC_MARK: True}
    try:
        if not args and not kwargs:
            first = core.call(op, template, actor, _NO_ARGS, (), ())
        else:
            packed, deps, _kept = pack_arguments(args, kwargs)
            first = core.call(op, template, actor, packed, deps, packed.ids)
    except BulkheadError as refused:
        raise exceptions.error_of(refused.code, refused.message, refused.stack, None) from None
    return _made(first, op, template, core, ObjectRef)


_NAME = re.compile(r"[A-Za-z_]\w{0,127}(?:\.[A-Za-z_]\w{0,127}){0,15}:[A-Za-z_]\w{0,127}(?:\.[A-Za-z_]\w{0,127}){0,7}", re.ASCII)


def code_of(source: bytes) -> Any:
    """What a call runs: a pickle of this tenant's Python programs, or `package.module:name` from programs in other languages."""
    if source.startswith(SOURCE_HEAD):
        return pickle.loads(source[len(SOURCE_HEAD) :])
    name = source[len(NAME_HEAD) :].decode("ascii", "replace")
    if _NAME.fullmatch(name) is None:
        raise BulkheadError("INVALID_ARGUMENT", "the name of a Python function is not valid: give 'package.module:name'")
    module, _, path = name.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as thrown:
        raise BulkheadError("INVALID_ARGUMENT", f"the module '{module}' is not among the packages of this node's Python: {thrown}") from None
    for part in path.split("."):
        if not hasattr(found, part):
            raise BulkheadError("INVALID_ARGUMENT", f"the module '{module}' has no '{path}'")
        found = getattr(found, part)
    # A function that its module has made remote is meant itself.
    return found._function if isinstance(found, RemoteFunction) else found._class if isinstance(found, ActorClass) else found


# --- functions ---


def _yields(of: Any) -> bool:
    return inspect.isgeneratorfunction(of) or inspect.isasyncgenfunction(of)



class _Signature:
    """How a function may be called; most calls are told right by their number of arguments alone."""

    __slots__ = ("_bind", "least", "most", "parameters")

    def __init__(self, of: Any, skip: int = 0) -> None:
        self._bind: Callable[..., Any] | None = None
        self.parameters: list[inspect.Parameter] = []
        try:
            signature = inspect.signature(of)
        except (TypeError, ValueError):
            # A built-in one that does not say: whatever it is given is tried.
            self.least, self.most = 0, sys.maxsize
            return
        parameters = list(signature.parameters.values())
        # Of `def m(*args)` the object itself is one of them.
        self._of(parameters if parameters and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL else parameters[skip:])

    def _of(self, parameters: list[inspect.Parameter]) -> None:
        self.parameters = parameters
        self._bind = inspect.Signature(parameters).bind
        self.least, self.most = 1, 0
        kinds = {p.kind for p in parameters}
        if inspect.Parameter.KEYWORD_ONLY in kinds:
            return
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.least = sum(p.default is p.empty for p in positional)
        self.most = sys.maxsize if inspect.Parameter.VAR_POSITIONAL in kinds else len(positional)

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises TypeError, as the call would."""
        if self._bind is not None:
            self._bind(*args, **kwargs)


class _Signatures(dict[str, _Signature]):
    """Of a class's methods. They travel with its handles as data: names and kinds of parameters, and which may be left out."""

    _text: str | None = None

    def text(self) -> str:
        if self._text is None:
            self._text = json.dumps({name: [[p.name, int(p.kind), p.default is not p.empty] for p in of.parameters] for name, of in self.items() if of._bind is not None}, separators=(",", ":"))
        return self._text


@functools.lru_cache(256)
def _signatures_again(text: str) -> _Signatures:
    found = _Signatures()
    for name, parameters in json.loads(text).items() if text else ():
        found[name] = signature = _Signature.__new__(_Signature)
        signature._of([inspect.Parameter(of, inspect._ParameterKind(kind), default=None if may else inspect.Parameter.empty) for of, kind, may in parameters])
    found._text = text
    return found


class RemoteFunction:
    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        options = _checked(options, f.TASK)
        if inspect.iscoroutinefunction(function):
            # As Ray does: a coroutine needs an actor's event loop.
            raise ValueError("'async def' should not be used for remote tasks. You can wrap the async function with `asyncio.run(f())`, or make it a method of an actor.")
        if _yields(function):
            options = {"num_returns": "streaming", **options}
        self._function = function
        self._options = options
        self._template: Template | None = None
        self._others: dict[tuple[Any, ...], Template] = {}
        self._signature = _Signature(function)
        self._lock = threading.Lock()
        self.__name__ = getattr(function, "__name__", "function")
        self.__doc__ = function.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"Remote functions cannot be called directly. Instead of running '{self.__name__}()', try '{self.__name__}.remote()'.")

    def _defined(self) -> Template:
        with self._lock:
            inherited = inherited_of(runtime().context()) if _apart else ()
            template = self._others.get(inherited) if _apart else self._template
            if template is None:
                options, returns = _call_options(self._options, f.TASK)
                options, source = _in_environment(self._options, options, _source_of(self._function))
                template = Template(f.TASK, digest_of(source), source, _export_name(self._function), "", options, returns)
                if _apart:
                    self._others[inherited] = template
                else:
                    self._template = template
                    _defined.add(self)
            return template

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        signature = self._signature
        if kwargs or not signature.least <= len(args) <= signature.most:
            signature.check(args, kwargs)
        return _submit(f.SUBMIT, self._template or self._defined(), None, args, kwargs)

    def _remote(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        return self.options(**options).remote(*(args or ()), **(kwargs or {}))

    def options(self, **options: Any) -> RemoteFunction:
        made = RemoteFunction(self._function, {**self._options, **options})
        if self._template is not None and "runtime_env" not in made._options and runtime_env.default is None:
            wire, returns = _call_options(made._options, f.TASK)
            known = self._template
            _defined.add(made)
            made._template = Template(f.TASK, known.digest, known.source, known.export, "", wire, returns)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFunction, (self._function, self._options)


# --- actors ---


class ActorMethod:
    __slots__ = ("_handle", "_name", "_options")

    def __init__(self, handle: ActorHandle, name: str, options: dict[str, Any]) -> None:
        self._handle = handle
        self._name = name
        self._options = options

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        handle = self._handle
        options = self._options
        signatures = handle._signatures
        if signatures is None:
            signatures = handle._signatures = _signatures_again(handle._shapes)
        signature = signatures.get(self._name)
        if signature is not None and (kwargs or not signature.least <= len(args) <= signature.most):
            signature.check(args, kwargs)
        key = (self._name, *options.items()) if options else (self._name,)
        template = handle._templates.get(key)
        if template is None:
            wire, returns = wire_options(options, f.ACTOR_METHOD, handle._plain)
            template = handle._templates[key] = Template(f.ACTOR_METHOD, bytes.fromhex(handle._digest), None, handle._class_name, self._name, wire, returns)
        if handle._plain:
            return submit_plain(f.CALL_ACTOR, template, handle._actor_id, args, kwargs)
        return _submit(f.CALL_ACTOR, template, handle._actor_id, args, kwargs)

    def _remote(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        return self.options(**options).remote(*(args or ()), **(kwargs or {}))

    def options(self, **options: Any) -> ActorMethod:
        return ActorMethod(self._handle, self._name, {**self._options, **options})

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"Actor methods cannot be called directly. Instead of running 'object.{self._name}()', try 'object.{self._name}.remote()'.")


_STREAMS = {"num_returns": "streaming"}


class ActorHandle:
    def __init__(self, actor_id: bytes, class_name: str, methods: dict[str, dict[str, Any]], held: ObjectRef[Any] | None, streams: frozenset[str] = frozenset(), plain: bool = False) -> None:
        """`plain`: an actor of another language, which takes no pickles."""
        self._actor_id = actor_id
        self._streams = streams
        self._plain = plain
        self._digest = _NO_DIGEST
        self._class_name = class_name
        self._methods = methods
        # The actor lives while somebody holds its creation's ref.
        self._held = held
        self._templates: dict[tuple[Any, ...], Template] = {}
        # Of a handle that travelled they are read when it is first called; of one that was found by its name they are not known.
        self._signatures: _Signatures | None = None
        self._shapes = ""

    def __getattr__(self, name: str) -> ActorMethod:
        if name.startswith("_") and not (name.startswith("__ray") or name in self.__dict__.get("_methods", {})):
            raise AttributeError(name)
        methods = self._methods
        if methods and name not in methods and not name.startswith("__ray"):
            raise AttributeError(f"'{self._class_name}' has no method '{name}'")
        return ActorMethod(self, name, methods.get(name, _STREAMS if name in self._streams else {}))

    def __dir__(self) -> list[str]:
        return ["__init__", *self._methods, "__ray_terminate__"]

    @property
    def _ray_actor_id(self) -> bytes:
        return self._actor_id

    def __repr__(self) -> str:
        return f"Actor({self._class_name}, {self._actor_id.hex()})"

    def __hash__(self) -> int:
        return hash(self._actor_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and other._actor_id == self._actor_id

    def __reduce__(self) -> tuple[Any, ...]:
        values.note_contained(self._actor_id)
        return _handle_again, (self._actor_id, self._class_name, self._methods, self._streams, self._plain, self._digest, self._shapes if self._signatures is None else self._signatures.text())


def _handle_again(actor_id: bytes, class_name: str, methods: dict[str, dict[str, Any]], streams: frozenset[str] = frozenset(), plain: bool = False, digest: str = "", shapes: str = "") -> ActorHandle:
    handle = ActorHandle(actor_id, class_name, methods, ObjectRef(actor_id), streams, plain)
    handle._digest = digest or _NO_DIGEST
    handle._shapes = shapes
    return handle


class ActorSource:
    """A class whose methods have concurrency groups, as its actors' processes get it: a name and a limit for each, and the limit of all other methods."""

    def __init__(self, of: type, groups: dict[str, int], limit: int) -> None:
        self.of = of
        self.groups = groups
        self.limit = limit

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.of(*args, **kwargs)


def _groups_of(of: type, options: dict[str, Any]) -> dict[str, int]:
    groups = options.get("concurrency_groups") or {}
    if isinstance(groups, (list, tuple)):
        groups = {group["name"]: group["max_concurrency"] for group in groups}
    for name, limit in groups.items():
        if not isinstance(name, str) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"concurrency_groups is a dict of names and numbers of at least 1; this has {name!r}: {limit!r}")
    for name, member in inspect.getmembers(of, callable):
        wanted = getattr(member, "__ray_method_options__", {}).get("concurrency_group")
        if wanted is not None and wanted not in groups:
            raise ValueError(f"The method {name} is in the concurrency group '{wanted}', which its class does not name in concurrency_groups")
    return dict(groups)


# --- other languages ---

# What a handle of a Python actor says of its class to other languages, which ask for a digest and need none to call it.
_NO_DIGEST = "0" * 64


class _PlainRefs:
    """Refs and handles among neutral values."""

    def describe(self, value: Any) -> tuple[bytes, str | None] | None:
        if isinstance(value, ObjectRef):
            return value._id, None
        if isinstance(value, ActorHandle):
            return value._actor_id, json.dumps({"digest": value._digest, "export": value._class_name, **({"streams": sorted(value._streams)} if value._streams else {})}, separators=(",", ":"))
        return None

    def ref(self, ref_id: bytes) -> ObjectRef[Any]:
        return ObjectRef(ref_id)

    def actor(self, ref_id: bytes, info: str) -> ActorHandle:
        try:
            of = json.loads(info)
            digest, name, streams = of["digest"], of["export"], of.get("streams", [])
            if not isinstance(name, str) or not isinstance(streams, list) or not all(isinstance(s, str) for s in streams) or re.fullmatch("[0-9a-f]{64}", digest) is None:
                raise ValueError
        except (ValueError, TypeError, KeyError):
            raise BulkheadError("INVALID_ARGUMENT", "class info of an actor is malformed") from None
        return _handle_again(ref_id, name, {}, frozenset(streams), digest != _NO_DIGEST, digest)


values.refs = _PlainRefs()


class PlainRef(ObjectRef[T]):
    """A ref to a value that is known to be neutral."""

    __slots__ = ()


def _as_data(value: Any) -> Any:
    return values.Neutral(value)


_to_data: RemoteFunction | None = None


def _plain_ref(ref: ObjectRef[Any]) -> ObjectRef[Any]:
    """A ref to the same value as other languages read it: what Python pickled is written anew by a task."""
    global _to_data
    known = ref._known
    if isinstance(ref, PlainRef) or ref._core.is_foreign(ref._id) or (known is not None and not values.is_pickle(known)):
        return ref
    if _to_data is None:
        _to_data = RemoteFunction(_as_data, {"num_cpus": 0})
    made: ObjectRef[Any] = _to_data.remote(ref)
    return made


def submit_plain(op: int, template: Template, actor: bytes | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call of another language's function or actor: arguments by position, as neutral values."""
    if kwargs:
        raise TypeError(f"{template.method or template.export}() is of another language and takes no keyword arguments ({', '.join(kwargs)}): pass a dict")
    core = runtime().core
    plain: list[Any] = list(args)
    deps: list[tuple[int, bytes]] = []
    kept: list[ObjectRef[Any]] = []

    def by_ref(i: int, ref: ObjectRef[Any]) -> None:
        kept.append(ref)
        deps.append((i, ref._id))
        plain[i] = None

    try:
        for i, arg in enumerate(args):
            if isinstance(arg, ObjectRef):
                by_ref(i, _plain_ref(arg))
        packed = values.encode(plain, "args", True)
        if packed.size > f.MAX_INLINE_BYTES:
            # Large arguments become objects, as in Ray.
            for i, arg in enumerate(plain):
                if values.encode(arg, f"args[{i}]", True).size > f.MAX_INLINE_BYTES // 4:
                    by_ref(i, put(values.Neutral(arg)))
            packed = values.encode(plain, "args", True)
        first = core.call(op, template, actor, packed, deps, packed.ids)
    except BulkheadError as refused:
        raise exceptions.error_of(refused.code, refused.message, refused.stack, None) from None
    return _made(first, op, template, core, PlainRef)


class ActorClass:
    def __init__(self, of: type, options: dict[str, Any]) -> None:
        options = _checked(options, f.ACTOR_CLASS)
        self._groups = _groups_of(of, options)
        self._class = of
        self._options = options
        self._template: Template | None = None
        self._others: dict[tuple[Any, ...], Template] = {}
        self._methods: dict[str, dict[str, Any]] = {}
        self._signatures = _Signatures()
        self._signature = _Signature(of.__init__, 1) if "__init__" in dir(of) and of.__init__ is not object.__init__ else None  # type: ignore[misc]
        is_async = False
        for name, member in inspect.getmembers(of, callable):
            if name.startswith("__") and name not in ("__call__", "__len__"):
                continue
            is_async = is_async or inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member)
            self._signatures[name] = _Signature(member, 0 if isinstance(inspect.getattr_static(of, name), staticmethod) or inspect.ismethod(member) else 1)
            marked: dict[str, Any] = getattr(member, "__ray_method_options__", {})
            self._methods[name] = {"num_returns": "streaming", **marked} if _yields(member) else marked
        self._is_async = is_async
        self.__name__ = of.__name__
        self.__doc__ = of.__doc__

    def __getattr__(self, name: str) -> Any:
        # Attributes of the class itself; its methods are called on a handle.
        of = self.__dict__.get("_class")
        if of is None or name.startswith("_"):
            raise AttributeError(name)
        return getattr(of, name)

    def __dir__(self) -> list[str]:
        return [*self._methods, "options", "remote"]

    def __mro_entries__(self, _: Any) -> Any:
        raise TypeError(f"Inheriting from actor classes is not currently supported. You can instead inherit from a non-actor base class and make the derived class an actor class (with @ray.remote). The class is {self.__name__}.")

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"Actors cannot be instantiated directly. Instead of '{self.__name__}()', use '{self.__name__}.remote()'.")

    def _remote(self, args: Any = None, kwargs: Any = None, **options: Any) -> ActorHandle:
        return self.options(**options).remote(*(args or ()), **(kwargs or {}))

    def options(self, **options: Any) -> ActorClass:
        return ActorClass(self._class, {**self._options, **options})

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle:
        inherited = inherited_of(runtime().context()) if _apart else ()
        template = self._others.get(inherited) if _apart else self._template
        if template is None:
            options = {"max_concurrency": 1_000 if self._is_async else 1, **self._options}
            streams = [name for name, of in self._methods.items() if of.get("num_returns") == "streaming"]
            if streams:
                options["_streams"] = streams
            groups = self._groups
            if groups:
                # All groups together; each keeps to its own limit inside.
                options["max_concurrency"] = min(10_000, int(options["max_concurrency"]) + sum(groups.values()))
            wire, _ = _call_options(options, f.ACTOR_CLASS)
            source = _source_of(ActorSource(self._class, groups, int(self._options.get("max_concurrency") or (1_000 if self._is_async else 1))) if groups else self._class)
            wire, source = _in_environment(self._options, wire, source)
            template = Template(f.ACTOR_CLASS, digest_of(source), source, _export_name(self._class), "", wire, 1)
            if _apart:
                self._others[inherited] = template
            else:
                self._template = template
                _defined.add(self)
        if self._options.get("get_if_exists") and self._options.get("name"):
            try:
                return get_actor(self._options["name"], self._options.get("namespace"))
            except ValueError:
                pass
        if self._signature is not None:
            self._signature.check(args, kwargs)
        elif args or kwargs:
            raise TypeError(f"{self.__name__}() takes no arguments")
        first = _submit(f.CREATE_ACTOR, template, None, args, kwargs)
        made = ActorHandle(first, template.export, self._methods, ObjectRef(first))
        made._signatures = self._signatures
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorClass, (self._class, self._options)


def method(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    wire_options(options, f.ACTOR_METHOD)

    def mark(of: Callable[..., Any]) -> Callable[..., Any]:
        of.__ray_method_options__ = options  # type: ignore[attr-defined]
        return of

    return mark


def remote(*args: Any, **options: Any) -> Any:
    """`@ray.remote` and `@ray.remote(num_cpus=…)`, on functions and classes."""

    def make(of: Any) -> Any:
        if inspect.isclass(of):
            return ActorClass(of, options)
        if callable(of):
            return RemoteFunction(of, options)
        raise TypeError("The @ray.remote decorator must be applied to either a function or a class.")

    if len(args) == 1 and not options:
        return make(args[0])
    if args or not options:
        raise TypeError("The @ray.remote decorator must be applied either with no arguments and no parentheses, for example '@ray.remote', or with keyword options: '@ray.remote(num_returns=2)'.")
    return make


class RuntimeContext:
    """What the call that asks runs in. Ids are texts, as lists of the CLI show them."""

    def __init__(self, of: dict[str, Any]) -> None:
        self._of = of

    def _text(self, *names: str) -> str | None:
        return next((str(self._of[name]) for name in names if self._of.get(name)), None)

    def get(self) -> dict[str, Any]:
        found = {"job_id": self.get_job_id(), "node_id": self.get_node_id(), "namespace": self.namespace, "task_id": self.get_task_id(), "actor_id": self.get_actor_id()}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def job_id(self) -> str:
        return self.get_job_id()

    @property
    def node_id(self) -> str:
        return self.get_node_id()

    @property
    def task_id(self) -> str | None:
        return self.get_task_id()

    @property
    def actor_id(self) -> str | None:
        return self.get_actor_id()

    @property
    def current_placement_group_id(self) -> str | None:
        return self.get_placement_group_id()

    def get_job_id(self) -> str:
        return self._text("jobId", "job") or ""

    def get_node_id(self) -> str:
        return self._text("nodeId", "node") or ""

    def get_worker_id(self) -> str:
        return self._text("workerId", "jobId") or ""

    def get_task_id(self) -> str | None:
        return self._text("taskId")

    def get_task_name(self) -> str | None:
        return self._text("name") if self.get_task_id() else None

    def get_task_function_name(self) -> str | None:
        return self._text("function")

    def get_actor_id(self) -> str | None:
        return self._text("actorId")

    def get_actor_name(self) -> str | None:
        """None outside of an actor; '' of one without a name."""
        return str(self._of.get("actorName") or "") if self.get_actor_id() else None

    @property
    def namespace(self) -> str:
        return job_namespace or self._text("jobNamespace", "namespace") or ""

    @property
    def was_current_actor_reconstructed(self) -> bool:
        return bool(self._of.get("restarted"))

    def get_placement_group_id(self) -> str | None:
        return self._text("placementGroup")

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        return bool(self._of.get("captureChildTasks"))

    def get_assigned_resources(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, amount in (self._of.get("resources") or {}).items():
            if amount:
                found["CPU" if name == "cpus" else name] = float(amount)
        return found

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        return {"GPU": [], "TPU": []}

    def get_node_labels(self) -> dict[str, str]:
        from .cluster import nodes

        return next((node["Labels"] for node in nodes() if node["NodeID"] == self.get_node_id()), {})

    def get_runtime_env_string(self) -> str:
        return "{}"

    @property
    def runtime_env(self) -> dict[str, Any]:
        return {}

    @property
    def current_actor(self) -> ActorHandle:
        actor = self.get_actor_id()
        if actor is None:
            raise RuntimeError("This method is only available in an actor.")
        return ActorHandle(bytes.fromhex(actor.removeprefix("obj-")), str(self._of.get("className") or "Actor"), {}, None, frozenset(self._of.get("streams") or ()))

    def is_canceled(self) -> bool:
        asks = getattr(runtime(), "is_cancelled", None)
        return bool(asks()) if asks is not None else False


def get_runtime_context() -> RuntimeContext:
    return RuntimeContext(runtime().context())
