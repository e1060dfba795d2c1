"""Labelled text: what every source of task data (GLUE, the Hub, the user's files, the demo) is turned into."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Example", "TaskData"]


class Example(NamedTuple):
    """One labelled example."""

    texts: tuple[str, ...]
    """One text, or two for a sentence-pair task."""
    label: int | float
    """A class number, or a float for regression."""


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """A task, ready to be tokenised."""

    name: str
    label_names: tuple[str, ...]
    """Class names in the order of their numbers; empty for regression."""
    metrics: tuple[str, ...]
    """Names of the metrics, the primary one first (see `pruning_adapter.evaluation.metrics`)."""
    train: tuple[Example, ...]
    validation: Mapping[str, tuple[Example, ...]]
    """Validation sets by name, the primary one first (MNLI has two: "matched" and "mismatched")."""

    @property
    def is_regression(self) -> bool:
        return not self.label_names
