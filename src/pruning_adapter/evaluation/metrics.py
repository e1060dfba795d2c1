"""GLUE's metrics, each with a 95 % interval: Wilson's for accuracy, a seeded percentile bootstrap for the others."""

import difflib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats
from sklearn import metrics as sklearn_metrics

from pruning_adapter.errors import DataError, TrainingError
from pruning_adapter.evaluation.result import Measure, Quality

__all__ = ["METRICS", "RESAMPLES", "Metric", "measure_quality"]

Array = NDArray[Any]

RESAMPLES = 1000
# Of resamples times examples held at once: 8 MiB of float64.
_CHUNK = 2**20
# F1 is 0 where it is undefined, without a warning. A dict, because checkers infer a string from scikit-learn's default.
_ZERO_DIVISION: dict[str, Any] = {"zero_division": 0.0}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric of predictions and labels, both (examples,)."""

    value: Callable[[Array, Array], float]
    """(predictions, labels) to the metric."""
    resampled: Callable[[Array, Array, Array], Array] | None
    """(predictions, labels, counts) to the metric of every resample, (resamples,); `counts` (resamples, examples) says
    how often each example was drawn. None: a proportion, whose interval is Wilson's."""
    regression: bool = False


def measure_quality(metric_names: Sequence[str], *, scores: Array, labels: Array, seed: int = 0) -> Quality:
    """Return how well `scores` predict `labels`, each metric with its 95 % interval.

    Args:
        metric_names: keys of `METRICS`, the primary one first.
        scores: logits (examples, classes), of which the largest predicts; for regression (examples,) or (examples, 1).
        labels: class numbers, or values for regression, (examples,).
        seed: of the bootstrap; the same seed gives the same intervals.

    Raises:
        DataError: an unknown metric, one that does not fit the scores, or arrays that do not fit each other.
        TrainingError: scores that are not finite numbers.
    """
    if len(scores) != len(labels) or len(labels) == 0:
        raise DataError(
            f"Got {len(scores)} scores for {len(labels)} labels: one for each, and at least one, is needed."
        )
    broken = int((~np.isfinite(scores)).sum())
    if broken:
        raise TrainingError(
            f"{broken} of the model's {scores.size} scores are NaN or infinite: training diverged. "
            "Lower the learning rate, or train in float32."
        )
    regression = scores.ndim == 1 or scores.shape[1] == 1
    metrics = {name: _find_metric(name, scores, regression) for name in metric_names}
    if regression:
        predictions, labels = scores.reshape(-1).astype(np.float64), _check_values(labels)
    else:
        predictions, labels = scores.argmax(axis=1), _check_classes(labels, scores.shape[1])
    return Quality(
        metrics={name: _measure(metric, predictions, labels, seed) for name, metric in metrics.items()},
        examples=len(labels),
        majority_rate=None if regression else float(np.bincount(labels).max() / len(labels)),
        at_majority=bool(np.ptp(predictions) == 0 and np.ptp(labels) != 0),
        loss=_mean_loss(scores.astype(np.float64), labels, regression),
    )


def _mean_loss(scores: Array, labels: Array, regression: bool) -> float:
    if regression:
        return float(np.square(scores.reshape(-1) - labels).mean())
    return float(-special.log_softmax(scores, axis=1)[np.arange(len(labels)), labels].mean())


def _find_metric(name: str, scores: Array, regression: bool) -> Metric:
    if name not in METRICS:
        close = difflib.get_close_matches(name, METRICS, n=1)
        guess = f" Did you mean {close[0]!r}?" if close else ""
        raise DataError(f"There is no metric {name!r}; the metrics are {', '.join(METRICS)}.{guess}")
    metric = METRICS[name]
    if metric.regression != regression:
        fitting = ", ".join(other for other, value in METRICS.items() if value.regression == regression)
        kind = "regression" if regression else "classification"
        raise DataError(f"The metric {name!r} does not fit {kind} scores of shape {scores.shape}; choose of {fitting}.")
    if name == "f1" and scores.shape[1] != 2:
        raise DataError(f"The metric 'f1' needs two classes, not {scores.shape[1]}; 'f1_macro' takes any number.")
    return metric


def _check_classes(labels: Array, classes: int) -> Array:
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"Labels run from {labels.min()} to {labels.max()}, but the scores are of classes 0 to {classes - 1}. "
            "Evaluate on the task that the model was trained for."
        )
    return labels.astype(np.int64)


def _check_values(labels: Array) -> Array:
    if not np.isfinite(labels).all():
        raise DataError("Some labels are NaN or infinite: correct them, or remove their rows.")
    return labels.astype(np.float64)


def _measure(metric: Metric, predictions: Array, labels: Array, seed: int) -> Measure:
    value = metric.value(predictions, labels)
    if metric.resampled is None:
        right = stats.binomtest(int((predictions == labels).sum()), len(labels))
        low, high = right.proportion_ci(confidence_level=0.95, method="wilson")
    else:
        low, high = np.percentile(_resample(metric.resampled, predictions, labels, seed), [2.5, 97.5])
    # With very few examples the percentiles can miss the value itself; an interval that a figure draws must not.
    return Measure(value=value, low=min(float(low), value), high=max(float(high), value))


