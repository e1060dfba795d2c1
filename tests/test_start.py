"""The start, from which a pruned model trains on: it keeps to the settings that it was trained by, and to its step."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pruning_adapter.cli.session import open_run
from pruning_adapter.errors import CheckpointError, DataError, OutputError, PlanError, TrainingError
from pruning_adapter.evaluation.latency import measure_latency
from pruning_adapter.pipeline import Run
from pruning_adapter.pipeline.start import start_rank
from pruning_adapter.settings import Settings
from pruning_adapter.training import trainer
from pruning_adapter.training.base_model import load_base
from short_run import finish, make_settings, weights
from tiny import make_model
from tiny_encoder import save_tiny_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return make_settings(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def scored(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run step by step that has got as far as its plan."""
    folder = tmp_path_factory.mktemp("scored") / "run"
    run = Run(settings, folder)
    run.measure()
    run.plan()
    settings.save(folder / "settings.json")
    return folder


@pytest.mark.parametrize(
    ("step", "given", "message"),
    [
        ("train", {"learning_rate": 2e-4}, r"learning_rate=None, now learning_rate=0\.0002"),
        ("train", {"epochs": 3}, "epochs=2, now epochs=3"),
        ("train", {"seed": 1}, "seed=0, now seed=1"),
        ("plan", {"target": "all-linear"}, "target='attention', now target='all-linear'"),
    ],
)
def test_other_settings_than_the_starts_are_refused(
    scored: Path, tmp_path: Path, step: str, given: dict[str, Any], message: str
) -> None:
    """They would be neither the one nor the other: the optimizer goes on, with its own rate and its own steps."""
    folder = Path(shutil.copytree(scored, tmp_path / "run"))
    with pytest.raises(CheckpointError, match=rf"start was trained with {message} .*importance --overwrite"):
        open_run(folder, given, step=step, overwrite=step == "plan")
    assert (folder / "plan.json").exists()
    # What the other steps may choose, and what is the same.
    open_run(folder, {"epochs": 2.0, "top_blocks": 1}, step="train", overwrite=False)


def test_importance_can_be_told_what_lora_will_train(settings: Settings, tmp_path: Path) -> None:
    run = open_run(tmp_path, {**_given(settings), "target": "all-linear"}, step="importance", overwrite=False)
    run.measure()
    planned = open_run(tmp_path, {}, step="plan", overwrite=False)
    assert any(planned.plan()[1].feed_forward_ranks)
    trained = open_run(tmp_path, {}, step="train", overwrite=False)
    trained.train()
    assert (tmp_path / "adapter").is_dir()


def _given(settings: Settings) -> dict[str, Any]:
    unset = Settings()
    given = {name: value for name, value in vars(settings).items() if value != getattr(unset, name)}
    return given | {"text_columns": ",".join(settings.text_columns)}


def test_a_model_that_was_scored_untrained_has_no_start_to_go_on_from(settings: Settings, tmp_path: Path) -> None:
    run = Run(replace(settings, recipe="paper", prune_after=None), tmp_path)
    run.plan()
    run.settings.save(tmp_path / "settings.json")
    with pytest.raises(CheckpointError, match=r"after 20% of the training, but .* had not begun to train"):
        open_run(tmp_path, {"recipe": "default"}, step="train", overwrite=False)
    assert not (tmp_path / "start").exists()
    # A base that was corrected is no start either.
    run = Run(replace(run.settings, reconstruct="lstsq", keep_macs=None), tmp_path / "corrected")
    run.train()
    run.settings.save(run.folder / "settings.json")
    assert (run.folder / "base").exists()
    with pytest.raises(CheckpointError, match="had not begun to train"):
        open_run(run.folder, {"recipe": "default"}, step="train", overwrite=True)
    assert not (run.folder / "start").exists()


def test_a_start_that_was_interrupted_does_not_go_on_otherwise(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "start-checkpoints").mkdir()
    settings.save(tmp_path / "settings.json")
    with pytest.raises(OutputError, match="begun with seed=0, now seed=1"):
        open_run(tmp_path, {"seed": 1}, step="importance", overwrite=False)


