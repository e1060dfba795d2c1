"""LoRA linears inside PEFT's interface that compute the same as PEFT's own in less time and memory.

Parameters, names and files are PEFT's. Where something is asked for that they do not speed up (dropout while training,
several active adapters, merged weights, quantised ones, variants such as DoRA), PEFT's own forward runs.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pruning_adapter.adapter.lora_product import LoraMap, lora_product
from pruning_adapter.architectures.sites import has_plain_weight, is_sharded
from pruning_adapter.surgery.one_input import OneInput

__all__ = ["QuickLinear", "read_together_"]


class QuickLinear(Linear):
    """PEFT's LoRA linear, computed by `lora_product`."""

    together: OneInput | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As PEFT's: `(..., inputs)` → `(..., outputs)`."""
        map_ = None if args or kwargs else self.lora_map()
        if map_ is None:
            return super().forward(x, *args, **kwargs)
        if self.together is not None and not torch.compiler.is_compiling():
            found = self.together.ask(self, x)
            if found is not None:
                return found
        return lora_product(x, [map_])[0]

    def lora_map(self) -> LoraMap | None:
        """The map that this module is now; None where only PEFT's own forward will do."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(active) != 1:
            return None
        (name,) = active
        base: Any = self.get_base_layer()
        if type(base) not in (nn.Linear, Conv1D) or not has_plain_weight(base):
            return None
        dropout = self.lora_dropout[name]
        drops = not isinstance(dropout, nn.Identity) and dropout.training
        if drops or name in self.lora_variant or self.lora_bias[name] or base.weight.requires_grad:
            return None
        if base.bias is not None and base.bias.requires_grad:
            return None
        # Transposed weights are views, not copies.
        weight = base.weight.T if isinstance(base, Conv1D) else base.weight
        down, up = cast(Any, self.lora_A[name]).weight, cast(Any, self.lora_B[name]).weight
        # FSDP2 puts a module's weights together when that very module is called.
        if is_sharded(down) or is_sharded(up):
            return None
        return LoraMap(weight, base.bias, down, up, float(self.scaling[name]))


def _compute(members: Sequence[QuickLinear], inputs: Tensor) -> Sequence[Tensor] | None:
    maps = [member.lora_map() for member in members]
    known = [each for each in maps if each is not None]
    return lora_product(inputs, known) if len(known) == len(maps) else None


def read_together_(members: Sequence[nn.Module]) -> None:
    """Let LoRA linears that always read one and the same input share its products.

    Those that are no `QuickLinear` go on alone.
    """
    quick = [member for member in members if isinstance(member, QuickLinear)]
    together = OneInput(quick, _compute) if len(quick) > 1 else None
    for member in quick:
        member.together = together
