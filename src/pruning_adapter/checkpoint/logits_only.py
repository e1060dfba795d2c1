"""A model as a function from its inputs to its logits: what exporters trace, and what exports are compared by."""

import copy
import inspect
import logging
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pruning_adapter.architectures.sites import base_of
from pruning_adapter.checkpoint.merged import merge
from pruning_adapter.costs.inputs import make_inputs
from pruning_adapter.errors import OutputError

__all__ = [
    "LogitsOnly",
    "answer_of",
    "dynamic_dimensions",
    "example_inputs",
    "first_line",
    "largest_difference",
    "quiet_exporters",
    "traceable_copy",
]

CHECKED = ((1, 1), (2, 7), (3, 24))
"""Batch sizes and lengths of the check; none is that of an export."""


class LogitsOnly(nn.Module):
    """The model as a function of its inputs, in order, to its logits."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        """Args:
        model: returns an output with `logits`.
        names: of its inputs, in the order in which they are given.
        """
        super().__init__()
        self.model = model
        self._names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(self._names, inputs, strict=True))).logits


def traceable_copy(model: nn.Module) -> Any:
    """A merged copy in float32, on the CPU, in evaluation mode.

    Raises:
        OutputError: an encoder-decoder.
    """
    merged: Any = merge(model)
    # What was merged is a copy already.
    plain: Any = (copy.deepcopy(merged) if merged is model else merged).float().cpu().eval()
    if getattr(base_of(plain).config, "is_encoder_decoder", False):
        raise OutputError("An encoder-decoder is generated with, step by step; export it with Optimum instead.")
    return plain


def example_inputs(model: Any, *, batch: int, length: int) -> dict[str, Tensor]:
    """As `costs.make_inputs`, with the second half of every row another text where the model can tell."""
    inputs, texts = make_inputs(model, batch=batch, length=length), getattr(model.config, "type_vocab_size", None) or 1
    if (
        "input_ids" in inputs
        and texts > 1
        and "token_type_ids" in inspect.signature(model.base_model.forward).parameters
    ):
        inputs["token_type_ids"] = (torch.arange(length) >= length // 2).long().expand(batch, -1).contiguous()
    return inputs


def dynamic_dimensions(name: str) -> dict[int, str]:
    """Which dimensions of an input may have any size, and what they are called."""
    return {0: "batch"} if name == "pixel_values" else {0: "batch", 1: "length"}


def answer_of(outputs: Any) -> Tensor:
    """What a model says: its logits, those of an answer's start and end, or its last hidden state.

    Raises:
        OutputError: none of them.
    """
    for names in (("logits",), ("start_logits", "end_logits"), ("last_hidden_state",)):
        found = [getattr(outputs, name, None) for name in names]
        tensors = [value for value in found if isinstance(value, Tensor)]
        if len(tensors) == len(names):
            return tensors[0] if len(names) == 1 else torch.stack(tensors, -1)
    raise OutputError("The model gives neither logits nor hidden states, so what is written could not be checked.")


def largest_difference(model: Any, run: Callable[[Mapping[str, Tensor]], Tensor]) -> float:
    """Between a model's logits and those of `run`, over several shapes; padding on the right where there is a mask.

    What stands at padding is not compared, nor rows of which the model itself makes no numbers. It is no number as soon
    as `run` gives one that is none, or nothing could be compared.
    """
    seen: list[Tensor] = []
    for batch, length in CHECKED:
        inputs = example_inputs(model, batch=batch, length=length)
        if "attention_mask" in inputs:
            inputs["attention_mask"][-1, length // 2 + 1 :] = 0
        with torch.no_grad():
            expected = answer_of(model(**inputs))
        # ModernBERT's eager attention in float64 gives none where a window holds padding only.
        counted = expected.isfinite().all(-1)
        if expected.dim() == 3 and "attention_mask" in inputs and "decoder_input_ids" not in inputs:
            counted &= inputs["attention_mask"].bool()
        seen.append((run(inputs) - expected).abs()[counted].flatten())
    differences = torch.cat(seen)
    return float(differences.max()) if len(differences) else float("nan")


@contextmanager
def quiet_exporters() -> Generator[None]:
    """The exporters and the quantiser say much that nobody can act on."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root", "")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
