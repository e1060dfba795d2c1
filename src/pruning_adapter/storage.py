"""Writing so that a crash, a full disk or a read-only folder never costs the old files: write aside, then rename."""

import ctypes
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pruning_adapter.errors import CheckpointError, OutputError
from pruning_adapter.reading import read_object

__all__ = [
    "read_json",
    "remove",
    "remove_leftovers",
    "replace_file",
    "replace_folder",
    "stays_in",
    "take_away",
    "write_json",
    "write_text",
    "write_through_memory",
]

# In the name of all that is written aside: nobody calls a file of his own so.
_MARK = "unfinished-by-pruning-adapter-"
# Behind it stands what `tempfile` draws; all of it once more for what is written aside within what is.
_ASIDE = re.compile(rf"\.+(?P<name>.+?)(?:\.{_MARK}[a-z0-9_]{{8}}(?P<end>\.[a-z0-9]+)?)+")
_OLD = ".old"
# Of Linux's renameat2 (since 3.15).
_HERE, _EXCHANGE = -100, 2

_FLAT_LIST = re.compile(r"\[\n(?:\s+(?:[-+.\w]+|\"\w+\"),?\n)+\s*\]")


@contextmanager
def replace_file(path: str | Path) -> Generator[Path]:
    """Yield a temporary path beside `path`; on success it takes the place of `path`, on failure it is removed.

    Raises:
        OutputError: the folder is read-only or the disk is full; `path` is then what it was before.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.{_MARK}", suffix=target.suffix, dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise OutputError(_cannot_write(target, error)) from error
    aside = Path(name)
    try:
        yield aside
        _flush(aside)
        aside.chmod(0o666 & ~_umask())
        aside.replace(target)
    except OSError as error:
        if isinstance(error, OutputError | CheckpointError):
            raise
        raise OutputError(_cannot_write(target, error)) from error
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: str | Path) -> Generator[Path]:
    """Yield an empty folder beside `path`; on success it replaces `path` as a whole, on failure it is removed.

    On Linux the two change places in one step, so that also a process that is killed leaves the one or the other.
    Elsewhere one that is killed between two renames leaves the old folder beside, under a hidden name that ends in
    `.old`.
    A link is replaced; what it points to stays.

    Raises:
        OutputError: the parent is read-only, the disk is full, or `path` is a file; it is then what it was before.
    """
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} is a file, where a folder is to be written; name another place.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.{_MARK}", dir=target.parent))
        aside.chmod(0o777 & ~_umask())
    except OSError as error:
        raise OutputError(_cannot_write(target, error)) from error
    old = aside.with_name(aside.name + _OLD)
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                _flush(file)
                # safetensors writes for its owner's eyes only.
                file.chmod(0o666 & ~_umask())
        if not (os.path.lexists(target) and _exchange(aside, target)):
            _step_aside(target, aside, old)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OutputError | CheckpointError):
            raise
        raise OutputError(_cannot_write(target, error, old)) from error
    finally:
        # After an exchange this is the old one.
        remove(aside)


def _step_aside(target: Path, aside: Path, old: Path) -> None:
    """In two steps, where no system call does it in one: the old folder comes back if the new one cannot come."""
    try:
        if os.path.lexists(target):
            target.rename(old)
        aside.rename(target)
    except BaseException:
        if os.path.lexists(old):
            old.rename(target)
        raise
    remove(old)


def _exchange(first: Path, second: Path) -> bool:
    """Let two names change places in one step; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link but not what it points to; nothing, if it is not there.

    What the system does not let go of stays.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        path.unlink()


def take_away(path: Path) -> None:
    """As `remove`, but whenever the process is killed, what bears that name is whole."""
    aside = path
    if path.is_dir() and not path.is_symlink():
        # Where nothing can be renamed, nothing can be removed either.
        with suppress(OSError):
            holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.{_MARK}", dir=path.parent))
            aside = holder
            path.rename(holder / path.name)
    remove(aside)


def stays_in(path: Path, folder: Path) -> bool:
    """Whether what `path` names lies below `folder` when links are followed."""
    # As `Path.resolve`, which raises where links go in circles.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Remove what a killed process left beside the files and folders `names` while it wrote them.

    An old folder that had stepped aside, and whose place was not taken, comes back.
    """
    for path in sorted(folder.iterdir()):
        found = _ASIDE.fullmatch(path.name)
        if found is None or found["name"] not in names or found["end"] not in (None, _OLD, Path(found["name"]).suffix):
            continue
        if found["end"] == _OLD and not os.path.lexists(folder / found["name"]):
            path.rename(folder / found["name"])
        else:
            remove(path)


def write_through_memory(path: Path, save: Callable[[BytesIO], object]) -> None:
    """Write what `save` puts into a file, for writers that do not survive a full disk: PyTorch's end the process.

    Raises:
        OSError: the file cannot be written.
    """
    content = BytesIO()
    save(content)
    with path.open("wb") as file:
        file.write(content.getbuffer())


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8; the old file survives a failure."""
    with replace_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN and infinity, which JSON does not have, are refused."""
    indented = json.dumps(value, indent=2, allow_nan=False)
    # Lists of numbers and of short names on one line: these files are read and edited by people. A line break inside a
    # JSON string is written as \\n, so the pattern cannot match within one.
    write_text(path, _FLAT_LIST.sub(lambda match: " ".join(match.group().split()), indented) + "\n")


def read_json(path: str | Path, *, kind: str) -> dict[str, Any]:
    """Read the JSON object in `path`, which the caller expects to be a `kind` (named in the file's field "kind").

    Raises:
        CheckpointError: see `read_object`; or another kind of file.
    """
    content = read_object(path, kind, constants=False)
    if content.get("kind") != kind:
        found = content.get("kind")
        raise CheckpointError(f"{path} holds {found!r} where a {kind!r} was expected. Was another file meant?")
    return content


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cannot_write(target: Path, error: Exception, old: Path | None = None) -> str:
    kept = f"in {old}" if old is not None and old.exists() else "untouched"
    return f"Cannot write {target}: {getattr(error, 'strerror', None) or error}. What was there before is {kept}."
