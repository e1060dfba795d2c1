"""What an earlier release wrote, this one reads, and computes what that one computed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import pruning_adapter as pa
from pruning_adapter.evaluation.result import Result
from pruning_adapter.settings import Settings

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
