"""The whole way, from a model and a task to a smaller, trained, merged model. Each step can be run alone.

A run lives in a folder; every step reads the files of the ones before and writes its own:

    settings.json → importance.json → plan.json, ranks.json → adapter/, training.json → merged/ → result.json
    → report.html

Where a plan corrects the kept weights for what is gone, training also writes base/: the corrected model that the
adapter belongs to.
"""

import logging
import shutil
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import set_seed

from pruning_adapter.adapter.carry import carry_, take_out_
from pruning_adapter.architectures.identity import PrunedState, dense_parameters, identify, pruned_state
from pruning_adapter.architectures.shapes import ModelIdentity, SiteShape
from pruning_adapter.checkpoint.adapter import save_adapter
from pruning_adapter.checkpoint.hub import find_model
from pruning_adapter.checkpoint.merged import load_pruned, merge, save_pruned
from pruning_adapter.checkpoint.terms import read_terms
from pruning_adapter.costs.latency import LatencyTable
from pruning_adapter.decide import choose_units, plan_from_settings
from pruning_adapter.environment import machine, versions
from pruning_adapter.errors import CheckpointError, DataError, PruningAdapterError
from pruning_adapter.evaluation.cost import (
    compare_inference,
    compare_training,
    count_costs,
    count_trainable,
    mix_training,
)
from pruning_adapter.evaluation.metrics import measure_quality
from pruning_adapter.evaluation.predict import predict
from pruning_adapter.evaluation.result import Quality, Result
from pruning_adapter.importance import (
    ImportanceScores,
    LengthSortedBatches,
    magnitude_importance,
    measure_importance,
    obs_importance,
    random_importance,
    reversed_importance,
)
from pruning_adapter.planning import PruningPlan, RankPlan
from pruning_adapter.planning.rank_plan import TARGETS
from pruning_adapter.planning.sweep import Sweep, sweep_budgets
from pruning_adapter.processes import first_does, first_says, process_count, process_number
from pruning_adapter.settings import Settings
from pruning_adapter.storage import read_json, replace_folder, write_json
from pruning_adapter.surgery.prune import check_plan_fits, forget_pruning_, note_in_config
from pruning_adapter.training.attention import choose_attention_
from pruning_adapter.training.base_model import BaseModel, load_base, load_tokenizer
from pruning_adapter.training.continuation import KEPT_FILES, RANDOM, carry_checkpoint
from pruning_adapter.training.distill import with_teacher
from pruning_adapter.training.examples import Example, TaskData
from pruning_adapter.training.files import load_files
from pruning_adapter.training.methods import apply_method, set_dropout_
from pruning_adapter.training.padding_free import check_padding_free, leave_out_padding_
from pruning_adapter.training.precision import halve_frozen_
from pruning_adapter.training.recipes import METHODS, Method, Recipe, find_recipe
from pruning_adapter.training.spread import check_spread
from pruning_adapter.training.tasks import HUB_DATASET, load_glue
from pruning_adapter.training.tokenize import count_truncated, sample_examples, tokenize
from pruning_adapter.training.trainer import (
    MOMENTS,
    check_accumulate,
    last_complete_checkpoint,
    make_collator,
    make_trainer,
    train_,
)

__all__ = ["Run"]

_LOGGER = logging.getLogger(__name__)

TRAINING = "pruning-adapter training"
CHECKPOINT = "checkpoint"
"""In start/: what is needed to go on from there."""
PREDICTIONS = "pruning-adapter predictions"
LEARNING_CURVE = 2000
"""Validation examples that are looked at after an epoch, at the most; the result looks at all."""
SCORED_BATCH = 16
"""Examples a batch where importance is measured; with many processes there may be fewer."""
COMPARED_BATCH = 32
"""Examples a batch where time is compared."""


