"""How far a ranking would be the same, had other examples of the task been drawn."""

from collections.abc import Sequence
from typing import Any, cast

from scipy import stats
from torch import Tensor

__all__ = ["rank_agreement"]


def rank_agreement(first: Sequence[Tensor], second: Sequence[Tensor]) -> float | None:
    """Spearman's rank correlation of two scores of the same units: within each site, then averaged by units.

    Within sites, because differences between blocks are large and stable, and would hide that the units of one block
    cannot be told apart yet. Two halves of a sample agree less than two samples of its full size would.

    Args:
        first: one tensor `(units,)` per site.
        second: likewise.

    Returns:
        A number from -1 to 1; None where there is nothing to rank: no site has two units whose scores differ.
    """
    found: list[tuple[int, float]] = []
    for one, other in zip(first, second, strict=True):
        a, b = one.tolist(), other.tolist()
        if len(set(a)) > 1 and len(set(b)) > 1:
            found.append((len(a), float(cast(Any, stats.spearmanr(a, b)).statistic)))
    units = sum(count for count, _ in found)
    return sum(count * value for count, value in found) / units if units else None
