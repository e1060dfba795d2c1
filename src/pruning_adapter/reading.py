"""Files from anywhere, read within bounds: ordinary ones, JSON of bounded size and depth, headers of safetensors."""

import errno
import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn, cast

from safetensors import SafetensorError, safe_open

from pruning_adapter.errors import CheckpointError

__all__ = ["check_ordinary", "read_object", "read_shapes"]

# Plans, scores and results are a few kilobytes; a file far beyond that is not one of ours.
MAX_JSON_BYTES = 64 * 2**20
MAX_DEPTH = 100
"""Of lists and objects within each other. Deeper ones overflow the stack of whoever copies or writes them again."""


def check_ordinary(path: Path, what: str) -> int:
    """Refuse a device, a pipe or a link to one, which reading would never come to the end of; return the size in bytes.

    Args:
        path: of a file.
        what: it is, for the message.

    Raises:
        CheckpointError: it is one, or a folder, or not there.
    """
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    # A name with a zero byte is no OSError.
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot read the {what} {path}: {getattr(error, 'strerror', None) or error}.") from error
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path} is no ordinary file, nor a link to one. Put the {what} itself there.")
    return found.st_size


def read_object(path: str | Path, what: str, *, constants: bool = True) -> dict[str, Any]:
    """Read the JSON object in `path`.

    Args:
        path: a file, at most 64 MiB.
        what: it is, for the message.
        constants: accept NaN and infinity, which are no JSON, but which Python writes.

    Raises:
        CheckpointError: no such file, no ordinary one, too large, not JSON, no object, nested too deeply, or with a key
            that is there twice.
    """
    source = Path(path)
    if check_ordinary(source, what) > MAX_JSON_BYTES:
        raise CheckpointError(f"{source} is larger than {MAX_JSON_BYTES} bytes: this is not a {what} file.")
    try:
        with source.open("rb") as file:
            content = file.read(MAX_JSON_BYTES)
        # Some editors mark UTF-8 with a byte order mark, and these files are edited by people.
        text, refuse = content.decode("utf-8-sig"), None if constants else _refuse_constant
        value: Any = json.loads(text, object_pairs_hook=_object, parse_constant=refuse)
        _check_depth(value)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{source} is not readable as a {what} ({error}): it is damaged or cut short. Make it again."
        ) from error
    except OSError as error:
        raise CheckpointError(f"Cannot read the {what} {source}: {error.strerror or error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{source} holds {type(value).__name__!r} where a {what!r} was expected. Was another file meant?"
        )
    return cast("dict[str, Any]", value)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the tensors in a file of safetensors, of which the header only is read.

    Raises:
        CheckpointError: no such file, no ordinary one, or damaged.
    """
    check_ordinary(path, "weights file")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged, or no file of safetensors: {error}.") from error


def _check_depth(value: Any) -> None:
    level, depth = [[value]], -1
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} times")
        level = [
            each
            for holder in level
            for each in (cast("dict[str, Any]", holder).values() if isinstance(holder, dict) else holder)
            if isinstance(each, dict | list)
        ]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON leaves open which of two equal keys counts; whoever reads the file might see the other."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
