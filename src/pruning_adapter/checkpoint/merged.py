"""The smaller, merged, stand-alone model: safetensors and a config that says what was removed."""

import copy
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import nn

from pruning_adapter.architectures.identity import CONFIG_FIELD, PrunedState
from pruning_adapter.architectures.sites import is_plain
from pruning_adapter.checkpoint.hub import HUB_OPTIONS, find_model, note_commit_
from pruning_adapter.checkpoint.plausible import build_empty, read_config
from pruning_adapter.checkpoint.rebuild import stand_ins_in_place
from pruning_adapter.checkpoint.replaceable import check_replaceable
from pruning_adapter.checkpoint.shards import read_index
from pruning_adapter.errors import AdapterError, CheckpointError
from pruning_adapter.storage import replace_folder
from pruning_adapter.surgery.fuse import fuse_
from pruning_adapter.surgery.linear import ALIGNMENT

__all__ = ["align_", "check_plain", "find_class", "load_pruned", "merge", "save_pruned"]


def merge(model: nn.Module) -> nn.Module:
    """A plain Transformers model that computes what `model` computes: LoRA merged, trained norms and head in place.

    `model` itself is left as it is (the merge happens in a copy); a model without adapters is returned as it is.
    """
    if not hasattr(model, "merge_and_unload"):
        return model
    return cast(nn.Module, cast(Any, copy.deepcopy(model)).merge_and_unload())


def save_pruned(model: nn.Module, path: str | Path, *, tokenizer: Any = None) -> None:
    """Save `model`, merged, as a folder that describes itself.

    It holds safetensors, a `config.json` whose field `pruning` lists the kept heads of every block, and the tokenizer.
    For BERT-like models Transformers 4 loads it with no code of ours (unless a block lost all its heads). A folder that
    holds a saved model is replaced as a whole once the new one is complete; one that holds anything else is refused.

    Args:
        model: a pruned model, or a PEFT model around one; a dense one works too.
        path: the folder.
        tokenizer: saved along, if given.

    Raises:
        OutputError: the folder cannot be written; what was there before is untouched.
        AdapterError: the base was quantised by `quantize_base_`.
    """
    check_replaceable(Path(path))
    plain = cast(Any, merge(model))
    # Transformers saves what it quantised itself, and the config says so.
    if getattr(plain, "hf_quantizer", None) is None:
        check_plain(plain)
    with replace_folder(path) as aside:
        plain.save_pretrained(aside)
        if tokenizer is not None:
            tokenizer.save_pretrained(aside)


def check_plain(model: nn.Module) -> None:
    """Refuse packed weights, which Transformers would save as if they were the weights.

    Raises:
        AdapterError: the weights are packed.
    """
    if not all(is_plain(weight) for weight in model.parameters()):
        raise AdapterError(
            "The weights were quantised in memory, which no checkpoint can say. Save the model that is not quantised."
        )


def load_pruned(path: str | Path, *, fuse: bool = False, **kwargs: Any) -> Any:
    """Load what `save_pruned` wrote: a Transformers model of the class that was saved.

    Plain `AutoModelForX.from_pretrained` does the same once `pruning_adapter` is imported; this function chooses the
    class, accepts safetensors only, and checks that no weight is missing.

    Args:
        path: folder or hub id. Of a repository only JSON, safetensors and its card are fetched.
        fuse: compute query, key and value as one product where the family keeps them apart, which is for inference;
            see `pruning_adapter.surgery.fuse_`.
        kwargs: handed to `from_pretrained`, such as `dtype`, `device_map`, `quantization_config`; for hub ids also
            `revision` (a branch, a tag, or better a commit), `subfolder`, `token`, `cache_dir`, `local_files_only`.
            Code beside the model is run only if `trust_remote_code` is among them, and true.

    Raises:
        CheckpointError: not such a folder, damaged, or incomplete; no such repository or revision, none that this
            login may read, or not in the cache and offline; or quantised to 4 bits in a way that bitsandbytes cannot
            compute on a CPU.
    """
    import transformers

    location, inside = str(path), str(kwargs.get("subfolder") or "")
    if Path(location).is_dir() and not (Path(location) / inside / "config.json").exists():
        raise CheckpointError(f"{Path(location) / inside} has no config.json: it holds no model saved by save_pruned.")
    source = find_model(path, **{name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs})
    folder = source.folder / inside
    # Transformers would follow an index out of the folder.
    read_index(folder)
    read_config(folder)
    # Left out, it lets Transformers ask on the terminal.
    trusted = {"trust_remote_code": kwargs.pop("trust_remote_code", False)}
    kwargs |= source.options
    try:
        config = transformers.AutoConfig.from_pretrained(location, **trusted, **source.options)
        if getattr(config, CONFIG_FIELD, None) is not None:
            PrunedState.from_json(getattr(config, CONFIG_FIELD))
        model_class = find_class(config, location)
        with stand_ins_in_place():
            build_empty(partial(model_class, copy.deepcopy(config)), folder)
            model, info = cast(Any, model_class).from_pretrained(
                location, config=config, use_safetensors=True, output_loading_info=True, **trusted, **kwargs
            )
    except CheckpointError as error:
        raise CheckpointError(f"Cannot load a model from {location}: {error}") from error
    except Exception as error:  # every library below raises its own kinds for damaged files
        raise CheckpointError(f"Cannot load a model from {location}: {_first_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(f"{location} lacks {len(missing)} weights, the first is {missing[0]!r}; save it again.")
    note_commit_(model, source)
    _mend_four_bits_(model)
    align_(model)
    return fuse_(model) if fuse else model


def find_class(config: Any, location: str) -> type[Any]:
    """The model class that a config names: of Transformers, or the user's own, which must have been imported."""
    import transformers

    named: Any = getattr(config, "architectures", None)
    name = str(named[0] if isinstance(named, list) and named else None)
    stock: object = getattr(transformers, name, None)
    waiting: list[type[Any]] = [stock] if isinstance(stock, type) else [transformers.PreTrainedModel]
    for candidate in waiting:
        if candidate.__name__ == name and issubclass(candidate, transformers.PreTrainedModel):
            return candidate
        waiting += candidate.__subclasses__()
    raise CheckpointError(
        f"{location} names the class {name!r}, which is neither a model of this Transformers nor one that was imported."
    )


def _mend_four_bits_(model: nn.Module) -> None:
    """Make the 4-bit linears of bitsandbytes (0.50) compute what they stand for on a CPU, or refuse them.

    With AVX-512 it unpacks a row that ends within a block of 64 with the scales of other blocks, and says nothing.
    Dense models hardly have such rows, pruned ones do.
    """
    for name, module in model.named_modules():
        if type(module).__name__ != "Linear4bit":
            continue
        linear = cast(Any, module)
        # On some processors one evaluation would repack the weight for good, for a bfloat16 product without gradients.
        linear.support_avx512bf16_for_cpu = False
        if linear.weight.device.type == "cpu" and linear.in_features % 64:
            raise CheckpointError(
                f"{name} reads {linear.in_features} inputs, no multiple of 64, which bitsandbytes gets wrong in 4 "
                "bits on a CPU. Load it on a GPU, in 8 bits, or whole."
            )


def align_(model: nn.Module) -> None:
    """Move weights that lie across cache lines, as views of a file do.

    Matrix products add up in another order there, and results would differ in the last bit from those of the model that
    was saved.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        # Quantised weights were made just now, and not every class of them has a place to look at.
        if is_plain(tensor) and tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
