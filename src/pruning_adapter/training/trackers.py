"""Trackers that hear of a training, such as TensorBoard: those of Transformers, by its names."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from pruning_adapter.errors import TrainingError

__all__ = ["find_trackers", "tracked_in"]

_TENSORBOARD = "TENSORBOARD_LOGGING_DIR"


def find_trackers(names: str | None) -> list[str]:
    """The trackers that a comma-separated list names; none for None.

    Raises:
        TrainingError: an unknown name, or a tracker that is not installed.
    """
    from transformers.integrations import integration_utils as known

    asked = [name.strip() for name in (names or "").split(",") if name.strip()]
    for name in asked:
        if name not in known.INTEGRATION_TO_CALLBACK:
            raise TrainingError(
                f"The tracker {name!r} is unknown; Transformers knows {', '.join(known.INTEGRATION_TO_CALLBACK)}."
            )
        if name not in known.get_available_reporting_integrations():
            raise TrainingError(f"The tracker {name!r} is not installed; install it with pip, or leave it out.")
    return asked


@contextmanager
def tracked_in(folder: Path) -> Generator[None]:
    """While the context lasts, TensorBoard writes to `folder`, unless the user's environment says where.

    Else it would write beside the checkpoints, which go when the training is done.
    """
    before = os.environ.get(_TENSORBOARD)
    os.environ.setdefault(_TENSORBOARD, str(folder))
    try:
        yield
    finally:
        if before is None:
            del os.environ[_TENSORBOARD]
