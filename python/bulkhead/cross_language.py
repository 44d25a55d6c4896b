"""Functions and classes of other languages, by name, and values without code: `ray.cross_language`. A JavaScript or TypeScript module comes as the bundle that
`bulkhead bundle FILE -o OUT` makes of it, or is bundled by that command here.

Must never: run a bundle, or look into one further than to see that it is one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from typing import Any, TypeVar

from . import api
from . import frames as f
from .client import Template, digest_of
from .ray_errors import CrossLanguageError
from .values import Neutral

__all__ = ["CrossLanguageError", "JsActorClass", "JsFunction", "Neutral", "js_actor_class", "js_function"]

_EXPORTS = b"__bulkhead_exports"
_SOURCES = (".ts", ".mts", ".mjs", ".tsx", ".jsx")
_BUNDLE_SECONDS = 120
_bundles: dict[tuple[str, float], bytes] = {}
_lock = threading.Lock()
_E = TypeVar("_E", bound="_Exported")


def _bundled(path: str) -> bytes:
    """The bundle in a file, or made of a module in one."""
    path = os.path.abspath(path)
    try:
        key = (path, os.stat(path).st_mtime)
    except OSError as thrown:
        raise ValueError(f"the JavaScript module {path} cannot be read: {thrown.strerror}") from None
    with _lock:
        found = _bundles.get(key)
        if found is None:
            with open(path, "rb") as file:
                found = file.read()
            if path.endswith(_SOURCES) or _EXPORTS not in found:
                found = _bundle(path)
            _bundles[key] = found
        return found


def _bundle(path: str) -> bytes:
    command = os.environ.get("BULKHEAD_CLI") or shutil.which("bulkhead")
    if command is None:
        raise ValueError(f"{path} is not bundled, and the command 'bulkhead' is not on the PATH: run 'bulkhead bundle {os.path.basename(path)} -o OUT.js' where it is, and name OUT.js here")
    made = subprocess.run([command, "bundle", path, "-o", "-"], capture_output=True, timeout=_BUNDLE_SECONDS, check=False)
    if made.returncode != 0:
        raise ValueError(f"{path} cannot be bundled: {made.stderr.decode('utf-8', 'replace').strip()[-2_000:]}")
    return made.stdout


def _options(options: dict[str, Any], kind: int) -> tuple[str, int]:
    return api.wire_options(options, kind, plain=True)


class _Exported:
    """What a JavaScript module exports, as this program calls it."""

    _kind: int
    _direct: str

    def __init__(self, module: str, name: str, options: dict[str, Any], source: bytes | None = None) -> None:
        _options(options, self._kind)
        self._module = module
        self._name = name
        self._options = options
        self._source = source
        self._template: Template | None = None

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(self._direct.format(name=self._name))

    def _bundle(self) -> bytes:
        if self._source is None:
            self._source = _bundled(self._module)
        return self._source

    def _submit(self, op: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Template]:
        if self._template is None:
            source = self._bundle()
            options, returns = _options(self._options, self._kind)
            self._template = Template(self._kind, digest_of(source), source, self._name, "", options, returns if self._kind == f.TASK else 1)
        return api.submit_plain(op, self._template, None, args, kwargs), self._template

    def options(self: _E, **options: Any) -> _E:
        return type(self)(self._module, self._name, {**self._options, **options}, self._source)

    def __reduce__(self) -> tuple[Any, ...]:
        # Where it goes the file is not.
        return type(self), (self._module, self._name, self._options, self._bundle())


class JsFunction(_Exported):
    """An exported function of a JavaScript module: `.remote(…)` as of any other."""

    _kind = f.TASK
    _direct = "Remote functions cannot be called directly. Instead of running '{name}()', try '{name}.remote()'."

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        made, _ = self._submit(f.SUBMIT, args, kwargs)
        return made


class JsActorClass(_Exported):
    """An exported class of a JavaScript module: `.remote(…)` makes an actor of it."""

    _kind = f.ACTOR_CLASS
    _direct = "Actors cannot be instantiated directly. Instead of '{name}()', use '{name}.remote()'."

    def remote(self, *args: Any, **kwargs: Any) -> api.ActorHandle:
        first, template = self._submit(f.CREATE_ACTOR, args, kwargs)
        handle = api.ActorHandle(first, self._name, {}, api.ObjectRef(first), plain=True)
        handle._digest = template.digest.hex()
        return handle


def js_function(module: str, function_name: str) -> JsFunction:
    """The function that a JavaScript or TypeScript module exports under this name. `module`: a bundle, or a source file where the command `bulkhead` is at hand."""
    return JsFunction(module, function_name, {})


def js_actor_class(module: str, class_name: str) -> JsActorClass:
    """The class that a JavaScript or TypeScript module exports under this name."""
    return JsActorClass(module, class_name, {})
