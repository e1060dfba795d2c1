"""A teacher beside the labels."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from pruning_adapter.errors import DataError
from pruning_adapter.pipeline import Run
from pruning_adapter.settings import Settings
from pruning_adapter.training.distill import TEACHER, distillation_loss, with_teacher
from tiny_encoder import make_texts, save_tiny_encoder

torch.set_num_threads(1)


def test_the_loss_by_hand() -> None:
    """The model says 1/2, the teacher 4/5 after a temperature of 2: 2² (4/5 log 8/5 + 1/5 log 2/5), half of it."""
    model, teacher = torch.zeros(1, 2), torch.tensor([[2 * math.log(4), 0.0]])
    apart = 4 * (0.8 * math.log(1.6) + 0.2 * math.log(0.4))
    found = distillation_loss(torch.tensor(3.0), model, teacher)
    assert float(found) == pytest.approx(0.5 * 3 + 0.5 * apart)


def test_of_a_number_the_squared_difference_counts() -> None:
    found = distillation_loss(torch.tensor(1.0), torch.tensor([[2.0], [0.0]]), torch.tensor([[5.0], [1.0]]))
    assert float(found) == pytest.approx(0.5 * 1 + 0.5 * (9 + 1) / 2)


def test_a_teacher_that_says_the_same_leaves_half_of_the_labels_gradient() -> None:
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    loss = functional.cross_entropy(logits, torch.arange(6) % 3)
    (alone,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (taught,) = torch.autograd.grad(distillation_loss(loss, logits, logits.detach()), logits)
    torch.testing.assert_close(taught, alone / 2, rtol=1e-5, atol=1e-7)


def test_every_example_keeps_what_the_teacher_says_about_it() -> None:
    taught = with_teacher([{"labels": 0}, {"labels": 1}], np.array([[1, 2], [3, 4]], dtype=np.float32))
    assert taught == [{"labels": 0, TEACHER: [1.0, 2.0]}, {"labels": 1, TEACHER: [3.0, 4.0]}]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("task")
    for name, count in (("train.csv", 96), ("dev.csv", 16)):
        rows = [f"{text},{('no', 'yes')[place]}" for text, place in make_texts(name, count, 2)]
        (folder / name).write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return Settings(
        model=str(save_tiny_encoder(folder / "model")),
        train_file=str(folder / "train.csv"),
        validation_file=str(folder / "dev.csv"),
        text_columns=("text",),
        label_column="label",
        epochs=2,
    )


def test_a_run_learns_from_its_teacher_in_both_parts(settings: Settings, tmp_path: Path) -> None:
    """With a teacher the loss is another from the first step on, and what is trained too."""
    lora = Run(replace(settings, method="lora"), tmp_path / "lora")
    lora.train()
    lora.merge()
    runs = {
        name: Run(replace(settings, teacher=teacher), tmp_path / name)
        for name, teacher in (("alone", None), ("taught", str(tmp_path / "lora" / "merged")))
    }
    histories: dict[str, list[dict[str, Any]]] = {}
    for name, run in runs.items():
        run.train()
        histories[name] = [dict(entry) for entry in run.evaluate(compare=False).history if "loss" in entry]
    assert histories["alone"][0]["step"] == histories["taught"][0]["step"] == 1
    assert histories["alone"][0]["loss"] != histories["taught"][0]["loss"]
    assert len(histories["alone"]) == len(histories["taught"])
    alone, taught = ((tmp_path / name / "merged" / "model.safetensors").read_bytes() for name in runs)
    assert alone != taught


def test_a_teacher_of_other_classes_is_refused(settings: Settings, tmp_path: Path) -> None:
    other = save_tiny_encoder(tmp_path / "other")
    with pytest.raises(DataError, match=r"tells .+ apart; the task's classes are no, yes"):
        Run(replace(settings, teacher=str(other)), tmp_path / "run").train()
    assert not (tmp_path / "run" / "adapter").exists()
