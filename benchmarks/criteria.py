"""Which criterion knows what may go? A screen of criteria right after surgery, without any training.

    python benchmarks/criteria.py --model MODEL --data-dir GLUE --work-dir WORK \
        --output benchmarks/results/criteria.json

Per task and seed, one dense model is trained by LoRA and merged (cached in the work folder). Every criterion scores
heads and neurons; the trained model is pruned by its scores to shares of heads and of the encoder's operations, and its
loss, accuracy and agreement with the dense model are taken on validation examples, as it is and after least squares.

A criterion is what is measured, and of which model:

* of: "untrained" (the base with a random task head, as in the paper), "head" (the head fitted to the frozen features
  by logistic regression first, in seconds), "5 %" and "20 %" (after that share of the steps of its training), "trained"
  (the dense model itself).
* what: "first" (mean |gradient|), "second" (mean squared gradient), "obs" (what least squares cannot make up for),
  "output" (mean squared change of the last hidden state, through random projections; needs no label), "magnitude",
  "random", five draws, and "shuffled", five deals of the trained model's "obs" within each site: other units, and of
  each block as many.
* "leave-one-out": how much the loss of 256 training examples rises when a head really goes; the yardstick, taken on
  other examples than all criteria are. Each criterion's rank correlation with it (heads, within blocks) stands beside
  what it chooses, and so does its correlation with itself on as many other examples.

What the output file already holds is skipped, so the screen resumes after any interruption, and with more tasks, seeds
or rules; other settings need another file.
"""

import argparse
import copy
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import pruning_adapter as pa
from provenance import command_of, heading, model_name
from pruning_adapter.architectures.identity import identify
from pruning_adapter.architectures.sites import find_all_sites, find_sites
from pruning_adapter.checkpoint.merged import merge
from pruning_adapter.costs.macs import count_model_macs
from pruning_adapter.environment import machine, tell_machine, versions
from pruning_adapter.evaluation.predict import predict
from pruning_adapter.importance.batching import LengthSortedBatches
from pruning_adapter.importance.gates import Gate, gated_sites
from pruning_adapter.importance.stability import rank_agreement
from pruning_adapter.storage import replace_folder, write_json, write_text
from pruning_adapter.training.attention import choose_attention_
from pruning_adapter.training.base_model import load_base, load_tokenizer
from pruning_adapter.training.methods import apply_method
from pruning_adapter.training.recipes import RECIPES
from pruning_adapter.training.tasks import load_glue
from pruning_adapter.training.tokenize import sample_examples, tokenize
from pruning_adapter.training.trainer import make_collator, train_

