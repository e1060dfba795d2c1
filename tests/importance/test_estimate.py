"""What `measure_importance` accepts, refuses, and records."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForTokenClassification

import pruning_adapter as pa
from pruning_adapter.architectures.identity import identify
from pruning_adapter.architectures.sites import find_sites
from pruning_adapter.errors import ArchitectureError, ImportanceError
from pruning_adapter.importance.batching import LengthSortedBatches
from tiny import make_batch, make_model


def test_scores_record_where_they_come_from() -> None:
    model, batch = make_model("bert"), make_batch()
    scores = pa.measure_importance(model, [batch, batch], task="toy", seed=7)
    assert (scores.examples, scores.tokens) == (12, 2 * int(batch["attention_mask"].sum()))
    assert (scores.scorer, scores.reduction, scores.task, scores.seed) == ("gradient", "example", "toy", 7)
    assert scores.model == identify(model)
    assert torch.__version__.startswith(scores.versions["torch"])
    assert all(block.dtype == torch.float64 for block in scores.heads)


def test_any_iterable_of_mappings_works_also_a_generator() -> None:
    model, batch = make_model("bert"), make_batch()
    listed = pa.measure_importance(model, [batch])
    generated = pa.measure_importance(model, (dict(batch) for _ in range(1)))
    assert all(torch.equal(a, b) for a, b in zip(listed.heads, generated.heads, strict=True))


def test_no_weight_gradient_is_ever_allocated() -> None:
    model, seen = make_model("bert"), list[bool]()

    def watch(*_: object) -> None:
        seen.append(any(parameter.requires_grad for parameter in model.parameters()))

    model.base_model.encoder.register_forward_hook(watch)
    pa.measure_importance(model, [make_batch()])
    # The last pass is the scored one; those before it count operations, without gradients.
    assert seen[-1] is False
    assert all(parameter.grad is None for parameter in model.parameters())


def test_existing_gradients_are_left_alone() -> None:
    model: Any = make_model("bert")
    model(**make_batch()).loss.backward()
    before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    pa.measure_importance(model, [make_batch(seed=1)])
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        assert (gradient is None and parameter.grad is None) or torch.equal(parameter.grad, gradient)


def test_scoring_works_inside_no_grad_and_with_dropout_configured() -> None:
    model = make_model("bert", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    model.train()
    with torch.no_grad():
        first = pa.measure_importance(model, [make_batch()])
    second = pa.measure_importance(model, [make_batch()])
    assert all(torch.equal(a, b) for a, b in zip(first.heads, second.heads, strict=True))
    assert model.training


def test_an_adapted_model_can_be_scored_and_keeps_the_identity_of_its_base() -> None:
    base = make_model("bert")
    identity = identify(base)
    model = get_peft_model(base, LoraConfig(target_modules=["query", "value"], modules_to_save=["LayerNorm"]))
    assert identify(model) == identity
    assert pa.measure_importance(model, [make_batch()]).model == identity


def test_a_pruned_models_scores_carry_the_dense_numbers() -> None:
    model = make_model("bert")
    first = pa.plan_pruning(pa.measure_importance(model, [make_batch()]), keep_heads=8)
    pa.prune_(model, first)
    scores = pa.measure_importance(model, [make_batch()])
    assert scores.kept_heads == first.kept_heads
    second = pa.plan_pruning(scores, keep_heads=4)
    assert all(set(after) <= set(before) for after, before in zip(second.kept_heads, first.kept_heads, strict=True))
    pa.prune_(model, second)
    assert sum(parameter.numel() for parameter in model.parameters()) == second.parameters


def test_multi_label_and_regression_losses_count_each_example_as_if_it_came_alone() -> None:
    for problem, labels in (
        ("multi_label_classification", torch.rand(6, 3, dtype=torch.float64).round()),
        ("regression", torch.rand(6, dtype=torch.float64)),
    ):
        model = make_model("bert", problem_type=problem, num_labels=1 if problem == "regression" else 3)
        batch = {**make_batch(), "labels": labels}
        whole = pa.measure_importance(model, [batch])
        rows = [{name: value[row : row + 1] for name, value in batch.items()} for row in range(6)]
        apart = pa.measure_importance(model, rows)
        torch.testing.assert_close(torch.stack(whole.heads), torch.stack(apart.heads), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], r"No batches were given"),
        (
            [{**make_batch(), "attention_mask": torch.zeros(6, 12, dtype=torch.long)}],
            r"has no token: it is all padding",
        ),
        ([{k: v for k, v in make_batch().items() if k != "labels"}], r"Batch 0 has no 'labels' \(it has input_ids"),
        ([{**make_batch(), "labels": torch.ones(6, dtype=torch.long)}], r"All 6 examples carry the label 1"),
        ([{**make_batch(), "labels": torch.ones(6, 12, 2)}], r"labels of shape \(6, 12, 2\)"),
    ],
    ids=["empty", "padding", "unlabelled", "one class", "three axes"],
)
def test_bad_batches_are_refused(batches: list[dict[str, torch.Tensor]], message: str) -> None:
    with pytest.raises(ImportanceError, match=message):
        pa.measure_importance(make_model("bert"), batches)


def test_one_class_can_be_accepted() -> None:
    one = {**make_batch(), "labels": torch.ones(6, dtype=torch.long)}
    assert pa.measure_importance(make_model("bert"), [one], allow_one_class=True).examples == 6


def test_a_loss_that_is_not_finite_names_the_batch() -> None:
    model = make_model("bert")
    model.base_model.embeddings.word_embeddings.weight.data[10:] = float("nan")
    with pytest.raises(ImportanceError, match=r"The loss of batch 0 is nan"):
        pa.measure_importance(model, [make_batch()])


def test_unknown_reductions_and_families_are_refused() -> None:
    with pytest.raises(ImportanceError, match=r"'median' is unknown; use one of example"):
        pa.measure_importance(make_model("bert"), [make_batch()], reduction="median")  # pyright: ignore
    with pytest.raises(ArchitectureError, match=r"no config\.model_type"):
        pa.measure_importance(torch.nn.Linear(2, 2), [make_batch()])
    stranger = make_model("bert")
    stranger.config.model_type = "brt"
    with pytest.raises(ArchitectureError, match=r"'brt' is not supported\. Did you mean 'bert'\? Supported: albert"):
        pa.measure_importance(stranger, [make_batch()])


def test_length_sorted_batches_are_longest_first_and_can_be_read_twice() -> None:
    features = [{"input_ids": list(range(length)), "labels": length} for length in (3, 9, 5, 7, 1)]
    batches = LengthSortedBatches(features, lambda rows: rows, batch_size=2)  # pyright: ignore
    for _ in range(2):
        assert [[row["labels"] for row in batch] for batch in batches] == [[9, 7], [5, 3], [1]]
    assert len(batches) == 3
    with pytest.raises(ImportanceError, match="No examples"):
        LengthSortedBatches([], lambda rows: rows)  # pyright: ignore
    with pytest.raises(ImportanceError, match="batch size is 0"):
        LengthSortedBatches(features, lambda rows: rows, batch_size=0)  # pyright: ignore


@pytest.mark.parametrize("reduction", ["batch", "bertology"])
def test_of_a_batch_the_gradient_is_that_of_its_mean_loss_however_long_its_examples(reduction: Any) -> None:
    """With a label a token, examples count by their tokens; the reference is one gate for all of them."""
    model = make_model("bert", auto=AutoModelForTokenClassification)
    batch = make_batch()
    batch["labels"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"] % 2, -100)
    assert len(set(batch["attention_mask"].sum(1).tolist())) > 1
    gates = [torch.ones(site.units, dtype=torch.float64, requires_grad=True) for site in find_sites(model)]
    with pa.gated(model, gates):
        gradients = torch.autograd.grad(model(**batch).loss, gates)
    scores = pa.measure_importance(model, [batch], reduction=reduction, allow_one_class=True)
    for found, gradient in zip(scores.heads, gradients, strict=True):
        torch.testing.assert_close(found * scores.tokens, gradient.abs())
