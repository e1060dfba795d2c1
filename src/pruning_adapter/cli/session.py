"""What every verb does before its work: quiet libraries, threads, and the run's folder with its settings."""

import logging
import os
import shlex
import sys
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pruning_adapter.errors import CheckpointError
from pruning_adapter.processes import (
    become_the_only_one,
    first_does,
    is_first,
    join,
    process_count,
    started_number,
    started_together,
)

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from pruning_adapter.pipeline import Run

_HELD: list["BaseFileLock"] = []

__all__ = [
    "begin_run",
    "command_line",
    "hold_folder",
    "leave_it_to_the_first",
    "open_run",
    "prepare_libraries",
    "read_run",
]


def prepare_libraries(*, threads: int | None, verbose: bool, shared: bool = False) -> None:
    """Set the number of threads, keep the libraries below from talking, and meet the other processes.

    Args:
        threads: of this process.
        verbose: let the libraries talk.
        shared: whether several processes do the work together; otherwise the first does it, and the others end here.
    """
    if not shared:
        leave_it_to_the_first()
    # Read when PyTorch is loaded: its profiler, which counts memory, reports every start and stop.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import torch
    import transformers

    if threads is not None:
        torch.set_num_threads(max(1, threads))
    join()
    if not is_first():
        # One process tells what all do; errors have a stream of their own.
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    told = logging.StreamHandler(sys.stdout)
    told.setFormatter(logging.Formatter("%(message)s"))
    ours = logging.getLogger("pruning_adapter")
    ours.handlers = [told]
    ours.setLevel(logging.INFO)
    if verbose:
        transformers.logging.set_verbosity_info()
        return
    transformers.logging.set_verbosity_error()
    # It says which of its kernels it lacks whenever PEFT looks for it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


def leave_it_to_the_first() -> None:
    """Of several processes that a launcher started, end all but the first, which goes on as if it were the only one."""
    if started_together():
        if started_number():
            raise typer.Exit
        become_the_only_one()


def begin_run(folder: Path, given: Mapping[str, Any], *, overwrite: bool, resume: bool) -> "Run":
    """A whole run in `folder`: new, or resumed with the same settings."""
    from pruning_adapter.pipeline import Run
    from pruning_adapter.run_folder import check_folder, check_links, remove_steps
    from pruning_adapter.settings import Settings

    settings, path = Settings().changed(_plain(given)), folder / "settings.json"
    work = Run(settings, folder, command=command_line())
    settings.check_used(given)
    check_folder(folder, overwrite=overwrite, resume=resume)
    first_does(partial(hold_folder, folder, only_if_there=True))
    if resume and path.exists():
        settings.check_same(Settings.load(path), folder)
    else:
        # An old run is taken away only for one that can begin.
        work.check_inputs("importance")
        first_does(work.check_rule)

    def begin() -> None:
        hold_folder(folder)
        if not resume:
            remove_steps(folder, "importance")
        check_links(folder)
        settings.save(path)

    first_does(begin)
    return work


def open_run(folder: Path, given: Mapping[str, Any], *, step: str, overwrite: bool) -> "Run":
    """The run in `folder`, about to do `step`; options that are given replace those it was begun with."""
    from pruning_adapter.pipeline import Run
    from pruning_adapter.run_folder import check_links, check_step, remove_steps
    from pruning_adapter.settings import Settings

    path = folder / "settings.json"
    if step not in ("importance", "train") and not path.exists():
        raise CheckpointError(f"{folder} holds no run; begin one with `pruning-adapter importance`.")
    before = Settings.load(path) if path.exists() else Settings()
    settings = before.with_rule(_plain(given))
    work = Run(settings, folder, command=command_line())
    first_does(partial(hold_folder, folder, only_if_there=True))
    check_step(folder, step, method=settings.method, overwrite=overwrite)
    half = {"importance": "start-checkpoints", "train": "checkpoints"}.get(step)
    if half is not None and not overwrite and (folder / half).exists():
        # An interrupted training goes on; by other settings it would be neither the one nor the other.
        settings.check_same(before, folder)
    # What a step replaces is taken away only for one that can begin.
    work.check_inputs(step)

    def begin() -> None:
        hold_folder(folder)
        if not overwrite:
            check_links(folder)
        settings.save(path)
        if overwrite:
            remove_steps(folder, step)

    first_does(begin)
    return work


def hold_folder(folder: Path, *, only_if_there: bool = False) -> None:
    """Hold the folder of this process's run, without what a killed one left half-written; let go of an earlier one's.

    Args:
        folder: made if it is not there.
        only_if_there: leave one alone that is not there yet.

    Raises:
        OutputError: another process works in it, or it cannot be written.
    """
    from pruning_adapter.run_folder import clear_leftovers, lock_folder

    while _HELD:
        _HELD.pop().release()
    # What is refused must not leave an empty folder.
    if folder.is_dir() or not only_if_there:
        _HELD.append(lock_folder(folder))
        clear_leftovers(folder)


def read_run(folder: Path, given: Mapping[str, Any]) -> "Run":
    """The run in `folder`, with the options that are given in place of its own; nothing of it changes."""
    from pruning_adapter.pipeline import Run
    from pruning_adapter.run_folder import check_needs
    from pruning_adapter.settings import Settings

    check_needs(folder, "plan")
    return Run(Settings.load(folder / "settings.json").with_rule(_plain(given)), folder)


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options as settings hold them: paths as text, column names apart; what was not given is None."""
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    columns = plain.get("text_columns")
    if columns is not None:
        plain["text_columns"] = tuple(name.strip() for name in columns.split(",") if name.strip())
    if not plain.get("demo"):
        plain.pop("demo", None)
    return plain


def command_line() -> str:
    """What was typed, for the record."""
    name = Path(sys.argv[0]).name
    typed = ["python", "-m", "pruning_adapter"] if name == "__main__.py" else [name]
    if process_count() > 1:
        typed = ["torchrun", "--nproc-per-node", str(process_count()), "-m", "pruning_adapter"]
    return shlex.join([*typed, *sys.argv[1:]])
