"""Saving, loading and exporting the merged model."""

from pruning_adapter.checkpoint.merged import load_pruned, merge, save_pruned
from pruning_adapter.checkpoint.stock import save_stock
from pruning_adapter.checkpoint.stream import prune_checkpoint
from pruning_adapter.checkpoint.transformers4 import save_for_transformers4
from pruning_adapter.checkpoint.uniform import save_uniform

__all__ = [
    "load_pruned",
    "merge",
    "prune_checkpoint",
    "save_for_transformers4",
    "save_pruned",
    "save_stock",
    "save_uniform",
]
