"""What runs in a sandbox. Process 1 is the supervisor: it makes a child process per slot and gives it an inherited channel of its own to the raylet. Where none
is left, it moves the slot's envelopes (`u32 length | u32 slot | batch`, proto/frames.md) between its own channel and the child, and never looks into a batch. Children are forked warm, become a user without any right, and run
what the tenant sends: see slot.py.

Must never: unpickle or run anything of a tenant in process 1; outlive the channel.
"""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
import stat
import struct
import sys
import traceback
from collections import deque

from . import frames as f
from .errors import BulkheadError
from .rights import give_up_rights

CHANNEL_FD = 3
# Inherited too: a channel for each of the first slots.
FIRST_DIRECT_FD = 5
READ_BYTES = 256 * 2**10
# What a child does not read, or the raylet does not, waits here; beyond it the child has failed, or nothing more is read from it.
MAX_WAITING_BYTES = 64 * 2**20
_ENVELOPE = struct.Struct("<II")
EXIT_DONE, EXIT_PROTOCOL = 0, 70
# From a child to the supervisor alone, in slot 0: it has used a staged file.
STAGED_USED = 0xA0
STAGED_AHEAD = 4


def envelope(slot: int, batch: bytes | memoryview) -> bytes:
    return _ENVELOPE.pack(len(batch) + 4, slot) + bytes(batch)


class Envelopes:
    """Cuts a stream into whole envelopes."""

    def __init__(self) -> None:
        self._held = bytearray()

    def push(self, octets: bytes | memoryview) -> list[tuple[int, bytes]]:
        held = self._held
        held += octets
        found: list[tuple[int, bytes]] = []
        at = 0
        while len(held) - at >= 8:
            length, slot = _ENVELOPE.unpack_from(held, at)
            if length < 5 or length - 4 > f.MAX_BATCH_BYTES:
                raise BulkheadError("INVALID_ARGUMENT", f"an envelope length of {length} bytes is out of bounds")
            if len(held) - at < 4 + length:
                break
            found.append((slot, bytes(memoryview(held)[at + 8 : at + 4 + length])))
            at += 4 + length
        if at:
            del held[:at]
        return found


class Pipe:
    """A socket that never blocks, with what waits for it."""

    def __init__(self, of: socket.socket) -> None:
        self.socket = of
        of.setblocking(False)
        self.envelopes = Envelopes()
        self._waiting: deque[memoryview] = deque()
        self.waiting_bytes = 0

    def send(self, octets: bytes) -> None:
        if not self._waiting:
            try:
                sent = self.socket.send(octets)
            except BlockingIOError:
                sent = 0
            except OSError:
                return
            if sent == len(octets):
                return
            octets = octets[sent:]
        self._waiting.append(memoryview(octets))
        self.waiting_bytes += len(octets)

    def flush(self) -> None:
        while self._waiting:
            part = self._waiting[0]
            try:
                sent = self.socket.send(part)
            except BlockingIOError:
                return
            except OSError:
                self._waiting.clear()
                self.waiting_bytes = 0
                return
            self.waiting_bytes -= sent
            if sent < len(part):
                self._waiting[0] = part[sent:]
                return
            self._waiting.popleft()


class Child:
    def __init__(self, slot: int, pid: int, pipe: Pipe) -> None:
        self.slot = slot
        self.pid = pid
        self.pipe = pipe
        self.staged = 0
        self.memory_mib = 0


