"""Tiny random models of every supported family, and batches for them. Offline, and quick enough for every law."""

from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

__all__ = ["FAMILIES", "make_batch", "make_model", "randomize_"]

VOCABULARY, CLASSES, PADDING = 50, 3, 1
BERT_LIKE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "pad_token_id": PADDING,
    "num_labels": CLASSES,
}
DISTILBERT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "dim": 32,
    "n_heads": 4,
    "n_layers": 3,
    "hidden_dim": 24,
    "max_position_embeddings": 40,
    "pad_token_id": PADDING,
    "num_labels": CLASSES,
}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert": (BertConfig, BertForSequenceClassification, BERT_LIKE),
    "roberta": (RobertaConfig, RobertaForSequenceClassification, BERT_LIKE),
    "electra": (ElectraConfig, ElectraForSequenceClassification, {**BERT_LIKE, "embedding_size": 16}),
    "distilbert": (DistilBertConfig, DistilBertForSequenceClassification, DISTILBERT),
}


def make_model(
    family: str, *, attention: str = "eager", dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any
) -> PreTrainedModel:
    """A random classifier in evaluation mode: 3 blocks x 4 heads of 8. Biases and norms are random too."""
    config_class, model_class, sizes = FAMILIES[family]
    config = config_class(**{**sizes, **changes})
    config._attn_implementation = attention
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
        randomize_(model)
    return model.to(dtype).eval()


def randomize_(model: torch.nn.Module, *, only_trainable: bool = False) -> None:
    """Give every parameter, biases and norms included, a random value, so that no bug hides behind zeros and ones."""
    for parameter in model.parameters():
        if parameter.requires_grad or not only_trainable:
            parameter.data.add_(torch.randn_like(parameter) * 0.2)


def make_batch(*, padded: bool = True, size: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """Random examples of different lengths, padded to 12 tokens (or all of 12 tokens), with labels of all classes."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (size, 12), generator=generator)
    mask = torch.ones_like(ids)
    if padded:
        for row in range(size):
            mask[row, 4 + (5 * row) % 9 :] = 0
    return {
        "input_ids": ids.masked_fill(mask == 0, PADDING),
        "attention_mask": mask,
        "labels": torch.arange(size) % CLASSES,
    }
