"""Scores, plans, ranks, settings, results and latency tables: one of our errors, or a value that can be used."""

import json
import resource
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import get_peft_model

import pruning_adapter as pa
from conformance import make_plan
from mutate import damage_bytes, damage_json, replace_everywhere
from pruning_adapter.costs.latency import LatencyTable
from pruning_adapter.errors import CheckpointError, PruningAdapterError
from pruning_adapter.evaluation.result import Result
from pruning_adapter.settings import Settings
from pruning_adapter.storage import read_json
from tiny import make_batch, make_model

MESSAGE = 2000
FOLDER = TemporaryDirectory()


@cache
def model() -> Any:
    return make_model("bert")


@cache
def scores() -> pa.ImportanceScores:
    return pa.measure_importance(model(), [make_batch()], units=("heads", "neurons"))


@cache
def plan() -> pa.PruningPlan:
    return pa.plan_pruning(scores(), keep_macs=0.6, length=16)


def use_scores(value: pa.ImportanceScores) -> None:
    str(value)
    pa.plan_pruning(value, keep_ratio=0.5, normalization="model")


def use_plan(value: pa.PruningPlan) -> None:
    str(value)
    fresh = make_model("bert")
    pa.prune_(fresh, value)
    fresh(**make_batch())


def use_ranks(value: pa.RankPlan) -> None:
    str(value)
    get_peft_model(make_model("bert"), pa.PruneLoraConfig(pruning=plan(), ranks=value, task_type="SEQ_CLS"))


def make_table() -> LatencyTable:
    identity = plan().model
    curves = tuple(((1, 0.02), (site.units, 0.1)) for site in identity.all_sites)
    return LatencyTable(
        model=identity,
        curves=curves,
        spread=0.01,
        batch=1,
        length=16,
        dtype="float32",
        device="cpu",
        machine={},
        roundings=((1, 1.0),),
    )


def make_result() -> Result:
    return Result(
        task={"name": "t"},
        model={},
        method="lora",
        scorer=None,
        seed=0,
        recipe={},
        quality={},
        cost={"parameters": 3},
        history=({"step": 1.0},),
    )


KINDS: dict[str, tuple[Callable[[], Any], Callable[[Path], Any], Callable[[Any], object]]] = {
    "scores": (scores, pa.ImportanceScores.load, use_scores),
    "plan": (plan, pa.PruningPlan.load, use_plan),
    "heads only": (lambda: make_plan(model(), {0: [1]}), pa.PruningPlan.load, use_plan),
    "ranks": (lambda: pa.plan_ranks(scores(), plan(), top_blocks=1), pa.RankPlan.load, use_ranks),
    "settings": (lambda: Settings(demo=True, keep_macs=0.5), Settings.load, lambda value: value.check()),
    "latency table": (make_table, LatencyTable.load, str),
    "result": (make_result, Result.load, str),
}


def written(kind: str) -> str:
    path = Path(FOLDER.name) / f"{kind}.json"
    if not path.exists():
        KINDS[kind][0]().save(path)
    return path.read_text(encoding="utf-8")


def try_to_load(kind: str, content: bytes) -> bool:
    """Whether it loaded and could be used; anything but our own errors, in a few lines, is a failure."""
    _, load, use = KINDS[kind]
    path = Path(FOLDER.name) / "damaged.json"
    path.write_bytes(content)
    try:
        use(load(path))
    except PruningAdapterError as error:
        if len(str(error)) > MESSAGE:
            raise AssertionError("the message is for people, whatever the file holds") from error
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_file_loads(kind: str) -> None:
    assert try_to_load(kind, written(kind).encode())


@pytest.mark.parametrize("kind", KINDS)
def test_any_wrong_value_in_any_place_is_our_error_in_little_memory(kind: str, request: pytest.FixtureRequest) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Every one of them in the campaign; others are picked of each place by turns.
    step = 1 if request.config.getoption("--many") else 23
    for text in islice(replace_everywhere(written(kind)), 0, None, step):
        try_to_load(kind, text.encode())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20, "kilobytes"


@pytest.mark.parametrize("kind", KINDS)
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_wrong_values_are_our_errors(kind: str, data: st.DataObject) -> None:
    try_to_load(kind, data.draw(damage_json(written(kind))).encode())


@pytest.mark.parametrize("kind", KINDS)
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_broken_files_are_our_errors(kind: str, data: st.DataObject) -> None:
    try_to_load(kind, data.draw(damage_bytes(written(kind).encode())))


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(written("plan").replace('"kind"', '"kind": "another", "kind"', 1), encoding="utf-8")
    with pytest.raises(CheckpointError, match="the key 'kind' is there twice"):
        read_json(path, kind="pruning-adapter plan")


def test_short_text_cannot_fill_the_memory() -> None:
    """Half a megabyte of ranges, each of eight million neurons."""
    many = ",".join(["0-8388607"] * 50_000)
    text = written("plan")
    first = text.index('"kept_neurons"')
    begin = text.index('"', text.index("[", first)) + 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert not try_to_load("plan", (text[:begin] + many + text[text.index('"', begin) :]).encode())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20, "kilobytes"


@pytest.mark.parametrize("cost", ["1e999999999", "1/0", "1_000", "٣", " 1", "0.5", "9" * 41, 3, None, ["1"]])
def test_costs_are_short_fractions(cost: Any) -> None:
    """`fractions.Fraction` reads an exponent of nine digits too, for hours."""
    plan = json.loads(written("plan"))
    plan["macs"]["of_units"][0][1] = cost
    assert not try_to_load("plan", json.dumps(plan).encode())


@pytest.mark.parametrize("number", [2**31, 10**30, 1e308, -1, 0])
def test_scores_of_heads_that_never_were_are_refused(number: float) -> None:
    """A table of two thousand million columns fills any memory."""
    content = json.loads(written("scores"))
    content["kept_heads"][0][1] = number
    assert not try_to_load("scores", json.dumps(content).encode())


@pytest.mark.parametrize("kind", ["scores", "plan"])
@pytest.mark.parametrize("costs", ["of_units", "of_groups"])
def test_costs_of_other_blocks_are_refused(kind: str, costs: str) -> None:
    content = json.loads(written(kind))
    del content["macs"][costs][0]
    assert not try_to_load(kind, json.dumps(content).encode())
