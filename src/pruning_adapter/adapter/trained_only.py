"""An adapter's file may hold what its config trains. PEFT would put any other weight that it holds into place too."""

import inspect
from collections.abc import Iterator, Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, cast

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from peft import set_peft_model_state_dict
from torch import nn

from pruning_adapter.errors import AdapterError, CheckpointError
from pruning_adapter.reading import read_object

__all__ = ["refuse_what_does_not_train"]

CONTAINERS = ("lora_", "modules_to_save", "trainable_tokens_")
"""How the modules are called in which PEFT keeps weights by the name of their adapter."""


def refuse_what_does_not_train(tuner: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Before a state is loaded, if it is an adapter's file that PEFT reads: see `register_load_state_dict_pre_hook`.

    A state that somebody loads without PEFT, such as one of the whole model, is theirs.

    Raises:
        AdapterError: it holds weights that are not the adapter's own.
    """
    adapter = _adapter_that_is_read()
    if adapter is None:
        return
    base, config = cast(Any, tuner).model, cast(Any, tuner).peft_config[adapter]
    own = set(_own_names(tuner, adapter, config.bias))
    weights = chain(tuner.named_parameters(remove_duplicate=False), tuner.named_buffers(remove_duplicate=False))
    others = {f"{prefix}{name}" for name, _ in weights if name not in own}
    carried = sorted(others & set(state))
    if carried and _was_resized(base):
        embeddings = _embedding_names(tuner, base)
        carried = [name for name in carried if name.removeprefix(prefix) not in embeddings]
    if carried:
        raise AdapterError(
            f"The adapter carries weights of the base itself ({carried[0]!r}, {len(carried)} in all), which it must "
            "not replace. It was damaged or tampered with; take it from its source again."
        )


def _adapter_that_is_read() -> str | None:
    """Whose file is being loaded. Before 0.21, PEFT tells its tuners nothing of it, so we look who called."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is set_peft_model_state_dict.__code__:
            return str(frame.f_locals["adapter_name"])
        frame = frame.f_back
    return None


def _own_names(tuner: nn.Module, adapter: str, bias: str) -> Iterator[str]:
    for name, _ in chain(tuner.named_parameters(remove_duplicate=False), tuner.named_buffers(remove_duplicate=False)):
        parts = name.split(".")
        inside = any(inner == adapter and outer.startswith(CONTAINERS) for outer, inner in pairwise(parts))
        # LoRA's option `bias` trains those of the base.
        if inside or (parts[-1] == "bias" and (bias == "all" or (bias == "lora_only" and parts[-2] == "base_layer"))):
            yield name


def _embedding_names(tuner: nn.Module, base: Any) -> set[str]:
    modules = {id(module) for module in (base.get_input_embeddings(), base.get_output_embeddings()) if module}
    found = {path: module for path, module in tuner.named_modules() if id(module) in modules}
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
