"""Twenty budgets over one set of scores: a curve from the smallest possible plan to the whole model."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import pruning_adapter as pa
from pruning_adapter.errors import PlanError
from pruning_adapter.planning import plan_pruning
from pruning_adapter.planning.sweep import sweep_budgets
from tiny import make_model

SCORES = pa.random_importance(make_model("llama"), seed=0, units=("heads", "neurons"))


@pytest.mark.parametrize("by", ["macs", "params"])
@pytest.mark.parametrize("empty", [False, True])
def test_budgets_run_evenly_from_the_smallest_possible_to_the_whole_model(by: Any, empty: bool) -> None:
    found = sweep_budgets(SCORES, by=by, count=7, length=16, allow_empty_blocks=empty)
    budgets = [point.budget for point in found.points]
    steps = [after - before for before, after in pairwise(budgets)]
    assert len(budgets) == 7
    assert steps == pytest.approx([steps[0]] * 6, rel=1e-4)
    assert budgets[-1] == 1
    last = found.points[-1]
    assert (last.heads, last.neurons, last.parameters, last.macs, last.importance) == (
        found.dense.heads,
        found.dense.neurons,
        found.dense.parameters,
        found.dense.macs,
        pytest.approx(1),
    )
    with pytest.raises(PlanError, match="smallest possible plan"):
        plan_pruning(SCORES, **{f"keep_{by}": budgets[0] - 1e-3}, length=16, allow_empty_blocks=empty)


def test_points_are_what_plans_say() -> None:
    found = sweep_budgets(SCORES, by="macs", count=5, length=16)
    for point in found.points:
        plan = plan_pruning(SCORES, keep_macs=point.budget, length=16)
        assert (point.heads, point.neurons, point.parameters, point.macs) == (
            plan.heads_kept,
            plan.neurons_kept,
            plan.parameters,
            plan.count_macs(16),
        )
    kept = [point.importance for point in found.points]
    assert kept == sorted(kept)
    assert 0 < kept[0] < kept[-1] == pytest.approx(1)


def test_it_prints_and_saves(tmp_path: Path) -> None:
    found = sweep_budgets(SCORES, count=3, length=16)
    assert len(str(found).splitlines()) == 2 + 3
    assert "multiply-accumulates at 16 tokens" in str(found)
    found.save(tmp_path / "sweep.json")
    assert json.loads((tmp_path / "sweep.json").read_text()) == json.loads(json.dumps(found.to_json()))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"by": "money"}, "swept by macs or params, not by 'money'"), ({"count": 1}, "2 or more budgets; 1 was asked")],
)
def test_impossible_sweeps_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        sweep_budgets(SCORES, **options)
