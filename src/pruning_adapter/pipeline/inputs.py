"""What a run works from: its settings, its task as the model reads it, and the dense model."""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pruning_adapter.architectures.limits import limits_of
from pruning_adapter.checkpoint.merged import load_pruned
from pruning_adapter.costs.latency import LatencyTable
from pruning_adapter.errors import DataError, PlanError
from pruning_adapter.evaluation.metrics import measure_quality
from pruning_adapter.evaluation.predict import predict
from pruning_adapter.evaluation.result import Quality
from pruning_adapter.importance import LengthSortedBatches
from pruning_adapter.processes import process_count, process_number
from pruning_adapter.settings import Settings
from pruning_adapter.training.base_model import BaseModel, give_padding_, load_base, load_tokenizer
from pruning_adapter.training.distill import with_teacher
from pruning_adapter.training.examples import Example, TaskData
from pruning_adapter.training.files import load_files
from pruning_adapter.training.padding_free import check_padding_free
from pruning_adapter.training.recipes import Method
from pruning_adapter.training.spread import check_spread
from pruning_adapter.training.tasks import load_glue
from pruning_adapter.training.tokenize import count_truncated, sample_examples, tokenize
from pruning_adapter.training.trackers import find_trackers
from pruning_adapter.training.trainer import check_accumulate, make_collator

__all__ = ["Inputs", "device"]

SCORED_BATCH = 16
"""Examples a batch where importance is measured; with many processes there may be fewer."""
LEARNING_CURVE = 2000
"""Validation examples that are looked at after an epoch, at the most; the result looks at all."""


