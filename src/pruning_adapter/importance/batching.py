"""Batches for scoring: sorted by length, so that almost no padding is computed."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from pruning_adapter.errors import ImportanceError

__all__ = ["LengthSortedBatches"]


class LengthSortedBatches:
    """An iterable of padded batches over tokenised examples, longest first. It can be iterated again.

    Longest first, so that a sample that does not fit into memory fails at once.
    """

    def __init__(
        self,
        features: Sequence[dict[str, Any]],
        collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
        *,
        batch_size: int = 16,
    ) -> None:
        """Args:
        features: tokenised examples with `input_ids` and `labels`.
        collate: pads a list of them into tensors, such as `DataCollatorWithPadding(tokenizer)`.
        batch_size: examples a batch.

        Raises:
            ImportanceError: no examples, or a batch size below one.
        """
        if not features:
            raise ImportanceError("No examples to score were given.")
        if batch_size < 1:
            raise ImportanceError(f"The batch size is {batch_size}; it must be at least 1.")
        self._features = sorted(features, key=lambda feature: len(feature["input_ids"]), reverse=True)
        self._collate = collate
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._features) // self._batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(self._features), self._batch_size):
            yield self._collate(self._features[start : start + self._batch_size])
