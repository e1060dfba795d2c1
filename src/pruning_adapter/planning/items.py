"""What a plan chooses among: units that stay or go together, ranked within their site.

An item is one unit, a whole key/value group, one query head of every group, or as many neurons as widths are rounded
to. Items of a site are taken best first, so widths come out as asked and groups are never split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pruning_adapter.architectures.shapes import SiteShape
from pruning_adapter.architectures.spec import Kind
from pruning_adapter.errors import PlanError
from pruning_adapter.importance.normalize import Scope
from pruning_adapter.importance.scores import ImportanceScores

__all__ = ["Grouping", "SiteItems", "make_items"]

Grouping = Literal["whole", "even"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SiteItems:
    """The items of one site, best first."""

    site: int
    """Its number among `ModelIdentity.all_sites`."""
    kind: Kind
    items: tuple[tuple[int, ...], ...]
    """Units of each item, by their number in the dense model."""
    values: Floats
    """Importance of each item: the sum over its units."""
    groups: tuple[int, ...]
    """Key/value heads that are needed once the first 0, 1, 2, ... items are taken."""

    @property
    def units(self) -> tuple[int, ...]:
        """Units that are there once the first 0, 1, 2, ... items are taken."""
        return tuple(np.cumsum([0, *(len(item) for item in self.items)]).tolist())


def make_items(
    scores: ImportanceScores,
    *,
    kinds: Sequence[Kind],
    normalization: Scope | None,
    grouping: Grouping | None = None,
    multiple_of: int = 1,
) -> list[SiteItems]:
    """The items of all sites of the given kinds.

    Args:
        scores: of a dense model, or of a pruned one, whose remaining units then compete.
        kinds: of units that may go.
        normalization: equation 1 over "block" or "model"; None: the scores as they are.
        grouping: under grouped-query attention, one query head of every group goes at once ("even", or None), or whole
            key/value groups ("whole"), or single heads where all share one group (multi-query).
        multiple_of: neurons that stay or go together, so that widths are multiples of it.

    Raises:
        PlanError: unknown grouping, or a multiple below one.
    """
    if grouping is not None and grouping not in get_args(Grouping):
        raise PlanError(f"grouping is {grouping!r}; use one of {', '.join(get_args(Grouping))}.")
    if isinstance(multiple_of, bool) or not isinstance(multiple_of, int) or multiple_of < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PlanError(f"multiple_of is {multiple_of!r}; widths are multiples of a whole number from 1.")
    found: list[SiteItems] = []
    places: tuple[tuple[Kind, tuple[SiteShape, ...], int], ...] = (
        ("heads", scores.model.sites, 0),
        ("neurons", scores.model.feed_forwards, len(scores.model.sites)),
    )
    for kind, sites, first in places:
        if kind not in kinds:
            continue
        rows = scores.scores_of(kind) if normalization is None else scores.normalized(normalization, kind)
        for number, (site, row, kept) in enumerate(zip(sites, rows, scores.kept_of(kind), strict=True)):
            values = row.numpy()
            items = _bundle(site, kept, values, grouping, multiple_of)
            of_unit = dict(zip(kept, values.tolist(), strict=True))
            found.append(
                SiteItems(
                    site=first + number,
                    kind=kind,
                    items=tuple(items),
                    values=np.array([sum(of_unit[unit] for unit in item) for item in items], dtype=np.float64),
                    groups=_needed_groups(site, items),
                )
            )
    return found


def _bundle(
    site: SiteShape, kept: Sequence[int], values: Floats, grouping: Grouping | None, multiple_of: int
) -> list[tuple[int, ...]]:
    """Units that stay or go together, most important first; of equal ones the lower number."""
    ranked = [kept[index] for index in np.argsort(-values, kind="stable").tolist()]
    if site.kind == "neurons":
        return [tuple(sorted(ranked[start : start + multiple_of])) for start in range(0, len(ranked), multiple_of)]
    if site.group_size == 1:
        return [(unit,) for unit in ranked]
    by_group: dict[int, list[int]] = {}
    for unit in ranked:
        by_group.setdefault(unit // site.group_size, []).append(unit)
    if grouping != "whole" or site.groups == 1:
        return [tuple(sorted(slice_)) for slice_ in zip(*by_group.values(), strict=True)]
    of_unit = dict(zip(kept, values.tolist(), strict=True))
    whole = sorted(by_group.items(), key=lambda group: (-sum(of_unit[unit] for unit in group[1]), group[0]))
    return [tuple(sorted(units)) for _, units in whole]


def _needed_groups(site: SiteShape, items: Sequence[Sequence[int]]) -> tuple[int, ...]:
    if site.group_size == 1:
        return tuple(np.cumsum([0, *(len(item) for item in items)]).tolist())
    seen, needed = set[int](), [0]
    for item in items:
        seen |= {unit // site.group_size for unit in item}
        needed.append(len(seen))
    return tuple(needed)