def test_killed_between_the_checkpoint_and_the_moments_the_stop_is_where_it_was(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint at the stop that lacks them can only be gone on from past the stop."""
    finish(settings, tmp_path / "undisturbed")

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            finish(settings, tmp_path / "killed")
    (left,) = (tmp_path / "killed" / "start-checkpoints").glob("checkpoint-*")
    assert trainer.last_complete_checkpoint(left.parent) == left
    assert not (left / trainer.MOMENTS).exists()
    finish(settings, tmp_path / "killed")
    assert weights(tmp_path / "killed") == weights(tmp_path / "undisturbed")


@pytest.mark.parametrize("share", [0.95, 0.92])
def test_what_stays_must_train(settings: Settings, tmp_path: Path, share: float) -> None:
    """Of six steps, both round to the sixth."""
    run = Run(replace(settings, prune_after=share), tmp_path)
    for refused in (run.check_rule, run.train):
        with pytest.raises(
            TrainingError, match=r"after step 6 of 6, so that what stays would not train.*--prune-after"
        ):
            refused()


def test_the_starts_rank_is_the_lowest_that_follows() -> None:
    """Because ranks only grow; where no block gets the low one, it is the high one; a budget's are not known yet."""
    assert start_rank(Settings(preset="paper")) == 4
    assert start_rank(Settings()) == 8
    assert start_rank(Settings(low_rank=3, high_rank=16)) == 3
    assert start_rank(Settings(low_rank=0, high_rank=16)) == 16
    assert start_rank(Settings(rank_budget=5000)) == 8


def test_what_cannot_be_is_refused_before_an_old_run_goes(settings: Settings, tmp_path: Path) -> None:
    finish(settings, tmp_path / "teacher")
    files = {name: getattr(settings, name) for name in ("model", "train_file", "validation_file", "label_column")}
    with pytest.raises(DataError, match="The teacher .* tells no, yes apart; the task's classes are a, b, c"):  # noqa: RUF043
        check(settings, tmp_path, files | {"teacher": str(tmp_path / "teacher" / "merged")}, classes=("a", "b", "c"))
    with pytest.raises(PlanError, match="length is 1024 tokens, but the model reads 128"):
        Run(replace(settings, length=1024), tmp_path / "run").check_rule()


def check(settings: Settings, folder: Path, given: dict[str, Any], *, classes: tuple[str, ...]) -> None:
    text = Path(given["train_file"]).read_text(encoding="utf-8").splitlines()
    rows = [f"{line.rpartition(',')[0]},{classes[number % len(classes)]}" for number, line in enumerate(text[1:])]
    for name in ("train_file", "validation_file"):
        given[name] = str(folder / f"{name}.csv")
        Path(given[name]).write_text("\n".join([text[0], *rows]) + "\n", encoding="utf-8")
    Run(replace(settings, **given), folder / "run").check_inputs("importance")


def test_a_bias_that_is_not_there_is_missed_before_training(settings: Settings, tmp_path: Path) -> None:
    model = decoder(tmp_path / "llama", "llama")
    run = Run(replace(settings, model=str(model), reconstruct="bias"), tmp_path / "run")
    with pytest.raises(PlanError, match='reconstruct="bias", but .* have no bias'):  # noqa: RUF043
        run.check_rule()


def test_texts_are_cut_off_where_the_models_positions_end(settings: Settings, tmp_path: Path) -> None:
    """Also where the tokenizer knows of no end."""
    folder = tmp_path / "model"
    folder.mkdir()
    make_model("bert", dtype=torch.float32, max_position_embeddings=16, pad_token_id=0).save_pretrained(folder)
    save_tiny_tokenizer(folder)
    long = tmp_path / "dev.csv"
    long.write_text("text,label\n" + "w1 " * 40 + ",no\nw2,yes\n", encoding="utf-8")
    run = Run(replace(settings, model=str(folder), validation_file=str(long), length=16), tmp_path / "run")
    assert run.max_length == 16
    run.train()
    assert any("longer than 16 tokens" in note for note in run.evaluate(compare=False).notes)


def test_a_length_that_the_latency_table_does_not_have_is_refused(settings: Settings, tmp_path: Path) -> None:
    table = measure_latency(
        load_base(settings.model, label_names=("no", "yes"), seed=0).model, length=8, repeats=4, cache=None
    )
    table.save(tmp_path / "table.json")
    named = replace(settings, keep_macs=None, keep_latency=0.6, latency_table=str(tmp_path / "table.json"))
    assert Run(named, tmp_path / "run").latency is not None
    with pytest.raises(PlanError, match="length is 64 tokens, but the latency table .* was measured at 8"):  # noqa: RUF043
        assert Run(replace(named, length=64), tmp_path / "run").latency


def decoder(folder: Path, family: str) -> Path:
    """Without a token for padding, in tokenizer and config, as most are published."""
    folder.mkdir(parents=True)
    make_model(family, dtype=torch.float32, pad_token_id=None).save_pretrained(folder)
    tokenizer: Any = save_tiny_tokenizer(folder)
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_decoder_without_a_token_for_padding_goes_the_whole_way(
    settings: Settings, tmp_path: Path, family: str
) -> None:
    """That which ends a text becomes it, in the saved model too."""
    run = replace(settings, model=str(decoder(tmp_path / family, family)), length=16)
    finish(run, tmp_path / "run")
    loaded = Run(run, tmp_path / "run").merge()
    assert loaded.config.pad_token_id == Run(run, tmp_path / "run").tokenizer.pad_token_id == 3
