"""Cutting one matrix. Feature counts change in the same breath as the weight."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pruning_adapter.architectures.sites import features, stores_inputs_first

__all__ = ["ALIGNMENT", "BiasOnly", "NoOutputs", "keep_inputs_", "keep_outputs_"]

ALIGNMENT = 64
"""Bytes; where torch places the tensors that it makes. Matrix products add up in another order elsewhere."""


class BiasOnly(nn.Module):
    """What is left of a linear map whose inputs are all gone: it adds its bias, or zero if it had none.

    Its parameters keep their names, so that the checkpoint keeps its keys; the weight has no columns.
    """

    in_features = 0
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Module) -> None:
        """Args:
        linear: the map that lost its inputs.
        """
        super().__init__()
        self.out_features = features(linear)[1]
        _set_parameter_(self, "weight", _nothing_of(linear, self.out_features, 0))
        _set_parameter_(self, "bias", getattr(linear, "bias", None))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`(..., any)` → `(..., out_features)`, the same row everywhere."""
        nothing = hidden_states.new_zeros((*hidden_states.shape[:-1], self.out_features))
        # A sum, not a view of the parameter, which an in-place operation downstream would change. Under autocast the
        # residual stream decides the type.
        return nothing if self.bias is None else nothing + self.bias.to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"out_features={self.out_features}, bias={self.bias is not None}"


class NoOutputs(nn.Module):
    """What is left of a linear map that writes nothing: a tensor without columns."""

    out_features = 0
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Module) -> None:
        """Args:
        linear: the map whose outputs nobody reads.
        """
        super().__init__()
        self.in_features = features(linear)[0]
        _set_parameter_(self, "weight", _nothing_of(linear, 0, self.in_features))
        bias: Any = getattr(linear, "bias", None)
        _set_parameter_(
            self, "bias", None if bias is None else nn.Parameter(bias.detach()[:0].clone(), bias.requires_grad)
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`(..., in_features)` → `(..., 0)`."""
        return hidden_states.new_zeros((*hidden_states.shape[:-1], 0))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}"


def _nothing_of(linear: nn.Module, rows: int, columns: int) -> nn.Parameter:
    old: Any = linear.weight
    return nn.Parameter(old.detach().new_empty((rows, columns)), requires_grad=old.requires_grad)


def _set_parameter_(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    # Not registered the usual way: PEFT loads adapters under a patch that puts every registered parameter on meta.
    cast(Any, module)._parameters[name] = parameter


def keep_outputs_(linear: nn.Module, rows: Sequence[int], *, views: bool = False) -> None:
    """Keep the output features `rows` of a linear map, in that order: weight rows and bias entries.

    With `views`, what lies in one piece stays where it is and shares the memory of the whole.
    """
    _select_(linear, "weight", 1 if stores_inputs_first(linear) else 0, rows, views=views)
    if getattr(linear, "bias", None) is not None:
        _select_(linear, "bias", 0, rows, views=views)
    _set_counts(linear, ("out_features", "nf"), len(rows))


def keep_inputs_(linear: nn.Module, columns: Sequence[int], *, views: bool = False) -> None:
    """Keep the input features `columns` of a linear map, in that order; its bias stays. See `keep_outputs_`."""
    _select_(linear, "weight", 0 if stores_inputs_first(linear) else 1, columns, views=views)
    _set_counts(linear, ("in_features", "nx"), len(columns))


def _select_(module: nn.Module, name: str, dimension: int, index: Sequence[int], *, views: bool) -> None:
    old: Any = getattr(module, name)
    chosen = _view(old.detach(), dimension, index) if views else None
    if chosen is None:
        places = torch.tensor(list(index), dtype=torch.long, device=old.device)
        # A new, contiguous parameter: nothing keeps the memory of the old one alive.
        chosen = old.detach().index_select(dimension, places)
    cast(Any, module)._parameters[name] = nn.Parameter(chosen, requires_grad=old.requires_grad)


def _view(old: Tensor, dimension: int, index: Sequence[int]) -> Tensor | None:
    """The chosen part without a copy; None where it lies in several pieces, or where products add up otherwise."""
    first, count = index[0], len(index)
    if list(index) != list(range(first, first + count)):
        return None
    part = old.narrow(dimension, first, count)
    return part if part.is_contiguous() and part.data_ptr() % ALIGNMENT == 0 else None


def _set_counts(linear: nn.Module, names: Sequence[str], count: int) -> None:
    for name in names:
        if hasattr(linear, name):
            setattr(linear, name, count)
