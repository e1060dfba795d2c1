"""Gates: multipliers of ones on the units' outputs, at the input of the output (or down) projection.

The sub-layer's output is linear in its units, so the derivative of the loss with respect to a gate is the paper's
dL/d(xi), whatever computed the attention (eager, SDPA, flash), and a gate of zero is a unit that is not there.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pruning_adapter.architectures.sites import Site, find_feed_forwards, find_sites
from pruning_adapter.errors import ImportanceError

__all__ = ["Gate", "gated", "gated_sites"]


@contextmanager
def gated(
    model: nn.Module, heads: Sequence[Tensor] | None = None, neurons: Sequence[Tensor] | None = None
) -> Generator[None]:
    """Multiply every head's, and every neuron's, output by its gate while the context lasts.

    Args:
        model: a supported model, dense or pruned.
        heads: one tensor per attention: `(heads,)`, shared by all examples; `(batch, heads)`, one per example; or
            `(batch, tokens, heads)`, one per token. They are cast to the activations' dtype. None: no gates on heads.
        neurons: likewise, one tensor per feed-forward. None: no gates on neurons.

    Raises:
        ImportanceError: not one gate tensor per site, or one of another width than the site has units.
    """
    attentions = find_sites(model) if heads is not None else ()
    feed_forwards = find_feed_forwards(model) if neurons is not None else ()
    for sites, gates, what in ((attentions, heads, "attentions"), (feed_forwards, neurons, "feed-forwards")):
        if gates is not None and len(gates) != len(sites):
            raise ImportanceError(f"{len(gates)} gate tensors were given for {len(sites)} {what}; give one each.")
    with gated_sites((*attentions, *feed_forwards), (*(heads or ()), *(neurons or ()))):
        yield


@contextmanager
def gated_sites(sites: Sequence[Site], gates: Sequence["Tensor | Gate"]) -> Generator[None]:
    """As `gated`, for sites that were found already; a `Gate` is made when its site is first reached."""
    for site, gate in zip(sites, gates, strict=True):
        if isinstance(gate, Tensor) and gate.shape[-1] != site.units:
            raise ImportanceError(
                f"{site.path} has {site.units} {site.kind}, but its gate has shape {tuple(gate.shape)}."
            )
    handles = [
        # First in line, so that whatever else listens to the output projection sees gated units.
        site.output.register_forward_pre_hook(_multiply(site.units, gate), prepend=True)
        for site, gate in zip(sites, gates, strict=True)
        if site.units
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Gate:
    """Gates of ones that are made when their site is first reached, and used again if it is reached again.

    A block that is applied several times (ALBERT) is one block: its units have one gate for all applications.
    """

    def __init__(self, units: int, *, batch: int, per_token: bool, dtype: torch.dtype) -> None:
        """Args:
        units: units of the site.
        batch: examples in the batch.
        per_token: one gate for every token of an example, not one for all of them.
        dtype: of the gates; half precision would round their gradients.
        """
        self.units = units
        self.batch = batch
        self.per_token = per_token
        self.dtype = dtype
        self.value: Tensor | None = None
        self.tokens = 0

    def at(self, context: Tensor) -> Tensor:
        """The gates for an activation of `(batch, tokens, width)`, or of the two first axes in one."""
        if self.value is None:
            self.tokens = context.numel() // context.shape[-1] // self.batch
            shape = (self.batch, *((self.tokens,) if self.per_token else ()), self.units)
            self.value = torch.ones(shape, dtype=self.dtype, device=context.device, requires_grad=True)
        return self.value


def _multiply(units: int, gate: "Tensor | Gate") -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        context: Tensor = inputs[0]
        factor = (gate.at(context) if isinstance(gate, Gate) else gate).to(context.dtype).unsqueeze(-1)
        if factor.dim() > 2 and context.dim() > 2 and len(context) != len(factor):
            raise ImportanceError(
                f"Gates of {len(factor)} examples meet activations of {len(context)}. A model that leaves out padding "
                "cannot tell examples apart: score it before leave_out_padding_."
            )
        if factor.dim() == 2:
            by_unit = context.unflatten(-1, (units, -1)) * factor
        else:
            # (batch, units) lacks the token axis; some families join batch and tokens before the feed-forward.
            per_token = factor.unsqueeze(1) if factor.dim() == 3 else factor
            by_unit = context.reshape(factor.shape[0], -1, units, context.shape[-1] // units) * per_token
        return (by_unit.reshape(context.shape), *inputs[1:])

    return hook
