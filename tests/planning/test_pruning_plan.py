"""`PruningPlan` as a value: what it refuses, what it predicts, and files that people edit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

from pruning_adapter.architectures import ModelIdentity, ProjectionShape, SiteShape
from pruning_adapter.architectures.identity import count_parameters, identify
from pruning_adapter.errors import CheckpointError, PlanError, PruningAdapterError
from pruning_adapter.planning import PruningPlan
from pruning_adapter.surgery import prune_
from tiny import make_model

torch.set_num_threads(1)
PROJECTIONS = tuple(ProjectionShape(roles=(role,), in_features=6, bias=True) for role in ("query", "key", "value"))
SITE = SiteShape(units=4, groups=4, unit_size=2, projections=PROJECTIONS, out_features=6)
MODEL = ModelIdentity(
    model_type="bert",
    sites=(SITE,) * 3,
    block_parameters=(500,) * 3,
    norm_parameters=24,
    fingerprint="0123456789abcdef",
    name="made/up",
)
KEPT = ((1, 3), (0, 1, 2, 3), (2,))
PLAN = PruningPlan(model=MODEL, kept_heads=KEPT, dense_parameters=2000, origin={"rule": {"keep_heads": 7}})


def edited(path: Path, edit: Callable[[dict[str, Any]], object], plan: PruningPlan = PLAN) -> Path:
    """A plan's file after somebody edited it by hand."""
    plan.save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_pruned_heads_are_the_others_and_name_only_blocks_that_lose_some() -> None:
    assert PLAN.pruned_heads == {0: [0, 2], 2: [0, 1, 3]}
    assert PLAN.heads_kept == 7


def test_named_heads_make_the_same_plan() -> None:
    plan = PruningPlan.from_pruned_heads(MODEL, {2: [3, 0, 1], 0: (2, 0), 1: []}, dense_parameters=2000)
    assert plan.kept_heads == KEPT
    assert plan.parameters == PLAN.parameters
    assert plan.origin == {"rule": "named heads"}


@given(st.tuples(*[st.sets(st.integers(0, 3)).map(sorted)] * 3))
def test_pruned_and_kept_heads_are_two_views_of_one_plan(kept: tuple[list[int], ...]) -> None:
    plan = PruningPlan(model=MODEL, kept_heads=tuple(map(tuple, kept)), dense_parameters=9, allow_empty_blocks=True)
    back = PruningPlan.from_pruned_heads(MODEL, plan.pruned_heads, dense_parameters=9, allow_empty_blocks=True)
    assert back.kept_heads == plan.kept_heads
    assert plan.heads_kept + sum(map(len, plan.pruned_heads.values())) == 12


def test_parameters_by_hand() -> None:
    # A head has 2 rows of 6 weights and a bias in each of query, key and value, and 2 columns of 6 in the output.
    head = 3 * 2 * (6 + 1) + 2 * 6
    assert PLAN.parameters_removed == 5 * head
    assert PLAN.parameters == 2000 - 5 * head


def test_grouped_parameters_by_hand() -> None:
    grouped = replace(MODEL, sites=(replace(SITE, groups=2),), block_parameters=(500,))
    whole_group = PruningPlan(model=grouped, kept_heads=((0, 1),), dense_parameters=2000)
    # Two query heads and the one key and the one value head that they read.
    assert whole_group.parameters_removed == (2 + 1 + 1) * 2 * 7 + 2 * 2 * 6
    one_of_each = PruningPlan(model=grouped, kept_heads=((0, 2),), dense_parameters=2000)
    # Both key/value heads are still read.
    assert one_of_each.parameters_removed == 2 * 2 * 7 + 2 * 2 * 6
    with pytest.raises(PlanError, match=r"between 1 and 2 query heads per key/value group of 2; .* whole groups"):
        PruningPlan(model=grouped, kept_heads=((0, 1, 2),), dense_parameters=2000)


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "gpt2"])
def test_predicted_parameters_are_those_that_are_left(family: str) -> None:
    model = make_model(family)
    plan = PruningPlan.from_pruned_heads(
        identify(model),
        {0: [1], 1: [0, 2, 3], 2: [0, 1, 2, 3]},
        dense_parameters=count_parameters(model),
        allow_empty_blocks=True,
    )
    assert count_parameters(prune_(model, plan)) == plan.parameters


def test_bert_base_is_counted_from_its_config_alone() -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig())
    identity = identify(model)
    assert count_parameters(model) == 109_483_778
    assert identity.norm_parameters == 38_400
    assert identity.fingerprint is None
    one = PruningPlan.from_pruned_heads(identity, {5: [7]}, dense_parameters=109_483_778)
    assert one.parameters_removed == 196_800
    gone = {block: range(4) for block in range(11)}
    many = PruningPlan.from_pruned_heads(identity, gone, dense_parameters=109_483_778)
    assert many.heads_kept == 100
    assert many.parameters_removed == 8_659_200
    assert many.parameters == 109_483_778 - 8_659_200


