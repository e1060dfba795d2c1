"""A checkpoint in one file or several, whose index tells which file holds which weight."""

from pathlib import Path
from typing import Any

from pruning_adapter.errors import CheckpointError
from pruning_adapter.reading import read_object

__all__ = ["INDEX", "WHOLE", "read_index"]

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"


def read_index(folder: Path) -> dict[str, Path]:
    """The file of every weight of the checkpoint in `folder`; empty if that has no index.

    Raises:
        CheckpointError: a damaged index, or one that names files elsewhere.
    """
    path = folder / INDEX
    if not path.is_file():
        return {}
    try:
        listed: dict[str, Any] = read_object(path, "checkpoint's index")["weight_map"]
        files = {name: str(file) for name, file in listed.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from error
    for file in set(files.values()):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(f"{path} names {file!r}, which is no safetensors file of that folder.")
    return {name: folder / file for name, file in files.items()}
