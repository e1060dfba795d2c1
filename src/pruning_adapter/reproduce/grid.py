"""Running the cells of a grid: those that are done are skipped, so it goes on after any interruption.

OUT/cells/<recipe>-<task>-<arm>-<seed>.json    what a cell measured
OUT/work                                       runs that are not done yet
"""

import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from pruning_adapter.errors import CheckpointError, OutputError, TrainingError
from pruning_adapter.reproduce.cells import Cell
from pruning_adapter.reproduce.work_folder import alike_of, remove_shared, work_in
from pruning_adapter.settings import Settings
from pruning_adapter.storage import read_json, replace_folder, write_json

__all__ = ["Done", "Progress", "check_recipes", "load_cells", "run_cells", "set_up_job"]

KIND = "pruning-adapter cell"


@dataclass(frozen=True, kw_only=True)
class Done:
    """What one cell measured."""

    cell: Cell
    result: dict[str, Any]
    """As `Result` saves it."""
    predictions: dict[str, list[float]]
    """By validation set, one for every example."""
    labels: dict[str, list[float]]
    """Likewise."""
    seconds: float
    """The whole run took; with other cells beside it, it says little."""

    @property
    def primary(self) -> str:
        """The validation set that the task is judged by."""
        return next(iter(self.result["quality"]))

    @property
    def quality(self) -> dict[str, Any]:
        """What was measured on it, as `Quality` saves it."""
        return self.result["quality"][self.primary]

    @property
    def value(self) -> float:
        """The primary metric on it, as a share."""
        return float(next(iter(self.quality["metrics"].values()))["value"])


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a grid stands when a cell is done."""

    done: Done
    count: int
    of: int
    seconds_left: float
    """Estimated from the cells of the same task that are done, or of all tasks."""


def load_cells(folder: Path, cells: Sequence[Cell] | None = None) -> list[Done]:
    """Those of `cells` that are done; by default all that lie there.

    Raises:
        CheckpointError: a damaged file.
    """
    if cells is None:
        # What begins with a dot is a file that another process is writing.
        return [_load(path) for path in sorted((folder / "cells").glob("[!.]*.json"))]
    found: list[Done] = []
    for cell in cells:
        path = _file(folder, cell)
        if path.exists():
            done = _load(path)
            if done.cell != cell:
                raise CheckpointError(
                    f"{path} holds another cell than its name says, or with other settings. Remove it."
                )
            found.append(done)
    return found


def _load(path: Path) -> Done:
    content = read_json(path, kind=KIND)
    try:
        return Done(
            cell=Cell.from_json(content["cell"]),
            result=content["result"],
            predictions=content["predictions"],
            labels=content["labels"],
            seconds=float(content["seconds"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a complete cell: {error!r}. Remove it to run it again.") from error


def check_recipes(cells: Sequence[Done], base: Settings) -> None:
    """Refuse cells that followed another recipe of the same name, as an earlier release had it.

    Raises:
        CheckpointError: which cell, and what differs.
    """
    for done in cells:
        settings, told = done.cell.settings(base), done.result["recipe"]
        recipe = settings.followed.to_json()
        expected = {**recipe, "learning_rate": recipe["learning_rate"][settings.method]}
        prunes = settings.method == "prune-lora"
        expected["prune_after"] = settings.chosen("prune_after") if prunes else told.get("prune_after")
        for name, value in expected.items():
            if name in told and told[name] != value:
                raise CheckpointError(
                    f"The cell {done.cell.name} was run with {name} {told[name]!r}; the recipe {settings.recipe!r} now "
                    f"has {value!r}. Name another folder, or remove the cell to run it again."
                )


def run_cells(
    folder: Path,
    cells: Sequence[Cell],
    base: Settings,
    *,
    jobs: int = 1,
    prepare: Callable[[], None] | None = None,
) -> Iterator[Progress]:
    """Run those of `cells` that are not done, and tell of each when it is.

    Args:
        folder: where their files lie.
        cells: the grid.
        base: the settings that all share.
        jobs: cells at once, each in a process of its own; more than 1 only where there is room for their models.
        prepare: what each job's process does first, such as setting its number of threads.

    Raises:
        CheckpointError: cells that are done followed another recipe of the same name, or are of another model.
        What a run raises; cells that are done stay.
    """
    known = load_cells(folder, cells)
    check_recipes(known, base)
    if len(known) < len(cells):
        _check_model(folder, base)
    finished = {done.cell for done in known}
    todo = [cell for cell in cells if cell not in finished]
    times = {done.cell.name: (done.cell, done.seconds) for done in known}
    for count, done in enumerate(_each(folder, todo, base, jobs, prepare), 1):
        times[done.cell.name] = (done.cell, done.seconds)
        ran = {cell for cell, _ in times.values()}
        left = sum(_expected(cell, list(times.values())) for cell in todo if cell not in ran) / max(jobs, 1)
        yield Progress(done=done, count=len(known) + count, of=len(cells), seconds_left=left)
    remove_shared(folder / "work")


def _check_model(folder: Path, base: Settings) -> None:
    """Refuse to go on with another model of the same name: tables would mix the two.

    Raises:
        CheckpointError: a cell that was run with another one.
    """
    from pruning_adapter.architectures.identity import identify
    from pruning_adapter.training.base_model import load_base

    done = load_cells(folder)
    if not done:
        return
    # What it is told by does not depend on the task's head.
    model = load_base(base.model, label_names=(), seed=base.seed, revision=base.revision).model
    now = identify(model).fingerprint
    for each in done:
        if each.result["model"]["fingerprint"] != now:
            raise CheckpointError(
                f"The cell {each.cell.name} was run with another model than {base.model}, though both are called "
                f"{base.model_id}. Name another folder."
            )


def _each(
    folder: Path, todo: Sequence[Cell], base: Settings, jobs: int, prepare: Callable[[], None] | None
) -> Iterator[Done]:
    if jobs <= 1:
        for cell in todo:
            yield run_cell(folder, cell, base)
        return
    # Spawned, because CUDA does not survive a fork.
    context = multiprocessing.get_context("spawn")
    enough = context.Event()
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=set_up_job, initargs=(prepare, enough)) as pool:
        running = [pool.submit(run_cell, folder, cell, base) for cell in todo]
        try:
            for future in as_completed(running):
                yield future.result()
        except BrokenProcessPool as error:
            raise TrainingError(
                f"A cell's process died, most likely for want of memory: {jobs} run at once. Go on with fewer --jobs."
            ) from error
        except BaseException as error:
            # Those that have not begun must not.
            pool.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, Exception):
                # Nobody waits for the others either; a cell goes on from where it stood.
                enough.set()
            raise


def run_cell(folder: Path, cell: Cell, base: Settings) -> Done:
    """One whole run; its file is written when all is done. Two processes never run the same: the second waits."""
    work = folder / "work" / cell.name
    with work_in(work, alike_of(cell.settings(base), taught=cell.taught)):
        # Another process may have been at it.
        known = load_cells(folder, [cell])
        return known[0] if known else _run_cell(folder, cell, base, work)


def _run_cell(folder: Path, cell: Cell, base: Settings, work: Path) -> Done:
    from pruning_adapter.pipeline import Run

    began = time.monotonic()
    settings = cell.settings(base)
    if cell.taught:
        settings = replace(settings, teacher=str(_teacher(folder, cell, base)))
    run = Run(settings, work)
    if run.prune_after:
        _share_start(folder, run)
    run.train()
    # Cost is measured side by side, not with other cells in between.
    result = run.evaluate(compare=False)
    said = read_json(work / "predictions.json", kind="pruning-adapter predictions")
    done = Done(
        cell=cell,
        result=asdict(result),
        predictions=said["predictions"],
        labels=said["labels"],
        seconds=time.monotonic() - began,
    )
    write_json(_file(folder, cell), {"kind": KIND, **asdict(done)})
    return done


def _teacher(folder: Path, cell: Cell, base: Settings) -> Path:
    """Train the dense LoRA model of the cell's recipe, task and seed, or take it from a cell that did."""
    from pruning_adapter.pipeline import Run

    like = Cell(recipe=cell.recipe, task=cell.task, arm="lora", seed=cell.seed)
    work = folder / "work" / "teachers" / like.name
    with work_in(work, alike_of(like.settings(base)), keep=True):
        run = Run(like.settings(base), work)
        run.train()
        run.merge()
    return work / "merged"


