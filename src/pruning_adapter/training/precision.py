"""Frozen weights in bfloat16, trained ones in float32."""

import torch
from torch import nn

__all__ = ["halve_frozen_", "is_mixed"]


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
