"""Saving and loading the merged model."""

from pruning_adapter.checkpoint.merged import load_pruned, merge, save_pruned
from pruning_adapter.checkpoint.stream import prune_checkpoint

__all__ = ["load_pruned", "merge", "prune_checkpoint", "save_pruned"]
