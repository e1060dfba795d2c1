"""`pruning-adapter plan`: what goes, and at which rank the rest trains. Touches no weight."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pruning_adapter.cli import options as o
from pruning_adapter.cli.session import open_run, prepare_libraries, read_run

__all__ = ["plan"]


def plan(
    units: o.Units = None,
    preset: o.Preset = None,
    keep_heads: o.KeepHeads = None,
    keep_ratio: o.KeepRatio = None,
    threshold: o.Threshold = None,
    keep_params: o.KeepParams = None,
    keep_macs: o.KeepMacs = None,
    keep_bytes: o.KeepBytes = None,
    keep_latency: o.KeepLatency = None,
    length: o.Length = None,
    dtype: o.Dtype = None,
    latency_table: o.LatencyTable = None,
    multiple_of: o.MultipleOf = None,
    grouping: o.Grouping = None,
    normalization: o.Normalization = None,
    allow_empty_blocks: o.AllowEmptyBlocks = None,
    reconstruct: o.Reconstruct = None,
    target: o.Target = None,
    top_blocks: o.TopBlocks = None,
    high_rank: o.HighRank = None,
    low_rank: o.LowRank = None,
    rank_budget: o.RankBudget = None,
    output_dir: o.OutputDir = Path("run"),
    sweep: Annotated[bool, typer.Option("--sweep", help="Try 20 budgets; writes sweep.json and a figure.")] = False,
    by: Annotated[str, typer.Option(help="What --sweep budgets: macs or params.")] = "macs",
    figure: Annotated[
        Path | None, typer.Option(help="Where --sweep draws, as PNG or SVG. \\[sweep.png in the run's folder]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print, write nothing.")] = False,
    overwrite: o.Overwrite = False,
    threads: o.Threads = None,
    verbose: o.Verbose = False,
) -> None:
    """Decide what is removed, from importance.json; writes plan.json and ranks.json. Touches no weight.

    With --sweep no plan is made: it shows what each of 20 budgets would keep, to choose one by.
    """
    given = {
        name: value
        for name, value in locals().items()
        if name not in ("output_dir", "sweep", "by", "figure", "dry_run", "overwrite", "threads", "verbose")
    }
    from pruning_adapter.cli import show

    prepare_libraries(threads=threads, verbose=verbose)
    if sweep:
        _sweep(output_dir, given, by=by, figure=figure, dry_run=dry_run)
        return
    if dry_run:
        run = read_run(output_dir, given)
        run.check_inputs("plan")
        made = run.decide()
    else:
        made = open_run(output_dir, given, step="plan", overwrite=overwrite).plan()
    show.value("Plan", f"{made[0]}\n{made[1]}")


def _sweep(folder: Path, given: dict[str, Any], *, by: str, figure: Path | None, dry_run: bool) -> None:
    from pruning_adapter.cli import show
    from pruning_adapter.errors import PlanError
    from pruning_adapter.settings import RULES

    rule = next((name for name in RULES if given[name] is not None), None)
    if rule is not None:
        raise PlanError(f"--sweep tries budgets of its own; leave out {rule}, or leave out --sweep to plan by it.")
    found = read_run(folder, given).sweep(by)
    show.value("Budgets", found)
    if dry_run:
        return
    from pruning_adapter.reporting.sweep_figure import draw_sweep

    found.save(folder / "sweep.json")
    draw_sweep(found, figure or folder / "sweep.png")
    show.step(f"Figure: {figure or folder / 'sweep.png'}")
