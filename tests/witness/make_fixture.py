"""Write the fixtures of this folder with Transformers 4.57, the last that has ``prune_heads`` and ``head_mask``.

It needs an environment of its own, as the library itself needs Transformers 5, and nothing of the library::

    python3.11 -m venv witness-env
    witness-env/bin/pip install torch==2.13.0 "transformers==4.57.6" safetensors
    witness-env/bin/python tests/witness/make_fixture.py

Everything is seeded and in float64, so that a second run writes the same bytes on the same machine.
"""

import argparse
import json
import logging
import platform
from collections.abc import Iterable
from pathlib import Path

import safetensors
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    PreTrainedModel,
    RobertaConfig,
)

HEADS = 4
VOCABULARY = 41
LABELS = 3
# Unsorted, so that a measurement which sorts by length must also put the examples back. A RoBERTa of 40 positions
# reads at most 38 tokens: its positions start behind the padding index, which is 1.
LENGTHS = (5, 12, 3, 9, 7, 4)
BERTOLOGY_BATCH = 2

# Head sizes are 5 or 6 and never the number of heads, so that the two cannot be swapped unseen. A block may keep all
# its heads or a single one, but none is empty: 4.57 cannot do that.
SHAPE = {"vocab_size": VOCABULARY, "max_position_embeddings": 40, "num_labels": LABELS}
BERT_LIKE = {
    **SHAPE,
    "num_attention_heads": HEADS,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout": 0.0,
}
CONFIGS = {
    "bert": BertConfig(**BERT_LIKE, hidden_size=20, num_hidden_layers=3, intermediate_size=28),
    "roberta": RobertaConfig(**BERT_LIKE, hidden_size=24, num_hidden_layers=2, intermediate_size=32, type_vocab_size=1),
    "electra": ElectraConfig(**BERT_LIKE, hidden_size=20, num_hidden_layers=3, intermediate_size=28, embedding_size=16),
    "distilbert": DistilBertConfig(
        **SHAPE,
        n_heads=HEADS,
        dim=24,
        n_layers=2,
        hidden_dim=32,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
    ),
}
PRUNED_HEADS = {
    "bert": {0: [1, 3], 1: [0], 2: [0, 2, 3]},
    "roberta": {0: [0, 3], 1: [2]},
    "electra": {0: [3], 2: [0, 1, 2]},
    "distilbert": {0: [0, 2, 3], 1: [1]},
}
FAMILIES = tuple(CONFIGS)

logger = logging.getLogger("witness")


def build_model(family: str) -> PreTrainedModel:
    """A model in which no parameter has its initial value: zero biases would hide a bias sliced wrongly."""
    torch.manual_seed(FAMILIES.index(family))
    model = AutoModelForSequenceClassification.from_config(CONFIGS[family], attn_implementation="eager")
    model.eval().requires_grad_(False)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            parameter.normal_(std=0.3)
            if isinstance(module, nn.LayerNorm) and name == "weight":
                parameter.add_(1.0)
            elif isinstance(module, nn.Embedding):
                parameter.mul_(2.0)  # The row of the padding token too: attention that sees it must show.
    return model


def build_batch(config: transformers.PretrainedConfig) -> dict[str, Tensor]:
    """Six examples of different lengths, padded on the right; no real token is the padding token."""
    positions = torch.arange(max(LENGTHS))
    attention_mask = (positions < torch.tensor(LENGTHS)[:, None]).long()
    input_ids = torch.randint(3, VOCABULARY, attention_mask.shape)
    return {
        "input_ids": input_ids.masked_fill(attention_mask == 0, config.pad_token_id),
        "attention_mask": attention_mask,
        "labels": torch.randint(LABELS, (len(LENGTHS),)),
    }


def head_mask_of(model: PreTrainedModel) -> Tensor:
    return torch.ones(model.config.num_hidden_layers, HEADS, requires_grad=True)


