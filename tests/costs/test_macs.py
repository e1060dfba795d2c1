"""Multiply-accumulates by hand, as a polynomial of the length, and as a file."""

from fractions import Fraction
from typing import Any

import pytest
import torch

import pruning_adapter as pa
from conformance import make_plan
from pruning_adapter.architectures.identity import identify
from pruning_adapter.costs import macs as counting
from pruning_adapter.costs.inputs import make_inputs
from pruning_adapter.costs.macs import ModelMacs, count_macs, count_model_macs
from tiny import FAMILIES, make_model


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_COUNTED", {})


HIDDEN, HEADS, SIZE, NEURONS, BLOCKS, CLASSES = 32, 4, 8, 24, 3, 3


def by_hand(length: int, *, heads: int = HEADS, neurons: int = NEURONS) -> int:
    """Of a BERT whose blocks all have as many heads and neurons: pooler and classifier read one token."""
    attention = 4 * length * HIDDEN * heads * SIZE + 2 * heads * length * length * SIZE
    return BLOCKS * (attention + 2 * length * HIDDEN * neurons) + HIDDEN * HIDDEN + HIDDEN * CLASSES


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("length", [1, 7, 64])
def test_a_bert_costs_what_the_formula_says(attention: str, length: int) -> None:
    model = make_model("bert", attention=attention)
    assert count_macs(model, length=length) == by_hand(length)
    assert count_macs(model, batch=3, length=length) == 3 * by_hand(length)
    assert count_model_macs(model).dense(length) == by_hand(length)


def test_units_cost_what_the_formula_says() -> None:
    macs = count_model_macs(make_model("bert"))
    assert macs.of_units[0] == (0, 2 * HIDDEN * SIZE, 2 * SIZE)
    assert macs.of_groups[0] == (0, 2 * HIDDEN * SIZE, 0)
    assert macs.of_units[BLOCKS] == (0, 2 * HIDDEN, 0)
    assert macs.of_groups[BLOCKS] == (0, 0, 0)
    sites = identify(make_model("bert")).all_sites
    halves = [range(HEADS // 2)] * BLOCKS + [range(NEURONS // 2)] * BLOCKS
    assert macs.kept(sites, halves, 9) == by_hand(9, heads=HEADS // 2, neurons=NEURONS // 2)


def test_under_grouped_query_attention_keys_and_values_are_the_groups() -> None:
    macs = count_model_macs(make_model("llama"))
    # One query head: its rows of the query and columns of the output projection, and its scores.
    assert macs.of_units[0] == (0, 2 * HIDDEN * SIZE, 2 * SIZE)
    assert macs.of_groups[0] == (0, 2 * HIDDEN * SIZE, 0)


def test_json_keeps_exact_fractions() -> None:
    macs = ModelMacs(
        total=(Fraction(1, 3), Fraction(2), Fraction(0)),
        of_units=((Fraction(0), Fraction(5, 7), Fraction(1)),),
        of_groups=((Fraction(0), Fraction(0), Fraction(0)),),
    )
    assert ModelMacs.from_json(macs.to_json()) == macs
    assert ModelMacs.from_json(None) is None


def test_counting_leaves_the_model_as_it_was() -> None:
    model = make_model("bert")
    model.train()
    count_model_macs(model)
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_made_up_inputs_run_and_are_the_same_every_time(family: str) -> None:
    model: Any = make_model(family)
    inputs, again = (make_inputs(model, batch=2, length=5) for _ in range(2))
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)
    with torch.no_grad():
        assert model(**inputs).logits.shape[0] == 2


def test_models_that_are_made_alike_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[object] = []
    count = counting._count

    def watched(model: Any) -> ModelMacs:
        counted.append(model)
        return count(model)

    monkeypatch.setattr(counting, "_count", watched)
    models = [make_model("bert"), make_model("bert"), make_model("bert", attention="sdpa"), make_model("gpt2")]
    pruned = make_model("bert")
    pa.prune_(pruned, make_plan(pruned, {0: [1]}))
    found = [count_model_macs(model) for model in (*models, pruned)]
    assert len(counted) == 4
    assert found[0] is found[1]
    assert found[0].total != found[4].total
