"""One schema for everything that is measured: written by the pipeline and the benchmarks, read by the report."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pruning_adapter.errors import CheckpointError
from pruning_adapter.storage import read_json, write_json

__all__ = ["Measure", "Quality", "Result"]

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How well a model predicts one validation set."""

    metrics: Mapping[str, Measure]
    """By metric name, the primary one first."""
    examples: int
    majority_rate: float | None
    """Share of the most frequent class, as fraction in [0, 1]; None for regression."""
    at_majority: bool
    """The model says the same for every example, though they are of several classes: it learnt nothing."""
    loss: float | None = None
    """Mean cross-entropy in nats, or mean squared error; None in results of releases that did not measure it."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one run measured, and all that is needed to run it again."""

    task: Mapping[str, Any]
    """name, train_examples, labels (list of class names); dataset, its id on the Hub, where it has one."""
    model: Mapping[str, Any]
    """id, revision, model_type, fingerprint of the dense base; license, license_name, license_link and language, as far
    as its own files tell them."""
    method: str
    """"full", "lora" or "prune-lora"."""
    scorer: str | None
    """What chose the units, as `Settings.scorer` names it; None without pruning."""
    seed: int
    recipe: Mapping[str, Any]
    quality: Mapping[str, Quality]
    """By validation set, the primary one first."""
    cost: Mapping[str, Any]
    """Counts (parameters, dense_parameters, trainable_parameters, weight_bytes, macs, dense_macs), peak memory in bytes
    (peak_inference_bytes, peak_training_bytes, and those of the dense model), and ratios, each measured in one
    interleaved run ({"median", "q1", "q3"}): latency_ratio and memory_ratio to the dense model, training_time_ratio and
    training_memory_ratio of a training step to LoRA on the dense model."""
    history: tuple[Mapping[str, float], ...]
    """What the Trainer logged: step, epoch, and loss, learning_rate or eval_<metric>."""
    pruning: Mapping[str, Any] | None = None
    """What went, and by which plan; None without pruning:

    * importance: normalised scores in [0, 1], attentions x heads, None for heads that were gone before; empty if only
      neurons were scored. shown_within: of what the largest is 1, "block" or "model". kept_heads and dense_heads, per
      attention.
    * neurons_kept and dense_neurons: how many, per feed-forward; beside: the number of the attention in its block.
    * ranks, feed_forward_ranks and rank_roles.
    * rule: the rule or budget, such as {"keep_macs": 0.5, "length": 128}; reconstruct: how kept weights were corrected.
    * predicted: parameters, macs at the length of `cost`, and latency_ratio by that rule, as the plan told in advance.
    """
    notes: tuple[str, ...] = ()
    """Warnings a reader must see, such as a run that ended at the majority class."""
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_json(path, {"kind": "pruning-adapter result", "schema": SCHEMA, **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> "Result":
        """Read what `save` wrote.

        Raises:
            CheckpointError: not a result file, or one of another schema.
        """
        content = read_json(path, kind="pruning-adapter result")
        if content.pop("schema", None) != SCHEMA:
            raise CheckpointError(f"{path} follows another result schema than {SCHEMA}; use the release that wrote it.")
        content.pop("kind")
        try:
            content["quality"] = {name: _read_quality(value) for name, value in content["quality"].items()}
            content["history"] = tuple(content["history"])
            content["notes"] = tuple(content["notes"])
            return cls(**content)
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is not a complete result: {error}.") from error


def _read_quality(value: dict[str, Any]) -> Quality:
    metrics = {name: Measure(**measure) for name, measure in value.pop("metrics").items()}
    return Quality(metrics=metrics, **value)
