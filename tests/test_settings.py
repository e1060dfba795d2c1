"""`Settings`: what contradicts itself is refused before anything is loaded, and its file brings it back."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from pruning_adapter.errors import (
    CheckpointError,
    DataError,
    ImportanceError,
    OutputError,
    PlanError,
    PruningAdapterError,
    TrainingError,
)
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
        GOOD.changed(
            {"keep_macs": 0.5, "length": 64, "multiple_of": 32, "reconstruct": "lstsq", "target": "all-linear"}
        ),
        GOOD.changed({"keep_bytes": "60MiB", "dtype": "int8"}),
        GOOD.changed({"keep_bytes": "60000000"}),
        GOOD.changed({"keep_latency": 0.5, "latency_table": "table.json"}),
        # Scores of neurons tell at which rank feed-forwards train, also where only heads go.
        GOOD.changed({"keep_heads": 5, "units": "both"}),
        GOOD.changed({"rank_budget": 1000}),
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


def test_only_a_hub_id_has_a_revision(tmp_path: Path) -> None:
    Settings(model="a/model", revision="v1", task="rte").check()
    with pytest.raises(DataError, match=r"--revision is 'v1', but .* is a folder here"):
        Settings(model=str(tmp_path), revision="v1", task="rte").check()
    with pytest.raises(DataError, match="--revision is 'v1', but no model was named"):
        Settings(demo=True, revision="v1").check()


def test_a_revision_goes_with_the_model_that_it_is_of() -> None:
    pinned = Settings(model="a/model", revision="v1", task="rte")
    assert pinned.changed({"model": "b/model"}).revision is None
    assert pinned.changed({"model": "b/model", "revision": "v2"}).revision == "v2"
    assert pinned.changed({"model": "a/model", "seed": 1}).revision == "v1"


def test_a_folder_goes_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    assert Settings(model=str(tmp_path / "encoder")).model_id == "encoder"
    assert Settings(model="a/model").model_id == "a/model"


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("scorer", "gradient, obs, random, magnitude, reversed, shuffled"),
        ("reduction", "example, batch, token, bertology"),
        ("units", "heads, neurons, both"),
        ("order", "first, second"),
        ("normalization", "block, model"),
        ("dtype", "float64, float32, bfloat16, float16, int8"),
        ("grouping", "whole, even"),
        ("reconstruct", "none, bias, lstsq"),
        ("target", "attention, all-linear"),
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
        ("keep_params", 0.0, r"the share of parameters that may stay, in \(0, 1\]"),
        ("keep_macs", 1.1, r"the share of multiply-accumulates, in \(0, 1\]"),
        ("keep_latency", math.nan, "the share of the dense model's time"),
        ("length", 0, "a number of tokens from 1"),
        ("multiple_of", 0, "1 or more"),
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
        ("rank_budget", 0, "a number of parameters from 1"),
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
        GOOD.changed({"low_rank": 4, "high_rank": 2}).check()


@pytest.mark.parametrize("scorer", ["obs", "reversed", "shuffled"])
@pytest.mark.parametrize("given", [{"reduction": "batch"}, {"stop_when_stable": 0.9}])
def test_what_obs_does_not_know_is_refused(scorer: str, given: dict[str, Any]) -> None:
    """Also where its scores are turned around or dealt out anew; those of the gradient, with an order, may have it."""
    name = next(iter(given))
    with pytest.raises(ImportanceError, match=f"{name} is .*but the scores are those of 'obs'"):
        GOOD.changed({"scorer": scorer, **given}).check()
    GOOD.changed({"scorer": "gradient", **given}).check()
    if scorer != "obs":
        GOOD.changed({"scorer": scorer, "order": "second", **given, "reduction": "example"}).check()


@pytest.mark.parametrize("scorer", ["random", "magnitude"])
def test_what_needs_gradients_is_refused_of_scores_that_have_none(scorer: str) -> None:
    with pytest.raises(ImportanceError, match=f"order is 'second', but the scores are those of '{scorer}'"):
        GOOD.changed({"scorer": scorer, "order": "second"}).check()


@pytest.mark.parametrize("given", [{"top_blocks": 2}, {"low_rank": 4}, {"high_rank": 16}])
def test_two_ranks_beside_a_budget_of_ranks_are_refused_and_replaced_later(given: dict[str, Any]) -> None:
    name = next(iter(given))
    with pytest.raises(PlanError, match=f"{name} is {given[name]}, but rank_budget was given"):
        GOOD.changed({"rank_budget": 6000, **given}).check()
    assert GOOD.changed(given).with_rule({"rank_budget": 6000}) == GOOD.changed({"rank_budget": 6000})
    assert GOOD.changed({"rank_budget": 6000}).with_rule(given) == GOOD.changed(given)


def test_the_type_that_bytes_are_counted_in_goes_with_the_rule() -> None:
    with pytest.raises(PlanError, match="dtype was given without keep_bytes"):
        GOOD.changed({"keep_ratio": 0.5, "dtype": "bfloat16"}).check()
    halved = GOOD.changed({"keep_bytes": "60MB", "dtype": "bfloat16"})
    assert halved.with_rule({"keep_ratio": 0.5}) == GOOD.changed({"keep_ratio": 0.5})
    assert halved.with_rule({"keep_bytes": "50MB"}).dtype == "bfloat16"


def test_another_scorer_is_measured_in_its_own_way() -> None:
    second = GOOD.changed({"scorer": "gradient", "order": "second", "reduction": "token"})
    assert second.with_rule({"scorer": "obs"}) == GOOD.changed({"scorer": "obs"})
    assert second.with_rule({"scorer": "reversed", "order": "first"}) == GOOD.changed(
        {"scorer": "reversed", "order": "first"}
    )
    for kept in ({"keep_ratio": 0.5}, {"scorer": "gradient"}):
        assert second.with_rule(kept) == second.changed(kept)


def test_what_a_method_has_no_use_for_is_refused() -> None:
    given = {"keep_ratio": 0.5, "seed": 1, "keep_macs": None}
    with pytest.raises(TrainingError, match=r"keep_ratio is 0\.5, but the method 'lora' prunes nothing"):
        GOOD.changed({"method": "lora"}).check_used(given)
    GOOD.changed({"method": "full"}).check_used({"seed": 1, "keep_ratio": None})
    GOOD.check_used(given)


@pytest.mark.parametrize("other", [{"keep_heads": 5}, {"keep_ratio": 0.5}, {"preset": "paper"}])
def test_two_rules_at_once_are_refused(other: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=rf"Give one of preset, keep_heads, .*; {next(iter(other))} and threshold were"):
        GOOD.changed({"threshold": 0.5, **other}).check()


@pytest.mark.parametrize("other", ["keep_heads", "keep_params", "keep_latency"])
def test_a_budget_is_a_rule_like_the_others(other: str) -> None:
    with pytest.raises(PlanError, match=f"{other} and keep_bytes were given|keep_bytes and {other} were given"):
        GOOD.changed({"keep_bytes": "1MB", other: 1}).check()


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        ({}, ("heads",)),
        ({"keep_ratio": 0.5}, ("heads",)),
        ({"preset": "paper"}, ("heads",)),
        ({"keep_params": 0.5}, ("heads", "neurons")),
        ({"keep_bytes": "1MB"}, ("heads", "neurons")),
        ({"keep_ratio": 0.5, "units": "both"}, ("heads", "neurons")),
        ({"keep_macs": 0.5, "units": "neurons"}, ("neurons",)),
    ],
)
def test_a_budget_weighs_heads_and_neurons_unless_told_otherwise(given: dict[str, Any], kinds: tuple[str, ...]) -> None:
    assert GOOD.changed(given).kinds == kinds


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keep_heads": 5, "units": "neurons"}, "keep_heads prunes heads, but units is 'neurons'"),
        ({"preset": "paper", "units": "neurons"}, "preset prunes heads, but units is 'neurons'"),
        ({"preset": "paper", "reconstruct": "bias"}, "The preset 'paper' decides reconstruct"),
        ({"preset": "paper", "target": "all-linear"}, "The preset 'paper' decides target"),
        ({"keep_bytes": "60 apples"}, "keep_bytes is '60 apples'; give bytes"),
        ({"keep_ratio": 0.5, "latency_table": "t.json"}, "latency_table was given without keep_latency"),
    ],
)
def test_options_that_do_not_go_with_the_rule_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        GOOD.changed(given).check()


def test_a_new_rule_takes_the_old_ones_table_away() -> None:
    before = GOOD.changed({"keep_latency": 0.5, "latency_table": "table.json"})
    assert before.with_rule({"keep_params": 0.5}) == GOOD.changed({"keep_params": 0.5})
    assert before.with_rule({"multiple_of": 8}) == before.changed({"multiple_of": 8})


def test_another_source_of_data_replaces_the_one_before() -> None:
    files = Settings(model="made/up", **FILES)
    assert GOOD.with_rule(FILES) == files
    assert files.with_rule({"task": "rte"}) == GOOD
    assert files.with_rule({"demo": True}) == Settings(model="made/up", demo=True)
    assert files.with_rule({"train_file": "b.csv"}) == replace(files, train_file="b.csv")


def test_a_preset_takes_away_what_it_decides() -> None:
    before = GOOD.changed({"keep_ratio": 0.5, "target": "all-linear", "high_rank": 6})
    assert before.with_rule({"preset": "paper"}) == GOOD.changed({"preset": "paper"})
    with pytest.raises(PlanError, match="The preset 'paper' decides target"):
        before.with_rule({"preset": "paper", "target": "all-linear"}).check()


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


@pytest.mark.parametrize(
    ("given", "ranks"),
    [
        ({}, (8, 16)),
        ({"recipe": "paper"}, (4, 8)),
        ({"low_rank": 4, "high_rank": 8}, (4, 8)),
        ({"low_rank": 0}, (0, 16)),
        ({"low_rank": 12}, (12, 16)),
        ({"low_rank": 32}, (32, 32)),
        ({"high_rank": 12}, (8, 12)),
        ({"high_rank": 2}, (2, 2)),
    ],
)
def test_ranks_are_the_recipes_where_none_was_given(given: dict[str, Any], ranks: tuple[int, int]) -> None:
    settings = GOOD.changed(given)
    settings.check()
    assert settings.ranks == ranks
