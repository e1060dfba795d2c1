"""From scores to a pruning plan."""

import math
from collections.abc import Sequence
from numbers import Integral, Real

from pruning_adapter.errors import PlanError
from pruning_adapter.importance.normalize import Scope
from pruning_adapter.importance.scores import ImportanceScores
from pruning_adapter.planning.pruning_plan import PruningPlan

__all__ = ["plan_pruning"]


def plan_pruning(
    scores: ImportanceScores,
    *,
    keep_heads: int | None = None,
    keep_ratio: float | None = None,
    threshold: float | None = None,
    normalization: Scope = "block",
    allow_empty_blocks: bool = False,
) -> PruningPlan:
    """Keep the heads that matter most (section "importance-oriented pruning" of the paper).

    Exactly one of the three rules is given. Scores are compared after `scores.normalized(normalization)`. Of equal
    scores the earlier block, then the lower head, is kept. Unless `allow_empty_blocks`, the best head of every block
    stays whatever its score.

    Args:
        scores: of a dense model, or of a pruned one, whose remaining heads then compete.
        keep_heads: how many heads of the whole model stay.
        keep_ratio: share of the dense model's heads that stay, in (0, 1]; rounded to the nearest whole head.
        threshold: normalised importance in [0, 1]; heads below it go.
        normalization: equation 1 over the heads of each "block" or of the whole "model".
        allow_empty_blocks: a block may lose all its heads; its attention then adds only its bias.

    Raises:
        PlanError: no rule or several, a number out of range, or fewer heads than blocks.
    """
    given = {
        name: value
        for name, value in (("keep_heads", keep_heads), ("keep_ratio", keep_ratio), ("threshold", threshold))
        if value is not None
    }
    if len(given) != 1:
        raise PlanError(
            f"Give exactly one of keep_heads, keep_ratio and threshold; {', '.join(given) or 'none'} was given."
        )
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, Integral if name == "keep_heads" else Real):
            raise PlanError(f"{name} is {value!r}; it must be a {'whole ' if name == 'keep_heads' else ''}number.")
    given = {name: int(value) if name == "keep_heads" else float(value) for name, value in given.items()}
    values: list[list[float]] = [block.tolist() for block in scores.normalized(normalization)]
    # Descending score; of equal ones the earlier block, then the lower head.
    order = sorted(
        ((block, index) for block, row in enumerate(values) for index in range(len(row))),
        key=lambda unit: (-values[unit[0]][unit[1]], unit),
    )
    protected = set[tuple[int, int]]() if allow_empty_blocks else _best_of_each_block(order)
    if threshold is not None:
        if not 0 <= threshold <= 1:
            raise PlanError(f"threshold is {threshold}; normalised importance lies in [0, 1].")
        chosen = {unit for unit in order if values[unit[0]][unit[1]] >= threshold} | protected
    else:
        count = _heads_to_keep(keep_heads, keep_ratio, len(order), len(protected), sum(scores.model.heads))
        rest = [unit for unit in order if unit not in protected]
        chosen = protected | set(rest[: count - len(protected)])
    return PruningPlan(
        model=scores.model,
        kept_heads=tuple(
            tuple(kept[index] for index in range(len(kept)) if (block, index) in chosen)
            for block, kept in enumerate(scores.kept_heads)
        ),
        dense_parameters=scores.dense_parameters,
        # A block that was empty already stays so.
        allow_empty_blocks=allow_empty_blocks or any(not kept for kept in scores.kept_heads),
        origin={
            "scorer": scores.scorer,
            "reduction": scores.reduction,
            "task": scores.task,
            "rule": given,
            "normalization": normalization,
        },
    )


def _best_of_each_block(order: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    best: dict[int, tuple[int, int]] = {}
    for unit in order:
        best.setdefault(unit[0], unit)
    return set(best.values())


def _heads_to_keep(keep_heads: int | None, keep_ratio: float | None, there_are: int, blocks: int, dense: int) -> int:
    if keep_ratio is not None:
        if not 0 < keep_ratio <= 1:
            raise PlanError(f"keep_ratio is {keep_ratio}; it is the share of heads that stay, in (0, 1].")
        count, said = math.floor(keep_ratio * dense + 0.5), f"keep_ratio={keep_ratio} keeps"
    else:
        count, said = keep_heads or 0, "keep_heads is"
    if count > there_are:
        raise PlanError(f"{said} {count} heads, but the model has {there_are}.")
    if count < max(blocks, 1):
        raise PlanError(
            f"{said} {count} heads, but each of the {blocks} blocks needs one. Keep at least {blocks}, or say "
            "allow_empty_blocks=True."
            if blocks
            else f"{said} {count} heads; keep at least one."
        )
    return count
