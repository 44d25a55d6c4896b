"""Placement groups with Ray's face: resources that are reserved together, all of them or none.

Must never: say that a group is there before the cluster has said so.
"""

from __future__ import annotations

import json
import secrets
from typing import Any, Sequence

from . import api
from . import frames as f
from .errors import BulkheadError
from .ray_errors import GetTimeoutError, PermissionDeniedError, RayError, RaySystemError, error_of

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


class PlacementGroupID:
    """An id as octets; the same text in lists of the CLI, behind `obj-`."""

    __slots__ = ("_id",)

    def __init__(self, id: bytes) -> None:
        self._id = id

    def binary(self) -> bytes:
        return self._id

    def hex(self) -> str:
        return self._id.hex()

    def is_nil(self) -> bool:
        return self._id == api.NIL_ID

    @classmethod
    def from_random(cls) -> PlacementGroupID:
        """An id that no group has."""
        return cls(secrets.token_bytes(len(api.NIL_ID)))

    @classmethod
    def from_hex(cls, text: str) -> PlacementGroupID:
        return cls(bytes.fromhex(text))

    @classmethod
    def nil(cls) -> PlacementGroupID:
        return cls(api.NIL_ID)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroupID) and other._id == self._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        return f"PlacementGroupID({self.hex()})"

    def __reduce__(self) -> Any:
        return PlacementGroupID, (self._id,)


class PlacementGroup:
    """`PlacementGroup(id)`: of a group that another program made; its bundles are asked for where they are needed."""

    def __init__(self, id: PlacementGroupID, bundle_cache: Sequence[dict[str, float]] | None = None) -> None:
        if not isinstance(id, PlacementGroupID):
            raise ValueError(f"PlacementGroup takes the id of a placement group; this is a {type(id).__name__}")
        self.id = id
        self.bundle_cache: list[dict[str, float]] | None = None if bundle_cache is None else [dict(bundle) for bundle in bundle_cache]
        self._held: api.ObjectRef[Any] | None = None
        self._strategy = "PACK"
        self._name = ""

    @property
    def _ref(self) -> api.ObjectRef[Any]:
        """The group's own object; whoever holds it keeps the group."""
        if self._held is None:
            self._held = api.NIL_REF if self.is_empty else api.ObjectRef(self.id.binary())
        return self._held

    @staticmethod
    def empty() -> PlacementGroup:
        return PlacementGroup(PlacementGroupID.nil(), [])

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.id.hex(), "bundle_cache": self.bundle_cache}

    @staticmethod
    def from_dict(found: dict[str, Any]) -> PlacementGroup:
        return PlacementGroup(PlacementGroupID.from_hex(found["id"]), found["bundle_cache"])

    @property
    def is_empty(self) -> bool:
        return self.id.is_nil()

    def ready(self) -> api.ObjectRef[Any]:
        """A ref that has this group as its value when all bundles are reserved; it raises why the group cannot be."""
        return api.put(self) if self.is_empty else _itself.remote(self._ref, self)

    def wait(self, timeout_seconds: float = 30) -> bool:
        if self.is_empty:
            return True
        try:
            api.get(self._ref, timeout=timeout_seconds)
            return True
        except (GetTimeoutError, RayError):
            return False

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        if self.bundle_cache is None:
            described = _described(self.id.binary())
            if described is None:
                return []
            self.bundle_cache = [_ray_bundle(bundle) for bundle in described["bundles"]]
        return self.bundle_cache

    @property
    def bundle_count(self) -> int:
        return len(self.bundle_specs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id.hex()}, {self._strategy}, {self.bundle_cache})"

    def __reduce__(self) -> Any:
        return _group, (self._ref, self.bundle_specs, self._strategy, self._name)


def _group(ref: api.ObjectRef[Any], bundles: Sequence[dict[str, float]], strategy: str = "PACK", name: str = "") -> PlacementGroup:
    made = PlacementGroup(PlacementGroupID(ref.binary()), bundles)
    made._held, made._strategy, made._name = ref, strategy, name
    return made


def _when_ready(_: Any, group: PlacementGroup) -> PlacementGroup:
    """A task that waits for the group, as its argument, and needs nothing itself: the group's own object has no value to give."""
    return group


_itself = api.RemoteFunction(_when_ready, {"num_cpus": 0})
# What this process made or found, for `placement_group_table()`.
_known: dict[bytes, PlacementGroup] = {}
_removed: set[bytes] = set()


def _wire_bundle(bundle: Any, selector: Any) -> dict[str, Any]:
    if not isinstance(bundle, dict):
        raise ValueError(f"Bundles must be a list of resource dictionaries; this is a {type(bundle).__name__}")
    if not bundle or all(value == 0 for value in bundle.values()):
        raise ValueError(f"Bundles cannot be an empty dictionary or resources with only 0 values. Bundles: {bundle}")
    wire: dict[str, Any] = {}
    for name, value in bundle.items():
        if name == "bundle":
            raise ValueError(f"'bundle' is a reserved name of Ray's, and no resource: {bundle}")
        amount = api._amount(name, value)
        if name == "CPU":
            wire["cpus"] = amount
        elif name == "memory":
            wire["memoryBytes"] = int(amount)
        elif amount > 0:
            wire.setdefault("resources", {})[name] = amount
    if selector:
        from .scheduling import selector as parsed

        wire["labels"] = parsed(selector)
    return wire


