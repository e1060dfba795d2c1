"""Smaller matrices: heads and neurons are taken out of a model, physically, and what stays is corrected for them."""

from pruning_adapter.surgery.prune import prune_
from pruning_adapter.surgery.reconstruct import reconstruct_

__all__ = ["prune_", "reconstruct_"]
