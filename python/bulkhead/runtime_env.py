"""A runtime environment: variables, a working directory and modules that tasks and actors of a program have around them. It travels as the head of their code, so
that nothing but the code's own sandboxes ever sees it, and its digest is part of the runtime's name: the raylet keeps a sandbox of its own for it.

    'BKPY2\\n' u32 header octets (little-endian) | header (JSON) | packages, one behind the other | 'BKPY1\\n' and the pickle, or nothing for a job's program

Must never: take an option in silence that it does not carry out, or follow a link out of a directory that it packs.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
import sys
import zipfile
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, Iterator

HEAD = b"BKPY2\n"
# Code is at most 16 MiB; what is larger belongs into objects (ray.put).
MAX_PACKAGES_BYTES = 12 * 2**20
MAX_UNPACKED_BYTES = 256 * 2**20
MAX_FILES = 10_000
MAX_VARIABLES = 256
MAX_VARIABLE_BYTES = 32_768
SUPPORTED = ("working_dir", "py_modules", "env_vars", "excludes", "pip", "uv")
MAX_REQUIREMENTS = 64
# A name, extras, versions, a marker: what nodes accept (src/base/requirements.ts).
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[A-Za-z0-9._,\s-]+\])?\s*\(?\s*((===|==|~=|!=|<=|>=|<|>)[^;@/\\]*)?(;.*)?")
_FIXED_DATE = (1980, 1, 1, 0, 0, 0)
_SKIPPED = {"__pycache__", ".git", ".venv", "node_modules"}


class Package:
    """`kind`: working_dir or py_module (both zip archives), or file (of a job's program)."""

    __slots__ = ("kind", "name", "octets")

    def __init__(self, kind: str, name: str, octets: bytes) -> None:
        self.kind = kind
        self.name = name
        self.octets = octets


class Environment:
    """`requirements`: what the nodes install from their index; `packages`: what travels along."""

    __slots__ = ("variables", "packages", "requirements")

    def __init__(self, variables: dict[str, str], packages: list[Package], requirements: list[str] | None = None) -> None:
        self.variables = variables
        self.packages = packages
        self.requirements = requirements or []

    def under(self, parent: Environment | None) -> Environment:
        """As in Ray: what a child does not say it has of its parent; variables are joined."""
        if parent is None:
            return self
        kinds = {package.kind for package in self.packages}
        return Environment({**parent.variables, **self.variables}, [*(p for p in parent.packages if p.kind not in kinds), *self.packages], self.requirements or parent.requirements)

    def head(self, job: dict[str, Any] | None = None) -> bytes:
        total = sum(len(package.octets) for package in self.packages)
        if total > MAX_PACKAGES_BYTES:
            raise ValueError(f"runtime_env: working_dir and py_modules have {total} bytes packed, at most {MAX_PACKAGES_BYTES} are possible: leave data out (excludes), and pass it with ray.put")
        header = {"variables": self.variables, "packages": [{"kind": p.kind, "name": p.name, "bytes": len(p.octets)} for p in self.packages], **({"requirements": self.requirements} if self.requirements else {}), **({} if job is None else {"job": job})}
        text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
        return b"".join((HEAD, len(text).to_bytes(4, "little"), text, *(p.octets for p in self.packages)))

    def suffix(self, job_id: str) -> str:
        """Of the runtime's name: another job, or another environment, has other sandboxes."""
        return "+" + sha256(job_id.encode() + b"\0" + self.head()).hexdigest()[:32]


# What tasks and actors have that say nothing themselves: of ray.init(), of a job, or inside a sandbox its own.
default: Environment | None = None


def parse(given: Any) -> Environment | None:
    """Of `runtime_env=`. Raises what it does not carry out, with the option's name."""
    if given is None or given == {}:
        return None
    if isinstance(given, Environment):
        return given
    if hasattr(given, "to_dict"):
        given = given.to_dict()
    if not isinstance(given, dict):
        raise TypeError(f"runtime_env must be a dict, not {type(given).__name__}")
    for name, value in given.items():
        if name not in SUPPORTED and value not in (None, {}, [], ""):
            raise NotImplementedError(f"runtime_env[{name!r}] is not supported (supported: {', '.join(SUPPORTED)}; see docs/python.md)")
    variables = given.get("env_vars") or {}
    if not isinstance(variables, dict) or not all(isinstance(k, str) and isinstance(v, str) for k, v in variables.items()):
        raise TypeError("runtime_env['env_vars'] must be of type Dict[str, str]")
    if len(variables) > MAX_VARIABLES or any(k == "" or "=" in k or "\0" in k + v or len(k) + len(v) > MAX_VARIABLE_BYTES for k, v in variables.items()):
        raise ValueError(f"runtime_env['env_vars']: at most {MAX_VARIABLES} variables of {MAX_VARIABLE_BYTES} characters, with names that have no '='")
    excludes = given.get("excludes") or []
    if not isinstance(excludes, list) or not all(isinstance(e, str) for e in excludes):
        raise TypeError("runtime_env['excludes'] must be of type List[str]")
    packages: list[Package] = []
    working_dir = given.get("working_dir")
    if working_dir:
        packages.append(Package("working_dir", "", _packed(working_dir, "working_dir", excludes, False)))
    modules = given.get("py_modules") or []
    if not isinstance(modules, list):
        raise TypeError("runtime_env['py_modules'] must be a list of directories")
    for module in modules:
        path = getattr(module, "__path__", None)
        packages.append(Package("py_module", "", _packed(path[0] if path else module, "py_modules", excludes, True)))
    return Environment(dict(variables), packages, _requirements(given))


def _requirements(given: dict[str, Any]) -> list[str]:
    named = [option for option in ("pip", "uv") if given.get(option)]
    if len(named) == 2:
        raise ValueError("The 'pip' field and 'uv' field of runtime_env cannot be specified at the same time.")
    if not named:
        return []
    option = named[0]
    value = given[option]
    if isinstance(value, dict):
        for name, said in value.items():
            if name != "packages" and said not in (None, False, [], ""):
                raise NotImplementedError(f"runtime_env[{option!r}][{name!r}] is not supported (supported: packages; see docs/python.md)")
        value = value.get("packages")
    if isinstance(value, (str, os.PathLike)):
        value = _of_file(option, Path(value))
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise TypeError(f"runtime_env[{option!r}] must be of type List[str], the path of a requirements file, or a dict with 'packages'")
    lines = [line.strip() for line in value]
    for line in lines:
        if line.startswith("-"):
            raise NotImplementedError(f"runtime_env[{option!r}]: the option {line.split()[0].split('=')[0]} is not supported: name packages with versions; the index is the operator's (see docs/python.md)")
        if "@" in line or "://" in line or line.startswith((".", "/")):
            raise NotImplementedError(f"runtime_env[{option!r}]: {line.split('://')[0][:80]!r} names a place: packages come from the operator's index only (see docs/python.md)")
        if not _REQUIREMENT.fullmatch(line):
            raise ValueError(f"runtime_env[{option!r}]: {line[:80]!r} is not a package with versions, such as 'numpy==1.26.4'")
    if len(lines) > MAX_REQUIREMENTS:
        raise ValueError(f"runtime_env[{option!r}]: at most {MAX_REQUIREMENTS} requirements")
    return sorted(set(lines))


def _of_file(option: str, path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"runtime_env[{option!r}]: {path} is not a file")
    text = re.sub(r"\\\r?\n", " ", path.read_text(encoding="utf-8"))
    return [line for line in (re.sub(r"(^|\s)#.*$", "", line).strip() for line in text.splitlines()) if line]


def _packed(where: Any, option: str, excludes: list[str], with_parent: bool) -> bytes:
    if not isinstance(where, (str, os.PathLike)):
        raise TypeError(f"runtime_env[{option!r}] must name a directory, not a {type(where).__name__}")
    text = os.fspath(where)
    if "://" in text:
        raise NotImplementedError(f"runtime_env[{option!r}]={text.split('://')[0]}://… is not supported: name a local directory or .zip file (see docs/python.md)")
    path = Path(text)
    if path.is_file() and path.suffix == ".zip":
        return path.read_bytes()
    if not path.is_dir():
        raise ValueError(f"runtime_env[{option!r}]: {text} is not a directory or .zip file")
    root = path.resolve()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        total = 0
        for count, (file, name) in enumerate(_files(root, excludes)):
            total += file.stat().st_size
            if count >= MAX_FILES or total > MAX_UNPACKED_BYTES:
                raise ValueError(f"runtime_env[{option!r}]: {text} has more than {MAX_FILES} files or {MAX_UNPACKED_BYTES} bytes: leave some out (excludes)")
            info = zipfile.ZipInfo(f"{root.name}/{name}" if with_parent else name, _FIXED_DATE)
            info.external_attr = (0o755 if os.access(file, os.X_OK) else 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, file.read_bytes())
    return out.getvalue()


def _files(root: Path, excludes: list[str]) -> Iterator[tuple[Path, str]]:
    for directory, names, files in os.walk(root):
        names[:] = sorted(n for n in names if n not in _SKIPPED and not os.path.islink(os.path.join(directory, n)))
        for name in sorted(files):
            file = Path(directory) / name
            relative = file.relative_to(root).as_posix()
            if not stat.S_ISREG(os.lstat(file).st_mode) or name.endswith(".pyc") or any(_excluded(relative, pattern) for pattern in excludes):
                continue
            yield file, relative


def _excluded(relative: str, pattern: str) -> bool:
    pattern = pattern.strip("/")
    path = PurePosixPath(relative)
    return path.match(pattern) or any(parent.match(pattern) for parent in path.parents)


# --- inside a sandbox ---


class Parts:
    """What a source with this head is made of."""

    def __init__(self, source: bytes) -> None:
        length = int.from_bytes(source[len(HEAD) : len(HEAD) + 4], "little")
        start = len(HEAD) + 4
        header = json.loads(source[start : start + length])
        at = start + length
        packages = []
        for said in header["packages"]:
            octets = source[at : at + said["bytes"]]
            if len(octets) != said["bytes"]:
                raise ValueError("the code is shorter than it says")
            packages.append(Package(said["kind"], said["name"], octets))
            at += said["bytes"]
        self.environment = Environment(header["variables"], packages, header.get("requirements"))
        self.job: dict[str, Any] | None = header.get("job")
        self.rest = source[at:]


_applied: Environment | None = None


def apply(environment: Environment, home: str) -> None:
    """Once in a process: its raylet gives it code of this environment only."""
    global _applied, default
    if _applied is not None:
        return
    _applied = environment
    # The files of a job's program are the driver's alone.
    inherited = Environment(environment.variables, [p for p in environment.packages if p.kind != "file"], environment.requirements)
    default = inherited if inherited.variables or inherited.packages or inherited.requirements else None
    paths: list[str] = []
    for n, package in enumerate(environment.packages):
        if package.kind == "file":
            os.makedirs(home, mode=0o700, exist_ok=True)
            with open(os.path.join(home, os.path.basename(package.name)), "xb") as file:
                file.write(package.octets)
            continue
        place = home if package.kind == "working_dir" else f"{home}-{n}"
        os.makedirs(place, mode=0o700, exist_ok=True)
        _unpack(package.octets, place)
        paths.append(place)
        if package.kind == "working_dir":
            os.chdir(place)
    sys.path[0:0] = paths
    os.environ.update(environment.variables)


def _unpack(octets: bytes, place: str) -> None:
    with zipfile.ZipFile(io.BytesIO(octets)) as archive:
        members = archive.infolist()
        if len(members) > MAX_FILES or sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
            raise ValueError(f"a package has more than {MAX_FILES} files or {MAX_UNPACKED_BYTES} bytes")
        for member in members:
            parts = PurePosixPath(member.filename).parts
            if member.filename.startswith("/") or ".." in parts or stat.S_ISLNK(member.external_attr >> 16):
                raise ValueError(f"a package has the entry {member.filename!r}, which would leave its directory")
            written = archive.extract(member, place)
            if not member.is_dir() and (member.external_attr >> 16) & 0o100:
                os.chmod(written, 0o755)
