"""What a few seeds and one validation set can tell: means with intervals, and paired tests on the same examples."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pruning_adapter.reproduce.grid import Done

__all__ = [
    "agreement",
    "chance_of_difference",
    "chance_of_mean_difference",
    "differences",
    "half_interval",
    "tell_chance",
    "tell_difference",
    "tell_mean",
]

DRAWS = 1_000_000


def half_interval(values: Sequence[float]) -> float | None:
    """Half the width of Student's 95 % interval of a mean; None for a single value."""
    if len(values) < 2:
        return None
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)


def tell_mean(values: Sequence[float]) -> str:
    """The mean with one decimal, ± half its interval where there are several values."""
    half = half_interval(values)
    return f"{np.mean(values):.1f}" if half is None else f"{np.mean(values):.1f} ± {half:.1f}"


def tell_difference(values: Sequence[float]) -> str:
    """As `tell_mean`, always with a sign."""
    half = half_interval(values)
    # Adding zero takes the sign from what rounds to nothing.
    told = f"{round(float(np.mean(values)), 1) + 0.0:+.1f}"
    return told if half is None else f"{told} ± {half:.1f}"


def tell_chance(chance: float) -> str:
    """With as many decimals as tell something."""
    if chance < 0.001:
        return "p < 0.001"
    return f"p {chance:.3f}" if chance < 0.01 else f"p {chance:.2f}"


def differences(ours: Sequence[Done], theirs: Sequence[Done]) -> dict[int, float]:
    """By seed that both arms have, how much more of the primary metric the first one reached, in points."""
    return {seed: 100 * (one.value - other.value) for seed, (one, other) in _pairs(ours, theirs).items()}


def chance_of_difference(ours: Sequence[Done], theirs: Sequence[Done]) -> float | None:
    """The probability that two arms' accuracies differ as much by chance alone, from the answers to the same examples.

    Exact, by all signs that the examples' differences (each the sum over the seeds that both arms have) could have; for
    one seed it is McNemar's exact test. So it tells whether other examples would say the same, not whether other seeds
    would.

    Returns:
        p, two-sided; None where no seed has both, or where the answers are not classes.
    """
    gains = _gains(_pairs(ours, theirs))
    if gains is None:
        return None
    sums, chances = _random_signs(gains)
    return min(1.0, float(chances[np.abs(sums) >= abs(gains.sum())].sum()))


def chance_of_mean_difference(tasks: Sequence[tuple[Sequence[Done], Sequence[Done]]]) -> float | None:
    """As `chance_of_difference`, of the mean over tasks that count alike, over the seeds that every task has.

    Tasks that each tell too little can tell enough together. Exact for one task; for several, a million draws from
    the exact distribution of each, always the same ones.

    Args:
        tasks: of each, the cells of both arms.

    Returns:
        p, two-sided; None where no seed has all, or where the answers of a task are not classes.
    """
    if len(tasks) == 1:
        return chance_of_difference(*tasks[0])
    of_tasks = [_pairs(ours, theirs) for ours, theirs in tasks]
    seeds = set[int].intersection(*(set(pairs) for pairs in of_tasks)) if of_tasks else set[int]()
    found = [_gains({seed: pairs[seed] for seed in seeds}) for pairs in of_tasks]
    of_classes = [gains for gains in found if gains is not None]
    if not of_classes or len(of_classes) < len(found):
        return None
    random = np.random.default_rng(0)
    total, drawn = 0.0, np.zeros(DRAWS)
    for gains in of_classes:
        sums, chances = _random_signs(gains)
        total += gains.sum() / len(gains)
        drawn += random.choice(sums, DRAWS, p=chances / chances.sum()) / len(gains)
    # What is seen is one of the draws, so that none is impossible.
    return float((1 + np.count_nonzero(np.abs(drawn) >= abs(total) - 1e-12)) / (1 + DRAWS))


def _random_signs(gains: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """All sums that gains with random signs can have, and the probability of each."""
    sizes, counts = np.unique(np.abs(gains[gains != 0]), return_counts=True)
    # From the lowest sum; every second one can be.
    chances = np.ones(1)
    for size, count in zip(sizes, counts, strict=True):
        of_size = np.zeros(size * count + 1)
        of_size[::size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, of_size)
    return 2 * np.arange(len(chances)) - (len(chances) - 1), chances


def agreement(ours: Done, theirs: Done) -> float:
    """The share of examples of the primary validation set to which both give the same answer."""
    return float(np.mean(_answers(ours) == _answers(theirs)))


def _pairs(ours: Sequence[Done], theirs: Sequence[Done]) -> dict[int, tuple[Done, Done]]:
    """By seed that both have."""
    by_seed, beside = ({done.cell.seed: done for done in side} for side in (ours, theirs))
    return {seed: (by_seed[seed], beside[seed]) for seed in sorted(by_seed.keys() & beside.keys())}


def _gains(pairs: Mapping[int, tuple[Done, Done]]) -> NDArray[np.int64] | None:
    """By example, in how many more seeds the first arm is right; None without seeds, or if answers are no classes."""
    if not pairs or any("accuracy" not in one.quality["metrics"] for one, _ in pairs.values()):
        return None
    return np.sum([_right(one) - _right(other) for one, other in pairs.values()], axis=0)


def _right(done: Done) -> NDArray[np.int64]:
    """1 where the answer is right, else 0, for every example of the primary validation set."""
    return (_answers(done) == np.asarray(done.labels[done.primary])).astype(np.int64)


def _answers(done: Done) -> NDArray[np.float64]:
    return np.asarray(done.predictions[done.primary])
