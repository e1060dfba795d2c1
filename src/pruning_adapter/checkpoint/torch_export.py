"""A model as a program of `torch.export`: any batch size and length, checked against torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning_adapter.checkpoint.logits_only import (
    LogitsOnly,
    dynamic_dimensions,
    example_inputs,
    first_line,
    largest_difference,
    quiet_exporters,
    traceable_copy,
)
from pruning_adapter.errors import OutputError
from pruning_adapter.storage import replace_file, write_through_memory

__all__ = ["export_program"]

TOLERANCE = 1e-4
"""The most that logits may differ from eager torch's, in float32."""


def export_program(model: nn.Module, path: str | Path) -> float:
    """Write a model that reads text or images, and returns logits, as a `.pt2` file of dynamic batch size and length.

    Adapters are merged, and weights widened to float32, in a copy. `torch.export.load(path).module()` takes input_ids,
    attention_mask and, where the model tells the texts of a pair apart, token_type_ids; or pixel_values; in that order.
    Where the model has a longest text or a sliding window, longer texts than that are refused by the program itself.

    The file is moved into place only after it has been loaded again and has given eager torch's logits for several
    batch sizes and lengths. `torch.export.load` unpickles example inputs, custom objects and tensors of classes of
    their own. This file has none of them: example inputs are left out, models made of anything but plain tensors are
    refused, and weights are stored as raw bytes. So nothing is unpickled here, nor by those who load the file.

    Args:
        model: dense or pruned, with or without adapters.
        path: where to; it must end in ".pt2". An old file survives a failure.

    Returns:
        The largest difference of logits that was seen.

    Raises:
        OutputError: the model has parts that cannot be exported, the path has another ending, or the logits differ by
            more than 1e-4; or the file cannot be written.
    """
    if Path(path).suffix != ".pt2":
        raise OutputError(f'{path} does not end in ".pt2", as programs of torch.export must.')
    plain = traceable_copy(model)
    inputs = example_inputs(plain, batch=4, length=12)
    sizes: Any = tuple(dict.fromkeys(dynamic_dimensions(name), torch.export.Dim.DYNAMIC) for name in inputs)
    with replace_file(path) as aside, quiet_exporters():
        try:
            with torch.no_grad():
                program = torch.export.export(
                    LogitsOnly(plain, list(inputs)), tuple(inputs.values()), dynamic_shapes={"inputs": sizes}
                )
        except Exception as error:  # torch raises many kinds, for what it cannot trace
            raise OutputError(f"This {type(plain).__name__} cannot be exported: {first_line(error)}") from error
        _check_plain_tensors(program)
        program.example_inputs = None
        write_through_memory(aside, lambda file: torch.export.save(program, file))
        run = torch.export.load(aside).module()

        def logits(given: Mapping[str, Tensor]) -> Tensor:
            with torch.no_grad():
                return run(*given.values())

        difference = largest_difference(plain, logits)
        if not difference <= TOLERANCE:
            raise OutputError(f"The logits of the exported model differ by {difference:.2g} from torch's; not written.")
    return difference


def _check_plain_tensors(program: torch.export.ExportedProgram) -> None:
    """Refuse what the format would pickle."""
    for name, value in (*program.state_dict.items(), *program.constants.items()):
        if type(value) not in (Tensor, nn.Parameter, nn.Buffer):
            raise OutputError(f"{name} is a {type(value).__name__}, which a .pt2 file would have to pickle.")
