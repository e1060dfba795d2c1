"""Which model is this? Its sizes, a fingerprint of its weights, and what was already removed from it."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from pruning_adapter.architectures.shapes import ModelIdentity
from pruning_adapter.architectures.sites import base_of, find_sites, find_stacks, model_type_of, spec_of, trunk_of
from pruning_adapter.errors import ArchitectureError, CheckpointError

__all__ = [
    "CONFIG_FIELD",
    "PrunedState",
    "count_parameters",
    "dense_parameters",
    "fingerprint_weights",
    "identify",
    "pruned_state",
]

CONFIG_FIELD = "pruning"
"""Name of the field of `model.config` (and so of config.json) that says what was removed."""
_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class PrunedState:
    """What a model lost: written into its config by surgery, and so saved with it."""

    dense: ModelIdentity
    """The model before any head was removed."""
    kept_heads: tuple[tuple[int, ...], ...]
    """Heads left in every block, by their number in the dense model."""
    fingerprint: str | None
    """Of the weights right after surgery: tells a base that was only pruned from one that was trained since."""

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": _SCHEMA,
            "dense": self.dense.to_json(),
            "kept_heads": [list(heads) for heads in self.kept_heads],
            "fingerprint": self.fingerprint,
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
            kept = tuple(tuple(heads) for heads in value["kept_heads"])
            fingerprint = value["fingerprint"]
            there_are = [set(range(site.heads)) for site in dense.sites]
            fits = len(kept) == len(there_are) and all(
                all(type(head) is int for head in heads) and list(heads) == sorted(set(heads)) and set(heads) <= known
                for heads, known in zip(kept, there_are, strict=True)
            )
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"config.{CONFIG_FIELD} is damaged: {error!r}.") from error
        if not fits:
            raise CheckpointError(f"config.{CONFIG_FIELD} names heads that {dense} does not have.")
        return cls(dense=dense, kept_heads=kept, fingerprint=None if fingerprint is None else str(fingerprint))


def pruned_state(model: nn.Module) -> PrunedState | None:
    """What was removed from `model`; None if it is dense.

    Raises:
        CheckpointError: its config says something that cannot be.
    """
    value = getattr(cast(Any, base_of(model)).config, CONFIG_FIELD, None)
    if value is None:
        return None
    state = PrunedState.from_json(value)
    for site, kept in zip(find_sites(model), state.kept_heads, strict=True):
        if site.heads != len(kept):
            raise CheckpointError(
                f"config.{CONFIG_FIELD} says that {site.path} has {len(kept)} heads left, but it has {site.heads}: the "
                "model was built from its config alone. Build it with from_pretrained, from_config or load_pruned."
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
        block_parameters=tuple(sum(p.numel() for _, p in _own_parameters(block)) for _, block, _ in find_stacks(model)),
        norm_parameters=_count_norms(model),
        fingerprint=fingerprint_weights(model),
        name=str(getattr(config, "_name_or_path", "") or ""),
        revision=getattr(config, "_commit_hash", None),
    )


def fingerprint_weights(model: nn.Module) -> str | None:
    """SHA-256 over the names, shapes and sign bits of all weights in the model's blocks; None on the meta device.

    The sign is the one bit of a number that every floating-point type keeps, so a model loaded in bfloat16, float16 or
    float64 has the fingerprint of its float32 file, on any device. Training flips the sign of some of the millions of
    weights near zero. Task head, pooler and embeddings do not count: they differ between the auto classes, and with an
    extended vocabulary. Two models that differ in magnitudes only, nowhere in sign, would pass as one.
    """
    digest = hashlib.sha256()
    for path, block, _ in find_stacks(model):
        for name, weight in sorted(_own_parameters(block)):
            if weight.is_meta:
                return None
            if not weight.dtype.is_floating_point:
                raise ArchitectureError(
                    f"{path}.{name} is stored as {weight.dtype}: a quantised model has lost the weights that identify "
                    "it. Prune first, then quantise."
                )
            digest.update(f"{path}.{name} {tuple(weight.shape)}\n".encode())
            digest.update(np.packbits(torch.signbit(weight.detach()).cpu().numpy().reshape(-1)).tobytes())
    return digest.hexdigest()


def count_parameters(model: nn.Module) -> int:
    """Parameters of `model` without those that an adapter added; shared ones count once."""
    return sum(parameter.numel() for _, parameter in _own_parameters(base_of(model)))


def dense_parameters(model: nn.Module) -> int:
    """Parameters that `model` had (task head included) before any head was removed."""
    state = pruned_state(model)
    removed = 0
    if state is not None:
        removed = sum(
            site.parameters(range(site.heads)) - site.parameters(kept)
            for site, kept in zip(state.dense.sites, state.kept_heads, strict=True)
        )
    return count_parameters(model) + removed


def _own_parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of every parameter that is not an adapter's, under the name it has without one."""
    for name, parameter in module.named_parameters():
        if "lora_" in name or ".modules_to_save." in name:
            continue
        yield name.replace(".base_layer.", ".").replace(".original_module.", "."), parameter


def _count_norms(model: nn.Module) -> int:
    endings = spec_of(model).norms
    return sum(
        parameter.numel()
        for name, parameter in _own_parameters(trunk_of(model))
        if name.rpartition(".")[0].endswith(endings)
    )
