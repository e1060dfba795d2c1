"""Faults of data and of numbers, told by example, batch and step instead of by a loss that is no number."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pruning_adapter.architectures.limits import Limits, limits_of
from pruning_adapter.errors import TrainingError

__all__ = ["EXAMPLE", "LossWatch", "check_features", "number_features", "usual_loss"]

EXAMPLE = "example"
"""The column that tells which example a row of a batch is."""
EXPLOSION = 1e4
"""Times the usual loss: nothing is learnt beyond, and weights that give it are not worth a checkpoint."""
SHOWN = 8
"""Examples that a message names, at the most."""


def number_features(features: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same examples, each with its number, from 0, in the column `EXAMPLE`."""
    return [{**feature, EXAMPLE: number} for number, feature in enumerate(features)]


def check_features(features: Sequence[Mapping[str, Any]], model: nn.Module) -> None:
    """Refuse examples that `model` cannot learn from, before a step is computed.

    Args:
        features: tokenised examples with `labels`, not padded.
        model: a classifier or regressor of Transformers, or an adapter on one.

    Raises:
        TrainingError: no examples; or the first that has no token, tokens or labels that the model does not know, more
            tokens than it reads, or a number that is not finite.
    """
    if not features:
        raise TrainingError("There are no examples to train on; give at least one.")
    limits = limits_of(model)
    for number, feature in enumerate(features):
        found = _find_fault(feature, limits)
        if found is not None:
            raise TrainingError(f"Example {number} of the training set (counted from 0) {found}")


def _find_fault(feature: Mapping[str, Any], limits: Limits) -> str | None:
    if "labels" not in feature:
        return "has no label. Give every example one, or leave it out."
    tokens, words, positions = feature.get("input_ids"), limits.words, limits.positions
    if tokens is not None:
        mask = feature.get("attention_mask")
        if len(tokens) == 0 or (mask is not None and not any(mask)):
            return "has no token: it is empty, or all padding. Leave it out."
        if words is not None and not 0 <= min(tokens) <= max(tokens) < words:
            wrong = min(tokens) if min(tokens) < 0 else max(tokens)
            return (
                f"has the token {wrong}, but the model knows the tokens 0-{words - 1}. Use the model's own tokenizer."
            )
        if positions is not None and len(tokens) > positions:
            return f"has {len(tokens)} tokens, but the model reads {positions}. Cut it off there (`max_length`)."
    for name, value in feature.items():
        if not _all_finite(value):
            return f"holds a number in {name!r} that is not finite. Correct it, or leave the example out."
    label = feature["labels"]
    if isinstance(label, int) and not 0 <= label < max(limits.classes, 1):
        return f"has the label {label}, but the model has the classes 0-{max(limits.classes, 1) - 1}."
    return None


def _all_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int | str):
        return True
    if isinstance(value, Sequence):
        # Token numbers, of which there are many, are integers, which are always finite.
        numbers = cast("Sequence[Any]", value)
        return len(numbers) == 0 or isinstance(numbers[0], int) or all(map(_all_finite, numbers))
    return bool(torch.isfinite(torch.as_tensor(value)).all())


def usual_loss(features: Sequence[Mapping[str, Any]]) -> float:
    """About what the loss is before anything is learnt: of numbers, their mean square; else 1, as of a few classes."""
    labels = [feature["labels"] for feature in features]
    if not isinstance(labels[0], float):
        return 1.0
    return max(1.0, sum(float(label) ** 2 for label in labels) / len(labels))


class LossWatch:
    """Tells at which step, and by which examples, the loss stopped being a number, or exploded on the way there.

    On a CPU it is looked at in every step, before weights change. On accelerators, where looking would make the device
    wait, it is written down, and looked at whenever `check` is called.
    """

    def __init__(self, way_out: str, *, usual: float = 1.0) -> None:
        """Args:
        way_out: what to do, as the end of the message.
        usual: see `usual_loss`. The first loss counts as usual too, where it is higher.
        """
        self._way_out = way_out
        self._usual = usual
        self._begun = False
        self._waiting: list[tuple[str, Tensor, Tensor]] = []

    def note(self, loss: Tensor, *, place: str, examples: Tensor, alone: Callable[[int], Tensor] | None = None) -> None:
        """Look at the loss of one batch, or write it down.

        Args:
            loss: the mean loss, a scalar.
            place: step, batch and epoch, for the message.
            examples: `(batch,)` numbers of the batch's examples.
            alone: the loss of one row of the batch, which finds the examples at fault.

        Raises:
            TrainingError: it is not finite, or has exploded.
        """
        if loss.device.type != "cpu":
            self._waiting.append((place, loss.detach(), examples))
        elif self._is_bad(loss.item()):
            self._fail(place, loss.item(), examples.tolist(), alone)

    def check(self) -> None:
        """Look at all that was written down since the last time.

        Raises:
            TrainingError: a loss is not finite or has exploded; the first is named.
        """
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        losses = torch.stack([loss for _, loss, _ in waiting]).tolist()
        for (place, _, examples), loss in zip(waiting, losses, strict=True):
            if self._is_bad(loss):
                self._fail(place, loss, examples.tolist(), None)

    def _is_bad(self, loss: float) -> bool:
        if not math.isfinite(loss):
            return True
        if not self._begun:
            self._usual, self._begun = max(self._usual, abs(loss)), True
        return abs(loss) > EXPLOSION * self._usual

    def _fail(self, place: str, loss: float, examples: list[int], alone: Callable[[int], Tensor] | None) -> None:
        guilty = examples
        if alone is not None:
            guilty = [example for row, example in enumerate(examples) if self._is_bad(alone(row).item())]
        if alone is not None and len(guilty) in (0, len(examples)):
            whose = f"for all of its {len(examples)} examples, so look at the weights, not at the data"
        else:
            named = ", ".join(map(str, guilty[:SHOWN])) + (", ..." if len(guilty) > SHOWN else "")
            whose = f"the training set's example{'s' if len(guilty) > 1 else ''} {named} (counted from 0)"
            whose = f"{'by' if alone is not None else 'in the batch of'} {whose}"
        exploded = f"; {self._usual:.3g} was usual, and it has exploded" if math.isfinite(loss) else ""
        raise TrainingError(f"The training loss is {loss} at {place}, {whose}{exploded}. {self._way_out}")
