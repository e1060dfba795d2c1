"""How sure a ranking is, and stopping once it is."""

from pathlib import Path
from typing import Any

import pytest
import torch

import pruning_adapter as pa
from pruning_adapter.errors import ImportanceError
from pruning_adapter.importance import estimate
from pruning_adapter.importance.batching import LengthSortedBatches
from pruning_adapter.importance.stability import rank_agreement
from tiny import make_batch, make_model


def test_agreement_by_hand() -> None:
    """One site in the same order, one of twice the size in reverse: (2 * 1 - 4 * 1) / 6; the third tells nothing."""
    first = [torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([5.0, 5.0])]
    second = [torch.tensor([10.0, 11.0]), torch.tensor([9.0, 8.0, 7.0, 6.0]), torch.tensor([1.0, 2.0])]
    assert rank_agreement(first, second) == pytest.approx(-1 / 3)


def test_nothing_to_rank_gives_no_number() -> None:
    assert rank_agreement([torch.tensor([1.0])], [torch.tensor([2.0])]) is None
    assert rank_agreement([], []) is None


@pytest.mark.parametrize("reduction", ["example", "token"])
@pytest.mark.parametrize("size", [1, 3, 6])
def test_halves_are_the_even_and_the_odd_examples_whatever_the_batches(size: int, reduction: Any) -> None:
    model, whole = make_model("bert"), make_batch()
    rows = [{name: value[row : row + 1] for name, value in whole.items()} for row in range(6)]
    halves = [
        pa.measure_importance(model, rows[half::2], reduction=reduction, allow_one_class=True).heads for half in (0, 1)
    ]
    batches = [{name: value[at : at + size] for name, value in whole.items()} for at in range(0, 6, size)]
    scores = pa.measure_importance(model, batches, reduction=reduction)
    assert scores.agreement == pytest.approx(rank_agreement(*halves))


def test_two_copies_of_every_example_agree_perfectly_and_stop_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "FEWEST_EXAMPLES", 4)
    model, whole = make_model("bert"), make_batch()
    pairs = [{name: value[[row, row]] for name, value in whole.items()} for row in range(6)]
    scores = pa.measure_importance(model, pairs, units=("heads", "neurons"), stop_when_stable=0.999)
    assert scores.agreement == pytest.approx(1.0)
    assert scores.examples == 4
    listed = pa.measure_importance(model, pairs[:2], units=("heads", "neurons"))
    assert all(torch.equal(a, b) for a, b in zip(scores.heads, listed.heads, strict=True))


def test_it_does_not_stop_before_two_classes_were_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "FEWEST_EXAMPLES", 2)
    whole = make_batch()
    one = {name: value[:1] for name, value in whole.items()}
    other = {name: value[1:2] for name, value in whole.items()}
    assert one["labels"] != other["labels"]
    scores = pa.measure_importance(make_model("bert"), [one, one, one, one, other], stop_when_stable=0.01)
    assert scores.examples == 5


def test_one_class_may_stop_early_where_it_is_allowed() -> None:
    batch = make_batch()
    batch["labels"] = torch.zeros_like(batch["labels"])
    scores = pa.measure_importance(make_model("bert"), [batch] * 12, stop_when_stable=0.01, allow_one_class=True)
    assert scores.examples == 36


def test_a_ranking_that_never_settles_uses_all_examples() -> None:
    batch = make_batch()
    scores = pa.measure_importance(make_model("bert"), [batch] * 7, stop_when_stable=1.0)
    assert scores.examples == 42


@pytest.mark.parametrize(("share", "reduction"), [(0.0, "example"), (1.5, "example"), (0.9, "batch")])
def test_what_cannot_be_meant_is_refused(share: float, reduction: Any) -> None:
    with pytest.raises(ImportanceError, match="stop_when_stable"):
        pa.measure_importance(make_model("bert"), [make_batch()], reduction=reduction, stop_when_stable=share)


def test_agreement_survives_the_file_and_is_told(tmp_path: Path) -> None:
    scores = pa.measure_importance(make_model("bert"), [make_batch()])
    scores.save(tmp_path / "scores.json")
    assert pa.ImportanceScores.load(tmp_path / "scores.json").agreement == scores.agreement
    assert f"rank correlation of two halves of the examples: {scores.agreement:.2f}" in str(scores)


def test_shuffled_batches_hold_the_same_examples_of_like_length() -> None:
    features = [{"input_ids": list(range(length)), "labels": 0} for length in range(1, 30)]

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {"lengths": [len(row["input_ids"]) for row in rows]}

    plain = [batch["lengths"] for batch in LengthSortedBatches(features, collate, batch_size=4)]
    shuffled = [batch["lengths"] for batch in LengthSortedBatches(features, collate, batch_size=4, shuffle=1)]
    assert shuffled != plain
    assert sorted(map(tuple, shuffled)) == sorted(map(tuple, plain))
