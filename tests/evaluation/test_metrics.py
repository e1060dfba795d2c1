"""Metrics by hand, intervals by formula, and the bootstrap against the metrics themselves."""

import math
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from pruning_adapter.errors import DataError, TrainingError
from pruning_adapter.evaluation.metrics import METRICS, measure_quality
from pruning_adapter.pipeline.describe import warn

pytestmark = pytest.mark.filterwarnings("error")

# Binary: 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
TRUE = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])
SAID = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])


def to_logits(predictions: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    return np.eye(classes)[predictions] * 3 - 1


def test_binary_metrics_by_hand() -> None:
    quality = measure_quality(["accuracy", "f1", "matthews"], scores=to_logits(SAID, 2), labels=TRUE)
    assert list(quality.metrics) == ["accuracy", "f1", "matthews"]
    assert quality.metrics["accuracy"].value == pytest.approx(7 / 10)
    # precision 3/4, recall 3/5
    assert quality.metrics["f1"].value == pytest.approx(2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5))
    assert quality.metrics["matthews"].value == pytest.approx(
        (3 * 4 - 1 * 2) / math.sqrt((3 + 1) * (3 + 2) * (4 + 1) * (4 + 2))
    )
    assert quality.examples == 10
    assert quality.majority_rate == 0.5
    assert not quality.at_majority


def test_f1_macro_by_hand() -> None:
    labels, said = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 2, 0])
    quality = measure_quality(["f1_macro"], scores=to_logits(said, 3), labels=labels)
    # class 0: precision 1/2, recall 1/2; class 1: precision 2/3, recall 1; class 2: precision 1, recall 1/2
    assert quality.metrics["f1_macro"].value == pytest.approx((1 / 2 + 4 / 5 + 2 / 3) / 3)


def test_correlations_by_hand() -> None:
    labels, scores = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 10.0])
    quality = measure_quality(["pearson", "spearman"], scores=scores, labels=labels)
    # deviations of the labels (-1.5, -.5, .5, 1.5), of the scores (-3, -1, -2, 6)
    assert quality.metrics["pearson"].value == pytest.approx((4.5 + 0.5 - 1 + 9) / math.sqrt(5 * 50))
    # 1 - 6 (0 + 1 + 1 + 0) / (4 (16 - 1))
    assert quality.metrics["spearman"].value == pytest.approx(0.8)
    assert quality.majority_rate is None


def test_a_column_of_scores_is_regression_too() -> None:
    labels, scores = np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.3, 0.2])
    flat = measure_quality(["pearson"], scores=scores, labels=labels)
    assert measure_quality(["pearson"], scores=scores[:, None], labels=labels) == flat


