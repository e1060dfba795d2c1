"""The share that each example has in a batch's mean loss, told from the model's inputs and outputs."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pruning_adapter.errors import ImportanceError
from pruning_adapter.importance.loss import LossShares

LABELS = torch.tensor([[1, 2, 0, 2], [2, 1, -100, -100], [-100, -100, -100, -100]])
LOGITS = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def outputs(logits: Tensor, labels: Tensor) -> SimpleNamespace:
    return SimpleNamespace(logits=logits, loss=cross_entropy(logits.flatten(0, 1), labels.flatten()))


@pytest.mark.parametrize("labels", [torch.tensor([0, 1, 1]), torch.tensor([0.5, 1.0, 2.0]), torch.zeros(3, 2)])
def test_with_a_label_an_example_the_mean_runs_over_examples(labels: Tensor) -> None:
    factors = LossShares().factors({"labels": labels}, SimpleNamespace(), 0)
    assert factors.tolist() == [3, 3, 3]


def test_questions_are_examples_too() -> None:
    batch = {"start_positions": torch.tensor([0, 3]), "end_positions": torch.tensor([1, 4])}
    assert LossShares().factors(batch, SimpleNamespace(), 0).tolist() == [2, 2]


def test_answers_outside_of_the_text_are_refused() -> None:
    """Transformers leaves them out of the mean, which would then be over fewer examples."""
    batch = {"start_positions": torch.tensor([0, 3]), "end_positions": torch.tensor([1, 8])}
    said = SimpleNamespace(start_logits=torch.zeros(2, 8))
    with pytest.raises(ImportanceError, match=r"Example 1 of batch 4 .* has end_positions 8, outside of its 8 tokens"):
        LossShares().factors(batch, said, 4)
    assert LossShares().factors({**batch, "end_positions": torch.tensor([1, 7])}, said, 4).tolist() == [2, 2]


def test_with_a_label_a_token_the_mean_runs_over_the_counted_tokens() -> None:
    factors = LossShares().factors({"labels": LABELS}, outputs(LOGITS, LABELS), 0)
    # Four and two of six; the last example has none.
    assert factors.tolist() == [6 / 4, 6 / 2, 0]


def test_a_model_that_predicts_the_next_token_skips_the_first_label() -> None:
    loss = outputs(LOGITS[:, :-1], LABELS[:, 1:]).loss
    factors = LossShares().factors({"labels": LABELS}, SimpleNamespace(logits=LOGITS, loss=loss), 0)
    # Three and one of four.
    torch.testing.assert_close(factors, torch.tensor([4 / 3, 4, 0], dtype=torch.float64))


def test_a_loss_that_is_no_such_mean_is_refused() -> None:
    wrong = SimpleNamespace(logits=LOGITS, loss=torch.tensor(17.0))
    with pytest.raises(ImportanceError, match=r"The model's loss 17 is neither the mean .* Turn label smoothing"):
        LossShares().factors({"labels": LABELS}, wrong, 0)


def test_logits_that_do_not_fit_the_labels_are_refused() -> None:
    strange = SimpleNamespace(logits=LOGITS[:, :2], loss=torch.tensor(1.0))
    with pytest.raises(
        ImportanceError, match=r"Batch 5 has labels of shape \(3, 4\), and the model's logits do not fit"
    ):
        LossShares().factors({"labels": LABELS}, strange, 5)
