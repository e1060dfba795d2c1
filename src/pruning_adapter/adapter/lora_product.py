"""y = x (W + s B A)^T + b, in the order of products that costs least, with the fewest activations kept.

Several such maps of one input are computed together: one product forward, one input kept for the backward pass, and
not even that where a norm made it. W is frozen, so its gradient is never formed. Orders of the products after RunLoRA
(Cherniuk et al. 2023, arXiv:2312.03415).
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from pruning_adapter.adapter.norms import Norm, made_by_norm

__all__ = ["LoraMap", "lora_product", "merging_is_cheaper"]


class LoraMap(NamedTuple):
    """One map: W + scaling * B A."""

    weight: Tensor
    """`(outputs, inputs)`, frozen; any strides."""
    bias: Tensor | None
    """`(outputs,)`, frozen."""
    down: Tensor
    """A, `(rank, inputs)`."""
    up: Tensor
    """B, `(outputs, rank)`."""
    scaling: float


def merging_is_cheaper(tokens: int, inputs: int, outputs: int) -> bool:
    """Whether W + s B A, formed once, costs fewer multiply-accumulates than the thin products x A^T and (x A^T) B^T.

    Forming it takes outputs * rank * inputs, the thin products tokens * rank * (inputs + outputs), so the rank cancels
    out. The product with W is the same in both.
    """
    return outputs * inputs < tokens * (inputs + outputs)


def lora_product(inputs: Tensor, maps: list[LoraMap]) -> tuple[Tensor, ...]:
    """What each of `maps` makes of the same `inputs` `(..., inputs)`: one `(..., outputs)` each.

    Under autocast the products are computed in its type, and in half precision W and s B A are never added up, because
    the sum would round small updates away.
    """
    device = inputs.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else maps[0].weight.dtype
    flat: list[Any] = []
    for each in maps:
        flat += [each.weight, each.bias, each.down, each.up]
    # A copy in another type is not what the norm made.
    made = made_by_norm(inputs) if inputs.dtype == dtype else None
    with torch.autocast(device, enabled=False):
        found = _LoraProduct.apply(inputs.to(dtype), made, tuple(each.scaling for each in maps), *flat)
    return cast("tuple[Tensor, ...]", found)


class _LoraProduct(Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, made: tuple[Tensor, Norm] | None, scalings: tuple[float, ...], *flat: Tensor | None
    ) -> tuple[Tensor, ...]:
        maps = _unflatten(flat, scalings)
        rows, dtype = inputs.flatten(0, -2), inputs.dtype
        merged = _merges(rows, maps)
        ctx.scalings, ctx.merged = scalings, merged
        ctx.set_materialize_grads(False)
        # What the norm keeps is there anyhow.
        kept, ctx.norm = (inputs, None) if made is None else made
        ctx.save_for_backward(kept, *flat)
        sizes = [len(each.weight) for each in maps]
        if merged:
            weight = _merge(maps, dtype)
            biases = None
            if any(each.bias is not None for each in maps):
                biases = torch.cat(
                    [each.bias if each.bias is not None else each.weight.new_zeros(len(each.weight)) for each in maps]
                ).to(dtype)
            whole = torch.nn.functional.linear(rows, weight, biases)
            outputs = whole.split(sizes, dim=1)
        else:
            outputs = tuple(_thin(rows, each) for each in maps)
        # Cut out of one product they are views, whose strides most kernels take as they are.
        return tuple(output.unflatten(0, inputs.shape[:-1]) for output in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        kept, *flat = ctx.saved_tensors
        inputs = kept if ctx.norm is None else ctx.norm.again(kept)
        maps = _unflatten(flat, ctx.scalings)
        rows = inputs.flatten(0, -2)
        used = [number for number, gradient in enumerate(gradients) if gradient is not None]
        found: list[Tensor | None] = [None] * len(flat)
        if not used:
            return (None, None, None, *found)
        grads = [cast(Tensor, gradients[number]).flatten(0, -2) for number in used]
        downs = [maps[number].down.to(rows.dtype) for number in used]
        ups = [maps[number].up.to(rows.dtype) for number in used]
        # Thin products are slow for their size, so those that read the same input are one.
        ranks = [len(down) for down in downs]
        narrow = (rows @ torch.cat(downs).T).split(ranks, dim=1)
        through = [grad @ up for grad, up in zip(grads, ups, strict=True)]
        of_downs = (torch.cat(through, dim=1).T @ rows).split(ranks)
        for place, number in enumerate(used):
            each = maps[number]
            found[4 * number + 2] = (each.scaling * of_downs[place]).to(each.down.dtype)
            found[4 * number + 3] = (grads[place].T @ narrow[place]).mul_(each.scaling).to(each.up.dtype)
        of_inputs: Tensor | None = None
        if ctx.needs_input_grad[0]:
            of_inputs = torch.empty_like(rows)
            for place, number in enumerate(used):
                each = maps[number]
                weight = _merge([each], rows.dtype) if ctx.merged else each.weight.to(rows.dtype)
                of_inputs.addmm_(grads[place], weight, beta=0 if place == 0 else 1)
                if not ctx.merged:
                    of_inputs.addmm_(through[place], downs[place], alpha=each.scaling)
            of_inputs = of_inputs.view(inputs.shape)
        return (of_inputs, None, None, *found)


def _merges(rows: Tensor, maps: list[LoraMap]) -> bool:
    if rows.dtype.itemsize < 4:
        return False
    first = maps[0]
    outputs = sum(len(each.weight) for each in maps) // len(maps)
    return merging_is_cheaper(len(rows), first.weight.shape[1], outputs)


def _merge(maps: list[LoraMap], dtype: torch.dtype) -> Tensor:
    """All W + s B A, one below the other: `(outputs of all, inputs)`."""
    first = maps[0]
    whole = first.weight.new_empty(sum(len(each.weight) for each in maps), first.weight.shape[1])
    start = 0
    for each in maps:
        end = start + len(each.weight)
        weight = each.weight
        torch.addmm(
            weight, each.up.to(weight.dtype), each.down.to(weight.dtype), alpha=each.scaling, out=whole[start:end]
        )
        start = end
    return whole.to(dtype)


def _thin(rows: Tensor, each: LoraMap) -> Tensor:
    dtype = rows.dtype
    bias = None if each.bias is None else each.bias.to(dtype)
    output = torch.nn.functional.linear(rows, each.weight.to(dtype), bias)
    return output.addmm_(rows @ each.down.to(dtype).T, each.up.to(dtype).T, alpha=each.scaling)


def _unflatten(flat: Any, scalings: tuple[float, ...]) -> list[LoraMap]:
    tensors = (flat[start : start + 4] for start in range(0, len(flat), 4))
    return [LoraMap(w, b, down, up, scaling) for (w, b, down, up), scaling in zip(tensors, scalings, strict=True)]
