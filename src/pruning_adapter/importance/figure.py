"""Importance as a picture, PNG or SVG: the block x head map of the paper's Figure 1, and profiles of neurons."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning_adapter.errors import ImportanceError, OutputError
from pruning_adapter.storage import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

__all__ = [
    "add_map",
    "add_scale",
    "draw_importance",
    "draw_profiles",
    "draw_side_by_side",
    "figure_file",
    "number_blocks",
]

# Empty metadata keeps the bytes the same from day to day.
METADATA: dict[str, dict[str, Any]] = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}
MAX_TICKS = 16
QUANTILES = 100
"""Columns of a profile; a feed-forward has thousands of neurons."""


def draw_importance(
    rows: Sequence[Sequence[float]],
    path: str | Path,
    *,
    kept: Sequence[Sequence[int]] | None = None,
    title: str = "",
    row: str = "block",
) -> None:
    """Draw `rows` (blocks x heads, each value in [0, 1]) into `path`; blocks may differ in their number of heads.

    `row` is what they are called.

    The same arguments give the same bytes. Heads that are not among the `kept` (indices per block) are crossed out. A
    value that is not a number stays blank.

    Raises:
        ImportanceError: there are no heads to draw, or `kept` is not about the same blocks and heads.
        OutputError: `path` ends in neither .png nor .svg, matplotlib is missing, or the file cannot be written.
    """
    heads = max((len(row) for row in rows), default=0)
    if not heads:
        raise ImportanceError("There is no head to draw: the importance has no block with a head.")
    if kept is not None:
        _check_kept(rows, kept)
    cell = min(0.36, 9 / max(heads, len(rows)))  # inches; a large model stays within one page
    size = (max(heads * cell, 2.0) + 1.9, max(len(rows) * cell, 2.0) + (1.2 if title else 0.9))
    with figure_file(path, size=size, title=title) as figure:
        axes = figure.add_subplot()
        mesh = add_map(axes, rows, kept=kept, row=row)
        add_scale(mesh, axes, shrink=0.5 if len(rows) > 1.5 * heads else 0.9)


def add_map(
    axes: Axes, rows: Sequence[Sequence[float]], *, kept: Sequence[Sequence[int]] | None = None, row: str = "block"
) -> ScalarMappable:
    """The block x head map of `draw_importance` on axes that are there already; returns what a colour scale is of."""
    mesh = _mesh(axes, rows, max(len(row) for row in rows))
    if kept is not None:
        _cross_out(axes, rows, kept)
    axes.set_ylabel(row, fontsize=9)
    return mesh


def draw_profiles(rows: Sequence[Sequence[float]], path: str | Path, *, title: str = "") -> None:
    """Draw the importance of neurons into `path`, a row a feed-forward: sorted, most important first, by quantile.

    Values lie in [0, 1]. A feed-forward without neurons stays blank. The same arguments give the same bytes.

    Raises:
        ImportanceError: there are no neurons to draw.
        OutputError: as `draw_importance`.
    """
    if not any(len(row) for row in rows):
        raise ImportanceError("There is no neuron to draw: the importance has no feed-forward with a neuron.")
    with figure_file(path, size=(6.4, max(min(0.3, 9 / len(rows)) * len(rows), 2.0) + 1.2), title=title) as figure:
        from matplotlib.colors import PowerNorm

        axes = figure.add_subplot()
        profiles = [_profile(row) for row in rows]
        # Few neurons hold most of the importance; its root shows what the others still have.
        mesh = axes.pcolormesh(profiles, cmap="viridis", norm=PowerNorm(0.5, vmin=0, vmax=1), rasterized=True)
        axes.invert_yaxis()
        axes.set_xticks(range(0, QUANTILES + 1, 20), [f"{share}%" for share in range(0, QUANTILES + 1, 20)])
        number_blocks(axes, len(rows))
        axes.set_xlabel("neurons of the block, most important first", fontsize=9)
        add_scale(mesh, axes, shrink=0.9)


def draw_side_by_side(maps: Mapping[str, Sequence[Sequence[float]]], path: str | Path, *, columns: int = 3) -> None:
    """Draw one block x head map for each name into `path`, all on one scale, as the paper's Figure 1 does.

    Values lie in [0, 1]. The same arguments give the same bytes.

    Raises:
        ImportanceError: there are no heads to draw.
        OutputError: as `draw_importance`.
    """
    heads = max((len(row) for rows in maps.values() for row in rows), default=0)
    if not heads:
        raise ImportanceError("There is no head to draw: no map has a block with a head.")
    blocks = max(len(rows) for rows in maps.values())
    across = min(columns, len(maps))
    down = -(-len(maps) // across)
    cell = min(0.22, 3.2 / max(heads, blocks))
    size = (across * (heads * cell + 0.7) + 0.9, down * (blocks * cell + 0.85))
    with figure_file(path, size=size) as figure:
        grid = figure.subplots(down, across, squeeze=False)
        places = [axes for row in grid for axes in row]
        for axes in places[len(maps) :]:
            axes.remove()
        meshes: list[ScalarMappable] = []
        for axes, (name, rows) in zip(places, maps.items(), strict=False):
            meshes.append(_mesh(axes, rows, heads))
            axes.set_title(name, fontsize=9)
        bar = figure.colorbar(meshes[0], ax=places[: len(maps)], shrink=0.9 / down + 0.1, aspect=24)
        _name_scale(bar)


def _profile(row: Sequence[float]) -> list[float]:
    """The value at the middle of every quantile, the highest first."""
    ranked = sorted(row, reverse=True)
    return [
        ranked[int((column + 0.5) / QUANTILES * len(ranked))] if ranked else math.nan for column in range(QUANTILES)
    ]


@contextmanager
def figure_file(path: str | Path, *, size: tuple[float, float], title: str = "") -> Generator[Figure]:
    """An empty figure of `size` inches, written to `path` at the end. The same figure gives the same bytes.

    Raises:
        OutputError: `path` ends in neither .png nor .svg, matplotlib is missing, or the file cannot be written.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in METADATA:
        raise OutputError(
            f"Cannot draw {target}: the figure is a .png or a .svg, and {suffix or 'no suffix'!r} is neither."
        )
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OutputError(
            f'Cannot draw {target}: matplotlib is not installed. Install it with: pip install "pruning-adapter[report]"'
        ) from error
    # Identifiers inside an SVG are random unless salted, and the salt can be given in no other way.
    with matplotlib.rc_context({"svg.hashsalt": "pruning-adapter"}):
        figure = Figure(figsize=size, dpi=160, layout="constrained")
        canvas = FigureCanvasAgg(figure) if suffix == ".png" else FigureCanvasSVG(figure)
        if title:
            figure.suptitle(title, fontsize=11, wrap=True)
        yield figure
        with replace_file(target) as aside:
            canvas.print_figure(str(aside), format=suffix[1:], metadata=METADATA[suffix])


