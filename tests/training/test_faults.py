"""What cannot be learnt from is named: the example, the step, the batch; and the last good checkpoint stays."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertTokenizer, TrainerCallback

from pruning_adapter.architectures.limits import limits_of
from pruning_adapter.errors import TrainingError
from pruning_adapter.training import trainer as trainers
from pruning_adapter.training.faults import LossWatch, check_features, number_features, usual_loss
from pruning_adapter.training.recipes import RECIPES
from pruning_adapter.training.trainer import last_complete_checkpoint, make_trainer, train_
from tiny import FAMILIES, make_model

GOOD: dict[str, Any] = {"input_ids": [4, 5, 6], "attention_mask": [1, 1, 1], "labels": 1}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"labels": 3}, "Example 1 .* has the label 3, but the model has the classes 0-2"),
        ({"labels": -1}, "Example 1 .* has the label -1, but the model has the classes 0-2"),
        ({"labels": math.nan}, "Example 1 .* holds a number in 'labels' that is not finite"),
        ({"labels": [0.0, math.inf, 1.0]}, "Example 1 .* holds a number in 'labels' that is not finite"),
        ({"teacher_logits": [1.0, -math.inf, 0.0]}, "Example 1 .* holds a number in 'teacher_logits'"),
        ({"pixel_values": torch.tensor([1.0, math.nan])}, "Example 1 .* holds a number in 'pixel_values'"),
        ({"input_ids": [], "attention_mask": []}, "Example 1 .* has no token"),
        ({"attention_mask": [0, 0, 0]}, "Example 1 .* has no token: it is empty, or all padding"),
        ({"input_ids": [4, 99, 6]}, "Example 1 .* has the token 99, but the model knows the tokens 0-49"),
        ({"input_ids": [4, -5, 6]}, "Example 1 .* has the token -5, but the model knows the tokens 0-49"),
        ({"input_ids": [4] * 65, "attention_mask": [1] * 65}, "Example 1 .* has 65 tokens, but the model reads 64"),
    ],
)
def test_an_example_that_cannot_be_learnt_from_is_named_before_training(bad: dict[str, Any], said: str) -> None:
    model = make_model("bert", vocab_size=50, max_position_embeddings=64)
    check_features([GOOD, GOOD], model)
    with pytest.raises(TrainingError, match=said):
        check_features([GOOD, {**GOOD, **bad}], model)


def test_an_example_without_a_label_and_no_examples_are_refused() -> None:
    model = make_model("bert")
    with pytest.raises(TrainingError, match=r"Example 0 .* has no label"):
        check_features([{"input_ids": [4]}], model)
    with pytest.raises(TrainingError, match="no examples to train on"):
        check_features([], model)


def test_positions_behind_the_paddings_count_as_the_family_counts_them() -> None:
    """RoBERTa's first token has the position 2, of 64 that there are weights for."""
    model = make_model("roberta", vocab_size=50, max_position_embeddings=64, pad_token_id=1)
    fits = {**GOOD, "input_ids": [4] * 62, "attention_mask": [1] * 62}
    check_features([fits], model)
    cast_model: Any = model.eval()
    cast_model(input_ids=torch.tensor([fits["input_ids"]]))
    with pytest.raises(TrainingError, match="has 63 tokens, but the model reads 62"):
        check_features([{**fits, "input_ids": [4] * 63}], model)


def note(watch: LossWatch, values: list[float], device: str = "cpu") -> None:
    rows = torch.tensor(values)
    watch.note(
        rows.mean().to(device),
        place="step 3",
        examples=torch.arange(len(rows)) + 10,
        alone=lambda row: rows[row],
    )


def test_the_examples_at_fault_are_told_from_the_others_of_their_batch() -> None:
    watch = LossWatch("Mend them.")
    note(watch, [1.0, 2.0])
    with pytest.raises(TrainingError, match=r"is nan at step 3, by the training set's example 11 .* Mend them\.$"):
        note(watch, [1.0, math.nan, 2.0])
    with pytest.raises(TrainingError, match=r"is inf at step 3, by the training set's examples 10, 12 "):
        note(watch, [math.inf, 1.0, math.inf])
    with pytest.raises(TrainingError, match="for all of its 2 examples, so look at the weights"):
        note(watch, [math.nan, math.nan])


def test_where_looking_would_make_the_device_wait_the_first_bad_batch_is_named_later() -> None:
    class Elsewhere:
        """A loss on a device that is not the CPU."""

        def __init__(self, value: float) -> None:
            self.device, self._value = torch.device("cuda"), torch.tensor(value)

        def detach(self) -> torch.Tensor:
            return self._value

    watch = LossWatch("")
    for step, value in enumerate((1.0, math.inf, math.nan)):
        loss: Any = Elsewhere(value)
        watch.note(loss, place=f"step {step}", examples=torch.tensor([2 * step, 2 * step + 1]))
    with pytest.raises(TrainingError, match="is inf at step 1, in the batch of the training set's examples 2, 3 "):
        watch.check()
    # What was told is not told again.
    watch.check()


def test_numbering_leaves_examples_as_they_are() -> None:
    features = [dict(GOOD), dict(GOOD)]
    assert [feature["example"] for feature in number_features(features)] == [0, 1]
    assert features == [GOOD, GOOD]


