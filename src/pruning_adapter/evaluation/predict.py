"""What a model says about examples."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruning_adapter.training.precision import is_mixed

__all__ = ["predict"]


@torch.no_grad()
def predict(
    model: nn.Module,
    features: Sequence[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
    *,
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """Scores (logits) of all examples, `(examples, classes)`, in the order given.

    Batches are made by length, so that little padding is computed. The model is left in the mode it was in. One whose
    frozen weights are in bfloat16 runs under autocast.
    """
    order = sorted(range(len(features)), key=lambda number: len(features[number]["input_ids"]), reverse=True)
    device, training = next(model.parameters()).device, [module for module in model.modules() if module.training]
    mixed = is_mixed(model)
    model.eval()
    rows: list[NDArray[np.float32]] = []
    try:
        for start in range(0, len(order), batch_size):
            batch = collate([features[number] for number in order[start : start + batch_size]])
            inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
            with torch.autocast(device.type, dtype=torch.bfloat16) if mixed else nullcontext():
                rows.append(model(**inputs).logits.float().cpu().numpy())
    finally:
        for module in training:
            module.training = True
    scores = np.concatenate(rows)
    found = np.empty_like(scores)
    found[order] = scores
    return found
