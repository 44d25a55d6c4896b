"""The way into a cluster: a profile, TLS that checks SPIFFE IDs, unary calls to the head over HTTP/2, and the batch stream to a raylet.

Must never: speak to a server whose SVID is not the expected one; use a key that others can read.
"""

from __future__ import annotations

import json
import os
import select
import socket
import ssl
import stat
import threading
import time
from pathlib import Path
from typing import Any, Callable

import h2.config
import h2.connection
import h2.events

from . import frames as f
from .errors import BulkheadError

CONNECT_TIMEOUT = 10.0
CALL_TIMEOUT = 10.0
BEAT_SECONDS = 10.0
READ_BYTES = 256 * 2**10
# What one record of TLS holds: OpenSSL gives no more at once.
RECORD_BYTES = 16 * 2**10
OPEN, END, BEAT = 0x80, 0x81, 0x82
MAX_MESSAGE_BYTES = f.MAX_BATCH_BYTES + 16
GRPC_CODES = {
    1: "CANCELLED", 3: "INVALID_ARGUMENT", 4: "TIMEOUT", 5: "DENIED", 7: "DENIED", 8: "RESOURCE_EXHAUSTED", 14: "UNAVAILABLE", 16: "UNAUTHENTICATED",
}


class Profile:
    """A directory that `bulkhead identity issue` made."""

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        chosen = directory or os.environ.get("BULKHEAD_PROFILE") or Path.home() / ".bulkhead" / "default"
        self.directory = Path(chosen)
        try:
            said = json.loads((self.directory / "profile.json").read_text())
            self.address: str = said["address"]
            self.trust_domain: str = said["trustDomain"]
        except (OSError, ValueError, KeyError, TypeError) as thrown:
            raise BulkheadError("INVALID_ARGUMENT", f"{self.directory} is not a profile ({type(thrown).__name__}): make one with: bulkhead identity issue … --out DIR") from None

    def context(self, protocol: str) -> ssl.SSLContext:
        key = self.directory / "key.pem"
        for _ in range(50):
            # Another process is in the middle of a renewal.
            if not (self.directory / ".renewal.json").exists():
                break
            time.sleep(0.02)
        if stat.S_IMODE(key.stat().st_mode) & 0o077:
            raise BulkheadError("INVALID_ARGUMENT", f"others can read {key}: chmod 600 it, or issue the identity again")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # The name is checked by `_connect`, from the SVID: servers have no DNS names.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cafile=str(self.directory / "bundle.pem"))
        context.load_cert_chain(str(self.directory / "svid.pem"), str(key))
        context.set_alpn_protocols([protocol])
        return context