def _ray_bundle(wire: dict[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    if wire.get("cpus"):
        found["CPU"] = float(wire["cpus"])
    if wire.get("memoryBytes"):
        found["memory"] = float(wire["memoryBytes"])
    return {**found, **{name: float(amount) for name, amount in (wire.get("resources") or {}).items()}}


def placement_group(bundles: list[dict[str, float]], strategy: str | None = None, name: str = "", lifetime: str | None = None, _soft_target_node_id: str | None = None,
                    bundle_label_selector: list[dict[str, str]] | None = None, topology_strategy: Any = None) -> PlacementGroup:
    """Asks for a group; it is there when `ready()` is."""
    strategy = strategy or "PACK"
    if _soft_target_node_id is not None or topology_strategy is not None:
        raise NotImplementedError("_soft_target_node_id and topology_strategy are not supported yet (see docs/python.md)")
    if not isinstance(bundles, list) or not bundles:
        raise ValueError(f"Placement group bundles must be a non-empty list of resource dictionaries, got {bundles!r}.")
    if strategy not in STRATEGIES:
        raise ValueError(f"Invalid placement group strategy {strategy}. Supported strategies are: {', '.join(STRATEGIES)}.")
    if not isinstance(name, str):
        raise TypeError(f"the name of a placement group is a string; this is {name!r}")
    if lifetime not in (None, "detached"):
        raise ValueError("placement group `lifetime` argument must be either `None` or 'detached'")
    selectors = bundle_label_selector or [{}] * len(bundles)
    if len(selectors) == 1:
        selectors = selectors * len(bundles)
    if len(selectors) != len(bundles):
        raise ValueError("bundle_label_selector has one selector for each bundle, or one for all of them")
    wire: dict[str, Any] = {"strategy": strategy, "bundles": [_wire_bundle(bundle, selector) for bundle, selector in zip(bundles, selectors)]}
    if lifetime == "detached":
        # Ray lets detached groups be without a name; here one is needed to find it again.
        name = name or f"pg-{secrets.token_hex(8)}"
        wire["detached"] = True
    if name:
        wire["name"] = name
    core = api.runtime().core
    ref_id = core.create_group(json.dumps(wire, separators=(",", ":")))
    made = _group(api.ObjectRef(ref_id, core), bundles, strategy, name)
    if name:
        _refuse_taken(made)
    _known[ref_id] = made
    return made


def _refuse_taken(group: PlacementGroup) -> None:
    """As in Ray a name that another group has is refused here, not when the group is waited for."""
    try:
        found = api.runtime().core.ask(f.LOOKUP_GROUP, f.short(group._name))
    except (PermissionDeniedError, BulkheadError):
        # Not to be looked up: whoever waits for the group is told why.
        return
    if bytes.fromhex(found["id"].removeprefix("obj-")) != group.id.binary():
        raise RaySystemError(f"Failed to create placement group '{group._name}': another one has this name (get_placement_group finds it)")


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Gives the bundles back; what still runs in them ends."""
    if not isinstance(placement_group, PlacementGroup):
        raise ValueError(f"remove_placement_group takes a placement group; this is a {type(placement_group).__name__}")
    try:
        api.runtime().core.ask(f.REMOVE_GROUP, placement_group.id.binary())
        _removed.add(placement_group.id.binary())
    except PermissionDeniedError:
        if _state_of(placement_group) != "REMOVED":
            raise
    except BulkheadError as refused:
        raise error_of(refused.code, refused.message, refused.stack, None) from None


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    if not placement_group_name:
        raise ValueError("Please supply a non-empty value to get_placement_group")
    try:
        found = api.runtime().core.ask(f.LOOKUP_GROUP, f.short(placement_group_name))
    except (PermissionDeniedError, BulkheadError):
        raise ValueError(f"Failed to look up placement group with name: {placement_group_name}") from None
    ref: api.ObjectRef[Any] = api.ObjectRef(bytes.fromhex(found["id"].removeprefix("obj-")))
    return _group(ref, [_ray_bundle(bundle) for bundle in found["bundles"]], found["strategy"], placement_group_name)


def get_current_placement_group() -> PlacementGroup | None:
    """The group that the task or actor which asks runs in."""
    text = api.runtime().context().get("placementGroup")
    if not text:
        return None
    octets = bytes.fromhex(text)
    described = _described(octets) or {}
    return _group(api.ObjectRef(octets), [_ray_bundle(bundle) for bundle in described.get("bundles", [])], described.get("strategy", "PACK"), described.get("name", ""))


def _described(octets: bytes) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = api.runtime().core.ask(f.DESCRIBE_GROUP, octets)
        return found
    except (PermissionDeniedError, BulkheadError):
        return None


def _state_of(group: PlacementGroup) -> str:
    octets = group.id.binary()
    if octets in _removed:
        return "REMOVED"
    # Who coordinates it is in its id; one that its coordinator, this raylet, does not know has been removed.
    here = octets[4:8] == api.runtime().core.prefix[4:8]
    try:
        api.get(group._ref, timeout=0)
        return "REMOVED" if here else "CREATED"
    except GetTimeoutError:
        return "PENDING"
    except RayError:
        return "REMOVED"


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """State, bundles and their nodes; without a group of all that this process made."""
    if placement_group is None:
        return {group.id.hex(): placement_group_table(group) for group in list(_known.values())}
    if not isinstance(placement_group, PlacementGroup):
        raise ValueError(f"placement_group_table takes a placement group; this is a {type(placement_group).__name__}")
    described = _described(placement_group.id.binary())
    if described is None or described["state"] == "REMOVED":
        # It was removed, or another raylet coordinates it: its ref tells which.
        described = {"name": placement_group._name, "strategy": placement_group._strategy, "state": _state_of(placement_group), "bundles": []}
    return {
        "placement_group_id": placement_group.id.hex(), "name": described["name"], "strategy": described["strategy"], "state": described["state"],
        "bundles": {i: bundle for i, bundle in enumerate(placement_group.bundle_specs)},
        "bundles_to_node_id": {i: bundle["nodeId"] for i, bundle in enumerate(described["bundles"])},
        "stats": {},
    }
