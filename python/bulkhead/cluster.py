"""What a program may know of the cluster: its nodes, and what its tenant has and uses.

Must never: be taken for how busy nodes are: what other tenants use is not told.
"""

from __future__ import annotations

from typing import Any

from . import api
from . import frames as f


def _asked() -> dict[str, Any]:
    found: dict[str, Any] = api._translated(api.runtime().core.ask, f.LIST_NODES)
    return found


def _resources(of: dict[str, Any]) -> dict[str, float]:
    found = {"CPU": float(of.get("cpus") or 0), "memory": float(of.get("memoryBytes") or 0)}
    found.update({name: float(amount) for name, amount in (of.get("resources") or {}).items()})
    return {name: amount for name, amount in found.items() if amount > 0}


def nodes() -> list[dict[str, Any]]:
    """The nodes that live, this one first, with all that they have."""
    return [
        {"NodeID": node["nodeId"], "NodeName": node["nodeId"], "Alive": True, "alive": True, "Resources": _resources(node), "Labels": dict(node.get("labels") or {})}
        for node in _asked()["nodes"]
    ]


def _limited(asked: dict[str, Any]) -> dict[str, float]:
    total: dict[str, float] = {}
    for node in asked["nodes"]:
        for name, amount in _resources(node).items():
            total[name] = total.get(name, 0.0) + amount
    for name, limit in (("CPU", asked["quota"]["cpus"]), ("memory", asked["quota"]["memoryBytes"])):
        if limit is not None and name in total:
            total[name] = min(total[name], float(limit) * max(1, len(asked["nodes"])))
    return total


def cluster_resources() -> dict[str, float]:
    """Of all nodes together, as far as the tenant's quota goes."""
    return _limited(_asked())


def available_resources() -> dict[str, float]:
    """The same, less what the tenant itself uses on this node: what others use, and what it uses elsewhere, is not told."""
    asked = _asked()
    left = _limited(asked)
    for name, used in (("CPU", asked["inUse"]["cpus"]), ("memory", asked["inUse"]["memoryBytes"])):
        if name in left:
            left[name] = max(0.0, left[name] - float(used))
    return {name: amount for name, amount in left.items() if amount > 0}
