"""A whole run of seconds: a tiny encoder, 96 examples, two epochs of three steps."""

from pathlib import Path

import pytest

from pruning_adapter.evaluation.result import Result
from pruning_adapter.pipeline import Run
from pruning_adapter.settings import Settings
from tiny_encoder import make_texts, save_tiny_encoder

__all__ = ["finish", "make_settings", "weights"]


def make_settings(folder: Path) -> Settings:
    """Of a run that prunes in the middle of its training; the model and the examples are written to `folder`."""
    for name, count in (("train.csv", 96), ("dev.csv", 16)):
        rows = [f"{text},{('no', 'yes')[place]}" for text, place in make_texts(name, count, 2)]
        (folder / name).write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return Settings(
        model=str(save_tiny_encoder(folder / "model")),
        train_file=str(folder / "train.csv"),
        validation_file=str(folder / "dev.csv"),
        text_columns=("text",),
        label_column="label",
        keep_macs=0.6,
        epochs=2,
        prune_after=0.5,
    )


def finish(settings: Settings, folder: Path, *, compare: bool = False) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        run = Run(settings, folder)
        run.train()
        return run.evaluate(compare=compare)


def weights(folder: Path) -> bytes:
    return (folder / "merged" / "model.safetensors").read_bytes()
