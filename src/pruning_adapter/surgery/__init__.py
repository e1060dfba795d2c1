"""Smaller matrices: heads and neurons are taken out of a model, physically, and what stays is corrected for them."""

from pruning_adapter.surgery.fuse import fuse_
from pruning_adapter.surgery.prune import prune_
from pruning_adapter.surgery.reconstruct import reconstruct_

__all__ = ["fuse_", "prune_", "reconstruct_"]
