"""`Result` as a file: what is read is what was written, and nothing else passes for one."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pruning_adapter.errors import CheckpointError
from pruning_adapter.evaluation.result import Measure, Quality, Result

RESULT = Result(
    task={"name": "toy", "train_examples": 12, "labels": ["no", "yes"]},
    model={"id": "made/up", "revision": None, "model_type": "bert", "fingerprint": "0123"},
    method="prune-lora",
    scorer="gradient",
    seed=3,
    recipe={"name": "default", "epochs": 5, "learning_rate": {"full": 1e-4, "prune-lora": 1e-3}},
    quality={
        "matched": Quality(
            metrics={"accuracy": Measure(value=0.75, low=0.5, high=0.9), "f1": Measure(value=2 / 3, low=0.1, high=1.0)},
            examples=8,
            majority_rate=0.5,
            at_majority=False,
        ),
        "mismatched": Quality(
            metrics={"pearson": Measure(value=-0.1, low=-0.2, high=0.3)},
            examples=4,
            majority_rate=None,
            at_majority=True,
        ),
    },
    cost={"parameters": 80, "dense_parameters": 100, "latency_ratio": {"median": 0.9, "q1": 0.8, "q3": 1.1}},
    history=({"step": 1.0, "epoch": 0.5, "loss": 0.7}, {"step": 2.0, "epoch": 1.0, "eval_accuracy": 0.75}),
    pruning={"importance": [[0.0, 1.0], [0.5]], "kept_heads": [[1], [0]], "ranks": [8, 4], "rank_roles": ["query"]},
    notes=("It ended at the majority class.",),
    command="pruning-adapter run --demo",
    versions={"torch": "2.13.0"},
    machine={"threads": 2},
)


def edited(path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    RESULT.save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "result",
    [RESULT, replace(RESULT, method="lora", scorer=None, pruning=None, notes=(), history=())],
    ids=["prune-lora", "lora"],
)
def test_saved_then_loaded_is_the_same_result(tmp_path: Path, result: Result) -> None:
    result.save(tmp_path / "result.json")
    loaded = Result.load(tmp_path / "result.json")
    assert loaded == result
    # The primary validation set and metric come first.
    assert list(loaded.quality) == ["matched", "mismatched"]
    assert list(loaded.quality["matched"].metrics) == ["accuracy", "f1"]


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    RESULT.save(tmp_path / "result.json")
    content = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert (content["kind"], content["schema"]) == ("pruning-adapter result", 1)


def test_every_truncation_of_the_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    RESULT.save(path)
    text = path.read_text(encoding="utf-8")
    for length in range(0, len(text) - 1, 17):
        path.write_text(text[:length], encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"result\.json is not readable .* damaged or cut short"):
            Result.load(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda content: content.update(schema=2),
            r"result\.json follows another result schema than 1; use the release",
        ),
        (lambda content: content.pop("schema"), "follows another result schema than 1"),
        (lambda content: content.update(kind="pruning-adapter plan"), "holds 'pruning-adapter plan' where a 'pruning-"),
        (lambda content: content.pop("quality"), r"result\.json is not a complete result: 'quality'"),
        (lambda content: content.pop("cost"), "is not a complete result: .* 'cost'"),
        (lambda content: content.update(score=1), "is not a complete result: .* 'score'"),
        (lambda content: content.update(quality=[1]), "is not a complete result"),
        (lambda content: content.update(history=None), "is not a complete result"),
        (lambda content: content["quality"].update(matched=None), "is not a complete result"),
        (lambda content: content["quality"]["matched"].pop("metrics"), "is not a complete result: 'metrics'"),
        (lambda content: content["quality"]["matched"].pop("examples"), "is not a complete result: .* 'examples'"),
        (lambda content: content["quality"]["matched"]["metrics"].update(f1=0.5), "is not a complete result"),
        (lambda content: content["quality"]["matched"]["metrics"]["f1"].pop("low"), "is not a complete .* 'low'"),
    ],
)
def test_damaged_files_are_refused(edit: Callable[[dict[str, Any]], object], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        Result.load(edited(tmp_path / "result.json", edit))


@pytest.mark.parametrize("value", [None, "x", -1, 2.5, [], ["x"], [[None]], {}, {"x": 1}])
def test_any_damaged_field_is_a_checkpoint_error_or_none(tmp_path: Path, value: object) -> None:
    RESULT.save(tmp_path / "result.json")
    whole = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    quality = whole["quality"]["matched"]
    damaged = [
        *({**whole, name: value} for name in whole),
        *({**whole, "quality": {"matched": {**quality, name: value}}} for name in quality),
    ]
    escaped: list[str] = []
    for content in damaged:
        (tmp_path / "result.json").write_text(json.dumps(content), encoding="utf-8")
        try:
            Result.load(tmp_path / "result.json")
        except CheckpointError:
            continue
        except Exception as error:
            escaped.append(f"{content}: {error!r}")
    assert escaped == []
