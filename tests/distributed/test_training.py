"""Two processes train what one trains, whether each holds the model (DDP) or half of it (FSDP2)."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from peft import PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, BertTokenizer

import pruning_adapter as pa
from conformance import make_plan
from pair import Pair
from pruning_adapter.adapter.linear import QuickLinear
from pruning_adapter.training.recipes import RECIPES
from pruning_adapter.training.trainer import train_
from tiny import make_model

Weights = dict[str, Any]

RECIPE = replace(RECIPES["default"], epochs=2, batch_size=4, learning_rate=dict.fromkeys(("full", "prune-lora"), 1e-2))
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
"""What `accelerate launch` sets for the configuration in docs/many-machines.md."""


def make_base(family: str, seed: int = 0) -> Any:
    # Each process draws its own dropout.
    if family == "bert":
        return make_model(family, attention="sdpa", seed=seed, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return make_model(family, attention="sdpa", seed=seed, auto=AutoModelForSequenceClassification, num_labels=3)


def make_adapted(base: Any) -> Any:
    plan = make_plan(base, {0: [0, 1], 2: [2, 3]} if base.config.model_type == "llama" else {0: [1], 2: [0, 3]})
    torch.manual_seed(3)
    return get_peft_model(base, pa.PruneLoraConfig(pruning=plan, task_type="SEQ_CLS", r=3))


def make_features(count: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    lengths = [4 + row % 5 for row in range(count)]
    return [
        {
            "input_ids": torch.randint(3, 40, (length,), generator=generator).tolist(),
            "attention_mask": [1] * length,
            "labels": row % 3,
        }
        for row, length in enumerate(lengths)
    ]


def tokenizer(folder: Path) -> BertTokenizer:
    vocabulary = folder / "vocab.txt"
    if not vocabulary.exists():
        vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\n", encoding="utf-8")
    return BertTokenizer(vocab=str(vocabulary))


def train(folder: Path, family: str = "bert", *, count: int = 17, **options: Any) -> tuple[Any, list[dict[str, float]]]:
    model = make_adapted(make_base(family))
    settings: dict[str, Any] = {"recipe": RECIPE, "method": "prune-lora", "seed": 5, **options}
    settings["recipe"] = replace(settings["recipe"], group_by_length=settings.pop("grouped", True))
    history = train_(model, make_features(count), tokenizer=tokenizer(folder), folder=folder / "run", **settings)
    return model, history


def weights_of(model: Any) -> Weights:
    return {
        name: whole(weight.detach()).numpy() for name, weight in model.named_parameters() if weight.requires_grad
    }


def whole(weight: Any) -> Any:
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def losses_of(history: list[dict[str, float]]) -> list[float]:
    return [entry["loss"] for entry in history if "loss" in entry]


def train_share(rank: int, folder: Path, options: dict[str, Any]) -> tuple[Weights, list[float]]:
    model, history = train(folder, **options)
    return weights_of(model), losses_of(history)


def assert_close(found: Weights, expected: Weights) -> None:
    assert list(found) == list(expected)
    for name, weight in expected.items():
        np.testing.assert_allclose(found[name], weight, rtol=1e-7, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    "options",
    [
        # The last batch of an epoch has one example, so that one process has none.
        {"count": 17},
        {"count": 19, "grouped": False},
        {"count": 17, "accumulate": 2},
    ],
    ids=str,
)
def test_two_processes_train_the_weights_of_one(pair: Pair, tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "one").mkdir()
    model, history = train(tmp_path / "one", **{**options, "accumulate": 1})
    (first, losses), (second, _) = pair.do(train_share, tmp_path, options)
    assert_close(first, weights_of(model))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    np.testing.assert_allclose(losses, losses_of(history), rtol=1e-3)
