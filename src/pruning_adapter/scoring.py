"""From a run's settings, a model and examples to scores."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from torch import Tensor, nn

from pruning_adapter.importance import (
    ImportanceScores,
    magnitude_importance,
    measure_importance,
    obs_importance,
    random_importance,
    reversed_importance,
    shuffled_importance,
)
from pruning_adapter.settings import Settings

__all__ = ["score_from_settings"]

_LOGGER = logging.getLogger(__name__)

Batches = Iterable[Mapping[str, Tensor]]


def score_from_settings(settings: Settings, model: nn.Module, sample: Callable[[], Batches]) -> ImportanceScores:
    """The scores that the settings ask for.

    Args:
        settings: which scorer, and of which units.
        model: see `measure_importance`.
        sample: draws the batches; not called where nothing is measured.

    Raises:
        ArchitectureError, ImportanceError: see `measure_importance`.
    """
    scorer = settings.chosen("scorer")
    if scorer == "random":
        return random_importance(model, seed=settings.seed, units=settings.kinds)
    if scorer == "magnitude":
        return magnitude_importance(model, units=settings.kinds)
    if scorer in ("reversed", "shuffled"):
        scores = _measure(settings, settings.measured_scorer, model, sample())
        return reversed_importance(scores) if scorer == "reversed" else shuffled_importance(scores, seed=settings.seed)
    return _measure(settings, scorer, model, sample())


def _measure(settings: Settings, scorer: str, model: nn.Module, batches: Batches) -> ImportanceScores:
    if scorer == "obs":
        return obs_importance(model, batches, units=settings.kinds)
    scores = measure_importance(
        model,
        batches,
        units=settings.kinds,
        order=settings.chosen("order"),
        reduction=cast(Any, settings.reduction),
        stop_when_stable=settings.stop_when_stable,
    )
    stable = settings.stop_when_stable is not None and (scores.agreement or 0.0) >= settings.stop_when_stable
    if stable and scores.examples < settings.examples:
        _LOGGER.info("stopped after %d examples: their halves agree to %.2f", scores.examples, scores.agreement)
    return scores
