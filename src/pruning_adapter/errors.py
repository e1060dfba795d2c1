"""The errors a user can meet. Each names the value, the rule it broke and the way out."""

__all__ = [
    "AdapterError",
    "ArchitectureError",
    "CheckpointError",
    "CostError",
    "DataError",
    "ImportanceError",
    "OutputError",
    "PlanError",
    "ProcessError",
    "PruningAdapterError",
    "TrainingError",
]


LONGEST = 1500


class PruningAdapterError(Exception):
    """Base of every error this library raises on purpose."""

    def __str__(self) -> str:
        # A damaged file may hold values of any length, and messages quote values.
        text = super().__str__()
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 500]} [...] {text[-400:]}"


class ArchitectureError(PruningAdapterError, ValueError):
    """A model whose heads we cannot find, or whose modules are shared in a way that surgery cannot honour."""


class ImportanceError(PruningAdapterError, ValueError):
    """Scores that cannot be measured, read or compared."""


class CostError(PruningAdapterError, ValueError):
    """A cost that cannot be counted or measured, or a table of costs that belongs to another machine or model."""


class PlanError(PruningAdapterError, ValueError):
    """A plan that is impossible in itself, or that was made for another model."""


class AdapterError(PruningAdapterError, ValueError):
    """An adapter that does not fit the model it is attached to."""


class DataError(PruningAdapterError, ValueError):
    """Task data that is missing, unreadable or contradictory."""


class TrainingError(PruningAdapterError, RuntimeError):
    """A training run that cannot go on, such as one whose loss is not a number."""


class CheckpointError(PruningAdapterError, OSError):
    """A file or folder that cannot be read as what it claims to be."""


class OutputError(PruningAdapterError, OSError):
    """An output that cannot be written, or must not be overwritten."""


class ProcessError(PruningAdapterError, RuntimeError):
    """Several processes work on one thing, and another of them cannot go on."""
