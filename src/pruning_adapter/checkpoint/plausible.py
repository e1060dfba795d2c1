"""Whether the files of a model can be what they claim to be, before anything as large as they claim is made."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from pruning_adapter.checkpoint.shards import INDEX, WHOLE, read_index
from pruning_adapter.errors import CheckpointError
from pruning_adapter.reading import check_ordinary, read_object, read_shapes

__all__ = ["build_empty", "check_alone", "check_files", "read_config"]

COUNTS = re.compile(r"_?(?:num_|n_).*|.*(?:_layers|_groups)")
"""Fields of a config that say how many there are of something. Some configs make lists of that length."""
MOST = 10**6
CALLS = 20_000, 200
"""Of torch while a model is built: for any model, and for each of the tensors in its files."""
NUMBERS = 2**26, 4
"""In a model: for any, and for each byte of its files. Quantised weights are four in a byte at the most."""


def check_files(folder: Path) -> None:
    """Refuse a folder in which something is no ordinary file.

    Raises:
        CheckpointError: which one.
    """
    for path in sorted(folder.iterdir()):
        # A link that leads nowhere is a file that is not there.
        if path.exists() and not path.is_dir():
            check_ordinary(path, "file")


def check_alone(folder: Path) -> None:
    """Refuse a model beside which an adapter lies.

    Raises:
        CheckpointError: one does.
    """
    if (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} holds a model and an adapter_config.json. Transformers would put that adapter onto the model by "
            "itself; keep the two in folders of their own."
        )


def read_config(folder: Path) -> Mapping[str, Any]:
    """The config of the model in `folder`, as it is in the file.

    Raises:
        CheckpointError: not there, no JSON object, or with counts that no model has.
    """
    config = read_object(folder / "config.json", "config")
    for where in (config, *(each for each in config.values() if isinstance(each, dict))):
        for name, value in cast("dict[str, Any]", where).items():
            if COUNTS.fullmatch(name) and isinstance(value, int) and value > MOST:
                raise CheckpointError(f"{folder / 'config.json'} says that {name} is {value}, which no model has.")
    return config


def build_empty(make: Callable[[], Any], folder: Path) -> nn.Module:
    """A model on the meta device, which takes no memory, if it is one that the weights in `folder` could be of.

    Args:
        make: builds it.
        folder: of a checkpoint in safetensors.

    Raises:
        CheckpointError: damaged files; a config that nothing can be built from, or only a model far larger than its
            weights.
    """
    files = {*read_index(folder).values()} or {folder / WHOLE}
    if files == {folder / WHOLE} and not (folder / WHOLE).is_file():
        raise CheckpointError(f"{folder} has neither {WHOLE} nor {INDEX}. Save the model in safetensors.")
    tensors = sum(len(read_shapes(file)) for file in files)
    try:
        with torch.device("meta"), _AtMost(CALLS[0] + CALLS[1] * tensors):
            model = cast(nn.Module, make())
    except CheckpointError:
        raise
    except Exception as error:  # every class of Transformers checks its config in its own way, or not at all
        raise CheckpointError(f"No model can be built from {folder / 'config.json'}: {_first_line(error)}") from error
    numbers = _count((*model.parameters(), *model.buffers()))
    if numbers > NUMBERS[0] + NUMBERS[1] * sum(file.stat().st_size for file in files):
        raise CheckpointError(
            f"{folder / 'config.json'} describes a model of {numbers:.2g} numbers, far more than there are in its "
            f"files. The config is damaged, or of another model."
        )
    return model


class _AtMost(TorchFunctionMode):
    """Lets torch be called a number of times, so that a model of a billion layers is not waited for."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self._left = calls

    def __torch_function__(
        self, func: Any, types: Any, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._left -= 1
        if self._left < 0:
            raise RuntimeError("it would have far more parts than there are weights in its files")
        return func(*args, **(kwargs or {}))


def _count(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in {id(tensor): tensor for tensor in tensors}.values())


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).strip().splitlines() if line), type(error).__name__)
