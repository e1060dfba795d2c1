"""How much each head matters for a task, and the controls that every claim is compared with."""

from pruning_adapter.importance.batching import LengthSortedBatches
from pruning_adapter.importance.controls import (
    magnitude_importance,
    random_importance,
    reversed_importance,
    shuffled_importance,
)
from pruning_adapter.importance.estimate import measure_importance
from pruning_adapter.importance.gates import gated
from pruning_adapter.importance.scores import ImportanceScores
from pruning_adapter.importance.surgeon import obs_importance

__all__ = [
    "ImportanceScores",
    "LengthSortedBatches",
    "gated",
    "magnitude_importance",
    "measure_importance",
    "obs_importance",
    "random_importance",
    "reversed_importance",
    "shuffled_importance",
]
