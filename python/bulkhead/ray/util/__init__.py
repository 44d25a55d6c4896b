"""`ray.util`. docs/python.md lists what is supported."""

from __future__ import annotations

from . import actor_pool, helpers, multiprocessing, queue, scheduling_strategies
from . import placement_group as _placement_group_module
from ...groups import get_current_placement_group, get_placement_group, placement_group, placement_group_table, remove_placement_group
from .actor_pool import ActorPool
from .helpers import as_completed, map_unordered

__all__ = [
    "ActorPool", "actor_pool", "as_completed", "get_current_placement_group", "get_placement_group", "helpers", "map_unordered", "multiprocessing", "placement_group",
    "placement_group_table", "queue", "remove_placement_group", "scheduling_strategies",
]


def __getattr__(name: str) -> object:
    raise AttributeError(f"ray.util.{name} is not supported yet (see docs/python.md)")


_ = _placement_group_module
