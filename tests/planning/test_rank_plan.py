"""`RankPlan` and how it is made: the paper's rule, a budget, every refusal, and files that people edit."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning_adapter.architectures import ModelIdentity, ProjectionShape, SiteShape
from pruning_adapter.errors import CheckpointError, PlanError, PruningAdapterError
from pruning_adapter.importance import ImportanceScores
from pruning_adapter.planning import PruningPlan, RankPlan, plan_pruning, plan_ranks

torch.set_num_threads(1)
HEADS, HEAD_SIZE, HIDDEN, NORMS = 4, 3, 12, 24
# Of one block at rank 1, all heads kept: A and B of query, key, value and output are 12 + 12 each.
FULL_COST = 4 * (HIDDEN + HEADS * HEAD_SIZE)


def make_scores(*blocks: Sequence[float]) -> ImportanceScores:
    """Scores of a made-up model whose blocks have 4 heads of 3 each."""
    projections = tuple(
        ProjectionShape(roles=(role,), in_features=HIDDEN, bias=True) for role in ("query", "key", "value")
    )
    site = SiteShape(units=HEADS, groups=HEADS, unit_size=HEAD_SIZE, projections=projections, out_features=HIDDEN)
    return ImportanceScores(
        heads=tuple(torch.tensor(block, dtype=torch.float64) for block in blocks),
        kept_heads=(tuple(range(HEADS)),) * len(blocks),
        model=ModelIdentity(
            model_type="bert",
            sites=(site,) * len(blocks),
            block_parameters=(500,) * len(blocks),
            norm_parameters=NORMS,
            fingerprint="0123456789abcdef",
            name="made/up",
        ),
        dense_parameters=2000,
        scorer="gradient",
    )


def cost(heads: int) -> int:
    """Of one block at rank 1 on all four roles, with so many heads."""
    return 4 * (HIDDEN + heads * HEAD_SIZE)


# Over the model, a block's importance is 0 + 0.2, 2.1, 1.0 and 0.4; the smallest score is 0, the largest 10.
SCORES = make_scores([0, 0, 1, 1], [10, 5, 3, 3], [4, 3, 2, 1], [1, 1, 1, 1])
DENSE = plan_pruning(SCORES, keep_ratio=1.0)
RANKS = RankPlan(model=SCORES.model, kept_heads=((0, 1), (2,), (0, 1, 2, 3), (3,)), ranks=(8, 4, 0, 2))


def ranks_of(plan: PruningPlan = DENSE, scores: ImportanceScores = SCORES, **options: Any) -> tuple[int, ...]:
    return plan_ranks(scores, plan, normalization="model", **options).ranks


def test_the_top_blocks_get_the_high_rank() -> None:
    assert ranks_of(top_blocks=0) == (4, 4, 4, 4)
    assert ranks_of(top_blocks=1) == (4, 8, 4, 4)
    assert ranks_of(top_blocks=3) == (4, 8, 8, 8)
    assert ranks_of(top_blocks=4) == (8, 8, 8, 8)
    assert ranks_of(top_blocks=2, high=16, low=1) == (1, 16, 16, 1)
    assert ranks_of(top_blocks=2, high=3, low=0) == (0, 3, 3, 0)


def test_of_equal_blocks_the_earlier_is_on_top() -> None:
    equal = make_scores(*[[1, 2, 3, 4]] * 4)
    plan = plan_pruning(equal, keep_ratio=1.0)
    assert plan_ranks(equal, plan, top_blocks=2).ranks == (8, 8, 4, 4)


def test_only_heads_that_stay_count_for_their_block() -> None:
    plan = PruningPlan.from_pruned_heads(SCORES.model, {1: [0, 1, 2]})
    # Block 1 is left with 0.3 and block 2 with 1.0.
    assert ranks_of(plan, top_blocks=1) == (4, 4, 8, 4)


def test_importance_of_a_block_is_the_sum_or_the_mean_of_its_heads() -> None:
    scores = make_scores([6, 0, 0, 0], [4, 4, 0, 0])
    plan = PruningPlan.from_pruned_heads(scores.model, {0: [1, 2, 3], 1: [2, 3]})
    assert ranks_of(plan, scores, top_blocks=1) == (4, 8)
    assert ranks_of(plan, scores, top_blocks=1, block_importance="mean") == (8, 4)


def test_blocks_without_heads_have_rank_0_and_do_not_count_among_the_top() -> None:
    plan = PruningPlan.from_pruned_heads(SCORES.model, {1: range(4), 3: range(4)}, allow_empty_blocks=True)
    assert ranks_of(plan, top_blocks=1) == (4, 0, 8, 0)
    assert ranks_of(plan, top_blocks=4) == (8, 0, 8, 0)
    assert ranks_of(plan, top_blocks=1, block_importance="mean") == (4, 0, 8, 0)
    assert ranks_of(plan, budget=10**9) == (12, 0, 12, 0)


def test_the_plan_records_how_it_was_made() -> None:
    by_rule = plan_ranks(SCORES, DENSE, top_blocks=1, high=6, low=2, block_importance="mean")
    assert by_rule.origin == {
        "block_importance": "mean",
        "normalization": "block",
        "top_blocks": 1,
        "high": 6,
        "low": 2,
    }
    by_budget = plan_ranks(SCORES, DENSE, budget=10_000, roles=["query", "value"])
    assert by_budget.origin == {"block_importance": "sum", "normalization": "block", "budget": 10_000}
    assert by_budget.roles == ("query", "value")
    assert (by_budget.model, by_budget.kept_heads) == (DENSE.model, DENSE.kept_heads)


def test_parameters_by_hand() -> None:
    # A is rank x in and B is out x rank: of query, key and value 12 in and 3 a head out, of the output the other way.
    assert RANKS.lora_parameters == 8 * cost(2) + 4 * cost(1) + 0 + 2 * cost(1)
    assert RANKS.trainable_parameters == RANKS.lora_parameters + NORMS
    two = replace(RANKS, roles=("query", "output"))
    assert two.lora_parameters == RANKS.lora_parameters // 2


def test_it_prints_ranks_and_counts() -> None:
    assert str(RANKS).splitlines() == [
        "LoRA ranks by block: 8 4 0 2 on query, key, value, output",
        f"trainable: {RANKS.trainable_parameters:,} ({RANKS.lora_parameters:,} LoRA, 24 normalisation), without the "
        "task head",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_blocks": 5}, "top_blocks is 5, but the model has 4 blocks"),
        ({"top_blocks": -1}, "top_blocks is -1, but the model has 4 blocks"),
        ({"high": 2, "low": 4}, "Ranks are high=2 and low=4; they need high >= low >= 0 and high >= 1"),
        ({"low": -1}, "high=8 and low=-1; they need"),
        ({"high": 0, "low": 0}, "high=0 and low=0; they need"),
        ({"top_blocks": 0, "low": 0}, "All ranks are 0: nothing would be adapted. Give at least one block a rank"),
        ({"block_importance": "max"}, "block_importance is 'max'; use one of sum, mean"),
        ({"roles": ()}, r"roles is \[\]; name one or more of query, key, value, .*output, gate, up, down, each once"),
        ({"roles": ["query", "query"]}, r"roles is \['query', 'query'\]; name one or more"),
        ({"roles": ["querry"]}, r"roles is \['querry'\]; name one or more"),
        ({"roles": ["querry"], "budget": 1000}, r"roles is \['querry'\]; name one or more"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan_ranks(SCORES, DENSE, **options)


def test_scores_of_another_model_are_refused() -> None:
    other = make_scores(*[[1, 2, 3, 4]] * 3)
    with pytest.raises(PlanError, match=r"scores are of .* 3 blocks .*, the plan is for .* 4 blocks .* the same model"):
        plan_ranks(other, DENSE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranks": (4, 4, 4)}, r"3 ranks were given for 'made/up', bert, 4 blocks .*; give one a block"),
        ({"ranks": (4, -1, 4, 4)}, "Block 1 has rank -1; a rank is a whole number in 0-65536"),
        ({"ranks": (4, 2.0, 4, 4)}, r"Block 1 has rank 2\.0; a rank is"),
        ({"ranks": (4, True, 4, 4)}, "Block 1 has rank True; a rank is"),
        ({"ranks": (4, "4", 4, 4)}, "Block 1 has rank '4'; a rank is"),
        ({"ranks": (0, 0, 0, 0)}, "All ranks are 0"),
        ({"roles": ["output", "gates"]}, r"roles is \['output', 'gates'\]; name one or more"),
        ({"kept_heads": ((0,), (), (0,), (0,))}, "Block 1 has rank 4, but no heads; give it rank 0"),
        ({"kept_heads": ((0,), (4,), (0,), (0,))}, r"block 1 head 4, but 'made/up', .* has heads 0-3 there"),
        ({"kept_heads": ((0,), (1, 1), (0,), (0,))}, "block 1 head 1 twice"),
        ({"kept_heads": ((0,), ("x",), (0,), (0,))}, "block 1 head 'x', but"),
    ],
)
def test_impossible_plans_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=message):
        replace(RANKS, **changes)
    path = edited(tmp_path / "ranks.json", lambda content: content.update(changes))
    with pytest.raises(PlanError, match=rf"ranks\.json: .*{message}"):
        RankPlan.load(path)


# Beyond the smallest possible; about 3,500 is all that five blocks can use.
BUDGETS = st.integers(0, 600) | st.integers(0, 5000)
ROWS = st.integers(1, 5).flatmap(
    lambda blocks: st.lists(
        st.lists(st.integers(0, 99).map(float), min_size=HEADS, max_size=HEADS), min_size=blocks, max_size=blocks
    )
)


@st.composite
def pruned(draw: st.DrawFn) -> tuple[ImportanceScores, PruningPlan]:
    """Made-up scores and a plan that keeps any heads, at least one in all."""
    scores = make_scores(*draw(ROWS))
    gone = {block: range(draw(st.integers(0, HEADS))) for block in range(len(scores.heads))}
    if all(len(heads) == HEADS for heads in gone.values()):
        gone[0] = range(0)
    return scores, PruningPlan.from_pruned_heads(scores.model, gone, allow_empty_blocks=True)


@given(pruned(), BUDGETS)
def test_a_budget_is_never_exceeded_and_used_up_to_less_than_one_step(
    made: tuple[ImportanceScores, PruningPlan], beyond: int
) -> None:
    scores, plan = made
    costs = [cost(len(heads)) for heads in plan.kept_heads if heads]
    budget = NORMS + sum(costs) + beyond
    ranks = plan_ranks(scores, plan, budget=budget)
    assert ranks.trainable_parameters <= budget
    assert all((rank >= 1) == bool(heads) for rank, heads in zip(ranks.ranks, plan.kept_heads, strict=True))
    # More would not help: a rank beyond the smaller side of a matrix adds no freedom.
    limits = [min(len(heads) * HEAD_SIZE, HIDDEN) for heads in plan.kept_heads]
    assert all(rank <= limit for rank, limit in zip(ranks.ranks, limits, strict=True))
    assert ranks.ranks == tuple(limits) or budget - ranks.trainable_parameters < max(costs)


@given(pruned(), BUDGETS, st.integers(0, 200))
def test_a_larger_budget_never_lowers_a_rank(
    made: tuple[ImportanceScores, PruningPlan], beyond: int, more: int
) -> None:
    scores, plan = made
    budget = NORMS + sum(cost(len(heads)) for heads in plan.kept_heads if heads) + beyond
    small, large = (plan_ranks(scores, plan, budget=amount).ranks for amount in (budget, budget + more))
    assert all(few <= many for few, many in zip(small, large, strict=True))


@given(ROWS, BUDGETS, st.sampled_from(["sum", "mean"]))
def test_where_blocks_cost_the_same_ranks_rise_with_importance(rows: list[list[float]], beyond: int, how: Any) -> None:
    scores = make_scores(*rows)
    plan = plan_pruning(scores, keep_ratio=1.0)
    budget = NORMS + len(rows) * FULL_COST + beyond
    ranks = plan_ranks(scores, plan, budget=budget, block_importance=how).ranks
    importance = [block.sum().item() for block in scores.normalized()]
    ascending = [ranks[block] for block in sorted(range(len(rows)), key=importance.__getitem__)]
    assert all(few <= many for few, many in pairwise(ascending)) or any(
        math.isclose(one, other, rel_tol=1e-12) for one, other in pairwise(sorted(importance))
    )


def test_a_budget_is_spread_in_proportion_to_importance() -> None:
    scores = make_scores([0, 0, 0, 0], [1, 1, 1, 1], [3, 3, 3, 3])
    plan = plan_pruning(scores, keep_ratio=1.0)
    # Importance 0 : 4 : 12, and 1 + 2 + 6 steps to spread.
    assert ranks_of(plan, scores, budget=NORMS + 9 * FULL_COST) == (1, 2, 6)
    assert ranks_of(plan, scores, budget=NORMS + 3 * FULL_COST) == (1, 1, 1)
    assert ranks_of(plan, scores, budget=NORMS + 4 * FULL_COST - 1) == (1, 1, 1)
    # Beyond what the important blocks can use, the rest goes to the unimportant one.
    assert ranks_of(plan, scores, budget=NORMS + 30 * FULL_COST) == (6, 12, 12)
    assert ranks_of(plan, scores, budget=10**9) == (12, 12, 12)


def test_blocks_that_matter_equally_little_share_alike() -> None:
    scores = make_scores(*[[2, 2, 2, 2]] * 3)
    plan = plan_pruning(scores, keep_ratio=1.0)
    assert ranks_of(plan, scores, budget=NORMS + 8 * FULL_COST) == (3, 3, 2)


def test_a_budget_that_is_too_small_names_the_smallest() -> None:
    smallest = NORMS + 4 * FULL_COST
    assert ranks_of(budget=smallest) == (1, 1, 1, 1)
    with pytest.raises(
        PlanError,
        match=rf"The budget is {smallest - 1:,} trainable .* already need {smallest:,}\. Raise the budget",
    ):
        plan_ranks(SCORES, DENSE, budget=smallest - 1)
    with pytest.raises(PlanError, match=rf"The budget is -5 .* already need {NORMS + 2 * FULL_COST:,}"):
        plan_ranks(SCORES, DENSE, budget=-5, roles=["query", "key"])


def edited(path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """A rank plan's file after somebody edited it by hand."""
    RANKS.save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_saved_then_loaded_is_the_same_plan(tmp_path: Path) -> None:
    for ranks in (RANKS, plan_ranks(SCORES, DENSE, budget=3000, roles=["key"])):
        ranks.save(tmp_path / "ranks.json")
        assert RankPlan.load(tmp_path / "ranks.json") == ranks


