"""What runs leave on disk, served together: as each run's own merged model, or refused with the way out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pruning_adapter as pa
from pruning_adapter.errors import AdapterError
from pruning_adapter.evaluation.predict import predict
from pruning_adapter.pipeline import Run
from pruning_adapter.settings import Settings
from pruning_adapter.training.trainer import make_collator
from tiny_encoder import make_texts, save_tiny_encoder

TASKS = {"answer": ("no", "yes"), "size": ("large", "medium", "small")}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder") / "model")


def train(encoder: Path, folder: Path, task: str, **changes: Any) -> Run:
    labels = TASKS[task]
    folder.mkdir()
    for name, count in (("train.csv", 48), ("dev.csv", 16)):
        rows = [f"{text},{labels[place]}" for text, place in make_texts(name + task, count, len(labels))]
        (folder / name).write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    settings = Settings(
        model=str(encoder),
        train_file=str(folder / "train.csv"),
        validation_file=str(folder / "dev.csv"),
        text_columns=("text",),
        label_column="label",
        keep_macs=0.7 if task == "size" else None,
        keep_ratio=None if task == "size" else 0.7,
        epochs=1,
        **changes,
    )
    run = Run(settings, folder / "run")
    run.train()
    return run


def test_runs_on_one_base_are_served_as_their_merged_models_would(encoder: Path, tmp_path: Path) -> None:
    """Pruned before training and not corrected; by weights, configs and answers."""
    runs = {task: train(encoder, tmp_path / task, task, prune_after=0.0, reconstruct="none") for task in TASKS}
    tasks = pa.PrunedTasks(encoder, {task: run.folder / "adapter" for task, run in runs.items()}, cache=1)
    for task, run in runs.items():
        merged, found = run.merge(), tasks.model(task)
        assert found.config.id2label == merged.config.id2label == dict(enumerate(TASKS[task]))
        assert found.config.problem_type == merged.config.problem_type
        assert found.config.pruning == merged.config.pruning
        assert found.state_dict().keys() == merged.state_dict().keys()
        for name, tensor in merged.state_dict().items():
            assert torch.equal(found.state_dict()[name], tensor), name
        (examples,) = run.data.validation.values()
        predicted = tasks.predict(task, [example.texts[0] for example in examples], batch_size=4)
        scores = predict(merged, run.features(examples), make_collator(run.tokenizer))
        np.testing.assert_allclose(predicted.logits, scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, r'corrected when it was pruned \(reconstruct="lstsq"\)'),
        ({"prune_after": 0.0}, r'corrected when it was pruned \(reconstruct="lstsq"\)'),
        ({"reconstruct": "none"}, r"other weights .* trained before it was pruned \(--prune-after"),
    ],
    ids=["default", "corrected", "trained before"],
)
def test_the_adapter_of_a_runs_own_base_is_refused(
    encoder: Path, tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    run = train(encoder, tmp_path / "own", "answer", **changes)
    with pytest.raises(AdapterError, match=rf"{why}.*`--reconstruct none --prune-after 0`.*merged/"):
        pa.PrunedTasks(encoder, {"answer": run.folder / "adapter"})
