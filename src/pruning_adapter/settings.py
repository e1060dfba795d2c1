"""`Settings`: everything a run was asked to do, as one value that is saved beside its results."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pruning_adapter.errors import CheckpointError, DataError, OutputError, PlanError, TrainingError
from pruning_adapter.storage import read_json, write_json

__all__ = ["Scorer", "Settings"]

KIND = "pruning-adapter settings"
Scorer = Literal["gradient", "random", "magnitude", "reversed"]
RULES = ("preset", "keep_heads", "keep_ratio", "threshold")
DEMO_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run was asked to do. All fields have the values that the command line's help shows."""

    model: str = ""
    """Folder or hub id; empty with `demo`."""
    demo: bool = False
    """The embedded encoder and the task that the project generates."""
    task: str | None = None
    """A GLUE task, read from `data_dir`, or from the Hub without one."""
    data_dir: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None
    train_rows: int | None = None
    """Train on a random subset of this size."""
    method: str = "prune-lora"
    recipe: str = "default"
    epochs: float | None = None
    """In place of the recipe's."""
    learning_rate: float | None = None
    """In place of the recipe's."""
    seed: int = 0
    scorer: Scorer = "gradient"
    reduction: str = "example"
    examples: int = 256
    """How many training examples the importance is measured on."""
    normalization: str = "block"
    preset: str | None = None
    keep_heads: int | None = None
    keep_ratio: float | None = None
    threshold: float | None = None
    allow_empty_blocks: bool = False
    top_blocks: int | None = None
    """Blocks that get the high rank; by default a third of them, as in the paper."""
    high_rank: int = 8
    low_rank: int = 4
    rank_budget: int | None = None
    """Trainable parameters (LoRA and normalisation layers) to spread by importance, in place of high and low rank."""
    accumulate: int = 1

    def check(self) -> None:
        """Refuse settings that contradict each other.

        Raises:
            DataError, PlanError, TrainingError: which, and what to do.
        """
        self._check_data()
        if self.scorer not in get_args(Scorer):
            raise PlanError(f"Scorer {self.scorer!r} is unknown; use one of {', '.join(get_args(Scorer))}.")
        rules = [name for name in RULES if getattr(self, name) is not None]
        if len(rules) > 1:
            raise PlanError(
                f"Give one of {', '.join(RULES)}; {' and '.join(rules)} were given, now or earlier in this run."
            )
        for name in ("epochs", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise TrainingError(f"{name} is {value}; it must be a positive number.")

    def _check_data(self) -> None:
        sources = [
            name
            for name, given in (("--demo", self.demo), ("--task", self.task), ("--train-file", self.train_file))
            if given
        ]
        if len(sources) > 1:
            raise DataError(f"Give one source of data; {' and '.join(sources)} were given.")
        if not sources:
            raise DataError(
                "No data was named. Give --task (a GLUE task), --train-file and --validation-file, or --demo."
            )
        if not self.demo and not self.model:
            raise DataError("No model was named. Give --model, a folder or a hub id; --demo brings its own.")
        if self.train_file and not (self.validation_file and self.text_columns and self.label_column):
            raise DataError("--train-file also needs --validation-file, --text-columns and --label-column.")
        if self.train_rows is not None and self.train_rows < 2:
            raise DataError(f"--train-rows is {self.train_rows}; at least 2 rows are needed.")

    @property
    def model_id(self) -> str:
        """The model as people know it."""
        return DEMO_MODEL if self.demo and not self.model else self.model

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write_json(path, {"kind": KIND, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> "Settings":
        """Read what `save` wrote.

        Raises:
            CheckpointError: not a settings file, or fields that this release does not know.
        """
        content = read_json(path, kind=KIND)
        content.pop("kind")
        unknown = sorted(set(content) - {field.name for field in fields(cls)})
        if unknown:
            raise CheckpointError(f"{path} holds the unknown setting {unknown[0]!r}; another release wrote it.")
        try:
            content["text_columns"] = tuple(content.get("text_columns", ()))
            return cls(**content)
        except TypeError as error:
            raise CheckpointError(f"{path} is damaged: {error}.") from error

    def changed(self, given: Mapping[str, Any]) -> "Settings":
        """These settings with the values in `given` in place of theirs; None leaves a value as it is."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def with_rule(self, given: Mapping[str, Any]) -> "Settings":
        """As `changed`; a pruning rule in `given` replaces another that was set earlier."""
        base = self
        if any(given.get(name) is not None for name in RULES):
            base = replace(self, **dict.fromkeys(RULES))
        return base.changed(given)

    def check_same(self, other: "Settings", path: Path) -> None:
        """Refuse to go on with other settings than a run began with.

        Raises:
            OutputError: they differ; the message names the first difference.
        """
        for field in fields(self):
            was, now = getattr(other, field.name), getattr(self, field.name)
            if was != now:
                raise OutputError(
                    f"{path} was begun with {field.name}={was!r}, now {field.name}={now!r} was given. Resume with the "
                    "same settings, or begin anew with --overwrite."
                )
