"""Cutting one matrix. Feature counts change in the same breath as the weight."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pruning_adapter.architectures.sites import stores_inputs_first

__all__ = ["BiasOnly", "keep_inputs_", "keep_outputs_"]


class BiasOnly(nn.Module):
    """What is left of a linear map whose inputs are all gone: it adds its bias, or zero if it had none.

    Its parameter keeps the name `bias`, so that the checkpoint keeps its key.
    """

    in_features = 0
    bias: nn.Parameter | None

    def __init__(self, bias: nn.Parameter | None, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features
        # Not registered the usual way: PEFT loads adapters under a patch that puts every registered parameter on meta.
        self._parameters["bias"] = bias

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`(..., any)` → `(..., out_features)`, the same row everywhere."""
        nothing = hidden_states.new_zeros((*hidden_states.shape[:-1], self.out_features))
        # A sum, not a view of the parameter, which an in-place operation downstream would change. Under autocast the
        # residual stream decides the type.
        return nothing if self.bias is None else nothing + self.bias.to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"out_features={self.out_features}, bias={self.bias is not None}"


def keep_outputs_(linear: nn.Module, rows: Sequence[int]) -> None:
    """Keep the output features `rows` of a linear map, in that order: weight rows and bias entries."""
    _select_(linear, "weight", 1 if stores_inputs_first(linear) else 0, rows)
    if getattr(linear, "bias", None) is not None:
        _select_(linear, "bias", 0, rows)
    _set_counts(linear, ("out_features", "nf"), len(rows))


def keep_inputs_(linear: nn.Module, columns: Sequence[int]) -> None:
    """Keep the input features `columns` of a linear map, in that order; its bias stays."""
    _select_(linear, "weight", 0 if stores_inputs_first(linear) else 1, columns)
    _set_counts(linear, ("in_features", "nx"), len(columns))


def _select_(module: nn.Module, name: str, dimension: int, index: Sequence[int]) -> None:
    old: Any = getattr(module, name)
    with torch.no_grad():
        chosen = old.detach().index_select(dimension, torch.tensor(list(index), dtype=torch.long, device=old.device))
    # A new, contiguous parameter: nothing keeps the memory of the old one alive.
    cast(Any, module)._parameters[name] = nn.Parameter(chosen, requires_grad=old.requires_grad)


def _set_counts(linear: nn.Module, names: Sequence[str], count: int) -> None:
    for name in names:
        if hasattr(linear, name):
            setattr(linear, name, count)
