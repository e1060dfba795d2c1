"""`pruning-adapter report`: the page."""

from pathlib import Path

from pruning_adapter.cli import options as o
from pruning_adapter.cli.session import leave_it_to_the_first

__all__ = ["report"]


def report(output_dir: o.OutputDir = Path("run")) -> None:
    """Write report.html, one self-contained page, from result.json, and the model cards of merged/ and adapter/."""
    from pruning_adapter.cli import show
    from pruning_adapter.evaluation.result import Result
    from pruning_adapter.reporting import write_cards, write_report

    leave_it_to_the_first()
    path, result = output_dir / "report.html", Result.load(output_dir / "result.json")
    write_report(result, path)
    write_cards(result, output_dir)
    show.step(f"Report: {path}")
