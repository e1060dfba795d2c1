"""Training: the same seed gives the same bits, accumulation changes nothing, interruptions cost nothing."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import BertTokenizer, PreTrainedTokenizerBase, TrainerCallback

import pruning_adapter as pa
from conformance import make_plan, one_thread
from pruning_adapter.errors import TrainingError
from pruning_adapter.training.recipes import RECIPES, find_recipe
from pruning_adapter.training.trainer import make_trainer, train_
from tiny import make_model

RECIPE = replace(RECIPES["default"], epochs=2, batch_size=4, learning_rate=dict.fromkeys(("full", "prune-lora"), 1e-2))


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerBase:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\n", encoding="utf-8")
    return BertTokenizer(vocab=str(vocabulary))


def make_features(count: int = 16) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(3, 40, (4 + row % 5,), generator=generator).tolist(),
            "attention_mask": [1] * (4 + row % 5),
            "labels": row % 3,
        }
        for row in range(count)
    ]


def make_adapted(**options: Any) -> Any:
    base = make_model("bert", dtype=torch.float32, attention="sdpa", **options)
    plan = make_plan(base, {0: [1], 2: [0, 3]})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return get_peft_model(base, pa.PruneLoraConfig(pruning=plan, task_type="SEQ_CLS"))


def run(model: Any, folder: Path, tokenizer: Any, **options: Any) -> list[dict[str, float]]:
    settings: dict[str, Any] = {"recipe": RECIPE, "method": "prune-lora", "seed": 5, **options}
    return train_(model, make_features(), tokenizer=tokenizer, folder=folder, **settings)


def trained_weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def assert_same(first: Any, second: Any) -> None:
    ours, theirs = trained_weights(first), trained_weights(second)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_same_seed_gives_the_same_bits(tmp_path: Path, tokenizer: Any) -> None:
    with one_thread():
        models = [make_adapted() for _ in range(3)]
        for number, (model, seed) in enumerate(zip(models, (5, 5, 6), strict=True)):
            run(model, tmp_path / str(number), tokenizer, seed=seed)
    assert_same(models[0], models[1])
    with pytest.raises(AssertionError):
        assert_same(models[0], models[2])


def test_only_what_should_train_changes(tmp_path: Path, tokenizer: Any) -> None:
    model = make_adapted()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    run(model, tmp_path, tokenizer)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path: Path, tokenizer: Any) -> None:
    class Interrupt(TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.epoch and state.epoch >= 1:
                raise KeyboardInterrupt

    with one_thread():
        whole, broken, resumed = make_adapted(), make_adapted(), make_adapted()
        run(whole, tmp_path / "whole", tokenizer)
        trainer = make_trainer(
            broken,
            make_features(),
            tokenizer=tokenizer,
            recipe=RECIPE,
            method="prune-lora",
            folder=tmp_path / "broken",
            seed=5,
        )
        trainer.add_callback(Interrupt())
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        assert list((tmp_path / "broken").glob("checkpoint-*"))
        history = run(resumed, tmp_path / "broken", tokenizer, resume=True)
    assert_same(whole, resumed)
    assert history[-1]["epoch"] == 2


def test_gradient_accumulation_does_not_change_the_gradient_norm(tmp_path: Path, tokenizer: Any) -> None:
    """The trap: the Trainer scales the loss for models that divide it by the number of items in the batch."""
    # Equal lengths, so that parts of a batch are padded like the whole.
    features = [{"input_ids": [7, 8, 9, 10 + row], "attention_mask": [1] * 4, "labels": row % 3} for row in range(4)]
    norms, losses = list[float](), list[float]()
    for accumulate in (1, 2, 4):
        trainer = make_trainer(
            make_adapted(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
            features,
            tokenizer=tokenizer,
            recipe=replace(RECIPE, epochs=1),
            method="prune-lora",
            folder=tmp_path / str(accumulate),
            seed=5,
            accumulate=accumulate,
        )
        trainer.train()
        norms += [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
        losses.append(trainer.state.log_history[0]["loss"])
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)


def test_evaluation_after_every_epoch_is_logged(tmp_path: Path, tokenizer: Any) -> None:
    history = run(make_adapted(), tmp_path, tokenizer, evaluate=lambda model: {"accuracy": 0.25})
    assert [(entry["epoch"], entry["eval_accuracy"]) for entry in history if "eval_accuracy" in entry] == [
        (1.0, 0.25),
        (2.0, 0.25),
    ]
    assert any("loss" in entry for entry in history)


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_step(tmp_path: Path, tokenizer: Any) -> None:
    model = make_adapted()
    next(parameter for name, parameter in model.named_parameters() if "lora_A" in name).data.fill_(float("nan"))
    said = r"is nan at step 1 \(batch 1 of epoch 1\), for all of its 4 examples, so look at the weights.* Lower the"
    with pytest.raises(TrainingError, match=said):
        run(model, tmp_path, tokenizer)


def test_numbers_that_cannot_be_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(TrainingError, match="accumulate is 3; it must divide the batch size, 4"):
        run(make_adapted(), tmp_path, tokenizer, accumulate=3)
    with pytest.raises(TrainingError, match="Recipe 'fast' is unknown; there are paper, default"):
        find_recipe("fast")


def test_the_papers_recipe_is_the_papers() -> None:
    paper = find_recipe("paper")
    assert (paper.epochs, paper.weight_decay, paper.batch_size) == (30, 0.01, 32)
    assert set(paper.learning_rate.values()) == {2e-5}


def test_weights_that_break_after_the_last_log_are_noticed(tmp_path: Path, tokenizer: Any) -> None:
    class Break(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == state.max_steps:
                next(p for p in kwargs["model"].parameters() if p.requires_grad).data.fill_(float("nan"))

    model = make_adapted()
    settings: dict[str, Any] = {"recipe": RECIPE, "method": "prune-lora", "seed": 5, "folder": tmp_path}
    trainer = make_trainer(model, make_features(), tokenizer=tokenizer, **settings)
    trainer.add_callback(Break())
    with pytest.raises(TrainingError, match=r"is no longer a finite number after step 8"):
        trainer.train()


def test_a_checkpoint_that_was_cut_short_is_left_aside(tmp_path: Path, tokenizer: Any) -> None:
    whole, again = make_adapted(), make_adapted()
    with one_thread():
        run(whole, tmp_path / "whole", tokenizer)
        shutil.copytree(tmp_path / "whole" / "checkpoint-8", tmp_path / "broken" / "checkpoint-4")
        weights = next((tmp_path / "broken" / "checkpoint-4").glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:1000])
        (tmp_path / "broken" / "checkpoint-6").mkdir()
        run(again, tmp_path / "broken", tokenizer, resume=True)
    assert_same(whole, again)
