"""Which model is this? Its sizes, a fingerprint of its weights, and what was already removed from it."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from pruning_adapter.architectures.ranges import lists_from_ranges, to_ranges
from pruning_adapter.architectures.shapes import ModelIdentity, SiteShape, public_name
from pruning_adapter.architectures.sites import (
    base_of,
    find_all_sites,
    find_feed_forwards,
    find_sites,
    find_stacks,
    is_plain,
    model_type_of,
    spec_of,
    trunk_of,
    whole,
)
from pruning_adapter.errors import ArchitectureError, CheckpointError

__all__ = [
    "CONFIG_FIELD",
    "Fingerprint",
    "PrunedState",
    "block_parameters",
    "count_parameters",
    "count_stack_blocks",
    "dense_parameters",
    "fingerprint_weights",
    "identify",
    "pruned_state",
]

CONFIG_FIELD = "pruning"
"""Name of the field of `model.config` (and so of config.json) that says what was removed."""
_SCHEMA = 2


@dataclass(frozen=True, kw_only=True)
class PrunedState:
    """What a model lost: written into its config by surgery, and so saved with it."""

    dense: ModelIdentity
    """The model before any unit was removed."""
    kept_heads: tuple[tuple[int, ...], ...]
    """Heads left in every attention, by their number in the dense model."""
    kept_neurons: tuple[tuple[int, ...], ...]
    """Neurons left in every feed-forward, likewise."""
    stack_blocks: tuple[int, ...]
    """Blocks in each of the family's stacks; 0 for a stack that the model lacks."""
    fingerprint: str | None
    """Of the weights right after surgery: tells a base that was only pruned from one that was trained since."""
    reconstructed: str = "none"
    """How the kept weights were corrected for what is gone: "none", "bias" or "lstsq"."""
    macs: dict[str, Any] | None = None
    """What the dense model's forward costs (see `costs.macs`), if it was counted when it was scored."""

    @property
    def kept(self) -> tuple[tuple[int, ...], ...]:
        """What is left of each of `dense.all_sites`."""
        return self.kept_heads + self.kept_neurons

    @property
    def pruned_heads(self) -> dict[int, list[int]]:
        """Heads that are gone, by attention; only attentions that lost some."""
        gone = {
            number: [head for head in range(heads) if head not in kept]
            for number, (heads, kept) in enumerate(zip(self.dense.heads, self.kept_heads, strict=True))
        }
        return {number: heads for number, heads in gone.items() if heads}

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": _SCHEMA,
            "dense": self.dense.to_json(),
            "kept_heads": [list(heads) for heads in self.kept_heads],
            "kept_neurons": [to_ranges(neurons) for neurons in self.kept_neurons],
            "stack_blocks": list(self.stack_blocks),
            "fingerprint": self.fingerprint,
            "reconstructed": self.reconstructed,
            "macs": self.macs,
        }

    @classmethod
    def from_json(cls, value: Any) -> "PrunedState":
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: damaged, or of another schema.
        """
        try:
            if value["schema"] != _SCHEMA:
                raise CheckpointError(
                    f"config.{CONFIG_FIELD} has schema {value['schema']}; this release reads {_SCHEMA}."
                )
            dense = ModelIdentity.from_json(value["dense"])
            heads = tuple(tuple(heads) for heads in value["kept_heads"])
            neurons = lists_from_ranges(value["kept_neurons"])
            fingerprint, blocks = value["fingerprint"], tuple(int(count) for count in value["stack_blocks"])
            fits = _fit(heads, dense.sites) and _fit(neurons, dense.feed_forwards)
            reconstructed, macs = str(value["reconstructed"]), value["macs"]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"config.{CONFIG_FIELD} is damaged: {error!r}.") from error
        if not fits:
            raise CheckpointError(f"config.{CONFIG_FIELD} names heads or neurons that {dense} does not have.")
        return cls(
            dense=dense,
            kept_heads=heads,
            kept_neurons=neurons,
            stack_blocks=blocks,
            fingerprint=None if fingerprint is None else str(fingerprint),
            reconstructed=reconstructed,
            macs=macs,
        )


def _fit(kept: tuple[tuple[int, ...], ...], sites: tuple[SiteShape, ...]) -> bool:
    return len(kept) == len(sites) and all(
        all(type(unit) is int for unit in units)
        and list(units) == sorted(set(units))
        and (not units or 0 <= units[0] <= units[-1] < site.units)
        for units, site in zip(kept, sites, strict=True)
    )


def pruned_state(model: nn.Module) -> PrunedState | None:
    """What was removed from `model`; None if it is dense.

    Raises:
        ArchitectureError: this is no Transformers model.
        CheckpointError: its config says something that cannot be.
    """
    model_type_of(model)
    value = getattr(cast(Any, base_of(model)).config, CONFIG_FIELD, None)
    if value is None:
        return None
    state = PrunedState.from_json(value)
    sites = find_all_sites(model)
    if len(sites) != len(state.kept):
        raise CheckpointError(
            f"config.{CONFIG_FIELD} speaks of {len(state.kept)} attentions and feed-forwards, but the model has "
            f"{len(sites)}: it is a part of the pruned model. Load the whole, and take the part from it."
        )
    for site, kept in zip(sites, state.kept, strict=True):
        if site.units != len(kept):
            raise CheckpointError(
                f"config.{CONFIG_FIELD} says that {site.path} has {len(kept)} {site.kind} left, but it has "
                f"{site.units}: the model was built from its config alone. Build it with from_pretrained or "
                "load_pruned."
            )
    return state


def identify(model: nn.Module) -> ModelIdentity:
    """The identity of the dense model behind `model`, which may be pruned or wrapped by PEFT.

    A model that was trained since it was pruned is no longer that one: its fingerprint is made of the dense model's and
    of the weights it has now, so that neither passes for the other.

    Raises:
        ArchitectureError: its family is not supported.
    """
    model_type = model_type_of(model)
    spec_of(model)
    state = pruned_state(model)
    if state is not None:
        present = fingerprint_weights(model)
        if present is None or present == state.fingerprint:
            return state.dense
        both = hashlib.sha256(f"{state.dense.fingerprint} {present}".encode()).hexdigest()
        return replace(state.dense, fingerprint=both)
    config = cast(Any, base_of(model)).config
    return ModelIdentity(
        model_type=model_type,
        sites=tuple(site.shape() for site in find_sites(model)),
        feed_forwards=tuple(site.shape() for site in find_feed_forwards(model)),
        site_blocks=_site_blocks(model),
        block_parameters=tuple(sum(p.numel() for _, p in _own_parameters(block)) for _, block, _ in find_stacks(model)),
        norm_parameters=_count_norms(model),
        fingerprint=fingerprint_weights(model),
        name=public_name(str(getattr(config, "_name_or_path", "") or "")),
        revision=getattr(config, "_commit_hash", None),
    )


def count_stack_blocks(model: nn.Module) -> tuple[int, ...]:
    """Blocks in each stack of the model's family; 0 for a stack that it lacks."""
    stacks = [stack for _, _, stack in find_stacks(model)]
    return tuple(sum(found is stack for found in stacks) for stack in spec_of(model).stacks)