Key = tuple[str, int, str, str]
"""Task, seed, of which model, what."""
UNITS = ("heads", "neurons")
LENGTH = 128
RULES: dict[str, dict[str, float]] = {
    "70 % of heads": {"keep_ratio": 0.7},
    "50 % of heads": {"keep_ratio": 0.5},
    "50 % of MACs": {"encoder_macs": 0.5},
    "33 % of MACs": {"encoder_macs": 0.33},
}
SHARES = {"5 %": 0.05, "20 %": 0.2}
CONTROLS = ("random", "shuffled")
CRITERIA = (
    *((of, what) for of in ("untrained", "head", *SHARES, "trained") for what in ("first", "second", "obs")),
    ("untrained", "output"),
    ("trained", "output"),
    ("untrained", "magnitude"),
    *((control, str(draw)) for control in CONTROLS for draw in range(5)),
    ("trained", "leave-one-out"),
)
PROJECTIONS = 4
"""Random projections of an example's hidden state; examples average them further."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of an encoder")
    parser.add_argument("--model-id", help="name to record instead of a folder")
    parser.add_argument("--data-dir", required=True, help="folder of GLUE data")
    parser.add_argument("--work-dir", type=Path, required=True, help="where trained models are kept")
    parser.add_argument("--tasks", nargs="+", default=["mrpc", "qnli", "mnli", "rte"])
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train-rows", type=int, default=12_000, help="of a task, at the most")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--examples", type=int, default=512, help="training examples that are scored")
    parser.add_argument("--validation", type=int, default=500, help="validation examples that are looked at")
    parser.add_argument("--bf16", action="store_true", help="train with bfloat16 matrix products")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    known = json.loads(options.output.read_text()) if options.output.exists() else {}
    check_same(options, known)
    cells: dict[Key, dict[str, Any]] = {key_of(cell): cell for cell in known.get("cells", [])}
    for seed in options.seeds:
        for task in options.tasks:
            todo = {pair: missing_rules(options, cells.get((task, seed, *pair))) for pair in CRITERIA}
            if not any(todo.values()):
                continue
            screen = Screen(options, task, seed)
            for (of, what), rules in todo.items():
                if not rules:
                    continue
                start = time.monotonic()
                before = cells.get((task, seed, of, what), {"rules": [], "rows": []})
                found = {"task": task, "seed": seed, "of": of, "what": what, **screen.judge(of, what, rules)}
                if before.get("dense", found["dense"]) != found["dense"]:
                    raise SystemExit(
                        f"{task}, seed {seed}, was screened by another training of the dense model, whose numbers are "
                        "not to be compared with these: name another --output, or the --work-dir that holds that model"
                    )
                joined = {name: [*before[name], *found[name]] for name in ("rules", "rows")}
                cells[task, seed, of, what] = found | joined
                known = write(options, known, cells)
                print(f"{task} seed {seed}: {of} {what} ({time.monotonic() - start:.0f} s)", flush=True)
    write(options, known, cells)
    print(options.output.with_suffix(".md").read_text())


def check_same(options: argparse.Namespace, known: dict[str, Any]) -> None:
    """Refuse to go on with other settings, or other versions of the libraries, than the file was begun with."""
    now = {"settings": settings_of(options), "versions": versions()}
    for what, found in now.items():
        for name, value in found.items():
            if known and known[what].get(name) != value:
                raise SystemExit(
                    f"{options.output} was measured with {name} {known[what].get(name)!r}, not {value!r}; name another "
                    "file"
                )


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What all cells of a file share."""
    names = ("train_rows", "epochs", "examples", "validation", "bf16")
    return {"model": model_name(options), **{name: getattr(options, name) for name in names}}


def key_of(cell: dict[str, Any]) -> Key:
    return cell["task"], cell["seed"], cell["of"], cell["what"]


def missing_rules(options: argparse.Namespace, cell: dict[str, Any] | None) -> list[str]:
    return [rule for rule in options.rules if cell is None or rule not in cell["rules"]]


