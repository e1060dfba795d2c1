"""One product for query, key and value, where a family computes three of the same input."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from pruning_adapter.architectures.sites import find_all_sites, has_plain_weight
from pruning_adapter.surgery.one_input import OneInput

__all__ = ["FEWEST_TOKENS", "FusedLinear", "fuse_"]

FEWEST_TOKENS = {"cpu": 512}
"""Tokens from which on one product is taken in place of three, by device type. It saves
little on a CPU (`benchmarks/inference.py`), and the bookkeeping weighs more in short batches."""


def fuse_(model: nn.Module) -> nn.Module:
    """Make a model compute its separate query, key and value as one product, in place.

    For inference. Names, files and results stay: the weights become parts of one tensor, and are still there by their
    own names. Weights that are moved, replaced or pruned later are put together again at the next call; weights that
    train compute alone, and so do batches with too few tokens to gain, and compiled models. Maps that somebody listens
    to, or whose weights are elsewhere (offloaded, quantised), are left as they are.

    Gate and up stay two: cut out of one product, both would be read with gaps between their rows.

    Args:
        model: a Transformers model of a known family, without adapters.

    Returns:
        The same model.

    Raises:
        ArchitectureError: an unknown family.
    """
    for site in find_all_sites(model):
        if site.kind != "heads" or not site.units:
            continue
        paths = [projection.path for projection in site.readers_of_one_input]
        linears = [site.block.get_submodule(path) for path in paths]
        if len(linears) < 2 or not all(_can_be_replaced(linear) for linear in linears):
            continue
        fused = [FusedLinear(cast(nn.Linear, linear)) for linear in linears]
        together = OneInput(fused, _compute)
        for path, linear in zip(paths, fused, strict=True):
            linear.together = together
            parent, _, name = path.rpartition(".")
            setattr(site.block.get_submodule(parent), name, linear)
    return model


def _can_be_replaced(linear: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    listened = any(getattr(linear, name, None) for name in hooks)
    plain = type(linear) is nn.Linear and has_plain_weight(linear) and not linear.weight.is_meta
    return plain and not listened and not hasattr(linear, "_hf_hook")


class FusedLinear(nn.Linear):
    """A linear map that is computed together with others of the same input."""

    together: OneInput | None = None
    whole: "_Whole | None" = None
    """The parameters of all, in the first of those that are computed together."""

    def __init__(self, linear: nn.Linear) -> None:
        """Args:
        linear: the map whose place this one takes.
        """
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, the name that nn.Linear gives it
        """As nn.Linear's: `(..., inputs)` → `(..., outputs)`."""
        many = input.numel() >= FEWEST_TOKENS.get(input.device.type, 0) * self.in_features
        if many and self.together is not None and not torch.compiler.is_compiling():
            found = self.together.ask(self, input)
            if found is not None:
                return found
        return super().forward(input)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        # Moved or cast: the old memory must not be held until the next call.
        self.whole = None
        return cast(Any, super())._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "whole"}


class _Whole(NamedTuple):
    """The parameters of several linears, one below the other, and the places of each one's."""

    weight: Tensor
    bias: Tensor | None
    sizes: list[int]
    places: list[tuple[int, int]]


def _compute(members: Sequence[FusedLinear], inputs: Tensor) -> Sequence[Tensor] | None:
    own: list[tuple[Tensor, Tensor | None]] = [(member.weight, member.bias) for member in members]
    if torch.is_grad_enabled() and any(w.requires_grad or (b is not None and b.requires_grad) for w, b in own):
        return None
    whole = members[0].whole
    # Whoever moved or replaced a parameter put it somewhere else.
    if whole is None or whole.places != [(w.data_ptr(), 0 if b is None else b.data_ptr()) for w, b in own]:
        whole = members[0].whole = _join_(own)
    if whole is None:
        return None
    return torch.nn.functional.linear(inputs, whole.weight, whole.bias).split(whole.sizes, dim=-1)


def _join_(own: Sequence[tuple[Tensor, Tensor | None]]) -> _Whole | None:
    """Make the parameters parts of one tensor; None where they are of different kinds."""
    if len({(tensor.device, tensor.dtype) for pair in own for tensor in pair if tensor is not None}) > 1:
        return None
    sizes = [len(weight) for weight, _ in own]
    # What inference mode makes could not take part in training later on.
    with torch.inference_mode(False), torch.no_grad():
        weight = torch.cat([weight for weight, _ in own])
        bias = None
        if any(bias is not None for _, bias in own):
            bias = torch.cat([weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in own])
        places: list[tuple[int, int]] = []
        for number, (old, old_bias) in enumerate(own):
            part, place = weight.split(sizes)[number], 0
            old.data = part
            if bias is not None and old_bias is not None:
                old_bias.data = bias.split(sizes)[number]
                place = bias.split(sizes)[number].data_ptr()
            # Of this tensor, not of the parameters, which another thread may have joined meanwhile.
            places.append((part.data_ptr(), place))
    return _Whole(weight, bias, sizes, places)
