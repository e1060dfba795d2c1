"""Equations 1 and 2 of the paper, on plain tensors."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from pruning_adapter.errors import ImportanceError

__all__ = ["Scope", "normalize"]

Scope = Literal["block", "model"]

# The paper writes epsilon without a value; this is the public BERTology script's.
EPSILON = 1e-20


def normalize(heads: Sequence[Tensor], scope: Scope) -> tuple[Tensor, ...]:
    """Make scores comparable and map them to [0, 1].

    Equation 1 divides by an L2 norm: over the heads of each block ("block", as the public BERTology script does) or
    over all heads ("model"); the paper leaves it open. "block" lifts blocks whose heads all matter little, "model"
    keeps the order of the raw scores. Equation 2 is a min-max over all heads. Where all scores are equal, all become 0.

    Args:
        heads: one float64 tensor `(heads,)` per block; blocks without heads may be empty.
        scope: what the norm runs over.

    Returns:
        Tensors of the same shapes, in [0, 1].

    Raises:
        ImportanceError: unknown scope.
    """
    if scope not in get_args(Scope):
        raise ImportanceError(f"Normalisation {scope!r} is unknown; use one of {', '.join(get_args(Scope))}.")
    flat = torch.cat(list(heads))
    if flat.numel() == 0:
        return tuple(heads)
    if scope == "block":
        scaled = [block / (block.norm() + EPSILON) for block in heads]
    else:
        scaled = [block / (flat.norm() + EPSILON) for block in heads]
    flat = torch.cat(scaled)
    low, spread = flat.min(), flat.max() - flat.min()
    return tuple((block - low) / spread if spread > 0 else torch.zeros_like(block) for block in scaled)
