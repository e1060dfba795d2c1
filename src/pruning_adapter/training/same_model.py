"""Whether all processes are about to train one and the same model."""

import hashlib
import json

import torch
from torch import nn

from pruning_adapter.architectures.identity import block_parameters, fingerprint_weights, pruned_state
from pruning_adapter.architectures.sites import is_plain
from pruning_adapter.errors import TrainingError
from pruning_adapter.processes import gather, process_count, take_from_first_

__all__ = ["ensure_same_model_"]


def ensure_same_model_(model: nn.Module) -> None:
    """Compare what was removed, and the weights' shapes and signs, over all processes; trained weights are the first's.

    DDP would take the first process's frozen weights for all, and FSDP2 a part of each process's own, whatever they
    belong to. Where trained weights start at random, processes may differ in them.

    Raises:
        TrainingError: in all processes; names one that differs from the first, and in what.
    """
    if process_count() == 1:
        return
    said = gather(_describe(model))
    for number, other in enumerate(said):
        differs = [part for part, digest in said[0].items() if other[part] != digest]
        if differs:
            raise TrainingError(
                f"Process {number} of {len(said)} is about to train another model than process 0: its {differs[0]} "
                "differ. Give all processes the same plan, base and adapter; plans are best read from one file."
            )
    with torch.no_grad():
        take_from_first_([weight.data for weight in model.parameters() if weight.requires_grad])


def _describe(model: nn.Module) -> dict[str, str]:
    """Digests, from what tells most to what tells least."""
    state = pruned_state(model)
    shapes = [
        (name, tuple(weight.shape), str(weight.dtype), weight.requires_grad)
        for name, weight in model.named_parameters()
    ]
    # Of packed weights nothing can be told.
    plain = all(is_plain(weight) for _, weight in block_parameters(model))
    return {
        "removed units": _digest(None if state is None else state.kept),
        "shapes and types of weights": _digest(shapes),
        "weights": _digest([fingerprint_weights(model) if plain else None, None if state is None else state.to_json()]),
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
