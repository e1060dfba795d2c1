"""`pruning-adapter evaluate`: quality and cost of the merged model."""

from pathlib import Path

from pruning_adapter.cli import options as o
from pruning_adapter.cli.session import open_run, prepare_libraries

__all__ = ["evaluate"]


def evaluate(
    output_dir: o.OutputDir = Path("run"),
    overwrite: o.Overwrite = False,
    threads: o.Threads = None,
    verbose: o.Verbose = False,
) -> None:
    """Measure quality and cost of merged/ as it loads from disk; writes result.json."""
    from pruning_adapter.cli import show

    prepare_libraries(threads=threads, verbose=verbose)
    show.result(open_run(output_dir, {}, step="evaluate", overwrite=overwrite).evaluate())
