"""What runs in the throw-away sandbox that installs the packages of a runtime environment. There is no network: pip speaks to an index on the sandbox's own loopback,
which asks the raylet's broker over the one inherited channel for a project's links, by the project's name, and for a file of them, by its number. The installed files
go back over the same channel, one by one, and the sandbox ends. The other side: src/sandbox/packages/package-build.ts.

    frame := u32 octets that follow (little-endian) | u8 kind | body

Must never: run anything of a package (wheels only, no start-up files, nothing is compiled); keep a right that it does not need; outlive the channel.
"""

from __future__ import annotations

import html
import json
import os
import re
import stat
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Iterator

from .rights import give_up_rights

CHANNEL_FD = 3
READY, PAGE, FILE, ENTRY, DATA, DONE, FAILED = 1, 2, 3, 4, 5, 6, 7
SPEC, LINKS, BODY, END, NONE = 16, 17, 18, 19, 20
PART_BYTES = 256 * 2**10
TARGET = "/tmp/environment"
_NORMAL = re.compile(r"[-_.]+")
_HEAD = struct.Struct("<IB")


class Channel:
    """Frames of the raylet; one question at a time."""

    def __init__(self, fd: int) -> None:
        self._in = os.fdopen(os.dup(fd), "rb", buffering=PART_BYTES)
        self._out = os.fdopen(fd, "wb", buffering=PART_BYTES)
        self.lock = threading.Lock()

    def say(self, kind: int, body: bytes | str = b"", more: bool = False) -> None:
        octets = body.encode() if isinstance(body, str) else body
        self._out.write(_HEAD.pack(len(octets) + 1, kind))
        self._out.write(octets)
        if not more:
            self._out.flush()

    def hear(self) -> tuple[int, bytes]:
        head = self._in.read(_HEAD.size)
        if len(head) < _HEAD.size:
            os._exit(0)
        length, kind = _HEAD.unpack(head)
        body = self._in.read(length - 1)
        if len(body) < length - 1:
            os._exit(0)
        return kind, body


class Index(BaseHTTPRequestHandler):
    """PEP 503 pages of what the broker gives."""

    channel: Channel

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        parts = self.path.strip("/").split("/")
        if len(parts) == 2 and parts[0] == "simple":
            self._page(_NORMAL.sub("-", parts[1]).lower())
        elif len(parts) == 3 and parts[0] == "files" and parts[1].isdecimal():
            self._file(parts[1])
        else:
            self.send_error(404)

    def _page(self, name: str) -> None:
        with self.channel.lock:
            self.channel.say(PAGE, name)
            kind, body = self.channel.hear()
        if kind != LINKS:
            self.send_error(404)
            return
        links = "".join(
            f'<a href="/files/{link["number"]}/{html.escape(link["file"], quote=True)}#sha256={link["sha256"]}"'
            f'{_attribute("data-requires-python", link.get("requiresPython"))}{_attribute("data-yanked", link.get("yanked"))}>{html.escape(link["file"])}</a>\n'
            for link in json.loads(body)
        )
        page = f"<!DOCTYPE html><html><body>\n{links}</body></html>\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def _file(self, number: str) -> None:
        with self.channel.lock:
            self.channel.say(FILE, number)
            kind, body = self.channel.hear()
            if kind == NONE:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream")
            self.end_headers()
            while kind == BODY:
                self.wfile.write(body)
                kind, body = self.channel.hear()
        if kind != END:
            # Cut short: pip refuses it by its hash.
            self.close_connection = True


def _attribute(name: str, value: str | None) -> str:
    return "" if value is None else f' {name}="{html.escape(value, quote=True)}"'


def _pip_path() -> list[str] | None:
    """Where pip is: among the operator's packages, those of its interpreter, or the wheel that comes with every interpreter."""
    places = [*sys.path, os.path.join(sys.prefix, "lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages"), "/usr/lib/python3/dist-packages"]
    for place in places:
        if os.path.isdir(os.path.join(place, "pip", "_internal")):
            return [place]
    bundled = os.path.join(os.path.dirname(os.__file__), "ensurepip", "_bundled")
    for directory in (bundled, "/usr/share/python-wheels"):
        for name in sorted(os.listdir(directory) if os.path.isdir(directory) else []):
            if name.startswith("pip-") and name.endswith(".whl"):
                return [os.path.join(directory, name)]
    return None


def _files(root: str) -> Iterator[tuple[str, str, os.stat_result]]:
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted(files):
            path = os.path.join(directory, name)
            state = os.lstat(path)
            if stat.S_ISREG(state.st_mode):
                yield path, os.path.relpath(path, root), state


def _install(channel: Channel, spec: dict[str, Any]) -> str | None:
    """None, or what pip says to why not."""
    where = _pip_path()
    if where is None:
        return "the interpreter of this node has no pip; tell the operator: python -m ensurepip"
    server = HTTPServer(("127.0.0.1", 0), type("BoundIndex", (Index,), {"channel": channel, "protocol_version": "HTTP/1.0"}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with open("/tmp/requirements.txt", "w", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in spec["requirements"]))
    # Standard library first, then pip: nothing of what it installs, and nothing of the operator's besides.
    own = [p for p in sys.path if not p.startswith("/opt/packages") and p != "/opt/bulkhead"]
    program = f"import sys; sys.path[:] = {own + where!r}; from pip._internal.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, "install", "--isolated", "--no-input", "--disable-pip-version-check", "--no-cache-dir", "--no-compile", "--only-binary", ":all:", "--quiet", "--progress-bar", "off", "--retries", "0",
         "--timeout", "300", "--no-warn-script-location", "--index-url", f"http://127.0.0.1:{server.server_address[1]}/simple/", "--target", TARGET, "--requirement", "/tmp/requirements.txt"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={"HOME": "/tmp", "TMPDIR": "/tmp", "PATH": "/usr/bin", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", **({"LD_LIBRARY_PATH": os.environ["LD_LIBRARY_PATH"]} if "LD_LIBRARY_PATH" in os.environ else {})},
    )
    server.shutdown()
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return "; ".join(errors or lines[-3:])[:2_000] or f"pip ended with {done.returncode}"


def main() -> None:
    os.umask(0o022)
    os.chmod("/tmp", 0o1777)
    give_up_rights()
    os.chdir("/tmp")
    channel = Channel(CHANNEL_FD)
    channel.say(READY)
    kind, body = channel.hear()
    if kind != SPEC:
        os._exit(70)
    try:
        failure = _install(channel, json.loads(body))
        if failure is not None:
            channel.say(FAILED, failure)
        else:
            for path, name, state in _files(TARGET):
                channel.say(ENTRY, json.dumps({"path": name, "executable": bool(state.st_mode & 0o100), "bytes": state.st_size}), more=True)
                with open(path, "rb") as file:
                    while part := file.read(PART_BYTES):
                        channel.say(DATA, part, more=True)
            channel.say(DONE)
    except Exception as thrown:
        channel.say(FAILED, f"{type(thrown).__name__}: {thrown}"[:2_000])
    # The raylet ends the sandbox.
    channel.hear()
