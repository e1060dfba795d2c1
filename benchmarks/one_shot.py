"""Accuracy right after pruning, at equal counted compute: ours beside Torch-Pruning, random and reversed choices.

    python benchmarks/one_shot.py --model MODEL --data-dir GLUE --work-dir WORK --recover \
        --output benchmarks/results/one-shot.json

Per task and seed, one model is fully fine-tuned (cached in the work folder). Every arm prunes a copy of it to the same
multiply-accumulates of the encoder, counted on the pruned model itself at 128 tokens, choosing by the same 512 training
examples; the pooler and the classifier, which nothing prunes, are counted apart. Then the validation accuracy is taken
without any training and, with --recover, after the same LoRA training for all arms: PEFT's own LoRA of rank 8 on the
attention's four projections, plus normalisation layers and classifier, whatever the arm produced.

Torch-Pruning runs in the same process (pip install torch-pruning==1.6.1), as in its own example for BERT, with settings
chosen in its favour; see `torch_pruning_`. Nothing may change the hidden size, and no block may lose all its heads.

Cells that the output file already holds are skipped, so the grid resumes after any interruption. Beside the JSON, a
Markdown table of the same name is written.
"""

import argparse
import copy
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from scipy import stats
from torch import nn

from provenance import command_of, heading
from pruning_adapter.architectures.identity import identify
from pruning_adapter.architectures.sites import find_feed_forwards, find_sites
from pruning_adapter.costs.macs import count_macs, count_model_macs
from pruning_adapter.environment import machine, versions
from pruning_adapter.evaluation.metrics import measure_quality
from pruning_adapter.evaluation.predict import predict
from pruning_adapter.importance import (
    ImportanceScores,
    measure_importance,
    random_importance,
    reversed_importance,
)
from pruning_adapter.importance.batching import LengthSortedBatches
from pruning_adapter.planning import plan_pruning
from pruning_adapter.storage import replace_folder, write_json, write_text
from pruning_adapter.surgery import prune_, reconstruct_
from pruning_adapter.training.base_model import BaseModel, load_base, load_tokenizer
from pruning_adapter.training.methods import apply_method
from pruning_adapter.training.recipes import RECIPES
from pruning_adapter.training.tasks import load_glue
from pruning_adapter.training.tokenize import sample_examples, tokenize
from pruning_adapter.training.trainer import make_collator, train_

LENGTH = 128
RECIPE = RECIPES["default"]
UNITS = ("heads", "neurons")
RIVAL = "Torch-Pruning Taylor"
Arm = Callable[["Bench", float, int], nn.Module]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of a BERT")
    parser.add_argument("--model-id", help="name to record instead of a folder")
    parser.add_argument("--data-dir", required=True, help="folder of GLUE data")
    parser.add_argument("--work-dir", type=Path, required=True, help="where fine-tuned models are kept")
    parser.add_argument("--tasks", nargs="+", default=["sst2", "mrpc"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.75, 0.5, 0.33], help="share of the encoder")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--draws", type=int, default=5, help="random choices for each checkpoint and budget")
    parser.add_argument("--examples", type=int, default=512, help="training examples that arms choose by")
    parser.add_argument("--limit-train", type=int, default=8000, help="training rows of a task, at the most")
    parser.add_argument(
        "--recover", nargs="*", choices=list(ARMS), help="also train LoRA on what these arms produced; none named: all"
    )
    parser.add_argument("--recover-steps", type=int, default=250)
    parser.add_argument("--bf16", action="store_true", help="train with bfloat16 matrix products")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    cells = json.loads(options.output.read_text())["cells"] if options.output.exists() else []
    seen = {key(cell) for cell in cells if not (wants_recovery(options, cell) and cell["recovered"] is None)}
    for seed in options.seeds:
        for task in options.tasks:
            todo = [cell for cell in wanted(options, task, seed) if key(cell) not in seen]
            bench = Bench(options, task, seed) if todo else None
            for cell in todo:
                assert bench is not None
                start = time.monotonic()
                run_cell(options, bench, cell)
                cells = [*(other for other in cells if key(other) != key(cell)), cell]
                write(options, cells)
                after = "" if cell["recovered"] is None else f", recovered {cell['recovered']['value']:.4f}"
                print(
                    f"{task:5} seed {seed} {cell['arm']:24} {cell['budget']:.2f}: {cell['value']:.4f}{after} "
                    f"at {cell['encoder_share']:.4f} ({time.monotonic() - start:.0f} s)",
                    flush=True,
                )
    print(options.output.with_suffix(".md").read_text())


