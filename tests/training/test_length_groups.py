"""The order of training examples: similar lengths together, batches mixed, the same after an interruption."""

import numpy as np
import pytest

from pruning_adapter.training.length_groups import LengthGroups

LENGTHS = np.random.default_rng(0).integers(4, 128, 1000).tolist()


def batches(sampler: LengthGroups) -> list[list[int]]:
    order = list(sampler)
    return [order[start : start + 8] for start in range(0, len(order), 8)]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 31, 1000])
def test_every_example_comes_once_an_epoch(count: int) -> None:
    assert sorted(LengthGroups(LENGTHS[:count], 8, seed=1)) == list(range(count))


def test_a_batch_holds_similar_lengths() -> None:
    """Within a batch lengths spread a tenth as far as over all; shuffled ones would spread as far."""
    spread = np.mean(
        [np.std([LENGTHS[index] for index in batch]) for batch in batches(LengthGroups(LENGTHS, 8, seed=0))]
    )
    assert spread < 0.1 * np.std(LENGTHS)


def test_the_batches_come_in_no_order_of_length() -> None:
    longest = [max(LENGTHS[index] for index in batch) for batch in batches(LengthGroups(LENGTHS, 8, seed=0))]
    turns = np.mean(np.diff(np.sign(np.diff(longest))) != 0)
    # Of any three mixed numbers the middle one is an end with a chance of 2 in 3; in sorted ones never.
    assert turns > 0.5


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    orders: dict[tuple[int, int], list[int]] = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            sampler = LengthGroups(LENGTHS, 8, seed=seed)
            sampler.set_epoch(epoch)
            assert list(sampler) == list(sampler)
            orders[seed, epoch] = list(sampler)
    assert len({tuple(order) for order in orders.values()}) == 4
