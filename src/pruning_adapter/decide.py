"""From a run's settings and its scores to both plans."""

from dataclasses import replace
from typing import Any, cast

from pruning_adapter.costs.latency import LatencyTable
from pruning_adapter.errors import PlanError
from pruning_adapter.importance import ImportanceScores
from pruning_adapter.planning import PruningPlan, RankPlan, find_preset, plan_pruning, plan_ranks
from pruning_adapter.settings import BUDGETS, KEEP_RATIO, RULES, Settings

__all__ = ["choose_units", "plan_from_settings"]


def plan_from_settings(
    settings: Settings, scores: ImportanceScores, *, latency: LatencyTable | None = None
) -> tuple[PruningPlan, RankPlan]:
    """Both plans that the settings ask for. Without a rule, 70 % of the heads stay.

    Args:
        settings: which rule, and which units may go.
        scores: of those units at least.
        latency: what the rule `keep_latency` predicts with.

    Raises:
        PlanError: a rule that cannot be met, or units that were not scored.
    """
    chosen = choose_units(settings, scores)
    if settings.preset is not None:
        return find_preset(settings.preset).plan(scores)
    rules = {name: getattr(settings, name) for name in RULES if name != "preset"}
    if not any(value is not None for value in rules.values()):
        rules["keep_ratio"] = KEEP_RATIO
    counts = not any(rules[name] is not None for name in BUDGETS)
    plan = plan_pruning(
        chosen,
        **rules,
        length=settings.length,
        dtype=settings.dtype,
        latency=latency,
        # Budgets weigh the scores as they are.
        normalization=cast(Any, settings.chosen("normalization") if counts else settings.normalization),
        grouping=cast(Any, settings.grouping),
        multiple_of=settings.multiple_of,
        allow_empty_blocks=settings.allow_empty_blocks,
        reconstruct=settings.chosen("reconstruct"),
    )
    return plan, _ranks_from_settings(settings, scores, plan)


def _ranks_from_settings(settings: Settings, scores: ImportanceScores, plan: PruningPlan) -> RankPlan:
    # A proportion to scores as they are compared over the model would leave nearly all ranks to one block.
    scope = settings.chosen("normalization") if settings.rank_budget is None else settings.normalization or "block"
    how: dict[str, Any] = {"target": settings.target, "normalization": scope}
    equal = settings.block_importance == "equal"
    low, high = settings.ranks

    def with_top(count: int) -> RankPlan:
        return plan_ranks(
            scores,
            plan,
            top_blocks=max(1, round(count / 3)) if settings.top_blocks is None else settings.top_blocks,
            high=high,
            low=low,
            budget=settings.rank_budget,
            block_importance=cast(Any, "sum" if equal else settings.block_importance),
            **how,
        )

    ranks, beside = with_top(len(plan.kept_heads)), len(plan.kept_neurons)
    if settings.rank_budget is None and 0 < beside != len(plan.kept_heads):
        # A third of each: where a decoder reads what an encoder made, there are more attentions than feed-forwards.
        ranks = replace(ranks, feed_forward_ranks=with_top(beside).feed_forward_ranks)
    # Evenly, but as many parameters as by importance.
    return (
        plan_ranks(scores, plan, budget=ranks.trainable_parameters, block_importance="equal", **how) if equal else ranks
    )


def choose_units(settings: Settings, scores: ImportanceScores) -> ImportanceScores:
    """The scores of the units that may go; units without scores all stay.

    Raises:
        PlanError: some were not scored.
    """
    missing = [kind for kind in settings.kinds if kind not in scores.kinds]
    if missing:
        raise PlanError(
            f"The plan is to weigh {' and '.join(settings.kinds)}, but no {missing[0]} were scored. Score them with "
            f"`pruning-adapter importance --units {settings.units or 'both'} --overwrite`, or plan with --units "
            f"{scores.kinds[0]}."
        )
    unwanted = [kind for kind in scores.kinds if kind not in settings.kinds]
    return replace(scores, **dict.fromkeys(unwanted, ())) if unwanted else scores
