"""Saving an adapter of a model that one process holds, or several."""

from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import nn

from pruning_adapter.checkpoint.replaceable import check_adapter_replaceable
from pruning_adapter.processes import first_does, is_spread
from pruning_adapter.storage import replace_folder

__all__ = ["save_adapter"]


def save_adapter(model: nn.Module, folder: str | Path, *, tokenizer: Any = None) -> None:
    """Write a PEFT model's adapter, once for all processes; all of them must call.

    PEFT's own `save_pretrained` writes in every process, and of a model that is spread over them (FSDP2) only that
    process's part.

    Args:
        model: a PEFT model.
        folder: to write; one that holds an adapter is replaced as a whole, any other is refused.
        tokenizer: saved beside it, if there is one.

    Raises:
        OutputError: the folder cannot be written, or holds something else than an adapter.
        ProcessError: in the other processes, if the first failed.
    """
    first_does(partial(check_adapter_replaceable, Path(folder)))
    state = _gather_trained(model) if is_spread(model) else None

    def write() -> None:
        with replace_folder(folder) as aside:
            # Embeddings are never resized here; without the flag, PEFT would ask the Hub.
            cast(Any, model).save_pretrained(str(aside), save_embedding_layers=False, state_dict=state)
            if tokenizer is not None:
                tokenizer.save_pretrained(str(aside))

    first_does(write)


def _gather_trained(model: nn.Module) -> dict[str, Any]:
    """The whole of every trained weight, on the CPU of the first process."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    return get_model_state_dict(model, options=options)