def test_a_loss_that_explodes_later_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    """After the first epoch the weight of one token is infinite, and one example holds it."""
    model, how = start(tmp_path)

    def break_it(_: Any) -> dict[str, float]:
        with torch.no_grad():
            model.get_input_embeddings().weight[5 + 6].fill_(math.inf)
        return {}

    with pytest.raises(TrainingError, match=r"of epoch 2\), by the training set's example 6 \(counted from 0\)"):
        train_(model, **how, evaluate=break_it)
    kept = last_complete_checkpoint(tmp_path / "checkpoints")
    assert kept is not None
    assert kept.name == "checkpoint-2"


@pytest.mark.parametrize(
    "family", [name for name, tiny in FAMILIES.items() if tiny.task in ("classification", "causal")]
)
def test_a_family_reads_as_many_tokens_as_were_counted_and_no_more(family: str) -> None:
    model: Any = make_model(family, vocab_size=50)
    count = limits_of(model).positions
    model(input_ids=torch.full((1, count or 200), 4))
    if count is not None:
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, count + 1), 4))


def test_an_encoder_decoder_reads_as_many_tokens_as_were_counted_and_no_more() -> None:
    model: Any = make_model("bart", vocab_size=50)
    count = limits_of(model).positions
    assert count == 64
    model(input_ids=torch.full((1, count), 4))
    with pytest.raises(IndexError):
        model(input_ids=torch.full((1, count + 1), 4))


def test_a_loss_that_is_thousands_of_times_the_usual_has_exploded() -> None:
    watch = LossWatch("Mend it.")
    for value in (0.7, 3.0, 0.001, 9_000.0):
        note(watch, [value])
    with pytest.raises(TrainingError, match=r"is 20000\.0 at step 3, by the training set's example 11 .*exploded"):
        note(watch, [0.5, 39_999.5])
    with pytest.raises(TrainingError, match=r"look at the weights, not at the data; 1 was usual"):
        note(watch, [9e19, 1e19])


def test_the_first_loss_and_the_size_of_numbers_to_predict_are_usual() -> None:
    high = LossWatch("")
    note(high, [500.0])
    note(high, [4_000_000.0])
    # Its first batch happens to be met exactly.
    prices = LossWatch("", usual=usual_loss([{"labels": 3_000.0}, {"labels": -1_000.0}]))
    note(prices, [0.0])
    note(prices, [4e10])
    with pytest.raises(TrainingError, match=r"5e\+06 was usual"):
        note(prices, [6e10])
    assert usual_loss([GOOD]) == usual_loss([{"labels": 0.1}]) == usual_loss([{"labels": [0.0, 1.0]}]) == 1


def start(folder: Path, **more: Any) -> tuple[Any, dict[str, Any]]:
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\n", encoding="utf-8")
    base: Any = make_model("bert", dtype=torch.float32)
    model: Any = get_peft_model(base, LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    features = [{"input_ids": [5 + row, 6], "attention_mask": [1, 1], "labels": row % 3} for row in range(8)]
    how: dict[str, Any] = {
        "features": features,
        "tokenizer": BertTokenizer(vocab=str(folder / "vocab.txt")),
        "recipe": replace(RECIPES["default"], epochs=3, batch_size=4),
        "method": "prune-lora",
        "folder": folder / "checkpoints",
        "seed": 0,
    }
    return model, {**how, **more}


def test_a_rate_that_makes_the_loss_explode_is_told_while_it_is_finite(tmp_path: Path) -> None:
    recipe = replace(
        RECIPES["default"], epochs=3, batch_size=4, learning_rate=dict.fromkeys(("full", "prune-lora"), 1e7)
    )
    model, how = start(tmp_path, recipe=recipe)
    with pytest.raises(TrainingError, match=r"training loss is \d.* has exploded\. Lower the learning rate \(1e\+07\)"):
        train_(model, **how)


class BreakAfter(TrainerCallback):
    """Makes the head's weights huge after a step, though all are finite."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step:
            with torch.no_grad():
                kwargs["model"].base_model.model.classifier.modules_to_save["default"].weight.mul_(1e9)


@pytest.mark.parametrize("step", [3, 4], ids=["within an epoch", "at its end"])
def test_weights_that_exploded_get_no_checkpoint(tmp_path: Path, step: int) -> None:
    """Also those that the last step of an epoch made, before any loss is computed with them."""
    model, how = start(tmp_path)
    trainer = make_trainer(model, **how)
    trainer.add_callback(BreakAfter(step))
    place = {3: r"step 4 \(batch 2 of epoch 2\)", 4: "the end of step 4, on its batch"}[step]
    with pytest.raises(TrainingError, match=rf"{place}.* has exploded.*Checkpoints of earlier epochs are kept"):
        trainer.train()
    kept = last_complete_checkpoint(tmp_path / "checkpoints")
    assert kept is not None
    assert kept.name == "checkpoint-2"


def test_looking_again_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout, whose masks would be others if anything was drawn in between."""
    found: list[dict[str, torch.Tensor]] = []
    for looks in (True, False):
        if not looks:
            monkeypatch.setattr(trainers._Trainer, "look_again", lambda self: None)
        (tmp_path / str(looks)).mkdir()
        torch.manual_seed(0)
        model, how = start(tmp_path / str(looks))
        train_(model, **how)
        found.append({name: weight.detach() for name, weight in model.named_parameters()})
    assert all(torch.equal(found[1][name], weight) for name, weight in found[0].items())
