"""Counts against formulas, and peak memory against a tensor of known size."""

from typing import Any

import pytest
import torch

import pruning_adapter as pa
from conformance import make_plan
from pruning_adapter.evaluation.cost import (
    compare_inference,
    compare_training,
    count_costs,
    count_macs,
    measure_ratios,
    peak_memory,
    weight_bytes,
)
from tiny import make_model

HIDDEN, INNER, BLOCKS, CLASSES = 32, 24, 3, 3


def macs_by_formula(length: int, heads: list[int], head_size: int = 8) -> int:
    """BERT: per block four projections, the quadratic part twice, two feed-forward maps; then pooler and classifier."""
    total = HIDDEN * HIDDEN + HIDDEN * CLASSES
    for count in heads:
        width = count * head_size
        total += length * (4 * HIDDEN * width + 2 * HIDDEN * INNER) + 2 * length * length * width
    return total


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("pruned", [{}, {0: [1, 2], 2: [0]}, {1: [0, 1, 2, 3]}], ids=["dense", "pruned", "empty block"])
def test_macs_are_those_of_the_formula(attention: str, pruned: dict[int, list[int]]) -> None:
    model: Any = make_model("bert", attention=attention, dtype=torch.float32)
    pa.prune_(model, make_plan(model, pruned))
    heads = [4 - len(pruned.get(block, [])) for block in range(BLOCKS)]
    assert count_macs(model, length=16) == macs_by_formula(16, heads)


def test_peak_memory_is_what_was_held_at_once() -> None:
    cpu = torch.device("cpu")

    def two_at_once() -> None:
        first, second = torch.empty(2**20), torch.empty(2**19)
        del first, second

    def one_after_the_other() -> None:
        for _ in range(3):
            torch.empty(2**20)

    assert peak_memory(two_at_once, cpu) == 4 * (2**20 + 2**19)
    assert peak_memory(one_after_the_other, cpu) == 4 * 2**20


def test_costs_of_a_pruned_model_beside_the_dense_one() -> None:
    dense = make_model("bert", dtype=torch.float32)
    model = pa.prune_(make_model("bert", dtype=torch.float32), make_plan(dense, {0: [1, 2], 1: [0, 1, 2, 3]}))
    cost = count_costs(model, dense, length=16)
    assert cost["parameters"] < cost["dense_parameters"]
    assert cost["weight_bytes"] - 4 * cost["parameters"] == cost["dense_weight_bytes"] - 4 * cost["dense_parameters"]
    measured = compare_inference(model, dense, batch=2, length=16)
    # Activations shrink too, so the ratio is not that of the weights alone.
    assert measured["memory_ratio"]["median"] != weight_bytes(model) / weight_bytes(dense)
    assert 0 < measured["memory_ratio"]["median"] < 1
    assert measured["latency_ratio"]["q1"] <= measured["latency_ratio"]["median"] <= measured["latency_ratio"]["q3"]


def test_training_is_compared_whole_and_leaves_the_weights_alone() -> None:
    dense = make_model("bert", dtype=torch.float32)
    model = pa.prune_(make_model("bert", dtype=torch.float32), make_plan(dense, {0: [1, 2], 1: [0, 1, 2, 3]}))
    dense.requires_grad_(True)
    before = [weight.detach().clone() for weight in model.parameters()]
    measured = compare_training(model, dense, batch=2, length=16)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(weight.grad is None for weight in model.parameters())
    # Weights, a gradient and AdamW's two moments each; activations come on top.
    for each, key in ((model, "peak_training_bytes"), (dense, "reference_peak_training_bytes")):
        four = 4 * sum(weight.nbytes for weight in each.parameters())
        assert four < measured[key] < 2 * four
    ratio = measured["peak_training_bytes"] / measured["reference_peak_training_bytes"]
    assert measured["training_memory_ratio"]["median"] == ratio < 1
    assert measured["training_time_ratio"]["q1"] <= measured["training_time_ratio"]["q3"]


def test_what_is_frozen_needs_neither_gradients_nor_moments() -> None:
    whole, frozen = make_model("bert", dtype=torch.float32), make_model("bert", dtype=torch.float32)
    frozen.base_model.requires_grad_(False)
    measured = compare_training(frozen, whole, batch=2, length=16)
    saved = 3 * sum(weight.nbytes for weight in frozen.parameters() if not weight.requires_grad)
    assert measured["reference_peak_training_bytes"] - measured["peak_training_bytes"] > saved


def test_ratios_are_taken_pair_by_pair() -> None:
    calls = list[str]()
    measure_ratios(lambda: calls.append("a"), lambda: calls.append("b"), repeats=4, warmup=1)
    assert calls == ["a", "b"] * 5
