"""The paired test, against the definition, against McNemar's exact test, and by hand."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pruning_adapter.reproduce.cells import Cell
from pruning_adapter.reproduce.grid import Done
from pruning_adapter.reproduce.significance import (
    chance_of_difference,
    chance_of_mean_difference,
    differences,
    half_interval,
    tell_chance,
    tell_difference,
    tell_mean,
)


def arm(*answers: list[int], metric: str = "accuracy") -> list[Done]:
    """An arm whose seeds give these answers; 1 is right."""
    return [
        Done(
            cell=Cell(recipe="default", task="rte", arm="any", seed=seed),
            result={"quality": {"validation": {"metrics": {metric: {"value": float(np.mean(said))}}}}},
            predictions={"validation": [float(each) for each in said]},
            labels={"validation": [1.0] * len(said)},
            seconds=1.0,
        )
        for seed, said in enumerate(answers)
    ]


answers = st.lists(st.tuples(*[st.integers(0, 1)] * 4), min_size=1, max_size=9)


@given(answers)
def test_p_counts_all_signs(rows: list[tuple[int, ...]]) -> None:
    """Two seeds: of all ways to give the examples' differences signs, as many are as far from zero."""
    first, second, third, fourth = (list(column) for column in zip(*rows, strict=True))
    gains = np.add(first, second) - np.add(third, fourth)
    sums = [abs(np.dot(signs, gains)) for signs in product((1, -1), repeat=len(gains))]
    expected = np.mean(np.array(sums) >= abs(gains.sum()))
    assert chance_of_difference(arm(first, second), arm(third, fourth)) == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 5))
def test_one_seed_is_mcnemars_exact_test(better: int, worse: int, alike: int) -> None:
    ours = [1] * better + [0] * worse + [1] * (alike + 1)
    theirs = [0] * better + [1] * worse + [1] * (alike + 1)
    expected = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert chance_of_difference(arm(ours), arm(theirs)) == pytest.approx(expected, abs=1e-9)


def test_tasks_that_tell_too_little_tell_enough_together() -> None:
    """Of 100 examples 10 become right and 4 wrong: alone p is 0.18; three such tasks are one of 30 right and 12 wrong.

    Of a million draws, the standard error of a p of 0.008 is 0.00009.
    """
    ours, theirs = arm([1] * 10 + [0] * 4 + [1] * 86), arm([0] * 10 + [1] * 4 + [1] * 86)
    alone = chance_of_difference(ours, theirs)
    assert alone is not None
    assert alone == pytest.approx(0.1796, abs=1e-4)
    together = chance_of_mean_difference([(ours, theirs)] * 3)
    assert together == pytest.approx(stats.binomtest(30, 42).pvalue, abs=0.0004)


def test_of_one_task_both_tests_say_the_same() -> None:
    ours, theirs = arm([1, 1, 1, 1, 0]), arm([0, 0, 0, 0, 0])
    assert chance_of_mean_difference([(ours, theirs)]) == chance_of_difference(ours, theirs) == 0.125


@settings(max_examples=10, deadline=None)
@given(answers, answers)
def test_tasks_count_alike_whatever_their_size(first: list[tuple[int, ...]], second: list[tuple[int, ...]]) -> None:
    """All signs of a few examples of two tasks, two seeds each; half a per cent is ten standard errors."""
    pairs: list[tuple[list[Done], list[Done]]] = []
    weights: list[float] = []
    for rows in (first, second):
        one, two, three, four = (list(column) for column in zip(*rows, strict=True))
        pairs.append((arm(one, two), arm(three, four)))
        weights += ((np.add(one, two) - np.add(three, four)) / len(rows)).tolist()
    told = [weight for weight in weights if weight]
    sums = np.array([np.dot(signs, told) for signs in product((1, -1), repeat=len(told))]) if told else np.zeros(1)
    expected = np.mean(np.abs(sums) >= abs(sum(told)) - 1e-9)
    assert chance_of_mean_difference(pairs) == pytest.approx(expected, abs=0.005)


def test_tasks_count_alike_however_many_examples_they_have() -> None:
    """One example of two weighs as much as fifty of a hundred."""
    small, large = (arm([1, 1]), arm([0, 1])), (arm([0] * 50 + [1] * 50), arm([1] * 100))
    assert chance_of_mean_difference([small, large]) == 1.0


def test_only_seeds_of_every_task_are_counted() -> None:
    better, same = (arm([1] * 8, [1] * 8), arm([0] * 8, [1] * 8)), (arm([1]), arm([1]))
    assert chance_of_mean_difference([better, same]) == chance_of_mean_difference(
        [(better[0][:1], better[1][:1]), same]
    )
    assert chance_of_mean_difference([better, (arm([1])[:0], arm([1]))]) is None
    assert chance_of_mean_difference([]) is None


def test_what_cannot_be_compared_has_no_p() -> None:
    assert chance_of_difference(arm([1]), []) is None
    assert chance_of_difference(arm([1], metric="pearson"), arm([0], metric="pearson")) is None


def test_differences_have_signs_and_nothing_has_plus() -> None:
    assert differences(arm([1, 1], [1, 0]), arm([1, 0])) == {0: 50.0}
    assert tell_difference([-0.04]) == "+0.0"
    assert tell_difference([-1.0, -2.0]) == "-1.5 ± 6.4"
    assert tell_mean([1.0, 2.0]) == "1.5 ± 6.4"
    assert half_interval([1.0]) is None


@pytest.mark.parametrize(
    ("chance", "told"), [(0.32, "p 0.32"), (0.004, "p 0.004"), (0.0, "p < 0.001"), (1.0, "p 1.00")]
)
def test_no_chance_is_told_as_none(chance: float, told: str) -> None:
    assert tell_chance(chance) == told
