"""A model as ONNX: any batch size and length, checked against torch, and with 8-bit weights on request."""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

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
from pruning_adapter.errors import CheckpointError, OutputError
from pruning_adapter.storage import replace_file

__all__ = ["export_onnx", "open_onnx", "quantize_onnx"]

TOLERANCE = 1e-4
"""The most that logits may differ from torch's, in float32."""
LARGEST = 2 * 10**9
"""Bytes of one file of the format."""
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def export_onnx(model: nn.Module, path: str | Path) -> float:
    """Write a model that reads text or images, and returns logits, as one ONNX file of dynamic batch size and length.

    Adapters are merged, and weights widened to float32, in a copy. Its inputs are input_ids, attention_mask and, where
    the model tells the texts of a pair apart, token_type_ids; or pixel_values. The file is written only after
    onnxruntime has given torch's logits for several batch sizes and lengths.

    Args:
        model: dense or pruned, with or without adapters.
        path: where to, such as "model.onnx"; an old file survives a failure.

    Returns:
        The largest difference of logits that was seen.

    Raises:
        OutputError: packages of the extra `onnx` are missing, the model has parts that cannot be exported or is beyond
            2 GB, or its logits differ by more than 1e-4.
    """
    _check_packages()
    plain = traceable_copy(model)
    if sum(weight.numel() * 4 for weight in plain.parameters()) > LARGEST:
        raise OutputError(f"The weights are beyond {LARGEST / 1e9:.0f} GB, the most that one ONNX file can hold.")
    inputs = example_inputs(plain, batch=4, length=12)
    names = list(inputs)
    with replace_file(path) as aside:
        with quiet_exporters(), torch.no_grad():
            try:
                program = torch.onnx.export(
                    LogitsOnly(plain, names),
                    tuple(inputs.values()),
                    input_names=names,
                    output_names=["logits"],
                    dynamic_shapes={"inputs": tuple(dynamic_dimensions(name) for name in names)},
                    dynamo=True,
                    external_data=False,
                    verbose=False,
                )
            except Exception as error:  # torch raises many kinds, for what it cannot trace
                raise OutputError(
                    f"This {type(plain).__name__} cannot be exported: {first_line(error.__cause__ or error)}"
                ) from error
            cast(Any, program).save(str(aside))
        difference = largest_difference(plain, open_onnx(aside))
        if not difference <= TOLERANCE:
            raise OutputError(f"The logits of the exported model differ by {difference:.2g} from torch's; not written.")
    return difference


def quantize_onnx(source: str | Path, path: str | Path) -> None:
    """Write an exported model with 8-bit weights, whose activations are quantised as they come (dynamically).

    Raises:
        OutputError: packages of the extra `onnx` are missing, or the file cannot be written.
        CheckpointError: `source` is no ONNX file.
    """
    _check_packages()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    try:
        content = onnx.load(str(source))
    except Exception as error:  # protobuf raises its own kinds
        raise CheckpointError(f"Cannot read the ONNX model {source}: {first_line(error)}") from error
    # The exporter turns weights over and leaves the old shapes behind, which the quantiser would believe.
    del content.graph.value_info[:]
    with replace_file(path) as aside, quiet_exporters():
        # Not signed: without VNNI instructions sums of products with signed weights saturate, and logits are far off.
        quantize_dynamic(content, str(aside), weight_type=QuantType.QUInt8)


def open_onnx(path: str | Path, *, threads: int | None = None) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """An exported model as a function from inputs to logits, run by onnxruntime on the CPU.

    It takes what a tokenizer gives: inputs that the model does not read are left out, and without token_type_ids all
    tokens are of the first text, as in torch.

    Raises:
        OutputError: packages of the extra `onnx` are missing.
    """
    session = _session(path, threads)
    names = [each.name for each in session.get_inputs()]

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        given = dict(inputs)
        if "token_type_ids" in names and "token_type_ids" not in given:
            given["token_type_ids"] = torch.zeros_like(given["input_ids"])
        return torch.from_numpy(session.run(None, {name: given[name].numpy() for name in names})[0])

    return run


def _session(path: str | Path, threads: int | None) -> Any:
    _check_packages()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _check_packages() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise OutputError(f"{', '.join(missing)} is missing: pip install 'pruning-adapter[onnx]'.")
