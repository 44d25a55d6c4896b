"""A driver's connection: a session at the head, a batch stream to one raylet. Who waits for a result sends and reads for itself; two threads do both for what nobody
waits for.

Must never: send the credential to a raylet other than the one that the head named, or leave a job open that it opened.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
from hashlib import sha256
from typing import Any

from . import api, runtime_env, values
from . import frames as f
from .client import ClientCore, Pending
from .errors import BulkheadError
from .ray_errors import RaySystemError, error_of
from .transport import BEAT_SECONDS, BatchStream, HeadCalls, Profile, fields, message, text_of

SESSIONS = "bulkhead.v1.Sessions"
WELCOME_SECONDS = 20.0
RENEW_AGAIN_SECONDS = 5.0
# What is sent while nobody waits for a result leaves at this pace, or when so much is there: a thread that is woken for each call costs more than the call.
GATHER_SECONDS = 0.001
GATHER_BYTES = 16 * 2**10
QUIET_TURNS = 20
# After so many looks in vain whoever calls also waits, and so sends for himself: the next look is later.
NEAR_TURNS, FAR_SECONDS = 4, 0.004
# Then beats and renewals have their turn.
MOST_TURNS = 1_000
# So long after a thread has read for itself it will probably do so again: the reading thread keeps away.
LINGER_SECONDS = 0.005


class Driver:
    core: ClientCore

    def __init__(self, profile: Profile, address: str, job_name: str) -> None:
        self._profile = profile
        self._sending = threading.Lock()
        self._head = HeadCalls(profile, address)
        session = fields(self._head.call(f"{SESSIONS}/Open", message(f1=job_name, f2=os.environ.get("BULKHEAD_JOB_ID", ""))))
        self._joined = bool(os.environ.get("BULKHEAD_JOB_ID"))
        self.job_id = text_of(session, 1)
        self._session_id = text_of(session, 6)
        self._expires = int(text_of(session, 3)) / 1_000
        credential = text_of(session, 2)
        raylets = sorted((fields(r) for r in session.get(5, []) if isinstance(r, bytes)), key=lambda r: int(text_of(r, 2) or 0))
        if not raylets:
            raise BulkheadError("UNAVAILABLE", "the cluster has no raylet alive; 'bulkhead status' shows its nodes")
        # Drivers of one job meet on the same raylet, where its objects are.
        first = int.from_bytes(sha256(self.job_id.encode()).digest()[:4], "little") % len(raylets)
        self._stream = self._attach(raylets[first:] + raylets[:first], credential)
        self.info: dict[str, Any] = {}
        self._welcome = threading.Event()
        self._wake = threading.Event()
        self._hot = False
        self._turn = threading.Condition(threading.Lock())
        self._reading = False
        self._waiters = 0
        self._waited = 0.0
        self._inside = False
        self._closing = False
        self._renew_at = 0.0
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._outcome = "succeeded"
        threading.Thread(target=self._read, name="bulkhead-read", daemon=True).start()
        if not self._welcome.wait(WELCOME_SECONDS) or self._failure is not None:
            self._stream.close()
            self._close_session("failed", "the raylet did not welcome it")
            raise self._failure or RaySystemError("the raylet did not answer")
        threading.Thread(target=self._write, name="bulkhead-write", daemon=True).start()

    def _attach(self, raylets: list[dict[int, list[int | bytes]]], credential: str) -> BatchStream:
        failure: BulkheadError | None = None
        for raylet in raylets:
            try:
                return BatchStream(self._profile, text_of(raylet, RAYLET_ADDRESS), text_of(raylet, RAYLET_SPIFFE_ID), credential)
            except BulkheadError as thrown:
                if thrown.code != "UNAVAILABLE":
                    raise
                failure = thrown
        raise failure or BulkheadError("UNAVAILABLE", "the cluster has no raylet alive")

    # --- what the core needs ---

    def touched(self) -> None:
        if self.core.out_bytes > GATHER_BYTES:
            self.flush()
        elif not self._hot:
            self._hot = True
            self._wake.set()

    def parent(self) -> int:
        return 0

    def stage(self, encoded: values.Encoded) -> int | None:
        return None

    def attachment(self, number: int) -> memoryview:
        raise BulkheadError("INTERNAL", "a driver has no attachments")

    def block(self, pending: Pending, timeout: float | None) -> bool:
        """Waits. This thread reads the connection meanwhile, if no other does: a result that another thread hands over comes later."""
        self.flush()
        end = None if timeout is None else time.monotonic() + timeout
        turn = self._turn
        while not pending.done:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return False
            with turn:
                if pending.done:
                    break
                if self._reading or self._over.is_set():
                    self._waiters += 1
                    turn.wait(left)
                    self._waiters -= 1
                    continue
                self._reading = True
            try:
                self._read_once(left)
            finally:
                with turn:
                    self._reading = False
                    self._waited = time.monotonic()
                    if self._waiters:
                        turn.notify_all()
        return True

    def context(self) -> dict[str, Any]:
        return {"jobId": self.job_id, **self.info}

    # --- threads ---

    def flush(self) -> None:
        with self._sending:
            for batch in self.core.take():
                self._stream.send(batch)

    def _write(self) -> None:
        self._renew_at = time.time() + max(1.0, (self._expires - time.time()) / 2)
        beat = time.monotonic() + BEAT_SECONDS
        try:
            while not self._closing and not self._over.is_set():
                self._wake.wait(min(BEAT_SECONDS, max(0.05, beat - time.monotonic())))
                self._wake.clear()
                quiet = turns = 0
                while self._hot and quiet < QUIET_TURNS and turns < MOST_TURNS and not self._over.is_set():
                    time.sleep(GATHER_SECONDS if quiet < NEAR_TURNS else FAR_SECONDS)
                    quiet += 1
                    turns += 1
                    if self.core.out_bytes:
                        self.flush()
                        quiet = 0
                self._hot = False
                # Also what came while this thread was still taken for awake, and the refs that were dropped.
                self.flush()
                if time.monotonic() >= beat:
                    self._stream.beat()
                    beat = time.monotonic() + BEAT_SECONDS
                if time.time() >= self._renew_at:
                    self._renew_at = self._renew()
        except OSError as thrown:
            self._lost(RaySystemError(f"the connection to the raylet ended: {thrown}"))

    def _renew(self) -> float:
        try:
            session = fields(self._head.call(f"{SESSIONS}/Refresh", message(f1=self.job_id, f2=self._session_id)))
        except BulkheadError as thrown:
            if thrown.code in ("DENIED", "UNAUTHENTICATED"):
                self._lost(error_of(thrown.code, thrown.message, "", None))
            return time.time() + RENEW_AGAIN_SECONDS
        self._expires = int(text_of(session, 3)) / 1_000
        self.core.write(f.frame(f.CREDENTIAL, f.text(text_of(session, 2))))
        return time.time() + max(1.0, (self._expires - time.time()) / 2)

    def _read(self) -> None:
        """Reads while nobody does it for himself."""
        turn = self._turn
        while not self._over.is_set():
            with turn:
                while self._reading or time.monotonic() - self._waited < LINGER_SECONDS:
                    turn.wait(LINGER_SECONDS)
                self._reading = True
            self._read_once(None)
            with turn:
                self._reading = False
                if self._waiters:
                    self._waited = time.monotonic()
                    turn.notify_all()

    def _read_once(self, timeout: float | None) -> None:
        """One look at the connection. The caller has taken `_reading`."""
        try:
            if not self._stream.read_once(self._batch, timeout):
                self._lost(RaySystemError("the connection was closed"))
        except BulkheadError as thrown:
            self._lost(error_of(thrown.code, thrown.message, thrown.stack, None))
        except Exception as thrown:  # whatever it was, those who wait must hear of it
            self._lost(RaySystemError(f"the connection to the raylet failed: {type(thrown).__name__}: {thrown}"))
        except BaseException:
            # Ctrl-C while nothing had come is harmless; in the middle of an answer, the rest of it is lost.
            if self._inside:
                self._lost(RaySystemError("the program was interrupted in the middle of an answer of the raylet: call ray.shutdown() and ray.init()"))
            raise

    def _batch(self, batch: memoryview) -> None:
        self._inside = True
        reader = f.FrameReader(batch)
        while reader.next():
            if reader.op == f.WELCOME:
                prefix = bytes(reader.raw(f.PREFIX_BYTES))
                self.info = json.loads(reader.text())
                self.core = ClientCore(prefix, self, error_of)
                self._welcome.set()
            elif reader.op == f.CREDENTIAL_REFUSED:
                # The channel goes on with the credential before: another one is asked for, now and not at half of this one's life.
                self._renew_at = time.time() + RENEW_AGAIN_SECONDS
            elif not self.core.receive(reader):
                raise BulkheadError("INTERNAL", f"the raylet sent an operation that is not for a driver (0x{reader.op:x})")
        self._inside = False

    def _lost(self, error: BaseException) -> None:
        self._failure = error
        self._over.set()
        if self._welcome.is_set():
            self.core.close(error)
        self._welcome.set()
        self._wake.set()
        with self._turn:
            self._turn.notify_all()

    # --- end ---

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._wake.set()
        try:
            if not self._over.is_set():
                self.flush()
                self._stream.end()
                self._over.wait(5)
        except OSError:
            pass
        self._stream.close()
        self.core.close(RaySystemError("the driver was shut down: call ray.init() again"))
        self._close_session(self._outcome, "")

    def _close_session(self, outcome: str, why: str) -> None:
        if self._joined and not self._session_id:
            return
        try:
            self._head.call(f"{SESSIONS}/Close", message(f1=self.job_id, f2=outcome, f3=why, f4=self._session_id), 5.0)
        except BulkheadError:
            # The head is away, or ended the job itself; what it does not hear from here it hears from the raylet.
            pass

    def failed(self) -> None:
        self._outcome = "failed"


RAYLET_NODE_ID, RAYLET_NODE_NUMBER, RAYLET_ADDRESS, RAYLET_SPIFFE_ID = 1, 2, 3, 4

_driver: Driver | None = None
_hooked = False


class ClientContext(dict[str, Any]):
    """What init() answers."""

    def __enter__(self) -> ClientContext:
        return self

    def __exit__(self, *_: object) -> None:
        shutdown()


def init(address: str | None = None, *, profile: str | None = None, namespace: str | None = None, job_name: str | None = None, ignore_reinit_error: bool = False, **options: Any) -> ClientContext:
    """Connects. `profile`: a directory of `bulkhead identity issue`; `address`: `bulkhead://host:port`, where it is not the profile's."""
    global _driver, _hooked
    if namespace is not None and (not isinstance(namespace, str) or not namespace):
        raise ValueError(f'"{namespace}" is not a valid namespace: it must be a non-empty string.')
    if api.connected() and _driver is None:
        if api.in_job:
            # The program of a job has its connection: whereto and as whom was said when it was submitted.
            environment = runtime_env.parse(options.get("runtime_env"))
            if environment is not None:
                runtime_env.default = environment.under(runtime_env.default)
            if namespace is not None:
                api.job_namespace = namespace
            api.forget_templates()
            return ClientContext(api.runtime().context())
        raise RuntimeError("ray.init() is for drivers: inside a task the connection is there")
    if _driver is not None:
        if ignore_reinit_error:
            return ClientContext(_driver.info)
        raise RuntimeError("Maybe you called ray.init twice by accident? This error can be suppressed by passing in 'ignore_reinit_error=True' or by calling 'ray.shutdown()' prior to 'ray.init()'.")
    environment = runtime_env.parse(options.pop("runtime_env", None))
    harmless = {"num_cpus", "num_gpus", "include_dashboard", "logging_level", "log_to_driver", "configure_logging", "object_store_memory", "dashboard_host", "dashboard_port", "resources"}
    for name, value in options.items():
        if name not in harmless and value is not None:
            raise NotImplementedError(f"ray.init({name}=…) is not supported yet (see docs/python.md)")
    try:
        chosen = Profile(profile)
        where = chosen.address if address in (None, "auto") else str(address).removeprefix("bulkhead://")
        name = job_name or os.environ.get("BULKHEAD_JOB_NAME") or os.path.basename(sys.argv[0] if sys.argv else "") or "driver"
        _driver = Driver(chosen, where, name)
    except BulkheadError as refused:
        raise error_of(refused.code, refused.message, refused.stack, None) from None
    api.set_runtime(_driver)
    runtime_env.default = environment
    api.job_namespace = namespace
    api.forget_templates()
    if not _hooked:
        _hooked = True
        atexit.register(shutdown)
        previous = sys.excepthook

        def hook(kind: Any, thrown: Any, trace: Any) -> None:
            if _driver is not None:
                _driver.failed()
            previous(kind, thrown, trace)

        sys.excepthook = hook
    return ClientContext(_driver.info)


def shutdown() -> None:
    global _driver
    driver, _driver = _driver, None
    if driver is None:
        return
    api.set_runtime(None)
    runtime_env.default = None
    api.job_namespace = None
    driver.close()


def is_initialized() -> bool:
    return api.connected()


def _auto() -> api.Runtime:
    init()
    assert _driver is not None
    return _driver


api.set_runtime(None, _auto)
