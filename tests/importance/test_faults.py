"""A batch that cannot be read or learnt from is named with its number and the example's, before a model fails on it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForTokenClassification

import pruning_adapter as pa
from conformance import make_plan
from pruning_adapter.architectures.limits import limits_of
from pruning_adapter.errors import DataError, ImportanceError
from pruning_adapter.importance.faults import find_fault
from tiny import FAMILIES, make_batch, make_model

Batch = dict[str, Tensor]


def changed(name: str, row: int, value: Any, batch: Batch | None = None) -> Batch:
    batch = make_batch() if batch is None else batch
    new = batch[name].clone()
    new[row] = value
    return {**batch, name: new}


def floats(labels: list[float]) -> Batch:
    return {**make_batch(size=len(labels)), "labels": torch.tensor(labels)}


LONG: Batch = {
    "input_ids": torch.full((3, 65), 5),
    "attention_mask": torch.cat([torch.ones(3, 60), torch.tensor([[0.0], [1.0], [0.0]]).expand(3, 5)], 1).long(),
    "labels": torch.tensor([0, 1, 2]),
}

FAULTS: dict[str, tuple[Batch, str]] = {
    "padding": (changed("attention_mask", 2, 0), "Example 2 of batch 1 .* has no token: it is all padding"),
    "token": (changed("input_ids", 3, 50), "Example 3 of batch 1 .* has the token 50, but the model knows .* 0-49"),
    "negative token": (changed("input_ids", 0, -1), "Example 0 of batch 1 .* has the token -1"),
    "length": (LONG, "Example 1 of batch 1 .* has 65 tokens in 'input_ids', but the model reads 64"),
}
LABELS: dict[str, tuple[Batch, str]] = {
    "label": (changed("labels", 4, 3), "Example 4 of batch 1 .* has the label 3, but the model has the classes 0-2"),
    "negative label": (changed("labels", 1, -7), "Example 1 of batch 1 .* has the label -7"),
    "NaN": (floats([0.5, math.nan, 1.0]), "Example 1 of batch 1 .* holds a number in 'labels' that is not finite"),
    "infinite": (floats([0.5, 1.0, math.inf]), "Example 2 of batch 1 .* holds a number in 'labels' that is not finite"),
}

SCORERS: dict[str, Callable[..., Any]] = {"gradient": pa.measure_importance, "obs": pa.obs_importance}


@pytest.mark.parametrize(("batch", "said"), [*FAULTS.values(), *LABELS.values()], ids=[*FAULTS, *LABELS])
@pytest.mark.parametrize("scorer", SCORERS)
def test_scoring_names_the_example_at_fault(scorer: str, batch: Batch, said: str) -> None:
    with pytest.raises(ImportanceError, match=said):
        SCORERS[scorer](make_model("bert", pad_token_id=0), [make_batch(), batch])


@pytest.mark.parametrize(("batch", "said"), FAULTS.values(), ids=FAULTS)
def test_correcting_names_the_example_at_fault(batch: Batch, said: str) -> None:
    model = make_model("bert")
    plan = pa.plan_pruning(pa.random_importance(model, seed=0), keep_heads=6, reconstruct="lstsq")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    unlabelled = {name: value for name, value in batch.items() if name != "labels"}
    with pytest.raises(DataError, match=said):
        pa.reconstruct_(model, plan, [make_batch(), unlabelled])
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in before.items())


def test_pictures_and_embeddings_with_no_number_in_them_are_named() -> None:
    pictures = make_batch(FAMILIES["vit"].task)
    pictures["pixel_values"][1, 0, 2, 3] = math.nan
    with pytest.raises(ImportanceError, match=r"Example 1 of batch 0 .* in 'pixel_values' that is not finite"):
        pa.measure_importance(make_model("vit"), [pictures])


def test_an_example_whose_loss_is_no_number_is_named() -> None:
    """One token's embedding is broken, and two of the examples hold it."""
    model = make_model("bert")
    model.get_input_embeddings().weight.data[49] = math.nan
    batch = make_batch()
    batch["input_ids"].clamp_(max=48)
    batch["input_ids"][[1, 4], 3] = 49
    for score in SCORERS.values():
        with pytest.raises(ImportanceError, match=r"loss of batch 1 is nan, by its examples 1, 4 \(counted from 0\)"):
            score(model, [{**batch, "input_ids": batch["input_ids"].clamp(max=48)}, batch])