def wanted(options: argparse.Namespace, task: str, seed: int) -> list[dict[str, Any]]:
    of_arm = {"random": options.draws}
    return [
        {"task": task, "seed": seed, "budget": budget, "arm": arm, "draw": draw}
        for arm in options.arms
        for budget in ([1.0] if arm == "dense" else options.budgets)
        for draw in range(of_arm.get(arm, 1))
    ]


def key(cell: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(cell[name] for name in ("task", "seed", "budget", "arm", "draw"))


def wants_recovery(options: argparse.Namespace, cell: dict[str, Any]) -> bool:
    # One draw for each seed: training is what takes the time.
    return options.recover is not None and cell["draw"] == 0 and cell["arm"] in (options.recover or ARMS)


@dataclass
class Bench:
    """One fine-tuned checkpoint, and what all arms share."""

    options: argparse.Namespace
    task: str
    seed: int

    def __post_init__(self) -> None:
        options, folder = self.options, Path(self.options.data_dir)
        rows = len(load_glue(self.task, data_dir=folder).train)
        limit = options.limit_train if rows > options.limit_train else None
        self.data = load_glue(self.task, data_dir=folder, train_rows=limit, seed=self.seed)
        self.tokenizer = load_tokenizer(options.model)
        self.collate = make_collator(self.tokenizer)
        self.train = self.tokenize(self.data.train)
        chosen = sample_examples(self.data.train, options.examples, self.seed)
        self.batches = LengthSortedBatches(self.tokenize(chosen), self.collate, batch_size=32)
        self.model = self._fine_tuned()
        macs, sites = count_model_macs(self.model), identify(self.model).all_sites
        self.dense_macs = macs.dense(LENGTH)
        # All that is neither heads nor neurons: the pooler and the classifier.
        self.fixed_macs = macs.kept(sites, [()] * len(sites), LENGTH)
        only_heads = [range(site.units) if site.kind == "heads" else () for site in sites]
        self.head_macs = macs.kept(sites, only_heads, LENGTH) - self.fixed_macs
        self.scores = cache(partial(self.measure, self.model))

    @property
    def encoder_macs(self) -> int:
        return self.dense_macs - self.fixed_macs

    def tokenize(self, examples: Any) -> list[dict[str, Any]]:
        return tokenize(examples, self.tokenizer, max_length=RECIPE.max_length, label_names=self.data.label_names)

    def _fine_tuned(self) -> nn.Module:
        precision = "-bf16" if self.options.bf16 else ""
        folder = self.options.work_dir / f"{self.task}-{len(self.train)}-seed{self.seed}{precision}"
        if not folder.is_dir():
            base = load_base(self.options.model, label_names=self.data.label_names, seed=self.seed)
            self.train_(base.model, "full", RECIPE.epochs)
            with replace_folder(folder) as aside:
                trained: Any = base.model.cpu()
                trained.save_pretrained(aside)
        return load_base(str(folder), label_names=self.data.label_names, seed=self.seed).model.eval()

    def train_(self, model: nn.Module, method: Any, epochs: float) -> None:
        with tempfile.TemporaryDirectory() as folder:
            train_(
                model,
                self.train,
                tokenizer=self.tokenizer,
                recipe=replace(RECIPE, epochs=epochs),
                method=method,
                folder=Path(folder),
                seed=self.seed,
                bf16=self.options.bf16,
            )

    def recover_(self, model: nn.Module) -> nn.Module:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        adapted = apply_method(BaseModel(model, fresh=()), "lora", RECIPE)
        self.train_(adapted, "lora", self.options.recover_steps / math.ceil(len(self.train) / RECIPE.batch_size))
        return adapted

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        name, examples = next(iter(self.data.validation.items()))
        quality = measure_quality(
            self.data.metrics,
            scores=predict(model, self.tokenize(examples), self.collate),
            labels=np.array([example.label for example in examples]),
        )
        metric, measure = next(iter(quality.metrics.items()))
        return {
            "validation": name,
            "metric": metric,
            "value": measure.value,
            "metrics": {name: value.value for name, value in quality.metrics.items()},
            "examples": quality.examples,
            "majority_rate": quality.majority_rate,
            "at_majority": quality.at_majority,
        }

    def measure(self, model: nn.Module, order: Any) -> ImportanceScores:
        return measure_importance(model, self.batches, units=UNITS, order=order, progress=False)

    @cached_property
    def gradients(self) -> dict[str, torch.Tensor]:
        """Of every weight, summed over the batches, as Torch-Pruning's examples accumulate them."""
        model = copy.deepcopy(self.model)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        for batch in self.batches:
            model(**batch).loss.backward()
        return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def ours(order: Any, reconstruct: Any = "none", rounds: int = 1, inputs: Any = "dense") -> Arm:
    def arm(bench: Bench, budget: float, draw: int) -> nn.Module:
        model = copy.deepcopy(bench.model)
        for number in range(1, rounds + 1):
            # Equal shares of what is left go in every round; then what remains is scored again.
            scores = bench.scores(order) if number == 1 else bench.measure(model, order)
            prune_to_(bench, model, scores, budget ** (number / rounds), reconstruct, inputs)
        return model

    return arm


def random_units(bench: Bench, budget: float, draw: int) -> nn.Module:
    scores = random_importance(bench.model, seed=1000 * bench.seed + draw, units=UNITS)
    return prune_to_(bench, copy.deepcopy(bench.model), scores, budget)


def reversed_units(bench: Bench, budget: float, draw: int) -> nn.Module:
    return prune_to_(bench, copy.deepcopy(bench.model), reversed_importance(bench.scores("second")), budget)


def prune_to_(
    bench: Bench,
    model: nn.Module,
    scores: ImportanceScores,
    budget: float,
    reconstruct: Any = "none",
    inputs: Any = "dense",
) -> nn.Module:
    # Budgets of the library are shares of the whole dense model.
    share = (budget * bench.encoder_macs + bench.fixed_macs) / bench.dense_macs
    plan = plan_pruning(scores, keep_macs=share, length=LENGTH, reconstruct=reconstruct)
    if reconstruct == "none":
        return prune_(model, plan)
    return reconstruct_(model, plan, bench.batches, inputs=inputs, progress=False)


def torch_pruning(importance: Callable[[Any], Any], *, heads: float = 1.0, gradients: bool = False) -> Arm:
    """Torch-Pruning at the pruning ratio that reaches the budget; `heads` is the heads' ratio as a share of it.

    One head is half a per cent of the encoder, so the heads' ratio is set first and that of the neurons searched.
    """

    def arm(bench: Bench, budget: float, draw: int) -> nn.Module:
        import torch_pruning as tp  # pyright: ignore[reportMissingImports]: no dependency of the project

        share = bench.head_macs / bench.encoder_macs
        ratio = (1 - budget) / (share * heads + 1 - share)
        low, high = 0.0, 1.0
        model = bench.model
        for _ in range(14):
            model = torch_pruning_(
                copy.deepcopy(bench.model),
                importance(tp.importance),
                bench.gradients if gradients else None,
                heads=heads * ratio,
                neurons=(low + high) / 2,
            )
            found = (count_macs(model, length=LENGTH) - bench.fixed_macs) / bench.encoder_macs
            if abs(found / budget - 1) < 5e-4:
                break
            low, high = ((low + high) / 2, high) if found > budget else (low, (low + high) / 2)
        return model

    return arm


def sum_of_logits(outputs: Any) -> torch.Tensor:
    return outputs.logits.sum()


def torch_pruning_(
    model: Any, importance: Any, gradients: dict[str, torch.Tensor] | None, *, heads: float, neurons: float
) -> nn.Module:
    """Prune a BERT by these shares of all its heads and neurons, with Torch-Pruning.

    As its example for BERT does, but: heads and neurons are ranked in scopes of their own (`isomorphic`, its authors'
    later method), and the hidden size is left alone, as here for all arms.
    """
    import torch_pruning as tp  # pyright: ignore[reportMissingImports]: no dependency of the project

    for name, weight in model.named_parameters():
        weight.requires_grad_(True)
        weight.grad = None if gradients is None else gradients.get(name)
    layers = model.base_model.encoder.layer
    attentions = [layer.attention.self for layer in layers]
    head_size = attentions[0].attention_head_size
    projections = [(attention.query, attention.key, attention.value) for attention in attentions]
    hidden = [part for layer in layers for part in (layer.attention.output.dense, layer.output.dense)]
    ids = torch.full((1, 16), 5)
    pruner = tp.pruner.BasePruner(
        model,
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        importance=importance,
        global_pruning=True,
        isomorphic=True,
        # Heads go only where the width of their projections has a ratio too, although no head gets narrower.
        pruning_ratio=neurons,
        head_pruning_ratio=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        num_heads={part: len(part.weight) // head_size for parts in projections for part in parts},
        # Its defaults are dicts that all pruners share.
        in_channel_groups={},
        out_channel_groups={},
        ignored_layers=[model.base_model.embeddings, model.base_model.pooler, model.classifier, *hidden],
        output_transform=sum_of_logits,
    )
    for group in pruner.step(interactive=True):
        group.prune()
    for attention in attentions:
        attention.num_attention_heads = attention.query.out_features // head_size
        attention.all_head_size = attention.query.out_features
    for weight in model.parameters():
        weight.grad = None
    return model


def keep_best(importance: Callable[[Any], torch.Tensor]) -> Callable[[Any], torch.Tensor]:
    """The same, but each layer's best channel never goes: Torch-Pruning leaves a layer whole that it would empty."""

    def score(group: Any) -> torch.Tensor:
        scores = importance(group)
        scores[scores.argmax()] = math.inf
        return scores

    return score


ARMS: dict[str, Arm] = {
    "dense": lambda bench, budget, draw: copy.deepcopy(bench.model),
    "first order": ours("first"),
    "first order, bias": ours("first", "bias"),
    "first order, lstsq": ours("first", "lstsq"),
    "second order": ours("second"),
    "second order, bias": ours("second", "bias"),
    "second order, lstsq": ours("second", "lstsq"),
    "second order, lstsq in turn": ours("second", "lstsq", inputs="pruned"),
    "second order, 3 rounds": ours("second", rounds=3),
    "second order, 3 rounds, lstsq": ours("second", "lstsq", rounds=3),
    RIVAL: torch_pruning(lambda kinds: kinds.GroupTaylorImportance(), gradients=True),
    "Torch-Pruning Taylor, tuned": torch_pruning(
        lambda kinds: keep_best(kinds.GroupTaylorImportance(normalizer=None, multivariable=True)),
        heads=0.5,
        gradients=True,
    ),
    "Torch-Pruning magnitude": torch_pruning(lambda kinds: kinds.GroupMagnitudeImportance()),
    "random": random_units,
    "reversed second order": reversed_units,
}


def run_cell(options: argparse.Namespace, bench: Bench, cell: dict[str, Any]) -> None:
    """Prune, evaluate, recover; what was found is written into `cell`."""
    model = ARMS[cell["arm"]](bench, cell["budget"], cell["draw"]).eval()
    macs = count_macs(model, length=LENGTH) - bench.fixed_macs
    cell |= {
        "encoder_macs": macs,
        "encoder_share": macs / bench.encoder_macs,
        "fixed_macs": bench.fixed_macs,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "heads": [site.units for site in find_sites(model)],
        "neurons": [site.units for site in find_feed_forwards(model)],
        "train_examples": len(bench.train),
        **bench.evaluate(model),
        "recovered": None,
        "versions": versions() | peer_version(),
        "machine": machine(),
    }
    if wants_recovery(options, cell):
        cell["recovered"] = bench.evaluate(bench.recover_(model))


def peer_version() -> dict[str, str]:
    try:
        return {"torch-pruning": version("torch-pruning")}
    except PackageNotFoundError:
        return {}


def write(options: argparse.Namespace, cells: list[dict[str, Any]]) -> None:
    command = command_of(options)
    # A grid that was made in several goes names them all.
    before = json.loads(options.output.read_text())["commands"] if options.output.exists() else []
    commands = list(dict.fromkeys([*before, command]))
    content: dict[str, Any] = {"commands": commands, "model": options.model_id or options.model, "cells": cells}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, content)
    write_text(options.output.with_suffix(".md"), table(commands, content["model"], cells))


def table(commands: list[str], model: str, cells: list[dict[str, Any]]) -> str:
    """One row per task, budget and arm: mean over seeds (of means over draws) with Student's t interval."""
    first = cells[0]
    more = (
        f"Compute: multiply-accumulates of the encoder at {LENGTH} tokens, counted on the pruned model, as a share of "
        f"the dense encoder's; the pooler and the classifier ({first['fixed_macs']:,}, the same in all) are not in it. "
        "The interval is Student's t over seeds, each with its own fine-tuned model; draws of a seed are averaged "
        "first. Beside Torch-Pruning Taylor: the mean of the differences on the same checkpoints. "
        "The standard error is that of one run on the validation set. Behind the accuracy after LoRA: its seeds."
    )
    lines = [
        *heading(
            f"{model}: accuracy right after pruning, at equal counted compute",
            commands,
            first["machine"],
            first["versions"],
            more,
        ),
        "| task | train / validation rows | compute asked | arm | compute counted | accuracy | one run's s.e. "
        "| beside Torch-Pruning Taylor | after LoRA | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for task in dict.fromkeys(cell["task"] for cell in cells):
        for budget in sorted({cell["budget"] for cell in cells if cell["task"] == task}, reverse=True):
            here = [cell for cell in cells if (cell["task"], cell["budget"]) == (task, budget)]
            rival = by_seed(here, RIVAL, accuracy)
            for arm in ARMS:
                group = [cell for cell in here if cell["arm"] == arm]
                if not group:
                    continue
                values = by_seed(here, arm, accuracy)
                after = by_seed([cell for cell in here if cell["recovered"] is not None], arm, recovered_accuracy)
                gaps = [] if arm == RIVAL else [values[seed] - rival[seed] for seed in values if seed in rival]
                mean = statistics.mean(values.values())
                error = (mean * (100 - mean) / group[0]["examples"]) ** 0.5
                shares = [100 * cell["encoder_share"] for cell in group]
                recovered = f"{spread(after.values())} ({len(after)})" if after else ""
                low, high = f"{min(shares):.2f}", f"{max(shares):.2f}"
                lines.append(
                    f"| {task} | {group[0]['train_examples']:,} / {group[0]['examples']:,} | {100 * budget:.0f} % "
                    f"| {arm} "
                    f"| {low if low == high else f'{low} - {high}'} % | {spread(values.values())} | {error:.1f} "
                    f"| {spread(gaps, '+')} | {recovered} | {len(values)} |"
                )
    return "\n".join(lines) + "\n"


def accuracy(cell: dict[str, Any]) -> float:
    return 100 * cell["value"]


def recovered_accuracy(cell: dict[str, Any]) -> float:
    return 100 * cell["recovered"]["value"]


def by_seed(cells: list[dict[str, Any]], arm: str, value: Callable[[dict[str, Any]], float]) -> dict[int, float]:
    found: dict[int, list[float]] = {}
    for cell in cells:
        if cell["arm"] == arm:
            found.setdefault(cell["seed"], []).append(value(cell))
    return {seed: statistics.mean(values) for seed, values in found.items()}


def spread(values: Iterable[float], sign: str = "") -> str:
    """Mean and half the width of its 95 % interval."""
    found = list(values)
    if not found:
        return ""
    mean = f"{statistics.mean(found):{sign}.1f}"
    if len(found) == 1:
        return mean
    half = stats.t.ppf(0.975, len(found) - 1) * statistics.stdev(found) / len(found) ** 0.5
    return f"{mean} ± {half:.1f}"


if __name__ == "__main__":
    main()
