"""Batches for scoring, of examples of like length, so that almost no padding is computed."""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from pruning_adapter.errors import ImportanceError

__all__ = ["LengthSortedBatches"]


class LengthSortedBatches:
    """An iterable of padded batches over tokenised examples. It can be iterated again.

    The longest come first, so that a sample that does not fit into memory fails at once.
    """

    def __init__(
        self,
        features: Sequence[dict[str, Any]],
        collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
        *,
        batch_size: int = 16,
        shuffle: int | None = None,
    ) -> None:
        """Args:
        features: tokenised examples with `input_ids` and `labels`.
        collate: pads a list of them into tensors, such as `DataCollatorWithPadding(tokenizer)`.
        batch_size: examples a batch.
        shuffle: seed of a random order of the batches, for those who may stop before the end.

        Raises:
            ImportanceError: no examples, or a batch size below one.
        """
        if not features:
            raise ImportanceError("No examples to score were given.")
        if batch_size < 1:
            raise ImportanceError(f"The batch size is {batch_size}; it must be at least 1.")
        by_length = sorted(features, key=lambda feature: len(feature["input_ids"]), reverse=True)
        self._batches = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
        if shuffle is not None:
            random.Random(shuffle).shuffle(self._batches)
        self._collate = collate

    def dealt(self, number: int, of: int) -> "LengthSortedBatches":
        """Every so many of the batches, so that several processes share them; see `measure_importance`.

        Args:
            number: of the process, from 0.
            of: processes.
        """
        mine = copy.copy(self)
        mine._batches = self._batches[number::of]
        return mine

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return map(self._collate, self._batches)
