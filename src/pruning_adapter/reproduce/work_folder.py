"""Where a grid works: one process at a time in each folder, and only on what it was itself asked for."""

import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pruning_adapter.errors import CheckpointError
from pruning_adapter.run_folder import LOCK, lock_folder
from pruning_adapter.settings import Settings
from pruning_adapter.storage import read_json, remove_leftovers, take_away, write_json

__all__ = ["alike_of", "remove_shared", "work_in"]

KIND = "pruning-adapter grid work"
BEGUN = "begun.json"
SHARED = ("starts", "teachers")
"""What cells take from each other."""


def alike_of(settings: Settings, *, until_start: bool = False, **more: Any) -> str:
    """A name for all that decides what a run does: who is asked for the same can go on with what is there.

    Args:
        settings: of the run.
        until_start: only what decides the part of the training before units go.
        more: what decides too, for JSON.
    """
    decides = [settings.of_start() if until_start else asdict(settings), settings.followed.to_json(), more]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def work_in(folder: Path, alike: str, *, keep: bool = False) -> Generator[None]:
    """Work in `folder` while all other processes that want to wait.

    What was left there by one that was interrupted stays if that was asked for the same, and goes otherwise. The folder
    goes at the end; after an error, it stays to be gone on from.

    Args:
        folder: made if it is not there.
        alike: what is asked for, by `alike_of`.
        keep: do not remove the folder.
    """
    lock = lock_folder(folder, wait=True)
    try:
        if not _began_alike(folder, alike):
            _empty(folder)
            write_json(folder / BEGUN, {"kind": KIND, "alike": alike})
        yield
        if not keep:
            _empty(folder)
            # While it is held: one that waits finds out that its file is gone, and makes another.
            (folder / LOCK).unlink(missing_ok=True)
    finally:
        lock.release()
    if not keep:
        # Not if another one has it by now.
        with suppress(OSError):
            folder.rmdir()


def remove_shared(work: Path) -> None:
    """Remove what cells took from each other, unless one is at work or was interrupted: it may need it.

    The folder goes too, if nothing else is in it.
    """
    # Hidden ones are on their way out.
    if not work.is_dir() or {path.name for path in work.iterdir() if path.name[0] != "."} - set(SHARED):
        return
    for name in SHARED:
        # In one step, so that one that copies it meanwhile gets an error, not a part.
        take_away(work / name)
    remove_leftovers(work, SHARED)
    with suppress(OSError):
        work.rmdir()


def _began_alike(folder: Path, alike: str) -> bool:
    path = folder / BEGUN
    try:
        return path.exists() and read_json(path, kind=KIND).get("alike") == alike
    except CheckpointError:
        return False


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != LOCK:
            take_away(path)
