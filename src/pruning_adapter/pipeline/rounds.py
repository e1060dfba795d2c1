"""In how many rounds units go, and what each of them may keep."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from pruning_adapter.architectures.shapes import ModelIdentity
from pruning_adapter.errors import TrainingError
from pruning_adapter.planning.budget import BYTES_PER_NUMBER, parse_bytes
from pruning_adapter.planning.presets import find_preset
from pruning_adapter.settings import KEEP_RATIO, RULES, Settings
from pruning_adapter.training.recipes import find_recipe

__all__ = ["check_stops", "split_rounds", "start_rank"]


def split_rounds(settings: Settings, dense: ModelIdentity, dense_parameters: int) -> tuple[Settings, ...]:
    """The settings of every round, the last of which are the run's own.

    Of what goes in all, 1 - (1 - k/n)^3 is gone after the k-th of n rounds (the cubic schedule of Zhu and Gupta 2017,
    arXiv:1710.01878): most goes while there is most to choose from, and the last rounds only mend. Rounds lie evenly
    between the beginning of the training and `prune_after`.

    Args:
        settings: of the run.
        dense: the model that it prunes.
        dense_parameters: that the model has.
    """
    count, last = settings.rounds_taken, settings.chosen("prune_after")
    rank = start_rank(settings)
    alike = {"rounds": 1, "low_rank": rank, "high_rank": rank, "rank_budget": None, **dict.fromkeys(RULES)}
    rounds: list[Settings] = []
    for number in range(1, count):
        gone = 1 - (1 - number / count) ** 3
        looser = _loosened(settings, gone, dense, dense_parameters)
        asked: dict[str, Any] = {**alike, "prune_after": last * number / count, **looser}
        rounds.append(replace(settings, **asked))
    return (*rounds, settings)


def check_stops(stops: Sequence[int], steps: int) -> None:
    """Refuse rounds between which nothing trains, or after which nothing does.

    Args:
        stops: steps after which each round's units go.
        steps: of the whole training.

    Raises:
        TrainingError: two of them are the same.
    """
    if any(last >= step for last, step in pairwise(stops)):
        raise TrainingError(
            f"Units would go in {len(stops)} rounds after the steps {', '.join(map(str, stops))}, but between two "
            "rounds there must be one at least. Take fewer --rounds, a later --prune-after, more epochs or more rows."
        )
    if stops[-1] >= steps:
        raise TrainingError(
            f"Units would go after step {stops[-1]} of {steps}, so that what stays would not train at all. Take more "
            "epochs or more rows, an earlier --prune-after, or --prune-after 0."
        )


def start_rank(settings: Settings) -> int:
    """The rank of LoRA before the last units go: the lowest that a block will have then, because ranks only grow."""
    if settings.rank_budget is not None:
        return find_recipe(settings.recipe).lora_rank
    low, high = settings.ranks
    if settings.preset is not None:
        preset = find_preset(settings.preset)
        low, high = preset.low, preset.high
    return low or high


def _loosened(settings: Settings, gone: float, dense: ModelIdentity, dense_parameters: int) -> dict[str, Any]:
    """The rule that takes the share `gone` of what the settings' own takes."""
    if settings.keep_bytes is not None:
        whole = dense_parameters * BYTES_PER_NUMBER[settings.dtype]
        return {"keep_bytes": str(round(whole - gone * (whole - parse_bytes(settings.keep_bytes))))}
    if settings.keep_heads is not None:
        # As a share, which is rounded to what is possible where heads go in groups; neurons all stay by this rule.
        share = settings.keep_heads / sum(dense.heads)
        return {"keep_ratio": 1 - gone * (1 - share), "units": "heads"}
    name = next((name for name in RULES if getattr(settings, name) is not None), "keep_ratio")
    given = getattr(settings, name)
    share = KEEP_RATIO if given is None else given
    return {name: 1 - gone * (1 - share)}
