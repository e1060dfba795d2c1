"""The recipe's way: the dense model trains for a share of the steps, then units go, then what is left trains on."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel

from pruning_adapter import load_pruned
from pruning_adapter.architectures.identity import identify, pruned_state
from pruning_adapter.errors import TrainingError
from pruning_adapter.evaluation.cost import mix_training
from pruning_adapter.evaluation.result import Result
from pruning_adapter.importance import ImportanceScores
from pruning_adapter.pipeline import Run
from pruning_adapter.planning import PruningPlan
from pruning_adapter.run_folder import remove_steps
from pruning_adapter.settings import Settings
from pruning_adapter.training.base_model import load_base
from pruning_adapter.training.continuation import carry_checkpoint
from pruning_adapter.training.recipes import find_recipe
from short_run import finish, make_settings, weights

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return make_settings(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def finished(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run. Tests read it; those that change it work on a copy."""
    folder = tmp_path_factory.mktemp("finished")
    finish(settings, folder)
    return folder


def test_the_start_is_a_dense_model_that_has_trained(finished: Path, settings: Settings) -> None:
    start = transformers.AutoModelForSequenceClassification.from_pretrained(finished / "start")
    base = load_base(settings.model, label_names=("no", "yes"), seed=0).model
    assert pruned_state(start) is None
    assert [p.shape for p in start.parameters()] == [p.shape for p in base.parameters()]
    assert identify(start).fingerprint != identify(base).fingerprint
    assert not (finished / "start-checkpoints").exists()


def test_what_is_scored_and_pruned_is_the_start(finished: Path) -> None:
    start = identify(load_base(str(finished / "start"), label_names=("no", "yes"), seed=0).model)
    scores, plan = ImportanceScores.load(finished / "importance.json"), PruningPlan.load(finished / "plan.json")
    assert scores.scorer == "obs"
    assert scores.model.same_weights(start)
    assert plan.model.same_weights(start)
    assert plan.reconstruct == "lstsq"
    state: Any = pruned_state(load_pruned(finished / "base"))
    assert (state.dense, state.kept, state.reconstructed) == (plan.model, plan.kept, "lstsq")


def test_the_adapter_on_its_base_is_the_merged_model(finished: Path) -> None:
    adapted = PeftModel.from_pretrained(load_pruned(finished / "base"), str(finished / "adapter")).eval()
    merged = load_pruned(finished / "merged").eval()
    batch = {"input_ids": torch.tensor([[2, 7, 19, 33, 3], [2, 44, 8, 3, 0]])}
    batch["attention_mask"] = (batch["input_ids"] != 0).long()
    with torch.no_grad():
        torch.testing.assert_close(adapted(**batch).logits, merged(**batch).logits)


def test_both_parts_together_have_the_steps_of_one_training(finished: Path) -> None:
    """96 examples in batches of 32, two epochs."""
    history = Result.load(finished / "result.json").history
    steps = [entry["step"] for entry in history]
    assert steps == sorted(steps)
    assert (steps[-1], history[-1]["epoch"]) == (6, 2)
    assert [entry["epoch"] for entry in history if "eval_accuracy" in entry] == [1, 2]


def test_the_cost_of_training_counts_both_parts() -> None:
    """Half of the steps at 0.8 and half at 0.4 of the reference's time; the memory is the larger part's."""

    def measured(time: float, held: int) -> dict[str, Any]:
        ratio = dict.fromkeys(("median", "q1", "q3"), time)
        return {"training_time_ratio": ratio, "peak_training_bytes": held, "training_memory_ratio": {"median": held}}

    mixed = mix_training([(0.5, measured(0.8, 90)), (0.5, measured(0.4, 50))])
    assert mixed["training_time_ratio"]["median"] == pytest.approx(0.6)
    assert mixed["peak_training_bytes"] == mixed["training_memory_ratio"]["median"] == 90
    assert mixed["parts"] == [{"share": 0.5, "time": 0.8}, {"share": 0.5, "time": 0.4}]


