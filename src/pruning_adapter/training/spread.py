"""What a run cannot do while the model's weights are spread over its processes (FSDP2)."""

import logging
import os

from pruning_adapter.errors import TrainingError
from pruning_adapter.processes import process_count

__all__ = ["check_spread"]

_LOGGER = logging.getLogger(__name__)


def check_spread(method: str, prune_after: float) -> None:
    """Refuse what needs whole weights in the midst of a training.

    Args:
        method: of the run.
        prune_after: share of the training before the pruning.

    Raises:
        TrainingError: which, and what to do.
    """
    # What `accelerate launch` says to Accelerate.
    if process_count() == 1 or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return
    import torch

    if not torch.cuda.is_available():
        _LOGGER.warning("Accelerate spreads weights over GPUs only: here every process holds the whole model")
    if prune_after:
        raise TrainingError(
            f"prune_after is {prune_after:g}, but FSDP spreads the weights over the processes, and units cannot leave "
            "a model in the midst of such a training. Say --prune-after 0, or start the run without FSDP."
        )
    if method == "full":
        raise TrainingError(
            'The method "full" trains every weight, which FSDP spreads over the processes, and a run cannot save them. '
            "Start it without FSDP, or train adapters."
        )
