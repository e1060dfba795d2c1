"""A block without heads: stubs that add only the output bias and compute nothing."""

from typing import Any

import torch
from torch import Tensor, nn

from pruning_adapter.architectures.sites import Site, features
from pruning_adapter.surgery.linear import BiasOnly

__all__ = ["NoHeads", "remove_all_heads_"]


class NoHeads(nn.Module):
    """Takes the place of an attention that lost all its heads.

    Where the output projection is part of the attention (DistilBERT), it lives on in here; where it follows (BERT), the
    hidden states are handed on to it, and it ignores all but their shape.
    """

    def __init__(self, *, returns: int, output: str | None, projection: BiasOnly) -> None:
        """Args:
        returns: length of the tuple that the attention returned.
        output: name of the output projection in the attention; None if it lies outside.
        projection: what is left of it.
        """
        super().__init__()
        self.returns = returns
        self._output = output
        if output is not None:
            self.add_module(output, projection)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
        """`(batch, tokens, hidden)` → a tuple that starts with `(batch, tokens, hidden)`; the rest is None."""
        output = hidden_states if self._output is None else self.get_submodule(self._output)(hidden_states)
        return (output, *(None for _ in range(self.returns - 1)))


def remove_all_heads_(site: Site) -> None:
    """Put stubs in place of an attention and its output projection; only the output bias stays."""
    head_size, old = site.head_size, site.module(site.spec.output)
    projection = BiasOnly(old.bias if isinstance(old.bias, nn.Parameter) else None, features(old)[1])
    stub = NoHeads(returns=site.spec.returns, output=site.spec.output_in_core, projection=projection)
    # Sites are read through the same attributes whether they are empty or not.
    setattr(stub, site.spec.head_size, head_size)
    stub.train(site.block.get_submodule(site.spec.core).training)
    _replace(site.block, site.spec.core, stub)
    if site.spec.output_in_core is None:
        _replace(site.block, site.spec.output, projection)


def _replace(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    with torch.no_grad():
        setattr(root.get_submodule(parent), name, module)
