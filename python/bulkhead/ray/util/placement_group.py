"""`ray.util.placement_group`: a module and, as in Ray, the function of the same name in `ray.util`."""

from ...groups import PlacementGroup, get_current_placement_group, get_placement_group, placement_group, placement_group_table, remove_placement_group

__all__ = ["PlacementGroup", "get_current_placement_group", "get_placement_group", "placement_group", "placement_group_table", "remove_placement_group"]