class Supervisor:
    def __init__(self, channel: socket.socket, direct: dict[int, int], packages: str | None = None) -> None:
        self._packages = packages
        self._direct = direct
        self._selector = selectors.DefaultSelector()
        self._channel = Pipe(channel)
        self._children: dict[int, Child] = {}
        self._masks: dict[int, int] = {}
        self._selector.register(channel, selectors.EVENT_READ, None)
        self._masks[channel.fileno()] = selectors.EVENT_READ

    def run(self) -> None:
        self._say(f.frame(f.HOST_READY, f.u32(os.getpid())))
        while True:
            self._watch(self._channel, None)
            for child in list(self._children.values()):
                self._watch(child.pipe, child)
            for key, mask in self._selector.select():
                child = key.data
                if child is not None and self._children.get(child.slot) is not child:
                    continue
                pipe = self._channel if child is None else child.pipe
                if mask & selectors.EVENT_WRITE:
                    pipe.flush()
                if mask & selectors.EVENT_READ:
                    if child is None:
                        self._from_raylet()
                    else:
                        self._from_child(child)

    def _watch(self, pipe: Pipe, child: Child | None) -> None:
        mask = selectors.EVENT_WRITE if pipe.waiting_bytes > 0 else 0
        # Nothing is read for whoever does not read: of children while the raylet is behind, of the raylet never, since it holds its own account.
        if child is None or self._channel.waiting_bytes < MAX_WAITING_BYTES // 4:
            mask |= selectors.EVENT_READ
        fd = pipe.socket.fileno()
        if self._masks.get(fd) != mask:
            if mask == 0:
                mask = selectors.EVENT_WRITE if pipe.waiting_bytes > 0 else selectors.EVENT_READ
            self._selector.modify(pipe.socket, mask, child)
            self._masks[fd] = mask

    def _say(self, frame: bytes) -> None:
        self._channel.send(envelope(0, frame))

    def _from_raylet(self) -> None:
        try:
            octets = self._channel.socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            octets = b""
        if not octets:
            os._exit(EXIT_DONE)
        for slot, batch in self._channel.envelopes.push(octets):
            if slot == 0:
                self._host(batch)
                continue
            child = self._children.get(slot)
            if child is not None:
                self._give(child, envelope(slot, batch))

    def _give(self, child: Child, octets: bytes) -> None:
        child.pipe.send(octets)
        if child.pipe.waiting_bytes > MAX_WAITING_BYTES:
            self._failed(child, "RESOURCE_EXHAUSTED", "its Python process reads less than it is sent")

    def _host(self, batch: bytes) -> None:
        reader = f.FrameReader(batch)
        while reader.next():
            op = reader.op
            if op == f.PING:
                self._say(f.frame(f.PONG))
                continue
            slot = reader.u32()
            if op == f.OPEN_SLOT:
                memory, prefix = reader.u32(), bytes(reader.raw(f.PREFIX_BYTES))
                own = reader.u8() if reader.remaining else 0
                reader.finish()
                if slot == 0 or slot in self._children:
                    raise BulkheadError("INVALID_ARGUMENT", "a slot was opened twice")
                self._open(slot, memory, prefix, own)
            elif op == f.CLOSE_SLOT:
                child = self._children.get(slot)
                if child is not None:
                    self._end(child)
            elif op in (f.LOAD_CODE, f.ATTACH):
                child = self._children.get(slot)
                if child is not None:
                    body = bytes(reader.rest())
                    self._give(child, envelope(0, f.frame(op, f.u32(slot), body)))
            else:
                raise BulkheadError("INVALID_ARGUMENT", f"unknown op 0x{op:x}")

    def _open(self, slot: int, memory: int, prefix: bytes, own: int) -> None:
        ours, theirs = socket.socketpair()
        direct = self._direct.pop(own, None)
        child = Child(slot, 0, Pipe(ours))
        self._stage_ahead(child, STAGED_AHEAD)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                self._become(theirs, slot, prefix, direct)
                status = 0
            except BaseException:  # noqa: BLE001 - for the operator's log
                os.write(2, traceback.format_exc().encode()[-2_000:])
            finally:
                os._exit(status)
        theirs.close()
        if direct is not None:
            os.close(direct)
        child.pid = pid
        self._children[slot] = child
        self._selector.register(ours, selectors.EVENT_READ, child)
        self._masks[ours.fileno()] = selectors.EVENT_READ

    def _become(self, channel: socket.socket, slot: int, prefix: bytes, direct: int | None) -> None:
        """The child: from here on a user without rights, in a session of its own, without the raylet's channel."""
        self._selector.close()
        self._channel.socket.close()
        for other in self._children.values():
            other.pipe.socket.close()
        for fd in self._direct.values():
            os.close(fd)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        give_up_rights()
        os.chdir("/tmp")
        from .slot import Slot

        if self._packages is not None:
            _show(self._packages)
        gc.unfreeze()
        Slot(channel if direct is None else socket.socket(fileno=direct), slot, prefix, channel).serve()

    def _stage_ahead(self, child: Child, count: int) -> None:
        """A child cannot make files in the staging directory, which belongs to another user of the host: it fills those that are there."""
        for _ in range(count):
            child.staged += 1
            fd = os.open(f"/staging/{child.slot}-{child.staged}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            os.fchmod(fd, 0o666)
            os.close(fd)

    def _from_child(self, child: Child) -> None:
        try:
            octets = child.pipe.socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            octets = b""
        if not octets:
            return self._died(child)
        try:
            for slot, batch in child.pipe.envelopes.push(octets):
                if slot == child.slot:
                    self._channel.send(envelope(slot, batch))
                elif slot == 0:
                    self._word(child, batch)
                else:
                    raise BulkheadError("INVALID_ARGUMENT", "it spoke for another slot")
        except BulkheadError as thrown:
            self._failed(child, "INTERNAL", f"its Python process broke the protocol: {thrown.message}")

    def _word(self, child: Child, batch: bytes) -> None:
        """What a child says about itself: all of it is a tenant's claim."""
        reader = f.FrameReader(batch)
        while reader.next():
            if reader.op == STAGED_USED:
                reader.finish()
                self._stage_ahead(child, 1)
            elif reader.op == f.CODE_FAILED:
                number, message, stack = reader.u32(), reader.text(), reader.text()
                reader.finish()
                self._say(f.frame(f.CODE_FAILED, f.u32(child.slot), f.u32(number), f.text(message[:8_000]), f.text(stack[:16_000])))
            else:
                raise BulkheadError("INVALID_ARGUMENT", f"unknown op 0x{reader.op:x}")

    def _died(self, child: Child) -> None:
        try:
            _, status = os.waitpid(child.pid, 0)
            how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit code {os.WEXITSTATUS(status)}"
        except ChildProcessError:
            how = "unknown"
        child.pid = 0
        if len(self._children) == 1:
            # Alone here: the end of this sandbox is told as a worker's death, and its call is tried again where it may be.
            self._channel.socket.setblocking(True)
            self._channel.flush()
            os._exit(EXIT_PROTOCOL)
        self._failed(child, "INTERNAL", f"its Python process ended ({how})")

    def _failed(self, child: Child, code: str, message: str) -> None:
        self._say(f.frame(f.SLOT_FAILED, f.u32(child.slot), f.short(code), f.text(message)))
        self._end(child)

    def _end(self, child: Child) -> None:
        self._children.pop(child.slot, None)
        self._masks.pop(child.pipe.socket.fileno(), None)
        self._selector.unregister(child.pipe.socket)
        child.pipe.socket.close()
        if child.pid:
            # The whole session of the child first; what left that is ended with the sandbox.
            for end in (os.killpg, os.kill):
                try:
                    end(child.pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    pass


def reap(*_: object) -> None:
    """Orphans of children end up here as process 1; children themselves are reaped by name."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or _supervisor is None or any(child.pid == found.si_pid for child in list(_supervisor._children.values())):
            return
        try:
            os.waitpid(found.si_pid, os.WNOHANG)
        except ChildProcessError:
            # Another signal came in between, and its handler took it.
            pass


_supervisor: Supervisor | None = None


def inherited() -> dict[int, int]:
    """Channels that lie ready for slots, by their number from 1."""
    found: dict[int, int] = {}
    fd = FIRST_DIRECT_FD
    while True:
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                return found
        except OSError:
            return found
        found[len(found) + 1] = fd
        fd += 1


def _show(packages: str) -> None:
    """A tenant's packages come before the operator's, and behind the standard library. Only where its code may run: process 1 never sees them."""
    operators = [path for path in sys.path if path.startswith("/opt/packages/")]
    sys.path[:] = [path for path in sys.path if path not in operators] + [packages, *operators]


def main(packages: str | None = None) -> None:
    """`packages`: what was installed for the environment of this sandbox."""
    global _supervisor
    # What most programs need, loaded once and shared by every child.
    from . import ray, slot  # noqa: F401

    # An environment with packages may have a numpy of its own.
    for name in ("numpy", "cloudpickle") if packages is None else ("cloudpickle",):
        try:
            __import__(name)
        except ImportError:
            pass
    gc.collect()
    gc.freeze()
    os.umask(0)
    os.chmod("/tmp", 0o1777)
    channel = socket.socket(fileno=CHANNEL_FD)
    _supervisor = Supervisor(channel, inherited(), packages)
    signal.signal(signal.SIGCHLD, reap)
    signal.set_wakeup_fd(-1)
    try:
        _supervisor.run()
    except BulkheadError as thrown:
        print(f"the raylet broke the protocol: {thrown.message}", file=sys.stderr)
        os._exit(EXIT_PROTOCOL)
