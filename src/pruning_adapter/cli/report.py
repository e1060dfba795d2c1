"""`pruning-adapter report`: the page."""

from pathlib import Path

from pruning_adapter.cli import options as o

__all__ = ["report"]


def report(output_dir: o.OutputDir = Path("run")) -> None:
    """Write report.html, one self-contained page, from result.json."""
    from pruning_adapter.cli import show
    from pruning_adapter.evaluation.result import Result
    from pruning_adapter.reporting import write_report

    path = output_dir / "report.html"
    write_report(Result.load(output_dir / "result.json"), path)
    show.step(f"Report: {path}")
