"""Encoders that compute nothing for padding: every block packs the tokens of a padded batch into one row.

Only the attention, which must not see across examples, is given back its padded shape; the projections, the
feed-forward and the norms, which are most of a block, see real tokens alone. What goes in and comes out of each block
is padded as ever, so nothing around it changes.
"""

import inspect
import threading
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pruning_adapter.architectures.sites import base_of, find_sites, find_stacks, spec_of, trunk_of
from pruning_adapter.errors import ArchitectureError, TrainingError

__all__ = ["check_padding_free", "leave_out_padding_"]

ATTENTION = "padding_free"
_SDPA = cast(Any, sdpa_attention_forward)
FULL_ENOUGH = 0.95
"""Share of real tokens from which on a batch is left padded: packing and unpacking would cost more than it saves."""


def leave_out_padding_(model: nn.Module) -> nn.Module:
    """Make the blocks of an encoder leave out the padding of every batch, in place. Outputs of real tokens stay.

    Attention is computed by SDPA. Batches with little padding or with padding on the left, calls that ask for hidden
    states, training with gradient checkpointing (which runs blocks again, alone), and compiled models are computed as
    ever. Measure importance before: gates of one example each do not know packed tokens.

    Args:
        model: an encoder of a family whose description says `padding_free` (BERT, RoBERTa, ELECTRA, DistilBERT, ALBERT,
            ModernBERT), with adapters or without.

    Returns:
        The same model.

    Raises:
        ArchitectureError: another family.
        TrainingError: another attention than eager or SDPA was asked for.
    """
    check_padding_free(model)
    base = cast(Any, base_of(model))
    cores = [site.block.get_submodule(cast(Any, site.spec).core) for site in find_sites(model) if site.units]
    if any(hasattr(core, "_packer") for core in cores):
        return model
    packer = _Packer()
    AttentionInterface.register(ATTENTION, cast(Any, _attention))
    AttentionMaskInterface.register(ATTENTION, cast(Any, sdpa_mask))
    base.config._attn_implementation = ATTENTION
    trunk_of(model).register_forward_pre_hook(packer.look_at, with_kwargs=True)
    # Also after an error: a block that is called alone has no padding to leave out.
    trunk_of(model).register_forward_hook(packer.forget, always_call=True)
    for _, block, _ in find_stacks(model):
        block.register_forward_pre_hook(packer.pack_inputs, with_kwargs=True)
        block.register_forward_hook(packer.unpack_output)
    for core in cores:
        cast(Any, core)._packer = packer
    return model


def check_padding_free(model: nn.Module) -> None:
    """Refuse what `leave_out_padding_` cannot change; see there."""
    spec = spec_of(model)
    if not all(stack.padding_free for stack in spec.stacks):
        raise ArchitectureError(
            f"{spec.family} cannot leave out padding: its blocks compute with positions or cross-attention. Group the "
            "batches by length instead (recipe default)."
        )
    chosen = cast(Any, base_of(model)).config._attn_implementation
    if chosen not in ("eager", "sdpa", ATTENTION):
        raise TrainingError(f"The attention {chosen!r} cannot leave out padding; load the model with 'sdpa'.")


@dataclass
class _Packing:
    """Which tokens of a padded batch are real."""

    places: Tensor
    """`(tokens,)`, into the batch's rows laid one after the other."""
    rows: int
    length: int

    def pack(self, padded: Tensor) -> Tensor:
        """`(rows, length, ...)` → `(1, tokens, ...)`; what all rows share may have one row."""
        if len(padded) == 1 < self.rows:
            padded = padded.expand(self.rows, *padded.shape[1:])
        return padded.flatten(0, 1).index_select(0, self.places).unsqueeze(0)

    def unpack(self, packed: Tensor) -> Tensor:
        """`(1, tokens, ...)` → `(rows, length, ...)`, with zeros for padding."""
        whole = packed.new_zeros((self.rows * self.length, *packed.shape[2:]))
        return whole.index_copy(0, self.places, packed[0]).unflatten(0, (self.rows, self.length))


class _Packer:
    """What the hooks of one model share: how the batch that a thread computes is packed, if it is."""

    def __init__(self) -> None:
        self._here = threading.local()

    @property
    def packing(self) -> _Packing | None:
        return getattr(self._here, "packing", None)

    def __reduce__(self) -> Any:
        # What a thread is computing is not copied.
        return _Packer, ()

    def forget(self, *_: object) -> None:
        self._here.packing = None

    def look_at(self, trunk: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.forget()
        again = trunk.training and any(getattr(module, "gradient_checkpointing", False) for module in trunk.modules())
        if again or torch.compiler.is_compiling():
            return
        given = inspect.signature(trunk.forward).bind_partial(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        mask, config = given.get("attention_mask"), cast(Any, trunk).config
        # Transformers takes what is inside the blocks as it is.
        watched = any(
            given.get(name) or getattr(config, name) for name in ("output_hidden_states", "output_attentions")
        )
        if watched or not isinstance(mask, Tensor) or mask.dim() != 2:
            return
        places = mask.flatten().nonzero().flatten()
        # Task heads read the first token of a row, which then must be a real one.
        if len(places) < FULL_ENOUGH * mask.numel() and bool(mask[:, 0].all()):
            self._here.packing = _Packing(places, *mask.shape)

    def pack_inputs(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        packing = self.packing
        if packing is None:
            return None
        changed = dict(kwargs)
        if args:
            args = (packing.pack(args[0]), *args[1:])
        else:
            changed["hidden_states"] = packing.pack(kwargs["hidden_states"])
        positions = kwargs.get("position_embeddings")
        if positions is not None:
            changed["position_embeddings"] = tuple(packing.pack(each) for each in positions)
        return args, changed

    def unpack_output(self, _: nn.Module, __: object, output: Any) -> Any:
        packing = self.packing
        if packing is None:
            return None
        return (packing.unpack(output[0]), *output[1:]) if isinstance(output, tuple) else packing.unpack(output)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """`(batch, heads, tokens, head_size)` → `(batch, tokens, heads, head_size)`; see `AttentionInterface`."""
    # Another model may share the config that names this attention.
    packer: _Packer | None = getattr(module, "_packer", None)
    packing = None if packer is None else packer.packing
    if packing is None:
        return _SDPA(module, query, key, value, attention_mask, **options)
    # The mask is that of the padded batch.
    padded = (packing.unpack(each.transpose(1, 2)).transpose(1, 2) for each in (query, key, value))
    output, _ = _SDPA(module, *padded, attention_mask, **options)
    return packing.pack(output), None