@pytest.mark.parametrize(("right", "total"), [(7, 10), (0, 5), (5, 5), (812, 1000)])
def test_the_interval_of_accuracy_is_wilsons(right: int, total: int) -> None:
    labels = np.zeros(total, dtype=np.int64)
    said = np.where(np.arange(total) < right, 0, 1)
    measure = measure_quality(["accuracy"], scores=to_logits(said, 2), labels=labels).metrics["accuracy"]
    z, share = 1.959963984540054, right / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    assert measure.low == pytest.approx(middle - half, abs=1e-12)
    assert measure.high == pytest.approx(middle + half, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "classes"), [("f1", 2), ("f1_macro", 2), ("f1_macro", 5), ("matthews", 2), ("matthews", 5)]
)
@pytest.mark.filterwarnings("ignore")
def test_resampled_classification_equals_the_metric_of_each_resample(name: str, classes: int) -> None:
    generator = np.random.default_rng(classes)
    labels, said = generator.integers(classes, size=(2, 12))
    counts = generator.multinomial(12, np.full(12, 1 / 12), size=50)
    expected = [METRICS[name].value(np.repeat(said, row), np.repeat(labels, row)) for row in counts]
    resampled = METRICS[name].resampled
    assert resampled is not None
    np.testing.assert_allclose(resampled(said, labels, counts.astype(float)), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("size", [3, 25])
def test_resampled_correlation_equals_the_metric_of_each_resample(name: str, size: int) -> None:
    generator = np.random.default_rng(size)
    # Ties on both sides, resamples of one value at size 3, and an offset that invites rounding errors.
    labels, said = generator.integers(6, size=size) / 3, generator.integers(4, size=size) / 7 + 100
    counts = generator.multinomial(size, np.full(size, 1 / size), size=60)
    expected = [METRICS[name].value(np.repeat(said, row), np.repeat(labels, row)) for row in counts]
    resampled = METRICS[name].resampled
    assert resampled is not None
    np.testing.assert_allclose(resampled(said, labels, counts.astype(float)), expected, atol=1e-9)


@pytest.mark.parametrize(("examples", "share"), [(400, 0.8), (4000, 0.6)])
def test_the_bootstrap_agrees_with_theory_on_pearson(examples: int, share: float) -> None:
    generator = np.random.default_rng(0)
    labels = generator.normal(size=examples)
    said = share * labels + math.sqrt(1 - share**2) * generator.normal(size=examples)
    measure = measure_quality(["pearson"], scores=said, labels=labels).metrics["pearson"]
    # Fisher: atanh(r) is normal with deviation 1 / sqrt(n - 3) for normal data.
    half = 1.959963984540054 / math.sqrt(examples - 3)
    low, high = math.tanh(math.atanh(measure.value) - half), math.tanh(math.atanh(measure.value) + half)
    assert measure.low == pytest.approx(low, abs=0.15 * (high - low))
    assert measure.high == pytest.approx(high, abs=0.15 * (high - low))


def test_the_same_seed_gives_the_same_interval_and_another_gives_another() -> None:
    generator = np.random.default_rng(0)
    labels, scores = generator.integers(2, size=200), generator.normal(size=(200, 2))
    first = measure_quality(["f1"], scores=scores, labels=labels, seed=1)
    assert measure_quality(["f1"], scores=scores, labels=labels, seed=1) == first
    other = measure_quality(["f1"], scores=scores, labels=labels, seed=2)
    assert other.metrics["f1"].value == first.metrics["f1"].value
    assert other.metrics["f1"] != first.metrics["f1"]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_interval_always_contains_its_value(size: int) -> None:
    labels = np.arange(size) % 2
    classified = measure_quality(["accuracy", "f1", "f1_macro", "matthews"], scores=to_logits(labels, 2), labels=labels)
    scored = measure_quality(["pearson", "spearman"], scores=np.arange(size) / 3, labels=np.arange(size) * 1.0)
    for measure in (*classified.metrics.values(), *scored.metrics.values()):
        assert measure.low <= measure.value <= measure.high


def test_ten_thousand_examples_take_a_moment() -> None:
    generator = np.random.default_rng(0)
    labels = generator.normal(size=10_000)
    scores = labels + generator.normal(size=10_000)
    start = time.process_time()
    measure_quality(["pearson", "spearman"], scores=scores, labels=labels)
    measure_quality(["f1", "matthews"], scores=np.stack([-scores, scores], axis=1), labels=(labels > 0).astype(int))
    # Four bootstraps take about 2 s on one slow core; one resample at a time would take a minute.
    assert time.process_time() - start < 15


def test_saying_one_class_is_at_majority_and_worth_nothing() -> None:
    labels = np.array([1, 1, 1, 0])
    quality = measure_quality(
        ["accuracy", "f1", "f1_macro", "matthews"], scores=to_logits(np.ones(4, int), 2), labels=labels
    )
    assert quality.at_majority
    assert quality.majority_rate == 0.75
    assert quality.metrics["accuracy"].value == 0.75
    assert quality.metrics["matthews"].value == 0.0
    never = measure_quality(["f1"], scores=to_logits(np.zeros(4, int), 2), labels=labels)
    assert never.metrics["f1"].value == 0.0


def test_where_there_is_one_class_one_answer_is_no_failure() -> None:
    quality = measure_quality(["accuracy"], scores=to_logits(np.ones(4, int), 2), labels=np.ones(4, int))
    assert not quality.at_majority
    (said,) = warn({"dev": quality})
    assert said.startswith("All 4 examples of dev are of one class")
    stuck = measure_quality(["accuracy"], scores=to_logits(np.ones(4, int), 2), labels=np.array([0, 1, 1, 1]))
    (said,) = warn({"dev": stuck})
    assert "as if it only knew the majority class" in said


def test_no_positives_at_all_is_an_f1_of_zero() -> None:
    quality = measure_quality(["f1"], scores=to_logits(np.zeros(4, int), 2), labels=np.zeros(4, int))
    assert quality.metrics["f1"].value == 0.0


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_correlation_with_a_constant_is_zero(name: str, constant: float) -> None:
    varied = np.array([1.0, 2.0, 4.0, 8.0])
    quality = measure_quality([name], scores=np.full((4, 1), constant, dtype=np.float32), labels=varied)
    assert quality.at_majority
    measure = quality.metrics[name]
    assert (measure.value, measure.low, measure.high) == (0.0, 0.0, 0.0)
    assert measure_quality([name], scores=varied, labels=np.full(4, constant)).metrics[name].value == 0.0


def test_almost_constant_predictions_raise_no_warning() -> None:
    scores = 1 + np.array([0.0, 1e-15, 0.0, 2e-15])
    value = measure_quality(["pearson"], scores=scores, labels=np.array([1.0, 2.0, 4.0, 8.0])).metrics["pearson"].value
    assert -1 <= value <= 1


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_scores_that_are_no_numbers_stop_the_run(broken: float) -> None:
    scores = to_logits(SAID, 2)
    scores[3, 1] = broken
    with pytest.raises(TrainingError, match=r"1 of the model's 20 scores are NaN or infinite: training diverged"):
        measure_quality(["accuracy"], scores=scores, labels=TRUE)


@pytest.mark.parametrize(
    ("names", "scores", "labels", "message"),
    [
        pytest.param(["acuracy"], to_logits(SAID, 2), TRUE, r"no metric 'acuracy'.*Did you mean 'accuracy'", id="name"),
        pytest.param(
            ["pearson"], to_logits(SAID, 2), TRUE, r"'pearson' does not fit classification .*f1", id="classes"
        ),
        pytest.param(["f1"], np.ones(10), TRUE, r"'f1' does not fit regression .*pearson, spearman", id="regression"),
        pytest.param(
            ["f1"], to_logits(SAID, 3), TRUE, r"'f1' needs two classes, not 3; 'f1_macro'", id="three classes"
        ),
        pytest.param(["accuracy"], to_logits(SAID, 2), TRUE[:9], r"10 scores for 9 labels", id="lengths"),
        pytest.param(["accuracy"], np.zeros((0, 2)), TRUE[:0], r"0 scores for 0 labels", id="nothing"),
        pytest.param(["accuracy"], to_logits(SAID, 2), TRUE + 1, r"run from 1 to 2, .*classes 0 to 1", id="labels"),
        pytest.param(["pearson"], np.ones(2), np.array([1, math.nan]), r"labels are NaN or infinite", id="NaN label"),
    ],
)
def test_what_does_not_fit_is_an_error(
    names: list[str], scores: NDArray[np.float64], labels: NDArray[np.float64], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        measure_quality(names, scores=scores, labels=labels)