def _share_start(folder: Path, run: Any) -> None:
    """Train what is pruned, or take it from a cell that began alike."""
    shared = folder / "work" / "starts" / alike_of(run.settings, until_start=True)
    if shared.exists() and not (run.folder / "start").exists():
        # Another call of this grid may take it away meanwhile; then this one trains it.
        with suppress(OSError, OutputError), replace_folder(run.folder / "start") as aside:
            shutil.copytree(shared, aside, dirs_exist_ok=True)
    run.load_start()
    if not shared.exists():
        with suppress(OSError, OutputError), replace_folder(shared) as aside:
            shutil.copytree(run.folder / "start", aside, dirs_exist_ok=True)


def _expected(cell: Cell, times: Sequence[tuple[Cell, float]]) -> float:
    for same in (
        [
            seconds
            for other, seconds in times
            if (other.recipe, other.task, other.arm) == (cell.recipe, cell.task, cell.arm)
        ],
        [seconds for other, seconds in times if (other.recipe, other.task) == (cell.recipe, cell.task)],
        [seconds for _, seconds in times],
    ):
        if same:
            return sum(same) / len(same)
    return 0.0


def _file(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.name}.json"


def set_up_job(prepare: Callable[[], None] | None, enough: Event) -> None:
    """What a job's process does before its first cell; it ends as soon as `enough` is set."""
    threading.Thread(target=_leave_with, args=(os.getppid(), enough), daemon=True).start()
    # Tokenizers would start threads in every process.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if prepare is not None:
        prepare()


def _leave_with(parent: int, enough: Event) -> None:
    """End this process when its parent is gone, however that ended, or says so: nobody would read what it finds."""
    while os.getppid() == parent and not enough.wait(1):
        pass
    os._exit(1)
