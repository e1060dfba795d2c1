"""One dense base in memory, many tasks on it."""

from pruning_adapter.serving.tasks import Predictions, PrunedTasks

__all__ = ["Predictions", "PrunedTasks"]
