"""Smaller matrices: heads are taken out of a model, physically."""

from pruning_adapter.surgery.prune import prune_

__all__ = ["prune_"]
