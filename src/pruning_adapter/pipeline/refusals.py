"""What a run is refused for before it trains, scores or replaces anything."""

from dataclasses import replace
from typing import TYPE_CHECKING

from pruning_adapter.architectures.limits import limits_of
from pruning_adapter.decide import plan_from_settings
from pruning_adapter.errors import CheckpointError, PlanError, TrainingError
from pruning_adapter.importance import random_importance
from pruning_adapter.surgery.reconstruct import check_can_be_corrected
from pruning_adapter.training.trainer import count_steps, last_step

if TYPE_CHECKING:
    from pruning_adapter.pipeline.inputs import Inputs
    from pruning_adapter.pipeline.run import Run

__all__ = ["check_length", "check_rule", "check_started", "check_steps"]


def check_rule(run: "Run") -> None:
    """Refuse what no scores of this model can meet, such as more heads than it has, or less training than it takes.

    Raises:
        PlanError, TrainingError: which, and what is possible.
    """
    if run.method != "prune-lora":
        return
    check_steps(run)
    check_length(run)
    model = run.load_base().model
    made_up = random_importance(model, seed=0, units=run.settings.kinds)
    budget, fixed = run.settings.rank_budget, made_up.model.norm_parameters
    if budget is not None and budget <= fixed:
        raise PlanError(
            f"The rank budget is {budget:,} trainable parameters; the normalisation layers alone have {fixed:,}, and "
            "LoRA needs some. Raise --rank-budget."
        )
    # What ranks cost beside them depends on which units stay.
    plan, _ = plan_from_settings(replace(run.settings, rank_budget=None), made_up, latency=run.latency)
    check_can_be_corrected(model, plan)


def check_steps(run: "Inputs") -> None:
    """Refuse a training of which no step is left after units go.

    Raises:
        TrainingError: which step, and what to do.
    """
    if not run.prune_after:
        return
    steps = count_steps(len(run.data.train), run.recipe)
    stop = last_step(run.prune_after, steps)
    if stop >= steps:
        raise TrainingError(
            f"Units would go after step {stop} of {steps}, so that what stays would not train at all. Take more "
            "epochs or more rows, an earlier --prune-after, or --prune-after 0."
        )


def check_length(run: "Run") -> None:
    """Refuse a budget at more tokens than the model reads.

    Raises:
        PlanError: how many it reads.
    """
    settings = run.settings
    if settings.keep_macs is None and settings.keep_latency is None:
        return
    positions = limits_of(run.load_base().model).positions
    if positions is not None and settings.length > positions:
        raise PlanError(
            f"length is {settings.length} tokens, but the model reads {positions}. Say --length {positions}, or fewer."
        )


def check_started(run: "Run") -> None:
    """Refuse to go on from where the scored model was in its training, if it was not in any.

    Raises:
        CheckpointError: what to do.
    """
    if run.prune_after and not (run.folder / "start").exists():
        raise CheckpointError(
            f"Units are to go after {run.prune_after:.0%} of the training, but {run.folder} holds scores of a model "
            "that had not begun to train. Score anew with these options (`pruning-adapter importance --overwrite`), or "
            "train by the recipe that was scored by."
        )
