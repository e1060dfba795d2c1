"""What goes, and at which rank the rest trains. Pure data and pure functions."""

from pruning_adapter.planning.presets import PRESETS, Preset, find_preset
from pruning_adapter.planning.pruning_plan import PruningPlan
from pruning_adapter.planning.rank_plan import RankPlan, plan_ranks
from pruning_adapter.planning.select import plan_pruning

__all__ = ["PRESETS", "Preset", "PruningPlan", "RankPlan", "find_preset", "plan_pruning", "plan_ranks"]
