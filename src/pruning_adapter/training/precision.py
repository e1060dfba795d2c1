"""Frozen weights in bfloat16, trained ones in float32."""

import logging
from functools import cache
from typing import Any

import torch
from torch import nn

__all__ = ["halve_frozen_", "is_mixed", "warn_of_slow_bfloat16"]

_LOGGER = logging.getLogger(__name__)


def halve_frozen_(model: nn.Module) -> nn.Module:
    """Keep float32 weights that do not train in bfloat16, in place: half the memory, and no copy of them in each step.

    What trains (LoRA, norms, task head) stays in float32, for an update would often be lost in bfloat16's 8 bits. Run
    the model under autocast to bfloat16, which rounds the frozen matrices in just this way.

    Args:
        model: any model whose trainable parameters require gradients.

    Returns:
        The same model.
    """
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def is_mixed(model: nn.Module) -> bool:
    """Whether a model holds weights of both kinds, so that it only runs under autocast."""
    return {torch.bfloat16, torch.float32} <= {parameter.dtype for parameter in model.parameters()}


def warn_of_slow_bfloat16(model: nn.Module) -> None:
    """Say so, once, where training in bfloat16 would take several times as long as in float32."""
    if next(model.parameters()).device.type == "cpu" and not _has_kernels():
        _warn_once()


@cache
def _warn_once() -> None:
    _LOGGER.warning(
        "this processor has no fast products in bfloat16: training takes several times as long as in float32; leave "
        "out --bf16 here"
    )


def _has_kernels() -> bool:
    """Whether oneDNN multiplies in bfloat16 on this processor. Without AVX-512 torch falls back to plain loops."""
    operators: Any = torch.ops.mkldnn
    # What is not public may go; then nothing is known, and nothing said.
    return bool(getattr(operators, "_is_mkldnn_bf16_supported", lambda: True)())
