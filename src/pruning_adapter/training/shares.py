"""Each optimizer step's examples, dealt out to processes and to the parts of an accumulated batch.

The examples of a step are those that one process would take, in the same order, whatever the number of processes and
parts; every example counts once and equally. Accelerate's own way fills the last batch of an epoch up with examples
from its beginning, or lets the processes take different numbers of steps.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pruning_adapter.errors import TrainingError
from pruning_adapter.processes import process_count, process_number

__all__ = ["SHARE", "Shares", "check_shares", "load_shares", "of_step"]

SHARE = "share_of_step"
"""Name of a feature: (examples here x parts of the step, examples of the step), the factor from a mean over the
examples here to their share of the mean over the step."""

Place = tuple[int, tuple[int, int]]
"""The number of an example, and its SHARE."""


class Shares(Sampler[list[Place]]):
    """What one process computes, part by part."""

    def __init__(self, order: Sampler[int], batch_size: int, *, accumulate: int) -> None:
        """Args:
        order: of all examples, the same in all processes.
        batch_size: examples of an optimizer step, over all processes and parts.
        accumulate: parts of a step, one after the other.
        """
        self._order = order
        self._batch_size = batch_size
        self._part = batch_size // accumulate
        self._number, self._of = process_number(), process_count()

    def set_epoch(self, epoch: int) -> None:
        """See `LengthGroups.set_epoch`."""
        set_epoch = getattr(self._order, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)

    def __len__(self) -> int:
        count = len(self._order)  # pyright: ignore[reportArgumentType]
        return -(-count // self._part)

    def __iter__(self) -> Iterator[list[Place]]:
        order = list(self._order)
        for start in range(0, len(order), self._batch_size):
            step = order[start : start + self._batch_size]
            parts = [step[first : first + self._part] for first in range(0, len(step), self._part)]
            for part in parts:
                # Every so many, because neighbours are of similar length.
                mine = part[self._number :: self._of]
                share = (len(mine) * len(parts) * self._of, len(step))
                # A process without an example runs along, for the others wait for its gradients.
                yield [(number, share) for number in mine or part[:1]]


class _Shared(Dataset[dict[str, Any]]):
    def __init__(self, features: Sequence[dict[str, Any]]) -> None:
        self._features = features

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, place: Place) -> dict[str, Any]:
        number, share = place
        return {**self._features[number], SHARE: share}


class _Loader(DataLoader[dict[str, Any]]):
    def set_epoch(self, epoch: int) -> None:
        """The Trainer says which begins."""
        sampler: Any = self.batch_sampler
        sampler.set_epoch(epoch)


def load_shares(features: Sequence[dict[str, Any]], shares: Shares, **options: Any) -> DataLoader[dict[str, Any]]:
    """A loader of this process's shares, with the options of torch's."""
    return _Loader(_Shared(features), batch_sampler=shares, **options)


def of_step(loss: Tensor, share: Tensor) -> Tensor:
    """A mean over the examples here as their share of the step's.

    Args:
        loss: the mean.
        share: `(examples, 2)`, what the batch says under SHARE.
    """
    times, over = share[0].to(loss.dtype)
    return loss * (times / over)


def check_shares(batch_size: int, accumulate: int) -> None:
    """Refuse a number of parts and processes that does not divide a batch.

    Raises:
        TrainingError: it does not.
    """
    count = process_count()
    if accumulate < 1 or batch_size % accumulate:
        raise TrainingError(f"accumulate is {accumulate}; it must divide the batch size, {batch_size}.")
    if batch_size % (accumulate * count):
        parts = "" if accumulate == 1 else f" of {accumulate} parts each"
        raise TrainingError(
            f"{count} processes{parts} cannot share a batch of {batch_size} evenly; the batch size, which the recipe "
            "gives, is that of all processes together. Start a number of processes that divides it."
        )
