"""What an earlier release wrote, this one reads, and computes what that one computed."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import pruning_adapter as pa
from pruning_adapter.evaluation.result import Result
from pruning_adapter.pipeline import PREDICTIONS, TRAINING, Run
from pruning_adapter.settings import Settings
from pruning_adapter.storage import read_json
from trainer_states import STATES, pack_states, unpack_states

RELEASES = sorted(path for path in Path(__file__).parent.iterdir() if (path / "plan.json").is_file())


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def release(request: pytest.FixtureRequest) -> Path:
    return request.param


def compute(model: Any, release: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits, and those of the release."""
    kept = load_file(release / "logits.safetensors")
    wanted = kept.pop("logits")
    with torch.no_grad():
        return model.eval()(**kept).logits, wanted


def test_there_are_files_of_a_release() -> None:
    assert RELEASES


def test_its_values_are_read(release: Path) -> None:
    scores, plan = pa.ImportanceScores.load(release / "importance.json"), pa.PruningPlan.load(release / "plan.json")
    ranks = pa.RankPlan.load(release / "ranks.json")
    assert scores.model == plan.model == ranks.model
    assert pa.plan_pruning(scores, keep_macs=0.6, length=16).kept == plan.kept
    assert Settings.load(release / "settings.json").text_columns == ("a", "b")
    assert Result.load(release / "result.json").quality["validation"].metrics["accuracy"].value == 0.5
    assert pa.LatencyTable.load(release / "latency.json").model == plan.model


def test_its_adapter_computes_what_it_did(release: Path) -> None:
    base: Any = AutoModelForSequenceClassification.from_pretrained(release / "base", attn_implementation="eager")
    found, wanted = compute(PeftModel.from_pretrained(base, str(release / "adapter")), release)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_its_merged_model_computes_what_it_did(release: Path) -> None:
    found, wanted = compute(pa.load_pruned(release / "merged"), release)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_settings_of_a_release_that_had_fewer_are_read(release: Path, tmp_path: Path) -> None:
    """Each field that it may not have had yet is what it is where nobody says anything."""
    path = tmp_path / "settings.json"
    content = json.loads((release / "run/out/settings.json").read_text(encoding="utf-8"))
    whole, unset = Settings.load(release / "run/out/settings.json"), Settings()
    for name in set(content) - {"kind"}:
        path.write_text(json.dumps({key: value for key, value in content.items() if key != name}), encoding="utf-8")
        assert asdict(Settings.load(path)) == asdict(whole) | {name: getattr(unset, name)}


@pytest.fixture
def run_of(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a whole run that a release made, seen from where it was made."""
    shutil.copytree(release / "run", tmp_path / "run")
    unpack_states(tmp_path / "run" / "out" / "start" / "checkpoint")
    monkeypatch.chdir(tmp_path / "run")
    return Path("out")


def test_nothing_pickled_is_kept_and_what_the_trainer_pickled_comes_back(release: Path, run_of: Path) -> None:
    kept = release / "run" / "out" / "start" / "checkpoint"
    assert not [path for path in release.rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".pkl")]
    pack_states(run_of / "start" / "checkpoint")
    assert (run_of / "start" / "checkpoint" / STATES).read_bytes() == (kept / STATES).read_bytes()


def test_every_file_of_its_run_is_read(run_of: Path) -> None:
    scores, plan = pa.ImportanceScores.load(run_of / "importance.json"), pa.PruningPlan.load(run_of / "plan.json")
    assert scores.model == plan.model == pa.RankPlan.load(run_of / "ranks.json").model
    training = read_json(run_of / "training.json", kind=TRAINING)
    result = Result.load(run_of / "result.json")
    assert training["trainable_parameters"] == result.cost["trainable_parameters"]
    assert training["history"][-1]["step"] == 4
    predictions = read_json(run_of / "predictions.json", kind=PREDICTIONS)
    both = (predictions[key]["validation"] for key in ("predictions", "labels"))
    right = [one == other for one, other in zip(*both, strict=True)]
    assert sum(right) / len(right) == result.quality["validation"].metrics["accuracy"].value
    sweep = read_json(run_of / "sweep.json", kind="pruning-adapter sweep")
    again = Run(Settings.load(run_of / "settings.json"), run_of).sweep(sweep["by"]).to_json()
    assert (again["schema"], again["dense"]) == (sweep["schema"], sweep["dense"])
    assert [point["macs"] for point in again["points"]] == [point["macs"] for point in sweep["points"]]
    assert pa.load_pruned(run_of / "start").config.model_type == pa.load_pruned(run_of / "base").config.model_type


def test_the_adapter_of_its_corrected_base_merges_to_what_it_predicted(run_of: Path) -> None:
    old = Result.load(run_of / "result.json")
    predicted = read_json(run_of / "predictions.json", kind=PREDICTIONS)
    for name in ("result.json", "predictions.json"):
        (run_of / name).unlink()
    new = Run(Settings.load(run_of / "settings.json"), run_of).evaluate(compare=False)
    assert read_json(run_of / "predictions.json", kind=PREDICTIONS) == predicted
    was, now = old.quality["validation"], new.quality["validation"]
    assert now.metrics == was.metrics
    assert now.loss == pytest.approx(was.loss, rel=1e-4)
    assert new.cost["parameters"] == old.cost["parameters"]


def test_its_training_goes_on_from_where_units_went(run_of: Path) -> None:
    """start/ holds the weights, the adapter and the optimizer's state in the midst of the training."""
    old = load_file(run_of / "adapter/adapter_model.safetensors")
    for name in ("adapter", "base"):
        shutil.rmtree(run_of / name)
    (run_of / "training.json").unlink()
    Run(Settings.load(run_of / "settings.json"), run_of).train()
    new = load_file(run_of / "adapter/adapter_model.safetensors")
    assert new.keys() == old.keys()
    for name, weight in old.items():
        torch.testing.assert_close(new[name], weight, rtol=0, atol=2e-3, msg=name)
