"""Two processes train what one trains, whether each holds the model (DDP) or half of it (FSDP2)."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification

import pruning_adapter as pa
from accelerate_on_cpus import spread
from conformance import make_plan
from pair import Pair
from pruning_adapter.checkpoint import save_adapter
from pruning_adapter.training.precision import halve_frozen_
from pruning_adapter.training.recipes import RECIPES
from pruning_adapter.training.trainer import train_
from tiny import make_model
from tiny_encoder import save_tiny_tokenizer

Weights = dict[str, Any]

RECIPE = replace(RECIPES["default"], epochs=1, batch_size=4, learning_rate=dict.fromkeys(("full", "prune-lora"), 1e-2))


def make_base(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    same: dict[str, Any] = {"attention": "sdpa", "seed": seed, "dtype": dtype}
    # Each process draws its own dropout.
    if family == "bert":
        return make_model(family, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **same)
    return make_model(family, auto=AutoModelForSequenceClassification, num_labels=3, **same)


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


def train(
    folder: Path, family: str = "bert", *, count: int = 17, dtype: torch.dtype = torch.float64, **options: Any
) -> tuple[Any, list[dict[str, float]]]:
    model = make_adapted(make_base(family, dtype=dtype))
    if options.get("bf16"):
        halve_frozen_(model)
    settings: dict[str, Any] = {"recipe": RECIPE, "method": "prune-lora", "seed": 5, **options}
    settings["recipe"] = replace(settings["recipe"], group_by_length=settings.pop("grouped", True))
    history = train_(
        model, make_features(count), tokenizer=save_tiny_tokenizer(folder), folder=folder / "run", **settings
    )
    return model, history


def weights_of(model: Any) -> Weights:
    return {name: whole(weight.detach()).numpy() for name, weight in model.named_parameters() if weight.requires_grad}


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
        {"count": 17, "recipe": replace(RECIPE, epochs=2)},
        {"count": 19, "grouped": False},
        # Two parts of the last step, of two examples and of one.
        {"count": 19, "accumulate": 2},
    ],
    ids=["a last batch of one", "random batches", "parts of a batch"],
)
def test_two_processes_train_the_weights_of_one(pair: Pair, tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "one").mkdir()
    model, history = train(tmp_path / "one", **{**options, "accumulate": 1})
    (first, losses), (second, _) = pair.do(train_share, tmp_path, options)
    assert_close(first, weights_of(model))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    np.testing.assert_allclose(losses, losses_of(history), rtol=1e-3)


def train_spread(rank: int, folder: Path, family: str) -> tuple[Weights, list[float], int]:
    with spread(family):
        model, history = train(folder, family)
        save_adapter(model, folder / "adapter")
        held = sum(getattr(weight, "_local_tensor", weight).numel() for weight in model.parameters())
        return weights_of(model), losses_of(history), held


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_model_that_is_spread_trains_and_saves_the_weights_of_one(pair: Pair, tmp_path: Path, family: str) -> None:
    (tmp_path / "one").mkdir()
    model, history = train(tmp_path / "one", family)
    (first, losses, held), (second, _, also) = pair.do(train_spread, tmp_path, family)
    assert_close(first, weights_of(model))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    np.testing.assert_allclose(losses, losses_of(history), rtol=1e-3)
    whole_size = sum(weight.numel() for weight in model.parameters())
    assert held + also == whole_size
    assert max(held, also) < 0.6 * whole_size
    # Ours, and the Trainer's own checkpoint.
    for saved in (tmp_path / "adapter", tmp_path / "run" / "checkpoint-5"):
        loaded = weights_of(PeftModel.from_pretrained(make_base(family), str(saved), is_trainable=True))
        assert all(np.array_equal(loaded[name], weight) for name, weight in first.items())
        assert len(loaded) == len(first)


def train_mixed(rank: int, folder: Path, how: str) -> tuple[Weights, list[str]]:
    with spread("bert") if how == "FSDP2" else nullcontext():
        model, _ = train(folder, dtype=torch.float32, bf16=True)
        types = {f"{weight.dtype}, trains: {weight.requires_grad}" for weight in model.parameters()}
        return weights_of(model), sorted(types)


@pytest.mark.parametrize("how", ["DDP", "FSDP2"])
def test_frozen_weights_of_half_precision_train(pair: Pair, tmp_path: Path, how: str) -> None:
    (tmp_path / "one").mkdir()
    expected, types = train_mixed(0, tmp_path / "one", "alone")
    (first, found), (second, _) = pair.do(train_mixed, tmp_path, how)
    assert found == types == ["torch.bfloat16, trains: False", "torch.float32, trains: True"]
    assert all(np.array_equal(first[name], second[name]) for name in first)
    started = weights_of(make_adapted(make_base("bert", dtype=torch.float32)))
    moved = sum(np.abs(expected[name] - started[name]).sum() for name in expected)
    apart = sum(np.abs(expected[name] - first[name]).sum() for name in expected)
    assert apart < 0.2 * moved


def train_unlike(rank: int, folder: Path, what: str) -> None:
    base = make_base("bert", seed=rank if what == "base" else 0)
    plan = make_plan(base, {0: [rank if what == "plan" else 1]})
    model = get_peft_model(base, pa.PruneLoraConfig(pruning=plan, task_type="SEQ_CLS", r=3 + (what == "rank") * rank))
    settings: dict[str, Any] = {"recipe": RECIPE, "method": "prune-lora", "seed": 5, "folder": folder}
    train_(model, make_features(8), tokenizer=save_tiny_tokenizer(folder), **settings)


@pytest.mark.parametrize(
    ("what", "named"),
    [("plan", "removed units differ"), ("rank", "shapes and types of weights differ"), ("base", "weights differ")],
)
def test_processes_that_would_train_different_models_are_told(
    pair: Pair, tmp_path: Path, what: str, named: str
) -> None:
    for failure in pair.fail(train_unlike, tmp_path, what):
        assert failure.kind == "TrainingError"
        assert "Process 1 of 2 is about to train another model than process 0" in failure.message
        assert named in failure.message


def train_an_odd_batch(rank: int, folder: Path) -> None:
    train(folder, recipe=replace(RECIPE, batch_size=5))


def test_a_batch_that_cannot_be_shared_evenly_is_refused(pair: Pair, tmp_path: Path) -> None:
    for failure in pair.fail(train_an_odd_batch, tmp_path):
        assert failure.kind == "TrainingError"
        assert "2 processes cannot share a batch of 5 evenly" in failure.message


def start_unlike(rank: int, folder: Path) -> Weights:
    model = make_adapted(make_base("bert"))
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data.add_(rank)
    settings: dict[str, Any] = {"recipe": RECIPE, "method": "prune-lora", "seed": 5, "folder": folder / "run"}
    with spread("bert"):
        train_(model, make_features(4), tokenizer=save_tiny_tokenizer(folder), **settings)
        return weights_of(model)


def test_trained_weights_that_start_otherwise_are_those_of_the_first(pair: Pair, tmp_path: Path) -> None:
    """DDP would see to it; FSDP2 takes a part of what each process has."""
    (tmp_path / "one").mkdir()
    model, _ = train(tmp_path / "one", count=4)
    found, _ = pair.do(start_unlike, tmp_path)
    assert_close(found, weights_of(model))
