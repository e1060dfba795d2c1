"""From scores to a pruning plan: every rule by hand, every refusal, and the laws that hold for any scores."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning_adapter.architectures import ModelIdentity, ProjectionShape, SiteShape
from pruning_adapter.architectures.identity import identify
from pruning_adapter.errors import ImportanceError, PlanError
from pruning_adapter.importance import ImportanceScores, random_importance
from pruning_adapter.planning import PruningPlan, plan_pruning
from pruning_adapter.surgery import prune_
from tiny import make_model

torch.set_num_threads(1)

# Few distinct values, so that ties are common.
BLOCKS = st.lists(
    st.lists(st.integers(0, 5).map(float), min_size=1, max_size=5).filter(any), min_size=1, max_size=4
).map(tuple)


def make_scores(*blocks: Sequence[float]) -> ImportanceScores:
    """Scores of a made-up model that has as many heads as there are numbers."""
    projections = tuple(ProjectionShape(roles=(role,), in_features=6, bias=True) for role in ("query", "key", "value"))
    counts = [len(block) for block in blocks]
    return ImportanceScores(
        heads=tuple(torch.tensor(block, dtype=torch.float64) for block in blocks),
        kept_heads=tuple(tuple(range(count)) for count in counts),
        model=ModelIdentity(
            model_type="bert",
            sites=tuple(
                SiteShape(units=count, groups=count, unit_size=2, projections=projections, out_features=6)
                for count in counts
            ),
            block_parameters=(500,) * len(blocks),
            norm_parameters=24,
            fingerprint="0123456789abcdef",
        ),
        dense_parameters=2000,
        scorer="gradient",
        reduction="example",
        task="toy",
    )


# Over the model, equation 2 gives 0, 0.1, ..., 0.9 and 1 (the largest is 10).
SCORES = make_scores([1, 9, 3, 4], [0, 5, 2, 7], [10, 6, 8, 4])


def kept(**rules: Any) -> tuple[tuple[int, ...], ...]:
    return plan_pruning(SCORES, normalization="model", **rules).kept_heads


def test_keep_heads_keeps_the_best_of_the_whole_model() -> None:
    assert kept(keep_heads=12) == ((0, 1, 2, 3),) * 3
    assert kept(keep_heads=6) == ((1,), (1, 3), (0, 1, 2))
    assert kept(keep_heads=3) == ((1,), (3,), (0,))


def test_the_best_head_of_every_block_stays_whatever_its_score() -> None:
    # 10, 9, 8, 7 are the four best, 10 and 9 the two best.
    assert kept(keep_heads=4) == ((1,), (3,), (0, 2))
    assert kept(keep_heads=2, allow_empty_blocks=True) == ((1,), (), (0,))
    assert kept(keep_heads=1, allow_empty_blocks=True) == ((), (), (0,))
    assert kept(threshold=1.0) == ((1,), (3,), (0,))
    assert kept(threshold=1.0, allow_empty_blocks=True) == ((), (), (0,))


@pytest.mark.parametrize(
    ("ratio", "heads"), [(1.0, 12), (0.75, 9), (0.7, 8), (0.71, 9), (0.625, 8), (0.375, 5), (0.3, 4), (0.25, 3)]
)
def test_keep_ratio_is_rounded_to_the_nearest_whole_head_half_upwards(ratio: float, heads: int) -> None:
    assert kept(keep_ratio=ratio) == kept(keep_heads=heads)


def test_threshold_removes_what_lies_below_it() -> None:
    assert kept(threshold=0.0) == ((0, 1, 2, 3),) * 3
    # 0.4 itself stays.
    assert kept(threshold=0.4) == ((1, 3), (1, 3), (0, 1, 2, 3))
    assert kept(threshold=0.45) == ((1,), (1, 3), (0, 1, 2))


def test_normalisation_decides_what_is_compared() -> None:
    # Within its block, 2 of (2, 0) is everything; over the model it is the least of the heads that matter.
    scores = make_scores([30, 40], [2, 0])
    assert plan_pruning(scores, keep_heads=1, allow_empty_blocks=True).kept_heads == ((), (0,))
    over_model = plan_pruning(scores, keep_heads=1, normalization="model", allow_empty_blocks=True)
    assert over_model.kept_heads == ((1,), ())


def test_of_equal_scores_the_earlier_block_then_the_lower_head_stays() -> None:
    equal = make_scores([1, 1, 1], [1, 1, 1])
    assert plan_pruning(equal, keep_heads=2).kept_heads == ((0,), (0,))
    assert plan_pruning(equal, keep_heads=3).kept_heads == ((0, 1), (0,))
    assert plan_pruning(equal, keep_heads=4).kept_heads == ((0, 1, 2), (0,))
    assert plan_pruning(equal, keep_heads=2, allow_empty_blocks=True).kept_heads == ((0, 1), ())
    # Equal scores are all 0 after equation 2.
    assert plan_pruning(equal, threshold=0.5).kept_heads == ((0,), (0,))


def test_the_plan_records_how_it_was_made() -> None:
    plan = plan_pruning(SCORES, keep_heads=6, normalization="model")
    assert plan.origin == {
        "scorer": "gradient",
        "reduction": "example",
        "task": "toy",
        "rule": {"keep_heads": 6},
        "normalization": "model",
    }
    assert (plan.model, plan.dense_parameters, plan.allow_empty_blocks) == (SCORES.model, 2000, False)


def test_heads_of_a_pruned_model_are_numbered_as_in_the_dense_one() -> None:
    model = make_model("bert")
    first = plan_pruning(random_importance(model, seed=0), keep_heads=8)
    prune_(model, first)
    second = plan_pruning(random_importance(model, seed=1), keep_heads=5)
    assert second.heads_kept == 5
    assert all(set(few) <= set(many) for few, many in zip(second.kept_heads, first.kept_heads, strict=True))
    # A share is one of the dense model's heads.
    assert plan_pruning(random_importance(model, seed=1), keep_ratio=5 / 12).kept_heads == second.kept_heads
    with pytest.raises(PlanError, match="keep_heads is 9 heads, but the model has 8"):
        plan_pruning(random_importance(model, seed=1), keep_heads=9)


def test_a_block_that_is_empty_already_stays_so() -> None:
    model = make_model("bert")
    prune_(model, PruningPlan.from_pruned_heads(identify(model), {1: [0, 1, 2, 3]}, allow_empty_blocks=True))
    plan = plan_pruning(random_importance(model, seed=0), keep_heads=2)
    assert [len(block) for block in plan.kept_heads] == [1, 0, 1]
    assert plan.allow_empty_blocks


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({}, "Give exactly one of keep_heads, keep_ratio, threshold, .*keep_latency; none was given"),
        ({"keep_heads": 5, "threshold": 0.5}, "Give exactly one of .*; keep_heads, threshold was given"),
        ({"keep_heads": 13}, "keep_heads is 13 heads, but the model has 12"),
        (
            {"keep_heads": 2},
            "keep_heads is 2 heads, but each of the 3 blocks needs one. Keep at least 3, or say allow_",
        ),
        ({"keep_heads": 0}, "keep_heads is 0 heads, but each of the 3 blocks needs one"),
        ({"keep_heads": -1}, "keep_heads is -1 heads"),
        ({"keep_heads": 0, "allow_empty_blocks": True}, "keep_heads is 0 heads; keep at least one"),
        ({"keep_ratio": 0.0}, r"keep_ratio is 0.0; it is the share of heads that stays, in \(0, 1\]"),
        ({"keep_ratio": 1.5}, "keep_ratio is 1.5; it is the share"),
        ({"keep_ratio": -0.5}, "keep_ratio is -0.5; it is the share"),
        ({"keep_ratio": math.nan}, "keep_ratio is nan; it is the share"),
        ({"keep_ratio": 0.1}, "keep_ratio=0.1 keeps 1 heads, but each of the 3 blocks needs one"),
        ({"keep_ratio": 0.01, "allow_empty_blocks": True}, "keep_ratio=0.01 keeps 0 heads; keep at least one"),
        ({"threshold": 2.0}, r"threshold is 2.0; normalised importance lies in \[0, 1\]"),
        ({"threshold": -0.1}, "threshold is -0.1; normalised"),
        ({"threshold": math.nan}, "threshold is nan; normalised"),
    ],
)
def test_impossible_rules_are_refused(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan_pruning(SCORES, **rules)


def test_an_unknown_normalisation_is_refused() -> None:
    with pytest.raises(ImportanceError, match="'blocks' is unknown; use one of block, model"):
        plan_pruning(SCORES, keep_heads=5, normalization="blocks")  # type: ignore[arg-type]


@given(BLOCKS, st.sampled_from(["block", "model"]), st.booleans(), st.data())
def test_laws_of_keep_heads(blocks: tuple[list[float], ...], scope: Any, empty: bool, data: st.DataObject) -> None:
    scores, total = make_scores(*blocks), sum(map(len, blocks))
    number = data.draw(st.integers(1 if empty else len(blocks), total))
    rules: dict[str, Any] = {"normalization": scope, "allow_empty_blocks": empty}
    plan = plan_pruning(scores, keep_heads=number, **rules)

    assert plan.heads_kept == number
    assert empty or all(plan.kept_heads)
    assert plan == plan_pruning(scores, keep_heads=number, **rules)

    normalized = [block.tolist() for block in scores.normalized(scope)]
    gone = [normalized[block][head] for block, heads in plan.pruned_heads.items() for head in heads]
    # The best head of a block is protected; whatever else stays is at least as good as all that goes.
    protected = [set() if empty else {max(range(len(row)), key=lambda head: (row[head], -head))} for row in normalized]
    stays = [
        normalized[block][head]
        for block, heads in enumerate(plan.kept_heads)
        for head in heads
        if head not in protected[block]
    ]
    assert not gone or not stays or max(gone) <= min(stays)
    assert all(best <= set(heads) for best, heads in zip(protected, plan.kept_heads, strict=True))

    if number < total:
        more = plan_pruning(scores, keep_heads=number + 1, **rules)
        assert all(set(few) <= set(many) for few, many in zip(plan.kept_heads, more.kept_heads, strict=True))


@given(BLOCKS, st.sampled_from(["block", "model"]), st.booleans(), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_threshold_keeps_a_subset(
    blocks: tuple[list[float], ...], scope: Any, empty: bool, one: float, other: float
) -> None:
    scores, (low, high) = make_scores(*blocks), sorted((one, other))
    rules: dict[str, Any] = {"normalization": scope, "allow_empty_blocks": empty}
    many = plan_pruning(scores, threshold=low, **rules).kept_heads
    few = plan_pruning(scores, threshold=high, **rules).kept_heads
    assert all(set(subset) <= set(superset) for subset, superset in zip(few, many, strict=True))
    assert empty or all(few)
