"""What is wrong with a batch, told by its number and the example's, before a model fails on it from below."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from pruning_adapter.architectures.limits import Limits

__all__ = ["IGNORED", "find_fault", "name_example"]

IGNORED = -100
"""Transformers' label for "does not count"."""


def name_example(row: int, number: int) -> str:
    """How a message names a row of a batch."""
    return f"Example {row} of batch {number} (both counted from 0)"


def find_fault(batch: Mapping[str, Any], number: int, limits: Limits) -> str | None:
    """The first thing in a batch that `limits` or common sense forbid, as a sentence; None: nothing.

    Cheapest on a batch that is still on the CPU; elsewhere each look makes the device wait.

    Args:
        batch: inputs of a model, padded; labels where there are some. What is no tensor is not looked at.
        number: of the batch, from 0.
        limits: of the model.
    """
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor) and value.dim()}
    mask = tensors.get("attention_mask")
    if mask is not None and mask.dim() == 2:
        row = _first(~mask.bool().any(1))
        if row is not None:
            return f"{name_example(row, number)} has no token: it is all padding. Leave it out."
    for name in ("input_ids", "decoder_input_ids"):
        row = _first(_outside(tensors.get(name), limits.words))
        if row is not None:
            wrong = _wrong(tensors[name][row], cast(int, limits.words))
            return (
                f"{name_example(row, number)} has the token {wrong}, but the model knows the tokens "
                f"0-{cast(int, limits.words) - 1}. Use the model's own tokenizer."
            )
    return (
        _find_length(tensors, mask, number, limits)
        or _find_no_number(tensors, number)
        or _find_label(tensors.get("labels"), number, limits)
    )


def _find_length(tensors: Mapping[str, Tensor], mask: Tensor | None, number: int, limits: Limits) -> str | None:
    targets = () if limits.positions_of_decoder is None else ("decoder_input_ids", "labels")
    for name in ("input_ids", "inputs_embeds", *targets):
        value, most = tensors.get(name), limits.positions_of_decoder if name in targets else limits.positions
        if value is None or most is None or value.dim() < 2 or value.shape[1] <= most:
            continue
        row, tokens = 0, value.shape[1]
        if mask is not None and mask.shape == value.shape[:2]:
            row = int(mask.sum(1).argmax())
            tokens = int(mask[row].sum())
        padded = "" if tokens == value.shape[1] else f", padded to {value.shape[1]}"
        return (
            f"{name_example(row, number)} has {tokens} tokens in {name!r}{padded}, but the model reads {most}. Cut it "
            "off there (`truncation=True, max_length=...`)."
        )
    return None


def _find_no_number(tensors: Mapping[str, Tensor], number: int) -> str | None:
    for name, value in tensors.items():
        # What is added to attention's scores is minus infinity where nothing shall be read.
        if not value.is_floating_point() or "mask" in name or "bias" in name:
            continue
        row = _first(~torch.isfinite(value).reshape(len(value), -1).all(1))
        if row is not None:
            return (
                f"{name_example(row, number)} holds a number in {name!r} that is not finite. Correct it, or leave the "
                "example out."
            )
    return None


def _find_label(labels: Tensor | None, number: int, limits: Limits) -> str | None:
    if labels is None or labels.is_floating_point() or labels.dim() not in (1, 2):
        return None
    most = max(limits.classes, 1) if labels.dim() == 1 else limits.classes_of_token
    counted = labels if labels.dim() == 1 else labels.masked_fill(labels == IGNORED, 0)
    row = _first(_outside(counted, most))
    if row is None:
        return None
    return (
        f"{name_example(row, number)} has the label {_wrong(counted[row], cast(int, most))}, but the model has the "
        f"classes 0-{cast(int, most) - 1}."
    )


def _outside(numbers: Tensor | None, count: int | None) -> Tensor | None:
    """`(rows,)`: which hold a number that is not one of 0 to `count` - 1; None if none does."""
    if numbers is None or count is None or not numbers.numel():
        return None
    low, high = numbers.aminmax()
    if int(low) >= 0 and int(high) < count:
        return None
    return ((numbers < 0) | (numbers >= count)).reshape(len(numbers), -1).any(1)


def _wrong(numbers: Tensor, count: int) -> int:
    return int(numbers[(numbers < 0) | (numbers >= count)].flatten()[0])


def _first(rows: Tensor | None) -> int | None:
    return None if rows is None or not bool(rows.any()) else int(rows.nonzero()[0])
