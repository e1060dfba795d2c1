"""y = x (W + s B A)^T + b, in the order of products that costs least, with the fewest activations kept.

Several such maps of one input are computed together: one product forward, one input kept for the backward pass. W is
frozen, so its gradient is never formed. Orders of the products after RunLoRA (Cherniuk et al. 2023, arXiv:2312.03415).
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

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
    with torch.autocast(device, enabled=False):
        found = _LoraProduct.apply(inputs.to(dtype), tuple(each.scaling for each in maps), *flat)
    return cast("tuple[Tensor, ...]", found)


class _LoraProduct(Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, scalings: tuple[float, ...], *flat: Tensor | None) -> tuple[Tensor, ...]:
        maps = _unflatten(flat, scalings)
        rows, dtype = inputs.flatten(0, -2), inputs.dtype
        merged = _merges(rows, maps)
        ctx.scalings, ctx.merged = scalings, merged
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs, *flat)
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
        inputs, *flat = ctx.saved_tensors
        maps = _unflatten(flat, ctx.scalings)
        rows = inputs.flatten(0, -2)
        of_inputs: Tensor | None = None
        found: list[Tensor | None] = []
        for number, (each, gradient) in enumerate(zip(maps, gradients, strict=True)):
            if gradient is None:
                found += [None, None, None, None]
                continue
            grad = gradient.reshape(-1, gradient.shape[-1])
            down, up = each.down.to(rows.dtype), each.up.to(rows.dtype)
            grad_up = None
            if ctx.needs_input_grad[2 + 4 * number + 3]:
                grad_up = (grad.T @ (rows @ down.T)).mul_(each.scaling).to(each.up.dtype)
            through = grad @ up
            grad_down = None
            if ctx.needs_input_grad[2 + 4 * number + 2]:
                grad_down = (through.T @ rows).mul_(each.scaling).to(each.down.dtype)
            found += [None, None, grad_down, grad_up]
            if ctx.needs_input_grad[0]:
                if ctx.merged:
                    weight = _merge([each], rows.dtype)
                    of_inputs = grad @ weight if of_inputs is None else of_inputs.addmm_(grad, weight)
                else:
                    weight = each.weight.to(rows.dtype)
                    of_inputs = grad @ weight if of_inputs is None else of_inputs.addmm_(grad, weight)
                    of_inputs.addmm_(through, down, alpha=each.scaling)
        back = None if of_inputs is None else of_inputs.view(inputs.shape)
        return (back, None, *found)


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
