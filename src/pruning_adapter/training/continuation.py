"""Going on with a training after the model lost units: LoRA, optimizer, learning rate and order of examples stay."""

import shutil
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer, TrainerState

from pruning_adapter.adapter.carry import carry_, carry_moments
from pruning_adapter.errors import CheckpointError
from pruning_adapter.planning.pruning_plan import PruningPlan
from pruning_adapter.storage import replace_folder, write_through_memory
from pruning_adapter.training.trainer import MOMENTS

__all__ = ["KEPT_FILES", "RANDOM", "carry_checkpoint"]

STATE = "trainer_state.json"
KEPT_FILES = (STATE, "scheduler.pt", MOMENTS)
"""What is needed of a checkpoint, beside the adapter and the state of the random numbers."""
RANDOM = "rng_state*.pth"
"""One file, or one of each process."""


def carry_checkpoint(
    checkpoint: Path, folder: Path, *, dense: nn.Module, pruned: nn.Module, plan: PruningPlan, trainer: Trainer
) -> None:
    """Write a checkpoint from which `pruned` goes on where the training of `dense` left off.

    If nothing was pruned and no rank changed, all that follows is what it would have been without a stop.

    Args:
        checkpoint: of the training of `dense`, which `train_` left with `stop_after`.
        folder: of the new training; gets a checkpoint.
        dense: the model that trained, with its adapter.
        pruned: the model to train, with an adapter that gets what is left of that of `dense`; changed in place.
        plan: what was removed in between.
        trainer: `make_trainer` for `pruned`.

    Raises:
        CheckpointError: the checkpoint is damaged.
        OutputError: the new one cannot be written.
    """
    try:
        moments = _read_moments(checkpoint / MOMENTS)
        state = TrainerState.load_from_json(str(checkpoint / STATE))
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint} is damaged or incomplete ({error}). Train again.") from error
    carry_(dense, pruned, plan)
    carried = carry_moments(moments, dense, pruned, plan)
    trainer.create_optimizer_and_scheduler(state.max_steps)
    optimizer, schedule = cast(Any, trainer.optimizer), cast(Any, trainer.lr_scheduler)
    for name, parameter in pruned.named_parameters():
        if name in carried:
            optimizer.state[parameter] = carried[name]
    # The optimizer's file holds the rate of the next step, too, and the schedule sets only those after it.
    for group, factor in zip(optimizer.param_groups, schedule.lr_lambdas, strict=True):
        group["lr"] = group["initial_lr"] * factor(state.global_step)
    with replace_folder(folder / f"checkpoint-{state.global_step}") as aside:
        cast(Any, pruned).save_pretrained(str(aside), save_embedding_layers=False)
        write_through_memory(aside / "optimizer.pt", lambda file: torch.save(optimizer.state_dict(), file))
        for file in (STATE, "scheduler.pt"):
            shutil.copy(checkpoint / file, aside)
        for file in checkpoint.glob(RANDOM):
            shutil.copy(file, aside)


def _read_moments(path: Path) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(path).items():
        name, _, kind = key.rpartition(":")
        found.setdefault(name, {})[kind] = value
    return found