def _resample(metric: Callable[[Array, Array, Array], Array], predictions: Array, labels: Array, seed: int) -> Array:
    generator = np.random.default_rng(seed)
    examples = len(labels)
    values: list[Array] = []
    chunk = max(1, _CHUNK // examples)
    for start in range(0, RESAMPLES, chunk):
        resamples = min(chunk, RESAMPLES - start)
        drawn = generator.integers(examples, size=(resamples, examples)) + examples * np.arange(resamples)[:, None]
        counts = np.bincount(drawn.reshape(-1), minlength=resamples * examples).reshape(resamples, examples)
        values.append(metric(predictions, labels, counts.astype(np.float64)))
    return np.concatenate(values)


def _divide(numerator: Array, denominator: Array) -> Array:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _one_hot(classes: Array, number: int) -> Array:
    return np.eye(number)[classes]


def _accuracy(predictions: Array, labels: Array) -> float:
    return float(sklearn_metrics.accuracy_score(labels, predictions))


def _f1(predictions: Array, labels: Array) -> float:
    return float(sklearn_metrics.f1_score(labels, predictions, pos_label=1, **_ZERO_DIVISION))


def _resampled_f1(predictions: Array, labels: Array, counts: Array) -> Array:
    predicted, true = (predictions == 1).astype(np.float64), (labels == 1).astype(np.float64)
    return _divide(2 * (counts @ (predicted * true)), counts @ (predicted + true))


def _f1_macro(predictions: Array, labels: Array) -> float:
    return float(sklearn_metrics.f1_score(labels, predictions, average="macro", **_ZERO_DIVISION))


def _resampled_f1_macro(predictions: Array, labels: Array, counts: Array) -> Array:
    classes = int(max(predictions.max(), labels.max())) + 1
    predicted, true = _one_hot(predictions, classes), _one_hot(labels, classes)
    occurrences = counts @ (predicted + true)
    f1 = _divide(2 * (counts @ (predicted * true)), occurrences)
    # As scikit-learn does: the mean over the classes that occur.
    return f1.sum(axis=1) / (occurrences > 0).sum(axis=1)


def _matthews(predictions: Array, labels: Array) -> float:
    # scikit-learn gives 0 for these too, after a warning.
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(sklearn_metrics.matthews_corrcoef(labels, predictions))


def _resampled_matthews(predictions: Array, labels: Array, counts: Array) -> Array:
    classes = int(max(predictions.max(), labels.max())) + 1
    predicted, true = counts @ _one_hot(predictions, classes), counts @ _one_hot(labels, classes)
    right = counts @ (predictions == labels).astype(np.float64)
    total = float(len(labels))
    covariance = right * total - (predicted * true).sum(axis=1)
    variances = (total**2 - (predicted**2).sum(axis=1)) * (total**2 - (true**2).sum(axis=1))
    return _divide(covariance, np.sqrt(variances))


def _pearson(predictions: Array, labels: Array) -> float:
    return _correlation(stats.pearsonr, predictions, labels)


def _spearman(predictions: Array, labels: Array) -> float:
    return _correlation(stats.spearmanr, predictions, labels)


def _correlation(function: Callable[[Array, Array], Any], predictions: Array, labels: Array) -> float:
    # Undefined without variation on both sides; who predicts one value knows nothing, which is what 0 says.
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    with warnings.catch_warnings():
        # Predictions that collapsed to almost one value: `at_majority` and the value itself tell.
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        value = float(function(predictions, labels).statistic)
    return value if np.isfinite(value) else 0.0


def _resampled_pearson(predictions: Array, labels: Array, counts: Array) -> Array:
    return _correlate(predictions[None], labels[None], counts)


def _resampled_spearman(predictions: Array, labels: Array, counts: Array) -> Array:
    return _correlate(_rank(predictions, counts), _rank(labels, counts), counts)


def _correlate(predictions: Array, labels: Array, counts: Array) -> Array:
    first, second = _center(predictions, counts), _center(labels, counts)
    covariance = (counts * first * second).sum(axis=1)
    return _divide(covariance, np.sqrt((counts * first**2).sum(axis=1) * (counts * second**2).sum(axis=1)))


def _center(values: Array, counts: Array) -> Array:
    centered = values - (counts * values).sum(axis=1, keepdims=True) / counts.sum(axis=1, keepdims=True)
    # A resample of one value would otherwise keep rounding errors, which correlate with anything.
    return np.where(np.abs(centered) > 1e-14 * np.abs(values).max(), centered, 0.0)


def _rank(values: Array, counts: Array) -> Array:
    """Ranks of `values` within each resample, ties at their mean rank, (resamples, examples), without sorting again."""
    distinct, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(distinct)))
    sizes = np.add.reduceat(counts[:, order], starts, axis=1)
    return (np.cumsum(sizes, axis=1) - (sizes - 1) / 2)[:, group]


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(value=_accuracy, resampled=None),
    "f1": Metric(value=_f1, resampled=_resampled_f1),
    "f1_macro": Metric(value=_f1_macro, resampled=_resampled_f1_macro),
    "matthews": Metric(value=_matthews, resampled=_resampled_matthews),
    "pearson": Metric(value=_pearson, resampled=_resampled_pearson, regression=True),
    "spearman": Metric(value=_spearman, resampled=_resampled_spearman, regression=True),
}
"""By the names that tasks use. Matthews and the correlations run from -1 to 1, the others from 0 to 1."""
