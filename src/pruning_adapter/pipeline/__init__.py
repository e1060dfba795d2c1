"""The whole way, from a model and a task to a smaller, trained, merged model."""

from pruning_adapter.pipeline.run import PREDICTIONS, Run
from pruning_adapter.pipeline.start import TRAINING

__all__ = ["PREDICTIONS", "TRAINING", "Run"]