class TlsPipe:
    """TLS over a socket whose two directions may be used by two threads at once, which OpenSSL's own object may not."""

    def __init__(self, profile: Profile, address: str, expected: str, protocol: str) -> None:
        host, _, port = address.rpartition(":")
        try:
            self._socket = socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT)
        except OSError as thrown:
            raise BulkheadError("UNAVAILABLE", f"{address} cannot be reached: {thrown}; check the address and that it runs") from None
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._tls = profile.context(protocol).wrap_bio(self._in, self._out, server_side=False)
        # Kept: so large an object for each read would be mapped and unmapped.
        self._incoming = memoryview(bytearray(READ_BYTES))
        self._lock = threading.Lock()
        self._write_lock = threading.Lock()
        try:
            self._handshake()
            self._verify(address, expected, protocol)
        except BaseException:
            self._socket.close()
            raise
        self._socket.settimeout(None)

    def _handshake(self) -> None:
        try:
            while True:
                try:
                    self._tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    self._send_pending()
                    got = self._socket.recv(READ_BYTES)
                    if not got:
                        raise BulkheadError("UNAVAILABLE", "the server ended the TLS handshake: is this identity of its cluster, and still valid?")
                    self._in.write(got)
            self._send_pending()
        except (OSError, ssl.SSLError) as thrown:
            raise BulkheadError("UNAVAILABLE", f"no TLS connection: {thrown}; check that both sides are of one cluster") from None

    def _verify(self, address: str, expected: str, protocol: str) -> None:
        certificate = self._tls.getpeercert() or {}
        said: Any = certificate.get("subjectAltName", ())
        names = [str(value) for kind, value in said if kind == "URI"]
        if names != [expected]:
            raise BulkheadError("UNAUTHENTICATED", f"the server at {address} is {names}, not {expected}; check the address and the profile")
        if self._tls.selected_alpn_protocol() != protocol:
            raise BulkheadError("UNAVAILABLE", f"the server at {address} does not speak {protocol}")

    def _send_pending(self) -> None:
        octets = self._out.read()
        if octets:
            self._socket.sendall(octets)

    def settimeout(self, seconds: float | None) -> None:
        self._socket.settimeout(seconds)

    def write(self, *parts: bytes) -> None:
        with self._write_lock:
            with self._lock:
                for part in parts:
                    if part:
                        self._tls.write(part)
                octets = self._out.read()
            self._socket.sendall(octets)

    def read(self, timeout: float | None = None) -> bytes | None:
        """What came; empty at the end. With a timeout: None when nothing has come until then."""
        while True:
            with self._lock:
                try:
                    return self._tls.read(RECORD_BYTES)
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLError:
                    return b""
            try:
                if timeout is not None and not select.select([self._socket], [], [], timeout)[0]:
                    return None
                got = self._socket.recv_into(self._incoming)
            except TimeoutError:
                raise
            except (OSError, ValueError):
                return b""
            if not got:
                return b""
            with self._lock:
                self._in.write(self._incoming[:got])

    def close(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()


# --- protobuf, as far as the calls below need it ---


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def message(**texts: str) -> bytes:
    """A message of string fields: `f1='…'`."""
    out = bytearray()
    for name, value in texts.items():
        octets = value.encode()
        if octets:
            out += _varint(int(name[1:]) << 3 | 2) + _varint(len(octets)) + octets
    return bytes(out)


def fields(octets: bytes) -> dict[int, list[int | bytes]]:
    found: dict[int, list[int | bytes]] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(octets) or shift > 63:
                raise BulkheadError("INTERNAL", "a message of the head cannot be read")
            value |= (octets[at] & 0x7F) << shift
            at += 1
            if octets[at - 1] < 0x80:
                return value
            shift += 7

    while at < len(octets):
        tag = varint()
        if tag & 7 == 0:
            found.setdefault(tag >> 3, []).append(varint())
        elif tag & 7 == 2:
            size = varint()
            if at + size > len(octets):
                raise BulkheadError("INTERNAL", "a message of the head cannot be read")
            found.setdefault(tag >> 3, []).append(octets[at : at + size])
            at += size
        else:
            at += 8 if tag & 7 == 1 else 4
    return found


def text_of(of: dict[int, list[int | bytes]], number: int) -> str:
    found = of.get(number, [b""])[-1]
    return found.decode() if isinstance(found, bytes) else str(found)


class HeadCalls:
    """Unary gRPC calls to the head, one connection a call: a session needs three in its life and one every few minutes."""

    def __init__(self, profile: Profile, address: str) -> None:
        self._profile = profile
        self._address = address

    def call(self, method: str, request: bytes, timeout: float = CALL_TIMEOUT) -> bytes:
        pipe = TlsPipe(self._profile, self._address, f"spiffe://{self._profile.trust_domain}/system/head", "h2")
        try:
            pipe.settimeout(timeout)
            return self._exchange(pipe, method, request)
        except TimeoutError:
            raise BulkheadError("UNAVAILABLE", f"the head did not answer {method} in {timeout} s") from None
        finally:
            pipe.close()

    def _exchange(self, pipe: TlsPipe, method: str, request: bytes) -> bytes:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        connection.initiate_connection()
        stream = connection.get_next_available_stream_id()
        connection.send_headers(stream, [
            (":method", "POST"), (":scheme", "https"), (":authority", self._address), (":path", f"/{method}"), ("te", "trailers"), ("content-type", "application/grpc"),
        ])
        connection.send_data(stream, b"\0" + len(request).to_bytes(4, "big") + request, end_stream=True)
        pipe.write(connection.data_to_send())
        body = bytearray()
        status: dict[str, str] = {}
        over = False
        while not over:
            octets = pipe.read()
            if not octets:
                raise BulkheadError("UNAVAILABLE", "the head ended the connection: is this identity still valid?")
            for event in connection.receive_data(octets):
                if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                    status.update({str(name): str(value) for name, value in event.headers})
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data
                    connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset, h2.events.ConnectionTerminated)):
                    over = True
            waiting = connection.data_to_send()
            if waiting:
                pipe.write(waiting)
        code = int(status.get("grpc-status", "13"))
        if code != 0:
            from urllib.parse import unquote

            raise BulkheadError(GRPC_CODES.get(code, "INTERNAL"), unquote(status.get("grpc-message", "the head refused the call")))
        if len(body) < 5 or body[0] != 0:
            raise BulkheadError("INTERNAL", "the head's answer cannot be read")
        return bytes(body[5:])


