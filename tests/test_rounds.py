"""Units that go in several rounds, between which what is left trains on."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

import pruning_adapter as pa
from pruning_adapter.architectures.identity import dense_parameters, identify, pruned_state
from pruning_adapter.cli.session import open_run
from pruning_adapter.errors import PlanError, TrainingError
from pruning_adapter.evaluation.result import Result
from pruning_adapter.importance import ImportanceScores
from pruning_adapter.pipeline import Run
from pruning_adapter.pipeline.rounds import split_rounds
from pruning_adapter.planning import PruningPlan, RankPlan
from pruning_adapter.run_folder import remove_steps
from pruning_adapter.settings import RULES, Settings
from pruning_adapter.training.base_model import load_base
from short_run import finish, make_settings, weights

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return replace(make_settings(tmp_path_factory.mktemp("task")), rounds=2, prune_after=0.7)


@pytest.fixture(scope="module")
def finished(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run. Tests read it; those that change it work on a copy."""
    folder = tmp_path_factory.mktemp("finished")
    finish(settings, folder, compare=True)
    return folder


def load_dense(settings: Settings) -> Any:
    return load_base(settings.model, label_names=("no", "yes"), seed=0).model


def split(settings: Settings) -> tuple[Settings, ...]:
    model = load_dense(settings)
    return split_rounds(settings, identify(model), dense_parameters(model))


def test_rounds_lie_evenly_and_take_less_and_less(settings: Settings) -> None:
    """Of the half that goes in all: 1 - (3/4)^3, 1 - (2/4)^3 and 1 - (1/4)^3 of it, by hand."""
    *before, last = split(replace(settings, keep_macs=0.5, rounds=4, prune_after=0.4))
    assert [each.prune_after for each in before] == pytest.approx([0.1, 0.2, 0.3])
    assert [each.keep_macs for each in before] == pytest.approx([1 - 37 / 128, 1 - 56 / 128, 1 - 63 / 128])
    assert (last.keep_macs, last.prune_after) == (0.5, 0.4)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"keep_params": 0.6}, {"keep_params": 0.65}),
        ({"keep_latency": 0.2}, {"keep_latency": 0.3}),
        # 8 of 12 heads go, seven eighths of them first; as a share, because heads may go in groups.
        ({"keep_heads": 4}, {"keep_ratio": 5 / 12}),
        ({}, {"keep_ratio": 1 - 0.875 * 0.3}),
    ],
    ids=["params", "latency", "heads", "no rule"],
)
def test_every_rule_that_keeps_a_share_is_loosened(
    settings: Settings, rule: dict[str, Any], expected: dict[str, float]
) -> None:
    assert sum(identify(load_dense(settings)).heads) == 12
    first, _ = split(replace(settings, keep_macs=None, **rule))
    assert {name: getattr(first, name) for name in RULES if getattr(first, name) is not None} == pytest.approx(expected)


def test_a_number_of_heads_says_nothing_of_neurons(settings: Settings) -> None:
    rounds = split(replace(settings, keep_macs=None, keep_heads=6, units="both", rounds=3))
    assert [each.kinds for each in rounds] == [("heads",), ("heads",), ("heads", "neurons")]
    assert [each.keep_ratio for each in rounds[:-1]] == [pytest.approx(1 - gone / 2) for gone in (19 / 27, 26 / 27)]


