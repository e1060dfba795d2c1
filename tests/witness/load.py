"""What Transformers 4.57 said about pruning and importance, next to the same model in the Transformers of today."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

__all__ = ["FAMILIES", "Witness", "load_witness"]

FAMILIES = ("bert", "roberta", "electra", "distilbert")
FIXTURES = Path(__file__).parent / "fixtures"
WEIGHTS = "weights."
BATCH = ("input_ids", "attention_mask", "labels")

# Written by `to_dict` of 4.57 about itself or about pruning, not about the model.
NOT_THE_MODEL = ("model_type", "pruned_heads", "transformers_version", "_name_or_path")
# Buffers that older versions of Transformers keep in the state dict. 4.57 keeps none in these families.
LEGACY_BUFFERS = ("position_ids", "token_type_ids")


@dataclass(frozen=True)
class Witness:
    """One fixture. All floats are float64; gradients are absolute values, before any normalisation."""

    model: PreTrainedModel
    """Dense, in evaluation mode, new with every call of `load_witness`: prune it at will."""
    batch: dict[str, Tensor]
    """`input_ids`, `attention_mask` and `labels` of six examples of different lengths, padded on the right."""
    dense_logits: Tensor
    pruned_heads: dict[int, list[int]]
    """What `prune_heads` was given. No block is empty; a block that is not named keeps all its heads."""
    pruned_logits: Tensor
    """After `prune_heads`."""
    pruned_parameters: int
    """The whole model's, after `prune_heads`."""
    per_example: Tensor
    """(examples, blocks, heads): |dL(x)/d head_mask| of each example alone, without padding."""
    batch_gradient: Tensor
    """(blocks, heads): |dL/d head_mask| with one mask for the padded batch, L the mean over its examples."""
    bertology: Tensor
    """(blocks, heads): the script run_bertology.py over batches of two examples: the sum, over the batches, of the
    absolute value of the gradient accumulated so far, divided by the number of tokens that are not padding."""


def load_witness(family: str, attn_implementation: str | None = None) -> Witness:
    """The fixture of one of `FAMILIES`; the attention is the library's default unless named."""
    with safe_open(FIXTURES / f"{family}.safetensors", framework="pt") as fixture:
        record = json.loads(fixture.metadata()["witness"])
        tensors = {name: fixture.get_tensor(name) for name in fixture.keys()}  # noqa: SIM118 (it is not a dict)
    config = _config(record["model_type"], record["config"])
    weights = {name.removeprefix(WEIGHTS): tensor for name, tensor in tensors.items() if name.startswith(WEIGHTS)}
    return Witness(
        model=_model(config, weights, attn_implementation),
        batch={name: tensors[name] for name in BATCH},
        dense_logits=tensors["dense_logits"],
        pruned_heads={int(block): heads for block, heads in record["pruned_heads"].items()},
        pruned_logits=tensors["pruned_logits"],
        pruned_parameters=record["pruned_parameters"],
        per_example=tensors["per_example"],
        batch_gradient=tensors["batch_gradient"],
        bertology=tensors["bertology"],
    )


def _config(model_type: str, fields: dict[str, Any]) -> PreTrainedConfig:
    config_class = CONFIG_MAPPING[model_type]
    known = config_class().to_dict()
    return config_class.from_dict(
        {name: value for name, value in fields.items() if name in known and name not in NOT_THE_MODEL}
    )


def _model(config: PreTrainedConfig, weights: dict[str, Tensor], attn_implementation: str | None) -> PreTrainedModel:
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with torch.random.fork_rng(devices=[]):  # The initial weights are thrown away: leave no trace of drawing them.
        model = AutoModelForSequenceClassification.from_config(config, **options)
    model = model.to(torch.float64).eval()
    kept = {name: weight for name, weight in weights.items() if not name.endswith(LEGACY_BUFFERS)}
    model.load_state_dict(kept, strict=True)
    return model
