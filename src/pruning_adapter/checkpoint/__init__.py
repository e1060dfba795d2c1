"""Saving and loading the merged model."""

from pruning_adapter.checkpoint.merged import load_pruned, merge, save_pruned

__all__ = ["load_pruned", "merge", "save_pruned"]
