"""`Settings`: what contradicts itself is refused before anything is loaded, and its file brings it back."""

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pruning_adapter.errors import CheckpointError, DataError, OutputError, PlanError, PruningAdapterError
from pruning_adapter.settings import DEMO_MODEL, Settings

GOOD = Settings(model="made/up", task="rte")
FILES: dict[str, Any] = {
    "train_file": "train.csv",
    "validation_file": "dev.csv",
    "text_columns": ("text",),
    "label_column": "label",
}


@pytest.mark.parametrize(
    "settings",
    [
        GOOD,
        Settings(demo=True),
        Settings(model="made/up", demo=True),
        Settings(model="made/up", **FILES),
        GOOD.changed({"preset": "paper", "method": "lora", "recipe": "paper", "scorer": "reversed"}),
        GOOD.changed({"keep_ratio": 1.0, "low_rank": 0, "top_blocks": 0, "seed": 2**32 - 1}),
        GOOD.changed({"threshold": 0.0}),
        # With a budget the two ranks are not used.
        GOOD.changed({"rank_budget": 1000, "high_rank": 2}),
    ],
)
def test_what_fits_together_passes(settings: Settings) -> None:
    settings.check()
    assert settings.changed({}) == settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(model="m"), r"No data was named\. Give --task .*, --train-file and --validation-file, or --demo"),
        (Settings(task="rte"), r"No model was named\. Give --model, a folder or a hub id; --demo brings its own"),
        (Settings(demo=True, task="rte"), "Give one source of data; --demo and --task were given"),
        (Settings(model="m", task="rte", **FILES), "Give one source of data; --task and --train-file were given"),
        *(
            (Settings(model="m", **{**FILES, name: empty}), "also needs --validation-file, --text-columns and --label-")
            for name, empty in (("validation_file", None), ("text_columns", ()), ("label_column", None))
        ),
    ],
)
def test_data_that_is_missing_or_doubled_is_refused(settings: Settings, message: str) -> None:
    with pytest.raises(DataError, match=message):
        settings.check()


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("scorer", "gradient, random, magnitude, reversed"),
        ("reduction", "example, batch, token, bertology"),
        ("normalization", "block, model"),
        ("method", "full, lora, prune-lora"),
        ("recipe", "paper, default"),
        ("preset", "paper, paper-counts"),
    ],
)
def test_an_unknown_name_lists_the_known(name: str, known: str) -> None:
    with pytest.raises(PruningAdapterError, match=rf"{name.capitalize()} 'magic' is unknown; .*{known}"):
        GOOD.changed({name: "magic"}).check()


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("keep_heads", 0, "1 or more"),
        ("keep_ratio", 0.0, r"the share of heads that stay, in \(0, 1\]"),
        ("keep_ratio", 1.5, r"the share of heads that stay, in \(0, 1\]"),
        ("keep_ratio", math.nan, r"the share of heads that stay"),
        ("threshold", 2.0, r"a normalised importance, in \[0, 1\]"),
        ("threshold", -0.1, "a normalised importance"),
        ("train_rows", 1, "2 or more"),
        ("examples", 0, "1 or more"),
        ("epochs", 0, "a positive number"),
        ("epochs", math.inf, "a positive number"),
        ("learning_rate", -1e-3, "a positive number"),
        ("learning_rate", math.nan, "a positive number"),
        ("accumulate", 0, "1 or more"),
        ("seed", -1, "in 0 to 4294967295"),
        ("seed", 2**32, "in 0 to 4294967295"),
        ("top_blocks", -1, "0 or more"),
        ("high_rank", 0, "1 or more"),
        ("low_rank", -1, "0 or more"),
        # As an edited file may hold it.
        ("seed", "7", "in 0 to 4294967295"),
    ],
)
def test_a_number_out_of_range_is_refused_with_the_range(name: str, value: object, rule: str) -> None:
    with pytest.raises(PruningAdapterError, match=rf"{name} is {value}; it must be {rule}"):
        GOOD.changed({name: value}).check()


def test_ranks_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(PlanError, match="low_rank is 4; it must not be above high_rank, 2"):
        GOOD.changed({"high_rank": 2}).check()


@pytest.mark.parametrize("other", [{"keep_heads": 5}, {"keep_ratio": 0.5}, {"preset": "paper"}])
def test_two_rules_at_once_are_refused(other: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=rf"Give one of preset, keep_heads, .*; {next(iter(other))} and threshold were"):
        GOOD.changed({"threshold": 0.5, **other}).check()


def test_what_is_not_given_stays_and_a_new_rule_replaces_an_old_one() -> None:
    before = GOOD.changed({"keep_heads": 5, "seed": 3, "top_blocks": None})
    assert before.changed({"seed": None, "keep_heads": 6}) == GOOD.changed({"keep_heads": 6, "seed": 3})
    assert before.with_rule({"threshold": 0.5}) == GOOD.changed({"threshold": 0.5, "seed": 3})
    assert before.with_rule({"seed": 4}) == GOOD.changed({"keep_heads": 5, "seed": 4})


def test_the_demo_has_a_model_of_its_own_unless_another_is_named() -> None:
    assert Settings(demo=True).model_id == DEMO_MODEL
    assert Settings(demo=True, model="made/up").model_id == "made/up"


def test_saved_then_loaded_are_the_same_settings(tmp_path: Path) -> None:
    for settings in (GOOD, Settings(), Settings(model="m", seed=3, keep_ratio=1 / 3, allow_empty_blocks=True, **FILES)):
        settings.save(tmp_path / "settings.json")
        assert Settings.load(tmp_path / "settings.json") == settings


def test_a_file_of_a_release_with_fewer_settings_is_read(tmp_path: Path) -> None:
    content = {"kind": "pruning-adapter settings", "model": "made/up", "task": "rte"}
    (tmp_path / "settings.json").write_text(json.dumps(content), encoding="utf-8")
    assert Settings.load(tmp_path / "settings.json") == GOOD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "recipe"}, "holds 'recipe' where a 'pruning-adapter settings' was expected"),
        ({"gpu": 1}, "holds the unknown setting 'gpu'; another release wrote it"),
        ({"text_columns": None}, r"settings\.json is damaged"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    GOOD.save(tmp_path / "settings.json")
    content = json.loads((tmp_path / "settings.json").read_text(encoding="utf-8"))
    (tmp_path / "settings.json").write_text(json.dumps({**content, **change}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        Settings.load(tmp_path / "settings.json")


@pytest.mark.parametrize("name", [field.name for field in fields(Settings)])
def test_going_on_with_any_other_setting_is_refused(name: str) -> None:
    other = GOOD.changed({name: "another"})
    message = rf"runs/a was begun with {name}=.*, now {name}='another' was given\. Resume with the same .*--overwrite"
    with pytest.raises(OutputError, match=message):
        other.check_same(GOOD, Path("runs/a"))
    GOOD.check_same(GOOD.changed({}), Path("runs/a"))
