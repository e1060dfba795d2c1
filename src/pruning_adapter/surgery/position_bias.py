"""A position bias that blocks share, sliced for those that lost heads.

T5 computes it in the first block, at full width, and hands it from block to block; MPNet's stack hands it to every
block. Hooks slice it on its way in and hand the full one on, so what blocks exchange stays as it was.
"""

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pruning_adapter.architectures.sites import Site
from pruning_adapter.architectures.spec import AttentionSpec, PositionBias

__all__ = ["BiasSlicer", "slice_position_bias_"]


class BiasSlicer:
    """The hooks of one attention. One object, so that copies of the model share theirs among themselves only."""

    def __init__(self, spec: PositionBias, kept: Sequence[int], takes: Sequence[str], *, cross: bool) -> None:
        """Args:
        spec: where the bias comes in and goes out.
        kept: heads that are left, by their number in the dense model.
        takes: names of the arguments of the attention's forward.
        cross: a cross-attention has no bias: what blocks hand on is zero, at the width of the first of them.
        """
        self.spec = spec
        self.kept: tuple[int, ...] | None = tuple(kept)
        self.position = list(takes).index(spec.argument)
        self.cross = cross
        self.full: Tensor | None = None

    def on_the_way_in(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Slice the bias that comes in."""
        positional = len(args) > self.position
        bias = args[self.position] if positional else kwargs.get(self.spec.argument)
        self.full = bias
        if bias is None:
            return None
        # Zeros of another width are made anew.
        sliced = None if self.cross else self._slice(bias, 1)
        if positional:
            return (*args[: self.position], sliced, *args[self.position + 1 :]), kwargs
        return args, {**kwargs, self.spec.argument: sliced}

    def on_the_embedding(self, module: nn.Module, args: tuple[Any, ...], values: Tensor) -> Tensor:
        """`(queries, keys, heads)`: slice what the owner of the bias computes, and remember the whole."""
        self.full = values.permute(2, 0, 1).unsqueeze(0)
        return self._slice(values, 2)

    def on_the_way_out(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Hand the full bias on."""
        full, self.full = self.full, None
        where = self.spec.returned
        if where is None or full is None or self.cross:
            return None
        return (*output[:where], full, *output[where + 1 :])

    def _slice(self, tensor: Tensor, dimension: int) -> Tensor:
        # An attention that lost its last head hands on what it owns, and takes nothing.
        if self.kept is None:
            return tensor
        index = torch.tensor(self.kept, dtype=torch.long, device=tensor.device)
        return tensor.index_select(dimension, index)


def slice_position_bias_(site: Site, kept: Sequence[int]) -> None:
    """Make an attention that keeps the heads `kept` take its slice of a shared bias, if its family has one.

    An attention that has been given one before gets the new slice; an empty one needs none.
    """
    if not isinstance(site.spec, AttentionSpec) or site.spec.position_bias is None:
        return
    core, spec = site.block.get_submodule(site.spec.core), site.spec.position_bias
    if not kept or not hasattr(core, site.spec.projections[0].path.rpartition(".")[2]):
        return
    present = cast("BiasSlicer | None", core.__dict__.get("_bias_slicer"))
    if present is not None:
        present.kept = tuple(kept)
        return
    takes = list(inspect.signature(core.forward).parameters)
    slicer = BiasSlicer(spec, kept, takes, cross=site.spec.cross)
    core.__dict__["_bias_slicer"] = slicer
    core.register_forward_pre_hook(slicer.on_the_way_in, with_kwargs=True)
    owner = getattr(core, spec.owner, None) if spec.owner else None
    if isinstance(owner, nn.Module):
        owner.register_forward_hook(slicer.on_the_embedding)
    core.register_forward_hook(slicer.on_the_way_out)
