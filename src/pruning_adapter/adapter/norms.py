"""Outputs of normalisation layers that are computed again in the backward pass instead of being kept.

A norm keeps its input for its own gradient. Where the next linear map needs the norm's output for its gradient, both
would lie in memory; computing the norm a second time costs next to nothing.
"""

from typing import Any, NamedTuple, cast

import torch
import torch.distributed
from torch import Tensor, nn

from pruning_adapter.architectures.sites import spec_of

__all__ = ["Norm", "made_by_norm", "remember_inputs_"]

_MARK = "_made_by_norm"


class Norm(NamedTuple):
    """A norm as it was when it made something."""

    module: nn.Module
    versions: tuple[int, ...]
    """Of its weights."""

    def again(self, source: Tensor) -> Tensor:
        """What it makes of `source`.

        Raises:
            RuntimeError: its weights were changed in place since, as torch says of any tensor that is needed.
        """
        if self.versions != _versions(self.module):
            raise RuntimeError(
                "A normalisation layer was modified in place between the forward and the backward pass, which needs it "
                "as it was."
            )
        with torch.no_grad():
            # Not the call, which would run hooks.
            return self.module.forward(source)


def remember_inputs_(model: nn.Module) -> None:
    """Let the model's norms mark what they make with what they made it from, so that nobody need keep both."""
    endings = spec_of(model).norms
    for name, module in model.named_modules():
        # One that trains lies in PEFT's wrapper.
        place = name.partition(".modules_to_save.")[0]
        leaf = not any(True for _ in module.children()) and any(True for _ in module.parameters())
        if place.endswith(endings) and leaf and _mark not in getattr(module, "_forward_hooks").values():  # noqa: B009
            module.register_forward_hook(_mark)


def made_by_norm(tensor: Tensor) -> tuple[Tensor, Norm] | None:
    """What `tensor` was made from, and by which norm; None where it cannot be made again."""
    return cast("tuple[Tensor, Norm] | None", getattr(tensor, _MARK, None))


def _mark(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or len(args) != 1:
        return
    # FSDP takes a block's weights away between its forward and its backward pass.
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return
    (source,) = args
    # Without a graph nobody keeps its input, and under autocast it would be made in another type the second time.
    if source.requires_grad and not torch.is_autocast_enabled(source.device.type):
        setattr(output, _MARK, (source.detach(), Norm(module, _versions(module))))


def _versions(module: nn.Module) -> tuple[int, ...]:
    return tuple(parameter._version for parameter in module.parameters())
