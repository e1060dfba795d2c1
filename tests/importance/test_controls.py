"""The control scorers: chance, weights, and the worst choice."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pruning_adapter.importance import (
    ImportanceScores,
    magnitude_importance,
    measure_importance,
    random_importance,
    reversed_importance,
    shuffled_importance,
)
from pruning_adapter.importance.normalize import Scope
from pruning_adapter.planning import plan_pruning, plan_ranks
from pruning_adapter.surgery import prune_
from tiny import make_model

torch.set_num_threads(1)
HEAD = 8  # width of a head of the tiny models
TEMPLATE = random_importance(make_model("bert"), seed=0)


def equal(one: ImportanceScores, other: ImportanceScores) -> bool:
    return all(torch.equal(first, second) for first, second in zip(one.heads, other.heads, strict=True))


def ranking(scores: ImportanceScores, scope: Scope) -> list[int]:
    """All heads by ascending importance."""
    return torch.cat(scores.normalized(scope)).argsort(stable=True).tolist()


def test_random_scores_are_seeded_and_lie_in_the_unit_interval() -> None:
    model = make_model("bert")
    scores = random_importance(model, seed=3)
    torch.rand(7)  # the global generator plays no part
    assert equal(scores, random_importance(model, seed=3))
    assert not equal(scores, random_importance(model, seed=4))
    assert all(bool(((block >= 0) & (block < 1)).all()) for block in scores.heads)
    assert [tuple(block.shape) for block in scores.heads] == [(4,)] * 3
    assert (scores.scorer, scores.seed, scores.reduction) == ("random", 3, None)


def test_random_scores_leave_the_global_generator_alone() -> None:
    model, before = make_model("bert"), torch.get_rng_state()
    random_importance(model, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
def test_magnitude_by_hand() -> None:
    model = make_model("bert")
    attention = model.bert.encoder.layer[1].attention
    rows = slice(2 * HEAD, 3 * HEAD)
    squares = sum(float((linear.weight[rows] ** 2).sum()) for linear in (attention.self.query, attention.self.key))
    squares += float((attention.self.value.weight[rows] ** 2).sum())
    squares += float((attention.output.dense.weight[:, rows] ** 2).sum())
    scores = magnitude_importance(model)
    assert scores.heads[1][2].item() == pytest.approx(math.sqrt(squares), rel=1e-12)
    assert (scores.scorer, scores.examples, scores.seed) == ("magnitude", 0, None)


@torch.no_grad()
def test_magnitude_reads_the_heads_own_rows_and_columns_and_no_others() -> None:
    model = make_model("bert")
    before = magnitude_importance(model)
    attention, rows = model.bert.encoder.layer[2].attention, slice(HEAD, 2 * HEAD)
    for linear in (attention.self.query, attention.self.key, attention.self.value):
        linear.weight[rows] = 0
    attention.output.dense.weight[:, rows] = 0
    after = magnitude_importance(model)
    assert after.heads[2][1] == 0
    untouched = [0, 2, 3]
    assert torch.equal(after.heads[2][untouched], before.heads[2][untouched])
    assert torch.equal(after.heads[0], before.heads[0])
    assert torch.equal(after.heads[1], before.heads[1])


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "gpt2"])
def test_on_a_pruned_model_controls_score_the_heads_that_are_left(family: str) -> None:
    model = make_model(family)
    dense = magnitude_importance(model)
    plan = plan_pruning(random_importance(model, seed=0), keep_heads=7)
    pruned = magnitude_importance(prune_(model, plan))
    assert pruned.kept_heads == plan.kept_heads == random_importance(model, seed=1).kept_heads
    assert pruned.dense_parameters == dense.dense_parameters
    assert pruned.model == dense.model
    for kept, before, after in zip(plan.kept_heads, dense.heads, pruned.heads, strict=True):
        assert after.tolist() == pytest.approx(before[list(kept)].tolist(), rel=1e-12)


def test_a_block_without_heads_has_no_scores() -> None:
    model = make_model("bert")
    plan = plan_pruning(random_importance(model, seed=0), keep_heads=1, allow_empty_blocks=True)
    prune_(model, plan)
    for scores in (random_importance(model, seed=0), magnitude_importance(model)):
        assert sorted(len(block) for block in scores.heads) == [0, 0, 1]
        assert scores.kept_heads == plan.kept_heads


@pytest.mark.parametrize("scope", ["block", "model"])
def test_reversed_scores_rank_the_other_way_round(scope: Scope) -> None:
    scores = magnitude_importance(make_model("bert"))
    reverse = reversed_importance(scores)
    assert ranking(reverse, scope) == ranking(scores, scope)[::-1]
    assert (reverse.scorer, reverse.model, reverse.kept_heads) == (
        "reversed magnitude",
        scores.model,
        scores.kept_heads,
    )


# Whole numbers: their order survives the rounding of any division.
@given(
    st.lists(st.integers(0, 1000), min_size=12, max_size=12, unique=True).map(
        lambda values: tuple(torch.tensor(values, dtype=torch.float64).reshape(3, 4))
    ),
    st.sampled_from(["block", "model"]),
)
def test_reversed_is_the_exact_reverse_and_its_own_inverse(heads: tuple[Tensor, ...], scope: Scope) -> None:
    scores = replace(TEMPLATE, heads=heads)
    reverse = reversed_importance(scores)
    for block, turned in zip(scores.normalized(scope), reverse.normalized(scope), strict=True):
        assert torch.allclose(block + turned, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-12)
    assert equal(reversed_importance(reverse), scores)


def test_reversed_keeps_the_record_of_the_sample() -> None:
    model = make_model("bert")
    batch = {"input_ids": torch.tensor([[3, 4], [5, 6]]), "labels": torch.tensor([0, 1])}
    scores = measure_importance(model, [batch], progress=False, task="made up", seed=5)
    reverse = reversed_importance(scores)
    assert (reverse.task, reverse.seed, reverse.examples, reverse.tokens) == ("made up", 5, 2, 4)
    assert (reverse.scorer, reverse.reduction) == ("reversed gradient", "example")


@pytest.mark.parametrize("rule", [{"keep_ratio": 0.5}, {"keep_macs": 0.6, "length": 16}])
@pytest.mark.parametrize("seed", range(3))
def test_shuffled_scores_leave_every_block_as_wide_and_at_the_same_rank(rule: dict[str, float], seed: int) -> None:
    scores = magnitude_importance(make_model("bert"), units=("heads", "neurons"))
    shuffled = shuffled_importance(scores, seed=seed)
    how: Any = rule if "keep_macs" in rule else {**rule, "normalization": "model"}
    plans = [plan_pruning(each, **how) for each in (scores, shuffled)]
    widths = [[len(units) for units in (*plan.kept_heads, *plan.kept_neurons)] for plan in plans]
    assert widths[0] == widths[1]
    assert plans[0].kept_neurons != plans[1].kept_neurons or plans[0].kept_heads != plans[1].kept_heads
    ranks = [plan_ranks(each, plan, top_blocks=1) for each, plan in zip((scores, shuffled), plans, strict=True)]
    assert ranks[0].ranks == ranks[1].ranks


def test_shuffled_scores_are_the_same_ones_by_another_seed_elsewhere() -> None:
    scores = magnitude_importance(make_model("bert"), units=("heads", "neurons"))
    before = torch.get_rng_state()
    one, again, other = (shuffled_importance(scores, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for site, dealt in zip((*scores.heads, *scores.neurons), (*one.heads, *one.neurons), strict=True):
        assert torch.equal(site.sort().values, dealt.sort().values)
    assert equal(one, again)
    assert not equal(one, other)
    assert (one.scorer, one.seed, one.model) == ("shuffled magnitude", 1, scores.model)
