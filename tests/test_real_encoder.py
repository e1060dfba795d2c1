"""The laws once more on a real pretrained encoder, with real sentences where a folder of GLUE data is named."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor
from transformers import DataCollatorWithPadding

import pruning_adapter as pa
from conformance import logits, make_gates, make_neuron_gates, one_thread
from pruning_adapter.architectures.identity import count_parameters
from pruning_adapter.costs.macs import count_macs
from pruning_adapter.demo import find_demo_encoder, make_demo_task
from pruning_adapter.errors import DataError
from pruning_adapter.importance import LengthSortedBatches
from pruning_adapter.pipeline import Run
from pruning_adapter.settings import Settings
from pruning_adapter.training.base_model import load_base, load_tokenizer
from pruning_adapter.training.examples import Example
from pruning_adapter.training.tasks import load_glue
from pruning_adapter.training.tokenize import sample_examples, tokenize

pytestmark = pytest.mark.encoder


@pytest.fixture(scope="module")
def encoder() -> str:
    try:
        return str(find_demo_encoder())
    except DataError as error:
        pytest.skip(str(error))


def make_batches(encoder: str, examples: tuple[Example, ...], names: tuple[str, ...]) -> LengthSortedBatches:
    tokenizer = load_tokenizer(encoder)
    features = tokenize(examples, tokenizer, max_length=64, label_names=names)
    pad: Any = DataCollatorWithPadding(tokenizer)
    return LengthSortedBatches(features, pad)


def test_gating_equals_pruning_and_predictions_hold_in_float64(encoder: str) -> None:
    data = make_demo_task(train=32, validation=2)
    model: Any = load_base(encoder, label_names=data.label_names, seed=0).model.double().eval()
    batches = make_batches(encoder, data.train, data.label_names)
    scores = pa.measure_importance(model, batches)
    plan = pa.plan_pruning(scores, keep_heads=50)
    batch: dict[str, Tensor] = next(iter(batches))
    with pa.gated(model, make_gates(plan)):
        gated = logits(model, batch)
    pruned = pa.prune_(copy.deepcopy(model), plan)
    torch.testing.assert_close(logits(pruned, batch), gated, rtol=0, atol=1e-12)
    assert count_parameters(pruned) == plan.parameters == 22_713_986 - 22 * 49_248


def test_heads_and_neurons_under_one_budget_hold_what_they_promise_in_float64(encoder: str) -> None:
    data = make_demo_task(train=48, validation=2)
    model: Any = load_base(encoder, label_names=data.label_names, seed=0).model.double().eval()
    batches = make_batches(encoder, data.train, data.label_names)
    scores = pa.measure_importance(model, batches, units=("heads", "neurons"), order="second")
    plan = pa.plan_pruning(scores, keep_macs=0.5, length=32)
    batch: dict[str, Tensor] = next(iter(batches))
    with pa.gated(model, make_gates(plan), make_neuron_gates(plan)):
        gated = logits(model, batch)
    dense = count_macs(model, length=32)
    pruned = pa.prune_(copy.deepcopy(model), plan)
    torch.testing.assert_close(logits(pruned, batch), gated, rtol=0, atol=1e-12)
    assert count_parameters(pruned) == plan.parameters
    assert 0.49 * dense < count_macs(pruned, length=32) == plan.count_macs(32) <= 0.5 * dense
    # Both kinds go, in the one currency.
    assert plan.heads_kept < 72
    assert plan.neurons_kept < 6 * 1536


@pytest.mark.glue
def test_two_samples_of_a_real_task_agree_on_what_matters(encoder: str) -> None:
    folder = os.environ.get("GLUE_DIR")
    if folder is None:
        pytest.skip("GLUE_DIR names no folder")
    data = load_glue("mrpc", data_dir=Path(folder))
    sample = sample_examples(data.train, 128, seed=0)
    model = load_base(encoder, label_names=data.label_names, seed=0).model
    halves = [
        torch.cat(pa.measure_importance(model, make_batches(encoder, part, data.label_names)).heads)
        for part in (sample[::2], sample[1::2])
    ]
    # 64 examples each; the order of 72 heads must be far from chance (0 with a standard error of 0.12).
    assert spearmanr(*halves).statistic > 0.8


def test_the_demo_runs_the_whole_way_on_a_few_sentences(encoder: str, tmp_path: Path) -> None:
    settings = Settings(demo=True, train_rows=48, epochs=1, examples=16)
    with one_thread():
        run = Run(settings, tmp_path, command="pruning-adapter run --demo")
        run.train()
        result = run.evaluate()
    assert result.cost["parameters"] < result.cost["dense_parameters"] == 22_713_986
    assert result.model["id"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert run.report().stat().st_size > 10_000
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "who-won" in text
