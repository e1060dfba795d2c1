"""A real Llama with grouped-query attention, where a folder of one is named: text that it writes itself, pruned."""

import copy
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import pruning_adapter as pa
from conformance import logits, make_gates, make_neuron_gates
from pruning_adapter.costs.macs import count_macs

FOLDER = os.environ.get("CAUSAL_LM_DIR", "")
pytestmark = pytest.mark.skipif(not Path(FOLDER, "config.json").is_file(), reason="CAUSAL_LM_DIR names no folder")
LENGTH = 96


@pytest.fixture(scope="module")
def dense() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def texts(dense: Any) -> Tensor:
    torch.manual_seed(0)
    start = torch.full((48, 1), dense.config.bos_token_id)
    mask = torch.ones_like(start)
    return dense.generate(
        start, attention_mask=mask, do_sample=True, top_k=0, min_length=LENGTH, max_length=LENGTH, pad_token_id=0
    )


@pytest.fixture(scope="module")
def scores(dense: Any, texts: Tensor) -> pa.ImportanceScores:
    return pa.measure_importance(dense, batches(texts[:32]), units=("heads", "neurons"), order="second")


def batches(texts: Tensor) -> list[dict[str, Tensor]]:
    return [{"input_ids": part, "attention_mask": torch.ones_like(part), "labels": part} for part in texts.split(16)]


def perplexity(model: Any, texts: Tensor) -> float:
    (batch,) = batches(texts)
    with torch.no_grad():
        return math.exp(float(model(**batch).loss))


def test_gating_equals_pruning_and_prediction_equals_counting(
    dense: Any, texts: Tensor, scores: pa.ImportanceScores
) -> None:
    plan, batch = pa.plan_pruning(scores, keep_macs=0.75, length=LENGTH), batches(texts)[0]
    with pa.gated(dense, make_gates(plan), make_neuron_gates(plan)):
        gated = logits(dense, batch)
    pruned = pa.prune_(copy.deepcopy(dense), plan)
    torch.testing.assert_close(logits(pruned, batch), gated, rtol=0, atol=2e-4)
    found = count_macs(pruned, length=LENGTH)
    assert found == plan.count_macs(LENGTH) <= 0.75 * count_macs(dense, length=LENGTH)


def test_importance_beats_its_reverse_and_least_squares_beats_plain_pruning(
    dense: Any, texts: Tensor, scores: pa.ImportanceScores
) -> None:
    held_out = texts[32:]

    def pruned(scores: pa.ImportanceScores, reconstruct: Any) -> float:
        plan = pa.plan_pruning(scores, keep_macs=0.75, length=LENGTH, reconstruct=reconstruct)
        return perplexity(pa.reconstruct_(copy.deepcopy(dense), plan, batches(texts[:32])), held_out)

    best, plain, reverse = (
        pruned(scores, "lstsq"),
        pruned(scores, "none"),
        pruned(pa.reversed_importance(scores), "none"),
    )
    assert perplexity(dense, held_out) < best < plain < reverse


def test_a_pruned_checkpoint_writes_the_same_text(
    dense: Any, scores: pa.ImportanceScores, texts: Tensor, tmp_path: Path
) -> None:
    model = pa.prune_(copy.deepcopy(dense), pa.plan_pruning(scores, keep_macs=0.75, grouping="whole", length=LENGTH))
    pa.save_pruned(model, tmp_path / "merged")
    loaded = pa.load_pruned(tmp_path / "merged")
    written = [
        each.generate(
            texts[:2, :4], attention_mask=torch.ones(2, 4), do_sample=False, max_new_tokens=32, pad_token_id=0
        )
        for each in (model, loaded)
    ]
    assert torch.equal(*written)
