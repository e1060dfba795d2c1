"""Pruning-Adapter: fine-tune a transformer cheaply, and serve it cheaply.

Importing this package is quick: names are loaded when they are first used. Transformers and PEFT learn to load what we
save as soon as both they and this package are imported, in either order.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import pruning_adapter.architectures as _architectures
from pruning_adapter.hooks import install as _install_hooks

if TYPE_CHECKING:
    from pruning_adapter.adapter import (
        PruneLoraConfig,
        lift_adapter,
        plain_lora_config,
        quantize_base_,
        slice_adapter,
    )
    from pruning_adapter.checkpoint import load_pruned, prune_checkpoint, save_adapter, save_pruned
    from pruning_adapter.costs import LatencyTable
    from pruning_adapter.evaluation.latency import measure_latency
    from pruning_adapter.importance import (
        ImportanceScores,
        gated,
        magnitude_importance,
        measure_importance,
        obs_importance,
        random_importance,
        reversed_importance,
        shuffled_importance,
    )
    from pruning_adapter.planning import PruningPlan, RankPlan, plan_pruning, plan_ranks
    from pruning_adapter.publish import push_run
    from pruning_adapter.serving import PrunedTasks
    from pruning_adapter.surgery import prune_, reconstruct_

__version__ = "0.1.0"

__all__ = [
    "ImportanceScores",
    "LatencyTable",
    "PruneLoraConfig",
    "PrunedTasks",
    "PruningPlan",
    "RankPlan",
    "gated",
    "lift_adapter",
    "load_pruned",
    "magnitude_importance",
    "measure_importance",
    "measure_latency",
    "obs_importance",
    "plain_lora_config",
    "plan_pruning",
    "plan_ranks",
    "prune_",
    "prune_checkpoint",
    "push_run",
    "quantize_base_",
    "random_importance",
    "reconstruct_",
    "reversed_importance",
    "save_adapter",
    "save_pruned",
    "shuffled_importance",
    "slice_adapter",
]

_HOME = {
    "PruneLoraConfig": "adapter",
    "lift_adapter": "adapter",
    "plain_lora_config": "adapter",
    "slice_adapter": "adapter",
    "quantize_base_": "adapter",
    "load_pruned": "checkpoint",
    "prune_checkpoint": "checkpoint",
    "save_adapter": "checkpoint",
    "save_pruned": "checkpoint",
    "LatencyTable": "costs",
    "measure_latency": "evaluation.latency",
    "ImportanceScores": "importance",
    "gated": "importance",
    "magnitude_importance": "importance",
    "measure_importance": "importance",
    "obs_importance": "importance",
    "random_importance": "importance",
    "reversed_importance": "importance",
    "shuffled_importance": "importance",
    "PruningPlan": "planning",
    "RankPlan": "planning",
    "plan_pruning": "planning",
    "plan_ranks": "planning",
    "PrunedTasks": "serving",
    "push_run": "publish",
    "prune_": "surgery",
    "reconstruct_": "surgery",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


# The families must be known before anybody waits for their modules.
del _architectures
_install_hooks()