class Screen:
    """One trained model, and everything that is measured of it once."""

    def __init__(self, options: argparse.Namespace, task: str, seed: int) -> None:
        self.options, self.task, self.seed = options, task, seed
        self.data = load_glue(task, data_dir=Path(options.data_dir), train_rows=options.train_rows, seed=seed)
        self.tokenizer = load_tokenizer(options.model)
        self.collate = make_collator(self.tokenizer)
        self.recipe = replace(RECIPES["default"], epochs=options.epochs)
        self.train = self.tokenize(self.data.train)
        # Every second one: halves that are alike, however the file is ordered.
        both = sample_examples(self.data.train, 2 * options.examples, seed)
        scored, other = self.tokenize(both[::2]), self.tokenize(both[1::2])
        if len(other) < options.examples:
            raise SystemExit(f"{task} has too few training examples for two samples of {options.examples}")
        self.other = LengthSortedBatches(other, self.collate, batch_size=32)
        self.batches = LengthSortedBatches(scored, self.collate, batch_size=32)
        self.few = list(LengthSortedBatches(other[:256], self.collate, batch_size=64))
        examples = sample_examples(next(iter(self.data.validation.values())), options.validation, 0)
        self.validation = self.tokenize(examples)
        self.labels = np.array([int(example.label) for example in examples])
        self.model_of = cache(self._model_of)
        self.scores_of = cache(self._scores_of)

    @cached_property
    def dense(self) -> np.ndarray[Any, Any]:
        """What the dense model answers."""
        return self.look(self.model_of("trained"))

    def whole_share(self, share: float) -> float:
        """The share of the whole model's operations that leaves this share of its blocks'."""
        model = self.model_of("trained")
        whole, sites = count_model_macs(model), identify(model).all_sites
        fixed, dense = whole.kept(sites, [()] * len(sites), LENGTH), whole.dense(LENGTH)
        return (share * (dense - fixed) + fixed) / dense

    def tokenize(self, examples: Any) -> list[dict[str, Any]]:
        return tokenize(examples, self.tokenizer, max_length=128, label_names=self.data.label_names)

    def judge(self, of: str, what: str, rules: Sequence[str]) -> dict[str, Any]:
        scores = self.scores_of(of, what)
        yardstick = self.scores_of("trained", "leave-one-out")
        rows = [
            {"rule": rule, "scope": scope, "reconstruct": correction, **self.prune(scores, rule, scope, correction)}
            for rule in rules
            # Budgets weigh the raw scores against what a unit costs.
            # "lstsq" after a choice per block adds nothing to what the others tell.
            for scope, correction in (
                (("block", "none"), ("model", "none"), ("model", "lstsq"))
                if "keep_ratio" in RULES[rule]
                else (("none", "none"), ("none", "lstsq"))
            )
            if scores.neurons or "keep_ratio" in RULES[rule]
        ]
        return {
            "agreement_with_leave_one_out": rank_agreement(scores.heads, yardstick.heads),
            "agreement_with_itself": self.repeat(of, what, scores),
            "dense": self.told(self.dense),
            "rules": list(rules),
            "rows": rows,
        }

    def repeat(self, of: str, what: str, scores: Any) -> float | None:
        """How well as many other examples rank the heads alike; None where nothing is measured."""
        if what not in ("first", "second", "obs", "output"):
            return None
        return rank_agreement(scores.heads, self.measure(self.model_of(of), what, self.other).heads)

    def prune(self, scores: Any, rule: str, scope: Any, correction: Any) -> dict[str, float]:
        asked: dict[str, Any] = dict(RULES[rule])
        if "encoder_macs" in asked:
            asked["keep_macs"] = self.whole_share(asked.pop("encoder_macs"))
        else:
            scores = replace(scores, neurons=())
        plan = pa.plan_pruning(
            scores, **asked, length=LENGTH, normalization=None if scope == "none" else scope, reconstruct=correction
        )
        model = copy.deepcopy(self.model_of("trained"))
        pruned = pa.prune_(model, plan) if correction == "none" else pa.reconstruct_(model, plan, self.batches)
        return self.told(self.look(pruned))

    def look(self, model: Any) -> np.ndarray[Any, Any]:
        return predict(model, self.validation, self.collate)

    def told(self, logits: np.ndarray[Any, Any]) -> dict[str, float]:
        chosen = logits.argmax(axis=1)
        return {
            "loss": float(-log_softmax(logits, axis=1)[np.arange(len(self.labels)), self.labels].mean()),
            "accuracy": float((chosen == self.labels).mean()),
            "agreement": float((chosen == self.dense.argmax(axis=1)).mean()),
        }

    def _model_of(self, of: str) -> Any:
        if of == "trained":
            return self._trained()
        base = load_base(self.options.model, label_names=self.data.label_names, seed=self.seed)
        if of == "head":
            fit_head_(base.model, self.batches)
        if of in SHARES:
            adapted = apply_method(base, "lora", self.recipe)
            self._train_(adapted, stop_after=SHARES[of])
            return merge(adapted)
        return base.model

    def _trained(self) -> Any:
        recipe = hashlib.sha256(json.dumps(self.recipe.to_json(), sort_keys=True).encode()).hexdigest()[:8]
        said = (model_name(self.options), self.task, len(self.train), recipe, self.options.bf16, self.seed)
        folder = self.options.work_dir / "-".join(str(each).replace("/", "-") for each in said)
        if not folder.is_dir():
            base = load_base(self.options.model, label_names=self.data.label_names, seed=self.seed)
            adapted = apply_method(base, "lora", self.recipe)
            self._train_(adapted)
            with replace_folder(folder) as aside:
                trained: Any = merge(adapted)
                trained.save_pretrained(aside)
        return load_base(str(folder), label_names=self.data.label_names, seed=self.seed).model.eval()

    def _train_(self, model: nn.Module, *, stop_after: float = 1.0) -> None:
        if self.options.bf16:
            choose_attention_(model, longest=128)
        with tempfile.TemporaryDirectory() as folder:
            train_(
                model,
                self.train,
                tokenizer=self.tokenizer,
                recipe=self.recipe,
                method="lora",
                folder=Path(folder),
                seed=self.seed,
                bf16=self.options.bf16,
                stop_after=stop_after,
            )

    def _scores_of(self, of: str, what: str) -> Any:
        if of == "random":
            return pa.random_importance(self.model_of("trained"), seed=1000 * self.seed + int(what), units=UNITS)
        if of == "shuffled":
            return pa.shuffled_importance(self.scores_of("trained", "obs"), seed=1000 * self.seed + int(what))
        if what == "leave-one-out":
            found = leave_one_out(self.model_of(of), self.few)
        else:
            found = self.measure(self.model_of(of), what, self.batches)
        # What was measured of one model decides about another: same sizes, other weights.
        return replace(found, model=identify(self.model_of("trained")))

    def measure(self, model: Any, what: str, batches: LengthSortedBatches) -> Any:
        if what == "obs":
            return pa.obs_importance(model, batches, units=UNITS, progress=False)
        if what == "magnitude":
            return pa.magnitude_importance(model, units=UNITS)
        if what == "output":
            return measure_output_change(model, batches)
        return pa.measure_importance(model, batches, units=UNITS, order=what, progress=False)  # pyright: ignore[reportArgumentType]


