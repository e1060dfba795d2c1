"""`Settings`: everything a run was asked to do, as one value that is saved beside its results."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_origin, get_type_hints

from pruning_adapter.architectures.shapes import public_name
from pruning_adapter.architectures.spec import Kind
from pruning_adapter.errors import CheckpointError, DataError, ImportanceError, OutputError, PlanError, TrainingError
from pruning_adapter.storage import read_json, write_json

if TYPE_CHECKING:
    from pruning_adapter.training.recipes import Recipe

__all__ = ["BUDGETS", "KEEP_RATIO", "RULES", "Scorer", "Settings"]

KIND = "pruning-adapter settings"
Scorer = Literal["gradient", "obs", "random", "magnitude", "reversed", "shuffled"]
BUDGETS = ("keep_params", "keep_macs", "keep_bytes", "keep_latency")
"""Rules that weigh heads and neurons against each other."""
RULES = ("preset", "keep_heads", "keep_ratio", "threshold", *BUDGETS)
KEEP_RATIO = 0.7
"""Of the heads, where no rule is given: about what the paper keeps."""
UNITS: Mapping[str, tuple[Kind, ...]] = {"heads": ("heads",), "neurons": ("neurons",), "both": ("heads", "neurons")}
DECIDED_BY_PRESET = (
    *("allow_empty_blocks", "normalization", "multiple_of", "grouping", "reconstruct", "target"),
    *("top_blocks", "high_rank", "low_rank", "block_importance", "rank_budget"),
)
_CHOSEN_AFTER_START = (
    *("scorer", "units", "order", "reduction", "examples", "stop_when_stable", "normalization", *RULES),
    *("length", "dtype", "latency_table", "multiple_of", "grouping", "allow_empty_blocks", "reconstruct"),
    *("top_blocks", "block_importance", "model_name", "report_to"),
)
_TWO_RANKS = ("top_blocks", "high_rank", "low_rank")
_OF_GRADIENTS = ("order", "reduction", "stop_when_stable")
_OF_PRUNING = (
    *("scorer", "units", "examples", *_OF_GRADIENTS),
    *(*RULES, "latency_table", "length", "dtype", "prune_after", *DECIDED_BY_PRESET),
)
"""What methods that do not prune have no use for."""
_OF_TRAINING = (
    *("task", "text_columns", "label_column", "train_rows", "recipe", "epochs", "learning_rate", "seed", "prune_after"),
    *("target", "accumulate", "padding_free", "bf16"),
)
DEMO_MODEL = "sentence-transformers/all-MiniLM-L6-v2"

_RANGES: Mapping[str, tuple[type[Exception], Callable[[float], bool], str]] = {
    "train_rows": (DataError, lambda value: value >= 2, "2 or more"),
    "examples": (DataError, lambda value: value >= 1, "1 or more"),
    "stop_when_stable": (ImportanceError, lambda value: 0 < value <= 1, "a rank correlation, in (0, 1]"),
    "epochs": (TrainingError, lambda value: 0 < value < float("inf"), "a positive number"),
    "learning_rate": (TrainingError, lambda value: 0 < value < float("inf"), "a positive number"),
    "prune_after": (TrainingError, lambda value: 0 <= value < 1, "a share of the training, in [0, 1)"),
    "accumulate": (TrainingError, lambda value: value >= 1, "1 or more"),
    "seed": (TrainingError, lambda value: 0 <= value < 2**32, f"in 0 to {2**32 - 1}"),
    "keep_heads": (PlanError, lambda value: value >= 1, "1 or more"),
    "keep_ratio": (PlanError, lambda value: 0 < value <= 1, "the share of heads that stay, in (0, 1]"),
    "keep_params": (PlanError, lambda value: 0 < value <= 1, "the share of parameters that may stay, in (0, 1]"),
    "keep_macs": (PlanError, lambda value: 0 < value <= 1, "the share of multiply-accumulates, in (0, 1]"),
    "keep_latency": (PlanError, lambda value: 0 < value <= 1, "the share of the dense model's time, in (0, 1]"),
    "length": (PlanError, lambda value: value >= 1, "a number of tokens from 1"),
    "multiple_of": (PlanError, lambda value: value >= 1, "1 or more"),
    "threshold": (PlanError, lambda value: 0 <= value <= 1, "a normalised importance, in [0, 1]"),
    "top_blocks": (PlanError, lambda value: value >= 0, "0 or more"),
    "high_rank": (PlanError, lambda value: value >= 1, "1 or more"),
    "low_rank": (PlanError, lambda value: value >= 0, "0 or more"),
    "rank_budget": (PlanError, lambda value: value >= 1, "a number of parameters from 1"),
}
"""What can be refused before any model is loaded; planning refuses what depends on the model."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run was asked to do. All fields have the values that the command line's help shows."""

    model: str = ""
    """Folder or hub id; empty with `demo`."""
    model_name: str | None = None
    """What to call it in results, where `model` is a folder."""
    revision: str | None = None
    """Of the hub id: a branch, a tag or a commit."""
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
    prune_after: float | None = None
    """In place of the recipe's share of the training in which the dense model trains first."""
    scorer: Scorer | None = None
    """None: the recipe's. "reversed" turns the recipe's around, "shuffled" deals them out anew within each site; where
    `order` is given, the gradient's."""
    units: str | None = None
    """What is scored and may go: "heads", "neurons" or "both"; None: both under a budget, else heads."""
    order: str | None = None
    """None: the recipe's."""
    reduction: str = "example"
    examples: int = 512
    """How many training examples the importance is measured on. Two samples of 256 rank the heads of a block with a
    correlation of 0.93 to 0.94 (`benchmarks/importance.py`)."""
    stop_when_stable: float | None = None
    """Measure on fewer, once the rankings of two halves of them agree this well."""
    normalization: str | None = None
    """None: the recipe's, but under a budget the scores as they are."""
    preset: str | None = None
    keep_heads: int | None = None
    keep_ratio: float | None = None
    threshold: float | None = None
    keep_params: float | None = None
    keep_macs: float | None = None
    keep_bytes: str | None = None
    """Bytes, or text such as "60MB"."""
    keep_latency: float | None = None
    length: int = 128
    """Tokens at which `keep_macs` counts and `keep_latency` measures."""
    dtype: str = "float32"
    """What `keep_bytes` takes the weights to be stored as."""
    latency_table: str | None = None
    """A saved latency table; without one, `keep_latency` measures."""
    multiple_of: int | None = None
    """Feed-forward widths are multiples of it; None: 1, or under `keep_latency` what was measured to be best."""
    grouping: str | None = None
    allow_empty_blocks: bool = False
    reconstruct: str | None = None
    """How the kept weights are corrected, on the examples that were scored, for what is gone. None: the recipe's."""
    target: str = "attention"
    """Which linear maps LoRA trains."""
    top_blocks: int | None = None
    """Blocks that get the high rank; by default a third of them, as in the paper."""
    high_rank: int | None = None
    """None: twice the rank of the recipe's plain LoRA, as in the paper."""
    low_rank: int | None = None
    """Of the other blocks; None: the rank of the recipe's plain LoRA, as in the paper."""
    block_importance: str = "sum"
    """What makes a block important for its rank; "equal" spreads as many parameters evenly, as a control."""
    rank_budget: int | None = None
    """Trainable parameters (LoRA and normalisation layers) to spread by importance, in place of high and low rank; by
    importance within blocks, unless `normalization` is given."""
    teacher: str | None = None
    """Folder or hub id of a classifier of the same classes, whose answers training also learns from."""
    report_to: str | None = None
    """Trackers that hear of the training, by Transformers' names and with commas between: "tensorboard,wandb"."""
    accumulate: int = 1
    padding_free: bool = False
    """Compute nothing for padding while training; for encoders such as BERT."""
    bf16: bool = False
    """Compute the matrix products of training in bfloat16 (autocast), and keep frozen weights in it; what trains and
    the optimiser stay in float32."""

    def check(self) -> None:
        """Refuse settings that contradict each other.

        Raises:
            DataError, PlanError, TrainingError: which, and what to do.
        """
        self._check_data()
        self._check_names()
        rules = [name for name in RULES if getattr(self, name) is not None]
        if len(rules) > 1:
            raise PlanError(
                f"Give one of {', '.join(RULES)}; {' and '.join(rules)} were given, now or earlier in this run."
            )
        for name, (error, holds, rule) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and holds(value)):
                raise error(f"{name} is {value}; it must be {rule}.")
        self._check_plan(rules[0] if rules else None)

    def _check_plan(self, rule: str | None) -> None:
        if rule == "preset":
            unset = Settings()
            for name in DECIDED_BY_PRESET:
                if getattr(self, name) != getattr(unset, name):
                    raise PlanError(f"The preset {self.preset!r} decides {name}; leave out one of the two.")
        if rule in ("preset", "keep_heads") and self.units == "neurons":
            raise PlanError(f"{rule} prunes heads, but units is 'neurons'; use another rule, or units heads or both.")
        if rule == "keep_bytes":
            from pruning_adapter.planning.budget import parse_bytes

            parse_bytes(cast(str, self.keep_bytes))
        if self.latency_table is not None and rule != "keep_latency":
            raise PlanError("latency_table was given without keep_latency, the rule that reads it; give both.")
        if rule != "keep_bytes" and self.dtype != Settings().dtype:
            raise PlanError("dtype was given without keep_bytes, the rule that counts bytes; give both.")
        if self.rank_budget is not None:
            for name in _TWO_RANKS:
                if getattr(self, name) is not None:
                    raise PlanError(
                        f"{name} is {getattr(self, name)}, but rank_budget was given, which spreads ranks by itself; "
                        "leave out one of the two."
                    )
        low, high = self.ranks
        if low > high:
            raise PlanError(f"low_rank is {low}; it must not be above high_rank, {high}.")

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
        if self.revision is not None and (not self.model or Path(self.model).is_dir()):
            named = f"{self.model} is a folder here" if self.model else "no model was named"
            raise DataError(f"--revision is {self.revision!r}, but {named}; only hub ids have revisions. Leave it out.")
        if self.train_file and not (self.validation_file and self.text_columns and self.label_column):
            raise DataError("--train-file also needs --validation-file, --text-columns and --label-column.")

    def _check_names(self) -> None:
        # Some of these bring torch, which settings themselves can do without.
        from pruning_adapter.importance.estimate import BY_EXAMPLE, Order, Reduction
        from pruning_adapter.importance.normalize import Scope
        from pruning_adapter.planning.budget import BYTES_PER_NUMBER
        from pruning_adapter.planning.items import Grouping
        from pruning_adapter.planning.presets import find_preset
        from pruning_adapter.planning.pruning_plan import Reconstruction
        from pruning_adapter.planning.rank_plan import TARGETS, BlockImportance
        from pruning_adapter.training.recipes import METHODS, find_recipe

        for name, known in (
            ("scorer", (None, *get_args(Scorer))),
            ("units", (None, *UNITS)),
            ("order", (None, *get_args(Order))),
            ("reduction", get_args(Reduction)),
            ("normalization", (None, *get_args(Scope))),
            ("dtype", tuple(BYTES_PER_NUMBER)),
            ("grouping", (None, *get_args(Grouping))),
            ("reconstruct", (None, *get_args(Reconstruction))),
            ("target", tuple(TARGETS)),
            ("block_importance", get_args(BlockImportance)),
            ("method", METHODS),
        ):
            if getattr(self, name) not in known:
                value = getattr(self, name)
                raise PlanError(
                    f"{name.capitalize()} {value!r} is unknown; use one of {', '.join(filter(None, known))}."
                )
        if self.stop_when_stable is not None and self.reduction not in BY_EXAMPLE:
            raise ImportanceError(
                f"stop_when_stable was given with reduction {self.reduction!r}, which does not tell one example from "
                f"another; use {' or '.join(BY_EXAMPLE)}."
            )
        find_recipe(self.recipe)
        self._check_scorer()
        if self.preset is not None:
            find_preset(self.preset)

    @property
    def measured_scorer(self) -> str:
        """The scorer whose scores are taken, or turned around or dealt out anew."""
        from pruning_adapter.training.recipes import find_recipe

        scorer = self.chosen("scorer")
        if scorer not in ("reversed", "shuffled"):
            return scorer
        # Only gradients have an order.
        return find_recipe(self.recipe).scorer if self.order is None else "gradient"

    def _check_scorer(self) -> None:
        if self.measured_scorer == "gradient":
            return
        for name in _OF_GRADIENTS:
            if getattr(self, name) != getattr(Settings(), name):
                raise ImportanceError(
                    f"{name} is {getattr(self, name)!r}, but the scores are those of {self.measured_scorer!r}, which "
                    "knows no such choice. Leave it out, or say --scorer gradient."
                )

    def check_used(self, given: Mapping[str, Any]) -> None:
        """Refuse what was asked of pruning from a method that does not prune.

        Args:
            given: what was asked for by name, None where nothing was.

        Raises:
            TrainingError: which option would do nothing.
        """
        if self.method == "prune-lora":
            return
        for name in _OF_PRUNING:
            if given.get(name) is not None:
                raise TrainingError(
                    f"{name} is {given[name]}, but the method {self.method!r} prunes nothing and spreads no ranks, so "
                    "that it would do nothing. Leave it out, or use --method prune-lora."
                )

    def chosen(self, name: str) -> Any:
        """The value of a setting that the recipe decides where it was not given."""
        from pruning_adapter.training.recipes import find_recipe

        value = getattr(self, name)
        return getattr(find_recipe(self.recipe), name) if value is None else value

    @property
    def followed(self) -> "Recipe":
        """The recipe, with what was given in place of its own numbers."""
        from pruning_adapter.training.recipes import adjust_recipe

        return adjust_recipe(self.recipe, epochs=self.epochs, learning_rate=self.learning_rate)

    @property
    def ranks(self) -> tuple[int, int]:
        """Of LoRA in the less and in the more important blocks. Where one was given, the other gives way."""
        from pruning_adapter.training.recipes import find_recipe

        rank = find_recipe(self.recipe).lora_rank
        low = min(rank, self.high_rank or rank) if self.low_rank is None else self.low_rank
        high = max(2 * rank, low) if self.high_rank is None else self.high_rank
        return low, high

    def of_start(self) -> dict[str, Any]:
        """Those settings that decide what the dense model learns before units go: all but what is chosen after it."""
        return {name: value for name, value in asdict(self).items() if name not in _CHOSEN_AFTER_START}

    def of_training(self) -> dict[str, Any]:
        """For JSON: what decides how the dense model trains until units go, wherever model and data lie."""
        found: dict[str, Any] = {name: getattr(self, name) for name in _OF_TRAINING}
        teacher = None if self.teacher is None else public_name(self.teacher)
        return found | {"text_columns": list(self.text_columns), "teacher": teacher}

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What is scored and may go."""
        budget = any(getattr(self, name) is not None for name in BUDGETS)
        return UNITS[self.units or ("both" if budget else "heads")]

    @property
    def model_id(self) -> str:
        """The model as people know it."""
        if self.model_name is not None:
            return self.model_name
        return DEMO_MODEL if self.demo and not self.model else public_name(self.model)

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
            raise CheckpointError(
                f"{path} holds the unknown setting {unknown[0][:80]!r}; another release wrote it. "
                "Go on with that one, or begin anew."
            )
        hints = get_type_hints(cls)
        try:
            content["text_columns"] = tuple(content.get("text_columns", ()))
            for name, value in content.items():
                if not _is_of(value, hints[name]):
                    raise TypeError(f"{name} is {value!r}")
            return cls(**content)
        except TypeError as error:
            raise CheckpointError(f"{path} is damaged: {error}.") from error

    def changed(self, given: Mapping[str, Any]) -> "Settings":
        """These settings with the values in `given` in place of theirs; None leaves a value as it is."""
        base = self
        if given.get("model") not in (None, self.model):
            # A revision is one of the model that it was given with.
            base = replace(self, revision=None)
        return replace(base, **{name: value for name, value in given.items() if value is not None})

    def with_rule(self, given: Mapping[str, Any]) -> "Settings":
        """As `changed`; a rule or a source of data in `given` replaces another that was set earlier.

        What goes with the other goes too: a rule's table, a file's columns, what a preset decides itself, and how
        another scorer was to be measured.
        """
        unset, gone = Settings(), set[str]()
        if any(given.get(name) is not None for name in RULES):
            # The table belongs to a rule, too.
            gone |= {*RULES, "latency_table"}
            if given.get("keep_bytes") is None:
                gone.add("dtype")
        if given.get("preset") is not None:
            gone |= set(DECIDED_BY_PRESET)
        if given.get("rank_budget") is not None:
            gone |= set(_TWO_RANKS)
        elif any(given.get(name) is not None for name in _TWO_RANKS):
            gone.add("rank_budget")
        if given.get("scorer") not in (None, self.scorer):
            gone |= set(_OF_GRADIENTS)
        of_files = ("train_file", "validation_file", "text_columns", "label_column")
        sources: Mapping[str, tuple[str, ...]] = {"demo": ("demo",), "task": ("task",), "train_file": of_files}
        if any(given.get(source) for source in sources):
            gone |= {name for source, names in sources.items() if not given.get(source) for name in names}
        return replace(self, **{name: getattr(unset, name) for name in gone}).changed(given)

    def check_same(self, other: "Settings", path: Path, *, otherwise: str = "begin anew with --overwrite") -> None:
        """Refuse to go on with other settings than a run began with.

        Raises:
            OutputError: they differ; the message names the first difference.
        """
        for field in fields(self):
            was, now = getattr(other, field.name), getattr(self, field.name)
            if was != now:
                raise OutputError(
                    f"{path} was begun with {field.name}={was!r}, now {field.name}={now!r} was given. Resume with the "
                    f"same settings, or {otherwise}."
                )


def _is_of(value: Any, hint: Any) -> bool:
    """Whether `value` is of a type such as the fields above have."""
    if get_origin(hint) is Literal:
        return value in get_args(hint) if isinstance(value, str) else False
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(isinstance(each, str) for each in cast("tuple[Any, ...]", value))
    if get_args(hint):
        return any(_is_of(value, each) for each in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint
