"""`pruning-adapter reproduce`: everything that the paper shows, on any encoder and GLUE."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pruning_adapter.cli import options as o
from pruning_adapter.cli.session import command_line, prepare_libraries
from pruning_adapter.errors import DataError, PruningAdapterError, TrainingError
from pruning_adapter.processes import started_together

__all__ = ["reproduce"]


def reproduce(
    model: o.ModelName = "google-bert/bert-base-uncased",
    model_name: Annotated[str | None, typer.Option(help="What to call it, if it is a folder. \\[its name]")] = None,
    revision: o.Revision = None,
    data_dir: o.DataDir = None,
    tasks: Annotated[str, typer.Option(help="GLUE tasks, with commas.")] = "mnli,mrpc,qnli,rte,sst2,wnli",
    methods: Annotated[
        str,
        typer.Option(help="full, lora, prune-lora, random, reversed, magnitude, uniform-rank, with commas. \\[all]"),
    ] = "full,lora,prune-lora,random,reversed,magnitude,uniform-rank",
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1,2",
    recipes: Annotated[str, typer.Option(help="default, paper, or both with a comma.")] = "default",
    train_rows: Annotated[int | None, typer.Option(help="Train on at most so many rows of each task.")] = None,
    epochs: o.Epochs = None,
    keep_ratio: o.KeepRatio = None,
    examples: o.Examples = None,
    bf16: o.Bf16 = None,
    jobs: Annotated[int, typer.Option(help="Cells at once, each in a process of its own.")] = 1,
    share: Annotated[
        str | None,
        typer.Option(help="K/N: run every N-th cell from the K-th (from 0) and nothing else; for many machines."),
    ] = None,
    only_report: Annotated[bool, typer.Option("--only-report", help="Run nothing; write what is there.")] = False,
    output_dir: o.OutputDir = Path("reproduction"),
    threads: o.Threads = None,
    verbose: o.Verbose = False,
) -> None:
    """Run the paper's comparison: task x method x seed; writes reproduction.md and report.html.

    Every cell is a file of its own. What is done is not done again, so the grid goes on after any interruption.
    """
    if started_together():
        raise TrainingError(
            "reproduce runs each cell in one process. Start it without torchrun or accelerate launch: more --jobs, or "
            "one call for each cell (docs/many-machines.md)."
        )
    prepare_libraries(threads=threads, verbose=verbose)
    from pruning_adapter.cli import show
    from pruning_adapter.reproduce.cells import make_cells, share_of
    from pruning_adapter.reproduce.grid import run_cells
    from pruning_adapter.reproduce.page import check_can_write
    from pruning_adapter.reproduce.study import begin_study, measure_beside, write_study
    from pruning_adapter.settings import Settings

    check_can_write()
    if share is not None and only_report:
        raise DataError("--share runs cells and writes no pages, --only-report the other way round; give one of them.")
    numbers = _list(seeds)
    if not all(number.isdecimal() for number in numbers):
        raise DataError(f"--seeds is {seeds!r}; give whole numbers, with commas.")
    cells = make_cells(
        recipes=_list(recipes), tasks=_list(tasks), arms=_list(methods), seeds=[int(number) for number in numbers]
    )
    base = Settings().changed(
        {
            "model": model,
            "model_name": model_name or (Path(model).name if model and Path(model).is_dir() else None),
            "revision": revision,
            "data_dir": None if data_dir is None else str(data_dir),
            "train_rows": train_rows,
            "epochs": epochs,
            "keep_ratio": keep_ratio,
            "examples": examples,
            "bf16": bf16,
        }
    )
    for cell in cells:
        cell.settings(base).check()
    cells = cells if share is None else share_of(cells, share)
    begin_study(output_dir, base)
    prepare = partial(prepare_libraries, threads=threads, verbose=verbose)
    if share is not None:
        for progress in run_cells(output_dir, cells, base, jobs=jobs, prepare=prepare):
            show.cell(progress)
        return
    try:
        if not only_report:
            for progress in run_cells(output_dir, cells, base, jobs=jobs, prepare=prepare):
                show.cell(progress)
            for what in measure_beside(output_dir, cells, base):
                show.step(what.capitalize())
    except BaseException:
        # Whatever ended it, what is done can be read.
        with suppress(PruningAdapterError):
            write_study(output_dir, cells, base, command=command_line())
        raise
    show.wrote(write_study(output_dir, cells, base, command=command_line()))


def _list(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]