class BatchStream:
    """One `Calls.Attach` on a connection of its own, of ALPN `bulkhead-batch/1` (proto/frames.md, "Batch connections")."""

    def __init__(self, profile: Profile, address: str, expected: str, credential: str) -> None:
        self._pipe = TlsPipe(profile, address, expected, "bulkhead-batch/1")
        self._held = bytearray()
        opening = json.dumps({"method": "bulkhead.v1.Calls/Attach", "metadata": {"bulkhead-session": credential}}, separators=(",", ":")).encode()
        self._pipe.write(bytes([OPEN]) + len(opening).to_bytes(4, "big") + opening)

    def send(self, batch: bytes) -> None:
        head = b"\x0a" + _varint(len(batch))
        head = b"\0" + (len(head) + len(batch)).to_bytes(4, "big") + head
        # Each part is a record of TLS, and the raylet takes as long for one as for a call.
        self._pipe.write(*((head + batch,) if len(batch) < RECORD_BYTES else (head, batch)))

    def beat(self) -> None:
        self._pipe.write(bytes([BEAT]) + bytes(4))

    def end(self) -> None:
        self._pipe.write(bytes([END]) + bytes(4))

    def close(self) -> None:
        self._pipe.close()

    def read_once(self, each: Callable[[memoryview], None], timeout: float | None = None) -> bool:
        """Waits for something to come, once, and gives out the batches that are whole by then. False after a good end; raises what else ended the stream."""
        octets = self._pipe.read(timeout)
        if octets is None:
            return True
        if not octets:
            raise BulkheadError("UNAVAILABLE", "the connection to the raylet ended; check that it runs, and that this identity is valid there")
        held = self._held
        held += octets
        at = 0
        while len(held) - at >= 5:
            kind, length = held[at], int.from_bytes(held[at + 1 : at + 5], "big")
            if length > MAX_MESSAGE_BYTES:
                raise BulkheadError("INTERNAL", f"the raylet sent a message of {length} bytes")
            if len(held) - at - 5 < length:
                break
            body = bytes(memoryview(held)[at + 5 : at + 5 + length])
            at += 5 + length
            if kind == 0:
                each(_frames_of(body))
            elif kind == END:
                if body:
                    ending = json.loads(body)
                    raise BulkheadError(str(ending.get("code", "INTERNAL")), str(ending.get("message", "")))
                return False
            elif kind not in (OPEN, BEAT):
                raise BulkheadError("INTERNAL", f"the raylet sent a frame of kind {kind}")
        if at:
            del held[:at]
        return True


def _frames_of(body: bytes) -> memoryview:
    if not body:
        return memoryview(b"")
    size = shift = 0
    at = 1
    while True:
        octet = body[at]
        size |= (octet & 0x7F) << shift
        at += 1
        shift += 7
        if octet < 0x80:
            break
    if body[0] != 0x0A or at + size != len(body):
        raise BulkheadError("INTERNAL", "a batch of the raylet cannot be read")
    return memoryview(body)[at:]