def fit_head_(model: Any, batches: LengthSortedBatches) -> None:
    """Fit the last linear map of the task head to the frozen model's features, by logistic regression."""
    classes = model.config.num_labels
    last = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == classes][
        -1
    ]
    inputs: list[Tensor] = []
    labels: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            model.eval()(**batch)
            labels.append(batch["labels"])
    handle.remove()
    fitted = LogisticRegression(C=0.1, max_iter=1000).fit(torch.cat(inputs).numpy(), torch.cat(labels).numpy())
    weight, bias = torch.tensor(fitted.coef_).float(), torch.tensor(fitted.intercept_).float()
    if classes == 2:
        # One row decides between two classes.
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    with torch.no_grad():
        last.weight.copy_(weight)
        last.bias.copy_(bias)


def measure_output_change(model: Any, batches: LengthSortedBatches) -> Any:
    """Mean squared gradient of random projections of the last hidden state: the diagonal of J^T J, by Hutchinson."""
    sites = find_all_sites(model)
    totals = [torch.zeros(site.units, dtype=torch.float64) for site in sites]
    generator, tokens = torch.Generator().manual_seed(0), 0
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.eval()
    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        size, mask = len(batch["labels"]), batch["attention_mask"]
        gates = [Gate(site.units, batch=size, per_token=False, dtype=torch.float32) for site in sites]
        with torch.enable_grad(), gated_sites(sites, gates):
            hidden = model.base_model(**inputs).last_hidden_state
        for number in range(PROJECTIONS):
            signs = torch.randint(0, 2, hidden.shape, generator=generator) * 2.0 - 1
            told = (signs * hidden * mask.unsqueeze(-1)).sum()
            values: Any = [gate.value for gate in gates]
            found = torch.autograd.grad(told, values, retain_graph=number < PROJECTIONS - 1)
            for total, gradient in zip(totals, found, strict=True):
                total += gradient.double().square().sum(0)
        tokens += int(mask.sum())
    heads = len(find_sites(model))
    scores = [total / tokens / PROJECTIONS for total in totals]
    control = pa.random_importance(model, seed=0, units=UNITS)
    return replace(control, heads=tuple(scores[:heads]), neurons=tuple(scores[heads:]), scorer="output change")


def leave_one_out(model: Any, batches: list[dict[str, Tensor]]) -> Any:
    """How much the mean loss rises when one head goes; neurons are too many."""
    sites = find_sites(model)

    def loss(gates: list[Tensor]) -> float:
        with torch.no_grad(), pa.gated(model, gates):
            losses = [(float(model(**batch).loss), len(batch["labels"])) for batch in batches]
        return sum(value * count for value, count in losses) / sum(count for _, count in losses)

    ones = [torch.ones(site.units) for site in sites]
    whole = loss(ones)
    rises: list[Tensor] = []
    for place, site in enumerate(sites):
        rise = torch.zeros(site.units, dtype=torch.float64)
        for head in range(site.units):
            gates = [gate.clone() for gate in ones]
            gates[place][head] = 0
            rise[head] = loss(gates) - whole
        rises.append(rise)
    control = pa.random_importance(model, seed=0, units=("heads",))
    return replace(control, heads=tuple(rises), scorer="leave-one-out")


