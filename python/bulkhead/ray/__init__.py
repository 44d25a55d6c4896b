"""Ray's API on Bulkhead: `import bulkhead.ray as ray`. docs/python.md lists what is supported."""

from __future__ import annotations

import cloudpickle

from ..api import ActorHandle, DynamicObjectRefGenerator, ObjectRef, ObjectRefGenerator, cancel, get, get_actor, get_runtime_context, kill, method, put, remote, wait
from ..driver import init, is_initialized, shutdown
from ..cluster import available_resources, cluster_resources, nodes
from . import _raylet as _raylet
from . import actor, cross_language, exceptions, runtime_context, util

# The name of before 1.0.
ObjectID = ObjectRef
# The release whose names these are.
__version__ = "2.60.0"

__all__ = [
    "ActorHandle", "DynamicObjectRefGenerator", "ObjectID", "ObjectRef", "ObjectRefGenerator", "__version__", "actor", "available_resources", "cancel", "cloudpickle", "cluster_resources",
    "cross_language", "exceptions", "get", "get_actor", "get_runtime_context", "init", "is_initialized", "kill", "method", "nodes", "put", "remote", "runtime_context", "shutdown", "util", "wait",
]


def __getattr__(name: str) -> object:
    raise AttributeError(f"ray.{name} is not supported yet (see docs/python.md)")

