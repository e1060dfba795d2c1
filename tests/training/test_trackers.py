"""What is reported to trackers, and what is refused."""

import os
from pathlib import Path
from typing import Any, ClassVar

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from pruning_adapter.errors import TrainingError
from pruning_adapter.pipeline import Run
from pruning_adapter.settings import Settings
from pruning_adapter.training.trackers import find_trackers
from tiny_encoder import make_texts, save_tiny_encoder


class Heard(TrainerCallback):
    """A tracker that remembers, in place of TensorBoard."""

    losses: ClassVar[list[float]] = []
    places: ClassVar[set[str]] = set()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.losses.extend([logs["loss"]] if "loss" in logs else [])
        self.places.add(os.environ["TENSORBOARD_LOGGING_DIR"])


def test_a_tracker_hears_of_both_parts_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Heard)
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["tensorboard"])
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    for name in ("train", "dev"):
        rows = "\n".join(f"{text},{place}" for text, place in make_texts(name, 64, 2))
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{rows}\n", encoding="utf-8")
    settings = Settings(
        model=str(save_tiny_encoder(tmp_path / "model")),
        train_file=str(tmp_path / "train.csv"),
        validation_file=str(tmp_path / "dev.csv"),
        text_columns=("text",),
        label_column="label",
        keep_heads=7,
        epochs=2,
        prune_after=0.5,
        report_to="tensorboard",
    )
    run = Run(settings, tmp_path / "run")
    run.train()
    told = [entry["loss"] for entry in (run.evaluate(compare=False).history) if "loss" in entry]
    assert Heard.losses == told
    assert Heard.places == {str(tmp_path / "run" / "logs")}
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ


def test_unknown_and_missing_trackers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_trackers(None) == find_trackers("") == []
    with pytest.raises(TrainingError, match=r"The tracker 'tensorbord' is unknown; Transformers knows .*tensorboard"):
        find_trackers("tensorbord")
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", list)
    with pytest.raises(TrainingError, match="The tracker 'wandb' is not installed"):
        find_trackers("wandb")