def test_the_first_part_is_measured_with_the_dense_model(
    finished: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 % of the steps dense, 70 % with what stays; the memory is that of the larger."""
    sizes: list[int] = []

    def measure(run: Run, model: Any, **shape: int) -> dict[str, Any]:
        sizes.append(sum(weights.numel() for weights in model.parameters()))
        time = dict.fromkeys(("median", "q1", "q3"), 10.0 ** len(sizes))
        return {"training_time_ratio": time, "peak_training_bytes": sizes[-1]}

    monkeypatch.setattr(Run, "compare_training", measure)
    run = Run(settings, finished)
    model = run._load_adapted()
    run.settings = replace(settings, prune_after=0.3)
    found = run.compare_training_in_parts(model, batch=2, length=8)
    assert sizes[0] > sizes[1]
    assert found["training_time_ratio"]["median"] == pytest.approx(0.3 * 10 + 0.7 * 100)
    assert found["peak_training_bytes"] == sizes[0]
    run.settings = replace(settings, prune_after=0.0)
    found = run.compare_training_in_parts(model, batch=2, length=8)
    assert found["training_time_ratio"]["median"] == 1000
    assert found["parts"] == [{"share": 1.0, "time": 1000}]


def test_the_result_says_when_units_went(finished: Path) -> None:
    assert Result.load(finished / "result.json").recipe["prune_after"] == 0.5


@pytest.mark.parametrize("first", ["merge", "train", "plan", "importance"])
def test_resuming_gives_the_same_model(finished: Path, settings: Settings, tmp_path: Path, first: str) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    remove_steps(folder, first)
    assert (folder / "start").exists() == (first != "importance")
    assert finish(settings, folder).quality == Result.load(finished / "result.json").quality
    assert weights(folder) == weights(finished)


def test_a_start_that_was_interrupted_goes_on(
    finished: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pruning_adapter.pipeline.start.save_pruned", stop)
        with pytest.raises(KeyboardInterrupt):
            finish(settings, tmp_path)
    assert not (tmp_path / "start").exists()
    assert any((tmp_path / "start-checkpoints").iterdir())
    finish(settings, tmp_path)
    assert weights(tmp_path) == weights(finished)


def test_a_model_that_was_pruned_before_is_pruned_again(finished: Path, settings: Settings, tmp_path: Path) -> None:
    """By the recipe whose dense part trains first: that part is then of what is left."""
    before: Any = pruned_state(load_pruned(finished / "merged"))
    again = replace(settings, model=str(finished / "merged"), keep_macs=None, keep_ratio=0.4)
    result = finish(again, tmp_path)
    start: Any = pruned_state(load_pruned(tmp_path / "start"))
    assert start.kept == before.kept
    plan = PruningPlan.load(tmp_path / "plan.json")
    assert all(set(later) <= set(earlier) for earlier, later in zip(before.kept, plan.kept, strict=True))
    assert sum(map(len, plan.kept_heads)) < sum(map(len, before.kept[: len(plan.kept_heads)]))
    adapted = PeftModel.from_pretrained(load_pruned(tmp_path / "base"), str(tmp_path / "adapter")).eval()
    batch = {"input_ids": torch.tensor([[2, 7, 19, 33, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    with torch.no_grad():
        torch.testing.assert_close(adapted(**batch).logits, load_pruned(tmp_path / "merged").eval()(**batch).logits)
    assert result.history[-1]["epoch"] == 2


@pytest.mark.parametrize("when", ["before", "after"])
def test_interrupted_where_the_adapter_is_carried_over_a_run_goes_on(
    finished: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """With base/ written, and the checkpoint to go on from written or not."""

    def stop(*arguments: Any, **options: Any) -> None:
        if when == "after":
            carry_checkpoint(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pruning_adapter.pipeline.run.carry_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            finish(settings, tmp_path)
    assert (tmp_path / "base").exists()
    assert not (tmp_path / "adapter").exists()
    finish(settings, tmp_path)
    assert weights(tmp_path) == weights(finished)


def test_where_nothing_goes_the_result_is_plain_loras(settings: Settings, tmp_path: Path) -> None:
    """The stop, the merge, the base without its adapter and the going on: together they change nothing but rounding."""
    everything = {"low_rank": 8, "high_rank": 8, "reconstruct": "none", "keep_macs": 1.0}
    found: list[dict[str, torch.Tensor]] = []
    for name, changes in (("lora", {"method": "lora"}), ("ours", everything)):
        finish(settings.changed(changes), tmp_path / name)
        found.append(load_pruned(tmp_path / name / "merged").state_dict())
    base = load_base(settings.model, label_names=("no", "yes"), seed=0).model.state_dict()
    lora, ours = found
    # 1e-3 of what training changed in all; rounding grows from step to step.
    moved = sum(float((lora[name] - base[name]).square().sum()) for name in base) ** 0.5
    apart = sum(float((lora[name] - ours[name]).square().sum()) for name in base) ** 0.5
    assert apart < 1e-3 * moved


def test_the_papers_recipe_prunes_before_training(settings: Settings, tmp_path: Path) -> None:
    run = Run(replace(settings, recipe="paper", prune_after=None), tmp_path)
    scores = run.measure()
    assert (run.prune_after, scores.scorer, scores.order) == (0.0, "gradient", "first")
    assert run.plan()[0].reconstruct == "none"
    assert not (tmp_path / "start").exists()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_other_methods_have_no_start(settings: Settings, tmp_path: Path, method: str) -> None:
    run = Run(settings.changed({"method": method}), tmp_path)
    run.train()
    assert not (tmp_path / "start").exists()


def test_a_share_that_leaves_nothing_to_train_is_refused(settings: Settings) -> None:
    with pytest.raises(TrainingError, match=r"prune_after is 1; it must be a share of the training, in \[0, 1\)"):
        settings.changed({"prune_after": 1}).check()


def test_the_default_recipe_has_such_a_start() -> None:
    assert 0 < find_recipe("default").prune_after < 1
