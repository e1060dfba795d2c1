"""`pruning-adapter merge`: the stand-alone model."""

from pathlib import Path

from pruning_adapter.cli import options as o
from pruning_adapter.cli.session import open_run, prepare_libraries

__all__ = ["merge"]


def merge(
    output_dir: o.OutputDir = Path("run"),
    overwrite: o.Overwrite = False,
    threads: o.Threads = None,
    verbose: o.Verbose = False,
) -> None:
    """Merge adapter/ into a smaller stand-alone model; writes merged/, with its tokenizer."""
    from pruning_adapter.cli import show

    prepare_libraries(threads=threads, verbose=verbose)
    open_run(output_dir, {}, step="merge", overwrite=overwrite).merge()
    show.step(f"Merged: {output_dir / 'merged'}")
