"""What a result says about the pruning, and what its reader must be warned of."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from pruning_adapter.architectures.shapes import ModelIdentity
from pruning_adapter.evaluation.result import Quality
from pruning_adapter.importance import ImportanceScores
from pruning_adapter.planning import PruningPlan, RankPlan

__all__ = ["describe_pruning", "warn"]


def describe_pruning(
    scores: ImportanceScores, plan: PruningPlan, ranks: RankPlan, *, normalization: str, length: int
) -> dict[str, Any]:
    """What went, and by which plan: `Result.pruning`, which says what its fields mean.

    Args:
        scores: by which the plan was made.
        plan: what stays.
        ranks: of LoRA on what stays.
        normalization: how the scores are shown.
        length: tokens at which operations are counted.
    """
    rule = dict(plan.origin.get("rule") or {})
    predicted_time = rule.pop("predicted", None)
    return {
        "importance": _importance_by_head(scores, normalization),
        "shown_within": normalization,
        "kept_heads": [list(kept) for kept in plan.kept_heads],
        "dense_heads": list(plan.model.heads),
        "neurons_kept": [len(kept) for kept in plan.kept_neurons],
        "dense_neurons": list(plan.model.neurons),
        "beside": _heads_beside_neurons(plan.model),
        "ranks": list(ranks.ranks),
        "feed_forward_ranks": list(ranks.feed_forward_ranks),
        "rank_roles": _roles_there(plan.model, ranks.roles),
        "rule": rule,
        "predicted": {
            "parameters": plan.parameters,
            **({} if plan.macs is None else {"macs": plan.count_macs(length)}),
            **({} if predicted_time is None else {"latency_ratio": predicted_time}),
        },
        "reconstruct": plan.reconstruct,
    }


def _importance_by_head(scores: ImportanceScores, normalization: str) -> list[list[float | None]]:
    """Normalised, by attention and by the heads' number in the dense model; None for those that are gone already."""
    if not scores.heads:
        return []
    rows = scores.normalized(cast(Any, normalization))
    known = [dict(zip(kept, row.tolist(), strict=True)) for kept, row in zip(scores.kept_heads, rows, strict=True)]
    return [[row.get(head) for head in range(heads)] for row, heads in zip(known, scores.model.heads, strict=True)]


def _roles_there(model: ModelIdentity, roles: Sequence[str]) -> list[str]:
    """Those roles that the model has; "all-linear" names those of all families."""
    there = {
        role
        for site in model.all_sites
        for role in (site.output_role, *(role for projection in site.projections for role in projection.roles))
    }
    return [role for role in roles if role in there]


def _heads_beside_neurons(model: ModelIdentity) -> list[int]:
    """For every feed-forward the number of the attention before it in its block."""
    blocks, attentions = model.blocks_of_sites, len(model.sites)
    last = {block: site for site, block in enumerate(blocks[:attentions])}
    return [last[block] for block in blocks[attentions:]]


def warn(quality: Mapping[str, Quality]) -> tuple[str, ...]:
    """What a reader of these measurements must see."""
    stuck = (
        f"The model gives one answer for all {measured.examples} examples of {name}"
        f"{'' if measured.majority_rate is None else ', as if it only knew the majority class'}: it has learnt "
        "nothing. Try another learning rate or more epochs."
        for name, measured in quality.items()
        if measured.at_majority
    )
    blind = (
        f"All {measured.examples} examples of {name} are of one class, so what is measured on them tells "
        "nothing of the others."
        for name, measured in quality.items()
        if measured.majority_rate == 1
    )
    return (*stuck, *blind)
