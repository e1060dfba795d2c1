"""A sweep of budgets as curves, PNG or SVG."""

from pathlib import Path

from pruning_adapter.importance.figure import figure_file
from pruning_adapter.planning.sweep import Sweep

__all__ = ["draw_sweep"]

# Okabe and Ito's colours, which are safe for colour-blind readers; line styles tell them apart without colour.
STYLES = {
    "importance": ("#000000", "-"),
    "heads": ("#0072b2", "--"),
    "neurons": ("#d55e00", "-."),
    "parameters": ("#009e73", ":"),
    "MACs": ("#cc79a7", (0, (5, 1, 1, 1, 1, 1))),
}


def draw_sweep(sweep: Sweep, path: str | Path) -> None:
    """Draw what every budget keeps, as shares of the dense model, into `path`. The same sweep gives the same bytes.

    Raises:
        OutputError: `path` ends in neither .png nor .svg, matplotlib is missing, or the file cannot be written.
    """
    dense = sweep.dense
    curves: dict[str, list[float]] = {
        "importance": [point.importance for point in sweep.points],
        "heads": [point.heads / (dense.heads or 1) for point in sweep.points],
        "neurons": [point.neurons / (dense.neurons or 1) for point in sweep.points],
        "parameters": [point.parameters / (dense.parameters or 1) for point in sweep.points],
        "MACs": [(point.macs or 0) / (dense.macs or 1) for point in sweep.points],
    }
    # What the budget is counted in would be a straight line.
    del curves["MACs" if sweep.by == "macs" or dense.macs is None else "parameters"]
    what = f"multiply-accumulates at {sweep.length} tokens" if sweep.by == "macs" else "parameters"
    with figure_file(path, size=(6.4, 4.4)) as figure:
        axes = figure.add_subplot()
        for name, shares in curves.items():
            color, style = STYLES[name]
            axes.plot([point.budget for point in sweep.points], shares, color=color, linestyle=style, label=name)
        axes.set_xlabel(f"budget: share of {what}", fontsize=9)
        axes.set_ylabel("share that is kept", fontsize=9)
        axes.set_ylim(0, 1.02)
        axes.tick_params(labelsize=8)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
