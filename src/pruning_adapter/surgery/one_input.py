"""Modules that are always given one and the same input, such as query, key and value: the first computes for all."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["OneInput"]

NOTHING: tuple[None, tuple[int, bool], dict[int, Tensor]] = (None, (0, False), {})


class OneInput:
    """What the modules that are called next will return, kept from the first call on.

    Not a module, so that nothing of it is saved. Safe to be called from several threads: what waits is kept together
    with the input that it was computed from, and with that input's version, so that a change in place is seen. Weights
    are taken not to change between calls with one and the same input. What is never asked for waits until the next
    input comes.
    """

    def __init__(
        self, members: Sequence[nn.Module], compute: Callable[[Sequence[Any], Tensor], Sequence[Tensor] | None]
    ) -> None:
        """Args:
        members: the modules.
        compute: from them and the input to one output each; None where they cannot be computed together now.
        """
        self._members = list(members)
        self._compute = compute
        self._waiting: tuple[Tensor | None, tuple[int, bool], dict[int, Tensor]] = NOTHING

    def ask(self, asked: nn.Module, inputs: Tensor) -> Tensor | None:
        """What `asked` makes of `inputs`; None where it must compute alone."""
        known, made, outputs = self._waiting
        now = (0 if inputs.is_inference() else inputs._version, torch.is_grad_enabled())
        found = outputs.pop(id(asked), None) if known is inputs and made == now else None
        if found is None:
            # A replica on another device is none of the members.
            if all(member is not asked for member in self._members):
                return None
            computed = self._compute(self._members, inputs)
            if computed is None:
                return None
            outputs = {id(member): output for member, output in zip(self._members, computed, strict=True)}
            self._waiting = (inputs, now, outputs)
            found = outputs.pop(id(asked))
        if not outputs:
            self._waiting = NOTHING
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"_members": self._members, "_compute": self._compute}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_members"], state["_compute"])
