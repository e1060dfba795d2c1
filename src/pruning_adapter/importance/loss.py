"""How a model's loss adds up over examples, so that each example's own loss can be told from the batch's.

Transformers' losses are means: over the examples of a classification, over the counted tokens of a language model.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pruning_adapter.errors import ImportanceError
from pruning_adapter.importance.faults import IGNORED, name_example

__all__ = ["LossShares", "batch_size"]


def batch_size(batch: Mapping[str, Tensor]) -> int:
    """Examples in a batch, from its labels."""
    return _labels(batch).shape[0]


class LossShares:
    """For every example x of a batch, the factor that turns the batch's mean loss into the mean loss of x alone.

    If x contributes n of the N terms that the mean runs over, its own loss has the gradient N / n times that which
    passes through x: exactly, because examples do not interact. An example without a counted term has the factor 0.
    """

    def __init__(self) -> None:
        self._shifted: bool | None = None

    def factors(self, batch: Mapping[str, Tensor], outputs: Any, number: int) -> Tensor:
        """Factors `(batch,)` in float64, on the CPU.

        Args:
            batch: the model's inputs, with labels (or start and end positions).
            outputs: what the model returned for them.
            number: of the batch, for messages.

        Raises:
            ImportanceError: the loss is none of the means that are known.
        """
        labels = _labels(batch)
        _check_spans(batch, outputs, number)
        if not _per_token(labels):
            return torch.full((labels.shape[0],), float(labels.shape[0]), dtype=torch.float64)
        if self._shifted is None:
            self._shifted = self._find_shift(labels, outputs, number)
        counted = ((labels[:, 1:] if self._shifted else labels) != IGNORED).sum(1).double().cpu()
        return torch.where(counted > 0, counted.sum() / counted.clamp(min=1), torch.zeros_like(counted))

    def _find_shift(self, labels: Tensor, outputs: Any, number: int) -> bool:
        """Whether the model predicts the next token (and so skips the first label): told by its loss's value."""
        logits, loss = getattr(outputs, "logits", None), float(outputs.loss.detach())
        if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[:2] != labels.shape:
            raise ImportanceError(
                f"Batch {number} has labels of shape {tuple(labels.shape)}, and the model's logits do not fit them; "
                "one label per example or per token is supported."
            )
        with torch.no_grad():
            plain = _mean_loss(logits, labels)
            shifted = _mean_loss(logits[:, :-1], labels[:, 1:])
        best, other = sorted((abs(plain - loss), abs(shifted - loss)))
        # bfloat16 logits give the loss to two digits.
        if best > 0.02 * max(abs(loss), 1.0):
            raise ImportanceError(
                f"The model's loss {loss:.4g} is neither the mean over the labels ({plain:.4g}) nor over the next "
                f"tokens ({shifted:.4g}), so the part of each example is unknown. Turn label smoothing and extra "
                "losses off while scoring."
            )
        return abs(shifted - loss) < abs(plain - loss) if best < other else False


def _check_spans(batch: Mapping[str, Tensor], outputs: Any, number: int) -> None:
    """Of answers in a text, refuse those that lie outside: the loss would leave them out, and be another mean."""
    logits = getattr(outputs, "start_logits", None)
    for name in ("start_positions", "end_positions"):
        if name not in batch or not isinstance(logits, Tensor):
            continue
        places, length = batch[name], logits.shape[1]
        outside = ((places < 0) | (places >= length)).flatten().nonzero()
        if len(outside):
            row = int(outside[0])
            raise ImportanceError(
                f"{name_example(row, number)} has {name} {int(places.flatten()[row])}, outside of its {length} tokens. "
                "Point to the first token where the answer was cut off, or leave the example out."
            )


def _mean_loss(logits: Tensor, labels: Tensor) -> float:
    return float(cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED))


def _per_token(labels: Tensor) -> bool:
    return labels.dim() == 2 and not labels.is_floating_point()


def _labels(batch: Mapping[str, Tensor]) -> Tensor:
    return batch["labels"] if "labels" in batch else batch["start_positions"]