class Run:
    """One run in its folder. Steps that are done already are not done again: their files are read."""

    def __init__(self, settings: Settings, folder: Path, *, command: str = "") -> None:
        settings.check()
        self.settings = settings
        self.folder = folder
        self.command = command
        self.recipe = _adjust_recipe(settings)
        check_spread(settings.method, self.prune_after)
        self._tokenized: list[tuple[tuple[Example, ...], list[dict[str, Any]]]] = []

    @property
    def method(self) -> Method:
        return cast(Method, self.settings.method)

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
            return LatencyTable.load(self.settings.latency_table)
        from pruning_adapter.evaluation.latency import measure_latency

        return measure_latency(self.load_base().model, length=self.settings.length)

    @property
    def max_length(self) -> int:
        """Tokens after which an example is cut off."""
        return min(self.recipe.max_length, self.tokenizer.model_max_length)

    def features(self, examples: tuple[Example, ...]) -> list[dict[str, Any]]:
        """Examples as the model reads them. The task's own sets are tokenised once."""
        for known, found in self._tokenized:
            if known is examples:
                return found
        found = tokenize(examples, self.tokenizer, max_length=self.max_length, label_names=self.data.label_names)
        if any(examples is each for each in (self.data.train, *self.data.validation.values())):
            self._tokenized.append((examples, found))
        return found

    def load_base(self) -> BaseModel:
        """A fresh dense base with a task head that starts the same way every time, on the device to train on."""
        settings = self.settings
        base = load_base(
            self.model_path, label_names=self.data.label_names, seed=settings.seed, revision=settings.revision
        )
        # What the files of a run call it; PEFT goes by the model's own attribute, which stays the path.
        cast(Any, base.model).config.name_or_path = settings.model_id
        if settings.padding_free:
            check_padding_free(base.model)
        base.model.to(_device())
        return base

    @property
    def prune_after(self) -> float:
        """The share of the training in which LoRA trains the dense model, before anything goes."""
        return self.settings.chosen("prune_after") if self.method == "prune-lora" else 0.0

    def load_start(self) -> BaseModel:
        """What is scored and pruned: the dense base, after the first share of the training where there is one.

        That is written to start/, once.
        """
        base = self.load_base()
        if not self.prune_after:
            return base
        path, checkpoints = self.folder / "start", self.folder / "start-checkpoints"
        if not first_says(path.exists()):
            self._train_start(base, path, checkpoints)
            base = self.load_base()
        else:
            self._check_start(base, path)
        # Also those of a run that was killed as soon as start/ was there.
        first_does(partial(shutil.rmtree, checkpoints, ignore_errors=True))
        # A whole checkpoint, in which nothing starts at random; what did so in the base trains on.
        started = load_base(str(path), label_names=self.data.label_names, seed=self.settings.seed)
        # It is still that model to those who read what is saved.
        model, whole = cast(Any, started.model), cast(Any, base.model)
        model.name_or_path, model.config.name_or_path = whole.name_or_path, whole.config.name_or_path
        model.config._commit_hash = getattr(whole.config, "_commit_hash", None)
        return replace(base, model=started.model.to(_device()))

    def _check_start(self, base: BaseModel, path: Path) -> None:
        began = read_json(path / "training.json", kind=TRAINING).get("base")
        if began != identify(base.model).fingerprint:
            raise CheckpointError(
                f"{path} was trained from another model than {self.model_path}. Score this one anew: "
                "`pruning-adapter importance --overwrite`."
            )

    def _train_start(self, base: BaseModel, path: Path, checkpoints: Path) -> None:
        _LOGGER.info("the dense model trains for %.0f %% of the steps, then units go", 100 * self.prune_after)
        stopped = first_says(last_complete_checkpoint(checkpoints))
        if stopped is None or not (stopped / MOMENTS).exists():
            # As LoRA on a model that stays dense begins.
            set_seed(self.settings.seed)
            self._train_(self._adapt_whole(base), checkpoints, stop_after=self.prune_after)
            stopped = first_says(cast(Path, last_complete_checkpoint(checkpoints)))
        first_does(partial(self._write_start, base, path, checkpoints, stopped))

    def _write_start(self, base: BaseModel, path: Path, checkpoints: Path, stopped: Path) -> None:
        # Merged in full precision, whatever it was trained in.
        merged = merge(self._attach(self.load_base().model, stopped))
        forget_pruning_(merged)
        with replace_folder(path) as aside:
            save_pruned(merged, aside, tokenizer=self.tokenizer)
            (aside / CHECKPOINT).mkdir()
            names = (*KEPT_FILES, "adapter_config.json", "adapter_model.safetensors")
            for file in (*(stopped / name for name in names), *stopped.glob(RANDOM)):
                shutil.copy(file, aside / CHECKPOINT)
            write_json(aside / "training.json", {"kind": TRAINING, "base": identify(base.model).fingerprint})

    def _adapt_whole(self, base: BaseModel) -> nn.Module:
        """LoRA on the dense model, of the lowest rank that the plan of ranks will give: ranks only grow."""
        identity, settings = identify(base.model), self.settings
        rank = self.recipe.lora_rank if settings.rank_budget is not None else settings.low_rank or settings.high_rank
        whole = PruningPlan.from_pruned_heads(identity, {}, dense_parameters=dense_parameters(base.model))
        roles = TARGETS[settings.target]
        ranks = RankPlan(
            model=identity,
            kept_heads=whole.kept_heads,
            kept_neurons=whole.kept_neurons,
            ranks=_ranks(identity.sites, rank, roles),
            feed_forward_ranks=_ranks(identity.feed_forwards, rank, roles),
            roles=roles,
        )
        return apply_method(base, "prune-lora", self.recipe, plan=whole, ranks=ranks)

    def load_adapted_base(self) -> BaseModel:
        """The base that LoRA is attached to: the dense one, or a pruned one that trained before or was corrected.

        The latter is written to base/, once, since the adapter belongs to these very weights.
        """
        if self.method != "prune-lora" or not (self.prune_after or self.plan()[0].reconstruct != "none"):
            return self.load_base()
        base = self.load_start()
        path = self.folder / "base"
        if not first_says(path.exists()):
            from pruning_adapter.surgery.reconstruct import reconstruct_

            pruned = replace(base, model=reconstruct_(base.model, self.plan()[0], self._scored_batches()))
            first_does(partial(self._write_base, pruned, path))
        # As it loads from disk, so that training and merging begin from the same bits.
        return replace(base, model=load_pruned(path).to(_device()))

    def _write_base(self, pruned: BaseModel, path: Path) -> None:
        model = self._take_out_adapter(pruned) if self.prune_after else pruned.model
        save_pruned(model, path, tokenizer=self.tokenizer)

    def _take_out_adapter(self, pruned: BaseModel) -> nn.Module:
        """The pruned start without what is left of the adapter, which trains on: together they are the pruned start."""
        plan, ranks = self.plan()
        state = cast(PrunedState, pruned_state(pruned.model))
        adapted = apply_method(pruned, "prune-lora", self.recipe, plan=plan, ranks=ranks)
        carry_(self._load_start_adapted(), adapted, plan)
        take_out_(adapted)
        base = cast(nn.Module, cast(Any, adapted).unload())
        note_in_config(base, state.dense, state.kept, macs=plan.macs, reconstructed=plan.reconstruct)
        return base

    def _load_start_adapted(self) -> nn.Module:
        return self._attach(self.load_base().model, self.folder / "start" / CHECKPOINT)

    def check_inputs(self, step: str) -> None:
        """Read once what `step` works from, so that what cannot work fails before anything is replaced.

        Raises:
            ArchitectureError, CheckpointError, DataError, PlanError: which, and what to do.
        """
        if step in ("importance", "train"):
            self.load_base()
            self.features(self.data.train[:1])
            if step == "train" and self.method == "prune-lora":
                check_plan_fits(self.load_start().model, self.plan()[0])
        if step == "plan":
            self.decide()
        if step == "merge":
            self._load_adapted()
        if step == "evaluate":
            read_json(self.folder / "training.json", kind=TRAINING)
            self.merge()

    def check_rule(self) -> None:
        """Refuse a rule that no scores of this model can meet, such as more heads than it has.

        Raises:
            PlanError: which, and what is possible.
        """
        if self.method == "prune-lora":
            made_up = random_importance(self.load_base().model, seed=0, units=self.settings.kinds)
            # What ranks cost depends on which units stay.
            plan_from_settings(replace(self.settings, rank_budget=None), made_up, latency=self.latency)

    def decide(self) -> tuple[PruningPlan, RankPlan]:
        """Both plans, from the scores; writes none."""
        return plan_from_settings(self.settings, self.measure(), latency=self.latency)

    def sweep(self, by: str) -> Sweep:
        """What budgets from the smallest possible to everything would keep; writes nothing.

        Raises:
            PlanError: an unknown currency, or one whose cost was not counted.
        """
        settings, scores = self.settings, self.measure()
        return sweep_budgets(
            # All that was scored competes, unless it was said what may go.
            scores if settings.units is None else choose_units(settings, scores),
            by=cast(Any, by),
            length=settings.length,
            normalization=cast(Any, settings.normalization),
            grouping=cast(Any, settings.grouping),
            multiple_of=settings.multiple_of or 1,
            allow_empty_blocks=settings.allow_empty_blocks,
        )

    def measure(self) -> ImportanceScores:
        """Score heads, neurons, or both; writes importance.json."""
        path = self.folder / "importance.json"
        if first_says(path.exists()):
            return ImportanceScores.load(path)
        scorer = self.settings.chosen("scorer")
        model = self.load_start().model
        if scorer == "random":
            scores = random_importance(model, seed=self.settings.seed, units=self.settings.kinds)
        elif scorer == "magnitude":
            scores = magnitude_importance(model, units=self.settings.kinds)
        elif scorer == "reversed":
            # Only gradients have an order.
            ours = self.recipe.scorer if self.settings.order is None else "gradient"
            scores = reversed_importance(self._score(model, ours))
        else:
            scores = self._score(model, scorer)
        scores = replace(scores, task=self.data.name, seed=self.settings.seed)
        first_does(partial(scores.save, path))
        return scores

    def _score(self, model: nn.Module, scorer: str) -> ImportanceScores:
        settings, batches = self.settings, self._scored_batches()
        if scorer == "obs":
            return obs_importance(model, batches, units=settings.kinds)
        scores = measure_importance(
            model,
            batches,
            units=settings.kinds,
            order=settings.chosen("order"),
            reduction=cast(Any, settings.reduction),
            stop_when_stable=settings.stop_when_stable,
        )
        if settings.stop_when_stable is not None and scores.examples < settings.examples:
            _LOGGER.info("stopped after %d examples: their halves agree to %.2f", scores.examples, scores.agreement)
        return scores

    def plan(self) -> tuple[PruningPlan, RankPlan]:
        """Decide what goes and at which rank the rest trains; writes plan.json and ranks.json."""
        plan_path, ranks_path = self.folder / "plan.json", self.folder / "ranks.json"
        if first_says(plan_path.exists() and ranks_path.exists()):
            return PruningPlan.load(plan_path), RankPlan.load(ranks_path)
        decided = first_does(partial(self._write_plan, plan_path, ranks_path))
        return decided or (PruningPlan.load(plan_path), RankPlan.load(ranks_path))

    def _write_plan(self, plan_path: Path, ranks_path: Path) -> tuple[PruningPlan, RankPlan]:
        plan, ranks = self.decide()
        if self.latency is not None:
            self.latency.save(self.folder / "latency.json")
        ranks.save(ranks_path)
        plan.save(plan_path)
        return plan, ranks

    def train(self) -> None:
        """Train by the method; writes adapter/ (for "full": merged/) and training.json."""
        trained = self.folder / ("merged" if self.method == "full" else "adapter")
        checkpoints = self.folder / "checkpoints"
        if not first_says(trained.exists() and (self.folder / "training.json").exists()):
            self._train_to_the_end(checkpoints)
        # Also those of a run that was killed as soon as training.json was there.
        first_does(partial(shutil.rmtree, checkpoints, ignore_errors=True))

    def _train_to_the_end(self, checkpoints: Path) -> None:
        plan, ranks = self.plan() if self.method == "prune-lora" else (None, None)
        base = self.load_adapted_base()
        # Whatever was drawn before: a run that goes on draws less.
        set_seed(self.settings.seed)
        model = apply_method(base, self.method, self.recipe, plan=plan, ranks=ranks)
        trainable = count_trainable(model)
        if plan is not None and self.prune_after and first_says(last_complete_checkpoint(checkpoints)) is None:
            # The others read it as it is loaded for training.
            first_does(partial(self._carry_start, model, plan, checkpoints))
        history = self._train_(model, checkpoints)
        self._save_trained(model)
        content = {"kind": TRAINING, "trainable_parameters": trainable, "history": history}
        content |= {"processes": process_count(), "versions": versions()}
        first_does(partial(write_json, self.folder / "training.json", content))

    def _carry_start(self, model: nn.Module, plan: PruningPlan, checkpoints: Path) -> None:
        carry_checkpoint(
            self.folder / "start" / CHECKPOINT,
            checkpoints,
            dense=self._load_start_adapted(),
            pruned=model,
            plan=plan,
            trainer=make_trainer(model, folder=checkpoints, **self._how_to_train()),
        )

    def _train_(self, model: nn.Module, checkpoints: Path, *, stop_after: float = 1.0) -> list[dict[str, float]]:
        """Train, to the end or for a share of the steps; a training that was interrupted goes on."""
        self.ready_(model)
        if self.settings.padding_free:
            leave_out_padding_(model)
        return train_(
            model,
            folder=checkpoints,
            evaluate=self._evaluate_briefly(),
            resume=True,
            stop_after=stop_after,
            **self._how_to_train(),
        )

    def _how_to_train(self) -> dict[str, Any]:
        return {
            "features": self._taught_features(),
            "tokenizer": self.tokenizer,
            "recipe": self.recipe,
            "method": self.method,
            "seed": self.settings.seed,
            "accumulate": self.settings.accumulate,
            "bf16": self.settings.bf16,
        }

    def _taught_features(self) -> list[dict[str, Any]]:
        features = self.features(self.data.train)
        return features if self._teachers_logits is None else with_teacher(features, self._teachers_logits)

    @cached_property
    def _teachers_logits(self) -> NDArray[np.float32] | None:
        """What the teacher says about the training examples, `(examples, classes)`."""
        if self.settings.teacher is None:
            return None
        teacher = load_pruned(self.settings.teacher).to(_device())
        names = [str(name) for _, name in sorted(teacher.config.id2label.items())]
        wanted = list(self.data.label_names)
        if teacher.config.num_labels != max(len(wanted), 1) or (wanted and names != wanted):
            raise DataError(
                f"The teacher {self.settings.teacher} tells {', '.join(names)} apart; the task's classes are "
                f"{', '.join(wanted) or 'a number'}. Name a model that was trained on this task."
            )
        tokenizer = load_tokenizer(self.settings.teacher)
        longest = min(self.recipe.max_length, tokenizer.model_max_length)
        features = tokenize(self.data.train, tokenizer, max_length=longest, label_names=self.data.label_names)
        return predict(teacher, features, make_collator(tokenizer))

    def merge(self) -> Any:
        """Merge into a stand-alone model; writes merged/ and returns the model loaded from there."""
        path = self.folder / "merged"
        if not path.exists():
            save_pruned(merge(self._load_adapted()), path, tokenizer=self.tokenizer)
        return load_pruned(path).to(_device())

    def evaluate(self, *, compare: bool = True) -> Result:
        """Measure the merged model, as it loads from disk, on the validation sets.

        Writes result.json, and predictions.json with the class (or number) predicted for every example, and its label.
        With `compare`, time and memory are measured beside the dense model's.
        """
        path = self.folder / "result.json"
        if path.exists():
            return Result.load(path)
        model, dense = self.merge(), self.load_base().model
        training = read_json(self.folder / "training.json", kind=TRAINING)
        batch, length = self._compared_shape()
        scores = {
            name: predict(model, self.features(examples), make_collator(self.tokenizer))
            for name, examples in self.data.validation.items()
        }
        quality = {name: self._measure_quality(scores[name], self.data.validation[name]) for name in scores}
        notes, training_cost = [*_warn(quality), *self._tell_truncated()], dict[str, Any]()
        if compare and self.method == "prune-lora":
            try:
                training_cost = self._compare_training(batch, length)
            except torch.OutOfMemoryError:
                notes.append(
                    "The training step was not compared with LoRA's: two models at once did not fit in memory."
                )
        predictions = {
            name: (rows[:, 0] if self.data.is_regression else rows.argmax(axis=1)).tolist()
            for name, rows in scores.items()
        }
        labels = {name: [example.label for example in rows] for name, rows in self.data.validation.items()}
        content = {"kind": PREDICTIONS, "predictions": predictions, "labels": labels}
        write_json(self.folder / "predictions.json", content)
        result = Result(
            task={
                "name": self.data.name,
                "train_examples": len(self.data.train),
                "labels": list(self.data.label_names),
                **({"dataset": HUB_DATASET} if self.settings.task is not None else {}),
            },
            model=self._describe_model(dense),
            method=self.method,
            scorer=self.settings.chosen("scorer") if self.method == "prune-lora" else None,
            seed=self.settings.seed,
            recipe={
                **self.recipe.to_json(),
                "learning_rate": self.recipe.learning_rate[self.method],
                "precision": "bfloat16 autocast" if self.settings.bf16 else "float32",
                "padding_free": self.settings.padding_free,
                "prune_after": self.prune_after,
            },
            quality=quality,
            cost={
                **count_costs(model, dense, length=length),
                **(compare_inference(model, dense, batch=batch, length=length) if compare else {}),
                **training_cost,
                "trainable_parameters": training["trainable_parameters"],
            },
            history=tuple(training["history"]),
            pruning=self._describe_pruning(length) if self.method == "prune-lora" else None,
            notes=tuple(notes),
            command=self.command,
            versions=versions(),
            machine=machine(),
        )
        result.save(path)
        return result

    def report(self) -> Path:
        """Write report.html from result.json, and the cards of merged/ and adapter/; returns the page's path."""
        from pruning_adapter.reporting import write_cards, write_report

        path = self.folder / "report.html"
        write_report(self.evaluate(), path)
        write_cards(self.evaluate(), self.folder)
        return path

    def _scored_batches(self) -> LengthSortedBatches:
        sample = sample_examples(self.data.train, self.settings.examples, self.settings.seed)
        shuffle = None if self.settings.stop_when_stable is None else self.settings.seed
        # Every process needs one, whose weights may be spread over all.
        size = max(1, min(SCORED_BATCH, len(sample) // process_count()))
        collate = make_collator(self.tokenizer)
        batches = LengthSortedBatches(self.features(sample), collate, batch_size=size, shuffle=shuffle)
        return batches.dealt(process_number(), process_count())

    def load_stock(self) -> nn.Module:
        """LoRA on the dense model as people run it, with the model's own dropout: what training is compared with."""
        stock = apply_method(self.load_base(), "lora", replace(self.recipe, adapter_dropout=None, lora_dropout=0.0))
        return self.ready_(stock)

    def ready_(self, model: nn.Module) -> nn.Module:
        """Give a model that is about to train the precision and the kernels of this run, in place."""
        if self.settings.bf16:
            halve_frozen_(model)
        if self.settings.bf16 and not self.settings.padding_free:
            choose_attention_(model, longest=self.recipe.max_length)
        return model

    def compare_training(self, model: nn.Module, *, batch: int, length: int, prune_after: float = 0) -> dict[str, Any]:
        """Time and memory of a training step of `model` beside stock LoRA's; see `evaluation.cost.compare_training`.

        With `prune_after`, the dense model's steps before the pruning have their share in it.
        """

        def beside_stock(each: nn.Module) -> dict[str, Any]:
            return compare_training(
                self.ready_(each), self.load_stock(), batch=batch, length=length, bf16=self.settings.bf16
            )

        measured = beside_stock(model)
        if not prune_after:
            return measured
        before = beside_stock(self._adapt_whole(self.load_base()))
        return mix_training([(prune_after, before), (1 - prune_after, measured)])

    def _compare_training(self, batch: int, length: int) -> dict[str, Any]:
        model = self._load_adapted(trainable=True)
        if self.recipe.adapter_dropout is not None:
            set_dropout_(model, self.recipe.adapter_dropout)
        # In parts as small as those that training computes.
        part = max(1, batch // self.settings.accumulate)
        return self.compare_training(model, batch=part, length=length, prune_after=self.prune_after)

    def _load_adapted(self, *, trainable: bool = False) -> nn.Module:
        return self._attach(self.load_adapted_base().model, self.folder / "adapter", trainable=trainable)

    def _attach(self, base: nn.Module, adapter: Path, *, trainable: bool = False) -> nn.Module:
        from peft import PeftModel

        try:
            with warnings.catch_warnings():
                # PEFT only warns, and leaves such weights as they start.
                warnings.filterwarnings("error", message="Found missing adapter keys")
                return cast(nn.Module, PeftModel.from_pretrained(cast(Any, base), str(adapter), is_trainable=trainable))
        except PruningAdapterError:
            raise
        except Exception as error:  # PEFT, safetensors, the JSON reader and the Hub's client each raise their own kinds
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"{adapter} is missing, damaged or incomplete ({first}). Train again.") from error

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

    def _measure_quality(self, scores: NDArray[np.float32], examples: tuple[Example, ...]) -> Quality:
        return measure_quality(
            self.data.metrics, scores=scores, labels=np.array([example.label for example in examples])
        )

    def _tell_truncated(self) -> tuple[str, ...]:
        sets = {"training": self.data.train, **self.data.validation}
        found = {
            name: count_truncated(rows, self.features(rows), self.tokenizer, max_length=self.max_length)
            for name, rows in sets.items()
        }
        told = ", ".join(f"{count} of {len(sets[name])} ({name})" for name, count in found.items() if count)
        return (f"Examples longer than {self.max_length} tokens were cut off there: {told}.",) if told else ()

    def _save_trained(self, model: nn.Module) -> None:
        if self.method == "full":
            first_does(partial(save_pruned, model, self.folder / "merged", tokenizer=self.tokenizer))
            return
        save_adapter(model, self.folder / "adapter", tokenizer=self.tokenizer)

    def _compared_shape(self) -> tuple[int, int]:
        """Batch and length at which cost is compared: those of the budget, or else the task's own length."""
        rule: Mapping[str, Any] = {}
        if self.method == "prune-lora":
            rule = self.plan()[0].origin.get("rule") or {}
        if "keep_latency" in rule and (self.folder / "latency.json").exists():
            table = LatencyTable.load(self.folder / "latency.json")
            return table.batch, table.length
        return COMPARED_BATCH, rule.get("length") or self.typical_length()

    def typical_length(self) -> int:
        """Median length of the training examples in tokens, rounded up to a multiple of 8."""
        sample = sample_examples(self.data.train, 512, self.settings.seed)
        median = statistics.median(len(feature["input_ids"]) for feature in self.features(sample))
        return -(-int(median) // 8) * 8

    def _describe_model(self, dense: nn.Module) -> dict[str, Any]:
        identity = identify(dense)
        return {
            "id": self.settings.model_id,
            "revision": identity.revision,
            "model_type": identity.model_type,
            "fingerprint": identity.fingerprint,
            **read_terms(find_model(self.model_path, revision=identity.revision).folder),
        }

    def _describe_pruning(self, length: int) -> dict[str, Any]:
        scores, (plan, ranks) = self.measure(), self.plan()
        rule = dict(plan.origin.get("rule") or {})
        predicted_time = rule.pop("predicted", None)
        return {
            "importance": _importance_by_head(scores, self.settings.normalization or "block"),
            "kept_heads": [list(kept) for kept in plan.kept_heads],
            "dense_heads": list(plan.model.heads),
            "neurons_kept": [len(kept) for kept in plan.kept_neurons],
            "dense_neurons": list(plan.model.neurons),
            "beside": _heads_beside_neurons(plan.model),
            "ranks": list(ranks.ranks),
            "feed_forward_ranks": list(ranks.feed_forward_ranks),
            "rank_roles": _roles_there(plan.model, ranks.roles),
            "rule": rule,
            "predicted": {
                "parameters": plan.parameters,
                **({} if plan.macs is None else {"macs": plan.count_macs(length)}),
                **({} if predicted_time is None else {"latency_ratio": predicted_time}),
            },
            "reconstruct": plan.reconstruct,
        }


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _importance_by_head(scores: ImportanceScores, normalization: str) -> list[list[float | None]]:
    """Normalised, by attention and by the heads' number in the dense model; None for those that are gone already."""
    if not scores.heads:
        return []
    rows = scores.normalized(cast(Any, normalization))
    known = [dict(zip(kept, row.tolist(), strict=True)) for kept, row in zip(scores.kept_heads, rows, strict=True)]
    return [[row.get(head) for head in range(heads)] for row, heads in zip(known, scores.model.heads, strict=True)]


def _roles_there(model: ModelIdentity, roles: Sequence[str]) -> list[str]:
    """Those roles that the model has; "all-linear" names those of all families."""
    there = {
        role
        for site in model.all_sites
        for role in (site.output_role, *(role for projection in site.projections for role in projection.roles))
    }
    return [role for role in roles if role in there]


def _ranks(sites: Sequence[SiteShape], rank: int, roles: tuple[str, ...]) -> tuple[int, ...]:
    """`rank` where one of the roles is played, else 0."""
    return tuple(rank if site.units and site.lora_parameters(range(site.units), 1, roles) else 0 for site in sites)


def _heads_beside_neurons(model: ModelIdentity) -> list[int]:
    """For every feed-forward the number of the attention before it in its block."""
    blocks, attentions = model.blocks_of_sites, len(model.sites)
    last = {block: site for site, block in enumerate(blocks[:attentions])}
    return [last[block] for block in blocks[attentions:]]


def _adjust_recipe(settings: Settings) -> Recipe:
    recipe = find_recipe(settings.recipe)
    if settings.epochs is not None:
        recipe = replace(recipe, epochs=settings.epochs)
    if settings.learning_rate is not None:
        recipe = replace(recipe, learning_rate=dict.fromkeys(METHODS, settings.learning_rate))
    check_accumulate(settings.accumulate, recipe)
    return recipe


def _warn(quality: Mapping[str, Quality]) -> tuple[str, ...]:
    return tuple(
        f"The model gives one answer for all {measured.examples} examples of {name}, as if it only knew the majority "
        "class: it has learnt nothing. Try another learning rate or more epochs."
        for name, measured in quality.items()
        if measured.at_majority
    )
