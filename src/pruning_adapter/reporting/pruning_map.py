"""What was pruned, as a picture: the importance map with pruned heads crossed out, and how many neurons stayed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pruning_adapter.errors import ImportanceError
from pruning_adapter.importance.figure import add_map, add_scale, draw_importance, figure_file, number_blocks
from pruning_adapter.reporting.wording import row_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_pruning"]

KEPT, GONE = "#355f8d", "#dcdcdc"


def draw_pruning(pruning: Mapping[str, Any], path: str | Path) -> None:
    """Draw a result's `pruning` into `path`: heads, neurons, or both side by side with one row a block.

    The same arguments give the same bytes.

    Raises:
        ImportanceError: neither heads nor neurons to draw.
        OutputError: as `draw_importance`.
    """
    heads = [[math.nan if value is None else float(value) for value in row] for row in pruning.get("importance") or ()]
    kept = [list(row) for row in pruning.get("kept_heads") or ()]
    neurons = _shares(pruning)
    if heads and not neurons:
        draw_importance(heads, path, kept=kept, row=row_name(pruning))
        return
    rows = max(len(heads), len(neurons))
    if not rows:
        raise ImportanceError("There is nothing to draw: neither heads nor neurons were scored or pruned.")
    cell, width = min(0.36, 9 / rows), max((len(row) for row in heads), default=0)
    widths = [*([max(width * cell, 2.0)] if heads else []), 2.8]
    size = (sum(widths) + 1.4 * len(widths) + 0.5, max(rows * cell, 2.0) + 0.9)
    with figure_file(path, size=size) as figure:
        panels = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
        if heads:
            mesh = add_map(panels[0], heads, kept=kept, row=row_name(pruning))
            add_scale(mesh, panels[0], shrink=0.9)
        _add_bars(panels[-1], neurons, rows)
        panels[-1].set_ylabel(row_name(pruning), fontsize=9)


def _shares(pruning: Mapping[str, Any]) -> dict[int, tuple[int, int]]:
    """By row of the map, the neurons that are left and those that there were; nothing where none went."""
    kept = cast("Sequence[int]", pruning.get("neurons_kept") or ())
    dense = cast("Sequence[int]", pruning.get("dense_neurons") or ())
    if list(kept) == list(dense):
        return {}
    rows = cast("Sequence[int]", pruning.get("beside") or range(len(kept)))
    return {row: (left, of) for row, left, of in zip(rows, kept, dense, strict=False)}


def _add_bars(axes: Axes, neurons: Mapping[int, tuple[int, int]], rows: int) -> None:
    places = [row + 0.5 for row in neurons]
    widest = max(of for _, of in neurons.values())
    axes.barh(places, [of for _, of in neurons.values()], height=0.72, color=GONE)
    axes.barh(places, [left for left, _ in neurons.values()], height=0.72, color=KEPT)
    for place, (left, _) in zip(places, neurons.values(), strict=True):
        axes.text(1.03 * widest, place, str(left), va="center", fontsize=8)
    axes.set_xlim(0, 1.2 * widest)
    axes.set_ylim(rows, 0)
    number_blocks(axes, rows)
    axes.set_xticks([0, widest], ["0", str(widest)])
    axes.set_xlabel("neurons kept", fontsize=9)