def _site_blocks(model: nn.Module) -> tuple[int, ...]:
    paths = {path: number for number, (path, _, _) in enumerate(find_stacks(model))}
    blocks = tuple(paths[site.path] for site in find_all_sites(model))
    plain = (*range(len(paths)), *range(len(paths)))
    return () if blocks == plain else blocks


def fingerprint_weights(model: nn.Module) -> str | None:
    """SHA-256 over the names, shapes and sign bits of all weights in the model's blocks; None on the meta device.

    The sign is the one bit of a number that every floating-point type keeps, so a model loaded in bfloat16, float16 or
    float64 has the fingerprint of its float32 file, on any device. Training flips the sign of some of the millions of
    weights near zero. Task head, pooler and embeddings do not count: they differ between the auto classes, and with an
    extended vocabulary. Two models that differ in magnitudes only, nowhere in sign, would pass as one. Of weights that
    are spread over processes, all processes must ask; one weight at a time is put together.
    """
    found = Fingerprint()
    for name, weight in block_parameters(model):
        if weight.is_meta:
            return None
        weight = whole(weight)
        if not is_plain(weight):
            stored = f"{type(weight).__name__} of {weight.dtype}".replace("torch.", "")
            raise ArchitectureError(
                f"{name} is stored as {stored}: a quantised model has lost the weights that identify it. Prune "
                "first, then quantise."
            )
        found.add(name, weight)
    return found.hexdigest()


def block_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters in the model's blocks, by name from the trunk on, in the order of the fingerprint."""
    for path, block, _ in find_stacks(model):
        for name, weight in sorted(_own_parameters(block), key=lambda pair: pair[0]):
            yield f"{path}.{name}", weight


class Fingerprint:
    """What `fingerprint_weights` computes, weight by weight."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, name: str, weight: Tensor) -> None:
        """The next weight, in the order of `block_parameters`."""
        self._digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        self._digest.update(np.packbits(torch.signbit(weight.detach()).cpu().numpy().reshape(-1)).tobytes())

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def count_parameters(model: nn.Module) -> int:
    """Parameters of `model` without those that an adapter added; shared ones count once."""
    return sum(parameter.numel() for _, parameter in _own_parameters(base_of(model)))


def dense_parameters(model: nn.Module) -> int:
    """Parameters that `model` had (task head included) before any unit was removed."""
    state = pruned_state(model)
    removed = 0
    if state is not None:
        removed = sum(
            site.parameters(range(site.units)) - site.parameters(kept)
            for site, kept in zip(state.dense.all_sites, state.kept, strict=True)
        )
    return count_parameters(model) + removed


def _own_parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of every parameter that is not an adapter's, under the name it has without one."""
    for name, parameter in module.named_parameters():
        if "lora_" in name or ".modules_to_save." in name or ".trainable_tokens_delta." in name:
            continue
        for wrapper in (".token_adapter.", ".base_layer.", ".original_module."):
            name = name.replace(wrapper, ".")
        yield name, parameter


def _count_norms(model: nn.Module) -> int:
    endings = spec_of(model).norms
    return sum(
        parameter.numel()
        for name, parameter in _own_parameters(trunk_of(model))
        if f".{name}".rpartition(".")[0].endswith(endings)
    )
