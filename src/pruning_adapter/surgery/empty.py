"""A block without heads or neurons: stubs that add only the output bias and compute nothing."""

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn

from pruning_adapter.architectures.sites import Site
from pruning_adapter.architectures.spec import AttentionSpec
from pruning_adapter.surgery.linear import BiasOnly, NoOutputs

__all__ = ["NoHeads", "remove_all_units_"]


class NoHeads(nn.Module):
    """Takes the place of an attention that lost all its heads.

    Where the output projection is part of the attention (DistilBERT), it lives on in here; where it follows (BERT), the
    hidden states are handed on to it, and it ignores all but their shape. A decoder's cache goes on counting tokens,
    and a position bias is handed on to the blocks that still need it.
    """

    def __init__(self, spec: AttentionSpec, core: nn.Module, projection: BiasOnly) -> None:
        """Args:
        spec: where the heads lived.
        core: the attention that is replaced; what others still need of it lives on.
        projection: what is left of its output projection.
        """
        super().__init__()
        self._spec = spec
        self.layer_idx = getattr(core, "layer_idx", None)
        self._takes = tuple(inspect.signature(core.forward).parameters)
        if spec.output_in_core is not None:
            self.add_module(spec.output_in_core, projection)
        for name in (spec.closing_norm, spec.position_bias and spec.position_bias.owner):
            if name is not None and isinstance(getattr(core, name, None), nn.Module):
                self.add_module(name, getattr(core, name))
        # The bias is computed by the attention's own method from the embedding that now lives here. Kept out of the
        # modules, so that the checkpoint keeps its keys.
        self.__dict__["_shell"] = core if self._owns_bias() else None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
        """`(batch, tokens, hidden)` → a tuple that starts with `(batch, tokens, hidden)`; the rest is None."""
        given = dict(zip(self._takes[1:], args, strict=False)) | kwargs
        output, spec = hidden_states, self._spec
        if spec.output_in_core is not None:
            output = self.get_submodule(spec.output_in_core)(hidden_states)
        if spec.closing_norm is not None:
            output = self.get_submodule(spec.closing_norm)(hidden_states + output)
        returned: list[Tensor | None] = [output, *(None for _ in range(spec.returns - 1))]
        past, keys = self._advance(hidden_states, given)
        bias = spec.position_bias
        if bias is not None and bias.returned is not None:
            returned[bias.returned] = given.get(bias.argument)
            if returned[bias.returned] is None and self._owns_bias():
                returned[bias.returned] = (
                    cast(Any, self)
                    .__dict__["_shell"]
                    .compute_bias(hidden_states.shape[1], keys, device=hidden_states.device, past_seen_tokens=past)
                )
        return tuple(returned)

    def _advance(self, hidden_states: Tensor, given: dict[str, Any]) -> tuple[Any, int]:
        """Let the cache count the new tokens; how many it had, and how many it has."""
        cache = next((given[name] for name in ("past_key_values", "layer_past") if given.get(name) is not None), None)
        tokens = hidden_states.shape[1]
        if cache is None or self._spec.cross:
            return 0, tokens
        past = cache.get_seq_length(self.layer_idx)
        past = past.clone() if isinstance(past, Tensor) else past
        # One number a token: a cache that holds nothing would say that it has seen nothing.
        mark = hidden_states.new_ones((hidden_states.shape[0], 1, tokens, 1))
        own = getattr(cache, "self_attention_cache", cache)
        keys, _ = own.update(mark, mark, self.layer_idx)
        return past, keys.shape[-2]

    def _owns_bias(self) -> bool:
        bias = self._spec.position_bias
        return bias is not None and bias.owner is not None and hasattr(self, bias.owner)


def remove_all_units_(site: Site) -> None:
    """Put stubs in place of an attention or a feed-forward; only the bias of its output projection stays."""
    old = site.module(site.spec.output)
    projection = BiasOnly(old)
    if not isinstance(site.spec, AttentionSpec):
        for part in site.projections:
            # What it writes is activated, perhaps split in two, and thrown away.
            _replace(site.block, part.path, NoOutputs(site.module(part.path)))
        _replace(site.block, site.spec.output, projection)
        return
    head_size, core = site.unit_size, site.block.get_submodule(site.spec.core)
    parts, slicer = site.projections, core.__dict__.get("_bias_slicer")
    if slicer is not None:
        slicer.kept = None
    stub = NoHeads(site.spec, core, projection)
    # Sites are read through the same attributes whether they are empty or not.
    setattr(stub, site.spec.head_size, head_size)
    stub.train(core.training)
    _replace(site.block, site.spec.core, stub)
    if site.spec.output_in_core is None:
        _replace(site.block, site.spec.output, projection)
    else:
        # A shell that lives on must not hold the weights that are gone.
        for path in (*(part.path for part in parts), site.spec.output):
            delattr(core, path.removeprefix(f"{site.spec.core}."))


def _replace(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    with torch.no_grad():
        setattr(root.get_submodule(parent), name, module)