def single_examples(batch: dict[str, Tensor]) -> Iterable[dict[str, Tensor]]:
    """Each example alone, its padding stripped."""
    for i, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
        yield {
            "input_ids": batch["input_ids"][i : i + 1, :length],
            "attention_mask": batch["attention_mask"][i : i + 1, :length],
            "labels": batch["labels"][i : i + 1],
        }


def gradient(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """|dL/d head_mask| (blocks, heads) of one batch, whose loss is the model's own: the mean over its examples."""
    head_mask = head_mask_of(model)
    model(**batch, head_mask=head_mask).loss.backward()
    return head_mask.grad.abs()


def bertology(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """As ``compute_heads_importance`` of the public script run_bertology.py, which never zeroes the mask's gradient:
    every batch adds the absolute value of the sum so far."""
    head_mask = head_mask_of(model)
    importance = torch.zeros_like(head_mask, requires_grad=False)
    tokens = 0
    for start in range(0, len(LENGTHS), BERTOLOGY_BATCH):
        part = {name: tensor[start : start + BERTOLOGY_BATCH] for name, tensor in batch.items()}
        model(**part, head_mask=head_mask).loss.backward()
        importance += head_mask.grad.abs().detach()
        tokens += part["attention_mask"].sum().item()
    return importance / tokens


@torch.no_grad()
def logits_of(model: PreTrainedModel, batch: dict[str, Tensor], **options: Tensor) -> Tensor:
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **options).logits


def write_fixture(family: str, folder: Path) -> Path:
    model = build_model(family)
    batch = build_batch(model.config)
    pruned_heads = PRUNED_HEADS[family]
    config = model.config.to_dict()
    tensors = {f"weights.{name}": tensor.clone() for name, tensor in model.state_dict().items()}

    tensors |= batch
    tensors["dense_logits"] = logits_of(model, batch)
    tensors["per_example"] = torch.stack([gradient(model, example) for example in single_examples(batch)])
    tensors["batch_gradient"] = gradient(model, batch)
    tensors["bertology"] = bertology(model, batch)

    alone = torch.cat([logits_of(model, example) for example in single_examples(batch)])
    masked = head_mask_of(model).detach()
    for block, heads in pruned_heads.items():
        masked[block, heads] = 0.0
    masked_logits = logits_of(model, batch, head_mask=masked)
    dense_parameters = model.num_parameters()
    model.prune_heads(pruned_heads)
    tensors["pruned_logits"] = logits_of(model, batch)

    # The witness has to agree with itself before it testifies.
    torch.testing.assert_close(alone, tensors["dense_logits"], rtol=0, atol=1e-12)
    torch.testing.assert_close(masked_logits, tensors["pruned_logits"], rtol=0, atol=1e-12)

    witness = {
        "model_type": model.config.model_type,
        "config": config,
        "pruned_heads": pruned_heads,
        "dense_parameters": dense_parameters,
        "pruned_parameters": model.num_parameters(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "safetensors": safetensors.__version__,
        },
    }
    # One key: the order of several is not fixed by the format's writer, and the file would change from run to run.
    path = folder / f"{family}.safetensors"
    save_file(tensors, path, metadata={"witness": json.dumps(witness, sort_keys=True)})
    logger.info(
        "%s: %d bytes, %d to %d parameters, logits moved by at most %.2f, per-example gradients from %.1e to %.1e",
        path.name,
        path.stat().st_size,
        dense_parameters,
        witness["pruned_parameters"],
        (tensors["pruned_logits"] - tensors["dense_logits"]).abs().max(),
        tensors["per_example"].min(),
        tensors["per_example"].max(),
    )
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the fixtures of Transformers 4.57.")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "fixtures")
    folder: Path = parser.parse_args().folder
    if not hasattr(PreTrainedModel, "prune_heads"):
        raise SystemExit(
            f"Transformers {transformers.__version__} has no prune_heads: use 4.57, see the top of the file."
        )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    # Not only convenience: prune_heads copies what it keeps into new layers of the default type.
    torch.set_default_dtype(torch.float64)
    folder.mkdir(parents=True, exist_ok=True)
    for family in FAMILIES:
        write_fixture(family, folder)


if __name__ == "__main__":
    main()
