"""The cells of the grid: recipe x task x arm x seed, each a whole run with settings of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from pruning_adapter.errors import DataError
from pruning_adapter.settings import Settings
from pruning_adapter.training.tasks import find_task

__all__ = ["ARMS", "Cell", "make_cells", "share_of"]

ARMS: Mapping[str, Mapping[str, Any]] = {
    "full": {"method": "full"},
    "lora": {"method": "lora"},
    "prune-lora": {"method": "prune-lora"},
    "random": {"method": "prune-lora", "scorer": "random"},
    "reversed": {"method": "prune-lora", "scorer": "reversed"},
    "magnitude": {"method": "prune-lora", "scorer": "magnitude"},
    # The same heads as "prune-lora", and as many trained parameters, spread evenly.
    "uniform-rank": {"method": "prune-lora", "block_importance": "equal"},
}
"""The paper's three methods and the controls that tell what its two ideas, which heads and which ranks, are worth."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the grid."""

    recipe: str
    task: str
    arm: str
    seed: int
    asked: tuple[tuple[str, Any], ...] = ()
    """Settings of its own, by name, for arms that are none of `ARMS`."""
    taught: bool = False
    """Whether it learns from the answers of the dense LoRA model of the same recipe, task and seed too."""

    @property
    def name(self) -> str:
        """As its file is called, without the ending."""
        return f"{self.recipe}-{self.task}-{self.arm}-{self.seed}"

    def settings(self, base: Settings) -> Settings:
        """What this cell's run is asked to do; `base` holds what all cells share."""
        asked = {**ARMS.get(self.arm, {}), **dict(self.asked)}
        return replace(base, recipe=self.recipe, task=self.task, seed=self.seed, **asked)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Cell":
        """Read what `dataclasses.asdict` made of one."""
        asked: Any = value.get("asked", ())
        rest: dict[str, Any] = {name: given for name, given in value.items() if name != "asked"}
        return cls(**rest, asked=tuple((name, given) for name, given in asked))


def share_of(cells: Sequence[Cell], share: str) -> tuple[Cell, ...]:
    """Those cells that one of several jobs runs.

    Args:
        cells: the grid.
        share: "K/N", the number of the job from 0, and how many there are: every N-th cell from the K-th.

    Raises:
        DataError: no such share.
    """
    number, _, of = share.partition("/")
    if not (number.isdecimal() and of.isdecimal() and int(number) < int(of)):
        raise DataError(f"The share is {share!r}; give the number of the job, from 0, and how many there are: 0/4.")
    return tuple(cells[int(number) :: int(of)])


def make_cells(
    *, recipes: Sequence[str], tasks: Sequence[str], arms: Sequence[str], seeds: Sequence[int]
) -> tuple[Cell, ...]:
    """All cells, seed by seed, so that a grid that is stopped early holds whole comparisons.

    Raises:
        DataError: an unknown arm or task, or none of something.
    """
    for name, given in (("recipes", recipes), ("tasks", tasks), ("methods", arms), ("seeds", seeds)):
        if not given:
            raise DataError(f"There is nothing to run: no {name} were named. Name one at least, or leave --{name} out.")
    for arm in arms:
        if arm not in ARMS:
            raise DataError(f"The method {arm!r} is unknown; there are {', '.join(ARMS)}.")
    # By one name each, whatever people call them.
    grid = product(seeds, recipes, [find_task(task).name for task in tasks], arms)
    # Each once, however often it was named.
    return tuple(dict.fromkeys(Cell(recipe=recipe, task=task, arm=arm, seed=seed) for seed, recipe, task, arm in grid))
