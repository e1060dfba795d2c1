"""What a few seeds and one validation set can tell: means with intervals, and paired tests on the same examples."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pruning_adapter.reproduce.grid import Done

__all__ = ["agreement", "chance_of_difference", "half_interval", "tell_mean"]


def half_interval(values: Sequence[float]) -> float | None:
    """Half the width of Student's 95 % interval of a mean; None for a single value."""
    if len(values) < 2:
        return None
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)


def tell_mean(values: Sequence[float]) -> str:
    """The mean with one decimal, ± half its interval where there are several values."""
    half = half_interval(values)
    return f"{np.mean(values):.1f}" if half is None else f"{np.mean(values):.1f} ± {half:.1f}"


def chance_of_difference(ours: Sequence[Done], theirs: Sequence[Done]) -> float | None:
    """The probability that two arms' accuracies differ this much by chance, from the answers to the same examples.

    By permutation of the signs of the examples' differences (each the mean over the seeds that both arms have), so it
    tells whether other examples would say the same, not whether other seeds would.

    Returns:
        p, two-sided; None where no seed has both, or where the answers are not classes.
    """
    by_seed, beside = ({done.cell.seed: done for done in side} for side in (ours, theirs))
    seeds = sorted(by_seed.keys() & beside.keys())
    if not seeds or "accuracy" not in next(iter(by_seed[seeds[0]].result["quality"].values()))["metrics"]:
        return None
    gains = np.mean([_right(by_seed[seed]) - _right(beside[seed]) for seed in seeds], axis=0)
    if not gains.any():
        return 1.0
    tested = stats.permutation_test(
        (gains,),
        np.mean,
        permutation_type="samples",
        n_resamples=9999,
        # All at once would take gigabytes for MNLI.
        batch=64,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(tested.pvalue)


def agreement(ours: Done, theirs: Done) -> float:
    """The share of examples of the primary validation set to which both give the same answer."""
    return float(np.mean(_answers(ours) == _answers(theirs)))


def _right(done: Done) -> NDArray[np.float64]:
    """1 where the answer is right, else 0, for every example of the primary validation set."""
    return (_answers(done) == np.asarray(done.labels[_primary(done)])).astype(np.float64)


def _answers(done: Done) -> NDArray[np.float64]:
    return np.asarray(done.predictions[_primary(done)])


def _primary(done: Done) -> str:
    return next(iter(done.result["quality"]))