def test_it_prints_what_stays() -> None:
    head = 54
    assert str(PLAN).splitlines() == [
        "'made/up', bert, 3 blocks x 4 heads of 2: 7 of 12 heads stay",
        "block  0   .  1  .  3   2 of 4",
        "block  1   0  1  2  3   4 of 4",
        "block  2   .  .  2  .   1 of 4",
        f"parameters: {5 * head:,} go, {2000 - 5 * head:,} of 2,000 stay (86.5%)",
    ]


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (((0,), (0,)), r"speaks of 2 blocks, but 'made/up', bert, 3 blocks x 4 heads of 2 has others"),
        (
            ((0,), (0, 4), (0,)),
            r"keeps in block 1 head 4, but 'made/up', .* has heads 0-3 there\. Score this model",
        ),
        (((0,), (-1,), (0,)), r"keeps in block 1 head -1, but"),
        (((0,), (0.0,), (0,)), r"keeps in block 1 head 0\.0, but"),
        (((0,), (True,), (0,)), r"keeps in block 1 head True, but"),
        (((0,), ("0",), (0,)), r"keeps in block 1 head '0', but"),
        (((0,), (1, 2, 1), (0,)), r"keeps in block 1 head 1 twice; name every head once"),
        (((0,), (0,), (2, 1)), r"lists the heads of block 2 out of order: \[2, 1\]; sort them"),
        (((0,), (0,), ()), r"leaves block 2 without heads\. Keep at least one, or say allow_empty_blocks=True"),
    ],
)
def test_impossible_plans_are_refused(kept: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=message):
        PruningPlan(model=MODEL, kept_heads=kept, dense_parameters=2000)
    path = edited(tmp_path / "plan.json", lambda content: content.update(kept_heads=kept))
    with pytest.raises(PlanError, match=rf"plan\.json: .*{message}"):
        PruningPlan.load(path)


def test_named_heads_that_the_model_does_not_have_are_refused() -> None:
    for block in (3, -1):
        with pytest.raises(PlanError, match=rf"prunes block {block}, but 'made/up', .* has blocks 0-2"):
            PruningPlan.from_pruned_heads(MODEL, {block: [0]})
    with pytest.raises(PlanError, match=r"prunes in block 0 head 4, but .* has heads 0-3 there"):
        PruningPlan.from_pruned_heads(MODEL, {0: [4]})
    with pytest.raises(PlanError, match="prunes in block 0 head 2 twice; name every head once"):
        PruningPlan.from_pruned_heads(MODEL, {0: [2, 1, 2]})
    with pytest.raises(PlanError, match="leaves block 1 without heads"):
        PruningPlan.from_pruned_heads(MODEL, {1: range(4)})


@settings(max_examples=50)
@given(st.tuples(*[st.sets(st.integers(0, 3)).map(sorted)] * 3))
def test_saved_then_loaded_is_the_same_plan(
    tmp_path_factory: pytest.TempPathFactory, kept: tuple[list[int], ...]
) -> None:
    path = tmp_path_factory.getbasetemp() / "plan.json"
    plan = PruningPlan(model=MODEL, kept_heads=tuple(map(tuple, kept)), dense_parameters=2000, allow_empty_blocks=True)
    plan.save(path)
    assert PruningPlan.load(path) == plan


def test_a_plan_edited_by_hand_is_read(tmp_path: Path) -> None:
    path = edited(tmp_path / "plan.json", lambda content: content["kept_heads"].__setitem__(2, [0, 2, 3]))
    plan = PruningPlan.load(path)
    assert plan.kept_heads == (*KEPT[:2], (0, 2, 3))
    assert plan.model == MODEL


def test_the_file_has_one_line_a_block(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    lines = [line.strip() for line in (tmp_path / "plan.json").read_text(encoding="utf-8").splitlines()]
    assert {"[ 1, 3 ],", "[ 0, 1, 2, 3 ],", "[ 2 ]"} <= set(lines)


def test_every_truncation_of_the_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    PLAN.save(path)
    text = path.read_text(encoding="utf-8")
    for length in range(0, len(text) - 1, 7):
        path.write_text(text[:length], encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"plan\.json is not readable .* damaged or cut short"):
            PruningPlan.load(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.update(schema=1), r"plan\.json: The plan has schema 1; this release reads 2"),
        (lambda content: content.pop("schema"), "The plan has schema None"),
        (lambda content: content.update(kind="recipe"), "holds 'recipe' where a 'pruning-adapter plan' was expected"),
        (lambda content: content.pop("kept_heads"), r"incomplete or damaged: KeyError\('kept_heads'\)"),
        (lambda content: content.update(kept_heads=[1, 2, 3]), "kept_heads is not a list of lists"),
        (lambda content: content["model"].pop("sites"), r"model identity in this file is damaged: KeyError\('sites'\)"),
        (lambda content: content["model"]["sites"][0].update(units=0), "0 is not a positive count"),
        (lambda content: content["model"]["sites"][0].update(repeat=10**9), "repeat is 1000000000"),
    ],
)
def test_damaged_files_are_refused(edit: Callable[[dict[str, Any]], object], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        PruningPlan.load(edited(tmp_path / "plan.json", edit))


@pytest.mark.parametrize("value", [None, "x", -1, 2.5, 7, [], ["x"], [[None]], [["x"]], {}, {"x": 1}, 1e999])
def test_any_damaged_field_is_one_of_our_errors_or_none(tmp_path: Path, value: object) -> None:
    path, whole = tmp_path / "plan.json", PLAN.to_json()
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
            str(PruningPlan.load(path))
        except PruningAdapterError:
            continue
        except Exception as error:
            escaped.append(f"{content}: {error!r}")
    assert escaped == []
