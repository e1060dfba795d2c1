"""A pruned model at the dense model's sizes, with zeros where units were: it loads anywhere, and saves nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning_adapter.architectures.identity import pruned_state
from pruning_adapter.checkpoint.plain_folder import build_stock, check_against, config_fields, plain_copy, write_plain
from pruning_adapter.storage import replace_folder
from pruning_adapter.surgery.cuts import cuts_by_name

__all__ = ["save_stock"]

NOTE = """# A pruned model, padded with zeros

The heads and neurons that were pruned are there again, as zeros, so that any version of Transformers loads this folder
with its own classes. It computes what the pruned model computes. **It saves nothing**: it is as large and as slow as
the dense model. The smaller model is what `save_pruned` of Pruning-Adapter writes.
"""


def save_stock(model: nn.Module, path: str | Path, *, files_from: str | Path | None = None) -> float:
    """Save `model`, merged, at the sizes of the dense model, with zeros where units were removed.

    Stock Transformers of any version loads the folder; nothing of ours is in its config. It saves nothing: neither
    memory nor time. The folder is written only after stock Transformers has loaded it and given the model's logits.

    Args:
        model: dense or pruned, with or without adapters.
        path: the folder; one that holds a saved model is replaced as a whole.
        files_from: a folder, such as the one that `save_pruned` wrote, whose tokenizer is copied along.

    Returns:
        The largest difference of logits that was seen.

    Raises:
        OutputError: the folder cannot be written, or logits differ; what was there before is untouched.
        AdapterError: the base was quantised by `quantize_base_`.
    """
    plain = plain_copy(model, path)
    dense = build_stock(plain, config_fields(plain))
    dense.load_state_dict(_padded(plain, dense), assign=True)
    with replace_folder(path) as aside:
        write_plain(aside, dense, note=NOTE, changes={}, files_from=files_from)
        return check_against(plain, aside)


def _padded(plain: Any, dense: Any) -> dict[str, Tensor]:
    """The weights of a pruned model under the names, and in the shapes, of the dense one."""
    weights, state = plain.state_dict(), pruned_state(plain)
    places = {} if state is None else cuts_by_name(dense, state.dense.all_sites, state.kept)
    padded: dict[str, Tensor] = {}
    for name, like in dense.state_dict().items():
        if name not in weights or not weights[name].numel():
            # A sub-layer without units. Its projections may be gone, with norms that its stub does not need.
            padded[name] = torch.zeros(like.shape, dtype=plain.dtype)
        elif weights[name].shape == like.shape:
            padded[name] = weights[name]
        else:
            padded[name] = _spread(weights[name], *places[name], like.shape)
    return padded


def _spread(tensor: Tensor, dimension: int, places: Sequence[int], shape: torch.Size) -> Tensor:
    return tensor.new_zeros(shape).index_copy_(dimension, torch.tensor(places, dtype=torch.long), tensor)
