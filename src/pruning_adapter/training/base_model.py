"""Loading the model to start from: from a folder or the Hub, safetensors only, no remote code."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from pruning_adapter.architectures.registry import find_spec
from pruning_adapter.architectures.sites import find_stacks
from pruning_adapter.checkpoint.hub import find_model, find_tokenizer, note_commit_
from pruning_adapter.checkpoint.plausible import build_empty, read_config
from pruning_adapter.checkpoint.rebuild import stand_ins_in_place
from pruning_adapter.checkpoint.shards import read_index
from pruning_adapter.errors import CheckpointError

__all__ = ["BaseModel", "give_padding_", "load_base", "load_tokenizer"]


@dataclass(frozen=True)
class BaseModel:
    """A dense classifier, ready to be scored, pruned and trained."""

    model: nn.Module
    fresh: tuple[str, ...]
    """Modules whose weights the checkpoint does not hold: the task head, sometimes the pooler. They start at random, so
    they must train and be saved, or the adapter would not reload to what it was."""


def load_base(
    name: str,
    *,
    label_names: tuple[str, ...],
    seed: int | None,
    attention: str | None = None,
    revision: str | None = None,
) -> BaseModel:
    """Load `name` as a sequence classifier (or a regressor, if `label_names` is empty).

    Args:
        name: folder or hub id.
        label_names: class names in the order of their numbers.
        seed: seed of the weights that start at random, and of all that is drawn after; None draws from what there is.
        attention: Transformers' `attn_implementation`; by default its own choice.
        revision: of the hub id: a branch, a tag or a commit; by default its main branch.

    Raises:
        ArchitectureError: a family that we do not know; the message lists those we do.
        CheckpointError: not found here nor on the Hub, or not in safetensors.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed

    _check_safetensors(name)
    source = find_model(name, revision=revision)
    # Transformers would follow an index out of the folder.
    read_index(source.folder)
    find_spec(str(read_config(source.folder).get("model_type", "unknown")))
    labels = dict(enumerate(label_names)) or {0: "score"}
    fields: dict[str, Any] = {
        "id2label": labels,
        "label2id": {label: number for number, label in labels.items()},
        "num_labels": len(labels),
        "problem_type": "single_label_classification" if label_names else "regression",
        # Left out, it lets Transformers ask on the terminal.
        "trust_remote_code": False,
    }
    try:
        config = AutoConfig.from_pretrained(name, **fields, **source.options)
        with stand_ins_in_place():
            build_empty(partial(AutoModelForSequenceClassification.from_config, config), source.folder)
            if seed is not None:
                set_seed(seed)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                name,
                **fields,
                # Whatever the file holds: half-precision weights do not train. A lower precision for the frozen ones is
                # a matter of the device, not of the checkpoint.
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                # A head trained for another number of classes starts anew; nothing else may differ in size.
                ignore_mismatched_sizes=True,
                **({} if attention is None else {"attn_implementation": attention}),
                **source.options,
            )
    except Exception as error:  # every library below raises its own kinds for damaged files
        raise CheckpointError(_explain(name, error)) from error
    new = {*info["missing_keys"], *(str(entry[0]) for entry in info["mismatched_keys"])}
    _check_blocks_are_complete(name, model, new)
    note_commit_(model, source)
    return BaseModel(model=model, fresh=tuple(sorted({key.rpartition(".")[0] for key in new})))


def load_tokenizer(name: str, *, revision: str | None = None) -> Any:
    """The tokenizer of `name`, at a revision if that is a hub id.

    Where it has no token for padding, as those of many decoders, that which ends a text becomes it.

    Raises:
        CheckpointError: not found here nor on the Hub, or with no token to pad with.
    """
    from transformers import AutoTokenizer

    source = find_tokenizer(name, revision=revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **source.options)
    except Exception as error:  # the tokenizers' own reader, and classes that trust their files
        raise CheckpointError(_explain(name, error)) from error
    # Where the files are missing, Transformers makes up a tokenizer that knows no words.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise CheckpointError(f"{name} holds no tokenizer; save it there too: tokenizer.save_pretrained(folder).")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise CheckpointError(
                f"The tokenizer of {name} has neither a token for padding nor one that ends a text. Give it one and "
                "save it there: tokenizer.pad_token = ...; tokenizer.save_pretrained(folder)."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def give_padding_(model: nn.Module, tokenizer: Any) -> None:
    """Tell a model that does not know it which token pads: decoders classify by the last one that does not."""
    config = cast(Any, model).config
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id


def _check_safetensors(name: str) -> None:
    folder = Path(name)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.ckpt")))
    if pickled:
        raise CheckpointError(
            f"{folder} holds pickled weights ({pickled[0]}) and no safetensors. Unpickling can run code, so it is "
            "never done here; convert them where you trust them: model.save_pretrained(folder)."
        )
    raise CheckpointError(f"{folder} holds no *.safetensors; it is not a saved model.")


def _check_blocks_are_complete(name: str, model: nn.Module, new: set[str]) -> None:
    blocks = tuple(f".{path}." for path, _, _ in find_stacks(model))
    broken = sorted(key for key in new if any(block in f".{key}" for block in blocks))
    if broken:
        raise CheckpointError(
            f"{name} lacks the weight {broken[0]!r}, or holds it in another size than its config.json says "
            f"({len(broken)} weights in all): the checkpoint is damaged, or not of this architecture."
        )


def _explain(name: str, error: Exception) -> str:
    first = next((line for line in str(error).strip().splitlines() if line), type(error).__name__)
    return f"Cannot load a model from {'the folder ' if Path(name).is_dir() else ''}{name}: {first}"
