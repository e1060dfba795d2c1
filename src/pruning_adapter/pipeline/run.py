"""The whole way, from a model and a task to a smaller, trained, merged model. Each step can be run alone.

A run lives in a folder; every step reads the files of the ones before and writes its own:

    settings.json → importance.json → plan.json, ranks.json → adapter/, training.json → merged/ → result.json
    → report.html

Where a plan corrects the kept weights for what is gone, training also writes base/: the corrected model that the
adapter belongs to.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import set_seed

from pruning_adapter.adapter.carry import carry_, take_out_
from pruning_adapter.architectures.identity import PrunedState, identify, pruned_state
from pruning_adapter.architectures.shapes import public_name
from pruning_adapter.checkpoint.adapter import save_adapter
from pruning_adapter.checkpoint.hub import find_model
from pruning_adapter.checkpoint.merged import load_pruned, merge, save_pruned
from pruning_adapter.checkpoint.replaceable import check_adapter_replaceable, check_replaceable
from pruning_adapter.checkpoint.terms import read_terms
from pruning_adapter.costs.latency import LatencyTable
from pruning_adapter.decide import choose_units, plan_from_settings
from pruning_adapter.environment import machine, versions
from pruning_adapter.evaluation.cost import (
    compare_inference,
    compare_training,
    count_costs,
    count_trainable,
    mix_training,
)
from pruning_adapter.evaluation.predict import predict
from pruning_adapter.evaluation.result import Result
from pruning_adapter.importance import ImportanceScores
from pruning_adapter.pipeline.describe import describe_pruning, warn
from pruning_adapter.pipeline.inputs import device
from pruning_adapter.pipeline.refusals import check_length, check_rule, check_started
from pruning_adapter.pipeline.start import CHECKPOINT, TRAINING, Start
from pruning_adapter.planning import PruningPlan, RankPlan
from pruning_adapter.planning.sweep import Sweep, sweep_budgets
from pruning_adapter.processes import first_does, first_says, process_count
from pruning_adapter.run_folder import check_links
from pruning_adapter.scoring import score_from_settings
from pruning_adapter.storage import read_json, write_json
from pruning_adapter.surgery.prune import check_plan_fits, note_in_config
from pruning_adapter.training.base_model import BaseModel
from pruning_adapter.training.continuation import carry_checkpoint
from pruning_adapter.training.methods import apply_method, set_dropout_
from pruning_adapter.training.tasks import HUB_DATASET, find_task
from pruning_adapter.training.trainer import (
    last_complete_checkpoint,
    make_collator,
    make_trainer,
)

__all__ = ["PREDICTIONS", "Run"]

PREDICTIONS = "pruning-adapter predictions"
COMPARED_BATCH = 32
"""Examples a batch where time is compared."""


class Run(Start):
    """One run in its folder. Steps that are done already are not done again: their files are read."""

    def load_adapted_base(self) -> BaseModel:
        """The base that LoRA is attached to: the dense one, or a pruned one that trained before or was corrected.

        The latter is written to base/, once, since the adapter belongs to these very weights.
        """
        base = self.load_base()
        if self.method != "prune-lora" or not (self.prune_after or self.plan()[0].reconstruct != "none"):
            return base
        path = self.folder / "base"
        if first_says(path.exists()):
            self._check_start(base, self.folder / "start")
        else:
            base = self.load_start()
            from pruning_adapter.surgery.reconstruct import reconstruct_

            pruned = replace(base, model=reconstruct_(base.model, self.plan()[0], self._scored_batches()))
            first_does(partial(self._write_base, pruned, path))
        # As it loads from disk, so that training and merging begin from the same bits.
        return replace(base, model=load_pruned(path).to(device()))

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

    def check_inputs(self, step: str) -> None:
        """Read once what `step` works from, so that what cannot work fails before anything is replaced.

        Raises:
            ArchitectureError, CheckpointError, DataError, PlanError: which, and what to do.
        """
        if step in ("importance", "train"):
            self.load_base()
            self.features(self.data.train[:1])
            self.check_teacher()
            if step == "train" and self.method == "prune-lora":
                check_started(self)
                check_plan_fits(self.load_start().model, self.plan()[0])
        if step == "plan":
            self.check_start()
            self.decide()
        if step == "merge":
            self._load_adapted()
        if step == "evaluate":
            read_json(self.folder / "training.json", kind=TRAINING)
            self.merge()

    def check_rule(self) -> None:
        """Refuse what no scores of this model can meet, before anything is trained; see `refusals`.

        Raises:
            PlanError, TrainingError: which, and what is possible.
        """
        check_rule(self)

    def decide(self) -> tuple[PruningPlan, RankPlan]:
        """Both plans, from the scores; writes none."""
        check_length(self)
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
        first_does(partial(check_links, self.folder))
        scores = score_from_settings(self.settings, self.load_start().model, self._scored_batches)
        scores = replace(scores, task=self.data.name, seed=self.settings.seed)
        first_does(partial(scores.save, path))
        return scores

    def plan(self) -> tuple[PruningPlan, RankPlan]:
        """Decide what goes and at which rank the rest trains; writes plan.json and ranks.json."""
        plan_path, ranks_path = self.folder / "plan.json", self.folder / "ranks.json"
        if first_says(plan_path.exists() and ranks_path.exists()):
            return PruningPlan.load(plan_path), RankPlan.load(ranks_path)
        # Scoring takes all processes.
        self.measure()
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
        first_does(partial(check_links, self.folder))
        trained = self.folder / ("merged" if self.method == "full" else "adapter")
        checkpoints = self.folder / "checkpoints"
        if not first_says(trained.exists() and (self.folder / "training.json").exists()):
            # What cannot be saved at the end need not be trained.
            first_does(partial(check_replaceable if self.method == "full" else check_adapter_replaceable, trained))
            self._train_to_the_end(checkpoints)
        # Also those of a run that was killed as soon as training.json was there.
        first_does(partial(shutil.rmtree, checkpoints, ignore_errors=True))

    def _train_to_the_end(self, checkpoints: Path) -> None:
        plan, ranks = self.plan() if self.method == "prune-lora" else (None, None)
        base = self.load_adapted_base()
        # Whatever was drawn before: a run that goes on draws less.
        set_seed(self.settings.seed)
        model = apply_method(base, self.method, self.recipe, plan=plan, ranks=ranks)
        if plan is not None and self.prune_after and first_says(last_complete_checkpoint(checkpoints)) is None:
            # The others read it as it is loaded for training.
            first_does(partial(self._carry_start, model, plan, checkpoints))
        trainable = count_trainable(model)
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

    def merge(self) -> Any:
        """Merge into a stand-alone model; writes merged/ and returns the model loaded from there."""
        path = self.folder / "merged"
        if not path.exists():
            save_pruned(merge(self._load_adapted()), path, tokenizer=self.tokenizer)
        return load_pruned(path).to(device())

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
        notes, training_cost = [*warn(quality), *self._tell_truncated()], dict[str, Any]()
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
        pruning = None
        if self.method == "prune-lora":
            shown = self.settings.normalization or "block"
            pruning = describe_pruning(self.measure(), *self.plan(), normalization=shown, length=length)
        result = Result(
            task={
                "name": self.data.name,
                "train_examples": len(self.data.train),
                "labels": list(self.data.label_names),
                **self._dataset(),
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
                "teacher": None if self.settings.teacher is None else public_name(self.settings.teacher),
            },
            quality=quality,
            cost={
                **count_costs(model, dense, length=length),
                **(compare_inference(model, dense, batch=batch, length=length) if compare else {}),
                **training_cost,
                "trainable_parameters": training["trainable_parameters"],
            },
            history=tuple(training["history"]),
            pruning=pruning,
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

    def load_stock(self) -> nn.Module:
        """LoRA on the dense model as people run it, with the model's own dropout: what training is compared with."""
        stock = apply_method(self.load_base(), "lora", replace(self.recipe, adapter_dropout=None, lora_dropout=0.0))
        return self.ready_(stock)

    def compare_training(self, model: nn.Module, *, batch: int, length: int) -> dict[str, Any]:
        """Time and memory of a training step of `model` beside stock LoRA's; see `evaluation.cost.compare_training`."""
        return compare_training(
            self.ready_(model), self.load_stock(), batch=batch, length=length, bf16=self.settings.bf16
        )

    def compare_training_in_parts(self, model: nn.Module, *, batch: int, length: int) -> dict[str, Any]:
        """The same for the mean step of a training that ends with `model` and began with the dense one."""
        models = [(1 - self.prune_after, model)]
        if self.prune_after:
            models.insert(0, (self.prune_after, self._adapt_whole(self.load_base())))
        return mix_training(
            [(share, self.compare_training(each, batch=batch, length=length)) for share, each in models]
        )

    def _compare_training(self, batch: int, length: int) -> dict[str, Any]:
        model = self._load_adapted(trainable=True)
        if self.recipe.adapter_dropout is not None:
            set_dropout_(model, self.recipe.adapter_dropout)
        # In parts as small as those that training computes.
        part = max(1, batch // self.settings.accumulate)
        return self.compare_training_in_parts(model, batch=part, length=length)

    def _load_adapted(self, *, trainable: bool = False) -> nn.Module:
        return self._attach(self.load_adapted_base().model, self.folder / "adapter", trainable=trainable)

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

    def _dataset(self) -> dict[str, Any]:
        """Where the Hub has the task, and what it calls its validation sets."""
        if self.settings.task is None:
            return {}
        sets = find_task(self.settings.task).validation
        return {"dataset": HUB_DATASET, "splits": {each.name: each.split for each in sets}}

    def _describe_model(self, dense: nn.Module) -> dict[str, Any]:
        identity = identify(dense)
        return {
            "id": self.settings.model_id,
            "revision": identity.revision,
            "model_type": identity.model_type,
            "fingerprint": identity.fingerprint,
            **read_terms(find_model(self.model_path, revision=identity.revision).folder),
        }
