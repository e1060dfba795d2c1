"""The block x head map of importance, Figure 1 of the paper, as PNG or SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning_adapter.errors import ImportanceError, OutputError
from pruning_adapter.storage import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_importance"]

# Empty metadata keeps the bytes the same from day to day.
METADATA: dict[str, dict[str, Any]] = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}
MAX_TICKS = 16


def draw_importance(
    rows: Sequence[Sequence[float]],
    path: str | Path,
    *,
    kept: Sequence[Sequence[int]] | None = None,
    title: str = "",
) -> None:
    """Draw `rows` (blocks x heads, each value in [0, 1]) into `path`; blocks may differ in their number of heads.

    The same arguments give the same bytes. Heads that are not among the `kept` (indices per block) are crossed out. A
    value that is not a number stays blank.

    Raises:
        ImportanceError: there are no heads to draw, or `kept` is not about the same blocks and heads.
        OutputError: `path` ends in neither .png nor .svg, matplotlib is missing, or the file cannot be written.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in METADATA:
        raise OutputError(
            f"Cannot draw {target}: the figure is a .png or a .svg, and {suffix or 'no suffix'!r} is neither."
        )
    heads = max((len(row) for row in rows), default=0)
    if not heads:
        raise ImportanceError("There is no head to draw: the importance has no block with a head.")
    if kept is not None:
        _check_kept(rows, kept)
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OutputError(
            f'Cannot draw {target}: matplotlib is not installed. Install it with: pip install "pruning-adapter[report]"'
        ) from error

    cell = min(0.36, 9 / max(heads, len(rows)))  # inches; a large model stays within one page
    size = (max(heads * cell, 2.0) + 1.9, max(len(rows) * cell, 2.0) + (1.2 if title else 0.9))
    # Identifiers inside an SVG are random unless salted, and the salt can be given in no other way.
    with matplotlib.rc_context({"svg.hashsalt": "pruning-adapter"}):
        figure = Figure(figsize=size, dpi=160, layout="constrained")
        canvas = FigureCanvasAgg(figure) if suffix == ".png" else FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        _fill(axes, rows, heads)
        if kept is not None:
            _cross_out(axes, rows, kept)
        if title:
            figure.suptitle(title, fontsize=11, wrap=True)
        with replace_file(target) as aside:
            canvas.print_figure(str(aside), format=suffix[1:], metadata=METADATA[suffix])


def _check_kept(rows: Sequence[Sequence[float]], kept: Sequence[Sequence[int]]) -> None:
    if len(kept) != len(rows):
        raise ImportanceError(f"Kept heads are given for {len(kept)} blocks, importance for {len(rows)}.")
    for block, (row, heads) in enumerate(zip(rows, kept, strict=True)):
        unknown = sorted(head for head in heads if not 0 <= head < len(row))
        if unknown:
            raise ImportanceError(f"Kept heads {unknown} do not exist in block {block}, which has {len(row)} heads.")


def _fill(axes: Axes, rows: Sequence[Sequence[float]], heads: int) -> None:
    from matplotlib.ticker import FixedLocator

    padded = [[*row, *[math.nan] * (heads - len(row))] for row in rows]
    # A mesh, not an image: in an SVG each head is then a shape of its own, sharp at any size.
    mesh = axes.pcolormesh(padded, cmap="viridis", vmin=0, vmax=1, edgecolors="white", linewidth=0.8)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(FixedLocator([head + 0.5 for head in range(0, heads, _stride(heads))]))
    axes.yaxis.set_major_locator(FixedLocator([block + 0.5 for block in range(0, len(rows), _stride(len(rows)))]))
    axes.xaxis.set_major_formatter(lambda place, _: f"{place - 0.5:.0f}")
    axes.yaxis.set_major_formatter(lambda place, _: f"{place - 0.5:.0f}")
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("head", fontsize=9)
    axes.set_ylabel("block", fontsize=9)
    bar = axes.figure.colorbar(mesh, ax=axes, shrink=0.5 if len(rows) > 1.5 * heads else 0.9, aspect=24)
    bar.set_label("normalised importance", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]


def _cross_out(axes: Axes, rows: Sequence[Sequence[float]], kept: Sequence[Sequence[int]]) -> None:
    from matplotlib.collections import LineCollection

    near, far = 0.24, 0.76
    for dark in (True, False):
        pruned = [
            (head, block)
            for block, row in enumerate(rows)
            for head, value in enumerate(row)
            if head not in kept[block] and (value < 0.5) is dark
        ]
        lines = [
            [(x + near, y + start), (x + far, y + end)] for x, y in pruned for start, end in ((near, far), (far, near))
        ]
        axes.add_collection(LineCollection(lines, colors="white" if dark else "black", linewidths=1.2))


def _stride(count: int) -> int:
    return next(step for step in (1, 2, 4, 8, 16, 32, count) if count <= step * MAX_TICKS)