class Inputs:
    """What all steps of a run share. It reads, and writes nothing."""

    def __init__(self, settings: Settings, folder: Path, *, command: str = "") -> None:
        settings.check()
        self.settings = settings
        self.folder = folder
        self.command = command
        self.recipe = settings.followed
        check_accumulate(settings.accumulate, self.recipe)
        self.trackers = find_trackers(settings.report_to)
        check_spread(settings.method, self.prune_after)
        self._tokenized: list[tuple[tuple[Example, ...], list[dict[str, Any]]]] = []

    @property
    def method(self) -> Method:
        return cast(Method, self.settings.method)

    @property
    def prune_after(self) -> float:
        """The share of the training in which LoRA trains the dense model, before anything goes."""
        return self.settings.chosen("prune_after") if self.method == "prune-lora" else 0.0

    @cached_property
    def model_path(self) -> str:
        """Where the base model is loaded from."""
        if self.settings.demo and not self.settings.model:
            from pruning_adapter.demo import find_demo_encoder

            return str(find_demo_encoder())
        return self.settings.model

    @cached_property
    def data(self) -> TaskData:
        """The task's labelled examples."""
        settings = self.settings
        rows: dict[str, Any] = {"train_rows": settings.train_rows, "seed": settings.seed}
        if settings.demo:
            from pruning_adapter.demo import make_demo_task

            data = make_demo_task()
            if settings.train_rows is None:
                return data
            return replace(data, train=sample_examples(data.train, settings.train_rows, settings.seed))
        if settings.task is not None:
            return load_glue(settings.task, data_dir=Path(settings.data_dir) if settings.data_dir else None, **rows)
        return load_files(
            Path(settings.train_file or ""),
            Path(settings.validation_file or ""),
            text_columns=settings.text_columns,
            label_column=settings.label_column or "",
            **rows,
        )

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.model_path, revision=self.settings.revision)

    @cached_property
    def latency(self) -> LatencyTable | None:
        """What `keep_latency` predicts with: the table that was named, or one measured here; None by other rules."""
        if self.settings.keep_latency is None:
            return None
        if self.settings.latency_table is not None:
            table, asked = LatencyTable.load(self.settings.latency_table), self.settings.length
            if asked not in (table.length, Settings().length):
                raise PlanError(
                    f"length is {asked} tokens, but the latency table {self.settings.latency_table} was measured at "
                    f"{table.length}. Leave --length out, or measure another table."
                )
            return table
        from pruning_adapter.evaluation.latency import measure_latency

        return measure_latency(self.load_base().model, length=self.settings.length)

    @property
    def max_length(self) -> int:
        """Tokens after which an example is cut off."""
        return int(min(self.recipe.max_length, self.tokenizer.model_max_length, self._positions))

    @cached_property
    def _positions(self) -> float:
        """That the model reads: tokenizers need not know."""
        return _positions_of(self.load_base().model)

    def features(self, examples: tuple[Example, ...]) -> list[dict[str, Any]]:
        """Examples as the model reads them. The task's own sets are tokenised once."""
        for known, found in self._tokenized:
            if known is examples:
                return found
        found = tokenize(examples, self.tokenizer, max_length=self.max_length, label_names=self.data.label_names)
        if any(examples is each for each in (self.data.train, *self.data.validation.values())):
            self._tokenized.append((examples, found))
        return found

    def _taught_features(self) -> list[dict[str, Any]]:
        features = self.features(self.data.train)
        return features if self._teachers_logits is None else with_teacher(features, self._teachers_logits)

    @cached_property
    def _teachers_logits(self) -> NDArray[np.float32] | None:
        """What the teacher says about the training examples, `(examples, classes)`."""
        if self.settings.teacher is None:
            return None
        teacher, tokenizer = self._load_teacher(self.settings.teacher)
        teacher.to(device())
        longest = int(min(self.recipe.max_length, tokenizer.model_max_length, _positions_of(teacher)))
        features = tokenize(self.data.train, tokenizer, max_length=longest, label_names=self.data.label_names)
        return predict(teacher, features, make_collator(tokenizer))

    def check_teacher(self) -> None:
        """Load the teacher once, if there is one.

        Raises:
            CheckpointError, DataError: it is missing, or knows other classes.
        """
        if self.settings.teacher is not None:
            self._load_teacher(self.settings.teacher)

    def _load_teacher(self, name: str) -> tuple[Any, Any]:
        """The teacher and its tokenizer."""
        teacher = load_pruned(name)
        names = [str(name) for _, name in sorted(teacher.config.id2label.items())]
        wanted = list(self.data.label_names)
        if teacher.config.num_labels != max(len(wanted), 1) or (wanted and names != wanted):
            raise DataError(
                f"The teacher {name} tells {', '.join(names)} apart; the task's classes are "
                f"{', '.join(wanted) or 'a number'}. Name a model that was trained on this task."
            )
        tokenizer = load_tokenizer(name)
        give_padding_(teacher, tokenizer)
        return teacher, tokenizer

    def _scored_batches(self) -> LengthSortedBatches:
        sample = sample_examples(self.data.train, self.settings.examples, self.settings.seed)
        shuffle = None if self.settings.stop_when_stable is None else self.settings.seed
        # Every process needs one, whose weights may be spread over all.
        size = max(1, min(SCORED_BATCH, len(sample) // process_count()))
        collate = make_collator(self.tokenizer)
        batches = LengthSortedBatches(self.features(sample), collate, batch_size=size, shuffle=shuffle)
        return batches.dealt(process_number(), process_count())

    def typical_length(self) -> int:
        """Median length of the training examples in tokens, rounded up to a multiple of 8 as far as is read."""
        sample = sample_examples(self.data.train, 512, self.settings.seed)
        median = statistics.median(len(feature["input_ids"]) for feature in self.features(sample))
        return min(-(-int(median) // 8) * 8, self.max_length)

    def load_base(self) -> BaseModel:
        """A fresh dense base with a task head that starts the same way every time, on the device to train on."""
        settings = self.settings
        base = load_base(
            self.model_path, label_names=self.data.label_names, seed=settings.seed, revision=settings.revision
        )
        # What the files of a run call it; PEFT goes by the model's own attribute, which stays the path.
        cast(Any, base.model).config.name_or_path = settings.model_id
        give_padding_(base.model, self.tokenizer)
        # Known by now, so that no other model is loaded to tell it.
        self.__dict__.setdefault("_positions", _positions_of(base.model))
        if settings.padding_free:
            check_padding_free(base.model)
        base.model.to(device())
        return base

    def _measure_quality(self, scores: NDArray[np.float32], examples: tuple[Example, ...]) -> Quality:
        return measure_quality(
            self.data.metrics, scores=scores, labels=np.array([example.label for example in examples])
        )

    def _evaluate_briefly(self) -> Callable[[nn.Module], Mapping[str, float]]:
        examples = next(iter(self.data.validation.values()))
        if len(examples) > LEARNING_CURVE:
            examples = sample_examples(examples, LEARNING_CURVE, 0)
        features = self.features(examples)

        def evaluate(model: nn.Module) -> Mapping[str, float]:
            scores = predict(model, features, make_collator(self.tokenizer))
            quality = self._measure_quality(scores, examples)
            return {metric: measure.value for metric, measure in quality.metrics.items()}

        return evaluate

    def _tell_truncated(self) -> tuple[str, ...]:
        sets = {"training": self.data.train, **self.data.validation}
        found = {
            name: count_truncated(rows, self.features(rows), self.tokenizer, max_length=self.max_length)
            for name, rows in sets.items()
        }
        told = ", ".join(f"{count} of {len(sets[name])} ({name})" for name, count in found.items() if count)
        return (f"Examples longer than {self.max_length} tokens were cut off there: {told}.",) if told else ()


def _positions_of(model: nn.Module) -> float:
    positions = limits_of(model).positions
    return math.inf if positions is None else positions


def device() -> str:
    """Where models train."""
    return "cuda" if torch.cuda.is_available() else "cpu"
