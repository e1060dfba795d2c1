"""An adapter's file may hold what its config trains. PEFT would put any other weight that it holds into place too."""

from collections.abc import Iterator, Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from peft import PeftModel
from torch import nn

from pruning_adapter.errors import AdapterError, CheckpointError
from pruning_adapter.reading import read_object

__all__ = ["refuse_what_does_not_train"]

PREFIX = "base_model.model."
CONTAINERS = ("lora_", "modules_to_save", "trainable_tokens_")
"""How the modules are called in which PEFT keeps weights by the name of their adapter."""


def refuse_what_does_not_train(model: nn.Module, adapter: str, bias: str, state: Mapping[str, Any]) -> None:
    """Check the content of an adapter's file before it is loaded.

    Args:
        model: a PEFT model, or any other that carries the adapter.
        adapter: its name.
        bias: which biases it trains, as LoRA's option says.
        state: by name of the model's weights.

    Raises:
        AdapterError: it holds weights that are not the adapter's own.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    own = set(_own_names(model, adapter, bias))
    weights = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    others = {name for name, _ in weights if name not in own}
    # Saved with the prefix of a PEFT model, whether the model has one or not.
    held = {place for name in state for place in (name, name.removeprefix(PREFIX))}
    carried = sorted(others & held)
    if carried and _was_resized(base):
        embeddings = _embedding_names(model, base)
        carried = [name for name in carried if name not in embeddings]
    if carried:
        raise AdapterError(
            f"The adapter carries weights of the base itself ({carried[0]!r}, {len(carried)} in all), which it must "
            "not replace. It was damaged or tampered with; take it from its source again."
        )


def _own_names(model: nn.Module, adapter: str, bias: str) -> Iterator[str]:
    for name, _ in chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        parts = name.split(".")
        inside = any(inner == adapter and outer.startswith(CONTAINERS) for outer, inner in pairwise(parts))
        # LoRA's option `bias` trains those of the base.
        if inside or (parts[-1] == "bias" and (bias == "all" or (bias == "lora_only" and parts[-2] == "base_layer"))):
            yield name


def _embedding_names(model: nn.Module, base: Any) -> set[str]:
    modules = {id(module) for module in (base.get_input_embeddings(), base.get_output_embeddings()) if module}
    found = {path: module for path, module in model.named_modules() if id(module) in modules}
    return {f"{path}.{name}" for path, module in found.items() for name, _ in module.named_parameters()}


def _was_resized(base: Any) -> bool:
    """Whether the vocabulary is another than that of the model's own files, in which case PEFT saves embeddings too."""
    place = str(getattr(base, "name_or_path", ""))
    try:
        found = str(Path(place) / "config.json")
        if place and not Path(place).is_dir():
            # None where it is not there, or an object that says that it is nowhere.
            revision = getattr(base.config, "_commit_hash", None)
            found = try_to_load_from_cache(place, "config.json", revision=revision)
        if not place or not isinstance(found, str):
            return False
        before = read_object(found, "config").get("vocab_size")
    except (CheckpointError, HFValidationError):
        return False
    return isinstance(before, int) and before != base.get_input_embeddings().weight.shape[0]
