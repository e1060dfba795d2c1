"""Which of Transformers' attention kernels a training step runs fastest with."""

from typing import Any

from torch import nn

__all__ = ["choose_attention_"]

LONGEST = 256
"""Tokens. The plain kernel is faster on longer rows too in bfloat16 (`benchmarks/attention.py`), but it keeps as many
weights for the backward pass as the square of the length; in float32 it is not faster."""


def choose_attention_(model: nn.Module, *, longest: int) -> nn.Module:
    """Leave SDPA for plain products where its backward pass is slow: short rows on a CPU, in place.

    For training under autocast to bfloat16. Both compute the same function; models that run another kernel than SDPA
    are left alone.

    Args:
        model: any Transformers model, or a PEFT model around one.
        longest: tokens of the longest row.

    Returns:
        The same model.
    """
    inner: Any = model
    if hasattr(model, "get_base_model"):
        inner = inner.get_base_model()
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and longest <= LONGEST and inner.config._attn_implementation == "sdpa":
        inner.set_attn_implementation("eager")
    return model
