"""The frozen base of an adapter in 8 or 4 bits: pruned first, then quantised. LoRA, norms and heads stay as they are.

bitsandbytes packs the weights and unpacks them. The product is ours, because its own linears round the activations as
well (8 bits) or compute in bfloat16 on some processors (4 bits); here a quantised model computes exactly what it would
with the unpacked weights.
"""

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, TypeVar, cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from pruning_adapter.adapter.config import PruneLoraConfig
from pruning_adapter.architectures.sites import find_all_sites
from pruning_adapter.errors import AdapterError

__all__ = ["PackedLinear", "is_packed", "quantize_base_"]

Bits = Literal[8, 4]
Model = TypeVar("Model", bound=nn.Module)

BLOCK = 64
"""Weights that share one scale at 4 bits; at 8 bits each row has one."""


def quantize_base_(model: Model, *, bits: Bits = 8) -> Model:
    """Store the frozen projections of a model that carries an adapter in fewer bits, in place, and return the model.

    8 bits: whole numbers with a scale for each row, as in LLM.int8 (arXiv:2208.07339). 4 bits: NF4 with a scale for
    every 64 weights, as in QLoRA (arXiv:2305.14314). A weight then takes 1.00 or 0.56 bytes. Each product unpacks one
    weight, forward and backward, and keeps none. The saved adapter is the ordinary one; it loads onto a base that is
    not quantised, and there it can be merged.

    Args:
        model: what `get_peft_model(base, PruneLoraConfig(...))` or `PeftModel.from_pretrained` gives; on any device.
        bits: 8 or 4.

    Raises:
        AdapterError: other bits, no bitsandbytes, a model without such an adapter (it may not be pruned yet), merged
            adapters, DoRA, which trains with the weights themselves, or a base that is quantised already. No weight was
            touched.
    """
    if bits not in (8, 4):
        raise AdapterError(f"bits is {bits!r}; the base can be stored in 8 or 4 bits.")
    if find_spec("bitsandbytes") is None:
        raise AdapterError(
            "Quantising needs bitsandbytes, which is not installed: pip install 'pruning-adapter[quantize]'."
        )
    _check_adapters(model)
    frozen = list(_frozen_linears(model))
    if not frozen:
        raise AdapterError("The model has no frozen linear map that could be quantised: all of its blocks train.")
    # Taken off the list, so that each weight is freed before the next is packed.
    while frozen:
        parent, name, linear = frozen.pop()
        setattr(parent, name, PackedLinear(linear, bits))
    return model


def is_packed(model: nn.Module) -> bool:
    """Whether `quantize_base_` was here."""
    return any(isinstance(module, PackedLinear) for module in model.modules())


def _check_adapters(model: nn.Module) -> None:
    configs = model.peft_config.values() if isinstance(model, PeftModel) else ()
    if not any(isinstance(config, PruneLoraConfig) for config in configs):
        raise AdapterError(
            "This model carries no Prune-LoRA adapter, so it may still have to be pruned, which needs whole weights. "
            "First get_peft_model(base, PruneLoraConfig(...)), which prunes; then quantise."
        )
    if is_packed(model):
        raise AdapterError("This base is quantised already. Load it anew to store it in other bits.")
    layers = [cast(Any, module) for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if any(layer.merged for layer in layers):
        raise AdapterError("An adapter is merged into the weights, which would be quantised too; unmerge it first.")
    if any(getattr(config, "use_dora", False) for config in configs):
        raise AdapterError("DoRA trains with the norms of whole weights; use use_dora=False on a quantised base.")


def _frozen_linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """The frozen projections of all blocks: the module that holds each, its name there, and itself."""
    for site in find_all_sites(model):
        for path in (*(projection.path for projection in site.projections), site.spec.output):
            parent, _, name = path.rpartition(".")
            holder, linear = site.block.get_submodule(parent), site.block.get_submodule(path)
            if isinstance(linear, BaseTunerLayer):
                holder, name, linear = linear, "base_layer", linear.get_base_layer()
            # Neither what is left of an empty site, nor a copy that trains.
            if type(linear) in (nn.Linear, Conv1D) and not cast(Tensor, linear.weight).requires_grad:
                yield holder, name, linear


class PackedLinear(nn.Module):
    """A frozen linear map whose weight is stored in 8 or 4 bits."""

    packed: nn.Parameter
    """8 bits: `(outputs, inputs)`; 4 bits: two weights a byte."""
    scales: nn.Parameter
    """One for every row, or for every 64 weights."""
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Module, bits: Bits) -> None:
        """Args:
        linear: an `nn.Linear` or a `Conv1D`, whose bias is taken over.
        bits: 8 or 4.
        """
        super().__init__()
        old = cast(Tensor, linear.weight).detach()
        weight = old.T.contiguous() if isinstance(linear, Conv1D) else old
        self.bits: Bits = bits
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        packed, scales = _pack(weight, bits)
        self.packed = nn.Parameter(packed, requires_grad=False)
        # As whole numbers of the same bytes, so that casting the model to half precision does not round them.
        self.scales = nn.Parameter(scales.view(torch.int32), requires_grad=False)
        self.bias = cast("nn.Parameter | None", linear.bias)
        self.train(linear.training)

    @property
    def weight(self) -> Tensor:
        """The weight's shape, type and device, which some models ask for, in the memory of one number.

        That is no number, in every place: what is computed from it shows, and adding to it, as a merge would that did
        not ask whether it may, is an error of torch's.
        """
        nothing = torch.full((), torch.nan, dtype=self.dtype, device=self.packed.device)
        return nothing.expand(self.out_features, self.in_features)

    def unpack(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight, `(outputs, inputs)`, in `dtype` or else in the type that it had."""
        found = _unpack(self.packed.data, self.scales.data.view(torch.float32), self.bits, self.weight.shape)
        return found.to(dtype or self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., inputs)` → `(..., outputs)`."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return cast(Tensor, _Product.apply(x.to(dtype), bias, self))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


class _Product(Function):
    """x W^T + b. The unpacked weight is made again for the backward pass: kept, all would be there at once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, linear: PackedLinear) -> Tensor:
        ctx.linear = linear
        return torch.nn.functional.linear(x, linear.unpack(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = gradients
        of_x, of_bias, _ = ctx.needs_input_grad
        return (
            gradient @ ctx.linear.unpack(gradient.dtype) if of_x else None,
            gradient.flatten(0, -2).sum(0) if of_bias else None,
            None,
        )


def _pack(weight: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """`(outputs, inputs)` → the packed weight and its scales, float32."""
    library = _library()
    if bits == 8:
        packed, scales, _ = library.int8_vectorwise_quant(weight.to(torch.float16))
        return packed, scales
    # As one row: with AVX-512, bitsandbytes 0.50 unpacks rows that end within a block wrongly, and rows of a pruned
    # matrix often do.
    packed, state = library.quantize_4bit(weight.float().flatten(), blocksize=BLOCK, quant_type="nf4")
    return packed, state.absmax


def _unpack(packed: Tensor, scales: Tensor, bits: Bits, shape: torch.Size) -> Tensor:
    """What `_pack` packed, float32."""
    library = _library()
    if bits == 8:
        return library.int8_vectorwise_dequant(packed, scales)
    row = torch.Size([shape.numel()])
    state = library.QuantState(scales, shape=row, dtype=torch.float32, blocksize=BLOCK, quant_type="nf4")
    return library.dequantize_4bit(packed, state).view(shape)


def _library() -> Any:
    return import_module("bitsandbytes.functional")