def _check_kept(rows: Sequence[Sequence[float]], kept: Sequence[Sequence[int]]) -> None:
    if len(kept) != len(rows):
        raise ImportanceError(f"Kept heads are given for {len(kept)} blocks, importance for {len(rows)}.")
    for block, (row, heads) in enumerate(zip(rows, kept, strict=True)):
        unknown = sorted(head for head in heads if not 0 <= head < len(row))
        if unknown:
            raise ImportanceError(f"Kept heads {unknown} do not exist in block {block}, which has {len(row)} heads.")


def _mesh(axes: Axes, rows: Sequence[Sequence[float]], heads: int) -> ScalarMappable:
    from matplotlib.ticker import FixedLocator

    padded = [[*row, *[math.nan] * (heads - len(row))] for row in rows]
    # A mesh, not an image: in an SVG each head is then a shape of its own, sharp at any size.
    mesh = axes.pcolormesh(padded, cmap="viridis", vmin=0, vmax=1, edgecolors="white", linewidth=0.8)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(FixedLocator([head + 0.5 for head in range(0, heads, _stride(heads))]))
    axes.xaxis.set_major_formatter(lambda place, _: f"{place - 0.5:.0f}")
    number_blocks(axes, len(rows))
    axes.set_xlabel("head", fontsize=9)
    return mesh


def number_blocks(axes: Axes, blocks: int) -> None:
    """A tick for each row of a map, named by the block's number."""
    from matplotlib.ticker import FixedLocator

    axes.yaxis.set_major_locator(FixedLocator([block + 0.5 for block in range(0, blocks, _stride(blocks))]))
    axes.yaxis.set_major_formatter(lambda place, _: f"{place - 0.5:.0f}")
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("block", fontsize=9)


def add_scale(mesh: ScalarMappable, axes: Axes, *, shrink: float) -> None:
    """The colour scale of a map, beside it."""
    _name_scale(axes.figure.colorbar(mesh, ax=axes, shrink=shrink, aspect=24))


def _name_scale(bar: Any) -> None:
    bar.set_label("normalised importance", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


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
