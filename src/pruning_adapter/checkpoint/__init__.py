"""Saving, loading and exporting adapters and the merged model."""

from pruning_adapter.checkpoint.adapter import save_adapter
from pruning_adapter.checkpoint.merged import load_pruned, merge, save_pruned
from pruning_adapter.checkpoint.stock import save_stock
from pruning_adapter.checkpoint.stream import prune_checkpoint
from pruning_adapter.checkpoint.transformers4 import save_for_transformers4
from pruning_adapter.checkpoint.uniform import save_uniform

__all__ = [
    "load_pruned",
    "merge",
    "prune_checkpoint",
    "save_adapter",
    "save_for_transformers4",
    "save_pruned",
    "save_stock",
    "save_uniform",
]