def write(options: argparse.Namespace, known: dict[str, Any], cells: dict[Key, dict[str, Any]]) -> dict[str, Any]:
    """All that is known so far, with the calls and the machines that measured it."""
    missing = [
        f"{task} seed {seed}"
        for seed in options.seeds
        for task in options.tasks
        if any(missing_rules(options, cells.get((task, seed, *pair))) for pair in CRITERIA)
    ]
    content = {
        "commands": list(dict.fromkeys([*known.get("commands", []), command_of(options)])),
        "machines": list(dict.fromkeys([*known.get("machines", []), tell_machine(machine())])),
        "versions": versions(),
        "settings": settings_of(options),
        "missing": missing,
        "cells": list(cells.values()),
    }
    write_json(options.output, content)
    write_text(options.output.with_suffix(".md"), table(content))
    return content


def table(content: dict[str, Any]) -> str:
    cells = content["cells"]
    rules = [rule for rule in RULES if any(row["rule"] == rule for cell in cells for row in cell["rows"])]
    lines = [
        *heading(
            "What criteria choose, right after surgery",
            content["commands"],
            {"processor": "; ".join(content["machines"])},
            content["versions"],
        ),
        "Loss on validation examples above the dense model's, and per cent of them that get the dense model's answer, "
        "mean over seeds (and draws). Of heads: compared within "
        "blocks / over the model / over the model, and what stays corrected by least squares. Of multiply-accumulates, "
        "heads and neurons: as it is / corrected. LOO: rank correlation with leave-one-out on other examples, heads, "
        "within blocks; again: with the same criterion on as many other examples.",
        *(["", f"Not finished: {', '.join(content['missing'])}."] if content["missing"] else []),
    ]
    for task in dict.fromkeys(cell["task"] for cell in cells):
        of_task = [cell for cell in cells if cell["task"] == task]
        dense = {cell["seed"]: cell["dense"] for cell in of_task}
        lines += [
            "",
            f"## {task}: dense loss {statistics.mean(each['loss'] for each in dense.values()):.3f}, "
            f"accuracy {100 * statistics.mean(each['accuracy'] for each in dense.values()):.1f}",
            "",
            f"| criterion | LOO | again | {' | '.join(rules)} |",
            f"| --- | --- | --- | {' | '.join('---' for _ in rules)} |",
        ]
        for name, group in grouped(of_task):
            told = [mean_of(group, "agreement_with_leave_one_out"), mean_of(group, "agreement_with_itself")]
            told += [" / ".join(rises(group, rule)) for rule in rules]
            lines.append(f"| {name} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def grouped(cells: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    name_of: Callable[[dict[str, Any]], str] = lambda cell: (  # noqa: E731
        cell["of"] if cell["of"] in CONTROLS else f"{cell['of']}, {cell['what']}"
    )
    for name in dict.fromkeys(map(name_of, cells)):
        yield name, [cell for cell in cells if name_of(cell) == name]


def mean_of(cells: list[dict[str, Any]], name: str) -> str:
    known = [cell[name] for cell in cells if cell[name] is not None]
    return f"{statistics.mean(known):.2f}" if known else ""


def rises(cells: list[dict[str, Any]], rule: str) -> list[str]:
    """Of every way in which `rule` was carried out."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for cell in cells:
        for row in cell["rows"]:
            if row["rule"] == rule:
                way = (row["scope"], row["reconstruct"])
                found.setdefault(way, []).append((row["loss"] - cell["dense"]["loss"], 100 * row["agreement"]))
    means = [map(statistics.mean, zip(*told, strict=True)) for told in found.values()]
    return [f"{loss:+.3f}, {agreement:.0f}" for loss, agreement in means]


if __name__ == "__main__":
    main()
