"""A folder with nothing of ours in it: weights, a config that stock Transformers reads, and a note on what it is."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruning_adapter.architectures.identity import CONFIG_FIELD
from pruning_adapter.checkpoint.companions import copy_companions
from pruning_adapter.checkpoint.logits_only import answer_of, first_line, largest_difference
from pruning_adapter.checkpoint.merged import check_plain, merge
from pruning_adapter.checkpoint.older_names import older_names
from pruning_adapter.checkpoint.replaceable import check_replaceable
from pruning_adapter.errors import OutputError
from pruning_adapter.reading import read_object

__all__ = ["build_stock", "check_against", "config_fields", "plain_copy", "write_plain"]

TOLERANCE = 1e-4
"""The most that logits may differ, in float32, as a share of the largest of them where that is above one."""
OURS = (CONFIG_FIELD, "pruned_heads")


def plain_copy(model: nn.Module, path: str | Path) -> Any:
    """A merged copy of `model`, on the CPU and in evaluation mode, once it is clear that it can be saved as `path`.

    Raises:
        OutputError: `path` is a file, or a folder that holds anything but a saved model.
        AdapterError: the base was quantised by `quantize_base_`.
    """
    check_replaceable(Path(path))
    merged: Any = merge(model)
    check_plain(merged)
    # What was merged is a copy already.
    return (copy.deepcopy(merged) if merged is model else merged).cpu().eval()


def config_fields(model: Any) -> dict[str, Any]:
    """The config of a model as a dictionary, without what pruning wrote into it."""
    return _without_ours(model.config.to_dict())


def build_stock(model: Any, fields: Mapping[str, Any]) -> Any:
    """A model of the class of `model` from the fields of a config, without weights.

    Raises:
        OutputError: its family refuses these fields.
    """
    try:
        config = type(model.config).from_dict(dict(fields))
        with torch.device("meta"):
            return type(model)(config).eval()
    except Exception as error:  # every family checks its config in its own way
        raise OutputError(f"{type(model).__name__} cannot be built with these sizes: {first_line(error)}") from error


def write_plain(
    folder: Path, model: Any, *, note: str, changes: Mapping[str, Any], files_from: str | Path | None
) -> None:
    """Write a model that has its weights into an empty folder.

    Args:
        folder: where to.
        model: what is saved.
        note: for README.md, in Markdown.
        changes: fields of the config that are to be other than the model's.
        files_from: a folder whose tokenizer and the like are copied.
    """
    older = older_names(config_fields(model))
    if older.get("tie_word_embeddings") is False:
        _untie_(model)
    model.save_pretrained(folder)
    path = folder / "config.json"
    saved = {**_without_ours(read_object(path, "config")), **older, **changes}
    path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if files_from is not None:
        copy_companions(Path(files_from), folder)
    (folder / "README.md").write_text(note, encoding="utf-8")


def check_against(model: Any, folder: Path) -> float:
    """The largest difference between the logits of `model` and those of what stock Transformers loads from `folder`.

    Both compute in the model's type, or in float32 where that is coarser.

    Raises:
        OutputError: they differ by more than 1e-4 of the largest logit.
    """
    dtype = torch.promote_types(model.dtype, torch.float32)
    wide: Any = model.to(dtype)
    # By the attention that stock Transformers chooses: the eager one makes no numbers of windows of padding only.
    loaded: Any = type(model).from_pretrained(folder, dtype=dtype, use_safetensors=True, trust_remote_code=False).eval()
    largest = 1.0

    def run(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        nonlocal largest
        with torch.no_grad():
            logits = answer_of(loaded(**inputs))
        largest = max(largest, float(logits.abs().max()))
        return logits

    try:
        difference = largest_difference(wide, run)
    except ValueError as error:  # such as a decoder that classifies and does not know which token pads
        raise OutputError(f"What was exported cannot be checked ({first_line(error)}); not written.") from error
    if not difference <= TOLERANCE * largest:
        raise OutputError(f"The logits of the exported model differ by {difference:.2g} from the model's; not written.")
    return difference


def _without_ours(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in OURS}


def _untie_(model: Any) -> None:
    """Version 4 looks for a matrix of its own where the config says that embeddings are not tied."""
    outputs, inputs = model.get_output_embeddings(), model.get_input_embeddings()
    if outputs is not None and outputs.weight.data_ptr() == inputs.weight.data_ptr():
        outputs.weight = nn.Parameter(outputs.weight.detach().clone(), requires_grad=False)
