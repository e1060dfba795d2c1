"""Budgets: what is asked is kept to and used up, in every currency, for heads and neurons together."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pruning_adapter as pa
from pruning_adapter.architectures.identity import count_parameters
from pruning_adapter.costs import LatencyTable
from pruning_adapter.costs.macs import count_macs
from pruning_adapter.errors import CostError, PlanError
from pruning_adapter.planning import plan_pruning
from pruning_adapter.planning.budget import parse_bytes
from tiny import make_model

torch.set_num_threads(1)
UNITS = ("heads", "neurons")


@cache
def scores_of(family: str, seed: int = 0) -> pa.ImportanceScores:
    return pa.random_importance(make_model(family), seed=seed, units=UNITS)


def table_of(family: str) -> LatencyTable:
    """Every head takes 2 % and every neuron 0.2 % of the time; fast widths are multiples of eight."""
    model = scores_of(family).model
    curves = [((1, 0.02), (site.units, 0.02 * site.units)) for site in model.sites]
    curves += [((1, 0.002), (site.units, 0.002 * site.units)) for site in model.feed_forwards]
    return LatencyTable(
        model=model,
        curves=tuple(curves),
        spread=0.01,
        batch=1,
        length=8,
        dtype="float32",
        roundings=((1, 2.0), (8, 1.0)),
    )


# One step of a budget: what the dearest unit costs is always less than this share.
@settings(max_examples=40, deadline=None)
@given(share=st.floats(0.45, 1), seed=st.integers(0, 3), family=st.sampled_from(["bert", "llama", "gemma", "t5"]))
def test_a_share_of_parameters_is_kept_to_and_used_up(share: float, seed: int, family: str) -> None:
    scores = scores_of(family, seed)
    try:
        plan = plan_pruning(scores, keep_params=share)
    except PlanError as error:
        assert "smallest possible plan needs" in str(error)  # noqa: PT017 (both ways are right)
        return
    step = max(site.parameters(range(site.group_size)) for site in scores.model.all_sites)
    # Parameters are whole numbers; the product is rounded.
    assert plan.parameters <= share * plan.dense_parameters + 1e-6
    everything = plan.heads_kept == sum(scores.model.heads) and plan.neurons_kept == sum(scores.model.neurons)
    assert everything or plan.parameters > share * plan.dense_parameters - step


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "phi3", "t5", "vit"])
@pytest.mark.parametrize("grouping", ["whole", "even"])
def test_a_share_of_operations_is_kept_to_by_the_pruned_model(family: str, grouping: Any) -> None:
    model, scores = make_model(family), scores_of(family)
    plan = plan_pruning(scores, keep_macs=0.75, length=20, grouping=grouping)
    dense = count_macs(model, length=20)
    found = count_macs(pa.prune_(model, plan), length=20)
    assert found == plan.count_macs(20)
    assert 0.6 * dense < found <= 0.75 * dense


def test_the_length_decides_what_attention_costs() -> None:
    rising = torch.arange(1, 25, dtype=torch.float64)
    scores = replace(
        scores_of("bert"), heads=(rising[:4],) * 3, neurons=tuple(rising / 64 + block / 1000 for block in range(3))
    )
    short, long = (plan_pruning(scores, keep_macs=0.6, length=length) for length in (4, 4000))
    # Beside heads that compare 4,000 tokens with one another neurons cost next to nothing.
    assert short.neurons_kept < long.neurons_kept == 72


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("int8", 1)])
def test_a_number_of_bytes_holds_the_weights(dtype: str, size: int, tmp_path: Path) -> None:
    scores = scores_of("bert")
    limit = int(0.8 * scores.dense_parameters * size)
    plan = plan_pruning(scores, keep_bytes=limit, dtype=dtype)
    assert 0.7 * limit < plan.parameters * size <= limit
    model = pa.prune_(make_model("bert", dtype=torch.float32), plan, allow_other_weights=True)
    assert count_parameters(model) == plan.parameters
    if dtype == "float32":
        pa.save_pruned(model, tmp_path / "model")
        weights = (tmp_path / "model" / "model.safetensors").stat().st_size
        # The header is no weight, and is small only beside a real model.
        assert weights - plan.parameters * 4 < 16_384


@pytest.mark.parametrize(
    ("text", "number"),
    [("60MB", 60_000_000), ("60 MiB", 62_914_560), ("1.5kb", 1500), ("7", 7), (1234, 1234), ("2GiB", 2**31)],
)
def test_bytes_are_read_from_text(text: Any, number: int) -> None:
    assert parse_bytes(text) == number


def test_a_share_of_time_is_what_the_table_predicts() -> None:
    scores, table = scores_of("bert"), table_of("bert")
    plan = plan_pruning(scores, keep_latency=0.8, latency=table)
    predicted = table.predict([len(units) for units in plan.kept])
    assert plan.origin["rule"] == {"keep_latency": 0.8, "predicted": predicted}
    assert 0.77 < predicted <= 0.8 + 1e-9
    # Widths that the table found fast, unless others are asked for.
    assert {len(units) % 8 for units in plan.kept_neurons} == {0}
    odd = plan_pruning(scores, keep_latency=0.8, latency=table, multiple_of=1)
    assert {len(units) % 8 for units in odd.kept_neurons} != {0}


def test_units_compete_by_importance_per_cost() -> None:
    """By hand: what is worth a little less per parameter goes, all else being equal."""
    scores = scores_of("bert")
    head, neuron = (
        site.parameters([0, 1]) - site.parameters([0])
        for site in (scores.model.sites[0], scores.model.feed_forwards[0])
    )
    assert (head, neuron) == (4 * 32 * 8 + 3 * 8, 2 * 32 + 1)
    ones = replace(
        scores,
        heads=tuple(torch.full_like(row, 1.0) for row in scores.heads),
        neurons=tuple(torch.full_like(row, 1.01 * neuron / head) for row in scores.neurons),
    )
    budget = 1 - 3 * head / scores.dense_parameters
    plan = plan_pruning(ones, keep_params=budget)
    assert (plan.heads_kept, plan.neurons_kept) == (9, 72)
    ones = replace(ones, neurons=tuple(row * 0.98 for row in ones.neurons))
    plan = plan_pruning(ones, keep_params=budget)
    assert (plan.heads_kept, plan.neurons_kept) == (12, 72 - int(np.ceil(3 * head / neuron)))


@pytest.mark.parametrize("multiple", [1, 4, 8, 24])
def test_widths_are_rounded_to_multiples(multiple: int) -> None:
    plan = plan_pruning(scores_of("bert"), keep_macs=0.6, multiple_of=multiple)
    assert all(len(units) % multiple == 0 for units in plan.kept_neurons)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.95])
def test_a_share_of_widths_in_multiples_is_the_nearest_that_can_be(share: float) -> None:
    """Multiples of 10 of 24 neurons end in one of 4, and whichever go first, there is a plan."""
    scores = pa.random_importance(make_model("bert"), seed=1, units=("heads", "neurons"))
    plan = plan_pruning(scores, keep_ratio=share, multiple_of=10)
    assert all(len(units) in (10, 20, 24) for units in plan.kept_neurons)
    assert abs(plan.neurons_kept - share * 72) <= 10


def test_groups_are_never_split_unless_evenly() -> None:
    scores = scores_of("llama")
    whole = plan_pruning(scores, keep_params=0.7, grouping="whole", allow_empty_blocks=True)
    assert all(set(heads) in ({0, 1, 2, 3}, {0, 1}, {2, 3}, set()) for heads in whole.kept_heads)
    even = plan_pruning(scores, keep_params=0.7, grouping="even")
    assert all(sum(head < 2 for head in heads) == sum(head >= 2 for head in heads) for heads in even.kept_heads)


def test_a_larger_budget_keeps_whatever_a_smaller_one_kept() -> None:
    """As long as nothing is squeezed into what is left over."""
    scores = scores_of("bert")
    plans = [plan_pruning(scores, keep_macs=share, multiple_of=24) for share in (0.5, 0.7, 0.9)]
    widths = [[len(units) for units in plan.kept_neurons] for plan in plans]
    assert sorted(map(sum, widths)) == list(map(sum, widths))


def test_kinds_that_were_not_scored_stay_whole() -> None:
    scores = pa.random_importance(make_model("bert"), seed=0)
    plan = plan_pruning(scores, keep_macs=0.9)
    assert plan.neurons_kept == 72
    with pytest.raises(PlanError, match="the smallest possible plan needs"):
        plan_pruning(scores, keep_macs=0.3)


@pytest.mark.parametrize("rule", ["keep_params", "keep_macs", "keep_latency"])
@pytest.mark.parametrize("empty", [False, True])
def test_the_smallest_budget_that_a_refusal_names_is_possible(rule: str, empty: bool) -> None:
    scores = scores_of("bert")
    options: dict[str, Any] = {"latency": table_of("bert"), "allow_empty_blocks": empty}
    with pytest.raises(PlanError) as refusal:
        plan_pruning(scores, **{rule: 1e-5}, **options)
    said = str(refusal.value)
    named = float(said.split(f"{rule}=")[1].split(". ")[0].rstrip("."))
    assert ("allow_empty_blocks" in said) is not empty
    plan_pruning(scores, **{rule: named}, **options)
    with pytest.raises(PlanError, match="smallest possible plan"):
        plan_pruning(scores, **{rule: named - 0.0001}, **options)


def test_the_smallest_number_of_bytes_is_named_too() -> None:
    scores = scores_of("bert")
    with pytest.raises(PlanError, match=r'needs .*: keep_bytes="0\.\d+MB"') as refusal:
        plan_pruning(scores, keep_bytes="1KB")
    named = str(refusal.value).split('keep_bytes="')[1].split('"')[0]
    assert plan_pruning(scores, keep_bytes=named).heads_kept == 3


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"keep_params": 0}, r"keep_params is 0; it is the share of the dense model that stays, in \(0, 1\]"),
        ({"keep_macs": 1.5}, r"keep_macs is 1\.5; it is the share"),
        ({"keep_macs": float("nan")}, r"keep_macs is nan; it is the share"),
        ({"keep_macs": "half"}, r"keep_macs is 'half'; it must be a number"),
        ({"keep_macs": 0.5, "length": 0}, r"length is 0; give the number of tokens"),
        ({"keep_bytes": "60 bananas"}, r"keep_bytes is '60 bananas'; give bytes"),
        ({"keep_bytes": "60MB", "dtype": "float8"}, r"dtype is 'float8'; use one of float64"),
        ({"keep_latency": 0.5}, r"keep_latency needs a latency table .* latency=measure_latency\(model\)"),
        ({"keep_params": 0.5, "keep_macs": 0.5}, r"Give exactly one of .*; keep_params, keep_macs was given"),
        ({"keep_params": 0.5, "multiple_of": 0}, r"multiple_of is 0; widths are multiples of a whole number from 1"),
        ({"keep_params": 0.5, "grouping": "odd"}, r"grouping is 'odd'; use one of whole, even"),
        ({"keep_params": 0.5, "reconstruct": "magic"}, r"reconstruct is 'magic'"),
    ],
)
def test_impossible_budgets_are_refused(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan_pruning(scores_of("bert"), **rules)


def test_scores_without_costs_cannot_budget_operations() -> None:
    with pytest.raises(PlanError, match=r"keep_macs needs the cost of the dense model, which was not counted"):
        plan_pruning(replace(scores_of("bert"), macs=None), keep_macs=0.5)


def test_a_table_of_another_model_or_machine_is_refused() -> None:
    with pytest.raises(CostError, match=r"The latency table was measured for .* Measure that model"):
        plan_pruning(scores_of("gpt2"), keep_latency=0.5, latency=table_of("bert"))
    elsewhere = replace(table_of("bert"), machine={"processor": "an abacus"})
    with pytest.raises(CostError, match=r"measured on another machine .* measure it here"):
        plan_pruning(scores_of("bert"), keep_latency=0.5, latency=elsewhere)
