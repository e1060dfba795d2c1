"""Batches of examples of similar length, in an order that depends on the seed and the epoch alone."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

__all__ = ["LengthGroups"]

GROUPS = 4
"""Into so many groups, at the least, an epoch is cut at random before each is sorted by length."""
LARGEST = 50
"""Batches of a group, at the most."""


class LengthGroups(Sampler[int]):
    """Indices of examples, so that those of one batch have similar lengths, and the batches come in random order.

    The sampler of Transformers (5.23) leaves the batches of each group in the order of their lengths, so that a part of
    an epoch sees long examples only; and it draws from the global generator, so that a training that goes on within an
    epoch meets other examples than one that never stopped.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int) -> None:
        """Args:
        lengths: of all examples, in tokens.
        batch_size: of a whole optimizer step.
        seed: of the order.
        """
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Every epoch has an order of its own; the Trainer says which begins."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        # NumPy's, because torch's (2.13) hears only 32 bits of its seed: no room for a pair.
        generator = np.random.default_rng([self.seed, self.epoch])
        mixed: list[int] = generator.permutation(len(self.lengths)).tolist()
        size = self.batch_size * max(1, min(len(mixed) // (self.batch_size * GROUPS), LARGEST))
        groups = [mixed[start : start + size] for start in range(0, len(mixed), size)]
        ordered = [index for group in groups for index in sorted(group, key=self.lengths.__getitem__)]
        batches = [ordered[start : start + self.batch_size] for start in range(0, len(ordered), self.batch_size)]
        # Only the last batch may be smaller, so it stays where it is.
        last = [batches.pop()] if len(ordered) % self.batch_size else []
        batches = [batches[place] for place in generator.permutation(len(batches))]
        return iter([index for batch in batches + last for index in batch])
