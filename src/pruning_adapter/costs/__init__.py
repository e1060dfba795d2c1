"""What a model costs: counted operations, bytes, and how its time falls with its widths."""

from pruning_adapter.costs.latency import LatencyTable

__all__ = ["LatencyTable"]
