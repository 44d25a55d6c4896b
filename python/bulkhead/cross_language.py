"""Functions and classes of other languages, by name, and values without code: `ray.cross_language`. A JavaScript or TypeScript module comes as the bundle that
`bulkhead bundle FILE -o OUT` makes of it, or is bundled by that command here.

Must never: run a bundle, or look into one further than to see that it is one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from typing import Any

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


class JsFunction:
    """An exported function of a JavaScript module: `.remote(…)` as of any other."""

    def __init__(self, module: str, name: str, options: dict[str, Any], source: bytes | None = None) -> None:
        _options(options, f.TASK)
        self._module = module
        self._name = name
        self._options = options
        self._source = source
        self._template: Template | None = None

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"Remote functions cannot be called directly. Instead of running '{self._name}()', try '{self._name}.remote()'.")

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        if self._template is None:
            source = self._source = self._source or _bundled(self._module)
            options, returns = _options(self._options, f.TASK)
            self._template = Template(f.TASK, digest_of(source), source, self._name, "", options, returns)
        return api.submit_plain(f.SUBMIT, self._template, None, args, kwargs)

    def options(self, **options: Any) -> JsFunction:
        return JsFunction(self._module, self._name, {**self._options, **options}, self._source)

    def __reduce__(self) -> tuple[Any, ...]:
        # Where it goes the file is not.
        return JsFunction, (self._module, self._name, self._options, self._source or _bundled(self._module))


class JsActorClass:
    """An exported class of a JavaScript module: `.remote(…)` makes an actor of it."""

    def __init__(self, module: str, name: str, options: dict[str, Any], source: bytes | None = None) -> None:
        _options(options, f.ACTOR_CLASS)
        self._module = module
        self._name = name
        self._options = options
        self._source = source
        self._template: Template | None = None

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"Actors cannot be instantiated directly. Instead of '{self._name}()', use '{self._name}.remote()'.")

    def remote(self, *args: Any, **kwargs: Any) -> api.ActorHandle:
        if self._template is None:
            source = self._source = self._source or _bundled(self._module)
            options, _ = _options(self._options, f.ACTOR_CLASS)
            self._template = Template(f.ACTOR_CLASS, digest_of(source), source, self._name, "", options, 1)
        first = api.submit_plain(f.CREATE_ACTOR, self._template, None, args, kwargs)
        handle = api.ActorHandle(first, self._name, {}, api.ObjectRef(first), plain=True)
        handle._digest = self._template.digest.hex()
        return handle

    def options(self, **options: Any) -> JsActorClass:
        return JsActorClass(self._module, self._name, {**self._options, **options}, self._source)

    def __reduce__(self) -> tuple[Any, ...]:
        # Where it goes the file is not.
        return JsActorClass, (self._module, self._name, self._options, self._source or _bundled(self._module))


def js_function(module: str, function_name: str) -> JsFunction:
    """The function that a JavaScript or TypeScript module exports under this name. `module`: a bundle, or a source file where the command `bulkhead` is at hand."""
    return JsFunction(module, function_name, {})


def js_actor_class(module: str, class_name: str) -> JsActorClass:
    """The class that a JavaScript or TypeScript module exports under this name."""
    return JsActorClass(module, class_name, {})
