"""Gates: multipliers of ones on the heads' outputs, at the input of the output projection.

The attention output is linear in the heads, so the derivative of the loss with respect to a gate is the paper's
dL/d(xi), whatever computed the attention (eager, SDPA, flash), and a gate of zero is a head that is not there.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pruning_adapter.architectures.sites import Site, find_sites
from pruning_adapter.errors import ImportanceError

__all__ = ["gated", "gated_sites"]


@contextmanager
def gated(model: nn.Module, gates: Sequence[Tensor]) -> Generator[None]:
    """Multiply every head's output by its gate while the context lasts.

    Args:
        model: a supported model, dense or pruned.
        gates: one tensor per block: `(heads,)`, shared by all examples; `(batch, heads)`, one per example; or
            `(batch, tokens, heads)`, one per token. They are cast to the activations' dtype.

    Raises:
        ImportanceError: not one gate tensor per block, or one of another width than the block has heads.
    """
    with gated_sites(find_sites(model), gates):
        yield


@contextmanager
def gated_sites(sites: Sequence[Site], gates: Sequence[Tensor]) -> Generator[None]:
    """As `gated`, for sites that were found already."""
    if len(gates) != len(sites):
        raise ImportanceError(f"{len(gates)} gate tensors were given for {len(sites)} blocks; give one a block.")
    for site, gate in zip(sites, gates, strict=True):
        if gate.shape[-1] != site.heads:
            raise ImportanceError(f"{site.path} has {site.heads} heads, but its gate has shape {tuple(gate.shape)}.")
    handles = [
        # First in line, so that whatever else listens to the output projection sees gated heads.
        site.output.register_forward_pre_hook(_multiply(site.heads, gate), prepend=True)
        for site, gate in zip(sites, gates, strict=True)
        if site.heads
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _multiply(heads: int, gate: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    # (heads,) and (batch, tokens, heads) broadcast as they are; (batch, heads) lacks the token axis.
    per_token = gate.unsqueeze(1) if gate.dim() == 2 else gate

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        context: Tensor = inputs[0]
        by_head = context.unflatten(-1, (heads, -1)) * per_token.to(context.dtype).unsqueeze(-1)
        return (by_head.flatten(-2), *inputs[1:])

    return hook