def test_a_label_of_a_word_that_a_language_model_does_not_know_is_named() -> None:
    batch = make_batch("causal")
    batch["labels"][2, 5] = 50
    with pytest.raises(ImportanceError, match=r"Example 2 of batch 0 .* has the label 50, .* the classes 0-49"):
        pa.measure_importance(make_model("llama"), [batch])


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_every_family_reads_is_no_fault(family: str) -> None:
    """And a sequence as long as it has positions for runs through."""
    model: Any = make_model(family).eval()
    batch, limits = make_batch(FAMILIES[family].task), limits_of(model)
    assert find_fault(batch, 0, limits) is None
    if limits.positions is None or "input_ids" not in batch:
        return
    longest = {name: value[:1].repeat(1, limits.positions)[:, : limits.positions] for name, value in batch.items()}
    longest |= {"input_ids": torch.full((1, limits.positions), 7)}
    longest |= {"attention_mask": torch.ones(1, limits.positions, dtype=torch.long)}
    if batch["labels"].dim() == 1:
        longest["labels"] = batch["labels"][:1]
    assert find_fault(longest, 0, limits) is None
    model(**longest)
    longer = {
        name: torch.cat([value, value[:, -1:]], 1) if value.dim() == 2 else value for name, value in longest.items()
    }
    said = f"has {limits.positions + 1} tokens in 'input_ids', but the model reads {limits.positions}"
    assert said in (find_fault(longer, 0, limits) or "")
    with pytest.raises((IndexError, RuntimeError)):
        model(**longer)


def test_masks_that_are_added_may_be_infinite() -> None:
    batch = {**make_batch(), "attention_mask": torch.full((6, 1, 12, 12), -math.inf)}
    assert find_fault(batch, 0, limits_of(make_model("bert"))) is None


def test_ignored_labels_are_no_fault() -> None:
    batch = make_batch("causal")
    batch["labels"][0] = -100
    model = make_model("llama")
    assert find_fault(batch, 0, limits_of(model)) is None
    assert pa.measure_importance(model, [batch]).examples == len(batch["labels"])


def test_limits_are_those_of_the_base_below_an_adapter() -> None:
    from peft import get_peft_model

    base = make_model("bert")
    model = get_peft_model(base, pa.PruneLoraConfig(pruning=make_plan(base, {0: [1]}), trainable_token_indices=[3]))
    assert limits_of(model) == limits_of(make_model("bert"))


def test_a_label_that_a_classifier_of_tokens_does_not_know_is_named() -> None:
    model = make_model("bert", auto=AutoModelForTokenClassification, num_labels=3)
    batch = {**make_batch(), "labels": torch.randint(0, 3, (6, 12))}
    batch["labels"][:, 0] = -100
    assert find_fault(batch, 0, limits_of(model)) is None
    batch["labels"][3, 5] = 3
    with pytest.raises(ImportanceError, match=r"Example 3 of batch 0 .* has the label 3, .* the classes 0-2"):
        pa.measure_importance(model, [batch])


def test_a_family_that_does_not_tell_its_embeddings_has_no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("bert")

    def refuse() -> None:
        raise NotImplementedError

    monkeypatch.setattr(model, "get_input_embeddings", refuse)
    monkeypatch.setattr(model, "get_output_embeddings", refuse)
    assert limits_of(model).words is None
    assert pa.measure_importance(model, [make_batch()]).examples == 6
