"""Where calls run, in Ray's words: strategies, label selectors, and the options of Bulkhead that they become.

Must never: weaken a condition that it cannot express; it refuses it by name.
"""

from __future__ import annotations

from typing import Any, Mapping


class PlacementGroupSchedulingStrategy:
    """In a bundle of this group; -1: in any that has room."""

    def __init__(self, placement_group: Any, placement_group_bundle_index: int = -1, placement_group_capture_child_tasks: bool | None = None) -> None:
        if placement_group is None:
            raise ValueError("placement_group needs to be an instance of PlacementGroup")
        self.placement_group = placement_group
        self.placement_group_bundle_index = placement_group_bundle_index
        self.placement_group_capture_child_tasks = placement_group_capture_child_tasks


class NodeAffinitySchedulingStrategy:
    """On the node of this id (`ray.nodes()`); `soft`: elsewhere while that one is not there or too small."""

    def __init__(self, node_id: str, soft: bool, _spill_on_unavailable: bool = False, _fail_on_unavailable: bool = False) -> None:
        if not isinstance(node_id, str) or not node_id:
            raise ValueError(f"Invalid node_id {node_id!r}: ray.nodes() lists the ids of nodes")
        if _spill_on_unavailable or _fail_on_unavailable:
            raise NotImplementedError("_spill_on_unavailable and _fail_on_unavailable are not supported yet (see docs/python.md)")
        self.node_id = node_id
        self.soft = soft


class _Values:
    def __init__(self, *values: str) -> None:
        if not values or not all(isinstance(value, str) for value in values):
            raise ValueError(f"{type(self).__name__} takes one or more strings")
        self.values = list(values)


class In(_Values):
    """The label has one of these values."""


class NotIn(_Values):
    """The label is not there, or has none of these values."""


class Exists:
    """The label is there."""


class DoesNotExist:
    """The label is not there."""


class NodeLabelSchedulingStrategy:
    """On nodes of which all of `hard` holds, and, where there are such, all of `soft` too."""

    def __init__(self, hard: Mapping[str, Any] | None, *, soft: Mapping[str, Any] | None = None) -> None:
        if not hard and not soft:
            raise ValueError("The `hard` and `soft` parameter of NodeLabelSchedulingStrategy cannot both be empty.")
        self.hard = dict(hard or {})
        self.soft = dict(soft or {})
        _conditions(self.hard), _conditions(self.soft)


def _conditions(of: Mapping[str, Any]) -> dict[str, Any]:
    wire: dict[str, Any] = {}
    for key, value in of.items():
        if not isinstance(key, str) or not key:
            raise ValueError("a label is a string")
        if isinstance(value, In):
            wire[key] = {"in": value.values}
        elif isinstance(value, NotIn):
            wire[key] = {"notIn": value.values}
        elif isinstance(value, Exists):
            wire[key] = {"exists": True}
        elif isinstance(value, DoesNotExist):
            wire[key] = {"exists": False}
        else:
            raise ValueError(f"the label {key} needs In(…), NotIn(…), Exists() or DoesNotExist(); this is {value!r}")
    return wire


def selector(of: Mapping[str, str]) -> dict[str, Any]:
    """`label_selector` of Ray: "value", "!value", "in(a,b)", "!in(a,b)"."""
    wire: dict[str, Any] = {}
    if not isinstance(of, Mapping):
        raise ValueError(f"label_selector is a dict of strings; this is {of!r}")
    for key, value in of.items():
        if not isinstance(key, str) or not isinstance(value, str) or not value:
            raise ValueError(f"label_selector is a dict of strings; this has {key!r}: {value!r}")
        negated = value.startswith("!")
        text = value.removeprefix("!")
        values = [part.strip() for part in text[3:-1].split(",")] if text.startswith("in(") and text.endswith(")") else [text]
        if not all(values):
            raise ValueError(f"the label_selector {key}: {value!r} names an empty value")
        wire[key] = {"notIn": values} if negated else {"in": values}
    return wire


def strategy_options(strategy: Any) -> dict[str, Any]:
    """What DEFINE says for a `scheduling_strategy`."""
    if strategy in (None, "DEFAULT"):
        return {"scheduling": "default"}
    if strategy == "SPREAD":
        return {"scheduling": "spread"}
    if isinstance(strategy, PlacementGroupSchedulingStrategy):
        return group_options(strategy.placement_group, strategy.placement_group_bundle_index, strategy.placement_group_capture_child_tasks)
    if isinstance(strategy, NodeAffinitySchedulingStrategy):
        return {"nodeAffinity": {"node": strategy.node_id, "soft": bool(strategy.soft)}}
    if isinstance(strategy, NodeLabelSchedulingStrategy):
        hard, soft = _conditions(strategy.hard), _conditions(strategy.soft)
        if not soft:
            return {"labels": hard}
        return {"labels": {**hard, **soft}, "fallback": [{"labels": hard} if hard else {}]}
    raise ValueError(f"scheduling_strategy must be 'DEFAULT', 'SPREAD' or one of ray.util.scheduling_strategies; this is {strategy!r}")


def group_options(group: Any, index: int, capture: Any) -> dict[str, Any]:
    if group is None or group == "default":
        return {}
    if not hasattr(group, "bundle_count"):
        raise ValueError(f"placement_group takes a placement group, as ray.util.placement_group() makes it; this is {group!r}")
    count = group.bundle_count
    if not isinstance(index, int) or not -1 <= index < count:
        raise ValueError(f"placement group bundle index {index} is invalid. Valid placement group indexes: 0-{count - 1}")
    return {"placementGroup": f"obj-{group.id.hex()}", **({} if index == -1 else {"bundleIndex": index}), **({"captureChildTasks": True} if capture else {})}


def check_fits(group: Any, index: int, wanted: Mapping[str, float]) -> None:
    """Raises ValueError where no bundle that it may use could ever hold the call."""
    bundles = group.bundle_specs if index == -1 else [group.bundle_specs[index]]
    if not any(all(amount <= bundle.get(name, 0) for name, amount in wanted.items()) for bundle in bundles):
        asked = {name: amount for name, amount in wanted.items() if amount > 0}
        raise ValueError(f"Cannot schedule the call with the placement group because the resource request {asked} cannot fit into any bundles for the placement group, {bundles}.")
