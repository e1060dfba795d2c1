"""The folder of a run: which files each step writes and reads, and what may be written or replaced."""

import logging
import time
from collections.abc import Collection
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from pruning_adapter.errors import CheckpointError, OutputError
from pruning_adapter.storage import remove_leftovers, stays_in, take_away

__all__ = [
    "BESIDE",
    "LOCK",
    "STEPS",
    "check_folder",
    "check_links",
    "check_needs",
    "check_step",
    "clear_leftovers",
    "lock_folder",
    "remove_steps",
]

_LOGGER = logging.getLogger(__name__)
LOCK = ".lock"
MEETINGS = 100
"""How often those who wait may find the folder gone before they give up."""
SETTINGS = "settings.json"
CARD = ("README.md", "pruning.png")

STEPS = {
    "importance": ("importance.json",),
    "plan": ("plan.json", "ranks.json"),
    "train": ("training.json", "adapter"),
    "merge": ("merged",),
    "evaluate": ("result.json", "predictions.json"),
    "report": ("report.html",),
}
"""What each step writes, in their order."""
BESIDE = {
    "importance": ("start", "start-checkpoints", "sweep.json", "sweep.png"),
    "plan": ("latency.json",),
    "train": ("base", "checkpoints", "logs"),
    "merge": ("model.onnx", "model-int8.onnx", "model.pt2", "stock", "uniform", "transformers4"),
    # The cards hold numbers of the result.
    "evaluate": tuple(f"{folder}/{file}" for folder in ("merged", "adapter") for file in CARD),
}
"""What came of a step on the way: it goes when the step is done anew, and keeps no step from being done."""
WRITTEN_INTO = ("start-checkpoints", "checkpoints", "logs")
"""Folders that are written file by file, not replaced as a whole."""
NEEDS = {
    "plan": ("importance.json", "importance"),
    "train": ("plan.json", "plan"),
    "merge": ("adapter", "train"),
    "evaluate": ("training.json", "train"),
    "push": ("result.json", "evaluate"),
}
"""What a step reads, and the step that writes it."""


def check_folder(folder: Path, *, overwrite: bool, resume: bool) -> None:
    """Make sure that a run may write into `folder`.

    Raises:
        OutputError: it exists and is not empty, and neither flag was given; or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"The output folder {folder} is a file; name another one.")
    if not (overwrite or resume) and folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
        raise OutputError(
            f"The output folder {folder} exists and is not empty. Go on with --resume, replace its run with "
            "--overwrite, or name another folder."
        )


def check_links(folder: Path, names: Collection[str] = WRITTEN_INTO) -> None:
    """Make sure that nobody writes through a link out of `folder`: what lies elsewhere is not the run's.

    Args:
        folder: of a run, or another.
        names: of the folders in it that are written into, one level deep.

    Raises:
        OutputError: which link.
    """
    for place in (folder / name for name in names):
        for path in (place, *sorted(place.glob("*/"))):
            if not stays_in(path, folder):
                raise OutputError(
                    f"{path} is a link out of {folder}, and no step writes through one. Remove the link; the whole "
                    "folder may be one."
                )


def lock_folder(folder: Path, *, wait: bool = False) -> BaseFileLock:
    """Keep other processes from writing into `folder` for as long as the lock is held and this process lives.

    The system holds the lock, so that of a process that was killed goes with it; the empty file `.lock` stays.

    Args:
        folder: made if it is not there.
        wait: until another process lets go, instead of refusing.

    Raises:
        OutputError: another process works in it, or it cannot be written.
    """
    lock = FileLock(folder / LOCK, timeout=-1 if wait else 0)
    try:
        for left in reversed(range(MEETINGS if wait else 1)):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                lock.acquire()
                break
            except (FileNotFoundError, FileExistsError):
                # The one that was waited for may just have removed the folder.
                if not left:
                    raise
                time.sleep(0.01)
    except Timeout as error:
        raise OutputError(
            f"Another process works in {folder}. Wait until it has ended, or name another folder."
        ) from error
    except NotImplementedError:
        _LOGGER.warning("this file system knows no locks: nothing keeps a second run out of %s", folder)
    except OSError as error:
        raise OutputError(f"Cannot write into {folder}: {error.strerror or error}. Name another folder.") from error
    return lock


def check_step(folder: Path, step: str, *, method: str, overwrite: bool) -> None:
    """Make sure that a step finds what it reads, and may write its files.

    Raises:
        CheckpointError: an earlier step is missing.
        OutputError: its files exist and `overwrite` was not given.
    """
    if step == "merge" and method == "full":
        raise CheckpointError(f'By the method "full", training itself writes {folder / "merged"}; nothing is to merge.')
    if not (step == "train" and method != "prune-lora"):
        check_needs(folder, step)
    there = [path for name in STEPS[step] if (path := folder / name).exists()]
    if there and not overwrite:
        raise OutputError(f"{there[0]} exists already; replace it, and what followed from it, with --overwrite.")


def check_needs(folder: Path, step: str) -> None:
    """Make sure that a step finds what it reads.

    Raises:
        CheckpointError: an earlier step is missing.
    """
    needed, earlier = NEEDS.get(step, ("", ""))
    if needed and not (folder / needed).exists():
        raise CheckpointError(
            f"{folder} has no {needed}. Run `pruning-adapter {earlier}` first, or `pruning-adapter run` for all steps."
        )


def remove_steps(folder: Path, first: str) -> None:
    """Remove what the step `first` and all later ones wrote. Other files in the folder are the user's."""
    steps = list(STEPS)
    for name in [name for step in steps[steps.index(first) :] for name in (*STEPS[step], *BESIDE.get(step, ()))]:
        take_away(folder / name)


def clear_leftovers(folder: Path) -> None:
    """Remove what a run that was killed had begun to write; for those who hold the folder's lock."""
    names_in: dict[Path, set[str]] = {folder: {SETTINGS}}
    for path in (folder / name for names in (*STEPS.values(), *BESIDE.values()) for name in names):
        names_in.setdefault(path.parent, set()).add(path.name)
    for place, names in names_in.items():
        if place.is_dir() and not place.is_symlink():
            remove_leftovers(place, names)
