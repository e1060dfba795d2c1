"""Modules that are always given one and the same input, such as query, key and value: the first computes for all."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["OneInput"]


class OneInput:
    """What the modules that are called next will return, kept from the first call on.

    Not a module, so that nothing of it is saved. Safe to be called from several threads: what waits is kept together
    with the input that it was computed from.
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
        self._waiting: tuple[Tensor | None, dict[int, Tensor]] = (None, {})

    def ask(self, asked: nn.Module, inputs: Tensor) -> Tensor | None:
        """What `asked` makes of `inputs`; None where it must compute alone."""
        known, outputs = self._waiting
        found = outputs.pop(id(asked), None) if known is inputs else None
        if found is None:
            # A replica on another device is none of the members.
            if all(member is not asked for member in self._members):
                return None
            computed = self._compute(self._members, inputs)
            if computed is None:
                return None
            outputs = {id(member): output for member, output in zip(self._members, computed, strict=True)}
            self._waiting = (inputs, outputs)
            found = outputs.pop(id(asked))
        if not outputs:
            # Nothing must outlive the step.
            self._waiting = (None, {})
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"_members": self._members, "_compute": self._compute}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_members"], state["_compute"])
