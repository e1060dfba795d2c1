"""The paper's own settings, as data. They are stated for BERT-base and scale with the model."""

from dataclasses import dataclass

from pruning_adapter.errors import PlanError
from pruning_adapter.importance.scores import ImportanceScores
from pruning_adapter.planning.pruning_plan import PruningPlan
from pruning_adapter.planning.rank_plan import ROLES, RankPlan, plan_ranks
from pruning_adapter.planning.select import plan_pruning

__all__ = ["PRESETS", "Preset", "find_preset"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A setting of BERT-base (12 blocks x 12 heads); other models get the same shares, rounded."""

    pruned_heads: int
    """Of 144."""
    top_blocks: int
    """Of 12."""
    high: int
    low: int
    roles: tuple[str, ...]

    def heads_to_keep(self, heads: int) -> int:
        """Heads that stay in a model of `heads` heads in all."""
        return heads - round(self.pruned_heads * heads / 144)

    def blocks_on_top(self, blocks: int) -> int:
        """Blocks that get the high rank, of `blocks`."""
        return round(self.top_blocks * blocks / 12)

    def plan(self, scores: ImportanceScores) -> tuple[PruningPlan, RankPlan]:
        """Both plans of this preset for the model that was scored."""
        plan = plan_pruning(scores, keep_heads=self.heads_to_keep(sum(scores.model.heads)))
        ranks = plan_ranks(
            scores,
            plan,
            top_blocks=self.blocks_on_top(len(plan.kept_heads)),
            high=self.high,
            low=self.low,
            roles=self.roles,
        )
        return plan, ranks


PRESETS = {
    # As the paper's text says (arXiv:2303.14704).
    "paper": Preset(pruned_heads=44, top_blocks=4, high=8, low=4, roles=ROLES),
    # What reproduces the counts it prints: 308,736 trainable and 101,291,714 in all for BERT-base with two labels,
    # without the classifier. Both of the text's thresholds are off by one there, and the output projection is left out.
    "paper-counts": Preset(pruned_heads=43, top_blocks=5, high=8, low=4, roles=("query", "key", "value")),
}


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        PlanError: unknown; the message lists them.
    """
    if name not in PRESETS:
        raise PlanError(f"Preset {name!r} is unknown; there are {', '.join(PRESETS)}.")
    return PRESETS[name]
