"""Saving and loading adapters and the merged model."""

from pruning_adapter.checkpoint.adapter import save_adapter
from pruning_adapter.checkpoint.merged import load_pruned, merge, save_pruned
from pruning_adapter.checkpoint.stream import prune_checkpoint

__all__ = ["load_pruned", "merge", "prune_checkpoint", "save_adapter", "save_pruned"]