def test_ranks_edited_by_hand_are_read(tmp_path: Path) -> None:
    path = edited(tmp_path / "ranks.json", lambda content: content.update(ranks=[1, 2, 3, 4]))
    assert RankPlan.load(path).ranks == (1, 2, 3, 4)


def test_every_truncation_of_the_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "ranks.json"
    RANKS.save(path)
    text = path.read_text(encoding="utf-8")
    for length in range(0, len(text) - 1, 7):
        path.write_text(text[:length], encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"ranks\.json is not readable .* damaged or cut short"):
            RankPlan.load(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.update(schema=0), r"ranks\.json: The rank plan has schema 0; this release reads 2"),
        (lambda content: content.update(kind="x"), "holds 'x' where a 'pruning-adapter ranks' was expected"),
        (lambda content: content.pop("ranks"), r"rank plan is incomplete or damaged: KeyError\('ranks'\)"),
        (lambda content: content.update(ranks=4), "rank plan is incomplete or damaged: TypeError"),
    ],
)
def test_damaged_files_are_refused(edit: Callable[[dict[str, Any]], object], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        RankPlan.load(edited(tmp_path / "ranks.json", edit))


@pytest.mark.parametrize("value", [None, "x", -1, 2.5, 7, [], ["x"], [[None]], [["x"]], {}, {"x": 1}, 1e999])
def test_any_damaged_field_is_one_of_our_errors_or_none(tmp_path: Path, value: object) -> None:
    path, whole = tmp_path / "ranks.json", RANKS.to_json()
    identity, site = whole["model"], whole["model"]["sites"][0]
    damaged = [
        *({**whole, name: value} for name in whole),
        *({**whole, "model": {**identity, name: value}} for name in identity),
        *({**whole, "model": {**identity, "sites": [{**site, name: value}]}} for name in site),
    ]
    escaped: list[str] = []
    for content in damaged:
        path.write_text(json.dumps(content), encoding="utf-8")
        try:
            str(RankPlan.load(path))
        except PruningAdapterError:
            continue
        except Exception as error:
            escaped.append(f"{content}: {error!r}")
    assert escaped == []