def test_bytes_are_loosened_in_bytes(settings: Settings) -> None:
    whole = 4 * dense_parameters(load_dense(settings))
    first, _ = split(replace(settings, keep_macs=None, keep_bytes=str(whole // 2)))
    assert int(first.keep_bytes or 0) == round(whole - 0.875 * (whole - whole // 2))


def test_ranks_only_grow(settings: Settings) -> None:
    first, _ = split(replace(settings, low_rank=3, high_rank=8))
    assert (first.low_rank, first.high_rank) == (3, 3)
    first, _ = split(replace(settings, rank_budget=5000))
    assert (first.low_rank, first.high_rank, first.rank_budget) == (8, 8, None)


def test_each_round_prunes_what_the_one_before_left(finished: Path) -> None:
    first, last = (PruningPlan.load(finished / place / "plan.json") for place in ("rounds/1", "."))
    assert all(set(later) <= set(earlier) for earlier, later in zip(first.kept, last.kept, strict=True))
    assert sum(map(len, last.kept)) < sum(map(len, first.kept)) < sum(first.model.heads) + sum(first.model.neurons)
    assert first.count_macs(128) > last.count_macs(128)


def test_each_round_is_scored_on_what_is_left(finished: Path) -> None:
    first, last = (ImportanceScores.load(finished / place / "importance.json") for place in ("rounds/1", "."))
    assert first.kept_heads == tuple(tuple(range(heads)) for heads in first.model.heads)
    plan = PruningPlan.load(finished / "rounds" / "1" / "plan.json")
    assert last.kept_heads + last.kept_neurons == plan.kept


def test_the_adapter_on_its_base_is_the_merged_model(finished: Path) -> None:
    base = pa.load_pruned(finished / "base")
    state: Any = pruned_state(base)
    assert state.kept == PruningPlan.load(finished / "plan.json").kept
    adapted = PeftModel.from_pretrained(base, str(finished / "adapter")).eval()
    merged = pa.load_pruned(finished / "merged").eval()
    batch = {"input_ids": torch.tensor([[2, 7, 19, 33, 3], [2, 44, 8, 3, 0]])}
    batch["attention_mask"] = (batch["input_ids"] != 0).long()
    with torch.no_grad():
        torch.testing.assert_close(adapted(**batch).logits, merged(**batch).logits)


def test_all_rounds_together_are_one_training(finished: Path) -> None:
    history = Result.load(finished / "result.json").history
    steps = [entry["step"] for entry in history]
    assert steps == sorted(steps)
    assert (steps[-1], history[-1]["epoch"]) == (6, 2)


def test_the_result_tells_of_the_rounds_and_shows_what_the_first_one_scored(finished: Path) -> None:
    result = Result.load(finished / "result.json")
    assert (result.recipe["prune_after"], result.recipe["rounds"]) == (0.7, 2)
    shown = (result.pruning or {})["importance"]
    assert not any(value is None for row in shown for value in row)


def test_the_mean_step_counts_every_part(finished: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """35 % of the steps dense, 35 % in between, 30 % with what stays; the memory is that of the largest."""
    sizes: list[int] = []

    def measure(run: Run, model: Any, **shape: int) -> dict[str, Any]:
        # Ranks grow when the last units go.
        sizes.append(sum(weights.numel() for name, weights in model.named_parameters() if "lora_" not in name))
        time = {"median": 10.0 ** len(sizes), "q1": 0.0, "q3": 0.0}
        return {"training_time_ratio": time, "peak_training_bytes": sizes[-1]}

    monkeypatch.setattr(Run, "compare_training", measure)
    run = Run(settings, finished)
    found = run.compare_training_in_parts(run._load_adapted(), batch=2, length=8)
    assert sizes == sorted(set(sizes), reverse=True)
    assert len(sizes) == 3
    assert found["training_time_ratio"]["median"] == pytest.approx(0.35 * 10 + 0.35 * 100 + 0.3 * 1000)
    assert found["peak_training_bytes"] == sizes[0]


def test_of_a_round_that_led_on_only_its_decisions_and_its_base_stay(finished: Path) -> None:
    assert {path.name for path in (finished / "rounds" / "1").iterdir()} == {
        "importance.json",
        "plan.json",
        "ranks.json",
        "base",
    }


@pytest.mark.parametrize("first", ["train", "importance"])
def test_resuming_gives_the_same_model(finished: Path, settings: Settings, tmp_path: Path, first: str) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    remove_steps(folder, first)
    assert (folder / "rounds").exists() == (first != "importance")
    assert finish(settings, folder).quality == Result.load(finished / "result.json").quality
    assert weights(folder) == weights(finished)


@pytest.mark.parametrize("call", [1, 2], ids=["first base", "second start"])
def test_a_run_that_was_interrupted_goes_on(
    finished: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    calls: list[str] = []

    def interrupted(save: Any) -> Any:
        def save_or_stop(*arguments: Any, **options: Any) -> None:
            calls.append("save")
            if len(calls) == call + 1:
                raise KeyboardInterrupt
            save(*arguments, **options)

        return save_or_stop

    with monkeypatch.context() as patch:
        for place in ("start", "run"):
            patch.setattr(f"pruning_adapter.pipeline.{place}.save_pruned", interrupted(pa.save_pruned))
        with pytest.raises(KeyboardInterrupt):
            finish(settings, tmp_path)
    finish(settings, tmp_path)
    assert weights(tmp_path) == weights(finished)


def test_where_nothing_goes_the_result_is_plain_loras(settings: Settings, tmp_path: Path) -> None:
    """All stops, merges, bases without adapters and goings on together change nothing but rounding."""
    everything = {"low_rank": 8, "high_rank": 8, "reconstruct": "none", "keep_macs": 1.0}
    found: list[dict[str, torch.Tensor]] = []
    for name, changes in (("lora", {"method": "lora", "rounds": 1}), ("ours", everything)):
        finish(settings.changed(changes), tmp_path / name)
        found.append(pa.load_pruned(tmp_path / name / "merged").state_dict())
    base = load_dense(settings).state_dict()
    lora, ours = found
    moved = sum(float((lora[name] - base[name]).square().sum()) for name in base) ** 0.5
    apart = sum(float((lora[name] - ours[name]).square().sum()) for name in base) ** 0.5
    assert apart < 1e-3 * moved


def test_ranks_of_earlier_rounds_are_the_lowest(finished: Path) -> None:
    ranks = RankPlan.load(finished / "rounds" / "1" / "ranks.json")
    assert set(ranks.all_ranks) - {0} == {8}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"threshold": 0.5, "keep_macs": None}, PlanError, r"rounds is 2, but the rule threshold speaks of scores"),
        ({"preset": "paper", "keep_macs": None}, PlanError, r"rounds is 2, but the rule preset speaks of scores"),
        ({"prune_after": 0.0}, TrainingError, r"rounds is 2, but prune_after is 0.*say --prune-after"),
        ({"rounds": 0}, TrainingError, r"rounds is 0; it must be 1 or more"),
    ],
    ids=["threshold", "preset", "no training before", "none"],
)
def test_rounds_that_cannot_be_are_refused(
    settings: Settings, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        replace(settings, **changes).check()


def test_rounds_between_which_nothing_trains_are_refused(settings: Settings, tmp_path: Path) -> None:
    """Six steps, of which 70 % are four: five rounds would go after the steps 1, 2, 3, 3 and 4."""
    run = Run(replace(settings, rounds=5), tmp_path / "run")
    for refused in (run.check_rule, run.train):
        with pytest.raises(TrainingError, match=r"5 rounds after the steps 1, 2, 3, 3, 4, but .* Take fewer --rounds"):
            refused()
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_rules_that_speak_of_scores_leave_the_recipes_rounds_out() -> None:
    assert Settings(threshold=0.5, prune_after=0.4).rounds_taken == 1
    assert Settings(recipe="paper").rounds_taken == 1
    assert Settings(method="lora").rounds_taken == 1


def test_another_plan_for_a_run_in_rounds_is_refused(finished: Path, settings: Settings) -> None:
    with pytest.raises(PlanError, match=r"prunes in 2 rounds.*--rounds 1"):
        Run(settings, finished).check_inputs("plan")


def test_a_sweep_weighs_all_that_the_first_round_scored(finished: Path, settings: Settings) -> None:
    found = Run(settings, finished).sweep("macs")
    assert found.points[-1].macs == PruningPlan.load(finished / "plan.json").count_dense_macs(128)


def test_step_by_step_units_go_in_one_round(settings: Settings, tmp_path: Path) -> None:
    data = {"train_file": settings.train_file, "validation_file": settings.validation_file}
    given = {**data, "model": settings.model, "text_columns": "text", "label_column": "label", "rounds": 3}
    run = open_run(tmp_path / "run", {**given, "prune_after": 0.5}, step="importance", overwrite=False)
    assert run.settings.rounds_taken == 1
    assert Settings.load(tmp_path / "run" / "settings.json").rounds == 1
