"""How much tasks differ in the heads they need, beside how much two samples of one task differ."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from pruning_adapter.importance.normalize import normalize
from pruning_adapter.importance.stability import rank_agreement
from pruning_adapter.reproduce.tables import Table

__all__ = ["correlation_table", "normalized_maps"]


def normalized_maps(maps: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """By task, attentions x heads, each block in [0, 1] (equations 1 and 2); the mean of both samples."""
    return {
        str(found["task"]): [
            block.tolist() for block in normalize([a + b for a, b in zip(*_tensors(found), strict=True)], "block")
        ]
        for found in maps
    }


def correlation_table(maps: Sequence[Mapping[str, Any]]) -> Table:
    """Rank correlation of heads within blocks: between tasks, and (on the diagonal) of two samples of one task."""
    names = [str(found["task"]) for found in maps]
    samples = {str(found["task"]): _tensors(found) for found in maps}
    between: dict[tuple[str, str], float | None] = {}
    for one, other in combinations(names, 2):
        pairs = (rank_agreement(a, b) for a in samples[one] for b in samples[other])
        known = [found for found in pairs if found is not None]
        between[one, other] = between[other, one] = statistics.mean(known) if known else None
    rows = tuple(
        (
            task,
            *(f"**{_show(found['agreement'])}**" if task == other else _show(between[task, other]) for other in names),
        )
        for task, found in zip(names, maps, strict=True)
    )
    count = sorted({count for found in maps for count in found["examples"]})
    return Table(
        title="Figure 1, in numbers: how much tasks differ",
        columns=("", *names),
        rows=rows,
        note="Spearman's rank correlation of the heads' importance, within blocks, averaged. On the diagonal: two "
        f"samples of one task that share no example ({' or '.join(map(str, count))} each). Tasks differ in what they "
        "need only as far as the numbers beside the diagonal are lower than those on it.",
    )


def _show(correlation: float | None) -> str:
    # With one head a block there is nothing to rank.
    return "-" if correlation is None else f"{correlation:.2f}"


def _tensors(found: Mapping[str, Any]) -> list[list[Tensor]]:
    return [[torch.tensor(block, dtype=torch.float64) for block in sample] for sample in found["heads"]]
